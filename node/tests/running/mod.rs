//! What the tests of running clusters share: free ports, a directory, a cluster, a client.

// Each test binary uses its own part of this; and tests of running programs deal with the world.
#![allow(
    dead_code,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::print_stderr,
    clippy::unwrap_used
)]

use std::{
    net::{TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use client::{Client, ClientConfig, KeyspaceHandle, Level};
use node::shell::dev::{DevCluster, DevOptions, Mode};

/// A cluster in a directory of its own, which is removed at the end.
pub(crate) struct Running {
    pub(crate) options: DevOptions,
    cluster: Option<DevCluster>,
}

impl Running {
    /// Nodes in processes of their own.
    pub(crate) fn processes(nodes: u32) -> Running {
        Running::start(nodes, &Mode::Processes { program: PathBuf::from(env!("CARGO_BIN_EXE_quorated")) })
    }

    /// Nodes in processes of their own, with these limits in their configurations.
    pub(crate) fn processes_with(nodes: u32, limits: &str) -> Running {
        let options = fresh_options(nodes);
        options.prepare().unwrap();
        for node in 1..=nodes {
            let config = options.node_config(node);
            let text = std::fs::read_to_string(&config).unwrap();
            std::fs::write(config, format!("{text}\n[limits]\n{limits}")).unwrap();
        }
        Running::run(options, &Mode::Processes { program: PathBuf::from(env!("CARGO_BIN_EXE_quorated")) })
    }

    /// Nodes in threads of the test.
    pub(crate) fn threads(nodes: u32) -> Running {
        Running::start(nodes, &Mode::Threads)
    }

    fn start(nodes: u32, mode: &Mode) -> Running {
        Running::run(fresh_options(nodes), mode)
    }

    fn run(options: DevOptions, mode: &Mode) -> Running {
        let cluster = match DevCluster::start(options.clone(), mode, || false) {
            Ok(cluster) => cluster,
            Err(error) => {
                let logs = logs(&options);
                drop(std::fs::remove_dir_all(&options.directory));
                panic!("{error}\n{logs}");
            }
        };
        Running { options, cluster: Some(cluster) }
    }

    /// Stops all nodes in good order, and starts them again.
    pub(crate) fn restart(&mut self, mode: &Mode) {
        self.cluster.take().unwrap().stop();
        self.cluster = Some(DevCluster::start(self.options.clone(), mode, || false).unwrap());
    }

    /// Stops all nodes in good order. What they had stays until this is dropped.
    pub(crate) fn stop(&mut self) {
        self.cluster.take().unwrap().stop();
    }

    /// The client's configuration.
    pub(crate) fn client_config(&self) -> ClientConfig {
        ClientConfig::load(self.options.client_config()).unwrap()
    }

    /// A client of the cluster.
    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.client_config()).await.unwrap()
    }

    /// A metric of a node, by its name with its labels; none if the node does not say.
    pub(crate) fn metric(&self, node: u32, name: &str) -> Option<f64> {
        crate::settings::metric(([127, 0, 0, 1], self.options.http_port(node)).into(), name)
    }

    /// What a node's processes have said.
    pub(crate) fn log(&self, node: u32) -> String {
        log(&self.options, node)
    }

    /// The process of a node.
    pub(crate) fn pid(&self, node: u32) -> u32 {
        let text = std::fs::read_to_string(self.options.node_directory(node).join("pid")).unwrap();
        text.trim().parse().unwrap()
    }

    /// Ends a node's process at once.
    pub(crate) fn kill(&self, node: u32) {
        signal(self.pid(node), "-9");
    }
}

/// Of a cluster that does not exist yet.
fn fresh_options(nodes: u32) -> DevOptions {
    let (base_port, http_base_port) = free_ports(u16::try_from(nodes).unwrap());
    let directory = crate::settings::fresh_path();
    let datacenters = vec!["local".to_owned()];
    DevOptions { nodes, directory, base_port, http_base_port, datacenters, fresh: false }
}

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", logs(&self.options));
        }
        if let Some(cluster) = self.cluster.take() {
            cluster.stop();
        }
        drop(std::fs::remove_dir_all(&self.options.directory));
    }
}

fn log(options: &DevOptions, node: u32) -> String {
    std::fs::read_to_string(options.node_directory(node).join("log")).unwrap_or_default()
}

/// What the nodes' processes said last.
fn logs(options: &DevOptions) -> String {
    let last = |node: u32| {
        let text = log(options, node);
        let lines: Vec<&str> = text.lines().collect();
        let last = lines[lines.len().saturating_sub(15)..].join("\n");
        format!("--- node {node}\n{last}\n")
    };
    (1..=options.nodes).map(last).collect()
}

/// Sends a process a signal, by its name with a dash.
pub(crate) fn signal(pid: u32, signal: &str) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}

/// Those of the keys under which a quorum does not know a value that is the key itself.
pub(crate) async fn missing(keyspace: &KeyspaceHandle, keys: &[String]) -> Vec<String> {
    let mut missing = Vec::new();
    for some in keys.chunks(256) {
        let get =
            |key: &String| keyspace.get(key.clone()).r(Level::Quorum).timeout(Duration::from_secs(5)).send();
        let gets: Vec<_> = some.iter().map(|key| tokio::spawn(get(key))).collect();
        for (get, key) in gets.into_iter().zip(some) {
            let found = get.await.unwrap().unwrap_or_else(|error| panic!("{key}: {error}"));
            if !found.values.iter().any(|value| value.bytes == key.as_bytes()) {
                missing.push(key.clone());
            }
        }
    }
    missing
}

/// Ports from which on so many are free, for QUIC and for HTTP.
pub(crate) fn free_ports(count: u16) -> (u16, u16) {
    let is_free = |port: u16| {
        UdpSocket::bind(("127.0.0.1", port)).is_ok() && TcpListener::bind(("127.0.0.1", port)).is_ok()
    };
    loop {
        let mut random = [0; 2];
        getrandom::fill(&mut random).unwrap();
        // Below the ports that the kernel gives out by itself.
        let base = 10_000 + u16::from_be_bytes(random) % 20_000;
        if (base..base + 2 * count).all(is_free) {
            return (base, base + count);
        }
    }
}

/// A node started by hand, ended when this is dropped.
pub(crate) struct ByHand(std::process::Child);

impl ByHand {
    pub(crate) fn run(config: &Path) -> ByHand {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorated"));
        // Beside its configuration, where the cluster's own nodes log too.
        let log = config.with_file_name("log");
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        command.args(["run", "--config"]).arg(config).stderr(log);
        ByHand(command.spawn().unwrap())
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for ByHand {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Waits until something is so, and fails if it takes too long.
pub(crate) async fn eventually<F: Future<Output = bool>>(
    what: &str,
    within: Duration,
    check: impl Fn() -> F,
) {
    eventually_looking(Duration::from_millis(50), what, within, check).await;
}

/// As [`eventually`], with so much time between two looks.
pub(crate) async fn eventually_looking<F: Future<Output = bool>>(
    every: Duration,
    what: &str,
    within: Duration,
    check: impl Fn() -> F,
) {
    let began = Instant::now();
    while !check().await {
        assert!(began.elapsed() < within, "not within {within:?}: {what}");
        tokio::time::sleep(every).await;
    }
}
