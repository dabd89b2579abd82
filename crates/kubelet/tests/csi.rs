//! Volumes of a CSI driver, from its announcement to the pods that have them, and what the API is told of it.

mod support;

use serde_json::{Value, json};
use support::csi::{Driver, NAME};
use support::{Node, available};

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
        let deadline = tokio::time::Instant::now() + support::SOON;
        while driver.told().len() < count {
            assert!(tokio::time::Instant::now() < deadline, "the driver is told nothing");
            tokio::task::yield_now().await;
        }
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
