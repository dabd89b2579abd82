//! nftables and connection tracking through netlink: a [`Batch`] of changes to tables, chains, sets and rules that
//! the kernel takes as a whole or not at all, and the removal of tracked connections.
//!
//! Rules are written as the kernel's own small expressions ([`Rule`]), so that nothing is parsed and no tool is
//! run. The crate knows nothing of pods or Services, keeps no state, and never touches a table that its caller did
//! not name. Everything happens in the network namespace of the calling thread.

mod batch;
pub mod conntrack;
mod rule;
mod set;
mod socket;
mod wire;

use std::io;

pub use batch::{Batch, Hook};
pub use rule::{Field, Rule, Verdict};
pub use set::{Elements, Key, Set, Type, Value, set_names};

/// The address family that a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    /// As `NFPROTO_*`.
    fn number(self) -> u8 {
        match self {
            Family::Ipv4 => 2,
            Family::Ipv6 => 10,
        }
    }
}

/// What the kernel says to a request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket itself failed: no netlink, no memory, no permission to have one.
    #[error("netlink: {0}")]
    Socket(#[from] io::Error),
    /// The kernel refused one of the batch's changes, and so made none of them.
    #[error("the kernel refused to {what}: {error}{}", detail.as_ref().map(|detail| format!(" ({detail})")).unwrap_or_default())]
    Refused { what: String, error: io::Error, detail: Option<String> },
    /// The kernel did not answer.
    #[error("the kernel did not answer a netfilter request")]
    NoAnswer,
}

impl Error {
    /// Whether something that the request named does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::Refused { error, .. } if error.kind() == io::ErrorKind::NotFound)
    }
}

pub type Result<T, E = Error> = std::result::Result<T, E>;
