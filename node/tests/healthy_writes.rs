//! Writes of which one replica is dead, slow, still, or owed as many hints as are kept: the others have to be as quick as
//! they were.
//!
//! Three machines, writes at a quorum of three copies in a closed loop. Prints throughput and latencies of each phase;
//! `QUORATE_HEALTHY_SECONDS=15 cargo test --release -p quorate-node --test healthy_writes -- --nocapture` for figures.

// Tests of running programs deal with the world.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::print_stderr, clippy::unwrap_used)]

mod machines;
mod settings;

use std::{
    cell::Cell,
    rc::Rc,
    time::{Duration, Instant},
};

use client::KeyspaceHandle;
use machines::{Dice, Machine, Machines};
use ring::NodeId;
use settings::number_from;

const NODES: u32 = 3;
const WRITERS: u64 = 16;
const KEYS: u64 = 20_000;
/// As many hints as are kept for one node here: a fraction of the keys.
const HINTS_MAX: u32 = 500;
const TIMEOUT: Duration = Duration::from_secs(5);

/// What was measured in one phase.
struct Phase {
    name: &'static str,
    writes: usize,
    failures: Vec<String>,
    took: Duration,
    /// In order.
    latencies: Vec<Duration>,
}

impl Phase {
    fn quantile(&self, permille: usize) -> Duration {
        self.latencies[(self.latencies.len() * permille / 1000).min(self.latencies.len() - 1)]
    }

    fn rate(&self) -> f64 {
        self.writes as f64 / self.took.as_secs_f64()
    }
}

/// Writes for a while.
async fn measure(name: &'static str, keyspace: &KeyspaceHandle, time: Duration) -> Phase {
    let (began, is_over) = (Instant::now(), Rc::new(Cell::new(false)));
    let work = |writer: u64| {
        let (keyspace, is_over) = (keyspace.clone(), Rc::clone(&is_over));
        async move {
            let mut dice = Dice(writer);
            let (mut latencies, mut failures) = (Vec::new(), Vec::new());
            while !is_over.get() {
                let key = format!("key-{}", dice.below(KEYS));
                let sent = Instant::now();
                // Replaces what is there, so that values do not pile up.
                let found = keyspace.get(key.clone()).timeout(TIMEOUT).send().await;
                let read = sent.elapsed();
                let put = match found {
                    Ok(found) => {
                        let put = keyspace.put(key, vec![b'v'; 100]).context(found.context);
                        put.retry_in_doubt(true)
                            .timeout(TIMEOUT)
                            .send()
                            .await
                            .map_err(|error| error.to_string())
                    }
                    Err(error) => Err(error.to_string()),
                };
                match put {
                    Ok(_) => latencies.push(sent.elapsed() - read),
                    Err(error) => failures.push(error),
                }
            }
            (latencies, failures)
        }
    };
    let workers: Vec<_> = (0..WRITERS).map(|writer| tokio::task::spawn_local(work(writer))).collect();
    tokio::time::sleep(time).await;
    is_over.set(true);
    let (mut latencies, mut failures) = (Vec::new(), Vec::new());
    for worker in workers {
        let (more, failed) = worker.await.unwrap();
        latencies.extend(more);
        failures.extend(failed);
    }
    latencies.sort_unstable();
    let phase = Phase { name, writes: latencies.len(), failures, took: began.elapsed(), latencies };
    eprintln!(
        "{:<28} {:>6.0} writes/s   p50 {:>9.3?}   p99 {:>9.3?}   worst {:>9.3?}   {} failed",
        phase.name,
        phase.rate(),
        phase.quantile(500),
        phase.quantile(990),
        phase.quantile(1000),
        phase.failures.len()
    );
    phase
}

#[test]
fn healthy_writes_do_not_feel_a_replica_that_is_not() {
    let time = Duration::from_secs(number_from("QUORATE_HEALTHY_SECONDS", 2));
    let limits = format!("hints_per_peer_max = {HINTS_MAX}\n");
    let Some(machines) = Machines::started(NODES, &limits) else { return };
    machines.block_on(async {
        let client = machines.client().await;
        let keyspace = client.default_keyspace().unwrap();
        let third = |change: &dyn Fn(&mut Machine)| change(&mut machines.machines[2].lock());
        let noticed = Duration::from_secs(3);
        drop(measure("(warming up)", &keyspace, time / 2).await);
        let before = measure("all are well", &keyspace, time).await;
        let mut phases = Vec::new();
        third(&|machine| machine.kill());
        phases.push(measure("one is killed just now", &keyspace, noticed).await);
        phases.push(measure("one is dead", &keyspace, time).await);
        let dropped = || machines.metric(NodeId(1), "quorate_hints_total{event=\"dropped\"}").unwrap_or(0.0);
        assert!(dropped() > 0.0, "its queue is full by now");
        third(&|machine| machine.start());
        machines.recovered(&client).await;
        third(&|machine| machine.signal("-STOP"));
        phases.push(measure("one stands still just now", &keyspace, noticed).await);
        phases.push(measure("one stands still", &keyspace, time).await);
        third(&|machine| machine.signal("-CONT"));
        machines.recovered(&client).await;
        if machines.can_fail_syncs.is_ok() {
            third(&|machine| machine.set_syncs(Some("200")));
            phases.push(measure("one syncs in 200 ms", &keyspace, time.max(noticed)).await);
            third(&|machine| machine.set_syncs(None));
            machines.recovered(&client).await;
        }
        phases.push(measure("all are well again", &keyspace, time).await);
        for phase in phases {
            assert!(phase.failures.is_empty(), "{}: {:?}", phase.name, phase.failures);
            // Machines are shared and noisy: what is meant to be seen here is seconds, or a tenth of the throughput.
            assert!(phase.rate() > before.rate() / 4.0, "{}: {} a second", phase.name, phase.rate());
        }
        client.close().await;
    });
}
