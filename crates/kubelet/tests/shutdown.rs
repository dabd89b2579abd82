//! The machine shuts down: what logind is asked, and what becomes of the node and of its pods.

mod support;

use std::time::Duration;

use krate_kubelet::{Config, LogindConfig, ShutdownPeriod};
use krate_testkit::{Bus, Logind};
use serde_json::{Value, json};
use support::{Node, available, until};

const NODE: &str = "/api/v1/nodes/node";
const MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";

fn path(name: &str) -> String {
    format!("/api/v1/namespaces/n/pods/{name}")
}

fn pod(name: &str, priority: i32) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "n", "uid": format!("{name}-uid"), "generation": 1},
        "spec": {"nodeName": "node", "restartPolicy": "Always", "priority": priority,
            "volumes": [{"name": "v", "emptyDir": {}}],
            "containers": [{"name": name, "image": "there:1",
                "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]},
        "status": {"phase": "Pending", "qosClass": "BestEffort"}})
}

fn phase(wanted: &'static str) -> impl Fn(&Value) -> Option<Value> {
    move |pod| (pod["status"]["phase"] == wanted).then(|| pod["status"].clone())
}

/// Seven seconds for most, and three for those that the node must not do without.
fn slowly(config: &mut Config) {
    let base = config.root_dir.parent().unwrap();
    let bus = Some(format!("unix:path={}", base.join("bus.sock").display()));
    config.logind = LogindConfig { bus, drop_ins: base.join("logind.conf.d") };
    config.shutdown = ShutdownPeriod::of_two(10, 3);
}

/// The message of the node's condition, once it is (not) ready.
fn ready(wanted: &'static str) -> impl Fn(&Value) -> Option<String> {
    move |node| {
        let mut conditions = node["status"]["conditions"].as_array()?.iter();
        let found = conditions.find(|c| c["type"] == "Ready" && c["status"] == wanted)?;
        Some(found["message"].as_str()?.to_owned())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_end_in_their_order_before_the_machine_does() {
    if !available() {
        return;
    }
    // Nobody is on the bus yet: the node does without.
    let mut node = Node::start_with(slowly);
    let base = node.base.path().to_owned();
    node.api.create(&path("plain"), pod("plain", 0));
    node.api.create(&path("critical"), pod("critical", 2_000_000_000));
    for name in ["plain", "critical"] {
        node.api.until("it runs", &path(name), phase("Running")).await;
    }
    let Some(bus) = Bus::start(&base) else { return };
    let logind = Logind::start(&bus, Duration::from_secs(5), &base.join("logind.conf.d"));
    until("the kubelet holds a lock", || !logind.locks().is_empty()).await;
    let lock = ["shutdown", "kubelet", "Kubelet needs time to handle node shutdown", "delay"];
    assert_eq!(logind.locks(), [lock.map(str::to_owned)]);
    let written = std::fs::read_to_string(base.join("logind.conf.d/99-kubelet.conf")).unwrap();
    assert_eq!(written, "# Kubelet logind override\n[Login]\nInhibitDelayMaxSec=10\n");

    logind.prepare_for_shutdown(true);
    let message = node.api.until("the node is not ready", NODE, ready("False")).await;
    assert_eq!(message, "node is shutting down");
    for name in ["plain", "critical"] {
        let status = node.api.until("it has ended", &path(name), phase("Failed")).await;
        assert_eq!((&status["reason"], &status["message"]), (&json!("Terminated"), &json!(MESSAGE)));
        let mut conditions = status["conditions"].as_array().unwrap().iter();
        let target = conditions.find(|c| c["type"] == "DisruptionTarget").expect("why it ended");
        assert_eq!((&target["status"], &target["reason"]), (&json!("True"), &json!("TerminationByKubelet")));
        assert_eq!(target["message"], MESSAGE);
    }
    until("the shutdown is let go on", || logind.locks().is_empty()).await;
    let stops: Vec<String> =
        node.runtime.calls().into_iter().filter(|call| call.starts_with("stop within")).collect();
    assert_eq!(stops, ["stop within 7", "stop within 3"]);
    assert!(!node.root().join("pods/plain-uid/volumes").exists(), "nothing is mounted any more");
    let record = std::fs::read_to_string(node.root().join("graceful_node_shutdown_state")).unwrap();
    let record: Value = serde_json::from_str(&record).unwrap();
    assert!(record["endTime"].as_str().unwrap() >= record["startTime"].as_str().unwrap(), "{record}");

    node.api.create(&path("late"), pod("late", 2_000_000_000));
    let late = node.api.until("it is refused", &path("late"), phase("Failed")).await;
    assert_eq!(late["reason"], "NodeShutdown");
    assert_eq!(late["message"], "Pod was rejected: Pod was rejected as the node is shutting down.");

    // Called off: the node is as before, and waits for the next one.
    logind.prepare_for_shutdown(false);
    node.api.until("the node is ready again", NODE, ready("True")).await;
    until("the kubelet holds a lock again", || logind.locks().len() == 1).await;
    node.api.create(&path("next"), pod("next", 0));
    node.api.until("it runs", &path("next"), phase("Running")).await;
    let events = node.api.events();
    for said in
        ["Shutdown manager detected shutdown event", "Shutdown manager detected shutdown cancellation"]
    {
        assert!(events.iter().any(|event| *event == ("Shutdown".to_owned(), said.to_owned())), "{events:?}");
    }

    // The bus goes and another one comes.
    drop((logind, bus));
    let bus = Bus::start(&base).unwrap();
    let logind = Logind::start(&bus, Duration::from_mins(1), &base.join("none"));
    until("the kubelet holds a lock of the new one", || logind.locks().len() == 1).await;
    logind.prepare_for_shutdown(true);
    node.api.until("it has ended", &path("next"), phase("Failed")).await;
    until("the shutdown is let go on", || logind.locks().is_empty()).await;
    node.down().await;
}
