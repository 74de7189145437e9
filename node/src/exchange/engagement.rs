//! What a node is busy with: one exchange at a time that has something to move.
//!
//! A node that lacks much lacks it of several peers. If it were brought by all of them at once, most of it would come more
//! than once. Whether something differs is asked and answered at any time.

use std::time::Duration;

use ring::NodeId;

use crate::local::Local;

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Engagement {
    /// With whom, which of the two leads, and when it was last heard of.
    with: Option<(NodeId, Role, Duration)>,
}

/// What a node does in an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Leads,
    Follows,
}

impl Engagement {
    /// Whether an exchange with a peer may go on; then the node is busy with it.
    pub(super) fn engage<S>(&mut self, local: &Local<S>, peer: NodeId, role: Role) -> bool {
        let may = self.may_engage(local, peer, role);
        if may {
            self.with = Some((peer, role, local.now.monotonic));
        }
        may
    }

    /// Whether it might. One that was not heard of for too long is over.
    pub(super) fn may_engage<S>(&self, local: &Local<S>, peer: NodeId, role: Role) -> bool {
        let silent_after = local.settings.exchange_silent_after;
        self.with.is_none_or(|(with, as_role, heard)| {
            (with, as_role) == (peer, role) || local.now.monotonic > heard + silent_after
        })
    }

    /// The exchange with a peer is over.
    pub(super) fn release(&mut self, peer: NodeId, role: Role) {
        self.with.take_if(|(with, as_role, _)| (*with, *as_role) == (peer, role));
    }

    /// No exchange is under way.
    pub(super) fn clear(&mut self) {
        self.with = None;
    }
}
