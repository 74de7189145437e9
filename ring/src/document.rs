//! The cluster document: members, keyspaces and the ring as one value with one epoch.
//!
//! Everything that a node has to agree on with others before it may answer stands here, and nothing else does:
//! who is up is the failure detector's business, and what a replica holds is its own. The document is changed by
//! making its successor, never in place, and nodes compare documents by `(epoch, digest)`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    Candidate, ClusterId, DatacenterId, DocumentFault, Epoch, Keyspace, KeyspaceId, NodeId, Owner,
    PartitionId, Partitions, Placement, RackId, StoreId, VoterId, fault, plan,
};

/// The cluster document. See the module's documentation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterDocument {
    /// Which cluster this is.
    pub cluster: ClusterId,
    /// Which version of the document this is; each change is the next number.
    pub epoch: Epoch,
    /// How the token circle is cut. Fixed when the cluster is born.
    pub partitions: Partitions,
    /// The datacenters, in the order of their [`DatacenterId`].
    pub datacenters: Vec<Datacenter>,
    /// Every member, alive or not, until it is removed.
    pub members: BTreeMap<NodeId, Member>,
    /// Every keyspace.
    pub keyspaces: BTreeMap<KeyspaceId, Keyspace>,
}

/// A datacenter: its name, its racks and where it places each partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datacenter {
    /// The name that people gave it.
    pub name: String,
    /// The names of its racks, in the order of their [`RackId`].
    pub racks: Vec<String>,
    /// Where each partition lives in this datacenter.
    pub placement: Placement,
}

/// A node as the document records it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The store that counts for this member. Acknowledgements from any other are worth nothing.
    pub store: StoreId,
    /// The epoch at which that store was recorded. What a store says of itself, such as that its copies are whole,
    /// holds for one time of being recorded: a disk that was replaced, and came back, has missed what happened since.
    pub recorded: Epoch,
    /// The voter that counts for this member when documents are agreed on: one unbroken memory of that store's votes.
    pub voter: VoterId,
    /// Where it listens, as `host:port`.
    pub address: String,
    /// Its datacenter.
    pub datacenter: DatacenterId,
    /// Its rack in that datacenter.
    pub rack: RackId,
    /// Its share of the copies in its datacenter, relative to the others'. Positive; 100 by convention.
    pub weight: u32,
}

/// One replica of a partition, as a request sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replica {
    /// The datacenter whose preference list it stands on.
    pub datacenter: DatacenterId,
    /// Its position on that list, from 0.
    pub position: usize,
    /// The node, and since when.
    pub owner: Owner,
}

impl Member {
    /// A member as it enters a document: the document says since which epoch its store is recorded, and the store has
    /// forgotten nothing yet.
    #[must_use]
    pub fn new(
        store: StoreId,
        address: String,
        datacenter: DatacenterId,
        rack: RackId,
        weight: u32,
    ) -> Member {
        let voter = VoterId::first_of(store);
        Member { store, recorded: Epoch(1), voter, address, datacenter, rack, weight }
    }
}

impl Datacenter {
    /// A datacenter that places nothing yet.
    #[must_use]
    pub fn new<'a>(name: &str, racks: impl IntoIterator<Item = &'a str>) -> Datacenter {
        let racks = racks.into_iter().map(str::to_owned).collect();
        Datacenter { name: name.to_owned(), racks, placement: Placement::default() }
    }
}

impl ClusterDocument {
    /// The first document of a cluster, of epoch 1. Whatever the given datacenters place is planned anew, and the
    /// stores of all members are recorded as of now.
    ///
    /// # Errors
    ///
    /// All faults at once, if what was given makes no valid document.
    pub fn founding(
        cluster: ClusterId,
        partitions: Partitions,
        datacenters: Vec<Datacenter>,
        members: BTreeMap<NodeId, Member>,
        keyspaces: BTreeMap<KeyspaceId, Keyspace>,
    ) -> Result<ClusterDocument, Vec<DocumentFault>> {
        let epoch = Epoch(1);
        let mut document = ClusterDocument { cluster, epoch, partitions, datacenters, members, keyspaces };
        for datacenter in &mut document.datacenters {
            datacenter.placement = Placement::default();
        }
        document.members.values_mut().for_each(|member| member.recorded = epoch);
        document.plan()?;
        Ok(document)
    }

