//! Golden bytes: every kind of frame of the public protocol, byte by byte. A test that fails here says that clients
//! and nodes of different builds no longer understand each other.

use std::{collections::BTreeMap, time::Duration};

use bytes::{Bytes, BytesMut};
use client::{
    Access, Delete, DoubtCause, Freshness, Get, GetError, GetReply, Level, LevelError, Limit, Put,
    ReadOptions, ReadRepair, Refusal, Reply, Request, RequestId, ReturnedValue, Version, WriteError,
    WriteOptions, WriteReply,
    wire::{
        ClientHello, ClientMessage, ControlError, ControlReply, ControlRequest, CopyState, FrameReader,
        HeldRecord, HeldVersion, KeysPage, MESSAGE_BYTES_MAX, NewKeyspace, NodeStatus, NodeVitals,
        PeerStatus, ReplicaView, RequestVitals, ServerMessage, ServerWelcome, SyncStatus, decode_reply,
        decode_request, encode_reply, encode_request,
    },
};
use ring::{
    ClusterDocument, ClusterId, ConflictPolicy, Datacenter, DatacenterId, Durability, Epoch, KeyspaceId,
    Member, NodeId, PartitionId, Partitions, RackId, StoreId,
};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The only body in a buffer that holds one frame.
fn only_body(out: BytesMut) -> Bytes {
    let mut frames = FrameReader::new(MESSAGE_BYTES_MAX);
    frames.push(out.freeze());
    let body = frames.next().expect("a good stream").expect("a whole frame");
    assert!(frames.is_between_frames());
    body
}

#[track_caller]
fn pin_client(message: &ClientMessage, expected: &[&str]) {
    let mut out = BytesMut::new();
    message.encode(&mut out);
    assert_eq!(hex(&out), expected.concat());
    assert_eq!(ClientMessage::decode(only_body(out)).as_ref(), Ok(message));
}

#[track_caller]
fn pin_server(message: &ServerMessage, expected: &[&str]) {
    let mut out = BytesMut::new();
    message.encode(&mut out);
    assert_eq!(hex(&out), expected.concat());
    assert_eq!(ServerMessage::decode(only_body(out)).as_ref(), Ok(message));
}

#[track_caller]
fn pin_request(request: &Request, expected: &str) {
    let mut out = BytesMut::new();
    encode_request(request, &mut out);
    assert_eq!(hex(&out), expected.replace(' ', ""), "{request:?}");
    assert_eq!(decode_request(&mut out.freeze()).as_ref(), Ok(request));
}

#[track_caller]
fn pin_reply(reply: &Reply, expected: &str) {
    let mut out = BytesMut::new();
    encode_reply(reply, &mut out);
    assert_eq!(hex(&out), expected.replace(' ', ""), "{reply:?}");
    assert_eq!(decode_reply(&mut out.freeze()).as_ref(), Ok(reply));
}

#[test]
fn greetings_are_pinned() {
    pin_client(
        &ClientMessage::Hello(ClientHello { version: 1, features: 0x0203 }),
        &[
            "0000000b",         // length
            "01",               // hello
            "0001",             // version
            "0000000000000203", // features
        ],
    );
    pin_server(
        &ServerMessage::Welcome(ServerWelcome {
            version: 1,
            features: 2,
            node: NodeId(3),
            cluster: Some(ClusterId(4)),
            epoch: Epoch(5),
            access: Access::Write,
        }),
        &[
            "00000021",           // length
            "01",                 // welcome
            "0001",               // version
            "0000000000000002",   // features
            "00000003",           // node
            "010000000000000004", // cluster
            "0000000000000005",   // epoch
            "02",                 // access
        ],
    );
}

