//! The store's directory: whose it is, who has it open, and how it comes to be.
//!
//! ```text
//! identity      whose store it is; written last, so that a directory with one is a store
//! lock          held by the process that has it open
//! engine/       the engine's files
//! creating      there is no store yet, and whatever else is here may be thrown away
//! salvaging/    a store that salvage is building; complete when it has an identity
//! damaged-*/    what salvage put aside; never touched again
//! suspect       names a store on which the engine has given up: its tables are read before it is opened
//! ```
//!
//! The identity is text, for whoever looks at it:
//!
//! ```text
//! quorate-store 1
//! store 00c0ffee00c0ffee
//! node 7
//! check 0123456789abcdef
//! ```
//!
//! The number in the first line is the format of all of this; a later version keeps that line, so that this one can say
//! what it met. The last is the xxh3 (64 bits) of the lines before it.
//!
//! A crash at any moment of a creation leaves a directory that is empty but for a lock, or one that says `creating`,
//! or a store; the next start goes on from there. Anything else in a directory without an identity is not ours, and is
//! not touched.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use ring::{NodeId, StoreId};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    error::{Damage, OpenError},
    listing::{cannot, replace, sync_directory},
};

/// The format that is written, and the highest that is known.
const FORMAT: u64 = 1;

const IDENTITY: &str = "identity";
const LOCK: &str = "lock";
const ENGINE: &str = "engine";
const CREATING: &str = "creating";
const SALVAGING: &str = "salvaging";
const DAMAGED: &str = "damaged-";
const REPORT: &str = "report";
const SUSPECT: &str = "suspect";

/// Whose store it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IdentityFile {
    pub(super) store: StoreId,
    pub(super) node: NodeId,
}

/// Why an identity could not be read.
#[derive(Debug)]
enum IdentityFault {
    Missing,
    Newer(u64),
    Damaged,
    Io(io::Error),
}

/// A store's directory, locked.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    /// Held, not read: the lock ends with the file.
    _lock: File,
}

impl IdentityFile {
    fn encode(self) -> String {
        let mut text = format!("quorate-store {FORMAT}\nstore {:016x}\nnode {}\n", self.store.0, self.node.0);
        let checksum = xxh3_64(text.as_bytes());
        text.push_str(&format!("check {checksum:016x}\n"));
        text
    }

    fn decode(bytes: &[u8]) -> Result<IdentityFile, IdentityFault> {
        let text = std::str::from_utf8(bytes).map_err(|_| IdentityFault::Damaged)?;
        let format =
            text.lines().next().and_then(|line| line.strip_prefix("quorate-store ")?.parse::<u64>().ok());
        match format.ok_or(IdentityFault::Damaged)? {
            FORMAT => {}
            newer if newer > FORMAT => return Err(IdentityFault::Newer(newer)),
            _ => return Err(IdentityFault::Damaged),
        }
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let identity = field("store").zip(field("node")).and_then(|(store, node)| {
            let store = StoreId(u64::from_str_radix(store, 16).ok()?);
            Some(IdentityFile { store, node: NodeId(node.parse().ok()?) })
        });
        // Reading it leniently and comparing it strictly leaves no other way to write it.
        identity.filter(|identity| identity.encode() == text).ok_or(IdentityFault::Damaged)
    }

    fn read(path: &Path) -> Result<IdentityFile, IdentityFault> {
        match fs::read(path) {
            Ok(bytes) => IdentityFile::decode(&bytes),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(IdentityFault::Missing),
            Err(error) => Err(IdentityFault::Io(error)),
        }
    }

    /// Writes it into a store's directory, which is a store from then on.
    fn write(self, store: &Path) -> Result<(), OpenError> {
        let path = store.join(IDENTITY);
        replace(&path, self.encode().as_bytes()).map_err(|error| cannot("write", &path, error))
    }

    /// The identity of another store of a node.
    pub(super) fn draw(path: &Path, node: NodeId) -> Result<IdentityFile, OpenError> {
        let store =
            getrandom::u64().map_err(|error| cannot("draw an id for", path, io::Error::other(error)))?;
        Ok(IdentityFile { store: StoreId(store), node })
    }
}

