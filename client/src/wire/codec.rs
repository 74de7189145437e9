//! The encoding of messages between a client and a node.
//!
//! ```text
//! body        kind (1), then for each kind
//!
//! client      1 hello: version (2), features (8)
//!             2 request: id (8), request
//!             3 control: id (8), control request (serde)
//!
//! node        1 welcome: version (2), features (8), node (4), cluster (option of 8), epoch (8),
//!               access (1: 1 read, 2 write, 3 admin)
//!             2 reply: id (8), epoch (8), reply
//!             3 control: id (8), epoch (8), result of a control request (serde)
//! ```
//!
//! The hello and the welcome stay as they are in every version: they are what versions are agreed by. A later version
//! may change whatever comes after them.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use thiserror::Error;

use super::{
    ClientHello, ClientMessage, Field, Malformed, PROTOCOL_VERSION, ServerMessage, ServerWelcome,
    field::{finish, put_serde, take_serde},
    put_frame,
    request::{DELETE, GET, PUT},
};
use crate::{Operation, Reply, Request, wire_fields};

const GREETING: u8 = 1;
const DATA: u8 = 2;
const CONTROL: u8 = 3;

wire_fields!(ClientHello { version, features });
wire_fields!(ServerWelcome { version, features, node, cluster, epoch, access });

/// Why the body of a frame is not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// The other side is not what it seems, and the connection is to be ended.
    #[error("{0}")]
    Frame(#[from] Malformed),
    /// A request that is told apart from others by its id, so that it alone can be refused as
    /// [`Refusal::Malformed`](crate::Refusal::Malformed) and the connection goes on.
    #[error("request {id}: {cause}")]
    Request {
        /// The request.
        id: u64,
        /// Which kind of reply its sender waits for.
        operation: Operation,
        /// What is wrong with it.
        cause: Malformed,
    },
    /// A control request that can be refused as [`ControlError::Unsupported`](super::ControlError::Unsupported), and
    /// the connection goes on.
    #[error("control request {id}: {cause}")]
    Control {
        /// The request.
        id: u64,
        /// What is wrong with it.
        cause: Malformed,
    },
}

/// The two sides have no version of the protocol in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the other side speaks version {offered} of the protocol, and this one speaks {oldest} to {newest}")]
pub struct UnsupportedVersion {
    /// The newest that the other side speaks.
    pub offered: u16,
    /// The oldest that this side speaks.
    pub oldest: u16,
    /// The newest that this side speaks.
    pub newest: u16,
}

/// The version that both sides speak when the other says that its newest is `offered`: the lower of the newest ones.
/// Whoever speaks a version speaks the one before it too.
///
/// # Errors
///
/// If the other side is too old.
pub fn negotiate(offered: u16) -> Result<u16, UnsupportedVersion> {
    negotiate_between(offered, PROTOCOL_VERSION)
}

/// As [`negotiate`], where this side's newest version is `newest`.
///
/// # Errors
///
/// If the other side is too old.
pub fn negotiate_between(offered: u16, newest: u16) -> Result<u16, UnsupportedVersion> {
    let oldest = newest.saturating_sub(1).max(1);
    if offered < oldest {
        return Err(UnsupportedVersion { offered, oldest, newest });
    }
    Ok(offered.min(newest))
}

impl ClientMessage {
    /// Appends it as a whole frame.
    ///
    /// # Panics
    ///
    /// If the frame has 4 GiB. A frame above [`MESSAGE_BYTES_MAX`](super::MESSAGE_BYTES_MAX) is not refused here: the
    /// library checks keys and values before.
    pub fn encode(&self, out: &mut BytesMut) {
        put_frame(out, |out| match self {
            ClientMessage::Hello(hello) => {
                out.put_u8(GREETING);
                hello.put_to(out);
            }
            ClientMessage::Request { id, request } => {
                out.put_u8(DATA);
                id.put_to(out);
                request.put_to(out);
            }
            ClientMessage::Control { id, request } => {
                out.put_u8(CONTROL);
                id.put_to(out);
                put_serde(request, out);
            }
        });
    }

    /// Reads the body of a frame.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Request`] and [`DecodeError::Control`] leave the connection usable; after any other error the
    /// client is not what it seems.
    pub fn decode(mut body: Bytes) -> Result<ClientMessage, DecodeError> {
        let input = &mut body;
        match u8::take_from(input)? {
            GREETING => {
                let hello = ClientHello::take_from(input)?;
                finish(input)?;
                Ok(ClientMessage::Hello(hello))
            }
            DATA => {
                let id = u64::take_from(input)?;
                let operation = operation_of(input)?;
                let request = Request::take_from(input).and_then(|request| finish(input).map(|()| request));
                match request {
                    Ok(request) => Ok(ClientMessage::Request { id, request }),
                    Err(cause) => Err(DecodeError::Request { id, operation, cause }),
                }
            }
            CONTROL => {
                let id = u64::take_from(input)?;
                match take_serde(input) {
                    Ok(request) => Ok(ClientMessage::Control { id, request }),
                    Err(cause) => Err(DecodeError::Control { id, cause }),
                }
            }
            kind => Err(Malformed::UnknownKind(kind).into()),
        }
    }