    /// The successor with these members, its partitions placed by the planner: the whole ring at once, as it will be
    /// when all moves are done. A store that is recorded already stays so since when it was.
    ///
    /// # Errors
    ///
    /// All faults at once, if the members do not fit the document.
    pub fn with_members(
        &self,
        members: BTreeMap<NodeId, Member>,
    ) -> Result<ClusterDocument, Vec<DocumentFault>> {
        let mut next = self.successor();
        next.members = members;
        for (node, member) in &mut next.members {
            let current = self.members.get(node).filter(|current| current.store == member.store);
            member.recorded = current.map_or(next.epoch, |current| current.recorded);
        }
        next.plan()?;
        Ok(next)
    }

    /// The same document, one epoch later.
    #[must_use]
    pub fn successor(&self) -> ClusterDocument {
        ClusterDocument { epoch: self.epoch.next(), ..self.clone() }
    }

    /// The successor that records another store for `node`, after its disk was replaced, or another voter of the same
    /// store, after it went back in time. Nothing is planned anew and the owners keep the epoch at which they gained:
    /// the other store alone tells that the copies are not what they were. A node that is no member is ignored.
    #[must_use]
    pub fn readmit(&self, node: NodeId, store: StoreId, voter: VoterId) -> ClusterDocument {
        let mut next = self.successor();
        if let Some(member) = next.members.get_mut(&node) {
            if member.store != store {
                (member.store, member.recorded) = (store, next.epoch);
            }
            member.voter = voter;
        }
        next
    }

    /// The preference list of `partition` in `datacenter`, best first; empty if there is no such datacenter.
    #[must_use]
    pub fn preference_list(&self, datacenter: DatacenterId, partition: PartitionId) -> &[Owner] {
        self.datacenters.get(usize::from(datacenter.0)).map_or(&[], |found| found.placement.list(partition))
    }

    /// The replicas of `partition`: the first n of its preference list in each of the keyspace's datacenters, where n
    /// is the keyspace's count there, or the one that the request named. Fewer where there are fewer nodes.
    pub fn replicas(
        &self,
        keyspace: &Keyspace,
        partition: PartitionId,
        n: Option<u8>,
    ) -> impl Iterator<Item = Replica> {
        keyspace.replication.keys().flat_map(move |&datacenter| {
            let list = self.preference_list(datacenter, partition);
            let replicas = list.iter().take(keyspace.copies(datacenter, n)).enumerate();
            replicas.map(move |(position, &owner)| Replica { datacenter, position, owner })
        })
    }

    /// The keyspace called `name`.
    #[must_use]
    pub fn keyspace_named(&self, name: &str) -> Option<(KeyspaceId, &Keyspace)> {
        self.keyspaces
            .iter()
            .find(|(_, keyspace)| keyspace.name == name)
            .map(|(id, keyspace)| (*id, keyspace))
    }

    /// The members of `datacenter` as the planner wants them.
    #[must_use]
    pub fn candidates(&self, datacenter: DatacenterId) -> Vec<Candidate> {
        let local = self.members.iter().filter(|(_, member)| member.datacenter == datacenter);
        local.map(|(&node, member)| Candidate { node, rack: member.rack, weight: member.weight }).collect()
    }

    /// Checks that the document makes sense by itself. Whoever takes a document from outside calls this first.
    ///
    /// # Errors
    ///
    /// All faults at once, in the order of the document.
    pub fn validate(&self) -> Result<(), Vec<DocumentFault>> {
        let mut faults = fault::faults_of_membership(self);
        faults.extend(fault::faults_of_placement(self));
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }

