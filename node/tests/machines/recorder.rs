//! Clients that write down what they did and saw, as the simulator's do, so that the same checkers read it.
//!
//! Keys have nothing to do with each other, so each has a history of its own: checkers that compare everything with
//! everything stay quick.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use antientropy::version::Record;
use bytes::Bytes;
use client::{Client, Context, Found, KeyspaceHandle, Level, ReadFailure, ReadRepair, WriteFailure, Written};
use node::{
    shell::disk::{DiskOptions, DiskStore},
    storage::{ObjectKey, Store, read_document, read_record},
};
use quorate_tests::{
    checkers::{Checker, Violation, check},
    decode_value, encode_value,
    history::{
        Acknowledgement, Attempt, ContextId, Ending, History, Key, KeyId, Outcome, Read, SeenContext, Write,
        WriteId, WriteKind,
    },
    schedule::Moment,
};
use ring::{ClusterDocument, Durability, NodeId, StoreId};

use super::{Dice, Machines};

/// The only key of a history.
const KEY: KeyId = KeyId(0);
/// Keys in each keyspace.
const KEYS: usize = 60;
/// Of so many keys one is deleted now and then, and of so many one by deletes without a context too.
const DELETED_ONE_IN: usize = 4;
const BLINDLY_DELETED_ONE_IN: usize = 12;
/// Values have so many bytes, at most.
const VALUE_BYTES_MAX: usize = 48 << 10;
/// How long a request may take.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How long to wait between two requests, at most.
const THINK: Duration = Duration::from_millis(60);
/// How long replicas may take to become equal when faults are over.
const CONVERGE_TIMEOUT: Duration = Duration::from_secs(60);

/// What clients may do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Habits {
    /// Whether writes may be acknowledged by one replica: that is as durable as one disk.
    pub(crate) may_write_to_one: bool,
}

/// What all clients have written down.
pub(crate) struct Recorder {
    began: Instant,
    logs: Vec<RefCell<History>>,
    /// The bytes of every value that was ever sent, by key and write.
    values: Vec<RefCell<BTreeMap<WriteId, Bytes>>>,
    names: Vec<(KeyspaceHandle, String)>,
    pub(crate) is_over: Cell<bool>,
    pub(crate) answered: Cell<u64>,
    pub(crate) failed: Cell<u64>,
}

/// What one client remembers of a key.
type Remembered = (Context, ContextId);

impl Recorder {
    /// Nothing is written down yet.
    pub(crate) fn new(began: Instant, client: &Client) -> Recorder {
        let document = client.document();
        let mut logs = Vec::new();
        let mut names = Vec::new();
        for keyspace in ["default", "registers"] {
            let handle = client.keyspace(keyspace).unwrap();
            let (id, settings) = document.keyspace_named(keyspace).unwrap();
            for number in 0..KEYS {
                let name = format!("key-{number}");
                let object = ObjectKey::new(id, name.as_bytes());
                let partition = object.partition(document.partitions);
                let key = Key { object, partition, keyspace: settings.clone() };
                logs.push(RefCell::new(History::new(Arc::clone(&document), vec![key])));
                names.push((handle.clone(), name));
            }
        }
        let (answered, failed) = (Cell::new(0), Cell::new(0));
        let values = logs.iter().map(|_| RefCell::default()).collect();
        Recorder { began, logs, values, names, is_over: Cell::new(false), answered, failed }
    }

    fn now(&self) -> Moment {
        Moment::default().after(self.began.elapsed())
    }

    fn count(&self, is_answered: bool) {
        let counter = if is_answered { &self.answered } else { &self.failed };
        counter.set(counter.get() + 1);
    }

