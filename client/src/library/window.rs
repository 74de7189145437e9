//! How many requests a client keeps under way at a node that has too much to do.
//!
//! A refusal is cheap for a node, and not free: one that is sent all that it cannot take is busy with refusing. So a
//! client that is refused holds back what is beyond what the node took of late, and refuses that itself. As with
//! congestion windows (Chiu and Jain, "Analysis of the Increase and Decrease Algorithms for Congestion Avoidance", 1989),
//! each refusal makes the window smaller, and each round of answers makes it larger by a few, so that clients share a node
//! and find out when it can take more. A node that has refused nothing for a while is sent everything again.

use std::time::Duration;

use tokio::time::Instant;

use crate::Limit;

/// How long a node is held back from after its last refusal.
const HELD_FOR: Duration = Duration::from_secs(1);
/// How long another node is asked rather than one that has just refused, even if it has room.
const AVOIDED_FOR: Duration = Duration::from_millis(100);
/// So many requests at once are always sent.
const SIZE_MIN: f64 = 16.0;
/// By how much a window grows while as many answers come as it has requests.
const GROWTH: f64 = 16.0;

/// See the module's documentation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    size: f64,
    /// The last refusal, and why it was one; none if there was none yet.
    refused: Option<(Instant, Limit)>,
}

impl Window {
    /// Nothing is held back.
    pub(crate) const OPEN: Window = Window { size: 0.0, refused: None };

    /// Of the requests that are `under_way`, this one among them, one was refused.
    pub(crate) fn refused(&mut self, now: Instant, under_way: u32, why: Limit) {
        if self.held(now).is_none() {
            self.size = f64::from(under_way);
        }
        self.size = (self.size - 1.0).max(SIZE_MIN);
        self.refused = Some((now, why));
    }

    /// Of the requests that are `under_way`, this one among them, one was answered. A window that is hardly used does not
    /// grow: nothing is known of what the node would take.
    pub(crate) fn answered(&mut self, now: Instant, under_way: u32) {
        if self.held(now).is_some() && f64::from(under_way) * 2.0 >= self.size {
            self.size += GROWTH / self.size;
        }
    }

    /// Why the node refused a request lately, if it did.
    fn held(&self, now: Instant) -> Option<Limit> {
        let (at, why) = self.refused?;
        (now < at + HELD_FOR).then_some(why)
    }

    /// Whether the node has refused a request just now.
    pub(crate) fn is_avoided(&self, now: Instant) -> bool {
        self.refused.is_some_and(|(at, _)| now < at + AVOIDED_FOR)
    }

    /// Why no further request is sent while so many are under way; none if there is room for it.
    pub(crate) fn full(&self, now: Instant, under_way: u32) -> Option<Limit> {
        self.held(now).filter(|_| f64::from(under_way) >= self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node that takes so many requests at once, and a client that would send any number, through so many rounds: how many
    /// are taken and refused in the last one.
    fn rounds(window: &mut Window, now: Instant, taken_max: u32, offered: u32, count: u32) -> (u32, u32) {
        let mut outcome = (0, 0);
        for _ in 0..count {
            let mut sent = 0;
            while sent < offered && window.full(now, sent).is_none() {
                sent += 1;
            }
            let taken = sent.min(taken_max);
            (0..sent - taken).for_each(|refused| window.refused(now, sent - refused, Limit::Requests));
            (0..taken).for_each(|answered| window.answered(now, taken - answered));
            outcome = (taken, sent - taken);
        }
        outcome
    }

    #[test]
    fn what_a_node_would_refuse_is_held_back() {
        let (mut window, now) = (Window::OPEN, Instant::now());
        assert_eq!(rounds(&mut window, now, 500, 10_000, 1), (500, 9500), "nothing was known");
        let (taken, refused) = rounds(&mut window, now, 500, 10_000, 20);
        assert!(taken >= 490 && refused <= 16, "{taken} taken, {refused} refused");
        let (taken, refused) = rounds(&mut window, now, 800, 10_000, 60);
        assert!(taken >= 790 && refused <= 16, "{taken} taken, {refused} refused, of a node that takes more");
        let (taken, refused) = rounds(&mut window, now, 0, 10_000, 1000);
        assert_eq!((taken, refused), (0, 16), "of one that takes none");
    }

    #[test]
    fn a_node_that_has_refused_nothing_for_a_while_is_sent_everything() {
        let (mut window, now) = (Window::OPEN, Instant::now());
        window.refused(now, 100, Limit::Unsynced);
        assert_eq!(window.full(now, 99), Some(Limit::Unsynced));
        assert_eq!(window.full(now, 98), None);
        assert_eq!(window.full(now + HELD_FOR, 10_000), None);
        window.refused(now + HELD_FOR, 1000, Limit::Requests);
        assert_eq!(window.full(now + HELD_FOR, 998), None, "what was known before is forgotten");
    }

    #[test]
    fn a_window_that_is_hardly_used_does_not_grow() {
        let (mut window, now) = (Window::OPEN, Instant::now());
        window.refused(now, 101, Limit::Requests);
        (0..10_000).for_each(|_| window.answered(now, 49));
        assert_eq!(window.full(now, 100), Some(Limit::Requests));
        (0..1000).for_each(|_| window.answered(now, 60));
        assert_eq!(window.full(now, 110), None);
    }
}