impl Directory {
    /// Takes hold of a directory, which is created if it is missing; its parents are not.
    pub(super) fn lock(path: &Path) -> Result<Directory, OpenError> {
        // Only the last component: a parent that is missing is a file system that is not mounted, or a mistyped path.
        match fs::create_dir(path) {
            Ok(()) => {
                let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
                sync(parent.unwrap_or(Path::new(".")))?;
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(cannot("create", path, error)),
        }
        let metadata = fs::metadata(path).map_err(|error| cannot("read", path, error))?;
        if !metadata.is_dir() {
            return Err(OpenError::NotADirectory { path: path.to_owned() });
        }
        // Before a lock is left in it.
        let directory = |lock| Directory { path: path.to_owned(), _lock: lock };
        if let Some(found) = foreign_file(path)? {
            return Err(OpenError::NotAStore { path: path.to_owned(), found });
        }
        let lock = path.join(LOCK);
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&lock);
        let file = file.map_err(|error| cannot("open", &lock, error))?;
        match file.try_lock() {
            Ok(()) => Ok(directory(file)),
            Err(TryLockError::WouldBlock) => Err(OpenError::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(error)) => Err(cannot("lock", &lock, error)),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The engine's directory.
    pub(super) fn engine(&self) -> PathBuf {
        self.path.join(ENGINE)
    }

    /// Whose store it is; none if there is no store yet.
    pub(super) fn identity(&self) -> Result<Option<IdentityFile>, OpenError> {
        let path = self.path.join(IDENTITY);
        match IdentityFile::read(&path) {
            Ok(identity) => Ok(Some(identity)),
            Err(IdentityFault::Missing) if self.is_new()? => Ok(None),
            Err(IdentityFault::Newer(found)) => {
                Err(OpenError::NewerFormat { path: self.path.clone(), found, known: FORMAT })
            }
            Err(IdentityFault::Io(error)) => Err(cannot("read", &path, error)),
            Err(IdentityFault::Missing | IdentityFault::Damaged) => {
                Err(OpenError::Damaged { path: self.path.clone(), what: Damage::Identity { path } })
            }
        }
    }

    /// Whether nothing is lost by creating a store here.
    fn is_new(&self) -> Result<bool, OpenError> {
        let names = names(&self.path)?;
        Ok(names.iter().all(|name| name == LOCK) || names.iter().any(|name| name == CREATING))
    }

    /// Creates a store: `build` makes the engine's files.
    pub(super) fn create(
        &self,
        identity: IdentityFile,
        build: impl FnOnce(&Path) -> Result<(), OpenError>,
    ) -> Result<(), OpenError> {
        let (creating, engine) = (self.path.join(CREATING), self.engine());
        File::create(&creating)
            .and_then(|file| file.sync_all())
            .and_then(|()| sync_directory(&self.path))
            .map_err(|error| cannot("create", &creating, error))?;
        remove_all(&engine)?;
        build(&engine)?;
        sync_engine(&engine)?;
        identity.write(&self.path)?;
        self.created()
    }

    /// Forgets that the store was being created, which it is not when it has an identity.
    pub(super) fn created(&self) -> Result<(), OpenError> {
        let creating = self.path.join(CREATING);
        match fs::remove_file(&creating) {
            Ok(()) => sync(&self.path),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(cannot("remove", &creating, error)),
        }
    }

    /// Whether the engine has given up on this store, and nobody has looked why.
    pub(super) fn is_suspect(&self, store: StoreId) -> bool {
        // What cannot be read says nothing: the store is opened, and the engine gives up again if it has to.
        fs::read_to_string(self.path.join(SUSPECT)).is_ok_and(|text| text.trim_end() == store.to_string())
    }

    /// The engine has given up on the store: the next start has to look.
    pub(super) fn suspect(&self, store: StoreId) -> io::Result<()> {
        replace(&self.path.join(SUSPECT), format!("{store}\n").as_bytes())
    }

    /// The store was looked at, and is as it was written.
    pub(super) fn acquit(&self) -> Result<(), OpenError> {
        let path = self.path.join(SUSPECT);
        fs::remove_file(&path).map_err(|error| cannot("remove", &path, error))
    }

    /// Throws away a store that an earlier salvage did not complete, and makes room for another. Returns where its
    /// engine goes.
    pub(super) fn begin_salvage(&self) -> Result<PathBuf, OpenError> {
        let salvaging = self.path.join(SALVAGING);
        remove_all(&salvaging)?;
        fs::create_dir(&salvaging).map_err(|error| cannot("create", &salvaging, error))?;
        sync(&self.path)?;
        Ok(salvaging.join(ENGINE))
    }

    /// Throws away what a salvage that failed has built.
    pub(super) fn abandon_salvage(&self) -> Result<(), OpenError> {
        remove_all(&self.path.join(SALVAGING))
    }

    /// The store that salvage has built is complete. From here on every start goes on to the end.
    pub(super) fn complete_salvage(&self, identity: IdentityFile, report: &str) -> Result<(), OpenError> {
        let salvaging = self.path.join(SALVAGING);
        sync_engine(&salvaging.join(ENGINE))?;
        let path = salvaging.join(REPORT);
        replace(&path, report.as_bytes()).map_err(|error| cannot("write", &path, error))?;
        identity.write(&salvaging)
    }

    /// Puts a store that salvage has completed into the place of the damaged one, which is put aside. Returns where
    /// to, and the report; none if there is no such store. May be cut short at any point and begun again.
    pub(super) fn finish_salvage(&self) -> Result<Option<(PathBuf, String)>, OpenError> {
        let salvaging = self.path.join(SALVAGING);
        if IdentityFile::read(&salvaging.join(IDENTITY)).is_err() {
            return Ok(None);
        }
        let (engine, identity) = (self.engine(), self.path.join(IDENTITY));
        let aside = self.aside()?;
        match fs::create_dir(&aside) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(cannot("create", &aside, error));
            }
            Ok(()) | Err(_) => {}
        }
        // The old identity stays until the new one replaces it: it tells where the rest of its store went.
        match fs::hard_link(&identity, aside.join(IDENTITY)) {
            Err(error) if !matches!(error.kind(), ErrorKind::AlreadyExists | ErrorKind::NotFound) => {
                return Err(cannot("link", &identity, error));
            }
            Ok(()) | Err(_) => {}
        }
        // While the new engine waits, what is in its place is the old one.
        if exists(&salvaging.join(ENGINE))? {
            if exists(&engine)? {
                rename(&engine, &aside.join(ENGINE))?;
            }
            let report = salvaging.join(REPORT);
            if exists(&report)? {
                rename(&report, &aside.join(REPORT))?;
            }
            sync(&aside)?;
            rename(&salvaging.join(ENGINE), &engine)?;
            sync(&self.path)?;
        }
        let report = fs::read_to_string(aside.join(REPORT)).unwrap_or_default();
        rename(&salvaging.join(IDENTITY), &identity)?;
        sync(&self.path)?;
        remove_all(&salvaging)?;
        self.created()?;
        Ok(Some((aside, report)))
    }

