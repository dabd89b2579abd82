//! How often what was given, and how near: the figures that upstream's kubelet has of its managers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::server::text_format::{Family, Histogram, Labels, one};

/// For whom something is aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    Container,
    Pod,
}

/// With what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Boundary {
    PhysicalCpu,
    NumaNode,
    UncoreCache,
}

type Aligned = Mutex<BTreeMap<(Scope, Boundary), u64>>;

/// Counted since the kubelet started.
#[derive(Debug, Default)]
pub struct Counts {
    admissions: AtomicU64,
    refusals: AtomicU64,
    took: Mutex<Histogram>,
    pub cpu_requests: AtomicU64,
    pub cpu_errors: AtomicU64,
    pub memory_requests: AtomicU64,
    pub memory_errors: AtomicU64,
    aligned: Aligned,
    unaligned: Aligned,
}

/// Milliseconds: 0.05, and 14 doublings of it.
fn buckets() -> Vec<f64> {
    (0..15).map(|power| 0.05 * f64::from(1 << power)).collect()
}

impl Counts {
    /// `aligns`: whether what is aligned with nodes is told before there is any.
    pub fn new(aligns: bool) -> Self {
        let counts = Counts { took: Mutex::new(Histogram::new(buckets())), ..Counts::default() };
        if aligns {
            for scope in [Scope::Container, Scope::Pod] {
                counts.expect(scope, Boundary::NumaNode);
            }
        }
        counts
    }

    /// Tells of something before there is any.
    pub fn expect(&self, scope: Scope, boundary: Boundary) {
        for of in [&self.aligned, &self.unaligned] {
            of.lock().entry((scope, boundary)).or_default();
        }
    }

    /// What was given is aligned, or could not be given so.
    pub fn align(&self, scope: Scope, boundary: Boundary, is_aligned: bool) {
        let of = if is_aligned { &self.aligned } else { &self.unaligned };
        *of.lock().entry((scope, boundary)).or_default() += 1;
    }

    pub fn admitted(&self, took: Duration) {
        self.admissions.fetch_add(1, Ordering::Relaxed);
        self.took.lock().observe(took.as_secs_f64() * 1000.0);
    }

    pub fn refused(&self) {
        self.refusals.fetch_add(1, Ordering::Relaxed);
    }

    /// Writes them as Prometheus reads them.
    pub fn write(&self, out: &mut String) {
        const TEXTS: [(&str, &str); 6] = [
            (
                "kubelet_topology_manager_admission_requests_total",
                "[ALPHA] The number of admission requests where resources have to be aligned.",
            ),
            (
                "kubelet_topology_manager_admission_errors_total",
                "[ALPHA] The number of admission request failures where resources could not be aligned.",
            ),
            (
                "kubelet_cpu_manager_pinning_requests_total",
                "[ALPHA] The number of cpu core allocations which required pinning.",
            ),
            (
                "kubelet_cpu_manager_pinning_errors_total",
                "[ALPHA] The number of cpu core allocations which required pinning failed.",
            ),
            (
                "kubelet_memory_manager_pinning_requests_total",
                "[ALPHA] The number of memory pages allocations which required pinning.",
            ),
            (
                "kubelet_memory_manager_pinning_errors_total",
                "[ALPHA] The number of memory pages allocations which required pinning that failed.",
            ),
        ];
        let counts = [
            &self.admissions,
            &self.refusals,
            &self.cpu_requests,
            &self.cpu_errors,
            &self.memory_requests,
            &self.memory_errors,
        ];
        for ((name, help), count) in TEXTS.into_iter().zip(counts) {
            Family::counter(name, help).rows(out, one(count.load(Ordering::Relaxed) as f64));
        }
        self.took.lock().write(
            out,
            "kubelet_topology_manager_admission_duration_ms",
            "[ALPHA] Duration in milliseconds to serve a pod admission request.",
        );
        for (name, help, of) in [
            (
                "kubelet_container_aligned_compute_resources_count",
                "[ALPHA] Cumulative number of aligned compute resources allocated to containers by alignment type.",
                &self.aligned,
            ),
            (
                "kubelet_container_aligned_compute_resources_failure_count",
                "[ALPHA] Cumulative number of failures to allocate aligned compute resources to containers by alignment type.",
                &self.unaligned,
            ),
        ] {
            let rows: Vec<_> = of
                .lock()
                .iter()
                .map(|((scope, with), count)| (labels(*scope, *with), *count as f64))
                .collect();
            Family::counter(name, help).rows(out, rows);
        }
    }
}

fn labels(scope: Scope, boundary: Boundary) -> Labels {
    let boundary = match boundary {
        Boundary::PhysicalCpu => "physical_cpu",
        Boundary::NumaNode => "numa_node",
        Boundary::UncoreCache => "uncore_cache",
    };
    let scope = if scope == Scope::Pod { "pod" } else { "container" };
    vec![("boundary", boundary.to_owned()), ("scope", scope.to_owned())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_told_under_upstreams_names() {
        let counts = Counts::new(true);
        counts.admitted(Duration::from_micros(150));
        counts.refused();
        counts.align(Scope::Pod, Boundary::NumaNode, false);
        counts.cpu_requests.fetch_add(2, Ordering::Relaxed);
        let mut out = String::new();
        counts.write(&mut out);
        for line in [
            "kubelet_topology_manager_admission_requests_total 1",
            "kubelet_topology_manager_admission_errors_total 1",
            "kubelet_cpu_manager_pinning_requests_total 2",
            "kubelet_memory_manager_pinning_errors_total 0",
            "# TYPE kubelet_topology_manager_admission_duration_ms histogram",
            "kubelet_topology_manager_admission_duration_ms_bucket{le=\"0.1\"} 0",
            "kubelet_topology_manager_admission_duration_ms_bucket{le=\"0.2\"} 1",
            "kubelet_topology_manager_admission_duration_ms_bucket{le=\"819.2\"} 1",
            "kubelet_topology_manager_admission_duration_ms_bucket{le=\"+Inf\"} 1",
            "kubelet_topology_manager_admission_duration_ms_count 1",
            "kubelet_container_aligned_compute_resources_count{boundary=\"numa_node\",scope=\"container\"} 0",
            "kubelet_container_aligned_compute_resources_failure_count{boundary=\"numa_node\",scope=\"pod\"} 1",
        ] {
            assert!(out.lines().any(|found| found == line), "{line}\n{out}");
        }
    }
}
