//! P1: no acknowledged write is lost.
//!
//! An acknowledged value is on every one of its replicas at the end, or a write that may have happened carried a
//! context that was shown with it. In a last-write-wins keyspace the version at the end is at least as high as every
//! acknowledged one, or nothing is left of a delete or of a value that has ended. A value with an expiry is left out: once it has ended, contexts cover it that were shown
//! without it. Excused are versions that faults destroyed everywhere ([`History::lost_by_fault`]), and nothing else.

use antientropy::version::{Record, UnixMillis};
use client::Version;
use ring::NodeId;

use crate::{
    clients::decode_value,
    history::{Attempt, Ending, History, Outcome, WriteId, WriteKind, dot},
    schedule::Moment,
};

/// The acknowledged writes that are gone.
pub(crate) fn check(history: &History) -> Vec<String> {
    let mut lost = Vec::new();
    for (index, write) in history.writes.iter().enumerate() {
        let siblings = history.keeps_siblings(write.key);
        let Some(finals) = history.finals.get(write.key.0) else { continue };
        for (_, acknowledgement) in write.acknowledgements() {
            let Some(version) = acknowledgement.version else { continue };
            let id = WriteId(index);
            let survives = |record: Option<&Record>| match (siblings, write.kind) {
                // What a delete did shows in what it deleted: see the checker of resurrections.
                (true, WriteKind::Delete) => true,
                (true, WriteKind::Put) => record.is_some_and(|record| has_value(record, id)),
                (false, _) => match record {
                    Some(record) => record.covers(dot(version)),
                    None => may_be_forgotten(history, id, version),
                },
            };
            let keepers = &history.keepers[write.key.0];
            let lacks = |node: &&NodeId| !survives(finals.get(node).and_then(Option::as_ref));
            let Some(without) = keepers.iter().find(lacks) else { continue };
            // Replicas that never became equal are another checker's business, as long as somebody has it: one of them,
            // or a node that stood in for one whose store nobody can record any more.
            let is_somewhere = finals.values().any(|record| survives(record.as_ref()));
            if matches!(history.ending, Ending::Diverged { .. }) && is_somewhere {
                continue;
            }
            let is_excused =
                history.lost_by_fault(write.key, write.n, version, write.durability, Moment::NEVER)
                    || siblings && history.may_be_missing(id, Moment::NEVER);
            if !is_excused {
                lost.push(format!("{without} lacks acknowledged {id:?} of {:?} ({version:?})", write.key));
            }
        }
    }
    lost
}

/// Whether a version of a key in which the last write wins may be gone without a trace: it, or one above it, was a delete or
/// has ended, and everybody knew.
fn may_be_forgotten(history: &History, id: WriteId, version: Version) -> bool {
    let key = history.writes[id.0].key;
    history.writes.iter().enumerate().any(|(index, write)| {
        let is_above = |attempt: &Attempt| match &attempt.outcome {
            Outcome::Acknowledged(by) => by.version.is_some_and(|known| dot(known) >= dot(version)),
            Outcome::Refused => false,
            // Of one that is in doubt nobody knows the version, also where another attempt of it was acknowledged.
            Outcome::Pending | Outcome::InDoubt => true,
        };
        write.key == key
            && (write.kind == WriteKind::Delete || write.expires_ms.is_some())
            && (index == id.0 || write.attempts.iter().any(is_above))
    })
}

/// Whether a record holds the value of a write.
pub(crate) fn has_value(record: &Record, write: WriteId) -> bool {
    record.live(UnixMillis(0)).iter().any(|(_, value)| decode_value(&value.bytes) == Some(write))
}

#[cfg(test)]
mod tests {
    use ring::{ConflictPolicy, Durability};

    use super::*;
    use crate::checkers::story::Story;