    /// Where the damaged store goes.
    fn aside(&self) -> Result<PathBuf, OpenError> {
        let name = match IdentityFile::read(&self.path.join(IDENTITY)) {
            Ok(identity) => format!("{DAMAGED}{:016x}", identity.store.0),
            Err(_) => format!("{DAMAGED}unknown"),
        };
        let candidate = |number: u32| match number {
            1 => self.path.join(&name),
            _ => self.path.join(format!("{name}-{number}")),
        };
        let mut number = 1;
        while exists(&candidate(number).join(ENGINE))? {
            number += 1;
        }
        // The first that holds no engine, or the last that does if the old one is there already.
        let is_in_place = exists(&self.path.join(SALVAGING).join(ENGINE))? && exists(&self.engine())?;
        Ok(candidate(if is_in_place || number == 1 { number } else { number - 1 }))
    }
}

/// Whether a process has the store in a directory open. False if there is none.
pub(crate) fn is_open(store: &Path) -> io::Result<bool> {
    let file = match OpenOptions::new().write(true).open(store.join(LOCK)) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    match file.try_lock() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// A file that does not belong to a store, in a directory that says nowhere that it is one.
fn foreign_file(path: &Path) -> Result<Option<String>, OpenError> {
    let names = names(path)?;
    if names.iter().any(|name| name == IDENTITY || name == CREATING) {
        return Ok(None);
    }
    let is_ours = |name: &String| {
        [LOCK, ENGINE, SALVAGING].contains(&name.as_str())
            || name.starts_with(DAMAGED)
            || name.starts_with(IDENTITY)
    };
    Ok(names.into_iter().find(|name| !is_ours(name)))
}

/// The names in a directory, but for what a file system puts into its own root.
fn names(path: &Path) -> Result<Vec<String>, OpenError> {
    let failed = |error| cannot("read", path, error);
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
    }
    names.retain(|name| name != "lost+found");
    names.sort();
    Ok(names)
}

