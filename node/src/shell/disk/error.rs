//! What may go wrong when a store is opened, each with what a person can do about it.

use std::{io, path::PathBuf};

use ring::NodeId;
use thiserror::Error;

use crate::storage::Sequence;

/// Why a store could not be opened. Nothing was changed, but for what an earlier process had left unfinished.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process has it open. It has to end first; two would destroy each other's data.
    #[error("{path} is in use by another process: stop that one, or give this node a directory of its own")]
    InUse {
        /// The store's directory.
        path: PathBuf,
    },
    /// A later version of this program has written it, and this one cannot read it.
    #[error(
        "{path} is of format {found}, and this version knows formats up to {known}: run the newer version"
    )]
    NewerFormat {
        /// The store's directory.
        path: PathBuf,
        /// The format of the store.
        found: u64,
        /// The highest that this version knows.
        known: u64,
    },
    /// It is another node's.
    #[error("{path} is the store of {found}, not of {expected}: check the node's id and its directory")]
    OtherNode {
        /// The store's directory.
        path: PathBuf,
        /// Whose it is.
        found: NodeId,
        /// Who opened it.
        expected: NodeId,
    },
    /// The directory holds something else. It was not touched.
    #[error("{path} is not a store and not empty: it holds {found}; name an empty directory or a new one")]
    NotAStore {
        /// The directory.
        path: PathBuf,
        /// One of the files that do not belong to a store.
        found: String,
    },
    /// The path is not a directory.
    #[error("{path} is not a directory")]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// The system refused: permissions, a full or read-only file system, a failing device.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// What was tried, as a verb.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What is stored is not what was written. Restarting does not help.
    #[error(
        "{path} is damaged: {what}; salvage it, and the node comes back as a new store that its peers fill"
    )]
    Damaged {
        /// The store's directory.
        path: PathBuf,
        /// What, and where.
        what: Damage,
    },
}

/// What is damaged in a store.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Damage {
    /// The file that says whose store it is cannot be read, or is gone.
    #[error("{path} is missing or does not read as it was written")]
    Identity {
        /// The file.
        path: PathBuf,
    },
    /// A batch is whole and yet not the one that has to be there.
    #[error("the batch at byte {at} of {path} does not follow the one before it")]
    BatchOutOfPlace {
        /// The journal file.
        path: PathBuf,
        /// Where the batch begins.
        at: u64,
    },
    /// Batches were synced, acknowledged, and cannot be read any more.
    #[error("the journal in {path} was synced up to batch {}, and only batches up to {} can be read", synced.0, after.0)]
    JournalRotten {
        /// The engine's directory.
        path: PathBuf,
        /// The last batch that can be read.
        after: Sequence,
        /// The batch up to which everything had been synced.
        synced: Sequence,
    },
    /// The journal goes on in a file after one that breaks off.
    #[error("the journal breaks off after batch {} and goes on in {path}", after.0)]
    JournalHole {
        /// The file in which it goes on.
        path: PathBuf,
        /// The last batch before that.
        after: Sequence,
    },
    /// Tables and journal do not join: a batch, or a part of one, is missing between them.
    #[error("the tables in {path} do not join its journal: batch {} was expected and batch {} was found", expected.0, found.0)]
    TablesApart {
        /// The engine's directory.
        path: PathBuf,
        /// The batch that had to be the last in the tables.
        expected: Sequence,
        /// The batch that is.
        found: Sequence,
    },
    /// A file that is there from the beginning is gone. The engine would take its absence for a beginning.
    #[error("{path} is missing")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The list of a table's files does not read as it was written.
    #[error("{path} does not read as it was written")]
    Listing {
        /// The file.
        path: PathBuf,
    },
    /// The engine could not make sense of its files.
    #[error("the engine cannot read {path}: {source}")]
    Engine {
        /// The engine's directory.
        path: PathBuf,
        /// What it said.
        source: fjall::Error,
    },
    /// Tables do not read as they were written.
    #[error("{blocks} blocks of the tables in {path} cannot be read")]
    Tables {
        /// The engine's directory.
        path: PathBuf,
        /// How many.
        blocks: u64,
    },
    /// The engine gave up on its files in a way that only damage can bring about.
    #[error("the engine gave up on {path}")]
    EnginePanicked {
        /// The engine's directory.
        path: PathBuf,
    },
}
