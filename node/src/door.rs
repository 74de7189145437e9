//! The one door through which records come that carry their dots, from wherever they come.
//!
//! Each comes with what its sender had promised when it read it: up to there its copy lacked nothing that any other held, and
//! had forgotten only what was dead. Who is at a higher watermark has forgotten more: a write up to that one of which it knows
//! nothing may be one that it has seen deleted, so the record is refused, all of it. Values alone would not do: what an unknown
//! delete covers would go, and nothing would stay to say so. (No copy is at a watermark that a whole one has not promised. So
//! what is refused comes from one that fills, went back in time or has yet to hear of a document, or it was long on its way.)

use std::sync::Arc;

use antientropy::version::{Actor, CopyCount, Counter, Cut, Dot, Pruned, Record, SiblingSet};
use ring::{Durability, KeyspaceId, NodeId, PartitionId};

use crate::{
    hints::HintLeft,
    local::{Acknowledgement, Local, Unheld},
    message::{MergePath, MergeRefusal},
    placement::Owners,
    planted::PlantedBug,
    replica::PLAUSIBLE_MAX,
    storage::{ObjectKey, Store},
};

impl<S: Store> Local<S> {
    /// Joins a record to what is held. Returns the batch to wait for before it is acknowledged at this durability.
    pub(crate) fn merge(
        &mut self,
        object: &ObjectKey,
        record: &Arc<Record>,
        (from, under): (NodeId, Counter),
        durability: Durability,
        path: MergePath,
    ) -> Result<Acknowledgement, MergeRefusal> {
        let (partition, _) = self.copy_of(object)?;
        let keyspace = self.document.as_ref().and_then(|document| document.keyspaces.get(&object.keyspace()));
        if keyspace.is_none_or(|keyspace| keyspace.conflict != record.policy())
            || record.highest() >= PLAUSIBLE_MAX
        {
            return Err(MergeRefusal::Mismatched);
        }
        if self.replica.unsynced_bytes() > self.settings.unsynced_bytes_max {
            self.counters.merges_refused += 1;
            return Err(MergeRefusal::Overloaded);
        }
        let held = match self.held(object, partition) {
            Ok(held) => held,
            Err(Unheld::Damaged) => None,
            Err(Unheld::Unreadable) => return Err(MergeRefusal::StorageFailed),
        };
        let copies = held.as_ref().map_or(record.copies(), |held| held.copies().join(record.copies()));
        let keeps = self.keeps(object.keyspace(), partition, copies);
        if !keeps && !matches!(path, MergePath::StandIn { .. }) {
            return Err(MergeRefusal::NotOwner);
        }
        let watermark = self.watermarks.of(partition);
        let cut;
        let record = match self.judge((object, partition), held.as_deref(), (record, under), keeps, path) {
            Ok(()) => record,
            Err(refusal) => {
                let is_behind = matches!(refusal, MergeRefusal::Behind { .. });
                if is_behind && is_exchange(path) {
                    self.keep_alike(object, held.as_ref(), copies);
                }
                let is_owed = path == MergePath::Hint && is_behind;
                if !is_owed || !keeps || !self.knows_the_dead(object, partition, record.copies()) {
                    return Err(refusal);
                }
                // Its holder cannot tell what of it is dead, and has to hand over what is not.
                cut = self.cut(Some(record), held.as_deref(), watermark);
                let Some(rest) = &cut else { return self.acknowledge(object, durability) };
                rest
            }
        };
        let mut rest = held.clone();
        if is_exchange(path) && self.is_taught(partition, under) {
            rest = self.cut_by(from, (object, partition), held.as_ref(), Some(record));
        }
        let mut discarded_concurrent = false;
        let joined = match rest {
            None => Some(Arc::clone(record)),
            // Siblings that are here already need no copy to find out; of two last-write-wins versions the loser is
            // counted, whichever it is.
            Some(rest) if matches!(*rest, Record::Siblings(_)) && rest.dominates(record) => Some(rest),
            Some(rest) => {
                let mut joined = Record::clone(&rest);
                let outcome = joined.merge(record);
                discarded_concurrent = outcome.discarded_concurrent;
                Some(if outcome.changed { Arc::new(joined) } else { rest })
            }
        };
        self.counters.lww_discarded += u64::from(discarded_concurrent);
        let left = joined.and_then(|joined| self.left_of(joined, watermark));
        // It may be that only what was cut was to be kept here.
        let is_kept = |left: &Arc<Record>| {
            !keeps || left.copies() == copies || self.keeps(object.keyspace(), partition, left.copies())
        };
        let left = left.filter(is_kept);
        let is_same = match (&held, &left) {
            (None, None) => true,
            (Some(held), Some(left)) => Arc::ptr_eq(held, left) || held == left,
            (None, Some(_)) | (Some(_), None) => false,
        };
        if !is_same {
            let bytes = object.encoded().len() + record.encoded_len();
            let age_ms = self.now.wall.0.saturating_sub(record.highest().millis().0);
            self.counters.merged(path, bytes, age_ms);
            self.replica.put(object.clone(), held.as_deref(), left);
        }
        self.acknowledge(object, durability)
    }

