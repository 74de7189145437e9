//! One document of each epoch, whoever looks, whenever: no node ever adopts, or has stored, another one. And each
//! document is the one before it with one change, which somebody asked for.
//!
//! Nothing is excused but runs that go beyond the promises: there, more voters than a majority can spare may forget how
//! they voted.

use node::Change;
use ring::{ClusterDocument, NodeId};

use crate::history::History;

/// Where documents disagree or come from nowhere.
pub(crate) fn check(history: &History) -> Vec<String> {
    if history.beyond_the_promise {
        return Vec::new();
    }
    let mut wrong = Vec::new();
    let seen = &history.documents;
    for (index, later) in seen.iter().enumerate() {
        for earlier in &seen[..index] {
            if later.document.cluster != earlier.document.cluster {
                wrong.push(format!(
                    "{} has {} at {}, and {} had {}",
                    later.node, later.document.cluster, later.at, earlier.node, earlier.document.cluster
                ));
            } else if later.document.epoch == earlier.document.epoch {
                wrong.push(format!(
                    "{} of {} at {} is not the one of {} at {}",
                    later.document.epoch, later.node, later.at, earlier.node, earlier.at
                ));
            } else if earlier.document.epoch.next() == later.document.epoch {
                wrong.extend(unexplained(history, &earlier.document, &later.document));
            } else if later.document.epoch.next() == earlier.document.epoch {
                wrong.extend(unexplained(history, &later.document, &earlier.document));
            }
        }
    }
    wrong
}

/// Why a document is not the one before it with one change that was asked for; none if it is.
fn unexplained(history: &History, before: &ClusterDocument, after: &ClusterDocument) -> Option<String> {
    let added: Vec<_> = after.keyspaces.iter().filter(|(id, _)| !before.keyspaces.contains_key(id)).collect();
    let changed: Vec<NodeId> = after
        .members
        .iter()
        .filter(|(node, member)| before.members.get(node) != Some(member))
        .map(|(node, _)| *node)
        .collect();
    let was_asked_for = |change: &Change| match (change, &added[..], &changed[..]) {
        (Change::CreateKeyspace(new), [(_, keyspace)], []) => new.name == keyspace.name,
        (Change::Readmit { node }, [], [changed]) => node == changed,
        _ => false,
    };
    let mut expected = match changed.first() {
        Some(node) => before.readmit(*node, after.members[node].store, after.members[node].voter),
        None => before.successor(),
    };
    expected.keyspaces.extend(added.iter().map(|(id, keyspace)| (**id, (*keyspace).clone())));
    let is_sound = expected == *after && history.changes.iter().any(|request| was_asked_for(&request.change));
    (!is_sound).then(|| format!("{} is not {} with one change that was asked for", after.epoch, before.epoch))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ring::{ClusterId, ConflictPolicy, StoreId, VoterId};

    use super::*;
    use crate::{
        checkers::story::Story,
        history::{ChangeOutcome, ChangeRequest, SeenDocument},
        schedule::Moment,
    };

    fn see(story: &mut Story, node: u32, document: &ClusterDocument) {
        let (digest, document) = (document.digest(), Arc::new(document.clone()));
        let at = Moment(story.history.documents.len() as u64);
        story.history.documents.push(SeenDocument { node: NodeId(node), at, digest, document });
    }

    fn ask(story: &mut Story, change: Change) {
        let (sent, ended, outcome) = (Moment(0), Moment(1), ChangeOutcome::Unknown);
        story.history.changes.push(ChangeRequest { node: NodeId(1), change, sent, ended, outcome });
    }

    #[test]
    fn two_documents_of_one_epoch_are_found() {
        let mut story = Story::new(ConflictPolicy::Siblings);
        let founding = ClusterDocument::clone(&story.history.document);
        ask(&mut story, Change::Readmit { node: NodeId(2) });
        ask(&mut story, Change::Readmit { node: NodeId(3) });
        see(&mut story, 1, &founding);
        see(&mut story, 1, &founding.readmit(NodeId(2), StoreId(12), VoterId(12)));
        assert_eq!(check(&story.history), Vec::<String>::new());
        see(&mut story, 3, &founding.readmit(NodeId(3), StoreId(13), VoterId(13)));
        assert_eq!(check(&story.history).len(), 1);
    }

    #[test]
    fn two_clusters_are_found() {
        let mut story = Story::new(ConflictPolicy::Siblings);
        let mut founding = ClusterDocument::clone(&story.history.document);
        see(&mut story, 1, &founding);
        founding.cluster = ClusterId(2);
        see(&mut story, 2, &founding);
        assert_eq!(check(&story.history).len(), 1);
        story.history.beyond_the_promise = true;
        assert!(check(&story.history).is_empty());
    }

    #[test]
    fn a_change_that_nobody_asked_for_is_found() {
        let mut story = Story::new(ConflictPolicy::Siblings);
        let founding = ClusterDocument::clone(&story.history.document);
        see(&mut story, 1, &founding.readmit(NodeId(2), StoreId(12), VoterId(12)));
        see(&mut story, 1, &founding);
        assert_eq!(check(&story.history).len(), 1);
        ask(&mut story, Change::Readmit { node: NodeId(2) });
        assert!(check(&story.history).is_empty());
        let mut next = founding.successor().successor();
        next.keyspaces.clear();
        see(&mut story, 1, &next);
        assert_eq!(check(&story.history).len(), 1, "a keyspace is gone");
    }
}
