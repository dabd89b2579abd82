//! The kinds that this server stores, each with its storage: the built-in ones, and those that definitions add and take
//! away while it runs.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use krate_api::Kind;
use krate_store::cache::Cache;
use krate_store::{Backend, Error};

use crate::registry::erased;
use crate::storage::Storage;

/// All served kinds.
pub struct Kinds(ArcSwap<Served>);

/// What is served at one moment.
#[derive(Clone)]
struct Served {
    /// By plural; the storages of several groups and versions may share one.
    by_resource: HashMap<&'static str, Vec<Arc<Storage>>>,
    rows: Arc<[&'static Kind]>,
}

impl Kinds {
    /// Reads the stored objects of the kinds that are to be served, and begins to serve them.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn open(
        cache: &Cache,
        backend: &Arc<dyn Backend>,
        serve: impl Fn(&Kind) -> bool,
    ) -> Result<Self, Error> {
        let mut by_resource: HashMap<&'static str, Vec<Arc<Storage>>> = HashMap::new();
        let mut by_place: HashMap<&'static str, Arc<Storage>> = HashMap::new();
        let unstored = krate_api::kinds::every().filter(|kind| kind.storage.is_empty());
        let mut rows: Vec<&'static Kind> = unstored.filter(|kind| serve(kind)).collect();
        for registry in erased::all().into_iter().filter(|registry| serve(registry.kind())) {
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
        Ok(Kinds(ArcSwap::from_pointee(Served { by_resource, rows: rows.into() })))
    }

    /// The storage of a resource, in whichever version comes first.
    pub fn of(&self, group: &str, plural: &str) -> Option<Arc<Storage>> {
        let served = self.0.load();
        served.by_resource.get(plural)?.iter().find(|storage| storage.kind().group == group).cloned()
    }

    /// The storages of a resource, one a version.
    pub fn versions(&self, group: &str, plural: &str) -> Vec<Arc<Storage>> {
        let served = self.0.load();
        let all = served.by_resource.get(plural).into_iter().flatten();
        all.filter(|storage| storage.kind().group == group).cloned().collect()
    }

    /// The storages of the same objects: one a version, of whichever group.
    pub fn sharing(&self, storage: &Storage) -> Vec<Arc<Storage>> {
        let served = self.0.load();
        let all = served.by_resource.get(storage.kind().plural).into_iter().flatten();
        all.filter(|other| Arc::ptr_eq(&other.cache, &storage.cache)).cloned().collect()
    }

    /// The storage of a resource in a version.
    pub fn at(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Storage>> {
        let served = self.0.load();
        let is_it = |kind: &Kind| kind.group == group && kind.version == version;
        served.by_resource.get(plural)?.iter().find(|storage| is_it(storage.kind())).cloned()
    }

    /// The rows of all served kinds, those included that are answered and not stored.
    pub fn rows(&self) -> Arc<[&'static Kind]> {
        Arc::clone(&self.0.load().rows)
    }

    /// Whether a built-in kind is served.
    pub fn serves(&self, kind: &Kind) -> bool {
        self.0.load().rows.iter().any(|row| row.gvr() == kind.gvr())
    }

    /// Tells of a resource by these rows, which may say less than what is served.
    pub fn tell(&self, group: &str, plural: &str, rows: &[&'static Kind]) {
        self.0.rcu(|served| {
            let others =
                served.rows.iter().copied().filter(|kind| kind.group != group || kind.plural != plural);
            Served { rows: others.chain(rows.iter().copied()).collect(), ..Served::clone(served) }
        });
    }

    /// Serves these versions of a resource, and no others of it from now on.
    pub fn put(&self, group: &str, plural: &str, versions: Vec<Arc<Storage>>) {
        self.0.rcu(|served| {
            let mut served = Served::clone(served);
            let is_it = |kind: &Kind| kind.group == group && kind.plural == plural;
            if let Some(there) = served.by_resource.get_mut(plural) {
                there.retain(|storage| !is_it(storage.kind()));
            }
            let others = served.rows.iter().copied().filter(|kind| !is_it(kind));
            served.rows = others.chain(versions.iter().map(|storage| storage.kind())).collect();
            for storage in &versions {
                served.by_resource.entry(storage.kind().plural).or_default().push(Arc::clone(storage));
            }
            served
        });
    }
}
