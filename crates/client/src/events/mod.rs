//! Events: what `kubectl describe` shows below an object. Recording never blocks and never fails. While the server cannot be
//! reached, events wait; what it refuses, and what would be too much, is dropped, as upstream drops it.

mod correlate;
mod recent;

use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;

use correlate::{Correlator, Occurrence, Told};

/// How many events may wait to be written; more are dropped.
const BACKLOG: usize = 1000;
/// How often the writing of an event is tried, and how long it is waited for each further time, as upstream. The first
/// pause is shorter by chance, so that not all come back at once.
const ATTEMPTS: usize = 12;
const PAUSE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    Normal,
    Warning,
}

impl EventType {
    const fn as_str(self) -> &'static str {
        match self {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        }
    }
}

/// What an event of this object points at.
pub fn reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        namespace: object.namespace(),
        name: Some(object.name_any()),
        uid: object.uid(),
        resource_version: object.resource_version(),
        field_path: None,
    }
}

/// Records events as one component. Clones share the writer.
#[derive(Clone)]
pub struct EventRecorder {
    send: mpsc::Sender<Occurrence>,
}

impl EventRecorder {
    /// `component` is shown as the event's source (`kubelet`, `default-scheduler`); `host` is empty but for a node's.
    pub fn new(client: Client, component: &str, host: &str) -> Self {
        let (send, receive) = mpsc::channel(BACKLOG);
        let writer = Writer {
            client,
            source: EventSource {
                component: Some(component.to_owned()),
                host: (!host.is_empty()).then(|| host.to_owned()),
            },
            correlator: Correlator::default(),
            pause: PAUSE,
        };
        tokio::spawn(writer.run(receive));
        EventRecorder { send }
    }

    pub fn event(
        &self,
        regarding: &ObjectReference,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        let occurrence = Occurrence {
            regarding: regarding.clone(),
            kind,
            reason: reason.to_owned(),
            message: message.into(),
            at: Timestamp::now(),
        };
        if self.send.try_send(occurrence).is_err() {
            tracing::debug!(reason, "too many events wait to be written; one is dropped");
        }
    }
}

struct Writer {
    client: Client,
    source: EventSource,
    correlator: Correlator,
    /// Between two attempts.
    pause: Duration,
}

/// Whether another attempt may come to something: the server has not answered.
fn may_be_tried_again(error: &kube::Error) -> bool {
    !matches!(error, kube::Error::Api(_) | kube::Error::BuildRequest(_) | kube::Error::SerdeError(_))
}

impl Writer {
    async fn run(mut self, mut receive: mpsc::Receiver<Occurrence>) {
        while let Some(occurrence) = receive.recv().await {
            if let Some(told) = self.correlator.correlate(&self.source, &occurrence, Instant::now()) {
                self.persist(&occurrence, &told).await;
            } else {
                tracing::debug!(reason = occurrence.reason, "too much is said of an object");
            }
        }
    }

    /// Writes an event, as often as it takes within reason.
    async fn persist(&self, occurrence: &Occurrence, told: &Told) {
        for attempt in 1..=ATTEMPTS {
            match self.write(occurrence, told).await {
                Ok(()) => return,
                Err(error) if attempt < ATTEMPTS && may_be_tried_again(&error) => {
                    tracing::debug!(%error, "an event could not be written; it is tried again");
                }
                Err(error) => {
                    tracing::warn!(%error, reason = occurrence.reason, "an event could not be written");
                    return;
                }
            }
            let pause = if attempt == 1 { self.pause.mul_f64(rand::random()) } else { self.pause };
            tokio::time::sleep(pause).await;
        }
    }

