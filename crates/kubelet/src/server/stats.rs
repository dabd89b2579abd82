//! Figures: what containers and pods use, as the runtime counts it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use http::StatusCode;
use jiff::Timestamp;
use k8s_cri::v1::{ContainerStats, ListContainerStatsRequest, UInt64Value};
use serde_json::{Value, json};

use super::{Answer, Server, json, text, whole};
use crate::names;
use crate::node::Machine;
use crate::observed::timestamp;
use crate::shared::Shared;

/// Prometheus' text format.
const FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

async fn containers(server: &Server) -> Result<Vec<ContainerStats>, Box<Answer>> {
    let answer =
        server.shared.cri.runtime().list_container_stats(ListContainerStatsRequest { filter: None }).await;
    answer
        .map(|a| a.into_inner().stats)
        .map_err(|s| Box::new(text(StatusCode::INTERNAL_SERVER_ERROR, s.message().to_owned())))
}

fn number(value: Option<&UInt64Value>) -> u64 {
    value.map_or(0, |v| v.value)
}

/// Reads one figure.
type Read = fn(&Figures) -> u64;

/// The figures of one container, with whose they are.
struct Figures {
    namespace: String,
    pod: String,
    uid: String,
    container: String,
    at: Timestamp,
    cpu_nanoseconds: u64,
    nanocores: u64,
    working_set: u64,
    usage: u64,
    rss: u64,
    started: Timestamp,
}

fn figures(stats: &[ContainerStats]) -> Vec<Figures> {
    let mut all: Vec<Figures> = stats
        .iter()
        .filter_map(|stats| {
            let attributes = stats.attributes.as_ref()?;
            let label = |name: &str| attributes.labels.get(name).cloned();
            let (cpu, memory) = (stats.cpu.as_ref()?, stats.memory.as_ref()?);
            Some(Figures {
                namespace: label(names::POD_NAMESPACE)?,
                pod: label(names::POD_NAME)?,
                uid: label(names::POD_UID)?,
                container: label(names::CONTAINER_NAME)?,
                at: timestamp(cpu.timestamp),
                cpu_nanoseconds: number(cpu.usage_core_nano_seconds.as_ref()),
                nanocores: number(cpu.usage_nano_cores.as_ref()),
                working_set: number(memory.working_set_bytes.as_ref()),
                usage: number(memory.usage_bytes.as_ref()),
                rss: number(memory.rss_bytes.as_ref()),
                started: timestamp(memory.timestamp),
            })
        })
        .collect();
    all.sort_by(|a, b| (&a.namespace, &a.pod, &a.container).cmp(&(&b.namespace, &b.pod, &b.container)));
    all
}

/// Nanoseconds that the machine's processors have worked, and bytes of memory in use.
fn of_node(shared: &Shared) -> (u64, i64) {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks: Vec<u64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|n| n.parse().ok())
        .collect();
    // user, nice, system, then irq, softirq, steal; idle and waiting between them are not work.
    let worked: u64 = ticks.iter().take(3).chain(ticks.iter().skip(5).take(3)).sum();
    (worked * 10_000_000, shared.machine.memory - Machine::available_memory())
}

pub async fn summary(server: &Server) -> Answer {
    let stats = match containers(server).await {
        Ok(stats) => figures(&stats),
        Err(answer) => return *answer,
    };
    let mut pods: BTreeMap<String, Vec<&Figures>> = BTreeMap::new();
    for figure in &stats {
        pods.entry(figure.uid.clone()).or_default().push(figure);
    }
    let one = |f: &Figures| -> Value {
        json!({"name": f.container, "startTime": f.started.to_string(),
            "cpu": {"time": f.at.to_string(), "usageNanoCores": f.nanocores, "usageCoreNanoSeconds": f.cpu_nanoseconds},
            "memory": {"time": f.at.to_string(), "workingSetBytes": f.working_set, "usageBytes": f.usage, "rssBytes": f.rss}})
    };
    let of_pods: Vec<Value> = pods
        .values()
        .map(|all| {
            let sum = |of: fn(&Figures) -> u64| all.iter().map(|f| of(f)).sum::<u64>();
            let first = all[0];
            json!({
                "podRef": {"name": first.pod, "namespace": first.namespace, "uid": first.uid},
                "containers": all.iter().map(|f| one(f)).collect::<Vec<_>>(),
                "cpu": {"time": first.at.to_string(), "usageNanoCores": sum(|f| f.nanocores),
                    "usageCoreNanoSeconds": sum(|f| f.cpu_nanoseconds)},
                "memory": {"time": first.at.to_string(), "workingSetBytes": sum(|f| f.working_set),
                    "usageBytes": sum(|f| f.usage), "rssBytes": sum(|f| f.rss)}})
        })
        .collect();
    let (worked, used) = of_node(&server.shared);
    let (disk, free) = Machine::disk(&server.shared.config.root_dir);
    let now = Timestamp::now().to_string();
    json(&json!({
        "node": {"nodeName": server.shared.config.node_name,
            "cpu": {"time": now, "usageCoreNanoSeconds": worked},
            "memory": {"time": now, "availableBytes": Machine::available_memory(), "usageBytes": used, "workingSetBytes": used},
            "fs": {"time": now, "capacityBytes": disk, "availableBytes": free, "usedBytes": disk - free}},
        "pods": of_pods}))
}

