//! What one put and one get at quorum cost the three nodes that handle them, in all: no network, no disk.
//!
//! Twice: with a hundred keys, whose records stay in the processor's caches, which shows what the core itself does;
//! and with ten thousand, where most of the difference is memory being waited for.

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use quorate_benches::Trio;

/// A cluster that holds so many keys, with the context of each.
fn filled(keys: usize, value: &Bytes) -> (Trio, Vec<(Bytes, Bytes)>) {
    let mut trio = Trio::new();
    let written = (0..keys).map(|key| {
        let key = Bytes::from(format!("user:{key:08}:cart"));
        let context = trio.put(&key, value, None).expect("nothing stands beside it");
        (key, context)
    });
    let written = written.collect();
    (trio, written)
}

fn core(criterion: &mut Criterion) {
    let value = Bytes::from(vec![b'v'; 100]);
    let mut group = criterion.benchmark_group("core");
    for keys in [100, 10_000] {
        let (mut trio, mut written) = filled(keys, &value);
        let mut at = 0;
        group.bench_function(format!("put, n = 3, w = quorum, {keys} keys"), |bencher| {
            bencher.iter(|| {
                at = (at + 1) % written.len();
                let (key, context) = &mut written[at];
                let before = std::mem::take(context);
                *context = trio.put(key, &value, Some(before)).expect("nothing stands beside it");
            });
        });
        group.bench_function(format!("get, n = 3, r = quorum, {keys} keys"), |bencher| {
            bencher.iter(|| {
                at = (at + 1) % written.len();
                trio.get(&written[at].0)
            });
        });
    }
    let mut trio = Trio::new();
    let mut at = 0;
    group.bench_function("put, n = 3, w = quorum, each a new key", |bencher| {
        bencher.iter(|| {
            at += 1;
            trio.put(&Bytes::from(format!("user:{at:08}:cart")), &value, None)
        });
    });
    group.finish();
}

criterion_group!(benches, core);
criterion_main!(benches);
