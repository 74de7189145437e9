//! How a node begins and ends: one node, driven by hand, in circumstances that random search hit once in some hundred
//! thousand runs.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use antientropy::version::{
    Actor, Context, ContextKey, CopyCount, Counter, Dot, Record, SiblingSet, UnixMillis, Value,
};
use node::{
    Identity, Input, Node, Now, Output, Settings,
    message::{
        Envelope, Header, MergeOutcome, MergePath, Message, ReadAnswer, ReadKind, Recovery, StartId, Tag,
    },
    storage::{Batch, CrashDamage, MemoryEngine, ObjectKey, Sequence, Table, read_record},
};
use ring::{
    ClusterDocument, ClusterId, ConflictPolicy, Datacenter, DatacenterId, Durability, Epoch, Keyspace,
    KeyspaceId, Member, NodeId, PartitionId, Partitions, RackId, StoreId, VoterId,
};

const HERE: NodeId = NodeId(1);
const PEER: NodeId = NodeId(2);
const PARTITION: PartitionId = PartitionId(0);

/// A node and its disk.
struct Driver {
    disk: MemoryEngine,
    node: Node<MemoryEngine>,
    now: Now,
    starts: u8,
}

fn document() -> ClusterDocument {
    let member = |id: u32| {
        let (store, address) = (StoreId(u64::from(id)), format!("127.0.0.1:{id}"));
        Member::new(store, address, DatacenterId(0), RackId(0), 100)
    };
    let members: BTreeMap<NodeId, Member> = (1..=3).map(|id| (NodeId(id), member(id))).collect();
    let keyspace = Keyspace::new("carts", 3, ConflictPolicy::Siblings, Durability::Disk);
    let datacenters = vec![Datacenter::new("local", ["r1"])];
    let keyspaces = BTreeMap::from([(KeyspaceId(1), keyspace)]);
    let partitions = Partitions::new(1).expect("a power of two");
    ClusterDocument::founding(ClusterId(1), partitions, datacenters, members, keyspaces)
        .expect("a valid document")
}

fn open(disk: &MemoryEngine, now: Now, starts: u8) -> Node<MemoryEngine> {
    let identity = Identity { node: HERE, seeds: vec![PEER], formation: None, seed: [starts; 32] };
    Node::open(identity, Settings::new(ContextKey::new([7; 32])), disk.clone(), now)
}

/// What a greeting says.
#[derive(Debug, PartialEq, Eq)]
struct Greeting {
    start: StartId,
    number: u64,
    epoch: Epoch,
    voter: Option<VoterId>,
}

impl Driver {
    /// A founder, formed: its copy is whole.
    fn formed() -> Driver {
        let now = Now { monotonic: Duration::from_secs(1), wall: UnixMillis(1_800_000_000_000) };
        let disk = MemoryEngine::new(StoreId(1));
        let node = open(&disk, now, 1);
        let mut driver = Driver { disk, node, now, starts: 1 };
        driver.node.handle(now, Input::Document(Arc::new(document())));
        driver.commit_all();
        assert!(driver.node.copy_is_whole(PARTITION));
        driver
    }

    /// The power goes and comes back.
    fn restart(&mut self) {
        self.disk.crash(CrashDamage::default());
        self.disk.reopen();
        self.starts += 1;
        self.node = open(&self.disk, self.now, self.starts);
    }

    /// What the node wants done now: the batches, and who is sent what.
    fn outputs(&mut self) -> (Vec<Batch>, Vec<(NodeId, Envelope)>) {
        let (mut batches, mut sent) = (Vec::new(), Vec::new());
        while let Some(output) = self.node.poll_output() {
            match output {
                Output::Commit(batch) => batches.push(batch),
                Output::Send { to, envelope } => sent.push((to, envelope)),
                Output::Reply { .. } | Output::Changed { .. } | Output::Datagram { .. } | Output::Hurry => {}
            }
        }
        (batches, sent)
    }

