//! When a Job has failed, and when it is done, by what became of its pods.

use std::collections::BTreeSet;

use k8s_openapi::api::batch::v1::{
    JobSpec, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyOnPodConditionsPattern,
    PodFailurePolicyRule, SuccessPolicyRule,
};
use krate_api::{FieldErrors, FieldPath};
use serde::Serialize;

use super::indexes;
use crate::registry::rules::{invalid_unshown, label_name, not_negative, one_of};

const ACTIONS: &[&str] = &["Count", "FailIndex", "FailJob", "Ignore"];
const MAX_RULES: usize = 20;
const MAX_EXIT_CODES: usize = 255;
const MAX_PATTERNS: usize = 20;
const MAX_INDEXES: usize = 64 * 1024;

pub fn failure(spec: &JobSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(policy) = &spec.pod_failure_policy else { return };
    let at = at.child("rules");
    if policy.rules.len() > MAX_RULES {
        errors.too_many(&at, policy.rules.len(), MAX_RULES);
    }
    let pod = spec.template.spec.as_ref();
    let init = pod.iter().flat_map(|p| p.init_containers.iter().flatten());
    let containers: BTreeSet<&str> =
        pod.iter().flat_map(|p| &p.containers).chain(init).map(|c| c.name.as_str()).collect();
    for (i, rule) in policy.rules.iter().enumerate() {
        failure_rule(rule, spec, &containers, &at.index(i), errors);
    }
}

fn failure_rule(
    rule: &PodFailurePolicyRule,
    spec: &JobSpec,
    containers: &BTreeSet<&str>,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    let at_action = at.child("action");
    match rule.action.as_str() {
        "" => {
            errors.required(&at_action, "valid values: [\"Count\" \"FailIndex\" \"FailJob\" \"Ignore\"]");
        }
        "FailIndex" => {
            if spec.backoff_limit_per_index.is_none() {
                errors.invalid(&at_action, "FailIndex", "requires the backoffLimitPerIndex to be set");
            }
        }
        action => one_of(action, ACTIONS, &at_action, errors),
    }
    let patterns = rule.on_pod_conditions.as_deref().unwrap_or_default();
    if let Some(codes) = &rule.on_exit_codes {
        exit_codes(codes, containers, &at.child("onExitCodes"), errors);
    }
    conditions(patterns, &at.child("onPodConditions"), errors);
    match (&rule.on_exit_codes, patterns.is_empty()) {
        (Some(_), false) => {
            let why = "specifying both OnExitCodes and OnPodConditions is not supported";
            invalid_unshown(at, why, errors);
        }
        (None, true) => {
            let why = "specifying one of OnExitCodes and OnPodConditions is required";
            invalid_unshown(at, why, errors);
        }
        _ => {}
    }
}

fn conditions(patterns: &[PodFailurePolicyOnPodConditionsPattern], at: &FieldPath, errors: &mut FieldErrors) {
    if patterns.len() > MAX_PATTERNS {
        errors.too_many(at, patterns.len(), MAX_PATTERNS);
    }
    for (i, pattern) in patterns.iter().enumerate() {
        let at = at.index(i);
        label_name(&pattern.type_, &at.child("type"), errors);
        match pattern.status.as_deref().unwrap_or_default() {
            "" => {
                errors.required(&at.child("status"), "valid values: [\"False\" \"True\" \"Unknown\"]");
            }
            status => one_of(status, &["False", "True", "Unknown"], &at.child("status"), errors),
        }
    }
}

fn exit_codes(
    codes: &PodFailurePolicyOnExitCodesRequirement,
    containers: &BTreeSet<&str>,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    match codes.operator.as_str() {
        "" => errors.required(&at.child("operator"), "valid values: [\"In\" \"NotIn\"]"),
        operator => one_of(operator, &["In", "NotIn"], &at.child("operator"), errors),
    }
    if let Some(name) = codes.container_name.as_deref().filter(|name| !containers.contains(name)) {
        errors.invalid(
            &at.child("containerName"),
            name,
            "must be one of the container or initContainer names in the pod template",
        );
    }
    let at = at.child("values");
    if codes.values.is_empty() {
        errors.invalid(&at, &codes.values, "at least one value is required");
    } else if codes.values.len() > MAX_EXIT_CODES {
        errors.too_many(&at, codes.values.len(), MAX_EXIT_CODES);
    }
    let mut seen = BTreeSet::new();
    for (i, code) in codes.values.iter().enumerate() {
        if codes.operator == "In" && *code == 0 {
            errors.invalid(&at.index(i), code, "must not be 0 for the In operator");
        }
        if !seen.insert(code) {
            errors.duplicate(&at.index(i), code);
        }
    }
    if !codes.values.is_sorted() {
        errors.invalid(&at, &codes.values, "must be ordered");
    }
}

/// A policy as upstream shows it: with the names that its fields have in memory.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct InMemory<'a> {
    rules: Vec<RuleInMemory<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct RuleInMemory<'a> {
    succeeded_indexes: Option<&'a str>,
    succeeded_count: Option<i32>,
}

