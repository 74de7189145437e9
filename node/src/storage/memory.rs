//! The memory engine: a store for the simulator and the benchmarks that behaves as a disk does.
//!
//! It keeps apart what a disk keeps apart. Batches that were handed over wait in a *queue*, which a crash empties.
//! Committed batches are in the *tables*, which reads see, and as framed bytes in a *write-ahead log* over a
//! *checkpoint*: what survives a crash is what replaying that log yields. So a torn write, a lying disk and a flipped
//! bit are modelled where they happen, in bytes, and recovery has to find them.
//!
//! # The log
//!
//! One frame a batch, numbers big-endian:
//!
//! ```text
//! frame    checksum (8, xxh3 of all that follows), format version (1), sequence (8), payload length (4), payload
//! payload  changes, each: table (1), key length (4), key, has a value (1), and if so its length (4) and the value
//! ```
//!
//! Replay stops at the first frame that is short, of another version, out of order or fails its checksum, and cuts
//! the log there: a batch is found whole or not at all. When the log passes its bound it is folded into the checkpoint.
//!
//! # What it does not do
//!
//! It does not check records: [`MemoryEngine::rot`] damages one below the log's checksums, as a decaying disk does
//! years after the log is gone, and the core's own checksum has to find it. Nothing here draws random numbers: whoever
//! simulates the disk decides what is lost.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    rc::Rc,
};

use bytes::{Buf, BufMut, Bytes};
use ring::StoreId;
use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_64;

use super::{Batch, Change, ReadError, Sequence, Store, Table};
use crate::watermarks::is_progress;

/// Log bytes after which the log is folded into the checkpoint: few enough to replay at once, many enough that a
/// simulated run damages a log that has something in it.
const LOG_BYTES_MAX: usize = 256 * 1024;
/// The version of a frame.
const FRAME_VERSION: u8 = 1;
/// The bytes of a frame before its payload.
const FRAME_HEADER_BYTES: usize = 8 + 1 + 8 + 4;

/// A handle on a simulated disk. Clones are handles on the same disk, so that it outlives the node that used it.
#[derive(Clone, Debug)]
pub struct MemoryEngine {
    disk: Rc<RefCell<Disk>>,
    /// Whether this handle reads even while the device fails.
    inspects: bool,
}

/// What a crash does to the batches that were handed over and not yet reported as committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CrashDamage {
    /// So many of them, the oldest, had reached the disk all the same.
    pub batches_kept: usize,
    /// So many bytes of the next one had: a torn write. Never all of them.
    pub bytes_torn: usize,
}

/// Keys and values in the order of their keys. Sorted by the first sixteen bytes as a number, which finds a key without
/// touching the others' bytes: what the engine costs should not drown what the core costs.
#[derive(Clone, Debug, Default)]
struct Entries {
    buckets: BTreeMap<u128, SmallVec<[(Bytes, Bytes); 1]>>,
}

/// Both tables, in the order of [`Table`].
type Tables = [Entries; 2];

#[derive(Debug)]
struct Disk {
    id: StoreId,
    tables: Tables,
    applied: Sequence,
    recovered: Sequence,
    /// Whether the device fails to read.
    reads_fail: bool,
    /// Handed over, not committed.
    queue: VecDeque<Batch>,
    /// None if nobody is going to crash this disk.
    log: Option<Log>,
}

/// What is on the disk: committed frames over the tables as they were when the log was last folded.
#[derive(Debug, Default)]
struct Log {
    checkpoint: Tables,
    checkpoint_sequence: Sequence,
    bytes: Vec<u8>,
}

impl MemoryEngine {
    /// A new, empty store that can crash.
    #[must_use]
    pub fn new(id: StoreId) -> MemoryEngine {
        MemoryEngine::with_log(id, Some(Log::default()))
    }

    /// A new, empty store that keeps no log, for benchmarks: a crash would leave nothing.
    #[must_use]
    pub fn without_log(id: StoreId) -> MemoryEngine {
        MemoryEngine::with_log(id, None)
    }

