//! Why a read finds what it finds: the records of a key's replicas, joined as a coordinator joins them, with reasons.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use client::{
    Version,
    wire::{CopyState, HeldRecord, ReplicaView},
};
use ring::{ConflictPolicy, NodeId};

use crate::output::ShownVersion;

/// What the replicas hold together.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Judgement {
    /// The versions that a read of all of them returns, newest first.
    pub(crate) winners: Vec<Version>,
    /// Why it is those.
    pub(crate) why: String,
    /// The replicas that lack something of it.
    pub(crate) behind: Vec<NodeId>,
}

/// Judges what replicas hold. Filling copies count only if there are no others, as in a read.
pub(crate) fn judge(views: &[ReplicaView], conflict: ConflictPolicy) -> Judgement {
    let is_whole = |view: &&ReplicaView| view.copy == CopyState::Whole;
    let mut counted: Vec<&ReplicaView> = views.iter().filter(is_whole).collect();
    if counted.is_empty() {
        counted = views.iter().collect();
    }
    if counted.iter().all(|view| view.record.is_none()) {
        let why = if views.is_empty() { "no replica answered" } else { "no replica holds the key" };
        return Judgement { winners: Vec::new(), why: why.to_owned(), behind: Vec::new() };
    }
    match conflict {
        ConflictPolicy::Siblings => judge_siblings(views, &counted),
        ConflictPolicy::LastWriteWins => judge_last_write(views, &counted),
    }
}

/// What a record says: its live versions, and the highest counter it has seen of each actor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    live: BTreeSet<Version>,
    context: BTreeMap<u64, u64>,
}

impl Seen {
    fn of(record: Option<&HeldRecord>) -> Seen {
        let Some(record) = record else { return Seen::default() };
        let live = record.versions.iter().map(|held| held.version).collect();
        let mut context = BTreeMap::new();
        for version in &record.context {
            let counter = context.entry(version.actor).or_insert(0);
            *counter = version.counter.max(*counter);
        }
        Seen { live, context }
    }

    /// Whether its writers had seen this version.
    fn covers(&self, version: Version) -> bool {
        self.context.get(&version.actor).is_some_and(|counter| *counter >= version.counter)
    }

    /// Both together: what is live on one side stays unless the other has seen it and holds it no longer.
    fn join(&self, other: &Seen) -> Seen {
        let survives =
            |version: &Version, other: &Seen| other.live.contains(version) || !other.covers(*version);
        let mine = self.live.iter().filter(|version| survives(version, other));
        let theirs = other.live.iter().filter(|version| survives(version, self));
        let live = mine.chain(theirs).copied().collect();
        let mut context = self.context.clone();
        for (actor, counter) in &other.context {
            let known = context.entry(*actor).or_insert(0);
            *known = (*known).max(*counter);
        }
        Seen { live, context }
    }
}

fn judge_siblings(views: &[ReplicaView], counted: &[&ReplicaView]) -> Judgement {
    let seen = |view: &ReplicaView| Seen::of(view.record.as_ref());
    let joined = counted.iter().fold(Seen::default(), |joined, view| joined.join(&seen(view)));
    let behind = views.iter().filter(|view| seen(view) != joined).map(|view| view.node).collect();
    // Versions that some replica still shows and that others know to be replaced.
    let held: BTreeSet<Version> = counted.iter().flat_map(|view| seen(view).live).collect();
    let replaced: Vec<Version> = held.difference(&joined.live).copied().collect();
    let knowing = |version: &Version| {
        let knows = |view: &&&ReplicaView| seen(view).covers(*version) && !seen(view).live.contains(version);
        let nodes: Vec<_> = counted.iter().filter(knows).map(|view| view.node.to_string()).collect();
        nodes.join(", ")
    };
    let mut winners: Vec<Version> = joined.live.iter().copied().collect();
    winners.reverse();
    let mut why = match winners.as_slice() {
        [] => "deleted: every value that was written is covered by a delete".to_owned(),
        [one] if replaced.is_empty() => format!("version {} is the only value", ShownVersion(*one)),
        [one] => format!("version {} wins: it dominates all others", ShownVersion(*one)),
        several => {
            let versions: Vec<_> = several.iter().map(|version| ShownVersion(*version).to_string()).collect();
            format!(
                "{} concurrent siblings, each written without having seen the others: {}; a put with the context of \
                 a get resolves them",
                several.len(),
                versions.join(", ")
            )
        }
    };
    for version in &replaced {
        let _ = write!(
            why,
            "; version {} is replaced: what {} holds was written by someone who had seen it",
            ShownVersion(*version),
            knowing(version)
        );
    }
    Judgement { winners, why, behind }
}

