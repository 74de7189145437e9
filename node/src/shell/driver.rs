//! The driver: gives the node what has arrived, carries out what it wants done, and wakes it when it is due.
//!
//! One turn takes everything that has arrived since the last, and everything that the node then wants leaves at once:
//! one batch for the disk, one buffer for each connection. So the more there is to do, the less each piece costs.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use antientropy::version::UnixMillis;
use client::{
    Reply,
    wire::{ControlError, ControlReply, ControlRequest, NodeStatus},
};
use ring::{Epoch, NodeId};
use thiserror::Error;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time,
};
use tracing::{error, info, warn};

use super::{
    clients::ClientConnection,
    clients::SharedDocument,
    disk::{CommitEvent, CommitterHandle, DiskStore},
    links::{Dialler, Links},
    mailbox::{Mail, Mailbox},
    metrics::{Metrics, RequestKind, Snapshot},
    pace::Pace,
};
use crate::{
    Change, ClientTag, Input, Node, Now, Output,
    message::{Envelope, MergePath, Message},
    storage::{Sequence, Store},
};

/// How long a change of the cluster document may take.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);

/// How often it is looked whether the node is ready.
const READY_INTERVAL: Duration = Duration::from_millis(20);

/// Messages of exchanges that wait at most.
const BACKGROUND_MAX: usize = 1024;

/// How often it is said again that the store refuses batches.
const SAY_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// Why a node ended without being told to.
#[derive(Debug, Error)]
pub enum DriverError {
    /// The store failed in a way that leaves what was not synced in doubt. The next start finds out what is there.
    #[error("the store failed: {0}")]
    StoreFailed(String),
}

/// A question of the HTTP listener.
pub(crate) enum Ask {
    /// The metrics, in Prometheus' text format.
    Metrics(oneshot::Sender<String>),
    /// Whether the node can serve requests, and if not, why.
    Ready(oneshot::Sender<Result<(), &'static str>>),
    /// Whether the driver takes turns.
    Alive(oneshot::Sender<()>),
}

/// What the driver works with.
pub(crate) struct Parts {
    pub(crate) node: Node<DiskStore>,
    pub(crate) committer: CommitterHandle,
    pub(crate) commits: mpsc::UnboundedReceiver<CommitEvent>,
    pub(crate) asks: mpsc::Receiver<Ask>,
    pub(crate) stop: watch::Receiver<bool>,
    pub(crate) ready: watch::Sender<bool>,
    pub(crate) mailbox: Rc<Mailbox>,
    pub(crate) links: Rc<Links>,
    pub(crate) dialler: Dialler,
    pub(crate) document: SharedDocument,
    pub(crate) metrics: Metrics,
    pub(crate) clock: Clock,
    pub(crate) stop_timeout: Duration,
}

/// The clocks of one process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    began: Instant,
}

impl Clock {
    /// Begins now.
    pub(crate) fn start() -> Clock {
        Clock { began: Instant::now() }
    }

    /// The present.
    pub(crate) fn now(&self) -> Now {
        // A wall clock before 1970 is one of those that the core refuses to date writes by.
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall = UnixMillis(u64::try_from(wall.as_millis()).unwrap_or(u64::MAX));
        Now { monotonic: self.began.elapsed(), wall }
    }

    /// A moment as the core counts them.
    fn monotonic(&self, instant: Instant) -> Duration {
        instant.saturating_duration_since(self.began)
    }

    fn instant(&self, monotonic: Duration) -> time::Instant {
        time::Instant::from_std(self.began + monotonic)
    }
}

/// A request that the node is carrying out.
struct Pending {
    from: Rc<ClientConnection>,
    id: u64,
    kind: RequestKind,
    began: Duration,
}

/// See the module's documentation.
pub(crate) struct Driver {
    parts: Parts,
    pending: HashMap<ClientTag, Pending>,
    changes: HashMap<ClientTag, (Rc<ClientConnection>, u64)>,
    last_tag: u64,
    known_epoch: Epoch,
    has_said_that_it_went_back: bool,
    stopping_since: Option<Duration>,
    look_again_at: Duration,
    mail: Vec<Mail>,
    /// Messages of exchanges that wait for their time; when there is none, what is to be scanned has its turn.
    background: VecDeque<Input>,
    pace: Pace,
    refusals: Refusals,
}

