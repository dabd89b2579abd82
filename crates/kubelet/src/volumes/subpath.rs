//! A part of a volume as a mount of its own: opened without following any link out of the volume, and bound to a place
//! that the container cannot change.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, mkdirat};

use super::removal;

/// Why a part of a volume cannot be mounted.
#[derive(Debug, thiserror::Error)]
pub enum SubPathError {
    #[error("error SubPath `{0}` must not be an absolute path")]
    Absolute(String),
    #[error("unable to provision SubPath `{0}`: must not contain '..'")]
    Backsteps(String),
    #[error("{0}")]
    Make(io::Error),
    #[error("{0}")]
    Prepare(io::Error),
}

/// Whether a part is named as it may be.
///
/// # Errors
/// Upstream's message.
pub fn check(part: &str) -> Result<(), SubPathError> {
    if part.starts_with('/') {
        return Err(SubPathError::Absolute(part.to_owned()));
    }
    if Path::new(part).components().any(|c| c == Component::ParentDir) {
        return Err(SubPathError::Backsteps(part.to_owned()));
    }
    Ok(())
}

/// Binds `part` of the volume to `place`, making it a directory with the volume's permissions if it is not there. What
/// is bound there already stays, unless the part has become another file meanwhile.
///
/// # Errors
/// The part leads out of the volume, or the file system refuses.
pub fn bind(volume: &Path, part: &str, place: &Path) -> Result<(), SubPathError> {
    check(part)?;
    let file = open(volume, part)?;
    bind_file(&file, place).map_err(SubPathError::Prepare)
}

fn bind_file(file: &OwnedFd, place: &Path) -> io::Result<()> {
    let wanted = fstat(file)?;
    if removal::mounts_below(place)?.iter().any(|point| point == place) {
        if is_same(&wanted, place)? {
            return Ok(());
        }
        umount2(place, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?;
    }
    let is_directory = SFlag::from_bits_truncate(wanted.st_mode & libc::S_IFMT) == SFlag::S_IFDIR;
    if place.symlink_metadata().is_ok_and(|found| found.is_dir() != is_directory) {
        removal::remove_tree(place)?;
    }
    if is_directory {
        fs::create_dir_all(place)?;
    } else {
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(place, "")?;
    }
    let source = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    mount(Some(&source), place, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
    Ok(())
}

fn is_same(wanted: &FileStat, place: &Path) -> io::Result<bool> {
    let found = fs::metadata(place)?;
    Ok(found.dev() == wanted.st_dev && found.ino() == wanted.st_ino)
}

fn open(volume: &Path, part: &str) -> Result<OwnedFd, SubPathError> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let prepare = |error: nix::Error| SubPathError::Prepare(error.into());
    let root = openat(AT_FDCWD, volume, flags | OFlag::O_DIRECTORY, Mode::empty()).map_err(prepare)?;
    match openat2(&root, Path::new(part), how(flags)) {
        Err(nix::errno::Errno::ENOENT) => make(&root, part).map_err(SubPathError::Make),
        found => found.map_err(prepare),
    }
}

fn how(flags: OFlag) -> OpenHow {
    OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS)
}

/// Makes the directories that are missing, with the permissions of the volume: whoever may use it may use them.
fn make(root: &OwnedFd, part: &str) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let mode = fstat(root)?.st_mode & 0o7777;
    let (mut parent, mut walked) = (root.try_clone()?, PathBuf::new());
    for name in Path::new(part).components() {
        let Component::Normal(name) = name else { continue };
        walked.push(name);
        parent = match openat2(root, &walked, how(flags)) {
            Err(nix::errno::Errno::ENOENT) => {
                mkdirat(parent.as_fd(), name, Mode::from_bits_truncate(mode & 0o777))?;
                let made = openat2(root, &walked, how(flags | OFlag::O_NOFOLLOW | OFlag::O_DIRECTORY))?;
                // The process' own mask has taken some away.
                let path = format!("/proc/self/fd/{}", made.as_raw_fd());
                fs::set_permissions(path, Permissions::from_mode(mode))?;
                made
            }
            found => found?,
        };
    }
    Ok(parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_part_leads_out_of_its_volume() {
        let directory = tempfile::tempdir().unwrap();
        let volume = directory.path().join("volume");
        fs::create_dir(&volume).unwrap();
        fs::set_permissions(&volume, Permissions::from_mode(0o777)).unwrap();
        std::os::unix::fs::symlink("/etc", volume.join("out")).unwrap();
        std::os::unix::fs::symlink("..", volume.join("up")).unwrap();
        for part in ["out", "up/x", "out/passwd"] {
            assert!(open(&volume, part).is_err(), "{part}");
        }
        for (part, said) in [
            ("../x", "unable to provision SubPath `../x`: must not contain '..'"),
            ("/etc", "error SubPath `/etc` must not be an absolute path"),
        ] {
            let refused = bind(&volume, part, &directory.path().join("place")).unwrap_err();
            assert_eq!(refused.to_string(), said);
        }
        open(&volume, "made/here").unwrap();
        let made = fs::metadata(volume.join("made/here")).unwrap();
        assert!(made.is_dir());
        assert_eq!(made.mode() & 0o777, 0o777, "as open as the volume");
    }

    #[test]
    fn a_part_that_has_become_another_file_is_bound_anew() {
        let directory = tempfile::tempdir().unwrap();
        let (volume, place) = (directory.path().join("volume"), directory.path().join("place/0"));
        fs::create_dir(&volume).unwrap();
        fs::write(volume.join("part"), "old").unwrap();
        match bind(&volume, "part", &place) {
            Err(SubPathError::Prepare(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
                eprintln!("SKIPPED: nothing can be mounted here");
                return;
            }
            outcome => outcome.unwrap(),
        }
        bind(&volume, "part", &place).unwrap();
        assert_eq!(removal::mounts_below(&place).unwrap().len(), 1, "once is enough");
        fs::remove_file(volume.join("part")).unwrap();
        fs::write(volume.join("part"), "new").unwrap();
        bind(&volume, "part", &place).unwrap();
        assert_eq!(fs::read_to_string(&place).unwrap(), "new");
        fs::remove_file(volume.join("part")).unwrap();
        fs::create_dir(volume.join("part")).unwrap();
        bind(&volume, "part", &place).unwrap();
        assert!(place.is_dir());
        removal::unmount_below(&place).unwrap();
    }
}
