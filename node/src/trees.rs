//! The hash trees of what this node holds, always current: a tree for each keyspace, partition and number of copies.
//!
//! They follow the records as they are held, synced or not: whoever says something because of them waits for the sync of
//! what is held. They are in memory alone and are built by a scan, a partition after the other: after a start, when the node
//! gains a partition, when a record was found damaged, since nobody knows then what it was, and when there have come so
//! many keys that a tree is too coarse. While a partition is scanned, writes to what the scan has passed change its new
//! trees, and others need not; the trees that it had, if nothing speaks against them, serve meanwhile.
//!
//! **Scrub.** In the course of [`Settings::scrub_interval`](crate::Settings::scrub_interval) every partition is scanned anew,
//! gently: each record's checksum is checked, and the trees that come of it are compared with those that were kept. If they
//! differ, the store has lost or brought back something without saying so, and the copy is not believed any more.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use antientropy::{
    exchange::{TreeId, TreeKind},
    hash_tree::{Element, HashTree, KEYS_PER_LEAF},
    version::Record,
};
use bytes::Bytes;
use ring::{ClusterDocument, KeyspaceId, PartitionId, Partitions, Token};

use crate::{
    local::Local,
    replica::Held,
    storage::{ObjectKey, Store},
};

/// Leaves of a tree while it is built at most, as a power of two; then as many are joined as the number of its keys allows.
const BUILDING_BITS: u8 = 14;
/// Keys for which a tree has so many.
const BUILDING_KEYS: u64 = KEYS_PER_LEAF << BUILDING_BITS;
/// Keys for which a tree has leaves while it is built at least.
const BUILDING_KEYS_MIN: u64 = KEYS_PER_LEAF << 6;

/// How long a partition waits that could not be read.
const RETRY_AFTER: Duration = Duration::from_millis(250);

/// How long a scrub pauses after each stretch.
const SCRUB_PAUSE: Duration = Duration::from_millis(10);

/// The trees of a partition.
type OfPartition = BTreeMap<TreeKind, HashTree>;

/// See the module's documentation.
pub(crate) struct Trees {
    key: [u8; 32],
    partitions: Option<Partitions>,
    /// Of each partition that is built.
    trees: Built,
    /// Partitions that are to have some.
    waiting: BTreeSet<PartitionId>,
    /// Partitions whose trees have become too coarse.
    coarse: BTreeSet<PartitionId>,
    /// Partitions that could not be read, or in which damage was found, and when each is tried again.
    delayed: BTreeMap<PartitionId, Duration>,
    building: Option<Building>,
    /// How many keys the largest tree had of the partition that was built last: keys are spread evenly.
    expected: Option<u64>,
    scrub: Scrub,
}

/// The trees of all partitions, each in the place of its number: every write looks for one.
#[derive(Default)]
struct Built {
    slots: Vec<Option<OfPartition>>,
    /// How many have some.
    partitions: usize,
}

/// A partition that is being scanned.
struct Building {
    partition: PartitionId,
    /// The keyspaces that are still to be scanned, the present one last.
    keyspaces: Vec<KeyspaceId>,
    /// The last key that was.
    after: Option<Bytes>,
    trees: OfPartition,
    /// For how many keys each of them has leaves.
    keys: u64,
    is_scrub: bool,
    has_begun: bool,
}

/// How far the scrub has come.
struct Scrub {
    /// How long all partitions take together.
    interval: Duration,
    /// The first that may be the next.
    from: PartitionId,
    /// When the last one was begun.
    begun: Option<Duration>,
    /// When its next stretch is due.
    pause_until: Duration,
}

/// The next stretch to scan.
struct Next {
    partition: PartitionId,
    /// None if all keyspaces are scanned.
    keyspace: Option<KeyspaceId>,
    after: Option<Bytes>,
    /// Whether the scan begins with it.
    is_first: bool,
    is_scrub: bool,
}

impl Trees {
    /// No trees. The key decides what records weigh: it is the cluster's, and clients must not know it.
    pub(crate) fn new(key: [u8; 32], scrub_interval: Duration) -> Trees {
        Trees {
            key,
            partitions: None,
            trees: Built::default(),
            waiting: BTreeSet::new(),
            coarse: BTreeSet::new(),
            delayed: BTreeMap::new(),
            building: None,
            expected: None,
            scrub: Scrub {
                interval: scrub_interval,
                from: PartitionId(0),
                begun: None,
                pause_until: Duration::ZERO,
            },
        }
    }

