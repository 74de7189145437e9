//! The cluster that a run begins with: its founding document, its keys, its clocks.

use node::storage::ObjectKey;
use ring::{
    ClusterDocument, ClusterId, Datacenter, DatacenterId, Member, NodeId, Partitions, RackId, StoreId,
};

use crate::{history::Key, random::Random, swarm::Swarm};

/// How far a clock is off, either way.
pub(crate) fn draw_skew(random: &mut Random, most_ms: i64) -> i64 {
    let most = usize::try_from(most_ms).expect("not negative");
    i64::try_from(random.between(0, 2 * most)).expect("small") - most_ms
}

/// The document with which the run's cluster is founded.
pub(crate) fn founding_document(swarm: &Swarm, stores: &[StoreId]) -> ClusterDocument {
    let names = ["ams", "fra"];
    let datacenters = names[..swarm.datacenters].iter().map(|name| Datacenter::new(name, ["a"])).collect();
    let member = |(index, &store): (usize, &StoreId)| {
        let number = u32::try_from(index).expect("a few nodes") + 1;
        let datacenter = DatacenterId(u16::try_from(index % swarm.datacenters).expect("two"));
        let address = format!("node-{number}:4700");
        (NodeId(number), Member { store, address, datacenter, rack: RackId(0), weight: 100 })
    };
    let members = stores.iter().enumerate().map(member).collect();
    let partitions = Partitions::new(swarm.partitions).expect("a power of two");
    ClusterDocument::founding(ClusterId(1), partitions, datacenters, members, swarm.keyspaces.clone())
        .expect("the swarm draws valid clusters")
}

/// The run's keys, spread over its keyspaces.
pub(crate) fn keys(swarm: &Swarm, document: &ClusterDocument) -> Vec<Key> {
    let keyspaces: Vec<_> = swarm.keyspaces.iter().collect();
    let key = |index: usize| {
        let (&id, keyspace) = keyspaces[index % keyspaces.len()];
        let object = ObjectKey::new(id, format!("key-{index}").as_bytes());
        Key { partition: object.partition(document.partitions), keyspace: keyspace.clone(), object }
    };
    (0..swarm.keys).map(key).collect()
}