#[test]
fn a_put_is_pinned() {
    let put = Put {
        keyspace: KeyspaceId(7),
        key: "key".into(),
        value: "value".into(),
        expires_unix_ms: Some(0x0102),
        options: WriteOptions {
            request: RequestId(0x0304),
            context: Some("ctx".into()),
            seen: Some(0x0506),
            level: Level::Count(4),
            n: Some(5),
            durability: Some(Durability::Memory),
            is_sloppy: true,
            timeout: Duration::from_millis(250),
        },
    };
    pin_client(
        &ClientMessage::Request { id: 9, request: Request::Put(put) },
        &[
            "00000057",                         // length
            "02",                               // request
            "0000000000000009",                 // id
            "01",                               // put
            "00000007",                         // keyspace
            "000000036b6579",                   // "key"
            "0000000576616c7565",               // "value"
            "010000000000000102",               // expires
            "00000000000000000000000000000304", // request
            "0100000003637478",                 // context: "ctx"
            "010000000000000506",               // seen
            "0a04",                             // level
            "0105",                             // n
            "0101",                             // durability
            "01",                               // sloppy
            "000000000ee6b280",                 // timeout
        ],
    );
}

#[test]
fn a_delete_and_a_get_are_pinned() {
    let options = WriteOptions { request: RequestId(1), timeout: Duration::ZERO, ..WriteOptions::default() };
    let delete = Delete { keyspace: KeyspaceId(7), key: "k".into(), options };
    pin_client(
        &ClientMessage::Request { id: 9, request: Request::Delete(delete) },
        &[
            "00000031",                         // length
            "02",                               // request
            "0000000000000009",                 // id
            "02",                               // delete
            "00000007",                         // keyspace
            "000000016b",                       // "k"
            "00000000000000000000000000000001", // request
            "0000",                             // no context, nothing seen
            "05",                               // level
            "0000",                             // neither n nor durability
            "00",                               // strict
            "0000000000000000",                 // timeout
        ],
    );
    let options = ReadOptions {
        level: Level::LocalOne,
        n: Some(3),
        read_repair: Some(ReadRepair::Blocking),
        timeout: Duration::from_nanos(0x0102),
    };
    let get = Get { keyspace: KeyspaceId(7), key: "k".into(), options };
    pin_client(
        &ClientMessage::Request { id: 9, request: Request::Get(get) },
        &[
            "00000020",         // length
            "02",               // request
            "0000000000000009", // id
            "03",               // get
            "00000007",         // keyspace
            "000000016b",       // "k"
            "07",               // level
            "0103",             // n
            "0103",             // read repair
            "0000000000000102", // timeout
        ],
    );
}

/// The code of a level is the second field of a get without a key, after kind, keyspace and the key's length.
#[test]
fn levels_and_modes_of_read_repair_are_pinned() {
    let levels = [
        (Level::Any, "01"),
        (Level::One, "02"),
        (Level::Two, "03"),
        (Level::Three, "04"),
        (Level::Quorum, "05"),
        (Level::All, "06"),
        (Level::LocalOne, "07"),
        (Level::LocalQuorum, "08"),
        (Level::EachQuorum, "09"),
        (Level::Count(0), "0a00"),
        (Level::Count(255), "0aff"),
    ];
    let get = |options| Request::Get(Get { keyspace: KeyspaceId(1), key: Bytes::new(), options });
    for (level, code) in levels {
        let options = ReadOptions { level, timeout: Duration::ZERO, ..ReadOptions::default() };
        pin_request(&get(options), &format!("03 00000001 00000000 {code} 00 00 0000000000000000"));
    }
    let modes = [(ReadRepair::Background, "01"), (ReadRepair::Off, "02"), (ReadRepair::Blocking, "03")];
    for (mode, code) in modes {
        let options =
            ReadOptions { read_repair: Some(mode), timeout: Duration::ZERO, ..ReadOptions::default() };
        pin_request(&get(options), &format!("03 00000001 00000000 05 00 01{code} 0000000000000000"));
    }
    for (durability, code) in [(Durability::Memory, "01"), (Durability::Disk, "02")] {
        let options = WriteOptions {
            request: RequestId(0),
            durability: Some(durability),
            timeout: Duration::ZERO,
            ..WriteOptions::default()
        };
        let delete = Request::Delete(Delete { keyspace: KeyspaceId(1), key: Bytes::new(), options });
        let zeros = "0".repeat(32);
        pin_request(
            &delete,
            &format!("02 00000001 00000000 {zeros} 00 00 05 00 01{code} 00 0000000000000000"),
        );
    }
}