    /// The node has copies of these partitions.
    pub(crate) fn follow(&mut self, partitions: Partitions, copies: impl Iterator<Item = PartitionId>) {
        self.partitions = Some(partitions);
        let copies: BTreeSet<PartitionId> = copies.collect();
        self.waiting.retain(|partition| copies.contains(partition));
        self.coarse.retain(|partition| copies.contains(partition));
        self.delayed.retain(|partition, _| copies.contains(partition));
        if self.building.as_ref().is_some_and(|building| !copies.contains(&building.partition)) {
            self.building = None;
        }
        self.trees.retain(|partition| copies.contains(&partition));
        let building = self.building.as_ref().map(|building| building.partition);
        let is_new = |partition: &&PartitionId| {
            let is_known = self.trees.of(**partition).is_some() || self.delayed.contains_key(*partition);
            !is_known && building != Some(**partition)
        };
        self.waiting.extend(copies.iter().filter(is_new));
    }

    /// A record was replaced by another, or came, or went.
    pub(crate) fn replaced(&mut self, object: &ObjectKey, before: Option<&Record>, after: Option<&Record>) {
        let Some(partitions) = self.partitions else { return };
        let partition = object.partition(partitions);
        let built = self.trees.of_mut(partition);
        let building = self.building.as_mut().filter(|building| building.has_passed(partition, object));
        if built.is_none() && building.is_none() {
            return;
        }
        let (key, token) = (&self.key, object.token());
        let [before, after] = [before, after].map(|record| record.map(|record| part_of(key, object, record)));
        if let Some(building) = building {
            change(&mut building.trees, (partitions, building.keys), token, before, after);
        }
        if let Some(trees) = built
            && change(trees, (partitions, 0), token, before, after)
        {
            self.coarse.insert(partition);
        }
    }

    /// A partition is to be scanned, though nothing speaks against its trees.
    pub(crate) fn refresh(&mut self, partition: PartitionId) {
        if self.trees.of(partition).is_some() {
            self.coarse.insert(partition);
        }
    }

    /// Where an object is; none without a document.
    pub(crate) fn partition_of(&self, object: &ObjectKey) -> Option<PartitionId> {
        self.partitions.map(|partitions| object.partition(partitions))
    }

    /// Nobody knows what the trees of a partition should be: they are built anew.
    pub(crate) fn doubt(&mut self, partition: PartitionId) {
        let is_building = self.building.take_if(|building| building.partition == partition).is_some();
        if self.trees.remove(partition) || is_building {
            self.coarse.remove(&partition);
            self.waiting.insert(partition);
        }
    }

    /// Nobody knows what is held of an object.
    pub(crate) fn doubt_object(&mut self, object: &ObjectKey) {
        if let Some(partitions) = self.partitions {
            self.doubt(object.partition(partitions));
        }
    }

    /// What decides what records weigh.
    pub(crate) fn key(&self) -> &[u8; 32] {
        &self.key
    }

    /// The trees of a partition; none if they are not built.
    pub(crate) fn of(&self, partition: PartitionId) -> Option<&BTreeMap<TreeKind, HashTree>> {
        self.trees.of(partition)
    }

    /// How many partitions have their trees, and how many are to have them.
    pub(crate) fn census(&self) -> (usize, usize) {
        let unbuilt = self.building.as_ref().filter(|building| self.trees.of(building.partition).is_none());
        let built = self.trees.partitions;
        (built, built + self.waiting.len() + self.delayed.len() + unbuilt.iter().len())
    }

