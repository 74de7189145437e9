//! Causal contexts: which writes have been seen.

use super::{Actor, Counter, Dot};

/// How many copies of an object are kept: the n stored with it.
///
/// Requests may ask for another n than the keyspace's. The object then remembers the most that was asked for, so
/// that hints, anti-entropy and moves know how many copies to keep; quorums never look at it. And it remembers the
/// *fewest* that any of its writes came into: those that keep records of so few have kept all of it from its first
/// write on, and only they know that what they have never heard of is dead. A join-semilattice: the most rises, the
/// fewest falls. The keyspace's own count is a flag and not a number, because it may differ by datacenter and may change.
///
/// On the wire one byte: bit 7 says that the keyspace's own count is included in the most, bits 0 to 2 are the highest n that
/// was asked for explicitly, 0 for none. Bits 3 to 5 are the fewest that were asked for explicitly, and bit 6 says that the
/// keyspace's own count is among the fewest as well. If bits 3 to 6 are 0, the fewest are the keyspace's own if bit 7 is
/// set, and otherwise the same as the most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CopyCount {
    byte: u8,
}

const _: () =
    assert!(CopyCount::EXPLICIT_MAX as usize == ring::REPLICAS_MAX, "the ring's limit, in three bits");

impl CopyCount {
    /// As many as the keyspace says.
    pub const DEFAULT: CopyCount = CopyCount { byte: 0x80 };

    /// No demand at all: the join's neutral element, for a record that nobody has written yet.
    pub const NONE: CopyCount = CopyCount { byte: 0 };

    /// The most copies that a request may ask for in one datacenter.
    pub const EXPLICIT_MAX: u8 = 7;

    /// The bits of the most.
    const MOST: u8 = CopyCount::DEFAULT.byte | CopyCount::EXPLICIT_MAX;
    /// The bits of the fewest that were asked for explicitly.
    const FEWEST: u8 = CopyCount::EXPLICIT_MAX << CopyCount::FEWEST_SHIFT;
    const FEWEST_SHIFT: u32 = 3;
    /// Whether the keyspace's own count is among the fewest, beside an explicit one.
    const FEWEST_OWN: u8 = 0x40;

    /// As many as one request asked for; 0 is [`CopyCount::NONE`].
    ///
    /// # Panics
    ///
    /// Above [`CopyCount::EXPLICIT_MAX`]: requests are checked where they are decoded.
    pub fn explicit(n: u8) -> CopyCount {
        assert!(n <= CopyCount::EXPLICIT_MAX, "{n} copies were let through");
        CopyCount { byte: n }
    }

    /// Whether a record of this count is to be kept wherever one of the other is.
    #[must_use]
    pub fn includes(self, other: CopyCount) -> bool {
        self.most_with(other) == self.most().byte
    }

    /// That of a record in which two are joined.
    #[must_use]
    pub fn join(self, other: CopyCount) -> CopyCount {
        if self == other || other == CopyCount::NONE {
            return self;
        }
        if self == CopyCount::NONE {
            return other;
        }
        let ((is_own, fewest), (is_others_own, others)) = (self.fewest(), other.fewest());
        let fewest = match (fewest, others) {
            (0, explicit) | (explicit, 0) => explicit,
            (one, other) => one.min(other),
        };
        CopyCount::of(self.most_with(other), is_own || is_others_own, fewest)
    }

    /// That of a record for which a request asks for so many. What it has, came into no fewer than before.
    #[must_use]
    pub fn raised(self, asked: CopyCount) -> CopyCount {
        if self == CopyCount::NONE {
            return asked;
        }
        let (is_own, fewest) = self.fewest();
        CopyCount::of(self.most_with(asked), is_own, fewest)
    }

    /// The most of both, as bits.
    fn most_with(self, other: CopyCount) -> u8 {
        let explicit = (self.byte & CopyCount::EXPLICIT_MAX).max(other.byte & CopyCount::EXPLICIT_MAX);
        (self.byte | other.byte) & CopyCount::DEFAULT.byte | explicit
    }

