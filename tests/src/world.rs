//! The simulated world: machines, network, clients and faults on one virtual clock.
//!
//! One event at a time: a message arrives, a process takes a turn, a sync ends, a client asks or gives up, a fault
//! strikes. Everything that is random comes from the seed, and nothing iterates in an order that differs between
//! runs, so a seed is a history. The nodes are the real ones; what surrounds them here is what the daemon's shell,
//! the kernel and the hardware do elsewhere.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use client::{
    Reply,
    wire::{ControlError, ControlReply},
};
use node::{
    ClientTag, DATAGRAM_BYTES_MAX, Formation, Identity, Input, Node, Output, PlantedBug, Wake,
    message::{Envelope, Message},
    storage::{MemoryEngine, Store},
};
use ring::{ClusterDocument, NodeId, StoreId};

use crate::{
    administrator::Creation,
    clients::{Call, Session},
    counts::Counts,
    damage::Heard,
    faults::Fault,
    formation::{draw_skew, formation, founding_document, keys},
    history::{ClockSet, History},
    host::Host,
    network::Network,
    random::{Random, Stream},
    schedule::{Moment, Schedule},
    swarm::Swarm,
};

/// More events than any run that makes progress: a run that reaches it goes round in circles.
const EVENTS_MAX: u64 = 3_000_000;

/// Something that happens. Those that concern a process carry its incarnation, and come to nothing once it is gone.
#[derive(Debug)]
pub(crate) enum Event {
    /// A process handles what arrived.
    Turn { host: usize, incarnation: u32 },
    /// A process asked to be woken.
    Wake { host: usize, incarnation: u32 },
    /// A sync ends.
    Synced { host: usize, incarnation: u32 },
    /// A message arrives.
    Deliver(Box<Delivery>),
    /// A client's request arrives.
    Request { call: usize },
    /// A reply arrives at a client.
    Reply { call: usize, reply: Box<Reply>, holders: Option<Vec<NodeId>> },
    /// A client finds its connection broken.
    Broken { call: usize },
    /// A client's patience ends.
    GiveUp { call: usize },
    /// A session does its next operation.
    Step { session: usize },
    /// A process hears that a peer has stopped in good order.
    Left { host: usize, incarnation: u32, peer: NodeId },
    /// A packet about who is up arrives.
    Datagram(Box<Datagram>),
    /// A kind of fault strikes.
    Fault(Fault),
    /// A machine starts again.
    Start { host: usize },
    /// A process goes on.
    Resume { host: usize, incarnation: u32 },
    /// A partition ends.
    Mend { generation: u64 },
    /// A disk can be read again.
    ReadsRecover { host: usize },
    /// The administrator looks after the cluster.
    Administer,
    /// The administrator wants another keyspace.
    Create,
    /// A change that the administrator asks for arrives.
    ChangeArrives { request: usize, host: usize, timeout: Duration },
    /// Its outcome arrives, or the administrator gives up.
    ChangeEnds { request: usize, outcome: Option<Box<Result<ControlReply, ControlError>>> },
}

/// A message on its way.
#[derive(Clone, Debug)]
pub(crate) struct Delivery {
    from: usize,
    from_incarnation: u32,
    to: usize,
    to_incarnation: u32,
    envelope: Envelope,
}

/// A packet on its way. It is part of a connection between two processes, and only the one at its end can read it.
#[derive(Clone, Debug)]
pub(crate) struct Datagram {
    from: usize,
    to: usize,
    to_incarnation: u32,
    packet: Bytes,
}

/// The world. See the module's documentation.
pub struct World {
    pub(crate) swarm: Swarm,
    pub(crate) schedule: Schedule<Event>,
    pub(crate) hosts: Vec<Host>,
    pub(crate) network: Network,
    pub(crate) sessions: Vec<Session>,
    pub(crate) calls: Vec<Call>,
    /// Operations that sessions have yet to begin.
    pub(crate) operations_left: usize,
    /// The founding document, as it is expected if founders form it; or the newest that a scenario handed out.
    pub(crate) document: Arc<ClusterDocument>,
    /// What the founders are configured with, if they form the cluster.
    formation: Option<Formation>,
    /// Keyspaces that are being created, or were.
    pub(crate) creations: Vec<Creation>,
    /// Whether the administrator looks after the cluster.
    pub(crate) is_administered: bool,
    pub(crate) admin_random: Random,
    pub(crate) client_random: Random,
    pub(crate) fault_random: Random,
    node_random: Random,
    bug: Option<PlantedBug>,
    /// Faults are over.
    pub(crate) is_quiet: bool,
    /// When they did.
    pub(crate) healed: Moment,
    pub(crate) history: History,
    /// How far each process has heard each peer's store to have come, by receiver and sender.
    pub(crate) heard: Vec<Vec<Heard>>,
    pub(crate) counts: Counts,
    trace_hash: u64,
    trace: Option<Vec<String>>,
    /// Outputs of the turn at hand; kept for its memory.
    outputs: Vec<Output>,
}

