//! The encoding of what nodes say to each other.
//!
//! A pure codec: bytes in, values out, on top of the framing and the fields of [`client::wire`]. A node opens a
//! connection to a peer under [`ALPN_PEER`](client::wire::ALPN_PEER); the first frame on a stream is a [`PeerHello`],
//! and the peer's first a [`PeerWelcome`]. From then on every frame is an [`Envelope`]:
//!
//! ```text
//! body      kind (1)
//!           header: from (4), start (8), store (8), synced (8), epoch (8), wall (8), clock (8)
//!           what the kind says; see `message`
//! ```
//!
//! What is decoded is well-formed, and an object's name is one: its token is that of its key. Whether it makes sense,
//! whether a document is valid, and whether the sender is who the header says, others decide.

mod greeting;
mod message;

use antientropy::version::{self, Counter, UnixMillis};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use client::wire::{Field, MESSAGE_BYTES_MAX, Malformed, finish, put_frame};
use ring::{Epoch, NodeId, StoreId};
use thiserror::Error;

use crate::{
    message::{Envelope, Header, StartId},
    storage::Sequence,
};

pub use greeting::{PeerHello, PeerWelcome, negotiate};

/// The version of the protocol of nodes that this crate speaks.
pub const PEER_PROTOCOL_VERSION: u16 = 1;

/// The longest frame between nodes, in bytes: the longest message of a client, and what is put around it when it is
/// forwarded.
pub const PEER_MESSAGE_BYTES_MAX: usize = MESSAGE_BYTES_MAX + 1_024;

/// Bytes of a header.
const HEADER_BYTES: usize = 4 + 6 * 8;

/// Why bytes are not an envelope. The peer has a bug, or speaks a version that was not agreed on; the connection
/// ends, and what was asked on it is in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// A frame that is malformed, or of an unknown kind.
    #[error("{0}")]
    Frame(#[from] Malformed),
    /// A frame with a record that is malformed.
    #[error("a frame with {0}")]
    Record(#[from] version::DecodeError),
    /// A frame with a name that is not an object's: cut short, or with a token that is not its key's. A record under
    /// such a name would never be found again.
    #[error("a frame with a name that is no object's")]
    NotAnObject,
}

impl Envelope {
    /// Appends it as a whole frame.
    ///
    /// # Panics
    ///
    /// If the frame has 4 GiB. One above [`PEER_MESSAGE_BYTES_MAX`] is not refused here; whoever writes it to a
    /// connection has to, or the peer ends the connection.
    pub fn encode(&self, out: &mut BytesMut) {
        put_frame(out, |out| {
            out.put_u8(message::kind(&self.message));
            put_header(&self.header, out);
            message::put(&self.message, out);
        });
    }

    /// Reads the body of a frame. Values of records and requests are slices of it.
    ///
    /// # Errors
    ///
    /// See [`DecodeError`].
    pub fn decode(mut body: Bytes) -> Result<Envelope, DecodeError> {
        let input = &mut body;
        let kind = u8::take_from(input)?;
        let header = take_header(input)?;
        let message = message::take(kind, input)?;
        finish(input)?;
        Ok(Envelope { header, message })
    }
}

/// Written and read as one piece, because every message has one: one check of the length instead of seven.
fn put_header(header: &Header, out: &mut BytesMut) {
    let mut fixed = [0; HEADER_BYTES];
    let mut rest = &mut fixed[..];
    rest.put_u32(header.from.0);
    rest.put_u64(header.start.0);
    rest.put_u64(header.store.0);
    rest.put_u64(header.synced.0);
    rest.put_u64(header.epoch.0);
    rest.put_u64(header.wall.0);
    rest.put_u64(header.clock.0);
    out.put_slice(&fixed);
}

fn take_header(input: &mut Bytes) -> Result<Header, Malformed> {
    let mut rest = &input.first_chunk::<HEADER_BYTES>().ok_or(Malformed::Truncated)?[..];
    let header = Header {
        from: NodeId(rest.get_u32()),
        start: StartId(rest.get_u64()),
        store: StoreId(rest.get_u64()),
        synced: Sequence(rest.get_u64()),
        epoch: Epoch(rest.get_u64()),
        wall: UnixMillis(rest.get_u64()),
        clock: Counter(rest.get_u64()),
    };
    input.advance(HEADER_BYTES);
    Ok(header)
}
