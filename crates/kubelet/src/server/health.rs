//! Whether the kubelet itself is well: `/healthz`, here and on a port of its own without TLS.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use super::route::Query;
use super::{Answer, text};
use crate::run::Error;
use crate::shared::{Shared, SharedRef};

const CHECKS: [&str; 3] = ["ping", "log", "syncloop"];

/// Status and text for `/healthz` and what is below it.
fn found(shared: &Shared, check: &[&str], query: &Query) -> (StatusCode, String) {
    let is_well = |name: &str| name != "syncloop" || shared.is_looping();
    match check {
        [] => {
            let excluded = query.all("exclude");
            let asked = CHECKS.iter().filter(|name| !excluded.iter().any(|e| e == *name));
            let is_ok = asked.clone().all(|name| is_well(name));
            let mut said = String::new();
            for name in asked {
                let (sign, line) = if is_well(name) { ('+', "ok") } else { ('-', "failed: reason withheld") };
                let _ = writeln!(said, "[{sign}]{name} {line}");
            }
            match (is_ok, query.get("verbose")) {
                (true, None) => (StatusCode::OK, "ok".to_owned()),
                (true, Some(_)) => (StatusCode::OK, format!("{said}healthz check passed\n")),
                (false, _) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{said}healthz check failed\n")),
            }
        }
        [name] if CHECKS.contains(name) && is_well(name) => (StatusCode::OK, "ok".to_owned()),
        [name] if CHECKS.contains(name) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal server error: sync Loop took longer than expected\n".to_owned(),
        ),
        _ => (StatusCode::NOT_FOUND, "404 page not found\n".to_owned()),
    }
}

pub fn answer(shared: &Shared, check: &[&str], query: &Query) -> Answer {
    let (status, said) = found(shared, check, query);
    text(status, said)
}

/// Binds the port for health alone.
///
/// # Errors
/// It is taken.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address)
        .await
        .map_err(|error| Error::File { what: format!("listening on {address}"), error })
}

/// Answers there until the kubelet ends.
pub async fn serve(shared: SharedRef, listener: TcpListener) {
    loop {
        let accepted = tokio::select! {
            () = shared.shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else { continue };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let parts: Vec<&str> = request.uri().path().trim_matches('/').split('/').collect();
                let query = Query::parse(request.uri().query().unwrap_or_default());
                let (status, said) = match parts.as_slice() {
                    ["healthz", check @ ..] => found(&shared, check, &query),
                    _ => (StatusCode::NOT_FOUND, "404 page not found\n".to_owned()),
                };
                let mut response = Response::new(Full::new(Bytes::from(said)));
                *response.status_mut() = status;
                async move { Ok::<_, std::convert::Infallible>(response) }
            });
            // How a client goes away is its own affair.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}
