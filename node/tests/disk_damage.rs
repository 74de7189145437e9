//! The durable store on files that are not what was written: cut short, or with bits flipped.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "files and threads are what is tested"
)]
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "these are tests")]

mod disk_rig;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    ops::Range,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use bytes::Bytes;
use disk_rig::{Dice, Rig, Scratch, batch, options, put};
use node::{
    shell::disk::{CommitEvent, DiskOptions, DiskStore, OpenError},
    storage::{Batch, Change, Sequence, Store, Table},
};

/// What a store holds after each of its batches, the first being nothing.
type States = Vec<BTreeMap<(Table, Bytes), Bytes>>;

/// How batches were committed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Commits {
    /// Each with a sync of its own.
    Singly,
    /// All in one sync, but for the first.
    Joined,
}

fn random_batches(dice: &mut Dice, count: u64, changes_max: usize, value_bytes_max: usize) -> Vec<Batch> {
    let change = |dice: &mut Dice| {
        let table = if dice.below(6) == 0 { Table::Meta } else { Table::Records };
        let value = Bytes::from(vec![u8::try_from(dice.below(256)).unwrap(); dice.below(value_bytes_max)]);
        let key = format!("k{}", dice.below(30));
        Change { table, key: key.into(), value: (dice.below(5) > 0).then_some(value) }
    };
    let mut batches = Vec::new();
    for number in 1..=count {
        let changes: Vec<Change> = (0..dice.below(changes_max + 1)).map(|_| change(dice)).collect();
        batches.push(batch(number * 2, changes));
    }
    batches
}

fn states(batches: &[Batch]) -> States {
    let mut states = vec![BTreeMap::new()];
    for batch in batches {
        let mut state = states.last().unwrap().clone();
        for change in &batch.changes {
            match &change.value {
                Some(value) => state.insert((change.table, change.key.clone()), value.clone()),
                None => state.remove(&(change.table, change.key.clone())),
            };
        }
        states.push(state);
    }
    states
}

/// Makes a store with these batches, and closes it.
fn build(dir: &Path, options: &DiskOptions, batches: &[Batch], commits: Commits) {
    let opened = DiskStore::open(dir, options).unwrap();
    let (send, events) = mpsc::channel();
    let (release, held) = mpsc::channel::<()>();
    let committer = opened.committer.start(move |event| {
        send.send(event).unwrap();
        let _ = held.recv();
    });
    let committed = || match events.recv() {
        Ok(CommitEvent::Committed(sequence)) => sequence,
        event => panic!("{event:?}"),
    };
    match commits {
        Commits::Singly => {
            drop(release);
            for batch in batches {
                committer.submit(batch.clone()).unwrap();
                committed();
            }
        }
        Commits::Joined => {
            committer.submit(batches[0].clone()).unwrap();
            committed();
            batches[1..].iter().for_each(|batch| committer.submit(batch.clone()).unwrap());
            drop(release);
            assert_eq!(Some(committed()), batches.last().map(|batch| batch.sequence));
        }
    }
    let bytes: usize = batches
        .iter()
        .flat_map(|batch| &batch.changes)
        .filter_map(|change| change.value.as_ref())
        .map(Bytes::len)
        .sum();
    while bytes > 2 << 20 && fs::read_dir(dir.join("engine/keyspaces/1/tables")).unwrap().count() == 0 {
        thread::sleep(Duration::from_millis(1));
    }
    committer.stop();
    drop(opened.store);
    // Once more, so that the journal is cut to what it holds and quick to copy.
    Rig::try_open(dir, options).unwrap().close();
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

fn journals(dir: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(dir.join("engine")).unwrap().map(|entry| entry.unwrap().path());
    let mut journals: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|end| end == "jnl")).collect();
    journals.sort();
    journals
}

fn flip(path: &Path, bit: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[bit / 8] ^= 1 << (bit % 8);
    fs::write(path, bytes).unwrap();
}

fn cut(path: &Path, length: usize) {
    File::options().write(true).open(path).unwrap().set_len(u64::try_from(length).unwrap()).unwrap();
}

fn contents(store: &DiskStore) -> BTreeMap<(Table, Bytes), Bytes> {
    let mut contents = BTreeMap::new();
    for table in [Table::Records, Table::Meta] {
        for (key, value) in store.scan(table, None, b"z", 10_000).unwrap() {
            assert_eq!(store.get(table, &key).unwrap().as_ref(), Some(&value), "reads agree");
            contents.insert((table, key), value);
        }
    }
    contents
}

