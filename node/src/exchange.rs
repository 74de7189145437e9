//! A plain exchange: two nodes that hold copies of a partition compare their keys and version digests stretch by
//! stretch, and what differs is read from one side and merged into the other, both ways.
//!
//! An exchange is complete when everything it compared is synced on both sides. A filling copy that has completed
//! one with every other copy becomes whole. Whole copies compare at leisure, the node with the lower id leading.
//!
//! This finds differences by listing all keys; what it does not do is find them cheaply.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use antientropy::version::{Record, VersionDigest};
use bytes::Bytes;
use rand_core::Rng;
use ring::{ClusterDocument, Durability, KeyspaceId, NodeId, PartitionId, StoreId};

use crate::{
    coordinator::Step,
    local::{Event, Local, Scanned},
    message::{MergeOutcome, MergePath, Message, ReadAnswer, ReadKind, ReadPurpose, Tag},
    placement::Owners,
    settings::Settings,
    storage::{ObjectKey, ReadError, Store},
    waiting::Waiting,
};

/// How long after an exchange that was given up the next is tried.
pub(crate) const RETRY_AFTER: Duration = Duration::from_millis(250);

/// An exchange that this node leads.
#[derive(Debug)]
pub(crate) struct ExchangeOperation {
    operation: u64,
    peer: NodeId,
    partition: PartitionId,
    /// The time of filling that this exchange serves; none if the copy was whole.
    generation: Option<u64>,
    /// Keyspaces still to be compared, the present one first.
    keyspaces: VecDeque<KeyspaceId>,
    /// Where the present stretch begins.
    after: Option<Bytes>,
    /// Where it ends, once the peer has said so.
    until: Option<Bytes>,
    /// What was asked and not yet answered, by the number of the question.
    awaiting: BTreeMap<u32, Awaited>,
    next_question: u32,
    /// Whether the stretch is compared and only its sync is waited for.
    is_syncing: bool,
    pub(crate) is_complete: bool,
    timer: Duration,
}

/// A question of an exchange.
#[derive(Debug)]
enum Awaited {
    Stretch,
    Record(ObjectKey),
    Merge,
    Sync,
}

impl ExchangeOperation {
    /// Begins to compare a partition with a peer.
    pub(crate) fn start<S: Store>(
        local: &mut Local<S>,
        partition: PartitionId,
        peer: NodeId,
    ) -> ExchangeOperation {
        let operation = local.numbers.take();
        let keyspaces = local.document.as_ref().map(|document| document.keyspaces.keys().copied().collect());
        let timer = local.now.monotonic + local.settings.exchange_silent_after;
        local.timers.insert((timer, operation));
        let mut exchange = ExchangeOperation {
            operation,
            peer,
            partition,
            generation: local.copies.generation(partition),
            keyspaces: keyspaces.unwrap_or_default(),
            after: None,
            until: None,
            awaiting: BTreeMap::new(),
            next_question: 0,
            is_syncing: false,
            is_complete: false,
            timer,
        };
        exchange.ask_stretch(local);
        exchange
    }

    /// Its number.
    pub(crate) fn operation(&self) -> u64 {
        self.operation
    }

    /// The partition and the peer that it compares.
    pub(crate) fn pair(&self) -> (PartitionId, NodeId) {
        (self.partition, self.peer)
    }

    /// The time of filling that it serves.
    pub(crate) fn generation(&self) -> Option<u64> {
        self.generation
    }

    fn question(&mut self, awaited: Awaited) -> Tag {
        self.next_question += 1;
        self.awaiting.insert(self.next_question, awaited);
        Tag { operation: self.operation, question: self.next_question }
    }

    fn ask_stretch<S: Store>(&mut self, local: &mut Local<S>) {
        match self.keyspaces.front().copied() {
            Some(keyspace) => {
                let tag = self.question(Awaited::Stretch);
                let (partition, after) = (self.partition, self.after.clone());
                local.send(self.peer, Message::Tree { tag, keyspace, partition, after });
            }
            None => self.is_complete = true,
        }
    }

