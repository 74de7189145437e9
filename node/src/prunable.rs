//! Which records a watermark will leave less of, and from which one on.
//!
//! A record with more than its live values, a tombstone above all, waits here for the watermark to pass it. What is here may
//! be out of date; what is not here is not to be pruned, once a partition's hash trees are built: the scan that builds them
//! finds what was stored before. Memory is bounded: if too many wait in a partition the latest of them are left out, and
//! found by another scan when the watermark has come so far.

use std::collections::{BTreeMap, BTreeSet};

use antientropy::version::Counter;
use bytes::Bytes;
use ring::PartitionId;

use crate::storage::ObjectKey;

/// See the module's documentation.
pub(crate) struct Prunable {
    partitions: BTreeMap<PartitionId, Waiting>,
    /// Partitions in which something may be due: their watermarks rose.
    raised: BTreeSet<PartitionId>,
    count: usize,
    most: usize,
}

/// What waits in a partition.
struct Waiting {
    due: BTreeSet<(Counter, ObjectKey)>,
    /// From where on some were left out.
    rest: Counter,
    /// The same of a scan that is under way: what was left out before it began it finds.
    scan_rest: Option<Counter>,
}

impl Waiting {
    const fn new() -> Waiting {
        Waiting { due: BTreeSet::new(), rest: Counter(u64::MAX), scan_rest: None }
    }

    /// From here on none are added.
    fn end(&self) -> Counter {
        self.scan_rest.unwrap_or(self.rest)
    }

    /// From here on some are left out.
    fn leave_out(&mut self, from: Counter) {
        self.rest = self.rest.min(from);
        self.scan_rest = self.scan_rest.map(|rest| rest.min(from));
    }
}

impl Prunable {
    /// None; at most so many.
    pub(crate) const fn new(most: usize) -> Prunable {
        Prunable { partitions: BTreeMap::new(), raised: BTreeSet::new(), count: 0, most }
    }

    /// A record was replaced by another: at which watermarks each of them is to be pruned.
    pub(crate) fn replaced(
        &mut self,
        partition: PartitionId,
        object: &ObjectKey,
        before: Option<Counter>,
        after: Option<Counter>,
    ) {
        if before == after {
            return;
        }
        if let Some(before) = before
            && let Some(waiting) = self.partitions.get_mut(&partition)
        {
            self.count -= usize::from(waiting.due.remove(&(before, object.clone())));
        }
        if let Some(after) = after {
            self.add(partition, object, after);
        }
    }

    /// A record is to be pruned at this watermark.
    pub(crate) fn add(&mut self, partition: PartitionId, object: &ObjectKey, due: Counter) {
        let waiting = self.partitions.entry(partition).or_insert_with(Waiting::new);
        if due >= waiting.end() {
            return;
        }
        // Copied out: the name may be part of a larger message.
        let name = ObjectKey::bound(&Bytes::copy_from_slice(object.encoded()));
        self.count += usize::from(waiting.due.insert((due, name)));
        if self.count > self.most
            && let Some((latest, _)) = waiting.due.pop_last()
        {
            self.count -= 1;
            waiting.leave_out(latest);
            while waiting.due.last().is_some_and(|(due, _)| *due >= latest) {
                waiting.due.pop_last();
                self.count -= 1;
            }
        }
    }

    /// Whether nothing is to be pruned in a partition at this watermark.
    pub(crate) fn is_pruned(&self, partition: PartitionId, watermark: Counter) -> bool {
        self.partitions.get(&partition).is_none_or(|waiting| {
            waiting.rest > watermark && waiting.due.first().is_none_or(|(due, _)| *due > watermark)
        })
    }

    /// The watermark of a partition has risen.
    pub(crate) fn raise(&mut self, partition: PartitionId) {
        if self.partitions.contains_key(&partition) {
            self.raised.insert(partition);
        }
    }

    /// What was held is held no longer: everywhere something may be due again.
    pub(crate) fn raise_all(&mut self) {
        self.raised.extend(self.partitions.keys());
    }

    /// Whether something may be due anywhere.
    pub(crate) fn is_any_raised(&self) -> bool {
        !self.raised.is_empty()
    }

