//! What every operation of a node stands on: its replica, its copies, its peers, the document, and the ways out.
//!
//! Operations are state machines of their own (`coordinator`, `exchange`, `hints`); they act through this struct and
//! hear back through [`Event`]s that carry their [`Tag`]. It knows no operation by kind.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use antientropy::version::{Counter, Pruned, Record, UnixMillis, VersionDigest};
use bytes::Bytes;
use client::hedge::HedgeBudget;
use rand_chacha::ChaCha8Rng;
use rand_core::Rng;
use ring::{ClusterDocument, Durability, Epoch, NodeId, PartitionId, REPLICAS_MAX, StoreId, VoterId};

use crate::{
    admission::Admission,
    agreement::votes::{Votes, is_later},
    copies::{Before, Copies},
    counters::Counters,
    event::{Now, Output},
    exchange::RETRY_AFTER,
    hints::HintLeft,
    lag::Lag,
    message::{
        DocumentName, Envelope, ExchangeAnswer, Header, MergeOutcome, MergeRefusal, Message, ReadAnswer,
        ReadKind, StartId, Tag,
    },
    operations::Numbers,
    peers::Peers,
    placement::Owners,
    planted::PlantedBug,
    replica::{Held, Replica},
    settings::Settings,
    storage::{ObjectKey, ReadError, Sequence, Store},
    waiting::{Waiting, WaitingRoom},
    watermarks::Watermarks,
};

/// See the module's documentation.
pub(crate) struct Local<S> {
    pub(crate) node: NodeId,
    pub(crate) start: StartId,
    pub(crate) settings: Settings,
    pub(crate) planted: Option<PlantedBug>,
    pub(crate) rng: ChaCha8Rng,
    pub(crate) now: Now,
    pub(crate) replica: Replica<S>,
    pub(crate) copies: Copies,
    pub(crate) peers: Peers,
    pub(crate) document: Option<Arc<ClusterDocument>>,
    /// Its digest.
    pub(crate) digest: Option<[u8; 32]>,
    /// How this store has voted about documents.
    pub(crate) votes: Votes,
    /// For each partition that this node has a copy of, the other nodes that have one.
    pub(crate) sharers: BTreeMap<PartitionId, Vec<NodeId>>,
    pub(crate) counters: Counters,
    pub(crate) outbox: VecDeque<Output>,
    /// Events for operations of this node, to be delivered before the turn ends.
    pub(crate) events: VecDeque<(Tag, Event)>,
    /// What a batch releases when it is committed.
    pub(crate) waiting: WaitingRoom,
    /// When operations want to be woken.
    pub(crate) timers: BTreeSet<(Duration, u64)>,
    /// Copies that began to fill, or to be held, since the scheduler last looked, and how soon their exchanges are due.
    pub(crate) to_fill: BTreeMap<PartitionId, Duration>,
    /// Filling copies that have to exchange with all others again, since the scheduler last looked.
    pub(crate) to_exchange: BTreeSet<PartitionId>,
    /// Peers that may lack something, since the scheduler last looked: they were away, or what they were owed was dropped.
    pub(crate) to_compare: BTreeSet<NodeId>,
    /// What peers lack that nobody owes them.
    pub(crate) lag: Lag,
    /// Floors, promises and watermarks.
    pub(crate) watermarks: Watermarks,
    /// Whether a watermark was heard of that this store promised and does not know of.
    pub(crate) has_forgotten: bool,
    /// Merges that were not acknowledged and are left to hints: the target and the object.
    pub(crate) hints_left: Vec<HintLeft>,
    pub(crate) numbers: Numbers,
    /// How many replicas reads may ask early.
    pub(crate) hedges: HedgeBudget,
    /// How many requests are taken.
    pub(crate) admission: Admission,
    /// Whether the process is about to end.
    pub(crate) is_stopping: bool,
    /// Whether something has begun to wait for a batch in this turn.
    pub(crate) is_awaiting: bool,
}