#[test]
fn a_time_that_has_no_64_bits_of_nanoseconds_is_the_longest_that_has() {
    let options = ReadOptions { timeout: Duration::MAX, ..ReadOptions::default() };
    let get = Request::Get(Get { keyspace: KeyspaceId(1), key: Bytes::new(), options });
    let mut out = BytesMut::new();
    encode_request(&get, &mut out);
    assert!(out.ends_with(&[0xff; 8]));
    let Request::Get(get) = decode_request(&mut out.freeze()).unwrap() else { panic!("a get") };
    assert_eq!(get.options.timeout, Duration::from_nanos(u64::MAX));
}

#[test]
fn the_reply_to_a_write_is_pinned() {
    let reply = WriteReply {
        version: Some(Version { counter: 0x0102, actor: 0x0304 }),
        context: Some("ctx".into()),
        required: 2,
        acknowledged: 3,
        stood_in: 1,
        coordinator: NodeId(4),
    };
    pin_server(
        &ServerMessage::Reply { id: 9, epoch: Epoch(5), reply: Reply::Write(Ok(reply)) },
        &[
            "00000032",                           // length
            "02",                                 // reply
            "0000000000000009",                   // id
            "0000000000000005",                   // epoch
            "01",                                 // a write succeeded
            "0100000000000001020000000000000304", // version: counter, actor
            "0100000003637478",                   // context: "ctx"
            "020301",                             // required, acknowledged, stood in
            "00000004",                           // coordinator
        ],
    );
}

#[test]
fn the_reply_to_a_get_is_pinned() {
    let value = |bytes: &'static str, counter, expires_unix_ms| ReturnedValue {
        bytes: bytes.into(),
        version: Version { counter, actor: 6 },
        expires_unix_ms,
    };
    let reply = GetReply {
        values: vec![value("ab", 0x0202, Some(0x0708)), value("", 0x0101, None)],
        context: "ctx".into(),
        freshness: Freshness { asked: 3, answered: 2, agreed: true, repaired: 1 },
        coordinator: NodeId(4),
    };
    pin_server(
        &ServerMessage::Reply { id: 9, epoch: Epoch(5), reply: Reply::Get(Ok(reply)) },
        &[
            "00000059",                         // length
            "02",                               // reply
            "0000000000000009",                 // id
            "0000000000000005",                 // epoch
            "03",                               // a get succeeded
            "00000002",                         // values
            "000000026162",                     // "ab"
            "00000000000002020000000000000006", // version
            "010000000000000708",               // expires
            "00000000",                         // ""
            "00000000000001010000000000000006", // version
            "00",                               // does not expire
            "00000003637478",                   // context: "ctx"
            "03020101",                         // asked, answered, agreed, repaired
            "00000004",                         // coordinator
        ],
    );
}

#[test]
fn every_error_is_pinned() {
    let refusals = [
        (Refusal::Unavailable { required: 2, alive: 1 }, "01 02 01"),
        (Refusal::Overloaded(Limit::Requests), "02 01"),
        (Refusal::Overloaded(Limit::Unsynced), "02 02"),
        (Refusal::Overloaded(Limit::Hints), "02 03"),
        (Refusal::Overloaded(Limit::Time), "02 04"),
        (Refusal::StaleEpoch { known: Epoch(0x0102) }, "03 0000000000000102"),
        (Refusal::Unsatisfiable(LevelError::TooMany { required: 4, copies: 3 }), "04 01 04 03"),
        (Refusal::Unsatisfiable(LevelError::Zero), "04 02"),
        (Refusal::Unsatisfiable(LevelError::AnyOnRead), "04 03"),
        (Refusal::Unsatisfiable(LevelError::NoLocalCopies), "04 04"),
        (Refusal::BadCopies { asked: 9, possible: 7 }, "05 09 07"),
        (Refusal::EmptyKey, "06"),
        (
            Refusal::TooLarge { size_bytes: 0x0102, limit_bytes: 0x0101 },
            "07 0000000000000102 0000000000000101",
        ),
        (Refusal::TooManySiblings { limit: 0x40 }, "08 0000000000000040"),
        (Refusal::TooManyWriters { limit: 0x41 }, "09 0000000000000041"),
        (Refusal::UnknownKeyspace, "0a"),
        (Refusal::BadContext, "0b"),
        (Refusal::ClockDrift { drift_ms: -2 }, "0c fffffffffffffffe"),
        (Refusal::NotReady, "0d"),
        (Refusal::Forbidden { needs: Access::Read }, "0e 01"),
        (Refusal::Forbidden { needs: Access::Write }, "0e 02"),
        (Refusal::Forbidden { needs: Access::Admin }, "0e 03"),
        (Refusal::Malformed, "0f"),
        (Refusal::OtherKeyspaces, "10"),
    ];
    for (refusal, code) in refusals {
        pin_reply(&Reply::Write(Err(WriteError::Refused(refusal.clone()))), &format!("02 01 {code}"));
        pin_reply(&Reply::Get(Err(GetError::Refused(refusal))), &format!("04 01 {code}"));
    }
    let causes = [
        (DoubtCause::TimedOut, "01"),
        (DoubtCause::TooFewLeft, "02"),
        (DoubtCause::TooManyAttempts, "03"),
        (DoubtCause::CoordinatorSilent, "04"),
    ];
    for (cause, code) in causes {
        let error = WriteError::InDoubt { required: 3, acknowledged: 1, cause };
        pin_reply(&Reply::Write(Err(error)), &format!("02 02 03 01 {code}"));
    }
    pin_reply(&Reply::Get(Err(GetError::TimedOut { required: 3, answered: 1 })), "04 02 03 01");
}

