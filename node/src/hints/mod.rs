//! Hints: merges that are still owed to replicas that did not acknowledge them (Dynamo, section 4.6).
//!
//! A hint names an object; when its target answers again, what this node then holds of the object is merged there. It is
//! stored under its target and its object, with the batch of the turn that leaves it, and removed once the target has
//! acknowledged as a durable merge. So it survives restarts of its holder, and an object that is written a thousand times
//! while its target is down costs one hint and one merge. What a crash takes along before it is synced, exchanges cover.
//!
//! Hints are bounded in number and age for each target; at the bound the oldest is dropped and counted. (They hold no
//! values: a hint costs its key and some hundred bytes, in memory and on disk.)
//!
//! **A hint that was counted in an acknowledgement is data.** It is left by a node that stands in for the target in a sloppy
//! quorum, which may be the only one to hold the write. It is never dropped; at the bound such writes are not taken.
//!
//! **The receiver sets the pace** ([`grants`]): a holder says how much it has, and sends as many merges as it is granted.

pub(crate) mod grants;
mod stored;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use antientropy::version::{CopyCount, Counter, UnixMillis};
use bytes::Bytes;
use ring::{ClusterDocument, Durability, KeyspaceId, NodeId, PartitionId, Partitions};

use crate::{
    coordinator::Step,
    local::{Event, Local, Unheld},
    message::{MergeOutcome, MergePath, MergeRefusal, Message, Tag},
    placement::Owners,
    planted::PlantedBug,
    storage::{ObjectKey, Sequence, Store},
};
pub(crate) use stored::is_hint;

/// How long a replay may take, and how long to wait after one that failed, or for a grant.
const REPLAY_TIMEOUT: Duration = Duration::from_secs(1);
/// How long to wait before hints that could not be read are read again.
const READ_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How long to wait after a grant of nothing.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// Bytes of records on their way to one target before more are sent: large values must not fill its connection.
const FLYING_BYTES_MAX: usize = 4 << 20;

/// Hints that are stored again with one batch, after batches were refused.
const SAVED_AT_ONCE: usize = 4096;

/// A hint as it is read back: whom it is for, what it says, and what it names.
pub(crate) type StoredHint = (NodeId, Owed, ObjectKey);

/// A hint that an operation leaves.
#[derive(Clone, Debug)]
pub(crate) struct HintLeft {
    /// Whom it is for.
    pub(crate) target: NodeId,
    /// What it names.
    pub(crate) object: ObjectKey,
    /// Whether an acknowledgement counts on it.
    pub(crate) is_counted: bool,
    /// The highest counter of the record that it is left for.
    pub(crate) counter: Counter,
}

/// What a hint says beside its target and its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owed {
    /// Since when it waits.
    pub(crate) since: UnixMillis,
    /// Whether an acknowledgement counts on it.
    pub(crate) is_counted: bool,
    /// The highest counter of the record for which it was first left, counted: this node's floor stays below it.
    pub(crate) counter: Counter,
}

/// The hints for one target, counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HintsPending {
    /// The target.
    pub target: NodeId,
    /// How many wait or are on their way.
    pub count: usize,
    /// How many of these an acknowledgement counts on.
    pub counted: usize,
    /// Since when the oldest waits; none if none does.
    pub oldest: Option<UnixMillis>,
}

/// The hints of this node, by target.
pub(crate) struct Hints {
    queues: BTreeMap<NodeId, Queue>,
    /// Hints that were stored or removed by batches that are on their way.
    unsynced: VecDeque<(Sequence, NodeId, ObjectKey)>,
    /// Hints that were to be stored or removed by a batch that was refused, or while none are taken.
    unsaved: BTreeSet<(NodeId, ObjectKey)>,
    /// What the store has kept could be read up to this key, and when to read on; none if all is read.
    unread: Option<(Bytes, Duration)>,
}

/// The hints for one target.
#[derive(Default)]
struct Queue {
    /// Those that wait, with their places in line, which are handed out in order.
    waiting: BTreeMap<ObjectKey, (u64, Owed)>,
    /// The line of those that are counted, and the line of the others.
    counted: BTreeMap<u64, ObjectKey>,
    plain: BTreeMap<u64, ObjectKey>,
    next_place: u64,
    /// Those on their way. (One that is left again meanwhile waits as well.)
    flying: BTreeMap<ObjectKey, Owed>,
    /// How many of those are counted.
    counted_flying: usize,
    flying_bytes: usize,
    /// How many more the target has granted.
    granted: u32,
    /// Until when nothing is sent or asked.
    wait_until: Duration,
}

