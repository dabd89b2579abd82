//! Processors of their own (upstream's CPU manager with its static policy): containers of guaranteed pods that ask for whole
//! ones have them alone; all others share the rest.

mod set;
mod topology;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_cri::v1::{ContainerState, LinuxContainerResources};
use k8s_openapi::api::core::v1::{Container, Pod};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::names;
use crate::plan::is_sidecar;
use crate::resources::{self, Qos};
use crate::shared::{Shared, SharedRef};
pub use set::CpuSet;
use topology::Topology;

const STATE: &str = "cpu_manager_state";

/// What is configured of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuPolicy {
    /// Whether containers have processors of their own at all.
    pub is_static: bool,
    /// Processors that no container has alone, by number; none: as many as are reserved.
    pub reserved: Option<CpuSet>,
    /// How often all containers are looked at.
    pub look: Duration,
}

impl Default for CpuPolicy {
    fn default() -> Self {
        CpuPolicy { is_static: false, reserved: None, look: Duration::from_secs(10) }
    }
}

/// The file, as upstream writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct State {
    policy_name: String,
    default_cpu_set: String,
    /// By the pod's UID and the container's name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    entries: BTreeMap<String, BTreeMap<String, String>>,
}

/// Who has which processors.
#[derive(Debug)]
pub struct Cpus {
    topology: Topology,
    /// None: nobody has any alone.
    reserved: Option<CpuSet>,
    owned: Mutex<BTreeMap<String, BTreeMap<String, CpuSet>>>,
    changed: Notify,
    file: PathBuf,
}

impl Cpus {
    /// Takes up what an earlier kubelet has given.
    ///
    /// # Errors
    /// Upstream's message, when nothing is reserved, or what is reserved is not there.
    pub fn new(root: &Path, policy: &CpuPolicy, reserved_milli: i64) -> Result<Self, String> {
        let topology = Topology::of_machine();
        let file = root.join(STATE);
        let mut cpus =
            Cpus { topology, reserved: None, owned: Mutex::default(), changed: Notify::new(), file };
        if !policy.is_static {
            // What was given under another policy is taken back by who starts the containers anew.
            let _ = std::fs::remove_file(&cpus.file);
            return Ok(cpus);
        }
        let all = cpus.topology.all();
        let some = || {
            let count = usize::try_from((reserved_milli + 999) / 1000).unwrap_or(0);
            cpus.topology.take(&all, count).unwrap_or_default()
        };
        let reserved = policy.reserved.clone().unwrap_or_else(some);
        if reserved.is_empty() {
            return Err(
                "[cpumanager] unable to determine reserved CPU resources for static policy".to_owned()
            );
        }
        if !reserved.without(&all).is_empty() {
            return Err(format!("[cpumanager] the reserved processors {reserved} are not all there ({all})"));
        }
        let known: State = std::fs::read(&cpus.file)
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default();
        let mut owned: BTreeMap<String, BTreeMap<String, CpuSet>> = BTreeMap::new();
        for (uid, containers) in known.entries {
            for (name, set) in containers {
                let set: CpuSet = set.parse()?;
                // Another machine, or another reservation: it is given anew.
                if set.and(&all.without(&reserved)) == set {
                    owned.entry(uid.clone()).or_default().insert(name, set);
                }
            }
        }
        (cpus.reserved, cpus.owned) = (Some(reserved), Mutex::new(owned));
        Ok(cpus)
    }

