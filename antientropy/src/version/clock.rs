//! The hybrid logical clock: numbers for writes that follow both causality and the clock on the wall.
//!
//! Kulkarni et al., "Logical Physical Clocks and Consistent Snapshots in Globally Distributed Databases" (2014),
//! in its one-word form: 48 bits of milliseconds and 16 of logical count compare as one integer, and adding one
//! to a full count carries into the milliseconds, so there is no overflow to wait for.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How many low bits of a [`Counter`] are its logical count.
const LOGICAL_BITS: u32 = 16;

/// A point in time: milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// The last millisecond that a [`Counter`] can hold, in the year 10889.
    pub const MAX: UnixMillis = UnixMillis((1 << (u64::BITS - LOGICAL_BITS)) - 1);
}

/// The clock half of a [`Dot`](super::Dot): a hybrid logical timestamp.
///
/// 48 bits of Unix milliseconds above 16 bits of logical count. Counters compare as integers, so a key's later
/// write has the higher counter whatever the wall clocks say, while the milliseconds still tell its age to within
/// the cluster's drift.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Counter(pub u64);

impl Counter {
    /// Before every write: no dot has it.
    pub const ZERO: Counter = Counter(0);

    /// The last counter that a dot may have. The one above it would have no successor.
    pub const MAX: Counter = Counter(u64::MAX - 1);

    /// The first counter of a millisecond. A time above [`UnixMillis::MAX`] counts as that.
    pub fn at(time: UnixMillis) -> Counter {
        Counter(time.0.min(UnixMillis::MAX.0) << LOGICAL_BITS)
    }

    /// The millisecond that this counter falls in.
    pub fn millis(self) -> UnixMillis {
        UnixMillis(self.0 >> LOGICAL_BITS)
    }

    /// The next counter. A full logical count carries into the milliseconds.
    ///
    /// # Panics
    ///
    /// At [`Counter::MAX`]. A clock adopts nothing far above the wall clock, and decoding refuses counters above
    /// `MAX`, so getting there takes 2^64 writes or a wall clock in the year 10889.
    #[must_use]
    pub fn next(self) -> Counter {
        assert!(self < Counter::MAX, "the hybrid clock is exhausted at {self}");
        Counter(self.0 + 1)
    }

    /// Whether a dot may have this counter: not zero, and with a successor.
    pub(super) fn is_mintable(self) -> bool {
        Counter::ZERO < self && self <= Counter::MAX
    }
}

impl fmt::Display for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.millis().0, self.0 & ((1 << LOGICAL_BITS) - 1))
    }
}

impl fmt::Debug for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A node's hybrid logical clock. One for all keys of a node, or of one of its shards.
///
/// It holds the highest counter given out or adopted. The counters of a *key* do not advance it: one client with
/// a context from a node whose clock ran ahead would otherwise carry that error to every key.
#[derive(Clone, Debug, Default)]
pub struct HybridClock {
    /// The highest counter given out or adopted.
    latest: Counter,
}

impl HybridClock {
    /// A clock that has seen nothing yet.
    pub fn new() -> HybridClock {
        HybridClock::default()
    }

    /// Advances the clock and gives a counter above every one it gave out or adopted, and not before `wall`.
    ///
    /// # Panics
    ///
    /// When counters are exhausted; see [`Counter::next`].
    pub fn tick(&mut self, wall: UnixMillis) -> Counter {
        self.latest = self.latest.next().max(Counter::at(wall));
        self.latest
    }

    /// The higher of the clock and `wall`; does not advance. What replies carry, and what expiry is judged by.
    pub fn peek(&self, wall: UnixMillis) -> Counter {
        self.latest.max(Counter::at(wall))
    }

    /// Takes notice of a counter at or below which nobody may mint here any more, however far ahead it is: later ticks are
    /// above it.
    pub fn begin_above(&mut self, floor: Counter) {
        self.latest = self.latest.max(floor.min(Counter::MAX));
    }

