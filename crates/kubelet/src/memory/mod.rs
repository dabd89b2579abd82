//! Memory of their own (upstream's memory manager with its static policy, KEP-1769): guaranteed containers have theirs of
//! as few NUMA nodes as can be, where nobody else's is counted.

mod machine;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use k8s_openapi::api::core::v1::{Container, Pod};
use krate_api::Quantity;
use krate_api::quantity::Format;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::admission::Refusal;
use crate::checkpoint::Checkpoint;
use crate::cpus::CpuSet;
use crate::numa::NumaNode;
use crate::plan::is_sidecar;
use crate::resources::{self, Qos};
use crate::spec::containers;
use crate::topology::{Counts, Hint, Hints, Mask, unexpected};
use crate::{checkpoint, names};
pub use machine::Block;
use machine::{Amounts, Machine};

const STATE: &str = "memory_manager_state";

/// What of a node's memory is nobody's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    pub node: u32,
    /// Bytes by kind.
    pub limits: BTreeMap<String, u64>,
}

/// What is configured of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryPolicy {
    /// Whether containers have memory of their own at all.
    pub is_static: bool,
    pub reserved: Vec<Reservation>,
}

/// By the pod's UID and the container's name.
type Assignments = BTreeMap<String, BTreeMap<String, Vec<Block>>>;

/// The file, as upstream writes it.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct State {
    policy_name: String,
    machine_state: Machine,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    entries: Assignments,
}

/// Who has which memory.
#[derive(Debug)]
pub struct Memory {
    /// The machine when nobody has any. None: nobody ever has.
    empty: Option<Machine>,
    assigned: Mutex<Assignments>,
    file: Checkpoint,
}

impl Memory {
    /// Takes up what an earlier kubelet has given. `kept` is how many bytes of memory pods do not have in all.
    ///
    /// # Errors
    /// Upstream's message, when what is reserved by node is not what is kept in all, or is of a node that is not there.
    pub fn new(root: &Path, policy: &MemoryPolicy, nodes: &[NumaNode], kept: i64) -> Result<Self, String> {
        let file = Checkpoint::at(root.join(STATE));
        if !policy.is_static {
            let _ = std::fs::remove_file(file.path());
            return Ok(Memory { empty: None, assigned: Mutex::default(), file });
        }
        let empty = Machine::new(nodes, &reserved(&policy.reserved, nodes, kept)?);
        let known: State = checkpoint::load(file.path());
        let mut assigned = Assignments::new();
        for (uid, containers) in known.entries {
            let mut machine = empty.clone();
            replay(&mut machine, &assigned);
            let mut blocks = containers.values().flatten();
            // On another machine, or with another reservation, it is given anew.
            if blocks.all(|block| machine.take(block, block.size)) {
                assigned.insert(uid, containers);
            }
        }
        Ok(Memory { empty: Some(empty), assigned: Mutex::new(assigned), file })
    }

    /// Of which nodes a container could be given its memory, or a pod all of its containers'.
    pub fn hints(&self, pod: &Pod, container: Option<&Container>) -> Hints {
        let Some(empty) = self.empty.as_ref().filter(|_| has_alone(pod)) else { return Hints::new() };
        let wanted = container.map_or_else(|| asked_by(pod), asked);
        let assigned = self.assigned.lock();
        let of_pod = assigned.get(&names::uid(pod));
        let known = containers(pod)
            .filter(|known| container.is_none_or(|only| only.name == known.name))
            .find_map(|known| of_pod?.get(&known.name));
        if let Some(blocks) = known {
            return again(blocks, &wanted);
        }
        let mut machine = empty.clone();
        replay(&mut machine, &assigned);
        let hints = machine.hints(&wanted, &|mask, kind| reusable(pod, of_pod, mask, kind));
        if hints.is_empty() {
            // Why there is none is told when it is to be given.
            return Hints::new();
        }
        wanted.into_keys().map(|kind| (kind, Some(hints.clone()))).collect()
    }

    /// Gives a container its memory, of the nodes that all agreed on. Containers of a pod come in the order in which they
    /// are started.
    ///
    /// # Errors
    /// There is not so much left, in upstream's words.
    pub fn allocate(
        &self,
        pod: &Pod,
        container: &Container,
        hint: Hint,
        counts: &Counts,
    ) -> Result<(), Refusal> {
        let Some(empty) = self.empty.as_ref().filter(|_| has_alone(pod)) else { return Ok(()) };
        counts.memory_requests.inc();
        let given = self.give(empty, pod, container, hint);
        given.map_err(|why| {
            counts.memory_errors.inc();
            unexpected(format!("[memorymanager] {why}"))
        })
    }

