//! Golden bytes: every kind of frame between nodes, byte by byte. A test that fails here says that nodes of different
//! builds no longer understand each other.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use antientropy::version::{
    Actor, Context, CopyCount, Counter, Dot, LwwVersion, Record, UnixMillis, Value, VersionDigest,
};
use bytes::{Bytes, BytesMut};
use client::{Get, GetError, ReadOptions, Reply, Request, wire::FrameReader};
use node::{
    message::{
        AgreementMessage, Ballot, Envelope, ExchangeAnswer, Header, MergeOutcome, MergePath, MergeRefusal,
        Message, ReadAnswer, ReadKind, Recovery, Run, Standing, StartId, Tag,
    },
    storage::{ObjectKey, Sequence},
    wire::{PEER_MESSAGE_BYTES_MAX, PeerHello, PeerWelcome},
};
use ring::{
    ClusterDocument, ClusterId, ConflictPolicy, Datacenter, DatacenterId, Durability, Epoch, Keyspace,
    KeyspaceId, Member, NodeId, PartitionId, Partitions, RackId, StoreId, VoterId,
};

const TAG: Tag = Tag { operation: 0x0a0b, question: 0x0c0d };
const TAG_HEX: &str = "0000000000000a0b00000c0d";

fn header() -> Header {
    Header {
        from: NodeId(1),
        start: StartId(2),
        store: StoreId(3),
        synced: Sequence(4),
        epoch: Epoch(5),
        wall: UnixMillis(6),
        clock: Counter(7),
    }
}

const HEADER_HEX: &str = concat!(
    "00000001",         // from
    "0000000000000002", // start
    "0000000000000003", // store
    "0000000000000004", // synced
    "0000000000000005", // epoch
    "0000000000000006", // wall
    "0000000000000007", // clock
);

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The only body in a buffer that holds one frame.
fn only_body(out: BytesMut) -> Bytes {
    let mut frames = FrameReader::new(PEER_MESSAGE_BYTES_MAX);
    frames.push(out.freeze());
    let body = frames.next().expect("a good stream").expect("a whole frame");
    assert!(frames.is_between_frames());
    body
}

/// Pins a message: the byte that says its kind, and what follows the header.
#[track_caller]
fn pin(message: Message, kind: &str, says: &[&str]) {
    let envelope = Envelope { header: header(), message };
    let says = says.concat().replace(' ', "");
    let length = format!("{:08x}", 1 + HEADER_HEX.len() / 2 + says.len() / 2);
    let mut out = BytesMut::new();
    envelope.encode(&mut out);
    assert_eq!(hex(&out), [&length, kind, HEADER_HEX, &says].concat(), "{:?}", envelope.message);
    assert_eq!(Envelope::decode(only_body(out)), Ok(envelope));
}

fn object() -> ObjectKey {
    ObjectKey::new(KeyspaceId(9), b"a")
}

/// Keyspace, token and key; and their length before them.
const OBJECT_HEX: &str = "0000000d 00000009 17762fddd969a453 61";

fn record() -> Arc<Record> {
    let dot = Dot { counter: Counter(0x0102), actor: Actor(0xa0) };
    let version = LwwVersion::write(dot, &Context::new(), Some(Value::new("v")), CopyCount::DEFAULT);
    Arc::new(Record::Lww(version))
}

const RECORD_HEX: &str = concat!(
    "010280",                           // version, lww, copies: the keyspace's own
    "000000000000010200000000000000a0", // counter, actor
    "0000000000000000",                 // seen
    "01000176",                         // a value follows: flags, length, "v"
);

#[test]
fn the_first_frames_are_pinned() {
    let hello = PeerHello {
        version: 1,
        features: 2,
        cluster: Some(ClusterId(3)),
        node: NodeId(4),
        start: StartId(5),
    };
    let mut out = BytesMut::new();
    hello.encode(&mut out);
    let expected = "00000020 f0 0001 0000000000000002 010000000000000003 00000004 0000000000000005";
    assert_eq!(hex(&out), expected.replace(' ', ""));
    assert_eq!(PeerHello::decode(only_body(out)), Ok(hello));

    let welcome = PeerWelcome { version: 1, features: 2, cluster: None, node: NodeId(4), start: StartId(5) };
    let mut out = BytesMut::new();
    welcome.encode(&mut out);
    let expected = "00000018 f1 0001 0000000000000002 00 00000004 0000000000000005";
    assert_eq!(hex(&out), expected.replace(' ', ""));
    assert_eq!(PeerWelcome::decode(only_body(out)), Ok(welcome));
}

