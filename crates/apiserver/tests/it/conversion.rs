//! Versions of a custom kind that differ: a webhook makes one of the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use http::Method;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use crate::hook::Webhook;
use crate::support::Api;

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const V1: &str = "/apis/example.com/v1/namespaces/default/hosts";
const V2: &str = "/apis/example.com/v2/namespaces/default/hosts";

/// How the webhook behaves, and what it was asked.
#[derive(Default)]
struct Seen {
    fails: AtomicBool,
    renames: AtomicBool,
    objects: AtomicUsize,
}

/// `spec.address` of v1 is `spec.host` and `spec.port` of v2.
fn convert(object: &Value, wanted: &str) -> Value {
    let mut out = object.clone();
    out["apiVersion"] = wanted.into();
    let spec = &object["spec"];
    out["spec"] = if wanted.ends_with("/v2") {
        let (host, port) = spec["address"].as_str().unwrap_or_default().split_once(':').unwrap_or_default();
        json!({"host": host, "port": port})
    } else {
        json!({"address": format!("{}:{}", spec["host"].as_str().unwrap_or_default(), spec["port"].as_str().unwrap_or_default())})
    };
    out
}

fn answer(seen: &Seen, path: &str, review: &Value) -> Option<Value> {
    if path == "/hang" {
        return None;
    }
    let request = &review["request"];
    let wanted = request["desiredAPIVersion"].as_str().unwrap_or_default();
    let objects = request["objects"].as_array().cloned().unwrap_or_default();
    seen.objects.fetch_add(objects.len(), Ordering::SeqCst);
    let mut response = json!({"uid": request["uid"]});
    if seen.fails.load(Ordering::SeqCst) {
        response["result"] = json!({"status": "Failure", "message": "it cannot be done"});
    } else {
        response["result"] = json!({"status": "Success"});
        let mut made: Vec<Value> = objects.iter().map(|object| convert(object, wanted)).collect();
        if seen.renames.load(Ordering::SeqCst) {
            made[0]["metadata"]["name"] = "other".into();
        }
        response["convertedObjects"] = made.into();
    }
    Some(json!({"kind": "ConversionReview", "apiVersion": review["apiVersion"], "response": response}))
}

fn definition(webhook: &Webhook, path: &str, review: &str, stored: &str) -> Value {
    let text = json!({"type": "string"});
    let schema = |spec: Value| {
        json!({"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object",
        "properties": spec}}}})
    };
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "hosts.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "hosts", "singular": "host", "kind": "Host"},
            "conversion": {"strategy": "Webhook", "webhook": {
                "conversionReviewVersions": [review],
                "clientConfig": {"url": format!("https://{}{path}", webhook.address), "caBundle": webhook.ca},
            }},
            "versions": [
                {"name": "v1", "served": true, "storage": stored == "v1", "schema": schema(json!({"address": text}))},
                {
                    "name": "v2", "served": true, "storage": stored == "v2",
                    "schema": schema(json!({"host": text, "port": text,
                        "proto": {"type": "string", "default": "tcp"}})),
                    "selectableFields": [{"jsonPath": ".spec.host"}],
                    "additionalPrinterColumns": [{"name": "Host", "type": "string", "jsonPath": ".spec.host"}],
                },
            ],
        },
    })
}

fn host(version: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": format!("example.com/{version}"), "kind": "Host", "metadata": {"name": name}, "spec": spec})
}

async fn started(path: &str, review: &str) -> (Api, Webhook, Arc<Seen>) {
    let api = Api::start().await;
    api.post("/api/v1/namespaces", &json!({"metadata": {"name": "default"}})).await;
    let seen = Arc::new(Seen::default());
    let told = Arc::clone(&seen);
    let webhook = Webhook::start(move |path, review| answer(&told, path, review)).await;
    let (code, made) = api.post(DEFINITIONS, &definition(&webhook, path, review, "v1")).await;
    assert_eq!(code, 201, "{made:#}");
    let established = |_, body: &Value| body.to_string().contains("InitialNamesAccepted");
    api.until(&format!("{DEFINITIONS}/hosts.example.com"), established).await;
    (api, webhook, seen)
}

