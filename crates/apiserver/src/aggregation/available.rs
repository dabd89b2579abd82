//! Whether those whom APIServices name can be reached, told in the condition `Available` of each: by upstream's checks,
//! its reasons and its messages. What cannot be reached is not asked.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use http::Method;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use krate_api::{Reason, StatusError, kinds};
use krate_store::cache::{CacheEvent, Freshness, Head, Kind as Change, Scope, Start, WatchQuery};
use serde_json::{Value, json};

use super::metrics::METRICS;
use super::remote::Remote;
use super::{discovery, openapi, register};
use crate::admission::lookup;
use crate::reach;
use crate::server::{AsItself, Server, path};
use crate::storage::refused;

/// How often what was reached is asked again, and the longest time between questions to what was not.
const RESYNC: Duration = Duration::from_secs(30);
const FIRST_RETRY: Duration = Duration::from_millis(5);
/// How many questions are put at a time: to several servers behind one Service, if there are.
const ATTEMPTS: usize = 5;

/// What is told of an APIService.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Verdict {
    status: &'static str,
    reason: &'static str,
    message: String,
}

impl Verdict {
    fn no(reason: &'static str, message: String) -> Self {
        Verdict { status: "False", reason, message }
    }
}

/// Follows APIServices and what is behind them until the server stops.
///
/// # Errors
/// They cannot be read.
pub async fn start(server: &Arc<Server>, commits: &AsItself) -> Result<(), StatusError> {
    let keeper = (Arc::clone(server), commits.clone());
    server
        .follow::<APIService>("apiregistration.k8s.io", "apiservices", move |head, service| {
            tend(&keeper.0, &keeper.1, &head.name, service);
        })
        .await?;
    let woken = Arc::clone(server);
    hear_of(server, "", "services", move |head| wake(&woken, &head.namespace, &head.name)).await?;
    let woken = Arc::clone(server);
    let by_slice = move |head: &Head| {
        if let Some(name) = head.label(reach::SERVICE_NAME) {
            wake(&woken, &head.namespace, name);
        }
    };
    hear_of(server, "discovery.k8s.io", "endpointslices", by_slice).await?;
    register::start(server, commits.clone()).await
}

/// Tells of every change of a kind's objects from now on, without reading them.
pub(super) async fn hear_of(
    server: &Arc<Server>,
    group: &str,
    plural: &str,
    told: impl Fn(&Head) + Send + 'static,
) -> Result<(), StatusError> {
    let Some(storage) = server.kinds.of(group, plural) else { return Ok(()) };
    let start = || WatchQuery::new(Scope::all(), Start::State(Freshness::Any));
    let mut watcher = storage.cache.watch(start()).await.map_err(refused)?;
    let shutdown = server.shutdown.clone();
    tokio::spawn(async move {
        loop {
            let event = tokio::select! {
                event = watcher.next() => event,
                () = shutdown.cancelled() => return,
            };
            match event {
                Some(CacheEvent::Initial(object)) => told(&object.head),
                Some(CacheEvent::Change(Change::Deleted, change)) => {
                    change.prev.iter().for_each(|object| told(&object.head));
                }
                Some(CacheEvent::Change(_, change)) => {
                    change.current.iter().for_each(|object| told(&object.head));
                }
                Some(CacheEvent::Bookmark { .. }) => {}
                None => match storage.cache.watch(start()).await {
                    Ok(fresh) => watcher = fresh,
                    Err(_) => return,
                },
            }
        }
    });
    Ok(())
}

fn wake(server: &Server, namespace: &str, name: &str) {
    for remote in server.aggregation.all().values() {
        let service = remote.service();
        if (service.0, service.1) == (namespace, name) {
            remote.wake.notify_one();
        }
    }
}

