//! How many requests a node takes at once: as many as it answers in the time that one may wait for its turn (Little's law).
//!
//! What is above that would only make all of them slower, and time out while it is worked on. It is refused before it costs
//! anything; the client asks again later or elsewhere. How fast the node answers is the most that it did in a tenth of a
//! second of late: a disk that pauses for a moment does not lower it. A disk whose every sync takes long is no queue,
//! though: with it requests may wait for several syncs.

use std::{collections::VecDeque, time::Duration};

use crate::storage::Sequence;

/// How finely the past is remembered, and for how long.
const SLOT: Duration = Duration::from_millis(100);
const SLOTS: usize = 10;
/// So many requests are always taken: what is known of an idle node says nothing.
const ADMITTED_MIN: usize = 256;
/// Requests may wait for so many syncs, if those take longer than requests may wait otherwise.
const SYNCS: u32 = 4;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Admission {
    under_way: usize,
    /// When the present slot began.
    began: Duration,
    present: Slot,
    past: [Slot; SLOTS],
    next: usize,
    /// Batches that somebody waits for, and since when they are on their way.
    unsynced: VecDeque<(Sequence, Duration)>,
}

/// What happened in a tenth of a second.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    answered: u32,
    fastest_sync: Option<Duration>,
}

impl Admission {
    /// How many more requests can be taken, where each may wait for `wait` and at most `most` are taken at all.
    pub(crate) fn room(&mut self, now: Duration, wait: Duration, most: usize) -> usize {
        self.catch_up(now);
        self.limit(wait).max(ADMITTED_MIN).min(most).saturating_sub(self.under_way)
    }

    /// A request has come; it is answered in any case.
    pub(crate) fn came(&mut self) {
        self.under_way += 1;
    }

    /// A request was answered, by more than a refusal or not.
    pub(crate) fn answered(&mut self, is_done: bool) {
        self.under_way = self.under_way.saturating_sub(1);
        self.present.answered += u32::from(is_done);
    }

    /// How many requests are not answered.
    pub(crate) fn under_way(&self) -> usize {
        self.under_way
    }

    /// A batch that somebody waits for is on its way to the disk.
    pub(crate) fn sealed(&mut self, now: Duration, sequence: Sequence) {
        self.unsynced.push_back((sequence, now));
    }

    /// Batches through this one have come back, synced or not.
    pub(crate) fn came_back(&mut self, now: Duration, sequence: Sequence) {
        while let Some((_, since)) = self.unsynced.pop_front_if(|(batch, _)| *batch <= sequence) {
            let took = now.saturating_sub(since);
            let fastest = &mut self.present.fastest_sync;
            *fastest = Some(fastest.map_or(took, |fastest| fastest.min(took)));
        }
    }

    /// As many as are answered while one waits.
    fn limit(&self, wait: Duration) -> usize {
        let slots = || self.past.iter().chain([&self.present]);
        let answered = slots().map(|slot| slot.answered).max().unwrap_or(0);
        let sync = slots().filter_map(|slot| slot.fastest_sync).min().unwrap_or_default();
        let wait = wait.max(sync * SYNCS);
        let limit = u128::from(answered) * wait.as_micros() / SLOT.as_micros();
        usize::try_from(limit).unwrap_or(usize::MAX)
    }

    /// Goes on to the slot that is present now.
    fn catch_up(&mut self, now: Duration) {
        for _ in 0..SLOTS {
            if now < self.began + SLOT {
                return;
            }
            self.past[self.next] = std::mem::take(&mut self.present);
            self.next = (self.next + 1) % SLOTS;
            self.began += SLOT;
        }
        // All that is remembered is older.
        if now >= self.began + SLOT {
            self.past = [Slot::default(); SLOTS];
            self.began = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_millis(200);

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    /// As many as are admitted at this time, all at once.
    fn admitted(admission: &mut Admission, now: Duration) -> usize {
        let mut count = 0;
        while admission.room(now, WAIT, 100_000) > 0 {
            admission.came();
            count += 1;
        }
        (0..count).for_each(|_| admission.answered(false));
        assert_eq!(admission.room(now, WAIT, 100_000), count);
        count
    }

    fn answer(admission: &mut Admission, count: usize) {
        for _ in 0..count {
            admission.came();
            admission.answered(true);
        }
    }

    #[test]
    fn as_many_are_admitted_as_are_answered_while_one_waits() {
        let mut admission = Admission::default();
        assert_eq!(admitted(&mut admission, ms(0)), ADMITTED_MIN);
        for slot in 0..20 {
            assert!(admission.room(ms(slot * 100), WAIT, 100_000) > 0);
            answer(&mut admission, 1000);
        }
        assert_eq!(admitted(&mut admission, ms(2000)), 2000, "1,000 in 100 ms, for 200 ms");
        assert_eq!(admitted(&mut admission, ms(2900)), 2000, "the disk pauses");
        assert_eq!(admitted(&mut admission, ms(3100)), ADMITTED_MIN, "for long");
    }

    #[test]
    fn a_burst_raises_the_limit_at_once() {
        let mut admission = Admission::default();
        assert!(admission.room(ms(0), WAIT, 100_000) > 0);
        answer(&mut admission, 500);
        assert_eq!(admitted(&mut admission, ms(10)), 1000);
    }

    #[test]
    fn slow_syncs_are_no_queue() {
        let mut admission = Admission::default();
        assert!(admission.room(ms(0), WAIT, 100_000) > 0);
        answer(&mut admission, 300);
        admission.sealed(ms(0), Sequence(1));
        admission.sealed(ms(700), Sequence(2));
        admission.came_back(ms(900), Sequence(2));
        assert_eq!(admitted(&mut admission, ms(910)), 300 * 8);
    }

    #[test]
    fn no_more_than_the_most_are_admitted() {
        let mut admission = Admission::default();
        assert!(admission.room(ms(0), WAIT, 3) > 0);
        (0..3).for_each(|_| admission.came());
        assert_eq!(admission.room(ms(0), WAIT, 3), 0);
        admission.answered(true);
        assert!(admission.room(ms(0), WAIT, 3) > 0);
        admission.came();
        assert_eq!(admission.room(ms(0), WAIT, 3), 0);
    }

    #[test]
    fn what_is_long_ago_is_forgotten() {
        let mut admission = Admission::default();
        answer(&mut admission, 5000);
        assert_eq!(admitted(&mut admission, ms(50)), 10_000);
        assert_eq!(admitted(&mut admission, Duration::from_secs(100)), ADMITTED_MIN);
        answer(&mut admission, 1000);
        assert_eq!(admitted(&mut admission, Duration::from_secs(100) + ms(150)), 2000);
    }
}
