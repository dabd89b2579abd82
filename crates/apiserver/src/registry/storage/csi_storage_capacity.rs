//! CSIStorageCapacity: how much room a kind of storage has in a part of the cluster.

use k8s_openapi::api::storage::v1::CSIStorageCapacity;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use crate::registry::column::{created_at, name};
use crate::registry::node_labels::deprecated;
use crate::registry::prepare::differ;
use crate::registry::quantities::is_negative;
use crate::registry::rules::{IMMUTABLE, NOT_NEGATIVE, dns_subdomain, label_selector};
use crate::registry::{Column, Strategy};

impl Strategy for CSIStorageCapacity {
    const KIND: &'static Kind = &kinds::CSI_STORAGE_CAPACITY;
    const COLUMNS: &'static [Column<Self>] = &[name(), created_at()];
    const ALLOW_UNCONDITIONAL_UPDATE: bool = false;

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        if let Some(topology) = &self.node_topology {
            label_selector(topology, &at.child("nodeTopology"), errors);
        }
        dns_subdomain(&self.storage_class_name, &at.child("storageClassName"), errors);
        if let Some(size) = self.capacity.as_ref().filter(|size| is_negative(size)) {
            errors.invalid(&at.child("capacity"), &size.0, NOT_NEGATIVE);
        }
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        if differ(&self.node_topology, &old.node_topology) {
            errors.invalid(&at.child("nodeTopology"), &self.node_topology, IMMUTABLE);
        }
        if self.storage_class_name != old.storage_class_name {
            errors.invalid(&at.child("storageClassName"), &self.storage_class_name, IMMUTABLE);
        }
    }

    fn warnings(&self, _: Option<&Self>) -> Vec<String> {
        let Some(topology) = &self.node_topology else { return Vec::new() };
        let rules = topology.match_expressions.iter().flatten().enumerate().filter_map(|(i, rule)| {
            let (key, why) = (&rule.key, deprecated(&rule.key)?);
            Some(format!("nodeTopology.matchExpressions[{i}].key: {key} is {why}"))
        });
        let labels = topology.match_labels.iter().flatten().filter_map(|(label, _)| {
            Some(format!("nodeTopology.matchLabels.{label}: {}", deprecated(label)?))
        });
        rules.chain(labels).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn who_selects_nodes_by_labels_of_old_is_warned() {
        let all = json!({"metadata": {"name": "c"}, "storageClassName": "a", "maximumVolumeSize": "-1",
            "nodeTopology": {
                "matchExpressions": [{"key": "beta.kubernetes.io/os", "operator": "Exists"}],
                "matchLabels": {"beta.kubernetes.io/arch": "a"}}});
        let capacity: CSIStorageCapacity = serde_json::from_value(all).expect("a capacity");
        assert_eq!(
            capacity.warnings(None),
            [
                "nodeTopology.matchExpressions[0].key: beta.kubernetes.io/os is deprecated since v1.14; use \
                 \"kubernetes.io/os\" instead",
                "nodeTopology.matchLabels.beta.kubernetes.io/arch: deprecated since v1.14; use \
                 \"kubernetes.io/arch\" instead",
            ]
        );
        let mut errors = FieldErrors::new();
        capacity.validate(&FieldPath::new(""), &mut errors);
        assert!(errors.is_empty(), "the largest volume is nobody's business");
    }
}
