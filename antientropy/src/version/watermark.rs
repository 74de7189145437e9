//! What a watermark leaves of a record, and what a record says that a watermark has passed.
//!
//! A *watermark* of a partition is a counter that all of its copies have promised: whatever one of them holds at or
//! below it, the others hold as well. So what is covered by then is covered everywhere, and what says so can be
//! forgotten: tombstones, expired values, entries of actors without a live value. The price is that "unknown here"
//! no longer means "new": a write at or below the watermark that a copy does not cover may be one that it has seen
//! covered and forgotten. Hence a record that names such a write is only taken from a copy that has come as far
//! ([`Record::names_unknown`]), and a copy that fell behind drops such writes of its own ([`Record::cut`]).
//!
//! What is left depends on the record and the watermark alone, never on a clock, so that copies at one watermark
//! that hold the same go on holding the same. Who may have a watermark is the business of nodes.

use std::collections::BTreeSet;

use super::{Actor, Context, Counter, Dot, Record, SiblingSet, Value, record::two_kinds};

/// What a watermark leaves of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pruned {
    /// All of it.
    Same,
    /// This, which the same watermark leaves as it is.
    Less(Record),
    /// Nothing: the key is as if it had never been written.
    Nothing,
}

/// What a copy that cannot be believed keeps of a record. See [`Record::cut`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// What is left; `None` if nothing is.
    pub rest: Option<Record>,
    /// Whether a live value went that the believed copy does not cover, so that a join with what that one holds
    /// neither brings it back nor says what became of it. To be counted, and perhaps to be shown to an operator.
    pub has_lost: bool,
}

impl Record {
    /// The lowest watermark at which [`Record::prune`] would change the record as it stands; `None` if none would.
    pub fn prunable_at(&self) -> Option<Counter> {
        let has_value = |entry: Dot| self.stored().any(|(dot, _)| dot.actor == entry.actor);
        let all_are_live = self.highest() > Counter::ZERO && self.entries().all(has_value);
        let bare = (!all_are_live).then(|| self.highest());
        self.stored().filter_map(|(dot, value)| superfluous_at(dot, value)).chain(bare).min()
    }

    /// What is left at a watermark.
    ///
    /// Values go whose expiry and whose dot are at or below it. Then, if *every* counter of the record is at or
    /// below it, entries of actors without a live value go. An entry's own counter would not do: it says when the
    /// value was written and not when it was covered. A delete at 9 of a value of 1 leaves both counters, and a
    /// copy that the delete has not reached may still have the value at the watermark 5.
    pub fn prune(&self, watermark: Counter) -> Pruned {
        if self.prunable_at().is_none_or(|lowest| lowest > watermark) {
            return Pruned::Same;
        }
        let Record::Siblings(set) = self else { return Pruned::Nothing };
        let stays = |dot: Dot, value: &Value| superfluous_at(dot, value).is_none_or(|at| at > watermark);
        let values = set.values().filter(|&(dot, value)| stays(dot, value));
        let actors: BTreeSet<Actor> = values.map(|(dot, _)| dot.actor).collect();
        let is_above = set.highest() > watermark;
        part(set, |actor| is_above || actors.contains(&actor), stays).map_or(Pruned::Nothing, Pruned::Less)
    }

    /// The same with each entry judged by its own counter, which is wrong: for tests that have to find that out.
    #[doc(hidden)]
    pub fn prune_each(&self, watermark: Counter) -> Pruned {
        let Record::Siblings(set) = self else { return self.prune(watermark) };
        let is_live = |actor: Actor| set.values().any(|(dot, _)| dot.actor == actor);
        let goes = |&(actor, counter): &(Actor, Counter)| counter <= watermark && !is_live(actor);
        let going: BTreeSet<Actor> =
            set.context_ref().entries().iter().filter(|entry| goes(entry)).map(|entry| entry.0).collect();
        if going.is_empty() {
            return self.prune(watermark);
        }
        part(set, |actor| !going.contains(&actor), |_, _| true).map_or(Pruned::Nothing, Pruned::Less)
    }

