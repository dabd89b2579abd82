//! A client whose certificate is replaced while it is in use. Each certificate has connections of its own: with another
//! one, new requests go over new connections, what is under way on the old ones comes to its end there, and watches end
//! and are begun anew.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body::Frame;
use krate_pki::{Current, Pair};
use kube::client::{Body, ClientBuilder};
use kube::{Client, Config};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tower::{BoxError, Service};

use crate::transport::Counted;

/// How long a request waits for the first certificate: as long as for a connection.
const PATIENCE: Duration = Duration::from_secs(30);

/// A client that shows the certificate that is current. Until there is one, requests wait for it for a while.
///
/// # Errors
/// The configuration, or the certificate that there is, cannot be used.
pub fn rotating(config: Config, current: Current) -> kube::Result<Client> {
    let host = config.cluster_url.authority().map_or("", |authority| authority.as_str()).into();
    let namespace = config.default_namespace.clone();
    let first = current.get().map(|pair| Generation::new(&config, &pair)).transpose()?;
    let (sender, generations) = watch::channel(first);
    tokio::spawn(replace(config, current, sender));
    Ok(Client::new(Counted { inner: Rotating { generations }, host }, namespace))
}

/// The connections of one certificate.
#[derive(Clone)]
struct Generation {
    client: Client,
    /// Another one has taken its place.
    over: CancellationToken,
}

impl Generation {
    fn new(config: &Config, pair: &Pair) -> kube::Result<Self> {
        let mut config = config.clone();
        config.auth_info.client_certificate_data = Some(STANDARD.encode(&pair.certificate));
        config.auth_info.client_key_data = Some(STANDARD.encode(&pair.key).into());
        Ok(Generation { client: ClientBuilder::try_from(config)?.build(), over: CancellationToken::new() })
    }
}

/// Makes connections of their own for every new certificate, for as long as there is somebody who asks.
async fn replace(config: Config, mut current: Current, generations: watch::Sender<Option<Generation>>) {
    loop {
        tokio::select! {
            () = current.changed() => {}
            () = generations.closed() => return,
        }
        let Some(pair) = current.get() else { continue };
        match Generation::new(&config, &pair) {
            Ok(next) => {
                if let Some(old) = generations.send_replace(Some(next)) {
                    tracing::info!(
                        "Certificate rotation detected, shutting down client connections to start using new credentials"
                    );
                    old.over.cancel();
                }
            }
            Err(error) => tracing::error!(%error, "a new certificate cannot be used"),
        }
    }
}

#[derive(Clone)]
struct Rotating {
    generations: watch::Receiver<Option<Generation>>,
}

impl Service<Request<Body>> for Rotating {
    type Response = Response<Until>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<Until>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let mut generations = self.generations.clone();
        async move {
            let newest = tokio::time::timeout(PATIENCE, newest(&mut generations)).await;
            let Some(generation) = newest.ok().flatten() else {
                return Err("there is no client certificate yet".into());
            };
            let is_watch = request.uri().query().is_some_and(is_watch);
            let answer = generation.client.send(request).await?;
            let over = is_watch.then(|| Box::pin(generation.over.cancelled_owned()));
            Ok(answer.map(|body| Until { body, over }))
        }
        .boxed()
    }
}

/// The connections to use, as soon as there is a certificate.
async fn newest(generations: &mut watch::Receiver<Option<Generation>>) -> Option<Generation> {
    generations.wait_for(Option::is_some).await.ok().and_then(|there| there.clone())
}

fn is_watch(query: &str) -> bool {
    query.split('&').any(|part| matches!(part, "watch=true" | "watch=1"))
}

/// An answer; that to a watch ends when its connections are over.
struct Until {
    body: Body,
    over: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl http_body::Body for Until {
    type Data = Bytes;
    type Error = <Body as http_body::Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.over.as_mut().is_some_and(|over| over.poll_unpin(cx).is_ready()) {
            return Poll::Ready(None);
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }
}
