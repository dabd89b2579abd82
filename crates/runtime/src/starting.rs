//! Whether the start of a container is still under way. libcontainer starts by several processes, one after the other, and
//! whoever of them is left when the shim and the first of them are killed goes on until it notices: it may still make a
//! control group after all others were taken away. So all of them hold one lock, which they inherit and which a container's
//! own program does not get.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;

const LOCK: &str = "start.lock";

/// Held by who starts a container, and by all that come of him until they run the container's program.
#[derive(Debug)]
pub struct Starting(#[expect(dead_code, reason = "what matters is that it is open")] File);

impl Starting {
    /// Begins the start of the container of this bundle.
    ///
    /// # Errors
    /// The bundle is not there any more, or cannot be written to.
    pub fn begin(bundle: &Path) -> io::Result<Self> {
        let file = File::create(bundle.join(LOCK))?;
        file.lock_shared()?;
        Ok(Self(file))
    }
}

/// Whether no start of the container of this bundle is under way.
///
/// # Errors
/// It cannot be told.
pub fn is_over(bundle: &Path) -> io::Result<bool> {
    let file = match File::open(bundle.join(LOCK)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        opened => opened?,
    };
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_over_when_all_have_let_go_of_it() {
        let bundle = tempfile::tempdir().unwrap();
        assert!(is_over(bundle.path()).unwrap(), "nothing was ever started");
        let first = Starting::begin(bundle.path()).unwrap();
        let second = Starting::begin(bundle.path()).unwrap();
        drop(first);
        assert!(!is_over(bundle.path()).unwrap());
        drop(second);
        assert!(is_over(bundle.path()).unwrap());
    }
}