fn family(out: &mut String, name: &str, kind: &str, help: &str, rows: impl Iterator<Item = (String, f64)>) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    for (labels, value) in rows {
        let _ = writeln!(out, "{name}{labels} {value}");
    }
}

fn labels(f: &Figures) -> String {
    format!("{{container=\"{}\",namespace=\"{}\",pod=\"{}\"}}", f.container, f.namespace, f.pod)
}

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

pub async fn resource(server: &Server) -> Answer {
    let stats = match containers(server).await {
        Ok(stats) => figures(&stats),
        Err(answer) => return *answer,
    };
    let mut out = String::new();
    let cpu = stats.iter().map(|f| (labels(f), seconds(f.cpu_nanoseconds)));
    family(
        &mut out,
        "container_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the container in core-seconds",
        cpu,
    );
    let memory = stats.iter().map(|f| (labels(f), f.working_set as f64));
    family(
        &mut out,
        "container_memory_working_set_bytes",
        "gauge",
        "Current working set of the container in bytes",
        memory,
    );
    let (worked, used) = of_node(&server.shared);
    let one = |value| std::iter::once((String::new(), value));
    family(
        &mut out,
        "node_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the node in core-seconds",
        one(seconds(worked)),
    );
    family(
        &mut out,
        "node_memory_working_set_bytes",
        "gauge",
        "Current working set of the node in bytes",
        one(used as f64),
    );
    family(
        &mut out,
        "resource_scrape_error",
        "gauge",
        "1 if there was an error while getting container metrics, 0 otherwise",
        one(0.0),
    );
    whole(StatusCode::OK, FORMAT, out)
}

pub async fn cadvisor(server: &Server) -> Answer {
    let stats = match containers(server).await {
        Ok(stats) => figures(&stats),
        Err(answer) => return *answer,
    };
    let mut out = String::new();
    let cpu = stats.iter().map(|f| (labels(f), seconds(f.cpu_nanoseconds)));
    family(
        &mut out,
        "container_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed in seconds.",
        cpu,
    );
    let table: [(&str, &str, Read); 3] = [
        ("container_memory_working_set_bytes", "Current working set in bytes.", |f| f.working_set),
        (
            "container_memory_usage_bytes",
            "Current memory usage in bytes, including all memory regardless of when it was accessed",
            |f| f.usage,
        ),
        ("container_memory_rss", "Size of RSS in bytes.", |f| f.rss),
    ];
    for (name, help, of) in table {
        family(&mut out, name, "gauge", help, stats.iter().map(|f| (labels(f), of(f) as f64)));
    }
    let machine = &server.shared.machine;
    let one = |value| std::iter::once((String::new(), value));
    family(&mut out, "machine_cpu_cores", "gauge", "Number of logical CPU cores.", one(machine.cpus as f64));
    family(
        &mut out,
        "machine_memory_bytes",
        "gauge",
        "Amount of memory installed on the machine.",
        one(machine.memory as f64),
    );
    whole(StatusCode::OK, FORMAT, out)
}

/// The kubelet's own figures.
pub fn own(server: &Server) -> Answer {
    let pods = server.pods.list();
    let mut phases: BTreeMap<String, f64> = BTreeMap::new();
    for pod in &pods {
        let phase = pod.status.as_ref().and_then(|s| s.phase.clone()).unwrap_or_else(|| "Pending".to_owned());
        *phases.entry(phase).or_default() += 1.0;
    }
    let mut out = String::new();
    let name = std::iter::once((format!("{{node=\"{}\"}}", server.shared.config.node_name), 1.0));
    family(&mut out, "kubelet_node_name", "gauge", "The node's name. The count is always 1.", name);
    let running = std::iter::once((String::new(), phases.get("Running").copied().unwrap_or(0.0)));
    family(
        &mut out,
        "kubelet_running_pods",
        "gauge",
        "Number of pods that have a running pod sandbox",
        running,
    );
    let desired = std::iter::once((String::new(), pods.len() as f64));
    family(
        &mut out,
        "kubelet_desired_pods",
        "gauge",
        "The number of pods the kubelet is being instructed to run.",
        desired,
    );
    whole(StatusCode::OK, FORMAT, out)
}
