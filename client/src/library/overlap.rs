//! Whether a read is sure to meet a write.

use ring::{ClusterDocument, DatacenterId, Keyspace, PartitionId};

use crate::{Copies, Level, Operation, overlaps};

/// Whether R + W > N held: whether a read is sure to have asked a replica that acknowledged the write it looks for.
///
/// A read knows its own n and r. The w of whoever wrote the key is not recorded anywhere, so the caller says what
/// the keyspace's writers use (a quorum, unless told otherwise), and the answer is good for writes of that level *with
/// the same n*. Where it does not hold, a read may miss an acknowledged write until the replicas have converged; it
/// will not miss it for ever. Overlap does not make operations linearizable: see the README on what is not promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlap {
    /// Copies, in all datacenters.
    pub n: u8,
    /// Replicas that a read waits for; 0 if its level cannot be met by that many copies.
    pub r: u8,
    /// Replicas that a write waits for; 0 if its level cannot be met by that many copies.
    pub w: u8,
    /// Whether they overlap: in all, or within one datacenter.
    pub is_sure: bool,
}

impl Overlap {
    /// What levels `read` and `write` come to for requests with `n` copies that are coordinated in `local`.
    #[must_use]
    pub fn of(
        document: &ClusterDocument,
        keyspace: &Keyspace,
        n: Option<u8>,
        read: Level,
        write: Level,
        local: DatacenterId,
    ) -> Overlap {
        let copies = copies(document, keyspace, n);
        let read = read.required(Operation::Read, &copies, local);
        let write = write.required(Operation::Write, &copies, local);
        let is_sure = matches!((&write, &read), (Ok(write), Ok(read)) if overlaps(&copies, write, read));
        let total = |required: &Result<crate::Required, _>| required.as_ref().map_or(0, |r| r.total());
        Overlap { n: copies.total(), r: total(&read), w: total(&write), is_sure }
    }
}

/// The copies that a request asks for: as many as it says or the keyspace does, where there are so many nodes.
pub(crate) fn copies(document: &ClusterDocument, keyspace: &Keyspace, n: Option<u8>) -> Copies {
    Copies::new(keyspace.replication.keys().map(|&datacenter| {
        let nodes = document.preference_list(datacenter, PartitionId(0)).len();
        let count = keyspace.copies(datacenter, n).min(nodes);
        (datacenter, u8::try_from(count).expect("at most seven copies in each datacenter"))
    }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ring::{
        ClusterId, ConflictPolicy, Datacenter, Durability, KeyspaceId, Member, NodeId, Partitions, RackId,
        StoreId,
    };

    use super::*;

    fn document(nodes: u32) -> ClusterDocument {
        let member = |node: u32| {
            let (store, address) = (StoreId(u64::from(node)), format!("node-{node}:7400"));
            let (datacenter, rack) = (DatacenterId(0), RackId(0));
            (NodeId(node), Member::new(store, address, datacenter, rack, 100))
        };
        let keyspace = Keyspace::new("default", 3, ConflictPolicy::Siblings, Durability::Disk);
        ClusterDocument::founding(
            ClusterId(1),
            Partitions::CLUSTER_MIN,
            vec![Datacenter::new("ams", ["a"])],
            (1..=nodes).map(member).collect(),
            BTreeMap::from([(KeyspaceId(1), keyspace)]),
        )
        .unwrap()
    }

    fn overlap(nodes: u32, n: Option<u8>, read: Level, write: Level) -> Overlap {
        let document = document(nodes);
        let keyspace = &document.keyspaces[&KeyspaceId(1)];
        Overlap::of(&document, keyspace, n, read, write, DatacenterId(0))
    }

    #[test]
    fn two_of_three_and_two_of_three_overlap_and_one_of_three_does_not() {
        let sure = Overlap { n: 3, r: 2, w: 2, is_sure: true };
        assert_eq!(overlap(5, None, Level::Quorum, Level::Quorum), sure);
        let unsure = Overlap { n: 3, r: 1, w: 2, is_sure: false };
        assert_eq!(overlap(5, None, Level::One, Level::Quorum), unsure);
        assert!(!overlap(5, Some(5), Level::Two, Level::Three).is_sure, "3 + 2 is not more than 5");
    }

    #[test]
    fn a_cluster_with_fewer_nodes_than_copies_counts_its_nodes() {
        let one = Overlap { n: 1, r: 1, w: 1, is_sure: true };
        assert_eq!(overlap(1, None, Level::One, Level::Quorum), one);
    }

    #[test]
    fn a_level_that_cannot_be_met_promises_nothing() {
        let unsure = Overlap { n: 1, r: 1, w: 0, is_sure: false };
        assert_eq!(overlap(1, None, Level::One, Level::Three), unsure);
    }
}
