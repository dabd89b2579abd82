//! FlowSchema: which requests are of which level.

use std::collections::BTreeSet;

use k8s_openapi::api::flowcontrol::v1::{FlowSchema, ResourcePolicyRule, ServiceAccountSubject, Subject};
use krate_api::names::is_dns1123_label;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use super::mandatory::{self, EXEMPT};
use crate::registry::column::{age, name, text};
use crate::registry::prepare::{differ, spec_and_status};
use crate::registry::rules::{dns_label, dns_subdomain, one_of, required};
use crate::registry::{Column, Strategy};

const VERBS: [&str; 9] =
    ["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];

impl Strategy for FlowSchema {
    const KIND: &'static Kind = &kinds::FLOW_SCHEMA;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text("PriorityLevel", "io.k8s.api.flowcontrol.v1.PriorityLevelConfigurationReference.name", |f| {
            f.spec.as_ref().map_or("", |s| s.priority_level_configuration.name.as_str()).into()
        }),
        text("MatchingPrecedence", "io.k8s.api.flowcontrol.v1.FlowSchemaSpec.matchingPrecedence", |f| {
            f.spec.as_ref().and_then(|s| s.matching_precedence).unwrap_or(0).into()
        }),
        text("DistinguisherMethod", "io.k8s.api.flowcontrol.v1.FlowSchemaSpec.distinguisherMethod", |f| {
            f.spec
                .as_ref()
                .and_then(|s| s.distinguisher_method.as_ref())
                .map_or("<none>", |d| d.type_.as_str())
                .into()
        }),
        age(),
        text("MissingPL", "references a broken or non-existent PriorityLevelConfiguration", |f| {
            let conditions = f.status.iter().flat_map(|s| s.conditions.iter().flatten());
            let dangling = conditions.into_iter().find(|c| c.type_.as_deref() == Some("Dangling"));
            dangling.and_then(|c| c.status.as_deref()).unwrap_or("?").into()
        }),
    ];

    fn default(&mut self) {
        let spec = self.spec.get_or_insert_default();
        if spec.matching_precedence.unwrap_or(0) == 0 {
            spec.matching_precedence = Some(1000);
        }
        self.status.get_or_insert_default();
    }

    spec_and_status!(generation, status alone);

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec");
        let Some(spec) = &self.spec else { return };
        let precedence = spec.matching_precedence.unwrap_or(0);
        if precedence <= 0 {
            errors.invalid(&at.child("matchingPrecedence"), precedence, "must be a positive value");
        } else if precedence > 10000 {
            errors.invalid(&at.child("matchingPrecedence"), precedence, "must not be greater than 10000");
        }
        let name = self.metadata.name.as_deref().unwrap_or_default();
        if precedence == 1 && name != EXEMPT {
            errors.invalid(
                &at.child("matchingPrecedence"),
                precedence,
                "only the schema named 'exempt' may have matchingPrecedence 1",
            );
        }
        let methods = ["ByNamespace", "ByUser"];
        if let Some(method) = spec.distinguisher_method.as_ref().map(|method| &method.type_)
            && !methods.contains(&method.as_str())
        {
            // Upstream shows its internal type.
            let shown = serde_json::json!({"Type": method});
            errors.not_supported(&at.child("distinguisherMethod").child("type"), shown, &methods);
        }
        let at_level = at.child("priorityLevelConfiguration").child("name");
        match spec.priority_level_configuration.name.as_str() {
            "" => errors.required(&at_level, "must reference a priority level"),
            level => dns_subdomain(level, &at_level, errors),
        }
        for (i, rule) in spec.rules.iter().flatten().enumerate() {
            let at = at.child("rules").index(i);
            if rule.subjects.is_empty() {
                errors.required(&at.child("subjects"), "subjects must contain at least one value");
            }
            for (j, s) in rule.subjects.iter().enumerate() {
                subject(s, &at.child("subjects").index(j), errors);
            }
            let resources = rule.resource_rules.as_deref().unwrap_or_default();
            let others = rule.non_resource_rules.as_deref().unwrap_or_default();
            if resources.is_empty() && others.is_empty() {
                errors
                    .required(&at, "at least one of resourceRules and nonResourceRules has to be non-empty");
            }
            for (j, r) in resources.iter().enumerate() {
                resource_rule(r, &at.child("resourceRules").index(j), errors);
            }
            for (j, r) in others.iter().enumerate() {
                let at = at.child("nonResourceRules").index(j);
                verbs(&r.verbs, &at.child("verbs"), errors);
                urls(&r.non_resource_urls, &at.child("nonResourceURLs"), errors);
            }
        }
        if mandatory::schema(name).is_some_and(|fixed| differ(spec, &fixed)) {
            errors.invalid(&at, spec, format!("spec of '{name}' must equal the fixed value"));
        }
    }

    fn validate_status_update(&self, _: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        let conditions = self.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let types = conditions.map(|condition| condition.type_.as_deref().unwrap_or_default());
        condition_types(types, &at.child("status").child("conditions"), errors);
    }
}

