//! Brings definitions to life: gives them their names and conditions, serves their kinds, and clears their objects away
//! when they go (upstream's naming, establishing and finalizing controllers).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use http::Method;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionCondition, CustomResourceDefinitionNames,
    CustomResourceDefinitionSpec,
};
use krate_api::{FieldErrors, FieldPath, Kind, Reason, StatusError};
use krate_store::cache::{
    CacheEvent, Freshness, Head, ListQuery, Object as Cached, Scope, Start, WatchQuery,
};
use parking_lot::Mutex;

use super::conversion::{Converting, Webhook};
use super::registry::{Version, schemas};
use super::{CLEANUP, approval, names, row};
use crate::registry::admissionregistration::webhook::ca_bundle;
use crate::registry::erased::{Object, Registry};
use crate::server::{AsItself, Server, path};
use crate::storage::{Storage, refused};

const GROUP: &str = "apiextensions.k8s.io";
const PLURAL: &str = "customresourcedefinitions";

/// What is served for a definition.
struct Installed {
    spec: CustomResourceDefinitionSpec,
    /// The names that were accepted: they may come after the spec that wants them.
    names: Option<CustomResourceDefinitionNames>,
    names_at: (String, String),
}

impl Installed {
    fn is_of(&self, definition: &CustomResourceDefinition) -> bool {
        self.spec == definition.spec && self.names.as_ref() == accepted_names(definition)
    }
}

fn accepted_names(definition: &CustomResourceDefinition) -> Option<&CustomResourceDefinitionNames> {
    definition.status.as_ref()?.accepted_names.as_ref()
}

/// The task that does it.
pub struct Establisher {
    server: Arc<Server>,
    commits: AsItself,
    definitions: Arc<Storage>,
    installed: Mutex<HashMap<String, Installed>>,
    leaving: Arc<Mutex<HashSet<String>>>,
}

impl Establisher {
    /// Serves what is defined already, and goes on with what comes, until the server stops.
    ///
    /// # Errors
    /// The definitions cannot be read.
    pub async fn start(server: &Arc<Server>, commits: AsItself) -> Result<(), StatusError> {
        let Some(definitions) = server.kinds.of(GROUP, PLURAL) else { return Ok(()) };
        let establisher = Establisher {
            server: Arc::clone(server),
            commits,
            definitions,
            installed: Mutex::default(),
            leaving: Arc::default(),
        };
        let start = || WatchQuery::new(Scope::all(), Start::State(Freshness::Latest));
        let mut watcher = establisher.definitions.cache.watch(start()).await.map_err(refused)?;
        while let Some(event) = watcher.try_next() {
            establisher.hear(&event).await;
        }
        let shutdown = server.shutdown.clone();
        tokio::spawn(async move {
            loop {
                let event = tokio::select! {
                    event = watcher.next() => event,
                    () = shutdown.cancelled() => return,
                };
                match event {
                    Some(event) => establisher.hear(&event).await,
                    None => match establisher.definitions.cache.watch(start()).await {
                        Ok(fresh) => watcher = fresh,
                        Err(_) => return,
                    },
                }
            }
        });
        Ok(())
    }

    async fn hear(&self, event: &CacheEvent) {
        let Some((cached, gone)) = event.about() else { return };
        if gone {
            self.uninstall(&cached.head).await;
            // Whoever waited for its names gets them now.
            for definition in self.all().await {
                if !is_true(&definition, "NamesAccepted") {
                    self.tend(definition).await;
                }
            }
        } else if let Some(definition) = self.read(cached) {
            self.tend(definition).await;
        }
    }

    /// A definition as it is at its revision: what is written of it holds for that state alone.
    fn read(&self, cached: &Cached) -> Option<CustomResourceDefinition> {
        let object = self.definitions.registry.decode(&cached.value).ok()?;
        let mut definition = <dyn Object>::is::<CustomResourceDefinition>(&*object).cloned()?;
        definition.metadata.resource_version = Some(cached.revision.to_string());
        Some(definition)
    }

    async fn all(&self) -> Vec<CustomResourceDefinition> {
        let query = ListQuery::new(Scope::all(), Freshness::Latest);
        let list = self.definitions.cache.list(&query).await;
        list.map(|list| list.items.iter().filter_map(|o| self.read(o)).collect()).unwrap_or_default()
    }

