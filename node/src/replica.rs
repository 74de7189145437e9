//! The replica: the store, what is written and not yet synced, and the versions that this node mints.
//!
//! Records that were written in this turn, or whose batch is still on its way, live in the *overlay*, which every
//! read sees first. A turn's changes are sealed into one batch; when it is committed the overlay lets go of what the
//! store now has; when it is refused the overlay lets go of what nobody has, and carries over into the next batch what
//! was acknowledged from memory.
//!
//! **Actors.** A version's actor is one unbroken memory of one partition's copy: chosen at random at the first write
//! after a start, and again after a record was found lost and after a batch was refused. The entry `(a, c)` in a
//! context claims to have seen every dot of `a` up to `c`; that is true only because an actor never writes on top of
//! less than its own past.

use std::{
    collections::{BTreeMap, VecDeque, btree_map::Entry},
    ops::Bound,
    sync::Arc,
};

use antientropy::version::{
    Actor, Context, CopyCount, Counter, Dot, HybridClock, LwwVersion, Record, SiblingSet, Value,
};
use bytes::Bytes;
use client::Refusal;
use rand_chacha::ChaCha8Rng;
use rand_core::Rng;
use ring::{ConflictPolicy, PartitionId};

use crate::{
    cache::RecordCache,
    event::Now,
    planted::PlantedBug,
    prunable::Prunable,
    settings::Settings,
    storage::{Batch, Change, ObjectKey, ReadError, Sequence, Store, Table, decode_stored, encode_stored},
    trees::Trees,
};

/// Counters from here on are nobody's clock, and leave no room to count on: they are not taken.
pub(crate) const PLAUSIBLE_MAX: Counter = Counter(u64::MAX - (1 << 32));

/// See the module's documentation.
pub(crate) struct Replica<S> {
    store: S,
    clock: HybridClock,
    actors: BTreeMap<PartitionId, Actor>,
    overlay: BTreeMap<ObjectKey, Pending>,
    cache: RecordCache,
    /// Bytes of the overlay's records.
    unsynced_bytes: usize,
    turn: Turn,
    in_flight: VecDeque<InFlight>,
    synced: Sequence,
    /// Whether the last batch that came back was refused.
    is_refusing: bool,
    /// Numbers up to this one were used by this store before it went back in time.
    floor: Sequence,
    planted: Option<PlantedBug>,
    /// The trees of what is held.
    pub(crate) trees: Trees,
    /// What watermarks will leave less of.
    pub(crate) prunable: Prunable,
}

/// A record whose last change is not synced.
struct Pending {
    record: Option<Arc<Record>>,
    bytes: usize,
    sequence: Sequence,
    /// Whether it holds something that was acknowledged, or will be, before it is synced.
    is_acknowledged: bool,
}

/// The batch that this turn will emit.
struct Turn {
    sequence: Sequence,
    /// Each object once.
    objects: Vec<ObjectKey>,
    meta: Vec<Change>,
    /// How many of the objects are only carried over from a batch that was refused: no reason to commit by themselves.
    carried: usize,
}

/// A batch on its way.
struct InFlight {
    sequence: Sequence,
    objects: Vec<ObjectKey>,
}

/// What a replica has of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// This.
    Record(Arc<Record>),
    /// Nothing.
    Nothing,
    /// Bytes that are not what was written: they can only be removed.
    Damaged,
    /// The engine could not read. What was written may be there all the same.
    Unreadable,
}

/// A stretch of a partition.
pub(crate) struct Stretch {
    /// What is held of each object, in their order.
    pub(crate) held: Vec<(ObjectKey, Held)>,
    /// Stored keys that name no object.
    pub(crate) nameless: Vec<Bytes>,
    /// Where it ends; none if nothing comes after it.
    pub(crate) until: Option<Bytes>,
}

impl Pending {
    /// What is held of the object because of it.
    fn held(&self) -> Held {
        self.record.as_ref().map_or(Held::Nothing, |record| Held::Record(Arc::clone(record)))
    }
}

impl Held {
    /// What a stored value holds.
    fn decode(key: &[u8], stored: &Bytes) -> Held {
        decode_stored(key, stored).map_or(Held::Damaged, |record| Held::Record(Arc::new(record)))
    }
}

