//! A server of another group behind a Service of a real cluster, step by step as the conformance specification "should be
//! able to support the Sample API Server using the current Aggregator" has it, and what that leaves out: that it is asked
//! by the front proxy alone in others' names, and asks the cluster who they are and what they may.

#[path = "support/flunders.rs"]
mod flunders;
mod support;

use std::sync::Arc;
use std::time::Duration;

use http::Request;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use krate_testkit::eventually;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::{Api, Client, Config};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use support::Cluster;

const SERVICE: &str = "v1alpha1.wardle.example.com";
const NAMESPACE: &str = "aggregated";
const FLUNDERS: &str = "/apis/wardle.example.com/v1alpha1/namespaces/aggregated/flunders";
const PORT: u16 = 7443;
const SOON: Duration = Duration::from_mins(1);

/// An account, with the roles that such a server's has.
fn accounts() -> Vec<Value> {
    let account = |name: &str| json!([{"kind": "ServiceAccount", "name": name, "namespace": NAMESPACE}]);
    let role =
        |kind: &str, name: &str| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name});
    let rbac = "rbac.authorization.k8s.io/v1";
    let reads = json!([{"apiGroups": [flunders::GROUP], "resources": ["flunders"], "verbs": ["get", "list", "watch"]}]);
    vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "sample", "namespace": NAMESPACE}}),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "reader", "namespace": NAMESPACE}}),
        json!({"apiVersion": rbac, "kind": "ClusterRoleBinding", "metadata": {"name": "wardler:auth-delegator"},
            "roleRef": role("ClusterRole", "system:auth-delegator"), "subjects": account("sample")}),
        json!({"apiVersion": rbac, "kind": "RoleBinding",
            "metadata": {"name": "wardler-auth-reader", "namespace": "kube-system"},
            "roleRef": role("Role", "extension-apiserver-authentication-reader"), "subjects": account("sample")}),
        json!({"apiVersion": rbac, "kind": "Role", "metadata": {"name": "reads-flunders", "namespace": NAMESPACE},
            "rules": reads}),
        json!({"apiVersion": rbac, "kind": "RoleBinding", "metadata": {"name": "reader", "namespace": NAMESPACE},
            "roleRef": role("Role", "reads-flunders"), "subjects": account("reader")}),
    ]
}

/// The Service, and where the server behind it listens.
fn service(address: &str) -> Vec<Value> {
    let labels = json!({"kubernetes.io/service-name": "sample-api"});
    vec![
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "sample-api", "namespace": NAMESPACE},
            "spec": {"ports": [{"protocol": "TCP", "port": 7443, "targetPort": PORT}]}}),
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "sample-api", "namespace": NAMESPACE, "labels": labels},
            "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
            "ports": [{"name": "", "port": PORT, "protocol": "TCP"}]}),
    ]
}

/// A client with the administrator's kubeconfig, or with a token instead of his certificate.
async fn client(kubeconfig: &str, token: Option<&str>) -> Client {
    let mut read: Kubeconfig = Kubeconfig::from_yaml(kubeconfig).expect("a kubeconfig");
    if let (Some(token), Some(user)) = (token, read.auth_infos.first_mut()) {
        let token = serde_json::from_value(json!({"token": token})).expect("credentials");
        user.auth_info = Some(token);
    }
    let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await.expect("a config");
    Client::try_from(config).expect("a client")
}

async fn get(client: &Client, path: &str) -> Result<Value, kube::Error> {
    client.request(Request::get(path).body(Vec::new()).expect("a request")).await
}

fn code(error: &kube::Error) -> u16 {
    match error {
        kube::Error::Api(status) => status.code,
        other => panic!("no answer: {other}"),
    }
}

fn flunder(name: &str) -> Value {
    json!({"apiVersion": "wardle.example.com/v1alpha1", "kind": "Flunder",
        "metadata": {"name": name, "labels": {"sample-label": "true"}}, "spec": {"reference": "x"}})
}