    /// Whether the keyspace's own count is among the fewest, and the lowest explicit one that is, 0 for none.
    fn fewest(self) -> (bool, u8) {
        let is_own = self.byte & CopyCount::DEFAULT.byte != 0;
        match ((self.byte & CopyCount::FEWEST) >> CopyCount::FEWEST_SHIFT, is_own) {
            (0, true) => (true, 0),
            (0, false) => (false, self.byte & CopyCount::EXPLICIT_MAX),
            (explicit, _) => (self.byte & CopyCount::FEWEST_OWN != 0, explicit),
        }
    }

    /// The one byte that says so.
    fn of(most: u8, is_own: bool, fewest: u8) -> CopyCount {
        let explicit = fewest << CopyCount::FEWEST_SHIFT;
        let fewest = match (is_own, most & CopyCount::DEFAULT.byte != 0) {
            (true, _) if fewest == 0 => 0,
            (true, _) => explicit | CopyCount::FEWEST_OWN,
            (false, false) if fewest == most => 0,
            (false, _) => explicit,
        };
        CopyCount { byte: most | fewest }
    }

    /// Whether all that keep it now have kept it since its first write, whatever the keyspace's own count is.
    pub fn is_even(self) -> bool {
        self == CopyCount::DEFAULT || self.byte & !CopyCount::EXPLICIT_MAX == 0
    }

    /// How many copies are to be kept, without what came into how few: all that records of one hash tree have in common.
    #[must_use]
    pub fn most(self) -> CopyCount {
        CopyCount { byte: self.byte & CopyCount::MOST }
    }

    /// Copies to keep in a datacenter in which the keyspace keeps `keyspace_n`.
    pub fn in_datacenter(self, keyspace_n: u8) -> u8 {
        let default = if self.byte & CopyCount::DEFAULT.byte == 0 { 0 } else { keyspace_n };
        default.max(self.byte & CopyCount::EXPLICIT_MAX)
    }

    /// Copies that have been kept since the first write, in a datacenter in which the keyspace keeps `keyspace_n`.
    pub fn fewest_in_datacenter(self, keyspace_n: u8) -> u8 {
        match self.fewest() {
            (true, 0) => keyspace_n,
            (true, explicit) => explicit.min(keyspace_n),
            (false, explicit) => explicit,
        }
    }

    /// The byte on the wire.
    pub fn to_byte(self) -> u8 {
        self.byte
    }

    /// The count that a byte on the wire stands for; `None` if it is not the one byte for any.
    pub fn from_byte(byte: u8) -> Option<CopyCount> {
        let count = CopyCount { byte };
        let (is_own, fewest) = count.fewest();
        let is_own_kept = byte & CopyCount::DEFAULT.byte != 0 || byte & CopyCount::FEWEST_OWN == 0;
        let is_one = is_own_kept && CopyCount::of(count.most().byte, is_own, fewest) == count;
        (is_one && fewest <= byte & CopyCount::EXPLICIT_MAX).then_some(count)
    }
}

/// A causal context: for each actor, up to which counter its writes to one key have been seen.
///
/// An entry claims *every* dot of its actor for this key up to the counter ([`Actor`] says why it may), so a
/// context is a version vector and not a list of writes. It also carries the stored n, so that a client that
/// writes back what it read does not lower it.
///
/// Entries are strictly ascending by actor, each with a counter that a dot can have.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Context {
    copies: CopyCount,
    entries: Vec<(Actor, Counter)>,
}

impl Clone for Context {
    fn clone(&self) -> Context {
        Context { copies: self.copies, entries: self.entries.clone() }
    }

    /// Keeps the memory that `self` has; a merge of a newer record is mostly this.
    fn clone_from(&mut self, source: &Context) {
        self.copies = source.copies;
        self.entries.clone_from(&source.entries);
    }
}

impl Context {
    /// The context of someone who has seen nothing.
    pub fn new() -> Context {
        Context::default()
    }

    /// A context with these entries.
    ///
    /// # Panics
    ///
    /// If the actors are not strictly ascending, or a counter is none that a dot can have.
    pub fn from_entries(copies: CopyCount, entries: Vec<(Actor, Counter)>) -> Context {
        assert!(entries.is_sorted_by(|a, b| a.0 < b.0), "the context's actors are not ascending");
        assert!(entries.iter().all(|entry| entry.1.is_mintable()), "a context with a counter of no dot");
        Context { copies, entries }
    }

    /// Whether the write of this name has been seen.
    pub fn covers(&self, dot: Dot) -> bool {
        self.counter(dot.actor) >= dot.counter
    }

