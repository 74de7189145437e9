//! The public protocol on the wire: frames, messages, and what a connection begins with.
//!
//! A client opens one QUIC connection under [`ALPN_CLIENT`] and on it one bidirectional stream. Its first frame is a
//! [`ClientMessage::Hello`], the node's first a [`ServerMessage::Welcome`]; after that requests go one way and replies
//! the other, many under way at once, in any order, told apart by ids that the client chooses. All numbers are
//! big-endian.

mod control;
mod message;

pub use control::{
    ControlError, ControlReply, ControlRequest, CopyState, HeldRecord, HeldVersion, KeysPage, NewKeyspace,
    NodeStatus, PeerStatus, ReplicaView,
};
pub use message::{ClientHello, ClientMessage, ServerMessage, ServerWelcome};

/// The application protocol of clients, as TLS negotiates it.
pub const ALPN_CLIENT: &[u8] = b"quorate/1";
/// The application protocol of nodes among themselves.
pub const ALPN_PEER: &[u8] = b"quorate-peer/1";
/// The version of the public protocol that this crate speaks.
pub const PROTOCOL_VERSION: u16 = 1;
/// The longest message in either direction, in bytes: the values of an object that as many coordinators as there can
/// be copies filled to its limit at the same time. A longer frame ends the connection before its body is read.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;
