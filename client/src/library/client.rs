//! The client: a handle on a cluster.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use ring::{ClusterDocument, Epoch, KeyspaceId, NodeId, PartitionId};
use tokio::time::Instant;

use super::{
    cluster::{CONTROL_SLICE, Cluster, member},
    config::ClientConfig,
    failure::{ConnectError, ControlFailure},
    keyspace::{BadKeyspaceName, KeyspaceHandle},
};
use crate::{
    Access, TIMEOUT_DEFAULT,
    tls::TlsError,
    wire::{ControlReply, ControlRequest, NewKeyspace, NodeStatus, NodeVitals, ReplicaView},
};

/// A handle on a cluster: routes each request to a replica of its key, and keeps the cluster document current.
///
/// Cheap to clone; all clones share their connections, one to each node that is used. It works on any tokio runtime,
/// and its tasks run on the one on which it was connected. Everything is closed when the last clone is dropped.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use client::{Client, ClientConfig, Level};
///
/// let client = Client::connect(ClientConfig::load("client.toml")?).await?;
/// let carts = client.keyspace("carts")?;
/// carts.put("cart:42", "a book").w(Level::Quorum).send().await?;
/// let found = carts.get("cart:42").send().await?;
/// assert_eq!(found.newest().map(|value| &value[..]), Some(&b"a book"[..]));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Client {
    cluster: Arc<Cluster>,
}

impl Client {
    /// Connects through the first seed that answers: each seed has 250 ms before the next is asked too, and none that
    /// failed is waited for.
    ///
    /// # Errors
    ///
    /// What happened at each seed, or why the configuration cannot be used; see [`ConnectError`].
    pub async fn connect(config: ClientConfig) -> Result<Client, ConnectError> {
        Ok(Client { cluster: Cluster::connect(config).await? })
    }

    /// A keyspace.
    ///
    /// # Errors
    ///
    /// If no keyspace can have that name. Whether the cluster has such a keyspace is found out by the first operation.
    pub fn keyspace(&self, name: &str) -> Result<KeyspaceHandle, BadKeyspaceName> {
        KeyspaceHandle::new(self.cluster.clone(), name)
    }

    /// The keyspace that the configuration names.
    ///
    /// # Errors
    ///
    /// If no keyspace can have that name.
    pub fn default_keyspace(&self) -> Result<KeyspaceHandle, BadKeyspaceName> {
        self.keyspace(&self.cluster.config().keyspace)
    }

    /// The cluster document by which requests are routed now. Each reply says whether there is a newer one, which is
    /// then fetched in the background.
    #[must_use]
    pub fn document(&self) -> Arc<ClusterDocument> {
        self.cluster.view().document.clone()
    }

    /// Fetches the document that the nodes have now, if one of them answers in time.
    pub async fn refresh(&self, timeout: Duration) -> Arc<ClusterDocument> {
        self.cluster.refresh(Instant::now() + timeout).await.document.clone()
    }

    /// Reads the files of the certificates that the configuration names anew, for all connections that are made from now on;
    /// those that exist go on. For a process that outlives its certificate: call it when the files were replaced.
    ///
    /// # Errors
    ///
    /// If what the files have cannot be used, which names the file and what is wrong; then nothing has changed.
    pub fn renew_certificates(&self) -> Result<(), TlsError> {
        self.cluster.renew_certificates()
    }

    /// What the client's certificate allows, as the seed said.
    #[must_use]
    pub fn access(&self) -> Access {
        self.cluster.access()
    }

    /// How a node fares, as it says itself.
    ///
    /// # Errors
    ///
    /// See [`ControlFailure`]; a node that is down is [`ControlFailure::Unreachable`] or [`ControlFailure::Silent`].
    pub async fn status(&self, node: NodeId, timeout: Duration) -> Result<NodeStatus, ControlFailure> {
        match self.ask(node, ControlRequest::Status, timeout).await? {
            ControlReply::Status(status) => Ok(*status),
            _ => Err(ControlFailure::WrongKind { node }),
        }
    }

    /// What a node has done since it began, and what its machine has left.
    ///
    /// # Errors
    ///
    /// As of [`Client::status`].
    pub async fn vitals(&self, node: NodeId, timeout: Duration) -> Result<NodeVitals, ControlFailure> {
        match self.ask(node, ControlRequest::Vitals, timeout).await? {
            ControlReply::Vitals(vitals) => Ok(*vitals),
            _ => Err(ControlFailure::WrongKind { node }),
        }
    }

