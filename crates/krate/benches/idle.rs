//! What a node costs that has nothing to do but to look whether its pods are well: `cargo bench -p krate --bench idle`, as root.
//!
//! A whole cluster is started on a host of its own, with as many pods as a node takes, each with a readiness probe and a
//! liveness probe every ten seconds. Once all are ready, it is read what the processors have worked for Krate in a minute.
//! `KRATE_IDLE_PODS`, `KRATE_IDLE_SECONDS` and `KRATE_IDLE_PROBE` (`http`, `tcp`, `exec`) ask for others.

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use krate_testkit::eventually;
use serde_json::{Value, json};

use support::{Cluster, image};

const KRATE: &str = env!("CARGO_BIN_EXE_krate");
const IMAGE: &str = "docker.io/library/busybox:latest";
/// How long all pods may take until they are ready.
const READY: Duration = Duration::from_mins(10);
/// How long what their start has set in motion may take to come to rest.
const REST: Duration = Duration::from_secs(20);

fn main() {
    let (true, Some(kubectl), Some(busybox)) =
        (krate_testkit::available(), support::kubectl(), image::busybox())
    else {
        return;
    };
    let asked = |name: &str, usual: u64| {
        std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(usual)
    };
    let (pods, seconds) = (asked("KRATE_IDLE_PODS", 110), asked("KRATE_IDLE_SECONDS", 60));
    let probe = std::env::var("KRATE_IDLE_PROBE").unwrap_or_else(|_| "http".to_owned());

    let cluster = Cluster::start(kubectl, &[]);
    cluster.import(&busybox, IMAGE, "latest");
    cluster.takes_pods("default");
    let all: Vec<Value> = (0..pods).map(|number| pod(number, &probe)).collect();
    let began = Instant::now();
    cluster.create(&all);
    eventually("all pods are ready", READY, || {
        let ready = cluster.kubectl("get pods -o jsonpath={.items[*].status.containerStatuses[*].ready}");
        (ready.split_whitespace().filter(|ready| *ready == "true").count() as u64 == pods).then_some(())
    });
    println!("{pods} pods ready after {:.1} s", began.elapsed().as_secs_f64());

    // Nothing is waited for here: this is the time that is measured, and that before it.
    std::thread::sleep(REST);
    let before = used(cluster.pid());
    let began = Instant::now();
    std::thread::sleep(Duration::from_secs(seconds));
    let (after, passed) = (used(cluster.pid()), began.elapsed());
    for (who, spent) in &after {
        let worked = spent.saturating_sub(before.get(who).copied().unwrap_or_default());
        let percent = worked.as_secs_f64() / passed.as_secs_f64() * 100.0;
        println!("{who}: {percent:.2} % of a core ({worked:?} in {passed:.0?})");
    }
}

fn pod(number: u64, probe: &str) -> Value {
    let handler = match probe {
        "http" => json!({"httpGet": {"path": "/", "port": 80}}),
        "tcp" => json!({"tcpSocket": {"port": 80}}),
        "exec" => json!({"exec": {"command": ["true"]}}),
        other => panic!("KRATE_IDLE_PROBE {other:?} is none of http, tcp, exec"),
    };
    let mut every_ten_seconds = handler;
    every_ten_seconds["periodSeconds"] = 10.into();
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("idle-{number}"), "namespace": "default"},
        "spec": {"terminationGracePeriodSeconds": 1, "automountServiceAccountToken": false,
            "containers": [{"name": "main", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
                "command": ["sh", "-c", "echo well > /tmp/index.html; exec httpd -f -p 80 -h /tmp"],
                "readinessProbe": every_ten_seconds, "livenessProbe": every_ten_seconds}]}})
}

/// What the processors have worked for the server, and for the shims together.
fn used(server: u32) -> BTreeMap<&'static str, Duration> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let is_krate = std::fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe == Path::new(KRATE));
        if is_krate {
            let who = if pid == server { "krate" } else { "shims" };
            *all.entry(who).or_default() += worked(&entry.path());
        }
    }
    all
}

/// What the processors have worked for a process itself.
fn worked(process: &Path) -> Duration {
    let stat = std::fs::read_to_string(process.join("stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = fields.iter().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    // The kernel counts hundredths of seconds, whatever its own clock is.
    Duration::from_millis(ticks * 10)
}
