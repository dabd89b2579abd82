//! Informers: a local copy of one kind, kept true by a watch, with handlers that are told of each change.
//!
//! A handler is a function, called by the informer's one task in the order of the changes; it should only put a key
//! into a queue. A handler that comes late is first told of all that is there, so nobody needs to care for the order
//! of start. What a handler is told is a hint: the truth is what the informer holds when the key is reconciled.

use std::any::{Any, TypeId};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::slim::Slim;

/// A namespace (empty for cluster scope) and a name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ObjectKey {
    pub namespace: String,
    pub name: String,
}

impl ObjectKey {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        ObjectKey { namespace: namespace.into(), name: name.into() }
    }

    pub fn cluster(name: impl Into<String>) -> Self {
        ObjectKey::new("", name)
    }

    pub fn of<K: Resource>(object: &K) -> Self {
        let meta = object.meta();
        ObjectKey::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// What happened to an object.
#[derive(Debug)]
pub enum Event<K> {
    /// It is new to this informer (created, or there when the handler came).
    Added(Arc<K>),
    Modified {
        old: Arc<K>,
        new: Arc<K>,
    },
    /// It is gone; this is its last known state.
    Deleted(Arc<K>),
}

impl<K> Clone for Event<K> {
    fn clone(&self) -> Self {
        match self {
            Event::Added(o) => Event::Added(Arc::clone(o)),
            Event::Modified { old, new } => Event::Modified { old: Arc::clone(old), new: Arc::clone(new) },
            Event::Deleted(o) => Event::Deleted(Arc::clone(o)),
        }
    }
}

impl<K> Event<K> {
    /// The newest state that the event knows.
    pub fn object(&self) -> &Arc<K> {
        match self {
            Event::Added(o) | Event::Modified { new: o, .. } | Event::Deleted(o) => o,
        }
    }
}

/// What an informer can hold.
pub trait InformerObject: Resource + Clone + fmt::Debug + DeserializeOwned + Send + Sync + 'static {}
impl<K: Resource + Clone + fmt::Debug + DeserializeOwned + Send + Sync + 'static> InformerObject for K {}

type Handler<K> = Box<dyn Fn(&Event<K>) + Send + Sync>;
type IndexFn<K> = fn(&K) -> Vec<String>;

struct Index<K> {
    name: &'static str,
    of: IndexFn<K>,
    keys: HashMap<String, HashSet<ObjectKey>>,
}

struct State<K> {
    objects: BTreeMap<ObjectKey, Arc<K>>,
    indexes: Vec<Index<K>>,
}

struct Inner<K> {
    state: RwLock<State<K>>,
    /// Held while handlers run, so that a handler that comes late misses nothing and hears nothing twice.
    handlers: Mutex<Vec<Handler<K>>>,
    synced: watch::Sender<bool>,
}

/// A local copy of one kind. Clones share it.
pub struct Informer<K> {
    inner: Arc<Inner<K>>,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Informer { inner: Arc::clone(&self.inner) }
    }
}

impl<K: InformerObject> Informer<K> {
    fn empty() -> Self {
        Informer {
            inner: Arc::new(Inner {
                state: RwLock::new(State { objects: BTreeMap::new(), indexes: Vec::new() }),
                handlers: Mutex::new(Vec::new()),
                synced: watch::Sender::new(false),
            }),
        }
    }

