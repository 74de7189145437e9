//! Who is up: SWIM with suspicion (Das, Gupta, Motivala, "SWIM: Scalable Weakly-consistent Infection-style Process Group
//! Membership Protocol", DSN 2002), from the `foca` crate. Each node probes one other at a time, directly and then through
//! others; who does not answer is suspected, and declared dead unless it refutes that; all of it travels in the probes
//! themselves. It never decides who owns what, nor whom to believe: [`peers`](crate::peers) says what a death means.
//!
//! **Names.** A process has a generation, its wall clock at its start, so that it takes the place of the process before
//! it. One that finds itself declared dead goes on under a later generation. The steps double: after a clock was set back
//! by an hour, some twenty answers bring the new process level with the old.
//!
//! **A process that stood still** concludes nothing from that: everything that was due is put off by as long, so that the
//! answers that wait for it are heard first. (The idea is local health's: Dadgar, Phillips, Currey, "Lifeguard", DSN 2018.)

use std::{collections::BTreeMap, num::NonZeroU8, num::NonZeroUsize, time::Duration};

use antientropy::version::UnixMillis;
use bytes::{Buf, Bytes};
use foca::{
    AccumulatingRuntime, Codec, Config, Foca, Header, Message, NoCustomBroadcast, OwnedNotification,
    PostcardCodec, State, Timer,
};
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;
use ring::NodeId;
use serde::{Deserialize, Serialize};

use crate::settings::Settings;

/// The most bytes of a packet: what one QUIC datagram carries over any path that QUIC works on.
pub const DATAGRAM_BYTES_MAX: usize = 1100;

/// How often a peer that is in touch, and not known to be a member, is told that this node is one.
const ANNOUNCE_INTERVAL: Duration = Duration::from_millis(250);

/// Members that are asked to probe a silent one.
const INDIRECT_PROBES: NonZeroUsize = NonZeroUsize::new(3).expect("positive");

/// How often each piece of news is told on; doubled logarithm of a thousand members.
const TRANSMISSIONS_MAX: NonZeroU8 = NonZeroU8::new(20).expect("positive");

/// The longest step of a generation, as a power of two in milliseconds: seventy years. Whatever a clock says, a few dozen
/// steps are enough.
const STEP_MAX: u32 = 41;
/// No generation is so high: whoever says so is mistaken, and could not be outbid.
const GENERATION_MAX: u64 = 1 << 56;

/// How often news is told apart from probes, and to how many.
const GOSSIP_INTERVAL: Duration = Duration::from_millis(200);

/// See the module's documentation.
pub(crate) struct Membership {
    foca: Foca<Member, PostcardCodec, ChaCha8Rng, NoCustomBroadcast>,
    runtime: AccumulatingRuntime<Member>,
    timers: BTreeMap<(Duration, u64), Timer<Member>>,
    timers_set: u64,
    /// When those in touch are announced to next, if they are not members yet.
    announce_at: Duration,
}

/// A process, as SWIM names it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Member {
    node: NodeId,
    /// Milliseconds since 1970 at the start of the process, if no later one had to be taken.
    generation: u64,
    /// How often a later generation was taken.
    #[serde(skip)]
    renewals: u32,
}

/// What was found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// A node is a member, or is again.
    Up(NodeId),
    /// Nobody could reach a node, and it has not refuted that.
    Down(NodeId),
    /// This node was declared dead by others, and has gone on under another name.
    Rejoined,
}

impl PartialEq for Member {
    fn eq(&self, other: &Self) -> bool {
        (self.node, self.generation) == (other.node, other.generation)
    }
}

impl Eq for Member {}

impl foca::Identity for Member {
    type Addr = NodeId;

    fn renew(&self) -> Option<Member> {
        let step = 1 << self.renewals.min(STEP_MAX);
        let generation = self.generation.saturating_add(step);
        Some(Member { node: self.node, generation, renewals: self.renewals.saturating_add(1) })
    }

    fn addr(&self) -> NodeId {
        self.node
    }

    fn win_addr_conflict(&self, other: &Member) -> bool {
        self.generation > other.generation
    }
}

