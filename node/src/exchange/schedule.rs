//! With whom an exchange is due, and when; and the answers to those that peers lead.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use antientropy::{exchange::Follower, version::UnixMillis};
use bytes::Bytes;
use rand_core::Rng;
use ring::{NodeId, PartitionId, StoreId};

use super::{
    ExchangeOperation, FIRST,
    engagement::{Engagement, Role},
    facing::Facing,
};
use crate::{
    copies::Time,
    lag::PeerSync,
    local::Local,
    message::{ExchangeAnswer, Message, Standing, Tag},
    settings::Settings,
    storage::Store,
    waiting::Waiting,
};

/// How long after an exchange that was given up the next is tried.
pub(crate) const RETRY_AFTER: Duration = Duration::from_millis(250);

/// Exchanges with all peers.
pub(crate) struct Exchanges {
    peers: BTreeMap<NodeId, Peer>,
    running: usize,
    pub(super) engagement: Engagement,
}

/// Exchanges with a peer.
struct Peer {
    /// Its recorded store.
    store: Option<StoreId>,
    /// The partitions that both nodes have copies of.
    shared: Arc<[PartitionId]>,
    /// When the next is due.
    at: Duration,
    is_running: bool,
    /// Whether there is a reason for one, whoever usually leads.
    is_wanted: bool,
    synced: Synced,
    follower: Option<Following>,
}

/// What is remembered of an exchange that the peer leads.
struct Following {
    follower: Follower,
    /// Its number.
    exchange: u64,
    /// Where the peer stood when it began, and in which time of filling this node's copies were then.
    standing: Standing,
    times: Vec<Time>,
    /// As [`Copies::generations`](crate::copies::Copies::generations) was when the peer was last told of them.
    generations: u64,
    /// When the peer first asked, and when it last did.
    first: Duration,
    last: Duration,
}

/// How far both nodes are known to be in sync.
#[derive(Clone, Copy)]
struct Synced {
    /// When the last exchange began that found or made everything equal; if there was none, since when one is missing.
    since: Duration,
    is_known: bool,
    /// When something was last lost: what began before says nothing.
    lost_at: Duration,
    /// In how many partitions it found differences.
    differed: u32,
}

impl Synced {
    /// There was no exchange yet since something may have been lost.
    fn never(now: Duration) -> Synced {
        Synced { since: now, is_known: false, lost_at: now, differed: 0 }
    }

    /// Something may have been lost now.
    fn lost(&mut self, now: Duration) {
        let since = if self.is_known { now } else { self.since };
        *self = Synced { since, ..Synced::never(now) };
    }
}

impl Exchanges {
    /// None.
    pub(crate) fn new() -> Exchanges {
        Exchanges { peers: BTreeMap::new(), running: 0, engagement: Engagement::default() }
    }

    /// There is a new document. Exchanges are due at once with new peers; with others they stay due when they were.
    pub(crate) fn plan<S: Store>(&mut self, local: &Local<S>) {
        let mut shared: BTreeMap<NodeId, Vec<PartitionId>> = BTreeMap::new();
        for (partition, sharers) in &local.sharers {
            sharers.iter().for_each(|peer| shared.entry(*peer).or_default().push(*partition));
        }
        let at_once = local.settings.exchange_on_suspicion;
        let first_after = if at_once { Duration::ZERO } else { local.settings.exchange_interval };
        let mut before = std::mem::take(&mut self.peers);
        for (peer, partitions) in shared {
            let shared: Arc<[PartitionId]> = Arc::from(partitions);
            let store = local.recorded_store(peer);
            let planned = match before.remove(&peer) {
                // What was agreed with it was about other partitions, perhaps.
                Some(known) if known.store == store && is_part(&shared, &known.shared) => {
                    Peer { shared, follower: None, ..known }
                }
                // What another store of it had is no matter, and what is shared now was not compared.
                Some(known) => {
                    let synced = Synced::never(local.now.monotonic);
                    Peer { store, shared, synced, follower: None, ..known }
                }
                None => Peer {
                    store,
                    shared,
                    at: local.now.monotonic + first_after,
                    is_running: false,
                    is_wanted: false,
                    synced: Synced::never(local.now.monotonic),
                    follower: None,
                },
            };
            self.peers.insert(peer, planned);
        }
        self.engagement.clear();
        // Whoever is no peer any more ends what runs with it: all exchanges end with a new document.
        self.running -= before.values().filter(|peer| peer.is_running).count();
    }

