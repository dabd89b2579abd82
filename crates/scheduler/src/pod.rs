//! What the scheduler knows of a pod, worked out once and then only read: requests, ports, affinity.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod, PodAffinityTerm, PodSpec, WeightedPodAffinityTerm};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use krate_api::placement::{HostPort, host_ports};
use krate_client::ObjectKey;
use kube::core::{Selector, SelectorExt};

/// A resource, as the number of its column.
pub type Resource = usize;
pub const CPU: Resource = 0;
pub const MEMORY: Resource = 1;

/// What a container is taken to use when it names no request, so that scoring spreads such pods too: upstream's
/// 100 millicores and 200 MB.
const DEFAULT_CPU: i64 = 100;
const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

/// The names of the columns. The first three are always there.
pub struct ResourceNames(Vec<String>);

impl Default for ResourceNames {
    fn default() -> Self {
        ResourceNames(["cpu", "memory", "ephemeral-storage"].map(str::to_owned).to_vec())
    }
}

impl ResourceNames {
    pub fn number(&mut self, name: &str) -> Resource {
        self.0.iter().position(|n| n == name).unwrap_or_else(|| {
            self.0.push(name.to_owned());
            self.0.len() - 1
        })
    }

    pub fn name(&self, resource: Resource) -> &str {
        &self.0[resource]
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }
}

/// The amount in the unit of its column: millicores, bytes or pieces. 0 for what is no quantity, as the API server lets
/// none such through.
pub fn amount(name: &str, quantity: &Quantity) -> i64 {
    let Ok(read) = krate_api::quantity::Quantity::parse(&quantity.0) else { return 0 };
    if name == "cpu" { read.milli_value() } else { read.value() }
}

/// Which pods a term of affinity means, and how near.
#[derive(Clone, Debug)]
pub struct Term {
    /// None matches nothing.
    selector: Option<Selector>,
    namespaces: Vec<String>,
    namespace_selector: Option<Selector>,
    pub topology_key: String,
    pub weight: i64,
}

/// The labels of a namespace, by its name.
pub type NamespaceLabels = BTreeMap<String, BTreeMap<String, String>>;

impl Term {
    fn new(term: &PodAffinityTerm, weight: i64, pod: &Pod) -> Term {
        let mut selector = term.label_selector.clone();
        add_keys(&mut selector, pod, term.match_label_keys.as_deref(), "In");
        add_keys(&mut selector, pod, term.mismatch_label_keys.as_deref(), "NotIn");
        let mut namespaces = term.namespaces.clone().unwrap_or_default();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.extend(pod.metadata.namespace.clone());
        }
        Term {
            selector: selector.and_then(|s| s.try_into().ok()),
            namespaces,
            namespace_selector: term.namespace_selector.clone().and_then(|s| s.try_into().ok()),
            topology_key: term.topology_key.clone(),
            weight,
        }
    }

    pub fn matches(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
        namespaces: &NamespaceLabels,
    ) -> bool {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        let here = self.namespaces.iter().any(|n| n == namespace)
            || self
                .namespace_selector
                .as_ref()
                .is_some_and(|s| s.matches(namespaces.get(namespace).unwrap_or(&NONE)));
        here && self.selector.as_ref().is_some_and(|s| s.matches(labels))
    }
}

/// The pod's own values of `keys` become requirements of the selector (KEP-3243, KEP-3633); keys that the pod lacks
/// are passed over.
pub fn add_keys(selector: &mut Option<LabelSelector>, pod: &Pod, keys: Option<&[String]>, operator: &str) {
    let (Some(selector), Some(keys), Some(labels)) = (selector, keys, &pod.metadata.labels) else { return };
    for key in keys {
        if let Some(value) = labels.get(key) {
            selector.match_expressions.get_or_insert_default().push(LabelSelectorRequirement {
                key: key.clone(),
                operator: operator.to_owned(),
                values: Some(vec![value.clone()]),
            });
        }
    }
}

/// All that a pod says of being near to or far from other pods.
#[derive(Debug, Default)]
pub struct Affinity {
    pub required: Vec<Term>,
    pub required_anti: Vec<Term>,
    /// Weights below zero are those of anti-affinity.
    pub preferred: Vec<Term>,
    /// Two pods with the same text have the same affinity.
    pub text: String,
}

impl Affinity {
    fn of(pod: &Pod, spec: &PodSpec) -> Affinity {
        let Some(affinity) = &spec.affinity else { return Affinity::default() };
        let (near, far) = (&affinity.pod_affinity, &affinity.pod_anti_affinity);
        if near.is_none() && far.is_none() {
            return Affinity::default();
        }
        let required = |terms: Option<&Vec<PodAffinityTerm>>| {
            terms.into_iter().flatten().map(|t| Term::new(t, 0, pod)).collect::<Vec<_>>()
        };
        let preferred = |terms: Option<&Vec<WeightedPodAffinityTerm>>, sign: i64| {
            let terms = terms.into_iter().flatten();
            terms
                .map(|t| Term::new(&t.pod_affinity_term, sign * i64::from(t.weight), pod))
                .collect::<Vec<_>>()
        };
        let mut wanted = preferred(
            near.as_ref().and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref()),
            1,
        );
        wanted.extend(preferred(
            far.as_ref().and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref()),
            -1,
        ));
        Affinity {
            required: required(
                near.as_ref().and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()),
            ),
            required_anti: required(
                far.as_ref().and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()),
            ),
            preferred: wanted,
            text: serde_json::to_string(&(near, far)).unwrap_or_default(),
        }
    }
}

