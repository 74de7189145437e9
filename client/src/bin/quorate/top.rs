//! `top`: what the members do, again and again.
//!
//! Members count since they began; what is shown is the difference between two looks. Latencies are those of the node that the
//! client asked, from buckets, so they are as fine as those.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::Write,
    time::{Duration, Instant},
};

use client::wire::{NodeStatus, NodeVitals, RequestVitals};
use console::{Term, truncate_str};
use ring::{ClusterDocument, NodeId};
use serde::Serialize;
use tokio::time::sleep;

use crate::{
    arguments::{Global, Top},
    doctor::ask_vitals,
    failure::{CommandError, Exit, reason},
    interrupt::Interrupt,
    output::{Output, Table, span},
    session::Session,
    status::{MEMBER_WAIT, Statuses, ask_all},
};

/// Clears the screen's lines behind the cursor, and what is below.
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";
/// Another screen, so that what was on the terminal is there again at the end.
const ENTER_SCREEN: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE_SCREEN: &str = "\x1b[?25h\x1b[?1049l";
const CURSOR_HOME: &str = "\x1b[H";

/// One look at all members.
struct Look {
    at: Instant,
    statuses: Statuses,
    vitals: BTreeMap<NodeId, NodeVitals>,
}

/// What is shown of it.
#[derive(Debug, Serialize)]
struct TopDocument {
    cluster: String,
    epoch: u64,
    /// Over how long rates were taken.
    interval_ms: u64,
    members: Vec<MemberDocument>,
}

#[derive(Debug, Default, Serialize)]
struct MemberDocument {
    node: u32,
    state: &'static str,
    /// Why it did not answer.
    reason: Option<String>,
    reads_per_second: Option<f64>,
    read_p50_us: Option<u64>,
    read_p99_us: Option<u64>,
    writes_per_second: Option<f64>,
    write_p50_us: Option<u64>,
    write_p99_us: Option<u64>,
    refused_per_second: Option<f64>,
    unanswered_per_second: Option<f64>,
    under_way: Option<u32>,
    hints_pending: Option<u64>,
    convergence_lag_ms: Option<u64>,
    /// The longest that it has not been seen to be in sync with a peer that is up.
    in_sync_ms: Option<u64>,
    copies_filling: Option<u32>,
    repaired_objects_per_second: Option<f64>,
    repaired_bytes_per_second: Option<f64>,
    unsynced_bytes: Option<u64>,
    storage_bytes: Option<u64>,
    /// The share of its file system that is free.
    storage_free: Option<f64>,
    clock_drift_ms: Option<i64>,
}

/// Looks until it is interrupted, or as often as was asked for.
pub(crate) async fn run(
    top: Top,
    global: &Global,
    output: &Output,
    interrupt: &Interrupt,
) -> Result<Exit, CommandError> {
    let session = interrupt.may_end(Session::open(global)).await?;
    let screen = (!output.is_json() && console::user_attended() && top.count.is_none()).then(Screen::enter);
    let shown = tokio::select! {
        biased;
        shown = follow(&top, &session, output, screen.as_ref()) => shown,
        // It is how one ends it.
        () = interrupt.heard() => Ok(()),
    };
    drop(screen);
    session.close().await;
    shown.map(|()| Exit::Done)
}

async fn follow(
    top: &Top,
    session: &Session,
    output: &Output,
    screen: Option<&Screen>,
) -> Result<(), CommandError> {
    let wait = session.timeout_or(MEMBER_WAIT);
    let mut before = look(session, wait).await;
    // Without a screen one picture is what a script wants.
    let mut left = top.count.or_else(|| screen.is_none().then_some(1));
    while left != Some(0) {
        sleep(top.interval).await;
        let now = look(session, wait).await;
        let document = session.client.document();
        let shown = describe(&document, &before, &now);
        match screen {
            Some(screen) => screen.draw(&text_of(&shown))?,
            None => output.print(&shown, |text| text.push_str(&text_of(&shown)))?,
        }
        before = now;
        left = left.map(|left| left - 1);
    }
    Ok(())
}

async fn look(session: &Session, wait: Duration) -> Look {
    let document = session.client.document();
    let at = Instant::now();
    let (statuses, vitals) =
        tokio::join!(ask_all(&session.client, &document, wait), ask_vitals(&session.client, &document, wait));
    let vitals = vitals.into_iter().filter_map(|(node, answer)| Some((node, answer.ok()?))).collect();
    Look { at, statuses, vitals }
}

/// The terminal's other screen, left when this is dropped.
struct Screen {
    term: Term,
}

impl Screen {
    fn enter() -> Screen {
        let term = Term::stdout();
        // Whatever is wrong with the terminal is said when something is drawn.
        let _ = term.write_str(ENTER_SCREEN);
        Screen { term }
    }

    fn draw(&self, text: &str) -> Result<(), CommandError> {
        let (rows, columns) = self.term.size();
        let mut picture = CURSOR_HOME.to_owned();
        for line in text.lines().take(usize::from(rows).saturating_sub(1)) {
            let _ = write!(picture, "{}{CLEAR_LINE}\r\n", truncate_str(line, usize::from(columns), "…"));
        }
        picture.push_str(CLEAR_BELOW);
        let mut term = &self.term;
        term.write_all(picture.as_bytes()).and_then(|()| term.flush()).map_err(CommandError::Stdout)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.term.write_str(LEAVE_SCREEN);
    }
}

