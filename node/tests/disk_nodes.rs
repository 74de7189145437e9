//! Three nodes over durable stores, one of whose disks is not what it was: the node notices, and nothing that was
//! acknowledged is lost.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "files and threads are what is tested"
)]
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "these are tests")]

mod disk_rig;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{self, Receiver},
    },
    time::Duration,
};

use antientropy::version::{ContextKey, UnixMillis};
use bytes::Bytes;
use client::{Get, Level, Put, ReadOptions, Reply, Request, RequestId, WriteOptions};
use disk_rig::Scratch;
use node::{
    ClientTag, Identity, Input, Node, Now, Output, Settings,
    shell::disk::{CommitEvent, CommitterHandle, DiskOptions, DiskStore, OpenError, salvage},
    storage::{ObjectKey, Store},
};
use ring::{
    ClusterDocument, ClusterId, ConflictPolicy, Datacenter, DatacenterId, Durability, Keyspace, KeyspaceId,
    Member, NodeId, PartitionId, Partitions, RackId, StoreId, VoterId,
};

const KEYSPACE: KeyspaceId = KeyspaceId(1);
const PARTITION: PartitionId = PartitionId(0);
/// The node whose disk is damaged.
const HURT: usize = 0;

/// A running node, and its committer.
struct Process {
    node: Node<DiskStore>,
    committer: CommitterHandle,
    events: Receiver<CommitEvent>,
}

/// Three machines in one thread.
struct Cluster {
    scratch: Scratch,
    processes: Vec<Option<Process>>,
    now: Now,
    starts: u8,
    requests: u64,
    replies: BTreeMap<ClientTag, Reply>,
}

fn options(index: usize) -> DiskOptions {
    DiskOptions { free_bytes_min: 0, ..DiskOptions::new(id(index)) }
}

fn id(index: usize) -> NodeId {
    NodeId(u32::try_from(index).unwrap() + 1)
}

fn document(stores: &[StoreId]) -> ClusterDocument {
    let member = |(index, store): (usize, &StoreId)| {
        let address = format!("127.0.0.1:{}", index + 1);
        let member = Member::new(*store, address, DatacenterId(0), RackId(0), 100);
        (id(index), member)
    };
    let members = stores.iter().enumerate().map(member).collect();
    let keyspace = Keyspace::new("carts", 3, ConflictPolicy::Siblings, Durability::Disk);
    ClusterDocument::founding(
        ClusterId(1),
        Partitions::new(1).unwrap(),
        vec![Datacenter::new("local", ["r1"])],
        members,
        BTreeMap::from([(KEYSPACE, keyspace)]),
    )
    .unwrap()
}

impl Cluster {
    /// Three founders that have formed and hold a few acknowledged values.
    fn formed(name: &str) -> Cluster {
        let now = Now { monotonic: Duration::from_secs(1), wall: UnixMillis(1_800_000_001_000) };
        let mut cluster = Cluster {
            scratch: Scratch::in_memory(name),
            processes: vec![None, None, None],
            now,
            starts: 0,
            requests: 0,
            replies: BTreeMap::new(),
        };
        (0..3).for_each(|index| cluster.start(index).unwrap());
        let stores: Vec<StoreId> = cluster.nodes().map(|node| node.store().id()).collect();
        cluster.learn(&document(&stores));
        for number in 0..20 {
            cluster.put(number);
        }
        assert!(cluster.nodes().all(|node| node.copy_is_whole(PARTITION)));
        cluster
    }

    fn dir(&self, index: usize) -> PathBuf {
        self.scratch.join(&format!("store{index}"))
    }

    fn node(&self, index: usize) -> &Node<DiskStore> {
        &self.processes[index].as_ref().unwrap().node
    }

    fn nodes(&self) -> impl Iterator<Item = &Node<DiskStore>> {
        self.processes.iter().flatten().map(|process| &process.node)
    }

    fn start(&mut self, index: usize) -> Result<(), OpenError> {
        self.starts += 1;
        let opened = DiskStore::open(&self.dir(index), &options(index))?;
        let (send, events) = mpsc::channel();
        let committer = opened.committer.start(move |event| {
            let _ = send.send(event);
        });
        let (node, seeds, seed) = (id(index), (0..3).map(id).collect(), [self.starts; 32]);
        let identity = Identity { node, seeds, seed, formation: None };
        let settings = Settings::new(ContextKey::new([7; 32]));
        let node = Node::open(identity, settings, opened.store, self.now);
        self.processes[index] = Some(Process { node, committer, events });
        Ok(())
    }

    /// The process ends without a word.
    fn kill(&mut self, index: usize) {
        self.processes[index] = None;
    }

    fn learn(&mut self, document: &ClusterDocument) {
        for index in 0..self.processes.len() {
            self.input(index, Input::Document(Arc::new(document.clone())));
        }
        self.run(Duration::ZERO);
    }

