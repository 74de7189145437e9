//! A node of the model: what its disk holds, what its process knows, and what it may conclude.

use crate::record::{Actor, Counter, Record};

/// Keys of the partition.
pub(crate) const KEYS: usize = 2;
/// The fewest copies that a request asks for, and the most.
pub(crate) const COPIES_FEWEST: usize = 2;
pub(crate) const COPIES_MAX: usize = 5;

/// What is stored. There is one of what is held, and one of what is synced.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    pub(crate) store: u32,
    /// Counts its syncs.
    pub(crate) sequence: u64,
    pub(crate) records: [Record; KEYS],
    /// No process of this store mints at or below it. One a node, not one a partition.
    pub(crate) floor: Counter,
    /// Everything up to here that a copy of the epoch holds is here as well.
    pub(crate) promise: Counter,
    pub(crate) promise_epoch: usize,
    /// All copies promised it.
    pub(crate) watermark: Counter,
    pub(crate) is_whole: bool,
    pub(crate) hints: Vec<Hint>,
    /// How far each peer's store was seen synced: the store, and its sequence.
    pub(crate) seen: Vec<(u32, u64)>,
    pub(crate) epoch: usize,
}

/// Names a key that a replica is owed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hint {
    pub(crate) key: usize,
    pub(crate) target: usize,
    /// Whether an acknowledgement counts on it.
    pub(crate) is_counted: bool,
    /// Which leaving of it this is: one that is left again meanwhile is not delivered.
    pub(crate) stamp: u64,
    /// The write that it was left for first.
    pub(crate) since: Counter,
}

/// What a process knows and forgets.
#[derive(Clone, Debug, Default)]
pub(crate) struct Process {
    pub(crate) id: u64,
    /// The hybrid clock's last counter.
    pub(crate) clock: Counter,
    pub(crate) actor: Option<Actor>,
    /// The sequence that its store recovered to.
    pub(crate) recovered: u64,
    /// For each peer the process of it that welcomed this one; 0 for none.
    pub(crate) greeted: Vec<u64>,
    /// What waits for the next sync.
    pub(crate) waiting: Vec<Waiting>,
    /// The floor of each node, synced there, as far as it was told.
    pub(crate) floors: Vec<Counter>,
    /// The promise of each node with its epoch, synced there.
    pub(crate) promises: Vec<(Counter, usize)>,
    /// Up to where the exchanges with each peer count, under the present document.
    pub(crate) credits: Vec<Counter>,
    /// Which time of filling this is; 0 if the copy is whole.
    pub(crate) generation: u64,
    /// Up to here no write is under way any more: the lowest floor under which an exchange has begun.
    pub(crate) closed: Counter,
    /// Counts how often it began anew to exchange with all others.
    pub(crate) round: u64,
    /// The peers with which exchanges were completed in this time, and which time of filling those were in.
    pub(crate) exchanged: Vec<Option<u64>>,
    /// Of a filling copy: of what it has refused in exchanges of this round, the fewest copies that each was kept under.
    pub(crate) blocked: Vec<usize>,
    /// In a union: the times in which all others were found filling.
    pub(crate) union: Option<Vec<Option<u64>>>,
}

/// What happens when everything is synced that is held now.
#[derive(Clone, Debug)]
pub(crate) enum Waiting {
    /// A write is acknowledged.
    Acknowledge { write: usize },
    /// A hint's target has it.
    Delivered { holder: usize, process: u64, hint: Hint },
    /// An answer of an exchange is sent.
    Send(Box<Message>),
    /// An exchange is complete.
    Complete { exchange: usize },
}

/// A machine.
#[derive(Clone, Debug, Default)]
pub(crate) struct Node {
    pub(crate) held: Disk,
    pub(crate) synced: Disk,
    pub(crate) process: Option<Process>,
    /// How far its clock is off.
    pub(crate) skew: i64,
    /// Counts what it lost for good of each key: acknowledgements from before do not bind it.
    pub(crate) losses: [u32; KEYS],
    /// Older states of its disk.
    pub(crate) backups: Vec<Disk>,
}

impl Node {
    pub(crate) fn loses_all(&mut self) {
        self.losses.iter_mut().for_each(|losses| *losses += 1);
    }
}

/// Which way a record comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    Write(usize),
    StandIn { write: usize, target: usize },
    Hint { hint: Hint, process: u64 },
    Repair,
}

/// What both sides of an exchange say first.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    pub(crate) floors: Vec<Counter>,
    pub(crate) promise: (Counter, usize),
    pub(crate) watermark: Counter,
    pub(crate) generation: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) process: u64,
    pub(crate) epoch: usize,
    pub(crate) body: Body,
}

#[derive(Clone, Debug)]
pub(crate) enum Body {
    /// `under` is the watermark at which the sender's copy was whole when it read the record; 0 if it was not, or if it does
    /// not keep the key.
    Merge { key: usize, record: Record, under: Counter, path: Path },
    /// The leader's standing, and what it holds.
    Check { exchange: usize, standing: Standing, held: [Record; KEYS] },
    /// The follower is at a higher watermark: the leader catches up and begins anew.
    Behind { exchange: usize, standing: Standing },
    /// The keys that differ.
    Answer { exchange: usize, standing: Standing, differing: Vec<usize> },
    /// The leader's record of a key.
    Push { exchange: usize, key: usize, record: Record, under: Counter },
    /// What the follower then holds of it, whether it refused part of what it was sent, and in which time of filling it is.
    Held { exchange: usize, key: usize, record: Record, under: Counter, is_blocked: bool, generation: u64 },
    /// It was complete.
    Ended { exchange: usize },
}

/// An exchange. Each side looks only at what it knows itself.
#[derive(Clone, Debug)]
pub(crate) struct Exchange {
    pub(crate) leader: usize,
    pub(crate) follower: usize,
    pub(crate) processes: [u64; 2],
    pub(crate) epoch: usize,
    /// What the leader knew of everybody's floors when it began, and told.
    pub(crate) floors: Vec<Counter>,
    /// The times of filling of the leader and the follower when it began.
    pub(crate) generations: [u64; 2],
    /// Their rounds, which each knows of itself.
    pub(crate) rounds: [u64; 2],
    pub(crate) differing: Vec<usize>,
    pub(crate) is_over: bool,
}

/// A version of the cluster document, as far as it is about this partition.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    /// Best first. The first n keep a key of n copies.
    pub(crate) owners: Vec<usize>,
    /// A partition that moves: from whom, to whom. The new owner is a copy as well and keeps what the old one keeps.
    pub(crate) moving: Option<(usize, usize)>,
    /// The recorded store of each node; none if it is no member.
    pub(crate) stores: Vec<Option<u32>>,
    /// The epoch at which each node gained its copy, and at which its store was recorded.
    pub(crate) gained: Vec<usize>,
    pub(crate) recorded: Vec<usize>,
}

impl Document {
    /// All that have a copy.
    pub(crate) fn copies(&self) -> impl Iterator<Item = usize> + '_ {
        self.owners.iter().copied().chain(self.moving.map(|(_, to)| to))
    }

    pub(crate) fn has_copy(&self, node: usize) -> bool {
        self.copies().any(|copy| copy == node)
    }

    /// Whether a node keeps keys of so many copies.
    pub(crate) fn keeps(&self, node: usize, copies: usize) -> bool {
        let is_first = |node: usize| self.owners.iter().take(copies).any(|owner| *owner == node);
        is_first(node) || self.moving.is_some_and(|(from, to)| to == node && is_first(from))
    }
}
