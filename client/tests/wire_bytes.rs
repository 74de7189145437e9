//! Bytes from the world: whatever they are, decoding answers and does not panic, and what it accepts has one form.
//!
//! `PROPTEST_RNG_SEED=<seed> cargo test -p quorate-client --test wire_bytes` replays a seed of the properties,
//! `QUORATE_SEED=<seed>` one of the search.

mod wire_damage;
mod wire_values;

use bytes::{Bytes, BytesMut};
use client::wire::{
    ClientHello, ClientMessage, ControlError, ControlReply, ControlRequest, CopyState, DecodeError,
    HeldRecord, HeldVersion, KeysPage, NewKeyspace, NodeStatus, NodeVitals, PeerStatus, ReplicaView,
    RequestVitals, ServerMessage, ServerWelcome, SyncStatus,
};
use proptest::{collection::vec, option, prelude::*, sample::Index};
use ring::{ClusterId, Epoch, KeyspaceId, NodeId, PartitionId, StoreId};

use wire_damage::search;
use wire_values::{access, bytes, conflict, document, durability, reply, request, version};

fn name() -> impl Strategy<Value = String> {
    "[a-zA-Zäß0-9-]{0,12}"
}

prop_compose! {
    fn new_keyspace()(
        name in name(),
        replication in proptest::collection::btree_map(self::name(), any::<u8>(), 0..3),
        conflict in conflict(),
        durability in durability(),
    ) -> NewKeyspace {
        NewKeyspace { name, replication, conflict, durability }
    }
}

prop_compose! {
    fn keys_request()(
        keyspace in any::<u32>().prop_map(KeyspaceId),
        partition in any::<u16>().prop_map(PartitionId),
        after in option::of(bytes()),
        limit in any::<u32>(),
    ) -> ControlRequest {
        ControlRequest::Keys { keyspace, partition, after, limit }
    }
}

fn control_request() -> impl Strategy<Value = ControlRequest> {
    prop_oneof![
        Just(ControlRequest::Document),
        Just(ControlRequest::Status),
        Just(ControlRequest::Vitals),
        (any::<u32>(), bytes())
            .prop_map(|(keyspace, key)| ControlRequest::Explain { keyspace: KeyspaceId(keyspace), key }),
        keys_request(),
        new_keyspace().prop_map(ControlRequest::CreateKeyspace),
        any::<u32>().prop_map(|node| ControlRequest::Readmit { node: NodeId(node) }),
        any::<Option<u16>>()
            .prop_map(|partition| ControlRequest::Repair { partition: partition.map(PartitionId) }),
    ]
}

prop_compose! {
    fn peer_status()(
        (node, is_up) in any::<(u32, bool)>(),
        (hints_pending, hint_oldest_ms) in any::<(u64, Option<u64>)>(),
        sync in any::<Option<(u64, bool, u32)>>(),
    ) -> PeerStatus {
        let sync = sync
            .map(|(age_ms, is_known, partitions_differed)| SyncStatus { age_ms, is_known, partitions_differed });
        PeerStatus { node: NodeId(node), is_up, hints_pending, hint_oldest_ms, sync }
    }
}

prop_compose! {
    fn status()(
        (node, store, epoch) in any::<(u32, u64, u64)>(),
        version in name(),
        (is_recorded, votes, is_ready) in any::<(bool, bool, bool)>(),
        (copies, copies_whole, operations) in any::<(u32, u32, u32)>(),
        (uptime_ms, unsynced_bytes, hints_pending) in any::<(u64, u64, u64)>(),
        clock_drift_ms in any::<Option<i64>>(),
        (convergence_lag_ms, partitions_unscanned) in any::<(u64, u32)>(),
        peers in vec(peer_status(), 0..4),
    ) -> NodeStatus {
        NodeStatus {
            node: NodeId(node),
            version,
            store: StoreId(store),
            is_recorded,
            votes,
            epoch: Epoch(epoch),
            is_ready,
            copies,
            copies_whole,
            uptime_ms,
            clock_drift_ms,
            operations,
            unsynced_bytes,
            hints_pending,
            convergence_lag_ms,
            partitions_unscanned,
            peers,
        }
    }
}

prop_compose! {
    fn held_version()(
        version in version(),
        value_bytes in any::<u64>(),
        expires_unix_ms in any::<Option<u64>>(),
    ) -> HeldVersion {
        HeldVersion { version, value_bytes, expires_unix_ms }
    }
}

prop_compose! {
    fn held_record()(
        digest in bytes(),
        versions in vec(held_version(), 0..3),
        context in vec(version(), 0..3),
        is_synced in any::<bool>(),
    ) -> HeldRecord {
        HeldRecord { digest, versions, context, is_synced }
    }
}

