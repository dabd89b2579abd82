//! What sandboxes and containers use.

use std::collections::HashMap;

use k8s_cri::v1::{
    ContainerAttributes, ContainerStats, CpuUsage, FilesystemIdentifier, FilesystemUsage,
    LinuxPodSandboxStats, MemoryUsage, NetworkInterfaceUsage, NetworkUsage, PodSandboxAttributes,
    PodSandboxStats, ProcessUsage, UInt64Value,
};
use parking_lot::Mutex;

use super::node::{Container, Node, Sandbox};
use super::record;
use crate::cgroup::{Cgroup, Usage};
use crate::snapshot;

/// Shortest time, in nanoseconds, over which a rate is taken.
const WINDOW: i64 = 1_000_000_000;

/// Earlier readings of processor time, from which rates are made.
#[derive(Debug, Default)]
pub struct Samples(Mutex<HashMap<String, Sample>>);

#[derive(Clone, Copy, Debug)]
struct Sample {
    at: i64,
    cpu: u64,
    rate: Option<u64>,
}

impl Samples {
    /// Billionths of a core used lately; none until two readings have been made.
    fn rate(&self, id: &str, at: i64, cpu: u64) -> Option<u64> {
        let mut samples = self.0.lock();
        let last = samples.entry(id.to_owned()).or_insert(Sample { at, cpu, rate: None });
        let elapsed = at - last.at;
        if elapsed >= WINDOW {
            let used = u128::from(cpu.saturating_sub(last.cpu));
            let rate = (used * 1_000_000_000 / u128::from(elapsed.unsigned_abs())) as u64;
            *last = Sample { at, cpu, rate: Some(rate) };
        }
        last.rate
    }

    pub fn forget(&self, id: &str) {
        self.0.lock().remove(id);
    }
}

// Every number of CRI's is optional, and ours are there.
#[allow(clippy::unnecessary_wraps)]
fn value(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

fn cpu(node: &Node, id: &str, at: i64, usage: &Usage) -> CpuUsage {
    CpuUsage {
        timestamp: at,
        usage_core_nano_seconds: value(usage.cpu_nanoseconds),
        usage_nano_cores: node.samples.rate(id, at, usage.cpu_nanoseconds).map(|value| UInt64Value { value }),
    }
}

fn memory(at: i64, usage: &Usage) -> MemoryUsage {
    MemoryUsage {
        timestamp: at,
        working_set_bytes: value(usage.working_set),
        available_bytes: usage
            .memory_limit
            .map(|limit| UInt64Value { value: limit.saturating_sub(usage.working_set) }),
        usage_bytes: value(usage.memory),
        rss_bytes: value(usage.rss),
        page_faults: value(usage.page_faults),
        major_page_faults: value(usage.major_page_faults),
    }
}

/// Reads files: to be called where blocking is allowed.
pub fn container(node: &Node, container: &Container) -> ContainerStats {
    let at = record::now();
    let record = container.record.read().clone();
    let usage = if container.is_running() { Cgroup::new(&record.cgroup).usage() } else { None };
    let upper = node.layout.container(&record.id).join("upper");
    let (bytes, inodes) = snapshot::usage(&upper);
    ContainerStats {
        attributes: Some(ContainerAttributes {
            id: record.id.clone(),
            metadata: record.config.metadata.clone(),
            labels: record.config.labels.clone(),
            annotations: record.config.annotations.clone(),
        }),
        cpu: usage.map(|usage| cpu(node, &record.id, at, &usage)),
        memory: usage.map(|usage| memory(at, &usage)),
        writable_layer: Some(FilesystemUsage {
            timestamp: at,
            fs_id: Some(FilesystemIdentifier { mountpoint: upper.display().to_string() }),
            used_bytes: value(bytes),
            inodes_used: value(inodes),
        }),
        swap: None,
    }
}

pub fn sandbox(node: &Node, sandbox: &Sandbox) -> PodSandboxStats {
    let at = record::now();
    let record = sandbox.record.read().clone();
    let containers: Vec<_> = node
        .containers_of(&record.id)
        .iter()
        .filter(|container| container.is_running())
        .map(|one| self::container(node, one))
        .collect();
    let parent = record.config.linux.as_ref().map(|linux| linux.cgroup_parent.clone()).unwrap_or_default();
    let usage = if parent.is_empty() { None } else { Cgroup::new(&parent).usage() };
    PodSandboxStats {
        attributes: Some(PodSandboxAttributes {
            id: record.id.clone(),
            metadata: record.config.metadata.clone(),
            labels: record.config.labels.clone(),
            annotations: record.config.annotations.clone(),
        }),
        linux: Some(LinuxPodSandboxStats {
            cpu: usage.map(|usage| cpu(node, &record.id, at, &usage)),
            memory: usage.map(|usage| memory(at, &usage)),
            network: if sandbox.is_ready() { network(at, record.shim) } else { None },
            process: usage.map(|usage| ProcessUsage { timestamp: at, process_count: value(usage.processes) }),
            containers,
        }),
        windows: None,
    }
}

/// The counters of the pod's interfaces, as its shim sees them.
fn network(at: i64, shim: i32) -> Option<NetworkUsage> {
    let text = std::fs::read_to_string(format!("/proc/{shim}/net/dev")).ok()?;
    let interfaces: Vec<_> = text.lines().skip(2).filter_map(interface).collect();
    Some(NetworkUsage {
        timestamp: at,
        default_interface: interfaces.iter().find(|interface| interface.name == "eth0").cloned(),
        interfaces,
    })
}

fn interface(line: &str) -> Option<NetworkInterfaceUsage> {
    let (name, counters) = line.split_once(':')?;
    let name = name.trim();
    if name == "lo" {
        return None;
    }
    let counters: Vec<u64> = counters.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    let at = |index: usize| counters.get(index).map(|value| UInt64Value { value: *value });
    Some(NetworkInterfaceUsage {
        name: name.to_owned(),
        rx_bytes: at(0),
        rx_errors: at(2),
        tx_bytes: at(8),
        tx_errors: at(10),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_needs_two_readings() {
        let samples = Samples::default();
        assert_eq!(samples.rate("a", 0, 0), None);
        assert_eq!(samples.rate("a", WINDOW / 2, 5), None);
        assert_eq!(samples.rate("a", 2 * WINDOW, 1_000_000_000), Some(500_000_000));
        assert_eq!(samples.rate("a", 2 * WINDOW + 1, 1_000_000_001), Some(500_000_000));
    }

    #[test]
    fn counters_are_read() {
        let line = "  eth0: 1296 16 1 0 0 0 0 0 656 8 2 0 0 0 0 0";
        let usage = interface(line).unwrap();
        assert_eq!(usage.name, "eth0");
        assert_eq!((usage.rx_bytes, usage.tx_bytes, usage.tx_errors), (value(1296), value(656), value(2)));
        assert!(interface("    lo: 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0").is_none());
    }
}
