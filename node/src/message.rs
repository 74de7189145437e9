//! What nodes say to each other.
//!
//! Every message carries a [`Header`]: who sends it, from which store, how far that store is synced, under which
//! document. A receiver can tell from it that a peer lost its disk, went back in time or lags behind, whatever the
//! message is about.

use std::{sync::Arc, time::Duration};

use antientropy::version::{Counter, Record, UnixMillis, VersionDigest};
use bytes::Bytes;
use client::{Reply, Request};
use ring::{ClusterDocument, ClusterId, Durability, Epoch, NodeId, PartitionId, StoreId, VoterId};
use serde::{Deserialize, Serialize};

pub use crate::agreement::message::{AgreementMessage, Ballot, DocumentName, Proposal};
use crate::storage::{ObjectKey, Sequence};
pub use crate::watermarks::standing::{Run, Standing};

/// One run of one node's process: 64 random bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StartId(pub u64);

/// Names an operation of the node that began it, and which of its questions an answer is to. Operations are numbered
/// from a random number chosen at each start, so that an answer to a process that died finds nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag {
    /// The operation.
    pub operation: u64,
    /// The question: an operation that starts over counts up, and ignores answers to its earlier attempts.
    pub question: u32,
}

/// A message and its header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Who sends it, and how far it has come.
    pub header: Header,
    /// What it says.
    pub message: Message,
}

/// What every message carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The sender.
    pub from: NodeId,
    /// The sender's process.
    pub start: StartId,
    /// The sender's store.
    pub store: StoreId,
    /// The last batch of that store that is synced.
    pub synced: Sequence,
    /// The document under which the sender speaks; 0 if it has none.
    pub epoch: Epoch,
    /// The sender's wall clock.
    pub wall: UnixMillis,
    /// The sender's hybrid clock.
    pub clock: Counter,
}

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// The first thing that a process says to a peer; repeated until it is answered.
    Hello {
        /// Which of the process's greetings it is.
        number: u64,
        /// The cluster it belongs to, once it knows.
        cluster: Option<ClusterId>,
        /// Where its store recovered to when it was opened, and what of that the receiver has not confirmed.
        recovery: Recovery,
        /// Its memory of votes about documents; none if its store could not be read yet.
        voter: Option<VoterId>,
        /// The digest of its document; none if it has none. Two documents of one epoch must not exist.
        digest: Option<[u8; 32]>,
    },
    /// The answer to a hello.
    Welcome {
        /// The process that is welcomed.
        start: StartId,
        /// The greeting that is answered: what later ones say may be lost.
        number: u64,
        /// How far the sender had seen the store come that has recovered to less since: it went back in time, and
        /// something that was acknowledged is lost. None if the sender knows of nothing that is missing.
        went_back_from: Option<Sequence>,
        /// No process of a store that the sender knows of mints at or below it: nor does the one that is welcomed.
        floor: Counter,
    },
    /// Something about agreeing on documents, or on the first of them.
    Agreement(Box<AgreementMessage>),
    /// Asks for the cluster document.
    DocumentRequest,
    /// The cluster document that the header's epoch names.
    Document(Arc<ClusterDocument>),
    /// A client's request, for a replica of its key to coordinate.
    Forward {
        /// Comes back with the reply.
        tag: Tag,
        /// What the client asked.
        request: Box<Request>,
        /// What is left of its time.
        remaining: Duration,
    },
    /// How a forwarded request ended.
    Forwarded {
        /// From the forward.
        tag: Tag,
        /// For the client.
        reply: Box<Reply>,
    },
    /// Asks a replica to join a record that carries its dots.
    Merge {
        /// Comes back with the acknowledgement.
        tag: Tag,
        /// The object.
        object: ObjectKey,
        /// What to join.
        record: Arc<Record>,
        /// The watermark at which the sender's copy was whole when it read the record; 0 if it was not.
        under: Counter,
        /// When it may be acknowledged.
        durability: Durability,
        /// Which of the ways in this is.
        path: MergePath,
    },
    /// How a merge ended.
    Merged {
        /// From the merge.
        tag: Tag,
        /// The outcome.
        outcome: MergeOutcome,
    },
    /// Asks a replica for its record, for a read of so many copies: answered only by a copy that is whole for them.
    Read {
        /// Comes back with the answer.
        tag: Tag,
        /// The object.
        object: ObjectKey,
        /// The record, or only its digest.
        kind: ReadKind,
        /// The request's own n, if any.
        n: Option<u8>,
        /// Whether the answer has to wait until what it says is synced.
        durable: bool,
    },
    /// A replica's record.
    Answer {
        /// From the read.
        tag: Tag,
        /// The answer.
        answer: ReadAnswer,
    },
    /// A question of an exchange, which the sender leads: see [`antientropy::exchange`].
    Exchange {
        /// Comes back with the answer. The first question of an exchange is number 1.
        tag: Tag,
        /// Where the sender stands with all that both share: with the first question.
        standing: Option<Standing>,
        /// For [`Follower::answer`](antientropy::exchange::Follower::answer).
        question: Bytes,
    },
    /// The answer, sent once everything is synced that it is about.
    ExchangeAnswer {
        /// From the question.
        tag: Tag,
        /// The answer.
        answer: ExchangeAnswer,
    },
    /// An exchange that the sender led has ended.
    ExchangeEnded {
        /// The operation of its questions.
        exchange: u64,
        /// Whether all is equal that both are to keep and that was there when it began.
        is_complete: bool,
        /// Partitions about which that says nothing, in ascending order.
        left_out: Vec<PartitionId>,
        /// How long ago it began.
        begun: Duration,
        /// In how many partitions it found differences.
        differed: u32,
    },
    /// The sender has hints for the receiver.
    HintOffer {
        /// How many.
        waiting: u32,
    },
    /// How many of them the sender will take: so many merges by the path of hints, until the next grant.
    HintGrant {
        /// So many.
        merges: u32,
    },
    /// The question was not taken: the sender holds no copy, or speaks under another document.
    Declined {
        /// From the question.
        tag: Tag,
    },
}

