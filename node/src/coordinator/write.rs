//! Coordinating a put or a delete.
//!
//! The coordinator, itself a replica, mints the version and stores it with this turn's batch, and sends the resulting
//! record to the other replicas at once. Its own acknowledgement counts when its own disk has synced, like anyone's.
//! At W it answers. It lives on until all have acknowledged or the time is up, and leaves a hint for each that has
//! not.

use std::{sync::Arc, time::Duration};

use antientropy::version::{Counter, Dot, Record};
use client::{DoubtCause, Operation, Refusal, Reply, Version, WriteError, WriteReply};
use smallvec::{SmallVec, smallvec};

use super::{
    Requester, Step,
    admit::{Located, WritePlan, required},
    outcomes::{Outcome, OutcomeState, Outcomes},
    spread::Spread,
    stand_ins::StandIns,
    tally::{Verdict, Vote},
};
use crate::{
    local::{Event, Local, Unheld},
    message::{MergePath, Tag},
    placement::Owners,
    planted::PlantedBug,
    storage::Store,
};

/// Attempts of one request that may wait for the same write.
const REQUESTERS_MAX: usize = 16;

/// A put or a delete under way.
#[derive(Debug)]
pub(crate) struct WriteOperation {
    operation: u64,
    requesters: SmallVec<[Requester; 1]>,
    plan: WritePlan,
    dot: Dot,
    /// The lowest counter that it carries of its actor.
    lowest: Counter,
    /// All that are to keep a copy; the first n of them count.
    keepers: Owners,
    spread: Spread,
    /// Those that stand in for replicas, if the request lets them.
    stand_ins: Option<StandIns>,
    deadline: Duration,
    timer: Duration,
    is_answered: bool,
}

impl WriteOperation {
    /// The version that it brings to the replicas.
    pub(crate) fn dot(&self) -> Dot {
        self.dot
    }

    /// The lowest counter among the values that it brings along of the same actor, and its own. This node may have lost the others
    /// since, with a batch that was refused; whoever knows one of them to be dead drops the actor, and this write with it.
    pub(crate) fn lowest(&self) -> Counter {
        self.lowest
    }

    /// Mints the version and sends it out.
    ///
    /// # Errors
    ///
    /// The limits on the object. Nothing was minted then.
    pub(crate) fn mint<S: Store>(
        local: &mut Local<S>,
        outcomes: &mut Outcomes,
        requester: Requester,
        mut plan: WritePlan,
        deadline: Duration,
    ) -> Result<WriteOperation, Refusal> {
        let Located { object, partition, .. } = &plan.located;
        let held = match local.held(object, *partition) {
            Ok(held) => held,
            Err(Unheld::Damaged) => None,
            Err(Unheld::Unreadable) => return Err(Refusal::NotReady),
        };
        let copies = plan.located.copies();
        let copies = held.as_ref().map_or(copies, |held| held.copies().raised(copies));
        let is_kept = local.keeps(object.keyspace(), *partition, copies);
        // What a whole copy has forgotten nobody has any more, if it keeps all records, however few copies they have.
        let watermark = local.knows_all_below(object.keyspace(), *partition);
        let mint = plan.mint(held, copies, is_kept, watermark);
        let Located { object, partition, .. } = &plan.located;
        let (dot, record) =
            local.replica.mint(local.now, object, *partition, mint, &local.settings, &mut local.rng)?;
        Ok(WriteOperation::spread(local, outcomes, requester, plan, deadline, dot, record))
    }

    /// Brings what a write with this version has become to the level that a retry of it asks for. Gives the plan
    /// back if this node does not hold it any more.
    pub(crate) fn resume<S: Store>(
        local: &mut Local<S>,
        outcomes: &mut Outcomes,
        requester: Requester,
        plan: WritePlan,
        deadline: Duration,
        dot: Dot,
    ) -> Result<WriteOperation, Box<WritePlan>> {
        let Located { object, partition, .. } = &plan.located;
        match local.held(object, *partition) {
            Ok(Some(record)) if record.covers(dot) => {
                Ok(WriteOperation::spread(local, outcomes, requester, plan, deadline, dot, record))
            }
            Ok(_) | Err(_) => Err(Box::new(plan)),
        }
    }