#[tokio::test]
async fn each_version_shows_what_the_webhook_makes_of_what_is_stored() {
    for review in ["v1", "v1beta1"] {
        let (api, _webhook, _) = started("/", review).await;
        let (code, made) = api.post(V1, &host("v1", "a", json!({"address": "ten:80"}))).await;
        assert_eq!(code, 201, "{made:#}");
        let (code, made) = api.post(V2, &host("v2", "b", json!({"host": "six", "port": "1"}))).await;
        assert_eq!((code, &made["apiVersion"]), (201, &json!("example.com/v2")), "{made:#}");
        // The store has no protocol to give back.
        assert_eq!(made["spec"], json!({"host": "six", "port": "1"}));
        let (_, one) = api.get(&format!("{V1}/b")).await;
        assert_eq!(
            (&one["apiVersion"], &one["spec"]),
            (&json!("example.com/v1"), &json!({"address": "six:1"}))
        );
        let (_, list) = api.get(V2).await;
        assert_eq!(list["items"][0]["spec"], json!({"host": "ten", "port": "80"}), "{list:#}");
        assert_eq!(list["items"][1]["apiVersion"], "example.com/v2");
        for (path, found) in [("ten", 1), ("none", 0)] {
            let (_, list) = api.get(&format!("{V2}?fieldSelector=spec.host%3D{path}")).await;
            assert_eq!(list["items"].as_array().map(Vec::len), Some(found), "{list:#}");
        }
        let patch = json!({"spec": {"port": "81"}});
        let (code, changed) = api.patch(&format!("{V2}/a"), &patch).await;
        assert_eq!((code, &changed["spec"]["port"]), (200, &json!("81")), "{changed:#}");
        assert_eq!(api.get(&format!("{V1}/a")).await.1["spec"]["address"], "ten:81");
        let mut replaced = api.get(&format!("{V2}/a")).await.1;
        let before = replaced["metadata"]["resourceVersion"].clone();
        // Who owns what is told with the second: within the same one, a change of that could not be seen.
        tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
        let again = api.ask(Method::PUT, &format!("{V2}/a"), "application/json", &replaced).await;
        assert_eq!((again.0, &again.1["metadata"]["resourceVersion"]), (200, &before), "nothing changed");
        replaced["spec"]["host"] = "eleven".into();
        let (code, _) = api.ask(Method::PUT, &format!("{V2}/a"), "application/json", &replaced).await;
        assert_eq!(code, 200);
        assert_eq!(api.get(&format!("{V1}/a")).await.1["spec"]["address"], "eleven:81");
        assert_eq!(api.delete(&format!("{V2}/a")).await.0, 200);
        assert_eq!(api.get(&format!("{V1}/a")).await.0, 404);
    }
}

#[tokio::test]
async fn what_was_stored_before_the_storage_version_changed_is_converted_too() {
    let (api, webhook, seen) = started("/", "v1").await;
    assert_eq!(api.post(V1, &host("v1", "old", json!({"address": "ten:80"}))).await.0, 201);
    let path = format!("{DEFINITIONS}/hosts.example.com");
    let spec = definition(&webhook, "/", "v1", "v2")["spec"].take();
    let (code, changed) = api.patch(&path, &json!({"spec": spec})).await;
    assert_eq!((code, &changed["status"]["storedVersions"]), (200, &json!(["v1", "v2"])), "{changed:#}");
    let shown = |_, body: &Value| body["items"][0]["spec"] == json!({"host": "ten", "port": "80"});
    api.until(V2, shown).await;
    assert_eq!(api.post(V2, &host("v2", "new", json!({"host": "a", "port": "1"}))).await.0, 201);
    let (_, list) = api.get(V1).await;
    let addresses: Vec<&Value> =
        list["items"].as_array().into_iter().flatten().map(|i| &i["spec"]["address"]).collect();
    assert_eq!(addresses, ["a:1", "ten:80"]);
    // What was asked a moment ago is known still.
    let asked = seen.objects.load(Ordering::SeqCst);
    api.get(V1).await;
    assert_eq!(seen.objects.load(Ordering::SeqCst), asked);
    // A version that may still be in the store cannot be taken from the definition.
    let mut without = api.get(&path).await.1;
    without["spec"]["versions"].as_array_mut().expect("versions").remove(0);
    let (code, refused) = api.ask(Method::PUT, &path, "application/json", &without).await;
    assert_eq!((code, &refused["details"]["causes"][0]["field"]), (422, &json!("status.storedVersions[0]")));
}

#[tokio::test]
async fn a_watch_tells_of_each_change_in_its_version() {
    let (api, _webhook, _) = started("/", "v1").await;
    assert_eq!(api.post(V1, &host("v1", "a", json!({"address": "ten:80"}))).await.0, 201);
    let reply = api.open(&format!("{V2}?watch=true&fieldSelector=spec.host%3Dten")).await;
    let mut body = reply.into_body();
    let mut next = async || -> Value {
        let frame =
            tokio::time::timeout(Duration::from_secs(30), body.frame()).await.expect("an event in time");
        let data = frame.expect("a frame").expect("no error").into_data().expect("data");
        serde_json::from_slice(&data).expect("an event")
    };
    let first = next().await;
    assert_eq!(
        (&first["type"], &first["object"]["spec"]["host"]),
        (&json!("ADDED"), &json!("ten")),
        "{first:#}"
    );
    for (address, kind, host) in
        [("ten:81", "MODIFIED", "ten"), ("six:1", "DELETED", "ten"), ("ten:2", "ADDED", "ten")]
    {
        api.patch(&format!("{V1}/a"), &json!({"spec": {"address": address}})).await;
        let event = next().await;
        assert_eq!(
            (&event["type"], &event["object"]["spec"]["host"]),
            (&json!(kind), &json!(host)),
            "{event:#}"
        );
        assert_eq!(event["object"]["apiVersion"], "example.com/v2");
    }
}

