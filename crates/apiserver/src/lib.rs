//! The API server: the gatekeeper. Every request passes the same path (who, may, decode, default, admit, validate,
//! commit), whatever its kind; what is special to a kind is its [`registry::Strategy`].
//!
//! It alone writes to the store. It never calls a controller, and knows nothing of how a pod is run.

pub mod admission;
mod apiextensions;
pub mod auth;
pub mod bootstrap;
pub mod cel;
mod compress;
mod deadline;
pub mod discovery;
mod fairness;
mod health;
mod http;
mod impersonate;
mod instruments;
pub mod kinds;
mod limits;
pub mod listen;
mod metrics;
pub mod node_authorizer;
pub mod openapi;
pub mod options;
mod path;
mod proxy;
pub mod rbac;
pub mod registry;
mod request;
pub mod reviews;
mod routes;
pub mod server;
mod service;
mod storage;
mod yaml;

pub use auth::User;
pub use limits::Limits;
pub use server::{Config, Server, StartError};
pub use service::Service;
