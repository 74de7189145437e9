//! The node: takes inputs, hands them to whoever they are for, and gathers what is to be done.
//!
//! Nothing is decided here but who decides: requests become operations (`requests`), peers' messages go to the
//! replica or to the operation that waits for them (`messages`), documents are adopted (`documents`).

mod agreement;
mod documents;
mod inspect;
mod messages;
mod requests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use antientropy::version::Counter;
use client::hedge::HedgeBudget;
use messages::RecentForwards;
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use requests::timeout;
use ring::{ClusterDocument, Epoch, NodeId, PartitionId};

use crate::{
    admission::Admission,
    agreement::{Agreement, forming::Forming, votes::Votes},
    coordinator::{
        Requester, Step, forward::ForwardOperation, outcomes::Outcomes, read::Ended, read::ReadOperation,
        write::WriteOperation,
    },
    copies::Copies,
    counters::Counters,
    event::{Input, Now, Output, Wake},
    exchange::{ExchangeOperation, Exchanges, RETRY_AFTER},
    formation::Formation,
    hints::{HintOperation, Hints, grants::Grants},
    lag::Lag,
    local::{Event, Local},
    membership::{Finding, Membership},
    message::{Envelope, StartId},
    operations::{Numbers, Operations},
    peers::Peers,
    planted::PlantedBug,
    recovery::{Recovered, clean_to_store, read_document_or_fail},
    replica::{Held, Replica},
    settings::Settings,
    storage::{ObjectKey, ReadError, Sequence, Store},
    waiting::{Waiting, WaitingRoom},
    watermarks::Watermarks,
};

/// How long to wait before a document is asked for again, or a stored one read again.
const DOCUMENT_RETRY_AFTER: Duration = Duration::from_millis(200);

/// For how long a stored document that cannot be read is waited for before a peer's is taken in its place.
const DOCUMENT_READ_WITHIN: Duration = Duration::from_secs(10);

/// Whoever is late by more than this stood still.
const STALL: Duration = Duration::from_millis(250);

/// How long after a refused batch to find out whether the store takes one again.
const PROBE_AFTER: Duration = Duration::from_millis(100);
/// Early questions in a row.
const HEDGES_MAX: u32 = 20;

/// Who a node is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its id.
    pub node: NodeId,
    /// Other nodes, to be greeted before a document is known.
    pub seeds: Vec<NodeId>,
    /// What the founders' configuration says, if the node is one of them. Without a document, founders form a cluster.
    pub formation: Option<Formation>,
    /// Seeds the generator from which everything random is drawn: actors, the names of processes, jitter. Must be
    /// another one at every start: an actor that comes again claims to have seen what its namesake wrote.
    pub seed: [u8; 32],
}

/// A node. See the crate's documentation.
pub struct Node<S> {
    local: Local<S>,
    operations: Operations<Operation>,
    outcomes: Outcomes,
    exchanges: Exchanges,
    hints: Hints,
    grants: Grants,
    agreement: Agreement,
    membership: Membership,
    recovered: Recovered,
    /// Whether the store had never been written to when it was opened.
    is_new_store: bool,
    /// Forwards that were taken lately.
    forwards: RecentForwards,
    /// Messages of a newer epoch, until its document is adopted.
    parked: Vec<Envelope>,
    /// A document that is known and not yet adopted.
    adopting: Option<Arc<ClusterDocument>>,
    /// The stored document that could not be read when the process began.
    unread: Option<UnreadDocument>,
    /// Copies whose marks may have been in a batch that was refused: they go into the next.
    marks_lost: BTreeSet<PartitionId>,
    /// When a document was last asked for, if it has not come.
    document_asked: Option<Duration>,
    /// How far a peer had seen this store come, if that is further than it had recovered to.
    went_back_from: Option<Sequence>,
    /// Who was heard to have a newer document, and of which epoch: it is asked until it answers. What waits for the
    /// document may be all that anyone would say.
    newer_epoch: Option<(NodeId, Epoch)>,
    /// The mark of a stop in good order: none until it is due, then the batch that carries it.
    stopped: Stopped,
    /// Whether what is under way has left its hints for the next process.
    has_left_hints: bool,
    /// Operations in the order in which they answered their requests; some are over.
    lingering: VecDeque<u64>,
    /// When to find out whether a store that refused a batch takes one again.
    probe_at: Option<Duration>,
    /// Whether something was handled since the last batch was sealed.
    is_turn_open: bool,
}

