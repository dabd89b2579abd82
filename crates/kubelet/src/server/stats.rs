//! Figures for people and for autoscaling: the summary, the resource metrics, and the kubelet's own.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use http::StatusCode;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::figures::{Figures, Node, figures, measure};
use super::text_format::{FORMAT, Family, one, seconds};
use super::{Answer, Server, json, volumes, whole};
use crate::disks::{Fill, Place, RuntimeDisks};
use crate::observed::timestamp;
use crate::static_pods::{is_static, mirrored};

/// `/stats/summary`
pub async fn summary(server: &Server) -> Answer {
    let (node, containers) = match measure(server).await {
        Ok(measured) => measured,
        Err(answer) => return *answer,
    };
    let mut pods: BTreeMap<&str, Vec<&Figures>> = BTreeMap::new();
    for figure in &containers {
        pods.entry(&figure.uid).or_default().push(figure);
    }
    let starts: BTreeMap<String, String> = server
        .pods
        .list()
        .iter()
        .filter_map(|pod| {
            Some((pod.metadata.uid.clone()?, pod.status.as_ref()?.start_time.as_ref()?.0.to_string()))
        })
        .collect();
    let mut of_pods: Vec<Value> =
        pods.values().map(|all| of_pod(all, starts.get(&all[0].uid).map(String::as_str))).collect();
    for (of, all) in of_pods.iter_mut().zip(pods.values()) {
        let told = volumes::of_pod(server, &all[0].uid, &all[0].namespace).await;
        if !told.is_empty() {
            of["volume"] = told.into();
        }
    }
    let at = node.at.to_string();
    let mut told = json!({
        "node": {
            "nodeName": server.shared.config.node_name,
            "startTime": node.started.to_string(),
            "cpu": cpu(&at, node.nanocores, node.cpu_nanoseconds),
            "memory": {"time": at, "availableBytes": node.available, "usageBytes": node.usage,
                "workingSetBytes": node.working_set, "rssBytes": node.rss,
                "pageFaults": node.page_faults, "majorPageFaults": node.major_page_faults},
            "fs": of_node(&server.shared.config.root_dir, &at),
            "rlimit": rlimit(&at),
        },
        "pods": of_pods});
    if let Ok(disks) = RuntimeDisks::ask(&server.shared.cri).await {
        told["node"]["runtime"] =
            json!({"imageFs": of_runtime(&disks.images), "containerFs": of_runtime(&disks.containers)});
    }
    json(&told)
}

/// The file system that the node's own things are on: what is used is what is not free.
fn of_node(root: &Path, at: &str) -> Value {
    let Some(fill) = Fill::of(root) else { return json!({"time": at}) };
    let mut told = filled(&fill, at);
    told["usedBytes"] = (fill.capacity - fill.available).into();
    told["inodesUsed"] = (fill.inodes - fill.inodes_free).into();
    told
}

/// One of the runtime's: what is used is what the runtime says to use.
fn of_runtime(place: &Place) -> Value {
    let at = timestamp(place.at).to_string();
    let mut told = Fill::of(&place.path).map_or_else(|| json!({"time": at}), |fill| filled(&fill, &at));
    told["usedBytes"] = place.used.into();
    if let Some(inodes) = place.inodes_used {
        told["inodesUsed"] = inodes.into();
    }
    told
}

fn filled(fill: &Fill, at: &str) -> Value {
    json!({"time": at, "capacityBytes": fill.capacity, "availableBytes": fill.available,
        "inodes": fill.inodes, "inodesFree": fill.inodes_free})
}

fn rlimit(at: &str) -> Value {
    let (now, most) = crate::node::processes();
    json!({"time": at, "maxpid": most, "curproc": now})
}

/// A rate that is not known yet is left out.
fn cpu(at: &str, nanocores: Option<u64>, nanoseconds: u64) -> Value {
    let mut out = json!({"time": at, "usageCoreNanoSeconds": nanoseconds});
    if let Some(nanocores) = nanocores {
        out["usageNanoCores"] = nanocores.into();
    }
    out
}

fn of_container(f: &Figures) -> Value {
    let at = f.at.to_string();
    let mut memory = json!({"time": at, "usageBytes": f.usage, "workingSetBytes": f.working_set,
        "rssBytes": f.rss, "pageFaults": f.page_faults, "majorPageFaults": f.major_page_faults});
    if let Some(available) = f.available {
        memory["availableBytes"] = available.into();
    }
    json!({"name": f.container, "startTime": f.started.to_string(),
        "cpu": cpu(&at, f.nanocores, f.cpu_nanoseconds), "memory": memory,
        "rootfs": {"time": at, "usedBytes": f.written, "inodesUsed": f.inodes}})
}

