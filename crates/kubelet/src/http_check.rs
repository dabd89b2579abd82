//! One request over HTTP or HTTPS to a container, as probes and hooks make it. The certificate is not looked at.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONNECTION, HOST, LOCATION, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// What requests call themselves.
pub const PROBE: &str = "kube-probe/1.36";
pub const HOOK: &str = "kube-lifecycle/1.36";
/// How often an answer may send on to another place of the same host.
const REDIRECTS: usize = 10;
/// Bytes of an answer that are read.
const LONGEST: usize = 10 << 10;

/// A port by number, or by the name that the container gives it.
///
/// # Errors
/// The container has no port of this name.
pub fn port(container: &Container, port: &IntOrString) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => match name.parse() {
            Ok(number) => number,
            Err(_) => container
                .ports
                .iter()
                .flatten()
                .find(|p| p.name.as_ref() == Some(name))
                .map(|p| p.container_port)
                .ok_or_else(|| format!("couldn't find port: {name:?} in container {:?}", container.name))?,
        },
    };
    u16::try_from(number).ok().filter(|n| *n > 0).ok_or_else(|| format!("invalid port number: {number}"))
}

/// An answer: its status code, and the beginning of its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body: String,
    location: Option<String>,
}

/// Why there is no answer, in upstream's words as far as it has any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub message: String,
    /// TLS was spoken to somebody who speaks plain HTTP.
    pub is_plain: bool,
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Failure { message, is_plain: false }
    }
}

/// Where a request goes to.
#[derive(Clone, Debug)]
struct Target {
    is_tls: bool,
    host: String,
    port: u16,
    path: String,
}

impl Target {
    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    fn url(&self) -> String {
        format!("{}://{}{}", if self.is_tls { "https" } else { "http" }, self.authority(), self.path)
    }

    /// Where an answer points to, unless that is another host.
    fn next(&self, answer: &Answer) -> Option<Target> {
        let is_redirect = matches!(answer.status, 301 | 302 | 303 | 307 | 308);
        let to: Uri = answer.location.as_ref().filter(|_| is_redirect)?.parse().ok()?;
        let path = to.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).to_owned();
        let Some(host) = to.host() else { return Some(Target { path, ..self.clone() }) };
        let host = host.trim_matches(['[', ']']).to_owned();
        let is_tls = to.scheme_str().map_or(self.is_tls, |s| s == "https");
        let port = to.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        (host == self.host).then_some(Target { is_tls, host, port, path })
    }
}

fn target(action: &HTTPGetAction, container: &Container, pod_ip: &str) -> Result<Target, String> {
    let path = action.path.as_deref().unwrap_or_default();
    Ok(Target {
        is_tls: action.scheme.as_deref() == Some("HTTPS"),
        host: action.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(pod_ip).to_owned(),
        port: port(container, &action.port)?,
        path: if path.starts_with('/') { path.to_owned() } else { format!("/{path}") },
    })
}

/// The host and port that are asked.
///
/// # Errors
/// The container has no port of this name.
pub fn authority(action: &HTTPGetAction, container: &Container, pod_ip: &str) -> Result<String, String> {
    Ok(target(action, container, pod_ip)?.authority())
}

/// The headers of a request: those that are asked for, and what upstream adds. One that is asked for without a value
/// is not sent.
fn headers(action: &HTTPGetAction, agent: &'static str) -> Result<HeaderMap, String> {
    let mut made = HeaderMap::new();
    for header in action.http_headers.iter().flatten() {
        let name = HeaderName::try_from(&header.name).map_err(|e| e.to_string())?;
        made.append(name, HeaderValue::try_from(&header.value).map_err(|e| e.to_string())?);
    }
    for (name, value) in [(USER_AGENT, agent), (ACCEPT, "*/*")] {
        match made.get(&name) {
            None => drop(made.insert(name, HeaderValue::from_static(value))),
            Some(asked) if asked.is_empty() => drop(made.remove(name)),
            Some(_) => {}
        }
    }
    made.insert(CONNECTION, HeaderValue::from_static("close"));
    Ok(made)
}

/// Asks, and follows where it is sent on the same host.
///
/// # Errors
/// There is no answer.
pub async fn get(
    action: &HTTPGetAction,
    container: &Container,
    pod_ip: &str,
    timeout: Duration,
    agent: &'static str,
) -> Result<Answer, Failure> {
    let mut target = target(action, container, pod_ip)?;
    let headers = headers(action, agent)?;
    let first = target.url();
    let asking = async {
        for _ in 0..REDIRECTS {
            let answer = once(&target, &headers).await?;
            match target.next(&answer) {
                Some(next) => target = next,
                None => return Ok(answer),
            }
        }
        Err(format!("Get {:?}: stopped after {REDIRECTS} redirects", target.url()).into())
    };
    let late = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)";
    let answer = tokio::time::timeout(timeout, asking).await;
    answer.unwrap_or_else(|_| Err(format!("Get {first:?}: {late}").into()))
}

async fn once(target: &Target, headers: &HeaderMap) -> Result<Answer, Failure> {
    let (url, authority) = (target.url(), target.authority());
    let failed = |error: &dyn std::fmt::Display| Failure::from(format!("Get {url:?}: {error}"));
    let mut request = Request::get(&target.path).body(Empty::<Bytes>::new()).map_err(|e| failed(&e))?;
    *request.headers_mut() = headers.clone();
    if !headers.contains_key(HOST) {
        request.headers_mut().insert(HOST, HeaderValue::try_from(&authority).map_err(|e| failed(&e))?);
    }
    let stream = TcpStream::connect((target.host.as_str(), target.port))
        .await
        .map_err(|e| failed(&format!("dial tcp {authority}: connect: {}", spoken(&e))))?;
    if !target.is_tls {
        return ask(stream, request).await.map_err(|e| failed(&e));
    }
    let name = ServerName::try_from(target.host.clone()).map_err(|e| failed(&e))?;
    let stream = TlsConnector::from(unverified()).connect(name, stream).await.map_err(|e| {
        let is_plain = e.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
        if matches!(is_plain, Some(rustls::Error::InvalidMessage(_))) {
            let said = failed(&"http: server gave HTTP response to HTTPS client");
            return Failure { is_plain: true, ..said };
        }
        failed(&e)
    })?;
    ask(stream, request).await.map_err(|e| failed(&e))
}

fn spoken(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        std::io::ErrorKind::HostUnreachable => "no route to host".to_owned(),
        _ => error.to_string(),
    }
}

async fn ask<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<Answer, hyper::Error>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let answer = sender.send_request(request).await?;
    let status = answer.status().as_u16();
    let location = answer.headers().get(LOCATION).and_then(|l| l.to_str().ok()).map(str::to_owned);
    // A body that is too long, or breaks off, says nothing against the answer.
    let body =
        Limited::new(answer.into_body(), LONGEST).collect().await.map(http_body_util::Collected::to_bytes);
    driver.abort();
    let body = String::from_utf8_lossy(&body.unwrap_or_default()).into_owned();
    Ok(Answer { status, body, location })
}

fn unverified() -> Arc<ClientConfig> {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    Arc::clone(CONFIG.get_or_init(|| {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
        let builder = builder.unwrap_or_else(|_| ClientConfig::builder());
        let verifier = Arc::new(Anyone(provider));
        Arc::new(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
    }))
}

/// Takes every certificate: a probe asks whether somebody answers, not who.
#[derive(Debug)]
struct Anyone(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