/// Opens a damaged store. It has to be a prefix of what was committed, whole, and go on; or to say that it is damaged.
/// Returns how many batches it has.
fn open_damaged(dir: &Path, options: &DiskOptions, states: &States, what: &str) -> Option<usize> {
    let rig = match Rig::try_open(dir, options) {
        Ok(rig) => rig,
        Err(OpenError::Damaged { .. }) => return None,
        Err(error) => panic!("{what}: {error}"),
    };
    let sequence = rig.store.recovered().0;
    let count = usize::try_from(sequence / 2).unwrap();
    assert_eq!(sequence % 2, 0, "{what}");
    assert!(
        contents(&rig.store) == states[count],
        "{what}: {count} batches are not there as they were committed"
    );
    rig.commit(batch(sequence + 1, [put("more", "more")]));
    rig.close();
    let rig = Rig::try_open(dir, options).unwrap_or_else(|error| panic!("{what}, opened again: {error}"));
    assert_eq!(rig.store.recovered(), Sequence(sequence + 1), "{what}");
    let mut expected = states[count].clone();
    expected.insert((Table::Records, "more".into()), "more".into());
    assert!(contents(&rig.store) == expected, "{what}: not the same when opened again");
    rig.close();
    Some(count)
}

/// What became of each trial.
#[derive(Default, Debug)]
struct Outcomes {
    damaged: usize,
    whole: usize,
    shorter: usize,
}

impl Outcomes {
    fn note(&mut self, count: Option<usize>, all: usize) {
        match count {
            None => self.damaged += 1,
            Some(count) if count == all => self.whole += 1,
            Some(_) => self.shorter += 1,
        }
    }
}

/// Damages copies of a store's journal files in one way after another.
fn damage_journal(
    base: &Path,
    scratch: &Scratch,
    options: &DiskOptions,
    states: &States,
    file: usize,
    damages: impl Iterator<Item = Damage>,
) -> Outcomes {
    let mut outcomes = Outcomes::default();
    for damage in damages {
        let dir = scratch.join("trial");
        copy(base, &dir);
        let path = &journals(&dir)[file];
        match damage {
            Damage::Flip(bit) => flip(path, bit),
            Damage::Cut(length) => cut(path, length),
            Damage::Zeros(ref range) => {
                let mut bytes = fs::read(path).unwrap();
                bytes[range.clone()].fill(0);
                fs::write(path, bytes).unwrap();
            }
        }
        let count = open_damaged(&dir, options, states, &format!("{damage:?} of file {file}"));
        outcomes.note(count, states.len() - 1);
    }
    outcomes
}

#[derive(Clone, Debug)]
enum Damage {
    Flip(usize),
    Cut(usize),
    /// Pages that a crash did not write.
    Zeros(Range<usize>),
}

/// The store of these batches, in the place of the one before.
fn build_anew(scratch: &Scratch, batches: &[Batch], commits: Commits) -> PathBuf {
    let base = scratch.join("base");
    let _ = fs::remove_dir_all(&base);
    build(&base, &options(), batches, commits);
    base
}

#[test]
fn a_journal_cut_anywhere_yields_the_first_batches_whole() {
    let (mut dice, scratch) = (Dice::new(), Scratch::in_memory("cut"));
    let batches = random_batches(&mut dice, 12, 5, 200);
    let states = states(&batches);
    for commits in [Commits::Singly, Commits::Joined] {
        let base = build_anew(&scratch, &batches, commits);
        let bytes = usize::try_from(journals(&base)[0].metadata().unwrap().len()).unwrap();
        let cuts = (0..60).map(|index| Damage::Cut(index * bytes / 60)).collect::<Vec<_>>();
        let outcomes = damage_journal(&base, &scratch, &options(), &states, 0, cuts.into_iter());
        println!("{outcomes:?}");
        assert!(outcomes.shorter == 60, "a cut leaves no trace of what was after it: {outcomes:?}");
    }
}

#[test]
fn a_flipped_bit_in_a_journal_yields_the_first_batches_or_is_reported() {
    let (mut dice, scratch) = (Dice::new(), Scratch::in_memory("flip"));
    let batches = random_batches(&mut dice, 12, 5, 200);
    let states = states(&batches);
    for commits in [Commits::Singly, Commits::Joined] {
        let base = build_anew(&scratch, &batches, commits);
        let bits = 8 * usize::try_from(journals(&base)[0].metadata().unwrap().len()).unwrap();
        // The first batch's number is what nothing but its own link protects.
        let numbers = (40..104).map(Damage::Flip);
        let anywhere = (0..120).map(|_| Damage::Flip(dice.below(bits))).collect::<Vec<_>>();
        let outcomes = damage_journal(&base, &scratch, &options(), &states, 0, numbers.chain(anywhere));
        println!("{outcomes:?}");
        match commits {
            // The next batch's link says that this one was synced.
            Commits::Singly => assert!(outcomes.damaged > 100, "{outcomes:?}"),
            // Nothing says so.
            Commits::Joined => assert!(outcomes.shorter > 80, "{outcomes:?}"),
        }
        assert!(outcomes.whole < 10, "only a number that still fits passes: {outcomes:?}");
    }
}

