//! The engine's listings: which files each of its keyspaces consists of.
//!
//! A keyspace is a directory with a *listing* `vN` and a file `current` that names the present one with its checksum.
//! The engine writes that checksum and does not look at it: a flipped bit in a listing would show older data as newer.
//! Where a file is missing that is there from the beginning it takes the keyspace for one that was never finished, and
//! removes the rest. And of a table it believes the length of its table of contents before it checks it, and dies of
//! the memory that it asks for. So all of that is looked at here, before the engine is opened.
//!
//! # The formats
//!
//! Of lsm-tree 3; little-endian. A listing, like a table, is an archive: sections, a table of contents, a trailer.
//!
//! ```text
//! current   number of the listing (8), xxh3 (128 bits) of its file (16), 0 (1)
//! trailer   "SFA!" (4), 1 (1), 0 (1), xxh3 (128 bits) of the contents (16), where they begin (8), their length (8)
//! contents  "TOC!" (4), count of sections (4); each: where it begins (8), length (8), length of its name (2), name
//! section "tables" of a listing
//!           count of levels (1); each: count of runs (1); each: count of tables (4); each:
//!           number (8), 0 (1), xxh3 (128 bits) of its file (16), what to add to its items' numbers (8)
//! ```

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use bytes::Buf;
use xxhash_rust::xxh3::xxh3_128;

use super::{
    error::{Damage, OpenError},
    journal::journal_files,
};

/// The file that names the present listing.
const CURRENT: &str = "current";
/// Its length.
const CURRENT_BYTES: usize = 25;
/// Bytes of an archive's trailer.
const TRAILER_BYTES: usize = 38;
/// Longer tables of contents are not written.
const CONTENTS_BYTES_MAX: u64 = 64 * 1024;

/// The keyspaces of an engine, each with the tables that it consists of.
pub(super) struct Listings(Vec<(u64, Vec<PathBuf>)>);

impl Listings {
    /// Checks that what is there from the beginning is there, the listings of these keyspaces, and that their tables can
    /// be opened; and writes again what names the listings: a process whose sync failed may have left a name that is
    /// in the page cache and not on the disk.
    ///
    /// # Errors
    ///
    /// If something is missing, damaged or cannot be read.
    pub(super) fn settle(store: &Path, engine: &Path, keyspaces: &[u64]) -> Result<Listings, OpenError> {
        let damaged = |what| OpenError::Damaged { path: store.to_owned(), what };
        let version = engine.join("version");
        if !fs::exists(&version).map_err(|error| cannot("read", &version, error))? {
            return Err(damaged(Damage::Missing { path: version }));
        }
        if journal_files(engine).map_err(|error| cannot("read", engine, error))?.is_empty() {
            return Err(damaged(Damage::Missing { path: engine.join("*.jnl") }));
        }
        let mut listings = Vec::new();
        for keyspace in keyspaces {
            let directory = directory_of(engine, *keyspace);
            let tables = match listed_tables(&directory) {
                Ok(tables) => tables,
                Err(Fault::Missing(path)) => return Err(damaged(Damage::Missing { path })),
                Err(Fault::Damaged(path)) => return Err(damaged(Damage::Listing { path })),
                Err(Fault::Io(path, error)) => return Err(cannot("read", &path, error)),
            };
            for table in &tables {
                match read_contents(table) {
                    Ok(Some(_)) => {}
                    Ok(None) => return Err(damaged(Damage::Listing { path: table.clone() })),
                    Err(error) if error.kind() == ErrorKind::NotFound => {
                        return Err(damaged(Damage::Missing { path: table.clone() }));
                    }
                    Err(error) => return Err(cannot("read", table, error)),
                }
            }
            let current = directory.join(CURRENT);
            write_again(&current).map_err(|error| cannot("write", &current, error))?;
            listings.push((*keyspace, tables));
        }
        Ok(Listings(listings))
    }

    /// The tables of a keyspace.
    pub(super) fn tables(&self, keyspace: u64) -> &[PathBuf] {
        self.0.iter().find(|(listed, _)| *listed == keyspace).map_or(&[], |(_, tables)| tables)
    }
}

/// The table files of a keyspace: those that are listed, or all that are there if the listing cannot be read.
///
/// # Errors
///
/// If the directory cannot be read.
pub(super) fn tables_to_salvage(engine: &Path, keyspace: u64) -> io::Result<Vec<PathBuf>> {
    let directory = directory_of(engine, keyspace);
    if let Ok(mut tables) = listed_tables(&directory) {
        tables.retain(|table| table.exists());
        return Ok(tables);
    }
    let entries = match fs::read_dir(directory.join("tables")) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut tables = Vec::new();
    for entry in entries {
        tables.push(entry?.path());
    }
    tables.sort();
    Ok(tables)
}

/// Why a listing could not be read.
enum Fault {
    Missing(PathBuf),
    Damaged(PathBuf),
    Io(PathBuf, io::Error),
}

fn directory_of(engine: &Path, keyspace: u64) -> PathBuf {
    engine.join("keyspaces").join(keyspace.to_string())
}