/// What is there has a type, each its own.
pub fn condition_types<'a>(types: impl Iterator<Item = &'a str>, at: &FieldPath, errors: &mut FieldErrors) {
    let mut known = BTreeSet::new();
    for (i, kind) in types.enumerate() {
        let at = at.index(i).child("type");
        if !known.insert(kind) {
            errors.duplicate(&at, kind);
        }
        required(Some(kind), &at, errors);
    }
}

fn resource_rule(rule: &ResourcePolicyRule, at: &FieldPath, errors: &mut FieldErrors) {
    verbs(&rule.verbs, &at.child("verbs"), errors);
    let groups = ("resource rules must supply at least one api group", "api groups");
    values(&rule.api_groups, groups, &at.child("apiGroups"), errors);
    let resources = ("resource rules must supply at least one resource", "resources");
    values(&rule.resources, resources, &at.child("resources"), errors);
    let (at, namespaces) = (at.child("namespaces"), rule.namespaces.as_deref().unwrap_or_default());
    if namespaces.is_empty() && rule.cluster_scope == Some(true) {
        return;
    }
    let none = "resource rules that are not cluster scoped must supply at least one namespace";
    if values(namespaces, (none, "namespaces"), &at, errors) {
        return;
    }
    for (i, namespace) in namespaces.iter().enumerate() {
        for why in is_dns1123_label(namespace) {
            let why = format!("each member of this list must be '*' or a DNS-1123 label; {why}");
            errors.invalid(&at.index(i), namespace, why);
        }
    }
}

/// Requires values, and a star to stand alone; returns whether there is one. `told`: what is said if there are none,
/// and what they are called.
fn values(list: &[String], told: (&str, &str), at: &FieldPath, errors: &mut FieldErrors) -> bool {
    let (none, called) = told;
    let has_star = list.iter().any(|value| value == "*");
    if list.is_empty() {
        errors.required(at, none);
    } else if list.len() > 1 && has_star {
        errors.invalid(at, list, format!("if '*' is present, must not specify other {called}"));
    }
    has_star
}

fn verbs(list: &[String], at: &FieldPath, errors: &mut FieldErrors) {
    let has_star = values(list, ("verbs must contain at least one value", "verbs"), at, errors);
    if !has_star && list.iter().any(|verb| !VERBS.contains(&verb.as_str())) {
        errors.not_supported(at, list, &VERBS);
    }
}

fn urls(list: &[String], at: &FieldPath, errors: &mut FieldErrors) {
    let told = ("nonResourceURLs must contain at least one value", "non-resource URLs");
    if values(list, told, at, errors) {
        return;
    }
    for (i, url) in list.iter().enumerate() {
        let stars = url.matches('*').count();
        let why = match url.as_str() {
            "/" => continue,
            "" => "must not be empty",
            url if !url.starts_with('/') => "must start with slash",
            url if url.contains(' ') => "must not contain white-space",
            url if url.contains("//") => "must not contain double slash",
            url if stars > 1 || (stars == 1 && !url.ends_with("/*")) => {
                "wildcard can only do suffix matching"
            }
            _ => continue,
        };
        errors.invalid(&at.index(i), url, why);
    }
}

fn subject(s: &Subject, at: &FieldPath, errors: &mut FieldErrors) {
    let given = [
        ("group", "Group", s.group.is_some()),
        ("serviceAccount", "ServiceAccount", s.service_account.is_some()),
        ("user", "User", s.user.is_some()),
    ];
    if !given.iter().any(|(_, kind, _)| *kind == s.kind) {
        one_of(&s.kind, &["Group", "ServiceAccount", "User"], &at.child("kind"), errors);
        return;
    }
    if let Some((field, kind, _)) = given.iter().find(|(_, kind, set)| *kind == s.kind && !set) {
        errors.required(&at.child(field), format!("{field} is required when subject kind is '{kind}'"));
    }
    if let Some(group) = s.group.as_ref().filter(|_| s.kind == "Group") {
        required(Some(&group.name), &at.child("group").child("name"), errors);
    }
    if let Some(user) = s.user.as_ref().filter(|_| s.kind == "User") {
        required(Some(&user.name), &at.child("user").child("name"), errors);
    }
    if let Some(account) = s.service_account.as_ref().filter(|_| s.kind == "ServiceAccount") {
        service_account(account, &at.child("serviceAccount"), errors);
    }
    for (field, kind, _) in given.iter().rev().filter(|(_, kind, set)| *kind != s.kind && *set) {
        errors.forbidden(&at.child(field), format!("{field} is forbidden when subject kind is not '{kind}'"));
    }
}

