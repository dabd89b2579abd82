//! Webhooks are asked over TLS about what they say they want to be asked about, and their word counts.

use base64::Engine as _;
use serde_json::{Value, json};

use crate::asking::{Cluster, config_map};
use crate::hook::Webhook;

/// What is answered to a review, by the path that was asked.
fn answer(path: &str, review: &Value) -> Option<Value> {
    if path == "/hang" {
        return None;
    }
    let request = &review["request"];
    let patch = |operations: Value| base64::engine::general_purpose::STANDARD.encode(operations.to_string());
    let label = |key: &str| request["object"]["metadata"]["labels"][key].as_str().map(str::to_owned);
    let mut response = json!({"uid": request["uid"], "allowed": true});
    match path {
        "/label" => {
            // How often it was asked, told in what it writes.
            let times = label("asked").and_then(|n| n.parse::<u32>().ok()).unwrap_or(0) + 1;
            let operations = match &request["object"]["metadata"]["labels"] {
                Value::Null => {
                    json!([{"op": "add", "path": "/metadata/labels", "value": {"asked": times.to_string()}}])
                }
                _ => json!([{"op": "add", "path": "/metadata/labels/asked", "value": times.to_string()}]),
            };
            response["patch"] = patch(operations).into();
            response["patchType"] = "JSONPatch".into();
        }
        "/once" if label("second").is_none() => {
            response["patch"] =
                patch(json!([{"op": "add", "path": "/metadata/labels/second", "value": "yes"}])).into();
            response["patchType"] = "JSONPatch".into();
        }
        "/judge" if label("bad").is_some() => {
            response["allowed"] = false.into();
            response["status"] = json!({"code": 403, "message": "it is bad", "reason": "Forbidden"});
        }
        "/never" => {
            response["allowed"] = false.into();
            response["status"] = json!({"code": 403, "message": "never"});
        }
        "/elsewhere" => {
            response["patch"] =
                patch(json!([{"op": "replace", "path": "/container", "value": "d d"}])).into();
            response["patchType"] = "JSONPatch".into();
        }
        "/rewrite" => {
            let (sort, operation) = match request["kind"]["kind"].as_str() {
                Some("Scale") if request["oldObject"]["spec"]["replicas"] == 1 => {
                    ("UPDATE", json!({"op": "add", "path": "/spec/replicas", "value": 5}))
                }
                Some("Binding") => {
                    ("CREATE", json!({"op": "add", "path": "/metadata/labels", "value": {"gained": "yes"}}))
                }
                Some("TokenRequest") => {
                    ("CREATE", json!({"op": "add", "path": "/spec/audiences", "value": ["changed"]}))
                }
                _ => ("", Value::Null),
            };
            if request["operation"] == sort && request["object"]["kind"] == request["kind"]["kind"] {
                response["patch"] = patch(json!([operation])).into();
                response["patchType"] = "JSONPatch".into();
            }
        }
        "/tell" => {
            response["allowed"] = false.into();
            let told = json!([request["kind"]["kind"], request["options"], request["object"]["spec"]]);
            response["status"] = json!({"code": 403, "message": told.to_string()});
        }
        "/judge" => response["warnings"] = json!(["it is not very good"]),
        _ => {}
    }
    Some(json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}))
}

fn hook(webhook: &Webhook, name: &str, path: &str, more: Value) -> Value {
    let mut hook = json!({
        "name": name, "admissionReviewVersions": ["v1"], "sideEffects": "None",
        "clientConfig": {"url": format!("https://{}{path}", webhook.address), "caBundle": webhook.ca},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["*"], "resources": ["configmaps"]}],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "a"}},
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        hook[key] = value.clone();
    }
    hook
}

const CONFIGURATIONS: &str = "/apis/admissionregistration.k8s.io/v1";
const MAPS: &str = "/api/v1/namespaces/a/configmaps";

async fn configure(cluster: &Cluster, kind: &str, name: &str, hooks: Value) {
    let configuration = json!({"metadata": {"name": name}, "webhooks": hooks});
    cluster.post(&format!("{CONFIGURATIONS}/{kind}"), configuration).await.created();
}

