//! Agreeing on documents: requests for changes, votes of this node and of others, and forming a cluster, each handed to
//! whoever decides about it.

use std::{sync::Arc, time::Duration};

use client::wire::ControlError;
use ring::{ClusterDocument, Epoch, NodeId, StoreId};

use super::{Node, documents::EPOCH_MAX};
use crate::{
    agreement::{
        changes::{Ended, Heard, Introduced},
        forming::Forming,
        round::{Electorate, Next, Round},
        votes::Withheld,
    },
    event::{Change, ClientTag, Output},
    local::Local,
    message::{AgreementMessage, Ballot, DocumentName, Message, Proposal},
    planted::PlantedBug,
    storage::Store,
    waiting::Waiting,
};

impl<S: Store> Node<S> {
    /// An administrator wants the document changed.
    pub(super) fn on_change(&mut self, client: ClientTag, change: Change, timeout: Duration) {
        let error = if self.local.is_stopping || !self.is_elector() {
            ControlError::NotReady
        } else if self.agreement.changes.len() >= self.local.settings.changes_max {
            ControlError::Overloaded
        } else {
            let deadline = self.local.now.monotonic + timeout.min(self.local.settings.timeout_max);
            self.agreement.changes.push(client, change, deadline);
            return self.review_changes();
        };
        self.changed((client, Err(error)));
    }

    /// Does what is due about documents: asks founders, answers changes, gives up rounds and begins others.
    pub(super) fn agree(&mut self) {
        if let Some(forming) = &mut self.agreement.forming
            && let Some(document) = forming.tick(&mut self.local)
        {
            self.learn(document);
        }
        let now = self.local.now.monotonic;
        if self.agreement.round.as_ref().is_some_and(|round| round.deadline <= now) {
            self.give_up_round();
        }
        if self.agreement.changes.len() > 0 {
            let own = own_introduction(&mut self.local);
            let local = &self.local;
            let heard = |node| heard(local, own, node);
            let ended = self.agreement.changes.take_ended(now, heard, |epoch| is_everywhere(local, epoch));
            ended.into_iter().for_each(|ended| self.changed(ended));
            self.review_changes();
            self.begin_round();
        }
    }

