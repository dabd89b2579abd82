//! The kubelet's HTTPS server: logs, streams into containers, and figures. Who asks is told by a client certificate,
//! whether it may by the API server.

mod auth;
mod cadvisor;
mod checkpoint;
mod figures;
mod files;
pub mod health;
mod logs;
mod rates;
mod requests;
mod route;
mod stats;
mod stream;
pub mod text_format;
mod tls;
mod volumes;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use krate_client::Informer;
use krate_pki::Current;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::run::Error;
use crate::shared::SharedRef;
use auth::{Authenticator, Authorizer};
use requests::Underway;
use tls::Tls;

pub type Body = BoxBody<Bytes, std::io::Error>;
pub type Answer = Response<Body>;

pub struct Server {
    shared: SharedRef,
    pods: Informer<Pod>,
    authenticator: Authenticator,
    authorizer: Authorizer,
    rates: rates::Rates,
}

pub fn text(status: StatusCode, said: impl Into<Bytes>) -> Answer {
    whole(status, "text/plain; charset=utf-8", said)
}

pub fn whole(status: StatusCode, kind: &'static str, said: impl Into<Bytes>) -> Answer {
    let body = Full::new(said.into()).map_err(|never: Infallible| match never {}).boxed();
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    answer
}

pub fn json(value: &impl serde::Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(bytes) => whole(StatusCode::OK, "application/json", bytes),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// An answer that goes on as long as the stream does.
pub fn flowing(stream: impl Stream<Item = std::io::Result<Bytes>> + Send + Sync + 'static) -> Answer {
    let frames = futures::StreamExt::map(stream, |chunk| chunk.map(Frame::data));
    let mut answer = Response::new(BoxBody::new(StreamBody::new(frames)));
    let kind = http::HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    answer
}

/// Binds the port. Returns the address that it is.
///
/// # Errors
/// The port is taken, or the certificates cannot be used.
pub async fn bind(shared: &SharedRef, serving: &Current) -> Result<(TcpListener, Tls), Error> {
    let address = SocketAddr::new(shared.config.bind, shared.config.port);
    let listener = TcpListener::bind(address)
        .await
        .map_err(|error| Error::File { what: format!("listening on {address}"), error })?;
    Ok((listener, Tls::new(&shared.config, serving.clone(), shared.shutdown.clone())?))
}

/// Serves until the kubelet ends.
pub async fn serve(shared: SharedRef, pods: Informer<Pod>, listener: TcpListener, tls: Tls) {
    let authorizer = Authorizer::new(shared.client.clone(), &shared.config);
    let authenticator = Authenticator::new(shared.client.clone(), &shared.config);
    let server = Arc::new(Server {
        authenticator,
        authorizer,
        pods,
        shared: Arc::clone(&shared),
        rates: rates::Rates::default(),
    });
    loop {
        let accepted = tokio::select! {
            () = shared.shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                tokio::spawn(connection(Arc::clone(&server), stream, tls.acceptor()));
            }
            Err(error) => {
                // Out of file descriptors, most likely: a moment for others to close some.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(server: Arc<Server>, stream: TcpStream, tls: TlsAcceptor) {
    let _ = stream.set_nodelay(true);
    let Ok(stream) = tls.accept(stream).await else { return };
    let user = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).and_then(auth::user);
    let shutdown = server.shared.shutdown.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        let (server, user) = (Arc::clone(&server), user.clone());
        async move {
            let underway = Underway::begin(request.method(), request.uri().path());
            // What goes on after the answer, goes on with this.
            request.extensions_mut().insert(Arc::clone(&underway));
            let answer = route::answer(&server, user.as_ref(), request).await;
            Ok::<_, Infallible>(requests::until_sent(answer, underway))
        }
    });
    let connection =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        () = shutdown.cancelled() => {}
        // How a client goes away is its own affair.
        _ = connection.with_upgrades() => {}
    }
}