    /// Whether `incoming` names a write at or below `bound` that what is held does not cover; `None` holds nothing.
    ///
    /// Named are the live values and the context's entries, also those without a value: of a delete that is not
    /// known here, joined and soon forgotten again, nothing would stay to say what it had covered. A value is
    /// looked at apart from its actor's entry, which may be above the bound. An `lww` record names its dot,
    /// whether it wrote or deleted.
    ///
    /// # Panics
    ///
    /// As [`Record::merge`].
    pub fn names_unknown(incoming: &Record, held: Option<&Record>, bound: Counter) -> bool {
        incoming.unknown(held, bound).next().is_some()
    }

    /// What a copy that cannot be believed keeps of its own record once it has heard what a believed copy holds at
    /// `watermark` (`None`: nothing). The caller joins the two.
    ///
    /// What it names at or below the watermark and the believed copy does not cover is dead: it was covered, and
    /// that was forgotten. It goes with all of its actor, because an entry claims every earlier write: an entry
    /// above the watermark that stayed would go on claiming what is dead. If the record as a whole is at or below
    /// the watermark, the believed copy's stands in its place.
    ///
    /// # Panics
    ///
    /// As [`Record::merge`].
    pub fn cut(&self, believed: Option<&Record>, watermark: Counter) -> Cut {
        let dead: BTreeSet<Actor> = self.unknown(believed, watermark).map(|dot| dot.actor).collect();
        let is_passed = self.highest() <= watermark;
        let goes = |dot: Dot| is_passed || dead.contains(&dot.actor);
        let has_lost = self.stored().any(|(dot, _)| goes(dot) && !is_covered(believed, dot));
        let rest = if is_passed {
            believed.cloned()
        } else if let Record::Siblings(set) = self {
            part(set, |actor| !dead.contains(&actor), |dot, _| !goes(dot))
        } else {
            Some(self.clone())
        };
        Cut { rest, has_lost }
    }

    /// The names of writes at or below `bound` that what is held does not cover.
    fn unknown(&self, held: Option<&Record>, bound: Counter) -> impl Iterator<Item = Dot> {
        if held.is_some_and(|held| held.policy() != self.policy()) {
            two_kinds();
        }
        let named = self.entries().chain(self.stored().map(|(dot, _)| dot));
        named.filter(move |&dot| dot.counter <= bound && !is_covered(held, dot))
    }

    /// The highest write seen of each actor. An `lww` record has one: its own.
    fn entries(&self) -> impl Iterator<Item = Dot> {
        let (set, version) = match self {
            Record::Siblings(set) => (Some(set), None),
            Record::Lww(version) => (None, Some(version.dot)),
        };
        let entries = set.into_iter().flat_map(|set| set.context_ref().entries());
        entries.map(|&(actor, counter)| Dot { counter, actor }).chain(version)
    }

    /// The values with their dots, as stored.
    fn stored(&self) -> impl Iterator<Item = (Dot, &Value)> {
        let (set, version) = match self {
            Record::Siblings(set) => (Some(set), None),
            Record::Lww(version) => (None, version.value.as_ref().map(|value| (version.dot, value))),
        };
        set.into_iter().flat_map(SiblingSet::values).chain(version)
    }
}

impl Context {
    /// A client's context without what a whole copy at a watermark has forgotten: entries at or below it of actors
    /// that the record (`None`: there is none) has no entry of. Joined into the record they would say again what
    /// all copies have dropped.
    ///
    /// An entry above the actor's own in the record stays: it may cover one of the actor's values there.
    ///
    /// For keyspaces of siblings. In `lww` ones a context has one use, its highest counter; beside an `lww` record
    /// it stays as it is, and where there is no record the caller does not ask.
    #[must_use]
    pub fn without_forgotten(self, held: Option<&Record>, watermark: Counter) -> Context {
        let seen = match held {
            None => None,
            Some(Record::Siblings(set)) => Some(set.context_ref()),
            Some(Record::Lww(_)) => return self,
        };
        let is_forgotten = |&(actor, counter): &(Actor, Counter)| {
            counter <= watermark && seen.is_none_or(|seen| seen.counter(actor) == Counter::ZERO)
        };
        if !self.entries().iter().any(is_forgotten) {
            return self;
        }
        let entries = self.entries().iter().filter(|entry| !is_forgotten(entry));
        Context::from_entries(self.copies(), entries.copied().collect())
    }
}

