//! Messages between a client and a node.

use ring::{ClusterId, Epoch, NodeId};

use super::{ControlError, ControlReply, ControlRequest};
use crate::{Access, Reply, Request};

/// What a client says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientMessage {
    /// The first frame of a connection.
    Hello(ClientHello),
    /// A request of the data path.
    Request {
        /// Comes back with the reply.
        id: u64,
        /// What is asked.
        request: Request,
    },
    /// Any other request.
    Control {
        /// Comes back with the reply.
        id: u64,
        /// What is asked.
        request: ControlRequest,
    },
}

/// The first frame of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientHello {
    /// The protocol version that the client speaks.
    pub version: u16,
    /// Bits for what it understands beyond that version; none are assigned yet, and unknown ones are ignored.
    pub features: u64,
}

/// What a node says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerMessage {
    /// The first frame of a connection.
    Welcome(ServerWelcome),
    /// How a request ended.
    Reply {
        /// From the request.
        id: u64,
        /// The document under which it was answered: a client whose document is older fetches the newer one.
        epoch: Epoch,
        /// The reply.
        reply: Reply,
    },
    /// How a control request ended.
    Control {
        /// From the request.
        id: u64,
        /// The document under which it was answered.
        epoch: Epoch,
        /// The reply.
        reply: Result<ControlReply, ControlError>,
    },
}

/// The first frame of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerWelcome {
    /// The protocol version that both speak from now on.
    pub version: u16,
    /// Bits for what the node understands beyond it.
    pub features: u64,
    /// Who answers.
    pub node: NodeId,
    /// Its cluster, once it knows.
    pub cluster: Option<ClusterId>,
    /// The epoch of its document; 0 if it has none.
    pub epoch: Epoch,
    /// What the client's certificate allows it.
    pub access: Access,
}
