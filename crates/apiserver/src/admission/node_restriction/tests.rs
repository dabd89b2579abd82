use serde_json::{Value, json};

use super::*;

fn typed<T: serde::de::DeserializeOwned>(json: Value) -> T {
    serde_json::from_value(json).expect("an object")
}

#[test]
fn a_kubelet_labels_its_node_only_with_what_is_its_to_say() {
    for (label, forbidden) in [
        ("team", false),
        ("example.com/x", false),
        ("kubernetes.io/hostname", false),
        ("topology.kubernetes.io/zone", false),
        ("node.kubernetes.io/x", false),
        ("a.kubelet.kubernetes.io/x", false),
        ("kubernetes.io/x", true),
        ("node-role.kubernetes.io/control-plane", true),
        ("node-restriction.kubernetes.io/x", true),
        ("a.node-restriction.kubernetes.io/x", true),
        ("xkubernetes.io/x", false),
        ("failure-domain.beta.kubernetes.io/zone", false),
        ("failure-domain.kubernetes.io/zone", true),
        ("app.k8s.io/x", true),
    ] {
        assert_eq!(is_forbidden(label), forbidden, "{label}");
    }
}

#[test]
fn a_kubelet_changes_of_its_node_neither_taints_nor_foreign_labels() {
    let node = |labels: Value, taints: Value| -> Node {
        typed(json!({"metadata": {"name": "a", "labels": labels}, "spec": {"taints": taints}}))
    };
    let plain = node(json!({"team": "x"}), json!([]));
    let judge = |new: &Node, old: Option<&Node>| {
        own_node("a", Some(new as &dyn Object), old.map(|old| old as &dyn Object))
    };
    assert_eq!(judge(&plain, None), Ok(()));
    let role = node(json!({"node-role.kubernetes.io/x": ""}), json!([]));
    let told = "is not allowed to set the following labels: node-role.kubernetes.io/x";
    assert!(judge(&role, None).expect_err("refused").contains(told));
    assert_eq!(judge(&role, Some(&role)), Ok(()), "what is there may stay");
    assert!(judge(&plain, Some(&role)).expect_err("refused").contains("modify labels"));
    let tainted = node(json!({"team": "x"}), json!([{"key": "k", "effect": "NoSchedule"}]));
    assert!(judge(&plain, Some(&tainted)).expect_err("refused").contains("modify taints"));
    let mut owned = plain.clone();
    owned.metadata.owner_references =
        Some(vec![typed(json!({"apiVersion": "v1", "kind": "Node", "name": "b",
        "uid": "u"}))]);
    assert!(judge(&owned, Some(&plain)).expect_err("refused").contains("modify ownerReferences"));
    let mut sourced = plain.clone();
    sourced.spec = typed(json!({"configSource": {}}));
    assert!(judge(&sourced, None).expect_err("refused").contains("non-nil configSource"));
    assert!(judge(&sourced, Some(&plain)).expect_err("refused").contains("new non-nil configSource"));
    assert_eq!(judge(&sourced, Some(&sourced)), Ok(()), "what is there may stay");
}

#[test]
fn a_kubelet_evicts_its_own_pods_alone() {
    let at = |node: &str| -> Pod {
        typed(json!({"metadata": {"name": "p"}, "spec": {"nodeName": node, "containers": []}}))
    };
    assert_eq!(eviction("a", Some(&at("a"))), Ok(()));
    let refused = eviction("a", Some(&at("b"))).expect_err("refused");
    assert_eq!(refused, "node a can only evict pods with spec.nodeName set to itself");
}

