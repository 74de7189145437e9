//! The node: takes inputs, hands them to whoever they are for, and gathers what is to be done.
//!
//! Nothing is decided here but who decides. Requests become operations (`coordinator`), peers' questions go to the
//! replica (`local`), the document and the greetings are kept here because they concern everyone.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use antientropy::version::{Context, RequestId};
use client::{Limit, Operation as Kind, Refusal, Reply, Request};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use ring::{ClusterDocument, ConflictPolicy, Epoch, NodeId, PartitionId};

use crate::{
    coordinator::{
        Requester, Step, admit,
        admit::WritePlan,
        forward::{ForwardOperation, refusal},
        outcomes::{OutcomeState, Outcomes},
        read::{Ended, ReadOperation},
        write::WriteOperation,
    },
    copies::{Copies, Mark},
    counters::Counters,
    event::{Input, Now, Output, Wake},
    exchange::{ExchangeOperation, Exchanges, answer_tree},
    hints::{HintOperation, Hints},
    local::{Event, Local, Waiting},
    message::{Envelope, Header, MergeOutcome, MergeRefusal, Message, ReadAnswer, StartId, Tag},
    peers::Peers,
    planted::PlantedBug,
    recovery::{Recovered, clean_to_store, document_to_store, seen_to_store},
    replica::{Held, Replica},
    settings::Settings,
    storage::{ObjectKey, ReadError, Sequence, Store, seal_stored},
};

/// How long to wait before a document is asked for again.
const DOCUMENT_RETRY_AFTER: Duration = Duration::from_millis(200);

/// Who a node is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its id.
    pub node: NodeId,
    /// Other nodes, to be greeted before a document is known.
    pub seeds: Vec<NodeId>,
    /// Seeds the generator from which everything random is drawn: actors, the names of processes, jitter.
    pub seed: [u8; 32],
}

/// A node. See the crate's documentation.
pub struct Node<S> {
    local: Local<S>,
    operations: BTreeMap<u64, Operation>,
    outcomes: Outcomes,
    exchanges: Exchanges,
    hints: Hints,
    recovered: Recovered,
    /// Messages of a newer epoch, until its document is adopted.
    parked: Vec<Envelope>,
    /// A document that is known and not yet adopted.
    adopting: Option<Arc<ClusterDocument>>,
    /// Copies whose marks may have been in a batch that was refused: they go into the next.
    marks_lost: BTreeSet<PartitionId>,
    /// When a document was last asked for.
    document_asked: Option<Duration>,
    is_stopping: bool,
    /// Whether something was handled since the last batch was sealed.
    is_turn_open: bool,
}

