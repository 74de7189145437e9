//! Writes, reads and hints, and the one door through which all records come.

use crate::{
    cluster::{Cluster, Reading, Write},
    node::{Body, Disk, Hint, Message, Path, Waiting},
    record::{Actor, Counter, Dot, Record, Value},
    rules::Mistake,
};

impl Cluster {
    /// A client's write at a node that has a copy. One that does not keep the key stands in for a replica itself.
    pub(crate) fn mint(
        &mut self,
        node: usize,
        reading: Reading,
        is_delete: bool,
        expires: Counter,
        needs: usize,
    ) {
        let Reading { key, entries, saw } = reading;
        if !self.is_up(node) || !self.document(node).has_copy(node) || !self.may_mint(node) {
            return;
        }
        let (keeps, policy, clock) = (self.keeps(node, key), self.policies[key], self.peek(node));
        let fresh = u32::try_from(self.id()).unwrap_or(0);
        let mut record = self.nodes[node].held.records[key].clone();
        let is_left_out = |value: &Value| value.expires > 0 && value.expires <= clock;
        if self.has(Mistake::ExpiredForgottenAtMint)
            && record.live.iter().all(|(_, value)| is_left_out(value))
        {
            record = Record::default();
        }
        let seen = entries.iter().map(|entry| entry.1).max().unwrap_or(0);
        // What a whole copy at a watermark does not know any more, nobody has.
        let (is_whole, watermark) = (self.is_whole(node) && keeps, self.nodes[node].held.watermark);
        let is_forgotten =
            |entry: &(Actor, Counter)| is_whole && entry.1 <= watermark && record.counter(entry.0) == 0;
        let entries: Vec<(Actor, Counter)> =
            entries.into_iter().filter(|entry| !is_forgotten(entry)).collect();
        let process = self.process_mut(node);
        process.clock = clock.max(process.clock) + 1;
        let counter = process.clock.max(record.highest() + 1).max(seen + 1);
        // What a node does not keep, it forgets: it has no memory of the key for an actor to stand for.
        let actor = if keeps { *process.actor.get_or_insert(fresh) } else { fresh };
        let dot = Dot { counter, actor };
        let (id, write) = (process.id, self.writes.len());
        let value = (!is_delete).then_some(Value { write, expires });
        record.write(policy, dot, &entries, value);
        self.nodes[node].held.records[key] = record;
        self.prune(node, key);
        let (record, under) = (self.nodes[node].held.records[key].clone(), self.under(node));
        let epoch = self.nodes[node].held.epoch;
        self.writes.push(Write {
            key,
            dot,
            saw,
            is_delete,
            expires,
            is_acknowledged: false,
            acknowledged_by: Vec::new(),
            needs,
            coordinator: node,
            process: id,
            is_under_way: true,
            record: record.clone(),
            under,
            epoch,
        });
        self.note(|c| format!("n{node} mints w{write} of k{key} under {under}: {:?}", c.writes[write]));
        let keepers: Vec<usize> =
            self.sharers(node).into_iter().filter(|copy| self.keeps_at(node, *copy, key)).collect();
        if !keeps {
            let target = keepers[self.random.below(keepers.len())];
            self.leave_hint(node, key, target, true);
        }
        self.wait(node, Waiting::Acknowledge { write });
        for to in keepers {
            let body = Body::Merge { key, record: record.clone(), under, path: Path::Write(write) };
            self.send(node, to, body);
        }
    }

    /// Whether a node keeps a key, as another knows it.
    pub(crate) fn keeps_at(&self, node: usize, keeper: usize, key: usize) -> bool {
        self.document(node).keeps(keeper, self.copies[key])
    }

    pub(crate) fn leave_hint(&mut self, node: usize, key: usize, target: usize, is_counted: bool) {
        if target == node {
            return;
        }
        if let Some((from, to)) = self.document(node).moving
            && from == target
        {
            self.leave_hint(node, key, to, is_counted);
        }
        let stamp = self.id();
        let since = self.nodes[node].held.records[key].highest();
        let hints = &mut self.nodes[node].held.hints;
        match hints.iter_mut().find(|hint| (hint.key, hint.target) == (key, target)) {
            Some(hint) => {
                let since = if is_counted && !hint.is_counted { since } else { hint.since };
                *hint = Hint { is_counted: hint.is_counted || is_counted, stamp, since, ..*hint };
            }
            None => hints.push(Hint { key, target, is_counted, stamp, since }),
        }
    }

