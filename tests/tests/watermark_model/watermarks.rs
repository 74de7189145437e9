//! Floors, promises and watermarks, and the exchanges that they rest on.

use crate::{
    cluster::Cluster,
    node::{Body, COPIES_MAX, Disk, Exchange, KEYS, Node, Standing, Waiting},
    record::{Counter, Dot, Record, Value},
    rules::Mistake,
};

impl Cluster {
    /// This node's floor rises to what its clock shows: nothing is minted below it any more, by this process because its
    /// clock only rises, by later ones because they begin there. It does not pass writes that may still be acknowledged, nor
    /// those that others count on it to hand over.
    pub(crate) fn raise_floor(&mut self, node: usize) {
        if !self.is_up(node) {
            return;
        }
        let mut floor = self.peek(node);
        let id = self.process_id(node);
        self.process_mut(node).clock = floor;
        if !self.has(Mistake::FloorPassesWrites) {
            let own = self.writes.iter().filter(|write| write.is_under_way && write.process == id);
            // Nor those that come along with one of them and may have been lost here: a node waits so long before its floor rises that
            // they are over.
            let carried = own.flat_map(|write| {
                let of_actor = |(dot, _): &&(Dot, Value)| dot.actor == write.dot.actor;
                let dots = write.record.live.iter().filter(of_actor).map(|(dot, _)| dot.counter);
                dots.chain([write.dot.counter])
            });
            floor = carried.map(|counter| counter - 1).fold(floor, Counter::min);
        }
        if !self.has(Mistake::HintsIgnored) {
            let counted = self.nodes[node].held.hints.iter().filter(|hint| hint.is_counted);
            // One of nothing holds back nothing.
            floor = counted.filter_map(|hint| hint.since.checked_sub(1)).fold(floor, Counter::min);
        }
        let held = &mut self.nodes[node].held;
        held.floor = held.floor.max(floor);
    }

    pub(crate) fn standing(&self, node: usize) -> Standing {
        let Node { held, synced, process, .. } = &self.nodes[node];
        let process = process.as_ref().expect("the node is up");
        let mut floors = process.floors.clone();
        floors[node] = synced.floor;
        let promise = if self.has(Mistake::PromiseNotSynced) { held } else { synced };
        Standing {
            floors,
            promise: (promise.promise, promise.promise_epoch),
            watermark: held.watermark,
            generation: process.generation,
        }
    }

    pub(crate) fn hear(&mut self, node: usize, peer: usize, standing: &Standing) {
        let (told, rises) = (standing.floors[peer], self.has(Mistake::FallenFloorIgnored));
        let process = self.process_mut(node);
        let known = std::mem::replace(&mut process.floors[peer], told);
        if told < known && rises {
            process.floors[peer] = known;
        } else if told < known {
            // Its disk went back in time, or is another: what rests on the floor of before does not count.
            process.credits.iter_mut().for_each(|credit| *credit = 0);
        }
        process.promises[peer] = standing.promise;
    }

    /// The copies' promises, under this node's document: the lowest is the watermark.
    pub(crate) fn adopt(&mut self, node: usize) {
        if !self.is_whole(node) {
            return;
        }
        let (epoch, synced) = (self.nodes[node].held.epoch, &self.nodes[node].synced);
        let mut promises = vec![(synced.promise, synced.promise_epoch)];
        let Some(process) = self.process(node) else { return };
        for peer in self.sharers(node) {
            if !self.has(Mistake::AwayNotWaitedFor) || self.reaches(node, peer) {
                promises.push(process.promises[peer]);
            }
        }
        if self.has(Mistake::DroppedOnePromiseEarly) && promises.len() > 1 {
            promises.sort_unstable();
            promises.remove(0);
        }
        let is_current =
            |promise: &(Counter, usize)| promise.1 == epoch || self.has(Mistake::PromiseOverChange);
        if promises.iter().all(is_current) {
            let watermark = promises.iter().map(|promise| promise.0).min().unwrap_or(0);
            if watermark > self.nodes[node].held.watermark {
                self.counts.adopted += 1;
                self.raise(node, watermark);
            }
        }
    }