/// Takes note of an APIService as it is now.
fn tend(server: &Arc<Server>, commits: &AsItself, name: &str, service: Option<&APIService>) {
    let aggregation = &server.aggregation;
    let known = aggregation.all().get(name).cloned();
    if let (Some(known), Some(service)) = (&known, service)
        && Some(&known.spec) == service.spec.as_ref()
    {
        return;
    }
    if let Some(known) = &known {
        known.gone.cancel();
    }
    let gone = server.shutdown.child_token();
    let remote = service.and_then(|service| Remote::new(service, aggregation.own.as_ref(), gone));
    let remote = remote.map(Arc::new);
    if service.is_some() && remote.is_none() {
        aggregation.local.lock().insert(name.to_owned());
    } else {
        aggregation.local.lock().remove(name);
    }
    if known.is_some() || remote.is_some() {
        aggregation.put(name, remote.clone());
        server.openapi.forget();
    }
    match (remote, service) {
        (Some(remote), _) => {
            tokio::spawn(watch_over(Arc::clone(server), commits.clone(), remote));
        }
        (None, Some(service)) if !says(service, &local()) => {
            let (commits, name) = (commits.clone(), name.to_owned());
            tokio::spawn(async move {
                if let Err(error) = tell(&commits, &name, &local()).await {
                    tracing::warn!(name, %error, "the condition of an APIService could not be told");
                }
            });
        }
        _ => {}
    }
}

fn local() -> Verdict {
    let message = "Local APIServices are always available".to_owned();
    Verdict { status: "True", reason: "Local", message }
}

fn says(service: &APIService, verdict: &Verdict) -> bool {
    let mut conditions = service.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.any(|c| {
        c.type_ == "Available" && c.status == verdict.status && c.reason.as_deref() == Some(verdict.reason)
    })
}

/// Asks again and again, whenever something about it changed and from time to time.
async fn watch_over(server: Arc<Server>, commits: AsItself, remote: Arc<Remote>) {
    let gone = remote.gone.clone();
    let mut retry = FIRST_RETRY;
    let work = async {
        loop {
            let verdict = check(&server, &remote).await;
            let available = verdict.status == "True";
            if available {
                discovery::refresh(&server.kinds, &remote).await;
                if openapi::refresh(&server.kinds, &remote).await {
                    server.openapi.forget();
                }
            } else {
                remote.said.lock().fresh = false;
            }
            // Served before it is said to be, and said not to be before it is refused.
            remote.set_available(available);
            let told = tell(&commits, &remote.name, &verdict).await;
            let failed = verdict.reason == "FailedDiscoveryCheck" || told.is_err();
            if let Err(error) = told
                && !error.is(Reason::NotFound)
            {
                tracing::warn!(name = remote.name, %error, "the condition of an APIService could not be told");
            }
            let pause = if failed { retry } else { RESYNC };
            retry = if failed { (retry * 2).min(RESYNC) } else { FIRST_RETRY };
            // Woken, or its time is over.
            let _ = tokio::time::timeout(pause, remote.wake.notified()).await;
        }
    };
    tokio::select! {
        () = work => {}
        () = gone.cancelled() => {}
    }
}

async fn check(server: &Server, remote: &Remote) -> Verdict {
    let (namespace, name, port) = remote.service();
    let found = lookup::find::<Service>(&server.kinds, "", "services", namespace, name).await;
    let spec = match found {
        Ok(Some(service)) => service.spec.unwrap_or_default(),
        Ok(None) => {
            return Verdict::no("ServiceNotFound", format!("service/{name} in {namespace:?} is not present"));
        }
        Err(error) => {
            let message = format!("service/{name} in {namespace:?} cannot be checked due to: {error}");
            return Verdict { status: "Unknown", reason: "ServiceAccessError", message };
        }
    };
    if spec.type_.as_deref().unwrap_or("ClusterIP") == "ClusterIP" {
        let ports = spec.ports.unwrap_or_default();
        let Some(wanted) = ports.iter().find(|p| p.port == port) else {
            let message = format!("service/{name} in {namespace:?} is not listening on port {port}");
            return Verdict::no("ServicePortError", message);
        };
        let wanted = wanted.name.as_deref().unwrap_or_default();
        let slices = match reach::slices(&server.kinds, namespace, name).await {
            Ok(slices) => slices,
            Err(error) => {
                let message = format!("service/{name} in {namespace:?} cannot be checked due to: {error}");
                return Verdict { status: "Unknown", reason: "EndpointsAccessError", message };
            }
        };
        if slices.is_empty() {
            let message = format!("cannot find endpointslices for service/{name} in {namespace:?}");
            return Verdict::no("EndpointsNotFound", message);
        }
        if !slices
            .iter()
            .any(|slice| reach::port_of(slice, wanted).is_some() && reach::ready(slice).next().is_some())
        {
            let message = format!(
                "endpointslices for service/{name} in {namespace:?} have no addresses with port name {wanted:?}"
            );
            return Verdict::no("MissingEndpoints", message);
        }
    }
    match answers(server, remote).await {
        Ok(()) => Verdict { status: "True", reason: "Passed", message: "all checks passed".to_owned() },
        Err(why) => Verdict::no("FailedDiscoveryCheck", why),
    }
}

