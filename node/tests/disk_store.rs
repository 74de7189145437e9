//! The durable store on real files: what it keeps, what it refuses, and what it says when it does not open.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "files and threads are what is tested"
)]
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "these are tests")]

mod disk_rig;

use std::{
    fs,
    path::Path,
    sync::{Mutex, mpsc},
    time::{Duration, Instant},
};

use bytes::Bytes;
use disk_rig::{Dice, NODE, Rig, Scratch, batch, options, put};
use node::{
    shell::disk::{CommitEvent, CommitRefusal, Damage, DiskOptions, DiskStore, OpenError, SubmitError},
    storage::{Change, MemoryEngine, Sequence, Store, Table},
};
use ring::{NodeId, StoreId};

fn remove(key: &str) -> Change {
    Change { table: Table::Records, key: Bytes::copy_from_slice(key.as_bytes()), value: None }
}

fn meta(key: &str, value: &str) -> Change {
    Change { table: Table::Meta, ..put(key, value) }
}

#[test]
fn what_was_committed_is_there_after_a_restart() {
    let scratch = Scratch::on_disk("restart");
    let dir = scratch.join("store");
    let rig = Rig::open(&dir);
    let id = rig.store.id();
    assert!(rig.is_new && id != StoreId(0));
    assert_eq!(rig.store.recovered(), Sequence(0));
    rig.commit(batch(1, [put("a", "1"), put("b", "2"), meta("m", "3")]));
    rig.commit(batch(3, [put("a", "4"), remove("b")]));
    assert_eq!(rig.store.recovered(), Sequence(0), "it does not change while the store is open");
    assert_eq!(rig.get("a"), Some("4".into()));
    rig.close();
    for _ in 0..3 {
        let rig = Rig::open(&dir);
        assert!(!rig.is_new);
        assert_eq!((rig.store.id(), rig.store.recovered()), (id, Sequence(3)));
        assert_eq!((rig.get("a"), rig.get("b"), rig.get("c")), (Some("4".into()), None, None));
        assert_eq!(rig.store.get(Table::Meta, b"m"), Ok(Some("3".into())));
        rig.close();
    }
    let rig = Rig::open(&dir);
    rig.commit(batch(4, [put("c", "5")]));
    rig.close();
    let rig = Rig::open(&dir);
    assert_eq!((rig.store.recovered(), rig.get("c")), (Sequence(4), Some("5".into())));
}

#[test]
fn a_later_change_of_a_key_in_a_batch_stands() {
    let scratch = Scratch::in_memory("later");
    let dir = scratch.join("store");
    let rig = Rig::open(&dir);
    rig.commit(batch(
        1,
        [put("a", "1"), put("a", "2"), put("b", "1"), remove("b"), remove("c"), put("c", "3")],
    ));
    let expect = |rig: &Rig| {
        assert_eq!((rig.get("a"), rig.get("b"), rig.get("c")), (Some("2".into()), None, Some("3".into())));
    };
    expect(&rig);
    rig.close();
    expect(&Rig::open(&dir));
}

#[test]
fn a_scan_shows_what_is_between_its_bounds_and_nothing_of_the_engines_own() {
    let scratch = Scratch::in_memory("scan");
    let rig = Rig::open(&scratch.join("store"));
    let all = ["\0\0", "a", "ab", "b", "c"];
    rig.commit(batch(1, all.map(|key| put(key, key)).into_iter().chain(all.map(|key| meta(key, key)))));
    let scan = |table, after: Option<&str>, end: &str, limit| {
        let found = rig.store.scan(table, after.map(str::as_bytes), end.as_bytes(), limit).unwrap();
        found.iter().map(|(key, _)| String::from_utf8(key.to_vec()).unwrap()).collect::<Vec<_>>()
    };
    for table in [Table::Records, Table::Meta] {
        assert_eq!(scan(table, None, "z", 9), all);
        assert_eq!(scan(table, Some("a"), "c", 9), ["ab", "b"]);
        assert_eq!(scan(table, Some("a"), "z", 2), ["ab", "b"]);
        assert_eq!(scan(table, Some("aa"), "b", 9), ["ab"]);
        assert_eq!(scan(table, None, "ab", 9), ["\0\0", "a"]);
        assert!(scan(table, Some("b"), "b", 9).is_empty() && scan(table, Some("c"), "a", 9).is_empty());
        assert_eq!(scan(table, Some(""), "z", 9), all);
        assert!(scan(table, None, "", 9).is_empty() && scan(table, None, "z", 0).is_empty());
    }
}