    /// Commits whatever the node emits, until it emits nothing more.
    fn commit_all(&mut self) {
        loop {
            let (batches, _) = self.outputs();
            if batches.is_empty() {
                return;
            }
            batches.into_iter().for_each(|batch| self.disk.submit(batch));
            while let Some(sequence) = self.disk.commit_next() {
                self.node.handle(self.now, Input::Committed(sequence));
            }
        }
    }

    /// A message from the peer, under the first epoch.
    fn hear(&mut self, message: Message) {
        self.hear_under(Epoch(1), message);
    }

    /// A message from the peer, under some epoch.
    fn hear_under(&mut self, epoch: Epoch, message: Message) {
        let header = Header {
            from: PEER,
            start: StartId(77),
            store: StoreId(2),
            synced: Sequence(5),
            epoch,
            wall: self.now.wall,
            clock: Counter::at(self.now.wall),
        };
        self.node.handle(self.now, Input::Peer(Envelope { header, message }));
    }

    /// The peer says hello, so that it is listened to.
    fn hear_hello(&mut self) {
        self.hear(Message::Hello {
            number: 1,
            cluster: None,
            recovery: Recovery::default(),
            voter: Some(VoterId(2)),
            digest: None,
        });
    }

    /// What the node answers to a read of one copy.
    fn read(&mut self, epoch: Epoch) -> ReadAnswer {
        let tag = Tag { operation: 1, question: 1 };
        let object = ObjectKey::new(KeyspaceId(1), b"cart");
        self.hear_under(epoch, Message::Read { tag, object, kind: ReadKind::Data, n: None, durable: false });
        let (_, sent) = self.outputs();
        let answer = sent.into_iter().find_map(|(_, envelope)| match envelope.message {
            Message::Answer { answer, .. } => Some(answer),
            _ => None,
        });
        answer.expect("a read is answered")
    }

    /// What the node has said to greet the peer. Its batches are on their way.
    fn greetings(&mut self) -> Vec<Greeting> {
        let (batches, sent) = self.outputs();
        batches.into_iter().for_each(|batch| self.disk.submit(batch));
        let of = |(to, envelope): (NodeId, Envelope)| match envelope.message {
            Message::Hello { number, voter, .. } if to == PEER => {
                let Header { start, epoch, .. } = envelope.header;
                Some(Greeting { start, number, epoch, voter })
            }
            _ => None,
        };
        sent.into_iter().filter_map(of).collect()
    }

    /// The name of the node's present process and the number of its last greeting.
    fn greeting(&mut self) -> (StartId, u64) {
        let greetings = self.greetings();
        let last = greetings.last().expect("a node greets its peer");
        (last.start, last.number)
    }

    /// How the node greets the peer in so many tenths of a second, in which the peer is never silent.
    fn greetings_for(&mut self, tenths: u32) -> Vec<Greeting> {
        let mut said = Vec::new();
        for _ in 0..tenths {
            self.now.monotonic += Duration::from_millis(100);
            self.hear(Message::Declined { tag: Tag { operation: 1, question: 1 } });
            self.node.handle_timeout(self.now);
            said.extend(self.greetings());
        }
        said
    }

    fn is_told_that_its_store_went_back(&mut self) {
        let (start, number) = self.greeting();
        self.hear(Message::Welcome {
            start,
            number,
            went_back_from: Some(Sequence(99)),
            floor: Counter::ZERO,
        });
    }
}

/// P6. The peer's welcome came before its own hello; messages of strangers are not listened to, and the news that the
/// store had gone back was thrown away. The peer lost its disk before it could say it again, and nobody else knew.
#[test]
fn news_that_a_store_went_back_is_taken_from_a_peer_that_has_not_said_hello() {
    let mut driver = Driver::formed();
    driver.restart();
    assert!(driver.node.copy_is_whole(PARTITION));
    driver.is_told_that_its_store_went_back();
    assert!(!driver.node.copy_is_whole(PARTITION));
    driver.commit_all();
    driver.restart();
    assert!(!driver.node.copy_is_whole(PARTITION), "the mark is stored");
    let (_, sent) = driver.outputs();
    assert!(
        sent.iter().all(|(_, envelope)| envelope.header.synced > Sequence(99)),
        "and the numbers went on"
    );
}

