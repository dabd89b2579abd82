//! How a webhook is reached: by its URL, or by the Service that it stands behind.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HOST, USER_AGENT};
use http::{Method, Request, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::admissionregistration::v1::{ServiceReference, WebhookClientConfig};
use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value as Json;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::admission::lookup;
use crate::kinds::Kinds;

/// The largest answer that is read, in bytes, as upstream.
const LARGEST: usize = 3 * 1024 * 1024;
/// Where systems keep the authorities that they trust.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

pub struct Client {
    config: WebhookClientConfig,
    tls: Result<TlsConnector, String>,
}

/// Where a request goes.
struct Target {
    /// The name that the server proves to have.
    name: String,
    address: (String, u16),
    /// As errors tell it.
    url: String,
    path: String,
}

fn connector(authorities: Option<&[u8]>) -> Result<TlsConnector, String> {
    let system;
    let pem = if let Some(pem) = authorities.filter(|a| !a.is_empty()) {
        pem
    } else {
        system = SYSTEM_ROOTS.iter().find_map(|path| std::fs::read(path).ok()).unwrap_or_default();
        &system
    };
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(pem).flatten() {
        // One that cannot be read is nobody's authority.
        drop(roots.add(authority));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

impl Client {
    pub fn new(config: WebhookClientConfig) -> Self {
        let tls = connector(config.ca_bundle.as_ref().map(|bundle| bundle.0.as_slice()));
        Client { config, tls }
    }

    /// Sends a review and reads the answer, within `timeout`.
    ///
    /// # Errors
    /// It cannot be reached, does not prove who it is, is too slow, or does not answer with JSON.
    pub async fn call(&self, kinds: &Kinds, review: &Json, timeout: Duration) -> Result<Json, String> {
        let tls = self.tls.as_ref().map_err(Clone::clone)?;
        let seconds = timeout.as_secs();
        let target = match (&self.config.url, &self.config.service) {
            (Some(url), _) => by_url(url, seconds)?,
            (None, Some(service)) => by_service(kinds, service, seconds).await?,
            (None, None) => return Err("webhook configuration must have either service or URL".to_owned()),
        };
        let body = serde_json::to_vec(review).map_err(|error| error.to_string())?;
        let sent = tokio::time::timeout(timeout, send(tls, &target, body.into())).await;
        let url = &target.url;
        match sent {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(why)) => Err(format!("Post {url:?}: {why}")),
            Err(_) => Err(format!("Post {url:?}: context deadline exceeded")),
        }
    }
}

fn by_url(url: &str, seconds: u64) -> Result<Target, String> {
    let uri: Uri = url.parse().map_err(|error| format!("{url:?} is no URL: {error}"))?;
    let host = uri.host().ok_or_else(|| format!("{url:?} names no host"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let query = uri.query().map(|q| format!("{q}&")).unwrap_or_default();
    let path = format!("{}?{query}timeout={seconds}s", uri.path());
    Ok(Target {
        address: (host.clone(), uri.port_u16().unwrap_or(443)),
        name: host,
        url: format!(
            "https://{}{path}",
            uri.authority().map(http::uri::Authority::as_str).unwrap_or_default()
        ),
        path,
    })
}

async fn by_service(kinds: &Kinds, service: &ServiceReference, seconds: u64) -> Result<Target, String> {
    let name = format!("{}.{}.svc", service.name, service.namespace);
    let port = service.port.unwrap_or(443);
    let path = service.path.as_deref().unwrap_or("/");
    let slash = if path.starts_with('/') { "" } else { "/" };
    let path = format!("{slash}{path}?timeout={seconds}s");
    let url = format!("https://{name}:{port}{path}");
    let address = behind(kinds, service, port).await.map_err(|why| format!("Post {url:?}: {why}"))?;
    Ok(Target { name, address, url, path })
}

/// The address of one of those behind a Service: asked directly, so that it is reached from a host without a proxy too.
async fn behind(kinds: &Kinds, service: &ServiceReference, port: i32) -> Result<(String, u16), String> {
    let said = |error: krate_api::StatusError| error.to_string();
    let (namespace, name) = (&service.namespace, &service.name);
    let found = lookup::find::<Service>(kinds, "", "services", namespace, name).await.map_err(said)?;
    let spec = found.ok_or_else(|| format!("service {name:?} not found"))?.spec.unwrap_or_default();
    let to_port = |port: i32| u16::try_from(port).map_err(|_| format!("{port} is no port"));
    if spec.type_.as_deref() == Some("ExternalName") {
        let host = spec.external_name.ok_or_else(|| format!("service {name:?} names no host"))?;
        return Ok((host, to_port(port)?));
    }
    let ports = spec.ports.unwrap_or_default();
    let wanted = ports.iter().find(|p| p.port == port);
    let wanted = wanted.ok_or_else(|| format!("no service port {port} found for service {name:?}"))?;
    let numbered = match &wanted.target_port {
        Some(IntOrString::Int(port)) => Some(*port),
        _ => None,
    };
    let endpoints = lookup::find::<Endpoints>(kinds, "", "endpoints", namespace, name).await.map_err(said)?;
    for subset in endpoints.and_then(|e| e.subsets).unwrap_or_default() {
        let ports = subset.ports.unwrap_or_default();
        let port = ports.iter().find(|p| p.name == wanted.name || numbered == Some(p.port));
        let addresses = subset.addresses.unwrap_or_default();
        if let (Some(port), false) = (port, addresses.is_empty()) {
            let chosen = &addresses[rand::random_range(0..addresses.len())];
            return Ok((chosen.ip.clone(), to_port(port.port)?));
        }
    }
    Err(format!("no endpoints available for service {name:?}"))
}

/// An error with what is behind it.
fn told(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", told(source)),
        None => error.to_string(),
    }
}

async fn send(tls: &TlsConnector, target: &Target, body: Bytes) -> Result<Json, String> {
    let (host, port) = (target.address.0.as_str(), target.address.1);
    let stream =
        TcpStream::connect((host, port)).await.map_err(|e| format!("dial tcp {host}:{port}: {e}"))?;
    drop(stream.set_nodelay(true));
    let name = ServerName::try_from(target.name.clone()).map_err(|error| error.to_string())?;
    let stream = tls.connect(name, stream).await.map_err(|error| format!("tls: {error}"))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| told(&error))?;
    let connection = tokio::spawn(connection);
    let request = Request::builder()
        .method(Method::POST)
        .uri(&target.path)
        .header(HOST, format!("{}:{port}", target.name))
        .header(USER_AGENT, "kube-apiserver-admission")
        .header(CONTENT_TYPE, "application/json")
        .header(ACCEPT, "application/json")
        .body(Full::new(body))
        .map_err(|error| error.to_string())?;
    let answered = sender.send_request(request).await.map_err(|error| told(&error));
    let (parts, body) = answered?.into_parts();
    let body = Limited::new(body, LARGEST).collect().await.map_err(|error| error.to_string())?.to_bytes();
    drop(sender);
    connection.abort();
    if !parts.status.is_success() {
        return Err(format!("the server answered {}: {}", parts.status, String::from_utf8_lossy(&body)));
    }
    serde_json::from_slice(&body).map_err(|error| format!("the answer is no AdmissionReview: {error}"))
}
