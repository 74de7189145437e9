//! Salvage: what can be read of a damaged store, in a new one.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "files and threads are what is tested"
)]
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "these are tests")]

mod disk_rig;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use antientropy::version::{Actor, CopyCount, Counter, Dot, LwwVersion, Record, Value};
use bytes::{BufMut, BytesMut};
use disk_rig::{Dice, Rig, Scratch, batch, options};
use node::{
    shell::disk::{
        CommitEvent, CommitFailure, Damage, DiskOptions, DiskStore, OpenError, SalvageError, SalvageReport,
        salvage,
    },
    storage::{Change, ObjectKey, Sequence, Store, Table, read_record},
};
use ring::{KeyspaceId, NodeId, StoreId};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Objects that the store holds.
const OBJECTS: u64 = 1200;
/// Hints that it was left, of which the first is handed over.
const HINTS: u64 = 5;
/// How often each of the first few was written.
const VERSIONS: u64 = 3;

fn object(number: u64) -> ObjectKey {
    ObjectKey::new(KeyspaceId(1), format!("object{number}").as_bytes())
}

fn record(number: u64, version: u64) -> Record {
    let length = 500 + usize::try_from(number % 7).unwrap() * 300;
    Record::Lww(LwwVersion {
        dot: Dot { counter: Counter(version), actor: Actor(number) },
        seen: Counter::ZERO,
        value: Some(Value::new(vec![b'v'; length])),
        copies: CopyCount::default(),
    })
}

/// A record as the core stores it: its format is pinned where it is written.
fn stored(object: &ObjectKey, record: &Record) -> Change {
    let mut payload = BytesMut::new();
    record.encode(&mut payload);
    let key = object.encoded().clone();
    let mut value = BytesMut::new();
    value.put_u8(1);
    value.put_u64_le(xxh3_64_with_seed(&payload, xxh3_64(&key)));
    value.put_slice(&payload);
    Change { table: Table::Records, key, value: Some(value.freeze()) }
}

/// A hint as the core stores it, for the node 7: the prefix, the target, the object.
fn hint(number: u64) -> Change {
    let mut key = BytesMut::from("hint/");
    key.put_u32(7);
    key.put_slice(object(number).encoded());
    Change { table: Table::Meta, key: key.freeze(), value: Some(number.to_be_bytes().to_vec().into()) }
}

fn small() -> DiskOptions {
    DiskOptions { memtable_bytes_max: 1 << 20, ..options() }
}

/// A store with many records, in tables and in the journal, the first few in several versions; closed.
fn build(dir: &Path) -> StoreId {
    let rig = Rig::try_open(dir, &small()).unwrap();
    let id = rig.store.id();
    let mut sequence = 0;
    let mut commit = |changes: Vec<Change>| {
        sequence += 1;
        rig.commit(batch(sequence, changes));
    };
    commit(vec![Change { table: Table::Meta, key: "clean".into(), value: Some("1".into()) }]);
    commit((0..HINTS).map(hint).collect());
    // One that was handed over.
    commit(vec![Change { value: None, ..hint(0) }]);
    for version in 1..=VERSIONS {
        let numbers = if version == 1 { 0..OBJECTS } else { 0..OBJECTS / 10 };
        for chunk in numbers.collect::<Vec<_>>().chunks(20) {
            commit(chunk.iter().map(|number| stored(&object(*number), &record(*number, version))).collect());
        }
    }
    // One that is there no more.
    commit(vec![Change { table: Table::Records, key: object(0).encoded().clone(), value: None }]);
    while tables(dir).is_empty() {
        thread::sleep(Duration::from_millis(1));
    }
    rig.close();
    Rig::try_open(dir, &small()).unwrap().close();
    id
}

/// The table files of the records.
fn tables(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.join("engine/keyspaces/1/tables")).unwrap();
    let mut tables: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    tables.sort();
    tables
}

fn journal(dir: &Path) -> PathBuf {
    let mut paths = fs::read_dir(dir.join("engine")).unwrap().map(|entry| entry.unwrap().path());
    paths.find(|path| path.extension().is_some_and(|end| end == "jnl")).unwrap()
}

