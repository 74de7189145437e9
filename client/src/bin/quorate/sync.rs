//! `lag` and `repair`: how far the replicas are in sync, and bringing them there at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    io::{self, IsTerminal, Write as _},
    time::{Duration, Instant},
};

use client::wire::{NodeStatus, PeerStatus, SyncStatus};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use ring::{ClusterDocument, NodeId, PartitionId, REPLICAS_MAX};
use serde::Serialize;

use crate::{
    arguments::{Global, Repair},
    failure::{CommandError, Exit, reason},
    output::{Output, Table, span},
    session::Session,
    status::{MEMBER_WAIT, Statuses, ask_all},
};

/// How often it is asked how far a repair has come.
const ASK_INTERVAL: Duration = Duration::from_millis(200);
/// How often in a row a node does not answer before it is given up.
const SILENT_MAX: u32 = 5;
/// How often a line is written where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// What `lag` prints.
#[derive(Serialize)]
struct LagDocument {
    /// How old the oldest write is that some member knows not to be on all its replicas; none if no member answered.
    convergence_lag_ms: Option<u64>,
    members: Vec<LagMember>,
    pairs: Vec<PairDocument>,
}

#[derive(Serialize)]
struct LagMember {
    node: u32,
    convergence_lag_ms: Option<u64>,
    copies_filling: Option<u32>,
    partitions_unscanned: Option<u32>,
    /// Why it did not answer.
    reason: Option<String>,
}

/// What a node says of itself and a peer.
#[derive(Serialize)]
struct PairDocument {
    node: u32,
    peer: u32,
    peer_is_up: bool,
    /// How long ago both were last known to be equal; none if that was not so since the node started or one of the two lost
    /// something.
    in_sync_ms: Option<u64>,
    partitions_differed: u32,
    hints_pending: u64,
    hint_oldest_ms: Option<u64>,
}

/// What `repair` prints.
#[derive(Serialize)]
struct RepairDocument {
    /// Pairs of nodes that share something of what was to be repaired.
    pairs: usize,
    /// How many of them were known to be in sync at the end; none if nobody waited.
    in_sync: Option<usize>,
    /// Nodes that did not answer: what they share was not compared.
    unreachable: Vec<u32>,
    /// Of those who were waited for, the nodes with a store that nobody has recorded: they lack what they had.
    unrecorded: Vec<u32>,
    /// And those with copies that are not whole, because another node is away.
    filling: Vec<u32>,
    elapsed_ms: u64,
}

/// Shows how far behind the replicas may be.
pub(crate) async fn lag(global: &Global, output: &Output) -> Result<Exit, CommandError> {
    let session = Session::open(global).await?;
    let document = session.client.document();
    let statuses = ask_all(&session.client, &document, session.timeout_or(MEMBER_WAIT)).await;
    session.close().await;
    let lag = describe(&statuses);
    output.print(&lag, |text| write(&lag, text))?;
    Ok(Exit::Done)
}

fn describe(statuses: &Statuses) -> LagDocument {
    let members = statuses.iter().map(|(node, answer)| {
        let status = answer.as_ref().ok();
        LagMember {
            node: node.0,
            convergence_lag_ms: status.map(|status| status.convergence_lag_ms),
            copies_filling: status.map(|status| status.copies.saturating_sub(status.copies_whole)),
            partitions_unscanned: status.map(|status| status.partitions_unscanned),
            reason: answer.as_ref().err().map(reason),
        }
    });
    let members: Vec<LagMember> = members.collect();
    let pair = |node: NodeId, peer: &PeerStatus| {
        let sync = peer.sync?;
        Some(PairDocument {
            node: node.0,
            peer: peer.node.0,
            peer_is_up: peer.is_up,
            in_sync_ms: sync.is_known.then_some(sync.age_ms),
            partitions_differed: sync.partitions_differed,
            hints_pending: peer.hints_pending,
            hint_oldest_ms: peer.hint_oldest_ms,
        })
    };
    let pairs = known(statuses)
        .flat_map(|(node, status)| status.peers.iter().filter_map(move |peer| pair(node, peer)))
        .collect();
    let lags = members.iter().filter_map(|member| member.convergence_lag_ms);
    LagDocument { convergence_lag_ms: lags.max(), members, pairs }
}

/// The members that have answered.
fn known(statuses: &Statuses) -> impl Iterator<Item = (NodeId, &NodeStatus)> {
    statuses.iter().filter_map(|(node, answer)| Some((*node, answer.as_ref().ok()?)))
}