    fn input(&mut self, index: usize, input: Input) {
        if let Some(process) = &mut self.processes[index] {
            process.node.handle(self.now, input);
        }
    }

    /// Time passes, by both clocks.
    fn pass(&mut self, time: Duration) {
        self.now.monotonic += time;
        self.now.wall =
            UnixMillis(1_800_000_000_000 + u64::try_from(self.now.monotonic.as_millis()).unwrap());
    }

    /// Does what the nodes want done, until they want nothing more, and goes on so for some time.
    fn run(&mut self, time: Duration) {
        let end = self.now.monotonic + time;
        loop {
            while self.turn() {}
            let due = self.nodes().filter_map(|node| node.poll_timeout()).map(|(at, _)| at).min();
            let Some(due) = due.filter(|due| *due <= end) else { break };
            let passed = due.saturating_sub(self.now.monotonic) + Duration::from_micros(1);
            self.pass(passed);
            for process in self.processes.iter_mut().flatten() {
                process.node.handle_timeout(self.now);
            }
        }
        self.pass(end.saturating_sub(self.now.monotonic));
    }

    /// Does what every node wants done now. Whether there was anything.
    fn turn(&mut self) -> bool {
        let mut is_busy = false;
        for index in 0..self.processes.len() {
            while let Some(output) =
                self.processes[index].as_mut().and_then(|process| process.node.poll_output())
            {
                is_busy = true;
                match output {
                    Output::Changed { .. } => panic!("nobody asked for a change"),
                    Output::Reply { client, reply } => {
                        self.replies.insert(client, reply);
                    }
                    Output::Send { to, envelope } => {
                        let to = usize::try_from(to.0).unwrap() - 1;
                        self.input(to, Input::Peer(envelope));
                    }
                    Output::Datagram { .. } | Output::Hurry => {}
                    Output::Commit(batch) => {
                        let sequence = batch.sequence;
                        let process = self.processes[index].as_mut().unwrap();
                        process.committer.submit(batch).unwrap();
                        match process.events.recv().unwrap() {
                            CommitEvent::Committed(committed) => assert_eq!(committed, sequence),
                            event => panic!("{event:?}"),
                        }
                        self.input(index, Input::Committed(sequence));
                    }
                }
            }
        }
        is_busy
    }

    fn request(&mut self, index: usize, request: Request) -> Reply {
        self.requests += 1;
        let client = ClientTag(self.requests);
        self.input(index, Input::Client { client, request });
        self.run(Duration::from_secs(3));
        self.replies.remove(&client).unwrap()
    }

    /// A put that all three replicas acknowledge.
    fn put(&mut self, number: usize) {
        let request = RequestId(u128::try_from(number).unwrap() + 1);
        let options = WriteOptions { request, level: Level::All, ..WriteOptions::default() };
        let (key, value) = (key(number), Bytes::from(format!("value{number}")));
        let put = Put { keyspace: KEYSPACE, key, value, expires_unix_ms: None, options };
        match self.request(number % 3, Request::Put(put)) {
            Reply::Write(Ok(_)) => {}
            reply => panic!("{reply:?}"),
        }
    }

    /// Whether a read at quorum through a node finds what was put.
    fn finds(&mut self, index: usize, number: usize) -> bool {
        let get = Get { keyspace: KEYSPACE, key: key(number), options: ReadOptions::default() };
        match self.request(index, Request::Get(get)) {
            Reply::Get(Ok(found)) => {
                found.values.iter().any(|value| value.bytes == format!("value{number}").as_bytes())
            }
            reply => panic!("{reply:?}"),
        }
    }

    /// Every acknowledged value is found through every node, and held by every node itself.
    fn assert_all_there(&mut self, count: usize) {
        for number in 0..count {
            for index in 0..3 {
                assert!(self.finds(index, number), "key {number} through node {index}");
                let object = ObjectKey::new(KEYSPACE, &key(number));
                assert!(self.node(index).record(&object).unwrap().is_some(), "key {number} at node {index}");
            }
        }
    }

    fn journal(&self, index: usize) -> PathBuf {
        let entries = fs::read_dir(self.dir(index).join("engine")).unwrap();
        let mut paths = entries.map(|entry| entry.unwrap().path());
        paths.find(|path| path.extension().is_some_and(|end| end == "jnl")).unwrap()
    }

    /// The bytes of a journal, without the room that is reserved behind them, and where its batches end.
    fn batches(&self, index: usize) -> (Vec<u8>, Vec<usize>) {
        let bytes = fs::read(self.journal(index)).unwrap();
        let ends = bytes.windows(4).enumerate().filter(|(_, window)| window == b"FJL\x03");
        let ends: Vec<usize> = ends.map(|(at, _)| at + 4).collect();
        (bytes[..*ends.last().unwrap()].to_vec(), ends)
    }
}

