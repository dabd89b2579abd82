//! Where a pod may run: selectors, affinity, tolerations, spreading, gates.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    Affinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodAffinityTerm, PodSpec, Toleration,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use krate_api::{FieldErrors, FieldPath};

use super::volumes::{topology_key, weight};
use crate::registry::rules::{dns_label, each, label_name, label_selector, label_value, one_of, positive};

pub fn scheduling(spec: &PodSpec, at: &FieldPath, errors: &mut FieldErrors) {
    if let Some(a) = &spec.affinity {
        affinity(a, &at.child("affinity"), errors);
    }
    for (i, t) in spec.tolerations.iter().flatten().enumerate() {
        toleration(t, &at.child("tolerations").index(i), errors);
    }
    spreading(spec, &at.child("topologySpreadConstraints"), errors);
    let mut gates = BTreeSet::new();
    for (i, gate) in spec.scheduling_gates.iter().flatten().enumerate() {
        let at = at.child("schedulingGates").index(i);
        label_name(&gate.name, &at, errors);
        if !gates.insert(&gate.name) {
            errors.duplicate(&at, &gate.name);
        }
    }
}

pub fn affinity(a: &Affinity, at: &FieldPath, errors: &mut FieldErrors) {
    if let Some(node) = &a.node_affinity {
        let at = at.child("nodeAffinity");
        if let Some(required) = &node.required_during_scheduling_ignored_during_execution {
            node_selector(required, &at.child("requiredDuringSchedulingIgnoredDuringExecution"), errors);
        }
        for (i, term) in
            node.preferred_during_scheduling_ignored_during_execution.iter().flatten().enumerate()
        {
            let at = at.child("preferredDuringSchedulingIgnoredDuringExecution").index(i);
            weight(term.weight, &at.child("weight"), errors);
            node_selector_term(&term.preference, Values::Any, &at.child("preference"), errors);
        }
    }
    let both = [
        (
            "podAffinity",
            a.pod_affinity.as_ref().map(|p| {
                (
                    p.required_during_scheduling_ignored_during_execution.as_deref(),
                    p.preferred_during_scheduling_ignored_during_execution.as_deref(),
                )
            }),
        ),
        (
            "podAntiAffinity",
            a.pod_anti_affinity.as_ref().map(|p| {
                (
                    p.required_during_scheduling_ignored_during_execution.as_deref(),
                    p.preferred_during_scheduling_ignored_during_execution.as_deref(),
                )
            }),
        ),
    ];
    for (name, terms) in both {
        let Some((required, preferred)) = terms else { continue };
        let at = at.child(name);
        for (i, term) in required.unwrap_or_default().iter().enumerate() {
            pod_term(term, &at.child("requiredDuringSchedulingIgnoredDuringExecution").index(i), errors);
        }
        for (i, term) in preferred.unwrap_or_default().iter().enumerate() {
            let at = at.child("preferredDuringSchedulingIgnoredDuringExecution").index(i);
            weight(term.weight, &at.child("weight"), errors);
            pod_term(&term.pod_affinity_term, &at.child("podAffinityTerm"), errors);
        }
    }
}

pub fn node_selector(selector: &NodeSelector, at: &FieldPath, errors: &mut FieldErrors) {
    let at = at.child("nodeSelectorTerms");
    if selector.node_selector_terms.is_empty() {
        errors.required(&at, "must have at least one node selector term");
    }
    for (i, term) in selector.node_selector_terms.iter().enumerate() {
        node_selector_term(term, Values::OfLabels, &at.index(i), errors);
    }
}

/// What a rule may compare a node's labels with. A wish may be for what no label can be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Values {
    OfLabels,
    Any,
}

fn node_selector_term(term: &NodeSelectorTerm, values: Values, at: &FieldPath, errors: &mut FieldErrors) {
    for (i, rule) in term.match_expressions.iter().flatten().enumerate() {
        node_rule(rule, values, &at.child("matchExpressions").index(i), errors);
    }
    for (i, rule) in term.match_fields.iter().flatten().enumerate() {
        let at = at.child("matchFields").index(i);
        let values = rule.values.as_deref().unwrap_or_default();
        if !matches!(rule.operator.as_str(), "In" | "NotIn") {
            errors.invalid(&at.child("operator"), &rule.operator, "not a valid selector operator");
        } else if values.len() != 1 {
            errors.required(
                &at.child("values"),
                "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
            );
        }
        if rule.key == "metadata.name" {
            for (j, value) in values.iter().enumerate() {
                each(
                    krate_api::names::is_dns1123_subdomain(value),
                    value,
                    &at.child("values").index(j),
                    errors,
                );
            }
        } else {
            errors.invalid(&at.child("key"), &rule.key, "not a valid field selector key");
        }
    }
}

