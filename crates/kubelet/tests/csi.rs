//! Volumes of a CSI driver, from its announcement to the pods that have them, and what the API is told of it.

mod support;

use krate_kubelet::csi_api::Capability;
use serde_json::{Value, json};
use support::csi::{Driver, NAME};
use support::{Node, available, until};

const NODE: &str = "/api/v1/nodes/node";
const CSI_NODE: &str = "/apis/storage.k8s.io/v1/csinodes/node";

/// A node, once its `CSINode` is there, and the place of the driver's socket.
async fn node() -> (Node, std::path::PathBuf) {
    let node = Node::start();
    let made = |object: &Value| object["metadata"]["name"].is_string().then_some(());
    node.api.until("the CSINode is there", CSI_NODE, made).await;
    let socket = node.root().join("plugins_registry/csi.sock");
    (node, socket)
}

fn drivers(wanted: Value) -> impl Fn(&Value) -> Option<()> {
    move |object| (object["spec"]["drivers"] == wanted).then_some(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_driver_is_listed_as_long_as_its_socket_is_there() {
    if !available() {
        return;
    }
    let (mut node, socket) = node().await;
    let made = node.api.get(CSI_NODE).unwrap();
    let owner = &made["metadata"]["ownerReferences"][0];
    assert_eq!((&owner["kind"], &owner["name"]), (&json!("Node"), &json!("node")));
    assert_eq!(owner["uid"], node.api.get(NODE).unwrap()["metadata"]["uid"]);

    // One that speaks another language is told so, and tried again until it is understood.
    let driver = Driver::new(&[]);
    driver.describe(7, &[("topology.example.com/zone", "z1")]);
    driver.speaks(&["0.3.0"]);
    let running = driver.start(&socket);
    let told = async |count: usize| {
        until("the driver is told", || driver.told().len() >= count).await;
        driver.told().remove(count - 1)
    };
    let (registered, why) = told(1).await;
    assert!(
        !registered && why.contains("highest supported version reported is 0.3.0, must be v1.x"),
        "{why}"
    );
    driver.speaks(&["1.0.0"]);
    assert_eq!(told(2).await, (true, String::new()));
    let listed = json!([{"name": NAME, "nodeID": "here", "topologyKeys": ["topology.example.com/zone"],
        "allocatable": {"count": 7}}]);
    node.api.until("it is listed", CSI_NODE, drivers(listed.clone())).await;
    let object = node.api.get(NODE).unwrap();
    assert_eq!(object["metadata"]["labels"]["topology.example.com/zone"], "z1");
    let ids = &object["metadata"]["annotations"]["csi.volume.kubernetes.io/nodeid"];
    assert_eq!(*ids, json!(json!({NAME: "here"}).to_string()));

    // The kubelet's end is not the driver's.
    node.down().await;
    node.up();
    assert_eq!(told(3).await, (true, String::new()));
    node.api.until("it is still listed", CSI_NODE, drivers(listed)).await;

    // With its socket it is gone.
    running.abort();
    std::fs::remove_file(&socket).unwrap();
    node.api.until("it is listed no more", CSI_NODE, drivers(json!([]))).await;
    node.api
        .until("nor named by the node", NODE, |node| {
            node["metadata"]["annotations"].get("csi.volume.kubernetes.io/nodeid").is_none().then_some(())
        })
        .await;
    node.down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_driver_says_again_and_again_how_much_it_can_have() {
    if !available() {
        return;
    }
    let (mut node, socket) = node().await;
    let driver = Driver::new(&[]);
    driver.describe(3, &[]);
    let running = driver.start(&socket);
    let limit =
        |count: i64| drivers(json!([{"name": NAME, "nodeID": "here", "allocatable": {"count": count}}]));
    node.api.until("it is listed", CSI_NODE, limit(3)).await;
    driver.describe(5, &[]);
    node.api.create(
        &format!("/apis/storage.k8s.io/v1/csidrivers/{NAME}"),
        json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": NAME},
            "spec": {"nodeAllocatableUpdatePeriodSeconds": 1}}),
    );
    node.api.until("its new limit is told", CSI_NODE, limit(5)).await;
    running.abort();
    node.down().await;
}

fn path(pod: &str) -> String {
    format!("/api/v1/namespaces/n/pods/{pod}")
}

/// A pod of one container, with these volumes of a driver's.
fn pod(name: &str, volumes: Value, spec: Value) -> Value {
    let named = volumes.as_array().unwrap().iter().map(|v| &v["name"]);
    let mounts: Vec<Value> = named.map(|name| json!({"name": name, "mountPath": "/v"})).collect();
    let mut all = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "n", "uid": format!("{name}-uid"), "generation": 1},
        "spec": {"nodeName": "node", "restartPolicy": "Never", "serviceAccountName": "account", "volumes": volumes,
            "containers": [{"name": name, "image": "there:1", "volumeMounts": mounts}]},
        "status": {"phase": "Pending", "qosClass": "BestEffort"}});
    all["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    all
}