pub fn success(spec: &JobSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(policy) = &spec.success_policy else { return };
    if spec.completion_mode.as_deref() != Some("Indexed") {
        let rules = policy.rules.iter().map(|rule| RuleInMemory {
            succeeded_indexes: rule.succeeded_indexes.as_deref(),
            succeeded_count: rule.succeeded_count,
        });
        errors.invalid(at, InMemory { rules: rules.collect() }, "requires indexed completion mode");
        return;
    }
    let at = at.child("rules");
    if policy.rules.is_empty() {
        errors.required(&at, "at least one rules must be specified when the successPolicy is specified");
    }
    if policy.rules.len() > MAX_RULES {
        errors.too_many(&at, policy.rules.len(), MAX_RULES);
    }
    for (i, rule) in policy.rules.iter().enumerate() {
        success_rule(rule, spec.completions.unwrap_or(0), &at.index(i), errors);
    }
}

fn success_rule(rule: &SuccessPolicyRule, completions: i32, at: &FieldPath, errors: &mut FieldErrors) {
    if rule.succeeded_count.is_none() && rule.succeeded_indexes.is_none() {
        errors.required(at, "at least one of succeededCount or succeededIndexes must be specified");
    }
    let mut total = 0;
    if let Some(text) = &rule.succeeded_indexes {
        let at = at.child("succeededIndexes");
        if text.len() > MAX_INDEXES {
            errors.too_long(&at, MAX_INDEXES);
        }
        match indexes::count(text, completions) {
            Ok(count) => total = count,
            Err(why) => errors.invalid(&at, text, format!("error parsing succeededIndexes: {why}")),
        }
    }
    let Some(count) = rule.succeeded_count else { return };
    let at = at.child("succeededCount");
    not_negative(count, &at, errors);
    if count > completions {
        let why =
            format!("must be less than or equal to {completions} (the number of specified completions)");
        errors.invalid(&at, count, why);
    }
    if rule.succeeded_indexes.is_some() && count > total {
        errors.invalid(
            &at,
            count,
            format!(
                "must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)"
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn said(of: fn(&JobSpec, &FieldPath, &mut FieldErrors), spec: Value) -> Vec<String> {
        let spec: JobSpec = serde_json::from_value(spec).expect("a spec");
        let mut errors = FieldErrors::new();
        of(&spec, &FieldPath::new("p"), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_rule_of_failure_says_one_thing_in_order() {
        let rules = |rules: Value| {
            said(
                failure,
                json!({"podFailurePolicy": {"rules": rules}, "template": {"spec": {"containers": [{"name": "c"}]}}}),
            )
        };
        assert_eq!(
            rules(json!([{"action": "FailJob",
                "onExitCodes": {"operator": "In", "containerName": "d", "values": [3, 3, 2]}}])),
            [
                "p.rules[0].onExitCodes.containerName: Invalid value: \"d\": must be one of the container or \
                 initContainer names in the pod template",
                "p.rules[0].onExitCodes.values[1]: Duplicate value: 3",
                "p.rules[0].onExitCodes.values: Invalid value: [3,3,2]: must be ordered",
            ]
        );
        assert_eq!(
            rules(json!([{"action": "FailIndex"}])),
            [
                "p.rules[0].action: Invalid value: \"FailIndex\": requires the backoffLimitPerIndex to be set",
                "p.rules[0]: Invalid value: specifying one of OnExitCodes and OnPodConditions is required",
            ]
        );
        assert_eq!(
            rules(json!([{"action": "Ignore", "onPodConditions": [{"type": "T", "status": "Odd"}]}])),
            [
                "p.rules[0].onPodConditions[0].status: Unsupported value: \"Odd\": supported values: \"False\", \
                 \"True\", \"Unknown\""
            ]
        );
    }

    #[test]
    fn success_is_of_indexes_that_there_are() {
        let rules = |mode: &str, rules: Value| {
            said(
                success,
                json!({"completionMode": mode, "completions": 3, "successPolicy": {"rules": rules}}),
            )
        };
        assert_eq!(rules("Indexed", json!([{"succeededIndexes": "0-1", "succeededCount": 2}])), [""; 0]);
        assert_eq!(
            rules(
                "Indexed",
                json!([{"succeededIndexes": "0-9"}, {}, {"succeededIndexes": "0", "succeededCount": 2}])
            ),
            [
                "p.rules[0].succeededIndexes: Invalid value: \"0-9\": error parsing succeededIndexes: too large \
                 index: \"9\"",
                "p.rules[1]: Required value: at least one of succeededCount or succeededIndexes must be specified",
                "p.rules[2].succeededCount: Invalid value: 2: must be less than or equal to 1 (the number of indexes \
                 in the specified succeededIndexes field)",
            ]
        );
        assert_eq!(
            rules("NonIndexed", json!([{"succeededCount": 1}])),
            [
                "p: Invalid value: {\"Rules\":[{\"SucceededIndexes\":null,\"SucceededCount\":1}]}: requires indexed \
                 completion mode"
            ]
        );
    }
}
