//! Metrics, in Prometheus' text format. The core keeps plain counters; here they get names, units and help texts.
//!
//! Request durations are observed as they happen. Everything else is read from the node when it is asked for, so that
//! nobody pays for a metric that nobody reads.

use std::{
    cell::Cell,
    collections::BTreeMap,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use antientropy::version::UnixMillis;
use client::{
    GetError, Level, Limit, Refusal, Reply, Request, WriteError,
    wire::{NodeStatus, NodeVitals},
};
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, Registry, TextEncoder,
    core::Metric as _,
    proto::{self, Bucket, Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType},
};
use ring::NodeId;

use super::{config::Config, disk::CommitterCounters, links::LinkState, renewal::CertificateState};
use crate::{AGE_BOUNDS_MS, Ages, Counters, HintsPending, Merged, PeerSync};

/// Bounds of request durations, in seconds: from a read of a cached record to a request that timed out.
const DURATION_BUCKETS: [f64; 18] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0, 30.0, 60.0,
];

/// The paths on which nothing is repaired.
const WRITE_PATHS: [&str; 2] = ["write", "stand_in"];

/// What of a request its metrics tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RequestKind {
    operation: &'static str,
    level: &'static str,
}

impl RequestKind {
    /// Of a request.
    pub(crate) fn of(request: &Request) -> RequestKind {
        match request {
            Request::Put(put) => RequestKind { operation: "put", level: level_label(put.options.level) },
            Request::Delete(delete) => {
                RequestKind { operation: "delete", level: level_label(delete.options.level) }
            }
            Request::Get(get) => RequestKind { operation: "get", level: level_label(get.options.level) },
        }
    }
}

/// A level as a label: numbers share one, so that there are few.
fn level_label(level: Level) -> &'static str {
    match level {
        Level::Any => "any",
        Level::One => "one",
        Level::Two => "two",
        Level::Three => "three",
        Level::Quorum => "quorum",
        Level::All => "all",
        Level::LocalOne => "local_one",
        Level::LocalQuorum => "local_quorum",
        Level::EachQuorum => "each_quorum",
        Level::Count(_) => "number",
    }
}

fn outcome_label(reply: &Reply) -> &'static str {
    match reply {
        Reply::Write(Ok(_)) | Reply::Get(Ok(_)) => "ok",
        Reply::Write(Err(WriteError::InDoubt { .. })) => "in_doubt",
        Reply::Get(Err(GetError::TimedOut { .. })) => "timed_out",
        Reply::Write(Err(WriteError::Refused(_))) | Reply::Get(Err(GetError::Refused(_))) => "refused",
    }
}

fn refusal_of(reply: &Reply) -> Option<&Refusal> {
    match reply {
        Reply::Write(Err(WriteError::Refused(refusal))) | Reply::Get(Err(GetError::Refused(refusal))) => {
            Some(refusal)
        }
        Reply::Write(_) | Reply::Get(_) => None,
    }
}

/// A refusal's reason as a label.
pub(crate) fn refusal_label(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::Unavailable { .. } => "unavailable",
        Refusal::Overloaded(Limit::Requests) => "overloaded_requests",
        Refusal::Overloaded(Limit::Unsynced) => "overloaded_unsynced",
        Refusal::Overloaded(Limit::Hints) => "overloaded_hints",
        Refusal::Overloaded(Limit::Time) => "overloaded_time",
        Refusal::StaleEpoch { .. } => "stale_epoch",
        Refusal::Unsatisfiable(_) => "unsatisfiable",
        Refusal::BadCopies { .. } => "bad_copies",
        Refusal::EmptyKey => "empty_key",
        Refusal::TooLarge { .. } => "too_large",
        Refusal::TooManySiblings { .. } => "too_many_siblings",
        Refusal::TooManyWriters { .. } => "too_many_writers",
        Refusal::UnknownKeyspace => "unknown_keyspace",
        Refusal::BadContext => "bad_context",
        Refusal::ClockDrift { .. } => "clock_drift",
        Refusal::NotReady => "not_ready",
        Refusal::Forbidden { .. } => "forbidden",
        Refusal::OtherKeyspaces => "other_keyspaces",
        Refusal::Malformed => "malformed",
    }
}

