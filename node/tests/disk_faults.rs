//! The durable store on a file system that is full, read-only, or fails to sync.
//!
//! The first two need a file system of their own, and so the right to mount one; the last needs a C compiler, for a
//! library that makes syncs fail. Where there is none of it, a test says that it was skipped.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "files and threads are what is tested"
)]
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "these are tests")]

mod disk_rig;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use bytes::Bytes;
use disk_rig::{Rig, Scratch, batch, options, put};
use node::{
    shell::disk::{CommitEvent, CommitFailure, CommitRefusal, DiskOptions},
    storage::{Sequence, Store, Table},
};

/// A file system in memory, of so many MiB.
struct Mount(Scratch);

impl Mount {
    fn new(name: &str, mib: u32) -> Option<Mount> {
        let scratch = Scratch::on_disk(name);
        let size = format!("size={mib}m");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(scratch.join(""))
            .stderr(Stdio::null())
            .status();
        if !mounted.is_ok_and(|status| status.success()) {
            println!("SKIPPED: no right to mount a file system");
            return None;
        }
        Some(Mount(scratch))
    }

    fn remount(&self, how: &str) {
        let options = format!("remount,{how}");
        let status = Command::new("mount").args(["-o", &options]).arg(self.path("")).status();
        assert!(status.unwrap().success());
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path("")).status();
    }
}

/// Takes up all but so many bytes of a file system.
fn fill(path: &Path, free_bytes: u64) {
    fs::write(path, "").unwrap();
    let found = rustix::fs::statvfs(path.parent().unwrap()).unwrap();
    let bytes = found.f_bavail * found.f_frsize - free_bytes;
    fs::write(path, vec![1; usize::try_from(bytes).unwrap()]).unwrap();
}

/// The refusal that the committer reports next.
fn refusal(rig: &Rig, sequence: u64) -> CommitRefusal {
    match rig.event() {
        CommitEvent::Refused(Sequence(refused), refusal) if refused == sequence => refusal,
        event => panic!("{event:?}"),
    }
}

#[test]
fn a_full_disk_refuses_batches_and_takes_them_again_when_there_is_room() {
    let Some(mount) = Mount::new("full", 96) else { return };
    let dir = mount.path("store");
    let options = DiskOptions { free_bytes_min: 8 << 20, ..options() };
    let rig = Rig::try_open(&dir, &options).unwrap();
    rig.commit(batch(1, [put("a", "1")]));
    fill(&mount.path("ballast"), 9 << 20);
    for sequence in 2..10 {
        // Together they are too many: the first are taken.
        rig.committer.submit(batch(sequence, [put(format!("k{sequence}"), vec![7; 300_000])])).unwrap();
    }
    let mut committed = 1;
    let refused = loop {
        match rig.event() {
            CommitEvent::Committed(Sequence(sequence)) => committed = sequence,
            CommitEvent::Refused(Sequence(sequence), CommitRefusal::NoSpace { .. }) => break sequence,
            event => panic!("{event:?}"),
        }
    };
    assert!(committed > 1 && refused == committed + 1, "committed {committed}, refused {refused}");
    let check = |rig: &Rig| {
        for sequence in 2..10 {
            let found = rig.get(&format!("k{sequence}")).is_some();
            assert_eq!(
                found,
                sequence < refused,
                "nothing of what was refused is there, nor of what came after it"
            );
        }
    };
    check(&rig);
    fs::remove_file(mount.path("ballast")).unwrap();
    // There is room again. What was handed over before the refusal was heard of is dropped all the same.
    rig.committer.submit(batch(10, [put("k9", "late")])).unwrap();
    rig.committer.resume();
    assert_eq!(rig.committer.counters().queued_batches, 0);
    rig.commit(batch(11, [put("a", "2")]));
    check(&rig);
    rig.close();
    let rig = Rig::try_open(&dir, &options).unwrap();
    assert_eq!((rig.store.recovered(), rig.get("a")), (Sequence(11), Some("2".into())));
    check(&rig);
}