/// From which watermark on a value is superfluous, if it expires: every copy has it, and it is over on every clock.
fn superfluous_at(dot: Dot, value: &Value) -> Option<Counter> {
    value.expires.map(|expires| dot.counter.max(Counter::at(expires)))
}

fn is_covered(held: Option<&Record>, dot: Dot) -> bool {
    held.is_some_and(|held| held.covers(dot))
}

/// A set without some of its actors' entries and some values; `None` if nothing is left. Values stay with their
/// actor's entry only, which covers them.
fn part(
    set: &SiblingSet,
    keeps_entry: impl Fn(Actor) -> bool,
    keeps_value: impl Fn(Dot, &Value) -> bool,
) -> Option<Record> {
    let entries = set.context_ref().entries().iter().filter(|entry| keeps_entry(entry.0));
    let context = Context::from_entries(set.copies(), entries.copied().collect());
    let values = set.values().filter(|&(dot, value)| keeps_value(dot, value));
    let values = values.map(|(dot, value)| (dot, value.clone())).collect();
    (!context.is_empty()).then(|| Record::Siblings(SiblingSet::from_parts(context, values)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::{CopyCount, LwwVersion, UnixMillis};

    const A: Actor = Actor(0xa);
    const B: Actor = Actor(0xb);
    const C: Actor = Actor(0xc);

    /// Counters are whole milliseconds here, so that expiries are on the same scale.
    fn at(millis: u64) -> Counter {
        Counter::at(UnixMillis(millis))
    }

    fn dot(actor: Actor, millis: u64) -> Dot {
        Dot { counter: at(millis), actor }
    }

    fn context(entries: &[(Actor, u64)]) -> Context {
        let entries = entries.iter().map(|&(actor, millis)| (actor, at(millis))).collect();
        Context::from_entries(CopyCount::DEFAULT, entries)
    }

    fn expiring(millis: u64) -> Option<Value> {
        Some(Value { expires: Some(UnixMillis(millis)), ..Value::new("v") })
    }

    fn lasting() -> Option<Value> {
        Some(Value::new("v"))
    }

    /// Who wrote, when, what its client had seen, and what it wrote.
    type Write<'a> = (Actor, u64, &'a [(Actor, u64)], Option<Value>);

    fn siblings(writes: &[Write<'_>]) -> Record {
        let mut set = SiblingSet::new();
        for (actor, millis, seen, value) in writes {
            set.write(dot(*actor, *millis), &context(seen), value.clone(), CopyCount::DEFAULT);
        }
        Record::Siblings(set)
    }

    fn lww(actor: Actor, millis: u64, value: Option<Value>) -> Record {
        let seen = Context::new();
        Record::Lww(LwwVersion::write(dot(actor, millis), &seen, value, CopyCount::explicit(5)))
    }

    fn entries(record: &Record) -> Vec<(Actor, Counter)> {
        record.context().entries().to_vec()
    }

    /// What is left, if that is less and not nothing.
    fn less(record: &Record, millis: u64) -> Record {
        match record.prune(at(millis)) {
            Pruned::Less(less) => less,
            same_or_nothing => panic!("{same_or_nothing:?} at {millis} of {record:?}"),
        }
    }

    #[test]
    fn a_delete_is_forgotten_when_the_watermark_reaches_it() {
        let deleted = siblings(&[(A, 1, &[], lasting()), (B, 9, &[(A, 1)], None)]);
        for record in [deleted, lww(A, 9, None)] {
            assert_eq!(record.prunable_at(), Some(at(9)));
            assert_eq!(record.prune(at(8)), Pruned::Same);
            assert_eq!(record.prune(at(9)), Pruned::Nothing);
        }
    }

    #[test]
    fn an_entry_that_is_forgotten_by_its_own_counter_would_bring_its_value_back() {
        let holder = siblings(&[(A, 1, &[], lasting())]);
        let mut replaced = siblings(&[(A, 1, &[], lasting()), (B, 9, &[(A, 1)], lasting())]);
        assert_eq!(replaced.prune(at(5)), Pruned::Same, "whoever has the value has to be told");
        replaced.merge(&holder);
        assert_eq!(replaced.live_len(), 1);

        assert_eq!(less(&replaced, 9), siblings(&[(B, 9, &[], lasting())]));
        let mut forgetful = less(&replaced, 9);
        forgetful.merge(&holder);
        assert_eq!(forgetful.live_len(), 2, "hence such a record is not taken any more:");
        assert!(Record::names_unknown(&holder, Some(&less(&replaced, 9)), at(9)));
    }

    #[test]
    fn a_value_that_lasts_stays_at_every_watermark() {
        for record in [siblings(&[(A, 1, &[], lasting())]), lww(A, 1, lasting())] {
            assert_eq!(record.prunable_at(), None);
            assert_eq!(record.prune(Counter::MAX), Pruned::Same);
        }
    }

    #[test]
    fn a_value_goes_when_its_expiry_and_its_dot_are_passed() {
        for (written, expires) in [(2, 7), (7, 2), (7, 7), (7, 0)] {
            for record in
                [siblings(&[(A, written, &[], expiring(expires))]), lww(A, written, expiring(expires))]
            {
                assert_eq!(record.prunable_at(), Some(at(7)));
                assert_eq!(record.prune(Counter(at(7).0 - 1)), Pruned::Same);
                assert_eq!(record.prune(at(7)), Pruned::Nothing);
            }
        }
    }

    #[test]
    fn of_an_expired_value_the_entry_stays_while_another_counter_is_above() {
        let record = siblings(&[(A, 1, &[], expiring(3)), (B, 9, &[], lasting())]);
        assert_eq!(record.prunable_at(), Some(at(3)));
        let left = less(&record, 3);
        assert_eq!((left.live_len(), entries(&left)), (1, entries(&record)));
        assert_eq!(left.prunable_at(), Some(at(9)));
        assert_eq!(less(&left, 9), siblings(&[(B, 9, &[], lasting())]));
    }

    #[test]
    fn an_entry_stays_with_an_older_value_of_its_actor() {
        let record = siblings(&[(A, 1, &[], lasting()), (A, 4, &[], expiring(5))]);
        let left = less(&record, 6);
        assert_eq!((left.live_len(), entries(&left)), (1, vec![(A, at(4))]));
        assert_eq!(left.prunable_at(), None);
    }

    #[test]
    fn the_stored_n_stays_with_what_is_left() {
        let mut record = siblings(&[(A, 1, &[], lasting()), (B, 2, &[], expiring(3))]);
        record.raise_copies(CopyCount::explicit(5));
        assert_eq!(less(&record, 3).copies(), record.copies());
        let cut = record.cut(Some(&siblings(&[(B, 1, &[], None)])), at(1));
        assert_eq!(cut.rest.map(|rest| rest.copies()), Some(record.copies()));
    }

    #[test]
    fn a_record_that_nobody_has_written_is_nothing() {
        let empty = Record::Siblings(SiblingSet::new());
        assert_eq!(empty.prunable_at(), Some(Counter::ZERO));
        assert_eq!(empty.prune(Counter::ZERO), Pruned::Nothing);
    }

    #[test]
    fn a_delete_alone_is_a_write_that_may_be_unknown() {
        for delete in [siblings(&[(B, 5, &[], None)]), lww(B, 5, None)] {
            assert!(Record::names_unknown(&delete, None, at(5)));
            assert!(!Record::names_unknown(&delete, None, Counter(at(5).0 - 1)));
            assert!(!Record::names_unknown(&delete, Some(&delete), Counter::MAX));
        }
        let held = siblings(&[(A, 4, &[], lasting())]);
        assert!(Record::names_unknown(&siblings(&[(B, 5, &[(A, 4)], None)]), Some(&held), at(5)));
        assert!(!Record::names_unknown(&lww(B, 5, None), Some(&lww(A, 6, lasting())), at(9)));
    }

    #[test]
    fn an_old_value_below_a_new_entry_is_unknown_all_the_same() {
        let incoming = siblings(&[(A, 3, &[], lasting()), (A, 9, &[], lasting())]);
        assert!(Record::names_unknown(&incoming, None, at(5)));
        assert!(!Record::names_unknown(&incoming, Some(&siblings(&[(A, 3, &[], None)])), at(5)));
    }

    #[test]
    fn what_a_believed_copy_has_forgotten_goes_with_its_actor() {
        // A's value of 1 is dead. What A has written since goes as well: its entry would claim the dead one.
        let believed = siblings(&[(B, 4, &[], lasting())]);
        let own = siblings(&[
            (A, 1, &[], lasting()),
            (B, 4, &[], lasting()),
            (A, 7, &[], lasting()),
            (C, 8, &[], lasting()),
        ]);
        let rest = siblings(&[(B, 4, &[], lasting()), (C, 8, &[], lasting())]);
        assert_eq!(own.cut(Some(&believed), at(5)), Cut { rest: Some(rest), has_lost: true });
        let alone = siblings(&[(A, 1, &[], lasting()), (A, 7, &[], lasting())]);
        assert_eq!(alone.cut(None, at(5)), Cut { rest: None, has_lost: true });
    }

    #[test]
    fn what_is_above_the_watermark_stays_if_nothing_below_is_named() {
        let believed = siblings(&[(B, 4, &[], lasting())]);
        let own = siblings(&[(A, 1, &[], lasting()), (B, 4, &[], lasting()), (A, 7, &[(A, 1)], lasting())]);
        assert_eq!(own.cut(Some(&believed), at(5)), Cut { rest: Some(own.clone()), has_lost: false });
    }

    #[test]
    fn a_record_as_a_whole_below_the_watermark_gives_way() {
        let value = siblings(&[(A, 1, &[], lasting())]);
        assert_eq!(value.cut(None, at(5)), Cut { rest: None, has_lost: true });
        let tombstone = siblings(&[(A, 1, &[], None)]);
        assert_eq!(tombstone.cut(Some(&value), at(5)), Cut { rest: Some(value.clone()), has_lost: false });
        let deleted = siblings(&[(A, 1, &[], lasting()), (B, 9, &[(A, 1)], None)]);
        let cut = value.cut(Some(&deleted), at(5));
        assert_eq!(cut, Cut { rest: Some(deleted), has_lost: false }, "covered, which is no loss");

        let (old, new) = (lww(A, 4, lasting()), lww(B, 7, lasting()));
        assert_eq!(old.cut(None, at(5)), Cut { rest: None, has_lost: true });
        assert_eq!(old.cut(Some(&new), at(5)), Cut { rest: Some(new.clone()), has_lost: false });
        assert_eq!(new.cut(Some(&old), at(5)), Cut { rest: Some(new.clone()), has_lost: false });
        assert_eq!(new.cut(None, at(7)), Cut { rest: None, has_lost: true });
        assert_eq!(lww(A, 4, None).cut(None, at(5)), Cut { rest: None, has_lost: false });
    }

    #[test]
    fn a_context_loses_what_the_record_does_not_name() {
        let held = siblings(&[(A, 1, &[], lasting()), (B, 4, &[], lasting())]);
        let mut read = context(&[(A, 3), (B, 4), (C, 5)]);
        read.raise_copies(CopyCount::explicit(5));
        let mut left = context(&[(A, 3), (B, 4)]);
        left.raise_copies(CopyCount::explicit(5));
        assert_eq!(read.clone().without_forgotten(Some(&held), at(5)), left);
        assert_eq!(read.clone().without_forgotten(Some(&held), at(4)), read, "above the watermark");
        assert_eq!(read.clone().without_forgotten(None, at(4)).entries(), [(C, at(5))]);
        assert_eq!(read.clone().without_forgotten(Some(&lww(A, 9, None)), at(5)), read);
    }

    #[test]
    #[should_panic(expected = "met one of an lww keyspace")]
    fn records_of_two_kinds_are_never_judged_by_each_other() {
        Record::names_unknown(&lww(A, 1, None), Some(&siblings(&[])), at(5));
    }

    #[test]
    #[should_panic(expected = "met one of an lww keyspace")]
    fn records_of_two_kinds_never_cut_each_other() {
        siblings(&[]).cut(Some(&lww(A, 1, None)), at(5));
    }
}
