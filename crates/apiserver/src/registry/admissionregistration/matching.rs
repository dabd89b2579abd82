//! Which requests a policy is for: what its kinds share.

use std::collections::BTreeSet;

use k8s_openapi::api::admissionregistration::v1::{
    MatchCondition, MatchResources, ParamKind, ParamRef, Variable,
};
use krate_api::{FieldErrors, FieldPath};

use crate::registry::rules::{label_selector, one_of, qualified_name};

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
    let at_resources = at.child("resources");
    if r.resources.is_empty() {
        errors.required(&at_resources, "");
    }
    for (i, resource) in r.resources.iter().enumerate() {
        if resource.is_empty() {
            errors.required(&at_resources.index(i), "");
        }
    }
    if r.resources.iter().any(|v| v == "*/*") && r.resources.len() > 1 {
        errors.invalid(&at_resources, r.resources, "if '*/*' is present, must not specify other resources");
    }
    if let Some(scope) = r.scope {
        one_of(scope, &["*", "Cluster", "Namespaced"], &at.child("scope"), errors);
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
            rule(&said, &at.child(name).index(i), errors);
        }
    }
}

pub fn conditions(list: Option<&[MatchCondition]>, at: &FieldPath, errors: &mut FieldErrors) {
    let list = list.unwrap_or_default();
    if list.len() > 64 {
        errors.too_many(at, list.len(), 64);
    }
    let mut names = BTreeSet::new();
    for (i, condition) in list.iter().enumerate() {
        let at = at.index(i);
        if condition.expression.trim().is_empty() {
            errors.required(&at.child("expression"), "");
        }
        if condition.name.is_empty() {
            errors.required(&at.child("name"), "");
        } else {
            if !names.insert(&condition.name) {
                errors.duplicate(&at.child("name"), &condition.name);
            }
            for wrong in qualified_name(&condition.name) {
                errors.invalid(&at.child("name"), &condition.name, wrong);
            }
        }
    }
}

pub fn variables(list: Option<&[Variable]>, at: &FieldPath, errors: &mut FieldErrors) {
    for (i, variable) in list.unwrap_or_default().iter().enumerate() {
        let at = at.index(i);
        let name = &variable.name;
        if name.is_empty() {
            errors.required(&at.child("name"), "name is not specified");
        } else if !krate_api::names::is_c_identifier(name).is_empty() {
            errors.invalid(&at.child("name"), name, "name is not a valid CEL identifier");
        }
        if variable.expression.trim().is_empty() {
            errors.required(&at.child("expression"), "expression is not specified");
        }
    }
}

pub fn param_kind(kind: Option<&ParamKind>, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(kind) = kind else { return };
    if kind.api_version.as_deref().is_none_or(str::is_empty) {
        errors.required(&at.child("apiVersion"), "");
    }
    if kind.kind.as_deref().is_none_or(str::is_empty) {
        errors.required(&at.child("kind"), "");
    }
}

pub fn param_ref(reference: Option<&ParamRef>, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(reference) = reference else { return };
    let name = reference.name.as_deref().unwrap_or_default();
    match (name.is_empty(), &reference.selector) {
        (false, Some(_)) => {
            errors.forbidden(&at.child("name"), "name and selector are mutually exclusive");
        }
        (true, None) => errors.required(at, "one of name or selector must be specified"),
        _ => {}
    }
    if let Some(selector) = &reference.selector {
        label_selector(selector, &at.child("selector"), errors);
    }
    match reference.parameter_not_found_action.as_deref().unwrap_or_default() {
        "" => errors.required(&at.child("parameterNotFoundAction"), ""),
        action => one_of(action, &["Allow", "Deny"], &at.child("parameterNotFoundAction"), errors),
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

/// `namespace/name`, `*` for a selector, `<unset>` for none.
pub fn param_ref_text(reference: Option<&ParamRef>) -> serde_json::Value {
    match reference {
        Some(r) => {
            let name = r.name.as_deref().filter(|n| !n.is_empty()).unwrap_or("*");
            match r.namespace.as_deref().filter(|n| !n.is_empty()) {
                Some(namespace) => format!("{namespace}/{name}").into(),
                None => name.into(),
            }
        }
        None => "<unset>".into(),
    }
}
