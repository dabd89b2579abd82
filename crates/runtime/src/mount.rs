//! Mounts that are copied, changed, and shown somewhere else, or nowhere.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use libcontainer::syscall::SyscallError;
use libcontainer::syscall::linux::{self, MountAttr};
use libcontainer::syscall::syscall::create_syscall;

/// A copy of the mount at `source`, with all mounts below it if `whole`, that is not seen anywhere yet.
///
/// # Errors
/// `source` is not there, or this process may not mount.
pub fn copy(source: &Path, whole: bool) -> io::Result<OwnedFd> {
    let below = if whole { libc::AT_RECURSIVE as u32 } else { 0 };
    let flags = libc::OPEN_TREE_CLOEXEC | libc::OPEN_TREE_CLONE | below;
    let text = source.to_str().ok_or(io::ErrorKind::InvalidFilename)?;
    create_syscall().open_tree(libc::AT_FDCWD, Some(text), flags).map_err(io_error)
}

/// Gives such a copy more attributes, as `mount_setattr` names them. Some are made of a namespace of users.
pub fn change(mount: &OwnedFd, attributes: u64, users: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let change = MountAttr {
        attr_set: attributes,
        attr_clr: 0,
        propagation: 0,
        userns_fd: users.map_or(0, |users| users.as_raw_fd() as u64),
    };
    let size = size_of::<MountAttr>();
    create_syscall()
        .mount_setattr(mount.as_fd(), Path::new(""), linux::AT_EMPTY_PATH, &change, size)
        .map_err(io_error)
}

/// Shows such a copy at `target`.
pub fn attach(mount: &OwnedFd, target: &Path) -> io::Result<()> {
    let place = std::fs::File::options().read(true).custom_flags(libc::O_PATH).open(target)?;
    let flags = linux::MOVE_MOUNT_F_EMPTY_PATH | linux::MOVE_MOUNT_T_EMPTY_PATH;
    create_syscall().move_mount(mount.as_fd(), None, place.as_fd(), None, flags).map_err(io_error)
}

fn io_error(error: SyscallError) -> io::Error {
    match error {
        SyscallError::Nix(errno) => io::Error::from_raw_os_error(errno as i32),
        SyscallError::IO(error) => error,
        other => io::Error::other(other.to_string()),
    }
}
