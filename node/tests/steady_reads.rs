//! Reads while a replica stands still for a moment again and again: others are asked in its place before it goes on.
//!
//! Three machines, reads of two of three copies at a steady rate, whose latencies count from when each was due. Prints
//! them; `QUORATE_STEADY_SECONDS=20 cargo test --release -p quorate-node --test steady_reads -- --nocapture` for figures.

// Tests of running programs deal with the world.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::print_stderr, clippy::unwrap_used)]

mod machines;
mod settings;

use std::time::{Duration, Instant};

use client::KeyspaceHandle;
use machines::{Dice, Machines};
use ring::NodeId;
use settings::number_from;

const KEYS: u64 = 5000;
/// Between two reads.
const EACH: Duration = Duration::from_millis(1);
/// How long a replica stands still, and how often: a tenth of the time, when two of three reads would wait for it.
const PAUSE: Duration = Duration::from_millis(60);
const PAUSED_EACH: Duration = Duration::from_millis(600);

/// What was measured: latencies in order, and how many reads failed.
struct Phase {
    latencies: Vec<Duration>,
    failed: usize,
}

impl Phase {
    fn quantile(&self, permille: usize) -> Duration {
        self.latencies[(self.latencies.len() * permille / 1000).min(self.latencies.len() - 1)]
    }

    /// The share of reads that took nearly as long as a pause.
    fn waiting(&self) -> f64 {
        let waiting = self.latencies.iter().filter(|took| **took > PAUSE * 2 / 3).count();
        waiting as f64 / self.latencies.len() as f64
    }

    fn say(&self, name: &str) {
        let [p50, p90, p99, p999] = [500, 900, 990, 999].map(|permille| self.quantile(permille));
        let (count, failed) = (self.latencies.len(), self.failed);
        eprintln!(
            "{name:<40} {count} reads   p50 {p50:.3?}   p90 {p90:.3?}   p99 {p99:.3?}   p99.9 {p999:.3?}   {failed} failed"
        );
    }
}

/// Reads at a steady rate for a while.
async fn measure(keyspace: &KeyspaceHandle, time: Duration) -> Phase {
    let (mut dice, began) = (Dice(7), Instant::now());
    let mut reads = Vec::new();
    let mut due = began;
    while due < began + time {
        tokio::time::sleep_until(due.into()).await;
        let get = keyspace.get(format!("key-{}", dice.below(KEYS))).timeout(Duration::from_secs(5));
        reads.push(tokio::task::spawn_local(async move { (get.send().await.is_ok(), due.elapsed()) }));
        due += EACH;
    }
    let (mut latencies, mut failed) = (Vec::new(), 0);
    for read in reads {
        let (is_answered, took) = read.await.unwrap();
        failed += usize::from(!is_answered);
        latencies.push(took);
    }
    latencies.sort_unstable();
    Phase { latencies, failed }
}

#[test]
fn reads_do_not_wait_for_a_replica_that_stands_still_for_a_moment() {
    let time = Duration::from_secs(number_from("QUORATE_STEADY_SECONDS", 3));
    let Some(machines) = Machines::started(3, "exchange_interval_ms = 1000\n") else { return };
    machines.block_on(async {
        let client = machines.client().await;
        let keyspace = client.default_keyspace().unwrap();
        for number in 0..KEYS {
            keyspace.put(format!("key-{number}"), vec![b'v'; 100]).send().await.unwrap();
        }
        drop(measure(&keyspace, time / 2).await);
        let well = measure(&keyspace, time).await;
        well.say("all are well");
        let hedged = || {
            let of = |node| machines.metric(NodeId(node), "quorate_reads_hedged_total").unwrap_or(0.0);
            (1..=3).map(of).sum::<f64>()
        };
        let before = hedged();
        let signal = |name| machines.machines[2].lock().signal(name);
        let pausing = async {
            loop {
                tokio::time::sleep(PAUSED_EACH - PAUSE).await;
                signal("-STOP");
                tokio::time::sleep(PAUSE).await;
                signal("-CONT");
            }
        };
        let paused = tokio::select! {
            phase = measure(&keyspace, time) => phase,
            () = pausing => unreachable!("it goes on and on"),
        };
        signal("-CONT");
        paused.say("one stands still a tenth of the time");
        eprintln!("{} reads asked another replica early", hedged() - before);
        assert_eq!((well.failed, paused.failed), (0, 0));
        assert!(hedged() > before);
        // Of all reads six or seven in a hundred have to do with that replica while it stands still, most of them for long.
        // The machine itself may stand still, too.
        let waiting = paused.waiting() - well.waiting();
        assert!(waiting < 0.02, "of a thousand reads {:.1} waited for it", waiting * 1000.0);
        client.close().await;
    });
}
