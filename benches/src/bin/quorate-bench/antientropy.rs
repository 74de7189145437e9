//! Exchanges between two replicas in memory: the real ones, with every message encoded and decoded, in one thread.
//!
//! What is not measured is the network, the disk and the node around them.

use std::{
    collections::VecDeque,
    io::{self, Write},
    sync::Arc,
    time::{Duration, Instant},
};

use antientropy::{
    exchange::{Exchange, Follower, Question, Report, memory::MemoryReplica},
    version::{Actor, Context, CopyCount, Counter, Dot, Record, SiblingSet, Value},
};
use bytes::Bytes;
use clap::Args;
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};
use ring::{KeyspaceId, Partitions, Token};
use serde_json::json;

const KEYSPACE: KeyspaceId = KeyspaceId(1);
/// As many as clusters have unless they say otherwise.
const PARTITIONS: Partitions = Partitions::DEFAULT;
/// Bytes of the set difference's elements: a key's hash and a version's, 128 bits together.
const ELEMENT_BYTES: u64 = 16;

/// What is measured.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Keys that each replica holds.
    #[arg(long, default_value_t = 1_000_000)]
    keys: u64,
    /// Bytes of each value.
    #[arg(long, default_value_t = 100)]
    value_bytes: usize,
    /// Exchanges of each kind, of which the one of median processor time is shown.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Decides which keys differ.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Prints JSON, a line for each kind.
    #[arg(long)]
    json: bool,
}

/// How the replicas differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Difference {
    /// One side has a newer version: either, by turns.
    Updated,
    /// The leading side lacks the key.
    MissingHere,
    /// The following side lacks it.
    MissingThere,
}

struct Measured {
    report: Report,
    taken: Duration,
}

/// Measures and prints.
pub(crate) fn run(options: &Options, mut out: impl Write) -> io::Result<()> {
    let full = filled(options);
    let mut dice = StdRng::seed_from_u64(options.seed);
    let mut scattered: Vec<u64> = (0..options.keys).collect();
    scattered.shuffle(&mut dice);
    let mut stretch: Vec<u64> = (0..options.keys).collect();
    stretch.sort_unstable_by_key(|number| Token::of_key(&key(*number)));
    if !options.json {
        writeln!(
            out,
            "{:>9} {:<26} {:>5} {:>8} {:>12} {:>12} {:>9} {:>8} {:>9} {:>9}",
            "differing",
            "how",
            "trips",
            "messages",
            "bytes",
            "payload",
            "B beside",
            "of bound",
            "ms",
            "objects/s"
        )?;
    }
    let counts = [0, 1, options.keys / 1000, options.keys / 10];
    for count in counts {
        for how in [Difference::Updated, Difference::MissingHere, Difference::MissingThere] {
            if count > 0 || how == Difference::Updated {
                print(
                    options,
                    &mut out,
                    count,
                    how,
                    "",
                    &measure(options, &full, &scattered[..count as usize], how, &mut dice),
                )?;
            }
        }
    }
    let count = options.keys / 1000;
    for how in [Difference::Updated, Difference::MissingHere, Difference::MissingThere] {
        let measured =
            measure(options, &full, &stretch[stretch.len() / 3..][..count as usize], how, &mut dice);
        print(options, &mut out, count, how, ", in one stretch", &measured)?;
    }
    for how in [Difference::MissingHere, Difference::MissingThere] {
        print(
            options,
            &mut out,
            options.keys,
            how,
            ", all",
            &measure(options, &full, &scattered, how, &mut dice),
        )?;
    }
    Ok(())
}

