//! `quorated dev`: a whole cluster on one machine, with one command.
//!
//! The nodes are threads of this process, or processes of their own ([`Mode::Processes`]) that can be killed one by
//! one. A process of a node holds the read end of a pipe and stops when the other end closes, so no node outlives its
//! parent, however that ends.

mod layout;

use std::{
    fs::File,
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

pub use layout::{DevOptions, LayoutError, NODES_MAX};
use thiserror::Error;

use super::{
    config::{Config, ConfigError},
    pid_file,
    server::{Server, StartError},
};

/// How long the nodes may take until they can coordinate.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// How often it is looked whether they can.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// How long one question of a node's health may take.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a process may take to stop before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// Where the nodes run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In threads of this process.
    Threads,
    /// In processes of their own, started from this program.
    Processes {
        /// The program: `quorated`.
        program: PathBuf,
    },
}

/// Why a development cluster cannot be had.
#[derive(Debug, Error)]
pub enum DevError {
    /// Its directory cannot be used.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// What was made there is no configuration any more.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A node cannot start.
    #[error("node {node}: {error}")]
    Start {
        /// The node.
        node: u32,
        /// Why.
        error: Box<StartError>,
    },
    /// A port is taken, or not to be had.
    #[error("node {node}: cannot listen on {address} ({what}): {error}; choose other ports with {option}")]
    Port {
        /// The node.
        node: u32,
        /// The address.
        address: SocketAddr,
        /// For what.
        what: &'static str,
        /// What the ports are counted from.
        option: &'static str,
        /// Why.
        error: io::Error,
    },
    /// A process cannot be started.
    #[error("node {node}: cannot start a process: {error}")]
    Spawn {
        /// The node.
        node: u32,
        /// Why.
        error: io::Error,
    },
    /// A node ended before it was ready.
    #[error("node {node} ended before it was ready: {what}")]
    Ended {
        /// The node.
        node: u32,
        /// What it left behind.
        what: String,
    },
    /// The nodes were not ready in time.
    #[error("the nodes were not ready within {} s", READY_TIMEOUT.as_secs())]
    NotReady,
    /// It was told to stop before they were.
    #[error("stopped before the nodes were ready")]
    Cancelled,
}

/// A development cluster that runs.
pub struct DevCluster {
    options: DevOptions,
    nodes: Nodes,
}

enum Nodes {
    Threads(Vec<Server>),
    Processes(Vec<Process>),
}

/// A process of a node.
struct Process {
    child: Child,
    is_reported: bool,
}

impl DevCluster {
    /// Makes the directory if it is not there, starts all nodes and waits until they can coordinate. `is_cancelled` is
    /// asked while waiting.
    ///
    /// # Errors
    ///
    /// [`DevError`]. Nodes that were started are stopped again.
    pub fn start(
        options: DevOptions,
        mode: &Mode,
        is_cancelled: impl Fn() -> bool,
    ) -> Result<DevCluster, DevError> {
        // Before the directory is made: one that is left behind holds a cluster with these options.
        options.inspect()?;
        check_ports(&options)?;
        let is_new = options.prepare()?;
        remove_pid_files(&options);
        let mut cluster = match mode {
            Mode::Threads => {
                let mut cluster = DevCluster { options, nodes: Nodes::Threads(Vec::new()) };
                if let Err(error) = cluster.start_threads() {
                    cluster.give_up(is_new);
                    return Err(error);
                }
                cluster
            }
            Mode::Processes { program } => {
                let mut cluster = DevCluster { options, nodes: Nodes::Processes(Vec::new()) };
                if let Err(error) = cluster.start_processes(program) {
                    cluster.give_up(is_new);
                    return Err(error);
                }
                cluster
            }
        };
        match cluster.wait_until_ready(is_cancelled) {
            Ok(()) => Ok(cluster),
            Err(error) => {
                cluster.stop();
                Err(error)
            }
        }
    }

    /// Stops those nodes that were started, and leaves no directory that was not there.
    fn give_up(self, is_new: bool) {
        let options = self.options.clone();
        self.stop();
        if is_new {
            // What stood in the way of the start says more.
            drop(options.remove());
        }
    }