impl Membership {
    /// A process that knows of nobody, and of which nobody knows.
    pub(crate) fn new(node: NodeId, began: UnixMillis, seed: u64, settings: &Settings) -> Membership {
        let config = Config {
            probe_period: settings.probe_interval,
            probe_rtt: settings.probe_round_trip,
            num_indirect_probes: INDIRECT_PROBES,
            max_transmissions: TRANSMISSIONS_MAX,
            suspect_to_down_after: settings.suspicion,
            remove_down_after: None,
            max_packet_size: NonZeroUsize::new(DATAGRAM_BYTES_MAX).expect("positive"),
            notify_down_members: true,
            // Whoever is in touch is announced to, dead or not.
            periodic_announce: None,
            periodic_announce_to_down_members: None,
            periodic_gossip: Some(foca::PeriodicParams {
                frequency: GOSSIP_INTERVAL,
                num_members: INDIRECT_PROBES,
            }),
        };
        let member = Member { node, generation: began.0, renewals: 0 };
        Membership {
            foca: Foca::new(member, config, ChaCha8Rng::seed_from_u64(seed), PostcardCodec),
            runtime: AccumulatingRuntime::new(),
            timers: BTreeMap::new(),
            timers_set: 0,
            announce_at: Duration::ZERO,
        }
    }

    /// A packet of a peer arrived. Whether it made sense: it speaks for that peer, and of nodes that are known.
    pub(crate) fn receive(
        &mut self,
        now: Duration,
        from: NodeId,
        packet: &[u8],
        is_known: impl Fn(NodeId) -> bool,
    ) -> bool {
        let own = self.foca.identity().node;
        let is_sound = |member: &Member| {
            (member.node == own || is_known(member.node)) && member.generation < GENERATION_MAX
        };
        if !speaks_for(from, packet, is_sound) {
            return false;
        }
        let taken = self.foca.handle_data(packet, &mut self.runtime);
        self.schedule(now);
        taken.is_ok()
    }

    /// The process stood still for so long: everything is put off by as much.
    pub(crate) fn stood_still(&mut self, stall: Duration) {
        let timers = std::mem::take(&mut self.timers);
        self.timers = timers.into_iter().map(|((at, number), timer)| ((at + stall, number), timer)).collect();
    }

    /// Does what is due.
    pub(crate) fn handle_timeout(&mut self, now: Duration) {
        while let Some(due) = self.timers.first_entry().filter(|due| due.key().0 <= now) {
            let timer = due.remove();
            if self.is_void(&timer) {
                continue;
            }
            // What goes wrong here is a probe that was cut short: the next one is complete.
            drop(self.foca.handle_timer(timer, &mut self.runtime));
            self.schedule(now);
        }
    }

    /// Tells those that are in touch, and are no members yet, that this node is one: they answer with all that they know.
    pub(crate) fn announce(&mut self, now: Duration, in_touch: impl Iterator<Item = NodeId>) {
        if now < self.announce_at {
            return;
        }
        self.announce_at = now + ANNOUNCE_INTERVAL;
        for node in in_touch {
            if !self.foca.iter_members().any(|member| member.id().node == node) {
                let member = Member { node, generation: 0, renewals: 0 };
                drop(self.foca.announce(member, &mut self.runtime));
            }
        }
    }

    /// When [`Membership::handle_timeout`] is to be called.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        self.timers.keys().next().map(|(at, _)| *at)
    }

    /// A packet to be sent.
    pub(crate) fn poll_packet(&mut self) -> Option<(NodeId, Bytes)> {
        self.runtime.to_send().map(|(member, packet)| (member.node, packet))
    }

    /// What was found out.
    pub(crate) fn poll_finding(&mut self) -> Option<Finding> {
        loop {
            match self.runtime.to_notify()? {
                OwnedNotification::MemberUp(member) => return Some(Finding::Up(member.node)),
                OwnedNotification::MemberDown(member) => return Some(Finding::Down(member.node)),
                OwnedNotification::Rejoin(_) => return Some(Finding::Rejoined),
                OwnedNotification::Rename(..)
                | OwnedNotification::Active
                | OwnedNotification::Idle
                | OwnedNotification::Defunct => {}
            }
        }
    }

    /// Whether a timer is the end of a suspicion that was refuted. foca (2.0.0) declares nobody dead then, but tells the
    /// member that it is, which takes another name for nothing.
    fn is_void(&self, timer: &Timer<Member>) -> bool {
        let Timer::ChangeSuspectToDown { member_id, incarnation, .. } = timer else { return false };
        !self.foca.iter_members().any(|member| {
            (member.id(), member.incarnation(), member.state()) == (member_id, *incarnation, State::Suspect)
        })
    }

    fn schedule(&mut self, now: Duration) {
        while let Some((after, timer)) = self.runtime.to_schedule() {
            self.timers_set += 1;
            self.timers.insert((now + after, self.timers_set), timer);
        }
    }
}

