//! Machines for real processes: each node has a file system, a network namespace and a clock of its own, all of which can
//! be made to fail.

// Each test binary uses its own part of this; and tests of running programs deal with the world.
#![allow(
    dead_code,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::print_stderr,
    clippy::unwrap_used
)]

pub(crate) mod nemesis;
pub(crate) mod network;
mod preload;
pub(crate) mod recorder;
pub(crate) mod volume;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use client::{Client, ClientConfig};
use network::{Namespace, Switch, address};
use node::shell::dev::DevOptions;
use ring::NodeId;
use tokio::task::LocalSet;
use volume::Volume;

/// The size of a node's file system.
const VOLUME_BYTES: u64 = 2 << 30;
/// How long a node may take to say how it is.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a process may take to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a cluster may take to form.
const FORM_TIMEOUT: Duration = Duration::from_secs(60);

/// Numbers that differ from run to run, and are printed so that a run can be told from another.
#[derive(Clone, Debug)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// A number below a bound.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mixed = (self.0 ^ (self.0 >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 32) % bound
    }

    /// A position in something of this length.
    pub(crate) fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap()
    }

    /// A time between two.
    pub(crate) fn time(&mut self, least: Duration, most: Duration) -> Duration {
        least + Duration::from_millis(self.below(u64::try_from((most - least).as_millis()).unwrap() + 1))
    }
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs a program to its end; what it said, if it failed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let Output { status, stderr, .. } =
        Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    if status.success() {
        return Ok(());
    }
    Err(format!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&stderr).trim()))
}

/// A node's machine.
pub(crate) struct Machine {
    pub(crate) node: NodeId,
    program: PathBuf,
    directory: PathBuf,
    network: String,
    environment: Vec<(&'static str, String)>,
    pub(crate) volume: Volume,
    process: Option<Child>,
    /// Whether the process is down on purpose.
    is_down: bool,
}

/// A machine that several threads deal with. Whoever panics meanwhile is heard of, and the others go on.
pub(crate) struct Shared(Mutex<Machine>);

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Machine> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All machines. Fields are dropped in order: processes end before their file systems go, and the network last.
pub(crate) struct Machines {
    pub(crate) machines: Vec<Shared>,
    pub(crate) switch: Switch,
    pub(crate) options: DevOptions,
    pub(crate) can_fail_syncs: Result<(), String>,
    pub(crate) can_set_clocks: Result<(), String>,
    _directory: Scratch,
}

/// A directory that is removed at the end.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

impl Machines {
    /// So many machines, none of which runs yet. Fails where the rights or the tools are lacking. `program` is
    /// `quorated`. Wrong clocks slow down every look at the clock, so they have to be asked for.
    pub(crate) fn new(program: &Path, nodes: u32, with_clocks: bool, seed: u64) -> Result<Machines, String> {
        Machines::make(program, nodes, with_clocks, seed, "exchange_interval_ms = 2000\n")
    }

    /// So many machines with these limits in their configurations, all of them started. None if they cannot be had, which is
    /// said: nothing is tested then.
    pub(crate) fn started(nodes: u32, limits: &str) -> Option<Machines> {
        let program = Path::new(env!("CARGO_BIN_EXE_quorated"));
        match Machines::make(program, nodes, false, 0, limits) {
            Ok(machines) => {
                machines.start_all();
                Some(machines)
            }
            Err(reason) => {
                eprintln!("SKIPPED, NOTHING WAS TESTED: machines cannot be had: {reason}");
                None
            }
        }
    }