    /// Starts to list and watch what `api` and `config` select, until `shutdown`.
    /// Managed fields are not held.
    pub fn start(api: Api<Slim<K>>, config: watcher::Config, shutdown: CancellationToken) -> Self {
        let informer = Self::empty();
        let task = informer.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = task.follow(watcher(api, config).default_backoff().boxed()) => {}
            }
        });
        informer
    }

    async fn follow(
        &self,
        mut stream: futures::stream::BoxStream<'_, watcher::Result<watcher::Event<Slim<K>>>>,
    ) {
        let mut fresh: Option<HashSet<ObjectKey>> = None;
        while let Some(event) = stream.next().await {
            match event {
                Ok(watcher::Event::Init) => fresh = Some(HashSet::new()),
                Ok(watcher::Event::InitApply(Slim(object))) => {
                    if let Some(seen) = &mut fresh {
                        seen.insert(ObjectKey::of(&object));
                    }
                    self.apply(object);
                }
                Ok(watcher::Event::InitDone) => {
                    if let Some(seen) = fresh.take() {
                        self.retain(&seen);
                    }
                    self.inner.synced.send_replace(true);
                }
                Ok(watcher::Event::Apply(Slim(object))) => self.apply(object),
                Ok(watcher::Event::Delete(Slim(object))) => {
                    self.remove(&ObjectKey::of(&object), Some(object));
                }
                Err(error) => {
                    tracing::debug!(%error, kind = std::any::type_name::<K>(), "watch failed; trying again");
                }
            }
        }
    }

    fn apply(&self, object: K) {
        let key = ObjectKey::of(&object);
        let new = Arc::new(object);
        let handlers = self.inner.handlers.lock();
        let old = self.inner.state.write().put(key, Arc::clone(&new));
        let event = match old {
            Some(old) if old.resource_version() == new.resource_version() => return,
            Some(old) if old.uid() != new.uid() => {
                for handler in handlers.iter() {
                    handler(&Event::Deleted(Arc::clone(&old)));
                }
                Event::Added(new)
            }
            Some(old) => Event::Modified { old, new },
            None => Event::Added(new),
        };
        for handler in handlers.iter() {
            handler(&event);
        }
    }

    fn remove(&self, key: &ObjectKey, last: Option<K>) {
        let handlers = self.inner.handlers.lock();
        let Some(known) = self.inner.state.write().take(key) else { return };
        let event = Event::Deleted(last.map_or(known, Arc::new));
        for handler in handlers.iter() {
            handler(&event);
        }
    }

    fn retain(&self, seen: &HashSet<ObjectKey>) {
        let gone: Vec<ObjectKey> =
            self.inner.state.read().objects.keys().filter(|k| !seen.contains(*k)).cloned().collect();
        for key in gone {
            self.remove(&key, None);
        }
    }

    /// Calls `handler` for all that is there, as [`Event::Added`], and from then on for each change, in order.
    /// It runs in the informer's task: it must not block.
    pub fn handle(&self, handler: impl Fn(&Event<K>) + Send + Sync + 'static) {
        let mut handlers = self.inner.handlers.lock();
        let there: Vec<Arc<K>> = self.inner.state.read().objects.values().cloned().collect();
        for object in there {
            handler(&Event::Added(object));
        }
        handlers.push(Box::new(handler));
    }

    /// The same as a channel, for a task that owns its state and takes events one by one. Unbounded: the receiver
    /// must keep up or be dropped.
    pub fn subscribe(&self) -> mpsc::UnboundedReceiver<Event<K>> {
        let (send, receive) = mpsc::unbounded_channel();
        self.handle(move |event| drop(send.send(event.clone())));
        receive
    }

    /// Waits until the first list is in.
    pub async fn synced(&self) {
        // The sender lives as long as self, so this ends only when it is true.
        let _ = self.inner.synced.subscribe().wait_for(|synced| *synced).await;
    }

    pub fn is_synced(&self) -> bool {
        *self.inner.synced.borrow()
    }

    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.get_key(&ObjectKey::new(namespace, name))
    }

    pub fn get_key(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.inner.state.read().objects.get(key).cloned()
    }

    /// All objects, ordered by namespace and name.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.inner.state.read().objects.values().cloned().collect()
    }

    /// The objects of a namespace, ordered by name.
    pub fn list_in(&self, namespace: &str) -> Vec<Arc<K>> {
        let from = ObjectKey::new(namespace, "");
        self.inner
            .state
            .read()
            .objects
            .range((Bound::Included(&from), Bound::Unbounded))
            .take_while(|(k, _)| k.namespace == namespace)
            .map(|(_, o)| Arc::clone(o))
            .collect()
    }

    pub fn len(&self) -> usize {
        self.inner.state.read().objects.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds an index by name, such as pods by node. Adding the same name again does nothing.
    pub fn add_index(&self, name: &'static str, of: IndexFn<K>) {
        let mut state = self.inner.state.write();
        if state.indexes.iter().any(|i| i.name == name) {
            return;
        }
        let mut index = Index { name, of, keys: HashMap::new() };
        for (key, object) in &state.objects {
            index.put(key, object);
        }
        state.indexes.push(index);
    }

    /// The objects that an index has under `value`. Empty for an index that was not added.
    pub fn by_index(&self, name: &str, value: &str) -> Vec<Arc<K>> {
        let state = self.inner.state.read();
        let Some(keys) = state.indexes.iter().find(|i| i.name == name).and_then(|i| i.keys.get(value)) else {
            return Vec::new();
        };
        keys.iter().filter_map(|k| state.objects.get(k).cloned()).collect()
    }
}

