//! A context of another key is refused: taken at its word it would erase values that its bearer never saw.

use crate::history::History;

/// The writes that were acknowledged with a context of another key.
pub(crate) fn check(history: &History) -> Vec<String> {
    let writes = history.writes.iter().enumerate();
    let taken = writes.filter(|(_, write)| write.is_foreign && write.acknowledged().is_some());
    taken.map(|(index, _)| format!("write {index} was acknowledged with a context of another key")).collect()
}

#[cfg(test)]
mod tests {
    use ring::ConflictPolicy;

    use super::*;
    use crate::checkers::story::Story;

    #[test]
    fn a_foreign_context_is_refused() {
        let mut story = Story::new(ConflictPolicy::Siblings);
        let a = story.put(1, 2);
        story.history.writes[a.0].is_foreign = true;
        assert_eq!(check(&story.history).len(), 1);
        story.refuse(a);
        assert!(check(&story.history).is_empty());
    }
}
