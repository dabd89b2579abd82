//! Volumes of CSI drivers: the drivers announce themselves and are listed in the node's `CSINode`, and make volumes ready
//! for the node and for its pods.

pub mod api;
mod client;
mod drivers;
mod node_info;

pub use client::OPERATIONS;
pub use drivers::{CsiPlugins, Drivers};
