//! Encryption at rest: what of the cluster's objects is unreadable to whoever reads the store's disk, and by which keys.
//!
//! A [`Configuration`] (`apiserver.config.k8s.io/v1`) says which resources are encrypted by which providers.
//! [`Encryption`] is what it amounts to, and can be replaced while it is used; [`Sealed`] is a store that keeps every
//! value as it says. The form of what is kept is upstream's, byte for byte: `k8s:enc:<provider>:v1:<key>:` and what
//! the provider made of the value, which stands and falls with the key that it is stored under.
//!
//! This crate reads no files and knows no kinds but by the places of their objects.

mod cipher;
mod config;
mod encryption;
mod error;
pub mod kms;
mod metrics;
mod provider;
mod resources;
mod sealed;
mod validate;

pub use config::{API_VERSION, Configuration, KIND, Key, Keys, Kms, Nothing, Provider, Resource};
pub use encryption::Encryption;
pub use error::Error;
pub use sealed::Sealed;
