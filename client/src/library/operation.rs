//! Carrying out one operation: attempts at one node after another, some of them side by side, until one succeeds,
//! none can, or the time is up. What to do after each attempt is decided in [`attempts`](super::attempts).

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use ring::{Epoch, NodeId};
use smallvec::SmallVec;
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::{debug, trace};

use super::{
    attempts::{Attempts, Ended, Kind, Next},
    cluster::Cluster,
    connection::{Answer, Heard, Pending, Question},
    failure::{DialError, Doubt, Unreached},
    nodes::{LINK_WAIT, Node},
    routing::{Choice, Chooser},
    topology::View,
};
use crate::{GetError, GetReply, Limit, Refusal, Reply, Request, WriteError, WriteReply};

/// How much sooner than the caller the coordinator gives up, at most: its word on how far it came has to arrive in
/// time to be of use.
const WAY_BACK_MAX: Duration = Duration::from_millis(50);

/// An operation to be carried out.
pub(crate) struct Operation<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) kind: Kind,
    /// What is asked. The time that it may take is set anew for each attempt.
    pub(crate) request: Request,
    pub(crate) attempts_max: u32,
    pub(crate) begun: Instant,
    pub(crate) deadline: Instant,
}

/// An attempt that was sent and whose reply is waited for.
struct Flight {
    pending: Pending,
    busy: Busy,
    since: Instant,
    /// Of the document by which it was routed.
    epoch: Epoch,
}

/// One request more for a node, for as long as it is waited for.
struct Busy(Arc<Node>, Kind);

/// Why an attempt was not sent.
enum NotBegun {
    Unreached(NodeId, Unreached),
    HeldBack(Arc<Node>, Limit),
}

/// What happened.
enum Event {
    /// To an attempt: its position, and what.
    Heard(usize, Heard),
    /// An attempt was sent, or could not be.
    Begun(Result<Flight, NotBegun>),
    /// Every node was tried in vain since the last wait.
    AllTried,
    /// It is time for something.
    Time,
}

/// Reads a reply: the success that it is, or how the attempt ended.
type Judge<T> = fn(Reply) -> Result<T, Verdict>;

/// How an attempt ended, as a coordinator says.
pub(crate) enum Verdict {
    Refused(Refusal),
    InDoubt(Doubt),
    TimedOut {
        required: u8,
        answered: u8,
    },
    /// It is a reply to something else, and means nothing.
    WrongKind,
}

