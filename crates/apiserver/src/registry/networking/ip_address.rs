//! IPAddress: one address of the Services' ranges, and what has it.

use std::net::IpAddr;

use k8s_openapi::api::networking::v1::IPAddress;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use crate::registry::column::{name, text};
use crate::registry::rules::{IMMUTABLE, NOT_AN_IP};
use crate::registry::{Column, Selectable, Strategy};

impl Strategy for IPAddress {
    const KIND: &'static Kind = &kinds::IP_ADDRESS;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text("ParentRef", "io.k8s.api.networking.v1.IPAddressSpec.parentRef", |a| {
            let parent = &a.spec.parent_ref;
            let parts = [
                parent.group.as_deref().unwrap_or_default(),
                &parent.resource,
                parent.namespace.as_deref().unwrap_or_default(),
                &parent.name,
            ];
            let parts: Vec<&str> = parts.into_iter().filter(|p| !p.is_empty()).collect();
            parts.join("/").into()
        }),
    ];

    /// The address itself, in its canonical form.
    fn validate_name(name: &str) -> Vec<String> {
        match name.parse::<IpAddr>() {
            Err(_) => vec![NOT_AN_IP.to_owned()],
            Ok(ip) if ip.to_string() != name => {
                vec!["must be in canonical form (\"".to_owned() + &ip.to_string() + "\")"]
            }
            Ok(_) => Vec::new(),
        }
    }

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec").child("parentRef");
        let parent = &self.spec.parent_ref;
        if parent.name.is_empty() && parent.resource.is_empty() {
            errors.required(&at, "");
            return;
        }
        if parent.resource.is_empty() {
            errors.required(&at.child("resource"), "");
        }
        if parent.name.is_empty() {
            errors.required(&at.child("name"), "");
        }
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        if self.spec.parent_ref != old.spec.parent_ref {
            errors.invalid(&at.child("spec").child("parentRef"), &self.spec.parent_ref, IMMUTABLE);
        }
    }

    fn selectable(&self) -> Selectable {
        let parent = &self.spec.parent_ref;
        vec![
            ("spec.parentRef.resource", parent.resource.clone()),
            ("spec.parentRef.name", parent.name.clone()),
            ("spec.parentRef.namespace", parent.namespace.clone().unwrap_or_default()),
        ]
    }
}
