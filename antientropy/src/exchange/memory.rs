//! A replica in memory, for tests and benchmarks: all it holds is in a map, and it shares all partitions with its peer.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    ops::Bound,
    sync::Arc,
};

use bytes::Bytes;
use ring::{KeyspaceId, PartitionId, Partitions, Token};

use super::{Entry, Gathered, Object, Replica, Span, Stretch, TreeId, TreeKind};
use crate::{
    hash_tree::{Element, HashTree},
    version::{CopyCount, Counter, Record},
};

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct MemoryReplica {
    secret: [u8; 32],
    partitions: Partitions,
    objects: BTreeMap<(KeyspaceId, Token, Bytes), Arc<Record>>,
    trees: BTreeMap<TreeId, HashTree>,
    keys_per_tree: u64,
    unbuilt: BTreeSet<PartitionId>,
}

impl MemoryReplica {
    /// One that holds nothing, with trees for so many keys.
    #[must_use]
    pub fn new(secret: [u8; 32], partitions: Partitions, keys_per_tree: u64) -> MemoryReplica {
        let (objects, trees) = (BTreeMap::new(), BTreeMap::new());
        let unbuilt = BTreeSet::new();
        MemoryReplica { secret, partitions, objects, trees, keys_per_tree, unbuilt }
    }

    /// How many objects it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// The record of a key.
    #[must_use]
    pub fn get(&self, keyspace: KeyspaceId, key: &Bytes) -> Option<&Arc<Record>> {
        self.objects.get(&(keyspace, Token::of_key(key), key.clone()))
    }

    /// Everything.
    pub fn iter(&self) -> impl Iterator<Item = (KeyspaceId, &Bytes, &Arc<Record>)> {
        self.objects.iter().map(|((keyspace, _, key), record)| (*keyspace, key, record))
    }

    /// Puts a record in the place of what is there.
    pub fn set(&mut self, keyspace: KeyspaceId, key: Bytes, record: Option<Arc<Record>>) {
        let token = Token::of_key(&key);
        let before = match record.clone() {
            Some(record) => self.objects.insert((keyspace, token, key), record),
            None => self.objects.remove(&(keyspace, token, key)),
        };
        for (record, is_after) in [(before, false), (record, true)] {
            let Some(record) = record else { continue };
            let element = Some(self.weigh(token, &record));
            let tree = self.tree_mut(keyspace, token, record.copies());
            let (before, after) = if is_after { (None, element) } else { (element, None) };
            tree.replace(token, before, after);
        }
    }

    /// The trees of a partition are lost, until they are built again.
    pub fn forget_trees(&mut self, partition: PartitionId) {
        self.unbuilt.insert(partition);
    }

    /// Builds the trees of all partitions that have lost them, for so many keys.
    pub fn build_trees(&mut self, keys_per_tree: u64) {
        self.keys_per_tree = keys_per_tree;
        let unbuilt = std::mem::take(&mut self.unbuilt);
        self.trees.retain(|tree, _| !unbuilt.contains(&tree.partition));
        for ((keyspace, token, _), record) in self.objects.clone() {
            if unbuilt.contains(&self.partitions.of(token)) {
                let element = self.weigh(token, &record);
                self.tree_mut(keyspace, token, record.copies()).replace(token, None, Some(element));
            }
        }
    }

    /// The partitions that it has copies of: all.
    #[must_use]
    pub fn partitions(&self) -> Partitions {
        self.partitions
    }

    fn weigh(&self, token: Token, record: &Record) -> Element {
        Element::new(&self.secret, token, record)
    }

    fn tree_mut(&mut self, keyspace: KeyspaceId, token: Token, copies: CopyCount) -> &mut HashTree {
        let partition = self.partitions.of(token);
        let tree = TreeId { kind: TreeKind { keyspace, copies: copies.most() }, partition };
        let (bits, keys) = (self.partitions.bits(), self.keys_per_tree);
        self.trees.entry(tree).or_insert_with(|| HashTree::new(bits, keys))
    }

