//! Watches every vote about a document as it is cast, and looks at the disk and at the process that cast it.
//!
//! That two documents of one epoch come about takes a rare history: votes that are forgotten just between two rounds.
//! The rules that prevent it are broken far more often than they matter, and each can be seen at the moment of the vote.

use node::{
    message::{AgreementMessage, Ballot, Envelope, Message},
    storage::read_votes,
};
use ring::NodeId;

use crate::{host::Host, world::World};

impl World {
    /// A process sends a message: if it is a vote, it is looked at. A process votes for itself without a message; its
    /// own vote is seen with the question that follows.
    pub(crate) fn watch_vote(&mut self, index: usize, envelope: &Envelope) {
        let Message::Agreement(agreement) = &envelope.message else { return };
        let (ballot, voter, is_accepted) = match &**agreement {
            AgreementMessage::Promise { ballot, voter, .. } => (*ballot, *voter, false),
            AgreementMessage::Accepted { ballot, voter } => (*ballot, *voter, true),
            AgreementMessage::Prepare { .. }
            | AgreementMessage::Accept { .. }
            | AgreementMessage::Outbid { .. }
            | AgreementMessage::Ask { .. }
            | AgreementMessage::Tell { .. }
            | AgreementMessage::Propose { .. }
            | AgreementMessage::Consent { .. } => return,
        };
        let now = self.schedule.now();
        let host = &self.hosts[index];
        let Some(process) = &host.process else { return };
        let node = host.node;
        let mut wrong = Vec::new();
        if !is_on_disk(host, ballot, is_accepted) {
            wrong.push(format!("{node} told of a vote at {now} that its disk does not hold"));
        }
        let member = process.node.document().and_then(|document| document.members.get(&node));
        if member.is_none_or(|member| member.store != envelope.header.store || member.voter != voter) {
            wrong
                .push(format!("{node} voted at {now} with a store or a memory that is not the recorded one"));
        }
        let is_patient = now.since(process.started) < self.swarm.settings.vote_patience;
        let members = process.node.document().into_iter().flat_map(|document| document.members.keys());
        let judges: Vec<NodeId> = members.copied().filter(|other| *other != node).collect();
        if is_patient && !judges.iter().all(|judge| process.welcomed.contains(judge)) {
            wrong.push(format!("{node} voted at {now} before all its peers had judged its store"));
        }
        self.history.wrong_votes.extend(wrong);
    }
}

/// Whether the voter's disk holds a vote under this ballot, or voted under a higher one or about a later epoch since.
fn is_on_disk(host: &Host, ballot: Ballot, is_accepted: bool) -> bool {
    let Some(votes) = read_votes(&host.disk) else { return false };
    let held = if is_accepted { votes.accepted } else { Some(votes.promised) };
    let known =
        host.process.as_ref().and_then(|process| process.node.document()).map(|document| document.epoch);
    // The answer may have waited while a document was adopted and a vote about its successor was cast.
    held.is_some_and(|held| held >= ballot) || known.is_some_and(|known| votes.epoch > known)
}
