//! One kind's objects: read from the watch cache as the bytes that are sent, written by one compare-and-set in the store.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytes::Bytes;
use krate_api::{Kind, Reason, StatusError};
use krate_store::cache::{
    Cache, CacheError, Decode, Freshness, Head, Object as Cached, Resource, Text, Write,
};
use krate_store::{Backend, CompareAndSet, Error, KeyValue, Revision};
use memchr::memmem;

use crate::apiextensions::Converting;
use crate::head;
use crate::registry::Selectable;
use crate::registry::erased::{Object, Registry};
use crate::spans;

/// A kind, its objects in memory and its place in the store.
pub struct Storage {
    pub registry: Arc<dyn Registry>,
    pub cache: Arc<Resource>,
    backend: Arc<dyn Backend>,
    /// Where a webhook makes the objects of this version.
    converting: Option<Converting>,
    /// Whether the kind is on its way out: nothing new is made of it.
    closing: AtomicBool,
}

/// An object as it is in the store.
pub struct Current {
    pub object: Box<dyn Object>,
    pub revision: Revision,
    /// What the store has: JSON without a resourceVersion.
    pub value: Bytes,
    /// The same in the version of the storage that it was read from.
    pub json: Bytes,
}

/// How a write ended.
pub enum Outcome {
    Done(Written),
    /// Somebody else was first; what is there now, if anything.
    Conflict(Option<KeyValue>),
}

pub struct Written {
    pub revision: Revision,
    /// The object as it is sent.
    pub bytes: Bytes,
}

/// What opens the metadata in an object's JSON.
const METADATA: &[u8] = b"\"metadata\":{";

/// An object's JSON, and where its resourceVersion goes. Ours always has the metadata near its beginning.
pub fn text(json: Bytes) -> Text {
    let at = memmem::find(&json, METADATA).map(|i| i + METADATA.len());
    Text::new(json, at)
}

/// Puts the resourceVersion into an object's JSON.
pub fn with_revision(json: &Bytes, revision: Revision) -> Bytes {
    text(json.clone()).sent(revision)
}

/// How an object's canonical JSON begins: it says first what kind it is.
pub fn type_meta(kind: &Kind) -> String {
    format!("{{\"apiVersion\":\"{}\",\"kind\":\"{}\",", kind.api_version(), kind.kind)
}

struct Decoder {
    registry: Arc<dyn Registry>,
    /// Whether its objects are selected by their metadata alone, so that nothing else need be read.
    bare: bool,
    /// What an object begins with that says what kind it is.
    type_meta: String,
}

impl Decoder {
    fn new(registry: Arc<dyn Registry>) -> Self {
        let by_metadata = |name: &&str| matches!(*name, "metadata.name" | "metadata.namespace");
        let bare = !registry.kind().custom && registry.selectable_names().iter().all(by_metadata);
        let type_meta = type_meta(registry.kind());
        Decoder { registry, bare, type_meta }
    }
}

impl Decode for Decoder {
    fn decode(&self, _key: &[u8], value: &Bytes) -> Option<(Text, Head)> {
        let mut value = value.clone();
        let fields = if self.bare {
            Selectable::new()
        } else if let Some(fields) = self.registry.selectable_in(&value) {
            fields
        } else {
            let mut object = self.registry.decode(&value).ok()?;
            if self.registry.kind().custom {
                // The definition may say more by now than when it was written.
                self.registry.default(&mut *object);
                value = object.to_json().into();
            }
            self.registry.selectable(&*object)
        };
        let fields = fields.into_iter().map(|(k, v)| (k.into(), v)).collect();
        let head = Head { fields, ..head::read(&value).ok()? };
        let opening = if value.starts_with(self.type_meta.as_bytes()) { self.type_meta.len() } else { 0 };
        Some((text(value).opened_by(opening), head))
    }
}

/// The field by which a kind's watches are found without asking each: a node's pods.
fn index(kind: &Kind) -> Option<&'static str> {
    (kind.group.is_empty() && kind.plural == "pods").then_some("spec.nodeName")
}

impl Storage {
    /// Begins to serve a kind.
    pub async fn open(
        registry: Arc<dyn Registry>,
        cache: &Cache,
        backend: Arc<dyn Backend>,
    ) -> Result<Self, Error> {
        let kind = registry.kind();
        let decoder = Arc::new(Decoder::new(Arc::clone(&registry)));
        let cache = cache.add(kind.storage, decoder, index(kind)).await?;
        Ok(Storage::shared(registry, cache, backend))
    }

    /// The same objects as another kind of the same storage sees them.
    pub fn shared(registry: Arc<dyn Registry>, cache: Arc<Resource>, backend: Arc<dyn Backend>) -> Self {
        Storage { registry, cache, backend, converting: None, closing: AtomicBool::new(false) }
    }