fn claimed(name: &str, claim: &str, spec: Value) -> Value {
    pod(name, json!([{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]), spec)
}

/// A claim that is bound to a volume of the driver's, of its own name.
fn volume(node: &Node, name: &str, spec: Value) {
    let mut all = json!({"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
        "claimRef": {"namespace": "n", "name": name, "uid": name},
        "csi": {"driver": NAME, "volumeHandle": format!("handle-{name}"), "fsType": "ext4",
            "volumeAttributes": {"color": "blue"}}});
    for (key, value) in spec.as_object().unwrap() {
        match value {
            Value::Object(fields) if all[key].is_object() => {
                all[key].as_object_mut().unwrap().extend(fields.clone());
            }
            _ => all[key] = value.clone(),
        }
    }
    let modes = all["accessModes"].clone();
    node.api.create(
        &format!("/api/v1/persistentvolumes/{name}"),
        json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": all}),
    );
    node.api.create(
        &claim(name),
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": "n", "uid": name},
            "spec": {"volumeName": name, "accessModes": modes},
            "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}}}),
    );
}

fn claim(name: &str) -> String {
    format!("/api/v1/namespaces/n/persistentvolumeclaims/{name}")
}

/// What the API says of the driver.
fn describe(node: &Node, spec: Value) {
    let mut all = json!({"attachRequired": false, "fsGroupPolicy": "ReadWriteOnceWithFSType",
        "volumeLifecycleModes": ["Persistent", "Ephemeral"]});
    all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    node.api.create(
        &format!("/apis/storage.k8s.io/v1/csidrivers/{NAME}"),
        json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": NAME}, "spec": all}),
    );
}

fn secret(node: &Node, name: &str, value: &str) {
    let encoded = match value {
        "stage" => "c3RhZ2U=",
        "publish" => "cHVibGlzaA==",
        _ => "b3RoZXI=",
    };
    node.api.create(
        &format!("/api/v1/namespaces/n/secrets/{name}"),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "n"},
            "data": {"key": encoded}}),
    );
}

fn phase(wanted: &'static str) -> impl Fn(&Value) -> Option<()> {
    move |pod| (pod["status"]["phase"] == wanted).then_some(())
}

async fn listed(node: &Node) {
    let has = |object: &Value| object["spec"]["drivers"][0]["name"].is_string().then_some(());
    node.api.until("the driver is listed", CSI_NODE, has).await;
}

