//! PodResizeValidator and NodeDeclaredFeatureValidator: a pod that has a node is resized to no more than the node has
//! (KEP-1287), and changed only in ways that the node says it knows (KEP-5328).

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Node, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::StatusCause;
use krate_api::quota::{parsed, pod_requests};
use krate_api::{Quantity, StatusError, kinds};

use super::{Admit, Attributes, Operation, lookup};
use crate::kinds::Kinds;
use crate::registry::erased::Object;
use crate::registry::prepare::differ;

const SYSTEM: &str = "kubernetes.io/os";
/// Of nodes that resize what a pod says as a whole.
const WHOLE: &str = "InPlacePodLevelResourcesVerticalScaling";
/// Of nodes that resize init containers that end.
const INIT: &str = "InPlacePodVerticalScalingInitContainers";

/// A pod that has a node, as it is to be and as it was, where what it asks for changes.
fn changed<'o>(
    attributes: &Attributes,
    object: Option<&'o dyn Object>,
    old: Option<&'o dyn Object>,
) -> Option<(&'o Pod, &'o Pod)> {
    let is_pod = attributes.kind.gvk() == kinds::POD.gvk() && attributes.operation == Operation::Update;
    let object = object.filter(|_| is_pod);
    let (new, old) = (object?.is::<Pod>()?, old?.is::<Pod>()?);
    (!node_name(new).is_empty() && new.metadata.generation != old.metadata.generation).then_some((new, old))
}

fn node_name(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

async fn node_of(kinds: &Kinds, attributes: &Attributes, pod: &Pod) -> Result<Node, StatusError> {
    let name = node_name(pod);
    let found = lookup::find::<Node>(kinds, "", "nodes", "", name).await?;
    found.ok_or_else(|| attributes.forbidden(format!("node {name:?} not found")))
}

pub struct PodResizeValidator(pub Arc<Kinds>);

#[async_trait]
impl Admit for PodResizeValidator {
    async fn validate(
        &self,
        attributes: &Attributes,
        object: Option<&dyn Object>,
        old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        if attributes.subresource != "resize" {
            return Ok(());
        }
        let Some((pod, _)) = changed(attributes, object, old) else { return Ok(()) };
        let node = node_of(&self.0, attributes, pod).await?;
        let judged = bears(&node).map_err(|why| (why, "UnsupportedPlatform"));
        judged.and_then(|()| has(&node, pod).map_err(|why| (why, "NodeCapacity"))).map_err(|(why, cause)| {
            let mut refused = attributes.forbidden(why);
            if let Some(details) = &mut refused.0.details {
                let cause = StatusCause { reason: Some(cause.to_owned()), ..StatusCause::default() };
                details.causes.get_or_insert_default().push(cause);
            }
            refused
        })
    }
}

/// Whether a node can resize pods at all.
fn bears(node: &Node) -> Result<(), String> {
    let system = node.metadata.labels.as_ref().and_then(|labels| labels.get(SYSTEM));
    match system.filter(|system| *system != "linux") {
        None => Ok(()),
        Some(system) => Err(format!(
            "pod resize is only supported on linux nodes, node {:?} is {system:?}",
            node.metadata.name.as_deref().unwrap_or_default()
        )),
    }
}

/// Whether a node has what a pod asks for, were it alone there.
fn has(node: &Node, pod: &Pod) -> Result<(), String> {
    let allocatable = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
    let there = |name: &str| allocatable.and_then(|all| all.get(name)).map(parsed).unwrap_or_default();
    // What it has by now does not matter.
    let asked = pod_requests(&Pod { spec: pod.spec.clone(), ..Pod::default() });
    let short = |name: &str, shown: fn(&Quantity) -> i64| {
        let (asked, there) = (asked.get(name)?, there(name));
        let told = || format!("{name}, requested: {}, allocatable: {}", shown(asked), shown(&there));
        (*asked > there).then(told)
    };
    let faults: Vec<String> = [short("cpu", Quantity::milli_value), short("memory", Quantity::value)]
        .into_iter()
        .flatten()
        .collect();
    if faults.is_empty() {
        return Ok(());
    }
    Err(format!("node didn't have enough allocatable resources: {}", faults.join("; ")))
}

pub struct NodeDeclaredFeatureValidator(pub Arc<Kinds>);

#[async_trait]
impl Admit for NodeDeclaredFeatureValidator {
    async fn validate(
        &self,
        attributes: &Attributes,
        object: Option<&dyn Object>,
        old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        if !matches!(attributes.subresource.as_str(), "" | "resize") {
            return Ok(());
        }
        let Some((pod, old)) = changed(attributes, object, old) else { return Ok(()) };
        let mut needed = needed(pod, old);
        if needed.is_empty() {
            return Ok(());
        }
        let node = node_of(&self.0, attributes, pod).await?;
        let declared = node.status.and_then(|status| status.declared_features).unwrap_or_default();
        needed.retain(|feature| !declared.iter().any(|there| there == feature));
        if needed.is_empty() {
            return Ok(());
        }
        Err(attributes.forbidden(format!(
            "pod update requires features {} which are not available on node {:?}",
            needed.join(", "),
            node_name(pod)
        )))
    }
}

/// The features that a node must have for a change, by their names.
fn needed(new: &Pod, old: &Pod) -> Vec<&'static str> {
    let (Some(new), Some(old)) = (&new.spec, &old.spec) else { return Vec::new() };
    let whole = differ(&new.resources, &old.resources);
    let all = [(whole, WHOLE), (init_differs(new, old), INIT)];
    all.into_iter().filter(|(is_needed, _)| *is_needed).map(|(_, feature)| feature).collect()
}