    pub fn kind(&self) -> &'static Kind {
        self.registry.kind()
    }

    pub fn not_found(&self, name: &str) -> StatusError {
        StatusError::not_found(self.kind().group, self.kind().plural, name)
    }

    /// The same storage, with a webhook that makes its objects.
    pub fn converting(self, converting: Converting) -> Self {
        Storage { converting: Some(converting), ..self }
    }

    /// From now on nothing new is made of the kind.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// What is in the cache, in the version of this storage.
    ///
    /// # Errors
    /// A webhook does not convert it.
    pub async fn sent(&self, json: &Bytes) -> Result<Bytes, StatusError> {
        let Some(converting) = &self.converting else {
            return Ok(self.registry.as_sent(json).unwrap_or_else(|| json.clone()));
        };
        let one = Box::pin(converting.of_stored(std::slice::from_ref(json))).await?;
        one.into_iter().next().ok_or_else(|| StatusError::internal("nothing was converted"))
    }

    /// The same of many.
    ///
    /// # Errors
    /// A webhook does not convert one of them.
    pub async fn all_sent(&self, items: Vec<Bytes>) -> Result<Vec<Bytes>, StatusError> {
        if let Some(converting) = &self.converting {
            return Box::pin(converting.of_stored(&items)).await;
        }
        let sent = |json: Bytes| self.registry.as_sent(&json).unwrap_or(json);
        Ok(items.into_iter().map(sent).collect())
    }

    /// Whether what is in the cache is not what is sent.
    pub fn converts(&self) -> bool {
        self.converting.is_some() || self.registry.as_sent(&Bytes::from_static(b"{}")).is_some()
    }

    /// Whether a webhook makes the versions of its objects of one another.
    pub fn converts_by_webhook(&self) -> bool {
        self.converting.is_some()
    }

    /// An object of another version of the kind in this one's.
    ///
    /// # Errors
    /// A webhook does not convert it, or none does.
    pub async fn convert(&self, object: serde_json::Value) -> Result<serde_json::Value, StatusError> {
        let Some(converting) = &self.converting else {
            return Err(StatusError::internal("nothing converts it"));
        };
        let made = Box::pin(converting.of_other(object)).await?;
        serde_json::from_slice(&made).map_err(StatusError::internal)
    }

    /// What is stored of an object.
    ///
    /// # Errors
    /// A webhook does not convert it.
    pub async fn to_value(&self, object: &mut dyn Object) -> Result<Bytes, StatusError> {
        object.meta_mut().resource_version = None;
        object.meta_mut().self_link = None;
        match &self.converting {
            None => Ok(self.registry.to_stored(object).into()),
            Some(converting) => Box::pin(converting.to_stored(object.to_json().into())).await,
        }
    }

    /// The object as it is in the cache.
    pub async fn read(
        &self,
        namespace: &str,
        name: &str,
        freshness: Freshness,
    ) -> Result<Arc<Cached>, StatusError> {
        self.cache.get(namespace, name, freshness).await.map_err(refused)?.ok_or_else(|| self.not_found(name))
    }

    /// The newest object, typed, to be changed.
    pub async fn current(&self, namespace: &str, name: &str) -> Result<Current, StatusError> {
        let cached = self.read(namespace, name, Freshness::Any).await;
        let cached = match cached {
            Ok(cached) => cached,
            // It may have been created a moment ago.
            Err(_) => self.read(namespace, name, Freshness::Latest).await?,
        };
        self.load(&cached.value, cached.revision).await
    }

    /// What a conflict brought, typed.
    pub async fn current_of(&self, name: &str, there: Option<KeyValue>) -> Result<Current, StatusError> {
        let there = there.ok_or_else(|| self.not_found(name))?;
        self.load(&there.value, there.mod_revision).await
    }

    /// An object of the store at a revision, in the version of this storage.
    ///
    /// # Errors
    /// It cannot be read, or a webhook does not convert it.
    pub async fn load(&self, value: &Bytes, revision: Revision) -> Result<Current, StatusError> {
        if self.converting.is_none() {
            return self.decode(value, revision);
        }
        let mut current = self.decode(&self.sent(value).await?, revision)?;
        // What the webhook leaves out and the version has a default for is there already: no writer comes to own it.
        let version = current.object.meta_mut().resource_version.take();
        let json = current.object.to_json().into();
        current.object.meta_mut().resource_version = version;
        Ok(Current { value: value.clone(), json, ..current })
    }

    /// An object at a revision, typed, its resourceVersion set and its defaults filled. No webhook is asked.
    pub fn decode(&self, value: &Bytes, revision: Revision) -> Result<Current, StatusError> {
        let mut object = self.registry.decode(value).map_err(StatusError::internal)?;
        self.registry.default(&mut *object);
        object.meta_mut().resource_version = Some(revision.to_string());
        let json = self.registry.as_sent(value).unwrap_or_else(|| value.clone());
        Ok(Current { object, revision, value: value.clone(), json })
    }

    fn key(&self, object: &dyn Object) -> String {
        let meta = object.meta();
        self.kind()
            .key(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
    }

    /// Whether what the store keeps of an object would be kept otherwise today: by another key, say.
    pub async fn is_stale(&self, object: &dyn Object) -> Result<bool, StatusError> {
        self.backend.is_stale(self.key(object).as_bytes()).await.map_err(|error| unwritten(&error))
    }

    /// Creates an object.
    pub async fn create(&self, object: &mut dyn Object) -> Result<Outcome, StatusError> {
        let value = self.to_value(object).await?;
        self.commit(Write::Create, CompareAndSet::create(self.key(object), value.clone()), value).await
    }

    /// Writes an object, of which `value` is stored, over what is at a revision.
    pub async fn replace(
        &self,
        object: &dyn Object,
        value: Bytes,
        at: Revision,
    ) -> Result<Outcome, StatusError> {
        self.commit(Write::Update, CompareAndSet::update(self.key(object), at, value.clone()), value).await
    }

    /// Deletes what is at a revision; the answer's bytes are the last state, `value`.
    pub async fn delete(
        &self,
        object: &dyn Object,
        value: Bytes,
        at: Revision,
    ) -> Result<Outcome, StatusError> {
        self.commit(Write::Delete, CompareAndSet::delete(self.key(object), at), value).await
    }

    async fn commit(&self, sort: Write, write: CompareAndSet, value: Bytes) -> Result<Outcome, StatusError> {
        let since = Instant::now();
        let (name, key) = (span_of(sort), write.key.clone());
        let described = || vec![("key", String::from_utf8_lossy(&key).as_ref().into())];
        let committed = spans::within(name, described, self.backend.commit(write)).await;
        let failed = !matches!(committed, Ok(_) | Err(Error::Conflict { .. }));
        self.cache.counts().wrote(sort, since.elapsed(), failed);
        match committed {
            Ok(committed) => Ok(Outcome::Done(Written {
                revision: committed.revision,
                bytes: with_revision(&value, committed.revision),
            })),
            Err(Error::Conflict { current }) => Ok(Outcome::Conflict(current)),
            Err(error) => Err(unwritten(&error)),
        }
    }
}

