//! Custom resources: kinds that a CustomResourceDefinition adds while the server runs. They go the same way as all other
//! kinds: a definition gives each of its versions a row and an implementation of [`Registry`], and the rest of the
//! server does not know the difference.
//!
//! [`Registry`]: crate::registry::erased::Registry

mod approval;
mod conversion;
pub(crate) mod declared;
mod embedded;
mod establish;
mod jsonpath;
mod lists;
pub(crate) mod metrics;
mod names;
mod object;
mod prune;
mod registry;
mod row;
mod rules;
mod scalars;
mod structural;
pub mod validation;
mod values;

pub use conversion::Converting;
pub use establish::{Establisher, mark_terminating};
pub use jsonpath::{plain, set_plain};
pub use row::text;

/// Keeps a definition that is being deleted until its objects are gone.
pub const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";