    /// Reads and writes until it is over.
    pub(crate) async fn work(self: Rc<Self>, session: usize, habits: Habits, mut dice: Dice) {
        let mut remembered: Vec<Option<Remembered>> = self.logs.iter().map(|_| None).collect();
        while !self.is_over.get() {
            let key = dice.index(self.logs.len());
            let memory = &mut remembered[key];
            if dice.below(100) < 50 {
                self.read(session, key, memory, &mut dice).await;
            } else {
                self.write(session, key, memory, habits, &mut dice).await;
            }
            tokio::time::sleep(dice.time(Duration::ZERO, THINK)).await;
        }
    }

    async fn read(&self, session: usize, key: usize, memory: &mut Option<Remembered>, dice: &mut Dice) {
        let level = match dice.below(10) {
            0 => Level::One,
            1 => Level::All,
            _ => Level::Quorum,
        };
        let is_blocking = dice.below(4) == 0;
        let (handle, name) = &self.names[key];
        let mut get = handle.get(name.clone()).r(level).timeout(TIMEOUT);
        if is_blocking {
            get = get.read_repair(ReadRepair::Blocking);
        }
        let (node, n, found) = (NodeId(0), None, None);
        let read = Read {
            session,
            key: KEY,
            n,
            level,
            is_blocking,
            node,
            sent: self.now(),
            ended: Moment::NEVER,
            found,
        };
        let number = {
            let mut log = self.logs[key].borrow_mut();
            log.reads.push(read);
            log.reads.len() - 1
        };
        let got: Result<Found, ReadFailure> = get.send().await;
        self.count(got.is_ok());
        let Ok(got) = got else { return };
        let mut log = self.logs[key].borrow_mut();
        let sent = self.values[key].borrow();
        // What is not, to the last byte, what was written under this key was never written.
        let written = |bytes: &Bytes| decode_value(bytes).filter(|write| sent.get(write) == Some(bytes));
        let values = got.values.iter().map(|value| (written(&value.bytes), value.version));
        let (known, unknown): (Vec<_>, Vec<_>) = values.partition(|(write, _)| write.is_some());
        let values: Vec<_> = known.into_iter().map(|(write, version)| (write.unwrap(), version)).collect();
        let shown = values.iter().map(|(write, _)| *write).collect();
        let found =
            quorate_tests::history::Found { coordinator: got.coordinator, values, phantoms: unknown.len() };
        log.reads[number].ended = self.now();
        log.reads[number].node = got.coordinator;
        log.reads[number].found = Some(found);
        *memory = Some(remember(&mut log, got.context, shown));
    }

