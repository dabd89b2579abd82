//! Publishes by whose certificates the API server is known, as the ClusterTrustBundle of the signer
//! `kubernetes.io/kube-apiserver-serving` (KEP-3257). Its name says what is in it; others of that signer go.

use std::sync::LazyLock;
use std::time::Instant;

use k8s_openapi::api::certificates::v1beta1::{ClusterTrustBundle, ClusterTrustBundleSpec};
use krate_client::{Api, Informer, Reconcile, Requeue, WorkQueue, is_not_found};
use krate_metrics::Stability::Alpha;
use krate_metrics::powers;
use kube::api::{DeleteParams, PostParams};
use kube::runtime::watcher;
use prometheus::{HistogramVec, IntCounterVec};
use sha2::{Digest as _, Sha256};

use super::is_served;
use crate::meta::name;
use crate::metrics::FAMILIES;
use crate::{Context, Error};

const SIGNER: &str = "kubernetes.io/kube-apiserver-serving";

/// How often the bundle was looked at and how long that took, by the code of what came of it.
static SYNCS: LazyLock<(IntCounterVec, HistogramVec)> = LazyLock::new(|| {
    let name = |end: &str| format!("clustertrustbundle_publisher_{end}");
    (
        FAMILIES.counters(Alpha, &name("sync_total"), "Times that the bundle was looked at.", &["code"]),
        FAMILIES.histograms(
            Alpha,
            &name("sync_duration_seconds"),
            "What it took to look at the bundle.",
            &["code"],
            &powers(0.001, 2.0, 15),
        ),
    )
});

struct Publisher {
    bundles: Api<ClusterTrustBundle>,
    published: Informer<ClusterTrustBundle>,
    pem: String,
}

pub async fn run(cx: Context) {
    let pem = cx.config.root_ca_pem.clone();
    if pem.is_empty() || !is_served::<ClusterTrustBundle>(&cx).await {
        return;
    }
    let only = watcher::Config::default().fields(&format!("spec.signerName={SIGNER}"));
    let published: Informer<ClusterTrustBundle> =
        Informer::start(Api::all(cx.client.clone()), only, cx.shutdown.clone());
    if !cx.ready(published.synced()).await {
        return;
    }
    let queue = WorkQueue::named("ca_cert_publisher_cluster_trust_bundles");
    queue.add(());
    let q = queue.clone();
    published.handle(move |_| q.add(()));
    let reconciler = Publisher { bundles: Api::all(cx.client.clone()), published, pem };
    cx.work("cluster-trust-bundle", reconciler, queue, 1).await;
}

impl Reconcile for Publisher {
    /// There is one bundle.
    type Key = ();
    type Error = Error;

    async fn reconcile(&self, (): ()) -> Result<Requeue, Error> {
        let began = Instant::now();
        let synced = self.publish().await;
        let code = match &synced {
            Ok(_) => "200".to_owned(),
            Err(Error::Api(kube::Error::Api(status))) if status.code != 0 => status.code.to_string(),
            Err(_) => "500".to_owned(),
        };
        SYNCS.0.with_label_values(&[&code]).inc();
        SYNCS.1.with_label_values(&[&code]).observe(began.elapsed().as_secs_f64());
        synced
    }
}

impl Publisher {
    async fn publish(&self) -> Result<Requeue, Error> {
        let wanted = bundle(&self.pem);
        match self.published.get("", name(&wanted)) {
            None => drop(self.bundles.create(&PostParams::default(), &wanted).await?),
            Some(there) if there.spec.trust_bundle != self.pem => {
                let mut there = (*there).clone();
                there.spec.trust_bundle.clone_from(&self.pem);
                self.bundles.replace(name(&wanted), &PostParams::default(), &there).await?;
            }
            Some(_) => {}
        }
        // One that cannot be removed keeps none of the others.
        let mut failed = None;
        for other in self.published.list().iter().filter(|other| name(&***other) != name(&wanted)) {
            match self.bundles.delete(name(&**other), &DeleteParams::default()).await {
                Err(error) if !is_not_found(&error) => failed = Some(error),
                _ => {}
            }
        }
        failed.map_or(Ok(Requeue::Done), |error| Err(error.into()))
    }
}

fn bundle(pem: &str) -> ClusterTrustBundle {
    let hash = hex::encode(Sha256::digest(pem.as_bytes()));
    let mut bundle = ClusterTrustBundle {
        spec: ClusterTrustBundleSpec { signer_name: Some(SIGNER.to_owned()), trust_bundle: pem.to_owned() },
        ..ClusterTrustBundle::default()
    };
    // Twelve bytes tell one bundle from another.
    let hash = hash.get(..24).unwrap_or_default();
    bundle.metadata.name = Some(format!("{}:{hash}", SIGNER.replace('/', ":")));
    bundle
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_is_named_after_what_is_in_it() {
        let named = |pem: &str| bundle(pem).metadata.name.unwrap_or_default();
        assert_eq!(named("abc"), "kubernetes.io:kube-apiserver-serving:ba7816bf8f01cfea414140de");
        assert_ne!(named("abc"), named("abd"));
    }
}