    fn make(
        program: &Path,
        nodes: u32,
        with_clocks: bool,
        seed: u64,
        limits: &str,
    ) -> Result<Machines, String> {
        let switch = Switch::new(nodes as usize + 1, seed)?;
        let directory = crate::settings::fresh_path();
        let options = DevOptions {
            nodes,
            directory: directory.join("cluster"),
            base_port: 7400,
            http_base_port: 7500,
            datacenters: vec!["local".to_owned()],
            fresh: false,
        };
        let scratch = Scratch(directory.clone());
        options.prepare().map_err(|error| error.to_string())?;
        rewrite(&options.client_config(), &options, "");
        let shim = preload::failing_sync(&directory);
        let clock = if with_clocks { preload::wrong_clock() } else { Err("not asked for".to_owned()) };
        let machine = |node: u32| {
            let folder = options.node_directory(node);
            let registers =
                "[[cluster.keyspaces]]\nname = \"registers\"\nconflict = \"lww\"\ndurability = \"disk\"";
            let more = format!("\n{registers}\n\n[limits]\n{limits}");
            rewrite(&options.node_config(node), &options, &more);
            let data = folder.join("data");
            let volume = Volume::at(&data, VOLUME_BYTES)?;
            fs::write(folder.join("clock"), "+0").map_err(|error| error.to_string())?;
            let libraries: Vec<&str> = [&shim, &clock].into_iter().flatten().map(|path| text(path)).collect();
            let environment = vec![
                ("LD_PRELOAD", libraries.join(" ")),
                ("QUORATE_SYNC_UNDER", text(&data).to_owned()),
                ("QUORATE_SYNC_FAULT", text(&folder.join("sync-fault")).to_owned()),
                ("FAKETIME_TIMESTAMP_FILE", text(&folder.join("clock")).to_owned()),
                ("FAKETIME_NO_CACHE", "1".to_owned()),
                ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ];
            let network = switch.namespaces[node as usize].path();
            let (process, is_down) = (None, true);
            let (node, program, directory) = (NodeId(node), program.to_owned(), folder);
            Ok(Shared(Mutex::new(Machine {
                node,
                program,
                directory,
                network,
                environment,
                volume,
                process,
                is_down,
            })))
        };
        let machines = (1..=nodes).map(machine).collect::<Result<Vec<_>, String>>()?;
        let [can_fail_syncs, can_set_clocks] = [shim, clock].map(|library| library.map(|_| ()));
        Ok(Machines { machines, switch, options, can_fail_syncs, can_set_clocks, _directory: scratch })
    }

    /// The namespace of whoever is no node.
    pub(crate) fn outside(&self) -> &Namespace {
        &self.switch.namespaces[0]
    }

    /// Starts every machine that is down.
    pub(crate) fn start_all(&self) {
        for machine in &self.machines {
            machine.lock().start();
        }
    }