/// A stored document that cannot be read.
#[derive(Clone, Copy)]
struct UnreadDocument {
    /// When to read it again.
    again_at: Duration,
    /// Until when no peer's document is taken in its place.
    until: Duration,
}

/// How far a stop has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stopped {
    No,
    Marking(Sequence),
    Yes,
}

/// Something under way.
enum Operation {
    Write(Box<WriteOperation>),
    Read(Box<ReadOperation>),
    Forward(Box<ForwardOperation>),
    Exchange(Box<ExchangeOperation>),
    Hint(HintOperation),
}

impl Operation {
    /// Whether its request is answered, and it waits for slow replicas.
    fn is_answered(&self) -> bool {
        match self {
            Operation::Write(write) => write.is_answered(),
            Operation::Read(read) => read.is_answered(),
            Operation::Forward(_) | Operation::Exchange(_) | Operation::Hint(_) => false,
        }
    }
}

impl<S: Store> Node<S> {
    /// Starts a node over a store.
    pub fn open(identity: Identity, settings: Settings, store: S, now: Now) -> Node<S> {
        Node::start(identity, settings, store, now, None)
    }

    /// Starts a node with a bug planted in it, to prove that checkers find it.
    pub fn with_planted_bug(
        identity: Identity,
        settings: Settings,
        store: S,
        now: Now,
        bug: PlantedBug,
    ) -> Node<S> {
        Node::start(identity, settings, store, now, Some(bug))
    }

    fn start(
        identity: Identity,
        settings: Settings,
        store: S,
        now: Now,
        planted: Option<PlantedBug>,
    ) -> Node<S> {
        settings.assert_sound();
        let mut rng = ChaCha8Rng::from_seed(identity.seed);
        let mut recovered = Recovered::read(&store);
        let document = read_document_or_fail(&store);
        let unread = document.is_err().then_some(UnreadDocument {
            again_at: now.monotonic + DOCUMENT_RETRY_AFTER,
            until: now.monotonic + DOCUMENT_READ_WITHIN,
        });
        let founders = identity.formation.iter().flat_map(|formation| formation.founders.keys().copied());
        let others = identity.seeds.into_iter().chain(founders).filter(|node| *node != identity.node);
        let start = StartId(rng.next_u64());
        let memories = std::mem::take(&mut recovered.peers);
        let hints = Hints::open(now.monotonic, &store);
        let peers = Peers::new(start, others.collect::<Vec<_>>(), memories, store.recovered());
        let votes = Votes::open(&store, &mut rng);
        let membership = Membership::new(identity.node, now.wall, rng.next_u64(), &settings);
        let formation = identity.formation.filter(|_| !matches!(document, Ok(Some(_))));
        let forming = formation.and_then(|formation| Forming::new(identity.node, formation));
        let is_new_store = store.recovered() == Sequence(0) && recovered.marks.is_empty();
        let watermarks = Watermarks::open(&store);
        let mut replica = Replica::new(store, &settings, planted);
        // Whatever earlier processes of this store said that they would not date, this one does not.
        if planted != Some(PlantedBug::MintBelowPromise) {
            replica.clock().begin_above(watermarks.mints_above());
        }
        let local = Local {
            node: identity.node,
            start,
            settings,
            planted,
            now,
            replica,
            copies: Copies::new(rng.next_u64()),
            peers,
            document: None,
            digest: None,
            votes,
            sharers: BTreeMap::new(),
            counters: Counters::default(),
            outbox: VecDeque::new(),
            events: VecDeque::new(),
            waiting: WaitingRoom::new(),
            timers: BTreeSet::new(),
            to_fill: BTreeMap::new(),
            to_exchange: BTreeSet::new(),
            to_compare: BTreeSet::new(),
            lag: Lag::default(),
            watermarks,
            has_forgotten: false,
            hints_left: Vec::new(),
            numbers: Numbers::new(rng.next_u64()),
            hedges: HedgeBudget::new(HEDGES_MAX),
            admission: Admission::default(),
            is_stopping: false,
            is_awaiting: false,
            rng,
        };
        let mut node = Node {
            local,
            operations: Operations::new(),
            outcomes: Outcomes::new(),
            exchanges: Exchanges::new(),
            hints,
            grants: Grants::default(),
            agreement: Agreement::new(now.monotonic, forming),
            membership,
            recovered,
            is_new_store,
            forwards: RecentForwards::default(),
            parked: Vec::new(),
            adopting: None,
            unread,
            marks_lost: BTreeSet::new(),
            document_asked: None,
            went_back_from: None,
            newer_epoch: None,
            stopped: Stopped::No,
            has_left_hints: false,
            lingering: VecDeque::new(),
            probe_at: None,
            is_turn_open: true,
        };
        if let Ok(Some(document)) = document {
            node.adopt(document);
        }
        node.greet();
        node.end_turn();
        node
    }

