//! APIService: a group and version, and who serves it.

use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::{
    APIService, APIServiceCondition, APIServiceStatus,
};
use krate_api::names::{is_dns1035_label, is_path_segment_name, is_port_number};
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use crate::path::now;
use crate::registry::column::{age, name, text};
use crate::registry::prepare::spec_and_status;
use crate::registry::rules::{dns_subdomain, each, one_of};
use crate::registry::{Column, Context, Strategy};

impl Strategy for APIService {
    const KIND: &'static Kind = &kinds::API_SERVICE;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text("Service", "The reference to the service that hosts this API endpoint.", |a| {
            match a.spec.as_ref().and_then(|s| s.service.as_ref()) {
                Some(s) => {
                    let part = |p: &Option<String>| p.clone().unwrap_or_default();
                    format!("{}/{}", part(&s.namespace), part(&s.name)).into()
                }
                None => "Local".into(),
            }
        }),
        text("Available", "Whether this service is available.", |a| {
            let conditions = a.status.iter().flat_map(|s| s.conditions.iter().flatten());
            match conditions.into_iter().find(|c| c.type_ == "Available") {
                Some(c) => match c.reason.as_deref().filter(|reason| !reason.is_empty()) {
                    Some(reason) if c.status != "True" => format!("{} ({reason})", c.status).into(),
                    _ => c.status.as_str().into(),
                },
                None => "Unknown".into(),
            }
        }),
        age(),
    ];
    const ALLOW_UNCONDITIONAL_UPDATE: bool = false;

    fn default(&mut self) {
        if let Some(service) = &mut self.spec.get_or_insert_default().service {
            service.port.get_or_insert(443);
        }
        self.status.get_or_insert_default();
    }

    fn prepare_for_create(&mut self, _: &Context) {
        let is_local = self.spec.as_ref().is_none_or(|spec| spec.service.is_none());
        self.status = is_local.then(available);
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context) {
        self.status.clone_from(&old.status);
    }

    spec_and_status!(status alone);

    /// Any segment of a path: that of the core group is `v1.`.
    fn validate_name(name: &str) -> Vec<String> {
        is_path_segment_name(name, false)
    }

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let Some(spec) = &self.spec else { return };
        let part = |p: &Option<String>| p.clone().unwrap_or_default();
        let (group, version) = (part(&spec.group), part(&spec.version));
        let wanted = format!("{version}.{group}");
        let name = self.metadata.name.as_deref().unwrap_or_default();
        // A name that is none at all is told of already.
        if name != wanted && is_path_segment_name(name, false).is_empty() {
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
        each(is_dns1035_label(&version), &version, &at.child("version"), errors);
        for (name, value, most) in [
            ("groupPriorityMinimum", spec.group_priority_minimum, 20000),
            ("versionPriority", spec.version_priority, 1000),
        ] {
            if value <= 0 || value > most {
                errors.invalid(&at.child(name), value, format!("must be positive and less than {most}"));
            }
        }
        let insecure = spec.insecure_skip_tls_verify == Some(true);
        let bundle = spec.ca_bundle.as_ref().map_or(0, |bundle| bundle.0.len());
        match &spec.service {
            None => {
                if bundle > 0 {
                    let shown = format!("{bundle} bytes");
                    errors.invalid(&at.child("caBundle"), shown, "local APIServices may not have a caBundle");
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
                let port = service.port.unwrap_or(443);
                for why in is_port_number(i64::from(port)) {
                    errors.invalid(&at_service.child("port"), port, format!("port is not valid: {why}"));
                }
                if insecure && bundle > 0 {
                    errors.invalid(
                        &at.child("insecureSkipTLSVerify"),
                        true,
                        "may not be true if caBundle is present",
                    );
                }
            }
        }
    }

    fn validate_status_update(&self, _: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("status").child("conditions");
        let conditions = self.status.iter().flat_map(|status| status.conditions.iter().flatten());
        for (i, condition) in conditions.enumerate() {
            one_of(&condition.status, &["True", "False", "Unknown"], &at.index(i).child("status"), errors);
        }
    }
}

/// What is true of a group and version that this server serves itself.
fn available() -> APIServiceStatus {
    let condition = APIServiceCondition {
        type_: "Available".to_owned(),
        status: "True".to_owned(),
        reason: Some("Local".to_owned()),
        message: Some("Local APIServices are always available".to_owned()),
        last_transition_time: Some(now()),
    };
    APIServiceStatus { conditions: Some(vec![condition]) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn service(name: &str, change: impl FnOnce(&mut Value)) -> APIService {
        let mut spec =
            json!({"group": "example.com", "version": "v1", "groupPriorityMinimum": 1, "versionPriority": 1});
        change(&mut spec);
        let all = json!({"metadata": {"name": name, "labels": {"a": "1"}}, "spec": spec});
        let mut service: APIService = serde_json::from_value(all).expect("an APIService");
        service.default();
        service
    }

    fn told(service: &APIService) -> Vec<String> {
        let mut errors = FieldErrors::new();
        service.validate(&FieldPath::new(""), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_served_here_is_available_from_the_start() {
        let mut local = service("v1.example.com", |_| ());
        local.prepare_for_create(&Context::default());
        let conditions = local.status.and_then(|status| status.conditions).expect("a condition");
        assert_eq!(conditions[0].reason.as_deref(), Some("Local"));
        let mut remote =
            service("v1.example.com", |spec| spec["service"] = json!({"name": "s", "namespace": "n"}));
        remote.prepare_for_create(&Context::default());
        assert_eq!(remote.status, None);
    }

    #[test]
    fn a_version_is_a_label_of_old() {
        assert_eq!(told(&service("v1.example.com", |_| ())), [""; 0]);
        let told_of = told(&service("1.example.com", |spec| spec["version"] = "1".into()));
        assert!(
            told_of[0].starts_with("spec.version: Invalid value: \"1\": a DNS-1035 label"),
            "{told_of:?}"
        );
        let wrong = service("v1.example.com", |spec| {
            spec["service"] = json!({"name": "s", "namespace": "n", "port": 70000});
        });
        assert_eq!(
            told(&wrong),
            [
                "spec.service.port: Invalid value: 70000: port is not valid: must be between 1 and 65535, inclusive"
            ]
        );
        let bundle = service("v1.example.com", |spec| spec["caBundle"] = "AAAA".into());
        assert_eq!(
            told(&bundle),
            ["spec.caBundle: Invalid value: \"3 bytes\": local APIServices may not have a caBundle"]
        );
    }

    #[test]
    fn who_writes_the_status_writes_nothing_else() {
        let (mut new, old) = (service("v1.example.com", |_| ()), service("v1.example.com", |_| ()));
        new.metadata.labels = None;
        new.status = serde_json::from_value(json!({"conditions": [{"type": "a", "status": "Perhaps"}]})).ok();
        new.prepare_for_status_update(&old, &Context::default());
        assert_eq!(new.metadata.labels, old.metadata.labels);
        let mut errors = FieldErrors::new();
        new.validate_status_update(&old, &FieldPath::new(""), &mut errors);
        assert_eq!(
            errors.aggregate(),
            "status.conditions[0].status: Unsupported value: \"Perhaps\": supported values: \"True\", \"False\", \
             \"Unknown\""
        );
    }
}