    fn start_threads(&mut self) -> Result<(), DevError> {
        let Nodes::Threads(servers) = &mut self.nodes else { return Ok(()) };
        for node in 1..=self.options.nodes {
            let mut config = Config::load_with(&self.options.node_config(node), [])?;
            // All of them would name this process.
            config.pid_file = None;
            let server =
                Server::start(config).map_err(|error| DevError::Start { node, error: Box::new(error) })?;
            servers.push(server);
        }
        Ok(())
    }

    fn start_processes(&mut self, program: &PathBuf) -> Result<(), DevError> {
        let Nodes::Processes(processes) = &mut self.nodes else { return Ok(()) };
        for node in 1..=self.options.nodes {
            let log = File::create(self.options.node_directory(node).join("log"));
            let child = log.and_then(|log| {
                Command::new(program)
                    .args(["run", "--stop-with-stdin", "--config"])
                    .arg(self.options.node_config(node))
                    .stdin(Stdio::piped())
                    .stdout(Stdio::null())
                    .stderr(log)
                    .spawn()
            });
            let child = child.map_err(|error| DevError::Spawn { node, error })?;
            processes.push(Process { child, is_reported: false });
        }
        Ok(())
    }

    fn wait_until_ready(&mut self, is_cancelled: impl Fn() -> bool) -> Result<(), DevError> {
        let began = Instant::now();
        loop {
            let is_ready = self.is_ready();
            if matches!(is_ready, Ok(true)) {
                return Ok(());
            }
            // Before it is asked who ended: Ctrl-C in a terminal ends the nodes too, and may reach them first.
            std::thread::sleep(POLL_INTERVAL);
            if is_cancelled() {
                return Err(DevError::Cancelled);
            }
            is_ready?;
            if began.elapsed() >= READY_TIMEOUT {
                return Err(DevError::NotReady);
            }
        }
    }

    fn is_ready(&mut self) -> Result<bool, DevError> {
        match &mut self.nodes {
            Nodes::Threads(servers) => {
                for (server, node) in servers.iter().zip(1..) {
                    if server.is_finished() {
                        return Err(DevError::Ended { node, what: "see the log above".to_owned() });
                    }
                }
                Ok(servers.iter().all(|server| *server.ready().borrow()))
            }
            Nodes::Processes(processes) => {
                for (process, node) in processes.iter_mut().zip(1..) {
                    if let Ok(Some(status)) = process.child.try_wait() {
                        return Err(DevError::Ended { node, what: last_words(&self.options, node, status) });
                    }
                }
                let mut ports = (1..=self.options.nodes).map(|node| self.options.http_port(node));
                Ok(ports.all(is_ready_at))
            }
        }
    }

    /// What to tell the user: where everything is, and a command to paste.
    pub fn describe(&self, out: &mut impl Write, quorate: &str) -> io::Result<()> {
        let options = &self.options;
        writeln!(out, "  directory  {}", options.directory.display())?;
        for node in 1..=options.nodes {
            let directory = options.node_directory(node);
            write!(
                out,
                "  node {node}     quic 127.0.0.1:{}   http http://127.0.0.1:{}/metrics   {}",
                options.port(node),
                options.http_port(node),
                directory.display()
            )?;
            match &self.nodes {
                Nodes::Processes(processes) => {
                    let pid = processes.get(node as usize - 1).map_or(0, |process| process.child.id());
                    writeln!(out, "   pid {pid}")?;
                }
                Nodes::Threads(_) => writeln!(out)?,
            }
        }
        writeln!(out, "try:\n  {quorate} --config {} put hello world", pasteable(&options.client_config()))
    }

    /// Processes that have ended since this was last asked, with a sentence for each. `quorated` is how the user calls
    /// this program.
    pub fn newly_ended(&mut self, quorated: &str) -> Vec<String> {
        let mut ended = Vec::new();
        match &mut self.nodes {
            Nodes::Threads(_) => {}
            Nodes::Processes(processes) => {
                for (process, node) in processes.iter_mut().zip(1..) {
                    if process.is_reported {
                        continue;
                    }
                    if let Ok(Some(status)) = process.child.try_wait() {
                        process.is_reported = true;
                        // One that was killed leaves it.
                        pid_file::remove_of(&self.options.pid_file(node), process.child.id());
                        let config = self.options.node_config(node);
                        ended.push(format!(
                            "node {node} has ended ({status}); start it again with: {quorated} run --config {}",
                            pasteable(&config)
                        ));
                    }
                }
            }
        }
        ended
    }