    /// A partition in which something may be due.
    pub(crate) fn raised(&self) -> Option<PartitionId> {
        self.raised.first().copied()
    }

    /// Nothing is, there.
    pub(crate) fn is_done(&mut self, partition: PartitionId) {
        self.raised.remove(&partition);
    }

    /// Whether a partition has to be scanned for what is to be pruned at this watermark.
    pub(crate) fn is_to_scan(&self, partition: PartitionId, watermark: Counter) -> bool {
        self.partitions.get(&partition).is_some_and(|waiting| waiting.rest <= watermark)
    }

    /// Takes out the next that is to be pruned at this watermark.
    pub(crate) fn next(&mut self, partition: PartitionId, watermark: Counter) -> Option<ObjectKey> {
        let waiting = self.partitions.get_mut(&partition)?;
        let first = waiting.due.first().filter(|(due, _)| *due <= watermark)?.clone();
        waiting.due.remove(&first);
        self.count -= 1;
        Some(first.1)
    }

    /// A scan of a partition begins, which finds what was left out.
    pub(crate) fn begin_scan(&mut self, partition: PartitionId) {
        if let Some(waiting) = self.partitions.get_mut(&partition) {
            waiting.scan_rest = Some(Counter(u64::MAX));
        }
    }

    /// It has found everything.
    pub(crate) fn end_scan(&mut self, partition: PartitionId) {
        if let Some(waiting) = self.partitions.get_mut(&partition)
            && let Some(rest) = waiting.scan_rest.take()
        {
            waiting.rest = rest;
            self.raised.insert(partition);
        }
    }

    /// The node has copies of other partitions no longer.
    pub(crate) fn keep(&mut self, is_kept: impl Fn(PartitionId) -> bool) {
        self.partitions.retain(|partition, _| is_kept(*partition));
        self.raised.retain(|partition| is_kept(*partition));
        self.count = self.partitions.values().map(|waiting| waiting.due.len()).sum();
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use ring::KeyspaceId;

    use super::*;

    const P: PartitionId = PartitionId(3);

    fn object(number: u64) -> ObjectKey {
        ObjectKey::new(KeyspaceId(1), &number.to_be_bytes())
    }

    #[test]
    fn what_is_due_comes_out_in_order_and_nothing_else() {
        let mut prunable = Prunable::new(100);
        for number in [7, 3, 5, 9] {
            prunable.replaced(P, &object(number), None, Some(Counter(number)));
        }
        prunable.replaced(P, &object(3), Some(Counter(3)), None);
        prunable.replaced(P, &object(9), Some(Counter(9)), Some(Counter(6)));
        assert!(prunable.is_pruned(P, Counter(4)) && !prunable.is_pruned(P, Counter(5)));
        let next = |prunable: &mut Prunable| prunable.next(P, Counter(6));
        assert_eq!(next(&mut prunable), Some(object(5)));
        assert_eq!(next(&mut prunable), Some(object(9)));
        assert_eq!(next(&mut prunable), None);
        assert!(prunable.is_pruned(P, Counter(6)));
        assert_eq!(prunable.len(), 1);
    }

    #[test]
    fn of_too_many_the_latest_are_left_to_a_scan() {
        let mut prunable = Prunable::new(3);
        for number in [5, 5, 1, 2, 5, 9, 5] {
            prunable.add(P, &object(number * 10 + u64::try_from(prunable.len()).unwrap()), Counter(number));
        }
        assert_eq!(prunable.len(), 2, "of those that are due at 5 none is left");
        assert!(!prunable.is_to_scan(P, Counter(4)) && prunable.is_to_scan(P, Counter(5)));
        assert!(prunable.next(P, Counter(4)).is_some() && prunable.next(P, Counter(4)).is_some());
        assert!(prunable.is_pruned(P, Counter(4)) && !prunable.is_pruned(P, Counter(5)));
        prunable.begin_scan(P);
        prunable.add(P, &object(1), Counter(5));
        assert!(prunable.is_to_scan(P, Counter(5)), "it may find more");
        prunable.end_scan(P);
        assert!(!prunable.is_to_scan(P, Counter(5)));
        assert_eq!(prunable.next(P, Counter(5)), Some(object(1)));
    }
}