    /// Takes an input.
    pub fn handle(&mut self, now: Now, input: Input) {
        self.set_now(now);
        self.is_turn_open = true;
        match input {
            Input::Client { client, request } => {
                let deadline = now.monotonic + timeout(&request, &self.local.settings);
                self.begin(Requester::Client(client), request, deadline, true);
            }
            Input::Change { client, change, timeout } => self.on_change(client, change, timeout),
            Input::Peer(envelope) => self.on_message(envelope),
            Input::Datagram { from, packet } => {
                let peers = &self.local.peers;
                if !self.membership.receive(now.monotonic, from, &packet, |node| peers.knows(node)) {
                    self.local.counters.datagrams_ignored += 1;
                }
            }
            Input::Connected(peer) => {
                self.local.peers.connected(peer);
                self.greet();
            }
            Input::Left(peer) => {
                self.local.peers.left(peer);
            }
            Input::Committed(sequence) => self.on_committed(sequence),
            Input::CommitFailed(sequence) => {
                for sequence in self.local.replica.in_flight_from(sequence) {
                    self.on_commit_failed(sequence);
                }
            }
            Input::Document(document) => self.learn(document),
            // New requests are refused from now on; the mark follows when nothing is on its way any more.
            Input::Stop => self.local.is_stopping = true,
        }
        self.deliver_events();
    }

    fn set_now(&mut self, now: Now) {
        // If it was due long ago, the process stood still: nothing is concluded from that.
        if now.monotonic > self.local.now.monotonic + STALL
            && let Some((due, _)) = self.poll_timeout()
            && now.monotonic > due + STALL
        {
            let stall = now.monotonic - due.max(self.local.now.monotonic);
            self.local.peers.stood_still(stall);
            self.membership.stood_still(stall);
        }
        self.local.now = now;
        self.local.peers.heed_clock(now);
    }

    /// Does what is due, and a piece of the background's work.
    pub fn handle_timeout(&mut self, now: Now) {
        self.handle_due(now);
        self.handle_background(now);
    }

    /// Does a piece of what nobody waits for: scans for hash trees. Whoever drives the node says when, and may let it wait.
    pub fn handle_background(&mut self, now: Now) {
        self.set_now(now);
        self.is_turn_open = true;
        if !self.local.is_stopping && !self.local.prune_some() {
            self.local.build_trees();
        }
    }

    /// Does what is due but for the background's work.
    pub fn handle_due(&mut self, now: Now) {
        self.set_now(now);
        self.is_turn_open = true;
        while let Some(&(at, operation)) = self.local.timers.first() {
            if at > now.monotonic {
                break;
            }
            self.local.timers.pop_first();
            self.with_operation(operation, |node, current| node.on_timer(current));
        }
        if self.probe_at.is_some_and(|at| at <= now.monotonic) {
            self.probe_at = None;
            self.local.replica.put_meta(self.local.peers.to_store());
        }
        self.membership.handle_timeout(now.monotonic);
        self.tend_watermarks();
        // A store that could not be read when the process began may be readable by now.
        let _ = self.local.voter();
        self.read_document_again();
        if let Some((node, epoch)) = self.newer_epoch.filter(|_| !self.local.is_stopping) {
            self.note_epoch(node, epoch);
        }
        self.greet();
        self.deliver_events();
    }

