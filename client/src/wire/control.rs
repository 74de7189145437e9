//! Control requests: whatever a client asks that is not a put, a delete or a get. They are rare, so they are coded
//! with serde and postcard; the data path is coded by hand.

use std::collections::BTreeMap;

use bytes::Bytes;
use ring::{ClusterDocument, ConflictPolicy, Durability, Epoch, KeyspaceId, NodeId, PartitionId, StoreId};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::NodeVitals;
use crate::{Access, Version};

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlRequest {
    /// The cluster document. Needs [`Access::Read`].
    Document,
    /// How the node that is asked fares. Needs [`Access::Read`].
    Status,
    /// What the node that is asked holds of a key. Needs [`Access::Read`].
    Explain {
        /// The keyspace.
        keyspace: KeyspaceId,
        /// The key.
        key: Bytes,
    },
    /// The keys that the node that is asked holds of a partition, in the order of their tokens. Needs [`Access::Read`].
    Keys {
        /// The keyspace.
        keyspace: KeyspaceId,
        /// The partition.
        partition: PartitionId,
        /// Where the page before ended; none to begin.
        after: Option<Bytes>,
        /// The most keys in the page; the node may send fewer.
        limit: u32,
    },
    /// Creates a keyspace, by agreement. Answered when every live member has the new document. Needs
    /// [`Access::Admin`].
    CreateKeyspace(NewKeyspace),
    /// Records the present store of a node whose disk was replaced, by agreement. Needs [`Access::Admin`].
    Readmit {
        /// The node.
        node: NodeId,
    },
    /// Has the node that is asked compare at once what it shares with its peers, instead of when it is due, and mend what
    /// differs. Needs [`Access::Admin`].
    Repair {
        /// With those peers alone that have copies of this partition; none for all.
        partition: Option<PartitionId>,
    },
    /// What the node that is asked has done, and what its machine has left. Needs [`Access::Read`].
    Vitals,
}

/// A keyspace to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewKeyspace {
    /// Its name.
    pub name: String,
    /// Copies in each datacenter, by name; empty for 3, or as many as there are nodes, in the only datacenter or in
    /// each of them.
    pub replication: BTreeMap<String, u8>,
    /// What happens to concurrent writes.
    pub conflict: ConflictPolicy,
    /// The durability of writes that do not name one.
    pub durability: Durability,
}

/// The answer to a control request of the same kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlReply {
    /// The document that counts at the node.
    Document(Box<ClusterDocument>),
    /// How the node fares.
    Status(Box<NodeStatus>),
    /// What it holds.
    Explain(Box<ReplicaView>),
    /// A page of keys.
    Keys(KeysPage),
    /// The keyspace exists.
    KeyspaceCreated {
        /// Its id.
        keyspace: KeyspaceId,
        /// The document that has it.
        epoch: Epoch,
    },
    /// The node's store is recorded.
    Readmitted {
        /// The document that records it.
        epoch: Epoch,
    },
    /// The node is about to compare what it shares with these peers.
    RepairBegun {
        /// The peers.
        peers: Vec<NodeId>,
    },
    /// What it has done, and what is left.
    Vitals(Box<NodeVitals>),
}

/// Why a control request failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Error)]
pub enum ControlError {
    /// The certificate does not allow it.
    #[error("forbidden: the certificate's role must be {} for this", needs.role_name())]
    Forbidden {
        /// What it needs.
        needs: Access,
    },
    /// The node has no document yet, or is stopping.
    #[error("the node is not ready")]
    NotReady,
    /// There is no such keyspace.
    #[error("no such keyspace")]
    UnknownKeyspace,
    /// The node holds no copy of that partition.
    #[error("the node holds no copy of the partition")]
    NotOwner,
    /// The node's storage could not be read.
    #[error("the node's storage cannot be read")]
    StorageFailed,
    /// A keyspace of that name exists, and is another than the one that was asked for.
    #[error("a keyspace of that name exists and has other properties")]
    KeyspaceExists,
    /// The change makes no valid document. All faults at once.
    #[error("{}", .0.join("; "))]
    Invalid(Vec<String>),
    /// The change was not decided in time. It may be decided yet; asking again is safe.
    #[error("in doubt: no majority of the members answered in time")]
    InDoubt,
    /// Decided, but not every live member had the new document in time.
    #[error("decided at {epoch}, but not every live member has it yet")]
    NotEverywhere {
        /// The document that has the change.
        epoch: Epoch,
    },
    /// Too many such requests are under way. Try again later.
    #[error("too many control requests under way")]
    Overloaded,
    /// The node does not understand the request.
    #[error("the node does not understand the request: it is of an older version")]
    Unsupported,
    /// The certificate is bound to other keyspaces.
    #[error("forbidden: the certificate's role is bound to other keyspaces")]
    OtherKeyspaces,
}