fn service_account(account: &ServiceAccountSubject, at: &FieldPath, errors: &mut FieldErrors) {
    match account.name.as_str() {
        "" => errors.required(&at.child("name"), ""),
        "*" => {}
        name => dns_subdomain(name, &at.child("name"), errors),
    }
    match account.namespace.as_str() {
        "" => errors.required(&at.child("namespace"), "must specify namespace for service account"),
        namespace => dns_label(namespace, &at.child("namespace"), errors),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn schema(name: &str, change: impl FnOnce(&mut Value)) -> FlowSchema {
        let mut spec = json!({"matchingPrecedence": 500, "priorityLevelConfiguration": {"name": "system"},
            "rules": [{
                "subjects": [{"kind": "User", "user": {"name": "a"}}],
                "resourceRules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "namespaces": ["n"]}],
                "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["/healthz", "/debug/*"]}]}]});
        change(&mut spec);
        let mut schema: FlowSchema =
            serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).expect("a schema");
        schema.default();
        schema
    }

    fn told(schema: &FlowSchema) -> Vec<String> {
        let mut errors = FieldErrors::new();
        schema.validate(&FieldPath::new(""), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rules_say_what_there_is() {
        assert_eq!(told(&schema("a", |_| ())), [""; 0]);
        let at = "spec.rules[0]";
        let wrong = schema("a", |spec| {
            spec["rules"][0]["resourceRules"] =
                json!([{"verbs": [], "apiGroups": [], "resources": [], "namespaces": ["N"]}]);
            spec["rules"][0]["nonResourceRules"] =
                json!([{"verbs": ["fly"], "nonResourceURLs": ["healthz", "/a b", "/a//b", "/*/a", "/"]}]);
        });
        let told = told(&wrong);
        assert_eq!(
            told[..3],
            [
                format!("{at}.resourceRules[0].verbs: Required value: verbs must contain at least one value"),
                format!(
                    "{at}.resourceRules[0].apiGroups: Required value: resource rules must supply at least one api group"
                ),
                format!(
                    "{at}.resourceRules[0].resources: Required value: resource rules must supply at least one resource"
                ),
            ]
        );
        assert!(told[3].starts_with(&format!(
            "{at}.resourceRules[0].namespaces[0]: Invalid value: \"N\": each member of this list must be '*' or a \
             DNS-1123 label; a lowercase"
        )));
        let at = format!("{at}.nonResourceRules[0]");
        assert!(
            told[4].starts_with(&format!(
                "{at}.verbs: Unsupported value: [\"fly\"]: supported values: \"create\""
            ))
        );
        assert_eq!(
            told[5..],
            [
                format!("{at}.nonResourceURLs[0]: Invalid value: \"healthz\": must start with slash"),
                format!("{at}.nonResourceURLs[1]: Invalid value: \"/a b\": must not contain white-space"),
                format!("{at}.nonResourceURLs[2]: Invalid value: \"/a//b\": must not contain double slash"),
                format!(
                    "{at}.nonResourceURLs[3]: Invalid value: \"/*/a\": wildcard can only do suffix matching"
                ),
            ]
        );
    }

    #[test]
    fn subjects_are_of_their_kind() {
        let wrong = schema("a", |spec| {
            spec["rules"][0]["subjects"] = json!([
                {"kind": "User", "group": {"name": "g"}},
                {"kind": "ServiceAccount", "serviceAccount": {"name": "*", "namespace": ""}}]);
        });
        assert_eq!(
            told(&wrong),
            [
                "spec.rules[0].subjects[0].user: Required value: user is required when subject kind is 'User'",
                "spec.rules[0].subjects[0].group: Forbidden: group is forbidden when subject kind is not 'Group'",
                "spec.rules[0].subjects[1].serviceAccount.namespace: Required value: must specify namespace for service \
                 account",
            ]
        );
    }

    #[test]
    fn what_is_mandatory_stays() {
        let told = told(&schema("catch-all", |_| ()));
        assert_eq!(told.len(), 1);
        assert!(told[0].starts_with("spec: Invalid value: "));
        assert!(told[0].ends_with(": spec of 'catch-all' must equal the fixed value"));
    }

    #[test]
    fn conditions_have_types_of_their_own() {
        let mut errors = FieldErrors::new();
        condition_types(["a", "a", ""].into_iter(), &FieldPath::new("x"), &mut errors);
        assert_eq!(errors.aggregate(), "[x[1].type: Duplicate value: \"a\", x[2].type: Required value]");
    }
}
