//! What both sides number alike: the buckets of all trees that they have in common.

use std::collections::BTreeMap;

use ring::PartitionId;

use super::{Replica, Span, TreeId, TreeKind, message::Levels};
use crate::hash_tree::Sum;

/// Buckets of an exchange at most, roughly: what a sketch of them takes has to be bounded. More keys make them larger.
const BUCKETS_MAX: u64 = 1 << 18;

/// The trees, and where the numbers of their buckets begin.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    partition_bits: u8,
    trees: Vec<Planned>,
    buckets: u64,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Planned {
    pub(super) tree: TreeId,
    /// How many buckets it has, as a power of two.
    pub(super) bits: u8,
    /// The number of its first bucket.
    pub(super) first: u64,
}

impl Levels {
    /// The finest that this side can have.
    pub(super) fn of(replica: &impl Replica, kinds: &[TreeKind], unbuilt: &[PartitionId]) -> Levels {
        let mut bits_of = BTreeMap::new();
        for tree in trees_of(replica, kinds, unbuilt) {
            if let Some(found) = replica.tree(tree).filter(|found| !found.is_empty()) {
                bits_of.insert(tree, found.bits());
            }
        }
        let coarser = |level: u8| bits_of.values().filter(|bits| **bits < level).count();
        let buckets = |level: u8| bits_of.values().map(|bits| 1_u64 << level.min(*bits)).sum::<u64>();
        let mut level = bits_of.values().copied().max().unwrap_or(0);
        // Each exception is named, which costs some ten bytes.
        while level > 0 && (coarser(level) > 2 + bits_of.len() / 64 || buckets(level) > BUCKETS_MAX) {
            level -= 1;
        }
        bits_of.retain(|_, bits| *bits < level);
        Levels { level, coarse: bits_of.into_iter().collect() }
    }

    /// The finest that both can have.
    pub(super) fn join(&self, other: &Levels) -> Levels {
        let level = self.level.min(other.level);
        let mut coarse: BTreeMap<TreeId, u8> = BTreeMap::new();
        for (tree, bits) in self.coarse.iter().chain(&other.coarse) {
            let least = coarse.entry(*tree).or_insert(*bits);
            *least = (*least).min(*bits);
        }
        coarse.retain(|_, bits| *bits < level);
        Levels { level, coarse: coarse.into_iter().collect() }
    }
}

impl Plan {
    pub(super) fn empty(partition_bits: u8) -> Plan {
        Plan { partition_bits, trees: Vec::new(), buckets: 0 }
    }

    pub(super) fn new(
        replica: &impl Replica,
        kinds: &[TreeKind],
        unbuilt: &[PartitionId],
        levels: &Levels,
    ) -> Plan {
        let coarse: BTreeMap<TreeId, u8> = levels.coarse.iter().copied().collect();
        let mut plan = Plan::empty(replica.partition_bits());
        for tree in trees_of(replica, kinds, unbuilt) {
            let bits = coarse.get(&tree).copied().unwrap_or(levels.level);
            plan.push(tree, bits);
        }
        plan
    }

    /// The same with larger buckets.
    pub(super) fn coarser(&self, by: u8) -> Plan {
        let mut plan = Plan::empty(self.partition_bits);
        self.trees.iter().for_each(|planned| plan.push(planned.tree, planned.bits.saturating_sub(by)));
        plan
    }

    fn push(&mut self, tree: TreeId, bits: u8) {
        self.trees.push(Planned { tree, bits, first: self.buckets });
        self.buckets += 1 << bits;
    }

    pub(super) fn trees(&self) -> &[Planned] {
        &self.trees
    }

    /// How many buckets there are.
    pub(super) fn buckets(&self) -> u64 {
        self.buckets
    }

    /// The sums of all buckets.
    pub(super) fn sums<R: Replica>(&self, replica: &R) -> Vec<Sum> {
        let mut sums = Vec::new();
        self.trees.iter().for_each(|planned| planned.sums_into(replica, &mut sums));
        sums
    }

    /// The tree that a bucket is of.
    pub(super) fn tree_of(&self, bucket: u64) -> Option<&Planned> {
        if bucket >= self.buckets {
            return None;
        }
        let after = self.trees.partition_point(|planned| planned.first <= bucket);
        self.trees.get(after.checked_sub(1)?)
    }

    /// The tokens of so many buckets from one on, all of one tree.
    pub(super) fn span(&self, planned: &Planned, bucket: u64, count: u64) -> Span {
        let bits = self.partition_bits + planned.bits;
        let prefix =
            |bucket: u64| u64::from(planned.tree.partition.0) << planned.bits | (bucket - planned.first);
        let first = Span::of_prefix(prefix(bucket), bits).first;
        Span { first, last: Span::of_prefix(prefix(bucket + count - 1), bits).last }
    }
}

impl Planned {
    /// The number of the first bucket after its own.
    pub(super) fn end(&self) -> u64 {
        self.first + (1 << self.bits)
    }

    /// The sums of its buckets. A tree that has become coarser since says nothing: all of it then differs.
    pub(super) fn sums_into(&self, replica: &impl Replica, out: &mut Vec<Sum>) {
        let before = out.len();
        if let Some(tree) = replica.tree(self.tree).filter(|tree| tree.bits() >= self.bits) {
            out.extend(tree.sums(self.bits));
        }
        out.resize(before + (1 << self.bits), Sum::ZERO);
    }

    /// The sum of one of its buckets.
    pub(super) fn sum(&self, replica: &impl Replica, bucket: u64) -> Sum {
        let tree = replica.tree(self.tree).filter(|tree| tree.bits() >= self.bits);
        tree.map_or(Sum::ZERO, |tree| tree.sum(self.bits, bucket - self.first))
    }
}

/// The trees of all kinds and partitions but some.
pub(super) fn trees_of<'a>(
    replica: &'a impl Replica,
    kinds: &'a [TreeKind],
    unbuilt: &'a [PartitionId],
) -> impl Iterator<Item = TreeId> + 'a {
    kinds.iter().flat_map(|kind| {
        let partitions = replica.partitions(*kind).into_iter();
        let partitions = partitions.filter(|partition| unbuilt.binary_search(partition).is_err());
        partitions.map(|partition| TreeId { kind: *kind, partition })
    })
}

/// In ascending order, each once.
pub(super) fn union<T: Ord + Copy>(some: &[T], others: &[T]) -> Vec<T> {
    let mut all = [some, others].concat();
    all.sort_unstable();
    all.dedup();
    all
}
