//! The encoding of requests: put, delete and get.
//!
//! ```text
//! request   kind (1): 1 put, 2 delete, 3 get
//!           keyspace (4), key (bytes)
//!           put       value (bytes), expires (option of 8), write options
//!           delete    write options
//!           get       read options
//!
//! write     request (16), context (option of bytes), seen (option of 8), level, n (option of 1),
//! options   durability (option of 1: 1 memory, 2 disk), sloppy (bool), timeout (duration)
//!
//! read      level, n (option of 1), read repair (option of 1: 1 background, 2 off, 3 blocking),
//! options   timeout (duration)
//!
//! level     1 any, 2 one, 3 two, 4 three, 5 quorum, 6 all, 7 local_one, 8 local_quorum, 9 each_quorum,
//!           10 so many: (1)
//! ```
//!
//! Nothing here bounds a key or a value but the frame: a node answers one that is too long with a refusal that names
//! the limit, for which it has to have read it.

use bytes::{BufMut, Bytes, BytesMut};

use super::{Field, Malformed};
use crate::{
    Delete, Get, Level, Put, ReadOptions, ReadRepair, Request, WriteOptions, wire_fields, wire_variants,
};

/// Kinds of requests.
pub(super) const PUT: u8 = 1;
pub(super) const DELETE: u8 = 2;
pub(super) const GET: u8 = 3;

wire_fields!(Put { keyspace, key, value, expires_unix_ms, options });
wire_fields!(Delete { keyspace, key, options });
wire_fields!(Get { keyspace, key, options });
wire_fields!(WriteOptions { request, context, seen, level, n, durability, is_sloppy, timeout });
wire_fields!(ReadOptions { level, n, read_repair, timeout });

wire_variants!(ReadRepair, "read repair", { 1 => Background, 2 => Off, 3 => Blocking });
wire_variants!(Level, "level", {
    1 => Any,
    2 => One,
    3 => Two,
    4 => Three,
    5 => Quorum,
    6 => All,
    7 => LocalOne,
    8 => LocalQuorum,
    9 => EachQuorum,
    10 => Count(count),
});

/// An upper bound of what a request takes beside its key, its value and its context: one growth of the output is
/// cheaper than several.
const FIXED_BYTES_MAX: usize = 96;

impl Field for Request {
    fn put_to(&self, out: &mut BytesMut) {
        match self {
            Request::Put(put) => {
                out.reserve(FIXED_BYTES_MAX + put.key.len() + put.value.len());
                out.put_u8(PUT);
                put.put_to(out);
            }
            Request::Delete(delete) => {
                out.put_u8(DELETE);
                delete.put_to(out);
            }
            Request::Get(get) => {
                out.put_u8(GET);
                get.put_to(out);
            }
        }
    }

    fn take_from(input: &mut Bytes) -> Result<Request, Malformed> {
        match u8::take_from(input)? {
            PUT => Put::take_from(input).map(Request::Put),
            DELETE => Delete::take_from(input).map(Request::Delete),
            GET => Get::take_from(input).map(Request::Get),
            value => Err(Malformed::UnknownValue { of: "request", value }),
        }
    }
}

/// Appends a request, as it stands in a client's frame and in what nodes forward.
///
/// # Panics
///
/// If its key, value or context has 4 GiB.
pub fn encode_request(request: &Request, out: &mut BytesMut) {
    request.put_to(out);
}

/// Takes a request off the front.
///
/// # Errors
///
/// See [`Malformed`]; the input may then be consumed in part.
pub fn decode_request(input: &mut Bytes) -> Result<Request, Malformed> {
    Request::take_from(input)
}