    /// A record is refused, and what is held of the same object is kept by fewer: it is to be kept by as many, so that the other
    /// side can be told of it. That nothing is held would be a lie.
    fn keep_alike(&mut self, object: &ObjectKey, held: Option<&Arc<Record>>, copies: CopyCount) {
        if let Some(held) = held.filter(|held| !held.copies().includes(copies)) {
            let mut raised = Record::clone(held);
            raised.raise_copies(copies);
            self.replica.put(object.clone(), Some(held), Some(Arc::new(raised)));
        }
    }

    /// Whether a record may come in.
    fn judge(
        &mut self,
        (object, partition): (&ObjectKey, PartitionId),
        held: Option<&Record>,
        (record, under): (&Record, Counter),
        keeps: bool,
        path: MergePath,
    ) -> Result<(), MergeRefusal> {
        if !is_exchange(path) {
            // All writes up to there are over, and what is true of them exchanges bring. Taken now, between exchanges that
            // have begun and the watermark that follows from them, a delete would stand here alone and be forgotten.
            let closed = self.watermarks.closed(partition);
            let is_over = record.highest() <= closed && Record::names_unknown(record, held, closed);
            // And what this node said that it does not owe, nobody may ask it to.
            let is_stand_in = matches!(path, MergePath::StandIn { .. });
            // Its coordinator has yet to hear of a watermark, and reads again when it has.
            let watermark = self.watermarks.of(partition);
            if is_over && path == MergePath::ReadRepair && Record::names_unknown(record, held, watermark) {
                self.counters.merged_behind(path);
                return Err(MergeRefusal::Behind { watermark });
            }
            if is_over || (is_stand_in && record.highest() <= self.watermarks.floor()) {
                self.counters.merges_late += 1;
                return Err(MergeRefusal::Late);
            }
        }
        let watermark = self.watermarks.of(partition);
        // No exchange brings tombstones of what this node does not keep.
        let bound = if keeps { watermark } else { watermark.max(self.watermarks.promise(partition).at) };
        let is_planted = is_exchange(path) && self.planted == Some(PlantedBug::DelayedExchangeMergeTaken);
        if under < bound
            && Record::names_unknown(record, held, bound)
            && !is_planted
            && !(is_exchange(path) && self.is_in_union(object.keyspace(), partition, record.copies()))
        {
            self.counters.merged_behind(path);
            if is_exchange(path) {
                self.copies.blocked(partition, object.keyspace(), record.copies());
            }
            if self.planted == Some(PlantedBug::BlockedEntryJoined) {
                self.join_context(object, held, record);
            }
            return Err(MergeRefusal::Behind { watermark });
        }
        Ok(())
    }

    /// For a planted bug: joins what a record has seen, and not its values.
    fn join_context(&mut self, object: &ObjectKey, held: Option<&Record>, record: &Record) {
        let joined = with_context(held, record).map(Arc::new);
        self.replica.put(object.clone(), held, joined);
    }