/// What the specification does with flunders: by plain requests, and by a client that finds them in discovery.
async fn tend_flunders(admin: &Client) -> Api<DynamicObject> {
    let body = flunder("rest-flunder").to_string().into_bytes();
    let made: Value =
        admin.request(Request::post(FLUNDERS).body(body).expect("a request")).await.expect("created");
    assert_eq!((&made["kind"], &made["metadata"]["name"]), (&json!("Flunder"), &json!("rest-flunder")));
    let list = get(admin, FLUNDERS).await.expect("a list");
    assert_eq!(list["items"].as_array().map(Vec::len), Some(1), "{list}");
    let one = Request::delete(format!("{FLUNDERS}/rest-flunder")).body(Vec::new()).expect("a request");
    admin.request::<Value>(one).await.expect("deleted");
    let list = get(admin, FLUNDERS).await.expect("a list");
    assert_eq!(list["items"], json!([]));

    let named = GroupVersionKind::gvk(flunders::GROUP, flunders::VERSION, "Flunder");
    let group = kube::discovery::pinned_kind(admin, &named);
    let (resource, _): (ApiResource, _) = group.await.expect("discovery tells of it");
    assert_eq!(resource.plural, "flunders");
    let all: Api<DynamicObject> = Api::namespaced_with(admin.clone(), NAMESPACE, &resource);
    let object: DynamicObject = serde_json::from_value(flunder("dynamic-flunder")).expect("an object");
    all.create(&PostParams::default(), &object).await.expect("created");
    assert_eq!(all.list(&ListParams::default()).await.expect("a list").items.len(), 1);
    all
}

fn condition(name: &str, message: &str) -> Value {
    json!({"type": name, "status": "True", "reason": "E2E", "message": message,
        "lastTransitionTime": "2026-01-01T00:00:00Z"})
}

fn says(service: &APIService, name: &str, message: &str) -> bool {
    let mut conditions = service.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.any(|c| c.type_ == name && c.message.as_deref() == Some(message))
}

