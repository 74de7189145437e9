//! Floors, promises and watermarks as they are stored.
//!
//! The floor under `floor` (8 bytes). Promises and watermarks of 64 partitions together, under `watermarks/` and the number
//! of the 64 (2 bytes): runs of equal ones, each how many partitions (2 bytes), promise (8), its epoch (8) and watermark (8).
//! All of it big-endian. What is not there, or cannot be read, is 0: a copy that forgot what it promised finds out when it
//! hears of the watermark.

use std::collections::BTreeMap;

use antientropy::version::Counter;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use ring::{Epoch, PartitionId};

use super::Promise;
use crate::{
    recovery::{PEERS, read_under},
    storage::{Store, Table, open_stored, seal_stored},
};

const FLOOR: &[u8] = b"floor";
const PREFIX: &[u8] = b"watermarks/";
/// Partitions that are stored together.
pub(super) const CHUNK: u16 = 64;
/// Bytes of a run.
const RUN_BYTES: usize = 2 + 3 * 8;

/// What is stored of a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) promise: Promise,
    pub(super) watermark: Counter,
}

/// The floor: a key and a value.
pub(super) fn floor_to_store(floor: Counter) -> (Bytes, Bytes) {
    (Bytes::from_static(FLOOR), seal_stored(FLOOR, |out| out.put_u64(floor.0), 8))
}

/// The partitions of a chunk: a key and a value.
pub(super) fn to_store(chunk: u16, partitions: &BTreeMap<PartitionId, Stored>) -> (Bytes, Bytes) {
    let mut key = BytesMut::with_capacity(PREFIX.len() + 2);
    key.put_slice(PREFIX);
    key.put_u16(chunk);
    let key = key.freeze();
    let mut runs: Vec<(u16, Stored)> = Vec::new();
    for offset in 0..CHUNK {
        let partition = PartitionId(chunk * CHUNK + offset);
        let stored = partitions.get(&partition).copied().unwrap_or_default();
        match runs.last_mut() {
            Some((count, last)) if *last == stored => *count += 1,
            Some(_) | None => runs.push((1, stored)),
        }
    }
    let put = |out: &mut BytesMut| {
        for (count, Stored { promise, watermark }) in &runs {
            out.put_u16(*count);
            out.put_u64(promise.at.0);
            out.put_u64(promise.epoch.0);
            out.put_u64(watermark.0);
        }
    };
    let value = seal_stored(&key, put, runs.len() * RUN_BYTES);
    (key, value)
}

/// Whether a fact of [`Table::Meta`] says only how far a node has come, which it writes even when nothing else happens.
pub(crate) fn is_progress(key: &Bytes) -> bool {
    key == FLOOR || key.starts_with(PREFIX) || key == PEERS
}

/// What a store has kept.
pub(super) struct Kept {
    pub(super) floor: Counter,
    pub(super) partitions: BTreeMap<PartitionId, Stored>,
    /// Whether all of it could be read.
    pub(super) is_complete: bool,
}

/// Reads it back.
pub(super) fn read<S: Store>(store: &S) -> Kept {
    let mut kept = Kept { floor: Counter::ZERO, partitions: BTreeMap::new(), is_complete: true };
    match store.get(Table::Meta, FLOOR).map(|stored| stored.map(|stored| open_stored(FLOOR, &stored))) {
        Ok(None) => {}
        Ok(Some(Ok(mut floor))) if floor.len() == 8 => kept.floor = Counter(floor.get_u64()),
        Ok(Some(_)) | Err(_) => kept.is_complete = false,
    }
    let (chunks, rest) = read_under(store, PREFIX, None, |key, stored| Some(decode(key, stored)));
    kept.is_complete &= rest.is_none();
    for chunk in chunks {
        kept.is_complete &= chunk.is_some();
        kept.partitions.extend(chunk.into_iter().flatten());
    }
    kept
}

fn decode(key: &Bytes, stored: &Bytes) -> Option<Vec<(PartitionId, Stored)>> {
    let chunk = key.strip_prefix(PREFIX)?;
    let chunk = u16::from_be_bytes(chunk.try_into().ok()?);
    let mut payload = open_stored(key, stored).ok()?;
    let mut partition = chunk.checked_mul(CHUNK)?;
    let mut partitions = Vec::new();
    while payload.len() >= RUN_BYTES {
        let count = payload.get_u16();
        let promise = Promise { at: Counter(payload.get_u64()), epoch: Epoch(payload.get_u64()) };
        let stored = Stored { promise, watermark: Counter(payload.get_u64()) };
        for _ in 0..count.min(CHUNK) {
            partitions.push((PartitionId(partition), stored));
            partition = partition.saturating_add(1);
        }
    }
    payload.is_empty().then_some(partitions)
}

#[cfg(test)]
mod tests {
    use ring::StoreId;

    use super::*;
    use crate::storage::{Batch, Change, MemoryEngine, Sequence};

    #[test]
    fn what_is_stored_reads_back() {
        let stored = |at: u64, watermark: u64| Stored {
            promise: Promise { at: Counter(at), epoch: Epoch(at / 2) },
            watermark: Counter(watermark),
        };
        let mut partitions = BTreeMap::new();
        for partition in 64..100 {
            partitions.insert(PartitionId(partition), stored(if partition < 80 { 70 } else { 90 }, 60));
        }
        partitions.insert(PartitionId(127), stored(u64::MAX, 5));
        let engine = MemoryEngine::new(StoreId(1));
        let facts = [floor_to_store(Counter(77)), to_store(1, &partitions)];
        assert!(facts[1].1.len() < 200, "equal ones are stored together");
        let change = |(key, value)| Change { table: Table::Meta, key, value: Some(value) };
        engine.submit(Batch { sequence: Sequence(1), changes: facts.into_iter().map(change).collect() });
        engine.commit_next();
        let kept = read(&engine);
        assert!(kept.is_complete);
        assert_eq!(kept.floor, Counter(77));
        let known = |(_, stored): &(PartitionId, Stored)| *stored != Stored::default();
        assert_eq!(kept.partitions.into_iter().filter(known).collect::<BTreeMap<_, _>>(), partitions);
        let (key, value) = to_store(2, &partitions);
        let change = Change { table: Table::Meta, key, value: Some(value.slice(1..)) };
        engine.submit(Batch { sequence: Sequence(2), changes: vec![change] });
        engine.commit_next();
        assert!(!read(&engine).is_complete, "one of them is damaged");
    }
}
