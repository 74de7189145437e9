//! Sibling sets: every value that no write has covered, and what has been seen.

use std::{cmp::Ordering, mem};

use super::{Context, CopyCount, Counter, Dot, Value};

/// What a replica holds for a key of a `siblings` keyspace: a dotted version vector set.
///
/// One [`Context`] for the whole set, and the live values, each with its dot. A dot that the context covers and
/// that has no live value is a write that was covered by another, or a deletion. (Almeida et al., "Scalable and
/// Accurate Causality Tracking for Eventually Consistent Stores", DAIS 2014, section 5. There the dots of an actor
/// are consecutive, so the values can be a plain list; here counters follow a clock, so each value has its dot.)
///
/// Invariants: the context covers every live dot; values are strictly descending by dot, the newest first. Equal
/// sets have equal fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SiblingSet {
    context: Context,
    values: Vec<(Dot, Value)>,
}

impl SiblingSet {
    /// The set of a key that was never written.
    pub fn new() -> SiblingSet {
        SiblingSet::default()
    }

    /// A set from its parts, whose invariants the decoder has checked.
    pub(super) fn from_parts(context: Context, values: Vec<(Dot, Value)>) -> SiblingSet {
        debug_assert!(values.is_sorted_by(|a, b| a.0 > b.0), "values out of order");
        debug_assert!(values.iter().all(|&(dot, _)| context.covers(dot)), "a live dot that was not seen");
        SiblingSet { context, values }
    }

    /// Applies a client's write under a fresh dot: drops what `context` covers, joins `context`, adds the value.
    ///
    /// `None` deletes: the dot enters the context without a live value. A deletion needs that dot of its own.
    /// Without one it would leave only the counters of what it covered, which may all be old, and the record
    /// could be forgotten at once, on a watermark that says nothing of the time of the deletion; a copy that the
    /// deletion has not reached would then bring the value back.
    ///
    /// Values left that come from one request collapse to the one with the highest dot: they are a retry that
    /// reached two coordinators, and this write covers the duplicates. Only a write does so, because a write has
    /// a dot by which the others learn of it; a merge that dropped values would not be a join.
    ///
    /// # Panics
    ///
    /// If the dot is not above every counter in the set and in `context`. Such a dot breaks the claim that the
    /// context's entries make, or the order in which siblings are shown; the coordinator mints above both.
    pub fn write(&mut self, dot: Dot, context: &Context, value: Option<Value>, copies: CopyCount) {
        let highest = self.highest().max(context.highest());
        assert!(dot.counter > highest, "the dot {dot} was minted at or below the counter {highest}");
        self.values.retain(|&(live, _)| !context.covers(live));
        self.context.join(context);
        self.context.raise_copies(copies);
        self.context.insert(dot);
        if let Some(value) = value {
            self.values.insert(0, (dot, value));
        }
        self.collapse_requests();
    }

    /// Joins another replica's set: a value stays if both hold it, or if the one without it has not seen it.
    /// Whether anything changed.
    ///
    /// Commutative, associative and idempotent. Values of one dot are of one write and therefore equal; if a bug
    /// of ours made them differ, every replica settles on the same one.
    ///
    /// # Panics
    ///
    /// In builds with debug assertions, if values of one dot differ.
    pub fn merge(&mut self, other: &SiblingSet) -> bool {
        if self.dominates(other) {
            return false;
        }
        if other.dominates(self) {
            // By field, because that keeps the memory that the vectors have.
            self.context.clone_from(&other.context);
            self.values.clone_from(&other.values);
            return true;
        }
        self.join_values(other);
        self.context.join(&other.context);
        true
    }

    /// Whether merging the other would change nothing.
    pub fn dominates(&self, other: &SiblingSet) -> bool {
        // Whatever the other holds has then been seen here: it is live here as well, or was covered. What is left
        // is a value that is live here and that the other has seen being covered.
        let mut theirs = other.values.iter().peekable();
        self.context.includes(&other.context)
            && self.values.iter().all(|&(dot, ref value)| {
                while theirs.next_if(|(newer, _)| *newer > dot).is_some() {}
                match theirs.next_if(|(equal, _)| *equal == dot) {
                    Some((_, theirs)) => Value::tie_break(dot, value, theirs) == value,
                    None => !other.covers(dot),
                }
            })
    }

