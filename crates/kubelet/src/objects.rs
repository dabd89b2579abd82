//! ConfigMaps and Secrets that pods of this node refer to: one watch an object, for as long as some pod uses it. A
//! change wakes the pods that do.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use krate_client::{Client, Informer};
use kube::core::NamespaceResourceScope;
use kube::runtime::watcher;
use kube::{Api, Resource};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::signal::Signal;

/// How long the API server may take to learn that a pod of this node refers to an object.
const GRANT: Duration = Duration::from_secs(2);

type Users = Arc<Mutex<HashMap<String, Arc<Signal>>>>;

struct Watched<K> {
    informer: Option<Informer<K>>,
    users: Users,
    stop: CancellationToken,
}

impl<K> Drop for Watched<K> {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Objects of one kind, by namespace and name.
pub struct Store<K> {
    client: Client,
    watched: Mutex<HashMap<(String, String), Watched<K>>>,
}

impl<K> Store<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    fn new(client: Client) -> Self {
        Store { client, watched: Mutex::new(HashMap::new()) }
    }

    /// The object as it is now, `None` when there is none. The pod `uid` is woken by `signal` when it changes.
    ///
    /// # Errors
    /// The API server cannot be asked, or refuses.
    pub async fn get(
        &self,
        uid: &str,
        signal: &Arc<Signal>,
        namespace: &str,
        name: &str,
    ) -> kube::Result<Option<Arc<K>>> {
        let key = (namespace.to_owned(), name.to_owned());
        let known = {
            let mut watched = self.watched.lock();
            let entry = watched.entry(key.clone()).or_insert_with(|| Watched {
                informer: None,
                users: Users::default(),
                stop: CancellationToken::new(),
            });
            entry.users.lock().insert(uid.to_owned(), Arc::clone(signal));
            entry.informer.clone()
        };
        if let Some(informer) = known.filter(Informer::is_synced) {
            return Ok(informer.get(namespace, name));
        }
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        let found = granted(|| api.get_opt(name)).await?;
        self.watch(&key);
        Ok(found.map(Arc::new))
    }

    /// Starts the watch, once it is known that it is allowed.
    fn watch(&self, key: &(String, String)) {
        let mut watched = self.watched.lock();
        let Some(entry) = watched.get_mut(key).filter(|e| e.informer.is_none()) else { return };
        let config = watcher::Config::default().fields(&format!("metadata.name={}", key.1));
        let api = Api::namespaced(self.client.clone(), &key.0);
        let informer = Informer::start(api, config, entry.stop.clone());
        let users = Arc::clone(&entry.users);
        informer.handle(move |_| {
            for signal in users.lock().values() {
                signal.objects_changed();
            }
        });
        entry.informer = Some(informer);
    }

    /// The pod is gone; what it alone used is watched no more.
    fn release(&self, uid: &str) {
        self.watched.lock().retain(|_, entry| {
            let mut users = entry.users.lock();
            users.remove(uid);
            !users.is_empty()
        });
    }
}

/// Both kinds.
pub struct Objects {
    pub config_maps: Store<ConfigMap>,
    pub secrets: Store<Secret>,
}

impl Objects {
    pub fn new(client: &Client) -> Self {
        Objects { config_maps: Store::new(client.clone()), secrets: Store::new(client.clone()) }
    }

    pub fn release(&self, uid: &str) {
        self.config_maps.release(uid);
        self.secrets.release(uid);
    }
}

/// Asks again for a moment while the answer is that it is forbidden: the API server learns from a watch of its own that
/// a pod has come to this node, maybe after this node did.
///
/// # Errors
/// What the last answer was.
pub async fn granted<T, F>(ask: impl Fn() -> F) -> kube::Result<T>
where
    F: Future<Output = kube::Result<T>>,
{
    let deadline = tokio::time::Instant::now() + GRANT;
    let mut pause = Duration::from_millis(5);
    loop {
        match ask().await {
            Err(kube::Error::Api(status)) if status.code == 403 && tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(200));
            }
            other => return other,
        }
    }
}
