//! Whether a PersistentVolume may be used at this node: the labels of the node must be such as the volume asks for.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PersistentVolumeSpec;
use krate_api::selector::node;

/// # Errors
/// The volume is of other nodes, in upstream's words.
pub fn check(spec: &PersistentVolumeSpec, labels: &BTreeMap<String, String>) -> Result<(), String> {
    let required = spec.node_affinity.as_ref().and_then(|affinity| affinity.required.as_ref());
    let Some(nodes) = required else { return Ok(()) };
    // Upstream's kubelet compares with labels alone: the node has no name here.
    let is_meant = |term| node::term_matches(term, |key| labels.get(key).map(String::as_str), "");
    if nodes.node_selector_terms.iter().any(is_meant) {
        Ok(())
    } else {
        Err("no matching NodeSelectorTerms".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_volume_stays_at_its_nodes() {
        let labels =
            BTreeMap::from([("zone".to_owned(), "a".to_owned()), ("disks".to_owned(), "4".to_owned())]);
        let one = |key: &str, operator: &str, values: Value| json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
        for (terms, allowed) in [
            (json!([one("zone", "In", json!(["a", "b"]))]), true),
            (json!([one("zone", "In", json!(["b"]))]), false),
            (json!([one("zone", "In", json!(["b"])), one("disks", "Gt", json!(["3"]))]), true),
            (json!([one("zone", "NotIn", json!(["a"]))]), false),
            (json!([one("rack", "DoesNotExist", Value::Null)]), true),
            (json!([one("rack", "Exists", Value::Null)]), false),
            (json!([one("disks", "Lt", json!(["4"]))]), false),
            (json!([one("zone", "Near", json!(["a"]))]), false),
            (json!([{}]), false),
            (json!([]), false),
            (json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]}]), false),
        ] {
            let spec = json!({"nodeAffinity": {"required": {"nodeSelectorTerms": terms}}});
            let found = check(&serde_json::from_value(spec).unwrap(), &labels);
            assert_eq!(found.is_ok(), allowed, "{terms}");
        }
        assert_eq!(check(&PersistentVolumeSpec::default(), &BTreeMap::new()), Ok(()));
    }
}
