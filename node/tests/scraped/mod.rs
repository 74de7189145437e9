//! A real Prometheus that scrapes the nodes of a test.

// Each test binary uses its own part of this; and tests of running programs deal with the world.
#![allow(
    dead_code,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::print_stderr,
    clippy::unwrap_used
)]

use std::{
    fmt::Write as _,
    io::{Read, Write as _},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::Value;

use crate::running::{eventually, free_ports};

/// Whether there is a program; says what follows if there is none.
pub(crate) fn can_run(program: &str) -> bool {
    let is_there = Command::new(program).arg("--version").output().is_ok();
    if !is_there {
        eprintln!(
            "SKIPPED, NOTHING WAS TESTED: there is no {program} to run (tests/install-tools installs it)"
        );
    }
    is_there
}

/// A running Prometheus, which ends when this is dropped.
pub(crate) struct Prometheus {
    process: Child,
    pub(crate) port: u16,
}

impl Prometheus {
    /// Scrapes all nodes each second, and evaluates the rules of a directory as often.
    pub(crate) fn start(
        directory: &Path,
        targets: impl Iterator<Item = u16>,
        rules: Option<&Path>,
    ) -> Prometheus {
        let port = free_ports(1).0;
        let mut config =
            "global:\n  scrape_interval: 1s\n  scrape_timeout: 1s\n  evaluation_interval: 1s\n".to_owned();
        if let Some(rules) = rules {
            writeln!(config, "rule_files:\n  - {}/*.yml", rules.display()).unwrap();
        }
        config += "scrape_configs:\n  - job_name: quorate\n    static_configs:\n      - targets:\n";
        for target in targets {
            writeln!(config, "          - 127.0.0.1:{target}").unwrap();
        }
        let (file, log) = (directory.join("prometheus.yml"), directory.join("prometheus.log"));
        std::fs::write(&file, config).unwrap();
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", directory.join("prometheus").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(log).unwrap())
            .spawn()
            .unwrap();
        Prometheus { process, port }
    }

    /// What a query gives: labels and values.
    pub(crate) fn query(&self, query: &str) -> Option<Vec<(Value, f64)>> {
        let mut encoded = String::new();
        for byte in query.bytes() {
            write!(encoded, "%{byte:02x}").unwrap();
        }
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        write!(stream, "GET /api/v1/query?query={encoded} HTTP/1.0\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let answer: Value = serde_json::from_str(text.split_once("\r\n\r\n")?.1).ok()?;
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        let results = answer["data"]["result"].as_array()?.iter();
        let value = |result: &Value| result["value"][1].as_str().unwrap().parse().unwrap();
        Some(results.map(|result| (result["metric"].clone(), value(result))).collect())
    }

    /// The only value of a query; none if there is none.
    pub(crate) fn value(&self, query: &str) -> Option<f64> {
        let found = self.query(query)?;
        assert!(found.len() <= 1, "{query}: {found:?}");
        found.first().map(|(_, value)| *value)
    }

    /// Waits until the only value of a query is as it should be.
    pub(crate) async fn wait(&self, query: &str, what: &str, is_it: impl Fn(f64) -> bool) -> f64 {
        eventually(what, Duration::from_secs(60), || async { self.value(query).is_some_and(&is_it) }).await;
        self.value(query).unwrap()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}
