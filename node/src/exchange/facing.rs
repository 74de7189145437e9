//! What this node holds, as an exchange with a peer sees it: the records and trees that both are to keep.

use std::{collections::BTreeSet, sync::Arc};

use antientropy::{
    exchange::{Entry, Gathered, Object, Replica, Span, Stretch, TreeId, TreeKind},
    hash_tree::HashTree,
    version::{CopyCount, Counter, Dot, Record, UnixMillis},
};
use bytes::Bytes;
use ring::{ClusterDocument, Durability, KeyspaceId, NodeId, PartitionId, Token};

use crate::{
    local::Local,
    message::{MergePath, MergeRefusal},
    placement::Owners,
    planted::PlantedBug,
    storage::{ObjectKey, ReadError, Store},
};

/// See the module's documentation.
pub(super) struct Facing<'a, S> {
    local: &'a mut Local<S>,
    document: Arc<ClusterDocument>,
    peer: NodeId,
    /// The partitions of which both have copies, in ascending order.
    shared: &'a [PartitionId],
    /// Whether the peer leads.
    follows: bool,
}

/// Why an exchange cannot go on.
#[derive(Debug)]
pub(super) enum FacingError {
    /// Something cannot be read.
    Read,
    /// A record cannot be taken.
    Refused,
}

impl From<ReadError> for FacingError {
    fn from(_: ReadError) -> FacingError {
        FacingError::Read
    }
}

impl<'a, S: Store> Facing<'a, S> {
    /// For an exchange that this node leads; none without a document.
    pub(super) fn leading(
        local: &'a mut Local<S>,
        peer: NodeId,
        shared: &'a [PartitionId],
    ) -> Option<Facing<'a, S>> {
        Facing::new(local, peer, shared, false)
    }

    /// For one that the peer leads; none without a document.
    pub(super) fn following(
        local: &'a mut Local<S>,
        peer: NodeId,
        shared: &'a [PartitionId],
    ) -> Option<Facing<'a, S>> {
        Facing::new(local, peer, shared, true)
    }

    fn new(
        local: &'a mut Local<S>,
        peer: NodeId,
        shared: &'a [PartitionId],
        follows: bool,
    ) -> Option<Facing<'a, S>> {
        let document = local.document.clone()?;
        Some(Facing { local, document, peer, shared, follows })
    }

    /// Whether both are to keep a record of so many copies.
    fn both_keep(&self, keyspace: KeyspaceId, partition: PartitionId, copies: CopyCount) -> bool {
        let keepers = Owners::keepers(&self.document, keyspace, partition, copies);
        keepers.is_some_and(|keepers| keepers.contains(self.local.node) && keepers.contains(self.peer))
    }

    /// Whether both have kept a record since its first write, what is held here of it and what comes.
    fn are_first(&mut self, name: &ObjectKey, record: &Record) -> bool {
        let partition = name.partition(self.document.partitions);
        let held = self.local.held(name, partition).ok().flatten();
        let copies = held.map_or(record.copies(), |held| held.copies().join(record.copies()));
        let first = Owners::first_keepers(&self.document, name.keyspace(), partition, copies);
        first.is_some_and(|first| first.contains(self.local.node) && first.contains(self.peer))
    }

    fn is_peer_filling(&self, partition: PartitionId) -> bool {
        self.local.watermarks.filling(partition, self.peer) != 0
    }

    /// Whether a planted bug has a record passed over.
    fn is_passed_over(&mut self, name: &ObjectKey, partition: PartitionId, record: &Record) -> bool {
        match self.local.planted {
            Some(PlantedBug::ExchangeOnlyPulls) => self.follows,
            Some(PlantedBug::ContextOnlySkipped) => {
                let dots = |record: &Record| {
                    let live = record.live(UnixMillis(0)).into_iter();
                    live.map(|(dot, _)| dot).collect::<BTreeSet<Dot>>()
                };
                let held = self.local.held(name, partition).ok().flatten();
                held.is_some_and(|held| dots(&held) == dots(record))
            }
            Some(_) | None => false,
        }
    }

    /// The objects in a span that both are to keep, in order, and under what each is read, until `visit` has enough of
    /// them. The first stretch has so many.
    fn each(
        &mut self,
        keyspace: KeyspaceId,
        span: Span,
        mut limit: usize,
        mut visit: impl FnMut(ObjectKey, Arc<Record>, Counter) -> bool,
    ) -> Result<(), ReadError> {
        let partitions = self.document.partitions;
        let (first, last) = (partitions.of(span.first), partitions.of(span.last));
        let from = self.shared.partition_point(|partition| *partition < first);
        for partition in self.shared[from..].iter().take_while(|partition| **partition <= last) {
            let tokens = partitions.range(*partition);
            let first = span.first.max(Token(*tokens.start()));
            let last = span.last.min(Token(*tokens.end()));
            let (mut after, end) = ObjectKey::span(keyspace, first, last);
            loop {
                let scanned = self.local.scan(*partition, &after, &end, limit)?;
                limit = self.local.settings.scan_stretch_keys;
                for (object, record) in scanned.records {
                    if !self.both_keep(keyspace, *partition, record.copies()) {
                        continue;
                    }
                    let under = self.local.under_kept(keyspace, *partition, record.copies());
                    if !visit(object, record, under) {
                        return Ok(());
                    }
                }
                match scanned.until {
                    Some(until) => after = until,
                    None => break,
                }
            }
        }
        Ok(())
    }
}

