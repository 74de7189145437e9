//! Last write wins: one version, and whether what it replaced had been seen.

use super::{Context, CopyCount, Counter, Dot, MergeOutcome, Value};

/// What a replica holds for a key of an `lww` keyspace: the version with the highest dot.
///
/// There is no causal context, on purpose. "The highest dot of a causal join" is not associative: a version can
/// be covered in one record and be the highest of another, and which wins then depends on the order of merges
/// (see the test `last_write_wins_over_a_causal_join_is_not_associative`). The highest dot is.
///
/// So a write wins by its counter alone. Its coordinator mints above the client's context and above its own
/// record, and a write that was minted below what it meant to replace would lose to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LwwVersion {
    /// The write that won.
    pub dot: Dot,
    /// The highest counter that its writer had seen, below `dot.counter`; [`Counter::ZERO`] for a blind write.
    pub seen: Counter,
    /// What it wrote; `None` if it deleted.
    pub value: Option<Value>,
    /// The stored n, joined over all versions, winners and losers.
    pub copies: CopyCount,
}

impl LwwVersion {
    /// The version that a client's write makes. The coordinator merges it into what it holds.
    ///
    /// Of the context only the highest counter matters: clients of `lww` keyspaces send the highest that they
    /// have seen.
    ///
    /// # Panics
    ///
    /// If the dot is not above every counter in `context`: the write would lose to what it replaces.
    pub fn write(dot: Dot, context: &Context, value: Option<Value>, copies: CopyCount) -> LwwVersion {
        let seen = context.highest();
        assert!(dot.counter > seen, "the dot {dot} was minted at or below the counter {seen}");
        LwwVersion { dot, seen, value, copies: context.copies().raised(copies) }
    }

    /// Keeps the version with the higher dot, and joins the copies.
    ///
    /// A value was discarded while concurrent if the loser has one and its counter is above what the winner's
    /// writer had seen. (Also if it is the merged version that loses: late messages are told of again.)
    ///
    /// # Panics
    ///
    /// In builds with debug assertions, if versions of one dot differ; otherwise all settle on the same one.
    pub fn merge(&mut self, other: &LwwVersion) -> MergeOutcome {
        let copies = self.copies.join(other.copies);
        let mut outcome = MergeOutcome { changed: copies != self.copies, discarded_concurrent: false };
        if other.dot == self.dot {
            outcome.changed |= self.merge_same_dot(other);
        } else if other.dot > self.dot {
            outcome = MergeOutcome { changed: true, discarded_concurrent: self.is_lost_to(other) };
            self.clone_from(other);
        } else {
            outcome.discarded_concurrent = other.is_lost_to(self);
        }
        self.copies = copies;
        outcome
    }

    /// Whether merging the other would change nothing.
    pub fn dominates(&self, other: &LwwVersion) -> bool {
        let keeps = other.dot < self.dot || (other.dot == self.dot && self.rank() >= other.rank());
        keeps && self.copies.join(other.copies) == self.copies
    }

    /// Whether a write of this name is this one or loses to it: every dot up to its own.
    pub fn covers(&self, dot: Dot) -> bool {
        dot <= self.dot
    }

    /// Whether a value is lost here that `winner`'s writer had not seen.
    fn is_lost_to(&self, winner: &LwwVersion) -> bool {
        self.value.is_some() && self.dot.counter > winner.seen
    }

    /// Settles two versions of one dot, which are equal unless we have a bug. Whether that changed anything.
    fn merge_same_dot(&mut self, other: &LwwVersion) -> bool {
        debug_assert_eq!(self.rank(), other.rank(), "two writes were minted under the one dot {}", self.dot);
        let changed = self.rank() < other.rank();
        if changed {
            self.clone_from(other);
        }
        changed
    }

