//! The one binary: its command line, and the wiring of components into a cluster.

mod datadir;
mod kubeconfig;
mod pki;

fn main() {}
