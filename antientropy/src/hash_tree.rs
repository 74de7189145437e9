//! What a copy holds, as sums that are always current: a write costs two hashes and a few additions, and nothing is read
//! again to learn that two copies hold the same.
//!
//! Each key with its version is an [`Element`]: a *position*, which follows from the key alone, and a *weight*, a keyed
//! hash of the key's token and of all that a version's digest is of. A [`Sum`] of elements is the sum of their weights, and
//! that of their weights times their positions. A [`HashTree`] has one for each *leaf*, a range of tokens with some sixteen
//! keys, and one for all.
//!
//! Sums are inner nodes, too: that of a range is the sum of its leaves, at whatever level it is looked at. So a tree stores
//! leaves and nothing above them but the root, and trees of different depths are compared at the lower one.
//!
//! Two sums say more than one. Where two copies differ in one key, the difference of their weights is the difference of
//! that key's weights, and the other difference divided by it is the key's position, though nobody sent the key
//! ([`sketch`](crate::sketch)). And they are harder to make equal: 112 bits, under a key that clients do not know.
//!
//! Additive hashes of sets are Bellare and Micciancio's ("A New Paradigm for Collision-Free Hashing: Incrementality at
//! Reduced Cost", EUROCRYPT 1997); that leaves are always current is what section 4.7 of the Dynamo paper leaves open.

use std::ops::{AddAssign, SubAssign};

use ring::Token;

use crate::{residue::Residue, version::Record};

/// Keys of one leaf, on average, when a tree is built.
pub const KEYS_PER_LEAF: u64 = 16;
/// Leaves of a tree at most, as a power of two.
pub const BITS_MAX: u8 = 24;

/// A key with a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Element {
    position: Residue,
    weight: Residue,
}

/// A sum of elements, or a difference of two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Sum {
    /// Of the elements' weights.
    pub weights: Residue,
    /// Of their weights times their positions.
    pub moments: Residue,
}

/// The sums of a range of tokens.
#[derive(Clone, Debug)]
pub struct HashTree {
    /// The leading bits that all tokens have in common: of what is kept here, not of what is compared.
    prefix_bits: u8,
    bits: u8,
    leaves: Vec<Sum>,
    root: Sum,
    len: u64,
}

impl Element {
    /// The key with this token and this record. The secret is the cluster's.
    #[must_use]
    pub fn new(secret: &[u8; 32], token: Token, record: &Record) -> Element {
        let hash = record.keyed_hash(secret, &token.0.to_be_bytes());
        let number = u64::from_be_bytes(hash.as_bytes()[..8].try_into().expect("eight of 32 bytes"));
        // 64 bits modulo 56: the lowest five weights are not noticeably likelier.
        let weight = Residue::new(number);
        // What weighs nothing would not be seen.
        let weight = if weight == Residue::ZERO { Residue::ONE } else { weight };
        Element { position: position_of(token), weight }
    }

    /// Where it is.
    #[must_use]
    pub fn position(&self) -> Residue {
        self.position
    }
}

/// The position of the key with this token: the token's first 56 bits. Keys that have it in common, one in 2^56, are
/// told apart when their records are read.
#[must_use]
pub fn position_of(token: Token) -> Residue {
    // There are five fewer residues than there are numbers of 56 bits: the last keys of all share one.
    Residue::new((token.0 >> 8).min(Residue::MAX.get()))
}

impl Sum {
    /// Of nothing.
    pub const ZERO: Sum = Sum { weights: Residue::ZERO, moments: Residue::ZERO };

    /// Whether it is that of nothing, or of equals.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        *self == Sum::ZERO
    }

    /// Where the only key is that a difference is of, if it is of one; none if it is of none, or certainly of several.
    #[must_use]
    pub fn position(&self) -> Option<Residue> {
        Some(self.moments * self.weights.inverse()?)
    }
}

impl AddAssign<Element> for Sum {
    fn add_assign(&mut self, element: Element) {
        self.weights += element.weight;
        self.moments += element.weight * element.position;
    }
}

impl SubAssign<Element> for Sum {
    fn sub_assign(&mut self, element: Element) {
        self.weights -= element.weight;
        self.moments -= element.weight * element.position;
    }
}

impl AddAssign for Sum {
    fn add_assign(&mut self, other: Sum) {
        self.weights += other.weights;
        self.moments += other.moments;
    }
}

