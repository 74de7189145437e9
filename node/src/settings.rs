//! What may be set on a node, with the reason for each number.

use std::time::Duration;

use antientropy::version::ContextKey;

/// A node's settings. The defaults are for production.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The cluster's secret, with which contexts are sealed. The same on all nodes.
    pub context_key: ContextKey,
    /// A replica that is silent for so long, and for twice as long as its slowest answers of late, is replaced by the next in
    /// a read. Lower asks more replicas than needed; higher waits longer for a slow one.
    pub read_retry_after: Duration,
    /// The slowest of so many answers of a replica says when another is asked as well, within a budget of one read in
    /// twenty. Higher asks later and less often.
    pub hedge_window: usize,
    /// A forwarded read that is not answered for so long is forwarded to the next replica too.
    pub forward_retry_after: Duration,
    /// How often one of the peers is probed for whether it lives. Lower finds a death sooner; each probe is two packets.
    pub probe_interval: Duration,
    /// How long a probe may take before others are asked to probe too. Should be more than a round trip takes, and less
    /// than half of the interval.
    pub probe_round_trip: Duration,
    /// How long a peer that nobody can reach may take to say that it lives, before it counts as dead. Higher forgives
    /// more loss and longer pauses.
    pub suspicion: Duration,
    /// A peer that was asked and has said nothing at all for so long counts as down, whatever others say of it.
    pub peer_silent_after: Duration,
    /// How long to wait between two greetings of a peer that does not answer, at first.
    pub greeting_interval: Duration,
    /// The longest that this wait grows, doubling.
    pub greeting_interval_max: Duration,
    /// A peer that has said nothing for so long is greeted, so that both learn of the other's epoch. Lower spreads
    /// documents sooner among nodes that have nothing else to say; higher is quieter.
    pub gossip_interval: Duration,
    /// The longest that a request may ask to take. What is under way is held in memory for so long.
    pub timeout_max: Duration,
    /// Requests under way before new ones are refused. Each holds its record in memory.
    pub requests_max: usize,
    /// How long a request may wait for its turn: above as many requests as are answered in that time, more are refused.
    pub queue_time_max: Duration,
    /// Bytes of recently used records that are kept in memory, each of at most 4 KiB. More answers more reads, and
    /// finds what writes are merged with, without the store.
    pub record_cache_bytes: usize,
    /// Bytes written and not yet synced before writes are refused.
    pub unsynced_bytes_max: usize,
    /// Messages of a newer epoch that are kept while its document is fetched.
    pub parked_max: usize,
    /// Outcomes of writes that are kept for retries.
    pub outcomes_max: usize,
    /// How long they are kept.
    pub outcome_age_max: Duration,
    /// Concurrent values of one key before a write is refused.
    pub siblings_max: usize,
    /// Writers that one object remembers before a write is refused; each costs 16 bytes in every copy and context.
    pub writers_max: usize,
    /// Bytes of one object before a write is refused.
    pub object_bytes_max: usize,
    /// How far the node's clock may be from the median of its peers' before it refuses to date writes.
    pub clock_drift_max: Duration,
    /// Hints kept for one peer; at the bound the oldest is dropped, which an exchange covers. Each takes its key and some
    /// hundred bytes, in memory and on disk.
    pub hints_per_peer_max: usize,
    /// Hints that this node lets all others have on their way to it at once. More fills it sooner after it was away, and
    /// takes more of it from requests meanwhile.
    pub hints_granted_max: usize,
    /// How long a hint is kept.
    pub hint_age_max: Duration,
    /// How often what this node shares with each peer is compared with it.
    pub exchange_interval: Duration,
    /// Whether an exchange is also due at once with a peer that was away or for whom a hint was dropped, and after a start.
    /// Without it hints alone have to bring what they owe, which tests ask of them.
    pub exchange_on_suspicion: bool,
    /// Exchanges that this node leads at once.
    pub exchanges_max: usize,
    /// Bytes that wait for this node's own disk while it leads an exchange, from which on it asks for no more.
    pub exchange_unsynced_max: usize,
    /// Keys that an exchange or a scrub scans in one turn.
    pub scan_stretch_keys: usize,
    /// Keys that are scanned in one turn while a partition has no hash trees. Each stretch costs a search in all tables of
    /// the store; more has them sooner after a start, and requests meanwhile wait longer for their turn.
    pub build_stretch_keys: usize,
    /// How long it takes to read all that is stored and to compare it with what should be there.
    pub scrub_interval: Duration,
    /// An exchange that got no answer for so long is given up and tried again later.
    pub exchange_silent_after: Duration,
    /// No write is under way for longer than this: what is older counts as settled. A write that takes longer holds back
    /// what can be promised, and one that arrives later is refused.
    pub settled_after: Duration,
    /// How often this node promises that it holds all that others do, up to a time. Tombstones live a little longer than that.
    /// Lower drops them sooner; each promise is a write of a few hundred bytes.
    pub watermark_interval: Duration,
    /// Tombstones and records with superfluous contexts that are remembered until they can be dropped; of more, the
    /// partitions are scanned for them. Each takes its key and some hundred bytes of memory.
    pub prunable_max: usize,
    /// A round of agreement that is not decided for so long is given up and tried again, with more time each time.
    /// Lower recovers sooner from lost messages; it should leave room for two round trips and seven syncs.
    pub round_timeout: Duration,
    /// How long after its start a process waits for members that are down before it votes about documents without
    /// them. Its own store may have gone back in time, and one of them may be the only one to know. Lower lets
    /// documents change sooner after a restart while a member is down.
    pub vote_patience: Duration,
    /// Changes of the document that are under way at this node before more are refused.
    pub changes_max: usize,
}

