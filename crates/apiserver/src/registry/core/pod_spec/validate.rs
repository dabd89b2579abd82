//! The spec as a whole (`ValidatePodSpec`, `ValidatePodTemplateSpec` in `pkg/apis/core/validation`).

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{PodSpec, PodTemplateSpec};
use krate_api::{FieldErrors, FieldPath};

use super::containers::{self, Pod};
use super::{resources, scheduling, security, volumes};
use crate::registry::rules::{
    dns_label, dns_subdomain, each, in_range, label_name, labels, one_of, required_one_of, template_metadata,
};

pub fn template(template: &PodTemplateSpec, at: &FieldPath, errors: &mut FieldErrors) {
    template_metadata(template.metadata.as_ref(), &at.child("metadata"), errors);
    let at = at.child("spec");
    let empty = PodSpec::default();
    let s = template.spec.as_ref().unwrap_or(&empty);
    spec(s, &at, errors);
    if s.ephemeral_containers.as_ref().is_some_and(|e| !e.is_empty()) {
        errors
            .forbidden(&at.child("ephemeralContainers"), "ephemeral containers not allowed in pod template");
    }
}

pub fn spec(spec: &PodSpec, at: &FieldPath, errors: &mut FieldErrors) {
    volumes::volumes(spec, at, errors);
    volumes::resource_claims(spec, at, errors);
    containers::containers(&pod_of(spec), at, errors);
    required_one_of(
        spec.restart_policy.as_deref(),
        &["Always", "Never", "OnFailure"],
        &at.child("restartPolicy"),
        errors,
    );
    required_one_of(
        spec.dns_policy.as_deref(),
        &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"],
        &at.child("dnsPolicy"),
        errors,
    );
    labels(spec.node_selector.as_ref(), &at.child("nodeSelector"), errors);
    security::pod_context(spec, at, errors);
    for (i, secret) in spec.image_pull_secrets.iter().flatten().enumerate() {
        if secret.name.is_empty() {
            errors.required(&at.child("imagePullSecrets").index(i).child("name"), "");
        }
    }
    scheduling::scheduling(spec, at, errors);
    names(spec, at, errors);
    dns(spec, at, errors);
    for (i, gate) in spec.readiness_gates.iter().flatten().enumerate() {
        label_name(&gate.condition_type, &at.child("readinessGates").index(i).child("conditionType"), errors);
    }
    for (i, alias) in spec.host_aliases.iter().flatten().enumerate() {
        let at = at.child("hostAliases").index(i);
        crate::registry::rules::ip(&alias.ip, &at.child("ip"), errors);
        for (j, name) in alias.hostnames.iter().flatten().enumerate() {
            dns_subdomain(name, &at.child("hostnames").index(j), errors);
        }
    }
    if let Some(seconds) = spec.active_deadline_seconds {
        in_range(seconds, 1, i64::from(i32::MAX), &at.child("activeDeadlineSeconds"), errors);
    }
    if let Some(seconds) = spec.termination_grace_period_seconds
        && seconds < 0
    {
        errors.invalid(
            &at.child("terminationGracePeriodSeconds"),
            seconds,
            crate::registry::rules::NOT_NEGATIVE,
        );
    }
    if let Some(policy) = spec.preemption_policy.as_deref() {
        one_of(policy, &["Never", "PreemptLowerPriority"], &at.child("preemptionPolicy"), errors);
    }
    if let Some(amounts) = &spec.overhead {
        resources::overhead(amounts, &at.child("overhead"), errors);
    }
    if let Some(os) = &spec.os {
        let at = at.child("os").child("name");
        if os.name.is_empty() {
            errors.required(&at, "cannot be empty");
        } else {
            one_of(&os.name, &["linux", "windows"], &at, errors);
        }
    }
}

fn pod_of(spec: &PodSpec) -> Pod<'_> {
    Pod {
        spec,
        volumes: volumes::names(spec),
        claims: spec.resource_claims.iter().flatten().map(|c| c.name.as_str()).collect(),
    }
}

/// Containers added to a pod that runs.
pub fn ephemeral_containers(spec: &PodSpec, at: &FieldPath, errors: &mut FieldErrors) {
    containers::ephemeral(&pod_of(spec), at, errors);
}

