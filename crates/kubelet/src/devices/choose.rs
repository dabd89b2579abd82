//! Which devices a container is to have: decided when its pod is admitted, near to where all else of it is.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, Pod};

use super::held::{Held, asked, asked_by};
use super::{Devices, Resource, State};
use crate::names;
use crate::topology::{Hint, Hints, Mask};

impl Devices {
    /// Of which of these nodes devices could be given, for one container or for all of a pod's.
    pub fn hints(&self, pod: &Pod, container: Option<&Container>, nodes: &[u32]) -> Hints {
        let state = self.state.lock();
        let mut hints = Hints::new();
        for (name, resource) in &state.resources {
            let wanted = container.map_or_else(|| asked_by(pod, name), |container| asked(container, name));
            if wanted == 0 {
                continue;
            }
            let of = if resource.devices.values().any(|device| !device.nodes.is_empty()) {
                Some(of_resource(&state, resource, name, pod, container, wanted, nodes))
            } else {
                None
            };
            hints.insert(name.clone(), of);
        }
        hints
    }

    /// Chooses devices for a container, as near to `affinity` as can be. Containers of a pod come in the order in which they
    /// are started. They are asked for when the container starts.
    ///
    /// # Errors
    /// There are not enough, in upstream's words.
    pub async fn choose(
        &self,
        pod: &Pod,
        container: &Container,
        affinity: Option<Mask>,
    ) -> Result<(), String> {
        let _choosing = self.choosing.lock().await;
        self.choose_alone(pod, container, affinity).await
    }

    /// The same for whoever has seen to it that nobody else chooses.
    pub(super) async fn choose_alone(
        &self,
        pod: &Pod,
        container: &Container,
        affinity: Option<Mask>,
    ) -> Result<(), String> {
        let wanted: Vec<(String, usize)> = {
            let state = self.state.lock();
            let all = state.resources.keys().map(|name| (name.clone(), asked(container, name)));
            all.filter(|(_, count)| *count > 0).collect()
        };
        for (name, count) in wanted {
            if let Some(ids) = self.ids(pod, container, &name, count, affinity).await? {
                let mut state = self.state.lock();
                let held = state.held.entry(names::uid(pod)).or_default();
                held.chosen.entry(container.name.clone()).or_default().insert(name, ids);
            }
        }
        Ok(())
    }

    /// What is chosen of one resource; none, if the container has it already.
    async fn ids(
        &self,
        pod: &Pod,
        container: &Container,
        name: &str,
        count: usize,
        affinity: Option<Mask>,
    ) -> Result<Option<BTreeSet<String>>, String> {
        let uid = names::uid(pod);
        let (plugin, mut ids, [near, far, anywhere]) = {
            let state = self.state.lock();
            let none = (Resource::default(), Held::default());
            let resource = state.resources.get(name).unwrap_or(&none.0);
            let held = state.held.get(&uid).unwrap_or(&none.1);
            let had = held.of(&container.name, name);
            if !had.is_empty() && had.len() != count {
                let (had, container) = (had.len(), &container.name);
                return Err(format!(
                    "pod {uid:?} container {container:?} changed request for resource {name:?} from {had} to {count}"
                ));
            }
            let healthy = resource.healthy();
            if healthy.is_empty() {
                return Err(format!("no healthy devices present; cannot allocate unhealthy devices {name}"));
            }
            if had.iter().any(|id| !healthy.contains(*id)) {
                return Err(format!(
                    "previously allocated devices are no longer healthy; cannot allocate unhealthy devices {name}"
                ));
            }
            if !had.is_empty() {
                return Ok(None);
            }
            let again: BTreeSet<String> = held.reusable(pod, name).into_iter().take(count).collect();
            let available: BTreeSet<String> =
                healthy.difference(&state.in_use(name)).map(|id| (*id).clone()).collect();
            let missing = count - again.len();
            if available.len() < missing {
                return Err(format!(
                    "requested number of devices unavailable for {name}. Requested: {missing}, Available: {}",
                    available.len()
                ));
            }
            (resource.plugin.clone(), again, by_nearness(resource, available, affinity))
        };
        let plugin = plugin.filter(|plugin| plugin.options.get_preferred_allocation_available);
        let preferred = async |of: &[&BTreeSet<String>], must: &BTreeSet<String>| -> Vec<String> {
            let Some(plugin) = &plugin else { return Vec::new() };
            let must: Vec<String> = must.iter().cloned().collect();
            let available: BTreeSet<&String> = of.iter().copied().flatten().chain(&must).collect();
            let available: Vec<String> = available.into_iter().cloned().collect();
            let preferred = plugin.preferred(&available, &must, count).await;
            preferred.into_iter().filter(|id| of.iter().any(|of| of.contains(id))).collect()
        };
        let add = |ids: &mut BTreeSet<String>, more: &mut dyn Iterator<Item = String>| {
            for id in more {
                if ids.len() < count {
                    ids.insert(id);
                }
            }
        };
        if ids.len() + near.len() > count && ids.len() < count {
            let some = preferred(&[&near], &ids).await;
            add(&mut ids, &mut some.into_iter());
        }
        add(&mut ids, &mut near.iter().cloned());
        if ids.len() < count {
            // What is chosen by now is nobody's business any more.
            let some = preferred(&[&near, &far, &anywhere], &ids).await;
            add(&mut ids, &mut some.into_iter());
        }
        add(&mut ids, &mut far.into_iter().chain(anywhere));
        Ok(Some(ids))
    }
}

