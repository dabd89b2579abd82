//! The checks of the Pod Security Standards, in the order in which their results are told, each with the versions in
//! which it holds.

use std::collections::BTreeSet;

use super::baseline::{
    app_armor, capabilities, host_namespaces, host_path, host_ports, host_probes, host_process, privileged,
    proc_mount, seccomp_annotations, seccomp_fields, selinux, sysctls,
};
use super::policy::{Level, LevelVersion, Version};
use super::restricted;
use super::view::View;

/// What a check finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub reason: String,
    pub detail: String,
}

/// The newest version that has a policy of its own; later ones, and the latest, are as this one.
const NEWEST: u32 = 36;
const LAST: u32 = u32::MAX;

/// One check from one version on, until another takes its place.
struct Check {
    level: Level,
    from: u32,
    before: u32,
    /// The first version in which a stricter check says the same at the restricted level.
    overridden_from: u32,
    run: fn(&View<'_>, u32) -> Option<Violation>,
}

const fn baseline(from: u32, before: u32, run: fn(&View<'_>, u32) -> Option<Violation>) -> Check {
    Check { level: Level::Baseline, from, before, overridden_from: LAST, run }
}

const fn overridden(
    from: u32,
    before: u32,
    overridden_from: u32,
    run: fn(&View<'_>, u32) -> Option<Violation>,
) -> Check {
    Check { level: Level::Baseline, from, before, overridden_from, run }
}

const fn strict(from: u32, run: fn(&View<'_>, u32) -> Option<Violation>) -> Check {
    Check { level: Level::Restricted, from, before: LAST, overridden_from: LAST, run }
}

const CHECKS: &[Check] = &[
    baseline(0, LAST, app_armor),
    overridden(0, LAST, 22, capabilities),
    baseline(0, LAST, host_namespaces),
    overridden(0, LAST, 0, host_path),
    baseline(0, LAST, host_ports),
    baseline(34, LAST, host_probes),
    baseline(0, LAST, privileged),
    overridden(0, LAST, 35, proc_mount),
    baseline(0, LAST, selinux),
    overridden(0, 19, 19, seccomp_annotations),
    overridden(19, LAST, 19, seccomp_fields),
    baseline(0, LAST, sysctls),
    baseline(0, LAST, host_process),
    strict(8, restricted::allow_privilege_escalation),
    strict(22, restricted::capabilities),
    strict(35, restricted::proc_mount),
    strict(0, restricted::volumes),
    strict(0, restricted::run_as_non_root),
    strict(23, restricted::run_as_user),
    strict(19, restricted::seccomp),
];

/// All that a policy finds in a pod.
pub fn violations(policy: LevelVersion, pod: &View<'_>) -> Vec<Violation> {
    let version = minor(policy.version);
    CHECKS
        .iter()
        .filter(|check| check.level <= policy.level && policy.level != Level::Privileged)
        .filter(|check| check.from <= version && version < check.before)
        .filter(|check| policy.level != Level::Restricted || version < check.overridden_from)
        .filter_map(|check| (check.run)(pod, version))
        .collect()
}

fn minor(version: Version) -> u32 {
    version.unwrap_or(NEWEST).min(NEWEST)
}

/// As a refusal or a warning tells them: each reason with its detail.
pub fn details(violations: &[Violation]) -> String {
    let each: Vec<String> = violations
        .iter()
        .map(|v| if v.detail.is_empty() { v.reason.clone() } else { format!("{} ({})", v.reason, v.detail) })
        .collect();
    each.join(", ")
}

/// As a namespace's warning tells them.
pub fn reasons(violations: &[Violation]) -> String {
    let each: Vec<&str> = violations.iter().map(|v| v.reason.as_str()).collect();
    each.join(", ")
}

/// As checks return it.
#[allow(clippy::unnecessary_wraps)]
pub fn violation(reason: &str, detail: String) -> Option<Violation> {
    Some(Violation { reason: reason.to_owned(), detail })
}

/// `"a", "b"`.
pub fn quoted<'a>(items: impl IntoIterator<Item = &'a str>) -> String {
    let each: Vec<String> = items.into_iter().map(|item| format!("\"{item}\"")).collect();
    each.join(", ")
}

pub fn plural<'a>(one: &'a str, many: &'a str, count: usize) -> &'a str {
    if count == 1 { one } else { many }
}

/// `container "a"`, `containers "a", "b"`.
pub fn containers(names: &[&str]) -> String {
    format!("{} {}", plural("container", "containers", names.len()), quoted(names.iter().copied()))
}

/// `pod and containers "a", "b"`: who set what is forbidden. Empty if nobody did.
pub fn setters(pod: bool, names: &[&str]) -> String {
    let mut setters = Vec::new();
    if pod {
        setters.push("pod".to_owned());
    }
    if !names.is_empty() {
        setters.push(containers(names));
    }
    setters.join(" and ")
}

pub type Names<'a> = BTreeSet<&'a str>;

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::{Value, json};

    use super::*;

    fn found(level: Level, version: Version, spec: &Value) -> String {
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": spec})).expect("a pod");
        let view = View::new(pod.metadata.annotations.as_ref(), pod.spec.as_ref().expect("a spec"));
        details(&violations(LevelVersion { level, version }, &view))
    }

    #[test]
    fn each_level_finds_what_it_forbids() {
        use Level::{Baseline, Privileged, Restricted};
        let tight = json!({"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}});
        let good = json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}});
        let pod = |container: Value, more: Value| {
            let mut spec = json!({"securityContext": tight,
                "containers": [{"name": "c", "image": "i", "securityContext": good}]});
            let merge = |into: &mut Value, from: Value| krate_api::patch::merge(into, from);
            merge(&mut spec["containers"][0], container);
            merge(&mut spec, more);
            spec
        };
        let cases = [
            (Privileged, None, pod(json!({"securityContext": {"privileged": true}}), json!({})), ""),
            (Restricted, None, pod(json!({}), json!({})), ""),
            (
                Baseline,
                None,
                pod(json!({"ports": [{"containerPort": 1, "hostPort": 80}]}), json!({"hostPID": true})),
                "host namespaces (hostPID=true), hostPort (container \"c\" uses hostPort 80)",
            ),
            (
                Restricted,
                None,
                pod(json!({}), json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]})),
                "restricted volume types (volume \"v\" uses restricted volume type \"hostPath\")",
            ),
            (
                Baseline,
                None,
                pod(json!({}), json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]})),
                "hostPath volumes (volume \"v\")",
            ),
            (
                Baseline,
                Some(33),
                pod(json!({"livenessProbe": {"httpGet": {"host": "h", "port": 1}}}), json!({})),
                "",
            ),
            (
                Baseline,
                Some(34),
                pod(json!({"livenessProbe": {"httpGet": {"host": "h", "port": 1}}}), json!({})),
                "probe or lifecycle host (container \"c\" uses probe or lifecycle host \"h\")",
            ),
            (
                Restricted,
                None,
                pod(json!({"securityContext": {"runAsNonRoot": false, "runAsUser": 0}}), json!({})),
                "runAsNonRoot != true (container \"c\" must not set securityContext.runAsNonRoot=false), \
                 runAsUser=0 (container \"c\" must not set runAsUser=0)",
            ),
            (
                Restricted,
                None,
                pod(json!({"securityContext": {"runAsUser": 0}}), json!({"hostUsers": false})),
                "",
            ),
            (
                Baseline,
                None,
                pod(
                    json!({"securityContext": {"seLinuxOptions": {"type": "t", "user": "u"}}}),
                    json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}}),
                ),
                "seLinuxOptions (container \"c\" set forbidden securityContext.seLinuxOptions: type \"t\"; user may \
                 not be set), forbidden sysctls (kernel.msgmax)",
            ),
        ];
        for (level, version, spec, expected) in cases {
            assert_eq!(found(level, version, &spec), expected, "{level:?} {version:?} {spec}");
        }
    }
}
