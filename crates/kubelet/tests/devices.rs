//! Devices that a plugin knows, from its announcement to the containers that have them.

mod support;

use krate_kubelet::device_plugin::RegisterRequest;
use krate_kubelet::pod_resources::{
    self, AllocatableResourcesResponse, GetPodResourcesRequest, GetPodResourcesResponse,
    ListPodResourcesResponse,
};
use serde_json::{Value, json};
use support::plugin::{Plugin, RESOURCE, ask, register};
use support::{Node, available, until};

const NODE: &str = "/api/v1/nodes/node";

fn path(name: &str) -> String {
    format!("/api/v1/namespaces/n/pods/{name}")
}

fn pod(name: &str, count: i64) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "n", "uid": format!("{name}-uid"), "generation": 1},
        "spec": {"nodeName": "node", "restartPolicy": "Never", "containers": [
            {"name": name, "image": "there:1", "resources": {"limits": {RESOURCE: count.to_string()}}}]},
        "status": {"phase": "Pending", "qosClass": "BestEffort"}})
}

fn phase(wanted: &'static str) -> impl Fn(&Value) -> Option<Value> {
    move |pod| (pod["status"]["phase"] == wanted).then(|| pod.clone())
}

/// The node tells of so many, and that so many of them can be used.
fn has(all: &'static str, usable: &'static str) -> impl Fn(&Value) -> Option<()> {
    move |node| {
        let status = &node["status"];
        (status["capacity"][RESOURCE] == all && status["allocatable"][RESOURCE] == usable).then_some(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_are_counted_given_and_given_back() {
    if !available() {
        return;
    }
    let mut node = Node::start();
    let directory = node.root().join("device-plugins");
    node.api
        .until("the node is there", NODE, |node| node["status"]["capacity"].is_object().then_some(()))
        .await;
    for (version, resource, said) in [
        ("v1alpha", RESOURCE, "requested API version \"v1alpha\" is not supported by kubelet"),
        ("v1beta1", "thing", "the ResourceName \"thing\" is invalid"),
    ] {
        let request = RegisterRequest {
            version: version.to_owned(),
            endpoint: "x.sock".to_owned(),
            resource_name: resource.to_owned(),
            options: None,
        };
        let refused = register(&directory, request).await.unwrap_err();
        assert!(refused.message().contains(said), "{refused}");
    }
    let plugin = Plugin::new(&[("a", true), ("b", true), ("c", false)]);
    let running = plugin.start(&directory).await;
    node.api.until("the node tells of them", NODE, has("3", "2")).await;

    // Those that the plugin prefers are taken.
    node.api.create(&path("one"), pod("one", 1));
    node.api.until("it runs", &path("one"), phase("Running")).await;
    let (_, config) = node.runtime.container("one").unwrap();
    assert_eq!((config.devices[0].container_path.as_str(), config.devices.len()), ("/dev/thing-b", 1));
    assert!(config.envs.iter().any(|e| e.key == "THINGS" && e.value == "b"));
    assert_eq!(plugin.calls(), ["allocate b", "start b"]);

    // Who asks is told who has them.
    let resources = node.root().join("pod-resources");
    let wanted = GetPodResourcesRequest { pod_name: "one".to_owned(), pod_namespace: "n".to_owned() };
    let one: GetPodResourcesResponse = ask(&resources, "/v1.PodResourcesLister/Get", wanted).await.unwrap();
    let one = one.pod_resources.unwrap();
    assert_eq!((one.name.as_str(), one.containers[0].name.as_str()), ("one", "one"));
    let device = &one.containers[0].devices[0];
    assert_eq!((device.resource_name.as_str(), &device.device_ids[..]), (RESOURCE, &["b".to_owned()][..]));
    let all: ListPodResourcesResponse =
        ask(&resources, "/v1.PodResourcesLister/List", pod_resources::Empty {}).await.unwrap();
    assert_eq!(all.pod_resources, [one]);
    let usable: AllocatableResourcesResponse =
        ask(&resources, "/v1.PodResourcesLister/GetAllocatableResources", pod_resources::Empty {})
            .await
            .unwrap();
    let ids: Vec<&[String]> = usable.devices.iter().map(|of| of.device_ids.as_slice()).collect();
    assert_eq!(ids, [["a"], ["b"]]);
    let wanted = GetPodResourcesRequest { pod_name: "none".to_owned(), pod_namespace: "n".to_owned() };
    let missing = ask::<_, GetPodResourcesResponse>(&resources, "/v1.PodResourcesLister/Get", wanted).await;
    assert!(missing.unwrap_err().message().contains("pod none in namespace n not found"));

    // There is one left, and it is not enough for two.
    node.api.create(&path("two"), pod("two", 2));
    let refused = node.api.until("it is refused", &path("two"), phase("Failed")).await;
    let status = &refused["status"];
    assert_eq!(status["reason"], "UnexpectedAdmissionError");
    let message = status["message"].as_str().unwrap();
    assert!(message.contains("Requested: 2, Available: 1, which is unexpected"), "{message}");

    // What a pod has outlives the kubelet; the plugin announces itself to the new one.
    node.down().await;
    running.abort();
    node.up();
    node.api.until("they are gone with the plugin", NODE, has("0", "0")).await;
    plugin.has(&[("a", true), ("b", true)]);
    let running = plugin.start(&directory).await;
    node.api.until("the node tells of them again", NODE, has("2", "2")).await;
    node.api.create(&path("three"), pod("three", 1));
    node.api.until("it runs", &path("three"), phase("Running")).await;
    assert_eq!(plugin.calls()[2..], ["allocate a", "start a"]);

    // A pod that has ended gives back what it had.
    node.runtime.end(&node.runtime.container("one").unwrap().0, 0);
    node.api.until("it is done", &path("one"), phase("Succeeded")).await;
    let checkpoint = node.root().join("device-plugins/kubelet_internal_checkpoint");
    let is_held = || std::fs::read_to_string(&checkpoint).unwrap().contains("one-uid");
    until("it is given back", || !is_held()).await;
    node.api.create(&path("four"), pod("four", 1));
    node.api.until("it runs", &path("four"), phase("Running")).await;
    assert_eq!(plugin.calls()[4..], ["allocate b", "start b"]);
    plugin.end();
    running.abort();
    node.api.until("none can be used any more", NODE, has("2", "0")).await;
    node.down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_is_found_where_all_plugins_are() {
    if !available() {
        return;
    }
    let mut node = Node::start();
    node.api
        .until("the node is there", NODE, |node| node["status"]["capacity"].is_object().then_some(()))
        .await;
    assert!(node.root().join("device-plugins/DEPRECATION").exists(), "plugins see that they may");
    let socket = node.root().join("plugins_registry/thing.sock");
    let plugin = Plugin::new(&[("a", true), ("b", true)]);
    plugin.speaks(&["v7"]);
    let running = plugin.announce(&socket);
    until("it is told that it is refused", || !plugin.told().is_empty()).await;
    let (taken, why) = plugin.told().remove(0);
    let said = "plugin validation failed with err: manager version, v1beta1, is not among plugin supported versions [v7]";
    assert!(!taken && why.ends_with(said), "{why}");

    plugin.speaks(&["v7", "v1beta1"]);
    node.api.until("the node tells of them", NODE, has("2", "2")).await;
    node.api.create(&path("one"), pod("one", 1));
    node.api.until("it runs", &path("one"), phase("Running")).await;
    assert_eq!(plugin.calls(), ["allocate b", "start b"], "what it wants to be asked is known");

    // Its socket's end is its own.
    std::fs::remove_file(&socket).unwrap();
    node.api.until("they cannot be used any more", NODE, has("2", "0")).await;
    running.abort();
    node.down().await;
}
