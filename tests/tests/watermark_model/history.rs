//! A history: what happens in which order, drawn from a seed; and what must be true when all faults have stopped.

use crate::{
    cluster::{Cluster, Counts, Reading, Write},
    node::{Body, COPIES_FEWEST, COPIES_MAX, Document, KEYS},
    record::{Dot, Policy, Record},
    rules::Mistake,
};

/// How long a history is.
const STEPS: usize = 220;
/// Rounds of exchanges that copies may need to become equal in the end, with everything collected that can be.
const ROUNDS: usize = 24;

/// What can happen in a step, with how often it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Write,
    Read,
    Deliver,
    Sync,
    Exchange,
    RaiseFloors,
    StandIn,
    TimeOut,
    Replay,
    /// Everything as it is when nothing is amiss: floors, exchanges of all with all, and their messages in order.
    Calm,
    Start,
    Crash,
    RefuseBatch,
    Damage,
    Wipe,
    Backup,
    Restore,
    Cut,
    Mend,
    Skew,
    Document,
    PartialRound,
}

/// What histories have more of that look for a mistake: what it takes for it to show.
fn shape(mistake: Mistake) -> &'static [(Step, usize)] {
    match mistake {
        Mistake::MintBelowFloor | Mistake::PromiseNotSynced | Mistake::LateTaken => {
            &[(Step::Crash, 8), (Step::Start, 10), (Step::Skew, 6)]
        }
        Mistake::SinglePhase | Mistake::ThirdFloorsIgnored | Mistake::FloorPassesWrites => {
            &[(Step::RefuseBatch, 12), (Step::Crash, 4), (Step::Skew, 6)]
        }
        Mistake::MintUngreeted | Mistake::BlockedAcknowledged | Mistake::FallenFloorIgnored => {
            &[(Step::Restore, 6), (Step::Backup, 6), (Step::Skew, 6)]
        }
        Mistake::AllTaken
        | Mistake::DelayedExchangeTaken
        | Mistake::FillingBelieved
        | Mistake::RepairClaimsMost
        | Mistake::GhostKept
        | Mistake::FilledBelowWatermark
        | Mistake::BackwardsUnnoticed => &[(Step::Restore, 5), (Step::Backup, 8), (Step::Read, 14)],
        Mistake::CutKeepsEntry => {
            &[(Step::Restore, 5), (Step::Backup, 8), (Step::RefuseBatch, 6), (Step::Crash, 4)]
        }
        Mistake::BlockedEntryJoined | Mistake::BlockedInPart | Mistake::UnknownEntriesTaken => {
            &[(Step::RefuseBatch, 14), (Step::Crash, 6), (Step::Cut, 3), (Step::Mend, 4)]
        }
        Mistake::OwedFromPastVouched => {
            &[(Step::Restore, 8), (Step::Backup, 12), (Step::StandIn, 50), (Step::Replay, 20)]
        }
        Mistake::OldHintsKept => {
            &[(Step::Restore, 5), (Step::Backup, 10), (Step::StandIn, 20), (Step::Replay, 10)]
        }
        Mistake::PromiseOverChange
        | Mistake::RisingCopyWhole
        | Mistake::MintBelowWatermark
        | Mistake::GainUngreeted => &[(Step::Document, 8), (Step::Cut, 3), (Step::Mend, 4)],
        Mistake::ExchangeBeforeSync => &[(Step::Crash, 8), (Step::Exchange, 20), (Step::Deliver, 30)],
        Mistake::HintsIgnored | Mistake::StandInBelowPromise => {
            &[(Step::StandIn, 30), (Step::Replay, 6), (Step::Cut, 3), (Step::Mend, 5)]
        }
        Mistake::UnionAtOnce => &[(Step::Damage, 8)],
        Mistake::LossWhileExchanging => &[(Step::Damage, 16), (Step::Exchange, 20), (Step::Deliver, 30)],
        Mistake::LatecomerBelieved
        | Mistake::UnionByMost
        | Mistake::UnkeptRestPut
        | Mistake::NothingSaidOfLess
        | Mistake::LatecomerSpeaks
        | Mistake::HintStaysWithLatecomer => &[(Step::Damage, 16), (Step::Write, 16), (Step::Exchange, 20)],
        Mistake::LatecomerStrips => &[(Step::Write, 10), (Step::Read, 14)],
        Mistake::DroppedOnePromiseEarly
        | Mistake::AwayNotWaitedFor
        | Mistake::ContextByOwnCounter
        | Mistake::ExpiredByOwnClock
        | Mistake::ExpiredForgottenAtMint => &[],
    }
}

