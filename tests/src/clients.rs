//! Clients: concurrent sessions that read, write, delete and try again, and what they remember between operations.
//!
//! A session keeps, for each key, the context of its last read or write of it, and the highest version counter that
//! it has seen in last-write-wins keyspaces. Every put stores a value that names the write, so that a checker can tell
//! from a read what it saw. A session whose write is left in doubt may try it again under the same id, at the same or
//! another node; it gives up on an attempt a little after the time that it set.

use std::time::Duration;

use antientropy::version::Counter;
use bytes::Bytes;
use client::{
    Delete, Get, GetReply, Level, Put, ReadOptions, ReadRepair, Reply, Request, RequestId, WriteError,
    WriteOptions, WriteReply,
};
use node::{ClientTag, Input};
use ring::{Durability, NodeId};

use crate::{
    history::{
        Acknowledgement, Attempt, ContextId, Found, KeyId, Outcome, Read, SeenContext, Write, WriteId,
        WriteKind,
    },
    schedule::Moment,
    world::{Event, World},
};

/// How much longer than its own timeout a request may take before the client gives up, at least.
const PATIENCE: Duration = Duration::from_millis(20);

/// A session.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    /// The context that it has for each key.
    contexts: Vec<Option<ContextId>>,
    /// The highest counter that it has seen where the last write wins.
    seen: u64,
    /// A write that was left in doubt and is to be tried again.
    retry: Option<(WriteId, Request)>,
}

/// A request of a client to a node.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// The session; none for a scenario's own.
    session: Option<usize>,
    pub(crate) host: usize,
    pub(crate) target: Target,
    request: Option<Request>,
    /// Whether the client knows the outcome, or has given up.
    pub(crate) is_over: bool,
}

/// What a call is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// An attempt of a write.
    Write { write: WriteId, attempt: usize },
    /// A read: its position in the history.
    Read(usize),
}

/// Everything about a write that the history keeps and the request does not say.
pub(crate) struct WriteNote {
    pub(crate) session: usize,
    pub(crate) context: Option<ContextId>,
    pub(crate) is_foreign: bool,
}

impl World {
    /// Starts the sessions.
    pub(crate) fn start_sessions(&mut self) {
        for session in 0..self.swarm.clients.sessions {
            let contexts = vec![None; self.history.keys.len()];
            self.sessions.push(Session { contexts, seen: 0, retry: None });
            let wait = self.client_random.duration(Duration::ZERO, self.swarm.clients.think_max);
            self.schedule.after(wait, Event::Step { session });
        }
    }

    /// Keys were added: no session has a context for them.
    pub(crate) fn remember_more_keys(&mut self) {
        for session in &mut self.sessions {
            session.contexts.resize(self.history.keys.len(), None);
        }
    }

    /// A session does its next operation.
    pub(crate) fn step_session(&mut self, session: usize) {
        if self.operations_left == 0 {
            return;
        }
        self.operations_left -= 1;
        let key = KeyId(self.client_random.below(self.history.keys.len()));
        let retry_permille = self.swarm.clients.retry_permille;
        if let Some((write, request)) = self.sessions[session].retry.take()
            && self.client_random.chance(retry_permille)
        {
            let same = self.history.writes[write.0].attempts.last().map(|attempt| attempt.node);
            let key = self.history.writes[write.0].key;
            let host = match self.client_random.chance(500) {
                true => self.hosts.iter().position(|host| Some(host.node) == same).unwrap_or(0),
                false => self.draw_host(key),
            };
            self.counts.add("retry");
            self.attempt(Some(session), host, write, request);
        } else if self.client_random.chance(self.swarm.clients.read_permille) {
            let host = self.draw_host(key);
            let get = self.draw_get(key);
            self.read(Some(session), host, key, get);
        } else {
            let host = self.draw_host(key);
            let (note, request) = self.draw_write(session, key);
            let write = self.begin_write(note, key, &request);
            self.attempt(Some(session), host, write, request);
        }
    }

    /// A replica of the key, mostly.
    fn draw_host(&mut self, key: KeyId) -> usize {
        let replicas: Vec<NodeId> = self.history.replicas(key, None).collect();
        if self.client_random.chance(200) || replicas.is_empty() {
            return self.client_random.below(self.hosts.len());
        }
        let node = *self.client_random.pick(&replicas);
        self.hosts.iter().position(|host| host.node == node).expect("members have machines")
    }

