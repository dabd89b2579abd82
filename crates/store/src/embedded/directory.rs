//! The data directory: its format version, and the lock that keeps a second process out.

use crate::types::{Error, Result};
use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// The version of what is written below the data directory. Another version is refused, not guessed at.
pub const FORMAT: u32 = 1;

const FORMAT_FILE: &str = "FORMAT";
const LOCK_FILE: &str = "LOCK";
const DATA_FILE: &str = "store.redb";

/// Held for as long as the directory is in use; the kernel lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "what matters is that it is open")] File);

/// Makes the directory ready, and says where its data file lies.
pub fn prepare(path: &Path) -> Result<(Lock, PathBuf)> {
    let io = |e: io::Error| match super::engine::io_error(&e) {
        Error::Io(text) => Error::Io(format!("{}: {text}", path.display())),
        other => other,
    };
    fs::create_dir_all(path).map_err(io)?;
    let lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path.join(LOCK_FILE))
        .map_err(io)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(Error::Locked { path: path.display().to_string() }),
        Err(TryLockError::Error(e)) => return Err(io(e)),
    }
    let data = path.join(DATA_FILE);
    match fs::read_to_string(path.join(FORMAT_FILE)) {
        Ok(found) if found.trim() == FORMAT.to_string() => {}
        Ok(found) => return Err(other_format(path, found.trim())),
        Err(e) if e.kind() == io::ErrorKind::NotFound && !data.exists() => write_format(path).map_err(io)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(other_format(path, "none")),
        Err(e) => return Err(io(e)),
    }
    Ok((Lock(lock), data))
}

fn other_format(path: &Path, found: &str) -> Error {
    Error::Format { path: path.display().to_string(), found: found.to_owned(), supported: FORMAT }
}

/// The version is in place whole before there is any data.
fn write_format(path: &Path) -> io::Result<()> {
    let new = path.join("FORMAT.new");
    let mut file = File::create(&new)?;
    writeln!(file, "{FORMAT}")?;
    file.sync_all()?;
    fs::rename(&new, path.join(FORMAT_FILE))?;
    File::open(path)?.sync_all()
}