/// Without a reserve the engine itself runs out of room while it writes a table. It takes nothing more then; the next
/// start finds everything that was acknowledged, reads while the disk is full, and writes when it is not.
#[test]
fn an_engine_that_runs_out_of_room_fails_and_loses_nothing() {
    let Some(mount) = Mount::new("out", 96) else { return };
    let dir = mount.path("store");
    let small = DiskOptions { memtable_bytes_max: 1 << 20, ..options() };
    let rig = Rig::try_open(&dir, &small).unwrap();
    rig.commit(batch(1, [put("k1", "1")]));
    // Enough for a memtable's worth of journal, and not for its table as well.
    fill(&mount.path("ballast"), 1_700_000);
    let (mut committed, mut sequence) = (1, 1);
    let failure = loop {
        sequence += 1;
        assert!(sequence < 100, "it goes on and on");
        rig.committer.submit(batch(sequence, [put(format!("k{sequence}"), vec![7; 100_000])])).unwrap();
        match rig.event() {
            CommitEvent::Committed(Sequence(last)) => committed = last,
            // The table took what was left. Only the next write finds out that it was not enough.
            CommitEvent::Refused(_, _) => {
                fs::write(mount.path("ballast"), "").unwrap();
                rig.committer.resume();
            }
            CommitEvent::Failed(failure) => break failure,
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    };
    println!("{failure}, after {committed}");
    assert!(matches!(failure, CommitFailure::Poisoned | CommitFailure::Write(_) | CommitFailure::Sync(_)));
    assert!(rig.committer.submit(batch(sequence + 1, [])).is_err(), "it takes nothing more");
    assert_eq!(rig.get("k1"), Some("1".into()), "and still reads");
    rig.close();
    let check = |rig: &Rig| {
        assert!(rig.store.recovered() >= Sequence(committed));
        assert!((1..=committed).all(|number| rig.get(&format!("k{number}")).is_some()));
    };
    fill(&mount.path("ballast"), 0);
    let guarded = DiskOptions { free_bytes_min: 4 << 20, ..small };
    let rig = Rig::try_open(&dir, &guarded).unwrap();
    check(&rig);
    rig.committer.submit(batch(1000, [put("more", "1")])).unwrap();
    assert!(matches!(refusal(&rig, 1000), CommitRefusal::NoSpace { .. }));
    rig.close();
    fs::remove_file(mount.path("ballast")).unwrap();
    let rig = Rig::try_open(&dir, &guarded).unwrap();
    check(&rig);
    rig.commit(batch(1001, [put("more", "2")]));
}

#[test]
fn a_read_only_file_system_refuses_batches_and_is_not_opened() {
    let Some(mount) = Mount::new("ro", 96) else { return };
    let dir = mount.path("store");
    let rig = Rig::open(&dir);
    rig.commit(batch(1, [put("a", "1")]));
    // One cannot be made read-only while files are written to; one that is stands in for it.
    let bound = Command::new("mount").args(["-t", "tmpfs", "-o", "ro", "tmpfs"]).arg(&dir).status();
    assert!(bound.unwrap().success());
    // What was found a few milliseconds ago is believed.
    std::thread::sleep(std::time::Duration::from_millis(20));
    rig.committer.submit(batch(2, [put("a", "2")])).unwrap();
    assert_eq!(refusal(&rig, 2), CommitRefusal::ReadOnly);
    assert_eq!(rig.get("a"), Some("1".into()));
    assert!(Command::new("umount").arg(&dir).status().unwrap().success());
    std::thread::sleep(std::time::Duration::from_millis(20));
    rig.committer.resume();
    rig.commit(batch(3, [put("a", "3")]));
    rig.close();
    mount.remount("ro");
    let Err(error) = Rig::try_open(&dir, &options()) else { panic!("it cannot be opened") };
    assert!(error.to_string().contains("Read-only file system"), "{error}");
    assert!(error.to_string().contains(dir.to_str().unwrap()), "{error}");
    mount.remount("rw");
    assert_eq!(Rig::open(&dir).get("a"), Some("3".into()));
}

/// Fails every sync while the file that `FAIL_SYNCS` names is there.
const FAILING_SYNCS: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>
static int fails(void) {
    const char *path = getenv("FAIL_SYNCS");
    return path && access(path, F_OK) == 0;
}
int fsync(int fd) {
    if (fails()) { errno = EIO; return -1; }
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
}
int fdatasync(int fd) {
    if (fails()) { errno = EIO; return -1; }
    return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(fd);
}
"#;

#[test]
fn a_failed_sync_ends_everything_and_nothing_of_it_is_acknowledged() {
    let scratch = Scratch::on_disk("sync");
    let (source, library) = (scratch.join("failing.c"), scratch.join("failing.so"));
    fs::write(&source, FAILING_SYNCS).unwrap();
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status();
    if !built.is_ok_and(|status| status.success()) {
        println!("SKIPPED: no C compiler");
        return;
    }
    let child = Command::new(env::current_exe().unwrap())
        .args(["--ignored", "--exact", "child_whose_syncs_fail"])
        .env("CHILD_STORE", scratch.join("store"))
        .env("FAIL_SYNCS", scratch.join("fail"))
        .env("LD_PRELOAD", &library)
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
    let rig = Rig::open(&scratch.join("store"));
    assert!(rig.store.recovered() >= Sequence(1));
    assert_eq!(rig.get("a"), Some("1".into()));
}

/// Not a test of its own: see above.
#[test]
#[ignore = "a child process of another test"]
fn child_whose_syncs_fail() {
    let (Ok(dir), Ok(fail)) = (env::var("CHILD_STORE"), env::var("FAIL_SYNCS")) else { return };
    let rig = Rig::open(Path::new(&dir));
    rig.commit(batch(1, [put("a", "1")]));
    fs::write(&fail, "").unwrap();
    rig.committer.submit(batch(2, [put("b", "2")])).unwrap();
    assert!(matches!(rig.event(), CommitEvent::Failed(CommitFailure::Sync(_))));
    // A sync that follows would succeed, and say nothing about what this one did not write.
    fs::remove_file(&fail).unwrap();
    assert!(rig.committer.submit(batch(3, [put("c", "3")])).is_err());
    assert!(rig.events.recv().is_err(), "nothing more is said");
    assert_eq!(rig.store.get(Table::Records, b"a"), Ok(Some(Bytes::from("1"))));
}
