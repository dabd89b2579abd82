//! Serving on a socket: TLS, HTTP/1.1 and HTTP/2, and what a client's certificate proves.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::header::CACHE_CONTROL;
use http::{HeaderValue, Request, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use krate_pki::Current;
use rustls::crypto::CryptoProvider;
use rustls::{ServerConfig, SupportedCipherSuite};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::task::TaskTracker;
use tower::Service as _;

use crate::audit::Peer;
use crate::auth::{AnyBearer, Caller};
use crate::browsers::{self, Browsers};
use crate::http::Reply;
use crate::server::Server;
use crate::service::{Service, ToNobody};

/// A handshake that takes longer is given up.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long requests that are under way may take once no more are taken.
pub(crate) const DRAIN: Duration = Duration::from_secs(10);
/// How long the server waits for a connection to end when there can be no more.
const BREATH: Duration = Duration::from_secs(1);
/// How often the kernel asks a client that says nothing whether it is there.
const KEEP_ALIVE: Duration = Duration::from_mins(3);
/// The largest head of a request in bytes, as upstream.
const MAX_HEAD: usize = 1024 * 1024;
/// How many requests a client may have under way on one connection, as upstream.
const MAX_STREAMS: u32 = 100;

/// Why a server's certificates cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(String);

fn broken(error: impl std::fmt::Display) -> TlsError {
    TlsError(error.to_string())
}

/// The TLS side of a server: its own certificate, which may be replaced while it serves, and the authorities (PEM) of which
/// clients are told. Whose a client's certificate is, is judged for each request.
///
/// # Errors
/// The versions of TLS that are wanted are none that there are.
pub fn tls(own: Current, client_ca: &str) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(ciphers());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(broken)?
        .with_client_cert_verifier(Arc::new(AnyBearer::new(client_ca)))
        .with_cert_resolver(Arc::new(own));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Which of the ciphers that both sides know is taken, the server says.
    config.ignore_client_order = true;
    Ok(Arc::new(config))
}

/// The ciphers of the server, AES with 128 bits before 256 as Go's servers have it: it is safe, and costs less.
fn ciphers() -> CryptoProvider {
    let mut provider = rustls::crypto::ring::default_provider();
    let is_first = |suite: &SupportedCipherSuite| {
        use rustls::CipherSuite::{
            TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            TLS13_AES_128_GCM_SHA256,
        };
        matches!(
            suite.suite(),
            TLS13_AES_128_GCM_SHA256
                | TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
                | TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
        )
    };
    provider.cipher_suites.sort_by_key(|suite| !is_first(suite));
    provider
}

/// Serves until the server is drained, some time after its shutdown; then lets what is under way end.
///
/// # Errors
/// The socket fails.
pub async fn serve(server: Arc<Server>, listener: TcpListener, tls: Arc<ServerConfig>) -> io::Result<()> {
    let acceptor = TlsAcceptor::from(tls);
    let connections = TaskTracker::new();
    let ended = Arc::new(Notify::new());
    let draining = server.draining.clone();
    let limits = &server.limits;
    let browsers = Arc::new(Browsers::new(&limits.allowed_origins, &limits.transport_security));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = draining.cancelled() => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            // One connection's fault, or too many of them: the listener itself is well.
            Err(error) => {
                tracing::debug!(%error, "a connection could not be accepted");
                let _ = tokio::time::timeout(BREATH, ended.notified()).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let keep_alive = TcpKeepalive::new().with_time(KEEP_ALIVE).with_interval(KEEP_ALIVE);
        let _ = SockRef::from(&stream).set_tcp_keepalive(&keep_alive);
        let (acceptor, server, ended) = (acceptor.clone(), Arc::clone(&server), Arc::clone(&ended));
        let browsers = Arc::clone(&browsers);
        connections.spawn(async move {
            match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => connection(server, stream, Peer(peer), browsers).await,
                _ => server.instruments.handshake_failed(),
            }
            ended.notify_one();
        });
    }
    connections.close();
    let _ = tokio::time::timeout(DRAIN, connections.wait()).await;
    if let Some(audit) = &server.audit {
        audit.close().await;
    }
    Ok(())
}

