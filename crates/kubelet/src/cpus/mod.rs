//! Processors of their own (upstream's CPU manager with its static policy): containers of guaranteed pods that ask for whole
//! ones have them alone; all others share the rest.

mod figures;
mod hints;
mod options;
mod set;
mod take;
mod topology;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::time::Duration;

use k8s_cri::v1::{ContainerState, LinuxContainerResources};
use k8s_openapi::api::core::v1::{Container, Pod};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::admission::Refusal;
use crate::checkpoint::Checkpoint;
use crate::plan::is_sidecar;
use crate::resources::{self, Qos};
use crate::shared::{Shared, SharedRef};
use crate::spec::containers;
use crate::topology::{Aligned, Boundary, Counts, Hints, Mask, Policy, unexpected};
use crate::{checkpoint, names};
pub use options::CpuOptions;
pub use set::CpuSet;
use topology::Level;
pub use topology::Topology;

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
    pub options: CpuOptions,
}

impl Default for CpuPolicy {
    fn default() -> Self {
        CpuPolicy {
            is_static: false,
            reserved: None,
            look: Duration::from_secs(10),
            options: CpuOptions::default(),
        }
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

/// Who has which processors: by the pod's UID and the container's name.
type Owned = BTreeMap<String, BTreeMap<String, CpuSet>>;

#[derive(Debug)]
pub struct Cpus {
    topology: Topology,
    options: CpuOptions,
    /// None: nobody has any alone.
    reserved: Option<CpuSet>,
    owned: Mutex<Owned>,
    changed: Notify,
    file: Checkpoint,
}

impl Cpus {
    /// Takes up what an earlier kubelet has given. `near` is how near things must be to each other.
    ///
    /// # Errors
    /// Upstream's message, when nothing is reserved, what is reserved is not there, or options do not go with the machine.
    pub fn new(
        root: &Path,
        policy: &CpuPolicy,
        reserved_milli: i64,
        topology: Topology,
        near: Policy,
    ) -> Result<Self, String> {
        let file = Checkpoint::at(root.join(STATE));
        let mut cpus = Cpus {
            topology,
            options: policy.options,
            reserved: None,
            owned: Mutex::default(),
            changed: Notify::new(),
            file,
        };
        if !policy.is_static {
            // What was given under another policy is taken back by who starts the containers anew.
            let _ = std::fs::remove_file(cpus.file.path());
            return Ok(cpus);
        }
        policy.options.fit(&cpus.topology, near).map_err(|why| format!("new static policy error: {why}"))?;
        let all = cpus.topology.all();
        let count = usize::try_from((reserved_milli + 999) / 1000).unwrap_or(0);
        let some = || take::take(&cpus.topology, policy.options, &all, count).unwrap_or_default();
        let reserved = policy.reserved.clone().unwrap_or_else(some);
        if reserved.is_empty() && count == 0 {
            return Err(
                "[cpumanager] the static policy requires systemreserved.cpu + kubereserved.cpu to be greater than zero"
                    .to_owned(),
            );
        }
        if reserved.is_empty() {
            return Err(format!(
                "[cpumanager] unable to reserve the required amount of CPUs (size of {reserved} did not equal {count})"
            ));
        }
        if !reserved.without(&all).is_empty() {
            return Err(format!("[cpumanager] the reserved processors {reserved} are not all there ({all})"));
        }
        let known: State = checkpoint::load(cpus.file.path());
        let mut owned = Owned::new();
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

    /// Has what is counted of the given processors told before there is any.
    pub fn expect(&self, counts: &Counts) {
        if self.reserved.is_some() {
            counts.expect(Aligned::Container, Boundary::PhysicalCpu);
            counts.expect(Aligned::Container, Boundary::UncoreCache);
        }
    }

    /// Of which nodes a container could be given its processors, or a pod all of its containers'.
    pub fn hints(&self, pod: &Pod, container: Option<&Container>) -> Hints {
        let Some(reserved) = &self.reserved else { return Hints::new() };
        let count = container.map_or_else(|| wanted_by(pod), |container| wanted_alone(pod, container));
        if count == 0 {
            return Hints::new();
        }
        let (uid, owned) = (names::uid(pod), self.owned.lock());
        let of_pod = owned.get(&uid);
        let mut had = CpuSet::default();
        for known in containers(pod).filter(|known| container.is_none_or(|only| only.name == known.name)) {
            let Some(set) = of_pod.and_then(|of| of.get(&known.name)) else { continue };
            if set.len() != wanted_alone(pod, known) {
                return Hints::from([("cpu".to_owned(), Some(Vec::new()))]);
            }
            had = had.with(set);
        }
        let hint = |free: &CpuSet, again: &CpuSet| {
            let hints = hints::hints(&self.topology, self.options, free, again, count);
            Hints::from([("cpu".to_owned(), Some(hints))])
        };
        if had.len() == count {
            // It has them already: after a restart, they are where they are.
            return hint(&had, &CpuSet::default());
        }
        let again = reusable(pod, of_pod).with(&had);
        let free = self.topology.all().without(reserved).without(&taken(&owned));
        hint(&free, &again)
    }

    /// Gives a container the processors that it may have alone, as near to `affinity` as can be. Containers of a pod come in
    /// the order in which they are started.
    ///
    /// # Errors
    /// There are not so many left, in upstream's words.
    pub fn allocate(
        &self,
        pod: &Pod,
        container: &Container,
        affinity: Option<Mask>,
        counts: &Counts,
    ) -> Result<(), Refusal> {
        let Some(reserved) = &self.reserved else { return Ok(()) };
        let count = wanted_alone(pod, container);
        if count == 0 {
            return Ok(());
        }
        counts.cpu_requests.inc();
        let given = self.give(reserved, pod, container, count, affinity);
        if given.is_err() {
            counts.cpu_errors.inc();
        }
        if self.options.full_cores {
            counts.align(Aligned::Container, Boundary::PhysicalCpu, given.is_ok());
        }
        if let Some(set) = given?
            && self.topology.ids(&set, Level::Cache).len() <= 1
        {
            counts.align(Aligned::Container, Boundary::UncoreCache, true);
        }
        Ok(())
    }

    /// What is given now; none, if the container has it already.
    fn give(
        &self,
        reserved: &CpuSet,
        pod: &Pod,
        container: &Container,
        count: usize,
        affinity: Option<Mask>,
    ) -> Result<Option<CpuSet>, Refusal> {
        let uid = names::uid(pod);
        let set = {
            let mut owned = self.owned.lock();
            let unshared = self.topology.all().without(&taken(&owned));
            if self.options.full_cores {
                self.whole_cores(&unshared, reserved, count)?;
            }
            if owned.get(&uid).is_some_and(|of| of.contains_key(&container.name)) {
                return Ok(None);
            }
            let take = |from: &CpuSet, count: usize| {
                take::take(&self.topology, self.options, from, count.min(from.len()))
            };
            // What is used again goes first: the pod is not to have more than it was counted for.
            let again = reusable(pod, owned.get(&uid));
            let mut set = take(&again, count).map_err(unexpected)?;
            let free = unshared.without(reserved).with(&again);
            if let Some(mask) = affinity {
                let near = hints::near(&self.topology, self.options, &free, mask).without(&set);
                set = set.with(&take(&near, count - set.len()).map_err(unexpected)?);
            }
            let rest = take::take(&self.topology, self.options, &free.without(&set), count - set.len());
            let set = set.with(&rest.map_err(unexpected)?);
            owned.entry(uid).or_default().insert(container.name.clone(), set.clone());
            set
        };
        self.save();
        Ok(Some(set))
    }

    /// Whether so many can be whole cores, beside cores of which one is reserved.
    fn whole_cores(&self, unshared: &CpuSet, reserved: &CpuSet, count: usize) -> Result<(), Refusal> {
        let refuse = |message: String| {
            let message = format!("SMT Alignment Error: {message}");
            Err(Refusal { reason: "SMTAlignmentError", message, short: Vec::new() })
        };
        let per_core = self.topology.per(Level::Core);
        if !count.is_multiple_of(per_core) {
            return refuse(format!("requested {count} cpus not multiple cpus per core = {per_core}"));
        }
        let cores = self.topology.ids(reserved, Level::Core);
        let of_reserved = cores
            .into_iter()
            .map(|core| self.topology.within(&self.topology.all(), Level::Core, core))
            .fold(CpuSet::default(), |sum, core| sum.with(&core));
        let available = unshared.without(&of_reserved).len();
        if count > available {
            return refuse(format!(
                "not enough free physical CPUs: available physical CPUs = {available}, requested CPUs = {count}, \
                 CPUs per core = {per_core}"
            ));
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
        let shared = self.topology.all().without(&taken(&owned));
        // What is reserved is not kept from those who share, unless that is wished.
        if self.options.strict { shared.without(reserved) } else { shared.with(reserved) }
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
        let saved = self.file.write(|path| {
            let entries = self.owned.lock().clone();
            let state = State {
                policy_name: "static".to_owned(),
                default_cpu_set: self.of("", "").to_string(),
                entries: entries
                    .into_iter()
                    .map(|(uid, of)| (uid, of.iter().map(|(name, set)| (name.clone(), text(set))).collect()))
                    .collect(),
            };
            checkpoint::save(path, &state)
        });
        if let Err(error) = saved {
            tracing::warn!(%error, "who has which processors could not be written down");
        }
        self.changed.notify_one();
    }
}

/// What anybody has.
fn taken(owned: &Owned) -> CpuSet {
    owned.values().flat_map(BTreeMap::values).fold(CpuSet::default(), |sum, set| sum.with(set))
}

/// What init containers have had, which end before others begin, and nobody has taken over.
fn reusable(pod: &Pod, owned: Option<&BTreeMap<String, CpuSet>>) -> CpuSet {
    let Some(spec) = &pod.spec else { return CpuSet::default() };
    let inits = spec.init_containers.iter().flatten().map(|c| (c, !is_sidecar(c)));
    let all = inits.chain(spec.containers.iter().map(|c| (c, false)));
    let owned = all.filter_map(|(c, ends_before)| Some((owned?.get(&c.name)?, ends_before)));
    owned.fold(
        CpuSet::default(),
        |reusable, (set, ends_before)| {
            if ends_before { reusable.with(set) } else { reusable.without(set) }
        },
    )
}

/// How many processors a container is to have alone: those of guaranteed pods that ask for whole ones. A pod that asks as a
/// whole has none: what it asks for is not its containers' (the gate PodLevelResourceManagers is off).
fn wanted_alone(pod: &Pod, container: &Container) -> usize {
    let milli = resources::cpu_request(container.resources.as_ref()).unwrap_or(0);
    let is_whole = resources::qos(pod) == Qos::Guaranteed && milli % 1000 == 0 && !resources::is_of_pod(pod);
    if is_whole { usize::try_from(milli / 1000).unwrap_or(0) } else { 0 }
}

/// The same for all of a pod's containers.
fn wanted_by(pod: &Pod) -> usize {
    let wanted = resources::together(pod, |container| wanted_alone(pod, container) as i64);
    usize::try_from(wanted).unwrap_or(0)
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
        // With none left to share, one that runs stays where it is: an empty set would be all.
        if wanted.is_empty() || told.get(&container.id) == Some(&wanted) {
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
mod tests;