/// See the module's documentation.
pub(crate) struct Metrics {
    registry: Registry,
    durations: HistogramVec,
    /// The histograms that were used, found without hashing labels.
    known: BTreeMap<(RequestKind, &'static str), Histogram>,
    refusals: BTreeMap<&'static str, u64>,
    siblings: Histogram,
    replicas_asked: u64,
    replicas_repaired: u64,
    turns: u64,
    mail: u64,
    certificates: Rc<Cell<CertificateState>>,
    data: PathBuf,
    /// What of the vitals does not change.
    about: NodeVitals,
}

/// What a node is like at one moment.
pub(crate) struct Snapshot {
    pub(crate) counters: Counters,
    pub(crate) status: NodeStatus,
    pub(crate) members: usize,
    pub(crate) hints: Vec<HintsPending>,
    pub(crate) in_sync: Vec<PeerSync>,
    pub(crate) convergence_lag: Duration,
    pub(crate) watermark_age: Duration,
    /// Records that wait for a watermark.
    pub(crate) prunable: usize,
    /// Partitions that have trees, that are to have them, and bytes that they take.
    pub(crate) trees: (usize, usize, usize),
    pub(crate) exchange_share: f64,
    pub(crate) hints_are_partly_unread: bool,
    pub(crate) wall: UnixMillis,
    pub(crate) links: Vec<(NodeId, Option<LinkState>)>,
    pub(crate) messages_lost: u64,
    pub(crate) datagrams_lost: u64,
    pub(crate) requests_pending: usize,
    pub(crate) storage: CommitterCounters,
}

impl Metrics {
    /// Nothing counted yet, of a node with this configuration and these certificates.
    pub(crate) fn new(config: &Config, certificates: Rc<Cell<CertificateState>>) -> Metrics {
        let durations_us = DURATION_BUCKETS.map(|seconds| Duration::from_secs_f64(seconds).as_micros());
        let registry = Registry::new();
        let options = HistogramOpts::new(
            "quorate_request_duration_seconds",
            "How long requests took at the node that the client asked, by operation, level and outcome.",
        );
        let durations =
            HistogramVec::new(options.buckets(DURATION_BUCKETS.to_vec()), &["operation", "level", "outcome"]);
        let durations = durations.expect("the name and the labels are valid");
        let siblings = Histogram::with_opts(
            HistogramOpts::new(
                "quorate_read_siblings",
                "Values per read that found any: more than one are concurrent.",
            )
            .buckets(vec![1.0, 2.0, 3.0, 5.0, 8.0, 16.0, 32.0, 64.0]),
        );
        let siblings = siblings.expect("the name is valid");
        let collectors: [Box<dyn prometheus::core::Collector>; 3] = [
            Box::new(durations.clone()),
            Box::new(siblings.clone()),
            Box::new(prometheus::process_collector::ProcessCollector::for_self()),
        ];
        for collector in collectors {
            registry.register(collector).expect("each is registered once");
        }
        Metrics {
            registry,
            durations,
            known: BTreeMap::new(),
            refusals: BTreeMap::new(),
            siblings,
            replicas_asked: 0,
            replicas_repaired: 0,
            turns: 0,
            mail: 0,
            certificates,
            data: config.data.clone(),
            about: NodeVitals {
                duration_bounds_us: durations_us.map(|us| u64::try_from(us).unwrap_or(u64::MAX)).to_vec(),
                cluster_settings: config.cluster_digest(),
                limits: config.limits.given.clone(),
                ..NodeVitals::default()
            },
        }
    }

    /// A turn began with so many pieces of mail.
    pub(crate) fn turn(&mut self, mail: usize) {
        self.turns += 1;
        self.mail += u64::try_from(mail).unwrap_or(u64::MAX);
    }

