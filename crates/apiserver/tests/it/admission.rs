//! What a cluster adds to objects and refuses, seen by those who write them.

use std::sync::Arc;

use crate::asking::{Cluster, config_map, pod};
use crate::support::{Api, eventually};
use serde_json::{Value, json};

const POLICIES: &str = "/apis/admissionregistration.k8s.io/v1";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_is_never_exceeded_whoever_asks_at_once() {
    let cluster = Arc::new(Cluster::start().await);
    cluster.namespace("a", json!({})).await;
    let path = "/api/v1/namespaces/a/resourcequotas";
    let hard = json!({"pods": "5", "requests.cpu": "1", "count/configmaps": "3"});
    let mut quota =
        cluster.post(path, json!({"metadata": {"name": "q"}, "spec": {"hard": hard}})).await.created();
    let unknown = cluster.post("/api/v1/namespaces/a/configmaps", config_map("x", json!({}))).await;
    assert!(
        unknown.code == 201 || unknown.message().contains("status unknown for quota: q"),
        "{}",
        unknown.message()
    );
    quota["status"] =
        json!({"hard": hard, "used": {"pods": "0", "requests.cpu": "0", "count/configmaps": "0"}});
    let put = cluster.ask("PUT", &format!("{path}/q/status"), quota).await;
    assert_eq!(put.code, 200, "{}", put.body);
    let tasks: Vec<_> = (0..20)
        .map(|i| {
            let cluster = Arc::clone(&cluster);
            tokio::spawn(async move {
                let resources = json!({"resources": {"requests": {"cpu": "100m"}}});
                cluster.post("/api/v1/namespaces/a/pods", pod(&format!("p{i}"), resources)).await
            })
        })
        .collect();
    let mut made = 0;
    for task in tasks {
        let answer = task.await.expect("no panic");
        if answer.code == 201 {
            made += 1;
        } else {
            assert_eq!(answer.code, 403, "{}", answer.body);
            assert!(
                answer.message().contains("exceeded quota: q, requested: pods=1"),
                "{}",
                answer.message()
            );
        }
    }
    assert_eq!(made, 5);
    let used = cluster.get(&format!("{path}/q")).await["status"]["used"].clone();
    assert_eq!((&used["pods"], &used["requests.cpu"]), (&json!("5"), &json!("500m")));
    let dry = cluster.post("/api/v1/namespaces/a/configmaps?dryRun=All", config_map("d", json!({}))).await;
    assert_eq!(dry.code, 201, "{}", dry.body);
    let used = cluster.get(&format!("{path}/q")).await["status"]["used"].clone();
    assert_eq!(used["count/configmaps"], "0", "a dry run uses nothing");
    let bare = cluster.post("/api/v1/namespaces/a/pods", pod("bare", json!({}))).await;
    let expected = "pods \"bare\" is forbidden: failed quota: q: must specify requests.cpu for: c";
    assert_eq!(bare.message(), expected);
}

#[tokio::test]
async fn a_namespaces_labels_say_what_its_pods_may_do() {
    let cluster = Cluster::start().await;
    let labels = json!({"pod-security.kubernetes.io/enforce": "baseline",
        "pod-security.kubernetes.io/warn": "restricted"});
    cluster.namespace("a", labels).await;
    let privileged = pod("p", json!({"securityContext": {"privileged": true}}));
    let refused = cluster.post("/api/v1/namespaces/a/pods", privileged).await;
    let expected = "pods \"p\" is forbidden: violates PodSecurity \"baseline:latest\": privileged (container \"c\" must \
                    not set securityContext.privileged=true)";
    assert_eq!((refused.code, refused.message()), (403, expected));
    let plain = cluster.post("/api/v1/namespaces/a/pods", pod("q", json!({}))).await;
    assert_eq!(plain.code, 201, "{}", plain.body);
    assert!(plain.warnings[0].contains("would violate PodSecurity"), "{:?}", plain.warnings);
    let stricter = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
    let warned = cluster.ask("PATCH", "/api/v1/namespaces/a", stricter).await;
    assert_eq!(warned.code, 200, "{}", warned.body);
    assert!(
        warned.warnings.iter().any(|w| w.contains("existing pods in namespace")),
        "{:?}",
        warned.warnings
    );
    let odd = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "odd"}}});
    assert_eq!(cluster.ask("PATCH", "/api/v1/namespaces/a", odd).await.code, 422);
}

