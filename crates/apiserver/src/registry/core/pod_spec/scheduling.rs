//! Where a pod may run: selectors, affinity, tolerations, spreading, gates.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    Affinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodAffinityTerm, PodSpec, Toleration,
};
use krate_api::{FieldErrors, FieldPath};

use super::volumes::{topology_key, weight};
use crate::registry::rules::{
    dns_label, each, is_empty_selector, label_name, label_selector, label_value, one_of, positive,
};

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
            node_selector_term(&term.preference, &at.child("preference"), errors);
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
        node_selector_term(term, &at.index(i), errors);
    }
}

fn node_selector_term(term: &NodeSelectorTerm, at: &FieldPath, errors: &mut FieldErrors) {
    for (i, rule) in term.match_expressions.iter().flatten().enumerate() {
        node_rule(rule, &at.child("matchExpressions").index(i), errors);
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

fn node_rule(rule: &NodeSelectorRequirement, at: &FieldPath, errors: &mut FieldErrors) {
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
    for (i, value) in values.iter().enumerate() {
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
    label_keys(term.match_label_keys.as_deref(), term, &at.child("matchLabelKeys"), errors);
    label_keys(term.mismatch_label_keys.as_deref(), term, &at.child("mismatchLabelKeys"), errors);
    topology_key(&term.topology_key, &at.child("topologyKey"), errors);
}

fn label_keys(keys: Option<&[String]>, term: &PodAffinityTerm, at: &FieldPath, errors: &mut FieldErrors) {
    let keys = keys.unwrap_or_default();
    if !keys.is_empty() && term.label_selector.as_ref().is_none_or(is_empty_selector) {
        errors.forbidden(at, "must not be specified when labelSelector is not set");
    }
    for (i, key) in keys.iter().enumerate() {
        label_name(key, &at.index(i), errors);
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
        "" | "Equal" => each(label_value(value), value, &at.child("operator"), errors),
        "Exists" => {
            if !value.is_empty() {
                errors.invalid(&at.child("operator"), t, "value must be empty when `operator` is 'Exists'");
            }
        }
        other => one_of(other, &["Equal", "Exists"], &at.child("operator"), errors),
    }
    if !effect.is_empty() {
        one_of(effect, &["NoExecute", "NoSchedule", "PreferNoSchedule"], &at.child("effect"), errors);
    }
}

fn spreading(spec: &PodSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let mut seen = BTreeSet::new();
    for (i, c) in spec.topology_spread_constraints.iter().flatten().enumerate() {
        let at = at.index(i);
        positive(c.max_skew, &at.child("maxSkew"), errors);
        if c.topology_key.is_empty() {
            errors.required(&at.child("topologyKey"), "can not be empty");
        } else {
            label_name(&c.topology_key, &at.child("topologyKey"), errors);
        }
        one_of(
            &c.when_unsatisfiable,
            &["DoNotSchedule", "ScheduleAnyway"],
            &at.child("whenUnsatisfiable"),
            errors,
        );
        if !seen.insert((&c.topology_key, &c.when_unsatisfiable)) {
            errors.duplicate(
                &at.child("{topologyKey, whenUnsatisfiable}"),
                format!("{{{}, {}}}", c.topology_key, c.when_unsatisfiable),
            );
        }
        if let Some(domains) = c.min_domains {
            if domains <= 0 {
                errors.invalid(&at.child("minDomains"), domains, "must be greater than 0");
            }
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
        if let Some(selector) = &c.label_selector {
            label_selector(selector, &at.child("labelSelector"), errors);
        }
        for (j, key) in c.match_label_keys.iter().flatten().enumerate() {
            label_name(key, &at.child("matchLabelKeys").index(j), errors);
        }
    }
}