    /// The copy is at this watermark from now on, which all copies promised.
    pub(crate) fn raise(&mut self, node: usize, watermark: Counter) {
        if watermark <= self.nodes[node].held.watermark {
            return;
        }
        let is_forgotten = self.nodes[node].held.promise < watermark && self.nodes[node].held.is_whole;
        if is_forgotten && !self.has(Mistake::BackwardsUnnoticed) {
            // Where all that knew of a watermark were lost or removed, one that comes back with it alarms the others for
            // nothing: history 400208491.
            let is_remembered = self.document(node).copies().all(|copy| self.nodes[copy].losses == [0; KEYS]);
            if is_remembered {
                self.violated(|| format!("n{node} is taken for one that went back, and did not"));
            }
            self.counts.went_back += 1;
            self.fill(node, "it promised this watermark and does not know");
        }
        self.nodes[node].held.watermark = watermark;
        // It rests on the floors of those that were copies, and a node that has become one may have a clock behind all theirs.
        if let Some(process) = &mut self.nodes[node].process
            && self.mistake != Some(Mistake::MintBelowWatermark)
        {
            process.clock = process.clock.max(watermark);
        }
        self.note(|_| format!("n{node} is at watermark {watermark}"));
        (0..KEYS).for_each(|key| self.prune(node, key));
        if !self.has(Mistake::OldHintsKept) {
            self.drop_old_hints(node);
        }
        if !self.nodes[node].held.is_whole && !self.has(Mistake::FilledBelowWatermark) {
            self.begin_anew(node);
        }
    }

    pub(crate) fn prune(&mut self, node: usize, key: usize) {
        let Disk { watermark, .. } = self.nodes[node].held;
        let expired_at = if self.has(Mistake::ExpiredByOwnClock) { self.peek(node) } else { watermark };
        let by_own_counter = self.has(Mistake::ContextByOwnCounter);
        let record = &mut self.nodes[node].held.records[key];
        let before = record.clone();
        record.prune(watermark, by_own_counter, expired_at);
        if *record != before {
            self.counts.dropped += 1;
            self.dropped(node, key, &before);
        }
    }

    /// A copy dropped what it knew to be covered. No copy and no message may be believed that has such a value still.
    pub(crate) fn dropped(&mut self, node: usize, key: usize, before: &Record) {
        let Disk { watermark, epoch, .. } = self.nodes[node].held;
        if !self.keeps(node, before.copies.most) || !self.is_whole(node) {
            return;
        }
        let policy = self.policies[key];
        let after = &self.nodes[node].held.records[key];
        let is_forgotten = |(dot, value): &(Dot, Value)| {
            let expires = value.expires > 0 && value.expires <= watermark;
            !expires && before.covers(policy, *dot) && !before.is_live(*dot) && !after.covers(policy, *dot)
        };
        let mut found = None;
        for (dot, value) in &before.live {
            if !after.is_live(*dot) && value.expires > watermark {
                found = Some(format!("n{node} drops {dot:?}, which is not expired everywhere"));
            }
        }
        for (peer, other) in self.nodes.iter().enumerate() {
            let has_promised = other.held.epoch == epoch && other.synced.promise >= watermark;
            if peer != node && has_promised && self.is_whole(peer) && self.is_first(peer, key) {
                let record = &other.held.records[key];
                if let Some((dot, _)) = record.live.iter().find(|live| is_forgotten(live)) {
                    found = Some(format!(
                        "n{node} forgets that {dot:?} is covered, and n{peer} has it: {before:?}"
                    ));
                }
            }
        }
        for message in &self.messages {
            let (of, record, under) = match &message.body {
                Body::Merge { key, record, under, .. }
                | Body::Push { key, record, under, .. }
                | Body::Held { key, record, under, .. } => (*key, record, *under),
                _ => continue,
            };
            let is_believed = of == key && message.epoch == epoch && under >= watermark;
            if is_believed && record.live.iter().any(is_forgotten) {
                found = Some(format!("n{node} forgets what {message:?} would bring back"));
            }
        }
        let all_lost = self.knowing().iter().all(|copy| self.nodes[*copy].losses[key] > 0);
        if let Some(found) = found.filter(|_| !all_lost) {
            self.violated(|| format!("dropped early: {found}"));
        }
    }

    // Exchanges.

    /// An exchange begins under these floors: no write up to the lowest is under way anywhere.
    pub(crate) fn close(&mut self, node: usize, floors: &[Counter]) {
        let lowest = self.document(node).copies().map(|copy| floors[copy]).min().unwrap_or(0);
        let process = self.process_mut(node);
        process.closed = process.closed.max(lowest);
    }

