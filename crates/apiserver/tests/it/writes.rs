//! What a write may say of itself and of its object, who may make what is not there, and what it leads to.

use http::{Method, StatusCode};
use krate_apiserver::auth::User;
use serde_json::{Value, json};

use crate::asking::pod;
use crate::support::{Api, eventually};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";
const BUDGETS: &str = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
const SETS: &str = "/apis/apps/v1/namespaces/default/replicasets";

async fn started() -> Api {
    started_with(|_| {}).await
}

async fn started_with(change: impl FnOnce(&mut krate_apiserver::Config)) -> Api {
    let api = Api::start_with(change).await;
    api.post("/api/v1/namespaces", &json!({"metadata": {"name": "default"}})).await;
    api.post("/api/v1/namespaces/default/serviceaccounts", &json!({"metadata": {"name": "default"}})).await;
    api
}

#[tokio::test]
async fn a_dry_run_finds_that_a_name_is_taken() {
    let api = started().await;
    let map = json!({"metadata": {"name": "a"}});
    let dry = format!("{MAPS}?dryRun=All");
    assert_eq!(api.post(&dry, &map).await.0, 201);
    assert_eq!(api.post(MAPS, &map).await.0, 201);
    let (code, told) = api.post(&dry, &map).await;
    assert_eq!((code, &told["message"]), (409, &json!("configmaps \"a\" already exists")));
    let (code, told) = api.post(MAPS, &json!({"metadata": {"name": "a", "generateName": "a"}})).await;
    assert_eq!((code, &told["details"]["retryAfterSeconds"]), (409, &json!(1)));
}

#[tokio::test]
async fn an_object_says_where_it_is_to_be() {
    let api = started().await;
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    let (code, made) =
        api.post(roles, &json!({"metadata": {"name": "r", "namespace": "odd"}, "rules": []})).await;
    assert_eq!((code, &made["metadata"]["namespace"]), (201, &Value::Null), "it is in none");
    assert_eq!(api.post(MAPS, &json!({"metadata": {"name": "a"}})).await.0, 201);
    let put = async |body: Value| api.ask(Method::PUT, &format!("{MAPS}/a"), "application/json", &body).await;
    let (code, told) = put(json!({"metadata": {}})).await;
    let undeterminable = "the name of the object (a based on URL) was undeterminable: name must be provided";
    assert_eq!((code, &told["message"]), (400, &json!(undeterminable)));
    let (code, told) =
        put(json!({"metadata": {"name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z"}})).await;
    assert_eq!((code, &told["details"]["causes"][0]["field"]), (422, &json!("metadata.deletionTimestamp")));
}

#[tokio::test]
async fn an_owner_that_is_named_twice_is_warned_of() {
    let api = started().await;
    let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"});
    let map = json!({"metadata": {"name": "a", "ownerReferences": [owner, owner]}}).to_string();
    let headers = [("content-type", "application/json")];
    let (head, body) = api.raw(Method::POST, MAPS.to_owned(), &headers, &map).await;
    let made: Value = serde_json::from_slice(&body).expect("an object");
    assert_eq!(made["metadata"]["ownerReferences"], json!([owner]));
    let warned = head.headers["warning"].to_str().expect("text");
    assert!(warned.contains("please fix your requests; duplicate UID(s) observed: u"), "{warned}");
}

#[tokio::test]
async fn who_may_change_what_is_there_may_not_make_it() {
    let api = started().await;
    assert_eq!(api.post(MAPS, &json!({"metadata": {"name": "there"}})).await.0, 201);
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let rule = json!({"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "patch"]});
    let role = json!({"metadata": {"name": "changes"}, "rules": [rule]});
    assert_eq!(api.post(&format!("{rbac}/clusterroles"), &role).await.0, 201);
    let binding = json!({"metadata": {"name": "changes"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "changes"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "jane"}]});
    assert_eq!(api.post(&format!("{rbac}/clusterrolebindings"), &binding).await.0, 201);
    let apply = async |name: &str| {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}).to_string();
        let headers = [("content-type", "application/apply-patch+yaml")];
        let path = format!("{MAPS}/{name}?fieldManager=m");
        api.raw_as(User::authenticated("jane", &[]), Method::PATCH, path, &headers, &map).await
    };
    // The authorizer hears of it as everybody does.
    eventually(async || match apply("there").await.0.status {
        StatusCode::OK => Ok(()),
        other => Err(other.to_string()),
    })
    .await;
    let (head, body) = apply("new").await;
    let told: Value = serde_json::from_slice(&body).expect("a status");
    assert_eq!(head.status, StatusCode::FORBIDDEN);
    let why =
        "User \"jane\" cannot create resource \"configmaps\" in API group \"\" in the namespace \"default\"";
    let message = told["message"].as_str().unwrap_or_default();
    assert!(message.starts_with(&format!("configmaps \"new\" is forbidden: {why}")), "{message}");
}