    /// Starts what is due, as far as there is room.
    pub(crate) fn start_due<S: Store>(&mut self, local: &mut Local<S>) -> Vec<ExchangeOperation> {
        let now = local.now.monotonic;
        for (partition, delay) in std::mem::take(&mut local.to_fill) {
            for peer in local.sharers.get(&partition).into_iter().flatten() {
                if let Some(peer) = self.peers.get_mut(peer) {
                    peer.at = peer.at.min(now + delay);
                    peer.synced.lost(now);
                }
            }
        }
        for partition in std::mem::take(&mut local.to_exchange) {
            for peer in local.sharers.get(&partition).into_iter().flatten() {
                if let Some(peer) = self.peers.get_mut(peer) {
                    peer.at = peer.at.min(now);
                }
            }
        }
        for peer in std::mem::take(&mut local.to_compare) {
            let peer = self.peers.get_mut(&peer).filter(|_| local.settings.exchange_on_suspicion);
            if let Some(peer) = peer {
                peer.is_wanted = true;
                peer.at = peer.at.min(now);
            }
        }
        let mut started = Vec::new();
        while self.running < local.settings.exchanges_max {
            let due = self.peers.iter_mut().filter(|(_, peer)| !peer.is_running && peer.at <= now);
            let Some((&node, peer)) = due.min_by_key(|(_, peer)| peer.at) else { break };
            let mut lacks = false;
            for partition in peer.shared.iter().copied() {
                if !local.copies.lacks_exchange(partition, node) {
                    // Its mark may have been in a batch that was refused.
                    local.become_whole(partition);
                }
                lacks |= local.copies.lacks_exchange(partition, node);
            }
            peer.follower
                .take_if(|following| following.last + 2 * local.settings.exchange_silent_after < now);
            let leads = lacks || peer.is_wanted || local.node < node;
            let is_up = leads && local.is_up(node);
            let exchange = if is_up { ExchangeOperation::start(local, node, &peer.shared) } else { None };
            match exchange {
                Some(mut exchange) => {
                    peer.is_running = true;
                    exchange.was_wanted = std::mem::take(&mut peer.is_wanted);
                    self.running += 1;
                    started.push(exchange);
                }
                None => {
                    let wait = if leads { RETRY_AFTER } else { local.settings.exchange_interval };
                    peer.at = now + jittered(local, wait);
                }
            }
        }
        started
    }

