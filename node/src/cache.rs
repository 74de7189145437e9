//! A cache of records in front of the store: a point read of a log-structured store costs microseconds, a hot record
//! should not.
//!
//! Direct-mapped: a key's token, which is a good hash already, picks the one slot that its record may be in, and the
//! last record to come keeps it. There is nothing to tune, nothing to iterate over and nothing to grow.
//!
//! It holds only what the store holds: a write takes the object out, and puts it back when its batch is committed.

use std::sync::Arc;

use antientropy::version::Record;

use crate::storage::ObjectKey;

/// See the module's documentation.
pub(crate) struct RecordCache {
    slots: Vec<Option<(ObjectKey, Arc<Record>)>>,
}

impl RecordCache {
    /// Larger records are read from the store each time, where they cost as much to copy as to find.
    const RECORD_BYTES_MAX: usize = 4 * 1024;

    /// An empty cache of so many records, rounded up to a power of two; zero turns it off.
    pub(crate) fn new(records: usize) -> RecordCache {
        let slots = if records == 0 { 0 } else { records.next_power_of_two() };
        RecordCache { slots: vec![None; slots] }
    }

    fn slot(&mut self, object: &ObjectKey) -> Option<&mut Option<(ObjectKey, Arc<Record>)>> {
        // The highest bits name the partition; the lowest tell its keys apart.
        let mask = self.slots.len().checked_sub(1)?;
        let low = usize::try_from(object.token().0 & u64::try_from(mask).ok()?).ok()?;
        self.slots.get_mut(low)
    }

    /// The record of an object, if it is here.
    pub(crate) fn get(&mut self, object: &ObjectKey) -> Option<&Arc<Record>> {
        let (name, record) = self.slot(object)?.as_ref()?;
        (name == object).then_some(record)
    }

    /// Keeps a record that the store holds.
    pub(crate) fn insert(&mut self, object: &ObjectKey, record: &Arc<Record>) {
        if record.encoded_len() > RecordCache::RECORD_BYTES_MAX {
            return self.remove(object);
        }
        if let Some(slot) = self.slot(object) {
            *slot = Some((object.clone(), Arc::clone(record)));
        }
    }

    /// The store is about to hold something else.
    pub(crate) fn remove(&mut self, object: &ObjectKey) {
        if let Some(slot) = self.slot(object)
            && slot.as_ref().is_some_and(|(name, _)| name == object)
        {
            *slot = None;
        }
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
        let mut cache = RecordCache::new(1);
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
        let mut cache = RecordCache::new(4);
        let object = ObjectKey::new(KeyspaceId(1), b"a");
        cache.insert(&object, &record(1));
        cache.insert(&object, &record(10_000));
        assert!(cache.get(&object).is_none());
        let mut off = RecordCache::new(0);
        off.insert(&object, &record(1));
        assert!(off.get(&object).is_none());
    }
}
