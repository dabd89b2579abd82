//! The pod network of a node: an address a pod, the way between it and the rest, and ports of the node that lead to
//! pods.
//!
//! A pod has one end of a veth pair as `eth0`, with an address of the node's range and its default route to the
//! range's first address, the gateway, which the node has on an interface `kr-<instance>`. The other end stays on
//! the node with a route to that one address. So all that a pod sends, also to its neighbour, passes through the
//! node's routing and connection tracking; on a shared segment the answer to a connection through a Service would
//! take the short way back, past the translation, unless the kernel is made to filter bridges.
//!
//! What is leased is kept in files, what is connected is kept by the kernel: after `kill -9` a new [`PodNetwork`]
//! goes on where the last one ended. Several networks live on one machine side by side, each named by its instance.
//! The crate never speaks to the API, and knows nothing of Services.

mod lease;
mod link;
mod network;
mod rules;

use std::io;
use std::path::PathBuf;

pub use lease::{HostPort, Lease, Protocol};
pub use network::{Config, PodNetwork, clean_up};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no address of {0} is free")]
    Exhausted(ipnet::Ipv4Net),
    #[error("{0} is no range for pods: it needs room for a gateway and pods, a prefix of 8 to 29 bits")]
    BadRange(ipnet::Ipv4Net),
    #[error("{range} is in use on this machine: {taken} is behind the interface {by}; choose another range")]
    Taken { range: ipnet::Ipv4Net, taken: ipnet::Ipv4Net, by: String },
    #[error("{0:?} is no name of an instance: it needs 1 to 8 lower-case letters and digits")]
    BadInstance(String),
    #[error("{0:?} is no id of a sandbox: it would not be a file's name")]
    BadSandbox(String),
    #[error("cannot {what}: {error}")]
    Netlink { what: String, error: rtnetlink::Error },
    #[error("cannot enter the network namespace {path}: {error}")]
    Namespace { path: PathBuf, error: io::Error },
    #[error("cannot write {path}: {error}")]
    State { path: PathBuf, error: io::Error },
    #[error("forwarding of packets is off and cannot be turned on (set net.ipv4.ip_forward=1): {0}")]
    Forwarding(io::Error),
    #[error(transparent)]
    Rules(#[from] krate_nft::Error),
    #[error("netlink: {0}")]
    Socket(io::Error),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;
