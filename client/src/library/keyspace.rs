//! A keyspace by its name, and the operations on its keys.

use std::sync::Arc;

use bytes::Bytes;
use ring::{ConflictPolicy, DatacenterId, KeyspaceId, NodeId};
use thiserror::Error;
use tokio::time::Instant;

use super::{
    cluster::Cluster,
    keys::KeyScan,
    overlap::Overlap,
    read::GetBuilder,
    topology::View,
    update::UpdateBuilder,
    write::{DeleteBuilder, PutBuilder},
};
use crate::{KEY_BYTES_MAX, Level, Refusal, ReturnedValue};

/// A keyspace, by its name. Cheap to clone.
///
/// Whether the cluster has it is found out by the first operation: one that is missing is looked for in a freshly
/// fetched document before the operation is refused, so a keyspace that was just created is found.
#[derive(Clone)]
pub struct KeyspaceHandle {
    cluster: Arc<Cluster>,
    name: Arc<str>,
}

/// A name that no keyspace can have.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "`{0}` can be no keyspace's name: 1 to 64 letters, digits, `-`, `_` and `.`, the first a letter or a digit"
)]
pub struct BadKeyspaceName(pub String);

/// A keyspace as the present document has it.
pub(crate) struct Resolved {
    pub(crate) view: Arc<View>,
    pub(crate) id: KeyspaceId,
}

impl KeyspaceHandle {
    pub(crate) fn new(cluster: Arc<Cluster>, name: &str) -> Result<KeyspaceHandle, BadKeyspaceName> {
        if !ring::name_is_valid(name) {
            return Err(BadKeyspaceName(name.to_owned()));
        }
        Ok(KeyspaceHandle { cluster, name: name.into() })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Reads a key.
    pub fn get(&self, key: impl Into<Bytes>) -> GetBuilder {
        GetBuilder::new(self.clone(), key.into())
    }

    /// Stores a value.
    pub fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> PutBuilder {
        PutBuilder::new(self.clone(), key.into(), value.into())
    }

    /// Deletes a key: what the context covers, or, without one, what a read at the same level finds.
    pub fn delete(&self, key: impl Into<Bytes>) -> DeleteBuilder {
        DeleteBuilder::new(self.clone(), key.into())
    }

    /// Reads a key, merges its values by a function, and stores the result, again and again until nobody else wrote
    /// in between. See [`UpdateBuilder`] for what the function has to be.
    pub fn update<M, V>(&self, key: impl Into<Bytes>, merge: M) -> UpdateBuilder<M>
    where
        M: FnMut(&[ReturnedValue]) -> V,
        V: Into<Bytes>,
    {
        UpdateBuilder::new(self.clone(), key.into(), merge)
    }

    /// All keys that have a value, partition by partition.
    #[must_use]
    pub fn keys(&self) -> KeyScan {
        KeyScan::new(self.clone())
    }

    /// Whether reads and writes of these levels, with `n` copies if not as many as the keyspace says, are sure to
    /// meet; none if the present document has no such keyspace. Local levels are taken for the datacenter of the
    /// keyspace's that comes first.
    #[must_use]
    pub fn overlap(&self, n: Option<u8>, read: Level, write: Level) -> Option<Overlap> {
        let view = self.cluster.view();
        let (_, keyspace) = view.document.keyspace_named(&self.name)?;
        let local = keyspace.replication.keys().next().copied().unwrap_or(DatacenterId(0));
        Some(Overlap::of(&view.document, keyspace, n, read, write, local))
    }

    pub(crate) fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// Finds the keyspace in the document; in a fresh one, if the present one has it not.
    pub(crate) async fn resolve(&self, deadline: Instant) -> Result<Resolved, Refusal> {
        if let Some(resolved) = self.find(self.cluster.view()) {
            return Ok(resolved);
        }
        // In a box: every operation would have to be as large as this.
        let fresh = Box::pin(self.cluster.refresh(deadline)).await;
        self.find(fresh).ok_or(Refusal::UnknownKeyspace)
    }

    fn find(&self, view: Arc<View>) -> Option<Resolved> {
        let id = view.document.keyspace_named(&self.name)?.0;
        Some(Resolved { view, id })
    }
}

impl std::fmt::Debug for KeyspaceHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("KeyspaceHandle").field(&self.name).finish()
    }
}

impl Resolved {
    /// Whether the keyspace keeps the last write alone.
    pub(crate) fn is_last_write_wins(&self) -> bool {
        self.view.document.keyspaces[&self.id].conflict == ConflictPolicy::LastWriteWins
    }

    /// Whether R + W > N for a request that was coordinated by `coordinator`.
    pub(crate) fn overlap(&self, n: Option<u8>, read: Level, write: Level, coordinator: NodeId) -> Overlap {
        let document = &self.view.document;
        let local = document.members.get(&coordinator).map_or(DatacenterId(0), |member| member.datacenter);
        Overlap::of(document, &document.keyspaces[&self.id], n, read, write, local)
    }
}

/// Refuses a key that every node would refuse.
pub(crate) fn check_key(key: &Bytes) -> Result<(), Refusal> {
    if key.is_empty() {
        return Err(Refusal::EmptyKey);
    }
    if key.len() > KEY_BYTES_MAX {
        return Err(Refusal::TooLarge { size_bytes: key.len(), limit_bytes: KEY_BYTES_MAX });
    }
    Ok(())
}
