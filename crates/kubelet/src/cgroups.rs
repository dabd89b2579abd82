//! The control groups of pods: `kubepods/{burstable,besteffort}/pod<uid>` through the cgroup file system, version 1 or 2.
//! The runtime makes the containers' groups below them.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, mem};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::instruments::CGROUP_SECONDS;
use crate::resources::{self, PodResources, Qos};

const ROOT: &str = "/sys/fs/cgroup";
/// How long the groups of a pod may take to become empty.
const EMPTIED: Duration = Duration::from_secs(2);
/// The controllers that a pod's limits need.
const CONTROLLERS: [&str; 6] = ["cpu", "memory", "pids", "cpuset", "io", "hugetlb"];

#[derive(Debug)]
enum Layout {
    /// The mount points, each with its controllers.
    V1(Vec<(Vec<String>, PathBuf)>),
    V2(PathBuf),
}

/// Does something and notes how long it took.
fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let done = work();
    CGROUP_SECONDS.with_label_values(&[what]).observe(began.elapsed().as_secs_f64());
    done
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

    /// The version of the kernel's interface to them.
    pub fn version(&self) -> u8 {
        match self.layout {
            Layout::V1(_) => 1,
            Layout::V2(_) => 2,
        }
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
    pub fn create(&self, qos: Qos, uid: &str, resources: &PodResources) -> io::Result<String> {
        let path = self.pod(qos, uid);
        let relative = path.trim_start_matches('/');
        let is_new = !self.directories(relative).iter().any(|directory| directory.exists());
        timed(if is_new { "create" } else { "update" }, || {
            self.make(relative)?;
            if qos == Qos::BestEffort {
                let parent = format!("{}/besteffort", self.root);
                self.write(&parent, &[weight(resources::MIN_SHARES)])?;
            }
            self.write(relative, &limits(resources))
        })?;
        Ok(path)
    }

    /// Bounds what all pods may use together: what is not reserved.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn bound(&self, left: &PodResources) -> io::Result<()> {
        self.make(&self.root)?;
        self.write(&self.root, &limits(left))
    }

    /// Bounds what the processes of another group may use.
    ///
    /// # Errors
    /// It is not there, or the file system refuses.
    pub fn bound_other(&self, group: &str, bounds: &PodResources) -> io::Result<()> {
        let group = group.trim_matches('/');
        if !self.directories(group).iter().any(|directory| directory.is_dir()) {
            return Err(io::Error::new(io::ErrorKind::NotFound, "cgroup does not exist"));
        }
        self.write(group, &limits(bounds))
    }

    /// Weighs all burstable pods together by what they ask for.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn weigh_burstable(&self, cpu_milli: i64) -> io::Result<()> {
        let all = PodResources { cpu_request: cpu_milli, ..PodResources::default() };
        self.write(&format!("{}/burstable", self.root), &limits(&all))
    }

    /// What containers' groups of version 2 are told beside their limits: that they end as one when memory runs out, and
    /// that they do not swap.
    pub fn unified(&self) -> HashMap<String, String> {
        let Layout::V2(root) = &self.layout else { return HashMap::new() };
        let wanted = [("memory.oom.group", "1"), ("memory.swap.max", "0")];
        let group = root.join(&self.root);
        let there = wanted.into_iter().filter(|(file, _)| group.join(file).exists());
        there.map(|(file, value)| (file.to_owned(), value.to_owned())).collect()
    }

    /// How many processes a pod has.
    pub fn processes(&self, uid: &str) -> i64 {
        let classes = [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort];
        let mut groups =
            classes.iter().flat_map(|qos| self.directories(self.pod(*qos, uid).trim_start_matches('/')));
        let count = |directory: PathBuf| {
            fs::read_to_string(directory.join("pids.current")).ok()?.trim().parse::<i64>().ok()
        };
        groups.find_map(count).unwrap_or(0)
    }

    /// Removes the group of a pod and all below. What runs in it still is killed: its runtime has lost sight of it. Blocks
    /// for a moment at most.
    ///
    /// # Errors
    /// Something does not end.
    pub fn remove(&self, uid: &str) -> io::Result<()> {
        timed("destroy", || {
            let deadline = Instant::now() + EMPTIED;
            for qos in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
                let path = self.pod(qos, uid);
                for directory in self.directories(path.trim_start_matches('/')) {
                    remove_tree(&directory, deadline)?;
                }
            }
            Ok(())
        })
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
        for Limit { controller, v1, v2 } in limits {
            let (file, value) = match &self.layout {
                Layout::V2(root) => (root.join(path).join(&v2.0), &v2.1),
                Layout::V1(mounts) => {
                    let Some((_, mount)) = mounts.iter().find(|(all, _)| all.iter().any(|c| c == controller))
                    else {
                        continue;
                    };
                    (mount.join(path).join(&v1.0), &v1.1)
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

/// A controller, and file and value of its version 1 and of its version 2.
#[derive(Debug)]
struct Limit {
    controller: &'static str,
    v1: (String, String),
    v2: (String, String),
}

impl Limit {
    fn new(controller: &'static str, v1: (&str, impl ToString), v2: (&str, impl ToString)) -> Self {
        Limit { controller, v1: (v1.0.to_owned(), v1.1.to_string()), v2: (v2.0.to_owned(), v2.1.to_string()) }
    }
}

fn weight(shares: i64) -> Limit {
    Limit::new("cpu", ("cpu.shares", shares), ("cpu.weight", weight_of(shares)))
}

/// Shares of version 1 as a weight of version 2. The curve goes through the least, the most and the kernel's default of
/// both (kubernetes/kubernetes#131216).
fn weight_of(shares: i64) -> i64 {
    if shares <= resources::MIN_SHARES {
        return 1;
    }
    let magnitude = (shares as f64).log2();
    let exponent = (magnitude * magnitude + 125.0 * magnitude) / 612.0 - 7.0 / 34.0;
    // The least bit too much would be rounded up to a whole one.
    (10f64.powf(exponent) - 1e-9).ceil().min(10_000.0) as i64
}

fn limits(resources: &PodResources) -> Vec<Limit> {
    let mut all = vec![weight(resources::shares(resources.cpu_request))];
    if let Some(milli) = resources.cpu_limit.filter(|milli| *milli > 0) {
        let (quota, period) = (resources::quota(milli), resources::PERIOD);
        let v2 = ("cpu.max", format!("{quota} {period}"));
        all.push(Limit::new("cpu", ("cpu.cfs_period_us", period), v2.clone()));
        all.push(Limit::new("cpu", ("cpu.cfs_quota_us", quota), v2));
    }
    if let Some(bytes) = resources.memory_limit.filter(|bytes| *bytes > 0) {
        all.push(Limit::new("memory", ("memory.limit_in_bytes", bytes), ("memory.max", bytes)));
    }
    if let Some(count) = resources.pids_limit.filter(|count| *count > 0) {
        all.push(Limit::new("pids", ("pids.max", count), ("pids.max", count)));
    }
    for (page, bytes) in &resources.huge_pages {
        let (v1, v2) = (format!("hugetlb.{page}.limit_in_bytes"), format!("hugetlb.{page}.max"));
        all.push(Limit::new("hugetlb", (&v1, bytes), (&v2, bytes)));
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

fn remove_tree(directory: &Path, deadline: Instant) -> io::Result<()> {
    let Ok(entries) = fs::read_dir(directory) else { return Ok(()) };
    for entry in entries.flatten() {
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path(), deadline)?;
        }
    }
    let mut pause = Duration::from_millis(1);
    loop {
        match fs::remove_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                // The kernel lets go of a group some moments after its last process, and tells nobody.
                kill_all(directory);
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(50));
            }
            other => return other,
        }
    }
}

