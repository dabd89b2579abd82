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
async fn a_patch_may_be_of_who_owns_what() {
    let api = Api::start().await;
    api.post("/api/v1/namespaces", &json!({"metadata": {"name": "default"}})).await;
    let maps = "/api/v1/namespaces/default/configmaps";
    let made = json!({"metadata": {"name": "m"}, "data": {"a": "1"}});
    assert_eq!(api.post(&format!("{maps}?fieldManager=one"), &made).await.0, 201);
    let (m, json_patch) = (format!("{maps}/m?fieldManager=two"), "application/json-patch+json");
    let merge = "application/merge-patch+json";
    let ask = async |kind: &str, patch: Value| api.ask(Method::PATCH, &m, kind, &patch).await;
    let owners = |object: &Value| -> Vec<String> {
        let entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
        entries.iter().map(|entry| entry["manager"].as_str().unwrap_or_default().to_owned()).collect()
    };
    // Who owns what is left alone where a patch does not speak of it, and is read and changed where it does.
    let (code, changed) = ask(merge, json!({"data": {"b": "2"}})).await;
    assert_eq!((code, owners(&changed)), (200, vec!["one".to_owned(), "two".to_owned()]));
    let owner = |at: usize, name: &str| json!({"op": "test", "path": format!("/metadata/managedFields/{at}/manager"), "value": name});
    let (code, same) = ask(json_patch, json!([owner(0, "one"), owner(1, "two")])).await;
    assert_eq!((code, owners(&same).len()), (200, 2), "{same:#}");
    assert_eq!(ask(json_patch, json!([owner(0, "two")])).await.0, 422);
    let gone = json!([{"op": "remove", "path": "/metadata/managedFields/0"}]);
    let (code, left) = ask(json_patch, gone).await;
    assert_eq!((code, owners(&left)), (200, vec!["two".to_owned()]), "{left:#}");
    // What does not come of it is shown whole.
    let (code, refused) = ask(merge, json!({"data": {"a": []}})).await;
    assert_eq!(code, 422, "{refused:#}");
    let told = refused["message"].as_str().unwrap_or_default();
    assert!(told.contains("managedFields") && told.contains("resourceVersion"), "{told}");
    let (code, reset) = ask(merge, json!({"metadata": {"managedFields": [{}]}})).await;
    assert_eq!((code, owners(&reset)), (200, Vec::new()), "{reset:#}");
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

/// Autoscalers that managers apply, each by the version that it knows.
struct Appliers(Api);

impl Appliers {
    async fn start() -> Self {
        let api = Api::start().await;
        api.post("/api/v1/namespaces", &json!({"metadata": {"name": "default"}})).await;
        Appliers(api)
    }

    /// Applies a spec; `how` is more of the query.
    async fn apply(&self, manager: &str, path: &str, how: &str, spec: Value) -> (u16, Value) {
        let version = if path == V1 { "autoscaling/v1" } else { "autoscaling/v2" };
        let body = json!({"apiVersion": version, "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "a"}, "spec": spec});
        self.0.ask(Method::PATCH, &format!("{path}?fieldManager={manager}{how}"), APPLY, &body).await
    }

    /// The first manager makes the object, by version 1.
    async fn made(&self) {
        let (code, made) =
            self.apply("one", V1, "", first(json!({"targetCPUUtilizationPercentage": 50}))).await;
        assert_eq!(code, 201, "{made:#}");
    }
}

/// What an autoscaler has to say, and more.
fn first(more: Value) -> Value {
    let mut spec = json!({"maxReplicas": 3,
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}});
    spec.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    spec
}

/// The fields in which a write is in somebody's way.
fn in_the_way(status: &Value) -> Vec<(&str, &str)> {
    let causes = status["details"]["causes"].as_array().map_or(&[][..], Vec::as_slice);
    causes.iter().filter_map(|cause| Some((cause["message"].as_str()?, cause["field"].as_str()?))).collect()
}

#[tokio::test]
async fn what_another_applied_by_another_version_is_in_the_way_by_its_name_there() {
    let appliers = Appliers::start().await;
    appliers.made().await;
    // The same value is shared, another is not to be had without force.
    let (code, same) = appliers.apply("two", V2, "&dryRun=All", json!({"metrics": cpu(50)})).await;
    assert_eq!(code, 200, "{same:#}");
    assert!(owned(&same, "one").1.contains(&"f:targetCPUUtilizationPercentage"), "{same:#}");
    assert_eq!(owned(&same, "two"), ("autoscaling/v2", vec!["f:metrics"]));
    let (code, refused) = appliers.apply("two", V2, "", json!({"metrics": cpu(60)})).await;
    assert_eq!(code, 409, "{refused:#}");
    let way = [("conflict with \"one\"", ".spec.targetCPUUtilizationPercentage")];
    assert_eq!(in_the_way(&refused), way, "{refused:#}");

    let (code, forced) = appliers.apply("two", V2, "&force=true", json!({"metrics": cpu(60)})).await;
    assert_eq!(code, 200, "{forced:#}");
    let (version, fields) = owned(&forced, "one");
    assert_eq!((version, fields), ("autoscaling/v1", vec!["f:maxReplicas", "f:scaleTargetRef"]));
    assert_eq!(owned(&forced, "two"), ("autoscaling/v2", vec!["f:metrics"]));

    // Nor is it the other way round.
    let old = json!({"targetCPUUtilizationPercentage": 70});
    let (code, refused) = appliers.apply("one", V1, "", first(old)).await;
    assert_eq!(code, 409, "{refused:#}");
    assert_eq!(in_the_way(&refused), [("conflict with \"two\"", ".spec.metrics")], "{refused:#}");
}

#[tokio::test]
async fn who_applies_less_by_another_version_takes_away_what_nobody_else_wants() {
    let appliers = Appliers::start().await;
    appliers.made().await;
    let (code, shared) = appliers.apply("two", V2, "", json!({"metrics": cpu(50)})).await;
    assert_eq!(code, 200, "{shared:#}");
    // The first knows it by a new version now, and no longer cares for the processor: the other does.
    let (code, left) = appliers.apply("one", V2, "", first(json!({}))).await;
    assert_eq!(code, 200, "{left:#}");
    assert_eq!(left["spec"]["metrics"], cpu(50), "{left:#}");
    assert_eq!(owned(&left, "one"), ("autoscaling/v2", vec!["f:maxReplicas", "f:scaleTargetRef"]));
    assert_eq!(owned(&left, "two"), ("autoscaling/v2", vec!["f:metrics"]));
    // Once he does not, by the old version, it goes; and so does who owns nothing.
    let (code, gone) = appliers.apply("two", V1, "", json!({})).await;
    assert_eq!(code, 200, "{gone:#}");
    assert_eq!(gone["spec"]["targetCPUUtilizationPercentage"], 80, "what is said by default: {gone:#}");
    assert_eq!(gone["spec"]["maxReplicas"], 3, "{gone:#}");
}

#[tokio::test]
async fn what_an_applier_takes_away_is_in_nobodys_way() {
    let appliers = Appliers::start().await;
    appliers.made().await;
    // To the older version it looks as if the processor were no longer asked for.
    let memory = json!([{"type": "Resource", "resource": {"name": "memory",
        "target": {"type": "Utilization", "averageUtilization": 50}}}]);
    let (code, changed) = appliers.apply("two", V2, "", json!({"metrics": memory})).await;
    assert_eq!(code, 200, "{changed:#}");
    let (_, fields) = owned(&changed, "one");
    assert_eq!(fields, ["f:maxReplicas", "f:scaleTargetRef"], "{changed:#}");
}

#[tokio::test]
async fn an_event_that_was_applied_is_anothers_in_the_words_of_both_groups() {
    let api = Api::start().await;
    api.post("/api/v1/namespaces", &json!({"metadata": {"name": "default"}})).await;
    let old = json!({
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": "e", "namespace": "default"},
        "reason": "Testing", "message": "x", "type": "Normal", "action": "Try",
        "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"},
        "eventTime": "2026-01-01T00:00:00.000000Z", "reportingComponent": "example.com/a", "reportingInstance": "a-1",
        "series": {"count": 2, "lastObservedTime": "2026-01-01T00:00:01.000000Z"},
    });
    let path = "/api/v1/namespaces/default/events/e?fieldManager=one";
    let (code, made) = api.ask(Method::PATCH, path, APPLY, &old).await;
    assert_eq!(code, 201, "{made:#}");
    let new = |count: i32| {
        json!({"apiVersion": "events.k8s.io/v1", "kind": "Event",
            "metadata": {"name": "e", "namespace": "default"}, "series": {"count": count}})
    };
    let path = "/apis/events.k8s.io/v1/namespaces/default/events/e?fieldManager=two";
    let (code, refused) = api.ask(Method::PATCH, path, APPLY, &new(3)).await;
    assert_eq!(code, 409, "{refused:#}");
    assert_eq!(in_the_way(&refused), [("conflict with \"one\"", ".series.count")], "{refused:#}");
    let (code, shared) = api.ask(Method::PATCH, path, APPLY, &new(2)).await;
    assert_eq!(code, 200, "{shared:#}");
    // What the old words call a message and the new ones a note is still the first's.
    let mut noted = new(2);
    noted["note"] = "y".into();
    let (code, refused) = api.ask(Method::PATCH, path, APPLY, &noted).await;
    assert_eq!(code, 409, "{refused:#}");
    assert_eq!(in_the_way(&refused), [("conflict with \"one\"", ".message")], "{refused:#}");
}
