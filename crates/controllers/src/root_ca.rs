//! Publishes in each namespace the certificates by which pods know the API server: `kube-root-ca.crt`.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Instant;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use krate_client::{Api, Client, Informer, Reconcile, Requeue, WorkQueue, is_conflict};
use krate_metrics::Stability::Alpha;
use krate_metrics::powers;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use prometheus::{HistogramVec, IntCounterVec};
use serde_json::json;

use crate::context::follow;
use crate::meta::namespace;
use crate::metrics::FAMILIES;
use crate::serviceaccount::is_open;
use crate::{Context, Error};

const NAME: &str = "kube-root-ca.crt";
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal \
                           endpoints such as the internal service IP or kubernetes.default.svc. No other usage is \
                           guaranteed across distributions of Kubernetes clusters.";

/// How often the bundle of a namespace was looked at and how long that took, by the code of what came of it.
static SYNCS: LazyLock<(IntCounterVec, HistogramVec)> = LazyLock::new(|| {
    let name = |end: &str| format!("root_ca_cert_publisher_{end}");
    let help = "Times that a namespace's bundle was looked at.";
    (
        FAMILIES.counters(Alpha, &name("sync_total"), help, &["code"]),
        FAMILIES.histograms(
            Alpha,
            &name("sync_duration_seconds"),
            "What it took to look at a namespace's bundle.",
            &["code"],
            &powers(0.001, 2.0, 15),
        ),
    )
});

struct Publisher {
    client: Client,
    namespaces: Informer<Namespace>,
    published: Informer<ConfigMap>,
    pem: String,
}

pub async fn run(cx: Context) {
    let namespaces = cx.informers.of::<Namespace>();
    // Only these: all config maps of a cluster can be a lot.
    let only = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
    let published: Informer<ConfigMap> =
        Informer::start(Api::all(cx.client.clone()), only, cx.shutdown.clone());
    if !cx
        .ready(async {
            tokio::join!(namespaces.synced(), published.synced());
        })
        .await
    {
        return;
    }
    let queue = WorkQueue::named("root_ca_cert_publisher");
    follow(&namespaces, &queue);
    let q = queue.clone();
    published.handle(move |event| q.add(namespace(&**event.object()).to_owned()));
    let pem = cx.config.root_ca_pem.clone();
    let reconciler = Publisher { client: cx.client.clone(), namespaces, published, pem };
    cx.work("root-ca", reconciler, queue, 1).await;
}

impl Reconcile for Publisher {
    /// A namespace.
    type Key = String;
    type Error = Error;

    async fn reconcile(&self, key: String) -> Result<Requeue, Error> {
        let began = Instant::now();
        let synced = self.publish(&key).await;
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
    /// Publishes the bundle in a namespace, if it is not there.
    async fn publish(&self, key: &str) -> Result<Requeue, Error> {
        if !self.namespaces.get("", key).is_some_and(|n| is_open(&n)) {
            return Ok(Requeue::Done);
        }
        let wanted = BTreeMap::from([("ca.crt".to_owned(), self.pem.clone())]);
        let annotations = BTreeMap::from([("kubernetes.io/description".to_owned(), DESCRIPTION.to_owned())]);
        let api = Api::<ConfigMap>::namespaced(self.client.clone(), key);
        let written = match self.published.get(key, NAME) {
            Some(map) if map.data.as_ref() == Some(&wanted) => return Ok(Requeue::Done),
            Some(map) => {
                // Replaced as a whole: what else is in it does not belong there.
                let mut map = (*map).clone();
                map.data = Some(wanted);
                map.metadata.annotations.get_or_insert_default().extend(annotations);
                let patch = json!([
                    {"op": "add", "path": "/data", "value": map.data},
                    {"op": "add", "path": "/metadata/annotations", "value": map.metadata.annotations},
                ]);
                let patch = serde_json::from_value(patch).map_err(|e| Error::Invalid(e.to_string()))?;
                api.patch(NAME, &PatchParams::default(), &Patch::<()>::Json(patch)).await
            }
            None => {
                let mut map = ConfigMap { data: Some(wanted), ..ConfigMap::default() };
                map.metadata.name = Some(NAME.to_owned());
                map.metadata.annotations = Some(annotations);
                api.create(&PostParams::default(), &map).await
            }
        };
        match written {
            Err(error) if !is_conflict(&error) => Err(error.into()),
            _ => Ok(Requeue::Done),
        }
    }
}
