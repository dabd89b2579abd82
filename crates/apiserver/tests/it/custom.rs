//! Custom resources, from their definition to its end.

use crate::support::Api;
use http::Method;
use serde_json::{Value, json};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const WIDGETS: &str = "/apis/example.com/v1/namespaces/default/widgets";

fn definition() -> Value {
    let schema = json!({"type": "object", "properties": {
        "spec": {"type": "object", "required": ["size"], "properties": {
            "size": {"type": "integer", "minimum": 1},
            "color": {"type": "string", "default": "red"},
            "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        }},
        "status": {"type": "object", "properties": {"replicas": {"type": "integer"}}},
    }});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "shortNames": ["wid"]},
            "versions": [
                {
                    "name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema},
                    "subresources": {"status": {}, "scale": {
                        "specReplicasPath": ".spec.size", "statusReplicasPath": ".status.replicas",
                    }},
                    "selectableFields": [{"jsonPath": ".spec.color"}],
                    "additionalPrinterColumns": [{"name": "Size", "type": "integer", "jsonPath": ".spec.size"}],
                },
                {"name": "v1beta1", "served": true, "storage": false, "schema": {"openAPIV3Schema": schema}},
            ],
        },
    })
}

async fn defined() -> Api {
    let api = Api::start().await;
    api.post("/api/v1/namespaces", &json!({"metadata": {"name": "default"}})).await;
    let (code, made) = api.post(DEFINITIONS, &definition()).await;
    assert_eq!(code, 201, "{made:#}");
    let is_established = |_, body: &Value| body.to_string().contains("InitialNamesAccepted");
    api.until(&format!("{DEFINITIONS}/widgets.example.com"), is_established).await;
    api
}

fn widget(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec})
}

#[tokio::test]
async fn a_definition_makes_a_kind_that_is_served_like_any_other() {
    let api = defined().await;
    let (_, resources) = api.get("/apis/example.com/v1").await;
    let names: Vec<&str> =
        resources["resources"].as_array().into_iter().flatten().filter_map(|r| r["name"].as_str()).collect();
    assert_eq!(names, ["widgets", "widgets/status", "widgets/scale"]);

    let (code, made) = api.post(WIDGETS, &widget("w", json!({"size": 2, "unknown": 1}))).await;
    assert_eq!((code, &made["spec"]), (201, &json!({"color": "red", "size": 2})), "{made:#}");
    assert_eq!(made["metadata"]["generation"], 1);

    let (code, refused) = api.post(WIDGETS, &widget("x", json!({"size": 0, "tags": ["a", "a"]}))).await;
    assert_eq!(code, 422);
    let causes: Vec<(&str, &str)> = refused["details"]["causes"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|c| (c["field"].as_str().unwrap_or_default(), c["message"].as_str().unwrap_or_default()))
        .collect();
    assert_eq!(
        causes,
        [
            ("spec.size", "Invalid value: 0: spec.size in body should be greater than or equal to 1"),
            ("spec.tags[1]", "Duplicate value: \"a\""),
        ]
    );

    let (_, changed) =
        api.patch(&format!("{WIDGETS}/w"), &json!({"spec": {"size": 3}, "status": {"replicas": 9}})).await;
    assert_eq!((&changed["metadata"]["generation"], &changed["status"]), (&json!(2), &Value::Null));
    let (_, told) = api
        .patch(&format!("{WIDGETS}/w/status"), &json!({"spec": {"size": 7}, "status": {"replicas": 1}}))
        .await;
    assert_eq!((&told["spec"]["size"], &told["status"]["replicas"]), (&json!(3), &json!(1)));
    let (_, scale) = api.patch(&format!("{WIDGETS}/w/scale"), &json!({"spec": {"replicas": 5}})).await;
    assert_eq!((&scale["spec"]["replicas"], &scale["status"]["replicas"]), (&json!(5), &json!(1)));

    let (code, _) = api
        .ask(Method::PATCH, &format!("{WIDGETS}/w"), "application/strategic-merge-patch+json", &json!({}))
        .await;
    assert_eq!(code, 415);
    let (_, list) = api.get(&format!("{WIDGETS}?fieldSelector=spec.color%3Dred")).await;
    assert_eq!(list["items"].as_array().map(Vec::len), Some(1), "{list:#}");
    assert_eq!(list["kind"], "WidgetList");
}

