//! P7: durable means durable.
//!
//! When a write of durability `disk` is acknowledged, as many of the first n as its level requires hold it on disk, by
//! inspection of the disks at that moment. A replica whose synced data was damaged since the write began counts as one
//! that held it: it may have, when it acknowledged.

use client::{Operation, Required};
use ring::{Durability, NodeId};

use crate::history::{Acknowledgement, History, Write};

/// The acknowledgements that came too early.
pub(crate) fn check(history: &History) -> Vec<String> {
    let mut early = Vec::new();
    for (index, write) in history.writes.iter().enumerate() {
        if write.durability != Durability::Disk {
            continue;
        }
        for (_, acknowledgement) in write.acknowledgements() {
            let Some(holders) = &acknowledgement.holders else { continue };
            if !suffice(history, write, acknowledgement, holders) {
                early.push(format!(
                    "write {index} at {:?} was acknowledged when {holders:?} held it",
                    write.level
                ));
            }
        }
    }
    early
}

/// Whether those who held the version are as many as its level requires.
fn suffice(history: &History, write: &Write, by: &Acknowledgement, holders: &[NodeId]) -> bool {
    let was_damaged = |node: NodeId| {
        let damages = history.damages.iter();
        damages
            .filter(|damage| damage.on_disk && damage.at >= write.began())
            .any(|damage| damage.node == node)
    };
    let copies = history.copies(write.key, write.n);
    let counted: Vec<NodeId> = history
        .replicas(write.key, write.n)
        .filter(|node| holders.contains(node) || was_damaged(*node))
        .collect();
    let datacenter = |node: &NodeId| history.document.members[node].datacenter;
    match history.required(write.level, Operation::Write, &copies, by.coordinator) {
        None => false,
        Some(Required::Anywhere(required)) => counted.len() >= usize::from(required),
        Some(Required::In(required)) => required.iter().all(|(name, required)| {
            counted.iter().filter(|node| datacenter(node) == *name).count() >= usize::from(*required)
        }),
    }
}

#[cfg(test)]
mod tests {
    use ring::ConflictPolicy;

    use super::*;
    use crate::{checkers::story::Story, history::Damage, schedule::Moment};

    #[test]
    fn a_quorum_of_disks_holds_what_a_quorum_acknowledged() {
        let mut story = Story::new(ConflictPolicy::Siblings);
        let a = story.put(1, 2);
        story.held_by(a, &[1, 3]);
        assert!(check(&story.history).is_empty());
        story.held_by(a, &[3]);
        assert_eq!(check(&story.history).len(), 1);
        story.history.damages.push(Damage { node: NodeId(1), at: Moment(2), on_disk: true });
        assert!(check(&story.history).is_empty(), "it held it, and lost it since");
    }

    #[test]
    fn only_the_first_n_count() {
        let mut story = Story::new(ConflictPolicy::Siblings);
        let a = story.put(1, 2);
        story.held_by(a, &[1, 2, 3]);
        story.history.writes[a.0].n = Some(1);
        assert!(check(&story.history).is_empty());
        let first = story.history.replicas(story.history.writes[a.0].key, Some(1)).next().unwrap().0;
        let others: Vec<u32> = (1..=3).filter(|node| *node != first).collect();
        story.held_by(a, &others);
        assert_eq!(check(&story.history).len(), 1);
    }
}