/// The replay of one hint.
#[derive(Debug)]
pub(crate) struct HintOperation {
    operation: u64,
    target: NodeId,
    object: ObjectKey,
    owed: Owed,
    bytes: usize,
    timer: Duration,
    fate: Fate,
}

/// What is to become of a hint after its replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It is still owed.
    Owed,
    /// It is delivered.
    Delivered,
    /// Its target says that it does not keep the object.
    Misdirected,
    /// Its target cannot tell what of the object is dead, for it keeps it only since more copies were asked for. Others can, and
    /// exchanges bring it what they have.
    ForOthers,
}

impl Hints {
    /// The hints that a store has kept.
    pub(crate) fn open<S: Store>(now: Duration, store: &S) -> Hints {
        let mut hints = Hints {
            queues: BTreeMap::new(),
            unsynced: VecDeque::new(),
            unsaved: BTreeSet::new(),
            unread: None,
        };
        hints.read(now, store, None);
        hints
    }

    /// Reads what the store has kept, from the first or from where it could not be read on before.
    fn read<S: Store>(&mut self, now: Duration, store: &S, from: Option<Bytes>) {
        let (mut stored, rest) = stored::read(store, from);
        stored.sort_by_key(|(_, owed, _)| owed.since);
        for (target, owed, object) in stored {
            let queue = self.queues.entry(target).or_default();
            // One that was left again meanwhile counts already.
            if queue.owes(&object).is_none() {
                queue.wait(object, owed);
            }
        }
        self.unread = rest.map(|rest| (rest, now + READ_AGAIN_AFTER));
    }

    /// Whether the store could not be read to the end, so that there may be more hints than are known.
    pub(crate) fn is_partly_unread(&self) -> bool {
        self.unread.is_some()
    }

    /// Whether one more hint for the target may be counted in an acknowledgement.
    pub(crate) fn has_room<S: Store>(&self, local: &Local<S>, target: NodeId) -> bool {
        let counted = self.queues.get(&target).map_or(0, Queue::counted);
        counted < local.settings.hints_per_peer_max
    }

    /// How many there are, and since when the oldest waits, by target.
    pub(crate) fn census(&self) -> Vec<HintsPending> {
        let pending = |(&target, queue): (&NodeId, &Queue)| {
            let heads = [queue.counted.first_key_value(), queue.plain.first_key_value()];
            let since = heads.into_iter().flatten().map(|(_, object)| queue.waiting[object].1.since);
            let since = since.chain(queue.flying.values().map(|owed| owed.since));
            let (count, counted) = (queue.waiting.len() + queue.flying.len(), queue.counted());
            HintsPending { target, count, counted, oldest: since.min() }
        };
        self.queues.iter().map(pending).collect()
    }

    /// Of each partition the lowest counter of what is owed and counted.
    pub(crate) fn lowest_counted(&self, partitions: Partitions) -> BTreeMap<PartitionId, Counter> {
        let mut lowest = BTreeMap::new();
        for queue in self.queues.values() {
            let waiting = queue.counted.values().map(|object| (object, &queue.waiting[object].1));
            let flying = queue.flying.iter().filter(|(_, owed)| owed.is_counted);
            for (object, owed) in waiting.chain(flying) {
                let known = lowest.entry(object.partition(partitions)).or_insert(owed.counter);
                *known = owed.counter.min(*known);
            }
        }
        lowest
    }

    /// There is a new document: what is owed to nodes that do not keep it any more is owed to those that do.
    pub(crate) fn redirect<S: Store>(&mut self, local: &mut Local<S>) {
        let Some(document) = local.document.clone() else { return };
        let mut misdirected = Vec::new();
        for (&target, queue) in &self.queues {
            for object in queue.waiting.keys() {
                let partition = object.partition(document.partitions);
                let by_default = Owners::of(&document, object.keyspace(), partition, None);
                if by_default.is_none_or(|owners| !owners.contains(target)) {
                    misdirected.push((target, object.clone()));
                }
            }
        }
        for (target, object) in misdirected {
            let partition = object.partition(document.partitions);
            let copies = local.held(&object, partition).ok().flatten().map(|held| held.copies());
            let keepers = |copies| Owners::keepers(&document, object.keyspace(), partition, copies);
            let keepers = copies.and_then(keepers);
            if keepers.as_ref().is_some_and(|keepers| !keepers.contains(target)) {
                self.redirect_one(local, target, &object, Owners::keepers);
            }
        }
    }

