//! `explain`: where a key lives, what each replica holds of it, and why the winner wins.

use std::{fmt::Write as _, time::Duration};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use client::{
    Client, ControlFailure,
    wire::{CopyState, HeldVersion, ReplicaView},
};
use ring::{ClusterDocument, ConflictPolicy, Keyspace, KeyspaceId, NodeId, PartitionId, Token};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::{
    arguments::{Explain, Global},
    failure::{CommandError, Exit, reason},
    judgement::{Judgement, judge},
    output::{Output, ShownVersion, Table, age, ago, escaped, now_unix_ms},
    session::Session,
};

/// How long a replica that does not answer is waited for, unless told otherwise. All are asked at once.
const REPLICA_WAIT: Duration = Duration::from_secs(1);

/// What `explain` prints.
#[derive(Serialize)]
struct ExplainDocument {
    key: String,
    keyspace: String,
    conflict: &'static str,
    token: String,
    partition: u16,
    epoch: u64,
    preference_list: Vec<EntryDocument>,
    replicas: Vec<ReplicaDocument>,
    /// The versions that a read of all replicas returns, newest first.
    winner: Vec<ShownVersion>,
    why: String,
    behind: Vec<u32>,
}

#[derive(Serialize)]
struct EntryDocument {
    node: u32,
    datacenter: String,
    position: usize,
    /// Whether it is one of the first n; the others are fallbacks.
    replica: bool,
}

#[derive(Serialize)]
struct ReplicaDocument {
    node: u32,
    /// `whole`, `filling` or `none`; `down` if it did not answer.
    copy: &'static str,
    reason: Option<String>,
    /// Deletes of the partition that are as old as this are forgotten there; none if it is not known, or nothing is.
    watermark_unix_ms: Option<u64>,
    /// Whether it holds a record, if only that of a delete.
    held: bool,
    versions: Vec<VersionDocument>,
    context: Vec<ShownVersion>,
    digest: Option<String>,
    synced: Option<bool>,
    behind: bool,
    /// Nodes to which it owes the record.
    owes: Vec<u32>,
}

#[derive(Serialize)]
struct VersionDocument {
    version: ShownVersion,
    bytes: u64,
    expires_unix_ms: Option<u64>,
}

type Answers = Vec<(NodeId, Result<ReplicaView, ControlFailure>)>;

/// Explains a key.
pub(crate) async fn run(explain: Explain, global: &Global, output: &Output) -> Result<Exit, CommandError> {
    let session = Session::open(global).await?;
    let name = session.keyspace_name().to_owned();
    let mut document = session.client.document();
    if document.keyspace_named(&name).is_none() {
        document = session.client.refresh(session.timeout()).await;
    }
    let Some((id, keyspace)) = document.keyspace_named(&name) else {
        return Err(CommandError::NoSuchKeyspace(name));
    };
    let token = Token::of_key(explain.key.as_bytes());
    let partition = document.partitions.of(token);
    let replicas: Vec<NodeId> =
        document.replicas(keyspace, partition, explain.n).map(|replica| replica.owner.node).collect();
    let wait = session.timeout_or(REPLICA_WAIT);
    let answers = ask_all(&session.client, &replicas, id, &explain.key, wait).await;
    session.close().await;
    let views: Vec<ReplicaView> =
        answers.iter().filter_map(|(_, answer)| answer.as_ref().ok().cloned()).collect();
    let judgement = judge(&views, keyspace.conflict);
    let shown = describe(&document, keyspace, &explain.key, partition, &answers, judgement);
    output.print(&shown, |text| write(&shown, text))?;
    Ok(if views.iter().all(|view| view.record.is_none()) { Exit::NotFound } else { Exit::Done })
}

async fn ask_all(
    client: &Client,
    replicas: &[NodeId],
    keyspace: KeyspaceId,
    key: &str,
    wait: Duration,
) -> Answers {
    let mut asked = JoinSet::new();
    for &node in replicas {
        let (client, key) = (client.clone(), key.to_owned());
        asked.spawn(async move { (node, client.explain(node, keyspace, key, wait).await) });
    }
    let mut answers = asked.join_all().await;
    answers.sort_by_key(|(node, _)| replicas.iter().position(|replica| replica == node));
    answers
}

