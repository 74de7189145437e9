//! The encoding of replies and of every error that a coordinator gives.
//!
//! ```text
//! reply      1 a write succeeded: version (option of 16), context (option of bytes), required (1),
//!              acknowledged (1), stood in (1), coordinator (4)
//!            2 a write failed: 1 refused: refusal
//!                              2 in doubt: required (1), acknowledged (1), cause (1)
//!            3 a get succeeded: values (list), context (bytes), asked (1), answered (1), agreed (bool),
//!              repaired (1), coordinator (4)
//!            4 a get failed: 1 refused: refusal
//!                            2 timed out: required (1), answered (1)
//!
//! value      bytes, version (16), expires (option of 8)
//! version    counter (8), actor (8)
//! ```
//!
//! The tables below have the codes of refusals, causes and limits, with their fields in order.

use bytes::{BufMut, Bytes, BytesMut};

use super::{Element, Field, Malformed};
use crate::{
    DoubtCause, Freshness, GetError, GetReply, LevelError, Limit, Refusal, Reply, ReturnedValue, WriteError,
    WriteReply, wire_fields, wire_variants,
};

wire_fields!(WriteReply { version, context, required, acknowledged, stood_in, coordinator });
wire_fields!(GetReply { values, context, freshness, coordinator });
wire_fields!(ReturnedValue { bytes, version, expires_unix_ms });
wire_fields!(Freshness { asked, answered, agreed, repaired });

wire_variants!(WriteError, "write error", {
    1 => Refused(refusal),
    2 => InDoubt { required, acknowledged, cause },
});
wire_variants!(GetError, "get error", {
    1 => Refused(refusal),
    2 => TimedOut { required, answered },
});
wire_variants!(DoubtCause, "cause of doubt", {
    1 => TimedOut,
    2 => TooFewLeft,
    3 => TooManyAttempts,
    4 => CoordinatorSilent,
});
wire_variants!(Refusal, "refusal", {
    1 => Unavailable { required, alive },
    2 => Overloaded(limit),
    3 => StaleEpoch { known },
    4 => Unsatisfiable(error),
    5 => BadCopies { asked, possible },
    6 => EmptyKey,
    7 => TooLarge { size_bytes, limit_bytes },
    8 => TooManySiblings { limit },
    9 => TooManyWriters { limit },
    10 => UnknownKeyspace,
    11 => BadContext,
    12 => ClockDrift { drift_ms },
    13 => NotReady,
    14 => Forbidden { needs },
    15 => Malformed,
    16 => OtherKeyspaces,
});
wire_variants!(Limit, "limit", { 1 => Requests, 2 => Unsynced, 3 => Hints, 4 => Time });
wire_variants!(LevelError, "level error", {
    1 => TooMany { required, copies },
    2 => Zero,
    3 => AnyOnRead,
    4 => NoLocalCopies,
});

impl Element for ReturnedValue {
    /// An empty value that does not expire.
    const BYTES_MIN: usize = 4 + 16 + 1;
}

const WRITTEN: u8 = 1;
const WRITE_FAILED: u8 = 2;
const GOT: u8 = 3;
const GET_FAILED: u8 = 4;

impl Field for Reply {
    fn put_to(&self, out: &mut BytesMut) {
        match self {
            Reply::Write(Ok(reply)) => {
                out.put_u8(WRITTEN);
                reply.put_to(out);
            }
            Reply::Write(Err(error)) => {
                out.put_u8(WRITE_FAILED);
                error.put_to(out);
            }
            Reply::Get(Ok(reply)) => {
                out.put_u8(GOT);
                reply.put_to(out);
            }
            Reply::Get(Err(error)) => {
                out.put_u8(GET_FAILED);
                error.put_to(out);
            }
        }
    }

    fn take_from(input: &mut Bytes) -> Result<Reply, Malformed> {
        match u8::take_from(input)? {
            WRITTEN => WriteReply::take_from(input).map(|reply| Reply::Write(Ok(reply))),
            WRITE_FAILED => WriteError::take_from(input).map(|error| Reply::Write(Err(error))),
            GOT => GetReply::take_from(input).map(|reply| Reply::Get(Ok(reply))),
            GET_FAILED => GetError::take_from(input).map(|error| Reply::Get(Err(error))),
            value => Err(Malformed::UnknownValue { of: "reply", value }),
        }
    }
}

/// Appends a reply, as it stands in a node's frame to a client and in what it answers to a forward.
///
/// # Panics
///
/// If a value or the context has 4 GiB.
pub fn encode_reply(reply: &Reply, out: &mut BytesMut) {
    reply.put_to(out);
}

/// Takes a reply off the front.
///
/// # Errors
///
/// See [`Malformed`]; the input may then be consumed in part.
pub fn decode_reply(input: &mut Bytes) -> Result<Reply, Malformed> {
    Reply::take_from(input)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Version;

    #[test]
    fn no_value_is_shorter_than_the_count_of_values_is_checked_for() {
        let version = Version { counter: 0, actor: 0 };
        let shortest = ReturnedValue { bytes: Bytes::new(), version, expires_unix_ms: None };
        let mut out = BytesMut::new();
        shortest.put_to(&mut out);
        assert_eq!(out.len(), ReturnedValue::BYTES_MIN);
    }
}
