//! The controllers of certificates and of bootstrap tokens against the real API server, each with no more than its rights.

#[path = "support/mod.rs"]
mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use krate_client::{Client, Informers};
use krate_controllers::Authority;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair};
use serde_json::{Value, json};
use support::{Cluster, object, until};
use x509_parser::prelude::{FromDer as _, X509Certificate};

const BOOTSTRAPPERS: &str = "system:bootstrappers";

/// A cluster whose requests are signed, for an hour at most, and the certificate of who signs, DER.
async fn cluster() -> (Cluster, Vec<u8>) {
    let cluster = Cluster::start().await;
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let own = params.self_signed(&key).expect("a certificate");
    let authority = Authority::from_pem(&own.pem(), &key.serialize_pem()).expect("an authority");
    let config = krate_controllers::Config {
        signing: Some(Arc::new(authority)),
        signing_duration: Duration::from_hours(1),
        ..krate_controllers::Config::default()
    };
    let manager = cluster.client_as("system:kube-controller-manager", &[krate_apiserver::rbac::CONTROLLERS]);
    let informers = Informers::new(manager.clone(), cluster.shutdown.clone());
    let shutdown = cluster.shutdown.clone();
    cluster.run(async move {
        krate_controllers::run(manager, informers, config, shutdown).await.expect("they run");
    });
    (cluster, own.der().to_vec())
}

/// A request for a certificate of a node.
fn request(name: &str, user: &str, signer: &str, usages: &[&str]) -> CertificateSigningRequest {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, user);
    let pem = params.serialize_request(&key).expect("a request").pem().expect("PEM");
    let mut csr: CertificateSigningRequest = object(json!({
        "metadata": {"name": name}, "spec": {"request": "", "signerName": signer, "usages": usages}}));
    csr.spec.request = ByteString(pem.into_bytes());
    csr
}

