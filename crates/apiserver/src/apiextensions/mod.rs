//! Custom resources: kinds that a CustomResourceDefinition adds while the server runs. They go the same way as all other
//! kinds: a definition gives each of its versions a row and an implementation of [`Registry`], and the rest of the
//! server does not know the difference.
//!
//! [`Registry`]: crate::registry::erased::Registry

mod conversion;
mod definition;
mod establish;
mod jsonpath;
mod names;
mod object;
mod prune;
mod registry;
mod row;
mod rules;
mod structural;
mod values;

pub use conversion::Converting;
pub use definition::check as check_schemas;
pub use establish::Establisher;
pub use jsonpath::{plain, set_plain};

/// Keeps a definition that is being deleted until its objects are gone.
pub const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";
