//! Block devices that pods have: held by a loop device for as long, so that none goes away below its pod.

mod support;

use std::path::Path;

use krate_kubelet::csi_api::Capability;
use serde_json::{Value, json};
use support::csi::{Driver, NAME};
use support::disk::Disk;
use support::{Node, available, until};

const POD: &str = "/api/v1/namespaces/n/pods/p";
const CSI_NODE: &str = "/apis/storage.k8s.io/v1/csinodes/node";

/// A pod that has the device of a volume, by a claim.
fn create(node: &Node, source: &Value) {
    let mut spec = json!({"capacity": {"storage": "1Mi"}, "accessModes": ["ReadWriteOnce"], "volumeMode": "Block",
        "claimRef": {"namespace": "n", "name": "claim", "uid": "claim-uid"}});
    spec.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
    node.api.create(
        "/api/v1/persistentvolumes/pv",
        json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "pv"}, "spec": spec}),
    );
    node.api.create(
        "/api/v1/namespaces/n/persistentvolumeclaims/claim",
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": "claim", "namespace": "n", "uid": "claim-uid"},
            "spec": {"volumeName": "pv", "accessModes": ["ReadWriteOnce"], "volumeMode": "Block"},
            "status": {"phase": "Bound", "capacity": {"storage": "1Mi"}}}),
    );
    node.api.create(
        POD,
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "namespace": "n", "uid": "pod-uid", "generation": 1},
            "spec": {"nodeName": "node", "restartPolicy": "Never", "terminationGracePeriodSeconds": 1,
                "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "claim"}}],
                "containers": [{"name": "c", "image": "there:1",
                    "volumeDevices": [{"name": "v", "devicePath": "/dev/disk"}]}]},
            "status": {"phase": "Pending", "qosClass": "BestEffort"}}),
    );
}

async fn runs(node: &Node) {
    let is_running = |pod: &Value| (pod["status"]["phase"] == "Running").then_some(());
    node.api.until("the pod runs", POD, is_running).await;
}

/// One holds the device that is shown at a place; a new kubelet finds that, and with the pod it goes.
async fn is_held_until_the_pod_is_gone(node: &mut Node, place: &Path) {
    let held = Disk::over(place);
    assert_eq!(held.len(), 1, "{held:?}");
    node.down().await;
    assert_eq!(Disk::over(place), held, "it outlives the kubelet");
    node.up();
    let going = json!({"metadata": {
        "deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 1}});
    node.api.update(POD, &going);
    node.api.until("the pod is gone", POD, |pod| pod.is_null().then_some(())).await;
    assert!(Disk::over(&node.root()).is_empty() && !place.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_device_of_a_driver_is_held() {
    if !available() {
        return;
    }
    let files = tempfile::tempdir().unwrap();
    if Disk::make(files.path()).is_none() {
        return;
    }
    let mut node = Node::start();
    let made = |object: &Value| object["metadata"]["name"].is_string().then_some(());
    node.api.until("the CSINode is there", CSI_NODE, made).await;
    let driver = Driver::at(files.path(), &[Capability::StageUnstageVolume]);
    let running = driver.start(&node.root().join("plugins_registry/csi.sock"));
    let listed = |object: &Value| object["spec"]["drivers"][0]["name"].is_string().then_some(());
    node.api.until("the driver is listed", CSI_NODE, listed).await;
    node.api.create(
        &format!("/apis/storage.k8s.io/v1/csidrivers/{NAME}"),
        json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": NAME},
            "spec": {"attachRequired": false}}),
    );
    create(&node, &json!({"csi": {"driver": NAME, "volumeHandle": "h"}}));
    runs(&node).await;
    let place = node.root().join("plugins/kubernetes.io/csi/volumeDevices/publish/pv/pod-uid");
    is_held_until_the_pod_is_gone(&mut node, &place).await;
    running.abort();
    node.down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_of_the_host_is_held() {
    if !available() {
        return;
    }
    let files = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::make(files.path()) else { return };
    let mut node = Node::start();
    create(&node, &json!({"local": {"path": disk.device}}));
    runs(&node).await;
    let (_, config) = node.runtime.container("c").unwrap();
    assert_eq!(config.devices[0].host_path, disk.device.display().to_string());
    let place = node.root().join("pods/pod-uid/volumeDevices/kubernetes.io~local-volume/pv");
    is_held_until_the_pod_is_gone(&mut node, &place).await;
    until("nothing of the pod is left", || !node.root().join("pods/pod-uid").exists()).await;
    node.down().await;
}