    fn spread<S: Store>(
        local: &mut Local<S>,
        outcomes: &mut Outcomes,
        requester: Requester,
        mut plan: WritePlan,
        deadline: Duration,
        dot: Dot,
        record: Arc<Record>,
    ) -> WriteOperation {
        let operation = local.numbers.take();
        let object = plan.located.object.clone();
        let keepers = keepers(local, &plan.located, &record);
        let under = local.under_of(&object, plan.located.partition, &record);
        let lowest = match &*record {
            Record::Siblings(set) => {
                let of_actor = set.values().filter(|(live, _)| live.actor == dot.actor);
                of_actor.map(|(live, _)| live.counter).fold(dot.counter, Counter::min)
            }
            Record::Lww(_) => dot.counter,
        };
        if local.planted == Some(PlantedBug::CountedBeyondN) {
            plan.tally = plan.tally.widened(&keepers);
        }
        let tag = Tag { operation, question: 0 };
        let spread = Spread::start(
            local,
            tag,
            object.clone(),
            (record, under),
            plan.durability,
            MergePath::Write,
            keepers.iter().copied(),
        );
        let state = OutcomeState::UnderWay(operation);
        let outcome = Outcome {
            object,
            dot,
            is_delete: plan.is_delete,
            level: plan.level,
            n: plan.located.n,
            durability: plan.durability,
            is_sloppy: plan.is_sloppy,
            state,
        };
        outcomes.remember(local.now.monotonic, plan.request, outcome, &local.settings);
        local.timers.insert((deadline, operation));
        let requesters = smallvec![requester];
        let stand_ins = plan.is_sloppy.then(|| StandIns::new(local.now.monotonic, plan.in_place_of));
        let timer = deadline;
        let mut write = WriteOperation {
            operation,
            requesters,
            plan,
            dot,
            lowest,
            keepers,
            spread,
            stand_ins,
            deadline,
            timer,
            is_answered: false,
        };
        write.fill_places(local);
        write
    }

    /// Finds stand-ins for replicas that need one, and looks again later whether more do.
    fn fill_places<S: Store>(&mut self, local: &mut Local<S>) {
        let Some(stand_ins) = &mut self.stand_ins else { return };
        local.timers.remove(&(self.timer, self.operation));
        self.timer = self.deadline;
        if !self.is_answered {
            stand_ins.fill(local, &self.plan.located, &self.spread);
            self.timer = stand_ins.look_at(local.now.monotonic).min(self.deadline);
        }
        local.timers.insert((self.timer, self.operation));
    }

    /// Its number.
    pub(crate) fn operation(&self) -> u64 {
        self.operation
    }

    /// Somebody else asks for the same write. False if too many do already.
    pub(crate) fn join(&mut self, requester: Requester) -> bool {
        let has_room = self.requesters.len() < REQUESTERS_MAX;
        if has_room {
            self.requesters.push(requester);
        }
        has_room
    }

    /// Something happened.
    pub(crate) fn on_event<S: Store>(
        &mut self,
        local: &mut Local<S>,
        outcomes: &mut Outcomes,
        question: u32,
        event: Event,
    ) -> Step {
        if let Event::Merged { from, store, outcome } = event {
            match &mut self.stand_ins {
                Some(stand_ins) if question > 0 => stand_ins.merged(question, from, store, outcome),
                Some(_) | None => self.spread.merged(local, from, store, outcome),
            }
            self.fill_places(local);
        }
        self.evaluate(local, outcomes)
    }

    /// The document has changed.
    pub(crate) fn on_document<S: Store>(&mut self, local: &mut Local<S>, outcomes: &mut Outcomes) -> Step {
        let document = local.document.clone().expect("it has just changed");
        let Located { object, partition, n, .. } = &self.plan.located;
        let Some(owners) = Owners::of(&document, object.keyspace(), *partition, *n) else {
            return self.finish(local, outcomes, DoubtCause::TooFewLeft);
        };
        self.plan.located.owners = owners;
        self.keepers = keepers(local, &self.plan.located, self.spread.record());
        self.spread.document_changed(local, &self.keepers);
        if let Some(stand_ins) = &mut self.stand_ins {
            stand_ins.document_changed(local.now.monotonic);
        }
        self.fill_places(local);
        match required(local, Operation::Write, self.plan.level, &self.plan.located.owners) {
            Ok(tally) => self.plan.tally = tally,
            Err(_) => return self.finish(local, outcomes, DoubtCause::TooFewLeft),
        }
        self.evaluate(local, outcomes)
    }

    /// The time is up.
    pub(crate) fn on_timer<S: Store>(&mut self, local: &mut Local<S>, outcomes: &mut Outcomes) -> Step {
        if local.now.monotonic < self.deadline {
            self.fill_places(local);
            return self.evaluate(local, outcomes);
        }
        self.finish(local, outcomes, DoubtCause::TimedOut)
    }

    fn evaluate<S: Store>(&mut self, local: &mut Local<S>, outcomes: &mut Outcomes) -> Step {
        if !self.is_answered {
            match self.plan.tally.verdict(|node| self.vote(local, node)) {
                Verdict::Pending => return Step::Continue,
                Verdict::Met => self.acknowledge(local, outcomes),
                Verdict::Impossible => return self.finish(local, outcomes, DoubtCause::TooFewLeft),
            }
        }
        if self.spread.is_over() && self.stand_ins.as_ref().is_none_or(StandIns::is_over) {
            return self.finish(local, outcomes, DoubtCause::TooFewLeft);
        }
        Step::Continue
    }

