//! Devices of the node that plugins know: counted in the node's status, promised to pods when they are admitted, and given
//! to their containers when these start (upstream's device manager).

pub mod api;
mod held;
pub mod lister_api;
mod plugin;
pub mod pod_resources;
mod registration;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod};
use parking_lot::Mutex;
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::api::{ContainerAllocateResponse, Device, HEALTHY};
use self::held::{Grant, Held, asked, asked_by};
use self::plugin::Plugin;
use crate::names;

pub use registration::{is_extended, run};

/// The directory of the plugins' sockets below the kubelet's own, and the file beside them.
const DIRECTORY: &str = "device-plugins";
const CHECKPOINT: &str = "kubelet_internal_checkpoint";
/// How long a resource is told of whose plugin is gone (upstream's grace period of an endpoint).
const REMEMBERED: Duration = Duration::from_mins(5);

#[derive(Debug, Default)]
struct Resource {
    /// Whether each may be used.
    devices: BTreeMap<String, bool>,
    plugin: Option<Plugin>,
    gone: Option<Instant>,
}

impl Resource {
    fn healthy(&self) -> usize {
        // Whose plugin is gone cannot be given.
        if self.plugin.is_some() { self.devices.values().filter(|healthy| **healthy).count() } else { 0 }
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
        let held = held::load(&directory.join(CHECKPOINT));
        // Until their plugins announce themselves again, there are none of them.
        let names: BTreeSet<String> =
            held.values().flat_map(|of| of.grants.values()).flat_map(BTreeMap::keys).cloned().collect();
        let gone = || Resource { gone: Some(Instant::now()), ..Resource::default() };
        let resources = names.into_iter().map(|name| (name, gone())).collect();
        Devices {
            state: Mutex::new(State { resources, held }),
            directory,
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
            (name.clone(), count, resource.healthy())
        });
        all.collect()
    }

    /// Promises a pod what it asks for.
    ///
    /// # Errors
    /// There is not enough, in upstream's words.
    pub fn promise(&self, pod: &Pod) -> Result<(), String> {
        let uid = names::uid(pod);
        let mut state = self.state.lock();
        let mut promised = BTreeMap::new();
        for (name, resource) in &state.resources {
            let wanted = asked_by(pod, name);
            if wanted == 0 {
                continue;
            }
            let others = state.held.iter().filter(|(other, _)| **other != uid);
            let taken: usize = others.map(|(_, held)| held.count(name)).sum();
            let available = resource.healthy().saturating_sub(taken);
            if wanted > available {
                return Err(format!(
                    "Allocate failed due to requested number of devices unavailable for {name}. Requested: {wanted}, \
                     Available: {available}, which is unexpected"
                ));
            }
            promised.insert(name.clone(), wanted);
        }
        if !promised.is_empty() {
            state.held.entry(uid).or_default().promised = promised;
        }
        Ok(())
    }

    /// What a container is given for its devices, which are chosen and asked for when it starts first.
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

    /// Chooses devices for a container, and asks their plugin for them.
    async fn take(
        &self,
        pod: &Pod,
        container: &Container,
        resource: &str,
        count: usize,
    ) -> Result<Grant, String> {
        let uid = names::uid(pod);
        let (plugin, reusable, free) = {
            let state = self.state.lock();
            let none = Resource::default();
            let of = state.resources.get(resource).unwrap_or(&none);
            let held: BTreeSet<&String> = state.held.values().flat_map(|held| held.ids(resource)).collect();
            let is_free = |(id, healthy): &(&String, &bool)| **healthy && !held.contains(id);
            let free: Vec<String> = of.devices.iter().filter(is_free).map(|(id, _)| id.clone()).collect();
            let reusable = state.held.get(&uid).map(|held| held.reusable(pod, resource)).unwrap_or_default();
            (of.plugin.clone(), reusable, free)
        };
        let Some(plugin) = plugin else {
            return Err(format!("can't find endpoint for resource {resource}"));
        };
        let must: Vec<String> = reusable.into_iter().take(count).collect();
        let available: Vec<String> = must.iter().chain(&free).cloned().collect();
        if available.len() < count {
            return Err(format!(
                "requested number of devices unavailable for {resource}. Requested: {count}, Available: {}",
                available.len()
            ));
        }
        let mut ids: Vec<String> = must.clone();
        if plugin.options.get_preferred_allocation_available && ids.len() < count {
            for id in plugin.preferred(&available, &must, count).await {
                if ids.len() < count && !ids.contains(&id) {
                    ids.push(id);
                }
            }
        }
        let rest: Vec<String> = free.into_iter().filter(|id| !ids.contains(id)).collect();
        ids.extend(rest.into_iter().take(count - ids.len()));
        let answer = plugin
            .allocate(&ids)
            .await
            .map_err(|status| format!("Allocate failed due to {}, which is unexpected", status.message()))?;
        let grant = Grant { ids: ids.into_iter().collect(), answer };
        {
            let mut state = self.state.lock();
            let of_pod = state.held.entry(uid).or_default();
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
        let ids = |resource: &Resource| {
            resource.devices.iter().filter(|(_, healthy)| **healthy).map(|(id, _)| id.clone()).collect()
        };
        there.map(|(name, resource)| (name.clone(), ids(resource))).collect()
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
        let held = self.state.lock().held.clone();
        if let Err(error) = held::save(&self.directory.join(CHECKPOINT), &held) {
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
        if let Some(known) = self.state.lock().resources.get_mut(&resource) {
            known.plugin = None;
            known.gone = Some(Instant::now());
        }
        self.changed.notify_one();
    }

    fn has_devices(&self, resource: &str, plugin: &Plugin, devices: Vec<Device>) {
        {
            let mut state = self.state.lock();
            let known = state.resources.entry(resource.to_owned()).or_default();
            known.devices = devices.into_iter().map(|d| (d.id, d.health == HEALTHY)).collect();
            (known.plugin, known.gone) = (Some(plugin.clone()), None);
        }
        self.changed.notify_one();
    }
}

/// Connects to a socket by a way that is short, since a socket's address holds no long path.
async fn connect(socket: &Path) -> std::io::Result<UnixStream> {
    let (directory, name) =
        (socket.parent().unwrap_or(Path::new("/")), socket.file_name().unwrap_or_default());
    let directory = std::fs::File::open(directory)?;
    let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
    UnixStream::connect(short).await
}