fn of_pod(all: &[&Figures], started: Option<&str>) -> Value {
    let first = all[0];
    let at = first.at.to_string();
    let sum = |of: fn(&Figures) -> u64| all.iter().map(|f| of(f)).sum::<u64>();
    let nanocores: Option<u64> = all.iter().map(|f| f.nanocores).sum();
    let mut out = json!({
        "podRef": {"name": first.pod, "namespace": first.namespace, "uid": first.uid},
        "containers": all.iter().map(|f| of_container(f)).collect::<Vec<_>>(),
        "cpu": cpu(&at, nanocores, sum(|f| f.cpu_nanoseconds)),
        "memory": {"time": at, "usageBytes": sum(|f| f.usage), "workingSetBytes": sum(|f| f.working_set),
            "rssBytes": sum(|f| f.rss), "pageFaults": sum(|f| f.page_faults),
            "majorPageFaults": sum(|f| f.major_page_faults)},
        "ephemeral-storage": {"time": at, "usedBytes": sum(|f| f.written), "inodesUsed": sum(|f| f.inodes)}});
    if let Some(started) = started {
        out["startTime"] = started.into();
    }
    out
}

/// `/metrics/resource`: the few series that autoscaling needs, each with the time of its reading.
pub async fn resource(server: &Server) -> Answer {
    let node = Node::read(&server.shared);
    let stats = figures(server).await;
    let failed = stats.is_err();
    let stats = stats.unwrap_or_default();
    let mut out = String::new();
    let mut pods: BTreeMap<(&str, &str), (u64, u64, Timestamp)> = BTreeMap::new();
    for f in &stats {
        let sum = pods.entry((&f.namespace, &f.pod)).or_insert((0, 0, f.at));
        sum.0 += f.cpu_nanoseconds;
        sum.1 += f.working_set;
    }
    let labels = |f: &Figures| {
        vec![("container", f.container.clone()), ("namespace", f.namespace.clone()), ("pod", f.pod.clone())]
    };
    let of_pod = |(namespace, pod): &(&str, &str)| {
        vec![("namespace", (*namespace).to_owned()), ("pod", (*pod).to_owned())]
    };
    Family::counter(
        "container_cpu_usage_seconds_total",
        "[STABLE] Cumulative cpu time consumed by the container in core-seconds",
    )
    .timed(&mut out, stats.iter().map(|f| (labels(f), seconds(f.cpu_nanoseconds), f.at)));
    Family::gauge(
        "container_memory_working_set_bytes",
        "[STABLE] Current working set of the container in bytes",
    )
    .timed(&mut out, stats.iter().map(|f| (labels(f), f.working_set as f64, f.at)));
    Family::gauge(
        "container_start_time_seconds",
        "[STABLE] Start time of the container since unix epoch in seconds",
    )
    .rows(&mut out, stats.iter().map(|f| (labels(f), f.started.as_nanosecond() as f64 / 1e9)));
    Family::counter(
        "node_cpu_usage_seconds_total",
        "[STABLE] Cumulative cpu time consumed by the node in core-seconds",
    )
    .timed(&mut out, [(Vec::new(), seconds(node.cpu_nanoseconds), node.at)]);
    Family::gauge("node_memory_working_set_bytes", "[STABLE] Current working set of the node in bytes")
        .timed(&mut out, [(Vec::new(), node.working_set as f64, node.at)]);
    Family::counter(
        "pod_cpu_usage_seconds_total",
        "[STABLE] Cumulative cpu time consumed by the pod in core-seconds",
    )
    .timed(&mut out, pods.iter().map(|(pod, (cpu, _, at))| (of_pod(pod), seconds(*cpu), *at)));
    Family::gauge("pod_memory_working_set_bytes", "[STABLE] Current working set of the pod in bytes")
        .timed(&mut out, pods.iter().map(|(pod, (_, memory, at))| (of_pod(pod), *memory as f64, *at)));
    Family::gauge(
        "resource_scrape_error",
        "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise",
    )
    .rows(&mut out, one(f64::from(u8::from(failed))));
    whole(StatusCode::OK, FORMAT, out)
}

/// `/metrics/probes`
pub fn probes(server: &Server) -> Answer {
    let mut out = String::new();
    let rows = server.shared.probes.all().into_iter().map(|(of, result, count)| {
        let labels = vec![
            ("container", of.container),
            ("namespace", of.namespace),
            ("pod", of.pod),
            ("pod_uid", of.uid),
            ("probe_type", of.kind.to_owned()),
            ("result", result.to_owned()),
        ];
        (labels, count as f64)
    });
    Family::counter(
        "prober_probe_total",
        "[BETA] Cumulative number of a liveness, readiness or startup probe for a container by result.",
    )
    .rows(&mut out, rows);
    whole(StatusCode::OK, FORMAT, out)
}

