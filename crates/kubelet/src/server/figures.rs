//! What the node and its containers use, read from the kernel and the runtime.

use std::collections::HashMap;
use std::time::Instant;

use http::StatusCode;
use jiff::Timestamp;
use k8s_cri::v1::{ContainerState, ContainerStats, ListContainerStatsRequest, UInt64Value};

use super::rates::{Reading, WINDOW};
use super::{Answer, Server, text};
use crate::names;
use crate::node::Machine;
use crate::observed::timestamp;
use crate::shared::Shared;

/// The name under which the node's own reading is kept; no container has it.
const NODE: &str = "";

/// The figures of one running container, with whose they are.
#[derive(Clone, Debug)]
pub struct Figures {
    pub id: String,
    pub image: String,
    pub namespace: String,
    pub pod: String,
    pub uid: String,
    pub container: String,
    pub at: Timestamp,
    pub started: Timestamp,
    pub cpu_nanoseconds: u64,
    /// None until it has been read twice.
    pub nanocores: Option<u64>,
    pub working_set: u64,
    pub usage: u64,
    pub rss: u64,
    /// Up to the limit; none without one.
    pub available: Option<u64>,
    pub page_faults: u64,
    pub major_page_faults: u64,
    /// What it has written beside its volumes, in bytes.
    pub written: u64,
    pub inodes: u64,
}

/// The machine's figures.
#[derive(Clone, Debug)]
pub struct Node {
    pub at: Timestamp,
    pub started: Timestamp,
    pub cpu_nanoseconds: u64,
    pub nanocores: Option<u64>,
    pub available: i64,
    pub usage: i64,
    pub working_set: i64,
    pub rss: u64,
    pub page_faults: u64,
    pub major_page_faults: u64,
}

impl Node {
    pub fn read(shared: &Shared) -> Self {
        let file = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let (stat, memory, paging) = (file("/proc/stat"), file("/proc/meminfo"), file("/proc/vmstat"));
        let field = |text: &str, name: &str| -> u64 {
            let found = text
                .lines()
                .find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok());
            found.unwrap_or(0)
        };
        let available = Machine::available_memory();
        let free = field(&memory, "MemFree:").cast_signed() * 1024;
        Self {
            at: Timestamp::now(),
            started: Timestamp::from_second(field(&stat, "btime ").cast_signed()).unwrap_or_default(),
            cpu_nanoseconds: worked(&stat),
            nanocores: None,
            available,
            usage: shared.machine.memory - free,
            working_set: shared.machine.memory - available,
            rss: field(&memory, "AnonPages:") * 1024,
            page_faults: field(&paging, "pgfault "),
            major_page_faults: field(&paging, "pgmajfault "),
        }
    }
}

/// Nanoseconds that the machine's processors have worked, from `/proc/stat`.
fn worked(stat: &str) -> u64 {
    let first = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = first.split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    // user, nice, system, then irq, softirq, steal; idle and waiting between them are not work.
    ticks.iter().take(3).chain(ticks.iter().skip(5).take(3)).sum::<u64>() * 10_000_000
}

fn number(value: Option<&UInt64Value>) -> u64 {
    value.map_or(0, |v| v.value)
}

/// The figures of all running containers, without rates, in the order of their names.
pub async fn figures(server: &Server) -> Result<Vec<Figures>, Box<Answer>> {
    let failed = |s: tonic::Status| Box::new(text(StatusCode::INTERNAL_SERVER_ERROR, s.message().to_owned()));
    let request = ListContainerStatsRequest { filter: None };
    let stats = server.shared.cri.runtime().list_container_stats(request).await.map_err(failed)?;
    let containers = server.shared.cri.containers(None).await.map_err(failed)?;
    let running: HashMap<String, (String, i64)> = containers
        .into_iter()
        .filter(|c| c.state() == ContainerState::ContainerRunning)
        .map(|c| (c.id, (c.image.map(|i| i.image).unwrap_or_default(), c.created_at)))
        .collect();
    let mut all: Vec<Figures> =
        stats.into_inner().stats.iter().filter_map(|stats| of_container(stats, &running)).collect();
    all.sort_by(|a, b| (&a.namespace, &a.pod, &a.container).cmp(&(&b.namespace, &b.pod, &b.container)));
    Ok(all)
}

fn of_container(stats: &ContainerStats, running: &HashMap<String, (String, i64)>) -> Option<Figures> {
    let attributes = stats.attributes.as_ref()?;
    let (image, created) = running.get(&attributes.id)?;
    let label = |name: &str| attributes.labels.get(name).cloned();
    let (cpu, memory) = (stats.cpu.as_ref()?, stats.memory.as_ref()?);
    let layer = stats.writable_layer.as_ref();
    Some(Figures {
        id: attributes.id.clone(),
        image: image.clone(),
        namespace: label(names::POD_NAMESPACE)?,
        pod: label(names::POD_NAME)?,
        uid: label(names::POD_UID)?,
        container: label(names::CONTAINER_NAME)?,
        at: timestamp(cpu.timestamp),
        started: timestamp(*created),
        cpu_nanoseconds: number(cpu.usage_core_nano_seconds.as_ref()),
        nanocores: None,
        working_set: number(memory.working_set_bytes.as_ref()),
        usage: number(memory.usage_bytes.as_ref()),
        rss: number(memory.rss_bytes.as_ref()),
        available: memory.available_bytes.as_ref().map(|v| v.value),
        page_faults: number(memory.page_faults.as_ref()),
        major_page_faults: number(memory.major_page_faults.as_ref()),
        written: number(layer.and_then(|l| l.used_bytes.as_ref())),
        inodes: number(layer.and_then(|l| l.inodes_used.as_ref())),
    })
}

fn reading(at: Instant, node: &Node, containers: &[Figures]) -> Reading {
    let of_containers = containers.iter().map(|f| (f.id.clone(), f.cpu_nanoseconds));
    Reading { at, used: of_containers.chain([(NODE.to_owned(), node.cpu_nanoseconds)]).collect() }
}

/// The node's figures and those of its containers, with rates.
pub async fn measure(server: &Server) -> Result<(Node, Vec<Figures>), Box<Answer>> {
    let read = async || -> Result<_, Box<Answer>> {
        let at = Instant::now();
        let (node, containers) = (Node::read(&server.shared), figures(server).await?);
        let reading = reading(at, &node, &containers);
        Ok((node, containers, reading))
    };
    let (mut node, mut containers, mut now) = read().await?;
    let earlier = if let Some(earlier) = server.rates.earlier(&now) {
        earlier
    } else {
        let first = now;
        tokio::time::sleep_until((first.at + WINDOW).into()).await;
        (node, containers, now) = read().await?;
        first
    };
    node.nanocores = earlier.rate(&now, NODE);
    for figures in &mut containers {
        figures.nanocores = earlier.rate(&now, &figures.id);
    }
    Ok((node, containers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_waiting_processors_do_not_work() {
        assert_eq!(worked("cpu  1 2 3 1000 500 10 20 30 0 0\ncpu0 9 9 9"), 66 * 10_000_000);
    }
}
