//! What the kubelet counts of its own work, under upstream's names: the table of it, and the registry that it lies in. Whoever
//! does the work counts it here; what only one part of the kubelet knows of has its families there, in the same registry. All
//! of it is the process's, of however many kubelets.

use std::sync::LazyLock;

use krate_metrics::Families;
use krate_metrics::Stability::{Alpha, Internal};
use prometheus::{DEFAULT_BUCKETS, Gauge, Histogram, HistogramVec, IntCounter, IntCounterVec};

/// Upper bounds in seconds: those of calls to the runtime, of starts of pods, of pulls of images, of statuses until they are
/// told, and of what is done with volumes.
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
const OF_STATUSES: &[f64] = &[0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0];
pub const OF_STORAGE: &[f64] = &[0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 25.0, 50.0, 120.0, 300.0, 600.0];

pub static FAMILIES: LazyLock<Families> = LazyLock::new(Families::default);

/// Declares instruments, and a function `write` that writes all that is counted: of those without labels also that nothing
/// has happened yet.
macro_rules! instruments {
    ($($name:ident: $kind:ty = $made:ident($stability:expr, $key:literal, $help:literal $(, $more:expr)*);)*) => {
        $(pub static $name: LazyLock<$kind> =
            LazyLock::new(|| FAMILIES.$made($stability, concat!("kubelet_", $key), $help $(, $more)*));)*

        pub fn write(out: &mut String) {
            $(LazyLock::force(&$name);)*
            FAMILIES.write(out);
            Families(krate_metrics::registered()).write(out);
        }
    };
}

