//! A node whose clock is far from its peers' dates no write.
//!
//! Looked at are writes that need more than one replica, so that their coordinator must have heard a peer; in runs in which
//! nodes mind their clocks; while all other clocks have been right from the beginning. Then a write that was sent while its
//! coordinator's clock had been off by seconds more than the bound (a word that is late looks like a clock that is), and
//! ended before the clock was set again, must not have been acknowledged by it.

use client::Level;
use ring::NodeId;

use crate::{
    history::{ClockSet, History, Outcome},
    schedule::Moment,
};

/// How far other clocks may be off, in milliseconds: less than any bound that is drawn.
const RIGHT_MS_MAX: u64 = 100;
/// How much more than the bound a clock has to be off to be off for sure: longer than any message takes, or waits for a
/// process that stands still.
const SURELY_MS: u64 = 5000;

/// The writes that were dated by a clock that is off.
pub(crate) fn check(history: &History) -> Vec<String> {
    let Some(bound_ms) = history.clock_drift_max_ms else { return Vec::new() };
    let mut dated = Vec::new();
    for (index, write) in history.writes.iter().enumerate() {
        let is_shared = history.replicas(write.key, write.n).count() > 1;
        if !is_shared || !matches!(write.level, Level::Quorum | Level::All) {
            continue;
        }
        for attempt in &write.attempts {
            let Outcome::Acknowledged(by) = &attempt.outcome else { continue };
            // A delete that found nothing dates nothing; and what was forwarded was sent before it was there.
            if by.version.is_none()
                || by.coordinator != attempt.node
                || !others_are_right(history, by.coordinator)
            {
                continue;
            }
            let before = last_set(history, by.coordinator, attempt.sent);
            let after = last_set(history, by.coordinator, attempt.ended);
            if before == after && before.is_some_and(|set| set.skew_ms.unsigned_abs() > bound_ms + SURELY_MS)
            {
                dated.push(format!(
                    "write {index} is dated by {}, whose clock is off: {before:?}",
                    by.coordinator
                ));
            }
        }
    }
    dated
}

fn last_set(history: &History, node: NodeId, until: Moment) -> Option<&ClockSet> {
    history.clocks.iter().rfind(|set| set.node == node && set.at <= until)
}

fn others_are_right(history: &History, node: NodeId) -> bool {
    let others = history.clocks.iter().filter(|set| set.node != node);
    others.map(|set| set.skew_ms.unsigned_abs()).all(|off| off <= RIGHT_MS_MAX)
}

#[cfg(test)]
mod tests {
    use ring::ConflictPolicy;

    use super::*;
    use crate::checkers::story::Story;

    #[test]
    fn a_write_by_a_clock_that_is_off_is_found() {
        let mut story = Story::new(ConflictPolicy::LastWriteWins);
        story.put(5, 6);
        story.history.clock_drift_max_ms = Some(500);
        assert!(check(&story.history).is_empty());
        let set = |node, at, skew_ms| ClockSet { node: NodeId(node), at: Moment(at), skew_ms };
        story.history.clocks = vec![set(1, 0, 0), set(2, 0, 90), set(1, 4, -5501)];
        assert_eq!(check(&story.history).len(), 1);
        story.history.clocks[2].at = Moment(6);
        assert!(check(&story.history).is_empty(), "it was right when the write was sent");
        story.history.clocks[2] = set(1, 4, 5400);
        assert!(check(&story.history).is_empty(), "not far enough to be sure that it was known");
        story.history.clocks[2] = set(1, 4, 9000);
        story.history.clocks[1].skew_ms = 9000;
        assert!(check(&story.history).is_empty(), "it agrees with another");
        story.history.clocks[1].skew_ms = 0;
        story.history.clock_drift_max_ms = None;
        assert!(check(&story.history).is_empty(), "nodes do not mind");
    }
}