impl State {
    /// The devices of a resource that somebody has.
    pub fn in_use(&self, resource: &str) -> BTreeSet<&String> {
        self.held.values().flat_map(|held| held.ids(resource)).collect()
    }
}

/// Devices of the nodes, of others, and of none. Where no nodes are named it is all the same.
fn by_nearness(
    resource: &Resource,
    available: BTreeSet<String>,
    affinity: Option<Mask>,
) -> [BTreeSet<String>; 3] {
    let has_nodes = resource.devices.values().any(|device| !device.nodes.is_empty());
    let (Some(mask), true) = (affinity, has_nodes) else {
        return [BTreeSet::new(), BTreeSet::new(), available];
    };
    let mut sets: [BTreeSet<String>; 3] = Default::default();
    for id in available {
        let nodes = resource.devices.get(&id).map(|device| &device.nodes);
        let place = match nodes {
            Some(nodes) if nodes.iter().any(|node| mask.contains(*node)) => 0,
            Some(nodes) if !nodes.is_empty() => 1,
            _ => 2,
        };
        sets[place].insert(id);
    }
    sets
}

fn of_resource(
    state: &State,
    resource: &Resource,
    name: &str,
    pod: &Pod,
    container: Option<&Container>,
    wanted: usize,
    nodes: &[u32],
) -> Vec<Hint> {
    let held = state.held.get(&names::uid(pod));
    let had: BTreeSet<&String> = match (held, container) {
        (Some(held), Some(container)) => held.of(&container.name, name),
        (Some(held), None) => held.ids(name),
        (None, _) => BTreeSet::new(),
    };
    if !had.is_empty() {
        if had.len() != wanted {
            return Vec::new();
        }
        return hints(resource, &had, &BTreeSet::new(), wanted, nodes);
    }
    let in_use = state.in_use(name);
    let available: BTreeSet<&String> = resource.healthy().difference(&in_use).copied().collect();
    let again = held.filter(|_| container.is_some()).map(|held| held.reusable(pod, name)).unwrap_or_default();
    let again: BTreeSet<&String> = again.iter().collect();
    if available.len() + again.len() < wanted {
        return Vec::new();
    }
    hints(resource, &available, &again, wanted, nodes)
}

