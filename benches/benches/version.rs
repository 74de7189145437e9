//! What versions cost: every read, write, merge, hint and exchange of a key pays for some of this.
//!
//! Values are of 100 bytes with a request id. Merges work on a fresh clone of the record; the clone is set up and
//! dropped outside what is timed.

use std::hint::black_box;

use antientropy::version::{
    Actor, Context, ContextKey, CopyCount, Counter, Dot, LwwVersion, Record, RequestId, SiblingSet,
    UnixMillis, Value,
};
use bytes::{Bytes, BytesMut};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use ring::KeyspaceId;

const KEY: &[u8] = b"user:00001234";
const KEYSPACE: KeyspaceId = KeyspaceId(1);

fn dot(number: u64) -> Dot {
    let counter = Counter(Counter::at(UnixMillis(1_700_000_000_000)).0 + number);
    // Spread over the actors as random ids would be: the order of actors is not that of their dots.
    Dot { counter, actor: Actor(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)) }
}

fn value(number: u64) -> Value {
    Value { request: RequestId(u128::from(number) + 1), ..Value::new(vec![number as u8; 100]) }
}

/// A set that `writes` coordinators wrote in turn, each on top of the others.
fn written(writes: u64) -> SiblingSet {
    let mut set = SiblingSet::new();
    for number in 0..writes {
        set.write(dot(number), &set.context(), Some(value(number)), CopyCount::DEFAULT);
    }
    set
}

/// `base` after one more write, by the coordinator `number`, of someone who had seen `context`.
fn with_write(base: &SiblingSet, number: u64, context: &Context) -> Record {
    let mut set = base.clone();
    set.write(dot(number), context, Some(value(number)), CopyCount::DEFAULT);
    Record::Siblings(set)
}

fn lww(number: u64) -> Record {
    let version = LwwVersion::write(dot(number), &Context::new(), Some(value(number)), CopyCount::DEFAULT);
    Record::Lww(version)
}

fn bench_merge(criterion: &mut Criterion, name: &str, into: &Record, from: &Record) {
    criterion.bench_function(&format!("version/merge/{name}"), |bencher| {
        bencher.iter_batched_ref(
            || into.clone(),
            |record| black_box(record.merge(black_box(from))),
            BatchSize::SmallInput,
        );
    });
}

fn merge(criterion: &mut Criterion) {
    for entries in [1, 3] {
        let base = written(entries);
        let old = Record::Siblings(base.clone());
        let newer = with_write(&base, 10, &base.context());
        let concurrent = with_write(&base, 11, &Context::new());
        bench_merge(criterion, &format!("equal/{entries}"), &old, &old.clone());
        bench_merge(criterion, &format!("newer/{entries}"), &old, &newer);
        bench_merge(criterion, &format!("older/{entries}"), &newer, &old);
        bench_merge(criterion, &format!("concurrent/{entries}"), &newer, &concurrent);
    }
    bench_merge(criterion, "lww_equal", &lww(1), &lww(1));
    bench_merge(criterion, "lww_newer", &lww(1), &lww(2));
    bench_merge(criterion, "lww_older", &lww(2), &lww(1));
}

fn digest(criterion: &mut Criterion) {
    let records = [("1", Record::Siblings(written(1))), ("3", Record::Siblings(written(3))), ("lww", lww(1))];
    for (name, record) in records {
        criterion.bench_function(&format!("version/digest/{name}"), |bencher| {
            bencher.iter(|| black_box(&record).digest());
        });
    }
}

fn codec(criterion: &mut Criterion) {
    let records = [("1", Record::Siblings(written(1))), ("3", Record::Siblings(written(3))), ("lww", lww(1))];
    for (name, record) in records {
        let mut out = BytesMut::new();
        criterion.bench_function(&format!("version/encode/{name}"), |bencher| {
            bencher.iter(|| {
                out.clear();
                black_box(&record).encode(&mut out);
                black_box(out.len())
            });
        });
        let encoded = {
            out.clear();
            record.encode(&mut out);
            Bytes::copy_from_slice(&out)
        };
        criterion.bench_function(&format!("version/decode/{name}"), |bencher| {
            bencher.iter(|| Record::decode(black_box(&mut encoded.clone())));
        });
    }
}

fn contexts(criterion: &mut Criterion) {
    let context_key = ContextKey::new([7; 32]);
    for entries in [1, 3] {
        let context = written(entries).context();
        let sealed = context_key.seal(KEYSPACE, KEY, &context);
        criterion.bench_function(&format!("version/seal/{entries}"), |bencher| {
            bencher.iter(|| context_key.seal(KEYSPACE, KEY, black_box(&context)));
        });
        criterion.bench_function(&format!("version/open/{entries}"), |bencher| {
            bencher.iter(|| context_key.open(KEYSPACE, KEY, black_box(&sealed)));
        });
    }
}

criterion_group!(benches, merge, digest, codec, contexts);
criterion_main!(benches);