/// Random batches, restarts and reads, beside the memory engine. Memory is small, so that tables are written and
/// compacted under way.
#[test]
fn it_reads_as_the_memory_engine_does() {
    let mut dice = Dice::new();
    let scratch = Scratch::in_memory("model");
    let dir = scratch.join("store");
    let small = DiskOptions { memtable_bytes_max: 1 << 20, ..options() };
    let model = MemoryEngine::without_log(StoreId(1));
    let mut rig = Rig::try_open(&dir, &small).unwrap();
    let mut sequence = 0;
    for round in 0..24 {
        for _ in 0..50 {
            sequence += 1 + u64::from(dice.below(2) == 0);
            let count = dice.below(40);
            let changes = (0..count).map(|_| {
                let table = if dice.below(8) == 0 { Table::Meta } else { Table::Records };
                let key = format!("key{:04}", dice.below(3000));
                let value = vec![u8::try_from(dice.below(256)).unwrap(); dice.below(2000)];
                let value = (dice.below(4) > 0).then(|| Bytes::from(value));
                Change { table, key: key.into(), value }
            });
            let batch = batch(sequence, changes.collect::<Vec<_>>());
            model.submit(batch.clone());
            rig.committer.submit(batch).unwrap();
        }
        model.commit_through(Sequence(sequence));
        rig.committed(Sequence(sequence));
        if round % 4 == 3 {
            rig.close();
            rig = Rig::try_open(&dir, &small).unwrap();
            assert_eq!(rig.store.recovered(), Sequence(sequence));
        }
        for table in [Table::Records, Table::Meta] {
            assert_eq!(rig.store.scan(table, None, b"z", 9999), model.scan(table, None, b"z", 9999));
            for _ in 0..100 {
                let key = format!("key{:04}", dice.below(3000));
                assert_eq!(rig.store.get(table, key.as_bytes()), model.get(table, key.as_bytes()));
            }
        }
    }
    let tables = fs::read_dir(dir.join("engine/keyspaces/1/tables")).unwrap().count();
    assert!(tables > 0, "memory was small");
}

#[test]
fn batches_that_wait_go_into_one_sync_and_are_reported_once() {
    let scratch = Scratch::on_disk("joined");
    let opened = DiskStore::open(&scratch.join("store"), &options()).unwrap();
    let (send, events) = mpsc::channel();
    let (release, held) = mpsc::channel::<()>();
    let committer = opened.committer.start(move |event| {
        send.send(event).unwrap();
        let _ = held.recv();
    });
    committer.submit(batch(1, [put("a", "1")])).unwrap();
    assert!(matches!(events.recv(), Ok(CommitEvent::Committed(Sequence(1)))));
    // The committer is held up by whoever hears of the first.
    for sequence in 2..=100 {
        committer.submit(batch(sequence, [put(sequence.to_string(), "1")])).unwrap();
    }
    assert_eq!(committer.counters().queued_batches, 100, "the first is not done yet");
    drop(release);
    assert!(matches!(events.recv(), Ok(CommitEvent::Committed(Sequence(100)))));
    let counters = committer.counters();
    assert_eq!((counters.batches, counters.changes, counters.syncs), (100, 100, 2));
    committer.stop();
    assert!(events.try_recv().is_err());
}

