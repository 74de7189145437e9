//! Faults on real processes: five nodes on machines of their own, with file systems that lose their power, fill up or lie,
//! a network that cuts, delays and loses, clocks that jump and syncs that fail; and the simulator's checkers on what
//! clients saw and what the disks hold at the end.
//!
//! Needs the rights to mount and to make network namespaces, and says so and tests nothing without. A short run of all
//! faults by default; see the variables below for more, as in
//! `QUORATE_FAULT_SECONDS=60 QUORATE_FAULT_RUNS=10 QUORATE_FAULTS=power,wipe cargo test --release -p quorate-node --test
//! real_faults -- --nocapture`. `QUORATE_FAULTS=each` takes every kind by itself, and then all together.

// Tests of running programs deal with the world.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::print_stderr, clippy::unwrap_used)]

mod machines;
mod settings;

use std::{
    path::PathBuf,
    rc::Rc,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use machines::{
    Dice, Machines,
    nemesis::{Fault, Nemesis, Noted},
    recorder::{Habits, Recorder},
};
use ring::NodeId;
use settings::number_from;
use tokio::task::LocalSet;

const NODES: u32 = 5;
const CLIENTS: usize = 24;

/// The mixes of faults to run: each a name and its kinds.
fn mixes() -> Vec<Vec<Fault>> {
    let wanted = std::env::var("QUORATE_FAULTS").unwrap_or_else(|_| "all".to_owned());
    match wanted.as_str() {
        "all" => vec![Fault::ALL.to_vec()],
        "each" => Fault::ALL.iter().map(|fault| vec![*fault]).chain([Fault::ALL.to_vec()]).collect(),
        names => {
            let named = |name: &str| {
                Fault::named(name).unwrap_or_else(|| panic!("{name}: one of {:?}, all or each", Fault::ALL))
            };
            vec![names.split(',').map(named).collect()]
        }
    }
}

/// A current-thread runtime.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// The nodes' program: another build than this one's, if the environment names it.
fn program() -> PathBuf {
    std::env::var("QUORATE_PROGRAM").unwrap_or_else(|_| env!("CARGO_BIN_EXE_quorated").to_owned()).into()
}

fn now_ms() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// One test at a time: each has a cluster and two cores are few.
static ALONE: Mutex<()> = Mutex::new(());

/// One run. What was broken; none if it could not be made.
fn run(faults: &[Fault], seconds: u64, seed: u64) -> Result<Vec<String>, String> {
    let with_clocks = faults.contains(&Fault::Clock);
    let machines = Machines::new(&program(), NODES, with_clocks, seed)?;
    let mut faults = faults.to_vec();
    for (fault, can) in [
        (Fault::FailedSync, &machines.can_fail_syncs),
        (Fault::SlowSync, &machines.can_fail_syncs),
        (Fault::Clock, &machines.can_set_clocks),
    ] {
        if let (true, Err(reason)) = (faults.contains(&fault), can) {
            eprintln!("SKIPPED: {fault:?}: {reason}");
            faults.retain(|other| *other != fault);
        }
    }
    if faults.is_empty() {
        return Ok(Vec::new());
    }
    machines.start_all();
    let (began, is_over, is_done) = (Instant::now(), AtomicBool::new(false), AtomicBool::new(false));
    let nemesis_began = |client| Nemesis {
        machines: &machines,
        client,
        began,
        faults: faults.clone(),
        dice: Dice(seed),
        noted: Noted::default(),
        went_back: None,
    };
    let mut broken = Vec::new();
    let outcome = thread::scope(|scope| {
        scope.spawn(|| machines.supervise(&is_done));
        let nemesis = scope.spawn(|| {
            machines.outside().enter().unwrap();
            runtime().block_on(async {
                let client = machines.client().await;
                let nemesis = nemesis_began(client);
                nemesis.rage(&is_over).await
            })
        });
        let clients = scope.spawn(|| {
            machines.outside().enter().unwrap();
            LocalSet::new().block_on(&runtime(), async {
                let client = machines.client().await;
                let recorder = Rc::new(Recorder::new(began, &client));
                let habits = Habits { may_write_to_one: !faults.iter().any(|fault| fault.destroys()) };
                let workers: Vec<_> = (0..CLIENTS)
                    .map(|session| {
                        let dice = Dice(seed ^ (session as u64 + 1) << 32);
                        tokio::task::spawn_local(Rc::clone(&recorder).work(session, habits, dice))
                    })
                    .collect();
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                is_over.store(true, Ordering::Relaxed);
                // Clients go on until the last fault is over.
                while !nemesis.is_finished() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                recorder.is_over.set(true);
                for worker in workers {
                    worker.await.unwrap();
                }
                let ending = recorder.converge(&client).await;
                client.close().await;
                machines.stop_all();
                let noted = nemesis.join().unwrap();
                let recorder = Rc::into_inner(recorder).unwrap();
                let counts = (recorder.answered.get(), recorder.failed.get());
                (recorder.judge(&machines, &ending, &noted), noted, ending, counts)
            })
        });
        let outcome = clients.join();
        // Even if they failed.
        is_over.store(true, Ordering::Relaxed);
        is_done.store(true, Ordering::Relaxed);
        outcome
    });
    let (violations, noted, ending, (answered, failed)) = match outcome {
        Ok(outcome) => outcome,
        Err(panic) => {
            eprintln!("{}", machines.logs(30));
            std::panic::resume_unwind(panic);
        }
    };
    broken.extend(violations.iter().map(ToString::to_string));
    broken.extend(noted.failures.iter().cloned());
    let struck: Vec<String> =
        noted.struck.iter().map(|(fault, times)| format!("{fault:?} {times}")).collect();
    eprintln!(
        "seed {seed}: {answered} requests answered, {failed} not; {} ({} in tables of records); slowest: {:?}; {ending:?}",
        struck.join(", "),
        noted.records_struck,
        noted.slowest
    );
    if !broken.is_empty() {
        eprintln!("{}", machines.logs(40));
    }
    Ok(broken)
}

#[test]
fn faults_of_all_kinds_break_no_promise() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (seconds, runs) = (number_from("QUORATE_FAULT_SECONDS", 20), number_from("QUORATE_FAULT_RUNS", 1));
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).unwrap();
    let seed = number_from("QUORATE_FAULT_SEED", u64::from_be_bytes(seed) >> 1);
    for faults in mixes() {
        for number in 0..runs {
            match run(&faults, seconds, seed.wrapping_add(number)) {
                Ok(broken) => {
                    let (count, first) = (broken.len(), &broken[..broken.len().min(20)]);
                    assert!(broken.is_empty(), "{faults:?}: {count} broken promises, first {first:#?}");
                }
                Err(reason) => {
                    eprintln!("SKIPPED, NOTHING WAS TESTED: machines cannot be had: {reason}");
                    return;
                }
            }
        }
    }
}