/// A welcome that answers an earlier process says nothing about this one.
#[test]
fn a_welcome_of_an_earlier_process_is_not_taken() {
    let mut driver = Driver::formed();
    driver.restart();
    let (earlier, number) = driver.greeting();
    driver.restart();
    driver.hear(Message::Welcome {
        start: earlier,
        number,
        went_back_from: Some(Sequence(99)),
        floor: Counter::ZERO,
    });
    assert!(driver.node.copy_is_whole(PARTITION));
}

/// P8. A peer claimed to have seen this store come as far as numbers go; the number after it was none.
#[test]
fn news_that_no_store_can_have_given_rise_to_is_not_taken() {
    let mut driver = Driver::formed();
    driver.restart();
    let (start, number) = driver.greeting();
    driver.hear(Message::Welcome {
        start,
        number,
        went_back_from: Some(Sequence(u64::MAX)),
        floor: Counter::ZERO,
    });
    assert!(driver.node.copy_is_whole(PARTITION), "it says nothing about this store");
    assert_eq!(driver.node.counters().messages_ignored, 1);
    driver.node.handle(driver.now, Input::Document(Arc::new(document().successor())));
    driver.commit_all();
    assert_eq!(driver.node.document().map(|document| document.epoch), Some(Epoch(2)), "batches go on");
}

/// The batch with the mark of a filling copy was refused, a later one was not, and nothing else was to be written: the
/// mark waited for the next batch, and the stop for the mark.
#[test]
fn a_stop_ends_although_a_mark_was_refused() {
    let mut driver = Driver::formed();
    driver.restart();
    driver.is_told_that_its_store_went_back();
    let (first, _) = driver.outputs();
    driver.hear_hello();
    driver.node.handle(driver.now, Input::Document(Arc::new(document().successor())));
    let (second, _) = driver.outputs();
    assert!(first.len() == 1 && second.len() == 1, "two batches are on their way");
    first.into_iter().chain(second).for_each(|batch| driver.disk.submit(batch));
    let refused = driver.disk.fail_next().expect("the first is refused");
    driver.node.handle(driver.now, Input::CommitFailed(refused));
    let committed = driver.disk.commit_next().expect("the second is not");
    driver.node.handle(driver.now, Input::Committed(committed));
    driver.node.handle(driver.now, Input::Stop);
    driver.commit_all();
    assert!(driver.node.is_stopped());
    driver.restart();
    assert!(!driver.node.copy_is_whole(PARTITION), "and the mark is stored");
}

