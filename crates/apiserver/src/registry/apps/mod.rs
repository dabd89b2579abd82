//! Workloads.

pub mod controller_revision;
pub mod daemon_set;
pub mod deployment;
pub mod replica_set;
pub mod stateful_set;

use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use krate_api::{FieldErrors, FieldPath};
use serde::Serialize;

use super::core::pod_spec;
use super::rules::{is_empty_selector, label_selector, one_of, percent, selects};

/// Whose rules a selector and its template follow. A Deployment has those of a ReplicaSet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rules {
    Replica,
    Stateful,
    Daemon,
}

impl Rules {
    const fn kind(self) -> &'static str {
        match self {
            Rules::Replica => "ReplicaSet",
            Rules::Stateful => "StatefulSet",
            Rules::Daemon => "DaemonSet",
        }
    }
}

/// The selector and the template that must fit it.
fn workload(
    selector: &LabelSelector,
    template: &PodTemplateSpec,
    rules: Rules,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    let readable = check_selector(selector, rules, &at.child("selector"), errors);
    let at = at.child("template");
    if readable {
        fits(selector, template, &at, errors);
    }
    if readable || rules == Rules::Daemon {
        pod_spec::template(template, &at, errors);
    } else if rules == Rules::Replica {
        return;
    }
    let spec = template.spec.as_ref();
    let policy = spec.and_then(|s| s.restart_policy.as_deref()).unwrap_or_default();
    one_of(policy, &["Always"], &at.child("spec").child("restartPolicy"), errors);
    if spec.is_some_and(|s| s.active_deadline_seconds.is_some()) {
        errors.forbidden(
            &at.child("spec").child("activeDeadlineSeconds"),
            format!("activeDeadlineSeconds in {} is not Supported", rules.kind()),
        );
    }
}

/// Whether a selector can be read, so that it can be held against the template.
fn check_selector(selector: &LabelSelector, rules: Rules, at: &FieldPath, errors: &mut FieldErrors) -> bool {
    if is_empty_selector(selector) {
        if rules != Rules::Daemon {
            errors.required(at, "");
        }
        return true;
    }
    let before = errors.len();
    label_selector(selector, at, errors);
    let readable = errors.len() == before;
    match rules {
        Rules::Replica if !readable => errors.invalid(at, selector, "invalid label selector"),
        Rules::Stateful if !readable => errors.invalid(at, selector, ""),
        _ => {}
    }
    readable
}

fn fits(selector: &LabelSelector, template: &PodTemplateSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let labels = template.metadata.as_ref().and_then(|m| m.labels.as_ref());
    // An absent selector takes nothing.
    if is_empty_selector(selector) || !selects(selector, labels) {
        errors.invalid(
            &at.child("metadata").child("labels"),
            labels,
            "`selector` does not match template `labels`",
        );
    }
}

/// A strategy as upstream shows one of another type than there are: with the names that its fields have in memory.
#[derive(Serialize)]
struct StrategyInMemory<'a, R> {
    #[serde(rename = "Type")]
    kind: &'a str,
    #[serde(rename = "RollingUpdate")]
    rolling_update: Option<R>,
}

/// The part of it for a Deployment or a DaemonSet.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct RollingInMemory {
    max_unavailable: IntOrString,
    max_surge: IntOrString,
}

impl RollingInMemory {
    fn new(max_unavailable: Option<&IntOrString>, max_surge: Option<&IntOrString>) -> Self {
        let or_none = |value: Option<&IntOrString>| value.cloned().unwrap_or(IntOrString::Int(0));
        RollingInMemory { max_unavailable: or_none(max_unavailable), max_surge: or_none(max_surge) }
    }
}

/// Whether a count or a percentage is of nothing. What is neither counts as nothing as well.
fn is_none(value: &IntOrString) -> bool {
    match value {
        IntOrString::Int(n) => *n == 0,
        IntOrString::String(text) => percent(text).or_else(|| text.parse().ok()).unwrap_or(0) == 0,
    }
}