/// The same with disks that lie about what is synced: everything that is needed to notice a loss is there.
#[test]
fn what_disks_lose_that_lie_is_found() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let seconds = 4;
    match run(&[Fault::Lie], seconds, 1) {
        Ok(broken) => {
            let is_lost =
                |what: &&String| what.starts_with("LostWrites") || what.starts_with("QuorumOverlap");
            let first = &broken[..broken.len().min(20)];
            assert!(broken.iter().any(|what| is_lost(&what)), "nothing was found lost: {first:#?}");
        }
        Err(reason) => eprintln!("SKIPPED, NOTHING WAS TESTED: machines cannot be had: {reason}"),
    }
}

/// A node whose clock is off dates no write, says so, and goes on when the clock is right again. No request fails.
#[test]
fn a_clock_that_is_off_dates_nothing_and_is_seen() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let machines = match Machines::new(&program(), 3, true, 1) {
        Ok(machines) => machines,
        Err(reason) => return eprintln!("SKIPPED, NOTHING WAS TESTED: machines cannot be had: {reason}"),
    };
    if let Err(reason) = &machines.can_set_clocks {
        return eprintln!("SKIPPED, NOTHING WAS TESTED: {reason}");
    }
    machines.start_all();
    machines.block_on(async {
        let client = machines.client().await;
        let keyspace = client.default_keyspace().unwrap();
        let node = NodeId(2);
        let refused =
            || machines.metric(node, "quorate_requests_refused_total{reason=\"clock_drift\"}").unwrap_or(0.0);
        let drift = || machines.metric(node, "quorate_clock_drift_seconds").unwrap_or(0.0);
        let mut written = 0;
        // Ahead by an hour, behind by a day, and standing still.
        for (to, off) in
            [("+3600", 3600.0..3620.0), ("-86400", -86420.0..-86380.0), ("2026-01-01 00:00:00", -1e9..-1e6)]
        {
            let before = refused();
            machines.machines[1].lock().set_clock(to);
            let began = Instant::now();
            while refused() == before || !off.contains(&drift()) {
                let put =
                    keyspace.put(format!("{written}"), "value").timeout(Duration::from_secs(2)).send().await;
                let put = put.unwrap_or_else(|error| panic!("{to}: {error}"));
                let ahead_ms = put.version.unwrap().counter as i64 / 65_536 - now_ms();
                assert!(
                    ahead_ms.abs() < 2000 || began.elapsed() < Duration::from_secs(1),
                    "{to}: {ahead_ms} ms ahead"
                );
                written += 1;
                assert!(
                    began.elapsed() < Duration::from_secs(20),
                    "{to}: {} refused, drift {}",
                    refused(),
                    drift()
                );
            }
            machines.machines[1].lock().set_clock("+0");
            let began = Instant::now();
            while drift().abs() > 0.5 {
                assert!(began.elapsed() < Duration::from_secs(20), "drift {}", drift());
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        // It coordinates again: some of so many keys are its own.
        let before = refused();
        for number in 0..100 {
            keyspace.put(format!("after-{number}"), "value").send().await.unwrap();
        }
        assert_eq!(refused(), before);
        client.close().await;
    });
}
