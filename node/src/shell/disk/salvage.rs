//! Salvage: another store, made of what can be read of a damaged one.
//!
//! Every record is taken in the newest version that can be read, from every table block that is good and every journal
//! batch that is whole, whatever became of those around them. The engine is not asked: it gives up on all for the sake
//! of one. Nothing is changed in the damaged store, which is put aside in the end.
//!
//! **What is carried over is records and hints, and nothing of what the node knew of itself**: votes, promises, marks and
//! the cluster's document must not survive half. (A hint that was counted is part of an acknowledgement, like a record; and
//! one too many costs a merge that changes nothing.) The new store has an id of its own; so the node fills every copy from its
//! peers, and does not vote, until the cluster has readmitted it. It has a batch even if no record was left, so that
//! nobody takes it for a founder's that was never written to.
//!
//! An old version of a record does no harm in a copy that is filling: it is not believed, and merges with what the
//! peers hold. That is why gaps, and versions that a newer but unreadable one had replaced, are taken.
//!
//! It may be cut short at any moment and begun again; once the new store is complete the next start goes on to the end.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    fs, io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use ring::StoreId;
use thiserror::Error;
use tracing::warn;

use super::{
    DiskOptions,
    directory::{Directory, IdentityFile},
    engine::{Engine, META, RECORDS, SyncError, Writer},
    error::OpenError,
    journal::{Batches, journal_files},
    link::{LINK_KEY, Link},
    listing::{cannot, tables_to_salvage},
    tables::{Entry, Lost, TableReader},
};
use crate::{
    hints::is_hint,
    storage::{Batch, Change, ObjectKey, Sequence, Table, decode_stored},
};

/// Bytes of records that are written at once.
const BATCH_BYTES: usize = 1 << 20;

/// What salvage has made, and what it could not save.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SalvageReport {
    /// The new store.
    pub store: StoreId,
    /// Where the damaged one is now.
    pub damaged: PathBuf,
    /// Records in the new store.
    pub records_kept: u64,
    /// Hints in the new store: what this node owes to others.
    pub hints_kept: u64,
    /// Versions of records that were found and failed their checksum.
    pub records_damaged: u64,
    /// Blocks of tables that could not be read, of a few dozen records each.
    pub blocks_lost: u64,
    /// Their bytes.
    pub block_bytes_lost: u64,
    /// Bytes of the journal that are no whole batches. A crash leaves some too.
    pub journal_bytes_lost: u64,
}

/// Why a store could not be salvaged. What is left is the damaged store as it was, or a new one that the next start
/// completes.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SalvageError {
    /// The directory is not a damaged store of this node, or the system refused.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// There never was a store.
    #[error("{path} holds no store")]
    NoStore {
        /// The directory.
        path: PathBuf,
    },
    /// The new store could not be written.
    #[error("the new store in {path} cannot be written: {source}")]
    Write {
        /// The store's directory.
        path: PathBuf,
        /// Why not.
        source: fjall::Error,
    },
}