    /// A target is not who is to have an object: what it was owed is owed to those that are.
    fn redirect_one<S: Store>(
        &mut self,
        local: &mut Local<S>,
        target: NodeId,
        object: &ObjectKey,
        owners: impl Fn(&ClusterDocument, KeyspaceId, PartitionId, CopyCount) -> Option<Owners>,
    ) {
        let Some(document) = local.document.clone() else { return };
        let partition = object.partition(document.partitions);
        let Ok(Some(held)) = local.held(object, partition) else { return };
        let Some(keepers) = owners(&document, object.keyspace(), partition, held.copies()) else { return };
        let Some(owed) = self.queues.get_mut(&target).and_then(|queue| queue.take(object)) else { return };
        let here = local.node;
        for keeper in keepers.nodes().filter(|keeper| *keeper != here) {
            self.put(local, keeper, owed, object);
            self.store(local, keeper, object.clone());
        }
        self.store(local, target, object.clone());
    }

    /// To whom an object is owed.
    pub(crate) fn owed(&self, object: &ObjectKey) -> Vec<NodeId> {
        let owed = self.queues.iter().filter(|(_, queue)| queue.owes(object).is_some());
        owed.map(|(target, _)| *target).collect()
    }

    /// Takes over what operations have left, with this turn's batch.
    pub(crate) fn collect<S: Store>(&mut self, local: &mut Local<S>) {
        for HintLeft { target, object, is_counted, counter } in std::mem::take(&mut local.hints_left) {
            local.counters.hints_left += 1;
            let owed = Owed { since: local.now.wall, is_counted, counter };
            let is_new = self.put(local, target, owed, &object);
            // Who counts on it waits for this turn's batch: it has to be in there.
            if is_counted {
                self.store(local, target, object);
            } else if is_new {
                self.save(local, target, object);
            }
        }
        if !self.unsaved.is_empty() && !local.replica.is_refusing() {
            let rest = self.unsaved.iter().nth(SAVED_AT_ONCE).cloned();
            let rest = rest.map_or_else(BTreeSet::new, |first| self.unsaved.split_off(&first));
            for (target, object) in std::mem::replace(&mut self.unsaved, rest) {
                self.save(local, target, object);
            }
        }
    }

    /// Starts the replays for which there is room, and asks for room where there is none.
    pub(crate) fn replay<S: Store>(&mut self, local: &mut Local<S>) -> Vec<HintOperation> {
        let mut started = Vec::new();
        let now = local.now.monotonic;
        if let Some((from, _)) = self.unread.take_if(|(_, at)| *at <= now) {
            self.read(now, local.replica.store(), Some(from));
        }
        let mut gone = Vec::new();
        for (&target, queue) in &mut self.queues {
            for (object, since) in queue.surplus(local) {
                local.hint_dropped(target, since);
                gone.push((target, object));
            }
            if queue.wait_until > now || !can_take(local, target) {
                continue;
            }
            if queue.is_to_ask() {
                let waiting = u32::try_from(queue.waiting.len()).unwrap_or(u32::MAX);
                local.send(target, Message::HintOffer { waiting });
                queue.wait_until = now + REPLAY_TIMEOUT;
            }
            while queue.is_to_send()
                && let Some((object, owed)) = queue.next()
            {
                match HintOperation::start(local, target, object.clone(), owed) {
                    Ok(Some(hint)) => {
                        queue.granted -= 1;
                        queue.flying_bytes += hint.bytes;
                        queue.counted_flying += usize::from(owed.is_counted);
                        if local.planted != Some(PlantedBug::HintDroppedWhenSent) {
                            queue.flying.insert(object.clone(), owed);
                        }
                        started.push(hint);
                    }
                    // A copy that fills may get it back.
                    Ok(None) if owed.is_counted && !is_whole(local, &object) => {
                        queue.wait(object, owed);
                        queue.wait_until = now + REPLAY_TIMEOUT;
                        break;
                    }
                    Ok(None) => {
                        local.hint_dropped(target, owed.since);
                        gone.push((target, object));
                    }
                    Err(Unheld::Damaged | Unheld::Unreadable) => {
                        // It may be there all the same, or an exchange brings it back.
                        queue.wait(object, owed);
                        queue.wait_until = now + REPLAY_TIMEOUT;
                        break;
                    }
                }
            }
            if queue.waiting.is_empty() {
                // What is left of the grant is not for hints that come later.
                queue.granted = 0;
            }
        }
        for (target, object) in gone {
            self.save(local, target, object);
        }
        started
    }

