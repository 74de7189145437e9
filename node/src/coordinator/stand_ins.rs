//! Nodes that stand in for replicas of a sloppy write (Dynamo, section 4.6): the next of the partition's preference list
//! that are up take the record in place of those that are down, refuse it or are silent, and each leaves a hint for the one
//! that it stands in for, with the same batch. Their acknowledgements count.
//!
//! They hold the record as a copy of their own, like for a request for more copies. They hand it over to the replica when
//! it is back ([`hints`](crate::hints)); a read of the first n cannot know of it before.

use std::time::Duration;

use ring::{ClusterDocument, Epoch, NodeId, StoreId};
use smallvec::SmallVec;

use super::{admit::Located, spread::Spread, tally::Vote};
use crate::{local::Local, message::MergeOutcome, placement::OwnerAt, storage::Store};

/// How long a replica that was sent the record may be silent before another stands in for it, and so may that one.
const SILENT_AFTER: Duration = Duration::from_millis(100);

/// The stand-ins of one write.
#[derive(Debug)]
pub(crate) struct StandIns {
    /// This node itself, if it coordinates in place of a replica.
    here: Option<NodeId>,
    began: Duration,
    stand_ins: SmallVec<[StandIn; 2]>,
    /// Questions of the operation that were used. The replicas are asked by the first, and each stand-in by one of its own:
    /// an acknowledgement of the record alone does not count as one of the record and a hint.
    questions: u32,
}

/// One of them.
#[derive(Clone, Copy, Debug)]
struct StandIn {
    node: NodeId,
    question: u32,
    /// For whom.
    target: NodeId,
    since: Duration,
    state: State,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Sent to, and no answer yet.
    Sent,
    /// Acknowledged by this store, for this gain.
    Acknowledged { store: StoreId, gained: Epoch },
    /// It did not take it.
    Refused,
}

impl StandIns {
    /// None yet. This node stands in for `here`, if it is no replica itself.
    pub(crate) fn new(now: Duration, here: Option<NodeId>) -> StandIns {
        StandIns { here, began: now, stand_ins: SmallVec::new(), questions: 0 }
    }

    /// Sends the record to stand-ins for those of the first n that need one and for whom there is one.
    pub(crate) fn fill<S: Store>(&mut self, local: &mut Local<S>, located: &Located, spread: &Spread) {
        let now = local.now.monotonic;
        let is_late = now >= self.began + SILENT_AFTER;
        for owner in located.owners.iter() {
            let is_lacking = spread.failed(owner.node)
                || spread.awaits(owner.node) && (is_late || !local.is_up(owner.node));
            let is_hopeful = |stand_in: &&StandIn| {
                stand_in.target == owner.node
                    && match stand_in.state {
                        State::Acknowledged { .. } => true,
                        State::Sent => now < stand_in.since + SILENT_AFTER,
                        State::Refused => false,
                    }
            };
            if !is_lacking || self.stand_ins.iter().any(|stand_in| is_hopeful(&stand_in)) {
                continue;
            }
            let Some(node) = self.candidate(local, located, spread, owner) else { continue };
            self.questions += 1;
            let question = self.questions;
            let is_sent = spread.send_in_place(local, question, node, owner.node);
            let state = if is_sent { State::Sent } else { State::Refused };
            self.stand_ins.push(StandIn { node, question, target: owner.node, since: now, state });
        }
    }

    /// The next node that can stand in for `owner`, which is in its datacenter: this one, if it is to; otherwise the
    /// first in preference that is up and does not stand in already.
    fn candidate<S: Store>(
        &self,
        local: &Local<S>,
        located: &Located,
        spread: &Spread,
        owner: &OwnerAt,
    ) -> Option<NodeId> {
        let is_used = |node: NodeId| self.stand_ins.iter().any(|stand_in| stand_in.node == node);
        // By a later document it may be a replica itself.
        if self.here == Some(owner.node) && !located.owners.contains(local.node) {
            return (!is_used(local.node)).then_some(local.node);
        }
        let is_free = |node: &NodeId| {
            // A node that keeps the key because it was once written to more copies gets the record in any case; what
            // counts is that it is asked to leave a hint with it.
            *node != local.node && !spread.failed(*node) && !is_used(*node) && local.is_up(*node)
        };
        let document = local.document.as_ref()?;
        spares(document, located, owner).find(is_free)
    }

    /// A node said how it ended.
    pub(crate) fn merged(&mut self, question: u32, from: NodeId, store: StoreId, outcome: MergeOutcome) {
        let is_it = |stand_in: &&mut StandIn| stand_in.node == from && stand_in.question == question;
        if let Some(stand_in) = self.stand_ins.iter_mut().find(is_it) {
            match outcome {
                MergeOutcome::Applied { gained } => stand_in.state = State::Acknowledged { store, gained },
                MergeOutcome::Refused(_) if stand_in.state == State::Sent => stand_in.state = State::Refused,
                MergeOutcome::Refused(_) => {}
            }
        }
    }

    /// The document has changed: whoever stands in is found anew.
    pub(crate) fn document_changed(&mut self, now: Duration) {
        self.stand_ins.clear();
        self.began = now;
    }

    /// Whether somebody holds the record in place of `target`: only its recorded store, for its recorded gain.
    pub(crate) fn vote(&self, document: &ClusterDocument, located: &Located, target: NodeId) -> Vote {
        let mut vote = Vote::No;
        for stand_in in self.stand_ins.iter().filter(|stand_in| stand_in.target == target) {
            match stand_in.state {
                State::Refused => {}
                State::Sent => vote = Vote::Pending,
                State::Acknowledged { store, gained } => {
                    let is_recorded =
                        document.members.get(&stand_in.node).is_some_and(|member| member.store == store);
                    let Some(owner) = located.owners.iter().find(|owner| owner.node == target) else {
                        continue;
                    };
                    let list = document.preference_list(owner.datacenter, located.partition);
                    let is_owner =
                        list.iter().any(|owner| owner.node == stand_in.node && owner.gained == gained);
                    if is_recorded && is_owner {
                        return Vote::Yes;
                    }
                }
            }
        }
        vote
    }

    /// Whether nobody is left to answer.
    pub(crate) fn is_over(&self) -> bool {
        !self.stand_ins.iter().any(|stand_in| stand_in.state == State::Sent)
    }

    /// When to look again whether somebody is silent.
    pub(crate) fn look_at(&self, now: Duration) -> Duration {
        let began = self.began + SILENT_AFTER;
        if began > now { began } else { now + SILENT_AFTER }
    }
}

/// The nodes that can stand in for a replica of a request, in the order of preference: the rest of its datacenter's list.
pub(crate) fn spares<'a>(
    document: &'a ClusterDocument,
    located: &'a Located,
    owner: &OwnerAt,
) -> impl Iterator<Item = NodeId> + 'a {
    let list = document.preference_list(owner.datacenter, located.partition).iter().take(ring::REPLICAS_MAX);
    list.map(|spare| spare.node).filter(|spare| !located.owners.contains(*spare))
}