fn node_rule(rule: &NodeSelectorRequirement, of: Values, at: &FieldPath, errors: &mut FieldErrors) {
    let values = rule.values.as_deref().unwrap_or_default();
    match rule.operator.as_str() {
        "In" | "NotIn" => {
            if values.is_empty() {
                errors.required(&at.child("values"), "must be specified when `operator` is 'In' or 'NotIn'");
            }
        }
        "Exists" | "DoesNotExist" => {
            if !values.is_empty() {
                errors.forbidden(
                    &at.child("values"),
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                );
            }
        }
        "Gt" | "Lt" => {
            if values.len() != 1 {
                errors.required(
                    &at.child("values"),
                    "must be specified single value when `operator` is 'Lt' or 'Gt'",
                );
            }
        }
        other => errors.invalid(&at.child("operator"), other, "not a valid selector operator"),
    }
    label_name(&rule.key, &at.child("key"), errors);
    for (i, value) in values.iter().enumerate().filter(|_| of == Values::OfLabels) {
        each(label_value(value), value, &at.child("values").index(i), errors);
    }
}

fn pod_term(term: &PodAffinityTerm, at: &FieldPath, errors: &mut FieldErrors) {
    if let Some(selector) = &term.label_selector {
        label_selector(selector, &at.child("labelSelector"), errors);
    }
    if let Some(selector) = &term.namespace_selector {
        label_selector(selector, &at.child("namespaceSelector"), errors);
    }
    for name in term.namespaces.iter().flatten() {
        dns_label(name, &at.child("namespace"), errors);
    }
    label_keys(
        term.match_label_keys.as_deref().unwrap_or_default(),
        term.mismatch_label_keys.as_deref().unwrap_or_default(),
        term.label_selector.as_ref(),
        at,
        errors,
    );
    topology_key(&term.topology_key, &at.child("topologyKey"), errors);
}

/// Keys whose values in a pod's own labels become part of a selector. They are in the selector of a pod already, so one
/// that was there before is there twice.
fn label_keys(
    same: &[String],
    other: &[String],
    selector: Option<&LabelSelector>,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    for (name, keys) in [("matchLabelKeys", same), ("mismatchLabelKeys", other)] {
        let at = at.child(name);
        if selector.is_none() && !keys.is_empty() {
            errors.forbidden(&at, "must not be specified when labelSelector is not set");
            continue;
        }
        for (i, key) in keys.iter().enumerate() {
            label_name(key, &at.index(i), errors);
        }
    }
    if let Some(selector) = selector {
        let mut seen: BTreeSet<&String> =
            selector.match_labels.iter().flatten().map(|(key, _)| key).collect();
        for rule in selector.match_expressions.iter().flatten() {
            let place = same.iter().rposition(|key| *key == rule.key);
            if let (false, Some(i)) = (seen.insert(&rule.key), place) {
                let why = "exists in both matchLabelKeys and labelSelector";
                errors.invalid(&at.index(i), &rule.key, why);
            }
        }
    }
    for (i, key) in same.iter().enumerate().filter(|(_, key)| other.contains(key)) {
        let why = "exists in both matchLabelKeys and mismatchLabelKeys";
        errors.invalid(&at.child("matchLabelKeys").index(i), key, why);
    }
}

pub fn toleration(t: &Toleration, at: &FieldPath, errors: &mut FieldErrors) {
    let key = t.key.as_deref().unwrap_or_default();
    let value = t.value.as_deref().unwrap_or_default();
    let operator = t.operator.as_deref().unwrap_or_default();
    let effect = t.effect.as_deref().unwrap_or_default();
    if !key.is_empty() {
        label_name(key, &at.child("key"), errors);
    }
    if key.is_empty() && operator != "Exists" {
        errors.invalid(
            &at.child("operator"),
            operator,
            "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
        );
    }
    if t.toleration_seconds.is_some() && effect != "NoExecute" {
        errors.invalid(
            &at.child("effect"),
            effect,
            "effect must be 'NoExecute' when `tolerationSeconds` is set",
        );
    }
    match operator {
        "" | "Equal" => {
            let wrong = label_value(value);
            if !wrong.is_empty() {
                errors.invalid(&at.child("operator"), value, wrong.join(";"));
            }
        }
        "Exists" => {
            if !value.is_empty() {
                let why = "value must be empty when `operator` is 'Exists'";
                errors.invalid(&at.child("operator"), value, why);
            }
        }
        // A feature is off that brings these, and upstream lists them nevertheless.
        "Lt" | "Gt" => {
            errors.not_supported(&at.child("operator"), operator, &["Equal", "Exists", "Lt", "Gt"]);
        }
        other => one_of(other, &["Equal", "Exists"], &at.child("operator"), errors),
    }
    if !effect.is_empty() {
        one_of(effect, &["NoSchedule", "PreferNoSchedule", "NoExecute"], &at.child("effect"), errors);
    }
}

