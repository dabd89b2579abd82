//! How often what was given, and how near: the figures that upstream's kubelet has of its managers.

use std::time::Duration;

use krate_metrics::Stability::Alpha;
use krate_metrics::{Families, powers};
use prometheus::{Histogram, IntCounter, IntCounterVec};

/// For whom something is aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Container,
    Pod,
}

/// With what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boundary {
    PhysicalCpu,
    NumaNode,
    UncoreCache,
}

/// Counted since the kubelet started.
#[derive(Debug)]
pub struct Counts {
    families: Families,
    admissions: IntCounter,
    refusals: IntCounter,
    took: Histogram,
    pub cpu_requests: IntCounter,
    pub cpu_errors: IntCounter,
    pub memory_requests: IntCounter,
    pub memory_errors: IntCounter,
    aligned: IntCounterVec,
    unaligned: IntCounterVec,
}

impl Counts {
    /// `aligns`: whether what is aligned with nodes is told before there is any.
    pub fn new(aligns: bool) -> Self {
        let families = Families::default();
        let counter = |name: &str, help: &str| families.counter(Alpha, &format!("kubelet_{name}"), help);
        let counters = |name: &str, help: &str| {
            families.counters(Alpha, &format!("kubelet_{name}"), help, &["boundary", "scope"])
        };
        let counts = Counts {
            admissions: counter(
                "topology_manager_admission_requests_total",
                "The number of admission requests where resources have to be aligned.",
            ),
            refusals: counter(
                "topology_manager_admission_errors_total",
                "The number of admission request failures where resources could not be aligned.",
            ),
            took: families.histogram(
                Alpha,
                "kubelet_topology_manager_admission_duration_ms",
                "Duration in milliseconds to serve a pod admission request.",
                &powers(0.05, 2.0, 15),
            ),
            cpu_requests: counter(
                "cpu_manager_pinning_requests_total",
                "The number of cpu core allocations which required pinning.",
            ),
            cpu_errors: counter(
                "cpu_manager_pinning_errors_total",
                "The number of cpu core allocations which required pinning failed.",
            ),
            memory_requests: counter(
                "memory_manager_pinning_requests_total",
                "The number of memory pages allocations which required pinning.",
            ),
            memory_errors: counter(
                "memory_manager_pinning_errors_total",
                "The number of memory pages allocations which required pinning that failed.",
            ),
            aligned: counters(
                "container_aligned_compute_resources_count",
                "Cumulative number of aligned compute resources allocated to containers by alignment type.",
            ),
            unaligned: counters(
                "container_aligned_compute_resources_failure_count",
                "Cumulative number of failures to allocate aligned compute resources to containers by alignment type.",
            ),
            families: families.clone(),
        };
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
            of.with_label_values(&labels(scope, boundary));
        }
    }

    /// What was given is aligned, or could not be given so.
    pub fn align(&self, scope: Scope, boundary: Boundary, is_aligned: bool) {
        let of = if is_aligned { &self.aligned } else { &self.unaligned };
        of.with_label_values(&labels(scope, boundary)).inc();
    }

    pub fn admitted(&self, took: Duration) {
        self.admissions.inc();
        self.took.observe(took.as_secs_f64() * 1000.0);
    }

    pub fn refused(&self) {
        self.refusals.inc();
    }

    /// Writes them as Prometheus reads them.
    pub fn write(&self, out: &mut String) {
        self.families.write(out);
    }
}

fn labels(scope: Scope, boundary: Boundary) -> [&'static str; 2] {
    let boundary = match boundary {
        Boundary::PhysicalCpu => "physical_cpu",
        Boundary::NumaNode => "numa_node",
        Boundary::UncoreCache => "uncore_cache",
    };
    [boundary, if scope == Scope::Pod { "pod" } else { "container" }]
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
        counts.cpu_requests.inc_by(2);
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
