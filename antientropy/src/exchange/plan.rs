//! What both sides number alike: the buckets of all trees that they have in common.

use std::collections::{BTreeMap, BTreeSet};

use ring::{KeyspaceId, PartitionId};

use super::{
    Replica, Span, TreeId, TreeKind,
    message::{Interval, Levels},
};
use crate::hash_tree::{BITS_MAX, HashTree, Sum};

/// Buckets of an exchange, as many as one side wants: what a sketch of them takes has to be bounded. More keys make them
/// larger.
const BUCKETS_MAX: u64 = 1 << 18;
/// Buckets that both sides together may come to.
pub(super) const BUCKETS_LIMIT: u64 = 1 << 20;

/// The trees, and where the numbers of their buckets begin.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    partition_bits: u8,
    kinds: Vec<TreeKind>,
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
    /// The finest that this side can have: a level for each kind of tree that it has, and the few trees that have fewer
    /// leaves.
    pub(super) fn of(replica: &impl Replica, unbuilt: &[PartitionId]) -> Levels {
        let mut bits_of = BTreeMap::new();
        let (mut kinds, mut trees) = (Vec::new(), Vec::new());
        for kind in replica.kinds() {
            let (mut of_kind, mut count) = (Vec::new(), 0_u64);
            for tree in trees_of(replica, vec![kind], unbuilt) {
                count += 1;
                if let Some(found) = replica.tree(tree).filter(|found| !found.is_empty()) {
                    bits_of.insert(tree, found.bits());
                    of_kind.push(found.bits());
                }
            }
            // Each exception is named, which costs some ten bytes.
            of_kind.sort_unstable();
            let exceptions = 2 + of_kind.len() / 64;
            let level = of_kind.get(exceptions).or(of_kind.last()).copied().unwrap_or(0);
            kinds.push((kind, level));
            trees.push(count);
        }
        let buckets = |kinds: &[(TreeKind, u8)]| {
            kinds.iter().zip(&trees).map(|((_, level), trees)| trees << level).sum::<u64>()
        };
        while buckets(&kinds) > BUCKETS_MAX && kinds.iter().any(|(_, level)| *level > 0) {
            kinds.iter_mut().for_each(|(_, level)| *level = level.saturating_sub(1));
        }
        let levels = Levels { kinds, coarse: Vec::new() };
        bits_of.retain(|tree, bits| *bits < levels.of_kind(tree.kind));
        Levels { coarse: bits_of.into_iter().collect(), ..levels }
    }

    /// The finest that both can have.
    pub(super) fn join(&self, other: &Levels) -> Levels {
        let mut kinds: BTreeMap<TreeKind, u8> = BTreeMap::new();
        for (kind, level) in self.kinds.iter().chain(&other.kinds) {
            let least = kinds.entry(*kind).or_insert(*level);
            *least = (*least).min(*level);
        }
        let mut coarse: BTreeMap<TreeId, u8> = BTreeMap::new();
        for (tree, bits) in self.coarse.iter().chain(&other.coarse) {
            let least = coarse.entry(*tree).or_insert(*bits);
            *least = (*least).min(*bits);
        }
        coarse.retain(|tree, bits| kinds.get(&tree.kind).is_some_and(|level| *bits < *level));
        Levels { kinds: kinds.into_iter().collect(), coarse: coarse.into_iter().collect() }
    }

    fn of_kind(&self, kind: TreeKind) -> u8 {
        self.kinds.iter().find(|(of, _)| *of == kind).map_or(0, |(_, level)| *level)
    }
}

impl Plan {
    pub(super) fn empty(partition_bits: u8) -> Plan {
        Plan { partition_bits, kinds: Vec::new(), trees: Vec::new(), buckets: 0 }
    }

    /// None if there would be too many buckets.
    pub(super) fn new(replica: &impl Replica, unbuilt: &[PartitionId], levels: &Levels) -> Option<Plan> {
        let coarse: BTreeMap<TreeId, u8> = levels.coarse.iter().copied().collect();
        let mut plan = Plan::empty(replica.partition_bits());
        for (kind, level) in &levels.kinds {
            plan.kinds.push(*kind);
            for tree in trees_of(replica, vec![*kind], unbuilt) {
                plan.push(tree, coarse.get(&tree).copied().unwrap_or(*level));
                if plan.buckets > BUCKETS_LIMIT {
                    return None;
                }
            }
        }
        Some(plan)
    }

    /// The same with larger buckets.
    pub(super) fn coarser(&self, by: u8) -> Plan {
        let mut plan = Plan { kinds: self.kinds.clone(), ..Plan::empty(self.partition_bits) };
        self.trees.iter().for_each(|planned| plan.push(planned.tree, planned.bits.saturating_sub(by)));
        plan
    }

    /// A bucket for each tree.
    pub(super) fn of_roots(&self) -> Plan {
        self.coarser(BITS_MAX)
    }

