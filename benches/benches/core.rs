//! What one put and one get at quorum cost the three nodes that handle them, in all: no network, no disk.

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use quorate_benches::Trio;

/// Keys that the benches go around in.
const KEYS: u32 = 10_000;

fn keys() -> Vec<Bytes> {
    (0..KEYS).map(|key| Bytes::from(format!("user:{key:08}:cart"))).collect()
}

fn core(criterion: &mut Criterion) {
    let (keys, value) = (keys(), Bytes::from(vec![b'v'; 100]));
    let mut group = criterion.benchmark_group("core");

    let mut trio = Trio::new();
    let mut at = 0;
    group.bench_function("put, n = 3, quorum, new keys", |bencher| {
        bencher.iter(|| {
            at += 1;
            let key = Bytes::from(format!("user:{at:08}:cart"));
            trio.put(&key, &value, None);
        });
    });

    let mut trio = Trio::new();
    let mut contexts: Vec<Bytes> = Vec::new();
    for key in &keys {
        trio.put(key, &value, None);
        contexts.push(trio.get(key));
    }
    let mut at = 0;
    group.bench_function("get, n = 3, quorum", |bencher| {
        bencher.iter(|| {
            at = (at + 1) % keys.len();
            trio.get(&keys[at])
        });
    });
    group.bench_function("put with context, n = 3, quorum", |bencher| {
        let mut at = 0;
        bencher.iter(|| {
            at = (at + 1) % keys.len();
            let before = std::mem::take(&mut contexts[at]);
            contexts[at] = trio.put(&keys[at], &value, Some(before)).expect("nothing stands beside it");
        });
    });
    group.finish();
}

criterion_group!(benches, core);
criterion_main!(benches);
