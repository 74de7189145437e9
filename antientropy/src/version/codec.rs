//! The encoding of records, on disk and between nodes.
//!
//! Version 1. Numbers are big-endian; a *varint* is LEB128 of at most 32 bits, in its shortest form.
//!
//! ```text
//! record    version (1): 1
//!           kind (1): 1 siblings, 2 lww
//!           copies (1): as in `CopyCount`
//!           what the kind says
//!
//! siblings  entries (varint), each: actor (8), counter (8)             strictly ascending by actor
//!           values (varint), each: counter (8), actor (varint), value  strictly descending by dot
//!
//! lww       dot: counter (8), actor (8)
//!           seen (8)                                                   below the dot's counter
//!           live (1): 0 deleted, 1 a value follows
//!
//! value     flags (1): bit 0 expires, bit 1 has a request
//!           expiry (8), if it expires: milliseconds since the Unix epoch
//!           request (16), if it has one: not zero
//!           length (varint), bytes
//! ```
//!
//! The actor of a sibling's dot is its position among the entries, from 0; the dot's counter is at most that
//! entry's. No counter is zero (`seen` may be) or 2^64 - 1. A record has one encoding, and whatever is not one is
//! refused, so that equal bytes and equal records are the same thing. There is no checksum here: a frame and a
//! stored record each have one around more than this.
//!
//! `decode` reads it. The encoding is self-delimiting, so records can follow one another.

use bytes::{BufMut, BytesMut};

use super::{Context, Dot, Record, RequestId, Value};

pub(super) const FORMAT_VERSION: u8 = 1;
pub(super) const KIND_SIBLINGS: u8 = 1;
pub(super) const KIND_LWW: u8 = 2;

const HEADER_LEN: usize = 3;
pub(super) const ENTRY_LEN: usize = 16;
/// The shortest live value of a sibling set: counter, actor, flags, length.
pub(super) const SIBLING_LEN_MIN: usize = 11;
/// Dot, `seen` and the mark of a value.
const LWW_LEN: usize = 25;

pub(super) const FLAG_EXPIRES: u8 = 1;
pub(super) const FLAG_REQUEST: u8 = 2;

/// The longest varint.
pub(super) const VARINT_LEN_MAX: usize = 5;

impl Record {
    /// The exact length that [`Record::encode`] adds, in bytes.
    pub fn encoded_len(&self) -> usize {
        HEADER_LEN
            + match self {
                Record::Siblings(set) => {
                    let context = set.context_ref();
                    let dots = set.values().map(|(dot, _)| 8 + varint_len(position(dot, context)));
                    let values = set.values().map(|(_, value)| value_len(value));
                    varint_len(context.entries().len())
                        + context.entries().len() * ENTRY_LEN
                        + varint_len(set.live_len())
                        + dots.sum::<usize>()
                        + values.sum::<usize>()
                }
                Record::Lww(version) => LWW_LEN + version.value.as_ref().map_or(0, value_len),
            }
    }

    /// Appends the record's encoding. Equal records have equal encodings.
    ///
    /// # Panics
    ///
    /// If a value or the context has 2^32 bytes or entries: requests are bounded where they are decoded.
    pub fn encode(&self, out: &mut BytesMut) {
        out.reserve(self.encoded_len());
        out.put_u8(FORMAT_VERSION);
        match self {
            Record::Siblings(set) => {
                out.put_u8(KIND_SIBLINGS);
                out.put_u8(set.copies().to_byte());
                put_entries(set.context_ref(), out);
                put_varint(set.live_len(), out);
                for (dot, value) in set.values() {
                    put_dot(dot, set.context_ref(), out);
                    put_value(value, out);
                }
            }
            Record::Lww(version) => {
                out.put_u8(KIND_LWW);
                out.put_u8(version.copies.to_byte());
                out.put_u64(version.dot.counter.0);
                out.put_u64(version.dot.actor.0);
                out.put_u64(version.seen.0);
                out.put_u8(u8::from(version.value.is_some()));
                version.value.iter().for_each(|value| put_value(value, out));
            }
        }
    }
}

/// The count of entries and the entries.
pub(super) fn put_entries(context: &Context, out: &mut impl BufMut) {
    put_varint(context.entries().len(), out);
    for &(actor, counter) in context.entries() {
        out.put_u64(actor.0);
        out.put_u64(counter.0);
    }
}