/// Deletes a pod, and waits until it is gone.
async fn end(node: &Node, name: &str) {
    node.api.update(
        &path(name),
        &json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 1}}),
    );
    node.api.until("the pod is gone", &path(name), |pod| pod.is_null().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_are_made_ready_once_and_published_to_each_pod() {
    if !available() {
        return;
    }
    let (mut node, socket) = node().await;
    describe(&node, json!({"podInfoOnMount": true}));
    let driver = Driver::new(&[Capability::StageUnstageVolume, Capability::SingleNodeMultiWriter]);
    volume(
        &node,
        "pv",
        json!({"mountOptions": ["noatime"], "csi": {
            "nodeStageSecretRef": {"namespace": "n", "name": "stage"},
            "nodePublishSecretRef": {"namespace": "n", "name": "publish"}}}),
    );
    secret(&node, "publish", "publish");
    node.api.create(&path("one"), claimed("one", "pv", json!({"securityContext": {"fsGroup": 2000}})));

    // What is missing is said, one thing after another.
    let said = |what: &'static str| {
        let api = node.api.clone();
        move || api.events().iter().any(|(reason, text)| reason == "FailedMount" && text.contains(what))
    };
    until(
        "the driver is missing",
        said(
            "MountVolume.MountDevice failed for volume \"pv\" : kubernetes.io/csi: attacher.MountDevice failed to create \
             newCsiDriverClient: driver name csi.example.com not found in the list of registered CSI drivers",
        ),
    )
    .await;
    let running = driver.start(&socket);
    listed(&node).await;
    until(
        "the secret is missing",
        said("fetching NodeStageSecretRef n/stage failed: kubernetes.io/csi: failed to find"),
    )
    .await;
    secret(&node, "stage", "stage");
    driver.fails("NodePublishVolume", Some((tonic::Code::Internal, "no luck")));
    until(
        "the driver refuses",
        said("MountVolume.SetUp failed for volume \"pv\" : rpc error: code = Internal desc = no luck"),
    )
    .await;
    let mounted = node.root().join("pods/one-uid/volumes/kubernetes.io~csi/pv");
    assert!(!mounted.exists(), "nothing is left of what failed");
    driver.fails("NodePublishVolume", None);
    node.api.until("it runs", &path("one"), phase("Running")).await;

    let staged = driver.called("NodeStageVolume", 1).await;
    assert_eq!(staged["volume"], "handle-pv");
    assert_eq!(staged["secrets"], json!({"key": "stage"}));
    assert_eq!(staged["context"], json!({"color": "blue"}));
    assert_eq!(
        staged["capability"],
        json!({"mode": "SingleNodeMultiWriter",
            "fsType": "ext4", "options": ["noatime"], "group": ""})
    );
    let published = driver.calls().into_iter().rfind(|(method, _)| method == "NodePublishVolume").unwrap().1;
    assert_eq!(published["staged"], staged["path"]);
    assert_eq!(published["path"], mounted.join("mount").display().to_string());
    assert_eq!(published["secrets"], json!({"key": "publish"}));
    assert_eq!(
        published["context"],
        json!({"color": "blue", "csi.storage.k8s.io/pod.name": "one", "csi.storage.k8s.io/pod.namespace": "n",
            "csi.storage.k8s.io/pod.uid": "one-uid", "csi.storage.k8s.io/serviceAccount.name": "account",
            "csi.storage.k8s.io/ephemeral": "false"})
    );
    let group = std::os::unix::fs::MetadataExt::gid(&std::fs::metadata(mounted.join("mount")).unwrap());
    assert_eq!(group, 2000, "its files are given to the pod's group");
    let written: Value =
        serde_json::from_slice(&std::fs::read(mounted.join("vol_data.json")).unwrap()).unwrap();
    assert_eq!(
        (&written["driverName"], &written["specVolID"], &written["volumeLifecycleMode"]),
        (&json!(NAME), &json!("pv"), &json!("Persistent"))
    );
    let (_, config) = node.runtime.container("one").unwrap();
    assert!(config.mounts.iter().any(|m| m.host_path == mounted.join("mount").display().to_string()));

    // Another pod shares what is ready. It goes while no kubelet runs; nobody else's volume goes with it.
    node.api.create(&path("two"), claimed("two", "pv", json!({})));
    node.api.until("it runs", &path("two"), phase("Running")).await;
    assert_eq!(driver.count("NodeStageVolume"), 1);
    node.down().await;
    node.api.remove(&path("two"));
    node.up();
    driver.called("NodeUnpublishVolume", 1).await;
    until("nothing of it is left", || !node.root().join("pods/two-uid").exists()).await;
    assert_eq!(driver.count("NodeUnstageVolume"), 0);
    // A new kubelet makes sure of what its pods have.
    driver.called("NodeStageVolume", 2).await;

    // The last one leaves nothing; the pod stays until the driver has done its work.
    driver.fails("NodeUnstageVolume", Some((tonic::Code::Internal, "busy")));
    node.api.update(
        &path("one"),
        &json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 1}}),
    );
    driver.called("NodeUnstageVolume", 2).await;
    assert!(node.api.get(&path("one")).is_some());
    driver.fails("NodeUnstageVolume", None);
    node.api.until("the pod is gone", &path("one"), |pod| pod.is_null().then_some(())).await;
    let staging = std::path::PathBuf::from(staged["path"].as_str().unwrap());
    assert!(!staging.parent().unwrap().exists());
    running.abort();
    node.down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_wait_until_they_are_attached_and_are_told_to_be_in_use() {
    if !available() {
        return;
    }
    let (mut node, socket) = node().await;
    describe(&node, json!({"attachRequired": true}));
    let driver = Driver::new(&[]);
    let running = driver.start(&socket);
    listed(&node).await;
    volume(&node, "pv", json!({}));
    node.api.create(&path("one"), claimed("one", "pv", json!({})));
    let unique = format!("kubernetes.io/csi/{NAME}^handle-pv");
    let in_use = |names: Value| move |node: &Value| (node["status"]["volumesInUse"] == names).then_some(());
    node.api.until("it is told to be in use", NODE, in_use(json!([unique]))).await;
    assert_eq!(driver.count("NodePublishVolume"), 0);

    // The attachment's name is made of volume, driver and node.
    let name = {
        use sha2::Digest as _;
        format!("csi-{}", hex::encode(sha2::Sha256::digest(format!("handle-pv{NAME}node"))))
    };
    let attachment = format!("/apis/storage.k8s.io/v1/volumeattachments/{name}");
    node.api.create(
        &attachment,
        json!({"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment", "metadata": {"name": name},
            "spec": {"attacher": NAME, "nodeName": "node", "source": {"persistentVolumeName": "pv"}},
            "status": {"attached": false, "attachError": {"message": "no room"}}}),
    );
    let attached = |names: Value| json!({"status": {"volumesAttached": names}});
    node.api.update(NODE, &attached(json!([{"name": unique, "devicePath": ""}])));
    until("it says why not", || {
        let text = "MountVolume.WaitForAttach failed for volume \"pv\" : no room";
        node.api.events().iter().any(|(reason, said)| reason == "FailedMount" && said == text)
    })
    .await;
    node.api.update(
        &attachment,
        &json!({"status": {"attached": true, "attachError": null, "attachmentMetadata": {"device": "/dev/x"}}}),
    );
    node.api.until("it runs", &path("one"), phase("Running")).await;
    let published = driver.called("NodePublishVolume", 1).await;
    assert_eq!(published["publishContext"], json!({"device": "/dev/x"}));
    assert_eq!(published["staged"], "", "it makes nothing ready for the node");
    assert_eq!(driver.count("NodeStageVolume"), 0);

    // It is in use until it is out of the pod, and over the kubelet's end.
    node.down().await;
    node.up();
    driver.called("NodePublishVolume", 2).await;
    node.api.until("it is still in use", NODE, in_use(json!([unique]))).await;
    end(&node, "one").await;
    driver.called("NodeUnpublishVolume", 1).await;
    node.api
        .until("it is in use no more", NODE, |node| {
            node["status"].get("volumesInUse").is_none_or(Value::is_null).then_some(())
        })
        .await;
    let told = node.api.get(NODE).unwrap();
    assert_eq!(told["status"]["volumesAttached"][0]["name"], unique, "what others say is left alone");
    running.abort();
    node.down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_of_a_pod_alone_are_told_of_it_and_its_tokens() {
    if !available() {
        return;
    }
    let (mut node, socket) = node().await;
    describe(
        &node,
        json!({"podInfoOnMount": true, "tokenRequests": [{"audience": ""}, {"audience": "vault"}],
            "fsGroupPolicy": "None"}),
    );
    let driver = Driver::new(&[Capability::VolumeMountGroup]);
    let running = driver.start(&socket);
    listed(&node).await;
    secret(&node, "publish", "publish");
    let volumes = json!([{"name": "own", "csi": {"driver": NAME, "readOnly": true, "volumeAttributes": {"size": "1"},
        "nodePublishSecretRef": {"name": "publish"}}}]);
    node.api.create(&path("one"), pod("one", volumes, json!({"securityContext": {"fsGroup": 2000}})));
    node.api.until("it runs", &path("one"), phase("Running")).await;
    let published = driver.called("NodePublishVolume", 1).await;
    let context = &published["context"];
    assert_eq!(context["csi.storage.k8s.io/ephemeral"], "true");
    assert_eq!(context["size"], "1");
    let tokens: Value =
        serde_json::from_str(context["csi.storage.k8s.io/serviceAccount.tokens"].as_str().unwrap()).unwrap();
    assert_eq!((&tokens[""]["token"], &tokens["vault"]["token"]), (&json!("h.e.s"), &json!("h.e.s")));
    assert!(tokens["vault"]["expirationTimestamp"].is_string());
    assert_eq!(published["readonly"], true);
    assert_eq!(published["secrets"], json!({"key": "publish"}));
    assert_eq!(published["capability"]["group"], "2000", "the driver gives the files to the group");
    assert!(published["volume"].as_str().unwrap().starts_with("csi-"));
    end(&node, "one").await;
    assert_eq!(driver.called("NodeUnpublishVolume", 1).await["volume"], published["volume"]);
    assert_eq!(driver.count("NodeUnstageVolume"), 0);

    // A driver that is for other volumes alone is not asked.
    let object = format!("/apis/storage.k8s.io/v1/csidrivers/{NAME}");
    node.api.update(&object, &json!({"spec": {"volumeLifecycleModes": ["Persistent"]}}));
    let volumes = json!([{"name": "own", "csi": {"driver": NAME}}]);
    node.api.create(&path("two"), pod("two", volumes, json!({})));
    let said = "MountVolume.SetUp failed for volume \"own\" : kubernetes.io/csi: mounter.SetupAt failed to check volume \
                lifecycle mode: volume mode \"Ephemeral\" not supported by driver csi.example.com (only supports \
                [\"Persistent\"])";
    until("it says why not", || node.api.events().iter().any(|(_, text)| text == said)).await;
    assert_eq!(driver.count("NodePublishVolume"), 1);
    end(&node, "two").await;
    running.abort();
    node.down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_are_devices_and_grow() {
    if !available() {
        return;
    }
    let (mut node, socket) = node().await;
    describe(&node, json!({}));
    let driver = Driver::new(&[Capability::StageUnstageVolume, Capability::ExpandVolume]);
    let running = driver.start(&socket);
    listed(&node).await;
    volume(
        &node,
        "disk",
        json!({"volumeMode": "Block", "accessModes": ["ReadWriteMany"], "capacity": {"storage": "2Gi"}}),
    );
    node.api.update(
        &claim("disk"),
        &json!({"status": {"allocatedResources": {"storage": "2Gi"},
            "allocatedResourceStatuses": {"storage": "NodeResizePending"},
            "conditions": [{"type": "FileSystemResizePending", "status": "True"}]}}),
    );
    let mut one = claimed("one", "disk", json!({}));
    let container = &mut one["spec"]["containers"][0];
    container.as_object_mut().unwrap().remove("volumeMounts");
    container["volumeDevices"] = json!([{"name": "data", "devicePath": "/dev/disk"}]);
    node.api.create(&path("one"), one);
    node.api.until("it runs", &path("one"), phase("Running")).await;
    let staged = driver.called("NodeStageVolume", 1).await;
    let plugin = node.root().join("plugins/kubernetes.io/csi/volumeDevices");
    assert_eq!(staged["path"], plugin.join("staging/disk").display().to_string());
    assert_eq!(staged["capability"], json!({"mode": "MultiNodeMultiWriter", "block": true}));
    let published = driver.called("NodePublishVolume", 1).await;
    let device = plugin.join("publish/disk/one-uid");
    assert_eq!(published["path"], device.display().to_string());
    let (_, config) = node.runtime.container("one").unwrap();
    assert_eq!(
        (config.devices[0].host_path.as_str(), config.devices[0].container_path.as_str()),
        (device.to_str().unwrap(), "/dev/disk")
    );
    let link = node.root().join("pods/one-uid/volumeDevices/kubernetes.io~csi/disk");
    assert_eq!(std::fs::read_link(&link).unwrap(), device);

    // It has grown before the pod has begun, and the claim says so.
    let grown = driver.called("NodeExpandVolume", 1).await;
    assert_eq!((&grown["bytes"], &grown["capability"]["block"]), (&json!(2_i64 << 30), &json!(true)));
    assert_eq!((&grown["path"], &grown["staged"]), (&published["path"], &staged["path"]));
    let status = node.api.get(&claim("disk")).unwrap()["status"].clone();
    assert_eq!(status["capacity"]["storage"], "2Gi");
    assert!(
        status.get("allocatedResourceStatuses").is_none() && status.get("conditions").is_none(),
        "{status}"
    );
    let events = node.api.events();
    let said = "MountVolume.NodeExpandVolume succeeded for volume \"disk\" node";
    assert_eq!(
        events.iter().filter(|(reason, text)| reason == "FileSystemResizeSuccessful" && text == said).count(),
        2
    );

    end(&node, "one").await;
    assert_eq!(driver.count("NodeUnstageVolume"), 1);
    assert!(!plugin.join("disk").exists() && !plugin.join("staging/disk").exists() && !device.exists());
    running.abort();
    node.down().await;
}
