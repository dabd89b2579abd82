//! From CRI's words for a container to those of the OCI runtime specification.

pub mod apparmor;
pub mod capabilities;
pub mod devices;
pub mod mounts;
pub mod process;
pub mod resources;
pub mod seccomp;
pub mod spec;
pub mod user;