    fn with_log(id: StoreId, log: Option<Log>) -> MemoryEngine {
        MemoryEngine { disk: Rc::new(RefCell::new(Disk::new(id, log))), inspects: false }
    }

    /// A handle on the same disk that reads even while the device fails: for whoever simulates it.
    #[must_use]
    pub fn inspector(&self) -> MemoryEngine {
        MemoryEngine { disk: Rc::clone(&self.disk), inspects: true }
    }

    /// A handle on the same disk as a node has it.
    #[must_use]
    pub fn handle(&self) -> MemoryEngine {
        MemoryEngine { disk: Rc::clone(&self.disk), inspects: false }
    }

    /// From now on the device fails to read, or does not.
    pub fn fail_reads(&self, fails: bool) {
        self.disk.borrow_mut().reads_fail = fails;
    }

    /// Hands over a batch. It is neither readable nor safe before it is committed.
    ///
    /// # Panics
    ///
    /// If its sequence is not greater than that of every batch before it.
    pub fn submit(&self, batch: Batch) {
        let mut disk = self.disk.borrow_mut();
        let last = disk.queue.back().map_or(disk.applied, |queued| queued.sequence);
        assert!(batch.sequence > last, "{:?} was handed over after {last:?}", batch.sequence);
        disk.queue.push_back(batch);
    }

