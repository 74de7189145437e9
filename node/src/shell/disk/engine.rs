//! The engine: fjall, with the store's two tables as two of its keyspaces, and what it needs around it.
//!
//! - **One thread writes.** The engine slows writers down by sleeping, and its worker syncs the journal under the lock that
//!   writes take, so whoever writes may wait for a disk. Reads take no lock that a sync of the journal holds.
//! - **The journal is synced beside it** (`journal`), not through it, which would hold that lock too.
//! - **Batches that are synced together are written as one**: a link, an allocation and a turn of the lock for all of
//!   them, and half as much to replay.
//! - **One worker.** Flushes and compactions share a thread. With two, the first hands compactions back and forth with
//!   itself while the second compacts, at a whole core; and one could seal a memtable between the other's sync and the
//!   flush that follows it, so that tables would hold what the journal does not.
//! - **Memory is freed by the reaper** (`reaper`), not under the lock that reads take. What is left is that a flush or a
//!   compaction syncs its listing, four small files, under that lock: reads wait for that a few times in ten seconds of
//!   full load.
//! - **A failed write or sync poisons it** for good, and so does a damaged block that a compaction comes across. All
//!   that is left then is to end the process. So the committer refuses writes before they fail.
//! - **Its files are checked before it is opened** (`chain`, `listing`): it believes some of what it reads.