#[test]
fn control_requests_are_pinned() {
    let keyspace = NewKeyspace {
        name: "carts".to_owned(),
        replication: BTreeMap::from([("ams".to_owned(), 3)]),
        conflict: ConflictPolicy::LastWriteWins,
        durability: Durability::Disk,
    };
    let requests = [
        (ControlRequest::Document, "00"),
        (ControlRequest::Status, "01"),
        (ControlRequest::Explain { keyspace: KeyspaceId(300), key: "k".into() }, "02 ac02 016b"),
        (
            ControlRequest::Keys {
                keyspace: KeyspaceId(1),
                partition: PartitionId(2),
                after: Some("a".into()),
                limit: 100,
            },
            "03 01 02 010161 64",
        ),
        (ControlRequest::CreateKeyspace(keyspace), "04 056361727473 0103616d7303 01 01"),
        (ControlRequest::Readmit { node: NodeId(5) }, "05 05"),
        (ControlRequest::Repair { partition: None }, "06 00"),
        (ControlRequest::Repair { partition: Some(PartitionId(300)) }, "06 01 ac02"),
        (ControlRequest::Vitals, "07"),
    ];
    for (request, code) in requests {
        let code = code.replace(' ', "");
        let length = format!("{:08x}", 9 + code.len() / 2);
        pin_client(&ClientMessage::Control { id: 9, request }, &[&length, "03", "0000000000000009", &code]);
    }
}

/// The smallest document: one node with one partition, and no keyspace.
fn document() -> ClusterDocument {
    let member = Member::new(StoreId(300), "h:1".to_owned(), DatacenterId(0), RackId(0), 100);
    let founded = ClusterDocument::founding(
        ClusterId(1),
        Partitions::new(1).expect("a power of two"),
        vec![Datacenter::new("d", ["r"])],
        BTreeMap::from([(NodeId(7), member)]),
        BTreeMap::new(),
    );
    founded.expect("a valid document")
}

