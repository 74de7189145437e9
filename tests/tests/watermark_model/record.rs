//! Records as the model has them: the same joins as `antientropy::version`, and what a watermark does to them.

use std::fmt;

/// The time half of a dot. Clocks count in the same unit.
pub(crate) type Counter = u64;
/// One unbroken memory of one copy.
pub(crate) type Actor = u32;

/// The name of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Dot {
    pub(crate) counter: Counter,
    pub(crate) actor: Actor,
}

/// What a put wrote: which write it was, and when it expires; 0 for never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Value {
    pub(crate) write: usize,
    pub(crate) expires: Counter,
}

/// What happens to concurrent values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    Siblings,
    Lww,
}

/// How many copies are kept of a record: the most that a request has asked for, and the fewest that any of its writes came
/// into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Copies {
    pub(crate) fewest: usize,
    pub(crate) most: usize,
}

impl Default for Copies {
    /// Of a record that nobody has written.
    fn default() -> Copies {
        Copies { fewest: usize::MAX, most: 0 }
    }
}

impl Copies {
    pub(crate) fn join(self, other: Copies) -> Copies {
        Copies { fewest: self.fewest.min(other.fewest), most: self.most.max(other.most) }
    }
}

/// A record of either kind. One of last-write-wins has a single entry, its dot, and at most one value.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) copies: Copies,
    /// Ascending by actor.
    pub(crate) entries: Vec<(Actor, Counter)>,
    /// Ascending by dot.
    pub(crate) live: Vec<(Dot, Value)>,
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = self.entries.iter().map(|(actor, counter)| format!("{actor}:{counter}"));
        let values = self.live.iter().map(|(dot, value)| {
            let expires = if value.expires > 0 { format!(" until {}", value.expires) } else { String::new() };
            format!("w{} {}@{}{expires}", value.write, dot.counter, dot.actor)
        });
        let (entries, values) =
            (entries.collect::<Vec<_>>().join(" "), values.collect::<Vec<_>>().join(", "));
        let Copies { fewest, most } = self.copies;
        if *self == Record::default() {
            return write!(f, "{{}}");
        }
        write!(f, "{{{entries} | {values} | {fewest} to {most}}}")
    }
}

impl Record {
    pub(crate) fn highest(&self) -> Counter {
        self.entries.iter().map(|entry| entry.1).max().unwrap_or(0)
    }

    pub(crate) fn counter(&self, actor: Actor) -> Counter {
        self.entries.iter().find(|entry| entry.0 == actor).map_or(0, |entry| entry.1)
    }

    /// Whether a write was seen here, live or not.
    pub(crate) fn covers(&self, policy: Policy, dot: Dot) -> bool {
        match policy {
            Policy::Siblings => self.counter(dot.actor) >= dot.counter,
            Policy::Lww => {
                self.entries.first().is_some_and(|&(actor, counter)| Dot { counter, actor } >= dot)
            }
        }
    }

    pub(crate) fn is_live(&self, dot: Dot) -> bool {
        self.live.iter().any(|(live, _)| *live == dot)
    }

    /// Joins another copy's record.
    pub(crate) fn join(&mut self, policy: Policy, other: &Record) {
        if self == other {
            return;
        }
        let copies = self.copies.join(other.copies);
        match policy {
            Policy::Lww => {
                let dot = |record: &Record| record.entries.first().map(|entry| (entry.1, entry.0));
                if dot(other) > dot(self) {
                    self.clone_from(other);
                }
            }
            Policy::Siblings => {
                let mut live = Vec::with_capacity(self.live.len() + other.live.len());
                live.extend(
                    self.live.iter().filter(|(dot, _)| other.is_live(*dot) || !other.covers(policy, *dot)),
                );
                live.extend(other.live.iter().filter(|(dot, _)| !self.covers(policy, *dot)));
                live.sort_by_key(|(dot, _)| *dot);
                self.live = live;
                other.entries.iter().for_each(|&(actor, counter)| self.see(actor, counter));
            }
        }
        self.copies = copies;
    }

    /// Adds an entry.
    fn see(&mut self, actor: Actor, counter: Counter) {
        match self.entries.binary_search_by_key(&actor, |entry| entry.0) {
            Ok(at) => self.entries[at].1 = self.entries[at].1.max(counter),
            Err(at) => self.entries.insert(at, (actor, counter)),
        }
    }