/// After a power failure any page of the tail may be missing while later ones are there.
#[test]
fn pages_that_a_crash_did_not_write_cost_no_batch_before_them() {
    let (mut dice, scratch) = (Dice::new(), Scratch::in_memory("pages"));
    let batches = random_batches(&mut dice, 12, 5, 200);
    let states = states(&batches);
    let base = scratch.join("base");
    build(&base, &options(), &batches, Commits::Joined);
    let bytes = usize::try_from(journals(&base)[0].metadata().unwrap().len()).unwrap();
    // The first batch was synced.
    let synced = end_of_batch(&fs::read(&journals(&base)[0]).unwrap(), 0);
    let holes = (0..60).map(|_| {
        let start = synced + dice.below(bytes - synced);
        Damage::Zeros(start..(start + 1 + dice.below(2000)).min(bytes))
    });
    let holes = holes.collect::<Vec<_>>();
    let outcomes = damage_journal(&base, &scratch, &options(), &states, 0, holes.into_iter());
    println!("{outcomes:?}");
    assert_eq!(outcomes.damaged, 0, "what was not synced may be torn");
}

/// A journal of several files: the engine begins a new one when the old one is full.
#[test]
fn a_hole_between_journal_files_is_reported() {
    let (mut dice, scratch) = (Dice::new(), Scratch::in_memory("files"));
    let batches = random_batches(&mut dice, 12, 5, 200);
    let states = states(&batches);
    let base = scratch.join("base");
    build(&base, &options(), &batches, Commits::Singly);
    let whole = split_journal(&base);
    assert_eq!(open_damaged(&copied(&base, &scratch), &options(), &states, "no damage"), Some(12));
    let flips = (0..40).map(|_| Damage::Flip(dice.below(whole * 8)));
    let cuts = (0..20).map(|index| Damage::Cut(index * whole / 20));
    let damages = flips.chain(cuts).collect::<Vec<_>>();
    let outcomes = damage_journal(&base, &scratch, &options(), &states, 0, damages.into_iter());
    println!("{outcomes:?}");
    assert_eq!((outcomes.shorter, outcomes.whole), (0, 0), "{outcomes:?}");
}

/// Splits the journal between two batches. Returns the length of the first part.
fn split_journal(dir: &Path) -> usize {
    let path = &journals(dir)[0];
    let bytes = fs::read(path).unwrap();
    let end = end_of_batch(&bytes, 6);
    fs::write(path, &bytes[..end]).unwrap();
    fs::write(dir.join("engine/99.jnl"), &bytes[end..]).unwrap();
    end
}

/// Where a batch of a journal ends.
fn end_of_batch(bytes: &[u8], batch: usize) -> usize {
    let ends = bytes.windows(4).enumerate().filter(|(_, window)| window == b"FJL\x03");
    ends.map(|(at, _)| at + 4).nth(batch).unwrap()
}

fn copied(base: &Path, scratch: &Scratch) -> PathBuf {
    let dir = scratch.join("trial");
    copy(base, &dir);
    dir
}

/// What is in the tables has to join what is left in the journal: the journal holds batches that were flushed long ago.
#[test]
fn tables_ahead_of_a_damaged_journal_are_reported() {
    let (mut dice, scratch) = (Dice::new(), Scratch::in_memory("ahead"));
    let small = DiskOptions { memtable_bytes_max: 1 << 20, ..options() };
    let batches = random_batches(&mut dice, 120, 8, 20_000);
    let states = states(&batches);
    for commits in [Commits::Singly, Commits::Joined] {
        let base = scratch.join("base");
        let _ = fs::remove_dir_all(&base);
        build(&base, &small, &batches, commits);
        let tables = fs::read_dir(base.join("engine/keyspaces/1/tables")).unwrap().count();
        assert!(tables > 0, "some of it was flushed");
        let bytes = usize::try_from(journals(&base)[0].metadata().unwrap().len()).unwrap();
        let flips = (0..20).map(|_| Damage::Flip(dice.below(bytes * 8)));
        let cuts = (0..20).map(|index| Damage::Cut(index * bytes / 20));
        let damages = flips.chain(cuts).collect::<Vec<_>>();
        let outcomes = damage_journal(&base, &scratch, &small, &states, 0, damages.into_iter());
        println!("{outcomes:?}");
        assert!(outcomes.damaged > 20, "most of it was in the tables already: {outcomes:?}");
    }
}