#[tokio::test]
async fn an_eviction_takes_from_its_budget_and_tells_the_pod() {
    let api = started_with(|config| config.admission.enabled = vec!["NodeRestriction".to_owned()]).await;
    for name in ["a", "b"] {
        let mut pod = pod(name, json!({}));
        pod["spec"]["nodeName"] = "n".into();
        assert_eq!(api.post(PODS, &pod).await.0, 201);
        let running =
            json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
        assert_eq!(api.patch(&format!("{PODS}/{name}/status"), &running).await.0, 200);
    }
    let budget = json!({"metadata": {"name": "b"}, "spec": {"minAvailable": 1, "selector": {}}});
    assert_eq!(api.post(BUDGETS, &budget).await.0, 201);
    let status = json!({"status": {"observedGeneration": 1, "disruptionsAllowed": 1, "currentHealthy": 2,
        "desiredHealthy": 1, "expectedPods": 2}});
    assert_eq!(api.patch(&format!("{BUDGETS}/b/status"), &status).await.0, 200);
    let evict = async |name: &str, query: &str| {
        let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}});
        api.post(&format!("{PODS}/{name}/eviction{query}"), &eviction).await
    };
    // Who may not evict it takes nothing from the budget.
    let node = krate_apiserver::User::authenticated("system:node:other", &["system:nodes"]);
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "a"}});
    let json = [("content-type", "application/json")];
    let (head, _) =
        api.raw_as(node, Method::POST, format!("{PODS}/a/eviction"), &json, &eviction.to_string()).await;
    assert_eq!(head.status, StatusCode::FORBIDDEN);
    assert_eq!(evict("a", "?dryRun=All").await.0, 201);
    assert_eq!(api.get(&format!("{BUDGETS}/b")).await.1["status"]["disruptionsAllowed"], 1);
    assert_eq!(evict("a", "").await.0, 201);
    let evicted = api.get(&format!("{PODS}/a")).await.1;
    assert!(evicted["metadata"]["deletionTimestamp"].is_string(), "{evicted:#}");
    let conditions = evicted["status"]["conditions"].as_array().cloned().unwrap_or_default();
    assert!(conditions.iter().any(|c| c["reason"] == "EvictionByEvictionAPI"), "{conditions:#?}");
    let budget = api.get(&format!("{BUDGETS}/b")).await.1;
    assert_eq!(budget["status"]["disruptionsAllowed"], 0, "{budget:#}");
    assert!(budget["status"]["disruptedPods"]["a"].is_string(), "{budget:#}");
    let (code, told) = evict("b", "").await;
    assert_eq!((code, &told["details"]["causes"][0]["reason"]), (429, &json!("DisruptionBudget")));
}

#[tokio::test]
async fn an_eviction_is_admitted_as_what_it_is() {
    let api = started().await;
    let group = "/apis/admissionregistration.k8s.io/v1";
    let policy = json!({"metadata": {"name": "kept"}, "spec": {
        "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"],
            "resources": ["pods/eviction"]}]},
        "validations": [{"expression": "request.kind.kind != 'Eviction' || request.kind.group != 'policy' || object.metadata.name != 'kept'",
            "message": "it is to stay"}]}});
    assert_eq!(api.post(&format!("{group}/validatingadmissionpolicies"), &policy).await.0, 201);
    let binding =
        json!({"metadata": {"name": "kept"}, "spec": {"policyName": "kept", "validationActions": ["Deny"]}});
    assert_eq!(api.post(&format!("{group}/validatingadmissionpolicybindings"), &binding).await.0, 201);
    for name in ["kept", "other"] {
        assert_eq!(api.post(PODS, &pod(name, json!({}))).await.0, 201);
    }
    let evict = async |name: &str, query: &str| {
        let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}});
        api.post(&format!("{PODS}/{name}/eviction{query}"), &eviction).await
    };
    // The server hears of the policy a moment later.
    let (code, told) = eventually(async || match evict("kept", "?dryRun=All").await {
        (201, made) => Err(format!("{made:#}")),
        told => Ok(told),
    })
    .await;
    let message = told["message"].as_str().unwrap_or_default();
    assert!(code == 422 && message.contains("it is to stay"), "{message}");
    assert_eq!(evict("other", "").await.0, 201);
}

