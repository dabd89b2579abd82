//! The kinds that this server stores, each with its storage.

use std::collections::HashMap;
use std::sync::Arc;

use krate_api::Kind;
use krate_store::cache::Cache;
use krate_store::{Backend, Error};

use crate::registry::erased;
use crate::storage::Storage;

/// All served kinds, by group and plural.
pub struct Kinds {
    by_resource: HashMap<&'static str, Vec<Arc<Storage>>>,
    rows: Vec<&'static Kind>,
}

impl Kinds {
    /// Reads all stored objects and begins to serve them.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn open(cache: &Cache, backend: &Arc<dyn Backend>) -> Result<Self, Error> {
        let mut by_resource: HashMap<&'static str, Vec<Arc<Storage>>> = HashMap::new();
        let mut by_place: HashMap<&'static str, Arc<Storage>> = HashMap::new();
        let mut rows: Vec<&'static Kind> =
            krate_api::kinds::ALL.iter().copied().filter(|kind| kind.storage.is_empty()).collect();
        for registry in erased::all() {
            let registry: Arc<dyn erased::Registry> = registry.into();
            let kind = registry.kind();
            rows.push(kind);
            let storage = match by_place.get(kind.storage) {
                // Two kinds of one place in the store (the two of events) have their objects in memory once.
                Some(there) => Storage::shared(registry, Arc::clone(&there.cache), Arc::clone(backend)),
                None => Storage::open(registry, cache, Arc::clone(backend)).await?,
            };
            let storage = Arc::new(storage);
            by_place.entry(kind.storage).or_insert_with(|| Arc::clone(&storage));
            by_resource.entry(kind.plural).or_default().push(storage);
        }
        Ok(Kinds { by_resource, rows })
    }

    /// The storage of a resource.
    pub fn of(&self, group: &str, plural: &str) -> Option<&Arc<Storage>> {
        self.by_resource.get(plural)?.iter().find(|storage| storage.kind().group == group)
    }

    /// The rows of all served kinds, those included that are answered and not stored.
    pub fn rows(&self) -> &[&'static Kind] {
        &self.rows
    }

    pub fn all(&self) -> impl Iterator<Item = &Arc<Storage>> {
        self.by_resource.values().flatten()
    }
}
