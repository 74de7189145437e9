//! The link: what the first item of every batch says about the batch and the one before it.
//!
//! The engine's journal protects the items of a batch with a checksum, but neither its number nor its place among the
//! others: a flipped bit in a number would reorder writes, and a hole between two journal files would go unnoticed. So
//! each batch says which batch it follows, and which the engine's own number of that one was. A journal whose links do
//! not join is damaged, wherever a bit flipped.
//!
//! A batch of the engine holds all batches of the core that were synced together, and has the sequence of the last.
//!
//! A link also says how far its store was known to be synced when it was written. That tells a tail that a crash tore,
//! which nobody was told of, from one that rotted after it was acknowledged.
//!
//! ```text
//! bytes 0-3    magic, "QLNK": a link can be found among bytes that are no batch any more
//! byte  4      format, 1
//! bytes 5-12   sequence of this batch
//! bytes 13-20  sequence of the batch before it; 0 for the first
//! bytes 21-28  one more than the engine's number of that batch; 0 for the first
//! bytes 29-36  sequence up to which everything was synced
//! bytes 37-44  xxh3 (64 bits) of all that
//! ```
//!
//! All big-endian.

use xxhash_rust::xxh3::xxh3_64;

use crate::storage::Sequence;

/// The key of the link in the table of the node's own facts, and of a trace of the batch among the records where there
/// might be none otherwise. The core has no such key: its facts have names, and its objects more than a byte.
pub(super) const LINK_KEY: &[u8] = &[0];

/// What begins every link.
const MAGIC: &[u8; 4] = b"QLNK";
/// The format that is written.
const FORMAT: u8 = 1;
/// Bytes before the checksum.
const PAYLOAD_BYTES: usize = 37;
/// The engine's numbers never jump so far from one batch to the next: a bit flipped, and nothing else would notice in
/// the last batch of all.
const NUMBER_STEP_MAX: u64 = 1 << 32;

/// See the module's documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) sequence: Sequence,
    pub(super) previous: Sequence,
    /// The lowest number that the engine can have given this batch.
    pub(super) number_min: u64,
    pub(super) synced: Sequence,
}

impl Link {
    /// Bytes of every link.
    pub(super) const BYTES: usize = PAYLOAD_BYTES + 8;

    /// The link as it is stored.
    pub(super) fn encode(&self) -> [u8; Link::BYTES] {
        let mut out = [0; Link::BYTES];
        out[..4].copy_from_slice(MAGIC);
        out[4] = FORMAT;
        let fields = [self.sequence.0, self.previous.0, self.number_min, self.synced.0];
        for (field, bytes) in fields.iter().zip(out[5..PAYLOAD_BYTES].chunks_exact_mut(8)) {
            bytes.copy_from_slice(&field.to_be_bytes());
        }
        let checksum = xxh3_64(&out[..PAYLOAD_BYTES]);
        out[PAYLOAD_BYTES..].copy_from_slice(&checksum.to_be_bytes());
        out
    }

    /// The link that these bytes are; none if they are not just one.
    pub(super) fn decode(bytes: &[u8]) -> Option<Link> {
        if bytes.len() != Link::BYTES || bytes[..4] != MAGIC[..] || bytes[4] != FORMAT {
            return None;
        }
        let field = |index: usize| {
            let at = 5 + index * 8;
            u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
        };
        // The checksum is the field after the last.
        if field(4) != xxh3_64(&bytes[..PAYLOAD_BYTES]) {
            return None;
        }
        let (sequence, previous) = (Sequence(field(0)), Sequence(field(1)));
        Some(Link { sequence, previous, number_min: field(2), synced: Sequence(field(3)) })
    }

    /// Whether the engine can have given its batch this number.
    pub(super) fn allows(&self, number: u64) -> bool {
        number.checked_sub(self.number_min).is_some_and(|step| step < NUMBER_STEP_MAX)
    }

    /// Whether it is the link of the batch after this one, to which the engine gave this number.
    pub(super) fn is_followed_by(&self, number: u64, next: &Link) -> bool {
        next.previous == self.sequence && next.sequence > self.sequence && next.number_min == number + 1
    }

    /// All links among bytes, whether or not they are in whole batches.
    pub(super) fn find_all(bytes: &[u8]) -> impl Iterator<Item = Link> {
        let mut at = 0;
        std::iter::from_fn(move || {
            loop {
                let rest = bytes.get(at..)?;
                let found = rest.windows(MAGIC.len()).position(|window| window == MAGIC)?;
                let link = rest.get(found..found + Link::BYTES).and_then(Link::decode);
                at += found + link.map_or(1, |_| Link::BYTES);
                if link.is_some() {
                    return link;
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: Link =
        Link { sequence: Sequence(7), previous: Sequence(5), number_min: 40, synced: Sequence(4) };

    #[test]
    fn the_format_is_pinned() {
        let bytes = LINK.encode();
        assert_eq!(&bytes[..5], b"QLNK\x01");
        assert_eq!(bytes[5..13], 7_u64.to_be_bytes());
        assert_eq!(bytes[13..21], 5_u64.to_be_bytes());
        assert_eq!(bytes[21..29], 40_u64.to_be_bytes());
        assert_eq!(bytes[29..37], 4_u64.to_be_bytes());
        assert_eq!(bytes[37..], xxh3_64(&bytes[..37]).to_be_bytes());
        assert_eq!(bytes[37..], 0x13ee_b14c_59b0_bd4e_u64.to_be_bytes());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let bytes = LINK.encode();
        assert_eq!(Link::decode(&bytes), Some(LINK));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Link::decode(&damaged), None, "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert_eq!(Link::decode(&bytes[..length]), None);
        }
    }

    #[test]
    fn links_are_found_among_other_bytes() {
        let other = Link { sequence: Sequence(8), ..LINK };
        let bytes = [b"QLNKQLN".as_slice(), &LINK.encode(), b"xyz", &other.encode(), b"QLNK"].concat();
        assert_eq!(Link::find_all(&bytes).collect::<Vec<_>>(), [LINK, other]);
        assert_eq!(Link::find_all(&bytes[..bytes.len() - 10]).count(), 1);
        assert_eq!(Link::find_all(b"").count(), 0);
    }

    #[test]
    fn a_number_out_of_place_is_found() {
        assert!(LINK.allows(40) && LINK.allows(90));
        assert!(!LINK.allows(39) && !LINK.allows(40 | 1 << 40) && !LINK.allows(0));
        let next = Link { sequence: Sequence(9), previous: Sequence(7), number_min: 51, synced: Sequence(7) };
        assert!(LINK.is_followed_by(50, &next));
        assert!(!LINK.is_followed_by(49, &next));
        assert!(!LINK.is_followed_by(50, &Link { previous: Sequence(8), ..next }));
        assert!(!LINK.is_followed_by(50, &Link { sequence: Sequence(7), ..next }));
    }
}