#[test]
fn greetings_are_pinned() {
    let recovery = Recovery {
        recovered: Sequence(8),
        lowest: Sequence(7),
        unconfirmed: vec![StartId(0x0101), StartId(0x0202)],
    };
    pin(
        Message::Hello {
            number: 0x55,
            cluster: Some(ClusterId(9)),
            recovery,
            voter: Some(VoterId(0x33)),
            digest: Some([0x44; 32]),
        },
        "01",
        &[
            "0000000000000055",                                                       // number
            "010000000000000009",                                                     // cluster
            "0000000000000008 0000000000000007",                                      // recovered, lowest
            "00000002 0000000000000101 0000000000000202",                             // unconfirmed
            "010000000000000033",                                                     // voter
            "01 4444444444444444 4444444444444444 4444444444444444 4444444444444444", // digest
        ],
    );
    let welcome = |went_back_from| Message::Welcome {
        start: StartId(8),
        number: 0x55,
        went_back_from,
        floor: Counter(7),
    };
    let (names, floor) = ("0000000000000008 0000000000000055", "0000000000000007");
    pin(welcome(Some(Sequence(9))), "02", &[names, "01 0000000000000009", floor]);
    pin(welcome(None), "02", &[names, "00", floor]);
}

/// The smallest document: one node with one partition.
#[test]
fn documents_are_pinned() {
    pin(Message::DocumentRequest, "03", &[]);
    let member = Member::new(StoreId(300), "h:1".to_owned(), DatacenterId(0), RackId(0), 100);
    let keyspace = Keyspace::new("k", 3, ConflictPolicy::LastWriteWins, Durability::Disk);
    let document = ClusterDocument::founding(
        ClusterId(1),
        Partitions::new(1).unwrap(),
        vec![Datacenter::new("d", ["r"])],
        BTreeMap::from([(NodeId(7), member)]),
        BTreeMap::from([(KeyspaceId(1), keyspace)]),
    );
    pin(
        Message::Document(Arc::new(document.unwrap())),
        "04",
        &[
            "01 01 01",                 // cluster, epoch, partitions
            "01 0164 01 0172",          // datacenters: name, racks
            "01 01 07 01",              // width, owners: node, gained
            "01 07 ac02 01 ac02",       // members: id, store, since when it is recorded, voter
            "03683a31",                 // address
            "00 00 64",                 // datacenter, rack, weight
            "01 01 016b 01 00 03 0101", // keyspaces: id, name, replication, conflict, durability
        ],
    );
}

#[test]
fn agreement_is_pinned() {
    let ballot = |counter, node, start| Ballot { counter, node: NodeId(node), start: StartId(start) };
    let outbid = AgreementMessage::Outbid { ballot: ballot(1, 2, 3), by: ballot(4, 5, 6) };
    pin(Message::Agreement(Box::new(outbid)), "0e", &["04 01 02 03 04 05 06"]);
}

#[test]
fn hints_are_pinned() {
    pin(Message::HintOffer { waiting: 0x0102 }, "0f", &["00000102"]);
    pin(Message::HintGrant { merges: 0x0304 }, "10", &["00000304"]);
}

#[test]
fn forwards_are_pinned() {
    let options = ReadOptions { timeout: Duration::ZERO, ..ReadOptions::default() };
    let get = Get { keyspace: KeyspaceId(9), key: "a".into(), options };
    let forward = Message::Forward {
        tag: TAG,
        request: Box::new(Request::Get(get)),
        remaining: Duration::from_nanos(0x0102),
    };
    pin(
        forward,
        "05",
        &[
            TAG_HEX,
            "0000000000000102",                                  // remaining
            "03 00000009 00000001 61 05 00 00 0000000000000000", // get
        ],
    );
    let reply = Reply::Get(Err(GetError::TimedOut { required: 2, answered: 1 }));
    pin(Message::Forwarded { tag: TAG, reply: Box::new(reply) }, "06", &[TAG_HEX, "04 02 02 01"]);
}

