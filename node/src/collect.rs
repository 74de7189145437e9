//! What follows from floors, promises and watermarks at this node: what it promises, from when on it forgets, and that it does.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use antientropy::version::{CopyCount, Counter, Record};
use ring::{ClusterDocument, KeyspaceId, NodeId, PartitionId};

use crate::{
    copies::Judged,
    hints::Hints,
    local::Local,
    placement::Owners,
    planted::PlantedBug,
    replica::PLAUSIBLE_MAX,
    storage::{ObjectKey, Sequence, Store},
    watermarks::standing::Standing,
};

/// Records that are pruned in one turn.
const PRUNED_AT_ONCE: usize = 64;

impl<S: Store> Local<S> {
    /// Raises this node's floor and promises what it can, if it is time. `under_way` is the lowest of its writes that are
    /// under way.
    pub(crate) fn tend_watermarks(&mut self, hints: &Hints, under_way: impl FnOnce() -> Option<Counter>) {
        let clock = self.replica.clock().peek(self.now.wall);
        self.watermarks.sample(self.now, clock, &self.settings);
        if self.may_raise_floor(hints)
            && let Some(shown) = self.watermarks.floor_due(self.now, &self.settings)
        {
            let settled = u64::try_from(self.settings.settled_after.as_millis()).unwrap_or(u64::MAX);
            // A clock that is ahead of all others takes nobody's floor along.
            let others = self.peers.lowest_clock(self.now, &self.settings);
            let others = others.map(|clock| {
                Counter::at(antientropy::version::UnixMillis(clock.millis().0.saturating_sub(settled)))
            });
            let under_way = under_way().map(|dot| Counter(dot.0.saturating_sub(1)));
            let floor = [others, under_way].into_iter().flatten().fold(shown, Counter::min);
            self.watermarks.raise_floor(floor);
            // Its wall clock may go back.
            self.replica.clock().begin_above(floor);
        }
        if self.watermarks.promises_due(self.now, &self.settings) && !hints.is_partly_unread() {
            let (epoch, owed) = (self.epoch(), self.lowest_owed(hints));
            let whole: Vec<PartitionId> = self.whole_copies().collect();
            // What it holds in place of others was all there was when it came, up to its promise.
            for partition in whole.into_iter().filter(|partition| !owed.contains_key(partition)) {
                self.watermarks.make_promise(partition, epoch);
            }
        }
    }

    /// Of each partition the lowest write that this node owes and others count on.
    fn lowest_owed(&self, hints: &Hints) -> BTreeMap<PartitionId, Counter> {
        let Some(document) = &self.document else { return BTreeMap::new() };
        if self.planted == Some(PlantedBug::CountedHintsPassed) {
            return BTreeMap::new();
        }
        let mut lowest = hints.lowest_counted(document.partitions);
        // Those that were left in this turn are not in their queues yet.
        for hint in self.hints_left.iter().filter(|hint| hint.is_counted) {
            let known = lowest.entry(hint.object.partition(document.partitions)).or_insert(hint.counter);
            *known = hint.counter.min(*known);
        }
        lowest
    }

    /// Whether this node knows what it owes and what time it is.
    fn may_raise_floor(&self, hints: &Hints) -> bool {
        self.is_recorded() && self.drifted_ms().is_none() && !hints.is_partly_unread()
    }

    /// How far this node's clock is from its peers', if that is more than it may be.
    pub(crate) fn drifted_ms(&self) -> Option<i64> {
        let max_ms = i64::try_from(self.settings.clock_drift_max.as_millis()).unwrap_or(i64::MAX);
        self.peers.drift_ms(self.now).filter(|drift_ms| drift_ms.saturating_abs() > max_ms)
    }

    /// Copies that may be believed.
    fn whole_copies(&self) -> impl Iterator<Item = PartitionId> {
        let is_recorded = self.is_recorded();
        self.copies.partitions().filter(move |partition| is_recorded && self.copies.is_whole(*partition))
    }

    /// Batches through this one are synced: what they brought may be said.
    pub(crate) fn watermarks_committed(&mut self, sequence: Sequence, hints: &Hints) {
        let committed = self.watermarks.committed(sequence);
        if committed.floor && !hints.is_partly_unread() {
            self.watermarks.say_floors(&self.lowest_owed(hints));
        }
        for partition in committed.promises {
            self.adopt_watermark(partition);
        }
    }

    /// Says where this node stands with what it shares with another.
    pub(crate) fn standing(&self, shared: &[PartitionId]) -> Standing {
        let filling = |partition| {
            if self.is_believed(partition) { 0 } else { self.copies.time(partition).generation.max(1) }
        };
        self.watermarks.standing(shared, filling, self.planted)
    }

    /// An exchange begins: no write is under way any more of those that it counts.
    pub(crate) fn close(&mut self, shared: &[PartitionId], standing: &Standing) {
        for (partition, run) in shared.iter().zip(standing.each()) {
            self.watermarks.close(*partition, run.lowest);
        }
    }

