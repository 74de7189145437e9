//! `doctor`: what is wrong with a cluster, or soon will be, and what to do about it.
//!
//! Everything is asked of the members themselves, as `status` does; each finding names who has it. Two grades: what is wrong
//! now, and what will be.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use client::{
    Client, ControlFailure,
    wire::{NodeStatus, NodeVitals},
};
use ring::{ClusterDocument, NodeId};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::{
    arguments::Global,
    failure::{CommandError, Exit, reason},
    output::{Output, now_unix_ms, span},
    session::Session,
    status::{MEMBER_WAIT, Statuses, ask_all},
};

/// Clocks that are farther from their peers' are a finding. At ten times that a node dates no writes.
const DRIFT_MS_MAX: u64 = 50;
/// So much may this machine's clock be from a node's.
const OWN_DRIFT_MS_MAX: u64 = 1000;
/// The least share of its file system that a store should have free.
const FREE_SHARE_MIN: f64 = 0.15;
/// And what is too little at once.
const FREE_SHARE_BAD: f64 = 0.05;
/// How long before it ends a certificate should have been renewed.
const RENEW_DAYS: u64 = 30;
/// And when that is urgent.
const RENEW_DAYS_BAD: u64 = 7;
/// How old a write may be that is missing somewhere.
const LAG_MS_MAX: u64 = 10 * 60 * 1000;
/// How long two nodes that are up may not have been seen to be in sync.
const SYNC_MS_MAX: u64 = 10 * 60 * 1000;

const DAY_S: u64 = 86_400;