fn describe(document: &ClusterDocument, before: &Look, now: &Look) -> TopDocument {
    let interval = now.at - before.at;
    let members = document.members.keys().map(|node| {
        let status = match now.statuses.get(node) {
            Some(Ok(status)) => status,
            Some(Err(failure)) => {
                let reason = Some(reason(failure));
                return MemberDocument { node: node.0, state: "down", reason, ..MemberDocument::default() };
            }
            None => return MemberDocument { node: node.0, state: "unknown", ..MemberDocument::default() },
        };
        let mut member = of_status(*node, status);
        if let (Some(earlier), Some(later)) = (before.vitals.get(node), now.vitals.get(node)) {
            rates(&mut member, earlier, later, interval);
        }
        member
    });
    TopDocument {
        cluster: document.cluster.to_string(),
        epoch: document.epoch.0,
        interval_ms: u64::try_from(interval.as_millis()).unwrap_or(u64::MAX),
        members: members.collect(),
    }
}

fn of_status(node: NodeId, status: &NodeStatus) -> MemberDocument {
    let in_sync = status.peers.iter().filter(|peer| peer.is_up).filter_map(|peer| peer.sync);
    MemberDocument {
        node: node.0,
        state: if status.is_ready { "up" } else { "not ready" },
        under_way: Some(status.operations),
        hints_pending: Some(status.hints_pending),
        convergence_lag_ms: Some(status.convergence_lag_ms),
        in_sync_ms: in_sync.map(|sync| sync.age_ms).max(),
        copies_filling: Some(status.copies.saturating_sub(status.copies_whole)),
        unsynced_bytes: Some(status.unsynced_bytes),
        clock_drift_ms: status.clock_drift_ms,
        ..MemberDocument::default()
    }
}

fn rates(member: &mut MemberDocument, earlier: &NodeVitals, later: &NodeVitals, interval: Duration) {
    // A process that has started anew counts from nothing.
    let per_second = |of: fn(&NodeVitals) -> u64| {
        Some(of(later).checked_sub(of(earlier)).unwrap_or_else(|| of(later)) as f64 / interval.as_secs_f64())
    };
    member.reads_per_second = per_second(|vitals| vitals.reads.succeeded);
    member.writes_per_second = per_second(|vitals| vitals.writes.succeeded);
    member.refused_per_second = per_second(|vitals| vitals.refused);
    member.unanswered_per_second = per_second(|vitals| vitals.reads.unanswered + vitals.writes.unanswered);
    member.repaired_objects_per_second = per_second(|vitals| vitals.repaired_objects);
    member.repaired_bytes_per_second = per_second(|vitals| vitals.repaired_bytes);
    let quantile = |of: fn(&NodeVitals) -> &RequestVitals, share| {
        quantile_us(&later.duration_bounds_us, &of(earlier).durations, &of(later).durations, share)
    };
    member.read_p50_us = quantile(|vitals| &vitals.reads, 0.5);
    member.read_p99_us = quantile(|vitals| &vitals.reads, 0.99);
    member.write_p50_us = quantile(|vitals| &vitals.writes, 0.5);
    member.write_p99_us = quantile(|vitals| &vitals.writes, 0.99);
    member.storage_bytes = Some(later.storage_bytes);
    member.storage_free = (later.storage_size_bytes > 0)
        .then(|| later.storage_free_bytes as f64 / later.storage_size_bytes as f64);
}

/// What so large a share of the requests between two looks took no longer than; none if there were none. Between two bounds
/// requests count as evenly spread, as in Prometheus' `histogram_quantile`.
fn quantile_us(bounds: &[u64], earlier: &[u64], later: &[u64], share: f64) -> Option<u64> {
    // A process that has started anew counts from nothing.
    let is_new = earlier.iter().zip(later).any(|(earlier, later)| earlier > later);
    let earlier = if is_new { &[] } else { earlier };
    let counts: Vec<u64> = later
        .iter()
        .enumerate()
        .map(|(index, count)| count.saturating_sub(earlier.get(index).copied().unwrap_or(0)))
        .collect();
    let all = counts.last().copied().filter(|all| *all > 0)?;
    let wanted = all as f64 * share;
    let index = counts.iter().position(|count| *count as f64 >= wanted)?;
    let (low, below) = match index.checked_sub(1) {
        Some(previous) => (bounds.get(previous).copied()?, counts[previous]),
        None => (0, 0),
    };
    let high = bounds.get(index).copied()?;
    let within = (wanted - below as f64) / (counts[index] - below).max(1) as f64;
    Some(low + (high.saturating_sub(low) as f64 * within) as u64)
}

