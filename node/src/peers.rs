//! What this node knows of its peers: which process it talks to, whether it is up, how far its store had come, and
//! how far its clock is from ours.
//!
//! **Greeting.** A process says hello to every peer with the sequence that its store recovered to, until it is
//! welcomed. A welcome carries the highest sequence of that store that the peer had seen synced before. If that is
//! higher, the store went back in time (it was restored, truncated, or the disk lied), and its copies cannot be
//! believed. Messages of a process that has not said hello are ignored.
//!
//! **Up and down.** Until there is a failure detector, a peer is down when it was asked something and has said
//! nothing at all for a while, or did not answer several hellos; it is then greeted with growing intervals.

use std::{collections::BTreeMap, time::Duration};

use antientropy::version::UnixMillis;
use ring::{NodeId, StoreId};
use smallvec::SmallVec;

use crate::{event::Now, message::StartId, settings::Settings, storage::Sequence};

/// Greetings without an answer before a peer counts as down.
const GREETINGS_UNANSWERED_MAX: u32 = 3;
/// How long the best clock sample of a peer is kept: at least one window, at most two.
const CLOCK_WINDOW: Duration = Duration::from_secs(5);

/// All peers.
pub(crate) struct Peers {
    peers: BTreeMap<NodeId, Peer>,
    /// Peers of which something is remembered that is not yet part of a batch.
    unsaved: bool,
}

/// One peer.
#[derive(Default)]
struct Peer {
    /// The process that said hello last.
    start: Option<StartId>,
    /// What its welcome said: kept so that a repeated hello gets the same.
    verdict: Option<Sequence>,
    /// The highest sequence seen of its present store.
    seen: Option<(StoreId, Sequence)>,
    /// Whether the peer's present process has welcomed this one.
    greeted: bool,
    /// Whether any of its processes has, since this process began.
    ever_greeted: bool,
    /// Hellos without an answer.
    unanswered: u32,
    /// Whether it is to be greeted at once, because there is news in the header.
    has_news: bool,
    /// When to greet or probe it next.
    next_greeting: Duration,
    /// When it was last heard.
    last_heard: Duration,
    /// Since when an answer of any kind has been awaited.
    waiting_since: Option<Duration>,
    /// A moving average of its answers' delays.
    latency: Duration,
    /// How far its clock is ahead of ours, in milliseconds.
    clock: ClockOffset,
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
    pub(crate) seen: Option<Sequence>,
    /// The peer's process is another than before: it does not know ours.
    pub(crate) restarted: bool,
}

impl Peers {
    /// Peers of which nothing is known but what an earlier process of this node had seen of them.
    pub(crate) fn new(
        nodes: impl IntoIterator<Item = NodeId>,
        seen: &[(NodeId, StoreId, Sequence)],
    ) -> Peers {
        let mut peers = Peers { peers: BTreeMap::new(), unsaved: false };
        for node in nodes {
            peers.peers.entry(node).or_default();
        }
        for (node, store, sequence) in seen {
            peers.peers.entry(*node).or_default().seen = Some((*store, *sequence));
        }
        peers
    }

    /// Adds peers that are not known yet.
    pub(crate) fn add(&mut self, nodes: impl IntoIterator<Item = NodeId>) {
        for node in nodes {
            self.peers.entry(node).or_default();
        }
    }

    /// A hello arrived.
    pub(crate) fn hello(
        &mut self,
        from: NodeId,
        start: StartId,
        store: StoreId,
        recovered: Sequence,
    ) -> Greeted {
        let peer = self.peers.entry(from).or_default();
        let restarted = peer.start != Some(start);
        if restarted {
            peer.start = Some(start);
            peer.greeted = false;
            peer.unanswered = 0;
            peer.next_greeting = Duration::ZERO;
            peer.verdict = peer.seen.filter(|(seen, _)| *seen == store).map(|(_, sequence)| sequence);
        }
        let seen = peer.verdict;
        self.see(from, store, recovered);
        Greeted { seen, restarted }
    }