fn flip(path: &Path, bit: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[bit / 8] ^= 1 << (bit % 8);
    fs::write(path, bytes).unwrap();
}

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The objects that a store holds, each with its version. All of them have to be ones that were written.
fn held(store: &DiskStore) -> BTreeMap<u64, u64> {
    let mut held = BTreeMap::new();
    for number in 0..OBJECTS {
        let Some(found) = read_record(store, &object(number)).unwrap() else { continue };
        let version = (1..=VERSIONS).find(|version| record(number, *version) == found);
        held.insert(number, version.expect("it was written"));
    }
    let entries = store.scan(Table::Records, None, &[0xff], 1 << 20).unwrap();
    assert_eq!(entries.len(), held.len(), "and nothing else is there");
    held
}

/// What a store of [`build`] held before it was damaged.
fn whole() -> BTreeMap<u64, u64> {
    let version = |number| if number < OBJECTS / 10 { VERSIONS } else { 1 };
    (1..OBJECTS).map(|number| (number, version(number))).collect()
}

/// Checks what has to be so of every salvaged store, and returns what it holds.
fn check(dir: &Path, old: StoreId, report: &SalvageReport) -> BTreeMap<u64, u64> {
    let rig = Rig::try_open(dir, &small()).unwrap();
    assert!(!rig.is_new && rig.store.id() == report.store && report.store != old);
    assert!(rig.store.recovered() > Sequence(0), "a store that was never written to may found a cluster");
    let facts = rig.store.scan(Table::Meta, None, &[0xff], 10).unwrap();
    let hints = facts.iter().filter(|(key, _)| key.starts_with(b"hint/")).count();
    assert_eq!(facts.len(), hints, "nothing of what the node knew of itself: {facts:?}");
    assert_eq!(hints as u64, report.hints_kept);
    let held = held(&rig.store);
    assert_eq!(held.len(), usize::try_from(report.records_kept).unwrap());
    let next = rig.store.recovered().0 + 1;
    rig.commit(batch(next, [stored(&object(0), &record(0, 1))]));
    rig.close();
    assert_eq!(Rig::try_open(dir, &small()).unwrap().store.recovered(), Sequence(next), "it goes on");
    assert!(report.damaged.join("engine/keyspaces").is_dir() && report.damaged.join("identity").is_file());
    held
}

#[test]
fn salvage_of_a_store_that_is_whole_keeps_every_record_and_nothing_else() {
    let scratch = Scratch::in_memory("whole");
    let dir = scratch.join("store");
    let old = build(&dir);
    let report = salvage(&dir, &small()).unwrap();
    assert_eq!(report.damaged, dir.join(format!("damaged-{:016x}", old.0)));
    assert_eq!((report.blocks_lost, report.records_damaged, report.journal_bytes_lost), (0, 0, 0));
    assert_eq!(check(&dir, old, &report), whole());
    let rig = Rig::try_open(&dir, &small()).unwrap();
    let mut hints: Vec<_> = (1..HINTS).map(hint).map(|hint| (hint.key, hint.value.unwrap())).collect();
    hints.sort();
    assert_eq!(rig.store.scan(Table::Meta, None, &[0xff], 10), Ok(hints), "what it owes to others");
    rig.close();
}

#[test]
fn a_bad_block_costs_the_records_in_it_and_no_others() {
    let scratch = Scratch::in_memory("block");
    let (base, dir) = (scratch.join("base"), scratch.join("store"));
    let old = build(&base);
    let mut dice = Dice::new();
    for _ in 0..24 {
        copy(&base, &dir);
        let tables = tables(&dir);
        let table = &tables[dice.below(tables.len())];
        flip(table, dice.below(usize::try_from(table.metadata().unwrap().len()).unwrap() * 8));
        let report = salvage(&dir, &small()).unwrap();
        let held = check(&dir, old, &report);
        // Blocks are of 4 KiB and a record or two more. An older version may stand where a newer was lost.
        let missing = whole().keys().filter(|number| !held.contains_key(number)).count();
        assert!(missing <= 12, "{missing} of {report:?}");
        assert!(report.blocks_lost <= 1 && (missing == 0 || report.blocks_lost == 1), "{report:?}");
    }
}