#[tokio::test]
async fn its_documents_describe_it_for_as_long_as_it_is_served() {
    let api = defined().await;
    let (_, index) = api.get("/openapi/v3").await;
    let place = index["paths"]["apis/example.com/v1"]["serverRelativeURL"].as_str().expect("its document");
    let (code, v3) = api.get(place).await;
    assert_eq!(code, 200, "{v3}");
    let schema = &v3["components"]["schemas"]["com.example.v1.Widget"];
    assert_eq!(schema["properties"]["spec"]["properties"]["size"], json!({"type": "integer", "minimum": 1}));
    assert_eq!(schema["x-kubernetes-group-version-kind"][0]["kind"], "Widget");
    let metadata = &schema["properties"]["metadata"]["allOf"][0]["$ref"];
    let there = v3.pointer(metadata.as_str().expect("a reference").trim_start_matches('#'));
    assert!(there.is_some_and(|t| t["properties"]["labels"].is_object()), "{metadata}");
    let of_list = &v3["paths"]["/apis/example.com/v1/namespaces/{namespace}/widgets"]["get"];
    let answer = &of_list["responses"]["200"]["content"]["application/json"]["schema"]["$ref"];
    assert_eq!(answer, "#/components/schemas/com.example.v1.WidgetList");
    assert!(v3["paths"]["/apis/example.com/v1/namespaces/{namespace}/widgets/{name}/scale"].is_object());

    let (_, v2) = api.get("/openapi/v2").await;
    let definitions = v2["definitions"].as_object().expect("definitions");
    for name in ["com.example.v1.Widget", "com.example.v1.WidgetList", "com.example.v1beta1.Widget"] {
        assert!(definitions.contains_key(name), "{name}");
    }
    api.delete(&format!("{DEFINITIONS}/widgets.example.com")).await;
    let gone = |_, body: &Value| body["paths"]["apis/example.com/v1"].is_null();
    api.until("/openapi/v3", gone).await;
}

#[tokio::test]
async fn versions_show_the_same_objects() {
    let api = defined().await;
    let beta = WIDGETS.replace("/v1/", "/v1beta1/");
    let mut object = widget("w", json!({"size": 2}));
    object["apiVersion"] = "example.com/v1beta1".into();
    let (code, made) = api.post(&beta, &object).await;
    assert_eq!((code, &made["apiVersion"]), (201, &json!("example.com/v1beta1")));
    for (path, version) in [(WIDGETS, "example.com/v1"), (&beta, "example.com/v1beta1")] {
        let (_, one) = api.get(&format!("{path}/w")).await;
        assert_eq!(one["apiVersion"], version);
        let (_, list) = api.get(path).await;
        assert_eq!(list["items"][0]["apiVersion"], version);
    }
}