prop_compose! {
    fn replica_view()(
        node in any::<u32>().prop_map(NodeId),
        copy in prop_oneof![Just(CopyState::None), Just(CopyState::Filling), Just(CopyState::Whole)],
        watermark in any::<u64>(),
        record in option::of(held_record()),
        owes in vec(any::<u32>().prop_map(NodeId), 0..3),
    ) -> ReplicaView {
        ReplicaView { node, copy, watermark, record, owes }
    }
}

prop_compose! {
    fn keys_page()(
        keys in vec(bytes(), 0..4),
        is_whole in any::<bool>(),
        next in option::of(bytes()),
    ) -> KeysPage {
        KeysPage { keys, is_whole, next }
    }
}

fn vitals() -> impl Strategy<Value = NodeVitals> {
    let requests = (any::<u64>(), any::<u64>(), vec(any::<u64>(), 0..4))
        .prop_map(|(succeeded, unanswered, durations)| RequestVitals { succeeded, unanswered, durations });
    let limits = vec(("[a-z]{1,4}", "[a-z0-9]{0,4}"), 0..3);
    (any::<[u64; 8]>(), any::<bool>(), vec(any::<u64>(), 0..4), limits, vec(requests, 2..=2)).prop_map(
        |(numbers, is_refused, bounds, limits, requests)| NodeVitals {
            wall_unix_ms: numbers[0],
            reads: requests[0].clone(),
            writes: requests[1].clone(),
            refused: numbers[1],
            duration_bounds_us: bounds,
            repaired_objects: numbers[2],
            repaired_bytes: numbers[3],
            storage_bytes: numbers[4],
            storage_free_bytes: numbers[5],
            storage_size_bytes: numbers[6],
            certificate_expires_unix_s: numbers[7],
            ca_expires_unix_s: numbers[0],
            certificates_refused: is_refused,
            cluster_settings: numbers[1],
            limits,
        },
    )
}

fn control_reply() -> impl Strategy<Value = ControlReply> {
    prop_oneof![
        document().prop_map(|document| ControlReply::Document(Box::new(document))),
        status().prop_map(|status| ControlReply::Status(Box::new(status))),
        replica_view().prop_map(|view| ControlReply::Explain(Box::new(view))),
        keys_page().prop_map(ControlReply::Keys),
        any::<(u32, u64)>().prop_map(|(keyspace, epoch)| ControlReply::KeyspaceCreated {
            keyspace: KeyspaceId(keyspace),
            epoch: Epoch(epoch)
        }),
        any::<u64>().prop_map(|epoch| ControlReply::Readmitted { epoch: Epoch(epoch) }),
        vec(any::<u32>().prop_map(NodeId), 0..4).prop_map(|peers| ControlReply::RepairBegun { peers }),
        vitals().prop_map(|vitals| ControlReply::Vitals(Box::new(vitals))),
    ]
}

fn control_error() -> impl Strategy<Value = ControlError> {
    prop_oneof![
        access().prop_map(|needs| ControlError::Forbidden { needs }),
        Just(ControlError::NotReady),
        Just(ControlError::UnknownKeyspace),
        Just(ControlError::NotOwner),
        Just(ControlError::StorageFailed),
        Just(ControlError::KeyspaceExists),
        vec(name(), 0..3).prop_map(ControlError::Invalid),
        Just(ControlError::InDoubt),
        any::<u64>().prop_map(|epoch| ControlError::NotEverywhere { epoch: Epoch(epoch) }),
        Just(ControlError::Overloaded),
        Just(ControlError::Unsupported),
    ]
}

fn client_message() -> impl Strategy<Value = ClientMessage> {
    let hello = any::<(u16, u64)>().prop_map(|(version, features)| ClientHello { version, features });
    prop_oneof![
        1 => hello.prop_map(ClientMessage::Hello),
        6 => (any::<u64>(), request()).prop_map(|(id, request)| ClientMessage::Request { id, request }),
        3 => (any::<u64>(), control_request()).prop_map(|(id, request)| ClientMessage::Control { id, request }),
    ]
}

prop_compose! {
    fn welcome()(
        (version, features, node, epoch) in any::<(u16, u64, u32, u64)>(),
        cluster in any::<Option<u64>>(),
        access in access(),
    ) -> ServerMessage {
        ServerMessage::Welcome(ServerWelcome {
            version,
            features,
            node: NodeId(node),
            cluster: cluster.map(ClusterId),
            epoch: Epoch(epoch),
            access,
        })
    }
}

fn server_message() -> impl Strategy<Value = ServerMessage> {
    let control = prop_oneof![control_reply().prop_map(Ok), control_error().prop_map(Err)];
    prop_oneof![
        1 => welcome(),
        6 => (any::<u64>(), any::<u64>(), reply())
            .prop_map(|(id, epoch, reply)| ServerMessage::Reply { id, epoch: Epoch(epoch), reply }),
        3 => (any::<u64>(), any::<u64>(), control)
            .prop_map(|(id, epoch, reply)| ServerMessage::Control { id, epoch: Epoch(epoch), reply }),
    ]
}

