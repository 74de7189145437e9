//! What this node knows of its peers: which process it talks to, whether it is up, how far its store had come, and
//! how far its clock is from ours.
//!
//! **Greeting.** A process says hello to every peer with the sequence that its store recovered to, until it is
//! welcomed. A welcome says whether the peer had seen the store synced further than that before that process: then it
//! went back in time (it was restored, truncated, or the disk lied), and its copies cannot be believed. All other
//! messages of a process that has not said hello are ignored.
//!
//! Two things are remembered over restarts for this to be right. *The verdict on each process*: a peer that restarts
//! gives the same process the same answer again, or it would take what the process has written since for what it lost.
//! *The lowest recovery that a peer has not confirmed*, and by which processes: a store that went back must not
//! overtake what its peers remember by writing on until its next start.
//!
//! (The rules of recovery are argued case by case in the tests below, which make up a third of this file.)
//!
//! **Up, slow and down.** A peer is down when it was found dead ([`membership`](crate::membership)) and has not been heard
//! since, or when it was asked something and has said nothing at all for a while: others may reach it where this node
//! cannot. Before that it is slow, from the first deadline that it missed: whoever has a choice asks others first. A peer
//! that does not answer is greeted with growing intervals.

use std::{collections::BTreeMap, time::Duration};

use antientropy::version::{Counter, UnixMillis};
use bytes::Bytes;
use client::hedge::SlowAnswers;
use ring::{Epoch, NodeId, StoreId, VoterId};
use smallvec::SmallVec;

use crate::{
    agreement::votes::is_later,
    event::Now,
    message::{Recovery, StartId},
    recovery::peers_to_store,
    settings::Settings,
    storage::Sequence,
};

/// Greetings without an answer before a peer counts as down.
const GREETINGS_UNANSWERED_MAX: u32 = 3;
/// Processes that are remembered as unconfirmed; of more, the oldest are forgotten, which errs to the careful side.
pub(crate) const STARTS_MAX: usize = 64;
/// Former stores of a peer that are remembered; of more, the oldest are forgotten.
pub(crate) const STORES_MAX: usize = 16;
/// No store counts so far: a sequence from here on is nobody's.
pub(crate) const SEQUENCE_MAX: Sequence = Sequence(1 << 62);
/// An answer that has been awaited for so long is asked for by a greeting. A peer that missed a deadline is avoided for
/// as long at first, and for twice as long each time that it misses another.
const LATE: Duration = Duration::from_millis(250);
/// The longest that a peer is avoided.
const AVOIDED_MAX: Duration = Duration::from_secs(8);
/// The least jump of a clock that is heeded: rounding is not one.
const CLOCK_JUMP_MS_MIN: i64 = 3;
/// How long the best clock sample of a peer is kept: at least one window, at most two.
const CLOCK_WINDOW: Duration = Duration::from_secs(5);
/// The least time that a peer is waited for before another is asked as well: below it, timers cost more than they save.
const PATIENCE_MIN: Duration = Duration::from_millis(1);
/// The longest time after which a peer that has not answered counts as silent, however slow its answers are.
const SILENT_AFTER_MAX: Duration = Duration::from_millis(500);
/// Limits of the time after which a peer that owes an answer and says nothing is overdue. A peer that syncs its disk says
/// nothing of a write for some milliseconds.
const OVERDUE_MIN: Duration = Duration::from_millis(10);
const OVERDUE_MAX: Duration = Duration::from_millis(50);

/// All peers.
pub(crate) struct Peers {
    peers: BTreeMap<NodeId, Peer>,
    /// This process, and where its store recovered to.
    present: StartId,
    recovered: Sequence,
    /// Whether something is to be remembered that is not yet part of a batch.
    unsaved: bool,
    /// The wall clock less the monotonic one, in milliseconds, as it was when the peers' offsets were last brought into
    /// line with it.
    wall_base_ms: Option<i64>,
    /// Whether any batch of this process is synced. Until then each of them says that this process was.
    is_present_saved: bool,
    /// Greetings that this process has sent.
    greetings: u64,
}

/// What is remembered of a peer over restarts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PeerMemory {
    /// The highest sequence seen of its present store.
    pub(crate) seen: Option<(StoreId, Sequence)>,
    /// The same of stores that it had before, the latest last; at most [`STORES_MAX`]. A disk may come back after
    /// another was in its place, and may have been set back meanwhile.
    pub(crate) before: Vec<(StoreId, Sequence)>,
    /// The last process that was seen to write, and what its welcome said.
    pub(crate) judged: Option<(StartId, Option<Sequence>)>,
    /// What the peer has not confirmed of this node's recoveries; none once it has welcomed the present process.
    pub(crate) unconfirmed: Option<Unconfirmed>,
}

/// Recoveries of this node's store that a peer has not confirmed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unconfirmed {
    /// The lowest.
    pub(crate) lowest: Sequence,
    /// The processes that recovered, the latest last, this one included; at most [`STARTS_MAX`].
    pub(crate) starts: Vec<StartId>,
}

