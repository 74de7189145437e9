//! The digest of a cluster document: BLAKE3 over a canonical encoding.
//!
//! The encoding is written by hand and has a version, so that what two nodes compare depends on no library's idea of
//! a format. It is never decoded. Numbers are big-endian; a text or a list follows its length as a `u32`; maps are
//! lists in the order of their keys; an enum is one byte.

use crate::{ClusterDocument, ConflictPolicy, Datacenter, Durability, Keyspace, Member};

/// What the encoding begins with: what it is of, and its version.
const HEADER: &[u8] = b"quorate cluster document 2\n";

impl ClusterDocument {
    /// The document's digest: 32 bytes of BLAKE3. Equal documents have equal digests on every machine, and two that
    /// differ anywhere have different ones.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let mut bytes = HEADER.to_vec();
        bytes.extend(self.cluster.0.to_be_bytes());
        bytes.extend(self.epoch.0.to_be_bytes());
        bytes.extend(self.partitions.count().to_be_bytes());
        length(&mut bytes, self.datacenters.len());
        for datacenter in &self.datacenters {
            encode_datacenter(&mut bytes, datacenter);
        }
        length(&mut bytes, self.members.len());
        for (node, member) in &self.members {
            bytes.extend(node.0.to_be_bytes());
            encode_member(&mut bytes, member);
        }
        length(&mut bytes, self.keyspaces.len());
        for (id, keyspace) in &self.keyspaces {
            bytes.extend(id.0.to_be_bytes());
            encode_keyspace(&mut bytes, keyspace);
        }
        *blake3::hash(&bytes).as_bytes()
    }
}

fn encode_datacenter(bytes: &mut Vec<u8>, datacenter: &Datacenter) {
    text(bytes, &datacenter.name);
    length(bytes, datacenter.racks.len());
    for rack in &datacenter.racks {
        text(bytes, rack);
    }
    length(bytes, datacenter.placement.width());
    length(bytes, datacenter.placement.owners().len());
    for owner in datacenter.placement.owners() {
        bytes.extend(owner.node.0.to_be_bytes());
        bytes.extend(owner.gained.0.to_be_bytes());
    }
}

fn encode_member(bytes: &mut Vec<u8>, member: &Member) {
    bytes.extend(member.store.0.to_be_bytes());
    bytes.extend(member.recorded.0.to_be_bytes());
    bytes.extend(member.voter.0.to_be_bytes());
    text(bytes, &member.address);
    bytes.extend(member.datacenter.0.to_be_bytes());
    bytes.extend(member.rack.0.to_be_bytes());
    bytes.extend(member.weight.to_be_bytes());
}

fn encode_keyspace(bytes: &mut Vec<u8>, keyspace: &Keyspace) {
    text(bytes, &keyspace.name);
    length(bytes, keyspace.replication.len());
    for (datacenter, copies) in &keyspace.replication {
        bytes.extend(datacenter.0.to_be_bytes());
        bytes.push(*copies);
    }
    bytes.push(match keyspace.conflict {
        ConflictPolicy::Siblings => 0,
        ConflictPolicy::LastWriteWins => 1,
    });
    bytes.push(match keyspace.durability {
        Durability::Memory => 0,
        Durability::Disk => 1,
    });
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    length(bytes, text.len());
    bytes.extend(text.as_bytes());
}

fn length(bytes: &mut Vec<u8>, length: usize) {
    bytes
        .extend(u32::try_from(length).expect("a document has far fewer than 2^32 of anything").to_be_bytes());
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::{ClusterId, DatacenterId, Epoch, KeyspaceId, NodeId, Partitions, RackId, StoreId, VoterId};

    fn document() -> ClusterDocument {
        let member = Member {
            store: StoreId(0x57),
            recorded: Epoch(1),
            voter: VoterId(0x56),
            address: "[::1]:7400".to_owned(),
            datacenter: DatacenterId(0),
            rack: RackId(1),
            weight: 100,
        };
        let carts = Keyspace::new("carts", 3, ConflictPolicy::Siblings, Durability::Disk);
        let sessions = Keyspace::new("sessions", 1, ConflictPolicy::LastWriteWins, Durability::Memory);
        ClusterDocument::founding(
            ClusterId(0xc1),
            Partitions::new(2).unwrap(),
            vec![Datacenter::new("ams", ["a", "b"])],
            BTreeMap::from([(NodeId(7), member)]),
            BTreeMap::from([(KeyspaceId(1), carts), (KeyspaceId(2), sessions)]),
        )
        .unwrap()
    }

    fn hex(digest: [u8; 32]) -> String {
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The expected value was made by writing the encoding down a second time, with Python's `struct` and `blake3`.
    #[test]
    fn the_digest_of_a_document_never_changes() {
        let expected = "43db38bc093f8b8b3e07ad6f371c10aae70bd4f2b783dafecedb275b247b6aa1";
        assert_eq!(hex(document().digest()), expected);
    }

    #[test]
    fn any_difference_makes_another_digest() {
        let changes: [fn(&mut ClusterDocument); 14] = [
            |document| document.cluster.0 += 1,
            |document| document.epoch = document.epoch.next(),
            |document| document.partitions = Partitions::DEFAULT,
            |document| document.datacenters[0].name.push('x'),
            |document| document.datacenters[0].racks.truncate(1),
            |document| document.datacenters[0].placement = crate::Placement::default(),
            |document| document.members.clear(),
            |document| document.members.get_mut(&NodeId(7)).unwrap().store.0 += 1,
            |document| document.members.get_mut(&NodeId(7)).unwrap().recorded.0 += 1,
            |document| document.members.get_mut(&NodeId(7)).unwrap().voter.0 += 1,
            |document| document.members.get_mut(&NodeId(7)).unwrap().address.push('0'),
            |document| document.members.get_mut(&NodeId(7)).unwrap().weight += 1,
            |document| {
                document.keyspaces.get_mut(&KeyspaceId(1)).unwrap().conflict = ConflictPolicy::LastWriteWins
            },
            |document| document.keyspaces.get_mut(&KeyspaceId(1)).unwrap().durability = Durability::Memory,
        ];
        let mut digests = BTreeSet::from([document().digest()]);
        for (index, change) in changes.iter().enumerate() {
            let mut changed = document();
            change(&mut changed);
            assert!(digests.insert(changed.digest()), "change {index} went unseen");
        }
    }
}