/// A live dot, its actor as the position among the entries.
pub(super) fn put_dot(dot: Dot, context: &Context, out: &mut impl BufMut) {
    out.put_u64(dot.counter.0);
    put_varint(position(dot, context), out);
}

fn position(dot: Dot, context: &Context) -> usize {
    let found = context.entries().binary_search_by_key(&dot.actor, |entry| entry.0);
    found.expect("a sibling set's context covers each of its live dots")
}

fn put_value(value: &Value, out: &mut impl BufMut) {
    let expires = if value.expires.is_some() { FLAG_EXPIRES } else { 0 };
    let request = if value.request == RequestId::NONE { 0 } else { FLAG_REQUEST };
    out.put_u8(expires | request);
    if let Some(expires) = value.expires {
        out.put_u64(expires.0);
    }
    if value.request != RequestId::NONE {
        out.put_u128(value.request.0);
    }
    put_varint(value.bytes.len(), out);
    out.put_slice(&value.bytes);
}

fn value_len(value: &Value) -> usize {
    let expires = if value.expires.is_some() { 8 } else { 0 };
    let request = if value.request == RequestId::NONE { 0 } else { 16 };
    1 + expires + request + varint_len(value.bytes.len()) + value.bytes.len()
}

pub(super) fn put_varint(number: usize, out: &mut impl BufMut) {
    let mut rest = u32::try_from(number).expect("counts and lengths are bounded far below 2^32");
    while rest >= 0x80 {
        out.put_u8((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    out.put_u8(rest as u8);
}

pub(super) fn varint_len(number: usize) -> usize {
    (usize::BITS - (number | 1).leading_zeros()).div_ceil(7) as usize
}

/// Records whose encodings the tests pin here, and damage in `decode`.
#[cfg(test)]
pub(super) mod samples {
    use super::*;
    use crate::version::{Actor, CopyCount, Counter, LwwVersion, SiblingSet, UnixMillis};

    fn dot(actor: u64, counter: u64) -> Dot {
        Dot { counter: Counter(counter), actor: Actor(actor) }
    }

    pub(in crate::version) fn siblings() -> Record {
        let mut set = SiblingSet::new();
        let value =
            Value { expires: Some(UnixMillis(0x0506)), request: RequestId(0x0708), ..Value::new("ab") };
        set.write(dot(0xa0, 0x0102), &Context::new(), Some(value), CopyCount::DEFAULT);
        set.write(dot(0x01, 0x0103), &Context::new(), Some(Value::new("c")), CopyCount::explicit(5));
        Record::Siblings(set)
    }

    pub(in crate::version) fn lww() -> Record {
        let seen = Context::from_entries(CopyCount::NONE, vec![(Actor(2), Counter(0x0101))]);
        let value = Some(Value::new("abc"));
        Record::Lww(LwwVersion::write(dot(0xa0, 0x0102), &seen, value, CopyCount::DEFAULT))
    }

    pub(in crate::version) fn encoded(record: &Record) -> Vec<u8> {
        let mut out = BytesMut::new();
        record.encode(&mut out);
        assert_eq!(out.len(), record.encoded_len());
        out.to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::samples::{encoded, lww, siblings};

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn a_siblings_record_is_pinned() {
        let expected = concat!(
            "010185",                           // version, siblings, copies: the keyspace's own and five
            "02",                               // entries
            "00000000000000010000000000000103", // actor, counter
            "00000000000000a00000000000000102",
            "02",                               // values
            "0000000000000103000001",           // counter, actor, flags, length
            "63",                               // "c"
            "00000000000001020103",             // counter, actor, flags: expires and has a request
            "0000000000000506",                 // expiry
            "00000000000000000000000000000708", // request
            "026162",                           // length, "ab"
        );
        assert_eq!(hex(&encoded(&siblings())), expected);
    }

    #[test]
    fn an_lww_record_is_pinned() {
        let expected = concat!(
            "010280",                           // version, lww, copies: the keyspace's own
            "000000000000010200000000000000a0", // counter, actor
            "0000000000000101",                 // seen
            "010003616263",                     // a value follows: flags, length, "abc"
        );
        assert_eq!(hex(&encoded(&lww())), expected);
    }
}
