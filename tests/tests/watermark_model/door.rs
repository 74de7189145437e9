//! Writes, reads and hints, and the one door through which all records come.

use crate::{
    cluster::{Cluster, Reading, Write},
    node::{Body, Disk, Hint, Message, Path, Waiting},
    record::{Actor, Copies, Counter, Dot, Record, Value},
    rules::Mistake,
};

impl Cluster {
    /// A client's write at a node that has a copy. One that does not keep the key stands in for a replica itself.
    pub(crate) fn mint(
        &mut self,
        node: usize,
        reading: Reading,
        copies: usize,
        is_delete: bool,
        expires: Counter,
        needs: usize,
    ) {
        let Reading { key, entries, saw, copies: known } = reading;
        if !self.is_up(node) || !self.document(node).has_copy(node) || !self.may_mint(node) {
            return;
        }
        let (policy, clock) = (self.policies[key], self.peek(node));
        let copies = copies.max(self.nodes[node].held.records[key].copies.most);
        let keeps = self.keeps(node, copies);
        let fresh = u32::try_from(self.id()).unwrap_or(0);
        let mut record = self.nodes[node].held.records[key].clone();
        let is_left_out = |value: &Value| value.expires > 0 && value.expires <= clock;
        if self.has(Mistake::ExpiredForgottenAtMint)
            && record.live.iter().all(|(_, value)| is_left_out(value))
        {
            record = Record::default();
        }
        let seen = entries.iter().map(|entry| entry.1).max().unwrap_or(0);
        // What a whole copy at a watermark does not know any more, nobody has, if it keeps every record.
        let keeps_all = self.keeps(node, 1) || (keeps && self.has(Mistake::LatecomerStrips));
        let (is_whole, watermark) = (self.is_whole(node) && keeps_all, self.nodes[node].held.watermark);
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
        record.write(policy, dot, &entries, value, copies.max(known));
        self.nodes[node].held.records[key] = record;
        self.prune(node, key);
        let record = self.nodes[node].held.records[key].clone();
        // A delete on top of what is over already may leave nothing.
        let copies = record.copies.most.max(copies).max(known);
        let is_first = self.keeps(node, record.copies.fewest) || self.has(Mistake::LatecomerSpeaks);
        let under = if self.keeps(node, copies) && is_first { self.under(node) } else { 0 };
        let epoch = self.nodes[node].held.epoch;
        self.writes.push(Write {
            key,
            dot,
            saw,
            copies,
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
            self.sharers(node).into_iter().filter(|copy| self.keeps_at(node, *copy, copies)).collect();
        if !self.keeps(node, copies) {
            let target = keepers[self.random.below(keepers.len())];
            self.leave_hint(node, key, target, true);
        }
        self.wait(node, Waiting::Acknowledge { write });
        for to in keepers {
            let body = Body::Merge { key, record: record.clone(), under, path: Path::Write(write) };
            self.send(node, to, body);
        }
    }

    /// Whether a node keeps records of so many copies, as another knows.
    pub(crate) fn keeps_at(&self, node: usize, keeper: usize, copies: usize) -> bool {
        self.document(node).keeps(keeper, copies)
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
        // What came first is in there still, whoever else is owed it since.
        let owed = hints.iter().filter(|hint| hint.is_counted && hint.key == key);
        let since = owed.map(|hint| hint.since).fold(since, Counter::min);
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
        let Write { key, coordinator, process, is_under_way, record, under, epoch, copies, .. } =
            self.writes[write].clone();
        let is_apt = self.keeps_at(coordinator, target, copies) && !self.keeps_at(coordinator, node, copies);
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
        let Write { key, dot, copies, coordinator, process, needs, .. } = self.writes[write];
        let is_heard = node == coordinator || self.links[node][coordinator];
        if self.process_id(coordinator) != process || !is_heard {
            return;
        }
        let is_recorded = self.document(coordinator).stores[node] == Some(self.nodes[node].synced.store);
        let (known, newest) = (self.document(coordinator), self.newest());
        let is_lasting = newest.has_copy(node) && newest.gained[node] == known.gained[node];
        // One that was removed meanwhile is lost already: nobody knows of that yet.
        let losses = if is_lasting { self.nodes[node].losses[key] } else { u32::MAX };
        let Disk { records, watermark, .. } = &self.nodes[node].synced;
        if !records[key].covers(self.policies[key], dot)
            && dot.counter > *watermark
            && self.nodes[node].losses[key] == 0
        {
            self.violated(|| format!("P7: n{node} acknowledges w{write} and does not have it"));
        }
        let answers = self.keeps_at(coordinator, node, copies)
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
        let Write { key, coordinator, process, is_under_way, copies, .. } = self.writes[write];
        if !is_under_way {
            return;
        }
        self.writes[write].is_under_way = false;
        if self.process_id(coordinator) == process && self.keeps(coordinator, copies) {
            for target in self.sharers(coordinator) {
                let has_acknowledged =
                    self.writes[write].acknowledged_by.iter().any(|(acker, _)| *acker == target);
                if !has_acknowledged && self.keeps(target, copies) && self.random.chance(50) {
                    self.leave_hint(coordinator, key, target, false);
                }
            }
        }
    }

    /// A read of one copy or two; sometimes a third is repaired.
    pub(crate) fn read(&mut self, node: usize, key: usize) {
        let asked = self.asked(key);
        let may_answer =
            |c: &Cluster, copy: usize| c.is_whole(copy) && c.keeps(copy, asked) && c.may_mint(copy);
        if !may_answer(self, node) {
            return;
        }
        let mut record = self.nodes[node].held.records[key].clone();
        let mut under = self.under_held(node, key);
        if self.random.chance(40) {
            let others: Vec<usize> =
                self.sharers(node).into_iter().filter(|copy| self.keeps_at(node, *copy, asked)).collect();
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
            let theirs = self.under_held(other, key);
            under = if self.has(Mistake::RepairClaimsMost) { under.max(theirs) } else { under.min(theirs) };
            let to = others[self.random.below(others.len())];
            if self.random.chance(50) && record != Record::default() {
                record.copies.most = record.copies.most.max(asked);
                self.send(node, to, Body::Merge { key, record: record.clone(), under, path: Path::Repair });
            }
        }
        let saw = record.live.iter().map(|(_, value)| value.write).collect();
        self.readings.push(Reading { key, entries: record.entries, saw, copies: record.copies.most });
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
            Body::Held { exchange, key, record, under, is_blocked, generation } => {
                self.on_held(to, exchange, key, &record, under, is_blocked);
                self.hear_generation(exchange, 1, generation);
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
        let keeps = self.keeps(to, self.nodes[to].held.records[key].copies.join(record.copies).most);
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
        let mut is_blocked = self.merge(to, key, record, under, None);
        if is_blocked && matches!(path, Path::Hint { .. }) {
            is_blocked = !self.take_rest(to, key, record);
        }
        // One that keeps it only since more copies were asked for cannot tell: those are asked that can.
        if let Path::Hint { hint, process } = path
            && is_blocked
            && hint.is_counted
            && !self.keeps(to, record.copies.fewest)
            && !self.has(Mistake::HintStaysWithLatecomer)
            && self.nodes[from].held.hints.contains(&hint)
            && self.process_id(from) == process
            && self.links[to][from]
        {
            for keeper in self.sharers(from) {
                if self.keeps_at(from, keeper, record.copies.fewest) {
                    self.leave_hint(from, key, keeper, true);
                }
            }
            self.nodes[from].held.hints.retain(|kept| *kept != hint);
        }
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
        peer: Option<usize>,
    ) -> bool {
        let (policy, is_exchange) = (self.policies[key], peer.is_some());
        let known = self.nodes[node].held.records[key].copies;
        let keeps = self.keeps(node, known.join(record.copies).most);
        let Disk { watermark, promise, .. } = self.nodes[node].held;
        let union = self.process(node).and_then(|process| process.union.as_ref());
        let Copies { fewest, most } = record.copies;
        let asked = if self.has(Mistake::UnionByMost) { most } else { fewest };
        let is_union = is_exchange && union.is_some_and(|found| self.lacks_believed(node, asked, found));
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
            if is_exchange && !self.has(Mistake::UnionByMost) {
                self.process_mut(node).blocked.push(fewest);
            }
            let is_said = !self.has(Mistake::NothingSaidOfLess);
            let held = &mut self.nodes[node].held.records[key];
            if is_exchange && *held != Record::default() && is_said {
                // So that the other side can be told of it: that nothing is held would be a lie.
                held.copies.most = held.copies.most.max(most);
            }
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
        // One that keeps it only since more copies were asked for need not have all of it.
        let has_kept =
            |peer: usize| self.keeps_at(node, peer, known.fewest) || self.has(Mistake::LatecomerBelieved);
        let is_latecomer = !self.keeps(node, known.fewest) && !self.has(Mistake::LatecomerSpeaks);
        let is_believed = peer.is_some_and(has_kept)
            && watermark > 0
            && under >= watermark
            && (!self.is_whole(node) || is_latecomer);
        let held = &mut self.nodes[node].held.records[key];
        if is_believed && self.mistake != Some(Mistake::GhostKept) {
            self.counts.cut += u64::from(held.cut(policy, record, watermark, keeps_entries));
        }
        held.join(policy, record);
        if keeps && !self.keeps_held(node, key) && !self.has(Mistake::UnkeptRestPut) {
            self.nodes[node].held.records[key] = Record::default();
        }
        self.prune(node, key);
        false
    }

    // Hints.

    /// Takes from a record that was refused what is left when all has gone that this copy knows to be dead, if it is one that
    /// has to know.
    fn take_rest(&mut self, node: usize, key: usize, record: &Record) -> bool {
        let known = self.nodes[node].held.records[key].copies.join(record.copies);
        if !self.is_whole(node) || !self.keeps(node, record.copies.fewest) || !self.keeps(node, known.most) {
            return false;
        }
        let Disk { watermark, ref records, .. } = self.nodes[node].held;
        let mut rest = record.clone();
        rest.cut(self.policies[key], &records[key], watermark, false);
        self.nodes[node].held.records[key].join(self.policies[key], &rest);
        self.prune(node, key);
        true
    }

    pub(crate) fn replay(&mut self, node: usize) {
        if !self.is_up(node) {
            return;
        }
        self.readdress(node);
        for hint in self.nodes[node].synced.hints.clone() {
            if self.reaches(node, hint.target) && self.nodes[node].held.hints.contains(&hint) {
                let record = self.nodes[node].held.records[hint.key].clone();
                let path = Path::Hint { hint, process: self.process_id(node) };
                let is_kept = self.keeps_held(node, hint.key);
                let under = if hint.is_counted && !is_kept && self.is_vouched(node, &hint) {
                    self.under(node)
                } else {
                    self.under_held(node, hint.key)
                };
                self.send(node, hint.target, Body::Merge { key: hint.key, record, under, path });
            }
        }
    }

    /// What a node holds in place of others was all there was when it came, up to what it had promised. It promises nothing
    /// more until it has handed it over, and so no watermark passes that: if one has, it was handed over, and then the disk
    /// went back in time.
    fn is_vouched(&self, node: usize, hint: &Hint) -> bool {
        hint.since > self.nodes[node].held.watermark || self.has(Mistake::OwedFromPastVouched)
    }

    /// A hint is no longer owed. A record that this node does not keep goes with the last hint that names it.
    pub(crate) fn delivered(&mut self, node: usize, hint: Hint) {
        let key = hint.key;
        let before = self.nodes[node].held.hints.len();
        self.nodes[node].held.hints.retain(|kept| *kept != hint);
        let (is_left, most) = {
            let Disk { hints, records, .. } = &self.nodes[node].held;
            (hints.len() == before, records[key].copies.most)
        };
        if is_left || !self.document(node).has_copy(node) || self.keeps(node, most) {
            return;
        }
        // What it had acknowledged, the target now answers for, if it has it.
        let is_lasting = self.newest().keeps(hint.target, most);
        let losses = if is_lasting { self.nodes[hint.target].losses[key] } else { u32::MAX };
        let (own, target) = ((node, self.nodes[node].losses[key]), (hint.target, losses));
        let closed = self.process(hint.target).map_or(0, |process| process.closed);
        let (record, policy) = (&self.nodes[hint.target].synced.records[key], self.policies[key]);
        let is_taken = |dot: Dot| dot.counter <= closed || record.covers(policy, dot);
        for write in self.writes.iter_mut().filter(|write| write.key == key && is_taken(write.dot)) {
            write.acknowledged_by.iter_mut().filter(|by| **by == own).for_each(|by| *by = target);
        }
        if self.nodes[node].held.hints.iter().all(|hint| hint.key != key) {
            self.nodes[node].held.records[key] = Record::default();
        }
    }

    // Floors, promises and watermarks.
}
