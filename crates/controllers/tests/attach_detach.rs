//! Volumes are attached where pods want them and nowhere else: the controller against the real API server, with a kubelet
//! and an attacher that are played.

#[path = "support/mod.rs"]
mod support;

use k8s_openapi::api::core::v1::{Event, Node, PersistentVolume, PersistentVolumeClaim, Pod, ServiceAccount};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use kube::ResourceExt as _;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use support::{Cluster, object, until};

const DRIVER: &str = "csi.example.com";
const UNIQUE: &str = "kubernetes.io/csi/csi.example.com^handle";

async fn cluster() -> Cluster {
    let cluster = Cluster::start().await;
    let manager = cluster.client_as("system:kube-controller-manager", &[krate_apiserver::rbac::CONTROLLERS]);
    let (informers, shutdown) = (cluster.informers.clone(), cluster.shutdown.clone());
    let config = krate_controllers::Config {
        // Nobody sends heartbeats.
        node_grace_period: std::time::Duration::from_hours(1),
        ..krate_controllers::Config::default()
    };
    cluster.run(async move {
        krate_controllers::run(manager, informers, config, shutdown).await.expect("they run");
    });
    for node in ["one", "two"] {
        cluster.add_node(node).await;
        let managed = json!({"metadata": {"annotations": {
            "volumes.kubernetes.io/controller-managed-attach-detach": "true"}}});
        let params = PatchParams::default();
        cluster.all::<Node>().patch(node, &params, &Patch::Merge(managed)).await.expect("a node");
    }
    until(cluster.of::<ServiceAccount>("default"), "given an account", |all| !all.is_empty()).await;
    cluster
}

/// A claim of a volume that one node may have at a time, bound as a controller would do it.
async fn volume(cluster: &Cluster) {
    let claims = cluster.of::<PersistentVolumeClaim>("default");
    let claim: PersistentVolumeClaim = object(json!({"metadata": {"name": "claim"},
        "spec": {"accessModes": ["ReadWriteOnce"], "volumeName": "pv", "storageClassName": "",
            "resources": {"requests": {"storage": "1Gi"}}}}));
    let claim = claims.create(&PostParams::default(), &claim).await.expect("a claim");
    let pv: PersistentVolume = object(json!({"metadata": {"name": "pv"},
        "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
            "claimRef": {"namespace": "default", "name": "claim", "uid": claim.uid()},
            "csi": {"driver": DRIVER, "volumeHandle": "handle"}}}));
    cluster.all::<PersistentVolume>().create(&PostParams::default(), &pv).await.expect("a volume");
    let bound = Patch::Merge(json!({"status": {"phase": "Bound"}}));
    claims.patch_status("claim", &PatchParams::default(), &bound).await.expect("its status");
}

async fn pod(cluster: &Cluster, name: &str, node: &str) {
    let pod: Pod = object(json!({"metadata": {"name": name},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "claim"}}]}}));
    cluster.of::<Pod>("default").create(&PostParams::default(), &pod).await.expect("a pod");
}

async fn remove(cluster: &Cluster, name: &str) {
    let params = DeleteParams::default().grace_period(0);
    cluster.of::<Pod>("default").delete(name, &params).await.expect("deleted");
}

/// What a node's kubelet says to be in use.
async fn in_use(cluster: &Cluster, node: &str, names: Value) {
    let patch = Patch::Merge(json!({"status": {"volumesInUse": names}}));
    cluster.all::<Node>().patch_status(node, &PatchParams::default(), &patch).await.expect("its status");
}

/// Waits until the nodes that have the volume are these, and returns the attachments.
async fn attachments(cluster: &Cluster, nodes: &[&str]) {
    until(cluster.all::<VolumeAttachment>(), &format!("asked for at {nodes:?}"), |all| {
        all.iter().map(|a| a.spec.node_name.as_str()).collect::<Vec<_>>() == nodes
    })
    .await;
}

