//! Bytes from peers: whatever they are, decoding answers and does not panic, and what it accepts has one form.
//!
//! `PROPTEST_RNG_SEED=<seed> cargo test -p quorate-node --test wire_bytes` replays a seed of the properties,
//! `QUORATE_SEED=<seed>` one of the search.

// A search has a time and a seed from outside; what is banned in the core is not banned here.
#[allow(clippy::disallowed_methods, clippy::disallowed_types)]
#[path = "../../client/tests/wire_damage/mod.rs"]
mod wire_damage;
#[path = "../../client/tests/wire_values/mod.rs"]
mod wire_values;

use std::{sync::Arc, time::Duration};

use antientropy::version::{
    self, Actor, Context, CopyCount, Counter, Dot, LwwVersion, Record, RequestId, SiblingSet, UnixMillis,
    Value, VersionDigest,
};
use bytes::{BufMut, Bytes, BytesMut};
use client::wire::{Element, Field, Malformed};
use node::{
    message::{
        AgreementMessage, Ballot, Envelope, ExchangeAnswer, Header, MergeOutcome, MergePath, MergeRefusal,
        Message, ReadAnswer, ReadKind, Recovery, Run, Standing, StartId, Tag,
    },
    storage::{ObjectKey, Sequence},
    wire::{DecodeError, PeerHello, PeerWelcome, negotiate},
};
use proptest::{collection::vec, option, prelude::*, sample::Index};
use ring::{ClusterId, Epoch, KeyspaceId, NodeId, PartitionId, StoreId, VoterId};

use wire_damage::search;
use wire_values::{bytes, document, durability, duration, reply, request};

prop_compose! {
    fn header()(
        from in any::<u32>(),
        (start, store, synced, epoch, wall, clock) in any::<(u64, u64, u64, u64, u64, u64)>(),
    ) -> Header {
        Header {
            from: NodeId(from),
            start: StartId(start),
            store: StoreId(store),
            synced: Sequence(synced),
            epoch: Epoch(epoch),
            wall: UnixMillis(wall),
            clock: Counter(clock),
        }
    }
}

fn tag() -> impl Strategy<Value = Tag> {
    any::<(u64, u32)>().prop_map(|(operation, question)| Tag { operation, question })
}

prop_compose! {
    fn recovery()(
        recovered in any::<u64>(),
        lowest in any::<u64>(),
        unconfirmed in vec(any::<u64>().prop_map(StartId), 0..4),
    ) -> Recovery {
        Recovery { recovered: Sequence(recovered), lowest: Sequence(lowest), unconfirmed }
    }
}

fn object() -> impl Strategy<Value = ObjectKey> {
    (any::<u32>(), vec(any::<u8>(), 1..30))
        .prop_map(|(keyspace, key)| ObjectKey::new(KeyspaceId(keyspace), &key))
}

prop_compose! {
    fn value()(bytes in bytes(), expires in any::<Option<u64>>(), request in any::<u128>()) -> Value {
        Value { bytes, expires: expires.map(UnixMillis), request: RequestId(request) }
    }
}

fn siblings() -> impl Strategy<Value = Record> {
    vec((0..4_u64, option::of(value()), any::<bool>()), 1..5).prop_map(|writes| {
        let mut set = SiblingSet::new();
        for (actor, value, covering) in writes {
            let dot = Dot { counter: set.highest().next(), actor: Actor(actor << 60) };
            let context = if covering { set.context() } else { Context::new() };
            set.write(dot, &context, value, CopyCount::DEFAULT);
        }
        Record::Siblings(set)
    })
}

fn record() -> impl Strategy<Value = Arc<Record>> {
    let lww = (any::<u64>(), 1..u64::MAX, option::of(value())).prop_map(|(actor, counter, value)| {
        let dot = Dot { counter: Counter(counter), actor: Actor(actor) };
        Record::Lww(LwwVersion::write(dot, &Context::new(), value, CopyCount::DEFAULT))
    });
    prop_oneof![siblings(), lww].prop_map(Arc::new)
}

fn path() -> impl Strategy<Value = MergePath> {
    prop_oneof![
        Just(MergePath::Write),
        Just(MergePath::ReadRepair),
        Just(MergePath::Hint),
        Just(MergePath::AntiEntropy),
        Just(MergePath::Movement),
        any::<u32>().prop_map(|target| MergePath::StandIn { target: NodeId(target) }),
    ]
}

