//! What the kubelet counts of its own work, under upstream's names: the table of it, and the registry that it lies in. Whoever
//! does the work counts it here; what only one part of the kubelet knows of has its families there, in the same registry. All
//! of it is the process's, of however many kubelets.

use std::sync::LazyLock;

use krate_metrics::Families;
use krate_metrics::Stability::Alpha;
use prometheus::{DEFAULT_BUCKETS, Histogram, HistogramVec, IntCounter, IntCounterVec};

/// Upper bounds in seconds: those of calls to the runtime, of starts of pods, of pulls of images, and of what is done with
/// volumes.
const OF_CALLS: &[f64] = &[
    0.005,
    0.0125,
    0.03125,
    0.078125,
    0.1953125,
    0.48828125,
    1.220703125,
    3.0517578125,
    7.62939453125,
    19.073486328125,
    47.6837158203125,
    119.20928955078125,
    298.0232238769531,
    745.0580596923828,
];
const OF_STARTS: &[f64] = &[
    0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0,
    480.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0,
];
const OF_PULLS: &[f64] = &[
    1.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0, 600.0, 900.0, 1200.0, 1800.0,
    2700.0, 3600.0,
];
pub const OF_STORAGE: &[f64] = &[0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 25.0, 50.0, 120.0, 300.0, 600.0];

pub static FAMILIES: LazyLock<Families> = LazyLock::new(Families::default);

/// Declares instruments, and a function `write` that writes all that is counted: of those without labels also that nothing
/// has happened yet.
macro_rules! instruments {
    ($($name:ident: $kind:ty = $made:ident($key:literal, $help:literal $(, $more:expr)*);)*) => {
        $(pub static $name: LazyLock<$kind> =
            LazyLock::new(|| FAMILIES.$made(Alpha, concat!("kubelet_", $key), $help $(, $more)*));)*

        pub fn write(out: &mut String) {
            $(LazyLock::force(&$name);)*
            FAMILIES.write(out);
        }
    };
}

instruments! {
    RUNTIME_CALLS: IntCounterVec = counters("runtime_operations_total",
        "Cumulative number of runtime operations by operation type.", &["operation_type"]);
    RUNTIME_FAILURES: IntCounterVec = counters("runtime_operations_errors_total",
        "Cumulative number of runtime operation errors by operation type.", &["operation_type"]);
    RUNTIME_SECONDS: HistogramVec = histograms("runtime_operations_duration_seconds",
        "Duration in seconds of runtime operations. Broken down by operation type.",
        &["operation_type"], OF_CALLS);
    SANDBOX_SECONDS: HistogramVec = histograms("run_podsandbox_duration_seconds",
        "Duration in seconds of the run_podsandbox operations. Broken down by RuntimeClass.Handler.",
        &["runtime_handler"], DEFAULT_BUCKETS);
    SANDBOX_FAILURES: IntCounterVec = counters("run_podsandbox_errors_total",
        "Cumulative number of the run_podsandbox operation errors by RuntimeClass.Handler.",
        &["runtime_handler"]);
    STARTED_PODS: IntCounter = counter("started_pods_total",
        "Cumulative number of pods started");
    POD_FAILURES: IntCounter = counter("started_pods_errors_total",
        "Cumulative number of errors when starting pods");
    STARTED_CONTAINERS: IntCounterVec = counters("started_containers_total",
        "Cumulative number of containers started", &["container_type"]);
    CONTAINER_FAILURES: IntCounterVec = counters("started_containers_errors_total",
        "Cumulative number of errors when starting containers", &["container_type", "code"]);
    POD_START_SECONDS: Histogram = histogram("pod_start_duration_seconds",
        "Duration in seconds from kubelet seeing a pod for the first time to the pod starting to run",
        OF_STARTS);
    POD_START_TOTAL_SECONDS: Histogram = histogram("pod_start_total_duration_seconds",
        "Duration in seconds to start a pod since creation, including time to pull images and run init containers, measured from pod creation timestamp to when all its containers are reported as started and observed via watch",
        OF_STARTS);
    POD_WORKER_SECONDS: HistogramVec = histograms("pod_worker_duration_seconds",
        "Duration in seconds to sync a single pod. Broken down by operation type: create, update, or sync",
        &["operation_type"], DEFAULT_BUCKETS);
    PULL_SECONDS: HistogramVec = histograms("image_pull_duration_seconds",
        "Duration in seconds to pull an image.", &["image_size_in_bytes"], OF_PULLS);
    COLLECTED_IMAGES: IntCounterVec = counters("image_garbage_collected_total",
        "Total number of images garbage collected by the kubelet, whether through disk usage or image age.",
        &["reason"]);
    CGROUP_SECONDS: HistogramVec = histograms("cgroup_manager_duration_seconds",
        "Duration in seconds for cgroup manager operations. Broken down by method.",
        &["operation_type"], DEFAULT_BUCKETS);
    EVICTED: IntCounterVec = counters("evictions",
        "Cumulative number of pod evictions by eviction signal", &["eviction_signal"]);
    PREEMPTED: IntCounterVec = counters("preemptions",
        "Cumulative number of pod preemptions by preemption resource", &["preemption_signal"]);
    REFUSED: IntCounterVec = counters("admission_rejections_total",
        "Cumulative number pod admission rejections by the Kubelet.", &["reason"]);
    ORPHANS: IntCounter = counter("orphaned_runtime_pods_total",
        "Number of pods that have been detected in the container runtime without being already known to the pod worker. This typically indicates the kubelet was restarted while a pod was force deleted in the API or in the local configuration, which is unusual.");
    DEVICE_PLUGINS: IntCounterVec = counters("device_plugin_registration_total",
        "Cumulative number of device plugin registrations. Broken down by resource name.",
        &["resource_name"]);
    ALLOCATE_SECONDS: HistogramVec = histograms("device_plugin_alloc_duration_seconds",
        "Duration in seconds to serve a device plugin Allocation request. Broken down by resource name.",
        &["resource_name"], DEFAULT_BUCKETS);
}

/// Upstream's classes of images by their size: bytes from which on each begins.
const SIZES: [(u64, &str); 12] = [
    (0, "0-10MB"),
    (10 << 20, "10MB-100MB"),
    (100 << 20, "100MB-500MB"),
    (500 << 20, "500MB-1GB"),
    (1 << 30, "1GB-5GB"),
    (5 << 30, "5GB-10GB"),
    (10 << 30, "10GB-20GB"),
    (20 << 30, "20GB-30GB"),
    (30 << 30, "30GB-40GB"),
    (40 << 30, "40GB-60GB"),
    (60 << 30, "60GB-100GB"),
    (100 << 30, "GT100GB"),
];

/// The class of an image of so many bytes.
pub fn size_class(bytes: u64) -> &'static str {
    SIZES.iter().rev().find(|(least, _)| bytes >= *least).map_or("0-10MB", |(_, class)| class)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_have_classes() {
        for (bytes, class) in
            [(0, "0-10MB"), ((10 << 20) - 1, "0-10MB"), (10 << 20, "10MB-100MB"), (1 << 50, "GT100GB")]
        {
            assert_eq!(size_class(bytes), class, "{bytes}");
        }
    }

    #[test]
    fn all_are_written() {
        STARTED_PODS.inc();
        EVICTED.with_label_values(&["memory.available"]).inc();
        let mut out = String::new();
        write(&mut out);
        assert!(out.contains("\nkubelet_started_pods_total "), "{out}");
        assert!(out.contains("kubelet_evictions{eviction_signal=\"memory.available\"} 1\n"), "{out}");
    }
}