    /// A replica is silent: another node is to stand in for it.
    pub(crate) fn stand_in(&mut self, write: usize, node: usize, target: usize) {
        let Write { key, coordinator, process, is_under_way, record, under, epoch, .. } =
            self.writes[write].clone();
        let is_apt = self.keeps_at(coordinator, target, key) && !self.keeps_at(coordinator, node, key);
        if is_under_way
            && is_apt
            && self.process_id(coordinator) == process
            && epoch == self.nodes[coordinator].held.epoch
        {
            let path = Path::StandIn { write, target };
            self.send(coordinator, node, Body::Merge { key, record, under, path });
        }
    }

    pub(crate) fn acknowledge(&mut self, node: usize, write: usize) {
        let Write { coordinator, process, needs, .. } = self.writes[write];
        let is_heard = node == coordinator || self.links[node][coordinator];
        if self.process_id(coordinator) != process || !is_heard {
            return;
        }
        let is_recorded = self.document(coordinator).stores[node] == Some(self.nodes[node].synced.store);
        let (known, newest) = (self.document(coordinator), self.newest());
        let is_lasting = newest.has_copy(node) && newest.gained[node] == known.gained[node];
        // One that was removed meanwhile is lost already: nobody knows of that yet.
        let losses = if is_lasting { self.nodes[node].losses } else { u32::MAX };
        let Write { key, dot, .. } = self.writes[write];
        let Disk { records, watermark, .. } = &self.nodes[node].synced;
        if !records[key].covers(self.policies[key], dot)
            && dot.counter > *watermark
            && self.nodes[node].losses == 0
        {
            self.violated(|| format!("P7: n{node} acknowledges w{write} and does not have it"));
        }
        let answers = self.keeps_at(coordinator, node, key)
            || self.nodes[node].synced.hints.iter().any(|hint| hint.key == key && hint.is_counted);
        let write_ = &mut self.writes[write];
        let is_known = write_.acknowledged_by.iter().any(|(acker, _)| *acker == node);
        if write_.is_under_way && is_recorded && answers && !is_known {
            write_.acknowledged_by.push((node, losses));
            if write_.acknowledged_by.len() >= needs && !write_.is_acknowledged {
                write_.is_acknowledged = true;
                self.counts.acknowledged += 1;
                self.note(|c| format!("w{write} is acknowledged by {:?}", c.writes[write].acknowledged_by));
            }
        }
    }

    /// A write's time is up: hints are left for those that have not acknowledged.
    pub(crate) fn time_out(&mut self, write: usize) {
        let Write { key, coordinator, process, is_under_way, .. } = self.writes[write];
        if !is_under_way {
            return;
        }
        self.writes[write].is_under_way = false;
        if self.process_id(coordinator) == process && self.keeps(coordinator, key) {
            for target in self.sharers(coordinator) {
                let has_acknowledged =
                    self.writes[write].acknowledged_by.iter().any(|(acker, _)| *acker == target);
                if !has_acknowledged && self.keeps(target, key) && self.random.chance(50) {
                    self.leave_hint(coordinator, key, target, false);
                }
            }
        }
    }