impl Settings {
    /// Asserts what every configuration has to keep to; whoever reads one from outside checks it first.
    pub(crate) fn assert_sound(&self) {
        let positive = [
            self.read_retry_after,
            self.forward_retry_after,
            self.peer_silent_after,
            self.probe_interval,
            self.probe_round_trip,
            self.suspicion,
            self.greeting_interval,
            self.gossip_interval,
            self.exchange_interval,
            self.exchange_silent_after,
            self.scrub_interval,
            self.settled_after,
            self.watermark_interval,
            self.round_timeout,
        ];
        assert!(positive.iter().all(|duration| !duration.is_zero()), "intervals are positive");
        assert!(self.probe_round_trip < self.probe_interval, "a probe has time for its second round");
        assert!(self.hedge_window > 0, "a window has answers");
        assert!(self.scan_stretch_keys > 0 && self.build_stretch_keys > 0, "a stretch has keys");
    }

    /// The defaults, under a cluster's secret.
    #[must_use]
    pub fn new(context_key: ContextKey) -> Settings {
        Settings {
            context_key,
            read_retry_after: Duration::from_millis(50),
            hedge_window: 100,
            forward_retry_after: Duration::from_millis(250),
            probe_interval: Duration::from_millis(250),
            probe_round_trip: Duration::from_millis(100),
            suspicion: Duration::from_millis(800),
            peer_silent_after: Duration::from_millis(1500),
            greeting_interval: Duration::from_millis(100),
            greeting_interval_max: Duration::from_secs(2),
            gossip_interval: Duration::from_secs(1),
            timeout_max: Duration::from_secs(300),
            requests_max: 16 * 1024,
            queue_time_max: Duration::from_millis(100),
            record_cache_bytes: 64 << 20,
            unsynced_bytes_max: 64 << 20,
            parked_max: 1024,
            outcomes_max: 64 * 1024,
            outcome_age_max: Duration::from_secs(60),
            siblings_max: 64,
            writers_max: 4096,
            object_bytes_max: 8 << 20,
            clock_drift_max: Duration::from_millis(500),
            hints_per_peer_max: 256 * 1024,
            hints_granted_max: 512,
            hint_age_max: Duration::from_secs(3 * 3600),
            exchange_interval: Duration::from_secs(5),
            exchange_on_suspicion: true,
            exchanges_max: 4,
            exchange_unsynced_max: 1 << 20,
            scan_stretch_keys: 64,
            build_stretch_keys: 256,
            scrub_interval: Duration::from_secs(7 * 86_400),
            exchange_silent_after: Duration::from_secs(2),
            settled_after: Duration::from_secs(15),
            watermark_interval: Duration::from_secs(60),
            prunable_max: 256 * 1024,
            round_timeout: Duration::from_secs(1),
            vote_patience: Duration::from_secs(60),
            changes_max: 8,
        }
    }
}