fn init_differs(new: &PodSpec, old: &PodSpec) -> bool {
    let both = old.init_containers.iter().flatten().zip(new.init_containers.iter().flatten());
    let mut ending = both.filter(|(old, _)| old.restart_policy.as_deref() != Some("Always"));
    ending.any(|(old, new)| differ(&old.resources, &new.resources))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).expect("a pod")
    }

    fn node(labels: Value, allocatable: Value) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n", "labels": labels},
            "status": {"allocatable": allocatable}}))
        .expect("a node")
    }

    #[test]
    fn a_pod_grows_no_larger_than_its_node() {
        let asks = |cpu: &str, memory: &str| {
            pod(
                json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}}]}),
            )
        };
        let small = node(json!({}), json!({"cpu": "2", "memory": "1Gi"}));
        assert_eq!(has(&small, &asks("2", "1Gi")), Ok(()));
        assert_eq!(
            has(&small, &asks("2500m", "2Gi")),
            Err("node didn't have enough allocatable resources: cpu, requested: 2500, allocatable: 2000; memory, \
                 requested: 2147483648, allocatable: 1073741824"
                .to_owned())
        );
        assert_eq!(bears(&small), Ok(()));
        assert_eq!(bears(&node(json!({SYSTEM: "linux"}), json!({}))), Ok(()));
        let told = "pod resize is only supported on linux nodes, node \"n\" is \"windows\"";
        assert_eq!(bears(&node(json!({SYSTEM: "windows"}), json!({}))), Err(told.to_owned()));
    }

    #[test]
    fn a_node_must_know_how_to_make_the_change() {
        let with = |init: &str, sidecar: &str, whole: &str| {
            let container = |cpu: &str| json!({"name": "i", "resources": {"requests": {"cpu": cpu}}});
            let mut restarted = container(sidecar);
            restarted["restartPolicy"] = "Always".into();
            pod(json!({"nodeName": "n", "resources": {"requests": {"cpu": whole}},
                "initContainers": [container(init), restarted], "containers": []}))
        };
        let before = with("1", "1", "1");
        assert_eq!(needed(&before, &before), Vec::<&str>::new());
        assert_eq!(needed(&with("1", "2", "1"), &before), Vec::<&str>::new());
        assert_eq!(needed(&with("2", "1", "1"), &before), [INIT]);
        assert_eq!(needed(&with("2", "1", "2"), &before), [WHOLE, INIT]);
    }

    #[test]
    fn only_a_changed_pod_that_has_a_node_is_looked_at() {
        let at = |node: &str, generation: i64| {
            let mut pod = pod(json!({"nodeName": node, "containers": []}));
            pod.metadata.generation = Some(generation);
            pod
        };
        let attributes = Attributes::for_test(Operation::Update, &kinds::POD, "resize", "ns", "p");
        for (new, old, looks) in
            [(at("n", 2), at("n", 1), true), (at("n", 1), at("n", 1), false), (at("", 2), at("", 1), false)]
        {
            assert_eq!(changed(&attributes, Some(&new), Some(&old)).is_some(), looks);
        }
    }
}