/// Something under way.
enum Operation {
    Write(WriteOperation),
    Read(ReadOperation),
    Forward(ForwardOperation),
    Exchange(ExchangeOperation),
    Hint(HintOperation),
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
        let mut rng = ChaCha8Rng::from_seed(identity.seed);
        let recovered = Recovered::read(&store);
        let others = identity.seeds.into_iter().filter(|node| *node != identity.node);
        let peers = Peers::new(others, &recovered.seen);
        let local = Local {
            node: identity.node,
            start: StartId(rng.next_u64()),
            settings,
            planted,
            now,
            replica: Replica::new(store, planted),
            copies: Copies::new(),
            peers,
            document: None,
            sharers: BTreeMap::new(),
            counters: Counters::default(),
            outbox: VecDeque::new(),
            events: VecDeque::new(),
            waiting: BTreeMap::new(),
            timers: BTreeSet::new(),
            to_fill: BTreeSet::new(),
            hints_left: Vec::new(),
            next_operation: rng.next_u64(),
            rng,
        };
        let mut node = Node {
            local,
            operations: BTreeMap::new(),
            outcomes: Outcomes::new(),
            exchanges: Exchanges::new(),
            hints: Hints::new(),
            recovered,
            parked: Vec::new(),
            adopting: None,
            marks_lost: BTreeSet::new(),
            document_asked: None,
            is_stopping: false,
            is_turn_open: true,
        };
        if let Some(document) = node.recovered.document.clone() {
            node.adopt(document);
        }
        node.greet();
        node.end_turn();
        node
    }

    /// Takes an input.
    pub fn handle(&mut self, now: Now, input: Input) {
        self.local.now = now;
        self.is_turn_open = true;
        match input {
            Input::Client { client, request } => {
                let deadline = now.monotonic + timeout(&request);
                self.begin(Requester::Client(client), request, deadline, true);
            }
            Input::Peer(envelope) => self.on_message(envelope),
            Input::Committed(sequence) => self.on_committed(sequence),
            Input::CommitFailed(sequence) => self.on_commit_failed(sequence),
            Input::Document(document) => self.learn(document),
            Input::Stop => self.stop(),
        }
        self.deliver_events();
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Now) {
        self.local.now = now;
        self.is_turn_open = true;
        while let Some(&(at, operation)) = self.local.timers.first() {
            if at > now.monotonic {
                break;
            }
            self.local.timers.pop_first();
            self.with_operation(operation, |node, current| node.on_timer(current));
        }
        self.greet();
        self.deliver_events();
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
        let settings = &self.local.settings;
        let background = (!self.is_stopping).then_some((&self.exchanges, &self.hints));
        [
            self.local.timers.first().map(|(at, _)| (*at, Wake::Operation)),
            self.local.peers.next_due(settings).map(|at| (at, Wake::Peers)),
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
        self.hints.collect(&mut self.local);
        if !self.is_stopping {
            for hint in self.hints.replay(&mut self.local) {
                self.operations.insert(hint.operation(), Operation::Hint(hint));
            }
            for exchange in self.exchanges.start_due(&mut self.local) {
                self.operations.insert(exchange.operation(), Operation::Exchange(exchange));
            }
        }
        self.deliver_events();
        let local = &mut self.local;
        if local.replica.has_changes() {
            for partition in std::mem::take(&mut self.marks_lost) {
                local.write_mark(partition);
            }
            if let Some(seen) = local.peers.take_unsaved() {
                let (key, value) = seen_to_store(&seen);
                local.replica.put_meta(key, Some(value));
            }
        }
        if let Some(batch) = local.replica.seal() {
            local.outbox.push_back(Output::Commit(batch));
        }
    }

    /// Hands operations of this node what they have caused at this node itself.
    fn deliver_events(&mut self) {
        while let Some((tag, event)) = self.local.events.pop_front() {
            self.with_operation(tag.operation, |node, current| node.on_event(current, tag.question, event));
        }
    }

    /// Takes an operation out, lets it act, and puts it back unless it is over.
    fn with_operation(&mut self, operation: u64, act: impl FnOnce(&mut Self, &mut Operation) -> Step) {
        let Some(mut current) = self.operations.remove(&operation) else { return };
        match act(self, &mut current) {
            Step::Continue => {
                self.operations.insert(operation, current);
            }
            Step::Done => match current {
                Operation::Exchange(exchange) => self.exchanges.ended(&mut self.local, &exchange),
                Operation::Hint(hint) => self.hints.ended(&mut self.local, hint),
                Operation::Write(_) | Operation::Read(_) | Operation::Forward(_) => {}
            },
        }
    }

    fn on_event(&mut self, current: &mut Operation, question: u32, event: Event) -> Step {
        let local = &mut self.local;
        match current {
            Operation::Write(write) => write.on_event(local, &mut self.outcomes, event),
            Operation::Read(read) => {
                let ended = read.on_event(local, question, event);
                self.read_ended(ended)
            }
            Operation::Forward(forward) => forward.on_event(local, event),
            Operation::Exchange(exchange) => exchange.on_event(local, question, event),
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

    /// Begins a request: here, if this node is a replica of the key, and otherwise at one that is.
    fn begin(&mut self, requester: Requester, request: Request, deadline: Duration, may_forward: bool) {
        if let Err(error) = self.try_begin(requester, &request, deadline, may_forward) {
            requester.reply(&mut self.local, refusal(&request, error));
        }
    }

    fn try_begin(
        &mut self,
        requester: Requester,
        request: &Request,
        deadline: Duration,
        may_forward: bool,
    ) -> Result<(), Refusal> {
        if self.is_stopping {
            return Err(Refusal::NotReady);
        }
        if self.operations.len() >= self.local.settings.requests_max {
            return Err(Refusal::Overloaded(Limit::Requests));
        }
        let located = admit::locate(&self.local, request)?;
        if !self.local.is_recorded() || !located.owners.contains(self.local.node) {
            if !may_forward {
                return Err(Refusal::StaleEpoch { known: self.local.epoch() });
            }
            let copies = located.owners.copies().total();
            let local = &mut self.local;
            return match ForwardOperation::start(local, requester, request.clone(), located, deadline) {
                Ok(forward) => {
                    self.operations.insert(forward.operation(), Operation::Forward(forward));
                    Ok(())
                }
                Err(_) => Err(Refusal::Unavailable { required: copies.min(1), alive: 0 }),
            };
        }
        match request {
            Request::Put(put) => {
                let plan = admit::plan_put(&self.local, located, put)?;
                self.write(requester, plan, deadline)
            }
            Request::Delete(delete) => {
                let plan = admit::plan_delete(&self.local, located, delete)?;
                let is_blind = delete.options.context.is_none();
                let is_known = self.outcomes.find(plan.request).is_some();
                if is_blind && !is_known && plan.located.conflict == ConflictPolicy::Siblings {
                    let read = ReadOperation::before_delete(&mut self.local, requester, plan, deadline);
                    self.operations.insert(read.operation(), Operation::Read(read));
                    return Ok(());
                }
                self.write(requester, plan, deadline)
            }
            Request::Get(get) => {
                let tally = admit::tally(&self.local, Kind::Read, get.options.level, &located.owners)?;
                let read =
                    ReadOperation::get(&mut self.local, requester, located, tally, &get.options, deadline);
                self.operations.insert(read.operation(), Operation::Read(read));
                Ok(())
            }
        }
    }

    /// Writes, unless the request's id says that it was written: then that write is brought to its level.
    fn write(&mut self, requester: Requester, plan: WritePlan, deadline: Duration) -> Result<(), Refusal> {
        let known = self.outcomes.find(plan.request).filter(|_| plan.request != RequestId::NONE).cloned();
        let local = &mut self.local;
        let plan = match known {
            Some(known) if known.object != plan.located.object => return Err(Refusal::Malformed),
            Some(known) => match known.state {
                OutcomeState::Acknowledged(reply) => {
                    requester.reply(local, Reply::Write(Ok(reply)));
                    return Ok(());
                }
                OutcomeState::UnderWay(operation) => {
                    if let Some(Operation::Write(write)) = self.operations.get_mut(&operation) {
                        write.join(requester);
                        return Ok(());
                    }
                    plan
                }
                OutcomeState::InDoubt => {
                    let outcomes = &mut self.outcomes;
                    match WriteOperation::resume(local, outcomes, requester, plan, deadline, known.dot) {
                        Ok(write) => {
                            self.operations.insert(write.operation(), Operation::Write(write));
                            return Ok(());
                        }
                        Err(plan) => plan,
                    }
                }
            },
            None => plan,
        };
        let write = WriteOperation::mint(local, &mut self.outcomes, requester, plan, deadline)?;
        self.operations.insert(write.operation(), Operation::Write(write));
        Ok(())
    }

    /// The read of a delete is complete: what it saw is deleted, if it saw anything.
    fn delete_what_was_read(&mut self, requester: Requester, plan: WritePlan, deadline: Duration) {
        if plan.context == Context::new() {
            let reply = client::WriteReply {
                version: None,
                context: None,
                required: plan.tally.required(),
                acknowledged: plan.tally.required(),
                coordinator: self.local.node,
            };
            return requester.reply(&mut self.local, Reply::Write(Ok(reply)));
        }
        if let Err(error) = self.write(requester, plan, deadline) {
            requester.reply(&mut self.local, Reply::Write(Err(error.into())));
        }
    }

    fn on_message(&mut self, envelope: Envelope) {
        let header = envelope.header;
        let from = header.from;
        match envelope.message {
            Message::Hello { cluster, recovered } => {
                let ours = self.local.document.as_ref().map(|document| document.cluster);
                if cluster.is_some() && ours.is_some() && cluster != ours {
                    self.local.counters.messages_ignored += 1;
                    return;
                }
                let greeted = self.local.peers.hello(from, header.start, header.store, recovered);
                self.hear(&header);
                self.local.send(from, Message::Welcome { start: header.start, seen: greeted.seen });
                if greeted.restarted {
                    self.greet();
                }
            }
            Message::Welcome { start, seen } if start == self.local.start => {
                if self.local.peers.is_known(from, header.start) {
                    self.hear(&header);
                    self.local.peers.welcome(from);
                    self.welcomed(seen);
                }
            }
            Message::Welcome { .. } => self.local.counters.messages_ignored += 1,
            _ if !self.local.peers.is_known(from, header.start) => self.local.counters.messages_ignored += 1,
            message => self.on_known_message(Envelope { header, message }),
        }
        self.note_epoch(from, header.epoch);
    }

    fn on_known_message(&mut self, envelope: Envelope) {
        let Envelope { header, message } = envelope;
        let from = header.from;
        self.hear(&header);
        match message {
            Message::DocumentRequest => {
                if let Some(document) = self.local.document.clone() {
                    self.local.send(from, Message::Document(document));
                }
            }
            Message::Document(document) => self.learn(document),
            message if header.epoch > self.local.epoch() => {
                if self.parked.len() < self.local.settings.parked_max {
                    self.parked.push(Envelope { header, message });
                } else {
                    self.local.counters.parked_dropped += 1;
                }
            }
            message => self.serve(from, &header, message),
        }
    }

    /// Learns what every message tells: that its sender lives, how far its store is synced, and what time it is there.
    fn hear(&mut self, header: &Header) {
        let local = &mut self.local;
        local.peers.heard(local.now, header.from, header.store, header.synced, header.wall);
        let drift_max_ms = u64::try_from(local.settings.clock_drift_max.as_millis()).unwrap_or(u64::MAX);
        let wall = local.now.wall;
        local.replica.clock().observe(header.clock, wall, drift_max_ms);
    }

    /// A message of this node's epoch, or of an older one: a question of an older one is not taken.
    fn serve(&mut self, from: NodeId, header: &Header, message: Message) {
        let is_stale = header.epoch < self.local.epoch();
        let local = &mut self.local;
        match message {
            Message::Forward { tag, request, remaining } => {
                let requester = Requester::Forwarder { node: from, tag };
                if is_stale {
                    let error = Refusal::StaleEpoch { known: local.epoch() };
                    return requester.reply(local, refusal(&request, error));
                }
                let deadline = local.now.monotonic + remaining.min(timeout(&request));
                self.begin(requester, request, deadline, false);
            }
            Message::Merge { tag, .. } if is_stale => {
                let outcome = MergeOutcome::Refused(MergeRefusal::StaleEpoch);
                local.send(from, Message::Merged { tag, outcome });
            }
            Message::Merge { tag, object, record, durability, path } => {
                let merged = |outcome| Message::Merged { tag, outcome };
                match local.merge(&object, &record, durability, path) {
                    Err(refusal) => local.send(from, merged(MergeOutcome::Refused(refusal))),
                    Ok(acknowledgement) => {
                        let committed = merged(MergeOutcome::Applied { gained: acknowledgement.gained });
                        let refused = merged(MergeOutcome::Refused(MergeRefusal::StorageFailed));
                        let waiting = Waiting::Message { to: from, committed, refused };
                        local.when_synced(acknowledgement.after, waiting);
                    }
                }
            }
            Message::Read { tag, .. } if is_stale => {
                local.send(from, Message::Answer { tag, answer: ReadAnswer::StaleEpoch });
            }
            Message::Read { tag, object, kind, purpose } => {
                let (answer, after) = local.read(&object, kind, purpose);
                let committed = Message::Answer { tag, answer };
                let refused = Message::Answer { tag, answer: ReadAnswer::Filling };
                local.when_synced(after, Waiting::Message { to: from, committed, refused });
            }
            Message::Tree { tag, .. } if is_stale => local.send(from, Message::Declined { tag }),
            Message::Tree { tag, keyspace, partition, after } => {
                answer_tree(local, from, tag, keyspace, partition, after.as_ref());
            }
            Message::Forwarded { tag, reply } => self.event(tag, Event::Forwarded { reply }),
            Message::Merged { tag, outcome } => {
                self.event(tag, Event::Merged { from, store: header.store, outcome });
            }
            Message::Answer { tag, answer } => self.event(tag, Event::Answered { from, answer }),
            Message::Stretch { tag, entries, until } => {
                self.event(tag, Event::Stretch { store: header.store, entries, until });
            }
            Message::Declined { tag } => self.event(tag, Event::Declined),
            Message::Hello { .. }
            | Message::Welcome { .. }
            | Message::DocumentRequest
            | Message::Document(_) => unreachable!("taken before"),
        }
    }

    fn event(&mut self, tag: Tag, event: Event) {
        self.local.events.push_back((tag, event));
    }

    /// Greets the peers that are due.
    fn greet(&mut self) {
        let local = &mut self.local;
        for peer in local.peers.due(local.now, &local.settings) {
            let cluster = local.document.as_ref().map(|document| document.cluster);
            let recovered = local.replica.store().recovered();
            local.send(peer, Message::Hello { cluster, recovered });
        }
    }

    /// A peer knows this process. If it had seen this store come further than it recovered to, the store went back
    /// in time: something that was acknowledged is lost, and nothing here can be believed.
    fn welcomed(&mut self, seen: Option<Sequence>) {
        let local = &mut self.local;
        let Some(seen) = seen.filter(|seen| *seen > local.replica.store().recovered()) else { return };
        let is_news = local.counters.store_went_back == 0;
        local.counters.store_went_back += 1;
        local.replica.skip_through(seen);
        if is_news {
            let partitions: Vec<PartitionId> = local.copies.partitions().collect();
            for partition in partitions {
                local.fill(partition);
            }
        }
    }

    /// A peer speaks under some epoch: a newer one's document is asked for.
    fn note_epoch(&mut self, from: NodeId, epoch: Epoch) {
        let known = self.adopting.as_ref().map_or(self.local.epoch(), |document| document.epoch);
        let now = self.local.now.monotonic;
        let is_patient = self.document_asked.is_some_and(|asked| now < asked + DOCUMENT_RETRY_AFTER);
        if epoch > known && !is_patient {
            self.document_asked = Some(now);
            self.local.send(from, Message::DocumentRequest);
        }
    }

    /// A document: if it is newer, it is written down, and adopted when that is synced.
    fn learn(&mut self, document: Arc<ClusterDocument>) {
        let known = self.adopting.as_ref().map_or(self.local.epoch(), |document| document.epoch);
        let is_ours = self.local.document.as_ref().is_none_or(|ours| ours.cluster == document.cluster);
        if document.epoch <= known || !is_ours || document.validate().is_err() {
            return;
        }
        self.adopting = Some(document);
        self.write_document();
    }

    /// Writes the document that is being adopted. A founder's copies are whole from the first: there is nothing that
    /// they could lack.
    fn write_document(&mut self) {
        let Some(document) = self.adopting.clone() else { return };
        let local = &mut self.local;
        let (key, value) = document_to_store(&document);
        let sequence = local.replica.put_meta(key, Some(value));
        let store = local.store_id();
        let is_recorded = document.members.get(&local.node).is_some_and(|member| member.store == store);
        if document.epoch == Epoch(1) && local.document.is_none() && is_recorded {
            for (partition, gained) in local.shares(&document).gains {
                let mark = Mark { whole: true, store, gained, memory: None };
                let key = Mark::key(partition);
                let value = seal_stored(&key, |out| mark.encode(out), 32);
                local.replica.put_meta(key, Some(value));
                self.recovered.marks.insert(partition, mark);
            }
        }
        local.when_synced(Some(sequence), Waiting::Document(document));
    }

    /// The document is synced, or was found in the store: from now on it is the one that counts.
    fn adopt(&mut self, document: Arc<ClusterDocument>) {
        let local = &mut self.local;
        if document.epoch <= local.epoch() {
            return;
        }
        if self.adopting.as_ref().is_some_and(|adopting| adopting.epoch <= document.epoch) {
            self.adopting = None;
        }
        let shares = local.shares(&document);
        let store = local.store_id();
        let recovered = &self.recovered;
        let went_back = local.counters.store_went_back > 0;
        local.copies.adopt(shares.gains, |partition, gained| {
            !went_back && recovered.was_whole(partition, store, gained)
        });
        local.sharers = shares.sharers;
        let members = document.members.keys().copied();
        local.peers.add(members.filter(|node| *node != local.node));
        let is_first = local.document.is_none();
        local.document = Some(document);
        let partitions: Vec<PartitionId> = local.copies.partitions().collect();
        for partition in partitions {
            let mark = recovered.marks.get(&partition);
            let is_filling = !local.copies.is_whole(partition);
            // What an earlier process wrote holds no longer: it may have acknowledged from memory, and this copy may
            // have been found to lack something. Nothing later may be written without it.
            if is_first && mark.is_some_and(|mark| mark.memory.is_some() || (mark.whole && is_filling)) {
                local.write_mark(partition);
            }
            if is_filling {
                local.to_fill.insert(partition);
            }
        }
        self.exchanges.plan(local);
        self.begin_anew();
    }

    /// Operations go on under the new document, and messages that waited for it are heard.
    fn begin_anew(&mut self) {
        let operations: Vec<u64> = self.operations.keys().copied().collect();
        for operation in operations {
            self.with_operation(operation, |node, current| {
                let local = &mut node.local;
                match current {
                    Operation::Write(write) => write.on_document(local, &mut node.outcomes),
                    Operation::Read(read) => {
                        let ended = read.on_document(local);
                        node.read_ended(ended)
                    }
                    Operation::Exchange(exchange) => exchange.end(local),
                    Operation::Forward(_) | Operation::Hint(_) => Step::Continue,
                }
            });
        }
        for envelope in std::mem::take(&mut self.parked) {
            self.on_message(envelope);
        }
    }

    fn on_committed(&mut self, sequence: Sequence) {
        self.local.replica.committed(sequence);
        let whole = self.local.copies.committed(sequence);
        self.local.counters.copies_made_whole += u64::try_from(whole.len()).unwrap_or(u64::MAX);
        let later = self.local.waiting.split_off(&Sequence(sequence.0 + 1));
        let released = std::mem::replace(&mut self.local.waiting, later);
        for waiting in released.into_values().flatten() {
            match waiting {
                Waiting::Document(document) => self.adopt(document),
                Waiting::Message { .. } | Waiting::Event { .. } => self.local.release(waiting, true),
            }
        }
    }

    fn on_commit_failed(&mut self, sequence: Sequence) {
        let local = &mut self.local;
        local.counters.commits_failed += 1;
        let failed = local.replica.commit_failed(sequence);
        local.copies.commit_failed(sequence);
        local.peers.save_failed();
        for partition in failed.acknowledged {
            local.fill(partition);
        }
        let filling = local.copies.partitions().filter(|partition| !local.copies.is_whole(*partition));
        self.marks_lost.extend(filling);
        for waiting in local.waiting.remove(&sequence).unwrap_or_default() {
            match waiting {
                Waiting::Document(_) => {
                    self.adopting = None;
                    self.document_asked = None;
                }
                Waiting::Message { .. } | Waiting::Event { .. } => self.local.release(waiting, false),
            }
        }
    }

    /// Refuses new requests and leaves the mark of a stop in good order.
    fn stop(&mut self) {
        self.is_stopping = true;
        let (key, value) = clean_to_store(self.local.start);
        self.local.replica.put_meta(key, Some(value));
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
    /// None today; an engine that cannot read at all.
    pub fn record(&self, object: &ObjectKey) -> Result<Option<antientropy::version::Record>, ReadError> {
        match self.local.replica.held(object) {
            Held::Record(record) => Ok(Some(record)),
            Held::Nothing | Held::Damaged => Ok(None),
        }
    }

    /// Whether this node's copy of a partition is whole.
    #[must_use]
    pub fn copy_is_whole(&self, partition: PartitionId) -> bool {
        self.local.copies.is_whole(partition)
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
        !self.operations.values().any(is_request)
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

/// How long a request may take.
fn timeout(request: &Request) -> Duration {
    match request {
        Request::Put(put) => put.options.timeout,
        Request::Delete(delete) => delete.options.timeout,
        Request::Get(get) => get.options.timeout,
    }
}
