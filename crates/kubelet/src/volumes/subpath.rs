//! A part of a volume as a mount of its own: opened without following any link out of the volume, and bound to a place
//! that the container cannot change.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};

/// Binds `part` of the volume to `place`, making it a directory if it is not there. Does nothing that is done.
///
/// # Errors
/// The part leads out of the volume, or the file system refuses.
pub fn bind(volume: &Path, part: &str, place: &Path) -> io::Result<PathBuf> {
    if Path::new(part).components().any(|c| !matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("subPath {part:?} leads out of the volume"),
        ));
    }
    let file = open(volume, part)?;
    let is_directory = SFlag::from_bits_truncate(fstat(&file)?.st_mode).contains(SFlag::S_IFDIR);
    if is_bound(place) {
        return Ok(place.to_owned());
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
    Ok(place.to_owned())
}

fn is_bound(place: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().any(|line| line.split(' ').nth(4).is_some_and(|point| Path::new(point) == place))
}

fn open(volume: &Path, part: &str) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let root = openat(AT_FDCWD, volume, flags | OFlag::O_DIRECTORY, Mode::empty())?;
    let how = || {
        OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS)
    };
    match openat2(&root, Path::new(part), how()) {
        Err(nix::errno::Errno::ENOENT) => {}
        found => return Ok(found?),
    }
    let (mut parent, mut walked) = (root.try_clone()?, PathBuf::new());
    for name in Path::new(part).components() {
        let Component::Normal(name) = name else { continue };
        walked.push(name);
        parent = match openat2(&root, &walked, how()) {
            Err(nix::errno::Errno::ENOENT) => {
                mkdirat(&parent, name, Mode::from_bits_truncate(0o750))?;
                openat2(&root, &walked, how())?
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
        std::os::unix::fs::symlink("/etc", volume.join("out")).unwrap();
        std::os::unix::fs::symlink("..", volume.join("up")).unwrap();
        for part in ["out", "up/x", "out/passwd"] {
            assert!(open(&volume, part).is_err(), "{part}");
        }
        for part in ["../x", "/etc"] {
            assert!(bind(&volume, part, &directory.path().join("place")).is_err(), "{part}");
        }
        open(&volume, "made/here").unwrap();
        assert!(volume.join("made/here").is_dir());
    }
}
