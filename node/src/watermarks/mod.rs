//! Promises and watermarks: which tombstones and contexts nobody needs any more (`docs/watermarks.md`).
//!
//! Here is what this node knows, and what follows from that; who is told what and when is for the exchanges to say, and what
//! is dropped for [`Local`](crate::local::Local).
//!
//! - The *floor* of a node: no process of its store mints at or below it, and no write of it at or below it is still under
//!   way. What is said of a partition is below every write that this node owes there and others count on.
//! - The *promise* of a copy: everything at or below it that another copy holds of what this one keeps is here and synced.
//! - The *watermark* of a partition: all copies promised it. What is superfluous at it is dropped.
//!
//! Floors and promises are said only once they are synced. All of them only rise.

pub(crate) mod standing;
mod stored;

pub(crate) use stored::is_progress;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use antientropy::version::Counter;
use bytes::Bytes;
use ring::{Epoch, NodeId, PartitionId};

use crate::{
    event::Now,
    planted::PlantedBug,
    settings::Settings,
    storage::{Sequence, Store},
};
use standing::{Run, Standing};
use stored::{CHUNK, Kept, Stored};

/// Samples of the clock that are kept while they are too young.
const SAMPLES: u32 = 8;
/// How often in an interval of promises the floor rises.
const FLOORS: u32 = 4;

/// See the module's documentation.
pub(crate) struct Watermarks {
    partitions: BTreeMap<PartitionId, Partition>,
    /// Whether everything could be read that the store has kept.
    is_complete: bool,
    /// This node's floor as it is held, which the next batch brings to the store.
    floor: Counter,
    floor_synced: Counter,
    /// The highest that others have told.
    floor_learned: Counter,
    /// What the clock showed, and when: the oldest first.
    samples: VecDeque<(Duration, Counter)>,
    sample_at: Duration,
    floor_at: Duration,
    promise_at: Duration,
    unsaved: Unsaved,
    /// What batches bring to the store that are on their way.
    saving: VecDeque<(Sequence, Saving)>,
}

/// What is known of a copy of this node's, and of what the other copies said.
#[derive(Default)]
struct Partition {
    stored: Stored,
    /// The promise as it is synced, which is said.
    said: Promise,
    /// The floor that is said.
    floor: Counter,
    /// No write at or below it is under way anywhere: the highest floor under which an exchange has begun here.
    closed: Counter,
    /// The other copies.
    sharers: BTreeMap<NodeId, Sharer>,
    /// Whether the copy is new, and no other has said yet where it stands.
    is_untold: bool,
}

/// Another copy.
#[derive(Default)]
struct Sharer {
    floor: Counter,
    promise: Promise,
    /// The time of filling that it was in; 0 if it was whole.
    filling: u64,
    /// Up to where exchanges with it count.
    credit: Counter,
}

/// A promise, and the document under which it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Promise {
    pub(crate) at: Counter,
    pub(crate) epoch: Epoch,
}

impl Default for Promise {
    fn default() -> Promise {
        Promise { at: Counter::ZERO, epoch: Epoch(0) }
    }
}

/// What the next batch is to bring to the store.
#[derive(Default)]
struct Unsaved {
    floor: bool,
    chunks: BTreeSet<u16>,
}

/// What a batch brings.
struct Saving {
    floor: Option<Counter>,
    chunks: BTreeSet<u16>,
    promises: Vec<(PartitionId, Promise)>,
}

impl Watermarks {
    /// What a store has kept.
    pub(crate) fn open<S: Store>(store: &S) -> Watermarks {
        let Kept { floor, partitions: stored, is_complete } = stored::read(store);
        let partition = |(partition, stored): (PartitionId, Stored)| {
            let (said, closed) = (stored.promise, stored.promise.at);
            (partition, Partition { stored, said, closed, ..Partition::default() })
        };
        Watermarks {
            partitions: stored.into_iter().map(partition).collect(),
            is_complete,
            floor,
            floor_synced: floor,
            floor_learned: Counter::ZERO,
            samples: VecDeque::new(),
            sample_at: Duration::ZERO,
            floor_at: Duration::ZERO,
            promise_at: Duration::ZERO,
            unsaved: Unsaved::default(),
            saving: VecDeque::new(),
        }
    }

