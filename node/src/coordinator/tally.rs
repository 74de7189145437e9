//! Counting answers against what a level requires. Three-valued: an outcome that can no longer be met is known at
//! once, not when the time is up.

use client::{Copies, Required};
use ring::NodeId;
use smallvec::{SmallVec, smallvec};

use crate::placement::Owners;

/// What a level requires of a request's replicas, by group: all of them, or those of each datacenter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tally {
    groups: SmallVec<[Group; 1]>,
    /// Whether the one group is all replicas, wherever they are.
    is_anywhere: bool,
}

/// So many of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) required: u8,
    pub(crate) members: SmallVec<[NodeId; 8]>,
}

/// What is known of one replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vote {
    /// It may answer yet.
    Pending,
    /// It counts.
    Yes,
    /// It will not.
    No,
}

/// What is known of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Neither yet.
    Pending,
    /// Every group has what it requires.
    Met,
    /// Some group cannot have it any more.
    Impossible,
}

impl Tally {
    /// What `required` means for these replicas.
    pub(crate) fn new(required: &Required, owners: &Owners) -> Tally {
        let groups = match required {
            Required::Anywhere(count) => {
                smallvec![Group { required: *count, members: owners.nodes().collect() }]
            }
            Required::In(counts) => counts
                .iter()
                .map(|&(datacenter, required)| {
                    let local = owners.iter().filter(|owner| owner.datacenter == datacenter);
                    Group { required, members: local.map(|owner| owner.node).collect() }
                })
                .collect(),
        };
        Tally { groups, is_anywhere: matches!(required, Required::Anywhere(_)) }
    }

    /// The planted bug: acknowledgements from all that keep a copy count, not only from the first n.
    pub(crate) fn widened(mut self, keepers: &Owners) -> Tally {
        if let [group] = &mut self.groups[..] {
            group.members = keepers.nodes().collect();
        }
        self
    }

    /// How many replicas have to hold durably what a read that counts by this tally returns, so that no later read
    /// of the same kind misses it: in each group enough to meet every later read, and no fewer than the keyspace's
    /// default write level acknowledges.
    pub(crate) fn holders(&self, keyspace: &Copies) -> Tally {
        let majority = keyspace.total() / 2 + 1;
        let groups = self.groups.iter().map(|group| {
            let n = u8::try_from(group.members.len()).expect("at most seven copies in each datacenter");
            let floor = if self.is_anywhere { majority } else { n / 2 + 1 };
            let required = (n + 1).saturating_sub(group.required).max(floor).min(n);
            Group { required, members: group.members.clone() }
        });
        Tally { groups: groups.collect(), is_anywhere: self.is_anywhere }
    }

    /// What the votes amount to.
    pub(crate) fn verdict(&self, vote: impl Fn(NodeId) -> Vote) -> Verdict {
        let mut verdict = Verdict::Met;
        for group in &self.groups {
            let count =
                |wanted: &[Vote]| group.members.iter().filter(|node| wanted.contains(&vote(**node))).count();
            let required = usize::from(group.required);
            if count(&[Vote::Yes, Vote::Pending]) < required {
                return Verdict::Impossible;
            }
            if count(&[Vote::Yes]) < required {
                verdict = Verdict::Pending;
            }
        }
        verdict
    }

    /// How many replicas are required in all.
    pub(crate) fn required(&self) -> u8 {
        self.groups.iter().map(|group| group.required).sum()
    }

    /// How many replicas vote so.
    pub(crate) fn count(&self, vote: impl Fn(NodeId) -> Vote, wanted: Vote) -> u8 {
        let members = self.groups.iter().flat_map(|group| &group.members);
        let count = members.filter(|node| vote(**node) == wanted).count();
        u8::try_from(count).expect("at most seven copies in each datacenter")
    }

    /// The groups.
    pub(crate) fn groups(&self) -> &[Group] {
        &self.groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(groups: &[(u8, &[u32])]) -> Tally {
        let group = |&(required, nodes): &(u8, &[u32])| Group {
            required,
            members: nodes.iter().copied().map(NodeId).collect(),
        };
        Tally { groups: groups.iter().map(group).collect(), is_anywhere: groups.len() == 1 }
    }

    fn verdict(tally: &Tally, votes: &str) -> Verdict {
        tally.verdict(|node| match votes.as_bytes()[node.0 as usize] {
            b'y' => Vote::Yes,
            b'n' => Vote::No,
            _ => Vote::Pending,
        })
    }

    #[test]
    fn a_quorum_is_pending_then_met_or_impossible() {
        let quorum = tally(&[(2, &[0, 1, 2])]);
        for (votes, expected) in [
            ("...", Verdict::Pending),
            ("y..", Verdict::Pending),
            ("yn.", Verdict::Pending),
            ("yny", Verdict::Met),
            ("yy.", Verdict::Met),
            ("n.n", Verdict::Impossible),
            ("ynn", Verdict::Impossible),
        ] {
            assert_eq!(verdict(&quorum, votes), expected, "{votes}");
        }
    }

    #[test]
    fn each_group_needs_its_own() {
        let each = tally(&[(2, &[0, 1, 2]), (1, &[3])]);
        assert_eq!(verdict(&each, "yyy."), Verdict::Pending);
        assert_eq!(verdict(&each, "yyyn"), Verdict::Impossible);
        assert_eq!(verdict(&each, "y.yy"), Verdict::Met);
    }

    #[test]
    fn holders_meet_every_later_read_and_the_default_write() {
        let three = Copies::new([(ring::DatacenterId(0), 3)]);
        assert_eq!(tally(&[(2, &[0, 1, 2])]).holders(&three).required(), 2);
        assert_eq!(tally(&[(3, &[0, 1, 2])]).holders(&three).required(), 2, "the default write's two");
        assert_eq!(tally(&[(1, &[0, 1, 2])]).holders(&three).required(), 3);
        assert_eq!(tally(&[(3, &[0, 1, 2, 3, 4])]).holders(&three).required(), 3);
        assert_eq!(tally(&[(1, &[0])]).holders(&three).required(), 1);
    }
}
