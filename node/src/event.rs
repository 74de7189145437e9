//! What goes into a node and what comes out of it.

use std::{sync::Arc, time::Duration};

use antientropy::version::UnixMillis;
use bytes::Bytes;
use client::{
    Reply, Request,
    wire::{ControlError, ControlReply, NewKeyspace},
};
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
    /// An administrator wants the cluster document changed.
    Change {
        /// Comes back with the outcome.
        client: ClientTag,
        /// The change.
        change: Change,
        /// How long to try.
        timeout: Duration,
    },
    /// A peer says.
    Peer(Envelope),
    /// A packet about who is up.
    Datagram {
        /// The peer that sent it.
        from: NodeId,
        /// The packet.
        packet: Bytes,
    },
    /// A way to a peer was opened. What was sent to it before may be lost; it is greeted at once.
    Connected(NodeId),
    /// A peer's process said goodbye and has ended: nothing it says is still to come.
    Left(NodeId),
    /// The batch with this number, and all before it, are synced.
    Committed(Sequence),
    /// The batch with this number was refused by the store, and so is every one that the node has emitted since: nothing
    /// of them was or will be applied. (A sync that *failed* is another matter: it ends the process.)
    CommitFailed(Sequence),
    /// A cluster document from outside the cluster, which nobody has agreed on here.
    Document(Arc<ClusterDocument>),
    /// Stop in good order: refuse new requests, and leave a mark when everything is synced. The process may end when
    /// [`crate::Node::is_stopped`] says so.
    Stop,
}

/// A change of the cluster document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Another keyspace. Asking again for one that exists as asked for is answered as if it had just been created.
    CreateKeyspace(NewKeyspace),
    /// The store with which a member is heard at present is recorded for it: its disk was replaced, or went back in
    /// time. Refused if the node is not heard, or if that store is recorded already.
    Readmit {
        /// The member.
        node: NodeId,
    },
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
    /// Tell an administrator how a change ended.
    Changed {
        /// From the request.
        client: ClientTag,
        /// How.
        outcome: Result<ControlReply, ControlError>,
    },
    /// Send to a peer. May be lost, delayed or repeated.
    Send {
        /// The peer.
        to: NodeId,
        /// What to send.
        envelope: Envelope,
    },
    /// Send a packet of at most [`crate::DATAGRAM_BYTES_MAX`] bytes to a peer, now or never.
    Datagram {
        /// The peer.
        to: NodeId,
        /// The packet.
        packet: Bytes,
    },
    /// Apply and sync a batch, after those before it: some time soon, so that others can join it.
    Commit(Batch),
    /// Something waits for what was handed over: sync it without delay.
    Hurry,
}

/// Why a node wants to be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wake {
    /// A request's time is up, or a silent replica is to be replaced.
    Operation,
    /// A peer is to be greeted.
    Peers,
    /// A peer is to be probed for life.
    Membership,
    /// An exchange is due or has stalled.
    Exchange,
    /// Hints are to be replayed.
    Hints,
    /// A store that refused a batch may take one again.
    Storage,
    /// Promises are to be made about what is settled.
    Watermarks,
    /// Hash trees are to be built, or what is stored is to be scrubbed.
    Background,
    /// A change of the document is to be tried again or given up, or founders are to be asked.
    Agreement,
}
