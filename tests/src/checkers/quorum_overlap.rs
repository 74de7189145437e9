//! P2: a read that starts after a write was acknowledged, over the same copies and with R + W > N, shows it or what
//! came after it.
//!
//! A value may be missing if a write that may have happened before the read ended carried a context shown with it, or
//! if it had an expiry. A last-write-wins read shows a version at least as high. Excused are versions that faults
//! destroyed on all of the first n, and those that a disk forgot which had gone back in time and was still believed
//! during the read ([`History::unnoticed`]). Runs that go beyond the promises are not checked.

use client::{Operation, overlaps};

use crate::{
    checkers::{highest, is_as_new},
    history::{Acknowledgement, History, Read, Write, WriteId, WriteKind},
};

/// The reads that miss an acknowledged write.
pub(crate) fn check(history: &History) -> Vec<String> {
    if history.beyond_the_promise {
        return Vec::new();
    }
    let mut missed = Vec::new();
    for (number, read) in history.reads.iter().enumerate() {
        for (index, write) in history.writes.iter().enumerate().filter(|(_, write)| write.key == read.key) {
            let before = write.acknowledgements().filter(|(ended, _)| *ended < read.sent);
            for (_, acknowledgement) in before {
                if overlap(history, write, acknowledgement, read)
                    && !shows(history, WriteId(index), acknowledgement, read)
                {
                    let (key, sent, version) = (read.key, read.sent, acknowledgement.version);
                    missed.push(format!(
                        "read {number} of {key:?} at {sent} misses write {index} ({version:?})"
                    ));
                }
            }
        }
    }
    missed
}

/// Whether a read is sure to ask a replica that acknowledged a write.
pub(crate) fn overlap(history: &History, write: &Write, by: &Acknowledgement, read: &Read) -> bool {
    let Some(found) = &read.found else { return false };
    let copies = history.copies(read.key, read.n);
    // Those that stood in for replicas are not asked by reads.
    if by.stood_in > 0 || copies != history.copies(write.key, write.n) {
        return false;
    }
    let written = history.required(write.level, Operation::Write, &copies, by.coordinator);
    let asked = history.required(read.level, Operation::Read, &copies, found.coordinator);
    written.zip(asked).is_some_and(|(written, asked)| overlaps(&copies, &written, &asked))
}

/// Whether a read shows a write or what came after it, or is excused.
fn shows(history: &History, id: WriteId, by: &Acknowledgement, read: &Read) -> bool {
    let write = &history.writes[id.0];
    let (Some(version), Some(found)) = (by.version, &read.found) else { return true };
    let is_shown = match (history.keeps_siblings(read.key), write.kind) {
        (true, WriteKind::Delete) => true,
        (true, WriteKind::Put) => {
            found.values.iter().any(|(shown, _)| *shown == id) || history.may_be_missing(id, read.ended)
        }
        (false, _) => is_as_new(history, read.key, highest(found), version, read.ended),
    };
    is_shown
        || history.lost_by_replicas(read.key, read.n, version, write.durability, read.ended)
        || history.unnoticed(read.key, version, read.sent, read.ended)
}

#[cfg(test)]
mod tests {
    use client::Level;
    use ring::ConflictPolicy;

    use super::*;
    use crate::{checkers::story::Story, schedule::Moment};

    #[test]
    fn a_quorum_read_after_a_quorum_write_shows_it() {
        let mut story = Story::new(ConflictPolicy::Siblings);
        let a = story.put(1, 2);
        story.read(3, 4, &[a]);
        story.read(1, 4, &[]);
        assert!(check(&story.history).is_empty(), "a read that began before the acknowledgement may miss it");
        story.read(3, 4, &[]);
        assert_eq!(check(&story.history).len(), 1);
    }

    #[test]
    fn levels_that_do_not_overlap_promise_nothing() {
        let mut story = Story::new(ConflictPolicy::Siblings);
        story.put(1, 2);
        let read = story.read(3, 4, &[]);
        story.history.reads[read].level = Level::One;
        assert!(check(&story.history).is_empty());
        story.history.writes[0].level = Level::All;
        assert_eq!(check(&story.history).len(), 1);
        story.history.reads[read].n = Some(2);
        assert!(check(&story.history).is_empty(), "quorums of different copies");
    }

    #[test]
    fn a_write_for_which_others_stood_in_may_be_missed() {
        let mut story = Story::new(ConflictPolicy::Siblings);
        let a = story.put(1, 2);
        story.read(3, 4, &[]);
        assert_eq!(check(&story.history).len(), 1);
        story.stood_in(a, 1);
        assert!(check(&story.history).is_empty());
    }

    #[test]
    fn a_covered_value_may_be_missing_once_the_covering_write_has_begun() {
        let mut story = Story::new(ConflictPolicy::Siblings);
        let a = story.put(1, 2);
        let context = story.context(&[a]);
        story.put_with(5, 9, context);
        story.read(6, 7, &[]);
        assert!(check(&story.history).is_empty());
        story.read(3, 4, &[]);
        assert_eq!(check(&story.history).len(), 1, "it had not begun yet");
    }

    #[test]
    fn a_last_write_wins_read_shows_no_lower_version() {
        let mut story = Story::new(ConflictPolicy::LastWriteWins);
        let (a, b) = (story.put(1, 2), story.put(3, 4));
        story.read(5, 6, &[b]);
        assert!(check(&story.history).is_empty());
        story.read(5, 6, &[a]);
        story.read(5, 6, &[]);
        assert_eq!(check(&story.history).len(), 3, "one misses b, the other both");
    }

    #[test]
    fn a_disk_that_went_back_excuses_reads_until_it_is_noticed() {
        let mut story = Story::new(ConflictPolicy::Siblings);
        let a = story.put(1, 2);
        story.read(5, 6, &[]);
        story.goes_back(3, Some(4), &[a]);
        assert_eq!(check(&story.history).len(), 1);
        story.history.regressions[0].noticed = Some(Moment(5));
        assert!(check(&story.history).is_empty());
    }
}