    /// How many batches wait to be committed.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.disk.borrow().queue.len()
    }

    /// Whether one of them changes records, or more of what the node remembers than how far it has come.
    #[must_use]
    pub fn is_changing(&self) -> bool {
        let is_routine = |change: &Change| change.table == Table::Meta && is_progress(&change.key);
        !self.disk.borrow().queue.iter().flat_map(|batch| &batch.changes).all(is_routine)
    }

    /// Applies and syncs the oldest waiting batch, and names it.
    pub fn commit_next(&self) -> Option<Sequence> {
        let mut disk = self.disk.borrow_mut();
        let batch = disk.queue.pop_front()?;
        Some(disk.commit(batch))
    }

    /// Applies and syncs all waiting batches up to `sequence` in one sync, and names the last.
    pub fn commit_through(&self, sequence: Sequence) -> Option<Sequence> {
        let mut disk = self.disk.borrow_mut();
        let mut last = None;
        while disk.queue.front().is_some_and(|batch| batch.sequence <= sequence) {
            let batch = disk.queue.pop_front()?;
            last = Some(disk.commit(batch));
        }
        last
    }

    /// Refuses the oldest waiting batch, as a full disk does, and names it. Nothing of it is applied.
    pub fn fail_next(&self) -> Option<Sequence> {
        self.disk.borrow_mut().queue.pop_front().map(|batch| batch.sequence)
    }

    /// The last batch that was handed over, whether or not it is synced.
    #[must_use]
    pub fn sealed(&self) -> Sequence {
        let disk = self.disk.borrow();
        disk.queue.back().map_or(disk.applied, |batch| batch.sequence)
    }

    /// The last batch that is applied and synced.
    #[must_use]
    pub fn synced(&self) -> Sequence {
        self.disk.borrow().applied
    }

    /// The power goes. What was not committed is lost, but for what `damage` says. Call
    /// [`MemoryEngine::reopen`] before anyone reads again.
    pub fn crash(&self, damage: CrashDamage) {
        let disk = &mut *self.disk.borrow_mut();
        let waiting = std::mem::take(&mut disk.queue);
        let Some(log) = &mut disk.log else { return };
        for (index, batch) in waiting.iter().take(damage.batches_kept + 1).enumerate() {
            let start = log.bytes.len();
            encode_frame(batch, &mut log.bytes);
            if index == damage.batches_kept {
                let whole = log.bytes.len() - start;
                log.bytes.truncate(start + damage.bytes_torn.min(whole - 1));
            }
        }
    }

    /// Opens the store again: replays the log over the checkpoint, up to the first frame that is not good.
    pub fn reopen(&self) {
        let disk = &mut *self.disk.borrow_mut();
        disk.queue.clear();
        if let Some(log) = &mut disk.log {
            (disk.tables, disk.applied) = log.replay();
        }
        disk.recovered = disk.applied;
    }

    /// Bytes in the log since the last checkpoint.
    #[must_use]
    pub fn log_bytes(&self) -> usize {
        self.disk.borrow().log.as_ref().map_or(0, |log| log.bytes.len())
    }

    /// Takes the last `bytes` bytes off the log although they were synced: a disk that lied. Felt when the store is
    /// next opened.
    pub fn truncate_log(&self, bytes: usize) {
        if let Some(log) = &mut self.disk.borrow_mut().log {
            let left = log.bytes.len().saturating_sub(bytes);
            log.bytes.truncate(left);
        }
    }

    /// Flips one bit of the log. Replay will stop before the frame that it hit. Felt when the store is next opened.
    pub fn flip_log_bit(&self, byte: usize, bit: u8) {
        if let Some(log) = &mut self.disk.borrow_mut().log
            && let Some(hit) = log.bytes.get_mut(byte)
        {
            *hit ^= 1 << (bit % 8);
        }
    }

    /// Flips one bit of a stored value, below the log's checksums and at once. Whether there was anything to damage.
    pub fn rot(&self, table: Table, key: &[u8], byte: usize, bit: u8) -> bool {
        let mut disk = self.disk.borrow_mut();
        let Some(value) = disk.tables[index(table)].get_mut(key) else { return false };
        let mut damaged = value.to_vec();
        let Some(hit) = damaged.get_mut(byte) else { return false };
        *hit ^= 1 << (bit % 8);
        *value = damaged.into();
        disk.fold();
        true
    }

    /// Replaces the disk by an empty one: another store.
    pub fn wipe(&self, id: StoreId) {
        let disk = &mut *self.disk.borrow_mut();
        let log = disk.log.is_some().then(Log::default);
        *disk = Disk::new(id, log);
    }

    /// Another disk with what is committed on this one now: an image to restore later.
    #[must_use]
    pub fn image(&self) -> MemoryEngine {
        let disk = self.disk.borrow();
        let image = MemoryEngine::without_log(disk.id);
        {
            let mut copy = image.disk.borrow_mut();
            copy.tables = disk.tables.clone();
            copy.applied = disk.applied;
        }
        image
    }

    /// Puts an older image back, under the same store id: what must not be done to a live disk. Felt when the store is
    /// next opened.
    ///
    /// # Panics
    ///
    /// If the image is this very disk.
    pub fn restore(&self, image: &MemoryEngine) {
        let disk = &mut *self.disk.borrow_mut();
        let image = image.disk.borrow();
        disk.tables = image.tables.clone();
        disk.applied = image.applied;
        disk.queue.clear();
        disk.fold();
    }
}

impl Store for MemoryEngine {
    fn id(&self) -> StoreId {
        self.disk.borrow().id
    }