#[tokio::test]
async fn classes_and_limits_are_filled_in() {
    let cluster = Cluster::start().await;
    cluster.namespace("a", json!({})).await;
    let annotations = json!({"storageclass.kubernetes.io/is-default-class": "true"});
    let class = json!({"metadata": {"name": "fast", "annotations": annotations}, "provisioner": "p"});
    cluster.post("/apis/storage.k8s.io/v1/storageclasses", class).await.created();
    let claim = json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}}});
    let claims = "/api/v1/namespaces/a/persistentvolumeclaims";
    let claim = cluster.post(claims, claim).await.created();
    assert_eq!(claim["spec"]["storageClassName"], "fast");
    let grown = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
    let refused = cluster.ask("PATCH", &format!("{claims}/c"), grown).await;
    assert!(refused.code >= 400, "a claim that is not bound does not grow");
    let range = json!({"metadata": {"name": "l"}, "spec": {"limits": [
        {"type": "Container", "default": {"cpu": "1"}, "defaultRequest": {"cpu": "100m"}}]}});
    cluster.post("/api/v1/namespaces/a/limitranges", range).await.created();
    let made = cluster.post("/api/v1/namespaces/a/pods", pod("p", json!({}))).await.created();
    let expected = json!({"limits": {"cpu": "1"}, "requests": {"cpu": "100m"}});
    assert_eq!(made["spec"]["containers"][0]["resources"], expected);
    let class = json!({"metadata": {"name": "r"}, "handler": "h", "overhead": {"podFixed": {"cpu": "10m"}}});
    cluster.post("/apis/node.k8s.io/v1/runtimeclasses", class).await.created();
    let mut classed = pod("s", json!({}));
    classed["spec"]["runtimeClassName"] = "r".into();
    let made = cluster.post("/api/v1/namespaces/a/pods", classed.clone()).await.created();
    assert_eq!(made["spec"]["overhead"], json!({"cpu": "10m"}));
    classed["spec"]["runtimeClassName"] = "none".into();
    classed["metadata"]["name"] = "t".into();
    assert_eq!(cluster.post("/api/v1/namespaces/a/pods", classed).await.code, 403);
}