    /// A welcome arrived: the peer knows this process.
    pub(crate) fn welcome(&mut self, from: NodeId) {
        let peer = self.peers.entry(from).or_default();
        peer.greeted = true;
        peer.ever_greeted = true;
        peer.unanswered = 0;
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
        wall: UnixMillis,
    ) {
        self.see(from, store, synced);
        let Some(peer) = self.peers.get_mut(&from) else { return };
        if let Some(since) = peer.waiting_since.take() {
            let sample = now.monotonic.saturating_sub(since);
            peer.latency = (peer.latency * 7 + sample) / 8;
        }
        peer.unanswered = 0;
        peer.last_heard = now.monotonic;
        let offset = wall.0.cast_signed().saturating_sub(now.wall.0.cast_signed());
        peer.clock.sample(now.monotonic, offset);
    }

    /// Remembers how far a peer's store has come.
    fn see(&mut self, from: NodeId, store: StoreId, sequence: Sequence) {
        let peer = self.peers.entry(from).or_default();
        let higher = match peer.seen {
            Some((seen, highest)) if seen == store => sequence > highest,
            Some(_) | None => true,
        };
        if higher {
            peer.seen = Some((store, sequence));
            self.unsaved = true;
        }
    }

    /// What is to be remembered of the peers' stores, if anything has changed since the last time.
    pub(crate) fn take_unsaved(&mut self) -> Option<Vec<(NodeId, StoreId, Sequence)>> {
        std::mem::take(&mut self.unsaved).then(|| {
            let seen = |(node, peer): (&NodeId, &Peer)| peer.seen.map(|(store, at)| (*node, store, at));
            self.peers.iter().filter_map(seen).collect()
        })
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

    /// Whether requests may be sent to the peer.
    pub(crate) fn is_up(&self, now: Now, node: NodeId, settings: &Settings) -> bool {
        self.peers.get(&node).is_some_and(|peer| peer.greeted && !peer.is_silent(now, settings))
    }

    /// Whether the peer has welcomed this process, in whichever of its own.
    pub(crate) fn was_greeted(&self, node: NodeId) -> bool {
        self.peers.get(&node).is_some_and(|peer| peer.ever_greeted)
    }

    /// Whether the peer may be left out of what waits for all that are up.
    pub(crate) fn is_down(&self, now: Now, node: NodeId, settings: &Settings) -> bool {
        self.peers
            .get(&node)
            .is_none_or(|peer| peer.unanswered >= GREETINGS_UNANSWERED_MAX || peer.is_silent(now, settings))
    }

    /// How long its answers have taken of late.
    pub(crate) fn latency(&self, node: NodeId) -> Duration {
        self.peers.get(&node).map_or(Duration::MAX, |peer| peer.latency)
    }

    /// How far this node's clock is ahead of the median of its peers', in milliseconds; none if none was heard.
    pub(crate) fn drift_ms(&self) -> Option<i64> {
        let mut offsets: SmallVec<[i64; 8]> =
            self.peers.values().filter_map(|peer| peer.clock.best()).collect();
        offsets.sort_unstable();
        // Of an even number the one nearer to us: a clock is not refused on half of the evidence.
        let (low, high) = (offsets.get(offsets.len().checked_sub(1)? / 2)?, offsets.get(offsets.len() / 2)?);
        Some(-if low.abs() <= high.abs() { *low } else { *high })
    }

    /// Every peer is to be greeted at the next occasion: there is news in the header.
    pub(crate) fn greet_all_soon(&mut self) {
        for peer in self.peers.values_mut() {
            peer.has_news = true;
        }
    }

    /// The peers to be greeted now; each is due again after its interval.
    pub(crate) fn due(&mut self, now: Now, settings: &Settings) -> Vec<NodeId> {
        let mut due = Vec::new();
        for (node, peer) in &mut self.peers {
            let is_due = peer.wants_greeting(now, settings) && peer.next_greeting <= now.monotonic;
            if is_due || std::mem::take(&mut peer.has_news) {
                due.push(*node);
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
                _ if !peer.greeted => Duration::ZERO,
                Some(since) => quiet.min(since + settings.peer_silent_after),
                None => quiet,
            };
            wanted.max(peer.next_greeting)
        };
        self.peers.values().map(when).min()
    }
}

impl Peer {
    fn is_silent(&self, now: Now, settings: &Settings) -> bool {
        self.waiting_since.is_some_and(|since| now.monotonic >= since + settings.peer_silent_after)
    }

