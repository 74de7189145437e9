//! What happened in a run, as the checkers see it: operations with their outcomes, what faults destroyed, and what
//! the disks held at the end.

use std::{collections::BTreeMap, sync::Arc};

use antientropy::{
    exchange::TreeId,
    version::{Actor, Counter, Dot, Record},
};
use bytes::Bytes;
use client::{
    Copies, Level, Required, Version,
    wire::{ControlError, ControlReply},
};
use node::{
    Change,
    storage::{ObjectKey, Sequence},
};
use ring::{
    ClusterDocument, ConflictPolicy, DatacenterId, Durability, Keyspace, NodeId, PartitionId, StoreId,
};

use crate::schedule::Moment;

/// One of the run's keys: its position in [`History::keys`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyId(pub usize);

/// One write of a client, with all its attempts: its position in [`History::writes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WriteId(pub usize);

/// A context that a client got: its position in [`History::contexts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ContextId(pub usize);

/// Everything that happened in a run.
#[derive(Clone, Debug)]
pub struct History {
    /// The founding document, but for its cluster and stores if founders formed it. Placement never changes in a run.
    pub document: Arc<ClusterDocument>,
    /// Every document that any node ever adopted or had stored, in the order in which they were seen.
    pub documents: Vec<SeenDocument>,
    /// Changes of the document that the administrator asked for.
    pub changes: Vec<ChangeRequest>,
    /// The stores that each machine has had, and since when.
    pub stores: Vec<(NodeId, Moment, StoreId)>,
    /// Live nodes that did not know a keyspace when its creation was answered.
    pub unusable: Vec<String>,
    /// Votes about documents that should not have been cast.
    pub wrong_votes: Vec<String>,
    /// Whether, at the end, no majority of the members could vote about documents.
    pub electorate_is_lost: bool,
    /// The keys. Those of a keyspace that was created in the run come when its creation is answered.
    pub keys: Vec<Key>,
    /// The writes, in the order of their first attempts.
    pub writes: Vec<Write>,
    /// The reads, in the order of their beginnings.
    pub reads: Vec<Read>,
    /// The contexts that clients got.
    pub contexts: Vec<SeenContext>,
    /// What faults destroyed.
    pub losses: Vec<Loss>,
    /// Where disks went back in time.
    pub regressions: Vec<Regression>,
    /// When nodes lost data, synced or not, in order.
    pub damages: Vec<Damage>,
    /// Nodes that believed that their store had gone back in time although it had not.
    pub false_alarms: Vec<NodeId>,
    /// Hash trees that were not what a scan would have made of them.
    pub trees_differing: Vec<(NodeId, TreeId)>,
    /// Whether all clocks were right throughout.
    pub clocks_are_right: bool,
    /// When clocks were set, and to what, from the beginning.
    pub clocks: Vec<ClockSet>,
    /// How far a clock may be off before its node refuses to date writes; none if nodes do not mind.
    pub clock_drift_max_ms: Option<u64>,
    /// Whether more copies were damaged at once than the promises cover. Only P1, P3 and P7 then hold.
    pub beyond_the_promise: bool,
    /// What every replica, and whoever else held anything, held on disk at the end, by key and node.
    pub finals: Vec<BTreeMap<NodeId, Option<Record>>>,
    /// The nodes that had to hold each key at the end.
    pub keepers: Vec<Vec<NodeId>>,
    /// How the run ended.
    pub ending: Ending,
}

/// A key of the run.
#[derive(Clone, Debug)]
pub struct Key {
    /// Its name.
    pub object: ObjectKey,
    /// Where it lies.
    pub partition: PartitionId,
    /// Its keyspace.
    pub keyspace: Keyspace,
}

/// A write.
#[derive(Clone, Debug)]
pub struct Write {
    /// The session that made it.
    pub session: usize,
    /// Where.
    pub key: KeyId,
    /// Put or delete.
    pub kind: WriteKind,
    /// The request's own n.
    pub n: Option<u8>,
    /// Its level.
    pub level: Level,
    /// Its durability, the keyspace's if it named none.
    pub durability: Durability,
    /// The context that it carried.
    pub context: Option<ContextId>,
    /// Whether that context was of another key: such a write must be refused.
    pub is_foreign: bool,
    /// When its value ends, in milliseconds of Unix time.
    pub expires_ms: Option<u64>,
    /// The highest counter that its session had seen, if it said so.
    pub seen: Option<u64>,
    /// Its attempts, under one request id.
    pub attempts: Vec<Attempt>,
}

/// What a write does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteKind {
    /// Stores the value that names the write.
    Put,
    /// Deletes.
    Delete,
}

