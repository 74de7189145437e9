//! What a node shows of itself: to its driver, to operators, and to whoever asks why a key reads as it does.

use std::{collections::BTreeMap, time::Duration};

use antientropy::version::Counter;
use bytes::Bytes;
use client::{
    Version,
    wire::{
        ControlError, CopyState, HeldRecord, HeldVersion, KeysPage, NodeStatus, PeerStatus, ReplicaView,
        SyncStatus,
    },
};
use ring::{KeyspaceId, NodeId, PartitionId};

use super::{Node, Operation};
use crate::{
    event::Now,
    hints::HintsPending,
    lag::PeerSync,
    message::StartId,
    replica::Held,
    storage::{ObjectKey, Store},
};

/// The most keys that a page has, whatever was asked for.
const PAGE_KEYS_MAX: u32 = 4096;

impl<S: Store> Node<S> {
    /// This run of the process.
    #[must_use]
    pub fn start_id(&self) -> StartId {
        self.local.start
    }

    /// Whether this node can serve requests together with others: it is ready, and more than half of the members
    /// are up, this one included.
    #[must_use]
    pub fn is_in_touch(&self) -> bool {
        let Some(document) = self.local.document.as_ref() else { return false };
        let up = document.members.keys().filter(|node| self.local.is_up(**node)).count();
        self.is_ready() && up * 2 > document.members.len()
    }

    /// Hints that wait for their targets.
    #[must_use]
    pub fn hints_pending(&self) -> Vec<HintsPending> {
        self.hints.census()
    }

    /// Whether the store could not be read for all the hints that it has kept. It is tried again.
    #[must_use]
    pub fn hints_are_partly_unread(&self) -> bool {
        self.hints.is_partly_unread()
    }

    /// How far this node's clock is ahead of the median of its peers', in milliseconds; none if none was heard.
    #[must_use]
    pub fn clock_drift_ms(&self) -> Option<i64> {
        self.local.peers.drift_ms(self.local.now)
    }

    /// How far behind the clock the lowest watermark of this node's copies is. Where there is none yet, as long as this
    /// process has run.
    #[must_use]
    pub fn watermark_age(&self) -> Duration {
        let local = &self.local;
        match local.watermarks.lowest(local.copies.partitions()) {
            Some(lowest) if lowest > Counter::ZERO => {
                Duration::from_millis(local.now.wall.0.saturating_sub(lowest.millis().0))
            }
            Some(_) | None => local.now.monotonic,
        }
    }

    /// How many records are known to wait for a watermark to leave less of them.
    #[must_use]
    pub fn prunable(&self) -> usize {
        self.local.replica.prunable.len()
    }

    /// How far this node and each peer with which it shares something are in sync.
    pub fn in_sync(&self) -> impl Iterator<Item = PeerSync> {
        self.exchanges.in_sync(self.local.now.monotonic)
    }

    /// How old the oldest write is that is known here not to be on all its replicas: one under way, one that a hint
    /// waits with, or one whose hint was dropped and that no exchange has covered since. While copies of this node are
    /// filling, no less than the time for which they are.
    #[must_use]
    pub fn convergence_lag(&self) -> Duration {
        let local = &self.local;
        let under_way = self.operations.iter().filter_map(|(_, operation)| match operation {
            Operation::Write(write) => Some(write.dot().counter.millis()),
            _ => None,
        });
        let hints = self.hints.census().into_iter().filter_map(|pending| pending.oldest);
        let oldest = under_way.chain(hints).chain(local.lag.oldest()).min();
        let age = oldest.map_or(0, |oldest| local.now.wall.0.saturating_sub(oldest.0));
        let (copies, whole) = self.copies();
        let filling = self.in_sync().filter(|sync| whole < copies && !sync.is_known).map(|sync| sync.age);
        filling.max().unwrap_or_default().max(Duration::from_millis(age))
    }