    /// What has been seen here: what a reader takes along, and returns with the write that answers it.
    pub fn context(&self) -> Context {
        self.context.clone()
    }

    /// [`SiblingSet::context`] without the copy.
    pub fn context_ref(&self) -> &Context {
        &self.context
    }

    /// The live values with their dots, newest first, as stored: expired ones and duplicates of one request are
    /// among them ([`Record::live`](super::Record::live) leaves them out).
    pub fn values(&self) -> impl ExactSizeIterator<Item = (Dot, &Value)> {
        self.values.iter().map(|(dot, value)| (*dot, value))
    }

    /// Whether the write of this name has been seen here, live or not.
    pub fn covers(&self, dot: Dot) -> bool {
        self.context.covers(dot)
    }

    /// The highest counter seen here, [`Counter::ZERO`] if none was.
    pub fn highest(&self) -> Counter {
        self.context.highest()
    }

    /// How many values are live, as stored.
    pub fn live_len(&self) -> usize {
        self.values.len()
    }

    /// How many bytes the live values have, as clients count them: without dots, context and framing.
    pub fn bytes_len(&self) -> usize {
        self.values.iter().map(|(_, value)| value.bytes.len()).sum()
    }

    /// The stored n.
    pub fn copies(&self) -> CopyCount {
        self.context.copies()
    }

    /// Raises the stored n to what a request asks for.
    pub fn raise_copies(&mut self, asked: CopyCount) {
        self.context.raise_copies(asked);
    }

    /// Drops every value whose request has a newer one. Sets are small, and nearly all have one value.
    fn collapse_requests(&mut self) {
        let mut kept = 0;
        while kept < self.values.len() {
            let request = self.values[kept].1.request;
            if self.values[..kept].iter().any(|(_, newer)| newer.request.is_same_request(request)) {
                self.values.remove(kept);
            } else {
                kept += 1;
            }
        }
    }

