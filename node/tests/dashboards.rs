//! What people look at: a failure and its repair under load, with a real Prometheus and the rules and dashboards of `deploy`.
//! Every panel has something to show, and the alert for the failure fires and clears.

// Tests of running programs deal with the world.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::print_stderr, clippy::unwrap_used)]

mod running;
mod scraped;
mod settings;

use std::{
    cell::Cell,
    fs,
    net::{TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
    rc::Rc,
    time::{Duration, Instant},
};

use client::{KeyspaceHandle, Level, WriteFailure};
use running::{ByHand, Running, eventually, signal};
use scraped::Prometheus;
use tokio::{task::LocalSet, time::sleep};

const NODES: u32 = 5;
/// The node that is killed and comes back as it was, and the one whose disk is replaced.
const KILLED: u32 = 4;
const WIPED: u32 = 5;
const KEYS: u64 = 500;
const SOON: Duration = Duration::from_secs(60);
const TIMEOUT: Duration = Duration::from_secs(2);

/// Whether an alert fires, of those nodes that Prometheus does not reach.
const NODE_DOWN: &str = "count(ALERTS{alertname=\"QuorateNodeDown\", alertstate=\"firing\"}) or vector(0)";
/// All alerts that fire.
const FIRING: &str = "ALERTS{alertstate=\"firing\"}";

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// The rules, with alerts that fire after two seconds where they wait for minutes: a restart of minutes is no test's.
fn hurried_rules(directory: &Path) -> PathBuf {
    let (from, to) = (deploy().join("prometheus/rules"), directory.join("rules"));
    fs::create_dir(&to).unwrap();
    let mut hurried = 0;
    for name in ["alerts.yml", "recording.yml"] {
        let text = fs::read_to_string(from.join(name)).unwrap();
        let lines = text.lines().map(|line| match line.trim_start().strip_prefix("for: ") {
            Some(_) => {
                hurried += 1;
                format!("{}for: 2s\n", &line[..line.len() - line.trim_start().len()])
            }
            None => format!("{line}\n"),
        });
        let lines: String = lines.collect();
        fs::write(to.join(name), lines).unwrap();
    }
    assert!(hurried > 10, "alerts wait");
    to
}

/// Puts, gets and deletes at several levels, until it is told to end. What fails of them is in the metrics.
async fn load(keyspace: KeyspaceHandle, is_over: Rc<Cell<bool>>, begin: u64) {
    let levels = [Level::One, Level::Quorum, Level::All];
    for number in (begin..).step_by(7) {
        if is_over.get() {
            return;
        }
        let level = levels[usize::try_from(number % 3).unwrap()];
        let key = format!("key-{}", number % KEYS);
        let Ok(found) = keyspace.get(key.clone()).r(level).timeout(TIMEOUT).attempts(1).send().await else {
            continue;
        };
        let context = found.context;
        if number % 11 == 0 {
            drop(keyspace.delete(key).context(context).w(level).timeout(TIMEOUT).attempts(1).send().await);
        } else {
            let put = keyspace.put(key, format!("{number:0100}")).context(context);
            drop(put.w(level).timeout(TIMEOUT).attempts(1).send().await);
        }
        sleep(Duration::from_millis(2)).await;
    }
}

async fn story() {
    let running = Running::processes_with(NODES, "exchange_interval_ms = 2000\n");
    let directory = running.options.directory.clone();
    let targets = (1..=NODES).map(|node| running.options.http_port(node));
    let prometheus = Prometheus::start(&directory, targets, Some(&hurried_rules(&directory)));
    let client = running.client().await;
    let is_over = Rc::new(Cell::new(false));
    let load: Vec<_> = (0..16)
        .map(|begin| {
            let keyspace = client.default_keyspace().unwrap();
            tokio::task::spawn_local(load(keyspace, Rc::clone(&is_over), begin))
        })
        .collect();
    prometheus.wait("sum(up)", "all are scraped", |up| up == f64::from(NODES)).await;
    sleep(Duration::from_secs(8)).await;

    // It stands still: what waits for it stays unanswered. Then it is killed: what needs it is refused, and hints are kept for it.
    signal(running.pid(KILLED), "-STOP");
    let keyspace = client.default_keyspace().unwrap();
    let short = Duration::from_millis(200);
    let (mut unanswered, mut tried) = (0, 0);
    while unanswered < 2 {
        let put = keyspace.put(format!("unanswered-{tried}"), "value").w(Level::All);
        let put = put.timeout(short).attempts(1).send().await;
        unanswered += u32::from(matches!(put, Err(WriteFailure::InDoubt(_))));
        tried += 1;
        assert!(tried < 200, "most keys have a copy on it");
    }
    running.kill(KILLED);
    let began = Instant::now();
    prometheus.wait(NODE_DOWN, "the alert fires", |firing| firing == 1.0).await;
    eprintln!("QuorateNodeDown fires {:.1?} after the kill", began.elapsed());
    sleep(Duration::from_secs(4)).await;
    let began = Instant::now();
    let killed = ByHand::run(&running.options.node_config(KILLED));
    prometheus.wait(NODE_DOWN, "the alert clears", |firing| firing == 0.0).await;
    eprintln!("and clears {:.1?} after the node was started again", began.elapsed());
    let lag = "max(quorate_convergence_lag_seconds)";
    prometheus.wait(lag, "what it missed is there", |lag| lag < 3.0).await;

    // Another one's disk is replaced.
    running.kill(WIPED);
    let ports = (running.options.port(WIPED), running.options.http_port(WIPED));
    eventually("its process is gone, and its ports are free", SOON, || async {
        UdpSocket::bind(("127.0.0.1", ports.0)).is_ok() && TcpListener::bind(("127.0.0.1", ports.1)).is_ok()
    })
    .await;
    fs::remove_dir_all(running.options.node_directory(WIPED).join("data")).unwrap();
    let wiped = ByHand::run(&running.options.node_config(WIPED));
    eventually("it is readmitted", SOON, || async {
        client.readmit(ring::NodeId(WIPED), Duration::from_secs(5)).await.is_ok()
    })
    .await;
    let whole = "sum(quorate_copies{state=\"filling\"}) + 5 - sum(up)";
    prometheus.wait(whole, "all copies are whole", |filling| filling == 0.0).await;
    prometheus.wait(lag, "all is everywhere", |lag| lag < 3.0).await;
    sleep(Duration::from_secs(6)).await;
    is_over.set(true);
    for task in load {
        task.await.unwrap();
    }

    let tried = Command::new("python3")
        .arg(deploy().join("grafana/try-queries"))
        .args(["--rate-interval", "10s", "--window", "300"])
        .arg(format!("http://127.0.0.1:{}", prometheus.port))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&tried.stdout);
    eprintln!("{said}{}", String::from_utf8_lossy(&tried.stderr));
    let firing = prometheus.query(FIRING).unwrap();
    let firing: Vec<&str> = firing.iter().filter_map(|(labels, _)| labels["alertname"].as_str()).collect();
    eprintln!("alerts that fire at the end: {firing:?}");
    assert!(tried.status.success(), "a panel has nothing to show");
    assert!(said.lines().count() > 50, "there are panels");
    client.close().await;
    drop((killed, wiped));
}

#[test]
fn every_panel_shows_something_of_a_failure_and_its_repair_and_the_alert_fires_and_clears() {
    if !scraped::can_run("prometheus") || !scraped::can_run("python3") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, story());
}