/// Whether one of several questions is answered.
async fn answers(server: &Server, remote: &Remote) -> Result<(), String> {
    let path = remote.path();
    let ask = || async {
        let url = remote.url(&server.kinds, &path).await?;
        let answered = remote.ask(&server.kinds, &path, "*/*", true).await;
        let why = match answered {
            Ok((code, ..)) if code.is_success() => return Ok(()),
            Ok((code, ..)) => format!("bad status from {url}: {}", code.as_u16()),
            Err(why) => why,
        };
        Err(format!("failing or missing response from {url}: {why}"))
    };
    let mut asked: FuturesUnordered<_> = (0..ATTEMPTS).map(|_| ask()).collect();
    let mut last = Ok(());
    while let Some(answered) = asked.next().await {
        last = answered;
        if last.is_ok() {
            break;
        }
    }
    last
}

/// Writes the condition, if it is not what is there.
async fn tell(commits: &AsItself, name: &str, verdict: &Verdict) -> Result<(), StatusError> {
    let place = path(&kinds::API_SERVICE, "", name);
    loop {
        let mut service = commits.ask(Method::GET, place.clone(), None).await?;
        let was_available = is_available(&service);
        if !set(&mut service, verdict) {
            return Ok(());
        }
        match commits.ask(Method::PUT, format!("{place}/status"), Some(&service)).await {
            Err(error) if error.is(Reason::Conflict) => {}
            Err(error) => return Err(error),
            Ok(_) => {
                if was_available && !is_available(&service) {
                    METRICS.unavailable(name, verdict.reason);
                }
                return Ok(());
            }
        }
    }
}

fn is_available(service: &Value) -> bool {
    let mut conditions = service["status"]["conditions"].as_array().into_iter().flatten();
    conditions.any(|condition| condition["type"] == "Available" && condition["status"] == "True")
}

/// Whether this changed anything.
fn set(service: &mut Value, verdict: &Verdict) -> bool {
    let now = json!(crate::path::now());
    let mut wanted = json!({
        "type": "Available", "status": verdict.status, "reason": verdict.reason, "message": verdict.message,
        "lastTransitionTime": now,
    });
    if !service["status"]["conditions"].is_array() {
        service["status"] = json!({"conditions": []});
    }
    let Some(conditions) = service["status"]["conditions"].as_array_mut() else { return false };
    match conditions.iter_mut().find(|c| c["type"] == "Available") {
        None => conditions.push(wanted),
        Some(there) => {
            if there["status"] == wanted["status"] {
                wanted["lastTransitionTime"] = there["lastTransitionTime"].clone();
            }
            if *there == wanted {
                return false;
            }
            *there = wanted;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_keeps_its_time_for_as_long_as_it_holds() {
        let mut service = json!({});
        let not_there = Verdict::no("ServiceNotFound", "a".to_owned());
        assert!(set(&mut service, &not_there));
        assert!(!set(&mut service, &not_there), "nothing is new");
        service["status"]["conditions"][0]["lastTransitionTime"] = "2020-01-01T00:00:00Z".into();
        assert!(set(&mut service, &Verdict::no("MissingEndpoints", "b".to_owned())));
        let condition = &service["status"]["conditions"][0];
        assert_eq!(condition["lastTransitionTime"], "2020-01-01T00:00:00Z");
        assert_eq!(condition["reason"], "MissingEndpoints");
        assert!(set(&mut service, &local()));
        assert_ne!(service["status"]["conditions"][0]["lastTransitionTime"], "2020-01-01T00:00:00Z");
        assert_eq!(service["status"]["conditions"].as_array().map(Vec::len), Some(1));
    }
}