    /// The values of a join: one pass over both, as both are sorted by dot. The context is still the old one.
    fn join_values(&mut self, other: &SiblingSet) {
        let mine = mem::take(&mut self.values);
        let mut joined = Vec::with_capacity(mine.len() + other.values.len());
        let (mut left, mut right) = (mine.into_iter().peekable(), other.values.iter().peekable());
        loop {
            let newest = match (left.peek(), right.peek()) {
                (Some(mine), Some(theirs)) => mine.0.cmp(&theirs.0),
                (Some(_), None) => Ordering::Greater,
                (None, Some(_)) => Ordering::Less,
                (None, None) => break,
            };
            let mine = if newest.is_ge() { left.next() } else { None };
            let theirs = if newest.is_le() { right.next() } else { None };
            match (mine, theirs) {
                (Some((dot, mine)), Some((_, theirs))) => {
                    joined.push((dot, Value::tie_break(dot, &mine, theirs).clone()));
                }
                (Some((dot, value)), None) if !other.covers(dot) => joined.push((dot, value)),
                (None, Some((dot, value))) if !self.covers(*dot) => joined.push((*dot, value.clone())),
                (Some(_) | None, None) | (None, Some(_)) => {}
            }
        }
        self.values = joined;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::{Actor, RequestId};

    const A: Actor = Actor(0xa);
    const A_FRESH: Actor = Actor(0xaa);
    const B: Actor = Actor(0xb);

    fn dot(actor: Actor, counter: u64) -> Dot {
        Dot { counter: Counter(counter), actor }
    }

    fn put(set: &mut SiblingSet, dot: Dot, context: &Context, bytes: &'static str) {
        set.write(dot, context, Some(Value::new(bytes)), CopyCount::DEFAULT);
    }

    fn delete(set: &mut SiblingSet, dot: Dot, context: &Context) {
        set.write(dot, context, None, CopyCount::DEFAULT);
    }

    fn joined(left: &SiblingSet, right: &SiblingSet) -> SiblingSet {
        let mut set = left.clone();
        set.merge(right);
        set
    }

    fn live(set: &SiblingSet) -> Vec<&[u8]> {
        set.values().map(|(_, value)| &*value.bytes).collect()
    }

    #[test]
    fn a_write_replaces_what_its_client_read_and_nothing_else() {
        let mut set = SiblingSet::new();
        put(&mut set, dot(A, 1), &Context::new(), "one");
        let read = set.context();
        put(&mut set, dot(B, 2), &Context::new(), "blind");
        put(&mut set, dot(A, 3), &read, "three");
        assert_eq!(live(&set), [b"three".as_slice(), b"blind"]);
        assert_eq!((set.live_len(), set.bytes_len(), set.highest()), (2, 10, Counter(3)));
    }

    #[test]
    fn two_clients_racing_through_one_coordinator_make_siblings() {
        // What one version vector for each value gets wrong: DAIS 2014, section 2.
        let mut set = SiblingSet::new();
        put(&mut set, dot(A, 1), &Context::new(), "cart");
        let read = set.context();
        put(&mut set, dot(A, 2), &read, "cart, milk");
        put(&mut set, dot(A, 3), &read, "cart, eggs");
        assert_eq!(live(&set), [b"cart, eggs".as_slice(), b"cart, milk"]);
        let both = set.context();
        put(&mut set, dot(A, 4), &both, "cart, milk, eggs");
        assert_eq!(live(&set), [b"cart, milk, eggs"]);
    }

    #[test]
    fn a_copy_that_lost_its_record_and_kept_its_actor_annihilates_an_acknowledged_value() {
        let mut lossy = SiblingSet::new();
        put(&mut lossy, dot(A, 1), &Context::new(), "acknowledged");
        let other = lossy.clone();

        lossy = SiblingSet::new();
        put(&mut lossy, dot(A, 2), &Context::new(), "blind");
        // The entry (A, 2) claims to have seen (A, 1), so the join takes it for covered, on every copy in turn.
        // The dots are unique all the same; and restoring the counter from the clock is what made this one.
        assert_eq!(live(&joined(&other, &lossy)), [b"blind"]);
        assert_eq!(live(&joined(&lossy, &other)), [b"blind"]);
    }

    #[test]
    fn a_copy_that_lost_its_record_and_took_a_fresh_actor_annihilates_nothing() {
        let mut lossy = SiblingSet::new();
        put(&mut lossy, dot(A, 1), &Context::new(), "acknowledged");
        let other = lossy.clone();

        lossy = SiblingSet::new();
        put(&mut lossy, dot(A_FRESH, 2), &Context::new(), "blind");
        assert_eq!(live(&joined(&other, &lossy)), [b"blind".as_slice(), b"acknowledged"]);
    }

    #[test]
    fn a_node_that_is_no_replica_must_not_use_an_actor_twice() {
        // It has no record to mint on top of, so its second write would claim the first, which is elsewhere.
        let (mut first, mut second) = (SiblingSet::new(), SiblingSet::new());
        put(&mut first, dot(A, 1), &Context::new(), "first");
        put(&mut second, dot(A, 2), &Context::new(), "second");
        assert_eq!(live(&joined(&first, &second)), [b"second"], "the first is lost");
        let mut second = SiblingSet::new();
        put(&mut second, dot(A_FRESH, 2), &Context::new(), "second");
        assert_eq!(joined(&first, &second).live_len(), 2);
    }

    #[test]
    fn a_delete_reaches_copies_that_hold_the_value_and_spares_what_it_did_not_see() {
        let mut deleted = SiblingSet::new();
        put(&mut deleted, dot(A, 1), &Context::new(), "read");
        let mut other = deleted.clone();
        put(&mut other, dot(B, 2), &Context::new(), "concurrent");
        let read = deleted.context();
        delete(&mut deleted, dot(A, 3), &read);
        assert_eq!(deleted.live_len(), 0);
        assert_eq!(live(&joined(&deleted, &other)), [b"concurrent"]);
        assert!(deleted.covers(dot(A, 3)) && !deleted.covers(dot(B, 2)));
    }

    #[test]
    fn a_delete_without_a_dot_of_its_own_could_be_forgotten_before_it_is_known() {
        let mut holder = SiblingSet::new();
        put(&mut holder, dot(A, 1), &Context::new(), "value");

        // At time 9 a client deletes the value, which is so old that the watermark (5) has passed it. A record
        // may be forgotten when every counter in it is below the watermark. Without a dot the tombstone says only
        // (A, 1), it is forgotten at once, and the copy that missed the deletion brings the value back.
        let watermark = Counter(5);
        let dotless = SiblingSet::from_parts(holder.context(), vec![]);
        assert!(dotless.highest() <= watermark);
        let forgotten = SiblingSet::new();
        assert_eq!(live(&joined(&forgotten, &holder)), [b"value"], "resurrected");

        // With its own dot it stays until the watermark has passed the deletion itself.
        let mut deleted = holder.clone();
        delete(&mut deleted, dot(B, 9), &holder.context());
        assert!(deleted.highest() > watermark);
        assert_eq!(joined(&deleted, &holder).live_len(), 0);
    }

    #[test]
    fn a_set_does_not_dominate_one_that_covered_its_value_within_the_same_context() {
        // As long as every write has its dot, equal contexts mean equal values. Once old entries have been
        // dropped from contexts they need not, and the join still has to be one.
        let mut holder = SiblingSet::new();
        put(&mut holder, dot(A, 1), &Context::new(), "value");
        let without = SiblingSet::from_parts(holder.context(), vec![]);
        assert!(!holder.dominates(&without) && without.dominates(&holder));
        assert_eq!(joined(&holder, &without), without);
        assert_eq!(joined(&without, &holder), without);
    }

    #[test]
    fn the_next_write_drops_the_duplicate_of_a_retry() {
        let request = |id| Some(Value { request: RequestId(id), ..Value::new("once") });
        let (mut set, mut elsewhere) = (SiblingSet::new(), SiblingSet::new());
        set.write(dot(A, 1), &Context::new(), request(7), CopyCount::DEFAULT);
        elsewhere.write(dot(B, 2), &Context::new(), request(7), CopyCount::DEFAULT);
        let first = set.clone();
        set.merge(&elsewhere);
        assert_eq!(set.live_len(), 2, "a merge knows nothing of requests");
        put(&mut set, dot(A, 3), &Context::new(), "next");
        let dots: Vec<Dot> = set.values().map(|(dot, _)| dot).collect();
        assert_eq!(dots, [dot(A, 3), dot(B, 2)]);
        assert!(!set.merge(&first), "the duplicate is covered for good");
    }

    #[test]
    fn values_of_no_request_are_not_duplicates() {
        let mut set = SiblingSet::new();
        for counter in 1..=3 {
            put(&mut set, dot(A, counter), &Context::new(), "same bytes");
        }
        assert_eq!(set.live_len(), 3);
    }

    #[test]
    fn the_stored_n_is_carried_by_writes_contexts_and_merges() {
        let mut read = Context::new();
        read.raise_copies(CopyCount::explicit(5));
        let mut set = SiblingSet::new();
        set.write(dot(A, 1), &read, None, CopyCount::DEFAULT);
        assert_eq!(set.copies(), CopyCount::explicit(5).raised(CopyCount::DEFAULT));
        let mut other = SiblingSet::new();
        assert!(other.merge(&set));
        assert_eq!(other.context().copies(), set.copies());
        let mut more = set.clone();
        more.raise_copies(CopyCount::explicit(6));
        assert!(!set.dominates(&more) && set.merge(&more), "a higher n alone is a change");
    }

    #[test]
    #[should_panic(expected = "minted at or below")]
    fn a_dot_below_the_record_is_our_bug() {
        let mut set = SiblingSet::new();
        put(&mut set, dot(A, 5), &Context::new(), "later");
        put(&mut set, dot(B, 5), &Context::new(), "as late");
    }

    #[test]
    #[should_panic(expected = "minted at or below")]
    fn a_dot_below_the_clients_context_is_our_bug() {
        let read = Context::from_entries(CopyCount::DEFAULT, vec![(B, Counter(9))]);
        put(&mut SiblingSet::new(), dot(A, 9), &read, "too early");
    }

    #[test]
    #[cfg_attr(debug_assertions, should_panic(expected = "two writes were minted"))]
    fn two_values_under_one_dot_are_our_bug_and_still_converge() {
        let (mut left, mut right) = (SiblingSet::new(), SiblingSet::new());
        put(&mut left, dot(A, 1), &Context::new(), "left");
        put(&mut right, dot(A, 1), &Context::new(), "right");
        assert_eq!(joined(&left, &right), joined(&right, &left));
        assert!(!left.dominates(&right) && right.dominates(&left));
    }
}
