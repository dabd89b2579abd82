//! How traffic comes in, and what of it may pass.

pub mod domain_path;
pub mod ingress;
pub mod ingress_class;
pub mod ip_address;
pub mod network_policy;
pub mod service_cidr;

use std::net::IpAddr;

use k8s_openapi::api::core::v1::TypedLocalObjectReference;
use krate_api::{FieldErrors, FieldPath};

use super::core::addresses::legacy_ip;
use super::rules::{dns_subdomain, path_segment};

/// What another object is: its group, its kind and its name.
fn reference(to: &TypedLocalObjectReference, at: &FieldPath, errors: &mut FieldErrors) {
    if let Some(group) = &to.api_group {
        dns_subdomain(group, &at.child("apiGroup"), errors);
    }
    path_segment(&to.kind, &at.child("kind"), errors);
    path_segment(&to.name, &at.child("name"), errors);
}

/// An address that is written in the one way that there is for it.
pub fn strict_ip(value: &str, at: &FieldPath, errors: &mut FieldErrors) -> bool {
    if !legacy_ip(value, &[], at, errors) {
        return false;
    }
    canonical(value, value.parse::<IpAddr>().map(|ip| ip.to_string()).ok(), at, errors)
}

/// Whether a value is written as its canonical form is.
fn canonical(value: &str, form: Option<String>, at: &FieldPath, errors: &mut FieldErrors) -> bool {
    match form {
        Some(form) if form != value => {
            errors.invalid(at, value, format!("must be in canonical form (\"{form}\")"));
            false
        }
        _ => true,
    }
}
