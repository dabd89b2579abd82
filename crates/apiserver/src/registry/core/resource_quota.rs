//! ResourceQuota: how much a namespace may use in all.

use std::fmt::Write;

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{ResourceQuota, ResourceQuotaSpec, ScopedResourceSelectorRequirement};
use krate_api::{FieldErrors, FieldPath, Kind, kinds};
use serde::Serialize;
use serde_json::Value;

use super::pod_spec::{Amounts, amount, is_standard, resource_name};
use crate::registry::column::{age, name, text};
use crate::registry::prepare::spec_and_status;
use crate::registry::quantities::more;
use crate::registry::rules::IMMUTABLE;
use crate::registry::{Column, Strategy};

const SCOPES: &[&str] = &[
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
    "VolumeAttributesClass",
];
/// Scopes that a pod is in or not: there is nothing to compare them with.
const PLAIN_SCOPES: &[&str] =
    &["BestEffort", "NotBestEffort", "Terminating", "NotTerminating", "CrossNamespacePodAffinity"];
const OPPOSITES: [[&str; 2]; 2] = [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]];

impl Strategy for ResourceQuota {
    const KIND: &'static Kind = &kinds::RESOURCE_QUOTA;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text(
            "Request",
            "Request represents a minimum amount of cpu/memory that a container may consume.",
            |q| used(q, false),
        ),
        text(
            "Limit",
            "Limits control the maximum amount of cpu/memory that a container may use independent of contention on the node.",
            |q| used(q, true),
        ),
        age(),
    ];

    fn default(&mut self) {
        self.spec.get_or_insert_default();
        self.status.get_or_insert_default();
    }

    spec_and_status!(uncounted);

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec");
        let Some(spec) = &self.spec else { return };
        limits(spec.hard.as_ref(), &at.child("hard"), errors);
        scopes(spec, &at.child("scopes"), errors);
        selector(spec, &at, errors);
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        let scopes = |q: &Self| q.spec.as_ref().and_then(|s| s.scopes.clone()).unwrap_or_default();
        let set = |q: &Self| scopes(q).into_iter().collect::<BTreeSet<String>>();
        if set(self) != set(old) {
            errors.invalid(&at.child("spec").child("scopes"), scopes(self), IMMUTABLE);
        }
    }

    fn validate_status_update(&self, _: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        let Some(status) = &self.status else { return };
        for (field, amounts) in [("hard", &status.hard), ("used", &status.used)] {
            limits(amounts.as_ref(), &at.child("status").child(field), errors);
        }
    }

    fn warnings(&self, old: Option<&Self>) -> Vec<String> {
        match self.spec.as_ref().and_then(|spec| spec.hard.as_ref()) {
            Some(hard) if old.is_none() => requests_beyond_limits(hard),
            _ => Vec::new(),
        }
    }
}

/// What a quota may limit by a name without a domain. How much storage there is, claims alone say.
fn is_limited(name: &str) -> bool {
    is_standard(name) && name != "storage"
}

fn limits(amounts: Option<&Amounts>, at: &FieldPath, errors: &mut FieldErrors) {
    for (name, value) in amounts.into_iter().flatten() {
        let at = at.key(name);
        resource_name(name, &at, errors);
        if !name.contains('/') && !is_limited(name) {
            errors.invalid(&at, name, "must be a standard resource for quota");
        }
        amount(name, value, &at, errors);
    }
}

/// Whether what is in a scope uses the resource at all.
fn is_in_scope(scope: &str, resource: &str) -> bool {
    const COMPUTE: &[&str] =
        &["cpu", "memory", "limits.cpu", "limits.memory", "requests.cpu", "requests.memory"];
    match scope {
        "BestEffort" => resource == "pods",
        "VolumeAttributesClass" => matches!(resource, "persistentvolumeclaims" | "requests.storage"),
        "Terminating"
        | "NotTerminating"
        | "NotBestEffort"
        | "PriorityClass"
        | "CrossNamespacePodAffinity" => resource == "pods" || COMPUTE.contains(&resource),
        _ => true,
    }
}

/// How many of the limits mean nothing in a scope.
fn out_of_scope(spec: &ResourceQuotaSpec, scope: &str) -> usize {
    let names = spec.hard.iter().flatten().map(|(name, _)| name.as_str());
    names.filter(|name| is_limited(name) && !is_in_scope(scope, name)).count()
}

