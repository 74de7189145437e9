//! Forwarding a request to a replica of its key: a node that is not one forwards once, and the receiver does not
//! forward again.

use std::time::Duration;

use client::{DoubtCause, GetError, Refusal, Reply, Request, WriteError};
use ring::NodeId;

use super::{Requester, Step, admit::Located, stand_ins::spares};
use crate::{
    local::{Event, Local},
    message::{Message, Tag},
    storage::Store,
};

/// A forwarded request.
#[derive(Debug)]
pub(crate) struct ForwardOperation {
    operation: u64,
    requester: Requester,
    request: Request,
    located: Located,
    tried: Vec<NodeId>,
    deadline: Duration,
    timer: Duration,
}

impl ForwardOperation {
    /// Forwards to the best replica that is up. Gives the requester back if there is none.
    pub(crate) fn start<S: Store>(
        local: &mut Local<S>,
        requester: Requester,
        request: Request,
        located: Located,
        deadline: Duration,
    ) -> Result<ForwardOperation, Requester> {
        let operation = local.numbers.take();
        let timer = deadline.min(local.now.monotonic + local.settings.forward_retry_after);
        let mut forward =
            ForwardOperation { operation, requester, request, located, tried: Vec::new(), deadline, timer };
        if !forward.try_next(local) {
            local.numbers.give_back(operation);
            return Err(requester);
        }
        local.counters.forwarded += 1;
        local.timers.insert((timer, operation));
        Ok(forward)
    }

    /// Its number.
    pub(crate) fn operation(&self) -> u64 {
        self.operation
    }

    /// Forwards to the next replica, those of this node's datacenter first. False if there is none.
    fn try_next<S: Store>(&mut self, local: &mut Local<S>) -> bool {
        let members = local.document.as_ref().map(|document| &document.members);
        let here = members.and_then(|members| members.get(&local.node)).map(|member| member.datacenter);
        let fresh = |node: NodeId| node != local.node && local.is_up(node) && !self.tried.contains(&node);
        let candidates = self.located.owners.iter().filter(|owner| fresh(owner.node));
        let best = candidates
            .min_by_key(|owner| (Some(owner.datacenter) != here, local.peers.cost(local.now, owner.node)));
        let Some(node) = best.map(|owner| owner.node).or_else(|| self.spare(local)) else { return false };
        self.tried.push(node);
        let tag = Tag { operation: self.operation, question: 0 };
        let remaining = self.deadline.saturating_sub(local.now.monotonic);
        local.send(node, Message::Forward { tag, request: Box::new(self.request.clone()), remaining });
        true
    }

    /// A node that can coordinate a sloppy write in place of the replicas.
    fn spare<S: Store>(&self, local: &Local<S>) -> Option<NodeId> {
        let document = local.document.as_ref().filter(|_| self.request.counts_stand_ins())?;
        let fresh = |node: &NodeId| *node != local.node && local.is_up(*node) && !self.tried.contains(node);
        self.located.owners.iter().find_map(|owner| spares(document, &self.located, owner).find(fresh))
    }

    /// The replica answered.
    pub(crate) fn on_event<S: Store>(&mut self, local: &mut Local<S>, event: Event) -> Step {
        let Event::Forwarded { reply } = event else { return Step::Continue };
        // Of two replicas that a read was forwarded to, the second may still do better than a refusal.
        let is_refused = matches!(*reply, Reply::Get(Err(GetError::Refused(_))));
        if is_refused && self.try_next(local) {
            return Step::Continue;
        }
        self.end(local, *reply)
    }

    /// It has been silent for too long, or the time is up.
    pub(crate) fn on_timer<S: Store>(&mut self, local: &mut Local<S>) -> Step {
        if local.now.monotonic >= self.deadline {
            let reply = match self.request {
                // It was sent, so it may have been minted.
                Request::Put(_) | Request::Delete(_) => Reply::Write(Err(WriteError::InDoubt {
                    required: 1,
                    acknowledged: 0,
                    cause: DoubtCause::CoordinatorSilent,
                })),
                Request::Get(_) => Reply::Get(Err(GetError::TimedOut { required: 1, answered: 0 })),
            };
            return self.end(local, reply);
        }
        if let Some(node) = self.tried.last() {
            local.missed(*node);
        }
        // A read has no effect and may be asked of several; a write is forwarded once.
        if matches!(self.request, Request::Get(_)) {
            self.try_next(local);
        }
        local.timers.remove(&(self.timer, self.operation));
        self.timer = self.deadline.min(local.now.monotonic + local.settings.forward_retry_after);
        local.timers.insert((self.timer, self.operation));
        Step::Continue
    }

    fn end<S: Store>(&mut self, local: &mut Local<S>, reply: Reply) -> Step {
        local.timers.remove(&(self.timer, self.operation));
        self.requester.reply(local, reply);
        Step::Done
    }
}

/// The reply to a request that is refused, of the request's kind.
pub(crate) fn refusal(request: &Request, refusal: Refusal) -> Reply {
    match request {
        Request::Put(_) | Request::Delete(_) => Reply::Write(Err(refusal.into())),
        Request::Get(_) => Reply::Get(Err(refusal.into())),
    }
}