/// The tables that a keyspace's present listing names.
fn listed_tables(directory: &Path) -> Result<Vec<PathBuf>, Fault> {
    let read = |path: &Path| match fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Err(Fault::Missing(path.to_owned())),
        bytes => bytes.map_err(|error| Fault::Io(path.to_owned(), error)),
    };
    let current = directory.join(CURRENT);
    let bytes = read(&current)?;
    let fields: &[u8; CURRENT_BYTES] = bytes[..].try_into().map_err(|_| Fault::Damaged(current.clone()))?;
    let number = u64::from_le_bytes(fields[..8].try_into().expect("eight bytes"));
    let checksum = u128::from_le_bytes(fields[8..24].try_into().expect("sixteen bytes"));
    if fields[24] != 0 {
        return Err(Fault::Damaged(current));
    }
    let path = directory.join(format!("v{number}"));
    let listing = read(&path)?;
    if xxh3_128(&listing) != checksum {
        return Err(Fault::Damaged(path));
    }
    let contents = read_contents(&path).map_err(|error| Fault::Io(path.clone(), error))?;
    let numbers = contents.and_then(|contents| decode_tables(&listing, &contents));
    let numbers = numbers.ok_or(Fault::Damaged(path))?;
    let tables = directory.join("tables");
    Ok(numbers.into_iter().map(|number| tables.join(number.to_string())).collect())
}

/// The numbers of the tables in a listing.
fn decode_tables(listing: &[u8], mut contents: &[u8]) -> Option<Vec<u64>> {
    contents = contents.strip_prefix(b"TOC!")?;
    let mut section = None;
    for _ in 0..contents.try_get_u32_le().ok()? {
        let start = usize::try_from(contents.try_get_u64_le().ok()?).ok()?;
        let length = usize::try_from(contents.try_get_u64_le().ok()?).ok()?;
        let name_bytes = usize::from(contents.try_get_u16_le().ok()?);
        if contents.split_off(..name_bytes)? == b"tables" {
            section = listing.get(start..start.checked_add(length)?);
        }
    }
    let mut section = section?;
    let mut numbers = Vec::new();
    for _ in 0..section.try_get_u8().ok()? {
        for _ in 0..section.try_get_u8().ok()? {
            for _ in 0..section.try_get_u32_le().ok()? {
                numbers.push(section.try_get_u64_le().ok()?);
                section.split_off(..25)?;
            }
        }
    }
    Some(numbers)
}

/// The table of contents of an archive; none if it does not read as it was written.
fn read_contents(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let Some(trailer_at) = length.checked_sub(TRAILER_BYTES as u64) else { return Ok(None) };
    file.seek(SeekFrom::Start(trailer_at))?;
    let mut trailer = [0; TRAILER_BYTES];
    file.read_exact(&mut trailer)?;
    let Some(mut fields) = trailer.strip_prefix(b"SFA!\x01\x00") else { return Ok(None) };
    let (checksum, start, bytes) = (fields.get_u128_le(), fields.get_u64_le(), fields.get_u64_le());
    if bytes > CONTENTS_BYTES_MAX || start.checked_add(bytes) != Some(trailer_at) {
        return Ok(None);
    }
    file.seek(SeekFrom::Start(start))?;
    let mut contents = Vec::new();
    file.take(bytes).read_to_end(&mut contents)?;
    Ok((xxh3_128(&contents) == checksum).then_some(contents))
}

/// Writes a file as it is, in place, which takes no room on a full disk; and makes it and its name durable.
fn write_again(path: &Path) -> io::Result<()> {
    let bytes = fs::read(path)?;
    let mut file = File::options().write(true).open(path)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    sync_directory(path.parent().unwrap_or(Path::new(".")))
}

/// Replaces a file in one step and makes that durable.
///
/// # Errors
///
/// If it cannot be written. The file is then as it was.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let mut file = File::create(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    sync_directory(path.parent().unwrap_or(Path::new(".")))
}

/// Makes what was created, renamed and removed in a directory durable.
///
/// # Errors
///
/// If it cannot be synced.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

pub(super) fn cannot(doing: &'static str, path: &Path, source: io::Error) -> OpenError {
    OpenError::Io { doing, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn contents(start: u64, length: u64) -> Vec<u8> {
        let mut contents = b"TOC!\x01\0\0\0".to_vec();
        contents.extend(start.to_le_bytes());
        contents.extend(length.to_le_bytes());
        contents.extend(b"\x06\0tables");
        contents
    }

    #[test]
    fn the_tables_of_a_listing_are_read() {
        let table = |number: u64| [&number.to_le_bytes()[..], &[0; 25]].concat();
        // Two levels: one run of two tables, and none.
        let section = [&[2, 1, 2, 0, 0, 0][..], &table(7), &table(300), &[0]].concat();
        let listing = [b"....", &section[..]].concat();
        let length = u64::try_from(section.len()).unwrap();
        assert_eq!(decode_tables(&listing, &contents(4, length)), Some(vec![7, 300]));
        assert_eq!(decode_tables(&listing, &contents(4, length - 1)), None);
        assert_eq!(decode_tables(&listing, &contents(5, length)), None);
        assert_eq!(decode_tables(&listing, &contents(u64::MAX, 2)), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(
            listing in prop::collection::vec(any::<u8>(), 0..100),
            contents in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let _ = decode_tables(&listing, &contents);
            let _ = decode_tables(&listing, &[b"TOC!", &contents[..]].concat());
        }
    }
}