/// What a write to the store is called in traces.
fn span_of(write: Write) -> &'static str {
    match write {
        Write::Create => "Create etcd3",
        Write::Update => "GuaranteedUpdate etcd3",
        Write::Delete => "Delete etcd3",
    }
}

fn unwritten(error: &Error) -> StatusError {
    match error {
        Error::NoSpace(_) | Error::ReadOnly(_) => {
            StatusError::new(Reason::ServiceUnavailable, error.to_string())
        }
        other => StatusError::internal(other),
    }
}

/// What the cache refused, as the API says it.
pub fn refused(error: CacheError) -> StatusError {
    match error {
        CacheError::TooOld { .. } => StatusError::new(Reason::Expired, error.to_string()),
        CacheError::TooLarge { .. } => {
            use k8s_openapi::apimachinery::pkg::apis::meta::v1::{StatusCause, StatusDetails};
            StatusError::with_details(
                Reason::Timeout,
                format!("Timeout: {error}"),
                Some(StatusDetails {
                    causes: Some(vec![StatusCause {
                        reason: Some("ResourceVersionTooLarge".to_owned()),
                        message: Some("Too large resource version".to_owned()),
                        ..StatusCause::default()
                    }]),
                    retry_after_seconds: Some(1),
                    ..StatusDetails::default()
                }),
            )
        }
        CacheError::Closed => {
            StatusError::new(Reason::ServiceUnavailable, "the resource is no longer served")
        }
        CacheError::Store(error) => StatusError::internal(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_revision_is_put_into_the_objects_metadata() {
        let put = |json: &'static str| with_revision(&Bytes::from_static(json.as_bytes()), Revision(7));
        let some = put(r#"{"kind":"X","metadata":{"name":"a"},"data":{}}"#);
        assert_eq!(&some[..], br#"{"kind":"X","metadata":{"resourceVersion":"7","name":"a"},"data":{}}"#);
        let none = put(r#"{"kind":"X","metadata":{}}"#);
        assert_eq!(&none[..], br#"{"kind":"X","metadata":{"resourceVersion":"7"}}"#);
    }
}
