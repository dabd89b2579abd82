//! Certificates on request, and whom their signers have others believe.

pub mod certificate_signing_request;
pub mod cluster_trust_bundle;
pub mod metrics;
pub mod pod_certificate_request;
mod pod_certificate_status;
mod public_key;
pub mod signer;

pub use pod_certificate_status::conditions;
