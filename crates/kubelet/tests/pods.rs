//! The life of pods, as the API sees it, over a runtime that is told what to do.

mod support;

use serde_json::{Value, json};
use support::{Node, available};

const POD: &str = "/api/v1/namespaces/n/pods/p";
const MAP: &str = "/api/v1/namespaces/n/configmaps/settings";

fn pod(spec: &Value) -> Value {
    let mut all = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "namespace": "n", "uid": "pod-uid", "generation": 1},
        "spec": {"nodeName": "node", "restartPolicy": "Always", "terminationGracePeriodSeconds": 5},
        "status": {"phase": "Pending", "qosClass": "BestEffort"}});
    for (key, value) in spec.as_object().unwrap() {
        all["spec"][key] = value.clone();
    }
    all
}

fn phase(wanted: &'static str) -> impl Fn(&Value) -> Option<Value> {
    move |pod| (pod["status"]["phase"] == wanted).then(|| pod.clone())
}

fn is_ready(pod: &Value) -> Option<Value> {
    let conditions = pod["status"]["conditions"].as_array()?;
    conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True").then(|| pod.clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_ready_at_once() {
    let mut node = Node::start();
    let found = node.api.until("the node is ready", "/api/v1/nodes/node", is_ready).await;
    assert_eq!(found["metadata"]["labels"]["kubernetes.io/hostname"], "node");
    assert_eq!(found["status"]["nodeInfo"]["containerRuntimeVersion"], "fake://1");
    assert_eq!(found["status"]["nodeInfo"]["kubeletVersion"], "v1.36.2");
    assert!(found["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_i64().unwrap() > 0);
    assert_eq!(found["status"]["capacity"]["pods"], "110");
    let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/node";
    let held = node
        .api
        .until("the lease is held", lease, |l| l["spec"]["holderIdentity"].as_str().map(str::to_owned));
    assert_eq!(held.await, "node");
    node.down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_runs_changes_and_goes() {
    if !available() {
        return;
    }
    let mut node = Node::start();
    node.api.create(
        MAP,
        json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "settings", "namespace": "n"}, "data": {"color": "blue"}}),
    );
    node.api.create(
        POD,
        pod(&json!({
        "containers": [{"name": "c", "image": "there:1", "command": ["run", "$(COLOR)"],
            "env": [{"name": "COLOR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "color"}}},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
            "volumeMounts": [{"name": "settings", "mountPath": "/settings"}]}],
        "volumes": [{"name": "settings", "configMap": {"name": "settings"}}]})),
    );
    let running = node.api.until("the pod runs", POD, is_ready).await;
    assert_eq!(running["status"]["podIP"], "10.0.0.7");
    let (id, config) = node.runtime.container("c").unwrap();
    assert_eq!(running["status"]["containerStatuses"][0]["containerID"], format!("fake://{id}"));
    assert_eq!(config.command, ["run", "blue"]);
    assert!(config.envs.iter().any(|e| e.key == "IP" && e.value == "10.0.0.7"));
    let sandbox = node.runtime.sandbox().unwrap();
    assert_eq!(sandbox.dns_config.unwrap().servers, ["10.96.0.10"]);

    // What is mounted follows the object.
    let mount = config.mounts.iter().find(|m| m.container_path == "/settings").unwrap();
    let file = std::path::Path::new(&mount.host_path).join("color");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "blue");
    node.api.update(MAP, &json!({"data": {"color": "red"}}));
    let deadline = tokio::time::Instant::now() + support::SOON;
    while std::fs::read_to_string(&file).unwrap() != "red" {
        assert!(tokio::time::Instant::now() < deadline, "the file did not follow");
        tokio::task::yield_now().await;
    }

    // Told to go, it goes, and nothing of it is left.
    node.api.update(
        POD,
        &json!({"metadata": {
        "deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 3}}),
    );
    node.api.until("the pod is gone", POD, |pod| pod.is_null().then_some(())).await;
    assert!(node.runtime.calls().contains(&"stop within 3".to_owned()), "{:?}", node.runtime.calls());
    let last = node.api.told().pop().unwrap();
    assert_eq!(last["containerStatuses"][0]["state"]["terminated"]["exitCode"], 143);
    assert!(node.runtime.is_empty());
    assert!(!node.root().join("pods/pod-uid").exists());
    node.down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_kubelet_finds_what_runs() {
    if !available() {
        return;
    }
    let mut node = Node::start();
    node.api.create(POD, pod(&json!({"containers": [{"name": "c", "image": "pulled:1"}]})));
    node.api.until("the pod runs", POD, is_ready).await;
    let before = node.runtime.calls();
    node.down().await;
    let (id, _) = node.runtime.container("c").unwrap();
    node.up();
    // It ends after the new one has come, which shows that it is watched, and is started once more at once.
    node.runtime.end(&id, 1);
    let again = |pod: &Value| {
        let container = &pod["status"]["containerStatuses"][0];
        (container["restartCount"] == 1 && container["state"]["running"].is_object()).then(|| pod.clone())
    };
    let found = node.api.until("the container runs again", POD, again).await;
    assert_eq!(found["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 1);
    let after = node.runtime.calls();
    assert_eq!(after[before.len()..], ["create c"], "nothing else was done");
    node.down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_has_done_its_work_succeeds() {
    if !available() {
        return;
    }
    let mut node = Node::start();
    node.api.create(
        POD,
        pod(&json!({"restartPolicy": "Never",
        "initContainers": [{"name": "first", "image": "there:1"}],
        "containers": [{"name": "c", "image": "there:1"}]})),
    );
    let initializing =
        |pod: &Value| pod["status"]["initContainerStatuses"][0]["state"]["running"].is_object().then_some(());
    node.api.until("the first one runs", POD, initializing).await;
    assert!(node.runtime.container("c").is_none(), "it waits for its turn");
    node.runtime.end(&node.runtime.container("first").unwrap().0, 0);
    node.api.until("the pod runs", POD, phase("Running")).await;
    node.runtime.end(&node.runtime.container("c").unwrap().0, 0);
    let done = node.api.until("the pod succeeds", POD, phase("Succeeded")).await;
    assert_eq!(done["status"]["containerStatuses"][0]["state"]["terminated"]["reason"], "Completed");
    node.down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_start_says_why() {
    if !available() {
        return;
    }
    let mut node = Node::start();
    node.api.create(
        POD,
        pod(&json!({"containers": [
        {"name": "a", "image": "missing:1"},
        {"name": "b", "image": "there:1", "env": [
            {"name": "X", "valueFrom": {"secretKeyRef": {"name": "none", "key": "k"}}}]}]})),
    );
    let reasons = |pod: &Value| {
        let of = |i: usize| {
            pod["status"]["containerStatuses"][i]["state"]["waiting"]["reason"].as_str().map(str::to_owned)
        };
        let (a, b) = (of(0)?, of(1)?);
        (a == "ErrImagePull" && b == "CreateContainerConfigError").then(|| pod.clone())
    };
    let found = node.api.until("both say why", POD, reasons).await;
    let message = &found["status"]["containerStatuses"][1]["state"]["waiting"]["message"];
    assert_eq!(message, "secret \"none\" not found");
    node.down().await;
}
