//! Random numbers for what only has to differ: request ids, jitter, and which of two equals is taken.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::RequestId;

/// A generator that tasks share without a lock (SplitMix64), seeded by the operating system. Not for secrets.
#[derive(Debug)]
pub(crate) struct Random {
    /// Tells this client's request ids from every other client's.
    client: u64,
    state: AtomicU64,
}

impl Random {
    /// A generator with a seed of its own.
    pub(crate) fn new() -> Random {
        let seed = || getrandom::u64().expect("TLS needs the operating system's generator as well");
        Random { client: seed(), state: AtomicU64::new(seed()) }
    }

    /// The next number.
    pub(crate) fn next(&self) -> u64 {
        let mut mixed = self.state.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is positive.
    pub(crate) fn below(&self, bound: usize) -> usize {
        // The high half of a product: without the bias towards small numbers that a remainder has for large bounds.
        let product = u128::from(self.next()) * bound as u128;
        usize::try_from(product >> 64).expect("below a usize")
    }

    /// From half of `most` to all of it, so that those who failed together do not come back together.
    pub(crate) fn jittered(&self, most: Duration) -> Duration {
        let share = 500 + u32::try_from(self.below(501)).expect("at most 500");
        most * share / 1000
    }

    /// A new request id. Never zero, which names none: the state visits each number once in 2^64.
    pub(crate) fn request_id(&self) -> RequestId {
        let id = u128::from(self.client) << 64 | u128::from(self.next());
        RequestId(id.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_below_a_bound_reaches_every_number_below_it() {
        let random = Random::new();
        let mut hits = [0_u32; 3];
        for _ in 0..3000 {
            hits[random.below(3)] += 1;
        }
        assert!(hits.iter().all(|hits| (800..1200).contains(hits)), "{hits:?}");
    }

    #[test]
    fn jitter_is_between_half_and_all() {
        let random = Random::new();
        let most = Duration::from_millis(100);
        for _ in 0..1000 {
            let wait = random.jittered(most);
            assert!(wait >= most / 2 && wait <= most, "{wait:?}");
        }
    }

    #[test]
    fn request_ids_differ_within_a_client_and_between_clients() {
        let (one, other) = (Random::new(), Random::new());
        let ids = [one.request_id(), one.request_id(), other.request_id(), other.request_id()];
        for (index, id) in ids.iter().enumerate() {
            assert!(!ids[..index].contains(id));
        }
    }
}