    /// How many partitions have their hash trees, how many are to have them, and how many bytes the trees take.
    #[must_use]
    pub fn trees(&self) -> (usize, usize, usize) {
        let trees = &self.local.replica.trees;
        let (built, wanted) = trees.census();
        (built, wanted, trees.memory_bytes())
    }

    /// Bytes written and not yet synced.
    #[must_use]
    pub fn unsynced_bytes(&self) -> usize {
        self.local.replica.unsynced_bytes()
    }

    /// Requests that are not answered.
    pub fn requests_under_way(&self) -> usize {
        self.local.admission.under_way()
    }

    /// How many more requests this node would take now.
    pub fn room_for_requests(&mut self) -> usize {
        let (now, settings) = (self.local.now.monotonic, &self.local.settings);
        self.local.admission.room(now, settings.queue_time_max, settings.requests_max)
    }

    /// Requests and background operations under way.
    #[must_use]
    pub fn operations(&self) -> usize {
        self.operations.len()
    }

    /// How the node fares. What only its driver knows, its software's version and how long it has run, is left empty.
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        let local = &self.local;
        let (copies, copies_whole) = self.copies();
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let members = local.document.iter().flat_map(|document| document.members.keys());
        let peers = members.filter(|node| **node != local.node);
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let (built, wanted) = local.replica.trees.census();
        let hints: BTreeMap<NodeId, HintsPending> =
            self.hints_pending().into_iter().map(|pending| (pending.target, pending)).collect();
        let in_sync: BTreeMap<NodeId, PeerSync> = self.in_sync().map(|sync| (sync.peer, sync)).collect();
        let peer = |&node: &NodeId| {
            let (hints, sync) = (hints.get(&node), in_sync.get(&node));
            let oldest = hints.and_then(|hints| hints.oldest);
            PeerStatus {
                node,
                is_up: local.is_up(node),
                hints_pending: hints.map_or(0, |hints| hints.count as u64),
                hint_oldest_ms: oldest.map(|oldest| local.now.wall.0.saturating_sub(oldest.0)),
                sync: sync.map(|sync| SyncStatus {
                    age_ms: millis(sync.age),
                    is_known: sync.is_known,
                    partitions_differed: sync.differed,
                }),
            }
        };
        NodeStatus {
            node: local.node,
            version: String::new(),
            store: local.store_id(),
            is_recorded: local.is_recorded(),
            votes: self.is_elector(),
            epoch: local.epoch(),
            is_ready: self.is_ready(),
            copies: count(copies),
            copies_whole: count(copies_whole),
            uptime_ms: 0,
            clock_drift_ms: self.clock_drift_ms(),
            operations: count(self.operations()),
            unsynced_bytes: u64::try_from(self.unsynced_bytes()).unwrap_or(u64::MAX),
            hints_pending: hints.values().map(|pending| pending.count as u64).sum(),
            convergence_lag_ms: millis(self.convergence_lag()),
            partitions_unscanned: count(wanted - built),
            peers: peers.map(peer).collect(),
        }
    }

    /// Compares at once what this node shares with its peers, or with those that have copies of a partition. Returns them.
    ///
    /// # Errors
    ///
    /// `NotReady` without a document or while the node stops, `NotOwner` if this node has no copy of the partition.
    pub fn repair(&mut self, now: Now, partition: Option<PartitionId>) -> Result<Vec<NodeId>, ControlError> {
        self.set_now(now);
        self.is_turn_open = true;
        if self.local.document.is_none() || self.local.is_stopping {
            return Err(ControlError::NotReady);
        }
        let peers: Vec<NodeId> = match partition {
            None => self.exchanges.in_sync(now.monotonic).map(|sync| sync.peer).collect(),
            Some(partition) => self.local.sharers.get(&partition).cloned().ok_or(ControlError::NotOwner)?,
        };
        self.local.to_compare.extend(peers.iter().copied());
        Ok(peers)
    }

    /// What this node holds of a key.
    ///
    /// # Errors
    ///
    /// `NotReady` without a document, `UnknownKeyspace`, `StorageFailed` if it cannot be read.
    pub fn replica_view(&self, keyspace: KeyspaceId, key: &[u8]) -> Result<ReplicaView, ControlError> {
        let document = self.local.document.as_ref().ok_or(ControlError::NotReady)?;
        if !document.keyspaces.contains_key(&keyspace) {
            return Err(ControlError::UnknownKeyspace);
        }
        let object = ObjectKey::new(keyspace, key);
        let partition = object.partition(document.partitions);
        let (copy, watermark) = (self.copy_state(partition), self.local.watermarks.of(partition).0);
        let record = match self.local.replica.inspect(&object) {
            Held::Record(record) => {
                let is_synced = self.local.replica.pending(&object).is_none();
                Some(held_record(&record, is_synced))
            }
            Held::Nothing => None,
            Held::Damaged | Held::Unreadable => return Err(ControlError::StorageFailed),
        };
        let owes = self.hints.owed(&object);
        Ok(ReplicaView { node: self.local.node, copy, watermark, record, owes })
    }

    fn copy_state(&self, partition: PartitionId) -> CopyState {
        match self.local.copies.gained(partition) {
            None => CopyState::None,
            Some(_) if self.local.is_believed(partition) => CopyState::Whole,
            Some(_) => CopyState::Filling,
        }
    }

    /// A page of the keys that this node holds of a partition and that have a live value.
    ///
    /// # Errors
    ///
    /// `NotReady` without a document, `UnknownKeyspace`, `NotOwner`, `StorageFailed` if the store cannot say.
    pub fn keys_page(
        &self,
        keyspace: KeyspaceId,
        partition: PartitionId,
        after: Option<&Bytes>,
        limit: u32,
    ) -> Result<KeysPage, ControlError> {
        let document = self.local.document.as_ref().ok_or(ControlError::NotReady)?;
        if !document.keyspaces.contains_key(&keyspace) {
            return Err(ControlError::UnknownKeyspace);
        }
        let copy = self.copy_state(partition);
        if copy == CopyState::None {
            return Err(ControlError::NotOwner);
        }
        let limit = usize::try_from(limit.clamp(1, PAGE_KEYS_MAX)).unwrap_or(1);
        let (start, end) = ObjectKey::range(keyspace, partition, document.partitions);
        // What to continue after comes from outside: it may not lead out of the partition.
        let after = after.cloned().unwrap_or_default().clamp(start, end.clone());
        let stretch =
            self.local.replica.stretch(&after, &end, limit).map_err(|_| ControlError::StorageFailed)?;
        let wall = self.local.now.wall;
        let is_live = |held: &Held| matches!(held, Held::Record(record) if !record.live(wall).is_empty());
        let live = stretch.held.iter().filter(|(_, held)| is_live(held));
        let keys = live.map(|(object, _)| object.key()).collect();
        Ok(KeysPage { keys, is_whole: copy == CopyState::Whole, next: stretch.until })
    }
}

fn held_record(record: &antientropy::version::Record, is_synced: bool) -> HeldRecord {
    // All values that are stored, expired ones too: whoever asks wants to know why one is not shown.
    let values = record.live(antientropy::version::UnixMillis(0));
    let versions = values.into_iter().map(|(dot, value)| HeldVersion {
        version: Version { counter: dot.counter.0, actor: dot.actor.0 },
        value_bytes: u64::try_from(value.bytes.len()).unwrap_or(u64::MAX),
        expires_unix_ms: value.expires.map(|expires| expires.0),
    });
    let context = record.context();
    let entries = context.entries().iter();
    HeldRecord {
        digest: Bytes::copy_from_slice(&record.digest().0),
        versions: versions.collect(),
        context: entries.map(|(actor, counter)| Version { counter: counter.0, actor: actor.0 }).collect(),
        is_synced,
    }
}