    async fn write(&self, o: &Occurrence, told: &Told) -> Result<(), kube::Error> {
        let namespace = o.regarding.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let api = Api::<Event>::namespaced(self.client.clone(), &namespace);
        if told.count > 1 {
            let patch = json!({"count": told.count, "lastTimestamp": Time(o.at), "message": told.message});
            match api.patch(&told.name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Err(error) if crate::is_not_found(&error) => {}
                other => return other.map(drop),
            }
        }
        let event = Event {
            metadata: ObjectMeta {
                name: Some(told.name.clone()),
                namespace: Some(namespace),
                ..ObjectMeta::default()
            },
            involved_object: o.regarding.clone(),
            type_: Some(o.kind.as_str().to_owned()),
            reason: Some(o.reason.clone()),
            message: Some(told.message.clone()),
            first_timestamp: Some(Time(told.first)),
            last_timestamp: Some(Time(o.at)),
            count: Some(told.count),
            reporting_component: self.source.component.clone(),
            reporting_instance: Some(self.source.host.clone().unwrap_or_default()),
            source: Some(self.source.clone()),
            ..Event::default()
        };
        api.create(&PostParams::default(), &event).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use http::{Method, Request, Response};
    use kube::client::Body;
    use parking_lot::Mutex;
    use tower::service_fn;

    use super::*;

    /// What a server answers: nothing, because it is not there, or a code.
    type Answer = Result<u16, ()>;

    /// Has events of two messages written to a server that answers so, one after the other, and then well; what was asked
    /// of it.
    async fn written(answers: Vec<Answer>, messages: &[&str]) -> Vec<(Method, i64)> {
        let (asked, answers) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(answers.into_iter())));
        let seen = Arc::clone(&asked);
        let server = service_fn(move |request: Request<Body>| {
            let (seen, answers) = (Arc::clone(&seen), Arc::clone(&answers));
            async move {
                let method = request.method().clone();
                let body = request.into_body().collect_bytes().await.expect("a body");
                let event: serde_json::Value = serde_json::from_slice(&body).expect("an event");
                seen.lock().push((method, event["count"].as_i64().unwrap_or_default()));
                let answer = answers.lock().next().unwrap_or(Ok(201));
                let code = answer.map_err(|()| io::Error::from(io::ErrorKind::ConnectionRefused))?;
                let reason = if code == 404 { "NotFound" } else { "Forbidden" };
                let body = if code < 300 {
                    json!({"apiVersion": "v1", "kind": "Event", "metadata": {}, "involvedObject": {}})
                } else {
                    json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": reason,
                        "message": "", "code": code})
                };
                let reply = Response::builder().status(code).body(Body::from(body.to_string().into_bytes()));
                Ok::<_, io::Error>(reply.expect("a reply"))
            }
        });
        let (send, receive) = mpsc::channel(BACKLOG);
        let writer = Writer {
            client: Client::new(server, "default"),
            source: EventSource::default(),
            correlator: Correlator::default(),
            pause: Duration::from_millis(1),
        };
        let recorder = EventRecorder { send };
        for message in messages {
            recorder.event(&ObjectReference::default(), EventType::Normal, "Testing", *message);
        }
        drop(recorder);
        writer.run(receive).await;
        std::mem::take(&mut *asked.lock())
    }

    #[tokio::test]
    async fn events_wait_for_a_server_that_is_not_there() {
        let gone = written(vec![Err(()); 3], &["a"]).await;
        assert_eq!(gone, vec![(Method::POST, 1); 4]);
        let for_good = written(vec![Err(()); 20], &["a", "b"]).await;
        assert_eq!(for_good.len(), 20 + 1, "each is tried twelve times, and the second comes through");
    }

    #[tokio::test]
    async fn what_the_server_refuses_is_not_said_again() {
        let refused = written(vec![Ok(403)], &["a", "b"]).await;
        assert_eq!(refused, vec![(Method::POST, 1); 2]);
    }

    #[tokio::test]
    async fn an_event_that_is_gone_is_made_anew_with_its_count() {
        let counted = written(vec![Ok(201), Ok(200), Ok(404), Ok(201)], &["a", "a", "a"]).await;
        assert_eq!(counted, [(Method::POST, 1), (Method::PATCH, 2), (Method::PATCH, 3), (Method::POST, 3)]);
    }
}