    /// Brings a definition one step further. The write that this makes comes back as an event.
    async fn tend(&self, definition: CustomResourceDefinition) {
        let name = definition.metadata.name.clone().unwrap_or_default();
        let result = if definition.metadata.deletion_timestamp.is_some() {
            Box::pin(self.install(&definition)).await.map(|()| {
                self.close(&definition);
                self.clear_away(definition);
            })
        } else {
            Box::pin(self.establish(definition)).await
        };
        if let Err(error) = result
            && !error.is(Reason::Conflict)
            && !error.is(Reason::NotFound)
        {
            tracing::warn!(definition = name, %error, "a custom resource could not be served");
        }
    }

    /// Makes nothing new of a kind that goes, and tells so.
    fn close(&self, definition: &CustomResourceDefinition) {
        let (group, plural) = (&definition.spec.group, &definition.spec.names.plural);
        let served = self.server.kinds.versions(group, plural);
        for storage in &served {
            storage.close();
        }
        let rows: Vec<&'static Kind> = served.iter().map(|storage| row::closing(storage.kind())).collect();
        self.server.kinds.tell(group, plural, &rows);
    }

    async fn establish(&self, mut definition: CustomResourceDefinition) -> Result<(), StatusError> {
        let before = definition.status.clone();
        let verdict = names::decide(&definition, &self.all().await);
        let accepted = verdict.conflict.is_none();
        definition.status.get_or_insert_default().accepted_names = Some(verdict.accepted);
        match verdict.conflict {
            Some((reason, message)) => {
                set(&mut definition, "NamesAccepted", false, reason, &message);
                if !is_true(&definition, "Established") {
                    set(&mut definition, "Established", false, "NotAccepted", "not all names are accepted");
                }
            }
            None => set(&mut definition, "NamesAccepted", true, "NoConflicts", "no conflicts found"),
        }
        if accepted && !is_true(&definition, "Established") {
            let (holds, reason, message) = if has_authorities(&definition) {
                (true, "InitialNamesAccepted", "the initial names have been accepted")
            } else {
                (false, "InvalidCABundle", "The conversion webhook CABundle is invalid")
            };
            set(&mut definition, "Established", holds, reason, message);
        }
        if let Some((holds, reason, message)) = approval::condition(&definition) {
            set(&mut definition, "KubernetesAPIApprovalPolicyConformant", holds, reason, &message);
        }
        // Served before it is said to be: who waits for the condition may ask at once.
        if is_true(&definition, "Established") {
            self.install(&definition).await?;
        }
        if definition.status != before {
            self.write(&definition, "/status").await?;
        }
        Ok(())
    }

    async fn write(&self, definition: &CustomResourceDefinition, end: &str) -> Result<(), StatusError> {
        let name = definition.metadata.name.as_deref().unwrap_or_default();
        let place = format!("{}{end}", path(self.definitions.kind(), "", name));
        let body = serde_json::to_value(definition).map_err(StatusError::internal)?;
        self.commits.ask(Method::PUT, place, Some(&body)).await.map(drop)
    }

    /// Serves the versions of a definition as it is now.
    async fn install(&self, definition: &CustomResourceDefinition) -> Result<(), StatusError> {
        let name = definition.metadata.name.clone().unwrap_or_default();
        let unchanged = |i: &Installed| i.is_of(definition);
        if !is_true(definition, "Established") || self.installed.lock().get(&name).is_some_and(unchanged) {
            return Ok(());
        }
        let Some(stored) = definition.spec.versions.iter().find(|v| v.storage) else { return Ok(()) };
        let backend = Arc::clone(&self.server.backend);
        let (schemas, webhook) = (schemas(definition), Webhook::of(definition, &self.server.kinds));
        let webhook = webhook.map(Arc::new);
        let registry =
            |version| -> Arc<dyn Registry> { Arc::new(Version::new(definition, version, &schemas)) };
        let converting = |storage: Storage| {
            let Some(webhook) = &webhook else { return Arc::new(storage) };
            let (registry, to) =
                (Arc::clone(&storage.registry), format!("{}/{}", definition.spec.group, stored.name));
            Arc::new(storage.converting(Converting::new(Arc::clone(webhook), registry, to)))
        };
        let first = Storage::open(registry(stored), &self.server.cache, Arc::clone(&backend));
        let first = converting(first.await.map_err(StatusError::internal)?);
        let mut served = Vec::new();
        for version in definition.spec.versions.iter().filter(|v| v.served) {
            served.push(if version.storage {
                Arc::clone(&first)
            } else {
                let cache = Arc::clone(&first.cache);
                converting(Storage::shared(registry(version), cache, Arc::clone(&backend)))
            });
        }
        let names_at = (definition.spec.group.clone(), first.kind().plural.to_owned());
        self.server.kinds.put(&names_at.0, &names_at.1, served);
        self.server.openapi.forget();
        let (spec, names) = (definition.spec.clone(), accepted_names(definition).cloned());
        self.installed.lock().insert(name, Installed { spec, names, names_at });
        Ok(())
    }

