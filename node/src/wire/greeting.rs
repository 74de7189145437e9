//! The first frame of each side of a stream between nodes.
//!
//! ```text
//! body    kind (1): 240 hello, 241 welcome
//!         version (2), features (8), cluster (option of 8), node (4), start (8)
//! ```
//!
//! They stay as they are in every version: they are what versions are agreed by. Their kinds are far from those of
//! envelopes, so that neither passes for the other.

use bytes::{BufMut, Bytes, BytesMut};
use client::{
    wire::{Field, Malformed, UnsupportedVersion, finish, negotiate_between, put_frame},
    wire_fields,
};
use ring::{ClusterId, NodeId};

use super::PEER_PROTOCOL_VERSION;
use crate::message::StartId;

const HELLO: u8 = 240;
const WELCOME: u8 = 241;

/// What the node that opened the connection says first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerHello {
    /// The newest version of the protocol that it speaks.
    pub version: u16,
    /// Bits for what it understands beyond that version; none are assigned yet, and unknown ones are ignored.
    pub features: u64,
    /// Its cluster, once it knows.
    pub cluster: Option<ClusterId>,
    /// Who it is.
    pub node: NodeId,
    /// Which run of its process this is.
    pub start: StartId,
}

/// What the other one answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerWelcome {
    /// The version that both speak from now on.
    pub version: u16,
    /// Bits for what it understands beyond that version.
    pub features: u64,
    /// Its cluster, once it knows.
    pub cluster: Option<ClusterId>,
    /// Who it is.
    pub node: NodeId,
    /// Which run of its process this is.
    pub start: StartId,
}

wire_fields!(PeerHello { version, features, cluster, node, start });
wire_fields!(PeerWelcome { version, features, cluster, node, start });

impl PeerHello {
    /// Appends it as a whole frame.
    pub fn encode(&self, out: &mut BytesMut) {
        encode(HELLO, self, out);
    }

    /// Reads the body of a frame.
    ///
    /// # Errors
    ///
    /// See [`Malformed`].
    pub fn decode(body: Bytes) -> Result<PeerHello, Malformed> {
        decode(HELLO, body)
    }
}

impl PeerWelcome {
    /// Appends it as a whole frame.
    pub fn encode(&self, out: &mut BytesMut) {
        encode(WELCOME, self, out);
    }

    /// Reads the body of a frame.
    ///
    /// # Errors
    ///
    /// See [`Malformed`].
    pub fn decode(body: Bytes) -> Result<PeerWelcome, Malformed> {
        decode(WELCOME, body)
    }
}

/// The version that two nodes speak when the other says that its newest is `offered`. Each understands its own and
/// the one before, so that a cluster can be upgraded node by node.
///
/// # Errors
///
/// If the other is too old.
pub fn negotiate(offered: u16) -> Result<u16, UnsupportedVersion> {
    negotiate_between(offered, PEER_PROTOCOL_VERSION)
}

fn encode(kind: u8, greeting: &impl Field, out: &mut BytesMut) {
    put_frame(out, |out| {
        out.put_u8(kind);
        greeting.put_to(out);
    });
}

fn decode<T: Field>(kind: u8, mut body: Bytes) -> Result<T, Malformed> {
    let found = u8::take_from(&mut body)?;
    if found != kind {
        return Err(Malformed::UnknownKind(found));
    }
    let greeting = T::take_from(&mut body)?;
    finish(&body)?;
    Ok(greeting)
}
