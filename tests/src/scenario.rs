//! Scripted runs: a calm world in which only what the script says happens.
//!
//! Random search finds what one did not think of; a scenario keeps what one did think of, or once found, from coming
//! back. A script asks as a client, breaks what it wants broken, lets time pass and looks at disks. Its operations go
//! into the same history as a random run's, so the same checkers read it at the end.

use std::{sync::Arc, time::Duration};

use antientropy::version::{Counter, UnixMillis};
use bytes::Bytes;
use client::{Delete, Get, Level, Put, ReadOptions, Request, WriteOptions};
use node::{
    Change, Counters, PlantedBug, Settings,
    storage::{CrashDamage, MemoryEngine},
};
use ring::{ClusterDocument, DatacenterId, StoreId};

use crate::{
    checkers::{Violation, check, lost_writes::has_value},
    clients::{WriteNote, encode_value},
    damage::DiskFault,
    history::{ChangeOutcome, ContextId, History, KeyId, Outcome, SeenContext, WriteId, dot},
    schedule::Moment,
    swarm::Swarm,
    world::World,
};

/// A key of the keyspace that keeps siblings, in a calm swarm.
pub const CART: KeyId = KeyId(0);
/// A key of the keyspace in which the last write wins.
pub const STOCK: KeyId = KeyId(1);

/// So many milliseconds.
#[must_use]
pub const fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// A write at a level, for which nobody waits long.
#[must_use]
pub fn write_at(level: Level) -> WriteOptions {
    WriteOptions { level, timeout: ms(300), ..WriteOptions::default() }
}

/// A read at a level, for which nobody waits long.
#[must_use]
pub fn read_at(level: Level) -> ReadOptions {
    ReadOptions { level, timeout: ms(300), ..ReadOptions::default() }
}

/// Longer than any request takes.
const REQUEST_MAX: Duration = Duration::from_secs(10);

/// A scripted run.
pub struct Scenario {
    world: World,
}

/// What a scripted read found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The values, by the writes that made them.
    pub values: Vec<WriteId>,
    /// The context that came with them.
    pub context: Bytes,
}

impl Scenario {
    /// A formed cluster of this shape.
    #[must_use]
    pub fn new(swarm: Swarm) -> Scenario {
        Scenario::with_bug(swarm, None)
    }

    /// A formed cluster of this shape with a bug planted in every node.
    #[must_use]
    pub fn with_bug(swarm: Swarm, bug: Option<PlantedBug>) -> Scenario {
        let mut world = World::new(1, swarm, bug, true);
        world.run_for(Duration::from_millis(200));
        Scenario { world }
    }

    /// What happened.
    #[must_use]
    pub fn history(&self) -> &History {
        self.world.history()
    }

    /// The trace, line by line.
    #[must_use]
    pub fn trace(&self) -> &[String] {
        self.world.trace()
    }

    /// The machine at this position of a key's preference list in the first datacenter.
    ///
    /// # Panics
    ///
    /// If the list is shorter.
    #[must_use]
    pub fn replica(&self, key: KeyId, position: usize) -> usize {
        let partition = self.world.history().key(key).partition;
        let owner = self.world.document.preference_list(DatacenterId(0), partition)[position];
        let place = self.world.hosts.iter().position(|host| host.node == owner.node);
        place.expect("members have machines")
    }

    /// Puts a value that names the write, and waits for the outcome.
    pub fn put(&mut self, host: usize, key: KeyId, options: WriteOptions) -> WriteId {
        let (call, write) = self.begin_put(host, key, options);
        self.wait(call);
        write
    }

    /// Puts a value that names the write. Gives the call, to wait for.
    pub fn begin_put(&mut self, host: usize, key: KeyId, options: WriteOptions) -> (usize, WriteId) {
        let object = self.world.history().key(key).object.clone();
        let (keyspace, key_bytes) = (object.keyspace(), object.key());
        let put = Put { keyspace, key: key_bytes, value: Bytes::new(), expires_unix_ms: None, options };
        self.world.scenario_write(host, key, Request::Put(put))
    }

