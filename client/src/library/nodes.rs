//! The members as this client knows them: how to reach each, and how each has fared of late.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use dashmap::DashMap;
use ring::{ClusterDocument, ClusterId, NodeId};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use super::{
    attempts::Kind,
    connection::Connection,
    dialer::Dialer,
    failure::{DialError, Unreached},
    window::Window,
};
use crate::{
    Limit,
    hedge::{HedgeBudget, SlowAnswers},
};

/// How long a node is left alone after its first failure; it doubles with each that follows.
const REST_FIRST: Duration = Duration::from_millis(100);
/// The longest that a node is left alone. One request is then sent to it, by which the client learns that it is back.
const REST_MAX: Duration = Duration::from_secs(5);
/// How long that one request is waited for before another is sent.
const PROBE_WAIT: Duration = Duration::from_secs(1);
/// The weight of a new latency against those before.
const LATENCY_WEIGHT: f64 = 0.2;
/// Latencies below this are alike: what differs there is who was asked at which moment.
const LATENCY_FLOOR_S: f64 = 200e-6;
/// Latencies that are measured before any counts: the first are of a connection, and maybe a process, that is warming up.
const SAMPLES_MIN: u32 = 3;
/// A latency counts half after this time, so that a node that was slow once is tried again: after a second or two, by
/// one request. Trying it at random instead would put a share of all requests in its way.
const LATENCY_HALF_LIFE: Duration = Duration::from_millis(500);
/// How many times as long as its slowest answers of late a node may take before it is late.
const LATE_FACTOR: u32 = 2;
/// Answers of one kind after which the slowest is known, and after which it is forgotten.
const SLOW_WINDOW: usize = 100;
/// Attempts in a row that may begin early because of one node: as many as a busy client has in flight at it.
const HEDGES_MAX: u32 = 100;
/// Requests in a row that may be tried again after a node that has too much to do refused them. Beyond these it is one for
/// twenty that it carries out: else those that are refused would be all that it has to do.
const RETRIES_MAX: u32 = 5000;
/// How long to wait for a connection before another node is asked. The dialing goes on.
pub(crate) const LINK_WAIT: Duration = Duration::from_millis(250);

/// Every member, by its id. Bounded by the cluster document.
pub(crate) struct Nodes {
    table: DashMap<NodeId, Arc<Node>>,
    dialer: Arc<Dialer>,
}

/// One member.
pub(crate) struct Node {
    id: NodeId,
    address: String,
    cluster: ClusterId,
    link: Mutex<Link>,
    /// Reads and writes.
    in_flight: [AtomicU32; 2],
    health: Mutex<Health>,
}

/// The way to a node.
enum Link {
    /// Nobody has needed it, or it broke.
    Idle,
    /// A task is at it; all who need it wait for the same.
    Dialing(Dialing),
    /// A connection that was open when it was last used.
    Up(Arc<Connection>),
}

/// What speaks for and against asking a node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Condition {
    /// How many times in a row it has failed, if that was so recently that others are better asked (as those do that find
    /// another's probe under way); otherwise none.
    pub(crate) failures: u32,
    /// Whether it is sent nothing more at present, and whether it has just refused a request, because it has too much to do.
    pub(crate) is_full: bool,
    pub(crate) is_avoided: bool,
    /// Its latency of late, for each request that it has already; little for a node that was not asked for long, so that
    /// it is asked again.
    pub(crate) cost: f64,
}

type Dialing = watch::Receiver<Option<Result<Arc<Connection>, DialError>>>;

/// How a node has fared of late.
#[derive(Clone, Copy, Debug)]
struct Health {
    /// Of reads and of writes.
    slow_answers: [SlowAnswers; 2],
    hedges: HedgeBudget,
    /// How many requests that it refused because it has too much to do may be tried again.
    retries: HedgeBudget,
    /// How many requests it is sent at once: reads and writes.
    windows: [Window; 2],
    latency_s: f64,
    samples: u32,
    measured: Option<Instant>,
    /// In a row.
    failures: u32,
    rests_until: Option<Instant>,
    /// Whether the rest is over but for one request that is under way.
    is_probed: bool,
}

impl Nodes {
    /// No members yet.
    pub(crate) fn new(dialer: Arc<Dialer>) -> Nodes {
        Nodes { table: DashMap::new(), dialer }
    }

    /// Takes the members of a new document. Connections to those that stay where they are stay open.
    pub(crate) fn adopt(&self, document: &ClusterDocument) {
        self.table
            .retain(|id, node| document.members.get(id).is_some_and(|member| member.address == node.address));
        for (&id, member) in &document.members {
            self.table
                .entry(id)
                .or_insert_with(|| Arc::new(Node::new(id, member.address.clone(), document.cluster)));
        }
    }

