//! Bringing one record to the replicas that should have it: what a write, a read repair and a write-back share.

use std::sync::Arc;

use antientropy::version::{Counter, Record};
use ring::{ClusterDocument, Durability, Epoch, NodeId, StoreId};
use smallvec::SmallVec;

use super::tally::Vote;
use crate::{
    hints::HintLeft,
    local::{Event, Local},
    message::{MergeOutcome, MergePath, MergeRefusal, Message, Tag},
    placement::{OwnerAt, Owners},
    storage::{ObjectKey, Store},
    waiting::Waiting,
};

/// A record on its way to its replicas.
#[derive(Debug)]
pub(crate) struct Spread {
    tag: Tag,
    object: ObjectKey,
    record: Arc<Record>,
    /// The watermark under which it was read.
    under: Counter,
    durability: Durability,
    path: MergePath,
    targets: SmallVec<[Target; 3]>,
    /// Whether a replica knew of a higher watermark than the record was read under.
    was_behind: bool,
}

/// One replica.
#[derive(Clone, Copy, Debug)]
struct Target {
    node: NodeId,
    state: TargetState,
}

/// How far it is with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TargetState {
    /// It was down when it would have been sent to, and is left a hint.
    Down,
    /// Sent, and no answer yet.
    Sent,
    /// Acknowledged by this store, for this gain.
    Acknowledged { store: StoreId, gained: Epoch },
    /// It did not take it.
    Refused,
}

impl Spread {
    /// Sends `record` to those of `owners` that are up. This node's own replica takes it and acknowledges like any
    /// other.
    pub(crate) fn start<S: Store>(
        local: &mut Local<S>,
        tag: Tag,
        object: ObjectKey,
        (record, under): (Arc<Record>, Counter),
        durability: Durability,
        path: MergePath,
        owners: impl Iterator<Item = OwnerAt>,
    ) -> Spread {
        let targets = SmallVec::new();
        let mut spread = Spread { tag, object, record, under, durability, path, targets, was_behind: false };
        for owner in owners {
            let state = spread.send(local, owner.node);
            spread.targets.push(Target { node: owner.node, state });
        }
        spread
    }

    fn send<S: Store>(&self, local: &mut Local<S>, node: NodeId) -> TargetState {
        if node == local.node {
            return self.acknowledge_locally(local);
        }
        if !local.is_up(node) {
            // With this turn's batch, so that a crash does not part it from the record.
            self.leave_hint(local, node);
            return TargetState::Down;
        }
        local.send(node, self.message(self.tag, self.path));
        TargetState::Sent
    }

    fn message(&self, tag: Tag, path: MergePath) -> Message {
        Message::Merge {
            tag,
            object: self.object.clone(),
            record: Arc::clone(&self.record),
            under: self.under,
            durability: self.durability,
            path,
        }
    }

    fn leave_hint<S: Store>(&self, local: &mut Local<S>, target: NodeId) {
        let (object, counter) = (self.object.clone(), self.record.highest());
        local.hints_left.push(HintLeft { target, object, is_counted: false, counter });
    }

    /// Sends the record to a node that is to stand in for `target`, or lets this node do so, as this question of the
    /// operation. False if it does not.
    pub(crate) fn send_in_place<S: Store>(
        &self,
        local: &mut Local<S>,
        question: u32,
        node: NodeId,
        target: NodeId,
    ) -> bool {
        let tag = Tag { question, ..self.tag };
        if node != local.node {
            local.send(node, self.message(tag, MergePath::StandIn { target }));
            return true;
        }
        // It was minted here, but the batch that brought it may have been refused since: it is taken again.
        let Ok(acknowledgement) =
            local.stand_in(target, &self.object, &self.record, self.under, self.durability)
        else {
            return false;
        };
        let outcome = MergeOutcome::Applied { gained: acknowledgement.gained };
        let event = Event::Merged { from: local.node, store: local.store_id(), outcome };
        local.when_synced(acknowledgement.after, Waiting::Event { tag, event });
        true
    }

    /// This node's own replica takes the record like any other, and acknowledges when it may.
    fn acknowledge_locally<S: Store>(&self, local: &mut Local<S>) -> TargetState {
        let merged = if local.replica.holds_unsynced(&self.object, &self.record) {
            local.acknowledge(&self.object, self.durability)
        } else {
            local.merge(&self.object, &self.record, (local.node, self.under), self.durability, self.path)
        };
        match merged {
            Err(_) => TargetState::Refused,
            Ok(acknowledgement) => {
                let (from, store) = (local.node, local.store_id());
                let outcome = MergeOutcome::Applied { gained: acknowledgement.gained };
                let event = Event::Merged { from, store, outcome };
                local.when_synced(acknowledgement.after, Waiting::Event { tag: self.tag, event });
                TargetState::Sent
            }
        }
    }

