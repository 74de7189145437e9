//! What the core writes into a store: a format version, a checksum of its own, and the payload.
//!
//! ```text
//! byte 0      format, 1
//! bytes 1-8   xxh3 (64 bits, little-endian) of the payload, seeded with the xxh3 of the encoded key
//! bytes 9-    the payload
//! ```
//!
//! The key goes into the checksum so that a value that an engine files under the wrong key is found out.

use antientropy::version::Record;
use bytes::{BufMut, Bytes, BytesMut};
use thiserror::Error;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::{ObjectKey, Store, Table};

/// The format that is written.
const FORMAT: u8 = 1;
/// Bytes before the payload.
const HEADER_BYTES: usize = 9;

/// What is stored cannot be read: it is damaged, or of a format that this version does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a stored record is damaged")]
pub struct Unreadable;

/// Frames a payload for storage under `key`.
pub(crate) fn seal_stored(key: &[u8], payload: impl FnOnce(&mut BytesMut), capacity: usize) -> Bytes {
    let mut out = BytesMut::with_capacity(HEADER_BYTES + capacity);
    out.put_u8(FORMAT);
    out.put_u64_le(0);
    payload(&mut out);
    let checksum = xxh3_64_with_seed(&out[HEADER_BYTES..], xxh3_64(key));
    out[1..HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
    out.freeze()
}

/// The payload of what is stored under `key`.
pub(crate) fn open_stored(key: &[u8], stored: &Bytes) -> Result<Bytes, Unreadable> {
    let header = stored.get(..HEADER_BYTES).ok_or(Unreadable)?;
    let checksum = u64::from_le_bytes(header[1..].try_into().expect("eight bytes of nine"));
    let payload = stored.slice(HEADER_BYTES..);
    if header[0] != FORMAT || xxh3_64_with_seed(&payload, xxh3_64(key)) != checksum {
        return Err(Unreadable);
    }
    Ok(payload)
}

/// A record as it is stored under an object's encoded key.
pub(crate) fn encode_stored(key: &[u8], record: &Record) -> Bytes {
    seal_stored(key, |out| record.encode(out), record.encoded_len())
}

/// A stored record.
pub(crate) fn decode_stored(key: &[u8], stored: &Bytes) -> Result<Record, Unreadable> {
    let mut payload = open_stored(key, stored)?;
    let record = Record::decode(&mut payload).map_err(|_| Unreadable)?;
    if payload.is_empty() { Ok(record) } else { Err(Unreadable) }
}

/// The record that a store holds for an object, as far as it is committed.
///
/// # Errors
///
/// [`Unreadable`] if something is stored and cannot be trusted.
pub fn read_record(store: &impl Store, object: &ObjectKey) -> Result<Option<Record>, Unreadable> {
    let key = object.encoded();
    match store.get(Table::Records, key) {
        Ok(None) => Ok(None),
        Ok(Some(stored)) => decode_stored(key, &stored).map(Some),
        Err(_) => Err(Unreadable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_and_a_wrong_key_are_found() {
        let stored = seal_stored(b"key", |out| out.put_slice(b"payload"), 7);
        assert_eq!(open_stored(b"key", &stored).unwrap(), &b"payload"[..]);
        assert_eq!(open_stored(b"kez", &stored), Err(Unreadable));
        for bit in 0..stored.len() * 8 {
            let mut damaged = stored.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open_stored(b"key", &Bytes::from(damaged)), Err(Unreadable), "bit {bit}");
        }
        assert_eq!(open_stored(b"key", &stored.slice(..8)), Err(Unreadable));
    }

    #[test]
    fn the_format_is_pinned() {
        let stored = seal_stored(b"key", |out| out.put_slice(b"payload"), 7);
        assert_eq!(stored[0], 1);
        let checksum = xxh3_64_with_seed(b"payload", xxh3_64(b"key"));
        assert_eq!(stored[1..9], checksum.to_le_bytes());
        assert_eq!(&stored[9..], b"payload");
    }
}