    /// Some of the trees alone. None if it does not have them.
    pub(super) fn of_trees(&self, trees: &[Interval]) -> Option<Plan> {
        let mut plan = Plan { kinds: self.kinds.clone(), ..Plan::empty(self.partition_bits) };
        for interval in trees {
            let first = usize::try_from(interval.first).ok()?;
            let end = first.checked_add(usize::try_from(interval.count).ok()?)?;
            self.trees.get(first..end)?.iter().for_each(|planned| plan.push(planned.tree, planned.bits));
        }
        Some(plan)
    }

    /// Some trees, and those of other counts of the same keyspaces and partitions: a record may move from one to another
    /// before either is looked at.
    pub(super) fn with_others_of_their_partitions(&self, trees: impl Iterator<Item = u64>) -> Vec<Interval> {
        let tree = |number: u64| self.trees.get(usize::try_from(number).ok()?).map(|planned| planned.tree);
        let places: BTreeSet<(KeyspaceId, PartitionId)> =
            trees.filter_map(tree).map(|tree| (tree.kind.keyspace, tree.partition)).collect();
        let is_of = |(_, planned): &(u64, &Planned)| {
            places.contains(&(planned.tree.kind.keyspace, planned.tree.partition))
        };
        let numbers = (0..).zip(&self.trees).filter(is_of).map(|(number, _)| number);
        numbers.map(|first| Interval { first, count: 1 }).collect()
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

    /// The sums of all buckets. Those of trees about which nothing is known are zero.
    pub(super) fn sums<R: Replica>(&self, replica: &R, unbuilt: &[PartitionId]) -> Vec<Sum> {
        let mut sums = Vec::with_capacity(self.buckets as usize);
        for planned in &self.trees {
            if planned.sums_into(replica, unbuilt, &mut sums).is_none() {
                sums.resize(sums.len() + (1 << planned.bits), Sum::ZERO);
            }
        }
        sums
    }

    /// The partitions of trees about which nothing is known, in ascending order.
    pub(super) fn unknown<R: Replica>(&self, replica: &R, unbuilt: &[PartitionId]) -> Vec<PartitionId> {
        let unknown = self.trees.iter().filter(|planned| !planned.is_known(replica, unbuilt));
        let partitions: BTreeSet<PartitionId> = unknown.map(|planned| planned.tree.partition).collect();
        partitions.into_iter().collect()
    }

    /// Whether a replica has a kind of tree that was not there when it was made: a record of one that was may have moved to
    /// it, unseen.
    pub(super) fn lacks_kinds(&self, replica: &impl Replica) -> bool {
        replica.kinds().iter().any(|kind| !self.kinds.contains(kind))
    }

    /// Whether a keyspace has trees of this kind and of no other.
    pub(super) fn is_only_kind(&self, kind: TreeKind) -> bool {
        self.kinds.iter().filter(|other| other.keyspace == kind.keyspace).eq([&kind])
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

    /// Whether the replica knows the sums of its buckets: it may have none because it is empty, but not because it is not
    /// built, and none that has fewer leaves than there are buckets.
    fn is_known(&self, replica: &impl Replica, unbuilt: &[PartitionId]) -> bool {
        let is_fine = |tree: &HashTree| tree.is_empty() || tree.bits() >= self.bits;
        unbuilt.binary_search(&self.tree.partition).is_err() && replica.tree(self.tree).is_none_or(is_fine)
    }

    /// How many keys it has, and the sums of its buckets. None if that is not known.
    pub(super) fn sums_into(
        &self,
        replica: &impl Replica,
        unbuilt: &[PartitionId],
        out: &mut Vec<Sum>,
    ) -> Option<u64> {
        if !self.is_known(replica, unbuilt) {
            return None;
        }
        let before = out.len();
        let tree = replica.tree(self.tree).filter(|tree| !tree.is_empty());
        out.extend(tree.iter().flat_map(|tree| tree.sums(self.bits)));
        out.resize(before + (1 << self.bits), Sum::ZERO);
        Some(tree.map_or(0, HashTree::len))
    }

    /// The sum of one of its buckets; zero if that is not known.
    pub(super) fn sum(&self, replica: &impl Replica, bucket: u64) -> Sum {
        let tree = replica.tree(self.tree).filter(|tree| tree.bits() >= self.bits);
        tree.map_or(Sum::ZERO, |tree| tree.sum(self.bits, bucket - self.first))
    }
}

/// The trees of all kinds and partitions but some.
pub(super) fn trees_of<'a>(
    replica: &'a impl Replica,
    kinds: Vec<TreeKind>,
    unbuilt: &'a [PartitionId],
) -> impl Iterator<Item = TreeId> + 'a {
    kinds.into_iter().flat_map(move |kind| {
        let partitions = replica.partitions(kind).into_iter();
        let partitions = partitions.filter(|partition| unbuilt.binary_search(partition).is_err());
        partitions.map(move |partition| TreeId { kind, partition })
    })
}

/// In ascending order, each once.
pub(super) fn union<T: Ord + Copy>(some: &[T], others: &[T]) -> Vec<T> {
    let mut all = [some, others].concat();
    all.sort_unstable();
    all.dedup();
    all
}
