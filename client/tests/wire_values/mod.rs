//! Any request, any reply and any document, for the tests of the formats that carry them.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use client::{
    Access, Delete, DoubtCause, Freshness, Get, GetError, GetReply, Level, LevelError, Limit, Put,
    ReadOptions, ReadRepair, Refusal, Reply, Request, RequestId, ReturnedValue, Version, WriteError,
    WriteOptions, WriteReply,
};
use proptest::{
    option,
    prelude::{Just, Strategy, any},
    prop_compose, prop_oneof,
};
use ring::{
    ClusterDocument, ClusterId, ConflictPolicy, Datacenter, DatacenterId, Durability, Epoch, Keyspace,
    KeyspaceId, Member, NodeId, Partitions, RackId, StoreId,
};

pub(crate) fn bytes() -> impl Strategy<Value = Bytes> {
    proptest::collection::vec(any::<u8>(), 0..60).prop_map(Bytes::from)
}

pub(crate) fn access() -> impl Strategy<Value = Access> {
    prop_oneof![Just(Access::Read), Just(Access::Write), Just(Access::Admin)]
}

pub(crate) fn version() -> impl Strategy<Value = Version> {
    (any::<u64>(), any::<u64>()).prop_map(|(counter, actor)| Version { counter, actor })
}

pub(crate) fn durability() -> impl Strategy<Value = Durability> {
    prop_oneof![Just(Durability::Memory), Just(Durability::Disk)]
}

pub(crate) fn conflict() -> impl Strategy<Value = ConflictPolicy> {
    prop_oneof![Just(ConflictPolicy::Siblings), Just(ConflictPolicy::LastWriteWins)]
}

/// As a frame can carry it.
pub(crate) fn duration() -> impl Strategy<Value = Duration> {
    any::<u64>().prop_map(Duration::from_nanos)
}

fn level() -> impl Strategy<Value = Level> {
    let named = vec![
        Level::Any,
        Level::One,
        Level::Two,
        Level::Three,
        Level::Quorum,
        Level::All,
        Level::LocalOne,
        Level::LocalQuorum,
        Level::EachQuorum,
    ];
    prop_oneof![4 => proptest::sample::select(named), 1 => any::<u8>().prop_map(Level::Count)]
}

prop_compose! {
    fn write_options()(
        request in any::<u128>(),
        context in option::of(bytes()),
        seen in any::<Option<u64>>(),
        level in level(),
        n in any::<Option<u8>>(),
        durability in option::of(durability()),
        is_sloppy in any::<bool>(),
        timeout in duration(),
    ) -> WriteOptions {
        WriteOptions { request: RequestId(request), context, seen, level, n, durability, is_sloppy, timeout }
    }
}

prop_compose! {
    fn read_options()(
        level in level(),
        n in any::<Option<u8>>(),
        read_repair in option::of(prop_oneof![
            Just(ReadRepair::Background),
            Just(ReadRepair::Off),
            Just(ReadRepair::Blocking),
        ]),
        timeout in duration(),
    ) -> ReadOptions {
        ReadOptions { level, n, read_repair, timeout }
    }
}

prop_compose! {
    fn put()(
        keyspace in any::<u32>().prop_map(KeyspaceId),
        key in bytes(),
        value in bytes(),
        expires_unix_ms in any::<Option<u64>>(),
        options in write_options(),
    ) -> Put {
        Put { keyspace, key, value, expires_unix_ms, options }
    }
}

pub(crate) fn request() -> impl Strategy<Value = Request> {
    let delete = (any::<u32>(), bytes(), write_options());
    let get = (any::<u32>(), bytes(), read_options());
    prop_oneof![
        put().prop_map(Request::Put),
        delete.prop_map(|(keyspace, key, options)| {
            Request::Delete(Delete { keyspace: KeyspaceId(keyspace), key, options })
        }),
        get.prop_map(|(keyspace, key, options)| {
            Request::Get(Get { keyspace: KeyspaceId(keyspace), key, options })
        }),
    ]
}