    /// Something was answered.
    pub(crate) fn on_event<S: Store>(&mut self, local: &mut Local<S>, question: u32, event: Event) -> Step {
        let Some(awaited) = self.awaiting.remove(&question) else { return Step::Continue };
        let goes_on = match (awaited, event) {
            (Awaited::Stretch, Event::Stretch { store, entries, until }) => {
                self.compare(local, store, &entries, until).is_ok()
            }
            (Awaited::Record(object), Event::Answered { answer, .. }) => self.resolve(local, object, answer),
            (Awaited::Merge, Event::Merged { outcome, .. }) => {
                matches!(outcome, MergeOutcome::Applied { .. })
            }
            (Awaited::Sync, Event::Synced) => true,
            _ => false,
        };
        if !goes_on {
            return self.end(local);
        }
        self.touch(local);
        self.advance(local)
    }

    /// Nothing was answered for too long.
    pub(crate) fn on_timer<S: Store>(&mut self, local: &mut Local<S>) -> Step {
        if local.now.monotonic < self.timer { Step::Continue } else { self.end(local) }
    }

    /// Ends, complete or not.
    pub(crate) fn end<S: Store>(&mut self, local: &mut Local<S>) -> Step {
        local.timers.remove(&(self.timer, self.operation));
        Step::Done
    }

    fn touch<S: Store>(&mut self, local: &mut Local<S>) {
        local.timers.remove(&(self.timer, self.operation));
        self.timer = local.now.monotonic + local.settings.exchange_silent_after;
        local.timers.insert((self.timer, self.operation));
    }

    /// Compares a stretch of the peer's with the same stretch here.
    fn compare<S: Store>(
        &mut self,
        local: &mut Local<S>,
        store: StoreId,
        entries: &[(ObjectKey, VersionDigest)],
        until: Option<Bytes>,
    ) -> Result<(), ReadError> {
        // A store that the document does not record is not the copy that has to be heard.
        if local.recorded_store(self.peer) != Some(store) {
            return Err(ReadError::Damaged);
        }
        let document = local.document.clone().ok_or(ReadError::Damaged)?;
        let keyspace = *self.keyspaces.front().ok_or(ReadError::Damaged)?;
        let (after, partition) = (self.after.as_ref(), self.partition);
        // The same stretch may hold more here than there: it ends where the first of the two was cut off.
        let limit = local.settings.exchange_stretch_keys;
        let range = (after, until.as_ref());
        let Scanned { records: mut here, until } =
            shared_stretch(local, &document, keyspace, partition, self.peer, range, limit)?;
        let is_within = |object: &ObjectKey| until.as_ref().is_none_or(|until| object.encoded() <= until);
        for (object, digest) in entries.iter().filter(|(object, _)| is_within(object)) {
            match here.remove(object) {
                Some(record) if record.digest() == *digest => {}
                Some(_) | None => {
                    let tag = self.question(Awaited::Record(object.clone()));
                    let (kind, purpose) = (ReadKind::Data, ReadPurpose::Repair);
                    local.send(self.peer, Message::Read { tag, object: object.clone(), kind, purpose });
                }
            }
        }
        for (object, record) in here {
            self.give(local, object, record);
        }
        self.until = until;
        Ok(())
    }

    /// Sends the peer a record that it lacks.
    fn give<S: Store>(&mut self, local: &mut Local<S>, object: ObjectKey, record: Arc<Record>) {
        let tag = self.question(Awaited::Merge);
        let (durability, path) = (Durability::Disk, MergePath::AntiEntropy);
        local.send(self.peer, Message::Merge { tag, object, record, durability, path });
    }

