//! Processors and memory of their own: with the static policies, containers of guaranteed pods have whole processors alone,
//! and all others leave them to them; what they have is of one NUMA node, or they are refused.

mod support;

use std::time::Duration;

use krate_testkit::eventually;
use serde_json::{Value, json};

use support::{Cluster, image};

const SOON: Duration = Duration::from_mins(1);
const IMAGE: &str = "docker.io/library/busybox:latest";
const CONFIGURATION: &str = "
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cpuManagerPolicy: static
reservedSystemCPUs: '0'
memoryManagerPolicy: Static
systemReserved: {memory: 412Mi}
reservedMemory: [{numaNode: 0, limits: {memory: 512Mi}}]
evictionHard: {memory.available: 100Mi}
topologyManagerPolicy: single-numa-node
topologyManagerScope: pod
";

/// What a container may use, as the kernel tells: `Cpus` or `Mems`.
fn allowed(cluster: &Cluster, pod: &str, what: &str) -> String {
    let said = cluster.kubectl(&format!("-n pods exec {pod} -- grep {what}_allowed_list /proc/self/status"));
    said.split_whitespace().last().unwrap_or_default().to_owned()
}

#[test]
fn a_guaranteed_pod_has_a_processor_alone() {
    let (true, Some(kubectl), Some(busybox)) =
        (krate_testkit::available(), support::kubectl(), image::busybox())
    else {
        return;
    };
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online").expect("read").trim().to_owned();
    if online == "0" {
        return eprintln!("SKIPPED: one processor cannot be shared out");
    }
    let files = tempfile::tempdir().expect("a directory");
    let configuration = files.path().join("kubelet.yaml");
    std::fs::write(&configuration, CONFIGURATION).expect("written");
    let cluster = Cluster::start(kubectl, &["--kubelet-config", &configuration.to_string_lossy()]);
    cluster.import(&busybox, IMAGE, "latest");
    cluster.kubectl("create namespace pods");
    cluster.takes_pods("pods");
    let create = |name: &str, resources: &Value| {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "pods"},
            "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "main", "image": IMAGE,
                "imagePullPolicy": "IfNotPresent", "command": ["sleep", "1000"], "resources": resources}]}});
        std::fs::write(files.path().join("pod.json"), pod.to_string()).expect("written");
        cluster.kubectl(&format!("create -f {}", files.path().join("pod.json").display()));
        cluster.kubectl(&format!("-n pods wait --for=condition=Ready pod/{name} --timeout=60s"));
    };
    create("shared", &json!({}));
    assert_eq!(allowed(&cluster, "shared", "Cpus"), online);
    create("own", &json!({"limits": {"cpu": "1", "memory": "32Mi"}}));
    let own: u32 = allowed(&cluster, "own", "Cpus").parse().expect("it has one");
    assert_ne!(own, 0, "which is reserved");
    // The kernel took the nodes of its memory too: of this machine, all that there are.
    assert!(allowed(&cluster, "own", "Mems").starts_with('0'));
    let nodes = cluster.kubectl("get nodes -o name");
    let node = nodes.trim().trim_start_matches("node/");
    let figures = cluster.kubectl(&format!("get --raw /api/v1/nodes/{node}/proxy/metrics"));
    for line in [
        "kubelet_cpu_manager_exclusive_cpu_allocation_count 1",
        "kubelet_memory_manager_pinning_requests_total 1",
        "kubelet_memory_manager_pinning_errors_total 0",
        "kubelet_topology_manager_admission_errors_total 0",
    ] {
        assert!(figures.lines().any(|found| found == line), "{line}\n{figures}");
    }
    let left = eventually("the other one leaves it", SOON, || {
        let left = allowed(&cluster, "shared", "Cpus");
        (left != online).then_some(left)
    });
    let parts = left.split(',').flat_map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.parse::<u32>().expect("a number");
        number(first)..=number(last)
    });
    assert!(parts.into_iter().all(|cpu| cpu != own), "{left} has {own}");
    cluster.kubectl("-n pods delete pod own --wait=true");
    eventually("it has it back", SOON, || (allowed(&cluster, "shared", "Cpus") == online).then_some(()));
}
