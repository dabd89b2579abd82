//! What plugins look up: other objects, as the watch cache has them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use krate_api::StatusError;
use krate_store::Revision;
use krate_store::cache::{Freshness, ListQuery, Scope};
use parking_lot::Mutex;

use crate::kinds::Kinds;
use crate::storage::{Storage, refused};

fn typed<T: Clone + 'static>(storage: &Storage, value: &bytes::Bytes, revision: Revision) -> Option<T> {
    storage.decode(value, revision).ok()?.object.is::<T>().cloned()
}

/// An object by its name; from the store where the cache does not have it (yet).
///
/// # Errors
/// The store cannot be read.
pub async fn find<T: Clone + 'static>(
    kinds: &Kinds,
    group: &str,
    plural: &str,
    namespace: &str,
    name: &str,
) -> Result<Option<T>, StatusError> {
    let Some(storage) = kinds.of(group, plural) else { return Ok(None) };
    for freshness in [Freshness::Any, Freshness::Latest] {
        if let Some(cached) = storage.cache.get(namespace, name, freshness).await.map_err(refused)? {
            return Ok(typed(&storage, &cached.value, cached.revision));
        }
    }
    Ok(None)
}

/// All objects of a kind in a namespace, or of a kind of cluster scope where it is empty.
///
/// # Errors
/// The store cannot be read.
pub async fn all<T: Clone + 'static>(
    kinds: &Kinds,
    group: &str,
    plural: &str,
    namespace: &str,
) -> Result<Vec<T>, StatusError> {
    let Some(storage) = kinds.of(group, plural) else { return Ok(Vec::new()) };
    let scope = if namespace.is_empty() { Scope::all() } else { Scope::namespace(namespace) };
    let list = storage.cache.list(&ListQuery::new(scope, Freshness::Any)).await.map_err(refused)?;
    Ok(list.items.iter().filter_map(|cached| typed(&storage, &cached.value, cached.revision)).collect())
}

/// The labels of a namespace or a node; `None` if it is not there.
///
/// # Errors
/// The store cannot be read.
pub async fn labels(
    kinds: &Kinds,
    plural: &str,
    name: &str,
) -> Result<Option<BTreeMap<String, String>>, StatusError> {
    for freshness in [Freshness::Any, Freshness::Latest] {
        if let Some(labels) = labels_at(kinds, plural, name, freshness).await? {
            return Ok(Some(labels));
        }
    }
    Ok(None)
}

/// The same as the store has them, and not as the cache does.
///
/// # Errors
/// The store cannot be read.
pub async fn labels_now(
    kinds: &Kinds,
    plural: &str,
    name: &str,
) -> Result<Option<BTreeMap<String, String>>, StatusError> {
    labels_at(kinds, plural, name, Freshness::Latest).await
}

async fn labels_at(
    kinds: &Kinds,
    plural: &str,
    name: &str,
    freshness: Freshness,
) -> Result<Option<BTreeMap<String, String>>, StatusError> {
    let Some(storage) = kinds.of("", plural) else { return Ok(None) };
    let cached = storage.cache.get("", name, freshness).await.map_err(refused)?;
    Ok(cached.map(|c| c.head.labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()))
}

/// What was made of all objects of a kind, made anew only of those that have changed.
pub struct Prepared<T>(Mutex<HashMap<String, (Revision, Arc<T>)>>);

impl<T> Default for Prepared<T> {
    fn default() -> Self {
        Prepared(Mutex::default())
    }
}

impl<T> Prepared<T> {
    /// In the order of the objects' names.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn all<S: Clone + 'static>(
        &self,
        kinds: &Kinds,
        group: &str,
        plural: &str,
        make: impl Fn(S) -> T,
    ) -> Result<Vec<Arc<T>>, StatusError> {
        let Some(storage) = kinds.of(group, plural) else { return Ok(Vec::new()) };
        if storage.cache.is_empty() {
            self.0.lock().clear();
            return Ok(Vec::new());
        }
        let list =
            storage.cache.list(&ListQuery::new(Scope::all(), Freshness::Any)).await.map_err(refused)?;
        let mut made = self.0.lock();
        if made.len() > 2 * list.items.len() {
            made.clear();
        }
        let all = list.items.iter().filter_map(|cached| {
            let name: &str = &cached.head.name;
            if let Some((_, there)) = made.get(name).filter(|(revision, _)| *revision == cached.revision) {
                return Some(Arc::clone(there));
            }
            let new = Arc::new(make(typed::<S>(&storage, &cached.value, cached.revision)?));
            made.insert(name.to_owned(), (cached.revision, Arc::clone(&new)));
            Some(new)
        });
        Ok(all.collect())
    }
}