/// How many pods there are of each kind.
fn gauges_of_pods(server: &Server, out: &mut String) {
    let (all, active) = (server.shared.all_pods(), server.shared.active_pods());
    let by_source = |pods: &[Arc<Pod>]| {
        let of_files = pods.iter().filter(|pod| is_static(pod)).count();
        let row = |is_static: &str, count: usize| (vec![("static", is_static.to_owned())], count as f64);
        [row("", pods.len() - of_files), row("true", of_files)]
    };
    Family::gauge("kubelet_desired_pods", "[ALPHA] The number of pods the kubelet is being instructed to run. static is true if the pod is not from the apiserver.")
        .rows(out, by_source(&all));
    Family::gauge("kubelet_active_pods", "[ALPHA] The number of pods the kubelet considers active and which are being considered when admitting new pods. static is true if the pod is not from the apiserver.")
        .rows(out, by_source(&active));
    let images = server.pods.list().iter().filter(|pod| mirrored(pod).is_some()).count();
    Family::gauge(
        "kubelet_mirror_pods",
        "[ALPHA] The number of mirror pods the kubelet will try to create (one per admitted static pod)",
    )
    .rows(out, one(images as f64));
    let added = |pod: &Arc<Pod>| {
        pod.spec.as_ref().and_then(|spec| spec.ephemeral_containers.as_ref()).map_or(0, Vec::len)
    };
    Family::gauge(
        "kubelet_managed_ephemeral_containers",
        "[ALPHA] Current number of ephemeral containers in pods managed by this kubelet.",
    )
    .rows(out, one(all.iter().map(added).sum::<usize>() as f64));
    Family::gauge("kubelet_cgroup_version", "[ALPHA] cgroup version on the hosts.")
        .rows(out, one(f64::from(server.shared.cgroups.version())));
}

/// `/metrics`: the kubelet's own figures, and those of its queues and its client.
pub async fn own(server: &Server) -> Answer {
    let mut out = String::new();
    let name = vec![("node", server.shared.config.node_name.clone())];
    Family::gauge("kubelet_node_name", "[ALPHA] The node's name. The count is always 1.")
        .rows(&mut out, [(name, 1.0)]);
    Family::gauge(
        "kubelet_metrics_provider",
        "[ALPHA] Metrics provider used by kubelet to collect container stats. Values can be 'cadvisor' and 'cri'",
    )
    .rows(&mut out, [(vec![("provider", "cri".to_owned())], 1.0)]);
    let ready = |s: &k8s_cri::v1::PodSandbox| s.state() == k8s_cri::v1::PodSandboxState::SandboxReady;
    if let Ok(sandboxes) = server.shared.cri.sandboxes(None).await {
        let running = sandboxes.iter().filter(|s| ready(s)).count();
        Family::gauge("kubelet_running_pods", "[BETA] Number of pods that have a running pod sandbox")
            .rows(&mut out, one(running as f64));
    }
    if let Ok(containers) = server.shared.cri.containers(None).await {
        let mut states: BTreeMap<&str, u32> = BTreeMap::new();
        for container in &containers {
            let state = match container.state() {
                k8s_cri::v1::ContainerState::ContainerCreated => "created",
                k8s_cri::v1::ContainerState::ContainerRunning => "running",
                k8s_cri::v1::ContainerState::ContainerExited => "exited",
                k8s_cri::v1::ContainerState::ContainerUnknown => "unknown",
            };
            *states.entry(state).or_default() += 1;
        }
        let rows = states
            .iter()
            .map(|(state, count)| (vec![("container_state", (*state).to_owned())], f64::from(*count)));
        Family::gauge("kubelet_running_containers", "[BETA] Number of containers currently running")
            .rows(&mut out, rows);
    }
    server.shared.topology.counts.write(&mut out);
    server.shared.cpus.write(&mut out);
    server.shared.node_shutdown.write_figures(&mut out);
    if let Some(certificates) = &server.shared.certificates {
        certificates.write(&mut out);
    }
    let (stat, limits) =
        (std::fs::read_to_string("/proc/self/stat").unwrap_or_default(), std::fs::read_dir("/proc/self/fd"));
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let field = |index: usize| fields.get(index).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
    Family::counter("process_cpu_seconds_total", "Total user and system CPU time spent in seconds.")
        .rows(&mut out, one((field(11) + field(12)) as f64 / 100.0));
    Family::gauge("process_resident_memory_bytes", "Resident memory size in bytes.")
        .rows(&mut out, one((field(21) * 4096) as f64));
    Family::gauge("process_open_fds", "Number of open file descriptors.")
        .rows(&mut out, one(limits.map_or(0, Iterator::count) as f64));
    gauges_of_pods(server, &mut out);
    crate::instruments::write(&mut out);
    server.shared.tally.write(&mut out);
    server.shared.working.write(&mut out);
    crate::certificates::write_figures(&server.shared, &mut out);
    volumes::gauges(server, &mut out).await;
    out.push_str(&krate_client::metrics::text());
    server.shared.dra.write_figures(&mut out);
    whole(StatusCode::OK, FORMAT, out)
}