    /// The peer's record of an object that differs: joins it here, and there if it lacked something.
    fn resolve<S: Store>(&mut self, local: &mut Local<S>, object: ObjectKey, answer: ReadAnswer) -> bool {
        let theirs = match answer {
            ReadAnswer::Data(record) => record,
            // Damaged there: it has nothing, and may have what is here.
            ReadAnswer::Filling => None,
            ReadAnswer::Digest(_) | ReadAnswer::Refused | ReadAnswer::StaleEpoch | ReadAnswer::NotOwner => {
                return false;
            }
        };
        if let Some(record) = &theirs {
            let path = if self.generation.is_some() { MergePath::Movement } else { MergePath::AntiEntropy };
            if local.merge(&object, record, Durability::Disk, path).is_err() {
                return false;
            }
        }
        let Ok(Some(here)) = local.held(&object, self.partition) else { return theirs.is_none() };
        if theirs.is_none_or(|theirs| !theirs.dominates(&here)) {
            self.give(local, object, here);
        }
        true
    }

    /// Goes on when nothing is awaited: to the sync of this stretch, to the next stretch, to the next keyspace.
    fn advance<S: Store>(&mut self, local: &mut Local<S>) -> Step {
        if !self.awaiting.is_empty() {
            return Step::Continue;
        }
        if !self.is_syncing {
            self.is_syncing = true;
            if let Some(sequence) = local.replica.pending_any() {
                let tag = self.question(Awaited::Sync);
                local.when_synced(Some(sequence), Waiting::Event { tag, event: Event::Synced });
                return Step::Continue;
            }
        }
        self.is_syncing = false;
        self.after = self.until.take();
        if self.after.is_none() {
            self.keyspaces.pop_front();
        }
        self.ask_stretch(local);
        if self.is_complete { self.end(local) } else { Step::Continue }
    }
}

/// The records of a stretch that both this node and a peer are to keep, and where the stretch ends. Damage that is
/// come across is noted.
fn shared_stretch<S: Store>(
    local: &mut Local<S>,
    document: &ClusterDocument,
    keyspace: KeyspaceId,
    partition: PartitionId,
    peer: NodeId,
    range: (Option<&Bytes>, Option<&Bytes>),
    limit: usize,
) -> Result<Scanned, ReadError> {
    let mut scanned = local.scan(keyspace, partition, document.partitions, range, limit)?;
    scanned.records.retain(|_, record| {
        let keepers = Owners::keepers(document, keyspace, partition, record.copies());
        keepers.is_some_and(|keepers| keepers.contains(local.node) && keepers.contains(peer))
    });
    Ok(scanned)
}

/// Answers a peer that asks for a stretch, once everything in it is synced.
pub(crate) fn answer_tree<S: Store>(
    local: &mut Local<S>,
    from: NodeId,
    tag: Tag,
    keyspace: KeyspaceId,
    partition: PartitionId,
    after: Option<&Bytes>,
) {
    let document = local.document.clone().filter(|_| local.copies.gained(partition).is_some());
    let limit = local.settings.exchange_stretch_keys;
    let stretch = document.and_then(|document| {
        shared_stretch(local, &document, keyspace, partition, from, (after, None), limit).ok()
    });
    let Some(Scanned { records, until }) = stretch else {
        return local.send(from, Message::Declined { tag });
    };
    let entries = records.into_iter().map(|(object, record)| (object, record.digest())).collect();
    let message = Message::Stretch { tag, entries, until };
    let pending = local.replica.pending_any();
    local.when_synced(pending, Waiting::Message { to: from, message });
}

/// Which partition is compared with whom, and when.
pub(crate) struct Exchanges {
    due: BTreeSet<(Duration, PartitionId, NodeId)>,
    at: BTreeMap<(PartitionId, NodeId), Duration>,
    running: usize,
}

impl Exchanges {
    /// Nothing is due.
    pub(crate) fn new() -> Exchanges {
        Exchanges { due: BTreeSet::new(), at: BTreeMap::new(), running: 0 }
    }