    /// A client's request ended.
    pub(crate) fn replied(&mut self, kind: RequestKind, reply: &Reply, taken: Duration) {
        let outcome = outcome_label(reply);
        let durations = &self.durations;
        let known = self
            .known
            .entry((kind, outcome))
            .or_insert_with(|| durations.with_label_values(&[kind.operation, kind.level, outcome]));
        known.observe(taken.as_secs_f64());
        if let Some(refusal) = refusal_of(reply) {
            *self.refusals.entry(refusal_label(refusal)).or_default() += 1;
        }
        if let Reply::Get(Ok(found)) = reply {
            self.replicas_asked += u64::from(found.freshness.asked);
            self.replicas_repaired += u64::from(found.freshness.repaired);
            if !found.values.is_empty() {
                self.siblings.observe(u32::try_from(found.values.len()).map_or(f64::MAX, f64::from));
            }
        }
    }

    /// What an administrator's tools ask for, but for the clock.
    pub(crate) fn vitals(&self, counters: &Counters, storage: CommitterCounters) -> NodeVitals {
        let mut vitals = self.about.clone();
        for ((kind, outcome), histogram) in &self.known {
            let requests = if kind.operation == "get" { &mut vitals.reads } else { &mut vitals.writes };
            let found = histogram.metric();
            let found = found.get_histogram();
            match *outcome {
                "ok" => {
                    requests.succeeded += found.get_sample_count();
                    requests.durations.resize(DURATION_BUCKETS.len(), 0);
                    for (sum, bucket) in requests.durations.iter_mut().zip(found.get_bucket()) {
                        *sum += bucket.cumulative_count();
                    }
                }
                "refused" => {}
                _ => requests.unanswered += found.get_sample_count(),
            }
        }
        vitals.refused = self.refusals.values().sum();
        for (_, merged) in paths(counters).into_iter().filter(|(path, _)| !WRITE_PATHS.contains(path)) {
            vitals.repaired_objects += merged.records;
            vitals.repaired_bytes += merged.bytes;
        }
        vitals.storage_bytes = storage.journal_bytes + storage.table_bytes;
        if let Some(space) = Space::of(&self.data) {
            vitals.storage_free_bytes = space.free_bytes;
            vitals.storage_size_bytes = space.size_bytes;
        }
        let certificates = self.certificates.get();
        vitals.certificate_expires_unix_s = certificates.expires_unix_s;
        vitals.ca_expires_unix_s = certificates.ca_expires_unix_s;
        vitals.certificates_refused = certificates.is_refused;
        vitals
    }

    /// Clients' requests were refused where they arrived.
    pub(crate) fn refused_on_arrival(&mut self, counts: BTreeMap<&'static str, u64>) {
        for (reason, count) in counts {
            *self.refusals.entry(reason).or_default() += count;
        }
    }

    /// Everything, in the text format.
    pub(crate) fn render(&self, snapshot: &Snapshot) -> String {
        let mut families = self.registry.gather();
        self.gather_requests(snapshot, &mut families);
        gather_repair(&snapshot.counters, &mut families);
        gather_peers(snapshot, &mut families);
        self.gather_node(snapshot, &mut families);
        gather_storage(snapshot, &mut families);
        gather_space(&self.data, &mut families);
        families.retain(|family| !family.get_metric().is_empty());
        families.sort_by(|a, b| a.name().cmp(b.name()));
        let mut text = Vec::new();
        TextEncoder::new().encode(&families, &mut text).expect("a vector takes everything");
        String::from_utf8(text).expect("the text format is UTF-8")
    }

