//! Changes of the document that were asked for at this node, from the request to the answer.
//!
//! A change waits for its round, and may have to wait for others': every document that is adopted in the meantime is
//! looked at anew, and may already be what was asked for. A change that stands in the document is answered when every
//! live member has that document, or when the time is up.

use std::{collections::VecDeque, time::Duration};

use client::wire::{ControlError, ControlReply, NewKeyspace};
use ring::{ClusterDocument, Epoch, KeyspaceId, NodeId, StoreId, VoterId};

use super::votes::is_later;
use crate::{
    event::{Change, ClientTag},
    formation::keyspace_of,
};

/// A node's store and memory of votes, as it names them in its hello.
pub(crate) type Introduced = (StoreId, VoterId);

/// How a node was last heard to introduce itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heard {
    pub(crate) introduced: Introduced,
    /// Whether that process has been heard to hold the present document. Otherwise it may be one from before the document,
    /// which then may know better what has become of the node.
    pub(crate) is_current: bool,
}

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
    /// No document has it as it is wanted by now. With a readmission, what was wanted last, if anything was.
    Waiting { wanted: Option<Wanted> },
    /// The document has it; with a readmission, as what it records the node.
    Decided { reply: ControlReply, epoch: Epoch, recorded: Option<Introduced> },
}

/// What a readmission is to record.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    target: Introduced,
    /// What the document recorded when this was wanted, and since which epoch: a store that was replaced may come back.
    over: (Introduced, Epoch),
    /// The document that it may have been proposed as. When another of that epoch is held, it has come or will not.
    epoch: Epoch,
}

