//! Whom pods may trust, and the certificates that they have themselves, as volumes show them.

mod support;

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use support::{Node, ask, available};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

const REQUESTS: &str = "/apis/certificates.k8s.io/v1beta1/podcertificaterequests";
const ACCOUNT: &str = "/api/v1/namespaces/n/serviceaccounts/default";
const POD: &str = "/api/v1/namespaces/n/pods/p";

/// A node whose features are on, and whose kubelet answers whoever asks.
fn node() -> Node {
    let node = Node::start_with(|config| {
        (config.trust_bundles, config.pod_certificates) = (true, true);
        (config.anonymous_auth, config.always_allow) = (true, true);
    });
    node.api.create(
        ACCOUNT,
        json!({"apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": "default", "namespace": "n", "uid": "account-uid"}}),
    );
    node
}

/// The API has the kinds in this version.
fn serves(node: &Node, version: &str) {
    node.api.create(
        &format!("/apis/certificates.k8s.io/{version}"),
        json!({"apiVersion": "v1", "kind": "APIResourceList",
            "groupVersion": format!("certificates.k8s.io/{version}"),
            "resources": [{"name": "clustertrustbundles", "singularName": "clustertrustbundle",
                "kind": "ClusterTrustBundle", "namespaced": false, "verbs": ["get", "list", "watch"]}]}),
    );
}

/// A pod whose volume `v` has these sources.
fn pod(sources: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "namespace": "n", "uid": "pod-uid", "generation": 1},
        "spec": {"nodeName": "node", "serviceAccountName": "default", "terminationGracePeriodSeconds": 5,
            "containers": [{"name": "c", "image": "there:1", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
            "volumes": [{"name": "v", "projected": {"sources": sources}}]},
        "status": {"phase": "Pending", "qosClass": "BestEffort"}})
}

fn is_ready(pod: &Value) -> Option<()> {
    let conditions = pod["status"]["conditions"].as_array()?;
    conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True").then_some(())
}

/// Where the volume lies that the container sees.
fn volume(node: &Node) -> PathBuf {
    let (_, config) = node.runtime.container("c").unwrap();
    config.mounts.iter().find(|mount| mount.container_path == "/v").unwrap().host_path.clone().into()
}

async fn said(node: &Node, reason: &str, message: &str) {
    let is_there = || node.api.events().iter().any(|(why, text)| why == reason && text == message);
    support::until(&format!("it says {reason}: {message}; {:#?}", node.api.events()), is_there).await;
}

/// How often a volume could not be set up.
fn complaints(node: &Node) -> i64 {
    let events = node.api.list("/api/v1/events");
    let of_volumes = events.iter().filter(|(_, event)| event["reason"] == "FailedMount");
    of_volumes.map(|(_, event)| event["count"].as_i64().unwrap_or(1)).sum()
}

fn failed(why: &str) -> String {
    format!("MountVolume.SetUp failed for volume \"v\" : {why}")
}

fn certificate(held: &str) -> String {
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", STANDARD.encode(held))
}

fn bundle(version: &str, name: &str, signer: Option<&str>, held: &[&str]) -> Value {
    let text: String = held.iter().flat_map(|held| ["said of it\n".to_owned(), certificate(held)]).collect();
    json!({"apiVersion": format!("certificates.k8s.io/{version}"), "kind": "ClusterTrustBundle",
        "metadata": {"name": name, "labels": {"live": "yes"}},
        "spec": {"signerName": signer, "trustBundle": text}})
}