    async fn uninstall(&self, head: &Head) {
        let Some(installed) = self.installed.lock().remove(head.name.as_ref()) else { return };
        let (group, plural) = installed.names_at;
        self.server.kinds.put(&group, &plural, Vec::new());
        self.server.openapi.forget();
        self.server.cache.remove(&format!("/registry/{group}/{plural}")).await;
    }

    /// Deletes the objects of a definition that goes, then lets it go.
    fn clear_away(&self, definition: CustomResourceDefinition) {
        let held = definition.metadata.finalizers.iter().flatten().any(|f| f == CLEANUP);
        let uid = definition.metadata.uid.clone().unwrap_or_default();
        if !held || !self.leaving.lock().insert(uid.clone()) {
            return;
        }
        let storage = is_true(&definition, "Established").then(|| self.storage(&definition)).flatten();
        let (commits, leaving) = (self.commits.clone(), Arc::clone(&self.leaving));
        let row = self.definitions.kind();
        let shutdown = self.server.shutdown.clone();
        tokio::spawn(async move {
            let name = definition.metadata.name.as_deref().unwrap_or_default();
            let work = clear(&commits, row, name, storage.as_deref());
            tokio::select! {
                done = work => {
                    if let Err(error) = done {
                        tracing::warn!(%error, "the objects of a definition could not be cleared away");
                    }
                }
                () = shutdown.cancelled() => {}
            }
            leaving.lock().remove(&uid);
        });
    }

    /// The storage of the version that is stored, if it is served: what is there needs no conversion to be deleted.
    fn storage(&self, definition: &CustomResourceDefinition) -> Option<Arc<Storage>> {
        let (kinds, spec) = (&self.server.kinds, &definition.spec);
        let stored = spec.versions.iter().find(|version| version.storage);
        stored
            .and_then(|version| kinds.at(&spec.group, &version.name, &spec.names.plural))
            .or_else(|| kinds.of(&spec.group, &spec.names.plural))
    }
}

/// How the condition `Terminating` is told.
struct Ending {
    holds: bool,
    reason: &'static str,
    message: String,
}

impl Ending {
    fn new(holds: bool, reason: &'static str, message: impl Into<String>) -> Self {
        Ending { holds, reason, message: message.into() }
    }
}

/// What a definition says from the moment that it is deleted.
pub fn mark_terminating(definition: &mut CustomResourceDefinition) {
    let message = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
    set(definition, "Terminating", true, "InstanceDeletionPending", message);
}

/// Deletes the objects of a definition, telling in it how far that is, and lets it go.
async fn clear(
    commits: &AsItself,
    row: &'static Kind,
    name: &str,
    storage: Option<&Storage>,
) -> Result<(), StatusError> {
    let begun = Ending::new(true, "InstanceDeletionInProgress", "CustomResource deletion is in progress");
    tell(commits, row, name, &begun, false).await?;
    let ending = match storage {
        None => Ending::new(false, "NeverEstablished", "resource was never established"),
        Some(storage) => {
            if let Err(error) = empty(storage, commits).await {
                let message = format!("could not issue all deletes: {error}");
                tell(commits, row, name, &Ending::new(true, "InstanceDeletionFailed", message), false)
                    .await?;
                return Err(error);
            }
            Ending::new(false, "InstanceDeletionCompleted", "removed all instances")
        }
    };
    tell(commits, row, name, &ending, true).await
}

