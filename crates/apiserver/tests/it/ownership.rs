//! Whose fields are whose, where managers know an object by different versions of its kind.

use http::Method;
use serde_json::{Value, json};

use crate::support::Api;

const APPLY: &str = "application/apply-patch+yaml";
const V1: &str = "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers/a";
const V2: &str = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers/a";

/// What a manager owns of an object's spec, and in which version.
fn owned<'a>(object: &'a Value, manager: &str) -> (&'a str, Vec<&'a str>) {
    let entries = object["metadata"]["managedFields"].as_array().expect("managed fields");
    let entry = entries.iter().find(|entry| entry["manager"] == manager);
    let Some(entry) = entry else { return ("", Vec::new()) };
    let fields = entry["fieldsV1"]["f:spec"].as_object().into_iter().flat_map(|fields| fields.keys());
    (entry["apiVersion"].as_str().expect("a version"), fields.map(String::as_str).collect())
}

fn cpu(percent: i32) -> Value {
    let target = json!({"type": "Utilization", "averageUtilization": percent});
    json!([{"type": "Resource", "resource": {"name": "cpu", "target": target}}])
}

#[tokio::test]
async fn a_field_is_anothers_whichever_version_he_changed_it_in() {
    let api = Api::start().await;
    api.post("/api/v1/namespaces", &json!({"metadata": {"name": "default"}})).await;
    let apply = async |manager: &str, percent: i32| {
        let spec = json!({"maxReplicas": 3,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"},
            "targetCPUUtilizationPercentage": percent});
        let body = json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "a"}, "spec": spec});
        api.ask(Method::PATCH, &format!("{V1}?fieldManager={manager}"), APPLY, &body).await
    };
    let (code, made) = apply("one", 50).await;
    assert_eq!(code, 201, "{made:#}");
    let (version, fields) = owned(&made, "one");
    assert_eq!(version, "autoscaling/v1");
    assert!(fields.contains(&"f:targetCPUUtilizationPercentage"), "{fields:?}");

    let merge = "application/merge-patch+json";
    let of_two = format!("{V2}?fieldManager=two");
    let (code, same) = api.ask(Method::PATCH, &of_two, merge, &json!({"spec": {"metrics": cpu(50)}})).await;
    assert_eq!(code, 200, "{same:#}");
    assert!(owned(&same, "one").1.contains(&"f:targetCPUUtilizationPercentage"), "nothing has changed");
    let (code, changed) =
        api.ask(Method::PATCH, &of_two, merge, &json!({"spec": {"metrics": cpu(60)}})).await;
    assert_eq!(code, 200, "{changed:#}");
    let (version, fields) = owned(&changed, "one");
    assert_eq!(version, "autoscaling/v1");
    assert!(!fields.contains(&"f:targetCPUUtilizationPercentage"), "it is another's now: {fields:?}");
    assert!(fields.contains(&"f:maxReplicas"), "{fields:?}");
    assert_eq!(owned(&changed, "two"), ("autoscaling/v2", vec!["f:metrics"]));
}

#[tokio::test]
async fn an_event_is_owned_in_the_words_of_both_groups() {
    let api = Api::start().await;
    api.post("/api/v1/namespaces", &json!({"metadata": {"name": "default"}})).await;
    let event = json!({
        "metadata": {"name": "e", "namespace": "default"}, "reason": "Testing", "message": "x", "type": "Normal",
        "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"}, "action": "Try",
        "eventTime": "2026-01-01T00:00:00.000000Z", "reportingComponent": "example.com/a", "reportingInstance": "a-1",
        "series": {"count": 2, "lastObservedTime": "2026-01-01T00:00:01.000000Z"},
    });
    let events = "/api/v1/namespaces/default/events";
    let (code, made) = api.post(&format!("{events}?fieldManager=one"), &event).await;
    assert_eq!(code, 201, "{made:#}");
    let path = "/apis/events.k8s.io/v1/namespaces/default/events/e?fieldManager=two";
    let (code, changed) = api.patch(path, &json!({"series": {"count": 3}})).await;
    assert_eq!(code, 200, "{changed:#}");
    let entries = changed["metadata"]["managedFields"].as_array().expect("managed fields");
    let of = |manager: &str| entries.iter().find(|entry| entry["manager"] == manager).expect("an owner");
    assert_eq!(of("one")["apiVersion"], "v1");
    let fields = &of("one")["fieldsV1"];
    assert!(fields["f:message"].is_object(), "it is a note in the other group: {entries:#?}");
    assert!(fields["f:series"]["f:count"].is_null(), "it is another's now: {entries:#?}");
    assert_eq!(of("two")["apiVersion"], "events.k8s.io/v1");
    assert_eq!(of("two")["fieldsV1"], json!({"f:series": {"f:count": {}}}));
}
