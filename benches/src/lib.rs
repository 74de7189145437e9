//! A cluster of three nodes in one thread, for measuring what the core itself costs: no network, no disk, no
//! scheduler.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use antientropy::version::{ContextKey, UnixMillis};
use bytes::Bytes;
use client::{Get, Put, ReadOptions, Reply, Request, RequestId, WriteOptions};
use node::{
    ClientTag, Identity, Input, Node, Now, Output, Settings,
    storage::{MemoryEngine, Sequence},
};
use ring::{
    ClusterDocument, ClusterId, ConflictPolicy, Datacenter, DatacenterId, Durability, Keyspace, KeyspaceId,
    Member, NodeId, Partitions, RackId, StoreId,
};

/// The keyspace that the trio has.
pub const KEYSPACE: KeyspaceId = KeyspaceId(1);

/// Three nodes that hand each other their messages.
pub struct Trio {
    nodes: Vec<(Node<MemoryEngine>, MemoryEngine)>,
    now: Now,
    next_request: u64,
    outputs: Vec<(usize, Output)>,
}

impl Trio {
    /// Three nodes that have agreed on a document with one keyspace of three copies.
    ///
    /// # Panics
    ///
    /// If they do not get ready, which would be a bug.
    #[must_use]
    pub fn new() -> Trio {
        let ids = [NodeId(1), NodeId(2), NodeId(3)];
        let now = now_at(Duration::from_secs(1));
        let start = |id: NodeId| {
            let engine = MemoryEngine::without_log(StoreId(u64::from(id.0)));
            let seed = [u8::try_from(id.0).expect("one of three"); 32];
            let identity = Identity { node: id, seeds: ids.to_vec(), seed, formation: None };
            let settings = Settings::new(ContextKey::new([7; 32]));
            (Node::open(identity, settings, engine.clone(), now), engine)
        };
        let nodes = ids.into_iter().map(start).collect();
        let mut trio = Trio { nodes, now, next_request: 0, outputs: Vec::new() };
        let document = Arc::new(document(&ids));
        for at in 0..ids.len() {
            trio.input(at, Input::Document(Arc::clone(&document)));
        }
        trio.run();
        // They have greeted each other, and built what they build after a start.
        (0..10_000).for_each(|_| trio.tick());
        trio
    }

    fn input(&mut self, at: usize, input: Input) {
        self.nodes[at].0.handle(self.now, input);
    }

    /// Lets the nodes talk until they have nothing more to say. Returns the replies.
    fn run(&mut self) -> Vec<Reply> {
        let mut replies = Vec::new();
        loop {
            for (at, (node, _)) in self.nodes.iter_mut().enumerate() {
                while let Some(output) = node.poll_output() {
                    self.outputs.push((at, output));
                }
            }
            if self.outputs.is_empty() {
                return replies;
            }
            let mut outputs = std::mem::take(&mut self.outputs);
            for (at, output) in outputs.drain(..) {
                match output {
                    Output::Changed { .. } | Output::Hurry => {}
                    Output::Reply { reply, .. } => replies.push(reply),
                    Output::Send { to, envelope } => {
                        let index = usize::try_from(to.0 - 1).expect("one of three");
                        self.nodes[index].0.handle(self.now, Input::Peer(envelope));
                    }
                    Output::Datagram { to, packet } => {
                        let index = usize::try_from(to.0 - 1).expect("one of three");
                        let from = NodeId(u32::try_from(at + 1).expect("one of three"));
                        self.nodes[index].0.handle(self.now, Input::Datagram { from, packet });
                    }
                    Output::Commit(batch) => {
                        let engine = &self.nodes[at].1;
                        let sequence: Sequence = batch.sequence;
                        engine.submit(batch);
                        engine.commit_through(sequence);
                        self.nodes[at].0.handle(self.now, Input::Committed(sequence));
                    }
                }
            }
            self.outputs = outputs;
        }
    }

    /// Moves the clocks on, so that versions differ, and lets the nodes do what is due by then.
    fn tick(&mut self) {
        self.now = now_at(self.now.monotonic + Duration::from_micros(20));
        let mut is_due = false;
        for (node, _) in &mut self.nodes {
            if node.poll_timeout().is_some_and(|(at, _)| at <= self.now.monotonic) {
                node.handle_timeout(self.now);
                is_due = true;
            }
        }
        if is_due {
            self.run();
        }
    }

    fn request(&mut self, request: Request) -> Reply {
        self.tick();
        self.next_request += 1;
        let client = ClientTag(self.next_request);
        self.input(0, Input::Client { client, request });
        self.run().pop().expect("every request is replied to")
    }

    /// A put at quorum, handled by all three nodes to the end. Returns the context of what it wrote.
    ///
    /// # Panics
    ///
    /// If it is not acknowledged.
    pub fn put(&mut self, key: &Bytes, value: &Bytes, context: Option<Bytes>) -> Option<Bytes> {
        let request = RequestId(u128::from(self.next_request) + 1);
        let options = WriteOptions { request, context, ..WriteOptions::default() };
        let put = Put {
            keyspace: KEYSPACE,
            key: key.clone(),
            value: value.clone(),
            expires_unix_ms: None,
            options,
        };
        match self.request(Request::Put(put)) {
            Reply::Write(Ok(written)) => written.context,
            reply => panic!("{reply:?}"),
        }
    }

    /// A get at quorum, handled by the nodes that it asks. Returns the context.
    ///
    /// # Panics
    ///
    /// If it is not answered.
    pub fn get(&mut self, key: &Bytes) -> Bytes {
        let get = Get { keyspace: KEYSPACE, key: key.clone(), options: ReadOptions::default() };
        match self.request(Request::Get(get)) {
            Reply::Get(Ok(found)) => found.context,
            reply => panic!("{reply:?}"),
        }
    }
}

impl Default for Trio {
    fn default() -> Trio {
        Trio::new()
    }
}

/// What the clocks show so long after the machine's start.
fn now_at(monotonic: Duration) -> Now {
    let wall = 1_800_000_000_000 + u64::try_from(monotonic.as_millis()).unwrap_or(0);
    Now { monotonic, wall: UnixMillis(wall) }
}

/// A document of three nodes in one rack each.
fn document(ids: &[NodeId]) -> ClusterDocument {
    let member = |id: NodeId| {
        let (store, address) = (StoreId(u64::from(id.0)), format!("127.0.0.1:{}", 7400 + id.0));
        let rack = RackId(u16::try_from(id.0 - 1).expect("one of three"));
        Member::new(store, address, DatacenterId(0), rack, 100)
    };
    let members: BTreeMap<NodeId, Member> = ids.iter().map(|id| (*id, member(*id))).collect();
    let keyspace = Keyspace::new("bench", 3, ConflictPolicy::Siblings, Durability::Disk);
    let partitions = Partitions::new(64).expect("a power of two");
    let racks = ["r1", "r2", "r3"];
    ClusterDocument::founding(
        ClusterId(1),
        partitions,
        vec![Datacenter::new("local", racks)],
        members,
        BTreeMap::from([(KEYSPACE, keyspace)]),
    )
    .expect("a valid document")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Benchmarks are not run with the tests, and one that panics measures nothing.
    #[test]
    fn the_trio_answers() {
        let mut trio = Trio::new();
        let (key, value) = (Bytes::from_static(b"key"), Bytes::from_static(b"value"));
        let context = trio.put(&key, &value, None);
        assert_eq!(Some(trio.get(&key)), context);
        trio.put(&key, &value, context);
    }
}