    /// Raises the floor and makes promises, if it is time.
    fn tend_watermarks(&mut self) {
        if self.local.is_stopping {
            return;
        }
        let operations = &self.operations;
        let under_way = || {
            let writes = operations.iter().filter_map(|(_, operation)| match operation {
                Operation::Write(write) => Some(write.lowest()),
                _ => None,
            });
            writes.min()
        };
        self.local.tend_watermarks(&self.hints, under_way);
    }

    /// What is to be done next. The first call after inputs ends the turn: it seals their changes into one batch.
    pub fn poll_output(&mut self) -> Option<Output> {
        if self.is_turn_open {
            self.end_turn();
        }
        self.local.outbox.pop_front()
    }

    /// When [`Node::handle_timeout`] is to be called, and why.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Duration, Wake)> {
        let background = self.poll_background().map(|at| (at, Wake::Background));
        self.poll_due().into_iter().chain(background).min()
    }

    /// When [`Node::handle_background`] is to be called.
    #[must_use]
    pub fn poll_background(&self) -> Option<Duration> {
        let due = if self.local.has_prunable() {
            Some(Duration::ZERO)
        } else {
            self.local.replica.trees.next_due()
        };
        due.filter(|_| !self.local.is_stopping)
    }

    /// When [`Node::handle_due`] is to be called, and why.
    #[must_use]
    pub fn poll_due(&self) -> Option<(Duration, Wake)> {
        let settings = &self.local.settings;
        let background = (!self.local.is_stopping).then_some((&self.exchanges, &self.hints));
        let document = self.newer_epoch.filter(|_| !self.local.is_stopping);
        let ask_at = self.document_asked.map_or(Duration::ZERO, |asked| asked + DOCUMENT_RETRY_AFTER);
        let agreement = (!self.local.is_stopping).then(|| self.agreement_due()).flatten();
        [
            agreement.map(|at| (at, Wake::Agreement)),
            self.local.timers.first().map(|(at, _)| (*at, Wake::Operation)),
            self.local.peers.next_due(settings).map(|at| (at, Wake::Peers)),
            document.map(|_| (ask_at, Wake::Peers)),
            self.unread.map(|unread| (unread.again_at, Wake::Storage)),
            self.probe_at.map(|at| (at, Wake::Storage)),
            background.map(|_| (self.local.watermarks.next_due(), Wake::Watermarks)),
            self.membership.next_due().map(|at| (at, Wake::Membership)),
            background.and_then(|(exchanges, _)| exchanges.next_due(settings)).map(|at| (at, Wake::Exchange)),
            background.and_then(|(_, hints)| hints.next_due(&self.local)).map(|at| (at, Wake::Hints)),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Ends a turn: starts what has become possible, and seals the batch.
    fn end_turn(&mut self) {
        self.is_turn_open = false;
        self.learn_who_is_up();
        self.agree();
        self.hints.collect(&mut self.local);
        if !self.local.is_stopping {
            for hint in self.hints.replay(&mut self.local) {
                self.operations.insert(hint.operation(), Operation::Hint(hint));
            }
            for exchange in self.exchanges.start_due(&mut self.local) {
                self.operations.insert(exchange.operation(), Operation::Exchange(Box::new(exchange)));
            }
        }
        self.deliver_events();
        if std::mem::take(&mut self.local.has_forgotten) {
            self.went_back(None);
        }
        self.hints.collect(&mut self.local);
        self.mark_stop();
        let local = &mut self.local;
        if (local.replica.has_changes() || !local.replica.is_refusing())
            && let Some(renewed) = local.votes.take_unsaved()
        {
            renewed.into_iter().for_each(|(key, value)| local.replica.change_meta(key, value));
        }
        if local.replica.has_changes() || !local.replica.is_refusing() {
            let facts = local.watermarks.take_unsaved(local.replica.turn_sequence());
            facts.into_iter().for_each(|fact| _ = local.replica.put_meta(fact));
        }
        if local.replica.has_changes() {
            for partition in std::mem::take(&mut self.marks_lost) {
                local.write_mark(partition);
            }
            if let Some(unsaved) = local.peers.take_unsaved() {
                local.replica.put_meta(unsaved);
            }
        }
        if let Some(batch) = local.replica.seal() {
            if local.is_awaiting {
                local.admission.sealed(local.now.monotonic, batch.sequence);
            }
            local.outbox.push_back(Output::Commit(batch));
        }
        if std::mem::take(&mut local.is_awaiting) {
            local.outbox.push_back(Output::Hurry);
        }
    }

    /// Takes what was found out about who is up, and sends what there is to send about it.
    fn learn_who_is_up(&mut self) {
        let local = &mut self.local;
        if !local.is_stopping {
            self.membership.announce(local.now.monotonic, local.peers.up(local.now, &local.settings));
        }
        while let Some(finding) = self.membership.poll_finding() {
            match finding {
                Finding::Up(node) => {
                    if local.peers.found(node, false) {
                        local.to_compare.insert(node);
                    }
                }
                Finding::Down(node) => {
                    local.counters.peers_died += u64::from(local.peers.found(node, true));
                }
                Finding::Rejoined => local.counters.rejoined += 1,
            }
        }
        let packets = std::iter::from_fn(|| self.membership.poll_packet());
        local.outbox.extend(packets.map(|(to, packet)| Output::Datagram { to, packet }));
    }

    /// Hands operations of this node what they have caused at this node itself.
    fn deliver_events(&mut self) {
        while let Some((tag, event)) = self.local.events.pop_front() {
            self.with_operation(tag.operation, |node, current| node.on_event(current, tag.question, event));
        }
    }

    /// Takes an operation out, lets it act, and puts it back unless it is over.
    fn with_operation(&mut self, operation: u64, act: impl FnOnce(&mut Self, &mut Operation) -> Step) {
        let Some(mut current) = self.operations.remove(operation) else { return };
        let was_answered = current.is_answered();
        match act(self, &mut current) {
            Step::Continue => {
                let is_news = current.is_answered() && !was_answered;
                self.operations.insert(operation, current);
                if is_news {
                    self.linger(operation);
                }
            }
            Step::Done => {
                self.local.numbers.give_back(operation);
                match current {
                    Operation::Exchange(exchange) => self.exchanges.ended(&mut self.local, &exchange),
                    Operation::Hint(hint) => self.hints.ended(&mut self.local, hint),
                    Operation::Write(_) | Operation::Read(_) | Operation::Forward(_) => {}
                }
            }
        }
    }

    /// An operation has answered and waits for slow replicas. So many may: of more the oldest leaves hints instead. Slow or
    /// dead replicas must not take the place of requests.
    fn linger(&mut self, operation: u64) {
        self.lingering.push_back(operation);
        if self.lingering.len() <= self.local.settings.requests_max {
            return;
        }
        // Most are over long since.
        let Some(oldest) = self.lingering.pop_front() else { return };
        self.with_operation(oldest, |node, current| match current {
            Operation::Write(write) => write.cut_short(&mut node.local, &mut node.outcomes),
            Operation::Read(read) => read.cut_short(&mut node.local),
            Operation::Forward(_) | Operation::Exchange(_) | Operation::Hint(_) => Step::Continue,
        });
    }

    fn on_event(&mut self, current: &mut Operation, question: u32, event: Event) -> Step {
        let local = &mut self.local;
        match current {
            Operation::Write(write) => write.on_event(local, &mut self.outcomes, question, event),
            Operation::Read(read) => {
                let ended = read.on_event(local, question, event);
                self.read_ended(ended)
            }
            Operation::Forward(forward) => forward.on_event(local, event),
            Operation::Exchange(exchange) => exchange.on_event(local, &mut self.exchanges, question, event),
            Operation::Hint(hint) => hint.on_event(local, event),
        }
    }

    fn on_timer(&mut self, current: &mut Operation) -> Step {
        let local = &mut self.local;
        match current {
            Operation::Write(write) => write.on_timer(local, &mut self.outcomes),
            Operation::Read(read) => {
                let ended = read.on_timer(local);
                self.read_ended(ended)
            }
            Operation::Forward(forward) => forward.on_timer(local),
            Operation::Exchange(exchange) => exchange.on_timer(local),
            Operation::Hint(hint) => hint.end(local),
        }
    }

    fn read_ended(&mut self, ended: Ended) -> Step {
        match ended {
            Ended::Step(step) => step,
            Ended::Delete { requester, plan, deadline } => {
                self.delete_what_was_read(requester, *plan, deadline);
                Step::Done
            }
        }
    }

    fn on_committed(&mut self, sequence: Sequence) {
        self.local.replica.committed(sequence);
        self.local.admission.came_back(self.local.now.monotonic, sequence);
        self.hints.committed(sequence);
        self.local.watermarks_committed(sequence, &self.hints);
        self.probe_at = None;
        self.local.peers.saved();
        if matches!(self.stopped, Stopped::Marking(marking) if marking <= sequence) {
            self.stopped = Stopped::Yes;
        }
        let whole = self.local.copies.committed(sequence);
        self.local.counters.copies_made_whole += u64::try_from(whole.len()).unwrap_or(u64::MAX);
        while let Some(mut released) = self.local.waiting.take_through(sequence) {
            for waiting in released.drain(..) {
                match waiting {
                    Waiting::Document(document) => self.adopt(document),
                    Waiting::Cast { to, message } => self.cast(to, *message),
                    Waiting::Count { from, message } => self.count(from, *message),
                    Waiting::Message { .. } | Waiting::Event { .. } => self.local.release(waiting),
                }
            }
            self.local.waiting.recycle(released);
        }
    }

    fn on_commit_failed(&mut self, sequence: Sequence) {
        let local = &mut self.local;
        local.counters.commits_failed += 1;
        local.replica.commit_failed(sequence);
        self.hints.commit_failed(sequence);
        local.admission.came_back(local.now.monotonic, sequence);
        let unmarked = local.copies.commit_failed(sequence);
        local.to_fill.extend(unmarked.into_iter().map(|partition| (partition, RETRY_AFTER)));
        local.peers.save_failed();
        local.watermarks.commit_failed(sequence);
        local.votes.save_failed();
        if self.stopped == Stopped::Marking(sequence) {
            self.stopped = Stopped::No;
        }
        self.probe_at.get_or_insert(local.now.monotonic + PROBE_AFTER);
        let filling = local.copies.partitions().filter(|partition| !local.copies.is_whole(*partition));
        self.marks_lost.extend(filling);
        local.waiting.decline_exchanges();
        for waiting in local.waiting.take(sequence) {
            if let Waiting::Document(_) = waiting {
                self.adopting = None;
                self.document_asked = None;
            }
            if let Some(refused) = waiting.refused() {
                self.local.release(refused);
            }
        }
        // An exchange waits for all that was on its way: a later batch that succeeds does not make up for this one.
        let is_exchange = |(_, operation): &(u64, &Operation)| matches!(operation, Operation::Exchange(_));
        let exchanges: Vec<u64> = self.operations.iter().filter(is_exchange).map(|(at, _)| at).collect();
        for operation in exchanges {
            self.with_operation(operation, |node, current| match current {
                Operation::Exchange(exchange) => exchange.end(&mut node.local),
                _ => Step::Continue,
            });
        }
    }

    /// Leaves the mark of a stop in good order once nothing is on its way: what the mark says is about all of it.
    fn mark_stop(&mut self) {
        let local = &mut self.local;
        let is_due = local.is_stopping && self.stopped == Stopped::No && local.replica.is_quiet();
        // While the store refuses batches, the probe finds out when it takes one again.
        if !is_due || local.replica.is_refusing() {
            return;
        }
        if !std::mem::replace(&mut self.has_left_hints, true) {
            for (_, operation) in self.operations.iter() {
                if let Operation::Write(write) = operation {
                    write.leave_hints(local);
                }
            }
            self.hints.collect(local);
            if local.replica.has_changes() {
                return;
            }
        }
        if self.marks_lost.is_empty() {
            let sequence = local.replica.put_meta(clean_to_store(local.start));
            self.stopped = Stopped::Marking(sequence);
        } else {
            // Marks that a refused batch took with it come first, and are a reason to commit now.
            local.replica.put_meta(local.peers.to_store());
        }
    }

    /// Whether a stop is complete: its mark is synced, and the process may end without a loss. A store that refuses
    /// every batch never comes so far; whoever waits gives up some time, and the next start takes it for a crash.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stopped == Stopped::Yes
    }

    /// The document that counts here.
    #[must_use]
    pub fn document(&self) -> Option<&Arc<ClusterDocument>> {
        self.local.document.as_ref()
    }

    /// What this node holds of an object, synced or not. What is damaged reads as nothing.
    ///
    /// # Errors
    ///
    /// [`ReadError`] if the engine could not read.
    pub fn record(&self, object: &ObjectKey) -> Result<Option<antientropy::version::Record>, ReadError> {
        match self.local.replica.inspect(object) {
            Held::Record(record) => Ok(Some(Arc::unwrap_or_clone(record))),
            Held::Nothing | Held::Damaged => Ok(None),
            Held::Unreadable => Err(ReadError::Damaged),
        }
    }

    /// Whether this node's copy of a partition is whole.
    #[must_use]
    pub fn copy_is_whole(&self, partition: PartitionId) -> bool {
        self.local.copies.is_whole(partition)
    }

    /// The watermark of a partition: what is superfluous there is dropped.
    #[must_use]
    pub fn watermark(&self, partition: PartitionId) -> Counter {
        self.local.watermarks.of(partition)
    }

    /// How many copies this node holds, and how many of them are whole.
    #[must_use]
    pub fn copies(&self) -> (usize, usize) {
        self.local.copies.census()
    }

    /// Whether no request is under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let is_request = |operation: &Operation| {
            matches!(operation, Operation::Write(_) | Operation::Read(_) | Operation::Forward(_))
        };
        !self.operations.iter().any(|(_, operation)| is_request(operation))
    }

    /// Whether this node can coordinate: it has a document that records its store, it is not stopping, and its store
    /// takes batches.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.local.is_recorded() && !self.local.is_stopping && !self.local.replica.is_refusing()
    }

    /// Whether a change has to record this node's store before it counts as what it is: its disk was replaced, or went
    /// back in time.
    #[must_use]
    pub fn needs_readmission(&self) -> bool {
        let Some(document) = &self.local.document else { return false };
        let member = document.members.get(&self.local.node);
        member.is_some_and(|member| {
            let voter = self.local.votes.voter();
            member.store != self.local.store_id() || voter.is_some_and(|voter| voter != member.voter)
        })
    }

    /// Whether this node votes about documents: it is recorded as it is, and its peers have judged its store.
    #[must_use]
    pub fn votes(&self) -> bool {
        self.may_vote()
    }

    /// The other nodes that it knows, and whether requests may be sent to each.
    pub fn peers_status(&self) -> impl Iterator<Item = (NodeId, bool)> {
        self.local.peers.status(self.local.now, &self.local.settings)
    }

    /// Founders that are configured otherwise than this one: as long as there are any, no cluster is formed.
    #[must_use]
    pub fn founders_differing(&self) -> Vec<NodeId> {
        self.agreement.forming.iter().flat_map(Forming::differing).collect()
    }

    /// The hash trees that are not what a scan would make of them now: none, unless there is a bug. For tests: all is
    /// scanned.
    #[must_use]
    pub fn trees_differing(&self) -> Vec<antientropy::exchange::TreeId> {
        self.local.trees_differing()
    }

    /// Whether everything could be read, when the process began, that its store had promised about watermarks.
    #[must_use]
    pub fn knows_its_promises(&self) -> bool {
        self.local.watermarks.is_complete()
    }

    /// Whether this store's document could not be read when the process began, and is still waited for.
    #[must_use]
    pub fn document_is_unread(&self) -> bool {
        self.unread.is_some()
    }

    /// How far a peer had seen this store come before it went back in time, if it did: see
    /// [`Counters::store_went_back`].
    #[must_use]
    pub fn went_back_from(&self) -> Option<Sequence> {
        self.went_back_from
    }

    /// What this node has counted.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.local.counters
    }

    /// Its store.
    #[must_use]
    pub fn store(&self) -> &S {
        self.local.replica.store()
    }
}