    /// A peer holds nothing of an object in an exchange, and read that under this watermark.
    ///
    /// # Errors
    ///
    /// If it is not known what is held here.
    pub(crate) fn hear_nothing(
        &mut self,
        object: &ObjectKey,
        (from, under): (NodeId, Counter),
    ) -> Result<(), Unheld> {
        let Ok((partition, _)) = self.copy_of(object) else { return Ok(()) };
        if !self.is_taught(partition, under) {
            return Ok(());
        }
        if let Some(held) = self.held(object, partition)? {
            let rest = self.cut_by(from, (object, partition), Some(&held), None);
            if rest.as_ref().is_none_or(|rest| *rest != held) {
                self.replica.put(object.clone(), Some(&held), rest);
            }
        }
        Ok(())
    }

    /// Whether another copy speaks for more than this one has forgotten.
    fn is_taught(&self, partition: PartitionId, under: Counter) -> bool {
        let watermark = self.watermarks.of(partition);
        watermark > Counter::ZERO && under >= watermark && self.planted != Some(PlantedBug::GhostKept)
    }

    /// What is left of a record of this copy, if that cannot be believed, when another that can holds this.
    fn cut_by(
        &mut self,
        from: NodeId,
        (object, partition): (&ObjectKey, PartitionId),
        held: Option<&Arc<Record>>,
        believed: Option<&Record>,
    ) -> Option<Arc<Record>> {
        let copies = held?.copies();
        let keyspace = object.keyspace();
        // A whole copy, too, need not know what is dead of a record that it keeps only since more copies were asked for.
        let is_to_learn =
            !self.copies.is_whole(partition) || !self.has_kept_from_first(keyspace, partition, copies);
        let is_to_be_believed = self.is_first_keeper(from, keyspace, partition, copies)
            || self.planted == Some(PlantedBug::LatecomerBelieved);
        if !is_to_learn || !is_to_be_believed {
            return held.cloned();
        }
        self.cut(held, believed, self.watermarks.of(partition))
    }

    /// Whether a node has kept a record since its first write. One that keeps it only since more copies were asked for need
    /// not have heard of what came before.
    pub(crate) fn is_first_keeper(
        &self,
        node: NodeId,
        keyspace: KeyspaceId,
        partition: PartitionId,
        copies: CopyCount,
    ) -> bool {
        let document = self.document.as_ref();
        let first =
            document.and_then(|document| Owners::first_keepers(document, keyspace, partition, copies));
        first.is_some_and(|first| first.contains(node))
    }

    /// Whether this node, which keeps a record, has kept it since its first write.
    fn has_kept_from_first(&self, keyspace: KeyspaceId, partition: PartitionId, copies: CopyCount) -> bool {
        copies.is_even() || self.is_first_keeper(self.node, keyspace, partition, copies)
    }

    /// Whether what this copy has never heard of a record is dead, up to its watermark.
    fn knows_the_dead(&self, object: &ObjectKey, partition: PartitionId, copies: CopyCount) -> bool {
        self.is_believed(partition) && self.is_first_keeper(self.node, object.keyspace(), partition, copies)
    }

    /// What is left of a record that cannot be believed, where a copy that can holds this. What goes is dead, and goes with what
    /// it claims to have seen.
    fn cut(
        &mut self,
        held: Option<&Arc<Record>>,
        believed: Option<&Record>,
        watermark: Counter,
    ) -> Option<Arc<Record>> {
        let held = held?;
        let Cut { mut rest, has_lost } = held.cut(believed, watermark);
        if self.planted == Some(PlantedBug::CutKeepsEntry) {
            rest = with_context(rest.as_ref(), held);
        }
        self.counters.values_quarantined += u64::from(has_lost);
        match rest {
            Some(rest) if rest == **held => Some(Arc::clone(held)),
            rest => rest.map(Arc::new),
        }
    }

    /// What a watermark leaves of a record.
    pub(crate) fn left_of(&mut self, record: Arc<Record>, watermark: Counter) -> Option<Arc<Record>> {
        let pruned = match self.planted {
            Some(PlantedBug::ContextByOwnCounter) => record.prune_each(watermark),
            Some(_) | None => record.prune(watermark),
        };
        match pruned {
            Pruned::Same => Some(record),
            Pruned::Less(less) => {
                self.counters.contexts_pruned += 1;
                Some(Arc::new(less))
            }
            Pruned::Nothing => {
                self.counters.tombstones_dropped += 1;
                None
            }
        }
    }