fn describe(
    document: &ClusterDocument,
    keyspace: &Keyspace,
    key: &str,
    partition: PartitionId,
    answers: &Answers,
    judgement: Judgement,
) -> ExplainDocument {
    let lists = keyspace.replication.keys().flat_map(|&datacenter| {
        let list = document.preference_list(datacenter, partition).iter().enumerate();
        list.map(move |(position, owner)| EntryDocument {
            node: owner.node.0,
            datacenter: document.datacenters[usize::from(datacenter.0)].name.clone(),
            position,
            replica: answers.iter().any(|(node, _)| *node == owner.node),
        })
    });
    ExplainDocument {
        key: key.to_owned(),
        keyspace: keyspace.name.clone(),
        conflict: match keyspace.conflict {
            ConflictPolicy::Siblings => "siblings",
            ConflictPolicy::LastWriteWins => "lww",
        },
        token: Token::of_key(key.as_bytes()).to_string(),
        partition: partition.0,
        epoch: document.epoch.0,
        preference_list: lists.collect(),
        replicas: answers
            .iter()
            .map(|(node, answer)| replica(*node, answer, judgement.behind.contains(node)))
            .collect(),
        winner: judgement.winners.into_iter().map(ShownVersion).collect(),
        why: judgement.why,
        behind: judgement.behind.into_iter().map(|node| node.0).collect(),
    }
}

fn replica(node: NodeId, answer: &Result<ReplicaView, ControlFailure>, behind: bool) -> ReplicaDocument {
    let (copy, reason, record) = match answer {
        Ok(view) => {
            let copy = match view.copy {
                CopyState::Whole => "whole",
                CopyState::Filling => "filling",
                CopyState::None => "none",
            };
            (copy, None, view.record.as_ref())
        }
        Err(failure) => ("down", Some(reason(failure)), None),
    };
    let watermark = answer.as_ref().ok().map(|view| view.watermark);
    let owes = answer.iter().flat_map(|view| &view.owes);
    let version = |held: &HeldVersion| VersionDocument {
        version: ShownVersion(held.version),
        bytes: held.value_bytes,
        expires_unix_ms: held.expires_unix_ms,
    };
    ReplicaDocument {
        node: node.0,
        copy,
        reason,
        watermark_unix_ms: watermark.filter(|watermark| *watermark > 0).map(|watermark| watermark >> 16),
        held: record.is_some(),
        versions: record.map_or(Vec::new(), |record| record.versions.iter().map(version).collect()),
        context: record
            .map_or(Vec::new(), |record| record.context.iter().copied().map(ShownVersion).collect()),
        digest: record.map(|record| BASE64_URL_SAFE_NO_PAD.encode(&record.digest)),
        synced: record.map(|record| record.is_synced),
        behind,
        owes: owes.map(|node| node.0).collect(),
    }
}

fn write(explain: &ExplainDocument, text: &mut String) {
    let ExplainDocument { keyspace, conflict, token, partition, epoch, .. } = explain;
    let _ = writeln!(text, "{} in {keyspace} ({conflict})", escaped(explain.key.as_bytes()));
    let _ = writeln!(text, "{token}, partition-{partition}, epoch {epoch}");
    let list = explain.preference_list.iter().map(|entry| {
        let fallback = if entry.replica { "" } else { " (fallback)" };
        format!("node-{}{fallback}", entry.node)
    });
    let _ = writeln!(text, "preference list: {}\n", list.collect::<Vec<_>>().join(", "));
    let mut table = Table::new(&["replica", "copy", "watermark", "holds", "written", "bytes", ""]);
    let now_unix_ms = now_unix_ms();
    for replica in &explain.replicas {
        let watermark = replica.watermark_unix_ms.map_or("-".into(), |at| ago(at, now_unix_ms));
        let mut first = [format!("node-{}", replica.node), replica.copy.to_owned(), watermark];
        let mut remark = match (&replica.reason, replica.behind) {
            (Some(reason), _) => reason.clone(),
            (None, true) => "behind".to_owned(),
            (None, false) => String::new(),
        };
        if !replica.owes.is_empty() {
            let owed = replica.owes.iter().map(|node| format!("node-{node}")).collect::<Vec<_>>().join(", ");
            let comma = if remark.is_empty() { "" } else { ", " };
            let _ = write!(remark, "{comma}owes it to {owed}");
        }
        if replica.versions.is_empty() {
            let holds = if replica.held { "a delete" } else { "nothing" };
            let holds = if replica.reason.is_some() { "?" } else { holds };
            table.row(first.into_iter().chain([holds.to_owned(), "-".into(), "-".into(), remark]));
            continue;
        }
        for version in &replica.versions {
            let is_expired = version.expires_unix_ms.is_some_and(|expires| expires <= now_unix_ms);
            let expired = if is_expired { " (expired)" } else { "" };
            let holds = format!("{}{expired}", version.version);
            let written = age(version.version.0, now_unix_ms);
            let rest = [holds, written, version.bytes.to_string(), std::mem::take(&mut remark)];
            table.row(std::mem::take(&mut first).into_iter().chain(rest));
        }
    }
    table.write(text);
    let _ = writeln!(text, "\n{}", explain.why);
    if !explain.behind.is_empty() {
        let behind: Vec<_> = explain.behind.iter().map(|node| format!("node-{node}")).collect();
        let _ = writeln!(
            text,
            "behind: {}; a read at a quorum or the next exchange mends them",
            behind.join(", ")
        );
    }
}