async fn cluster() -> (Cluster, Webhook) {
    let cluster = Cluster::start().await;
    cluster.namespace("a", json!({})).await;
    (cluster, Webhook::start(answer).await)
}

#[tokio::test]
async fn a_webhook_changes_what_is_written_and_is_asked_again_when_others_do() {
    let (cluster, webhook) = cluster().await;
    let hooks = json!([
        hook(&webhook, "one.example.com", "/label", json!({"reinvocationPolicy": "IfNeeded"})),
        hook(&webhook, "two.example.com", "/once", json!({})),
        hook(
            &webhook,
            "three.example.com",
            "/label",
            json!({
            "matchConditions": [{"name": "never", "expression": "object.metadata.name == 'other'"}]})
        ),
    ]);
    configure(&cluster, "mutatingwebhookconfigurations", "m", hooks).await;
    let made = cluster.post(MAPS, config_map("x", json!({}))).await.created();
    assert_eq!(made["metadata"]["labels"], json!({"asked": "2", "second": "yes"}));
    let elsewhere = cluster.post("/api/v1/namespaces/default/configmaps", config_map("x", json!({}))).await;
    assert_eq!(elsewhere.created()["metadata"]["labels"], Value::Null, "the namespace is not selected");
}

#[tokio::test]
async fn a_webhook_refuses_and_warns() {
    let (cluster, webhook) = cluster().await;
    let hooks = json!([hook(&webhook, "judge.example.com", "/judge", json!({}))]);
    configure(&cluster, "validatingwebhookconfigurations", "v", hooks).await;
    let good = cluster.post(MAPS, config_map("good", json!({}))).await;
    assert_eq!(good.code, 201, "{}", good.body);
    assert!(good.warnings.iter().any(|w| w.contains("it is not very good")), "{:?}", good.warnings);
    let mut bad = config_map("bad", json!({}));
    bad["metadata"]["labels"] = json!({"bad": "yes"});
    let refused = cluster.post(MAPS, bad).await;
    let expected = "admission webhook \"judge.example.com\" denied the request: it is bad";
    assert_eq!((refused.code, refused.message()), (403, expected));
    assert_eq!(
        cluster.ask("DELETE", &format!("{MAPS}/good"), Value::Null).await.code,
        200,
        "deletions are asked about"
    );
}

#[tokio::test]
async fn a_webhook_that_fails_is_treated_by_its_policy() {
    let (cluster, webhook) = cluster().await;
    let hanging =
        hook(&webhook, "hangs.example.com", "/hang", json!({"timeoutSeconds": 1, "failurePolicy": "Ignore"}));
    configure(&cluster, "validatingwebhookconfigurations", "hangs", json!([hanging])).await;
    assert_eq!(cluster.post(MAPS, config_map("x", json!({}))).await.code, 201);
    let hanging = hook(&webhook, "hangs.example.com", "/hang", json!({"timeoutSeconds": 1}));
    configure(&cluster, "validatingwebhookconfigurations", "strict", json!([hanging])).await;
    let refused = cluster.post(MAPS, config_map("y", json!({}))).await;
    assert_eq!(refused.code, 500);
    let expected =
        "Internal error occurred: failed calling webhook \"hangs.example.com\": failed to call webhook: Post";
    assert!(refused.message().starts_with(expected), "{}", refused.message());
    assert!(refused.message().ends_with("context deadline exceeded"), "{}", refused.message());
    for name in ["hangs", "strict"] {
        let path = format!("{CONFIGURATIONS}/validatingwebhookconfigurations/{name}");
        assert_eq!(
            cluster.ask("DELETE", &path, Value::Null).await.code,
            200,
            "webhooks are not asked about themselves"
        );
    }
    // Somebody else's authority.
    let mut stranger = hook(&webhook, "stranger.example.com", "/judge", json!({}));
    let other = Webhook::start(answer).await;
    stranger["clientConfig"]["caBundle"] = other.ca.clone().into();
    configure(&cluster, "validatingwebhookconfigurations", "stranger", json!([stranger])).await;
    let refused = cluster.post(MAPS, config_map("z", json!({}))).await;
    assert!(refused.message().contains("tls: "), "{}", refused.message());
}

