//! P4: when faults stop, all copies become whole and all replicas of every key identical, on their disks, within a
//! bounded time without client traffic.
//!
//! Excused are runs beyond the promises in which no majority of the members can vote about documents any more: then
//! nobody can record the stores that replaced the lost ones.

use crate::history::{Ending, History};

/// Why the run did not converge.
pub(crate) fn check(history: &History) -> Vec<String> {
    if history.is_stuck() {
        return Vec::new();
    }
    match &history.ending {
        Ending::Running | Ending::Converged { .. } => Vec::new(),
        Ending::Diverged { why } => vec![why.clone()],
    }
}

#[cfg(test)]
mod tests {
    use ring::ConflictPolicy;

    use super::*;
    use crate::checkers::story::Story;

    #[test]
    fn a_run_that_did_not_converge_is_found() {
        let mut story = Story::new(ConflictPolicy::Siblings);
        assert!(check(&story.history).is_empty());
        story.history.ending = Ending::Diverged { why: "node-1 and node-2 differ".to_owned() };
        assert_eq!(check(&story.history).len(), 1);
        story.history.electorate_is_lost = true;
        assert_eq!(check(&story.history).len(), 1, "that must not happen");
        story.history.beyond_the_promise = true;
        assert!(check(&story.history).is_empty());
    }
}
