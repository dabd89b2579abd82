//! Volumes of a CSI driver in real containers: a driver on the cluster's machine that mounts what it is asked to, attached
//! by an attacher that is played.

mod support;

#[path = "../../kubelet/tests/support/csi.rs"]
#[allow(dead_code, reason = "each test uses a part")]
mod csi;
#[path = "../../kubelet/tests/support/disk.rs"]
#[allow(dead_code, reason = "each test uses a part")]
mod disk;
#[path = "../../kubelet/tests/support/plugin.rs"]
#[allow(dead_code, reason = "each test uses a part")]
mod plugin;

use std::fs;
use std::time::Duration;

use krate_kubelet::csi_api::Capability;
use krate_testkit::eventually;
use serde_json::{Value, json};

use csi::{Driver, NAME};
use support::{Cluster, image};

const SOON: Duration = Duration::from_mins(2);
const IMAGE: &str = "docker.io/library/busybox:latest";

/// A pod of one container that runs a script.
fn pod(name: &str, script: &str, volumes: &Value, container: &Value) -> Value {
    let mut all = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "volumes": volumes,
            "securityContext": {"fsGroup": 2000},
            "containers": [{"name": "c", "image": IMAGE, "imagePullPolicy": "Never",
                "command": ["/bin/sh", "-c", script]}]}});
    for (key, value) in container.as_object().expect("a container") {
        all["spec"]["containers"][0][key] = value.clone();
    }
    all
}

/// A volume and the claim that leads to it.
fn volume(name: &str, mode: &str) -> [Value; 2] {
    [
        json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
            "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "volumeMode": mode,
                "persistentVolumeReclaimPolicy": "Retain", "storageClassName": "",
                "claimRef": {"namespace": "default", "name": name},
                "csi": {"driver": NAME, "volumeHandle": name, "fsType": "ext4"}}}),
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
            "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": mode, "storageClassName": "",
                "volumeName": name, "resources": {"requests": {"storage": "1Gi"}}}}),
    ]
}

/// Binds a claim, as a controller would do it.
fn bind(cluster: &Cluster, name: &str) {
    let uid = cluster.kubectl(&format!("get pvc {name} -o jsonpath={{.metadata.uid}}"));
    let patch = json!({"spec": {"claimRef": {"uid": uid}}});
    cluster.kubectl(&format!("patch pv {name} --type=merge -p {patch}"));
    let bound = json!({"status": {"phase": "Bound", "capacity": {"storage": "1Gi"}}});
    cluster.kubectl(&format!("patch pvc {name} --subresource=status --type=merge -p {bound}"));
}

/// Attaches all that is asked for; whether there was as much as that.
fn attach(cluster: &Cluster, count: usize) -> Option<()> {
    let all = cluster.json("get volumeattachments -o json");
    let all = all["items"].as_array().expect("items");
    for attachment in all.iter().filter(|a| a["status"]["attached"] != true) {
        let name = attachment["metadata"]["name"].as_str().expect("a name");
        let done = json!({"status": {"attached": true}});
        cluster
            .kubectl(&format!("patch volumeattachment {name} --subresource=status --type=merge -p {done}"));
    }
    (all.len() == count).then_some(())
}

fn runs(cluster: &Cluster, pods: &[&str]) {
    eventually(&format!("{pods:?} run"), SOON, || {
        let all = cluster.json("get pods -o json");
        let is_so = |name: &&str| {
            let pod = all["items"].as_array()?.iter().find(|pod| pod["metadata"]["name"] == *name)?;
            assert_ne!(pod["status"]["phase"], "Failed", "{pod}");
            (pod["status"]["phase"] == "Running").then_some(())
        };
        pods.iter().all(|name| is_so(name).is_some()).then_some(())
    });
}

