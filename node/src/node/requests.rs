//! Requests: from a client of this node or from a node that forwarded one, to the operation that carries them out.

use std::time::Duration;

use antientropy::version::Context;
use client::{DoubtCause, Limit, Operation as Kind, Refusal, Reply, Request, WriteError};
use ring::{ConflictPolicy, NodeId};

use super::{Node, Operation};
use crate::{
    coordinator::{
        Requester, admit,
        admit::{Located, WritePlan},
        forward::{ForwardOperation, refusal},
        outcomes::OutcomeState,
        read::ReadOperation,
        write::WriteOperation,
    },
    settings::Settings,
    storage::Store,
};

impl<S: Store> Node<S> {
    /// Begins a request: here, if this node is a replica of the key, and otherwise at one that is.
    pub(super) fn begin(
        &mut self,
        requester: Requester,
        request: Request,
        deadline: Duration,
        may_forward: bool,
    ) {
        let has_room = self.room_for_requests() > 0;
        self.local.admission.came();
        let begun = if !has_room {
            Err(Refusal::Overloaded(Limit::Requests))
        } else if deadline <= self.local.now.monotonic {
            Err(Refusal::Overloaded(Limit::Time))
        } else {
            self.try_begin(requester, &request, deadline, may_forward)
        };
        if let Err(error) = begun {
            requester.reply(&mut self.local, refusal(&request, error));
        }
    }

    pub(super) fn try_begin(
        &mut self,
        requester: Requester,
        request: &Request,
        deadline: Duration,
        may_forward: bool,
    ) -> Result<(), Refusal> {
        if self.local.is_stopping {
            return Err(Refusal::NotReady);
        }
        let located = admit::locate(&self.local, request)?;
        let mut in_place_of = None;
        if !self.local.is_recorded() || !located.owners.contains(self.local.node) {
            in_place_of = self.in_place_of(request, &located, may_forward)?;
            if in_place_of.is_none() {
                return self.forward(requester, request, located, deadline, may_forward);
            }
        }
        if !matches!(request, Request::Get(_)) && !self.local.may_mint(located.partition) {
            return Err(Refusal::NotReady);
        }
        match request {
            Request::Put(put) => {
                let plan = WritePlan { in_place_of, ..admit::plan_put(&self.local, located, put)? };
                match self.resume(requester, plan, deadline)? {
                    Some(plan) => self.mint(requester, plan, deadline),
                    None => Ok(()),
                }
            }
            Request::Delete(delete) => {
                let plan = WritePlan { in_place_of, ..admit::plan_delete(&self.local, located, delete)? };
                let is_blind = delete.options.context.is_none();
                match self.resume(requester, plan, deadline)? {
                    Some(plan) if is_blind && plan.located.conflict == ConflictPolicy::Siblings => {
                        let read = ReadOperation::before_delete(&mut self.local, requester, plan, deadline);
                        self.operations.insert(read.operation(), Operation::Read(Box::new(read)));
                        Ok(())
                    }
                    Some(plan) => self.mint(requester, plan, deadline),
                    None => Ok(()),
                }
            }
            Request::Get(get) => {
                let tally = admit::tally(&self.local, Kind::Read, get.options.level, &located.owners)?;
                let read =
                    ReadOperation::get(&mut self.local, requester, located, tally, &get.options, deadline);
                self.operations.insert(read.operation(), Operation::Read(Box::new(read)));
                Ok(())
            }
        }
    }

    /// Forwards a request to a replica.
    fn forward(
        &mut self,
        requester: Requester,
        request: &Request,
        located: Located,
        deadline: Duration,
        may_forward: bool,
    ) -> Result<(), Refusal> {
        if !may_forward {
            return Err(Refusal::StaleEpoch { known: self.local.epoch() });
        }
        let copies = located.owners.copies().total();
        match ForwardOperation::start(&mut self.local, requester, request.clone(), located, deadline) {
            Ok(forward) => {
                self.operations.insert(forward.operation(), Operation::Forward(Box::new(forward)));
                Ok(())
            }
            Err(_) => Err(Refusal::Unavailable { required: copies.min(1), alive: 0 }),
        }
    }

