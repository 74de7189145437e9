//! The durable store of a process that is killed while it writes: every batch that it was told of is there, and of all
//! batches the first ones are, whole.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "files and threads are what is tested"
)]
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "these are tests")]

mod disk_rig;

use std::{
    env,
    io::{BufRead, BufReader, Write, stdout},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use bytes::Bytes;
use disk_rig::{Dice, Rig, Scratch, batch, options, put};
use node::{
    shell::disk::{CommitEvent, DiskOptions},
    storage::{Batch, Change, Sequence, Store, Table},
};

/// How often the process is killed.
const ROUNDS: usize = 8;
/// Keys that are written round and round.
const KEYS: u64 = 400;
/// Batches on their way at once.
const IN_FLIGHT: u64 = 64;

fn small() -> DiskOptions {
    DiskOptions { memtable_bytes_max: 1 << 20, ..options() }
}

/// The batch with a number: every fifth removes a key, and each says in both tables which it was.
fn numbered(sequence: u64) -> Batch {
    let key = Bytes::from(format!("key{:03}", sequence % KEYS));
    let value = (!sequence.is_multiple_of(5)).then(|| value(sequence));
    let meta = Change { table: Table::Meta, ..put("last", sequence.to_string()) };
    batch(sequence, [Change { table: Table::Records, key, value }, put("last", sequence.to_string()), meta])
}

fn value(sequence: u64) -> Bytes {
    let length = usize::try_from(sequence % 700).unwrap();
    [sequence.to_string().as_bytes(), &vec![b'.'; length]].concat().into()
}

/// Checks that a store holds just what its first batches made of it.
fn check(rig: &Rig) {
    let sequence = rig.store.recovered().0;
    let last = Some(Bytes::from(sequence.to_string())).filter(|_| sequence > 0);
    assert_eq!((rig.get("last"), rig.store.get(Table::Meta, b"last").unwrap()), (last.clone(), last));
    for number in sequence.saturating_sub(KEYS - 1).max(1)..=sequence {
        let expected = (!number.is_multiple_of(5)).then(|| value(number));
        assert!(rig.get(&format!("key{:03}", number % KEYS)) == expected, "batch {number} of {sequence}");
    }
}

fn spawn(dir: &Path) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "child_that_writes_until_it_is_killed"])
        .env("CHILD_STORE", dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn what_was_reported_as_committed_survives_being_killed() {
    let mut dice = Dice::new();
    let scratch = Scratch::on_disk("kill");
    let dir = scratch.join("store");
    let mut reported = 0;
    for round in 0..ROUNDS {
        let mut child = spawn(&dir);
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (send, told) = mpsc::channel();
        let reader = thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some(number) = line.strip_prefix("committed ") {
                    send.send(number.parse::<u64>().unwrap()).unwrap();
                }
            }
        });
        let first = told.recv_timeout(Duration::from_secs(20)).unwrap();
        thread::sleep(Duration::from_millis(u64::try_from(dice.below(200)).unwrap()));
        child.kill().unwrap();
        child.wait().unwrap();
        reader.join().unwrap();
        reported = told.iter().max().unwrap_or(first);
        let rig = Rig::try_open(&dir, &small()).unwrap();
        let recovered = rig.store.recovered();
        assert!(recovered >= Sequence(reported), "{reported} were reported, {recovered:?} are there");
        check(&rig);
        println!("round {round}: {reported} reported, {recovered:?} there");
        if round % 2 == 0 {
            rig.commit(numbered(recovered.0 + 1));
        }
        rig.close();
    }
    assert!(reported > 1000, "it was busy");
}

/// Not a test of its own: see above.
#[test]
#[ignore = "a child process of another test"]
fn child_that_writes_until_it_is_killed() {
    let Ok(dir) = env::var("CHILD_STORE") else { return };
    let rig = Rig::try_open(Path::new(&dir), &small()).unwrap();
    check(&rig);
    let mut committed = rig.store.recovered().0;
    writeln!(stdout(), "recovered {committed}").unwrap();
    for sequence in committed + 1.. {
        rig.committer.submit(numbered(sequence)).unwrap();
        while sequence - committed >= IN_FLIGHT {
            match rig.event() {
                CommitEvent::Committed(Sequence(last)) => committed = last,
                event => panic!("{event:?}"),
            }
            // Whoever reads this has been told.
            writeln!(stdout(), "committed {committed}").unwrap();
        }
    }
}