    /// A target says how many merges it will take.
    pub(crate) fn granted(&mut self, now: Duration, target: NodeId, merges: u32) {
        if let Some(queue) = self.queues.get_mut(&target) {
            queue.granted = merges;
            queue.wait_until = if merges == 0 { now + ASK_AGAIN_AFTER } else { now };
        }
    }

    /// A replay ended.
    pub(crate) fn ended<S: Store>(&mut self, local: &mut Local<S>, hint: HintOperation) {
        let HintOperation { target, object, owed, bytes, fate, .. } = hint;
        let queue = self.queues.entry(target).or_default();
        queue.flying.remove(&object);
        queue.flying_bytes -= bytes;
        queue.counted_flying -= usize::from(owed.is_counted);
        if fate == Fate::Delivered {
            local.counters.hints_replayed += 1;
            self.save(local, target, object.clone());
            // What was left in this turn is not in its queue yet.
            let is_left = local.hints_left.iter().any(|left| left.object == object);
            if !is_left && self.owed(&object).is_empty() {
                local.let_go_unkept(&object);
            }
        } else if local.planted == Some(PlantedBug::HintDroppedWhenSent) {
            self.save(local, target, object);
        } else {
            queue.wait_until = local.now.monotonic + REPLAY_TIMEOUT;
            queue.granted = 0;
            self.put(local, target, owed, &object);
            match fate {
                Fate::Misdirected => self.redirect_one(local, target, &object, Owners::keepers),
                Fate::ForOthers => self.redirect_one(local, target, &object, Owners::first_keepers),
                Fate::Owed | Fate::Delivered => {}
            }
        }
    }

    /// Batches through `sequence` are synced.
    pub(crate) fn committed(&mut self, sequence: Sequence) {
        while self.unsynced.pop_front_if(|(batch, ..)| *batch <= sequence).is_some() {}
    }

    /// This batch was refused, and so was every later one that was on its way.
    pub(crate) fn commit_failed(&mut self, sequence: Sequence) {
        while let Some((_, target, object)) = self.unsynced.pop_back_if(|(batch, ..)| *batch >= sequence) {
            self.unsaved.insert((target, object));
        }
    }

    /// When something can be done next.
    pub(crate) fn next_due<S: Store>(&self, local: &Local<S>) -> Option<Duration> {
        let can = |(target, queue): &(&NodeId, &Queue)| {
            (queue.is_to_ask() || queue.is_to_send()) && can_take(local, **target)
        };
        let replay = self.queues.iter().filter(can).map(|(_, queue)| queue.wait_until).min();
        let read = self.unread.as_ref().map(|(_, at)| *at);
        [replay, read].into_iter().flatten().min()
    }

    /// An object is owed to a target, and what that leaves no room for is dropped. Whether it was not owed before.
    fn put<S: Store>(
        &mut self,
        local: &mut Local<S>,
        target: NodeId,
        owed: Owed,
        object: &ObjectKey,
    ) -> bool {
        // What came first is in the record still, whoever is owed it since; and one that is on its way and fails waits again.
        let lowest = self.queues.values().filter_map(|queue| queue.lowest_counted(object)).min();
        let counter = lowest.map_or(owed.counter, |lowest| lowest.min(owed.counter));
        let owed = Owed { counter, ..owed };
        let queue = self.queues.entry(target).or_default();
        // It may take the place of one that is data and not read yet, and is not known to be dispensable.
        let owed = match self.unread {
            Some(_) if !owed.is_counted && queue.counted() >= local.settings.hints_per_peer_max => {
                local.hint_dropped(target, owed.since);
                return false;
            }
            Some(_) => Owed { is_counted: true, ..owed },
            None => owed,
        };
        let known = queue.waiting.get(object).map(|(_, owed)| *owed);
        if known.is_some_and(|known| known.is_counted || !owed.is_counted) {
            return false;
        }
        let is_new = known.is_none() && !queue.flying.contains_key(object);
        queue.wait(object.clone(), owed);
        for (dropped, since) in queue.surplus(local) {
            local.hint_dropped(target, since);
            self.save(local, target, dropped);
        }
        is_new
    }

    /// Stores a hint if there is one, and removes it if there is none, with this turn's batch.
    fn save<S: Store>(&mut self, local: &mut Local<S>, target: NodeId, object: ObjectKey) {
        if local.replica.is_refusing() {
            self.unsaved.insert((target, object));
            return;
        }
        self.store(local, target, object);
    }