/// How a history ended.
pub(crate) struct Outcome {
    pub(crate) violation: Option<String>,
    pub(crate) counts: Counts,
    pub(crate) log: Vec<String>,
}

/// Plays one history with a mistake, of the shape in which that shows best; or with none, of any shape.
pub(crate) fn play(seed: u64, mistake: Option<Mistake>, is_logged: bool) -> Outcome {
    let shapes = u64::try_from(2 * Mistake::ALL.len()).unwrap_or(1);
    let any = usize::try_from(seed % shapes).ok().and_then(|at| Mistake::ALL.get(at)).copied();
    play_shaped(seed, mistake, mistake.or(any), is_logged)
}

/// Plays one history.
pub(crate) fn play_shaped(
    seed: u64,
    mistake: Option<Mistake>,
    shaped_for: Option<Mistake>,
    is_logged: bool,
) -> Outcome {
    let mut draw = crate::random::Random::new(seed ^ 0x5eed);
    let machines = 3 + draw.below(3);
    let members = machines - draw.below(2).min(machines - 3);
    let mut cluster = Cluster::new(seed, machines, members, mistake);
    if is_logged {
        cluster.log = Some(Vec::new());
    }
    let is_about_others = shaped_for.is_some_and(|mistake| Mistake::OF_LATECOMERS.contains(&mistake));
    if is_about_others {
        cluster.others = 40;
    } else if mistake.is_some() {
        cluster.others = 0;
    }
    let steps = cluster.weights(shaped_for);
    let total: usize = steps.iter().map(|(_, weight)| weight).sum();
    let skew = if shaped_for.is_some() {
        [40, 400][cluster.random.below(2)]
    } else {
        [0, 5, 40, 3600][cluster.random.below(4)]
    };
    for _ in 0..STEPS {
        cluster.now += 1 + u64::try_from(cluster.random.below(4)).unwrap_or(0);
        let mut at = cluster.random.below(total);
        let step = steps.iter().find(|(_, weight)| {
            let is_it = at < *weight;
            at = at.saturating_sub(*weight);
            is_it
        });
        cluster.step(step.map_or(Step::Sync, |step| step.0), skew);
        if cluster.violation.is_some() {
            break;
        }
    }
    cluster.counts_so_far();
    if cluster.violation.is_none() {
        let counts = cluster.counts;
        cluster.heal();
        cluster.check();
        (cluster.counts.adopted, cluster.counts.dropped) = (counts.adopted, counts.dropped);
    }
    Outcome { violation: cluster.violation, counts: cluster.counts, log: cluster.log.unwrap_or_default() }
}

