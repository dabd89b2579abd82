//! Which requests a policy is for: what its kinds share.

use std::collections::BTreeSet;

use k8s_openapi::api::admissionregistration::v1::{MatchCondition, MatchResources, ParamKind, ParamRef};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use krate_api::names::{is_dns1035_label, is_dns1123_subdomain, is_path_segment_name};
use krate_api::{FieldErrors, FieldPath};

use super::expressions::expression;
use crate::admission::policy::seen::Seen;
use crate::cel::Type;
use crate::registry::rules::{each, label_selector, one_of, qualified_name};

/// What ends the names of those that are kept in files.
const STATIC: &str = ".static.k8s.io";

/// What is to be said of a name that is kept for others.
pub fn name_warnings(name: Option<&str>) -> Vec<String> {
    if !name.is_some_and(|name| name.ends_with(STATIC)) {
        return Vec::new();
    }
    vec![format!(
        "metadata.name: names ending with {STATIC:?} are reserved for static manifest-based configurations and cannot \
         be managed via the API"
    )]
}

pub fn default_failure_policy(policy: &mut Option<String>) {
    policy.get_or_insert_with(|| "Fail".to_owned());
}

pub fn default_match(matching: Option<&mut MatchResources>) {
    let Some(m) = matching else { return };
    m.match_policy.get_or_insert_with(|| "Equivalent".to_owned());
    m.namespace_selector.get_or_insert_default();
    m.object_selector.get_or_insert_default();
    for rule in m.resource_rules.iter_mut().chain(&mut m.exclude_resource_rules).flatten() {
        rule.scope.get_or_insert_with(|| "*".to_owned());
    }
}

/// What a rule says, in whichever kind it stands.
pub struct Rule<'a> {
    pub groups: &'a [String],
    pub versions: &'a [String],
    pub resources: &'a [String],
    pub operations: &'a [String],
    pub scope: Option<&'a str>,
}