#[test]
fn merges_are_pinned() {
    let paths = [
        (MergePath::Write, "01"),
        (MergePath::ReadRepair, "02"),
        (MergePath::Hint, "03"),
        (MergePath::AntiEntropy, "04"),
        (MergePath::Movement, "05"),
        (MergePath::StandIn { target: NodeId(9) }, "0600000009"),
    ];
    for (durability, durability_hex) in [(Durability::Memory, "01"), (Durability::Disk, "02")] {
        for (path, path_hex) in paths {
            let (object, record, under) = (object(), record(), Counter(5));
            let merge = Message::Merge { tag: TAG, object, record, under, durability, path };
            let under = "0000000000000005";
            pin(merge, "07", &[TAG_HEX, OBJECT_HEX, durability_hex, path_hex, under, RECORD_HEX]);
        }
    }
    let outcomes = [
        (MergeOutcome::Applied { gained: Epoch(3) }, "01 0000000000000003"),
        (MergeOutcome::Refused(MergeRefusal::StaleEpoch), "02 01"),
        (MergeOutcome::Refused(MergeRefusal::NotOwner), "02 02"),
        (MergeOutcome::Refused(MergeRefusal::Mismatched), "02 03"),
        (MergeOutcome::Refused(MergeRefusal::Overloaded), "02 04"),
        (MergeOutcome::Refused(MergeRefusal::StorageFailed), "02 05"),
        (MergeOutcome::Refused(MergeRefusal::Late), "02 06"),
        (MergeOutcome::Refused(MergeRefusal::Behind { watermark: Counter(9) }), "02 07 0000000000000009"),
    ];
    for (outcome, code) in outcomes {
        pin(Message::Merged { tag: TAG, outcome }, "08", &[TAG_HEX, code]);
    }
}

#[test]
fn reads_are_pinned() {
    let reads = [(ReadKind::Data, Some(5), true, "01 0105 01"), (ReadKind::Digest, None, false, "02 00 00")];
    for (kind, n, durable, code) in reads {
        pin(
            Message::Read { tag: TAG, object: object(), kind, n, durable },
            "09",
            &[TAG_HEX, OBJECT_HEX, code],
        );
    }
    let digest = VersionDigest(*b"0123456789abcdef");
    let with_record = ["01 0000000000000006 01", RECORD_HEX].concat();
    let answers = [
        (ReadAnswer::Data(Some(record()), Counter(6)), with_record.as_str()),
        (ReadAnswer::Data(None, Counter(6)), "01 0000000000000006 00"),
        (ReadAnswer::Digest(digest), "02 30313233343536373839616263646566"),
        (ReadAnswer::Filling, "03"),
        (ReadAnswer::Refused, "04"),
        (ReadAnswer::StaleEpoch, "05"),
        (ReadAnswer::NotOwner, "06"),
    ];
    for (answer, code) in answers {
        pin(Message::Answer { tag: TAG, answer }, "0a", &[TAG_HEX, code]);
    }
}

#[test]
fn the_messages_of_exchanges_are_pinned() {
    let run = Run {
        partitions: 2,
        floor: Counter(3),
        lowest: Counter(4),
        watermark: Counter(5),
        promise: Counter(6),
        promise_epoch: Epoch(7),
        filling: 8,
    };
    let standing = Some(Standing { runs: vec![run] });
    let standing_hex = [
        "01 00000001 00000002",
        "0000000000000003 0000000000000004 0000000000000005",
        "0000000000000006 0000000000000007 0000000000000008",
    ]
    .concat();
    let question = |standing| Message::Exchange { tag: TAG, standing, question: "ab".into() };
    pin(question(None), "0b", &[TAG_HEX, "00", "00000002 6162"]);
    pin(question(standing.clone()), "0b", &[TAG_HEX, &standing_hex, "00000002 6162"]);
    let answer =
        |standing, answer| Message::ExchangeAnswer { tag: TAG, answer: ExchangeAnswer { standing, answer } };
    pin(answer(None, Some("ab".into())), "0c", &[TAG_HEX, "00", "01 00000002 6162"]);
    pin(answer(standing, None), "0c", &[TAG_HEX, &standing_hex, "00"]);
    let begun = Duration::from_nanos(258);
    let left_out = vec![PartitionId(1), PartitionId(3)];
    let ended = Message::ExchangeEnded { exchange: 9, is_complete: true, left_out, begun, differed: 3 };
    let left_out = "00000002 0001 0003";
    pin(ended, "11", &["0000000000000009 01", left_out, "0000000000000102 00000003"]);
    pin(Message::Declined { tag: TAG }, "0d", &[TAG_HEX]);
}