/// What is said of batches that the store refuses: a disk that is full refuses hundreds in a second.
#[derive(Default)]
struct Refusals {
    /// When it was said last, until the store has refused none for a while.
    said_at: Option<Duration>,
    last_at: Duration,
    unsaid: u64,
}

impl Refusals {
    /// A batch was refused.
    fn refused(&mut self, now: Duration, sequence: Sequence, reason: &dyn fmt::Display) {
        self.last_at = now;
        self.unsaid += 1;
        if self.said_at.is_none_or(|at| now >= at + SAY_AGAIN_AFTER) {
            warn!(sequence = sequence.0, %reason, batches = self.unsaid, "the store refuses batches");
            (self.said_at, self.unsaid) = (Some(now), 0);
        }
    }

    /// A batch was taken.
    fn taken(&mut self, now: Duration) {
        if self.said_at.is_some() && now >= self.last_at + SAY_AGAIN_AFTER {
            info!(batches = self.unsaid, "the store has refused no batch for a while");
            *self = Refusals::default();
        }
    }
}

/// Whether it is a message of this peer.
fn is_from(input: &Input, peer: NodeId) -> bool {
    matches!(input, Input::Peer(envelope) if envelope.header.from == peer)
}

/// Whether it is a message of an exchange, which takes its time.
fn is_background(input: &Input) -> bool {
    let Input::Peer(Envelope { message, .. }) = input else { return false };
    matches!(message, Message::Exchange { .. } | Message::ExchangeAnswer { .. })
}

/// Whether a client waits for what a peer asks.
fn is_request(input: &Input) -> bool {
    let Input::Peer(Envelope { message, .. }) = input else { return false };
    match message {
        Message::Read { .. } | Message::Forward { .. } => true,
        Message::Merge { path, .. } => matches!(path, MergePath::Write | MergePath::StandIn { .. }),
        _ => false,
    }
}

impl Driver {
    /// A driver that has not taken a turn.
    pub(crate) fn new(parts: Parts) -> Driver {
        Driver {
            parts,
            pending: HashMap::new(),
            changes: HashMap::new(),
            last_tag: 0,
            known_epoch: Epoch(0),
            has_said_that_it_went_back: false,
            stopping_since: None,
            look_again_at: Duration::ZERO,
            mail: Vec::new(),
            background: VecDeque::new(),
            pace: Pace::new(),
            refusals: Refusals::default(),
        }
    }

    /// Takes turns until the node has stopped.
    ///
    /// # Errors
    ///
    /// [`DriverError`] if it cannot go on. What is under way is in doubt then.
    pub(crate) async fn run(mut self) -> Result<(), DriverError> {
        self.finish_turn();
        loop {
            let deadline = self.deadline();
            // A timer would sleep until the next whole millisecond, each time that there is more of the background's work.
            let is_past = deadline <= time::Instant::now();
            let parts = &mut self.parts;
            let (mut commit, mut ask, mut told_to_stop) = (None, None, false);
            tokio::select! {
                biased;
                () = parts.mailbox.wait() => {}
                Some(event) = parts.commits.recv() => commit = Some(event),
                Some(asked) = parts.asks.recv() => ask = Some(asked),
                changed = parts.stop.changed(), if self.stopping_since.is_none() => told_to_stop = changed.is_ok(),
                () = std::future::ready(()), if is_past => {}
                () = time::sleep_until(deadline), if !is_past => {}
            }
            if self.turn(commit, told_to_stop)? {
                // More of it may be due at once: connections come first.
                tokio::task::yield_now().await;
            }
            if let Some(ask) = ask {
                self.answer(ask);
            }
            if self.is_over() {
                // Drains and syncs what is there; nothing is under way any more.
                self.parts.committer.stop();
                return Ok(());
            }
        }
    }

    /// When the node has to take a turn whatever happens.
    fn deadline(&self) -> time::Instant {
        // Now and then at least, and soon if it is waited for: what the node says of itself is looked at.
        let now = self.parts.clock.now().monotonic;
        let interval = if *self.parts.ready.borrow() { Duration::from_secs(1) } else { READY_INTERVAL };
        let idle = now + interval;
        let wanted = self.parts.node.poll_due().map_or(idle, |(at, _)| at.min(idle));
        let background = self.background_due().map_or(idle, |at| at.max(self.pace.not_before(now)));
        self.parts.clock.instant(wanted.min(background))
    }

