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
    /// Of each partition that is built, and of the one that is being built.
    trees: BTreeMap<PartitionId, BTreeMap<TreeKind, HashTree>>,
    /// Partitions that are to have some.
    waiting: BTreeSet<PartitionId>,
    building: Option<Building>,
    /// When the next is begun, if one could not be read.
    not_before: Duration,
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
    pub(crate) fn new(key: [u8; 32]) -> Trees {
        Trees {
            key,
            partitions: None,
            trees: BTreeMap::new(),
            waiting: BTreeSet::new(),
            building: None,
            not_before: Duration::ZERO,
        }
    }

    /// The node has copies of these partitions.
    pub(crate) fn follow(&mut self, partitions: Partitions, copies: impl Iterator<Item = PartitionId>) {
        self.partitions = Some(partitions);
        let copies: BTreeSet<PartitionId> = copies.collect();
        self.waiting.retain(|partition| copies.contains(partition));
        if self.building.as_ref().is_some_and(|building| !copies.contains(&building.partition)) {
            self.building = None;
        }
        self.trees.retain(|partition, _| copies.contains(partition));
        self.waiting.extend(copies.iter().filter(|partition| !self.trees.contains_key(partition)));
    }

    /// A record was replaced by another, or came, or went.
    pub(crate) fn replaced(&mut self, object: &ObjectKey, before: Option<&Record>, after: Option<&Record>) {
        let Some(partition) = self.partitions.map(|partitions| object.partition(partitions)) else { return };
        if !self.trees.contains_key(&partition) || !self.is_passed(partition, object) {
            return;
        }
        let token = object.token();
        let part = |record: &Record| (record.copies(), Element::new(&self.key, token, record.digest()));
        let (mut before, after) = (before.map(part), after.map(part));
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
        let (bits, is_building) = (self.partitions.map_or(0, Partitions::bits), self.is_building(partition));
        let keys = if is_building { KEYS_PER_LEAF << BUILDING_BITS } else { 0 };
        let trees = self.trees.entry(partition).or_default();
        let tree = trees.entry(kind).or_insert_with(|| HashTree::new(bits, keys));
        tree.replace(object.token(), was, is);
        // A partition's scan makes none that is finer.
        if tree.is_coarse() && tree.bits() < BUILDING_BITS && !is_building {
            self.doubt(partition);
        }
    }

    /// Nobody knows what the trees of a partition should be: they are built anew.
    pub(crate) fn doubt(&mut self, partition: PartitionId) {
        if self.is_building(partition) {
            self.building = None;
        }
        if self.trees.remove(&partition).is_some() {
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
        let built = self.trees.len() - usize::from(self.building.is_some());
        (built, self.trees.len() + self.waiting.len())
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
            self.trees.insert(partition, BTreeMap::new());
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
        let built = self.trees.remove(&partition).unwrap_or_default();
        let full = built.into_iter().filter(|(_, tree)| !tree.is_empty());
        self.trees.insert(partition, full.map(|(kind, tree)| (kind, tree.fitted())).collect());
    }

    /// A partition cannot be read now.
    fn put_off(&mut self, partition: PartitionId, now: Duration) {
        self.doubt(partition);
        self.not_before = now + RETRY_AFTER;
    }

    fn is_building(&self, partition: PartitionId) -> bool {
        self.building.as_ref().is_some_and(|building| building.partition == partition)
    }

    /// Whether the trees of a partition have what is held of an object: the scan has passed it, or is over.
    fn is_passed(&self, partition: PartitionId, object: &ObjectKey) -> bool {
        let Some(building) = self.building.as_ref().filter(|building| building.partition == partition) else {
            return true;
        };
        match building.keyspaces.last() {
            Some(present) if *present == object.keyspace() => {
                building.after.as_ref().is_some_and(|after| object.encoded() <= after)
            }
            Some(_) => !building.keyspaces.contains(&object.keyspace()),
            None => true,
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
        let Ok(scanned) = self.scan(keyspace, partition, document.partitions, range, limit) else {
            return self.replica.trees.put_off(partition, now);
        };
        // If something was damaged the partition is begun anew.
        self.replica.trees.passed(scanned.until);
        for (object, record) in &scanned.records {
            self.replica.trees.replaced(object, None, Some(record));
        }
    }

    /// The trees that are not what a scan would make of them now.
    pub(crate) fn trees_differing(&self) -> Vec<TreeId> {
        let Some(document) = self.document.clone() else { return Vec::new() };
        let kept = &self.replica.trees;
        let mut compared: BTreeSet<PartitionId> = kept.trees.keys().copied().collect();
        compared.retain(|partition| !kept.is_building(*partition));
        let mut fresh = Trees::new(kept.key);
        fresh.follow(document.partitions, compared.iter().copied());
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
                    Held::Record(record) => fresh.replaced(object, None, Some(record)),
                    Held::Nothing => {}
                    Held::Damaged | Held::Unreadable => _ = compared.remove(&partition),
                }
            }
            if stretch.is_err() {
                compared.remove(&partition);
            }
        }
        let mut differing = Vec::new();
        for partition in compared {
            let (kept, fresh) = (&kept.trees[&partition], &fresh.trees[&partition]);
            let kinds: BTreeSet<TreeKind> = kept.keys().chain(fresh.keys()).copied().collect();
            let is_same = |kind: &TreeKind| match (kept.get(kind), fresh.get(kind)) {
                (Some(kept), Some(fresh)) => {
                    let bits = kept.bits().min(fresh.bits());
                    kept.len() == fresh.len() && kept.sums(bits).eq(fresh.sums(bits))
                }
                (one, other) => one.or(other).is_none_or(HashTree::is_empty),
            };
            let wrong = kinds.into_iter().filter(|kind| !is_same(kind));
            differing.extend(wrong.map(|kind| TreeId { kind, partition }));
        }
        differing
    }
}
