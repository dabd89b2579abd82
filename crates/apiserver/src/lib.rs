//! The API server: the gatekeeper. Every request passes the same path (who, may, decode, default, admit, validate,
//! commit), whatever its kind; what is special to a kind is its [`registry::Strategy`].
//!
//! It alone writes to the store. It never calls a controller, and knows nothing of how a pod is run.

pub mod admission;
mod aggregation;
mod apiextensions;
pub mod audit;
pub mod auth;
pub mod bootstrap;
mod browsers;
pub mod cel;
mod compress;
mod config_file;
mod deadline;
mod debugging;
pub mod discovery;
mod elsewhere;
pub mod encryption;
mod fairness;
pub mod features;
mod formats;
#[doc(hidden)]
pub mod fuzzing;
mod head;
mod health;
mod http;
mod identity;
mod impersonate;
mod instruments;
pub mod kinds;
mod limits;
pub mod listen;
mod logs;
mod metrics;
pub mod node_authorizer;
pub mod openapi;
pub mod options;
mod path;
mod proxy;
pub mod rbac;
mod reach;
pub mod registry;
mod request;
pub mod reviews;
mod routes;
pub mod server;
mod service;
mod spans;
mod storage;
mod yaml;

pub use auth::User;
pub use debugging::Debugging;
pub use encryption::EncryptionFile;
pub use limits::Limits;
pub use server::{Config, Server, StartError};
pub use service::Service;
pub use spans::Tracing;