    pub(crate) fn begin(&mut self, leader: usize, follower: usize) {
        let share =
            |node: usize| self.document(node).has_copy(leader) && self.document(node).has_copy(follower);
        if leader == follower || !self.reaches(leader, follower) || !share(leader) {
            return;
        }
        self.greet(leader, follower);
        let standing = self.standing(leader);
        self.close(leader, &standing.floors);
        let exchange = self.exchanges.len();
        self.exchanges.push(Exchange {
            leader,
            follower,
            processes: [self.process_id(leader), 0],
            epoch: self.nodes[leader].held.epoch,
            floors: standing.floors.clone(),
            generations: [standing.generation, 0],
            rounds: [self.process(leader).map_or(0, |process| process.round), 0],
            differing: Vec::new(),
            is_over: false,
        });
        let held = self.nodes[leader].held.records.clone();
        self.send(leader, follower, Body::Check { exchange, standing, held });
    }

    /// The exchange, if it is still under way for this side of it.
    pub(crate) fn under_way(&self, node: usize, exchange: usize) -> Option<&Exchange> {
        let it = &self.exchanges[exchange];
        let side = usize::from(it.follower == node);
        let is_current = it.epoch == self.nodes[node].held.epoch || self.has(Mistake::PromiseOverChange);
        (!it.is_over && is_current && it.processes[side] == self.process_id(node)).then_some(it)
    }

    pub(crate) fn on_check(
        &mut self,
        node: usize,
        exchange: usize,
        standing: &Standing,
        held: &[Record; KEYS],
    ) {
        let (leader, is_new) = (self.exchanges[exchange].leader, self.exchanges[exchange].processes[1] == 0);
        if !is_new || self.document(node).stores[leader] != Some(self.nodes[leader].held.store) {
            return;
        }
        self.hear(node, leader, standing);
        self.close(node, &standing.floors);
        self.raise(node, standing.watermark);
        self.adopt(node);
        let own = self.standing(node);
        self.exchanges[exchange].processes[1] = self.process_id(node);
        self.exchanges[exchange].generations[1] = own.generation;
        self.exchanges[exchange].rounds[1] = self.process(node).map_or(0, |process| process.round);
        let body = if own.watermark > standing.watermark {
            self.exchanges[exchange].is_over = true;
            Body::Behind { exchange, standing: own }
        } else {
            let records = &self.nodes[node].held.records;
            let shown = |record: &Record| self.shown(node, leader, record);
            let differs = |key: &usize| shown(&records[*key]) != shown(&held[*key]);
            let differing = (0..KEYS).filter(differs).collect();
            Body::Answer { exchange, standing: own, differing }
        };
        self.answer(node, leader, body);
    }

    /// What one side of an exchange shows the other of a record: nothing of one that not both keep.
    fn shown(&self, node: usize, peer: usize, record: &Record) -> Record {
        let (most, document) = (record.copies.most, self.document(node));
        let do_both = document.keeps(node, most) && document.keeps(peer, most);
        if do_both { record.clone() } else { Record::default() }
    }

    /// Up to where this node speaks for what it shows: only of what it has kept since the first write, or of nothing.
    fn under_shown(&self, node: usize, key: usize, shown: &Record) -> Counter {
        let held = &self.nodes[node].held.records[key];
        let is_hidden = *shown == Record::default() && *held != Record::default();
        let is_latecomer = *held != Record::default()
            && !self.keeps(node, shown.copies.fewest)
            && !self.has(Mistake::LatecomerSpeaks);
        let is_nothing_said = is_hidden && !self.has(Mistake::NothingSaidOfLess);
        if is_nothing_said || (is_latecomer && !is_hidden) { 0 } else { self.under(node) }
    }

    /// A record comes in an exchange, or word that there is none. Whether it was refused.
    fn hear_of(
        &mut self,
        node: usize,
        peer: usize,
        key: usize,
        record: &Record,
        under: Counter,
    ) -> Option<bool> {
        let held = &self.nodes[node].held.records[key];
        let is_nothing = *record == Record::default();
        if self.shown(node, peer, if is_nothing { held } else { record }) == Record::default() {
            // Of what the peer does not keep it may well hold nothing. And nobody sends what not both keep.
            return is_nothing.then_some(false);
        }
        Some(self.merge(node, key, record, under, Some(peer)))
    }

    /// An answer is sent when everything is synced that is held.
    pub(crate) fn answer(&mut self, node: usize, to: usize, body: Body) {
        let message = self.message(node, to, body);
        if self.has(Mistake::ExchangeBeforeSync) {
            self.messages.push(message);
        } else {
            self.wait(node, Waiting::Send(Box::new(message)));
        }
    }

    pub(crate) fn on_behind(&mut self, node: usize, exchange: usize, standing: &Standing) {
        if self.exchanges[exchange].processes[0] == self.process_id(node) {
            self.hear(node, self.exchanges[exchange].follower, standing);
            self.raise(node, standing.watermark);
            self.adopt(node);
        }
    }

