//! Why an operation failed, as the caller of the library hears it.
//!
//! A coordinator's verdict on one attempt is a [`WriteError`](crate::WriteError) or a [`GetError`](crate::GetError).
//! An operation may be several attempts, some of which no coordinator ever judged: what can be concluded from all of
//! them together is a *failure*. A write is as doubtful as its most doubtful attempt: once one attempt may have
//! happened, no later refusal makes the write definitely failed; only an acknowledgement settles it.

use std::{fmt, io, sync::Arc};

use ring::{ClusterId, NodeId};
use thiserror::Error;

use crate::{
    DoubtCause, Refusal,
    wire::{ControlError, DecodeError, FrameError, UnsupportedVersion},
};

/// Where TLS alerts begin among the codes of QUIC: RFC 9001, section 4.8.
const TLS_ALERTS: u64 = 0x100;
/// The alerts that are about a certificate, from bad_certificate to certificate_required: RFC 8446, section 6.2.
const CERTIFICATE_ALERTS: [u64; 9] = [42, 43, 44, 45, 46, 48, 49, 51, 116];

/// Why a put or a delete was not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WriteFailure {
    /// It did not happen and never will, on any replica.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// It may have happened, or may yet. Read the key to find out, or send the write with `retry_in_doubt`.
    #[error("in doubt: {0}")]
    InDoubt(Doubt),
    /// It was sent to no node, so it did not happen.
    #[error("{0}")]
    Unreachable(Unreachable),
}

/// What left a write in doubt.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Doubt {
    /// The coordinator said so.
    #[error("{acknowledged} of {required} replicas acknowledged, then {cause}")]
    Coordinator {
        /// How many replicas had to acknowledge.
        required: u8,
        /// How many did.
        acknowledged: u8,
        /// What stopped it.
        cause: DoubtCause,
    },
    /// The connection ended after the write was sent on it.
    #[error("the connection to {node} was lost after it was sent")]
    ConnectionLost {
        /// Where it was sent.
        node: NodeId,
    },
    /// The coordinator had not answered when the time was up.
    #[error("{node} did not answer in time")]
    Silent {
        /// Where it was sent.
        node: NodeId,
    },
}

/// Why a get was not answered. A read has no effect, so trying again is always safe.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ReadFailure {
    /// Nothing was read.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// Too few replicas answered, or held durably what was found, in time.
    #[error("timed out: {answered} of {required} replicas answered")]
    TimedOut {
        /// How many replicas had to answer.
        required: u8,
        /// How many did.
        answered: u8,
    },
    /// Nodes were asked, and none of them answered in time.
    #[error("timed out: {node} did not answer in time")]
    Silent {
        /// The last that was asked.
        node: NodeId,
    },
    /// No node could be asked.
    #[error("{0}")]
    Unreachable(Unreachable),
}

/// Why a request about the cluster, or a change of it, was not answered. Asking again is safe for all of them.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ControlFailure {
    /// A node said why.
    #[error("{0}")]
    Refused(#[from] ControlError),
    /// The node had not answered when the time was up. A change may have been made.
    #[error("{node} did not answer in time")]
    Silent {
        /// The node.
        node: NodeId,
    },
    /// The connection ended after the request was sent on it. A change may have been made.
    #[error("the connection to {node} was lost")]
    ConnectionLost {
        /// The node.
        node: NodeId,
    },
    /// The node answered another question than it was asked.
    #[error("{node} gave an answer of another kind than was asked for")]
    WrongKind {
        /// The node.
        node: NodeId,
    },
    /// The document has no such member.
    #[error("{0} is no member of the cluster")]
    NoSuchNode(NodeId),
    /// No node could be asked.
    #[error("{0}")]
    Unreachable(Unreachable),
}

/// Why a client could not be made.
#[derive(Clone, Debug, Error)]
pub enum ConnectError {
    /// The certificates or the key cannot be used.
    #[error("{0}")]
    Material(Arc<crate::tls::TlsError>),
    /// The configuration names no seeds.
    #[error("no seeds are configured")]
    NoSeeds,
    /// The configured datacenter is none of the cluster's.
    #[error("the cluster has no datacenter `{name}`; it has {}", known.join(", "))]
    NoSuchDatacenter {
        /// What was configured.
        name: String,
        /// The cluster's own.
        known: Vec<String>,
    },
    /// No seed could be used.
    #[error("{0}")]
    Unreachable(Unreachable),
}

/// No node could be asked: what happened at each that was tried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unreachable {
    /// The nodes, or the seeds, in the order in which they failed.
    pub tried: Vec<Unreached>,
}