    /// A connection that was made by other means, to a seed.
    pub(crate) fn add_connection(&self, connection: Arc<Connection>) {
        if let Some(node) = self.get(connection.node()) {
            *node.lock_link() = Link::Up(connection);
        }
    }

    /// A member.
    pub(crate) fn get(&self, id: NodeId) -> Option<Arc<Node>> {
        self.table.get(&id).map(|entry| entry.value().clone())
    }

    /// All members, in the order of their ids.
    pub(crate) fn all(&self) -> Vec<Arc<Node>> {
        let mut nodes: Vec<_> = self.table.iter().map(|entry| entry.value().clone()).collect();
        nodes.sort_unstable_by_key(|node| node.id);
        nodes
    }

    /// A connection to `node`, if one is made until then. Dialing goes on after that.
    ///
    /// # Errors
    ///
    /// Why there is none. Nothing was sent.
    pub(crate) async fn connection(
        &self,
        node: &Arc<Node>,
        until: Instant,
    ) -> Result<Arc<Connection>, Unreached> {
        let mut dialing = match node.link(&self.dialer) {
            Ok(connection) => return Ok(connection),
            Err(dialing) => dialing,
        };
        let dialed = match timeout_at(until, dialing.wait_for(Option::is_some)).await {
            Ok(Ok(dialed)) => dialed.clone().expect("waited for"),
            // The runtime is stopping and took the task down.
            Ok(Err(_)) => Err(DialError::Silent),
            Err(_) => {
                node.failed();
                Err(DialError::Silent)
            }
        };
        dialed.map_err(|cause| Unreached { address: node.address.clone(), cause })
    }

    /// Begins to connect to `node`, if nobody has, and waits for nothing.
    pub(crate) fn prepare(&self, node: &Arc<Node>) {
        drop(node.link(&self.dialer));
    }

    /// Closes every connection.
    pub(crate) fn close(&self) {
        for node in &self.table {
            let link = std::mem::replace(&mut *node.lock_link(), Link::Idle);
            if let Link::Up(connection) = link {
                connection.close();
            }
        }
    }
}

impl Node {
    fn new(id: NodeId, address: String, cluster: ClusterId) -> Node {
        Node {
            id,
            address,
            cluster,
            link: Mutex::new(Link::Idle),
            in_flight: [const { AtomicU32::new(0) }; 2],
            health: Mutex::new(Health::new()),
        }
    }

    /// Its id.
    pub(crate) fn id(&self) -> NodeId {
        self.id
    }

    /// Its address, as the document has it.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Whether a connection to it is open.
    pub(crate) fn is_connected(&self) -> bool {
        matches!(&*self.lock_link(), Link::Up(connection) if connection.is_open())
    }

    /// The connection to it, if one is open.
    pub(crate) fn connection(&self) -> Option<Arc<Connection>> {
        match &*self.lock_link() {
            Link::Up(connection) if connection.is_open() => Some(connection.clone()),
            Link::Up(_) | Link::Dialing(_) | Link::Idle => None,
        }
    }

    /// How it is, for a request of this kind.
    pub(crate) fn condition(&self, kind: Kind, now: Instant) -> Condition {
        let queued: u32 = self.in_flight.iter().map(|count| count.load(Ordering::Relaxed)).sum();
        let health = self.lock_health();
        let window = &health.windows[kind.index()];
        let is_resting = health.rests_until.is_some_and(|until| now < until);
        let latency_s = if health.samples < SAMPLES_MIN { 0.0 } else { health.latency_s(now) };
        Condition {
            failures: if is_resting { health.failures } else { 0 },
            is_full: window.full(now, self.under_way(kind)).is_some(),
            is_avoided: window.is_avoided(now),
            cost: latency_s.max(LATENCY_FLOOR_S) * (f64::from(queued) + 1.0),
        }
    }

    /// Why it is sent nothing more of this kind at present; none if it is.
    pub(crate) fn full(&self, kind: Kind, now: Instant) -> Option<Limit> {
        self.lock_health().windows[kind.index()].full(now, self.under_way(kind))
    }

    /// It was chosen for a request. If it has rested, that is its probe: no other request is risked meanwhile.
    pub(crate) fn chosen(&self, now: Instant) {
        self.lock_health().chosen(now);
    }

    /// A request is on its way to it.
    pub(crate) fn asked(&self, kind: Kind) {
        self.in_flight[kind.index()].fetch_add(1, Ordering::Relaxed);
    }

    /// A request is no longer waited for.
    pub(crate) fn done(&self, kind: Kind) {
        self.in_flight[kind.index()].fetch_sub(1, Ordering::Relaxed);
    }