    /// How many bytes of memory their leaves take.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.trees.each().flat_map(|(_, trees)| trees.values()).map(HashTree::memory_bytes).sum()
    }

    /// When something is to be built or scrubbed next.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        let is_urgent = !self.waiting.is_empty()
            || !self.coarse.is_empty()
            || self.building.as_ref().is_some_and(|building| !building.is_scrub);
        if is_urgent {
            return Some(Duration::ZERO);
        }
        let scrub = if self.building.is_some() {
            Some(self.scrub.pause_until)
        } else {
            self.scrub.next_due(self.trees.partitions)
        };
        self.delayed.values().copied().chain(scrub).min()
    }

    /// Where a scan goes on, if anything is due. Begins with the next partition if none is being scanned.
    fn next(&mut self, now: Duration, keyspaces: impl Iterator<Item = KeyspaceId>) -> Option<Next> {
        let due = self.delayed.extract_if(.., |_, at| *at <= now).map(|(partition, _)| partition);
        self.waiting.extend(due);
        if (!self.waiting.is_empty() || !self.coarse.is_empty())
            && let Some(put_off) = self.building.take_if(|building| building.is_scrub)
        {
            self.scrub.from = put_off.partition;
        }
        if self.building.is_none() {
            let (partition, is_scrub) = match self.waiting.pop_first().or_else(|| self.coarse.pop_first()) {
                Some(partition) => (partition, false),
                None => (self.scrub.begin(now, &self.trees)?, true),
            };
            let expected = self.trees.of(partition).map(largest).or(self.expected);
            let keys = expected.map_or(BUILDING_KEYS, |keys| 2 * keys);
            self.building = Some(Building {
                partition,
                keyspaces: keyspaces.collect(),
                after: None,
                trees: OfPartition::new(),
                keys: keys.clamp(BUILDING_KEYS_MIN, BUILDING_KEYS),
                is_scrub,
                has_begun: false,
            });
        }
        let building = self.building.as_mut()?;
        if building.is_scrub {
            if self.scrub.pause_until > now {
                return None;
            }
            self.scrub.pause_until = now + SCRUB_PAUSE;
        }
        let is_first = !std::mem::replace(&mut building.has_begun, true);
        Some(Next {
            partition: building.partition,
            keyspace: building.keyspaces.last().copied(),
            after: building.after.clone(),
            is_first,
            is_scrub: building.is_scrub,
        })
    }

    /// The records of a stretch that was scanned, up to a key or to the end of the keyspace.
    fn passed<'a>(
        &mut self,
        partition: PartitionId,
        records: impl Iterator<Item = (&'a ObjectKey, &'a Record)>,
        until: Option<Bytes>,
    ) {
        let building = self.building.as_mut().filter(|building| building.partition == partition);
        // If something was damaged the partition is begun anew.
        let (Some(building), Some(partitions)) = (building, self.partitions) else { return };
        add_all(&mut building.trees, &self.key, (partitions, building.keys), records);
        if until.is_none() {
            building.keyspaces.pop();
        }
        building.after = until;
    }

    /// A partition could not be read, or its scan has found damage: others come first.
    fn put_off(&mut self, partition: PartitionId, now: Duration) {
        if self.waiting.remove(&partition) {
            self.delayed.insert(partition, now + RETRY_AFTER);
        }
    }

    /// The partition that is being scanned has all its new trees. Returns it if it had others that say something else.
    fn finish(&mut self) -> Option<PartitionId> {
        let Building { partition, trees, .. } = self.building.take()?;
        self.coarse.remove(&partition);
        let full = trees.into_iter().filter(|(_, tree)| !tree.is_empty());
        let fitted: OfPartition = full.map(|(kind, tree)| (kind, tree.fitted())).collect();
        self.expected = Some(largest(&fitted));
        // There were more than expected.
        if fitted.values().any(is_too_coarse) {
            self.coarse.insert(partition);
        }
        let is_wrong = self.trees.of(partition).is_some_and(|kept| !differing(kept, &fitted).is_empty());
        self.trees.insert(partition, fitted);
        is_wrong.then_some(partition)
    }
}

impl Built {
    fn of(&self, partition: PartitionId) -> Option<&OfPartition> {
        self.slots.get(usize::from(partition.0))?.as_ref()
    }

    fn of_mut(&mut self, partition: PartitionId) -> Option<&mut OfPartition> {
        self.slots.get_mut(usize::from(partition.0))?.as_mut()
    }

    fn insert(&mut self, partition: PartitionId, trees: OfPartition) {
        let slot = usize::from(partition.0);
        if slot >= self.slots.len() {
            self.slots.resize_with(slot + 1, || None);
        }
        self.partitions += usize::from(self.slots[slot].replace(trees).is_none());
    }

    /// Whether there were any.
    fn remove(&mut self, partition: PartitionId) -> bool {
        let slot = self.slots.get_mut(usize::from(partition.0));
        let was_there = slot.and_then(Option::take).is_some();
        self.partitions -= usize::from(was_there);
        was_there
    }

