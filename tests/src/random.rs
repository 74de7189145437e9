//! The run's generator: ChaCha, seeded, one stream for each part of the simulator.
//!
//! Streams keep the parts apart: a run with fewer operations draws the same faults at the same times.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

/// Which part of the simulator draws.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// The run's own shape.
    Swarm,
    /// What clients do.
    Clients,
    /// What the network does to messages.
    Network,
    /// Faults of nodes and disks.
    Faults,
    /// Seeds of the nodes' own generators.
    Nodes,
    /// What the administrator asks for.
    Administrator,
}

/// A seeded generator.
#[derive(Clone, Debug)]
pub struct Random(ChaCha8Rng);

impl Random {
    /// The stream of one part under a run's seed.
    #[must_use]
    pub fn new(seed: u64, stream: Stream) -> Random {
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        generator.set_stream(stream as u64);
        Random(generator)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A seed for another generator.
    pub fn seed(&mut self) -> [u8; 32] {
        let mut seed = [0; 32];
        self.0.fill_bytes(&mut seed);
        seed
    }

    /// A number below `bound`; 0 if the bound is 0. The bias of the remainder is far below what matters here.
    pub fn below(&mut self, bound: usize) -> usize {
        let bits = usize::try_from(self.0.next_u32()).expect("at least 32-bit");
        if bound == 0 { 0 } else { bits % bound }
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high.saturating_sub(low) + 1)
    }

    /// Whether something of this many chances in a thousand happens.
    pub fn chance(&mut self, permille: u32) -> bool {
        permille > 0 && self.0.next_u32() % 1000 < permille
    }

    /// A duration from `low` to `high`, in whole microseconds.
    pub fn duration(&mut self, low: Duration, high: Duration) -> Duration {
        let (low, high) = (micros(low), micros(high));
        Duration::from_micros(low + self.0.next_u64() % (high.saturating_sub(low) + 1))
    }

    /// One of several.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len())]
    }
}

/// A duration in whole microseconds.
fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).expect("a simulated duration is short")
}