#[test]
fn a_bad_batch_costs_the_changes_in_it_and_no_others() {
    let scratch = Scratch::in_memory("batch");
    let (base, dir) = (scratch.join("base"), scratch.join("store"));
    let old = build(&base);
    let mut dice = Dice::new();
    for _ in 0..12 {
        copy(&base, &dir);
        let journal = journal(&dir);
        flip(&journal, dice.below(usize::try_from(journal.metadata().unwrap().len()).unwrap() * 8));
        assert!(matches!(DiskStore::open(&dir, &small()), Err(OpenError::Damaged { .. })));
        let report = salvage(&dir, &small()).unwrap();
        let held = check(&dir, old, &report);
        let lost = whole().iter().filter(|(number, version)| held.get(number) != Some(version)).count();
        assert!(lost <= 20, "a batch has twenty changes: {lost} of {report:?}");
    }
}

/// Whatever is missing or unreadable of what the engine needs to open: tables and journal are read all the same.
#[test]
fn records_are_read_without_listings_and_without_an_identity() {
    let scratch = Scratch::in_memory("listing");
    let (base, dir) = (scratch.join("base"), scratch.join("store"));
    let old = build(&base);
    for damaged in ["identity", "engine/version", "engine/keyspaces/1/current", "engine/keyspaces/0/current"]
    {
        copy(&base, &dir);
        flip(&dir.join(damaged), 9);
        if damaged != "engine/version" {
            assert!(matches!(DiskStore::open(&dir, &small()), Err(OpenError::Damaged { .. })), "{damaged}");
        }
        let report = salvage(&dir, &small()).unwrap();
        let held = check(&dir, old, &report);
        // Without a listing, tables that were compacted away may still be read.
        let missing: Vec<_> = whole().into_iter().filter(|(number, _)| !held.contains_key(number)).collect();
        assert_eq!(missing, [], "{damaged}");
    }
    copy(&base, &dir);
    fs::remove_dir_all(dir.join("engine")).unwrap();
    let report = salvage(&dir, &small()).unwrap();
    assert_eq!(report.records_kept, 0);
    assert!(Rig::try_open(&dir, &small()).unwrap().store.recovered() > Sequence(0));
}

/// A record that fails the core's own checksum is no record, and an older version of it is better than none.
#[test]
fn a_damaged_record_is_left_out() {
    let scratch = Scratch::in_memory("record");
    let dir = scratch.join("store");
    let old = build(&dir);
    let rig = Rig::try_open(&dir, &small()).unwrap();
    let mut change = stored(&object(5), &record(5, 3));
    let mut value = change.value.unwrap().to_vec();
    value[20] ^= 1;
    change.value = Some(value.into());
    rig.commit(batch(rig.store.recovered().0 + 1, [change]));
    rig.close();
    let report = salvage(&dir, &small()).unwrap();
    assert_eq!(report.records_damaged, 1);
    let mut held = check(&dir, old, &report);
    assert!(held.insert(5, VERSIONS).is_none_or(|version| version <= VERSIONS));
    assert_eq!(held, whole());
}

/// A compaction comes across the bad block that no read has met yet. The engine gives up, and says so.
#[test]
fn an_engine_that_comes_across_damage_fails_and_can_be_salvaged() {
    let scratch = Scratch::in_memory("compaction");
    let dir = scratch.join("store");
    let old = build(&dir);
    let table = &tables(&dir)[0];
    flip(table, usize::try_from(table.metadata().unwrap().len()).unwrap() * 8 / 3);
    let rig = Rig::try_open(&dir, &small()).unwrap();
    let mut sequence = rig.store.recovered().0;
    let failure = loop {
        sequence += 1;
        let numbers = (0..20).map(|number| (sequence * 20 + number) % OBJECTS);
        let changes: Vec<Change> =
            numbers.map(|number| stored(&object(number), &record(number, 1))).collect();
        if rig.committer.submit(batch(sequence, changes)).is_ok() {
            match rig.event() {
                CommitEvent::Committed(_) => assert!(sequence < 10_000, "nothing comes across it"),
                CommitEvent::Failed(failure) => break failure,
                event @ CommitEvent::Refused(..) => panic!("{event:?}"),
            }
        }
    };
    assert!(matches!(failure, CommitFailure::Poisoned), "{failure}");
    rig.close();
    // The next start would come across it again, and so on for ever: it looks first.
    for _ in 0..2 {
        let opened = DiskStore::open(&dir, &small()).map(drop);
        let found = matches!(&opened, Err(OpenError::Damaged { what: Damage::Tables { blocks: 1, .. }, .. }));
        assert!(found, "{opened:?}");
    }
    let report = salvage(&dir, &small()).unwrap();
    let held = check(&dir, old, &report);
    // Whatever was in the bad block, most of it has been written again since.
    assert!(held.len() >= whole().len() - 12, "{report:?}");
}

