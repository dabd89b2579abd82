//! The API server: the gatekeeper. Every request passes the same path (who, may, decode, default, admit, validate,
//! commit), whatever its kind; what is special to a kind is its [`registry::Strategy`].
//!
//! It alone writes to the store. It never calls a controller, and knows nothing of how a pod is run.

pub mod bootstrap;
pub mod discovery;
pub mod node_authorizer;
pub mod rbac;
pub mod registry;
pub mod reviews;
