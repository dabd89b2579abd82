//! The APIServices of custom resources: one for each served version of their groups, made, kept and deleted with the
//! definitions. Those that somebody else wrote are left alone.

use std::collections::BTreeSet;
use std::sync::Arc;

use http::Method;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use krate_api::{Kind, Reason, StatusError, kinds};
use krate_store::cache::{Freshness, ListQuery, Scope};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Notify;

use super::available::hear_of;
use crate::admission::lookup;
use crate::server::{AsItself, Server, path};
use crate::storage::refused;

const MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";
/// What the label says of the APIServices of built-in kinds.
const AT_START: &str = "onstart";
/// Custom resources come after all that the server brings along.
pub const GROUP_PRIORITY: i32 = 1000;
/// Among themselves they are ordered by their names.
pub const VERSION_PRIORITY: i32 = 100;

/// Of a definition what this is about.
#[derive(Deserialize)]
struct Definition {
    spec: Spec,
}

#[derive(Deserialize)]
struct Spec {
    group: String,
    versions: Vec<Version>,
}

#[derive(Deserialize)]
struct Version {
    name: String,
    served: bool,
}

/// Keeps them until the server stops.
///
/// # Errors
/// The definitions cannot be read.
pub async fn start(server: &Arc<Server>, commits: AsItself) -> Result<(), StatusError> {
    forget_unserved(server, &commits).await?;
    let changed = Arc::new(Notify::new());
    for (group, plural) in
        [("apiextensions.k8s.io", "customresourcedefinitions"), ("apiregistration.k8s.io", "apiservices")]
    {
        let changed = Arc::clone(&changed);
        hear_of(server, group, plural, move |_| changed.notify_one()).await?;
    }
    let server = Arc::clone(server);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = changed.notified() => {}
                () = server.shutdown.cancelled() => return,
            }
            if let Err(error) = sync(&server, &commits).await {
                tracing::warn!(%error, "the APIServices of custom resources could not be kept");
            }
        }
    });
    Ok(())
}

/// Deletes the APIServices of built-in versions that were served before, and are not any more.
async fn forget_unserved(server: &Server, commits: &AsItself) -> Result<(), StatusError> {
    let there = lookup::all::<APIService>(&server.kinds, "apiregistration.k8s.io", "apiservices", "").await?;
    let label = |service: &APIService| service.metadata.labels.as_ref()?.get(MANAGED).cloned();
    let rows = server.kinds.rows();
    for service in there.iter().filter(|service| label(service).is_some_and(|label| label == AT_START)) {
        let name = service.metadata.name.clone().unwrap_or_default();
        if rows.iter().any(|kind| !kind.custom && name == format!("{}.{}", kind.version, kind.group)) {
            continue;
        }
        let place = path(&kinds::API_SERVICE, "", &name);
        unless_done(commits.ask(Method::DELETE, place, None).await, Reason::NotFound)?;
    }
    Ok(())
}

async fn sync(server: &Server, commits: &AsItself) -> Result<(), StatusError> {
    let wanted = wanted(server).await?;
    let there = lookup::all::<APIService>(&server.kinds, "apiregistration.k8s.io", "apiservices", "").await?;
    let name_of = |service: &APIService| service.metadata.name.clone().unwrap_or_default();
    let names: BTreeSet<String> = there.iter().map(name_of).collect();
    for (group, version) in &wanted {
        let name = format!("{version}.{group}");
        if names.contains(&name) {
            continue;
        }
        let service = json!({
            "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
            "metadata": {"name": name, "labels": {MANAGED: "true"}},
            "spec": spec(group, version),
        });
        let made = commits.ask(Method::POST, path(&kinds::API_SERVICE, "", ""), Some(&service)).await;
        unless_done(made, Reason::AlreadyExists)?;
    }
    for service in &there {
        let is_ours =
            service.metadata.labels.as_ref().is_some_and(|l| l.get(MANAGED).is_some_and(|v| v == "true"));
        let name = name_of(service);
        let place = path(&kinds::API_SERVICE, "", &name);
        let as_wanted = wanted.iter().find(|(group, version)| name == format!("{version}.{group}"));
        match as_wanted {
            _ if !is_ours => {}
            None => unless_done(commits.ask(Method::DELETE, place, None).await, Reason::NotFound)?,
            Some((group, version)) => {
                let mut now = serde_json::to_value(service).map_err(StatusError::internal)?;
                if now["spec"] != spec(group, version) {
                    now["spec"] = spec(group, version);
                    unless_done(commits.ask(Method::PUT, place, Some(&now)).await, Reason::Conflict)?;
                }
            }
        }
    }
    Ok(())
}

/// Who came first has woken this again.
fn unless_done<T>(written: Result<T, StatusError>, reason: Reason) -> Result<(), StatusError> {
    match written {
        Err(error) if !error.is(reason) => Err(error),
        _ => Ok(()),
    }
}

fn spec(group: &str, version: &str) -> serde_json::Value {
    json!({
        "group": group, "version": version,
        "groupPriorityMinimum": GROUP_PRIORITY, "versionPriority": VERSION_PRIORITY,
    })
}

/// The group versions that definitions serve.
async fn wanted(server: &Server) -> Result<BTreeSet<(String, String)>, StatusError> {
    let Some(definitions) = server.kinds.of("apiextensions.k8s.io", "customresourcedefinitions") else {
        return Ok(BTreeSet::new());
    };
    let query = ListQuery::new(Scope::all(), Freshness::Any);
    let list = definitions.cache.list(&query).await.map_err(refused)?;
    let mut all = BTreeSet::new();
    for cached in &list.items {
        let Ok(Definition { spec }) = serde_json::from_slice(&cached.value) else { continue };
        for version in spec.versions.into_iter().filter(|version| version.served) {
            let is_it = |kind: &Kind| kind.group == spec.group && kind.version == version.name;
            if !kinds::every().any(|kind| is_it(kind) && server.kinds.serves(kind)) {
                all.insert((spec.group.clone(), version.name));
            }
        }
    }
    Ok(all)
}