use std::{
    io,
    ops::Bound,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use fjall::{
    AbstractTree, Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode, Slice,
    compaction::Leveled,
};
use tracing::warn;

use super::{
    DiskOptions,
    chain::{Chain, ExamineError},
    error::{Damage, OpenError},
    journal::ActiveJournal,
    link::{LINK_KEY, Link},
    listing::{Listings, cannot},
    reaper::Share,
    tables::TableReader,
};
use crate::storage::{Batch, Change, Sequence, Table};

/// The id of the keyspace in which the engine keeps what it knows of the others.
const ENGINES_OWN: u64 = 0;
/// The id of the first keyspace that is created.
pub(super) const RECORDS: u64 = 1;
/// The id of the second.
pub(super) const META: u64 = 2;

/// Tables of 16 MiB: a compaction rewrites a handful of them, and no flush waits for long behind it.
const TABLE_BYTES: u64 = 16 << 20;

/// Values up to this length are copied out of the engine's blocks. Someone who keeps a value for long would keep its
/// whole block otherwise, dozens of times as much.
const COPY_BYTES_MAX: usize = 1024;

/// An open engine.
pub(super) struct Engine {
    records: Keyspace,
    meta: Keyspace,
    database: Database,
    memtable_bytes_max: u64,
}

/// What the one who writes has: where the next batches are linked to, and the file that they are written to.
pub(super) struct Writer {
    /// The last batch that was written.
    sequence: Sequence,
    /// The lowest number that the engine can give the next ones.
    number_min: u64,
    /// The last batch that was synced.
    synced: Sequence,
    journal: ActiveJournal,
}

/// Why a sync failed.
#[derive(Debug)]
pub(super) enum SyncError {
    /// The engine did not hand over what it had written, or has given up.
    Engine(fjall::Error),
    /// The system could not write it.
    System(io::Error),
}

impl Writer {
    /// Whether nothing can be written, because the file system has become read-only.
    pub(super) fn is_read_only(&self) -> bool {
        self.journal.is_read_only()
    }

    /// The last batch that was written.
    pub(super) fn sequence(&self) -> Sequence {
        self.sequence
    }
}

impl Engine {
    /// Creates an engine with two empty tables.
    pub(super) fn create(
        store: &Path,
        path: &Path,
        options: &DiskOptions,
    ) -> Result<(Engine, Writer), OpenError> {
        let engine =
            Engine::open_database(path, options).map_err(|error| engine_error(store, path, error))?;
        assert_eq!((engine.records.id(), engine.meta.id()), (RECORDS, META), "ids are given in order");
        let journal = ActiveJournal::open(path).map_err(|error| cannot("open", path, error))?;
        let writer = Writer { sequence: Sequence(0), number_min: 0, synced: Sequence(0), journal };
        Ok((engine, writer))
    }

    /// Opens an engine after its files were checked and its journal's tail was made durable.
    ///
    /// # Errors
    ///
    /// If its files are damaged or cannot be read or written.
    pub(super) fn open(
        store: &Path,
        path: &Path,
        options: &DiskOptions,
    ) -> Result<(Engine, Writer), OpenError> {
        let damaged = |what| OpenError::Damaged { path: store.to_owned(), what };
        let listings = Listings::settle(store, path, &[ENGINES_OWN, RECORDS, META])?;
        let mut chain = Chain::examine(path, META).map_err(|error| match error {
            ExamineError::Damaged(what) => damaged(what),
            ExamineError::Io(path, error) => cannot("read", &path, error),
        })?;
        if let Some((file, bytes)) = chain.torn() {
            warn!(file = %file.display(), bytes, kept = chain.sequence().0, "the journal's tail is torn and was cut off");
        }
        chain.settle().map_err(|(path, error)| cannot("write", &path, error))?;
        let tabled = tabled(listings.tables(META))?;
        // Damage that passed all checks makes the engine panic rather than report it.
        let opened = catch_unwind(AssertUnwindSafe(|| Engine::open_database(path, options)));
        let engine = match opened {
            Ok(Ok(engine)) => engine,
            Ok(Err(error)) => return Err(engine_error(store, path, error)),
            Err(_) => return Err(damaged(Damage::EnginePanicked { path: path.to_owned() })),
        };
        let (sequence, number_min) = engine.verify(&chain, tabled, path).map_err(|fault| match fault {
            Ok(what) => damaged(what),
            Err(error) => engine_error(store, path, error),
        })?;
        let journal = ActiveJournal::open(path).map_err(|error| cannot("open", path, error))?;
        Ok((engine, Writer { sequence, number_min, synced: sequence, journal }))
    }

    fn open_database(path: &Path, options: &DiskOptions) -> fjall::Result<Engine> {
        let database = Database::builder(path)
            .cache_size(options.cache_bytes)
            .max_journaling_size(options.journal_bytes_max)
            .max_cached_files(Some(options.open_files_max))
            .worker_threads(1)
            // Batches go to the system when they are synced, not each by itself.
            .manual_journal_persist(true)
            .open()?;
        let keyspace = || {
            let compaction = Leveled::default().with_table_target_size(TABLE_BYTES);
            KeyspaceCreateOptions::default()
                .manual_journal_persist(true)
                // Memory is sealed here: see `seal_full`.
                .max_memtable_size(u64::MAX)
                .compaction_strategy(Arc::new(compaction))
        };
        // The order gives them their ids.
        let records = database.keyspace("records", keyspace)?;
        let meta = database.keyspace("meta", keyspace)?;
        Ok(Engine { records, meta, database, memtable_bytes_max: options.memtable_bytes_max })
    }

    /// Checks that what the tables hold joins what the journal holds, and the two tables each other: they are flushed at
    /// different times, and of a journal that lost its end one may hold more than the other. Returns the last batch, and
    /// the lowest number that the engine can give the next.
    fn verify(
        &self,
        chain: &Chain,
        tabled: Sequence,
        path: &Path,
    ) -> Result<(Sequence, u64), Result<Damage, fjall::Error>> {
        let numbers = (self.records.tree.get_highest_seqno(), self.meta.tree.get_highest_seqno());
        let link = self.meta.get(LINK_KEY).map_err(Err)?.and_then(|stored| Link::decode(&stored));
        let found = link.map_or(Sequence(0), |link| link.sequence);
        let apart = |expected| {
            let path = path.to_owned();
            Err(Ok(Damage::TablesApart { path, expected, found }))
        };
        if numbers.0 != numbers.1 || (self.records.id(), self.meta.id()) != (RECORDS, META) {
            return apart(chain.sequence());
        }
        match (&chain.first, &chain.last) {
            (Some(first), Some((last, number))) => {
                // What comes before the journal is in the tables, and nothing that comes after it.
                if found != last.sequence || numbers.1 != Some(*number) || first.previous > tabled {
                    return apart(last.sequence);
                }
            }
            (None, _) | (_, None) => {
                // A torn first batch was never in the tables, and says nothing that they do not.
                if chain.synced > found || chain.lost.is_some_and(|lost| lost <= found) {
                    return apart(chain.synced.max(chain.lost.unwrap_or_default()));
                }
            }
        }
        Ok((found, numbers.1.map_or(0, |number| number + 1)))
    }

    fn keyspace(&self, table: Table) -> &Keyspace {
        match table {
            Table::Records => &self.records,
            Table::Meta => &self.meta,
        }
    }

    /// Writes batches, as one: they can be read at once, and are durable after the next sync. After a crash either all of
    /// them are there or none.
    pub(super) fn write(&self, writer: &mut Writer, batches: Vec<Batch>) -> fjall::Result<()> {
        let Some(last) = batches.last() else { return Ok(()) };
        let link = Link {
            sequence: last.sequence,
            previous: writer.sequence,
            number_min: writer.number_min,
            synced: writer.synced,
        };
        let changes = || batches.iter().flat_map(|batch| &batch.changes);
        let mut out = OwnedWriteBatch::with_capacity(self.database.clone(), changes().count() + 2);
        // First, so that a torn batch has most likely kept it.
        out.insert(&self.meta, LINK_KEY, link.encode());
        // Both tables have something of every link that no compaction drops, so that their highest numbers are equal.
        if !changes().any(is_record) || changes().any(is_removed_record) {
            out.insert(&self.records, LINK_KEY, Slice::empty());
        }
        for change in batches.into_iter().flat_map(|batch| batch.changes) {
            let keyspace = self.keyspace(change.table);
            // The engine keeps keys and values in memory until it flushes them. A key may be a piece of a message and
            // would keep all of it; values are sealed into buffers of their own by the core.
            let key = Slice::from(&change.key[..]);
            match change.value {
                Some(value) => out.insert(keyspace, key, value),
                None => out.remove(keyspace, key),
            }
        }
        out.commit()?;
        // Only one thread writes, so the highest number is this one's. It may have been flushed since.
        let tree = &self.meta.tree;
        let number = tree.get_highest_memtable_seqno().or_else(|| tree.get_highest_persisted_seqno());
        writer.number_min = number.expect("something was written") + 1;
        writer.sequence = link.sequence;
        Ok(())
    }

    /// Makes durable what was written.
    pub(super) fn sync(&self, writer: &mut Writer) -> Result<(), SyncError> {
        self.database.persist(PersistMode::Buffer).map_err(SyncError::Engine)?;
        writer.journal.sync().map_err(SyncError::System)?;
        // If the worker's sync has failed meanwhile, the engine has given up.
        self.database.persist(PersistMode::Buffer).map_err(SyncError::Engine)?;
        writer.synced = writer.sequence;
        self.seal_full().map_err(SyncError::Engine)
    }

    /// Reads everything, as a compaction does.
    ///
    /// # Errors
    ///
    /// If something cannot be read.
    pub(super) fn check_all(&self, store: &Path, path: &Path) -> Result<(), OpenError> {
        for keyspace in [&self.records, &self.meta] {
            for entry in keyspace.iter() {
                entry.into_inner().map_err(|error| engine_error(store, path, error))?;
            }
        }
        Ok(())
    }

    /// Whether tables are written and merged so much more slowly than changes come that the engine is about to hold
    /// writes up: it does at four sealed memtables, and slows down at twenty runs.
    pub(super) fn is_behind(&self) -> bool {
        [&self.records, &self.meta]
            .iter()
            .any(|keyspace| keyspace.tree.sealed_memtable_count() >= 3 || keyspace.tree.l0_run_count() >= 20)
    }

    /// Whether the engine still works.
    pub(super) fn check(&self) -> fjall::Result<()> {
        self.database.persist(PersistMode::Buffer)
    }

    /// Seals what is full in memory, so that the worker flushes it. The worker would do that itself, but not while it
    /// flushes or compacts, and memory would grow meanwhile; what is sealed counts, and the engine holds writes up when
    /// there is too much of it. After a sync, because only what is synced may be flushed.
    fn seal_full(&self) -> fjall::Result<()> {
        for (keyspace, bytes_max) in
            [(&self.records, self.memtable_bytes_max), (&self.meta, self.memtable_bytes_max / 4)]
        {
            if keyspace.tree.active_memtable().size() > bytes_max {
                keyspace.rotate_memtable()?;
            }
        }
        Ok(())
    }

    /// The memtables that are written to, each with its number.
    pub(super) fn memtables(&self) -> [(u64, Share); 2] {
        [&self.records, &self.meta].map(|keyspace| {
            let memtable = keyspace.tree.active_memtable();
            (memtable.id(), memtable as Share)
        })
    }

    /// The bytes under a key.
    pub(super) fn get(&self, table: Table, key: &[u8]) -> fjall::Result<Option<Bytes>> {
        Ok(self.keyspace(table).get(key)?.map(unblock))
    }

    /// Up to `limit` entries between two bounds.
    pub(super) fn scan(
        &self,
        table: Table,
        (after, end): (Bound<&[u8]>, Bound<&[u8]>),
        limit: usize,
    ) -> fjall::Result<Vec<(Bytes, Bytes)>> {
        let entries = self.keyspace(table).range::<&[u8], _>((after, end)).take(limit);
        entries.map(|entry| entry.into_inner().map(|(key, value)| (unblock(key), unblock(value)))).collect()
    }

    /// Bytes in memory that are in no table yet.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.database.write_buffer_size()
    }

    /// Bytes on disk: of the journal, and of the tables. Waits while the journal is synced.
    pub(super) fn disk_bytes(&self) -> fjall::Result<(u64, u64)> {
        let tables = self.records.disk_space() + self.meta.disk_space();
        Ok((self.database.journal_disk_space()?, tables))
    }
}