    /// When [`Node::agree`] has something to do.
    pub(super) fn agreement_due(&self) -> Option<Duration> {
        let agreement = &self.agreement;
        let may_begin =
            agreement.changes.is_waiting() && agreement.round.is_none() && self.adopting.is_none();
        [
            agreement.forming.as_ref().and_then(Forming::next_due),
            agreement.round.as_ref().map(|round| round.deadline),
            agreement.changes.next_due(),
            may_begin.then_some(agreement.retry_at),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn changed(&mut self, (client, outcome): Ended) {
        self.local.outbox.push_back(Output::Changed { client, outcome });
    }

    /// Looks at the changes that wait: the document is another, or one of them is new.
    fn review_changes(&mut self) {
        let Some(document) = self.local.document.clone() else { return };
        let local = &mut self.local;
        let own = own_introduction(local);
        let ended = self.agreement.changes.review(&document, |node| heard(local, own, node));
        ended.into_iter().for_each(|ended| self.changed(ended));
    }

    /// Begins a round for the first change that waits, if this node may vote and it is time to.
    fn begin_round(&mut self) {
        let now = self.local.now.monotonic;
        let is_busy = self.agreement.round.is_some() || self.adopting.is_some();
        if is_busy
            || self.local.is_stopping
            || now < self.agreement.retry_at
            || !self.agreement.changes.is_waiting()
        {
            return;
        }
        if self.local.replica.is_refusing() || !self.may_vote() {
            self.agreement.wait(now);
            return;
        }
        let (Some(document), Some(base)) = (self.local.document.clone(), self.local.document_name()) else {
            return;
        };
        let local = &mut self.local;
        let own = own_introduction(local);
        let Some(next) = self.agreement.changes.next(&document, |node| heard(local, own, node)) else {
            // Whatever waits cannot be had as things are now.
            self.agreement.wait(now);
            return self.review_changes();
        };
        let counter = self.agreement.next_counter();
        let ballot = Ballot { counter, node: local.node, start: local.start };
        let deadline = now + self.agreement.round_timeout(&local.settings);
        local.counters.rounds_begun += 1;
        self.agreement.round =
            Some(Round::new(ballot, deadline, base, Electorate::of(&document), Arc::new(next)));
        self.promise(self.local.node, base, ballot);
    }

    fn give_up_round(&mut self) {
        if self.agreement.round.take().is_some() {
            self.local.counters.rounds_given_up += 1;
            let now = self.local.now.monotonic;
            self.agreement.back_off(now, &mut self.local.rng);
        }
    }

    /// A peer says something about documents.
    pub(super) fn on_agreement(&mut self, from: NodeId, store: StoreId, message: AgreementMessage) {
        match message {
            AgreementMessage::Prepare { base, ballot } => {
                if self.may_vote_for(from, base, ballot) {
                    self.promise(from, base, ballot);
                }
            }
            AgreementMessage::Accept { base, proposal } => {
                let document = &proposal.document;
                let is_successor = self.local.document.as_ref().is_some_and(|ours| {
                    document.cluster == ours.cluster && base.epoch.0.checked_add(1) == Some(document.epoch.0)
                });
                if self.may_vote_for(from, base, proposal.ballot)
                    && is_successor
                    && document.validate().is_ok()
                {
                    self.accept(from, proposal);
                }
            }
            AgreementMessage::Promise { ballot, voter, .. }
            | AgreementMessage::Accepted { ballot, voter } => {
                let is_planted = self.local.planted == Some(PlantedBug::WipedVoterVotes);
                let counts = self.agreement.round.as_ref().is_some_and(|round| {
                    let electorate = round.electorate();
                    round.ballot == ballot
                        && (electorate.counts(from, store, voter) || is_planted && electorate.has(from))
                });
                if counts {
                    // Whoever gave this vote must not forget it, and this node will know if it did.
                    let heard = self.local.peers.to_store();
                    let sequence = self.local.replica.put_meta(heard);
                    let message = Box::new(message);
                    self.local.when_synced(Some(sequence), Waiting::Count { from, message });
                }
            }
            AgreementMessage::Outbid { ballot, by } => {
                self.agreement.note(by);
                if self.agreement.round.as_ref().is_some_and(|round| round.ballot == ballot) {
                    self.give_up_round();
                }
            }
            AgreementMessage::Ask { .. }
            | AgreementMessage::Tell { .. }
            | AgreementMessage::Propose { .. }
            | AgreementMessage::Consent { .. } => self.on_forming(from, message),
        }
    }

    /// A founder says something about forming a cluster. Whoever holds a document answers questions with it.
    fn on_forming(&mut self, from: NodeId, message: AgreementMessage) {
        let held = self.local.document.as_ref().or(self.adopting.as_ref()).cloned();
        let local = &mut self.local;
        match (message, held, &mut self.agreement.forming) {
            (AgreementMessage::Ask { .. } | AgreementMessage::Propose { .. }, Some(document), _) => {
                local.send(from, Message::Document(document));
            }
            (AgreementMessage::Ask { configuration }, None, Some(forming)) => {
                forming.on_ask(local, from, configuration);
            }
            // Not configured as a founder, or not soundly: the leader has to know.
            (AgreementMessage::Ask { .. }, None, None) => {
                local.counters.configurations_differing += 1;
                let message = AgreementMessage::Tell { configuration: [0; 32], accepted: None };
                local.send(from, Message::Agreement(Box::new(message)));
            }
            (AgreementMessage::Tell { configuration, accepted }, None, Some(forming)) => {
                forming.on_tell(local, from, configuration, accepted);
            }
            (AgreementMessage::Propose { document, over }, None, Some(forming)) => {
                forming.on_propose(local, from, document, &over);
            }
            (AgreementMessage::Consent { cluster }, None, Some(forming)) => {
                if let Some(document) = forming.on_consent(local, from, cluster) {
                    self.learn(document);
                }
            }
            // It comes too late.
            _ => {}
        }
    }

    /// A peer's process is another than before.
    pub(super) fn founder_restarted(&mut self, node: NodeId) {
        if let Some(forming) = &mut self.agreement.forming {
            forming.restarted(node);
        }
    }

    /// The document is another: rounds for its epoch are over.
    pub(super) fn document_changed(&mut self) {
        let now = self.local.now.monotonic;
        self.agreement.document_changed(now, &mut self.local.rng);
        self.review_changes();
    }

    /// Whether this node may vote about the successor of `base`, as `from` asks it to. Whoever holds an older document
    /// gets this node's.
    fn may_vote_for(&mut self, from: NodeId, base: DocumentName, ballot: Ballot) -> bool {
        let Some(ours) = self.local.document_name() else { return false };
        if ours.epoch > base.epoch {
            let document = self.local.document.clone().expect("it has a name");
            self.local.send(from, Message::Document(document));
            return false;
        }
        if ours.epoch == base.epoch && ours.digest != base.digest {
            self.local.counters.documents_conflicting += 1;
        }
        if ours != base || !ballot.is_plausible() || base.epoch.next() >= EPOCH_MAX {
            return false;
        }
        self.agreement.note(ballot);
        // A store that could not be read when the process began may be readable by now.
        let _ = self.local.voter();
        let may = self.may_vote();
        self.local.counters.votes_withheld += u64::from(!may);
        may
    }

    /// Whether the document records this node's store and its memory of votes.
    pub(super) fn is_elector(&self) -> bool {
        let voter = self.local.votes.voter();
        let store = self.local.store_id();
        let member = self.local.document.as_ref().and_then(|document| document.members.get(&self.local.node));
        member.is_some_and(|member| {
            let is_recorded = member.store == store && Some(member.voter) == voter;
            is_recorded || self.local.planted == Some(PlantedBug::WipedVoterVotes)
        })
    }

    /// Whether this node may vote: it is recorded as it is, and its peers would have said if it had forgotten votes.
    pub(super) fn may_vote(&self) -> bool {
        self.is_elector() && self.agreement.is_settled(&self.local)
    }

    /// Promises a ballot to `to`, once that is synced.
    fn promise(&mut self, to: NodeId, base: DocumentName, ballot: Ballot) {
        let Some(voter) = self.local.voter() else { return };
        match self.local.votes.promise(base.epoch.next(), ballot) {
            Ok(accepted) => self.give_vote(to, AgreementMessage::Promise { ballot, voter, accepted }),
            Err(withheld) => self.withhold(to, ballot, withheld),
        }
    }

    /// Accepts a document for `to`, once that is synced.
    fn accept(&mut self, to: NodeId, proposal: Proposal) {
        let Some(voter) = self.local.voter() else { return };
        let ballot = proposal.ballot;
        match self.local.votes.accept(proposal) {
            Ok(()) => self.give_vote(to, AgreementMessage::Accepted { ballot, voter }),
            Err(withheld) => self.withhold(to, ballot, withheld),
        }
    }

    fn give_vote(&mut self, to: NodeId, message: AgreementMessage) {
        self.local.counters.votes_given += 1;
        let votes = self.local.votes.to_store();
        let sequence = self.local.replica.put_meta(votes);
        if self.local.planted == Some(PlantedBug::VoteNotSynced) {
            return self.cast(to, message);
        }
        self.local.when_synced(Some(sequence), Waiting::Cast { to, message: Box::new(message) });
    }

    fn withhold(&mut self, to: NodeId, ballot: Ballot, withheld: Withheld) {
        match withheld {
            Withheld::Outbid(by) if to == self.local.node => {
                self.agreement.note(by);
                self.give_up_round();
            }
            Withheld::Outbid(by) => {
                let message = AgreementMessage::Outbid { ballot, by };
                self.local.send(to, Message::Agreement(Box::new(message)));
            }
            Withheld::Forgotten => {
                self.local.counters.votes_withheld += 1;
                if to == self.local.node {
                    self.give_up_round();
                }
            }
        }
    }

    /// A vote of this node's is synced: it is told to whoever asked for it.
    pub(super) fn cast(&mut self, to: NodeId, message: AgreementMessage) {
        // Since it was given, this node may have been told that it does not remember how it votes, or have adopted a
        // document that records another memory.
        if let AgreementMessage::Promise { voter, .. } | AgreementMessage::Accepted { voter, .. } = &message
            && (Some(*voter) != self.local.voter() || !self.is_elector())
        {
            return;
        }
        if to == self.local.node {
            return self.count(to, message);
        }
        self.local.send(to, Message::Agreement(Box::new(message)));
    }

    /// A vote for this node's round counts, or its own consent to a formation.
    pub(super) fn count(&mut self, from: NodeId, message: AgreementMessage) {
        let next = match (message, &mut self.agreement.round) {
            (AgreementMessage::Promise { ballot, accepted, .. }, Some(round)) if round.ballot == ballot => {
                round.promised(from, accepted)
            }
            (AgreementMessage::Accepted { ballot, .. }, Some(round)) if round.ballot == ballot => {
                round.accepted(from)
            }
            (message @ AgreementMessage::Consent { .. }, _) => return self.on_forming(from, message),
            _ => Next::Wait,
        };
        match next {
            Next::Wait => {}
            Next::Ask(message) => self.ask_electorate(&message),
            Next::Accept(proposal) if self.may_vote() => self.accept(self.local.node, proposal),
            Next::Accept(_) => self.give_up_round(),
            Next::Decided(document) => {
                self.agreement.round = None;
                self.local.counters.rounds_decided += 1;
                self.learn(document);
            }
        }
    }

    fn ask_electorate(&mut self, message: &AgreementMessage) {
        let Some(round) = &self.agreement.round else { return };
        let here = self.local.node;
        let others: Vec<NodeId> = round.electorate().nodes().filter(|node| *node != here).collect();
        for node in others {
            self.local.send(node, Message::Agreement(Box::new(message.clone())));
        }
    }
}

/// How this node introduces itself.
fn own_introduction<S: Store>(local: &mut Local<S>) -> Option<Introduced> {
    local.voter().map(|voter| (local.store_id(), voter))
}

/// How a node is heard at present to introduce itself: none if it is not heard.
fn heard<S: Store>(local: &Local<S>, own: Option<Introduced>, node: NodeId) -> Option<Heard> {
    if node == local.node {
        return own.map(|introduced| Heard { introduced, is_current: true });
    }
    let introduced = local.peers.introduced(node).filter(|_| local.is_up(node))?;
    Some(Heard { introduced, is_current: local.peers.epoch(node) >= local.epoch() })
}

/// Whether every live member has the document of this epoch, or a later one.
fn is_everywhere<S: Store>(local: &Local<S>, epoch: Epoch) -> bool {
    let has = |node: &NodeId| {
        let is_up = *node != local.node && local.is_up(*node);
        !is_up || local.peers.epoch(*node) >= epoch
    };
    let members = |document: &Arc<ClusterDocument>| document.members.keys().all(has);
    local.epoch() >= epoch && local.document.as_ref().is_some_and(members)
}