fn kill_all(group: &Path) {
    let listed = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    for pid in listed.lines().filter_map(|line| line.parse().ok()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
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

    fn resources() -> PodResources {
        PodResources {
            cpu_request: 500,
            memory_request: 0,
            cpu_limit: Some(1000),
            memory_limit: Some(1 << 20),
            huge_pages: [("2MB".to_owned(), 4 << 20)].into(),
            pids_limit: Some(100),
        }
    }

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
        let path = groups.create(Qos::Burstable, "u1", &resources()).unwrap();
        assert_eq!(path, "/krate-x/kubepods/burstable/podu1");
        let inherited = fs::read_to_string(cpuset.join(&path[1..]).join("cpuset.cpus")).unwrap();
        assert_eq!(inherited, "0-1");
        assert_eq!(groups.pods(), HashSet::from(["u1".to_owned()]));
    }

    #[test]
    fn what_runs_in_a_group_ends_with_it() {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let groups = Cgroups::over(layout(&mounts), &format!("/krate-test-{}", std::process::id()));
        let Ok(path) = groups.create(Qos::BestEffort, "u1", &PodResources::default()) else {
            eprintln!("SKIPPED: control groups need root, and a host that lets them be made");
            return;
        };
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        for directory in groups.directories(&format!("{}/c1", &path[1..])) {
            fs::create_dir(&directory).unwrap();
            // On version 1 a group of processors takes in nobody before it has some.
            let _ = fs::write(directory.join("cgroup.procs"), child.id().to_string());
        }
        groups.remove("u1").unwrap();
        assert!(groups.pods().is_empty());
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()), Some(9));
        for directory in groups.directories(groups.root.split('/').next().unwrap()) {
            remove_tree(&directory, Instant::now() + EMPTIED).unwrap();
        }
    }

    #[test]
    fn limits_are_told_in_both_tongues() {
        let told: Vec<String> = limits(&resources())
            .iter()
            .map(|l| format!("{}={} {}={}", l.v1.0, l.v1.1, l.v2.0, l.v2.1))
            .collect();
        assert_eq!(
            told,
            [
                "cpu.shares=512 cpu.weight=59",
                "cpu.cfs_period_us=100000 cpu.max=100000 100000",
                "cpu.cfs_quota_us=100000 cpu.max=100000 100000",
                "memory.limit_in_bytes=1048576 memory.max=1048576",
                "pids.max=100 pids.max=100",
                "hugetlb.2MB.limit_in_bytes=4194304 hugetlb.2MB.max=4194304",
            ]
        );
    }

    #[test]
    fn least_most_and_default_weigh_the_same_in_both() {
        for (shares, weight) in [(2, 1), (1024, 100), (262_144, 10_000)] {
            assert_eq!(weight_of(shares), weight);
        }
    }

    #[test]
    fn all_pods_together_are_bounded() {
        let host = tempfile::tempdir().unwrap();
        let group = host.path().join("x/kubepods");
        for directory in [host.path().to_owned(), group.clone(), group.join("burstable")] {
            fs::create_dir_all(&directory).unwrap();
            for file in ["cpu.weight", "memory.max", "memory.oom.group", "cgroup.subtree_control"] {
                fs::write(directory.join(file), "").unwrap();
            }
        }
        let groups = Cgroups::over(Layout::V2(host.path().to_owned()), "/x");
        let left = PodResources { cpu_request: 2000, memory_limit: Some(1 << 30), ..PodResources::default() };
        groups.bound(&left).unwrap();
        groups.bound_other("/x/kubepods/burstable", &PodResources::default()).unwrap();
        assert!(groups.bound_other("/x/none", &left).is_err());
        groups.weigh_burstable(1000).unwrap();
        let read = |file: &str| fs::read_to_string(group.join(file)).unwrap();
        assert_eq!((read("cpu.weight"), read("memory.max")), ("174".into(), "1073741824".into()));
        assert_eq!(read("burstable/cpu.weight"), "100");
        assert_eq!(groups.unified(), HashMap::from([("memory.oom.group".to_owned(), "1".to_owned())]));
    }
}
