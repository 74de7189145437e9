//! The hash trees that a node keeps are what a scan of all that it holds would make of them: looked at whenever a process
//! ends, however, and at the end of the run.

use crate::history::History;

/// The trees that were not.
pub(crate) fn check(history: &History) -> Vec<String> {
    let wrong = history.trees_differing.iter();
    wrong.map(|(node, tree)| format!("{node} has a wrong hash tree: {tree:?}")).collect()
}

#[cfg(test)]
mod tests {
    use antientropy::{
        exchange::{TreeId, TreeKind},
        version::CopyCount,
    };
    use ring::{ConflictPolicy, KeyspaceId, NodeId, PartitionId};

    use super::*;
    use crate::checkers::story::Story;

    #[test]
    fn a_wrong_tree_is_found() {
        let mut story = Story::new(ConflictPolicy::Siblings);
        assert!(check(&story.history).is_empty());
        let kind = TreeKind { keyspace: KeyspaceId(1), copies: CopyCount::DEFAULT };
        story.history.trees_differing.push((NodeId(2), TreeId { kind, partition: PartitionId(3) }));
        assert_eq!(check(&story.history).len(), 1);
    }
}