    fn give(
        &self,
        empty: &Machine,
        pod: &Pod,
        container: &Container,
        hint: Hint,
    ) -> Result<(), &'static str> {
        let uid = names::uid(pod);
        {
            let mut assigned = self.assigned.lock();
            let of_pod = assigned.get(&uid);
            if of_pod.is_some_and(|of| of.contains_key(&container.name)) {
                return Ok(());
            }
            let wanted = asked(container);
            let mut machine = empty.clone();
            replay(&mut machine, &assigned);
            let mask = choose(&machine, &wanted, hint, &|mask, kind| reusable(pod, of_pod, mask, kind))?;
            let blocks: Vec<Block> = wanted
                .into_iter()
                .map(|(kind, size)| Block { numa_affinity: mask.nodes().collect(), kind, size })
                .collect();
            let of_pod = assigned.entry(uid).or_default();
            take_over(pod, container, of_pod, &blocks);
            of_pod.insert(container.name.clone(), blocks);
        }
        self.save();
        Ok(())
    }

    /// The nodes whose memory a container may use; empty: all.
    pub fn of(&self, uid: &str, container: &str) -> CpuSet {
        self.blocks(uid, container).into_iter().flat_map(|block| block.numa_affinity).collect()
    }

    /// What a container has.
    pub fn blocks(&self, uid: &str, container: &str) -> Vec<Block> {
        self.assigned.lock().get(uid).and_then(|of| of.get(container)).cloned().unwrap_or_default()
    }

    /// What there is to be had; nothing, where no container may have any alone.
    pub fn allocatable(&self) -> Vec<Block> {
        self.empty.as_ref().map(Machine::allocatable).unwrap_or_default()
    }

    /// The pod needs its memory no more.
    pub fn release(&self, uid: &str) {
        if self.assigned.lock().remove(uid).is_some() {
            self.save();
        }
    }

    /// Whatever other pods than these have is free.
    pub fn keep(&self, known: &HashSet<String>) {
        let gone = {
            let mut assigned = self.assigned.lock();
            let before = assigned.len();
            assigned.retain(|uid, _| known.contains(uid));
            before != assigned.len()
        };
        if gone {
            self.save();
        }
    }

    fn save(&self) {
        let Some(mut machine_state) = self.empty.clone() else { return };
        let saved = self.file.write(|path| {
            let entries = self.assigned.lock().clone();
            replay(&mut machine_state, &entries);
            checkpoint::save(path, &State { policy_name: "Static".to_owned(), machine_state, entries })
        });
        if let Err(error) = saved {
            tracing::warn!(%error, "who has which memory could not be written down");
        }
    }
}

/// What is reserved by node and kind.
fn reserved(all: &[Reservation], nodes: &[NumaNode], kept: i64) -> Result<BTreeMap<u32, Amounts>, String> {
    let (mut by_node, mut totals) = (BTreeMap::<u32, Amounts>::new(), Amounts::new());
    for reservation in all {
        let id = reservation.node;
        if !nodes.iter().any(|node| node.id == id) {
            return Err(format!(
                "the reserved memory configuration references a NUMA node {id} that does not exist on this machine"
            ));
        }
        for (kind, bytes) in &reservation.limits {
            *totals.entry(kind.clone()).or_default() += bytes;
            by_node.entry(id).or_default().insert(kind.clone(), *bytes);
        }
    }
    let kept = kept.max(0).unsigned_abs();
    totals.entry("memory".to_owned()).or_default();
    for (kind, total) in &totals {
        // Of huge pages nothing is kept in all.
        let kept = if kind == "memory" { kept } else { 0 };
        if *total != kept {
            let text = |bytes: u64| Quantity::new(bytes.cast_signed(), Format::BinarySi).to_string();
            let (total, kept) = (text(*total), text(kept));
            return Err(format!(
                "the total amount {total:?} of type {kind:?} is not equal to the value {kept:?} determined by Node \
                 Allocatable feature"
            ));
        }
    }
    if totals["memory"] == 0 {
        return Err("[memorymanager] you should specify the system reserved memory".to_owned());
    }
    Ok(by_node)
}

/// Whether a pod's containers have memory of their own: those of guaranteed pods that do not ask as a whole.
fn has_alone(pod: &Pod) -> bool {
    resources::qos(pod) == Qos::Guaranteed && !resources::is_of_pod(pod)
}

