//! What a node may say of a pod (`ValidatePodStatusUpdate`).

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    Container, ContainerRestartRule, ContainerStatus, Pod, PodCondition, PodSpec, PodStatus,
};
use krate_api::{FieldErrors, FieldPath};
use serde::Serialize;

use super::container_status::{self, extended_claim};
use super::visit::inits;
use crate::registry::core::addresses::{ip_warning, legacy_ip, sloppy_ip};
use crate::registry::rules::{IMMUTABLE, dns_subdomain, label_name};

/// The conditions that Kubernetes itself sets.
const OWN: [&str; 3] = ["PodScheduled", "Ready", "Initialized"];
const NO_GENERATION: &str = "must be a non-negative integer";

/// `at` is the status' place.
pub fn status(new: &Pod, old: &Pod, at: &FieldPath, errors: &mut FieldErrors) {
    let (no_spec, no_status) = (PodSpec::default(), PodStatus::default());
    let spec = old.spec.as_ref().unwrap_or(&no_spec);
    let (is, was) = (new.status.as_ref().unwrap_or(&no_status), old.status.as_ref().unwrap_or(&no_status));
    conditions(is.conditions.as_deref().unwrap_or_default(), &at.child("conditions"), errors);
    nomination(is, was, spec, &at.child("nominatedNodeName"), errors);
    if let Some(generation) = is.observed_generation.filter(|generation| *generation < 0) {
        errors.invalid(&at.child("observedGeneration"), generation, NO_GENERATION);
    }
    let class = |status: &PodStatus| status.qos_class.clone().unwrap_or_default();
    if class(is) != class(was) {
        errors.invalid(&at.child("qosClass"), class(is), IMMUTABLE);
    }
    if !any_restarts_all(spec) {
        let lists = [
            ("containerStatuses", &is.container_statuses, &was.container_statuses, &*spec.containers),
            ("initContainerStatuses", &is.init_container_statuses, &was.init_container_statuses, inits(spec)),
        ];
        for (name, is, was, containers) in lists {
            let restarts = |name: &str, code| {
                let container = containers.iter().find(|c| c.name == name);
                container.is_some_and(|c| restarts(c, spec, code))
            };
            ended(is.as_deref(), was.as_deref(), restarts, &at.child(name), errors);
        }
    }
    ended(
        is.ephemeral_container_statuses.as_deref(),
        was.ephemeral_container_statuses.as_deref(),
        |_, _| false,
        &at.child("ephemeralContainerStatuses"),
        errors,
    );
    claims(is, spec, &at.child("resourceClaimStatuses"), errors);
    extended_claim(is, spec, &at.child("extendedResourceClaimStatus"), errors);
    pod_ips(is, was, &at.child("podIPs"), errors);
    host_ips(is, was, &at.child("hostIPs"), errors);
    container_status::check(is, spec, at, errors);
}

fn conditions(all: &[PodCondition], at: &FieldPath, errors: &mut FieldErrors) {
    for (i, c) in all.iter().enumerate() {
        let at = at.index(i);
        if let Some(generation) = c.observed_generation.filter(|generation| *generation < 0) {
            errors.invalid(&at.child("observedGeneration"), generation, NO_GENERATION);
        }
        if !OWN.contains(&c.type_.as_str()) {
            label_name(&c.type_, &at.child("Type"), errors);
        }
    }
}

/// A pod that has its node waits for no other (KEP-5278).
fn nomination(new: &PodStatus, old: &PodStatus, spec: &PodSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let name = |status: &PodStatus| status.nominated_node_name.clone().unwrap_or_default();
    let (is, was) = (name(new), name(old));
    if is == was || is.is_empty() {
        return;
    }
    dns_subdomain(&is, at, errors);
    if spec.node_name.as_deref().is_some_and(|node| !node.is_empty()) {
        errors.forbidden(at, "may not be set on pods that are already bound to a node");
    }
}

fn any_restarts_all(spec: &PodSpec) -> bool {
    let mut all = spec.containers.iter().chain(inits(spec));
    all.any(|c| c.restart_policy_rules.iter().flatten().any(|rule| rule.action == "RestartAllContainers"))
}

/// Whether a container is started again that has ended so (KEP-5307).
fn restarts(c: &Container, spec: &PodSpec, code: i32) -> bool {
    let by_policy = |policy: Option<&str>| match policy {
        Some("Always") => Some(true),
        Some("OnFailure") => Some(code != 0),
        Some("Never") => Some(false),
        _ => None,
    };
    let of_pod = || by_policy(spec.restart_policy.as_deref()).unwrap_or(true);
    let Some(policy) = c.restart_policy.as_deref() else { return of_pod() };
    let mut rules = c.restart_policy_rules.iter().flatten().filter(|rule| is_for(rule, code));
    let by_rule = rules.next().is_some_and(|rule| rule.action == "Restart");
    by_rule || by_policy(Some(policy)).unwrap_or_else(of_pod)
}

