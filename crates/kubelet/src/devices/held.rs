//! Which pod holds which devices: functions over what is known, and the file in which it outlives the kubelet.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::{Container, Pod};
use krate_api::Quantity;
use prost::Message as _;
use serde::{Deserialize, Serialize};

use super::api::ContainerAllocateResponse;
use crate::checkpoint;
use crate::plan::is_sidecar;
use crate::resources;

/// The devices of one resource that a container has, and what its plugin answered for them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Grant {
    pub ids: BTreeSet<String>,
    pub answer: ContainerAllocateResponse,
}

/// What one pod holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Held {
    /// By container and resource.
    pub grants: BTreeMap<String, BTreeMap<String, Grant>>,
    /// By container and resource, what the pod was admitted with and has not taken yet.
    pub chosen: BTreeMap<String, BTreeMap<String, BTreeSet<String>>>,
}

impl Held {
    /// All devices of a resource that are not for others.
    pub fn ids(&self, resource: &str) -> BTreeSet<&String> {
        let containers: BTreeSet<&String> = self.grants.keys().chain(self.chosen.keys()).collect();
        containers.into_iter().flat_map(|container| self.of(container, resource)).collect()
    }

    /// Those of one container.
    pub fn of(&self, container: &str, resource: &str) -> BTreeSet<&String> {
        let granted = self.grants.get(container).and_then(|of| of.get(resource)).map(|grant| &grant.ids);
        let chosen = self.chosen.get(container).and_then(|of| of.get(resource));
        granted.into_iter().chain(chosen).flatten().collect()
    }

    /// Devices that init containers of the pod have had, and that nobody has taken over yet.
    pub fn reusable(&self, pod: &Pod, resource: &str) -> BTreeSet<String> {
        let Some(spec) = &pod.spec else { return BTreeSet::new() };
        let inits = spec.init_containers.iter().flatten().map(|init| (init, !is_sidecar(init)));
        let mut left = BTreeSet::new();
        for (container, ends_before) in inits.chain(spec.containers.iter().map(|own| (own, false))) {
            for id in self.of(&container.name, resource) {
                if ends_before {
                    left.insert(id.clone())
                } else {
                    left.remove(id)
                };
            }
        }
        left
    }
}

/// How much of a resource a container asks for.
pub fn asked(container: &Container, resource: &str) -> usize {
    let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
    let amount = limits.and_then(|l| l.get(resource)).and_then(|q| Quantity::parse(&q.0).ok());
    amount.and_then(|q| usize::try_from(q.value()).ok()).unwrap_or(0)
}

/// How much a pod asks for: what runs together, or the most that runs alone before it.
pub fn asked_by(pod: &Pod, resource: &str) -> usize {
    let asked = resources::together(pod, |container| asked(container, resource) as i64);
    usize::try_from(asked).unwrap_or(0)
}

