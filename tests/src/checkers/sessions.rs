//! Versions respect what was seen, in last-write-wins keyspaces.
//!
//! - A write whose session had seen a version gets a higher one.
//! - A write that a node coordinates after it acknowledged another write of the key gets a higher version than that,
//!   unless the node lost data in between: any data, if it did not hold the first on disk when it acknowledged.

use crate::history::{Acknowledgement, History, KeyId};
use crate::schedule::Moment;

/// The versions that are too low.
pub(crate) fn check(history: &History) -> Vec<String> {
    let mut low = Vec::new();
    for (index, write) in history.writes.iter().enumerate() {
        if history.keeps_siblings(write.key) {
            continue;
        }
        for (ended, acknowledgement) in write.acknowledgements() {
            let Some(version) = acknowledgement.version else { continue };
            if write.seen.is_some_and(|seen| version.counter <= seen) {
                low.push(format!(
                    "write {index} got {version:?} although its session had seen {:?}",
                    write.seen
                ));
            }
            let earlier = earlier_by_the_same(history, write.key, acknowledgement, write.began(), ended);
            low.extend(earlier.map(|first| {
                format!(
                    "write {index} got {version:?}, and write {first} a higher one of the same node before"
                )
            }));
        }
    }
    low
}

/// Writes of a key that the same node had acknowledged before `began`, with higher versions, and could know of.
fn earlier_by_the_same<'a>(
    history: &'a History,
    key: KeyId,
    later: &'a Acknowledgement,
    began: Moment,
    ended: Moment,
) -> impl Iterator<Item = usize> + 'a {
    let node = later.coordinator;
    let of_key = history.writes.iter().enumerate().filter(move |(_, write)| write.key == key);
    of_key
        .filter(move |(_, write)| {
            write.acknowledgements().any(|(acknowledged, first)| {
                let was_on_disk = first.holders.as_ref().is_some_and(|holders| holders.contains(&node));
                let forgot = history.damages.iter().any(|damage| {
                    damage.node == node
                        && (damage.on_disk || !was_on_disk)
                        && damage.at >= write.began()
                        && damage.at <= ended
                });
                first.coordinator == node && acknowledged < began && first.version > later.version && !forgot
            })
        })
        .map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use ring::{ConflictPolicy, NodeId};

    use super::*;
    use crate::{checkers::story::Story, history::Damage};

    #[test]
    fn a_write_gets_a_higher_version_than_its_session_had_seen() {
        let mut story = Story::new(ConflictPolicy::LastWriteWins);
        let a = story.put(1, 2);
        story.history.writes[a.0].seen = Some(0);
        assert!(check(&story.history).is_empty());
        story.history.writes[a.0].seen = Some(1_000_000);
        assert_eq!(check(&story.history).len(), 1);
    }

    #[test]
    fn a_node_never_goes_below_a_version_that_it_acknowledged() {
        let mut story = Story::new(ConflictPolicy::LastWriteWins);
        let (high, low) = (story.put(1, 2), story.put(3, 4));
        story.swap_versions(high, low);
        assert_eq!(check(&story.history).len(), 1);
        story.history.damages.push(Damage { node: NodeId(1), at: Moment(2), on_disk: false });
        assert!(check(&story.history).is_empty(), "it crashed, and the write was not on its disk");
        story.held_by(high, &[1]);
        assert_eq!(check(&story.history).len(), 1);
    }
}
