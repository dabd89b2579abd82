//! Pods that no API server was asked for: of a directory and of a URL, each shown by a mirror pod; and what makes room for
//! one that is critical.

mod support;

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use krate_testkit::{Child, eventually};
use serde_json::{Value, json};

use support::{Cluster, image};

const SOON: Duration = Duration::from_mins(1);
const IMAGE: &str = "docker.io/library/busybox:latest";
const URL: &str = "127.0.0.1:8090";

fn pod(name: &str, spec: &Value) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "main", "image": IMAGE,
            "imagePullPolicy": "IfNotPresent", "command": ["sleep", "100000"]}]}});
    for (key, value) in spec.as_object().expect("an object") {
        pod["spec"][key] = value.clone();
    }
    pod
}

fn asks(cpu: &str) -> Value {
    json!([{"name": "main", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "100000"],
        "resources": {"requests": {"cpu": cpu}}}])
}

/// A pod as the API shows it, if it does.
fn shown(cluster: &Cluster, name: &str) -> Option<Value> {
    let out = cluster.kubectl_command(&format!("get pod {name} -o json")).output().expect("kubectl runs");
    serde_json::from_slice(&out.stdout).ok()
}

fn runs(cluster: &Cluster, name: &str) -> Value {
    eventually(&format!("{name} runs"), SOON, || {
        shown(cluster, name).filter(|pod| pod["status"]["phase"] == "Running")
    })
}

fn put(file: &Path, text: &str) {
    let beside = file.with_extension("new");
    fs::write(&beside, text).expect("written");
    fs::rename(&beside, file).expect("in its place");
}

#[test]
fn pods_of_files_and_of_a_url_run_and_are_shown() {
    let (true, Some(kubectl), Some(busybox)) =
        (krate_testkit::available(), support::kubectl(), image::busybox())
    else {
        return;
    };
    let files = tempfile::tempdir().expect("a directory");
    let (manifests, pages) = (files.path().join("manifests"), files.path().join("pages"));
    for directory in [&manifests, &pages] {
        fs::create_dir(directory).expect("made");
    }
    let configuration = format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nstaticPodPath: {}\n\
         staticPodURL: http://{URL}/pods.json\nhttpCheckFrequency: 1s\nfileCheckFrequency: 1s\n",
        manifests.display()
    );
    let file = files.path().join("kubelet.yaml");
    fs::write(&file, configuration).expect("written");
    let mut cluster = Cluster::prepare(kubectl, &["--kubelet-config", &file.to_string_lossy()]);
    let mut server = cluster.host.command(&busybox);
    server.args(["httpd", "-f", "-p", URL, "-h"]).arg(&pages).stdin(Stdio::null());
    let _server = Child::spawn(&mut server).expect("a server");
    put(&pages.join("pods.json"), &json!({"apiVersion": "v1", "kind": "List", "items": []}).to_string());
    cluster.up();
    cluster.import(&busybox, IMAGE, IMAGE);
    cluster.takes_pods("default");
    let node = cluster.json("get nodes -o json")["items"][0].clone();
    let name = node["metadata"]["name"].as_str().expect("a name");
    let of = |pod: &str| format!("{pod}-{name}");

    let list = |pods: &[Value]| json!({"apiVersion": "v1", "kind": "PodList", "items": pods}).to_string();
    put(&manifests.join("file.yaml"), &pod("of-a-file", &json!({})).to_string());
    put(&pages.join("pods.json"), &list(&[pod("one", &json!({})), pod("two", &json!({}))]));
    for (pod, source) in [("of-a-file", "file"), ("one", "http"), ("two", "http")] {
        let mirror = runs(&cluster, &of(pod));
        let annotations = &mirror["metadata"]["annotations"];
        assert_eq!(annotations["kubernetes.io/config.source"], source, "{annotations}");
        assert_eq!(annotations["kubernetes.io/config.mirror"], annotations["kubernetes.io/config.hash"]);
        let owner = &mirror["metadata"]["ownerReferences"][0];
        assert_eq!((&owner["kind"], &owner["uid"]), (&json!("Node"), &node["metadata"]["uid"]));
    }

    // What is asked for otherwise runs anew, and what is not asked for any more goes.
    put(&pages.join("pods.json"), &list(&[pod("one", &json!({"hostNetwork": true}))]));
    eventually("one runs as it is asked for now", SOON, || {
        let is_new = |pod: &Value| pod["spec"]["hostNetwork"] == true && pod["status"]["phase"] == "Running";
        shown(&cluster, &of("one")).filter(is_new).map(drop)
    });
    eventually("the other is gone", SOON, || shown(&cluster, &of("two")).is_none().then_some(()));

    // A mirror is only shown: without it the pod runs on, and it comes back.
    let before = runs(&cluster, &of("of-a-file"));
    cluster.kubectl(&format!("delete pod {} --grace-period=0 --force", of("of-a-file")));
    let after = eventually("the mirror is back", SOON, || {
        let is_other = |pod: &Value| pod["metadata"]["uid"] != before["metadata"]["uid"];
        shown(&cluster, &of("of-a-file")).filter(|pod| is_other(pod) && pod["status"]["phase"] == "Running")
    });
    let container = |pod: &Value| pod["status"]["containerStatuses"][0]["containerID"].clone();
    assert_eq!(container(&before), container(&after));

    makes_room(&cluster, &node, &manifests);

    fs::remove_file(manifests.join("file.yaml")).expect("removed");
    eventually("the pod goes with its file", SOON, || {
        shown(&cluster, &of("of-a-file")).is_none().then_some(())
    });
}

/// A critical pod for which there is no room takes it from one that is not.
fn makes_room(cluster: &Cluster, node: &Value, manifests: &Path) {
    let cores: u32 = node["status"]["allocatable"]["cpu"].as_str().expect("cores").parse().expect("a number");
    let (most, some) = (format!("{}m", cores * 1000 - 100), "500m");
    cluster.create(&[pod("fills", &json!({"containers": asks(&most)}))]);
    runs(cluster, "fills");
    let critical = json!({"containers": asks(some), "priorityClassName": "system-node-critical",
        "priority": 2_000_001_000});
    put(&manifests.join("critical.json"), &pod("critical", &critical).to_string());
    let made_way = eventually("the other makes way", SOON, || {
        shown(cluster, "fills").filter(|pod| pod["status"]["phase"] == "Failed")
    });
    let status = &made_way["status"];
    assert_eq!(status["reason"], "Preempting", "{status:#}");
    assert_eq!(status["message"], "Preempted in order to admit critical pod");
    let conditions = status["conditions"].as_array().expect("conditions");
    assert!(
        conditions.iter().any(|c| c["type"] == "DisruptionTarget" && c["status"] == "True"),
        "{status:#}"
    );
    let name = node["metadata"]["name"].as_str().expect("a name");
    runs(cluster, &format!("critical-{name}"));
}
