//! Whether a pod that is bound to this node may be at it: where it must go, which of the node's taints it bears, and whether
//! the ports of the host are free that it wants. The scheduler has asked the same, but the node may have changed since, and
//! not every pod comes from the scheduler.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, PodSpec};
use krate_api::placement::{RequiredNodes, host_ports, tolerated};

use crate::static_pods::is_static;

/// What is not as it must be: the name of the scheduler's plugin that asks it, and its words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Misplaced {
    pub plugin: &'static str,
    why: &'static str,
}

impl Misplaced {
    pub fn message(&self) -> String {
        format!("Predicate {} failed: {}", self.plugin, self.why)
    }
}

/// What keeps a pod from this node; of several, what upstream tells first. `others` are the pods beside it.
pub fn check(pod: &Pod, spec: &PodSpec, node: &Node, others: &[Arc<Pod>]) -> Result<(), Misplaced> {
    let no_labels = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&no_labels);
    let name = node.metadata.name.as_deref().unwrap_or_default();
    if RequiredNodes::of(spec).is_some_and(|required| !required.allow(labels, name)) {
        let why = "node(s) didn't match Pod's node affinity/selector";
        return Err(Misplaced { plugin: "NodeAffinity", why });
    }
    let wanted = host_ports(spec);
    let is_taken = |other: &Arc<Pod>| {
        let taken = other.spec.as_ref().map(host_ports).unwrap_or_default();
        taken.iter().any(|taken| wanted.iter().any(|wanted| wanted.conflicts(taken)))
    };
    if !wanted.is_empty() && others.iter().any(is_taken) {
        let why = "node(s) didn't have free ports for the requested pod ports";
        return Err(Misplaced { plugin: "NodePorts", why });
    }
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let mut taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    // Those that keep pods from being placed do not concern one that is.
    if !is_static(pod) && taints.any(|taint| taint.effect == "NoExecute" && !tolerated(taint, tolerations)) {
        let why = "node(s) had taints that the pod didn't tolerate";
        return Err(Misplaced { plugin: "TaintToleration", why });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value) -> Pod {
        let mut spec = spec;
        if spec["containers"].is_null() {
            spec["containers"] = json!([]);
        }
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    fn on_port(port: u16) -> Value {
        json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": port}]}]})
    }

    #[test]
    fn a_pod_is_taken_where_it_may_be() {
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "n", "labels": {"disk": "fast"}},
            "spec": {"taints": [{"key": "old", "effect": "NoSchedule"}, {"key": "bad", "effect": "NoExecute"}]}}))
        .unwrap();
        let other = [Arc::new(pod(on_port(8080)))];
        let bears = json!([{"key": "bad", "operator": "Exists"}]);
        for (spec, plugin) in [
            (json!({"tolerations": bears}), None),
            (json!({"tolerations": bears, "nodeSelector": {"disk": "fast"}}), None),
            (json!({"tolerations": bears, "nodeSelector": {"disk": "slow"}}), Some("NodeAffinity")),
            (json!({}), Some("TaintToleration")),
            (on_port(8080), Some("NodePorts")),
            (on_port(8081), Some("TaintToleration")),
        ] {
            let of = pod(spec.clone());
            let found = check(&of, of.spec.as_ref().unwrap(), &node, &other);
            assert_eq!(found.err().map(|misplaced| misplaced.plugin), plugin, "{spec}");
        }
        let mut of = pod(json!({}));
        let source = ("kubernetes.io/config.source".to_owned(), "file".to_owned());
        of.metadata.annotations = Some([source].into());
        assert_eq!(
            check(&of, of.spec.as_ref().unwrap(), &node, &[]),
            Ok(()),
            "nobody has asked for a static pod"
        );
    }
}