#[tokio::test]
async fn a_binding_says_which_pod_it_means_and_what_it_gains() {
    let api = started().await;
    assert_eq!(api.post(PODS, &pod("p", json!({}))).await.0, 201);
    let status = json!({"status": {"nominatedNodeName": "other"}});
    assert_eq!(api.patch(&format!("{PODS}/p/status"), &status).await.0, 200);
    let bind = async |meta: Value| {
        let binding = json!({"metadata": meta, "target": {"kind": "Node", "name": "n"}});
        api.post(&format!("{PODS}/p/binding"), &binding).await
    };
    let (code, told) = bind(json!({"name": "odd"})).await;
    let message = "name in URL does not match name in Binding object";
    assert_eq!((code, &told["message"]), (400, &json!(message)));
    let (code, told) = bind(json!({"name": "p", "resourceVersion": "1"})).await;
    let message = told["message"].as_str().unwrap_or_default();
    let starts = "Operation cannot be fulfilled on pods \"p\": StorageError: invalid object, Code: 4, Key: \
                  /registry/pods/default/p, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: \
                  ResourceVersion in precondition: 1, ResourceVersion in object meta: ";
    assert!(code == 409 && message.starts_with(starts), "{message}");
    assert_eq!(bind(json!({"name": "p", "labels": {"gained": "yes"}})).await.0, 201);
    let bound = api.get(&format!("{PODS}/p")).await.1;
    assert_eq!(
        (&bound["spec"]["nodeName"], &bound["metadata"]["labels"]["gained"]),
        (&json!("n"), &json!("yes"))
    );
    assert_eq!(bound["status"]["nominatedNodeName"], Value::Null);
}

#[tokio::test]
async fn a_scale_is_applied_and_shown_in_columns() {
    let api = started().await;
    let template =
        json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let spec = json!({"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "template": template});
    assert_eq!(api.post(SETS, &json!({"metadata": {"name": "s"}, "spec": spec})).await.0, 201);
    let scale = json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "s"},
        "spec": {"replicas": 3}});
    let apply = async |query: &str| {
        let path = format!("{SETS}/s/scale?fieldManager=m{query}");
        api.ask(Method::PATCH, &path, "application/apply-patch+yaml", &scale).await
    };
    let (code, told) = apply("").await;
    assert_eq!((code, &told["details"]["causes"][0]["field"]), (409, &json!(".spec.replicas")), "{told:#}");
    let (code, told) = apply("&force=true").await;
    assert_eq!((code, &told["spec"]["replicas"]), (200, &json!(3)), "{told:#}");
    let set = api.get(&format!("{SETS}/s")).await.1;
    assert_eq!(set["spec"]["replicas"], 3);
    let managers = set["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    assert!(managers.iter().any(|m| m["manager"] == "m" && m["subresource"] == "scale"), "{managers:#?}");
    let headers = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let (_, body) = api.raw(Method::GET, format!("{SETS}/s/scale"), &headers, "").await;
    let table: Value = serde_json::from_slice(&body).expect("a table");
    assert_eq!(table["rows"][0]["cells"][1], 3, "{table:#}");
    let text = json!({"spec": {"replicas": "3"}});
    assert_eq!(api.patch(&format!("{SETS}/s/scale"), &text).await.0, 422, "a text is no number");
}

#[tokio::test]
async fn nothing_is_told_of_a_body_that_has_to_be_asked_for() {
    let api = started().await;
    for (path, code) in [(MAPS, 405), ("/api/v1", 405), ("/healthz", 200)] {
        let (head, body) = api.raw(Method::HEAD, path.to_owned(), &[], "").await;
        assert_eq!((head.status.as_u16(), body.len()), (code, 0), "{path}");
        assert_ne!(head.headers["content-length"], "0", "{path}");
    }
}