    /// It answered after so long.
    pub(crate) fn answered(&self, kind: Kind, latency: Duration) {
        let (now, under_way) = (Instant::now(), self.under_way(kind));
        let mut health = self.lock_health();
        health.slow(kind).sample(latency, SLOW_WINDOW);
        health.hedges.asked();
        health.retries.asked();
        health.windows[kind.index()].answered(now, under_way);
        health.answered(now, latency);
    }

    /// It refused a request because it has too much to do.
    pub(crate) fn refused(&self, kind: Kind, why: Limit) {
        let (now, under_way) = (Instant::now(), self.under_way(kind));
        self.lock_health().windows[kind.index()].refused(now, under_way, why);
    }

    /// How long it is waited for before it is late.
    pub(crate) fn slice(&self, kind: Kind) -> Duration {
        self.lock_health().slice(kind)
    }

    /// Whether a request that it refused because it has too much to do may be tried again; it is counted as tried.
    pub(crate) fn take_retry(&self) -> bool {
        self.lock_health().retries.take()
    }

    /// Whether another attempt may begin because it is late; it is counted as begun.
    pub(crate) fn take_hedge(&self) -> bool {
        self.lock_health().hedges.take()
    }

    /// It could not be reached, did not answer, or cannot serve. Once for each time that it is asked anew: what
    /// fails while it is left alone was sent before, and tells nothing more.
    pub(crate) fn failed(&self) {
        self.lock_health().failed(Instant::now());
    }

    /// The connection, or the dialing of it, which begins if nobody has begun.
    fn link(self: &Arc<Node>, dialer: &Arc<Dialer>) -> Result<Arc<Connection>, Dialing> {
        let mut link = self.lock_link();
        match &*link {
            Link::Up(connection) if connection.is_open() => return Ok(connection.clone()),
            Link::Dialing(dialing) => return Err(dialing.clone()),
            Link::Up(_) | Link::Idle => {}
        }
        let (sender, dialing) = watch::channel(None);
        *link = Link::Dialing(dialing.clone());
        let (node, dialer) = (self.clone(), dialer.clone());
        tokio::spawn(async move {
            let mut dial = Dial { node: &node, is_done: false };
            let dialed = node.dial(&dialer).await;
            dial.is_done = true;
            if dialed.is_err() {
                node.failed();
            }
            *node.lock_link() = dialed.clone().map_or(Link::Idle, Link::Up);
            // Nobody may be waiting any longer.
            let _ = sender.send(Some(dialed));
        });
        Err(dialing)
    }

    /// Connects, and checks that whoever is there is this node.
    async fn dial(&self, dialer: &Arc<Dialer>) -> Result<Arc<Connection>, DialError> {
        let (welcome, connection) = dialer.dial(&self.address).await?;
        if let Some(found) = welcome.cluster
            && found != self.cluster
        {
            return Err(DialError::OtherCluster { found });
        }
        if welcome.node != self.id {
            return Err(DialError::WrongNode { found: welcome.node });
        }
        Ok(Arc::new(connection))
    }

    fn under_way(&self, kind: Kind) -> u32 {
        self.in_flight[kind.index()].load(Ordering::Relaxed)
    }

    fn lock_link(&self) -> std::sync::MutexGuard<'_, Link> {
        self.link.lock().expect("nothing panics while it holds this")
    }

    fn lock_health(&self) -> std::sync::MutexGuard<'_, Health> {
        self.health.lock().expect("nothing panics while it holds this")
    }
}

/// A dial under way. If its runtime stops it, the next to need the node dials anew instead of waiting for ever.
struct Dial<'a> {
    node: &'a Node,
    is_done: bool,
}

impl Drop for Dial<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            *self.node.lock_link() = Link::Idle;
        }
    }
}

impl Health {
    fn new() -> Health {
        Health {
            slow_answers: [SlowAnswers::default(); 2],
            hedges: HedgeBudget::new(HEDGES_MAX),
            retries: HedgeBudget::full(RETRIES_MAX),
            windows: [Window::OPEN; 2],
            latency_s: 0.0,
            samples: 0,
            measured: None,
            failures: 0,
            rests_until: None,
            is_probed: false,
        }
    }

    fn slow(&mut self, kind: Kind) -> &mut SlowAnswers {
        &mut self.slow_answers[kind.index()]
    }

    fn slice(&mut self, kind: Kind) -> Duration {
        let slowest = self.slow(kind).slowest();
        let slice = slowest.map_or(kind.slice_max(), |slowest| slowest * LATE_FACTOR);
        slice.clamp(kind.slice_min(), kind.slice_max())
    }