/// Makes a new store out of what can be read of a damaged one, in the same directory. The damaged one is kept in a
/// directory `damaged-...` beside it, to be removed by hand.
///
/// # Errors
///
/// [`SalvageError`]. It may be called again then.
///
/// # Panics
///
/// If an option is below the least that it says.
pub fn salvage(dir: &Path, options: &DiskOptions) -> Result<SalvageReport, SalvageError> {
    options.assert_sound();
    if !fs::exists(dir).map_err(|error| cannot("read", dir, error))? {
        return Err(SalvageError::NoStore { path: dir.to_owned() });
    }
    let directory = Directory::lock(dir)?;
    if let Some(finished) = directory.finish_salvage()? {
        return report_on(&directory, finished);
    }
    match directory.identity() {
        Ok(None) => return Err(SalvageError::NoStore { path: dir.to_owned() }),
        Ok(Some(identity)) if identity.node != options.node => {
            let (found, expected) = (identity.node, options.node);
            return Err(OpenError::OtherNode { path: dir.to_owned(), found, expected }.into());
        }
        Ok(Some(_)) | Err(OpenError::Damaged { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let identity = IdentityFile::draw(dir, options.node)?;
    let new = directory.begin_salvage()?;
    match copy(&directory, &new, options) {
        Ok(report) => directory.complete_salvage(identity, &report.encode())?,
        Err(error) => {
            // It may be what filled the disk. If this fails, the next attempt does it.
            let _ = directory.abandon_salvage();
            return Err(error);
        }
    }
    let finished = directory.finish_salvage()?.expect("it was just completed");
    report_on(&directory, finished)
}

/// Makes the engine of the new store, and copies what can be read.
fn copy(directory: &Directory, new: &Path, options: &DiskOptions) -> Result<Report, SalvageError> {
    let (engine, writer) = Engine::create(directory.path(), new, options)?;
    let mut copying = Copying { engine, writer, report: Report::default() };
    match copying.copy(&directory.engine()) {
        Ok(()) => Ok(copying.report),
        Err(CopyError::Read(error)) => Err(SalvageError::Store(error)),
        Err(CopyError::Write(source)) => {
            Err(SalvageError::Write { path: directory.path().to_owned(), source })
        }
        Err(CopyError::Sync(error)) => Err(SalvageError::Store(cannot("sync", new, error))),
    }
}

/// The report on a salvage that is finished, from what is written in the directory.
fn report_on(
    directory: &Directory,
    (damaged, report): (PathBuf, String),
) -> Result<SalvageReport, SalvageError> {
    let identity = directory.identity()?.expect("a salvaged store has an identity");
    let report = Report::decode(&report);
    let report = SalvageReport {
        store: identity.store,
        damaged,
        records_kept: report.records_kept,
        hints_kept: report.hints_kept,
        records_damaged: report.records_damaged,
        blocks_lost: report.tables.blocks,
        block_bytes_lost: report.tables.bytes,
        journal_bytes_lost: report.journal_bytes_lost,
    };
    warn!(?report, "the store was salvaged");
    Ok(report)
}

/// What was copied, and what was not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Report {
    records_kept: u64,
    hints_kept: u64,
    records_damaged: u64,
    tables: Lost,
    journal_bytes_lost: u64,
}

impl Report {
    /// As it is written beside the damaged store: a name and a number on each line.
    fn encode(self) -> String {
        self.fields().map(|(name, value)| format!("{name} {value}\n")).concat()
    }

    /// A line that is missing counts as 0: the report is for people.
    fn decode(text: &str) -> Report {
        let value = |name: &str| {
            let value =
                text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
            value.unwrap_or(0)
        };
        let names = Report::default().fields().map(|(name, _)| name);
        let [records_kept, hints_kept, records_damaged, blocks, bytes, journal_bytes_lost] = names.map(value);
        let tables = Lost { blocks, bytes };
        Report { records_kept, hints_kept, records_damaged, tables, journal_bytes_lost }
    }

    fn fields(self) -> [(&'static str, u64); 6] {
        [
            ("records_kept", self.records_kept),
            ("hints_kept", self.hints_kept),
            ("records_damaged", self.records_damaged),
            ("blocks_lost", self.tables.blocks),
            ("block_bytes_lost", self.tables.bytes),
            ("journal_bytes_lost", self.journal_bytes_lost),
        ]
    }
}

enum CopyError {
    Read(OpenError),
    Write(fjall::Error),
    Sync(io::Error),
}

/// The newest versions in a journal, by key.
type Newest = BTreeMap<Bytes, Entry>;

fn cannot_read(path: &Path) -> impl FnOnce(io::Error) -> CopyError + use<> {
    let path = path.to_owned();
    move |error| CopyError::Read(cannot("read", &path, error))
}

/// A new store, being filled.
struct Copying {
    engine: Engine,
    writer: Writer,
    report: Report,
}

impl Copying {
    /// Copies the records and the hints of another engine.
    fn copy(&mut self, damaged: &Path) -> Result<(), CopyError> {
        let (records, hints) = self.read_journal(damaged).map_err(cannot_read(damaged))?;
        self.copy_table(damaged, Table::Records, records)?;
        self.copy_table(damaged, Table::Meta, hints)
    }

    /// Copies what is to be kept of one table.
    fn copy_table(&mut self, damaged: &Path, table: Table, journal: Newest) -> Result<(), CopyError> {
        let keyspace = match table {
            Table::Records => RECORDS,
            Table::Meta => META,
        };
        let tables = tables_to_salvage(damaged, keyspace).map_err(cannot_read(damaged))?;
        let mut tables = tables
            .iter()
            .map(|path| TableReader::open(path).map_err(cannot_read(path)))
            .collect::<Result<Vec<_>, _>>()?;
        {
            let mut sources: Vec<Box<dyn Iterator<Item = Entry> + '_>> = Vec::new();
            for table in &mut tables {
                sources.push(Box::new(table));
            }
            sources.push(Box::new(journal.into_values()));
            self.merge(table, sources)?;
        }
        for table in &tables {
            self.report.tables.blocks += table.lost().blocks;
            self.report.tables.bytes += table.lost().bytes;
        }
        Ok(())
    }

    /// The newest version of every record, and of every fact, in the journal.
    fn read_journal(&mut self, damaged: &Path) -> io::Result<(Newest, Newest)> {
        let (mut records, mut facts) = (BTreeMap::new(), BTreeMap::new());
        let files = match journal_files(damaged) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            files => files?,
        };
        for path in files {
            let bytes = fs::read(path)?;
            let mut batches = Batches::new(&bytes);
            loop {
                for batch in batches.by_ref() {
                    // The link knows better, where a bit flipped in the number.
                    let link = batch.items.first().and_then(|item| Link::decode(item.value?));
                    let number = link
                        .filter(|link| !link.allows(batch.number))
                        .map_or(batch.number, |link| link.number_min);
                    for item in &batch.items {
                        let newest = match item.keyspace {
                            RECORDS => &mut records,
                            META => &mut facts,
                            _ => continue,
                        };
                        let key = Bytes::copy_from_slice(item.key);
                        let value = item.value.map(Bytes::copy_from_slice);
                        newest.insert(key.clone(), Entry { key, number, value });
                    }
                }
                let Some(lost) = batches.skip_damage() else { break };
                self.report.journal_bytes_lost += lost as u64;
            }
        }
        Ok((records, facts))
    }

    /// Writes of every key the newest version that can be read.
    fn merge<'a>(
        &mut self,
        table: Table,
        mut sources: Vec<Box<dyn Iterator<Item = Entry> + 'a>>,
    ) -> Result<(), CopyError> {
        // Keys ascending, of one key the newest version first.
        let count = sources.len();
        let mut heads = BinaryHeap::new();
        let mut advance = |source: usize, heads: &mut BinaryHeap<_>| {
            if let Some(entry) = sources[source].next() {
                heads.push(Reverse((entry.key, Reverse(entry.number), source, entry.value)));
            }
        };
        let mut changes = Vec::new();
        let mut bytes = 0;
        let mut decided: Option<Bytes> = None;
        let mut seen: Option<(Bytes, u64)> = None;
        for source in 0..count {
            advance(source, &mut heads);
        }
        while let Some(Reverse((key, Reverse(number), source, value))) = heads.pop() {
            advance(source, &mut heads);
            if decided.as_ref() == Some(&key) || key == LINK_KEY {
                continue;
            }
            // What was flushed is in the journal too for a while.
            if seen.as_ref().is_some_and(|seen| seen.0 == key && seen.1 == number) {
                continue;
            }
            seen = Some((key.clone(), number));
            if let Some(value) = value {
                match table {
                    Table::Records if is_record(&key, &value) => self.report.records_kept += 1,
                    Table::Records => {
                        self.report.records_damaged += 1;
                        continue;
                    }
                    Table::Meta if is_hint(&key) => self.report.hints_kept += 1,
                    Table::Meta => continue,
                }
                bytes += key.len() + value.len();
                changes.push(Change { table, key: key.clone(), value: Some(value) });
            }
            decided = Some(key);
            if bytes > BATCH_BYTES {
                bytes = 0;
                self.write(std::mem::take(&mut changes))?;
            }
        }
        self.write(changes)
    }

    /// Writes and syncs: memory is flushed after a sync.
    fn write(&mut self, changes: Vec<Change>) -> Result<(), CopyError> {
        let sequence = Sequence(self.writer.sequence().0 + 1);
        let batch = Batch { sequence, changes };
        self.engine.write(&mut self.writer, vec![batch]).map_err(CopyError::Write)?;
        self.engine.sync(&mut self.writer).map_err(|error| match error {
            SyncError::Engine(error) => CopyError::Write(error),
            SyncError::System(error) => CopyError::Sync(error),
        })
    }
}

/// Whether what is stored under a key is a record of the object that the key names.
fn is_record(key: &Bytes, value: &Bytes) -> bool {
    ObjectKey::decode(key).is_some() && decode_stored(key, value).is_ok()
}