/// What `doctor` prints.
#[derive(Debug, Serialize)]
struct DoctorDocument {
    members: usize,
    answered: usize,
    findings: Vec<Finding>,
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Finding {
    grade: Grade,
    /// What it is about.
    subject: Subject,
    /// Who has it; empty if the cluster as a whole does.
    nodes: Vec<u32>,
    what: String,
    /// What to do about it.
    advice: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Grade {
    /// It is wrong now.
    Problem,
    /// It will be, or may be.
    Warning,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Subject {
    Ports,
    Clocks,
    Disks,
    Certificates,
    Configuration,
    Data,
}

/// What the members have answered.
struct Answers {
    statuses: Statuses,
    vitals: BTreeMap<NodeId, Result<NodeVitals, ControlFailure>>,
    /// This machine's clock when the vitals were asked for, and when they had come.
    asked_unix_ms: (u64, u64),
}

/// Examines the cluster. Fails if something is wrong now, so that scripts notice.
pub(crate) async fn run(global: &Global, output: &Output) -> Result<Exit, CommandError> {
    let session = Session::open(global).await?;
    let document = session.client.document();
    let wait = session.timeout_or(MEMBER_WAIT);
    let statuses = ask_all(&session.client, &document, wait).await;
    let began = now_unix_ms();
    let vitals = ask_vitals(&session.client, &document, wait).await;
    let answers = Answers { statuses, vitals, asked_unix_ms: (began, now_unix_ms()) };
    let findings = examine(&document, &answers);
    let answered = answers.statuses.values().filter(|answer| answer.is_ok()).count();
    let report = DoctorDocument { members: document.members.len(), answered, findings };
    output.print(&report, |text| write(&report, text))?;
    session.close().await;
    let is_well = report.findings.iter().all(|finding| finding.grade == Grade::Warning);
    Ok(if is_well { Exit::Done } else { Exit::Failed })
}

/// Asks all members at once.
pub(crate) async fn ask_vitals(
    client: &Client,
    document: &ClusterDocument,
    wait: Duration,
) -> BTreeMap<NodeId, Result<NodeVitals, ControlFailure>> {
    let mut asked = JoinSet::new();
    for &node in document.members.keys() {
        let client = client.clone();
        asked.spawn(async move { (node, client.vitals(node, wait).await) });
    }
    asked.join_all().await.into_iter().collect()
}

fn examine(document: &ClusterDocument, answers: &Answers) -> Vec<Finding> {
    let mut findings = Vec::new();
    let statuses: BTreeMap<NodeId, &NodeStatus> =
        answers.statuses.iter().filter_map(|(node, answer)| Some((*node, answer.as_ref().ok()?))).collect();
    let vitals: BTreeMap<NodeId, &NodeVitals> =
        answers.vitals.iter().filter_map(|(node, answer)| Some((*node, answer.as_ref().ok()?))).collect();
    ports(document, answers, &statuses, &mut findings);
    clocks(&statuses, &vitals, answers.asked_unix_ms, &mut findings);
    for (&node, answer) in answers.vitals.iter().filter(|(node, _)| statuses.contains_key(node)) {
        let Err(failure) = answer else { continue };
        find(
            &mut findings,
            (Grade::Warning, Subject::Configuration),
            [node],
            format!("says nothing of its disk, its certificates and its settings: {}", reason(failure)),
            "run this again; a node of an older version has to be upgraded first",
        );
    }
    disks(&vitals, &mut findings);
    certificates(&vitals, answers.asked_unix_ms.1 / 1000, &mut findings);
    configuration(document, &statuses, &vitals, &mut findings);
    data(&statuses, &mut findings);
    findings.sort();
    findings
}

/// One finding of several nodes, if any has it.
fn find(
    findings: &mut Vec<Finding>,
    (grade, subject): (Grade, Subject),
    nodes: impl IntoIterator<Item = NodeId>,
    what: impl Into<String>,
    advice: impl Into<String>,
) {
    let nodes: Vec<u32> = nodes.into_iter().map(|node| node.0).collect();
    if !nodes.is_empty() {
        findings.push(Finding { grade, subject, nodes, what: what.into(), advice: advice.into() });
    }
}

/// Who can be reached, from here and from each other.
fn ports(
    document: &ClusterDocument,
    answers: &Answers,
    statuses: &BTreeMap<NodeId, &NodeStatus>,
    findings: &mut Vec<Finding>,
) {
    for (&node, answer) in &answers.statuses {
        let Err(failure) = answer else { continue };
        let address = &document.members[&node].address;
        let seen_by = statuses.iter().filter(|(_, status)| sees(status, node) == Some(true)).count();
        let (what, advice) = if seen_by > 0 {
            (
                format!("does not answer here, and {seen_by} other members see it: {}", reason(failure)),
                format!(
                    "see to it that UDP from this machine reaches {address}, and that the certificate here is good"
                ),
            )
        } else {
            (
                format!("does not answer: {}", reason(failure)),
                format!("look whether its process runs, at its log, and whether UDP to {address} passes"),
            )
        };
        find(findings, (Grade::Problem, Subject::Ports), [node], what, advice);
    }
    for (&node, status) in statuses {
        let unseen = status.peers.iter().filter(|peer| !peer.is_up && statuses.contains_key(&peer.node));
        let unseen: Vec<String> = unseen.map(|peer| format!("node-{}", peer.node.0)).collect();
        if !unseen.is_empty() {
            find(
                findings,
                (Grade::Problem, Subject::Ports),
                [node],
                format!("cannot reach {}, which answers here", unseen.join(", ")),
                "see to it that UDP passes between them both ways: firewalls, network policies, addresses in the document",
            );
        }
    }
    for (node, status) in statuses.iter().filter(|(_, status)| !status.is_ready) {
        let advice = if status.is_recorded {
            "wait a moment if it has just started; otherwise look at its log"
        } else {
            "its store is a new one: once it is certain that the old one is gone, run `quorate readmit NODE`"
        };
        find(findings, (Grade::Problem, Subject::Ports), [*node], "is not ready for requests", advice);
    }
}

/// Whether a node sees a peer; none if it does not know it.
fn sees(status: &NodeStatus, peer: NodeId) -> Option<bool> {
    status.peers.iter().find(|known| known.node == peer).map(|known| known.is_up)
}

fn clocks(
    statuses: &BTreeMap<NodeId, &NodeStatus>,
    vitals: &BTreeMap<NodeId, &NodeVitals>,
    (asked, answered): (u64, u64),
    findings: &mut Vec<Finding>,
) {
    for (&node, status) in statuses {
        let Some(drift_ms) = status.clock_drift_ms.filter(|drift_ms| drift_ms.unsigned_abs() > DRIFT_MS_MAX)
        else {
            continue;
        };
        find(
            findings,
            (Grade::Warning, Subject::Clocks),
            [node],
            format!("its clock is {drift_ms} ms from the median of its peers'"),
            "see to its time synchronisation (chrony or systemd-timesyncd); beyond `limits.clock_drift_max_ms` it refuses writes",
        );
    }
    let far = vitals.iter().filter(|(_, vitals)| {
        let off = asked.saturating_sub(vitals.wall_unix_ms).max(vitals.wall_unix_ms.saturating_sub(answered));
        off > OWN_DRIFT_MS_MAX
    });
    find(
        findings,
        (Grade::Warning, Subject::Clocks),
        far.map(|(node, _)| *node),
        format!("its clock and this machine's are more than {} apart", span(OWN_DRIFT_MS_MAX)),
        "see to the time synchronisation of this machine, if all nodes are named here, or of theirs",
    );
}

fn disks(vitals: &BTreeMap<NodeId, &NodeVitals>, findings: &mut Vec<Finding>) {
    for (&node, vitals) in vitals.iter().filter(|(_, vitals)| vitals.storage_size_bytes > 0) {
        let share = vitals.storage_free_bytes as f64 / vitals.storage_size_bytes as f64;
        if share >= FREE_SHARE_MIN {
            continue;
        }
        let grade = if share < FREE_SHARE_BAD { Grade::Problem } else { Grade::Warning };
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        find(
            findings,
            (grade, Subject::Disks),
            [node],
            format!(
                "{:.1} of {:.1} GiB are free ({:.0} %), and its store takes {:.1}",
                gib(vitals.storage_free_bytes),
                gib(vitals.storage_size_bytes),
                share * 100.0,
                gib(vitals.storage_bytes),
            ),
            "make room or move it to a larger disk; a full one refuses writes and harms nothing that is stored",
        );
    }
}

fn certificates(vitals: &BTreeMap<NodeId, &NodeVitals>, now_s: u64, findings: &mut Vec<Finding>) {
    for (&node, vitals) in vitals {
        let ends = [
            (
                vitals.certificate_expires_unix_s,
                "its certificate",
                "issue it a new one (`quorate cert node NAME --replace`)",
            ),
            (
                vitals.ca_expires_unix_s,
                "an authority that it trusts",
                "have all trust a new authority beside it, issue everybody certificates of that one, and then remove it",
            ),
        ];
        for (end, what, advice) in ends {
            let left_s = end.saturating_sub(now_s);
            if end == 0 || left_s > RENEW_DAYS * DAY_S {
                continue;
            }
            let grade = if left_s < RENEW_DAYS_BAD * DAY_S { Grade::Problem } else { Grade::Warning };
            let when = if left_s == 0 {
                "has expired".to_owned()
            } else {
                format!("expires in {}", span(left_s * 1000))
            };
            find(
                findings,
                (grade, Subject::Certificates),
                [node],
                format!("{what} {when}"),
                format!("{advice}; it is taken into use within a minute, or at once by SIGHUP"),
            );
        }
    }
    let refused = vitals.iter().filter(|(_, vitals)| vitals.certificates_refused);
    find(
        findings,
        (Grade::Problem, Subject::Certificates),
        refused.map(|(node, _)| *node),
        "the files of its certificates have something that it cannot use, so that its next start would fail",
        "its log says what; put the right files there",
    );
}

/// What should be the same on all members, and the nodes that have something else than most.
fn odd_ones<K: Ord + Clone>(of: impl IntoIterator<Item = (NodeId, K)>) -> Option<(K, Vec<(NodeId, K)>)> {
    let all: Vec<(NodeId, K)> = of.into_iter().collect();
    let mut counts: BTreeMap<&K, usize> = BTreeMap::new();
    for (_, kind) in &all {
        *counts.entry(kind).or_default() += 1;
    }
    let usual = counts.into_iter().max_by_key(|(_, count)| *count)?.0.clone();
    let odd: Vec<(NodeId, K)> = all.into_iter().filter(|(_, kind)| *kind != usual).collect();
    (!odd.is_empty()).then_some((usual, odd))
}

fn configuration(
    document: &ClusterDocument,
    statuses: &BTreeMap<NodeId, &NodeStatus>,
    vitals: &BTreeMap<NodeId, &NodeVitals>,
    findings: &mut Vec<Finding>,
) {
    if let Some((_, odd)) = odd_ones(vitals.iter().map(|(node, vitals)| (*node, vitals.cluster_settings))) {
        find(
            findings,
            (Grade::Problem, Subject::Configuration),
            odd.into_iter().map(|(node, _)| node),
            "its secret is another than the other nodes'",
            "give all nodes the same file as `cluster.secret`, and restart these",
        );
    }
    if let Some((usual, odd)) = odd_ones(vitals.iter().map(|(node, vitals)| (*node, &vitals.limits))) {
        let shown = |limits: &[(String, String)]| match limits {
            [] => "nothing but defaults".to_owned(),
            given => {
                given.iter().map(|(key, value)| format!("{key} = {value}")).collect::<Vec<_>>().join(", ")
            }
        };
        for (node, limits) in odd {
            find(
                findings,
                (Grade::Warning, Subject::Configuration),
                [node],
                format!("its limits are not those of most: {} here, {} there", shown(limits), shown(usual)),
                "give all nodes the same `[limits]`, unless this is meant",
            );
        }
    }
    if let Some((usual, odd)) =
        odd_ones(statuses.iter().map(|(node, status)| (*node, status.version.clone())))
    {
        for (node, version) in odd {
            find(
                findings,
                (Grade::Warning, Subject::Configuration),
                [node],
                format!("runs version {version}, and most run {usual}"),
                "finish the upgrade",
            );
        }
    }
    let behind = statuses.iter().filter(|(_, status)| status.epoch < document.epoch);
    find(
        findings,
        (Grade::Warning, Subject::Configuration),
        behind.map(|(node, _)| *node),
        format!("has an older document than epoch {}", document.epoch.0),
        "it fetches it by itself when it reaches another member; run this again in a moment",
    );
    let silent = statuses.iter().filter(|(_, status)| status.is_recorded && !status.votes);
    find(
        findings,
        (Grade::Problem, Subject::Configuration),
        silent.map(|(node, _)| *node),
        "does not vote about the cluster's document: it may have forgotten how it voted",
        "once it is certain that no other process has its store, run `quorate readmit NODE`",
    );
}

fn data(statuses: &BTreeMap<NodeId, &NodeStatus>, findings: &mut Vec<Finding>) {
    for (&node, status) in statuses {
        let filling = status.copies.saturating_sub(status.copies_whole);
        if filling > 0 {
            find(
                findings,
                (Grade::Warning, Subject::Data),
                [node],
                format!("{filling} of {} copies are filling: their answers do not count yet", status.copies),
                "wait, and watch `quorate lag`; it takes as long as the peers that it fetches from let it",
            );
        }
        if status.convergence_lag_ms > LAG_MS_MAX {
            find(
                findings,
                (Grade::Warning, Subject::Data),
                [node],
                format!(
                    "knows of a write that has been missing somewhere for {}",
                    span(status.convergence_lag_ms)
                ),
                "bring back the nodes that are down; `quorate lag` shows who is owed what",
            );
        }
        let late = status.peers.iter().filter(|peer| {
            peer.is_up && peer.sync.is_some_and(|sync| sync.age_ms.min(status.uptime_ms) > SYNC_MS_MAX)
        });
        let late: Vec<String> = late.map(|peer| format!("node-{}", peer.node.0)).collect();
        if !late.is_empty() {
            find(
                findings,
                (Grade::Warning, Subject::Data),
                [node],
                format!(
                    "has not been seen to be in sync with {} for more than {}",
                    late.join(", "),
                    span(SYNC_MS_MAX)
                ),
                "look at `quorate lag`, at both logs, and whether `limits.exchange_interval_ms` is longer than that",
            );
        }
    }
}

fn write(report: &DoctorDocument, text: &mut String) {
    let DoctorDocument { members, answered, findings } = report;
    let _ = writeln!(text, "{answered} of {members} members have answered");
    if findings.is_empty() {
        let _ = writeln!(
            text,
            "ports, clocks, disks, certificates, configuration and data: nothing to complain of"
        );
    }
    for finding in findings {
        let nodes: Vec<String> = finding.nodes.iter().map(|node| format!("node-{node}")).collect();
        let grade = match finding.grade {
            Grade::Problem => "problem",
            Grade::Warning => "warning",
        };
        let subject = format!("{:?}", finding.subject).to_lowercase();
        let _ = writeln!(
            text,
            "\n{grade}: {subject}: {}: {}\n  {}",
            nodes.join(", "),
            finding.what,
            finding.advice
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_most_have_is_usual_and_the_others_are_odd() {
        let of = |kinds: &[u32]| {
            let numbered = kinds.iter().enumerate();
            odd_ones(numbered.map(|(index, kind)| (NodeId(u32::try_from(index).unwrap()), *kind)))
        };
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[7, 7, 7]), None);
        assert_eq!(of(&[7, 8, 7]), Some((7, vec![(NodeId(1), 8)])));
    }

    #[test]
    fn certificates_are_complained_of_by_how_long_they_have() {
        let graded = |days: u64| {
            let end = 1_000_000 + days * DAY_S;
            let vitals = NodeVitals {
                certificate_expires_unix_s: end,
                ca_expires_unix_s: end + 365 * DAY_S,
                ..NodeVitals::default()
            };
            let mut findings = Vec::new();
            certificates(&BTreeMap::from([(NodeId(1), &vitals)]), 1_000_000, &mut findings);
            findings.first().map(|finding| finding.grade)
        };
        assert_eq!(graded(31), None);
        assert_eq!(graded(29), Some(Grade::Warning));
        assert_eq!(graded(6), Some(Grade::Problem));
        assert_eq!(graded(0), Some(Grade::Problem));
    }

    #[test]
    fn a_disk_that_fills_is_a_warning_and_then_a_problem() {
        let graded = |free: u64| {
            let vitals =
                NodeVitals { storage_free_bytes: free, storage_size_bytes: 100, ..NodeVitals::default() };
            let mut findings = Vec::new();
            disks(&BTreeMap::from([(NodeId(1), &vitals)]), &mut findings);
            findings.first().map(|finding| finding.grade)
        };
        assert_eq!(graded(15), None);
        assert_eq!(graded(14), Some(Grade::Warning));
        assert_eq!(graded(4), Some(Grade::Problem));
    }

    #[test]
    fn clocks_are_compared_with_each_other_and_with_this_machines() {
        let vitals = |wall_unix_ms| NodeVitals { wall_unix_ms, ..NodeVitals::default() };
        let found = |wall_unix_ms| {
            let mut findings = Vec::new();
            let vitals = vitals(wall_unix_ms);
            clocks(
                &BTreeMap::new(),
                &BTreeMap::from([(NodeId(1), &vitals)]),
                (50_000, 51_000),
                &mut findings,
            );
            findings.len()
        };
        assert_eq!(
            [found(48_999), found(49_000), found(50_500), found(52_000), found(52_001)],
            [1, 0, 0, 0, 1]
        );
    }
}
