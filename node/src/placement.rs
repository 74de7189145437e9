//! Who holds the copies that a request asks for.

use antientropy::version::CopyCount;
use client::Copies;
use ring::{ClusterDocument, DatacenterId, Epoch, KeyspaceId, NodeId, PartitionId, REPLICAS_MAX};
use smallvec::SmallVec;

/// The replicas of one request, in the order of datacenters and preference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owners {
    owners: SmallVec<[OwnerAt; 4]>,
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OwnerAt {
    /// Where.
    pub(crate) datacenter: DatacenterId,
    /// Who.
    pub(crate) node: NodeId,
    /// Since when.
    pub(crate) gained: Epoch,
}

impl Owners {
    /// The first n of the partition's preference list in each of the keyspace's datacenters, where n is the
    /// request's own or the keyspace's. None if there is no such keyspace.
    pub(crate) fn of(
        document: &ClusterDocument,
        keyspace: KeyspaceId,
        partition: PartitionId,
        n: Option<u8>,
    ) -> Option<Owners> {
        Owners::counted(document, keyspace, partition, |own| n.unwrap_or(own))
    }

    /// Those that keep a copy of an object that records this count.
    pub(crate) fn keepers(
        document: &ClusterDocument,
        keyspace: KeyspaceId,
        partition: PartitionId,
        copies: CopyCount,
    ) -> Option<Owners> {
        Owners::counted(document, keyspace, partition, |own| copies.in_datacenter(own))
    }

    /// Those that have kept an object that records this count since its first write.
    pub(crate) fn first_keepers(
        document: &ClusterDocument,
        keyspace: KeyspaceId,
        partition: PartitionId,
        copies: CopyCount,
    ) -> Option<Owners> {
        Owners::counted(document, keyspace, partition, |own| copies.fewest_in_datacenter(own))
    }

    /// Those that keep a copy, for every count that an object may record.
    pub(crate) fn of_every_count(
        document: &ClusterDocument,
        keyspace: KeyspaceId,
        partition: PartitionId,
    ) -> impl Iterator<Item = Owners> {
        let most = u8::try_from(REPLICAS_MAX).unwrap_or(u8::MAX);
        let counts = std::iter::once(CopyCount::DEFAULT).chain((1..=most).map(CopyCount::explicit));
        counts.filter_map(move |copies| Owners::keepers(document, keyspace, partition, copies))
    }

    /// The first of the preference list in each of the keyspace's datacenters, as many as `count` makes of the keyspace's own number.
    fn counted(
        document: &ClusterDocument,
        keyspace: KeyspaceId,
        partition: PartitionId,
        count: impl Fn(u8) -> u8,
    ) -> Option<Owners> {
        let mut owners = SmallVec::new();
        for (&datacenter, &own) in &document.keyspaces.get(&keyspace)?.replication {
            let list = document.preference_list(datacenter, partition);
            let first = list.iter().take(usize::from(count(own)).min(REPLICAS_MAX));
            owners.extend(first.map(|owner| OwnerAt { datacenter, node: owner.node, gained: owner.gained }));
        }
        Some(Owners { owners })
    }

    /// How many there are in each datacenter.
    pub(crate) fn copies(&self) -> Copies {
        let mut counts: SmallVec<[(DatacenterId, u8); 4]> = SmallVec::new();
        for owner in &self.owners {
            match counts.last_mut() {
                Some((datacenter, count)) if *datacenter == owner.datacenter => *count += 1,
                Some(_) | None => counts.push((owner.datacenter, 1)),
            }
        }
        Copies::new(counts)
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &OwnerAt> {
        self.owners.iter()
    }

    /// Their names.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.owners.iter().map(|owner| owner.node)
    }

    /// Whether `node` is one of them.
    pub(crate) fn contains(&self, node: NodeId) -> bool {
        self.nodes().any(|owner| owner == node)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.owners.len()
    }
}
