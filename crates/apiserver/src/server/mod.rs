//! The server as a whole: what all requests share, and how it is started.

mod following;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::OptionFuture;
use krate_api::{Kind, StatusError};
use krate_encryption::{Encryption, Sealed};
use krate_pki::Source;
use krate_store::cache::Cache;
use krate_store::{Backend, Compactor};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::admission::policy::typecheck;
use crate::admission::{self, Chain};
use crate::aggregation::{self, Aggregation};
use crate::apiextensions::Establisher;
use crate::audit::{self, Audit};
use crate::auth::{self, Authenticator, Authorizer, Caller, MASTERS, Signer, User};
use crate::bootstrap::{self, Commits};
use crate::debugging::Debugging;
use crate::encryption::EncryptionFile;
use crate::fairness::{self, Fairness, InFlight};
use crate::features::{self, Features, Resources};
use crate::identity::Identity;
use crate::instruments::Instruments;
use crate::kinds::Kinds;
use crate::limits::Limits;
use crate::proxy::Nodes;
use crate::rbac;
use crate::registry::core::service::Allocator;
use crate::registry::lifecycle::Lifecycles;
use crate::service::Service;
use crate::spans::{Tracer, Tracing};

/// How much history the store keeps for watches and further pages, as upstream.
const HISTORY: Duration = Duration::from_mins(5);
/// The user as whom the server itself writes.
pub(crate) const SELF: &str = "system:apiserver";

/// What a server is started with.
#[derive(Clone)]
pub struct Config {
    /// Where pods and nodes reach this server.
    pub advertise: SocketAddr,
    /// By what clients know this server: for whoever listens for it.
    pub serving: Option<Source>,
    /// The addresses of Services.
    pub service_cidr: String,
    /// How callers prove who they are.
    pub authentication: auth::Settings,
    /// The authorizers, in the order in which they are asked; Node and RBAC where there are none.
    pub authorization: Vec<auth::Mode>,
    /// The file that names them, if there is one, and that of the policies of ABAC.
    pub authorization_file: Option<(auth::Followed, Option<PathBuf>)>,
    /// What is set of the features.
    pub features: Arc<Features>,
    /// Which of the built-in kinds are served.
    pub resources: Resources,
    /// Which admission plugins are asked.
    pub admission: admission::Settings,
    /// The authority of client certificates, PEM.
    pub ca: String,
    /// The authority of the nodes' serving certificates, PEM; that of client certificates where it is empty.
    pub node_ca: String,
    /// By what nodes know this server; None where it says nothing of itself.
    pub node_client: Option<Source>,
    /// What says which objects are encrypted in the store; none are without it.
    pub encryption: Option<EncryptionFile>,
    /// What is told of requests, and where to.
    pub audit: audit::Options,
    /// How much it takes on at a time, and for how long.
    pub limits: Limits,
    /// By what servers behind this one know that it is this one that asks them, and may speak for others; None where none
    /// are to be asked. Whose certificates they believe is told them as `authentication.request_header` has it.
    pub front_proxy: Option<Source>,
    /// What may be seen of it while it runs.
    pub debugging: Debugging,
    /// Where traces go, if any are made.
    pub tracing: Option<Tracing>,
    /// What other parts of this process count, to be told with what this server does.
    pub registries: Vec<prometheus::Registry>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            advertise: SocketAddr::from(([127, 0, 0, 1], 6443)),
            serving: None,
            service_cidr: "10.96.0.0/16".to_owned(),
            authentication: auth::Settings::default(),
            authorization: Vec::new(),
            authorization_file: None,
            features: Arc::default(),
            resources: Resources::default(),
            admission: admission::Settings::default(),
            ca: String::new(),
            node_ca: String::new(),
            node_client: None,
            encryption: None,
            front_proxy: None,
            limits: Limits::default(),
            audit: audit::Options::default(),
            debugging: Debugging::default(),
            tracing: None,
            registries: Vec::new(),
        }
    }
}