fn is_record(change: &Change) -> bool {
    change.table == Table::Records
}

fn is_removed_record(change: &Change) -> bool {
    is_record(change) && change.value.is_none()
}

/// The last batch that the tables hold. Read before the engine is opened, which begins at once to write more of them.
fn tabled(tables: &[PathBuf]) -> Result<Sequence, OpenError> {
    let mut tabled = Sequence(0);
    for path in tables {
        let mut table = TableReader::open(path).map_err(|error| cannot("read", path, error))?;
        // No key comes before the link's, and its newest version comes first.
        let first = table.next().filter(|entry| entry.key == LINK_KEY);
        let link = first.and_then(|entry| Link::decode(&entry.value?));
        tabled = tabled.max(link.map_or(Sequence(0), |link| link.sequence));
    }
    Ok(tabled)
}

/// Bytes that were read, out of their block if they are few.
fn unblock(slice: Slice) -> Bytes {
    if slice.len() <= COPY_BYTES_MAX { Bytes::copy_from_slice(&slice) } else { Bytes::from(slice) }
}

/// What an error of the engine means for whoever opens it.
fn engine_error(store: &Path, path: &Path, error: fjall::Error) -> OpenError {
    use std::io::ErrorKind::{InvalidData, InvalidInput, NotFound, UnexpectedEof};
    let path: PathBuf = path.to_owned();
    match error {
        fjall::Error::Locked => OpenError::InUse { path: store.to_owned() },
        // Files that are missing or too short are damage; what else the system says is its own trouble.
        fjall::Error::Io(source) | fjall::Error::Storage(fjall::LsmError::Io(source))
            if !matches!(source.kind(), InvalidData | InvalidInput | NotFound | UnexpectedEof) =>
        {
            OpenError::Io { doing: "open", path, source }
        }
        source => OpenError::Damaged { path: store.to_owned(), what: Damage::Engine { path, source } },
    }
}