/// Plays the attacher: what is asked for at a node is done, or has failed.
async fn answer(cluster: &Cluster, node: &str, status: Value) {
    let api = cluster.all::<VolumeAttachment>();
    let all = api.list(&kube::api::ListParams::default()).await.expect("a list");
    let name = all.items.iter().find(|a| a.spec.node_name == node).expect("it is asked for").name_any();
    let patch = Patch::Merge(json!({"status": status}));
    api.patch_status(&name, &PatchParams::default(), &patch).await.expect("its status");
}

/// Waits until a node is told to have these volumes.
async fn told(cluster: &Cluster, node: &str, names: &[&str]) {
    until(cluster.all::<Node>(), &format!("{node} told of {names:?}"), |all| {
        let node = all.iter().find(|n| n.name_any() == node);
        let attached = node.and_then(|n| n.status.as_ref()).and_then(|s| s.volumes_attached.as_deref());
        attached.unwrap_or_default().iter().map(|v| v.name.as_str()).collect::<Vec<_>>() == names
    })
    .await;
}

/// Waits until the metrics of this process have a row.
async fn counted(row: &str) {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    let text = || {
        let families = krate_controllers::metrics::registry().gather();
        prometheus::TextEncoder::new().encode_to_string(&families).expect("text")
    };
    while !text().lines().any(|line| line == row) {
        assert!(tokio::time::Instant::now() < deadline, "not counted: {row}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

async fn said(cluster: &Cluster, pod: &str, reason: &str, message: &str) {
    until(cluster.all::<Event>(), &format!("{pod} is told {message:?}"), |all| {
        all.iter().any(|event| {
            event.involved_object.name.as_deref() == Some(pod)
                && event.reason.as_deref() == Some(reason)
                && event.message.as_deref() == Some(message)
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_goes_with_its_pods_from_node_to_node() {
    let cluster = cluster().await;
    volume(&cluster).await;
    pod(&cluster, "first", "one").await;
    attachments(&cluster, &["one"]).await;
    let error = json!({"attached": false, "attachError": {"message": "no room"}});
    answer(&cluster, "one", error).await;
    let failed = "AttachVolume.Attach failed for volume \"pv\" : no room";
    said(&cluster, "first", "FailedAttachVolume", failed).await;
    answer(&cluster, "one", json!({"attached": true, "attachError": null})).await;
    told(&cluster, "one", &[UNIQUE]).await;
    let done = "AttachVolume.Attach succeeded for volume \"pv\" ";
    said(&cluster, "first", "SuccessfulAttachVolume", done).await;

    // Another node cannot have it meanwhile.
    in_use(&cluster, "one", json!([UNIQUE])).await;
    pod(&cluster, "second", "two").await;
    let refused = "Multi-Attach error for volume \"pv\" Volume is already used by pod(s) first";
    said(&cluster, "second", "FailedAttachVolume", refused).await;
    attachments(&cluster, &["one"]).await;

    // It stays where it is in use, though nobody wants it there any more.
    remove(&cluster, "first").await;
    pod(&cluster, "third", "two").await;
    until(cluster.all::<Pod>(), "gone", |all| all.iter().all(|pod| pod.name_any() != "first")).await;
    told(&cluster, "one", &[UNIQUE]).await;
    attachments(&cluster, &["one"]).await;
    in_use(&cluster, "one", json!(null)).await;
    attachments(&cluster, &["two"]).await;
    told(&cluster, "one", &[]).await;
    answer(&cluster, "two", json!({"attached": true})).await;
    told(&cluster, "two", &[UNIQUE]).await;

    // Two pods of one node share it; with the last it goes.
    remove(&cluster, "second").await;
    until(cluster.all::<Pod>(), "gone", |all| all.len() == 1).await;
    attachments(&cluster, &["two"]).await;
    remove(&cluster, "third").await;
    attachments(&cluster, &[]).await;
    told(&cluster, "two", &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_out_of_service_gives_up_what_it_has() {
    let cluster = cluster().await;
    volume(&cluster).await;
    pod(&cluster, "first", "one").await;
    attachments(&cluster, &["one"]).await;
    answer(&cluster, "one", json!({"attached": true})).await;
    told(&cluster, "one", &[UNIQUE]).await;
    in_use(&cluster, "one", json!([UNIQUE])).await;
    let plugin = format!("kubernetes.io/csi:{DRIVER}");
    counted(&format!("storage_count_attachable_volumes_in_use{{node=\"one\",volume_plugin=\"{plugin}\"}} 1"))
        .await;
    for state in ["actual_state_of_world", "desired_state_of_world"] {
        let labels = format!("plugin_name=\"{plugin}\",state=\"{state}\"");
        counted(&format!("attachdetach_controller_total_volumes{{{labels}}} 1")).await;
    }
    remove(&cluster, "first").await;
    until(cluster.all::<Pod>(), "gone", <[Pod]>::is_empty).await;
    attachments(&cluster, &["one"]).await;
    let taint = json!({"spec": {"taints": [
        {"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"}]}});
    let params = PatchParams::default();
    cluster.all::<Node>().patch("one", &params, &Patch::Merge(taint)).await.expect("a taint");
    attachments(&cluster, &[]).await;
    told(&cluster, "one", &[]).await;
    let forced = "attach_detach_controller_attachdetach_controller_forced_detaches";
    counted(&format!("{forced}{{reason=\"out-of-service\"}} 1")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_that_need_not_be_attached_are_not() {
    let cluster = cluster().await;
    let driver: CSIDriver = object(json!({"metadata": {"name": DRIVER}, "spec": {"attachRequired": false}}));
    cluster.all::<CSIDriver>().create(&PostParams::default(), &driver).await.expect("a driver");
    // The controller looks at the same copy: it must know the driver before the pod.
    cluster.informers.of::<CSIDriver>().subscribe().recv().await.expect("the driver");
    volume(&cluster).await;
    pod(&cluster, "first", "one").await;
    // That of a driver of which the API says nothing is attached, and it comes later.
    let pv: PersistentVolume = object(json!({"metadata": {"name": "other"},
        "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
            "claimRef": {"namespace": "default", "name": "claim"},
            "csi": {"driver": "unknown.example.com", "volumeHandle": "handle"}}}));
    let claims = cluster.of::<PersistentVolumeClaim>("default");
    let claim: PersistentVolumeClaim = object(json!({"metadata": {"name": "other"},
        "spec": {"accessModes": ["ReadWriteOnce"], "volumeName": "other", "storageClassName": "",
            "resources": {"requests": {"storage": "1Gi"}}}}));
    let claim = claims.create(&PostParams::default(), &claim).await.expect("a claim");
    let mut pv = pv;
    let reference = pv.spec.as_mut().and_then(|s| s.claim_ref.as_mut()).expect("a reference");
    (reference.name, reference.uid) = (Some("other".to_owned()), claim.uid());
    cluster.all::<PersistentVolume>().create(&PostParams::default(), &pv).await.expect("a volume");
    let bound = Patch::Merge(json!({"status": {"phase": "Bound"}}));
    claims.patch_status("other", &PatchParams::default(), &bound).await.expect("its status");
    let pod: Pod = object(json!({"metadata": {"name": "second"},
        "spec": {"nodeName": "one", "containers": [{"name": "c", "image": "i"}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "other"}}]}}));
    cluster.of::<Pod>("default").create(&PostParams::default(), &pod).await.expect("a pod");
    attachments(&cluster, &["one"]).await;
    let api = cluster.all::<VolumeAttachment>();
    let all = api.list(&kube::api::ListParams::default()).await.expect("a list").items;
    let of: Vec<_> = all.iter().map(|a| a.spec.attacher.as_str()).collect();
    assert_eq!(of, ["unknown.example.com"]);
}
