//! Sloppy quorums: other nodes stand in for replicas that are down, count, and hand over what they took.

use std::time::Duration;

use client::{Level, ReadOptions, WriteOptions};
use quorate_tests::{
    history::{KeyId, Outcome, WriteId},
    scenario::{CART, STOCK, Scenario, ms},
    swarm::Swarm,
};

const NODES: usize = 5;

fn sloppy(level: Level) -> WriteOptions {
    WriteOptions { level, is_sloppy: true, timeout: ms(500), ..WriteOptions::default() }
}

fn strict(level: Level) -> WriteOptions {
    WriteOptions { is_sloppy: false, ..sloppy(level) }
}

/// Five machines, keyspaces of three copies, and exchanges that are a day apart: only hints bring anything.
fn without_exchanges() -> Scenario {
    let mut swarm = Swarm::calm(NODES);
    swarm.settings.exchange_interval = Duration::from_secs(86_400);
    swarm.settings.exchange_on_suspicion = false;
    Scenario::new(swarm)
}

/// The first so many replicas of a key crash, and everybody knows.
fn crash_first(scenario: &mut Scenario, key: KeyId, count: usize) -> Vec<usize> {
    let replicas: Vec<usize> = (0..count).map(|position| scenario.replica(key, position)).collect();
    replicas.iter().for_each(|host| scenario.crash(*host));
    scenario.run_for(ms(3000));
    replicas
}

/// How many nodes stood in for replicas of an acknowledged write; none if it was not acknowledged.
fn stood_in(scenario: &Scenario, write: WriteId) -> Option<u8> {
    match scenario.outcome(write) {
        Outcome::Acknowledged(acknowledgement) => Some(acknowledgement.stood_in),
        _ => None,
    }
}

fn start_all(scenario: &mut Scenario, hosts: &[usize]) {
    hosts.iter().for_each(|host| scenario.start(*host));
    scenario.run_for(ms(4000));
}

#[test]
fn a_quorum_is_made_up_of_nodes_that_stand_in_and_hand_over() {
    for key in [CART, STOCK] {
        let mut scenario = without_exchanges();
        let down = crash_first(&mut scenario, key, 2);
        let third = scenario.replica(key, 2);
        let refused = scenario.put(third, key, strict(Level::Quorum));
        assert_eq!(*scenario.outcome(refused), Outcome::Refused, "of three replicas one is up");
        let put = scenario.put(third, key, sloppy(Level::Quorum));
        assert_eq!(stood_in(&scenario, put), Some(1));
        let all = scenario.put(third, key, sloppy(Level::All));
        assert_eq!(stood_in(&scenario, all), Some(2));
        let fourth = scenario.replica(key, 3);
        assert!(scenario.holds(third, all) && scenario.holds(fourth, all));
        // Whoever stands in survives a crash with what it owes.
        scenario.crash(fourth);
        scenario.start(fourth);
        scenario.run_for(ms(2000));
        scenario.crash(third);
        scenario.run_for(ms(1000));
        start_all(&mut scenario, &down);
        for host in &down {
            assert!(scenario.holds(*host, all), "it was handed over");
        }
        let seen = scenario.get(down[0], key, ReadOptions::default()).expect("a quorum is back");
        assert!(seen.values.contains(&all));
        scenario.start(third);
        assert_eq!(scenario.finish(), []);
    }
}

/// What it owes it cannot read as it starts, and has left anew what it cannot know to be counted.
#[test]
fn what_cannot_be_read_of_hints_at_the_start_is_read_later() {
    let mut scenario = without_exchanges();
    let [fourth, fifth] = [3, 4].map(|position| scenario.replica(CART, position));
    scenario.crash(fifth);
    let down = crash_first(&mut scenario, CART, 3);
    let put = scenario.put(fourth, CART, sloppy(Level::Any));
    assert_eq!(stood_in(&scenario, put), Some(1));
    scenario.crash(fourth);
    scenario.start(fifth);
    scenario.fail_reads(fourth, true);
    scenario.start(fourth);
    start_all(&mut scenario, &down);
    assert!(down.iter().all(|host| !scenario.holds(*host, put)));
    scenario.fail_reads(fourth, false);
    scenario.run_for(ms(5000));
    assert!(down.iter().any(|host| scenario.holds(*host, put)), "it was handed over");
    let seen = scenario.get(fifth, CART, ReadOptions::default()).expect("all are up");
    assert_eq!(seen.values, [put]);
    assert_eq!(scenario.finish(), []);
}