/// What the specification does with the APIService: its status, its labels, and its end.
async fn tend_service(admin: &Client, all: &Api<DynamicObject>) {
    let services: Api<APIService> = Api::all(admin.clone());
    let service = services.get_status(SERVICE).await.expect("its status");
    assert!(says(&service, "Available", "all checks passed"), "{service:?}");
    let patch = Patch::Merge(json!({"spec": {"versionPriority": 400}}));
    let patched = services.patch(SERVICE, &PatchParams::default(), &patch).await.expect("patched");
    assert_eq!(patched.spec.as_ref().map(|spec| spec.version_priority), Some(400));
    let version = |service: &APIService| -> u64 {
        service.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).expect("a version")
    };
    assert!(version(&patched) > version(&service));
    let listed = services.list(&ListParams::default()).await.expect("a list");
    assert!(listed.items.iter().any(|service| service.metadata.name.as_deref() == Some(SERVICE)));
    let labels = Patch::Strategic(json!({"metadata": {"labels": {"e2e-apiservice": "patched"}}}));
    services.patch(SERVICE, &PatchParams::default(), &labels).await.expect("labelled");

    let updated = loop {
        let mut service = services.get_status(SERVICE).await.expect("its status");
        let set =
            serde_json::from_value(condition("StatusUpdated", "Set from e2e test")).expect("a condition");
        let conditions = service.status.get_or_insert_default().conditions.get_or_insert_default();
        conditions.push(set);
        match services.replace_status(SERVICE, &PostParams::default(), &service).await {
            Ok(updated) => break updated,
            Err(error) => assert_eq!(code(&error), 409, "{error}"),
        }
    };
    assert!(says(&updated, "StatusUpdated", "Set from e2e test"));
    loop {
        let mut service = services.get(SERVICE).await.expect("it is there");
        service.metadata.labels = Some([(SERVICE.to_owned(), "updated".to_owned())].into());
        match services.replace(SERVICE, &PostParams::default(), &service).await {
            Ok(_) => break,
            Err(error) => assert_eq!(code(&error), 409, "{error}"),
        }
    }
    all.delete("dynamic-flunder", &DeleteParams::default()).await.expect("deleted");
    assert!(all.list(&ListParams::default()).await.expect("a list").items.is_empty());
    let object: DynamicObject = serde_json::from_value(flunder("dynamic-flunder")).expect("an object");
    all.create(&PostParams::default(), &object).await.expect("created again");

    let service = services.get_status(SERVICE).await.expect("its status");
    let mut conditions = serde_json::to_value(service.status.and_then(|s| s.conditions)).expect("JSON");
    conditions.as_array_mut().expect("a list").push(condition("StatusPatched", "Set by e2e test"));
    let patch = Patch::Merge(json!({"status": {"conditions": conditions}}));
    services.patch_status(SERVICE, &PatchParams::default(), &patch).await.expect("patched");
    let service = services.get_status(SERVICE).await.expect("its status");
    assert!(says(&service, "StatusPatched", "Set by e2e test"));
    assert!(says(&service, "StatusUpdated", "Set from e2e test"), "what others said stays");

    let labelled = ListParams::default().labels(&format!("{SERVICE}=updated"));
    drop(services.delete_collection(&DeleteParams::default(), &labelled).await.expect("deleted"));
    let left = services.list(&labelled).await.expect("a list");
    assert!(left.items.is_empty(), "{left:?}");
    // Nobody serves the group any more.
    let gone = tokio::time::timeout(SOON, async {
        while get(admin, FLUNDERS).await.map_or_else(|error| code(&error), |_| 200) != 404 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    gone.await.expect("it is served no more");
}

/// Who asks the server, and in whose name.
async fn ask_as_others(admin: &Client, kubeconfig: &str, reader: &str, address: &str) {
    let reading = client(kubeconfig, Some(reader)).await;
    get(&reading, FLUNDERS).await.expect("who may read does");
    let body = flunder("x").to_string().into_bytes();
    let request = Request::post(FLUNDERS).body(body).expect("a request");
    let refused = reading.request::<Value>(request).await.expect_err("he may not write");
    assert_eq!(code(&refused), 403);

    // Who comes by himself is known by his token, and nobody believes what he says of others.
    let mut direct = Config::new(format!("https://{address}:{PORT}").parse().expect("a URL"));
    direct.accept_invalid_certs = true;
    let anonymous = Client::try_from(direct.clone()).expect("a client");
    let feigned =
        Request::get(FLUNDERS).header("x-remote-user", "admin").header("x-remote-group", "system:masters");
    let refused = anonymous.request::<Value>(feigned.body(Vec::new()).expect("a request")).await;
    assert_eq!(code(&refused.expect_err("he is nobody")), 403);
    direct.auth_info.token = Some(reader.to_owned().into());
    let known = Client::try_from(direct).expect("a client");
    get(&known, FLUNDERS).await.expect("his token is asked about");
    drop(get(admin, "/healthz").await);
}

#[test]
fn a_server_behind_a_service_is_part_of_the_api() {
    if !krate_testkit::available() {
        return;
    }
    let Some(kubectl) = support::kubectl() else { return };
    let cluster = Cluster::start(kubectl, &[]);
    let address = cluster.host.address().to_string();
    cluster.kubectl(&format!("create namespace {NAMESPACE}"));
    cluster.create(&accounts());
    cluster.create(&service(&address));
    let token = |account: &str| cluster.kubectl(&format!("-n {NAMESPACE} create token {account}"));
    let (own, reader) = (token("sample"), token("reader"));
    let kubeconfig = std::fs::read_to_string(cluster.dir.join("admin.kubeconfig")).expect("a kubeconfig");

    let key = rcgen::KeyPair::generate().expect("a key");
    let names = vec![format!("sample-api.{NAMESPACE}.svc")];
    let certificate = rcgen::CertificateParams::new(names).expect("names").self_signed(&key).expect("signed");
    let (pem, key) = (certificate.pem(), key.serialize_pem());
    let ca = pem.clone();
    let (namespace, config, own) =
        (Arc::clone(cluster.host.namespace()), kubeconfig.clone(), own.trim().to_owned());
    std::thread::spawn(move || {
        namespace.block_on(|| async move {
            let server = flunders::Server::new(client(&config, Some(&own)).await).await;
            let listener = TcpListener::bind(("0.0.0.0", PORT)).await.expect("the port is free");
            server.serve(listener, &pem, &key).await;
        });
    });
    let spec = json!({
        "group": flunders::GROUP, "version": flunders::VERSION, "groupPriorityMinimum": 2000, "versionPriority": 200,
        "service": {"namespace": NAMESPACE, "name": "sample-api", "port": 7443},
        "caBundle": k8s_openapi::ByteString(ca.into_bytes()),
    });
    cluster.create(&[json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": SERVICE}, "spec": spec})]);
    eventually("the group is served", SOON, || {
        let out = cluster.kubectl_command(&format!("get --raw {FLUNDERS}")).output().expect("kubectl runs");
        out.status.success().then_some(())
    });

    let resources = cluster.kubectl("api-resources --api-group=wardle.example.com --no-headers");
    assert!(resources.contains("flunders") && resources.contains("Flunder"), "{resources}");
    let explained = cluster.kubectl("explain flunders.spec.reference");
    assert!(explained.contains("What it refers to."), "{explained}");
    let page = cluster.kubectl("get --raw /metrics");
    assert!(page.contains(&format!("aggregator_unavailable_apiservice{{name=\"{SERVICE}\"}} 0")));

    cluster.host.block_on(|| async {
        let admin = client(&kubeconfig, None).await;
        let all = tend_flunders(&admin).await;
        let watch = format!("{FLUNDERS}?watch=true&timeoutSeconds=1");
        let told = get(&admin, &watch).await;
        assert!(told.is_ok_and(|event| event["type"] == "ADDED"), "a watch tells of what there is");
        ask_as_others(&admin, &kubeconfig, reader.trim(), &address).await;
        tend_service(&admin, &all).await;
    });
}