impl Cluster {
    /// Which steps this history has, and how often. Each kind of fault is there in some.
    fn weights(&mut self, shaped_for: Option<Mistake>) -> Vec<(Step, usize)> {
        let mut steps = vec![
            (Step::Write, 18),
            (Step::Read, 18),
            (Step::Deliver, 40),
            (Step::Sync, 24),
            (Step::Exchange, 10),
            (Step::RaiseFloors, 12),
            (Step::StandIn, 10),
            (Step::TimeOut, 12),
            (Step::Replay, 6),
            (Step::Calm, 24),
            (Step::PartialRound, 20),
            (Step::Start, 14),
        ];
        steps.extend(shaped_for.map(shape).into_iter().flatten());
        let often = [1, 1, 3][self.random.below(3)];
        let faults = [
            (Step::Crash, 3),
            (Step::RefuseBatch, 3),
            (Step::Damage, 1),
            (Step::Wipe, 1),
            (Step::Restore, 3),
            (Step::Cut, 4),
            (Step::Skew, 3),
            (Step::Document, 2),
        ];
        for (step, weight) in faults {
            if self.random.chance(if shaped_for.is_some() { 10 } else { 30 }) {
                steps.push((step, weight * often));
                match step {
                    Step::Restore => steps.push((Step::Backup, 3 * often)),
                    Step::Cut => steps.push((Step::Mend, 4 * often)),
                    _ => {}
                }
            }
        }
        steps
    }

    fn counts_so_far(&mut self) {
        self.note(|_| "the faults stop".to_owned());
    }

    /// The copies that know which writes are dead: where requests ask for several numbers of copies, those that keep every record.
    pub(crate) fn knowing(&self) -> Vec<usize> {
        let (document, fewest) = (self.newest(), if self.others > 0 { COPIES_FEWEST } else { COPIES_MAX });
        document.copies().filter(|copy| document.keeps(*copy, fewest)).collect()
    }

    /// Whether any of them is whole now.
    pub(crate) fn note_whole(&mut self) {
        let is_whole = |copy: &usize| self.nodes[*copy].synced.is_whole;
        self.was_without_whole |= !self.knowing().iter().any(is_whole);
    }

    fn any(&mut self) -> usize {
        self.random.below(self.nodes.len())
    }

    fn any_copy(&mut self) -> usize {
        let copies: Vec<usize> = self.newest().copies().collect();
        copies[self.random.below(copies.len())]
    }

    fn step(&mut self, step: Step, skew: i64) {
        let (node, copy, other, key) =
            (self.any(), self.any_copy(), self.any_copy(), self.random.below(KEYS));
        match step {
            Step::Write => self.write(copy, key),
            Step::Read => self.read(copy, key),
            Step::Deliver => self.deliver_any(),
            Step::Sync => self.sync(node),
            Step::Exchange => self.begin(copy, other),
            Step::RaiseFloors => {
                self.raise_floor(node);
                if self.random.chance(70) {
                    self.sync(node);
                }
            }
            Step::StandIn if !self.writes.is_empty() => {
                let late = self.random.below(self.writes.len().min(4));
                self.stand_in(self.writes.len() - 1 - late, copy, other);
            }
            Step::TimeOut if !self.writes.is_empty() => {
                let write = self.random.below(self.writes.len());
                self.time_out(write);
            }
            Step::StandIn | Step::TimeOut => {}
            Step::Replay => self.replay(node),
            Step::Calm => self.round(100),
            Step::PartialRound => self.round(80),
            Step::Start => self.start(node),
            Step::Crash => {
                if self.is_up(node) {
                    self.crash(node);
                }
            }
            Step::RefuseBatch => self.refuse_batch(node),
            Step::Damage => self.damage(copy, key),
            Step::Wipe => self.wipe(node),
            Step::Backup => {
                let disk = self.nodes[node].synced.clone();
                let backups = &mut self.nodes[node].backups;
                if backups.len() < 3 {
                    backups.push(disk);
                }
            }
            Step::Restore => {
                if !self.nodes[node].backups.is_empty() {
                    let backup = self.random.below(self.nodes[node].backups.len());
                    self.restore(node, backup);
                }
            }
            Step::Cut | Step::Mend => {
                self.links[node][other] = step == Step::Mend;
                self.links[other][node] = step == Step::Mend;
            }
            Step::Skew => {
                let range = usize::try_from(2 * skew + 1).unwrap_or(1);
                let off = i64::try_from(self.random.below(range)).unwrap_or(0) - skew;
                self.nodes[node].skew = if self.random.chance(50) { 0 } else { off };
            }
            Step::Document => self.change(),
        }
        self.note_whole();
    }

