//! Power that goes: three processes on file systems of their own, which are shut down under load. What a file system had
//! not been told to sync is gone then, as it is when a machine loses its power; what was acknowledged as on disk must not be.
//! (With the journal's sync taken out, the first of these losses takes thousands of acknowledged writes along.)
//!
//! Needs the right to mount: it says so and tests nothing without. A few cycles by default; many with
//! `QUORATE_POWER_CUTS=200 cargo test --release -p quorate-node --test power_loss -- --nocapture`.

// Tests of running programs deal with the world.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::print_stderr, clippy::unwrap_used)]

mod running;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use client::{Client, KeyspaceHandle, Level};
use ring::NodeId;
use running::{ByHand, Running, eventually, missing, number_from, signal};

const NODES: u32 = 3;
const WRITERS: usize = 32;
const TIMEOUT: Duration = Duration::from_secs(5);
/// `EXT4_IOC_SHUTDOWN`, without flushing anything (Linux, `fs/ext4/ext4.h`), said in a language that every Debian has.
const SHUT_DOWN: &str =
    r#"open(F, "<", $ARGV[0]) or die $!; my $f = pack("L", 2); ioctl(F, 0x8004587D, $f) or die $!"#;

/// A file system in a file, mounted where a node keeps its data.
struct Volume {
    image: PathBuf,
    mounted_at: PathBuf,
}

impl Volume {
    /// Makes a file system that holds what is in `directory` now, and mounts it there.
    fn over(directory: &Path) -> Result<Volume, String> {
        let image = directory.with_extension("img");
        let volume = Volume { image, mounted_at: directory.to_path_buf() };
        let file = fs::File::create(&volume.image).map_err(|error| error.to_string())?;
        file.set_len(2 << 30).map_err(|error| error.to_string())?;
        run("mkfs.ext4", &["-q", "-F", text(&volume.image)])?;
        let kept = directory.with_extension("kept");
        fs::rename(directory, &kept).map_err(|error| error.to_string())?;
        fs::create_dir(directory).map_err(|error| error.to_string())?;
        volume.mount()?;
        run("cp", &["-a", &format!("{}/.", text(&kept)), text(directory)])?;
        run("sync", &["-f", text(directory)])?;
        Ok(volume)
    }

    fn mount(&self) -> Result<(), String> {
        run("mount", &["-o", "loop", text(&self.image), text(&self.mounted_at)])
    }

    /// The power goes.
    fn shut_down(&self) {
        run("perl", &["-e", SHUT_DOWN, text(&self.mounted_at)]).unwrap();
    }

    /// It is back, and with it what was synced.
    fn mount_again(&self) {
        run("umount", &[text(&self.mounted_at)]).unwrap();
        self.mount().unwrap();
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        drop(run("umount", &[text(&self.mounted_at)]));
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let Output { status, stderr, .. } =
        Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    if status.success() {
        return Ok(());
    }
    Err(format!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&stderr).trim()))
}

/// Numbers that differ from run to run, and are printed so that a run can be told from another.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

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
        let volume = |node| Volume::over(&running.options.node_directory(node).join("data"));
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
    let cycles = number_from("QUORATE_POWER_CUTS", 3);
    let mut machines = match Machines::new() {
        Ok(machines) => machines,
        Err(reason) => {
            eprintln!("SKIPPED, NOTHING WAS TESTED: file systems of its own cannot be had: {reason}");
            return;
        }
    };
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).unwrap();
    let mut random = Random(u64::from_be_bytes(seed));
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
