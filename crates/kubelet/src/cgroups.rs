//! The control groups of pods: `kubepods/{burstable,besteffort}/pod<uid>` through the cgroup file system, version 1 or 2.
//! The runtime makes the containers' groups below them.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::{fs, mem};

use crate::resources::{self, PodResources, Qos};

const ROOT: &str = "/sys/fs/cgroup";
/// The controllers that a pod's limits need.
const CONTROLLERS: [&str; 5] = ["cpu", "memory", "pids", "cpuset", "io"];

#[derive(Debug)]
enum Layout {
    /// The mount points, each with its controllers.
    V1(Vec<(Vec<String>, PathBuf)>),
    V2(PathBuf),
}

/// Makes and removes the groups of one node's pods.
#[derive(Debug)]
pub struct Cgroups {
    layout: Layout,
    /// Where `kubepods` is, without a slash at either end.
    root: String,
}

impl Cgroups {
    /// The host's groups, below `root`.
    pub fn new(root: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self::over(layout(&mounts), root)
    }

    fn over(layout: Layout, root: &str) -> Self {
        Cgroups { layout, root: format!("{}/kubepods", root.trim_matches('/')).trim_matches('/').to_owned() }
    }

    /// The group of a pod, absolute, as CRI's `cgroup_parent`.
    pub fn pod(&self, qos: Qos, uid: &str) -> String {
        match qos {
            Qos::Guaranteed => format!("/{}/pod{uid}", self.root),
            Qos::Burstable => format!("/{}/burstable/pod{uid}", self.root),
            Qos::BestEffort => format!("/{}/besteffort/pod{uid}", self.root),
        }
    }

    /// Makes the group of a pod, with its limits. Does nothing that is done already.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn create(&self, qos: Qos, uid: &str, resources: PodResources) -> io::Result<String> {
        let path = self.pod(qos, uid);
        let relative = path.trim_start_matches('/');
        self.make(relative)?;
        if qos == Qos::BestEffort {
            let parent = format!("{}/besteffort", self.root);
            self.write(
                &parent,
                &[("cpu", "cpu.shares", "cpu.weight", resources::MIN_SHARES.to_string(), "1".into())],
            )?;
        }
        self.write(relative, &limits(resources))?;
        Ok(path)
    }

    /// Removes the group of a pod and all below. Nothing may run in it any more.
    ///
    /// # Errors
    /// Something runs in it still.
    pub fn remove(&self, uid: &str) -> io::Result<()> {
        for qos in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
            let path = self.pod(qos, uid);
            for directory in self.directories(path.trim_start_matches('/')) {
                remove_tree(&directory)?;
            }
        }
        Ok(())
    }

    /// The UIDs of pods that have a group.
    pub fn pods(&self) -> HashSet<String> {
        let mut found = HashSet::new();
        for middle in ["", "/burstable", "/besteffort"] {
            for directory in self.directories(&format!("{}{middle}", self.root)) {
                let entries = fs::read_dir(directory).into_iter().flatten().flatten();
                found.extend(
                    entries.filter_map(|e| Some(e.file_name().to_str()?.strip_prefix("pod")?.to_owned())),
                );
            }
        }
        found
    }

    fn directories(&self, path: &str) -> Vec<PathBuf> {
        let mut all = match &self.layout {
            Layout::V2(root) => vec![root.join(path)],
            Layout::V1(mounts) => mounts.iter().map(|(_, mount)| mount.join(path)).collect(),
        };
        all.sort();
        all.dedup();
        all
    }

    fn make(&self, path: &str) -> io::Result<()> {
        match &self.layout {
            Layout::V2(root) => make_v2(root, path),
            Layout::V1(mounts) => {
                mounts.iter().try_for_each(|(controllers, mount)| make_v1(controllers, mount, path))
            }
        }
    }

    fn write(&self, path: &str, limits: &[Limit]) -> io::Result<()> {
        for (controller, v1, v2, old, new) in limits {
            let (file, value) = match &self.layout {
                Layout::V2(root) => (root.join(path).join(v2), new),
                Layout::V1(mounts) => {
                    let Some((_, mount)) = mounts.iter().find(|(all, _)| all.iter().any(|c| c == controller))
                    else {
                        continue;
                    };
                    (mount.join(path).join(v1), old)
                }
            };
            // A controller that the host does not hand down is one that limits nothing.
            if file.exists() {
                fs::write(&file, value)?;
            }
        }
        Ok(())
    }
}

