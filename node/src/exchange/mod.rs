//! Exchanges between nodes: a node and a peer bring to each other what differs in all that both are to keep.
//!
//! What is asked and answered is [`antientropy::exchange`]'s; here is who asks whom and when, and what may be concluded. An
//! answer is given, and an exchange is complete, only when everything is synced that was held at that time. A filling copy
//! that has completed an exchange with every other copy becomes whole. Whole copies are compared every few seconds, the node
//! with the lower id leading.

mod engagement;
mod facing;
mod schedule;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use antientropy::exchange::{Exchange, Question};
use engagement::{Engagement, Role};
use facing::Facing;
use rand_core::Rng;
use ring::{NodeId, PartitionId, StoreId};

use crate::{
    coordinator::Step,
    copies::Time,
    local::{Event, Local},
    message::{ExchangeAnswer, Message, Standing, Tag},
    planted::PlantedBug,
    storage::Store,
    waiting::Waiting,
};

pub(crate) use schedule::{Exchanges, PeerEnded, RETRY_AFTER};

/// The number under which an exchange hears that it is synced: its questions are numbered from 1.
const SYNC: u32 = 0;
/// Its first question, with which each side says where it stands.
const FIRST: u32 = 1;

/// An exchange that this node leads.
#[derive(Debug)]
pub(crate) struct ExchangeOperation {
    operation: u64,
    peer: NodeId,
    /// The partitions that both nodes have copies of, and for those that are filling in which time it began.
    shared: Arc<[PartitionId]>,
    times: BTreeMap<PartitionId, Time>,
    /// Where this node stood when it began, and the peer as it answered first.
    standing: Standing,
    theirs: Option<Standing>,
    /// Where the peer has lost something since: that it lacks a record means nothing there.
    lost: BTreeSet<PartitionId>,
    /// Whether the peer is at a higher watermark, so that it has to begin anew at once.
    is_behind: bool,
    begun: Duration,
    exchange: Exchange,
    /// Questions that wait until this node's disk has caught up.
    held_back: Vec<Question>,
    stage: Stage,
    /// Whether something differs, and this is what the node is busy with.
    is_engaged: bool,
    was_put_off: bool,
    /// Whether there was a reason for it beside that it was time.
    was_wanted: bool,
    timer: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Asking and merging.
    Moving,
    /// Waiting for this node's disk before it asks for more.
    CatchingUp,
    /// Everything is here, and not synced.
    Syncing,
    Complete,
}

impl ExchangeOperation {
    /// Begins to compare what a peer and this node share. None without a document.
    fn start<S: Store>(
        local: &mut Local<S>,
        peer: NodeId,
        shared: &Arc<[PartitionId]>,
    ) -> Option<ExchangeOperation> {
        let time = |partition: &PartitionId| (*partition, local.copies.time(*partition));
        let times: BTreeMap<PartitionId, Time> = shared.iter().map(time).collect();
        let standing = local.standing(shared);
        local.close(shared, &standing);
        let salt = local.rng.next_u64();
        let (exchange, question) = Exchange::begin(&Facing::leading(local, peer, shared)?, salt);
        let operation = local.numbers.take();
        let (begun, shared) = (local.now.monotonic, Arc::clone(shared));
        let timer = begun + local.settings.exchange_silent_after;
        local.timers.insert((timer, operation));
        let (held_back, stage) = (vec![question], Stage::Moving);
        let mut started = ExchangeOperation {
            operation,
            peer,
            shared,
            times,
            standing,
            theirs: None,
            lost: BTreeSet::new(),
            is_behind: false,
            begun,
            exchange,
            held_back,
            stage,
            is_engaged: false,
            was_put_off: false,
            was_wanted: false,
            timer,
        };
        started.ask(local);
        Some(started)
    }

    /// Its number.
    pub(crate) fn operation(&self) -> u64 {
        self.operation
    }

    /// Something was answered, or is synced.
    pub(crate) fn on_event<S: Store>(
        &mut self,
        local: &mut Local<S>,
        exchanges: &mut Exchanges,
        question: u32,
        event: Event,
    ) -> Step {
        let engagement = &mut exchanges.engagement;
        let goes_on = match event {
            Event::ExchangeAnswered { store, answer } => {
                self.answered(local, engagement, question, store, *answer)
            }
            Event::Synced if question == SYNC => {
                self.stage = match self.stage {
                    Stage::Syncing => Stage::Complete,
                    _ => Stage::Moving,
                };
                true
            }
            // It is busy, or speaks under another document.
            Event::Declined => {
                self.was_put_off = true;
                false
            }
            _ => false,
        };
        if !goes_on {
            return self.end(local);
        }
        local.timers.remove(&(self.timer, self.operation));
        self.timer = local.now.monotonic + local.settings.exchange_silent_after;
        local.timers.insert((self.timer, self.operation));
        self.advance(local)
    }