/// P7, seed 80001514. A node took a record in place of a replica; the record was there already, with a batch on its way.
/// That batch was refused in the same turn, the one with the hint was not, and the hint's batch was what the
/// acknowledgement waited for.
#[test]
fn a_stand_in_acknowledges_only_with_the_record_that_its_hint_is_about() {
    let mut driver = Driver::formed();
    driver.hear_hello();
    driver.commit_all();
    let (dot, mut set) = (Dot { actor: Actor(5), counter: Counter::at(driver.now.wall) }, SiblingSet::new());
    set.write(dot, &Context::new(), Some(Value::new("book")), CopyCount::DEFAULT);
    let (object, record) = (ObjectKey::new(KeyspaceId(1), b"cart"), Arc::new(Record::Siblings(set)));
    let merge = |question, path| Message::Merge {
        tag: Tag { operation: 1, question },
        object: object.clone(),
        record: Arc::clone(&record),
        under: Counter::ZERO,
        durability: Durability::Disk,
        path,
    };
    driver.hear(merge(1, MergePath::Write));
    let (first, _) = driver.outputs();
    first.into_iter().for_each(|batch| driver.disk.submit(batch));
    driver.hear(merge(2, MergePath::StandIn { target: NodeId(3) }));
    let refused = driver.disk.fail_next().expect("the first is refused");
    driver.node.handle(driver.now, Input::CommitFailed(refused));
    let (second, _) = driver.outputs();
    assert_eq!(second.len(), 1, "the hint is stored");
    second.into_iter().for_each(|batch| driver.disk.submit(batch));
    let committed = driver.disk.commit_next().expect("the second is not");
    driver.node.handle(driver.now, Input::Committed(committed));
    let (_, sent) = driver.outputs();
    let is_applied = |(_, envelope): &(NodeId, Envelope)| {
        matches!(envelope.message, Message::Merged { outcome: MergeOutcome::Applied { .. }, .. })
    };
    assert!(sent.iter().any(is_applied), "it is acknowledged");
    assert_eq!(read_record(&driver.disk, &object), Ok(Some(Record::clone(&record))), "and there");
}

/// P6. A disk was replaced and its node readmitted; then the old disk went back in. Its mark said whole, and nobody
/// asked whether the document records that store.
#[test]
fn a_store_that_the_document_does_not_record_answers_nothing() {
    let mut driver = Driver::formed();
    driver.hear_hello();
    let (start, number) = driver.greeting();
    driver.hear(Message::Welcome { start, number, went_back_from: None, floor: Counter::ZERO });
    driver.node.handle_timeout(Now { monotonic: Duration::from_secs(60), ..driver.now });
    assert_eq!(
        driver.read(Epoch(1)),
        ReadAnswer::Data(None, Counter::ZERO),
        "it is whole, and holds nothing"
    );
    let replaced = document().readmit(HERE, StoreId(11), VoterId(11));
    driver.node.handle(driver.now, Input::Document(Arc::new(replaced)));
    driver.commit_all();
    assert_eq!(driver.read(Epoch(2)), ReadAnswer::Filling);
    assert!(!driver.node.copy_is_whole(PARTITION));
}

/// P6. A disk was replaced by another, and that by the first again. Its mark said whole, for the very store and gain
/// that the document records; but what the other disk had acknowledged in the meantime was never on it.
#[test]
fn a_store_that_is_recorded_again_is_not_whole_by_its_old_mark() {
    let replaced = document().readmit(HERE, StoreId(11), VoterId(11));
    let back = Arc::new(replaced.readmit(HERE, StoreId(1), VoterId(1)));
    for loses_document in [false, true] {
        let mut driver = Driver::formed();
        if loses_document {
            assert!(driver.disk.rot(Table::Meta, b"document", 20, 3));
        }
        driver.restart();
        driver.hear_hello();
        driver.hear_under(Epoch(3), Message::Document(Arc::clone(&back)));
        driver.commit_all();
        assert_eq!(driver.node.document().map(|document| document.epoch), Some(Epoch(3)));
        assert!(!driver.node.copy_is_whole(PARTITION), "with its document lost: {loses_document}");
    }
}

/// P6. A founder's copies are whole when it first adopts the document, because there is nothing that they could lack.
/// A founder whose stored document had rotted asked a peer for it, and took its filling copies for a founder's.
#[test]
fn a_founder_that_lost_its_document_is_no_new_founder() {
    let mut driver = Driver::formed();
    driver.restart();
    driver.is_told_that_its_store_went_back();
    driver.commit_all();
    assert!(!driver.node.copy_is_whole(PARTITION));
    assert!(driver.disk.rot(Table::Meta, b"document", 20, 3));
    driver.restart();
    assert!(driver.node.document().is_none());
    driver.hear_hello();
    driver.hear(Message::Document(Arc::new(document())));
    driver.commit_all();
    assert!(driver.node.document().is_some());
    assert!(!driver.node.copy_is_whole(PARTITION));
}