fn spreading(spec: &PodSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let all = spec.topology_spread_constraints.as_deref().unwrap_or_default();
    let pairs = all.iter().enumerate().map(|(i, c)| ((&c.topology_key, &c.when_unsatisfiable), i));
    let last: BTreeMap<_, usize> = pairs.collect();
    for (i, c) in all.iter().enumerate() {
        let at = at.index(i);
        positive(c.max_skew, &at.child("maxSkew"), errors);
        if c.topology_key.is_empty() {
            errors.required(&at.child("topologyKey"), "can not be empty");
        }
        one_of(
            &c.when_unsatisfiable,
            &["DoNotSchedule", "ScheduleAnyway"],
            &at.child("whenUnsatisfiable"),
            errors,
        );
        if last.get(&(&c.topology_key, &c.when_unsatisfiable)).is_some_and(|last| *last > i) {
            errors.duplicate(
                &at.child("{topologyKey, whenUnsatisfiable}"),
                format!("{{{}, {}}}", c.topology_key, c.when_unsatisfiable),
            );
        }
        if let Some(domains) = c.min_domains {
            positive(domains, &at.child("minDomains"), errors);
            if c.when_unsatisfiable != "DoNotSchedule" {
                errors.invalid(
                    &at.child("minDomains"),
                    domains,
                    format!(
                        "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {}",
                        c.when_unsatisfiable
                    ),
                );
            }
        }
        for (name, policy) in
            [("nodeAffinityPolicy", &c.node_affinity_policy), ("nodeTaintsPolicy", &c.node_taints_policy)]
        {
            if let Some(policy) = policy {
                one_of(policy, &["Honor", "Ignore"], &at.child(name), errors);
            }
        }
        let keys = c.match_label_keys.as_deref().unwrap_or_default();
        label_keys(keys, &[], c.label_selector.as_ref(), &at, errors);
        if let Some(selector) = &c.label_selector {
            label_selector(selector, &at.child("labelSelector"), errors);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn said(spec: Value) -> String {
        let mut spec = spec;
        spec["containers"] = json!([]);
        let mut errors = FieldErrors::new();
        scheduling(&serde_json::from_value(spec).expect("a spec"), &FieldPath::new("spec"), &mut errors);
        errors.aggregate()
    }

    #[test]
    fn a_wish_for_a_node_may_be_for_anything() {
        let rule = json!({"matchExpressions": [{"key": "k", "operator": "In", "values": ["-no-label-"]}]});
        let wished = json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 1, "preference": rule}]}});
        let required = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [rule]}}});
        assert_eq!(said(json!({"affinity": wished})), "[]");
        assert!(said(json!({"affinity": required})).contains("values[0]: Invalid value: \"-no-label-\""));
    }

    #[test]
    fn keys_go_with_a_selector_that_does_not_have_them() {
        let spread = |rest: Value| {
            let mut c =
                json!({"maxSkew": 1, "topologyKey": "not a label", "whenUnsatisfiable": "DoNotSchedule"});
            c.as_object_mut().expect("a map").extend(rest.as_object().cloned().unwrap_or_default());
            said(json!({"topologySpreadConstraints": [c]}))
        };
        let merged = json!([{"key": "a", "operator": "In", "values": ["1"]}]);
        let at = "spec.topologySpreadConstraints[0]";
        assert_eq!(spread(json!({"labelSelector": {}, "matchLabelKeys": ["a"]})), "[]");
        assert_eq!(
            spread(json!({"labelSelector": {"matchExpressions": merged}, "matchLabelKeys": ["a"]})),
            "[]",
            "the rule that the server made of the key itself"
        );
        assert_eq!(
            spread(json!({"matchLabelKeys": ["a"]})),
            format!("{at}.matchLabelKeys: Forbidden: must not be specified when labelSelector is not set")
        );
        assert_eq!(
            spread(json!({"labelSelector": {"matchLabels": {"a": "1"}, "matchExpressions": merged},
                "matchLabelKeys": ["a"]})),
            format!("{at}[0]: Invalid value: \"a\": exists in both matchLabelKeys and labelSelector")
        );
        let far = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{
            "topologyKey": "zone", "labelSelector": {}, "matchLabelKeys": ["a"], "mismatchLabelKeys": ["a"]}]}});
        assert!(said(json!({"affinity": far})).ends_with(
            "matchLabelKeys[0]: Invalid value: \"a\": exists in both matchLabelKeys and mismatchLabelKeys"
        ));
    }

    #[test]
    fn tolerations_say_what_of_them_is_wrong() {
        let at = "spec.tolerations[0]";
        for (toleration, told) in [
            (
                json!({"key": "k", "operator": "Exists", "value": "v"}),
                format!(
                    "{at}.operator: Invalid value: \"v\": value must be empty when `operator` is 'Exists'"
                ),
            ),
            (
                json!({"key": "k", "operator": "Gt", "value": "1"}),
                format!(
                    "{at}.operator: Unsupported value: \"Gt\": supported values: \"Equal\", \"Exists\", \"Lt\", \"Gt\""
                ),
            ),
            (
                json!({"key": "k", "effect": "No"}),
                format!(
                    "{at}.effect: Unsupported value: \"No\": supported values: \"NoSchedule\", \
                     \"PreferNoSchedule\", \"NoExecute\""
                ),
            ),
        ] {
            assert_eq!(said(json!({"tolerations": [toleration]})), told);
        }
    }
}
