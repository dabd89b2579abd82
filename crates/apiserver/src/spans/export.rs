//! Spans on their way to the collector: gathered for a while, and sent together.

use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use super::otlp::{ExportRequest, ExportResponse, Resource, ResourceSpans, Scope, ScopeSpans, attribute};
use super::{Ended, Tracer, Tracing};

const EXPORT: PathAndQuery =
    PathAndQuery::from_static("/opentelemetry.proto.collector.trace.v1.TraceService/Export");
/// How many spans may wait, and how many are sent at once.
const QUEUE: usize = 2048;
const BATCH: usize = 512;
/// How long spans wait for others.
const EVERY: Duration = Duration::from_secs(5);
/// How long the collector may take.
const TIMEOUT: Duration = Duration::from_secs(30);

impl Tracer {
    /// Traces as a configuration says, until the end of serving. The collector need not be there. Must be called within a
    /// tokio runtime.
    ///
    /// # Errors
    /// The endpoint is none.
    pub fn start(tracing: &Tracing, end: CancellationToken) -> Result<Arc<Self>, String> {
        let endpoint = Endpoint::from_shared(format!("http://{}", tracing.endpoint));
        let endpoint = endpoint.map_err(|error| format!("{}: {error}", tracing.endpoint))?;
        let collector = Collector { channel: endpoint.timeout(TIMEOUT).connect_lazy(), resource: resource() };
        let (ended, queue) = mpsc::channel(QUEUE);
        tokio::spawn(collector.feed(queue, end));
        Ok(Arc::new(Tracer { per_million: tracing.per_million, ended }))
    }
}

/// What all spans are of: this server.
fn resource() -> Resource {
    let instance = format!("apiserver-{}", uuid::Uuid::new_v4());
    let attributes = [
        ("service.name", "apiserver"),
        ("service.instance.id", &instance),
        ("telemetry.sdk.language", "rust"),
    ];
    Resource { attributes: attributes.map(|(key, value)| attribute(key, value.into())).to_vec() }
}

struct Collector {
    channel: Channel,
    resource: Resource,
}

impl Collector {
    async fn feed(self, mut queue: mpsc::Receiver<Ended>, end: CancellationToken) {
        let mut due = tokio::time::interval(EVERY);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let room = BATCH - batch.len();
            tokio::select! {
                came = queue.recv_many(&mut batch, room) => {
                    if came > 0 && batch.len() < BATCH {
                        continue;
                    }
                    self.send(&mut batch).await;
                    if came == 0 {
                        return;
                    }
                }
                _ = due.tick() => self.send(&mut batch).await,
                () = end.cancelled() => {
                    // What has ended by now is told; what ends later is not.
                    while let Ok(span) = queue.try_recv() {
                        batch.push(span);
                    }
                    self.send(&mut batch).await;
                    return;
                }
            }
        }
    }

    async fn send(&self, batch: &mut Vec<Ended>) {
        if batch.is_empty() {
            return;
        }
        let count = batch.len();
        let scope =
            Scope { name: "krate-apiserver".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() };
        let spans = ScopeSpans { scope: Some(scope), spans: batch.drain(..).map(Into::into).collect() };
        let request = ExportRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(self.resource.clone()),
                scope_spans: vec![spans],
            }],
        };
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        let codec = ProstCodec::<ExportRequest, ExportResponse>::default();
        let sent = match grpc.ready().await {
            Ok(()) => grpc.unary(tonic::Request::new(request), EXPORT, codec).await.map(drop),
            Err(error) => Err(tonic::Status::unavailable(error.to_string())),
        };
        if let Err(error) = sent {
            tracing::debug!(%error, count, "spans are lost: the collector did not take them");
        }
    }
}
