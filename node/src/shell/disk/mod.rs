//! The durable store: [`crate::storage::Store`] over the embedded engine `fjall`, and its committer.
//!
//! - **Reads** go to the engine from whichever thread asks, and never wait for a sync. They see a batch from when it is
//!   written, which is shortly before it is durable; the core looks into its overlay first.
//! - **Writes** go through the one committer thread ([`Committer`]), which joins all batches that wait into one sync.
//! - **The directory** says whose store it is and is held by one process (`directory`).
//! - **After a crash** every batch that was reported as committed is there, and the batches that are there are the first
//!   ones, each of them whole. Before the engine is opened its journal is checked batch by batch, cut where the crash
//!   tore it, and what is not known to be on the disk is written again (`chain`).
//! - **Damage** is found by the engine's checksums, by the links between batches (`link`), by the checksum of the
//!   listings (`listing`), and in the end by the core's own over each record. A store that knows that it has lost
//!   something that it had promised does not open; [`salvage`] makes another out of what can be read.
//!
//! # What the engine is not trusted with
//!
//! It stops its replay at the first bad bytes and goes on with the next file; it does not check the number of a batch,
//! nor its listings; a failed write poisons it until the process ends. Each of these is taken care of here, and said
//! where.
//!
//! # What it does not do
//!
//! It knows nothing of records and versions. It does not notice that a whole store was replaced by an older copy of
//! itself: peers do. It takes no backups.

mod ahead;
mod chain;
mod committer;
mod counted;
mod directory;
mod engine;
mod error;
mod journal;
mod link;
mod listing;
mod reaper;
mod salvage;
mod tables;

use std::{
    ops::Bound,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use ring::{NodeId, StoreId};
use tracing::{info, warn};

pub use committer::{CommitEvent, CommitFailure, CommitRefusal, Committer, CommitterHandle, SubmitError};
pub use counted::CommitterCounters;
pub(crate) use directory::is_open;
use directory::{Directory, IdentityFile};
use engine::{Engine, META, RECORDS};
pub use error::{Damage, OpenError};
use link::LINK_KEY;
use listing::{cannot, tables_to_salvage};
pub use salvage::{SalvageError, SalvageReport, salvage};
use tables::TableReader;

use crate::storage::{ReadError, Sequence, Store, Table};

/// What may be set on a store, with the reason for each number. The defaults keep the engine's memory around 200 MiB.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// Whose store it is. A store of another node is not opened.
    pub node: NodeId,
    /// Bytes of blocks that are kept in memory. More answers more reads without the disk.
    pub cache_bytes: u64,
    /// Bytes of the journal, at least 64 MiB, beyond which memory is flushed to shorten it. The journal may exceed it by
    /// as much again. More flushes less often; less replays sooner at the next start.
    pub journal_bytes_max: u64,
    /// Bytes of records in memory, at least 1 MiB, before they are written to a table. Up to five times as much may be in
    /// memory while tables are written. More merges tables less often; less replays sooner.
    pub memtable_bytes_max: u64,
    /// Table files that are kept open.
    pub open_files_max: usize,
    /// Bytes that stay free on the file system: batches are refused before it is full, because compactions need room, and
    /// an engine that has run out of it has to be restarted.
    pub free_bytes_min: u64,
    /// Bytes of batches that wait for the committer before more are refused. The core keeps to its own, lower limit.
    pub queue_bytes_max: usize,
    /// Batches that wait before more are refused.
    pub queue_batches_max: usize,
}

/// A durable store. Reads only; batches go to its [`Committer`].
pub struct DiskStore {
    open: Arc<Open>,
    read_errors: AtomicU64,
}

/// A store that was opened.
pub struct Opened {
    /// To read from.
    pub store: DiskStore,
    /// To write with, once it is started.
    pub committer: Committer,
    /// Whether it was created just now.
    pub is_new: bool,
}

/// What the store and its committer share. The lock on the directory goes last.
struct Open {
    engine: Engine,
    id: StoreId,
    recovered: Sequence,
    directory: Directory,
}

impl Open {
    /// The engine has given up: the next start looks why.
    fn suspect(&self) {
        if let Err(error) = self.directory.suspect(self.id) {
            warn!(%error, dir = %self.directory.path().display(), "it cannot be noted that the store may be damaged");
        }
    }
}

impl DiskOptions {
    /// The defaults, for a node.
    #[must_use]
    pub fn new(node: NodeId) -> DiskOptions {
        DiskOptions {
            node,
            cache_bytes: 32 << 20,
            journal_bytes_max: 64 << 20,
            memtable_bytes_max: 16 << 20,
            open_files_max: 512,
            free_bytes_min: 256 << 20,
            queue_bytes_max: 128 << 20,
            queue_batches_max: 64 * 1024,
        }
    }

