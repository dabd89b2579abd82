//! Devices of the node that plugins know: counted in the node's status, promised to pods when they are admitted, and given
//! to their containers when these start (upstream's device manager).

pub mod api;
mod choose;
mod held;
pub mod lister_api;
mod plugin;
pub mod pod_resources;
mod registration;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::api::{ContainerAllocateResponse, Device, HEALTHY};
use self::held::{Grant, Held, asked};
use self::plugin::Plugin;
use crate::checkpoint::Checkpoint;
use crate::instruments::ALLOCATE_SECONDS;
use crate::names;

pub use registration::{DevicePlugins, is_extended, run};

/// The directory of the plugins' sockets below the kubelet's own, and the file beside them.
const DIRECTORY: &str = "device-plugins";
const CHECKPOINT: &str = "kubelet_internal_checkpoint";
/// How long a resource is told of whose plugin is gone (upstream's grace period of an endpoint).
const REMEMBERED: Duration = Duration::from_mins(5);

/// A device, as its plugin tells.
#[derive(Clone, Debug, Default)]
struct Known {
    /// Whether it may be used.
    healthy: bool,
    /// The NUMA nodes that it is near.
    nodes: BTreeSet<u32>,
}

impl Known {
    fn of(device: &Device) -> Self {
        let nodes = device.topology.iter().flat_map(|topology| &topology.nodes);
        Known {
            healthy: device.health == HEALTHY,
            nodes: nodes.filter_map(|node| u32::try_from(node.id).ok()).collect(),
        }
    }
}

#[derive(Debug, Default)]
struct Resource {
    devices: BTreeMap<String, Known>,
    plugin: Option<Plugin>,
    gone: Option<Instant>,
}

impl Resource {
    /// The devices that can be given. Those whose plugin is gone cannot.
    fn healthy(&self) -> BTreeSet<&String> {
        let healthy = self.devices.iter().filter(|(_, device)| device.healthy && self.plugin.is_some());
        healthy.map(|(id, _)| id).collect()
    }
}

#[derive(Debug, Default)]
struct State {
    resources: BTreeMap<String, Resource>,
    /// By the pod's UID.
    held: BTreeMap<String, Held>,
}

/// Who has which device.
#[derive(Debug)]
pub struct Devices {
    directory: PathBuf,
    file: Checkpoint,
    state: Mutex<State>,
    /// Devices are chosen for one container at a time.
    choosing: tokio::sync::Mutex<()>,
    /// Told when the node has other devices.
    changed: Arc<Notify>,
}

impl Devices {
    /// The devices of a kubelet with this directory, with what its pods held before it was started anew.
    pub fn new(root: &Path, changed: Arc<Notify>) -> Self {
        let directory = root.join(DIRECTORY);
        let file = Checkpoint::at(directory.join(CHECKPOINT));
        let held = held::load(file.path());
        // Until their plugins announce themselves again, there are none of them.
        let names: BTreeSet<String> =
            held.values().flat_map(|of| of.grants.values()).flat_map(BTreeMap::keys).cloned().collect();
        let gone = || Resource { gone: Some(Instant::now()), ..Resource::default() };
        let resources = names.into_iter().map(|name| (name, gone())).collect();
        Devices {
            state: Mutex::new(State { resources, held }),
            directory,
            file,
            choosing: tokio::sync::Mutex::default(),
            changed,
        }
    }

    /// Resources with how many there are and how many can be used.
    pub fn amounts(&self) -> Vec<(String, usize, usize)> {
        let state = self.state.lock();
        let all = state.resources.iter().map(|(name, resource)| {
            let is_forgotten = resource.gone.is_some_and(|gone| gone.elapsed() >= REMEMBERED);
            let count = if is_forgotten { 0 } else { resource.devices.len() };
            (name.clone(), count, resource.healthy().len())
        });
        all.collect()
    }

    /// What a container is given for its devices, which are asked for when it starts first.
    ///
    /// # Errors
    /// There are too few, or the plugin refuses.
    pub async fn grant(
        &self,
        pod: &Pod,
        container: &Container,
    ) -> Result<Vec<ContainerAllocateResponse>, String> {
        let wanted: Vec<(String, usize)> = {
            let state = self.state.lock();
            let known = state.resources.keys().cloned().collect::<BTreeSet<String>>();
            let had = state.held.get(&names::uid(pod)).and_then(|held| held.grants.get(&container.name));
            let all = known.into_iter().chain(had.into_iter().flat_map(|of| of.keys().cloned()));
            let all: BTreeSet<String> = all.collect();
            all.into_iter()
                .map(|name| (asked(container, &name), name))
                .filter(|(n, _)| *n > 0)
                .map(|(n, name)| (name, n))
                .collect()
        };
        let mut answers = Vec::new();
        for (resource, count) in wanted {
            let _choosing = self.choosing.lock().await;
            let grant = match self.has(pod, container, &resource) {
                Some(grant) => grant,
                None => self.take(pod, container, &resource, count).await?,
            };
            let plugin = self.state.lock().resources.get(&resource).and_then(|r| r.plugin.clone());
            if let Some(plugin) = plugin.filter(|plugin| plugin.options.pre_start_required) {
                let ids: Vec<String> = grant.ids.iter().cloned().collect();
                plugin.before_start(&ids).await.map_err(|status| {
                    format!("device plugin PreStartContainer rpc failed with err: {}", status.message())
                })?;
            }
            answers.push(grant.answer);
        }
        Ok(answers)
    }

