//! What the founders' configuration says: the cluster as it begins.
//!
//! Every founder is configured with all of them. What they are configured with makes the first document, but for the
//! cluster's id and the stores that the founders happen to have; how they agree on these is the agreement's business.

use std::collections::BTreeMap;

use client::wire::NewKeyspace;
use ring::{
    ClusterDocument, ClusterId, Datacenter, DatacenterId, Keyspace, KeyspaceId, Member, NodeId, Partitions,
    RackId, StoreId, VoterId,
};

/// Copies of a keyspace in each datacenter if nobody says otherwise: a majority survives the loss of one.
const COPIES_DEFAULT: usize = 3;

/// The cluster as its founders are configured to form it. All of them must be configured alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Formation {
    /// The founders: the members of the first document.
    pub founders: BTreeMap<NodeId, Founder>,
    /// The datacenters, in the order of their ids: their names and the names of their racks.
    pub datacenters: Vec<(String, Vec<String>)>,
    /// How the circle is cut, for good.
    pub partitions: Partitions,
    /// The first keyspaces.
    pub keyspaces: Vec<NewKeyspace>,
}

/// One founder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Founder {
    /// Where it listens, as `host:port`.
    pub address: String,
    /// Its datacenter.
    pub datacenter: DatacenterId,
    /// Its rack there.
    pub rack: RackId,
    /// Its share of the copies in its datacenter, relative to the others'.
    pub weight: u32,
}

impl Formation {
    /// Everything that is wrong with the configuration; nothing if a cluster can be formed by it.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        self.stand_in().err().unwrap_or_default()
    }

    /// Who proposes: the founder with the lowest id.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        self.founders.keys().next().copied()
    }

    /// What founders compare to know that they are configured alike; none if the configuration is faulty.
    pub(crate) fn digest(&self) -> Option<[u8; 32]> {
        self.stand_in().ok().map(|document| document.digest())
    }

    /// The document that these founders would form, with stores that stand in for theirs.
    fn stand_in(&self) -> Result<ClusterDocument, Vec<String>> {
        self.document(ClusterId(0), |node| {
            let store = StoreId(u64::from(node.0));
            Some((store, VoterId::first_of(store)))
        })
    }

    /// Whether the configuration makes this document, whatever its cluster and its stores.
    pub(crate) fn makes(&self, document: &ClusterDocument) -> bool {
        let stores = |node| document.members.get(&node).map(|member| (member.store, member.voter));
        self.document(document.cluster, stores).is_ok_and(|made| made == *document)
    }

    /// The first document, for a cluster and the founders' stores.
    ///
    /// # Errors
    ///
    /// All faults at once.
    pub(crate) fn document(
        &self,
        cluster: ClusterId,
        stores: impl Fn(NodeId) -> Option<(StoreId, VoterId)>,
    ) -> Result<ClusterDocument, Vec<String>> {
        let mut faults = Vec::new();
        if self.founders.is_empty() {
            faults.push("no founders are named".to_owned());
        }
        let datacenters: Vec<Datacenter> = self
            .datacenters
            .iter()
            .map(|(name, racks)| Datacenter::new(name, racks.iter().map(String::as_str)))
            .collect();
        let mut members = BTreeMap::new();
        for (node, founder) in &self.founders {
            let Founder { address, datacenter, rack, weight } = founder;
            let Some((store, voter)) = stores(*node) else {
                faults.push(format!("the store of {node} is not known"));
                continue;
            };
            let member = Member::new(store, address.clone(), *datacenter, *rack, *weight);
            members.insert(*node, Member { voter, ..member });
        }
        let mut keyspaces = BTreeMap::new();
        for (new, number) in self.keyspaces.iter().zip(1..) {
            match keyspace_of(new, &datacenters, &members) {
                Ok(keyspace) => drop(keyspaces.insert(KeyspaceId(number), keyspace)),
                Err(found) => faults.extend(found),
            }
        }
        match ClusterDocument::founding(cluster, self.partitions, datacenters, members, keyspaces) {
            Ok(document) => {
                faults.extend(document.validate().err().unwrap_or_default().iter().map(ToString::to_string));
                if faults.is_empty() { Ok(document) } else { Err(faults) }
            }
            Err(found) => {
                faults.extend(found.iter().map(ToString::to_string));
                Err(faults)
            }
        }
    }
}