    /// An exchange ended.
    pub(crate) fn ended<S: Store>(&mut self, local: &mut Local<S>, ended: &ExchangeOperation) {
        let report = ended.exchange.report();
        local.counters.exchange_bytes += report.bytes;
        local.counters.exchange_payload_bytes += report.payload_bytes;
        local.counters.exchange_differences += report.updated + report.missing;
        let left_out = ended.left_out(local);
        if ended.is_complete() {
            local.counters.exchanges_completed += 1;
            local.counters.exchanges_equal += u64::from(report.messages == 1);
            let taken = local.now.monotonic.saturating_sub(ended.begun);
            local.counters.exchange_durations.add(u64::try_from(taken.as_millis()).unwrap_or(u64::MAX));
            let theirs: Vec<u64> =
                ended.theirs.iter().flat_map(Standing::each).map(|run| run.filling).collect();
            for ((partition, run), theirs) in ended.shared.iter().zip(ended.standing.each()).zip(theirs) {
                let time = ended.times.get(partition).copied().unwrap_or_default();
                if !left_out.contains(partition) && local.copies.time(*partition) == time {
                    local.watermarks.credit(*partition, ended.peer, run.lowest);
                    local.copies.exchanged(*partition, time, ended.peer, theirs);
                    local.become_whole(*partition);
                }
            }
        } else if ended.was_put_off {
            local.counters.exchanges_put_off += 1;
        } else {
            local.counters.exchanges_abandoned += 1;
        }
        if ended.is_engaged {
            self.engagement.release(ended.peer, Role::Leads);
        }
        let Some(peer) = self.peers.get_mut(&ended.peer).filter(|peer| peer.is_running) else { return };
        self.running -= 1;
        peer.is_running = false;
        peer.is_wanted |= ended.was_wanted && !ended.is_complete();
        let is_all = ended.is_complete() && left_out.is_empty();
        let differed = u32::try_from(ended.exchange.differing()).unwrap_or(u32::MAX);
        if is_all {
            peer.in_sync(local, ended.peer, ended.begun, differed);
        }
        let begun = local.now.monotonic.saturating_sub(ended.begun);
        local.send(
            ended.peer,
            Message::ExchangeEnded {
                exchange: ended.operation(),
                is_complete: ended.is_complete(),
                left_out: left_out.iter().copied().collect(),
                begun,
                differed,
            },
        );
        let lacks =
            || peer.shared.iter().any(|partition| local.copies.lacks_exchange(*partition, ended.peer));
        let wait = match is_all {
            true if peer.is_wanted || lacks() => Duration::ZERO,
            false if ended.is_behind => Duration::ZERO,
            true => local.settings.exchange_interval,
            false => RETRY_AFTER,
        };
        peer.at = local.now.monotonic + jittered(local, wait);
    }

    /// Whether something is shared with a node.
    pub(crate) fn is_with(&self, node: NodeId) -> bool {
        self.peers.contains_key(&node)
    }

    /// When something is due next.
    pub(crate) fn next_due(&self, settings: &Settings) -> Option<Duration> {
        let has_room = self.running < settings.exchanges_max;
        let idle = self.peers.values().filter(|peer| has_room && !peer.is_running);
        idle.map(|peer| peer.at).min()
    }

    /// An exchange has ended that a peer led: whether it was complete but for these partitions, how long ago it began, and
    /// what it found.
    pub(crate) fn peer_ended<S: Store>(
        &mut self,
        local: &mut Local<S>,
        from: NodeId,
        store: StoreId,
        ended: PeerEnded,
    ) {
        self.engagement.release(from, Role::Follows);
        let is_recorded = local.recorded_store(from) == Some(store);
        let Some(peer) = self.peers.get_mut(&from) else { return };
        let following = peer.follower.take_if(|following| following.exchange == ended.exchange);
        let Some(following) = following.filter(|_| ended.is_complete && is_recorded) else { return };
        for ((partition, run), time) in
            peer.shared.iter().zip(following.standing.each()).zip(&following.times)
        {
            let is_left_out = ended.left_out.binary_search(partition).is_ok();
            if !is_left_out && local.copies.time(*partition) == *time {
                local.watermarks.credit(*partition, from, run.lowest);
            }
        }
        if ended.left_out.is_empty() {
            // It began before this node was asked; and what was lost here since is not there any more.
            let at = local.now.monotonic.saturating_sub(ended.begun).min(following.first);
            peer.in_sync(local, from, at, ended.differed);
        }
    }

    /// How far this node and each peer with which it shares something are in sync.
    pub(crate) fn in_sync(&self, now: Duration) -> impl Iterator<Item = PeerSync> {
        self.peers.iter().map(move |(&peer, Peer { synced, .. })| PeerSync {
            peer,
            age: now.saturating_sub(synced.since),
            is_known: synced.is_known,
            differed: synced.differed,
        })
    }

