//! Control groups, versions 1 (also beside version 2) and 2: where they are, what they count, how they end. Making
//! them is libcontainer's work.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use k8s_cri::v1::LinuxContainerResources;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

const ROOT: &str = "/sys/fs/cgroup";

/// The controllers of version 1 that libcontainer knows.
const MANAGED: [&str; 12] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "hugetlb",
    "memory",
    "pids",
    "perf_event",
    "blkio",
    "net_prio",
    "net_cls",
    "freezer",
];

/// Where the host's controllers are.
#[derive(Debug)]
enum Layout {
    /// Each controller's mount point, with the controllers' names.
    V1(Vec<(Vec<String>, PathBuf)>),
    V2,
}

fn layout() -> &'static Layout {
    static LAYOUT: OnceLock<Layout> = OnceLock::new();
    LAYOUT.get_or_init(|| {
        if statfs(ROOT).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC) {
            return Layout::V2;
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Layout::V1(mounts.lines().filter_map(v1_mount).collect())
    })
}

fn v1_mount(line: &str) -> Option<(Vec<String>, PathBuf)> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mut filesystem = filesystem.split(' ');
    if filesystem.next()? != "cgroup" {
        return None;
    }
    let controllers = filesystem.nth(1)?.split(',').map(str::to_owned).collect();
    Some((controllers, PathBuf::from(mount.split(' ').nth(4)?)))
}

/// Whether the host has only version 2.
pub fn is_v2() -> bool {
    matches!(layout(), Layout::V2)
}

/// Whether the host has a controller.
pub fn has(controller: &str) -> bool {
    match layout() {
        Layout::V2 => fs::read_to_string(Path::new(ROOT).join("cgroup.controllers"))
            .is_ok_and(|all| all.split_whitespace().any(|one| one == controller)),
        Layout::V1(mounts) => mounts.iter().any(|(all, _)| all.iter().any(|one| one == controller)),
    }
}

/// A control group, by its path below every controller's root.
#[derive(Clone, Debug)]
pub struct Cgroup(String);

/// What a group has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub cpu_nanoseconds: u64,
    pub memory: u64,
    /// Memory that cannot be taken back at once.
    pub working_set: u64,
    pub rss: u64,
    pub page_faults: u64,
    pub major_page_faults: u64,
    pub processes: u64,
    /// None when there is no limit.
    pub memory_limit: Option<u64>,
}

impl Cgroup {
    pub fn new(path: &str) -> Self {
        Self(path.trim_matches('/').to_owned())
    }

    pub fn child(&self, name: &str) -> Self {
        Self(format!("{}/{name}", self.0).trim_start_matches('/').to_owned())
    }

    /// The path as libcontainer wants it.
    pub fn path(&self) -> String {
        format!("/{}", self.0)
    }

    fn directory(&self, controller: &str) -> Option<PathBuf> {
        match layout() {
            Layout::V2 => Some(Path::new(ROOT).join(&self.0)),
            Layout::V1(mounts) => mounts
                .iter()
                .find(|(controllers, _)| controllers.iter().any(|c| c == controller))
                .map(|(_, mount)| mount.join(&self.0)),
        }
    }

    fn directories(&self) -> Vec<PathBuf> {
        match layout() {
            Layout::V2 => vec![Path::new(ROOT).join(&self.0)],
            Layout::V1(mounts) => mounts.iter().map(|(_, mount)| mount.join(&self.0)).collect(),
        }
    }

    /// Of version 1: under which names a container finds the group of each hierarchy, and where the host has it; of
    /// several controllers in one hierarchy, under each's name too. Hierarchies in which libcontainer makes no groups are
    /// not among them. `None` where there is only version 2.
    pub fn views(&self) -> Option<Vec<(String, PathBuf)>> {
        let Layout::V1(mounts) = layout() else { return None };
        let mut views = Vec::new();
        for (controllers, mount) in mounts.iter().filter(|(_, mount)| mount.starts_with(ROOT)) {
            let mut own = controllers.iter().filter(|c| MANAGED.contains(&c.as_str())).peekable();
            let (Some(name), Some(_)) = (mount.file_name(), own.peek()) else { continue };
            let name = name.to_string_lossy().into_owned();
            let group = mount.join(&self.0);
            views.extend(own.filter(|c| **c != name).map(|c| (c.clone(), group.clone())));
            views.push((name, group));
        }
        Some(views)
    }

    /// The directories of the group, as far as it was made: those that its processes are in.
    pub fn joined(&self) -> Vec<PathBuf> {
        self.directories().into_iter().filter(|directory| directory.is_dir()).collect()
    }

    pub fn exists(&self) -> bool {
        self.directories().iter().any(|directory| directory.is_dir())
    }

    /// Where its processes are listed.
    pub fn processes(&self) -> Option<PathBuf> {
        ["pids", "memory", "cpu", "freezer"].iter().find_map(|controller| self.directory(controller))
    }

