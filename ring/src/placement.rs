//! Placements: the preference lists of one datacenter, and what it takes to get from one placement to another.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{Epoch, NodeId, PartitionId};

/// The most copies of a key that any request may ask for in one datacenter, and so the longest prefix of a
/// preference list that can be replicas. Seven survives three failures at once under a majority.
pub const REPLICAS_MAX: usize = 7;

/// Entries of a preference list beyond the most replicas there can be. With two, a sloppy write at n = 7 still finds
/// nodes to hold its hints while two replicas are down.
pub const FALLBACKS: usize = 2;

/// The longest preference list. A datacenter with fewer nodes has shorter ones.
pub const LIST_MAX: usize = REPLICAS_MAX + FALLBACKS;

/// One entry of a preference list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The node.
    pub node: NodeId,
    /// The epoch at which it gained the partition: came among the first [`REPLICAS_MAX`], or, for a fallback, among
    /// the fallbacks. A node that lost a partition and gained it again is not the owner it was, and its old
    /// acknowledgements do not count.
    pub gained: Epoch,
}

/// The preference lists of one datacenter, one for each partition, all of one length.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "PlacementFields")]
pub struct Placement {
    /// Entries to a list.
    width: usize,
    /// The lists, one after the other, in the order of their partitions.
    owners: Vec<Owner>,
}

/// A placement as it is stored, before anyone has looked whether its lists are whole.
#[derive(Deserialize)]
struct PlacementFields {
    width: usize,
    owners: Vec<Owner>,
}

/// The entries of a placement do not make up whole lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{owners} entries do not make up whole lists of {width}")]
pub struct BadPlacement {
    /// Entries to a list.
    pub width: usize,
    /// Entries in all.
    pub owners: usize,
}

/// What changes about one partition between two placements: the copies that have to be made, and those that may then
/// be dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// The partition.
    pub partition: PartitionId,
    /// The nodes that become replicas, in the order of the new list.
    pub gained: Vec<NodeId>,
    /// The nodes that cease to be replicas, in the order of the old list.
    pub lost: Vec<NodeId>,
}

impl Placement {
    /// A placement from its lists laid end to end, `width` entries each.
    ///
    /// # Panics
    ///
    /// If the entries do not make up whole lists.
    #[must_use]
    pub fn new(width: usize, owners: Vec<Owner>) -> Placement {
        match Placement::try_from(PlacementFields { width, owners }) {
            Ok(placement) => placement,
            Err(bad) => panic!("{bad}"),
        }
    }

    /// The preference list of `partition`, best first; empty if the placement does not reach that far.
    #[must_use]
    pub fn list(&self, partition: PartitionId) -> &[Owner] {
        let start = usize::from(partition.0) * self.width;
        self.owners.get(start..start + self.width).unwrap_or(&[])
    }

    /// The first `n` of the preference list of `partition`, or all of it where it is shorter: the replicas.
    #[must_use]
    pub fn replicas(&self, partition: PartitionId, n: usize) -> &[Owner] {
        let list = self.list(partition);
        &list[..n.min(list.len())]
    }

    /// Entries to a list.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// How many lists there are; 0 where there is no node to put on one.
    #[must_use]
    pub fn lists(&self) -> usize {
        self.owners.len().checked_div(self.width).unwrap_or(0)
    }

    /// Every entry of every list, list after list.
    #[must_use]
    pub fn owners(&self) -> &[Owner] {
        &self.owners
    }

    /// What has to move for `next` to take this placement's place, where `n` copies of each key are kept. The order
    /// within a prefix is no matter of movement: a node that is a replica in both has its copy.
    #[must_use]
    pub fn moves_to(&self, next: &Placement, n: usize) -> Vec<Move> {
        let lists = self.lists().max(next.lists());
        let partitions =
            (0..lists).map(|index| PartitionId(u16::try_from(index).expect("at most 65,536 lists")));
        partitions.filter_map(|partition| self.move_to(next, partition, n)).collect()
    }

    /// What has to move for one partition, if anything does.
    fn move_to(&self, next: &Placement, partition: PartitionId, n: usize) -> Option<Move> {
        let (before, after) = (self.replicas(partition, n), next.replicas(partition, n));
        let missing_from = |there: &[Owner], here: &[Owner]| -> Vec<NodeId> {
            let is_there = |node| there.iter().any(|owner| owner.node == node);
            here.iter().map(|owner| owner.node).filter(|node| !is_there(*node)).collect()
        };
        let (gained, lost) = (missing_from(before, after), missing_from(after, before));
        (!gained.is_empty() || !lost.is_empty()).then_some(Move { partition, gained, lost })
    }
}

impl TryFrom<PlacementFields> for Placement {
    type Error = BadPlacement;

    fn try_from(PlacementFields { width, owners }: PlacementFields) -> Result<Placement, BadPlacement> {
        let is_whole = if width == 0 { owners.is_empty() } else { owners.len().is_multiple_of(width) };
        // The bound keeps every later product of a width and a partition far from overflow.
        if !is_whole || width > LIST_MAX {
            return Err(BadPlacement { width, owners: owners.len() });
        }
        Ok(Placement { width, owners })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A placement with one list for each of the given rows.
    fn placement(lists: &[&[u32]]) -> Placement {
        let owner = |node: &u32| Owner { node: NodeId(*node), gained: Epoch(1) };
        Placement::new(lists[0].len(), lists.iter().flat_map(|list| list.iter().map(owner)).collect())
    }

    #[test]
    fn order_within_the_replicas_is_no_movement_but_a_change_of_the_set_is() {
        let before = placement(&[&[1, 2, 3, 4], &[2, 3, 4, 1]]);
        let after = placement(&[&[3, 1, 2, 4], &[2, 3, 1, 4]]);
        let expected = Move { partition: PartitionId(1), gained: vec![NodeId(1)], lost: vec![NodeId(4)] };
        assert_eq!(before.moves_to(&after, 3), [expected]);
        assert_eq!(before.moves_to(&after, 4), []);
    }

    #[test]
    fn everything_moves_to_a_first_placement() {
        let moves = Placement::default().moves_to(&placement(&[&[1, 2], &[2, 1]]), 1);
        let gained: Vec<_> = moves.iter().flat_map(|change| change.gained.clone()).collect();
        assert_eq!(gained, [NodeId(1), NodeId(2)]);
        assert!(moves.iter().all(|change| change.lost.is_empty()));
    }

    #[test]
    fn a_list_that_is_not_there_is_empty() {
        let placement = placement(&[&[1, 2]]);
        assert_eq!(placement.list(PartitionId(1)), []);
        assert_eq!(placement.replicas(PartitionId(0), 9).len(), 2);
        assert_eq!(Placement::default().list(PartitionId(u16::MAX)), []);
    }

    #[test]
    #[should_panic(expected = "3 entries do not make up whole lists of 2")]
    fn half_a_list_is_refused() {
        let owner = Owner { node: NodeId(1), gained: Epoch(1) };
        let _ = Placement::new(2, vec![owner; 3]);
    }
}
