//! One run from its seed, checked.

use std::panic::{self, AssertUnwindSafe};

use node::PlantedBug;

use crate::{
    checkers::{Checker, Violation, check},
    counts::Counts,
    history::Ending,
    swarm::{Profile, Swarm},
    world::World,
};

/// Operations of a run unless one asks for another number.
pub const OPERATIONS_DEFAULT: usize = 400;

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct RunOptions {
    /// The bug to plant, if any.
    pub bug: Option<PlantedBug>,
    /// The kind of run.
    pub profile: Profile,
    /// Client operations.
    pub operations: usize,
    /// Whether to keep a readable trace.
    pub traced: bool,
}

/// How a run went.
#[derive(Clone, Debug)]
pub struct RunReport {
    /// Its seed.
    pub seed: u64,
    /// Broken promises.
    pub violations: Vec<Violation>,
    /// A number that two runs share only if they are the same.
    pub trace_hash: u64,
    /// How often things happened.
    pub counts: Counts,
    /// How it ended.
    pub ending: Ending,
    /// What happened, if that was asked for.
    pub trace: Vec<String>,
}

impl Default for RunOptions {
    fn default() -> RunOptions {
        RunOptions { bug: None, profile: Profile::Any, operations: OPERATIONS_DEFAULT, traced: false }
    }
}

/// Runs a seed and checks what happened. A failed assertion ends the run, and is a violation like any other.
#[must_use]
pub fn run(seed: u64, options: RunOptions) -> RunReport {
    let swarm = Swarm::draw(seed, options.profile, options.operations);
    let mut world = World::new(seed, swarm, options.bug, options.traced);
    let mut violations = Vec::new();
    // The world is only read afterwards, to say how far it came.
    if panic::catch_unwind(AssertUnwindSafe(|| world.run())).is_err() {
        let what = format!("the run was cut short at {}", world.now());
        violations.push(Violation { checker: Checker::Assertions, what });
    }
    violations.extend(check(world.history()));
    RunReport {
        seed,
        violations,
        trace_hash: world.trace_hash(),
        counts: world.counts().clone(),
        ending: world.history().ending.clone(),
        trace: world.trace().to_vec(),
    }
}

/// The profile under which a planted bug shows soonest.
#[must_use]
pub fn profile_for(bug: PlantedBug) -> Profile {
    match bug {
        PlantedBug::AcknowledgeBeforeSync
        | PlantedBug::FailedReplicaCounted
        | PlantedBug::LeafNotUpdated
        | PlantedBug::ExchangeOnlyPulls
        | PlantedBug::ContextOnlySkipped => Profile::Any,
        PlantedBug::ActorKeptAfterLoss | PlantedBug::LossWhileExchanging => Profile::Rot,
        PlantedBug::ActorKeptAfterFailedBatch => Profile::FailingDisks,
        PlantedBug::FillingCopyCounted => Profile::Wipes,
        PlantedBug::BlockingReadWithoutWriteBack => Profile::Blocking,
        PlantedBug::LwwByWallClock | PlantedBug::LwwMintedBelow => Profile::Skew,
        PlantedBug::DefiniteErrorAfterMint => Profile::ShortTimeouts,
        PlantedBug::CountedBeyondN => Profile::FewerCopies,
        PlantedBug::ForeignContextAccepted => Profile::ForeignContexts,
        PlantedBug::VoteNotSynced => Profile::Changes,
        PlantedBug::WipedVoterVotes => Profile::ChangesAndWipes,
        PlantedBug::VoteBeforeWelcome => Profile::ChangesAndAmnesia,
        PlantedBug::FormedByMajority => Profile::Forming,
        PlantedBug::DriftIgnored => Profile::OneClock,
        PlantedBug::HintNotStored | PlantedBug::HintDroppedWhenSent => Profile::HintsAlone,
        PlantedBug::DroppedOnePromiseEarly
        | PlantedBug::PromiseNotSynced
        | PlantedBug::MintBelowPromise
        | PlantedBug::DelayedExchangeMergeTaken
        | PlantedBug::GhostKept
        | PlantedBug::ContextByOwnCounter
        | PlantedBug::BlockedEntryJoined
        | PlantedBug::CutKeepsEntry
        | PlantedBug::ExpiredForgotten
        | PlantedBug::CountedHintsPassed
        | PlantedBug::LatecomerBelieved => Profile::Tombstones,
        PlantedBug::CountedHintExpires
        | PlantedBug::StandInCountedAsStrict
        | PlantedBug::DeadReplicaCounted => Profile::StandIns,
    }
}