    /// Gives a pod's containers what they may have alone.
    ///
    /// # Errors
    /// There are not so many left, in upstream's words.
    pub fn promise(&self, pod: &Pod) -> Result<(), String> {
        let (Some(reserved), Some(spec)) = (&self.reserved, &pod.spec) else { return Ok(()) };
        let uid = names::uid(pod);
        let mut owned = self.owned.lock();
        if owned.contains_key(&uid) {
            return Ok(());
        }
        let taken =
            owned.values().flat_map(BTreeMap::values).fold(CpuSet::default(), |sum, set| sum.with(set));
        let mut free = self.topology.all().without(reserved).without(&taken);
        // What init containers have had is used again by those that come after them.
        let (mut given, mut reusable) = (BTreeMap::new(), CpuSet::default());
        let inits = spec.init_containers.iter().flatten().map(|c| (c, !is_sidecar(c)));
        for (container, ends_before) in inits.chain(spec.containers.iter().map(|c| (c, false))) {
            let count = wanted_alone(pod, container);
            if count == 0 {
                continue;
            }
            let again: CpuSet = reusable.0.iter().copied().take(count).collect();
            let available = free.len() + again.len();
            let more = self.topology.take(&free, count - again.len()).ok_or_else(|| {
                format!(
                    "Allocate failed due to not enough cpus available to satisfy request: requested={count}, \
                     available={available}, which is unexpected"
                )
            })?;
            free = free.without(&more);
            let set = again.with(&more);
            reusable = if ends_before { reusable.with(&set) } else { reusable.without(&set) };
            given.insert(container.name.clone(), set);
        }
        if !given.is_empty() {
            owned.insert(uid, given);
            drop(owned);
            self.save();
        }
        Ok(())
    }

    /// The processors that a container may use; empty: all.
    pub fn of(&self, uid: &str, container: &str) -> CpuSet {
        let Some(reserved) = &self.reserved else { return CpuSet::default() };
        let owned = self.owned.lock();
        if let Some(own) = owned.get(uid).and_then(|of| of.get(container)) {
            return own.clone();
        }
        let taken =
            owned.values().flat_map(BTreeMap::values).fold(CpuSet::default(), |sum, set| sum.with(set));
        // What is reserved is not kept from those who share.
        self.topology.all().without(&taken).with(reserved)
    }

    /// The processors that a container has alone.
    pub fn alone(&self, uid: &str, container: &str) -> CpuSet {
        self.owned.lock().get(uid).and_then(|of| of.get(container)).cloned().unwrap_or_default()
    }

    /// The processors that containers may have alone; none, where no container may.
    pub fn allocatable(&self) -> CpuSet {
        self.reserved.as_ref().map(|reserved| self.topology.all().without(reserved)).unwrap_or_default()
    }

    /// The pod needs its processors no more.
    pub fn release(&self, uid: &str) {
        if self.owned.lock().remove(uid).is_some() {
            self.save();
        }
    }

    /// Whatever other pods than these have is free.
    pub fn keep(&self, known: &HashSet<String>) {
        let gone = {
            let mut owned = self.owned.lock();
            let before = owned.len();
            owned.retain(|uid, _| known.contains(uid));
            before != owned.len()
        };
        if gone {
            self.save();
        }
    }

    fn save(&self) {
        let text = |set: &CpuSet| set.to_string();
        let entries = self.owned.lock().clone();
        let state = State {
            policy_name: "static".to_owned(),
            default_cpu_set: self.of("", "").to_string(),
            entries: entries
                .into_iter()
                .map(|(uid, of)| (uid, of.iter().map(|(name, set)| (name.clone(), text(set))).collect()))
                .collect(),
        };
        let write = || -> io::Result<()> {
            let partial = self.file.with_extension("partial");
            std::fs::write(&partial, serde_json::to_vec(&state)?)?;
            std::fs::File::open(&partial)?.sync_all()?;
            std::fs::rename(partial, &self.file)
        };
        if let Err(error) = write() {
            tracing::warn!(%error, "who has which processors could not be written down");
        }
        self.changed.notify_one();
    }
}

/// How many processors a container is to have alone: those of guaranteed pods that ask for whole ones.
fn wanted_alone(pod: &Pod, container: &Container) -> usize {
    let milli = resources::cpu_request(container.resources.as_ref()).unwrap_or(0);
    let is_whole = resources::qos(pod) == Qos::Guaranteed && milli % 1000 == 0;
    if is_whole { usize::try_from(milli / 1000).unwrap_or(0) } else { 0 }
}