    fn retain(&mut self, keeps: impl Fn(PartitionId) -> bool) {
        for (number, slot) in (0..=u16::MAX).zip(&mut self.slots) {
            if !keeps(PartitionId(number)) {
                self.partitions -= usize::from(slot.take().is_some());
            }
        }
    }

    /// In ascending order.
    fn each(&self) -> impl Iterator<Item = (PartitionId, &OfPartition)> {
        (0..=u16::MAX)
            .zip(&self.slots)
            .filter_map(|(number, trees)| Some((PartitionId(number), trees.as_ref()?)))
    }
}

impl Building {
    /// Whether it is of this partition, and the scan has passed this object: writes to it change the new trees.
    fn has_passed(&self, partition: PartitionId, object: &ObjectKey) -> bool {
        if self.partition != partition {
            return false;
        }
        match self.keyspaces.last() {
            Some(present) if *present == object.keyspace() => {
                self.after.as_ref().is_some_and(|after| object.encoded() <= after)
            }
            Some(_) => !self.keyspaces.contains(&object.keyspace()),
            None => true,
        }
    }
}

impl Scrub {
    /// When the next partition is due, of so many.
    fn next_due(&self, partitions: usize) -> Option<Duration> {
        let each = self.interval / u32::try_from(partitions).ok().filter(|partitions| *partitions > 0)?;
        Some(self.begun.map_or(each, |begun| begun + each))
    }

    /// Begins with the next partition if it is due.
    fn begin(&mut self, now: Duration, trees: &Built) -> Option<PartitionId> {
        // Whatever was built lately was scanned lately: the first is due when its share of the interval is over.
        self.begun.get_or_insert(now);
        if self.next_due(trees.partitions).is_none_or(|due| due > now) {
            return None;
        }
        let from = trees.each().find(|(partition, _)| *partition >= self.from);
        let (next, _) = from.or_else(|| trees.each().next())?;
        (self.from, self.begun) = (PartitionId(next.0.saturating_add(1)), Some(now));
        Some(next)
    }
}

/// Of which tree a record is a part, and which.
fn part_of(key: &[u8; 32], object: &ObjectKey, record: &Record) -> (TreeKind, Element) {
    let kind = TreeKind { keyspace: object.keyspace(), copies: record.copies().most() };
    (kind, Element::new(key, object.token(), record))
}

/// Changes the trees of a partition. Returns whether one has become too coarse.
fn change(
    trees: &mut OfPartition,
    (partitions, keys): (Partitions, u64),
    token: Token,
    mut before: Option<(TreeKind, Element)>,
    after: Option<(TreeKind, Element)>,
) -> bool {
    let mut is_coarse = false;
    let mut replace = |kind: TreeKind, was: Option<Element>, is: Option<Element>| {
        let tree = trees.entry(kind).or_insert_with(|| HashTree::new(partitions.bits(), keys));
        tree.replace(token, was, is);
        is_coarse |= is_too_coarse(tree);
    };
    if let Some((kind, is)) = after {
        let was = before.take_if(|(was_kind, _)| *was_kind == kind).map(|(_, was)| was);
        replace(kind, was, Some(is));
    }
    if let Some((kind, was)) = before {
        replace(kind, Some(was), None);
    }
    is_coarse
}

/// Whether a tree is to be built anew. A scan makes none that is finer than so.
fn is_too_coarse(tree: &HashTree) -> bool {
    tree.is_coarse() && tree.bits() < BUILDING_BITS
}

/// How many keys the largest of some trees has.
fn largest(trees: &OfPartition) -> u64 {
    trees.values().map(HashTree::len).max().unwrap_or(0)
}

fn add_all<'a>(
    trees: &mut OfPartition,
    key: &[u8; 32],
    (partitions, keys): (Partitions, u64),
    records: impl Iterator<Item = (&'a ObjectKey, &'a Record)>,
) {
    for (object, record) in records {
        let part = part_of(key, object, record);
        change(trees, (partitions, keys), object.token(), None, Some(part));
    }
}