/// All sets of nodes that have enough of the available devices, beside those that are used again and must all be of them.
fn hints(
    resource: &Resource,
    available: &BTreeSet<&String>,
    again: &BTreeSet<&String>,
    wanted: usize,
    nodes: &[u32],
) -> Vec<Hint> {
    let all: BTreeMap<&String, Mask> =
        resource.devices.iter().map(|(id, device)| (id, device.nodes.iter().copied().collect())).collect();
    let of = |id: &String| all.get(id).copied().unwrap_or_default();
    // Nodes without any such device change nothing, and there may be many.
    let bearing: Vec<u32> =
        nodes.iter().copied().filter(|node| all.values().any(|mask| mask.contains(*node))).collect();
    let nodes = if bearing.is_empty() { nodes } else { &bearing };
    let mut fewest = nodes.len();
    let mut masks = Vec::new();
    for mask in Mask::all_of(nodes) {
        let is_of = |id: &&&String| !of(id).and(mask).is_empty();
        if all.keys().filter(is_of).count() >= wanted {
            fewest = fewest.min(mask.count());
        }
        let placed = again.iter().filter(|id| !of(id).is_empty());
        if !placed.clone().all(|id| !of(id).and(mask).is_empty()) {
            continue;
        }
        if placed.count() + available.iter().filter(is_of).count() >= wanted {
            masks.push(mask);
        }
    }
    let hint = |mask: Mask| Hint { affinity: Some(mask), preferred: mask.count() == fewest };
    masks.into_iter().map(hint).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use serde_json::json;

    use super::super::Known;
    use super::super::api::DevicePluginOptions;
    use super::super::plugin::Plugin;
    use super::*;

    const GPU: &str = "example.com/gpu";

    /// Devices by name, each of some nodes, of a plugin that is never asked.
    fn devices(root: &Path, all: &[(&str, &[u32])]) -> Devices {
        let devices = Devices::new(root, Arc::default());
        let known = |nodes: &[u32]| Known { healthy: true, nodes: nodes.iter().copied().collect() };
        let resource = Resource {
            devices: all.iter().map(|(id, nodes)| ((*id).to_owned(), known(nodes))).collect(),
            plugin: Some(Plugin::new(&root.join("none.sock"), DevicePluginOptions::default())),
            gone: None,
        };
        devices.state.lock().resources.insert(GPU.to_owned(), resource);
        devices
    }

    fn pod(uid: &str, inits: &[usize], counts: &[usize]) -> Pod {
        let with = |name: String, count: usize| json!({"name": name, "resources": {"limits": {GPU: count.to_string()}}});
        let all = |prefix: &str, counts: &[usize]| -> Vec<_> {
            counts.iter().enumerate().map(|(i, count)| with(format!("{prefix}{i}"), *count)).collect()
        };
        serde_json::from_value(json!({"metadata": {"uid": uid},
            "spec": {"initContainers": all("i", inits), "containers": all("c", counts)}}))
        .unwrap()
    }

    fn containers(pod: &Pod) -> Vec<Container> {
        let spec = pod.spec.clone().unwrap();
        spec.init_containers.into_iter().flatten().chain(spec.containers).collect()
    }

    fn said(hints: &Hints) -> Vec<String> {
        let hints = hints[GPU].as_ref().unwrap().iter();
        hints.map(|h| format!("{:?}{}", h.affinity.unwrap(), if h.preferred { "*" } else { "" })).collect()
    }

    #[tokio::test]
    async fn devices_are_hinted_and_chosen_near() {
        let root = tempfile::tempdir().unwrap();
        let four: [(&str, &[u32]); 4] = [("a", &[0]), ("b", &[0]), ("c", &[1]), ("d", &[1])];
        let devices = devices(root.path(), &four);
        let (one, three) = (pod("one", &[], &[1]), pod("three", &[], &[3]));
        let of = |pod: &Pod| said(&devices.hints(pod, containers(pod).first(), &[0, 1, 2]));
        assert_eq!(
            (of(&one), of(&three)),
            (vec!["{0}*".into(), "{1}*".into(), "{0, 1}".into()], vec!["{0, 1}*".to_owned()])
        );
        let choose = async |pod: &Pod, nodes: &[u32]| {
            let mask = (!nodes.is_empty()).then(|| nodes.iter().copied().collect());
            for container in containers(pod) {
                devices.choose(pod, &container, mask).await?;
            }
            let state = devices.state.lock();
            Ok::<_, String>(
                state.held[&names::uid(pod)].ids(GPU).into_iter().cloned().collect::<Vec<_>>().concat(),
            )
        };
        assert_eq!(choose(&one, &[1]).await.unwrap(), "c");
        assert_eq!(of(&one), ["{1}*", "{0, 1}"], "it has it");
        let two = pod("two", &[], &[2]);
        assert_eq!(of(&two), ["{0}*", "{0, 1}"]);
        assert_eq!(choose(&two, &[1]).await.unwrap(), "ad", "the near one, and another");
        let error = choose(&three, &[]).await.unwrap_err();
        assert_eq!(
            error,
            "requested number of devices unavailable for example.com/gpu. Requested: 3, Available: 1"
        );
        assert!(of(&three).is_empty());
        devices.release("two");
        assert_eq!(choose(&three, &[0]).await.unwrap(), "abd");
    }

    #[tokio::test]
    async fn what_init_containers_had_is_used_again() {
        let root = tempfile::tempdir().unwrap();
        let devices = devices(root.path(), &[("a", &[0]), ("b", &[0]), ("c", &[1])]);
        let pod = pod("p", &[2], &[1, 1]);
        let hints = |container: Option<&Container>| said(&devices.hints(&pod, container, &[0, 1]));
        assert_eq!(hints(None), ["{0}*", "{0, 1}"], "two together");
        let all = containers(&pod);
        devices.choose(&pod, &all[0], Some(Mask::from_iter([0]))).await.unwrap();
        // Not of the other node, though that has one: what was had before is there.
        assert_eq!(hints(Some(&all[1])), ["{0}*", "{0, 1}"]);
        devices.choose(&pod, &all[1], None).await.unwrap();
        devices.choose(&pod, &all[2], None).await.unwrap();
        let state = devices.state.lock();
        let held = &state.held["p"];
        let of = |name: &str| held.of(name, GPU).into_iter().map(String::as_str).collect::<Vec<_>>();
        assert_eq!((of("i0"), of("c0"), of("c1")), (vec!["a", "b"], vec!["a"], vec!["b"]));
    }

    #[tokio::test]
    async fn devices_that_are_nowhere_can_be_anywhere() {
        let root = tempfile::tempdir().unwrap();
        let devices = devices(root.path(), &[("a", &[]), ("b", &[])]);
        assert_eq!(devices.hints(&pod("p", &[], &[1]), None, &[0, 1]), Hints::from([(GPU.to_owned(), None)]));
        assert_eq!(devices.hints(&pod("p", &[], &[0]), None, &[0, 1]), Hints::new());
    }
}
