//! What to do after each attempt of an operation, and what all of them together mean: decided here, done in
//! [`operation`](super::operation).
//!
//! Retries are made only where they are safe. A read has no effect, so another replica may always be asked. A write
//! that was *refused* has not happened: it is tried again where the refusal may pass. A write *in doubt* is tried again
//! only if the caller asked for it, under the same request id.

use std::time::Duration;

use ring::{Epoch, NodeId};

use super::{
    failure::{Doubt, ReadFailure, Unreachable, Unreached, WriteFailure},
    random::Random,
};
use crate::{Limit, Refusal};

/// Attempts of one operation unless told otherwise, whatever time is left. With the waits below they span some eight
/// seconds.
pub(crate) const ATTEMPTS_MAX: u32 = 16;
/// The wait before the first retry that has to wait.
const BACKOFF_FIRST: Duration = Duration::from_millis(10);
/// The longest wait between two attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// Nodes that an error names.
const UNREACHED_MAX: usize = 8;

/// What kind of operation it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Without effect.
    Read,
    /// With one.
    Write {
        /// Whether it may be sent again after an attempt that may have happened.
        retry_in_doubt: bool,
    },
}

impl Kind {
    /// The longest that a first attempt waits for its coordinator before another is asked too. A coordinator itself
    /// replaces a silent replica after 50 ms; a write waits longer than the worst sync of a healthy disk, since a second
    /// coordinator may store the value twice.
    pub(crate) fn slice_max(self) -> Duration {
        match self {
            Kind::Read => Duration::from_millis(250),
            Kind::Write { .. } => Duration::from_millis(500),
        }
    }

    /// Where reads and writes are counted apart.
    pub(crate) fn index(self) -> usize {
        usize::from(self != Kind::Read)
    }

    /// The shortest, however fast a coordinator was of late.
    pub(crate) fn slice_min(self) -> Duration {
        match self {
            Kind::Read => Duration::from_millis(10),
            Kind::Write { .. } => Duration::from_millis(50),
        }
    }
}

/// How one attempt ended without success.
#[derive(Clone, Debug)]
pub(crate) enum Ended {
    /// It was never sent.
    Unsent(Unreached),
    /// It was not sent, because every node that might do refuses what it has too much of.
    HeldBack(Limit),
    /// It was sent, and its connection ended before the reply.
    Lost(NodeId),
    /// A write that may have happened, as its coordinator says.
    InDoubt(Doubt),
    /// A read that its coordinator gave up.
    TimedOut {
        /// How many replicas had to answer.
        required: u8,
        /// How many did.
        answered: u8,
    },
    /// It has not happened.
    Refused {
        /// Why.
        refusal: Refusal,
        /// Of the node that refused.
        theirs: Epoch,
        /// Of the document by which it was routed.
        ours: Epoch,
    },
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing: no attempt would end otherwise.
    Stop,
    /// Try a node that was not tried yet, at once; when all were, wait and begin anew.
    Elsewhere,
    /// Wait, then try any node.
    Backoff,
    /// Fetch the document. If it is a newer one, try again by it.
    Refetch {
        /// Otherwise stop; if not set, wait and try again.
        or_stop: bool,
    },
}

/// How long the coordinator of an attempt may be silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Patience {
    /// After this time it counts as failed for whoever chooses a node next, and another attempt may begin if the budget
    /// for early ones allows.
    pub(crate) slice: Duration,
    /// After this time another attempt may begin anyway.
    pub(crate) slice_max: Duration,
    /// Whether another attempt may then begin beside this one, which is still waited for.
    pub(crate) may_repeat: bool,
}

/// The attempts of one operation so far.
#[derive(Debug)]
pub(crate) struct Attempts {
    kind: Kind,
    max: u32,
    begun: u32,
    sent: u32,
    waits: u32,
    has_refetched: bool,
    refusal: Option<Refusal>,
    doubt: Option<Doubt>,
    timed_out: Option<(u8, u8)>,
    silent: Option<NodeId>,
    unreached: Vec<Unreached>,
}

