//! Hints as they are stored: under their target and the name of their object, so that each is stored once.

use antientropy::version::{Counter, UnixMillis};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use ring::NodeId;

use super::{Owed, StoredHint};
use crate::{
    recovery::read_under,
    storage::{ObjectKey, Store, open_stored, seal_stored},
};

/// What all keys of hints begin with.
const PREFIX: &[u8] = b"hint/";
/// What a hint says takes so many bytes.
const VALUE_BYTES: usize = 17;

/// Where a hint is stored: the prefix, its target (4 bytes, big-endian), and its object's encoded name.
pub(super) fn key(target: NodeId, object: &ObjectKey) -> Bytes {
    let name = object.encoded();
    let mut key = BytesMut::with_capacity(PREFIX.len() + 4 + name.len());
    key.put_slice(PREFIX);
    key.put_u32(target.0);
    key.put_slice(name);
    key.freeze()
}

/// What is stored there: since when it waits, in milliseconds since 1970 (8 bytes, big-endian), whether it is counted
/// (1 byte, 0 or 1), and the counter that it was first left for (8 bytes, big-endian).
pub(super) fn value(target: NodeId, object: &ObjectKey, owed: Owed) -> Bytes {
    let put = |out: &mut BytesMut| {
        out.put_u64(owed.since.0);
        out.put_u8(u8::from(owed.is_counted));
        out.put_u64(owed.counter.0);
    };
    seal_stored(&key(target, object), put, VALUE_BYTES)
}

/// Hints of a store, from the first or from where an earlier reading stopped, and where this one stopped if the store could
/// not be read on. What is no hint is left out.
pub(super) fn read<S: Store>(store: &S, from: Option<Bytes>) -> (Vec<StoredHint>, Option<Bytes>) {
    read_under(store, PREFIX, from, decode)
}

/// Whether what is stored under a key of [`Table::Meta`](crate::storage::Table::Meta) is a hint. A value that cannot be read
/// does not matter: the key says what is owed to whom.
pub(crate) fn is_hint(key: &Bytes) -> bool {
    key.starts_with(PREFIX) && decode(key, &Bytes::new()).is_some()
}

fn decode(key: &Bytes, stored: &Bytes) -> Option<StoredHint> {
    // Its key says whom it is for and what it names. If its value cannot be read, it may be one that is data.
    let mut payload = open_stored(key, stored).ok().filter(|payload| payload.len() == VALUE_BYTES);
    let owed = match &mut payload {
        Some(payload) => Owed {
            since: UnixMillis(payload.get_u64()),
            is_counted: payload.get_u8() != 0,
            counter: Counter(payload.get_u64()),
        },
        None => Owed { since: UnixMillis(0), is_counted: true, counter: Counter::ZERO },
    };
    let mut name = key.slice(PREFIX.len()..);
    let target = NodeId(name.try_get_u32().ok()?);
    // Copied out: the key may be part of a larger block, which the queue would keep in memory.
    let object = ObjectKey::decode(&Bytes::copy_from_slice(&name))?;
    Some((target, owed, object))
}

#[cfg(test)]
mod tests {
    use ring::{KeyspaceId, StoreId};

    use super::*;
    use crate::storage::{Batch, Change, MemoryEngine, Sequence, Table};

    #[test]
    fn hints_read_back_and_nothing_else_does() {
        let engine = MemoryEngine::new(StoreId(1));
        let object = |key: &[u8]| ObjectKey::new(KeyspaceId(7), key);
        let hints = [
            (NodeId(1), Owed { since: UnixMillis(5), is_counted: true, counter: Counter(7) }, object(b"a")),
            (NodeId(1), Owed { since: UnixMillis(3), is_counted: false, counter: Counter(8) }, object(b"b")),
            (
                NodeId(u32::MAX),
                Owed { since: UnixMillis(u64::MAX), is_counted: true, counter: Counter::MAX },
                object(&[0xff; 40]),
            ),
        ];
        let mut changes: Vec<Change> = hints
            .iter()
            .map(|(target, owed, object)| Change {
                table: Table::Meta,
                key: key(*target, object),
                value: Some(value(*target, object, *owed)),
            })
            .collect();
        let other = |key: &'static [u8], value: Bytes| Change {
            table: Table::Meta,
            key: Bytes::from_static(key),
            value: Some(value),
        };
        changes.push(other(b"hint/", Bytes::from_static(b"x")));
        changes.push(other(b"hint/\0\0\0\x01junk", Bytes::from_static(b"junk")));
        changes.push(other(b"hinu", Bytes::from_static(b"x")));
        engine.submit(Batch { sequence: Sequence(1), changes });
        engine.commit_next();
        let (mut found, rest) = read(&engine, None);
        assert_eq!(rest, None);
        found.sort_by_key(|(_, owed, _)| std::cmp::Reverse(owed.since));
        let mut expected = hints.to_vec();
        expected.sort_by_key(|(_, owed, _)| std::cmp::Reverse(owed.since));
        assert_eq!(found, expected);
    }
}