/// Makes an engine's directories durable: of those that it creates it syncs what is in them, not all of their names.
fn sync_engine(engine: &Path) -> Result<(), OpenError> {
    sync(&engine.join("keyspaces"))?;
    sync(engine)
}

fn sync(directory: &Path) -> Result<(), OpenError> {
    sync_directory(directory).map_err(|error| cannot("sync", directory, error))
}

fn exists(path: &Path) -> Result<bool, OpenError> {
    fs::exists(path).map_err(|error| cannot("read", path, error))
}

fn rename(from: &Path, to: &Path) -> Result<(), OpenError> {
    fs::rename(from, to).map_err(|error| cannot("rename", from, error))
}

/// Removes a directory with all that is in it, if it is there.
fn remove_all(path: &Path) -> Result<(), OpenError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(cannot("remove", path, error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shell::scratch::Scratch;

    #[test]
    fn the_identity_is_pinned() {
        let identity = IdentityFile { store: StoreId(0xc0ffee), node: NodeId(7) };
        let text = "quorate-store 1\nstore 0000000000c0ffee\nnode 7\ncheck 7dba4539499871e0\n";
        assert_eq!(identity.encode(), text);
        assert_eq!(IdentityFile::decode(text.as_bytes()).unwrap(), identity);
    }

    #[test]
    fn an_identity_that_is_written_in_another_way_is_none() {
        for text in [
            "",
            "quorate-store",
            "quorate-store 1",
            "quorate-store 0\nstore 0000000000c0ffee\nnode 7\n",
            "quorate-store 1\nstore c0ffee\nnode 7\ncheck 7dba4539499871e0\n",
            "quorate-store 1\nnode 7\nstore 0000000000c0ffee\ncheck 7dba4539499871e0\n",
            "quorate-store 1\nstore 0000000000c0ffee\nnode 99999999999\ncheck 7dba4539499871e0\n",
        ] {
            assert!(matches!(IdentityFile::decode(text.as_bytes()), Err(IdentityFault::Damaged)), "{text}");
        }
        let newer = IdentityFile::decode(b"quorate-store 12\nanything");
        assert!(matches!(newer, Err(IdentityFault::Newer(12))));
    }

    #[test]
    fn a_store_is_open_while_its_directory_is_locked() {
        let scratch = Scratch::new();
        let path = scratch.path().join("data");
        assert!(!is_open(&path).unwrap());
        let held = Directory::lock(&path).unwrap();
        assert!(is_open(&path).unwrap());
        drop(held);
        assert!(!is_open(&path).unwrap());
    }

    #[test]
    fn two_stores_have_different_ids() {
        let draw = || IdentityFile::draw(Path::new("/"), NodeId(7)).unwrap().store;
        assert_ne!(draw(), draw());
    }
}