/// What a write wants.
pub(crate) struct Mint {
    /// What this node holds of the object. Read once, by the caller, who has noted any damage: an actor that writes
    /// on top of less than it has written before claims to have seen what it lost.
    pub(crate) held: Option<Arc<Record>>,
    /// What happens to concurrent values.
    pub(crate) conflict: ConflictPolicy,
    /// What the writer has seen of this key.
    pub(crate) context: Context,
    /// The highest version that the writer has seen of any key, in a last-write-wins keyspace.
    pub(crate) seen: Counter,
    /// The value; none to delete.
    pub(crate) value: Option<Value>,
    /// How many copies are to be kept.
    pub(crate) copies: CopyCount,
    /// Whether this node keeps one of them. If not, it removes the record when it has handed it over, and has no memory of
    /// the key that an actor could stand for: each write has one of its own.
    pub(crate) is_kept: bool,
}

impl<S: Store> Replica<S> {
    /// The replica over a store that was just opened.
    pub(crate) fn new(store: S, settings: &Settings, planted: Option<PlantedBug>) -> Replica<S> {
        let synced = store.recovered();
        Replica {
            store,
            clock: HybridClock::new(),
            actors: BTreeMap::new(),
            overlay: BTreeMap::new(),
            cache: RecordCache::new(settings.record_cache_bytes),
            unsynced_bytes: 0,
            turn: Turn::new(Sequence(synced.0 + 1)),
            in_flight: VecDeque::new(),
            synced,
            is_refusing: false,
            floor: synced,
            planted,
            trees: Trees::new(settings.context_key.tree_key(), settings.scrub_interval),
            prunable: Prunable::new(settings.prunable_max),
        }
    }

    /// What this node holds of an object.
    pub(crate) fn held(&mut self, object: &ObjectKey) -> Held {
        if let Some(pending) = self.overlay.get(object) {
            return pending.held();
        }
        if let Some(record) = self.cache.get(object) {
            return Held::Record(Arc::clone(record));
        }
        let held = self.stored(object);
        if let Held::Record(record) = &held {
            self.cache.insert(object, record);
        }
        held
    }

    /// What the store holds of an object.
    fn stored(&self, object: &ObjectKey) -> Held {
        let key = object.encoded();
        match self.store.get(Table::Records, key) {
            Ok(None) => Held::Nothing,
            Ok(Some(stored)) => Held::decode(key, &stored),
            Err(_) => Held::Unreadable,
        }
    }

    /// What this node holds of an object, for inspection: nothing is kept in memory because of it.
    pub(crate) fn inspect(&self, object: &ObjectKey) -> Held {
        self.overlay.get(object).map_or_else(|| self.stored(object), Pending::held)
    }

    /// Whether what is held of an object is just this record, which was written and is not synced: what a coordinator
    /// has minted a moment ago.
    pub(crate) fn holds_unsynced(&self, object: &ObjectKey, record: &Arc<Record>) -> bool {
        let held = self.overlay.get(object).and_then(|pending| pending.record.as_ref());
        held.is_some_and(|held| Arc::ptr_eq(held, record))
    }

    /// The batch that carries the last change of an object; none if it is synced.
    pub(crate) fn pending(&self, object: &ObjectKey) -> Option<Sequence> {
        if self.planted == Some(PlantedBug::AcknowledgeBeforeSync) {
            return None;
        }
        self.overlay.get(object).map(|pending| pending.sequence)
    }

    /// The batch after which everything that this node holds now is synced; none if it is.
    pub(crate) fn pending_any(&self) -> Option<Sequence> {
        if self.turn.objects.is_empty() {
            self.in_flight.back().map(|batch| batch.sequence)
        } else {
            Some(self.turn.sequence)
        }
    }

