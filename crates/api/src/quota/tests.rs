use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuotaSpec, Service};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;

fn typed<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object")
}

fn now() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().expect("a time")
}

fn shown(usage: &Usage) -> String {
    usage.iter().map(|(name, amount)| format!("{name}={amount}")).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_pod_uses_what_its_containers_need_at_the_most() {
    let pod: Pod = typed(json!({"metadata": {}, "spec": {
        "overhead": {"cpu": "10m"},
        "initContainers": [
            {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}},
            {"name": "big", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}},
        ],
        "containers": [
            {"name": "a", "resources": {"requests": {"cpu": "200m", "example.com/gpu": "2"}, "limits": {"cpu": "1"}}},
            {"name": "b", "resources": {"requests": {"memory": "1Mi"}}},
        ],
    }}));
    let pods = Resource::new("", "pods");
    assert_eq!(
        shown(&usage(&pods, Counted::Pod(&pod), now())),
        "count/pods=1 cpu=1110m limits.cpu=1010m memory=1Gi pods=1 requests.cpu=1110m \
         requests.example.com/gpu=2 requests.memory=1Gi"
    );
    let mut ended = pod.clone();
    ended.status = typed(json!({"phase": "Succeeded"}));
    assert_eq!(shown(&usage(&pods, Counted::Pod(&ended), now())), "count/pods=1");
    let required = ["requests.cpu", "limits.memory", "requests.ephemeral-storage"];
    assert_eq!(
        missing(Counted::Pod(&pod), required.into_iter()).as_deref(),
        Some("limits.memory for: a,b,big,side; requests.cpu for: b")
    );
}

#[test]
fn a_pod_that_says_as_a_whole_what_it_asks_for_need_not_say_it_of_each_container() {
    let pod = |whole: Value| -> Pod {
        let spec = json!({"resources": {"requests": whole}, "containers": [{"name": "a"}]});
        typed(json!({"metadata": {}, "spec": spec}))
    };
    let missing = |pod: &Pod| missing(Counted::Pod(pod), ["requests.cpu", "requests.memory"].into_iter());
    assert_eq!(missing(&pod(json!({"cpu": "1"}))), None, "nor anything else");
    let told = "requests.cpu for: a; requests.memory for: a";
    assert_eq!(missing(&pod(json!({}))).as_deref(), Some(told));
    assert_eq!(missing(&pod(json!({"example.com/x": "1"}))).as_deref(), Some(told));
}

#[test]
fn a_pod_that_is_resized_uses_the_larger_until_it_is_done() {
    let pod = |condition: Value| -> Pod {
        let resources = |cpu: &str| json!({"requests": {"cpu": cpu}, "limits": {"cpu": cpu}});
        let status = |name: &str, has: &str, promised: &str| {
            json!({"name": name, "image": "i", "imageID": "", "ready": true, "restartCount": 0,
                "resources": resources(has), "allocatedResources": {"cpu": promised}})
        };
        typed(json!({"metadata": {}, "spec": {
            "initContainers": [{"name": "side", "restartPolicy": "Always", "resources": resources("1")}],
            "containers": [{"name": "a", "resources": resources("4")}],
        }, "status": {
            "conditions": [condition],
            "initContainerStatuses": [status("side", "2", "1")],
            "containerStatuses": [status("a", "1", "3")],
        }}))
    };
    let shown = |pod: &Pod| format!("{} {}", shown(&pod_requests(pod)), shown(&pod_limits(pod)));
    let pending = |reason: &str| json!({"type": "PodResizePending", "status": "True", "reason": reason});
    assert_eq!(shown(&pod(pending("Deferred"))), "cpu=6 cpu=6");
    assert_eq!(shown(&pod(pending("Infeasible"))), "cpu=5 cpu=3", "it will never have what it asks for");
}

#[test]
fn devices_of_a_class_are_extended_resources() {
    let name = "deviceclass.resource.kubernetes.io/gpu";
    let pod: Pod = typed(json!({"metadata": {}, "spec": {
        "containers": [{"name": "a", "resources": {"requests": {name: "2"}}}]}}));
    let pods = Resource::new("", "pods");
    let usage = usage(&pods, Counted::Pod(&pod), now());
    assert_eq!(shown(&usage), format!("count/pods=1 pods=1 requests.{name}=2"));
    assert!(pods.tracks(&format!("requests.{name}")));
}

#[test]
fn claims_and_services_use_more_than_their_number() {
    let claim: PersistentVolumeClaim = typed(json!({"metadata": {}, "spec": {
        "storageClassName": "gold", "resources": {"requests": {"storage": "1Gi"}}}}));
    assert_eq!(
        shown(&usage(&Resource::new("", "persistentvolumeclaims"), Counted::Claim(&claim), now())),
        "count/persistentvolumeclaims=1 gold.storageclass.storage.k8s.io/persistentvolumeclaims=1 \
         gold.storageclass.storage.k8s.io/requests.storage=1Gi persistentvolumeclaims=1 requests.storage=1Gi"
    );
    let service: Service = typed(json!({"metadata": {}, "spec": {
        "type": "LoadBalancer", "ports": [{"port": 1}, {"port": 2}]}}));
    assert_eq!(
        shown(&usage(&Resource::new("", "services"), Counted::Service(&service), now())),
        "count/services=1 services=1 services.loadbalancers=1 services.nodeports=2"
    );
}

#[test]
fn names_say_what_they_count() {
    let cases = [
        ("count/deployments.apps", "apps", "deployments"),
        ("count/pods", "", "pods"),
        ("requests.example.com/gpu", "", "pods"),
        ("hugepages-2Mi", "", "pods"),
        ("services.nodeports", "", "services"),
        ("gold.storageclass.storage.k8s.io/requests.storage", "", "persistentvolumeclaims"),
        ("gpu.deviceclass.resource.k8s.io/devices", "resource.k8s.io", "resourceclaims"),
        ("secrets", "", "secrets"),
    ];
    for (name, group, plural) in cases {
        assert_eq!(Resource::of_name(name), Some(Resource::new(group, plural)), "{name}");
    }
    assert_eq!(Resource::of_name("nothing"), None);
}

#[test]
fn scopes_choose_pods() {
    let pod: Pod = typed(json!({"metadata": {}, "spec": {
        "priorityClassName": "high", "activeDeadlineSeconds": 5, "containers": [{"name": "a"}]}}));
    let selector = |name: &str, operator: &str, values: Value| {
        typed::<ResourceQuotaSpec>(json!({"scopeSelector": {"matchExpressions": [
            {"scopeName": name, "operator": operator, "values": values}]}}))
    };
    let cases = [
        (typed(json!({"scopes": ["BestEffort", "Terminating"]})), true),
        (typed(json!({"scopes": ["NotBestEffort"]})), false),
        (typed(json!({"scopes": ["CrossNamespacePodAffinity"]})), false),
        (selector("PriorityClass", "In", json!(["high"])), true),
        (selector("PriorityClass", "NotIn", json!(["high"])), false),
        (selector("PriorityClass", "DoesNotExist", json!([])), false),
        (typed(json!({})), true),
    ];
    for (spec, expected) in cases {
        assert_eq!(in_scope(&spec, Counted::Pod(&pod)), expected, "{spec:?}");
    }
    assert!(!in_scope(&typed(json!({"scopes": ["BestEffort"]})), Counted::Other));
}