impl Operation<'_> {
    /// Carries out a put or a delete.
    pub(crate) async fn write(self) -> Result<WriteReply, Attempts> {
        self.run(|reply| match reply {
            Reply::Write(Ok(reply)) => Ok(reply),
            Reply::Write(Err(WriteError::Refused(refusal))) => Err(Verdict::Refused(refusal)),
            Reply::Write(Err(WriteError::InDoubt { required, acknowledged, cause })) => {
                Err(Verdict::InDoubt(Doubt::Coordinator { required, acknowledged, cause }))
            }
            Reply::Get(_) => Err(Verdict::WrongKind),
        })
        .await
    }

    /// Carries out a get.
    pub(crate) async fn get(self) -> Result<GetReply, Attempts> {
        self.run(|reply| match reply {
            Reply::Get(Ok(reply)) => Ok(reply),
            Reply::Get(Err(GetError::Refused(refusal))) => Err(Verdict::Refused(refusal)),
            Reply::Get(Err(GetError::TimedOut { required, answered })) => {
                Err(Verdict::TimedOut { required, answered })
            }
            Reply::Write(_) => Err(Verdict::WrongKind),
        })
        .await
    }

    async fn run<T>(self, judge: Judge<T>) -> Result<T, Attempts> {
        let mut attempts = Attempts::new(self.kind, self.attempts_max);
        let mut flights: SmallVec<[Flight; 1]> = SmallVec::new();
        let mut tried: SmallVec<[NodeId; 8]> = SmallVec::new();
        // Clocks are read once for each event: an operation that succeeds at once has two.
        let mut now = self.begun;
        // When the next attempt is due, and when the last one has been silent for too long.
        let (mut next_at, mut silent_at) = (Some(now), None);
        let mut patience = None;
        while now < self.deadline && !(next_at.is_none() && flights.is_empty()) {
            match self.next_event(&mut flights, &tried, now, next_at, silent_at).await {
                Event::Begun(Ok(flight)) => {
                    tried.push(flight.node().id());
                    now = flight.since;
                    let begun = attempts.begin(flight.node().slice(self.kind));
                    (next_at, silent_at) = (None, Some(now + begun.slice));
                    patience = Some(begun);
                    flights.push(flight);
                    continue;
                }
                Event::Begun(Err(NotBegun::HeldBack(node, limit))) => {
                    // Those that were tried may have room by then.
                    tried.clear();
                    let next = match attempts.end(Ended::HeldBack(limit)) {
                        Next::Backoff if !node.take_retry() => Next::Stop,
                        next => next,
                    };
                    next_at = self.after(next, Epoch(0), &mut attempts).await;
                }
                Event::Begun(Err(NotBegun::Unreached(node, unreached))) => {
                    tried.push(node);
                    let next = attempts.end(Ended::Unsent(unreached));
                    next_at = self.after(next, Epoch(0), &mut attempts).await;
                }
                Event::AllTried => {
                    tried.clear();
                    next_at = self.after(Next::Backoff, Epoch(0), &mut attempts).await;
                }
                Event::Heard(position, heard) => {
                    let flight = flights.remove(position);
                    let (epoch, node) = (flight.epoch, flight.busy.0.clone());
                    let ended = match flight.landed(self.kind, heard, judge) {
                        Ok(success) => {
                            flights.into_iter().for_each(|other| other.outrun(self.kind, self.deadline));
                            return Ok(success);
                        }
                        Err(ended) => ended,
                    };
                    debug!(?ended, "an attempt failed");
                    let is_overloaded =
                        matches!(ended, Ended::Refused { refusal: Refusal::Overloaded(_), .. });
                    let next = match attempts.end(ended) {
                        Next::Backoff if is_overloaded && !node.take_retry() => Next::Stop,
                        next => next,
                    };
                    next_at = self.after(next, epoch, &mut attempts).await;
                    silent_at = None;
                }
                Event::Time => {}
            }
            now = Instant::now();
            if silent_at.is_some_and(|at| now >= at)
                && let (Some(flight), Some(patience)) = (flights.last(), patience)
            {
                flight.node().failed();
                let at_most = flight.since + patience.slice_max;
                let is_due = now >= at_most || flight.node().take_hedge();
                silent_at = (!is_due).then_some(at_most);
                if is_due && patience.may_repeat {
                    next_at = Some(now);
                }
            }
        }
        for flight in flights {
            let node = flight.node().id();
            if flight.pending.abandon() {
                attempts.silent(node);
            }
        }
        Err(attempts)
    }

    /// Waits for the next thing to happen.
    async fn next_event(
        &self,
        flights: &mut SmallVec<[Flight; 1]>,
        tried: &[NodeId],
        now: Instant,
        next_at: Option<Instant>,
        silent_at: Option<Instant>,
    ) -> Event {
        if next_at.is_some_and(|at| now >= at) {
            return tokio::select! {
                biased;
                (position, heard) = first(flights) => Event::Heard(position, heard),
                begun = self.begin(tried, now) => begun.map_or(Event::AllTried, Event::Begun),
            };
        }
        let until = [next_at, silent_at].into_iter().flatten().fold(self.deadline, Instant::min);
        tokio::select! {
            biased;
            (position, heard) = first(flights) => Event::Heard(position, heard),
            () = sleep_until(until) => Event::Time,
        }
    }

    /// Sends an attempt to a node that was not tried; none if all were. Takes no longer than there is time.
    async fn begin(&self, tried: &[NodeId], now: Instant) -> Option<Result<Flight, NotBegun>> {
        let view = self.cluster.view();
        let node = self.choose(&view, tried, now)?;
        if let Some(why) = node.full(self.kind, now) {
            return Some(Err(NotBegun::HeldBack(node, why)));
        }
        let (epoch, busy) = (view.document.epoch, Busy::new(node.clone(), self.kind));
        // Nearly always there is a connection with room in its queue, and nothing to wait for.
        if let Some(connection) = node.connection()
            && let Some(pending) = connection.try_begin(|| Question::Data(self.request_at(now)))
        {
            trace!(node = %node.id(), "sent");
            return Some(Ok(Flight { pending, busy, since: now, epoch }));
        }
        let id = node.id();
        // In a box, like whatever is rarely run: every operation would have to be as large as this.
        let begun = Box::pin(self.begin_slowly(node, busy, epoch)).await;
        Some(begun.map_err(|unreached| NotBegun::Unreached(id, unreached)))
    }

    fn choose(&self, view: &View, tried: &[NodeId], now: Instant) -> Choice {
        let (keyspace, key, n) = match &self.request {
            Request::Put(put) => (put.keyspace, &put.key, put.options.n),
            Request::Delete(delete) => (delete.keyspace, &delete.key, delete.options.n),
            Request::Get(get) => (get.keyspace, &get.key, get.options.n),
        };
        let (nodes, random) = (&self.cluster.nodes, &self.cluster.random);
        let chooser = Chooser { nodes, view, tried, random, kind: self.kind, now };
        match view.document.keyspaces.get(&keyspace) {
            Some(keyspace) => chooser.choose(keyspace, key, n),
            None => chooser.choose_any(),
        }
    }

    /// Sends an attempt once there is a connection, and room in its queue.
    async fn begin_slowly(&self, node: Arc<Node>, busy: Busy, epoch: Epoch) -> Result<Flight, Unreached> {
        let until = self.deadline.min(Instant::now() + LINK_WAIT);
        let connection = self.cluster.nodes.connection(&node, until).await?;
        let unsent = |cause| Unreached { address: node.address().to_owned(), cause };
        let until = self.deadline.min(Instant::now() + LINK_WAIT);
        let begun =
            timeout_at(until, connection.begin(|| Question::Data(self.request_at(Instant::now())))).await;
        let pending = begun.unwrap_or(Err(DialError::QueueFull)).map_err(unsent)?;
        trace!(node = %node.id(), "sent");
        Ok(Flight { pending, busy, since: Instant::now(), epoch })
    }

    /// The request with the time that is left for it.
    fn request_at(&self, now: Instant) -> Request {
        let left = self.deadline.saturating_duration_since(now);
        let left = left - (left / 10).min(WAY_BACK_MAX);
        let mut request = self.request.clone();
        *request.timeout_mut() = left;
        request
    }

    /// When the next attempt is due, if any is.
    async fn after(&self, next: Next, routed_by: Epoch, attempts: &mut Attempts) -> Option<Instant> {
        match next {
            Next::Stop => None,
            Next::Elsewhere => Some(Instant::now()),
            Next::Backoff => Some(Instant::now() + attempts.backoff(&self.cluster.random)),
            Next::Refetch { or_stop } => {
                let view = Box::pin(self.cluster.refresh(self.deadline)).await;
                if view.document.epoch > routed_by {
                    Some(Instant::now())
                } else if or_stop {
                    None
                } else {
                    Some(Instant::now() + attempts.backoff(&self.cluster.random))
                }
            }
        }
    }
}

