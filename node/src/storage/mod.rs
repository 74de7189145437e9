//! What a node asks of a storage engine, and the keys and batches that pass between them.
//!
//! The core reads synchronously and writes one [`Batch`] a turn. A batch is atomic: after a crash it is there whole
//! or not at all. Batches are committed in the order of their sequence numbers, and a commit that was reported means
//! that the batch and all before it are synced. Engines know nothing of records, versions or the ring: they keep
//! bytes, and whatever they return the core checks with a checksum of its own (`stored`).

mod memory;
mod stored;

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use ring::{KeyspaceId, PartitionId, Partitions, StoreId, Token};
use thiserror::Error;

pub use crate::agreement::{StoredVotes, read_votes};
pub use crate::recovery::read_document;
pub use memory::{CrashDamage, MemoryEngine};
pub use stored::{Unreadable, read_record};
pub(crate) use stored::{decode_stored, encode_stored, open_stored, seal_stored};

/// The number of a batch of one store. Starts at 1 and only grows, over restarts too; 0 means none yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sequence(pub u64);

/// One of the two key spaces of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// The objects, by [`ObjectKey`].
    Records,
    /// What the node has to remember about itself and the cluster.
    Meta,
}

/// One change of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Where.
    pub table: Table,
    /// The encoded key.
    pub key: Bytes,
    /// The new bytes, or none to remove them.
    pub value: Option<Bytes>,
}

/// The changes of one turn, to be applied and synced together or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Greater than every earlier batch's; not always by one.
    pub sequence: Sequence,
    /// The changes, in order: a later change of a key stands.
    pub changes: Vec<Change>,
}

/// Why a store could not read. The core treats what it could not read as lost and says so; it never guesses.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ReadError {
    /// The engine found its own data damaged, or the device failed.
    #[error("the store cannot be read")]
    Damaged,
}

/// A storage engine as the core sees it: committed state, read synchronously.
///
/// Batches go the other way: the node emits them ([`crate::Output::Commit`]) and whoever drives it hands them to the
/// engine's committer and reports [`crate::Input::Committed`] or [`crate::Input::CommitFailed`].
pub trait Store {
    /// Which store this is.
    fn id(&self) -> StoreId;

    /// The sequence of the last batch found when the store was opened. Does not change while it is open.
    fn recovered(&self) -> Sequence;

    /// The bytes under `key`.
    ///
    /// # Errors
    ///
    /// [`ReadError`] if the engine knows that it cannot tell.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, ReadError>;

    /// Up to `limit` entries with `after < key < end`, in ascending order; with no `after`, from the first.
    ///
    /// # Errors
    ///
    /// [`ReadError`] if the engine knows that it cannot tell.
    fn scan(
        &self,
        table: Table,
        after: Option<&[u8]>,
        end: &[u8],
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, ReadError>;
}

/// An object's name: its keyspace, its place on the circle and its key.
///
/// Kept as it is stored: keyspace (4 bytes), token (8 bytes), both big-endian, and the key's bytes, so that a
/// keyspace's partition, and any range of tokens in it, is one contiguous range of the table.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    encoded: Bytes,
}

impl ObjectKey {
    /// The name of `key` in `keyspace`.
    #[must_use]
    pub fn new(keyspace: KeyspaceId, key: &[u8]) -> ObjectKey {
        let mut out = BytesMut::with_capacity(Self::PREFIX_BYTES + key.len());
        out.put_u32(keyspace.0);
        out.put_u64(Token::of_key(key).0);
        out.put_slice(key);
        ObjectKey { encoded: out.freeze() }
    }

    /// The keyspace.
    #[must_use]
    pub fn keyspace(&self) -> KeyspaceId {
        KeyspaceId(u32::from_be_bytes(self.encoded[..4].try_into().expect("four bytes")))
    }

    /// The key's token.
    #[must_use]
    pub fn token(&self) -> Token {
        Token(u64::from_be_bytes(self.encoded[4..Self::PREFIX_BYTES].try_into().expect("eight bytes")))
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> Bytes {
        self.encoded.slice(Self::PREFIX_BYTES..)
    }

    /// The key, borrowed.
    #[must_use]
    pub fn key_bytes(&self) -> &[u8] {
        &self.encoded[Self::PREFIX_BYTES..]
    }

    /// The partition it lies in.
    #[must_use]
    pub fn partition(&self, partitions: Partitions) -> PartitionId {
        partitions.of(self.token())
    }

    /// Its encoding in [`Table::Records`].
    #[must_use]
    pub fn encoded(&self) -> &Bytes {
        &self.encoded
    }

    /// The object that an encoding names; none if it names none, which only damage can bring about.
    #[must_use]
    pub fn decode(encoded: &Bytes) -> Option<ObjectKey> {
        let key = encoded.get(Self::PREFIX_BYTES..).filter(|key| !key.is_empty())?;
        let object = ObjectKey { encoded: encoded.clone() };
        (Token::of_key(key) == object.token()).then_some(object)
    }

    /// The bounds of one keyspace's part of a partition: every object in it has `start <= encoding < end`.
    #[must_use]
    pub fn range(keyspace: KeyspaceId, partition: PartitionId, partitions: Partitions) -> (Bytes, Bytes) {
        let tokens = partitions.range(partition);
        ObjectKey::span(keyspace, Token(*tokens.start()), Token(*tokens.end()))
    }

    /// The bounds of a range of tokens of a keyspace, both of its ends included: every object in it has
    /// `start < encoding < end`.
    #[must_use]
    pub fn span(keyspace: KeyspaceId, first: Token, last: Token) -> (Bytes, Bytes) {
        let bound = |keyspace: u32, token: u64| {
            let mut out = BytesMut::with_capacity(Self::PREFIX_BYTES);
            out.put_u32(keyspace);
            out.put_u64(token);
            out.freeze()
        };
        // No name is as short as a bound.
        let start = bound(keyspace.0, first.0);
        let end = match last.0.checked_add(1) {
            Some(token) => bound(keyspace.0, token),
            // The circle ends where the next keyspace begins.
            None => match keyspace.0.checked_add(1) {
                Some(next) => bound(next, 0),
                None => Bytes::from_static(&[0xff; 16]),
            },
        };
        (start, end)
    }

    /// A bound for ranges of objects: not a name, but it is ordered as an encoding is.
    pub(crate) fn bound(encoded: &Bytes) -> ObjectKey {
        ObjectKey { encoded: encoded.clone() }
    }

    /// Bytes before the key.
    const PREFIX_BYTES: usize = 12;
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.keyspace(), self.key().escape_ascii())
    }
}
