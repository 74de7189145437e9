//! What the tests of the durable store share: scratch directories, and a store with its committer's reports.
#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "files and threads are what is tested"
)]
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "these are tests")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process,
    sync::mpsc::{self, Receiver},
    time::Duration,
};

use bytes::Bytes;
use node::{
    shell::disk::{CommitEvent, CommitterHandle, DiskOptions, DiskStore, OpenError},
    storage::{Batch, Change, Sequence, Store, Table},
};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use ring::NodeId;

/// The node whose stores these are.
pub(crate) const NODE: NodeId = NodeId(7);

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// A directory that goes away with its test.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// On the disk.
    pub(crate) fn on_disk(name: &str) -> Scratch {
        Scratch::within(Path::new(env!("CARGO_TARGET_TMPDIR")), name)
    }

    /// In memory, where there is such a file system: for tests that open stores by the hundred.
    pub(crate) fn in_memory(name: &str) -> Scratch {
        let memory = Path::new("/dev/shm");
        if memory.is_dir() { Scratch::within(memory, name) } else { Scratch::on_disk(name) }
    }

    pub(crate) fn within(parent: &Path, name: &str) -> Scratch {
        let path = parent.join(format!("quorate-{name}-{}", process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        Scratch(path)
    }

    /// A path in it.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// An open store, its running committer, and what that reports.
pub(crate) struct Rig {
    pub(crate) store: DiskStore,
    pub(crate) committer: CommitterHandle,
    pub(crate) events: Receiver<CommitEvent>,
    pub(crate) is_new: bool,
}

/// The options of small stores that may fill their file systems.
pub(crate) fn options() -> DiskOptions {
    DiskOptions { free_bytes_min: 0, ..DiskOptions::new(NODE) }
}

impl Rig {
    pub(crate) fn open(dir: &Path) -> Rig {
        Rig::try_open(dir, &options()).unwrap()
    }

    pub(crate) fn try_open(dir: &Path, options: &DiskOptions) -> Result<Rig, OpenError> {
        let opened = DiskStore::open(dir, options)?;
        let (send, events) = mpsc::channel();
        let committer = opened.committer.start(move |event| {
            let _ = send.send(event);
        });
        Ok(Rig { store: opened.store, committer, events, is_new: opened.is_new })
    }

    pub(crate) fn event(&self) -> CommitEvent {
        self.events.recv_timeout(PATIENCE).unwrap()
    }

    /// Hands over a batch and waits until it is committed.
    pub(crate) fn commit(&self, batch: Batch) {
        let sequence = batch.sequence;
        self.committer.submit(batch).unwrap();
        self.committed(sequence);
    }

    /// Waits until a batch is committed.
    pub(crate) fn committed(&self, sequence: Sequence) {
        loop {
            match self.event() {
                CommitEvent::Committed(committed) if committed >= sequence => return,
                CommitEvent::Committed(_) => {}
                event => panic!("{event:?}"),
            }
        }
    }

    /// Ends in good order.
    pub(crate) fn close(self) {
        self.committer.stop();
    }

    pub(crate) fn get(&self, key: &str) -> Option<Bytes> {
        self.store.get(Table::Records, key.as_bytes()).unwrap()
    }
}

/// Numbers drawn from a seed, which is printed: `QUORATE_SEED=... cargo test -p quorate-node --test ...` replays them.
pub(crate) struct Dice(ChaCha8Rng);

impl Dice {
    pub(crate) fn new() -> Dice {
        let seed = env::var("QUORATE_SEED").unwrap_or_else(|_| "1".to_owned());
        println!("QUORATE_SEED={seed}");
        Dice(ChaCha8Rng::seed_from_u64(
            seed.bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(31) ^ u64::from(byte)),
        ))
    }

    /// A number below another.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.0.next_u64() % u64::try_from(end).unwrap()).unwrap()
    }
}

/// A change of a record.
pub(crate) fn put(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Change {
    let (key, value) = (Bytes::copy_from_slice(key.as_ref()), Bytes::copy_from_slice(value.as_ref()));
    Change { table: Table::Records, key, value: Some(value) }
}

pub(crate) fn batch(sequence: u64, changes: impl IntoIterator<Item = Change>) -> Batch {
    Batch { sequence: Sequence(sequence), changes: changes.into_iter().collect() }
}
