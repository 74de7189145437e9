//! Records: all that a replica holds for one key, of either kind.

use ring::ConflictPolicy;

use super::{Context, CopyCount, Counter, Dot, LwwVersion, SiblingSet, UnixMillis, Value};

/// All that a replica holds for one key.
///
/// The kind is the keyspace's conflict policy, which never changes, so records of both kinds never meet.
/// [`Record::merge`] is the one way in; "in sync" is that the [digests](Record::digest) are equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// In a `siblings` keyspace.
    Siblings(SiblingSet),
    /// In an `lww` keyspace.
    Lww(LwwVersion),
}

/// What a merge did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MergeOutcome {
    /// Whether the record is another than before and has to be stored.
    pub changed: bool,
    /// Whether a value lost to another whose writer had not seen it. Only in `lww` keyspaces; to be counted,
    /// because it is the one way in which an acknowledged value disappears without being covered. One loss is
    /// told of by each merge that meets it.
    pub discarded_concurrent: bool,
}

impl Record {
    /// Joins another replica's record: commutative, associative, idempotent.
    ///
    /// # Panics
    ///
    /// If the other is of the other kind: the caller merged across keyspaces. What comes from another node is
    /// checked against [`Record::policy`] first.
    pub fn merge(&mut self, other: &Record) -> MergeOutcome {
        match (self, other) {
            (Record::Siblings(mine), Record::Siblings(theirs)) => {
                MergeOutcome { changed: mine.merge(theirs), discarded_concurrent: false }
            }
            (Record::Lww(mine), Record::Lww(theirs)) => mine.merge(theirs),
            (Record::Siblings(_), Record::Lww(_)) | (Record::Lww(_), Record::Siblings(_)) => two_kinds(),
        }
    }

    /// Whether merging the other would change nothing.
    ///
    /// # Panics
    ///
    /// As [`Record::merge`].
    pub fn dominates(&self, other: &Record) -> bool {
        match (self, other) {
            (Record::Siblings(mine), Record::Siblings(theirs)) => mine.dominates(theirs),
            (Record::Lww(mine), Record::Lww(theirs)) => mine.dominates(theirs),
            (Record::Siblings(_), Record::Lww(_)) | (Record::Lww(_), Record::Siblings(_)) => two_kinds(),
        }
    }

    /// The policy of the keyspaces that records of this kind belong to.
    pub fn policy(&self) -> ConflictPolicy {
        match self {
            Record::Siblings(_) => ConflictPolicy::Siblings,
            Record::Lww(_) => ConflictPolicy::LastWriteWins,
        }
    }

    /// Whether the record answers for the write of this name: holds it, or holds what prevailed over it. For
    /// `lww` that is every dot up to the version's own, concurrent ones included.
    pub fn covers(&self, dot: Dot) -> bool {
        match self {
            Record::Siblings(set) => set.covers(dot),
            Record::Lww(version) => version.covers(dot),
        }
    }

    /// What a reader of this record has seen, to be sent back with its next write.
    ///
    /// For `lww` it is one entry, the version's dot, with one use: the highest counter that the client has seen
    /// travels with its next write, which is then minted above it and knows what it may discard. It does not
    /// claim that all of the actor's earlier writes were seen.
    pub fn context(&self) -> Context {
        match self {
            Record::Siblings(set) => set.context(),
            Record::Lww(version) => {
                Context::from_entries(version.copies, vec![(version.dot.actor, version.dot.counter)])
            }
        }
    }

    /// The values that a read at `now` shows, by descending dot.
    ///
    /// Of values that one request wrote only the one with the highest dot is shown, as the next write would leave
    /// it; then expired ones are left out. `now` is the hybrid clock's time, so that a read on a node whose wall
    /// clock is behind does not show what another has already reported as expired.
    pub fn live(&self, now: UnixMillis) -> Vec<(Dot, &Value)> {
        let mut shown: Vec<(Dot, &Value)> = match self {
            Record::Siblings(set) => {
                let mut distinct: Vec<(Dot, &Value)> = Vec::with_capacity(set.live_len());
                for (dot, value) in set.values() {
                    if !distinct.iter().any(|(_, newer)| newer.request.is_same_request(value.request)) {
                        distinct.push((dot, value));
                    }
                }
                distinct
            }
            Record::Lww(version) => version.value.iter().map(|value| (version.dot, value)).collect(),
        };
        shown.retain(|(_, value)| !value.is_expired(now));
        shown
    }

    /// The highest counter in the record; the next write is minted above it.
    pub fn highest(&self) -> Counter {
        match self {
            Record::Siblings(set) => set.highest(),
            Record::Lww(version) => version.dot.counter,
        }
    }

    /// How many values are stored, expired ones and duplicates included: 0 for a tombstone.
    pub fn live_len(&self) -> usize {
        match self {
            Record::Siblings(set) => set.live_len(),
            Record::Lww(version) => usize::from(version.value.is_some()),
        }
    }