    /// A read of one copy or two; sometimes a third is repaired.
    pub(crate) fn read(&mut self, node: usize, key: usize) {
        let may_answer =
            |c: &Cluster, copy: usize| c.is_whole(copy) && c.keeps(copy, key) && c.may_mint(copy);
        if !may_answer(self, node) {
            return;
        }
        let mut record = self.nodes[node].held.records[key].clone();
        let mut under = self.under(node);
        if self.random.chance(40) {
            let others: Vec<usize> =
                self.sharers(node).into_iter().filter(|copy| self.keeps_at(node, *copy, key)).collect();
            let Some(&other) = others.get(self.random.below(others.len())) else { return };
            let is_current = self.nodes[node].held.epoch == self.nodes[other].held.epoch;
            if !self.reaches(node, other) || !is_current {
                return;
            }
            self.greet(node, other);
            if !may_answer(self, other) || !may_answer(self, node) {
                return;
            }
            record.join(self.policies[key], &self.nodes[other].held.records[key]);
            under = if self.has(Mistake::RepairClaimsMost) {
                under.max(self.under(other))
            } else {
                under.min(self.under(other))
            };
            let to = others[self.random.below(others.len())];
            if self.random.chance(50) {
                self.send(node, to, Body::Merge { key, record: record.clone(), under, path: Path::Repair });
            }
        }
        let saw = record.live.iter().map(|(_, value)| value.write).collect();
        self.readings.push(Reading { key, entries: record.entries, saw });
        if self.readings.len() > 4 {
            let at = self.random.below(self.readings.len() - 1);
            self.readings.remove(at);
        }
    }

    // Messages.

    pub(crate) fn send(&mut self, from: usize, to: usize, body: Body) {
        let message = self.message(from, to, body);
        self.messages.push(message);
    }

    pub(crate) fn message(&self, from: usize, to: usize, body: Body) -> Message {
        Message { from, to, process: self.process_id(from), epoch: self.nodes[from].held.epoch, body }
    }

    pub(crate) fn deliver(&mut self, message: Message) {
        let Message { from, to, process, epoch, body } = message;
        if !self.is_up(to) {
            return;
        }
        self.learn(to, epoch);
        if epoch < self.nodes[to].held.epoch {
            self.learn(from, self.nodes[to].held.epoch);
            return;
        }
        if self.process_id(from) == process && self.links[from][to] {
            self.greet(from, to);
        }
        if !self.document(to).has_copy(to) || self.document(to).stores[from].is_none() {
            return;
        }
        self.note(|_| format!("n{to} gets from n{from}: {body:?}"));
        match body {
            Body::Merge { key, record, under, path } => self.on_merge(from, to, key, &record, under, path),
            Body::Check { exchange, standing, held } => self.on_check(to, exchange, &standing, &held),
            Body::Behind { exchange, standing } => self.on_behind(to, exchange, &standing),
            Body::Answer { exchange, standing, differing } => {
                self.on_answer(to, exchange, &standing, differing)
            }
            Body::Push { exchange, key, record, under } => self.on_push(to, exchange, key, &record, under),
            Body::Held { exchange, key, record, under, is_blocked } => {
                self.on_held(to, exchange, key, &record, under, is_blocked);
            }
            Body::Ended { exchange } => {
                if self.exchanges[exchange].processes[1] == self.process_id(to) {
                    self.complete(to, exchange);
                }
            }
        }
    }

    pub(crate) fn on_merge(
        &mut self,
        from: usize,
        to: usize,
        key: usize,
        record: &Record,
        under: Counter,
        path: Path,
    ) {
        let keeps = self.keeps(to, key);
        if !keeps && !matches!(path, Path::StandIn { .. }) {
            return;
        }
        let Disk { floor, ref records, .. } = self.nodes[to].held;
        let closed = self.process(to).map_or(0, |process| process.closed);
        let is_late =
            record.highest() <= closed && records[key].lacks(self.policies[key], record, closed, false);
        let is_too_old = matches!(path, Path::StandIn { .. }) && record.highest() <= floor;
        if (is_late && !self.takes_late()) || (is_too_old && !self.has(Mistake::HintsIgnored)) {
            // All such writes are over: what is true of them exchanges bring.
            self.counts.late += 1;
            if let Path::Hint { hint, process } = path {
                self.wait(to, Waiting::Delivered { holder: from, process, hint });
            }
            return;
        }
        let is_blocked = self.merge(to, key, record, under, false);
        let is_acknowledged = !is_blocked || self.has(Mistake::BlockedAcknowledged);
        match path {
            Path::Write(write) if is_acknowledged && keeps => self.wait(to, Waiting::Acknowledge { write }),
            Path::StandIn { write, target } if is_acknowledged => {
                self.counts.stood_in += 1;
                self.leave_hint(to, key, target, true);
                self.wait(to, Waiting::Acknowledge { write });
            }
            Path::StandIn { .. } => self.counts.refused_stand_ins += 1,
            Path::Hint { hint, process } if is_acknowledged => {
                self.wait(to, Waiting::Delivered { holder: from, process, hint });
            }
            Path::Write(_) | Path::Hint { .. } | Path::Repair => {}
        }
    }