    /// There is a new document, under which these nodes share copies with this one. What exchanges were worth under the
    /// one before they are not any more: this one may say otherwise who keeps what.
    pub(crate) fn follow(&mut self, sharers: &BTreeMap<PartitionId, Vec<NodeId>>) {
        for (partition, copy) in &mut self.partitions {
            if !sharers.contains_key(partition) {
                copy.sharers.clear();
            }
        }
        for (partition, nodes) in sharers {
            let copy = self.partitions.entry(*partition).or_default();
            copy.sharers.retain(|node, _| nodes.contains(node));
            for node in nodes {
                copy.sharers.entry(*node).or_default().credit = Counter::ZERO;
            }
        }
    }

    /// Whether everything could be read that the store has kept. If not, its copies are not believed: they may have promised
    /// what nobody knows.
    pub(crate) fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// No process of this store mints at or below this.
    pub(crate) fn floor(&self) -> Counter {
        self.floor
    }

    /// Nothing is minted here at or below this: the floor, and each watermark. (One that this node took when it became a copy may
    /// be above its floor.)
    pub(crate) fn mints_above(&self) -> Counter {
        self.partitions.values().map(|copy| copy.stored.watermark).fold(self.floor, Counter::max)
    }

    /// The highest floor that is known of any store.
    pub(crate) fn known_floor(&self) -> Counter {
        self.floor.max(self.floor_learned)
    }

    /// Another store's.
    pub(crate) fn learn_floor(&mut self, floor: Counter) {
        self.floor_learned = self.floor_learned.max(floor);
    }

    /// The watermark of a partition.
    pub(crate) fn of(&self, partition: PartitionId) -> Counter {
        self.partitions.get(&partition).map_or(Counter::ZERO, |copy| copy.stored.watermark)
    }

    /// What this node promised of a partition.
    pub(crate) fn promise(&self, partition: PartitionId) -> Promise {
        self.partitions.get(&partition).map_or_else(Promise::default, |copy| copy.stored.promise)
    }

    /// Up to where no write is under way any more.
    pub(crate) fn closed(&self, partition: PartitionId) -> Counter {
        self.partitions.get(&partition).map_or(Counter::ZERO, |copy| copy.closed)
    }

    /// The time of filling that another copy was in when it was last heard; 0 if it was whole.
    pub(crate) fn filling(&self, partition: PartitionId, node: NodeId) -> u64 {
        let sharer = self.partitions.get(&partition).and_then(|copy| copy.sharers.get(&node));
        sharer.map_or(0, |sharer| sharer.filling)
    }

    // The floor.

    /// When the clock is to be sampled, the floor raised or promises made.
    pub(crate) fn next_due(&self) -> Duration {
        self.sample_at.min(self.promise_at)
    }

    /// Remembers what the clock shows.
    pub(crate) fn sample(&mut self, now: Now, clock: Counter, settings: &Settings) {
        if now.monotonic < self.sample_at {
            return;
        }
        self.sample_at = now.monotonic + settings.settled_after / SAMPLES;
        self.samples.push_back((now.monotonic, clock));
        // The last that is old enough is the one that counts.
        let is_old = |(at, _): &(Duration, Counter)| *at + settings.settled_after <= now.monotonic;
        while self.samples.get(1).is_some_and(is_old) {
            self.samples.pop_front();
        }
    }

    /// Whether the floor may rise by now: to what the clock showed so long ago that no write of then is under way.
    pub(crate) fn floor_due(&mut self, now: Now, settings: &Settings) -> Option<Counter> {
        if now.monotonic < self.floor_at {
            return None;
        }
        let (at, clock) = *self.samples.front()?;
        if at + settings.settled_after > now.monotonic {
            return None;
        }
        self.floor_at = now.monotonic + settings.watermark_interval / FLOORS;
        Some(clock)
    }

    /// Raises the floor. It is said once it is synced.
    pub(crate) fn raise_floor(&mut self, floor: Counter) {
        if floor > self.floor {
            self.floor = floor;
            self.unsaved.floor = true;
        }
    }