/// What a document means for a change.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outlook {
    /// This successor would have it.
    Open(Box<ClusterDocument>),
    /// The document has it; with a readmission, as what it records the node.
    Done(ControlReply, Option<Introduced>),
    /// It is not known yet whether a document will have it.
    Unsettled,
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
        self.queue.push_back(Pending { client, deadline, change, state: State::Waiting { wanted: None } });
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
        heard: impl Fn(NodeId) -> Option<Heard>,
    ) -> Vec<Ended> {
        let mut ended = Vec::new();
        self.queue.retain_mut(|pending| match pending.outlook(document, &heard) {
            Some(Outlook::Refused(error)) => {
                ended.push((pending.client, Err(error)));
                false
            }
            Some(Outlook::Done(reply, recorded)) => {
                pending.state = State::Decided { reply, epoch: document.epoch, recorded };
                true
            }
            Some(Outlook::Open(_) | Outlook::Unsettled) | None => true,
        });
        ended
    }

    /// The successor of a document that has the first change that waits.
    pub(crate) fn next(
        &mut self,
        document: &ClusterDocument,
        heard: impl Fn(NodeId) -> Option<Heard>,
    ) -> Option<ClusterDocument> {
        let outlooks = self.queue.iter_mut().filter_map(|pending| pending.outlook(document, &heard));
        outlooks.into_iter().find_map(|outlook| match outlook {
            Outlook::Open(next) => Some(*next),
            Outlook::Done(..) | Outlook::Unsettled | Outlook::Refused(_) => None,
        })
    }

    /// Takes out what is over: decided and `everywhere`, or out of time. A readmission is over when the node itself is
    /// heard with the store that was recorded; if it has another by now, that one is to be recorded.
    pub(crate) fn take_ended(
        &mut self,
        now: Duration,
        heard: impl Fn(NodeId) -> Option<Heard>,
        everywhere: impl Fn(Epoch) -> bool,
    ) -> Vec<Ended> {
        let mut ended = Vec::new();
        self.queue.retain_mut(|pending| {
            let heard = match &pending.change {
                Change::Readmit { node } => heard(*node),
                Change::CreateKeyspace(_) => None,
            };
            if let State::Decided { epoch, recorded: Some(recorded), .. } = pending.state
                && pending.deadline > now
                && heard.is_some_and(|heard| heard.is_current && heard.introduced != recorded)
            {
                // It is recorded, so nothing depends on what was before.
                let over = (recorded, epoch);
                pending.state = State::Waiting { wanted: Some(Wanted { target: recorded, over, epoch }) };
                return true;
            }
            let is_heard_as = |recorded| heard.is_some_and(|heard| heard.introduced == recorded);
            let outcome = match &pending.state {
                State::Decided { reply, epoch, recorded }
                    if everywhere(*epoch) && recorded.is_none_or(is_heard_as) =>
                {
                    Ok(reply.clone())
                }
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
        heard: impl Fn(NodeId) -> Option<Heard>,
    ) -> Option<Outlook> {
        let State::Waiting { wanted } = &mut self.state else { return None };
        Some(match &self.change {
            Change::CreateKeyspace(keyspace) => create(document, keyspace),
            Change::Readmit { node } => readmit(document, *node, wanted, heard(*node)),
        })
    }
}

fn invalid(fault: String) -> Outlook {
    Outlook::Refused(ControlError::Invalid(vec![fault]))
}

/// A readmission that nothing is known of yet to record.
fn too_early(fault: String) -> Outlook {
    invalid(fault + "; wait until the node is up with its new disk, and try again")
}

fn create(document: &ClusterDocument, new: &NewKeyspace) -> Outlook {
    let keyspace = match keyspace_of(new, &document.datacenters, &document.members) {
        Ok(keyspace) => keyspace,
        Err(faults) => return Outlook::Refused(ControlError::Invalid(faults)),
    };
    if let Some((id, existing)) = document.keyspace_named(&new.name) {
        return match *existing == keyspace {
            true => {
                Outlook::Done(ControlReply::KeyspaceCreated { keyspace: id, epoch: document.epoch }, None)
            }
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

/// Records the node as it is heard. It is done when the document does so, whoever's change that was: of two that ask for
/// the same, one is proposed first.
fn readmit(
    document: &ClusterDocument,
    node: NodeId,
    wanted: &mut Option<Wanted>,
    heard: Option<Heard>,
) -> Outlook {
    let Some(member) = document.members.get(&node) else {
        return invalid(format!("{node} is not a member"));
    };
    let recorded = (member.store, member.voter);
    let over = (recorded, member.recorded);
    let done = Outlook::Done(ControlReply::Readmitted { epoch: document.epoch }, Some(recorded));
    let target = match (heard, *wanted) {
        (None, None) => return too_early(format!("{node} is not heard, so its store is not known")),
        (None, Some(wanted)) if wanted.target == recorded => return done,
        (None, Some(wanted)) if wanted.over == over => wanted.target,
        // Another change has recorded yet another, and only the node can say which is the later one.
        (None, Some(_)) => return Outlook::Unsettled,
        (Some(heard), None) if heard.introduced == recorded => {
            return too_early(format!("{} of {node} is recorded already", recorded.0));
        }
        (Some(heard), Some(wanted)) if heard.introduced == recorded => {
            // Another may have been proposed, and may yet be recorded.
            return if document.epoch >= wanted.epoch { done } else { Outlook::Unsettled };
        }
        // The document has come here before the node's own word.
        (Some(Heard { introduced: (store, voter), .. }), wanted)
            if store == recorded.0 && is_later(recorded.1, voter) =>
        {
            return match wanted {
                Some(_) => Outlook::Unsettled,
                None => too_early(format!("{node} is recorded as it has become since it was heard last")),
            };
        }
        (Some(heard), _) if !heard.is_current => return Outlook::Unsettled,
        (Some(heard), _) => heard.introduced,
    };
    let next = document.readmit(node, target.0, target.1);
    let before = wanted.replace(Wanted { target, over, epoch: next.epoch });
    match next.validate() {
        Ok(()) => Outlook::Open(Box::new(next)),
        // What was wanted before may have been proposed, and be decided yet.
        Err(_) if before.is_some() => {
            *wanted = before;
            Outlook::Unsettled
        }
        Err(faults) => {
            let faults = faults.iter().map(ToString::to_string).collect();
            Outlook::Refused(ControlError::Invalid(faults))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ring::{ClusterId, Datacenter, DatacenterId, Member, Partitions, RackId};

    use super::*;

    const NODE: NodeId = NodeId(2);
    const NOW: Duration = Duration::from_secs(1);
    const DEADLINE: Duration = Duration::from_secs(9);

    fn introduced(number: u64) -> Introduced {
        (StoreId(number), VoterId(number))
    }

    /// Heard by a process that holds the present document.
    fn heard(number: u64) -> Option<Heard> {
        heard_as(introduced(number))
    }

    fn heard_as(introduced: Introduced) -> Option<Heard> {
        Some(Heard { introduced, is_current: true })
    }

    fn document() -> ClusterDocument {
        let members = (1..=3).map(|id| {
            let member = Member::new(StoreId(id), format!("n{id}:1"), DatacenterId(0), RackId(0), 100);
            (NodeId(u32::try_from(id).unwrap()), member)
        });
        let members: BTreeMap<NodeId, Member> = members.collect();
        let (partitions, datacenters) = (Partitions::new(1).unwrap(), vec![Datacenter::new("local", ["r"])]);
        ClusterDocument::founding(ClusterId(1), partitions, datacenters, members, BTreeMap::new()).unwrap()
    }

    fn readmission() -> Changes {
        let mut changes = Changes::new();
        changes.push(ClientTag(1), Change::Readmit { node: NODE }, DEADLINE);
        changes
    }

    /// The simulator's seed 5505036: the node had yet another disk by then, and was reported as readmitted.
    #[test]
    fn a_readmission_is_over_when_the_node_is_heard_with_what_was_recorded() {
        let (mut changes, first) = (readmission(), document());
        let next = changes.next(&first, |_| heard(12)).expect("another store than the recorded one");
        assert!(changes.review(&next, |_| heard(12)).is_empty());
        assert!(
            changes.take_ended(NOW, |_| None, |_| true).is_empty(),
            "the node has not said that it has it"
        );
        assert!(changes.take_ended(NOW, |_| heard(13), |_| true).is_empty());
        assert!(changes.is_waiting(), "it has another by now, which is to be recorded");
        let next = changes.next(&next, |_| heard(13)).expect("that one");
        assert_eq!(next.members[&NODE].store, StoreId(13));
        assert!(changes.review(&next, |_| heard(13)).is_empty());
        assert!(changes.take_ended(NOW, |_| heard(13), |_| false).is_empty(), "others lack it");
        let ended = changes.take_ended(NOW, |_| heard(13), |_| true);
        assert_eq!(ended, [(ClientTag(1), Ok(ControlReply::Readmitted { epoch: next.epoch }))]);
    }

    #[test]
    fn a_readmission_of_a_node_that_is_not_heard_again_is_not_reported_as_done() {
        let (mut changes, first) = (readmission(), document());
        let next = changes.next(&first, |_| heard(12)).expect("another store than the recorded one");
        assert!(changes.review(&next, |_| None).is_empty());
        let ended = changes.take_ended(DEADLINE, |_| None, |_| true);
        assert_eq!(ended, [(ClientTag(1), Err(ControlError::NotEverywhere { epoch: next.epoch }))]);
    }

    /// Others may have accepted the proposal, and finish it.
    #[test]
    fn a_readmission_that_was_proposed_is_in_doubt_though_the_recorded_store_is_back() {
        let (mut changes, first) = (readmission(), document());
        assert!(changes.next(&first, |_| heard(12)).is_some());
        let recorded = first.members[&NODE].store;
        let voter = first.members[&NODE].voter;
        assert!(changes.review(&first, |_| heard_as((recorded, voter))).is_empty(), "nobody knows");
        assert!(changes.next(&first, |_| heard_as((recorded, voter))).is_none());
        let ended = changes.take_ended(DEADLINE, |_| heard_as((recorded, voter)), |_| true);
        assert_eq!(ended, [(ClientTag(1), Err(ControlError::InDoubt))]);
    }

    /// The simulator's seed 60002781: the node had broken off its memory of votes twice. Its second name was recorded by
    /// another node's change; one that had heard the first name only made that the recorded one again, and the node could
    /// not vote.
    #[test]
    fn a_readmission_does_not_bring_a_former_memory_of_votes_back() {
        let first = document();
        let store = first.members[&NODE].store;
        let heard = |voter| move |_| heard_as((store, VoterId(voter)));
        let second = first.readmit(NODE, store, VoterId(20));
        let ended = readmission().review(&second, heard(15));
        assert!(matches!(&ended[..], [(_, Err(ControlError::Invalid(_)))]), "{ended:?}");
        let mut changes = readmission();
        assert!(changes.next(&first, heard(15)).is_some());
        assert!(
            changes.review(&second, heard(15)).is_empty(),
            "it was proposed before, and may be recorded yet"
        );
        assert!(changes.next(&second, heard(15)).is_none());
        assert!(changes.next(&second, heard(25)).is_some(), "a later one is another matter");
    }

    /// Another administrator asked for the same, at another node.
    #[test]
    fn a_readmission_is_done_when_another_has_recorded_what_is_heard() {
        let (mut changes, first) = (readmission(), document());
        assert!(changes.next(&first, |_| heard(12)).is_some());
        // It was decided, the node had another disk at once, and another's change recorded that one: this node was
        // told of the last document alone.
        let (second_store, second_voter) = introduced(13);
        let third = first.readmit(NODE, StoreId(12), VoterId(12)).readmit(NODE, second_store, second_voter);
        assert!(changes.review(&third, |_| heard(13)).is_empty());
        let ended = changes.take_ended(NOW, |_| heard(13), |_| true);
        assert_eq!(ended, [(ClientTag(1), Ok(ControlReply::Readmitted { epoch: third.epoch }))]);
    }

    #[test]
    fn a_readmission_that_was_decided_is_not_refused_when_another_has_recorded_a_later_disk() {
        let (mut changes, first) = (readmission(), document());
        let second = changes.next(&first, |_| heard(12)).unwrap();
        assert!(changes.review(&second, |_| heard(12)).is_empty());
        assert!(changes.take_ended(NOW, |_| heard(13), |_| true).is_empty());
        assert!(changes.is_waiting());
        let third = second.readmit(NODE, StoreId(13), VoterId(13));
        assert!(changes.review(&third, |_| heard(13)).is_empty());
        let ended = changes.take_ended(NOW, |_| heard(13), |_| true);
        assert_eq!(ended, [(ClientTag(1), Ok(ControlReply::Readmitted { epoch: third.epoch }))]);
    }

    /// A disk that was replaced is not recorded again because this node has not heard of the new one yet.
    #[test]
    fn a_readmission_records_no_disk_from_before_the_document() {
        let stale = |_: NodeId| Some(Heard { introduced: introduced(12), is_current: false });
        let (mut changes, first) = (readmission(), document());
        let second = first.readmit(NODE, StoreId(13), VoterId(13));
        assert!(
            changes.review(&second, stale).is_empty(),
            "it may come to hold the document, and then be recorded"
        );
        assert!(changes.next(&second, stale).is_none());
        assert!(changes.next(&second, |_| heard(12)).is_some());
        // Wanted before, and the node is not heard.
        let mut changes = readmission();
        assert!(changes.next(&first, |_| heard(12)).is_some());
        assert!(changes.review(&second, |_| None).is_empty());
        assert!(changes.next(&second, |_| None).is_none());
        let back = second.readmit(NODE, first.members[&NODE].store, first.members[&NODE].voter);
        assert!(changes.next(&back, |_| None).is_none(), "the first disk is back, and has been away");
        let unrelated = first.successor();
        assert!(changes.next(&unrelated, |_| None).is_some(), "no other has recorded it meanwhile");
    }

    #[test]
    fn a_readmission_of_what_is_recorded_is_refused_at_once() {
        let (mut changes, first) = (readmission(), document());
        let member = &first.members[&NODE];
        let ended = changes.review(&first, |_| heard_as((member.store, member.voter)));
        let said = |ended: &[Ended]| match ended {
            [(ClientTag(1), Err(ControlError::Invalid(faults)))] => faults.join(", "),
            other => panic!("{other:?}"),
        };
        let expected = "store-0000000000000002 of node-2 is recorded already; wait until the node is up with its new disk, \
                        and try again";
        assert_eq!(said(&ended), expected);
        let ended = readmission().review(&first, |_| None);
        let expected = "node-2 is not heard, so its store is not known; wait until the node is up with its new disk, and \
                        try again";
        assert_eq!(said(&ended), expected);
        let mut stranger = Changes::new();
        stranger.push(ClientTag(1), Change::Readmit { node: NodeId(9) }, DEADLINE);
        assert_eq!(said(&stranger.review(&first, |_| None)), "node-9 is not a member");
    }
}