    /// How many bytes the values have, as clients count them.
    pub fn bytes_len(&self) -> usize {
        match self {
            Record::Siblings(set) => set.bytes_len(),
            Record::Lww(version) => version.value.as_ref().map_or(0, |value| value.bytes.len()),
        }
    }

    /// The stored n.
    pub fn copies(&self) -> CopyCount {
        match self {
            Record::Siblings(set) => set.copies(),
            Record::Lww(version) => version.copies,
        }
    }

    /// Raises the stored n to what a request asks for.
    pub fn raise_copies(&mut self, asked: CopyCount) {
        match self {
            Record::Siblings(set) => set.raise_copies(asked),
            Record::Lww(version) => version.copies = version.copies.raised(asked),
        }
    }
}

/// A keyspace's policy never changes, so this is a bug of the caller's, and no merge of the two could be right.
pub(super) fn two_kinds() -> ! {
    panic!("a record of a siblings keyspace met one of an lww keyspace")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::{Actor, RequestId};

    fn dot(actor: u64, counter: u64) -> Dot {
        Dot { counter: Counter(counter), actor: Actor(actor) }
    }

    fn siblings(values: Vec<Value>) -> Record {
        let mut set = SiblingSet::new();
        for (index, value) in values.into_iter().enumerate() {
            set.write(
                dot(9 - index as u64, index as u64 + 1),
                &Context::new(),
                Some(value),
                CopyCount::DEFAULT,
            );
        }
        Record::Siblings(set)
    }

    fn lww(value: Option<Value>) -> Record {
        Record::Lww(LwwVersion::write(dot(9, 4), &Context::new(), value, CopyCount::DEFAULT))
    }

    fn shown(record: &Record, now: u64) -> Vec<u64> {
        record.live(UnixMillis(now)).iter().map(|(dot, _)| dot.counter.0).collect()
    }

    #[test]
    fn a_read_shows_the_newest_first_and_leaves_out_what_expired() {
        let expires = |millis| Value { expires: Some(UnixMillis(millis)), ..Value::new("v") };
        let record = siblings(vec![expires(30), Value::new("v"), expires(20)]);
        assert_eq!(shown(&record, 19), [3, 2, 1]);
        assert_eq!(shown(&record, 20), [2, 1]);
        assert_eq!(shown(&record, 30), [2]);
        assert_eq!((record.live_len(), record.bytes_len()), (3, 3), "stored all the same");
        assert_eq!(shown(&lww(Some(expires(20))), 20), [0; 0]);
        assert_eq!(shown(&lww(Some(expires(20))), 19), [4]);
        assert_eq!(shown(&lww(None), 0), [0; 0]);
    }

    #[test]
    fn a_retry_that_was_written_twice_is_shown_once_by_its_highest_dot() {
        let of = |id, expires: Option<u64>| Value {
            request: RequestId(id),
            expires: expires.map(UnixMillis),
            ..Value::new("v")
        };
        let mut record = siblings(vec![of(7, None)]);
        let mut retried = SiblingSet::new();
        retried.write(dot(1, 5), &Context::new(), Some(of(7, Some(50))), CopyCount::DEFAULT);
        record.merge(&Record::Siblings(retried));
        assert_eq!(record.live_len(), 2);
        assert_eq!(shown(&record, 0), [5]);
        assert_eq!(shown(&record, 50), [0; 0], "the older one does not come back when the newer expires");
    }

    #[test]
    fn the_context_of_an_lww_record_carries_its_counter() {
        let record = lww(None);
        assert_eq!(record.context().entries(), [(Actor(9), Counter(4))]);
        assert_eq!(record.context().highest(), record.highest());
        assert_eq!(record.context().copies(), record.copies());
    }

    #[test]
    fn a_record_answers_for_the_writes_that_it_covers() {
        let record = siblings(vec![Value::new("v")]);
        assert!(record.covers(dot(9, 1)) && !record.covers(dot(1, 1)));
        assert!(lww(None).covers(dot(1, 4)) && !lww(None).covers(dot(10, 4)));
        assert_eq!(record.policy(), ConflictPolicy::Siblings);
        assert_eq!(lww(None).policy(), ConflictPolicy::LastWriteWins);
    }

    #[test]
    fn a_higher_n_alone_is_a_change() {
        for mut record in [siblings(vec![Value::new("v")]), lww(Some(Value::new("v")))] {
            let before = record.clone();
            record.raise_copies(CopyCount::explicit(5));
            assert!(record.dominates(&before) && !before.dominates(&record));
            assert!(before.clone().merge(&record).changed);
            assert_eq!(record.copies().in_datacenter(3), 5);
        }
    }

    #[test]
    #[should_panic(expected = "met one of an lww keyspace")]
    fn records_of_two_kinds_never_merge() {
        siblings(vec![]).merge(&lww(None));
    }

    #[test]
    #[should_panic(expected = "met one of an lww keyspace")]
    fn records_of_two_kinds_are_never_compared() {
        lww(None).dominates(&siblings(vec![]));
    }
}
