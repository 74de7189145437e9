//! Bytes from the world: whatever they are, decoding answers and does not panic, and what it accepts has one form.
//!
//! `PROPTEST_RNG_SEED=<seed> cargo test -p quorate-antientropy --test version_bytes` replays a seed.

use antientropy::version::{
    Actor, Context, ContextKey, CopyCount, Counter, Dot, LwwVersion, Record, RequestId, SiblingSet,
    UnixMillis, Value,
};
use bytes::{Bytes, BytesMut};
use proptest::{prelude::*, sample::Index};
use ring::KeyspaceId;

fn copies() -> impl Strategy<Value = CopyCount> {
    any::<u8>().prop_filter_map("no count", CopyCount::from_byte)
}

fn value() -> impl Strategy<Value = Value> {
    let request = prop_oneof![Just(0), any::<u128>()];
    let bytes = prop::collection::vec(any::<u8>(), 0..200);
    (bytes, prop::option::of(any::<u64>()), request).prop_map(|(bytes, expires, request)| Value {
        bytes: bytes.into(),
        expires: expires.map(UnixMillis),
        request: RequestId(request),
    })
}

/// Any set that blind and covering writes of a few actors can make.
fn siblings() -> impl Strategy<Value = Record> {
    let write = (0..6_u64, 1..1000_u64, prop::option::of(value()), any::<bool>(), copies());
    prop::collection::vec(write, 0..12).prop_map(|writes| {
        let mut set = SiblingSet::new();
        for (actor, step, value, covering, copies) in writes {
            let dot = Dot { counter: Counter(set.highest().0 + step), actor: Actor(actor << 60) };
            let context = if covering { set.context() } else { Context::new() };
            set.write(dot, &context, value, copies);
        }
        Record::Siblings(set)
    })
}

fn lww() -> impl Strategy<Value = Record> {
    (any::<u64>(), any::<u64>(), 0..u64::MAX / 2, 1..u64::MAX / 2, prop::option::of(value()), copies())
        .prop_map(|(actor, seen_actor, seen, step, value, copies)| {
            let mut context = Context::new();
            if seen > 0 {
                context.insert(Dot { counter: Counter(seen), actor: Actor(seen_actor) });
            }
            let dot = Dot { counter: Counter(seen + step), actor: Actor(actor) };
            Record::Lww(LwwVersion::write(dot, &context, value, copies))
        })
}

fn encoded(record: &Record) -> Vec<u8> {
    let mut out = BytesMut::new();
    record.encode(&mut out);
    out.to_vec()
}

/// Whatever decodes encodes to the very bytes that it was decoded from.
fn check_decode(bytes: Vec<u8>) {
    let input = Bytes::from(bytes);
    let mut rest = input.clone();
    match Record::decode(&mut rest) {
        Ok(record) => assert_eq!(encoded(&record), input[..input.len() - rest.len()]),
        Err(_) => assert_eq!(rest, input, "a failure consumes nothing"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn a_record_survives_its_encoding(record in prop_oneof![siblings(), lww()]) {
        let bytes = encoded(&record);
        prop_assert_eq!(bytes.len(), record.encoded_len());
        let mut input = Bytes::from(bytes);
        let decoded = Record::decode(&mut input).expect("what we encoded");
        prop_assert!(input.is_empty());
        prop_assert_eq!(decoded.digest(), record.digest());
        prop_assert_eq!(decoded, record);
    }

    #[test]
    fn arbitrary_bytes_never_panic_as_a_record(kind in 0..4_u8, bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        check_decode(bytes.clone());
        check_decode([&[1, kind, 0x80], bytes.as_slice()].concat());
    }

    #[test]
    fn a_damaged_record_never_panics(
        record in prop_oneof![siblings(), lww()],
        damage in prop::collection::vec((any::<Index>(), any::<u8>()), 1..4),
        cut in any::<Index>(),
    ) {
        let mut bytes = encoded(&record);
        for (place, byte) in damage {
            *place.get_mut(&mut bytes) = byte;
        }
        check_decode(bytes.clone());
        bytes.truncate(cut.index(bytes.len()));
        check_decode(bytes);
    }

    #[test]
    fn arbitrary_bytes_never_open_as_a_context(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let context_key = ContextKey::new([7; 32]);
        for bytes in [bytes.clone(), [&[1, 0x80], bytes.as_slice()].concat()] {
            prop_assert!(context_key.open(KeyspaceId(1), b"key", &bytes).is_err());
            if let Ok(context) = ContextKey::open_unchecked(&bytes) {
                let sealed = context_key.seal(KeyspaceId(1), b"key", &context);
                prop_assert_eq!(&sealed[..sealed.len() - 16], &bytes[..bytes.len() - 16], "one form");
            }
        }
    }

    #[test]
    fn a_context_opens_where_it_was_sealed_and_nowhere_else(
        record in siblings(),
        place in (any::<u32>(), prop::collection::vec(any::<u8>(), 0..40)),
        other in (any::<u32>(), prop::collection::vec(any::<u8>(), 0..40)),
        bit in any::<Index>(),
    ) {
        let context_key = ContextKey::new([7; 32]);
        let (keyspace, key) = (KeyspaceId(place.0), place.1.as_slice());
        let context = record.context();
        let mut sealed = context_key.seal(keyspace, key, &context).to_vec();
        prop_assert_eq!(context_key.open(keyspace, key, &sealed), Ok(context));
        let is_elsewhere = place != other;
        prop_assert_eq!(context_key.open(KeyspaceId(other.0), &other.1, &sealed).is_err(), is_elsewhere);
        prop_assert!(context_key.open(KeyspaceId(!keyspace.0), key, &sealed).is_err());
        let bit = bit.index(sealed.len() * 8);
        sealed[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(context_key.open(keyspace, key, &sealed).is_err());
    }
}