fn is_for(rule: &ContainerRestartRule, code: i32) -> bool {
    let Some(codes) = &rule.exit_codes else { return false };
    let is_listed = codes.values.iter().flatten().any(|value| *value == code);
    match codes.operator.as_str() {
        "In" => is_listed,
        "NotIn" => !is_listed,
        _ => false,
    }
}

/// What has ended for good stays so.
fn ended(
    new: Option<&[ContainerStatus]>,
    old: Option<&[ContainerStatus]>,
    restarts: impl Fn(&str, i32) -> bool,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    let end = |status: &ContainerStatus| {
        status.state.as_ref().and_then(|state| state.terminated.as_ref()).map(|end| end.exit_code)
    };
    for (i, was) in old.unwrap_or_default().iter().enumerate() {
        let Some(code) = end(was) else { continue };
        let runs = new.unwrap_or_default().iter().any(|is| is.name == was.name && end(is).is_none());
        if runs && !restarts(&was.name, code) {
            errors.forbidden(&at.index(i).child("state"), "may not be transitioned to non-terminated state");
        }
    }
}

fn claims(status: &PodStatus, spec: &PodSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let mut seen = BTreeSet::new();
    for (i, claim) in status.resource_claim_statuses.iter().flatten().enumerate() {
        let at = at.index(i);
        if !spec.resource_claims.iter().flatten().any(|known| known.name == claim.name) {
            let why = "must match the name of an entry in `spec.resourceClaims`";
            errors.invalid(&at.child("name"), &claim.name, why);
        }
        if !seen.insert(&claim.name) {
            errors.duplicate(&at.child("name"), &claim.name);
        }
        if let Some(name) = &claim.resource_claim_name {
            dns_subdomain(name, &at.child("resourceClaimName"), errors);
        }
    }
}

fn pod_ips(new: &PodStatus, old: &PodStatus, at: &FieldPath, errors: &mut FieldErrors) {
    let all = |status: &PodStatus| -> Vec<String> {
        status.pod_ips.iter().flatten().map(|each| each.ip.clone()).collect()
    };
    addresses(&all(new), &all(old), at, errors);
}

fn host_ips(new: &PodStatus, old: &PodStatus, at: &FieldPath, errors: &mut FieldErrors) {
    let all = |status: &PodStatus| -> Vec<String> {
        status.host_ips.iter().flatten().map(|each| each.ip.clone()).collect()
    };
    let is = all(new);
    let Some(first) = is.first() else { return };
    if new.host_ip.as_deref().unwrap_or_default() != first {
        errors.invalid(&at.index(0).child("ip"), first, "must be equal to `hostIP`");
    }
    addresses(&is, &all(old), at, errors);
}

const ONE_OF_EACH: &str = "may specify no more than one IP for each IP family";

/// An address as upstream shows it in a list: by the name of its Go field.
#[derive(Serialize)]
struct GoAddress<'a> {
    #[serde(rename = "IP")]
    ip: &'a str,
}

/// What was there before may stay, whatever it is.
fn addresses(new: &[String], old: &[String], at: &FieldPath, errors: &mut FieldErrors) {
    for (i, address) in new.iter().enumerate() {
        legacy_ip(address, old, &at.index(i), errors);
    }
    if new.len() > 1 && !one_of_each(new) {
        let shown: Vec<_> = new.iter().map(|ip| GoAddress { ip }).collect();
        errors.invalid(at, shown, ONE_OF_EACH);
    }
}

/// What a node is told of addresses that it writes in an unusual way.
pub fn status_warnings(status: &PodStatus, at: &FieldPath) -> Vec<String> {
    let (at_pod, at_host) = (at.child("podIPs"), at.child("hostIPs"));
    let of_pod = status.pod_ips.iter().flatten().enumerate().map(|(i, each)| (at_pod.index(i), &each.ip));
    let of_host = status.host_ips.iter().flatten().enumerate().map(|(i, each)| (at_host.index(i), &each.ip));
    of_pod.chain(of_host).filter_map(|(at, ip)| ip_warning(ip, &at.child("ip"))).collect()
}

fn one_of_each(all: &[String]) -> bool {
    let families: BTreeSet<_> =
        all.iter().filter_map(|each| sloppy_ip(each)).map(|ip| ip.to_canonical().is_ipv4()).collect();
    all.len() == 2 && families.len() == 2
}