/// Ended at any of its steps it is begun again, or is finished by the next start.
#[test]
fn a_salvage_that_was_cut_short_is_completed() {
    let scratch = Scratch::in_memory("short");
    let (base, done, dir) = (scratch.join("base"), scratch.join("done"), scratch.join("store"));
    let old = build(&base);
    copy(&base, &done);
    let report = salvage(&done, &small()).unwrap();
    let aside = format!("damaged-{:016x}", old.0);
    // What the directory holds after each step. (What is moved, in which order, is in its description.)
    let complete = |dir: &Path| {
        copy(&base, dir);
        fs::create_dir(dir.join("salvaging")).unwrap();
        copy(&done.join("engine"), &dir.join("salvaging/engine"));
        fs::copy(done.join(&aside).join("report"), dir.join("salvaging/report")).unwrap();
    };
    let steps: [&dyn Fn(&Path); 7] = [
        &|dir| drop(fs::copy(done.join("identity"), dir.join("salvaging/identity"))),
        &|dir| fs::create_dir(dir.join(&aside)).unwrap(),
        &|dir| fs::hard_link(dir.join("identity"), dir.join(&aside).join("identity")).unwrap(),
        &|dir| fs::rename(dir.join("engine"), dir.join(&aside).join("engine")).unwrap(),
        &|dir| fs::rename(dir.join("salvaging/report"), dir.join(&aside).join("report")).unwrap(),
        &|dir| fs::rename(dir.join("salvaging/engine"), dir.join("engine")).unwrap(),
        &|dir| fs::rename(dir.join("salvaging/identity"), dir.join("identity")).unwrap(),
    ];
    complete(&dir);
    let begun = salvage(&dir, &small()).unwrap();
    assert_ne!(begun.store, report.store, "what was not completed is thrown away");
    assert_eq!(check(&dir, old, &begun), whole());
    for ended in 1..=steps.len() {
        for by_a_start in [false, true] {
            complete(&dir);
            steps[..ended].iter().for_each(|step| step(&dir));
            if by_a_start {
                let opened = DiskStore::open(&dir, &small()).unwrap();
                assert_eq!(opened.store.id(), report.store, "after step {ended}");
            } else if ended < steps.len() {
                let finished = salvage(&dir, &small()).unwrap();
                assert_eq!(finished.damaged, dir.join(&aside), "after step {ended}");
                let expected = SalvageReport { damaged: finished.damaged.clone(), ..report.clone() };
                assert_eq!(finished, expected, "after step {ended}");
            }
            assert!(!dir.join("salvaging/identity").exists());
            let report = SalvageReport { damaged: dir.join(&aside), ..report.clone() };
            assert_eq!(check(&dir, old, &report), whole(), "after step {ended}");
        }
    }
}

#[test]
fn salvage_touches_no_store_of_another_and_makes_none_of_nothing() {
    let scratch = Scratch::in_memory("touch");
    let dir = scratch.join("store");
    assert!(matches!(salvage(&dir, &options()), Err(SalvageError::NoStore { .. })));
    assert!(!dir.exists());
    let rig = Rig::open(&dir);
    assert!(matches!(salvage(&dir, &options()), Err(SalvageError::Store(OpenError::InUse { .. }))));
    rig.close();
    let other = DiskOptions { node: NodeId(99), ..options() };
    assert!(matches!(salvage(&dir, &other), Err(SalvageError::Store(OpenError::OtherNode { .. }))));
    Rig::open(&dir).close();
}
