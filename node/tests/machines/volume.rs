//! A file system in a file, mounted where a node keeps its data, which can lose its power, fill up and become read-only.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{run, text};

/// `EXT4_IOC_SHUTDOWN`, without flushing anything (Linux, `fs/ext4/ext4.h`), said in a language that every Debian has.
const SHUT_DOWN: &str =
    r#"open(F, "<", $ARGV[0]) or die $!; my $f = pack("L", 2); ioctl(F, 0x8004587D, $f) or die $!"#;
/// What fills a volume, in it.
const BALLAST: &str = "ballast";

/// See the module's documentation.
pub(crate) struct Volume {
    image: PathBuf,
    mounted_at: PathBuf,
}

impl Volume {
    /// Makes a file system and mounts it at a directory, which is made if it is not there, and empty in any case.
    pub(crate) fn at(directory: &Path, bytes: u64) -> Result<Volume, String> {
        let volume = Volume { image: directory.with_extension("img"), mounted_at: directory.to_path_buf() };
        let file = fs::File::create(&volume.image).map_err(|error| error.to_string())?;
        file.set_len(bytes).map_err(|error| error.to_string())?;
        run("mkfs.ext4", &["-q", "-F", text(&volume.image)])?;
        fs::create_dir_all(directory).map_err(|error| error.to_string())?;
        volume.mount()?;
        Ok(volume)
    }

    /// Makes a file system that holds what is in a directory now, and mounts it there.
    pub(crate) fn over(directory: &Path, bytes: u64) -> Result<Volume, String> {
        let kept = directory.with_extension("kept");
        fs::rename(directory, &kept).map_err(|error| error.to_string())?;
        let volume = Volume::at(directory, bytes)?;
        run("cp", &["-a", &format!("{}/.", text(&kept)), text(directory)])?;
        run("sync", &["-f", text(directory)])?;
        Ok(volume)
    }

    fn mount(&self) -> Result<(), String> {
        run("mount", &["-o", "loop,errors=remount-ro", text(&self.image), text(&self.mounted_at)])
    }

    /// The power goes. Nobody writes there any more.
    pub(crate) fn shut_down(&self) {
        run("perl", &["-e", SHUT_DOWN, text(&self.mounted_at)]).unwrap();
    }

    /// It is back, and with it what was synced. Nobody may have anything open there.
    pub(crate) fn mount_again(&self) {
        run("umount", &[text(&self.mounted_at)]).unwrap();
        self.mount().unwrap();
    }

    /// All but so many bytes are taken.
    pub(crate) fn fill(&self, free: u64) {
        let found = rustix::fs::statvfs(&self.mounted_at).unwrap();
        let bytes = (found.f_bavail * found.f_frsize).saturating_sub(free);
        let ballast = self.mounted_at.join(BALLAST);
        run("fallocate", &["-l", &bytes.to_string(), text(&ballast)]).unwrap();
    }

    /// There is room again.
    pub(crate) fn make_room(&self) {
        fs::remove_file(self.mounted_at.join(BALLAST)).unwrap();
    }

    /// An error of the file system makes it read-only, under everybody who has it open.
    pub(crate) fn make_read_only(&self) -> Result<(), String> {
        let mounts = fs::read_to_string("/proc/mounts").map_err(|error| error.to_string())?;
        let is_it = |line: &&str| line.split(' ').nth(1) == Some(text(&self.mounted_at));
        let device = mounts.lines().find(is_it).and_then(|line| line.split(' ').next()).unwrap();
        let name = device.trim_start_matches("/dev/");
        fs::write(format!("/sys/fs/ext4/{name}/trigger_fs_error"), "1").map_err(|error| error.to_string())
    }

    /// It is repaired, and can be written to again. Nobody may have anything open there.
    pub(crate) fn repair(&self) {
        run("umount", &[text(&self.mounted_at)]).unwrap();
        // It exits with 1 when it has repaired something.
        drop(run("fsck.ext4", &["-p", text(&self.image)]));
        self.mount().unwrap();
    }

    /// Puts the content of a directory in the place of its own.
    pub(crate) fn replace(&self, by: Option<&Path>) {
        for entry in fs::read_dir(&self.mounted_at).unwrap() {
            let path = entry.unwrap().path();
            if path.ends_with("lost+found") {
                continue;
            }
            if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
        }
        if let Some(by) = by {
            run("cp", &["-a", &format!("{}/.", text(by)), text(&self.mounted_at)]).unwrap();
        }
        run("sync", &["-f", text(&self.mounted_at)]).unwrap();
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        drop(run("umount", &[text(&self.mounted_at)]));
    }
}
