//! What faults destroy: the disks are inspected before and after each, and the difference is the history's.

use antientropy::version::Record;
use client::{Operation, Reply};
use node::{
    message::{Envelope, Message},
    storage::{CrashDamage, MemoryEngine, Sequence, Store, read_record},
};
use ring::{Durability, NodeId};

use crate::{
    clients::Target,
    history::{Damage, Key, KeyId, Loss, Regression, dot},
    world::{Event, World},
};

/// The records that a machine holds, by key.
pub(crate) type Records = Vec<Option<Record>>;

/// What happens to a disk while its machine is down.
#[derive(Clone, Debug)]
pub(crate) enum DiskFault {
    /// Nothing.
    None,
    /// It is replaced by an empty one.
    Wipe(ring::StoreId),
    /// It forgets so many bytes of its log's end.
    Truncate(usize),
    /// A bit of its log flips.
    Flip { byte: usize, bit: u8 },
    /// It goes back to an image.
    Restore(MemoryEngine),
}

/// How far a process has heard a peer's store to have come.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Heard {
    /// Whose knowledge this is: a process that ends may forget it.
    by_incarnation: u32,
    /// About which process of the peer.
    of_incarnation: u32,
    store: Option<ring::StoreId>,
    synced: Sequence,
    /// What was heard from earlier processes of the same store.
    synced_before: Sequence,
}

impl World {
    /// What a machine holds, unsynced included; what its disk holds if no process runs.
    pub(crate) fn live_records(&self, index: usize) -> Records {
        let host = &self.hosts[index];
        let durable = |key: &Key| read_record(&host.disk, &key.object).ok().flatten();
        let live = |key: &Key| match host.process.as_ref().map(|process| process.node.record(&key.object)) {
            Some(Ok(record)) => record,
            // The device cannot be read, and nothing newer is in memory.
            Some(Err(_)) | None => durable(key),
        };
        self.history.keys.iter().map(live).collect()
    }

    /// What a machine's disk holds; damaged records read as none.
    pub(crate) fn durable_records(&self, index: usize) -> Records {
        let disk = &self.hosts[index].disk;
        self.history.keys.iter().map(|key| read_record(disk, &key.object).ok().flatten()).collect()
    }

    /// Ends a machine's process: its power goes, and then something may happen to its disk.
    pub(crate) fn crash(&mut self, index: usize, damage: CrashDamage, fault: &DiskFault) {
        let now = self.now();
        let (live, durable) = (self.live_records(index), self.durable_records(index));
        self.end_process(index);
        let host = &mut self.hosts[index];
        host.disk.fail_reads(false);
        host.disk.crash(damage);
        match fault {
            DiskFault::None => {}
            DiskFault::Wipe(store) => {
                host.disk.wipe(*store);
                (host.went_back, host.has_forgotten_promises) = (false, false);
                self.history.stores.push((host.node, now, *store));
            }
            DiskFault::Truncate(bytes) => host.disk.truncate_log(*bytes),
            DiskFault::Flip { byte, bit } => host.disk.flip_log_bit(*byte, *bit),
            DiskFault::Restore(image) => host.disk.restore(image),
        }
        host.disk.reopen();
        let after = self.durable_records(index);
        let on_disk = !matches!(fault, DiskFault::None);
        self.history.damages.push(Damage { node: self.hosts[index].node, at: now, on_disk });
        self.record_losses(index, Durability::Memory, &live, &after);
        self.forget_notices(index);
        match fault {
            DiskFault::None => return,
            DiskFault::Wipe(_) => {}
            DiskFault::Truncate(_) | DiskFault::Flip { .. } | DiskFault::Restore(_) => {
                self.hosts[index].went_back = true;
                self.record_regressions(index, &live, &after);
            }
        }
        self.hosts[index].is_damaged = true;
        self.record_losses(index, Durability::Disk, &durable, &after);
    }

    /// The process is gone, and with it its clients' connections.
    fn end_process(&mut self, index: usize) {
        self.note_counters(index);
        self.hosts[index].process = None;
        for call in 0..self.calls.len() {
            if !self.calls[call].is_over && self.calls[call].host == index {
                self.schedule.after(self.swarm.network.latency_max, Event::Broken { call });
            }
        }
    }

    /// Keeps what a process counted, before it ends or when the run does.
    pub(crate) fn note_counters(&mut self, index: usize) {
        let host = &self.hosts[index];
        let Some(process) = &host.process else { return };
        let counters = process.node.counters();
        self.counts.add_node(counters);
        let differing = process.node.trees_differing().into_iter().map(|tree| (host.node, tree));
        self.history.trees_differing.extend(differing);
        if counters.store_went_back > 0 && !host.went_back && !host.has_forgotten_promises {
            self.history.false_alarms.push(host.node);
        }
    }

