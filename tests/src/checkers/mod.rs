//! Checkers: each reads a finished run's history and says where it breaks one promise.

mod changes;
mod clocks;
mod convergence;
mod definite_errors;
mod documents;
mod durable_means_durable;
mod expiry;
mod false_alarms;
mod foreign_contexts;
mod hash_trees;
pub(crate) mod lost_writes;
mod quorum_overlap;
mod registers;
mod resurrection;
mod sessions;
#[cfg(test)]
mod story;
mod votes;

use std::fmt;

use client::Version;

use crate::history::{Found, History, KeyId, WriteKind};
use crate::schedule::Moment;

/// What is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Checker {
    /// P1: no acknowledged write is lost.
    LostWrites,
    /// P2: a read that overlaps an earlier write shows it, or what came after.
    QuorumOverlap,
    /// P3: a definite error never takes effect.
    DefiniteErrors,
    /// P4: all replicas become identical when faults stop.
    Convergence,
    /// P5: what was deleted or replaced stays away.
    Resurrection,
    /// P7: an acknowledgement of durability `disk` means that so many disks hold the write.
    DurableMeansDurable,
    /// Blocking reads never go back.
    Registers,
    /// Versions respect what their writers, and their coordinators, had seen.
    Sessions,
    /// A context of another key is refused.
    ForeignContexts,
    /// A value that has ended is not read.
    Expiry,
    /// There is one document of each epoch, and each is the one before it with one change that was asked for.
    Documents,
    /// A change that was answered as done is in every later document, and known to all live members.
    Changes,
    /// A vote about a document is synced before it is told, and given only by whom it may be given.
    Votes,
    /// P6, the other way round: a store that did not go back in time is not taken for one that did.
    FalseAlarms,
    /// A node whose clock is far from its peers' dates no write.
    Clocks,
    /// Hash trees are what a scan would make of them.
    HashTrees,
    /// No assertion fails, in the nodes or around them. Found where a run ends early, not in its history.
    Assertions,
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Who found it.
    pub checker: Checker,
    /// What happened.
    pub what: String,
}

impl Checker {
    /// All of them.
    pub const ALL: [Checker; 17] = [
        Checker::LostWrites,
        Checker::QuorumOverlap,
        Checker::DefiniteErrors,
        Checker::Convergence,
        Checker::Resurrection,
        Checker::DurableMeansDurable,
        Checker::Registers,
        Checker::Sessions,
        Checker::ForeignContexts,
        Checker::Expiry,
        Checker::Documents,
        Checker::Changes,
        Checker::Votes,
        Checker::FalseAlarms,
        Checker::Clocks,
        Checker::HashTrees,
        Checker::Assertions,
    ];

    /// What it finds in a history.
    #[must_use]
    pub fn check(self, history: &History) -> Vec<String> {
        match self {
            Checker::LostWrites => lost_writes::check(history),
            Checker::QuorumOverlap => quorum_overlap::check(history),
            Checker::DefiniteErrors => definite_errors::check(history),
            Checker::Convergence => convergence::check(history),
            Checker::Resurrection => resurrection::check(history),
            Checker::DurableMeansDurable => durable_means_durable::check(history),
            Checker::Registers => registers::check(history),
            Checker::Sessions => sessions::check(history),
            Checker::ForeignContexts => foreign_contexts::check(history),
            Checker::Expiry => expiry::check(history),
            Checker::Documents => documents::check(history),
            Checker::Changes => changes::check(history),
            Checker::Votes => votes::check(history),
            Checker::FalseAlarms => false_alarms::check(history),
            Checker::Clocks => clocks::check(history),
            Checker::HashTrees => hash_trees::check(history),
            Checker::Assertions => Vec::new(),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.checker, self.what)
    }
}

/// What all checkers find in a history.
#[must_use]
pub fn check(history: &History) -> Vec<Violation> {
    let violations =
        |checker: Checker| checker.check(history).into_iter().map(move |what| Violation { checker, what });
    Checker::ALL.into_iter().flat_map(violations).collect()
}

/// The highest version that a read of a last-write-wins key shows.
fn highest(found: &Found) -> Option<Version> {
    found.values.iter().map(|(_, version)| *version).max()
}

/// Whether a read that shows `shown` of a last-write-wins key is at least as new as `version`. A read that shows
/// nothing may have found a delete or a value that has ended of a version as high, if there may have been one before
/// the read ended.
fn is_as_new(history: &History, key: KeyId, shown: Option<Version>, version: Version, ended: Moment) -> bool {
    let is_nothing_above = || {
        history.writes.iter().any(|write| {
            let versions = write.acknowledgements().map(|(_, acknowledgement)| acknowledgement.version);
            let is_in_doubt = write.took_effect_by() == Moment::NEVER;
            write.key == key
                && (write.kind == WriteKind::Delete || write.expires_ms.is_some())
                && write.began() <= ended
                && (is_in_doubt || versions.flatten().any(|nothing| nothing >= version))
        })
    };
    match shown {
        Some(shown) => shown >= version,
        None => is_nothing_above(),
    }
}