/// One peer.
#[derive(Default)]
struct Peer {
    /// The process that said hello to this one last.
    start: Option<StartId>,
    /// Where its store recovered to. What it has synced counts as seen from the first batch of its own on: only that
    /// has written down that this process was, and a process that left no trace cannot be asked about later.
    recovered: Sequence,
    /// What its welcome says.
    verdict: Option<Sequence>,
    /// Its store and its memory of votes, as its hello says.
    introduced: Option<(StoreId, VoterId)>,
    /// The newest document under which that process was heard to speak.
    epoch: Option<Epoch>,
    memory: PeerMemory,
    /// Whether the peer's present process has welcomed this one.
    greeted: bool,
    /// Whether any of its processes has, since this process began.
    ever_greeted: bool,
    /// Hellos without an answer.
    unanswered: u32,
    /// Whether it is to be greeted at once, because there is news.
    has_news: bool,
    /// The first greeting that told it the latest news, until it or a later one is welcomed: it may be lost.
    untold: Option<u64>,
    /// When to greet or probe it next.
    next_greeting: Duration,
    /// When it was last heard.
    last_heard: Duration,
    /// Since when an answer of any kind has been awaited.
    waiting_since: Option<Duration>,
    /// Whether it was found dead, and has not been heard since.
    is_dead: bool,
    /// Whether it said goodbye, and has not been heard since.
    has_left: bool,
    /// Until when others are asked first.
    avoided_until: Duration,
    /// Deadlines that it missed one after the other.
    missed: u32,
    /// A moving average of its answers' delays.
    latency: Duration,
    /// How long its answers to reads take at their slowest.
    slow_answers: SlowAnswers,
    /// How far its clock is ahead of ours, in milliseconds.
    clock: ClockOffset,
    /// What its hybrid clock showed when it was last heard.
    hybrid_clock: Counter,
}

/// The best estimate of a peer's clock offset. Delay only makes a clock look late, so the highest sample of the
/// last few seconds is the nearest to the truth.
#[derive(Default)]
struct ClockOffset {
    current: Option<i64>,
    previous: Option<i64>,
    window_began: Duration,
}

/// What a hello revealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Greeted {
    /// For the welcome.
    pub(crate) went_back_from: Option<Sequence>,
    /// The peer's process is another than before: it does not know ours.
    pub(crate) restarted: bool,
}

impl Peers {
    /// Peers of which nothing is known but what an earlier process of this node has remembered, for a store that has
    /// recovered to `recovered`.
    pub(crate) fn new(
        present: StartId,
        nodes: impl IntoIterator<Item = NodeId>,
        memories: Vec<(NodeId, PeerMemory)>,
        recovered: Sequence,
    ) -> Peers {
        let mut peers = Peers {
            peers: BTreeMap::new(),
            present,
            recovered,
            unsaved: true,
            wall_base_ms: None,
            is_present_saved: false,
            greetings: 0,
        };
        for (node, mut memory) in memories {
            let mut unconfirmed =
                memory.unconfirmed.unwrap_or(Unconfirmed { lowest: recovered, starts: Vec::new() });
            unconfirmed.lowest = unconfirmed.lowest.min(recovered);
            unconfirmed.starts.push(present);
            let surplus = unconfirmed.starts.len().saturating_sub(STARTS_MAX);
            unconfirmed.starts.drain(..surplus);
            memory.unconfirmed = Some(unconfirmed);
            peers.peers.insert(node, Peer { memory, ..Peer::default() });
        }
        peers.add(nodes);
        peers
    }

    /// Adds peers that are not known yet.
    pub(crate) fn add(&mut self, nodes: impl IntoIterator<Item = NodeId>) {
        for node in nodes {
            self.unsaved |= !self.peers.contains_key(&node);
            let unconfirmed = Unconfirmed { lowest: self.recovered, starts: vec![self.present] };
            let memory = PeerMemory { unconfirmed: Some(unconfirmed), ..PeerMemory::default() };
            self.peers.entry(node).or_insert_with(|| Peer { memory, ..Peer::default() });
        }
    }

    /// Forgets all peers but these.
    pub(crate) fn keep(&mut self, is_member: impl Fn(NodeId) -> bool) {
        self.peers.retain(|node, _| is_member(*node));
    }

    /// A hello arrived.
    pub(crate) fn hello(
        &mut self,
        from: NodeId,
        start: StartId,
        store: StoreId,
        recovery: &Recovery,
    ) -> Greeted {
        self.add([from]);
        let peer = self.peers.entry(from).or_default();
        let restarted = peer.start != Some(start);
        if restarted {
            peer.start = Some(start);
            peer.introduced = None;
            peer.epoch = None;
            peer.greeted = false;
            peer.unanswered = 0;
            peer.next_greeting = Duration::ZERO;
        }
        let went_back_from = match peer.memory.judged {
            Some((judged, verdict)) if judged == start => verdict,
            Some(_) | None if restarted => peer.memory.judge(store, recovery),
            Some(_) | None => peer.verdict,
        };
        peer.verdict = went_back_from;
        peer.recovered = recovery.recovered;
        Greeted { went_back_from, restarted }
    }

