//! A control group of a test.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long what was killed may take to leave its group.
const PATIENCE: Duration = Duration::from_secs(5);

/// A control group in every hierarchy that is mounted here, and those below it.
#[derive(Clone, Debug)]
pub struct ControlGroup {
    directories: Vec<PathBuf>,
}

impl ControlGroup {
    /// That of a path, such as `/krate-test`.
    pub fn new(path: &str) -> Self {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let directories = mounts
            .lines()
            .filter(|line| line.contains(" - cgroup"))
            .filter_map(|line| line.split(' ').nth(4))
            .map(|mount| PathBuf::from(format!("{mount}{path}")))
            .collect();
        ControlGroup { directories }
    }

    /// The groups below it that there are, each before those below itself.
    pub fn below(&self) -> Vec<PathBuf> {
        self.directories.iter().flat_map(|directory| below(directory)).collect()
    }

    /// Kills what runs in it and below it, and removes them all, as far as what was killed ends.
    pub fn clear(&self) {
        let all: Vec<PathBuf> = self.directories.iter().cloned().chain(self.below()).collect();
        for group in &all {
            let listed = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            for pid in listed.lines().filter_map(|line| line.parse().ok()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        let end = Instant::now() + PATIENCE;
        for group in all.iter().rev() {
            while group.exists() && std::fs::remove_dir(group).is_err() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

fn below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            found.push(entry.path());
            found.extend(below(&entry.path()));
        }
    }
    found
}