/// How one node fares, as it sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The node.
    pub node: NodeId,
    /// Its software's version.
    pub version: String,
    /// Its store.
    pub store: StoreId,
    /// Whether the document records this store.
    pub is_recorded: bool,
    /// Whether the document records its memory of votes too, so that it may vote about documents.
    pub votes: bool,
    /// Its document; 0 if it has none.
    pub epoch: Epoch,
    /// Whether it can coordinate requests.
    pub is_ready: bool,
    /// Copies of partitions that it holds.
    pub copies: u32,
    /// How many of them are whole; the others are filling.
    pub copies_whole: u32,
    /// Milliseconds since the process began.
    pub uptime_ms: u64,
    /// How far its clock is ahead of the median of its peers', in milliseconds; none if none was heard.
    pub clock_drift_ms: Option<i64>,
    /// Requests and background operations under way.
    pub operations: u32,
    /// Bytes written and not yet synced.
    pub unsynced_bytes: u64,
    /// Hints that wait for their targets.
    pub hints_pending: u64,
    /// How old the oldest write is that it knows not to be on all its replicas, in milliseconds; 0 if there is none.
    pub convergence_lag_ms: u64,
    /// Partitions that it has not scanned yet since it started or found damage in: they take no part in comparisons.
    pub partitions_unscanned: u32,
    /// Its peers, as it sees them.
    pub peers: Vec<PeerStatus>,
}

/// A peer as a node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// The peer.
    pub node: NodeId,
    /// Whether requests may be sent to it.
    pub is_up: bool,
    /// Hints that wait for it.
    pub hints_pending: u64,
    /// How long the oldest of them has waited, in milliseconds.
    pub hint_oldest_ms: Option<u64>,
    /// How far both are in sync; none if they share nothing.
    pub sync: Option<SyncStatus>,
}

/// How far two nodes are known to be in sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncStatus {
    /// How long ago all was equal that both are to keep, in milliseconds; if that was never so since the node started or one
    /// of the two lost something, since then.
    pub age_ms: u64,
    /// Whether it ever was.
    pub is_known: bool,
    /// In how many partitions the last comparison found differences.
    pub partitions_differed: u32,
}

/// What one replica holds of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaView {
    /// The node.
    pub node: NodeId,
    /// Its copy of the partition.
    pub copy: CopyState,
    /// The partition's watermark there, as a version's counter: deletes at or below it are forgotten. 0 if there is none.
    pub watermark: u64,
    /// The record; none if it holds nothing.
    pub record: Option<HeldRecord>,
    /// Nodes that it owes the record, because they did not acknowledge it.
    pub owes: Vec<NodeId>,
}

/// Whether a copy may be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CopyState {
    /// The node holds no copy.
    None,
    /// It waits for what it may lack; its answers to reads do not count.
    Filling,
    /// It may be believed.
    Whole,
}

/// A record as a replica holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldRecord {
    /// Digest of its versions: equal on replicas that are in sync.
    pub digest: Bytes,
    /// Live values, newest first; none in a tombstone.
    pub versions: Vec<HeldVersion>,
    /// The causal context: for each actor the highest counter that the record has seen. In a last-write-wins keyspace
    /// the winner alone.
    pub context: Vec<Version>,
    /// Whether the last change of it is synced.
    pub is_synced: bool,
}

/// A value as a replica holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldVersion {
    /// Its version.
    pub version: Version,
    /// Its size.
    pub value_bytes: u64,
    /// When it ends, in milliseconds of Unix time.
    pub expires_unix_ms: Option<u64>,
}

/// A page of keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeysPage {
    /// Keys that have a live value, in the order of their tokens.
    pub keys: Vec<Bytes>,
    /// Whether the copy may be believed to know every key; if not, ask another replica too.
    pub is_whole: bool,
    /// What to continue after; none if nothing comes after this page.
    pub next: Option<Bytes>,
}