/// Names of other objects, and the pod's own on the network.
fn names(spec: &PodSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let subdomains = [
        ("serviceAccountName", &spec.service_account_name),
        ("nodeName", &spec.node_name),
        ("priorityClassName", &spec.priority_class_name),
        ("runtimeClassName", &spec.runtime_class_name),
    ];
    for (name, value) in subdomains {
        if let Some(value) = value.as_deref().filter(|v| !v.is_empty()) {
            dns_subdomain(value, &at.child(name), errors);
        }
    }
    for (name, value) in [("hostname", &spec.hostname), ("subdomain", &spec.subdomain)] {
        if let Some(value) = value.as_deref().filter(|v| !v.is_empty()) {
            dns_label(value, &at.child(name), errors);
        }
    }
    if let Some(name) = &spec.hostname_override {
        let at = at.child("hostnameOverride");
        if spec.set_hostname_as_fqdn == Some(true) {
            errors.forbidden(&at, "may not be specified when setHostnameAsFQDN is true");
        }
        if spec.host_network == Some(true) {
            errors.forbidden(&at, "may not be specified when hostNetwork is true");
        }
        if name.len() > 64 {
            errors.too_long(&at, 64);
        }
        dns_subdomain(name, &at, errors);
    }
}

fn dns(spec: &PodSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let none = spec.dns_policy.as_deref() == Some("None");
    let at = at.child("dnsConfig");
    let Some(config) = &spec.dns_config else {
        if none {
            errors.required(&at, "must provide `dnsConfig` when `dnsPolicy` is None");
        }
        return;
    };
    let servers = config.nameservers.as_deref().unwrap_or_default();
    if none && servers.is_empty() {
        errors.required(
            &at.child("nameservers"),
            "must provide at least one DNS nameserver when `dnsPolicy` is None",
        );
    }
    if servers.len() > 3 {
        errors.invalid(&at.child("nameservers"), servers, "must not have more than 3 nameservers");
    }
    for (i, server) in servers.iter().enumerate() {
        if server.parse::<IpAddr>().is_err() {
            errors.invalid(&at.child("nameservers").index(i), server, crate::registry::rules::NOT_AN_IP);
        }
    }
    let searches = config.searches.as_deref().unwrap_or_default();
    if searches.len() > 32 {
        errors.invalid(&at.child("searches"), searches, "must not have more than 32 search paths");
    }
    if searches.join(" ").len() > 2048 {
        errors.invalid(
            &at.child("searches"),
            searches,
            "must not have more than 2048 characters (including spaces) in the search list",
        );
    }
    for (i, search) in searches.iter().enumerate() {
        let domain = search.strip_suffix('.').unwrap_or(search);
        if search != "." {
            let wrong = krate_api::names::is_dns1123_subdomain(&domain.replace('_', "-"));
            each(wrong, search, &at.child("searches").index(i), errors);
        }
    }
    for (i, option) in config.options.iter().flatten().enumerate() {
        if option.name.as_deref().is_none_or(str::is_empty) {
            errors.required(&at.child("options").index(i), "must not be empty");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn a_host_name_is_overridden_where_it_is_the_pods_own() {
        let said = |mut spec: Value, name: &str| {
            spec["containers"] = json!([]);
            spec["hostnameOverride"] = json!(name);
            let mut errors = FieldErrors::new();
            names(&serde_json::from_value(spec).expect("a spec"), &FieldPath::new("spec"), &mut errors);
            errors.aggregate()
        };
        assert_eq!(said(json!({"hostname": "a", "subdomain": "b"}), "c.example.com"), "[]");
        for (spec, name, wanted) in [
            (json!({"setHostnameAsFQDN": true}), "c", "may not be specified when setHostnameAsFQDN is true"),
            (json!({"hostNetwork": true}), "c", "may not be specified when hostNetwork is true"),
            (json!({}), "", "a lowercase RFC 1123 subdomain must consist of"),
            (json!({}), &*"c".repeat(65), "spec.hostnameOverride: Too long: may not be more than 64"),
        ] {
            let said = said(spec, name);
            assert!(said.contains(wanted) && said.starts_with("spec.hostnameOverride: "), "{said}");
        }
    }
}