#[test]
fn batches_that_nobody_waits_for_are_joined_and_yet_committed_soon() {
    let scratch = Scratch::on_disk("unhurried");
    let rig = Rig::open(&scratch.join("store"));
    let began = Instant::now();
    for sequence in 1..=50 {
        rig.committer.submit_unhurried(batch(sequence, [put(sequence.to_string(), "1")])).unwrap();
    }
    let handed_over = began.elapsed();
    rig.committed(Sequence(50));
    // A machine that stood still meanwhile has seen them come one by one.
    if handed_over < Duration::from_millis(5) {
        assert_eq!(rig.committer.counters().syncs, 1);
    }
    // Whoever waits takes along what came before.
    rig.committer.submit_unhurried(batch(51, [put("a", "1")])).unwrap();
    rig.commit(batch(52, [put("b", "1")]));
    assert_eq!((rig.get("a"), rig.get("b")), (Some("1".into()), Some("1".into())));
    rig.committer.submit_unhurried(batch(53, [put("c", "1")])).unwrap();
    rig.committer.hurry();
    rig.committed(Sequence(53));
    rig.committer.hurry();
    rig.committer.submit_unhurried(batch(54, [put("d", "1")])).unwrap();
    // A stop leaves nothing behind.
    rig.close();
    let rig = Rig::open(&scratch.join("store"));
    assert_eq!((rig.store.recovered(), rig.get("d")), (Sequence(54), Some("1".into())));
}

#[test]
fn a_queue_that_is_full_refuses_at_once_and_takes_more_later() {
    let scratch = Scratch::in_memory("full");
    let few = DiskOptions { queue_batches_max: 2, queue_bytes_max: 100, ..options() };
    let opened = DiskStore::open(&scratch.join("store"), &few).unwrap();
    let (send, events) = mpsc::channel();
    let gate = std::sync::Arc::new(Mutex::new(()));
    let held = std::sync::Arc::clone(&gate);
    let guard = gate.lock().unwrap();
    let committer = opened.committer.start(move |event| {
        send.send(event).unwrap();
        drop(held.lock());
    });
    // More than all the room, and yet taken: nothing else waits.
    committer.submit(batch(1, [put("a", vec![1; 200])])).unwrap();
    assert!(matches!(events.recv(), Ok(CommitEvent::Committed(Sequence(1)))));
    let refused = committer.submit(batch(2, [put("b", "1")]));
    assert_eq!(refused, Err(SubmitError::QueueFull { batches: 1, bytes: 201 }));
    drop(guard);
    while committer.counters().queued_batches > 0 {
        std::thread::yield_now();
    }
    let guard = gate.lock().unwrap();
    committer.submit(batch(3, [put("c", "1")])).unwrap();
    assert!(matches!(events.recv(), Ok(CommitEvent::Committed(Sequence(3)))));
    committer.submit(batch(4, [put("d", "1")])).unwrap();
    assert!(committer.submit(batch(5, [])).is_err(), "two batches wait");
    drop(guard);
    assert_eq!(committer.counters().refused, 2);
    committer.stop();
    assert!(matches!(events.recv(), Ok(CommitEvent::Committed(Sequence(4)))));
    let found = |key: &str| opened.store.get(Table::Records, key.as_bytes()).unwrap().is_some();
    assert_eq!(["a", "b", "c", "d"].map(found), [true, false, true, true]);
}

/// P8. A committer that never rests kept the engine's worker from the lock that it needs to flush memory; and a worker
/// that compacts does not flush.
#[test]
fn memory_is_bounded_while_the_committer_is_always_busy() {
    for scratch in [Scratch::in_memory("busy"), Scratch::on_disk("busy")] {
        let small = DiskOptions { memtable_bytes_max: 1 << 20, ..options() };
        let rig = Rig::try_open(&scratch.join("store"), &small).unwrap();
        let (mut committed, mut memory_bytes) = (0, 0);
        for sequence in 1..=4000 {
            rig.committer
                .submit(batch(sequence, [put(format!("k{}", sequence % 500), [7; 10_000])]))
                .unwrap();
            while sequence - committed > 64 {
                match rig.event() {
                    CommitEvent::Committed(Sequence(last)) => committed = last,
                    event => panic!("{event:?}"),
                }
            }
            memory_bytes = rig.committer.counters().memory_bytes.max(memory_bytes);
        }
        // Five of a megabyte, each with what came in one write more.
        assert!(memory_bytes < 10 << 20, "{memory_bytes} bytes were in memory, of 40 MB that went by");
        rig.close();
    }
}

