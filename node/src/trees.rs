//! The hash trees of what this node holds, always current: a tree for each keyspace, partition and number of copies.
//!
//! They follow the records as they are held, synced or not: whoever says something because of them waits for the sync of
//! what is held. They are in memory alone and are built by a scan, a partition after the other: after a start, when the node
//! gains a partition, when a record was found damaged, since nobody knows then what it was, and when there have come so
//! many keys that a tree is too coarse. While a partition is scanned, writes to what the scan has passed change its trees,
//! and others need not.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use antientropy::{
    exchange::{TreeId, TreeKind},
    hash_tree::{Element, HashTree, KEYS_PER_LEAF},
    version::{CopyCount, Record},
};
use bytes::Bytes;
use ring::{KeyspaceId, PartitionId, Partitions};

use crate::{
    local::Local,
    planted::PlantedBug,
    replica::Held,
    storage::{ObjectKey, Store},
};

/// Leaves of a tree while it is built, as a power of two; then as many are joined as the number of its keys allows.
const BUILDING_BITS: u8 = 14;

/// How long a partition that could not be read waits.
const RETRY_AFTER: Duration = Duration::from_millis(250);

/// See the module's documentation.
pub(crate) struct Trees {
    key: [u8; 32],
    partitions: Option<Partitions>,
    trees: BTreeMap<TreeId, HashTree>,
    /// Partitions with trees.
    built: BTreeSet<PartitionId>,
    /// Partitions that are to have some.
    waiting: BTreeSet<PartitionId>,
    building: Option<Building>,
    /// When the next is begun, if one could not be read.
    not_before: Duration,
    planted: Option<PlantedBug>,
}

/// A partition that is being scanned.
struct Building {
    partition: PartitionId,
    /// The keyspaces that are still to be scanned, the present one last.
    keyspaces: Vec<KeyspaceId>,
    /// The last key that was.
    after: Option<Bytes>,
}

impl Trees {
    /// No trees. The key decides what records weigh: it is the cluster's, and clients must not know it.
    pub(crate) fn new(key: [u8; 32], planted: Option<PlantedBug>) -> Trees {
        Trees {
            key,
            partitions: None,
            trees: BTreeMap::new(),
            built: BTreeSet::new(),
            waiting: BTreeSet::new(),
            building: None,
            not_before: Duration::ZERO,
            planted,
        }
    }

    /// The node has copies of these partitions.
    pub(crate) fn follow(&mut self, partitions: Partitions, copies: impl Iterator<Item = PartitionId>) {
        self.partitions = Some(partitions);
        let copies: BTreeSet<PartitionId> = copies.collect();
        let lost: Vec<PartitionId> = self.built.difference(&copies).copied().collect();
        lost.into_iter().for_each(|partition| self.forget(partition));
        self.waiting.retain(|partition| copies.contains(partition));
        if self.building.as_ref().is_some_and(|building| !copies.contains(&building.partition)) {
            self.stop_building();
        }
        let is_known = |partition: &PartitionId| {
            let is_building = self.building.as_ref().is_some_and(|building| building.partition == *partition);
            self.built.contains(partition) || is_building
        };
        self.waiting.extend(copies.iter().filter(|partition| !is_known(partition)));
    }

    /// A record was replaced by another, or came, or went.
    pub(crate) fn replaced(&mut self, object: &ObjectKey, before: Option<&Record>, after: Option<&Record>) {
        let Some(partition) = self.partitions.map(|partitions| object.partition(partitions)) else { return };
        if !self.built.contains(&partition) && !self.is_passed(partition, object) {
            return;
        }
        let token = object.token();
        let part = |record: &Record| (record.copies(), Element::new(&self.key, token, record.digest()));
        let (mut before, after) = (before.map(part), after.map(part));
        if self.planted == Some(PlantedBug::LeafNotUpdated) && after.is_some() {
            return;
        }
        if let Some((copies, is)) = after {
            let was = before.take_if(|(was_copies, _)| *was_copies == copies).map(|(_, was)| was);
            self.change(partition, object, copies, was, Some(is));
        }
        if let Some((copies, was)) = before {
            self.change(partition, object, copies, Some(was), None);
        }
    }