#[test]
fn control_replies_are_pinned() {
    let sync = Some(SyncStatus { age_ms: 17, is_known: true, partitions_differed: 18 });
    let vitals = NodeVitals {
        wall_unix_ms: 1,
        reads: RequestVitals { succeeded: 2, unanswered: 3, durations: vec![4] },
        writes: RequestVitals { succeeded: 5, unanswered: 6, durations: Vec::new() },
        refused: 7,
        duration_bounds_us: vec![300],
        repaired_objects: 8,
        repaired_bytes: 9,
        storage_bytes: 10,
        storage_free_bytes: 11,
        storage_size_bytes: 12,
        certificate_expires_unix_s: 13,
        ca_expires_unix_s: 14,
        certificates_refused: true,
        cluster_settings: 15,
        limits: vec![("a".to_owned(), "b".to_owned())],
    };
    let status = NodeStatus {
        node: NodeId(1),
        version: "0.1.0".to_owned(),
        store: StoreId(2),
        is_recorded: true,
        votes: true,
        epoch: Epoch(3),
        is_ready: false,
        copies: 4,
        copies_whole: 5,
        uptime_ms: 6,
        clock_drift_ms: Some(-7),
        operations: 8,
        unsynced_bytes: 9,
        hints_pending: 10,
        convergence_lag_ms: 12,
        partitions_unscanned: 13,
        peers: vec![
            PeerStatus { node: NodeId(11), is_up: true, hints_pending: 0, hint_oldest_ms: None, sync: None },
            PeerStatus { node: NodeId(14), is_up: false, hints_pending: 15, hint_oldest_ms: Some(16), sync },
        ],
    };
    let version = Version { counter: 1, actor: 2 };
    let held = HeldRecord {
        digest: "d".into(),
        versions: vec![HeldVersion { version, value_bytes: 3, expires_unix_ms: Some(4) }],
        context: vec![version],
        is_synced: true,
    };
    let view = |copy, record| {
        let owes = vec![NodeId(3)];
        ControlReply::Explain(Box::new(ReplicaView { node: NodeId(1), copy, watermark: 300, record, owes }))
    };
    let page = KeysPage { keys: vec!["k".into()], is_whole: true, next: Some("n".into()) };
    let created = ControlReply::KeyspaceCreated { keyspace: KeyspaceId(1), epoch: Epoch(2) };
    let replies = [
        (
            Ok(ControlReply::Document(Box::new(document()))),
            "00 00 01010101 0164 010172 01010701 0107ac02 01ac02 03683a31000064 00",
        ),
        (
            Ok(ControlReply::Status(Box::new(status))),
            "00 01 01 05302e312e30 02 01 01 03 00 04 05 06 010d 08 09 0a 0c 0d 02 0b 01 00 00 00 \
             0e 00 0f 0110 01 11 01 12",
        ),
        (Ok(view(CopyState::Whole, Some(held))), "00 02 01 02 ac02 01 0164 01 0102 03 0104 01 0102 01 0103"),
        (Ok(view(CopyState::None, None)), "00 02 01 00 ac02 00 0103"),
        (Ok(view(CopyState::Filling, None)), "00 02 01 01 ac02 00 0103"),
        (Ok(ControlReply::Keys(page)), "00 03 01 016b 01 01 016e"),
        (Ok(created), "00 04 01 02"),
        (Ok(ControlReply::Readmitted { epoch: Epoch(300) }), "00 05 ac02"),
        (Ok(ControlReply::RepairBegun { peers: vec![NodeId(1), NodeId(300)] }), "00 06 02 01 ac02"),
        (
            Ok(ControlReply::Vitals(Box::new(vitals))),
            "00 07 01 02 03 0104 05 06 00 07 01ac02 08 09 0a 0b 0c 0d 0e 01 0f 01 0161 0162",
        ),
        (Err(ControlError::Forbidden { needs: Access::Admin }), "01 00 02"),
        (Err(ControlError::NotReady), "01 01"),
        (Err(ControlError::UnknownKeyspace), "01 02"),
        (Err(ControlError::NotOwner), "01 03"),
        (Err(ControlError::StorageFailed), "01 04"),
        (Err(ControlError::KeyspaceExists), "01 05"),
        (Err(ControlError::Invalid(vec!["a".to_owned()])), "01 06 010161"),
        (Err(ControlError::InDoubt), "01 07"),
        (Err(ControlError::NotEverywhere { epoch: Epoch(3) }), "01 08 03"),
        (Err(ControlError::Overloaded), "01 09"),
        (Err(ControlError::Unsupported), "01 0a"),
        (Err(ControlError::OtherKeyspaces), "01 0b"),
    ];
    for (reply, code) in replies {
        let code = code.replace(' ', "");
        let length = format!("{:08x}", 17 + code.len() / 2);
        pin_server(
            &ServerMessage::Control { id: 9, epoch: Epoch(5), reply },
            &[&length, "03", "0000000000000009", "0000000000000005", &code],
        );
    }
}
