//! Kinds and versions that are served only where somebody says so, and what they bring: whom to believe
//! (ClusterTrustBundles, KEP-3257), and certificates of pods (KEP-4317).

use std::sync::Arc;

use http::Method;
use krate_apiserver::User;
use krate_apiserver::features::{Features, Resources};
use rcgen::{
    BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PublicKeyData as _, SigningKey as _,
};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

use crate::support::Api;

const GATES: &str = "ClusterTrustBundle=true,ClusterTrustBundleProjection=true,PodCertificateRequest=true";
const BETA: &str = "certificates.k8s.io/v1beta1=true";
const BUNDLES: &str = "/apis/certificates.k8s.io/v1beta1/clustertrustbundles";
const REQUESTS: &str = "/apis/certificates.k8s.io/v1beta1/namespaces/default/podcertificaterequests";
const SIGNER: &str = "example.com/signer";

fn set(config: &mut krate_apiserver::Config, gates: &str, versions: &str) {
    config.features = Arc::new(Features::parse([gates]).expect("sound"));
    config.resources = Resources::parse([versions]).expect("sound");
    config.admission.enabled = vec!["NodeRestriction".to_owned()];
}

async fn start(gates: &str, versions: &str) -> Api {
    Api::start_with(|config| set(config, gates, versions)).await
}

/// The answer's code and body, as this user gets it.
async fn ask_as(
    api: &Api,
    user: &str,
    groups: &[&str],
    method: Method,
    path: &str,
    body: &Value,
) -> (u16, Value) {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let headers = [("content-type", "application/json")];
    let user = User::authenticated(user, groups);
    let (head, bytes) = api.raw_as(user, method, path.to_owned(), &headers, &body).await;
    (head.status.as_u16(), serde_json::from_slice(&bytes).unwrap_or_default())
}

async fn as_node(api: &Api, node: &str, method: Method, path: &str, body: &Value) -> (u16, Value) {
    ask_as(api, &format!("system:node:{node}"), &["system:nodes"], method, path, body).await
}

/// Lets a user do this.
async fn allow(api: &Api, user: &str, rules: Value) {
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let role = json!({"metadata": {"name": user}, "rules": rules});
    let (code, made) = api.post(&format!("{rbac}/clusterroles"), &role).await;
    assert_eq!(code, 201, "{made}");
    let binding = json!({
        "metadata": {"name": user},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": user},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    });
    let (code, made) = api.post(&format!("{rbac}/clusterrolebindings"), &binding).await;
    assert_eq!(code, 201, "{made}");
}

fn message(body: &Value) -> &str {
    body["message"].as_str().unwrap_or_default()
}

struct Authority(Issuer<'static, KeyPair>, String);

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("signed").pem();
        Authority(Issuer::new(params, key), pem)
    }
}

/// The names of the resources of a version, or nothing where it is not served.
async fn resources(api: &Api, version: &str) -> Vec<String> {
    let (_, list) = api.get(&format!("/apis/{version}")).await;
    let all = list["resources"].as_array().cloned().unwrap_or_default();
    all.iter().filter_map(|resource| resource["name"].as_str().map(str::to_owned)).collect()
}

fn pod(name: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {
            "nodeName": "n1", "serviceAccountName": "default", "automountServiceAccountToken": false,
            "containers": [{"name": "c", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
            "volumes": [{"name": "v", "projected": {"sources": [
                {"clusterTrustBundle": {"name": "b", "path": "ca.pem"}},
                {"podCertificate": {"signerName": SIGNER, "keyType": "ED25519", "credentialBundlePath": "c.pem"}},
            ]}}],
        },
    })
}

/// Makes a node, a ServiceAccount and a pod of them that has a certificate.
async fn populate(api: &Api) -> [String; 3] {
    let mut uids = Vec::new();
    for (path, object) in [
        ("/api/v1/nodes", json!({"metadata": {"name": "n1"}})),
        ("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}})),
        ("/api/v1/namespaces/default/pods", pod("p")),
    ] {
        let (code, made) = api.post(path, &object).await;
        assert_eq!(code, 201, "{made}");
        uids.push(made["metadata"]["uid"].as_str().expect("a uid").to_owned());
    }
    uids.try_into().expect("three")
}

#[tokio::test]
async fn by_default_nothing_of_it_is_there() {
    let api = Api::start().await;
    assert_eq!(api.get(BUNDLES).await.0, 404);
    assert_eq!(api.get(REQUESTS).await.0, 404);
    assert!(resources(&api, "certificates.k8s.io/v1beta1").await.is_empty());
    let (_, group) = api.get("/apis/certificates.k8s.io").await;
    assert_eq!(group["versions"].as_array().map(Vec::len), Some(1));
    let (_, openapi) = api.get("/openapi/v2").await;
    let definitions = openapi["definitions"].as_object().expect("definitions");
    assert!(!definitions.keys().any(|name| name.contains("certificates.v1beta1")));
    assert!(definitions.contains_key("io.k8s.api.core.v1.ClusterTrustBundleProjection"));
    let apis = "/apis/apiregistration.k8s.io/v1/apiservices";
    assert_eq!(api.get(&format!("{apis}/v1beta1.certificates.k8s.io")).await.0, 404);
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    assert_eq!(api.get(&format!("{roles}/system:cluster-trust-bundle-discovery")).await.0, 404);
    // What would need it is taken out of pods, wherever their specs stand.
    populate(&api).await;
    let (_, there) = api.get("/api/v1/namespaces/default/pods/p").await;
    assert_eq!(there["spec"]["volumes"][0]["projected"]["sources"], json!([{}, {}]));
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod("p")["spec"]}}});
    let (code, made) = api.post("/apis/apps/v1/namespaces/default/deployments", &deployment).await;
    assert_eq!(code, 201, "{made}");
    let volumes = &made["spec"]["template"]["spec"]["volumes"];
    assert_eq!(volumes[0]["projected"]["sources"], json!([{}, {}]));
    let (_, metrics) = api.get("/metrics").await;
    let told = "kubernetes_feature_enabled{name=\"ClusterTrustBundle\",stage=\"BETA\"} 0";
    assert!(metrics.as_str().is_some_and(|text| text.contains(told)));
}