    /// Files with the count of out-of-memory kills.
    pub fn oom_files(&self) -> Vec<PathBuf> {
        let name = if is_v2() { "memory.events" } else { "memory.oom_control" };
        self.directory("memory").map(|directory| directory.join(name)).into_iter().collect()
    }

    /// Kills whatever is still in the group.
    pub fn kill(&self) {
        let Some(directory) = self.processes() else { return };
        let Ok(listed) = fs::read_to_string(directory.join("cgroup.procs")) else { return };
        for pid in listed.lines().filter_map(|line| line.parse().ok()) {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }

    /// Removes the group and what is below it, once its processes are gone and nobody puts any into it any more. Blocks for
    /// a moment at most.
    pub fn remove(&self, is_left_alone: impl Fn() -> io::Result<bool>) -> io::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut pause = Duration::from_millis(1);
        loop {
            let outcome = if is_left_alone()? {
                self.directories().iter().try_for_each(|directory| remove_tree(directory))
            } else {
                Err(io::Error::from_raw_os_error(libc::EBUSY))
            };
            match outcome {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                    // The kernel lets go of a group some time after its last process, and tells nobody.
                    self.kill();
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(50));
                }
                outcome => return outcome,
            }
        }
    }

    /// Removes the group if nothing is in it.
    pub fn remove_empty(&self) -> io::Result<()> {
        self.directories().iter().try_for_each(|directory| match fs::remove_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            outcome => outcome,
        })
    }

    pub fn usage(&self) -> Option<Usage> {
        if is_v2() { self.usage_v2() } else { self.usage_v1() }
    }

    fn usage_v1(&self) -> Option<Usage> {
        let memory = self.directory("memory")?;
        let stat = fs::read_to_string(memory.join("memory.stat")).ok()?;
        let used = number(&memory.join("memory.usage_in_bytes"))?;
        let limit = number(&memory.join("memory.limit_in_bytes")).filter(|limit| *limit < 1 << 60);
        Some(Usage {
            cpu_nanoseconds: self.directory("cpuacct").and_then(|d| number(&d.join("cpuacct.usage")))?,
            memory: used,
            working_set: used.saturating_sub(field(&stat, "total_inactive_file")),
            rss: field(&stat, "total_rss"),
            page_faults: field(&stat, "total_pgfault"),
            major_page_faults: field(&stat, "total_pgmajfault"),
            processes: self.directory("pids").and_then(|d| number(&d.join("pids.current"))).unwrap_or(0),
            memory_limit: limit,
        })
    }

    fn usage_v2(&self) -> Option<Usage> {
        let directory = self.directory("memory")?;
        let stat = fs::read_to_string(directory.join("memory.stat")).ok()?;
        let cpu = fs::read_to_string(directory.join("cpu.stat")).ok()?;
        let used = number(&directory.join("memory.current"))?;
        Some(Usage {
            cpu_nanoseconds: field(&cpu, "usage_usec") * 1000,
            memory: used,
            working_set: used.saturating_sub(field(&stat, "inactive_file")),
            rss: field(&stat, "anon"),
            page_faults: field(&stat, "pgfault"),
            major_page_faults: field(&stat, "pgmajfault"),
            processes: number(&directory.join("pids.current")).unwrap_or(0),
            memory_limit: number(&directory.join("memory.max")),
        })
    }

    /// Changes the limits of a running group. What is zero or empty stays as it is.
    pub fn update(&self, resources: &LinuxContainerResources) -> io::Result<()> {
        let changes = if is_v2() {
            changes_v2(resources)
        } else {
            // Where swap is not counted, there is no such file.
            let swap =
                self.directory("memory").and_then(|at| number(&at.join("memory.memsw.limit_in_bytes")));
            changes_v1(resources, swap)
        };
        for (controller, file, value) in changes {
            if let Some(directory) = self.directory(controller) {
                fs::write(directory.join(file), &value)
                    .map_err(|e| io::Error::new(e.kind(), format!("writing {value} to {file}: {e}")))?;
            }
        }
        Ok(())
    }
}

/// Moves this process to the group that it is in already. The first move after a while makes every processor of
/// the host agree, which takes some ten milliseconds, and those that follow at once need not wait for that again: so
/// this is done beside other work shortly before a process is moved in earnest. Blocks.
pub fn prepare_to_move() {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let found = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let controller = controllers.split(',').next()?;
        let usable = is_v2() || matches!(controller, "pids" | "freezer" | "memory");
        if usable { Cgroup::new(path).directory(controller) } else { None }
    });
    if let Some(directory) = found {
        let _ = fs::write(directory.join("cgroup.procs"), std::process::id().to_string());
    }
}

type Change = (&'static str, &'static str, String);

/// With the limit of memory and swap together that the group has now, where it has one.
fn changes_v1(resources: &LinuxContainerResources, swap: Option<u64>) -> Vec<Change> {
    let mut changes = Vec::new();
    for (value, controller, file) in [
        (resources.cpu_period, "cpu", "cpu.cfs_period_us"),
        (resources.cpu_quota, "cpu", "cpu.cfs_quota_us"),
        (resources.cpu_shares, "cpu", "cpu.shares"),
    ] {
        if value != 0 {
            changes.push((controller, file, value.to_string()));
        }
    }
    changes.extend(memory_v1(resources, swap));
    changes.extend(cpusets(resources));
    changes
}

