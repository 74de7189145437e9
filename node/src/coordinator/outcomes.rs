//! How writes ended, by their request ids, so that a retry finds its write instead of making another.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use antientropy::version::{Dot, RequestId};
use client::{Level, WriteReply};
use ring::Durability;

use super::admit::WritePlan;
use crate::{settings::Settings, storage::ObjectKey};

/// The outcomes that are remembered, bounded in number and age.
pub(crate) struct Outcomes {
    /// Boxed: the tree moves its entries about, and an outcome is ten times as large as its id.
    by_request: BTreeMap<RequestId, Box<Outcome>>,
    /// In the order of their arrival. An id that was remembered twice stands here twice and goes with the first.
    by_age: VecDeque<(Duration, RequestId)>,
}

/// One write.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// Of which object.
    pub(crate) object: ObjectKey,
    /// The version it was given.
    pub(crate) dot: Dot,
    /// Whether it was a delete.
    pub(crate) is_delete: bool,
    /// What it had to reach: the level, among so many copies, at this durability.
    pub(crate) level: Level,
    pub(crate) n: Option<u8>,
    pub(crate) durability: Durability,
    /// Whether nodes that stood in for replicas counted.
    pub(crate) is_sloppy: bool,
    /// How far it has come.
    pub(crate) state: OutcomeState,
}

/// How far a write has come.
#[derive(Clone, Debug)]
pub(crate) enum OutcomeState {
    /// This operation is at it.
    UnderWay(u64),
    /// It was acknowledged with this reply.
    Acknowledged(WriteReply),
    /// It was minted, and not acknowledged in time.
    InDoubt,
}

impl Outcome {
    /// Whether reaching what this write had to reach is enough for another attempt of it.
    pub(crate) fn suffices(&self, plan: &WritePlan) -> bool {
        self.level == plan.level
            && self.n == plan.located.n
            && self.durability >= plan.durability
            && (plan.is_sloppy || !self.is_sloppy)
    }
}

impl Outcomes {
    /// None.
    pub(crate) fn new() -> Outcomes {
        Outcomes { by_request: BTreeMap::new(), by_age: VecDeque::new() }
    }

    /// How the write with this id ended, if it is remembered.
    pub(crate) fn find(&self, request: RequestId) -> Option<&Outcome> {
        // An id of zero was never remembered.
        self.by_request.get(&request).map(Box::as_ref)
    }

    /// Remembers a write. An id of zero names none.
    pub(crate) fn remember(
        &mut self,
        now: Duration,
        request: RequestId,
        outcome: Outcome,
        settings: &Settings,
    ) {
        if request == RequestId::NONE {
            return;
        }
        while let Some((since, oldest)) = self.by_age.front().copied() {
            let is_old = now > since + settings.outcome_age_max;
            if !is_old && self.by_age.len() < settings.outcomes_max {
                break;
            }
            self.by_age.pop_front();
            self.by_request.remove(&oldest);
        }
        self.by_request.insert(request, Box::new(outcome));
        self.by_age.push_back((now, request));
    }

    /// An operation has brought the write with this id further. If another one is at it by now, for a level of its own, that
    /// one's end counts.
    pub(crate) fn update(&mut self, request: RequestId, operation: u64, state: OutcomeState) {
        let outcome = self.by_request.get_mut(&request);
        let is_its = |outcome: &&mut Box<Outcome>| matches!(outcome.state, OutcomeState::UnderWay(current) if current == operation);
        if let Some(outcome) = outcome.filter(is_its) {
            outcome.state = state;
        }
    }
}