    /// A peer that has said hello names its store and its memory of votes.
    pub(crate) fn introduce(&mut self, from: NodeId, store: StoreId, voter: Option<VoterId>) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        let introduced = voter.map(|voter| (store, voter));
        match (peer.introduced, introduced) {
            // An earlier hello of the same process, which comes late: it has renewed its memory of votes since.
            (Some((known, later)), Some((store, voter))) if known == store && is_later(later, voter) => {}
            (Some(_), None) => {}
            _ => peer.introduced = introduced,
        }
    }

    /// The store and the memory of votes with which a peer was last heard to introduce itself to this process.
    pub(crate) fn introduced(&self, node: NodeId) -> Option<(StoreId, VoterId)> {
        self.peers.get(&node)?.introduced
    }

    /// A peer speaks under a document.
    pub(crate) fn reached(&mut self, from: NodeId, epoch: Epoch) {
        if let Some(peer) = self.peers.get_mut(&from) {
            peer.epoch = peer.epoch.max(Some(epoch));
        }
    }

    /// The newest document under which the peer's present process was heard to speak.
    pub(crate) fn epoch(&self, node: NodeId) -> Epoch {
        self.peers.get(&node).and_then(|peer| peer.epoch).unwrap_or(Epoch(0))
    }

    /// A welcome to the greeting of this number arrived: the peer knows this process, has said what it thinks of its
    /// recovery, and has heard what that greeting said.
    pub(crate) fn welcome(&mut self, from: NodeId, number: u64) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        peer.greeted = true;
        peer.ever_greeted = true;
        peer.unanswered = 0;
        peer.untold = peer.untold.filter(|told| number < *told);
        self.unsaved |= peer.memory.unconfirmed.take().is_some();
    }

    /// Whether a message of this process of `from` may be listened to.
    pub(crate) fn is_known(&self, from: NodeId, start: StartId) -> bool {
        self.peers.get(&from).is_some_and(|peer| peer.start == Some(start))
    }

    /// A message arrived from a process that is known.
    pub(crate) fn heard(
        &mut self,
        now: Now,
        from: NodeId,
        store: StoreId,
        synced: Sequence,
        (wall, clock): (UnixMillis, Counter),
    ) {
        self.see(from, store, synced);
        let Some(peer) = self.peers.get_mut(&from) else { return };
        if let Some(since) = peer.waiting_since.take() {
            let sample = now.monotonic.saturating_sub(since);
            peer.latency = (peer.latency * 7 + sample) / 8;
            if now.monotonic >= peer.avoided_until {
                peer.missed = 0;
            }
        }
        peer.unanswered = 0;
        (peer.is_dead, peer.has_left) = (false, false);
        peer.last_heard = now.monotonic;
        peer.hybrid_clock = clock;
        let offset = wall.0.cast_signed().saturating_sub(now.wall.0.cast_signed());
        peer.clock.sample(now.monotonic, offset);
    }

    /// Remembers how far a peer's store has come.
    fn see(&mut self, from: NodeId, store: StoreId, sequence: Sequence) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        if sequence <= peer.recovered {
            return;
        }
        let highest = peer.memory.highest(store);
        if highest.is_none_or(|highest| sequence > highest) && sequence < SEQUENCE_MAX {
            peer.memory.set_seen(store, sequence);
            peer.memory.judged = peer.start.map(|start| (start, peer.verdict));
            self.unsaved = true;
        }
    }

    /// What is to be remembered of all peers, if anything has changed since the last time: a key and a value.
    pub(crate) fn take_unsaved(&mut self) -> Option<(Bytes, Bytes)> {
        let is_due = std::mem::take(&mut self.unsaved) || !self.is_present_saved;
        is_due.then(|| self.to_store())
    }

    /// What is to be remembered of all peers: a key and a value.
    pub(crate) fn to_store(&self) -> (Bytes, Bytes) {
        peers_to_store(self.peers.iter().map(|(node, peer)| (*node, &peer.memory)))
    }

    /// A batch of this process is synced.
    pub(crate) fn saved(&mut self) {
        self.is_present_saved = true;
    }

    /// What was to be remembered was not.
    pub(crate) fn save_failed(&mut self) {
        self.unsaved = true;
    }

    /// Something was sent that ought to be answered.
    pub(crate) fn asked(&mut self, now: Now, node: NodeId) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.waiting_since.get_or_insert(now.monotonic);
        }
    }

    /// An answer to a read took so long.
    pub(crate) fn answered(&mut self, node: NodeId, took: Duration, settings: &Settings) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.slow_answers.sample(took, settings.hedge_window);
        }
    }

    /// How long to wait for the peer's answer before another is asked as well, at most `most`.
    pub(crate) fn patience(&self, node: NodeId, most: Duration) -> Duration {
        let slowest = self.peers.get(&node).and_then(|peer| peer.slow_answers.slowest());
        slowest.map_or(most, |slowest| slowest.max(PATIENCE_MIN).min(most))
    }

    /// How long to wait for the peer's answer before it counts as silent: `least`, or twice as long as its slowest answers
    /// take of late. Where all are slow, another question for each would make all slower.
    pub(crate) fn silent_after(&self, node: NodeId, least: Duration) -> Duration {
        let slowest = self.peers.get(&node).and_then(|peer| peer.slow_answers.slowest());
        slowest.map_or(least, |slowest| (slowest * 2).min(SILENT_AFTER_MAX).max(least))
    }

    /// The peer missed a deadline: others are asked before it for a while, which differs by up to a half as `random` says,
    /// so that not all come back to it at once.
    pub(crate) fn missed(&mut self, now: Now, node: NodeId, random: u32) {
        let Some(peer) = self.peers.get_mut(&node).filter(|peer| now.monotonic >= peer.avoided_until) else {
            return;
        };
        let wait = LATE.saturating_mul(1 << peer.missed.min(16)).min(AVOIDED_MAX);
        peer.avoided_until =
            now.monotonic + wait / 2 + wait.mul_f64(f64::from(random) / f64::from(u32::MAX)) / 2;
        peer.missed = peer.missed.saturating_add(1);
    }

    /// A peer was found dead, or is alive again. Whether that is news.
    pub(crate) fn found(&mut self, node: NodeId, is_dead: bool) -> bool {
        self.peers.get_mut(&node).is_some_and(|peer| std::mem::replace(&mut peer.is_dead, is_dead) != is_dead)
    }

    /// A peer said goodbye.
    pub(crate) fn left(&mut self, node: NodeId) {
        if let Some(peer) = self.peers.get_mut(&node) {
            (peer.is_dead, peer.has_left) = (true, true);
        }
    }

    /// Whether it is a peer.
    pub(crate) fn knows(&self, node: NodeId) -> bool {
        self.peers.contains_key(&node)
    }

    /// This process stood still for so long: no peer was silent meanwhile.
    pub(crate) fn stood_still(&mut self, stall: Duration) {
        for since in self.peers.values_mut().filter_map(|peer| peer.waiting_since.as_mut()) {
            *since += stall;
        }
    }

    /// Whether requests may be sent to the peer.
    pub(crate) fn is_up(&self, now: Now, node: NodeId, settings: &Settings) -> bool {
        self.peers.get(&node).is_some_and(|peer| peer.is_up(now, settings))
    }

    /// The peers that requests may be sent to.
    pub(crate) fn up(&self, now: Now, settings: &Settings) -> impl Iterator<Item = NodeId> {
        self.peers.iter().filter(move |(_, peer)| peer.is_up(now, settings)).map(|(node, _)| *node)
    }

    /// The lowest that the hybrid clocks of peers that are up showed when they were last heard; none if none is up.
    pub(crate) fn lowest_clock(&self, now: Now, settings: &Settings) -> Option<Counter> {
        let up =
            self.peers.values().filter(|peer| peer.last_heard > Duration::ZERO && peer.is_up(now, settings));
        up.map(|peer| peer.hybrid_clock).min()
    }

    /// Whether the peer has welcomed this process, in whichever of its own.
    pub(crate) fn was_greeted(&self, node: NodeId) -> bool {
        self.peers.get(&node).is_some_and(|peer| peer.ever_greeted)
    }

    /// Whether the peer may be left out of what waits for all that are up. What others say of it is not enough: it may be
    /// the only one to know that this node's store went back in time.
    pub(crate) fn is_down(&self, now: Now, node: NodeId, settings: &Settings) -> bool {
        self.peers.get(&node).is_none_or(|peer| {
            peer.has_left || peer.unanswered >= GREETINGS_UNANSWERED_MAX || peer.is_silent(now, settings)
        })
    }

    /// All peers, and whether requests may be sent to each.
    pub(crate) fn status(&self, now: Now, settings: &Settings) -> impl Iterator<Item = (NodeId, bool)> {
        self.peers.iter().map(move |(node, peer)| (*node, peer.is_up(now, settings)))
    }

    /// Whether the peer owes an answer and has said nothing at all for longer than its slowest answers take of late. It may
    /// be dead: whoever has a choice need not find out by a request.
    pub(crate) fn is_overdue(&self, now: Now, node: NodeId) -> bool {
        self.peers.get(&node).is_none_or(|peer| peer.is_overdue(now))
    }

    /// When it will be, if it goes on saying nothing; none if it owes nothing.
    pub(crate) fn overdue_at(&self, node: NodeId) -> Option<Duration> {
        self.peers.get(&node).and_then(Peer::overdue_at)
    }

    /// What it costs to ask a peer, to be compared: those that are silent or miss deadlines last, then how long answers
    /// take of late.
    pub(crate) fn cost(&self, now: Now, node: NodeId) -> (bool, Duration) {
        self.peers.get(&node).map_or((true, Duration::MAX), |peer| {
            (now.monotonic < peer.avoided_until || peer.is_overdue(now), peer.latency)
        })
    }

    /// If this node's wall clock has jumped, all others are as much farther off: what was heard of them before tells so at
    /// once. (A clock that stands still jumps back a little every time.)
    pub(crate) fn heed_clock(&mut self, now: Now) {
        let monotonic_ms = i64::try_from(now.monotonic.as_millis()).unwrap_or(i64::MAX);
        let base_ms = now.wall.0.cast_signed().saturating_sub(monotonic_ms);
        let jumped_ms = self.wall_base_ms.map_or(0, |before| base_ms.saturating_sub(before));
        if self.wall_base_ms.is_none() || jumped_ms.saturating_abs() >= CLOCK_JUMP_MS_MIN {
            self.wall_base_ms = Some(base_ms);
            self.peers.values_mut().for_each(|peer| peer.clock.shift(jumped_ms.saturating_neg()));
        }
    }

    /// How far this node's clock is ahead of the median of its peers', in milliseconds; none if none was heard.
    pub(crate) fn drift_ms(&self, now: Now) -> Option<i64> {
        // What was heard long ago may have been said before this machine was stopped, and its clock set by as much.
        let is_recent = |peer: &&Peer| now.monotonic <= peer.last_heard + 2 * CLOCK_WINDOW;
        let best = |peer: &Peer| peer.clock.best();
        let mut offsets: SmallVec<[i64; 8]> =
            self.peers.values().filter(is_recent).filter_map(best).collect();
        if offsets.is_empty() {
            offsets = self.peers.values().filter_map(best).collect();
        }
        offsets.sort_unstable();
        // Of an even number the one nearer to us: a clock is not refused on half of the evidence.
        let (low, high) = (offsets.get(offsets.len().checked_sub(1)? / 2)?, offsets.get(offsets.len() / 2)?);
        Some(if low.saturating_abs() <= high.saturating_abs() { *low } else { *high }.saturating_neg())
    }

    /// Every peer is to be greeted at the next occasion, and until it has heard: there is news.
    pub(crate) fn greet_all_soon(&mut self) {
        for peer in self.peers.values_mut() {
            peer.has_news = true;
            peer.untold = Some(self.greetings + 1);
        }
    }

    /// A way to the peer was opened: it is greeted at the next occasion, however often it has not answered.
    pub(crate) fn connected(&mut self, node: NodeId) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.has_news = true;
            peer.unanswered = 0;
        }
    }

    /// The peers to be greeted now, each with the greeting's number and with what to tell it of where this node's store
    /// recovered to; each is due again after its interval.
    pub(crate) fn due(&mut self, now: Now, settings: &Settings) -> Vec<(NodeId, u64, Recovery)> {
        let mut due = Vec::new();
        for (node, peer) in &mut self.peers {
            let is_due = peer.wants_greeting(now, settings) && peer.next_greeting <= now.monotonic;
            if is_due || std::mem::take(&mut peer.has_news) {
                self.greetings += 1;
                due.push((*node, self.greetings, peer.memory.recovery(self.recovered)));
                let doubled = settings.greeting_interval.saturating_mul(1 << peer.unanswered.min(16));
                peer.next_greeting = now.monotonic + doubled.min(settings.greeting_interval_max);
                peer.unanswered += 1;
            }
        }
        due
    }

    /// When a peer is to be greeted next.
    pub(crate) fn next_due(&self, settings: &Settings) -> Option<Duration> {
        let when = |peer: &Peer| {
            let quiet = peer.last_heard + settings.gossip_interval;
            let wanted = match peer.waiting_since {
                _ if !peer.greeted || peer.untold.is_some() => Duration::ZERO,
                Some(since) => quiet.min(since + LATE),
                None => quiet,
            };
            wanted.max(peer.next_greeting)
        };
        self.peers.values().map(when).min()
    }
}