    fn write(&mut self, node: usize, key: usize) {
        if self.writes.len() >= 40 {
            return;
        }
        let blind = Reading { key, entries: Vec::new(), saw: Vec::new(), copies: 0 };
        // Many clients write what they have just read; some come back late.
        if self.random.chance(50) {
            self.read(node, key);
        }
        let reading =
            if self.random.chance(if self.others < 40 { 80 } else { 50 }) && !self.readings.is_empty() {
                let latest = self.readings.len() - 1;
                let at = if self.random.chance(60) { latest } else { self.random.below(latest + 1) };
                self.readings[at].clone()
            } else {
                blind
            };
        let is_delete = !reading.entries.is_empty() && self.random.chance(60);
        let expires = self.now + u64::try_from(self.random.below(60)).unwrap_or(0);
        let expires = if self.random.chance(20) && !is_delete { expires } else { 0 };
        let needs = 1 + self.random.below(2);
        let copies = self.asked(reading.key);
        self.mint(node, reading, copies, is_delete, expires, needs);
    }

    /// Delivers a message of those under way. Most are in good time; some come twice, or when their links are up again.
    fn deliver_any(&mut self) {
        if self.messages.is_empty() {
            return;
        }
        let recent = self.random.chance(60);
        let at = if recent { self.messages.len() - 1 } else { self.random.below(self.messages.len()) };
        let message =
            if self.random.chance(12) { self.messages[at].clone() } else { self.messages.swap_remove(at) };
        if self.links[message.from][message.to] {
            self.deliver(message);
        } else if self.random.chance(50) {
            self.messages.push(message);
        }
        if self.messages.len() > 40 {
            let at = self.random.below(self.messages.len());
            self.messages.swap_remove(at);
        }
    }

    /// Floors rise and all exchange with all, as far as they reach each other; each part with so many chances in a hundred.
    fn round(&mut self, percent: usize) {
        for node in 0..self.nodes.len() {
            if self.random.chance(percent) {
                self.raise_floor(node);
                self.sync(node);
            }
        }
        let copies: Vec<usize> = self.newest().copies().collect();
        for (at, &one) in copies.iter().enumerate() {
            for &other in &copies[..at] {
                if self.random.chance(percent) {
                    self.exchange(one, other, percent);
                }
                if self.violation.is_some() {
                    return;
                }
            }
        }
    }

    /// A whole exchange at once. Messages that were under way before stay where they are.
    fn exchange(&mut self, one: usize, other: usize, percent: usize) {
        let before = self.messages.len();
        let (leader, follower) = if self.random.chance(50) { (one, other) } else { (other, one) };
        self.begin(leader, follower);
        for _ in 0..12 {
            while self.messages.len() > before {
                let Some(message) = self.messages.pop() else { break };
                if self.links[message.from][message.to] {
                    self.deliver(message);
                }
            }
            for node in [follower, leader] {
                if percent == 100 || self.random.chance(97) {
                    self.sync(node);
                }
            }
            if self.messages.len() <= before {
                break;
            }
        }
    }

