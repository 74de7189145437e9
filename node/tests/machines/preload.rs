//! What is loaded into the processes of nodes: syncs that fail or are slow, and clocks that are wrong.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{run, text};

const FAILING_SYNC: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/machines/failing_sync.c");
/// Where Debian's `libfaketime` puts the library.
const FAKETIME: &str = "faketime/libfaketimeMT.so.1";

/// Compiles the library of syncs that fail into a directory.
pub(crate) fn failing_sync(directory: &Path) -> Result<PathBuf, String> {
    let library = directory.join("failing_sync.so");
    run("cc", &["-shared", "-fPIC", "-O1", "-o", text(&library), FAILING_SYNC, "-ldl"])?;
    Ok(library)
}

/// Finds the library of wrong clocks.
pub(crate) fn wrong_clock() -> Result<PathBuf, String> {
    let entries = fs::read_dir("/usr/lib").map_err(|error| error.to_string())?;
    let found = entries.flatten().map(|entry| entry.path().join(FAKETIME)).find(|path| path.exists());
    found.ok_or_else(|| "no libfaketime: apt-get install libfaketime".to_owned())
}