impl PeerMemory {
    /// How far this store was seen to come.
    fn highest(&self, store: StoreId) -> Option<Sequence> {
        let stores = self.seen.iter().chain(&self.before);
        stores.filter(|(seen, _)| *seen == store).map(|(_, sequence)| *sequence).max()
    }

    /// The peer's present store has come so far. What was seen of another is kept.
    fn set_seen(&mut self, store: StoreId, sequence: Sequence) {
        self.before.retain(|(before, _)| *before != store);
        if let Some(former) = self.seen.replace((store, sequence)).filter(|(seen, _)| *seen != store) {
            if self.before.len() == STORES_MAX {
                self.before.remove(0);
            }
            self.before.push(former);
        }
    }

    /// How far this store had been seen to come, if it has recovered to less since.
    fn judge(&self, store: StoreId, recovery: &Recovery) -> Option<Sequence> {
        let seen = self.highest(store)?;
        // The process that was judged wrote to the store that is remembered as the present one.
        match self.judged.filter(|_| self.seen.is_some_and(|(present, _)| present == store)) {
            // What was seen since then was written after that recovery, which was judged; only this one is open.
            Some((judged, verdict)) if recovery.unconfirmed.contains(&judged) => {
                verdict.or((seen > recovery.recovered).then_some(seen))
            }
            Some(_) | None => (seen > recovery.lowest).then_some(seen),
        }
    }