impl Attempts {
    /// None yet, and at most so many.
    pub(crate) fn new(kind: Kind, max: u32) -> Attempts {
        Attempts {
            kind,
            max,
            begun: 0,
            sent: 0,
            waits: 0,
            has_refetched: false,
            refusal: None,
            doubt: None,
            timed_out: None,
            silent: None,
            unreached: Vec::new(),
        }
    }

    /// An attempt begins, at a node that is late after `slice`.
    pub(crate) fn begin(&mut self, slice: Duration) -> Patience {
        let may_repeat = match self.kind {
            Kind::Read => true,
            Kind::Write { retry_in_doubt } => retry_in_doubt,
        };
        // Each waits longer than the one before: where everything is slow, more attempts make it slower.
        let factor = 1 << self.sent.min(8);
        (self.begun, self.sent) = (self.begun + 1, self.sent + 1);
        Patience {
            slice: slice.saturating_mul(factor),
            slice_max: self.kind.slice_max().saturating_mul(factor),
            may_repeat: may_repeat && self.begun < self.max,
        }
    }

    /// An attempt ended.
    pub(crate) fn end(&mut self, ended: Ended) -> Next {
        let next = match ended {
            Ended::Unsent(unreached) => {
                // What happened last at each node.
                self.unreached.retain(|known| known.address != unreached.address);
                if self.unreached.len() < UNREACHED_MAX {
                    self.unreached.push(unreached);
                }
                self.begun += 1;
                Next::Elsewhere
            }
            Ended::HeldBack(limit) => {
                self.refusal = Some(Refusal::Overloaded(limit));
                self.begun += 1;
                Next::Backoff
            }
            Ended::Lost(node) => match self.kind {
                Kind::Read => {
                    self.silent = Some(node);
                    Next::Elsewhere
                }
                Kind::Write { retry_in_doubt } => {
                    self.doubt.get_or_insert(Doubt::ConnectionLost { node });
                    if retry_in_doubt { Next::Elsewhere } else { Next::Stop }
                }
            },
            Ended::InDoubt(doubt) => {
                // What a coordinator says tells more than its silence.
                self.doubt = Some(doubt);
                match self.kind {
                    Kind::Write { retry_in_doubt: true } => Next::Backoff,
                    Kind::Read | Kind::Write { retry_in_doubt: false } => Next::Stop,
                }
            }
            Ended::TimedOut { required, answered } => {
                self.timed_out = Some((required, answered));
                Next::Elsewhere
            }
            Ended::Refused { refusal, theirs, ours } => {
                let next = self.after_refusal(&refusal, theirs, ours);
                self.refusal = Some(refusal);
                next
            }
        };
        if self.begun >= self.max { Next::Stop } else { next }
    }

    /// The time is up, and an attempt that was sent has not been answered.
    pub(crate) fn silent(&mut self, node: NodeId) {
        match self.kind {
            Kind::Read => self.silent = Some(node),
            Kind::Write { .. } => {
                self.doubt.get_or_insert(Doubt::Silent { node });
            }
        }
    }

    /// How long to wait before the next attempt.
    pub(crate) fn backoff(&mut self, random: &Random) -> Duration {
        let wait = BACKOFF_FIRST.saturating_mul(1 << self.waits.min(16)).min(BACKOFF_MAX);
        self.waits += 1;
        random.jittered(wait)
    }

    /// What it all means for a write that was not acknowledged.
    pub(crate) fn into_write_failure(self) -> WriteFailure {
        match (self.doubt, self.refusal) {
            (Some(doubt), _) => WriteFailure::InDoubt(doubt),
            (None, Some(refusal)) => WriteFailure::Refused(refusal),
            (None, None) => WriteFailure::Unreachable(Unreachable { tried: self.unreached }),
        }
    }

    /// What it all means for a read that was not answered.
    pub(crate) fn into_read_failure(self) -> ReadFailure {
        match (self.timed_out, self.refusal, self.silent) {
            (Some((required, answered)), _, _) => ReadFailure::TimedOut { required, answered },
            (None, Some(refusal), _) => ReadFailure::Refused(refusal),
            (None, None, Some(node)) => ReadFailure::Silent { node },
            (None, None, None) => ReadFailure::Unreachable(Unreachable { tried: self.unreached }),
        }
    }

