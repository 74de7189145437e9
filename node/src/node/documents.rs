//! The cluster document: heard of, written down, adopted once it is synced.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ring::{ClusterDocument, Epoch, Member, NodeId, PartitionId, StoreId};

use super::{DOCUMENT_RETRY_AFTER, Node, Operation, UnreadDocument};
use crate::{
    agreement::forming::Forming,
    coordinator::Step,
    copies::Mark,
    local::recorded_since,
    recovery::{document_to_store, read_document_or_fail},
    storage::Store,
    waiting::Waiting,
};

/// No cluster comes so far: an epoch from here on is nobody's, and would leave no room to go on from.
pub(super) const EPOCH_MAX: Epoch = Epoch(1 << 62);

/// Whether this store was recorded with its memory of votes, and is not any more, or is again with the same memory:
/// then others may have votes of it, from another image of this disk, that it does not remember.
fn is_replaced(before: &Members, after: &Members, node: NodeId, store: StoreId) -> bool {
    let Some(before) = before.get(&node).filter(|member| member.store == store) else { return false };
    after.get(&node).is_none_or(|after| {
        after.store != store || (after.recorded != before.recorded && after.voter == before.voter)
    })
}

type Members = BTreeMap<NodeId, Member>;

impl<S: Store> Node<S> {
    /// A document: if it is newer, it is written down, and adopted when that is synced.
    pub(super) fn learn(&mut self, document: Arc<ClusterDocument>) {
        let known = self.adopting.as_ref().or(self.local.document.as_ref());
        if let Some(known) = known {
            let is_ours = known.cluster == document.cluster;
            if is_ours && known.epoch == document.epoch && *known != document {
                self.local.counters.documents_conflicting += 1;
            }
            if !is_ours || document.epoch <= known.epoch {
                return;
            }
        }
        if document.epoch == Epoch(0) || document.epoch >= EPOCH_MAX || document.validate().is_err() {
            return;
        }
        self.ask_for_newer_than(document.epoch);
        self.adopting = Some(document);
        self.write_document();
    }

    /// A document of this epoch is here: only newer ones are asked for, and at once.
    fn ask_for_newer_than(&mut self, known: Epoch) {
        self.document_asked = None;
        self.newer_epoch = self.newer_epoch.filter(|(_, epoch)| *epoch > known);
    }

    /// A document that could not be read when the process began may be readable by now. A peer's may be older: adopted in
    /// its place it would be written over it, and this node would no longer know what others count on it to know.
    pub(super) fn read_document_again(&mut self) {
        let Some(unread) = self.unread else { return };
        let now = self.local.now.monotonic;
        if self.adopting.is_some() || self.local.document.is_some() {
            // The founders have agreed on one.
            self.unread = None;
        } else if unread.again_at <= now {
            let read = read_document_or_fail(self.local.replica.store());
            self.unread = match read {
                Err(_) if now < unread.until => {
                    Some(UnreadDocument { again_at: now + DOCUMENT_RETRY_AFTER, ..unread })
                }
                Err(_) => {
                    self.local.counters.documents_given_up += 1;
                    None
                }
                Ok(_) => None,
            };
            if let Ok(Some(document)) = read {
                self.ask_for_newer_than(document.epoch);
                self.adopt(document);
            }
        }
    }

    /// Writes the document that is being adopted. A founder's copies, in a store that was never
    /// written to, are whole from the first: there is nothing that they could lack.
    pub(super) fn write_document(&mut self) {
        let Some(document) = self.adopting.clone() else { return };
        let local = &mut self.local;
        let sequence = local.replica.put_meta(document_to_store(&document));
        let is_unformed = self.agreement.forming.as_ref().is_some_and(Forming::is_unformed);
        let store = local.store_id();
        let recorded = recorded_since(&document, local.node, store);
        if let (Epoch(1), Some(recorded), true) = (document.epoch, recorded, self.is_new_store || is_unformed)
        {
            for (partition, gained) in local.shares(&document).gains {
                let mark = Mark { whole: true, store, recorded, gained, memory: None };
                local.replica.put_meta(mark.to_store(partition));
                self.recovered.marks.insert(partition, mark);
            }
        }
        // With the document, so that no process believes a copy that lacks what it is to keep from now on.
        if let Some(recorded) = recorded {
            for partition in local.grown(&document) {
                if let Some(gained) = local.copies.gained(partition) {
                    let memory = local.copies.memory_mark(partition).map(|_| local.start);
                    let mark = Mark { whole: false, store, recorded, gained, memory };
                    local.replica.put_meta(mark.to_store(partition));
                }
            }
        }
        local.when_synced(Some(sequence), Waiting::Document(document));
    }

