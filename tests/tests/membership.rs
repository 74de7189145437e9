//! Who is up: deaths that are found in time, and deaths that did not happen.

use std::time::Duration;

use client::{Level, ReadOptions, ReadRepair, WriteOptions};
use quorate_tests::{
    scenario::{STOCK, Scenario, ms},
    swarm::Swarm,
};

/// Within this a death is known everywhere.
const KNOWN_WITHIN: Duration = Duration::from_secs(2);

fn lossy(nodes: usize, loss_permille: u32) -> Swarm {
    let mut swarm = Swarm::calm(nodes);
    swarm.network.loss_permille = loss_permille;
    swarm
}

/// Whether all others think alike of a machine.
fn all_see(scenario: &Scenario, nodes: usize, host: usize, is_up: bool) -> bool {
    (0..nodes).filter(|other| *other != host).all(|other| scenario.sees_up(other, host) == is_up)
}

#[test]
fn a_killed_node_is_known_to_be_down_within_two_seconds_and_no_other_is() {
    for nodes in [2, 3, 5] {
        let mut scenario = Scenario::new(lossy(nodes, 10));
        scenario.run_for(ms(3000));
        for host in 0..nodes {
            assert!(all_see(&scenario, nodes, host, true));
        }
        scenario.crash(1);
        scenario.run_for(KNOWN_WITHIN);
        for host in 0..nodes {
            let others = (0..nodes).filter(|other| *other != host && *other != 1);
            for other in others {
                assert_eq!(scenario.sees_up(other, host), host != 1, "{other} of {host}, of {nodes}");
            }
        }
        scenario.start(1);
        scenario.run_for(ms(1000));
        assert!(all_see(&scenario, nodes, 1, true), "it is back");
    }
}

#[test]
fn nobody_is_found_dead_in_an_hour_of_one_percent_loss() {
    for nodes in [2, 3, 5] {
        let mut scenario = Scenario::new(lossy(nodes, 10));
        for _ in 0..3600 {
            scenario.run_for(ms(1000));
            for host in 0..nodes {
                assert!(
                    all_see(&scenario, nodes, host, true),
                    "{host} of {nodes} at {:?}",
                    scenario.elapsed()
                );
            }
        }
        for host in 0..nodes {
            let counters = scenario.counters(host).expect("it runs");
            assert_eq!((counters.peers_died, counters.rejoined), (0, 0));
        }
    }
}

#[test]
fn a_node_that_stops_in_good_order_is_known_to_be_down_at_once() {
    let mut scenario = Scenario::new(Swarm::calm(3));
    scenario.run_for(ms(3000));
    scenario.stop(1);
    assert!(all_see(&scenario, 3, 1, false), "fifty milliseconds later");
    scenario.run_for(ms(5000));
    assert!(all_see(&scenario, 3, 1, false));
    scenario.start(1);
    scenario.run_for(ms(500));
    assert!(all_see(&scenario, 3, 1, true));
}

/// Its own deadlines passed while it stood still: it must not conclude from that that the others are dead.
#[test]
fn a_process_that_stood_still_is_found_dead_and_finds_nobody_dead() {
    for pause in [300, 1000, 2000, 5000] {
        let mut scenario = Scenario::new(Swarm::calm(5));
        scenario.run_for(ms(3000));
        scenario.pause(3, ms(pause));
        scenario.run_for(ms(pause));
        if pause >= 2000 {
            assert!(all_see(&scenario, 5, 3, false), "after {pause} ms");
        }
        scenario.run_for(ms(5));
        for other in (0..5).filter(|other| *other != 3) {
            assert!(scenario.sees_up(3, other), "it has heard nobody for {pause} ms, and knows why");
        }
        scenario.run_for(ms(1500));
        for host in 0..5 {
            assert!(all_see(&scenario, 5, host, true), "{host}, after {pause} ms");
        }
        assert_eq!(scenario.counters(3).map(|counters| counters.peers_died), Some(0));
    }
}

#[test]
fn both_sides_of_a_partition_come_together_again() {
    let mut scenario = Scenario::new(Swarm::calm(5));
    scenario.run_for(ms(3000));
    for (one, other) in [(0, 2), (0, 3), (0, 4), (1, 2), (1, 3), (1, 4)] {
        scenario.cut(one, other);
        scenario.cut(other, one);
    }
    scenario.run_for(ms(10_000));
    assert!(scenario.sees_up(0, 1) && scenario.sees_up(2, 4), "they are on one side");
    assert!(!scenario.sees_up(0, 2) && !scenario.sees_up(4, 1));
    scenario.connect();
    scenario.run_for(ms(3000));
    for host in 0..5 {
        assert!(all_see(&scenario, 5, host, true));
    }
    // They are members to one another, too, and not only in touch: a death is found as before.
    scenario.crash(2);
    scenario.run_for(KNOWN_WITHIN);
    assert!(all_see(&scenario, 5, 2, false));
}

/// A process is named by the wall clock at its start, and the clock may have been set back meanwhile.
#[test]
fn a_process_that_starts_in_the_past_takes_the_place_of_the_one_before_it() {
    let mut scenario = Scenario::new(Swarm::calm(3));
    scenario.run_for(ms(3000));
    scenario.crash(1);
    scenario.set_skew_ms(1, -3_600_000);
    scenario.start(1);
    scenario.run_for(ms(3000));
    assert!(all_see(&scenario, 3, 1, true));
    assert!(scenario.counters(1).is_some_and(|counters| (1..64).contains(&counters.rejoined)));
    scenario.crash(1);
    scenario.run_for(KNOWN_WITHIN);
    assert!(all_see(&scenario, 3, 1, false), "it was known under its new name");
}

/// Others can reach it, so it is not dead; but this node cannot.
#[test]
fn a_peer_that_only_others_can_reach_is_down_here_and_up_there() {
    let mut scenario = Scenario::new(Swarm::calm(3));
    scenario.run_for(ms(3000));
    scenario.cut(0, 1);
    scenario.cut(1, 0);
    scenario.run_for(ms(4000));
    assert!(!scenario.sees_up(0, 1) && !scenario.sees_up(1, 0));
    assert!(all_see(&scenario, 3, 2, true) && scenario.sees_up(2, 0) && scenario.sees_up(2, 1));
    assert!((0..3).all(|host| scenario.counters(host).is_some_and(|counters| counters.peers_died == 0)));
}

/// The first read that waits for a silent replica is the last: the next ask another at once.
#[test]
fn a_slow_peer_is_routed_around_at_the_first_missed_deadline() {
    let mut scenario = Scenario::new(Swarm::calm(3));
    let [first, second] = [0, 1].map(|position| scenario.replica(STOCK, position));
    let options = WriteOptions { level: Level::All, timeout: ms(300), ..WriteOptions::default() };
    let put = scenario.put(first, STOCK, options);
    scenario.run_for(ms(100));
    scenario.cut_off(second);
    let mut late = 0;
    for _ in 0..20 {
        let options =
            ReadOptions { read_repair: Some(ReadRepair::Off), timeout: ms(300), ..ReadOptions::default() };
        let began = scenario.elapsed();
        let seen = scenario.get(first, STOCK, options).expect("two replicas are left");
        assert_eq!(seen.values, [put]);
        late += usize::from(scenario.elapsed() - began > ms(20));
    }
    assert!(late <= 1, "{late} reads waited");
}