/// The kinds of which two sets of trees say something else.
fn differing(some: &OfPartition, others: &OfPartition) -> Vec<TreeKind> {
    let kinds: BTreeSet<TreeKind> = some.keys().chain(others.keys()).copied().collect();
    let is_same = |kind: &TreeKind| match (some.get(kind), others.get(kind)) {
        (Some(one), Some(other)) => {
            let bits = one.bits().min(other.bits());
            one.len() == other.len() && one.sums(bits).eq(other.sums(bits))
        }
        (one, other) => one.or(other).is_none_or(HashTree::is_empty),
    };
    kinds.into_iter().filter(|kind| !is_same(kind)).collect()
}

impl<S: Store> Local<S> {
    /// Scans the next stretch of a partition that has no trees yet, or is to be scrubbed.
    pub(crate) fn build_trees(&mut self) {
        let Some(document) = self.document.clone() else { return };
        let now = self.now.monotonic;
        let keyspaces = document.keyspaces.keys().copied();
        let Some(Next { partition, keyspace, after, is_first, is_scrub }) =
            self.replica.trees.next(now, keyspaces)
        else {
            return;
        };
        if is_first {
            self.replica.prunable.begin_scan(partition);
        }
        let Some(keyspace) = keyspace else {
            self.replica.prunable.end_scan(partition);
            if let Some(wrong) = self.replica.trees.finish() {
                self.counters.trees_mended += 1;
                self.fill(wrong);
            }
            return;
        };
        let (start, end) = ObjectKey::range(keyspace, partition, document.partitions);
        let limit = if is_scrub { self.settings.scan_stretch_keys } else { self.settings.build_stretch_keys };
        let scanned = self.scan(partition, after.as_ref().unwrap_or(&start), &end, limit);
        self.replica.trees.put_off(partition, now);
        let Ok(scanned) = scanned else { return };
        let watermark = self.watermarks.of(partition);
        let mut due = Vec::new();
        for (object, record) in &scanned.records {
            match self.due(object, partition, record) {
                // The index may have no room for it.
                Some(at) if at <= watermark => due.push(object.clone()),
                Some(at) => self.replica.prunable.add(partition, object, at),
                None => {}
            }
        }
        let records = scanned.records.iter().map(|(object, record)| (object, &**record));
        self.replica.trees.passed(partition, records, scanned.until);
        // Now that the scan has passed them, the new trees follow.
        for object in due {
            self.prune_object(&object, partition, watermark);
        }
    }

    /// The trees that are not what a scan would make of them now. Partitions that cannot be read are passed over.
    pub(crate) fn trees_differing(&self) -> Vec<TreeId> {
        let Some(document) = self.document.clone() else { return Vec::new() };
        let kept = &self.replica.trees;
        let mut wrong = Vec::new();
        for (partition, trees) in kept.trees.each() {
            if let Some(fresh) = self.fresh_trees(&document, partition) {
                let differing = differing(trees, &fresh).into_iter();
                wrong.extend(differing.map(|kind| TreeId { kind, partition }));
            }
        }
        wrong
    }

    /// What a scan makes of a partition; none if something cannot be read.
    fn fresh_trees(&self, document: &ClusterDocument, partition: PartitionId) -> Option<OfPartition> {
        let mut fresh = OfPartition::new();
        for keyspace in document.keyspaces.keys() {
            let (start, end) = ObjectKey::range(*keyspace, partition, document.partitions);
            let stretch = self.replica.stretch(&start, &end, usize::MAX).ok()?;
            let mut records = Vec::new();
            for (object, held) in &stretch.held {
                match held {
                    Held::Record(record) => records.push((object, &**record)),
                    Held::Nothing => {}
                    Held::Damaged | Held::Unreadable => return None,
                }
            }
            let key = self.replica.trees.key();
            add_all(&mut fresh, key, (document.partitions, BUILDING_KEYS), records.into_iter());
        }
        Some(fresh)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_the_most_partitions_has_its_place() {
        let (first, last) = (PartitionId(0), PartitionId(u16::MAX));
        let mut built = Built::default();
        built.insert(last, OfPartition::new());
        built.insert(first, OfPartition::new());
        built.insert(last, OfPartition::new());
        assert_eq!(built.each().map(|(partition, _)| partition).collect::<Vec<_>>(), [first, last]);
        assert_eq!(built.partitions, 2);
        built.retain(|partition| partition == last);
        assert!(built.partitions == 1 && built.of(first).is_none() && built.of_mut(last).is_some());
        assert!(built.remove(last) && !built.remove(last));
        assert_eq!(built.partitions, 0);
    }
}