    /// Everything that has arrived, then everything that is due, then everything that is to be done, and then a piece of the
    /// background's work if it may be: whether it was.
    fn turn(&mut self, commit: Option<CommitEvent>, told_to_stop: bool) -> Result<bool, DriverError> {
        let now = self.parts.clock.now();
        let mut commit = commit;
        while let Some(event) = commit {
            self.on_commit(now, event)?;
            commit = self.parts.commits.try_recv().ok();
        }
        let mut mail = std::mem::take(&mut self.mail);
        self.parts.mailbox.take_into(&mut mail);
        self.parts.metrics.turn(mail.len());
        for piece in mail.drain(..) {
            match piece {
                // Of more than peers ever have under way, the rest is lost, and whoever leads begins anew.
                Mail::Input(input) if is_background(&input) => {
                    if self.background.len() < BACKGROUND_MAX {
                        self.background.push_back(input);
                    }
                }
                Mail::Input(input) => {
                    if is_request(&input) {
                        self.pace.asked(now.monotonic);
                    }
                    if let Input::Left(peer) = input {
                        // What it said before would speak for its life.
                        self.background.retain(|waiting| !is_from(waiting, peer));
                    }
                    self.parts.node.handle(now, input);
                }
                Mail::Request { from, id, mut request, arrived } => {
                    let kind = RequestKind::of(&request);
                    let client = self.next_tag();
                    let began = self.parts.clock.monotonic(arrived);
                    // Its time runs from when it came.
                    let timeout = request.timeout_mut();
                    *timeout = timeout.saturating_sub(now.monotonic.saturating_sub(began));
                    self.pending.insert(client, Pending { from, id, kind, began });
                    self.parts.node.handle(now, Input::Client { client, request });
                }
                Mail::Control { from, id, request } => self.on_control(now, &from, id, request),
            }
        }
        self.mail = mail;
        if told_to_stop {
            info!("stopping: new requests are refused");
            self.stopping_since = Some(now.monotonic);
            self.parts.node.handle(now, Input::Stop);
        }
        if self.parts.node.poll_due().is_some_and(|(at, _)| at <= now.monotonic) {
            self.parts.node.handle_due(now);
        }
        // What else is to be done comes first.
        self.finish_turn();
        let may_begin = self.pace.not_before(now.monotonic);
        let is_due = self.background_due().is_some_and(|at| at.max(may_begin) <= now.monotonic);
        if is_due {
            let began = self.parts.clock.now();
            match self.background.pop_front() {
                Some(work) => self.parts.node.handle(began, work),
                None => self.parts.node.handle_background(began),
            }
            self.finish_turn();
            let ended = self.parts.clock.now().monotonic;
            self.pace.worked(ended, ended.saturating_sub(began.monotonic));
        }
        Ok(is_due)
    }

    /// When the next piece of background work could be done: a message of an exchange, or a stretch to scan.
    fn background_due(&self) -> Option<Duration> {
        if self.background.is_empty() { self.parts.node.poll_background() } else { Some(Duration::ZERO) }
    }

    fn next_tag(&mut self) -> ClientTag {
        self.last_tag += 1;
        ClientTag(self.last_tag)
    }

    fn on_commit(&mut self, now: Now, event: CommitEvent) -> Result<(), DriverError> {
        match event {
            CommitEvent::Committed(sequence) => {
                self.refusals.taken(now.monotonic);
                self.parts.node.handle(now, Input::Committed(sequence));
            }
            CommitEvent::Refused(sequence, reason) => {
                self.refusals.refused(now.monotonic, sequence, &reason);
                self.parts.committer.resume();
                self.parts.node.handle(now, Input::CommitFailed(sequence));
            }
            CommitEvent::Failed(reason) => {
                error!(%reason, "the store failed: the process ends, and the next start finds out what is there");
                return Err(DriverError::StoreFailed(reason.to_string()));
            }
        }
        Ok(())
    }