/// A pod as the scheduler reads it.
pub struct PodInfo {
    pub pod: Arc<Pod>,
    pub key: ObjectKey,
    pub uid: String,
    pub priority: i32,
    /// What is asked for, by column; nothing that is zero.
    pub requests: Vec<(Resource, i64)>,
    /// Processor and memory as scoring counts them, with upstream's defaults for containers that ask for none.
    pub scored: [i64; 2],
    pub ports: Vec<HostPort>,
    pub affinity: Affinity,
    pub labels: BTreeMap<String, String>,
    pub terminating: bool,
}

impl PodInfo {
    pub fn new(pod: Arc<Pod>, names: &mut ResourceNames) -> PodInfo {
        static NO_SPEC: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
        let spec = pod.spec.as_ref().unwrap_or(&NO_SPEC);
        let mut requests: Vec<_> = effective_requests(spec, None)
            .into_iter()
            .filter(|(_, n)| *n != 0)
            .map(|(name, n)| (names.number(&name), n))
            .collect();
        requests.sort_unstable();
        let scored = effective_requests(spec, Some((DEFAULT_CPU, DEFAULT_MEMORY)));
        let scored = ["cpu", "memory"].map(|name| scored.get(name).copied().unwrap_or(0));
        PodInfo {
            key: ObjectKey::of(&*pod),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            priority: spec.priority.unwrap_or(0),
            requests,
            scored,
            ports: host_ports(spec),
            affinity: Affinity::of(&pod, spec),
            labels: pod.metadata.labels.clone().unwrap_or_default(),
            terminating: pod.metadata.deletion_timestamp.is_some(),
            pod,
        }
    }

    /// The name of the scheduler that is to place it.
    pub fn profile(&self) -> &str {
        self.spec().scheduler_name.as_deref().unwrap_or(crate::DEFAULT_SCHEDULER)
    }

    pub fn spec(&self) -> &PodSpec {
        static NO_SPEC: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
        self.pod.spec.as_ref().unwrap_or(&NO_SPEC)
    }
}

type Amounts = BTreeMap<String, i64>;

fn requests_of(container: &Container, defaults: Option<(i64, i64)>) -> Amounts {
    let asked = container.resources.as_ref().and_then(|r| r.requests.as_ref());
    let mut amounts: Amounts =
        asked.into_iter().flatten().map(|(name, q)| (name.clone(), amount(name, q))).collect();
    if let Some((cpu, memory)) = defaults {
        amounts.entry("cpu".to_owned()).or_insert(cpu);
        amounts.entry("memory".to_owned()).or_insert(memory);
    }
    amounts
}

fn add(total: &mut Amounts, more: &Amounts) {
    for (name, n) in more {
        let sum = total.entry(name.clone()).or_insert(0);
        *sum = sum.saturating_add(*n);
    }
}

fn at_least(total: &mut Amounts, floor: &Amounts) {
    for (name, n) in floor {
        let most = total.entry(name.clone()).or_insert(0);
        *most = (*most).max(*n);
    }
}

/// What a pod needs of a node at the most at any time: all containers and sidecars together, or one init container
/// with the sidecars started before it (KEP-753), or what the pod as a whole asks for (KEP-2837), and the overhead.
fn effective_requests(spec: &PodSpec, defaults: Option<(i64, i64)>) -> Amounts {
    let mut total = Amounts::new();
    for container in &spec.containers {
        add(&mut total, &requests_of(container, defaults));
    }
    let mut sidecars = Amounts::new();
    let mut starting = Amounts::new();
    for container in spec.init_containers.iter().flatten() {
        let mut asked = requests_of(container, defaults);
        if container.restart_policy.as_deref() == Some("Always") {
            add(&mut total, &asked);
            add(&mut sidecars, &asked);
            at_least(&mut starting, &sidecars);
        } else {
            add(&mut asked, &sidecars);
            at_least(&mut starting, &asked);
        }
    }
    at_least(&mut total, &starting);
    if let Some(whole) = spec.resources.as_ref().and_then(|r| r.requests.as_ref()) {
        for (name, quantity) in whole {
            total.insert(name.clone(), amount(name, quantity));
        }
    }
    let overhead = spec.overhead.iter().flatten().map(|(n, q)| (n.clone(), amount(n, q))).collect();
    add(&mut total, &overhead);
    total
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn info(spec: serde_json::Value) -> (PodInfo, ResourceNames) {
        let pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "d"}, "spec": spec}));
        let mut names = ResourceNames::default();
        (PodInfo::new(Arc::new(pod.expect("a pod")), &mut names), names)
    }

    #[test]
    fn a_pod_needs_the_most_it_will_ever_use_at_once() {
        let ask = |cpu: &str| json!({"requests": {"cpu": cpu}});
        let (pod, _) = info(json!({
            "containers": [{"name": "a", "resources": ask("100m")}, {"name": "b", "resources": ask("200m")}],
            "initContainers": [
                {"name": "first", "resources": ask("250m")},
                {"name": "side", "restartPolicy": "Always", "resources": ask("50m")},
                {"name": "second", "resources": ask("400m")},
            ],
            "overhead": {"cpu": "10m"},
        }));
        assert_eq!(pod.requests, [(CPU, 460)]);
    }

    #[test]
    fn pods_that_ask_for_nothing_are_still_scored() {
        let (pod, _) = info(json!({"containers": [{"name": "a"}, {"name": "b"}]}));
        assert!(pod.requests.is_empty());
        assert_eq!(pod.scored, [2 * DEFAULT_CPU, 2 * DEFAULT_MEMORY]);
    }

    #[test]
    fn other_resources_get_columns_of_their_own() {
        let (pod, names) = info(json!({"containers": [
            {"name": "a", "resources": {"requests": {"example.com/gpu": "2", "memory": "1Ki"}}}]}));
        assert_eq!(pod.requests, [(MEMORY, 1024), (3, 2)]);
        assert_eq!(names.name(3), "example.com/gpu");
    }
}