    /// The id of a request of the data path and what kind it is, if that is what a frame's body says: enough to refuse it,
    /// at much less cost than to decode it.
    #[must_use]
    pub fn peek_request(body: &Bytes) -> Option<(u64, Operation)> {
        let mut rest = body.strip_prefix(&[DATA])?;
        let id = rest.try_get_u64().ok()?;
        Some((id, operation_of(rest).ok()?))
    }
}

/// What kind of request follows.
fn operation_of(input: &[u8]) -> Result<Operation, Malformed> {
    match input.first() {
        Some(&(PUT | DELETE)) => Ok(Operation::Write),
        Some(&GET) => Ok(Operation::Read),
        Some(&value) => Err(Malformed::UnknownValue { of: "request", value }),
        None => Err(Malformed::Truncated),
    }
}

impl ServerMessage {
    /// Appends it as a whole frame.
    ///
    /// # Panics
    ///
    /// If the frame has 4 GiB.
    pub fn encode(&self, out: &mut BytesMut) {
        put_frame(out, |out| match self {
            ServerMessage::Welcome(welcome) => {
                out.put_u8(GREETING);
                welcome.put_to(out);
            }
            ServerMessage::Reply { id, epoch, reply } => {
                out.put_u8(DATA);
                id.put_to(out);
                epoch.put_to(out);
                reply.put_to(out);
            }
            ServerMessage::Control { id, epoch, reply } => {
                out.put_u8(CONTROL);
                id.put_to(out);
                epoch.put_to(out);
                put_serde(reply, out);
            }
        });
    }