fn conflicts(scopes: &BTreeSet<&str>) -> usize {
    OPPOSITES.iter().filter(|pair| pair.iter().all(|scope| scopes.contains(scope))).count()
}

fn scopes(spec: &ResourceQuotaSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let list = spec.scopes.as_deref().unwrap_or_default();
    for scope in list {
        if !SCOPES.contains(&scope.as_str()) {
            errors.invalid(at, list, "unsupported scope");
        }
        for _ in 0..out_of_scope(spec, scope) {
            errors.invalid(at, list, "unsupported scope applied to resource");
        }
    }
    for _ in 0..conflicts(&list.iter().map(String::as_str).collect()) {
        errors.invalid(at, list, "conflicting scopes");
    }
}

fn selector(spec: &ResourceQuotaSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let rules = spec.scope_selector.as_ref().and_then(|s| s.match_expressions.as_deref()).unwrap_or_default();
    // Upstream names no place in the list here.
    let at_rules = at.child("scopeSelector").child("matchExpressions");
    for rule in rules {
        if !SCOPES.contains(&rule.scope_name.as_str()) {
            errors.invalid(&at_rules.child("scopeName"), &rule.scope_name, "unsupported scope");
        }
        for _ in 0..out_of_scope(spec, &rule.scope_name) {
            errors.invalid(&at_rules, shown(rules), "unsupported scope applied to resource");
        }
        operator(rule, &at_rules, errors);
    }
    for _ in 0..conflicts(&rules.iter().map(|rule| rule.scope_name.as_str()).collect()) {
        errors.invalid(&at_rules, &spec.scopes, "conflicting scopes");
    }
}

/// The selector by the names that upstream's own type has for its fields.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Shown<'a> {
    match_expressions: Vec<ShownRule<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ShownRule<'a> {
    scope_name: &'a str,
    operator: &'a str,
    values: Option<&'a [String]>,
}

fn shown(rules: &[ScopedResourceSelectorRequirement]) -> Shown<'_> {
    Shown { match_expressions: rules.iter().map(shown_rule).collect() }
}

fn shown_rule(rule: &ScopedResourceSelectorRequirement) -> ShownRule<'_> {
    ShownRule { scope_name: &rule.scope_name, operator: &rule.operator, values: rule.values.as_deref() }
}

fn operator(rule: &ScopedResourceSelectorRequirement, at: &FieldPath, errors: &mut FieldErrors) {
    let at_operator = at.child("operator");
    if PLAIN_SCOPES.contains(&rule.scope_name.as_str()) && rule.operator != "Exists" {
        errors.invalid(
            &at_operator,
            &rule.operator,
            "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, \
             ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or \
             ResourceQuotaScopeCrossNamespacePodAffinity",
        );
    }
    let values = rule.values.as_deref().unwrap_or_default();
    match rule.operator.as_str() {
        "In" | "NotIn" if values.is_empty() => errors.required(
            &at.child("values"),
            "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
        ),
        "Exists" | "DoesNotExist" if !values.is_empty() => errors.invalid(
            &at.child("values"),
            values,
            "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
        ),
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        other => errors.invalid(&at_operator, other, "not a valid selector operator"),
    }
}

/// A request is never more than its limit, and so a quota of requests that is has no effect.
fn requests_beyond_limits(hard: &Amounts) -> Vec<String> {
    let mut warnings = Vec::new();
    for resource in ["cpu", "memory", "storage", "ephemeral-storage"] {
        let (asked, limited) = (format!("requests.{resource}"), format!("limits.{resource}"));
        let short = Some(resource).filter(|r| matches!(*r, "cpu" | "memory"));
        let request = hard.get_key_value(&asked).or_else(|| hard.get_key_value(short?));
        if let (Some((name, request)), Some(limit)) = (request, hard.get(&limited))
            && more(request, limit)
        {
            warnings.push(format!(
                "ResourceQuota {name} ({}) should be less than {limited} ({})",
                request.0, limit.0
            ));
        }
    }
    warnings
}

