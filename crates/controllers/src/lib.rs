//! The controllers: each one brings a part of the cluster closer to what is asked, by reading informers and writing
//! through the API. One module a controller; [`CONTROLLERS`] is their table.
//!
//! No controller calls another, and none keeps anything that it could not rebuild from the API: queues, expectations
//! and the garbage collector's graph are gone with the process and made anew.

mod attach_detach;
mod bootstrap;
mod certificates;
mod context;
mod deployment;
mod discovery;
mod endpoints;
mod expectations;
mod garbage;
mod meta;
pub mod metrics;
mod namespace;
mod node;
mod own_status;
mod pod_gc;
mod protection;
mod replicaset;
mod resource_quota;
mod root_ca;
mod service_cidr;
mod serviceaccount;

pub use certificates::{Authority, AuthorityError};
pub use context::{Config, Context, Error, FEATURES};

use std::future::Future;
use std::pin::Pin;

use krate_client::{CancellationToken, Client, Informers};
use tokio::task::JoinSet;

type Running = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A controller: upstream's name for it, and how it is run until the context's shutdown.
pub struct Controller {
    pub name: &'static str,
    /// The feature without which it is not run.
    pub feature: Option<&'static str>,
    pub run: fn(Context) -> Running,
}

macro_rules! table {
    ($($name:literal => $run:path $(, if $feature:expr)?;)*) => {
        &[$(Controller {
            name: $name,
            feature: table!(@feature $($feature)?),
            run: |cx| Box::pin($run(cx)),
        },)*]
    };
    (@feature) => { None };
    (@feature $feature:expr) => { Some($feature) };
}

/// All controllers. To add one, add its module and its line.
pub static CONTROLLERS: &[Controller] = table! {
    "serviceaccount-controller" => serviceaccount::run;
    "root-ca-certificate-publisher-controller" => root_ca::run;
    "namespace-controller" => namespace::run;
    "node-ipam-controller" => node::ipam::run;
    "node-lifecycle-controller" => node::lifecycle::run;
    "taint-eviction-controller" => node::eviction::run;
    "replicaset-controller" => replicaset::run::<k8s_openapi::api::apps::v1::ReplicaSet>;
    "replicationcontroller-controller" => replicaset::run::<k8s_openapi::api::core::v1::ReplicationController>;
    "deployment-controller" => deployment::run;
    "service-cidrs-controller" => service_cidr::run;
    "endpointslice-controller" => endpoints::slices::run;
    "endpoints-controller" => endpoints::legacy::run;
    "endpointslice-mirroring-controller" => endpoints::mirror::run;
    "garbage-collector-controller" => garbage::run;
    "pod-garbage-collector-controller" => pod_gc::run;
    "resourcequota-controller" => resource_quota::run;
    "persistentvolumeclaim-protection-controller" => protection::claims::run;
    "persistentvolume-protection-controller" => protection::volumes::run;
    "volumeattributesclass-protection-controller" => protection::classes::run;
    "persistentvolume-attach-detach-controller" => attach_detach::run;
    "certificatesigningrequest-signing-controller" => certificates::signing::run;
    "certificatesigningrequest-approving-controller" => certificates::approving::run;
    "certificatesigningrequest-cleaner-controller" => certificates::cleaning::run;
    "kube-apiserver-serving-clustertrustbundle-publisher-controller" => certificates::publishing::run,
        if context::CLUSTER_TRUST_BUNDLE;
    "podcertificaterequest-cleaner-controller" => certificates::pod_cleaning::run,
        if context::POD_CERTIFICATE_REQUEST;
    "bootstrap-signer-controller" => bootstrap::signing::run;
    "token-cleaner-controller" => bootstrap::cleaning::run;
};

/// Runs every controller until `shutdown`.
///
/// # Errors
/// A controller has ended by a panic outside its reconciler, which is a bug.
pub async fn run(
    client: Client,
    informers: Informers,
    config: Config,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let context = Context::new(client, informers, config, shutdown);
    let mut running = JoinSet::new();
    let features = &context.config.features;
    let is_on =
        |controller: &&Controller| controller.feature.is_none_or(|feature| features.contains(feature));
    for controller in CONTROLLERS.iter().filter(is_on) {
        let work = (controller.run)(context.clone());
        let told = metrics::Running::new(controller.name);
        running.spawn(async move {
            work.await;
            drop(told);
        });
    }
    while let Some(ended) = running.join_next().await {
        if let Err(error) = ended {
            return Err(Error::Ended(error.to_string()));
        }
    }
    Ok(())
}