fn rules(resource: &str) -> Value {
    json!([{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": [resource]}])
}

#[tokio::test]
async fn policies_judge_by_their_parameters() {
    let cluster = Cluster::start().await;
    cluster.namespace("a", json!({})).await;
    let maps = "/api/v1/namespaces/a/configmaps";
    cluster.post(maps, config_map("params", json!({"most": "1"}))).await.created();
    let policy = json!({"metadata": {"name": "p"}, "spec": {
        "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "matchConstraints": {"resourceRules": rules("configmaps")},
        "matchConditions": [{"name": "named", "expression": "object.metadata.name.startsWith('t-')"}],
        "variables": [{"name": "n", "expression": "has(object.data) ? size(object.data) : 0"}],
        "validations": [
            {"expression": "variables.n <= int(params.data.most)",
             "messageExpression": "string(variables.n) + ' of ' + params.data.most"},
            {"expression": "request.userInfo.username != 'admin' || authorizer.group('').resource('pods').check('list').allowed()",
             "message": "nobody may"},
        ],
    }});
    cluster.post(&format!("{POLICIES}/validatingadmissionpolicies"), policy).await.created();
    let test = |name: &str| config_map(name, json!({"a": "1", "b": "2"}));
    assert_eq!(cluster.post(maps, test("t-0")).await.code, 201, "a policy without a binding says nothing");
    let binding = |name: &str, params: &str, actions: Value| {
        json!({"metadata": {"name": name}, "spec": {"policyName": "p", "validationActions": actions,
            "paramRef": {"name": params, "namespace": "a", "parameterNotFoundAction": "Deny"}}})
    };
    let bindings = format!("{POLICIES}/validatingadmissionpolicybindings");
    cluster.post(&bindings, binding("b", "params", json!(["Warn"]))).await.created();
    let warned = cluster.post(maps, test("t-1")).await;
    assert_eq!(warned.code, 201, "{}", warned.body);
    let expected = "Validation failed for ValidatingAdmissionPolicy 'p' with binding 'b': 2 of 1";
    assert!(warned.warnings.iter().any(|w| w.contains(expected)), "{:?}", warned.warnings);
    let denies = json!({"spec": {"validationActions": ["Deny"]}});
    assert_eq!(cluster.ask("PATCH", &format!("{bindings}/b"), denies).await.code, 200);
    let refused = cluster.post(maps, test("t-2")).await;
    let expected = "configmaps \"t-2\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: 2 of 1";
    assert_eq!((refused.code, refused.message()), (422, expected));
    assert_eq!(cluster.post(maps, test("other")).await.code, 201, "the condition does not hold");
    cluster.post(&bindings, binding("c", "missing", json!(["Deny"]))).await.created();
    let refused = cluster.post(maps, config_map("t-3", json!({"a": "1"}))).await;
    assert!(refused.message().contains("no params found for policy binding"), "{}", refused.message());
    let broken = json!({"metadata": {"name": "broken"}, "spec": {
        "matchConstraints": {"resourceRules": rules("configmaps")},
        "validations": [{"expression": "params.x"}]}});
    let refused = cluster.post(&format!("{POLICIES}/validatingadmissionpolicies"), broken).await;
    assert!(refused.message().contains("undeclared reference to 'params'"), "{}", refused.message());
}

#[tokio::test]
async fn policies_change_what_is_written() {
    let cluster = Cluster::start().await;
    cluster.namespace("a", json!({})).await;
    let policy = json!({"metadata": {"name": "p"}, "spec": {
        "matchConstraints": {"resourceRules": rules("pods")},
        "reinvocationPolicy": "Never",
        "mutations": [
            {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression":
                "Object{metadata: Object.metadata{labels: {'by': 'policy'}}, spec: Object.spec{containers: \
                 [Object.spec.containers{name: 'c', workingDir: '/w'}]}}"}},
            {"patchType": "JSONPatch", "jsonPatch": {"expression":
                "[JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('x/y'), value: object.metadata.labels.by}]"}},
        ],
    }});
    cluster.post(&format!("{POLICIES}/mutatingadmissionpolicies"), policy).await.created();
    let binding = json!({"metadata": {"name": "b"}, "spec": {"policyName": "p"}});
    cluster.post(&format!("{POLICIES}/mutatingadmissionpolicybindings"), binding).await.created();
    let made = cluster.post("/api/v1/namespaces/a/pods", pod("p", json!({}))).await.created();
    assert_eq!(made["metadata"]["labels"], json!({"by": "policy", "x/y": "policy"}));
    let container = &made["spec"]["containers"][0];
    assert_eq!((&container["workingDir"], &container["image"]), (&json!("/w"), &json!("i")));
}

#[tokio::test]
async fn devices_are_had_as_administrators_have_them_only_where_a_namespace_says_so() {
    let api = Api::start().await;
    let claims = "/apis/resource.k8s.io/v1/namespaces/lab/resourceclaims";
    let claim = |name: &str| {
        json!({"metadata": {"name": name}, "spec": {"devices": {"requests": [
            {"name": "r", "exactly": {"deviceClassName": "gpu", "adminAccess": true}}]}}})
    };
    assert_eq!(api.post("/api/v1/namespaces", &json!({"metadata": {"name": "lab"}})).await.0, 201);
    let (code, refused) = api.post(claims, &claim("a")).await;
    let message = refused["message"].as_str().unwrap_or_default();
    assert_eq!(code, 422, "{refused}");
    assert!(
        message.contains("spec.devices.requests[0].adminAccess: Forbidden: admin access to devices requires the `resource.kubernetes.io/admin-access: true` label"),
        "{message}"
    );
    let label = json!({"metadata": {"labels": {"resource.kubernetes.io/admin-access": "true"}}});
    assert_eq!(api.patch("/api/v1/namespaces/lab", &label).await.0, 200);
    assert_eq!(api.post(claims, &claim("a")).await.0, 201);

    // Who may write the status may not bind the claim by it.
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let rule = |resource: &str| json!({"apiGroups": ["resource.k8s.io"], "resources": [resource], "verbs": ["get", "patch"]});
    let role = |rules: Value| json!({"metadata": {"name": "teller"}, "rules": rules});
    let rules = json!([rule("resourceclaims/status")]);
    assert_eq!(api.post(&format!("{rbac}/clusterroles"), &role(rules)).await.0, 201);
    let binding = json!({"metadata": {"name": "teller"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "teller"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "tom"}]});
    assert_eq!(api.post(&format!("{rbac}/clusterrolebindings"), &binding).await.0, 201);
    let status = format!("{claims}/a/status");
    let bound = json!({"status": {"allocation": {"devices": {"results": [
        {"request": "r", "driver": "d.test", "pool": "p", "device": "x", "adminAccess": true}]}}}});
    let told = async || {
        let headers = [("content-type", "application/merge-patch+json")];
        let tom = krate_apiserver::User::authenticated("tom", &[]);
        let (head, body) =
            api.raw_as(tom, http::Method::PATCH, status.clone(), &headers, &bound.to_string()).await;
        (head.status.as_u16(), String::from_utf8_lossy(&body).into_owned())
    };
    // The server hears of the role a moment later.
    let unless = async |refused: u16| {
        eventually(async || match told().await {
            (code, said) if code == refused => Err(said),
            answer => Ok(answer),
        })
        .await
    };
    let answer = unless(403).await;
    assert_eq!(answer.0, 422, "{}", answer.1);
    assert!(answer.1.contains("verb=\\\"patch\\\" permission: resourceclaims.resource.k8s.io is forbidden: User \\\"tom\\\" cannot patch resource \\\"resourceclaims/binding\\\" in API group \\\"resource.k8s.io\\\" at the cluster scope"), "{}", answer.1);
    let rules = json!([rule("resourceclaims/status"), rule("resourceclaims/binding")]);
    assert_eq!(api.patch(&format!("{rbac}/clusterroles/teller"), &role(rules)).await.0, 200);
    let answer = unless(422).await;
    assert_eq!(answer.0, 200, "{}", answer.1);
}