    fn vote<S: Store>(&self, local: &Local<S>, node: ring::NodeId) -> Vote {
        let Some(document) = &local.document else { return Vote::No };
        match local.planted {
            Some(PlantedBug::FailedReplicaCounted) if self.spread.failed(node) => return Vote::Yes,
            Some(PlantedBug::DeadReplicaCounted) if self.spread.was_down(node) => return Vote::Yes,
            Some(_) | None => {}
        }
        let own = self.spread.vote(document, &self.keepers, node);
        match (&self.stand_ins, own) {
            (None, _) | (_, Vote::Yes) => own,
            (Some(stand_ins), _) => match stand_ins.vote(document, &self.plan.located, node) {
                Vote::No => own,
                vote => vote,
            },
        }
    }

    /// Whether somebody else holds the record in a replica's place.
    fn is_stood_in<S: Store>(&self, local: &Local<S>, node: ring::NodeId) -> bool {
        let Some(document) = &local.document else { return false };
        self.vote(local, node) == Vote::Yes
            && self.stand_ins.is_some()
            && self.spread.vote(document, &self.keepers, node) != Vote::Yes
    }

    fn acknowledge<S: Store>(&mut self, local: &mut Local<S>, outcomes: &mut Outcomes) {
        self.is_answered = true;
        let object = self.spread.object();
        let context = only_this(self.spread.record(), self.dot)
            .map(|context| local.settings.context_key.seal(object.keyspace(), object.key_bytes(), &context));
        let is_stood_in = |node| if self.is_stood_in(local, node) { Vote::Yes } else { Vote::No };
        let stood_in = match local.planted {
            Some(PlantedBug::StandInCountedAsStrict) => 0,
            Some(_) | None => self.plan.tally.count(is_stood_in, Vote::Yes),
        };
        local.counters.writes_sloppy += u64::from(stood_in > 0);
        let reply = WriteReply {
            stood_in,
            version: Some(Version { counter: self.dot.counter.0, actor: self.dot.actor.0 }),
            context,
            required: self.plan.tally.required(),
            acknowledged: self.plan.tally.count(|node| self.vote(local, node), Vote::Yes),
            coordinator: local.node,
        };
        outcomes.update(self.plan.request, self.operation, OutcomeState::Acknowledged(reply.clone()));
        for requester in self.requesters.drain(..) {
            requester.reply(local, Reply::Write(Ok(reply.clone())));
        }
    }

    /// Whether the request is answered.
    pub(crate) fn is_answered(&self) -> bool {
        self.is_answered
    }

    /// It is answered, and has waited long enough for the others.
    pub(crate) fn cut_short<S: Store>(&mut self, local: &mut Local<S>, outcomes: &mut Outcomes) -> Step {
        self.finish(local, outcomes, DoubtCause::TooFewLeft)
    }

    /// This node stops: what has not been acknowledged is left to its next process.
    pub(crate) fn leave_hints<S: Store>(&self, local: &mut Local<S>) {
        self.spread.leave_hints(local);
    }

    /// The end: whoever still waits hears that the outcome is in doubt, and who has not acknowledged gets a hint.
    fn finish<S: Store>(&mut self, local: &mut Local<S>, outcomes: &mut Outcomes, cause: DoubtCause) -> Step {
        if !self.is_answered {
            self.is_answered = true;
            outcomes.update(self.plan.request, self.operation, OutcomeState::InDoubt);
            let required = self.plan.tally.required();
            let acknowledged = self.plan.tally.count(|node| self.vote(local, node), Vote::Yes);
            let error = match local.planted {
                Some(PlantedBug::DefiniteErrorAfterMint) => {
                    WriteError::Refused(Refusal::Unavailable { required, alive: acknowledged })
                }
                Some(_) | None => WriteError::InDoubt { required, acknowledged, cause },
            };
            for requester in self.requesters.drain(..) {
                requester.reply(local, Reply::Write(Err(error.clone())));
            }
        }
        self.spread.leave_hints(local);
        local.timers.remove(&(self.timer, self.operation));
        Step::Done
    }
}

/// All that are to keep a copy of a record: those that it records, and at least those that the request counts.
fn keepers<S: Store>(local: &Local<S>, located: &Located, record: &Record) -> Owners {
    let Some(document) = &local.document else { return located.owners.clone() };
    let keyspace = located.object.keyspace();
    let keepers = Owners::keepers(document, keyspace, located.partition, record.copies());
    match keepers {
        Some(keepers) if keepers.len() > located.owners.len() => keepers,
        Some(_) | None => located.owners.clone(),
    }
}

/// A context that covers a write may go back to its writer only if nothing that the writer may not have seen stands
/// beside it: an entry covers all of an actor's earlier versions, and those of other writers must not be erased.
fn only_this(record: &Record, dot: Dot) -> Option<antientropy::version::Context> {
    match record {
        Record::Siblings(set) => {
            let mut values = set.values();
            let only = values.next().is_none_or(|(live, _)| live == dot) && values.next().is_none();
            only.then(|| set.context())
        }
        Record::Lww(_) => Some(record.context()),
    }
}
