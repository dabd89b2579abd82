//! The built-in container runtime: a CRI v1 server over a unix socket, with images, overlay snapshots, pod
//! sandboxes, containers by `libcontainer`, and the streams of exec, attach and port-forward. What runs is held by
//! one small shim process a pod, which outlives the server; the server finds everything again after it was killed.
//! It knows nothing of the API server, and of the pod network only [`PodNetwork`].

mod cdi;
mod cgroup;
mod config;
pub mod image;
mod mount;
mod oci;
pub mod reexec;
mod server;
mod shim;
mod snapshot;
mod starting;
mod streaming;
mod userns;

pub use config::{
    Config, Loopback, NetworkError, PodAddresses, PodIdentity, PodNetwork, PortMapping, Protocol, Registries,
};
pub use server::{ServeError, serve};
pub use streaming::spdy;