/// The files under a directory, with their lengths in bits.
fn files(dir: &Path) -> Vec<(PathBuf, usize)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.push((entry.path(), usize::try_from(entry.metadata().unwrap().len()).unwrap() * 8));
        }
    }
    found.sort();
    found
}

/// Everything that the engine keeps besides its journal: tables, indices, filters, listings.
#[test]
fn a_flipped_bit_in_a_table_is_never_read_as_something_else() {
    let (mut dice, scratch) = (Dice::new(), Scratch::in_memory("table"));
    let small = DiskOptions { memtable_bytes_max: 1 << 20, ..options() };
    let batches = random_batches(&mut dice, 120, 8, 20_000);
    let expected = states(&batches).pop().unwrap();
    let base = scratch.join("base");
    build(&base, &small, &batches, Commits::Joined);
    let (mut unopened, mut unread) = (0, 0);
    for trial in 0..300 {
        let dir = copied(&base, &scratch);
        let mut files = files(&dir.join("engine"));
        files.retain(|(path, bits)| *bits > 0 && path.extension().is_none_or(|end| end != "jnl"));
        // Every file alike, but tables of records more often, and the ends of files, which hold more than records.
        if trial % 2 == 0 {
            files.retain(|(path, _)| path.starts_with(dir.join("engine/keyspaces/1/tables")));
        }
        let (path, bits) = &files[dice.below(files.len())];
        let bit =
            if dice.below(2) == 0 { dice.below(*bits) } else { bits - 1 - dice.below(*bits.min(&8000)) };
        flip(path, bit);
        let what = format!("trial {trial}: bit {bit} of {}", path.display());
        let rig = match Rig::try_open(&dir, &small) {
            Ok(rig) => rig,
            Err(OpenError::Damaged { .. }) => {
                unopened += 1;
                continue;
            }
            Err(error) => panic!("{what}: {error}"),
        };
        for ((table, key), value) in &expected {
            match rig.store.get(*table, key) {
                Ok(found) => {
                    assert!(found.as_ref() == Some(value), "{what}: {key:?} is not what was written")
                }
                Err(_) => unread += 1,
            }
        }
        for table in [Table::Records, Table::Meta] {
            let all = expected.iter().filter(|((within, _), _)| *within == table);
            let all: Vec<(Bytes, Bytes)> =
                all.map(|((_, key), value)| (key.clone(), value.clone())).collect();
            match rig.store.scan(table, None, b"z", 10_000) {
                Ok(found) => assert!(found == all, "{what}: a scan is not what was written"),
                Err(_) => unread += 1,
            }
        }
    }
    println!("unopened {unopened}, unread {unread}");
    assert!(unopened > 50 && unread > 50);
}

/// The engine would take some of these for a beginning, and remove the rest.
#[test]
fn a_file_that_is_missing_is_reported() {
    let (mut dice, scratch) = (Dice::new(), Scratch::in_memory("missing"));
    let small = DiskOptions { memtable_bytes_max: 1 << 20, ..options() };
    let batches = random_batches(&mut dice, 120, 8, 20_000);
    let base = scratch.join("base");
    build(&base, &small, &batches, Commits::Singly);
    let states = states(&batches);
    for (path, _) in files(&base.join("engine")) {
        let dir = copied(&base, &scratch);
        let path = dir.join(path.strip_prefix(&base).unwrap());
        fs::remove_file(&path).unwrap();
        let before = files(&dir.join("engine"));
        match DiskStore::open(&dir, &small) {
            Err(OpenError::Damaged { .. }) => {}
            Err(error) => panic!("{}: {error}", path.display()),
            Ok(opened) => {
                // A listing that was replaced already, or a table that none names any more.
                assert!(contents(&opened.store) == *states.last().unwrap(), "without {}", path.display());
                continue;
            }
        }
        // Nothing that salvage could use was thrown away.
        let after = files(&dir.join("engine"));
        let lost = before
            .iter()
            .find(|file| file.0.starts_with(dir.join("engine/keyspaces")) && !after.contains(file));
        assert_eq!(lost, None, "without {}", path.display());
    }
}