impl World {
    /// A world of this shape with its nodes started and its cluster founded.
    #[must_use]
    pub fn new(seed: u64, swarm: Swarm, bug: Option<PlantedBug>, traced: bool) -> World {
        let mut node_random = Random::new(seed, Stream::Nodes);
        let mut fault_random = Random::new(seed, Stream::Faults);
        let stores: Vec<StoreId> = (0..swarm.nodes).map(|_| StoreId(node_random.bits())).collect();
        let document = Arc::new(founding_document(&swarm, &stores));
        let history = History::new(Arc::clone(&document), keys(&swarm, &document));
        let hosts = document.members.iter().map(|(&node, member)| {
            let mut host =
                Host::new(node, member.datacenter, MemoryEngine::new(member.store).inspector(), swarm.nodes);
            if swarm.faults.clock.is_some() && !swarm.faults.one_clock_alone {
                host.skew_ms = draw_skew(&mut fault_random, swarm.faults.skew_ms_max);
            }
            host
        });
        let mut world = World {
            schedule: Schedule::new(),
            hosts: hosts.collect(),
            network: Network::new(Random::new(seed, Stream::Network), swarm.nodes),
            sessions: Vec::new(),
            calls: Vec::new(),
            operations_left: swarm.clients.operations,
            document,
            formation: swarm.documents.is_formed.then(|| formation(&swarm)),
            creations: Vec::new(),
            is_administered: false,
            admin_random: Random::new(seed, Stream::Administrator),
            client_random: Random::new(seed, Stream::Clients),
            fault_random,
            node_random,
            bug,
            is_quiet: false,
            healed: Moment::NEVER,
            history,
            heard: vec![vec![Heard::default(); swarm.nodes]; swarm.nodes],
            counts: Counts::default(),
            trace_hash: seed,
            trace: traced.then(Vec::new),
            outputs: Vec::new(),
            swarm,
        };
        world.history.clocks_are_right = world.swarm.faults.clock.is_none();
        world.history.beyond_the_promise = world.swarm.faults.beyond_the_promise;
        let drift_max = world.swarm.settings.clock_drift_max;
        world.history.clock_drift_max_ms = (drift_max < Duration::from_secs(60))
            .then(|| drift_max.as_millis().try_into().unwrap_or(u64::MAX));
        for host in 0..world.hosts.len() {
            let skew_ms = world.hosts[host].skew_ms;
            world.set_clock(host, skew_ms);
            let (node, store) = (world.hosts[host].node, world.hosts[host].disk.id());
            world.history.stores.push((node, world.now(), store));
            if world.swarm.documents.is_formed {
                let wait = world.admin_random.duration(Duration::ZERO, world.swarm.documents.start_max);
                world.schedule.after(wait, Event::Start { host });
            } else {
                world.start(host);
                world.input(host, Input::Document(Arc::clone(&world.document)));
            }
        }
        world
    }

    /// Sets a machine's clock.
    pub(crate) fn set_clock(&mut self, host: usize, skew_ms: i64) {
        let at = self.now();
        let host = &mut self.hosts[host];
        host.skew_ms = skew_ms;
        self.history.clocks.push(ClockSet { node: host.node, at, skew_ms });
    }

    /// What happened so far.
    #[must_use]
    pub fn history(&self) -> &History {
        &self.history
    }

    /// How often.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// The present.
    #[must_use]
    pub fn now(&self) -> Moment {
        self.schedule.now()
    }

    /// A number that two runs share only if they are the same.
    #[must_use]
    pub fn trace_hash(&self) -> u64 {
        self.trace_hash
    }

    /// What happened, to be read by people; empty if the world was not made to keep it.
    #[must_use]
    pub fn trace(&self) -> &[String] {
        self.trace.as_deref().unwrap_or_default()
    }

    /// Lets everything happen up to a moment.
    pub fn run_until(&mut self, until: Moment) {
        while self.step(until) {}
    }

    /// Lets everything happen for so long.
    pub fn run_for(&mut self, time: Duration) {
        self.run_until(self.now().after(time));
    }