    /// Whether this node keeps records of so many copies.
    pub(crate) fn keeps(&self, keyspace: KeyspaceId, partition: PartitionId, copies: CopyCount) -> bool {
        let document = self.document.as_ref();
        let keepers = document.and_then(|document| Owners::keepers(document, keyspace, partition, copies));
        keepers.is_some_and(|keepers| keepers.contains(self.node))
    }

    /// Whether this node's copy of a partition is whole, and that of the store that the document records.
    pub(crate) fn is_believed(&self, partition: PartitionId) -> bool {
        self.copies.is_whole(partition) && self.is_recorded()
    }

    /// Up to where this node speaks for its copy of a partition, if that is whole: what it promised.
    pub(crate) fn under(&self, partition: PartitionId) -> Counter {
        if self.is_believed(partition) {
            self.watermarks.of(partition).max(self.watermarks.promise(partition).at)
        } else {
            Counter::ZERO
        }
    }

    /// Up to where this node has every write of a partition that is not dead: the watermark, if it keeps records of
    /// whatever number of copies. (One that keeps a record only since its number rose may not have all of it.)
    pub(crate) fn knows_all_below(&self, keyspace: KeyspaceId, partition: PartitionId) -> Counter {
        if self.is_believed(partition) && self.keeps(keyspace, partition, CopyCount::explicit(1)) {
            self.watermarks.of(partition)
        } else {
            Counter::ZERO
        }
    }

    /// The same of a record, which may be one that it does not keep, or has not kept since its first write.
    pub(crate) fn under_of(&self, object: &ObjectKey, partition: PartitionId, record: &Record) -> Counter {
        if self.keeps(object.keyspace(), partition, record.copies()) {
            self.under_kept(object.keyspace(), partition, record.copies())
        } else {
            Counter::ZERO
        }
    }

    /// The same of a record that it keeps.
    pub(crate) fn under_kept(
        &self,
        keyspace: KeyspaceId,
        partition: PartitionId,
        copies: CopyCount,
    ) -> Counter {
        if self.has_kept_from_first(keyspace, partition, copies) {
            self.under(partition)
        } else {
            Counter::ZERO
        }
    }

    /// Takes a record in place of another node, and leaves a hint for that one with the same batch, which is what the
    /// acknowledgement waits for.
    pub(crate) fn stand_in(
        &mut self,
        target: NodeId,
        object: &ObjectKey,
        record: &Arc<Record>,
        under: Counter,
        durability: Durability,
    ) -> Result<Acknowledgement, MergeRefusal> {
        // A hint that is left now might not be stored with that batch.
        if self.replica.is_refusing() {
            self.counters.stand_ins_refused += 1;
            return Err(MergeRefusal::StorageFailed);
        }
        let path = MergePath::StandIn { target };
        let merged = self.merge(object, record, (self.node, under), durability, path);
        merged.inspect_err(|_| self.counters.stand_ins_refused += 1)?;
        self.note_stand_in(object);
        self.replica.put_again(object);
        let counter = record.highest();
        self.hints_left.push(HintLeft { target, object: object.clone(), is_counted: true, counter });
        let mut acknowledgement = self.acknowledge(object, durability)?;
        if durability == Durability::Disk || acknowledgement.after.is_some() {
            acknowledgement.after = Some(self.replica.turn_sequence());
        }
        Ok(acknowledgement)
    }
}

/// For planted bugs: a record with all that another has seen, under a dot of its own.
fn with_context(record: Option<&Record>, seen: &Record) -> Option<Record> {
    let Record::Siblings(seen) = seen else { return record.cloned() };
    let mut set = match record {
        Some(Record::Siblings(set)) => set.clone(),
        Some(Record::Lww(_)) | None => SiblingSet::new(),
    };
    let highest = seen.highest().max(set.highest());
    let dot = Dot { counter: highest.next(), actor: Actor(highest.0) };
    set.write(dot, &seen.context(), None, seen.copies());
    Some(Record::Siblings(set))
}

/// Whether what comes this way comes in an exchange.
fn is_exchange(path: MergePath) -> bool {
    matches!(path, MergePath::AntiEntropy | MergePath::Movement)
}
