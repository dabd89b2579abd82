//! The vocabulary of Krate: what every other crate means by a kind, a name, a quantity, a selector, a patch, a
//! `Status`. Typed objects themselves are `k8s-openapi`'s.
//!
//! This crate never does I/O and is never async: all of it is functions over values.

pub mod boolean;
pub mod docs;
pub mod duration;
pub mod features;
pub mod field;
pub mod json;
pub mod kind;
pub mod kinds;
pub mod managed;
pub mod meta;
pub mod names;
pub mod patch;
pub mod placement;
pub mod protobuf;
pub mod quantity;
pub mod quota;
pub mod schema;
pub mod selector;
pub mod status;

pub use field::{FieldError, FieldErrors, FieldPath};
pub use kind::{Gvk, Gvr, Kind, Scope, Subresource, Verbs};
pub use quantity::Quantity;
pub use selector::{FieldSelector, LabelSelector};
pub use status::{Reason, StatusError};
