//! Certificates on request.

pub mod certificate_signing_request;
pub mod metrics;
