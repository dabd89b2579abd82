//! APIService: a group and version, and who serves it.

use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use crate::registry::column::{age, name, text};
use crate::registry::prepare::spec_and_status;
use crate::registry::rules::{dns_label, dns_subdomain, port};
use crate::registry::{Column, Strategy};

impl Strategy for APIService {
    const KIND: &'static Kind = &kinds::API_SERVICE;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text("Service", "The Service behind it, or Local.", |a| {
            match a.spec.as_ref().and_then(|s| s.service.as_ref()) {
                Some(s) => {
                    let part = |p: &Option<String>| p.clone().unwrap_or_default();
                    format!("{}/{}", part(&s.namespace), part(&s.name)).into()
                }
                None => "Local".into(),
            }
        }),
        text("Available", "Whether it can be reached.", |a| {
            let conditions = a.status.iter().flat_map(|s| s.conditions.iter().flatten());
            match conditions.into_iter().find(|c| c.type_ == "Available") {
                Some(c) if c.status == "True" => "True".into(),
                Some(c) => format!("{} ({})", c.status, c.reason.as_deref().unwrap_or_default()).into(),
                None => "Unknown".into(),
            }
        }),
        age(),
    ];

    fn default(&mut self) {
        if let Some(service) = &mut self.spec.get_or_insert_default().service {
            service.port.get_or_insert(443);
        }
        self.status.get_or_insert_default();
    }

    spec_and_status!(uncounted);

    /// Any segment of a path: that of the core group is `v1.`.
    fn validate_name(name: &str) -> Vec<String> {
        if name.contains('/') || name.contains('%') || name == "." || name == ".." {
            return vec!["may not contain '/'".to_owned()];
        }
        Vec::new()
    }

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let Some(spec) = &self.spec else { return };
        let part = |p: &Option<String>| p.clone().unwrap_or_default();
        let (group, version) = (part(&spec.group), part(&spec.version));
        let wanted = format!("{version}.{group}");
        let name = self.metadata.name.as_deref().unwrap_or_default();
        if name != wanted {
            errors.invalid(
                &at.child("metadata").child("name"),
                name,
                format!("must be `spec.version+\".\"+spec.group`: {wanted:?}"),
            );
        }
        let at = at.child("spec");
        if group.is_empty() {
            if version != "v1" {
                errors.required(
                    &at.child("group"),
                    "only v1 may have an empty group and it better be legacy kube",
                );
            }
        } else {
            dns_subdomain(&group, &at.child("group"), errors);
        }
        dns_label(&version, &at.child("version"), errors);
        for (name, value, most) in [
            ("groupPriorityMinimum", spec.group_priority_minimum, 20000),
            ("versionPriority", spec.version_priority, 1000),
        ] {
            if value <= 0 || value > most {
                errors.invalid(&at.child(name), value, format!("must be positive and less than {most}"));
            }
        }
        let insecure = spec.insecure_skip_tls_verify == Some(true);
        let bundle = spec.ca_bundle.as_ref().is_some_and(|b| !b.0.is_empty());
        match &spec.service {
            None => {
                if bundle {
                    errors.invalid(&at.child("caBundle"), "", "local APIServices may not have a caBundle");
                }
                if insecure {
                    errors.invalid(
                        &at.child("insecureSkipTLSVerify"),
                        true,
                        "local APIServices may not have insecureSkipTLSVerify",
                    );
                }
            }
            Some(service) => {
                let at_service = at.child("service");
                for (name, value) in [("namespace", &service.namespace), ("name", &service.name)] {
                    if value.as_deref().is_none_or(str::is_empty) {
                        errors.required(&at_service.child(name), "");
                    }
                }
                port(service.port.unwrap_or(443), &at_service.child("port"), errors);
                if insecure && bundle {
                    errors.invalid(
                        &at.child("insecureSkipTLSVerify"),
                        true,
                        "may not be true if caBundle is present",
                    );
                }
            }
        }
    }
}
