//! Whom pods may trust, and certificates of their own, on a whole cluster with a signer of the test's: what is in their files
//! fits together, follows what changes, and without it they do not start.

mod support;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use krate_testkit::eventually;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, IsCa,
    Issuer, KeyPair, PublicKeyData as _,
};
use serde_json::{Value, json};

use support::{Cluster, image};

const SOON: Duration = Duration::from_mins(2);
const IMAGE: &str = "docker.io/library/busybox:latest";
const SIGNER: &str = "krate.test/pods";
const GATES: &str =
    "feature-gates=ClusterTrustBundle=true,ClusterTrustBundleProjection=true,PodCertificateRequest=true";
const CONFIGURATION: &str = "
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
featureGates: {ClusterTrustBundle: true, ClusterTrustBundleProjection: true, PodCertificateRequest: true}
";
/// Seconds that certificates last.
const LASTS: u64 = 4 * 3600;

/// Who signs for pods.
struct Signer {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate, PEM.
    root: String,
}

impl Signer {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let root = params.self_signed(&key).expect("signed").pem();
        Signer { issuer: Issuer::new(params, key), root }
    }

    /// Gives a pod the certificate that it has asked for. Returns that with its signer's.
    fn issue(&self, cluster: &Cluster, request: &Value) -> String {
        use base64::Engine as _;
        let der = request["spec"]["stubPKCS10Request"].as_str().expect("a request");
        let der = base64::engine::general_purpose::STANDARD.decode(der).expect("base64");
        let mut asked =
            CertificateSigningRequestParams::from_der(&der.into()).expect("a request that is proven");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time").as_secs();
        let at = |second: u64| UNIX_EPOCH + Duration::from_secs(second);
        asked.params.not_before = at(now).into();
        asked.params.not_after = at(now + LASTS).into();
        let pod = request["spec"]["podName"].as_str().expect("a name");
        asked.params.distinguished_name.push(DnType::CommonName, pod);
        let chain = asked.signed_by(&self.issuer).expect("signed").pem() + &self.root;
        let told = |second: u64| {
            let second = i64::try_from(second).expect("a time");
            jiff::Timestamp::from_second(second).expect("a time").to_string()
        };
        let status = json!({"certificateChain": chain, "conditions": condition("Issued"), "notBefore": told(now),
            "notAfter": told(now + LASTS), "beginRefreshAt": told(now + LASTS / 2)});
        answer(cluster, request, &status);
        chain
    }
}

fn condition(kind: &str) -> Value {
    json!([{"type": kind, "status": "True", "reason": "TestSigner", "message": "as the test wants it",
        "lastTransitionTime": "2026-01-01T00:00:00Z"}])
}

/// Writes what becomes of a request.
fn answer(cluster: &Cluster, request: &Value, status: &Value) {
    let name = request["metadata"]["name"].as_str().expect("a name");
    patch(cluster, &format!("podcertificaterequest {name} --subresource=status"), &json!({"status": status}));
}

fn patch(cluster: &Cluster, what: &str, patch: &Value) {
    let file = cluster.dir.join("patch.json");
    std::fs::write(&file, patch.to_string()).expect("written");
    cluster.kubectl(&format!("patch {what} --type=merge --patch-file {}", file.display()));
}

/// What a pod asks for that nobody has answered.
fn asked(cluster: &Cluster, pod: &str) -> Value {
    eventually(&format!("{pod} asks for a certificate"), SOON, || {
        let all = cluster.json("get podcertificaterequests -o json");
        let is_open =
            |request: &&Value| request["spec"]["podName"] == pod && request["status"]["conditions"].is_null();
        all["items"].as_array().into_iter().flatten().find(is_open).cloned()
    })
}

fn bundle(name: &str, signer: Option<&str>, text: &str) -> Value {
    json!({"apiVersion": "certificates.k8s.io/v1beta1", "kind": "ClusterTrustBundle",
        "metadata": {"name": name, "labels": {"live": "yes"}}, "spec": {"signerName": signer, "trustBundle": text}})
}

