//! PodTopologyLabels: a pod has the zone and the region of its node among its labels, for who reads them by the downward
//! API (KEP-4742). Who binds it to a node gives it them.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Binding, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use krate_api::{StatusError, kinds};

use super::{Admit, Attributes, lookup};
use crate::kinds::Kinds;
use crate::registry::erased::{Object, Unstored};

const LABELS: [&str; 2] = ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"];

pub struct PodTopologyLabels {
    kinds: Arc<Kinds>,
}

impl PodTopologyLabels {
    pub fn new(kinds: Arc<Kinds>) -> Self {
        PodTopologyLabels { kinds }
    }
}

/// The labels that a node gives its pods; none where there is no such node.
///
/// # Errors
/// The store cannot be read.
async fn of_node(kinds: &Kinds, node: &str) -> Result<BTreeMap<String, String>, StatusError> {
    let mut labels = lookup::labels(kinds, "nodes", node).await?.unwrap_or_default();
    labels.retain(|key, _| LABELS.contains(&key.as_str()));
    Ok(labels)
}

/// Gives an object labels, instead of those that it has of these names.
fn give(meta: &mut ObjectMeta, labels: BTreeMap<String, String>) {
    if !labels.is_empty() {
        meta.labels.get_or_insert_default().extend(labels);
    }
}

/// The node that a pod is on, or comes to by a binding.
fn node_of(attributes: &Attributes, object: &dyn Object) -> Option<String> {
    let node = if attributes.is(&kinds::POD) {
        object.is::<Pod>()?.spec.as_ref()?.node_name.clone()
    } else if attributes.subresource == "binding" {
        let target = &object.is::<Unstored<Binding>>()?.0.target;
        target.name.clone().filter(|_| target.kind.as_deref() == Some("Node"))
    } else {
        None
    };
    node.filter(|node| !node.is_empty())
}

#[async_trait]
impl Admit for PodTopologyLabels {
    async fn mutate(
        &self,
        attributes: &Attributes,
        object: &mut dyn Object,
        _old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        if let Some(node) = node_of(attributes, object) {
            give(object.meta_mut(), of_node(&self.kinds, &node).await?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::admission::Operation;

    #[test]
    fn a_node_says_where_its_pods_are() {
        let mut meta = ObjectMeta::default();
        give(&mut meta, BTreeMap::new());
        assert_eq!(meta.labels, None);
        let own = [LABELS[0], "team"].map(|key| (key.to_owned(), "own".to_owned()));
        meta.labels = Some(BTreeMap::from(own));
        give(&mut meta, LABELS.iter().map(|&key| (key.to_owned(), "node's".to_owned())).collect());
        let labels = meta.labels.expect("labels");
        assert_eq!((labels[LABELS[0]].as_str(), labels[LABELS[1]].as_str()), ("node's", "node's"));
        assert_eq!(labels["team"], "own");
    }

    #[test]
    fn a_pod_comes_to_a_node_by_a_binding() {
        let to = |kind: &str, subresource: &str| {
            let binding = json!({"metadata": {"name": "p"}, "target": {"kind": kind, "name": "n"}});
            let binding: Binding = serde_json::from_value(binding).expect("a binding");
            let attributes = Attributes::for_test(Operation::Create, &kinds::POD, subresource, "ns", "p");
            node_of(&attributes, &Unstored(binding))
        };
        assert_eq!(to("Node", "binding").as_deref(), Some("n"));
        assert_eq!(to("", "binding"), None, "upstream asks for the kind");
        assert_eq!(to("Node", "eviction"), None);
    }
}