/// Calm seed 20 of the simulator: a node had asked for one document when it heard of the next. It did not ask for that
/// one so soon; what waited for it was all that anyone had to say, and half a second later its peers took it for dead.
#[test]
fn a_newer_document_is_asked_for_at_once_and_until_it_comes() {
    let mut driver = Driver::formed();
    driver.hear(Message::Hello {
        number: 1,
        cluster: None,
        recovery: Recovery::default(),
        voter: None,
        digest: None,
    });
    driver.commit_all();
    let asks = |driver: &mut Driver| {
        let (batches, sent) = driver.outputs();
        batches.into_iter().for_each(|batch| driver.disk.submit(batch));
        sent.iter().filter(|(to, sent)| *to == PEER && sent.message == Message::DocumentRequest).count()
    };
    driver.hear_under(Epoch(2), Message::Declined { tag: Tag { operation: 1, question: 1 } });
    assert_eq!(asks(&mut driver), 1);
    driver.hear_under(Epoch(2), Message::Document(Arc::new(document().successor())));
    driver.commit_all();
    assert_eq!(driver.node.document().map(|document| document.epoch), Some(Epoch(2)));
    driver.hear_under(Epoch(3), Message::Declined { tag: Tag { operation: 1, question: 1 } });
    assert_eq!(asks(&mut driver), 1, "however lately another was asked for");
    for _ in 0..3 {
        driver.now.monotonic += Duration::from_millis(200);
        assert!(driver.node.poll_timeout().is_some_and(|(at, _)| at <= driver.now.monotonic));
        driver.node.handle_timeout(driver.now);
        assert_eq!(asks(&mut driver), 1, "the request may have been lost, and nobody else may speak");
    }
}

/// The disk is hurried for what is acknowledged when it is synced, and for nothing else: a write that is acknowledged
/// from memory can wait for others to share its sync.
#[test]
fn the_disk_is_hurried_only_for_what_waits_for_it() {
    let mut driver = Driver::formed();
    driver.hear_hello();
    driver.commit_all();
    let mut merges = 0;
    let mut merge = |driver: &mut Driver, durability| {
        merges += 1;
        let mut set = SiblingSet::new();
        let dot = Dot { counter: Counter(driver.now.wall.0 << 16 | merges), actor: Actor(9) };
        set.write(dot, &Context::new(), Some(Value::new("value")), CopyCount::DEFAULT);
        driver.hear(Message::Merge {
            tag: Tag { operation: 1, question: 1 },
            object: ObjectKey::new(KeyspaceId(1), &merges.to_be_bytes()),
            record: Arc::new(Record::Siblings(set)),
            under: Counter::ZERO,
            durability,
            path: MergePath::Write,
        });
        let (mut batches, mut is_hurried, mut is_acknowledged) = (Vec::new(), false, false);
        while let Some(output) = driver.node.poll_output() {
            match output {
                Output::Commit(batch) => batches.push(batch),
                Output::Hurry => is_hurried = true,
                Output::Send { envelope, .. } => {
                    is_acknowledged |= matches!(envelope.message, Message::Merged { .. });
                }
                Output::Reply { .. } | Output::Changed { .. } | Output::Datagram { .. } => {}
            }
        }
        assert_eq!(batches.len(), 1);
        driver.disk.submit(batches.remove(0));
        (is_hurried, is_acknowledged)
    };
    assert_eq!(
        merge(&mut driver, Durability::Memory),
        (true, false),
        "a mark has to be synced before the first"
    );
    while let Some(sequence) = driver.disk.commit_next() {
        driver.node.handle(driver.now, Input::Committed(sequence));
    }
    driver.outputs();
    assert_eq!(merge(&mut driver, Durability::Memory), (false, true));
    assert_eq!(merge(&mut driver, Durability::Disk), (true, false));
}

