//! Messages from peers: what every one of them tells, and who each is for.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use antientropy::version::{Counter, Record};
use client::Refusal;
use ring::{Durability, Epoch, NodeId, PartitionId};

use super::{DOCUMENT_RETRY_AFTER, Node, requests::timeout};
use crate::{
    coordinator::{Requester, forward::refusal},
    exchange::PeerEnded,
    hints::Hints,
    local::{Acknowledgement, Event, Local},
    message::{Envelope, Header, MergeOutcome, MergePath, MergeRefusal, Message, ReadAnswer, Tag},
    peers::SEQUENCE_MAX,
    planted::PlantedBug,
    replica::PLAUSIBLE_MAX,
    storage::{ObjectKey, Sequence, Store},
    waiting::Waiting,
};

impl<S: Store> Node<S> {
    pub(super) fn on_message(&mut self, envelope: Envelope) {
        let header = envelope.header;
        let from = header.from;
        match envelope.message {
            Message::Hello { number, cluster, recovery, voter, digest } => {
                let ours = self.local.document.as_ref().map(|document| document.cluster);
                if cluster.is_some() && ours.is_some() && cluster != ours {
                    self.local.counters.messages_ignored += 1;
                    return;
                }
                // Two documents of one epoch: whoever has the other is not talked to, and people have to know.
                if header.epoch == self.local.epoch() && digest.is_some() && digest != self.local.digest {
                    self.local.counters.documents_conflicting += 1;
                    return;
                }
                // A stranger is not remembered. If its document is the newer one, that says who it is.
                let document = self.local.document.as_ref();
                if document.is_some_and(|document| !document.members.contains_key(&from)) {
                    self.local.counters.messages_ignored += 1;
                    return self.note_epoch(from, header.epoch);
                }
                let greeted = self.local.peers.hello(from, header.start, header.store, &recovery);
                self.local.peers.introduce(from, header.store, voter);
                self.hear(&header);
                let (start, went_back_from) = (header.start, greeted.went_back_from);
                let floor = self.local.watermarks.known_floor();
                self.local.send(from, Message::Welcome { start, number, went_back_from, floor });
                if greeted.restarted {
                    self.local.to_compare.insert(from);
                    self.founder_restarted(from);
                    self.greet();
                }
            }
            Message::Welcome { start, number, went_back_from, floor } if start == self.local.start => {
                // It answers this process, so its verdict counts, whether or not the peer has said hello here.
                match went_back_from {
                    // Nobody has seen a store come so far, and there is no number after it to go on from.
                    Some(sequence) if sequence >= SEQUENCE_MAX => {
                        self.local.counters.messages_ignored += 1;
                    }
                    Some(sequence) => self.went_back(Some(sequence)),
                    None => {}
                }
                // This store may have forgotten what it promised. Others have not.
                if floor < PLAUSIBLE_MAX && self.local.planted != Some(PlantedBug::MintBelowPromise) {
                    self.local.watermarks.learn_floor(floor);
                    self.local.replica.clock().begin_above(floor);
                }
                if self.local.peers.is_known(from, header.start) {
                    self.hear(&header);
                    self.local.peers.welcome(from, number);
                }
            }
            Message::Welcome { .. } => self.local.counters.messages_ignored += 1,
            _ if !self.local.peers.is_known(from, header.start) => self.local.counters.messages_ignored += 1,
            message => self.on_known_message(Envelope { header, message }),
        }
        self.note_epoch(from, header.epoch);
    }

    pub(super) fn on_known_message(&mut self, envelope: Envelope) {
        let Envelope { header, message } = envelope;
        let from = header.from;
        self.hear(&header);
        match message {
            Message::DocumentRequest => {
                if let Some(document) = self.local.document.clone() {
                    self.local.send(from, Message::Document(document));
                }
            }
            Message::Document(document) => {
                self.read_document_again();
                if self.unread.is_none() {
                    self.learn(document);
                }
            }
            message if header.epoch > self.local.epoch() => {
                if self.parked.len() < self.local.settings.parked_max {
                    self.parked.push(Envelope { header, message });
                } else {
                    self.local.counters.parked_dropped += 1;
                }
            }
            message => self.serve(from, &header, message),
        }
    }