    pub(crate) fn on_answer(
        &mut self,
        node: usize,
        exchange: usize,
        standing: &Standing,
        differing: Vec<usize>,
    ) {
        let Some(it) = self.under_way(node, exchange) else { return };
        let follower = it.follower;
        if self.document(node).stores[follower] != Some(self.nodes[follower].held.store) {
            return;
        }
        self.hear(node, follower, standing);
        self.raise(node, standing.watermark);
        self.exchanges[exchange].generations[1] = standing.generation;
        self.exchanges[exchange].differing = differing;
        self.advance(node, exchange);
    }

    /// The leader sends the next key, or waits for its own disk at the end.
    pub(crate) fn advance(&mut self, node: usize, exchange: usize) {
        let follower = self.exchanges[exchange].follower;
        match self.exchanges[exchange].differing.pop() {
            Some(key) => {
                let record = self.shown(node, follower, &self.nodes[node].held.records[key]);
                let under = self.under_shown(node, key, &record);
                self.send(node, follower, Body::Push { exchange, key, record, under });
            }
            None if self.has(Mistake::ExchangeBeforeSync) => self.complete(node, exchange),
            None => self.wait(node, Waiting::Complete { exchange }),
        }
    }

    /// A question that comes late is answered as well: its merge is one like any other.
    pub(crate) fn on_push(
        &mut self,
        node: usize,
        exchange: usize,
        key: usize,
        record: &Record,
        under: Counter,
    ) {
        let leader = self.exchanges[exchange].leader;
        let Some(is_blocked) = self.hear_of(node, leader, key, record, under) else { return };
        if self.under_way(node, exchange).is_some() {
            let record = self.shown(node, leader, &self.nodes[node].held.records[key]);
            let under = self.under_shown(node, key, &record);
            let generation = self.standing(node).generation;
            self.answer(node, leader, Body::Held { exchange, key, record, under, is_blocked, generation });
        }
    }

    pub(crate) fn on_held(
        &mut self,
        node: usize,
        exchange: usize,
        key: usize,
        record: &Record,
        under: Counter,
        is_blocked: bool,
    ) {
        if self.under_way(node, exchange).is_none() {
            return;
        }
        let are_whole = self.exchanges[exchange].generations == [0, 0] && self.is_whole(node);
        let follower = self.exchanges[exchange].follower;
        let Some(is_blocked_here) = self.hear_of(node, follower, key, record, under) else { return };
        // One of two whole copies has gone on to another watermark meanwhile. A filling one has just learned what is dead.
        let own = &self.nodes[node].held.records[key];
        let fewest = own.copies.fewest.min(record.copies.fewest);
        let are_first = self.keeps(node, fewest) && self.keeps_at(node, follower, fewest);
        if are_whole && (are_first || self.has(Mistake::LatecomerSpeaks)) && (is_blocked_here || is_blocked) {
            self.exchanges[exchange].is_over = true;
        } else {
            self.advance(node, exchange);
        }
    }

    /// In which time of filling one side of an exchange is now. One that has lost something since it began may have said that it
    /// holds nothing of it, or have been asked no more: nothing follows from the exchange, for either side.
    pub(crate) fn hear_generation(&mut self, exchange: usize, side: usize, generation: u64) {
        let has_lost = generation != 0 && generation != self.exchanges[exchange].generations[side];
        self.exchanges[exchange].is_over |= has_lost && !self.has(Mistake::LossWhileExchanging);
    }

    /// An exchange is complete, for the leader when it is synced and for the follower when it hears of it.
    pub(crate) fn complete(&mut self, node: usize, exchange: usize) {
        if self.exchanges[exchange].leader == node {
            self.hear_generation(exchange, 0, self.standing(node).generation);
        }
        let Some(it) = self.under_way(node, exchange).cloned() else { return };
        let side = usize::from(it.follower == node);
        let peer = if side == 0 { it.follower } else { it.leader };
        if side == 0 {
            self.counts.exchanges += 1;
            self.send(node, peer, Body::Ended { exchange });
        } else {
            self.exchanges[exchange].is_over = true;
        }
        let process = self.process_mut(node);
        if (process.generation, process.round) != (it.generations[side], it.rounds[side]) {
            return;
        }
        let floors = |nodes: &[usize]| nodes.iter().map(|node| it.floors[*node]).min().unwrap_or(0);
        let credit = if self.has(Mistake::SinglePhase) {
            floors(&[node])
        } else if self.has(Mistake::ThirdFloorsIgnored) {
            floors(&[node, peer])
        } else {
            let copies: Vec<usize> = self.document(node).copies().collect();
            // Whoever began it need not have heard yet whose disk went back.
            let known = self.standing(node).floors;
            let lowest = copies.iter().map(|copy| known[*copy]).min().unwrap_or(0);
            let is_ignored = self.has(Mistake::FallenFloorIgnored);
            floors(&copies).min(if is_ignored { Counter::MAX } else { lowest })
        };
        let process = self.process_mut(node);
        process.credits[peer] = process.credits[peer].max(credit);
        if process.generation != 0 {
            process.exchanged[peer] = Some(it.generations[1 - side]);
            self.become_whole(node);
        }
        self.promise(node);
    }

