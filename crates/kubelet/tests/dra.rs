//! Devices that pods have by claims, from the driver's announcement to the containers that have them, and back.

mod support;

use std::time::Duration;

use krate_kubelet::dra_api::{Health, V1, V1BETA1};
use krate_kubelet::pod_resources::{GetPodResourcesRequest, GetPodResourcesResponse};
use serde_json::{Value, json};
use support::dra::{Driver, NAME};
use support::plugin::ask;
use support::{Node, available, until};

const DEVICE: &str = "example.com/gpu=0";

fn path(name: &str) -> String {
    format!("/api/v1/namespaces/n/pods/{name}")
}

/// A pod with a claim, whose container has one request of it.
fn pod(name: &str, claim: Value) -> Value {
    let mut claim = claim;
    claim["name"] = json!("gpu");
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "n", "uid": format!("{name}-uid"), "generation": 1},
        "spec": {"nodeName": "node", "restartPolicy": "Never", "resourceClaims": [claim], "containers": [
            {"name": name, "image": "there:1", "resources": {"claims": [{"name": "gpu", "request": "one"}]}}]},
        "status": {"phase": "Pending", "qosClass": "BestEffort"}})
}

/// A claim that is allocated, and reserved for pods, as the scheduler would do it.
fn claim(node: &Node, name: &str, owner: &str, pods: &[&str]) {
    let reserved: Vec<Value> = pods
        .iter()
        .map(|pod| json!({"resource": "pods", "name": pod, "uid": format!("{pod}-uid")}))
        .collect();
    node.api.create(
        &format!("/apis/resource.k8s.io/v1/namespaces/n/resourceclaims/{name}"),
        json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
            "metadata": {"name": name, "namespace": "n", "uid": format!("{name}-uid"), "ownerReferences": [
                {"apiVersion": "v1", "kind": "Pod", "name": owner, "uid": format!("{owner}-uid"), "controller": true}]},
            "spec": {"devices": {"requests": [{"name": "one", "exactly": {"deviceClassName": "gpu"}}]}},
            "status": {"reservedFor": reserved, "allocation": {"devices": {"results": [
                {"request": "one", "driver": NAME, "pool": "pool", "device": "device"}]}}}}),
    );
}

fn slice(node: &Node, name: &str, driver: &str) -> String {
    let path = format!("/apis/resource.k8s.io/v1/resourceslices/{name}");
    node.api.create(
        &path,
        json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": name},
            "spec": {"driver": driver, "nodeName": "node", "pool": {"name": "pool", "generation": 1,
                "resourceSliceCount": 1}}}),
    );
    path
}

fn phase(wanted: &'static str) -> impl Fn(&Value) -> Option<()> {
    move |pod| (pod["status"]["phase"] == wanted).then_some(())
}

