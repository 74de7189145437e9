//! P7: durable means durable.
//!
//! When a write of durability `disk` is acknowledged, as many of the first n as its level requires hold it on disk, by
//! inspection of the disks at that moment. A replica whose synced data was damaged since the write began counts as one
//! that held it: it may have, when it acknowledged. So does one that had synced what supersedes the write, and whose disk
//! has lost that without a word: it need not look again. So many nodes as stood in for replicas may be others.

use client::{Operation, Required};
use ring::{DatacenterId, Durability, NodeId};

use crate::history::{Acknowledgement, History, Write, dot};

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
        let mut damages = history.damages.iter();
        damages.any(|damage| damage.node == node && damage.on_disk && damage.at >= write.began())
    };
    // The simulator's seed 1021975282690801441: a later version was there, in the cache, and rotten on disk.
    let has_superseded = |node: NodeId| {
        let mut losses = history.losses.iter().filter(|loss| loss.node == node && loss.key == write.key);
        by.version.is_some_and(|version| {
            losses.any(|loss| loss.durability == Durability::Disk && loss.before.covers(dot(version)))
        })
    };
    let copies = history.copies(write.key, write.n);
    let is_replica = |node: &NodeId| history.replicas(write.key, write.n).any(|replica| replica == *node);
    let held = |node: &NodeId| holders.contains(node) || was_damaged(*node) || has_superseded(*node);
    let (replicas, others): (Vec<NodeId>, Vec<NodeId>) =
        history.document.members.keys().copied().filter(held).partition(is_replica);
    let is_in = |datacenter: DatacenterId| {
        move |node: &&NodeId| history.document.members[node].datacenter == datacenter
    };
    // So many are lacking, and so many others may have stood in for them.
    let lacking = |required: u8, replicas: usize, others: usize| {
        let lacking = usize::from(required).saturating_sub(replicas);
        (lacking, lacking <= others)
    };
    let groups: Vec<(usize, bool)> =
        match history.required(write.level, Operation::Write, &copies, by.coordinator) {
            None => return false,
            Some(Required::Anywhere(required)) => vec![lacking(required, replicas.len(), others.len())],
            Some(Required::In(required)) => required
                .iter()
                .map(|&(name, required)| {
                    let count = |nodes: &[NodeId]| nodes.iter().filter(is_in(name)).count();
                    lacking(required, count(&replicas), count(&others))
                })
                .collect(),
        };
    let all: usize = groups.iter().map(|(lacking, _)| lacking).sum();
    all <= usize::from(by.stood_in) && groups.iter().all(|(_, are_enough)| *are_enough)
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
    fn a_node_that_held_what_supersedes_a_write_need_not_look_whether_its_disk_still_does() {
        let mut story = Story::new(ConflictPolicy::LastWriteWins);
        let a = story.put(5, 6);
        let later = story.put(3, 4);
        story.held_by(a, &[3]);
        story.held_by(later, &[1, 2, 3]);
        assert_eq!(check(&story.history).len(), 1);
        story.loses(4, Durability::Memory, &[later], &[]);
        assert_eq!(check(&story.history).len(), 1, "that was not lost on disk");
        story.loses(4, Durability::Disk, &[later], &[]);
        assert!(check(&story.history).is_empty());
        let mut story = Story::new(ConflictPolicy::LastWriteWins);
        let earlier = story.put(3, 4);
        let a = story.put(5, 6);
        story.held_by(earlier, &[1, 2, 3]);
        story.held_by(a, &[3]);
        story.loses(4, Durability::Disk, &[earlier], &[]);
        assert_eq!(check(&story.history).len(), 1, "what was lost does not supersede it");
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
        story.stood_in(a, 1);
        assert!(check(&story.history).is_empty(), "one of the others stood in for it");
    }
}