    fn gather_requests(&self, snapshot: &Snapshot, out: &mut Vec<MetricFamily>) {
        let counters = &snapshot.counters;
        let refusals =
            self.refusals.iter().map(|(reason, count)| (vec![("reason", (*reason).to_owned())], *count));
        out.extend([
            counter(
                "quorate_requests_refused_total",
                "Requests of clients that were refused, by reason. None of them took effect.",
                refusals,
            ),
            single(
                "quorate_requests_forwarded_total",
                "Requests that were forwarded to a replica of their key.",
                counters.forwarded,
            ),
            single("quorate_read_replicas_asked_total", "Replicas that reads have asked.", self.replicas_asked),
            single(
                "quorate_read_replicas_replaced_total",
                "Silent replicas that reads have replaced by others.",
                counters.replicas_replaced,
            ),
            single(
                "quorate_reads_hedged_total",
                "Replicas that reads asked because another took longer than its answers usually do.",
                counters.reads_hedged,
            ),
            single(
                "quorate_read_digest_mismatches_total",
                "Reads whose replicas did not agree.",
                counters.reads_diverged,
            ),
            single(
                "quorate_read_replicas_repaired_total",
                "Replicas that a read has sent what they lacked.",
                self.replicas_repaired,
            ),
            single(
                "quorate_writes_sloppy_total",
                "Writes that were acknowledged with the help of nodes that stood in for replicas.",
                counters.writes_sloppy,
            ),
            single(
                "quorate_lww_discarded_total",
                "Last-write-wins values that were discarded although their winner's writer had not seen them.",
                counters.lww_discarded,
            ),
            gauge(
                "quorate_requests_under_way",
                "Requests of clients that are not answered yet.",
                [(vec![], number(snapshot.requests_pending))],
            ),
        ]);
    }

