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
//! **The receiver sets the pace** ([`grants`]): a holder says how much it has, and sends as many merges as it is granted.

pub(crate) mod grants;
mod stored;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use antientropy::version::UnixMillis;
use ring::{Durability, NodeId};

use crate::{
    coordinator::Step,
    local::{Event, Local, Unheld},
    message::{MergeOutcome, MergePath, Message, Tag},
    planted::PlantedBug,
    storage::{ObjectKey, Sequence, Store},
};
pub(crate) use stored::read_hints;

/// How long a replay may take, and how long to wait after one that failed, or for a grant.
const REPLAY_TIMEOUT: Duration = Duration::from_secs(1);
/// How long to wait after a grant of nothing.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// Bytes of records on their way to one target before more are sent: large values must not fill its connection.
const FLYING_BYTES_MAX: usize = 4 << 20;

/// Hints that are stored again with one batch, after batches were refused.
const SAVED_AT_ONCE: usize = 4096;

/// A hint as it is read back: whom it is for, since when, and what it names.
pub(crate) type StoredHint = (NodeId, UnixMillis, ObjectKey);

/// The hints for one target, counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HintsPending {
    /// The target.
    pub target: NodeId,
    /// How many wait or are on their way.
    pub count: usize,
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
}

/// The hints for one target.
#[derive(Default)]
struct Queue {
    /// Those that wait, the oldest first, and the same by name.
    by_age: VecDeque<(UnixMillis, ObjectKey)>,
    waiting: BTreeMap<ObjectKey, UnixMillis>,
    /// Those on their way. (One that is left again meanwhile waits as well.)
    flying: BTreeMap<ObjectKey, UnixMillis>,
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
    since: UnixMillis,
    bytes: usize,
    timer: Duration,
    is_delivered: bool,
}

impl Hints {
    /// The hints that a store has kept.
    pub(crate) fn new(mut stored: Vec<StoredHint>) -> Hints {
        let mut hints =
            Hints { queues: BTreeMap::new(), unsynced: VecDeque::new(), unsaved: BTreeSet::new() };
        stored.sort_by_key(|(_, since, _)| *since);
        for (target, since, object) in stored {
            let queue = hints.queues.entry(target).or_default();
            queue.waiting.insert(object.clone(), since);
            queue.by_age.push_back((since, object));
        }
        hints
    }

    /// How many there are, and since when the oldest waits, by target.
    pub(crate) fn census(&self) -> Vec<HintsPending> {
        let pending = |(&target, queue): (&NodeId, &Queue)| {
            let oldest = queue.by_age.front().map(|(since, _)| *since);
            HintsPending { target, count: queue.waiting.len() + queue.flying.len(), oldest }
        };
        self.queues.iter().map(pending).collect()
    }

