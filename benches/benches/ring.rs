//! Microbenchmarks of the ring: what every request does with it, and what a change of members costs.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ring::{Candidate, Epoch, NodeId, Partitions, Placement, RackId, Token, plan};

/// `nodes` of unequal weights in 5 racks.
fn candidates(nodes: u32) -> Vec<Candidate> {
    let rack = |node: u32| RackId(u16::try_from(node % 5).expect("below 5"));
    (0..nodes)
        .map(|node| Candidate { node: NodeId(node), rack: rack(node), weight: 50 + node * 37 % 151 })
        .collect()
}

fn placement(nodes: u32, partitions: Partitions) -> Placement {
    plan(None, &candidates(nodes), partitions, Epoch(1)).next
}

fn lookup(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("lookup");
    group.throughput(Throughput::Elements(1));
    group.bench_function("token of a 16-byte key", |bencher| {
        bencher.iter(|| Token::of_key(black_box(b"cart:00000000042")));
    });
    let partitions = Partitions::DEFAULT;
    let placement = placement(100, partitions);
    let mut token = 0_u64;
    group.bench_function("preference list of a token", |bencher| {
        bencher.iter(|| {
            token = token.wrapping_add(0x9e37_79b9_7f4a_7c15);
            placement.list(partitions.of(black_box(Token(token))))[0]
        });
    });
    group.finish();
}

fn planner(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("planner");
    group.sample_size(10);
    for (nodes, partitions) in [(5, 1024), (100, 1024), (1000, 65_536)] {
        let partitions = Partitions::new(partitions).expect("a power of two");
        group.bench_function(format!("{nodes} nodes, {partitions}"), |bencher| {
            bencher.iter_batched(
                || candidates(nodes),
                |candidates| plan(None, &candidates, partitions, Epoch(1)),
                BatchSize::LargeInput,
            );
        });
    }
    let partitions = Partitions::DEFAULT;
    let (before, after) = (placement(100, partitions), candidates(101));
    group.bench_function("one node joins 100, 1024 partitions", |bencher| {
        bencher.iter(|| plan(Some(black_box(&before)), &after, partitions, Epoch(2)));
    });
    group.finish();
}

criterion_group!(benches, lookup, planner);
criterion_main!(benches);
