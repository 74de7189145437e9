//! P3: a definite error never takes effect.
//!
//! The value of a write whose every attempt was definitely refused is in no read and on no disk. Nor is a value that
//! nobody ever wrote. Nothing is excused.

use crate::{
    checkers::lost_writes::has_value,
    history::{History, WriteId, WriteKind},
};

/// Where refused writes show.
pub(crate) fn check(history: &History) -> Vec<String> {
    let mut shown = Vec::new();
    for (number, read) in history.reads.iter().enumerate() {
        let Some(found) = &read.found else { continue };
        if found.phantoms > 0 {
            shown.push(format!("read {number} shows a value that nobody wrote to {:?}", read.key));
        }
        let refused = found.values.iter().filter(|(id, _)| !history.writes[id.0].may_have_happened());
        shown.extend(refused.map(|(id, _)| format!("read {number} shows refused {id:?}")));
    }
    for (index, write) in history.writes.iter().enumerate() {
        if write.may_have_happened() || write.kind == WriteKind::Delete {
            continue;
        }
        for (node, record) in history.finals.get(write.key.0).into_iter().flatten() {
            if record.as_ref().is_some_and(|record| has_value(record, WriteId(index))) {
                shown.push(format!("{node} holds refused write {index}"));
            }
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use ring::ConflictPolicy;

    use super::*;
    use crate::checkers::story::Story;

    #[test]
    fn a_refused_value_shows_nowhere() {
        let mut story = Story::new(ConflictPolicy::Siblings);
        let a = story.put(1, 2);
        story.read(1, 4, &[a]);
        story.ends_with(&[&[a], &[], &[]]);
        assert!(check(&story.history).is_empty());
        story.refuse(a);
        assert_eq!(check(&story.history).len(), 2, "in a read and on a disk");
    }

    #[test]
    fn a_value_that_nobody_wrote_is_found() {
        let mut story = Story::new(ConflictPolicy::LastWriteWins);
        let read = story.read(1, 2, &[]);
        story.history.reads[read].found.as_mut().unwrap().phantoms = 1;
        assert_eq!(check(&story.history).len(), 1);
    }
}
