//! `/metrics/cadvisor`: cAdvisor's names and labels for what containers, pods and the machine use.

use http::StatusCode;
use k8s_cri::v1::{ListPodSandboxStatsRequest, NetworkInterfaceUsage, PodSandboxStats, UInt64Value};
use k8s_openapi::api::core::v1::{Container, Pod};
use krate_api::Quantity;

use super::figures::{Figures, Node, figures};
use super::text_format::{FORMAT, Family, Labels, one, seconds};
use super::{Answer, Server, whole};
use crate::names;

type OfContainer = fn(&Figures) -> f64;

const OF_CONTAINERS: &[(Family, OfContainer)] = &[
    (
        Family::gauge(
            "container_memory_usage_bytes",
            "Current memory usage in bytes, including all memory regardless of when it was accessed",
        ),
        |f| f.usage as f64,
    ),
    (Family::gauge("container_memory_working_set_bytes", "Current working set in bytes."), |f| {
        f.working_set as f64
    }),
    (Family::gauge("container_memory_rss", "Size of RSS in bytes."), |f| f.rss as f64),
    (
        Family::gauge(
            "container_fs_usage_bytes",
            "Number of bytes that are consumed by the container on this filesystem.",
        ),
        |f| f.written as f64,
    ),
    (Family::gauge("container_last_seen", "Last time a container was seen by the exporter"), |f| {
        f.at.as_second() as f64
    }),
    (
        Family::gauge(
            "container_start_time_seconds",
            "Start time of the container since unix epoch in seconds.",
        ),
        |f| f.started.as_second() as f64,
    ),
];

/// Reads an amount of a container's specification.
type OfSpec = fn(&Container) -> Option<f64>;

const OF_SPECS: &[(Family, OfSpec)] = &[
    (Family::gauge("container_spec_memory_limit_bytes", "Memory limit for the container."), |c| {
        Some(limit(c, "memory").map_or(0.0, |limit| limit.value() as f64))
    }),
    (Family::gauge("container_spec_cpu_period", "CPU period of the container."), |_| Some(100_000.0)),
    (Family::gauge("container_spec_cpu_quota", "CPU quota of the container."), |c| {
        limit(c, "cpu").map(|limit| limit.milli_value() as f64 * 100.0)
    }),
];

type OfInterface = fn(&NetworkInterfaceUsage) -> Option<&UInt64Value>;

const OF_INTERFACES: &[(Family, OfInterface)] = &[
    (Family::counter("container_network_receive_bytes_total", "Cumulative count of bytes received"), |i| {
        i.rx_bytes.as_ref()
    }),
    (
        Family::counter(
            "container_network_receive_errors_total",
            "Cumulative count of errors encountered while receiving",
        ),
        |i| i.rx_errors.as_ref(),
    ),
    (
        Family::counter("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted"),
        |i| i.tx_bytes.as_ref(),
    ),
    (
        Family::counter(
            "container_network_transmit_errors_total",
            "Cumulative count of errors encountered while transmitting",
        ),
        |i| i.tx_errors.as_ref(),
    ),
];

fn limit(container: &Container, name: &str) -> Option<Quantity> {
    let limits = container.resources.as_ref()?.limits.as_ref()?;
    Quantity::parse(&limits.get(name)?.0).ok()
}

fn labels(f: &Figures) -> Labels {
    vec![
        ("container", f.container.clone()),
        ("id", format!("/{}", f.id)),
        ("image", f.image.clone()),
        ("name", f.id.clone()),
        ("namespace", f.namespace.clone()),
        ("pod", f.pod.clone()),
    ]
}

fn with(mut labels: Labels, name: &'static str, value: &str) -> Labels {
    labels.push((name, value.to_owned()));
    labels.sort_by_key(|(name, _)| *name);
    labels
}

/// The specification that a running container was made from.
fn spec<'a>(pods: &'a [std::sync::Arc<Pod>], f: &Figures) -> Option<&'a Container> {
    let pod = pods.iter().find(|pod| pod.metadata.uid.as_deref() == Some(&f.uid))?;
    let spec = pod.spec.as_ref()?;
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    all.into_iter().find(|container| container.name == f.container)
}

/// A pod's interfaces belong to its sandbox, which has no container's name.
fn interfaces(stats: &[PodSandboxStats]) -> Vec<(Labels, &NetworkInterfaceUsage)> {
    let of_pod = |pod: &PodSandboxStats| -> Option<Labels> {
        let attributes = pod.attributes.as_ref()?;
        let label = |name: &str| attributes.labels.get(name).cloned();
        Some(vec![
            ("container", String::new()),
            ("id", format!("/{}", attributes.id)),
            ("image", String::new()),
            ("name", attributes.id.clone()),
            ("namespace", label(names::POD_NAMESPACE)?),
            ("pod", label(names::POD_NAME)?),
        ])
    };
    let mut all = Vec::new();
    for pod in stats {
        let network = pod.linux.as_ref().and_then(|linux| linux.network.as_ref());
        if let (Some(labels), Some(network)) = (of_pod(pod), network) {
            for interface in &network.interfaces {
                all.push((with(labels.clone(), "interface", &interface.name), interface));
            }
        }
    }
    all
}