    /// What to tell the peer of where this store recovered to.
    fn recovery(&self, recovered: Sequence) -> Recovery {
        match &self.unconfirmed {
            Some(Unconfirmed { lowest, starts }) => {
                let earlier = starts.split_last().map_or(&[][..], |(_, earlier)| earlier);
                Recovery { recovered, lowest: *lowest, unconfirmed: earlier.to_vec() }
            }
            None => Recovery { recovered, lowest: recovered, unconfirmed: Vec::new() },
        }
    }
}

impl Peer {
    fn is_up(&self, now: Now, settings: &Settings) -> bool {
        self.greeted && !self.is_dead && !self.is_silent(now, settings)
    }

    /// An answer has been awaited for so long that the question or the answer may be lost.
    fn is_late(&self, now: Now) -> bool {
        self.waiting_since.is_some_and(|since| now.monotonic >= since + LATE)
    }

    fn is_overdue(&self, now: Now) -> bool {
        self.overdue_at().is_some_and(|at| now.monotonic >= at)
    }

    fn overdue_at(&self) -> Option<Duration> {
        let slowest = self.slow_answers.slowest();
        let wait = slowest.map_or(OVERDUE_MAX, |slowest| slowest.clamp(OVERDUE_MIN, OVERDUE_MAX));
        self.waiting_since.map(|since| since + wait)
    }

    fn is_silent(&self, now: Now, settings: &Settings) -> bool {
        self.waiting_since.is_some_and(|since| now.monotonic >= since + settings.peer_silent_after)
    }

    fn wants_greeting(&self, now: Now, settings: &Settings) -> bool {
        !self.greeted || self.untold.is_some() || self.is_late(now) || self.is_quiet(now, settings)
    }

    /// Nothing has been heard of it for so long that one of the two may have missed an epoch.
    fn is_quiet(&self, now: Now, settings: &Settings) -> bool {
        now.monotonic >= self.last_heard + settings.gossip_interval
    }
}

impl ClockOffset {
    /// Our own clock was set, so that the peer's is so much farther ahead.
    fn shift(&mut self, by_ms: i64) {
        for sample in [&mut self.current, &mut self.previous].into_iter().flatten() {
            *sample = sample.saturating_add(by_ms);
        }
    }

