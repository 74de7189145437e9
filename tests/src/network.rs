//! The simulated network: which messages arrive, when and how often.
//!
//! Connections behave as QUIC's do: what was sent to a process that has died since does not reach its successor, and
//! once a successor was heard, nothing of its predecessor is. Within a connection messages may be lost (a stream that
//! was reset), repeated (a frame that was sent again after a reconnection), delayed and reordered (streams do not wait
//! for each other).

use std::time::Duration;

use crate::{random::Random, swarm};

/// The network's state.
#[derive(Debug)]
pub(crate) struct Network {
    random: Random,
    /// For each sender the receivers that it cannot reach, one bit each.
    cut: Vec<u8>,
    /// Counts partitions, so that the end of one does not heal the next.
    pub(crate) generation: u64,
    /// Whether the network has become perfect but for its latency.
    pub(crate) is_healed: bool,
}

/// When the copies of a message arrive.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fate {
    pub(crate) first: Option<Duration>,
    pub(crate) second: Option<Duration>,
}

impl Network {
    pub(crate) fn new(random: Random, hosts: usize) -> Network {
        Network { random, cut: vec![0; hosts], generation: 0, is_healed: false }
    }

    /// Decides about a message. The copies that arrive are still lost if the link is cut when they would.
    pub(crate) fn fate(&mut self, plan: &swarm::Network) -> Fate {
        if self.is_healed {
            return Fate { first: Some(self.latency(plan)), second: None };
        }
        let first = (!self.random.chance(plan.loss_permille)).then(|| self.latency(plan));
        let second = self.random.chance(plan.duplicate_permille).then(|| self.latency(plan) * 2);
        Fate { first, second }
    }

    /// How long a message takes.
    pub(crate) fn latency(&mut self, plan: &swarm::Network) -> Duration {
        let latency = self.random.duration(plan.latency_min, plan.latency_max);
        if self.random.chance(plan.slow_permille) {
            return latency * u32::try_from(self.random.between(2, 60)).expect("at most 60");
        }
        latency
    }

    /// Whether messages from one host reach another.
    pub(crate) fn connects(&self, from: usize, to: usize) -> bool {
        self.cut[from] & (1 << to) == 0
    }

    /// Cuts the way from one host to another.
    pub(crate) fn cut(&mut self, from: usize, to: usize) {
        self.cut[from] |= 1 << to;
    }

    /// Connects all hosts again.
    pub(crate) fn mend(&mut self) {
        self.generation += 1;
        self.cut.fill(0);
    }

    /// Cuts the hosts into two sides, or one host off; in both directions or in one.
    pub(crate) fn cut_somehow(&mut self) {
        self.mend();
        let hosts = self.cut.len();
        let random = &mut self.random;
        let side: u64 = match random.below(3) {
            0 | 1 => 1 << random.below(hosts),
            _ => random.bits(),
        };
        let (outward, inward) = match random.below(4) {
            0 => (true, false),
            1 => (false, true),
            _ => (true, true),
        };
        for from in 0..hosts {
            for to in 0..hosts {
                let (leaves, enters) = (side >> from & 1 == 1, side >> to & 1 == 1);
                if leaves != enters && (leaves && outward || enters && inward) {
                    self.cut(from, to);
                }
            }
        }
    }
}