async fn allow(cluster: &Cluster, role: &str, group: &str) {
    let binding: ClusterRoleBinding = object(json!({
        "metadata": {"name": format!("{role}:{group}").replace(':', "-")},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": group}]}));
    cluster.all().create(&PostParams::default(), &binding).await.expect("a binding");
}

/// Asks, as soon as it is known that whoever asks may.
async fn ask(client: &Client, csr: &CertificateSigningRequest) {
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let end = Instant::now() + Duration::from_mins(1);
    loop {
        match api.create(&PostParams::default(), csr).await {
            Ok(_) => return,
            Err(kube::Error::Api(status)) if status.code == 403 && Instant::now() < end => {}
            Err(error) => panic!("{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn condition(csr: &CertificateSigningRequest, kind: &str) -> Option<(String, String)> {
    let all = csr.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let found = all.into_iter().find(|condition| condition.type_ == kind)?;
    Some((found.reason.clone().unwrap_or_default(), found.message.clone().unwrap_or_default()))
}

fn issued(csr: &CertificateSigningRequest) -> Option<&[u8]> {
    csr.status.as_ref()?.certificate.as_ref().map(|certificate| certificate.0.as_slice())
}

const CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const SERVING: &str = "kubernetes.io/kubelet-serving";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_joins_gets_a_certificate_and_later_another() {
    let (cluster, authority) = cluster().await;
    let csrs = || cluster.all::<CertificateSigningRequest>();
    allow(&cluster, "system:node-bootstrapper", BOOTSTRAPPERS).await;
    let joining = cluster.client_as("system:bootstrap:abcdef", &[BOOTSTRAPPERS]);
    let usages = ["digital signature", "client auth"];
    ask(&joining, &request("first", "system:node:a", CLIENT, &usages)).await;
    // Whoever may ask must be allowed to have it; that may come later.
    allow(&cluster, "system:certificates.k8s.io:certificatesigningrequests:nodeclient", BOOTSTRAPPERS).await;
    until(csrs(), "signed", |all| all.iter().any(|csr| issued(csr).is_some())).await;
    let first = csrs().get("first").await.expect("there");
    assert_eq!(first.spec.username.as_deref(), Some("system:bootstrap:abcdef"));
    let said = "Auto approving kubelet client certificate after SubjectAccessReview.";
    assert_eq!(condition(&first, "Approved"), Some(("AutoApproved".to_owned(), said.to_owned())));
    let (_, block) =
        x509_parser::pem::parse_x509_pem(issued(&first).unwrap_or_default()).expect("a certificate");
    let made = block.parse_x509().expect("a certificate");
    let (_, authority) = X509Certificate::from_der(&authority).expect("a certificate");
    made.verify_signature(Some(authority.public_key())).expect("signed by the authority");
    assert_eq!(made.subject().to_string(), "O=system:nodes, CN=system:node:a");

    allow(&cluster, "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient", "system:nodes")
        .await;
    let node = cluster.client_as("system:node:a", &["system:nodes"]);
    ask(&node, &request("again", "system:node:a", CLIENT, &usages)).await;
    until(csrs(), "signed again", |all| all.iter().filter(|csr| issued(csr).is_some()).count() == 2).await;
    let again = csrs().get("again").await.expect("there");
    let said = "Auto approving self kubelet client certificate after SubjectAccessReview.";
    assert_eq!(condition(&again, "Approved").map(|(_, said)| said).as_deref(), Some(said));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_approved_and_cannot_be_signed_fails_with_the_reason() {
    let (cluster, _) = cluster().await;
    let csrs = || cluster.all::<CertificateSigningRequest>();
    let usages = ["digital signature", "server auth"];
    ask(&cluster.client, &request("serving", "system:node:a", SERVING, &usages)).await;
    ask(&cluster.client, &request("user", "amy", "kubernetes.io/kube-apiserver-client", &usages)).await;
    ask(&cluster.client, &request("foreign", "amy", "example.com/signer", &usages)).await;
    let approved =
        json!({"status": {"conditions": [{"type": "Approved", "status": "True", "reason": "Test"}]}});
    for name in ["serving", "user", "foreign"] {
        let (patch, params) = (Patch::Merge(&approved), PatchParams::default());
        csrs().patch_subresource("approval", name, &params, &patch).await.expect("approved");
    }
    let failed = |csr: &CertificateSigningRequest| condition(csr, "Failed");
    until(csrs(), "failed", |all| all.iter().filter(|csr| failed(csr).is_some()).count() == 2).await;
    for (name, said) in [
        ("serving", "DNS or IP subjectAltName is required"),
        ("user", "invalid usage for client certificate: server auth"),
    ] {
        let csr = csrs().get(name).await.expect("there");
        assert_eq!(failed(&csr), Some(("SignerValidationFailure".to_owned(), said.to_owned())));
    }
    let foreign = csrs().get("foreign").await.expect("there");
    assert!(failed(&foreign).is_none() && issued(&foreign).is_none(), "it is somebody else's to sign");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_sign_what_nodes_are_told_and_go_when_their_time_is_over() {
    let (cluster, _) = cluster().await;
    until(cluster.all::<Namespace>(), "there", |all| {
        ["kube-system", "kube-public"].iter().all(|name| all.iter().any(|n| n.name_any() == *name))
    })
    .await;
    let secrets = || cluster.of::<Secret>("kube-system");
    let token = |id: &str, more: Value| {
        let mut data = json!({
            "token-id": id, "token-secret": "0123456789abcdef", "usage-bootstrap-signing": "true"});
        data.as_object_mut().expect("a map").extend(more.as_object().cloned().unwrap_or_default());
        object::<Secret>(json!({"metadata": {"name": format!("bootstrap-token-{id}")},
            "type": "bootstrap.kubernetes.io/token", "stringData": data}))
    };
    let told: ConfigMap = object(json!({"metadata": {"name": "cluster-info"}, "data": {"kubeconfig": "x"}}));
    let maps = || cluster.of::<ConfigMap>("kube-public");
    maps().create(&PostParams::default(), &told).await.expect("a map");
    // Long enough to be seen under load.
    let soon = k8s_openapi::jiff::Timestamp::now() + Duration::from_secs(10);
    for token in [
        token("abcdef", json!({})),
        token("fedcba", json!({"expiration": soon.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()})),
        token("000000", json!({"usage-bootstrap-signing": "false"})),
        token("111111", json!({"expiration": "2020-01-01T00:00:00Z"})),
    ] {
        secrets().create(&PostParams::default(), &token).await.expect("a token");
    }
    let keys =
        |map: &ConfigMap| -> Vec<String> { map.data.iter().flatten().map(|(key, _)| key.clone()).collect() };
    let of = |wanted: &[&str]| {
        let wanted: Vec<String> = wanted.iter().map(|key| (*key).to_owned()).collect();
        move |all: &[ConfigMap]| all.iter().any(|m| m.name_any() == "cluster-info" && keys(m) == wanted)
    };
    until(maps(), "signed by both", of(&["jws-kubeconfig-abcdef", "jws-kubeconfig-fedcba", "kubeconfig"]))
        .await;
    until(secrets(), "rid of those whose time is over", |all| {
        let mut left: Vec<String> = all.iter().map(ResourceExt::name_any).collect();
        left.sort();
        left == ["bootstrap-token-000000", "bootstrap-token-abcdef"]
    })
    .await;
    until(maps(), "signed by the one that is left", of(&["jws-kubeconfig-abcdef", "kubeconfig"])).await;
}