async fn end(node: &Node, name: &str) {
    node.api.update(
        &path(name),
        &json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 1}}),
    );
    node.api.until("the pod is gone", &path(name), |pod| pod.is_null().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_are_prepared_for_the_first_pod_and_unprepared_after_the_last() {
    if !available() {
        return;
    }
    let mut node = Node::start();
    let said = |node: &Node, what: &str| {
        let all = node.api.events();
        all.iter().any(|(reason, text)| reason == "FailedPrepareDynamicResources" && text.contains(what))
    };
    claim(&node, "claim", "one", &["one"]);
    let by_template = json!({"resourceClaimTemplateName": "template"});
    let mut one = pod("one", by_template);
    one["status"]["resourceClaimStatuses"] = json!([{"name": "gpu", "resourceClaimName": "claim"}]);
    node.api.create(&path("one"), one);
    let missing = "Failed to prepare dynamic resources: prepare dynamic resources: DRA driver dra.example.com is not registered";
    until("the driver is missing", || said(&node, missing)).await;

    let registry = node.root().join("plugins_registry");
    until("plugins can announce themselves", || registry.is_dir()).await;
    let driver = Driver::new(DEVICE, V1);
    driver.fails(Some("no luck"));
    let running = driver.start(&registry.join("dra.sock"));
    until("the driver refuses", || {
        said(&node, "NodePrepareResources failed for ResourceClaim claim: no luck")
    })
    .await;
    assert_eq!(driver.told(), [(true, String::new())]);
    driver.fails(None);
    node.api.until("it runs", &path("one"), phase("Running")).await;
    let (_, config) = node.runtime.container("one").unwrap();
    let devices: Vec<&str> = config.cdi_devices.iter().map(|device| device.name.as_str()).collect();
    assert_eq!(devices, [DEVICE]);

    // One for whom it is not reserved does not get it.
    node.api.create(&path("two"), pod("two", json!({"resourceClaimName": "claim"})));
    let refused = "pod two (two-uid) is not allowed to use ResourceClaim claim (claim-uid)";
    until("it is not reserved for the other", || said(&node, refused)).await;
    let reserved = |pod: &str| json!({"resource": "pods", "name": pod, "uid": format!("{pod}-uid")});
    node.api.update(
        "/apis/resource.k8s.io/v1/namespaces/n/resourceclaims/claim",
        &json!({"status": {"reservedFor": [reserved("one"), reserved("two")]}}),
    );
    node.api.until("it runs", &path("two"), phase("Running")).await;
    let prepared = driver.calls().iter().filter(|call| *call == "prepare claim").count();

    // Who asks is told who has what, and the pod's status how it is.
    let wanted = GetPodResourcesRequest { pod_name: "two".to_owned(), pod_namespace: "n".to_owned() };
    let resources = node.root().join("pod-resources");
    let answer: GetPodResourcesResponse =
        ask(&resources, "/v1.PodResourcesLister/Get", wanted).await.unwrap();
    let containers = answer.pod_resources.unwrap().containers;
    let has = &containers[0].dynamic_resources[0];
    assert_eq!((has.claim_name.as_str(), has.claim_namespace.as_str()), ("claim", "n"));
    let resource = &has.claim_resources[0];
    assert_eq!((resource.driver_name.as_str(), resource.cdi_devices[0].name.as_str()), (NAME, DEVICE));
    let healthy = |wanted: Value| {
        move |pod: &Value| {
            let told = &pod["status"]["containerStatuses"][0]["allocatedResourcesStatus"];
            (*told == json!([{"name": "claim:gpu/one", "resources": [wanted]}])).then_some(())
        }
    };
    let well = json!({"resourceID": DEVICE, "health": "Healthy"});
    node.api.until("it is well", &path("one"), healthy(well)).await;
    driver.is(Health::Unhealthy, "too hot");
    let ill = json!({"resourceID": DEVICE, "health": "Unhealthy", "message": "too hot"});
    node.api.until("it is not well", &path("one"), healthy(ill)).await;

    // With one of them nothing is unprepared. The other goes while no kubelet runs.
    end(&node, "one").await;
    node.down().await;
    assert!(!driver.calls().iter().any(|call| call.starts_with("unprepare")), "{:?}", driver.calls());
    assert_eq!(driver.calls().iter().filter(|call| *call == "prepare claim").count(), prepared);
    node.api.remove(&path("two"));
    node.up();
    until("it is unprepared", || driver.calls().contains(&"unprepare claim".to_owned())).await;
    let state = node.root().join("dra_manager_state");
    until("nothing is known of it any more", || {
        !std::fs::read_to_string(&state).unwrap().contains("claim-uid")
    })
    .await;
    running.abort();
    node.down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_has_ended_when_its_claims_are_unprepared() {
    if !available() {
        return;
    }
    let mut node = Node::start();
    claim(&node, "claim", "other", &["one"]);
    let registry = node.root().join("plugins_registry");
    until("plugins can announce themselves", || registry.is_dir()).await;
    // One that speaks the older language is understood too.
    let driver = Driver::new(DEVICE, V1BETA1);
    let running = driver.start(&registry.join("dra.sock"));
    node.api.create(&path("one"), pod("one", json!({"resourceClaimName": "claim"})));
    node.api.until("it runs", &path("one"), phase("Running")).await;
    driver.fails(Some("busy"));
    node.runtime.end(&node.runtime.container("one").unwrap().0, 0);
    until("it is to be unprepared", || driver.calls().contains(&"unprepare claim".to_owned())).await;
    assert_eq!(node.api.get(&path("one")).unwrap()["status"]["phase"], "Running");
    driver.fails(None);
    node.api.until("it is done", &path("one"), phase("Succeeded")).await;
    running.abort();
    node.down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slices_of_a_driver_that_is_away_for_long_go() {
    if !available() {
        return;
    }
    let mut node = Node::start_with(|config| config.slices_kept = Duration::from_millis(200));
    let registry = node.root().join("plugins_registry");
    until("plugins can announce themselves", || registry.is_dir()).await;
    let driver = Driver::new(DEVICE, V1);
    let running = driver.start(&registry.join("dra.sock"));
    until("it is registered", || !driver.told().is_empty()).await;
    let (own, others) = (slice(&node, "own", NAME), slice(&node, "others", "other.example.com"));
    running.abort();
    std::fs::remove_file(registry.join("dra.sock")).unwrap();
    node.api.until("its slices go", &own, |slice| slice.is_null().then_some(())).await;
    assert!(node.api.get(&others).is_some());

    // A kubelet that begins knows of no driver.
    node.down().await;
    node.up();
    node.api.until("all slices go", &others, |slice| slice.is_null().then_some(())).await;
    node.down().await;
}
