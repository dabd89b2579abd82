//! Devices by claims in real containers: a DRA driver on the cluster's machine, which describes its device in a file, and a
//! scheduler that is played.

mod support;

#[path = "../../kubelet/tests/support/dra.rs"]
#[allow(dead_code, reason = "each test uses a part")]
mod dra;
#[path = "../../kubelet/tests/support/plugin.rs"]
#[allow(dead_code, reason = "each test uses a part")]
mod plugin;

use std::fs;
use std::time::Duration;

use krate_kubelet::dra_api::V1;
use krate_testkit::eventually;
use serde_json::json;

use dra::{Driver, NAME};
use support::{Cluster, image};

const SOON: Duration = Duration::from_mins(1);
const IMAGE: &str = "docker.io/library/busybox:latest";

#[test]
fn containers_have_the_devices_of_their_claims() {
    let (true, Some(kubectl), Some(busybox)) =
        (krate_testkit::available(), support::kubectl(), image::busybox())
    else {
        return;
    };
    let files = tempfile::tempdir().expect("a directory");
    let cluster = Cluster::start(kubectl, &[]);
    cluster.import(&busybox, IMAGE, "latest");
    cluster.takes_pods("default");
    // The device is described: a node, a variable, a file, and a program that is run on the host for it.
    let (shared, marker) = (files.path().join("shared"), files.path().join("hooked"));
    fs::write(&shared, "from the host\n").expect("written");
    let description = json!({"cdiVersion": "0.6.0", "kind": "example.com/thing", "devices": [{"name": "device",
        "containerEdits": {
            "env": ["THING=device"],
            "deviceNodes": [{"path": "/dev/thing", "hostPath": "/dev/null"}],
            "mounts": [{"hostPath": shared, "containerPath": "/shared", "options": ["ro", "bind"]}],
            "hooks": [{"hookName": "createRuntime", "path": "/bin/busybox",
                "args": ["busybox", "touch", marker]}]}}]});
    fs::create_dir_all(cluster.dir.join("cdi")).expect("a directory");
    fs::write(cluster.dir.join("cdi/thing.json"), description.to_string()).expect("written");

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let driver = Driver::new("example.com/thing=device", V1);
    let socket = cluster.dir.join("kubelet/plugins_registry/dra.sock");
    let inside = runtime.enter();
    let _running = driver.start(&socket);
    drop(inside);
    let node = cluster.kubectl("get nodes -o jsonpath={.items[0].metadata.name}");
    let script = "[ -c /dev/thing ] && echo $THING > /dev/thing && grep host /shared && ! touch /shared && \
                  echo $THING > /dev/termination-log";
    cluster.create(
        &[
            json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": "claim"},
                "spec": {"devices": {"requests": [{"name": "one", "exactly": {"deviceClassName": "thing"}}]}}}),
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"},
                "spec": {"nodeName": node, "restartPolicy": "Never",
                    "resourceClaims": [{"name": "thing", "resourceClaimName": "claim"}],
                    "containers": [{"name": "main", "image": IMAGE, "imagePullPolicy": "Never",
                        "command": ["sh", "-c", script], "resources": {"claims": [{"name": "thing"}]}}]}}),
        ],
    );
    let uid = cluster.kubectl("get pod one -o jsonpath={.metadata.uid}");
    let allocated = json!({"status": {
        "allocation": {"devices": {"results": [
            {"request": "one", "driver": NAME, "pool": "pool", "device": "device"}]}},
        "reservedFor": [{"resource": "pods", "name": "one", "uid": uid}]}});
    cluster.kubectl(&format!("patch resourceclaim claim --subresource=status --type=merge -p {allocated}"));
    let ended = eventually("it is done", SOON, || {
        let pod = cluster.json("get pod one -o json");
        let phase = pod["status"]["phase"].as_str().unwrap_or_default();
        ["Succeeded", "Failed"].contains(&phase).then(|| pod["status"].clone())
    });
    assert_eq!(ended["phase"], "Succeeded", "{ended}");
    let told = &ended["containerStatuses"][0]["state"]["terminated"]["message"];
    assert_eq!(told.as_str().unwrap_or_default().trim(), "device");
    assert!(marker.exists(), "the hook was run");
    assert_eq!(driver.calls(), ["prepare claim", "unprepare claim"]);
}