/// One attempt of a write.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Whom the client asked.
    pub node: NodeId,
    /// When.
    pub sent: Moment,
    /// When the client knew.
    pub ended: Moment,
    /// What.
    pub outcome: Outcome,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has not ended; the same as in doubt.
    Pending,
    /// It may have happened, or may yet.
    InDoubt,
    /// It definitely did not happen.
    Refused,
    /// It happened.
    Acknowledged(Acknowledgement),
}

/// An acknowledged attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledgement {
    /// The version; none for a delete that found nothing.
    pub version: Option<Version>,
    /// Who coordinated.
    pub coordinator: NodeId,
    /// How many nodes were said to have stood in for replicas.
    pub stood_in: u8,
    /// Which nodes held the version on disk when the acknowledgement was made; none if there is no version.
    pub holders: Option<Vec<NodeId>>,
}

/// A read.
#[derive(Clone, Debug)]
pub struct Read {
    /// The session that made it.
    pub session: usize,
    /// Where.
    pub key: KeyId,
    /// The request's own n.
    pub n: Option<u8>,
    /// Its level.
    pub level: Level,
    /// Whether it was to wait until enough replicas held its answer.
    pub is_blocking: bool,
    /// Whom the client asked.
    pub node: NodeId,
    /// When.
    pub sent: Moment,
    /// When the client knew; [`Moment::NEVER`] if it never did.
    pub ended: Moment,
    /// What it found; none if it failed.
    pub found: Option<Found>,
}

/// What a read found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Who coordinated.
    pub coordinator: NodeId,
    /// The values, by the writes that made them.
    pub values: Vec<(WriteId, Version)>,
    /// How many values were none that anyone ever wrote.
    pub phantoms: usize,
}

/// A context that a client got from a reply.
#[derive(Clone, Debug)]
pub struct SeenContext {
    /// The key it is of.
    pub key: KeyId,
    /// As it came.
    pub bytes: Bytes,
    /// The values that the client was shown with it: what a write that carries it may cover.
    pub shown: Vec<WriteId>,
}

/// A cluster document, as it was first seen.
#[derive(Clone, Debug)]
pub struct SeenDocument {
    /// Who had it.
    pub node: NodeId,
    /// When.
    pub at: Moment,
    /// Its digest.
    pub digest: [u8; 32],
    /// It.
    pub document: Arc<ClusterDocument>,
}

/// A change of the document that the administrator asked for.
#[derive(Clone, Debug)]
pub struct ChangeRequest {
    /// Whom it was asked of.
    pub node: NodeId,
    /// What.
    pub change: Change,
    /// When.
    pub sent: Moment,
    /// When the administrator knew.
    pub ended: Moment,
    /// What.
    pub outcome: ChangeOutcome,
}

/// How a change ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeOutcome {
    /// It has not, or nobody knows.
    Unknown,
    /// Not as it was asked for.
    Failed(ControlError),
    /// As it was asked for.
    Done(ControlReply),
}

/// A moment at which a node lost data.
#[derive(Clone, Copy, Debug)]
pub struct Damage {
    /// Which node.
    pub node: NodeId,
    /// When.
    pub at: Moment,
    /// Whether synced data was lost, or only unsynced.
    pub on_disk: bool,
}

/// What one fault destroyed of one key.
#[derive(Clone, Debug)]
pub struct Loss {
    /// Which node.
    pub node: NodeId,
    /// The key.
    pub key: KeyId,
    /// When.
    pub at: Moment,
    /// Writes of which durability this is about.
    pub durability: Durability,
    /// What the node held before.
    pub before: Record,
    /// What was left anywhere, and where.
    pub survivors: Vec<(NodeId, Record)>,
}

/// A disk that went back in time, at one key.
#[derive(Clone, Debug)]
pub struct Regression {
    /// Whose disk.
    pub node: NodeId,
    /// The key.
    pub key: KeyId,
    /// When.
    pub at: Moment,
    /// What the node held before.
    pub before: Record,
    /// When the node's copy was filling or held all of it again.
    pub noticed: Option<Moment>,
    /// The batch with which the disk knows it too.
    pub noticed_with: Sequence,
}

/// A machine's clock was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockSet {
    /// Whose.
    pub node: NodeId,
    /// When.
    pub at: Moment,
    /// How far it has been off since, in milliseconds.
    pub skew_ms: i64,
}

/// How a run ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Ending {
    /// It has not.
    #[default]
    Running,
    /// All copies were whole and equal, so long after the faults stopped.
    Converged {
        /// Microseconds from the end of the faults.
        after_micros: u64,
    },
    /// They were not in time.
    Diverged {
        /// What was not as it should be.
        why: String,
    },
}