    /// What a node holds of a key.
    ///
    /// # Errors
    ///
    /// See [`ControlFailure`].
    pub async fn explain(
        &self,
        node: NodeId,
        keyspace: KeyspaceId,
        key: impl Into<Bytes>,
        timeout: Duration,
    ) -> Result<ReplicaView, ControlFailure> {
        let request = ControlRequest::Explain { keyspace, key: key.into() };
        match self.ask(node, request, timeout).await? {
            ControlReply::Explain(view) => Ok(*view),
            _ => Err(ControlFailure::WrongKind { node }),
        }
    }

    /// Creates a keyspace, by agreement of the members. One that exists with the same properties is as good as new, so
    /// asking again is safe.
    ///
    /// # Errors
    ///
    /// See [`ControlFailure`].
    pub async fn create_keyspace(
        &self,
        keyspace: NewKeyspace,
        timeout: Duration,
    ) -> Result<(KeyspaceId, Epoch), ControlFailure> {
        let (node, reply) = self.change(ControlRequest::CreateKeyspace(keyspace), timeout).await?;
        let ControlReply::KeyspaceCreated { keyspace, epoch } = reply else {
            return Err(ControlFailure::WrongKind { node });
        };
        self.cluster.refresh(Instant::now() + TIMEOUT_DEFAULT).await;
        Ok((keyspace, epoch))
    }

    /// Records the present store of a node whose disk was replaced, by agreement of the members. Asking again is safe.
    ///
    /// # Errors
    ///
    /// See [`ControlFailure`].
    pub async fn readmit(&self, node: NodeId, timeout: Duration) -> Result<Epoch, ControlFailure> {
        member(&self.cluster, node)?;
        let (node, reply) = self.change(ControlRequest::Readmit { node }, timeout).await?;
        let ControlReply::Readmitted { epoch } = reply else {
            return Err(ControlFailure::WrongKind { node });
        };
        Ok(epoch)
    }

    /// Has a node compare at once what it shares with its peers, or with those that have copies of a partition, instead of
    /// when it is due, and mend what differs. Returns the peers. [`NodeStatus`] says when that is done: how long ago it was
    /// in sync with each of them.
    ///
    /// # Errors
    ///
    /// See [`ControlFailure`].
    pub async fn repair(
        &self,
        node: NodeId,
        partition: Option<PartitionId>,
        timeout: Duration,
    ) -> Result<Vec<NodeId>, ControlFailure> {
        match self.ask(node, ControlRequest::Repair { partition }, timeout).await? {
            ControlReply::RepairBegun { peers } => Ok(peers),
            _ => Err(ControlFailure::WrongKind { node }),
        }
    }

    /// Closes all connections, and waits a moment so that the nodes hear of it. Without it they find out by
    /// themselves, after some seconds, if the runtime ends at once.
    pub async fn close(self) {
        self.cluster.close().await;
    }

    async fn ask(
        &self,
        node: NodeId,
        request: ControlRequest,
        timeout: Duration,
    ) -> Result<ControlReply, ControlFailure> {
        let node = member(&self.cluster, node)?;
        self.cluster.ask(&node, request, Instant::now() + timeout).await
    }

    /// Asks for a change, which takes its time: the first node gets half of it.
    async fn change(
        &self,
        request: ControlRequest,
        timeout: Duration,
    ) -> Result<(NodeId, ControlReply), ControlFailure> {
        let slice = (timeout / 2).max(CONTROL_SLICE);
        self.cluster.ask_any(request, slice, Instant::now() + timeout).await
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let view = self.cluster.view();
        let (cluster, epoch) = (view.document.cluster, view.document.epoch);
        f.debug_struct("Client").field("cluster", &cluster).field("epoch", &epoch).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{GetBuilder, KeyScan, PutBuilder};

    #[test]
    fn a_client_can_be_shared_and_its_operations_spawned_on_any_runtime() {
        fn is_shared<T: Clone + Send + Sync + 'static>() {}
        fn is_spawned<A, F: Future + Send>(_: impl Fn(A) -> F) {}
        is_shared::<Client>();
        is_shared::<KeyspaceHandle>();
        is_spawned(Client::connect);
        is_spawned(GetBuilder::send);
        is_spawned(PutBuilder::send);
        is_spawned(|mut keys: KeyScan| async move { keys.next().await });
    }
}