fn judge_last_write(views: &[ReplicaView], counted: &[&ReplicaView]) -> Judgement {
    // The context of such a record is its winner alone, value or deletion.
    let winner_of =
        |view: &ReplicaView| view.record.as_ref().and_then(|record| record.context.iter().max().copied());
    let Some(winner) = counted.iter().filter_map(|view| winner_of(view)).max() else {
        let why = "the replicas hold records without a version".to_owned();
        return Judgement { winners: Vec::new(), why, behind: Vec::new() };
    };
    let is_live = |view: &&ReplicaView| {
        view.record.as_ref().is_some_and(|record| record.versions.iter().any(|held| held.version == winner))
    };
    let is_value = counted.iter().any(is_live);
    let lower: BTreeSet<Version> =
        counted.iter().filter_map(|view| winner_of(view)).filter(|version| *version < winner).collect();
    let shown = ShownVersion(winner);
    let mut why = match (is_value, lower.is_empty()) {
        (true, true) => format!("version {shown} is the only one"),
        (true, false) => format!("version {shown} wins: it is the highest"),
        (false, true) => format!("deleted: the delete {shown} is the only version"),
        (false, false) => format!("deleted: the delete {shown} is the highest version"),
    };
    for version in lower {
        let _ = write!(why, "; {} is lower", ShownVersion(version));
    }
    let behind = views.iter().filter(|view| winner_of(view) != Some(winner)).map(|view| view.node).collect();
    Judgement { winners: if is_value { vec![winner] } else { Vec::new() }, why, behind }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use client::wire::HeldVersion;

    use super::*;

    fn version(counter: u64, actor: u64) -> Version {
        Version { counter, actor }
    }

    fn view(node: u32, live: &[Version], context: &[Version]) -> ReplicaView {
        let held =
            |version: &Version| HeldVersion { version: *version, value_bytes: 1, expires_unix_ms: None };
        let record = HeldRecord {
            digest: Bytes::new(),
            versions: live.iter().map(held).collect(),
            context: context.to_vec(),
            is_synced: true,
        };
        ReplicaView { record: Some(record), ..nothing(node) }
    }

    fn nothing(node: u32) -> ReplicaView {
        ReplicaView {
            node: NodeId(node),
            copy: CopyState::Whole,
            watermark: 0,
            record: None,
            owes: Vec::new(),
        }
    }

    #[test]
    fn replicas_that_agree_are_not_behind() {
        let one = version(1, 7);
        let judged = judge(&[view(1, &[one], &[one]), view(2, &[one], &[one])], ConflictPolicy::Siblings);
        assert_eq!((judged.winners, judged.behind), (vec![one], vec![]));
        assert!(judged.why.contains("is the only value"), "{}", judged.why);
    }

    #[test]
    fn a_version_that_a_context_covers_is_replaced_and_its_holder_is_behind() {
        let (old, new) = (version(1, 7), version(2, 8));
        let views = [view(1, &[old], &[old]), view(2, &[new], &[old, new]), nothing(3)];
        let judged = judge(&views, ConflictPolicy::Siblings);
        assert_eq!((judged.winners, judged.behind), (vec![new], vec![NodeId(1), NodeId(3)]));
        assert!(
            judged.why.contains("dominates") && judged.why.contains("what node-2 holds"),
            "{}",
            judged.why
        );
    }

    #[test]
    fn versions_that_no_other_context_covers_are_siblings() {
        let (one, other) = (version(1, 7), version(2, 8));
        let views = [view(1, &[one], &[one]), view(2, &[other], &[other])];
        let judged = judge(&views, ConflictPolicy::Siblings);
        assert_eq!((judged.winners, judged.behind), (vec![other, one], vec![NodeId(1), NodeId(2)]));
        assert!(judged.why.starts_with("2 concurrent siblings"), "{}", judged.why);
    }

    #[test]
    fn a_delete_that_covers_every_value_wins_over_them() {
        let (value, delete) = (version(1, 7), version(2, 8));
        let views = [view(1, &[value], &[value]), view(2, &[], &[value, delete])];
        let judged = judge(&views, ConflictPolicy::Siblings);
        assert_eq!((judged.winners, judged.behind), (vec![], vec![NodeId(1)]));
        assert!(judged.why.starts_with("deleted"), "{}", judged.why);
    }

    #[test]
    fn the_highest_version_wins_where_the_last_write_does() {
        let (low, high) = (version(1, 7), version(2, 6));
        let views = [view(1, &[low], &[low]), view(2, &[high], &[high])];
        let judged = judge(&views, ConflictPolicy::LastWriteWins);
        assert_eq!((judged.winners, judged.behind), (vec![high], vec![NodeId(1)]));
        let views = [view(1, &[low], &[low]), view(2, &[], &[high])];
        let judged = judge(&views, ConflictPolicy::LastWriteWins);
        assert_eq!((judged.winners, judged.behind), (vec![], vec![NodeId(1)]));
        assert!(judged.why.starts_with("deleted"), "{}", judged.why);
    }

    #[test]
    fn a_filling_copy_counts_only_where_there_is_no_other() {
        let (old, new) = (version(1, 7), version(2, 8));
        let filling = ReplicaView { copy: CopyState::Filling, ..view(2, &[new], &[new]) };
        let judged = judge(&[view(1, &[old], &[old]), filling.clone()], ConflictPolicy::Siblings);
        assert_eq!(judged.winners, [old]);
        assert_eq!(judge(&[filling], ConflictPolicy::Siblings).winners, [new]);
    }

    #[test]
    fn a_key_that_nobody_holds_has_no_winner() {
        let judged = judge(&[nothing(1), nothing(2)], ConflictPolicy::Siblings);
        assert_eq!((judged.winners.len(), judged.behind.len()), (0, 0));
        assert_eq!(judged.why, "no replica holds the key");
        assert_eq!(judge(&[], ConflictPolicy::Siblings).why, "no replica answered");
    }
}