/// The body of the frame that a message makes, after a check of the length before it.
fn body(encode: impl FnOnce(&mut BytesMut)) -> Vec<u8> {
    let mut out = BytesMut::from(&b"before"[..]);
    encode(&mut out);
    let frame = out.strip_prefix(b"before").expect("a frame is appended");
    let (length, body) = frame.split_first_chunk::<4>().expect("a frame has a length");
    assert_eq!(u32::from_be_bytes(*length) as usize, body.len());
    body.to_vec()
}

fn client_body(message: &ClientMessage) -> Vec<u8> {
    body(|out| message.encode(out))
}

fn server_body(message: &ServerMessage) -> Vec<u8> {
    body(|out| message.encode(out))
}

/// Whatever decodes encodes to the very bytes that it was decoded from. Postcard reads some numbers in more forms
/// than it writes, so of a control message only what it says survives.
fn check_client(bytes: Vec<u8>) -> bool {
    match ClientMessage::decode(Bytes::from(bytes.clone())) {
        Ok(message @ ClientMessage::Control { .. }) => {
            assert_eq!(ClientMessage::decode(client_body(&message).into()), Ok(message));
            true
        }
        Ok(message) => {
            assert_eq!(client_body(&message), bytes);
            true
        }
        Err(DecodeError::Request { id, .. } | DecodeError::Control { id, .. }) => {
            assert_eq!(
                bytes[1..9],
                id.to_be_bytes(),
                "the request that is refused is the one that was asked"
            );
            false
        }
        Err(_) => false,
    }
}

/// As [`check_client`].
fn check_server(bytes: Vec<u8>) -> bool {
    match ServerMessage::decode(Bytes::from(bytes.clone())) {
        Ok(message @ ServerMessage::Control { .. }) => {
            if let ServerMessage::Control { reply: Ok(ControlReply::Document(document)), .. } = &message {
                // Whoever gets a document asks whether it is valid first, so that has to take anything.
                let _ = document.validate();
            }
            assert_eq!(ServerMessage::decode(server_body(&message).into()), Ok(message));
            true
        }
        Ok(message) => {
            assert_eq!(server_body(&message), bytes);
            true
        }
        Err(DecodeError::Request { .. } | DecodeError::Control { .. }) => {
            panic!("a node's messages are not requests")
        }
        Err(_) => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn a_clients_message_survives_its_encoding(message in client_message(), more in vec(any::<u8>(), 1..4)) {
        let mut bytes = client_body(&message);
        prop_assert_eq!(ClientMessage::decode(bytes.clone().into()), Ok(message));
        bytes.extend(more);
        prop_assert!(ClientMessage::decode(bytes.into()).is_err(), "nothing may follow it");
    }

    #[test]
    fn a_nodes_message_survives_its_encoding(message in server_message(), more in vec(any::<u8>(), 1..4)) {
        let mut bytes = server_body(&message);
        prop_assert_eq!(ServerMessage::decode(bytes.clone().into()), Ok(message));
        bytes.extend(more);
        prop_assert!(ServerMessage::decode(bytes.into()).is_err(), "nothing may follow it");
    }

    #[test]
    fn a_message_cut_short_is_refused(client in client_message(), node in server_message(), cut in any::<Index>()) {
        let bytes = client_body(&client);
        let cut_bytes = bytes[..cut.index(bytes.len())].to_vec();
        prop_assert!(ClientMessage::decode(cut_bytes.into()).is_err());
        let bytes = server_body(&node);
        let cut_bytes = bytes[..cut.index(bytes.len())].to_vec();
        prop_assert!(ServerMessage::decode(cut_bytes.into()).is_err());
    }

    #[test]
    fn arbitrary_bytes_never_panic(kind in 0..5_u8, choice in 0..20_u8, bytes in vec(any::<u8>(), 0..200)) {
        check_client(bytes.clone());
        check_server(bytes.clone());
        let after_id = [&[kind, 0, 0, 0, 0, 0, 0, 0, 9], &[choice][..], &bytes].concat();
        check_client(after_id);
        let after_epoch = [&[kind][..], &[0; 16], &[choice], &bytes].concat();
        check_server(after_epoch);
    }
}

#[test]
fn a_search_among_damaged_messages_of_clients_finds_no_panic_and_no_second_form() {
    search(client_message(), client_body, check_client);
}

#[test]
fn a_search_among_damaged_messages_of_nodes_finds_no_panic_and_no_second_form() {
    search(server_message(), server_body, check_server);
}
