//! What two nodes say to each other about all that they share, as an exchange begins.

use antientropy::version::Counter;
use ring::Epoch;

/// Where a node stands with each partition that it shares with another, in ascending order, equal ones together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The partitions, run by run.
    pub runs: Vec<Run>,
}

/// Partitions in a row with which a node stands alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// How many there are.
    pub partitions: u32,
    /// The node's floor there.
    pub floor: Counter,
    /// The lowest floor of all copies, as the node knows them.
    pub lowest: Counter,
    /// The watermark.
    pub watermark: Counter,
    /// What the node's copy promised, and the epoch of the document under which it did.
    pub promise: Counter,
    /// See `promise`.
    pub promise_epoch: Epoch,
    /// The time of filling that the copy is in, a random number; 0 if it is whole.
    pub filling: u64,
}

impl Standing {
    /// Adds a partition.
    pub(crate) fn push(&mut self, run: Run) {
        match self.runs.last_mut() {
            Some(last) if (Run { partitions: last.partitions, ..run }) == *last => {
                last.partitions += run.partitions;
            }
            Some(_) | None => self.runs.push(run),
        }
    }

    /// Of how many partitions it speaks.
    pub(crate) fn len(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.partitions)).sum()
    }

    /// Each partition's. Only of one that speaks of as many partitions as there are.
    pub(crate) fn each(&self) -> impl Iterator<Item = &Run> {
        self.runs.iter().flat_map(|run| std::iter::repeat_n(run, run.partitions as usize))
    }
}
