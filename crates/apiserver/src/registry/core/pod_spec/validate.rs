//! The spec as a whole (`ValidatePodSpec`, `ValidatePodTemplateSpec` in `pkg/apis/core/validation`).

use k8s_openapi::api::core::v1::{PodSchedulingGroup, PodSpec, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use krate_api::names::regex_error;
use krate_api::{FieldErrors, FieldPath};

use super::containers::{self, Pod};
use super::{annotations, claims, env, os, pod_level, resources, scheduling, security, volumes};
use crate::registry::core::addresses::legacy_ip;
use crate::registry::rules::{
    dns_label, dns_subdomain, each, in_range, label_name, labels, required_one_of, template_metadata,
};

pub fn template(template: &PodTemplateSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let empty = PodSpec::default();
    let s = template.spec.as_ref().unwrap_or(&empty);
    let (at_meta, at) = (at.child("metadata"), at.child("spec"));
    template_metadata(template.metadata.as_ref(), &at_meta, errors);
    let noted = template.metadata.as_ref().and_then(|meta| meta.annotations.as_ref());
    if let Some(noted) = noted {
        annotations::check(noted, s, &at_meta.child("annotations"), errors);
    }
    spec(s, None, &at, errors);
    if let Some(noted) = noted {
        annotations::match_fields(noted, s, &at, errors);
    }
    if s.ephemeral_containers.as_ref().is_some_and(|e| !e.is_empty()) {
        errors
            .forbidden(&at.child("ephemeralContainers"), "ephemeral containers not allowed in pod template");
    }
}

/// What is checked of a pod whenever it is written, beyond what a template of it must be.
pub fn pod(meta: &ObjectMeta, s: &PodSpec, at: &FieldPath, errors: &mut FieldErrors) {
    if let Some(noted) = &meta.annotations {
        annotations::check(noted, s, &at.child("metadata").child("annotations"), errors);
    }
    let at = at.child("spec");
    spec(s, Some(meta), &at, errors);
    tokens(s, &at, errors);
    containers::only_for_pods(s, &at, errors);
}

/// A token is of the account that the pod runs as.
fn tokens(spec: &PodSpec, at: &FieldPath, errors: &mut FieldErrors) {
    if spec.service_account_name.as_deref().is_some_and(|name| !name.is_empty()) {
        return;
    }
    for (i, v) in spec.volumes.iter().flatten().enumerate() {
        let sources = v.projected.iter().flat_map(|p| p.sources.iter().flatten());
        for (j, _) in sources.enumerate().filter(|(_, source)| source.service_account_token.is_some()) {
            let at = at.child("volumes").index(i).child("projected").child("sources").index(j);
            let why = "must not be specified when serviceAccountName is not set";
            errors.forbidden(&at.child("serviceAccountToken"), why);
        }
    }
}

/// `of` is the metadata of a pod; none for a template of one.
fn spec(spec: &PodSpec, of: Option<&ObjectMeta>, at: &FieldPath, errors: &mut FieldErrors) {
    if spec.termination_grace_period_seconds.is_none() {
        errors.required(&at.child("terminationGracePeriodSeconds"), "");
    }
    let volumes = volumes::volumes(spec, of, at, errors);
    claims::resource_claims(spec, of, at, errors);
    let names = spec.resource_claims.iter().flatten().map(|c| c.name.as_str());
    let pod = Pod { spec, volumes, claims: names.filter(|name| !name.is_empty()).collect() };
    containers::containers(&pod, at, errors);
    pod_level::check(spec, &pod.claims, at, errors);
    containers::ports_of_the_host(spec, of.is_some(), at, errors);
    required_one_of(
        spec.restart_policy.as_deref(),
        &["Always", "OnFailure", "Never"],
        &at.child("restartPolicy"),
        errors,
    );
    required_one_of(
        spec.dns_policy.as_deref(),
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
        &at.child("dnsPolicy"),
        errors,
    );
    labels(spec.node_selector.as_ref(), &at.child("nodeSelector"), errors);
    security::pod_context(spec, at, errors);
    scheduling::scheduling(spec, at, errors);
    os::host_processes(spec, at, errors);
    security::own_users(spec, at, errors);
    names_of(spec, at, errors);
    dns(spec, at, errors);
    for (i, gate) in spec.readiness_gates.iter().flatten().enumerate() {
        label_name(&gate.condition_type, &at.child("readinessGates").index(i).child("conditionType"), errors);
    }
    for (i, alias) in spec.host_aliases.iter().flatten().enumerate() {
        let at = at.child("hostAliases").index(i);
        legacy_ip(&alias.ip, &[], &at.child("ip"), errors);
        for (j, name) in alias.hostnames.iter().flatten().enumerate() {
            dns_subdomain(name, &at.child("hostnames").index(j), errors);
        }
    }
    if let Some(seconds) = spec.active_deadline_seconds {
        in_range(seconds, 1, i64::from(i32::MAX), &at.child("activeDeadlineSeconds"), errors);
    }
    if spec.preemption_policy.is_some() {
        required_one_of(
            spec.preemption_policy.as_deref(),
            &["PreemptLowerPriority", "Never"],
            &at.child("preemptionPolicy"),
            errors,
        );
    }
    if let Some(amounts) = &spec.overhead {
        resources::overhead(amounts, &at.child("overhead"), errors);
    }
    os::system(spec, at, errors);
    if let Some(group) = &spec.scheduling_group {
        scheduling_group(group, &at.child("schedulingGroup").child("podGroupName"), errors);
    }
    env::files(spec, at, errors);
}

fn scheduling_group(group: &PodSchedulingGroup, at: &FieldPath, errors: &mut FieldErrors) {
    match &group.pod_group_name {
        None => errors.invalid(at, None::<&str>, "must specify one of: `podGroupName`"),
        Some(name) => dns_subdomain(name, at, errors),
    }
}

/// Names of other objects, and the pod's own on the network.
fn names_of(spec: &PodSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let subdomains = [
        ("serviceAccountName", &spec.service_account_name),
        ("nodeName", &spec.node_name),
        ("priorityClassName", &spec.priority_class_name),
    ];
    // Here an empty name is one, and none at all is not.
    if let Some(name) = &spec.runtime_class_name {
        dns_subdomain(name, &at.child("runtimeClassName"), errors);
    }
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
        return;
    }
    if servers.len() > 3 {
        errors.invalid(&at.child("nameservers"), servers, "must not have more than 3 nameservers");
    }
    for (i, server) in servers.iter().enumerate() {
        legacy_ip(server, &[], &at.child("nameservers").index(i), errors);
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
    for (i, search) in searches.iter().enumerate().filter(|(_, search)| *search != ".") {
        let domain = search.strip_suffix('.').unwrap_or(search);
        each(search_domain(domain), domain, &at.child("searches").index(i), errors);
    }
    for (i, option) in config.options.iter().flatten().enumerate() {
        if option.name.as_deref().is_none_or(str::is_empty) {
            errors.required(&at.child("options").index(i), "must not be empty");
        }
    }
}

/// A domain to look for names in, whose parts may have underscores, also at their beginning (KEP-4427).
fn search_domain(domain: &str) -> Vec<String> {
    const LABEL: &str = "_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?";
    let is_word = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_label = |label: &str| {
        let rest = label.strip_prefix('_').unwrap_or(label).as_bytes();
        rest.first().is_some_and(|c| is_word(*c))
            && rest.last().is_some_and(|c| is_word(*c))
            && rest.iter().all(|c| is_word(*c) || *c == b'-' || *c == b'_')
    };
    let mut wrong = Vec::new();
    if domain.len() > 253 {
        wrong.push("must be no more than 253 bytes".to_owned());
    }
    if !domain.split('.').all(is_label) {
        wrong.push(regex_error(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and \
             must start and end with an alphanumeric character",
            &format!("{LABEL}(\\.{LABEL})*"),
            &["example.com"],
        ));
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::core::addresses::NOT_AN_IP;
    use serde_json::{Value, json};

    #[test]
    fn a_host_name_is_overridden_where_it_is_the_pods_own() {
        let said = |mut spec: Value, name: &str| {
            spec["containers"] = json!([]);
            spec["hostnameOverride"] = json!(name);
            let mut errors = FieldErrors::new();
            names_of(&serde_json::from_value(spec).expect("a spec"), &FieldPath::new("spec"), &mut errors);
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

    fn judged(meta: Value, rest: Value) -> String {
        let mut spec = json!({"containers": [{"name": "c", "image": "i"}]});
        spec.as_object_mut().expect("a map").extend(rest.as_object().cloned().unwrap_or_default());
        let mut spec = serde_json::from_value(spec).expect("a spec");
        super::super::default_spec(&mut spec);
        let meta = serde_json::from_value(meta).expect("metadata");
        let mut errors = FieldErrors::new();
        pod(&meta, &spec, &FieldPath::new(""), &mut errors);
        errors.aggregate()
    }

    #[test]
    fn what_upstream_only_warns_of_is_allowed() {
        for spec in
            [json!({"imagePullSecrets": [{"name": ""}]}), json!({"terminationGracePeriodSeconds": -1})]
        {
            assert_eq!(judged(json!({"name": "p"}), spec), "[]");
        }
    }

    #[test]
    fn what_is_supported_is_told_in_upstreams_order() {
        for (spec, told) in [
            (
                json!({"restartPolicy": "x"}),
                "spec.restartPolicy: Unsupported value: \"x\": supported values: \"Always\", \"OnFailure\", \"Never\"",
            ),
            (
                json!({"dnsPolicy": "x"}),
                "spec.dnsPolicy: Unsupported value: \"x\": supported values: \"ClusterFirstWithHostNet\", \
                 \"ClusterFirst\", \"Default\", \"None\"",
            ),
            (
                json!({"preemptionPolicy": "x"}),
                "spec.preemptionPolicy: Unsupported value: \"x\": supported values: \"PreemptLowerPriority\", \"Never\"",
            ),
        ] {
            assert_eq!(judged(json!({"name": "p"}), spec), told);
        }
    }

    #[test]
    fn domains_to_search_may_have_underscores() {
        let said = |domain: &str| judged(json!({"name": "p"}), json!({"dnsConfig": {"searches": [domain]}}));
        for sound in ["_sip._tcp.abc_d.example.com", "example.com.", "."] {
            assert_eq!(said(sound), "[]");
        }
        assert_eq!(
            said("__a.b."),
            "spec.dnsConfig.searches[0]: Invalid value: \"__a.b\": a lowercase RFC 1123 subdomain must consist of \
             lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric \
             character (e.g. 'example.com', regex used for validation is \
             '_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*')"
        );
    }

    #[test]
    fn addresses_are_written_in_one_way() {
        let said = |ip: &str| {
            judged(
                json!({"name": "p"}),
                json!({"hostAliases": [{"ip": ip}], "dnsConfig": {"nameservers": [ip]}}),
            )
        };
        assert_eq!(said("FD00::1"), "[]");
        for (ip, why) in [
            ("::ffff:1.2.3.4", "must not be an IPv4-mapped IPv6 address"),
            ("010.0.0.1", "must not have leading 0s"),
            ("x", NOT_AN_IP),
        ] {
            assert_eq!(
                said(ip),
                format!(
                    "[spec.dnsConfig.nameservers[0]: Invalid value: \"{ip}\": {why}, \
                     spec.hostAliases[0].ip: Invalid value: \"{ip}\": {why}]"
                )
            );
        }
    }

    #[test]
    fn a_token_is_of_an_account() {
        let volume = json!([{"name": "v", "projected": {"sources": [
            {"serviceAccountToken": {"path": "t", "expirationSeconds": 3600}}]}}]);
        let named = json!({"serviceAccountName": "a", "volumes": volume});
        assert_eq!(judged(json!({"name": "p"}), named), "[]");
        assert_eq!(
            judged(json!({"name": "p"}), json!({"volumes": volume})),
            "spec.volumes[0].projected.sources[0].serviceAccountToken: Forbidden: must not be specified when \
             serviceAccountName is not set"
        );
    }

    #[test]
    fn what_is_noted_of_a_pod_is_checked() {
        let meta = json!({"name": "p", "annotations": {"controller.kubernetes.io/pod-deletion-cost": "x"}});
        assert_eq!(
            judged(meta, json!({})),
            "metadata.annotations[controller.kubernetes.io/pod-deletion-cost]: Invalid value: \"x\": must be a 32bit \
             integer"
        );
    }
}
