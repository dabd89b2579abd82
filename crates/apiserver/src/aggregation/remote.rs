//! A group version that another server serves: where it is, how it is asked, and what it was last heard to say.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, HOST, USER_AGENT};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::{APIService, APIServiceSpec};
use krate_pki::Current;
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::pass::identify;
use crate::auth::{MASTERS, User};
use crate::http as wire;
use crate::kinds::Kinds;
use crate::reach::{self, Trust, outdated};

/// How long a server may take to say what it serves, as upstream.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// The largest document that is read, in bytes.
const LARGEST: usize = 32 * 1024 * 1024;
/// As whom this server asks for itself.
const AGGREGATOR: &str = "system:kube-aggregator";

/// What a server says that it serves.
#[derive(Clone, Debug, Default)]
pub struct Said {
    /// The version's entry of aggregated discovery.
    pub discovery: Option<Value>,
    /// Whether it was read when it was last asked for.
    pub fresh: bool,
    /// Its document of version 2, and where that of version 3 is.
    pub openapi_v2: Option<std::sync::Arc<Value>>,
    pub openapi_v3: Option<String>,
}

pub struct Remote {
    pub name: String,
    pub spec: APIServiceSpec,
    tls: Result<TlsConnector, String>,
    /// Takes any certificate: for the question whether anybody answers.
    lenient: Result<TlsConnector, String>,
    available: AtomicBool,
    pub said: Mutex<Said>,
    /// Wakes who watches its availability.
    pub wake: Notify,
    /// Ends with the APIService, or with this state of its spec.
    pub gone: CancellationToken,
}

/// Why a server was not asked.
#[derive(Debug, thiserror::Error)]
pub enum Unreached {
    #[error("{0}")]
    Nowhere(String),
    #[error("{0}")]
    Setup(String),
    #[error("{0}")]
    Network(String),
}

impl Remote {
    /// None for an APIService that this server serves itself.
    pub fn new(service: &APIService, own: Option<&Current>, gone: CancellationToken) -> Option<Self> {
        let spec = service.spec.clone()?;
        spec.service.as_ref()?;
        let bundle = spec.ca_bundle.as_ref().map(|bundle| bundle.0.clone()).unwrap_or_default();
        let trust = match spec.insecure_skip_tls_verify {
            Some(true) => Trust::Anyone,
            _ => Trust::Authorities(&bundle),
        };
        let conditions = service.status.iter().flat_map(|s| s.conditions.iter().flatten());
        let available = conditions.into_iter().any(|c| c.type_ == "Available" && c.status == "True");
        Some(Remote {
            name: service.metadata.name.clone().unwrap_or_default(),
            tls: reach::connector(trust, own),
            lenient: reach::connector(Trust::Anyone, own),
            available: AtomicBool::new(available),
            said: Mutex::default(),
            wake: Notify::new(),
            gone,
            spec,
        })
    }

    pub fn group(&self) -> &str {
        self.spec.group.as_deref().unwrap_or_default()
    }

    pub fn version(&self) -> &str {
        self.spec.version.as_deref().unwrap_or_default()
    }

    /// Namespace, name and port of the Service.
    pub fn service(&self) -> (&str, &str, i32) {
        let Some(service) = &self.spec.service else { return ("", "", 0) };
        let (namespace, name) = (&service.namespace, &service.name);
        (
            namespace.as_deref().unwrap_or_default(),
            name.as_deref().unwrap_or_default(),
            service.port.unwrap_or(443),
        )
    }

    /// `/apis/GROUP/VERSION`.
    pub fn path(&self) -> String {
        match self.group() {
            "" => format!("/api/{}", self.version()),
            group => format!("/apis/{group}/{}", self.version()),
        }
    }

    pub fn is_available(&self) -> bool {
        self.available.load(Ordering::Relaxed)
    }

    pub fn set_available(&self, available: bool) {
        self.available.store(available, Ordering::Relaxed);
    }

    /// Where a path is asked for at this moment.
    ///
    /// # Errors
    /// Nobody is behind the Service.
    pub async fn url(&self, kinds: &Kinds, path: &str) -> Result<String, String> {
        let (namespace, name, port) = self.service();
        let (host, port) = reach::behind(kinds, namespace, name, port).await?;
        Ok(format!("https://{host}:{port}{path}"))
    }

    /// Connects to one of the servers behind the Service; with the address that it has.
    ///
    /// # Errors
    /// See [`Unreached`].
    pub async fn connect(
        &self,
        kinds: &Kinds,
        lenient: bool,
    ) -> Result<(TlsStream<TcpStream>, String), Unreached> {
        let (namespace, name, port) = self.service();
        let tls = if lenient { &self.lenient } else { &self.tls };
        let tls = tls.as_ref().map_err(|why| Unreached::Setup(why.clone()))?;
        let (host, port) = reach::behind(kinds, namespace, name, port).await.map_err(Unreached::Nowhere)?;
        let address = format!("{host}:{port}");
        let said = |error: std::io::Error| Unreached::Network(format!("dial tcp {address}: {error}"));
        let stream = TcpStream::connect((host.as_str(), port)).await.map_err(said)?;
        drop(stream.set_nodelay(true));
        let named = ServerName::try_from(format!("{name}.{namespace}.svc"))
            .map_err(|error| Unreached::Setup(error.to_string()))?;
        let stream = tls.connect(named, stream).await.map_err(|error| {
            outdated::METRICS.aggregator.failed(&error);
            Unreached::Network(format!("tls: {error}"))
        })?;
        Ok((stream, address))
    }

    /// Asks for a document as this server itself; what it answers, and with which code.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn ask(
        &self,
        kinds: &Kinds,
        path: &str,
        accept: &str,
        lenient: bool,
    ) -> Result<(StatusCode, HeaderMap, Bytes), String> {
        let told = |error: &dyn std::fmt::Display| format!("Get {path:?}: {error}");
        let work = async {
            let (stream, address) = self.connect(kinds, lenient).await.map_err(|error| told(&error))?;
            let (mut sender, connection) = http1::handshake::<_, wire::Body>(TokioIo::new(stream))
                .await
                .map_err(|error| told(&error))?;
            let connection = AbortOnDropHandle::new(tokio::spawn(connection));
            let mut request = Request::builder()
                .method(Method::GET)
                .uri(path)
                .header(HOST, address.as_str())
                .header(USER_AGENT, "kube-aggregator")
                .header(ACCEPT, accept)
                .body(wire::full(Bytes::new()))
                .map_err(|error| told(&error))?;
            let groups = vec![MASTERS.to_owned()];
            identify(request.headers_mut(), &User { name: AGGREGATOR.to_owned(), groups, ..User::default() });
            let (head, body) = sender.send_request(request).await.map_err(|error| told(&error))?.into_parts();
            let body = Limited::new(body, LARGEST).collect().await.map_err(|error| told(&error))?;
            drop(connection);
            Ok((head.status, head.headers, body.to_bytes()))
        };
        tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| {
            Err(told(&"context deadline exceeded (Client.Timeout exceeded while awaiting headers)"))
        })
    }
}