    /// Plans the exchanges of the partitions that this node shares; those that were planned stay planned.
    pub(crate) fn plan<S: Store>(&mut self, local: &mut Local<S>) {
        let mut wanted = BTreeSet::new();
        for (partition, sharers) in &local.sharers {
            wanted.extend(sharers.iter().map(|peer| (*partition, *peer)));
        }
        self.at.retain(|pair, _| wanted.contains(pair));
        let at = &self.at;
        self.due.retain(|(_, partition, peer)| at.contains_key(&(*partition, *peer)));
        for (partition, peer) in wanted {
            if !self.at.contains_key(&(partition, peer)) {
                let when = self.later(local, partition, peer, true);
                self.set(partition, peer, when);
            }
        }
    }

    fn set(&mut self, partition: PartitionId, peer: NodeId, when: Duration) {
        if let Some(before) = self.at.insert((partition, peer), when) {
            self.due.remove(&(before, partition, peer));
        }
        self.due.insert((when, partition, peer));
    }

    /// When a pair is compared next: at once by a filling copy, after the interval, with some jitter, by a whole one.
    fn later<S: Store>(
        &self,
        local: &mut Local<S>,
        partition: PartitionId,
        peer: NodeId,
        is_ok: bool,
    ) -> Duration {
        let lacks = local.copies.lacks_exchange(partition, peer);
        let interval = match (lacks, is_ok) {
            (true, true) => Duration::ZERO,
            (_, false) => RETRY_AFTER,
            (false, true) => local.settings.exchange_interval,
        };
        let jitter = u64::try_from(interval.as_nanos() / 4).unwrap_or(u64::MAX).max(1);
        local.now.monotonic + interval + Duration::from_nanos(local.rng.next_u64() % jitter)
    }

    /// Starts what is due, as far as there is room.
    pub(crate) fn start_due<S: Store>(&mut self, local: &mut Local<S>) -> Vec<ExchangeOperation> {
        for (partition, delay) in std::mem::take(&mut local.to_fill) {
            for peer in local.sharers.get(&partition).cloned().unwrap_or_default() {
                self.set(partition, peer, local.now.monotonic + delay);
            }
        }
        let mut started = Vec::new();
        while self.running < local.settings.exchanges_max
            && let Some(&(when, partition, peer)) = self.due.first()
            && when <= local.now.monotonic
        {
            let is_filling = local.copies.generation(partition).is_some();
            if is_filling && !local.copies.lacks_exchange(partition, peer) {
                local.become_whole(partition);
            }
            let leads = local.copies.lacks_exchange(partition, peer) || local.node < peer;
            let can = leads && local.is_up(peer);
            let next = self.later(local, partition, peer, can || !(leads || is_filling));
            if can {
                self.due.remove(&(when, partition, peer));
                self.running += 1;
                started.push(ExchangeOperation::start(local, partition, peer));
            } else {
                self.set(partition, peer, next);
            }
        }
        started
    }

    /// An exchange ended.
    pub(crate) fn ended<S: Store>(&mut self, local: &mut Local<S>, exchange: &ExchangeOperation) {
        self.running -= 1;
        let (partition, peer) = exchange.pair();
        if exchange.is_complete {
            local.counters.exchanges_completed += 1;
            if let Some(generation) = exchange.generation() {
                let sharers = local.sharers.get(&partition).cloned().unwrap_or_default();
                if local.copies.exchanged(partition, generation, peer, &sharers) {
                    local.become_whole(partition);
                }
            }
        } else {
            local.counters.exchanges_abandoned += 1;
        }
        if self.at.contains_key(&(partition, peer)) {
            let when = self.later(local, partition, peer, exchange.is_complete);
            self.set(partition, peer, when);
        }
    }

    /// When something is due next.
    pub(crate) fn next_due(&self, settings: &Settings) -> Option<Duration> {
        let has_room = self.running < settings.exchanges_max;
        self.due.first().filter(|_| has_room).map(|(when, ..)| *when)
    }
}
