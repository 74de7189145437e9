//! The public protocol on the wire: frames, messages, and what a connection begins with.
//!
//! A client opens one QUIC connection under [`ALPN_CLIENT`] and on it one bidirectional stream. Its first frame is a
//! [`ClientMessage::Hello`], the node's first a [`ServerMessage::Welcome`]; after that requests go one way and replies
//! the other, many under way at once, in any order, told apart by ids that the client chooses. All numbers are
//! big-endian.
//!
//! [`FrameReader`] cuts what arrives into bodies, [`ClientMessage::decode`] and [`ServerMessage::decode`] read them,
//! and `encode` appends whole frames, so that one write carries many. `frame`, `field`, `request`, `reply` and `codec`
//! say byte by byte what stands where. Nodes build their own protocol from the same parts. There is no I/O here, and
//! no limit but the frame's: what a key or a value may be, the node says in its answer.

mod codec;
mod control;
mod field;
mod frame;
mod message;
mod reply;
mod request;
mod vitals;

pub use codec::{DecodeError, UnsupportedVersion, negotiate, negotiate_between};

pub use control::{
    ControlError, ControlReply, ControlRequest, CopyState, HeldRecord, HeldVersion, KeysPage, NewKeyspace,
    NodeStatus, PeerStatus, ReplicaView, SyncStatus,
};
pub use field::{Element, Field, Malformed, finish, put_count, put_serde, take_count, take_serde};
pub use frame::{FrameError, FrameReader, put_frame};
pub use message::{ClientHello, ClientMessage, ServerMessage, ServerWelcome};
pub use reply::{decode_reply, encode_reply};
pub use request::{decode_request, encode_request};
pub use vitals::{NodeVitals, RequestVitals};

/// The application protocol of clients, as TLS negotiates it.
pub const ALPN_CLIENT: &[u8] = b"quorate/1";
/// The application protocol of nodes among themselves.
pub const ALPN_PEER: &[u8] = b"quorate-peer/1";
/// The version of the public protocol that this crate speaks.
pub const PROTOCOL_VERSION: u16 = 1;
/// The longest message in either direction, in bytes: the values of an object that as many coordinators as there can
/// be copies filled to its limit at the same time. A longer frame ends the connection before its body is read.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;
