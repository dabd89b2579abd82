//! Whether a pod may be at a node: the nodes that it asks for, taints that it bears, and ports of the host. The scheduler
//! asks it before a pod is bound, and the kubelet afterwards, since not every pod comes from the scheduler.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, NodeSelectorTerm, PodSpec, Taint, Toleration};

use crate::selector::node::term_matches;

/// Where a pod must go: its node selector and its required terms, both.
#[derive(Clone, Copy, Debug)]
pub struct RequiredNodes<'a> {
    selector: Option<&'a BTreeMap<String, String>>,
    terms: Option<&'a [NodeSelectorTerm]>,
}

impl<'a> RequiredNodes<'a> {
    /// None if the pod may go anywhere.
    pub fn of(spec: &'a PodSpec) -> Option<Self> {
        let selector = spec.node_selector.as_ref().filter(|s| !s.is_empty());
        let terms = spec
            .affinity
            .as_ref()
            .and_then(|a| a.node_affinity.as_ref())
            .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref())
            .map(|s| s.node_selector_terms.as_slice());
        (selector.is_some() || terms.is_some()).then_some(RequiredNodes { selector, terms })
    }

    /// Whether the node of these labels and this name is one of them.
    pub fn allow(&self, labels: &BTreeMap<String, String>, name: &str) -> bool {
        let is_meant = |term| term_matches(term, |key| labels.get(key).map(String::as_str), name);
        self.selector.is_none_or(|s| s.iter().all(|(k, v)| labels.get(k) == Some(v)))
            && self.terms.is_none_or(|terms| terms.iter().any(is_meant))
    }

    /// The required terms, of which one must hold.
    pub fn terms(&self) -> Option<&'a [NodeSelectorTerm]> {
        self.terms
    }
}

/// Whether one of the tolerations bears the taint.
pub fn tolerated(taint: &Taint, tolerations: &[Toleration]) -> bool {
    tolerations.iter().any(|t| bears(t, taint))
}

fn bears(toleration: &Toleration, taint: &Taint) -> bool {
    if toleration.effect.as_deref().is_some_and(|e| !e.is_empty() && e != taint.effect) {
        return false;
    }
    let operator = toleration.operator.as_deref().filter(|o| !o.is_empty()).unwrap_or("Equal");
    let key = toleration.key.as_deref().unwrap_or_default();
    if !key.is_empty() && key != taint.key {
        return false;
    }
    match operator {
        "Exists" => true,
        "Equal" => {
            !key.is_empty()
                && toleration.value.as_deref().unwrap_or_default()
                    == taint.value.as_deref().unwrap_or_default()
        }
        "Gt" | "Lt" => {
            let number = |s: &Option<String>| s.as_deref().and_then(|s| s.parse::<i64>().ok());
            match (number(&taint.value), number(&toleration.value)) {
                (Some(has), Some(bound)) if operator == "Gt" => has > bound,
                (Some(has), Some(bound)) => has < bound,
                _ => false,
            }
        }
        _ => false,
    }
}

/// A port of the host that a pod takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    pub ip: String,
    pub protocol: String,
    pub port: i32,
}

impl HostPort {
    /// Whether two pods cannot have both: the same port, unless at different addresses.
    pub fn conflicts(&self, other: &HostPort) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || self.ip == "0.0.0.0" || other.ip == "0.0.0.0")
    }
}

/// The ports of the host that a pod takes.
pub fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let restartable = |c: &&Container| c.restart_policy.as_deref() == Some("Always");
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten().filter(restartable));
    containers
        .flat_map(|c| c.ports.iter().flatten())
        .filter_map(|p| {
            let host_network = spec.host_network.unwrap_or(false);
            let port = p.host_port.filter(|p| *p > 0).or(host_network.then_some(p.container_port))?;
            let ip = p.host_ip.clone().filter(|ip| !ip.is_empty() && ip != "::");
            Some(HostPort {
                ip: ip.unwrap_or_else(|| "0.0.0.0".to_owned()),
                protocol: p.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                port,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_pod_goes_where_its_selector_and_its_terms_allow() {
        let labels = BTreeMap::from([("disk".to_owned(), "fast".to_owned())]);
        let terms = |terms: Value| {
            json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": terms}}})
        };
        let has = |operator: &str| json!({"matchExpressions": [{"key": "disk", "operator": operator}]});
        for (spec, allowed) in [
            (json!({}), None),
            (json!({"nodeSelector": {}}), None),
            (json!({"nodeSelector": {"disk": "fast"}}), Some(true)),
            (json!({"nodeSelector": {"disk": "slow"}}), Some(false)),
            (json!({"affinity": terms(json!([has("DoesNotExist"), has("Exists")]))}), Some(true)),
            (
                json!({"nodeSelector": {"disk": "slow"}, "affinity": terms(json!([has("Exists")]))}),
                Some(false),
            ),
            (json!({"affinity": terms(json!([]))}), Some(false)),
        ] {
            let mut of = spec.clone();
            of["containers"] = json!([]);
            let of: PodSpec = serde_json::from_value(of).expect("a spec");
            assert_eq!(RequiredNodes::of(&of).map(|r| r.allow(&labels, "n")), allowed, "{spec}");
        }
    }

    #[test]
    fn tolerations_bear_taints_as_upstream_has_it() {
        let taint = json!({"key": "k", "value": "v", "effect": "NoSchedule"});
        let cases: [(Value, bool); 8] = [
            (json!({"operator": "Exists"}), true),
            (json!({"key": "k", "operator": "Exists"}), true),
            (json!({"key": "k", "value": "v"}), true),
            (json!({"key": "k", "value": "w"}), false),
            (json!({"key": "x", "operator": "Exists"}), false),
            (json!({"key": "k", "operator": "Exists", "effect": "NoExecute"}), false),
            (json!({"key": "k", "operator": "Equal", "value": "v", "effect": "NoSchedule"}), true),
            (json!({}), false),
        ];
        let taint: Taint = serde_json::from_value(taint).expect("a taint");
        for (toleration, wanted) in cases {
            let t: Toleration = serde_json::from_value(toleration.clone()).expect("a toleration");
            assert_eq!(tolerated(&taint, &[t]), wanted, "{toleration}");
        }
    }

    #[test]
    fn host_ports_conflict_unless_their_addresses_differ() {
        let port = |ip: &str, port| HostPort { ip: ip.into(), protocol: "TCP".into(), port };
        assert!(port("0.0.0.0", 80).conflicts(&port("127.0.0.1", 80)));
        assert!(!port("10.0.0.1", 80).conflicts(&port("127.0.0.1", 80)));
        assert!(!port("0.0.0.0", 80).conflicts(&port("0.0.0.0", 81)));
    }
}