/// Keeps containers on the processors that are theirs, until the kubelet ends.
pub async fn run(shared: SharedRef) {
    if shared.cpus.reserved.is_none() {
        return;
    }
    let mut told = HashMap::new();
    let mut ticks = tokio::time::interval(shared.config.cpus.look);
    loop {
        tokio::select! {
            () = shared.shutdown.cancelled() => return,
            () = shared.cpus.changed.notified() => {}
            _ = ticks.tick() => {}
        }
        if let Err(status) = look(&shared, &mut told).await {
            tracing::debug!(%status, "the processors of containers could not be looked at");
        }
    }
}

/// Tells the runtime what it has not been told of a container yet.
async fn look(shared: &Shared, told: &mut HashMap<String, CpuSet>) -> Result<(), tonic::Status> {
    let containers = shared.cri.containers(None).await?;
    told.retain(|id, _| containers.iter().any(|c| c.id == *id));
    for container in containers.iter().filter(|c| c.state() == ContainerState::ContainerRunning) {
        let label = |name: &str| container.labels.get(name).map(String::as_str).unwrap_or_default();
        let wanted = shared.cpus.of(label(names::POD_UID), label(names::CONTAINER_NAME));
        if told.get(&container.id) == Some(&wanted) {
            continue;
        }
        let change = LinuxContainerResources { cpuset_cpus: wanted.to_string(), ..Default::default() };
        match shared.cri.update_container(&container.id, change).await {
            Ok(()) => drop(told.insert(container.id.clone(), wanted)),
            Err(status) => {
                tracing::debug!(container = container.id, %status, "a container's processors could not be changed");
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, cpu: &[&str]) -> Pod {
        let containers: Vec<_> = cpu
            .iter()
            .enumerate()
            .map(|(i, cpu)| json!({"name": format!("c{i}"), "resources": {"limits": {"cpu": cpu, "memory": "1Mi"}}}))
            .collect();
        serde_json::from_value(
            json!({"metadata": {"uid": uid, "name": uid}, "spec": {"containers": containers}}),
        )
        .unwrap()
    }

    #[test]
    fn whole_processors_of_guaranteed_pods_are_theirs_alone() {
        let all = Topology::of_machine().all();
        if all.len() < 2 {
            return eprintln!("SKIPPED: one processor cannot be shared out");
        }
        let root = tempfile::tempdir().unwrap();
        let first = *all.0.first().unwrap();
        let policy = CpuPolicy {
            is_static: true,
            reserved: Some([first].into_iter().collect()),
            ..CpuPolicy::default()
        };
        let new = || Cpus::new(root.path(), &policy, 0).unwrap();
        let cpus = new();
        cpus.promise(&pod("shared", &["500m"])).unwrap();
        assert_eq!(cpus.of("shared", "c0"), all);
        cpus.promise(&pod("own", &["1", "100m"])).unwrap();
        let own = cpus.of("own", "c0");
        assert_eq!((own.len(), own.0.contains(&first)), (1, false));
        assert_eq!(cpus.of("own", "c1"), all.without(&own));

        // It outlives the kubelet, and is given back.
        let cpus = new();
        assert_eq!((cpus.of("own", "c0"), cpus.of("shared", "c0")), (own.clone(), all.without(&own)));
        let many = (all.len() * 2).to_string();
        let error = cpus.promise(&pod("greedy", &[&many])).unwrap_err();
        assert!(error.contains(&format!("requested={many}, available={}, which", all.len() - 2)), "{error}");
        cpus.release("own");
        assert_eq!(cpus.of("own", "c0"), all);
    }

    #[test]
    fn something_must_be_reserved() {
        let root = tempfile::tempdir().unwrap();
        let policy = CpuPolicy { is_static: true, ..CpuPolicy::default() };
        assert!(Cpus::new(root.path(), &policy, 0).is_err());
        assert!(Cpus::new(root.path(), &policy, 100).is_ok());
        let policy = CpuPolicy { reserved: Some("4000".parse().unwrap()), ..policy };
        assert!(Cpus::new(root.path(), &policy, 100).unwrap_err().contains("4000"));
        let none = Cpus::new(root.path(), &CpuPolicy::default(), 0).unwrap();
        none.promise(&pod("own", &["1"])).unwrap();
        assert!(none.of("own", "c0").is_empty());
    }
}
