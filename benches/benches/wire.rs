//! What frames cost: a client's put and its reply, and the merge that goes to a replica, with values of 100 bytes.
//!
//! Decoding begins with the body, a slice of what arrived, and includes dropping the message.

use std::{hint::black_box, sync::Arc, time::Duration};

use antientropy::version::{
    Actor, Context, CopyCount, Counter, Dot, Record, RequestId, SiblingSet, UnixMillis, Value,
};
use bytes::{Bytes, BytesMut};
use client::{
    Freshness, Get, GetReply, Level, Put, ReadOptions, Reply, Request, ReturnedValue, Version, WriteOptions,
    WriteReply,
    wire::{ClientMessage, FrameReader, MESSAGE_BYTES_MAX, ServerMessage},
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use node::{
    message::{Envelope, Header, MergeOutcome, MergePath, Message, StartId, Tag},
    storage::{ObjectKey, Sequence},
};
use ring::{Durability, Epoch, KeyspaceId, NodeId, StoreId};

const KEY: &[u8] = b"user:00001234";
const KEYSPACE: KeyspaceId = KeyspaceId(1);

fn value() -> Bytes {
    Bytes::from(vec![7; 100])
}

/// A context as a client holds it: of a record that one actor wrote.
fn context() -> Bytes {
    Bytes::from(vec![3; 34])
}

fn client_messages() -> Vec<(&'static str, ClientMessage)> {
    let put = |context, level| {
        let options =
            WriteOptions { request: client::RequestId(42), context, level, ..WriteOptions::default() };
        let key = Bytes::from_static(KEY);
        let put = Put { keyspace: KEYSPACE, key, value: value(), expires_unix_ms: None, options };
        ClientMessage::Request { id: 7, request: Request::Put(put) }
    };
    let get = Get { keyspace: KEYSPACE, key: Bytes::from_static(KEY), options: ReadOptions::default() };
    vec![
        ("put", put(None, Level::Quorum)),
        ("put_with_context", put(Some(context()), Level::Count(2))),
        ("get", ClientMessage::Request { id: 7, request: Request::Get(get) }),
    ]
}

fn server_messages() -> Vec<(&'static str, ServerMessage)> {
    let version = Version { counter: 1 << 60, actor: 1 << 50 };
    let written = WriteReply {
        version: Some(version),
        context: Some(context()),
        required: 2,
        acknowledged: 2,
        stood_in: 0,
        coordinator: NodeId(1),
    };
    let got = GetReply {
        values: vec![ReturnedValue { bytes: value(), version, expires_unix_ms: None }],
        context: context(),
        freshness: Freshness { asked: 2, answered: 2, agreed: true, repaired: 0 },
        coordinator: NodeId(1),
    };
    let reply = |reply| ServerMessage::Reply { id: 7, epoch: Epoch(1), reply };
    vec![("written", reply(Reply::Write(Ok(written)))), ("got", reply(Reply::Get(Ok(got))))]
}

fn envelopes() -> Vec<(&'static str, Envelope)> {
    let header = Header {
        from: NodeId(1),
        start: StartId(2),
        store: StoreId(3),
        synced: Sequence(4),
        epoch: Epoch(5),
        wall: UnixMillis(6),
        clock: Counter(7),
    };
    let mut set = SiblingSet::new();
    let counter = Counter::at(UnixMillis(1_700_000_000_000));
    let value = Value { request: RequestId(42), ..Value::new(value()) };
    set.write(Dot { counter, actor: Actor(9) }, &Context::new(), Some(value), CopyCount::DEFAULT);
    let tag = Tag { operation: 1, question: 2 };
    let merge = Message::Merge {
        tag,
        object: ObjectKey::new(KEYSPACE, KEY),
        record: Arc::new(Record::Siblings(set)),
        under: counter,
        durability: Durability::Disk,
        path: MergePath::Write,
    };
    let merged = Message::Merged { tag, outcome: MergeOutcome::Applied { gained: Epoch(1) } };
    vec![("merge", Envelope { header, message: merge }), ("merged", Envelope { header, message: merged })]
}

/// Measures both directions of one message. `encode` appends a frame, `decode` reads a body.
fn bench(criterion: &mut Criterion, name: &str, encode: impl Fn(&mut BytesMut), decode: impl Fn(Bytes)) {
    let mut out = BytesMut::with_capacity(1 << 16);
    criterion.bench_function(&format!("wire/encode/{name}"), |bencher| {
        bencher.iter(|| {
            out.clear();
            encode(&mut out);
            black_box(out.len())
        });
    });
    out.clear();
    encode(&mut out);
    // Shared, as what a reader hands out is: the chunk and other frames of it are alive.
    let chunk = out.freeze();
    let body = chunk.slice(4..);
    criterion.bench_function(&format!("wire/decode/{name}"), |bencher| {
        bencher.iter(|| decode(black_box(&body).clone()));
    });
}

fn messages(criterion: &mut Criterion) {
    for (name, message) in client_messages() {
        let decode = |body| drop(black_box(ClientMessage::decode(body)));
        bench(criterion, name, |out| black_box(&message).encode(out), decode);
    }
    for (name, message) in server_messages() {
        let decode = |body| drop(black_box(ServerMessage::decode(body)));
        bench(criterion, name, |out| black_box(&message).encode(out), decode);
    }
    for (name, envelope) in envelopes() {
        let decode = |body| drop(black_box(Envelope::decode(body)));
        bench(criterion, name, |out| black_box(&envelope).encode(out), decode);
    }
}

/// A stream of puts in chunks of what a datagram holds: most frames lie whole in a chunk, the others are gathered.
fn frames(criterion: &mut Criterion) {
    let mut stream = BytesMut::new();
    let (_, put) = client_messages().swap_remove(0);
    let count = 1_000;
    for _ in 0..count {
        put.encode(&mut stream);
    }
    let stream = stream.freeze();
    let mut group = criterion.benchmark_group("wire/frames");
    group.throughput(Throughput::Elements(count)).measurement_time(Duration::from_secs(3));
    group.bench_function("read", |bencher| {
        bencher.iter(|| {
            let mut frames = FrameReader::new(MESSAGE_BYTES_MAX);
            let mut bodies = 0;
            for at in (0..stream.len()).step_by(1_200) {
                frames.push(stream.slice(at..stream.len().min(at + 1_200)));
                while let Ok(Some(body)) = frames.next() {
                    bodies += u64::from(!black_box(body).is_empty());
                }
            }
            assert_eq!(bodies, count);
        });
    });
    group.finish();
}

criterion_group!(benches, messages, frames);
criterion_main!(benches);
