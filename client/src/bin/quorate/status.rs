//! `status` and `readmit`: the members, and what each says of itself.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use client::{Client, ControlFailure, wire::NodeStatus};
use ring::{ClusterDocument, NodeId};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::{
    arguments::{Global, Readmit},
    failure::{CommandError, Exit, reason},
    interrupt::Interrupt,
    output::{Output, Table, span},
    session::Session,
};

/// How long a member that does not answer is waited for, unless told otherwise. All are asked at once.
pub(crate) const MEMBER_WAIT: Duration = Duration::from_secs(1);
/// Copies that ownership is counted for where the keyspace says nothing.
const COPIES_DEFAULT: u8 = 3;

/// What `status` prints.
#[derive(Serialize)]
struct StatusDocument {
    cluster: String,
    epoch: u64,
    partitions: u32,
    /// The copies that ownership is counted for.
    n: u8,
    members: Vec<MemberDocument>,
}

#[derive(Serialize)]
struct MemberDocument {
    node: u32,
    address: String,
    datacenter: String,
    rack: String,
    state: &'static str,
    /// Why it did not answer.
    reason: Option<String>,
    epoch: Option<u64>,
    ready: Option<bool>,
    recorded: Option<bool>,
    votes: Option<bool>,
    /// The share of the partitions of which it is one of the first n in its datacenter.
    ownership: f64,
    copies: Option<CopiesDocument>,
    hints_pending: Option<u64>,
    unsynced_bytes: Option<u64>,
    operations: Option<u32>,
    clock_drift_ms: Option<i64>,
    version: Option<String>,
    uptime_ms: Option<u64>,
    /// Peers that it sees as down.
    sees_down: Option<Vec<u32>>,
}

#[derive(Serialize)]
struct CopiesDocument {
    whole: u32,
    filling: u32,
}

/// What `readmit` prints.
#[derive(Serialize)]
struct ReadmitDocument {
    node: u32,
    epoch: u64,
}

/// Asks every member how it fares.
pub(crate) async fn run(global: &Global, output: &Output) -> Result<Exit, CommandError> {
    let session = Session::open(global).await?;
    let document = session.client.document();
    let statuses = ask_all(&session.client, &document, session.timeout_or(MEMBER_WAIT)).await;
    // A member may have spoken of a newer document.
    let document = session.client.refresh(MEMBER_WAIT).await;
    let n = document
        .keyspace_named(session.keyspace_name())
        .and_then(|(_, keyspace)| keyspace.replication.values().next().copied())
        .unwrap_or(COPIES_DEFAULT);
    let status = describe(&document, &statuses, n);
    output.print(&status, |text| write(&status, text))?;
    session.close().await;
    Ok(Exit::Done)
}

/// Has the present store of a node recorded.
pub(crate) async fn readmit(
    readmit: Readmit,
    global: &Global,
    output: &Output,
    interrupt: &Interrupt,
) -> Result<Exit, CommandError> {
    let session = interrupt.may_end(Session::open(global)).await?;
    let node = readmit.node;
    let readmitted = async { Ok(session.client.readmit(node, session.change_timeout()).await?) };
    let epoch = interrupt.may_doubt(readmitted).await?;
    let document = ReadmitDocument { node: node.0, epoch: epoch.0 };
    output.print(&document, |text| {
        let _ =
            writeln!(text, "readmitted {node} with its present store, at {epoch}; its copies are filling");
    })?;
    session.close().await;
    Ok(Exit::Done)
}

pub(crate) type Statuses = BTreeMap<NodeId, Result<NodeStatus, ControlFailure>>;

pub(crate) async fn ask_all(client: &Client, document: &ClusterDocument, wait: Duration) -> Statuses {
    let mut asked = JoinSet::new();
    for &node in document.members.keys() {
        let client = client.clone();
        asked.spawn(async move { (node, client.status(node, wait).await) });
    }
    asked.join_all().await.into_iter().collect()
}

