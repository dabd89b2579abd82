//! Keys of labels in which a pod wants others to be like it, or unlike it: what its own labels say for them is written
//! into its selectors when it is made, and stays so (KEP-3633, KEP-3243).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PodAffinityTerm, PodSpec, WeightedPodAffinityTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

type Labels = BTreeMap<String, String>;

/// `labels` are the pod's own.
pub fn merge_label_keys(spec: &mut PodSpec, labels: Option<&Labels>) {
    let Some(labels) = labels else { return };
    if let Some(affinity) = &mut spec.affinity {
        if let Some(near) = &mut affinity.pod_affinity {
            terms(
                near.preferred_during_scheduling_ignored_during_execution.as_mut(),
                near.required_during_scheduling_ignored_during_execution.as_mut(),
                labels,
            );
        }
        if let Some(far) = &mut affinity.pod_anti_affinity {
            terms(
                far.preferred_during_scheduling_ignored_during_execution.as_mut(),
                far.required_during_scheduling_ignored_during_execution.as_mut(),
                labels,
            );
        }
    }
    for c in spec.topology_spread_constraints.iter_mut().flatten() {
        merge(c.label_selector.as_mut(), c.match_label_keys.as_deref(), "In", labels);
    }
}

fn terms(
    preferred: Option<&mut Vec<WeightedPodAffinityTerm>>,
    required: Option<&mut Vec<PodAffinityTerm>>,
    labels: &Labels,
) {
    let preferred = preferred.into_iter().flatten().map(|weighted| &mut weighted.pod_affinity_term);
    for term in preferred.chain(required.into_iter().flatten()) {
        merge(term.label_selector.as_mut(), term.match_label_keys.as_deref(), "In", labels);
        merge(term.label_selector.as_mut(), term.mismatch_label_keys.as_deref(), "NotIn", labels);
    }
}

/// No selector selects nothing, whatever else is asked for.
fn merge(selector: Option<&mut LabelSelector>, keys: Option<&[String]>, operator: &str, labels: &Labels) {
    let Some(selector) = selector else { return };
    for key in keys.unwrap_or_default() {
        let Some(value) = labels.get(key) else { continue };
        selector.match_expressions.get_or_insert_default().push(LabelSelectorRequirement {
            key: key.clone(),
            operator: operator.to_owned(),
            values: Some(vec![value.clone()]),
        });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn keys_become_rules_of_the_selector() {
        let term = json!({"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "a"}},
            "matchLabelKeys": ["hash", "none"], "mismatchLabelKeys": ["tenant"]});
        let mut spec: PodSpec = serde_json::from_value(json!({
        "containers": [],
        "affinity": {
            "podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]},
            "podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 1, "podAffinityTerm": term}]},
        },
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
             "labelSelector": {}, "matchLabelKeys": ["hash"]},
            {"maxSkew": 1, "topologyKey": "host", "whenUnsatisfiable": "DoNotSchedule",
             "matchLabelKeys": ["hash"]},
        ]}))
        .expect("a spec");
        let labels = [("hash", "1"), ("tenant", "t")];
        let labels = labels.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        merge_label_keys(&mut spec, Some(&labels));
        let spec = serde_json::to_value(spec).expect("JSON");
        let same = json!({"key": "hash", "operator": "In", "values": ["1"]});
        let other = json!({"key": "tenant", "operator": "NotIn", "values": ["t"]});
        let rules = |at: &str| spec.pointer(at).cloned().unwrap_or_default();
        let both = json!([same, other]);
        let near = "/affinity/podAffinity/requiredDuringSchedulingIgnoredDuringExecution/0";
        let far =
            "/affinity/podAntiAffinity/preferredDuringSchedulingIgnoredDuringExecution/0/podAffinityTerm";
        for at in [near, far] {
            assert_eq!(rules(&format!("{at}/labelSelector/matchExpressions")), both);
        }
        assert_eq!(rules("/topologySpreadConstraints/0/labelSelector/matchExpressions"), json!([same]));
        assert_eq!(rules("/topologySpreadConstraints/1/labelSelector"), Value::Null);
    }
}