    /// The floor is synced, and this is the lowest write of each partition that this node owes and others count on.
    pub(crate) fn say_floors(&mut self, owed: &BTreeMap<PartitionId, Counter>) {
        for (partition, copy) in &mut self.partitions {
            let below = |lowest: &Counter| Counter(lowest.0.saturating_sub(1));
            let floor =
                owed.get(partition).map(below).map_or(self.floor_synced, |it| it.min(self.floor_synced));
            copy.floor = copy.floor.max(floor);
        }
    }

    // What is said and heard.

    /// What is said of partitions, in this order; `filling` says in which time of filling each copy is.
    pub(crate) fn standing(
        &self,
        partitions: &[PartitionId],
        filling: impl Fn(PartitionId) -> u64,
        planted: Option<PlantedBug>,
    ) -> Standing {
        let mut standing = Standing::default();
        let nothing = Partition::default();
        for partition in partitions {
            let copy = self.partitions.get(partition).unwrap_or(&nothing);
            let is_early = planted == Some(PlantedBug::PromiseNotSynced);
            let promise = if is_early { copy.stored.promise } else { copy.said };
            standing.push(Run {
                partitions: 1,
                floor: copy.floor,
                lowest: copy.lowest(),
                watermark: copy.stored.watermark,
                promise: promise.at,
                promise_epoch: promise.epoch,
                filling: filling(*partition),
            });
        }
        standing
    }

    /// An exchange begins that counts up to here.
    pub(crate) fn close(&mut self, partition: PartitionId, lowest: Counter) {
        if let Some(copy) = self.partitions.get_mut(&partition) {
            copy.closed = copy.closed.max(lowest);
        }
    }

    /// Another copy said this.
    pub(crate) fn hear(&mut self, partition: PartitionId, node: NodeId, run: &Run) {
        let Some(copy) = self.partitions.get_mut(&partition) else { return };
        if copy.sharers.get(&node).is_some_and(|sharer| run.floor < sharer.floor) {
            // It is another process, and its disk may have gone back in time, or be another: what rests on the floor of before
            // does not count.
            copy.forget_credit();
        }
        if let Some(sharer) = copy.sharers.get_mut(&node) {
            sharer.floor = run.floor;
            sharer.promise = Promise { at: run.promise, epoch: run.promise_epoch };
            sharer.filling = run.filling;
            copy.is_untold = false;
        }
    }

    /// The copy is new under the present document: the others have exchanged without waiting for it, and one has to say where it
    /// stands.
    pub(crate) fn is_to_be_told(&mut self, partition: PartitionId) {
        if let Some(copy) = self.partitions.get_mut(&partition) {
            copy.is_untold = true;
        }
    }

    /// Whether the copy is new, and no other has said since where it stands.
    pub(crate) fn is_untold(&self, partition: PartitionId) -> bool {
        self.partitions.get(&partition).is_some_and(|copy| copy.is_untold)
    }

    /// Another node has no copy that counts.
    pub(crate) fn hear_filling(&mut self, partition: PartitionId, node: NodeId, filling: u64) {
        let sharer = self.partitions.get_mut(&partition).and_then(|copy| copy.sharers.get_mut(&node));
        if let Some(sharer) = sharer {
            sharer.filling = filling;
        }
    }

    // Promises.

    /// An exchange with a copy is complete that counts up to here.
    pub(crate) fn credit(&mut self, partition: PartitionId, node: NodeId, lowest: Counter) {
        let Some(copy) = self.partitions.get_mut(&partition) else { return };
        // Whoever began it need not have heard yet whose floor has fallen.
        let lowest = lowest.min(copy.lowest());
        if let Some(sharer) = copy.sharers.get_mut(&node) {
            sharer.credit = sharer.credit.max(lowest);
        }
    }

    /// The copy begins to fill: what it exchanged it may have lost.
    pub(crate) fn forget_credit(&mut self, partition: PartitionId) {
        if let Some(copy) = self.partitions.get_mut(&partition) {
            copy.forget_credit();
        }
    }

