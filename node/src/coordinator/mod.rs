//! Coordinating requests: section 4.5 of the Dynamo paper, one state machine for each kind of request.
//!
//! [`admit`] decides everything that can be decided before a version is minted; from the mint on, a write is
//! acknowledged or in doubt.

pub(crate) mod admit;
pub(crate) mod forward;
pub(crate) mod outcomes;
pub(crate) mod read;
pub(crate) mod spread;
pub(crate) mod stand_ins;
pub(crate) mod tally;
pub(crate) mod write;

use client::Reply;
use ring::NodeId;

use crate::{
    event::{ClientTag, Output},
    local::Local,
    message::{Message, Tag},
    storage::Store,
};

/// Who is waiting for a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Requester {
    /// A client of this node.
    Client(ClientTag),
    /// A node that forwarded a client's request.
    Forwarder { node: NodeId, tag: Tag },
}

impl Requester {
    /// Replies.
    pub(crate) fn reply<S: Store>(self, local: &mut Local<S>, reply: Reply) {
        local.counters.replied(&reply);
        local.admission.answered(!reply.is_refusal());
        match self {
            Requester::Client(client) => local.outbox.push_back(Output::Reply { client, reply }),
            Requester::Forwarder { node, tag } => {
                local.send(node, Message::Forwarded { tag, reply: Box::new(reply) })
            }
        }
    }
}

/// Whether an operation goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It has more to do.
    Continue,
    /// It is over.
    Done,
}
