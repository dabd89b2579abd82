//! What the node has left, and what pods use of it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_cri::v1::{ImageFsInfoRequest, ListContainerStatsRequest, UInt64Value};
use k8s_openapi::api::core::v1::Pod;
use nix::sys::statvfs::statvfs;

use super::threshold::{Observation, Observations, Signal};
use crate::node::{Machine, processes};
use crate::shared::Shared;
use crate::{names, sandbox, volumes};

/// What one container uses, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContainerUsage {
    pub memory: i64,
    pub rootfs: i64,
    pub logs: i64,
}

impl ContainerUsage {
    pub fn disk(&self) -> i64 {
        self.rootfs + self.logs
    }
}

/// What one pod uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodUsage {
    pub containers: BTreeMap<String, ContainerUsage>,
    /// Bytes of its empty directories, by volume.
    pub volumes: BTreeMap<String, i64>,
    /// Bytes of those that are on disk.
    pub disk_volumes: i64,
    pub processes: i64,
}

impl PodUsage {
    pub fn memory(&self) -> i64 {
        self.containers.values().map(|c| c.memory).sum()
    }

    /// Bytes of the node's disk, by all that goes with the pod.
    pub fn disk(&self) -> i64 {
        self.containers.values().map(ContainerUsage::disk).sum::<i64>() + self.disk_volumes
    }
}

/// Where the runtime keeps its images.
pub async fn image_directory(shared: &Shared) -> Option<PathBuf> {
    let answer = shared.cri.images().image_fs_info(ImageFsInfoRequest {}).await.ok()?.into_inner();
    let found = answer.image_filesystems.into_iter().next()?;
    found.fs_id.map(|id| PathBuf::from(id.mountpoint)).filter(|path| path.exists())
}

/// What there is of all that is looked at.
pub fn observe(shared: &Shared, images: Option<&Path>) -> Observations {
    let (running, most) = processes();
    let mut seen = Observations::from([
        (
            Signal::MemoryAvailable,
            Observation { available: Machine::available_memory(), capacity: shared.machine.memory },
        ),
        (Signal::PidAvailable, Observation { available: most - running, capacity: most }),
    ]);
    let node = Some(shared.config.root_dir.as_path());
    for (path, bytes, inodes) in [
        (node, Signal::NodeFsAvailable, Signal::NodeFsInodesFree),
        (images, Signal::ImageFsAvailable, Signal::ImageFsInodesFree),
    ] {
        let Some(found) = path.and_then(|path| statvfs(path).ok()) else { continue };
        let block = found.fragment_size() as i64;
        let (free, all) = (found.blocks_available() as i64 * block, found.blocks() as i64 * block);
        seen.insert(bytes, Observation { available: free, capacity: all });
        // Some file systems do not count them.
        if found.files() > 0 {
            let (free, all) = (found.files_available() as i64, found.files() as i64);
            seen.insert(inodes, Observation { available: free, capacity: all });
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
        container.rootfs += number(stat.writable_layer.as_ref().and_then(|layer| layer.used_bytes.as_ref()));
    }
    let (shared, pods) = (Arc::clone(shared), pods.to_vec());
    let counted = tokio::task::spawn_blocking(move || {
        for pod in &pods {
            if let Some(usage) = all.get_mut(&names::uid(pod)) {
                add_files(&shared, pod, usage);
            }
        }
        all
    });
    counted.await.map_err(|e| tonic::Status::internal(e.to_string()))
}

fn add_files(shared: &Shared, pod: &Pod, usage: &mut PodUsage) {
    let uid = names::uid(pod);
    usage.processes = shared.cgroups.processes(&uid);
    let logs = sandbox::log_directory(&shared.config, pod);
    for (name, container) in &mut usage.containers {
        container.logs = bytes(&logs.join(name));
    }
    let all = pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    for volume in all {
        let Some(source) = &volume.empty_dir else { continue };
        let used = bytes(&volumes::empty_dir(&shared.config.pod_dir(&uid), &volume.name));
        usage.volumes.insert(volume.name.clone(), used);
        if source.medium.as_deref().unwrap_or_default().is_empty() {
            usage.disk_volumes += used;
        }
    }
}

/// Bytes that the files in a directory take, without what is mounted below.
pub fn bytes(directory: &Path) -> i64 {
    let Ok(root) = std::fs::symlink_metadata(directory) else { return 0 };
    let (mut sum, mut seen) = (root.blocks() * 512, HashSet::new());
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            // One that vanishes meanwhile takes nothing.
            let Ok(found) = entry.metadata() else { continue };
            let is_counted = found.nlink() > 1 && !found.is_dir() && !seen.insert(found.ino());
            if found.dev() != root.dev() || is_counted {
                continue;
            }
            sum += found.blocks() * 512;
            if found.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    sum.cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_two_names_is_counted_once() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::create_dir(at("sub")).unwrap();
        let before = bytes(directory.path());
        std::fs::write(at("sub/a"), vec![1; 64 << 10]).unwrap();
        std::fs::hard_link(at("sub/a"), at("b")).unwrap();
        let used = bytes(directory.path()) - before;
        assert!((64 << 10..100 << 10).contains(&used), "{used}");
        assert_eq!(bytes(&at("none")), 0);
    }
}
