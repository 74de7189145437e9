//! Histories for rules about watermarks that random runs show too rarely.
//!
//! Those of a rule that can be switched off are told twice: by nodes as they are, and all promises are kept; and by nodes
//! without the rule, and something is lost or comes back.

use std::time::Duration;

use client::{Level, ReadOptions, ReadRepair, WriteOptions};
use node::PlantedBug;
use quorate_tests::{
    checkers::Checker,
    history::WriteId,
    scenario::{CART, Scenario, ms, read_at, write_at},
    swarm::Swarm,
};
use ring::{Durability, StoreId};

/// A cluster in which what is settled is promised within two seconds, with a bug planted or not.
fn quick(nodes: usize, bug: Option<PlantedBug>) -> Scenario {
    let mut swarm = Swarm::calm(nodes);
    swarm.settings.exchange_interval = ms(500);
    swarm.settings.settled_after = ms(200);
    swarm.settings.watermark_interval = ms(500);
    swarm.settings.record_cache_bytes = 0;
    Scenario::with_bug(swarm, bug)
}

/// The first replicas of the cart.
fn replicas<const N: usize>(scenario: &Scenario) -> [usize; N] {
    std::array::from_fn(|position| scenario.replica(CART, position))
}

/// A put that all three replicas acknowledge, once their watermark has passed it.
fn settled(scenario: &mut Scenario, host: usize) -> WriteId {
    let put = scenario.put(host, CART, write_at(Level::All));
    run_until_passed(scenario, put);
    put
}

/// Waits until the watermark of all three replicas has passed an acknowledged write.
fn run_until_passed(scenario: &mut Scenario, write: WriteId) {
    assert!(scenario.is_acknowledged(write));
    let (nodes, counter) = (replicas::<3>(scenario), scenario.counter(write));
    assert!(scenario.run_until_settled(&nodes, CART, counter), "the watermark stands still");
}

/// A write that covers what a quorum holds.
fn covering(scenario: &mut Scenario, host: usize, level: Level) -> WriteOptions {
    let seen = scenario.get(host, CART, read_at(Level::Quorum)).expect("a quorum is up");
    WriteOptions { context: Some(seen.context), ..write_at(level) }
}

/// Tells a history without the bug, in which nothing may be broken, and with it: then this checker says so.
fn shows(bug: PlantedBug, checker: Checker, tell: impl Fn(&mut Scenario)) {
    shows_among(3, bug, checker, tell);
}

/// The same of so many nodes.
fn shows_among(nodes: usize, bug: PlantedBug, checker: Checker, tell: impl Fn(&mut Scenario)) {
    let mut right = quick(nodes, None);
    tell(&mut right);
    let violations = right.finish();
    assert!(violations.is_empty(), "{violations:?}\n{}", right.trace().join("\n"));
    let mut wrong = quick(nodes, Some(bug));
    tell(&mut wrong);
    let violations = wrong.finish();
    let is_found = violations.iter().any(|violation| violation.checker == checker);
    assert!(is_found, "{bug:?} shows {violations:?}\n{}", wrong.trace().join("\n"));
}

/// A replica is cut off. The others replace the value that all had when the watermark passed it, and forget that they have
/// seen it, for its own counter is below the watermark. The third, which rightly promised that watermark, brings it back.
#[test]
fn a_context_entry_stays_as_long_as_anything_of_its_record_is_above_the_watermark() {
    let tell = |scenario: &mut Scenario| {
        let [first, second, third] = replicas(scenario);
        settled(scenario, first);
        scenario.cut_off(third);
        let covering = covering(scenario, second, Level::Quorum);
        let replaced = scenario.put(second, CART, covering);
        assert!(scenario.is_acknowledged(replaced));
        scenario.run_for(ms(1000));
        scenario.connect();
    };
    shows(PlantedBug::ContextByOwnCounter, Checker::Resurrection, tell);
}

