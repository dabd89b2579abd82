//! Events: what `kubectl describe` shows below an object. Recording never blocks and never fails; an event that cannot
//! be written is dropped, as upstream drops it.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::json;
use tokio::sync::mpsc;

/// How many events may wait to be written; more are dropped.
const BACKLOG: usize = 1000;
/// How many recent events are remembered, so that the same one is counted instead of written again.
const REMEMBERED: usize = 4096;

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

struct Occurrence {
    regarding: ObjectReference,
    kind: EventType,
    reason: String,
    message: String,
    at: Timestamp,
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
            seen: HashMap::new(),
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
    /// Name and count of an event that was written, by what makes two events the same.
    seen: HashMap<String, (String, i32)>,
}

impl Writer {
    async fn run(mut self, mut receive: mpsc::Receiver<Occurrence>) {
        while let Some(occurrence) = receive.recv().await {
            if let Err(error) = self.write(occurrence).await {
                tracing::debug!(%error, "an event could not be written");
            }
        }
    }

    async fn write(&mut self, o: Occurrence) -> Result<(), kube::Error> {
        let namespace = o.regarding.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let api = Api::<Event>::namespaced(self.client.clone(), &namespace);
        let same = format!(
            "{}/{}/{}/{}/{}/{}",
            namespace,
            o.regarding.uid.as_deref().unwrap_or_default(),
            o.regarding.field_path.as_deref().unwrap_or_default(),
            o.kind.as_str(),
            o.reason,
            o.message
        );
        if let Some((name, count)) = self.seen.get_mut(&same) {
            *count += 1;
            let patch = json!({"count": *count, "lastTimestamp": Time(o.at)});
            match api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Err(error) if crate::is_not_found(&error) => {}
                other => return other.map(drop),
            }
        }
        let name = format!(
            "{}.{:x}",
            o.regarding.name.as_deref().unwrap_or("unknown"),
            o.at.as_nanosecond().unsigned_abs()
        );
        let event = Event {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace),
                ..ObjectMeta::default()
            },
            involved_object: o.regarding,
            type_: Some(o.kind.as_str().to_owned()),
            reason: Some(o.reason),
            message: Some(o.message),
            first_timestamp: Some(Time(o.at)),
            last_timestamp: Some(Time(o.at)),
            count: Some(1),
            reporting_component: self.source.component.clone(),
            reporting_instance: Some(self.source.host.clone().unwrap_or_default()),
            source: Some(self.source.clone()),
            ..Event::default()
        };
        api.create(&PostParams::default(), &event).await?;
        if self.seen.len() >= REMEMBERED {
            self.seen.clear();
        }
        self.seen.insert(same, (name, 1));
        Ok(())
    }
}
