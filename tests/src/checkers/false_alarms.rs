//! P6, the other way round: a store that did not go back in time is not taken for one that did. (One that could not read what
//! it had promised, when a process began, has forgotten it as much as one that did.)
//!
//! A false alarm breaks no promise about data: the copies fill, and are whole again after some exchanges. But until
//! then they answer no reads, so a cluster that is wrong about this is down when it need not be.

use crate::history::History;

/// The nodes that were told wrongly that their store had gone back.
pub(crate) fn check(history: &History) -> Vec<String> {
    history.false_alarms.iter().map(|node| format!("{node} was told that its store went back")).collect()
}

#[cfg(test)]
mod tests {
    use ring::{ConflictPolicy, NodeId};

    use super::*;
    use crate::checkers::story::Story;

    #[test]
    fn a_false_alarm_is_found() {
        let mut story = Story::new(ConflictPolicy::Siblings);
        assert!(check(&story.history).is_empty());
        story.history.false_alarms.push(NodeId(2));
        assert_eq!(check(&story.history).len(), 1);
    }
}
