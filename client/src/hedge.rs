//! When to ask another replica although the one that was asked may yet answer (Dean and Barroso, "The Tail at Scale", CACM
//! 2013): after as long as its slowest answers take of late, and for a few reads in a hundred at most.
//!
//! A coordinator does so with replicas, a client with coordinators. The delay follows each node by itself. The budget
//! makes sure that a cluster in which all are slow is not asked twice for everything: without credit one waits for the
//! longest delay.

use std::time::Duration;

/// Credit that each question brings, and that each early one takes: one in twenty.
const CREDIT_OF_A_QUESTION: u32 = 1;
const COST_OF_A_HEDGE: u32 = 20;

/// How slow one node's answers are at their slowest.
#[derive(Clone, Copy, Debug, Default)]
pub struct SlowAnswers {
    current: Duration,
    /// The slowest of the window before; none if there was none yet.
    previous: Option<Duration>,
    count: usize,
}

/// How many questions may be asked early.
#[derive(Clone, Copy, Debug)]
pub struct HedgeBudget {
    credit: u32,
    credit_max: u32,
}

impl SlowAnswers {
    /// An answer took so long. The slowest of the last one to two windows counts: of a hundred or two it is close to what
    /// 99 in a hundred stay under.
    pub fn sample(&mut self, took: Duration, window: usize) {
        self.current = self.current.max(took);
        self.count += 1;
        if self.count >= window {
            self.previous = Some(std::mem::take(&mut self.current));
            self.count = 0;
        }
    }

    /// The slowest of late; none if too few are known.
    #[must_use]
    pub fn slowest(&self) -> Option<Duration> {
        self.previous.map(|previous| previous.max(self.current))
    }
}

impl HedgeBudget {
    /// No credit yet, and at most so many early questions in a row.
    #[must_use]
    pub fn new(burst: u32) -> HedgeBudget {
        HedgeBudget { credit: 0, credit_max: burst * COST_OF_A_HEDGE }
    }

    /// The same with all the credit that there can be.
    #[must_use]
    pub fn full(burst: u32) -> HedgeBudget {
        let budget = HedgeBudget::new(burst);
        HedgeBudget { credit: budget.credit_max, ..budget }
    }

    /// Something is asked.
    pub fn asked(&mut self) {
        self.credit = (self.credit + CREDIT_OF_A_QUESTION).min(self.credit_max);
    }

    /// Whether another may be asked early; it is counted as asked.
    pub fn take(&mut self) -> bool {
        let left = self.credit.checked_sub(COST_OF_A_HEDGE);
        self.credit = left.unwrap_or(self.credit);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn the_slowest_of_late_is_known() {
        let mut answers = SlowAnswers::default();
        for took in 1..=99 {
            answers.sample(ms(took % 7), 100);
        }
        assert_eq!(answers.slowest(), None, "too few are known");
        answers.sample(ms(2), 100);
        assert_eq!(answers.slowest(), Some(ms(6)));
        answers.sample(ms(9), 100);
        assert_eq!(answers.slowest(), Some(ms(9)), "at once");
        (0..300).for_each(|_| answers.sample(ms(2), 100));
        assert_eq!(answers.slowest(), Some(ms(2)), "and that is forgotten");
    }

    #[test]
    fn one_question_in_twenty_may_be_early() {
        let mut budget = HedgeBudget::new(20);
        assert!(!budget.take());
        let mut hedges = 0;
        for _ in 0..10_000 {
            budget.asked();
            hedges += u32::from(budget.take());
        }
        assert_eq!(hedges, 500);
        (0..10_000).for_each(|_| budget.asked());
        assert_eq!((0..100).filter(|_| budget.take()).count(), 20, "credit is bounded");
    }
}