    /// Mints a version of `object` on top of what this node holds of it, and stores the result.
    ///
    /// # Errors
    ///
    /// The limits on an object: `TooManySiblings`, `TooLarge`. Nothing was minted then.
    pub(crate) fn mint(
        &mut self,
        now: Now,
        object: &ObjectKey,
        partition: PartitionId,
        mint: Mint,
        settings: &Settings,
        rng: &mut ChaCha8Rng,
    ) -> Result<(Dot, Arc<Record>), Refusal> {
        let (before, mut local) = (mint.held.clone(), mint.held);
        if self.planted == Some(PlantedBug::ExpiredForgotten) {
            local = local.filter(|record| !record.live(now.wall).is_empty());
        }
        let floor =
            local.as_ref().map_or(Counter::ZERO, |record| record.highest()).max(mint.context.highest());
        if floor.max(mint.seen) >= PLAUSIBLE_MAX {
            return Err(Refusal::ClockDrift { drift_ms: i64::MIN });
        }
        let mut counter = self.clock.tick(now.wall).max(floor.next());
        let actor = if mint.is_kept { self.actor(partition, rng) } else { Actor(rng.next_u64()) };
        let (dot, record) = match mint.conflict {
            ConflictPolicy::Siblings => {
                let mut set = match local.map(Arc::unwrap_or_clone) {
                    Some(Record::Siblings(set)) => set,
                    Some(Record::Lww(_)) => unreachable!("a keyspace's conflict policy never changes"),
                    None => SiblingSet::new(),
                };
                let dot = Dot { counter, actor };
                let (is_put, writers) = (mint.value.is_some(), set.context_ref().entries().len());
                set.write(dot, &mint.context, mint.value, mint.copies);
                if is_put {
                    within_limits(&set, writers, settings)?;
                }
                (dot, Record::Siblings(set))
            }
            ConflictPolicy::LastWriteWins => {
                let seen = floor.max(mint.seen);
                counter = counter.max(seen.next());
                match self.planted {
                    Some(PlantedBug::LwwByWallClock) => counter = Counter::at(now.wall),
                    Some(PlantedBug::LwwMintedBelow) => counter = self.clock.tick(now.wall),
                    Some(_) | None => {}
                }
                let dot = Dot { counter, actor };
                let context = match self.planted {
                    // What is planted mints below the context, which a write asserts against.
                    Some(PlantedBug::LwwByWallClock | PlantedBug::LwwMintedBelow) => Context::new(),
                    Some(_) | None => mint.context,
                };
                let mut version = LwwVersion::write(dot, &context, mint.value, mint.copies);
                // The writer had seen what it says it had, and the coordinator what it holds.
                version.seen = seen;
                let mut record = Record::Lww(version);
                if let Some(local) = local {
                    record.merge(&local);
                }
                (dot, record)
            }
        };
        let record = Arc::new(record);
        self.put(object.clone(), before.as_deref(), Some(Arc::clone(&record)));
        Ok((dot, record))
    }

    /// The partition's actor.
    fn actor(&mut self, partition: PartitionId, rng: &mut ChaCha8Rng) -> Actor {
        *self.actors.entry(partition).or_insert_with(|| Actor(rng.next_u64()))
    }

    /// This node has lost something of the partition: whoever writes there from now on is another.
    pub(crate) fn retire_actor(&mut self, partition: PartitionId) {
        if self.planted != Some(PlantedBug::ActorKeptAfterLoss) {
            self.actors.remove(&partition);
        }
    }

    /// The store may not hold what it held: what is remembered of it is no record of what it holds.
    pub(crate) fn forget_cached(&mut self) {
        self.cache.clear_all();
    }

    /// Stores a record, or removes one, with this turn's batch.
    ///
    /// `before` is what is held of it now; none if nothing is, or if nobody knows because it is damaged.
    pub(crate) fn put(&mut self, object: ObjectKey, before: Option<&Record>, record: Option<Arc<Record>>) {
        if self.planted != Some(PlantedBug::LeafNotUpdated) || record.is_none() {
            self.trees.replaced(&object, before, record.as_deref());
        }
        self.note_prunable(&object, before, record.as_deref());
        let bytes = record.as_ref().map_or(0, |record| record.encoded_len()) + object.encoded().len();
        let mut pending = Pending { record, bytes, sequence: self.turn.sequence, is_acknowledged: false };
        self.unsynced_bytes += bytes;
        let before = match self.overlay.entry(object.clone()) {
            Entry::Occupied(mut before) => {
                // What was acknowledged before is in this record too, and if both their batches are refused only here.
                pending.is_acknowledged = before.get().is_acknowledged;
                Some(before.insert(pending))
            }
            Entry::Vacant(place) => {
                place.insert(pending);
                None
            }
        };
        self.unsynced_bytes -= before.as_ref().map_or(0, |before| before.bytes);
        if before.is_none_or(|before| before.sequence != self.turn.sequence) {
            self.cache.remove(&object);
            self.turn.objects.push(object);
        } else if self.turn.carried > 0 {
            // What was only carried over may now be a reason to commit: none of it counts as carried any more.
            self.turn.carried = 0;
        }
    }