/// Seed 7704511 of the simulator: a founder's disk could not be read when it said hello, so that it named no memory of
/// votes; it named none later either, for the two of them had enough to say to each other, and no cluster was formed.
#[test]
fn a_memory_of_votes_that_could_not_be_read_at_first_is_named_when_it_can_be() {
    let mut driver = Driver::formed();
    driver.disk.fail_reads(true);
    driver.starts += 1;
    driver.node = open(&driver.disk, driver.now, driver.starts);
    driver.hear_hello();
    let said = driver.greetings();
    assert!(!said.is_empty() && said.iter().all(|greeting| greeting.voter.is_none()), "{said:?}");
    driver.hear(Message::Welcome {
        start: said[0].start,
        number: 1,
        went_back_from: None,
        floor: Counter::ZERO,
    });
    driver.disk.fail_reads(false);
    let said = driver.greetings_for(30);
    assert!(said.iter().any(|greeting| greeting.voter.is_some()), "{said:?}");
}

/// Seed 1062649852198879575 of the simulator, P7. A store that had gone back learned from the document that the name it had
/// drawn for its memory of votes came too early, and drew another. The greeting that said so was lost, and a welcome to the
/// one before it came after it: the peer counted as told, and recorded the node's vote no more.
#[test]
fn news_is_told_again_if_only_an_earlier_greeting_is_welcomed() {
    let mut driver = Driver::formed();
    driver.restart();
    driver.hear_hello();
    let (start, last) = driver.greeting();
    driver.node.handle(driver.now, Input::Document(Arc::new(document().successor())));
    // What it says of the second document is lost.
    driver.commit_all();
    assert_eq!(driver.node.document().map(|document| document.epoch), Some(Epoch(2)));
    let said_after = |driver: &mut Driver, number| {
        driver.hear(Message::Welcome { start, number, went_back_from: None, floor: Counter::ZERO });
        driver.greetings_for(8)
    };
    let again = said_after(&mut driver, last);
    let &Greeting { number, epoch, .. } = again.last().expect("what is lost is said again");
    assert_eq!(epoch, Epoch(2));
    assert_eq!(said_after(&mut driver, number), [], "it has heard");
}

/// Seed 52017781 of the simulator, P8. A node could not read its document when it started, and took the one that a peer had,
/// which was older, and wrote it over its own. A keyspace was said to be known to every node that was up; it knew it no more.
#[test]
fn an_older_document_does_not_take_the_place_of_one_that_cannot_be_read() {
    let epoch = |driver: &Driver| driver.node.document().map(|document| document.epoch);
    let restart_unreadable = || {
        let mut driver = Driver::formed();
        driver.node.handle(driver.now, Input::Document(Arc::new(document().successor())));
        driver.commit_all();
        assert_eq!(epoch(&driver), Some(Epoch(2)));
        driver.disk.fail_reads(true);
        driver.restart();
        driver.hear_hello();
        assert_eq!(epoch(&driver), None);
        driver
    };
    let hear_the_older_one_for = |driver: &mut Driver, tenths: u32| {
        for _ in 0..tenths {
            driver.now.monotonic += Duration::from_millis(100);
            driver.hear(Message::Document(Arc::new(document())));
            driver.commit_all();
        }
    };
    let mut driver = restart_unreadable();
    hear_the_older_one_for(&mut driver, 90);
    assert_eq!(epoch(&driver), None, "it waits for its own");
    driver.disk.fail_reads(false);
    driver.now.monotonic += Duration::from_millis(300);
    let (due, _) = driver.node.poll_due().expect("it reads again");
    assert!(due <= driver.now.monotonic);
    driver.node.handle_timeout(driver.now);
    assert_eq!(epoch(&driver), Some(Epoch(2)));
    let mut driver = restart_unreadable();
    hear_the_older_one_for(&mut driver, 110);
    assert_eq!((epoch(&driver), driver.node.counters().documents_given_up), (Some(Epoch(1)), 1));
}
