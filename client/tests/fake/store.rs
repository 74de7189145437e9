//! What the nodes of a fake cluster hold: one map for all of them, with siblings, contexts and request ids.

use std::{
    collections::{BTreeMap, HashMap},
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::{BufMut, Bytes, BytesMut};
use client::{
    Freshness, Get, GetReply, Refusal, Reply, Request, RequestId, ReturnedValue, Version, WriteOptions,
    WriteReply,
    wire::{
        ControlError, ControlReply, ControlRequest, CopyState, HeldRecord, HeldVersion, KeysPage,
        NewKeyspace, NodeStatus, NodeVitals, PeerStatus, ReplicaView, RequestVitals, SyncStatus,
    },
};
use ring::{
    ClusterDocument, ConflictPolicy, DatacenterId, Keyspace, KeyspaceId, NodeId, PartitionId, StoreId, Token,
};

use super::Shared;

/// The map. A context is the list of the counters that its reader saw.
#[derive(Default)]
pub struct Store {
    values: BTreeMap<(KeyspaceId, Bytes), Vec<ReturnedValue>>,
    outcomes: HashMap<RequestId, WriteReply>,
    counter: u64,
    /// Writes that changed something.
    pub changes: u64,
}

impl Store {
    /// The values of a key, newest first.
    pub fn values(&self, keyspace: KeyspaceId, key: &[u8]) -> Vec<ReturnedValue> {
        let key = Bytes::copy_from_slice(key);
        let mut values = self.values.get(&(keyspace, key)).cloned().unwrap_or_default();
        values.sort_by_key(|value| std::cmp::Reverse(value.version));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
        values.retain(|value| value.expires_unix_ms.is_none_or(|expires| u128::from(expires) > now));
        values
    }

    fn write(
        &mut self,
        node: NodeId,
        keyspace: KeyspaceId,
        conflict: ConflictPolicy,
        key: &Bytes,
        options: &WriteOptions,
        value: Option<(Bytes, Option<u64>)>,
    ) -> WriteReply {
        if let Some(reply) = self.outcomes.get(&options.request) {
            return reply.clone();
        }
        self.counter = self.counter.max(options.seen.unwrap_or(0)) + 1;
        let version = Version { counter: self.counter, actor: u64::from(node.0) };
        let values = self.values.entry((keyspace, key.clone())).or_default();
        let covered = options.context.as_ref().map(counters);
        let is_blind_delete = covered.is_none() && value.is_none();
        values.retain(|held| {
            let is_covered = covered.as_ref().is_some_and(|covered| covered.contains(&held.version.counter));
            conflict == ConflictPolicy::Siblings && !is_blind_delete && !is_covered
        });
        let is_alone = values.is_empty();
        values.extend(value.map(|(bytes, expires_unix_ms)| ReturnedValue {
            bytes,
            version,
            expires_unix_ms,
        }));
        self.changes += 1;
        let context = is_alone.then(|| context(values));
        let reply = WriteReply {
            version: Some(version),
            context,
            required: 2,
            acknowledged: 2,
            stood_in: 0,
            coordinator: node,
        };
        self.outcomes.insert(options.request, reply.clone());
        reply
    }

    fn get(&self, node: NodeId, get: &Get) -> GetReply {
        let values = self.values(get.keyspace, &get.key);
        let context = context(&values);
        let freshness = Freshness { asked: 2, answered: 2, agreed: true, repaired: 0 };
        GetReply { values, context, freshness, coordinator: node }
    }

    fn page(&self, keyspace: KeyspaceId, document: &ClusterDocument, request: &Page) -> KeysPage {
        let mut keys: Vec<(Token, Bytes)> = self
            .values
            .iter()
            .filter(|((of, _), values)| *of == keyspace && !values.is_empty())
            .map(|((_, key), _)| (Token::of_key(key), key.clone()))
            .filter(|(token, _)| document.partitions.of(*token) == request.partition)
            .filter(|(token, key)| {
                request.after.as_ref().is_none_or(|after| (*token, key) > (Token::of_key(after), after))
            })
            .collect();
        keys.sort();
        let limit = request.limit.min(3) as usize;
        let next = keys.get(limit).map(|_| keys[limit - 1].1.clone());
        keys.truncate(limit);
        KeysPage { keys: keys.into_iter().map(|(_, key)| key).collect(), is_whole: true, next }
    }
}

/// Which page of keys.
struct Page {
    partition: PartitionId,
    after: Option<Bytes>,
    limit: u32,
}

impl Shared {
    /// Carries a request out.
    pub fn serve(&self, node: NodeId, request: Request) -> Reply {
        let document = self.document.lock().unwrap();
        let keyspace = match &request {
            Request::Put(put) => put.keyspace,
            Request::Delete(delete) => delete.keyspace,
            Request::Get(get) => get.keyspace,
        };
        let conflict = document.keyspaces.get(&keyspace).map(|keyspace| keyspace.conflict);
        let mut store = self.store.lock().unwrap();
        match (request, conflict) {
            (Request::Get(get), Some(_)) => Reply::Get(Ok(store.get(node, &get))),
            (Request::Put(put), Some(conflict)) => {
                let value = Some((put.value, put.expires_unix_ms));
                Reply::Write(Ok(store.write(node, keyspace, conflict, &put.key, &put.options, value)))
            }
            (Request::Delete(delete), Some(conflict)) => {
                Reply::Write(Ok(store.write(node, keyspace, conflict, &delete.key, &delete.options, None)))
            }
            (Request::Get(_), None) => Reply::Get(Err(Refusal::UnknownKeyspace.into())),
            (_, None) => Reply::Write(Err(Refusal::UnknownKeyspace.into())),
        }
    }

    /// Answers a control request.
    pub fn control(&self, node: NodeId, request: ControlRequest) -> Result<ControlReply, ControlError> {
        let mut document = self.document.lock().unwrap();
        match request {
            ControlRequest::Document => Ok(ControlReply::Document(Box::new(document.clone()))),
            ControlRequest::Status => Ok(ControlReply::Status(Box::new(status(node, &document)))),
            ControlRequest::Vitals => Ok(ControlReply::Vitals(Box::new(vitals()))),
            ControlRequest::Explain { keyspace, key } => {
                let values = self.store.lock().unwrap().values(keyspace, &key);
                Ok(ControlReply::Explain(Box::new(view(node, &values))))
            }
            ControlRequest::Keys { keyspace, partition, after, limit } => {
                let page = Page { partition, after, limit };
                Ok(ControlReply::Keys(self.store.lock().unwrap().page(keyspace, &document, &page)))
            }
            ControlRequest::CreateKeyspace(new) => create(&mut document, new),
            ControlRequest::Repair { .. } => {
                let peers = document.members.keys().copied().filter(|peer| *peer != node).collect();
                Ok(ControlReply::RepairBegun { peers })
            }
            ControlRequest::Readmit { node } => {
                *document = document.readmit(node, StoreId(99), ring::VoterId(99));
                Ok(ControlReply::Readmitted { epoch: document.epoch })
            }
        }
    }
}

/// A node with nothing to complain of.
fn vitals() -> NodeVitals {
    let now_s = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let requests = RequestVitals { succeeded: 4, unanswered: 0, durations: vec![1, 3, 4] };
    NodeVitals {
        wall_unix_ms: now_s * 1000,
        reads: requests.clone(),
        writes: requests,
        duration_bounds_us: vec![100, 1000, 10_000],
        storage_bytes: 1 << 20,
        storage_free_bytes: 1 << 40,
        storage_size_bytes: 1 << 41,
        certificate_expires_unix_s: now_s + 365 * 86_400,
        ca_expires_unix_s: now_s + 3650 * 86_400,
        ..NodeVitals::default()
    }
}

fn create(document: &mut ClusterDocument, new: NewKeyspace) -> Result<ControlReply, ControlError> {
    let mut keyspace = Keyspace::new(&new.name, 3, new.conflict, new.durability);
    if !new.replication.is_empty() {
        keyspace.replication.clear();
    }
    for (name, copies) in new.replication {
        let position = document.datacenters.iter().position(|datacenter| datacenter.name == name);
        let Some(position) = position else {
            return Err(ControlError::Invalid(vec![format!("no datacenter is called `{name}`")]));
        };
        keyspace.replication.insert(DatacenterId(u16::try_from(position).unwrap()), copies);
    }
    if let Some((id, known)) = document.keyspace_named(&new.name) {
        let same = Ok(ControlReply::KeyspaceCreated { keyspace: id, epoch: document.epoch });
        return if *known == keyspace { same } else { Err(ControlError::KeyspaceExists) };
    }
    let id = KeyspaceId(document.keyspaces.keys().map(|id| id.0).max().unwrap_or(0) + 1);
    let mut next = document.successor();
    next.keyspaces.insert(id, keyspace);
    *document = next;
    Ok(ControlReply::KeyspaceCreated { keyspace: id, epoch: document.epoch })
}

fn status(node: NodeId, document: &ClusterDocument) -> NodeStatus {
    let sync = SyncStatus { age_ms: 40, is_known: true, partitions_differed: 0 };
    NodeStatus {
        node,
        version: "0.1.0".to_owned(),
        store: document.members[&node].store,
        is_recorded: true,
        votes: true,
        epoch: document.epoch,
        is_ready: true,
        copies: 64,
        copies_whole: 64,
        uptime_ms: 61_000,
        clock_drift_ms: Some(2),
        operations: 0,
        unsynced_bytes: 0,
        hints_pending: 0,
        convergence_lag_ms: 0,
        partitions_unscanned: 0,
        peers: document
            .members
            .keys()
            .filter(|peer| **peer != node)
            .map(|&node| PeerStatus {
                node,
                is_up: true,
                hints_pending: 0,
                hint_oldest_ms: None,
                sync: Some(sync),
            })
            .collect(),
    }
}

fn view(node: NodeId, values: &[ReturnedValue]) -> ReplicaView {
    let held = |value: &ReturnedValue| HeldVersion {
        version: value.version,
        value_bytes: value.bytes.len() as u64,
        expires_unix_ms: value.expires_unix_ms,
    };
    let record = HeldRecord {
        digest: context(values),
        versions: values.iter().map(held).collect(),
        context: values.iter().map(|value| value.version).collect(),
        is_synced: true,
    };
    ReplicaView {
        node,
        copy: CopyState::Whole,
        watermark: 0,
        record: (!values.is_empty()).then_some(record),
        owes: Vec::new(),
    }
}

fn context(values: &[ReturnedValue]) -> Bytes {
    let mut bytes = BytesMut::new();
    for value in values {
        bytes.put_u64(value.version.counter);
    }
    bytes.freeze()
}

fn counters(context: &Bytes) -> Vec<u64> {
    context.as_chunks::<8>().0.iter().map(|bytes| u64::from_be_bytes(*bytes)).collect()
}