/// A node that could not be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreached {
    /// Its address, as it was configured or as the cluster document has it.
    pub address: String,
    /// What happened.
    pub cause: DialError,
}

/// Why a node could not be asked.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DialError {
    /// Its address has no meaning here.
    #[error("the name cannot be resolved: {reason}")]
    Resolve {
        /// What the system says.
        reason: String,
    },
    /// No socket could be opened on this machine.
    #[error("no socket can be opened: {0}")]
    Socket(io::ErrorKind),
    /// The address cannot be connected to.
    #[error("{0}")]
    Address(quinn::ConnectError),
    /// It did not answer in time.
    #[error("no answer")]
    Silent,
    /// It does not take this client's certificate.
    #[error("it refuses this client's certificate: {reason}")]
    CertificateRefused {
        /// What it says.
        reason: String,
    },
    /// Its certificate is not of the cluster's authority, or not a node's.
    #[error("its certificate is not trusted: {reason}")]
    NotTrusted {
        /// What is wrong with it.
        reason: String,
    },
    /// The connection ended.
    #[error("{0}")]
    Connection(#[from] quinn::ConnectionError),
    /// It ended the stream of requests.
    #[error("it ended the stream")]
    StreamEnded,
    /// It sent what is no message.
    #[error("it sent what cannot be read: {0}")]
    Malformed(#[from] DecodeError),
    /// It sent what is no frame.
    #[error("it sent what cannot be read: {0}")]
    Frame(#[from] FrameError),
    /// It greeted with something else than a welcome.
    #[error("it did not greet as a node does")]
    NoWelcome,
    /// It is of another age.
    #[error("{0}")]
    Version(#[from] UnsupportedVersion),
    /// Another node listens there.
    #[error("{found} listens there")]
    WrongNode {
        /// Who does.
        found: NodeId,
    },
    /// It belongs to another cluster.
    #[error("it belongs to another cluster, {found}")]
    OtherCluster {
        /// Which.
        found: ClusterId,
    },
    /// It has no valid document to give.
    #[error("{0}")]
    NoDocument(ControlError),
    /// Its document does not make sense.
    #[error("its cluster document is not valid")]
    InvalidDocument,
    /// As many requests wait to be written to it as may.
    #[error("too many requests wait to be written to it")]
    QueueFull,
}

impl WriteFailure {
    /// Whether the write may have happened, or may yet.
    #[must_use]
    pub fn is_in_doubt(&self) -> bool {
        match self {
            WriteFailure::InDoubt(_) => true,
            WriteFailure::Refused(_) | WriteFailure::Unreachable(_) => false,
        }
    }
}

impl ControlFailure {
    /// Whether a change that was asked for may have been made, or may yet be.
    #[must_use]
    pub fn is_in_doubt(&self) -> bool {
        match self {
            ControlFailure::Refused(error) => matches!(error, ControlError::InDoubt),
            ControlFailure::Silent { .. }
            | ControlFailure::ConnectionLost { .. }
            | ControlFailure::WrongKind { .. } => true,
            ControlFailure::NoSuchNode(_) | ControlFailure::Unreachable(_) => false,
        }
    }
}

impl DialError {
    /// What the end of a connection means. A node that refuses a certificate does so after the client believes the
    /// handshake done, by closing with a TLS alert; one that is itself not trusted is closed by this side.
    pub(crate) fn of_connection(error: quinn::ConnectionError) -> DialError {
        let is_alert = |code: quinn::TransportErrorCode| {
            let alert = u64::from(code).checked_sub(TLS_ALERTS);
            alert.is_some_and(|alert| CERTIFICATE_ALERTS.contains(&alert))
        };
        match error {
            quinn::ConnectionError::ConnectionClosed(close) if is_alert(close.error_code) => {
                let reason = String::from_utf8_lossy(&close.reason).into_owned();
                let reason = if reason.is_empty() { close.error_code.to_string() } else { reason };
                DialError::CertificateRefused { reason }
            }
            quinn::ConnectionError::TransportError(error) if is_alert(error.code) => {
                DialError::NotTrusted { reason: error.reason }
            }
            quinn::ConnectionError::TimedOut => DialError::Silent,
            other => DialError::Connection(other),
        }
    }
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.tried.is_empty() {
            return f.write_str("no node was reached in time");
        }
        f.write_str("no node could be reached: ")?;
        for (index, Unreached { address, cause }) in self.tried.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{address}: {cause}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Unreachable {}