    /// Ends a process that was told to stop once all is synced. Nothing may be lost by this, so nothing is excused.
    pub(crate) fn finish_stop(&mut self, index: usize) {
        let host = &self.hosts[index];
        let is_done =
            host.process.as_ref().is_some_and(|process| process.is_stopping && process.node.is_stopped());
        if is_done {
            self.say_goodbye(index);
            self.end_process(index);
            self.hosts[index].disk.reopen();
            self.note_host(index, || "has stopped in good order".to_owned());
            let down_max = self.swarm.faults.down_max;
            let down = self.fault_random.duration(std::time::Duration::ZERO, down_max);
            self.schedule.after(down, Event::Start { host: index });
        }
    }

    /// A batch was refused: what it carried is gone.
    pub(crate) fn record_failed_batch(&mut self, index: usize, before: &Records) {
        let (after, now) = (self.live_records(index), self.now());
        self.history.damages.push(Damage { node: self.hosts[index].node, at: now, on_disk: false });
        self.record_losses(index, Durability::Memory, before, &after);
    }

    /// Flips a bit of a stored record. Whether there was one.
    pub(crate) fn rot(&mut self, index: usize, key: KeyId, byte: usize, bit: u8) -> bool {
        let (live, durable) = (self.live_records(index), self.durable_records(index));
        let object = self.history.key(key).object.encoded().clone();
        let disk = &self.hosts[index].disk;
        let length =
            disk.get(node::storage::Table::Records, &object).ok().flatten().map_or(0, |found| found.len());
        if length == 0 || !disk.rot(node::storage::Table::Records, &object, byte % length, bit) {
            return false;
        }
        let now = self.now();
        self.hosts[index].is_damaged = true;
        self.history.damages.push(Damage { node: self.hosts[index].node, at: now, on_disk: true });
        let (live_after, after) = (self.live_records(index), self.durable_records(index));
        self.record_losses(index, Durability::Memory, &live, &live_after);
        self.record_losses(index, Durability::Disk, &durable, &after);
        true
    }

    /// Records what a machine held before and does not after, with what is left elsewhere.
    fn record_losses(&mut self, index: usize, durability: Durability, before: &Records, after: &Records) {
        for (key, record) in before.iter().enumerate() {
            let Some(record) = record else { continue };
            if after[key].as_ref().is_some_and(|after| after.dominates(record)) {
                continue;
            }
            let left = after[key].iter().cloned();
            let mut survivors: Vec<_> = left.map(|record| (self.hosts[index].node, record)).collect();
            for (other, host) in self.hosts.iter().enumerate().filter(|(other, _)| *other != index) {
                survivors.extend(self.durable_record(other, KeyId(key)).map(|record| (host.node, record)));
                if let (Durability::Memory, Some(process)) = (durability, &host.process) {
                    let record = process.node.record(&self.history.keys[key].object).ok().flatten();
                    survivors.extend(record.map(|record| (host.node, record)));
                }
            }
            let at = self.now();
            self.note_host(index, || {
                format!("lost of {durability:?} key {key}: {record:?}; left: {survivors:?}")
            });
            self.history.losses.push(Loss {
                node: self.hosts[index].node,
                key: KeyId(key),
                at,
                durability,
                before: record.clone(),
                survivors,
            });
        }
    }

    fn record_regressions(&mut self, index: usize, before: &Records, after: &Records) {
        for (key, record) in before.iter().enumerate() {
            let Some(record) = record else { continue };
            if !after[key].as_ref().is_some_and(|after| after.dominates(record)) {
                let (node, at) = (self.hosts[index].node, self.now());
                let before = record.clone();
                self.history.regressions.push(Regression {
                    node,
                    key: KeyId(key),
                    at,
                    before,
                    noticed: None,
                    noticed_with: Sequence(0),
                });
            }
        }
    }

    /// A machine crashed. What it had noticed and not synced it has to be told once more.
    fn forget_notices(&mut self, index: usize) {
        let (now, host) = (self.schedule.now(), &self.hosts[index]);
        let kept = host.disk.recovered();
        let mut forgotten = Vec::new();
        for noticed in &mut self.history.regressions {
            if noticed.node == host.node && noticed.noticed.is_some() && noticed.noticed_with > kept {
                noticed.noticed_with = Sequence(0);
                forgotten.push(Regression { at: now, noticed: None, ..noticed.clone() });
            }
        }
        self.history.regressions.append(&mut forgotten);
    }

    /// Ends the excuse of a disk that went back in time, where its node has noticed or knows it all again.
    pub(crate) fn notice_regressions(&mut self, index: usize) {
        if !self.hosts[index].is_damaged {
            return;
        }
        let (now, host) = (self.schedule.now(), &self.hosts[index]);
        let Some(process) = &host.process else { return };
        let keys = &self.history.keys;
        let sealed = host.disk.sealed();
        for open in &mut self.history.regressions {
            if open.node != host.node || open.noticed.is_some() {
                continue;
            }
            let key = &keys[open.key.0];
            let holds = || process.node.record(&key.object).ok().flatten();
            // Without a document a node answers nothing, and does not know yet what it may believe.
            let is_filling = process.node.document().is_some() && !process.node.copy_is_whole(key.partition);
            if is_filling || holds().is_some_and(|record| record.dominates(&open.before)) {
                (open.noticed, open.noticed_with) = (Some(now), sealed);
            }
        }
    }