    fn sample(&mut self, now: Duration, offset_ms: i64) {
        if now >= self.window_began + CLOCK_WINDOW {
            self.previous = self.current.take();
            self.window_began = now;
        }
        self.current = Some(self.current.map_or(offset_ms, |best| best.max(offset_ms)));
    }

    fn best(&self) -> Option<i64> {
        self.current.max(self.previous)
    }
}

#[cfg(test)]
mod tests {
    use antientropy::version::ContextKey;

    use super::*;

    const STORE: StoreId = StoreId(7);
    const PEER: NodeId = NodeId(2);

    fn at(ms: u64) -> Now {
        Now { monotonic: Duration::from_millis(ms), wall: UnixMillis(1_000_000 + ms) }
    }

    fn peers(nodes: &[NodeId]) -> Peers {
        Peers::new(StartId(0), nodes.iter().copied(), Vec::new(), Sequence(0))
    }

    fn recovered(sequence: u64) -> Recovery {
        let recovered = Sequence(sequence);
        Recovery { recovered, lowest: recovered, unconfirmed: Vec::new() }
    }

    fn memories(peers: &Peers) -> Vec<(NodeId, PeerMemory)> {
        peers.peers.iter().map(|(node, peer)| (*node, peer.memory.clone())).collect()
    }

    #[test]
    fn a_peer_whose_answers_are_slow_is_silent_later() {
        let (settings, least) = (Settings::new(ContextKey::new([0; 32])), Duration::from_millis(50));
        for (slowest, silent_after) in [(3, 50), (40, 80), (200, 400), (2000, 500)] {
            let mut peers = peers(&[PEER]);
            assert_eq!(peers.silent_after(PEER, least), least, "nothing is known");
            for number in 0..100 {
                peers.answered(PEER, Duration::from_millis(number % slowest + 1), &settings);
            }
            peers.answered(PEER, Duration::from_millis(slowest), &settings);
            assert_eq!(peers.silent_after(PEER, least), Duration::from_millis(silent_after));
            assert!(peers.patience(PEER, least) <= least);
        }
    }

    #[test]
    fn a_store_that_went_back_is_told_what_was_seen_however_often_it_asks() {
        let mut peers = peers(&[PEER]);
        assert_eq!(peers.hello(PEER, StartId(1), STORE, &recovered(0)).went_back_from, None);
        peers.heard(at(1), PEER, STORE, Sequence(100), (UnixMillis(0), Counter::ZERO));
        let greeted = peers.hello(PEER, StartId(2), STORE, &recovered(40));
        assert_eq!(greeted, Greeted { went_back_from: Some(Sequence(100)), restarted: true });
        peers.heard(at(2), PEER, STORE, Sequence(120), (UnixMillis(0), Counter::ZERO));
        let again = peers.hello(PEER, StartId(2), STORE, &recovered(40));
        assert_eq!(again.went_back_from, Some(Sequence(100)));
        let other = peers.hello(PEER, StartId(3), StoreId(8), &recovered(0));
        assert_eq!(other.went_back_from, None, "another store");
    }

    #[test]
    fn a_peer_that_restarts_says_the_same_of_a_process_that_did_not() {
        let mut before = peers(&[PEER]);
        assert_eq!(before.hello(PEER, StartId(1), STORE, &recovered(40)).went_back_from, None);
        before.heard(at(1), PEER, STORE, Sequence(110), (UnixMillis(0), Counter::ZERO));
        let mut after = Peers::new(StartId(9), [], memories(&before), Sequence(0));
        assert!(!after.is_known(PEER, StartId(1)), "it has not said hello to this process");
        assert_eq!(after.hello(PEER, StartId(1), STORE, &recovered(40)).went_back_from, None);
        let next = after.hello(PEER, StartId(2), STORE, &recovered(50));
        assert_eq!(next.went_back_from, Some(Sequence(110)));
    }

    #[test]
    fn a_recovery_that_nobody_confirmed_is_told_at_the_next_start_too() {
        let settings = Settings::new(ContextKey::new([0; 32]));
        let first = Peers::new(StartId(1), [PEER], Vec::new(), Sequence(4));
        let mut second = Peers::new(StartId(2), [], memories(&first), Sequence(24));
        let told = Recovery { recovered: Sequence(24), lowest: Sequence(4), unconfirmed: vec![StartId(1)] };
        assert_eq!(second.due(at(0), &settings), [(PEER, 1, told.clone())]);

        let mut peer = peers(&[PEER]);
        peer.hello(PEER, StartId(0), STORE, &recovered(0));
        peer.heard(at(1), PEER, STORE, Sequence(9), (UnixMillis(0), Counter::ZERO));
        let greeted = peer.hello(PEER, StartId(2), STORE, &told);
        assert_eq!(
            greeted.went_back_from,
            Some(Sequence(9)),
            "it has overtaken the nine since, and lost them"
        );

        second.welcome(PEER, 1);
        let mut third = Peers::new(StartId(3), [], memories(&second), Sequence(30));
        assert_eq!(third.due(at(0), &settings), [(PEER, 1, recovered(30))]);
    }