#[tokio::test]
async fn a_kind_needs_its_feature_and_its_version() {
    for (gates, versions, expected) in [
        (GATES, "", &[][..]),
        ("", BETA, &[]),
        ("ClusterTrustBundle=true", BETA, &["clustertrustbundles"]),
        (
            GATES,
            "certificates.k8s.io/v1beta1/podcertificaterequests=true",
            &["podcertificaterequests", "podcertificaterequests/status"],
        ),
        (
            GATES,
            "api/beta=true",
            &["clustertrustbundles", "podcertificaterequests", "podcertificaterequests/status"],
        ),
    ] {
        let api = start(gates, versions).await;
        assert_eq!(resources(&api, "certificates.k8s.io/v1beta1").await, expected, "{gates} {versions}");
        if expected.len() == 3 {
            let (_, openapi) = api.get("/openapi/v2").await;
            let name = "io.k8s.api.certificates.v1beta1.PodCertificateRequestStatus";
            assert!(openapi["definitions"][name]["description"].is_string());
            let (_, v3) = api.get("/openapi/v3/apis/certificates.k8s.io/v1beta1").await;
            assert!(v3["components"]["schemas"][name].is_object());
            let (_, group) = api.get("/apis/certificates.k8s.io").await;
            assert_eq!(group["preferredVersion"]["version"], "v1");
            let (_, metrics) = api.get("/metrics").await;
            let told = "kubernetes_feature_enabled{name=\"PodCertificateRequest\",stage=\"BETA\"} 1";
            assert!(metrics.as_str().is_some_and(|text| text.contains(told)));
        }
    }
}