    fn draw_n(&mut self) -> Option<u8> {
        let asks = self.client_random.chance(self.swarm.clients.n_permille);
        asks.then(|| u8::try_from(self.client_random.between(1, 5)).expect("at most 5"))
    }

    fn draw_get(&mut self, key: KeyId) -> Get {
        let n = self.draw_n();
        let (random, plan) = (&mut self.client_random, &self.swarm.clients);
        let level = match *random.pick(&plan.levels) {
            Level::Any => Level::One,
            level => level,
        };
        let read_repair = *random.pick(&plan.repairs);
        let options = ReadOptions { level, n, read_repair, timeout: *random.pick(&plan.timeouts) };
        let object = &self.history.key(key).object;
        Get { keyspace: object.keyspace(), key: object.key(), options }
    }

    /// A put or a delete for the session to make.
    fn draw_write(&mut self, session: usize, key: KeyId) -> (WriteNote, Request) {
        let n = self.draw_n();
        let is_foreign = self.client_random.chance(self.swarm.clients.foreign_permille);
        let is_delete = self.client_random.chance(self.swarm.clients.delete_permille);
        let is_nameless = self.client_random.chance(self.swarm.clients.nameless_permille);
        let brings_context = self.client_random.chance(self.swarm.clients.context_permille);
        let own = self.sessions[session].contexts[key.0];
        let foreign = self.history.contexts.iter().rposition(|context| context.key != key).map(ContextId);
        let (context, is_foreign) = match (is_foreign, foreign) {
            (true, Some(foreign)) => (Some(foreign), true),
            _ => (own.filter(|_| brings_context), false),
        };
        let (random, plan) = (&mut self.client_random, &self.swarm.clients);
        let durability = random.chance(plan.durability_permille);
        let durability = durability.then(|| *random.pick(&[Durability::Disk, Durability::Memory]));
        let expires = random.chance(plan.expiry_permille);
        let life_ms = random.below(1500) as u64;
        let expires_unix_ms = expires.then_some(self.schedule.now().wall_ms() + life_ms);
        let is_sloppy = random.chance(plan.sloppy_permille);
        let number = self.history.writes.len();
        let options = WriteOptions {
            request: RequestId(if is_nameless { 0 } else { number as u128 + 1 }),
            context: context.map(|context| self.history.contexts[context.0].bytes.clone()),
            seen: (!self.history.keeps_siblings(key)).then_some(self.sessions[session].seen),
            level: *random.pick(&plan.levels),
            n,
            durability,
            is_sloppy,
            timeout: *random.pick(&plan.timeouts),
        };
        let object = &self.history.key(key).object;
        let (keyspace, key) = (object.keyspace(), object.key());
        let request = match is_delete {
            true => Request::Delete(Delete { keyspace, key, options }),
            false => {
                let value = encode_value(WriteId(number), random.below(40));
                Request::Put(Put { keyspace, key, value, expires_unix_ms, options })
            }
        };
        (WriteNote { session, context, is_foreign }, request)
    }

    /// Enters a write into the history.
    pub(crate) fn begin_write(&mut self, note: WriteNote, key: KeyId, request: &Request) -> WriteId {
        let (kind, options, expires_ms) = match request {
            Request::Put(put) => (WriteKind::Put, &put.options, put.expires_unix_ms),
            Request::Delete(delete) => (WriteKind::Delete, &delete.options, None),
            Request::Get(_) => unreachable!("a read is no write"),
        };
        let default = self.history.key(key).keyspace.durability;
        self.history.writes.push(Write {
            session: note.session,
            key,
            kind,
            n: options.n,
            level: options.level,
            durability: options.durability.unwrap_or(default),
            context: note.context,
            is_foreign: note.is_foreign,
            expires_ms,
            seen: options.seen,
            attempts: Vec::new(),
        });
        WriteId(self.history.writes.len() - 1)
    }

    /// Makes an attempt of a write.
    pub(crate) fn attempt(
        &mut self,
        session: Option<usize>,
        host: usize,
        write: WriteId,
        request: Request,
    ) -> usize {
        let sent = self.now();
        let node = self.hosts[host].node;
        let attempts = &mut self.history.writes[write.0].attempts;
        attempts.push(Attempt { node, sent, ended: Moment::NEVER, outcome: Outcome::Pending });
        let target = Target::Write { write, attempt: attempts.len() - 1 };
        self.call(session, host, target, request)
    }

