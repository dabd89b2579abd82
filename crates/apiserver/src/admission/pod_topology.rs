//! PodTopologyLabels: a pod has the zone and the region of its node among its labels, for who reads them by the downward
//! API (KEP-4742).

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use krate_api::{StatusError, kinds};

use super::{Admit, Attributes, lookup};
use crate::kinds::Kinds;
use crate::registry::erased::Object;

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
pub async fn of_node(kinds: &Kinds, node: &str) -> Result<BTreeMap<String, String>, StatusError> {
    let mut labels = lookup::labels(kinds, "nodes", node).await?.unwrap_or_default();
    labels.retain(|key, _| LABELS.contains(&key.as_str()));
    Ok(labels)
}

/// Gives a pod labels, instead of those that it has of these names.
pub fn give(pod: &mut Pod, labels: &BTreeMap<String, String>) {
    if labels.is_empty() {
        return;
    }
    let own = pod.metadata.labels.get_or_insert_default();
    own.extend(labels.iter().map(|(key, value)| (key.clone(), value.clone())));
}

#[async_trait]
impl Admit for PodTopologyLabels {
    async fn mutate(
        &self,
        attributes: &Attributes,
        object: &mut dyn Object,
        _old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        if !attributes.is(&kinds::POD) {
            return Ok(());
        }
        let Some(pod) = object.is_mut::<Pod>() else { return Ok(()) };
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).filter(|node| !node.is_empty());
        if let Some(node) = node {
            give(pod, &of_node(&self.kinds, &node).await?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_says_where_its_pods_are() {
        let mut pod = Pod::default();
        give(&mut pod, &BTreeMap::new());
        assert_eq!(pod.metadata.labels, None);
        let own = [LABELS[0], "team"].map(|key| (key.to_owned(), "own".to_owned()));
        pod.metadata.labels = Some(BTreeMap::from(own));
        give(&mut pod, &LABELS.iter().map(|&key| (key.to_owned(), "node's".to_owned())).collect());
        let labels = pod.metadata.labels.expect("labels");
        assert_eq!((labels[LABELS[0]].as_str(), labels[LABELS[1]].as_str()), ("node's", "node's"));
        assert_eq!(labels["team"], "own");
    }
}
