//! A change that was answered as done is in every later document; and when the creation of a keyspace is answered, every
//! live member knows the keyspace.
//!
//! Live is who counts as up at the node that answers; left out are machines whose store is not the recorded one, or
//! went back in time. A change that was decided and did not reach every live member in time is in every later document
//! all the same.

use client::wire::{ControlError, ControlReply, NewKeyspace};
use node::Change;
use ring::{ClusterDocument, DatacenterId, Epoch, NodeId};

use crate::history::{ChangeOutcome, ChangeRequest, History};

/// The changes that are gone, and those that did not hold everywhere.
pub(crate) fn check(history: &History) -> Vec<String> {
    if history.beyond_the_promise {
        return Vec::new();
    }
    let mut wrong = history.unusable.clone();
    for (number, request) in history.changes.iter().enumerate() {
        let Some(epoch) = decided_at(&request.outcome) else { continue };
        let later = history.documents.iter().filter(|seen| seen.document.epoch >= epoch);
        for seen in later {
            let document = &seen.document;
            let holds = match &request.change {
                Change::CreateKeyspace(new) => has_keyspace(document, new, &request.outcome),
                // A later document may record yet another store. Without the node's own word that it has the store
                // that was recorded, nobody was told that the node is readmitted.
                Change::Readmit { node } => {
                    let is_done = matches!(request.outcome, ChangeOutcome::Done(_));
                    !is_done
                        || document.epoch != epoch
                        || records_a_store_of(history, document, *node, request)
                }
            };
            if !holds {
                wrong.push(format!(
                    "{} of {} does not have change {number} ({:?}), which was decided at {epoch}",
                    document.epoch, seen.node, request.change
                ));
            }
        }
    }
    wrong
}

/// Since when a change is said to stand in the document.
fn decided_at(outcome: &ChangeOutcome) -> Option<Epoch> {
    match outcome {
        ChangeOutcome::Done(
            ControlReply::KeyspaceCreated { epoch, .. } | ControlReply::Readmitted { epoch },
        )
        | ChangeOutcome::Failed(ControlError::NotEverywhere { epoch }) => Some(*epoch),
        ChangeOutcome::Done(_) | ChangeOutcome::Failed(_) | ChangeOutcome::Unknown => None,
    }
}

fn has_keyspace(document: &ClusterDocument, new: &NewKeyspace, outcome: &ChangeOutcome) -> bool {
    let Some((id, keyspace)) = document.keyspace_named(&new.name) else { return false };
    let is_same_id = match outcome {
        ChangeOutcome::Done(ControlReply::KeyspaceCreated { keyspace, .. }) => *keyspace == id,
        _ => true,
    };
    let copies = |(index, datacenter): (DatacenterId, &ring::Datacenter)| {
        new.replication.get(&datacenter.name) == keyspace.replication.get(&index)
    };
    let mut datacenters = (0..).map(DatacenterId).zip(&document.datacenters);
    is_same_id
        && keyspace.conflict == new.conflict
        && keyspace.durability == new.durability
        && (new.replication.is_empty() || datacenters.all(copies))
}

/// Whether the store that a document records for a node is one that the node had between the question and the answer.
fn records_a_store_of(
    history: &History,
    document: &ClusterDocument,
    node: NodeId,
    request: &ChangeRequest,
) -> bool {
    let Some(member) = document.members.get(&node) else { return false };
    let of_node: Vec<_> = history.stores.iter().filter(|(of, ..)| *of == node).collect();
    of_node.iter().enumerate().any(|(index, (_, since, store))| {
        let until = of_node.get(index + 1).map(|(_, until, _)| *until);
        *store == member.store && *since <= request.ended && until.is_none_or(|until| until >= request.sent)
    })
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use ring::{ConflictPolicy, Durability, Keyspace, KeyspaceId, StoreId, VoterId};

    use super::*;
    use crate::{checkers::story::Story, history::SeenDocument, schedule::Moment};

    fn new() -> NewKeyspace {
        NewKeyspace {
            name: "made".to_owned(),
            replication: BTreeMap::from([("ams".to_owned(), 3)]),
            conflict: ConflictPolicy::Siblings,
            durability: Durability::Disk,
        }
    }

    fn see(story: &mut Story, document: &ClusterDocument) {
        let (digest, document) = (document.digest(), Arc::new(document.clone()));
        story.history.documents.push(SeenDocument { node: NodeId(1), at: Moment(9), digest, document });
    }

    fn answer(story: &mut Story, change: Change, outcome: ChangeOutcome) {
        let (node, sent, ended) = (NodeId(1), Moment(5), Moment(6));
        story.history.changes.push(ChangeRequest { node, change, sent, ended, outcome });
    }

    #[test]
    fn a_keyspace_that_was_created_stays() {
        let mut story = Story::new(ConflictPolicy::Siblings);
        let founding = ClusterDocument::clone(&story.history.document);
        let mut made = founding.successor();
        let keyspace = Keyspace::new("made", 3, ConflictPolicy::Siblings, Durability::Disk);
        made.keyspaces.insert(KeyspaceId(2), keyspace);
        see(&mut story, &founding);
        see(&mut story, &made);
        let epoch = Epoch(2);
        let created = ControlReply::KeyspaceCreated { keyspace: KeyspaceId(2), epoch };
        answer(&mut story, Change::CreateKeyspace(new()), ChangeOutcome::Done(created));
        let late = ControlError::NotEverywhere { epoch };
        answer(&mut story, Change::CreateKeyspace(new()), ChangeOutcome::Failed(late));
        answer(&mut story, Change::CreateKeyspace(new()), ChangeOutcome::Failed(ControlError::InDoubt));
        assert_eq!(check(&story.history), Vec::<String>::new());
        see(&mut story, &founding.successor());
        assert_eq!(check(&story.history).len(), 2, "it is gone, and both were told that it was decided");
    }

    #[test]
    fn a_readmission_records_a_store_that_the_node_had() {
        let mut story = Story::new(ConflictPolicy::Siblings);
        let (node, store) = (NodeId(2), StoreId(12));
        story.history.stores = vec![(node, Moment(0), StoreId(2)), (node, Moment(4), store)];
        let readmitted = story.history.document.readmit(node, store, VoterId(12));
        see(&mut story, &readmitted);
        let readmitted = ControlReply::Readmitted { epoch: Epoch(2) };
        answer(&mut story, Change::Readmit { node }, ChangeOutcome::Done(readmitted));
        assert!(check(&story.history).is_empty());
        story.history.stores[1].2 = StoreId(13);
        assert_eq!(check(&story.history).len(), 1);
    }
}