    fn on_control(&mut self, now: Now, from: &Rc<ClientConnection>, id: u64, request: ControlRequest) {
        let node = &mut self.parts.node;
        let reply = match request {
            ControlRequest::Document => {
                let document =
                    node.document().map(|document| ControlReply::Document(Box::new((**document).clone())));
                document.ok_or(ControlError::NotReady)
            }
            ControlRequest::Status => Ok(ControlReply::Status(Box::new(self.status(now)))),
            ControlRequest::Vitals => {
                let mut vitals = self.parts.metrics.vitals(node.counters(), self.parts.committer.counters());
                vitals.wall_unix_ms = now.wall.0;
                Ok(ControlReply::Vitals(Box::new(vitals)))
            }
            ControlRequest::Explain { keyspace, key } => {
                node.replica_view(keyspace, &key).map(|view| ControlReply::Explain(Box::new(view)))
            }
            ControlRequest::Keys { keyspace, partition, after, limit } => {
                node.keys_page(keyspace, partition, after.as_ref(), limit).map(ControlReply::Keys)
            }
            ControlRequest::Repair { partition } => {
                node.repair(now, partition).map(|peers| ControlReply::RepairBegun { peers })
            }
            ControlRequest::CreateKeyspace(keyspace) => {
                return self.change(now, from, id, Change::CreateKeyspace(keyspace));
            }
            ControlRequest::Readmit { node } => return self.change(now, from, id, Change::Readmit { node }),
        };
        from.reply_control(id, self.known_epoch, reply);
    }

    fn change(&mut self, now: Now, from: &Rc<ClientConnection>, id: u64, change: Change) {
        let client = self.next_tag();
        self.changes.insert(client, (Rc::clone(from), id));
        self.parts.node.handle(now, Input::Change { client, change, timeout: CHANGE_TIMEOUT });
    }

    /// Carries out what the node wants done.
    fn finish_turn(&mut self) {
        // What is refused at once may make the node want more.
        while self.carry_out() {}
        let refused = self.parts.mailbox.set_room(self.parts.node.room_for_requests());
        self.parts.metrics.refused_on_arrival(refused);
        self.follow_document();
        self.say_that_it_went_back();
        self.look_whether_ready();
    }

    /// Carries out what the node wants done now. Returns whether it has heard something meanwhile.
    fn carry_out(&mut self) -> bool {
        let (mut sealed, mut is_awaited) = (None, false);
        while let Some(output) = self.parts.node.poll_output() {
            match output {
                Output::Send { to, envelope } => self.parts.links.send(to, &envelope),
                Output::Datagram { to, packet } => self.parts.links.send_datagram(to, packet),
                Output::Reply { client, reply } => self.reply(client, reply),
                Output::Changed { client, outcome } => {
                    if let Some((from, id)) = self.changes.remove(&client) {
                        from.reply_control(id, self.known_epoch, outcome);
                    }
                }
                Output::Commit(batch) => {
                    // A second one would have been made before it is known whether this one is taken.
                    assert!(sealed.is_none(), "a turn has one batch");
                    sealed = Some(batch);
                }
                Output::Hurry => is_awaited = true,
            }
        }
        let committer = &self.parts.committer;
        let Some(batch) = sealed else {
            if is_awaited {
                committer.hurry();
            }
            return false;
        };
        let sequence = batch.sequence;
        let submitted = if is_awaited { committer.submit(batch) } else { committer.submit_unhurried(batch) };
        let Err(refusal) = submitted else { return false };
        let now = self.parts.clock.now();
        self.refusals.refused(now.monotonic, sequence, &refusal);
        self.parts.node.handle(now, Input::CommitFailed(sequence));
        true
    }

    /// Looks whether the node is ready, now and then: with many members it costs more than a turn. Once it has been in touch with
    /// most of the others it stays so: their absence later is no reason to send nobody to this one, which may be all that is left.
    fn look_whether_ready(&mut self) {
        let now = self.parts.clock.now().monotonic;
        if now < self.look_again_at {
            return;
        }
        self.look_again_at = now + READY_INTERVAL;
        if !*self.parts.ready.borrow() && self.parts.node.is_in_touch() {
            self.parts.ready.send_replace(true);
        }
    }

    fn reply(&mut self, client: ClientTag, reply: Reply) {
        let Some(pending) = self.pending.remove(&client) else { return };
        let taken = self.parts.clock.now().monotonic.saturating_sub(pending.began);
        self.parts.metrics.replied(pending.kind, &reply, taken);
        self.pace.answered(pending.began + taken, taken);
        if !pending.from.is_gone() {
            pending.from.reply(pending.id, self.known_epoch, reply);
        }
    }