fn outcome() -> impl Strategy<Value = MergeOutcome> {
    let refusal = prop_oneof![
        Just(MergeRefusal::StaleEpoch),
        Just(MergeRefusal::NotOwner),
        Just(MergeRefusal::Mismatched),
        Just(MergeRefusal::Overloaded),
        Just(MergeRefusal::StorageFailed),
        Just(MergeRefusal::Late),
        any::<u64>().prop_map(|watermark| MergeRefusal::Behind { watermark: Counter(watermark) }),
    ];
    prop_oneof![
        any::<u64>().prop_map(|gained| MergeOutcome::Applied { gained: Epoch(gained) }),
        refusal.prop_map(MergeOutcome::Refused),
    ]
}

fn digest() -> impl Strategy<Value = VersionDigest> {
    any::<[u8; 16]>().prop_map(VersionDigest)
}

fn answer() -> impl Strategy<Value = ReadAnswer> {
    prop_oneof![
        4 => (option::of(record()), any::<u64>())
            .prop_map(|(record, under)| ReadAnswer::Data(record, Counter(under))),
        1 => digest().prop_map(ReadAnswer::Digest),
        1 => Just(ReadAnswer::Filling),
        1 => Just(ReadAnswer::Refused),
        1 => Just(ReadAnswer::StaleEpoch),
        1 => Just(ReadAnswer::NotOwner),
    ]
}

fn merge() -> impl Strategy<Value = Message> {
    (tag(), object(), record(), any::<u64>(), durability(), path()).prop_map(
        |(tag, object, record, under, durability, path)| {
            let under = Counter(under);
            Message::Merge { tag, object, record, under, durability, path }
        },
    )
}

fn read() -> impl Strategy<Value = Message> {
    let kind = prop_oneof![Just(ReadKind::Data), Just(ReadKind::Digest)];
    (tag(), object(), kind, any::<(Option<u8>, bool)>())
        .prop_map(|(tag, object, kind, (n, durable))| Message::Read { tag, object, kind, n, durable })
}

fn standing() -> impl Strategy<Value = Standing> {
    let run = any::<(u32, [u64; 6])>().prop_map(
        |(partitions, [floor, lowest, watermark, promise, epoch, filling])| Run {
            partitions,
            floor: Counter(floor),
            lowest: Counter(lowest),
            watermark: Counter(watermark),
            promise: Counter(promise),
            promise_epoch: Epoch(epoch),
            filling,
        },
    );
    vec(run, 0..4).prop_map(|runs| Standing { runs })
}

fn exchange() -> impl Strategy<Value = Message> {
    (tag(), option::of(standing()), option::of(bytes()), any::<bool>()).prop_map(
        |(tag, standing, bytes, is_question)| match is_question {
            true => Message::Exchange { tag, standing, question: bytes.unwrap_or_default() },
            false => Message::ExchangeAnswer { tag, answer: ExchangeAnswer { standing, answer: bytes } },
        },
    )
}

fn ballot() -> impl Strategy<Value = Ballot> {
    any::<(u64, u32, u64)>().prop_map(|(counter, node, start)| Ballot {
        counter,
        node: NodeId(node),
        start: StartId(start),
    })
}

fn agreement() -> impl Strategy<Value = AgreementMessage> {
    let voter = any::<u64>().prop_map(VoterId);
    prop_oneof![
        (ballot(), voter.clone()).prop_map(|(ballot, voter)| AgreementMessage::Accepted { ballot, voter }),
        (ballot(), voter).prop_map(|(ballot, voter)| AgreementMessage::Promise {
            ballot,
            voter,
            accepted: None
        }),
        (ballot(), ballot()).prop_map(|(ballot, by)| AgreementMessage::Outbid { ballot, by }),
        (any::<[u8; 32]>(), option::of(document())).prop_map(|(configuration, accepted)| {
            AgreementMessage::Tell { configuration, accepted: accepted.map(Box::new) }
        }),
        any::<u64>().prop_map(|cluster| AgreementMessage::Consent { cluster: ClusterId(cluster) }),
    ]
}

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![
        (any::<(u64, Option<u64>, Option<u64>, Option<[u8; 32]>)>(), recovery()).prop_map(
            |((number, cluster, voter, digest), recovery)| Message::Hello {
                number,
                cluster: cluster.map(ClusterId),
                recovery,
                voter: voter.map(VoterId),
                digest
            }
        ),
        agreement().prop_map(|agreement| Message::Agreement(Box::new(agreement))),
        any::<(u64, u64, Option<u64>, u64)>().prop_map(|(start, number, sequence, floor)| Message::Welcome {
            start: StartId(start),
            number,
            went_back_from: sequence.map(Sequence),
            floor: Counter(floor),
        }),
        Just(Message::DocumentRequest),
        document().prop_map(|document| Message::Document(Arc::new(document))),
        (tag(), request(), duration()).prop_map(|(tag, request, remaining)| Message::Forward {
            tag,
            request: Box::new(request),
            remaining
        }),
        (tag(), reply()).prop_map(|(tag, reply)| Message::Forwarded { tag, reply: Box::new(reply) }),
        merge(),
        (tag(), outcome()).prop_map(|(tag, outcome)| Message::Merged { tag, outcome }),
        read(),
        (tag(), answer()).prop_map(|(tag, answer)| Message::Answer { tag, answer }),
        exchange(),
        any::<(u64, bool, u32, u32, Vec<u16>)>().prop_map(
            |(exchange, is_complete, begun_ms, differed, left_out)| Message::ExchangeEnded {
                exchange,
                is_complete,
                left_out: left_out.into_iter().map(PartitionId).collect(),
                begun: Duration::from_millis(begun_ms.into()),
                differed,
            }
        ),
        tag().prop_map(|tag| Message::Declined { tag }),
        any::<u32>().prop_map(|waiting| Message::HintOffer { waiting }),
        any::<u32>().prop_map(|merges| Message::HintGrant { merges }),
    ]
}