/// Whether a packet is the word of `from`, and names only members that are sound.
fn speaks_for(from: NodeId, mut packet: &[u8], is_sound: impl Fn(&Member) -> bool) -> bool {
    let mut codec = PostcardCodec;
    let header: Result<Header<Member>, _> = codec.decode_header(&mut packet);
    let Ok(Header { src, dst, message, .. }) = &header else { return false };
    let third = match message {
        Message::PingReq { target: third, .. }
        | Message::IndirectPing { origin: third, .. }
        | Message::IndirectAck { target: third, .. }
        | Message::ForwardedAck { origin: third, .. } => Some(third),
        Message::Ping(_)
        | Message::Ack(_)
        | Message::Announce
        | Message::Feed
        | Message::Gossip
        | Message::Broadcast
        | Message::TurnUndead => None,
    };
    if src.node != from || ![src, dst].into_iter().chain(third).all(&is_sound) {
        return false;
    }
    let count = packet.try_get_u16().unwrap_or(0);
    (0..count).all(|_| {
        let update: Result<foca::Member<Member>, _> = codec.decode_member(&mut packet);
        update.is_ok_and(|update| is_sound(update.id()))
    })
}

#[cfg(test)]
mod tests {
    use antientropy::version::ContextKey;

    use super::*;

    fn member(node: u32) -> Membership {
        let settings = Settings::new(ContextKey::new([0; 32]));
        Membership::new(NodeId(node), UnixMillis(1_780_000_000_000), u64::from(node), &settings)
    }

    fn any(_: NodeId) -> bool {
        true
    }

    fn packet(from: &mut Membership) -> Bytes {
        from.poll_packet().expect("there is one").1
    }

    #[test]
    fn two_that_are_in_touch_become_members() {
        let (mut one, mut two) = (member(1), member(2));
        one.announce(Duration::ZERO, [NodeId(2)].into_iter());
        assert!(two.receive(Duration::ZERO, NodeId(1), &packet(&mut one), any));
        assert_eq!(two.poll_finding(), Some(Finding::Up(NodeId(1))));
        assert!(one.receive(Duration::ZERO, NodeId(2), &packet(&mut two), any));
        assert_eq!(one.poll_finding(), Some(Finding::Up(NodeId(2))));
        one.announce(Duration::from_secs(9), [NodeId(2)].into_iter());
        assert_eq!(one.poll_packet().map(|(to, _)| to), None, "it is one already");
    }

    #[test]
    fn a_node_that_is_declared_dead_again_and_again_always_has_another_name() {
        let mut name = Member { node: NodeId(1), generation: 1_780_000_000_000, renewals: 0 };
        for _ in 0..1000 {
            let next = foca::Identity::renew(&name).unwrap();
            assert!(foca::Identity::win_addr_conflict(&next, &name) && next.generation < GENERATION_MAX);
            name = next;
        }
    }

    /// What nodes of one version send is what those of the next have to read.
    #[test]
    fn packets_keep_their_form() {
        let mut one = member(1);
        one.announce(Duration::ZERO, [NodeId(300)].into_iter());
        assert_eq!(packet(&mut one)[..], [1, 128, 144, 146, 130, 231, 51, 0, 172, 2, 0, 6]);
    }

    #[test]
    fn packets_that_make_no_sense_are_refused() {
        let (mut one, mut two) = (member(1), member(2));
        one.announce(Duration::ZERO, [NodeId(2)].into_iter());
        let good = packet(&mut one);
        for length in 0..good.len() {
            assert!(!two.receive(Duration::ZERO, NodeId(1), &good[..length], any), "cut to {length}");
        }
        assert!(!two.receive(Duration::ZERO, NodeId(1), &[0; DATAGRAM_BYTES_MAX + 1], any));
        assert!(!one.receive(Duration::ZERO, NodeId(1), &good, any), "from itself");
        assert!(!two.receive(Duration::ZERO, NodeId(3), &good, any), "it speaks for another");
        assert!(!two.receive(Duration::ZERO, NodeId(1), &good, |_| false), "of a stranger");
        for byte in 0..good.len() {
            for bit in 0..8 {
                let mut flipped = good.to_vec();
                flipped[byte] ^= 1 << bit;
                // Some make sense all the same; none may do harm.
                two.receive(Duration::ZERO, NodeId(1), &flipped, any);
            }
        }
        assert!(two.receive(Duration::ZERO, NodeId(1), &good, any));
    }
}
