//! What a container may say (`ValidatePodSpec` and below, in `pkg/apis/core/validation`).

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use krate_api::{FieldErrors, FieldPath};

use super::env::environment;
use super::mounts::{Volumes, devices, mounts};
use super::probes::probes;
use super::resources::requirements;
use super::security::container_context;
use super::visit::{as_container, inits, is_sidecar};
use crate::registry::rules::{dns_label, each, one_of, port, port_name, required_one_of};

/// What the checks of one container need to know of its pod.
pub struct Pod<'a> {
    pub spec: &'a PodSpec,
    pub volumes: Volumes<'a>,
    pub claims: BTreeSet<&'a str>,
}

/// `at` is the spec's place.
pub fn containers(pod: &Pod<'_>, at: &FieldPath, errors: &mut FieldErrors) {
    regular(pod, &at.child("containers"), errors);
    beginning(pod, &at.child("initContainers"), errors);
    ephemeral(pod, &at.child("ephemeralContainers"), errors);
}

fn regular(pod: &Pod<'_>, list: &FieldPath, errors: &mut FieldErrors) {
    if pod.spec.containers.is_empty() {
        errors.required(list, "");
        return;
    }
    let mut names = BTreeSet::new();
    for (i, c) in pod.spec.containers.iter().enumerate() {
        let at = list.index(i);
        container(c, pod, &at, errors);
        if !names.insert(c.name.as_str()) {
            errors.duplicate(&at.child("name"), &c.name);
        }
        probes(c, pod.spec.termination_grace_period_seconds, &at, errors);
        if c.restart_policy.is_none() && has_rules(c) {
            errors.required(&at.child("restartPolicy"), RULES_NEED_POLICY);
        }
        restarts(c, &at, errors);
    }
    host_port_conflicts(&pod.spec.containers, list, errors);
}

fn beginning(pod: &Pod<'_>, list: &FieldPath, errors: &mut FieldErrors) {
    let mut names: BTreeSet<&str> = pod.spec.containers.iter().map(|c| c.name.as_str()).collect();
    for (i, c) in inits(pod.spec).iter().enumerate() {
        let at = list.index(i);
        container(c, pod, &at, errors);
        match &c.restart_policy {
            None if has_rules(c) => errors.required(&at.child("restartPolicy"), RULES_NEED_POLICY),
            None => {}
            Some(_) => restarts(c, &at, errors),
        }
        if names.contains(c.name.as_str()) {
            errors.duplicate(&at.child("name"), &c.name);
        } else if !c.name.is_empty() {
            names.insert(&c.name);
        }
        // They run one by one, so each is by itself; upstream shows each as if it were the first.
        host_port_conflicts(std::slice::from_ref(c), list, errors);
        if is_sidecar(c) {
            probes(c, pod.spec.termination_grace_period_seconds, &at, errors);
            continue;
        }
        for (name, set) in [
            ("lifecycle", c.lifecycle.is_some()),
            ("livenessProbe", c.liveness_probe.is_some()),
            ("readinessProbe", c.readiness_probe.is_some()),
            ("startupProbe", c.startup_probe.is_some()),
        ] {
            if set {
                let why = "may not be set for init containers without restartPolicy=Always";
                errors.forbidden(&at.child(name), why);
            }
        }
        for (j, policy) in c.resize_policy.iter().flatten().enumerate() {
            if policy.restart_policy == "RestartContainer" {
                let at = at.child("resizePolicy").index(j).child("restartPolicy");
                let why = "must not be set to 'RestartContainer' for non-sidecar initContainers";
                errors.invalid(&at, &policy.restart_policy, why);
            }
        }
    }
}

const RULES_NEED_POLICY: &str = "must specify restartPolicy when restart rules are used";

fn has_rules(c: &Container) -> bool {
    c.restart_policy_rules.as_ref().is_some_and(|rules| !rules.is_empty())
}