    /// A message arrives. Remembers how far its sender's store has come; and if it is the welcome of a peer that had
    /// seen the receiver's store come further than it recovered to, ends the excuse of the receiver: it was told.
    pub(crate) fn note_heard(&mut self, from: usize, to: usize, envelope: &Envelope) {
        let (by_incarnation, of_incarnation) = (self.hosts[to].incarnation, self.hosts[from].incarnation);
        let (store, synced) = (Some(envelope.header.store), envelope.header.synced);
        let heard = &mut self.heard[to][from];
        if heard.by_incarnation != by_incarnation || heard.store != store {
            *heard = Heard { by_incarnation, of_incarnation, store, ..Heard::default() };
        } else if heard.of_incarnation != of_incarnation {
            heard.of_incarnation = of_incarnation;
            heard.synced_before = heard.synced_before.max(heard.synced);
            heard.synced = Sequence(0);
        }
        heard.synced = heard.synced.max(synced);
        let (now, host) = (self.schedule.now(), &self.hosts[to]);
        if !host.went_back || !matches!(envelope.message, Message::Welcome { .. }) {
            return;
        }
        let known = self.heard[from][to];
        let knows_better = known.by_incarnation == of_incarnation
            && known.of_incarnation == by_incarnation
            && known.store == Some(host.disk.id())
            && known.synced_before > host.disk.recovered();
        if knows_better && !host.process.as_ref().is_some_and(|process| process.is_paused) {
            // It is told when it takes its next turn.
            let told = now.after(self.swarm.turn_delay);
            let told_with = Sequence(host.disk.sealed().0 + 1);
            let open =
                |regression: &&mut Regression| regression.node == host.node && regression.noticed.is_none();
            self.history
                .regressions
                .iter_mut()
                .filter(open)
                .for_each(|open| (open.noticed, open.noticed_with) = (Some(told), told_with));
        }
    }

    pub(crate) fn durable_record(&self, index: usize, key: KeyId) -> Option<Record> {
        read_record(&self.hosts[index].disk, &self.history.key(key).object).ok().flatten()
    }

    /// Whether a machine's disk and copies have recovered from damage.
    pub(crate) fn has_recovered(&self, index: usize) -> bool {
        let host = &self.hosts[index];
        !host.is_damaged || {
            let is_readable = |key: &Key| read_record(&host.disk, &key.object).is_ok();
            let is_noticed =
                |regression: &Regression| regression.node != host.node || regression.noticed.is_some();
            self.copies_are_whole(index)
                && host.process.as_ref().is_some_and(|process| process.node.votes())
                && self.history.keys.iter().all(is_readable)
                && self.history.regressions.iter().all(is_noticed)
        }
    }

    /// Whether all copies of a running node are whole.
    pub(crate) fn copies_are_whole(&self, index: usize) -> bool {
        let (host, newest) = (&self.hosts[index], self.newest_document());
        host.process.as_ref().is_some_and(|process| {
            let knows = process.node.document().is_some_and(|document| document.epoch == newest.epoch);
            let holds = |partition| {
                let list = newest.preference_list(host.datacenter, partition);
                list.iter().take(ring::REPLICAS_MAX).any(|owner| owner.node == host.node)
            };
            knows
                && newest.members.get(&host.node).is_some_and(|member| member.store == host.disk.id())
                && newest
                    .partitions
                    .iter()
                    .all(|partition| !holds(partition) || process.node.copy_is_whole(partition))
        })
    }

    /// Which nodes hold an acknowledged version on disk at this moment, by direct inspection. None if a watermark has passed it:
    /// then every copy has held it, and may have forgotten it since. (The simulator's seed 180001881: a delete is asked for
    /// again after two seconds, and acknowledged from memory.)
    pub(crate) fn holders(&self, call: usize, reply: &Reply) -> Option<Vec<NodeId>> {
        let (Reply::Write(Ok(reply)), Target::Write { write, .. }) = (reply, self.calls[call].target) else {
            return None;
        };
        let (dot, write) = (dot(reply.version?), &self.history.writes[write.0]);
        debug_assert!(
            self.history
                .required(
                    write.level,
                    Operation::Write,
                    &self.history.copies(write.key, write.n),
                    reply.coordinator
                )
                .is_some(),
            "a level that cannot be met was met"
        );
        let partition = self.history.key(write.key).partition;
        let processes = || self.hosts.iter().filter_map(|host| host.process.as_ref());
        if processes().any(|process| process.node.watermark(partition) >= dot.counter) {
            return None;
        }
        let holds =
            |host: usize| self.durable_record(host, write.key).is_some_and(|record| record.covers(dot));
        let holders = (0..self.hosts.len()).filter(|host| holds(*host)).map(|host| self.hosts[host].node);
        Some(holders.collect())
    }
}