    #[test]
    fn a_value_that_nobody_covered_has_to_be_on_every_replica() {
        let mut story = Story::new(ConflictPolicy::Siblings);
        let (a, b) = (story.put(1, 2), story.put(3, 4));
        story.ends_with(&[&[a, b], &[a, b], &[a, b]]);
        assert!(check(&story.history).is_empty());
        story.ends_with(&[&[a, b], &[b], &[a, b]]);
        assert_eq!(check(&story.history).len(), 1, "one replica lacks it");
    }

    /// Seed 70013163: one copy was to be kept, a node stood in for it and could not hand over, because a majority of the
    /// stores was lost for good and nobody could record the new one.
    #[test]
    fn a_value_that_a_stand_in_cannot_hand_over_is_not_lost() {
        let mut story = Story::new(ConflictPolicy::Siblings);
        let a = story.put(1, 2);
        story.ends_with(&[&[], &[], &[], &[a]]);
        story.history.keepers[0].pop();
        assert_eq!(check(&story.history).len(), 1, "it had the time to hand over");
        story.history.ending = Ending::Diverged { why: "node-4 owes node-1 something".to_owned() };
        assert!(check(&story.history).is_empty(), "another checker says so");
        story.ends_with(&[&[], &[], &[], &[]]);
        story.history.ending = Ending::Diverged { why: "node-4 owes node-1 something".to_owned() };
        assert_eq!(check(&story.history).len(), 1);
    }

    #[test]
    fn a_value_may_go_if_a_context_shown_with_it_was_written() {
        let mut story = Story::new(ConflictPolicy::Siblings);
        let a = story.put(1, 2);
        let context = story.context(&[a]);
        let b = story.put_with(3, 4, context);
        story.ends_with(&[&[b], &[b], &[b]]);
        assert!(check(&story.history).is_empty());
        story.refuse(b);
        assert_eq!(check(&story.history).len(), 1, "a refused write covers nothing");
    }

    #[test]
    fn the_last_version_is_at_least_every_acknowledged_one() {
        let mut story = Story::new(ConflictPolicy::LastWriteWins);
        let (a, b) = (story.put(1, 2), story.put(3, 4));
        story.ends_with(&[&[b], &[b], &[b]]);
        assert!(check(&story.history).is_empty());
        story.ends_with(&[&[a], &[a], &[a]]);
        assert_eq!(check(&story.history).len(), 3 - 2);
    }

    /// Seed 5000814: a node stood still with the first attempt of a delete; the third was acknowledged long before that came.
    #[test]
    fn nothing_may_be_left_where_a_delete_happened_again_after_all() {
        let mut story = Story::new(ConflictPolicy::LastWriteWins);
        let delete = story.put(1, 2);
        story.history.writes[delete.0].kind = WriteKind::Delete;
        story.put(3, 4);
        story.ends_with(&[&[], &[], &[]]);
        assert_eq!(check(&story.history).len(), 1, "the delete was before the put");
        let attempts = &mut story.history.writes[delete.0].attempts;
        let again = Attempt { outcome: Outcome::Refused, ..attempts[0].clone() };
        attempts.push(again);
        assert_eq!(check(&story.history).len(), 1, "a refused attempt was not made");
        story.history.writes[delete.0].attempts[1].outcome = Outcome::InDoubt;
        assert!(check(&story.history).is_empty());
    }

    #[test]
    fn what_a_fault_destroyed_everywhere_is_excused_for_its_durability() {
        let mut story = Story::new(ConflictPolicy::Siblings);
        let a = story.put(1, 2);
        story.ends_with(&[&[], &[], &[]]);
        story.loses(5, Durability::Memory, &[a], &[]);
        assert_eq!(check(&story.history).len(), 1, "a crash must not lose what was synced");
        story.loses(6, Durability::Disk, &[a], &[&[a]]);
        assert_eq!(check(&story.history).len(), 1, "another disk had it");
        story.loses(7, Durability::Disk, &[a], &[&[]]);
        assert!(check(&story.history).is_empty());
    }
}
