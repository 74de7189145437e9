//! Changes of the document that were asked for at this node, from the request to the answer.
//!
//! A change waits for its round, and may have to wait for others': every document that is adopted in the meantime is
//! looked at anew, and may already be what was asked for. A change that stands in the document is answered when every
//! live member has that document, or when the time is up.

use std::{collections::VecDeque, time::Duration};

use client::wire::{ControlError, ControlReply, NewKeyspace};
use ring::{ClusterDocument, Epoch, KeyspaceId, NodeId, StoreId, VoterId};

use crate::{
    event::{Change, ClientTag},
    formation::keyspace_of,
};

/// A node's store and memory of votes, as it names them in its hello.
pub(crate) type Introduced = (StoreId, VoterId);

/// The changes of this node, in the order in which they were asked for.
pub(crate) struct Changes {
    queue: VecDeque<Pending>,
}

/// One change.
pub(crate) struct Pending {
    pub(crate) client: ClientTag,
    pub(crate) deadline: Duration,
    change: Change,
    state: State,
}

enum State {
    /// No document has it. What a readmission is to record, once that is known.
    Waiting { target: Option<Introduced> },
    /// The document has it.
    Decided { reply: ControlReply, epoch: Epoch },
}

/// What a document means for a change.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outlook {
    /// This successor would have it.
    Open(Box<ClusterDocument>),
    /// The document has it.
    Done(ControlReply),
    /// It cannot be had.
    Refused(ControlError),
}

/// A change that is over, and how it ended.
pub(crate) type Ended = (ClientTag, Result<ControlReply, ControlError>);

impl Changes {
    /// None.
    pub(crate) fn new() -> Changes {
        Changes { queue: VecDeque::new() }
    }

    /// Takes a change.
    pub(crate) fn push(&mut self, client: ClientTag, change: Change, deadline: Duration) {
        self.queue.push_back(Pending { client, deadline, change, state: State::Waiting { target: None } });
    }

    /// How many are under way.
    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether one waits for a round.
    pub(crate) fn is_waiting(&self) -> bool {
        self.queue.iter().any(|pending| matches!(pending.state, State::Waiting { .. }))
    }

    /// When the time of the first is up.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        self.queue.iter().map(|pending| pending.deadline).min()
    }

    /// Looks at all that wait, under a document that is new to them. Returns those that cannot be had.
    pub(crate) fn review(
        &mut self,
        document: &ClusterDocument,
        heard: impl Fn(NodeId) -> Option<Introduced>,
    ) -> Vec<Ended> {
        let mut ended = Vec::new();
        self.queue.retain_mut(|pending| match pending.outlook(document, &heard) {
            Some(Outlook::Refused(error)) => {
                ended.push((pending.client, Err(error)));
                false
            }
            Some(Outlook::Done(reply)) => {
                pending.state = State::Decided { reply, epoch: document.epoch };
                true
            }
            Some(Outlook::Open(_)) | None => true,
        });
        ended
    }

    /// The successor of a document that has the first change that waits.
    pub(crate) fn next(
        &mut self,
        document: &ClusterDocument,
        heard: impl Fn(NodeId) -> Option<Introduced>,
    ) -> Option<ClusterDocument> {
        let outlooks = self.queue.iter_mut().filter_map(|pending| pending.outlook(document, &heard));
        outlooks.into_iter().find_map(|outlook| match outlook {
            Outlook::Open(next) => Some(*next),
            Outlook::Done(_) | Outlook::Refused(_) => None,
        })
    }

    /// Takes out what is over: decided and `everywhere`, or out of time.
    pub(crate) fn take_ended(&mut self, now: Duration, everywhere: impl Fn(Epoch) -> bool) -> Vec<Ended> {
        let mut ended = Vec::new();
        self.queue.retain_mut(|pending| {
            let outcome = match &pending.state {
                State::Decided { reply, epoch } if everywhere(*epoch) => Ok(reply.clone()),
                State::Decided { epoch, .. } if pending.deadline <= now => {
                    Err(ControlError::NotEverywhere { epoch: *epoch })
                }
                State::Waiting { .. } if pending.deadline <= now => Err(ControlError::InDoubt),
                State::Waiting { .. } | State::Decided { .. } => return true,
            };
            ended.push((pending.client, outcome));
            false
        });
        ended
    }
}

impl Pending {
    /// What a document means for the change; none if it is decided.
    fn outlook(
        &mut self,
        document: &ClusterDocument,
        heard: impl Fn(NodeId) -> Option<Introduced>,
    ) -> Option<Outlook> {
        let State::Waiting { target } = &mut self.state else { return None };
        Some(match &self.change {
            Change::CreateKeyspace(keyspace) => create(document, keyspace),
            Change::Readmit { node } => readmit(document, *node, target, heard(*node)),
        })
    }
}

fn invalid(fault: String) -> Outlook {
    Outlook::Refused(ControlError::Invalid(vec![fault]))
}

fn create(document: &ClusterDocument, new: &NewKeyspace) -> Outlook {
    let keyspace = match keyspace_of(new, &document.datacenters, &document.members) {
        Ok(keyspace) => keyspace,
        Err(faults) => return Outlook::Refused(ControlError::Invalid(faults)),
    };
    if let Some((id, existing)) = document.keyspace_named(&new.name) {
        return match *existing == keyspace {
            true => Outlook::Done(ControlReply::KeyspaceCreated { keyspace: id, epoch: document.epoch }),
            false => Outlook::Refused(ControlError::KeyspaceExists),
        };
    }
    let last = document.keyspaces.keys().next_back().map_or(0, |last| last.0);
    let Some(id) = last.checked_add(1).map(KeyspaceId) else {
        return invalid("no number is left for another keyspace".to_owned());
    };
    let mut next = document.successor();
    next.keyspaces.insert(id, keyspace);
    match next.validate() {
        Ok(()) => Outlook::Open(Box::new(next)),
        Err(faults) => {
            let faults = faults.iter().map(ToString::to_string).collect();
            Outlook::Refused(ControlError::Invalid(faults))
        }
    }
}

/// Records the store that is heard. A target that was proposed before counts as asked for, even if the node has
/// another disk again by now: that is another readmission.
fn readmit(
    document: &ClusterDocument,
    node: NodeId,
    target: &mut Option<Introduced>,
    heard: Option<Introduced>,
) -> Outlook {
    let Some(member) = document.members.get(&node) else {
        return invalid(format!("{node} is not a member"));
    };
    let recorded = (member.store, member.voter);
    if *target == Some(recorded) {
        return Outlook::Done(ControlReply::Readmitted { epoch: document.epoch });
    }
    match heard.or(*target) {
        None => invalid(format!("{node} is not heard, so its store is not known")),
        Some(heard) if heard == recorded => invalid(format!("{} of {node} is recorded already", heard.0)),
        Some((store, voter)) => {
            *target = Some((store, voter));
            let next = document.readmit(node, store, voter);
            match next.validate() {
                Ok(()) => Outlook::Open(Box::new(next)),
                Err(faults) => {
                    let faults = faults.iter().map(ToString::to_string).collect();
                    Outlook::Refused(ControlError::Invalid(faults))
                }
            }
        }
    }
}