/// Bytes that a container asks for. Its limits stand in for requests, as everywhere.
fn asked(container: &Container) -> Amounts {
    let resources = container.resources.as_ref();
    let requests = resources.and_then(|r| r.requests.as_ref());
    let limits = resources.and_then(|r| r.limits.as_ref());
    let mut asked = Amounts::new();
    for (name, quantity) in limits.into_iter().chain(requests).flatten() {
        let is_memory = name == "memory" || name.starts_with("hugepages-");
        if let (true, Ok(quantity)) = (is_memory, Quantity::parse(&quantity.0)) {
            asked.insert(name.clone(), quantity.value().max(0).unsigned_abs());
        }
    }
    asked
}

/// The same for all of a pod's containers.
fn asked_by(pod: &Pod) -> Amounts {
    let kinds = pod.spec.iter().flat_map(|spec| &spec.containers).flat_map(|own| asked(own).into_keys());
    let of = |kind: String| {
        let bytes = |container: &Container| asked(container).get(&kind).map_or(0, |b| b.cast_signed());
        let bytes = resources::together(pod, bytes).unsigned_abs();
        (kind, bytes)
    };
    kinds.map(of).collect()
}

/// What was given already is hinted again, as long as it is what is asked for.
fn again(blocks: &[Block], wanted: &Amounts) -> Hints {
    let is_same = blocks.len() == wanted.len()
        && blocks.iter().all(|block| wanted.get(&block.kind) == Some(&block.size));
    if !is_same {
        return Hints::new();
    }
    let hint = |block: &Block| Hint { affinity: Some(block.mask()), preferred: true };
    blocks.iter().map(|block| (block.kind.clone(), Some(vec![hint(block)]))).collect()
}

/// The nodes of which a container is given its memory.
fn choose(
    machine: &Machine,
    wanted: &Amounts,
    hint: Hint,
    again: &dyn Fn(Mask, &str) -> u64,
) -> Result<Mask, &'static str> {
    let mut chosen = hint;
    if hint.affinity.is_none() {
        chosen = machine::best(machine.hints(wanted, again)).ok_or(
            "failed to get the default NUMA affinity, no NUMA nodes with enough memory is available",
        )?;
        if hint.preferred && !chosen.preferred {
            return Err("failed to find the default preferred hint");
        }
    }
    let mask = chosen.affinity.unwrap_or_default();
    let mut wide = mask;
    if !machine.has(mask, wanted) {
        // Nodes that others agreed on and that have too little of memory are joined by more.
        let wider = machine.hints(wanted, again).into_iter();
        let wider = wider.filter(|hint| hint.affinity.is_some_and(|wider| mask.is_within(wider)));
        let best =
            machine::best(wider).ok_or("failed to find NUMA nodes to extend the current topology hint")?;
        if chosen.preferred && !best.preferred {
            return Err("failed to find the extended preferred hint");
        }
        wide = best.affinity.unwrap_or_default();
    }
    if machine.is_at_odds(wide) { Err("preferred hint violates NUMA node allocation") } else { Ok(wide) }
}

/// Has everybody take what they have. Blocks of init containers are as large as what nobody has taken over.
fn replay(machine: &mut Machine, assigned: &Assignments) {
    for block in assigned.values().flat_map(BTreeMap::values).flatten() {
        machine.take(block, block.size);
    }
}

/// The init containers of a pod that end before others begin.
fn ending(pod: &Pod) -> impl Iterator<Item = &Container> {
    let inits = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    inits.filter(|init| !is_sidecar(init))
}

/// Bytes of a kind on just these nodes that init containers have had and nobody has taken over.
fn reusable(pod: &Pod, of_pod: Option<&BTreeMap<String, Vec<Block>>>, mask: Mask, kind: &str) -> u64 {
    let blocks = ending(pod).filter_map(|init| of_pod?.get(&init.name)).flatten();
    blocks.filter(|block| block.kind == kind && block.mask() == mask).map(|block| block.size).sum()
}

/// What a container uses again is no longer that of the init containers before it, so that all blocks of a pod together are
/// what it has.
fn take_over(pod: &Pod, container: &Container, of_pod: &mut BTreeMap<String, Vec<Block>>, blocks: &[Block]) {
    for block in blocks {
        let mut size = block.size;
        let inits = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
        for init in inits.take_while(|init| init.name != container.name).filter(|init| !is_sidecar(init)) {
            let known = of_pod.get_mut(&init.name).into_iter().flatten();
            for known in known.filter(|known| known.kind == block.kind && known.mask() == block.mask()) {
                let over = known.size.min(size);
                known.size -= over;
                size -= over;
            }
        }
    }
}

#[cfg(test)]
mod tests;
