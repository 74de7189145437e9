//! Requests and replies: put, get and delete with everything that a caller may choose for each of them.

use std::time::Duration;

use bytes::Bytes;
use ring::{Durability, KeyspaceId, NodeId};
use serde::{Deserialize, Serialize};

use crate::{GetError, Level, WriteError};

/// The longest key, in bytes. A key is hashed, compared and kept in every index block.
pub const KEY_BYTES_MAX: usize = 4 * 1024;
/// The longest value, in bytes. A record is handled as one frame.
pub const VALUE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How long a request may take when the caller does not say.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(2);

/// Names one write across all its attempts: 128 random bits chosen by the client.
///
/// A coordinator that sees an id again brings the write that it stands for to its level instead of making another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u128);

/// The version that a write was given: the dot's counter and actor. Higher is newer in a last-write-wins keyspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version {
    /// A hybrid logical clock reading: 48 bits of Unix milliseconds and 16 of logical count.
    pub counter: u64,
    /// Who minted it.
    pub actor: u64,
}

/// What happens to stale replicas that a read comes across.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadRepair {
    /// They are mended after the answer.
    Background,
    /// Nothing.
    Off,
    /// The answer waits until enough replicas hold durably what it says, so that no later read goes back.
    Blocking,
}

/// A request to a coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Stores a value.
    Put(Put),
    /// Deletes what the caller, or the coordinator, has seen.
    Delete(Delete),
    /// Reads.
    Get(Get),
}

/// Stores a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    /// Where.
    pub keyspace: KeyspaceId,
    /// The key: 1 to [`KEY_BYTES_MAX`] bytes.
    pub key: Bytes,
    /// The value: at most [`VALUE_BYTES_MAX`] bytes.
    pub value: Bytes,
    /// When the value ends, in milliseconds of Unix time.
    pub expires_unix_ms: Option<u64>,
    /// Everything else.
    pub options: WriteOptions,
}

/// Deletes the values that the context covers; without a context, those that a read at the same level finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delete {
    /// Where.
    pub keyspace: KeyspaceId,
    /// The key: 1 to [`KEY_BYTES_MAX`] bytes.
    pub key: Bytes,
    /// Everything else.
    pub options: WriteOptions,
}

/// Reads all values of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Get {
    /// Where.
    pub keyspace: KeyspaceId,
    /// The key: 1 to [`KEY_BYTES_MAX`] bytes.
    pub key: Bytes,
    /// Everything else.
    pub options: ReadOptions,
}

/// What a write may choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteOptions {
    /// Names the write across its attempts.
    pub request: RequestId,
    /// The context of the read that this write follows, as it came.
    pub context: Option<Bytes>,
    /// The highest version that the caller has seen in a last-write-wins keyspace.
    pub seen: Option<u64>,
    /// How many replicas must acknowledge.
    pub level: Level,
    /// Copies in each of the keyspace's datacenters, if not as many as the keyspace says.
    pub n: Option<u8>,
    /// When a replica may acknowledge, if not as the keyspace says.
    pub durability: Option<Durability>,
    /// Whether other nodes may stand in for replicas that are down or silent, and be counted (Dynamo, section 4.6). What
    /// they acknowledge they hand over when the replica is back; until then a read may miss it, whatever its level.
    pub is_sloppy: bool,
    /// After this time the caller hears that the outcome is in doubt.
    pub timeout: Duration,
}

/// What a read may choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadOptions {
    /// How many replicas must answer.
    pub level: Level,
    /// Copies in each of the keyspace's datacenters, if not as many as the keyspace says.
    pub n: Option<u8>,
    /// What happens to stale replicas; by default [`ReadRepair::Blocking`] where twice the replicas asked are more
    /// than the copies, and [`ReadRepair::Background`] elsewhere.
    pub read_repair: Option<ReadRepair>,
    /// After this time the caller hears that the read timed out.
    pub timeout: Duration,
}

/// A coordinator's reply to a request of the same kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// To a put or a delete.
    Write(Result<WriteReply, WriteError>),
    /// To a get.
    Get(Result<GetReply, GetError>),
}

/// An acknowledged write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteReply {
    /// The version it was given; none for a delete that found nothing to delete.
    pub version: Option<Version>,
    /// A context that covers the write, if nothing that the caller has not seen stands beside it.
    pub context: Option<Bytes>,
    /// How many replicas had to acknowledge.
    pub required: u8,
    /// How many had when the reply was made.
    pub acknowledged: u8,
    /// How many of these were not replicas but stood in for one. If there are any, a read may miss the write until they
    /// have handed it over.
    pub stood_in: u8,
    /// Who coordinated it.
    pub coordinator: NodeId,
}

/// What a read found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GetReply {
    /// The values, newest first. More than one: they are concurrent, and a put with the context resolves them.
    pub values: Vec<ReturnedValue>,
    /// What a write that follows this read should carry. Opaque, and good for this key alone.
    pub context: Bytes,
    /// How fresh it is.
    pub freshness: Freshness,
    /// Who coordinated it.
    pub coordinator: NodeId,
}

/// One value of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReturnedValue {
    /// The value.
    pub bytes: Bytes,
    /// The version that its write was given.
    pub version: Version,
    /// When it ends, in milliseconds of Unix time.
    pub expires_unix_ms: Option<u64>,
}

/// How fresh a read is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freshness {
    /// Replicas that were asked.
    pub asked: u8,
    /// Replicas whose answer counted.
    pub answered: u8,
    /// Whether those that answered held the same.
    pub agreed: bool,
    /// Replicas that were sent what they lacked.
    pub repaired: u8,
}

impl Request {
    /// Whether it is a write for which nodes that stand in for replicas count.
    #[must_use]
    pub fn counts_stand_ins(&self) -> bool {
        match self {
            Request::Put(put) => put.options.counts_stand_ins(),
            Request::Delete(delete) => delete.options.counts_stand_ins(),
            Request::Get(_) => false,
        }
    }

    /// How long it may take.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        match self {
            Request::Put(put) => put.options.timeout,
            Request::Delete(delete) => delete.options.timeout,
            Request::Get(get) => get.options.timeout,
        }
    }

    /// The same, to be changed.
    pub fn timeout_mut(&mut self) -> &mut Duration {
        match self {
            Request::Put(put) => &mut put.options.timeout,
            Request::Delete(delete) => &mut delete.options.timeout,
            Request::Get(get) => &mut get.options.timeout,
        }
    }
}

impl Reply {
    /// Whether nothing was done.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, Reply::Write(Err(WriteError::Refused(_))) | Reply::Get(Err(GetError::Refused(_))))
    }
}

impl Default for WriteOptions {
    /// A quorum, as the keyspace says, and no id: retries of it are not recognised.
    fn default() -> WriteOptions {
        WriteOptions {
            request: RequestId(0),
            context: None,
            seen: None,
            level: Level::Quorum,
            n: None,
            durability: None,
            is_sloppy: false,
            timeout: TIMEOUT_DEFAULT,
        }
    }
}

impl WriteOptions {
    /// Whether nodes that stand in for replicas count: if the request says so, or its level does.
    #[must_use]
    pub fn counts_stand_ins(&self) -> bool {
        self.is_sloppy || self.level == Level::Any
    }
}

impl Default for ReadOptions {
    fn default() -> ReadOptions {
        ReadOptions { level: Level::Quorum, n: None, read_repair: None, timeout: TIMEOUT_DEFAULT }
    }
}
