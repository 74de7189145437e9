//! The virtual clock and what is going to happen.

use std::{cmp::Reverse, collections::BinaryHeap, fmt, time::Duration};

/// Where the wall clock stands when a run begins: some day in 2026.
const WALL_START_MS: u64 = 1_780_000_000_000;

/// A moment of the simulated world: microseconds since the run began. The true time, which no node can see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub u64);

impl Moment {
    /// Later than anything.
    pub const NEVER: Moment = Moment(u64::MAX);

    /// So much later.
    #[must_use]
    pub fn after(self, wait: Duration) -> Moment {
        let wait = u64::try_from(wait.as_micros()).unwrap_or(u64::MAX);
        Moment(self.0.saturating_add(wait))
    }

    /// What a wall clock that is right shows, in milliseconds of Unix time.
    #[must_use]
    pub fn wall_ms(self) -> u64 {
        WALL_START_MS + self.0 / 1000
    }

    /// How long it has been since an earlier moment.
    #[must_use]
    pub fn since(self, earlier: Moment) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>5}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

/// Events in the order of their times; those of one moment in the order in which they were scheduled.
///
/// The heap holds small entries and the events lie apart, because an event carries a whole message.
#[derive(Debug)]
pub(crate) struct Schedule<E> {
    now: Moment,
    order: u64,
    heap: BinaryHeap<Reverse<(Moment, u64, usize)>>,
    events: Vec<Option<E>>,
    free: Vec<usize>,
}

impl<E> Schedule<E> {
    pub(crate) fn new() -> Schedule<E> {
        Schedule { now: Moment(0), order: 0, heap: BinaryHeap::new(), events: Vec::new(), free: Vec::new() }
    }

    /// The present.
    pub(crate) fn now(&self) -> Moment {
        self.now
    }

    /// Schedules an event; one in the past happens now.
    pub(crate) fn at(&mut self, when: Moment, event: E) {
        let place = self.free.pop().unwrap_or(self.events.len());
        if place == self.events.len() {
            self.events.push(None);
        }
        self.events[place] = Some(event);
        self.order += 1;
        self.heap.push(Reverse((when.max(self.now), self.order, place)));
    }

    /// Schedules an event after a wait.
    pub(crate) fn after(&mut self, wait: Duration, event: E) {
        self.at(self.now.after(wait), event);
    }

    /// The next event no later than `until`; the clock moves to it, or to `until` if there is none.
    pub(crate) fn next(&mut self, until: Moment) -> Option<E> {
        let due = self.heap.peek().is_some_and(|Reverse((when, ..))| *when <= until);
        if !due {
            self.now = self.now.max(until);
            return None;
        }
        let Reverse((when, _, place)) = self.heap.pop()?;
        self.now = when;
        self.free.push(place);
        self.events[place].take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_happen_in_the_order_of_their_times_and_then_of_their_scheduling() {
        let mut schedule = Schedule::new();
        for (micros, event) in [(30, 'd'), (10, 'a'), (20, 'b'), (20, 'c')] {
            schedule.at(Moment(micros), event);
        }
        let happened: String = std::iter::from_fn(|| schedule.next(Moment(25))).collect();
        assert_eq!((happened.as_str(), schedule.now()), ("abc", Moment(25)));
        schedule.at(Moment(5), 'e');
        assert_eq!((schedule.next(Moment(25)), schedule.now()), (Some('e'), Moment(25)), "the past is now");
        assert_eq!((schedule.next(Moment::NEVER), schedule.now()), (Some('d'), Moment(30)));
    }
}
