//! A process of a test that does not outlive it.

use std::io;
use std::ops::{Deref, DerefMut};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A child process that is killed and waited for when this value is dropped, also by a panic.
#[derive(Debug)]
pub struct Child(std::process::Child);

impl Child {
    /// Starts `command`.
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        command.spawn().map(Self)
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(kill(Pid::from_raw(self.0.id().cast_signed()), signal)?)
    }

    /// Waits for the process to end.
    ///
    /// # Panics
    /// When it still runs after `deadline`.
    pub fn wait_within(&mut self, deadline: Duration) -> io::Result<ExitStatus> {
        crate::eventually("the process ends", deadline, || self.0.try_wait().transpose())
    }
}

impl Deref for Child {
    type Target = std::process::Child;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Child {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // A process that has been waited for is not signalled: its id may be another's by now.
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}