    fn gather_node(&self, snapshot: &Snapshot, out: &mut Vec<MetricFamily>) {
        let status = &snapshot.status;
        let certificates = self.certificates.get();
        let renewals = [("used", certificates.renewed), ("refused", certificates.refused)];
        let filling = status.copies.saturating_sub(status.copies_whole);
        let copies = [("whole", status.copies_whole), ("filling", filling)];
        let up = status.peers.iter().filter(|peer| peer.is_up).count() + 1;
        let states = [("up", up), ("down", snapshot.members.saturating_sub(up))];
        let (built, wanted, tree_bytes) = snapshot.trees;
        let trees = [("built", built), ("unbuilt", wanted.saturating_sub(built))];
        let build = vec![("version", status.version.clone()), ("node", status.node.0.to_string())];
        out.extend([
            gauge("quorate_build_info", "1, with the node's id and its software's version.", [(build, 1.0)]),
            gauge("quorate_epoch", "The epoch of the cluster document.", [(vec![], wide(status.epoch.0))]),
            gauge(
                "quorate_ready",
                "Whether the node can coordinate requests: 0 or 1.",
                [(vec![], f64::from(u8::from(status.is_ready)))],
            ),
            gauge(
                "quorate_copies",
                "Copies of partitions that the node holds, by state.",
                copies.map(|(state, count)| (vec![("state", state.to_owned())], f64::from(count))),
            ),
            gauge(
                "quorate_hash_trees",
                "Partitions whose hash trees are built, and those that wait to be scanned.",
                trees.map(|(state, count)| (vec![("state", state.to_owned())], number(count))),
            ),
            gauge(
                "quorate_antientropy_time_share",
                "The share of the node's time that exchanges get while there are requests of clients.",
                [(vec![], snapshot.exchange_share)],
            ),
            gauge(
                "quorate_hash_tree_bytes",
                "Memory that the hash trees take.",
                [(vec![], number(tree_bytes))],
            ),
            gauge(
                "quorate_members",
                "Members of the cluster as this node sees them, by state.",
                states.map(|(state, count)| (vec![("state", state.to_owned())], number(count))),
            ),
            gauge(
                "quorate_clock_drift_seconds",
                "How far the node's clock is ahead of the median of its peers'.",
                status.clock_drift_ms.map(|drift| (vec![], signed(drift) / 1000.0)),
            ),
            gauge(
                "quorate_certificate_expires_timestamp_seconds",
                "When the node's certificate expires, in Unix time.",
                [(vec![], wide(certificates.expires_unix_s))],
            ),
            gauge(
                "quorate_ca_expires_timestamp_seconds",
                "When the first of the authorities that the node trusts expires, in Unix time.",
                [(vec![], wide(certificates.ca_expires_unix_s))],
            ),
            gauge(
                "quorate_certificates_refused",
                "1 while the files of the certificates have something that the node cannot use; 0 otherwise.",
                [(vec![], f64::from(u8::from(certificates.is_refused)))],
            ),
            counter(
                "quorate_certificate_renewals_total",
                "Times that the files of the certificates were read anew, by outcome: used, or refused because they are not good.",
                renewals.map(|(outcome, count)| (vec![("outcome", outcome.to_owned())], count)),
            ),
            single(
                "quorate_turns_total",
                "Turns that the node has taken. With the mail below: how much is done at once.",
                self.turns,
            ),
            single("quorate_mail_total", "Messages and requests that the turns have handled.", self.mail),
            single(
                "quorate_store_went_back_total",
                "Times that the store was found to have gone back in time: something acknowledged was lost here.",
                snapshot.counters.store_went_back,
            ),
        ]);
    }
}

/// What came by each path.
fn paths(counters: &Counters) -> [(&'static str, &Merged); 6] {
    [
        ("write", &counters.merged_write),
        ("stand_in", &counters.merged_stand_in),
        ("read_repair", &counters.merged_read_repair),
        ("hint", &counters.merged_hint),
        ("anti_entropy", &counters.merged_anti_entropy),
        ("movement", &counters.merged_movement),
    ]
}

fn gather_repair(counters: &Counters, out: &mut Vec<MetricFamily>) {
    let paths = paths(counters);
    let merged = |of: fn(&Merged) -> u64| paths.map(|(path, merged)| (path, of(merged)));
    let lags = paths.map(|(path, merged)| (vec![("path", path.to_owned())], &merged.ages));
    let found = counters.exchanges_completed - counters.exchanges_equal;
    let exchanges = [
        ("equal", counters.exchanges_equal),
        ("repaired", found),
        ("put_off", counters.exchanges_put_off),
        ("abandoned", counters.exchanges_abandoned),
    ];
    let finding = counters.exchange_bytes - counters.exchange_payload_bytes;
    let exchange_bytes = [("payload", counters.exchange_payload_bytes), ("finding", finding)];
    let hints = [
        ("left", counters.hints_left),
        ("replayed", counters.hints_replayed),
        ("dropped", counters.hints_dropped),
    ];
    let read_repairs = [("merged", counters.read_repairs_merged), ("hinted", counters.read_repairs_hinted)];
    let labelled = |name: &'static str, values: &[(&str, u64)]| -> Vec<(Labels, u64)> {
        values.iter().map(|(value, count)| (vec![(name, (*value).to_owned())], *count)).collect()
    };
    let behind = ["write", "stand_in", "read_repair", "hint", "anti_entropy", "movement"];
    let behind: Vec<(&str, u64)> = behind.into_iter().zip(counters.merges_behind).collect();
    out.extend([
        counter(
            "quorate_tombstones_dropped_total",
            "Tombstones, and records with nothing but expired values, that were dropped because all copies had promised to \
             know of them.",
            [(vec![], counters.tombstones_dropped)],
        ),
        counter(
            "quorate_contexts_pruned_total",
            "Records of which superfluous context entries or expired values were dropped.",
            [(vec![], counters.contexts_pruned)],
        ),
        counter(
            "quorate_merges_behind_total",
            "Merges that were refused, by the way they came, because they named a write below the watermark of which this \
             node knows nothing: blocked resurrections.",
            labelled("path", &behind),
        ),
        counter(
            "quorate_merges_late_total",
            "Merges that were refused because all that they brought was over long since: exchanges bring what is true of it.",
            [(vec![], counters.merges_late)],
        ),
        counter(
            "quorate_values_quarantined_total",
            "Records of which a filling copy dropped values that a whole one knows to be dead.",
            [(vec![], counters.values_quarantined)],
        ),
        counter(
            "quorate_unions_total",
            "Copies that became whole by the union of what others held, none of which was whole.",
            [(vec![], counters.unions)],
        ),
        counter(
            "quorate_repair_objects_total",
            "Records that a merge has changed at this replica, by the way they came.",
            labelled("path", &merged(|merged| merged.records)),
        ),
        counter(
            "quorate_repair_bytes_total",
            "Bytes of keys and records that came with these merges.",
            labelled("path", &merged(|merged| merged.bytes)),
        ),
        histogram(
            "quorate_replication_lag_seconds",
            "How old the newest version of a record was when a merge changed the record at this replica, by the way it came.",
            lags,
        ),
        counter(
            "quorate_antientropy_exchanges_total",
            "Exchanges that this node has led, by outcome: all was equal at once, differences were repaired, put off because \
             the peer was busy with another or could not answer, or given up.",
            labelled("outcome", &exchanges),
        ),
        counter(
            "quorate_antientropy_exchange_bytes_total",
            "Bytes of the messages of exchanges that this node has led, both ways: keys and records, and what it took to find \
             out which.",
            labelled("kind", &exchange_bytes),
        ),
        single(
            "quorate_antientropy_exchange_differences_total",
            "Keys that such exchanges found to differ. With 16 bytes for each, the least that finding them can take.",
            counters.exchange_differences,
        ),
        histogram(
            "quorate_antientropy_exchange_duration_seconds",
            "How long exchanges took that this node has led and completed.",
            [(vec![], &counters.exchange_durations)],
        ),
        single(
            "quorate_hash_trees_mended_total",
            "Partitions whose hash trees a scrub found not to say what is stored: the store had lost something silently.",
            counters.trees_mended,
        ),
        counter(
            "quorate_read_repairs_total",
            "Stale replicas that reads have found: mended, or left a hint because they did not answer.",
            labelled("outcome", &read_repairs),
        ),
        histogram(
            "quorate_read_repair_age_seconds",
            "How old the newest version was that a replica lacked when a read found it stale.",
            [(vec![], &counters.read_repair_ages)],
        ),
        counter("quorate_hints_total", "Hints, by what became of them.", labelled("event", &hints)),
        single(
            "quorate_stand_ins_refused_total",
            "Writes that this node was to take in place of a replica, and did not: it owes that one as much as it may.",
            counters.stand_ins_refused,
        ),
        single("quorate_copies_filled_total", "Times that a copy began to fill.", counters.copies_filled),
        single(
            "quorate_copies_made_whole_total",
            "Times that a copy became whole.",
            counters.copies_made_whole,
        ),
        single(
            "quorate_damaged_records_total",
            "Records that were found damaged and are fetched anew from the other replicas.",
            counters.damaged_records,
        ),
        single(
            "quorate_unreadable_records_total",
            "Times that the store could not read a record.",
            counters.unreadable_records,
        ),
    ]);
}

fn gather_peers(snapshot: &Snapshot, out: &mut Vec<MetricFamily>) {
    let peer = |node: &NodeId| vec![("peer", node.0.to_string())];
    let states = || snapshot.links.iter().filter_map(|(node, state)| Some((node, state.as_ref()?)));
    let up =
        snapshot.status.peers.iter().map(|status| (peer(&status.node), f64::from(u8::from(status.is_up))));
    out.extend([
        gauge("quorate_peer_up", "Whether requests are sent to the peer: 0 or 1.", up),
        single(
            "quorate_peer_deaths_total",
            "Times that a peer was found dead.",
            snapshot.counters.peers_died,
        ),
        single(
            "quorate_rejoined_total",
            "Times that this node was declared dead by others while it lived.",
            snapshot.counters.rejoined,
        ),
        single(
            "quorate_datagrams_lost_total",
            "Packets about who is up that found no connection.",
            snapshot.datagrams_lost,
        ),
        single(
            "quorate_datagrams_ignored_total",
            "Packets about who is up that made no sense.",
            snapshot.counters.datagrams_ignored,
        ),
        gauge(
            "quorate_antientropy_in_sync_age_seconds",
            "How long ago all that this node shares with the peer was last known to be equal; without such a time, how long \
             that has been missing.",
            snapshot.in_sync.iter().map(|sync| (peer(&sync.peer), sync.age.as_secs_f64())),
        ),
        gauge(
            "quorate_antientropy_divergent_partitions",
            "In how many partitions the last exchange with the peer found differences.",
            snapshot.in_sync.iter().map(|sync| (peer(&sync.peer), f64::from(sync.differed))),
        ),
        gauge(
            "quorate_convergence_lag_seconds",
            "How old the oldest write is that this node knows not to be on all its replicas; 0 if there is none.",
            [(vec![], snapshot.convergence_lag.as_secs_f64())],
        ),
        gauge(
            "quorate_watermark_age_seconds",
            "How far behind its clock this node knows all copies of everything that it has copies of to be settled, at the \
             worst of them: tombstones and superfluous contexts that are younger are kept.",
            [(vec![], snapshot.watermark_age.as_secs_f64())],
        ),
        gauge(
            "quorate_prunable_records",
            "Tombstones, and records with superfluous contexts or expired values, that wait for the watermark; of more than \
             are remembered, the rest is found by scans.",
            [(vec![], number(snapshot.prunable))],
        ),
        gauge(
            "quorate_hints_pending",
            "Hints that wait for the peer.",
            snapshot.hints.iter().map(|pending| (peer(&pending.target), number(pending.count))),
        ),
        gauge(
            "quorate_hints_counted_pending",
            "Of these, those that an acknowledgement counts on: writes that this node took in the peer's place.",
            snapshot.hints.iter().map(|pending| (peer(&pending.target), number(pending.counted))),
        ),
        gauge(
            "quorate_hints_partly_unread",
            "1 while the store cannot be read for all the hints that it has kept, which are tried again; 0 otherwise.",
            [(vec![], f64::from(u8::from(snapshot.hints_are_partly_unread)))],
        ),
        gauge(
            "quorate_hint_oldest_seconds",
            "How long the oldest hint has waited for the peer; 0 if none does.",
            snapshot.hints.iter().map(|pending| {
                let since = pending.oldest.unwrap_or(snapshot.wall);
                let age_ms = snapshot.wall.0.saturating_sub(since.0);
                (peer(&pending.target), Duration::from_millis(age_ms).as_secs_f64())
            }),
        ),
        gauge(
            "quorate_peer_round_trip_seconds",
            "Round trip time of the connection to the peer.",
            states().map(|(node, state)| (peer(node), state.stats.path.rtt.as_secs_f64())),
        ),
        gauge(
            "quorate_peer_waiting_bytes",
            "Bytes that wait to be sent to the peer.",
            states().map(|(node, state)| (peer(node), number(state.waiting_bytes))),
        ),
        counter(
            "quorate_peer_sent_bytes_total",
            "Bytes that the present connection has sent to the peer.",
            states().map(|(node, state)| (peer(node), state.stats.udp_tx.bytes)),
        ),
        counter(
            "quorate_peer_received_bytes_total",
            "Bytes that the present connection has received from the peer.",
            states().map(|(node, state)| (peer(node), state.stats.udp_rx.bytes)),
        ),
        counter(
            "quorate_peer_packets_lost_total",
            "Packets of the present connection to the peer that were lost.",
            states().map(|(node, state)| (peer(node), state.stats.path.lost_packets)),
        ),
        single(
            "quorate_messages_lost_total",
            "Messages to peers that found no connection or no room.",
            snapshot.messages_lost,
        ),
        single(
            "quorate_messages_ignored_total",
            "Messages of processes that had not said hello, or of strangers.",
            snapshot.counters.messages_ignored,
        ),
    ]);
}

fn gather_storage(snapshot: &Snapshot, out: &mut Vec<MetricFamily>) {
    let storage = &snapshot.storage;
    out.extend([
        single("quorate_storage_syncs_total", "Times that the store was synced.", storage.syncs),
        counter_f64(
            "quorate_storage_sync_seconds_total",
            "Time spent in syncs.",
            storage.sync_time.as_secs_f64(),
        ),
        single("quorate_storage_batches_total", "Batches that were committed.", storage.batches),
        single(
            "quorate_storage_batches_refused_total",
            "Batches that the store refused.",
            snapshot.counters.commits_failed,
        ),
        gauge(
            "quorate_storage_bytes",
            "Bytes that the store takes on disk.",
            [(vec![], wide(storage.journal_bytes + storage.table_bytes))],
        ),
        gauge(
            "quorate_storage_queued_batches",
            "Batches that wait to be committed.",
            [(vec![], wide(storage.queued_batches))],
        ),
        gauge(
            "quorate_storage_unsynced_bytes",
            "Bytes written and not yet synced; at the limit writes are refused.",
            [(vec![], wide(snapshot.status.unsynced_bytes))],
        ),
    ]);
}

/// What there is of a file system, and what of it the node may still use.
struct Space {
    free_bytes: u64,
    size_bytes: u64,
}

impl Space {
    /// Of the file system of a directory; none if the system does not say.
    fn of(directory: &Path) -> Option<Space> {
        let found = rustix::fs::statvfs(directory).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Some(Space { free_bytes: bytes(found.f_bavail), size_bytes: bytes(found.f_blocks) })
    }
}

fn gather_space(data: &Path, out: &mut Vec<MetricFamily>) {
    let space = Space::of(data);
    let bytes = |of: fn(&Space) -> u64| space.as_ref().map(|space| (vec![], wide(of(space))));
    out.extend([
        gauge(
            "quorate_storage_free_bytes",
            "Bytes that are free for the node on the file system of its storage directory. Near the end of it the node \
             refuses writes.",
            bytes(|space| space.free_bytes),
        ),
        gauge(
            "quorate_storage_size_bytes",
            "Bytes of the file system of the node's storage directory.",
            bytes(|space| space.size_bytes),
        ),
    ]);
}

type Labels = Vec<(&'static str, String)>;

fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

fn metric(labels: Labels) -> Metric {
    let pairs = labels.into_iter().map(|(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.to_owned());
        pair.set_value(value);
        pair
    });
    Metric::from_label(pairs.collect())
}

fn counter(name: &str, help: &str, values: impl IntoIterator<Item = (Labels, u64)>) -> MetricFamily {
    let metrics = values.into_iter().map(|(labels, value)| counted(labels, wide(value)));
    family(name, help, MetricType::COUNTER, metrics.collect())
}

fn single(name: &str, help: &str, value: u64) -> MetricFamily {
    counter(name, help, [(vec![], value)])
}

fn counter_f64(name: &str, help: &str, value: f64) -> MetricFamily {
    family(name, help, MetricType::COUNTER, vec![counted(vec![], value)])
}

fn counted(labels: Labels, value: f64) -> Metric {
    let mut counter = Counter::default();
    counter.set_value(value);
    let mut metric = metric(labels);
    metric.set_counter(counter);
    metric
}

fn gauge(name: &str, help: &str, values: impl IntoIterator<Item = (Labels, f64)>) -> MetricFamily {
    let metrics = values.into_iter().map(|(labels, value)| {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        let mut metric = metric(labels);
        metric.set_gauge(gauge);
        metric
    });
    family(name, help, MetricType::GAUGE, metrics.collect())
}

/// A histogram of ages in seconds.
fn histogram<'a>(
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (Labels, &'a Ages)>,
) -> MetricFamily {
    let metrics = values.into_iter().map(|(labels, ages)| {
        let mut cumulated = 0;
        let buckets = AGE_BOUNDS_MS.iter().zip(ages.counts).map(|(bound_ms, count)| {
            cumulated += count;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(wide(*bound_ms) / 1000.0);
            bucket.set_cumulative_count(cumulated);
            bucket
        });
        let mut histogram = proto::Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(ages.counts.iter().sum());
        histogram.set_sample_sum(wide(ages.sum_ms) / 1000.0);
        let mut metric = metric(labels);
        metric.set_histogram(histogram);
        metric
    });
    family(name, help, MetricType::HISTOGRAM, metrics.collect())
}

/// A count as Prometheus has them: exact up to 2^53.
#[allow(clippy::cast_precision_loss)]
fn wide(value: u64) -> f64 {
    value as f64
}

#[allow(clippy::cast_precision_loss)]
fn signed(value: i64) -> f64 {
    value as f64
}

fn number(value: usize) -> f64 {
    wide(u64::try_from(value).unwrap_or(u64::MAX))
}