/// What an operation hears.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A merge that it sent, or that it asked of its own replica, ended.
    Merged {
        /// The replica.
        from: NodeId,
        /// Its store.
        store: StoreId,
        /// How it ended.
        outcome: MergeOutcome,
    },
    /// A replica answered a read.
    Answered {
        /// The replica.
        from: NodeId,
        /// Its store.
        store: StoreId,
        /// Its answer.
        answer: ReadAnswer,
    },
    /// A forwarded request ended.
    Forwarded {
        /// For the client.
        reply: Box<client::Reply>,
    },
    /// A peer answered a question of an exchange.
    ExchangeAnswered {
        /// The peer's store.
        store: StoreId,
        /// Its answer.
        answer: Box<ExchangeAnswer>,
    },
    /// A peer did not take a question.
    Declined,
    /// What this node held when it asked is synced.
    Synced,
    /// It is not, and parts of it are lost.
    SyncFailed,
}

impl<S: Store> Local<S> {
    /// This node's store.
    pub(crate) fn store_id(&self) -> StoreId {
        self.replica.store().id()
    }

    /// The epoch of the document; 0 without one.
    pub(crate) fn epoch(&self) -> Epoch {
        self.document.as_ref().map_or(Epoch(0), |document| document.epoch)
    }

    /// The document's name; none without one.
    pub(crate) fn document_name(&self) -> Option<DocumentName> {
        Some(DocumentName { epoch: self.document.as_ref()?.epoch, digest: self.digest? })
    }

    /// The name of this store's memory of votes; none if the store could not be read yet.
    pub(crate) fn voter(&mut self) -> Option<VoterId> {
        let was_known = self.votes.voter().is_some();
        self.votes.read(self.replica.store(), &mut self.rng);
        let voter = self.votes.voter();
        if !was_known && voter.is_some() {
            self.outgrow_recorded_voter();
            // It was left out of what the peers were told so far, and they may ask for nothing more.
            self.peers.greet_all_soon();
        }
        self.votes.voter()
    }

    /// This store's memory of votes is broken: from now on it is another.
    pub(crate) fn renew_votes(&mut self) {
        let recorded = self.recorded_voter();
        self.votes.renew(self.rng.next_u64(), recorded);
    }

    /// A store that went back in time may have drawn a name for its memory of votes that comes before the one that it had
    /// and that is recorded: nobody would record that one. It draws another.
    pub(crate) fn outgrow_recorded_voter(&mut self) {
        if let (Some(recorded), Some(own)) = (self.recorded_voter(), self.votes.voter())
            && is_later(recorded, own)
        {
            self.renew_votes();
        }
    }

    /// The name of a memory of votes that the document records of this store; none if it records another store.
    fn recorded_voter(&self) -> Option<VoterId> {
        let member = self.document.as_ref()?.members.get(&self.node)?;
        (member.store == self.store_id()).then_some(member.voter)
    }

    /// Whether the document records this node with this store.
    pub(crate) fn is_recorded(&self) -> bool {
        self.recorded_store(self.node) == Some(self.store_id())
    }

    /// Since when the document records this node with this store; none if it does not.
    pub(crate) fn recorded_since(&self) -> Option<Epoch> {
        self.document.as_ref().and_then(|document| recorded_since(document, self.node, self.store_id()))
    }

    /// The store that the document records for a node.
    pub(crate) fn recorded_store(&self, node: NodeId) -> Option<StoreId> {
        Some(self.document.as_ref()?.members.get(&node)?.store)
    }

    /// Sends a message.
    pub(crate) fn send(&mut self, to: NodeId, message: Message) {
        let header = Header {
            from: self.node,
            start: self.start,
            store: self.store_id(),
            synced: self.replica.synced(),
            epoch: self.epoch(),
            wall: self.now.wall,
            clock: self.replica.clock().peek(self.now.wall),
        };
        let asks = match &message {
            Message::Hello { .. }
            | Message::DocumentRequest
            | Message::Forward { .. }
            | Message::Merge { .. }
            | Message::Read { .. }
            | Message::HintOffer { .. }
            | Message::Exchange { .. } => true,
            Message::Welcome { .. }
            | Message::Document(_)
            | Message::Forwarded { .. }
            | Message::Merged { .. }
            | Message::Answer { .. }
            | Message::ExchangeAnswer { .. }
            | Message::ExchangeEnded { .. }
            | Message::Declined { .. }
            | Message::HintGrant { .. }
            // Whoever may not vote does not answer.
            | Message::Agreement(_) => false,
        };
        if asks {
            self.peers.asked(self.now, to);
        }
        self.outbox.push_back(Output::Send { to, envelope: Envelope { header, message } });
    }

