//! Loop devices over the block devices that pods have. While one is there, the device below it is in use: it cannot go
//! away unnoticed and leave its numbers, which are all that a container knows of it, to another. Nobody reads or writes
//! through them. They outlive the kubelet, and are found again by what lies below them.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

const CONTROL: &str = "/dev/loop-control";
const BLOCKS: &str = "/sys/block";

/// The driver's requests, by the kernel's numbers.
const SET_FD: libc::c_ulong = 0x4C00;
const CLR_FD: libc::c_ulong = 0x4C01;
const CTL_GET_FREE: libc::c_ulong = 0x4C82;

/// How often another one may take the device that was free.
const TRIES: usize = 32;

/// Puts a loop device over the block device that is shown at `path`, until it is released. Does nothing that is done, and
/// nothing on a machine that has no loop devices. Blocks.
///
/// # Errors
/// The kernel refuses.
pub fn hold(path: &Path) -> io::Result<()> {
    let path = path.canonicalize()?;
    if !Path::new(CONTROL).exists() {
        tracing::debug!(path = %path.display(), "there are no loop devices: a pod's device is not held");
        return Ok(());
    }
    if !over(|below| below == path)?.is_empty() {
        return Ok(());
    }
    let below = open(&path)?;
    let driver = File::options().read(true).write(true).open(CONTROL)?;
    for _ in 0..TRIES {
        let number = ask(&driver, CTL_GET_FREE, 0)?;
        let free = File::options().read(true).write(true).open(format!("/dev/loop{number}"))?;
        match ask(&free, SET_FD, below.as_raw_fd().cast_unsigned().into()) {
            // Another one was quicker.
            Err(Errno::EBUSY) => {}
            done => return done.map(drop).map_err(Into::into),
        }
    }
    Err(io::ErrorKind::ResourceBusy.into())
}

/// Takes away what [`hold`] has put over a device. What is not there is away. Blocks.
///
/// # Errors
/// The kernel refuses.
pub fn release(path: &Path) -> io::Result<()> {
    release_all(path, |below, path| below == path)
}

/// The same for all that is shown below a directory.
///
/// # Errors
/// The kernel refuses.
pub fn release_below(directory: &Path) -> io::Result<()> {
    release_all(directory, |below, directory| below.starts_with(directory))
}

fn release_all(path: &Path, is_it: impl Fn(&Path, &Path) -> bool) -> io::Result<()> {
    let path = match path.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        path => path?,
    };
    for device in over(|below| is_it(below, &path))? {
        // It is gone when it is closed.
        match ask(&File::open(device)?, CLR_FD, 0) {
            Ok(_) | Err(Errno::ENXIO) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The loop devices over what `is_it`.
fn over(is_it: impl Fn(&Path) -> bool) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(BLOCKS)? {
        let name = entry?.file_name();
        let below = Path::new(BLOCKS).join(&name).join("loop/backing_file");
        // Others have no such file, and one that goes meanwhile has none any more.
        let Ok(below) = fs::read_to_string(below) else { continue };
        if is_it(Path::new(below.trim_end_matches('\n'))) {
            found.push(Path::new("/dev").join(name));
        }
    }
    Ok(found)
}

/// Opens a device for what it allows.
fn open(path: &Path) -> io::Result<File> {
    match File::options().read(true).write(true).open(path) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EROFS | libc::EACCES | libc::EPERM)) => {
            File::open(path)
        }
        opened => opened,
    }
}

#[allow(unsafe_code)]
fn ask(device: &File, request: libc::c_ulong, argument: libc::c_ulong) -> Result<i32, Errno> {
    // SAFETY: the descriptor is open, and these requests take numbers and no memory.
    Errno::result(unsafe { libc::ioctl(device.as_raw_fd(), request as _, argument) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_held_once_until_it_is_released() {
        let directory = tempfile::tempdir().unwrap();
        let (path, other) = (directory.path().join("a"), directory.path().join("b"));
        for path in [&path, &other] {
            File::create(path).unwrap().set_len(1 << 20).unwrap();
        }
        match hold(&path) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                return eprintln!("SKIPPED: no loop devices can be had here");
            }
            held => held.unwrap(),
        }
        let held = |wanted: &Path| over(|below| below == wanted).unwrap().len();
        if held(&path) == 0 {
            return eprintln!("SKIPPED: there are no loop devices here");
        }
        hold(&path).unwrap();
        hold(&other).unwrap();
        assert_eq!((held(&path), held(&other)), (1, 1));
        release(&path).unwrap();
        release(&path).unwrap();
        assert_eq!((held(&path), held(&other)), (0, 1));
        release_below(directory.path()).unwrap();
        assert_eq!(held(&other), 0);
        release(&directory.path().join("none")).unwrap();
    }
}