    #[test]
    fn what_was_written_after_a_recovery_that_was_judged_is_not_taken_for_lost() {
        // The welcome was heard, and the process died before the batch that would have remembered it.
        let mut peer = peers(&[PEER]);
        assert_eq!(peer.hello(PEER, StartId(1), STORE, &recovered(40)).went_back_from, None);
        peer.heard(at(1), PEER, STORE, Sequence(41), (UnixMillis(0), Counter::ZERO));
        let next = Recovery { recovered: Sequence(41), lowest: Sequence(40), unconfirmed: vec![StartId(1)] };
        assert_eq!(peer.hello(PEER, StartId(2), STORE, &next).went_back_from, None);
        peer.heard(at(1), PEER, STORE, Sequence(50), (UnixMillis(0), Counter::ZERO));
        let back = Recovery {
            recovered: Sequence(45),
            lowest: Sequence(40),
            unconfirmed: vec![StartId(1), StartId(2)],
        };
        assert_eq!(peer.hello(PEER, StartId(3), STORE, &back).went_back_from, Some(Sequence(50)));
    }

    #[test]
    fn a_process_that_wrote_nothing_does_not_stand_between_those_that_did() {
        let mut peer = peers(&[PEER]);
        peer.hello(PEER, StartId(1), STORE, &recovered(71));
        peer.heard(at(1), PEER, STORE, Sequence(72), (UnixMillis(0), Counter::ZERO));
        let next = Recovery { recovered: Sequence(72), lowest: Sequence(71), unconfirmed: vec![StartId(1)] };
        assert_eq!(peer.hello(PEER, StartId(2), STORE, &next).went_back_from, None);
        peer.heard(at(2), PEER, STORE, Sequence(72), (UnixMillis(0), Counter::ZERO));
        assert_eq!(peer.hello(PEER, StartId(3), STORE, &next).went_back_from, None);
    }

    /// The machine ran once with an empty disk, and then the old one came back, from a backup.
    #[test]
    fn a_store_that_went_back_is_told_so_though_another_was_in_its_place() {
        let mut peers = peers(&[PEER]);
        peers.hello(PEER, StartId(1), STORE, &recovered(0));
        peers.heard(at(1), PEER, STORE, Sequence(100), (UnixMillis(0), Counter::ZERO));
        peers.hello(PEER, StartId(2), StoreId(8), &recovered(0));
        peers.heard(at(2), PEER, StoreId(8), Sequence(5), (UnixMillis(0), Counter::ZERO));
        let mut after = Peers::new(StartId(9), [], memories(&peers), Sequence(0));
        for peers in [&mut peers, &mut after] {
            let back = peers.hello(PEER, StartId(3), STORE, &recovered(40));
            assert_eq!(back.went_back_from, Some(Sequence(100)));
            peers.heard(at(3), PEER, STORE, Sequence(60), (UnixMillis(0), Counter::ZERO));
            assert_eq!(
                peers.hello(PEER, StartId(3), STORE, &recovered(40)).went_back_from,
                Some(Sequence(100))
            );
            let other = peers.hello(PEER, StartId(4), StoreId(8), &recovered(5));
            assert_eq!(other.went_back_from, None, "that one has lost nothing");
        }
        for store in 100..200 {
            peers.hello(PEER, StartId(store), StoreId(store), &recovered(0));
            peers.heard(at(4), PEER, StoreId(store), Sequence(1), (UnixMillis(0), Counter::ZERO));
        }
        assert_eq!(memories(&peers)[0].1.before.len(), STORES_MAX);
    }

    #[test]
    fn a_late_hello_does_not_bring_back_a_memory_of_votes_that_was_renewed() {
        let mut peers = peers(&[PEER]);
        peers.hello(PEER, StartId(1), STORE, &recovered(0));
        let introduce = |peers: &mut Peers, voter: Option<u64>| {
            peers.introduce(PEER, STORE, voter.map(VoterId));
            peers.introduced(PEER).map(|(_, voter)| voter.0)
        };
        assert_eq!(introduce(&mut peers, None), None);
        assert_eq!(introduce(&mut peers, Some(u64::MAX - 5)), Some(u64::MAX - 5));
        assert_eq!(introduce(&mut peers, Some(3)), Some(3), "names go round");
        assert_eq!(introduce(&mut peers, Some(u64::MAX - 5)), Some(3));
        assert_eq!(introduce(&mut peers, None), Some(3));
        peers.hello(PEER, StartId(2), STORE, &recovered(0));
        assert_eq!(
            introduce(&mut peers, Some(u64::MAX - 5)),
            Some(u64::MAX - 5),
            "another process says anew"
        );
    }

    #[test]
    fn a_process_that_has_not_said_hello_is_not_known() {
        let mut peers = peers(&[PEER]);
        assert!(!peers.is_known(PEER, StartId(1)));
        peers.hello(PEER, StartId(1), STORE, &recovered(0));
        assert!(peers.is_known(PEER, StartId(1)));
        peers.hello(PEER, StartId(2), STORE, &recovered(0));
        assert!(!peers.is_known(PEER, StartId(1)));
    }

    #[test]
    fn a_silent_peer_is_down_until_it_speaks() {
        let settings = Settings::new(ContextKey::new([0; 32]));
        let mut peers = peers(&[PEER]);
        peers.hello(PEER, StartId(1), STORE, &recovered(0));
        peers.welcome(PEER, 0);
        peers.asked(at(10), PEER);
        assert!(peers.due(at(200), &settings).is_empty());
        assert_eq!(
            peers.due(at(260), &settings),
            [(PEER, 1, Recovery { lowest: Sequence(0), ..recovered(0) })]
        );
        assert!(peers.is_up(at(1500), PEER, &settings));
        assert!(!peers.is_up(at(1510), PEER, &settings));
        peers.heard(at(1520), PEER, STORE, Sequence(0), (UnixMillis(0), Counter::ZERO));
        assert!(peers.is_up(at(4000), PEER, &settings));
    }