fn print(
    options: &Options,
    out: &mut impl Write,
    differing: u64,
    how: Difference,
    where_to: &str,
    measured: &Measured,
) -> io::Result<()> {
    let Measured { report, taken } = measured;
    let how = match how {
        Difference::Updated => "updated",
        Difference::MissingHere => "missing here",
        Difference::MissingThere => "missing there",
    };
    let how = if differing == 0 { "nothing".to_owned() } else { format!("{how}{where_to}") };
    let beside = report.bytes - report.payload_bytes;
    let bound = report.payload_bytes + ELEMENT_BYTES * (2 * report.updated + report.missing);
    let each = |number: u64| if differing == 0 { 0.0 } else { number as f64 / differing as f64 };
    let of_bound = if bound == 0 { 0.0 } else { report.bytes as f64 / bound as f64 };
    let ms = taken.as_secs_f64() * 1000.0;
    let per_second = (report.objects_received + report.objects_sent) as f64 / taken.as_secs_f64();
    if options.json {
        let line = json!({
            "differing": differing,
            "how": how,
            "round_trips": report.round_trips,
            "messages": report.messages,
            "bytes": report.bytes,
            "payload_bytes": report.payload_bytes,
            "bytes_beside_payload_per_key": each(beside),
            "bytes_of_payload_and_bound": of_bound,
            "processor_ms": ms,
            "objects_per_second": per_second,
        });
        return writeln!(out, "{line}");
    }
    writeln!(
        out,
        "{differing:>9} {how:<26} {:>5} {:>8} {:>12} {:>12} {:>9.1} {of_bound:>8.2} {ms:>9.2} {per_second:>9.0}",
        report.round_trips,
        report.messages,
        report.bytes,
        report.payload_bytes,
        if differing == 0 { beside as f64 } else { each(beside) },
    )
}

fn measure(
    options: &Options,
    full: &MemoryReplica,
    differing: &[u64],
    how: Difference,
    dice: &mut StdRng,
) -> Measured {
    let mut measured: Vec<Measured> = (0..options.runs.max(1))
        .map(|_| {
            let (mut here, mut there) = (full.clone(), full.clone());
            for (at, number) in differing.iter().enumerate() {
                let is_here = how == Difference::MissingHere || how == Difference::Updated && at % 2 == 0;
                let changed = if is_here { &mut here } else { &mut there };
                let record = (how == Difference::Updated).then(|| newer(options, *number));
                changed.set(KEYSPACE, key(*number), record);
            }
            let measured = exchange(&mut here, &mut there, dice.random());
            assert!(here.iter().eq(there.iter()), "they are in sync");
            measured
        })
        .collect();
    measured.sort_by_key(|measured| measured.taken);
    measured.swap_remove(measured.len() / 2)
}

fn exchange(here: &mut MemoryReplica, there: &mut MemoryReplica, salt: u64) -> Measured {
    let began = Instant::now();
    let mut follower = Follower::new();
    let (mut exchange, question) = Exchange::begin(here, salt);
    let mut open = VecDeque::from([question]);
    while let Some(Question { number, message }) = open.pop_front() {
        let answer = follower.answer(there, message, true).expect("the leader makes sense");
        open.extend(exchange.answered(here, number, answer).expect("the follower makes sense"));
    }
    Measured { report: exchange.report(), taken: began.elapsed() }
}

fn filled(options: &Options) -> MemoryReplica {
    let mut replica = MemoryReplica::new([7; 32], PARTITIONS, options.keys >> PARTITIONS.bits());
    (0..options.keys).for_each(|number| replica.set(KEYSPACE, key(number), Some(first(options, number))));
    replica
}

fn key(number: u64) -> Bytes {
    Bytes::from(format!("user{number:012}"))
}

/// A record that was written once.
fn first(options: &Options, number: u64) -> Arc<Record> {
    let mut set = SiblingSet::new();
    let dot = Dot { actor: Actor(0x1234_5678_9abc_def0), counter: Counter(1 << 60 | number) };
    set.write(dot, &Context::new(), Some(value(options, number)), CopyCount::default());
    Arc::new(Record::Siblings(set))
}

/// The same, overwritten within the next day by one of three coordinators.
fn newer(options: &Options, number: u64) -> Arc<Record> {
    let Record::Siblings(mut set) = Record::clone(&first(options, number)) else {
        unreachable!("all are sibling sets")
    };
    let context = set.context();
    let counter = (1 << 60) + (1 << 40) + number * 0x1_0001 % (86_400_000 << 16);
    let dot = Dot { actor: Actor(0x1234_5678_9abc_def0 + number % 3), counter: Counter(counter) };
    set.write(dot, &context, Some(value(options, number + 1)), CopyCount::default());
    Arc::new(Record::Siblings(set))
}

fn value(options: &Options, number: u64) -> Value {
    let byte = number as u8;
    Value::new(vec![byte; options.value_bytes])
}