/// What all requests share.
pub struct Server {
    pub features: Arc<Features>,
    pub kinds: Arc<Kinds>,
    pub authenticator: Authenticator,
    pub authorizer: Authorizer,
    pub admission: Chain,
    pub lifecycles: Lifecycles,
    pub signer: Arc<Signer>,
    pub nodes: Nodes,
    pub advertise: SocketAddr,
    pub shutdown: CancellationToken,
    pub backend: Arc<dyn Backend>,
    pub encryption: Option<Arc<Encryption>>,
    pub audit: Option<Arc<Audit>>,
    pub openapi: crate::openapi::Documents,
    pub(crate) aggregation: Aggregation,
    pub(crate) instruments: Instruments,
    pub(crate) limits: Limits,
    pub(crate) debugging: Debugging,
    pub(crate) tracer: Option<Arc<Tracer>>,
    /// Where requests wait for their seats; without it they are turned away when there are too many.
    pub(crate) fairness: Option<Arc<Fairness>>,
    pub(crate) in_flight: InFlight,
    /// The end of serving: connections and watches end. It comes some time after the shutdown.
    pub(crate) draining: CancellationToken,
    pub cache: Cache,
}

/// Why a server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("audit: {0}")]
    Audit(String),
    #[error("encryption at rest: {0}")]
    Encryption(String),
    #[error("tracing: {0}")]
    Tracing(String),
    #[error("the store cannot be read: {0}")]
    Store(#[from] krate_store::Error),
    #[error("the key of ServiceAccount tokens: {0}")]
    Key(#[from] auth::KeyError),
    #[error("{0}")]
    Authentication(#[from] auth::OpenError),
    #[error("the authorizers: {0}")]
    Authorization(String),
    #[error("the range of Services: {0}")]
    Range(String),
    #[error("the certificates for nodes: {0}")]
    Certificates(String),
    #[error("the first objects cannot be made: {0}")]
    Bootstrap(#[from] StatusError),
}

impl Server {
    /// Reads the store and makes the objects that every cluster has. Ready to serve when it returns.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(
        config: Config,
        backend: Arc<dyn Backend>,
        shutdown: CancellationToken,
    ) -> Result<Arc<Self>, StartError> {
        let features = config.features;
        let of_features = features.remarks(features::HEEDED);
        for remark in of_features.into_iter().chain(config.resources.remarks(&features)) {
            tracing::warn!("{remark}");
        }
        let encryption = match &config.encryption {
            Some(file) => {
                let opened = file.open(&config.advertise.to_string(), shutdown.clone()).await;
                Some(opened.map_err(StartError::Encryption)?)
            }
            None => None,
        };
        let backend = match &encryption {
            Some(encryption) => Arc::new(Sealed::new(backend, Arc::clone(encryption))),
            None => backend,
        };
        let reload_metrics = Arc::new(auth::reload::Metrics::new(&config.advertise.to_string()));
        let key_sets = Arc::new(auth::jwt::KeySets::new(&config.advertise.to_string()));
        let key_set_metrics = key_sets.collector();
        let audit_metrics = Arc::new(audit::Metrics::default());
        let audit = Audit::open(&config.audit, &audit_metrics).await.map_err(StartError::Audit)?;
        let cache = Cache::start(Arc::clone(&backend), "/registry/").await?;
        let serve = |kind: &Kind| config.resources.serve(kind, &features);
        let kinds = Arc::new(Kinds::open(&cache, &backend, serve).await?);
        let allocator = Allocator::new(Arc::clone(&backend), &config.service_cidr)
            .map_err(|error| StartError::Range(error.to_string()))?;
        let allocator = Arc::new(allocator);
        allocator.repair().await?;
        let service_address: IpAddr = allocator.first_address();
        let signer = Arc::new(Signer::new(&config.authentication.service_accounts)?);
        let authorizer =
            Authorizer::open(&config.authorization, &features).await.map_err(StartError::Authorization)?;
        let node_ca = if config.node_ca.is_empty() { &config.ca } else { &config.node_ca };
        let open = |source: &Source| {
            source.open(&shutdown).map_err(|error| StartError::Certificates(error.to_string()))
        };
        let node_client = config.node_client.as_ref().map(open).transpose()?;
        let proxy_client = config.front_proxy.as_ref().map(open).transpose()?;
        let nodes =
            Nodes::new(node_ca, node_client).map_err(|error| StartError::Certificates(error.to_string()))?;
        let limits = config.limits;
        let fairness = limits.fairness.then(|| Arc::new(Fairness::new(limits.reading + limits.mutating)));
        let decisions = authorizer.metrics();
        let draining = CancellationToken::new();
        let tracer = match &config.tracing {
            Some(tracing) => Some(Tracer::start(tracing, draining.clone()).map_err(StartError::Tracing)?),
            None => None,
        };
        let server = Arc::new(Server {
            admission: Chain::new(&kinds, &authorizer, &config.admission),
            authenticator: Authenticator::open(&config.authentication, &config.ca, &signer, &kinds, key_sets)
                .await?,
            authorizer,
            lifecycles: Lifecycles::new(Arc::clone(&allocator)),
            signer,
            nodes,
            advertise: config.advertise,
            shutdown: shutdown.clone(),
            backend: Arc::clone(&backend),
            instruments: Instruments::new(
                &features,
                encryption
                    .as_deref()
                    .map(Encryption::metrics)
                    .into_iter()
                    .chain([
                        audit_metrics.collector(),
                        decisions,
                        reload_metrics.collector(),
                        key_set_metrics,
                        allocator.metrics(),
                    ])
                    .chain(config.registries),
            ),
            features: Arc::clone(&features),
            encryption,
            audit,
            kinds,
            openapi: crate::openapi::Documents::new(),
            aggregation: Aggregation::new(proxy_client),
            fairness: fairness.clone(),
            in_flight: InFlight::new(limits.reading, limits.mutating),
            debugging: config.debugging,
            tracer,
            draining,
            limits,
            cache,
        });
        if let Some((file, policies)) = config.authorization_file {
            server.follow_authorizers(file, policies, config.authorization, &reload_metrics);
        }
        if let Some(file) = config.authentication.file.clone() {
            let own = &config.authentication.service_accounts.issuers;
            server.follow_issuers(file, own.clone(), &reload_metrics);
        }
        server.follow_policy().await?;
        server.follow_ranges(&allocator).await?;
        if let Some(fairness) = &fairness {
            fairness::follow(&server, fairness).await?;
        }
        let service = server.service_as(User::authenticated(SELF, &[MASTERS]));
        let commits = AsItself(service);
        rbac::ensure(&commits, &features).await?;
        server.settle_policy().await?;
        bootstrap::ensure(
            &commits,
            &bootstrap::Config {
                advertise: config.advertise,
                service_cidr: config.service_cidr,
                service_address,
                client_ca: config.ca,
                request_header: config.authentication.request_header,
            },
        )
        .await?;
        if let Some(fairness) = &fairness {
            fairness::ready(&server, fairness, commits.clone());
        }
        let identity = Identity::new(commits.clone(), &features, config.advertise);
        if let Some(identity) = &identity {
            identity.tell().await;
        }
        server.drain_after_delay(identity);
        Establisher::start(&server, commits.clone()).await?;
        typecheck::start(&server, commits.clone()).await?;
        aggregation::start(&server, &commits).await?;
        tokio::spawn(async move {
            tokio::select! {
                () = Compactor::new(backend, HISTORY).run() => {}
                () = shutdown.cancelled() => {}
            }
        });
        Ok(server)
    }

    /// The server as this user calls it from the same process: no socket and no proof of who he is, and everything else
    /// as for everyone.
    pub fn service_as(self: &Arc<Self>, user: User) -> Service {
        Service::new(Arc::clone(self), Caller::Component(Arc::new(user)))
    }

    /// How long it may take to end once it is told to stop.
    pub fn stopping(&self) -> Duration {
        self.limits.shutdown_delay + crate::listen::DRAIN + Duration::from_secs(1)
    }

    /// Once the server is told to stop it serves on for the delay, so that who balances its load may notice that it is
    /// not ready, and until others are told that it is gone; then its watches and connections end.
    fn drain_after_delay(&self, identity: Option<Identity>) {
        let (shutdown, draining) = (self.shutdown.clone(), self.draining.clone());
        let delay = self.limits.shutdown_delay;
        let kept = OptionFuture::from(identity.map(|identity| identity.keep(shutdown.clone())));
        tokio::spawn(async move {
            let delayed = async {
                shutdown.cancelled().await;
                tokio::time::sleep(delay).await;
            };
            tokio::join!(delayed, kept);
            draining.cancel();
        });
    }

    /// Reads what says which authorizers are asked again whenever it changes.
    fn follow_authorizers(
        &self,
        file: auth::Followed,
        policies: Option<PathBuf>,
        before: Vec<auth::Mode>,
        metrics: &Arc<auth::reload::Metrics>,
    ) {
        let authorizer = self.authorizer.clone();
        file.follow("authorization", metrics, self.shutdown.clone(), move |text| {
            let (authorizer, before, policies) = (authorizer.clone(), before.clone(), policies.clone());
            async move {
                let modes = auth::authorization_config::parse(&text, policies.as_deref())?;
                auth::authorization_config::keeps(&before, &modes)?;
                authorizer.replace(&modes).await
            }
        });
    }

    /// The same of the issuers whose tokens are taken. `own`: as whom this server signs.
    fn follow_issuers(
        &self,
        file: auth::Followed,
        mut own: Vec<String>,
        metrics: &Arc<auth::reload::Metrics>,
    ) {
        if own.is_empty() {
            own.push(auth::token::ISSUER.to_owned());
        }
        let issuers = self.authenticator.issuers();
        file.follow("authentication", metrics, self.shutdown.clone(), move |text| {
            let taken = auth::jwt::config::parse(&text, &own).and_then(|read| issuers.replace(&read.jwt));
            async move { taken }
        });
    }
}

/// The server's own writes, through the path of everyone's.
#[derive(Clone)]
pub struct AsItself(Service);

impl AsItself {
    /// Asks for a path and reads the answer.
    ///
    /// # Errors
    /// What the path answers.
    pub async fn ask(
        &self,
        method: http::Method,
        path: String,
        body: Option<&Value>,
    ) -> Result<Value, StatusError> {
        self.send(method, path, "application/json", body).await
    }

    /// Asks with a body of another media type, whose text is JSON nevertheless.
    ///
    /// # Errors
    /// What the path answers.
    pub async fn send(
        &self,
        method: http::Method,
        path: String,
        media: &'static str,
        body: Option<&Value>,
    ) -> Result<Value, StatusError> {
        let body = body.map(ToString::to_string).unwrap_or_default();
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::CONTENT_TYPE, media)
            .header(http::header::USER_AGENT, "krate-apiserver")
            .body(crate::http::full(body))
            .map_err(StatusError::internal)?;
        let reply = self.0.answer(request).await;
        let code = reply.status();
        let bytes = crate::http::read(reply.into_body()).await?;
        if code.is_success() {
            return serde_json::from_slice(&bytes).map_err(StatusError::internal);
        }
        let status = serde_json::from_slice(&bytes).map_err(StatusError::internal)?;
        Err(StatusError(Box::new(status)))
    }
}

/// The path of an object, or of a collection where there is no name.
pub fn path(kind: &Kind, namespace: &str, name: &str) -> String {
    let prefix =
        if kind.group.is_empty() { "/api/v1".to_owned() } else { format!("/apis/{}", kind.api_version()) };
    let place = if namespace.is_empty() { String::new() } else { format!("/namespaces/{namespace}") };
    let name = if name.is_empty() { String::new() } else { format!("/{name}") };
    format!("{prefix}{place}/{}{name}", kind.plural)
}

#[async_trait]
impl Commits for AsItself {
    fn serves(&self, kind: &Kind) -> bool {
        self.0.server().kinds.serves(kind)
    }

    async fn get(&self, kind: &'static Kind, namespace: &str, name: &str) -> Result<Value, StatusError> {
        self.ask(http::Method::GET, path(kind, namespace, name), None).await
    }

    async fn create(
        &self,
        kind: &'static Kind,
        namespace: &str,
        object: Value,
    ) -> Result<Value, StatusError> {
        self.ask(http::Method::POST, path(kind, namespace, ""), Some(&object)).await
    }

    async fn update(
        &self,
        kind: &'static Kind,
        namespace: &str,
        object: Value,
        status: bool,
    ) -> Result<Value, StatusError> {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let end = if status { "/status" } else { "" };
        let path = format!("{}{end}", path(kind, namespace, name));
        self.ask(http::Method::PUT, path, Some(&object)).await
    }
}