impl SubAssign for Sum {
    fn sub_assign(&mut self, other: Sum) {
        self.weights -= other.weights;
        self.moments -= other.moments;
    }
}

impl HashTree {
    /// A tree of nothing, over the tokens that have their first bits in common, so many, with leaves for so many keys.
    ///
    /// # Panics
    ///
    /// If there are more than 56 of these bits.
    #[must_use]
    pub fn new(prefix_bits: u8, keys: u64) -> HashTree {
        assert!(prefix_bits <= 56, "a position has 56 bits");
        let bits = bits_for(prefix_bits, keys);
        HashTree { prefix_bits, bits, leaves: vec![Sum::ZERO; 1 << bits], root: Sum::ZERO, len: 0 }
    }

    /// The same with as many leaves as a tree of its keys is to have, if those are fewer.
    #[must_use]
    pub fn fitted(self) -> HashTree {
        let bits = bits_for(self.prefix_bits, self.len);
        if bits >= self.bits {
            return self;
        }
        HashTree { bits, leaves: self.sums(bits).collect(), ..self }
    }

    /// A key has come, changed or gone: what it was, and what it is.
    pub fn replace(&mut self, token: Token, before: Option<Element>, after: Option<Element>) {
        let mut change = Sum::ZERO;
        if let Some(before) = before {
            change -= before;
            self.len = self.len.saturating_sub(1);
        }
        if let Some(after) = after {
            change += after;
            self.len += 1;
        }
        let leaf = self.leaf_of(token);
        self.leaves[leaf] += change;
        self.root += change;
    }

    /// How many keys it is of.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it is of none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether it has far fewer leaves than a tree of so many keys should have, and can have more: it is to be built anew.
    #[must_use]
    pub fn is_coarse(&self) -> bool {
        let can = self.bits < BITS_MAX.min(56 - self.prefix_bits);
        can && self.len > (KEYS_PER_LEAF * 4) << self.bits
    }

    /// The sum of all keys.
    #[must_use]
    pub fn root(&self) -> Sum {
        self.root
    }

    /// How many leaves there are, as a power of two.
    #[must_use]
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// The sums of ranges, in order: of two to the power of `bits`, or of the leaves if those are fewer.
    pub fn sums(&self, bits: u8) -> impl ExactSizeIterator<Item = Sum> {
        let each = 1 << (self.bits - bits.min(self.bits));
        self.leaves.chunks_exact(each).map(total)
    }

    /// The sum of one range of two to the power of `bits`, which are no more than the leaves.
    ///
    /// # Panics
    ///
    /// If there are not so many.
    #[must_use]
    pub fn sum(&self, bits: u8, range: u64) -> Sum {
        let each = 1_usize << (self.bits - bits);
        let from = usize::try_from(range).expect("one of the ranges") * each;
        total(&self.leaves[from..from + each])
    }

    /// How many bytes of memory its leaves take.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.leaves.len() * size_of::<Sum>()
    }

    fn leaf_of(&self, token: Token) -> usize {
        if self.bits == 0 {
            return 0;
        }
        let leaf = (token.0 << self.prefix_bits) >> (64 - self.bits);
        usize::try_from(leaf).expect("as many bits as leaves have")
    }
}

/// How many leaves a tree of so many keys is to have, as a power of two.
fn bits_for(prefix_bits: u8, keys: u64) -> u8 {
    let leaves = keys.div_ceil(KEYS_PER_LEAF).max(1).next_power_of_two();
    let bits = u8::try_from(leaves.trailing_zeros()).expect("below 64");
    bits.min(BITS_MAX).min(56 - prefix_bits)
}