    /// Whether no node runs any more.
    pub fn is_over(&mut self) -> bool {
        match &mut self.nodes {
            Nodes::Threads(servers) => servers.iter().all(Server::is_finished),
            // Those that were killed may be started again by hand.
            Nodes::Processes(_) => false,
        }
    }

    /// Stops all nodes in good order.
    pub fn stop(self) {
        match self.nodes {
            Nodes::Threads(servers) => {
                servers.iter().for_each(Server::stop);
                for server in servers {
                    if let Err(error) = server.join() {
                        tracing::error!(%error, "a node ended because it could not go on");
                    }
                }
            }
            Nodes::Processes(mut processes) => {
                for process in &mut processes {
                    // Its end of the pipe: it stops.
                    drop(process.child.stdin.take());
                }
                let began = Instant::now();
                for process in &mut processes {
                    while matches!(process.child.try_wait(), Ok(None)) && began.elapsed() < STOP_TIMEOUT {
                        std::thread::sleep(POLL_INTERVAL);
                    }
                    if matches!(process.child.try_wait(), Ok(None)) {
                        tracing::warn!(pid = process.child.id(), "a node did not stop in time and is killed");
                        drop(process.child.kill());
                        drop(process.child.wait());
                    }
                }
                for (process, node) in processes.iter().zip(1..) {
                    pid_file::remove_of(&self.options.pid_file(node), process.child.id());
                }
            }
        }
    }
}

/// That all ports can be had. Another cluster that has them would answer for this one, and be taken for ready.
fn check_ports(options: &DevOptions) -> Result<(), DevError> {
    for node in 1..=options.nodes {
        let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let (quic, http) = (at(options.port(node)), at(options.http_port(node)));
        let taken = |address: SocketAddr, what: &'static str, option: &'static str| {
            move |error| DevError::Port { node, address, what, option, error }
        };
        UdpSocket::bind(quic).map_err(taken(quic, "QUIC", "--base-port"))?;
        TcpListener::bind(http).map_err(taken(http, "HTTP", "--http-base-port"))?;
    }
    Ok(())
}

/// Removes what an earlier run that was killed left behind.
fn remove_pid_files(options: &DevOptions) {
    for node in 1..=options.nodes {
        // Most are not there; and a node that starts writes its own.
        drop(std::fs::remove_file(options.pid_file(node)));
    }
}

/// A path as it can be pasted into a shell, in the present directory.
#[must_use]
pub fn pasteable(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    let path = path.strip_prefix(&here).unwrap_or(path);
    let mut text = path.display().to_string();
    if !text.contains('/') {
        // A shell would look for it elsewhere.
        text.insert_str(0, "./");
    }
    let is_plain = |character: char| character.is_alphanumeric() || "/._-+=:@,%".contains(character);
    if text.chars().all(is_plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// What a process that ended said last.
fn last_words(options: &DevOptions, node: u32, status: std::process::ExitStatus) -> String {
    let log = options.node_directory(node).join("log");
    let text = std::fs::read_to_string(&log).unwrap_or_default();
    let last =
        text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing").to_owned();
    format!("{last} ({status}; log: {})", log.display())
}

/// Asks a node whether it is ready.
fn is_ready_at(port: u16) -> bool {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let asked = TcpStream::connect_timeout(&address, PROBE_TIMEOUT).and_then(|mut stream| {
        stream.set_read_timeout(Some(PROBE_TIMEOUT))?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut first = [0; 12];
        stream.read_exact(&mut first)?;
        Ok(first)
    });
    asked.is_ok_and(|first| first.ends_with(b" 200"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_shown_as_a_shell_takes_them() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(pasteable(&here.join("target/quorated")), "target/quorated");
        assert_eq!(pasteable(&here.join("quorated")), "./quorated");
        assert_eq!(pasteable(Path::new("/opt/a b/it's")), r"'/opt/a b/it'\''s'");
    }
}