    /// Tries a put again, at this machine, and waits for the outcome.
    pub fn put_again(&mut self, host: usize, write: WriteId, options: WriteOptions) {
        let call = self.world.scenario_retry(host, write, options);
        self.wait(call);
    }

    /// Deletes, and waits for the outcome.
    pub fn delete(&mut self, host: usize, key: KeyId, options: WriteOptions) -> WriteId {
        let request = self.delete_of(key, options);
        let (call, write) = self.world.scenario_write(host, key, request);
        self.wait(call);
        write
    }

    /// Tries a delete again, at this machine, and waits for the outcome.
    pub fn delete_again(&mut self, host: usize, write: WriteId, options: WriteOptions) {
        let request = self.delete_of(self.world.history().writes[write.0].key, options);
        let call = self.world.attempt(None, host, write, request);
        self.wait(call);
    }

    fn delete_of(&self, key: KeyId, options: WriteOptions) -> Request {
        let object = &self.world.history().key(key).object;
        Request::Delete(Delete { keyspace: object.keyspace(), key: object.key(), options })
    }

    /// Reads; none if the read failed.
    pub fn get(&mut self, host: usize, key: KeyId, options: ReadOptions) -> Option<Seen> {
        let read = self.world.history().reads.len();
        let call = self.begin_get(host, key, options);
        self.wait(call);
        let found = self.world.history().reads[read].found.as_ref()?;
        let context = self.world.history().contexts.last()?.bytes.clone();
        Some(Seen { values: found.values.iter().map(|(write, _)| *write).collect(), context })
    }

    /// Reads. Gives the call, to wait for.
    pub fn begin_get(&mut self, host: usize, key: KeyId, options: ReadOptions) -> usize {
        let object = self.world.history().key(key).object.clone();
        let get = Get { keyspace: object.keyspace(), key: object.key(), options };
        self.world.read(None, host, key, get)
    }

    /// Waits for the outcome of a call.
    ///
    /// # Panics
    ///
    /// If there is none in time.
    pub fn wait(&mut self, call: usize) {
        let end = self.world.deadline(REQUEST_MAX);
        while !self.world.calls[call].is_over {
            assert!(self.world.step(end), "call {call} has no outcome");
        }
    }

    /// How the last attempt of a write ended.
    ///
    /// # Panics
    ///
    /// If there was none.
    #[must_use]
    pub fn outcome(&self, write: WriteId) -> &Outcome {
        let attempt = self.world.history().writes[write.0].attempts.last();
        &attempt.expect("a write has attempts").outcome
    }

    /// Whether a write was acknowledged.
    #[must_use]
    pub fn is_acknowledged(&self, write: WriteId) -> bool {
        self.world.history().writes[write.0].acknowledged().is_some()
    }

    /// The context that came with the acknowledgement or the read that came last.
    #[must_use]
    pub fn last_context(&self) -> Option<Bytes> {
        self.world.history().contexts.last().map(|context| context.bytes.clone())
    }

    /// Lets time pass.
    pub fn run_for(&mut self, time: Duration) {
        self.world.run_for(time);
    }

