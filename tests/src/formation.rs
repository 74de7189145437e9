//! The cluster that a run begins with: its founding document, its keys, its clocks.

use client::wire::NewKeyspace;
use node::{Formation, Founder, storage::ObjectKey};
use ring::{
    ClusterDocument, ClusterId, Datacenter, DatacenterId, Keyspace, KeyspaceId, Member, NodeId, Partitions,
    RackId, StoreId,
};

use crate::{history::Key, random::Random, swarm::Swarm};

/// How far a clock is off, either way.
pub(crate) fn draw_skew(random: &mut Random, most_ms: i64) -> i64 {
    let most = usize::try_from(most_ms).expect("not negative");
    i64::try_from(random.between(0, 2 * most)).expect("small") - most_ms
}

/// The names of the datacenters.
const DATACENTERS: [&str; 2] = ["ams", "fra"];

/// What the run's founders are configured with: what makes the founding document, but for its cluster and stores.
pub(crate) fn formation(swarm: &Swarm) -> Formation {
    let document = founding_document(swarm, &(1..).map(StoreId).take(swarm.nodes).collect::<Vec<_>>());
    let founder = |member: &Member| Founder {
        address: member.address.clone(),
        datacenter: member.datacenter,
        rack: member.rack,
        weight: member.weight,
    };
    let racks = |datacenter: &Datacenter| (datacenter.name.clone(), datacenter.racks.clone());
    Formation {
        founders: document.members.iter().map(|(node, member)| (*node, founder(member))).collect(),
        datacenters: document.datacenters.iter().map(racks).collect(),
        partitions: document.partitions,
        keyspaces: swarm.keyspaces.values().map(new_keyspace).collect(),
    }
}

/// What has to be asked for to get a keyspace.
pub(crate) fn new_keyspace(keyspace: &Keyspace) -> NewKeyspace {
    let Keyspace { name, replication, conflict, durability } = keyspace;
    let named = |(datacenter, copies): (&DatacenterId, &u8)| {
        (DATACENTERS[usize::from(datacenter.0)].to_owned(), *copies)
    };
    let (name, replication) = (name.clone(), replication.iter().map(named).collect());
    NewKeyspace { name, replication, conflict: *conflict, durability: *durability }
}

/// The document with which the run's cluster is founded.
pub(crate) fn founding_document(swarm: &Swarm, stores: &[StoreId]) -> ClusterDocument {
    let datacenters =
        DATACENTERS[..swarm.datacenters].iter().map(|name| Datacenter::new(name, ["a"])).collect();
    let member = |(index, &store): (usize, &StoreId)| {
        let number = u32::try_from(index).expect("a few nodes") + 1;
        let datacenter = DatacenterId(u16::try_from(index % swarm.datacenters).expect("two"));
        let address = format!("node-{number}:4700");
        (NodeId(number), Member::new(store, address, datacenter, RackId(0), 100))
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
        key_of(id, keyspace, &format!("key-{index}"), document.partitions)
    };
    (0..swarm.keys).map(key).collect()
}

/// A key of a keyspace.
pub(crate) fn key_of(id: KeyspaceId, keyspace: &Keyspace, name: &str, partitions: Partitions) -> Key {
    let object = ObjectKey::new(id, name.as_bytes());
    Key { partition: object.partition(partitions), keyspace: keyspace.clone(), object }
}