    async fn write(
        &self,
        session: usize,
        key: usize,
        memory: &mut Option<Remembered>,
        habits: Habits,
        dice: &mut Dice,
    ) {
        let level = match dice.below(12) {
            0 if habits.may_write_to_one => Level::One,
            1 if habits.may_write_to_one => Level::Any,
            2 => Level::All,
            _ => Level::Quorum,
        };
        // A delete whose end nobody knows excuses much, and one that carries no context excuses everything: only some keys
        // are ever deleted, and fewer blindly.
        let is_deleted = key.is_multiple_of(DELETED_ONE_IN) && dice.below(4) == 0;
        let kind = if is_deleted { WriteKind::Delete } else { WriteKind::Put };
        let is_sloppy = dice.below(4) == 0;
        let retries = kind == WriteKind::Put && dice.below(3) == 0;
        // Values that were not seen pile up, so most are replaced.
        let carried = if dice.below(10) < 7 { memory.take() } else { None };
        if is_deleted && carried.is_none() && !key.is_multiple_of(BLINDLY_DELETED_ONE_IN) {
            return;
        }
        let (context, context_id) = carried.map_or((None, None), |(context, id)| (Some(context), Some(id)));
        let write = Write {
            session,
            key: KEY,
            kind,
            n: None,
            level,
            durability: Durability::Disk,
            context: context_id,
            is_foreign: false,
            expires_ms: None,
            seen: None,
            attempts: Vec::new(),
        };
        let mut attempts = vec![self.attempt()];
        if retries {
            // The library may have made several, of which any may have happened.
            attempts.insert(0, Attempt { outcome: Outcome::InDoubt, ..self.attempt() });
        }
        let last = attempts.len() - 1;
        let id = {
            let mut log = self.logs[key].borrow_mut();
            log.writes.push(Write { attempts, ..write });
            WriteId(log.writes.len() - 1)
        };
        let (handle, name) = &self.names[key];
        macro_rules! send {
            ($builder:expr) => {{
                let mut builder =
                    $builder.w(level).sloppy(is_sloppy).retry_in_doubt(retries).timeout(TIMEOUT);
                if let Some(context) = context {
                    builder = builder.context(context);
                }
                builder.send().await
            }};
        }
        let written: Result<Written, WriteFailure> = match kind {
            WriteKind::Put => {
                // Of different sizes, so that tables are written and merged too; and each of its own key.
                let more = if dice.below(4) == 0 { dice.index(VALUE_BYTES_MAX) } else { dice.index(200) };
                let value = [&encode_value(id, more)[..], name.as_bytes()].concat();
                let value = Bytes::from(value);
                self.values[key].borrow_mut().insert(id, value.clone());
                send!(handle.put(name.clone(), value))
            }
            WriteKind::Delete => send!(handle.delete(name.clone())),
        };
        self.count(written.is_ok());
        let mut log = self.logs[key].borrow_mut();
        let ended = self.now();
        let (node, outcome) = match &written {
            Ok(written) => {
                let (version, coordinator) = (written.version, written.coordinator);
                let by = Acknowledgement { version, coordinator, stood_in: written.stood_in, holders: None };
                (coordinator, Outcome::Acknowledged(by))
            }
            Err(WriteFailure::InDoubt(_)) => (NodeId(0), Outcome::InDoubt),
            Err(WriteFailure::Refused(_) | WriteFailure::Unreachable(_)) => (NodeId(0), Outcome::Refused),
        };
        if matches!(outcome, Outcome::Refused) {
            // The library says so of all attempts together.
            log.writes[id.0].attempts.truncate(1);
        }
        let last = last.min(log.writes[id.0].attempts.len() - 1);
        let sent = log.writes[id.0].attempts[last].sent;
        log.writes[id.0].attempts[last] = Attempt { node, sent, ended, outcome };
        if let Ok(Written { context: Some(context), .. }) = written {
            let mut shown = context_id.map_or_else(Vec::new, |id| log.contexts[id.0].shown.clone());
            if kind == WriteKind::Put {
                shown.push(id);
            }
            *memory = Some(remember(&mut log, context, shown));
        }
    }

    fn attempt(&self) -> Attempt {
        Attempt { node: NodeId(0), sent: self.now(), ended: Moment::NEVER, outcome: Outcome::Pending }
    }

    /// Waits until the replicas of every key hold the same, as they say themselves.
    pub(crate) async fn converge(&self, client: &Client) -> Ending {
        let began = Instant::now();
        loop {
            let why = self.difference(client).await;
            let after_micros = u64::try_from(began.elapsed().as_micros()).unwrap();
            match why {
                None => return Ending::Converged { after_micros },
                Some(why) if began.elapsed() > CONVERGE_TIMEOUT => return Ending::Diverged { why },
                Some(_) => tokio::time::sleep(Duration::from_millis(500)).await,
            }
        }
    }

    async fn difference(&self, client: &Client) -> Option<String> {
        for (log, (handle, name)) in self.logs.iter().zip(&self.names) {
            let (keepers, id) = {
                let log = log.borrow();
                (keepers(&log), log.document.keyspace_named(handle.name()).unwrap().0)
            };
            let mut held = Vec::new();
            for node in &keepers {
                match client.explain(*node, id, name.clone(), TIMEOUT).await {
                    Ok(view) => held.push(view.record.map(|record| record.digest)),
                    Err(error) => {
                        return Some(format!("{node} does not say what it holds of {name}: {error}"));
                    }
                }
            }
            if let Some(other) = held.iter().position(|digest| *digest != held[0]) {
                return Some(format!("{} and {} differ at {name}", keepers[0], keepers[other]));
            }
        }
        None
    }

