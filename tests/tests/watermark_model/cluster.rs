//! The cluster: what nodes do with what reaches them.

use crate::{
    node::{COPIES_FEWEST, COPIES_MAX, Disk, Document, Exchange, KEYS, Message, Node, Process, Waiting},
    random::Random,
    record::{Actor, Counter, Dot, Policy, Record},
    rules::Mistake,
};

/// A client's write.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(crate) key: usize,
    pub(crate) dot: Dot,
    /// The writes whose values its client had read.
    pub(crate) saw: Vec<usize>,
    /// How many copies were to take it.
    pub(crate) copies: usize,
    pub(crate) is_delete: bool,
    pub(crate) expires: Counter,
    pub(crate) is_acknowledged: bool,
    /// The nodes that acknowledged, and what each had lost by then.
    pub(crate) acknowledged_by: Vec<(usize, u32)>,
    pub(crate) needs: usize,
    pub(crate) coordinator: usize,
    pub(crate) process: u64,
    pub(crate) is_under_way: bool,
    pub(crate) record: Record,
    pub(crate) under: Counter,
    pub(crate) epoch: usize,
}

/// What a client has read of a key.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    pub(crate) key: usize,
    pub(crate) entries: Vec<(Actor, Counter)>,
    pub(crate) saw: Vec<usize>,
    pub(crate) copies: usize,
}

/// What happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) adopted: u64,
    pub(crate) dropped: u64,
    pub(crate) refused: u64,
    pub(crate) late: u64,
    pub(crate) cut: u64,
    pub(crate) unions: u64,
    pub(crate) stood_in: u64,
    pub(crate) refused_stand_ins: u64,
    pub(crate) went_back: u64,
    pub(crate) exchanges: u64,
    pub(crate) acknowledged: u64,
}

pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    pub(crate) documents: Vec<Document>,
    pub(crate) messages: Vec<Message>,
    pub(crate) exchanges: Vec<Exchange>,
    pub(crate) writes: Vec<Write>,
    pub(crate) readings: Vec<Reading>,
    pub(crate) links: Vec<Vec<bool>>,
    pub(crate) policies: [Policy; KEYS],
    /// For how many copies of each key requests ask, if they do not ask for another number.
    pub(crate) copies: [usize; KEYS],
    /// How many in a hundred do.
    pub(crate) others: usize,
    pub(crate) now: Counter,
    pub(crate) random: Random,
    pub(crate) mistake: Option<Mistake>,
    pub(crate) counts: Counts,
    pub(crate) violation: Option<String>,
    /// Whether there was a time at which no copy was whole.
    pub(crate) was_without_whole: bool,
    pub(crate) log: Option<Vec<String>>,
    pub(crate) ids: u64,
}

impl Cluster {
    pub(crate) fn new(seed: u64, machines: usize, members: usize, mistake: Option<Mistake>) -> Cluster {
        let mut random = Random::new(seed);
        let disk = |node: usize| Disk {
            store: u32::try_from(node).unwrap_or(0) + 1,
            is_whole: true,
            seen: vec![(0, 0); machines],
            ..Disk::default()
        };
        let node = |node: usize| Node { held: disk(node), synced: disk(node), ..Node::default() };
        let policies = [0; KEYS].map(|_| if random.chance(50) { Policy::Siblings } else { Policy::Lww });
        let copies = [0; KEYS].map(|_| (COPIES_FEWEST + random.below(2)).min(members));
        let others = [0, 0, 15, 40][random.below(4)];
        let nodes: Vec<Node> = (0..machines).map(node).collect();
        let mut owners: Vec<usize> = (0..machines).collect();
        for at in 0..machines {
            owners.swap(at, at + random.below(machines - at));
        }
        owners.truncate(members);
        let store = |node: usize| owners.contains(&node).then_some(nodes[node].held.store);
        let stores = (0..machines).map(store).collect();
        let (gained, recorded) = (vec![0; machines], vec![0; machines]);
        let document = Document { owners, moving: None, stores, gained, recorded };
        let mut cluster = Cluster {
            nodes,
            documents: vec![document],
            messages: Vec::new(),
            exchanges: Vec::new(),
            writes: Vec::new(),
            readings: Vec::new(),
            links: vec![vec![true; machines]; machines],
            policies,
            copies,
            others,
            now: 1000,
            random,
            mistake,
            counts: Counts::default(),
            violation: None,
            was_without_whole: false,
            log: None,
            ids: 1000,
        };
        for node in 0..machines {
            cluster.start(node);
            let is_copy = cluster.documents[0].has_copy(node);
            cluster.nodes[node].held.is_whole = is_copy;
            cluster.nodes[node].synced.is_whole = is_copy;
        }
        cluster
    }

