//! Which system calls a container may make: profiles, and the programs for the kernel that they become.
//!
//! The programs are made here and not by libseccomp, so that nothing has to be installed on a node.

mod compile;
mod profile;

use std::io;

use k8s_cri::v1::SecurityProfile;
use k8s_cri::v1::security_profile::ProfileType;
use serde::{Deserialize, Serialize};

pub use profile::Profile;

/// A program for the kernel, each instruction as the eight bytes that it is, and the flags to load it with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    pub flags: u32,
    pub program: Vec<u64>,
}

#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    #[error("failed to load seccomp profile {path:?}: {error}")]
    Unreadable { path: String, error: io::Error },
    #[error("decoding seccomp profile {path:?} failed: {error}")]
    Undecodable { path: String, error: serde_json::Error },
    #[error("unknown seccomp {what} {name:?}")]
    Unknown { what: &'static str, name: String },
    #[error("the seccomp action {0} is not supported")]
    Unsupported(&'static str),
    #[error("the seccomp profile is too long: {0} instructions")]
    TooLong(usize),
}

/// The filter that was asked for; none when nothing is to be filtered. `capabilities` are those that the container
/// may ever have: the default profile lets more through to who may do more.
pub fn filter(
    asked: Option<&SecurityProfile>,
    capabilities: &[&str],
) -> Result<Option<Filter>, SeccompError> {
    let Some(asked) = asked else { return Ok(None) };
    let profile = match asked.profile_type() {
        ProfileType::Unconfined => return Ok(None),
        ProfileType::RuntimeDefault => Profile::usual(capabilities),
        ProfileType::Localhost => {
            let path = asked.localhost_ref.clone();
            let text = std::fs::read(&path)
                .map_err(|error| SeccompError::Unreadable { path: path.clone(), error })?;
            serde_json::from_slice(&text).map_err(|error| SeccompError::Undecodable { path, error })?
        }
    };
    compile::compile(&profile).map(Some)
}
