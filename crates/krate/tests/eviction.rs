//! A node that runs short, by thresholds that it was configured with: it says so, evicts pods that it can do without, and
//! keeps those that it cannot.

mod support;

use std::path::PathBuf;
use std::time::Duration;

use krate_testkit::eventually;
use serde_json::{Value, json};

use support::{Cluster, image};

const SOON: Duration = Duration::from_mins(2);
const IMAGE: &str = "docker.io/library/busybox:latest";

/// What a node that runs short is configured with, and the directory of its static pods.
struct Short {
    files: tempfile::TempDir,
    manifests: PathBuf,
    configuration: String,
}

impl Short {
    /// By these thresholds, lines of the configuration.
    fn by(thresholds: &str) -> Self {
        let files = tempfile::tempdir().expect("a directory");
        let manifests = files.path().join("manifests");
        std::fs::create_dir(&manifests).expect("made");
        let text = format!(
            "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nstaticPodPath: {}\n{thresholds}",
            manifests.display()
        );
        let file = files.path().join("kubelet.yaml");
        std::fs::write(&file, text).expect("written");
        Short { configuration: file.to_string_lossy().into_owned(), files, manifests }
    }
}

#[test]
fn a_node_that_is_short_of_memory_evicts_pods() {
    let (true, Some(kubectl), Some(busybox)) =
        (krate_testkit::available(), support::kubectl(), image::busybox())
    else {
        return;
    };
    // No machine has so much.
    let short = Short::by(
        "evictionSoft: {memory.available: 1000Gi}\nevictionSoftGracePeriod: {memory.available: 3s}\n\
         evictionMaxPodGracePeriod: 1\n",
    );
    let cluster = Cluster::start(kubectl, &["--kubelet-config", &short.configuration]);
    cluster.import(&busybox, IMAGE, "latest");
    let json = |args: &str| cluster.json(args);
    eventually("the node says that it is short", SOON, || {
        let nodes = json("get nodes -o json");
        let conditions = nodes["items"][0]["status"]["conditions"].as_array()?.clone();
        let is_short = |c: &&Value| c["type"] == "MemoryPressure" && c["status"] == "True";
        conditions.iter().find(is_short).map(|c| assert_eq!(c["reason"], "KubeletHasInsufficientMemory"))
    });
    let pod = |name: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
            "spec": {"terminationGracePeriodSeconds": 30,
                "tolerations": [{"key": "node.kubernetes.io/memory-pressure", "operator": "Exists"}],
                "containers": [{"name": "main", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
                    "command": ["sleep", "1000"]}]}})
    };
    std::fs::write(short.manifests.join("kept.json"), pod("kept").to_string()).expect("written");
    let described = short.files.path().join("pod.json");
    std::fs::write(&described, pod("spare").to_string()).expect("written");
    eventually("the pod is taken", SOON, || {
        let out = cluster
            .kubectl_command(&format!("create -f {}", described.display()))
            .output()
            .expect("kubectl runs");
        out.status.success().then_some(())
    });
    let evicted = eventually("the pod is evicted", SOON, || {
        let pod = json("get pod spare -o json");
        (pod["status"]["phase"] == "Failed").then_some(pod)
    });
    let status = &evicted["status"];
    assert_eq!(status["reason"], "Evicted", "{status:#}");
    let message = status["message"].as_str().unwrap_or_default();
    assert!(
        message.starts_with("The node was low on resource: memory. Threshold quantity: 1000Gi, available: "),
        "{message}"
    );
    let conditions = status["conditions"].as_array().expect("conditions");
    assert!(
        conditions.iter().any(|c| c["type"] == "DisruptionTarget" && c["reason"] == "TerminationByKubelet")
    );
    let images = json("get pods -o json");
    let all = images["items"].as_array().expect("pods");
    let is_kept = |p: &&Value| p["metadata"]["name"].as_str().is_some_and(|name| name.starts_with("kept-"));
    let kept = all.iter().find(is_kept).expect("the static pod has its image");
    assert_eq!(kept["status"]["phase"], "Running", "a static pod is never evicted");
}

#[test]
fn a_node_that_is_short_of_disk_removes_images_that_nobody_uses() {
    let (true, Some(kubectl), Some(busybox)) =
        (krate_testkit::available(), support::kubectl(), image::busybox())
    else {
        return;
    };
    // No machine has so much.
    let short = Short::by(
        "evictionHard: {imagefs.available: 1000Pi, nodefs.available: 1000Pi}\nimageMinimumGCAge: 1s\n",
    );
    // Only what is critical may still come.
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "kept", "namespace": "default"},
        "spec": {"priorityClassName": "system-node-critical", "priority": 2_000_001_000, "containers": [
            {"name": "main", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "1000"]}]}});
    std::fs::write(short.manifests.join("kept.json"), pod.to_string()).expect("written");
    let cluster = Cluster::start(kubectl, &["--kubelet-config", &short.configuration]);
    // The image that is used might be found unused before the pod has it: it comes again until it stays.
    eventually("the pod has its image", SOON, || {
        cluster.import(&busybox, IMAGE, "used");
        let pods = cluster.json("get pods -o json");
        (pods["items"][0]["status"]["phase"] == "Running").then_some(())
    });
    cluster.import(&busybox, "docker.io/library/unused:1", "unused");
    eventually("the image that nobody uses is gone", SOON, || {
        let images = cluster.krate_says(&["image", "ls"]);
        assert!(images.contains("library/busybox"), "{images}");
        (!images.contains("library/unused")).then_some(())
    });
    let node = cluster.json("get nodes -o json")["items"][0].clone();
    let conditions = node["status"]["conditions"].as_array().expect("conditions").clone();
    let pressure = conditions.iter().find(|c| c["type"] == "DiskPressure").expect("it is told");
    assert_eq!(
        (&pressure["status"], &pressure["reason"]),
        (&json!("True"), &json!("KubeletHasDiskPressure"))
    );
    let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
    assert!(taints.iter().any(|taint| taint["key"] == "node.kubernetes.io/disk-pressure"), "{taints:?}");
    let pods = cluster.json("get pods -o json");
    assert_eq!(pods["items"][0]["status"]["phase"], "Running", "{pods:#}");
}
