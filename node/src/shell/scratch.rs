//! Directories for tests, removed when they are over.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A directory of one test.
pub(crate) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// A new, empty one.
    pub(crate) fn new() -> Scratch {
        let mut name = [0; 8];
        getrandom::fill(&mut name).expect("the machine has random numbers");
        let path = std::env::temp_dir().join(format!("quorate-test-{:016x}", u64::from_be_bytes(name)));
        fs::create_dir_all(&path).expect("a temporary directory can be made");
        Scratch { path }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.path));
    }
}
