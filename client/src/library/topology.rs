//! The cluster document that this client goes by, and whether there is a newer one.

use std::sync::{Arc, Mutex, RwLock};

use ring::{ClusterDocument, DatacenterId, Epoch, NodeId};
use tokio::sync::Notify;
use tracing::debug;

use super::connection::Listener;

/// A document, and what follows from it for this client.
#[derive(Debug)]
pub(crate) struct View {
    /// The document.
    pub(crate) document: Arc<ClusterDocument>,
    /// The client's datacenter, if one is configured and the document has it.
    local: Option<DatacenterId>,
}

/// The present view.
pub(crate) struct Topology {
    datacenter: Option<String>,
    view: RwLock<Arc<View>>,
}

/// The newest epoch that any node has mentioned.
#[derive(Debug, Default)]
pub(crate) struct Rumours {
    newest: Mutex<Option<(Epoch, NodeId)>>,
    heard: Notify,
}

impl View {
    fn new(document: ClusterDocument, datacenter: Option<&str>) -> View {
        let position = datacenter.and_then(|name| document.datacenters.iter().position(|dc| dc.name == name));
        let local = position.and_then(|position| u16::try_from(position).ok()).map(DatacenterId);
        View { document: Arc::new(document), local }
    }

    /// Whether `node` is in the client's datacenter; so is every node for a client that has none.
    pub(crate) fn is_local(&self, node: NodeId) -> bool {
        let Some(local) = self.local else { return true };
        self.document.members.get(&node).is_some_and(|member| member.datacenter == local)
    }
}

impl Topology {
    /// Begins with a first document.
    pub(crate) fn new(document: ClusterDocument, datacenter: Option<String>) -> Topology {
        let view = RwLock::new(Arc::new(View::new(document, datacenter.as_deref())));
        Topology { datacenter, view }
    }

    /// The present view.
    pub(crate) fn view(&self) -> Arc<View> {
        self.view.read().expect("nothing panics while it holds this").clone()
    }

    /// Takes `document` if it is a newer one of the same cluster.
    pub(crate) fn adopt(&self, document: ClusterDocument) -> Option<Arc<View>> {
        let mut view = self.view.write().expect("nothing panics while it holds this");
        let known = &view.document;
        if document.cluster != known.cluster || document.epoch <= known.epoch {
            return None;
        }
        debug!(epoch = %document.epoch, before = %known.epoch, "a newer cluster document");
        *view = Arc::new(View::new(document, self.datacenter.as_deref()));
        Some(view.clone())
    }
}

impl Rumours {
    /// The newest epoch that was mentioned after `known`, and by whom.
    pub(crate) fn newer_than(&self, known: Epoch) -> Option<(Epoch, NodeId)> {
        (*self.lock()).filter(|(epoch, _)| *epoch > known)
    }

    /// Waits until one is mentioned, or the client ends.
    pub(crate) async fn changed(&self) {
        self.heard.notified().await;
    }

    /// Forgets what cannot be confirmed.
    pub(crate) fn forget(&self) {
        *self.lock() = None;
    }

    /// Wakes whoever waits, without news.
    pub(crate) fn wake(&self) {
        self.heard.notify_one();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(Epoch, NodeId)>> {
        self.newest.lock().expect("nothing panics while it holds this")
    }
}

impl Listener for Rumours {
    fn heard(&self, node: NodeId, epoch: Epoch) {
        let mut newest = self.lock();
        if newest.is_none_or(|(known, _)| epoch > known) {
            *newest = Some((epoch, node));
            self.heard.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ring::{ClusterId, Datacenter, Member, Partitions, RackId, StoreId};

    use super::*;

    fn document(cluster: u64, epoch: u64) -> ClusterDocument {
        let (address, rack) = ("127.0.0.1:7401".to_owned(), RackId(0));
        let member = Member::new(StoreId(1), address, DatacenterId(1), rack, 100);
        let datacenters = ["ams", "fra"].map(|name| Datacenter::new(name, ["a"])).to_vec();
        let members = BTreeMap::from([(NodeId(1), member)]);
        let founded = ClusterDocument::founding(
            ClusterId(cluster),
            Partitions::CLUSTER_MIN,
            datacenters,
            members,
            BTreeMap::new(),
        );
        ClusterDocument { epoch: Epoch(epoch), ..founded.unwrap() }
    }

    #[test]
    fn only_a_newer_document_of_the_same_cluster_is_taken() {
        let topology = Topology::new(document(1, 5), None);
        assert!(topology.adopt(document(1, 5)).is_none());
        assert!(topology.adopt(document(1, 4)).is_none());
        assert!(topology.adopt(document(2, 9)).is_none());
        assert_eq!(topology.adopt(document(1, 6)).unwrap().document.epoch, Epoch(6));
        assert_eq!(topology.view().document.epoch, Epoch(6));
    }

    #[test]
    fn a_client_with_a_datacenter_tells_its_nodes_from_the_others() {
        let local = |name: Option<&str>| Topology::new(document(1, 1), name.map(str::to_owned)).view();
        assert!(local(None).is_local(NodeId(1)));
        assert!(local(Some("fra")).is_local(NodeId(1)));
        assert!(!local(Some("ams")).is_local(NodeId(1)));
    }

    #[test]
    fn the_newest_rumour_is_kept_with_its_source() {
        let rumours = Rumours::default();
        rumours.heard(NodeId(1), Epoch(7));
        rumours.heard(NodeId(2), Epoch(6));
        assert_eq!(rumours.newer_than(Epoch(6)), Some((Epoch(7), NodeId(1))));
        assert_eq!(rumours.newer_than(Epoch(7)), None);
    }
}
