//! A value that has ended is not read.
//!
//! Reads leave a value out from its expiry on, by the coordinator's hybrid clock, which is never behind its wall clock.
//! Where all clocks are right, a read that was sent after the expiry therefore does not show the value. Where they are
//! not, nothing is checked; and the other checkers let any value with an expiry be missing from a read.

use crate::history::History;

/// The reads that show what has ended.
pub(crate) fn check(history: &History) -> Vec<String> {
    if !history.clocks_are_right {
        return Vec::new();
    }
    let mut late = Vec::new();
    for (number, read) in history.reads.iter().enumerate() {
        for (id, _) in read.found.iter().flat_map(|found| &found.values) {
            let ended = history.writes[id.0].expires_ms.is_some_and(|expires| expires <= read.sent.wall_ms());
            if ended {
                late.push(format!("read {number}, sent at {}, shows {id:?}, which had ended", read.sent));
            }
        }
    }
    late
}

#[cfg(test)]
mod tests {
    use ring::ConflictPolicy;

    use super::*;
    use crate::{checkers::story::Story, schedule::Moment};

    #[test]
    fn a_value_that_has_ended_is_not_read() {
        let mut story = Story::new(ConflictPolicy::Siblings);
        let a = story.put(1, 2);
        story.read(3, 4, &[a]);
        story.history.writes[a.0].expires_ms = Some(Moment(3).wall_ms() + 1);
        assert!(check(&story.history).is_empty());
        story.history.writes[a.0].expires_ms = Some(Moment(3).wall_ms());
        assert_eq!(check(&story.history).len(), 1);
        story.history.clocks_are_right = false;
        assert!(check(&story.history).is_empty());
    }
}
