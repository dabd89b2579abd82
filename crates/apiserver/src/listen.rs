//! Serving on a socket: TLS, HTTP/1.1 and HTTP/2, and what a client's certificate proves.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tower::Service as _;

use crate::auth::{AnyBearer, Caller};
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

/// The TLS side of a server: its own certificate, and the authorities of which clients are told. All PEM. Whose a client's
/// certificate is, is judged for each request.
///
/// # Errors
/// Something of it is not what it should be.
pub fn tls(certificate: &str, key: &str, client_ca: &str) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = CertificateDer::pem_slice_iter(certificate.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(broken)?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(broken)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(broken)?
        .with_client_cert_verifier(Arc::new(AnyBearer::new(client_ca)))
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
            let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let caller = Caller::Peer(Arc::new(server.authenticator.peer(chain)));
            let service = Service::new(server, caller);
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