/// Promises are made twice a second and synced a third of a second later. Power fails again and again: a node that said
/// what it had not synced hears of a watermark that it does not know to have promised.
#[test]
fn a_promise_is_synced_before_it_is_said() {
    let tell = |scenario: &mut Scenario| {
        let nodes: [usize; 3] = replicas(scenario);
        settled(scenario, nodes[0]);
        scenario.set_sync(ms(300));
        for time in 0..30 {
            scenario.run_for(ms(2000 + 37 * time));
            scenario.crash(nodes[1]);
            scenario.start(nodes[1]);
        }
        scenario.set_sync(ms(1));
    };
    shows(PlantedBug::PromiseNotSynced, Checker::FalseAlarms, tell);
}

/// All machines lose power and their clocks, and start an hour in the past. A delete that is dated there is below the
/// watermark: the one replica that takes it forgets it at once, and the others bring the value back.
#[test]
fn a_process_dates_nothing_below_what_its_store_promised() {
    let tell = |scenario: &mut Scenario| {
        let nodes: [usize; 3] = replicas(scenario);
        settled(scenario, nodes[0]);
        scenario.run_for(ms(3000));
        let covering = covering(scenario, nodes[0], Level::One);
        for node in nodes {
            scenario.crash(node);
            scenario.set_skew_ms(node, -3_600_000);
        }
        nodes.iter().for_each(|node| scenario.start(*node));
        scenario.run_for(ms(800));
        let deleted = scenario.delete(nodes[0], CART, covering);
        assert!(scenario.is_acknowledged(deleted));
        scenario.run_for(ms(3000));
    };
    shows(PlantedBug::MintBelowPromise, Checker::Resurrection, tell);
}

/// A value is deleted everywhere and forgotten. Then a disk goes back to when it was there.
fn ghost(scenario: &mut Scenario) {
    let [first, second, third] = replicas(scenario);
    settled(scenario, first);
    let image = scenario.image(third);
    let covering = covering(scenario, second, Level::All);
    let deleted = scenario.delete(second, CART, covering);
    run_until_passed(scenario, deleted);
    scenario.run_for(ms(1000));
    assert!(![first, second, third].iter().any(|host| scenario.holds_any(*host, CART)), "it is forgotten");
    scenario.restore(third, image);
    scenario.start(third);
}

#[test]
fn what_comes_in_an_exchange_is_judged_by_what_its_sender_knew() {
    shows(PlantedBug::DelayedExchangeMergeTaken, Checker::Resurrection, ghost);
}

#[test]
fn a_copy_that_cannot_be_believed_drops_what_a_whole_one_knows_to_be_dead() {
    shows(PlantedBug::GhostKept, Checker::Resurrection, ghost);
}

/// Two of three copies cannot be believed: one lost its disk, the other went back a little. What the second offers the first
/// refuses, for neither can know whether it is dead. Would the first take along what the second has seen, it would claim
/// to have seen a value deleted that lives at the third.
#[test]
fn what_is_refused_leaves_no_context_entry() {
    let tell = |scenario: &mut Scenario| {
        let [first, second, third] = replicas(scenario);
        settled(scenario, third);
        let image = scenario.image(third);
        scenario.run_for(ms(3000));
        scenario.wipe(first, StoreId(77));
        scenario.restore(third, image);
        scenario.cut(first, second);
        scenario.cut(second, first);
        scenario.start(third);
        scenario.run_for(ms(300));
        scenario.start(first);
        scenario.readmit();
        scenario.run_for(ms(1500));
        // What is not below the watermark keeps the rest of the record from being dropped as dead.
        let put = scenario.put(first, CART, write_at(Level::One));
        assert!(scenario.is_acknowledged(put));
        scenario.connect();
    };
    shows(PlantedBug::BlockedEntryJoined, Checker::LostWrites, tell);
}