    /// The document is synced, or was found in the store: from now on it is the one that counts.
    pub(super) fn adopt(&mut self, document: Arc<ClusterDocument>) {
        let local = &mut self.local;
        if document.epoch <= local.epoch() {
            return;
        }
        if self.adopting.as_ref().is_some_and(|adopting| adopting.epoch <= document.epoch) {
            self.adopting = None;
        }
        let store = local.store_id();
        let is_first = local.document.is_none();
        let was_recorded = local.recorded_since();
        let recorded = recorded_since(&document, local.node, store);
        let shares = local.shares(&document);
        let recovered = &self.recovered;
        let went_back = local.counters.store_went_back > 0;
        let grown = local.grown(&document);
        let went_back = went_back || !local.watermarks.is_complete();
        let is_new = |(partition, gained): &(&PartitionId, &Epoch)| {
            !is_first && (recorded != was_recorded || local.copies.gained(**partition) != Some(**gained))
        };
        let new: Vec<PartitionId> =
            shares.gains.iter().filter(is_new).map(|(partition, _)| *partition).collect();
        local.copies.adopt(shares.gains, |partition, gained| {
            let was_whole = |recorded: Epoch| recovered.was_whole(partition, (store, recorded), gained);
            is_first && !went_back && recorded.is_some_and(was_whole)
        });
        local.sharers = shares.sharers;
        local.watermarks.follow(&local.sharers);
        new.into_iter().for_each(|partition| local.watermarks.is_to_be_told(partition));
        local.replica.prunable.keep(|partition| local.copies.gained(partition).is_some());
        local.replica.trees.follow(document.partitions, local.copies.partitions());
        local.peers.keep(|node| document.members.contains_key(&node));
        local.peers.add(document.members.keys().copied().filter(|node| *node != local.node));
        if let Some(before) = &local.document
            && is_replaced(&before.members, &document.members, local.node, store)
        {
            local.renew_votes();
        }
        local.digest = Some(document.digest());
        local.document = Some(document);
        local.outgrow_recorded_voter();
        let partitions: Vec<PartitionId> = local.copies.partitions().collect();
        for partition in partitions {
            // The exchanges that make a copy whole begin under a document that records its store: before, others may
            // have counted the acknowledgements of the store before it. A store that is not recorded has no copies.
            let keeps_more = grown.contains(&partition);
            if (recorded != was_recorded || keeps_more) && !is_first {
                local.fill(partition);
            }
            // What an earlier process wrote holds no longer: it may have acknowledged from memory, and this copy may
            // have been found to lack something. Nothing later may be written without it.
            let is_filling = !local.copies.is_whole(partition);
            let mark = recovered.marks.get(&partition);
            if is_first && mark.is_some_and(|mark| mark.memory.is_some() || (mark.whole && is_filling)) {
                local.write_mark(partition);
            }
            if is_filling {
                local.to_fill.insert(partition, Duration::ZERO);
            }
        }
        self.hints.redirect(local);
        self.exchanges.plan(local);
        local.lag.keep(|node| self.exchanges.is_with(node));
        // Everyone hears of the epoch in the header of the next greeting.
        local.peers.greet_all_soon();
        self.document_changed();
        self.greet();
        self.begin_anew();
    }

    /// Operations go on under the new document, and messages that waited for it are heard.
    pub(super) fn begin_anew(&mut self) {
        let operations: Vec<u64> = self.operations.iter().map(|(number, _)| number).collect();
        for operation in operations {
            self.with_operation(operation, |node, current| {
                let local = &mut node.local;
                match current {
                    Operation::Write(write) => write.on_document(local, &mut node.outcomes),
                    Operation::Read(read) => {
                        let ended = read.on_document(local);
                        node.read_ended(ended)
                    }
                    Operation::Exchange(exchange) => exchange.end(local),
                    Operation::Forward(_) | Operation::Hint(_) => Step::Continue,
                }
            });
        }
        for envelope in std::mem::take(&mut self.parked) {
            self.on_message(envelope);
        }
    }
}