    /// A client's write on top of what is held.
    pub(crate) fn write(
        &mut self,
        policy: Policy,
        dot: Dot,
        context: &[(Actor, Counter)],
        value: Option<Value>,
        copies: usize,
    ) {
        let most = self.copies.most.max(copies);
        let copies = Copies { fewest: most, most };
        match policy {
            Policy::Lww => {
                let written = Record {
                    copies,
                    entries: vec![(dot.actor, dot.counter)],
                    live: value.map(|value| (dot, value)).into_iter().collect(),
                };
                self.join(policy, &written);
            }
            Policy::Siblings => {
                let seen = Record { copies, entries: context.to_vec(), live: Vec::new() };
                self.join(policy, &seen);
                self.see(dot.actor, dot.counter);
                if let Some(value) = value {
                    self.live.push((dot, value));
                    self.live.sort_by_key(|(dot, _)| *dot);
                }
            }
        }
    }

    /// Leaves out what a watermark makes superfluous: values that expired below it, and, if every counter is at or below
    /// it, entries without a value. An entry's own counter does not say when its value was covered.
    pub(crate) fn prune(&mut self, watermark: Counter, by_own_counter: bool, expired_at: Counter) {
        let is_expired = |dot: Dot, value: &Value| {
            value.expires > 0 && value.expires <= expired_at && dot.counter <= watermark
        };
        self.live.retain(|(dot, value)| !is_expired(*dot, value));
        let Record { entries, live, .. } = self;
        let has_value = |actor: Actor| live.iter().any(|(dot, _)| dot.actor == actor);
        if by_own_counter {
            entries.retain(|&(actor, counter)| counter > watermark || has_value(actor));
        } else if entries.iter().all(|entry| entry.1 <= watermark) {
            entries.retain(|entry| has_value(entry.0));
        }
        self.forget_nothing();
    }

    /// A record of nothing is none.
    fn forget_nothing(&mut self) {
        if self.entries.is_empty() && self.live.is_empty() {
            *self = Record::default();
        }
    }

    /// Whether a record names a write at or below `floor` that is not known here, live or not. Of those the values alone
    /// would not do: what an unknown delete covers would go, and nothing would stay to say so.
    pub(crate) fn lacks(&self, policy: Policy, incoming: &Record, floor: Counter, values_only: bool) -> bool {
        let is_unknown = |dot: Dot| dot.counter <= floor && !self.covers(policy, dot);
        let entries = incoming.entries.iter().map(|&(actor, counter)| Dot { counter, actor });
        incoming.live.iter().any(|(dot, _)| is_unknown(*dot))
            || (!values_only && entries.into_iter().any(is_unknown))
    }

    /// The record without the values of actors of which it names an unknown one, and perhaps without their entries. For
    /// planted mistakes.
    pub(crate) fn in_part(
        &self,
        policy: Policy,
        incoming: &Record,
        floor: Counter,
        keeps_entries: bool,
    ) -> Record {
        let is_unknown = |dot: &Dot| dot.counter <= floor && !self.covers(policy, *dot);
        let dots = incoming.live.iter().map(|(dot, _)| *dot);
        let unknown: Vec<Actor> = dots.filter(is_unknown).map(|dot| dot.actor).collect();
        let mut allowed = incoming.clone();
        allowed.live.retain(|(dot, _)| !unknown.contains(&dot.actor));
        allowed.entries.retain(|entry| keeps_entries || !unknown.contains(&entry.0));
        allowed
    }

    /// A copy that cannot be believed meets one that can: what it holds up to `watermark` that the other does not know is
    /// dead. It goes with the entries of its actors, so that it claims nothing. Whether anything went.
    pub(crate) fn cut(
        &mut self,
        policy: Policy,
        believed: &Record,
        watermark: Counter,
        keeps_entries: bool,
    ) -> bool {
        let before = self.clone();
        let is_dead = |dot: Dot| dot.counter <= watermark && !believed.covers(policy, dot);
        if keeps_entries {
            self.live.retain(|(dot, _)| !is_dead(*dot));
        } else if self.highest() <= watermark {
            self.clone_from(believed);
            return before.live.iter().any(|(dot, _)| is_dead(*dot));
        } else {
            let entries = self.entries.iter().map(|&(actor, counter)| Dot { counter, actor });
            let dots = self.live.iter().map(|(dot, _)| *dot).chain(entries);
            let dead: Vec<Actor> = dots.filter(|dot| is_dead(*dot)).map(|dot| dot.actor).collect();
            self.live.retain(|(dot, _)| !dead.contains(&dot.actor));
            self.entries.retain(|entry| !dead.contains(&entry.0));
        }
        self.forget_nothing();
        *self != before
    }
}
