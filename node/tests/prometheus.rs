//! What Prometheus shows of a node that was away: the lag goes up and down again, and it is seen by which way the repair came.
//!
//! Debian's Prometheus scrapes five processes each second; the queries are those that a dashboard or an alert would use.

// Tests of running programs deal with the world.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::print_stderr, clippy::unwrap_used)]

mod running;
mod scraped;
mod settings;

use std::time::{Duration, Instant};

use running::{ByHand, Running};
use scraped::Prometheus;
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

async fn story() {
    let running = Running::processes_with(NODES, "hints_per_peer_max = 1\nexchange_interval_ms = 2000\n");
    let targets = (1..=NODES).map(|node| running.options.http_port(node));
    let prometheus = Prometheus::start(&running.options.directory, targets, None);
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
    if !scraped::can_run("prometheus") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, story());
}