/// The nodes that could stand in keep the key themselves, since it was once written to more copies.
#[test]
fn those_who_keep_a_key_of_more_copies_stand_in_too() {
    let mut scenario = without_exchanges();
    let third = scenario.replica(CART, 2);
    scenario.put(third, CART, WriteOptions { n: Some(5), ..strict(Level::All) });
    let down = crash_first(&mut scenario, CART, 2);
    let began = scenario.elapsed();
    let put = scenario.put(third, CART, sloppy(Level::All));
    assert_eq!(stood_in(&scenario, put), Some(2));
    assert!(scenario.elapsed() - began < ms(100), "it took {:?}", scenario.elapsed() - began);
    scenario.crash(third);
    start_all(&mut scenario, &down);
    assert!(down.iter().all(|host| scenario.holds(*host, put)), "it was handed over");
    scenario.start(third);
    assert_eq!(scenario.finish(), []);
}

#[test]
fn any_is_acknowledged_though_every_replica_is_down() {
    for coordinator in [3, 4] {
        let mut scenario = without_exchanges();
        let down = crash_first(&mut scenario, CART, 3);
        let host = scenario.replica(CART, coordinator);
        let refused = scenario.put(host, CART, strict(Level::One));
        assert_eq!(*scenario.outcome(refused), Outcome::Refused);
        let put = scenario.put(host, CART, WriteOptions { is_sloppy: false, ..sloppy(Level::Any) });
        assert_eq!(stood_in(&scenario, put), Some(1));
        assert!(scenario.holds(host, put));
        let two = scenario.put(host, CART, sloppy(Level::Two));
        assert_eq!(stood_in(&scenario, two), Some(2));
        let three = scenario.put(host, CART, sloppy(Level::All));
        assert_eq!(*scenario.outcome(three), Outcome::Refused, "two nodes are left");
        assert_eq!(scenario.get(host, CART, ReadOptions::default()), None);
        start_all(&mut scenario, &down);
        let seen = scenario.get(host, CART, ReadOptions::default()).expect("the replicas are back");
        assert!(seen.values.contains(&put) && seen.values.contains(&two), "{seen:?}");
        assert_eq!(scenario.finish(), []);
    }
}

/// Nobody has noticed that two replicas are dead when the write comes.
#[test]
fn others_stand_in_for_replicas_that_are_silent() {
    let mut scenario = without_exchanges();
    let [first, second, third] = [0, 1, 2].map(|position| scenario.replica(STOCK, position));
    scenario.put(first, STOCK, strict(Level::All));
    scenario.crash(second);
    scenario.crash(third);
    let began = scenario.elapsed();
    let put = scenario.put(first, STOCK, sloppy(Level::Quorum));
    assert_eq!(stood_in(&scenario, put), Some(1));
    assert!(scenario.elapsed() - began < ms(250), "it took {:?}", scenario.elapsed() - began);
    start_all(&mut scenario, &[second, third]);
    assert!(scenario.holds(second, put) && scenario.holds(third, put));
    assert_eq!(scenario.finish(), []);
}

/// Hints that are not counted are dropped when they are old or too many. Those that are counted are not, and when there
/// are as many as may be, others are refused.
#[test]
fn what_was_counted_is_kept_and_what_cannot_be_kept_is_refused() {
    let mut swarm = Swarm::calm(NODES);
    swarm.settings.exchange_interval = Duration::from_secs(86_400);
    swarm.settings.exchange_on_suspicion = false;
    swarm.settings.hint_age_max = ms(500);
    swarm.settings.hints_per_peer_max = 1;
    swarm.partitions = 1;
    let mut scenario = Scenario::new(swarm);
    let down = crash_first(&mut scenario, CART, 3);
    let host = scenario.replica(CART, 3);
    let cart = scenario.put(host, CART, sloppy(Level::Any));
    assert_eq!(stood_in(&scenario, cart), Some(1));
    // The other key is of the same partition and would be owed to the same replica.
    let stock = scenario.put(host, STOCK, sloppy(Level::Any));
    assert_eq!(*scenario.outcome(stock), Outcome::Refused);
    scenario.run_for(ms(5000));
    start_all(&mut scenario, &down);
    assert!(scenario.holds(down[0], cart), "it is older than hints may be, and was kept");
    let seen = scenario.get(down[0], CART, ReadOptions::default()).expect("the replicas are back");
    assert_eq!(seen.values, [cart]);
}

#[test]
fn an_acknowledgement_with_stand_ins_is_not_enough_for_a_strict_retry() {
    let mut scenario = without_exchanges();
    let down = crash_first(&mut scenario, CART, 2);
    let third = scenario.replica(CART, 2);
    let named = |options: WriteOptions| WriteOptions { request: client::RequestId(7), ..options };
    let put = scenario.put(third, CART, named(sloppy(Level::Quorum)));
    assert_eq!(stood_in(&scenario, put), Some(1));
    scenario.put_again(third, put, named(strict(Level::Quorum)));
    assert_eq!(*scenario.outcome(put), Outcome::Refused, "no quorum of replicas is up");
    start_all(&mut scenario, &down);
    scenario.put_again(third, put, named(strict(Level::Quorum)));
    assert_eq!(stood_in(&scenario, put), Some(0));
    assert_eq!(scenario.finish(), []);
}