/// What is said of a collision count that goes back, of which upstream shows an absent one as 0.
fn never_decremented(is: Option<i32>, was: Option<i32>, at: &FieldPath, errors: &mut FieldErrors) {
    if was.is_some_and(|was| is.is_none_or(|is| is < was)) {
        errors.invalid(&at.child("collisionCount"), is.unwrap_or(0), "cannot be decremented");
    }
}

/// What the names of workloads are the beginning of.
pub const POD_NAMES: &str = "Pod names and hostnames";

/// What is told of a template when it is new, and when the spec that it is in changes.
fn warnings(meta: &ObjectMeta, old: Option<&ObjectMeta>, template: Option<&PodTemplateSpec>) -> Vec<String> {
    let same = old.is_some_and(|old| old.generation == meta.generation);
    let Some(template) = template.filter(|_| !same) else { return Vec::new() };
    pod_spec::of_template(template, &FieldPath::new("spec").child("template"))
}

/// The same with what is told of the name of a new workload.
pub fn named_warnings(
    meta: &ObjectMeta,
    old: Option<&ObjectMeta>,
    template: Option<&PodTemplateSpec>,
) -> Vec<String> {
    let name = if old.is_none() { pod_spec::of_name(meta, POD_NAMES) } else { None };
    name.into_iter().chain(warnings(meta, old, template)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn said(selector: Value, rules: Rules) -> String {
        let selector = serde_json::from_value(selector).expect("a selector");
        let mut template: PodTemplateSpec = serde_json::from_value(json!({
            "metadata": {"labels": {"a": "b"}},
            "spec": {"activeDeadlineSeconds": 1, "containers": [{"name": "c", "image": "i"}]},
        }))
        .expect("a template");
        pod_spec::default_template(&mut template);
        let mut errors = FieldErrors::new();
        workload(&selector, &template, rules, &FieldPath::new("spec"), &mut errors);
        errors.aggregate()
    }

    #[test]
    fn each_workload_speaks_for_itself() {
        for (rules, kind) in
            [(Rules::Replica, "ReplicaSet"), (Rules::Stateful, "StatefulSet"), (Rules::Daemon, "DaemonSet")]
        {
            assert_eq!(
                said(json!({"matchLabels": {"a": "b"}}), rules),
                format!(
                    "spec.template.spec.activeDeadlineSeconds: Forbidden: activeDeadlineSeconds in {kind} is not \
                     Supported"
                )
            );
        }
    }

    #[test]
    fn nothing_is_held_against_a_selector_that_cannot_be_read() {
        let odd = json!({"matchExpressions": [{"key": "a", "operator": "Odd"}]});
        let replica_set = said(odd.clone(), Rules::Replica);
        assert!(replica_set.contains("invalid label selector"), "{replica_set}");
        for rules in [Rules::Replica, Rules::Stateful, Rules::Daemon] {
            assert!(!said(odd.clone(), rules).contains("does not match"));
        }
    }

    #[test]
    fn what_is_no_percentage_is_none_of_anything() {
        for (text, none) in [("0%", true), ("1%", false), ("x", true), ("7", false)] {
            assert_eq!(is_none(&IntOrString::String(text.to_owned())), none, "{text}");
        }
    }

    #[test]
    fn what_is_new_is_told_of() {
        let template: PodTemplateSpec = serde_json::from_value(json!({
            "spec": {"nodeSelector": {"beta.kubernetes.io/os": "linux"}, "containers": []},
        }))
        .expect("a template");
        let meta = |name: &str, generation: i64| ObjectMeta {
            name: Some(name.to_owned()),
            generation: Some(generation),
            ..ObjectMeta::default()
        };
        let told = |old: Option<&ObjectMeta>| named_warnings(&meta("a.b", 2), old, Some(&template));
        let new = told(None);
        assert_eq!(new.len(), 2, "{new:?}");
        assert!(new[0].starts_with("metadata.name: this is used in Pod names and hostnames, "), "{new:?}");
        assert!(new[1].starts_with("spec.template.spec.nodeSelector"), "{new:?}");
        assert_eq!(told(Some(&meta("a.b", 1))), new[1..]);
        assert_eq!(told(Some(&meta("a.b", 2))), [""; 0]);
    }
}