#[test]
fn a_stop_commits_what_waits() {
    let scratch = Scratch::on_disk("stop");
    let dir = scratch.join("store");
    let rig = Rig::open(&dir);
    for sequence in 1..=500 {
        rig.committer.submit(batch(sequence, [put(format!("k{sequence}"), "v")])).unwrap();
    }
    rig.close();
    let rig = Rig::open(&dir);
    assert_eq!(rig.store.recovered(), Sequence(500));
    assert!((1..=500).all(|sequence| rig.get(&format!("k{sequence}")).is_some()));
}

#[test]
#[should_panic(expected = "was handed over after")]
fn a_sequence_that_does_not_grow_is_a_bug() {
    let scratch = Scratch::in_memory("sequence");
    let rig = Rig::open(&scratch.join("store"));
    rig.commit(batch(5, []));
    let _ = rig.committer.submit(batch(5, []));
}

#[test]
fn a_key_that_the_engine_cannot_store_is_refused_and_nothing_of_its_batch_is_applied() {
    let scratch = Scratch::in_memory("key");
    let rig = Rig::open(&scratch.join("store"));
    rig.committer.submit(batch(1, [put("a", "1"), put(vec![b'k'; 65_536], "2")])).unwrap();
    let refusal = CommitRefusal::KeyTooLong { key_bytes: 65_536, limit_bytes: 65_535 };
    assert!(matches!(rig.event(), CommitEvent::Refused(Sequence(1), found) if found == refusal));
    rig.committer.resume();
    rig.commit(batch(2, [put(vec![b'k'; 65_535], "3"), put("big", vec![7; 9 << 20])]));
    assert_eq!(rig.get("a"), None);
    assert_eq!(rig.get("big").map(|value| value.len()), Some(9 << 20));
}

#[test]
fn two_cannot_have_a_store_open() {
    let scratch = Scratch::in_memory("two");
    let dir = scratch.join("store");
    let rig = Rig::open(&dir);
    let second = DiskStore::open(&dir, &options()).err();
    assert!(matches!(&second, Some(OpenError::InUse { path }) if *path == dir), "{second:?}");
    rig.commit(batch(1, [put("a", "1")]));
    let Rig { store, committer, .. } = rig;
    committer.stop();
    assert!(DiskStore::open(&dir, &options()).is_err(), "whoever reads has it open too");
    drop(store);
    assert_eq!(Rig::open(&dir).store.recovered(), Sequence(1));
}

#[test]
fn a_store_of_another_node_is_not_opened() {
    let scratch = Scratch::in_memory("other");
    let dir = scratch.join("store");
    Rig::open(&dir).close();
    let other = DiskOptions { node: NodeId(8), ..options() };
    let Err(error) = DiskStore::open(&dir, &other) else { panic!() };
    assert!(matches!(error, OpenError::OtherNode { found: NODE, expected: NodeId(8), .. }));
    assert_eq!(
        error.to_string(),
        format!(
            "{} is the store of node-7, not of node-8: check the node's id and its directory",
            dir.display()
        )
    );
    Rig::open(&dir).close();
}

#[test]
fn a_store_of_a_newer_format_is_not_opened() {
    let scratch = Scratch::in_memory("newer");
    let dir = scratch.join("store");
    Rig::open(&dir).close();
    fs::write(dir.join("identity"), "quorate-store 2\nwhatever comes to our minds\n").unwrap();
    let Err(error) = DiskStore::open(&dir, &options()) else { panic!() };
    assert!(matches!(error, OpenError::NewerFormat { found: 2, known: 1, .. }), "{error}");
}