    /// Takes notice of another node's clock, so that later ticks are above it.
    ///
    /// `remote` is refused (`false`, nothing changes) when it is more than `drift_max_ms` ahead of `wall`: one
    /// node with a clock set to next year would otherwise take the whole cluster there, and a hybrid clock never
    /// comes back. A clock that is behind is accepted and changes nothing.
    pub fn observe(&mut self, remote: Counter, wall: UnixMillis, drift_max_ms: u64) -> bool {
        let within = remote.millis().0 <= wall.0.saturating_add(drift_max_ms) && remote <= Counter::MAX;
        if within {
            self.latest = self.latest.max(remote);
        }
        within
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: UnixMillis = UnixMillis(1_700_000_000_000);

    #[test]
    fn ticks_ascend_under_a_wall_clock_that_jumps_back() {
        let mut clock = HybridClock::new();
        let walls = [NOON.0, NOON.0 + 5, NOON.0 - 3_600_000, NOON.0 - 3_600_000, 0, NOON.0 + 5, NOON.0 + 6];
        let ticks: Vec<Counter> = walls.iter().map(|&wall| clock.tick(UnixMillis(wall))).collect();
        assert!(ticks.is_sorted_by(|a, b| a < b), "{ticks:?}");
        assert!(ticks.iter().zip(walls).all(|(tick, wall)| tick.millis().0 >= wall));
        assert_eq!(ticks[6], Counter::at(UnixMillis(NOON.0 + 6)));
    }

    #[test]
    fn a_full_logical_count_carries_into_the_milliseconds() {
        let mut clock = HybridClock::new();
        let first = clock.tick(NOON);
        for _ in 0..65_535 {
            clock.tick(NOON);
        }
        assert_eq!(clock.peek(NOON).millis(), NOON);
        assert_eq!(clock.tick(NOON), Counter::at(UnixMillis(NOON.0 + 1)));
        assert_eq!(clock.peek(NOON).0 - first.0, 65_536);
        assert_eq!(
            clock.tick(UnixMillis(NOON.0 + 1)).0,
            first.0 + 65_537,
            "ahead of the wall, still ascending"
        );
    }

    #[test]
    fn peek_does_not_advance() {
        let mut clock = HybridClock::new();
        assert_eq!(clock.peek(NOON), Counter::at(NOON));
        assert_eq!(clock.peek(UnixMillis(3)), Counter::at(UnixMillis(3)));
        let tick = clock.tick(NOON);
        assert_eq!(clock.peek(UnixMillis(3)), tick);
        assert_eq!(clock.peek(UnixMillis(NOON.0 + 9)), Counter::at(UnixMillis(NOON.0 + 9)));
    }

    #[test]
    fn a_clock_within_the_bound_is_adopted_and_one_beyond_is_not() {
        let mut clock = HybridClock::new();
        let at_the_bound = Counter(Counter::at(UnixMillis(NOON.0 + 500)).0 + 65_535);
        assert!(!clock.observe(at_the_bound.next(), NOON, 500));
        assert_eq!(clock.peek(NOON), Counter::at(NOON), "refused whole");
        assert!(clock.observe(at_the_bound, NOON, 500));
        assert_eq!(clock.tick(NOON), at_the_bound.next());
    }

    #[test]
    fn a_clock_that_is_behind_changes_nothing() {
        let mut clock = HybridClock::new();
        let tick = clock.tick(NOON);
        assert!(clock.observe(Counter(7), NOON, 500));
        assert_eq!(clock.peek(UnixMillis(0)), tick);
    }

    #[test]
    fn an_absurd_clock_is_not_adopted_even_without_a_bound() {
        let mut clock = HybridClock::new();
        assert!(!clock.observe(Counter(u64::MAX), NOON, u64::MAX));
        assert_eq!(Counter::at(UnixMillis(u64::MAX)), Counter::at(UnixMillis::MAX));
    }

    #[test]
    #[should_panic(expected = "exhausted")]
    fn there_is_no_counter_above_the_last() {
        let _ = Counter::MAX.next();
    }

    #[test]
    fn a_counter_prints_as_milliseconds_and_count() {
        assert_eq!(Counter::at(UnixMillis(12)).next().to_string(), "12.1");
    }
}
