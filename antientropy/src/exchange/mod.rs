//! The exchange: two replicas find out what differs in all that they have in common, and bring it to both, at a cost that
//! follows from what differs.
//!
//! One side *leads* and has all the state that matters ([`Exchange`]); the other, which *follows*, answers what it is asked
//! and keeps sketches that it may forget at any time ([`Follower`]). Neither does any I/O: messages are values that whoever
//! drives the exchange carries, in any order, and what a replica holds is behind the trait [`Replica`]. An exchange can be
//! dropped at any time by either side and nothing is lost: what was merged is merged, and the next one finds the rest.
//!
//! 1. *Check.* The leader sends one digest over the roots of all trees that both have. If the other's is equal, everything
//!    is: one round trip, and about fifty bytes, whatever the amount of data.
//! 2. *Where.* Otherwise the follower answers with a [`Survey`](crate::sketch::Survey) and a few cells of a
//!    [`Sketch`](crate::sketch::Sketch) of the trees' roots. The trees that differ are sketched again, bucket by bucket, and
//!    the leader asks for as many cells as the survey says. Where so much differs that a list is shorter, it asks for the
//!    list.
//! 3. *What.* A bucket that is empty on one side is moved as a whole. A bucket in which one key differs gives away the
//!    key's position by a division. The rest, where several keys differ, is sketched again, key by key.
//! 4. *Which way.* Of a key that the leader lacks it asks for the record. Of one that the follower lacks it sends the
//!    record. Where both have one, the leader tells the highest counter of its own, and the follower answers with its record
//!    or asks for the leader's. Whoever joins two records and has more than it was sent sends the join back. So in the end
//!    both have the join, however wrong the guess was about which is newer.
//!
//! A replica may refuse what it is sent: a record that its peer alone still holds may be one that was deleted long ago, and
//! whose delete is forgotten. Then, too, the sender is told what is held instead, even if that is nothing, and under which
//! watermark: it is for its replica to say whether it gives in. Where neither does, the key is left as it is, and the
//! exchange is complete nevertheless: what no side takes is not to be found by looking again.
//!
//! What changes on either side meanwhile is a difference or not, and both are right: what is moved is what is there when it
//! is read. An exchange that is complete has brought to both sides what differed when it began, but for what was refused.
//!
//! Merkle's trees are walked level by level, a round trip each; that sums of ranges can be subtracted replaces the walk by
//! one sketch over all leaves of all trees.

mod entries;
mod follower;
#[cfg(test)]
mod golden;
mod leader;
pub mod memory;
mod message;
mod plan;
mod span;

use std::sync::Arc;

use bytes::Bytes;
use ring::{KeyspaceId, PartitionId};

use crate::{
    hash_tree::{Element, HashTree},
    version::{CopyCount, Counter, Record},
};

pub use follower::{FollowError, Follower};
pub use leader::{Exchange, ExchangeError, Question, Report};
pub use message::Undecodable;
pub use span::Span;

/// Which trees: those of the records of a keyspace that are to be kept so many times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TreeKind {
    /// The keyspace.
    pub keyspace: KeyspaceId,
    /// How many copies its records are to have ([`CopyCount::most`]): which nodes keep them follows from that.
    pub copies: CopyCount,
}

/// Names a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TreeId {
    /// Which records.
    pub kind: TreeKind,
    /// Of which partition.
    pub partition: PartitionId,
}

/// A key with what a side holds of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// The key.
    pub key: Bytes,
    /// Its record; none if nothing is held.
    pub record: Option<Arc<Record>>,
    /// The watermark under which the copy that this was read from was whole then, or zero: of the writes up to there, it
    /// knew all that are not dead.
    pub under: Counter,
}

/// What a side holds of a key, in short: all that is needed to find out what differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Bytes,
    /// What it is in its tree.
    pub element: Element,
    /// Its record's highest counter.
    pub highest: Counter,
}