    /// Reads.
    pub(crate) fn read(&mut self, session: Option<usize>, host: usize, key: KeyId, get: Get) -> usize {
        let options = &get.options;
        let copies = self.history.copies(key, options.n);
        let required =
            self.history.required(options.level, client::Operation::Read, &copies, self.hosts[host].node);
        let is_blocking = match options.read_repair {
            Some(mode) => mode == ReadRepair::Blocking,
            None => required.is_some_and(|required| 2 * required.total() > copies.total()),
        };
        self.history.reads.push(Read {
            session: session.unwrap_or(0),
            key,
            n: options.n,
            level: options.level,
            is_blocking,
            node: self.hosts[host].node,
            sent: self.now(),
            ended: Moment::NEVER,
            found: None,
        });
        self.call(session, host, Target::Read(self.history.reads.len() - 1), Request::Get(get))
    }

    fn call(&mut self, session: Option<usize>, host: usize, target: Target, request: Request) -> usize {
        let timeout = request.timeout();
        let call = self.calls.len();
        self.note_host(host, || format!("call {call} ({target:?}): {request:?}"));
        self.calls.push(Call { session, host, target, request: Some(request), is_over: false });
        if !self.client_link_fails() {
            let latency = self.network.latency(&self.swarm.network);
            self.schedule.after(latency, Event::Request { call });
        }
        let patience = self.client_random.duration(PATIENCE, 4 * PATIENCE);
        self.schedule.after(timeout + patience, Event::GiveUp { call });
        call
    }

    /// A request arrives at its node, or finds nobody there.
    pub(crate) fn request_arrives(&mut self, call: usize) {
        let Call { host, request, is_over, .. } = &self.calls[call];
        let (host, is_over) = (*host, *is_over);
        let Some(request) = request.clone() else { return };
        if self.hosts[host].process.is_some() {
            self.input(host, Input::Client { client: ClientTag(call as u64), request });
        } else if !is_over {
            self.end_call(call, Outcome::Refused, None);
        }
    }

    /// A reply arrives.
    pub(crate) fn reply_arrives(&mut self, call: usize, reply: Reply, holders: Option<Vec<NodeId>>) {
        if self.calls[call].is_over {
            return;
        }
        match (reply, self.calls[call].target) {
            (Reply::Write(Ok(reply)), Target::Write { write, .. }) => {
                self.acknowledged(call, write, &reply, holders)
            }
            (Reply::Write(Err(WriteError::Refused(refusal))), Target::Write { .. }) => {
                self.counts.add("write refused");
                self.note(|| format!("call {call} is refused: {refusal}"));
                self.end_call(call, Outcome::Refused, None);
            }
            (Reply::Write(Err(WriteError::InDoubt { .. })), Target::Write { .. }) => {
                self.counts.add("write in doubt");
                self.end_call(call, Outcome::InDoubt, None);
            }
            (Reply::Get(Ok(reply)), Target::Read(read)) => self.found(call, read, &reply),
            (Reply::Get(Err(_)), Target::Read(_)) => {
                self.counts.add("read failed");
                self.end_call(call, Outcome::Refused, None);
            }
            (reply, target) => panic!("a reply of another kind: {reply:?} to {target:?}"),
        }
    }

    fn acknowledged(
        &mut self,
        call: usize,
        write: WriteId,
        reply: &WriteReply,
        holders: Option<Vec<NodeId>>,
    ) {
        self.counts.add("write acknowledged");
        let Write { key, kind, context, .. } = self.history.writes[write.0];
        let context = reply.context.as_ref().map(|bytes| {
            let mut shown =
                context.map_or(Vec::new(), |context| self.history.contexts[context.0].shown.clone());
            if kind == WriteKind::Put {
                shown.push(write);
            }
            (key, bytes.clone(), shown)
        });
        let version = reply.version.map_or((0, 0), |version| (version.counter, version.actor));
        self.hash(&[5, call as u64, version.0, version.1]);
        self.saw(call, key, reply.version.map(|version| version.counter));
        let acknowledgement = Acknowledgement {
            version: reply.version,
            coordinator: reply.coordinator,
            stood_in: reply.stood_in,
            holders,
        };
        self.end_call(call, Outcome::Acknowledged(acknowledgement), context);
    }