    /// The same, even while batches are refused.
    fn store<S: Store>(&mut self, local: &mut Local<S>, target: NodeId, object: ObjectKey) {
        let owed = self.queues.get(&target).and_then(|queue| queue.owes(&object));
        let value = owed.map(|owed| stored::value(target, &object, owed));
        if local.planted == Some(PlantedBug::HintNotStored) && value.is_some() {
            return;
        }
        local.replica.change_meta(stored::key(target, &object), value);
        self.unsynced.push_back((local.replica.turn_sequence(), target, object));
    }
}

/// Whether this node's copy of what holds an object is whole.
fn is_whole<S: Store>(local: &Local<S>, object: &ObjectKey) -> bool {
    let partition = local.document.as_ref().map(|document| object.partition(document.partitions));
    partition.is_some_and(|partition| local.copies.is_whole(partition))
}

/// Whether hints can be sent to a target: it is up, and with the store that the document records, as far as it has said.
fn can_take<S: Store>(local: &Local<S>, target: NodeId) -> bool {
    let is_recorded = |store| local.recorded_store(target) == Some(store);
    local.is_up(target) && local.peers.introduced(target).is_none_or(|(store, _)| is_recorded(store))
}

impl Queue {
    /// Whether the target is to be asked how many it takes.
    fn is_to_ask(&self) -> bool {
        !self.waiting.is_empty() && self.granted == 0 && self.flying.is_empty()
    }

    /// Whether one that waits can be sent.
    fn is_to_send(&self) -> bool {
        self.granted > 0 && self.flying_bytes < FLYING_BYTES_MAX && self.head().is_some()
    }

    /// The next that is not on its way already: those that are counted come first.
    fn head(&self) -> Option<&ObjectKey> {
        let first = |line: &'_ BTreeMap<u64, ObjectKey>| line.first_key_value().map(|(place, _)| *place);
        let counted = first(&self.counted).map(|place| &self.counted[&place]);
        let plain = first(&self.plain).map(|place| &self.plain[&place]);
        [counted, plain].into_iter().flatten().find(|object| !self.flying.contains_key(*object))
    }

    /// Takes that one out.
    fn next(&mut self) -> Option<(ObjectKey, Owed)> {
        let object = self.head()?.clone();
        self.take(&object).map(|owed| (object, owed))
    }

    /// Puts one at the end of its line; one that waits already leaves its place.
    fn wait(&mut self, object: ObjectKey, owed: Owed) {
        self.take(&object);
        let place = self.next_place;
        self.next_place += 1;
        let line = if owed.is_counted { &mut self.counted } else { &mut self.plain };
        line.insert(place, object.clone());
        self.waiting.insert(object, (place, owed));
    }

    /// Takes one out that waits.
    fn take(&mut self, object: &ObjectKey) -> Option<Owed> {
        let (place, owed) = self.waiting.remove(object)?;
        let line = if owed.is_counted { &mut self.counted } else { &mut self.plain };
        line.remove(&place);
        Some(owed)
    }

    /// How many are counted.
    fn counted(&self) -> usize {
        self.counted.len() + self.counted_flying
    }

    /// Takes out those that are too old, and the oldest of those that are too many, with the time since when they waited.
    /// What is counted stays.
    fn surplus<S: Store>(&mut self, local: &Local<S>) -> Vec<(ObjectKey, UnixMillis)> {
        let (age_max, most) = (local.settings.hint_age_max, local.settings.hints_per_peer_max);
        let age = |since: UnixMillis| Duration::from_millis(local.now.wall.0.saturating_sub(since.0));
        // A clock that has jumped ahead makes everything old.
        let drift_ms = || local.peers.drift_ms(local.now).unwrap_or(0).unsigned_abs();
        let is_right = || u128::from(drift_ms()) <= local.settings.clock_drift_max.as_millis();
        let is_old = |since: UnixMillis| age(since) > age_max && is_right();
        let mut surplus = Vec::new();
        loop {
            let line = match local.planted {
                Some(PlantedBug::CountedHintExpires) if self.plain.is_empty() => &self.counted,
                Some(_) | None => &self.plain,
            };
            let Some(object) = line.first_key_value().map(|(_, object)| object.clone()) else { break };
            let since = self.waiting[&object].1.since;
            if line.len() <= most && !is_old(since) {
                break;
            }
            self.take(&object);
            surplus.push((object, since));
        }
        surplus
    }