/// A pod that goes on running and has all that there is of certificates in `/v`.
fn pod(name: &str, key_type: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"terminationGracePeriodSeconds": 1, "securityContext": {"runAsUser": 1000, "fsGroup": 2000},
            "containers": [{"name": "c", "image": IMAGE, "imagePullPolicy": "Never",
                "command": ["sleep", "100000"], "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
            "volumes": [{"name": "v", "projected": {"sources": [
                {"clusterTrustBundle": {"name": "roots", "path": "roots.pem"}},
                {"clusterTrustBundle": {"signerName": SIGNER, "labelSelector": {"matchLabels": {"live": "yes"}},
                    "path": "signer.pem"}},
                {"podCertificate": {"signerName": SIGNER, "keyType": key_type, "credentialBundlePath": "both.pem",
                    "keyPath": "key.pem", "certificateChainPath": "chain.pem"}}]}}]}})
}

fn shown(cluster: &Cluster, pod: &str, file: &str) -> String {
    cluster.kubectl(&format!("exec {pod} -- cat /v/{file}"))
}

fn shows(cluster: &Cluster, pod: &str, file: &str, wanted: &str) {
    eventually(&format!("{file} of {pod} follows"), SOON, || {
        (shown(cluster, pod, file) == wanted).then_some(())
    });
}

/// Whether a pod's key is that of its certificate.
fn fits(cluster: &Cluster, pod: &str) {
    let (key, chain) = (shown(cluster, pod, "key.pem"), shown(cluster, pod, "chain.pem"));
    assert_eq!(shown(cluster, pod, "both.pem"), format!("{key}{chain}"));
    let (_, leaf) = x509_parser::pem::parse_x509_pem(chain.as_bytes()).expect("PEM");
    let leaf = leaf.parse_x509().expect("a certificate");
    let key = KeyPair::from_pem(&key).expect("a key");
    assert_eq!(leaf.public_key().raw, key.subject_public_key_info(), "{pod}");
}

/// Whether an event of a pod says this.
fn said(cluster: &Cluster, pod: &str, reason: &str, message: &str) {
    eventually(&format!("{pod} says {reason}: {message}"), SOON, || {
        let asked = format!("get events --field-selector involvedObject.name={pod},reason={reason} -o json");
        let all = cluster.json(&asked);
        let is_so = |event: &Value| event["message"].as_str().is_some_and(|said| said.contains(message));
        all["items"].as_array().into_iter().flatten().any(is_so).then_some(())
    });
}

