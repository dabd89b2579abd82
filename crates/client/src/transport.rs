//! The two ways to an API server: HTTPS as a kubeconfig says, or a service of this process.

use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body::Body as _;
use kube::client::{Body, ClientBuilder};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tower::layer::layer_fn;
use tower::{BoxError, Service};

use crate::metrics::Call;

/// A client of the server that the kubeconfig's current context names.
///
/// # Errors
/// The file cannot be read, or its current context does not lead to a cluster and a user.
pub async fn from_kubeconfig(path: &Path) -> Result<Client, Box<dyn std::error::Error + Send + Sync>> {
    let kubeconfig = Kubeconfig::read_from(path)?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(from_config(config)?)
}

/// A client of the server of a configuration.
///
/// # Errors
/// What it says of certificates cannot be used.
pub fn from_config(config: Config) -> kube::Result<Client> {
    let host: Arc<str> = config.cluster_url.authority().map_or("", |authority| authority.as_str()).into();
    let counted = layer_fn(move |inner| Counted { inner, host: Arc::clone(&host) });
    Ok(ClientBuilder::try_from(config)?.with_layer(&counted).build())
}

/// A client whose requests are handed to `service` as they are: no socket, no TLS. Who asks is the service's affair.
pub fn in_process<S, B>(service: S) -> Client
where
    S: Service<Request<Body>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    Client::new(Counted { inner: service, host: "".into() }, "default")
}

/// A way to an API server of which is told in metrics.
pub(crate) struct Counted<S> {
    pub inner: S,
    /// None within this process. Requests come without one: it is added to them further on.
    pub host: Arc<str>,
}

impl<S, B> Service<Request<Body>> for Counted<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: 'static,
    B: http_body::Body + 'static,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<B>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let call = Call { method: request.method().clone(), host: Arc::clone(&self.host) };
        call.sends(request.body().size_hint().exact());
        let since = Instant::now();
        let answer = self.inner.call(request);
        async move {
            let answer = answer.await;
            match &answer {
                Ok(answer) => {
                    call.ended(answer.status().as_str(), since.elapsed(), answer.body().size_hint().exact());
                }
                Err(_) => call.ended("<error>", since.elapsed(), None),
            }
            answer
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn requests_are_counted_by_their_answers() {
        let answer = |request: Request<Body>| async move {
            let code = if request.uri().path() == "/there" { 200 } else { 404 };
            let body = Body::from(br#"{"kind": "Status", "code": 404}"#.to_vec());
            Response::builder().status(code).body(body)
        };
        let counted = Counted { inner: tower::service_fn(answer), host: "api.test".into() };
        let client = Client::new(counted, "default");
        for path in ["/there", "/gone", "/gone"] {
            let request = Request::get(path).body(Vec::new()).expect("a request");
            let _ = client.request_text(request).await;
        }
        let text = crate::metrics::text();
        for line in [
            "rest_client_requests_total{code=\"200\",host=\"api.test\",method=\"GET\"} 1",
            "rest_client_requests_total{code=\"404\",host=\"api.test\",method=\"GET\"} 2",
            "rest_client_request_duration_seconds_count{host=\"api.test\",verb=\"GET\"} 3",
            "rest_client_response_size_bytes_count{host=\"api.test\",verb=\"GET\"} 3",
        ] {
            assert!(text.lines().any(|there| there == line), "{line}: {text}");
        }
    }
}