fn text_of(shown: &TopDocument) -> String {
    let mut text = String::new();
    let up = shown.members.iter().filter(|member| member.state == "up").count();
    let sum = |of: fn(&MemberDocument) -> Option<f64>| shown.members.iter().filter_map(of).sum::<f64>();
    let lag = shown.members.iter().filter_map(|member| member.convergence_lag_ms).max();
    let _ = writeln!(
        text,
        "{}: {up} of {} members up, epoch {}   {} reads/s, {} writes/s   {} repaired/s   lag {}\n",
        shown.cluster,
        shown.members.len(),
        shown.epoch,
        rate(sum(|member| member.reads_per_second)),
        rate(sum(|member| member.writes_per_second)),
        rate(sum(|member| member.repaired_objects_per_second)),
        lag.map_or("-".to_owned(), span),
    );
    let mut table = Table::new(&[
        "node",
        "state",
        "reads/s",
        "p50",
        "p99",
        "writes/s",
        "p50",
        "p99",
        "refused/s",
        "unanswered/s",
        "under way",
        "hints",
        "lag",
        "in sync",
        "filling",
        "repaired/s",
        "bytes/s",
        "store",
        "free",
        "drift",
        "",
    ]);
    fn shown_as<T>(value: Option<T>, show: impl Fn(T) -> String) -> String {
        value.map_or("-".to_owned(), show)
    }
    for member in &shown.members {
        table.row([
            format!("node-{}", member.node),
            member.state.to_owned(),
            shown_as(member.reads_per_second, rate),
            shown_as(member.read_p50_us, latency),
            shown_as(member.read_p99_us, latency),
            shown_as(member.writes_per_second, rate),
            shown_as(member.write_p50_us, latency),
            shown_as(member.write_p99_us, latency),
            shown_as(member.refused_per_second, rate),
            shown_as(member.unanswered_per_second, rate),
            shown_as(member.under_way, |count| count.to_string()),
            shown_as(member.hints_pending, |count| count.to_string()),
            shown_as(member.convergence_lag_ms, span),
            shown_as(member.in_sync_ms, span),
            shown_as(member.copies_filling, |count| count.to_string()),
            shown_as(member.repaired_objects_per_second, rate),
            shown_as(member.repaired_bytes_per_second, bytes),
            shown_as(member.storage_bytes, |count| bytes(count as f64)),
            shown_as(member.storage_free, |share| format!("{:.0}%", share * 100.0)),
            shown_as(member.clock_drift_ms, |drift_ms| format!("{drift_ms}ms")),
            member.reason.clone().unwrap_or_default(),
        ]);
    }
    table.write(&mut text);
    text
}

fn rate(per_second: f64) -> String {
    match per_second {
        0.0 => "0".to_owned(),
        low if low < 10.0 => format!("{low:.1}"),
        high => format!("{high:.0}"),
    }
}

fn latency(us: u64) -> String {
    match us {
        0..1_000 => format!("{us}us"),
        1_000..10_000 => format!("{:.1}ms", us as f64 / 1e3),
        10_000..10_000_000 => format!("{}ms", us / 1_000),
        _ => format!("{}s", us / 1_000_000),
    }
}

fn bytes(count: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut count = count;
    let mut unit = 0;
    while count >= 1024.0 && unit + 1 < units.len() {
        count /= 1024.0;
        unit += 1;
    }
    if unit == 0 || count >= 100.0 {
        format!("{count:.0}{}", units[unit])
    } else {
        format!("{count:.1}{}", units[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_requests_between_two_looks() {
        let bounds = [100, 1_000, 10_000];
        // Before, all were slow; since then a hundred took up to 100, and ten up to 1,000.
        let (earlier, later) = ([0, 0, 50], [100, 110, 160]);
        assert_eq!(quantile_us(&bounds, &earlier, &later, 0.5), Some(55));
        assert_eq!(quantile_us(&bounds, &earlier, &later, 0.99), Some(901));
        assert_eq!(quantile_us(&bounds, &later, &later, 0.5), None);
        // A process that has counted nothing yet.
        assert_eq!(quantile_us(&bounds, &[], &[1, 1, 1], 0.5), Some(50));
        assert_eq!(quantile_us(&bounds, &[], &[], 0.5), None);
        // One that has begun anew in between.
        assert_eq!(quantile_us(&bounds, &[100, 100, 100], &[0, 1, 1], 0.5), Some(550));
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!([rate(0.0), rate(0.25), rate(12.6), rate(54_321.0)], ["0", "0.2", "13", "54321"]);
        assert_eq!(
            [latency(7), latency(1_234), latency(25_000), latency(12_000_000)],
            ["7us", "1.2ms", "25ms", "12s"]
        );
        assert_eq!(
            [bytes(0.0), bytes(1023.0), bytes(1536.0), bytes(500.0 * 1048576.0)],
            ["0B", "1023B", "1.5KiB", "500MiB"]
        );
    }

    #[test]
    fn a_process_that_began_anew_is_counted_from_nothing() {
        let vitals = |succeeded| NodeVitals {
            reads: RequestVitals { succeeded, ..RequestVitals::default() },
            ..NodeVitals::default()
        };
        let mut member = MemberDocument::default();
        rates(&mut member, &vitals(1_000), &vitals(10), Duration::from_secs(2));
        assert_eq!(member.reads_per_second, Some(5.0));
    }
}
