//! Votes about documents: each is on its voter's disk before anyone hears of it, is given by the store and the memory
//! that the document records, and only after the voter's peers have judged its store.
//!
//! Seen as each vote is cast (`ballot_box`), not in what came of it: see there.

use crate::history::History;

/// The votes that should not have been cast.
pub(crate) fn check(history: &History) -> Vec<String> {
    history.wrong_votes.clone()
}

#[cfg(test)]
mod tests {
    use ring::ConflictPolicy;

    use super::*;
    use crate::checkers::story::Story;

    #[test]
    fn a_wrong_vote_is_found() {
        let mut story = Story::new(ConflictPolicy::Siblings);
        assert!(check(&story.history).is_empty());
        story.history.wrong_votes.push("node-2 voted".to_owned());
        assert_eq!(check(&story.history), ["node-2 voted"]);
    }
}