#[tokio::test]
async fn a_dry_run_asks_only_those_without_side_effects() {
    let (cluster, webhook) = cluster().await;
    // It answers with a review of a version that knows side effects.
    let mut hook = hook(&webhook, "some.example.com", "/judge", json!({"sideEffects": "NoneOnDryRun"}));
    configure(&cluster, "validatingwebhookconfigurations", "v", json!([hook.clone()])).await;
    let dry = format!("{MAPS}?dryRun=All");
    assert_eq!(cluster.post(&dry, config_map("x", json!({}))).await.code, 201);
    let path = format!("{CONFIGURATIONS}/validatingwebhookconfigurations/v");
    assert_eq!(cluster.ask("DELETE", &path, Value::Null).await.code, 200);
    hook["sideEffects"] = "Some".into();
    let refused = cluster
        .post(
            &format!("{CONFIGURATIONS}/validatingwebhookconfigurations"),
            json!({"metadata": {"name": "w"}, "webhooks": [hook]}),
        )
        .await;
    assert_eq!(refused.code, 422, "v1 lets no webhook have side effects in a dry run");
}

#[tokio::test]
async fn who_would_change_an_object_is_asked_about_deletions_and_connections_too() {
    let (cluster, webhook) = cluster().await;
    cluster.post(MAPS, config_map("x", json!({}))).await.created();
    cluster.post("/api/v1/namespaces/a/pods", crate::asking::pod("p", json!({}))).await.created();
    let rules = json!([
        {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["DELETE"], "resources": ["configmaps"]},
        {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CONNECT"], "resources": ["pods/exec"]},
    ]);
    let hooks = json!([hook(&webhook, "never.example.com", "/never", json!({"rules": rules}))]);
    configure(&cluster, "mutatingwebhookconfigurations", "m", hooks).await;
    let denied = "admission webhook \"never.example.com\" denied the request: never";
    let refused = cluster.ask("DELETE", &format!("{MAPS}/x"), Value::Null).await;
    assert_eq!((refused.code, refused.message()), (403, denied));
    let refused =
        cluster.ask("GET", "/api/v1/namespaces/a/pods/p/exec?command=ls&container=c", Value::Null).await;
    assert_eq!((refused.code, refused.message()), (403, denied));
}

#[tokio::test]
async fn a_connection_is_made_as_webhooks_leave_its_options() {
    let (cluster, webhook) = cluster().await;
    cluster.post("/api/v1/namespaces/a/pods", crate::asking::pod("p", json!({}))).await.created();
    let rules = json!([
        {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CONNECT"], "resources": ["pods/attach"]},
    ]);
    let hooks = json!([hook(&webhook, "elsewhere.example.com", "/elsewhere", json!({"rules": rules}))]);
    configure(&cluster, "mutatingwebhookconfigurations", "m", hooks).await;
    let pod = "/api/v1/namespaces/a/pods/p";
    let told = cluster.ask("GET", &format!("{pod}/exec?command=ls&container=x"), Value::Null).await;
    assert_eq!(told.message(), "container x is not valid for pod p", "nobody is asked about this");
    let told = cluster.ask("GET", &format!("{pod}/attach?stdin=true&container=c"), Value::Null).await;
    assert_eq!(told.message(), "container d d is not valid for pod p");
}

/// What a webhook tells of what it was asked: the kind, the options, and the specification of the object.
fn told(answer: &crate::asking::Answer) -> Value {
    let (_, told) = answer.message().split_once("denied the request: ").expect("a denial");
    serde_json::from_str(told).expect("what was asked")
}

#[tokio::test]
async fn what_is_not_stored_is_asked_about_as_what_it_is() {
    let (cluster, webhook) = cluster().await;
    let sets = "/apis/apps/v1/namespaces/a/replicasets";
    let template =
        json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let spec = json!({"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "template": template});
    cluster.post(sets, json!({"metadata": {"name": "s"}, "spec": spec})).await.created();
    cluster.post("/api/v1/namespaces/a/pods", crate::asking::pod("p", json!({}))).await.created();
    let rule = |group: &str, operation: &str, resource: &str| json!({"apiGroups": [group], "apiVersions": ["v1"], "operations": [operation], "resources": [resource]});
    let rules = json!([
        rule("apps", "UPDATE", "replicasets/scale"),
        rule("", "CREATE", "pods/binding"),
        rule("", "CREATE", "serviceaccounts/token"),
        // What a binding makes of its pod is asked of nobody.
        rule("", "UPDATE", "pods/*"),
    ]);
    let hooks = json!([hook(&webhook, "rewrite.example.com", "/rewrite", json!({"rules": rules}))]);
    configure(&cluster, "mutatingwebhookconfigurations", "m", hooks).await;

    let scale = json!({"metadata": {"name": "s"}, "spec": {"replicas": 3}});
    let scaled = cluster.ask("PUT", &format!("{sets}/s/scale"), scale).await;
    assert_eq!((scaled.code, &scaled.body["spec"]["replicas"]), (200, &json!(5)), "{}", scaled.body);
    assert_eq!(cluster.get(&format!("{sets}/s")).await["spec"]["replicas"], 5);

    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    cluster.post("/api/v1/namespaces/a/pods/p/binding", binding).await.created();
    let bound = cluster.get("/api/v1/namespaces/a/pods/p").await;
    assert_eq!(
        (&bound["spec"]["nodeName"], &bound["metadata"]["labels"]["gained"]),
        (&json!("n"), &json!("yes"))
    );

    let asked = json!({"spec": {"audiences": ["asked"]}});
    let token = cluster.post("/api/v1/namespaces/a/serviceaccounts/default/token", asked).await.created();
    assert_eq!(token["spec"]["audiences"], json!(["changed"]), "{token}");
    let account = cluster.get("/api/v1/namespaces/a/serviceaccounts/default").await;
    assert_eq!(token["metadata"]["uid"], account["metadata"]["uid"]);
}

#[tokio::test]
async fn who_judges_sees_what_is_asked_for_and_what_it_is_given() {
    let (cluster, webhook) = cluster().await;
    cluster.post(MAPS, config_map("x", json!({}))).await.created();
    let rules = json!([
        {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["DELETE"], "resources": ["configmaps"]},
        {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["services"]},
        {"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["replicasets/scale"]},
    ]);
    let hooks = json!([hook(&webhook, "tell.example.com", "/tell", json!({"rules": rules}))]);
    configure(&cluster, "validatingwebhookconfigurations", "v", hooks).await;

    let options = json!({"gracePeriodSeconds": 5, "propagationPolicy": "Background"});
    let seen = told(&cluster.ask("DELETE", &format!("{MAPS}/x"), options).await);
    let expected = json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1", "gracePeriodSeconds": 5,
        "propagationPolicy": "Background"});
    assert_eq!(seen[1], expected);
    let query = format!("{MAPS}/x?propagationPolicy=Orphan&dryRun=All");
    let seen = told(&cluster.ask("DELETE", &query, Value::Null).await);
    let expected = json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1", "dryRun": ["All"],
        "propagationPolicy": "Orphan"});
    assert_eq!(seen[1], expected);

    let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}});
    let seen = told(&cluster.post("/api/v1/namespaces/a/services", service).await);
    assert!(seen[2]["clusterIP"].as_str().is_some_and(|ip| !ip.is_empty()), "{seen}");

    let sets = "/apis/apps/v1/namespaces/a/replicasets";
    let template =
        json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let spec = json!({"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "template": template});
    cluster.post(sets, json!({"metadata": {"name": "s"}, "spec": spec})).await.created();
    let scale = json!({"spec": {"replicas": 3}});
    let seen = told(&cluster.ask("PATCH", &format!("{sets}/s/scale"), scale).await);
    assert_eq!((&seen[0], &seen[2]), (&json!("Scale"), &json!({"replicas": 3})));
}
