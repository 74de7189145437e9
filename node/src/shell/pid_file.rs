//! The file that says which process a node is.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process,
};

/// This process's id in a file, which is removed when this is dropped.
pub(super) struct PidFile {
    path: PathBuf,
}

impl PidFile {
    /// Writes it.
    pub(super) fn write(path: &Path) -> io::Result<PidFile> {
        fs::write(path, format!("{}\n", process::id()))?;
        Ok(PidFile { path: path.to_owned() })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        remove_of(&self.path, process::id());
    }
}

/// Removes a file if it still names this process: another may have been started since.
pub(super) fn remove_of(path: &Path, pid: u32) {
    let is_named = fs::read_to_string(path).is_ok_and(|text| text.trim() == pid.to_string());
    if is_named {
        // Whoever reads it finds that the process has ended.
        drop(fs::remove_file(path));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shell::scratch::Scratch;

    #[test]
    fn the_file_goes_with_its_process_unless_it_names_another() {
        let scratch = Scratch::new();
        let path = scratch.path().join("pid");
        let own = PidFile::write(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", process::id()));
        drop(own);
        assert!(!path.exists());
        let replaced = PidFile::write(&path).unwrap();
        fs::write(&path, "0\n").unwrap();
        drop(replaced);
        assert!(path.exists());
        remove_of(&path, 0);
        assert!(!path.exists());
    }
}