/// Whether a container is started again when it ends, by its own policy and by its exit codes (KEP-5307).
fn restarts(c: &Container, at: &FieldPath, errors: &mut FieldErrors) {
    if let Some(policy) = &c.restart_policy {
        one_of(policy, &["Always", "Never", "OnFailure"], &at.child("restartPolicy"), errors);
    }
    let rules = c.restart_policy_rules.as_deref().unwrap_or_default();
    let list = at.child("restartPolicyRules");
    if rules.len() > 20 {
        errors.too_many(&list, rules.len(), 20);
    }
    for (i, rule) in rules.iter().enumerate() {
        let at = list.index(i);
        one_of(&rule.action, &["Restart", "RestartAllContainers"], &at.child("action"), errors);
        let at = at.child("exitCodes");
        let Some(codes) = &rule.exit_codes else {
            errors.required(&at, "must be specified");
            continue;
        };
        one_of(&codes.operator, &["In", "NotIn"], &at.child("operator"), errors);
        let count = codes.values.as_ref().map_or(0, Vec::len);
        if count > 255 {
            errors.too_many(&at.child("values"), count, 255);
        }
    }
}

/// Containers that are added to a running pod for debugging: few of the rules of others hold, and some of their own.
fn ephemeral(pod: &Pod<'_>, list: &FieldPath, errors: &mut FieldErrors) {
    let added = pod.spec.ephemeral_containers.as_deref().unwrap_or_default();
    if added.is_empty() {
        return;
    }
    let others: BTreeSet<&str> =
        pod.spec.containers.iter().chain(inits(pod.spec)).map(|c| c.name.as_str()).collect();
    let mut names = others.clone();
    for (i, e) in added.iter().enumerate() {
        let at = list.index(i);
        let c = as_container(e);
        container(&c, pod, &at, errors);
        image_as_pods_name_it(&c, &at, errors);
        if !names.insert(&e.name) {
            errors.duplicate(&at.child("name"), &e.name);
        }
        if let Some(target) = e.target_container_name.as_deref().filter(|t| !t.is_empty())
            && !others.contains(target)
        {
            errors.not_found(&at.child("targetContainerName"), target);
        }
        only_for_debugging(&c, &at, errors);
    }
}

fn only_for_debugging(c: &Container, at: &FieldPath, errors: &mut FieldErrors) {
    const WHY: &str = "cannot be set for an Ephemeral Container";
    for (name, set) in [
        ("ports", c.ports.as_ref().is_some_and(|p| !p.is_empty())),
        ("resources", c.resources.as_ref().is_some_and(|r| *r != ResourceRequirements::default())),
        ("resizePolicy", c.resize_policy.as_ref().is_some_and(|p| !p.is_empty())),
        ("restartPolicy", c.restart_policy.is_some()),
        ("restartPolicyRules", has_rules(c)),
        ("livenessProbe", c.liveness_probe.is_some()),
        ("readinessProbe", c.readiness_probe.is_some()),
        ("startupProbe", c.startup_probe.is_some()),
        ("lifecycle", c.lifecycle.is_some()),
    ] {
        if set {
            errors.forbidden(&at.child(name), WHY);
        }
    }
    for (j, mount) in c.volume_mounts.iter().flatten().enumerate() {
        for (name, path) in [("subPath", &mount.sub_path), ("subPathExpr", &mount.sub_path_expr)] {
            if path.as_deref().is_some_and(|p| !p.is_empty()) {
                errors.forbidden(&at.child("volumeMounts").index(j).child(name), WHY);
            }
        }
    }
}

/// The rules for containers of pods that those of templates are spared.
pub fn only_for_pods(spec: &PodSpec, at: &FieldPath, errors: &mut FieldErrors) {
    for (list, containers) in [("containers", spec.containers.as_slice()), ("initContainers", inits(spec))] {
        for (i, c) in containers.iter().enumerate() {
            image_as_pods_name_it(c, &at.child(list).index(i), errors);
        }
    }
}

pub fn image_as_pods_name_it(c: &Container, at: &FieldPath, errors: &mut FieldErrors) {
    let image = c.image.as_deref().unwrap_or_default();
    if image.trim() != image {
        errors.invalid(&at.child("image"), image, "must not have leading or trailing whitespace");
    }
}