    /// Learns what every message tells: that its sender lives, how far its store is synced, and what time it is there.
    pub(super) fn hear(&mut self, header: &Header) {
        let local = &mut self.local;
        local.peers.heard(local.now, header.from, header.store, header.synced, (header.wall, header.clock));
        local.peers.reached(header.from, header.epoch);
        let drift_max_ms = u64::try_from(local.settings.clock_drift_max.as_millis()).unwrap_or(u64::MAX);
        let wall = local.now.wall;
        local.replica.clock().observe(header.clock, wall, drift_max_ms);
    }

    /// A message of this node's epoch, or of an older one: a question of an older one is not taken.
    pub(super) fn serve(&mut self, from: NodeId, header: &Header, message: Message) {
        let is_stale = header.epoch < self.local.epoch();
        if let Message::Merge { path: MergePath::Hint, .. } = message {
            self.grants.used(self.local.now.monotonic, from);
        }
        let local = &mut self.local;
        match message {
            Message::Forward { tag, request, remaining } => {
                if !self.forwards.is_new(from, tag) {
                    local.counters.messages_ignored += 1;
                    return;
                }
                let requester = Requester::Forwarder { node: from, tag };
                if is_stale {
                    let error = Refusal::StaleEpoch { known: local.epoch() };
                    return requester.reply(local, refusal(&request, error));
                }
                let deadline = local.now.monotonic + remaining.min(timeout(&request, &local.settings));
                self.begin(requester, *request, deadline, false);
            }
            Message::Merge { tag, .. } if is_stale => {
                let outcome = MergeOutcome::Refused(MergeRefusal::StaleEpoch);
                local.send(from, Message::Merged { tag, outcome });
            }
            Message::Merge { tag, object, record, under, durability, path } => {
                let merged = |outcome| Message::Merged { tag, outcome };
                let result = match path {
                    MergePath::StandIn { target } => {
                        stand_in(local, &self.hints, target, &object, (&record, under), durability)
                    }
                    _ => local.merge(&object, &record, (from, under), durability, path),
                };
                match result {
                    Err(refusal) => local.send(from, merged(MergeOutcome::Refused(refusal))),
                    Ok(acknowledgement) => {
                        let message = merged(MergeOutcome::Applied { gained: acknowledgement.gained });
                        local.when_synced(acknowledgement.after, Waiting::Message { to: from, message });
                    }
                }
            }
            Message::Read { tag, .. } if is_stale => {
                local.send(from, Message::Answer { tag, answer: ReadAnswer::StaleEpoch });
            }
            Message::Read { tag, object, kind, n, durable } => {
                let (answer, after) = local.read(&object, kind, n, durable);
                let message = Message::Answer { tag, answer };
                local.when_synced(after, Waiting::Message { to: from, message });
            }
            Message::Exchange { tag, .. } if is_stale => local.send(from, Message::Declined { tag }),
            Message::Exchange { tag, standing, question } => {
                self.exchanges.answer(local, from, header.store, tag, (standing, question));
            }
            Message::Forwarded { tag, reply } => self.event(tag, Event::Forwarded { reply }),
            Message::Merged { tag, outcome } => {
                self.event(tag, Event::Merged { from, store: header.store, outcome });
            }
            Message::Answer { tag, answer } => {
                self.event(tag, Event::Answered { from, store: header.store, answer });
            }
            Message::ExchangeAnswer { tag, answer } => {
                let answer = Box::new(answer);
                self.event(tag, Event::ExchangeAnswered { store: header.store, answer });
            }
            // Under an older document something else may be to be kept.
            Message::ExchangeEnded { .. } if is_stale => {}
            Message::ExchangeEnded { exchange, is_complete, left_out, begun, differed } => {
                let ended = PeerEnded { exchange, is_complete, left_out, begun, differed };
                self.exchanges.peer_ended(local, from, header.store, ended);
            }
            Message::Declined { tag } => self.event(tag, Event::Declined),
            Message::HintOffer { waiting } => {
                let merges = self.grants.grant(local, from, waiting);
                local.send(from, Message::HintGrant { merges });
            }
            Message::HintGrant { merges } => {
                let most = u32::try_from(local.settings.hints_granted_max).unwrap_or(u32::MAX);
                self.hints.granted(local.now.monotonic, from, merges.min(most));
            }
            Message::Agreement(message) => self.on_agreement(from, header.store, *message),
            Message::Hello { .. }
            | Message::Welcome { .. }
            | Message::DocumentRequest
            | Message::Document(_) => unreachable!("taken before"),
        }
    }

