//! The last steps of a process before it becomes the container's program: the filter of its system calls is loaded,
//! and what it may do is reduced to what was asked.
//!
//! To load a filter is itself a privilege, unless the process has given up to gain any (`no_new_privs`). So the
//! specification leaves a container that is to be filtered its privileges, and they are taken here, after the
//! filter.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use libcontainer::capabilities::drop_privileges;
use libcontainer::oci_spec::runtime::{LinuxCapabilities, Spec};
use libcontainer::syscall::syscall::create_syscall;
use libcontainer::workload::default::{DefaultExecutor, get_executor};
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::{AccessFlags, eaccess};
use serde::{Deserialize, Serialize};

use crate::oci::seccomp::Filter;

/// The file of a bundle that says how its processes are locked in. Without it they are not filtered.
pub const FILE: &str = "lock.json";

/// How a container's processes are locked in.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Lock {
    pub filter: Filter,
    /// What is left of the privileges once the filter is loaded.
    pub capabilities: LinuxCapabilities,
}

#[derive(Clone)]
pub struct Locking {
    lock: Option<Lock>,
    then: DefaultExecutor,
}

impl Locking {
    /// For the container of a bundle.
    pub fn of(bundle: &Path) -> io::Result<Self> {
        let lock = match std::fs::read(bundle.join(FILE)) {
            Ok(text) => Some(serde_json::from_slice(&text)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(Self { lock, then: DefaultExecutor {} })
    }
}

impl Executor for Locking {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        heed_signals();
        if let Some(lock) = &self.lock {
            load(&lock.filter).map_err(|error| {
                ExecutorError::Other(format!("failed to load the seccomp filter: {error}"))
            })?;
            drop_privileges(&lock.capabilities, create_syscall().as_ref())
                .map_err(|error| ExecutorError::Other(format!("failed to give up capabilities: {error}")))?;
        }
        self.then.exec(spec)
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let process = spec.process().as_ref();
        let program = process.and_then(|process| process.args().as_ref()?.first());
        let path =
            process.and_then(|process| process.env().as_ref()?.iter().find_map(|e| e.strip_prefix("PATH=")));
        let program = program.map_or("", String::as_str);
        find(program, path.unwrap_or_default())
            .map_err(|why| ExecutorValidationError::ArgValidationError(format!("exec: {program:?}: {why}")))
    }

    fn setup_envs(&self, envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        get_executor().setup_envs(envs)
    }
}

/// Looks for a program as `execvp` will, to say in upstream's words why there is none.
fn find(program: &str, path: &str) -> Result<(), String> {
    let look = |at: &Path| -> Result<(), Errno> {
        let found =
            std::fs::metadata(at).map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or_default()))?;
        if found.is_dir() { Err(Errno::EISDIR) } else { eaccess(at, AccessFlags::X_OK) }
    };
    if program.contains('/') {
        return look(Path::new(program)).map_err(|errno| {
            let said = errno.desc().to_lowercase();
            if matches!(errno, Errno::EISDIR | Errno::EACCES) {
                said
            } else {
                format!("stat {program}: {said}")
            }
        });
    }
    let places = path.split(':').map(|directory| if directory.is_empty() { "." } else { directory });
    let is_there = places.map(|directory| Path::new(directory).join(program)).any(|at| look(&at).is_ok());
    if is_there && !program.is_empty() { Ok(()) } else { Err("executable file not found in $PATH".into()) }
}

/// A program finds signals as it expects them: this process has SIGPIPE ignored, and whoever started us may have others.
#[allow(unsafe_code)]
fn heed_signals() {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in Signal::iterator() {
        // SAFETY: the default action runs no code of ours. Two signals cannot be set, and need not be.
        let _ = unsafe { sigaction(signal, &default) };
    }
}

#[allow(unsafe_code)]
fn load(filter: &Filter) -> io::Result<()> {
    let instructions = filter.program.as_ptr().cast::<libc::sock_filter>().cast_mut();
    let length = u16::try_from(filter.program.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog { len: length, filter: instructions };
    // SAFETY: each of the `length` values holds one instruction in the kernel's form, and the kernel only reads
    // them, during this call.
    let loaded = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, filter.flags, &raw const program)
    };
    if loaded == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_run_is_said_as_upstream_says_it() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name).display().to_string();
        std::fs::write(at("text"), "no program").unwrap();
        let path = format!("/no/such:{}:/bin", directory.path().display());
        assert_eq!(find("sh", &path), Ok(()));
        assert_eq!(find("/bin/sh", ""), Ok(()));
        for (program, why) in [
            ("text".to_owned(), "executable file not found in $PATH".to_owned()),
            (String::new(), "executable file not found in $PATH".into()),
            (at("text"), "permission denied".into()),
            (at(""), "is a directory".into()),
            (at("none"), format!("stat {}: no such file or directory", at("none"))),
        ] {
            assert_eq!(find(&program, &path), Err(why), "{program}");
        }
    }
}
