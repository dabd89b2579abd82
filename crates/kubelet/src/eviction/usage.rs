//! What the node has left, and what pods use of it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::Metadata;
use std::ops::AddAssign;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use k8s_cri::v1::{ListContainerStatsRequest, UInt64Value};
use k8s_openapi::api::core::v1::Pod;

use super::layout::Parts;
use super::threshold::{Observation, Observations, Signal};
use crate::blocking::blocking;
use crate::disks::{Fill, RuntimeDisks};
use crate::node::{Machine, processes};
use crate::shared::Shared;
use crate::{names, sandbox, volumes};

/// What files take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Files {
    pub bytes: i64,
    pub inodes: i64,
}

impl AddAssign for Files {
    fn add_assign(&mut self, more: Files) {
        self.bytes += more.bytes;
        self.inodes += more.inodes;
    }
}

/// What one container uses; memory in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContainerUsage {
    pub memory: i64,
    pub rootfs: Files,
    pub logs: Files,
}

impl ContainerUsage {
    /// Bytes.
    pub fn disk(&self) -> i64 {
        self.rootfs.bytes + self.logs.bytes
    }
}

/// What one pod uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodUsage {
    pub containers: BTreeMap<String, ContainerUsage>,
    /// Bytes of its empty directories, by volume.
    pub volumes: BTreeMap<String, i64>,
    /// Those that are on disk.
    pub disk_volumes: Files,
    pub processes: i64,
}

impl PodUsage {
    pub fn memory(&self) -> i64 {
        self.containers.values().map(|c| c.memory).sum()
    }

    /// What the parts of the pod that lie together take of their disk.
    pub fn on_disk(&self, parts: Parts) -> Files {
        let mut sum = Files::default();
        for container in self.containers.values() {
            if parts.rootfs {
                sum += container.rootfs;
            }
            if parts.logs {
                sum += container.logs;
            }
        }
        if parts.volumes {
            sum += self.disk_volumes;
        }
        sum
    }
}

/// What there is of all that is looked at.
pub fn observe(shared: &Shared, runtime: Option<&RuntimeDisks>) -> Observations {
    let (running, most) = processes();
    let mut seen = Observations::from([
        (
            Signal::MemoryAvailable,
            Observation { available: Machine::available_memory(), capacity: shared.machine.memory },
        ),
        (Signal::PidAvailable, Observation { available: most - running, capacity: most }),
    ]);
    let node = Some(shared.config.root_dir.as_path());
    let images = runtime.map(|disks| disks.images.path.as_path());
    let containers = runtime.map(|disks| disks.containers.path.as_path());
    for (path, bytes, inodes) in [
        (node, Signal::NodeFsAvailable, Signal::NodeFsInodesFree),
        (images, Signal::ImageFsAvailable, Signal::ImageFsInodesFree),
        (containers, Signal::ContainerFsAvailable, Signal::ContainerFsInodesFree),
    ] {
        let Some(found) = path.and_then(Fill::of) else { continue };
        seen.insert(bytes, Observation { available: found.available, capacity: found.capacity });
        if found.inodes > 0 {
            seen.insert(inodes, Observation { available: found.inodes_free, capacity: found.inodes });
        }
    }
    seen
}

/// What each of the pods uses, by UID.
///
/// # Errors
/// The runtime does not tell.
pub async fn of_pods(
    shared: &Arc<Shared>,
    pods: &[Arc<Pod>],
) -> Result<HashMap<String, PodUsage>, tonic::Status> {
    let request = ListContainerStatsRequest { filter: None };
    let stats = shared.cri.runtime().list_container_stats(request).await?.into_inner().stats;
    let mut all: HashMap<String, PodUsage> =
        pods.iter().map(|pod| (names::uid(pod), PodUsage::default())).collect();
    let number = |value: Option<&UInt64Value>| value.map_or(0, |v| v.value.cast_signed());
    for stat in stats {
        let Some(attributes) = stat.attributes else { continue };
        let label = |name: &str| attributes.labels.get(name).cloned().unwrap_or_default();
        let Some(usage) = all.get_mut(&label(names::POD_UID)) else { continue };
        let container = usage.containers.entry(label(names::CONTAINER_NAME)).or_default();
        container.memory += number(stat.memory.as_ref().and_then(|memory| memory.working_set_bytes.as_ref()));
        let layer = stat.writable_layer.as_ref();
        container.rootfs += Files {
            bytes: number(layer.and_then(|layer| layer.used_bytes.as_ref())),
            inodes: number(layer.and_then(|layer| layer.inodes_used.as_ref())),
        };
    }
    let (shared, pods) = (Arc::clone(shared), pods.to_vec());
    let counted = blocking(move || {
        for pod in &pods {
            if let Some(usage) = all.get_mut(&names::uid(pod)) {
                add_files(&shared, pod, usage);
            }
        }
        all
    });
    Ok(counted.await)
}

fn add_files(shared: &Shared, pod: &Pod, usage: &mut PodUsage) {
    let uid = names::uid(pod);
    usage.processes = shared.cgroups.processes(&uid);
    let logs = sandbox::log_directory(&shared.config, pod);
    for (name, container) in &mut usage.containers {
        container.logs = files(&logs.join(name));
    }
    let all = pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    for volume in all {
        let Some(source) = &volume.empty_dir else { continue };
        let used = files(&volumes::empty_dir(&shared.config.pod_dir(&uid), &volume.name));
        usage.volumes.insert(volume.name.clone(), used.bytes);
        if source.medium.as_deref().unwrap_or_default().is_empty() {
            usage.disk_volumes += used;
        }
    }
}

/// What a directory and the files in it take, without what is mounted below.
pub fn files(directory: &Path) -> Files {
    let of = |found: &Metadata| Files { bytes: (found.blocks() * 512).cast_signed(), inodes: 1 };
    let Ok(root) = std::fs::symlink_metadata(directory) else { return Files::default() };
    let (mut sum, mut seen) = (of(&root), HashSet::new());
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            // One that vanishes meanwhile takes nothing.
            let Ok(found) = entry.metadata() else { continue };
            let is_counted = found.nlink() > 1 && !found.is_dir() && !seen.insert(found.ino());
            if found.dev() != root.dev() || is_counted {
                continue;
            }
            sum += of(&found);
            if found.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_two_names_is_counted_once() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::create_dir(at("sub")).unwrap();
        let before = files(directory.path());
        std::fs::write(at("sub/a"), vec![1; 64 << 10]).unwrap();
        std::fs::hard_link(at("sub/a"), at("b")).unwrap();
        let after = files(directory.path());
        let used = after.bytes - before.bytes;
        assert!((64 << 10..100 << 10).contains(&used), "{used}");
        assert_eq!(after.inodes, before.inodes + 1);
        assert_eq!(files(&at("none")), Files::default());
    }
}
