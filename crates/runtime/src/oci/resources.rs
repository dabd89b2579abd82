//! Limits, in the OCI form.

use std::path::Path;

use k8s_cri::v1::LinuxContainerResources;
use serde_json::{Map, Value, json};

use crate::cgroup;

/// The limits of a container, and the devices it may use.
pub fn resources(asked: &LinuxContainerResources, devices: Vec<Value>) -> Value {
    let mut cpu = Map::new();
    for (name, value) in
        [("shares", asked.cpu_shares), ("quota", asked.cpu_quota), ("period", asked.cpu_period)]
    {
        if value != 0 {
            cpu.insert(name.into(), value.into());
        }
    }
    for (name, value) in [("cpus", &asked.cpuset_cpus), ("mems", &asked.cpuset_mems)] {
        if !value.is_empty() {
            cpu.insert(name.into(), value.as_str().into());
        }
    }
    let mut memory = Map::new();
    if asked.memory_limit_in_bytes > 0 {
        memory.insert("limit".into(), asked.memory_limit_in_bytes.into());
        // Without it a container would swap where its limit should stop it.
        let swap = asked.memory_swap_limit_in_bytes.max(asked.memory_limit_in_bytes);
        if counts_swap() {
            memory.insert("swap".into(), swap.into());
        }
    }
    let mut all = Map::from_iter([("devices".to_owned(), Value::from(devices))]);
    if !cpu.is_empty() {
        all.insert("cpu".into(), cpu.into());
    }
    if !memory.is_empty() {
        all.insert("memory".into(), memory.into());
    }
    let huge = asked.hugepage_limits.iter();
    let huge: Vec<Value> =
        huge.map(|limit| json!({ "pageSize": limit.page_size, "limit": limit.limit })).collect();
    // Many hosts count no huge pages, and then nobody is kept from them.
    if !huge.is_empty() && cgroup::has("hugetlb") {
        all.insert("hugepageLimits".into(), huge.into());
    }
    if cgroup::is_v2() && !asked.unified.is_empty() {
        all.insert("unified".into(), json!(asked.unified));
    }
    all.into()
}

fn counts_swap() -> bool {
    cgroup::is_v2() || Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists()
}

/// The score by which the kernel chooses whom to kill. Who may not lower it keeps their own.
pub fn oom_score(asked: i64, may_lower: bool) -> i64 {
    if may_lower {
        return asked;
    }
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    asked.max(own.trim().parse().unwrap_or(0))
}
