//! What the durable store costs: a synced batch, a point read, a scan. On whatever disk the build directory is on: most
//! of a batch is the sync.
//!
//! `cargo bench -p quorate-benches --bench disk -- load` is another thing: it fills a store with a million keys, keeps 64
//! batches on their way while another thread reads, aborts, and opens the store again. It prints throughput, CPU by
//! thread, the worst waits, and memory.
#![allow(clippy::print_stdout, reason = "that is what the load is for")]

use std::{
    collections::VecDeque,
    env, fs,
    path::{Path, PathBuf},
    process::{self, Command},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group};
use node::{
    shell::disk::{CommitEvent, CommitterHandle, DiskOptions, DiskStore},
    storage::{Batch, Change, ObjectKey, Sequence, Store, Table},
};
use ring::{KeyspaceId, NodeId};

/// Records that are read: more than the engine's cache holds.
const RECORDS: u64 = 300_000;

/// A store in a directory of its own, with its committer.
struct Disk {
    dir: PathBuf,
    store: Arc<DiskStore>,
    committer: CommitterHandle,
    committed: Receiver<Sequence>,
    sequence: u64,
}

impl Disk {
    fn create(name: &str) -> Disk {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bench-{name}"));
        let _ = fs::remove_dir_all(&dir);
        Disk::open(dir)
    }

    fn open(dir: PathBuf) -> Disk {
        let options = DiskOptions { free_bytes_min: 0, ..DiskOptions::new(NodeId(1)) };
        let opened = DiskStore::open(&dir, &options).expect("the build directory is on a disk");
        let (send, committed) = mpsc::channel();
        let committer = opened.committer.start(move |event| match event {
            CommitEvent::Committed(sequence) => drop(send.send(sequence)),
            event => panic!("{event:?}"),
        });
        let sequence = opened.store.recovered().0;
        Disk { dir, store: Arc::new(opened.store), committer, committed, sequence }
    }

    fn submit(&mut self, changes: Vec<Change>) {
        self.sequence += 1;
        self.committer
            .submit(Batch { sequence: Sequence(self.sequence), changes })
            .expect("the queue has room");
    }