/// The second write of an actor reaches one other node, whose disk is then replaced; the writer's crash loses it, too. So
/// nobody has it, the watermark passes it, and then the old disk comes back. The first write lives; the entry of
/// the second would cover it.
#[test]
fn what_a_filling_copy_drops_takes_its_context_entry_along() {
    let tell = |scenario: &mut Scenario| {
        let [first, second, third] = replicas(scenario);
        settled(scenario, first);
        let before = scenario.image(third);
        scenario.cut_off(second);
        scenario.set_sync(ms(200));
        let in_memory = WriteOptions { durability: Some(Durability::Memory), ..write_at(Level::One) };
        let (_, lost) = scenario.begin_put(first, CART, in_memory);
        scenario.run_for(ms(50));
        scenario.crash(first);
        let passed = scenario.clock();
        scenario.run_for(ms(500));
        assert!(scenario.holds(third, lost) && !scenario.holds(first, lost));
        let image = scenario.image(third);
        scenario.restore(third, before);
        scenario.set_sync(ms(1));
        scenario.connect();
        scenario.start(first);
        scenario.start(third);
        scenario.run_for(ms(5000));
        assert!(scenario.watermark(first, CART).is_some_and(|watermark| watermark >= passed));
        scenario.restore(third, image);
        let put = scenario.put(second, CART, write_at(Level::Quorum));
        assert!(scenario.is_acknowledged(put));
        scenario.start(third);
    };
    shows(PlantedBug::CutKeepsEntry, Checker::LostWrites, tell);
}

/// A stand-in is all that is left of an acknowledged write, and its target is too busy to take hints. Everybody
/// exchanges meanwhile. Would the watermark pass the write, its hint would be refused when its time has come.
#[test]
fn a_watermark_does_not_pass_a_hint_that_is_counted_on() {
    let tell = |bug| {
        let mut scenario = quick(5, bug);
        let [first, second, third] = replicas(&scenario);
        let put = left_with_a_stand_in(&mut scenario);
        scenario.settings().hints_granted_max = 0;
        [first, second, third].iter().for_each(|node| scenario.start(*node));
        scenario.readmit();
        scenario.run_for(ms(20_000));
        scenario.settings().hints_granted_max = 1000;
        [first, second, third].iter().for_each(|node| scenario.crash(*node));
        [first, second, third].iter().for_each(|node| scenario.start(*node));
        let violations = scenario.finish();
        assert!(violations.is_empty(), "{violations:?}");
        [first, second, third].into_iter().all(|node| scenario.holds(node, put))
    };
    assert!(tell(None), "it was acknowledged by a node that still has it");
    assert!(!tell(Some(PlantedBug::CountedHintsPassed)), "the bug shows");
}

/// A put that counted on a node that stands in, and then the one replica that took it loses its disk. The first three are
/// down.
fn left_with_a_stand_in(scenario: &mut Scenario) -> WriteId {
    let [first, second, third, stand_in] = replicas(scenario);
    scenario.run_for(ms(3000));
    scenario.crash(second);
    scenario.crash(third);
    scenario.run_for(ms(3000));
    let sloppy = WriteOptions { is_sloppy: true, timeout: ms(500), ..write_at(Level::Quorum) };
    let put = scenario.put(first, CART, sloppy);
    assert!(scenario.is_acknowledged(put) && scenario.holds(stand_in, put));
    scenario.wipe(first, StoreId(77));
    put
}

/// The same, and the stand-in is not even up when the others exchange.
#[test]
fn a_watermark_waits_for_a_member_that_is_away() {
    let mut scenario = quick(5, None);
    let [first, second, third, stand_in] = replicas(&scenario);
    let put = left_with_a_stand_in(&mut scenario);
    scenario.crash(stand_in);
    for node in [first, second, third] {
        scenario.start(node);
    }
    scenario.readmit();
    scenario.run_for(Duration::from_secs(600));
    scenario.start(stand_in);
    let violations = scenario.finish();
    assert!(violations.is_empty(), "{violations:?}");
    assert!([first, second, third].into_iter().all(|node| scenario.holds(node, put)));
}