    pub(crate) fn has(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    /// Some mistakes show only where what is late is taken as well.
    pub(crate) fn takes_late(&self) -> bool {
        let late = [
            Mistake::LateTaken,
            Mistake::SinglePhase,
            Mistake::ThirdFloorsIgnored,
            Mistake::FloorPassesWrites,
            Mistake::BlockedInPart,
            Mistake::BlockedEntryJoined,
            Mistake::UnknownEntriesTaken,
        ];
        self.mistake.is_some_and(|mistake| late.contains(&mistake))
    }

    pub(crate) fn note(&mut self, text: impl FnOnce(&Cluster) -> String) {
        if self.log.is_some() {
            let text = format!("{:5} {}", self.now, text(self));
            self.log.iter_mut().for_each(|log| log.push(text.clone()));
        }
    }

    pub(crate) fn violated(&mut self, what: impl FnOnce() -> String) {
        if self.violation.is_none() {
            self.violation = Some(what());
        }
    }

    pub(crate) fn id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    pub(crate) fn document(&self, node: usize) -> &Document {
        &self.documents[self.nodes[node].held.epoch]
    }

    pub(crate) fn newest(&self) -> &Document {
        self.documents.last().expect("there is a first document")
    }

    /// The other copies, as the node knows them.
    pub(crate) fn sharers(&self, node: usize) -> Vec<usize> {
        self.document(node).copies().filter(|copy| *copy != node).collect()
    }

    pub(crate) fn is_up(&self, node: usize) -> bool {
        self.nodes[node].process.is_some()
    }

    pub(crate) fn process(&self, node: usize) -> Option<&Process> {
        self.nodes[node].process.as_ref()
    }

    pub(crate) fn process_mut(&mut self, node: usize) -> &mut Process {
        self.nodes[node].process.as_mut().expect("the node is up")
    }

    pub(crate) fn process_id(&self, node: usize) -> u64 {
        self.process(node).map_or(0, |process| process.id)
    }

    pub(crate) fn reaches(&self, from: usize, to: usize) -> bool {
        self.is_up(from) && self.is_up(to) && self.links[from][to]
    }

    pub(crate) fn is_recorded(&self, node: usize) -> bool {
        self.document(node).stores[node] == Some(self.nodes[node].held.store)
    }

    /// Whether the copy is whole, by its mark that is synced.
    pub(crate) fn is_whole(&self, node: usize) -> bool {
        let filling = self.process(node).is_none_or(|process| process.generation != 0);
        !filling
            && self.nodes[node].held.is_whole
            && self.is_recorded(node)
            && self.document(node).has_copy(node)
    }

    /// Whether a node keeps records of so many copies, as it knows.
    pub(crate) fn keeps(&self, node: usize, copies: usize) -> bool {
        self.document(node).keeps(node, copies)
    }

    /// Whether a node keeps what it holds of a key.
    pub(crate) fn keeps_held(&self, node: usize, key: usize) -> bool {
        self.keeps(node, self.nodes[node].held.records[key].copies.most)
    }

    /// For how many copies of a key a request asks.
    pub(crate) fn asked(&mut self, key: usize) -> usize {
        if self.random.chance(self.others) {
            COPIES_FEWEST + self.random.below(COPIES_MAX + 1 - COPIES_FEWEST)
        } else {
            self.copies[key]
        }
    }

    /// Up to where this node speaks for its partition, if its copy is whole: it has promised that it lacks nothing up to there,
    /// and forgotten only what is dead.
    pub(crate) fn under(&self, node: usize) -> Counter {
        let is_believed = self.is_whole(node) || self.has(Mistake::FillingBelieved);
        let Disk { watermark, promise, .. } = self.nodes[node].held;
        if is_believed { watermark.max(promise) } else { 0 }
    }

    /// The same for a key, which it may not keep.
    pub(crate) fn under_held(&self, node: usize, key: usize) -> Counter {
        let is_nothing = self.nodes[node].held.records[key] == Record::default();
        let speaks = self.has(Mistake::LatecomerSpeaks);
        if is_nothing || self.is_first(node, key) || (speaks && self.keeps_held(node, key)) {
            self.under(node)
        } else {
            0
        }
    }

    /// Whether a node has kept what it holds since its first write.
    pub(crate) fn is_first(&self, node: usize, key: usize) -> bool {
        let copies = self.nodes[node].held.records[key].copies;
        self.keeps(node, copies.fewest) && self.keeps(node, copies.most)
    }

    /// The clock as it stands; every counter that is minted later is above it.
    pub(crate) fn peek(&self, node: usize) -> Counter {
        let wall = self.now.saturating_add_signed(self.nodes[node].skew);
        self.process(node).map_or(0, |process| process.clock).max(wall)
    }

    // Processes.

    pub(crate) fn start(&mut self, node: usize) {
        if self.is_up(node) {
            return;
        }
        let (id, machines) = (self.id(), self.nodes.len());
        let generation = if self.nodes[node].synced.is_whole { 0 } else { self.id() };
        let Node { held, synced, .. } = &mut self.nodes[node];
        held.clone_from(synced);
        let clock = match self.mistake {
            Some(Mistake::MintBelowFloor) => 0,
            Some(Mistake::MintBelowWatermark) => held.floor,
            Some(_) | None => held.floor.max(held.watermark),
        };
        self.nodes[node].process = Some(Process {
            id,
            clock,
            recovered: self.nodes[node].synced.sequence,
            greeted: vec![0; machines],
            floors: vec![0; machines],
            promises: vec![(0, 0); machines],
            credits: vec![0; machines],
            generation,
            closed: self.nodes[node].held.promise,
            round: id,
            exchanged: vec![None; machines],
            ..Process::default()
        });
        self.note(|_| format!("n{node} starts"));
    }

    pub(crate) fn crash(&mut self, node: usize) {
        self.nodes[node].process = None;
        let Node { held, synced, .. } = &mut self.nodes[node];
        held.clone_from(synced);
        self.note(|_| format!("n{node} crashes"));
    }

    /// A batch is refused: what is held is what was synced, and nobody is told of the rest.
    pub(crate) fn refuse_batch(&mut self, node: usize) {
        if !self.is_up(node) {
            return;
        }
        let Node { held, synced, .. } = &mut self.nodes[node];
        held.clone_from(synced);
        let process = self.process_mut(node);
        process.actor = None;
        process.waiting.clear();
        self.end_exchanges(node);
        self.note(|_| format!("n{node}: a batch is refused"));
    }

    pub(crate) fn end_exchanges(&mut self, node: usize) {
        for exchange in &mut self.exchanges {
            exchange.is_over |= exchange.leader == node || exchange.follower == node;
        }
    }

    /// The copy cannot be believed any more.
    pub(crate) fn fill(&mut self, node: usize, why: &str) {
        let id = self.id();
        self.nodes[node].held.is_whole = false;
        self.nodes[node].synced.is_whole = false;
        if let Some(process) = &mut self.nodes[node].process {
            process.generation = id;
            process.actor = None;
            process.credits.iter_mut().for_each(|credit| *credit = 0);
            self.begin_anew(node);
        }
        self.note_whole();
        self.note(|_| format!("n{node} begins to fill: {why}"));
    }

    /// Of a filling copy: it has to exchange with all others again.
    pub(crate) fn begin_anew(&mut self, node: usize) {
        let process = self.process_mut(node);
        process.round += 1;
        process.blocked.clear();
        process.exchanged.iter_mut().for_each(|exchanged| *exchanged = None);
        process.union = None;
    }

    /// A record is found damaged: it is removed, and the copy marked, in one batch.
    pub(crate) fn damage(&mut self, node: usize, key: usize) {
        if !self.is_up(node) {
            return;
        }
        self.nodes[node].held.records[key] = Record::default();
        self.nodes[node].synced.records[key] = Record::default();
        self.nodes[node].losses[key] += 1;
        let is_exchange = |waiting: &Waiting| matches!(waiting, Waiting::Send(_) | Waiting::Complete { .. });
        self.process_mut(node).waiting.retain(is_exchange);
        self.fill(node, "a record is damaged");
    }

    pub(crate) fn wipe(&mut self, node: usize) {
        self.crash(node);
        let (store, machines) = (u32::try_from(self.id()).unwrap_or(0), self.nodes.len());
        let epoch = self.nodes[node].synced.epoch;
        let disk = Disk { store, epoch, seen: vec![(0, 0); machines], ..Disk::default() };
        let machine = &mut self.nodes[node];
        (machine.held, machine.synced) = (disk.clone(), disk);
        machine.loses_all();
        machine.backups.clear();
        self.note(|_| format!("n{node} is wiped"));
        self.start(node);
    }

    pub(crate) fn restore(&mut self, node: usize, backup: usize) {
        self.crash(node);
        let machine = &mut self.nodes[node];
        let disk = machine.backups[backup].clone();
        (machine.held, machine.synced) = (disk.clone(), disk);
        machine.loses_all();
        self.note(|c| format!("n{node} is restored {:?}", c.nodes[node].held));
        self.start(node);
    }

    /// Everything that is held is synced, and what waited for it happens.
    pub(crate) fn sync(&mut self, node: usize) {
        if !self.is_up(node) {
            return;
        }
        let Node { held, synced, .. } = &mut self.nodes[node];
        held.sequence += 1;
        synced.clone_from(held);
        let is_whole = self.nodes[node].held.is_whole;
        let process = self.process_mut(node);
        if is_whole {
            process.generation = 0;
        }
        for waiting in std::mem::take(&mut process.waiting) {
            self.release(node, waiting);
        }
    }

    pub(crate) fn release(&mut self, node: usize, waiting: Waiting) {
        match waiting {
            Waiting::Acknowledge { write } => self.acknowledge(node, write),
            Waiting::Delivered { holder, process, hint } => {
                if self.process_id(holder) == process && self.links[node][holder] {
                    self.delivered(holder, hint);
                }
            }
            Waiting::Send(message) => self.messages.push(*message),
            Waiting::Complete { exchange } => self.complete(node, exchange),
        }
    }

    pub(crate) fn wait(&mut self, node: usize, waiting: Waiting) {
        self.process_mut(node).waiting.push(waiting);
    }

    // Greetings.

    /// Two processes shake hands, if they have not: each hears how far its store had come, and the other's floor.
    pub(crate) fn greet(&mut self, one: usize, other: usize) {
        for (node, peer) in [(one, other), (other, one)] {
            let (peer_id, known) = (self.process_id(peer), self.process(node).map_or(0, |p| p.greeted[peer]));
            if peer_id == known {
                continue;
            }
            let (store, sequence) = self.nodes[peer].held.seen[node];
            let floor = self.nodes[peer].held.floor;
            let deaf = [Mistake::MintBelowFloor, Mistake::MintUngreeted];
            let obeys = !self.mistake.is_some_and(|mistake| deaf.contains(&mistake));
            let own = self.nodes[node].held.store;
            let process = self.process_mut(node);
            process.greeted[peer] = peer_id;
            if obeys {
                process.clock = process.clock.max(floor);
            }
            let went_back = known == 0 && store == own && sequence > process.recovered;
            if went_back && self.nodes[node].held.is_whole {
                self.counts.went_back += 1;
                self.fill(node, "a peer knows better");
            }
        }
        for (node, peer) in [(one, other), (other, one)] {
            let Disk { store, sequence, .. } = self.nodes[peer].synced;
            let seen = &mut self.nodes[node].held.seen[peer];
            if seen.0 != store || seen.1 < sequence {
                *seen = (store, sequence);
            }
        }
    }

    /// Whether this process may mint: one that knows its store's floor, or has been told of another's, which is above
    /// every promise.
    pub(crate) fn may_mint(&self, node: usize) -> bool {
        let sharers = self.sharers(node);
        let Some(process) = self.process(node) else { return false };
        self.has(Mistake::MintUngreeted)
            || sharers.is_empty()
            || sharers.iter().any(|peer| process.greeted[*peer] != 0)
    }

    // Documents.

    /// A node hears of a newer document.
    pub(crate) fn learn(&mut self, node: usize, epoch: usize) {
        let known = self.nodes[node].held.epoch;
        if epoch <= known || !self.is_up(node) {
            return;
        }
        let (before, after) = (self.documents[known].clone(), self.documents[epoch].clone());
        for disk in [true, false] {
            let Node { held, synced, .. } = &mut self.nodes[node];
            (if disk { held } else { synced }).epoch = epoch;
        }
        self.note(|_| format!("n{node} adopts document {epoch}: {after:?}"));
        if !self.has(Mistake::PromiseOverChange) {
            let process = self.process_mut(node);
            process.credits.iter_mut().for_each(|credit| *credit = 0);
        }
        let is_copy = after.has_copy(node);
        let is_new = is_copy
            && (!before.has_copy(node)
                || before.gained[node] != after.gained[node]
                || before.recorded[node] != after.recorded[node]);
        // What no other copy has kept is nowhere to be had.
        let is_to_be_had = |copies: usize| {
            after.copies().any(|copy| copy != node && before.has_copy(copy) && before.keeps(copy, copies))
        };
        let comes_to_keep =
            |copies: usize| after.keeps(node, copies) && !before.keeps(node, copies) && is_to_be_had(copies);
        let rises = (1..=COPIES_MAX).any(comes_to_keep) && !self.has(Mistake::RisingCopyWhole);
        // Whoever is told a floor mints above the watermark, too.
        let is_told = !self.has(Mistake::GainUngreeted) && !self.has(Mistake::MintBelowWatermark);
        if is_new && is_told {
            // Exchanges of the other copies did not wait for it, and its clock may be behind what they count on.
            self.process_mut(node).greeted.iter_mut().for_each(|greeted| *greeted = 0);
        }
        if !is_copy || is_new || rises {
            self.fill(node, "the document");
        }
    }

    /// Hints go to those that now keep the key. What is owed to an owner that leaves is owed to the one that comes, too.
    pub(crate) fn readdress(&mut self, node: usize) {
        let document = self.document(node).clone();
        for hint in self.nodes[node].held.hints.clone() {
            let has_moved = document.moving.is_some_and(|(from, _)| from == hint.target);
            let copies = self.nodes[node].held.records[hint.key].copies.most;
            let is_lost = !document.keeps(hint.target, copies);
            if is_lost {
                self.nodes[node].held.hints.retain(|kept| *kept != hint);
                for target in document.copies().filter(|copy| *copy != node) {
                    if document.keeps(target, copies) {
                        self.leave_hint(node, hint.key, target, hint.is_counted);
                    }
                }
            } else if let Some((_, to)) = document.moving.filter(|_| has_moved)
                && !self.nodes[node].held.hints.iter().any(|kept| (kept.key, kept.target) == (hint.key, to))
            {
                self.leave_hint(node, hint.key, to, hint.is_counted);
            }
        }
    }

    /// A new document, which the first nodes to hear of it adopt.
    pub(crate) fn decide(&mut self, document: Document) {
        self.documents.push(document);
        self.note(|c| format!("decided: {:?}", c.newest()));
    }

    // Writes.
}
