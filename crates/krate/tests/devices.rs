//! Devices of the node, given to real containers: a plugin on the cluster's machine, and pods that ask for what it has.

mod support;

#[path = "../../kubelet/tests/support/plugin.rs"]
#[allow(dead_code, reason = "each test uses a part")]
mod plugin;

use std::time::Duration;

use krate_testkit::eventually;
use serde_json::json;

use plugin::{Plugin, RESOURCE};
use support::{Cluster, image};

const SOON: Duration = Duration::from_mins(1);
const IMAGE: &str = "docker.io/library/busybox:latest";

#[test]
fn containers_have_the_devices_that_they_ask_for() {
    let (true, Some(kubectl), Some(busybox)) =
        (krate_testkit::available(), support::kubectl(), image::busybox())
    else {
        return;
    };
    let files = tempfile::tempdir().expect("a directory");
    let cluster = Cluster::start(kubectl, &[]);
    cluster.import(&busybox, IMAGE, "latest");
    cluster.kubectl("create namespace pods");
    cluster.takes_pods("pods");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let plugin = Plugin::new(&[("a", true), ("b", true)]);
    let _running = runtime.block_on(plugin.start(&cluster.dir.join("kubelet/device-plugins")));
    let json = |args: &str| cluster.json(args);
    eventually("the node tells of them", SOON, || {
        let nodes = json("get nodes -o json");
        (nodes["items"][0]["status"]["allocatable"][RESOURCE] == "2").then_some(())
    });
    // The scheduler counts them too: the third pod waits until one of the first has ended.
    let script = "[ -c /dev/thing-$THINGS ] && echo $THINGS > /dev/thing-$THINGS && echo $THINGS > /dev/termination-log; sleep 2";
    for name in ["one", "two", "three"] {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "pods"},
            "spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": IMAGE,
                "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", script],
                "resources": {"limits": {RESOURCE: "1"}}}]}});
        std::fs::write(files.path().join("pod.json"), pod.to_string()).expect("written");
        cluster.kubectl(&format!("create -f {}", files.path().join("pod.json").display()));
    }
    let mut had: Vec<String> = Vec::new();
    for name in ["one", "two", "three"] {
        let ended = eventually("it is done", SOON, || {
            let pod = json(&format!("-n pods get pod {name} -o json"));
            (pod["status"]["phase"] == "Succeeded").then(|| pod["status"]["containerStatuses"][0].clone())
        });
        had.push(ended["state"]["terminated"]["message"].as_str().unwrap_or_default().trim().to_owned());
    }
    let mut first = had[..2].to_vec();
    first.sort();
    assert_eq!(first, ["a", "b"], "{had:?}");
    assert!(["a", "b"].contains(&had[2].as_str()), "{had:?}");
    let allocated = plugin.calls().iter().filter(|call| call.starts_with("allocate")).count();
    assert_eq!(allocated, 3, "{:?}", plugin.calls());
}
