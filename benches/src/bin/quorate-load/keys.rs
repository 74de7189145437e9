//! Which keys and values the load uses.

use bytes::Bytes;
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use rand_distr::{Distribution, Zipf};

/// The exponent that YCSB uses.
const ZIPF_EXPONENT: f64 = 0.99;

/// The keys to choose from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keys {
    pub(crate) count: u64,
    pub(crate) is_zipf: bool,
}

/// Chooses keys and makes values.
pub(crate) struct Chooser {
    keys: Keys,
    zipf: Option<Zipf<f64>>,
    random: SmallRng,
}

impl Keys {
    /// One that draws from this seed.
    pub(crate) fn chooser(self, seed: u64) -> Chooser {
        #[allow(clippy::cast_precision_loss)]
        let count = self.count as f64;
        let zipf = self.is_zipf.then(|| Zipf::new(count, ZIPF_EXPONENT).expect("there is a key at least"));
        Chooser { keys: self, zipf, random: SmallRng::seed_from_u64(seed) }
    }
}

/// The name of a key. The most frequent ones of Zipf's law lie all over the ring: names are hashed.
pub(crate) fn name(index: u64) -> Bytes {
    Bytes::from(format!("key-{index:012}"))
}

impl Chooser {
    /// The next key.
    pub(crate) fn key(&mut self) -> Bytes {
        let index = match &self.zipf {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            Some(zipf) => zipf.sample(&mut self.random) as u64 - 1,
            None => self.random.random_range(0..self.keys.count),
        };
        name(index)
    }

    /// A number below 100.
    pub(crate) fn percent(&mut self) -> u32 {
        self.random.random_range(0..100)
    }

    /// A value of so many bytes that do not compress.
    pub(crate) fn value(&mut self, bytes: usize) -> Bytes {
        let mut value = vec![0; bytes];
        self.random.fill(&mut value[..]);
        Bytes::from(value)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn counts(is_zipf: bool) -> BTreeMap<Bytes, u32> {
        let mut chooser = Keys { count: 1000, is_zipf }.chooser(7);
        let mut counts = BTreeMap::new();
        for _ in 0..100_000 {
            *counts.entry(chooser.key()).or_default() += 1;
        }
        counts
    }

    #[test]
    fn even_choice_is_even_and_zipfs_law_prefers_the_first() {
        let even = counts(false);
        assert_eq!(even.len(), 1000);
        assert!(even.values().all(|count| (50..200).contains(count)));
        let zipf = counts(true);
        let first = zipf[&name(0)];
        // With exponent 0.99 the first of a thousand keys is chosen about 13 times in a hundred.
        assert!((11_000..15_000).contains(&first), "{first}");
        assert!(zipf.keys().all(|key| *key >= name(0) && *key <= name(999)));
    }

    #[test]
    fn a_seed_gives_the_same_values_again() {
        let value = |seed| Keys { count: 1, is_zipf: false }.chooser(seed).value(100);
        assert_eq!(value(1), value(1));
        assert_ne!(value(1), value(2));
        assert_eq!(value(1).len(), 100);
    }
}