    /// How long the present is after the beginning.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        Duration::from_micros(self.world.now().0)
    }

    /// A machine's power goes. It stays down.
    pub fn crash(&mut self, host: usize) {
        self.world.crash(host, CrashDamage::default(), &DiskFault::None);
    }

    /// A machine's power goes, and the first so many batches that were on their way had reached its disk all the same.
    pub fn crash_keeping(&mut self, host: usize, batches_kept: usize) {
        self.world.crash(host, CrashDamage { batches_kept, bytes_torn: 0 }, &DiskFault::None);
    }

    /// A machine is told to stop in good order; nobody waits until it has.
    pub fn begin_stop(&mut self, host: usize) {
        self.world.stop(host);
    }

    /// A machine's power goes, and its disk is replaced by an empty one.
    pub fn wipe(&mut self, host: usize, store: StoreId) {
        self.world.crash(host, CrashDamage::default(), &DiskFault::Wipe(store));
    }

    /// An image of a machine's disk.
    #[must_use]
    pub fn image(&self, host: usize) -> MemoryEngine {
        self.world.hosts[host].disk.image()
    }

    /// A machine's power goes, and its disk goes back to an image.
    pub fn restore(&mut self, host: usize, image: MemoryEngine) {
        self.world.crash(host, CrashDamage::default(), &DiskFault::Restore(image));
    }

    /// The device of a machine fails to read from now on, or does not.
    pub fn fail_reads(&mut self, host: usize, fails: bool) {
        self.world.hosts[host].disk.fail_reads(fails);
    }

    /// A bit of a machine's record of a key flips.
    pub fn rot(&mut self, host: usize, key: KeyId) -> bool {
        self.world.rot(host, key, 20, 3)
    }

    /// A machine is told to stop in good order, and does; it stays down until it is started.
    pub fn stop(&mut self, host: usize) {
        self.world.swarm.faults.down_max = Duration::from_secs(3600);
        self.world.stop(host);
        self.world.run_for(Duration::from_millis(50));
    }

    /// A machine starts.
    pub fn start(&mut self, host: usize) {
        self.world.start(host);
    }

    /// The administrator records the store of a replaced disk, and asks nobody.
    pub fn readmit(&mut self) {
        self.world.hand_out_documents();
    }

    /// The administrator asks a machine for a change. Gives the request, to look at its outcome.
    pub fn begin_change(&mut self, host: usize, change: Change) -> usize {
        self.world.ask_for(host, change)
    }

    /// The administrator asks a machine for a change, and waits for the outcome.
    ///
    /// # Panics
    ///
    /// If there is none in time.
    pub fn change(&mut self, host: usize, change: Change) -> ChangeOutcome {
        let request = self.begin_change(host, change);
        let end = self.world.deadline(REQUEST_MAX);
        while self.world.history().changes[request].ended == Moment::NEVER {
            assert!(self.world.step(end), "change {request} has no outcome");
        }
        self.change_outcome(request).clone()
    }

    /// How a change ended.
    #[must_use]
    pub fn change_outcome(&self, request: usize) -> &ChangeOutcome {
        &self.world.history().changes[request].outcome
    }

    /// The document that a running machine has.
    #[must_use]
    pub fn document_of(&self, host: usize) -> Option<Arc<ClusterDocument>> {
        self.world.hosts[host].process.as_ref()?.node.document().cloned()
    }

    /// Whether a running machine votes about documents.
    #[must_use]
    pub fn votes(&self, host: usize) -> bool {
        self.world.hosts[host].process.as_ref().is_some_and(|process| process.node.votes())
    }

    /// Cuts a machine off from all others, in both directions.
    pub fn cut_off(&mut self, host: usize) {
        for other in 0..self.world.hosts.len() {
            if other != host {
                self.cut(host, other);
                self.cut(other, host);
            }
        }
    }

    /// Cuts the way from one machine to another.
    pub fn cut(&mut self, from: usize, to: usize) {
        self.world.network.cut(from, to);
    }

    /// Connects all machines again.
    pub fn connect(&mut self) {
        self.world.network.mend();
    }

    /// Sets a machine's clock.
    pub fn set_skew_ms(&mut self, host: usize, skew_ms: i64) {
        self.world.set_clock(host, skew_ms);
    }

    /// From now on a machine's syncs fail or not, as a full disk's do.
    pub fn set_failing_disks(&mut self, fail_permille: u32) {
        self.world.swarm.disks.fail_permille = fail_permille;
    }

    /// Whether a machine's disk holds the value of a write.
    #[must_use]
    pub fn holds(&self, host: usize, write: WriteId) -> bool {
        let key = self.world.history().writes[write.0].key;
        self.world.durable_record(host, key).is_some_and(|record| has_value(&record, write))
    }

    /// Whether a machine's disk holds anything of a key.
    #[must_use]
    pub fn holds_any(&self, host: usize, key: KeyId) -> bool {
        self.world.durable_record(host, key).is_some()
    }

    /// The watermark of a key's partition at a running machine.
    #[must_use]
    pub fn watermark(&self, host: usize, key: KeyId) -> Option<Counter> {
        let partition = self.world.history().key(key).partition;
        self.world.hosts[host].process.as_ref().map(|process| process.node.watermark(partition))
    }

    /// The counter of an acknowledged write's version.
    ///
    /// # Panics
    ///
    /// If it was not acknowledged, or left no version.
    #[must_use]
    pub fn counter(&self, write: WriteId) -> Counter {
        let (_, acknowledged) =
            self.world.history().writes[write.0].acknowledged().expect("it was acknowledged");
        dot(acknowledged.version.expect("it has a version")).counter
    }

    /// What a clock that is right would date a write by now.
    #[must_use]
    pub fn clock(&self) -> Counter {
        Counter::at(UnixMillis(self.world.now().wall_ms()))
    }

    /// Lets time pass until the watermark of a write's partition has come to this counter at each of these machines, at most
    /// a minute. Whether it has.
    pub fn run_until_settled(&mut self, hosts: &[usize], key: KeyId, counter: Counter) -> bool {
        for _ in 0..600 {
            if hosts.iter().all(|host| self.watermark(*host, key).is_some_and(|it| it >= counter)) {
                return true;
            }
            self.run_for(Duration::from_millis(100));
        }
        false
    }

    /// From now on each sync takes so long.
    pub fn set_sync(&mut self, time: Duration) {
        (self.world.swarm.disks.sync_min, self.world.swarm.disks.sync_max) = (time, time);
    }

    /// The settings of processes that start from now on.
    pub fn settings(&mut self) -> &mut Settings {
        &mut self.world.swarm.settings
    }

    /// Whether all copies of a running machine are whole.
    #[must_use]
    pub fn is_whole(&self, host: usize) -> bool {
        self.world.copies_are_whole(host)
    }

    /// Whether a running machine sends requests to another.
    #[must_use]
    pub fn sees_up(&self, host: usize, other: usize) -> bool {
        let other = self.world.hosts[other].node;
        let process = self.world.hosts[host].process.as_ref();
        process.is_some_and(|process| process.node.peers_status().any(|(node, is_up)| node == other && is_up))
    }

    /// A machine's process stands still for a while.
    pub fn pause(&mut self, host: usize, pause: Duration) {
        self.world.pause(host, pause);
    }

    /// What a running node counted.
    #[must_use]
    pub fn counters(&self, host: usize) -> Option<&Counters> {
        self.world.hosts[host].process.as_ref().map(|process| process.node.counters())
    }

    /// The cluster document that the administrator made last.
    #[must_use]
    pub fn document(&self) -> &Arc<ClusterDocument> {
        &self.world.document
    }

    /// Ends all faults, waits for convergence and checks the history.
    pub fn finish(&mut self) -> Vec<Violation> {
        self.world.settle();
        check(self.world.history())
    }
}