    fn after_refusal(&mut self, refusal: &Refusal, theirs: Epoch, ours: Epoch) -> Next {
        match refusal {
            // About that node, now: another may do.
            Refusal::NotReady | Refusal::ClockDrift { .. } => Next::Elsewhere,
            // About the cluster, now.
            Refusal::Unavailable { .. } | Refusal::Overloaded(_) => Next::Backoff,
            Refusal::StaleEpoch { known } if *known > ours => Next::Refetch { or_stop: false },
            Refusal::StaleEpoch { .. } => Next::Backoff,
            // About the document: the node's may be old, or this client's.
            Refusal::UnknownKeyspace | Refusal::BadCopies { .. } | Refusal::Unsatisfiable(_) => {
                if theirs < ours {
                    Next::Elsewhere
                } else if self.has_refetched {
                    Next::Stop
                } else {
                    self.has_refetched = true;
                    Next::Refetch { or_stop: true }
                }
            }
            // About the request.
            Refusal::EmptyKey
            | Refusal::TooLarge { .. }
            | Refusal::TooManySiblings { .. }
            | Refusal::TooManyWriters { .. }
            | Refusal::BadContext
            | Refusal::Forbidden { .. }
            | Refusal::OtherKeyspaces
            | Refusal::Malformed => Next::Stop,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DoubtCause, LevelError};

    const WRITE: Kind = Kind::Write { retry_in_doubt: false };
    const SLICE: Duration = Duration::from_millis(40);
    const RETRIED: Kind = Kind::Write { retry_in_doubt: true };

    fn refused(refusal: Refusal) -> Ended {
        Ended::Refused { refusal, theirs: Epoch(3), ours: Epoch(3) }
    }

    fn doubt() -> Doubt {
        Doubt::Coordinator { required: 2, acknowledged: 1, cause: DoubtCause::TimedOut }
    }

    fn unsent() -> Ended {
        let cause = super::super::failure::DialError::Silent;
        Ended::Unsent(Unreached { address: "node-1:7400".to_owned(), cause })
    }

    #[test]
    fn a_refusal_that_may_pass_is_tried_again_and_one_that_cannot_is_not() {
        for (refusal, next) in [
            (Refusal::NotReady, Next::Elsewhere),
            (Refusal::ClockDrift { drift_ms: 900 }, Next::Elsewhere),
            (Refusal::Unavailable { required: 2, alive: 1 }, Next::Backoff),
            (Refusal::Overloaded(Limit::Requests), Next::Backoff),
            (Refusal::StaleEpoch { known: Epoch(4) }, Next::Refetch { or_stop: false }),
            (Refusal::StaleEpoch { known: Epoch(3) }, Next::Backoff),
            (Refusal::TooLarge { size_bytes: 9, limit_bytes: 8 }, Next::Stop),
            (Refusal::BadContext, Next::Stop),
            (Refusal::Malformed, Next::Stop),
        ] {
            for kind in [Kind::Read, WRITE, RETRIED] {
                assert_eq!(
                    Attempts::new(kind, ATTEMPTS_MAX).end(refused(refusal.clone())),
                    next,
                    "{refusal} of {kind:?}"
                );
            }
        }
    }

    #[test]
    fn what_the_document_decides_is_believed_after_one_fresh_look() {
        let unsatisfiable = Refusal::Unsatisfiable(LevelError::TooMany { required: 4, copies: 3 });
        for refusal in [Refusal::UnknownKeyspace, unsatisfiable, Refusal::BadCopies { asked: 9, possible: 3 }]
        {
            let mut attempts = Attempts::new(WRITE, ATTEMPTS_MAX);
            assert_eq!(attempts.end(refused(refusal.clone())), Next::Refetch { or_stop: true });
            assert_eq!(attempts.end(refused(refusal.clone())), Next::Stop);
            assert_eq!(attempts.into_write_failure(), WriteFailure::Refused(refusal.clone()));
            let lagging = Ended::Refused { refusal, theirs: Epoch(2), ours: Epoch(3) };
            assert_eq!(
                Attempts::new(WRITE, ATTEMPTS_MAX).end(lagging),
                Next::Elsewhere,
                "the node's document is the old one"
            );
        }
    }

    #[test]
    fn a_write_in_doubt_is_not_tried_again_unless_asked() {
        for ended in [Ended::Lost(NodeId(1)), Ended::InDoubt(doubt())] {
            let mut attempts = Attempts::new(WRITE, ATTEMPTS_MAX);
            assert_eq!(attempts.end(ended.clone()), Next::Stop);
            assert!(attempts.into_write_failure().is_in_doubt());
            assert_ne!(Attempts::new(RETRIED, ATTEMPTS_MAX).end(ended), Next::Stop);
        }
        assert!(!Attempts::new(WRITE, ATTEMPTS_MAX).begin(SLICE).may_repeat, "silence is doubt, too");
        assert!(Attempts::new(RETRIED, ATTEMPTS_MAX).begin(SLICE).may_repeat);
    }

    #[test]
    fn a_later_refusal_does_not_settle_an_earlier_doubt() {
        for first in [Ended::Lost(NodeId(1)), Ended::InDoubt(doubt())] {
            let mut attempts = Attempts::new(RETRIED, ATTEMPTS_MAX);
            attempts.end(first);
            attempts.end(refused(Refusal::NotReady));
            attempts.end(refused(Refusal::TooLarge { size_bytes: 9, limit_bytes: 8 }));
            attempts.end(unsent());
            assert!(attempts.into_write_failure().is_in_doubt());
        }
        let mut attempts = Attempts::new(RETRIED, ATTEMPTS_MAX);
        attempts.silent(NodeId(1));
        attempts.end(refused(Refusal::BadContext));
        let expected = WriteFailure::InDoubt(Doubt::Silent { node: NodeId(1) });
        assert_eq!(attempts.into_write_failure(), expected);
    }

    #[test]
    fn a_write_that_was_never_sent_is_no_doubt() {
        let mut attempts = Attempts::new(WRITE, ATTEMPTS_MAX);
        assert_eq!(attempts.end(unsent()), Next::Elsewhere);
        assert!(!attempts.into_write_failure().is_in_doubt());
    }

    #[test]
    fn a_read_goes_elsewhere_whatever_happened() {
        for ended in [Ended::Lost(NodeId(1)), Ended::TimedOut { required: 2, answered: 1 }, unsent()] {
            assert_eq!(Attempts::new(Kind::Read, ATTEMPTS_MAX).end(ended), Next::Elsewhere);
        }
    }

    #[test]
    fn one_attempt_can_be_all_there_is() {
        let mut attempts = Attempts::new(RETRIED, 1);
        assert!(!attempts.begin(SLICE).may_repeat);
        assert_eq!(attempts.end(refused(Refusal::NotReady)), Next::Stop);
        assert_eq!(Attempts::new(Kind::Read, 1).end(unsent()), Next::Stop);
    }

    #[test]
    fn attempts_are_bounded_and_wait_ever_longer() {
        let (mut attempts, random) = (Attempts::new(Kind::Read, ATTEMPTS_MAX), Random::new());
        let mut waits = Vec::new();
        let mut slices = Vec::new();
        for _ in 1..ATTEMPTS_MAX {
            let patience = attempts.begin(SLICE);
            assert!(patience.may_repeat);
            slices.push(patience.slice);
            assert!(patience.slice_max >= patience.slice);
            assert_eq!(attempts.end(refused(Refusal::Overloaded(Limit::Unsynced))), Next::Backoff);
            waits.push(attempts.backoff(&random));
        }
        assert!(!attempts.begin(SLICE).may_repeat);
        assert_eq!(attempts.end(refused(Refusal::Overloaded(Limit::Unsynced))), Next::Stop);
        assert_eq!(&slices[..3], [SLICE, SLICE * 2, SLICE * 4]);
        assert!(waits[0] <= BACKOFF_FIRST && waits[8] > BACKOFF_FIRST && waits[14] <= BACKOFF_MAX);
    }
}