instruments! {
    RUNTIME_CALLS: IntCounterVec = counters(Alpha, "runtime_operations_total",
        "Cumulative number of runtime operations by operation type.", &["operation_type"]);
    RUNTIME_FAILURES: IntCounterVec = counters(Alpha, "runtime_operations_errors_total",
        "Cumulative number of runtime operation errors by operation type.", &["operation_type"]);
    RUNTIME_SECONDS: HistogramVec = histograms(Alpha, "runtime_operations_duration_seconds",
        "Duration in seconds of runtime operations. Broken down by operation type.",
        &["operation_type"], OF_CALLS);
    SANDBOX_SECONDS: HistogramVec = histograms(Alpha, "run_podsandbox_duration_seconds",
        "Duration in seconds of the run_podsandbox operations. Broken down by RuntimeClass.Handler.",
        &["runtime_handler"], DEFAULT_BUCKETS);
    SANDBOX_FAILURES: IntCounterVec = counters(Alpha, "run_podsandbox_errors_total",
        "Cumulative number of the run_podsandbox operation errors by RuntimeClass.Handler.",
        &["runtime_handler"]);
    RELISTS: Histogram = histogram(Alpha, "pleg_relist_duration_seconds",
        "Duration in seconds for relisting pods in PLEG.", DEFAULT_BUCKETS);
    RELIST_INTERVALS: Histogram = histogram(Alpha, "pleg_relist_interval_seconds",
        "Interval in seconds between relisting in PLEG.", DEFAULT_BUCKETS);
    POD_RELISTS: Histogram = histogram(Alpha, "pleg_pod_relist_duration_seconds",
        "Duration in seconds for relisting a single pod in PLEG.", DEFAULT_BUCKETS);
    RUNTIME_SEEN: Gauge = fraction(Alpha, "pleg_last_seen_seconds",
        "Timestamp in seconds when PLEG was last seen active.");
    EVENT_STREAMS: IntCounter = counter(Alpha, "evented_pleg_connection_success_count",
        "The number of times a streaming client was obtained to receive CRI Events.");
    EVENT_STREAM_FAILURES: IntCounter = counter(Alpha, "evented_pleg_connection_error_count",
        "The number of errors encountered during the establishment of streaming connection with the CRI runtime.");
    EVENT_SECONDS: Histogram = histogram(Alpha, "evented_pleg_connection_latency_seconds",
        "The latency of streaming connection with the CRI runtime, measured in seconds.", DEFAULT_BUCKETS);
    STARTED_PODS: IntCounter = counter(Alpha, "started_pods_total",
        "Cumulative number of pods started");
    POD_FAILURES: IntCounter = counter(Alpha, "started_pods_errors_total",
        "Cumulative number of errors when starting pods");
    OWN_USERS_PODS: IntCounter = counter(Alpha, "started_user_namespaced_pods_total",
        "Cumulative number of pods with user namespaces started. This metric will only be collected on Linux.");
    OWN_USERS_FAILURES: IntCounter = counter(Alpha, "started_user_namespaced_pods_errors_total",
        "Cumulative number of errors when starting pods with user namespaces. This metric will only be collected on Linux.");
    STARTED_CONTAINERS: IntCounterVec = counters(Alpha, "started_containers_total",
        "Cumulative number of containers started", &["container_type"]);
    CONTAINER_FAILURES: IntCounterVec = counters(Alpha, "started_containers_errors_total",
        "Cumulative number of errors when starting containers", &["container_type", "code"]);
    ENDED_CONTAINERS: IntCounterVec = counters(Alpha, "terminated_containers_total",
        "Cumulative number of container terminations.", &["container_type", "exit_code", "reason"]);
    CONTAINERS_OF_POD: Histogram = histogram(Alpha, "containers_per_pod_count",
        "The number of containers per pod.", &[1.0, 2.0, 4.0, 8.0, 16.0]);
    RESTARTED_PODS: IntCounterVec = counters(Alpha, "restarted_pods_total",
        "Number of pods that have been restarted because they were deleted and recreated with the same UID while the kubelet was watching them (common for static pods, extremely uncommon for API pods)",
        &["static"]);
    POD_WORKER_START_SECONDS: Histogram = histogram(Alpha, "pod_worker_start_duration_seconds",
        "Duration in seconds from kubelet seeing a pod to starting a worker.", DEFAULT_BUCKETS);
    POD_START_SECONDS: Histogram = histogram(Alpha, "pod_start_duration_seconds",
        "Duration in seconds from kubelet seeing a pod for the first time to the pod starting to run",
        OF_STARTS);
    POD_START_TOTAL_SECONDS: Histogram = histogram(Alpha, "pod_start_total_duration_seconds",
        "Duration in seconds to start a pod since creation, including time to pull images and run init containers, measured from pod creation timestamp to when all its containers are reported as started and observed via watch",
        OF_STARTS);
    POD_START_SLI_SECONDS: Histogram = histogram(Alpha, "pod_start_sli_duration_seconds",
        "Duration in seconds to start a pod, excluding time to pull images and run init containers, measured from pod creation timestamp to when all its containers are reported as started and observed via watch",
        OF_STARTS);
    FIRST_POD_SLI_SECONDS: Gauge = fraction(Internal, "first_network_pod_start_sli_duration_seconds",
        "Duration in seconds to start the first network pod, excluding time to pull images and run init containers, measured from pod creation timestamp to when all its containers are reported as started and observed via watch");
    STATUS_SECONDS: Histogram = histogram(Alpha, "pod_status_sync_duration_seconds",
        "Duration in seconds to sync a pod status update. Measures time from detection of a change to pod status until the API is successfully updated for that pod, even if multiple intevening changes to pod status occur.",
        OF_STATUSES);
    POD_WORKER_SECONDS: HistogramVec = histograms(Alpha, "pod_worker_duration_seconds",
        "Duration in seconds to sync a single pod. Broken down by operation type: create, update, or sync",
        &["operation_type"], DEFAULT_BUCKETS);
    PULL_SECONDS: HistogramVec = histograms(Alpha, "image_pull_duration_seconds",
        "Duration in seconds to pull an image.", &["image_size_in_bytes"], OF_PULLS);
    ENSURED_IMAGES: IntCounterVec = counters(Alpha, "image_manager_ensure_image_requests_total",
        "Number of ensure-image requests processed by the kubelet.",
        &["present_locally", "pull_policy", "pull_required"]);
    COLLECTED_IMAGES: IntCounterVec = counters(Alpha, "image_garbage_collected_total",
        "Total number of images garbage collected by the kubelet, whether through disk usage or image age.",
        &["reason"]);
    CGROUP_SECONDS: HistogramVec = histograms(Alpha, "cgroup_manager_duration_seconds",
        "Duration in seconds for cgroup manager operations. Broken down by method.",
        &["operation_type"], DEFAULT_BUCKETS);
    EVICTED: IntCounterVec = counters(Alpha, "evictions",
        "Cumulative number of pod evictions by eviction signal", &["eviction_signal"]);
    EVICTION_AGES: HistogramVec = histograms(Alpha, "eviction_stats_age_seconds",
        "Time between when stats are collected, and when pod is evicted based on those stats by eviction signal",
        &["eviction_signal"], DEFAULT_BUCKETS);
    PREEMPTED: IntCounterVec = counters(Alpha, "preemptions",
        "Cumulative number of pod preemptions by preemption resource", &["preemption_signal"]);
    REFUSED: IntCounterVec = counters(Alpha, "admission_rejections_total",
        "Cumulative number pod admission rejections by the Kubelet.", &["reason"]);
    ORPHANS: IntCounter = counter(Alpha, "orphaned_runtime_pods_total",
        "Number of pods that have been detected in the container runtime without being already known to the pod worker. This typically indicates the kubelet was restarted while a pod was force deleted in the API or in the local configuration, which is unusual.");
    ORPHANS_CLEANED: Gauge = fraction(Alpha, "orphan_pod_cleaned_volumes",
        "The total number of orphaned Pods whose volumes were cleaned in the last periodic sweep.");
    ORPHANS_LEFT: Gauge = fraction(Alpha, "orphan_pod_cleaned_volumes_errors",
        "The number of orphaned Pods whose volumes failed to be cleaned in the last periodic sweep.");
    PLAIN_HOOKS: IntCounter = counter(Alpha, "lifecycle_handler_http_fallbacks_total",
        "The number of times lifecycle handlers successfully fell back to http from https.");
    BROKEN_SLEEPS: IntCounter = counter(Alpha, "sleep_action_terminated_early_total",
        "The number of times lifecycle sleep handler got terminated before it finishes");
    DEVICE_PLUGINS: IntCounterVec = counters(Alpha, "device_plugin_registration_total",
        "Cumulative number of device plugin registrations. Broken down by resource name.",
        &["resource_name"]);
    ALLOCATE_SECONDS: HistogramVec = histograms(Alpha, "device_plugin_alloc_duration_seconds",
        "Duration in seconds to serve a device plugin Allocation request. Broken down by resource name.",
        &["resource_name"], DEFAULT_BUCKETS);
    LISTER_REQUESTS: IntCounterVec = counters(Alpha, "pod_resources_endpoint_requests_total",
        "Cumulative number of requests to the PodResource endpoint. Broken down by server api version.",
        &["server_api_version"]);
    LISTER_LISTS: IntCounterVec = counters(Alpha, "pod_resources_endpoint_requests_list",
        "Number of requests to the PodResource List endpoint. Broken down by server api version.",
        &["server_api_version"]);
    LISTER_GETS: IntCounterVec = counters(Alpha, "pod_resources_endpoint_requests_get",
        "Number of requests to the PodResource Get endpoint. Broken down by server api version.",
        &["server_api_version"]);
    LISTER_GET_FAILURES: IntCounterVec = counters(Alpha, "pod_resources_endpoint_errors_get",
        "Number of requests to the PodResource Get endpoint which returned error. Broken down by server api version.",
        &["server_api_version"]);
    LISTER_ALLOCATABLES: IntCounterVec = counters(Alpha, "pod_resources_endpoint_requests_get_allocatable",
        "Number of requests to the PodResource GetAllocatableResources endpoint. Broken down by server api version.",
        &["server_api_version"]);
    BEFORE_KUBELET_SECONDS: Gauge = fraction(Alpha, "node_startup_pre_kubelet_duration_seconds",
        "Duration in seconds of node startup before kubelet starts.");
    BEFORE_REGISTRATION_SECONDS: Gauge = fraction(Alpha, "node_startup_pre_registration_duration_seconds",
        "Duration in seconds of node startup before registration.");
    REGISTRATION_SECONDS: Gauge = fraction(Alpha, "node_startup_registration_duration_seconds",
        "Duration in seconds of node startup during registration.");
    AFTER_REGISTRATION_SECONDS: Gauge = fraction(Alpha, "node_startup_post_registration_duration_seconds",
        "Duration in seconds of node startup after registration.");
    STARTUP_SECONDS: Gauge = fraction(Alpha, "node_startup_duration_seconds",
        "Duration in seconds of node startup in total.");
}

/// Upstream's classes of images by their size: bytes above which each begins.
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

/// The class of an image of so many bytes; of one that the runtime does not tell the size of, that it has none.
pub fn size_class(bytes: u64) -> &'static str {
    SIZES.iter().rev().find(|(above, _)| bytes > *above).map_or("N/A", |(_, class)| class)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_have_classes() {
        for (bytes, class) in [
            (0, "N/A"),
            (1, "0-10MB"),
            (10 << 20, "0-10MB"),
            ((10 << 20) + 1, "10MB-100MB"),
            (1 << 50, "GT100GB"),
        ] {
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
