//! A model of how tombstones and contexts are collected: by promises and watermarks.
//!
//! A few machines hold copies of one partition with two keys. Clients write, read and delete; machines crash, lose batches and
//! disks, go back to older disks, drift; messages are late, lost and come twice; the cluster changes. A seed decides
//! everything. In the end all faults stop, and then nothing acknowledged may be lost (P1), all copies are equal (P4), nothing
//! that was deleted is back (P5), and no tombstone and no superfluous entry is left (P8). Whenever a copy forgets that a value
//! was covered, no copy and no message that would be believed may have that value still.
//!
//! The rules are those of the node; each can be broken, and then some history shows it. The model is small enough for
//! millions of histories, where the simulated cluster has time for thousands.

mod cluster;
mod door;
mod history;
mod latecomers;
mod node;
mod random;
mod record;
mod rules;
mod watermarks;

use history::play;
use rules::Mistake;

/// Histories of the right protocol. `WATERMARK_HISTORIES` asks for others: how many, and from which seed on.
const HISTORIES: u64 = 5_000;
/// Histories in which a mistake has to show.
const HISTORIES_MAX: u64 = 60_000;

#[test]
fn nothing_is_lost_and_nothing_comes_back() {
    let asked = std::env::var("WATERMARK_HISTORIES").unwrap_or_default();
    let mut asked = asked.split(',').map(|number| number.parse().ok());
    let count = asked.next().flatten().unwrap_or(HISTORIES);
    let first: u64 = asked.next().flatten().unwrap_or(0);
    let (mut adopted, mut dropped, mut refused, mut cut, mut unions) = (0, 0, 0, 0, 0);
    for seed in first..first + count {
        let outcome = play(seed, None, false);
        if let Some(violation) = outcome.violation {
            let log = play(seed, None, true).log.join("\n");
            panic!("{log}\nhistory {seed}: {violation}");
        }
        adopted += outcome.counts.adopted;
        dropped += outcome.counts.dropped;
        refused += outcome.counts.refused;
        cut += outcome.counts.cut;
        unions += outcome.counts.unions;
    }
    // Without these the histories would prove nothing.
    assert!(adopted > count, "watermarks rise: {adopted} times in {count} histories");
    assert!(dropped > count / 10, "and tombstones go: {dropped} times");
    assert!(refused > count / 50, "what comes late is refused: {refused} times");
    assert!(cut > count / 1000 && unions > count / 100, "copies fill: {cut} ghosts, {unions} unions");
}

#[test]
fn every_mistake_is_found() {
    let mut missed = Vec::new();
    for (mistake, seed) in Mistake::RARE {
        let is_found = play(seed, Some(mistake), false).violation.is_some();
        missed.extend((!is_found).then_some(mistake));
    }
    let is_sought = |mistake: &Mistake| {
        let is_rare = Mistake::RARE.iter().any(|(rare, _)| rare == mistake);
        !is_rare && !Mistake::UNSEEN.contains(mistake)
    };
    for mistake in Mistake::ALL.into_iter().filter(is_sought) {
        let found = (0..HISTORIES_MAX).find(|seed| play(*seed, Some(mistake), false).violation.is_some());
        println!("{mistake:?}: {found:?}");
        missed.extend(found.is_none().then_some(mistake));
    }
    assert!(missed.is_empty(), "{missed:?} are not found in {HISTORIES_MAX} histories");
}