#[tokio::test]
async fn a_webhook_that_fails_fails_the_request_and_says_why() {
    let (api, _webhook, seen) = started("/", "v1").await;
    assert_eq!(api.post(V1, &host("v1", "a", json!({"address": "ten:80"}))).await.0, 201);
    seen.fails.store(true, Ordering::SeqCst);
    let told = "conversion webhook for example.com/v1, Kind=Host failed: it cannot be done";
    for path in [V2.to_owned(), format!("{V2}/a")] {
        let (code, refused) = api.get(&path).await;
        assert_eq!((code, &refused["message"]), (500, &json!(told)), "{path}");
    }
    let (code, refused) = api.post(V2, &host("v2", "b", json!({"host": "x", "port": "1"}))).await;
    let told = "conversion webhook for example.com/v2, Kind=Host failed: it cannot be done";
    assert_eq!((code, &refused["message"]), (500, &json!(told)));
    // The stored version needs nobody.
    assert_eq!(api.get(V1).await.1["items"].as_array().map(Vec::len), Some(1));
    seen.fails.store(false, Ordering::SeqCst);
    seen.renames.store(true, Ordering::SeqCst);
    let (code, refused) = api.get(&format!("{V2}/a")).await;
    let told = "conversion webhook for example.com/v1, Kind=Host returned invalid object: must have the same name: \
                a != other";
    assert_eq!((code, &refused["message"]), (500, &json!(told)));
}

#[tokio::test]
async fn owners_know_what_is_theirs_by_their_own_version() {
    const APPLY: &str = "application/apply-patch+yaml";
    let (api, _webhook, _) = started("/", "v1").await;
    let apply = async |place: &str, version: &str, manager: &str, spec: Value| {
        let path = format!("{place}/a?fieldManager={manager}");
        api.ask(Method::PATCH, &path, APPLY, &host(version, "a", spec)).await
    };
    let sets = |object: &Value| -> Vec<(String, String, Value)> {
        let entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        entries
            .iter()
            .map(|e| (text(&e["manager"]), text(&e["apiVersion"]), e["fieldsV1"]["f:spec"].clone()))
            .collect()
    };
    let (code, made) = apply(V1, "v1", "one", json!({"address": "ten:80"})).await;
    assert_eq!(code, 201, "{made:#}");
    // What is one field of v1 is two of v2: who changes one of them is in the way of who owns the whole.
    let (code, refused) = apply(V2, "v2", "two", json!({"port": "81"})).await;
    assert_eq!(code, 409, "{refused:#}");
    let cause = &refused["details"]["causes"][0];
    assert_eq!(
        (&cause["field"], &cause["message"]),
        (&json!(".spec.address"), &json!("conflict with \"one\""))
    );
    // The same value is in nobody's way.
    let (code, shared) = apply(V2, "v2", "two", json!({"port": "80"})).await;
    assert_eq!((code, &shared["spec"]["host"]), (200, &json!("ten")), "{shared:#}");
    let of = |manager: &str, version: &str, fields: Value| {
        (manager.to_owned(), format!("example.com/{version}"), fields)
    };
    assert_eq!(
        sets(&shared),
        [of("one", "v1", json!({"f:address": {}})), of("two", "v2", json!({"f:port": {}}))]
    );
    let (_, metrics) = api.get("/metrics").await;
    let counted =
        |start: &str| metrics.as_str().is_some_and(|text| text.lines().any(|line| line.starts_with(start)));
    assert!(counted("apiserver_conversion_webhook_request_total{failure_type=\"\",result=\"success\"}"));
    assert!(counted(
        "apiserver_crd_conversion_webhook_duration_seconds_count{crd_name=\"hosts.example.com\",\
         from_version=\"v2\",succeeded=\"true\",to_version=\"v1\"}"
    ));
    // Who changes it takes it from all who own it by any version.
    let patch = json!({"spec": {"address": "ten:82"}});
    let (code, changed) = api.patch(&format!("{V1}/a?fieldManager=three"), &patch).await;
    assert_eq!(code, 200, "{changed:#}");
    assert_eq!(sets(&changed), [of("three", "v1", json!({"f:address": {}}))]);
}