fn envelope() -> impl Strategy<Value = Envelope> {
    (header(), message()).prop_map(|(header, message)| Envelope { header, message })
}

/// The body of the frame that something makes, after a check of the length before it.
fn body(encode: impl FnOnce(&mut BytesMut)) -> Vec<u8> {
    let mut out = BytesMut::from(&b"before"[..]);
    encode(&mut out);
    let frame = out.strip_prefix(b"before").expect("a frame is appended");
    let (length, body) = frame.split_first_chunk::<4>().expect("a frame has a length");
    assert_eq!(u32::from_be_bytes(*length) as usize, body.len());
    body.to_vec()
}

fn envelope_body(envelope: &Envelope) -> Vec<u8> {
    body(|out| envelope.encode(out))
}

/// Whatever decodes encodes to the very bytes that it was decoded from. Postcard reads some numbers in more forms
/// than it writes, so of a document, or of what is said about one, only the meaning survives.
fn check(bytes: Vec<u8>) -> bool {
    let Ok(envelope) = Envelope::decode(Bytes::from(bytes.clone())) else { return false };
    let again = envelope_body(&envelope);
    match &envelope.message {
        Message::Document(document) => {
            // Whoever gets a document asks whether it is valid first, so that has to take anything.
            let _ = document.validate();
            assert_eq!(Envelope::decode(again.into()), Ok(envelope));
        }
        Message::Agreement(_) => assert_eq!(Envelope::decode(again.into()), Ok(envelope)),
        _ => assert_eq!(again, bytes),
    }
    true
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn an_envelope_survives_its_encoding(
        envelope in envelope(),
        more in vec(any::<u8>(), 1..4),
        cut in any::<Index>(),
    ) {
        let mut bytes = envelope_body(&envelope);
        prop_assert_eq!(Envelope::decode(bytes.clone().into()), Ok(envelope));
        let cut_bytes = bytes[..cut.index(bytes.len())].to_vec();
        prop_assert!(Envelope::decode(cut_bytes.into()).is_err(), "cut short");
        bytes.extend(more);
        prop_assert!(Envelope::decode(bytes.into()).is_err(), "nothing may follow it");
    }

    #[test]
    fn arbitrary_bytes_never_panic(kind in 0..16_u8, bytes in vec(any::<u8>(), 0..200)) {
        check(bytes.clone());
        check([&[kind][..], &[0; 52], &bytes].concat());
        check([&[kind][..], &[0; 64], &bytes].concat());
    }

    #[test]
    fn the_first_frames_survive_their_encoding(
        (version, features, node, start) in any::<(u16, u64, u32, u64)>(),
        cluster in any::<Option<u64>>(),
        place in any::<Index>(),
        byte in any::<u8>(),
    ) {
        let (cluster, node, start) = (cluster.map(ClusterId), NodeId(node), StartId(start));
        let hello = PeerHello { version, features, cluster, node, start };
        let welcome = PeerWelcome { version, features, cluster, node, start };
        let (mut hello_body, welcome_body) = (body(|out| hello.encode(out)), body(|out| welcome.encode(out)));
        prop_assert_eq!(PeerWelcome::decode(hello_body.clone().into()), Err(Malformed::UnknownKind(240)));
        prop_assert_eq!(PeerHello::decode(welcome_body.clone().into()), Err(Malformed::UnknownKind(241)));
        prop_assert!(Envelope::decode(hello_body.clone().into()).is_err(), "neither is an envelope");
        prop_assert_eq!(PeerWelcome::decode(welcome_body.into()), Ok(welcome));
        prop_assert_eq!(PeerHello::decode(hello_body.clone().into()), Ok(hello));
        *place.get_mut(&mut hello_body) = byte;
        if let Ok(damaged) = PeerHello::decode(hello_body.clone().into()) {
            prop_assert_eq!(body(|out| damaged.encode(out)), hello_body);
        }
    }
}