#[test]
fn a_kubelet_makes_and_deletes_slices_of_its_own_devices() {
    let slice: ResourceSlice =
        typed(json!({"metadata": {"name": "s"}, "spec": {"driver": "d", "nodeName": "a",
        "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}}}));
    let object = || Some(&slice as &dyn Object);
    assert_eq!(super::slice("a", object(), None), Ok(()));
    assert!(super::slice("b", object(), None).expect_err("refused").starts_with("can only create"));
    assert!(super::slice("b", None, object()).expect_err("refused").starts_with("can only delete"));
    assert_eq!(super::slice("b", object(), object()), Ok(()));
}

#[test]
fn a_mirror_pod_refers_to_nothing_of_the_cluster() {
    let with = |volume: Value| -> PodSpec {
        let mut volume = volume;
        volume["name"] = "v".into();
        typed(json!({"containers": [], "volumes": [volume]}))
    };
    for (spec, told) in [
        (with(json!({"hostPath": {"path": "/"}})), None),
        (with(json!({"csi": {"driver": "d"}})), Some("csidrivers (via CSI volumes)")),
        (with(json!({"persistentVolumeClaim": {"claimName": "c"}})), Some("persistentvolumeclaims")),
        (with(json!({"ephemeral": {}})), Some("persistentvolumeclaims (via ephemeral volumes)")),
        (
            with(json!({"projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}})),
            Some("serviceaccounts (via projected volumes)"),
        ),
        (typed(json!({"containers": [], "resourceClaims": [{"name": "c"}]})), Some("resourceclaims")),
    ] {
        assert_eq!(referred(&spec), told);
    }
}

#[test]
fn a_kubelet_asks_for_certificates_of_its_own() {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, "system:node:a");
    let pem = params.serialize_request(&key).expect("a request").pem().expect("PEM");
    let mut csr: CertificateSigningRequest = typed(json!({"metadata": {"name": "r"}, "spec": {
        "request": "", "signerName": "kubernetes.io/kubelet-serving", "usages": ["server auth"]}}));
    csr.spec.request.0 = pem.into_bytes();
    let judge =
        |node: &str, csr: &CertificateSigningRequest| own_certificate(node, Some(csr as &dyn Object), None);
    assert_eq!(judge("a", &csr), Ok(()));
    assert!(judge("b", &csr).expect_err("refused").contains("with CN=system:node:b"));
    csr.spec.signer_name = "example.com/other".to_owned();
    assert_eq!(judge("b", &csr), Ok(()), "whose names mean something else");
}

#[test]
fn a_kubelets_pods_mirror_its_own_files() {
    let pod = |annotations: Value, spec: Value| -> Pod {
        typed(json!({"metadata": {"name": "p", "annotations": annotations}, "spec": spec}))
    };
    let mirrors = json!({"kubernetes.io/config.mirror": "x"});
    let spec = |more: Value| {
        let mut spec = json!({"nodeName": "a", "containers": []});
        spec.as_object_mut().expect("a map").extend(more.as_object().cloned().unwrap_or_default());
        spec
    };
    for (pod, told) in [
        (pod(mirrors.clone(), spec(json!({}))), None),
        (pod(json!({}), spec(json!({}))), Some("can only create mirror pods")),
        (pod(mirrors.clone(), json!({"nodeName": "b", "containers": []})), Some("spec.nodeName")),
        (pod(mirrors.clone(), spec(json!({"serviceAccountName": "s"}))), Some("reference serviceaccounts")),
        (
            pod(mirrors.clone(), spec(json!({"volumes": [{"name": "v", "secret": {"secretName": "s"}}]}))),
            Some("reference secrets"),
        ),
        (
            pod(
                mirrors,
                spec(json!({"volumes": [{"name": "v", "projected": {"sources": [
                    {"podCertificate": {"signerName": "a.test/b", "keyType": "ED25519"}}]}}]})),
            ),
            Some("reference podcertificates"),
        ),
    ] {
        let judged = mirror("a", &pod).and_then(|()| references("a", &pod));
        match told {
            None => assert_eq!(judged, Ok(())),
            Some(told) => assert!(judged.as_ref().expect_err(told).contains(told), "{judged:?}"),
        }
    }
}