    /// A record was replaced by another: which watermark will leave less of it.
    fn note_prunable(&mut self, object: &ObjectKey, before: Option<&Record>, after: Option<&Record>) {
        let [before, after] = [before, after].map(|record| record.and_then(Record::prunable_at));
        if before != after
            && let Some(partition) = self.trees.partition_of(object)
        {
            self.prunable.replaced(partition, object, before, after);
        }
    }

    /// What this node holds of an object goes into this turn's batch too, if it is not synced: whoever waits for this
    /// batch counts on it, and an earlier one that has it may be refused.
    pub(crate) fn put_again(&mut self, object: &ObjectKey) {
        let Some(pending) = self.overlay.get(object) else { return };
        if pending.sequence < self.turn.sequence {
            let record = pending.record.clone();
            self.put(object.clone(), record.clone().as_deref(), record);
        }
    }

    /// What this node holds of an object is acknowledged, or will be, before it is synced.
    pub(crate) fn acknowledged_from_memory(&mut self, object: &ObjectKey) {
        if let Some(pending) = self.overlay.get_mut(object) {
            pending.is_acknowledged = true;
        }
    }

    /// Removes what is stored under a key that names no object.
    pub(crate) fn remove_nameless(&mut self, key: Bytes) {
        self.turn.meta.push(Change { table: Table::Records, key, value: None });
    }

    /// Writes a fact about the node itself with this turn's batch.
    pub(crate) fn put_meta(&mut self, (key, value): (Bytes, Bytes)) -> Sequence {
        self.change_meta(key, Some(value));
        self.turn.sequence
    }

    /// Writes or removes a fact about the node itself with this turn's batch.
    pub(crate) fn change_meta(&mut self, key: Bytes, value: Option<Bytes>) {
        self.turn.meta.push(Change { table: Table::Meta, key, value });
    }

    /// Seals the turn: its batch, or none if nothing has changed.
    pub(crate) fn seal(&mut self) -> Option<Batch> {
        if !self.has_changes() {
            return None;
        }
        let next = Turn::new(Sequence(self.turn.sequence.max(self.floor).0 + 1));
        let turn = std::mem::replace(&mut self.turn, next);
        let mut changes = turn.meta;
        changes.reserve(turn.objects.len());
        for object in &turn.objects {
            let key = object.encoded().clone();
            let record = self.overlay.get(object).and_then(|pending| pending.record.as_ref());
            let value = record.map(|record| encode_stored(&key, record));
            changes.push(Change { table: Table::Records, key, value });
        }
        let sequence = turn.sequence;
        self.in_flight.push_back(InFlight { sequence, objects: turn.objects });
        Some(Batch { sequence, changes })
    }

    /// Batches through `sequence` are synced.
    pub(crate) fn committed(&mut self, sequence: Sequence) {
        assert!(sequence < self.turn.sequence, "only what was sealed can be committed");
        self.synced = self.synced.max(sequence);
        self.is_refusing = false;
        // The store takes batches again: what was carried over is a reason for the next.
        self.turn.carried = 0;
        while let Some(batch) = self.in_flight.pop_front_if(|batch| batch.sequence <= sequence) {
            self.let_go(&batch, true);
        }
    }

    /// The batches on their way from this one on.
    pub(crate) fn in_flight_from(&self, sequence: Sequence) -> Vec<Sequence> {
        let later = self.in_flight.iter().map(|batch| batch.sequence);
        later.filter(|batch| *batch >= sequence).collect()
    }

    /// The batch was refused. What only it carried is gone, but for what was acknowledged from memory: that stays,
    /// and goes into the next batch.
    pub(crate) fn commit_failed(&mut self, sequence: Sequence) {
        let position = self.in_flight.iter().position(|batch| batch.sequence == sequence);
        let batch =
            position.and_then(|at| self.in_flight.remove(at)).expect("a refused batch was on its way");
        self.is_refusing = true;
        self.prunable.raise_all();
        for object in &batch.objects {
            if let Some(pending) = self.overlay.get_mut(object)
                && pending.sequence == sequence
                && pending.is_acknowledged
            {
                pending.sequence = self.turn.sequence;
                self.turn.objects.push(object.clone());
                self.turn.carried += 1;
            }
        }
        self.let_go(&batch, false);
        if self.planted != Some(PlantedBug::ActorKeptAfterFailedBatch) {
            self.actors.clear();
        }
    }