impl World {
    /// A write of a scenario's own, with a value that names it in place of the one given. Gives the call's number.
    pub(crate) fn scenario_write(
        &mut self,
        host: usize,
        key: KeyId,
        mut request: Request,
    ) -> (usize, WriteId) {
        let bytes = match &request {
            Request::Put(put) => put.options.context.clone(),
            Request::Delete(delete) => delete.options.context.clone(),
            Request::Get(_) => None,
        };
        let of = |context: &SeenContext| bytes.as_ref() == Some(&context.bytes);
        let context = self.history.contexts.iter().position(of).map(ContextId);
        let is_foreign = context.is_some_and(|context| self.history.contexts[context.0].key != key);
        let write = self.begin_write(WriteNote { session: 0, context, is_foreign }, key, &request);
        if let Request::Put(put) = &mut request {
            put.value = encode_value(write, 0);
        }
        (self.attempt(None, host, write, request), write)
    }

    /// Another attempt of a scenario's put. Gives the call's number.
    pub(crate) fn scenario_retry(&mut self, host: usize, write: WriteId, options: WriteOptions) -> usize {
        let object = self.history.key(self.history.writes[write.0].key).object.clone();
        let (keyspace, key, value) = (object.keyspace(), object.key(), encode_value(write, 0));
        let put = Put { keyspace, key, value, expires_unix_ms: None, options };
        self.attempt(None, host, write, Request::Put(put))
    }
}