    /// Lets something wait for a batch; without one, it happens at once.
    pub(crate) fn when_synced(&mut self, sequence: Option<Sequence>, waiting: Waiting) {
        match sequence {
            Some(sequence) => {
                self.is_awaiting = true;
                self.waiting.add(sequence, waiting);
            }
            None => self.release(waiting),
        }
    }

    /// What waited for a batch happens. What concerns documents is the node's to do, not done here.
    pub(crate) fn release(&mut self, waiting: Waiting) {
        match waiting {
            Waiting::Message { to, message } => self.send(to, message),
            Waiting::Event { tag, event } => self.events.push_back((tag, event)),
            Waiting::Document(_) | Waiting::Cast { .. } | Waiting::Count { .. } => {
                unreachable!("it waits for a batch, and is taken out before")
            }
        }
    }

    /// What this node holds of an object. What cannot be read is noted: the copy is filling from then on.
    pub(crate) fn held(
        &mut self,
        object: &ObjectKey,
        partition: PartitionId,
    ) -> Result<Option<Arc<Record>>, Unheld> {
        match self.replica.held(object) {
            Held::Record(record) => Ok(Some(record)),
            Held::Nothing => Ok(None),
            Held::Damaged => {
                self.note_damage(object, partition);
                Err(Unheld::Damaged)
            }
            Held::Unreadable => {
                self.note_unreadable(partition);
                Err(Unheld::Unreadable)
            }
        }
    }

    /// Something could not be read: the trees are built anew, which proves whether all can be.
    fn note_unreadable(&mut self, partition: PartitionId) {
        self.counters.unreadable_records += 1;
        self.replica.trees.doubt(partition);
        self.fill(partition);
    }

    /// A record was found damaged. In one batch its remains are removed and the copy is marked as filling: a merge
    /// that comes later does not bring back what was lost here, an exchange does.
    pub(crate) fn note_damage(&mut self, object: &ObjectKey, partition: PartitionId) {
        self.counters.damaged_records += 1;
        self.replica.trees.doubt(partition);
        self.replica.put(object.clone(), None, None);
        self.fill(partition);
    }

    /// The records of a stretch of a partition, as [`Replica::stretch`] has them. Damage that is come across is noted.
    ///
    /// # Errors
    ///
    /// [`ReadError`] if the store cannot say what is there.
    pub(crate) fn scan(
        &mut self,
        partition: PartitionId,
        after: &Bytes,
        end: &Bytes,
        limit: usize,
    ) -> Result<Scanned, ReadError> {
        let stretch = self.replica.stretch(after, end, limit);
        let stretch = stretch.inspect_err(|_| self.note_unreadable(partition))?;
        for key in stretch.nameless {
            self.counters.damaged_records += 1;
            self.replica.trees.doubt(partition);
            self.replica.remove_nameless(key);
            self.fill(partition);
        }
        let mut records = Vec::with_capacity(stretch.held.len());
        for (object, held) in stretch.held {
            match held {
                Held::Record(record) => records.push((object, record)),
                Held::Nothing | Held::Unreadable => {}
                Held::Damaged => self.note_damage(&object, partition),
            }
        }
        Ok(Scanned { records, until: stretch.until })
    }

    /// A hint for a peer, which has waited since then, is dropped: an exchange covers it.
    pub(crate) fn hint_dropped(&mut self, target: NodeId, since: UnixMillis) {
        self.counters.hints_dropped += 1;
        self.lag.missed(target, since, self.now.monotonic);
        self.to_compare.insert(target);
    }

    /// The copy cannot be believed any more. One that is filling already begins anew, in a while: what it came across
    /// may be there the next time too, and its mark is written.
    pub(crate) fn fill(&mut self, partition: PartitionId) {
        self.replica.retire_actor(partition);
        self.watermarks.forget_credit(partition);
        // What comes again has to be stored again, though it was read a moment ago.
        self.replica.forget_cached();
        match self.copies.fill(partition) {
            Some(Before::Marked) => {
                self.counters.copies_filled += 1;
                self.write_mark(partition);
                self.to_fill.insert(partition, Duration::ZERO);
            }
            Some(Before::Filling) => {
                self.to_fill.entry(partition).or_insert(RETRY_AFTER);
            }
            None => {}
        }
    }