    /// Whether it is time for promises.
    pub(crate) fn promises_due(&mut self, now: Now, settings: &Settings) -> bool {
        let is_due = now.monotonic >= self.promise_at;
        if is_due {
            self.promise_at = now.monotonic + settings.watermark_interval;
        }
        is_due
    }

    /// Promises what may be promised of a whole copy, under the document of this epoch.
    pub(crate) fn make_promise(&mut self, partition: PartitionId, epoch: Epoch) {
        let Some(copy) = self.partitions.get_mut(&partition) else { return };
        let credit = copy.sharers.values().map(|sharer| sharer.credit).min().unwrap_or(copy.floor);
        let kept = copy.stored.promise;
        if credit > kept.at || (credit == kept.at && kept.epoch != epoch && credit > Counter::ZERO) {
            copy.stored.promise = Promise { at: credit, epoch };
            self.unsaved.chunks.insert(partition.0 / CHUNK);
        }
    }

    /// The watermark that all promises allow, this node's and those of all other copies under the document of this epoch,
    /// if it is above the present one.
    pub(crate) fn adoptable(
        &self,
        partition: PartitionId,
        epoch: Epoch,
        planted: Option<PlantedBug>,
    ) -> Option<Counter> {
        let copy = self.partitions.get(&partition)?;
        let others = copy.sharers.values().map(|sharer| sharer.promise);
        let mut promises: Vec<Promise> = others.chain([copy.said]).collect();
        if planted == Some(PlantedBug::DroppedOnePromiseEarly) && promises.len() > 1 {
            promises.sort_by_key(|promise| promise.at);
            promises.remove(0);
        }
        let is_current = promises.iter().all(|promise| promise.epoch == epoch);
        let lowest = promises.iter().map(|promise| promise.at).min().filter(|_| is_current)?;
        (lowest > copy.stored.watermark).then_some(lowest)
    }

    /// The partition is at this watermark from now on.
    pub(crate) fn set(&mut self, partition: PartitionId, watermark: Counter) {
        let copy = self.partitions.entry(partition).or_default();
        copy.stored.watermark = watermark;
        self.unsaved.chunks.insert(partition.0 / CHUNK);
    }

    /// The lowest watermark of copies of this node's; none without a copy.
    pub(crate) fn lowest<'a>(&self, copies: impl Iterator<Item = PartitionId> + 'a) -> Option<Counter> {
        copies.map(|partition| self.of(partition)).min()
    }

    // The store.

    /// What the batch of this number is to bring to the store.
    pub(crate) fn take_unsaved(&mut self, sequence: Sequence) -> Vec<(Bytes, Bytes)> {
        let Unsaved { floor, chunks } = std::mem::take(&mut self.unsaved);
        if !floor && chunks.is_empty() {
            return Vec::new();
        }
        let mut facts = Vec::new();
        if floor {
            facts.push(stored::floor_to_store(self.floor));
        }
        let mut promises = Vec::new();
        for chunk in &chunks {
            let first = PartitionId(chunk * CHUNK);
            let last = PartitionId(first.0.saturating_add(CHUNK - 1));
            let of_chunk = self.partitions.range(first..=last);
            let of_chunk: BTreeMap<PartitionId, Stored> =
                of_chunk.map(|(partition, copy)| (*partition, copy.stored)).collect();
            promises.extend(of_chunk.iter().map(|(partition, stored)| (*partition, stored.promise)));
            facts.push(stored::to_store(*chunk, &of_chunk));
        }
        let floor = floor.then_some(self.floor);
        self.saving.push_back((sequence, Saving { floor, chunks, promises }));
        facts
    }

    /// Batches through this one are synced. Whether a floor was in one of them.
    pub(crate) fn committed(&mut self, sequence: Sequence) -> Committed {
        let mut committed = Committed { floor: false, promises: Vec::new() };
        while let Some((_, saved)) = self.saving.pop_front_if(|(batch, _)| *batch <= sequence) {
            if let Some(floor) = saved.floor {
                self.floor_synced = self.floor_synced.max(floor);
                committed.floor = true;
            }
            for (partition, promise) in saved.promises {
                if let Some(copy) = self.partitions.get_mut(&partition)
                    && copy.said != promise
                {
                    copy.said = promise;
                    committed.promises.push(partition);
                }
            }
        }
        committed
    }

    /// The batch was refused: what it was to bring is still true, and goes into the next.
    pub(crate) fn commit_failed(&mut self, sequence: Sequence) {
        let Some(at) = self.saving.iter().position(|(batch, _)| *batch == sequence) else { return };
        let Some((_, lost)) = self.saving.remove(at) else { return };
        self.unsaved.floor |= lost.floor.is_some();
        self.unsaved.chunks.extend(lost.chunks);
    }
}

