//! Power that goes: three processes on file systems of their own, which are shut down under load. What a file system had
//! not been told to sync is gone then, as it is when a machine loses its power; what was acknowledged as on disk must not be.
//! (With the journal's sync taken out, the first of these losses takes thousands of acknowledged writes along.)
//!
//! Needs the right to mount: it says so and tests nothing without. A few cycles by default; many with
//! `QUORATE_POWER_CUTS=200 cargo test --release -p quorate-node --test power_loss -- --nocapture`.

// Tests of running programs deal with the world.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::print_stderr, clippy::unwrap_used)]

mod machines;
mod running;
mod settings;

use std::time::{Duration, Instant};

use client::{Client, KeyspaceHandle, Level};
use machines::{Dice, volume::Volume};
use ring::NodeId;
use running::{ByHand, Running, eventually, missing, signal};
use settings::number_from;

const NODES: u32 = 3;
const WRITERS: usize = 32;
const TIMEOUT: Duration = Duration::from_secs(5);
/// The size of a node's file system.
const VOLUME_BYTES: u64 = 2 << 30;

/// Processes on volumes. Fields are dropped in order: processes end before their file systems go.
struct Machines {
    processes: Vec<Option<ByHand>>,
    volumes: Vec<Volume>,
    running: Running,
}

impl Machines {
    /// A formed cluster whose data is moved to volumes; not started yet.
    fn new() -> Result<Machines, String> {
        let mut running = Running::processes(NODES);
        running.stop();
        let volume = |node| Volume::over(&running.options.node_directory(node).join("data"), VOLUME_BYTES);
        let volumes = (1..=NODES).map(volume).collect::<Result<Vec<_>, _>>()?;
        Ok(Machines { processes: (0..NODES).map(|_| None).collect(), volumes, running })
    }

    fn start_all(&mut self) {
        for (process, node) in self.processes.iter_mut().zip(1..) {
            if process.is_none() {
                *process = Some(ByHand::run(&self.running.options.node_config(node)));
            }
        }
    }

    /// The power of some machines goes, at once as far as anybody can tell: their processes stand still first.
    fn cut_power(&mut self, which: &[usize]) {
        for index in which {
            signal(self.processes[*index].as_ref().unwrap().pid(), "-STOP");
        }
        for index in which {
            self.volumes[*index].shut_down();
        }
        for index in which {
            // Killed by this.
            self.processes[*index] = None;
            self.volumes[*index].mount_again();
        }
    }

    async fn client(&self) -> Client {
        let began = Instant::now();
        loop {
            match Client::connect(self.running.client_config()).await {
                Ok(client) => return client,
                Err(error) => assert!(began.elapsed() < Duration::from_secs(30), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Writes new keys until told to stop. Those that were acknowledged.
async fn write(keyspace: KeyspaceHandle, cycle: u32, writer: usize, until: Instant) -> Vec<String> {
    let mut acknowledged = Vec::new();
    for number in 0.. {
        if Instant::now() >= until {
            break;
        }
        let key = format!("{cycle}-{writer}-{number}");
        if keyspace.put(key.clone(), key.clone()).timeout(Duration::from_secs(1)).send().await.is_ok() {
            acknowledged.push(key);
        }
    }
    acknowledged
}

#[tokio::test]
async fn what_was_acknowledged_as_on_disk_survives_the_loss_of_power_everywhere() {
    let cycles = number_from("QUORATE_POWER_CUTS", 3_u32);
    let mut machines = match Machines::new() {
        Ok(machines) => machines,
        Err(reason) => {
            eprintln!("SKIPPED, NOTHING WAS TESTED: file systems of its own cannot be had: {reason}");
            return;
        }
    };
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).unwrap();
    let mut random = Dice(u64::from_be_bytes(seed));
    machines.start_all();
    let mut all = Vec::new();
    for cycle in 0..cycles {
        let client = machines.client().await;
        let keyspace = client.default_keyspace().unwrap();
        eventually("writes are taken", Duration::from_secs(30), || async {
            let put =
                keyspace.put(format!("ready-{cycle}"), "yes").timeout(Duration::from_secs(1)).send().await;
            if let Err(error) = &put {
                eprintln!("cycle {cycle}: not yet: {error}");
            }
            put.is_ok()
        })
        .await;
        let load = Duration::from_millis(200 + random.below(600));
        let until = Instant::now() + load;
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| tokio::spawn(write(keyspace.clone(), cycle, writer, until + TIMEOUT / 10)))
            .collect();
        tokio::time::sleep_until(until.into()).await;
        // Mostly all machines lose their power at once, as in one room; at times one or two.
        let which: Vec<usize> = match random.below(4) {
            0 => vec![usize::try_from(random.below(3)).unwrap()],
            1 => vec![0, 2],
            _ => vec![0, 1, 2],
        };
        machines.cut_power(&which);
        let mut acknowledged = Vec::new();
        for writer in writers {
            acknowledged.extend(writer.await.unwrap());
        }
        client.close().await;
        machines.start_all();
        let client = machines.client().await;
        let keyspace = client.default_keyspace().unwrap();
        eventually("reads are answered", Duration::from_secs(30), || async {
            keyspace
                .get(format!("ready-{cycle}"))
                .r(Level::All)
                .timeout(Duration::from_secs(1))
                .send()
                .await
                .is_ok()
        })
        .await;
        let lost = missing(&keyspace, &acknowledged).await;
        assert!(
            lost.is_empty(),
            "cycle {cycle}, machines {which:?}: {} lost, {:?} first",
            lost.len(),
            lost[0]
        );
        for node in 1..=NODES {
            let status = client.status(NodeId(node), TIMEOUT).await.unwrap();
            assert!(status.is_recorded, "node {node} lost its store in cycle {cycle}");
            assert_eq!(
                status.copies, status.copies_whole,
                "node {node} took this for a loss in cycle {cycle}"
            );
        }
        all.extend(acknowledged);
        client.close().await;
        if cycle % 10 == 9 {
            eprintln!("{} power losses, {} acknowledged writes, none lost", cycle + 1, all.len());
        }
    }
    let client = machines.client().await;
    let keyspace = client.default_keyspace().unwrap();
    let lost = missing(&keyspace, &all).await;
    assert!(lost.is_empty(), "{} of {} are lost, {:?} first", lost.len(), all.len(), lost[0]);
    eprintln!("{cycles} power losses, {} acknowledged writes, none lost", all.len());
    client.close().await;
}