    fn within(
        &self,
        keyspace: KeyspaceId,
        span: Span,
    ) -> impl Iterator<Item = (Token, &Bytes, &Arc<Record>)> {
        let from = Bound::Included((keyspace, span.first, Bytes::new()));
        let found = self.objects.range((from, Bound::Unbounded));
        let found = found.map(|((keyspace, token, key), record)| (*keyspace, *token, key, record));
        found
            .take_while(move |(of, token, ..)| *of == keyspace && *token <= span.last)
            .map(|(_, token, key, record)| (token, key, record))
    }
}

impl Replica for MemoryReplica {
    type Error = Infallible;

    fn partition_bits(&self) -> u8 {
        self.partitions.bits()
    }

    fn kinds(&self) -> Vec<TreeKind> {
        let full = self.trees.iter().filter(|(_, tree)| !tree.is_empty());
        let mut kinds: Vec<TreeKind> = full.map(|(tree, _)| tree.kind).collect();
        kinds.dedup();
        kinds
    }

    fn partitions(&self, _: TreeKind) -> Vec<PartitionId> {
        self.partitions.iter().collect()
    }

    fn unbuilt(&self) -> Vec<PartitionId> {
        self.unbuilt.iter().copied().collect()
    }

    fn tree(&self, tree: TreeId) -> Option<&HashTree> {
        self.trees.get(&tree).filter(|_| !self.unbuilt.contains(&tree.partition))
    }

    fn secret(&self) -> &[u8; 32] {
        &self.secret
    }

    fn entries(&mut self, tree: TreeId, span: Span, limit: usize) -> Result<Option<Vec<Entry>>, Infallible> {
        let found = self.within(tree.kind.keyspace, span);
        let found = found.filter(|(_, _, record)| record.copies().includes(tree.kind.copies));
        let found = found.map(|(token, key, record)| Entry::new(&self.secret, token, key.clone(), record));
        let entries: Vec<Entry> = found.take(limit.saturating_add(1)).collect();
        Ok((entries.len() <= limit).then_some(entries))
    }

    fn objects(
        &mut self,
        keyspace: KeyspaceId,
        copies: Option<CopyCount>,
        span: Span,
        bytes_max: usize,
    ) -> Result<Stretch, Infallible> {
        let mut gathered = Gathered::new(bytes_max);
        let found = self.within(keyspace, span);
        for (token, key, record) in
            found.filter(|(.., record)| copies.is_none_or(|of| record.copies().includes(of)))
        {
            let object = Object { key: key.clone(), record: Some(Arc::clone(record)), under: Counter::ZERO };
            if !gathered.push(token, object) {
                break;
            }
        }
        Ok(gathered.into_stretch())
    }

    fn held(&mut self, keyspace: KeyspaceId, key: &Bytes) -> Result<Object, Infallible> {
        Ok(Object { key: key.clone(), record: self.get(keyspace, key).cloned(), under: Counter::ZERO })
    }

    fn merge(&mut self, keyspace: KeyspaceId, object: &Object) -> Result<bool, Infallible> {
        let (held, record) = match (self.get(keyspace, &object.key), &object.record) {
            (held, None) => return Ok(held.is_none()),
            (None, Some(record)) => {
                self.set(keyspace, object.key.clone(), Some(Arc::clone(record)));
                return Ok(true);
            }
            (Some(held), Some(record)) => (held, record),
        };
        // Nobody who means it sends one of the other policy.
        if held.policy() != record.policy() {
            return Ok(true);
        }
        let mut joined = Record::clone(held);
        joined.merge(record);
        let (is_theirs, is_ours) = (joined == **record, joined == **held);
        if !is_ours {
            self.set(keyspace, object.key.clone(), Some(Arc::new(joined)));
        }
        Ok(is_theirs)
    }
}
