//! P5: what was deleted or replaced stays away.
//!
//! In a keyspace that keeps siblings, a value that an acknowledged write covers is on no disk at the end, and in no
//! read that is sure to meet the covering write. A delete without a context covers what a read at its level is sure to
//! find. A value of which several attempts were made may have been minted twice, and only one of the two may have been
//! seen: such values are left out. So is a covering write that faults destroyed. Disks are not looked at where the copies
//! could not converge ([`convergence`](super::convergence)): a copy that fills for ever keeps what a late merge left in it,
//! and shows it to nobody.

use client::{Operation, overlaps};

use crate::{
    checkers::{lost_writes::has_value, quorum_overlap::overlap},
    history::{Acknowledgement, History, Write, WriteId, WriteKind},
    schedule::Moment,
};

/// The values that came back.
pub(crate) fn check(history: &History) -> Vec<String> {
    let mut back = Vec::new();
    for (index, write) in history.writes.iter().enumerate() {
        if !history.keeps_siblings(write.key) || write.is_foreign {
            continue;
        }
        let Some((ended, acknowledgement)) = write.acknowledged() else { continue };
        for value in covered(history, write, acknowledgement) {
            if history.writes[value.0].attempts.len() > 1 || value.0 == index {
                continue;
            }
            back.extend(on_disk(history, index, write, acknowledgement, value));
            back.extend(in_reads(history, index, acknowledgement, ended, value));
        }
    }
    back
}

/// The values that an acknowledged write covers.
fn covered(history: &History, write: &Write, by: &Acknowledgement) -> Vec<WriteId> {
    match (write.context, write.kind) {
        (Some(context), _) => history.contexts[context.0].shown.clone(),
        (None, WriteKind::Put) => Vec::new(),
        (None, WriteKind::Delete) => {
            let ids = (0..history.writes.len()).map(WriteId);
            ids.filter(|id| is_found_by_delete(history, write, by, *id)).collect()
        }
    }
}

/// Whether the read that a delete without a context begins with is sure to find a value.
fn is_found_by_delete(history: &History, delete: &Write, by: &Acknowledgement, id: WriteId) -> bool {
    let value = &history.writes[id.0];
    let (Some((ended, put)), true) = (value.acknowledged(), value.key == delete.key) else { return false };
    let Some(version) = put.version else { return false };
    let copies = history.copies(delete.key, delete.n);
    let asked = history.required(delete.level, Operation::Read, &copies, by.coordinator);
    let written = history.required(value.level, Operation::Write, &copies, put.coordinator);
    !history.beyond_the_promise
        && value.kind == WriteKind::Put
        && value.expires_ms.is_none()
        // Those that stood in for replicas are not asked.
        && put.stood_in == 0
        && ended < delete.began()
        && copies == history.copies(value.key, value.n)
        && asked.zip(written).is_some_and(|(asked, written)| overlaps(&copies, &written, &asked))
        && !history.unnoticed(value.key, version, delete.began(), delete.took_effect_by())
        && !history.lost_by_replicas(value.key, value.n, version, value.durability, Moment::NEVER)
}

/// Whether faults destroyed a covering write. A delete that found nothing left no version of its own: what it found
/// gone may come back if anything of the key was destroyed.
fn is_lost(history: &History, write: &Write, by: &Acknowledgement) -> bool {
    match by.version {
        Some(version) => history.lost_by_fault(write.key, write.n, version, write.durability, Moment::NEVER),
        None => history.losses.iter().any(|loss| loss.key == write.key),
    }
}

/// Disks that hold a covered value at the end.
fn on_disk(
    history: &History,
    index: usize,
    write: &Write,
    by: &Acknowledgement,
    value: WriteId,
) -> Option<String> {
    if history.is_stuck() {
        return None;
    }
    let finals = history.finals.get(write.key.0)?;
    // Whoever is no replica may hold what it was once given; nobody asks it.
    let holders = history.keepers[write.key.0].iter().filter(|node| {
        finals.get(node).and_then(Option::as_ref).is_some_and(|record| has_value(record, value))
    });
    let holder = holders.min()?;
    (!is_lost(history, write, by))
        .then(|| format!("{holder} holds {value:?}, which acknowledged write {index} covers"))
}

/// Reads that show a covered value although they met the covering write.
fn in_reads<'a>(
    history: &'a History,
    index: usize,
    by: &'a Acknowledgement,
    ended: Moment,
    value: WriteId,
) -> impl Iterator<Item = String> + 'a {
    let write = &history.writes[index];
    let later = history.reads.iter().enumerate().filter(move |(_, read)| {
        !history.beyond_the_promise
            && read.key == write.key
            && read.sent > ended
            && overlap(history, write, by, read)
    });
    later.filter_map(move |(number, read)| {
        let shows =
            read.found.as_ref().is_some_and(|found| found.values.iter().any(|(shown, _)| *shown == value));
        let is_excused = || {
            let lost =
                |version| history.lost_by_replicas(read.key, read.n, version, write.durability, read.ended);
            by.version.map_or_else(|| is_lost(history, write, by), lost)
                || by
                    .version
                    .is_some_and(|version| history.unnoticed(read.key, version, read.sent, read.ended))
        };
        (shows && !is_excused()).then(|| {
            format!("read {number} shows {value:?}, which write {index}, acknowledged at {ended}, covers")
        })
    })
}

#[cfg(test)]
mod tests {
    use ring::ConflictPolicy;

    use super::*;
    use crate::checkers::story::Story;

    #[test]
    fn a_covered_value_stays_away() {
        let mut story = Story::new(ConflictPolicy::Siblings);
        let a = story.put(1, 2);
        let context = story.context(&[a]);
        let delete = story.put_with(3, 4, context);
        story.history.writes[delete.0].kind = WriteKind::Delete;
        story.ends_with(&[&[], &[], &[]]);
        assert!(check(&story.history).is_empty());
        story.ends_with(&[&[], &[a], &[]]);
        story.read(5, 6, &[a]);
        assert_eq!(check(&story.history).len(), 2, "on a disk and in a read");
    }

    #[test]
    fn a_delete_without_a_context_deletes_what_its_level_finds() {
        let mut story = Story::new(ConflictPolicy::Siblings);
        let a = story.put(1, 2);
        let delete = story.put(3, 4);
        story.history.writes[delete.0].kind = WriteKind::Delete;
        story.ends_with(&[&[a], &[a], &[a]]);
        assert_eq!(check(&story.history).len(), 1);
        story.history.writes[a.0].level = client::Level::One;
        assert!(check(&story.history).is_empty(), "the levels do not overlap");
    }
}