    /// Whether no other copy that keeps records of so many copies was whole when exchanges found these times of filling.
    pub(crate) fn lacks_believed(&self, node: usize, copies: usize, found: &[Option<u64>]) -> bool {
        let mut keepers =
            self.sharers(node).into_iter().filter(|copy| self.document(node).keeps(*copy, copies));
        keepers.all(|copy| found[copy] != Some(0))
    }

    /// A filling copy has exchanged with all others: it is whole if for each key that it keeps another was whole that keeps
    /// it. If not, it takes the union: after another exchange with each, which finds those that were filling in the same
    /// time of filling as before, so that there was a moment at which none of them was whole.
    pub(crate) fn become_whole(&mut self, node: usize) {
        if self.nodes[node].held.is_whole || !self.is_recorded(node) || !self.document(node).has_copy(node) {
            return;
        }
        let (sharers, at_once) = (self.sharers(node), self.has(Mistake::UnionAtOnce));
        let Some(process) = self.process(node) else { return };
        let (found, union) = (process.exchanged.clone(), process.union.clone());
        if !sharers.iter().all(|peer| found[*peer].is_some()) {
            return;
        }
        let document = self.document(node);
        let is_shared = |copies: &usize| {
            document.keeps(node, *copies) && sharers.iter().any(|peer| document.keeps(*peer, *copies))
        };
        let mut kept = (1..=COPIES_MAX).filter(is_shared);
        let mut blocked = process.blocked.iter();
        let needs_union = kept.any(|copies| self.lacks_believed(node, copies, &found))
            || blocked.any(|copies| self.lacks_believed(node, *copies, &found));
        if let Some(union) = union {
            if sharers.iter().any(|peer| union[*peer] != Some(0) && union[*peer] != found[*peer]) {
                // It took what a copy that is whole may know to be dead: from the beginning.
                self.begin_anew(node);
                return;
            }
            self.counts.unions += 1;
        } else if needs_union && !at_once {
            let process = self.process_mut(node);
            process.union = Some(std::mem::replace(&mut process.exchanged, vec![None; found.len()]));
            process.round += 1;
            process.blocked.clear();
            return;
        }
        self.nodes[node].held.is_whole = true;
        self.process_mut(node).union = None;
        self.note(|_| format!("n{node} becomes whole"));
    }

    /// What a node holds in place of others is above every watermark, because its floor does not pass that: what is below was
    /// delivered before its disk went back.
    pub(crate) fn drop_old_hints(&mut self, node: usize) {
        let watermark = self.nodes[node].held.watermark;
        for key in 0..KEYS {
            let highest = self.nodes[node].held.records[key].highest();
            if !self.keeps_held(node, key) && highest > 0 && highest <= watermark {
                self.nodes[node].held.records[key] = Record::default();
                self.nodes[node].held.hints.retain(|hint| hint.key != key);
            }
        }
    }

    pub(crate) fn promise(&mut self, node: usize) {
        if !self.is_whole(node) {
            return;
        }
        // What it holds in place of others is complete up to here, and not further.
        if self.nodes[node].held.hints.iter().any(|hint| hint.is_counted) && !self.has(Mistake::HintsIgnored)
        {
            return;
        }
        let Some(process) = self.process(node) else { return };
        let credits = self.sharers(node).into_iter().map(|peer| process.credits[peer]);
        let Some(credit) = credits.min() else { return };
        let Disk { promise, promise_epoch, epoch, .. } = &mut self.nodes[node].held;
        if credit > *promise || (credit == *promise && promise_epoch != epoch && credit > 0) {
            (*promise, *promise_epoch) = (credit, *epoch);
            self.note(|_| format!("n{node} promises {credit}"));
        }
    }
}