/// What a node says to a question of an exchange that another leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExchangeAnswer {
    /// Where it stands with all that both share: in answer to the first question, and when one of its copies has begun to fill
    /// since.
    pub standing: Option<Standing>,
    /// For [`Exchange::answered`](antientropy::exchange::Exchange::answered); none if the leader is at a lower watermark
    /// somewhere, and has to begin anew when it has come up.
    pub answer: Option<Bytes>,
}

/// Where a store recovered to, as its process tells a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// At this start.
    pub recovered: Sequence,
    /// The lowest of all starts since the peer last confirmed one, this one included.
    pub lowest: Sequence,
    /// Those starts, the latest last, without this one; the oldest may have been left out.
    pub unconfirmed: Vec<StartId>,
}

/// The ways in to the one door.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MergePath {
    /// A client's write.
    Write,
    /// A client's write that the receiver takes in place of a replica that is down or silent, and owes it from then on.
    StandIn {
        /// That replica.
        target: NodeId,
    },
    /// A read that found a stale replica.
    ReadRepair,
    /// A hint's replay.
    Hint,
    /// An exchange.
    AntiEntropy,
    /// An exchange that fills a copy.
    Movement,
}

/// How a merge ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeOutcome {
    /// The record is joined, and as durable as was asked. Counts only if the document records the header's store and
    /// this epoch for the sender.
    Applied {
        /// The epoch at which the sender gained the partition.
        gained: Epoch,
    },
    /// It is not, and never will be because of this message.
    Refused(MergeRefusal),
}

/// Why a merge was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeRefusal {
    /// The sender's document is older than the receiver's.
    StaleEpoch,
    /// The receiver holds no copy of the partition.
    NotOwner,
    /// There is no such keyspace, or its records are of another kind.
    Mismatched,
    /// Too many bytes wait for the disk.
    Overloaded,
    /// The store refused the batch.
    StorageFailed,
    /// Every write in it is over long since: what is true of them exchanges bring.
    Late,
    /// It names a write below the receiver's watermark, of which the receiver knows nothing, and the sender was at a lower one:
    /// it may be one that has been deleted.
    Behind {
        /// The receiver's.
        watermark: Counter,
    },
}

/// What a read wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadKind {
    /// The record.
    Data,
    /// Its digest.
    Digest,
}

/// A replica's answer to a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadAnswer {
    /// The record, if there is one, and the watermark at which the sender's copy was whole; 0 if it was not.
    Data(Option<Arc<Record>>, Counter),
    /// The record's digest, or the absent digest.
    Digest(VersionDigest),
    /// No answer that could count: the copy is filling, not yet greeted by those it shares with, or damaged.
    Filling,
    /// What was to be answered waited for a batch that was refused: what is held now is something else.
    Refused,
    /// The sender's document is older than the receiver's.
    StaleEpoch,
    /// The receiver holds no copy.
    NotOwner,
}