    /// A client, of a thread that is outside.
    pub(crate) async fn client(&self) -> Client {
        let config = ClientConfig::load(self.options.client_config()).unwrap();
        let began = Instant::now();
        loop {
            match Client::connect(config.clone()).await {
                Ok(client) => return client,
                Err(error) => assert!(began.elapsed() < FORM_TIMEOUT, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Starts again what has ended by itself, as a supervisor does, until it is over.
    pub(crate) fn supervise(&self, is_over: &AtomicBool) {
        while !is_over.load(Ordering::Relaxed) {
            for machine in &self.machines {
                machine.lock().revive();
            }
            thread::sleep(Duration::from_millis(300));
        }
    }

    /// Ends all nodes in good order.
    pub(crate) fn stop_all(&self) {
        for machine in &self.machines {
            machine.lock().begin_stop();
        }
        for machine in &self.machines {
            machine.lock().wait();
        }
    }

    /// A metric of a node, by its name with its labels, as whoever is outside reads it; none if the node does not say.
    pub(crate) fn metric(&self, node: NodeId, name: &str) -> Option<f64> {
        let to = format!("{}:{}", address(node.0 as usize), self.options.http_port(node.0));
        crate::settings::metric(to.parse().unwrap(), name)
    }

    /// Waits until all nodes see each other and owe each other nothing.
    pub(crate) async fn recovered(&self, client: &Client) {
        let began = Instant::now();
        loop {
            let mut is_well = true;
            for machine in &self.machines {
                let node = machine.lock().node;
                let status = client.status(node, STATUS_TIMEOUT).await;
                is_well &= status.is_ok_and(|status| {
                    status.hints_pending == 0
                        && status.copies == status.copies_whole
                        && status.peers.iter().all(|peer| peer.is_up)
                });
            }
            if is_well {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "not well again");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// What the nodes said last.
    pub(crate) fn logs(&self, lines: usize) -> String {
        let log = |machine: &Shared| {
            let machine = machine.lock();
            let log = machine.log();
            let all: Vec<&str> = log.lines().collect();
            format!("--- {}\n{}\n", machine.node, all[all.len().saturating_sub(lines)..].join("\n"))
        };
        self.machines.iter().map(log).collect()
    }

    /// Runs a test from outside of the machines, where it can spawn tasks of its own thread.
    pub(crate) fn block_on<F: Future>(&self, test: F) -> F::Output {
        self.outside().enter().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, test)
    }

    /// How many lines of a node's log say something.
    pub(crate) fn said(&self, node: NodeId, what: &str) -> usize {
        let log = self.machines[node.0 as usize - 1].lock().log();
        log.lines().filter(|line| line.contains(what)).count()
    }
}

/// Gives the nodes of a configuration their addresses in the network of namespaces, and adds something.
fn rewrite(path: &Path, options: &DevOptions, more: &str) {
    let mut text = fs::read_to_string(path).unwrap();
    for node in 1..=options.nodes {
        for port in [options.port(node), options.http_port(node)] {
            let address = address(node as usize);
            text = text.replace(&format!("127.0.0.1:{port}\""), &format!("{address}:{port}\""));
        }
    }
    fs::write(path, text + more).unwrap();
}

impl Machine {
    /// Where the node keeps its data.
    pub(crate) fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// What the node has said.
    fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// Starts the node, if it does not run.
    pub(crate) fn start(&mut self) {
        self.is_down = false;
        if self.is_running() {
            return;
        }
        let log = self.directory.join("log");
        let log = fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.network)).args(["--", text(&self.program), "run", "--config"]);
        command.arg(self.directory.join("node.toml")).stderr(log);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        self.process = Some(command.spawn().unwrap());
    }

    fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| process.try_wait().unwrap().is_none())
    }

    /// Starts the node if it ended by itself.
    fn revive(&mut self) {
        if !self.is_down && !self.is_running() {
            self.start();
        }
    }

    /// Sends the process a signal, if there is one.
    pub(crate) fn signal(&mut self, signal: &str) {
        if self.is_running() {
            let pid = self.process.as_ref().unwrap().id().to_string();
            run("kill", &[signal, &pid]).unwrap();
        }
    }

    /// Tells the process to stop in good order, and nobody starts it again.
    pub(crate) fn begin_stop(&mut self) {
        self.is_down = true;
        self.signal("-TERM");
    }

    /// Ends the process at once, and nobody starts it again.
    pub(crate) fn kill(&mut self) {
        self.is_down = true;
        self.signal("-KILL");
        self.wait();
    }

    /// Waits until the process has ended.
    pub(crate) fn wait(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        let began = Instant::now();
        while process.try_wait().unwrap().is_none() {
            if began.elapsed() > STOP_TIMEOUT {
                drop(process.kill());
                drop(process.wait());
                panic!("{} does not stop", self.node);
            }
            thread::sleep(Duration::from_millis(10));
        }
        // What a killed process leaves of the library of wrong clocks.
        for name in ["sem.faketime_sem", "faketime_shm"] {
            drop(fs::remove_file(format!("/dev/shm/{name}_{}", process.id())));
        }
    }

    /// Sets the clock: an offset in seconds with its sign, or a moment at which it stands still.
    pub(crate) fn set_clock(&self, to: &str) {
        let (path, new) = (self.directory.join("clock"), self.directory.join("clock.new"));
        fs::write(&new, to).unwrap();
        fs::rename(new, path).unwrap();
    }

    /// What becomes of syncs from now on: `fail`, `lie`, or so many milliseconds; none for the usual.
    pub(crate) fn set_syncs(&self, to: Option<&str>) {
        let path = self.directory.join("sync-fault");
        match to {
            Some(order) => fs::write(path, order).unwrap(),
            None => fs::remove_file(path).unwrap(),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}