    #[test]
    fn a_peer_that_was_found_dead_is_down_until_it_is_heard_or_found_alive() {
        let settings = Settings::new(ContextKey::new([0; 32]));
        let mut peers = peers(&[PEER]);
        peers.hello(PEER, StartId(1), STORE, &recovered(0));
        peers.welcome(PEER, 0);
        assert!(peers.found(PEER, true) && !peers.found(PEER, true));
        assert!(!peers.is_up(at(10), PEER, &settings) && !peers.is_down(at(10), PEER, &settings));
        peers.heard(at(20), PEER, STORE, Sequence(0), (UnixMillis(0), Counter::ZERO));
        assert!(peers.is_up(at(20), PEER, &settings));
        assert!(peers.found(PEER, true) && peers.found(PEER, false));
        assert!(peers.is_up(at(30), PEER, &settings));
        peers.left(PEER);
        assert!(!peers.is_up(at(30), PEER, &settings) && peers.is_down(at(30), PEER, &settings));
        assert!(!peers.found(NodeId(9), true), "a stranger");
    }

    #[test]
    fn a_peer_that_misses_deadlines_is_asked_last_for_longer_each_time() {
        let mut peers = peers(&[PEER, NodeId(3)]);
        peers.asked(at(0), NodeId(3));
        peers.heard(at(100), NodeId(3), STORE, Sequence(0), (UnixMillis(0), Counter::ZERO));
        let is_last = |peers: &Peers, ms| peers.cost(at(ms), PEER) > peers.cost(at(ms), NodeId(3));
        assert!(!is_last(&peers, 0), "it was quicker");
        peers.missed(at(0), PEER, u32::MAX);
        peers.missed(at(10), PEER, u32::MAX);
        assert!(is_last(&peers, 249) && !is_last(&peers, 250));
        peers.missed(at(250), PEER, 0);
        assert!(is_last(&peers, 499) && !is_last(&peers, 500), "half of twice as long");
        peers.asked(at(600), PEER);
        peers.heard(at(601), PEER, STORE, Sequence(0), (UnixMillis(0), Counter::ZERO));
        peers.missed(at(700), PEER, u32::MAX);
        assert!(!is_last(&peers, 950), "it has answered, and begins anew");
    }

    #[test]
    fn a_peer_that_owes_an_answer_is_asked_last_until_it_says_anything() {
        let (mut peers, settings) = (peers(&[PEER]), Settings::new(ContextKey::new([0; 32])));
        (0..200).for_each(|_| peers.answered(PEER, Duration::from_millis(20), &settings));
        assert!(!peers.is_overdue(at(0), PEER));
        peers.asked(at(100), PEER);
        peers.asked(at(115), PEER);
        assert!(
            !peers.is_overdue(at(119), PEER) && peers.is_overdue(at(120), PEER),
            "as slow as at its slowest"
        );
        assert!(peers.cost(at(120), PEER).0 && peers.cost(at(10_000), PEER).0, "for as long as it takes");
        peers.heard(at(121), PEER, STORE, Sequence(0), (UnixMillis(0), Counter::ZERO));
        assert!(!peers.is_overdue(at(121), PEER) && !peers.cost(at(121), PEER).0);
    }

    #[test]
    fn a_jump_of_our_own_clock_is_drift_at_once_and_a_clock_that_stands_still_is_in_time() {
        let now = |ms: u64, ahead: i64| Now {
            monotonic: Duration::from_millis(ms),
            wall: UnixMillis((9_000_000 + ms).saturating_add_signed(ahead)),
        };
        let mut peers = peers(&[PEER]);
        peers.heed_clock(now(0, 0));
        peers.heard(now(0, 0), PEER, STORE, Sequence(0), (UnixMillis(9_000_000), Counter::ZERO));
        assert_eq!(peers.drift_ms(at(0)), Some(0));
        peers.heed_clock(now(10, 3_600_000));
        assert_eq!(peers.drift_ms(at(0)), Some(3_600_000));
        peers.heed_clock(now(20, -3_600_000));
        assert_eq!(peers.drift_ms(at(0)), Some(-3_600_000));
        peers.heed_clock(now(30, 1));
        assert_eq!(peers.drift_ms(at(0)), Some(1));
        (30..1000_i64).for_each(|ms| peers.heed_clock(now(ms.cast_unsigned(), 31 - ms)));
        assert!(
            peers.drift_ms(at(0)).is_some_and(|drift| (-970..=-966).contains(&drift)),
            "{:?}",
            peers.drift_ms(at(0))
        );
    }

    #[test]
    fn drift_is_measured_from_the_median_and_delay_does_not_look_like_drift() {
        let mut peers = peers(&[NodeId(2), NodeId(3), NodeId(4)]);
        assert_eq!(peers.drift_ms(at(0)), None);
        let wall = |ahead: i64| UnixMillis((1_000_000 + ahead).cast_unsigned());
        peers.heard(at(0), NodeId(2), STORE, Sequence(0), (wall(2000), Counter::ZERO));
        peers.heard(at(0), NodeId(3), STORE, Sequence(0), (wall(2010), Counter::ZERO));
        peers.heard(at(0), NodeId(4), STORE, Sequence(0), (wall(-90_000), Counter::ZERO));
        assert_eq!(peers.drift_ms(at(0)), Some(-2000));
        peers.heard(at(0), NodeId(3), STORE, Sequence(0), (wall(500), Counter::ZERO));
        assert_eq!(peers.drift_ms(at(0)), Some(-2000), "a late message is a late message");
    }
}
