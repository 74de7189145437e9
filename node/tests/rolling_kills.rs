//! Nodes that are killed, or restarted in good order, one after the other, under load: clients must not notice.
//!
//! Five processes, quorum reads and writes of three copies, an open loop of 64 workers. No request may fail after the
//! client's own retries, every read shows what was acknowledged before it, and everything acknowledged is there at the end.
//! A few kills by default; ten minutes of them with `QUORATE_ROLLING_SECONDS=600 QUORATE_ROLLING_RATE=4000 cargo test
//! --release -p quorate-node --test rolling_kills -- --nocapture`, which prints latencies before and during.

// Tests of running programs deal with the world.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::print_stderr, clippy::unwrap_used)]

mod running;
mod settings;

use std::{
    cell::Cell,
    rc::Rc,
    time::{Duration, Instant},
};

use client::{Client, KeyspaceHandle, Level};
use ring::NodeId;
use running::{ByHand, Running, eventually, missing, signal};
use settings::number_from;
use tokio::task::LocalSet;

const NODES: u32 = 5;
const WORKERS: u32 = 64;
const TIMEOUT: Duration = Duration::from_secs(5);

/// What one worker has seen.
#[derive(Default)]
struct Seen {
    /// When each request should have begun, since the start, and how long after that it ended.
    latencies: Vec<(Duration, Duration)>,
    acknowledged: Vec<String>,
    failures: Vec<String>,
}

/// Writes new keys and reads old ones in turn, each at its time or as soon after as the one before has ended.
async fn work(
    keyspace: KeyspaceHandle,
    worker: u32,
    interval: Duration,
    began: Instant,
    is_over: Rc<Cell<bool>>,
) -> Seen {
    let mut seen = Seen::default();
    let offset = interval * worker / WORKERS;
    for number in 0_u32.. {
        let due = offset + interval * number;
        tokio::time::sleep_until((began + due).into()).await;
        if is_over.get() {
            break;
        }
        if number % 2 == 0 {
            let key = format!("{worker}-{number}");
            let put = keyspace.put(key.clone(), key.clone()).retry_in_doubt(true).timeout(TIMEOUT);
            match put.send().await {
                Ok(_) => seen.acknowledged.push(key),
                Err(error) => seen.failures.push(format!("put {key} at {due:?}: {error}")),
            }
        } else if !seen.acknowledged.is_empty() {
            let key = &seen.acknowledged[number.wrapping_mul(0x9e37_79b1) as usize % seen.acknowledged.len()];
            match keyspace.get(key.clone()).r(Level::Quorum).timeout(TIMEOUT).send().await {
                Ok(found) if found.values.iter().any(|value| value.bytes == key.as_bytes()) => {}
                Ok(_) => seen.failures.push(format!("get {key} at {due:?}: not there")),
                Err(error) => seen.failures.push(format!("get {key} at {due:?}: {error}")),
            }
        }
        seen.latencies.push((due, began.elapsed() - due));
    }
    seen
}

/// The latency that all but so many in a thousand stay under.
fn quantile(latencies: &mut [Duration], permille: usize) -> Duration {
    latencies.sort_unstable();
    latencies[(latencies.len() * permille / 1000).min(latencies.len() - 1)]
}

async fn is_up_and_whole(client: &Client, node: u32) -> bool {
    for other in (1..=NODES).map(NodeId) {
        let Ok(status) = client.status(other, TIMEOUT).await else { return false };
        let is_up =
            other == NodeId(node) || status.peers.iter().any(|peer| peer.node == NodeId(node) && peer.is_up);
        if !is_up || status.copies != status.copies_whole {
            return false;
        }
    }
    true
}

/// How nodes end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// At once, and they are away for three seconds.
    Killed,
    /// In good order, and they are started again at once, as for an upgrade.
    Stopped,
}

#[test]
fn nodes_that_are_killed_one_after_the_other_cost_no_request() {
    roll(End::Killed);
}

#[test]
fn nodes_that_are_restarted_one_after_the_other_cost_no_request() {
    roll(End::Stopped);
}

/// Has a node end in good order.
async fn stop(running: &Running, node: u32) {
    signal(running.pid(node), "-TERM");
    // The file with its id goes with it.
    let file = running.options.node_directory(node).join("pid");
    eventually("the node has ended", Duration::from_secs(15), || async { !file.exists() }).await;
}

fn roll(end: End) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let seconds = number_from("QUORATE_ROLLING_SECONDS", 12_u32);
        let rate = number_from("QUORATE_ROLLING_RATE", 400_u32);
        let calm = Duration::from_secs(u64::from(seconds / 6).max(2));
        let running = Running::processes(NODES);
        let client = running.client().await;
        let keyspace = client.default_keyspace().unwrap();
        let interval = Duration::from_secs(1) * WORKERS / rate;
        let (began, is_over) = (Instant::now(), Rc::new(Cell::new(false)));
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| {
                let work = work(keyspace.clone(), worker, interval, began, Rc::clone(&is_over));
                tokio::task::spawn_local(work)
            })
            .collect();
        tokio::time::sleep(calm).await;
        let mut by_hand: Vec<Option<ByHand>> = (0..NODES).map(|_| None).collect();
        let mut ended = 0;
        for node in (1..=NODES).cycle() {
            let is_late = began.elapsed() >= Duration::from_secs(u64::from(seconds));
            if is_late && (end == End::Killed || ended >= NODES) {
                break;
            }
            let slot = &mut by_hand[node as usize - 1];
            match (end, slot.take()) {
                // Killed by this.
                (End::Killed, Some(process)) => drop(process),
                (End::Killed, None) => running.kill(node),
                (End::Stopped, process) => {
                    stop(&running, node).await;
                    drop(process);
                }
            }
            ended += 1;
            if end == End::Killed {
                tokio::time::sleep(Duration::from_secs(3)).await;
            }
            *slot = Some(ByHand::run(&running.options.node_config(node)));
            eventually("the node is back", Duration::from_secs(60), || is_up_and_whole(&client, node)).await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        is_over.set(true);
        let (mut before, mut during) = (Vec::new(), Vec::new());
        let (mut acknowledged, mut failures) = (Vec::new(), Vec::new());
        for worker in workers {
            let seen = worker.await.unwrap();
            for (due, latency) in seen.latencies {
                if due < calm { before.push(latency) } else { during.push(latency) }
            }
            acknowledged.extend(seen.acknowledged);
            failures.extend(seen.failures);
        }
        eprintln!(
            "{ended} nodes were {}, {} requests, {} failures; p50 {:?} and p99 {:?} before, {:?} and {:?} during; worst {:?}",
            if end == End::Killed { "killed" } else { "restarted" },
            before.len() + during.len(),
            failures.len(),
            quantile(&mut before, 500),
            quantile(&mut before, 990),
            quantile(&mut during, 500),
            quantile(&mut during, 990),
            quantile(&mut during, 1000),
        );
        assert!(failures.is_empty(), "{failures:?}");
        let lost = missing(&keyspace, &acknowledged).await;
        assert!(lost.is_empty(), "{} of {} are lost, {:?} first", lost.len(), acknowledged.len(), lost[0]);
        eprintln!("{} acknowledged writes are all there", acknowledged.len());
        client.close().await;
    });
}