/// The certificates of a file, by what they hold, in order of that.
fn held(file: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let lines = text.lines().filter(|line| !line.starts_with("-----"));
    let mut all: Vec<String> =
        lines.map(|line| String::from_utf8(STANDARD.decode(line).unwrap()).unwrap()).collect();
    all.sort();
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bundles_are_shown_and_followed() {
    if !available() {
        return;
    }
    for version in ["v1beta1", "v1alpha1"] {
        let mut node = node();
        serves(&node, version);
        let at = |name: &str| format!("/apis/certificates.k8s.io/{version}/clustertrustbundles/{name}");
        node.api.create(&at("a.test:b:1"), bundle(version, "a.test:b:1", Some("a.test/b"), &["one", "two"]));
        let live = json!({"matchLabels": {"live": "yes"}});
        node.api.create(
            POD,
            pod(&json!([
                {"clusterTrustBundle": {"name": "roots", "path": "named"}},
                {"clusterTrustBundle": {"signerName": "a.test/b", "labelSelector": live, "path": "signers"}},
                {"clusterTrustBundle": {"signerName": "a.test/b", "optional": true, "path": "nothing"}},
                {"clusterTrustBundle": {"name": "other", "optional": true, "path": "other"}}])),
        );
        let lacks =
            "while getting ClusterTrustBundle: clustertrustbundle.certificates.k8s.io \"roots\" not found";
        said(&node, "FailedMount", &failed(lacks)).await;
        assert!(node.runtime.container("c").is_none(), "it waits for its volume");

        node.api.create(&at("roots"), bundle(version, "roots", None, &["root", "root"]));
        node.api.until("the pod runs", POD, is_ready).await;
        let volume = volume(&node);
        let shown = |name: &str| held(&volume.join(name));
        assert_eq!(
            (shown("named"), shown("signers")),
            (vec!["root".into()], vec!["one".into(), "two".into()])
        );
        assert_eq!((std::fs::read(volume.join("nothing")).unwrap(), shown("other")), (vec![], vec![]));

        node.api
            .create(&at("a.test:b:2"), bundle(version, "a.test:b:2", Some("a.test/b"), &["two", "three"]));
        node.api.create(&at("a.test:c:1"), bundle(version, "a.test:c:1", Some("a.test/c"), &["not this"]));
        support::until("a second one of the signer is added", || shown("signers") == ["one", "three", "two"])
            .await;
        let first = std::fs::read_to_string(volume.join("signers")).unwrap();
        node.api.update(&at("roots"), &json!({"spec": {"trustBundle": certificate("new root")}}));
        support::until("the named one is other", || shown("named") == ["new root"]).await;
        assert_eq!(std::fs::read_to_string(volume.join("signers")).unwrap(), first, "in the same order");
        node.api.create(&at("other"), bundle(version, "other", None, &["late"]));
        support::until("one that may be missing has come", || shown("other") == ["late"]).await;
        node.api.remove(&at("a.test:b:1"));
        support::until("one of the signer's has gone", || shown("signers") == ["three", "two"]).await;
        node.down().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_off_or_not_there_is_said() {
    if !available() {
        return;
    }
    let sources = json!([
        {"clusterTrustBundle": {"name": "roots", "optional": true, "path": "roots"}},
        {"podCertificate": {"signerName": "a.test/b", "keyType": "ED25519", "keyPath": "key"}}]);
    let unsupported = "ClusterTrustBundle projection is not supported in static kubelet mode";
    let mut off = Node::start();
    off.api.create(POD, pod(&sources));
    said(&off, "FailedMount", &failed(&format!("[{unsupported}, unimplemented]"))).await;
    off.down().await;

    // Features that are on are of no use with an API that has none of it.
    let mut node = node();
    node.api.create(POD, pod(&sources));
    let waits = "credential bundle is not issued yet";
    said(&node, "FailedMount", &failed(&format!("[{unsupported}, {waits}]"))).await;
    node.down().await;
    let mut node = self::node();
    serves(&node, "v1beta1");
    node.api.create(
        POD,
        pod(&json!([{"clusterTrustBundle": {"signerName": "a.test/b", "labelSelector": {}, "path": "x"}}])),
    );
    let none = "combination of signerName and labelSelector matched zero ClusterTrustBundles";
    said(&node, "FailedMount", &failed(none)).await;
    node.down().await;
}

/// Waits for a request that is not among these, and returns its path and what it is.
async fn asked(node: &Node, known: &[&str]) -> (String, Value) {
    let found = || {
        let all = node.api.list(REQUESTS);
        all.into_iter().find(|(at, _)| !known.contains(&at.as_str()))
    };
    support::until("a certificate is asked for", || found().is_some()).await;
    found().unwrap()
}

fn condition(kind: &str) -> Value {
    json!([{"type": kind, "status": "True", "reason": "Because", "message": "so it is",
        "lastTransitionTime": "2026-01-01T00:00:00Z"}])
}

/// The signer gives what was asked for, to be renewed so many minutes from now.
fn issue(node: &Node, at: &str, held: &str, renewed: i64) {
    let from_now = |minutes: i64| (Timestamp::now() + SignedDuration::from_mins(minutes)).to_string();
    let chain = format!("said of it\n{}{}", certificate(held), certificate("authority"));
    node.api.update(
        at,
        &json!({"status": {"conditions": condition("Issued"), "certificateChain": chain, "notBefore": from_now(-60),
            "beginRefreshAt": from_now(renewed), "notAfter": from_now(renewed + 60)}}),
    );
}

/// The public key that a request is for.
fn asked_key(request: &Value) -> Vec<u8> {
    let der = STANDARD.decode(request["spec"]["stubPKCS10Request"].as_str().unwrap()).unwrap();
    let (_, parsed) = X509CertificationRequest::from_der(&der).unwrap();
    parsed.verify_signature().unwrap();
    parsed.certification_request_info.subject_pki.raw.to_vec()
}

/// The public key of a key that is shown.
fn shown_key(file: &Path) -> Vec<u8> {
    use rcgen::PublicKeyData as _;
    rcgen::KeyPair::from_pem(&std::fs::read_to_string(file).unwrap()).unwrap().subject_public_key_info()
}

async fn counts(node: &Node, state: &str, count: u32) {
    let row = format!("kubelet_podcertificate_states{{signer_name=\"a.test/b\",state=\"{state}\"}} {count}");
    let page = ask(node, "/metrics").await.unwrap();
    assert!(page.lines().any(|line| line == row), "{row}: {page}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_asked_for_shown_and_renewed() {
    if !available() {
        return;
    }
    let mut node = node();
    node.api.create(
        POD,
        pod(&json!([{"podCertificate": {"signerName": "a.test/b", "keyType": "ECDSAP256",
            "maxExpirationSeconds": 7200, "userAnnotations": {"a.test/x": "y"},
            "credentialBundlePath": "both", "keyPath": "key", "certificateChainPath": "chain"}}])),
    );
    let (first, request) = asked(&node, &[]).await;
    let meta = &request["metadata"];
    assert!(meta["name"].as_str().unwrap().starts_with("req-"), "{request}");
    let owner = json!([{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "pod-uid"}]);
    assert_eq!((&meta["namespace"], &meta["ownerReferences"]), (&json!("n"), &owner));
    let own_node = node.api.get("/api/v1/nodes/node").unwrap();
    let mut spec = request["spec"].clone();
    spec.as_object_mut().unwrap().remove("stubPKCS10Request");
    assert_eq!(
        spec,
        json!({"signerName": "a.test/b", "podName": "p", "podUID": "pod-uid", "serviceAccountName": "default",
            "serviceAccountUID": "account-uid", "nodeName": "node", "nodeUID": own_node["metadata"]["uid"],
            "maxExpirationSeconds": 7200, "unverifiedUserAnnotations": {"a.test/x": "y"}})
    );
    said(&node, "FailedMount", &failed("credential bundle is not issued yet")).await;
    counts(&node, "not_yet_issued", 1).await;

    // One that is to be renewed at once is shown, until the next is there.
    issue(&node, &first, "first", -30);
    node.api.until("the pod runs", POD, is_ready).await;
    let volume = volume(&node);
    let file = |name: &str| std::fs::read_to_string(volume.join(name)).unwrap();
    assert_eq!(file("chain"), format!("{}{}", certificate("first"), certificate("authority")));
    assert_eq!(file("both"), format!("{}{}", file("key"), file("chain")));
    assert_eq!(shown_key(&volume.join("key")), asked_key(&request));
    let (second, request) = asked(&node, &[&first]).await;
    said(&node, "CertificateOverdueForRefresh", "PodCertificate refresh overdue").await;
    counts(&node, "overdue_for_refresh", 1).await;
    assert!(file("chain").starts_with(&certificate("first")));
    issue(&node, &second, "second", 60);
    support::until("the next is shown", || file("chain").starts_with(&certificate("second"))).await;
    assert_eq!(shown_key(&volume.join("key")), asked_key(&request));
    counts(&node, "fresh", 1).await;

    // A kubelet that comes again knows of no key: it asks anew, and what runs sees what it saw until then.
    node.down().await;
    let before = complaints(&node);
    node.up();
    let (third, request) = asked(&node, &[&first, &second]).await;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let more = complaints(&node) - before;
    assert!(more < 5, "{more} complaints in a second");
    assert!(file("chain").starts_with(&certificate("second")));
    issue(&node, &third, "third", 60);
    support::until("the third is shown", || file("chain").starts_with(&certificate("third"))).await;
    assert_eq!(shown_key(&volume.join("key")), asked_key(&request));

    node.api.remove(POD);
    support::until("nothing is left", || node.runtime.is_empty()).await;
    let page = ask(&node, "/metrics").await.unwrap();
    assert!(!page.contains("kubelet_podcertificate_states"), "{page}");
    assert_eq!(node.api.list(REQUESTS).len(), 3, "nothing else was asked for");
    node.down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_is_refused_does_not_start() {
    if !available() {
        return;
    }
    for (how, state, told, why) in
        [("Denied", "denied", "was denied", "denied"), ("Failed", "failed", "failed", "failed")]
    {
        let mut node = node();
        let source = json!({"signerName": "a.test/b", "keyType": "ED25519", "credentialBundlePath": "x"});
        node.api.create(POD, pod(&json!([{"podCertificate": source}])));
        let (at, request) = asked(&node, &[]).await;
        node.api.update(&at, &json!({"status": {"conditions": condition(how)}}));
        let name = request["metadata"]["name"].as_str().unwrap();
        let words = "reason=\"Because\"";
        said(
            &node,
            how,
            &format!(
                "Because%!(EXTRA string=PodCertificateRequest n/{name} {told}, {words}, message=\"so it is\")"
            ),
        )
        .await;
        let refused = format!("PodCertificateRequest was permanently {why}: {words} message=\"so it is\"");
        said(&node, "FailedMount", &failed(&refused)).await;
        counts(&node, state, 1).await;
        assert!(node.runtime.container("c").is_none());
        assert_eq!(node.api.list(REQUESTS).len(), 1, "it is for ever");
        node.down().await;
    }
}