    /// Drops from the overlay what no later batch has changed. What is committed, the store now holds.
    fn let_go(&mut self, batch: &InFlight, is_committed: bool) {
        for object in &batch.objects {
            if self.overlay.get(object).is_some_and(|pending| pending.sequence == batch.sequence)
                && let Some(pending) = self.overlay.remove(object)
            {
                self.unsynced_bytes -= pending.bytes;
                if !is_committed {
                    self.reverted(object, pending.record.as_deref());
                } else if let Some(record) = pending.record {
                    self.cache.insert(object, &record);
                }
            }
        }
    }

    /// What was held of an object is gone: it is what the store holds again.
    fn reverted(&mut self, object: &ObjectKey, before: Option<&Record>) {
        match self.stored(object) {
            Held::Record(record) => {
                self.trees.replaced(object, before, Some(&record));
                self.note_prunable(object, before, Some(&record));
            }
            Held::Nothing => self.trees.replaced(object, before, None),
            Held::Damaged | Held::Unreadable => self.trees.doubt_object(object),
        }
    }

    /// No batch after this turn's will have a number up to `sequence`; nor will this turn's, if it is empty so far.
    pub(crate) fn skip_through(&mut self, sequence: Sequence) {
        self.floor = self.floor.max(sequence);
        if self.turn.objects.is_empty() && self.turn.meta.is_empty() {
            self.turn.sequence = self.turn.sequence.max(Sequence(sequence.0.saturating_add(1)));
        }
    }

    /// Up to `limit` objects with `after < encoding < end`, as far as they are stored, and whatever of the same stretch is
    /// not synced yet.
    ///
    /// # Errors
    ///
    /// [`ReadError`] if the store cannot say what is there.
    pub(crate) fn stretch(&self, after: &Bytes, end: &Bytes, limit: usize) -> Result<Stretch, ReadError> {
        let stored = self.store.scan(Table::Records, Some(after), end, limit)?;
        let is_cut = stored.len() >= limit;
        let until = stored.last().filter(|_| is_cut).map(|(key, _)| key.clone());
        let (mut held, mut nameless) = (Vec::with_capacity(stored.len()), Vec::new());
        for (key, value) in stored {
            match ObjectKey::decode(&key) {
                Some(object) => held.push((object, Held::decode(&key, &value))),
                None => nameless.push(key),
            }
        }
        let pending = self.overlay.range((Bound::Excluded(ObjectKey::bound(after)), Bound::Unbounded));
        let is_in_it = |object: &ObjectKey| {
            object.encoded() < end && until.as_ref().is_none_or(|until| object.encoded() <= until)
        };
        let mut pending = pending.take_while(|(object, _)| is_in_it(object)).peekable();
        if pending.peek().is_some() {
            let mut newest: BTreeMap<ObjectKey, Held> = held.into_iter().collect();
            newest.extend(pending.map(|(object, pending)| (object.clone(), pending.held())));
            held = newest.into_iter().collect();
        }
        Ok(Stretch { held, nameless, until })
    }

    /// The hybrid clock, to be read and adjusted.
    pub(crate) fn clock(&mut self) -> &mut HybridClock {
        &mut self.clock
    }

    /// The last batch that is synced.
    pub(crate) fn synced(&self) -> Sequence {
        self.synced
    }

    /// The number of the batch that this turn will emit.
    pub(crate) fn turn_sequence(&self) -> Sequence {
        self.turn.sequence
    }

    /// Whether this turn has something to commit.
    pub(crate) fn has_changes(&self) -> bool {
        self.turn.objects.len() > self.turn.carried || !self.turn.meta.is_empty()
    }

    /// Whether no batch is on its way and nothing waits for one.
    pub(crate) fn is_quiet(&self) -> bool {
        self.in_flight.is_empty() && self.turn.objects.is_empty() && self.turn.meta.is_empty()
    }

    /// Whether the store refused the last batch that came back. Merges go on, and find out when it takes one again;
    /// nothing is minted until then.
    pub(crate) fn is_refusing(&self) -> bool {
        self.is_refusing
    }

    /// Bytes written and not yet synced.
    pub(crate) fn unsynced_bytes(&self) -> usize {
        self.unsynced_bytes
    }

    /// The store.
    pub(crate) fn store(&self) -> &S {
        &self.store
    }
}

impl Turn {
    fn new(sequence: Sequence) -> Turn {
        Turn { sequence, objects: Vec::new(), meta: Vec::new(), carried: 0 }
    }
}

