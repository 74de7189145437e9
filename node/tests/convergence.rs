//! A node that was away, or whose disk was wiped, has everything again soon after its return, by exchanges alone: nobody
//! keeps hints for it.
//!
//! Five processes; while one is down a tenth of the keys are overwritten and a hundredth are deleted. Then it comes back, and
//! the time is taken until every other node has completed an exchange with it; then every key is read from all its replicas,
//! which have to agree. Twenty thousand keys by default; the figures are those of `QUORATE_CONVERGENCE_KEYS=1000000 cargo test
//! --release -p quorate-node --test convergence -- --nocapture --test-threads 1`.

// Tests of running programs deal with the world.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::print_stderr, clippy::unwrap_used)]

mod running;
mod settings;

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use client::{Client, ClientConfig, KeyspaceHandle, Level, ReadRepair};
use ring::Durability;
use running::{ByHand, Running, eventually, eventually_looking};
use settings::number_from;
use tokio::task::LocalSet;

const NODES: u32 = 5;
/// The node that is away.
const AWAY: u32 = 5;
const TIMEOUT: Duration = Duration::from_secs(10);
/// Requests at once.
const WORKERS: u64 = 64;
/// Requests a second of the load that goes on meanwhile.
const RATE: u32 = 400;
/// Fewer keys are no measurement.
const KEYS_MEASURED: u64 = 100_000;
/// How often the nodes are looked at, with the load and before: looking costs them time, too.
const LOOK_EVERY: Duration = Duration::from_millis(250);

fn key(number: u64) -> String {
    format!("key-{number:012}")
}

/// A value of a hundred bytes.
fn value(number: u64, round: u32) -> String {
    format!("{number:050}{round:050}")
}

/// Does something for each of so many numbers, some at once.
async fn each<F: Future<Output = ()> + 'static>(
    numbers: std::ops::Range<u64>,
    act: impl Fn(u64) -> F + 'static,
) {
    let (next, act) = (Rc::new(Cell::new(numbers.start)), Rc::new(act));
    let worker = |_| {
        let (next, act) = (Rc::clone(&next), Rc::clone(&act));
        tokio::task::spawn_local(async move {
            while next.get() < numbers.end {
                let number = next.get();
                next.set(number + 1);
                act(number).await;
            }
        })
    };
    for worker in (0..WORKERS).map(worker).collect::<Vec<_>>() {
        worker.await.unwrap();
    }
}

/// What exchanges have cost and done, over all nodes.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    payload: f64,
    finding: f64,
    differences: f64,
    objects: f64,
}

impl Cost {
    fn of(running: &Running) -> Cost {
        let mut cost = Cost::default();
        for node in 1..=NODES {
            let metric = |name: &str| running.metric(node, name).unwrap_or_default();
            cost.payload += metric("quorate_antientropy_exchange_bytes_total{kind=\"payload\"}");
            cost.finding += metric("quorate_antientropy_exchange_bytes_total{kind=\"finding\"}");
            cost.differences += metric("quorate_antientropy_exchange_differences_total");
            for path in ["anti_entropy", "movement"] {
                cost.objects += metric(&format!("quorate_repair_objects_total{{path=\"{path}\"}}"));
            }
        }
        cost
    }

    fn since(self, before: Cost) -> Cost {
        Cost {
            payload: self.payload - before.payload,
            finding: self.finding - before.finding,
            differences: self.differences - before.differences,
            objects: self.objects - before.objects,
        }
    }
}

/// A request of the load.
#[derive(Clone, Copy)]
struct Taken {
    began: Instant,
    time: Duration,
    is_put: bool,
}

/// A load that goes on steadily, in a thread of its own: nothing that the test does delays it.
struct Load {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Taken>>,
}