    /// Asserts what every configuration has to keep to; whoever reads one from outside checks it first.
    fn assert_sound(&self) {
        assert!(self.journal_bytes_max >= 64 << 20, "a journal file has 64 MiB");
        assert!(self.memtable_bytes_max >= 1 << 20, "memory is flushed by the megabyte");
        assert!(self.open_files_max >= 10, "the engine wants ten files");
        assert!(self.queue_batches_max > 0, "the queue has room");
    }
}

impl DiskStore {
    /// Opens the store in a directory, or creates one if it is empty or missing. The directory's parent has to be there.
    ///
    /// # Errors
    ///
    /// [`OpenError`]: each says what to do about it.
    ///
    /// # Panics
    ///
    /// If an option is below the least that it says.
    pub fn open(dir: &Path, options: &DiskOptions) -> Result<Opened, OpenError> {
        options.assert_sound();
        let directory = Directory::lock(dir)?;
        if let Some((aside, _)) = directory.finish_salvage()? {
            warn!(damaged = %aside.display(), "a salvage that was interrupted is complete");
        }
        let (identity, is_new) = match directory.identity()? {
            Some(identity) => {
                directory.created()?;
                (identity, false)
            }
            None => (create(&directory, options)?, true),
        };
        if identity.node != options.node {
            let (found, expected) = (identity.node, options.node);
            return Err(OpenError::OtherNode { path: dir.to_owned(), found, expected });
        }
        let is_suspect = directory.is_suspect(identity.store);
        if is_suspect {
            check_tables(&directory)?;
        }
        let (engine, writer) = Engine::open(dir, &directory.engine(), options)?;
        if is_suspect {
            engine.check_all(dir, &directory.engine())?;
            directory.acquit()?;
            info!(dir = %dir.display(), "all of it can be read: the engine gave up because it could not write a table");
        }
        let recovered = writer.sequence();
        info!(store = %identity.store, sequence = recovered.0, is_new, dir = %dir.display(), "store opened");
        let open = Arc::new(Open { engine, id: identity.store, recovered, directory });
        let committer = Committer::new(Arc::clone(&open), writer, options);
        Ok(Opened { store: DiskStore { open, read_errors: AtomicU64::new(0) }, committer, is_new })
    }

    /// Notes that the engine could not read: the first times, and then ever more rarely. A bad block is met again with
    /// every read of it.
    fn unreadable(&self, table: Table, error: &fjall::Error) -> ReadError {
        let count = self.read_errors.fetch_add(1, Ordering::Relaxed) + 1;
        if count.is_power_of_two() {
            warn!(?table, %error, count, dir = %self.open.directory.path().display(), "the store cannot be read");
        }
        ReadError::Damaged
    }

    /// How many reads have failed since the store was opened.
    #[must_use]
    pub fn read_errors(&self) -> u64 {
        self.read_errors.load(Ordering::Relaxed)
    }
}

impl Store for DiskStore {
    fn id(&self) -> StoreId {
        self.open.id
    }

    fn recovered(&self) -> Sequence {
        self.open.recovered
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, ReadError> {
        self.open.engine.get(table, key).map_err(|error| self.unreadable(table, &error))
    }

    fn scan(
        &self,
        table: Table,
        after: Option<&[u8]>,
        end: &[u8],
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, ReadError> {
        // The first key is the engine's own.
        let after = after.map_or(LINK_KEY, |after| after.max(LINK_KEY));
        if after >= end {
            return Ok(Vec::new());
        }
        let bounds = (Bound::Excluded(after), Bound::Excluded(end));
        self.open.engine.scan(table, bounds, limit).map_err(|error| self.unreadable(table, &error))
    }
}

/// Reads all tables of a store on which the engine has given up: either they are damaged, or it could not write them.
fn check_tables(directory: &Directory) -> Result<(), OpenError> {
    let path = directory.engine();
    warn!(engine = %path.display(), "the engine has given up on this store: its tables are read before it is opened");
    let mut blocks = 0;
    for keyspace in [RECORDS, META] {
        let tables = tables_to_salvage(&path, keyspace).map_err(|error| cannot("read", &path, error))?;
        for table in tables {
            let mut reader = TableReader::open(&table).map_err(|error| cannot("read", &table, error))?;
            reader.by_ref().for_each(drop);
            blocks += reader.lost().blocks;
        }
    }
    if blocks == 0 {
        return Ok(());
    }
    let what = Damage::Tables { path, blocks };
    Err(OpenError::Damaged { path: directory.path().to_owned(), what })
}

/// Creates a store in a directory that holds nothing.
fn create(directory: &Directory, options: &DiskOptions) -> Result<IdentityFile, OpenError> {
    let identity = IdentityFile::draw(directory.path(), options.node)?;
    directory.create(identity, |engine| Engine::create(directory.path(), engine, options).map(drop))?;
    Ok(identity)
}
