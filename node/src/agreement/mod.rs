//! Agreement on the cluster document: which one succeeds the present one.
//!
//! Documents are decided one at a time, each by a round of its own (single-decree Paxos: Lamport, "Paxos Made Simple",
//! 2001) among the members of the document before it. A proposer asks them to *promise* its ballot, learns what they
//! have accepted so far, and asks them to *accept* that, or its own change if there is nothing. What a majority has
//! accepted is decided, and every later ballot of that epoch proposes the same: a proposer that finds a document of
//! another finishes that first, and its own change comes on top of it. A decided document is adopted once it is synced,
//! and spreads by gossip.
//!
//! - [`round`] is the proposer's side, [`votes`] the voter's, [`changes`] the requests and their answers; [`forming`]
//!   is how founders agree on the first document.
//!
//! # Whose votes count
//!
//! A vote counts if it is synced and comes from the store that the document records for a member, with the memory of
//! votes (the *voter*) that it records. A wiped disk is another store. A store that finds that it went back in time, or
//! cannot read its votes, draws another voter. Neither votes until a change has recorded it, and that change ended the
//! round in which it could contradict what it has forgotten: it can have voted only about the successor of a document
//! that it held, and of the document that records the new voter it knows that its former memory never held it.
//!
//! # A store that went back and does not know it
//!
//! Its disk was restored, truncated, or lied about a sync, and a vote that was sent is forgotten. Two rules keep it from
//! voting again.
//!
//! 1. *No vote is counted that only the voter knows of.* A proposer counts another's vote when it has synced how far it
//!    has seen that store come, which is no less than the vote. Its own vote it syncs before it asks anyone; so whoever
//!    answers has seen how far the proposer's store had come, and syncs that with the answer.
//! 2. *No process votes before its peers have judged it.* A process votes when all other members have welcomed it. A
//!    welcome says whether the peer had seen the store come further than it recovered to.
//!
//! So if the store is the only one that went back, it hears of it before it votes. If it is a proposer's, any member of
//! its quorum knows; if another's, the proposer does. A vote that is still on its way, or not yet counted, is either
//! seen by the proposer before it judges the new process, which then is told; or it comes after the new process's hello,
//! and messages of the process before are no longer listened to.
//!
//! A dead member would keep everyone who restarts from voting. So after [`vote_patience`](crate::Settings) those that
//! are down are not waited for, if a majority is left. What this gives up: a store goes back, *and* all who know are
//! down or cut off for the whole of that time. Nothing that a majority without them can know tells this from a restart
//! beside a dead member.
//!
//! # What it does not do
//!
//! Nobody takes up an accepted document of its own accord: if its proposer dies, it may stay undecided, or decided and
//! unknown, until the next change is asked for. Nothing here says who is up, and no member is added or removed yet.

pub(crate) mod changes;
pub(crate) mod forming;
pub(crate) mod message;
pub(crate) mod round;
pub(crate) mod votes;

pub use votes::{StoredVotes, read_votes};

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::Rng;
use ring::NodeId;

use self::{changes::Changes, forming::Forming, message::Ballot, round::Round};
use crate::{local::Local, planted::PlantedBug, settings::Settings, storage::Store};

/// The wait after the first round that was given up; it doubles with each in a row.
const BACKOFF: Duration = Duration::from_millis(25);
/// How often it doubles.
const DOUBLINGS_MAX: u32 = 5;
/// How often the time that a round may take doubles.
const TIMEOUT_DOUBLINGS_MAX: u32 = 3;
/// How long to wait before it is looked again whether this node may vote.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// This node's part in agreeing on documents, but for its votes, which its hellos name.
pub(crate) struct Agreement {
    pub(crate) changes: Changes,
    /// The round that this node proposes in.
    pub(crate) round: Option<Round>,
    /// The forming of the cluster, as long as no document is known.
    pub(crate) forming: Option<Forming>,
    /// When another round may begin.
    pub(crate) retry_at: Duration,
    /// Rounds that were given up in a row.
    given_up: u32,
    /// The highest counter of any ballot that was heard of.
    counter: u64,
    /// When the process began.
    started: Duration,
}

impl Agreement {
    /// Nothing is under way.
    pub(crate) fn new(started: Duration, forming: Option<Forming>) -> Agreement {
        Agreement {
            changes: Changes::new(),
            round: None,
            forming,
            retry_at: Duration::ZERO,
            given_up: 0,
            counter: 0,
            started,
        }
    }

    /// A ballot was heard of: the next one of this node's has to outbid it.
    pub(crate) fn note(&mut self, ballot: Ballot) {
        if ballot.is_plausible() {
            self.counter = self.counter.max(ballot.counter);
        }
    }

    /// A counter for a ballot of this node's, higher than any that was heard of.
    pub(crate) fn next_counter(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    /// This node may not vote at present: it is looked again in a while.
    pub(crate) fn wait(&mut self, now: Duration) {
        self.retry_at = now + LOOK_AGAIN_AFTER;
    }

    /// How long the next round may take: longer after each that was given up, in case that there was too little time.
    pub(crate) fn round_timeout(&self, settings: &Settings) -> Duration {
        settings.round_timeout.saturating_mul(1 << self.given_up.min(TIMEOUT_DOUBLINGS_MAX))
    }

    /// A round was given up: rivals need room, and not the same amount of it.
    pub(crate) fn back_off(&mut self, now: Duration, rng: &mut ChaCha8Rng) {
        let wait = BACKOFF * (1 << self.given_up.min(DOUBLINGS_MAX));
        self.given_up = self.given_up.saturating_add(1);
        self.retry_at = now + wait + jitter(wait, rng);
    }

    /// The document is another. Whoever else waits for a round of the new epoch hears of it at about the same time.
    pub(crate) fn document_changed(&mut self, now: Duration, rng: &mut ChaCha8Rng) {
        (self.round, self.forming, self.given_up) = (None, None, 0);
        if self.changes.is_waiting() {
            self.retry_at = now + jitter(BACKOFF, rng);
        }
    }

    /// Whether this process may vote as far as its peers are concerned: all other members have judged its store, or,
    /// after a while, all that are up, which with this node must be a majority.
    pub(crate) fn is_settled<S: Store>(&self, local: &Local<S>) -> bool {
        if local.planted == Some(PlantedBug::VoteBeforeWelcome) {
            return true;
        }
        let Some(document) = &local.document else { return false };
        let others = || document.members.keys().copied().filter(|node| *node != local.node);
        let is_patient = local.now.monotonic < self.started + local.settings.vote_patience;
        let judged = others().filter(|node| local.peers.was_greeted(*node)).count();
        let is_down = |node: NodeId| local.peers.is_down(local.now, node, &local.settings);
        if is_patient {
            judged == others().count()
        } else {
            judged + 1 > document.members.len() / 2
                && others().all(|node| local.peers.was_greeted(node) || is_down(node))
        }
    }
}

/// A random part of a wait.
fn jitter(wait: Duration, rng: &mut ChaCha8Rng) -> Duration {
    let nanos = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX).max(1);
    Duration::from_nanos(rng.next_u64() % nanos)
}
