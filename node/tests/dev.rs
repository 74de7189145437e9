//! `quorated dev` as a program: how it begins and ends, and what it says.

// Tests of running programs deal with the world.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used)]

mod running;
mod settings;

use std::{
    io::{BufRead, BufReader},
    net::{TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
};

use running::free_ports;
use settings::fresh_path;

/// A directory of its own, which is removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        let path = fresh_path();
        std::fs::create_dir(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// `quorated dev` with two nodes in a folder, not yet started.
fn dev(folder: &Path, (port, http_port): (u16, u16), more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorated"));
    command.args(["dev", "--nodes", "2", "--dir", "dev"]).current_dir(folder);
    command.args(["--base-port", &port.to_string(), "--http-base-port", &http_port.to_string()]).args(more);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A cluster that is ready, and what it says from then on. Killed if a test fails.
struct Ready {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Ready {
    fn start(mut command: Command) -> Ready {
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.starts_with("Ctrl-C") {
            line.clear();
            assert!(said.read_line(&mut line).unwrap() > 0, "it ended before it was ready");
        }
        Ready { child, said }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        line
    }

    fn signal(&self, signal: &str) {
        running::signal(self.child.id(), signal);
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The ids of the nodes' processes that stand in their files.
fn pids(folder: &Path) -> Vec<u32> {
    let file = |node: u32| folder.join(format!("dev/node-{node}/pid"));
    (1..=2).filter_map(|node| std::fs::read_to_string(file(node)).ok()?.trim().parse().ok()).collect()
}

#[test]
fn every_signal_that_asks_for_an_end_gets_one_in_good_order() {
    let (folder, ports) = (Folder::new(), free_ports(2));
    for signal in ["-HUP", "-INT", "-TERM"] {
        let plain = dev(&folder.0, ports, &["--processes"]);
        // Whoever started the tests may have had hang-ups ignored.
        let mut command = Command::new("env");
        command.arg("--default-signal=HUP").arg(plain.get_program()).args(plain.get_args());
        command.current_dir(&folder.0).stdout(Stdio::piped());
        let mut ready = Ready::start(command);
        assert_eq!(pids(&folder.0).len(), 2);
        ready.signal(signal);
        assert_eq!(ready.line(), "stopped: all nodes have ended\n", "{signal}");
        assert_eq!(ready.child.wait().unwrap().code(), Some(0), "{signal}");
        assert_eq!(pids(&folder.0), Vec::<u32>::new(), "{signal}");
    }
}

#[test]
fn a_node_that_is_stopped_ends_in_good_order_and_the_command_that_starts_it_again_works() {
    let (folder, ports) = (Folder::new(), free_ports(2));
    let mut ready = Ready::start(dev(&folder.0, ports, &["--processes"]));
    running::signal(pids(&folder.0)[1], "-TERM");
    let said = ready.line();
    let again = said.trim().strip_prefix("node 2 has ended (exit status: 0); start it again with: ").unwrap();
    let mut again =
        Command::new("sh").args(["-c", &format!("exec {again}")]).current_dir(&folder.0).spawn().unwrap();
    while pids(&folder.0).get(1) != Some(&again.id()) {
        assert_eq!(again.try_wait().unwrap(), None, "{said}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    running::signal(again.id(), "-TERM");
    assert_eq!(again.wait().unwrap().code(), Some(0));
}

#[test]
fn a_cluster_that_was_told_to_ignore_hang_ups_goes_on() {
    let (folder, ports) = (Folder::new(), free_ports(2));
    let plain = dev(&folder.0, ports, &[]);
    let mut ignoring = Command::new("sh");
    ignoring.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]).arg(plain.get_program()).args(plain.get_args());
    ignoring.current_dir(&folder.0).stdout(Stdio::piped());
    let mut ready = Ready::start(ignoring);
    ready.signal("-HUP");
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(ready.child.try_wait().unwrap(), None);
    ready.signal("-TERM");
    assert_eq!(ready.child.wait().unwrap().code(), Some(0));
}

/// What a start that fails says, and its exit code.
fn refused(mut command: Command) -> (String, Option<i32>) {
    let output = command.output().unwrap();
    (String::from_utf8(output.stderr).unwrap(), output.status.code())
}

#[test]
fn a_start_that_cannot_be_says_which_option_helps_and_leaves_nothing_behind() {
    let (folder, ports) = (Folder::new(), free_ports(2));
    let quic = UdpSocket::bind(("127.0.0.1", ports.0 + 1)).unwrap();
    let (said, code) = refused(dev(&folder.0, ports, &[]));
    assert!(code == Some(3) && said.contains("node 2: ") && said.contains("with --base-port"), "{said}");
    drop(quic);
    let http = TcpListener::bind(("127.0.0.1", ports.1)).unwrap();
    let (said, code) = refused(dev(&folder.0, ports, &[]));
    assert!(code == Some(3) && said.contains("node 1: ") && said.contains("with --http-base-port"), "{said}");
    drop(http);
    for (ports, more) in [
        ((65_535, ports.1), ""),
        ((0, ports.1), ""),
        ((ports.0, 65_535), ""),
        (ports, "--datacenters=a,a"),
        (ports, "--datacenters="),
        (ports, "--datacenters=a,b,c"),
    ] {
        let more: Vec<&str> = (!more.is_empty()).then_some(more).into_iter().collect();
        let (said, code) = refused(dev(&folder.0, ports, &more));
        assert_eq!(code, Some(2), "{said}");
    }
    assert!(!folder.0.join("dev").exists());
    let mut ready = Ready::start(dev(&folder.0, ports, &["--datacenters=a,b"]));
    for other in [ports, free_ports(2)] {
        for fresh in [&[][..], &["--fresh"]] {
            let (said, code) = refused(dev(&folder.0, other, fresh));
            assert!(code == Some(3) && said.contains("a cluster is running there already"), "{said}");
        }
    }
    ready.signal("-TERM");
    assert_eq!(ready.child.wait().unwrap().code(), Some(0));
}
