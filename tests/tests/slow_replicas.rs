//! Replicas that are slow but alive: reads wait for them rather than ask everybody, which would make them slower.

use client::{Level, ReadOptions, ReadRepair, WriteOptions};
use quorate_tests::{
    scenario::{STOCK, Scenario, ms},
    swarm::Swarm,
};

/// An overloaded cluster of three asked every replica for every read, since each took longer than 50 ms, and had half as
/// many reads again to answer.
#[test]
fn where_all_are_slow_nearly_every_read_asks_as_many_as_it_needs() {
    let mut swarm = Swarm::calm(3);
    (swarm.network.latency_min, swarm.network.latency_max) = (ms(35), ms(60));
    swarm.settings.probe_round_trip = ms(130);
    let mut scenario = Scenario::new(swarm);
    let host = scenario.replica(STOCK, 0);
    let put = WriteOptions { level: Level::All, ..WriteOptions::default() };
    scenario.put(host, STOCK, put);
    let get = ReadOptions { read_repair: Some(ReadRepair::Off), ..ReadOptions::default() };
    let asked_more = |scenario: &Scenario| {
        let counters = scenario.counters(host).unwrap();
        counters.replicas_replaced + counters.reads_hedged
    };
    // So many at once that no peer is quiet for long.
    let read = |scenario: &mut Scenario, count: usize| {
        let mut calls = Vec::new();
        for _ in 0..count {
            calls.push(scenario.begin_get(host, STOCK, get.clone()));
            scenario.run_for(ms(2));
        }
        calls.into_iter().for_each(|call| scenario.wait(call));
    };
    // It takes a hundred answers of each to know how slow they are.
    read(&mut scenario, 400);
    let before = asked_more(&scenario);
    read(&mut scenario, 1000);
    let more = asked_more(&scenario) - before;
    // One in twenty may, and those of whom a peer happens to be quiet.
    assert!(more <= 100, "{more} of 1000 reads asked one more");
    // Whoever says nothing at all is replaced all the same.
    let other = (host + 1) % 3;
    scenario.pause(other, ms(700));
    for _ in 0..3 {
        let began = scenario.elapsed();
        assert!(scenario.get(host, STOCK, get.clone()).is_some());
        assert!(scenario.elapsed() - began < ms(450), "{:?}", scenario.elapsed() - began);
    }
    assert_eq!(scenario.finish(), []);
}
