//! Taking a pod's directory away, and never anything that is mounted in it: what a volume shows may be somebody's data.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, umount2};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// Where something is mounted at or below `directory`, in the order in which it was.
///
/// # Errors
/// The table of mounts cannot be read.
pub fn mounts_below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(points(&table).filter(|point| point.starts_with(directory)).collect())
}

fn points(table: &str) -> impl Iterator<Item = PathBuf> {
    table.lines().filter_map(|line| line.split(' ').nth(4)).map(|point| PathBuf::from(unescaped(point)))
}

/// The kernel writes spaces, tabs, line ends and backslashes as three octal digits.
fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let digits = rest.get(at + 1..at + 4).and_then(|octal| u8::from_str_radix(octal, 8).ok());
        let Some(byte) = digits else {
            out.push('\\');
            rest = &rest[at + 1..];
            continue;
        };
        out.push(char::from(byte));
        rest = &rest[at + 4..];
    }
    out.push_str(rest);
    out
}

/// Unmounts all that is mounted at or below `directory`, the last mounted first.
///
/// # Errors
/// The kernel refuses.
pub fn unmount_below(directory: &Path) -> io::Result<()> {
    for point in mounts_below(directory)?.iter().rev() {
        match umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // It went with the one that it lay in.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Removes a directory and what is in it, as far as no mount is crossed and no link followed. Does nothing that is done.
///
/// # Errors
/// Something is mounted there still, or the file system refuses.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let how = OpenHow::new().flags(OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC);
    match openat2(AT_FDCWD, parent, how) {
        Err(Errno::ENOENT) => Ok(()),
        parent => remove_entry(&parent?, name),
    }
}

fn remove_entry(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    let how = OpenHow::new()
        .flags(OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_RDONLY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_XDEV);
    let removed = match openat2(parent.as_fd(), Path::new(name), how) {
        Ok(directory) => {
            for entry in fs::read_dir(format!("/proc/self/fd/{}", directory.as_raw_fd()))? {
                remove_entry(&directory, &entry?.file_name())?;
            }
            unlinkat(parent.as_fd(), Path::new(name), UnlinkatFlags::RemoveDir)
        }
        Err(Errno::ENOTDIR | Errno::ELOOP) => {
            unlinkat(parent.as_fd(), Path::new(name), UnlinkatFlags::NoRemoveDir)
        }
        Err(error) => Err(error),
    };
    match removed {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(Errno::EXDEV) => Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            format!("something is mounted at {}", name.display()),
        )),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use nix::mount::{MsFlags, mount};

    use super::*;

    #[test]
    fn the_kernels_escapes_are_read() {
        for (written, meant) in
            [("/a\\040b", "/a b"), ("/a\\134b", "/a\\b"), ("/a\\x", "/a\\x"), ("/a", "/a")]
        {
            assert_eq!(unescaped(written), meant);
        }
    }

    #[test]
    fn links_are_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let (kept, gone) = (directory.path().join("kept"), directory.path().join("gone"));
        fs::create_dir_all(gone.join("a/b")).unwrap();
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("data"), "").unwrap();
        fs::write(gone.join("a/file"), "").unwrap();
        std::os::unix::fs::symlink(&kept, gone.join("a/link")).unwrap();
        remove_tree(&gone).unwrap();
        assert!(!gone.exists() && kept.join("data").exists());
        remove_tree(&gone).unwrap();
        remove_tree(&gone.join("deeper/still")).unwrap();
    }

    #[test]
    fn what_is_mounted_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let (kept, gone) = (directory.path().join("kept"), directory.path().join("gone dir"));
        fs::create_dir_all(gone.join("volumes/v")).unwrap();
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("data"), "").unwrap();
        let bound = gone.join("volumes/v");
        let flags = MsFlags::MS_BIND;
        if mount(Some(&kept), &bound, None::<&str>, flags, None::<&str>).is_err() {
            eprintln!("SKIPPED: nothing can be mounted here");
            return;
        }
        let refused = remove_tree(&gone).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ResourceBusy, "{refused}");
        assert!(kept.join("data").exists());
        assert_eq!(mounts_below(&gone).unwrap(), [bound]);
        unmount_below(&gone).unwrap();
        remove_tree(&gone).unwrap();
        assert!(!gone.exists() && kept.join("data").exists());
    }
}