    fn wants_greeting(&self, now: Now, settings: &Settings) -> bool {
        !self.greeted || self.is_silent(now, settings) || self.is_quiet(now, settings)
    }

    /// Nothing has been heard of it for so long that one of the two may have missed an epoch.
    fn is_quiet(&self, now: Now, settings: &Settings) -> bool {
        now.monotonic >= self.last_heard + settings.gossip_interval
    }
}

impl ClockOffset {
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

    #[test]
    fn a_store_that_went_back_is_told_what_was_seen_however_often_it_asks() {
        let mut peers = Peers::new([PEER], &[]);
        assert_eq!(peers.hello(PEER, StartId(1), STORE, Sequence(0)).seen, None);
        peers.heard(at(1), PEER, STORE, Sequence(100), UnixMillis(0));
        let greeted = peers.hello(PEER, StartId(2), STORE, Sequence(40));
        assert_eq!(greeted, Greeted { seen: Some(Sequence(100)), restarted: true });
        peers.heard(at(2), PEER, STORE, Sequence(120), UnixMillis(0));
        assert_eq!(peers.hello(PEER, StartId(2), STORE, Sequence(40)).seen, Some(Sequence(100)));
        assert_eq!(peers.hello(PEER, StartId(3), StoreId(8), Sequence(0)).seen, None, "another store");
    }

    #[test]
    fn a_process_that_has_not_said_hello_is_not_known() {
        let mut peers = Peers::new([PEER], &[]);
        assert!(!peers.is_known(PEER, StartId(1)));
        peers.hello(PEER, StartId(1), STORE, Sequence(0));
        assert!(peers.is_known(PEER, StartId(1)));
        peers.hello(PEER, StartId(2), STORE, Sequence(0));
        assert!(!peers.is_known(PEER, StartId(1)));
    }

    #[test]
    fn a_silent_peer_is_down_until_it_speaks() {
        let settings = Settings::new(ContextKey::new([0; 32]));
        let mut peers = Peers::new([PEER], &[]);
        peers.hello(PEER, StartId(1), STORE, Sequence(0));
        peers.welcome(PEER);
        peers.asked(at(10), PEER);
        assert!(peers.is_up(at(500), PEER, &settings));
        assert!(!peers.is_up(at(510), PEER, &settings));
        assert_eq!(peers.due(at(510), &settings), [PEER]);
        peers.heard(at(520), PEER, STORE, Sequence(0), UnixMillis(0));
        assert!(peers.is_up(at(2000), PEER, &settings));
    }

    #[test]
    fn drift_is_measured_from_the_median_and_delay_does_not_look_like_drift() {
        let mut peers = Peers::new([NodeId(2), NodeId(3), NodeId(4)], &[]);
        assert_eq!(peers.drift_ms(), None);
        let wall = |ahead: i64| UnixMillis((1_000_000 + ahead).cast_unsigned());
        peers.heard(at(0), NodeId(2), STORE, Sequence(0), wall(2000));
        peers.heard(at(0), NodeId(3), STORE, Sequence(0), wall(2010));
        peers.heard(at(0), NodeId(4), STORE, Sequence(0), wall(-90_000));
        assert_eq!(peers.drift_ms(), Some(-2000));
        peers.heard(at(0), NodeId(3), STORE, Sequence(0), wall(500));
        assert_eq!(peers.drift_ms(), Some(-2000), "a late message is a late message");
    }
}