fn used(q: &ResourceQuota, limits: bool) -> Value {
    let Some(status) = &q.status else { return "".into() };
    let mut text = String::new();
    for (name, hard) in status.hard.iter().flatten().filter(|(n, _)| n.starts_with("limits") == limits) {
        let used = status.used.as_ref().and_then(|u| u.get(name)).map_or("0", |u| u.0.as_str());
        let comma = if text.is_empty() { "" } else { ", " };
        let _ = write!(text, "{comma}{name}: {used}/{}", hard.0);
    }
    text.into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn quota(spec: Value) -> ResourceQuota {
        serde_json::from_value(json!({"metadata": {"name": "q"}, "spec": spec})).expect("a quota")
    }

    fn wrong(spec: Value) -> Vec<String> {
        let mut errors = FieldErrors::new();
        quota(spec).validate(&FieldPath::new(""), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn limits_are_of_what_is_counted() {
        for name in ["requests.storage", "count/pods", "requests.example.com/gpu", "requests.hugepages-2Mi"] {
            assert_eq!(wrong(json!({"hard": {name: "1"}})), [""; 0], "{name}");
        }
        let standard = "must be a standard resource type or fully qualified";
        let counted = "must be a standard resource for quota";
        for (name, details) in [("storage", vec![counted]), ("requests.odd", vec![standard, counted])] {
            let texts = details.iter().map(|d| format!("spec.hard[{name}]: Invalid value: \"{name}\": {d}"));
            assert_eq!(wrong(json!({"hard": {name: "1"}})), texts.collect::<Vec<_>>());
        }
    }

    #[test]
    fn scopes_go_with_each_other_and_with_the_limits() {
        let at = "spec.scopeSelector.matchExpressions";
        for (spec, texts) in [
            (
                json!({"scopes": ["BestEffort", "NotBestEffort"]}),
                vec![
                    r#"spec.scopes: Invalid value: ["BestEffort","NotBestEffort"]: conflicting scopes"#
                        .to_owned(),
                ],
            ),
            (
                json!({"scopes": ["BestEffort"], "hard": {"cpu": "1", "pods": "1"}}),
                vec![
                    r#"spec.scopes: Invalid value: ["BestEffort"]: unsupported scope applied to resource"#
                        .to_owned(),
                ],
            ),
            (
                json!({"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In"}]}}),
                vec![format!(
                    "{at}.values: Required value: must be at least one value when `operator` is 'In' or 'NotIn' for \
                     scope selector"
                )],
            ),
            (
                json!({"scopeSelector": {"matchExpressions": [
                    {"scopeName": "PriorityClass", "operator": "Exists", "values": ["a"]}]}}),
                vec![format!(
                    "{at}.values: Invalid value: [\"a\"]: must be no value when `operator` is 'Exist' or \
                     'DoesNotExist' for scope selector"
                )],
            ),
            (
                json!({"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "Odd"}]}}),
                vec![format!("{at}.operator: Invalid value: \"Odd\": not a valid selector operator")],
            ),
        ] {
            assert_eq!(wrong(spec), texts);
        }
        let told = wrong(json!({"scopeSelector": {"matchExpressions": [
            {"scopeName": "BestEffort", "operator": "DoesNotExist"}]}}));
        assert!(
            told[0].starts_with(&format!("{at}.operator: Invalid value: \"DoesNotExist\": must be 'Exists'"))
        );
    }

    #[test]
    fn a_selector_is_shown_by_upstreams_names() {
        let told = wrong(json!({"hard": {"secrets": "1"}, "scopeSelector": {"matchExpressions": [
            {"scopeName": "PriorityClass", "operator": "Exists"}]}}));
        let shown =
            r#"{"MatchExpressions":[{"ScopeName":"PriorityClass","Operator":"Exists","Values":null}]}"#;
        let at = "spec.scopeSelector.matchExpressions";
        assert_eq!(told, [format!("{at}: Invalid value: {shown}: unsupported scope applied to resource")]);
    }

    #[test]
    fn a_quota_of_requests_beyond_that_of_limits_is_told() {
        let quota = quota(json!({"hard": {"cpu": "2", "limits.cpu": "1"}}));
        assert_eq!(quota.warnings(None), ["ResourceQuota cpu (2) should be less than limits.cpu (1)"]);
        assert_eq!(quota.warnings(Some(&quota)), [""; 0]);
    }
}
