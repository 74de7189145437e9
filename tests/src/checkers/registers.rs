//! Blocking reads never go back.
//!
//! A blocking read of r of n copies answers once n - r + 1 of them hold durably what it says, so a later read of at
//! least as many of the same copies meets one of them: what was shown is shown again, or covered. Excused are versions
//! that damage to disks destroyed everywhere, and disks that went back in time and were still believed. Levels that
//! count by datacenter are left out: they overlap only within one.

use client::{Operation, Required};

use crate::{
    checkers::{highest, is_as_new},
    history::{Found, History, Read, WriteKind},
};
use ring::Durability;

/// The reads that went back behind an earlier one.
pub(crate) fn check(history: &History) -> Vec<String> {
    if history.beyond_the_promise {
        return Vec::new();
    }
    let mut gone = Vec::new();
    for (first, earlier) in history.reads.iter().enumerate().filter(|(_, read)| read.is_blocking) {
        for (second, later) in history.reads.iter().enumerate().skip(first + 1) {
            if later.key != earlier.key || later.sent <= earlier.ended || later.n != earlier.n {
                continue;
            }
            let (Some(before), Some(after)) = (&earlier.found, &later.found) else { continue };
            let asked = |read, found| asked(history, read, found);
            let (Some(few), Some(many)) = (asked(earlier, before), asked(later, after)) else { continue };
            if many >= few
                && let Some(what) = went_back(history, before, later, after)
            {
                gone.push(format!("read {second} goes back behind blocking read {first}: {what}"));
            }
        }
    }
    gone
}

/// How many copies a read asked, if it asked them wherever they are.
fn asked(history: &History, read: &Read, found: &Found) -> Option<u8> {
    let copies = history.copies(read.key, read.n);
    match history.required(read.level, Operation::Read, &copies, found.coordinator)? {
        Required::Anywhere(count) => Some(count),
        Required::In(_) => None,
    }
}

/// What an earlier read showed and a later one does not, if anything.
fn went_back(history: &History, before: &Found, later: &Read, after: &Found) -> Option<String> {
    let is_excused = |version| {
        history.lost_by_replicas(later.key, later.n, version, Durability::Disk, later.ended)
            || history.unnoticed(later.key, version, later.sent, later.ended)
    };
    if history.keeps_siblings(later.key) {
        let missing = before.values.iter().find(|(write, version)| {
            !after.values.iter().any(|(shown, _)| shown == write)
                && !history.may_be_missing(*write, later.ended)
                && !is_excused(*version)
        });
        missing.map(|(write, version)| format!("{write:?} ({version:?}) is missing"))
    } else {
        let (was, is) = (highest(before)?, highest(after));
        let is_new = is_as_new(history, later.key, is, was, later.ended);
        debug_assert!(before.values.iter().all(|(id, _)| history.writes[id.0].kind == WriteKind::Put));
        (!is_new && !is_excused(was)).then(|| format!("{was:?}, then {is:?}"))
    }
}

#[cfg(test)]
mod tests {
    use client::Level;
    use ring::ConflictPolicy;

    use super::*;
    use crate::checkers::story::Story;

    #[test]
    fn what_a_blocking_read_showed_is_shown_again() {
        let mut story = Story::new(ConflictPolicy::Siblings);
        let a = story.put(1, 20);
        story.in_doubt(a);
        story.read(3, 4, &[a]);
        story.read(3, 9, &[]);
        story.read(5, 6, &[a]);
        assert!(check(&story.history).is_empty());
        let last = story.read(7, 8, &[]);
        assert_eq!(check(&story.history).len(), 2, "after two reads that showed it");
        story.history.reads[last].level = Level::One;
        assert!(check(&story.history).is_empty(), "a read of fewer copies may miss it");
    }

    #[test]
    fn versions_shown_by_blocking_reads_never_fall() {
        let mut story = Story::new(ConflictPolicy::LastWriteWins);
        let (a, b) = (story.put(1, 2), story.put(1, 20));
        let first = story.read(3, 4, &[b]);
        story.read(5, 6, &[a]);
        assert_eq!(check(&story.history).len(), 1);
        story.history.reads[first].is_blocking = false;
        assert!(check(&story.history).is_empty());
    }
}