fn describe(document: &ClusterDocument, statuses: &Statuses, n: u8) -> StatusDocument {
    let members = document.members.iter().map(|(&node, member)| {
        let datacenter = &document.datacenters[usize::from(member.datacenter.0)];
        let (status, reason) = match statuses.get(&node) {
            Some(Ok(status)) => (Some(status), None),
            Some(Err(failure)) => (None, Some(reason(failure))),
            None => (None, Some("not asked: it has just become a member".to_owned())),
        };
        MemberDocument {
            node: node.0,
            address: member.address.clone(),
            datacenter: datacenter.name.clone(),
            rack: datacenter.racks.get(usize::from(member.rack.0)).cloned().unwrap_or_default(),
            state: if status.is_some() { "up" } else { "down" },
            reason,
            epoch: status.map(|status| status.epoch.0),
            ready: status.map(|status| status.is_ready),
            recorded: status.map(|status| status.is_recorded),
            votes: status.map(|status| status.votes),
            ownership: ownership(document, node, n),
            copies: status.map(|status| CopiesDocument {
                whole: status.copies_whole,
                filling: status.copies.saturating_sub(status.copies_whole),
            }),
            hints_pending: status.map(|status| status.hints_pending),
            unsynced_bytes: status.map(|status| status.unsynced_bytes),
            operations: status.map(|status| status.operations),
            clock_drift_ms: status.and_then(|status| status.clock_drift_ms),
            version: status.map(|status| status.version.clone()),
            uptime_ms: status.map(|status| status.uptime_ms),
            sees_down: status.map(|status| {
                let down = status.peers.iter().filter(|peer| !peer.is_up);
                down.map(|peer| peer.node.0).collect()
            }),
        }
    });
    StatusDocument {
        cluster: document.cluster.to_string(),
        epoch: document.epoch.0,
        partitions: document.partitions.count(),
        n,
        members: members.collect(),
    }
}

/// The share of the partitions of which `node` is one of the first `n` in its datacenter.
pub(crate) fn ownership(document: &ClusterDocument, node: NodeId, n: u8) -> f64 {
    let Some(member) = document.members.get(&node) else { return 0.0 };
    let placement = &document.datacenters[usize::from(member.datacenter.0)].placement;
    let is_owned = |partition: &ring::PartitionId| {
        placement.replicas(*partition, usize::from(n)).iter().any(|owner| owner.node == node)
    };
    let owned = document.partitions.iter().filter(is_owned).count();
    owned as f64 / f64::from(document.partitions.count())
}

fn write(status: &StatusDocument, text: &mut String) {
    let up = status.members.iter().filter(|member| member.state == "up").count();
    let (members, epoch, partitions) = (status.members.len(), status.epoch, status.partitions);
    let _ = writeln!(
        text,
        "{}: {up} of {members} members up, epoch {epoch}, {partitions} partitions",
        status.cluster
    );
    let owns = format!("owns (n={})", status.n);
    let names = [
        "node", "address", "place", "state", "epoch", &owns, "whole", "filling", "hints", "drift", "up for",
        "",
    ];
    let mut table = Table::new(&names);
    for member in &status.members {
        let shown = |number: Option<u64>| number.map_or("-".to_owned(), |number| number.to_string());
        let copies = member.copies.as_ref();
        table.row([
            format!("node-{}", member.node),
            member.address.clone(),
            format!("{}/{}", member.datacenter, member.rack),
            member.state.to_owned(),
            shown(member.epoch),
            format!("{:.1}%", member.ownership * 100.0),
            shown(copies.map(|copies| copies.whole.into())),
            shown(copies.map(|copies| copies.filling.into())),
            shown(member.hints_pending),
            member.clock_drift_ms.map_or("-".to_owned(), |drift_ms| format!("{drift_ms}ms")),
            member.uptime_ms.map_or("-".to_owned(), span),
            remark(member),
        ]);
    }
    table.write(text);
}

/// What is out of the ordinary about a member.
fn remark(member: &MemberDocument) -> String {
    if let Some(reason) = &member.reason {
        return reason.clone();
    }
    if member.recorded == Some(false) {
        return format!("its store was replaced: quorate readmit {}", member.node);
    }
    if member.ready == Some(false) {
        return "not ready".to_owned();
    }
    if member.votes == Some(false) {
        return format!("does not vote about the cluster's document: quorate readmit {}", member.node);
    }
    String::new()
}
