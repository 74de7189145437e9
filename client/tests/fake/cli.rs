//! Running the command line against a fake cluster.

use std::{
    io::Write,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::Value;

use super::FakeCluster;

/// How a run of the command line ended.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// The one document on stdout.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Fails the test unless it ended with this code.
    pub fn expect(self, code: i32) -> Ran {
        assert_eq!(self.code, code, "{self:?}");
        self
    }

    /// Fails the test unless it ended with this code and one line on stderr that has this text.
    pub fn expect_error(self, code: i32, text: &str) -> Ran {
        let is_one_line = self.stderr.ends_with('\n') && self.stderr.matches('\n').count() == 1;
        assert!(self.code == code && is_one_line && self.stderr.contains(text), "{self:?}");
        assert!(self.stderr.starts_with("quorate: "), "{self:?}");
        self
    }
}

/// A command line with the cluster's configuration, not yet started.
pub fn command(cluster: &FakeCluster, arguments: &[&str]) -> Command {
    let mut command = bare(arguments);
    command.env("QUORATE_CONFIG", cluster.config_file());
    command
}

/// A command line without a configuration.
pub fn bare(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    command.args(arguments).env_remove("QUORATE_CONFIG");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs it against the cluster.
pub async fn quorate(cluster: &FakeCluster, arguments: &[&str]) -> Ran {
    with_input(command(cluster, arguments), b"").await
}

/// Runs it with this on stdin, while the nodes of this runtime go on.
pub async fn with_input(mut command: Command, input: &[u8]) -> Ran {
    let input = input.to_vec();
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::spawn(move || {
        // A command that does not read its stdin may have ended.
        let _ = stdin.write_all(&input);
    });
    finish(child).await
}

/// Waits for its end, half a minute at most.
pub async fn finish(child: Child) -> Ran {
    let waited = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
    let output = tokio::time::timeout(Duration::from_secs(30), waited).await.expect("it hangs").unwrap();
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Sends SIGINT, as Ctrl-C does.
pub fn interrupt(child: &Child) {
    let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}