    fn answered<S: Store>(
        &mut self,
        local: &mut Local<S>,
        engagement: &mut Engagement,
        question: u32,
        store: StoreId,
        ExchangeAnswer { standing, answer }: ExchangeAnswer,
    ) -> bool {
        // A store that the document does not record is not the copy that has to be heard.
        if local.recorded_store(self.peer) != Some(store) {
            return false;
        }
        let standing = standing.filter(|standing| standing.len() == self.shared.len() as u64);
        if question == FIRST {
            let Some(standing) = standing else { return false };
            local.hear_standing(self.peer, &self.shared, &standing);
            self.theirs = Some(standing);
        } else if let (Some(now), Some(before)) = (standing, &self.theirs) {
            for ((partition, now), before) in self.shared.iter().zip(now.each()).zip(before.each()) {
                if now.filling != 0 && now.filling != before.filling {
                    local.watermarks.hear_filling(*partition, self.peer, now.filling);
                    self.lost.insert(*partition);
                }
            }
        }
        let Some(answer) = answer else {
            (self.is_behind, self.was_put_off) = (question == FIRST, true);
            return false;
        };
        let Some(mut facing) = Facing::leading(local, self.peer, &self.shared) else { return false };
        match self.exchange.answered(&mut facing, question, answer) {
            Ok(questions) => self.held_back.extend(questions),
            Err(_) => return false,
        }
        let moves = self.is_engaged || !self.held_back.is_empty();
        self.is_engaged = moves && engagement.engage(local, self.peer, Role::Leads);
        self.was_put_off = moves && !self.is_engaged;
        !self.was_put_off
    }

    /// Asks what is to be asked, or waits for this node's disk.
    fn advance<S: Store>(&mut self, local: &mut Local<S>) -> Step {
        match self.stage {
            Stage::CatchingUp | Stage::Syncing => Step::Continue,
            Stage::Complete => self.end(local),
            Stage::Moving if !self.held_back.is_empty() => {
                if local.replica.unsynced_bytes() > local.settings.exchange_unsynced_max {
                    self.wait(local, Stage::CatchingUp)
                } else {
                    self.ask(local);
                    Step::Continue
                }
            }
            Stage::Moving if self.exchange.is_complete() => self.wait(local, Stage::Syncing),
            Stage::Moving => Step::Continue,
        }
    }

    /// Waits until what is held now is synced.
    fn wait<S: Store>(&mut self, local: &mut Local<S>, stage: Stage) -> Step {
        self.stage = stage;
        let tag = Tag { operation: self.operation, question: SYNC };
        let pending = local.replica.pending_any();
        local.when_synced(pending, Waiting::Event { tag, event: Event::Synced });
        Step::Continue
    }

    fn ask<S: Store>(&mut self, local: &mut Local<S>) {
        for Question { number, message } in self.held_back.drain(..) {
            let tag = Tag { operation: self.operation, question: number };
            let standing = (number == FIRST).then(|| self.standing.clone());
            local.send(self.peer, Message::Exchange { tag, standing, question: message });
        }
    }

    /// Nothing was answered for too long.
    pub(crate) fn on_timer<S: Store>(&mut self, local: &mut Local<S>) -> Step {
        if local.now.monotonic < self.timer { Step::Continue } else { self.end(local) }
    }

    /// Ends, complete or not.
    pub(crate) fn end<S: Store>(&mut self, local: &mut Local<S>) -> Step {
        local.timers.remove(&(self.timer, self.operation));
        Step::Done
    }

    /// The partitions of which nothing follows from it: those that it passed over, and those of which one side has lost
    /// something since it began.
    fn left_out<S: Store>(&self, local: &Local<S>) -> BTreeSet<PartitionId> {
        let mut left_out: BTreeSet<PartitionId> = self.exchange.left_out().iter().copied().collect();
        if local.planted != Some(PlantedBug::LossWhileExchanging) {
            let has_lost =
                |(partition, time): &(&PartitionId, &Time)| local.copies.has_lost_since(**partition, **time);
            left_out.extend(self.times.iter().filter(has_lost).map(|(partition, _)| partition));
            left_out.extend(&self.lost);
        }
        left_out
    }

    fn is_complete(&self) -> bool {
        self.stage == Stage::Complete
    }
}
