//! What must not be collected although no image names it yet: content that a pull or an import is gathering, told to
//! all processes by a locked file, and layers that a container is being made of, told within this process.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{Flock, FlockArg};
use parking_lot::Mutex;

/// Protects content while it lives. Its file is locked, so that one whose owner was killed protects nothing.
#[derive(Debug)]
pub struct Lease {
    path: PathBuf,
    _file: Flock<File>,
}

impl Lease {
    /// To be called while the store is locked, so that nobody takes the file for an abandoned one.
    pub(super) fn new<'a>(
        directory: &Path,
        digests: impl IntoIterator<Item = &'a String>,
    ) -> io::Result<Self> {
        let path = directory.join(format!("{:016x}", rand::random::<u64>()));
        let file = File::options().write(true).create_new(true).open(&path)?;
        let mut file = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
        for digest in digests {
            writeln!(file, "{digest}")?;
        }
        Ok(Self { path, _file: file })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // One that stays is found to be abandoned.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The digests that leases protect. Abandoned ones are cleared away.
pub(super) fn leased(directory: &Path) -> io::Result<HashSet<String>> {
    let mut digests = HashSet::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let Ok(file) = File::open(&path) else { continue };
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(_abandoned) => drop(std::fs::remove_file(&path)),
            Err(_) => digests.extend(std::fs::read_to_string(&path)?.lines().map(str::to_owned)),
        }
    }
    Ok(digests)
}

/// Layers that this process is about to use.
#[derive(Clone, Debug, Default)]
pub struct Claims(Arc<Mutex<HashMap<String, usize>>>);

/// Protects layers while it lives.
#[derive(Debug)]
pub struct Claim {
    claims: Claims,
    layers: Vec<String>,
}

impl Claims {
    pub fn claim(&self, layers: &[String]) -> Claim {
        let mut counts = self.0.lock();
        for layer in layers {
            *counts.entry(layer.clone()).or_default() += 1;
        }
        Claim { claims: self.clone(), layers: layers.to_vec() }
    }

    pub fn layers(&self) -> Vec<String> {
        self.0.lock().keys().cloned().collect()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut counts = self.claims.0.lock();
        for layer in &self.layers {
            if let Some(count) = counts.get_mut(layer) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(layer);
                }
            }
        }
    }
}