#[test]
fn a_directory_with_other_files_is_not_touched() {
    let scratch = Scratch::in_memory("foreign");
    let dir = scratch.join("photos");
    fs::create_dir_all(dir.join("engine")).unwrap();
    fs::write(dir.join("holiday.jpg"), "sunset").unwrap();
    let Err(error) = DiskStore::open(&dir, &options()) else { panic!() };
    assert!(matches!(&error, OpenError::NotAStore { found, .. } if found == "holiday.jpg"), "{error}");
    let names = |dir: &Path| fs::read_dir(dir).unwrap().count();
    assert_eq!((names(&dir), names(&dir.join("engine"))), (2, 0));
}

#[test]
fn a_path_that_is_no_directory_says_so() {
    let scratch = Scratch::in_memory("file");
    let file = scratch.join("file");
    fs::write(&file, "data").unwrap();
    assert!(matches!(DiskStore::open(&file, &options()), Err(OpenError::NotADirectory { .. })));
    assert!(matches!(
        DiskStore::open(&scratch.join("missing/store"), &options()),
        Err(OpenError::Io { doing: "create", .. })
    ));
    assert!(!scratch.join("missing").exists(), "parents are not created");
    assert_eq!(fs::read(&file).unwrap(), b"data");
}

#[test]
fn an_empty_directory_becomes_a_store() {
    let scratch = Scratch::in_memory("empty");
    let dir = scratch.join("store");
    fs::create_dir(&dir).unwrap();
    // What a file system puts into its root is not in the way.
    fs::create_dir(dir.join("lost+found")).unwrap();
    assert!(Rig::open(&dir).is_new);
    assert!(!Rig::open(&dir).is_new);
    let identity = fs::read_to_string(dir.join("identity")).unwrap();
    let lines: Vec<&str> = identity.lines().collect();
    assert_eq!((lines[0], lines[2], lines.len()), ("quorate-store 1", "node 7", 4));
    assert!(!dir.join("creating").exists());
}

/// A crash in the middle of a creation leaves something that the next start completes.
#[test]
fn a_creation_that_was_cut_short_is_begun_again() {
    let scratch = Scratch::in_memory("creation");
    for (index, leftovers) in
        [&["lock"][..], &["creating"], &["creating", "lock", "engine/0.jnl", "identity.new"]]
            .iter()
            .enumerate()
    {
        let dir = scratch.join(&format!("store{index}"));
        fs::create_dir_all(dir.join("engine")).unwrap();
        if *leftovers == ["lock"] {
            fs::remove_dir(dir.join("engine")).unwrap();
        }
        leftovers.iter().for_each(|name| fs::write(dir.join(name), "").unwrap());
        let rig = Rig::open(&dir);
        assert!(rig.is_new);
        rig.commit(batch(1, [put("a", "1")]));
        rig.close();
        assert_eq!(Rig::open(&dir).store.recovered(), Sequence(1));
        // The last step: there is a store, and it still says that there is none.
        fs::write(dir.join("creating"), "").unwrap();
        let rig = Rig::open(&dir);
        assert_eq!((rig.is_new, rig.store.recovered()), (false, Sequence(1)));
        assert!(!dir.join("creating").exists());
    }
}

#[test]
fn a_store_without_a_readable_identity_is_damaged() {
    let scratch = Scratch::in_memory("identity");
    let dir = scratch.join("store");
    Rig::open(&dir).close();
    let identity = dir.join("identity");
    let bytes = fs::read(&identity).unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        fs::write(&identity, &damaged).unwrap();
        match DiskStore::open(&dir, &options()) {
            Err(OpenError::Damaged { what: Damage::Identity { path }, .. }) => assert_eq!(path, identity),
            // The number of the format is believed before anything else is.
            Err(OpenError::NewerFormat { .. }) if bit / 8 < 16 => {}
            Err(error) => panic!("bit {bit}: {error}"),
            Ok(_) => panic!("bit {bit}"),
        }
    }
    fs::remove_file(&identity).unwrap();
    let Err(error) = DiskStore::open(&dir, &options()) else {
        panic!("a store without an identity is no new one")
    };
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
    assert!(dir.join("engine/keyspaces").exists());
    fs::write(&identity, &bytes).unwrap();
    Rig::open(&dir).close();
}