fn write(lag: &LagDocument, text: &mut String) {
    let others = match lag.members.iter().any(|member| member.reason.is_some()) {
        true => ", as far as those know that answered",
        false => "",
    };
    let _ = match lag.convergence_lag_ms {
        None => writeln!(text, "no member has answered"),
        Some(0) => writeln!(text, "no write is known to be missing anywhere{others}\n"),
        Some(lag_ms) => {
            let lag = span(lag_ms);
            writeln!(text, "the oldest write that is known to be missing somewhere{others}: {lag}\n")
        }
    };
    let names = ["node", "peer", "in sync", "differed in", "hints", "oldest hint", ""];
    let mut table = Table::new(&names);
    for pair in &lag.pairs {
        let partitions = |count: u32| match count {
            0 => "-".to_owned(),
            1 => "1 partition".to_owned(),
            count => format!("{count} partitions"),
        };
        table.row([
            format!("node-{}", pair.node),
            format!("node-{}", pair.peer),
            pair.in_sync_ms.map_or("not yet".to_owned(), |ago_ms| format!("{} ago", span(ago_ms))),
            partitions(pair.partitions_differed),
            pair.hints_pending.to_string(),
            pair.hint_oldest_ms.map_or("-".to_owned(), span),
            if pair.peer_is_up { String::new() } else { "the peer is down".to_owned() },
        ]);
    }
    table.write(text);
    for member in &lag.members {
        let node = member.node;
        if let Some(reason) = &member.reason {
            let _ = writeln!(text, "node-{node} did not answer: {reason}");
        }
        if let Some(filling) = member.copies_filling.filter(|filling| *filling > 0) {
            let _ = writeln!(text, "node-{node} has {filling} copies that are filling");
        }
        if let Some(unscanned) = member.partitions_unscanned.filter(|unscanned| *unscanned > 0) {
            let _ = writeln!(text, "node-{node} has yet to scan {unscanned} partitions");
        }
    }
}

/// Has everything compared at once.
pub(crate) async fn repair(repair: Repair, global: &Global, output: &Output) -> Result<Exit, CommandError> {
    let session = Session::open(global).await?;
    let document = session.client.document();
    let partition = repair.partition.map(PartitionId);
    if let Some(number) = repair.partition.filter(|number| u32::from(*number) >= document.partitions.count())
    {
        return Err(CommandError::NoSuchPartition { number, count: document.partitions.count() });
    }
    let nodes = concerned(&document, global.keyspace.as_deref(), partition)?;
    let wait = session.timeout_or(MEMBER_WAIT);
    let begun = Instant::now();
    let (mut open, mut unreachable) = (BTreeMap::new(), BTreeSet::new());
    for &node in &nodes {
        match session.client.repair(node, partition, wait).await {
            Ok(peers) => {
                let peers = peers.into_iter().filter(|peer| nodes.contains(peer));
                open.extend(peers.map(|peer| ((node.min(peer), node.max(peer)), Instant::now())));
            }
            Err(_) => _ = unreachable.insert(node),
        }
    }
    open.retain(|(one, other), _| !unreachable.contains(one) && !unreachable.contains(other));
    let (pairs, mut given_up) = (open.len(), 0);
    let mut unrecorded = BTreeSet::new();
    // Of one partition alone no node says whether its copy is whole.
    let mut filling = if repair.wait && partition.is_none() { nodes.clone() } else { BTreeSet::new() };
    if repair.wait {
        let mut progress = SyncProgress::begin(pairs);
        let mut silent: BTreeMap<NodeId, u32> = BTreeMap::new();
        // A copy is whole when it has compared itself with all others: not while one is away.
        while !open.is_empty() || (!filling.is_empty() && unreachable.is_empty()) {
            tokio::time::sleep(ASK_INTERVAL).await;
            // What a node says is about a time after this.
            let asked = Instant::now();
            let statuses = ask_all(&session.client, &document, wait).await;
            for (node, status) in known(&statuses) {
                if !status.is_recorded {
                    unrecorded.insert(node);
                }
                if status.copies_whole == status.copies || !status.is_recorded {
                    filling.remove(&node);
                }
                let synced = status.peers.iter().filter_map(|peer| Some((peer.node, peer.sync?)));
                for (peer, sync) in synced {
                    let pair = (node.min(peer), node.max(peer));
                    if open.get(&pair).is_some_and(|begun| is_since(sync, asked, *begun)) {
                        open.remove(&pair);
                    }
                }
            }
            for node in &nodes {
                let times = silent.entry(*node).or_default();
                *times = if statuses.get(node).is_some_and(Result::is_ok) { 0 } else { *times + 1 };
                if *times >= SILENT_MAX {
                    unreachable.insert(*node);
                }
            }
            let before = open.len();
            open.retain(|(one, other), _| !unreachable.contains(one) && !unreachable.contains(other));
            given_up += before - open.len();
            progress.show(pairs - open.len(), &open, &filling);
        }
        progress.end();
    }
    session.close().await;
    let elapsed_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    let shown = RepairDocument {
        pairs,
        in_sync: repair.wait.then_some(pairs - given_up),
        unreachable: unreachable.iter().map(|node| node.0).collect(),
        unrecorded: unrecorded.iter().map(|node| node.0).collect(),
        filling: filling.difference(&unreachable).map(|node| node.0).collect(),
        elapsed_ms,
    };
    output.print(&shown, |text| {
        let _ = match shown.in_sync {
            Some(1) => writeln!(text, "1 pair of nodes is in sync, after {}", span(elapsed_ms)),
            Some(in_sync) => {
                writeln!(text, "{in_sync} pairs of nodes are in sync, after {}", span(elapsed_ms))
            }
            None => writeln!(
                text,
                "{pairs} pairs of nodes are being compared: `quorate lag` shows how far they are"
            ),
        };
        for node in &shown.unreachable {
            let _ = writeln!(text, "node-{node} did not answer: what it shares with others was not compared");
        }
        for node in &shown.unrecorded {
            let _ =
                writeln!(text, "node-{node} has a new store and lacks what it had: quorate readmit {node}");
        }
        for node in &shown.filling {
            let _ = writeln!(
                text,
                "node-{node} has copies that are filling, and not all others are there to fill them"
            );
        }
    })?;
    let is_done = unreachable.is_empty() && unrecorded.is_empty() && shown.filling.is_empty();
    Ok(if is_done { Exit::Done } else { Exit::Failed })
}