#[test]
fn a_search_among_damaged_envelopes_finds_no_panic_and_no_second_form() {
    search(envelope(), envelope_body, check);
}

/// Kind and header of an envelope whose message is to be written by hand.
fn begun(kind: u8) -> BytesMut {
    let mut out = BytesMut::new();
    out.put_u8(kind);
    out.put_bytes(0, 52);
    out
}

fn object_key(key: &[u8]) -> ObjectKey {
    ObjectKey::new(KeyspaceId(1), key)
}

#[test]
fn kinds_that_this_version_does_not_know_are_refused() {
    for kind in [0, 18, 19, 100, 240, 241, 255] {
        let unknown = Malformed::UnknownKind(kind);
        assert_eq!(Envelope::decode(begun(kind).freeze()), Err(DecodeError::Frame(unknown)));
    }
    assert_eq!(negotiate(1), Ok(1));
    assert_eq!(negotiate(2), Ok(1));
    assert!(negotiate(0).is_err());
}

/// A record under a name with a wrong token would be stored where nobody looks for it.
#[test]
fn a_name_whose_token_is_not_its_keys_is_refused() {
    let read = |name: &[u8]| {
        let mut out = begun(9);
        out.put_bytes(0, 12);
        out.put_u32(u32::try_from(name.len()).unwrap());
        out.put_slice(name);
        out.put_slice(&[1, 0, 1]);
        Envelope::decode(out.freeze())
    };
    let good = object_key(b"key").encoded().to_vec();
    assert!(read(&good).is_ok());
    for at in 4..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        assert_eq!(read(&bad), Err(DecodeError::NotAnObject), "byte {at}");
    }
    assert_eq!(read(&good[..12]), Err(DecodeError::NotAnObject), "no key");
    assert_eq!(read(&good[..5]), Err(DecodeError::NotAnObject));
}

/// Checked before anything is allocated, or this would fail for memory.
#[test]
fn counts_that_the_frame_has_no_room_for_are_refused() {
    let truncated = Err(DecodeError::Frame(Malformed::Truncated));
    for count in [101, u32::MAX] {
        let mut answer = begun(12);
        answer.put_bytes(0, 12);
        answer.put_slice(&[0, 1]);
        answer.put_u32(count);
        answer.put_bytes(0, 100);
        assert_eq!(Envelope::decode(answer.freeze()), truncated);
    }
    let mut hello = begun(1);
    hello.put_u64(1);
    hello.put_u8(0);
    hello.put_bytes(0, 16);
    hello.put_u32(u32::MAX);
    hello.put_bytes(0, 100);
    assert_eq!(Envelope::decode(hello.freeze()), truncated);
    let mut shortest = BytesMut::new();
    StartId(0).put_to(&mut shortest);
    assert_eq!(shortest.len(), StartId::BYTES_MIN);
}

#[test]
fn a_record_that_is_malformed_is_refused() {
    let mut answer = begun(10);
    answer.put_bytes(0, 12);
    answer.put_u8(1);
    answer.put_u64(0);
    answer.put_slice(&[1, 9]);
    let unknown = version::DecodeError::UnknownVersion(9);
    assert_eq!(Envelope::decode(answer.freeze()), Err(DecodeError::Record(unknown)));
}

#[test]
fn values_are_slices_of_the_frame() {
    let dot = Dot { counter: Counter(7), actor: Actor(1) };
    let version = LwwVersion::write(dot, &Context::new(), Some(Value::new("value")), CopyCount::DEFAULT);
    let mut out = begun(10);
    out.put_bytes(0, 12);
    out.put_u8(1);
    out.put_u64(0);
    out.put_u8(1);
    Record::Lww(version).encode(&mut out);
    let body = out.freeze();
    let range = body.as_ptr_range();
    let Ok(Envelope { message: Message::Answer { answer: ReadAnswer::Data(Some(record), _), .. }, .. }) =
        Envelope::decode(body)
    else {
        panic!("an answer")
    };
    assert!(record.live(UnixMillis(0)).iter().all(|(_, value)| range.contains(&value.bytes.as_ptr())));
}
