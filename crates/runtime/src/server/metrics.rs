//! What sandboxes and containers use, as metrics under cAdvisor's names (KEP-2371), made of the same readings as stats.

use std::collections::HashMap;

use k8s_cri::v1::{
    ContainerMetrics, ContainerStats, Metric, MetricDescriptor, MetricType, NetworkInterfaceUsage,
    PodSandboxMetrics, PodSandboxStats, UInt64Value,
};

/// The labels of every metric, in the order of their values.
const LABELS: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];
/// Those of network metrics have this one beside.
const INTERFACE: &str = "interface";

struct Row<T> {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    value: fn(&T) -> Option<u64>,
}

const fn row<T>(
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    value: fn(&T) -> Option<u64>,
) -> Row<T> {
    Row { name, help, kind, value }
}

fn of(value: Option<&UInt64Value>) -> Option<u64> {
    value.map(|value| value.value)
}

const SECOND: u64 = 1_000_000_000;

const OF_CONTAINERS: &[Row<ContainerStats>] = &[
    row(
        "container_cpu_usage_seconds_total",
        "Cumulative cpu time consumed in seconds.",
        MetricType::Counter,
        |s| of(s.cpu.as_ref()?.usage_core_nano_seconds.as_ref()).map(|used| used / SECOND),
    ),
    row(
        "container_memory_usage_bytes",
        "Current memory usage in bytes, including all memory regardless of when it was accessed",
        MetricType::Gauge,
        |s| of(s.memory.as_ref()?.usage_bytes.as_ref()),
    ),
    row("container_memory_working_set_bytes", "Current working set in bytes.", MetricType::Gauge, |s| {
        of(s.memory.as_ref()?.working_set_bytes.as_ref())
    }),
    row("container_memory_rss", "Size of RSS in bytes.", MetricType::Gauge, |s| {
        of(s.memory.as_ref()?.rss_bytes.as_ref())
    }),
    row(
        "container_fs_usage_bytes",
        "Number of bytes that are consumed by the container on this filesystem.",
        MetricType::Gauge,
        |s| of(s.writable_layer.as_ref()?.used_bytes.as_ref()),
    ),
];

const OF_INTERFACES: &[Row<NetworkInterfaceUsage>] = &[
    row(
        "container_network_receive_bytes_total",
        "Cumulative count of bytes received",
        MetricType::Counter,
        |i| of(i.rx_bytes.as_ref()),
    ),
    row(
        "container_network_receive_errors_total",
        "Cumulative count of errors encountered while receiving",
        MetricType::Counter,
        |i| of(i.rx_errors.as_ref()),
    ),
    row(
        "container_network_transmit_bytes_total",
        "Cumulative count of bytes transmitted",
        MetricType::Counter,
        |i| of(i.tx_bytes.as_ref()),
    ),
    row(
        "container_network_transmit_errors_total",
        "Cumulative count of errors encountered while transmitting",
        MetricType::Counter,
        |i| of(i.tx_errors.as_ref()),
    ),
];

/// What metrics there are.
pub fn descriptors() -> Vec<MetricDescriptor> {
    let describe = |name: &str, help: &str, more: Option<&str>| MetricDescriptor {
        name: name.to_owned(),
        help: help.to_owned(),
        label_keys: LABELS.into_iter().chain(more).map(str::to_owned).collect(),
    };
    let containers = OF_CONTAINERS.iter().map(|row| describe(row.name, row.help, None));
    containers.chain(OF_INTERFACES.iter().map(|row| describe(row.name, row.help, Some(INTERFACE)))).collect()
}

/// The metrics of a sandbox that was just read.
pub fn of_sandbox(stats: PodSandboxStats, images: &HashMap<String, String>) -> PodSandboxMetrics {
    let attributes = stats.attributes.unwrap_or_default();
    let metadata = attributes.metadata.unwrap_or_default();
    let linux = stats.linux.unwrap_or_default();
    let labels = |container: &str, id: &str, image: &str| {
        [container, id, image, id, &metadata.namespace, &metadata.name].map(str::to_owned).to_vec()
    };
    let of_pod = labels("", &attributes.id, "");
    let interfaces = linux.network.into_iter().flat_map(|network| network.interfaces);
    let metrics = interfaces.flat_map(|interface| {
        let labels = of_pod.iter().cloned().chain([interface.name.clone()]).collect::<Vec<_>>();
        read(OF_INTERFACES, &interface, &labels)
    });
    let containers = linux.containers.into_iter().map(|stats| {
        let attributes = stats.attributes.clone().unwrap_or_default();
        let image = images.get(&attributes.id).map(String::as_str).unwrap_or_default();
        let name = attributes.metadata.unwrap_or_default().name;
        let labels = labels(&name, &attributes.id, image);
        ContainerMetrics { container_id: attributes.id, metrics: read(OF_CONTAINERS, &stats, &labels) }
    });
    PodSandboxMetrics {
        pod_sandbox_id: attributes.id,
        metrics: metrics.collect(),
        container_metrics: containers.collect(),
    }
}

fn read<T>(rows: &[Row<T>], from: &T, labels: &[String]) -> Vec<Metric> {
    let value = |row: &Row<T>| (row.value)(from).map(|value| UInt64Value { value });
    rows.iter()
        .filter_map(|row| {
            Some(Metric {
                name: row.name.to_owned(),
                // Gathered as it was asked for.
                timestamp: 0,
                metric_type: row.kind as i32,
                label_values: labels.to_vec(),
                value: Some(value(row)?),
            })
        })
        .collect()
}
