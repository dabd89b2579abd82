//! One request over HTTP or HTTPS to a container, as probes and hooks make it. The certificate is not looked at.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request};
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

/// Asks, and returns the status code and the beginning of the body.
///
/// # Errors
/// Why there is no answer, in upstream's words as far as it has any.
pub async fn get(
    action: &HTTPGetAction,
    container: &Container,
    pod_ip: &str,
    timeout: Duration,
    agent: &str,
) -> Result<(u16, String), String> {
    let host = action.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(pod_ip);
    let port = port(container, &action.port)?;
    let is_tls = action.scheme.as_deref() == Some("HTTPS");
    let path = match action.path.as_deref() {
        Some(path) if path.starts_with('/') => path.to_owned(),
        path => format!("/{}", path.unwrap_or_default()),
    };
    let bracketed = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let authority = format!("{bracketed}:{port}");
    let url = format!("{}://{authority}{path}", if is_tls { "https" } else { "http" });
    let mut request = Request::get(&path)
        .header("host", &authority)
        .header("user-agent", agent)
        .header("accept", "*/*")
        .header("connection", "close")
        .body(Empty::<Bytes>::new())
        .map_err(|e| e.to_string())?;
    for header in action.http_headers.iter().flatten() {
        let name = HeaderName::try_from(&header.name).map_err(|e| e.to_string())?;
        let value = HeaderValue::try_from(&header.value).map_err(|e| e.to_string())?;
        request.headers_mut().insert(name, value);
    }
    let failed = |error: &dyn std::fmt::Display| format!("Get {url:?}: {error}");
    let asking = async {
        let address = (host.to_owned(), port);
        let stream = TcpStream::connect(address)
            .await
            .map_err(|e| failed(&format!("dial tcp {authority}: connect: {}", spoken(&e))))?;
        if is_tls {
            let name = ServerName::try_from(host.to_owned()).map_err(|e| failed(&e))?;
            let stream =
                TlsConnector::from(unverified()).connect(name, stream).await.map_err(|e| failed(&e))?;
            ask(stream, request).await.map_err(|e| failed(&e))
        } else {
            ask(stream, request).await.map_err(|e| failed(&e))
        }
    };
    match tokio::time::timeout(timeout, asking).await {
        Ok(answer) => answer,
        Err(_) => Err(failed(&"context deadline exceeded (Client.Timeout exceeded while awaiting headers)")),
    }
}

fn spoken(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        std::io::ErrorKind::HostUnreachable => "no route to host".to_owned(),
        _ => error.to_string(),
    }
}

async fn ask<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<(u16, String), hyper::Error>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let answer = sender.send_request(request).await?;
    let status = answer.status().as_u16();
    // A body that is too long, or breaks off, says nothing against the answer.
    let body =
        Limited::new(answer.into_body(), LONGEST).collect().await.map(http_body_util::Collected::to_bytes);
    driver.abort();
    Ok((status, String::from_utf8_lossy(&body.unwrap_or_default()).into_owned()))
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
