//! A slice of the simulator for every test run: as many seeds as half a minute allows, others for every commit.

use std::{
    env,
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, Write},
    time::{Duration, Instant},
};

use quorate_tests::{
    run::{RunOptions, run},
    swarm::Profile,
};

/// How long the slice may take.
const TIME_MAX: Duration = Duration::from_secs(25);
/// More seeds than this are for the `sim` binary.
const SEEDS_MAX: u64 = 1500;

/// The first seed: from `QUORATE_SEED`, a number or any text such as a commit's hash.
fn first_seed() -> u64 {
    let Ok(text) = env::var("QUORATE_SEED") else { return 1_000_000 };
    text.parse().unwrap_or_else(|_| {
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        hasher.finish() >> 1
    })
}

/// Prints a line even where the test harness would keep it to itself.
fn say(line: &str) {
    drop(writeln!(io::stderr(), "{line}"));
}

#[test]
fn promises_hold_in_a_slice_of_the_seeds() {
    let (began, first) = (Instant::now(), first_seed());
    say(&format!("the slice begins with seed {first} (QUORATE_SEED={first})"));
    let mut runs = 0;
    while runs < SEEDS_MAX && began.elapsed() < TIME_MAX {
        let report = run(first + runs, RunOptions::default());
        let violations: Vec<_> = report.violations.iter().map(ToString::to_string).collect();
        assert!(
            violations.is_empty(),
            "seed {seed} breaks promises:\n{}\nreplay: cargo run --release -p quorate-tests --bin sim -- --seed {seed} --trace",
            violations.join("\n"),
            seed = report.seed,
        );
        runs += 1;
    }
    say(&format!("{runs} runs in {:?}", began.elapsed()));
}

#[test]
fn a_seed_is_a_history() {
    for seed in 0..20 {
        let traced = RunOptions { traced: true, ..RunOptions::default() };
        let (first, second) = (run(seed, RunOptions::default()), run(seed, traced));
        assert_eq!(first.trace_hash, second.trace_hash, "seed {seed}: tracing must not change a run");
        assert_eq!(first.counts, second.counts, "seed {seed}");
        assert_eq!(first.ending, second.ending, "seed {seed}");
        assert_ne!(first.trace_hash, run(seed + 1, RunOptions::default()).trace_hash, "seed {seed}");
    }
}

/// P9, the least of it: where nothing goes wrong, nothing is refused, times out or is left in doubt.
#[test]
fn a_calm_cluster_meets_every_request() {
    for seed in 0..100 {
        let report = run(seed, RunOptions { profile: Profile::Calm, ..RunOptions::default() });
        for failure in ["write refused", "write in doubt", "read failed", "given up", "connection broken"] {
            assert_eq!(report.counts.by_name.get(failure), None, "seed {seed}: {failure}");
        }
        assert!(report.violations.is_empty(), "seed {seed}: {:?}", report.violations);
    }
}