fn container(c: &Container, pod: &Pod<'_>, at: &FieldPath, errors: &mut FieldErrors) {
    if c.name.is_empty() {
        errors.required(&at.child("name"), "");
    } else {
        dns_label(&c.name, &at.child("name"), errors);
    }
    if c.image.as_deref().is_none_or(str::is_empty) {
        errors.required(&at.child("image"), "");
    }
    required_one_of(
        c.termination_message_policy.as_deref(),
        &["File", "FallbackToLogsOnError"],
        &at.child("terminationMessagePolicy"),
        errors,
    );
    ports(c, &at.child("ports"), errors);
    environment(c, at, errors);
    mounts(c, &pod.volumes, &at.child("volumeMounts"), errors);
    devices(c, &pod.volumes, &at.child("volumeDevices"), errors);
    pull_policy(c.image_pull_policy.as_deref(), &at.child("imagePullPolicy"), errors);
    if let Some(r) = &c.resources {
        requirements(r, &pod.claims, &at.child("resources"), errors);
    }
    resize_policies(c, pod.spec, &at.child("resizePolicy"), errors);
    if let Some(context) = &c.security_context {
        container_context(context, pod.spec.host_users == Some(false), &at.child("securityContext"), errors);
    }
}

pub fn pull_policy(policy: Option<&str>, at: &FieldPath, errors: &mut FieldErrors) {
    required_one_of(policy, &["Always", "IfNotPresent", "Never"], at, errors);
}

/// Upstream names the list for most of what is wrong here, without the place in it.
fn resize_policies(c: &Container, spec: &PodSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let mut seen = BTreeSet::new();
    for (i, p) in c.resize_policy.iter().flatten().enumerate() {
        if !seen.insert(p.resource_name.as_str()) {
            errors.duplicate(&at.index(i), &p.resource_name);
        }
        required_one_of(Some(&p.resource_name), &["cpu", "memory"], at, errors);
        required_one_of(Some(&p.restart_policy), &["NotRequired", "RestartContainer"], at, errors);
        if spec.restart_policy.as_deref() == Some("Never") && p.restart_policy != "NotRequired" {
            let why = "must be 'NotRequired' when pod `restartPolicy` is 'Never'";
            errors.invalid(at, &p.restart_policy, why);
        }
    }
}

fn ports(c: &Container, at: &FieldPath, errors: &mut FieldErrors) {
    let mut names = BTreeSet::new();
    for (i, p) in c.ports.iter().flatten().enumerate() {
        let at = at.index(i);
        if let Some(name) = p.name.as_deref().filter(|n| !n.is_empty()) {
            let wrong = port_name(name);
            if wrong.is_empty() {
                if !names.insert(name) {
                    errors.duplicate(&at.child("name"), name);
                }
            } else {
                each(wrong, name, &at.child("name"), errors);
            }
        }
        if p.container_port == 0 {
            errors.required(&at.child("containerPort"), "");
        } else {
            port(p.container_port, &at.child("containerPort"), errors);
        }
        let host = p.host_port.unwrap_or(0);
        if host != 0 {
            port(host, &at.child("hostPort"), errors);
        }
        required_one_of(p.protocol.as_deref(), &["SCTP", "TCP", "UDP"], &at.child("protocol"), errors);
    }
}

/// With the host's network, a container's ports are the host's. A template need not say so yet.
pub fn ports_of_the_host(spec: &PodSpec, is_pod: bool, at: &FieldPath, errors: &mut FieldErrors) {
    if spec.host_network != Some(true) {
        return;
    }
    for (i, c) in spec.containers.iter().enumerate() {
        let at = at.child("containers").index(i).child("ports");
        for (j, p) in c.ports.iter().flatten().enumerate() {
            let host = p.host_port.unwrap_or(0);
            if (is_pod || host != 0) && host != p.container_port {
                let why = "must match `containerPort` when `hostNetwork` is true";
                errors.invalid(&at.index(j).child("hostPort"), host, why);
            }
        }
    }
}