#[test]
fn pods_have_certificates_and_know_whom_to_trust() {
    let (true, Some(kubectl), Some(busybox)) =
        (krate_testkit::available(), support::kubectl(), image::busybox())
    else {
        return;
    };
    let files = tempfile::tempdir().expect("a directory");
    let configuration = files.path().join("kubelet.yaml");
    std::fs::write(&configuration, CONFIGURATION).expect("written");
    let configuration = configuration.to_string_lossy().into_owned();
    let served = "runtime-config=certificates.k8s.io/v1beta1=true";
    let args =
        ["--kubelet-config", &configuration, "--kube-apiserver-arg", GATES, "--kube-apiserver-arg", served];
    let mut cluster = Cluster::start(kubectl, &args);
    cluster.import(&busybox, IMAGE, IMAGE);
    cluster.takes_pods("default");
    let (signer, other) = (Signer::new("signer"), Signer::new("other"));
    cluster.create(&[
        bundle("roots", None, &other.root),
        bundle("krate.test:pods:1", Some(SIGNER), &signer.root),
        pod("web", "ECDSAP384"),
        pod("db", "ED25519"),
        pod("refused", "ECDSAP256"),
        pod("failed", "ECDSAP256"),
    ]);

    // Without certificates they wait, and say for what.
    let (web, db) = (asked(&cluster, "web"), asked(&cluster, "db"));
    said(&cluster, "web", "FailedMount", "credential bundle is not issued yet");
    let (chain, _) = (signer.issue(&cluster, &web), signer.issue(&cluster, &db));
    cluster.kubectl("wait --for=condition=Ready pod/web pod/db --timeout=120s");
    assert_eq!(shown(&cluster, "web", "chain.pem"), chain);
    for pod in ["web", "db"] {
        fits(&cluster, pod);
        assert_eq!(shown(&cluster, pod, "roots.pem"), other.root);
        assert_eq!(shown(&cluster, pod, "signer.pem"), signer.root);
    }
    let mode = cluster.kubectl("exec web -- stat -Lc %a:%u:%g /v/key.pem");
    assert_eq!(mode.trim(), "640:1000:2000");

    // One that is refused does not start.
    for (pod, how, told) in [("refused", "Denied", "was denied"), ("failed", "Failed", "failed")] {
        let request = asked(&cluster, pod);
        answer(&cluster, &request, &json!({"conditions": condition(how)}));
        let words = "reason=\"TestSigner\"";
        let name = request["metadata"]["name"].as_str().expect("a name");
        let event =
            format!("PodCertificateRequest default/{name} {told}, {words}, message=\"as the test wants it\"");
        said(&cluster, pod, how, &event);
        let event = format!(
            "MountVolume.SetUp failed for volume \"v\" : PodCertificateRequest was permanently {}: {words} \
             message=\"as the test wants it\"",
            how.to_lowercase()
        );
        said(&cluster, pod, "FailedMount", &event);
        assert_eq!(cluster.json(&format!("get pod {pod} -o json"))["status"]["phase"], "Pending");
    }

    // What runs sees what has changed.
    patch(&cluster, "clustertrustbundle roots", &json!({"spec": {"trustBundle": signer.root}}));
    shows(&cluster, "web", "roots.pem", &signer.root);
    cluster.create(&[bundle("krate.test:pods:2", Some(SIGNER), &other.root)]);
    eventually("the signer's second root is there too", SOON, || {
        let all = shown(&cluster, "db", "signer.pem");
        (all.contains(&signer.root) && all.contains(&other.root)).then_some(())
    });

    // A kubelet that comes again asks anew; until it is answered, what there was is seen.
    let key = shown(&cluster, "web", "key.pem");
    cluster.kill();
    cluster.up();
    let again = asked(&cluster, "web");
    assert_eq!(shown(&cluster, "web", "chain.pem"), chain);
    let renewed = signer.issue(&cluster, &again);
    shows(&cluster, "web", "chain.pem", &renewed);
    fits(&cluster, "web");
    assert_ne!(shown(&cluster, "web", "key.pem"), key);
    let status = cluster.json("get pod web -o json")["status"].clone();
    assert_eq!(status["containerStatuses"][0]["restartCount"], 0, "{status}");
    let node = cluster.kubectl("get nodes -o name");
    let node = node.trim().trim_start_matches("node/");
    let figures = cluster.kubectl(&format!("get --raw /api/v1/nodes/{node}/proxy/metrics"));
    let row = format!("kubelet_podcertificate_states{{signer_name=\"{SIGNER}\",state=\"fresh\"}} 1");
    assert!(figures.lines().any(|line| line == row), "{row}\n{figures}");

    cluster.kubectl("delete pods --all --timeout=120s");
    let pods = cluster.dir.join("kubelet/pods");
    eventually("no key is left on the node", SOON, || {
        std::fs::read_dir(&pods).expect("listed").next().is_none().then_some(())
    });
    eventually("nothing is asked for by pods that are gone", SOON, || {
        let all = cluster.json("get podcertificaterequests -o json");
        all["items"].as_array().is_some_and(Vec::is_empty).then_some(())
    });
}
