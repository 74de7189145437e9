//! What went wrong, what the caller may conclude, and whether to try again.
//!
//! The line between definite and in doubt is the *mint*: a write that was refused before it was given a version has
//! not happened and never will; from then on it is acknowledged or in doubt, whatever stopped it.

use ring::Epoch;
use thiserror::Error;

use crate::{Access, KEY_BYTES_MAX, LevelError, VALUE_BYTES_MAX};

/// Why a put or a delete was not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WriteError {
    /// It did not happen and never will, on any replica.
    #[error("refused: {0}")]
    Refused(#[from] Refusal),
    /// It may have happened, or may yet. Trying again with the same request id is safe.
    #[error("in doubt: {acknowledged} of {required} replicas acknowledged, then {cause}")]
    InDoubt {
        /// How many replicas had to acknowledge.
        required: u8,
        /// How many did.
        acknowledged: u8,
        /// What stopped it.
        cause: DoubtCause,
    },
}

/// Why a get was not answered. A read has no effect, so trying again is always safe.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GetError {
    /// Nothing was read.
    #[error("refused: {0}")]
    Refused(#[from] Refusal),
    /// Too few replicas answered, or held durably what was found, in time.
    #[error("timed out: {answered} of {required} replicas answered")]
    TimedOut {
        /// How many replicas had to answer.
        required: u8,
        /// How many did.
        answered: u8,
    },
}

/// What left a write in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DoubtCause {
    /// The time was up.
    #[error("the time was up")]
    TimedOut,
    /// Too many replicas refused or could not be reached for the rest to suffice.
    #[error("too few replicas were left")]
    TooFewLeft,
    /// Too many attempts of the same request wait for the first already.
    #[error("too many attempts of it were waiting already")]
    TooManyAttempts,
    /// The replica that the request was forwarded to did not say how it ended.
    #[error("the coordinator fell silent")]
    CoordinatorSilent,
}

/// A definite failure.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Too few replicas are up. Try again later, or at a lower level.
    #[error("unavailable: {required} replicas are required and {alive} are alive")]
    Unavailable {
        /// How many replicas are required.
        required: u8,
        /// How many could be asked.
        alive: u8,
    },
    /// A limit was reached. Try again with backoff.
    #[error("overloaded: {0}")]
    Overloaded(Limit),
    /// The request was routed by an old ring. Fetch the ring and try again.
    #[error("stale epoch: the ring is at {known}")]
    StaleEpoch {
        /// The epoch that the node knows.
        known: Epoch,
    },
    /// The level cannot be met by the copies that the request asked for.
    #[error("{0}")]
    Unsatisfiable(#[from] LevelError),
    /// More copies in a datacenter than it has nodes for, or than any request may ask for, or none.
    #[error("n = {asked} is out of range: from 1 to {possible}")]
    BadCopies {
        /// What was asked for.
        asked: u8,
        /// The most that is possible.
        possible: u8,
    },
    /// The key is empty.
    #[error("the key is empty")]
    EmptyKey,
    /// The key, the value or the object is too large.
    #[error("{} too large: {size_bytes} bytes, the limit is {limit_bytes}", what_is(*limit_bytes))]
    TooLarge {
        /// Its size.
        size_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// The key has as many concurrent values as it may. Read it, and write with the context to resolve them.
    #[error("too many siblings: the limit is {limit}")]
    TooManySiblings {
        /// The limit.
        limit: usize,
    },
    /// The object remembers as many writers as it may: replicas that have written it since they started. It can be
    /// written again when some of them are forgotten.
    #[error("too many writers in the object's context: the limit is {limit}")]
    TooManyWriters {
        /// The limit.
        limit: usize,
    },
    /// There is no such keyspace.
    #[error("no such keyspace")]
    UnknownKeyspace,
    /// The context was not issued for this key of this keyspace by this cluster.
    #[error("the context is not one of this key's")]
    BadContext,
    /// The node's clock is too far from its peers' to date a write.
    #[error("the node's clock is {drift_ms} ms from its peers'")]
    ClockDrift {
        /// How far, positive if it is ahead.
        drift_ms: i64,
    },
    /// The node has just started, or its storage cannot take writes. Try another.
    #[error("the node is not ready")]
    NotReady,
    /// The certificate does not allow it.
    #[error("forbidden: the certificate's role must be {} for this", needs.role_name())]
    Forbidden {
        /// What it needs.
        needs: Access,
    },
    /// The request was malformed.
    #[error("malformed request")]
    Malformed,
    /// The certificate is bound to other keyspaces.
    #[error("forbidden: the certificate's role is bound to other keyspaces")]
    OtherKeyspaces,
}

/// What is too large, which follows from its limit.
fn what_is(limit_bytes: usize) -> &'static str {
    match limit_bytes {
        KEY_BYTES_MAX => "the key is",
        VALUE_BYTES_MAX => "the value is",
        // Beside other values.
        _ => "the object, with all of its values, is",
    }
}

/// Which limit was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Limit {
    /// Requests under way at one node.
    #[error("too many requests under way")]
    Requests,
    /// Bytes written and not yet synced at one node.
    #[error("too many bytes wait for the disk")]
    Unsynced,
    /// Writes that one node holds in place of a replica that is down.
    #[error("too much is owed to a replica that is down")]
    Hints,
    /// The time of the request itself, which was up when its turn came.
    #[error("the time was up before it was begun")]
    Time,
}