    /// The highest counter seen of an actor, [`Counter::ZERO`] if none was.
    pub fn counter(&self, actor: Actor) -> Counter {
        match self.entries.binary_search_by_key(&actor, |entry| entry.0) {
            Ok(found) => self.entries[found].1,
            Err(_) => Counter::ZERO,
        }
    }

    /// The highest counter of any actor, [`Counter::ZERO`] if there is none.
    pub fn highest(&self) -> Counter {
        self.entries.iter().map(|entry| entry.1).max().unwrap_or(Counter::ZERO)
    }

    /// Whether no write has been seen. The copies do not matter.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Each actor with the highest of its counters that was seen, ascending by actor.
    pub fn entries(&self) -> &[(Actor, Counter)] {
        &self.entries
    }

    /// The stored n that was seen.
    pub fn copies(&self) -> CopyCount {
        self.copies
    }

    /// Raises the stored n to what a request asks for.
    pub fn raise_copies(&mut self, asked: CopyCount) {
        self.copies = self.copies.raised(asked);
    }

    /// Adds a write, and with it every earlier one of its actor.
    pub fn insert(&mut self, dot: Dot) {
        debug_assert!(dot.counter.is_mintable(), "the dot {dot} was never minted");
        match self.entries.binary_search_by_key(&dot.actor, |entry| entry.0) {
            Ok(found) => self.entries[found].1 = self.entries[found].1.max(dot.counter),
            Err(place) => self.entries.insert(place, (dot.actor, dot.counter)),
        }
    }

    /// Adds all that the other has seen.
    pub fn join(&mut self, other: &Context) {
        self.copies = self.copies.join(other.copies);
        if self.includes_entries(other) {
            return;
        }
        let mine = std::mem::take(&mut self.entries);
        let mut joined = Vec::with_capacity(mine.len() + other.entries.len());
        let (mut left, mut right) = (mine.into_iter().peekable(), other.entries.iter().copied().peekable());
        while let (Some(&(actor, counter)), Some(&(other_actor, other_counter))) = (left.peek(), right.peek())
        {
            joined.push((
                actor.min(other_actor),
                match actor.cmp(&other_actor) {
                    std::cmp::Ordering::Less => counter,
                    std::cmp::Ordering::Equal => counter.max(other_counter),
                    std::cmp::Ordering::Greater => other_counter,
                },
            ));
            left.next_if(|_| actor <= other_actor);
            right.next_if(|_| other_actor <= actor);
        }
        joined.extend(left);
        joined.extend(right);
        self.entries = joined;
    }

    /// Whether joining the other would change nothing.
    pub fn includes(&self, other: &Context) -> bool {
        self.copies.join(other.copies) == self.copies && self.includes_entries(other)
    }