    fn found(&mut self, call: usize, read: usize, reply: &GetReply) {
        self.counts.add("read answered");
        let key = self.history.reads[read].key;
        let mut found = Found { coordinator: reply.coordinator, values: Vec::new(), phantoms: 0 };
        for value in &reply.values {
            self.hash(&[6, call as u64, value.version.counter, value.version.actor]);
            match decode_value(&value.bytes).filter(|write| {
                self.history
                    .writes
                    .get(write.0)
                    .is_some_and(|write| write.key == key && write.kind == WriteKind::Put)
            }) {
                Some(write) => found.values.push((write, value.version)),
                None => found.phantoms += 1,
            }
        }
        let shown = found.values.iter().map(|(write, _)| *write).collect();
        self.saw(call, key, found.values.iter().map(|(_, version)| version.counter).max());
        self.history.reads[read].found = Some(found);
        self.end_call(call, Outcome::Refused, Some((key, reply.context.clone(), shown)));
    }

    /// A session sees a version.
    fn saw(&mut self, call: usize, key: KeyId, counter: Option<u64>) {
        if let (Some(session), Some(counter)) = (self.calls[call].session, counter)
            && !self.history.keeps_siblings(key)
        {
            let seen = &mut self.sessions[session].seen;
            *seen = (*seen).max(counter).min(Counter::MAX.0);
        }
    }

    /// A client's connection breaks: what it had asked for is in doubt.
    pub(crate) fn connection_broke(&mut self, call: usize) {
        if !self.calls[call].is_over {
            self.counts.add("connection broken");
            self.end_call(call, Outcome::InDoubt, None);
        }
    }

    /// A client's patience ends.
    pub(crate) fn give_up(&mut self, call: usize) {
        if !self.calls[call].is_over {
            self.counts.add("given up");
            self.end_call(call, Outcome::InDoubt, None);
        }
    }

    /// The client knows how its call ended; its session goes on. What a read found is already in the history.
    fn end_call(&mut self, call: usize, outcome: Outcome, context: Option<(KeyId, Bytes, Vec<WriteId>)>) {
        let now = self.now();
        let Call { session, target, request, is_over, .. } = &mut self.calls[call];
        *is_over = true;
        let (session, target, request) = (*session, *target, request.take());
        let in_doubt = outcome == Outcome::InDoubt;
        let key = match target {
            Target::Write { write, attempt } => {
                let attempt = &mut self.history.writes[write.0].attempts[attempt];
                (attempt.ended, attempt.outcome) = (now, outcome);
                self.history.writes[write.0].key
            }
            Target::Read(read) => {
                self.history.reads[read].ended = now;
                self.history.reads[read].key
            }
        };
        let context = context.map(|(key, bytes, shown)| {
            self.history.contexts.push(SeenContext { key, bytes, shown });
            ContextId(self.history.contexts.len() - 1)
        });
        let Some(index) = session else { return };
        let session = &mut self.sessions[index];
        if context.is_some() {
            session.contexts[key.0] = context;
        }
        if let (Target::Write { write, .. }, true, Some(request)) = (target, in_doubt, request)
            && !is_nameless(&request)
        {
            session.retry = Some((write, request));
        }
        let wait = self.client_random.duration(Duration::ZERO, self.swarm.clients.think_max);
        self.schedule.after(wait, Event::Step { session: index });
    }
}

/// Whether a write's retries are not recognised: such a write is not tried again.
fn is_nameless(request: &Request) -> bool {
    match request {
        Request::Put(put) => put.options.request == RequestId(0),
        Request::Delete(delete) => delete.options.request == RequestId(0),
        Request::Get(_) => true,
    }
}

/// The value of a write: its number, and so many bytes more.
#[must_use]
pub fn encode_value(write: WriteId, more: usize) -> Bytes {
    let mut bytes = (write.0 as u64).to_be_bytes().to_vec();
    bytes.resize(8 + more, 0x5a);
    bytes.into()
}

/// The write that a value names.
#[must_use]
pub fn decode_value(value: &[u8]) -> Option<WriteId> {
    let number = u64::from_be_bytes(*value.first_chunk()?);
    usize::try_from(number).ok().map(WriteId)
}