impl<S: Store> Replica for Facing<'_, S> {
    type Error = FacingError;

    fn partition_bits(&self) -> u8 {
        self.document.partitions.bits()
    }

    fn kinds(&self) -> Vec<TreeKind> {
        let mut kinds = BTreeSet::new();
        for partition in self.shared {
            let trees = self.local.replica.trees.of(*partition).into_iter().flatten();
            for (kind, _) in trees.filter(|(_, tree)| !tree.is_empty()) {
                if !kinds.contains(kind) && self.both_keep(kind.keyspace, *partition, kind.copies) {
                    kinds.insert(*kind);
                }
            }
        }
        kinds.into_iter().collect()
    }

    fn partitions(&self, kind: TreeKind) -> Vec<PartitionId> {
        let shared = self.shared.iter().copied();
        shared.filter(|partition| self.both_keep(kind.keyspace, *partition, kind.copies)).collect()
    }

    fn unbuilt(&self) -> Vec<PartitionId> {
        let shared = self.shared.iter().copied();
        let is_built = |partition: &PartitionId| self.local.replica.trees.of(*partition).is_some();
        // What one side has pruned and the other is about to would differ.
        shared.filter(|partition| !is_built(partition) || !self.local.is_pruned(*partition)).collect()
    }

    fn tree(&self, tree: TreeId) -> Option<&HashTree> {
        self.local.replica.trees.of(tree.partition)?.get(&tree.kind)
    }

    fn secret(&self) -> &[u8; 32] {
        self.local.replica.trees.key()
    }

    fn entries(&mut self, tree: TreeId, span: Span, limit: usize) -> Result<Option<Vec<Entry>>, FacingError> {
        let secret = *self.secret();
        let (mut entries, mut is_over) = (Vec::new(), false);
        let stretch = self.local.settings.scan_stretch_keys;
        self.each(tree.kind.keyspace, span, stretch, |object, record, _| {
            if record.copies().includes(tree.kind.copies) {
                is_over = entries.len() >= limit;
                entries.push(Entry::new(&secret, object.token(), object.key(), &record));
            }
            !is_over
        })?;
        Ok((!is_over).then_some(entries))
    }

    fn objects(
        &mut self,
        keyspace: KeyspaceId,
        copies: Option<CopyCount>,
        span: Span,
        bytes_max: usize,
    ) -> Result<Stretch, FacingError> {
        let mut gathered = Gathered::new(bytes_max);
        // Most spans are a single position's.
        self.each(keyspace, span, 2, |name, record, under| {
            let is_asked_for = copies.is_none_or(|copies| record.copies().includes(copies));
            let object = || Object { key: name.key(), record: Some(record), under };
            !is_asked_for || gathered.push(name.token(), object())
        })?;
        Ok(gathered.into_stretch())
    }

    fn held(&mut self, keyspace: KeyspaceId, key: &Bytes) -> Result<Object, FacingError> {
        let name = ObjectKey::new(keyspace, key);
        let partition = name.partition(self.document.partitions);
        let held = self.local.held(&name, partition).map_err(|_| FacingError::Read)?;
        let Some(record) = held else {
            return Ok(Object { key: name.key(), record: None, under: self.local.under(partition) });
        };
        if self.both_keep(keyspace, partition, record.copies()) {
            let under = self.local.under_kept(keyspace, partition, record.copies());
            return Ok(Object { key: name.key(), record: Some(record), under });
        }
        // It does hold something, which the peer does not keep: that it does not say proves nothing.
        Ok(Object { key: name.key(), record: None, under: Counter::ZERO })
    }

    fn merge(&mut self, keyspace: KeyspaceId, object: &Object) -> Result<bool, FacingError> {
        if object.key.is_empty() {
            return Err(FacingError::Refused);
        }
        let name = ObjectKey::new(keyspace, &object.key);
        let partition = name.partition(self.document.partitions);
        if let Some(record) = &object.record
            && self.is_passed_over(&name, partition, record)
        {
            return Ok(true);
        }
        let Some(record) = &object.record else {
            // What the peer does not keep it may well not hold.
            let held = self.local.held(&name, partition).map_err(|_| FacingError::Read)?;
            if held.is_some_and(|held| self.both_keep(keyspace, partition, held.copies())) {
                self.local.hear_nothing(&name, (self.peer, object.under)).map_err(|_| FacingError::Read)?;
            }
            let held = self.local.held(&name, partition).map_err(|_| FacingError::Read)?;
            return Ok(held.is_none());
        };
        if !self.both_keep(keyspace, partition, record.copies()) {
            return Err(FacingError::Refused);
        }
        let is_filling = !self.local.copies.is_whole(partition);
        let path = if is_filling { MergePath::Movement } else { MergePath::AntiEntropy };
        let is_behind = |refusal| matches!(refusal, MergeRefusal::Behind { .. });
        let sender = (self.peer, object.under);
        match self.local.merge(&name, record, sender, Durability::Disk, path) {
            Ok(_) => {}
            // One of them has just learned, or is about to learn, what is dead. (Of two whole copies one has gone on to
            // another watermark meanwhile.)
            Err(refusal)
                if is_behind(refusal)
                    && (is_filling || self.is_peer_filling(partition) || !self.are_first(&name, record)) =>
            {
                return Ok(false);
            }
            Err(_) => return Err(FacingError::Refused),
        }
        match self.local.held(&name, partition) {
            Ok(held) => Ok(held.is_some_and(|held| held.digest() == record.digest())),
            Err(_) => Err(FacingError::Read),
        }
    }
}