fn refusal() -> impl Strategy<Value = Refusal> {
    let level_error = prop_oneof![
        any::<(u8, u8)>().prop_map(|(required, copies)| LevelError::TooMany { required, copies }),
        Just(LevelError::Zero),
        Just(LevelError::AnyOnRead),
        Just(LevelError::NoLocalCopies),
    ];
    let limit =
        prop_oneof![Just(Limit::Requests), Just(Limit::Unsynced), Just(Limit::Hints), Just(Limit::Time)];
    prop_oneof![
        any::<(u8, u8)>().prop_map(|(required, alive)| Refusal::Unavailable { required, alive }),
        limit.prop_map(Refusal::Overloaded),
        any::<u64>().prop_map(|known| Refusal::StaleEpoch { known: Epoch(known) }),
        level_error.prop_map(Refusal::Unsatisfiable),
        any::<(u8, u8)>().prop_map(|(asked, possible)| Refusal::BadCopies { asked, possible }),
        Just(Refusal::EmptyKey),
        any::<(usize, usize)>()
            .prop_map(|(size_bytes, limit_bytes)| Refusal::TooLarge { size_bytes, limit_bytes }),
        any::<usize>().prop_map(|limit| Refusal::TooManySiblings { limit }),
        any::<usize>().prop_map(|limit| Refusal::TooManyWriters { limit }),
        Just(Refusal::UnknownKeyspace),
        Just(Refusal::BadContext),
        any::<i64>().prop_map(|drift_ms| Refusal::ClockDrift { drift_ms }),
        Just(Refusal::NotReady),
        access().prop_map(|needs| Refusal::Forbidden { needs }),
        Just(Refusal::Malformed),
        Just(Refusal::OtherKeyspaces),
    ]
}

fn write_error() -> impl Strategy<Value = WriteError> {
    let cause = prop_oneof![
        Just(DoubtCause::TimedOut),
        Just(DoubtCause::TooFewLeft),
        Just(DoubtCause::TooManyAttempts),
        Just(DoubtCause::CoordinatorSilent),
    ];
    prop_oneof![
        refusal().prop_map(WriteError::Refused),
        (any::<u8>(), any::<u8>(), cause).prop_map(|(required, acknowledged, cause)| WriteError::InDoubt {
            required,
            acknowledged,
            cause
        }),
    ]
}

fn get_error() -> impl Strategy<Value = GetError> {
    prop_oneof![
        refusal().prop_map(GetError::Refused),
        any::<(u8, u8)>().prop_map(|(required, answered)| GetError::TimedOut { required, answered }),
    ]
}

prop_compose! {
    fn write_reply()(
        version in option::of(version()),
        context in option::of(bytes()),
        required in any::<u8>(),
        acknowledged in any::<u8>(),
        stood_in in any::<u8>(),
        coordinator in any::<u32>().prop_map(NodeId),
    ) -> WriteReply {
        WriteReply { version, context, required, acknowledged, stood_in, coordinator }
    }
}

prop_compose! {
    fn returned_value()(
        bytes in bytes(),
        version in version(),
        expires_unix_ms in any::<Option<u64>>(),
    ) -> ReturnedValue {
        ReturnedValue { bytes, version, expires_unix_ms }
    }
}

prop_compose! {
    fn get_reply()(
        values in proptest::collection::vec(returned_value(), 0..4),
        context in bytes(),
        (asked, answered, agreed, repaired) in any::<(u8, u8, bool, u8)>(),
        coordinator in any::<u32>().prop_map(NodeId),
    ) -> GetReply {
        let freshness = Freshness { asked, answered, agreed, repaired };
        GetReply { values, context, freshness, coordinator }
    }
}

pub(crate) fn reply() -> impl Strategy<Value = Reply> {
    prop_oneof![
        write_reply().prop_map(|reply| Reply::Write(Ok(reply))),
        write_error().prop_map(|error| Reply::Write(Err(error))),
        get_reply().prop_map(|reply| Reply::Get(Ok(reply))),
        get_error().prop_map(|error| Reply::Get(Err(error))),
    ]
}

prop_compose! {
    fn keyspace()(
        copies in 1..=7_u8,
        conflict in conflict(),
        durability in durability(),
    ) -> Keyspace {
        Keyspace::new("any", copies, conflict, durability)
    }
}

prop_compose! {
    /// A valid document of a few nodes.
    pub(crate) fn document()(
        cluster in any::<u64>(),
        epoch in 1..=u64::MAX,
        bits in 0..4_u32,
        stores in proptest::collection::btree_set(any::<u64>(), 1..6),
        keyspace in keyspace(),
    ) -> ClusterDocument {
        let member = |(index, store): (usize, u64)| {
            let address = format!("127.0.0.1:{}", 7400 + index);
            let member = Member::new(StoreId(store), address, DatacenterId(0), RackId(0), 100);
            (NodeId(u32::try_from(index).expect("a few")), member)
        };
        let members = stores.into_iter().enumerate().map(member).collect();
        let founded = ClusterDocument::founding(
            ClusterId(cluster),
            Partitions::new(1 << bits).expect("a power of two"),
            vec![Datacenter::new("local", ["r1"])],
            members,
            BTreeMap::from([(KeyspaceId(1), keyspace)]),
        );
        ClusterDocument { epoch: Epoch(epoch), ..founded.expect("a valid document") }
    }
}