    /// A replica said how it ended.
    pub(crate) fn merged<S: Store>(
        &mut self,
        local: &mut Local<S>,
        from: NodeId,
        store: StoreId,
        outcome: MergeOutcome,
    ) {
        if let MergeOutcome::Refused(MergeRefusal::Behind { watermark }) = outcome
            && from != local.node
            && local.recorded_store(from) == Some(store)
            && self.come_up(local, from, watermark)
        {
            return;
        }
        let Some(target) = self.targets.iter_mut().find(|target| target.node == from) else { return };
        match outcome {
            MergeOutcome::Applied { gained } => {
                target.state = TargetState::Acknowledged { store, gained };
            }
            // Ours is the older document: its successor is on its way, and the record is sent again under it.
            MergeOutcome::Refused(MergeRefusal::StaleEpoch) => {}
            MergeOutcome::Refused(
                MergeRefusal::NotOwner
                | MergeRefusal::Mismatched
                | MergeRefusal::Overloaded
                | MergeRefusal::StorageFailed
                | MergeRefusal::Late
                | MergeRefusal::Behind { .. },
            ) => {
                if !matches!(target.state, TargetState::Acknowledged { .. }) {
                    target.state = TargetState::Refused;
                }
            }
        }
    }

    /// A replica is at a higher watermark. All copies have promised it, this node's too: it comes up, and sends what it then
    /// holds once more. False if that changes nothing.
    fn come_up<S: Store>(&mut self, local: &mut Local<S>, node: NodeId, watermark: Counter) -> bool {
        self.was_behind = true;
        let Ok((partition, _)) = local.copy_of(&self.object) else { return false };
        let is_higher = watermark > local.watermarks.of(partition);
        local.raise_watermark(partition, watermark);
        let is_sent =
            self.targets.iter().any(|target| target.node == node && target.state == TargetState::Sent);
        if !is_higher || !is_sent {
            return false;
        }
        let Ok(Some(record)) = local.held(&self.object, partition) else { return false };
        let under = local.under_of(&self.object, partition, &record);
        if under < watermark || !record.dominates(&self.record) {
            return false;
        }
        (self.record, self.under) = (record, under);
        local.send(node, self.message(self.tag, self.path));
        true
    }

    /// Whether a replica knew of a higher watermark than the record was read under.
    pub(crate) fn was_behind(&self) -> bool {
        self.was_behind
    }

    /// The document has changed: what a former store or a former owner acknowledged is worth nothing, and who has
    /// not acknowledged is sent to again.
    pub(crate) fn document_changed<S: Store>(&mut self, local: &mut Local<S>, owners: &Owners) {
        let before = std::mem::take(&mut self.targets);
        for owner in owners.iter() {
            let known = before.iter().find(|target| target.node == owner.node).map(|target| target.state);
            let recorded = local.recorded_store(owner.node);
            let state = match known {
                Some(TargetState::Acknowledged { store, gained })
                    if recorded == Some(store) && gained == owner.gained =>
                {
                    TargetState::Acknowledged { store, gained }
                }
                Some(_) | None => self.send(local, owner.node),
            };
            self.targets.push(Target { node: owner.node, state });
        }
    }

    /// Whether `node` counts as holding the record: only its recorded store, for its recorded gain.
    pub(crate) fn vote(&self, document: &ClusterDocument, owners: &Owners, node: NodeId) -> Vote {
        let Some(target) = self.targets.iter().find(|target| target.node == node) else { return Vote::No };
        match target.state {
            TargetState::Sent => Vote::Pending,
            TargetState::Down | TargetState::Refused => Vote::No,
            TargetState::Acknowledged { store, gained } => {
                let recorded = document.members.get(&node).map(|member| member.store);
                let owner = owners.iter().find(|owner| owner.node == node);
                if recorded == Some(store) && owner.is_some_and(|owner| owner.gained == gained) {
                    Vote::Yes
                } else {
                    Vote::No
                }
            }
        }
    }

    /// Whether a replica was down, or did not take it.
    pub(crate) fn failed(&self, node: NodeId) -> bool {
        let failed = |target: &Target| matches!(target.state, TargetState::Refused | TargetState::Down);
        self.targets.iter().any(|target| target.node == node && failed(target))
    }

    /// Whether a replica's answer is awaited.
    pub(crate) fn awaits(&self, node: NodeId) -> bool {
        self.targets.iter().any(|target| target.node == node && target.state == TargetState::Sent)
    }

    /// Whether the record is for this node itself.
    pub(crate) fn is_target(&self, node: NodeId) -> bool {
        self.targets.iter().any(|target| target.node == node)
    }

    /// Whether a replica was down when the record was to be sent.
    pub(crate) fn was_down(&self, node: NodeId) -> bool {
        self.targets.iter().any(|target| target.node == node && target.state == TargetState::Down)
    }

    /// Whether nobody is left to answer.
    pub(crate) fn is_over(&self) -> bool {
        !self.targets.iter().any(|target| target.state == TargetState::Sent)
    }

    /// Leaves a hint for each replica that was sent to and has not acknowledged.
    pub(crate) fn leave_hints<S: Store>(&self, local: &mut Local<S>) {
        for target in &self.targets {
            let is_owed = matches!(target.state, TargetState::Sent | TargetState::Refused);
            if is_owed && target.node != local.node {
                self.leave_hint(local, target.node);
            }
        }
    }

    /// The object.
    pub(crate) fn object(&self) -> &ObjectKey {
        &self.object
    }

    /// The record.
    pub(crate) fn record(&self) -> &Record {
        &self.record
    }
}
