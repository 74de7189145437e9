//! Hints: merges that are still owed to replicas that did not acknowledge them.
//!
//! A hint names an object; when its target answers again, what this node then holds of the object is merged there.
//! Hints live in memory for now and are lost with the process: exchanges cover them. They are bounded in number and
//! age for each target, and at the bound the oldest is dropped and counted.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use ring::{Durability, NodeId};

use crate::{
    coordinator::Step,
    local::{Event, Local},
    message::{MergeOutcome, MergePath, Message, Tag},
    storage::{ObjectKey, Store},
};

/// How long a replay may take, and how long to wait after one that failed.
const REPLAY_TIMEOUT: Duration = Duration::from_secs(1);

/// The hints of this node, by target.
pub(crate) struct Hints {
    queues: BTreeMap<NodeId, Queue>,
}

/// The hints for one target.
#[derive(Default)]
struct Queue {
    by_age: VecDeque<(Duration, ObjectKey)>,
    known: BTreeSet<ObjectKey>,
    in_flight: usize,
    retry_at: Duration,
}

/// The replay of one hint.
#[derive(Debug)]
pub(crate) struct HintOperation {
    operation: u64,
    target: NodeId,
    object: ObjectKey,
    since: Duration,
    timer: Duration,
    is_delivered: bool,
}

impl Hints {
    /// None.
    pub(crate) fn new() -> Hints {
        Hints { queues: BTreeMap::new() }
    }

    /// How many wait, by target.
    pub(crate) fn census(&self) -> Vec<(NodeId, usize)> {
        self.queues.iter().map(|(target, queue)| (*target, queue.by_age.len() + queue.in_flight)).collect()
    }

    /// Takes over what operations have left.
    pub(crate) fn collect<S: Store>(&mut self, local: &mut Local<S>) {
        for (target, object) in std::mem::take(&mut local.hints_left) {
            local.counters.hints_left += 1;
            let now = local.now.monotonic;
            self.queues.entry(target).or_default().push(now, object, local);
        }
    }

    /// Starts the replays for which there is room.
    pub(crate) fn replay<S: Store>(&mut self, local: &mut Local<S>) -> Vec<HintOperation> {
        let mut started = Vec::new();
        for (&target, queue) in &mut self.queues {
            let is_due = queue.retry_at <= local.now.monotonic && local.is_up(target);
            while is_due && queue.in_flight < local.settings.hints_in_flight_max {
                let Some((since, object)) = queue.by_age.pop_front() else { break };
                queue.known.remove(&object);
                if let Some(hint) = HintOperation::start(local, target, object, since) {
                    queue.in_flight += 1;
                    started.push(hint);
                } else {
                    local.counters.hints_dropped += 1;
                }
            }
        }
        started
    }

    /// A replay ended.
    pub(crate) fn ended<S: Store>(&mut self, local: &mut Local<S>, hint: HintOperation) {
        let queue = self.queues.entry(hint.target).or_default();
        queue.in_flight -= 1;
        if hint.is_delivered {
            local.counters.hints_replayed += 1;
        } else {
            queue.retry_at = local.now.monotonic + REPLAY_TIMEOUT;
            queue.push(hint.since, hint.object, local);
        }
    }

    /// When a replay can be tried next.
    pub(crate) fn next_due<S: Store>(&self, local: &Local<S>) -> Option<Duration> {
        let can = |(target, queue): &(&NodeId, &Queue)| {
            !queue.by_age.is_empty()
                && queue.in_flight < local.settings.hints_in_flight_max
                && local.is_up(**target)
        };
        self.queues.iter().filter(can).map(|(_, queue)| queue.retry_at).min()
    }
}

impl Queue {
    fn push<S: Store>(&mut self, since: Duration, object: ObjectKey, local: &mut Local<S>) {
        if !self.known.insert(object.clone()) {
            return;
        }
        self.by_age.push_back((since, object));
        while let Some((oldest, _)) = self.by_age.front() {
            let is_old = local.now.monotonic > *oldest + local.settings.hint_age_max;
            if !is_old && self.by_age.len() <= local.settings.hints_per_peer_max {
                break;
            }
            if let Some((_, dropped)) = self.by_age.pop_front() {
                self.known.remove(&dropped);
                local.counters.hints_dropped += 1;
            }
        }
    }
}

impl HintOperation {
    fn start<S: Store>(
        local: &mut Local<S>,
        target: NodeId,
        object: ObjectKey,
        since: Duration,
    ) -> Option<HintOperation> {
        let partition = object.partition(local.document.as_ref()?.partitions);
        let record = local.held(&object, partition).ok()??;
        let operation = local.numbers.take();
        let tag = Tag { operation, question: 0 };
        let timer = local.now.monotonic + REPLAY_TIMEOUT;
        local.timers.insert((timer, operation));
        let (durability, path) = (Durability::Disk, MergePath::Hint);
        local.send(target, Message::Merge { tag, object: object.clone(), record, durability, path });
        Some(HintOperation { operation, target, object, since, timer, is_delivered: false })
    }

    /// Its number.
    pub(crate) fn operation(&self) -> u64 {
        self.operation
    }

    /// The target said how it ended. What a store acknowledged that the document does not record is still owed.
    pub(crate) fn on_event<S: Store>(&mut self, local: &mut Local<S>, event: Event) -> Step {
        if let Event::Merged { from, store, outcome } = event {
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