/// Controller, file and value of version 1 and of version 2: controller, v1 file, v2 file, v1 value, v2 value.
type Limit = (&'static str, &'static str, &'static str, String, String);

fn limits(resources: PodResources) -> Vec<Limit> {
    let shares = resources::shares(resources.cpu_request);
    let weight = 1 + ((shares - 2) * 9999) / 262_142;
    let mut all: Vec<Limit> =
        vec![("cpu", "cpu.shares", "cpu.weight", shares.to_string(), weight.to_string())];
    if let Some(milli) = resources.cpu_limit.filter(|milli| *milli > 0) {
        let (quota, period) = (resources::quota(milli), resources::PERIOD);
        all.push(("cpu", "cpu.cfs_period_us", "cpu.max", period.to_string(), format!("{quota} {period}")));
        all.push(("cpu", "cpu.cfs_quota_us", "cpu.max", quota.to_string(), format!("{quota} {period}")));
    }
    if let Some(bytes) = resources.memory_limit.filter(|bytes| *bytes > 0) {
        all.push(("memory", "memory.limit_in_bytes", "memory.max", bytes.to_string(), bytes.to_string()));
    }
    all
}

fn make_v1(controllers: &[String], mount: &Path, path: &str) -> io::Result<()> {
    let mut directory = mount.to_owned();
    for part in path.split('/') {
        let parent = mem::replace(&mut directory, PathBuf::new());
        directory = parent.join(part);
        if directory.is_dir() {
            continue;
        }
        make_directory(&directory)?;
        if controllers.iter().any(|c| c == "cpuset") {
            // A new group of this controller is empty, and nothing can run in it.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let inherited = fs::read_to_string(parent.join(file))?;
                fs::write(directory.join(file), inherited.trim())?;
            }
        }
    }
    Ok(())
}

fn make_v2(root: &Path, path: &str) -> io::Result<()> {
    let mut directory = root.to_owned();
    for part in path.split('/') {
        let offered = fs::read_to_string(directory.join("cgroup.controllers")).unwrap_or_default();
        for controller in CONTROLLERS.iter().filter(|c| offered.split_whitespace().any(|o| o == **c)) {
            fs::write(directory.join("cgroup.subtree_control"), format!("+{controller}"))?;
        }
        directory.push(part);
        make_directory(&directory)?;
    }
    Ok(())
}

fn make_directory(directory: &Path) -> io::Result<()> {
    match fs::create_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    let Ok(entries) = fs::read_dir(directory) else { return Ok(()) };
    for entry in entries.flatten() {
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Where the controllers are, from the mount table. A host with both versions has its controllers in version 1.
fn layout(mounts: &str) -> Layout {
    let (mut v1, mut v2) = (Vec::new(), None);
    for line in mounts.lines() {
        let Some((mount, filesystem)) = line.split_once(" - ") else { continue };
        let Some(point) = mount.split(' ').nth(4) else { continue };
        let mut filesystem = filesystem.split(' ');
        match filesystem.next() {
            Some("cgroup") => {
                let options = filesystem.nth(1).unwrap_or_default();
                let controllers: Vec<String> = options.split(',').map(str::to_owned).collect();
                v1.push((controllers, PathBuf::from(point)));
            }
            Some("cgroup2") => v2 = v2.or_else(|| Some(PathBuf::from(point))),
            _ => {}
        }
    }
    if v1.is_empty() { Layout::V2(v2.unwrap_or_else(|| PathBuf::from(ROOT))) } else { Layout::V1(v1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESOURCES: PodResources = PodResources {
        cpu_request: 500,
        memory_request: 0,
        cpu_limit: Some(1000),
        memory_limit: Some(1 << 20),
    };

    #[test]
    fn both_versions_are_found() {
        let v1 = "35 25 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                  36 25 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";
        assert!(
            matches!(layout(v1), Layout::V1(mounts) if mounts.len() == 1 && mounts[0].0.contains(&"cpu".into()))
        );
        let v2 = "36 25 0:31 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw";
        assert!(matches!(layout(v2), Layout::V2(root) if root == Path::new("/sys/fs/cgroup")));
    }

    #[test]
    fn a_pods_groups_come_and_go() {
        let host = tempfile::tempdir().unwrap();
        let (cpu, cpuset) = (host.path().join("cpu"), host.path().join("cpuset"));
        for directory in [&cpu, &cpuset] {
            fs::create_dir(directory).unwrap();
        }
        fs::write(cpuset.join("cpuset.cpus"), "0-1\n").unwrap();
        fs::write(cpuset.join("cpuset.mems"), "0\n").unwrap();
        let mounts = vec![(vec!["cpu".into()], cpu.clone()), (vec!["cpuset".into()], cpuset.clone())];
        let groups = Cgroups::over(Layout::V1(mounts), "/krate-x/");
        let path = groups.create(Qos::Burstable, "u1", RESOURCES).unwrap();
        assert_eq!(path, "/krate-x/kubepods/burstable/podu1");
        let inherited = fs::read_to_string(cpuset.join(&path[1..]).join("cpuset.cpus")).unwrap();
        assert_eq!(inherited, "0-1");
        assert_eq!(groups.pods(), HashSet::from(["u1".to_owned()]));
    }

    #[test]
    fn limits_are_told_in_both_tongues() {
        let all = limits(RESOURCES);
        assert_eq!(all[0].3, "512");
        assert_eq!(all[0].4, "20");
        assert_eq!(all[1].4, "100000 100000");
        assert_eq!(all[3].2, "memory.max");
    }
}