    /// The cluster changes: a move goes on, a store is recorded, a member is removed as dead, one is added, or a move begins.
    fn change(&mut self) {
        let mut document = self.newest().clone();
        let epoch = self.documents.len();
        let members: Vec<usize> =
            (0..self.nodes.len()).filter(|node| document.stores[*node].is_some()).collect();
        let others: Vec<usize> = (0..self.nodes.len()).filter(|node| !document.has_copy(*node)).collect();
        let stores: Vec<u32> = self.nodes.iter().map(|node| node.held.store).collect();
        let store = |node: usize| Some(stores[node]);
        let up: Vec<bool> = (0..self.nodes.len()).map(|node| self.is_up(node)).collect();
        let is_up = |node: &usize| up[*node];
        let replaced =
            members.iter().copied().find(|node| document.stores[*node] != store(*node) && is_up(node));
        let mut gone = None;
        if let Some(node) = replaced {
            document.stores[node] = store(node);
            document.recorded[node] = epoch;
        } else if let Some((from, to)) = document.moving {
            let is_synced = |node: &usize| self.nodes[*node].held.epoch == epoch - 1;
            let owes = self.nodes[from]
                .held
                .hints
                .iter()
                .chain(&self.nodes[from].synced.hints)
                .any(|hint| hint.is_counted);
            let may_end = members.iter().all(is_synced) && self.is_whole(to) && self.is_up(from) && !owes;
            if !may_end {
                return;
            }
            document.owners.iter_mut().filter(|owner| **owner == from).for_each(|owner| *owner = to);
            document.moving = None;
            gone = Some(from);
        } else if self.random.chance(40) && document.owners.len() > 2 {
            let dead = document.owners.remove(self.random.below(document.owners.len()));
            document.stores[dead] = None;
            gone = Some(dead);
            let new = others.into_iter().find(is_up);
            if let Some(new) = new.filter(|_| self.random.chance(70)) {
                document.owners.push(new);
                (document.stores[new], document.gained[new]) = (store(new), epoch);
                document.recorded[new] = epoch;
            }
            self.crash(dead);
        } else if let Some(new) = others.into_iter().find(is_up) {
            if document.stores[new] != store(new) {
                (document.stores[new], document.recorded[new]) = (store(new), epoch);
            }
            document.gained[new] = epoch;
            if self.random.chance(40) {
                document.owners.push(new);
            } else {
                let from = document.owners[self.random.below(document.owners.len())];
                document.moving = Some((from, new));
            }
        } else {
            return;
        }
        self.decide(document);
        if let Some(gone) = gone {
            self.nodes[gone].loses_all();
            self.learn(gone, epoch);
        }
        for node in 0..self.nodes.len() {
            if self.random.chance(40) {
                self.learn(node, epoch);
            }
        }
    }

    // The end.

    /// All faults stop, and everything goes on until the copies have had time enough.
    pub(crate) fn heal(&mut self) {
        self.links.iter_mut().flatten().for_each(|link| *link = true);
        self.now += 10_000;
        for node in 0..self.nodes.len() {
            self.nodes[node].skew = 0;
            self.start(node);
        }
        for round in 0..ROUNDS {
            self.now += 50;
            let epoch = self.documents.len() - 1;
            (0..self.nodes.len()).for_each(|node| self.learn(node, epoch));
            while !self.messages.is_empty() && round < ROUNDS / 2 {
                let at = self.random.below(self.messages.len());
                let message = self.messages.swap_remove(at);
                let is_hint = matches!(message.body, Body::Merge { .. });
                if is_hint || self.random.chance(80) {
                    self.deliver(message);
                }
                let node = self.any();
                if self.random.chance(50) {
                    self.sync(node);
                }
            }
            (0..self.nodes.len()).for_each(|node| self.sync(node));
            (0..self.writes.len()).for_each(|write| self.time_out(write));
            self.end_change();
            self.round(100);
            for node in 0..self.nodes.len() {
                self.replay(node);
            }
            while let Some(message) = self.messages.pop() {
                self.deliver(message);
            }
            (0..self.nodes.len()).for_each(|node| self.sync(node));
            if self.violation.is_some() {
                return;
            }
        }
    }

    /// A move that is under way is finished, and a replaced store recorded.
    fn end_change(&mut self) {
        let document = self.newest();
        let is_lost =
            |node: usize| document.stores[node].is_some_and(|store| store != self.nodes[node].held.store);
        if document.moving.is_some() || (0..self.nodes.len()).any(is_lost) {
            self.change();
            let epoch = self.documents.len() - 1;
            (0..self.nodes.len()).for_each(|node| self.learn(node, epoch));
        }
    }