    /// A newer document says who the peers are and where.
    fn follow_document(&mut self) {
        let Some(document) = self.parts.node.document() else { return };
        if document.epoch == self.known_epoch {
            return;
        }
        let document = Arc::clone(document);
        if self.known_epoch == Epoch(0) && self.parts.node.counters().documents_given_up > 0 {
            warn!(
                "the store's own cluster document could not be read, and a peer's counts, which may be older"
            );
        }
        self.known_epoch = document.epoch;
        info!(
            epoch = document.epoch.0,
            members = document.members.len(),
            "a cluster document counts from now on"
        );
        *self.parts.document.borrow_mut() = Some(Arc::clone(&document));
        self.parts.links.set_cluster(document.cluster);
        let peers = document.members.iter().map(|(node, member)| (*node, member.address.clone()));
        self.parts.links.set_peers(peers, &self.parts.dialler);
    }

    /// Something that was acknowledged is lost: whoever runs the node wants to know.
    fn say_that_it_went_back(&mut self) {
        let Some(seen) = self.parts.node.went_back_from().filter(|_| !self.has_said_that_it_went_back) else {
            return;
        };
        self.has_said_that_it_went_back = true;
        let recovered = Store::recovered(self.parts.node.store());
        warn!(
            recovered = recovered.0,
            seen = seen.0,
            "the store went back in time: what it had acknowledged since is lost here, and its copies are filled anew"
        );
    }

    fn answer(&mut self, ask: Ask) {
        // Whoever asked may have gone away: then nobody is left to tell.
        match ask {
            Ask::Alive(to) => _ = to.send(()),
            Ask::Ready(to) => {
                let node = &self.parts.node;
                let has_met = *self.parts.ready.borrow() || node.is_in_touch();
                let state = match (node.document().is_some(), node.is_ready(), has_met) {
                    (false, _, _) if node.document_is_unread() => {
                        Err("the store's own cluster document cannot be read")
                    }
                    (false, _, _) => Err("no cluster document is known yet"),
                    (true, false, _) => {
                        Err("the node cannot coordinate: its store is not recorded or refuses writes")
                    }
                    (true, true, false) => {
                        Err("the node has just started, and half of the members or more are not up")
                    }
                    (true, true, true) if self.stopping_since.is_some() => Err("the node is stopping"),
                    (true, true, true) => Ok(()),
                };
                _ = to.send(state);
            }
            Ask::Metrics(to) => {
                let snapshot = self.snapshot();
                _ = to.send(self.parts.metrics.render(&snapshot));
            }
        }
    }

    fn snapshot(&self) -> Snapshot {
        let parts = &self.parts;
        Snapshot {
            counters: *parts.node.counters(),
            status: self.status(parts.clock.now()),
            members: parts.node.document().map_or(0, |document| document.members.len()),
            hints: parts.node.hints_pending(),
            in_sync: parts.node.in_sync().collect(),
            convergence_lag: parts.node.convergence_lag(),
            watermark_age: parts.node.watermark_age(),
            prunable: parts.node.prunable(),
            trees: parts.node.trees(),
            exchange_share: self.pace.share(),
            hints_are_partly_unread: parts.node.hints_are_partly_unread(),
            wall: parts.clock.now().wall,
            links: parts.links.census(),
            messages_lost: parts.links.lost.get(),
            datagrams_lost: parts.links.datagrams_lost.get(),
            requests_pending: self.pending.len(),
            storage: parts.committer.counters(),
        }
    }

    /// What the node says of itself, with what only its process knows.
    fn status(&self, now: Now) -> NodeStatus {
        let mut status = self.parts.node.status();
        status.version = env!("CARGO_PKG_VERSION").to_owned();
        status.uptime_ms = u64::try_from(now.monotonic.as_millis()).unwrap_or(u64::MAX);
        status
    }

    /// Whether the process may end: the stop is complete, or has taken long enough.
    fn is_over(&self) -> bool {
        let Some(since) = self.stopping_since else { return false };
        let is_late = self.parts.clock.now().monotonic >= since + self.parts.stop_timeout;
        if is_late && !self.parts.node.is_stopped() {
            warn!("what was under way did not end in time: the next start takes this for a crash");
        }
        (self.parts.node.is_stopped() && self.pending.is_empty()) || is_late
    }
}