#[tokio::test]
async fn with_a_definition_its_objects_and_paths_go() {
    let api = defined().await;
    let mut held = widget("held", json!({"size": 1}));
    held["metadata"]["finalizers"] = json!(["example.com/held"]);
    assert_eq!(api.post(WIDGETS, &held).await.0, 201);
    assert_eq!(api.post(WIDGETS, &widget("free", json!({"size": 1}))).await.0, 201);

    let (code, going) = api.delete(&format!("{DEFINITIONS}/widgets.example.com")).await;
    assert_eq!(code, 200);
    assert_eq!(going["metadata"]["finalizers"], json!(["customresourcecleanup.apiextensions.k8s.io"]));
    assert!(going.to_string().contains("InstanceDeletionPending"), "{going:#}");
    let place = format!("{DEFINITIONS}/widgets.example.com");
    let told = api.until(&place, |_, body| body.to_string().contains("InstanceDeletionInProgress")).await;
    let conditions = told["status"]["conditions"].as_array().cloned().unwrap_or_default();
    assert!(conditions.iter().any(|c| c["type"] == "Terminating" && c["status"] == "True"), "{told:#}");
    let told = api.get("/apis/example.com/v1").await.1;
    assert_eq!(told["resources"][0]["verbs"], json!(["delete", "deletecollection", "get", "list", "watch"]));
    let (code, refused) = api.post(WIDGETS, &widget("late", json!({"size": 1}))).await;
    assert_eq!(
        (code, &refused["message"]),
        (
            403,
            &json!(
                "widgets.example.com \"late\" is forbidden: create not allowed while custom resource definition is \
                 terminating"
            )
        )
    );
    let one_is_left = |_, body: &Value| body["items"].as_array().is_some_and(|items| items.len() == 1);
    api.until(WIDGETS, one_is_left).await;
    api.patch(&format!("{WIDGETS}/held"), &json!({"metadata": {"finalizers": null}})).await;
    api.until(&format!("{DEFINITIONS}/widgets.example.com"), |code, _| code == 404).await;
    api.until("/apis/example.com/v1", |code, _| code == 404).await;
    assert_eq!(api.get(WIDGETS).await.0, 404);
}

#[tokio::test]
async fn a_name_in_use_is_not_given_twice() {
    let api = defined().await;
    let mut second = definition();
    second["metadata"]["name"] = "gadgets.example.com".into();
    second["spec"]["names"] = json!({"plural": "gadgets", "kind": "Gadget", "shortNames": ["wid"]});
    assert_eq!(api.post(DEFINITIONS, &second).await.0, 201);
    let path = format!("{DEFINITIONS}/gadgets.example.com");
    let told = api.until(&path, |_, body| body.to_string().contains("ShortNamesConflict")).await;
    let conditions = told["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let of = |kind: &str| conditions.iter().find(|c| c["type"] == kind).cloned().unwrap_or_default();
    assert_eq!(of("NamesAccepted")["message"], "\"wid\" is already in use");
    assert_eq!(of("Established")["status"], "False");
    api.delete(&format!("{DEFINITIONS}/widgets.example.com")).await;
    api.until(&path, |_, body| body.to_string().contains("InitialNamesAccepted")).await;
}

#[tokio::test]
async fn what_was_wrong_before_a_schema_grew_stricter_does_not_stop_other_changes() {
    let api = defined().await;
    let (code, _) = api.post(WIDGETS, &widget("w", json!({"size": 7}))).await;
    assert_eq!(code, 201);
    let mut stricter = definition()["spec"].take();
    for version in stricter["versions"].as_array_mut().expect("versions") {
        let spec = &mut version["schema"]["openAPIV3Schema"]["properties"]["spec"];
        spec["properties"]["size"]["maximum"] = 5.into();
        spec["x-kubernetes-validations"] = json!([{"rule": "self.size < 6", "message": "too large"}]);
    }
    let path = format!("{DEFINITIONS}/widgets.example.com");
    let (code, changed) = api.patch(&path, &json!({"spec": stricter})).await;
    assert_eq!(code, 200, "{changed:#}");
    let refused = |code, _: &Value| code == 422;
    let again = widget("again", json!({"size": 7}));
    let end = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    while !refused(api.post(&format!("{WIDGETS}?dryRun=All"), &again).await.0, &again) {
        assert!(tokio::time::Instant::now() < end, "the stricter schema is not taken in");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let object = format!("{WIDGETS}/w");
    let (code, kept) = api.patch(&object, &json!({"metadata": {"labels": {"a": "b"}}})).await;
    assert_eq!(code, 200, "{kept:#}");
    let (code, refused) = api.patch(&object, &json!({"spec": {"size": 8}})).await;
    assert_eq!((code, refused["details"]["causes"].as_array().map(Vec::len)), (422, Some(2)), "{refused:#}");
}