impl Busy {
    fn new(node: Arc<Node>, kind: Kind) -> Busy {
        node.asked(kind);
        Busy(node, kind)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.done(self.1);
    }
}

impl Flight {
    fn node(&self) -> &Node {
        &self.busy.0
    }

    /// Another attempt has succeeded meanwhile. How long this one takes is still worth knowing: a node that is always
    /// outrun would seem as fast as when it was last heard.
    fn outrun(self, kind: Kind, deadline: Instant) {
        tokio::spawn(async move {
            let Flight { mut pending, busy, since, .. } = self;
            match timeout_at(deadline, &mut pending).await {
                Ok(Heard::Answer(..)) => busy.0.answered(kind, since.elapsed()),
                Ok(Heard::Lost) => busy.0.failed(),
                Ok(Heard::Unsent) => {}
                Err(_) => drop(pending.abandon()),
            }
        });
    }

    /// It ended, with a success or otherwise.
    fn landed<T>(self, kind: Kind, heard: Heard, judge: Judge<T>) -> Result<T, Ended> {
        let (node, ours) = (self.node().id(), self.epoch);
        let (theirs, reply) = match heard {
            Heard::Answer(epoch, Answer::Data(reply)) => (epoch, reply),
            Heard::Answer(_, Answer::Control(_)) | Heard::Lost => {
                self.node().failed();
                return Err(Ended::Lost(node));
            }
            Heard::Unsent => {
                let address = self.node().address().to_owned();
                return Err(Ended::Unsent(Unreached { address, cause: DialError::StreamEnded }));
            }
        };
        let judged = judge(reply);
        match &judged {
            // One that refuses at once is not quick: others are asked for a moment.
            Err(
                Verdict::Refused(
                    Refusal::NotReady | Refusal::ClockDrift { .. } | Refusal::Overloaded(Limit::Hints),
                )
                | Verdict::WrongKind,
            ) => {
                self.node().failed();
            }
            Err(Verdict::Refused(Refusal::Overloaded(
                why @ (Limit::Requests | Limit::Unsynced | Limit::Time),
            ))) => self.node().refused(kind, *why),
            Ok(_) | Err(Verdict::Refused(_) | Verdict::InDoubt(_) | Verdict::TimedOut { .. }) => {
                self.node().answered(kind, self.since.elapsed());
            }
        }
        judged.map_err(|verdict| match verdict {
            Verdict::Refused(refusal) => Ended::Refused { refusal, theirs, ours },
            Verdict::InDoubt(doubt) => Ended::InDoubt(doubt),
            Verdict::TimedOut { required, answered } => Ended::TimedOut { required, answered },
            Verdict::WrongKind => Ended::Lost(node),
        })
    }
}

/// The first of several attempts of which anything is heard; never, if there are none.
async fn first(flights: &mut SmallVec<[Flight; 1]>) -> (usize, Heard) {
    poll_fn(|context| {
        for (position, flight) in flights.iter_mut().enumerate() {
            if let Poll::Ready(heard) = Pin::new(&mut flight.pending).poll(context) {
                return Poll::Ready((position, heard));
            }
        }
        Poll::Pending
    })
    .await
}