    /// Writes what is to be remembered of a copy with this turn's batch.
    pub(crate) fn write_mark(&mut self, partition: PartitionId) {
        let store = (self.store_id(), self.recorded_since().unwrap_or(Epoch(0)));
        if let Some(mark) = self.copies.mark(partition, store, self.start) {
            self.replica.put_meta(mark.to_store(partition));
        }
    }

    /// Acknowledges what this node holds of an object.
    pub(crate) fn acknowledge(
        &mut self,
        object: &ObjectKey,
        durability: Durability,
    ) -> Result<Acknowledgement, MergeRefusal> {
        let (partition, gained) = self.copy_of(object)?;
        Ok(Acknowledgement { gained, after: self.acknowledge_after(object, partition, durability) })
    }

    /// The partition of an object, and since when this node has a copy of it.
    pub(crate) fn copy_of(&self, object: &ObjectKey) -> Result<(PartitionId, Epoch), MergeRefusal> {
        let partitions = self.document.as_ref().ok_or(MergeRefusal::NotOwner)?.partitions;
        let partition = object.partition(partitions);
        let gained = self.copies.gained(partition).ok_or(MergeRefusal::NotOwner)?;
        Ok((partition, gained))
    }

    /// The batch to wait for before what is held of an object is acknowledged; none if it may be at once.
    fn acknowledge_after(
        &mut self,
        object: &ObjectKey,
        partition: PartitionId,
        durability: Durability,
    ) -> Option<Sequence> {
        let pending = self.replica.pending(object)?;
        match durability {
            Durability::Disk => Some(pending),
            // What is acknowledged from memory now would be lost with the process.
            Durability::Memory if self.is_stopping => Some(pending),
            Durability::Memory => {
                self.replica.acknowledged_from_memory(object);
                match self.copies.memory_mark(partition) {
                    Some(marking) => marking,
                    None => {
                        let sequence = self.replica.turn_sequence();
                        self.copies.marking_memory(partition, sequence);
                        self.write_mark(partition);
                        Some(sequence)
                    }
                }
            }
        }
    }

    /// The replica's answer to a read of so many copies, and the batch to wait for before it is given: one that is to be
    /// durable waits for what it says.
    pub(crate) fn read(
        &mut self,
        object: &ObjectKey,
        kind: ReadKind,
        n: Option<u8>,
        durable: bool,
    ) -> (ReadAnswer, Option<Sequence>) {
        let Some(document) = self.document.clone() else { return (ReadAnswer::NotOwner, None) };
        let partition = object.partition(document.partitions);
        let Some(owners) = Owners::of(&document, object.keyspace(), partition, n) else {
            return (ReadAnswer::NotOwner, None);
        };
        if !owners.contains(self.node) || self.copies.gained(partition).is_none() {
            return (ReadAnswer::NotOwner, None);
        }
        if !self.may_answer(partition, &owners) {
            return (ReadAnswer::Filling, None);
        }
        let Ok(record) = self.held(object, partition) else { return (ReadAnswer::Filling, None) };
        let is_kept =
            record.as_ref().is_none_or(|held| self.keeps(object.keyspace(), partition, held.copies()));
        let under = match &record {
            Some(held) if is_kept => self.under_kept(object.keyspace(), partition, held.copies()),
            Some(_) => Counter::ZERO,
            None => self.under(partition),
        };
        // What is only held in place of others is above the watermark, or was handed over.
        let watermark = self.watermarks.of(partition);
        let record = record.filter(|held| is_kept || held.highest() > watermark);
        // What is about to be pruned others may have pruned.
        let record = record.and_then(|record| pruned(record, watermark));
        let after = if durable { self.replica.pending(object) } else { None };
        let answer = match kind {
            ReadKind::Data => ReadAnswer::Data(record, under),
            ReadKind::Digest => {
                ReadAnswer::Digest(record.as_ref().map_or(VersionDigest::ABSENT, |record| record.digest()))
            }
        };
        (answer, after)
    }