/// The file, as far as upstream's is of use to others: which container has which devices.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct File {
    data: Data,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Data {
    pod_device_entries: Vec<Entry>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Entry {
    #[serde(rename = "PodUID")]
    pod_uid: String,
    container_name: String,
    resource_name: String,
    /// By NUMA node; -1 where there is none.
    #[serde(rename = "DeviceIDs")]
    device_ids: BTreeMap<String, Vec<String>>,
    alloc_resp: String,
}

/// Devices by the NUMA nodes that they are near.
fn by_node(ids: &BTreeSet<String>, nodes: &dyn Fn(&str) -> BTreeSet<u32>) -> BTreeMap<String, Vec<String>> {
    let mut by_node: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for id in ids {
        let near = nodes(id);
        let names: Vec<String> = near.iter().map(ToString::to_string).collect();
        let nowhere = names.is_empty().then(|| "-1".to_owned());
        for name in names.into_iter().chain(nowhere) {
            by_node.entry(name).or_default().push(id.clone());
        }
    }
    by_node
}

/// Written whole or not at all. `nodes` knows which NUMA nodes a device of a resource is near.
pub fn save(
    path: &Path,
    held: &BTreeMap<String, Held>,
    nodes: &dyn Fn(&str, &str) -> BTreeSet<u32>,
) -> io::Result<()> {
    let mut file = File::default();
    for (uid, of_pod) in held {
        for (container, grants) in &of_pod.grants {
            for (resource, grant) in grants {
                file.data.pod_device_entries.push(Entry {
                    pod_uid: uid.clone(),
                    container_name: container.clone(),
                    resource_name: resource.clone(),
                    device_ids: by_node(&grant.ids, &|id| nodes(resource, id)),
                    alloc_resp: STANDARD.encode(grant.answer.encode_to_vec()),
                });
            }
        }
    }
    checkpoint::save(path, &file)
}

/// What was held when the file was written; nothing, when there is none that can be read.
pub fn load(path: &Path) -> BTreeMap<String, Held> {
    let file: File = checkpoint::load(path);
    let mut held: BTreeMap<String, Held> = BTreeMap::new();
    for entry in file.data.pod_device_entries {
        let answer = STANDARD.decode(&entry.alloc_resp).unwrap_or_default();
        let grant = Grant {
            ids: entry.device_ids.into_values().flatten().collect(),
            answer: ContainerAllocateResponse::decode(answer.as_slice()).unwrap_or_default(),
        };
        let of_pod = held.entry(entry.pod_uid).or_default();
        of_pod.grants.entry(entry.container_name).or_default().insert(entry.resource_name, grant);
    }
    held
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const GPU: &str = "example.com/gpu";

    fn pod() -> Pod {
        let with = |name: &str, count: i64, more: serde_json::Value| {
            let mut container = json!({"name": name, "resources": {"limits": {GPU: count.to_string()}}});
            container.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            container
        };
        serde_json::from_value(json!({"spec": {
            "initContainers": [with("first", 3, json!({})), with("beside", 1, json!({"restartPolicy": "Always"}))],
            "containers": [with("a", 1, json!({})), with("b", 0, json!({}))]}}))
        .unwrap()
    }

    fn grant(ids: &[&str]) -> BTreeMap<String, Grant> {
        let envs = [("IDS".to_owned(), ids.join(","))].into();
        let answer = ContainerAllocateResponse { envs, ..Default::default() };
        let ids = ids.iter().map(|id| (*id).to_owned()).collect();
        BTreeMap::from([(GPU.to_owned(), Grant { ids, answer })])
    }

    #[test]
    fn what_init_containers_had_is_used_again() {
        let pod = pod();
        assert_eq!((asked_by(&pod, GPU), asked_by(&pod, "example.com/none")), (3, 0));
        let mut held = Held::default();
        assert!(held.ids(GPU).is_empty() && held.reusable(&pod, GPU).is_empty());
        held.grants.insert("first".to_owned(), grant(&["0", "1", "2"]));
        held.grants.insert("beside".to_owned(), grant(&["1"]));
        let left: Vec<String> = held.reusable(&pod, GPU).into_iter().collect();
        assert_eq!((held.ids(GPU).len(), left), (3, vec!["0".to_owned(), "2".to_owned()]));
        let chosen = BTreeMap::from([(GPU.to_owned(), ["2".to_owned()].into())]);
        held.chosen.insert("a".to_owned(), chosen);
        assert_eq!(held.reusable(&pod, GPU), BTreeSet::from(["0".to_owned()]));
    }

    #[test]
    fn what_is_held_outlives_the_kubelet() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kubelet_internal_checkpoint");
        assert!(load(&path).is_empty());
        let grants = BTreeMap::from([("a".to_owned(), grant(&["0", "7"]))]);
        let held = BTreeMap::from([("uid".to_owned(), Held { grants, ..Held::default() })]);
        let nodes = |_: &str, id: &str| if id == "7" { [0, 1].into() } else { BTreeSet::new() };
        save(&path, &held, &nodes).unwrap();
        assert_eq!(load(&path), held);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("\"PodDeviceEntries\""), "{text}");
        assert!(text.contains(r#""DeviceIDs":{"-1":["0"],"0":["7"],"1":["7"]}"#), "{text}");
    }
}