    fn has(&self, pod: &Pod, container: &Container, resource: &str) -> Option<Grant> {
        let state = self.state.lock();
        state.held.get(&names::uid(pod))?.grants.get(&container.name)?.get(resource).cloned()
    }

    /// Asks the plugin for the devices that were chosen for a container.
    async fn take(
        &self,
        pod: &Pod,
        container: &Container,
        resource: &str,
        count: usize,
    ) -> Result<Grant, String> {
        let uid = names::uid(pod);
        let chosen = |state: &State| {
            let of_pod = state.held.get(&uid)?;
            of_pod.chosen.get(&container.name)?.get(resource).filter(|ids| ids.len() == count).cloned()
        };
        if chosen(&self.state.lock()).is_none() {
            // A plugin that has come only after the pod was taken.
            self.choose_alone(pod, container, None).await?;
        }
        let (plugin, ids) = {
            let state = self.state.lock();
            (state.resources.get(resource).and_then(|of| of.plugin.clone()), chosen(&state))
        };
        let Some((plugin, ids)) = plugin.zip(ids) else {
            return Err(format!("can't find endpoint for resource {resource}"));
        };
        let ids: Vec<String> = ids.into_iter().collect();
        let began = Instant::now();
        let answer = plugin.allocate(&ids).await;
        ALLOCATE_SECONDS.with_label_values(&[resource]).observe(began.elapsed().as_secs_f64());
        let answer = answer
            .map_err(|status| format!("Allocate failed due to {}, which is unexpected", status.message()))?;
        let grant = Grant { ids: ids.into_iter().collect(), answer };
        {
            let mut state = self.state.lock();
            let of_pod = state.held.entry(uid).or_default();
            if let Some(chosen) = of_pod.chosen.get_mut(&container.name) {
                chosen.remove(resource);
            }
            of_pod
                .grants
                .entry(container.name.clone())
                .or_default()
                .insert(resource.to_owned(), grant.clone());
        }
        self.save();
        Ok(grant)
    }

    /// Which devices a pod's containers have, by container and resource.
    pub fn given(&self, uid: &str) -> BTreeMap<String, BTreeMap<String, Vec<String>>> {
        let state = self.state.lock();
        let grants = state.held.get(uid).map(|held| held.grants.clone()).unwrap_or_default();
        let ids = |grant: Grant| grant.ids.into_iter().collect::<Vec<_>>();
        let of =
            |of: BTreeMap<String, Grant>| of.into_iter().map(|(name, grant)| (name, ids(grant))).collect();
        grants.into_iter().map(|(container, grants)| (container, of(grants))).collect()
    }

    /// The devices that can be used, by resource.
    pub fn usable(&self) -> BTreeMap<String, Vec<String>> {
        let state = self.state.lock();
        let there = state.resources.iter().filter(|(_, resource)| resource.plugin.is_some());
        let ids = |resource: &Resource| resource.healthy().into_iter().cloned().collect();
        there.map(|(name, resource)| (name.clone(), ids(resource))).collect()
    }

    /// The NUMA nodes that a device is near.
    pub fn nodes(&self, resource: &str, id: &str) -> BTreeSet<u32> {
        let state = self.state.lock();
        let device = state.resources.get(resource).and_then(|of| of.devices.get(id));
        device.map(|device| device.nodes.clone()).unwrap_or_default()
    }

    /// The pod needs its devices no more.
    pub fn release(&self, uid: &str) {
        if self.state.lock().held.remove(uid).is_some_and(|held| !held.grants.is_empty()) {
            self.save();
        }
    }

    /// Whatever is held by other pods than these is free.
    pub fn keep(&self, known: &std::collections::HashSet<String>) {
        let gone = {
            let mut state = self.state.lock();
            let before = state.held.len();
            state.held.retain(|uid, _| known.contains(uid));
            before != state.held.len()
        };
        if gone {
            self.save();
        }
    }

    fn save(&self) {
        let saved = self.file.write(|path| {
            let held = self.state.lock().held.clone();
            held::save(path, &held, &|resource, id| self.nodes(resource, id))
        });
        if let Err(error) = saved {
            tracing::warn!(%error, "which pod has which devices could not be written down");
        }
    }

    /// Follows a plugin until it is gone.
    async fn follow(self: Arc<Self>, resource: String, plugin: Plugin, stop: CancellationToken) {
        let following = async {
            let mut lists = plugin.list_and_watch().await?;
            while let Some(list) = lists.message().await? {
                self.has_devices(&resource, &plugin, list.devices);
            }
            Ok::<(), tonic::Status>(())
        };
        let outcome = tokio::select! {
            // Another plugin has come in its place, or the kubelet ends.
            () = stop.cancelled() => return,
            outcome = following => outcome,
        };
        if let Err(status) = outcome {
            tracing::info!(resource, status = status.message(), "a device plugin is gone");
        }
        self.has_lost(&resource);
    }

    /// A resource's plugin is gone.
    fn has_lost(&self, resource: &str) {
        if let Some(known) = self.state.lock().resources.get_mut(resource) {
            known.plugin = None;
            known.gone = Some(Instant::now());
        }
        self.changed.notify_one();
    }

    fn has_devices(&self, resource: &str, plugin: &Plugin, devices: Vec<Device>) {
        {
            let mut state = self.state.lock();
            let known = state.resources.entry(resource.to_owned()).or_default();
            known.devices =
                devices.into_iter().map(|device| (device.id.clone(), Known::of(&device))).collect();
            (known.plugin, known.gone) = (Some(plugin.clone()), None);
        }
        self.changed.notify_one();
    }
}
