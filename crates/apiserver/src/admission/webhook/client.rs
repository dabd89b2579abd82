//! How a webhook is reached: by its URL, or by the Service that it stands behind.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HOST, USER_AGENT};
use http::response::Parts;
use http::{Method, Request, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::admissionregistration::v1::{ServiceReference, WebhookClientConfig};
use rustls::pki_types::ServerName;
use serde_json::Value as Json;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::response::{Failure, answers, distrusted, failure, refused};
use crate::kinds::Kinds;
use crate::reach::{self, Trust, outdated};
use crate::spans;

/// The largest answer to an AdmissionReview that is read, in bytes, as upstream.
const LARGEST: usize = 3 * 1024 * 1024;

/// A webhook as it is reached.
pub struct Client {
    config: WebhookClientConfig,
    tls: Result<TlsConnector, String>,
    /// The largest answer that is read, in bytes.
    largest: usize,
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

impl Client {
    pub fn new(config: WebhookClientConfig) -> Self {
        Client::reading(config, LARGEST)
    }

    /// One whose answers may be up to `largest` bytes.
    pub fn reading(config: WebhookClientConfig, largest: usize) -> Self {
        let bundle = config.ca_bundle.as_ref().map(|bundle| bundle.0.as_slice()).unwrap_or_default();
        let tls = reach::connector(Trust::Authorities(bundle), None);
        Client { config, tls, largest }
    }

    /// Sends a review and reads the answer, within `timeout`.
    ///
    /// # Errors
    /// It cannot be reached, does not prove who it is, is too slow, or does not answer with JSON.
    pub async fn call(&self, kinds: &Kinds, review: &Json, timeout: Duration) -> Result<Json, String> {
        self.ask(kinds, review, timeout).await.map_err(|failure| failure.why)
    }

    /// The same; the error has what the server said.
    ///
    /// # Errors
    /// See [`Client::call`].
    pub async fn ask(&self, kinds: &Kinds, review: &Json, timeout: Duration) -> Result<Json, Failure> {
        let tls = self.tls.as_ref().map_err(|why| Failure::new(why.as_str()))?;
        let seconds = timeout.as_secs();
        let target = match (&self.config.url, &self.config.service) {
            (Some(url), _) => by_url(url, seconds).map_err(Failure::new)?,
            (None, Some(service)) => by_service(kinds, service, seconds).await.map_err(Failure::new)?,
            (None, None) => {
                return Err(Failure::new("webhook configuration must have either service or URL"));
            }
        };
        let body = serde_json::to_vec(review).map_err(|error| Failure::new(error.to_string()))?;
        let sent = tokio::time::timeout(timeout, send(tls, &target, body.into(), self.largest)).await;
        let url = &target.url;
        let (parts, body) = match sent {
            Ok(Ok(response)) => response,
            Ok(Err(why)) => return Err(Failure::new(format!("Post {url:?}: {why}"))),
            Err(_) => return Err(Failure::new(format!("Post {url:?}: context deadline exceeded"))),
        };
        if !answers(parts.status) {
            return Err(failure(parts.status, &parts.headers, &body));
        }
        serde_json::from_slice(&body)
            .map_err(|error| Failure::new(format!("Post {url:?}: the answer is no JSON: {error}")))
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
    let address = reach::behind(kinds, &service.namespace, &service.name, port).await;
    let address = address.map_err(|why| format!("Post {url:?}: {why}"))?;
    Ok(Target { name, address, url, path })
}

/// An error with what is behind it.
fn told(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", told(source)),
        None => error.to_string(),
    }
}

async fn send(
    tls: &TlsConnector,
    target: &Target,
    body: Bytes,
    largest: usize,
) -> Result<(Parts, Bytes), String> {
    let (host, port) = (target.address.0.as_str(), target.address.1);
    let stream = TcpStream::connect((host, port)).await;
    let stream = stream.map_err(|error| format!("dial tcp {host}:{port}: {}", refused(&error)))?;
    drop(stream.set_nodelay(true));
    let name = ServerName::try_from(target.name.clone()).map_err(|error| error.to_string())?;
    let stream = tls.connect(name, stream).await.map_err(|error| {
        outdated::METRICS.webhooks.failed(&error);
        distrusted(&error)
    })?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| told(&error))?;
    let connection = tokio::spawn(connection);
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(&target.path)
        .header(HOST, format!("{}:{port}", target.name))
        .header(USER_AGENT, "kube-apiserver-admission")
        .header(CONTENT_TYPE, "application/json")
        .header(ACCEPT, "application/json")
        .body(Full::new(body))
        .map_err(|error| error.to_string())?;
    if let Some((name, value)) = spans::propagated() {
        request.headers_mut().insert(name, value);
    }
    let answered = sender.send_request(request).await.map_err(|error| told(&error));
    let (parts, body) = answered?.into_parts();
    let body = Limited::new(body, largest).collect().await.map_err(|error| error.to_string())?.to_bytes();
    drop(sender);
    connection.abort();
    Ok((parts, body))
}