    fn recovered(&self) -> Sequence {
        self.disk.borrow().recovered
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, ReadError> {
        let disk = self.disk.borrow();
        if disk.reads_fail && !self.inspects {
            return Err(ReadError::Damaged);
        }
        Ok(disk.tables[index(table)].get(key).cloned())
    }

    fn scan(
        &self,
        table: Table,
        after: Option<&[u8]>,
        end: &[u8],
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, ReadError> {
        if after.is_some_and(|after| after >= end) {
            return Ok(Vec::new());
        }
        let disk = self.disk.borrow();
        if disk.reads_fail && !self.inspects {
            return Err(ReadError::Damaged);
        }
        Ok(disk.tables[index(table)].range(after, end).take(limit).cloned().collect())
    }
}

impl Entries {
    /// The first bytes of a key as a number that sorts as they do; of two keys with one number, the longer bytes tell.
    fn prefix(key: &[u8]) -> u128 {
        let mut prefix = [0; 16];
        let length = key.len().min(prefix.len());
        prefix[..length].copy_from_slice(&key[..length]);
        u128::from_be_bytes(prefix)
    }

    fn get(&self, key: &[u8]) -> Option<&Bytes> {
        let bucket = self.buckets.get(&Entries::prefix(key))?;
        bucket.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    fn get_mut(&mut self, key: &[u8]) -> Option<&mut Bytes> {
        let bucket = self.buckets.get_mut(&Entries::prefix(key))?;
        bucket.iter_mut().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    fn insert(&mut self, key: Bytes, value: Bytes) {
        let bucket = self.buckets.entry(Entries::prefix(&key)).or_default();
        match bucket.binary_search_by(|(name, _)| name.cmp(&key)) {
            Ok(at) => bucket[at].1 = value,
            Err(at) => bucket.insert(at, (key, value)),
        }
    }

    fn remove(&mut self, key: &[u8]) {
        let prefix = Entries::prefix(key);
        if let Some(bucket) = self.buckets.get_mut(&prefix) {
            bucket.retain(|(name, _)| name != key);
            if bucket.is_empty() {
                self.buckets.remove(&prefix);
            }
        }
    }

    /// The entries with `after < key < end`, in order.
    fn range<'a>(
        &'a self,
        after: Option<&'a [u8]>,
        end: &'a [u8],
    ) -> impl Iterator<Item = &'a (Bytes, Bytes)> {
        let start = after.map_or(0, Entries::prefix);
        let buckets = self.buckets.range(start..=Entries::prefix(end));
        let is_within =
            move |(key, _): &&(Bytes, Bytes)| after.is_none_or(|after| &key[..] > after) && &key[..] < end;
        buckets.flat_map(|(_, bucket)| bucket).filter(is_within)
    }
}

impl Disk {
    fn new(id: StoreId, log: Option<Log>) -> Disk {
        Disk {
            id,
            tables: Tables::default(),
            applied: Sequence(0),
            recovered: Sequence(0),
            reads_fail: false,
            queue: VecDeque::new(),
            log,
        }
    }

    fn commit(&mut self, batch: Batch) -> Sequence {
        if let Some(log) = &mut self.log {
            encode_frame(&batch, &mut log.bytes);
        }
        self.applied = batch.sequence;
        for change in batch.changes {
            apply(&mut self.tables, change);
        }
        if self.log.as_ref().is_some_and(|log| log.bytes.len() > LOG_BYTES_MAX) {
            self.fold();
        }
        self.applied
    }

    /// Makes the tables as they are the checkpoint.
    fn fold(&mut self) {
        if let Some(log) = &mut self.log {
            log.checkpoint = self.tables.clone();
            log.checkpoint_sequence = self.applied;
            log.bytes.clear();
        }
    }
}

impl Log {
    /// The tables and the last sequence that the log yields. Cuts off what is not good.
    fn replay(&mut self) -> (Tables, Sequence) {
        let mut tables = self.checkpoint.clone();
        let mut applied = self.checkpoint_sequence;
        let mut good_bytes = 0;
        while let Some((batch, frame_bytes)) = decode_frame(&self.bytes[good_bytes..], applied) {
            applied = batch.sequence;
            for change in batch.changes {
                apply(&mut tables, change);
            }
            good_bytes += frame_bytes;
        }
        self.bytes.truncate(good_bytes);
        (tables, applied)
    }
}

fn index(table: Table) -> usize {
    match table {
        Table::Records => 0,
        Table::Meta => 1,
    }
}

fn apply(tables: &mut Tables, change: Change) {
    let table = &mut tables[index(change.table)];
    match change.value {
        Some(value) => table.insert(change.key, value),
        None => table.remove(&change.key),
    }
}

fn encode_frame(batch: &Batch, log: &mut Vec<u8>) {
    let start = log.len();
    log.put_u64(0);
    log.put_u8(FRAME_VERSION);
    log.put_u64(batch.sequence.0);
    log.put_u32(0);
    for change in &batch.changes {
        log.put_u8(u8::try_from(index(change.table)).expect("there are two tables"));
        encode_bytes(&change.key, log);
        log.put_u8(u8::from(change.value.is_some()));
        if let Some(value) = &change.value {
            encode_bytes(value, log);
        }
    }
    let payload_bytes =
        u32::try_from(log.len() - start - FRAME_HEADER_BYTES).expect("a batch is far below 4 GiB");
    log[start + 17..start + 21].copy_from_slice(&payload_bytes.to_be_bytes());
    let checksum = xxh3_64(&log[start + 8..]);
    log[start..start + 8].copy_from_slice(&checksum.to_be_bytes());
}

fn encode_bytes(bytes: &[u8], log: &mut Vec<u8>) {
    log.put_u32(u32::try_from(bytes.len()).expect("keys and values are far below 4 GiB"));
    log.put_slice(bytes);
}

/// The frame at the start of `bytes` and its length, if it is a good one with a sequence after `applied`.
fn decode_frame(bytes: &[u8], applied: Sequence) -> Option<(Batch, usize)> {
    let mut header = bytes.get(..FRAME_HEADER_BYTES)?;
    let (checksum, version) = (header.get_u64(), header.get_u8());
    let (sequence, payload_bytes) = (Sequence(header.get_u64()), header.get_u32());
    let frame_bytes = FRAME_HEADER_BYTES.checked_add(usize::try_from(payload_bytes).ok()?)?;
    let frame = bytes.get(..frame_bytes)?;
    if version != FRAME_VERSION || sequence <= applied || checksum != xxh3_64(&frame[8..]) {
        return None;
    }
    let mut payload = &frame[FRAME_HEADER_BYTES..];
    let mut changes = Vec::new();
    while !payload.is_empty() {
        changes.push(decode_change(&mut payload)?);
    }
    Some((Batch { sequence, changes }, frame_bytes))
}

fn decode_change(payload: &mut &[u8]) -> Option<Change> {
    let table = match payload.try_get_u8().ok()? {
        0 => Table::Records,
        1 => Table::Meta,
        _ => return None,
    };
    let key = decode_bytes(payload)?;
    let value = match payload.try_get_u8().ok()? {
        0 => None,
        _ => Some(decode_bytes(payload)?),
    };
    Some(Change { table, key, value })
}

fn decode_bytes(payload: &mut &[u8]) -> Option<Bytes> {
    let length = usize::try_from(payload.try_get_u32().ok()?).ok()?;
    let bytes = Bytes::copy_from_slice(payload.get(..length)?);
    payload.advance(length);
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(sequence: u64, key: &'static str, value: &'static str) -> Batch {
        let change = Change { table: Table::Records, key: key.into(), value: Some(value.into()) };
        Batch { sequence: Sequence(sequence), changes: vec![change] }
    }

    fn get(engine: &MemoryEngine, key: &str) -> Option<Bytes> {
        engine.get(Table::Records, key.as_bytes()).unwrap()
    }

    /// A store with three committed batches that put a, b and c.
    fn three() -> MemoryEngine {
        let engine = MemoryEngine::new(StoreId(1));
        for (sequence, key) in [(1, "a"), (2, "b"), (4, "c")] {
            engine.submit(put(sequence, key, "value"));
        }
        assert_eq!(engine.commit_through(Sequence(9)), Some(Sequence(4)));
        engine
    }

    #[test]
    fn reads_see_what_was_committed_and_nothing_else() {
        let engine = MemoryEngine::new(StoreId(1));
        engine.submit(put(1, "a", "1"));
        engine.submit(put(2, "a", "2"));
        assert_eq!(get(&engine, "a"), None);
        assert_eq!(engine.commit_next(), Some(Sequence(1)));
        assert_eq!(get(&engine, "a"), Some("1".into()));
        assert_eq!(engine.fail_next(), Some(Sequence(2)));
        assert_eq!((get(&engine, "a"), engine.commit_next()), (Some("1".into()), None));
    }

    #[test]
    fn a_crash_loses_what_was_not_committed_and_keeps_the_rest() {
        let engine = three();
        engine.submit(put(5, "d", "lost"));
        engine.crash(CrashDamage::default());
        engine.reopen();
        assert_eq!((get(&engine, "c"), get(&engine, "d")), (Some("value".into()), None));
        assert_eq!((engine.recovered(), engine.synced(), engine.pending()), (Sequence(4), Sequence(4), 0));
    }

    #[test]
    fn a_crash_may_keep_batches_that_nobody_was_told_of_and_tear_the_next() {
        for bytes_torn in [0, 1, FRAME_HEADER_BYTES, 1000] {
            let engine = three();
            engine.submit(put(5, "d", "kept"));
            engine.submit(put(6, "e", "torn"));
            engine.crash(CrashDamage { batches_kept: 1, bytes_torn });
            engine.reopen();
            assert_eq!((get(&engine, "d"), get(&engine, "e")), (Some("kept".into()), None), "{bytes_torn}");
            engine.submit(put(6, "e", "again"));
            engine.commit_next();
            engine.crash(CrashDamage::default());
            engine.reopen();
            assert_eq!(
                get(&engine, "e"),
                Some("again".into()),
                "the log goes on where the torn frame was cut"
            );
        }
    }

    #[test]
    fn recovery_stops_at_the_first_frame_that_is_not_good() {
        let frame_bytes = three().log_bytes() / 3;
        for byte in 0..frame_bytes {
            let engine = three();
            engine.flip_log_bit(frame_bytes + byte, 3);
            engine.reopen();
            assert_eq!(engine.recovered(), Sequence(1), "a flip in byte {byte} of the second frame");
            assert_eq!((get(&engine, "a").is_some(), get(&engine, "c")), (true, None));
        }
        let engine = three();
        engine.truncate_log(1);
        engine.reopen();
        assert_eq!(engine.recovered(), Sequence(2));
    }

    #[test]
    fn rot_survives_a_restart() {
        let engine = three();
        assert!(engine.rot(Table::Records, b"b", 0, 0));
        assert!(!engine.rot(Table::Records, b"z", 0, 0));
        engine.reopen();
        assert_eq!((get(&engine, "b"), engine.recovered()), (Some("walue".into()), Sequence(4)));
    }

    #[test]
    fn an_image_brings_an_older_disk_back_and_a_wipe_none() {
        let engine = three();
        let image = engine.image();
        engine.submit(put(5, "d", "newer"));
        engine.commit_next();
        engine.restore(&image);
        engine.reopen();
        assert_eq!((engine.id(), engine.recovered(), get(&engine, "d")), (StoreId(1), Sequence(4), None));
        engine.wipe(StoreId(2));
        assert_eq!((engine.id(), engine.recovered(), get(&engine, "a")), (StoreId(2), Sequence(0), None));
    }

    #[test]
    fn a_device_that_fails_to_read_says_so_and_forgets_nothing() {
        let engine = three();
        engine.fail_reads(true);
        assert_eq!(engine.get(Table::Records, b"a"), Err(ReadError::Damaged));
        assert_eq!(engine.scan(Table::Records, None, b"z", 9), Err(ReadError::Damaged));
        assert!(get(&engine.inspector(), "a").is_some());
        engine.fail_reads(false);
        assert!(get(&engine.inspector().handle(), "a").is_some());
    }

    #[test]
    fn a_log_past_its_bound_is_folded_and_loses_nothing() {
        let engine = MemoryEngine::new(StoreId(1));
        let value = Bytes::from(vec![7; LOG_BYTES_MAX / 4]);
        for sequence in 1..=9 {
            let change =
                Change { table: Table::Meta, key: vec![sequence].into(), value: Some(value.clone()) };
            engine.submit(Batch { sequence: Sequence(sequence.into()), changes: vec![change] });
            engine.commit_next();
        }
        assert!(engine.log_bytes() <= LOG_BYTES_MAX);
        engine.reopen();
        assert_eq!(engine.scan(Table::Meta, Some(&[2]), &[9], 4).unwrap().len(), 4);
        assert_eq!(engine.scan(Table::Meta, None, &[9], 100).unwrap().len(), 8);
        assert_eq!(engine.recovered(), Sequence(9));
    }
}