impl Entry {
    /// The key with this token and this record. The secret is the cluster's.
    #[must_use]
    pub fn new(secret: &[u8; 32], token: ring::Token, key: Bytes, record: &Record) -> Entry {
        Entry { key, element: Element::new(secret, token, record), highest: record.highest() }
    }
}

/// Objects of a span, and whether there are more.
#[derive(Clone, Debug, Default)]
pub struct Stretch {
    /// In the order of their tokens.
    pub objects: Vec<Object>,
    /// Where the rest begins, if this is not all: all objects of one token are in the same stretch.
    pub rest: Option<ring::Token>,
}

/// Gathers a [`Stretch`] of no more than so many bytes, but of one token's objects at least.
#[derive(Debug)]
pub struct Gathered {
    stretch: Stretch,
    bytes: usize,
    bytes_max: usize,
    last: Option<ring::Token>,
}

impl Gathered {
    /// Nothing yet.
    #[must_use]
    pub fn new(bytes_max: usize) -> Gathered {
        Gathered { stretch: Stretch::default(), bytes: 0, bytes_max, last: None }
    }

    /// Adds the next object in order, whose token this is. Returns whether there was room: if not, the rest begins there.
    pub fn push(&mut self, token: ring::Token, object: Object) -> bool {
        self.bytes += object.encoded_len();
        if self.bytes > self.bytes_max && self.last.is_some_and(|last| last != token) {
            self.stretch.rest = Some(token);
            return false;
        }
        self.last = Some(token);
        self.stretch.objects.push(object);
        true
    }

    /// The stretch.
    #[must_use]
    pub fn into_stretch(self) -> Stretch {
        self.stretch
    }
}

/// What an exchange needs of a replica. All of it is about what *both* sides keep, so that a replica is one that faces a
/// certain peer.
pub trait Replica {
    /// Why something cannot be read or taken: it ends the exchange.
    type Error;

    /// The leading bits of tokens that name the partition.
    fn partition_bits(&self) -> u8;

    /// The kinds of trees that are not empty, in ascending order.
    fn kinds(&self) -> Vec<TreeKind>;

    /// The partitions whose records of a kind both sides keep, in ascending order. Both sides have to say the same.
    fn partitions(&self, kind: TreeKind) -> Vec<PartitionId>;

    /// Partitions whose trees are not built yet, in ascending order: they are left out.
    fn unbuilt(&self) -> Vec<PartitionId>;

    /// A tree; none is as good as an empty one.
    fn tree(&self, tree: TreeId) -> Option<&HashTree>;

    /// The cluster's secret, with which [`Entry::new`] makes elements.
    fn secret(&self) -> &[u8; 32];

    /// What a tree has in a span, and what trees of more copies have there: a record may be about to move from one to the
    /// other. None if that is more than so many.
    ///
    /// # Errors
    ///
    /// If something cannot be read.
    fn entries(&mut self, tree: TreeId, span: Span, limit: usize) -> Result<Option<Vec<Entry>>, Self::Error>;

    /// The objects of a keyspace in a span, each with a record: of so many copies and of more, or all that both sides keep.
    /// At least one, and no more than fit into so many bytes.
    ///
    /// # Errors
    ///
    /// If something cannot be read.
    fn objects(
        &mut self,
        keyspace: KeyspaceId,
        copies: Option<CopyCount>,
        span: Span,
        bytes_max: usize,
    ) -> Result<Stretch, Self::Error>;

    /// What is held of a key now, or that it is nothing.
    ///
    /// # Errors
    ///
    /// If it cannot be read.
    fn held(&mut self, keyspace: KeyspaceId, key: &Bytes) -> Result<Object, Self::Error>;

    /// Joins a record to what is there, if it is of the keyspace's policy, else that is an error; or refuses it. Takes note
    /// that the peer holds nothing, if the object says that.
    ///
    /// Returns whether what is held afterwards is just what the object says, which may be nothing. If not, there was more
    /// here, or it was refused: the peer is to be told what is held instead.
    ///
    /// # Errors
    ///
    /// If it cannot be taken.
    fn merge(&mut self, keyspace: KeyspaceId, object: &Object) -> Result<bool, Self::Error>;
}