/// Whether a set that a put has made may be stored. Deletes always may: they make a set smaller, but for an entry.
fn within_limits(set: &SiblingSet, writers_before: usize, settings: &Settings) -> Result<(), Refusal> {
    let writers = set.context_ref().entries().len();
    if writers > settings.writers_max && writers > writers_before {
        return Err(Refusal::TooManyWriters { limit: settings.writers_max });
    }
    if set.live_len() > settings.siblings_max {
        return Err(Refusal::TooManySiblings { limit: settings.siblings_max });
    }
    let size_bytes = set.bytes_len();
    if size_bytes > settings.object_bytes_max {
        return Err(Refusal::TooLarge { size_bytes, limit_bytes: settings.object_bytes_max });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use antientropy::version::{ContextKey, UnixMillis};
    use rand_core::SeedableRng;
    use ring::{KeyspaceId, StoreId};

    use super::*;
    use crate::storage::MemoryEngine;

    /// P4. Whoever wrote the key before asked for five copies, and the client's context says so; the coordinator, who
    /// had never heard of the key, kept as few as the keyspace has.
    #[test]
    fn a_last_write_wins_version_keeps_the_n_that_its_context_carries() {
        let settings = Settings::new(ContextKey::new([7; 32]));
        let mut replica = Replica::new(MemoryEngine::new(StoreId(1)), &settings, None);
        let now = Now { monotonic: std::time::Duration::ZERO, wall: UnixMillis(1_800_000_000_000) };
        let five = CopyCount::explicit(5);
        let context = Context::from_entries(five, vec![(Actor(9), Counter(70))]);
        let mint = Mint {
            held: None,
            conflict: ConflictPolicy::LastWriteWins,
            context,
            seen: Counter(90),
            value: Some(Value::new("value")),
            copies: CopyCount::DEFAULT,
            is_kept: true,
        };
        let (object, mut rng) = (ObjectKey::new(KeyspaceId(1), b"key"), ChaCha8Rng::from_seed([1; 32]));
        let minted = replica.mint(now, &object, PartitionId(0), mint, &settings, &mut rng);
        let (_, record) = minted.expect("within all limits");
        assert_eq!(record.copies(), five.raised(CopyCount::DEFAULT));
        let Record::Lww(version) = &*record else { panic!("of a keyspace in which the last write wins") };
        assert_eq!(version.seen, Counter(90), "what the session had seen of any key");
    }

    /// A write that was acknowledged from memory is under another when both their batches are refused: the object still
    /// holds it, and the next batch carries it.
    #[test]
    fn what_was_acknowledged_from_memory_outlives_the_refusal_of_what_was_written_over_it() {
        let settings = Settings::new(ContextKey::new([7; 32]));
        let mut replica = Replica::new(MemoryEngine::new(StoreId(1)), &settings, None);
        let mut rng = ChaCha8Rng::from_seed([1; 32]);
        let object = ObjectKey::new(KeyspaceId(1), b"key");
        let mut write = |replica: &mut Replica<MemoryEngine>, value: &'static str| {
            let now = Now { monotonic: std::time::Duration::ZERO, wall: UnixMillis(1_800_000_000_000) };
            let held = match replica.held(&object) {
                Held::Record(record) => Some(record),
                Held::Nothing | Held::Damaged | Held::Unreadable => None,
            };
            let mint = Mint {
                held,
                conflict: ConflictPolicy::Siblings,
                context: Context::new(),
                seen: Counter::ZERO,
                value: Some(Value::new(value)),
                copies: CopyCount::DEFAULT,
                is_kept: true,
            };
            replica.mint(now, &object, PartitionId(0), mint, &settings, &mut rng).expect("within limits").1
        };
        write(&mut replica, "acknowledged");
        replica.acknowledged_from_memory(&object);
        let first = replica.seal().expect("something was written").sequence;
        write(&mut replica, "not acknowledged");
        let second = replica.seal().expect("something was written").sequence;
        replica.commit_failed(first);
        replica.commit_failed(second);
        let Held::Record(record) = replica.held(&object) else { panic!("the acknowledged value is gone") };
        let Record::Siblings(set) = &*record else { panic!("of a keyspace that keeps siblings") };
        assert!(set.live_len() >= 1);
        assert!(!replica.is_quiet(), "it waits for the next batch");
        replica.committed(second);
    }
}