/// Whatever is behind authentication is for who asked, and nothing is said of how long it is true, unless the answer says
/// so itself.
fn uncached(mut reply: Reply) -> Reply {
    if reply.status() != StatusCode::SWITCHING_PROTOCOLS {
        let private = HeaderValue::from_static("no-cache, private");
        reply.headers_mut().entry(CACHE_CONTROL).or_insert(private);
    }
    reply
}

fn is_to_nobody(reply: &Reply) -> bool {
    reply.extensions().get::<ToNobody>().is_some()
}

/// Serves one connection until its end.
async fn connection(server: Arc<Server>, stream: TlsStream<TcpStream>, peer: Peer, browsers: Arc<Browsers>) {
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let caller = Caller::Peer(Arc::new(server.authenticator.peer(chain)));
    let (limits, draining) = (server.limits.clone(), server.draining.clone());
    let audited = server.audit.is_some();
    let service = Service::new(server, caller).from_peer(peer.0);
    let (asked, move_on) = (Arc::new(AtomicBool::new(false)), Arc::new(Notify::new()));
    let (has_asked, moves_on) = (Arc::clone(&asked), Arc::clone(&move_on));
    let chance = limits.goaway_chance;
    let answer = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        if audited {
            request.extensions_mut().insert(peer);
        }
        has_asked.store(true, Ordering::Relaxed);
        let by_chance = chance > 0.0 && rand::random::<f64>() < chance;
        let is_http2 = request.version() == http::Version::HTTP_2;
        if by_chance && is_http2 {
            moves_on.notify_one();
        }
        let origin = browsers.origin(request.headers());
        let preflight = browsers::preflight(request.method(), origin.as_ref());
        let answered = service.clone().call(request);
        let (moves_on, browsers) = (Arc::clone(&moves_on), Arc::clone(&browsers));
        async move {
            let reply = if let Some(reply) = preflight { Ok(reply) } else { answered.await };
            let reply = reply.map(uncached).map(|mut reply| {
                browsers.tell(&mut reply, origin);
                reply
            });
            // Streams cost the server more than their client (CVE-2023-44487): nobody gets many of them.
            if is_http2 && reply.as_ref().is_ok_and(is_to_nobody) {
                moves_on.notify_one();
            }
            reply
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.read_header_timeout)
        .max_buf_size(MAX_HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD as u32);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), answer);
    let mut connection = std::pin::pin!(connection);
    let mut patience = std::pin::pin!(tokio::time::sleep(limits.read_header_timeout));
    let (mut waits, mut drains) = (true, false);
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::trace!(%error, "a connection ended");
                }
                return;
            }
            // Who has asked for nothing by now does not mean to.
            () = patience.as_mut(), if waits => {
                waits = false;
                if !asked.load(Ordering::Relaxed) {
                    return;
                }
            }
            () = move_on.notified() => connection.as_mut().graceful_shutdown(),
            () = draining.cancelled(), if !drains => {
                drains = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http as wire;

    #[test]
    fn an_answer_to_nobody_is_known_by_its_mark() {
        let mut reply = wire::reply(StatusCode::OK, "text/plain", "ok");
        assert!(!is_to_nobody(&reply));
        reply.extensions_mut().insert(ToNobody);
        assert!(is_to_nobody(&reply));
    }

    #[test]
    fn an_answer_is_nobody_elses_unless_it_says_so() {
        let told = |code: StatusCode, own: Option<&'static str>| {
            let mut reply = wire::reply(code, "text/plain", "ok");
            if let Some(own) = own {
                reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static(own));
            }
            uncached(reply).headers().get(CACHE_CONTROL).cloned()
        };
        assert_eq!(told(StatusCode::OK, None).expect("told"), "no-cache, private");
        assert_eq!(told(StatusCode::UNAUTHORIZED, None).expect("told"), "no-cache, private");
        assert_eq!(told(StatusCode::OK, Some("public, max-age=3600")).expect("told"), "public, max-age=3600");
        assert_eq!(told(StatusCode::SWITCHING_PROTOCOLS, None), None);
    }
}
