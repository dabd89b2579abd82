//! Serving on a socket: TLS, HTTP/1.1 and HTTP/2, and whom a client certificate names.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tower::Service as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::auth::{AUTHENTICATED, User};
use crate::server::Server;
use crate::service::Service;

/// A handshake that takes longer is given up.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long requests that are under way may take once the server is told to stop.
const DRAIN: Duration = Duration::from_secs(3);

/// Why a server's certificates cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(String);

fn broken(error: impl std::fmt::Display) -> TlsError {
    TlsError(error.to_string())
}

/// The TLS side of a server: its own certificate, and the authority of its clients'. All PEM.
///
/// # Errors
/// Something of it is not what it should be.
pub fn tls(certificate: &str, key: &str, client_ca: &str) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(client_ca.as_bytes()) {
        roots.add(authority.map_err(broken)?).map_err(broken)?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .map_err(broken)?;
    let chain = CertificateDer::pem_slice_iter(certificate.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(broken)?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(broken)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(broken)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(broken)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Serves until the server's shutdown; then lets what is under way end.
///
/// # Errors
/// The socket fails.
pub async fn serve(server: Arc<Server>, listener: TcpListener, tls: Arc<ServerConfig>) -> io::Result<()> {
    let acceptor = TlsAcceptor::from(tls);
    let graceful = GracefulShutdown::new();
    let shutdown = server.shutdown.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            // One connection's fault, or too many of them: the listener itself is well.
            Err(error) => {
                tracing::debug!(%error, "a connection could not be accepted");
                tokio::task::yield_now().await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let (acceptor, server, watcher) = (acceptor.clone(), Arc::clone(&server), graceful.watcher());
        tokio::spawn(async move {
            let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await else {
                server.instruments.handshake_failed();
                return;
            };
            let user = stream.get_ref().1.peer_certificates().and_then(|chain| named(chain.first()?));
            let service = Service::new(server, user);
            let answer =
                hyper::service::service_fn(move |request: Request<Incoming>| service.clone().call(request));
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder.http1().timer(TokioTimer::new());
            builder.http2().timer(TokioTimer::new()).max_concurrent_streams(250);
            let connection =
                builder.serve_connection_with_upgrades(TokioIo::new(stream), answer).into_owned();
            if let Err(error) = watcher.watch(connection).await {
                tracing::trace!(%error, "a connection ended");
            }
        });
    }
    let _ = tokio::time::timeout(DRAIN, graceful.shutdown()).await;
    Ok(())
}

/// The user that a verified client certificate names: its common name, with its organizations as groups.
fn named(certificate: &CertificateDer<'_>) -> Option<User> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let subject = parsed.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = subject
        .iter_organization()
        .filter_map(|o| o.as_str().ok())
        .map(str::to_owned)
        .chain([AUTHENTICATED.to_owned()])
        .collect();
    Some(User { name, groups, ..User::default() })
}
