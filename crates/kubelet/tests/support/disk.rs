//! A block device of a test's own: a loop device over a file.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The device, for as long as this is there.
#[derive(Debug)]
pub struct Disk {
    pub device: PathBuf,
}

impl Disk {
    /// Makes one over a new file in a directory; none where that cannot be, which it says aloud.
    pub fn make(directory: &Path) -> Option<Self> {
        let file = directory.join("disk");
        std::fs::File::create(&file).unwrap().set_len(1 << 20).unwrap();
        let made = Command::new("losetup").arg("--find").arg("--show").arg(&file).output();
        match made {
            Ok(made) if made.status.success() => {
                let device = String::from_utf8(made.stdout).unwrap().trim().into();
                Some(Disk { device })
            }
            why => {
                eprintln!("SKIPPED: there are no loop devices here: {why:?}");
                None
            }
        }
    }

    /// The loop devices over what is shown at or below a path.
    pub fn over(path: &Path) -> Vec<PathBuf> {
        let all = std::fs::read_dir("/sys/block").unwrap().map(|entry| entry.unwrap());
        all.filter(|block| {
            let below = std::fs::read_to_string(block.path().join("loop/backing_file"));
            below.is_ok_and(|below| Path::new(below.trim_end()).starts_with(path))
        })
        .map(|block| Path::new("/dev").join(block.file_name()))
        .collect()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.device).status();
    }
}