    fn latency_s(&self, now: Instant) -> f64 {
        let Some(measured) = self.measured else { return 0.0 };
        let half_lives = now.duration_since(measured).as_secs_f64() / LATENCY_HALF_LIFE.as_secs_f64();
        self.latency_s * (-half_lives).exp2()
    }

    fn answered(&mut self, now: Instant, latency: Duration) {
        let sample = latency.as_secs_f64();
        self.latency_s = if self.samples < SAMPLES_MIN {
            let least = if self.samples == 0 { sample } else { self.latency_s(now) };
            sample.min(least)
        } else {
            let before = self.latency_s(now);
            before + LATENCY_WEIGHT * (sample - before)
        };
        self.samples = self.samples.saturating_add(1);
        self.measured = Some(now);
        (self.failures, self.rests_until, self.is_probed) = (0, None, false);
    }

    fn chosen(&mut self, now: Instant) {
        if self.rests_until.is_some_and(|until| now >= until) {
            (self.rests_until, self.is_probed) = (Some(now + PROBE_WAIT), true);
        }
    }

    fn failed(&mut self, now: Instant) {
        let is_resting = self.rests_until.is_some_and(|until| now < until);
        if is_resting && !self.is_probed {
            return;
        }
        self.is_probed = false;
        let rest = REST_FIRST.saturating_mul(1 << self.failures.min(16)).min(REST_MAX);
        self.failures = self.failures.saturating_add(1);
        self.rests_until = Some(now + rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_rests_longer_with_each_failure_in_a_row() {
        let (mut health, now) = (Health::new(), Instant::now());
        health.failed(now);
        assert_eq!(health.rests_until, Some(now + REST_FIRST));
        health.failed(now + REST_FIRST / 2);
        assert_eq!(health.rests_until, Some(now + REST_FIRST), "one outage, however many requests it hit");
        let later = now + REST_FIRST;
        health.failed(later);
        assert_eq!(health.rests_until, Some(later + REST_FIRST * 2));
        health.answered(later, Duration::from_millis(1));
        assert_eq!(health.rests_until, None);
        health.failed(later);
        assert_eq!(health.rests_until, Some(later + REST_FIRST));
    }

    #[test]
    fn after_a_rest_one_request_is_risked() {
        let (mut health, now) = (Health::new(), Instant::now());
        health.chosen(now);
        assert_eq!(health.rests_until, None, "a healthy node is not probed");
        health.failed(now);
        let rested = now + REST_FIRST;
        health.chosen(rested);
        assert_eq!(health.rests_until, Some(rested + PROBE_WAIT), "the others go on avoiding it");
        health.failed(rested + REST_FIRST);
        assert_eq!(health.rests_until, Some(rested + REST_FIRST * 3), "the probe failed: a longer rest");
    }

    #[test]
    fn a_rest_is_bounded() {
        let (mut health, mut now) = (Health::new(), Instant::now());
        for _ in 0..40 {
            health.failed(now);
            now = health.rests_until.unwrap();
        }
        health.failed(now);
        assert_eq!(health.rests_until, Some(now + REST_MAX));
    }

    #[test]
    fn a_node_is_late_after_twice_its_slowest_answers_of_late() {
        let (node, write) =
            (Node::new(NodeId(1), String::new(), ClusterId(1)), Kind::Write { retry_in_doubt: true });
        assert_eq!(node.slice(Kind::Read), Kind::Read.slice_max(), "nothing is known");
        for millis in 0..200 {
            node.answered(Kind::Read, Duration::from_millis(millis % 30));
            node.answered(write, Duration::from_millis(millis % 3));
        }
        assert_eq!(node.slice(Kind::Read), Duration::from_millis(58));
        assert_eq!(node.slice(write), write.slice_min(), "each kind for itself");
        node.answered(write, Duration::from_secs(9));
        assert_eq!(node.slice(write), write.slice_max());
        assert_eq!((0..100).filter(|_| node.take_hedge()).count(), 20, "one in twenty");
        assert_eq!((0..9999).filter(|_| node.take_retry()).count(), 5000);
    }

    #[test]
    fn an_old_latency_counts_ever_less() {
        let (mut health, now) = (Health::new(), Instant::now());
        assert_eq!(health.latency_s(now), 0.0, "a node that was never asked is worth a try");
        for latency_ms in [400, 80, 90] {
            health.answered(now, Duration::from_millis(latency_ms));
        }
        assert!((health.latency_s(now) - 0.08).abs() < 1e-9, "the least of the first few");
        assert!((health.latency_s(now + LATENCY_HALF_LIFE) - 0.04).abs() < 1e-9);
        health.answered(now, Duration::from_millis(40));
        assert!((health.latency_s(now) - 0.072).abs() < 1e-9);
    }
}