    /// Another node says where it stands with what it shares with this one. Whether this node is not ahead of it anywhere.
    pub(crate) fn hear_standing(
        &mut self,
        from: NodeId,
        shared: &[PartitionId],
        standing: &Standing,
    ) -> bool {
        let mut is_level = true;
        for (partition, run) in shared.iter().zip(standing.each()) {
            self.watermarks.hear(*partition, from, run);
            if !self.copies.is_whole(*partition) && run.floor < PLAUSIBLE_MAX {
                self.replica.clock().begin_above(run.floor);
            }
            self.raise_watermark(*partition, run.watermark);
            self.adopt_watermark(*partition);
            is_level &= self.watermarks.of(*partition) <= run.watermark;
        }
        is_level
    }

    /// The same of a store that is not recorded: it is no copy yet.
    pub(crate) fn hear_stranger(
        &mut self,
        from: NodeId,
        shared: &[PartitionId],
        standing: &Standing,
    ) -> bool {
        let mut is_level = true;
        for (partition, run) in shared.iter().zip(standing.each()) {
            self.watermarks.hear_filling(*partition, from, run.filling.max(1));
            is_level &= self.watermarks.of(*partition) <= run.watermark;
        }
        is_level
    }

    /// Takes the watermark that all promises allow.
    fn adopt_watermark(&mut self, partition: PartitionId) {
        if self.is_believed(partition)
            && let Some(watermark) = self.watermarks.adoptable(partition, self.epoch(), self.planted)
        {
            self.raise_watermark(partition, watermark);
        }
    }

    /// All copies have promised this watermark: what is superfluous at it goes.
    pub(crate) fn raise_watermark(&mut self, partition: PartitionId, watermark: Counter) {
        if watermark <= self.watermarks.of(partition)
            || watermark >= PLAUSIBLE_MAX
            || self.copies.gained(partition).is_none()
        {
            return;
        }
        if self.copies.is_marked(partition) && self.watermarks.promise(partition).at < watermark {
            // It promised it and does not know: its store has gone back in time.
            self.has_forgotten = true;
            self.fill(partition);
        }
        self.counters.watermarks_raised += 1;
        self.watermarks.set(partition, watermark);
        // It rests on the floors of those that were copies, and a node that has become one may have a clock behind all theirs.
        if self.planted != Some(PlantedBug::MintBelowPromise) {
            self.replica.clock().begin_above(watermark);
        }
        // What was exchanged at a lower one may be dead at this one.
        self.copies.begin_round(partition);
        if self.copies.time(partition).generation != 0 {
            self.to_exchange.insert(partition);
        }
        self.replica.prunable.raise(partition);
        if self.replica.prunable.is_to_scan(partition, watermark) {
            self.replica.trees.refresh(partition);
        }
    }

    /// Whether all of a partition is pruned at its watermark.
    pub(crate) fn is_pruned(&self, partition: PartitionId) -> bool {
        self.replica.prunable.is_pruned(partition, self.watermarks.of(partition))
    }

    /// Whether something may be to be pruned, and this node's disk takes it.
    pub(crate) fn has_prunable(&self) -> bool {
        self.replica.prunable.is_any_raised()
            && !self.replica.is_refusing()
            && self.replica.unsynced_bytes() <= self.settings.unsynced_bytes_max / 2
    }

    /// Drops what is superfluous at the watermarks, some of it. Whether there was something.
    pub(crate) fn prune_some(&mut self) -> bool {
        if !self.has_prunable() {
            return false;
        }
        let Some(partition) = self.replica.prunable.raised() else { return false };
        let watermark = self.watermarks.of(partition);
        for _ in 0..PRUNED_AT_ONCE {
            let Some(object) = self.replica.prunable.next(partition, watermark) else {
                self.replica.prunable.is_done(partition);
                break;
            };
            self.prune_object(&object, partition, watermark);
        }
        true
    }

    pub(crate) fn prune_object(&mut self, object: &ObjectKey, partition: PartitionId, watermark: Counter) {
        let Ok(Some(held)) = self.held(object, partition) else { return };
        if let Some(due) = self.due(object, partition, &held)
            && due > watermark
        {
            self.replica.prunable.add(partition, object, due);
            return;
        }
        let left = if self.keeps(object.keyspace(), partition, held.copies()) {
            self.left_of(Arc::clone(&held), watermark)
        } else {
            None
        };
        if left.as_ref().is_none_or(|left| !Arc::ptr_eq(left, &held)) {
            self.replica.put(object.clone(), Some(&held), left);
        }
    }

