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
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
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
        self.then.validate(spec)
    }

    fn setup_envs(&self, envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        get_executor().setup_envs(envs)
    }
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
