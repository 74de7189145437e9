//! The bytes of every message of an exchange, pinned: nodes of two versions speak to each other.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use proptest::{collection::vec, prelude::*};
use ring::{KeyspaceId, PartitionId, Token};

use super::{
    Object, TreeId, TreeKind,
    message::{Ask, Interval, Levels, Outcome, Request, Response},
};
use crate::{
    hash_tree::{Element, Sum},
    sketch::{CELL_BYTES, Cell, Survey},
    version::{Actor, Context, CopyCount, Counter, Dot, LwwVersion, Record, Value, written},
};

const KEYSPACE: KeyspaceId = KeyspaceId(9);
const SALT: u64 = 0x0102_0304_0506_0708;
const SALT_HEX: &str = "0102030405060708";
const LEVELS_HEX: &str = "01 00000009 80 05 01 00000009 03 0008 02";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn levels() -> Levels {
    let kind = |copies| TreeKind { keyspace: KEYSPACE, copies };
    let coarse = TreeId { kind: kind(CopyCount::explicit(3)), partition: PartitionId(8) };
    Levels { kinds: vec![(kind(CopyCount::DEFAULT), 5)], coarse: vec![(coarse, 2)] }
}

fn record() -> Arc<Record> {
    let dot = Dot { counter: Counter(7), actor: Actor(8) };
    let value = Some(Value::new("value"));
    Arc::new(Record::Lww(LwwVersion::write(dot, &Context::new(), value, CopyCount::DEFAULT)))
}

/// Keys and records have encodings of their own, which are pinned where they are made.
fn objects_hex() -> String {
    let mut encoded = BytesMut::new();
    record().encode(&mut encoded);
    let record = hex(&encoded);
    format!("05 04 6b {record} 06 0000000000000a0b 6c {record} 05 6d 04 6e {record} 07 0000000000000000 6f")
}

/// With watermarks that change and do not, and some that are nothing.
fn objects() -> Vec<Object> {
    let object = |key: &'static str, is_held: bool, under| Object {
        key: key.into(),
        record: is_held.then(record),
        under: Counter(under),
    };
    vec![
        object("k", true, 0),
        object("l", true, 0x0a0b),
        object("m", false, 0x0a0b),
        object("n", true, 0x0a0b),
        object("o", false, 0),
    ]
}

fn cells() -> Vec<Cell> {
    vec![Cell::from_bytes(&[1; CELL_BYTES]).expect("residues below the largest")]
}

fn cells_hex() -> String {
    format!("01 {}", "01".repeat(CELL_BYTES))
}

fn bytes_of(parts: &[&str]) -> String {
    parts.concat().replace(' ', "")
}

fn pin_request(request: &Request, parts: &[&str]) {
    let encoded = request.encode();
    assert_eq!(hex(&encoded), bytes_of(parts), "{request:?}");
    assert_eq!(Request::decode(encoded.clone()).as_ref(), Ok(request));
    for length in 0..encoded.len() {
        assert!(Request::decode(encoded.slice(..length)).is_err(), "cut off after {length}: {request:?}");
    }
}

fn pin_response(response: &Response, parts: &[&str]) {
    let encoded = response.encode();
    assert_eq!(hex(&encoded), bytes_of(parts), "{response:?}");
    assert_eq!(Response::decode(encoded.clone()).as_ref(), Ok(response));
    for length in 0..encoded.len() {
        assert!(Response::decode(encoded.slice(..length)).is_err(), "cut off after {length}: {response:?}");
    }
}

#[test]
fn requests_are_pinned() {
    let check =
        Request::Check { salt: SALT, digest: [0x11; 16], levels: levels(), unbuilt: vec![PartitionId(7)] };
    pin_request(&check, &["01", SALT_HEX, &"11".repeat(16), LEVELS_HEX, "01 0007"]);
    pin_request(&Request::Cells { salt: SALT, from: 3, count: 200 }, &["02", SALT_HEX, "03 c801"]);
    let sums = Request::Sums { salt: SALT, coarser_by: 2, from: 0, trees: 4096 };
    pin_request(&sums, &["03", SALT_HEX, "02 00 8020"]);
    let intervals = vec![Interval { first: 3, count: 2 }, Interval { first: 10, count: 1 }];
    let keys = Request::KeyCells { salt: SALT, group: 5, intervals: intervals.clone(), from: 0, count: 16 };
    pin_request(&keys, &["04", SALT_HEX, "05 02 0302 0501 00 10"]);
    let asks = vec![Ask { prefix: 5, counter: None }, Ask { prefix: 9, counter: Some(Counter(300)) }];
    pin_request(&Request::Ask { keyspace: KEYSPACE, shift: 44, asks }, &["05 00000009 2c 02 0a 09 ac02"]);
    let fetch = Request::Fetch { salt: SALT, interval: intervals[0], begin: Token(0x0a0b) };
    pin_request(&fetch, &["06", SALT_HEX, "03 02 0000000000000a0b"]);
    let push = Request::Push { keyspace: KEYSPACE, objects: objects() };
    pin_request(&push, &["07 00000009", &objects_hex()]);
    pin_request(&Request::Narrow { salt: SALT, trees: intervals }, &["08", SALT_HEX, "02 0302 0501"]);
}

