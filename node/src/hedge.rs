//! When to ask another replica although the one that was asked may yet answer (Dean and Barroso, "The Tail at Scale", CACM
//! 2013): after as long as its slowest answers take of late, and for a few reads in a hundred at most.
//!
//! The delay follows each replica by itself. The budget makes sure that a cluster in which all are slow is not asked twice
//! for everything: without credit a read waits for its ordinary deadline.

use std::time::Duration;

/// The least delay: below it, timers cost more than they save.
const DELAY_MIN: Duration = Duration::from_millis(1);
/// Credit that each read brings, and that each early question takes: one read in twenty.
const CREDIT_OF_A_READ: u32 = 1;
const COST_OF_A_HEDGE: u32 = 20;
/// The most credit that is kept.
const CREDIT_MAX: u32 = 20 * COST_OF_A_HEDGE;

/// How slow one replica's answers are at their slowest.
#[derive(Debug, Default)]
pub(crate) struct SlowAnswers {
    current: Duration,
    /// The slowest of the window before; none if there was none yet.
    previous: Option<Duration>,
    count: usize,
}

/// How many questions may be asked early.
#[derive(Debug, Default)]
pub(crate) struct HedgeBudget {
    credit: u32,
}

impl SlowAnswers {
    /// An answer took so long. The slowest of the last one to two windows counts: of a hundred or two it is close to what
    /// 99 in a hundred stay under.
    pub(crate) fn sample(&mut self, took: Duration, window: usize) {
        self.current = self.current.max(took);
        self.count += 1;
        if self.count >= window {
            self.previous = Some(std::mem::take(&mut self.current));
            self.count = 0;
        }
    }

    /// How long to wait for the replica before another is asked, at most `most`, which is for one that is not known.
    pub(crate) fn delay(&self, most: Duration) -> Duration {
        let slowest = self.previous.map(|previous| previous.max(self.current));
        slowest.map_or(most, |slowest| slowest.max(DELAY_MIN).min(most))
    }
}

impl HedgeBudget {
    /// A read begins.
    pub(crate) fn read_began(&mut self) {
        self.credit = (self.credit + CREDIT_OF_A_READ).min(CREDIT_MAX);
    }

    /// Whether another replica may be asked early; it is counted as asked.
    pub(crate) fn take(&mut self) -> bool {
        let left = self.credit.checked_sub(COST_OF_A_HEDGE);
        self.credit = left.unwrap_or(self.credit);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_millis(50);

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn the_delay_is_the_slowest_of_late() {
        let mut answers = SlowAnswers::default();
        for took in 1..=99 {
            answers.sample(ms(took % 7), 100);
        }
        assert_eq!(answers.delay(MOST), MOST, "too few are known");
        answers.sample(ms(2), 100);
        assert_eq!(answers.delay(MOST), ms(6));
        answers.sample(ms(9), 100);
        assert_eq!(answers.delay(MOST), ms(9), "at once");
        (0..300).for_each(|_| answers.sample(ms(2), 100));
        assert_eq!(answers.delay(MOST), ms(2), "and that is forgotten");
        (0..300).for_each(|_| answers.sample(Duration::from_micros(80), 100));
        assert_eq!(answers.delay(MOST), DELAY_MIN);
        answers.sample(ms(400), 100);
        assert_eq!(answers.delay(MOST), MOST);
    }

    #[test]
    fn one_read_in_twenty_may_ask_early() {
        let mut budget = HedgeBudget::default();
        assert!(!budget.take());
        let mut hedges = 0;
        for _ in 0..10_000 {
            budget.read_began();
            hedges += u32::from(budget.take());
        }
        assert_eq!(hedges, 500);
        (0..10_000).for_each(|_| budget.read_began());
        assert_eq!((0..100).filter(|_| budget.take()).count(), 20, "credit is bounded");
    }
}
