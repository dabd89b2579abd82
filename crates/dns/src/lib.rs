//! Cluster DNS: names of Services and of their endpoints, answered from informers; every other name is asked of the
//! host's own resolvers.
//!
//! What is answered is the Kubernetes DNS-based service discovery specification, version 1.1.0, as CoreDNS's
//! `kubernetes` plugin answers it with `pods insecure`. The crate also keeps the Service `kube-system/kube-dns` and
//! the EndpointSlice that leads to this server. It never asks itself, and writes nothing else.

mod cluster;
mod forward;
mod server;
mod service;
mod zone;

pub use cluster::Cluster;
pub use forward::Upstream;
pub use server::{Dns, run};
pub use service::{KubeDns, dns_address};
pub use zone::{Outcome, Source, TTL, Zone};

use std::net::SocketAddr;

/// What the server must be told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it listens, by UDP and TCP. An address of the machine's own rather than 0.0.0.0, where there is more than
    /// one: answers must come from the address that was asked.
    pub listen: Vec<SocketAddr>,
    /// `cluster.local`, unless the cluster says otherwise.
    pub cluster_domain: String,
    /// Who is asked for names outside of the cluster.
    pub upstream: Upstream,
    /// The Service to keep; `None` leaves it to somebody else.
    pub service: Option<KubeDns>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("{0:?} is no domain name")]
    Domain(String),
    #[error("the resolver for names outside of the cluster: {0}")]
    Upstream(String),
    #[error("the server ended: {0}")]
    Server(String),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;
