//! Files in which what pods were given outlives the kubelet, under the names and in the form of upstream's.

use std::io;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// One such file, of which several may find at the same time that it is to be written anew.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    turn: Mutex<()>,
}

impl Checkpoint {
    pub fn at(path: PathBuf) -> Self {
        Checkpoint { path, turn: Mutex::default() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lets `write` write what is so when it is its turn: older state never comes after newer.
    ///
    /// # Errors
    /// Those of `write`.
    pub fn write(&self, write: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
        let _turn = self.turn.lock();
        write(&self.path)
    }
}

/// Writes one, whole or not at all.
///
/// # Errors
/// The file cannot be written; then the old one is still there.
pub fn save(path: &Path, state: &impl Serialize) -> io::Result<()> {
    let partial = path.with_extension("partial");
    std::fs::write(&partial, serde_json::to_vec(state)?)?;
    std::fs::File::open(&partial)?.sync_all()?;
    std::fs::rename(partial, path)
}

/// Reads one; nothing is known, when there is none that can be read.
pub fn load<T: DeserializeOwned + Default>(path: &Path) -> T {
    std::fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}
