//! What nodes say to each other to agree on documents, and to found a cluster.
//!
//! These are rare and carry whole documents, so they are coded with serde; the order of the variants is their code.

use std::sync::Arc;

use ring::{ClusterDocument, ClusterId, Epoch, NodeId, VoterId};
use serde::{Deserialize, Serialize};

use crate::message::StartId;

/// Names one attempt to get a document agreed on. The process is part of it, so that no attempt has the name of
/// another, whatever a restart has forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Ballot {
    /// Higher than every one that its proposer had heard of.
    pub counter: u64,
    /// Who proposes.
    pub node: NodeId,
    /// Its process.
    pub start: StartId,
}

/// Names one document beyond doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DocumentName {
    /// Its epoch.
    pub epoch: Epoch,
    /// Its digest.
    pub digest: [u8; 32],
}

/// A document under a ballot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// The ballot.
    pub ballot: Ballot,
    /// The document.
    #[serde(with = "shared")]
    pub document: Arc<ClusterDocument>,
}

/// What is said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgreementMessage {
    /// Asks a member to promise that it accepts nothing under a lower ballot, for the successor of `base`.
    Prepare {
        /// The document that both hold.
        base: DocumentName,
        /// The attempt.
        ballot: Ballot,
    },
    /// A member's promise, synced.
    Promise {
        /// From the question.
        ballot: Ballot,
        /// Who promises.
        voter: VoterId,
        /// What it has accepted for the successor so far, under the highest ballot.
        accepted: Option<Proposal>,
    },
    /// Asks a member to accept a document as the successor of `base`.
    Accept {
        /// The document that both hold.
        base: DocumentName,
        /// Its successor.
        proposal: Proposal,
    },
    /// A member has accepted it, and has synced that.
    Accepted {
        /// From the question.
        ballot: Ballot,
        /// Who accepts.
        voter: VoterId,
    },
    /// A member has promised a higher ballot to another.
    Outbid {
        /// From the question.
        ballot: Ballot,
        /// The higher one.
        by: Ballot,
    },
    /// Asks a founder what formation it has accepted.
    Ask {
        /// The digest of the asker's configuration.
        configuration: [u8; 32],
    },
    /// A founder that holds no document says what formation it has accepted.
    Tell {
        /// The digest of its configuration.
        configuration: [u8; 32],
        /// The first document as it accepted it, if it did.
        accepted: Option<Box<ClusterDocument>>,
    },
    /// Asks a founder to accept a formation.
    Propose {
        /// The first document.
        #[serde(with = "shared")]
        document: Arc<ClusterDocument>,
        /// Formations that cannot come about any more: who accepted one of these may accept this one.
        over: Vec<ClusterId>,
    },
    /// A founder has accepted the formation of this cluster, and has synced that.
    Consent {
        /// The cluster's id, which is drawn anew for each formation that is proposed.
        cluster: ClusterId,
    },
}

impl Ballot {
    /// Nobody counts so far: a ballot from here on is nobody's.
    const COUNTER_MAX: u64 = 1 << 62;

    /// Whether the ballot can be someone's, and leaves room to outbid it.
    pub(crate) fn is_plausible(&self) -> bool {
        self.counter < Ballot::COUNTER_MAX
    }
}

/// A shared value is coded as the value.
pub(crate) mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<T: Serialize, S: Serializer>(
        value: &Arc<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        value.as_ref().serialize(serializer)
    }

    pub(crate) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Arc<T>, D::Error> {
        T::deserialize(deserializer).map(Arc::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BALLOT: Ballot = Ballot { counter: 5, node: NodeId(2), start: StartId(300) };

    #[test]
    fn ballots_are_ordered_by_their_counters_and_no_two_processes_share_one() {
        let higher = Ballot { counter: 6, node: NodeId(1), start: StartId(0) };
        let again = Ballot { start: StartId(301), ..BALLOT };
        assert!(BALLOT < higher && BALLOT < again && again < higher);
        assert!(BALLOT.is_plausible());
        assert!(!Ballot { counter: u64::MAX, ..BALLOT }.is_plausible());
    }

    /// Written down by hand: a variant's number and its fields in postcard's variable-length integers.
    #[test]
    fn the_bytes_of_messages_never_change() {
        let base = DocumentName { epoch: Epoch(4), digest: [9; 32] };
        let ballot = [5, 2, 0xac, 2];
        let nine = [9; 32];
        let cases: [(AgreementMessage, Vec<u8>); 5] = [
            (AgreementMessage::Prepare { base, ballot: BALLOT }, [&[0, 4][..], &nine, &ballot].concat()),
            (
                AgreementMessage::Promise { ballot: BALLOT, voter: VoterId(7), accepted: None },
                [&[1][..], &ballot, &[7, 0]].concat(),
            ),
            (
                AgreementMessage::Accepted { ballot: BALLOT, voter: VoterId(7) },
                [&[3][..], &ballot, &[7]].concat(),
            ),
            (
                AgreementMessage::Tell { configuration: [9; 32], accepted: None },
                [&[6][..], &nine, &[0]].concat(),
            ),
            (AgreementMessage::Consent { cluster: ClusterId(1) }, vec![8, 1]),
        ];
        for (message, bytes) in cases {
            assert_eq!(postcard::to_allocvec(&message).unwrap(), bytes, "{message:?}");
            assert_eq!(postcard::from_bytes::<AgreementMessage>(&bytes).unwrap(), message);
        }
    }
}