    /// An arbitrary order among versions of one dot, the same on every node.
    fn rank(&self) -> (&Option<Value>, Counter) {
        (&self.value, self.seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::Actor;

    const A: Actor = Actor(0xa);
    const B: Actor = Actor(0xb);
    const C: Actor = Actor(0xc);

    fn dot(actor: Actor, counter: u64) -> Dot {
        Dot { counter: Counter(counter), actor }
    }

    fn version(dot: Dot, seen: u64, value: Option<&'static str>) -> LwwVersion {
        LwwVersion { dot, seen: Counter(seen), value: value.map(Value::new), copies: CopyCount::DEFAULT }
    }

    const KEPT: MergeOutcome = MergeOutcome { changed: false, discarded_concurrent: false };
    const REPLACED: MergeOutcome = MergeOutcome { changed: true, discarded_concurrent: false };

    #[test]
    fn the_higher_dot_wins_either_way() {
        let (early, late) = (version(dot(B, 1), 0, Some("early")), version(dot(A, 2), 1, Some("late")));
        let mut record = early.clone();
        assert_eq!(record.merge(&late), REPLACED);
        assert_eq!(record, late);
        assert_eq!(record.merge(&early), KEPT);
        assert_eq!(record.merge(&late), KEPT);
        assert!(late.dominates(&early) && late.dominates(&late) && !early.dominates(&late));
        assert!(record.covers(dot(B, 1)) && record.covers(dot(A, 2)) && !record.covers(dot(B, 2)));
    }

    #[test]
    fn actors_break_ties_of_the_counter() {
        let (low, high) = (version(dot(A, 1), 0, Some("a")), version(dot(B, 1), 0, Some("b")));
        let mut record = high.clone();
        record.merge(&low);
        assert_eq!(record, high);
    }

    #[test]
    fn a_value_that_the_winner_had_not_seen_is_counted_as_discarded() {
        let loser = version(dot(A, 5), 0, Some("lost"));
        let winner = version(dot(B, 6), 4, Some("won"));
        let outcome = loser.clone().merge(&winner);
        assert_eq!(outcome, MergeOutcome { changed: true, discarded_concurrent: true });
        let outcome = winner.clone().merge(&loser);
        assert_eq!(outcome, MergeOutcome { changed: false, discarded_concurrent: true });
    }

    #[test]
    fn a_value_that_the_winner_had_seen_and_a_lost_delete_are_not_counted() {
        let winner = version(dot(B, 6), 5, None);
        assert_eq!(version(dot(A, 5), 0, Some("read, then deleted")).merge(&winner), REPLACED);
        let blind = version(dot(B, 6), 0, Some("won"));
        assert_eq!(version(dot(A, 5), 0, None).merge(&blind), REPLACED);
    }

    #[test]
    fn a_write_minted_below_what_it_covers_would_lose_to_it() {
        // A coordinator with a slow clock and no record, and a client that has read counter 9. Had it minted by
        // its clock alone, the update would vanish, acknowledged; so the context's counter enters the mint.
        let read = version(dot(A, 9), 0, Some("read"));
        let mut update = version(dot(B, 4), 0, Some("update"));
        update.merge(&read);
        assert_eq!(update, read);

        let context = Context::from_entries(CopyCount::DEFAULT, vec![(A, Counter(9))]);
        let mut update = LwwVersion::write(dot(B, 10), &context, None, CopyCount::explicit(5));
        assert_eq!(update.merge(&read), KEPT);
        assert_eq!((update.seen, update.value), (Counter(9), None));
    }

    #[test]
    #[should_panic(expected = "minted at or below")]
    fn minting_below_the_context_is_our_bug() {
        let context = Context::from_entries(CopyCount::DEFAULT, vec![(A, Counter(9))]);
        LwwVersion::write(dot(B, 9), &context, None, CopyCount::DEFAULT);
    }

    #[test]
    fn losers_still_raise_the_stored_n() {
        let mut record = version(dot(B, 6), 5, Some("won"));
        let loser = LwwVersion { copies: CopyCount::explicit(5), ..version(dot(A, 5), 0, Some("lost")) };
        assert!(!record.dominates(&loser));
        assert_eq!(record.merge(&loser), REPLACED);
        assert_eq!((record.dot, record.copies), (dot(B, 6), CopyCount::DEFAULT.join(CopyCount::explicit(5))));
    }

    /// The rejected alternative: a causal context, of whose live values only the highest is kept.
    #[derive(Clone, Debug, PartialEq)]
    struct CausalLww {
        context: Context,
        live: Option<Dot>,
    }

    impl CausalLww {
        fn new(context: &[Dot], live: Option<Dot>) -> CausalLww {
            let mut seen = Context::new();
            context.iter().for_each(|&dot| seen.insert(dot));
            CausalLww { context: seen, live }
        }

        fn join(&self, other: &CausalLww) -> CausalLww {
            let stays =
                |dot: &Dot, other: &CausalLww| other.live == Some(*dot) || !other.context.covers(*dot);
            let mine = self.live.filter(|dot| stays(dot, other));
            let theirs = other.live.filter(|dot| stays(dot, self));
            let mut context = self.context.clone();
            context.join(&other.context);
            CausalLww { context, live: mine.max(theirs) }
        }
    }

    #[test]
    fn last_write_wins_over_a_causal_join_is_not_associative() {
        // Two concurrent writes, and a deletion by someone who had seen the later one only.
        let (early, late, delete) = (dot(B, 3), dot(A, 5), dot(C, 6));
        let wrote_early = CausalLww::new(&[early], Some(early));
        let wrote_late = CausalLww::new(&[late], Some(late));
        let deleted = CausalLww::new(&[late, delete], None);
        // The later write discards the earlier and is deleted; or it is deleted and the earlier one comes through.
        assert_eq!(wrote_early.join(&wrote_late).join(&deleted).live, None);
        assert_eq!(wrote_early.join(&wrote_late.join(&deleted)).live, Some(early));

        // By the highest dot alone the deletion wins in every order, and says what it discarded unseen.
        let wrote_early = version(early, 0, Some("early"));
        let wrote_late = version(late, 0, Some("late"));
        let deleted = version(delete, 5, None);
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let versions = [&wrote_early, &wrote_late, &deleted];
            let mut record = versions[order[0]].clone();
            record.merge(versions[order[1]]);
            record.merge(versions[order[2]]);
            assert_eq!(record, deleted, "{order:?}");
        }
    }

    #[test]
    #[cfg_attr(debug_assertions, should_panic(expected = "two writes were minted"))]
    fn two_versions_under_one_dot_are_our_bug_and_still_converge() {
        let (left, right) = (version(dot(A, 2), 0, Some("left")), version(dot(A, 2), 1, Some("right")));
        let (mut one, mut other) = (left.clone(), right.clone());
        one.merge(&right);
        other.merge(&left);
        assert_eq!(one, other);
    }
}