    /// Takes over what operations have left, with this turn's batch.
    pub(crate) fn collect<S: Store>(&mut self, local: &mut Local<S>) {
        for (target, object) in std::mem::take(&mut local.hints_left) {
            local.counters.hints_left += 1;
            let is_new = self.put(local, target, local.now.wall, &object);
            if is_new {
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
        let mut gone = Vec::new();
        for (&target, queue) in &mut self.queues {
            for object in queue.surplus(local) {
                local.counters.hints_dropped += 1;
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
                && let Some((since, object)) = queue.next()
            {
                match HintOperation::start(local, target, object.clone(), since) {
                    Ok(Some(hint)) => {
                        queue.granted -= 1;
                        queue.flying_bytes += hint.bytes;
                        queue.flying.insert(object.clone(), since);
                        started.push(hint);
                        if local.planted == Some(PlantedBug::HintDroppedWhenSent) {
                            queue.flying.remove(&object);
                        }
                    }
                    Ok(None) => {
                        local.counters.hints_dropped += 1;
                        gone.push((target, object));
                    }
                    Err(Unheld::Damaged | Unheld::Unreadable) => {
                        // It may be there all the same, or an exchange brings it back.
                        queue.waiting.insert(object.clone(), since);
                        queue.by_age.push_back((since, object));
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
        let HintOperation { target, object, since, bytes, is_delivered, .. } = hint;
        let queue = self.queues.entry(target).or_default();
        queue.flying.remove(&object);
        queue.flying_bytes -= bytes;
        if is_delivered {
            local.counters.hints_replayed += 1;
            self.save(local, target, object);
        } else if local.planted == Some(PlantedBug::HintDroppedWhenSent) {
            self.save(local, target, object);
        } else {
            queue.wait_until = local.now.monotonic + REPLAY_TIMEOUT;
            queue.granted = 0;
            self.put(local, target, since, &object);
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

    /// How many are on their way.
    pub(crate) fn flying(&self) -> usize {
        self.queues.values().map(|queue| queue.flying.len()).sum()
    }

    /// When something can be done next.
    pub(crate) fn next_due<S: Store>(&self, local: &Local<S>) -> Option<Duration> {
        let can = |(target, queue): &(&NodeId, &Queue)| {
            (queue.is_to_ask() || queue.is_to_send()) && can_take(local, **target)
        };
        self.queues.iter().filter(can).map(|(_, queue)| queue.wait_until).min()
    }

    /// An object is owed to a target, and what that leaves no room for is dropped. Whether it was not owed before.
    fn put<S: Store>(
        &mut self,
        local: &mut Local<S>,
        target: NodeId,
        since: UnixMillis,
        object: &ObjectKey,
    ) -> bool {
        let queue = self.queues.entry(target).or_default();
        if queue.waiting.contains_key(object) {
            return false;
        }
        let is_new = !queue.flying.contains_key(object);
        queue.waiting.insert(object.clone(), since);
        queue.by_age.push_back((since, object.clone()));
        for dropped in queue.surplus(local) {
            local.counters.hints_dropped += 1;
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
        let since = self.queues.get(&target).and_then(|queue| queue.owes(&object));
        let value = since.map(|since| stored::value(target, &object, since));
        if local.planted == Some(PlantedBug::HintNotStored) && value.is_some() {
            return;
        }
        local.replica.change_meta(stored::key(target, &object), value);
        self.unsynced.push_back((local.replica.turn_sequence(), target, object));
    }
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

    /// Whether the oldest that waits can be sent.
    fn is_to_send(&self) -> bool {
        let is_ready = |(_, object): &(UnixMillis, ObjectKey)| !self.flying.contains_key(object);
        self.granted > 0 && self.flying_bytes < FLYING_BYTES_MAX && self.by_age.front().is_some_and(is_ready)
    }

    /// Takes the oldest that waits and is not on its way already.
    fn next(&mut self) -> Option<(UnixMillis, ObjectKey)> {
        let flying = &self.flying;
        let next = self.by_age.pop_front_if(|(_, object)| !flying.contains_key(object))?;
        self.waiting.remove(&next.1);
        Some(next)
    }

    /// Takes out those that are too old, and the oldest of those that are too many.
    fn surplus<S: Store>(&mut self, local: &Local<S>) -> Vec<ObjectKey> {
        let (age_max, most) = (local.settings.hint_age_max, local.settings.hints_per_peer_max);
        let age = |since: UnixMillis| Duration::from_millis(local.now.wall.0.saturating_sub(since.0));
        // A clock that has jumped ahead makes everything old.
        let drift_ms = || local.peers.drift_ms(local.now).unwrap_or(0).unsigned_abs();
        let is_right = || u128::from(drift_ms()) <= local.settings.clock_drift_max.as_millis();
        let is_old = |since: UnixMillis| age(since) > age_max && is_right();
        let mut surplus = Vec::new();
        while self.waiting.len() > most || self.by_age.front().is_some_and(|(since, _)| is_old(*since)) {
            let Some((_, object)) = self.next() else { break };
            surplus.push(object);
        }
        surplus
    }

    /// Since when an object is owed; none if it is not.
    fn owes(&self, object: &ObjectKey) -> Option<UnixMillis> {
        self.flying.get(object).or_else(|| self.waiting.get(object)).copied()
    }
}

impl HintOperation {
    fn start<S: Store>(
        local: &mut Local<S>,
        target: NodeId,
        object: ObjectKey,
        since: UnixMillis,
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
        local.send(target, Message::Merge { tag, object: object.clone(), record, durability, path });
        Ok(Some(HintOperation { operation, target, object, since, bytes, timer, is_delivered: false }))
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
            let is_recorded = local.recorded_store(from) == Some(store);
            self.is_delivered = is_recorded && matches!(outcome, MergeOutcome::Applied { .. });
        }
        self.end(local)
    }

    /// The target was silent.
    pub(crate) fn end<S: Store>(&mut self, local: &mut Local<S>) -> Step {
        local.timers.remove(&(self.timer, self.operation));
        Step::Done
    }
}