#[test]
fn containers_have_the_volumes_of_a_driver() {
    let (true, Some(kubectl), Some(busybox)) =
        (krate_testkit::available(), support::kubectl(), image::busybox())
    else {
        return;
    };
    let files = tempfile::tempdir().expect("a directory");
    let mut cluster = Cluster::start(kubectl, &[]);
    cluster.import(&busybox, IMAGE, "latest");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let driver = Driver::at(
        files.path(),
        &[Capability::StageUnstageVolume, Capability::GetVolumeStats, Capability::SingleNodeMultiWriter],
    );
    let socket = cluster.dir.join("kubelet/plugins_registry/csi.sock");
    let inside = runtime.enter();
    let _running = driver.start(&socket);
    drop(inside);
    eventually("the driver is listed", SOON, || {
        let all = cluster.json("get csinodes -o json");
        (all["items"][0]["spec"]["drivers"][0]["name"] == NAME).then_some(())
    });
    cluster.create(&[
        json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": NAME},
            "spec": {"attachRequired": true, "podInfoOnMount": true,
                "volumeLifecycleModes": ["Persistent", "Ephemeral"]}}),
    ]);
    cluster.create(&volume("files", "Filesystem"));
    cluster.create(&volume("disk", "Block"));
    bind(&cluster, "files");
    bind(&cluster, "disk");
    let claimed = |name: &str| json!([{"name": "v", "persistentVolumeClaim": {"claimName": name}}]);
    let mounts = json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    let keep = "echo kept > /v/word && stat -c %g /v/word > /v/group && sleep 100000";
    cluster.create(&[
        pod("one", keep, &claimed("files"), &mounts),
        pod(
            "device",
            "[ -b /dev/disk ] && sleep 100000",
            &claimed("disk"),
            &json!({"volumeDevices": [{"name": "v", "devicePath": "/dev/disk"}]}),
        ),
        pod(
            "own",
            "echo x > /v/x && sleep 100000",
            &json!([{"name": "v", "csi": {"driver": NAME}}]),
            &mounts,
        ),
    ]);
    eventually("both are attached", SOON, || attach(&cluster, 2));
    runs(&cluster, &["one", "device", "own"]);
    let kept = files.path().join("volumes/files");
    assert_eq!(fs::read_to_string(kept.join("word")).expect("it is kept"), "kept\n");
    assert_eq!(fs::read_to_string(kept.join("group")).expect("it is kept"), "2000\n");

    // What is said of it is seen by those who watch.
    let node = cluster.kubectl("get nodes -o jsonpath={.items[0].metadata.name}");
    eventually("its figures are told", SOON, || {
        let summary = cluster.json(&format!("get --raw /api/v1/nodes/{node}/proxy/stats/summary"));
        let pods = summary["pods"].as_array()?;
        let one = pods.iter().find(|pod| pod["podRef"]["name"] == "one")?;
        let volume = one["volume"].as_array()?.iter().find(|volume| volume["name"] == "v")?.clone();
        assert_eq!(volume["pvcRef"], json!({"name": "files", "namespace": "default"}));
        assert_eq!((&volume["capacityBytes"], &volume["inodesUsed"]), (&json!(4096), &json!(7)));
        Some(())
    });
    let metrics = cluster.kubectl(&format!("get --raw /api/v1/nodes/{node}/proxy/metrics"));
    for line in [
        "kubelet_volume_stats_used_bytes{namespace=\"default\",persistentvolumeclaim=\"files\"} 1024",
        "csi_operations_seconds_count{driver_name=\"csi.example.com\",grpc_status_code=\"OK\",\
         method_name=\"/csi.v1.Node/NodeStageVolume\",migrated=\"false\"} 2",
        "volume_operation_total_seconds_count{operation_name=\"overall_volume_map\",\
         plugin_name=\"kubernetes.io/csi:csi.example.com\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }

    // What runs goes on while nobody watches, and another pod finds what the first has left.
    cluster.kill();
    cluster.up();
    cluster.create(&[pod("two", "[ $(cat /v/word) = kept ] && sleep 100000", &claimed("files"), &mounts)]);
    runs(&cluster, &["one", "two"]);
    let status = cluster.json("get pod one -o json")["status"].clone();
    assert_eq!(status["containerStatuses"][0]["restartCount"], 0, "{status}");
    cluster.kubectl("delete pod one --timeout=120s");
    cluster.kubectl("exec two -- cat /v/word");
    assert_eq!(driver.count("NodeUnstageVolume"), 0);

    cluster.kubectl("delete pods --all --timeout=120s");
    eventually("nothing is attached any more", SOON, || attach(&cluster, 0));
    let kubelet = cluster.dir.join("kubelet");
    eventually("nothing of them is left", SOON, || {
        let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", cluster.pid())).expect("a table");
        let is_empty = |path: &str| fs::read_dir(kubelet.join(path)).into_iter().flatten().next().is_none();
        (is_empty("pods") && !mounts.contains(&*kubelet.to_string_lossy())).then_some(())
    });
    let status = cluster.json("get nodes -o json")["items"][0]["status"].clone();
    assert!(status.get("volumesInUse").is_none() && status.get("volumesAttached").is_none(), "{status}");
    assert_eq!(driver.count("NodeUnstageVolume"), 2);
    assert_eq!(fs::read_to_string(kept.join("word")).expect("it is kept"), "kept\n");
}