    /// Reads the body of a frame.
    ///
    /// # Errors
    ///
    /// See [`DecodeError`]: the node is not what it seems, and nothing that it said before or says later can be told
    /// apart from it. What was asked on the connection is in doubt.
    pub fn decode(mut body: Bytes) -> Result<ServerMessage, DecodeError> {
        let input = &mut body;
        let message = match u8::take_from(input)? {
            GREETING => ServerMessage::Welcome(ServerWelcome::take_from(input)?),
            DATA => ServerMessage::Reply {
                id: u64::take_from(input)?,
                epoch: Field::take_from(input)?,
                reply: Reply::take_from(input)?,
            },
            CONTROL => ServerMessage::Control {
                id: u64::take_from(input)?,
                epoch: Field::take_from(input)?,
                reply: take_serde(input)?,
            },
            kind => return Err(Malformed::UnknownKind(kind).into()),
        };
        finish(input)?;
        Ok(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Get, KEY_BYTES_MAX, Put, ReadOptions, VALUE_BYTES_MAX, WriteOptions, wire::ControlRequest};
    use ring::{Epoch, KeyspaceId};

    fn body(message: &ClientMessage) -> Bytes {
        let mut out = BytesMut::new();
        message.encode(&mut out);
        out.freeze().slice(4..)
    }

    fn put(key: &Bytes, value: &Bytes) -> Request {
        let (key, value, options) = (key.clone(), value.clone(), WriteOptions::default());
        Request::Put(Put { keyspace: KeyspaceId(1), key, value, expires_unix_ms: None, options })
    }

    #[test]
    fn a_request_is_known_by_its_first_bytes() {
        let key = Bytes::from_static(b"key");
        let put = body(&ClientMessage::Request { id: 7, request: put(&key, &key) });
        assert_eq!(ClientMessage::peek_request(&put), Some((7, Operation::Write)));
        let get = Get { keyspace: KeyspaceId(1), key, options: ReadOptions::default() };
        let get = body(&ClientMessage::Request { id: u64::MAX, request: Request::Get(get) });
        assert_eq!(ClientMessage::peek_request(&get), Some((u64::MAX, Operation::Read)));
        assert_eq!(ClientMessage::peek_request(&get.slice(..9)), None);
        assert_eq!(ClientMessage::peek_request(&with(&get, 9, 9)), None, "no kind of request");
        let control = body(&ClientMessage::Control { id: 7, request: ControlRequest::Status });
        assert_eq!(ClientMessage::peek_request(&control), None);
        assert_eq!(ClientMessage::peek_request(&Bytes::new()), None);
    }

    /// The body with one byte changed.
    fn with(body: &Bytes, at: usize, byte: u8) -> Bytes {
        let mut changed = body.to_vec();
        changed[at] = byte;
        changed.into()
    }

    #[test]
    fn keys_and_values_are_slices_of_the_frame() {
        let body = body(&ClientMessage::Request { id: 1, request: put(&"key".into(), &"value".into()) });
        let range = body.as_ptr_range();
        let Ok(ClientMessage::Request { request: Request::Put(put), .. }) = ClientMessage::decode(body)
        else {
            panic!("a put");
        };
        assert!(range.contains(&put.key.as_ptr()) && range.contains(&put.value.as_ptr()));
    }

    /// The node answers with the limit; ending the connection would take all other requests on it along.
    #[test]
    fn a_key_or_value_above_its_limit_is_decoded_so_that_it_can_be_refused() {
        let (key, value) = (vec![1; KEY_BYTES_MAX + 1].into(), vec![2; VALUE_BYTES_MAX + 1].into());
        let message = ClientMessage::Request { id: 1, request: put(&key, &value) };
        assert_eq!(ClientMessage::decode(body(&message)), Ok(message));
    }

    #[test]
    fn a_request_that_cannot_be_read_is_refused_alone() {
        let get = Get { keyspace: KeyspaceId(1), key: "k".into(), options: ReadOptions::default() };
        let (id, operation) = (9, Operation::Read);
        let good = body(&ClientMessage::Request { id, request: Request::Get(get) });
        // Kind, id, kind of request, keyspace, key: then the level.
        let level = 1 + 8 + 1 + 4 + 5;
        let refused = |body: Bytes| match ClientMessage::decode(body) {
            Err(DecodeError::Request { id: 9, operation: Operation::Read, cause }) => cause,
            other => panic!("{other:?}"),
        };
        let of_level = Malformed::UnknownValue { of: "level", value: 11 };
        assert_eq!(refused(with(&good, level, 11)), of_level);
        assert_eq!(refused(good.slice(..good.len() - 1)), Malformed::Truncated);
        assert_eq!(refused([&good[..], b"x"].concat().into()), Malformed::TrailingBytes(1));
        let error = DecodeError::Request { id, operation, cause: of_level };
        assert_eq!(error.to_string(), "request 9: a frame with 11 for its level");
        let put = body(&ClientMessage::Request { id: 9, request: put(&"k".into(), &"v".into()) });
        let cut = ClientMessage::decode(put.slice(..put.len() - 1));
        assert!(matches!(cut, Err(DecodeError::Request { id: 9, operation: Operation::Write, .. })));
        // Whose reply would be of an unknown kind cannot be refused alone.
        let unknown = Malformed::UnknownValue { of: "request", value: 4 };
        assert_eq!(ClientMessage::decode(with(&good, 9, 4)), Err(DecodeError::Frame(unknown)));
        assert_eq!(ClientMessage::decode(good.slice(..9)), Err(DecodeError::Frame(Malformed::Truncated)));
        assert_eq!(ClientMessage::decode(good.slice(..8)), Err(DecodeError::Frame(Malformed::Truncated)));
    }

    #[test]
    fn a_control_request_of_a_later_version_is_refused_alone() {
        let good = body(&ClientMessage::Control { id: 9, request: ControlRequest::Status });
        for (later, cause) in [
            (with(&good, 9, 100), Malformed::UnknownPayload),
            ([&good[..], b"xy"].concat().into(), Malformed::TrailingBytes(2)),
            (good.slice(..9), Malformed::UnknownPayload),
        ] {
            let refused = DecodeError::Control { id: 9, cause };
            assert_eq!(ClientMessage::decode(later), Err(refused));
        }
    }

    #[test]
    fn unknown_kinds_and_what_the_other_side_says_are_refused() {
        for kind in [0, 4, 5, 100, 255] {
            let body = Bytes::from(vec![kind; 40]);
            assert_eq!(
                ClientMessage::decode(body.clone()),
                Err(DecodeError::Frame(Malformed::UnknownKind(kind)))
            );
            assert_eq!(ServerMessage::decode(body), Err(DecodeError::Frame(Malformed::UnknownKind(kind))));
        }
        assert_eq!(ClientMessage::decode(Bytes::new()), Err(DecodeError::Frame(Malformed::Truncated)));
        assert_eq!(ServerMessage::decode(Bytes::new()), Err(DecodeError::Frame(Malformed::Truncated)));
        let hello = body(&ClientMessage::Hello(ClientHello { version: 1, features: 2 }));
        assert_eq!(ServerMessage::decode(hello), Err(DecodeError::Frame(Malformed::Truncated)));
    }

    /// 4 Gi values of which none follows: checked before anything is allocated, or this would fail for memory.
    #[test]
    fn a_count_that_the_frame_has_no_room_for_is_refused() {
        let mut body = BytesMut::new();
        body.put_u8(DATA);
        body.put_u64(1);
        Epoch(1).put_to(&mut body);
        body.put_u8(3);
        body.put_u32(u32::MAX);
        body.put_slice(&[0; 20]);
        assert_eq!(ServerMessage::decode(body.freeze()), Err(DecodeError::Frame(Malformed::Truncated)));
    }

    #[test]
    fn two_sides_speak_the_lower_of_their_versions_unless_it_is_too_old() {
        assert_eq!(negotiate(PROTOCOL_VERSION), Ok(PROTOCOL_VERSION));
        assert_eq!(negotiate(PROTOCOL_VERSION + 5), Ok(PROTOCOL_VERSION));
        assert_eq!(negotiate_between(4, 5), Ok(4), "of a rolling upgrade");
        let too_old = UnsupportedVersion { offered: 3, oldest: 4, newest: 5 };
        assert_eq!(negotiate_between(3, 5), Err(too_old));
        assert_eq!(
            negotiate(0),
            Err(UnsupportedVersion { offered: 0, oldest: 1, newest: 1 }),
            "there is none"
        );
    }
}