#[tokio::test]
async fn what_is_turned_off_is_not_there_until_it_is_turned_on_again() {
    let api = start("", "apps/v1=false,batch/v1/cronjobs=false").await;
    assert_eq!(api.get("/apis/apps/v1/namespaces/default/deployments").await.0, 404);
    assert_eq!(api.get("/apis/apps").await.0, 404);
    assert_eq!(api.get("/apis/batch/v1/namespaces/default/cronjobs").await.0, 404);
    assert_eq!(api.get("/apis/batch/v1/namespaces/default/jobs").await.0, 200);
    let (_, groups) = api.get("/apis").await;
    let named = |groups: &Value, name: &str| {
        groups["groups"].as_array().is_some_and(|all| all.iter().any(|group| group["name"] == name))
    };
    assert!(!named(&groups, "apps") && named(&groups, "batch"));
    let (_, openapi) = api.get("/openapi/v2").await;
    let definitions = openapi["definitions"].as_object().expect("definitions");
    assert!(!definitions.contains_key("io.k8s.api.apps.v1.Deployment"));
    assert!(definitions.contains_key("io.k8s.api.core.v1.PodTemplateSpec"));
    let apis = "/apis/apiregistration.k8s.io/v1/apiservices";
    assert_eq!(api.get(&format!("{apis}/v1.apps")).await.0, 404);
    // A server on the same store that serves all of it, and one that does so no more.
    let whole = api.again(|config| set(config, GATES, BETA)).await.expect("it starts");
    assert_eq!(whole.get("/apis/apps/v1/namespaces/default/deployments").await.0, 200);
    assert_eq!(whole.get(&format!("{apis}/v1beta1.certificates.k8s.io")).await.0, 200);
    let less = whole.again(|config| set(config, "", "apps/v1=false")).await.expect("it starts");
    for name in ["v1.apps", "v1beta1.certificates.k8s.io"] {
        assert_eq!(less.get(&format!("{apis}/{name}")).await.0, 404, "{name}");
    }
    // Without what a server begins with it serves the rest.
    let few = "api/ga=false,/v1=true,authorization.k8s.io/v1=true";
    let bare = Api::start_with(|config| {
        set(config, "", few);
        config.limits.fairness = false;
    })
    .await;
    assert_eq!(bare.get("/api/v1/namespaces/kube-system").await.0, 200);
    assert_eq!(bare.get("/apis/rbac.authorization.k8s.io/v1/clusterroles").await.0, 404);
}

#[tokio::test]
async fn whom_to_believe_in_a_signers_name_says_who_may_attest() {
    let api = start(GATES, BETA).await;
    let authority = Authority::new();
    let bundle = |name: &str, signer: &str| {
        json!({"apiVersion": "certificates.k8s.io/v1beta1", "kind": "ClusterTrustBundle",
            "metadata": {"name": name}, "spec": {"signerName": signer, "trustBundle": authority.1}})
    };
    let verbs = ["create", "update", "patch"];
    let writes =
        json!({"apiGroups": ["certificates.k8s.io"], "resources": ["clustertrustbundles"], "verbs": verbs});
    let attests = json!({"apiGroups": ["certificates.k8s.io"], "resources": ["signers"],
        "resourceNames": ["example.com/*"], "verbs": ["attest"]});
    allow(&api, "writer", json!([writes])).await;
    allow(&api, "attester", json!([writes, attests])).await;
    let post = async |user: &str, body: Value| ask_as(&api, user, &[], Method::POST, BUNDLES, &body).await;
    let named = "example.com:signer:one";
    let (code, told) = post("writer", bundle(named, SIGNER)).await;
    assert_eq!(code, 403, "{told}");
    assert_eq!(
        message(&told),
        format!(
            "clustertrustbundles.certificates.k8s.io \"{named}\" is forbidden: user not permitted to attest for \
             signerName \"{SIGNER}\""
        )
    );
    assert_eq!(post("writer", bundle("of-nobody", "")).await.0, 201);
    assert_eq!(post("attester", bundle(named, SIGNER)).await.0, 201);
    let (code, told) = post("attester", bundle("of-nobody-too", SIGNER)).await;
    assert_eq!(code, 422);
    assert!(message(&told).contains("must be named with prefix example.com:signer:"), "{told}");
    // What means the same may be written by whoever may write.
    let merge = [("content-type", "application/merge-patch+json")];
    for (patch, expected) in [
        (json!({"metadata": {"finalizers": ["example.com/f"]}}), 200),
        (json!({"metadata": {"labels": {"a": "b"}}}), 403),
        (json!({"spec": {"signerName": "example.com/other"}}), 422),
    ] {
        let user = User::authenticated("writer", &[]);
        let path = format!("{BUNDLES}/{named}");
        let (head, _) = api.raw_as(user, Method::PATCH, path, &merge, &patch.to_string()).await;
        assert_eq!(head.status.as_u16(), expected, "{patch}");
    }
    // All of it is found by its signer, shown, and sent in protobuf.
    let (_, list) = api.get(&format!("{BUNDLES}?fieldSelector=spec.signerName={SIGNER}")).await;
    assert_eq!(list["items"].as_array().map(Vec::len), Some(1), "{list}");
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let (_, table) = api.raw(Method::GET, BUNDLES.to_owned(), &accept, "").await;
    let table: Value = serde_json::from_slice(&table).expect("JSON");
    assert_eq!(table["rows"][1]["cells"], json!(["of-nobody", "<none>"]), "{table}");
    let accept = [("accept", "application/vnd.kubernetes.protobuf")];
    let (head, bytes) = api.raw(Method::GET, format!("{BUNDLES}/{named}"), &accept, "").await;
    assert_eq!(head.status.as_u16(), 200);
    let read = krate_api::protobuf::decode(&bytes).expect("protobuf");
    assert_eq!(read["spec"]["trustBundle"], authority.1);
    // Every ServiceAccount reads them, and no one else who may nothing.
    let accounts = ["system:serviceaccounts"];
    let of_pods = "system:serviceaccount:default:default";
    assert_eq!(ask_as(&api, of_pods, &accounts, Method::GET, BUNDLES, &Value::Null).await.0, 200);
    assert_eq!(ask_as(&api, "jane", &[], Method::GET, BUNDLES, &Value::Null).await.0, 403);
    assert_eq!(as_node(&api, "n1", Method::GET, BUNDLES, &Value::Null).await.0, 200);
    assert_eq!(as_node(&api, "n1", Method::POST, BUNDLES, &bundle("x", "")).await.0, 403);
}

