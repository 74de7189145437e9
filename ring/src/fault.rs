//! What can be wrong with a cluster document.
//!
//! A document is agreed on once and then believed by every node, so it is checked before it is proposed and again by
//! whoever receives it, and all faults are reported at once, for people to mend in one go.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use crate::{
    ClusterDocument, Datacenter, DatacenterId, KeyspaceId, LIST_MAX, NodeId, Owner, PartitionId,
    REPLICAS_MAX, RackId, StoreId, name_is_valid,
};

/// One thing that is wrong with a cluster document.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DocumentFault {
    /// More datacenters than a [`DatacenterId`] can name.
    #[error("{0} datacenters: at most 65536 can be named")]
    TooManyDatacenters(usize),
    /// A name that [`name_is_valid`] refuses, of a datacenter.
    #[error("{0}: {1:?} is not a valid name")]
    DatacenterName(DatacenterId, String),
    /// Two datacenters have one name; the later one is given.
    #[error("{0}: another datacenter is called {1:?} too")]
    DatacenterNameTaken(DatacenterId, String),
    /// A name that [`name_is_valid`] refuses, of a rack.
    #[error("{0}: {1:?} is not a valid name for a rack")]
    RackName(DatacenterId, String),
    /// Two racks of one datacenter have one name.
    #[error("{0}: two racks are called {1:?}")]
    RackNameTaken(DatacenterId, String),
    /// A member's datacenter is not in the document.
    #[error("{0}: there is no {1}")]
    NoSuchDatacenter(NodeId, DatacenterId),
    /// A member's rack is not in its datacenter.
    #[error("{0}: there is no {2} in {1}")]
    NoSuchRack(NodeId, DatacenterId, RackId),
    /// A member's weight is zero. A node that should hold nothing is removed instead.
    #[error("{0}: a weight must be positive")]
    ZeroWeight(NodeId),
    /// Two members have one store: a copied disk. The later one is given.
    #[error("{0}: another member has {1} too")]
    StoreTaken(NodeId, StoreId),
    /// A member's store is said to have been recorded at epoch 0 or after the document's own.
    #[error("{0}: its store cannot have been recorded at that epoch")]
    MemberEpoch(NodeId),
    /// A name that [`name_is_valid`] refuses, of a keyspace.
    #[error("{0}: {1:?} is not a valid name")]
    KeyspaceName(KeyspaceId, String),
    /// Two keyspaces have one name; the later one is given.
    #[error("{0}: another keyspace is called {1:?} too")]
    KeyspaceNameTaken(KeyspaceId, String),
    /// A keyspace has copies nowhere.
    #[error("{0}: it is replicated to no datacenter")]
    NoReplication(KeyspaceId),
    /// A keyspace has copies in a datacenter that is not in the document.
    #[error("{0}: it is replicated to {1}, which does not exist")]
    ReplicationNowhere(KeyspaceId, DatacenterId),
    /// A keyspace's count of copies is not from 1 to [`REPLICAS_MAX`].
    #[error("{0}: {2} copies in {1}: must be from 1 to {max}", max = REPLICAS_MAX)]
    ReplicationCount(KeyspaceId, DatacenterId, u8),
    /// A datacenter does not have one preference list for each partition.
    #[error("{datacenter}: {lists} preference lists for {partitions} partitions")]
    ListCount {
        /// The datacenter.
        datacenter: DatacenterId,
        /// The preference lists that it has.
        lists: usize,
        /// The partitions that there are.
        partitions: usize,
    },
    /// The preference lists of a datacenter do not have the length that its members call for: one entry for each of
    /// them, at most [`LIST_MAX`].
    #[error("{datacenter}: preference lists of {width} entries, not {expected}")]
    ListWidth {
        /// The datacenter.
        datacenter: DatacenterId,
        /// The length that the lists have.
        width: usize,
        /// The length that they should have.
        expected: usize,
    },
    /// A preference list names a node that is no member of the list's datacenter.
    #[error("{1} in {0}: {2} is not a member there")]
    OwnerNotMember(DatacenterId, PartitionId, NodeId),
    /// A preference list names a node twice.
    #[error("{1} in {0}: {2} stands on the list twice")]
    OwnerTwice(DatacenterId, PartitionId, NodeId),
    /// An owner is said to have gained a partition at epoch 0 or after the document's own.
    #[error("{1} in {0}: {2} cannot have gained it at that epoch")]
    OwnerEpoch(DatacenterId, PartitionId, NodeId),
}

/// The faults of everything but the preference lists.
pub(crate) fn faults_of_membership(document: &ClusterDocument) -> Vec<DocumentFault> {
    let mut faults = Vec::new();
    if document.datacenters.len() > usize::from(u16::MAX) + 1 {
        faults.push(DocumentFault::TooManyDatacenters(document.datacenters.len()));
    }
    faults_of_datacenters(document, &mut faults);
    faults_of_members(document, &mut faults);
    faults_of_keyspaces(document, &mut faults);
    faults
}

