//! Feeds the graph: one watch of metadata for each served resource. New kinds are watched as soon as their definition
//! is served.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use futures::StreamExt;
use krate_client::CancellationToken;
use krate_metrics::Stability::Alpha;
use kube::Api;
use kube::runtime::{WatchStreamExt, watcher};
use prometheus::IntCounter;
use tokio::sync::{Notify, watch};

use super::Shared;
use super::graph::{Object, Uid};
use super::metadata::Metadata;
use crate::discovery::{Served, deletable};
use crate::metrics::FAMILIES;

/// Events own nothing and are owned by nothing, and there are many.
const IGNORED: [&str; 2] = ["events", "events.events.k8s.io"];
/// Whose objects say which other resources there are.
const DEFINITIONS: [&str; 2] =
    ["customresourcedefinitions.apiextensions.k8s.io", "apiservices.apiregistration.k8s.io"];

/// Times that it could not be told which resources are served.
static SYNC_ERRORS: LazyLock<IntCounter> = LazyLock::new(|| {
    FAMILIES.counter(
        Alpha,
        "garbagecollector_controller_resources_sync_error_total",
        "Times that it could not be told which resources are served.",
    )
});

/// A watch that runs.
struct Monitor {
    stop: CancellationToken,
    synced: watch::Receiver<bool>,
}

/// How long the collector waits to know all objects. A resource that cannot be listed, maybe because the server that an
/// `APIService` names is down, holds up no longer than that.
const PATIENCE: Duration = Duration::from_secs(30);

/// Watches all resources until `shutdown`; is done when each has been listed once, or could not be for a while.
pub async fn start(shared: Shared, shutdown: CancellationToken) {
    let changed = Arc::new(Notify::new());
    let mut monitors = HashMap::new();
    refresh(&shared, &mut monitors, &changed, &shutdown).await;
    let listed = async {
        for monitor in monitors.values_mut() {
            // The sender is dropped only with the watch, at the end.
            let _ = monitor.synced.wait_for(|synced| *synced).await;
        }
    };
    if tokio::time::timeout(PATIENCE, listed).await.is_err() {
        let missing = monitors.iter().filter(|(_, monitor)| !*monitor.synced.borrow());
        let missing: Vec<String> = missing.map(|(served, _)| served.name()).collect();
        tracing::warn!(?missing, "not all resources could be listed; garbage is collected without them");
    }
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = changed.notified() => refresh(&shared, &mut monitors, &changed, &shutdown).await,
            }
        }
    });
}

/// Brings the monitors in line with what is served, trying until the server tells.
async fn refresh(
    shared: &Shared,
    monitors: &mut HashMap<Served, Monitor>,
    changed: &Arc<Notify>,
    shutdown: &CancellationToken,
) {
    let mut delay = Duration::from_millis(50);
    let served = loop {
        match deletable(&shared.client).await {
            Ok(served) => break served,
            Err(error) => {
                SYNC_ERRORS.inc();
                tracing::debug!(%error, "the served resources are not known; trying again");
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(delay) => delay = (delay * 2).min(Duration::from_secs(5)),
        }
    };
    *shared.kinds.write() =
        served.iter().map(|s| ((s.resource.group.clone(), s.resource.kind.clone()), s.clone())).collect();
    let wanted: HashSet<&Served> =
        served.iter().filter(|s| s.watches && !IGNORED.contains(&s.name().as_str())).collect();
    monitors.retain(|served, monitor| {
        let keep = wanted.contains(served);
        if !keep {
            monitor.stop.cancel();
        }
        keep
    });
    for served in wanted {
        if monitors.contains_key(served) {
            continue;
        }
        let (tell, synced) = watch::channel(false);
        let stop = shutdown.child_token();
        let changed = DEFINITIONS.contains(&served.name().as_str()).then(|| Arc::clone(changed));
        let following = follow(shared.clone(), served.clone(), tell, changed);
        tokio::spawn(until(stop.clone(), following));
        monitors.insert(served.clone(), Monitor { stop, synced });
    }
}

async fn until(stop: CancellationToken, following: impl Future<Output = ()>) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = following => {}
    }
}

async fn follow(shared: Shared, served: Served, synced: watch::Sender<bool>, changed: Option<Arc<Notify>>) {
    let api = Api::<Metadata>::all_with(shared.client.clone(), &served.resource);
    let mut stream = watcher(api, watcher::Config::default()).default_backoff().boxed();
    let version: Arc<str> = served.resource.api_version.as_str().into();
    let kind: Arc<str> = served.resource.kind.as_str().into();
    let mut listed = HashSet::new();
    while let Some(event) = stream.next().await {
        let work = match event {
            Ok(watcher::Event::Init) => {
                listed.clear();
                continue;
            }
            Ok(watcher::Event::InitApply(object)) => {
                let object = Object::new(&version, &kind, &object.0);
                listed.insert(Uid::clone(&object.uid));
                shared.graph.lock().observe(object)
            }
            Ok(watcher::Event::InitDone) => {
                synced.send_replace(true);
                shared.graph.lock().retain(&version, &kind, &std::mem::take(&mut listed))
            }
            Ok(watcher::Event::Apply(object)) => {
                shared.graph.lock().observe(Object::new(&version, &kind, &object.0))
            }
            Ok(watcher::Event::Delete(object)) => {
                shared.graph.lock().remove(object.0.uid.as_deref().unwrap_or_default())
            }
            Err(error) => {
                tracing::debug!(%error, resource = served.name(), "watch failed; trying again");
                continue;
            }
        };
        shared.add(work);
        if let Some(changed) = &changed
            && *synced.borrow()
        {
            changed.notify_one();
        }
    }
}