    /// Lets the next thing happen, if anything does before `until`.
    ///
    /// # Panics
    ///
    /// If the run goes round in circles.
    pub fn step(&mut self, until: Moment) -> bool {
        let Some(event) = self.schedule.next(until) else { return false };
        self.counts.events += 1;
        assert!(self.counts.events < EVENTS_MAX, "the run goes round in circles: {:?}", self.wakes());
        self.dispatch(event);
        true
    }

    /// When each running node wants to be woken, and why.
    fn wakes(&self) -> Vec<(NodeId, Option<(Duration, Wake)>)> {
        let running = self.hosts.iter().filter_map(|host| Some((host.node, host.process.as_ref()?)));
        running.map(|(node, process)| (node, process.node.poll_timeout())).collect()
    }

    fn dispatch(&mut self, event: Event) {
        match event {
            Event::Turn { host, incarnation } => {
                if self.is_running(host, incarnation) {
                    self.turn(host);
                }
            }
            Event::Wake { host, incarnation } => {
                if self.is_running(host, incarnation) {
                    self.wake(host);
                }
            }
            Event::Synced { host, incarnation } => {
                if self.hosts[host].incarnation == incarnation {
                    self.synced(host);
                }
            }
            Event::Deliver(delivery) => self.deliver(*delivery),
            Event::Left { host, incarnation, peer } => {
                if self.hosts[host].incarnation == incarnation {
                    self.input(host, Input::Left(peer));
                }
            }
            Event::Datagram(datagram) => self.deliver_datagram(*datagram),
            Event::Request { call } => self.request_arrives(call),
            Event::Reply { call, reply, holders } => self.reply_arrives(call, *reply, holders),
            Event::Broken { call } => self.connection_broke(call),
            Event::GiveUp { call } => self.give_up(call),
            Event::Step { session } => self.step_session(session),
            Event::Fault(fault) => self.strike(fault),
            Event::Start { host } => {
                if self.hosts[host].process.is_none() {
                    self.start(host);
                }
            }
            Event::Resume { host, incarnation } => {
                if self.hosts[host].incarnation == incarnation {
                    self.resume(host);
                }
            }
            Event::Mend { generation } => {
                if self.network.generation == generation {
                    self.network.mend();
                    self.note(|| "the network is whole again".to_owned());
                }
            }
            Event::ReadsRecover { host } => {
                self.hosts[host].disk.fail_reads(false);
                self.note_host(host, || "can read its disk again".to_owned());
            }
            Event::Administer => self.administer(),
            Event::Create => self.begin_creation(),
            Event::ChangeArrives { request, host, timeout } => self.change_arrives(request, host, timeout),
            Event::ChangeEnds { request, outcome } => self.change_ends(request, outcome),
        }
    }

    fn is_running(&self, host: usize, incarnation: u32) -> bool {
        let host = &self.hosts[host];
        host.incarnation == incarnation && host.process.as_ref().is_some_and(|process| !process.is_paused)
    }

    /// Starts a machine's process on its disk as it is.
    pub(crate) fn start(&mut self, index: usize) {
        let seeds =
            self.hosts.iter().map(|host| host.node).filter(|node| *node != self.hosts[index].node).collect();
        let formation = self.formation.clone();
        let identity =
            Identity { node: self.hosts[index].node, seeds, formation, seed: self.node_random.seed() };
        let (settings, bug) = (self.swarm.settings.clone(), self.bug);
        let host = &mut self.hosts[index];
        let disk = host.disk.handle();
        host.start(self.schedule.now(), |now| match bug {
            Some(bug) => Node::with_planted_bug(identity, settings, disk, now, bug),
            None => Node::open(identity, settings, disk, now),
        });
        self.hash(&[1, index as u64]);
        self.note_host(index, || "starts".to_owned());
        self.finish_turn(index);
    }

    /// Puts an input into a process's inbox, and has it take a turn soon.
    pub(crate) fn input(&mut self, index: usize, input: Input) {
        let host = &mut self.hosts[index];
        let Some(process) = &mut host.process else { return };
        process.has_failure |= matches!(input, Input::CommitFailed(_));
        process.inbox.push(input);
        if !process.is_turn_due && !process.is_paused {
            process.is_turn_due = true;
            let turn = Event::Turn { host: index, incarnation: host.incarnation };
            self.schedule.after(self.swarm.turn_delay, turn);
        }
    }