/// The faults of the preference lists.
pub(crate) fn faults_of_placement(document: &ClusterDocument) -> Vec<DocumentFault> {
    let mut faults = Vec::new();
    let mut members: BTreeMap<DatacenterId, BTreeSet<NodeId>> = BTreeMap::new();
    for (node, member) in &document.members {
        members.entry(member.datacenter).or_default().insert(*node);
    }
    let none = BTreeSet::new();
    for (id, datacenter) in datacenters(document) {
        let local = members.get(&id).unwrap_or(&none);
        faults_of_lists(document, id, datacenter, local, &mut faults);
    }
    faults
}

/// The datacenters with their ids, as far as ids go.
fn datacenters(document: &ClusterDocument) -> impl Iterator<Item = (DatacenterId, &Datacenter)> {
    (0..=u16::MAX).map(DatacenterId).zip(&document.datacenters)
}

fn faults_of_datacenters(document: &ClusterDocument, faults: &mut Vec<DocumentFault>) {
    let mut names = BTreeSet::new();
    for (id, datacenter) in datacenters(document) {
        if !name_is_valid(&datacenter.name) {
            faults.push(DocumentFault::DatacenterName(id, datacenter.name.clone()));
        }
        if !names.insert(&datacenter.name) {
            faults.push(DocumentFault::DatacenterNameTaken(id, datacenter.name.clone()));
        }
        let mut racks = BTreeSet::new();
        for rack in &datacenter.racks {
            if !name_is_valid(rack) {
                faults.push(DocumentFault::RackName(id, rack.clone()));
            }
            if !racks.insert(rack) {
                faults.push(DocumentFault::RackNameTaken(id, rack.clone()));
            }
        }
    }
}

fn faults_of_members(document: &ClusterDocument, faults: &mut Vec<DocumentFault>) {
    let mut stores = BTreeSet::new();
    for (&node, member) in &document.members {
        match document.datacenters.get(usize::from(member.datacenter.0)) {
            None => faults.push(DocumentFault::NoSuchDatacenter(node, member.datacenter)),
            Some(datacenter) if usize::from(member.rack.0) >= datacenter.racks.len() => {
                faults.push(DocumentFault::NoSuchRack(node, member.datacenter, member.rack));
            }
            Some(_) => {}
        }
        if member.weight == 0 {
            faults.push(DocumentFault::ZeroWeight(node));
        }
        if !stores.insert(member.store) {
            faults.push(DocumentFault::StoreTaken(node, member.store));
        }
        if member.recorded.0 == 0 || member.recorded > document.epoch {
            faults.push(DocumentFault::MemberEpoch(node));
        }
    }
}

fn faults_of_keyspaces(document: &ClusterDocument, faults: &mut Vec<DocumentFault>) {
    let mut names = BTreeSet::new();
    for (&id, keyspace) in &document.keyspaces {
        if !name_is_valid(&keyspace.name) {
            faults.push(DocumentFault::KeyspaceName(id, keyspace.name.clone()));
        }
        if !names.insert(&keyspace.name) {
            faults.push(DocumentFault::KeyspaceNameTaken(id, keyspace.name.clone()));
        }
        if keyspace.replication.is_empty() {
            faults.push(DocumentFault::NoReplication(id));
        }
        for (&datacenter, &copies) in &keyspace.replication {
            if usize::from(datacenter.0) >= document.datacenters.len() {
                faults.push(DocumentFault::ReplicationNowhere(id, datacenter));
            }
            if copies == 0 || usize::from(copies) > REPLICAS_MAX {
                faults.push(DocumentFault::ReplicationCount(id, datacenter, copies));
            }
        }
    }
}

/// The faults of one datacenter's preference lists. Where their number or their length is wrong, their entries are
/// not looked at: they would only repeat it.
fn faults_of_lists(
    document: &ClusterDocument,
    id: DatacenterId,
    datacenter: &Datacenter,
    local: &BTreeSet<NodeId>,
    faults: &mut Vec<DocumentFault>,
) {
    let (width, expected) = (datacenter.placement.width(), local.len().min(LIST_MAX));
    if width != expected {
        faults.push(DocumentFault::ListWidth { datacenter: id, width, expected });
        return;
    }
    let partitions = document.partitions.iter().len();
    let lists = datacenter.placement.lists();
    if lists != partitions && width > 0 {
        faults.push(DocumentFault::ListCount { datacenter: id, lists, partitions });
        return;
    }
    for partition in document.partitions.iter() {
        let list = datacenter.placement.list(partition);
        for (position, owner) in list.iter().enumerate() {
            if !local.contains(&owner.node) {
                faults.push(DocumentFault::OwnerNotMember(id, partition, owner.node));
            }
            if list[..position].iter().any(|earlier: &Owner| earlier.node == owner.node) {
                faults.push(DocumentFault::OwnerTwice(id, partition, owner.node));
            }
            if owner.gained.0 == 0 || owner.gained > document.epoch {
                faults.push(DocumentFault::OwnerEpoch(id, partition, owner.node));
            }
        }
    }
}