    /// Answers a peer that leads an exchange, once everything is synced that the answer is about.
    pub(crate) fn answer<S: Store>(
        &mut self,
        local: &mut Local<S>,
        from: NodeId,
        store: StoreId,
        tag: Tag,
        (standing, question): (Option<Standing>, Bytes),
    ) {
        let now = local.now.monotonic;
        let mut own = None;
        if tag.question == FIRST
            && let Some(peer) = self.peers.get_mut(&from)
            && let Some(standing) = standing.filter(|standing| standing.len() == peer.shared.len() as u64)
        {
            let shared = Arc::clone(&peer.shared);
            // One that is not recorded yet may fill; what it says of itself counts for nothing.
            let is_level = if local.recorded_store(from) == Some(store) {
                local.close(&shared, &standing);
                local.hear_standing(from, &shared, &standing)
            } else {
                local.hear_stranger(from, &shared, &standing)
            };
            own = Some(local.standing(&shared));
            if !is_level {
                let answer = ExchangeAnswer { standing: own, answer: None };
                let pending = local.replica.pending_any();
                let message = Message::ExchangeAnswer { tag, answer };
                return local.when_synced(pending, Waiting::Message { to: from, message });
            }
            let times = shared.iter().map(|partition| local.copies.time(*partition)).collect();
            peer.follower = Some(Following {
                follower: Follower::new(),
                exchange: tag.operation,
                standing,
                times,
                generations: local.copies.generations(),
                first: now,
                last: now,
            });
        }
        let may_engage = self.engagement.may_engage(local, from, Role::Follows);
        let answer = self.peers.get_mut(&from).and_then(|peer| {
            let following = peer.follower.as_mut().filter(|following| following.exchange == tag.operation)?;
            following.last = now;
            let mut facing = Facing::following(local, from, &peer.shared)?;
            let follower = &mut following.follower;
            // That something differs is said at once; whether the peer goes into it is for the peer to say.
            let was_engaged = follower.is_engaged();
            let answer = follower.answer(&mut facing, question, may_engage).ok();
            if was_engaged && follower.is_engaged() && answer.is_some() {
                self.engagement.engage(local, from, Role::Follows);
            }
            // What it was looking for it may have found damaged: that it is not there is no news of a copy that was whole.
            if local.copies.generations() != following.generations {
                following.generations = local.copies.generations();
                own = Some(local.standing(&peer.shared));
            }
            answer
        });
        match answer {
            Some(answer) => {
                let answer = ExchangeAnswer { standing: own, answer: Some(answer) };
                let message = Message::ExchangeAnswer { tag, answer };
                let pending = local.replica.pending_any();
                local.when_synced(pending, Waiting::Message { to: from, message });
            }
            None => local.send(from, Message::Declined { tag }),
        }
    }
}

/// What a peer says of an exchange that it led.
pub(crate) struct PeerEnded {
    pub(crate) exchange: u64,
    pub(crate) is_complete: bool,
    pub(crate) left_out: Vec<PartitionId>,
    pub(crate) begun: Duration,
    pub(crate) differed: u32,
}

impl Peer {
    /// All was equal that was there at this time.
    fn in_sync<S: Store>(&mut self, local: &mut Local<S>, node: NodeId, begun: Duration, differed: u32) {
        if begun < self.synced.lost_at {
            return;
        }
        let since = if self.synced.is_known { begun.max(self.synced.since) } else { begun };
        self.synced = Synced { since, is_known: true, differed, ..self.synced };
        let ago = local.now.monotonic.saturating_sub(begun).as_millis();
        let wall = local.now.wall.0.saturating_sub(u64::try_from(ago).unwrap_or(u64::MAX));
        local.lag.in_sync(node, begun, UnixMillis(wall));
    }
}

/// Whether all of some partitions are among others, both in ascending order.
fn is_part(some: &[PartitionId], others: &[PartitionId]) -> bool {
    some.iter().all(|partition| others.binary_search(partition).is_ok())
}

/// So long, and up to a quarter more.
fn jittered<S: Store>(local: &mut Local<S>, wait: Duration) -> Duration {
    let quarter = u64::try_from(wait.as_nanos() / 4).unwrap_or(u64::MAX).max(1);
    wait + Duration::from_nanos(local.rng.next_u64() % quarter)
}