    /// Whether this process may date writes of a partition: some other copy has told it the floor, which its store may have
    /// forgotten; and if this copy is new, another has since. While this node was no copy the others exchanged without
    /// waiting for it, and its clock may be behind what they count on.
    pub(crate) fn may_mint(&self, partition: PartitionId) -> bool {
        let sharers = self.sharers.get(&partition).map_or(&[][..], Vec::as_slice);
        let is_greeted = || sharers.iter().any(|node| self.peers.was_greeted(*node));
        sharers.is_empty() || (!self.watermarks.is_untold(partition) && is_greeted())
    }

    /// Whether this node's copy may be believed by a request of these copies: it is whole for them, and since this
    /// process began it has been welcomed by all that share it and are up, and by at least one of the copies asked.
    pub(crate) fn may_answer(&self, partition: PartitionId, owners: &Owners) -> bool {
        let others = || owners.nodes().filter(|node| *node != self.node);
        if !self.is_recorded() {
            return false;
        }
        let is_whole = self.copies.is_whole_for(partition, others());
        if !is_whole && self.planted != Some(PlantedBug::FillingCopyCounted) {
            return false;
        }
        let sharers = self.sharers.get(&partition).map_or(&[][..], Vec::as_slice);
        let settled = |node: &NodeId| {
            self.peers.was_greeted(*node) || self.peers.is_down(self.now, *node, &self.settings)
        };
        let mut others = others().peekable();
        sharers.iter().all(settled)
            && (others.peek().is_none() || others.any(|node| self.peers.was_greeted(node)))
    }

    /// A node was asked and has not answered in time: whoever has a choice asks others first for a while.
    pub(crate) fn missed(&mut self, node: NodeId) {
        let random = rand_core::Rng::next_u32(&mut self.rng);
        self.peers.missed(self.now, node, random);
    }

    /// Whether requests may be sent to a node; this node itself is always up.
    pub(crate) fn is_up(&self, node: NodeId) -> bool {
        node == self.node || self.peers.is_up(self.now, node, &self.settings)
    }

    /// The partitions that the document gives this node, with the epochs of their gains, and who shares each.
    pub(crate) fn shares(&self, document: &ClusterDocument) -> Shares {
        let mut shares = Shares { gains: BTreeMap::new(), sharers: BTreeMap::new() };
        let Some(member) = document.members.get(&self.node) else { return shares };
        for partition in document.partitions.iter() {
            let list = |datacenter: usize| {
                let placement = &document.datacenters[datacenter].placement;
                placement.list(partition).iter().take(REPLICAS_MAX)
            };
            let mine = list(usize::from(member.datacenter.0)).find(|owner| owner.node == self.node);
            if let Some(owner) = mine {
                shares.gains.insert(partition, owner.gained);
                let all = (0..document.datacenters.len()).flat_map(list).map(|owner| owner.node);
                shares.sharers.insert(partition, all.filter(|node| *node != self.node).collect());
            }
        }
        shares
    }
}

/// What a watermark leaves of a record.
pub(crate) fn pruned(record: Arc<Record>, watermark: Counter) -> Option<Arc<Record>> {
    match record.prune(watermark) {
        Pruned::Same => Some(record),
        Pruned::Less(less) => Some(Arc::new(less)),
        Pruned::Nothing => None,
    }
}

/// Since when a document records a node with a store; none if it does not.
pub(crate) fn recorded_since(document: &ClusterDocument, node: NodeId, store: StoreId) -> Option<Epoch> {
    document.members.get(&node).filter(|member| member.store == store).map(|member| member.recorded)
}

/// What a document gives a node.
pub(crate) struct Shares {
    /// The partitions, with the epoch of each gain.
    pub(crate) gains: BTreeMap<PartitionId, Epoch>,
    /// Who else holds copies of each.
    pub(crate) sharers: BTreeMap<PartitionId, Vec<NodeId>>,
}

/// The records of a stretch of a partition.
pub(crate) struct Scanned {
    /// In the order of their objects.
    pub(crate) records: Vec<(ObjectKey, Arc<Record>)>,
    /// Where the stretch ends; none if nothing comes after it.
    pub(crate) until: Option<Bytes>,
}

/// A merge was taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Acknowledgement {
    /// The epoch at which this node gained the partition.
    pub(crate) gained: Epoch,
    /// The batch to wait for before it is acknowledged.
    pub(crate) after: Option<Sequence>,
}

/// What is held could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unheld {
    /// It is lost: from now on nothing is held.
    Damaged,
    /// It may be there all the same, and must not be written over.
    Unreadable,
}
