//! A round: one attempt to get the successor of a document agreed on, as its proposer sees it.
//!
//! The round asks the electorate twice, for promises and for acceptances, and begins each time with its own vote: the
//! others are asked when that is synced, so that each of them sees with the question how far the proposer's store has
//! come, and the vote in which it writes that down is not counted without. If a promise tells of a document that was
//! accepted before, that one is proposed, under the highest ballot told of; the round's own change waits for another.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use ring::{ClusterDocument, NodeId, StoreId, VoterId};

use super::message::{AgreementMessage, Ballot, DocumentName, Proposal};

/// Who votes about the successor of a document: its members, each with one store and one memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Electorate {
    voters: BTreeMap<NodeId, (StoreId, VoterId)>,
}

/// See the module's documentation.
pub(crate) struct Round {
    pub(crate) ballot: Ballot,
    /// When it is given up.
    pub(crate) deadline: Duration,
    node: NodeId,
    base: DocumentName,
    electorate: Electorate,
    /// What is proposed if nobody has accepted anything.
    own: Arc<ClusterDocument>,
    phase: Phase,
}

enum Phase {
    Preparing { promises: BTreeMap<NodeId, Option<Proposal>> },
    Accepting { proposal: Proposal, accepted: BTreeSet<NodeId> },
}

/// What follows from a vote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// More votes are waited for.
    Wait,
    /// All others are asked.
    Ask(AgreementMessage),
    /// The proposer itself is to accept this, and then the others.
    Accept(Proposal),
    /// A majority has accepted it.
    Decided(Arc<ClusterDocument>),
}

impl Electorate {
    /// The electorate for the successor of a document.
    pub(crate) fn of(document: &ClusterDocument) -> Electorate {
        let voters = document.members.iter().map(|(node, member)| (*node, (member.store, member.voter)));
        Electorate { voters: voters.collect() }
    }

    /// Whether this vote counts: of a member, from the store and the memory that the document records for it.
    pub(crate) fn counts(&self, node: NodeId, store: StoreId, voter: VoterId) -> bool {
        self.voters.get(&node) == Some(&(store, voter))
    }

    /// Whether the node is a member, whatever its store.
    pub(crate) fn has(&self, node: NodeId) -> bool {
        self.voters.contains_key(&node)
    }

    /// The members.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.voters.keys().copied()
    }

    /// How many votes decide.
    pub(crate) fn majority(&self) -> usize {
        self.voters.len() / 2 + 1
    }
}

impl Round {
    /// A round of `ballot`'s node that proposes `own` as the successor of `base`.
    pub(crate) fn new(
        ballot: Ballot,
        deadline: Duration,
        base: DocumentName,
        electorate: Electorate,
        own: Arc<ClusterDocument>,
    ) -> Round {
        let phase = Phase::Preparing { promises: BTreeMap::new() };
        Round { ballot, deadline, node: ballot.node, base, electorate, own, phase }
    }

    /// Who votes.
    pub(crate) fn electorate(&self) -> &Electorate {
        &self.electorate
    }

    /// A promise that counts.
    pub(crate) fn promised(&mut self, from: NodeId, accepted: Option<Proposal>) -> Next {
        let Phase::Preparing { promises } = &mut self.phase else { return Next::Wait };
        promises.insert(from, accepted);
        if promises.len() >= self.electorate.majority() {
            let told = promises.values().flatten().max_by_key(|proposal| proposal.ballot);
            let document = Arc::clone(told.map_or(&self.own, |proposal| &proposal.document));
            let proposal = Proposal { ballot: self.ballot, document };
            self.phase = Phase::Accepting { proposal: proposal.clone(), accepted: BTreeSet::new() };
            return Next::Accept(proposal);
        }
        if from == self.node {
            return Next::Ask(AgreementMessage::Prepare { base: self.base, ballot: self.ballot });
        }
        Next::Wait
    }

    /// An acceptance that counts.
    pub(crate) fn accepted(&mut self, from: NodeId) -> Next {
        let Phase::Accepting { proposal, accepted } = &mut self.phase else { return Next::Wait };
        accepted.insert(from);
        if accepted.len() >= self.electorate.majority() {
            return Next::Decided(Arc::clone(&proposal.document));
        }
        if from == self.node {
            return Next::Ask(AgreementMessage::Accept { base: self.base, proposal: proposal.clone() });
        }
        Next::Wait
    }
}