    /// Waits for the last batch.
    fn wait(&self) {
        while self.committed.recv().expect("the committer runs") < Sequence(self.sequence) {}
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn key(number: u64) -> Bytes {
    ObjectKey::new(KeyspaceId(1), format!("user:{number:010}").as_bytes()).encoded().clone()
}

fn change(number: u64) -> Change {
    Change { table: Table::Records, key: key(number), value: Some(Bytes::from(vec![b'v'; 100])) }
}

/// Numbers in no order.
fn scattered(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20
}

fn commits(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("disk");
    let mut disk = Disk::create("commits");
    let mut number = 0;
    let mut changes = |count: u64| {
        number += count;
        (number..number + count).map(|number| change(scattered(number) % 1_000_000)).collect::<Vec<_>>()
    };
    for count in [1, 16, 64] {
        group.throughput(Throughput::Elements(count));
        group.bench_function(format!("a synced batch of {count}"), |bencher| {
            bencher.iter_batched(
                || changes(count),
                |changes| {
                    disk.submit(changes);
                    disk.wait();
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.throughput(Throughput::Elements(64));
    group.bench_function("64 batches of 1, joined", |bencher| {
        bencher.iter_batched(
            || changes(64),
            |changes| {
                changes.into_iter().for_each(|change| disk.submit(vec![change]));
                disk.wait();
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn reads(criterion: &mut Criterion) {
    let mut disk = Disk::create("reads");
    for first in (0..RECORDS).step_by(1000) {
        disk.submit((first..first + 1000).map(change).collect());
        disk.wait();
    }
    let mut group = criterion.benchmark_group("disk");
    let mut at = 0;
    let mut get = |range: u64, offset: u64| {
        at += 1;
        disk.store
            .get(Table::Records, &key(scattered(at) % range + offset))
            .expect("the disk is well")
            .is_some()
    };
    group.bench_function("a read of one of 100 records", |bencher| bencher.iter(|| assert!(get(100, 0))));
    group.bench_function("a read of any of 300,000 records", |bencher| {
        bencher.iter(|| assert!(get(RECORDS, 0)));
    });
    group.bench_function("a read of a record that is not there", |bencher| {
        bencher.iter(|| assert!(!get(RECORDS, RECORDS)));
    });
    group.throughput(Throughput::Elements(1000));
    group.bench_function("a scan of 1,000 records", |bencher| {
        bencher.iter(|| {
            at += 1;
            let after = key(scattered(at) % RECORDS);
            disk.store.scan(Table::Records, Some(&after), &[0xff; 16], 1000).expect("the disk is well").len()
        });
    });
    group.finish();
}

/// Keys of the load.
const KEYS: u64 = 1_000_000;
/// Batches of the load that are on their way at once.
const IN_FLIGHT: usize = 64;
/// Batches of the load.
const BATCHES: u64 = 500_000;

/// The load, in a process of its own, which ends as by a crash; and another start.
fn load() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-load");
    let _ = fs::remove_dir_all(&dir);
    let status = Command::new(env::current_exe().expect("this program")).arg("load-child").arg(&dir).status();
    assert!(!status.expect("this program can be started").success(), "it aborts");
    let started = Instant::now();
    let disk = Disk::open(dir);
    println!("opened after an abort in {:?}, {}", started.elapsed(), memory());
    assert!(disk.sequence > BATCHES);
    std::mem::forget(disk);
}

fn load_child(dir: &Path) -> ! {
    let mut disk = Disk::open(dir.to_owned());
    let (started, before) = (Instant::now(), cpu());
    for first in (0..KEYS).step_by(64) {
        disk.submit((first..KEYS.min(first + 64)).map(change).collect());
        if first % (64 * 16) == 0 {
            disk.wait();
        }
    }
    disk.wait();
    println!("filled {KEYS} keys, 64 a batch: {:.0}/s, {}", rate(KEYS, started), memory());
    print_cpu(&before, KEYS, "change");
    stream(disk)
}

/// Batches of one change, so many in flight, while another thread reads.
fn stream(mut disk: Disk) -> ! {
    let (started, before, counted) = (Instant::now(), cpu(), disk.committer.counters());
    let mut waits = Vec::new();
    let mut sent: VecDeque<(u64, Instant)> = VecDeque::new();
    let is_over = Arc::new(AtomicBool::new(false));
    let (store, over) = (Arc::clone(&disk.store), Arc::clone(&is_over));
    let reader = thread::spawn(move || {
        let mut reads = Vec::new();
        while !over.load(Ordering::Relaxed) {
            let read = Instant::now();
            let found = store.get(Table::Records, &key(scattered(reads.len() as u64) % KEYS));
            assert!(found.expect("the disk is well").is_some());
            reads.push(read.elapsed());
            thread::sleep(Duration::from_micros(100));
        }
        reads
    });
    for number in 0..BATCHES {
        while sent.len() >= IN_FLIGHT {
            let committed = disk.committed.recv().expect("the committer runs");
            while let Some((_, at)) = sent.pop_front_if(|(sequence, _)| Sequence(*sequence) <= committed) {
                waits.push(at.elapsed());
            }
        }
        disk.sequence += 1;
        sent.push_back((disk.sequence, Instant::now()));
        let changes = vec![change(scattered(number) % KEYS)];
        disk.committer.submit(Batch { sequence: Sequence(disk.sequence), changes }).expect("there is room");
    }
    println!("{IN_FLIGHT} batches of 1 in flight: {:.0}/s, {}", rate(BATCHES, started), memory());
    let counters = disk.committer.counters();
    let syncs = counters.syncs - counted.syncs;
    println!(
        "  {:.1} batches a sync, longest sync {:?}",
        BATCHES as f64 / syncs as f64,
        counters.sync_time_max
    );
    print_cpu(&before, BATCHES, "batch");
    println!("  commits: {}", quantiles(waits));
    is_over.store(true, Ordering::Relaxed);
    println!("  reads meanwhile: {}", quantiles(reader.join().expect("it reads")));
    process::abort()
}

fn rate(count: u64, since: Instant) -> f64 {
    count as f64 / since.elapsed().as_secs_f64()
}

fn quantiles(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |share: usize| times[(times.len() - 1) * share / 1000];
    format!("p50 {:?}, p99 {:?}, p99.9 {:?}, worst {:?}", at(500), at(990), at(999), at(1000))
}

/// Resident memory, now and at most.
fn memory() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("0");
        line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024
    };
    format!("{} MiB in memory, {} at most", field("VmRSS:"), field("VmHWM:"))
}

/// Microseconds of CPU that each thread has used.
fn cpu() -> Vec<(String, f64)> {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let threads = tasks.filter_map(|task| {
        let name = fs::read_to_string(task.path().join("comm")).ok()?.trim().to_owned();
        let used = fs::read_to_string(task.path().join("schedstat")).ok()?;
        Some((name, used.split_whitespace().next()?.parse::<f64>().ok()? / 1000.0))
    });
    threads.collect()
}

fn print_cpu(before: &[(String, f64)], count: u64, each: &str) {
    for name in ["committer", "fjall:worker", "reaper"] {
        let used = |threads: &[(String, f64)]| {
            threads.iter().filter(|(thread, _)| thread == name).map(|(_, used)| used).sum::<f64>()
        };
        println!("  {name}: {:.2} us of CPU a {each}", (used(&cpu()) - used(before)) / count as f64);
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = commits, reads
}

fn main() {
    let arguments: Vec<String> = env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("load") => load(),
        Some("load-child") => load_child(Path::new(&arguments[2])),
        Some(_) | None => {
            benches();
            Criterion::default().configure_from_args().final_summary();
        }
    }
}
