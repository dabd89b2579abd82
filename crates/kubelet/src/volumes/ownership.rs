//! To whom the files of a volume belong: a pod's `fsGroup` may read and write them, whatever user it runs as.

use std::fs::{self, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown};
use std::path::Path;

const READ: u32 = 0o440;
const READ_WRITE: u32 = 0o660;
const ENTER: u32 = 0o110;
const SET_GROUP: u32 = 0o2000;

/// When files are given to the group (`fsGroupChangePolicy`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Every time.
    Always,
    /// Only when the volume's own directory is not the group's yet.
    OnRootMismatch,
}

impl Policy {
    pub fn parse(text: Option<&str>) -> Self {
        if text == Some("OnRootMismatch") { Policy::OnRootMismatch } else { Policy::Always }
    }
}

/// Gives all in `volume` to `group`, where there is one. The directory itself comes last, so that work that was broken off
/// is seen to be.
///
/// # Errors
/// The file system refuses.
pub fn give(volume: &Path, group: Option<u32>, read_only: bool, policy: Policy) -> io::Result<()> {
    let Some(group) = group else { return Ok(()) };
    let found = fs::symlink_metadata(volume)?;
    if policy == Policy::OnRootMismatch && is_given(&found, group, read_only) {
        return Ok(());
    }
    walk(volume, &found, group, read_only)
}

fn is_given(root: &Metadata, group: u32, read_only: bool) -> bool {
    let wanted = ENTER | SET_GROUP | if read_only { READ } else { READ_WRITE };
    root.gid() == group && root.mode() & wanted == wanted
}

fn walk(path: &Path, found: &Metadata, group: u32, read_only: bool) -> io::Result<()> {
    if found.is_dir() {
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            match entry.metadata() {
                Ok(found) => walk(&entry.path(), &found, group, read_only)?,
                // Somebody who uses the volume already has removed it meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    lchown(path, None, Some(group))?;
    if found.is_symlink() {
        return Ok(());
    }
    let mut mode = found.mode() & 0o7777 | if read_only { READ } else { READ_WRITE };
    if found.is_dir() {
        mode |= ENTER | SET_GROUP;
    }
    fs::set_permissions(path, Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn files_are_given_to_the_group() {
        let directory = tempfile::tempdir().unwrap();
        let volume = directory.path().join("v");
        fs::create_dir_all(volume.join("sub")).unwrap();
        fs::write(volume.join("sub/file"), "").unwrap();
        fs::set_permissions(volume.join("sub/file"), Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink("/nowhere", volume.join("link")).unwrap();
        // Whoever runs this may give files to a group of their own.
        let group = Some(nix::unistd::getgid().as_raw());
        give(&volume, group, false, Policy::OnRootMismatch).unwrap();
        assert_eq!((mode(&volume) & 0o2770, mode(&volume.join("sub/file"))), (0o2770, 0o660));

        fs::write(volume.join("new"), "").unwrap();
        fs::set_permissions(volume.join("new"), Permissions::from_mode(0o400)).unwrap();
        give(&volume, group, false, Policy::OnRootMismatch).unwrap();
        assert_eq!(mode(&volume.join("new")), 0o400, "nothing is done that is done");
        give(&volume, group, true, Policy::Always).unwrap();
        assert_eq!(mode(&volume.join("new")), 0o440);
    }
}