/// Answers with all series; with those of the machine alone while the runtime is away.
pub async fn answer(server: &Server) -> Answer {
    let stats = figures(server).await;
    let failed = stats.is_err();
    let stats = stats.unwrap_or_default();
    let request = ListPodSandboxStatsRequest { filter: None };
    let pods = server.shared.cri.runtime().list_pod_sandbox_stats(request).await;
    let sandboxes = pods.map(|answer| answer.into_inner().stats).unwrap_or_default();
    let pods = server.pods.list();
    let mut out = String::new();

    let version = vec![
        ("cadvisorRevision", String::new()),
        ("cadvisorVersion", String::new()),
        ("dockerVersion", String::new()),
        ("kernelVersion", server.shared.machine.kernel.clone()),
        ("osVersion", server.shared.machine.os_image.clone()),
    ];
    Family::gauge(
        "cadvisor_version_info",
        "A metric with a constant '1' value labeled by kernel version, OS version, docker version, cadvisor version & cadvisor revision.",
    )
    .rows(&mut out, [(version, 1.0)]);
    let cpu = stats.iter().map(|f| (with(labels(f), "cpu", "total"), seconds(f.cpu_nanoseconds), f.at));
    let node = Node::read(&server.shared);
    let root = |id: &str| -> Labels {
        ["container", "id", "image", "name", "namespace", "pod"]
            .into_iter()
            .map(|name| (name, if name == "id" { id.to_owned() } else { String::new() }))
            .collect()
    };
    let whole_node = (with(root("/"), "cpu", "total"), seconds(node.cpu_nanoseconds), node.at);
    Family::counter("container_cpu_usage_seconds_total", "Cumulative cpu time consumed in seconds.")
        .timed(&mut out, std::iter::once(whole_node).chain(cpu));
    let faults = stats.iter().flat_map(|f| {
        [("pgfault", f.page_faults), ("pgmajfault", f.major_page_faults)].map(|(kind, count)| {
            let labels = with(with(labels(f), "failure_type", kind), "scope", "container");
            (labels, count as f64, f.at)
        })
    });
    Family::counter("container_memory_failures_total", "Cumulative count of memory allocation failures.")
        .timed(&mut out, faults);
    let of_node: [f64; 6] = [
        node.usage as f64,
        node.working_set as f64,
        node.rss as f64,
        0.0,
        0.0,
        node.started.as_second() as f64,
    ];
    for ((family, of), of_node) in OF_CONTAINERS.iter().zip(of_node) {
        let whole_node = (of_node != 0.0).then(|| (root("/"), of_node, node.at));
        family.timed(&mut out, whole_node.into_iter().chain(stats.iter().map(|f| (labels(f), of(f), f.at))));
    }
    for (family, of) in OF_SPECS {
        let rows = stats.iter().filter_map(|f| Some((labels(f), of(spec(&pods, f)?)?)));
        family.rows(&mut out, rows);
    }
    let interfaces = interfaces(&sandboxes);
    for (family, of) in OF_INTERFACES {
        let rows = interfaces.iter().filter_map(|(labels, i)| Some((labels.clone(), of(i)?.value as f64)));
        family.rows(&mut out, rows);
    }
    Family::gauge(
        "container_scrape_error",
        "1 if there was an error while getting container metrics, 0 otherwise",
    )
    .rows(&mut out, one(f64::from(u8::from(failed))));
    let machine = &server.shared.machine;
    Family::gauge("machine_cpu_cores", "Number of logical CPU cores.")
        .rows(&mut out, one(machine.cpus as f64));
    Family::gauge("machine_memory_bytes", "Amount of memory installed on the machine.")
        .rows(&mut out, one(machine.memory as f64));
    whole(StatusCode::OK, FORMAT, out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn limits_are_told_as_the_kernel_knows_them() {
        let container: Container = serde_json::from_value(json!({"name": "c",
            "resources": {"limits": {"cpu": "250m", "memory": "64Mi"}}}))
        .unwrap();
        let free = Container::default();
        let told: Vec<_> = OF_SPECS.iter().map(|(_, of)| (of(&container), of(&free))).collect();
        assert_eq!(told[0], (Some(67_108_864.0), Some(0.0)));
        assert_eq!(told[1].0, Some(100_000.0));
        assert_eq!(told[2], (Some(25_000.0), None));
    }

    #[test]
    fn labels_are_in_the_order_of_their_names() {
        let labels = with(vec![("container", "c".into()), ("pod", "p".into())], "interface", "eth0");
        assert_eq!(
            labels.iter().map(|(name, _)| *name).collect::<Vec<_>>(),
            ["container", "interface", "pod"]
        );
    }
}
