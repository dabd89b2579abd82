//! Processors of their own: with the static policy, containers of guaranteed pods have whole ones alone, and all others
//! leave them to them.

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
";

/// The processors that a container may use, as the kernel tells.
fn allowed(cluster: &Cluster, pod: &str) -> String {
    let said = cluster.kubectl(&format!("-n pods exec {pod} -- grep Cpus_allowed_list /proc/self/status"));
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
    let file = cluster.dir.join("busybox.tar");
    image::write(&busybox, IMAGE, "latest", &file);
    cluster.krate_says(&["image", "import", &file.to_string_lossy()]);
    cluster.kubectl("create namespace pods");
    eventually("the namespace has its account", SOON, || {
        let out =
            cluster.kubectl_command("-n pods get serviceaccount default").output().expect("kubectl runs");
        out.status.success().then_some(())
    });
    let create = |name: &str, resources: &Value| {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "pods"},
            "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "main", "image": IMAGE,
                "imagePullPolicy": "IfNotPresent", "command": ["sleep", "1000"], "resources": resources}]}});
        std::fs::write(files.path().join("pod.json"), pod.to_string()).expect("written");
        cluster.kubectl(&format!("create -f {}", files.path().join("pod.json").display()));
        cluster.kubectl(&format!("-n pods wait --for=condition=Ready pod/{name} --timeout=60s"));
    };
    create("shared", &json!({}));
    assert_eq!(allowed(&cluster, "shared"), online);
    create("own", &json!({"limits": {"cpu": "1", "memory": "32Mi"}}));
    let own: u32 = allowed(&cluster, "own").parse().expect("it has one");
    assert_ne!(own, 0, "which is reserved");
    let left = eventually("the other one leaves it", SOON, || {
        let left = allowed(&cluster, "shared");
        (left != online).then_some(left)
    });
    let parts = left.split(',').flat_map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.parse::<u32>().expect("a number");
        number(first)..=number(last)
    });
    assert!(parts.into_iter().all(|cpu| cpu != own), "{left} has {own}");
    cluster.kubectl("-n pods delete pod own --wait=true");
    eventually("it has it back", SOON, || (allowed(&cluster, "shared") == online).then_some(()));
}
