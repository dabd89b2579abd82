//! Services on a node: what is sent to a Service's address reaches one of its endpoints.
//!
//! Services and EndpointSlices come in through informers; [`Tracker`] makes of them, by pure functions, a
//! [`ServiceMap`]: the desired state. A backend behind [`Rules`] brings the kernel there, in one atomic change for
//! each step. The backends stand in [`BACKENDS`], one line each.
//!
//! The crate writes nothing to the API, and holds nothing that it could not make again from it: the first change of
//! a new process replaces whatever rules an earlier one left, and a packet sees either the old ones or the new.

mod backend;
mod base;
mod endpoints;
mod memory;
mod nftables;
mod program;
mod programmed;
mod run;
mod service;
mod tracker;

use ipnet::IpNet;

pub use backend::{BACKENDS, Backend, Changes, Error, Rules, make};
pub use endpoints::{Endpoint, EndpointSet};
pub use memory::{Memory, Synced};
pub use nftables::Nftables;
pub use run::{clean_up, run, run_with};
pub use service::{PortName, Protocol, ServicePort};
pub use tracker::{ServiceMap, Tracker};

/// How Services are served on this node.
#[derive(Clone, Debug)]
pub struct Config {
    /// The Node whose endpoints are local.
    pub node_name: String,
    /// Names this cluster on this machine; part of the names of tables. Letters and digits.
    pub instance: String,
    /// One of [`BACKENDS`].
    pub mode: String,
    /// The ranges of pods. Who is in none of them is masqueraded on the way to a Service, so that answers find
    /// back. Empty means that it is not known, and nobody is.
    pub cluster_cidrs: Vec<IpNet>,
    /// The ranges of Services. What is sent there to an address that no Service has ends on this node.
    pub service_cidrs: Vec<IpNet>,
    /// Node ports are opened on this node's addresses in these ranges; empty means on all but the loopback's.
    pub node_port_addresses: Vec<IpNet>,
    /// Whether all that is sent to a Service's cluster address is masqueraded.
    pub masquerade_all: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node_name: String::new(),
            instance: "krate".into(),
            mode: BACKENDS[0].mode.into(),
            cluster_cidrs: Vec::new(),
            service_cidrs: Vec::new(),
            node_port_addresses: Vec::new(),
            masquerade_all: false,
        }
    }
}