/// The key is written with n = 5 while the two nodes are cut off that come to keep it thereby; from memory, and then power fails
/// at the three that had all of it, so that none of them can be believed. The two are whole and have never heard of the value.
#[test]
fn who_has_come_to_keep_a_record_does_not_say_what_of_it_is_dead() {
    let tell = |scenario: &mut Scenario| {
        let [first, second, third, fourth, fifth] = replicas(scenario);
        let had_it = [first, second, third];
        settled(scenario, first);
        scenario.cut_off(fourth);
        scenario.cut_off(fifth);
        let raised =
            WriteOptions { n: Some(5), durability: Some(Durability::Memory), ..write_at(Level::Quorum) };
        let put = scenario.put(first, CART, raised);
        assert!(scenario.is_acknowledged(put));
        scenario.run_for(ms(100));
        had_it.iter().for_each(|node| scenario.crash(*node));
        scenario.connect();
        had_it.iter().for_each(|node| scenario.start(*node));
        scenario.run_for(ms(20));
        assert!(!had_it.iter().any(|node| scenario.is_whole(*node)), "they acknowledged from memory");
    };
    shows_among(5, PlantedBug::LatecomerBelieved, Checker::LostWrites, tell);
}

/// Bits rot on two replicas, and the third, which has lost nothing of it, fills. One finds the damage, and exchanges with the
/// other: that one says that it is whole, looks for the record, and finds it damaged. That it has none is no news that it is dead.
#[test]
fn nothing_follows_from_an_exchange_with_who_loses_something_meanwhile() {
    let tell = |scenario: &mut Scenario| {
        let [first, second, third] = replicas(scenario);
        settled(scenario, first);
        let from_memory = WriteOptions { durability: Some(Durability::Memory), ..write_at(Level::All) };
        let later = scenario.put(first, CART, from_memory);
        run_until_passed(scenario, later);
        // It hears nothing of one of the others, and fills.
        scenario.cut(second, third);
        scenario.cut(third, second);
        scenario.crash(third);
        scenario.start(third);
        scenario.run_for(ms(1000));
        assert!(scenario.rot(first, CART) && scenario.rot(second, CART));
        assert!(scenario.is_whole(first) && scenario.is_whole(second), "nobody has noticed");
        // It reads all that it has when it starts.
        scenario.crash(first);
        scenario.start(first);
        scenario.run_for(ms(2000));
        assert!(!scenario.is_whole(second) && !scenario.is_whole(third));
        scenario.connect();
    };
    shows(PlantedBug::LossWhileExchanging, Checker::LostWrites, tell);
}

/// One replica has taken a watermark and dropped what is superfluous, the others have yet to: that is no difference, and no
/// reason to repair anything.
#[test]
fn replicas_that_forget_one_after_the_other_agree() {
    let mut scenario = quick(3, None);
    let nodes: [usize; 3] = replicas(&scenario);
    let first = scenario.put(nodes[0], CART, write_at(Level::All));
    assert!(scenario.is_acknowledged(first));
    let covering = covering(&mut scenario, nodes[1], Level::All);
    let second = scenario.put(nodes[1], CART, covering);
    let counter = scenario.counter(second);
    let diverged = |scenario: &Scenario| -> u64 {
        nodes.iter().filter_map(|node| scenario.counters(*node)).map(|counters| counters.reads_diverged).sum()
    };
    let before = diverged(&scenario);
    let has_taken = |scenario: &Scenario, node: usize| {
        scenario.watermark(node, CART).is_some_and(|watermark| watermark >= counter)
    };
    let mut between = 0;
    while !nodes.iter().all(|node| has_taken(&scenario, *node)) {
        scenario.run_for(ms(1));
        if nodes.iter().any(|node| has_taken(&scenario, *node)) {
            for node in nodes {
                // Those whose coordinator has yet to take it wait for repairs, if they are to wait for any.
                let repair =
                    if has_taken(&scenario, node) { ReadRepair::Blocking } else { ReadRepair::Background };
                let options = ReadOptions { read_repair: Some(repair), ..read_at(Level::All) };
                let seen = scenario.get(node, CART, options).expect("all are up");
                assert_eq!(seen.values, [second]);
                between += 1;
            }
        }
    }
    assert!(between > 3, "they take it one after the other");
    assert_eq!(diverged(&scenario), before);
    let violations = scenario.finish();
    assert!(violations.is_empty(), "{violations:?}");
}