    /// What the checkers find, when all nodes have stopped.
    pub(crate) fn judge(
        self,
        machines: &Machines,
        ending: &Ending,
        noted: &super::nemesis::Noted,
    ) -> Vec<Violation> {
        let mut histories: Vec<History> = self.logs.into_iter().map(RefCell::into_inner).collect();
        let (mut unreadable, mut documents) = (Vec::new(), Vec::new());
        for machine in &machines.machines {
            let machine = machine.lock();
            let objects: Vec<ObjectKey> =
                histories.iter().map(|history| history.key(KEY).object.clone()).collect();
            let Some((_, records)) = records(machine.node, &machine.data(), &objects) else {
                unreadable.push(Violation {
                    checker: Checker::Convergence,
                    what: format!("{} cannot be read at the end", machine.node),
                });
                continue;
            };
            documents.extend(document(machine.node, &machine.data()));
            for (history, record) in histories.iter_mut().zip(records) {
                if history.finals.is_empty() {
                    history.finals.push(BTreeMap::new());
                }
                history.finals[0].insert(machine.node, record);
            }
        }
        let judge = |mut history: History| {
            history.keepers = vec![keepers(&history)];
            history.ending = ending.clone();
            noted.add_to(&mut history);
            let name = format!("{:?}", history.key(KEY).object);
            let named = move |violation: Violation| Violation {
                what: format!("{name}: {}", violation.what),
                ..violation
            };
            check(&history).into_iter().map(named).collect::<Vec<_>>()
        };
        if documents.iter().any(|document| *document != documents[0])
            || documents.len() != machines.machines.len()
        {
            let epochs: Vec<_> = documents.iter().map(|document| document.epoch).collect();
            let what = format!("the nodes end with other documents than each other, of {epochs:?}");
            unreadable.push(Violation { checker: Checker::Documents, what });
        }
        unreadable.into_iter().chain(histories.into_iter().flat_map(judge)).collect()
    }
}

/// The nodes that have to keep a history's key.
fn keepers(history: &History) -> Vec<NodeId> {
    history.replicas(KEY, None).collect()
}

fn remember(log: &mut History, context: Context, shown: Vec<WriteId>) -> Remembered {
    log.contexts.push(SeenContext { key: KEY, bytes: Bytes::new(), shown });
    (context, ContextId(log.contexts.len() - 1))
}

/// What a store that nobody has open holds of some objects, and which store it is. None if it cannot be opened, or not
/// read, as it is.
pub(crate) fn records(
    node: NodeId,
    data: &std::path::Path,
    objects: &[ObjectKey],
) -> Option<(StoreId, Vec<Option<Record>>)> {
    let opened = DiskStore::open(data, &DiskOptions::new(node)).ok()?;
    assert!(!opened.is_new, "there was no store in {}", data.display());
    let read = |object: &ObjectKey| read_record(&opened.store, object).ok();
    Some((opened.store.id(), objects.iter().map(read).collect::<Option<_>>()?))
}

/// The cluster document that a store holds.
fn document(node: NodeId, data: &std::path::Path) -> Option<std::sync::Arc<ClusterDocument>> {
    read_document(&DiskStore::open(data, &DiskOptions::new(node)).ok()?.store)
}

/// The names of all keys of a run.
pub(crate) fn objects(document: &ClusterDocument) -> Vec<ObjectKey> {
    let in_keyspace = |name: &str| {
        let (id, _) = document.keyspace_named(name).unwrap();
        (0..KEYS).map(move |number| ObjectKey::new(id, format!("key-{number}").as_bytes()))
    };
    in_keyspace("default").chain(in_keyspace("registers")).collect()
}