/// One port of the host is taken by one container at most.
fn host_port_conflicts(containers: &[Container], at: &FieldPath, errors: &mut FieldErrors) {
    let mut taken = BTreeSet::new();
    for (i, c) in containers.iter().enumerate() {
        for (j, p) in c.ports.iter().flatten().enumerate() {
            let host = p.host_port.unwrap_or(0);
            let protocol = p.protocol.as_deref().unwrap_or_default();
            let ip = p.host_ip.as_deref().unwrap_or_default();
            if host != 0 && !taken.insert((host, protocol, ip)) {
                let shown = format!("{protocol}/{ip}/{host}");
                errors.duplicate(&at.index(i).child("ports").index(j).child("hostPort"), shown);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::registry::core::pod_spec::default_spec;

    fn said(spec: Value) -> String {
        let mut spec: PodSpec = serde_json::from_value(spec).expect("a spec");
        default_spec(&mut spec);
        let mut errors = FieldErrors::new();
        let pod = Pod { spec: &spec, volumes: Volumes::new(), claims: BTreeSet::new() };
        let at = FieldPath::new("spec");
        containers(&pod, &at, &mut errors);
        only_for_pods(&spec, &at, &mut errors);
        ports_of_the_host(&spec, true, &at, &mut errors);
        errors.aggregate()
    }

    fn with(rest: Value) -> Value {
        let mut container = json!({"name": "c", "image": "i"});
        container.as_object_mut().expect("a map").extend(rest.as_object().cloned().unwrap_or_default());
        container
    }

    #[test]
    fn a_pod_without_containers_is_told_what_else_is_wrong() {
        let told = said(json!({"containers": [], "initContainers": [{"name": "i"}]}));
        assert_eq!(told, "[spec.containers: Required value, spec.initContainers[0].image: Required value]");
    }

    #[test]
    fn rules_of_restarting_need_a_policy_and_exit_codes() {
        let rule = json!({"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}});
        for list in ["containers", "initContainers"] {
            let said = |c: Value| said(json!({"containers": [with(json!({"name": "d"}))], list: [c]}));
            assert_eq!(said(with(json!({"restartPolicy": "Never", "restartPolicyRules": [rule]}))), "[]");
            assert_eq!(
                said(with(json!({"restartPolicyRules": [rule]}))),
                format!("spec.{list}[0].restartPolicy: Required value: {RULES_NEED_POLICY}")
            );
            assert_eq!(
                said(with(json!({"restartPolicy": "Never", "restartPolicyRules": [{"action": "Restart"}]}))),
                format!("spec.{list}[0].restartPolicyRules[0].exitCodes: Required value: must be specified")
            );
        }
    }

    #[test]
    fn resizing_may_restart_only_what_may_be_restarted() {
        let policy = json!({"resizePolicy": [{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]});
        let container = with(policy);
        assert_eq!(said(json!({"containers": [container]})), "[]");
        assert_eq!(
            said(json!({"containers": [container], "restartPolicy": "Never"})),
            "spec.containers[0].resizePolicy: Invalid value: \"RestartContainer\": must be 'NotRequired' when pod \
             `restartPolicy` is 'Never'"
        );
        let mut first = container.clone();
        first["name"] = json!("i");
        assert_eq!(
            said(json!({"containers": [container], "initContainers": [first]})),
            "spec.initContainers[0].resizePolicy[0].restartPolicy: Invalid value: \"RestartContainer\": must not be \
             set to 'RestartContainer' for non-sidecar initContainers"
        );
    }

    #[test]
    fn containers_of_a_template_may_leave_their_ports_and_images_to_the_pod() {
        let spec = json!({"hostNetwork": true, "containers": [with(json!({
            "image": " i", "ports": [{"containerPort": 80}]}))]});
        assert_eq!(
            said(spec.clone()),
            "[spec.containers[0].image: Invalid value: \" i\": must not have leading or trailing whitespace, \
             spec.containers[0].ports[0].hostPort: Invalid value: 0: must match `containerPort` when \
             `hostNetwork` is true]"
        );
        let spec = serde_json::from_value(spec).expect("a spec");
        let mut errors = FieldErrors::new();
        ports_of_the_host(&spec, false, &FieldPath::new("spec"), &mut errors);
        assert!(errors.is_empty(), "{errors:?}");
    }

    #[test]
    fn a_container_for_debugging_does_no_work_of_the_pods() {
        let told = said(json!({"containers": [with(json!({}))], "ephemeralContainers": [
            {"name": "c", "image": "i"},
            {"name": "e", "image": "i", "targetContainerName": "x",
             "restartPolicy": "Never", "restartPolicyRules": [{"action": "Restart"}]}]}));
        let at = "spec.ephemeralContainers";
        assert_eq!(
            told,
            format!(
                "[{at}[0].name: Duplicate value: \"c\", {at}[1].targetContainerName: Not found: \"x\", \
                 {at}[1].restartPolicy: Forbidden: cannot be set for an Ephemeral Container, \
                 {at}[1].restartPolicyRules: Forbidden: cannot be set for an Ephemeral Container]"
            )
        );
    }
}