impl History {
    /// An empty history.
    #[must_use]
    pub fn new(document: Arc<ClusterDocument>, keys: Vec<Key>) -> History {
        History {
            document,
            documents: Vec::new(),
            changes: Vec::new(),
            stores: Vec::new(),
            unusable: Vec::new(),
            wrong_votes: Vec::new(),
            electorate_is_lost: false,
            keys,
            writes: Vec::new(),
            reads: Vec::new(),
            contexts: Vec::new(),
            losses: Vec::new(),
            regressions: Vec::new(),
            damages: Vec::new(),
            false_alarms: Vec::new(),
            trees_differing: Vec::new(),
            clocks: Vec::new(),
            clock_drift_max_ms: None,
            clocks_are_right: true,
            beyond_the_promise: false,
            finals: Vec::new(),
            keepers: Vec::new(),
            ending: Ending::Running,
        }
    }

    /// A key.
    #[must_use]
    pub fn key(&self, key: KeyId) -> &Key {
        &self.keys[key.0]
    }

    /// Whether a key's concurrent values are kept.
    #[must_use]
    pub fn keeps_siblings(&self, key: KeyId) -> bool {
        self.key(key).keyspace.conflict == ConflictPolicy::Siblings
    }

    /// The copies that a request for `key` with this n of its own asks for.
    #[must_use]
    pub fn copies(&self, key: KeyId, n: Option<u8>) -> Copies {
        let keyspace = &self.key(key).keyspace;
        let copies = |&datacenter: &DatacenterId| (datacenter, self.copies_in(key, datacenter, n));
        Copies::new(keyspace.replication.keys().map(copies))
    }

    fn copies_in(&self, key: KeyId, datacenter: DatacenterId, n: Option<u8>) -> u8 {
        let Key { partition, keyspace, .. } = self.key(key);
        let nodes = self.document.preference_list(datacenter, *partition).len();
        u8::try_from(keyspace.copies(datacenter, n).min(nodes)).expect("a few copies")
    }

    /// The first n, in all datacenters.
    pub fn replicas(&self, key: KeyId, n: Option<u8>) -> impl Iterator<Item = NodeId> {
        let Key { partition, keyspace, .. } = self.key(key);
        self.document.replicas(keyspace, *partition, n).map(|replica| replica.owner.node)
    }

    /// What a level requires of the copies when `coordinator` counts; none if it cannot be met.
    #[must_use]
    pub fn required(
        &self,
        level: Level,
        operation: client::Operation,
        copies: &Copies,
        coordinator: NodeId,
    ) -> Option<Required> {
        let local = self.document.members.get(&coordinator)?.datacenter;
        level.required(operation, copies, local).ok()
    }
}

impl Write {
    /// When its first attempt was sent.
    #[must_use]
    pub fn began(&self) -> Moment {
        self.attempts.first().map_or(Moment::NEVER, |attempt| attempt.sent)
    }

    /// When it was first acknowledged, and how.
    #[must_use]
    pub fn acknowledged(&self) -> Option<(Moment, &Acknowledgement)> {
        self.acknowledgements().min_by_key(|(ended, _)| *ended)
    }

    /// All its acknowledgements.
    pub fn acknowledgements(&self) -> impl Iterator<Item = (Moment, &Acknowledgement)> {
        self.attempts.iter().filter_map(|attempt| match &attempt.outcome {
            Outcome::Acknowledged(acknowledgement) => Some((attempt.ended, acknowledgement)),
            Outcome::Pending | Outcome::InDoubt | Outcome::Refused => None,
        })
    }

    /// Whether any attempt was not definitely refused.
    #[must_use]
    pub fn may_have_happened(&self) -> bool {
        self.attempts.iter().any(|attempt| attempt.outcome != Outcome::Refused)
    }

    /// The latest moment at which it may have taken effect: when it ended, if it ended well in every attempt.
    #[must_use]
    pub fn took_effect_by(&self) -> Moment {
        let ends = self.attempts.iter().map(|attempt| match attempt.outcome {
            Outcome::Pending | Outcome::InDoubt => Moment::NEVER,
            Outcome::Refused => Moment(0),
            Outcome::Acknowledged(_) => attempt.ended,
        });
        ends.max().unwrap_or(Moment(0))
    }
}

/// A version as the dot that it is.
#[must_use]
pub fn dot(version: Version) -> Dot {
    Dot { counter: Counter(version.counter), actor: Actor(version.actor) }
}

/// A dot as the version that clients see.
#[must_use]
pub fn version(dot: Dot) -> Version {
    Version { counter: dot.counter.0, actor: dot.actor.0 }
}
