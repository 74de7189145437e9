//! Each planted bug is found, by a checker whose business it is: proof that the checkers can see.

use node::PlantedBug;
use quorate_tests::{
    checkers::Checker,
    run::{RunOptions, profile_for, run},
};

/// Seeds to explore for one bug. Most show within a few.
const SEEDS_MAX: u64 = 2000;

/// Explores seeds until one of `expected` finds the bug.
fn is_found_by(bug: PlantedBug, expected: &[Checker]) {
    let options = RunOptions { bug: Some(bug), profile: profile_for(bug), ..RunOptions::default() };
    let mut others = Vec::new();
    for seed in 0..SEEDS_MAX {
        for violation in run(seed, options).violations {
            if expected.contains(&violation.checker) {
                return;
            }
            others.push(violation);
        }
    }
    panic!("{bug:?} is not found in {SEEDS_MAX} seeds; others found {others:?}");
}

#[test]
fn an_acknowledgement_before_the_sync_is_found() {
    is_found_by(PlantedBug::AcknowledgeBeforeSync, &[Checker::DurableMeansDurable]);
}

#[test]
fn an_actor_kept_after_a_lost_record_is_found() {
    is_found_by(PlantedBug::ActorKeptAfterLoss, &[Checker::LostWrites]);
}

#[test]
fn an_actor_kept_after_a_failed_batch_is_found() {
    is_found_by(PlantedBug::ActorKeptAfterFailedBatch, &[Checker::LostWrites]);
}

#[test]
fn a_filling_copy_that_counts_is_found() {
    is_found_by(PlantedBug::FillingCopyCounted, &[Checker::QuorumOverlap]);
}

#[test]
fn a_blocking_read_without_write_back_is_found() {
    is_found_by(PlantedBug::BlockingReadWithoutWriteBack, &[Checker::Registers]);
}

#[test]
fn versions_by_the_raw_wall_clock_are_found() {
    is_found_by(PlantedBug::LwwByWallClock, &[Checker::Sessions]);
}

#[test]
fn a_version_below_the_one_it_replaces_is_found() {
    is_found_by(PlantedBug::LwwMintedBelow, &[Checker::Sessions]);
}

#[test]
fn a_definite_error_after_the_mint_is_found() {
    is_found_by(PlantedBug::DefiniteErrorAfterMint, &[Checker::DefiniteErrors]);
}

#[test]
fn a_refusal_counted_as_an_acknowledgement_is_found() {
    is_found_by(PlantedBug::FailedReplicaCounted, &[Checker::DurableMeansDurable]);
}

#[test]
fn an_acknowledgement_from_beyond_the_first_n_is_found() {
    is_found_by(PlantedBug::CountedBeyondN, &[Checker::DurableMeansDurable]);
}

#[test]
fn a_context_of_another_key_is_found() {
    is_found_by(PlantedBug::ForeignContextAccepted, &[Checker::ForeignContexts]);
}

#[test]
fn a_vote_that_is_told_before_it_is_synced_is_found() {
    is_found_by(PlantedBug::VoteNotSynced, &[Checker::Votes]);
}

#[test]
fn a_wiped_voter_that_votes_again_is_found() {
    is_found_by(PlantedBug::WipedVoterVotes, &[Checker::Votes]);
}

#[test]
fn a_vote_before_the_peers_have_judged_the_store_is_found() {
    is_found_by(PlantedBug::VoteBeforeWelcome, &[Checker::Votes]);
}

#[test]
fn a_cluster_that_is_formed_without_all_founders_is_found() {
    is_found_by(PlantedBug::FormedByMajority, &[Checker::Documents, Checker::Convergence]);
}

#[test]
fn a_hint_that_is_not_stored_is_found() {
    is_found_by(PlantedBug::HintNotStored, &[Checker::Convergence]);
}

#[test]
fn a_hint_that_is_forgotten_as_it_is_sent_is_found() {
    is_found_by(PlantedBug::HintDroppedWhenSent, &[Checker::Convergence]);
}

#[test]
fn a_drifting_node_that_goes_on_minting_is_found() {
    is_found_by(PlantedBug::DriftIgnored, &[Checker::Clocks]);
}

#[test]
fn a_counted_hint_that_expires_is_found() {
    is_found_by(PlantedBug::CountedHintExpires, &[Checker::LostWrites]);
}

#[test]
fn a_stand_in_that_counts_for_a_strict_write_is_found() {
    is_found_by(PlantedBug::StandInCountedAsStrict, &[Checker::DurableMeansDurable, Checker::QuorumOverlap]);
}

#[test]
fn a_dead_replica_that_counts_is_found() {
    is_found_by(PlantedBug::DeadReplicaCounted, &[Checker::DurableMeansDurable]);
}

#[test]
fn a_watermark_that_one_copy_has_not_promised_is_found() {
    is_found_by(PlantedBug::DroppedOnePromiseEarly, &[Checker::FalseAlarms, Checker::Resurrection]);
}