impl<K> Index<K> {
    fn put(&mut self, key: &ObjectKey, object: &K) {
        for value in (self.of)(object) {
            self.keys.entry(value).or_default().insert(key.clone());
        }
    }

    fn take(&mut self, key: &ObjectKey, object: &K) {
        for value in (self.of)(object) {
            if let Some(keys) = self.keys.get_mut(&value) {
                keys.remove(key);
                if keys.is_empty() {
                    self.keys.remove(&value);
                }
            }
        }
    }
}

impl<K> State<K> {
    fn put(&mut self, key: ObjectKey, object: Arc<K>) -> Option<Arc<K>> {
        let old = self.objects.insert(key.clone(), Arc::clone(&object));
        for index in &mut self.indexes {
            if let Some(old) = &old {
                index.take(&key, old);
            }
            index.put(&key, &object);
        }
        old
    }

    fn take(&mut self, key: &ObjectKey) -> Option<Arc<K>> {
        let old = self.objects.remove(key)?;
        for index in &mut self.indexes {
            index.take(key, &old);
        }
        Some(old)
    }
}

/// The informers of a process: one of each kind, started when first asked for.
#[derive(Clone)]
pub struct Informers {
    client: Client,
    shutdown: CancellationToken,
    started: Arc<Mutex<HashMap<TypeId, Box<dyn Any + Send>>>>,
}

impl Informers {
    pub fn new(client: Client, shutdown: CancellationToken) -> Self {
        Informers { client, shutdown, started: Arc::default() }
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The informer of all objects of this kind in the cluster.
    pub fn of<K>(&self) -> Informer<K>
    where
        K: InformerObject + k8s_openapi::Metadata<Ty = ObjectMeta> + Resource<DynamicType = ()>,
    {
        let mut started = self.started.lock();
        let slot = started.entry(TypeId::of::<K>()).or_insert_with(|| {
            let api = Api::all(self.client.clone());
            Box::new(Informer::<K>::start(api, watcher::Config::default(), self.shutdown.clone()))
        });
        slot.downcast_ref::<Informer<K>>().expect("the slot of a type holds its informer").clone()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    fn object(namespace: &str, name: &str, version: &str) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                namespace: Some(namespace.into()),
                name: Some(name.into()),
                resource_version: Some(version.into()),
                uid: Some("u".into()),
                ..ObjectMeta::default()
            },
            ..ConfigMap::default()
        }
    }

    fn log(informer: &Informer<ConfigMap>) -> Arc<Mutex<Vec<String>>> {
        let log = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&log);
        informer.handle(move |event| {
            let verb = match event {
                Event::Added(_) => "added",
                Event::Modified { .. } => "modified",
                Event::Deleted(_) => "deleted",
            };
            sink.lock().push(format!("{verb} {}", ObjectKey::of(&**event.object())));
        });
        log
    }

    #[tokio::test]
    async fn handlers_hear_each_change_once_and_what_a_new_list_lacks_is_deleted() {
        let informer = Informer::<ConfigMap>::empty();
        informer.add_index("name", |c| vec![c.name_any()]);
        let early = log(&informer);
        let events = vec![
            watcher::Event::Init,
            watcher::Event::InitApply(Slim(object("a", "x", "1"))),
            watcher::Event::InitApply(Slim(object("b", "x", "2"))),
            watcher::Event::InitDone,
            watcher::Event::Apply(Slim(object("a", "x", "3"))),
            watcher::Event::Init,
            watcher::Event::InitApply(Slim(object("a", "x", "3"))),
            watcher::Event::InitDone,
        ];
        informer.follow(futures::stream::iter(events.into_iter().map(Ok)).boxed()).await;
        assert_eq!(*early.lock(), ["added a/x", "added b/x", "modified a/x", "deleted b/x"]);
        assert_eq!(*log(&informer).lock(), ["added a/x"]);
        assert!(informer.is_synced());
        assert_eq!(informer.by_index("name", "x").len(), 1);
        assert_eq!(informer.list_in("b").len(), 0);
    }
}