/// Who does not say of which generation he tells leaves what was said (KEP-5067).
pub fn keep_observed_generations(new: &mut PodStatus, old: &PodStatus) {
    if new.observed_generation.unwrap_or(0) == 0 {
        new.observed_generation = old.observed_generation;
    }
    // A type may be there several times: the first is the first again.
    let mut before: Vec<&PodCondition> = old.conditions.iter().flatten().collect();
    for condition in new.conditions.iter_mut().flatten() {
        let Some(i) = before.iter().position(|old| old.type_ == condition.type_) else { continue };
        let old = before.remove(i);
        if condition.observed_generation.unwrap_or(0) == 0 {
            condition.observed_generation = old.observed_generation;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: &Value, status: Value) -> Pod {
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}});
        pod["spec"].as_object_mut().expect("a map").extend(spec.as_object().cloned().unwrap_or_default());
        pod["status"] = status;
        serde_json::from_value(pod).expect("a pod")
    }

    fn said(spec: &Value, new: Value, old: Value) -> String {
        let mut errors = FieldErrors::new();
        status(&pod(spec, new), &pod(spec, old), &FieldPath::new("status"), &mut errors);
        errors.aggregate()
    }

    fn container(state: Value) -> Value {
        json!({"containerStatuses": [{"name": "c", "ready": false, "restartCount": 0, "image": "", "imageID": "",
            "state": state}]})
    }

    #[test]
    fn what_has_ended_for_good_stays_so() {
        let after = |spec: Value, code: i32| {
            let ended = container(json!({"terminated": {"exitCode": code}}));
            said(&spec, container(json!({"running": {}})), ended)
        };
        let no =
            "status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state";
        let rule = |codes: Value| {
            json!({"restartPolicy": "Never", "containers": [{"name": "c", "restartPolicy": "Never",
                "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": codes}}]}]})
        };
        for (spec, code, told) in [
            (json!({"restartPolicy": "Always"}), 0, "[]"),
            (json!({"restartPolicy": "OnFailure"}), 1, "[]"),
            (json!({"restartPolicy": "OnFailure"}), 0, no),
            (json!({"restartPolicy": "Never"}), 1, no),
            (rule(json!([42])), 42, "[]"),
            (rule(json!([42])), 1, no),
        ] {
            assert_eq!(after(spec, code), told);
        }
    }

    #[test]
    fn addresses_are_one_of_each_family() {
        let ips =
            |all: &[&str]| json!({"podIPs": all.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>()});
        let none = json!({});
        assert_eq!(said(&none, ips(&["10.0.0.1", "fd00::1"]), json!({})), "[]");
        assert_eq!(
            said(&none, ips(&["10.0.0.1", "10.0.0.2"]), json!({})),
            format!(
                "status.podIPs: Invalid value: [{{\"IP\":\"10.0.0.1\"}},{{\"IP\":\"10.0.0.2\"}}]: {ONE_OF_EACH}"
            )
        );
        assert_eq!(
            said(&none, ips(&["010.0.0.1"]), json!({})),
            "status.podIPs[0]: Invalid value: \"010.0.0.1\": must not have leading 0s"
        );
        assert_eq!(said(&none, ips(&["::ffff:1.2.3.4", "fd00::1"]), ips(&["::ffff:1.2.3.4"])), "[]");
        assert!(said(&none, ips(&["x"]), json!({})).starts_with("status.podIPs[0]: Invalid value: \"x\""));
        assert_eq!(said(&none, ips(&["x"]), ips(&["x"])), "[]");
        assert_eq!(
            said(&none, json!({"hostIP": "10.0.0.1", "hostIPs": [{"ip": "10.0.0.2"}]}), json!({})),
            "status.hostIPs[0].ip: Invalid value: \"10.0.0.2\": must be equal to `hostIP`"
        );
    }

    #[test]
    fn a_node_is_told_how_addresses_are_written() {
        let told = json!({"podIPs": [{"ip": "10.0.0.1"}, {"ip": "FD00::1"}], "hostIPs": [{"ip": "FD00::2"}]});
        let told = pod(&json!({}), told);
        assert_eq!(
            status_warnings(told.status.as_ref().expect("a status"), &FieldPath::new("status")),
            [
                "status.podIPs[1].ip: IPv6 address \"FD00::1\" should be in RFC 5952 canonical format (\"fd00::1\")",
                "status.hostIPs[0].ip: IPv6 address \"FD00::2\" should be in RFC 5952 canonical format (\"fd00::2\")",
            ]
        );
    }

    #[test]
    fn conditions_have_names_and_bound_pods_no_other_node() {
        let condition = json!({"conditions": [{"type": "A B", "status": "True"}]});
        assert!(
            said(&json!({}), condition, json!({}))
                .starts_with("status.conditions[0].Type: Invalid value: \"A B\"")
        );
        let bound = json!({"nodeName": "n"});
        let nominated = json!({"nominatedNodeName": "m"});
        assert_eq!(said(&json!({}), nominated.clone(), json!({})), "[]");
        assert_eq!(said(&bound, nominated.clone(), nominated.clone()), "[]");
        assert_eq!(
            said(&bound, nominated, json!({})),
            "status.nominatedNodeName: Forbidden: may not be set on pods that are already bound to a node"
        );
    }

    #[test]
    fn a_generation_that_was_seen_is_not_forgotten() {
        let old = pod(
            &json!({}),
            json!({"observedGeneration": 3, "conditions": [
                {"type": "A", "status": "True", "observedGeneration": 2}]}),
        );
        let mut new = pod(
            &json!({}),
            json!({"conditions": [{"type": "A", "status": "False"}, {"type": "A", "status": "True"}]}),
        );
        let status = new.status.as_mut().expect("a status");
        keep_observed_generations(status, old.status.as_ref().expect("a status"));
        assert_eq!(status.observed_generation, Some(3));
        let seen: Vec<_> = status.conditions.iter().flatten().map(|c| c.observed_generation).collect();
        assert_eq!(seen, [Some(2), None]);
    }
}