    /// The replica in whose place this node is to coordinate a request that it is no replica for: a sloppy write, if no
    /// replica is up that it could be forwarded to, or if it was forwarded for that reason.
    ///
    /// # Errors
    ///
    /// If as much is owed to that replica as may be.
    fn in_place_of(
        &self,
        request: &Request,
        located: &Located,
        may_forward: bool,
    ) -> Result<Option<NodeId>, Refusal> {
        let local = &self.local;
        let is_up = |node: NodeId| {
            node != local.node && local.is_up(node) && !local.peers.is_overdue(local.now, node)
        };
        let is_to = request.counts_stand_ins()
            && local.is_recorded()
            && !(may_forward && located.owners.nodes().any(is_up));
        let target = if is_to { admit::in_place_of(local, located) } else { None };
        match target {
            Some(target) if !self.hints.has_room(local, target) => Err(Refusal::Overloaded(Limit::Hints)),
            target => Ok(target),
        }
    }

    /// If the request's id says that it was written, that write is brought to its level. Otherwise, or if this node
    /// holds it no longer, the plan comes back and the write is still to be made.
    pub(super) fn resume(
        &mut self,
        requester: Requester,
        plan: WritePlan,
        deadline: Duration,
    ) -> Result<Option<WritePlan>, Refusal> {
        let Some(known) = self.outcomes.find(plan.request) else { return Ok(Some(plan)) };
        if known.object != plan.located.object || known.is_delete != plan.is_delete {
            return Err(Refusal::Malformed);
        }
        let (dot, suffices) = (known.dot, known.suffices(&plan));
        match known.state.clone() {
            OutcomeState::Acknowledged(reply) if suffices => {
                requester.reply(&mut self.local, Reply::Write(Ok(reply)));
                Ok(None)
            }
            OutcomeState::UnderWay(operation)
                if suffices && matches!(self.operations.get_mut(operation), Some(Operation::Write(_))) =>
            {
                let Some(Operation::Write(write)) = self.operations.get_mut(operation) else {
                    unreachable!("it was there a moment ago")
                };
                if !write.join(requester) {
                    // As doubtful as the attempt that it would have waited for.
                    let (required, cause) = (plan.tally.required(), DoubtCause::TooManyAttempts);
                    let error = WriteError::InDoubt { required, acknowledged: 0, cause };
                    requester.reply(&mut self.local, Reply::Write(Err(error)));
                }
                Ok(None)
            }
            // Brought to what this attempt asks for, whatever the earlier one asked for.
            OutcomeState::InDoubt | OutcomeState::Acknowledged(_) | OutcomeState::UnderWay(_) => {
                let (local, outcomes) = (&mut self.local, &mut self.outcomes);
                match WriteOperation::resume(local, outcomes, requester, plan, deadline, dot) {
                    Ok(write) => {
                        self.operations.insert(write.operation(), Operation::Write(Box::new(write)));
                        Ok(None)
                    }
                    Err(plan) => Ok(Some(*plan)),
                }
            }
        }
    }

    pub(super) fn mint(
        &mut self,
        requester: Requester,
        plan: WritePlan,
        deadline: Duration,
    ) -> Result<(), Refusal> {
        let (local, outcomes) = (&mut self.local, &mut self.outcomes);
        let write = WriteOperation::mint(local, outcomes, requester, plan, deadline)?;
        self.operations.insert(write.operation(), Operation::Write(Box::new(write)));
        Ok(())
    }

    /// The read of a delete is complete: what it saw is deleted, if it saw anything.
    pub(super) fn delete_what_was_read(&mut self, requester: Requester, plan: WritePlan, deadline: Duration) {
        if plan.context == Context::new() {
            let reply = client::WriteReply {
                version: None,
                context: None,
                required: plan.tally.required(),
                acknowledged: plan.tally.required(),
                stood_in: 0,
                coordinator: self.local.node,
            };
            return requester.reply(&mut self.local, Reply::Write(Ok(reply)));
        }
        // What it would mint now the process might not stay to sync, nor to leave as hints.
        if self.local.is_stopping {
            return requester.reply(&mut self.local, Reply::Write(Err(Refusal::NotReady.into())));
        }
        // Another attempt may have read, and deleted, in the meantime.
        let ended = match self.resume(requester, plan, deadline) {
            Ok(Some(plan)) => self.mint(requester, plan, deadline),
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            requester.reply(&mut self.local, Reply::Write(Err(error.into())));
        }
    }
}

/// How long a request may take.
pub(super) fn timeout(request: &Request, settings: &Settings) -> Duration {
    request.timeout().min(settings.timeout_max)
}