    /// A process handles all that arrived.
    pub(crate) fn turn(&mut self, index: usize) {
        let now = self.schedule.now();
        let failing = self.hosts[index]
            .process
            .as_mut()
            .is_some_and(|process| std::mem::take(&mut process.has_failure));
        let before = failing.then(|| self.live_records(index));
        let host = &mut self.hosts[index];
        let clock = host.now(now);
        let Some(process) = &mut host.process else { return };
        process.is_turn_due = false;
        for input in process.inbox.drain(..) {
            process.node.handle(clock, input);
        }
        self.finish_turn(index);
        if let Some(before) = before {
            self.record_failed_batch(index, &before);
        }
    }

    /// A process's deadline may have come.
    fn wake(&mut self, index: usize) {
        let now = self.schedule.now();
        let host = &mut self.hosts[index];
        let clock = host.now(now);
        let Some(process) = &mut host.process else { return };
        // An earlier wish that was overtaken: another wake-up is scheduled.
        if process.wake_at != now {
            return;
        }
        process.wake_at = Moment::NEVER;
        if process.node.poll_timeout().is_some_and(|(deadline, _)| deadline <= clock.monotonic) {
            process.node.handle_timeout(clock);
        }
        self.finish_turn(index);
    }

    /// Carries out what a node wants done after its inputs.
    fn finish_turn(&mut self, index: usize) {
        let mut outputs = std::mem::take(&mut self.outputs);
        if let Some(process) = &mut self.hosts[index].process {
            outputs.extend(std::iter::from_fn(|| process.node.poll_output()));
        }
        for output in outputs.drain(..) {
            match output {
                Output::Reply { client, reply } => self.reply(index, client, reply),
                Output::Changed { client, outcome } => self.changed(index, client, outcome),
                Output::Send { to, envelope } => self.send(index, to, envelope),
                Output::Datagram { to, packet } => self.send_datagram(index, to, packet),
                Output::Hurry => {}
                Output::Commit(batch) => {
                    self.hash(&[2, index as u64, batch.sequence.0, batch.changes.len() as u64]);
                    self.hosts[index].disk.submit(batch);
                    self.begin_sync(index);
                }
            }
        }
        self.outputs = outputs;
        self.schedule_wake(index);
        self.note_document(index);
        self.notice_regressions(index);
        self.finish_stop(index);
    }

    fn schedule_wake(&mut self, index: usize) {
        let host = &mut self.hosts[index];
        let Some(process) = &mut host.process else { return };
        let Some((deadline, _)) = process.node.poll_timeout() else { return };
        let at = process.moment(deadline).max(self.schedule.now());
        if at < process.wake_at {
            process.wake_at = at;
            self.schedule.at(at, Event::Wake { host: index, incarnation: host.incarnation });
        }
    }

    /// Begins a sync if there is something to sync and none is under way.
    fn begin_sync(&mut self, index: usize) {
        let host = &mut self.hosts[index];
        let Some(process) = &mut host.process else { return };
        if process.is_sync_under_way || host.disk.pending() == 0 {
            return;
        }
        process.is_sync_under_way = true;
        let disks = &self.swarm.disks;
        let wait = self.fault_random.duration(disks.sync_min, disks.sync_max);
        self.schedule.after(wait, Event::Synced { host: index, incarnation: host.incarnation });
    }

    /// A sync ends, well or not. A process that stands still hears of it later.
    fn synced(&mut self, index: usize) {
        let fails = !self.is_quiet && self.fault_random.chance(self.swarm.disks.fail_permille);
        let joins = self.fault_random.chance(self.swarm.disks.joined_permille);
        let host = &mut self.hosts[index];
        let Some(process) = &mut host.process else { return };
        process.is_sync_under_way = false;
        let outcome = if fails {
            self.counts.add("batch refused");
            let refused = host.disk.fail_next();
            // All that was made before this is heard of goes with it.
            while host.disk.fail_next().is_some() {}
            refused.map(Input::CommitFailed)
        } else if joins {
            let mut last = None;
            while let Some(sequence) = host.disk.commit_next() {
                last = Some(sequence);
            }
            last.map(Input::Committed)
        } else {
            host.disk.commit_next().map(Input::Committed)
        };
        if let Some(outcome) = outcome {
            self.note_host(index, || format!("{outcome:?}"));
            self.input(index, outcome);
        }
        self.begin_sync(index);
    }

    /// A node sends a message.
    fn send(&mut self, index: usize, to: NodeId, envelope: Envelope) {
        let Some(target) = self.hosts.iter().position(|host| host.node == to) else { return };
        self.watch_vote(index, &envelope);
        let fate = self.network.fate(&self.swarm.network);
        let delivery = Delivery {
            from: index,
            from_incarnation: self.hosts[index].incarnation,
            to: target,
            to_incarnation: self.hosts[target].incarnation,
            envelope,
        };
        if let Some(second) = fate.second {
            self.schedule.after(second, Event::Deliver(Box::new(delivery.clone())));
        }
        if let Some(first) = fate.first {
            self.schedule.after(first, Event::Deliver(Box::new(delivery)));
        }
    }