fn key(number: usize) -> Bytes {
    Bytes::from(format!("cart{number}"))
}

/// The crash came while a batch was being written. Nobody was told of it, and nothing is missing.
#[test]
fn a_torn_tail_costs_nothing_and_raises_no_alarm() {
    let mut cluster = Cluster::formed("torn");
    cluster.kill(HURT);
    let (bytes, ends) = cluster.batches(HURT);
    let last_two = &bytes[ends[ends.len() - 3]..];
    // The beginning of a batch, from anywhere.
    let torn = [&bytes, &last_two[..last_two.len() / 3]].concat();
    fs::write(cluster.journal(HURT), torn).unwrap();
    cluster.start(HURT).unwrap();
    cluster.run(Duration::from_secs(5));
    assert!(cluster.node(HURT).copy_is_whole(PARTITION));
    assert_eq!(cluster.nodes().map(|node| node.counters().copies_filled).sum::<u64>(), 0);
    cluster.put(20);
    cluster.assert_all_there(21);
}

/// P6. The disk forgot the end of what it had synced. The node cannot know; its peers do.
#[test]
fn a_truncated_log_is_noticed_by_the_peers_and_filled_again() {
    let mut cluster = Cluster::formed("truncated");
    cluster.kill(HURT);
    let (_, ends) = cluster.batches(HURT);
    let journal = File::options().write(true).open(cluster.journal(HURT)).unwrap();
    journal.set_len(u64::try_from(ends[ends.len() - 8]).unwrap()).unwrap();
    cluster.start(HURT).unwrap();
    let held = (0..20).filter(|number| {
        let object = ObjectKey::new(KEYSPACE, &key(*number));
        cluster.node(HURT).record(&object).unwrap().is_some()
    });
    assert!(held.count() < 20, "something is missing");
    while cluster.turn() {}
    let counters = *cluster.node(HURT).counters();
    assert_eq!((counters.store_went_back, counters.copies_filled), (1, 1));
    cluster.run(Duration::from_secs(5));
    assert_eq!(cluster.node(HURT).counters().copies_made_whole, 1);
    assert!(cluster.node(HURT).copy_is_whole(PARTITION));
    cluster.put(20);
    cluster.assert_all_there(21);
}

/// P6. A bit flipped in the last batch: nothing on the disk says that it had been synced.
#[test]
fn a_flipped_bit_in_the_last_batch_is_noticed_by_the_peers() {
    let mut cluster = Cluster::formed("last");
    // The peers have to have heard of the last batch.
    cluster.run(Duration::from_secs(2));
    cluster.kill(HURT);
    let (mut bytes, ends) = cluster.batches(HURT);
    bytes[ends[ends.len() - 2] + 30] ^= 4;
    fs::write(cluster.journal(HURT), bytes).unwrap();
    cluster.start(HURT).unwrap();
    while cluster.turn() {}
    let counters = *cluster.node(HURT).counters();
    assert_eq!((counters.store_went_back, counters.copies_filled), (1, 1));
    cluster.run(Duration::from_secs(5));
    assert!(cluster.node(HURT).copy_is_whole(PARTITION));
    cluster.assert_all_there(20);
}

/// P6. A bit flipped in the middle: later batches say that it had been synced. The store does not open; salvaged, it is
/// another store, which answers nothing until the cluster has readmitted it and its peers have filled it.
#[test]
fn a_flipped_bit_in_the_log_is_noticed_by_the_store_itself() {
    let mut cluster = Cluster::formed("flipped");
    let document = cluster.node(1).document().unwrap().clone();
    cluster.kill(HURT);
    let (mut bytes, ends) = cluster.batches(HURT);
    bytes[ends[ends.len() / 2] + 30] ^= 4;
    fs::write(cluster.journal(HURT), bytes).unwrap();
    let error = cluster.start(HURT).unwrap_err();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
    let report = salvage(&cluster.dir(HURT), &options(HURT)).unwrap();
    assert!(report.records_kept > 0 && report.journal_bytes_lost > 0);
    cluster.start(HURT).unwrap();
    cluster.run(Duration::from_secs(3));
    assert_eq!(cluster.node(HURT).store().id(), report.store);
    assert!(!cluster.node(HURT).copy_is_whole(PARTITION));
    assert!(cluster.finds(HURT, 3), "its peers answer");
    cluster.learn(&document.readmit(id(HURT), report.store, VoterId::first_of(report.store)));
    cluster.run(Duration::from_secs(10));
    assert!(cluster.node(HURT).copy_is_whole(PARTITION));
    cluster.put(20);
    cluster.assert_all_there(21);
}