/// The nodes that have copies of what is to be repaired.
fn concerned(
    document: &ClusterDocument,
    keyspace: Option<&str>,
    partition: Option<PartitionId>,
) -> Result<BTreeSet<NodeId>, CommandError> {
    let datacenters: Vec<usize> = match keyspace {
        None => (0..document.datacenters.len()).collect(),
        Some(name) => {
            let found = document.keyspace_named(name);
            let (_, keyspace) = found.ok_or_else(|| CommandError::NoSuchKeyspace(name.to_owned()))?;
            keyspace.replication.keys().map(|datacenter| usize::from(datacenter.0)).collect()
        }
    };
    let mut nodes = BTreeSet::new();
    for datacenter in datacenters {
        let placement = &document.datacenters[datacenter].placement;
        for partition in document.partitions.iter().filter(|of| partition.is_none_or(|asked| asked == *of)) {
            nodes.extend(placement.replicas(partition, REPLICAS_MAX).iter().map(|owner| owner.node));
        }
    }
    Ok(nodes)
}

/// Whether two nodes were in sync at a time after a repair was begun, as one of them said that was asked at this time.
fn is_since(sync: SyncStatus, asked: Instant, begun: Instant) -> bool {
    sync.is_known && Duration::from_millis(sync.age_ms) < asked.saturating_duration_since(begun)
}

/// How many pairs of nodes are in sync: a bar where a person watches, and a line every few seconds elsewhere.
struct SyncProgress {
    bar: Option<ProgressBar>,
    shown: Instant,
    pairs: usize,
}

impl SyncProgress {
    fn begin(pairs: usize) -> SyncProgress {
        let bar = io::stderr().is_terminal().then(|| {
            let bar =
                ProgressBar::with_draw_target(Some(pairs as u64), ProgressDrawTarget::stderr_with_hz(5));
            let style = ProgressStyle::with_template("{bar:30} {pos} of {len} pairs in sync  {msg}");
            bar.set_style(style.expect("a template that is right"));
            bar
        });
        SyncProgress { bar, shown: Instant::now(), pairs }
    }

    fn show(
        &mut self,
        in_sync: usize,
        open: &BTreeMap<(NodeId, NodeId), Instant>,
        filling: &BTreeSet<NodeId>,
    ) {
        let waiting = match (open.keys().next(), filling.first()) {
            (Some((one, other)), _) => format!("waiting for {one} and {other}"),
            (None, Some(node)) => format!("waiting for the copies of {node} to be whole"),
            (None, None) => String::new(),
        };
        match &self.bar {
            Some(bar) => {
                bar.set_position(in_sync as u64);
                bar.set_message(waiting);
            }
            None if self.shown.elapsed() < LINE_INTERVAL => {}
            None => {
                self.shown = Instant::now();
                // Where stderr is closed there is nobody to tell.
                let _ = writeln!(io::stderr(), "{in_sync} of {} pairs in sync, {waiting}", self.pairs);
            }
        }
    }

    fn end(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