pub fn rule(r: &Rule<'_>, at: &FieldPath, errors: &mut FieldErrors) {
    let star_alone = |list: &[String]| list.len() > 1 && list.iter().any(|v| v == "*");
    for (name, list) in [("operations", r.operations), ("apiGroups", r.groups), ("apiVersions", r.versions)] {
        let at = at.child(name);
        if list.is_empty() {
            errors.required(&at, "");
        }
        if star_alone(list) {
            errors.invalid(
                &at,
                list,
                format!(
                    "if '*' is present, must not specify other {}",
                    match name {
                        "operations" => "operations",
                        "apiGroups" => "API groups",
                        _ => "API versions",
                    }
                ),
            );
        }
        for (i, value) in list.iter().enumerate() {
            if name == "operations" {
                one_of(value, &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"], &at.index(i), errors);
            } else if value.is_empty() && name == "apiVersions" {
                errors.required(&at.index(i), "");
            }
        }
    }
    resources(r.resources, &at.child("resources"), errors);
    if let Some(scope) = r.scope {
        one_of(scope, &["*", "Cluster", "Namespaced"], &at.child("scope"), errors);
    }
}

/// Resources and their subresources, none of which another one stands for already.
fn resources(all: &[String], at: &FieldPath, errors: &mut FieldErrors) {
    if all.is_empty() {
        errors.required(at, "");
    }
    let (mut all_of, mut of_all) = (BTreeSet::new(), BTreeSet::new());
    // Upstream goes by the last that has no subresource.
    let mut is_whole = false;
    for (i, resource) in all.iter().enumerate() {
        let at = at.index(i);
        if resource.is_empty() {
            errors.required(&at, "");
            continue;
        }
        let Some((name, sub)) = resource.split_once('/') else {
            is_whole = resource != "*";
            continue;
        };
        if all_of.contains(name) {
            let why = format!("if '{name}/*' is present, must not specify {resource}");
            errors.invalid(&at, resource, why);
        }
        if of_all.contains(sub) {
            let why = format!("if '*/{sub}' is present, must not specify {resource}");
            errors.invalid(&at, resource, why);
        }
        if sub == "*" {
            all_of.insert(name);
        }
        if name == "*" {
            of_all.insert(sub);
        }
    }
    let has = |wanted: &str| all.iter().any(|resource| resource == wanted);
    if all.len() > 1 && has("*/*") {
        errors.invalid(at, all, "if '*/*' is present, must not specify other resources");
    }
    if is_whole && has("*") {
        let why = "if '*' is present, must not specify other resources without subresources";
        errors.invalid(at, all, why);
    }
}

fn resource_names(names: Option<&[String]>, at: &FieldPath, errors: &mut FieldErrors) {
    let mut known = BTreeSet::new();
    for (i, name) in names.unwrap_or_default().iter().enumerate() {
        each(is_path_segment_name(name, false), name, &at.index(i), errors);
        if !known.insert(name) {
            errors.duplicate(&at.index(i), name);
        }
    }
}

/// The operations of what changes writes: nothing is left to be changed of what is deleted.
pub fn mutable(matching: &MatchResources, at: &FieldPath, errors: &mut FieldErrors) {
    let at = at.child("resourceRules").child("operations");
    for rule in matching.resource_rules.iter().flatten() {
        for operation in rule.operations.iter().flatten() {
            one_of(operation, &["*", "CONNECT", "CREATE", "UPDATE"], &at, errors);
        }
    }
}

pub fn matching(m: &MatchResources, at: &FieldPath, errors: &mut FieldErrors) {
    match m.match_policy.as_deref() {
        None => errors.required(&at.child("matchPolicy"), ""),
        Some(policy) => one_of(policy, &["Equivalent", "Exact"], &at.child("matchPolicy"), errors),
    }
    for (name, selector) in
        [("namespaceSelector", &m.namespace_selector), ("objectSelector", &m.object_selector)]
    {
        match selector {
            None => errors.required(&at.child(name), ""),
            Some(selector) => label_selector(selector, &at.child(name), errors),
        }
    }
    for (name, rules) in
        [("resourceRules", &m.resource_rules), ("excludeResourceRules", &m.exclude_resource_rules)]
    {
        for (i, r) in rules.iter().flatten().enumerate() {
            let list = |l: &'_ Option<Vec<String>>| l.clone().unwrap_or_default();
            let (groups, versions) = (list(&r.api_groups), list(&r.api_versions));
            let (resources, operations) = (list(&r.resources), list(&r.operations));
            let said = Rule {
                groups: &groups,
                versions: &versions,
                resources: &resources,
                operations: &operations,
                scope: r.scope.as_deref(),
            };
            let at = at.child(name).index(i);
            resource_names(r.resource_names.as_deref(), &at.child("resourceNames"), errors);
            rule(&said, &at, errors);
        }
    }
}

pub fn conditions(
    list: Option<&[MatchCondition]>,
    has_params: bool,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    let list = list.unwrap_or_default();
    if list.len() > 64 {
        errors.too_many(at, list.len(), 64);
    }
    let declared = Seen::dynamic(has_params).declared();
    let mut names = BTreeSet::new();
    for (i, condition) in list.iter().enumerate() {
        let at = at.index(i);
        let source = condition.expression.trim();
        if source.is_empty() {
            errors.required(&at.child("expression"), "");
        }
        expression(source, &declared, &[Type::Bool], &at.child("expression"), errors);
        let (name, at_name) = (&condition.name, at.child("name"));
        if name.is_empty() {
            errors.required(&at_name, "");
            continue;
        }
        each(qualified_name(name), name, &at_name, errors);
        if !names.insert(name) {
            errors.duplicate(&at_name, name);
        }
    }
}

pub fn param_kind(kind: Option<&ParamKind>, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(kind) = kind else { return };
    match kind.api_version.as_deref().unwrap_or_default() {
        "" => errors.required(&at.child("apiVersion"), ""),
        version => group_version(version, &at.child("apiVersion"), errors),
    }
    let kind = kind.kind.as_deref().unwrap_or_default();
    if kind.is_empty() {
        errors.required(&at.child("kind"), "");
        return;
    }
    let wrong = is_dns1035_label(&kind.to_lowercase());
    if !wrong.is_empty() {
        let why = format!("may have mixed case, but should otherwise match: {}", wrong.join(","));
        errors.invalid(&at.child("kind"), kind, why);
    }
}

fn group_version(text: &str, at: &FieldPath, errors: &mut FieldErrors) {
    let (group, version) = text.split_once('/').unwrap_or(("", text));
    if version.contains('/') {
        errors.invalid(at, text, format!("unexpected GroupVersion string: {text}"));
        return;
    }
    let wrong = is_dns1123_subdomain(group);
    if !group.is_empty() && !wrong.is_empty() {
        errors.invalid(at, group, wrong.join(","));
    }
    let wrong = is_dns1035_label(version);
    if version.is_empty() {
        errors.invalid(at, text, "version must be specified");
    } else if !wrong.is_empty() {
        errors.invalid(at, version, wrong.join(","));
    }
}

pub fn policy_name(name: &str, at: &FieldPath, errors: &mut FieldErrors) {
    if name.is_empty() {
        errors.required(at, "");
    } else {
        each(is_dns1123_subdomain(name), name, at, errors);
    }
}

pub fn param_ref(reference: Option<&ParamRef>, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(reference) = reference else { return };
    let name = reference.name.as_deref().unwrap_or_default();
    let both = "name and selector are mutually exclusive";
    if !name.is_empty() {
        each(is_path_segment_name(name, false), name, &at.child("name"), errors);
        if reference.selector.is_some() {
            errors.forbidden(&at.child("name"), both);
        }
    }
    if let Some(selector) = &reference.selector {
        label_selector(selector, &at.child("selector"), errors);
        if !name.is_empty() {
            errors.forbidden(&at.child("selector"), both);
        }
    }
    if name.is_empty() && reference.selector.is_none() {
        errors.required(at, "one of name or selector must be specified");
    }
    match reference.parameter_not_found_action.as_deref().unwrap_or_default() {
        "" => errors.required(&at.child("parameterNotFoundAction"), ""),
        action => one_of(action, &["Deny", "Allow"], &at.child("parameterNotFoundAction"), errors),
    }
}

/// `v1/ConfigMap`, or `<unset>`.
pub fn param_kind_text(kind: Option<&ParamKind>) -> serde_json::Value {
    match kind {
        Some(k) => {
            let version = k.api_version.as_deref().unwrap_or_default();
            let kind = k.kind.as_deref().unwrap_or_default();
            format!("{version}/{kind}").trim_start_matches('/').into()
        }
        None => "<unset>".into(),
    }
}

/// `namespace/name`, a selector, or `<unset>` for neither. Whether a name is in a namespace cannot be told.
pub fn param_ref_text(reference: Option<&ParamRef>) -> serde_json::Value {
    let Some(reference) = reference else { return "<unset>".into() };
    let set = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    match (set(&reference.name), &reference.selector) {
        (Some(name), _) => {
            let namespace = set(&reference.namespace).unwrap_or_else(|| "*".to_owned());
            format!("{namespace}/{name}").into()
        }
        (None, Some(selector)) => selector_text(selector).into(),
        (None, None) => "<unset>".into(),
    }
}

/// A selector as Go prints it.
fn selector_text(selector: &LabelSelector) -> String {
    let labels = selector.match_labels.iter().flatten();
    let labels: Vec<String> = labels.map(|(key, value)| format!("{key}: {value},")).collect();
    let rules = selector.match_expressions.iter().flatten().map(|rule| {
        let values = rule.values.clone().unwrap_or_default().join(" ");
        format!("LabelSelectorRequirement{{Key:{},Operator:{},Values:[{values}],}},", rule.key, rule.operator)
    });
    let rules: Vec<String> = rules.collect();
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{}}},MatchExpressions:[]LabelSelectorRequirement{{{}}},}}",
        labels.concat(),
        rules.concat()
    )
}