/// The limit of memory, and that of memory and swap together, which is the same where no more is asked for. The kernel
/// refuses a memory limit above the other, so that what grows grows from above and what shrinks shrinks from below.
fn memory_v1(resources: &LinuxContainerResources, swap: Option<u64>) -> Vec<Change> {
    let limit = resources.memory_limit_in_bytes;
    let both = if limit < 0 { limit } else { resources.memory_swap_limit_in_bytes.max(limit) };
    let memory = (limit != 0).then(|| ("memory", "memory.limit_in_bytes", limit.to_string()));
    let both_are_counted = both != 0 && swap.is_some();
    let with_swap = both_are_counted.then(|| ("memory", "memory.memsw.limit_in_bytes", both.to_string()));
    let grows = swap.is_some_and(|now| limit < 0 || limit.unsigned_abs() > now);
    if grows {
        with_swap.into_iter().chain(memory).collect()
    } else {
        memory.into_iter().chain(with_swap).collect()
    }
}

fn changes_v2(resources: &LinuxContainerResources) -> Vec<Change> {
    let mut changes = Vec::new();
    if resources.cpu_quota != 0 {
        let quota = if resources.cpu_quota < 0 { "max".to_owned() } else { resources.cpu_quota.to_string() };
        let period = if resources.cpu_period > 0 { resources.cpu_period } else { 100_000 };
        changes.push(("cpu", "cpu.max", format!("{quota} {period}")));
    }
    if resources.cpu_shares > 0 {
        let weight = 1 + ((resources.cpu_shares.clamp(2, 262_144) - 2) * 9999) / 262_142;
        changes.push(("cpu", "cpu.weight", weight.to_string()));
    }
    if resources.memory_limit_in_bytes != 0 {
        let limit = resources.memory_limit_in_bytes;
        changes.push(("memory", "memory.max", if limit < 0 { "max".to_owned() } else { limit.to_string() }));
    }
    changes.extend(cpusets(resources));
    changes
}

fn cpusets(resources: &LinuxContainerResources) -> impl Iterator<Item = Change> {
    [("cpuset.cpus", resources.cpuset_cpus.clone()), ("cpuset.mems", resources.cpuset_mems.clone())]
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(file, value)| ("cpuset", file, value))
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
        outcome => outcome,
    }
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

fn field(text: &str, name: &str) -> u64 {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_version_one_are_found() {
        let line =
            "35 25 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct";
        let (controllers, mount) = v1_mount(line).unwrap();
        assert!(controllers.contains(&"cpuacct".to_owned()));
        assert_eq!(mount, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert!(v1_mount("30 25 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw").is_none());
    }

    #[test]
    fn shares_become_weights() {
        for (shares, weight) in [(2, "1"), (1024, "39"), (262_144, "10000")] {
            let resources = LinuxContainerResources { cpu_shares: shares, ..Default::default() };
            assert_eq!(changes_v2(&resources), vec![("cpu", "cpu.weight", weight.to_owned())]);
        }
    }

    #[test]
    fn memory_grows_from_above_and_shrinks_from_below() {
        const MEMORY: &str = "memory.limit_in_bytes";
        const BOTH: &str = "memory.memsw.limit_in_bytes";
        const MANY: &[(&str, &str)] = &[(BOTH, "400"), (MEMORY, "300")];
        type Case = (i64, i64, Option<u64>, &'static [(&'static str, &'static str)]);
        let cases: [Case; 7] = [
            (300, 0, Some(200), &[(BOTH, "300"), (MEMORY, "300")]),
            (300, 400, Some(200), MANY),
            (100, 0, Some(200), &[(MEMORY, "100"), (BOTH, "100")]),
            (-1, 0, Some(200), &[(BOTH, "-1"), (MEMORY, "-1")]),
            (300, 0, None, &[(MEMORY, "300")]),
            (0, 400, Some(200), &[(BOTH, "400")]),
            (0, 0, Some(200), &[]),
        ];
        for (memory, both, now, wanted) in cases {
            let resources = LinuxContainerResources {
                memory_limit_in_bytes: memory,
                memory_swap_limit_in_bytes: both,
                ..Default::default()
            };
            let changes = changes_v1(&resources, now);
            let changes: Vec<_> = changes.iter().map(|(_, file, value)| (*file, value.as_str())).collect();
            assert_eq!(changes, wanted, "{memory} and {both} where {now:?} is in force");
        }
    }

    #[test]
    fn a_path_is_below_every_root() {
        assert_eq!(Cgroup::new("/kubepods/pod1/").child("c").path(), "/kubepods/pod1/c");
        assert_eq!(Cgroup::new("").child("c").path(), "/c");
    }
}