/// The keyspace that was asked for, among these datacenters and members. Counts are not checked here: the document
/// that has the keyspace is.
///
/// # Errors
///
/// Datacenters that do not exist, all at once.
pub(crate) fn keyspace_of(
    new: &NewKeyspace,
    datacenters: &[Datacenter],
    members: &BTreeMap<NodeId, Member>,
) -> Result<Keyspace, Vec<String>> {
    let (mut replication, mut faults) = (BTreeMap::new(), Vec::new());
    if new.replication.is_empty() {
        for (datacenter, _) in (0..=u16::MAX).map(DatacenterId).zip(datacenters) {
            let nodes = members.values().filter(|member| member.datacenter == datacenter).count();
            let copies = u8::try_from(nodes.min(COPIES_DEFAULT)).expect("at most three");
            if copies > 0 {
                replication.insert(datacenter, copies);
            }
        }
    }
    for (name, copies) in &new.replication {
        let named = (0..=u16::MAX).map(DatacenterId).zip(datacenters).find(|(_, found)| found.name == *name);
        match named {
            Some((datacenter, _)) => drop(replication.insert(datacenter, *copies)),
            None => faults.push(format!("keyspace {:?}: there is no datacenter {name:?}", new.name)),
        }
    }
    let NewKeyspace { name, conflict, durability, .. } = new;
    let (name, conflict, durability) = (name.clone(), *conflict, *durability);
    if faults.is_empty() { Ok(Keyspace { name, replication, conflict, durability }) } else { Err(faults) }
}

#[cfg(test)]
mod tests {
    use ring::{ConflictPolicy, Durability};

    use super::*;

    fn keyspace(name: &str, replication: &[(&str, u8)]) -> NewKeyspace {
        let replication = replication.iter().map(|(name, copies)| ((*name).to_owned(), *copies)).collect();
        let (conflict, durability) = (ConflictPolicy::Siblings, Durability::Disk);
        NewKeyspace { name: name.to_owned(), replication, conflict, durability }
    }

    fn formation() -> Formation {
        let founder = |node: u32, datacenter| {
            let address = format!("node-{node}:7400");
            (NodeId(node), Founder { address, datacenter, rack: RackId(0), weight: 100 })
        };
        let (ams, fra) = (DatacenterId(0), DatacenterId(1));
        let datacenter = |name: &str| (name.to_owned(), vec!["a".to_owned()]);
        Formation {
            founders: (1..=4).map(|node| founder(node, ams)).chain([founder(9, fra)]).collect(),
            datacenters: vec![datacenter("ams"), datacenter("fra")],
            partitions: Partitions::CLUSTER_MIN,
            keyspaces: vec![keyspace("carts", &[]), keyspace("stock", &[("fra", 1)])],
        }
    }

    fn stores(node: NodeId) -> Option<(StoreId, VoterId)> {
        Some((StoreId(u64::from(node.0) + 100), VoterId(u64::from(node.0) + 100)))
    }

    #[test]
    fn a_keyspace_has_three_copies_or_as_many_as_there_are_nodes() {
        let document = formation().document(ClusterId(5), stores).unwrap();
        let carts = &document.keyspaces[&KeyspaceId(1)];
        assert_eq!(carts.replication, BTreeMap::from([(DatacenterId(0), 3), (DatacenterId(1), 1)]));
        let stock = &document.keyspaces[&KeyspaceId(2)];
        assert_eq!(stock.replication, BTreeMap::from([(DatacenterId(1), 1)]));
    }

    #[test]
    fn a_document_is_recognised_whatever_its_stores() {
        let formation = formation();
        let document = formation.document(ClusterId(5), stores).unwrap();
        assert!(formation.makes(&document));
        let mut other = formation.clone();
        other.founders.get_mut(&NodeId(2)).unwrap().weight = 200;
        assert!(!other.makes(&document));
        assert_ne!(other.digest(), formation.digest());
        assert!(!formation.makes(&document.successor()));
    }

    #[test]
    fn all_faults_are_reported_at_once() {
        assert_eq!(formation().faults(), Vec::<String>::new());
        let mut faulty = formation();
        faulty.founders.get_mut(&NodeId(2)).unwrap().rack = RackId(7);
        faulty.keyspaces.push(keyspace("x", &[("nowhere", 3), ("elsewhere", 2)]));
        faulty.keyspaces.push(keyspace("y", &[("ams", 9)]));
        assert_eq!(
            faulty.faults(),
            [
                "keyspace \"x\": there is no datacenter \"elsewhere\"",
                "keyspace \"x\": there is no datacenter \"nowhere\"",
                "node-2: there is no rack-7 in datacenter-0",
                "keyspace-4: 9 copies in datacenter-0: must be from 1 to 7",
            ]
        );
        assert_eq!(faulty.digest(), None);
    }
}