#[test]
fn responses_are_pinned() {
    pin_response(&Response::Equal, &["01"]);
    let (survey, unbuilt) = (Survey::default(), vec![PartitionId(7)]);
    let differs = Response::Differs {
        levels: levels(),
        unbuilt: unbuilt.clone(),
        survey: survey.clone(),
        cells: cells(),
    };
    let survey_hex = {
        let bytes = survey.to_bytes();
        format!("{:02x}{}", bytes.len(), hex(&bytes))
    };
    pin_response(&differs, &["02", LEVELS_HEX, "01 0007", &survey_hex, &cells_hex()]);
    pin_response(&Response::Cells(cells()), &["03", &cells_hex()]);
    let mut sum = Sum::ZERO;
    sum += Element::new(&[7; 32], Token(1 << 60), &written(1));
    let sum_hex = hex(&sum.weights.to_bytes()) + &hex(&sum.moments.to_bytes());
    pin_response(&Response::Sums(vec![None, Some((4, vec![sum]))]), &["04 02 00 05 01", &sum_hex]);
    let keys = Response::KeyCells { keys: 300, survey: survey.clone(), cells: cells() };
    pin_response(&keys, &["05 ac02", &survey_hex, &cells_hex()]);
    let outcomes = vec![Outcome::Objects(0), Outcome::Objects(0), Outcome::Wanted, Outcome::Objects(5)];
    pin_response(
        &Response::Asked { outcomes, objects: objects() },
        &["06 03 0002 0101 0601", &objects_hex()],
    );
    let fetched = Response::Fetched { rest: Some(Token(0x0a0b)), objects: objects() };
    pin_response(&fetched, &["07 01 0000000000000a0b", &objects_hex()]);
    pin_response(&Response::Fetched { rest: None, objects: Vec::new() }, &["07 00 00"]);
    pin_response(&Response::Pushed { objects: Vec::new(), others: vec![300] }, &["08 00 01 ac02"]);
    let pushed = Response::Pushed { objects: objects(), others: vec![300] };
    pin_response(&pushed, &["08", &objects_hex(), "01 ac02"]);
    pin_response(&Response::Forgotten, &["09"]);
    let narrowed = Response::Narrowed { unbuilt, survey, cells: cells() };
    pin_response(&narrowed, &["0a 01 0007", &survey_hex, &cells_hex()]);
}

#[test]
fn what_is_no_message_is_refused() {
    for kind in [0, 9, 10, 255] {
        assert!(Request::decode(Bytes::from(vec![kind; 40])).is_err(), "request {kind}");
    }
    for kind in [0, 11, 255] {
        assert!(Response::decode(Bytes::from(vec![kind; 40])).is_err(), "response {kind}");
    }
}

#[test]
fn a_list_of_objects_has_one_encoding() {
    let push = |objects: &[u8]| Request::decode([&[7, 0, 0, 0, 9], objects].concat().into());
    assert!(push(&[1, 0b101, b'k']).is_ok());
    assert!(push(&[1, 0b111, 0, 0, 0, 0, 0, 0, 0, 1, b'k']).is_ok());
    assert!(push(&[1, 0b111, 0, 0, 0, 0, 0, 0, 0, 0, b'k']).is_err(), "it is zero without that");
    assert!(push(&[1, 0b1001, b'k']).is_err(), "a key that is cut off");
    assert!(push(&[1, 0xfd, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]).is_err(), "an endless key");
    assert!(push(&[2, 0b101, b'k']).is_err(), "fewer than it says");
    assert!(push(&[1, 0b101, b'k', 0]).is_err(), "more than it says");
}

proptest! {
    /// Objects come as they were sent, and bytes that mean something are those that it is encoded as.
    #[test]
    fn objects_come_as_they_were_sent(
        objects in vec((vec(any::<u8>(), 0..80), any::<bool>(), 0..3_u64), 0..20),
        flip in (any::<u16>(), 1..=255_u8),
    ) {
        let objects = objects.into_iter().map(|(key, is_held, under)| Object {
            key: key.into(),
            record: is_held.then(record),
            under: Counter(under),
        });
        let push = Request::Push { keyspace: KEYSPACE, objects: objects.collect() };
        let encoded = push.encode();
        prop_assert_eq!(Request::decode(encoded.clone()), Ok(push));
        let mut damaged = encoded.to_vec();
        let at = usize::from(flip.0) % damaged.len();
        damaged[at] ^= flip.1;
        let damaged = Bytes::from(damaged);
        if let Ok(request) = Request::decode(damaged.clone()) {
            prop_assert_eq!(request.encode(), damaged);
        }
    }
}
