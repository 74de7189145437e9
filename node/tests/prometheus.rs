//! What Prometheus shows of a node that was away: the lag goes up and down again, and it is seen by which way the repair came.
//!
//! Debian's Prometheus scrapes five processes each second; the queries are those that a dashboard or an alert would use.

// Tests of running programs deal with the world.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::print_stderr, clippy::unwrap_used)]

mod running;
mod settings;

use std::{
    fmt::Write as _,
    io::{Read, Write as _},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use running::{ByHand, Running, eventually, free_ports};
use serde_json::Value;
use tokio::task::LocalSet;

const NODES: u32 = 5;
/// The node that is away.
const AWAY: u32 = 5;
const KEYS: u64 = 2000;
const TIMEOUT: Duration = Duration::from_secs(10);

/// How old the oldest write is that anyone knows to be missing somewhere, in seconds.
const LAG: &str = "max(quorate_convergence_lag_seconds)";
/// The same, at its worst in the last minutes.
const LAG_AT_WORST: &str = "max(max_over_time(quorate_convergence_lag_seconds[5m]))";
/// For how long any two nodes that both run have not been known to be equal, in seconds.
const OUT_OF_SYNC: &str =
    "max(quorate_antientropy_in_sync_age_seconds * on (instance, peer) (quorate_peer_up == 1))";
/// The same for whoever is away or is not, at its worst in the last minutes.
const OUT_OF_SYNC_AT_WORST: &str = "max(max_over_time(quorate_antientropy_in_sync_age_seconds[5m]))";
/// Records that were repaired, by the way they came.
const REPAIRED: &str = "sum by (path) (increase(quorate_repair_objects_total{path!=\"write\"}[5m]))";
/// Bytes a second of it in the busiest minute.
///
/// A minute, because it has to reach over the time that the node was away: what a node repaired between its start and the
/// first scrape is only in the difference to what was scraped of it before.
const REPAIR_RATE: &str = "max_over_time(sum(rate(quorate_repair_bytes_total{path!=\"write\"}[1m]))[5m:1s])";
/// How late the slowest tenth of the writes came to their replicas by exchanges, in seconds.
const LATE: &str = "histogram_quantile(0.9, sum by (le) \
     (increase(quorate_replication_lag_seconds_bucket{path=\"anti_entropy\"}[5m])))";
/// Bytes that it took to find out what differs, for each key that did.
const COST: &str = "sum(increase(quorate_antientropy_exchange_bytes_total{kind=\"finding\"}[5m])) / \
     sum(increase(quorate_antientropy_exchange_differences_total[5m]))";
/// Nodes that Prometheus can scrape.
const SCRAPED: &str = "sum(up)";

/// A running Prometheus, which ends when this is dropped.
struct Prometheus {
    process: Child,
    port: u16,
}

impl Prometheus {
    /// Scrapes all nodes each second.
    fn start(directory: &Path, targets: impl Iterator<Item = u16>) -> Prometheus {
        let port = free_ports(1).0;
        let mut config = "global:\n  scrape_interval: 1s\n  scrape_timeout: 1s\nscrape_configs:\n  - job_name: quorate\n    \
                          static_configs:\n      - targets:\n"
            .to_owned();
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
    fn query(&self, query: &str) -> Option<Vec<(Value, f64)>> {
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
    fn value(&self, query: &str) -> Option<f64> {
        let found = self.query(query)?;
        assert!(found.len() <= 1, "{query}: {found:?}");
        found.first().map(|(_, value)| *value)
    }

    /// Waits until the only value of a query is as it should be.
    async fn wait(&self, query: &str, what: &str, is_it: impl Fn(f64) -> bool) -> f64 {
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

async fn story() {
    let running = Running::processes_with(NODES, "hints_per_peer_max = 1\nexchange_interval_ms = 2000\n");
    let targets = (1..=NODES).map(|node| running.options.http_port(node));
    let prometheus = Prometheus::start(&running.options.directory, targets);
    let client = running.client().await;
    let keyspace = client.default_keyspace().unwrap();
    let put = |number: u64, round: u32| {
        let (keyspace, key) = (keyspace.clone(), format!("key-{number}"));
        async move {
            let found = keyspace.get(key.clone()).timeout(TIMEOUT).send().await.unwrap();
            let put = keyspace.put(key, format!("{round:0100}")).context(found.context).timeout(TIMEOUT);
            put.retry_in_doubt(true).send().await.unwrap();
        }
    };
    let put_all = |round: u32| async move {
        for some in (0..KEYS).collect::<Vec<_>>().chunks(50) {
            let puts: Vec<_> =
                some.iter().map(|number| tokio::task::spawn_local(put(*number, round))).collect();
            for put in puts {
                put.await.unwrap();
            }
        }
    };
    put_all(1).await;
    prometheus.wait(SCRAPED, "all are scraped", |up| up == f64::from(NODES)).await;
    prometheus.wait(LAG, "nothing is missing", |lag| lag == 0.0).await;
    prometheus.wait(OUT_OF_SYNC, "all are in sync", |age| age < 6.0).await;

    running.kill(AWAY);
    put_all(2).await;
    let lag = prometheus.wait(LAG, "the lag is seen", |lag| lag > 5.0).await;
    eprintln!("away: the lag is {lag:.1} s");

    let returned = Instant::now();
    let process = ByHand::run(&running.options.node_config(AWAY));
    prometheus.wait(LAG, "nothing is missing any more", |lag| lag == 0.0).await;
    prometheus.wait(OUT_OF_SYNC, "all are in sync again", |age| age < 6.0).await;
    prometheus.wait(SCRAPED, "it is scraped again", |up| up == f64::from(NODES)).await;
    eprintln!("back: in sync as Prometheus sees it {:.1?} after the start", returned.elapsed());

    let worst = prometheus.value(LAG_AT_WORST).unwrap();
    let out_of_sync = prometheus.value(OUT_OF_SYNC_AT_WORST).unwrap();
    let repaired = prometheus.query(REPAIRED).unwrap();
    let of = |path: &str| {
        let found = repaired.iter().find(|(labels, _)| labels["path"] == path);
        found.map_or(0.0, |(_, count)| *count)
    };
    let (rate, late) = (prometheus.value(REPAIR_RATE).unwrap(), prometheus.value(LATE).unwrap());
    let cost = prometheus.value(COST).unwrap();
    eprintln!(
        "lag {worst:.1} s and out of sync {out_of_sync:.1} s at worst; repaired by exchanges {:.0}, by hints {:.0}, by filling \
         {:.0}; {rate:.0} bytes a second at the busiest; nine in ten came no later than {late:.0} s; {cost:.0} bytes to find \
         each",
        of("anti_entropy"),
        of("hint"),
        of("movement"),
    );
    assert!(worst >= lag && out_of_sync >= 5.0);
    // Three of five nodes keep each key, and `increase` extrapolates.
    assert!(of("anti_entropy") > KEYS as f64 * 0.4, "{repaired:?}");
    assert!(of("movement") < 1.0, "{repaired:?}");
    assert!(rate > 0.0 && late > 1.0);
    assert!(cost < 400.0, "{cost}");
    client.close().await;
    drop(process);
}

#[test]
fn prometheus_shows_the_lag_of_a_node_that_was_away_and_its_repair() {
    if Command::new("prometheus").arg("--version").output().is_err() {
        eprintln!(
            "SKIPPED, NOTHING WAS TESTED: there is no prometheus to run (tests/install-tools installs it)"
        );
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, story());
}
