//! IPAddress: one address of the Services' ranges, and what has it.

use k8s_openapi::api::networking::v1::IPAddress;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use super::{path_segment, strict_ip};
use crate::registry::column::{name, text};
use crate::registry::rules::{IMMUTABLE, dns_subdomain};
use crate::registry::{Column, Strategy};

impl Strategy for IPAddress {
    const KIND: &'static Kind = &kinds::IP_ADDRESS;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text("ParentRef", "io.k8s.api.networking.v1.IPAddressSpec.parentRef", |a| {
            let parent = &a.spec.parent_ref;
            let some = |text: &Option<String>| text.clone().filter(|t| !t.is_empty());
            let group = some(&parent.group).map_or(String::new(), |group| format!(".{group}"));
            let namespace = some(&parent.namespace).map_or(String::new(), |n| format!("/{n}"));
            let resource = format!("{}{group}", parent.resource).to_lowercase();
            format!("{resource}{namespace}/{}", parent.name).into()
        }),
    ];

    /// The address itself, in its canonical form.
    fn validate_name(name: &str) -> Vec<String> {
        let mut errors = FieldErrors::new();
        strict_ip(name, &FieldPath::new(""), &mut errors);
        errors.iter().map(|error| error.detail.clone()).collect()
    }

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec").child("parentRef");
        let parent = &self.spec.parent_ref;
        if parent.name.is_empty() && parent.resource.is_empty() {
            errors.required(&at, "");
            return;
        }
        let text = |text: &Option<String>| text.clone().filter(|t| !t.is_empty());
        if let Some(group) = text(&parent.group) {
            dns_subdomain(&group, &at.child("group"), errors);
        }
        for (name, value) in [("resource", &parent.resource), ("name", &parent.name)] {
            path_segment(value, &at.child(name), errors);
        }
        if let Some(namespace) = text(&parent.namespace) {
            path_segment(&namespace, &at.child("namespace"), errors);
        }
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        if self.spec.parent_ref != old.spec.parent_ref {
            errors.invalid(&at.child("spec").child("parentRef"), &self.spec.parent_ref, IMMUTABLE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::erased::{Registry, Typed};
    use serde_json::{Value, json};

    fn address(parent: Value) -> IPAddress {
        serde_json::from_value(json!({"metadata": {"name": "10.0.0.1"}, "spec": {"parentRef": parent}}))
            .expect("an address")
    }

    #[test]
    fn an_address_has_one_name() {
        for (name, wrong) in [
            ("10.0.0.1", None),
            ("fd00::1", None),
            ("10.00.0.1", Some("must not have leading 0s")),
            ("::ffff:1.2.3.4", Some("must not be an IPv4-mapped IPv6 address")),
            ("FD00::1", Some("must be in canonical form (\"fd00::1\")")),
        ] {
            assert_eq!(IPAddress::validate_name(name).first().map(String::as_str), wrong, "{name}");
        }
    }

    #[test]
    fn the_parent_is_named_as_a_path_can_hold_it() {
        let mut errors = FieldErrors::new();
        address(json!({"group": "A", "resource": "a/b", "name": "n", "namespace": "x%"}))
            .validate(&FieldPath::new(""), &mut errors);
        let said: Vec<&str> = errors.iter().map(|e| e.field.as_str()).collect();
        assert_eq!(said, ["spec.parentRef.group", "spec.parentRef.resource", "spec.parentRef.namespace"]);
    }

    #[test]
    fn the_parent_is_shown_with_its_group() {
        let shown = |parent: Value| (IPAddress::COLUMNS[1].cell)(&address(parent));
        let gateway = json!({"group": "Gateway.test", "resource": "Gateways", "namespace": "n", "name": "g"});
        assert_eq!(shown(gateway), "gateways.gateway.test/n/g");
        assert_eq!(shown(json!({"resource": "services", "name": "s"})), "services/s");
    }

    #[test]
    fn addresses_are_selected_by_their_metadata_alone() {
        let addresses = <Typed<IPAddress> as Default>::default();
        assert_eq!(addresses.selectable_names(), ["metadata.name", "metadata.namespace"]);
    }
}
