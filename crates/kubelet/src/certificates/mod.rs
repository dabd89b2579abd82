//! The certificates of a kubelet: the one by which it is known to the API server, and the one that it serves. Both are asked
//! of the API server where that is configured, and replaced while they are in use.
//!
//! No key of these leaves the machine: what is asked for is signed elsewhere.

mod access;
mod figures;
mod manager;
mod request;
mod serving;
mod store;

pub use access::{Access, AccessError, Beginning};
pub use serving::{Serving, ServingError, serving};

/// Writes what is told of them.
pub fn write_figures(shared: &crate::shared::Shared, out: &mut String) {
    if let Some(identity) = &shared.config.identity {
        figures::CLIENT.write(out, identity);
    }
    if let (Serving::Requested { .. }, Some(current)) = (&shared.config.serving, &shared.serving) {
        figures::SERVING.write(out, current);
    }
}