    fn change(
        &mut self,
        partition: PartitionId,
        object: &ObjectKey,
        copies: CopyCount,
        was: Option<Element>,
        is: Option<Element>,
    ) {
        let kind = TreeKind { keyspace: object.keyspace(), copies };
        let tree = self.tree_mut(TreeId { kind, partition });
        tree.replace(object.token(), was, is);
        // A partition's scan makes none that is finer.
        let is_coarse = tree.is_coarse() && tree.bits() < BUILDING_BITS;
        if is_coarse && self.built.contains(&partition) {
            self.doubt(partition);
        }
    }

    /// Nobody knows what the trees of a partition should be: they are built anew.
    pub(crate) fn doubt(&mut self, partition: PartitionId) {
        if self.built.contains(&partition) {
            self.forget(partition);
            self.waiting.insert(partition);
        } else if self.building.as_ref().is_some_and(|building| building.partition == partition) {
            self.stop_building();
            self.waiting.insert(partition);
        }
    }

    /// Nobody knows what is held of an object.
    pub(crate) fn doubt_object(&mut self, object: &ObjectKey) {
        if let Some(partitions) = self.partitions {
            self.doubt(object.partition(partitions));
        }
    }

    /// How many partitions have their trees, and how many are to have them.
    pub(crate) fn census(&self) -> (usize, usize) {
        let unbuilt = self.waiting.len() + usize::from(self.building.is_some());
        (self.built.len(), self.built.len() + unbuilt)
    }

    /// Bytes of memory that they take.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.trees.values().map(HashTree::memory_bytes).sum()
    }

    /// When something is to be built next.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        (self.building.is_some() || !self.waiting.is_empty()).then_some(self.not_before)
    }

    /// Where the scan goes on: the keyspace, the partition and the last key that was scanned. Begins with the next
    /// partition if one waits.
    fn next(
        &mut self,
        now: Duration,
        keyspaces: impl Iterator<Item = KeyspaceId>,
    ) -> Option<(PartitionId, Option<KeyspaceId>, Option<Bytes>)> {
        if self.building.is_none() {
            let partition = if self.not_before <= now { self.waiting.pop_first()? } else { return None };
            self.building = Some(Building { partition, keyspaces: keyspaces.collect(), after: None });
        }
        let building = self.building.as_ref()?;
        Some((building.partition, building.keyspaces.last().copied(), building.after.clone()))
    }

    /// Everything up to a key was scanned, or all of the keyspace.
    fn passed(&mut self, until: Option<Bytes>) {
        if let Some(building) = &mut self.building {
            if until.is_none() {
                building.keyspaces.pop();
            }
            building.after = until;
        }
    }

    /// The partition that is being built has all its trees.
    fn finish(&mut self) {
        let Some(Building { partition, .. }) = self.building.take() else { return };
        self.built.insert(partition);
        for tree in self.of(partition) {
            if let Some(built) = self.trees.remove(&tree).filter(|built| !built.is_empty()) {
                self.trees.insert(tree, built.fitted());
            }
        }
    }

    /// The partition that is being built cannot be read now.
    fn put_off(&mut self, now: Duration) {
        if let Some(building) = self.building.take() {
            self.forget(building.partition);
            self.waiting.insert(building.partition);
            self.not_before = now + RETRY_AFTER;
        }
    }

    /// The scan has come across a record.
    fn add(&mut self, object: &ObjectKey, record: &Record) {
        let partition = self.partitions.map(|partitions| object.partition(partitions));
        if let (Some(partition), true) = (partition, self.building.is_some()) {
            let element = Element::new(&self.key, object.token(), record.digest());
            self.change(partition, object, record.copies(), None, Some(element));
        }
    }

    fn is_passed(&self, partition: PartitionId, object: &ObjectKey) -> bool {
        let Some(building) = self.building.as_ref().filter(|building| building.partition == partition) else {
            return false;
        };
        match building.keyspaces.last() {
            Some(present) if *present == object.keyspace() => {
                building.after.as_ref().is_some_and(|after| object.encoded() <= after)
            }
            Some(_) => !building.keyspaces.contains(&object.keyspace()),
            None => true,
        }
    }

    fn tree_mut(&mut self, tree: TreeId) -> &mut HashTree {
        let bits = self.partitions.map_or(0, Partitions::bits);
        let is_building = self.building.as_ref().is_some_and(|building| building.partition == tree.partition);
        let keys = if is_building { KEYS_PER_LEAF << BUILDING_BITS } else { 0 };
        self.trees.entry(tree).or_insert_with(|| HashTree::new(bits, keys))
    }

    fn of(&self, partition: PartitionId) -> Vec<TreeId> {
        self.trees.keys().filter(|tree| tree.partition == partition).copied().collect()
    }

    fn forget(&mut self, partition: PartitionId) {
        self.built.remove(&partition);
        self.trees.retain(|tree, _| tree.partition != partition);
    }

    fn stop_building(&mut self) {
        if let Some(building) = self.building.take() {
            self.forget(building.partition);
        }
    }
}

