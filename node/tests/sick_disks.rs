//! A disk that is full or read-only: its node refuses writes, says so, and goes on serving reads; clients at a quorum notice
//! nothing.

// Tests of running programs deal with the world.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::print_stderr, clippy::unwrap_used)]

mod machines;
mod settings;

use std::time::{Duration, Instant};

use client::{KeyspaceHandle, Level};
use machines::{Machine, Machines};
use ring::NodeId;

const SICK: NodeId = NodeId(2);
const TIMEOUT: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(30);
const KEYS: usize = 50;

/// Makes a disk sick and well again.
struct Sickness {
    name: &'static str,
    strike: fn(&mut Machine),
    heal: fn(&mut Machine),
}

const SICKNESSES: [Sickness; 2] = [
    Sickness {
        name: "full",
        strike: |machine| machine.volume.fill(100 << 20),
        heal: |machine| machine.volume.make_room(),
    },
    Sickness {
        name: "read-only",
        strike: |machine| machine.volume.make_read_only().unwrap(),
        heal: |machine| {
            machine.kill();
            machine.volume.repair();
            machine.start();
        },
    },
];

/// Reads every key from all replicas.
async fn read_all(keyspace: &KeyspaceHandle, name: &str) {
    for number in 0..KEYS {
        let get = keyspace.get(format!("{name}-{number}")).r(Level::All).timeout(TIMEOUT);
        let found = get.send().await.unwrap_or_else(|error| panic!("{name}: key {number}: {error}"));
        assert!(found.values.iter().any(|value| value.bytes == number.to_string().as_bytes()));
    }
}

#[test]
fn a_disk_that_takes_no_writes_costs_its_node_the_writes_and_nothing_else() {
    let Some(machines) = Machines::started(3, "exchange_interval_ms = 1000\n") else { return };
    machines.block_on(async {
        let client = machines.client().await;
        let keyspace = client.default_keyspace().unwrap();
        let machine = || machines.machines[SICK.0 as usize - 1].lock();
        let refused = || machines.metric(SICK, "quorate_storage_batches_refused_total").unwrap_or(0.0);
        let first_began = Instant::now();
        for Sickness { name, strike, heal } in SICKNESSES {
            for number in 0..KEYS {
                let put = keyspace.put(format!("{name}-{number}"), number.to_string()).w(Level::All);
                put.timeout(TIMEOUT).send().await.unwrap();
            }
            // A sync that is under way when a file system fails fails too, and ends the process. Nobody is to owe the node
            // anything that would come just then.
            // A sync that is under way when a file system fails fails too, and ends the process: no hint is to come then.
            machines.recovered(&client).await;
            let before = refused();
            strike(&mut machine());
            let began = Instant::now();
            let mut written = 0;
            while refused() == before {
                let put = keyspace.put(format!("{name}-during-{written}"), "value").timeout(TIMEOUT);
                let put = put.send().await;
                put.unwrap_or_else(|error| panic!("{name}: a write at a quorum: {error}"));
                written += 1;
                assert!(began.elapsed() < PATIENCE, "{name}: nothing says so after {written} writes");
            }
            for number in 0..KEYS {
                let put =
                    keyspace.put(format!("{name}-still-{number}"), "value").timeout(TIMEOUT).send().await;
                put.unwrap_or_else(|error| panic!("{name}: a write at a quorum: {error}"));
            }
            // It answers for its copies all the same.
            read_all(&keyspace, name).await;
            let all = keyspace.put(format!("{name}-all"), "value").w(Level::All);
            let all = all.timeout(Duration::from_secs(1)).send().await;
            assert!(all.is_err(), "{name}: {all:?}");
            heal(&mut machine());
            let began = Instant::now();
            loop {
                let put = keyspace.put(format!("{name}-after"), "value").w(Level::All);
                match put.timeout(Duration::from_secs(1)).send().await {
                    Ok(_) => break,
                    Err(error) => assert!(began.elapsed() < PATIENCE, "{name}: well again, and yet {error}"),
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            eprintln!("{name}: {written} writes at a quorum meanwhile, all reads answered by all");
        }
        // Each of some hundred batches was refused, and that is said once in ten seconds.
        let said = machines.said(SICK, "the store refuses batches");
        let said_max = 2 + usize::try_from(first_began.elapsed().as_secs()).unwrap() / 10;
        assert!((1..=said_max).contains(&said), "said {said} times");
        client.close().await;
    });
}
