//! Tokens and partitions: where on the circle a key lies.
//!
//! The circle of 2^64 tokens is cut into equal partitions once, when the cluster is born, and never again: the
//! third strategy of the Dynamo paper, section 6.2, which decouples partitioning from placement. A token's highest
//! bits name its partition, so a partition is one contiguous range of tokens.

use std::{fmt, ops::RangeInclusive};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::PartitionId;

/// A key's place on the circle: the first 64 bits of its BLAKE3 hash, read as a big-endian number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(pub u64);

impl Token {
    /// The token of `key`. Every node and every client computes the same one, so this never changes.
    #[must_use]
    pub fn of_key(key: &[u8]) -> Token {
        let hash = blake3::hash(key);
        let first = hash.as_bytes().first_chunk::<8>().expect("a hash has 32 bytes");
        Token(u64::from_be_bytes(*first))
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "token-{:016x}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How many partitions the circle is cut into: a power of two, from 1 to 65,536.
///
/// More partitions balance more nodes and move in smaller steps, and cost every node a tree, a place in the document
/// and a share of each exchange. A real cluster asks for at least [`Partitions::CLUSTER_MIN`].
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Partitions {
    /// The count's logarithm to base two, at most 16.
    bits: u8,
}

/// Why a number is not a count of partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{0} partitions: must be a power of two, at most 65536")]
pub struct BadPartitionCount(pub u32);

impl Partitions {
    /// What a cluster gets unless its configuration says otherwise: 1,024.
    pub const DEFAULT: Partitions = Partitions { bits: 10 };

    /// The fewest that the formation of a real cluster may ask for: 64. With fewer, five nodes cannot be balanced to
    /// within a few percent. Smaller counts are for tests and simulations, so this type allows them.
    pub const CLUSTER_MIN: Partitions = Partitions { bits: 6 };

    /// The most that there can be, 65,536: as many as [`PartitionId`] can name.
    pub const MAX: Partitions = Partitions { bits: 16 };

    /// A circle of `count` partitions.
    ///
    /// # Errors
    ///
    /// If `count` is not a power of two from 1 to 65,536.
    pub fn new(count: u32) -> Result<Partitions, BadPartitionCount> {
        if !count.is_power_of_two() || count > Partitions::MAX.count() {
            return Err(BadPartitionCount(count));
        }
        Ok(Partitions { bits: u8::try_from(count.ilog2()).expect("at most 16") })
    }

    /// How many there are.
    #[must_use]
    pub const fn count(self) -> u32 {
        1 << self.bits
    }

    /// How many of a token's bits name its partition.
    #[must_use]
    pub fn bits(self) -> u8 {
        self.bits
    }

    /// The partition that holds `token`: its highest bits.
    #[must_use]
    pub fn of(self, token: Token) -> PartitionId {
        // A shift by all 64 bits, with one partition, has no value of its own: everything is in partition 0.
        let high = token.0.checked_shr(64 - u32::from(self.bits)).unwrap_or(0);
        PartitionId(u16::try_from(high).expect("at most 16 bits are left"))
    }

    /// The tokens of `partition`, first and last included.
    ///
    /// # Panics
    ///
    /// If there is no such partition.
    #[must_use]
    pub fn range(self, partition: PartitionId) -> RangeInclusive<u64> {
        assert!(u32::from(partition.0) < self.count(), "{partition} of {} partitions", self.count());
        let low_bits = 64 - u32::from(self.bits);
        let first = u64::from(partition.0).checked_shl(low_bits).unwrap_or(0);
        let last = first | u64::MAX.checked_shr(u32::from(self.bits)).expect("at most 16 bits");
        first..=last
    }

    /// Every partition, in order.
    pub fn iter(self) -> impl ExactSizeIterator<Item = PartitionId> + Clone {
        // `u16` ranges know their length, `u32` ranges do not on every platform.
        let last = u16::try_from(self.count() - 1).expect("at most 65,536 partitions");
        (0..usize::from(last) + 1).map(|index| PartitionId(u16::try_from(index).expect("at most the last")))
    }
}

impl Default for Partitions {
    fn default() -> Partitions {
        Partitions::DEFAULT
    }
}

impl TryFrom<u32> for Partitions {
    type Error = BadPartitionCount;

    fn try_from(count: u32) -> Result<Partitions, BadPartitionCount> {
        Partitions::new(count)
    }
}

impl From<Partitions> for u32 {
    fn from(partitions: Partitions) -> u32 {
        partitions.count()
    }
}

impl fmt::Display for Partitions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} partitions", self.count())
    }
}

impl fmt::Debug for Partitions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the `blake3` package for Python: `blake3.blake3(key).digest()[:8].hex()`.
    #[test]
    fn the_token_of_a_key_never_changes() {
        assert_eq!(Token::of_key(b""), Token(0xaf13_49b9_f5f9_a1a6));
        assert_eq!(Token::of_key(b"a"), Token(0x1776_2fdd_d969_a453));
        assert_eq!(Token::of_key(b"quorate"), Token(0x7e28_88c1_7561_a010));
        assert_eq!(Token::of_key(b"cart:42"), Token(0x171a_fab5_79ee_36b4));
        let long: Vec<u8> = (0..8).flat_map(|_| 0..=255).collect();
        assert_eq!(Token::of_key(&long), Token(0x1bdc_cfde_0210_a8ca));
    }

    #[test]
    fn a_count_of_partitions_is_a_power_of_two_up_to_65536() {
        for bits in 0..=16 {
            assert_eq!(Partitions::new(1 << bits).map(Partitions::count), Ok(1 << bits));
        }
        for bad in [0, 3, 1000, 65_535, 65_537, 1 << 17, u32::MAX] {
            assert_eq!(Partitions::new(bad), Err(BadPartitionCount(bad)));
        }
        assert_eq!(Partitions::default().count(), 1024);
    }

    #[test]
    fn partitions_are_the_circle_cut_in_order_without_a_gap() {
        for count in [1, 2, 64, 1024, 65_536] {
            let partitions = Partitions::new(count).unwrap();
            let mut expected = 0_u64;
            for partition in partitions.iter() {
                let range = partitions.range(partition);
                assert_eq!(*range.start(), expected);
                assert_eq!(partitions.of(Token(*range.start())), partition);
                assert_eq!(partitions.of(Token(*range.end())), partition);
                expected = range.end().wrapping_add(1);
            }
            assert_eq!(expected, 0, "the last partition ends where the circle does");
            assert_eq!(partitions.iter().len(), count as usize);
        }
    }

    #[test]
    #[should_panic(expected = "partition-64 of 64 partitions")]
    fn there_is_no_range_beyond_the_last_partition() {
        let _ = Partitions::CLUSTER_MIN.range(PartitionId(64));
    }
}