    /// [`Context::includes`] without the copies: one pass over both, as both are sorted.
    fn includes_entries(&self, other: &Context) -> bool {
        if other.entries.len() > self.entries.len() {
            return false;
        }
        let mut mine = self.entries.iter();
        other.entries.iter().all(|&(actor, counter)| {
            mine.find(|entry| entry.0 >= actor)
                .is_some_and(|&(found, seen)| found == actor && seen >= counter)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(entries: &[(u64, u64)]) -> Context {
        let entries = entries.iter().map(|&(actor, counter)| (Actor(actor), Counter(counter))).collect();
        Context::from_entries(CopyCount::DEFAULT, entries)
    }

    fn dot(actor: u64, counter: u64) -> Dot {
        Dot { counter: Counter(counter), actor: Actor(actor) }
    }

    #[test]
    fn an_entry_covers_every_dot_of_its_actor_up_to_its_counter() {
        let seen = context(&[(2, 5), (7, 3)]);
        assert!(seen.covers(dot(2, 5)) && seen.covers(dot(2, 1)) && seen.covers(dot(7, 3)));
        assert!(!seen.covers(dot(2, 6)) && !seen.covers(dot(7, 4)) && !seen.covers(dot(3, 1)));
        assert_eq!(seen.highest(), Counter(5));
        assert_eq!(Context::new().highest(), Counter::ZERO);
    }

    #[test]
    fn a_join_takes_the_higher_counter_of_each_actor() {
        let mut seen = context(&[(1, 1), (3, 9), (5, 5)]);
        seen.join(&context(&[(0, 2), (3, 4), (5, 6), (8, 8)]));
        assert_eq!(seen, context(&[(0, 2), (1, 1), (3, 9), (5, 6), (8, 8)]));
    }

    #[test]
    fn includes_is_that_the_join_changes_nothing() {
        let sets: [&[(u64, u64)]; 7] =
            [&[], &[(1, 1)], &[(1, 2)], &[(2, 1)], &[(1, 1), (2, 1)], &[(1, 2), (2, 1)], &[(0, 1), (3, 3)]];
        for left in sets.map(context) {
            for right in sets.map(context) {
                let mut joined = left.clone();
                joined.join(&right);
                assert_eq!(left.includes(&right), joined == left, "{left:?} {right:?}");
            }
        }
        assert!(!Context::new().includes(&context(&[])), "the stored n counts as well");
    }

    #[test]
    fn insert_keeps_the_actors_sorted_and_the_counters_highest() {
        let mut seen = Context::new();
        for dot in [dot(5, 2), dot(1, 9), dot(5, 1), dot(3, 3), dot(5, 4)] {
            seen.insert(dot);
        }
        assert_eq!(seen.entries(), context(&[(1, 9), (3, 3), (5, 4)]).entries());
    }

    #[test]
    #[should_panic(expected = "not ascending")]
    fn entries_out_of_order_are_our_bug() {
        context(&[(2, 1), (1, 1)]);
    }

    #[test]
    fn copies_are_a_semilattice() {
        let all: Vec<CopyCount> = (0..=255).filter_map(CopyCount::from_byte).collect();
        assert_eq!(all.len(), 93);
        for &a in &all {
            assert_eq!((a.join(a), a.join(CopyCount::NONE)), (a, a));
            for &b in &all {
                assert_eq!(a.join(b), b.join(a));
                assert!(all.iter().all(|&c| a.join(b).join(c) == a.join(b.join(c))));
                let highest = a.in_datacenter(4).max(b.in_datacenter(4));
                assert_eq!(a.join(b).in_datacenter(4), highest);
                if a != CopyCount::NONE && b != CopyCount::NONE {
                    let lowest = a.fewest_in_datacenter(4).min(b.fewest_in_datacenter(4));
                    assert_eq!(a.join(b).fewest_in_datacenter(4), lowest);
                    assert_eq!(a.raised(b).fewest_in_datacenter(4), a.fewest_in_datacenter(4));
                    assert_eq!(a.raised(b).most(), a.join(b).most());
                    assert!(a.join(b).join(a.raised(b)) == a.join(b), "a join goes no less far");
                }
                assert_eq!(a.includes(b), a.join(b).most() == a.most());
            }
        }
    }

    #[test]
    fn the_keyspaces_own_count_follows_the_keyspace() {
        assert_eq!(CopyCount::DEFAULT.in_datacenter(3), 3);
        assert_eq!(CopyCount::explicit(5).in_datacenter(3), 5);
        assert_eq!(CopyCount::explicit(2).in_datacenter(3), 2);
        let both = CopyCount::DEFAULT.join(CopyCount::explicit(2));
        assert_eq!((both.in_datacenter(3), both.in_datacenter(1)), (3, 2));
        assert_eq!(both.to_byte(), 0xd2);
    }

    #[test]
    fn the_fewest_are_what_the_first_write_came_into() {
        let raised = CopyCount::DEFAULT.raised(CopyCount::explicit(5));
        assert_eq!((raised.in_datacenter(3), raised.fewest_in_datacenter(3)), (5, 3));
        let lower = CopyCount::DEFAULT.raised(CopyCount::explicit(1));
        assert_eq!(lower.fewest_in_datacenter(3), 3, "what comes into three is kept by three");
        let first = CopyCount::NONE.raised(CopyCount::explicit(2)).raised(CopyCount::DEFAULT);
        assert_eq!((first.in_datacenter(3), first.fewest_in_datacenter(3)), (3, 2));
        assert_eq!(raised.join(first).fewest_in_datacenter(3), 2);
        assert_eq!(raised.join(first).fewest_in_datacenter(1), 1, "the keyspace has lowered its own");
    }

    #[test]
    #[should_panic(expected = "let through")]
    fn more_copies_than_the_limit_are_our_bug() {
        CopyCount::explicit(8);
    }
}