fn total(leaves: &[Sum]) -> Sum {
    let mut sum = Sum::ZERO;
    leaves.iter().for_each(|leaf| sum += *leaf);
    sum
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::version::written;

    const SECRET: [u8; 32] = [7; 32];

    fn element(token: u64, version: u8) -> Element {
        Element::new(&SECRET, Token(token), &written(version.into()))
    }

    fn tree(prefix_bits: u8, keys: u64, content: &[(u64, u8)]) -> HashTree {
        let mut tree = HashTree::new(prefix_bits, keys);
        for (token, version) in content {
            tree.replace(Token(*token), None, Some(element(*token, *version)));
        }
        tree
    }

    #[test]
    fn elements_differ_by_key_by_version_and_by_secret() {
        let first = element(1 << 40, 1);
        assert_ne!(first, element(2 << 40, 1));
        assert_ne!(first, element(1 << 40, 2));
        let other = Element::new(&[8; 32], Token(1 << 40), &written(1));
        assert_ne!(first, other);
        assert_eq!(first.position(), other.position());
        assert_ne!(first.weight, element((1 << 40) + 1, 1).weight, "keys of one position");
    }

    /// Two versions of the program that weighed one record differently would find that everything differs.
    #[test]
    fn weights_are_pinned() {
        let element = element(0x0123_4567_89ab_cdef, 1);
        assert_eq!(
            (element.position().get(), element.weight.get()),
            (0x01_2345_6789_abcd, 0x3b_eaa2_e1c1_bef9)
        );
    }

    #[test]
    fn one_changed_key_is_found_by_division() {
        let content: Vec<(u64, u8)> = (0..1000u64).map(|number| (number << 50, 1)).collect();
        let (mut here, there) = (tree(0, 1000, &content), tree(0, 1000, &content));
        let token = 77 << 50;
        here.replace(Token(token), Some(element(token, 1)), Some(element(token, 2)));
        let mut difference = here.root();
        difference -= there.root();
        assert_eq!(difference.position(), Some(position_of(Token(token))));
        let differing: Vec<usize> = here
            .sums(64)
            .zip(there.sums(64))
            .enumerate()
            .filter(|(_, (a, b))| a != b)
            .map(|(leaf, _)| leaf)
            .collect();
        assert_eq!(differing.len(), 1);
        here.replace(Token(token), Some(element(token, 2)), None);
        let mut difference = here.root();
        difference -= there.root();
        assert_eq!(difference.position(), Some(position_of(Token(token))), "a missing one as well");
        assert_eq!((here.len(), there.len()), (999, 1000));
    }

    #[test]
    fn leaves_are_ranges_within_the_prefix() {
        // The third of four ranges of tokens.
        let prefix = 0b10 << 62;
        let mut tree = HashTree::new(2, 8 * KEYS_PER_LEAF);
        assert_eq!(tree.bits(), 3);
        for leaf in 0..8u64 {
            let token = Token(prefix | leaf << 59 | 12345);
            tree.replace(token, None, Some(element(token.0, 1)));
            assert_eq!(tree.sums(3).filter(|sum| !sum.is_zero()).count() as u64, leaf + 1);
        }
        assert_eq!(HashTree::new(0, 0).bits(), 0);
        assert_eq!(HashTree::new(0, u64::MAX).bits(), BITS_MAX);
        assert_eq!(HashTree::new(50, u64::MAX).bits(), 6, "no more leaves than positions");
    }

    #[test]
    fn a_tree_that_has_grown_is_coarse() {
        let mut tree = HashTree::new(0, 0);
        for number in 0..KEYS_PER_LEAF * 4 {
            assert!(!tree.is_coarse());
            tree.replace(Token(number << 50), None, Some(element(number, 1)));
        }
        tree.replace(Token(9), None, Some(element(9, 1)));
        assert!(tree.is_coarse() && !HashTree::new(0, tree.len()).is_coarse());
    }

    proptest! {
        /// Whatever the order, the depth and what was there meanwhile: equal content has equal sums at every level.
        #[test]
        fn sums_follow_from_the_content_alone(
            content in vec((any::<u64>(), 0..4u8), 0..60),
            others in vec((any::<u64>(), 0..4u8), 0..60),
            bits in 0..8u8,
        ) {
            let shallow = tree(0, 100, &content);
            let mut deep = tree(0, 5000, &others);
            for (token, version) in content.iter().rev() {
                deep.replace(Token(*token), None, Some(element(*token, *version)));
            }
            for (token, version) in &others {
                deep.replace(Token(*token), Some(element(*token, *version)), None);
            }
            prop_assert_eq!(shallow.root(), deep.root());
            prop_assert_eq!(shallow.len(), deep.len());
            let level = bits.min(shallow.bits());
            let both: Vec<(Sum, Sum)> = shallow.sums(level).zip(deep.sums(level)).collect();
            prop_assert_eq!(both.len(), 1 << level);
            prop_assert!(both.iter().all(|(a, b)| a == b));
            let mut all = Sum::ZERO;
            deep.sums(bits).for_each(|sum| all += sum);
            prop_assert_eq!(all, deep.root());
        }
    }
}