    /// The watermark at which less is left of a record, if there is one. What this node does not keep goes as a whole: what
    /// it holds in place of others is above every watermark until it is delivered.
    pub(crate) fn due(&self, object: &ObjectKey, partition: PartitionId, record: &Record) -> Option<Counter> {
        if self.keeps(object.keyspace(), partition, record.copies()) {
            record.prunable_at()
        } else {
            Some(record.highest())
        }
    }

    /// What is held in place of others, too, is to go when nobody needs it.
    pub(crate) fn note_stand_in(&mut self, object: &ObjectKey) {
        if let Ok((partition, _)) = self.copy_of(object)
            && let Ok(Some(held)) = self.held(object, partition)
            && let Some(due) = self.due(object, partition, &held)
        {
            self.replica.prunable.add(partition, object, due);
        }
    }

    /// Nobody is owed an object any more: if this node does not keep it, it goes.
    pub(crate) fn let_go_unkept(&mut self, object: &ObjectKey) {
        let Ok((partition, _)) = self.copy_of(object) else { return };
        if let Ok(Some(held)) = self.held(object, partition)
            && !self.keeps(object.keyspace(), partition, held.copies())
        {
            self.replica.put(object.clone(), Some(&held), None);
        }
    }

    // Filling.

    /// Partitions of which this node is to keep records under a document that it does not keep under the present one, and that
    /// another copy has kept. (What none has is nowhere to be had: whoever becomes the first of a list need not fill for records
    /// of one copy.)
    pub(crate) fn grown(&self, document: &ClusterDocument) -> Vec<PartitionId> {
        let Some(before) = &self.document else { return Vec::new() };
        let is_grown = |partition: &PartitionId| {
            before.keyspaces.keys().any(|keyspace| {
                let of = |document| Owners::of_every_count(document, *keyspace, *partition);
                let all = Owners::keepers(
                    document,
                    *keyspace,
                    *partition,
                    CopyCount::explicit(CopyCount::EXPLICIT_MAX),
                );
                let is_other =
                    |node: NodeId| node != self.node && all.as_ref().is_some_and(|all| all.contains(node));
                let mut both = of(document).zip(of(before));
                both.any(|(after, before)| {
                    after.contains(self.node) && !before.contains(self.node) && before.nodes().any(is_other)
                })
            })
        };
        self.copies.partitions().filter(is_grown).collect()
    }

    /// Whether records of this count are taken whatever their sender knows: of the others that would know what of them is
    /// dead, none was whole.
    pub(crate) fn is_in_union(
        &self,
        keyspace: KeyspaceId,
        partition: PartitionId,
        copies: CopyCount,
    ) -> bool {
        let (Some(found), Some(document)) = (self.copies.union(partition), &self.document) else {
            return false;
        };
        let keepers = if self.planted == Some(PlantedBug::LatecomerBelieved) {
            Owners::keepers(document, keyspace, partition, copies)
        } else {
            Owners::first_keepers(document, keyspace, partition, copies)
        };
        keepers.is_some_and(|keepers| lacks_whole(&keepers, self.node, found))
    }

    /// A filling copy that has exchanged with all others becomes whole, if the document records this store.
    pub(crate) fn become_whole(&mut self, partition: PartitionId) {
        if !self.is_recorded() || self.replica.is_refusing() || self.copies.time(partition).generation == 0 {
            return;
        }
        let Some(document) = self.document.clone() else { return };
        let (node, others) = (self.node, self.sharers.get(&partition).map_or(&[][..], Vec::as_slice));
        let needs_union = |found: &BTreeMap<NodeId, u64>, blocked: &BTreeSet<(KeyspaceId, CopyCount)>| {
            let is_shared_by = |keepers: &Owners| keepers.contains(node) && keepers.len() > 1;
            let of_every_count =
                |keyspace: &KeyspaceId| Owners::of_every_count(&document, *keyspace, partition);
            let mut kept = document.keyspaces.keys().flat_map(of_every_count).filter(is_shared_by);
            let first_keepers = |&(keyspace, copies): &(KeyspaceId, CopyCount)| {
                Owners::first_keepers(&document, keyspace, partition, copies)
            };
            let mut refused = blocked.iter().filter_map(first_keepers);
            kept.any(|keepers| lacks_whole(&keepers, node, found))
                || refused.any(|keepers| lacks_whole(&keepers, node, found))
        };
        let judged = self.copies.judge(partition, others, needs_union);
        match judged {
            Judged::Filling => return,
            Judged::Again => {
                self.to_exchange.insert(partition);
                return;
            }
            Judged::Whole => {}
            Judged::Union => self.counters.unions += 1,
        }
        self.copies.becoming_whole(partition, self.replica.turn_sequence());
        self.write_mark(partition);
    }
}

/// Whether none of the other keepers of some records was whole.
fn lacks_whole(keepers: &Owners, node: NodeId, found: &BTreeMap<NodeId, u64>) -> bool {
    !keepers.nodes().any(|keeper| keeper != node && found.get(&keeper) == Some(&0))
}