    /// The lowest counter of what is owed of an object and counted.
    fn lowest_counted(&self, object: &ObjectKey) -> Option<Counter> {
        let (flying, waiting) = (self.flying.get(object), self.waiting.get(object).map(|(_, owed)| owed));
        let both = [flying, waiting].into_iter().flatten();
        both.filter(|owed| owed.is_counted).map(|owed| owed.counter).min()
    }

    /// What is owed of an object; none if nothing is.
    fn owes(&self, object: &ObjectKey) -> Option<Owed> {
        let (flying, waiting) = (self.flying.get(object), self.waiting.get(object).map(|(_, owed)| owed));
        let is_counted = [flying, waiting].into_iter().flatten().any(|owed| owed.is_counted);
        flying.or(waiting).map(|owed| Owed { is_counted, ..*owed })
    }
}

impl HintOperation {
    fn start<S: Store>(
        local: &mut Local<S>,
        target: NodeId,
        object: ObjectKey,
        owed: Owed,
    ) -> Result<Option<HintOperation>, Unheld> {
        let Some(document) = &local.document else { return Err(Unheld::Unreadable) };
        let partition = object.partition(document.partitions);
        let Some(record) = local.held(&object, partition)? else { return Ok(None) };
        let operation = local.numbers.take();
        let tag = Tag { operation, question: 0 };
        let bytes = record.encoded_len() + object.encoded().len();
        // A large one needs time on its way: a megabyte a second at the least.
        let on_its_way = Duration::from_micros(bytes.try_into().unwrap_or(u64::MAX));
        let timer = local.now.monotonic + REPLAY_TIMEOUT + on_its_way;
        local.timers.insert((timer, operation));
        let (durability, path) = (Durability::Disk, MergePath::Hint);
        // Of what it does not keep, too, if others count on it: its promise does not pass what it owes. If a watermark has passed
        // that, it was handed over, and then this node's disk went back in time: some of it may be dead.
        let is_vouched = owed.counter > local.watermarks.of(partition);
        let is_kept = local.keeps(object.keyspace(), partition, record.copies());
        let under = if is_kept {
            local.under_kept(object.keyspace(), partition, record.copies())
        } else if owed.is_counted && is_vouched {
            local.under(partition)
        } else {
            Counter::ZERO
        };
        local.send(target, Message::Merge { tag, object: object.clone(), record, under, durability, path });
        Ok(Some(HintOperation { operation, target, object, owed, bytes, timer, fate: Fate::Owed }))
    }

    /// Its number.
    pub(crate) fn operation(&self) -> u64 {
        self.operation
    }

    /// The target said how it ended. What a store acknowledged that the document does not record is still owed.
    pub(crate) fn on_event<S: Store>(&mut self, local: &mut Local<S>, event: Event) -> Step {
        if let Event::Merged { from, store, outcome } = event {
            if from != self.target {
                return Step::Continue;
            }
            if local.recorded_store(from) == Some(store) {
                self.fate = self.fate_after(local, from, outcome);
            }
        }
        self.end(local)
    }

    /// What is to become of it after this answer.
    fn fate_after<S: Store>(&self, local: &mut Local<S>, from: NodeId, outcome: MergeOutcome) -> Fate {
        match outcome {
            // What comes late exchanges have brought, or will.
            MergeOutcome::Applied { .. } | MergeOutcome::Refused(MergeRefusal::Late) => Fate::Delivered,
            MergeOutcome::Refused(MergeRefusal::NotOwner) => Fate::Misdirected,
            // It is at a watermark that this node has promised too: the hint goes again when this one has come up.
            MergeOutcome::Refused(MergeRefusal::Behind { watermark }) => {
                let Ok((partition, _)) = local.copy_of(&self.object) else { return Fate::Owed };
                local.raise_watermark(partition, watermark);
                let held = local.held(&self.object, partition).ok().flatten();
                let is_for_others = self.owed.is_counted
                    && held.is_some_and(|held| {
                        !local.is_first_keeper(from, self.object.keyspace(), partition, held.copies())
                    });
                if is_for_others { Fate::ForOthers } else { Fate::Owed }
            }
            MergeOutcome::Refused(_) => Fate::Owed,
        }
    }

    /// The target was silent.
    pub(crate) fn end<S: Store>(&mut self, local: &mut Local<S>) -> Step {
        local.timers.remove(&(self.timer, self.operation));
        Step::Done
    }
}