    fn send_datagram(&mut self, from: usize, to: NodeId, packet: Bytes) {
        let Some(to) = self.hosts.iter().position(|host| host.node == to) else { return };
        assert!(packet.len() <= DATAGRAM_BYTES_MAX, "no packet is longer");
        let fate = self.network.fate(&self.swarm.network);
        let datagram = Datagram { from, to, to_incarnation: self.hosts[to].incarnation, packet };
        for arrival in [fate.first, fate.second].into_iter().flatten() {
            self.schedule.after(arrival, Event::Datagram(Box::new(datagram.clone())));
        }
    }

    /// A process that has stopped in good order says goodbye to those that it can reach.
    pub(crate) fn say_goodbye(&mut self, from: usize) {
        let peer = self.hosts[from].node;
        for host in 0..self.hosts.len() {
            if host != from && self.network.connects(from, host) {
                let incarnation = self.hosts[host].incarnation;
                let latency = self.network.latency(&self.swarm.network);
                self.schedule.after(latency, Event::Left { host, incarnation, peer });
            }
        }
    }

    fn deliver_datagram(&mut self, datagram: Datagram) {
        let Datagram { from, to, to_incarnation, packet } = datagram;
        if self.network.connects(from, to) && self.hosts[to].incarnation == to_incarnation {
            self.hash(&[4, from as u64, to as u64, packet.len() as u64]);
            let from = self.hosts[from].node;
            self.input(to, Input::Datagram { from, packet });
        }
    }

    fn deliver(&mut self, delivery: Delivery) {
        let Delivery { from, from_incarnation, to, to_incarnation, envelope } = delivery;
        if !self.network.connects(from, to) || self.hosts[to].process.is_none() {
            return;
        }
        if !self.hosts[to].accepts(from, from_incarnation, to_incarnation) {
            return;
        }
        self.hash(&[3, from as u64, to as u64, envelope.header.synced.0]);
        self.note_host(to, || {
            let from = envelope.header.from;
            format!(
                "<- {from} at {} synced {}: {:?}",
                envelope.header.epoch, envelope.header.synced.0, envelope.message
            )
        });
        self.note_heard(from, to, &envelope);
        if let (Message::Welcome { start, .. }, Some(process)) =
            (&envelope.message, &mut self.hosts[to].process)
            && *start == process.node.start_id()
        {
            process.welcomed.insert(envelope.header.from);
        }
        self.input(to, Input::Peer(envelope));
    }

    /// A process that stood still goes on.
    pub(crate) fn resume(&mut self, index: usize) {
        let host = &mut self.hosts[index];
        let Some(process) = &mut host.process else { return };
        process.is_paused = false;
        process.is_turn_due = true;
        process.wake_at = Moment::NEVER;
        self.note_host(index, || "goes on".to_owned());
        let incarnation = self.hosts[index].incarnation;
        self.schedule.after(Duration::ZERO, Event::Turn { host: index, incarnation });
    }

    /// A node answers a client.
    fn reply(&mut self, index: usize, client: ClientTag, reply: Reply) {
        let call = usize::try_from(client.0).expect("a call's number");
        let holders = self.holders(call, &reply);
        self.note_host(index, || format!("answers call {call}: {reply:?}, on disk at {holders:?}"));
        if self.client_link_fails() {
            return;
        }
        let latency = self.network.latency(&self.swarm.network);
        self.schedule.after(latency, Event::Reply { call, reply: Box::new(reply), holders });
    }

    /// Whether a message between a client and a node is lost.
    pub(crate) fn client_link_fails(&mut self) -> bool {
        !self.is_quiet && self.client_random.chance(self.swarm.clients.loss_permille)
    }

    /// Folds numbers into the trace's hash.
    pub(crate) fn hash(&mut self, numbers: &[u64]) {
        let mut hash = self.trace_hash ^ self.schedule.now().0;
        for number in numbers {
            hash = (hash ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        }
        self.trace_hash = hash;
    }

    /// Adds a line to the trace, if one is kept.
    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{} {}", self.schedule.now(), line()));
        }
    }

    /// Adds a line about a machine to the trace, if one is kept.
    pub(crate) fn note_host(&mut self, index: usize, line: impl FnOnce() -> String) {
        if self.trace.is_some() {
            let node = self.hosts[index].node;
            self.note(|| format!("{node} {}", line()));
        }
    }
}
