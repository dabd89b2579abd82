//! What the controllers do for ClusterTrustBundles and PodCertificateRequests against the real API server, with no more
//! than their rights.

#[path = "support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::certificates::v1beta1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::ConfigMap;
use krate_apiserver::features::{Features, Resources};
use krate_client::Informers;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use serde_json::json;
use support::{Cluster, object, until};

const PREFIX: &str = "kubernetes.io:kube-apiserver-serving:";

fn authority() -> String {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.self_signed(&KeyPair::generate().expect("a key")).expect("signed").pem()
}

/// A cluster with these features and versions, whose controllers publish `pem`.
async fn cluster(gates: &str, versions: &str, pem: &str) -> Cluster {
    let features = Features::parse([gates]).expect("sound");
    let on = krate_controllers::FEATURES.into_iter().filter(|name| features.enabled(name));
    let config = krate_controllers::Config {
        features: on.collect(),
        root_ca_pem: pem.to_owned(),
        ..krate_controllers::Config::default()
    };
    let cluster = Cluster::start_with(|server| {
        server.features = Arc::new(features);
        server.resources = Resources::parse([versions]).expect("sound");
    })
    .await;
    let manager = cluster.client_as("system:kube-controller-manager", &[krate_apiserver::rbac::CONTROLLERS]);
    let informers = Informers::new(manager.clone(), cluster.shutdown.clone());
    let shutdown = cluster.shutdown.clone();
    cluster.run(async move {
        krate_controllers::run(manager, informers, config, shutdown).await.expect("they run");
    });
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_servers_authority_is_published_as_it_is() {
    let (pem, other) = (authority(), authority());
    let cluster = cluster("ClusterTrustBundle=true", "certificates.k8s.io/v1beta1=true", &pem).await;
    let bundles = cluster.all::<ClusterTrustBundle>();
    let published = |all: &[ClusterTrustBundle]| -> Vec<(String, String)> {
        let ours = all.iter().filter(|bundle| bundle.name_any().starts_with(PREFIX));
        ours.map(|bundle| (bundle.name_any(), bundle.spec.trust_bundle.clone())).collect()
    };
    let is_as_wanted =
        |all: &[ClusterTrustBundle]| matches!(published(all).as_slice(), [(_, text)] if *text == pem);
    until(bundles.clone(), "the bundle is published", is_as_wanted).await;
    let list = async || bundles.list(&ListParams::default()).await.expect("bundles").items;
    let name = published(&list().await).remove(0).0;
    // What is changed is changed back, what is deleted comes again, and there is no other of the signer.
    let patch = Patch::Merge(json!({"spec": {"trustBundle": other}}));
    bundles.patch(&name, &PatchParams::default(), &patch).await.expect("patched");
    until(bundles.clone(), "the bundle is as it was", is_as_wanted).await;
    bundles.delete(&name, &DeleteParams::default()).await.expect("deleted");
    until(bundles.clone(), "the bundle is there again", is_as_wanted).await;
    let spec = json!({"signerName": "kubernetes.io/kube-apiserver-serving", "trustBundle": other});
    let second = object(json!({"metadata": {"name": format!("{PREFIX}old")}, "spec": spec}));
    bundles.create(&PostParams::default(), &second).await.expect("made");
    let foreign = object(json!({"metadata": {"name": "foreign"}, "spec": {"trustBundle": other}}));
    bundles.create(&PostParams::default(), &foreign).await.expect("made");
    until(bundles.clone(), "the old bundle is gone", is_as_wanted).await;
    let left: BTreeSet<String> = list().await.iter().map(ResourceExt::name_any).collect();
    assert_eq!(left, BTreeSet::from(["foreign".to_owned(), name]));
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_kinds_are_not_served_the_other_controllers_work() {
    let pem = authority();
    let cluster = cluster("ClusterTrustBundle=true,PodCertificateRequest=true", "", &pem).await;
    cluster.create_namespace("ns").await;
    let maps = cluster.of::<ConfigMap>("ns");
    until(maps, "the namespace has its bundle", |maps| {
        maps.iter().any(|map| map.name_any() == "kube-root-ca.crt")
    })
    .await;
    assert!(cluster.all::<ClusterTrustBundle>().list(&ListParams::default()).await.is_err());
}