    pub(super) fn event(&mut self, tag: Tag, event: Event) {
        self.local.events.push_back((tag, event));
    }

    /// Greets the peers that are due.
    pub(super) fn greet(&mut self) {
        let local = &mut self.local;
        for (peer, number, recovery) in local.peers.due(local.now, &local.settings) {
            let cluster = local.document.as_ref().map(|document| document.cluster);
            let (voter, digest) = (local.voter(), local.digest);
            local.send(peer, Message::Hello { number, cluster, recovery, voter, digest });
        }
    }

    /// A peer had seen this store come further than it recovered to: the store went back in time, something that was
    /// acknowledged is lost, and nothing here can be believed. (Or it has promised what it does not know of: then nobody
    /// says how far it had come.)
    pub(super) fn went_back(&mut self, from: Option<Sequence>) {
        let local = &mut self.local;
        if let Some(from) = from {
            local.replica.skip_through(from);
        }
        // What is said again, by the same peer or by others, is about the same loss.
        if local.counters.store_went_back == 0 {
            local.counters.store_went_back = 1;
            self.went_back_from = from;
            let partitions: Vec<PartitionId> = local.copies.partitions().collect();
            for partition in partitions {
                local.fill(partition);
            }
            // It may have forgotten how it voted: whoever votes here from now on is another.
            local.renew_votes();
            self.agreement.round = None;
            local.peers.greet_all_soon();
        }
    }

    /// A peer speaks under some epoch: a newer one's document is asked for.
    pub(super) fn note_epoch(&mut self, from: NodeId, epoch: Epoch) {
        let known = self.adopting.as_ref().map_or(self.local.epoch(), |document| document.epoch);
        let now = self.local.now.monotonic;
        if epoch <= known {
            return;
        }
        self.newer_epoch = Some((from, epoch));
        let is_patient = self.document_asked.is_some_and(|asked| now < asked + DOCUMENT_RETRY_AFTER);
        if !is_patient {
            self.document_asked = Some(now);
            self.local.send(from, Message::DocumentRequest);
        }
    }
}

/// Takes a record in place of a replica, and leaves a hint for that one with the same batch.
fn stand_in<S: Store>(
    local: &mut Local<S>,
    hints: &Hints,
    target: NodeId,
    object: &ObjectKey,
    (record, under): (&Arc<Record>, Counter),
    durability: Durability,
) -> Result<Acknowledgement, MergeRefusal> {
    let is_member = local.document.as_ref().is_some_and(|document| document.members.contains_key(&target));
    let refusal = if !is_member || target == local.node {
        Some(MergeRefusal::Mismatched)
    } else if local.is_stopping {
        Some(MergeRefusal::StorageFailed)
    } else if !hints.has_room(local, target) {
        Some(MergeRefusal::Overloaded)
    } else {
        None
    };
    if let Some(refusal) = refusal {
        local.counters.stand_ins_refused += 1;
        return Err(refusal);
    }
    local.stand_in(target, object, record, under, durability)
}

/// The forwards that were taken lately. One that comes twice is taken once: the second could be refused while the
/// first is minted, and its refusal believed.
#[derive(Default)]
pub(super) struct RecentForwards {
    known: BTreeSet<(NodeId, Tag)>,
    by_age: VecDeque<(NodeId, Tag)>,
}

impl RecentForwards {
    /// How many are remembered. A repetition comes within one round trip or not at all.
    const REMEMBERED: usize = 16 * 1024;

    pub(super) fn is_new(&mut self, from: NodeId, tag: Tag) -> bool {
        if !self.known.insert((from, tag)) {
            return false;
        }
        self.by_age.push_back((from, tag));
        if self.by_age.len() > RecentForwards::REMEMBERED
            && let Some(oldest) = self.by_age.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }
}