    /// Places every partition for the present members; what they gain, they gain at the document's epoch.
    fn plan(&mut self) -> Result<(), Vec<DocumentFault>> {
        let faults = fault::faults_of_membership(self);
        if !faults.is_empty() {
            return Err(faults);
        }
        for index in 0..self.datacenters.len() {
            let datacenter = DatacenterId(u16::try_from(index).expect("checked with the membership"));
            let candidates = self.candidates(datacenter);
            let current = &self.datacenters[index].placement;
            self.datacenters[index].placement =
                plan(Some(current), &candidates, self.partitions, self.epoch).next;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ConflictPolicy, Durability};

    const AMS: DatacenterId = DatacenterId(0);
    const FRA: DatacenterId = DatacenterId(1);

    fn member(node: u32, datacenter: DatacenterId) -> (NodeId, Member) {
        let (address, rack) = (format!("node-{node}:7400"), RackId(u16::try_from(node % 3).unwrap()));
        (NodeId(node), Member::new(StoreId(u64::from(node)), address, datacenter, rack, 100))
    }

    /// Six nodes in Amsterdam and four in Frankfurt, each in three racks, and one keyspace on both.
    fn document() -> ClusterDocument {
        let mut keyspace = Keyspace::new("carts", 3, ConflictPolicy::Siblings, Durability::Disk);
        keyspace.replication.insert(FRA, 2);
        let racks = ["a", "b", "c"];
        ClusterDocument::founding(
            ClusterId(1),
            Partitions::CLUSTER_MIN,
            vec![Datacenter::new("ams", racks), Datacenter::new("fra", racks)],
            (0..6).map(|node| member(node, AMS)).chain((6..10).map(|node| member(node, FRA))).collect(),
            BTreeMap::from([(KeyspaceId(1), keyspace)]),
        )
        .unwrap()
    }

    #[test]
    fn a_founding_document_is_valid_and_of_epoch_1() {
        let document = document();
        assert_eq!(document.validate(), Ok(()));
        assert_eq!(document.epoch, Epoch(1));
        assert_eq!(document.preference_list(AMS, PartitionId(0)).len(), 6);
        assert_eq!(document.preference_list(FRA, PartitionId(63)).len(), 4);
        assert_eq!(document.preference_list(DatacenterId(2), PartitionId(0)), []);
    }

    #[test]
    fn replicas_are_the_first_of_each_datacenter_of_the_keyspace() {
        let document = document();
        let (_, keyspace) = document.keyspace_named("carts").unwrap();
        let places = |n| -> Vec<(DatacenterId, usize)> {
            let replicas = document.replicas(keyspace, PartitionId(5), n);
            replicas.map(|replica| (replica.datacenter, replica.position)).collect()
        };
        assert_eq!(places(None), [(AMS, 0), (AMS, 1), (AMS, 2), (FRA, 0), (FRA, 1)]);
        assert_eq!(places(Some(1)), [(AMS, 0), (FRA, 0)]);
        assert_eq!(places(Some(7)).len(), 6 + 4, "no more than there are nodes");
        let first = document.replicas(keyspace, PartitionId(5), None).next().unwrap();
        assert_eq!(first.owner, document.preference_list(AMS, PartitionId(5))[0]);
    }

    #[test]
    fn a_successor_differs_in_its_epoch_alone() {
        let document = document();
        let next = document.successor();
        assert_eq!(next.epoch, Epoch(2));
        assert_eq!(ClusterDocument { epoch: Epoch(1), ..next }, document);
    }

    #[test]
    fn readmitting_changes_the_store_and_no_owner() {
        let document = document();
        let next = document.readmit(NodeId(3), StoreId(77), VoterId(77));
        assert_eq!((next.epoch, next.members[&NodeId(3)].store), (Epoch(2), StoreId(77)));
        assert_eq!(next.datacenters, document.datacenters);
        assert_eq!(next.validate(), Ok(()));
        assert_eq!(document.readmit(NodeId(99), StoreId(77), VoterId(77)), document.successor());
    }

    #[test]
    fn a_store_is_recorded_anew_only_if_it_is_another() {
        let (node, first) = (NodeId(3), StoreId(3));
        let founded = document();
        assert_eq!(founded.members[&node].recorded, Epoch(1));
        let same = founded.readmit(node, first, VoterId(5));
        assert_eq!((same.members[&node].recorded, same.members[&node].voter), (Epoch(1), VoterId(5)));
        let replaced = same.readmit(node, StoreId(77), VoterId(77));
        let back = replaced.readmit(node, first, VoterId(5));
        assert_eq!((replaced.members[&node].recorded, back.members[&node].recorded), (Epoch(3), Epoch(4)));
        let more = back.members.clone().into_iter().chain([member(10, AMS)]).collect();
        let joined = back.with_members(more).unwrap();
        assert_eq!(
            (joined.members[&node].recorded, joined.members[&NodeId(10)].recorded),
            (Epoch(4), Epoch(5))
        );
    }

    #[test]
    fn a_new_member_gains_at_the_new_epoch_and_another_datacenter_stays_as_it_is() {
        let document = document();
        let mut members = document.members.clone();
        members.extend([member(10, AMS)]);
        let next = document.with_members(members).unwrap();
        assert_eq!(next.validate(), Ok(()));
        assert_eq!(next.datacenters[1], document.datacenters[1]);
        let owners = next.datacenters[0].placement.owners();
        let of_new: Vec<_> = owners.iter().filter(|owner| owner.node == NodeId(10)).collect();
        assert!(!of_new.is_empty() && of_new.iter().all(|owner| owner.gained == Epoch(2)));
    }

    #[test]
    fn members_that_do_not_fit_are_refused_before_anything_is_planned() {
        let document = document();
        let mut members = document.members.clone();
        members.get_mut(&NodeId(0)).unwrap().rack = RackId(3);
        members.get_mut(&NodeId(1)).unwrap().weight = 0;
        members.get_mut(&NodeId(2)).unwrap().datacenter = DatacenterId(9);
        let expected = vec![
            DocumentFault::NoSuchRack(NodeId(0), AMS, RackId(3)),
            DocumentFault::ZeroWeight(NodeId(1)),
            DocumentFault::NoSuchDatacenter(NodeId(2), DatacenterId(9)),
        ];
        assert_eq!(document.with_members(members), Err(expected));
    }

    #[test]
    fn validation_reports_all_faults_at_once() {
        let mut document = document();
        document.datacenters[1].name = "ams".to_owned();
        document.datacenters[0].racks[1] = "a".to_owned();
        document.members.get_mut(&NodeId(9)).unwrap().store = StoreId(8);
        document.members.get_mut(&NodeId(9)).unwrap().recorded = Epoch(2);
        let mut again = document.keyspaces[&KeyspaceId(1)].clone();
        again.replication = BTreeMap::from([(AMS, 8), (DatacenterId(2), 0)]);
        document.keyspaces.insert(KeyspaceId(2), again);
        let nowhere = Keyspace { name: "no where".to_owned(), ..document.keyspaces[&KeyspaceId(1)].clone() };
        document.keyspaces.insert(KeyspaceId(3), Keyspace { replication: BTreeMap::new(), ..nowhere });
        let expected = vec![
            DocumentFault::RackNameTaken(AMS, "a".to_owned()),
            DocumentFault::DatacenterNameTaken(FRA, "ams".to_owned()),
            DocumentFault::StoreTaken(NodeId(9), StoreId(8)),
            DocumentFault::MemberEpoch(NodeId(9)),
            DocumentFault::KeyspaceNameTaken(KeyspaceId(2), "carts".to_owned()),
            DocumentFault::ReplicationCount(KeyspaceId(2), AMS, 8),
            DocumentFault::ReplicationNowhere(KeyspaceId(2), DatacenterId(2)),
            DocumentFault::ReplicationCount(KeyspaceId(2), DatacenterId(2), 0),
            DocumentFault::KeyspaceName(KeyspaceId(3), "no where".to_owned()),
            DocumentFault::NoReplication(KeyspaceId(3)),
        ];
        assert_eq!(document.validate(), Err(expected));
    }

    #[test]
    fn preference_lists_are_checked_against_the_members() {
        let mut document = document();
        let mut owners = document.datacenters[0].placement.owners().to_vec();
        owners[1] = owners[0];
        owners[6].node = NodeId(6);
        owners[12].gained = Epoch(2);
        document.datacenters[0].placement = Placement::new(6, owners.clone());
        let expected = vec![
            DocumentFault::OwnerTwice(AMS, PartitionId(0), owners[0].node),
            DocumentFault::OwnerNotMember(AMS, PartitionId(1), NodeId(6)),
            DocumentFault::OwnerEpoch(AMS, PartitionId(2), owners[12].node),
        ];
        assert_eq!(document.validate(), Err(expected));
        document.datacenters[0].placement = Placement::new(6, owners[6..].to_vec());
        document.datacenters[1].placement = Placement::default();
        let expected = vec![
            DocumentFault::ListCount { datacenter: AMS, lists: 63, partitions: 64 },
            DocumentFault::ListWidth { datacenter: FRA, width: 0, expected: 4 },
        ];
        assert_eq!(document.validate(), Err(expected));
    }
}
