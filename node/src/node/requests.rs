//! Requests: from a client of this node or from a node that forwarded one, to the operation that carries them out.

use std::time::Duration;

use antientropy::version::Context;
use client::{DoubtCause, Limit, Operation as Kind, Refusal, Reply, Request, WriteError};
use ring::ConflictPolicy;

use super::{Node, Operation};
use crate::{
    coordinator::{
        Requester, admit,
        admit::WritePlan,
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
        if let Err(error) = self.try_begin(requester, &request, deadline, may_forward) {
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
        // What is replayed for others is bounded by itself.
        let (operations, most) = (self.operations.len(), self.local.settings.requests_max);
        if operations >= most && operations.saturating_sub(self.hints.flying()) >= most {
            return Err(Refusal::Overloaded(Limit::Requests));
        }
        let located = admit::locate(&self.local, request)?;
        if !self.local.is_recorded() || !located.owners.contains(self.local.node) {
            if !may_forward {
                return Err(Refusal::StaleEpoch { known: self.local.epoch() });
            }
            let copies = located.owners.copies().total();
            let local = &mut self.local;
            return match ForwardOperation::start(local, requester, request.clone(), located, deadline) {
                Ok(forward) => {
                    self.operations.insert(forward.operation(), Operation::Forward(Box::new(forward)));
                    Ok(())
                }
                Err(_) => Err(Refusal::Unavailable { required: copies.min(1), alive: 0 }),
            };
        }
        match request {
            Request::Put(put) => {
                let plan = admit::plan_put(&self.local, located, put)?;
                match self.resume(requester, plan, deadline)? {
                    Some(plan) => self.mint(requester, plan, deadline),
                    None => Ok(()),
                }
            }
            Request::Delete(delete) => {
                let plan = admit::plan_delete(&self.local, located, delete)?;
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
    let asked = match request {
        Request::Put(put) => put.options.timeout,
        Request::Delete(delete) => delete.options.timeout,
        Request::Get(get) => get.options.timeout,
    };
    asked.min(settings.timeout_max)
}
