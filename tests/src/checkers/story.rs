//! Histories made by hand, for the checkers' own tests: three nodes, one key of three copies, quorums, and times in
//! microseconds.

use std::{collections::BTreeMap, sync::Arc};

use antientropy::version::{Context, CopyCount, LwwVersion, Record, RequestId, SiblingSet, Value};
use bytes::Bytes;
use client::{Level, Version};
use node::storage::{ObjectKey, Sequence};
use ring::{
    ClusterDocument, ClusterId, ConflictPolicy, Datacenter, DatacenterId, Durability, Keyspace, KeyspaceId,
    Member, NodeId, Partitions, RackId, StoreId,
};

use crate::{
    history::{
        Acknowledgement, Attempt, ContextId, Found, History, Key, KeyId, Loss, Outcome, Read, Regression,
        SeenContext, Write, WriteId, WriteKind, dot,
    },
    schedule::Moment,
};

const KEY: KeyId = KeyId(0);

/// A history in the making.
pub(crate) struct Story {
    pub(crate) history: History,
}

impl Story {
    pub(crate) fn new(conflict: ConflictPolicy) -> Story {
        let keyspace = Keyspace::new("carts", 3, conflict, Durability::Disk);
        let member = |number: u32| {
            let (store, address) = (StoreId(number.into()), format!("node-{number}:4700"));
            let member = Member::new(store, address, DatacenterId(0), RackId(0), 100);
            (NodeId(number), member)
        };
        let document = ClusterDocument::founding(
            ClusterId(1),
            Partitions::new(1).unwrap(),
            vec![Datacenter::new("ams", ["a"])],
            (1..=3).map(member).collect(),
            BTreeMap::from([(KeyspaceId(1), keyspace.clone())]),
        );
        let object = ObjectKey::new(KeyspaceId(1), b"key");
        let document = Arc::new(document.unwrap());
        let partition = object.partition(document.partitions);
        Story { history: History::new(document, vec![Key { object, partition, keyspace }]) }
    }

    /// A put, acknowledged by node 1. Its version is its place in the order of writes.
    pub(crate) fn put(&mut self, sent: u64, ended: u64) -> WriteId {
        let id = WriteId(self.history.writes.len());
        let acknowledgement = Acknowledgement {
            version: Some(version(id)),
            coordinator: NodeId(1),
            stood_in: 0,
            holders: Some(Vec::new()),
        };
        let outcome = Outcome::Acknowledged(acknowledgement);
        self.history.writes.push(Write {
            session: 0,
            key: KEY,
            kind: WriteKind::Put,
            n: None,
            level: Level::Quorum,
            durability: Durability::Disk,
            context: None,
            is_foreign: false,
            expires_ms: None,
            seen: None,
            attempts: vec![Attempt { node: NodeId(1), sent: Moment(sent), ended: Moment(ended), outcome }],
        });
        id
    }

    pub(crate) fn put_with(&mut self, sent: u64, ended: u64, context: ContextId) -> WriteId {
        let id = self.put(sent, ended);
        self.history.writes[id.0].context = Some(context);
        id
    }

    pub(crate) fn refuse(&mut self, id: WriteId) {
        self.history.writes[id.0].attempts[0].outcome = Outcome::Refused;
    }

    pub(crate) fn in_doubt(&mut self, id: WriteId) {
        self.history.writes[id.0].attempts[0].outcome = Outcome::InDoubt;
    }

    pub(crate) fn context(&mut self, shown: &[WriteId]) -> ContextId {
        self.history.contexts.push(SeenContext { key: KEY, bytes: Bytes::new(), shown: shown.to_vec() });
        ContextId(self.history.contexts.len() - 1)
    }

    /// A blocking read by node 1.
    pub(crate) fn read(&mut self, sent: u64, ended: u64, values: &[WriteId]) -> usize {
        let values = values.iter().map(|id| (*id, version(*id))).collect();
        self.history.reads.push(Read {
            session: 0,
            key: KEY,
            n: None,
            level: Level::Quorum,
            is_blocking: true,
            node: NodeId(1),
            sent: Moment(sent),
            ended: Moment(ended),
            found: Some(Found { coordinator: NodeId(1), values, phantoms: 0 }),
        });
        self.history.reads.len() - 1
    }

    /// What the three disks hold at the end.
    pub(crate) fn ends_with(&mut self, disks: &[&[WriteId]]) {
        let holdings = disks.iter().zip(1..).map(|(values, node)| (NodeId(node), self.record(values)));
        let holdings: BTreeMap<_, _> = holdings.collect();
        self.history.keepers = vec![holdings.keys().copied().collect()];
        self.history.finals = vec![holdings];
    }

    /// A fault destroys what one node held, and this is left elsewhere.
    pub(crate) fn loses(&mut self, at: u64, durability: Durability, before: &[WriteId], left: &[&[WriteId]]) {
        let left = left.iter().filter_map(|values| self.record(values));
        let survivors = left.map(|record| (NodeId(2), record)).collect();
        let before = self.record(before).unwrap();
        self.history.losses.push(Loss {
            node: NodeId(1),
            key: KEY,
            at: Moment(at),
            durability,
            before,
            survivors,
        });
    }

    /// Node 1's disk goes back behind these values.
    pub(crate) fn goes_back(&mut self, at: u64, noticed: Option<u64>, before: &[WriteId]) {
        let (before, noticed) = (self.record(before).unwrap(), noticed.map(Moment));
        self.history.regressions.push(Regression {
            node: NodeId(1),
            key: KEY,
            at: Moment(at),
            before,
            noticed,
            noticed_with: Sequence(0),
        });
    }

    /// So many nodes stood in for replicas of a write.
    pub(crate) fn stood_in(&mut self, write: WriteId, count: u8) {
        for attempt in &mut self.history.writes[write.0].attempts {
            if let Outcome::Acknowledged(acknowledgement) = &mut attempt.outcome {
                acknowledgement.stood_in = count;
            }
        }
    }

    pub(crate) fn held_by(&mut self, id: WriteId, nodes: &[u32]) {
        let Outcome::Acknowledged(by) = &mut self.history.writes[id.0].attempts[0].outcome else {
            panic!("it is not acknowledged")
        };
        by.holders = Some(nodes.iter().copied().map(NodeId).collect());
    }

    pub(crate) fn swap_versions(&mut self, one: WriteId, other: WriteId) {
        for (id, from) in [(one, other), (other, one)] {
            if let Outcome::Acknowledged(by) = &mut self.history.writes[id.0].attempts[0].outcome {
                by.version = Some(version(from));
            }
        }
    }

    fn record(&self, values: &[WriteId]) -> Option<Record> {
        let mut record: Option<Record> = None;
        for id in values {
            let bytes = (id.0 as u64).to_be_bytes().to_vec();
            let value = Some(Value { bytes: bytes.into(), expires: None, request: RequestId::NONE });
            let (dot, context, copies) = (dot(version(*id)), Context::new(), CopyCount::DEFAULT);
            let next = if self.history.keeps_siblings(KEY) {
                let mut set = SiblingSet::new();
                set.write(dot, &context, value, copies);
                Record::Siblings(set)
            } else {
                Record::Lww(LwwVersion::write(dot, &context, value, copies))
            };
            match &mut record {
                Some(record) => drop(record.merge(&next)),
                None => record = Some(next),
            }
        }
        record
    }
}

/// Each write of a story is one of an actor of its own.
fn version(id: WriteId) -> Version {
    Version { counter: id.0 as u64 + 1, actor: id.0 as u64 + 1 }
}