/// What the kubelet of n1 asks for its pod, with the UIDs of node, account and pod.
fn request(uids: &[String; 3], key: &KeyPair) -> Value {
    use base64::Engine as _;
    let encode = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    let [node, account, pod] = uids;
    json!({
        "apiVersion": "certificates.k8s.io/v1beta1", "kind": "PodCertificateRequest",
        "metadata": {"generateName": "req-p-"},
        "spec": {
            "signerName": SIGNER, "podName": "p", "podUID": pod, "serviceAccountName": "default",
            "serviceAccountUID": account, "nodeName": "n1", "nodeUID": node,
            "pkixPublicKey": encode(&key.subject_public_key_info()),
            "proofOfPossession": encode(&key.sign(pod.as_bytes()).expect("signed")),
        },
        "status": {"certificateChain": "of the creator's own"},
    })
}

#[tokio::test]
async fn a_kubelet_asks_for_certificates_of_the_pods_that_it_runs() {
    let api = start(GATES, BETA).await;
    let uids = populate(&api).await;
    let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
    let asked = request(&uids, &key);
    let (code, made) = as_node(&api, "n1", Method::POST, REQUESTS, &asked).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(made["spec"]["maxExpirationSeconds"], 86400);
    assert_eq!((&made["spec"]["stubPKCS10Request"], &made["status"]), (&Value::Null, &json!({})));
    type Change = fn(&mut Value);
    let cases: [(&str, u16, Change, &str); 7] = [
        (
            "n2",
            403,
            |_| {},
            "PodCertificateRequest.Spec.NodeName=\"n1\", which is not the requesting node \"n2\"",
        ),
        (
            "n1",
            500,
            |r| r["spec"]["nodeUID"] = "x".into(),
            "names node UID \"x\", inconsistent with the running",
        ),
        (
            "n1",
            500,
            |r| r["spec"]["podName"] = "q".into(),
            "while retrieving pod \"default/q\" named in the PodCertificateRequest: pods \"q\" not found",
        ),
        (
            "n1",
            403,
            |r| r["spec"]["serviceAccountName"] = "other".into(),
            "contains serviceAccountName (\"other\") that differs from running pod (\"default\")",
        ),
        (
            "n1",
            500,
            |r| r["spec"]["serviceAccountUID"] = "x".into(),
            "names service account UID \"x\", which differs from the running service account",
        ),
        (
            "n1",
            422,
            |r| r["spec"]["proofOfPossession"] = "AAAA".into(),
            "spec.proofOfPossession: Invalid value: could not verify proof-of-possession signature",
        ),
        (
            "n1",
            422,
            |r| r["spec"]["maxExpirationSeconds"] = 60.into(),
            "must be in the range [3600, 7862400]",
        ),
    ];
    for (node, expected, change, told) in cases {
        let mut asked = asked.clone();
        change(&mut asked);
        let (code, answer) = as_node(&api, node, Method::POST, REQUESTS, &asked).await;
        assert_eq!(code, expected, "{answer}");
        assert!(message(&answer).contains(told), "{answer}");
    }
    // It follows its own, and no others'.
    let name = made["metadata"]["name"].as_str().expect("a name");
    let one = format!("{REQUESTS}/{name}");
    let all = "/apis/certificates.k8s.io/v1beta1/podcertificaterequests";
    let own = format!("{all}?fieldSelector=spec.nodeName%3Dn1");
    let (code, list) = as_node(&api, "n1", Method::GET, &own, &Value::Null).await;
    assert_eq!((code, list["items"].as_array().map(Vec::len)), (200, Some(1)), "{list}");
    for (node, method, path, told) in [
        (
            "n2",
            Method::GET,
            own.as_str(),
            "can only list/watch podcertificaterequests with nodeName field selector",
        ),
        ("n1", Method::GET, all, "can only list/watch podcertificaterequests with nodeName field selector"),
        ("n2", Method::GET, one.as_str(), "no relationship found between node 'n2' and this object"),
        ("n1", Method::DELETE, one.as_str(), "nodes may not delete podcertificaterequests"),
    ] {
        let (code, answer) = as_node(&api, node, method, path, &Value::Null).await;
        assert_eq!(code, 403, "{answer}");
        assert!(message(&answer).contains(told), "{answer}");
    }
    // What it has just made, it may not read before this server has noticed.
    let end = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    while as_node(&api, "n1", Method::GET, &one, &Value::Null).await.0 != 200 {
        assert!(tokio::time::Instant::now() < end, "the request was not noticed");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let status = format!("{one}/status");
    let (code, told) = as_node(&api, "n1", Method::PUT, &status, &made).await;
    assert_eq!(code, 403);
    assert!(message(&told).contains("nodes may not access the status subresource"), "{told}");
    // Nothing of what was asked is changed afterwards.
    let (code, told) = api.patch(&one, &json!({"spec": {"podName": "q"}})).await;
    assert_eq!(code, 422, "{told}");
}

#[tokio::test]
async fn a_signer_says_once_what_became_of_a_request() {
    let api = start(GATES, BETA).await;
    let uids = populate(&api).await;
    let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
    let status = json!({"apiGroups": ["certificates.k8s.io"], "resources": ["podcertificaterequests/status"],
        "verbs": ["update"]});
    let signs = json!({"apiGroups": ["certificates.k8s.io"], "resources": ["signers"],
        "resourceNames": [SIGNER], "verbs": ["sign"]});
    allow(&api, "writer", json!([status])).await;
    allow(&api, "signer", json!([status, signs])).await;
    let make = async || {
        let (code, made) = as_node(&api, "n1", Method::POST, REQUESTS, &request(&uids, &key)).await;
        assert_eq!(code, 201, "{made}");
        made
    };
    let put = async |user: &str, object: &Value, status: Value| {
        let mut object = object.clone();
        object["status"] = status;
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        ask_as(&api, user, &[], Method::PUT, &format!("{REQUESTS}/{name}/status"), &object).await
    };
    let now = OffsetDateTime::now_utc().replace_nanosecond(0).expect("a time");
    let text = |time: OffsetDateTime| {
        jiff::Timestamp::from_second(time.unix_timestamp()).expect("a time").to_string()
    };
    let condition = |kind: &str| json!({"type": kind, "status": "True", "reason": "R", "message": "m", "lastTransitionTime": text(now)});
    let authority = Authority::new();
    let chain = |lasts: Duration, of: &KeyPair| {
        let mut leaf = CertificateParams::new(vec!["p.default".to_owned()]).expect("names");
        (leaf.not_before, leaf.not_after) = (now, now + lasts);
        format!("{}{}", leaf.signed_by(of, &authority.0).expect("signed").pem(), authority.1)
    };
    let issued = |chain: String, lasts: Duration, refresh: Duration| {
        json!({"conditions": [condition("Issued")], "certificateChain": chain, "notBefore": text(now),
            "notAfter": text(now + lasts), "beginRefreshAt": text(now + refresh)})
    };
    let day = Duration::hours(24);
    let made = make().await;
    let good = issued(chain(day, &key), day, Duration::hours(12));
    let (code, told) = put("writer", &made, good.clone()).await;
    assert_eq!(code, 422, "{told}");
    assert_eq!(
        told["details"]["causes"],
        json!([{"reason": "FieldValueForbidden", "field": "spec.signerName",
            "message": format!("Forbidden: User \"writer\" is not permitted to \"sign\" for signer \"{SIGNER}\"")}])
    );
    let other = KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
    let mut undated = good.clone();
    undated["beginRefreshAt"].take();
    let cases = [
        (issued(String::new(), day, Duration::hours(1)), "must contain at least one certificate"),
        (issued(chain(day, &other), day, Duration::hours(1)), "was not issued to the requested public key"),
        (
            issued(chain(day, &key), Duration::hours(1), Duration::minutes(30)),
            "the NotAfter time encoded in the",
        ),
        (
            issued(chain(Duration::minutes(59), &key), Duration::minutes(59), Duration::minutes(30)),
            "status.certificateChain: Invalid value: 3540000000000: leaf certificate lifetime must be >= 1 hour",
        ),
        (
            issued(chain(Duration::hours(25), &key), Duration::hours(25), Duration::hours(1)),
            "leaf certificate lifetime must be <= spec.maxExpirationSeconds (86400)",
        ),
        (
            issued(chain(day, &key), day, Duration::minutes(9)),
            "must be at least 10 minutes after status.notBefore",
        ),
        (issued(chain(day, &key), day, day), "must be at least 10 minutes before status.notAfter"),
        (undated, "status.beginRefreshAt: Required value: must be present and in the range"),
        (
            json!({"conditions": [condition("Odd")]}),
            "status.conditions.[0].type: Unsupported value: \"Odd\": supported values: \"Denied\", \"Failed\", \"Issued\"",
        ),
        (
            json!({"conditions": [condition("Denied"), condition("Failed")]}),
            "There may be at most one condition with type \"Issued\", \"Denied\", or \"Failed\"",
        ),
        (
            json!({"conditions": [condition("Denied")], "certificateChain": "x"}),
            "status: Invalid value: non-condition status fields must be empty when denying or failing",
        ),
        (
            json!({"certificateChain": "x"}),
            "status: Invalid value: status is immutable unless transitioning to \"Issued\", \"Denied\", or \"Failed\"",
        ),
    ];
    for (status, expected) in cases {
        let (code, told) = put("signer", &made, status).await;
        assert_eq!(code, 422, "{told}");
        assert!(message(&told).contains(expected), "{told}");
    }
    let (code, done) = put("signer", &made, good).await;
    assert_eq!(code, 200, "{done}");
    // What is decided stays; who changes nothing needs no right to sign.
    assert_eq!(put("writer", &done, done["status"].clone()).await.0, 200);
    let (code, told) = put("signer", &done, json!({"conditions": [condition("Failed")]})).await;
    assert_eq!(code, 422);
    assert!(
        message(&told).contains("immutable after PodCertificateRequest is issued, denied, or failed"),
        "{told}"
    );
    let denied = make().await;
    let (code, denied) = put("signer", &denied, json!({"conditions": [condition("Denied")]})).await;
    assert_eq!(code, 200, "{denied}");
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let name = denied["metadata"]["name"].as_str().expect("a name");
    let (_, table) = api.raw(Method::GET, format!("{REQUESTS}/{name}"), &accept, "").await;
    let table: Value = serde_json::from_slice(&table).expect("JSON");
    assert_eq!(table["rows"][0]["cells"], json!([name, "p", "default", "n1", SIGNER, "Denied", "<none>"]));
}