/// Deletes all objects of a kind and returns when none is left.
async fn empty(storage: &Storage, commits: &AsItself) -> Result<(), StatusError> {
    let start = WatchQuery::new(Scope::all(), Start::State(Freshness::Latest));
    let mut watcher = storage.cache.watch(start).await.map_err(refused)?;
    loop {
        let query = ListQuery::new(Scope::all(), Freshness::Latest);
        let list = storage.cache.list(&query).await.map_err(refused)?;
        if list.items.is_empty() {
            return Ok(());
        }
        for object in &list.items {
            let there = storage.decode(&object.value, object.revision)?.object;
            if there.meta().deletion_timestamp.is_none() {
                let place = path(storage.kind(), &object.head.namespace, &object.head.name);
                match commits.ask(Method::DELETE, place, None).await {
                    Err(error) if !error.is(Reason::NotFound) => return Err(error),
                    _ => {}
                }
            }
        }
        // Somebody else's finalizer may take its time.
        if watcher.next().await.is_none() {
            return Ok(());
        }
    }
}

/// Tells how far the end of a definition is and, with `gone`, takes the finalizer away.
async fn tell(
    commits: &AsItself,
    row: &'static Kind,
    name: &str,
    ending: &Ending,
    gone: bool,
) -> Result<(), StatusError> {
    let place = path(row, "", name);
    loop {
        let there = commits.ask(Method::GET, place.clone(), None).await?;
        let mut definition: CustomResourceDefinition =
            serde_json::from_value(there).map_err(StatusError::internal)?;
        set(&mut definition, "Terminating", ending.holds, ending.reason, &ending.message);
        if gone {
            definition.metadata.finalizers.get_or_insert_default().retain(|f| f != CLEANUP);
        }
        let body = serde_json::to_value(&definition).map_err(StatusError::internal)?;
        match commits.ask(Method::PUT, format!("{place}/status"), Some(&body)).await {
            Err(error) if error.is(Reason::Conflict) => {}
            done => return done.map(drop),
        }
    }
}

/// Whether the authorities of a definition's webhook can be read.
fn has_authorities(definition: &CustomResourceDefinition) -> bool {
    let webhook = definition.spec.conversion.as_ref().and_then(|c| c.webhook.as_ref());
    let bundle = webhook.and_then(|w| w.client_config.as_ref()?.ca_bundle.as_ref());
    let mut errors = FieldErrors::new();
    if let Some(bundle) = bundle.filter(|bundle| !bundle.0.is_empty()) {
        ca_bundle(&bundle.0, &FieldPath::new(""), &mut errors);
    }
    errors.is_empty()
}

fn is_true(definition: &CustomResourceDefinition, condition: &str) -> bool {
    let conditions = definition.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == condition && c.status == "True")
}

fn set(definition: &mut CustomResourceDefinition, condition: &str, holds: bool, reason: &str, message: &str) {
    let conditions = definition.status.get_or_insert_default().conditions.get_or_insert_default();
    let status = if holds { "True" } else { "False" };
    let there = conditions.iter_mut().find(|c| c.type_ == condition);
    let since = there.as_ref().filter(|c| c.status == status).and_then(|c| c.last_transition_time.clone());
    let wanted = CustomResourceDefinitionCondition {
        type_: condition.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: since.or_else(|| Some(crate::path::now())),
        ..CustomResourceDefinitionCondition::default()
    };
    match there {
        Some(there) => *there = wanted,
        None => conditions.push(wanted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_served_changes_with_the_names_that_are_accepted() {
        let mut definition = CustomResourceDefinition::default();
        definition.spec.group = "example.com".to_owned();
        let installed = Installed {
            spec: definition.spec.clone(),
            names: None,
            names_at: ("example.com".to_owned(), "widgets".to_owned()),
        };
        assert!(installed.is_of(&definition));
        let short_names = Some(vec!["wid".to_owned()]);
        let names = CustomResourceDefinitionNames { short_names, ..CustomResourceDefinitionNames::default() };
        definition.status.get_or_insert_default().accepted_names = Some(names);
        assert!(!installed.is_of(&definition));
    }
}
