//! What every controller is given.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use krate_client::{
    CancellationToken, Client, Event, EventRecorder, Informer, InformerObject, Informers, Reconcile,
    WorkQueue,
};

use crate::certificates::Authority;
use crate::meta::name;

/// Publishing of the API server's authority as a ClusterTrustBundle (KEP-3257).
pub const CLUSTER_TRUST_BUNDLE: &str = "ClusterTrustBundle";
/// Cleaning up behind requests for certificates of pods (KEP-4317).
pub const POD_CERTIFICATE_REQUEST: &str = "PodCertificateRequest";
/// The features on which a controller depends.
pub const FEATURES: [&str; 2] = [CLUSTER_TRUST_BUNDLE, POD_CERTIFICATE_REQUEST];

/// What the controllers are told at their start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Those of [`FEATURES`] that are on.
    pub features: BTreeSet<&'static str>,
    /// The certificates that clients in pods trust, as PEM: what `kube-root-ca.crt` says in each namespace.
    pub root_ca_pem: String,
    /// Who signs what is asked for by certificate signing requests. None leaves it to somebody else.
    pub signing: Option<Arc<Authority>>,
    /// How long the certificates of such requests last at most (`--cluster-signing-duration`).
    pub signing_duration: Duration,
    /// Where nodes' pod ranges are cut from. None leaves it to somebody else.
    pub cluster_cidr: Option<IpNet>,
    /// How long a node's prefix is: 24 gives each 254 addresses.
    pub node_cidr_prefix: u8,
    /// A node that has been silent for so long is taken to be gone.
    pub node_grace_period: Duration,
    /// How many pods that have run to their end are kept.
    pub terminated_pods: usize,
    /// Whether volumes stay attached to a node that is out of order and says that they are in use, for ever instead of six
    /// minutes (upstream's flag of this name).
    pub disable_force_detach_on_timeout: bool,
}

impl Default for Config {
    /// Upstream's defaults, and the pod range that flannel and kubeadm's examples use.
    fn default() -> Self {
        Config {
            features: BTreeSet::new(),
            root_ca_pem: String::new(),
            signing: None,
            signing_duration: Duration::from_hours(24 * 365),
            cluster_cidr: "10.244.0.0/16".parse().ok(),
            node_cidr_prefix: 24,
            node_grace_period: Duration::from_secs(50),
            terminated_pods: 12_500,
            disable_force_detach_on_timeout: false,
        }
    }
}

/// Clones share everything.
#[derive(Clone)]
pub struct Context {
    pub client: Client,
    pub informers: Informers,
    pub config: Arc<Config>,
    pub shutdown: CancellationToken,
}

impl Context {
    pub fn new(client: Client, informers: Informers, config: Config, shutdown: CancellationToken) -> Self {
        Context { client, informers, config: Arc::new(config), shutdown }
    }

    pub fn recorder(&self, component: &str) -> EventRecorder {
        EventRecorder::new(self.client.clone(), component, "")
    }

    /// Works the queue off until shutdown.
    pub async fn work<R: Reconcile>(
        &self,
        name: &'static str,
        reconciler: R,
        queue: WorkQueue<R::Key>,
        workers: usize,
    ) {
        krate_client::run(name, Arc::new(reconciler), queue, workers, self.shutdown.clone()).await;
    }

    /// Waits until the informers have their first list; false if shutdown comes before.
    pub async fn ready(&self, informers: impl Future<Output = ()>) -> bool {
        tokio::select! {
            () = self.shutdown.cancelled() => false,
            () = informers => true,
        }
    }
}

/// Puts the name of each object into a queue as it comes or changes.
pub fn follow<K: InformerObject>(informer: &Informer<K>, queue: &WorkQueue<String>) {
    let queue = queue.clone();
    informer.handle(move |event| {
        if !matches!(event, Event::Deleted(_)) {
            queue.add(name(&**event.object()).to_owned());
        }
    });
}

/// Why a key could not be reconciled, or the controllers ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}", krate_client::message(.0))]
    Api(#[from] kube::Error),
    #[error("{0}")]
    Invalid(String),
    #[error("a controller has ended: {0}")]
    Ended(String),
}

impl Error {
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::Api(error) if krate_client::is_not_found(error))
    }

    pub fn is_conflict(&self) -> bool {
        matches!(self, Error::Api(error) if krate_client::is_conflict(error))
    }
}