/// What has come to be synced.
pub(crate) struct Committed {
    /// Whether the floor has.
    pub(crate) floor: bool,
    /// Partitions whose promise has.
    pub(crate) promises: Vec<PartitionId>,
}

impl Partition {
    /// The lowest floor of all copies, as far as it is known here.
    fn lowest(&self) -> Counter {
        self.sharers.values().map(|sharer| sharer.floor).fold(self.floor, Counter::min)
    }

    /// Exchanges so far count for nothing.
    fn forget_credit(&mut self) {
        self.sharers.values_mut().for_each(|sharer| sharer.credit = Counter::ZERO);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryEngine;

    const P: PartitionId = PartitionId(3);
    const OTHERS: [NodeId; 2] = [NodeId(2), NodeId(3)];

    /// Of a copy that two others share.
    fn shared() -> Watermarks {
        let mut watermarks = Watermarks::open(&MemoryEngine::new(ring::StoreId(1)));
        watermarks.follow(&BTreeMap::from([(P, OTHERS.to_vec())]));
        watermarks
    }

    fn run(floor: u64) -> Run {
        Run {
            partitions: 1,
            floor: Counter(floor),
            lowest: Counter::ZERO,
            watermark: Counter::ZERO,
            promise: Counter::ZERO,
            promise_epoch: Epoch(0),
            filling: 0,
        }
    }

    /// All floors are at 100 and all exchanges count.
    fn exchanged() -> Watermarks {
        let mut watermarks = shared();
        watermarks.partitions.get_mut(&P).expect("it is shared").floor = Counter(100);
        OTHERS.iter().for_each(|node| watermarks.hear(P, *node, &run(100)));
        OTHERS.iter().for_each(|node| watermarks.credit(P, *node, Counter(100)));
        watermarks
    }

    #[test]
    fn what_rests_on_a_floor_that_has_fallen_does_not_count() {
        let mut watermarks = exchanged();
        watermarks.hear(P, OTHERS[0], &run(70));
        watermarks.make_promise(P, Epoch(1));
        assert_eq!(watermarks.promise(P).at, Counter::ZERO);
        OTHERS.iter().for_each(|node| watermarks.credit(P, *node, Counter(100)));
        watermarks.make_promise(P, Epoch(1));
        assert_eq!(
            watermarks.promise(P).at,
            Counter(70),
            "whoever began an exchange need not have heard of it"
        );
        let mut steady = exchanged();
        steady.hear(P, OTHERS[0], &run(100));
        steady.make_promise(P, Epoch(1));
        assert_eq!(steady.promise(P).at, Counter(100));
    }

    #[test]
    fn a_new_copy_waits_until_another_has_said_where_it_stands() {
        let mut watermarks = exchanged();
        watermarks.follow(&BTreeMap::from([(P, OTHERS.to_vec())]));
        assert!(!watermarks.is_untold(P), "it was one before");
        watermarks.make_promise(P, Epoch(2));
        assert_eq!(watermarks.promise(P).at, Counter::ZERO, "but no exchange of before counts");
        watermarks.is_to_be_told(P);
        watermarks.hear(P, NodeId(9), &run(100));
        assert!(watermarks.is_untold(P), "that one has no copy");
        watermarks.hear(P, OTHERS[1], &run(100));
        assert!(!watermarks.is_untold(P));
    }

    #[test]
    fn nothing_is_minted_below_a_watermark() {
        let mut watermarks = exchanged();
        watermarks.raise_floor(Counter(50));
        assert_eq!(watermarks.mints_above(), Counter(50));
        watermarks.set(P, Counter(90));
        assert_eq!(watermarks.mints_above(), Counter(90));
    }
}
