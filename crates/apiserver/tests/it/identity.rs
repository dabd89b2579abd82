//! The lease of each server.

use serde_json::json;

use crate::support::Api;

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";

#[tokio::test]
async fn a_server_has_a_lease_while_it_serves_and_removes_those_of_servers_that_are_gone() {
    let api = Api::start().await;
    let ours = format!("{LEASES}?labelSelector=apiserver.kubernetes.io/identity%3Dkube-apiserver");
    let (code, leases) = api.get(&ours).await;
    assert_eq!((code, leases["items"].as_array().map(Vec::len)), (200, Some(1)), "{leases}");
    let lease = &leases["items"][0];
    let name = lease["metadata"]["name"].as_str().expect("a name");
    let holder = lease["spec"]["holderIdentity"].as_str().expect("a holder");
    assert!(name.starts_with("apiserver-") && holder.starts_with(&format!("{name}_")), "{lease}");
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 3600);
    assert_eq!(lease["metadata"]["annotations"]["kubernetes.io/peer-advertise-address"], "127.0.0.1:6443");

    let stale = |name: &str, labels| {
        json!({"metadata": {"name": name, "labels": labels},
            "spec": {"holderIdentity": "x", "leaseDurationSeconds": 3600, "renewTime": "2026-01-02T03:04:05.000000Z"}})
    };
    let of_a_server = stale("apiserver-gone", json!({"apiserver.kubernetes.io/identity": "kube-apiserver"}));
    for lease in [of_a_server, stale("another", json!({}))] {
        assert_eq!(api.post(LEASES, &lease).await.0, 201);
    }
    let again = api.again(|_| {}).await.expect("it starts");
    again.until(&format!("{LEASES}/apiserver-gone"), |code, _| code == 404).await;
    assert_eq!(again.get(&format!("{LEASES}/another")).await.0, 200);
    let (code, kept) = again.get(&format!("{LEASES}/{name}")).await;
    assert_eq!(code, 200);
    assert_ne!(kept["spec"]["holderIdentity"], lease["spec"]["holderIdentity"], "each run is another holder");

    api.stop();
    api.until(&format!("{LEASES}/{name}"), |code, _| code == 404).await;
}

#[tokio::test]
async fn a_server_without_an_identity_has_no_lease() {
    let api = Api::start_with(|config| {
        config.features = krate_apiserver::features::Features::parse([
            "APIServerIdentity=false,UnknownVersionInteroperabilityProxy=false",
        ])
        .expect("sound")
        .into();
    })
    .await;
    let (code, leases) = api.get(LEASES).await;
    assert_eq!((code, leases["items"].as_array().map(Vec::len)), (200, Some(0)), "{leases}");
}
