//! A cache of records in front of the store: a point read of a log-structured store costs microseconds, a hot record
//! should not.
//!
//! Direct-mapped: a key's token, which is a good hash already, picks the one slot that its record may be in, and the
//! last record to come keeps it. What all records take is bounded: when there is too much, a hand that goes round the
//! slots drops what it meets. There is nothing to tune but the bound.
//!
//! It holds only what the store holds: a write takes the object out, and puts it back when its batch is committed.

use std::sync::Arc;

use antientropy::version::Record;

use crate::storage::ObjectKey;

/// See the module's documentation.
pub(crate) struct RecordCache {
    slots: Vec<Option<Entry>>,
    bytes: usize,
    bytes_max: usize,
    /// The slot that the hand comes to next.
    hand: usize,
}

#[derive(Clone)]
struct Entry {
    object: ObjectKey,
    record: Arc<Record>,
    bytes: usize,
}

impl RecordCache {
    /// Larger records are read from the store each time, where they cost as much to copy as to find.
    const RECORD_BYTES_MAX: usize = 4 * 1024;
    /// What a record takes beside its encoding, about: its slot, two allocations and the version's parts.
    const ENTRY_BYTES: usize = 200;
    /// There is a slot for each so many bytes: enough for as many small records as there is room for.
    const SLOT_PER_BYTES: usize = 256;

    /// An empty cache of about so many bytes; zero turns it off.
    pub(crate) fn new(bytes_max: usize) -> RecordCache {
        let slots = bytes_max.div_ceil(RecordCache::SLOT_PER_BYTES);
        let slots = if slots == 0 { 0 } else { slots.next_power_of_two() };
        RecordCache { slots: vec![None; slots], bytes: 0, bytes_max, hand: 0 }
    }

    fn slot(&self, object: &ObjectKey) -> Option<usize> {
        // The highest bits name the partition; the lowest tell its keys apart.
        let mask = self.slots.len().checked_sub(1)?;
        usize::try_from(object.token().0 & u64::try_from(mask).ok()?).ok()
    }

    /// The record of an object, if it is here.
    pub(crate) fn get(&self, object: &ObjectKey) -> Option<&Arc<Record>> {
        let entry = self.slots[self.slot(object)?].as_ref()?;
        (entry.object == *object).then_some(&entry.record)
    }

    /// Keeps a record that the store holds.
    pub(crate) fn insert(&mut self, object: &ObjectKey, record: &Arc<Record>) {
        let Some(slot) = self.slot(object) else { return };
        let record_bytes = record.encoded_len();
        let bytes = RecordCache::ENTRY_BYTES + object.encoded().len() + record_bytes;
        if record_bytes > RecordCache::RECORD_BYTES_MAX || bytes > self.bytes_max {
            return self.remove(object);
        }
        self.clear(slot);
        while self.bytes + bytes > self.bytes_max {
            self.clear(self.hand);
            self.hand = (self.hand + 1) % self.slots.len();
        }
        self.bytes += bytes;
        self.slots[slot] = Some(Entry { object: object.clone(), record: Arc::clone(record), bytes });
    }

    /// Nobody knows any more what the store holds.
    pub(crate) fn clear_all(&mut self) {
        if self.bytes > 0 {
            self.slots.iter_mut().for_each(|slot| *slot = None);
            self.bytes = 0;
        }
    }

    /// The store is about to hold something else.
    pub(crate) fn remove(&mut self, object: &ObjectKey) {
        if self.get(object).is_some()
            && let Some(slot) = self.slot(object)
        {
            self.clear(slot);
        }
    }

    fn clear(&mut self, slot: usize) {
        self.bytes -= self.slots[slot].take().map_or(0, |entry| entry.bytes);
    }
}

#[cfg(test)]
mod tests {
    use antientropy::version::{Actor, Context, CopyCount, Counter, Dot, LwwVersion, Value};
    use ring::KeyspaceId;

    use super::*;

    fn record(bytes: usize) -> Arc<Record> {
        let dot = Dot { counter: Counter(7), actor: Actor(1) };
        let value = Some(Value::new(vec![0; bytes]));
        Arc::new(Record::Lww(LwwVersion::write(dot, &Context::new(), value, CopyCount::DEFAULT)))
    }

    #[test]
    fn an_object_is_never_taken_for_another_in_its_slot() {
        let mut cache = RecordCache::new(256);
        let (a, b) = (ObjectKey::new(KeyspaceId(1), b"a"), ObjectKey::new(KeyspaceId(1), b"b"));
        cache.insert(&a, &record(1));
        assert!(cache.get(&a).is_some() && cache.get(&b).is_none());
        cache.remove(&b);
        assert!(cache.get(&a).is_some());
        cache.insert(&b, &record(1));
        assert!(cache.get(&a).is_none() && cache.get(&b).is_some());
        cache.remove(&b);
        assert!(cache.get(&b).is_none());
    }

    #[test]
    fn a_large_record_is_not_kept_and_drives_out_its_smaller_past() {
        let mut cache = RecordCache::new(16 * 1024);
        let object = ObjectKey::new(KeyspaceId(1), b"a");
        cache.insert(&object, &record(1));
        cache.insert(&object, &record(10_000));
        assert!(cache.get(&object).is_none());
        let mut off = RecordCache::new(0);
        off.insert(&object, &record(1));
        assert!(off.get(&object).is_none());
    }

    #[test]
    fn what_it_takes_is_bounded_and_what_it_has_is_counted() {
        let mut cache = RecordCache::new(64 * 1024);
        for number in 0..10_000_u32 {
            let object = ObjectKey::new(KeyspaceId(1), &number.to_be_bytes());
            cache.insert(&object, &record(usize::try_from(number % 3000).unwrap()));
            assert!(cache.get(&object).is_some(), "the last to come is here");
            assert!(cache.bytes <= 64 * 1024);
            assert_eq!(cache.bytes, cache.slots.iter().flatten().map(|entry| entry.bytes).sum::<usize>());
            if number % 7 == 0 {
                cache.remove(&object);
                assert!(cache.get(&object).is_none());
            }
        }
        assert!(cache.bytes > 48 * 1024, "little of the room is wasted: {}", cache.bytes);
    }
}