    /// The one door. Whether the record was refused, all of it.
    pub(crate) fn merge(
        &mut self,
        node: usize,
        key: usize,
        record: &Record,
        under: Counter,
        is_exchange: bool,
    ) -> bool {
        let (policy, keeps) = (self.policies[key], self.keeps(node, key));
        let Disk { watermark, promise, .. } = self.nodes[node].held;
        let union = self.process(node).and_then(|process| process.union.as_ref());
        let is_union = is_exchange && union.is_some_and(|found| self.lacks_believed(node, key, found));
        let takes_all = is_union
            || self.has(Mistake::AllTaken)
            || (is_exchange && self.has(Mistake::DelayedExchangeTaken));
        // A node that does not keep the key gets no tombstones of it by exchanges.
        let floor =
            if keeps || self.has(Mistake::StandInBelowPromise) { watermark } else { watermark.max(promise) };
        let held = &self.nodes[node].held.records[key];
        let is_below = under < floor && !takes_all;
        if is_below && held.lacks(policy, record, floor, self.has(Mistake::UnknownEntriesTaken)) {
            self.counts.refused += 1;
            self.note(|_| format!("n{node} refuses it; floor {floor}, under {under}"));
            let keeps_entries = self.has(Mistake::BlockedEntryJoined);
            if keeps_entries || self.has(Mistake::BlockedInPart) {
                let part = self.nodes[node].held.records[key].in_part(policy, record, floor, keeps_entries);
                self.nodes[node].held.records[key].join(policy, &part);
                self.prune(node, key);
            }
            return true;
        }
        let keeps_entries = self.has(Mistake::CutKeepsEntry);
        let is_believed = is_exchange && watermark > 0 && under >= watermark && !self.is_whole(node);
        let held = &mut self.nodes[node].held.records[key];
        if is_believed && self.mistake != Some(Mistake::GhostKept) {
            self.counts.cut += u64::from(held.cut(policy, record, watermark, keeps_entries));
        }
        held.join(policy, record);
        self.prune(node, key);
        false
    }

    // Hints.

    pub(crate) fn replay(&mut self, node: usize) {
        if !self.is_up(node) {
            return;
        }
        self.readdress(node);
        for hint in self.nodes[node].synced.hints.clone() {
            if self.reaches(node, hint.target) && self.nodes[node].held.hints.contains(&hint) {
                let record = self.nodes[node].held.records[hint.key].clone();
                let path = Path::Hint { hint, process: self.process_id(node) };
                let under = self.under(node);
                self.send(node, hint.target, Body::Merge { key: hint.key, record, under, path });
            }
        }
    }

    /// A hint is no longer owed. A record that this node does not keep goes with the last hint that names it.
    pub(crate) fn delivered(&mut self, node: usize, hint: Hint) {
        let key = hint.key;
        self.nodes[node].held.hints.retain(|kept| *kept != hint);
        let is_owed = self.nodes[node].held.hints.iter().any(|hint| hint.key == key);
        if !is_owed && self.document(node).has_copy(node) && !self.keeps(node, key) {
            self.nodes[node].held.records[key] = Record::default();
            // What it had acknowledged, the target now answers for.
            let is_lasting = self.newest().keeps(hint.target, self.copies[key]);
            let losses = if is_lasting { self.nodes[hint.target].losses } else { u32::MAX };
            let target = (hint.target, losses);
            let own = (node, self.nodes[node].losses);
            for write in self.writes.iter_mut().filter(|write| write.key == key) {
                write.acknowledged_by.iter_mut().filter(|by| **by == own).for_each(|by| *by = target);
            }
        }
    }

    // Floors, promises and watermarks.
}