#[cfg(test)]
mod tests {
    use super::super::told;
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn no_resource_stands_for_another() {
        let judge = |all: &[&str]| {
            let all: Vec<String> = all.iter().map(|r| (*r).to_owned()).collect();
            told(|at, errors| resources(&all, at, errors))
        };
        assert_eq!(judge(&["pods", "pods/status", "*/scale"]), [""; 0]);
        assert_eq!(judge(&["*"]), [""; 0]);
        assert_eq!(
            judge(&["pods/*", "pods/status", "*/scale", "apps/scale"]),
            [
                "x[1]: Invalid value: \"pods/status\": if 'pods/*' is present, must not specify pods/status",
                "x[3]: Invalid value: \"apps/scale\": if '*/scale' is present, must not specify apps/scale",
            ]
        );
        assert_eq!(
            judge(&["*", "pods"]),
            [
                "x: Invalid value: [\"*\",\"pods\"]: if '*' is present, must not specify other resources without \
                 subresources"
            ]
        );
    }

    #[test]
    fn parameters_are_of_a_kind() {
        let judge = |version: &str, kind: &str| {
            let kind = ParamKind { api_version: Some(version.to_owned()), kind: Some(kind.to_owned()) };
            told(|at, errors| param_kind(Some(&kind), at, errors))
        };
        assert_eq!(judge("v1", "ConfigMap"), [""; 0]);
        assert_eq!(judge("example.com/v1beta1", "A"), [""; 0]);
        assert_eq!(
            judge("a/b/c", "A"),
            ["x.apiVersion: Invalid value: \"a/b/c\": unexpected GroupVersion string: a/b/c"]
        );
        assert_eq!(judge("a/", "A"), ["x.apiVersion: Invalid value: \"a/\": version must be specified"]);
        assert!(
            judge("A/V1", "a b")[0].starts_with("x.apiVersion: Invalid value: \"A\": a lowercase RFC 1123")
        );
        assert!(
            judge("v1", "a b")[0].starts_with("x.kind: Invalid value: \"a b\": may have mixed case, but")
        );
    }

