//! What goes into a node and what comes out of it.

use std::{sync::Arc, time::Duration};

use antientropy::version::UnixMillis;
use client::{Reply, Request};
use ring::{ClusterDocument, NodeId};

use crate::{
    message::Envelope,
    storage::{Batch, Sequence},
};

/// The time, as whoever drives the node reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Since some fixed moment of this process; never goes back. Timeouts are measured by it.
    pub monotonic: Duration,
    /// The wall clock. May jump either way. Versions are dated by it.
    pub wall: UnixMillis,
}

/// Names a client's request between the node and whoever drives it; comes back with the reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClientTag(pub u64);

/// What a node is told.
#[derive(Clone, Debug)]
pub enum Input {
    /// A client of this node asks.
    Client {
        /// Comes back with the reply.
        client: ClientTag,
        /// What is asked.
        request: Request,
    },
    /// A peer says.
    Peer(Envelope),
    /// The batch with this number, and all before it, are synced.
    Committed(Sequence),
    /// The batch with this number was refused by the store, and nothing of it was applied. (A sync that *failed*
    /// is another matter: it ends the process.)
    CommitFailed(Sequence),
    /// A cluster document from outside the cluster: the founding one, or a change that was decided.
    Document(Arc<ClusterDocument>),
    /// Stop in good order: refuse new requests, and leave a mark when everything is synced. The process may end when
    /// [`crate::Node::is_stopped`] says so.
    Stop,
}

/// What a node wants done.
#[derive(Clone, Debug)]
pub enum Output {
    /// Answer a client.
    Reply {
        /// From the request.
        client: ClientTag,
        /// The answer.
        reply: Reply,
    },
    /// Send to a peer. May be lost, delayed or repeated.
    Send {
        /// The peer.
        to: NodeId,
        /// What to send.
        envelope: Envelope,
    },
    /// Apply and sync a batch, after those before it.
    Commit(Batch),
}

/// Why a node wants to be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wake {
    /// A request's time is up, or a silent replica is to be replaced.
    Operation,
    /// A peer is to be greeted or probed.
    Peers,
    /// An exchange is due or has stalled.
    Exchange,
    /// Hints are to be replayed.
    Hints,
    /// A store that refused a batch may take one again.
    Storage,
}