impl<S: Store> Local<S> {
    /// Scans the next stretch of a partition that has no trees yet.
    pub(crate) fn build_trees(&mut self) {
        let Some(document) = self.document.clone() else { return };
        let (now, limit) = (self.now.monotonic, self.settings.exchange_stretch_keys);
        let keyspaces = document.keyspaces.keys().copied();
        let Some((partition, keyspace, after)) = self.replica.trees.next(now, keyspaces) else { return };
        let Some(keyspace) = keyspace else { return self.replica.trees.finish() };
        let range = (after.as_ref(), None);
        let Ok(stretch) = self.replica.stretch(keyspace, partition, document.partitions, range, limit) else {
            self.counters.unreadable_records += 1;
            self.fill(partition);
            return self.replica.trees.put_off(now);
        };
        self.replica.trees.passed(stretch.until.clone());
        for (object, held) in &stretch.held {
            if let Held::Record(record) = held {
                self.replica.trees.add(object, record);
            }
        }
        for key in stretch.nameless {
            self.counters.damaged_records += 1;
            self.replica.remove_nameless(key);
            self.fill(partition);
        }
        let damaged = stretch.held.iter().filter(|(_, held)| **held == Held::Damaged);
        damaged.for_each(|(object, _)| self.note_damage(object, partition));
    }

    /// The trees that are not what a scan would make of them now.
    pub(crate) fn trees_differing(&self) -> Vec<TreeId> {
        let Some(document) = self.document.clone() else { return Vec::new() };
        let mut fresh = Trees::new(self.replica.trees.key, None);
        let mut built = self.replica.trees.built.clone();
        fresh.follow(document.partitions, built.iter().copied());
        let keyspaces: Vec<KeyspaceId> = document.keyspaces.keys().copied().collect();
        while let Some((partition, keyspace, _)) = fresh.next(Duration::ZERO, keyspaces.iter().copied()) {
            let Some(keyspace) = keyspace else {
                fresh.finish();
                continue;
            };
            let stretch =
                self.replica.stretch(keyspace, partition, document.partitions, (None, None), usize::MAX);
            fresh.passed(None);
            for (object, held) in stretch.iter().flat_map(|stretch| &stretch.held) {
                match held {
                    Held::Record(record) => fresh.add(object, record),
                    Held::Nothing => {}
                    Held::Damaged | Held::Unreadable => _ = built.remove(&partition),
                }
            }
            if stretch.is_err() {
                built.remove(&partition);
            }
        }
        let kept = &self.replica.trees;
        let all: BTreeSet<TreeId> = kept.trees.keys().chain(fresh.trees.keys()).copied().collect();
        let is_same = |tree: &TreeId| match (kept.trees.get(tree), fresh.trees.get(tree)) {
            (Some(kept), Some(fresh)) => {
                let bits = kept.bits().min(fresh.bits());
                kept.len() == fresh.len() && kept.sums(bits).eq(fresh.sums(bits))
            }
            (one, other) => one.or(other).is_none_or(HashTree::is_empty),
        };
        all.into_iter().filter(|tree| built.contains(&tree.partition) && !is_same(tree)).collect()
    }
}