    #[test]
    fn parameters_are_found_by_name_or_by_labels() {
        let read = |json: Value| -> ParamRef { serde_json::from_value(json).expect("a reference") };
        let both = read(json!({"name": "a", "selector": {}, "parameterNotFoundAction": "Deny"}));
        assert_eq!(
            told(|at, errors| param_ref(Some(&both), at, errors)),
            [
                "x.name: Forbidden: name and selector are mutually exclusive",
                "x.selector: Forbidden: name and selector are mutually exclusive",
            ]
        );
        assert_eq!(param_ref_text(Some(&read(json!({"name": "a"})))), "*/a");
        assert_eq!(param_ref_text(Some(&read(json!({"name": "a", "namespace": "n"})))), "n/a");
        let selector = json!({"matchLabels": {"a": "1"},
            "matchExpressions": [{"key": "b", "operator": "In", "values": ["2", "3"]}]});
        assert_eq!(
            param_ref_text(Some(&read(json!({"selector": selector})))),
            "&LabelSelector{MatchLabels:map[string]string{a: 1,},MatchExpressions:[]LabelSelectorRequirement{\
             LabelSelectorRequirement{Key:b,Operator:In,Values:[2 3],},},}"
        );
    }

    #[test]
    fn conditions_are_told_of_in_their_order() {
        let condition = |name: &str, expression: &str| MatchCondition {
            name: name.to_owned(),
            expression: expression.to_owned(),
        };
        let list = [condition("", "1"), condition("a", " "), condition("a", "true")];
        assert_eq!(
            told(|at, errors| conditions(Some(&list), false, at, errors)),
            [
                "x[0].expression: Invalid value: \"1\": must evaluate to bool but got int",
                "x[0].name: Required value",
                "x[1].expression: Required value",
                "x[2].name: Duplicate value: \"a\"",
            ]
        );
    }

    #[test]
    fn names_of_what_is_kept_in_files_are_warned_of() {
        assert_eq!(name_warnings(Some("a.static.k8s.io")).len(), 1);
        assert_eq!(name_warnings(Some("a.k8s.io")), [""; 0]);
    }
}