    pub(crate) fn check(&mut self) {
        if self.violation.is_some() {
            return;
        }
        let document: Document = self.newest().clone();
        // If all copies lost something, or there was a time at which none was whole, the union was taken.
        let knowing = self.knowing();
        self.was_without_whole |=
            (0..KEYS).any(|key| knowing.iter().all(|copy| self.nodes[*copy].losses[key] > 0));
        for node in document.copies() {
            if !self.is_whole(node) {
                return self.violated(|| format!("P4: n{node} is not whole"));
            }
            if self.nodes[node].held.hints.iter().any(|hint| hint.is_counted) {
                let hints = format!("{:?}", self.nodes[node].held.hints);
                return self.violated(|| format!("P4: n{node} owes {hints}"));
            }
        }
        for key in 0..KEYS {
            let most = document.copies().map(|copy| self.nodes[copy].held.records[key].copies.most).max();
            let most = most.unwrap_or(0).max(1);
            let (keepers, others): (Vec<usize>, Vec<usize>) =
                document.copies().partition(|copy| document.keeps(*copy, most));
            let first = self.nodes[keepers[0]].held.records[key].clone();
            for other in others {
                let record = self.nodes[other].held.records[key].clone();
                if record != Record::default() {
                    return self.violated(|| format!("P4: n{other} does not keep {record:?}"));
                }
            }
            for &keeper in &keepers {
                let record = &self.nodes[keeper].held.records[key];
                if *record != first {
                    let what = format!("P4: n{} has {first:?}, n{keeper} has {record:?}", keepers[0]);
                    return self.violated(|| what);
                }
            }
            let watermark = self.nodes[keepers[0]].held.watermark;
            let has_value = |actor: u32| first.live.iter().any(|(dot, _)| dot.actor == actor);
            if first.entries.iter().any(|entry| !has_value(entry.0)) {
                return self.violated(|| format!("P8: at {watermark} there is still {first:?}"));
            }
            let writes = self.writes.iter().enumerate().filter(|(_, write)| write.key == key);
            let writes: Vec<(usize, &Write)> = writes.collect();
            let is_binding = |write: &Write| {
                let stands = |(node, losses): &(usize, u32)| self.nodes[*node].losses[key] == *losses;
                write.is_acknowledged && write.acknowledged_by.iter().any(stands)
            };
            let is_kept = |id: usize| first.live.iter().any(|(_, value)| value.write == id);
            let found = match self.policies[key] {
                Policy::Siblings => writes.iter().find_map(|(id, write)| {
                    let coverer = |by: &dyn Fn(&Write) -> bool| {
                        writes
                            .iter()
                            .find(|(_, later)| later.saw.contains(id) && by(later))
                            .map(|(later, _)| *later)
                    };
                    if write.is_delete {
                        None
                    } else if is_kept(*id) {
                        let by = coverer(&is_binding).filter(|_| !self.was_without_whole)?;
                        Some(format!("P5: w{id} of k{key} is back, which w{by} covered; {first:?}"))
                    } else if is_binding(write) && write.expires == 0 && coverer(&|_| true).is_none() {
                        Some(format!("P1: w{id} {:?} of k{key} is lost; {first:?}", write.dot))
                    } else {
                        None
                    }
                }),
                Policy::Lww => {
                    let highest = writes
                        .iter()
                        .filter(|(_, write)| is_binding(write))
                        .max_by_key(|(_, write)| write.dot);
                    let held = first.entries.first().map(|&(actor, counter)| Dot { counter, actor });
                    highest.and_then(|(id, write)| {
                        let ends =
                            |later: &Write| later.dot >= write.dot && (later.is_delete || later.expires > 0);
                        let is_well = match held {
                            Some(held) => held >= write.dot,
                            None => writes.iter().any(|(_, later)| ends(later)),
                        };
                        let what = || format!("P1 or P5: w{id} {:?} of k{key} is lost; {first:?}", write.dot);
                        let may_be_back = self.was_without_whole && (write.is_delete || write.expires > 0);
                        (!is_well && !may_be_back).then(what)
                    })
                }
            };
            if let Some(found) = found {
                return self.violated(|| found);
            }
        }
    }
}