impl Load {
    fn begin(config: ClientConfig) -> Load {
        let is_over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&is_over);
        let thread = std::thread::spawn(move || run(load(config, until)));
        Load { is_over, thread }
    }

    fn end(self) -> Vec<Taken> {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Reads and writes keys of its own, steadily, until it is over.
async fn load(config: ClientConfig, is_over: Arc<AtomicBool>) -> Vec<Taken> {
    let client = Client::connect(config).await.unwrap();
    let keyspace = client.default_keyspace().unwrap();
    let taken = Rc::new(RefCell::new(Vec::new()));
    let began = Instant::now();
    let mut requests = Vec::new();
    for number in 0.. {
        tokio::time::sleep_until((began + Duration::from_secs(1) * number / RATE).into()).await;
        if is_over.load(Ordering::Relaxed) {
            break;
        }
        let (keyspace, taken) = (keyspace.clone(), Rc::clone(&taken));
        requests.push(tokio::task::spawn_local(async move {
            let (began, key) = (Instant::now(), format!("load-{}", number / 2 % 1000));
            if number % 2 == 0 {
                keyspace
                    .put(key, value(number.into(), 0))
                    .timeout(TIMEOUT)
                    .retry_in_doubt(true)
                    .send()
                    .await
                    .unwrap();
            } else {
                keyspace.get(key).timeout(TIMEOUT).send().await.unwrap();
            }
            taken.borrow_mut().push(Taken { began, time: began.elapsed(), is_put: number % 2 == 0 });
        }));
    }
    for request in requests {
        request.await.unwrap();
    }
    client.close().await;
    Rc::unwrap_or_clone(taken).into_inner()
}

fn p99(taken: &[Taken], is_meant: impl Fn(&Taken) -> bool) -> Duration {
    let mut times: Vec<Duration> =
        taken.iter().filter(|taken| is_meant(taken)).map(|taken| taken.time).collect();
    times.sort_unstable();
    times.get(times.len() * 99 / 100).copied().unwrap_or_default()
}

/// The 99th percentile of all requests, of the puts and of the gets.
fn p99s(taken: &[Taken]) -> String {
    let [all, puts, gets] =
        [p99(taken, |_| true), p99(taken, |taken| taken.is_put), p99(taken, |taken| !taken.is_put)];
    format!("{all:.1?} ({puts:.1?} of puts, {gets:.1?} of gets)")
}

async fn is_formed(client: &Client, nodes: &[u32]) -> bool {
    for node in nodes {
        let Ok(status) = client.status(ring::NodeId(*node), TIMEOUT).await else { return false };
        if status.copies != status.copies_whole {
            return false;
        }
    }
    true
}

/// Whether these nodes have compared since then with one that has come back, and all copies are whole.
async fn are_in_sync(
    running: &Running,
    client: &Client,
    others: &[u32],
    away: u32,
    returned: Instant,
) -> bool {
    let name = format!("quorate_antientropy_in_sync_age_seconds{{peer=\"{away}\"}}");
    let since = returned.elapsed().as_secs_f64();
    let is_in_sync = |node: &u32| running.metric(*node, &name).is_some_and(|age| age < since);
    let all: Vec<u32> = others.iter().copied().chain([away]).collect();
    others.iter().all(is_in_sync) && is_formed(client, &all).await
}

/// Waits until they are. How long it took since the node has come back.
async fn in_sync(
    running: &Running,
    client: &Client,
    others: &[u32],
    away: u32,
    returned: Instant,
) -> Duration {
    let check = || are_in_sync(running, client, others, away, returned);
    eventually_looking(LOOK_EVERY, "all are in sync with it", Duration::from_secs(300), check).await;
    returned.elapsed()
}

/// What the load is like while nothing is repaired, in the eyes of one who looks at the nodes as often as later.
async fn calm(running: &Running, client: &Client, keys: u64, others: &[u32]) -> String {
    let load = Load::begin(running.client_config());
    let (began, time) = (Instant::now(), Duration::from_secs(if keys < KEYS_MEASURED { 2 } else { 10 }));
    while began.elapsed() < time {
        are_in_sync(running, client, others, AWAY, began).await;
        tokio::time::sleep(LOOK_EVERY).await;
    }
    p99s(&load.end())
}

/// Reads every key from all its replicas: they agree, and nothing has come back.
async fn agree(keyspace: KeyspaceHandle, keys: u64, expected: impl Fn(u64) -> Option<String> + 'static) {
    each(0..keys, move |number| {
        let get =
            keyspace.get(key(number)).r(Level::All).read_repair(ReadRepair::Off).timeout(TIMEOUT).send();
        let expected = expected(number);
        async move {
            let found = get.await.unwrap();
            assert!(found.freshness.agreed, "the replicas of {} differ", key(number));
            let values: Vec<&[u8]> = found.values.iter().map(|value| &*value.bytes).collect();
            assert_eq!(values, Vec::from_iter(expected.iter().map(String::as_bytes)), "{}", key(number));
        }
    })
    .await;
}

/// Two nodes, of which one has everything and the other nothing.
async fn repair() {
    let keys = number_from("QUORATE_CONVERGENCE_KEYS", 20_000_u64);
    let running = Running::processes_with(2, "hints_per_peer_max = 1\n");
    let client = running.client().await;
    let keyspace = client.default_keyspace().unwrap();
    eventually("all are whole", Duration::from_secs(30), || is_formed(&client, &[1, 2])).await;
    running.kill(2);
    let writer = keyspace.clone();
    each(0..keys, move |number| {
        let put = writer.put(key(number), value(number, 1)).w(Level::One).durability(Durability::Memory);
        let put = put.timeout(TIMEOUT).retry_in_doubt(true).send();
        async move { drop(put.await.unwrap()) }
    })
    .await;
    let (before, returned) = (Cost::of(&running), Instant::now());
    let process = ByHand::run(&running.options.node_config(2));
    let converged = in_sync(&running, &client, &[1], 2, returned).await;
    let cost = Cost::of(&running).since(before);
    eprintln!(
        "{keys} keys to one of two nodes: in sync {converged:.1?} after its start; {} objects, {:.0} a second; {:.2} MB of \
         payload and {:.2} MB to find {} differences",
        cost.objects,
        cost.objects / converged.as_secs_f64(),
        cost.payload / 1e6,
        cost.finding / 1e6,
        cost.differences,
    );
    agree(keyspace, keys, |number| Some(value(number, 1))).await;
    client.close().await;
    drop(process);
}

async fn come_back(is_wiped: bool) {
    let keys = number_from("QUORATE_CONVERGENCE_KEYS", 20_000_u64);
    let running = Running::processes_with(NODES, "hints_per_peer_max = 1\n");
    let client = running.client().await;
    let keyspace = client.default_keyspace().unwrap();
    let all: Vec<u32> = (1..=NODES).collect();
    eventually("all are whole", Duration::from_secs(30), || is_formed(&client, &all)).await;
    let (overwritten, deleted) = (keys / 10, keys / 10 + keys / 100);
    let writer = keyspace.clone();
    each(0..keys, move |number| {
        let put = writer.put(key(number), value(number, 1)).durability(Durability::Memory).timeout(TIMEOUT);
        let put = put.retry_in_doubt(true).send();
        async move { drop(put.await.unwrap()) }
    })
    .await;

    // All of that is synced by then.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let others: Vec<u32> = (1..=NODES).filter(|node| *node != AWAY).collect();
    let calm_with_all = calm(&running, &client, keys, &others).await;
    running.kill(AWAY);
    let writer = keyspace.clone();
    each(0..deleted, move |number| {
        let keyspace = writer.clone();
        async move {
            if number < overwritten {
                // A write that was tried again may be there twice: what a read has seen covers both.
                let found = keyspace.get(key(number)).timeout(TIMEOUT).send().await.unwrap();
                let put = keyspace.put(key(number), value(number, 2)).context(found.context);
                put.timeout(TIMEOUT).retry_in_doubt(true).send().await.unwrap();
            } else {
                keyspace.delete(key(number)).timeout(TIMEOUT).retry_in_doubt(true).send().await.unwrap();
            }
        }
    })
    .await;
    if is_wiped {
        std::fs::remove_dir_all(running.options.node_directory(AWAY).join("data")).unwrap();
    }

    let calm_without = calm(&running, &client, keys, &others).await;
    let load = Load::begin(running.client_config());
    let before = Cost::of(&running);
    let returned = Instant::now();
    let process = ByHand::run(&running.options.node_config(AWAY));
    if is_wiped {
        let change = Duration::from_secs(30);
        eventually("it is readmitted", change, || async {
            client.readmit(ring::NodeId(AWAY), change).await.is_ok()
        })
        .await;
    }
    let converged = in_sync(&running, &client, &others, AWAY, returned).await;
    let taken = load.end();
    let cost = Cost::of(&running).since(before);
    let second = |second: u64| {
        let is_within =
            |taken: &Taken| taken.began >= returned && (taken.began - returned).as_secs() == second;
        taken.iter().any(is_within).then(|| format!("{:.1?}", p99(&taken, is_within)))
    };
    eprintln!("p99 by the second: {}", (0..).map_while(second).collect::<Vec<_>>().join(", "));
    let bound = cost.payload + 16.0 * cost.differences;
    eprintln!(
        "{keys} keys, {}: in sync {converged:.1?} after the start; {} objects, {:.0} a second; {:.2} MB of payload and \
         {:.2} MB to find {} differences, {:.2} of the bound; p99 of {RATE} requests a second {calm_with_all} \
         while all were well, {calm_without} without the node and {} meanwhile",
        if is_wiped { "wiped" } else { "away" },
        cost.objects,
        cost.objects / converged.as_secs_f64(),
        cost.payload / 1e6,
        cost.finding / 1e6,
        cost.differences,
        (cost.payload + cost.finding) / bound,
        p99s(&taken),
    );

    agree(keyspace, keys, move |number| match number {
        number if number < overwritten => Some(value(number, 2)),
        number if number < deleted => None,
        number => Some(value(number, 1)),
    })
    .await;
    client.close().await;
    drop(process);
}

fn run<T>(story: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, story)
}

#[test]
fn one_of_two_nodes_is_soon_given_all_that_the_other_has() {
    run(repair());
}

#[test]
fn a_node_that_was_away_is_soon_in_sync() {
    run(come_back(false));
}

#[test]
fn a_node_whose_disk_was_wiped_is_soon_in_sync() {
    run(come_back(true));
}
