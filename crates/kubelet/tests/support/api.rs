//! A small API server: objects by path, merge patches, watches. It knows nothing of kinds.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use kube::client::Body as RequestBody;
use serde_json::{Value, json};
use tokio::sync::watch;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A change of the object at a path, as watches tell it.
#[derive(Clone)]
struct Change {
    revision: u64,
    path: String,
    event: Value,
}

struct State {
    objects: BTreeMap<String, Value>,
    revision: u64,
    /// All changes, in order: a watch begins after what the list told that came before it, whenever it is asked for.
    changes: Vec<Change>,
    /// The revision of the last one.
    changed: watch::Sender<u64>,
    /// Each change of a pod's status, in order.
    told: Vec<Value>,
}

#[derive(Clone)]
pub struct Api(Arc<Mutex<State>>);

impl Default for Api {
    fn default() -> Self {
        let state = State {
            objects: BTreeMap::new(),
            revision: 1,
            changes: vec![],
            changed: watch::Sender::new(1),
            told: vec![],
        };
        Api(Arc::new(Mutex::new(state)))
    }
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(changes) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, change) in changes {
        if change.is_null() {
            target.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut target[key], change);
        }
    }
}

impl State {
    fn put(&mut self, path: &str, mut object: Value) -> Value {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = json!(format!("uid-{}", self.revision));
        }
        let kind = if self.objects.contains_key(path) { "MODIFIED" } else { "ADDED" };
        self.objects.insert(path.to_owned(), object.clone());
        self.note(path, kind, &object);
        object
    }

    fn take(&mut self, path: &str) -> Option<Value> {
        let mut object = self.objects.remove(path)?;
        self.revision += 1;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        self.note(path, "DELETED", &object);
        Some(object)
    }

    fn note(&mut self, path: &str, kind: &str, object: &Value) {
        let event = json!({"type": kind, "object": object});
        self.changes.push(Change { revision: self.revision, path: path.to_owned(), event });
        self.changed.send_replace(self.revision);
    }

    /// The first change after a revision.
    fn after(&self, revision: u64) -> Option<&Change> {
        self.changes.get(self.changes.partition_point(|change| change.revision <= revision))
    }
}

/// Whether an object lies in a collection: `/api/v1/pods` holds `/api/v1/namespaces/n/pods/p`.
fn is_in(collection: &str, object: &str) -> bool {
    let Some((parent, _)) = object.rsplit_once('/') else { return false };
    let everywhere = || {
        let (root, plural) = collection.rsplit_once('/')?;
        let rest = parent.strip_prefix(root)?.strip_prefix("/namespaces/")?;
        (rest.split_once('/')?.1 == plural).then_some(())
    };
    parent == collection || everywhere().is_some()
}

fn selected(query: &str, object: &Value) -> bool {
    let decoded = query.replace("%3D", "=").replace("%2C", ",");
    let Some(selector) = decoded.split('&').find_map(|p| p.strip_prefix("fieldSelector=")) else {
        return true;
    };
    selector.trim_start_matches('&').split(',').all(|term| {
        let (field, value) = term.split_once('=').unwrap();
        let found = field.split('.').fold(object, |o, part| &o[part]);
        found.as_str().unwrap_or_default() == value
    })
}

fn answer(status: StatusCode, value: &Value) -> Response<Body> {
    let body = Full::new(Bytes::from(value.to_string())).boxed_unsync();
    Response::builder().status(status).header("content-type", "application/json").body(body).unwrap()
}

fn refused(code: u16, reason: &str) -> Response<Body> {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason,
        "reason": reason, "code": code, "metadata": {}});
    answer(StatusCode::from_u16(code).unwrap(), &status)
}

impl Api {
    /// A client whose requests this answers.
    pub fn client(&self) -> krate_client::Client {
        let api = self.clone();
        krate_client::in_process(tower::service_fn(move |request| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.handle(request).await) }
        }))
    }

    async fn handle(&self, request: Request<RequestBody>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let sent: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let (path, query) = (parts.uri.path().to_owned(), parts.uri.query().unwrap_or_default().to_owned());
        if path.ends_with("/token") {
            let answered = json!({"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "metadata": {},
                "spec": sent["spec"], "status": {"token": "h.e.s", "expirationTimestamp": "2099-01-01T00:00:00Z"}});
            return answer(StatusCode::CREATED, &answered);
        }
        if query.split('&').any(|p| p == "watch=true") {
            return self.watch(path, query);
        }
        let mut state = self.0.lock().unwrap();
        let bare = path.strip_suffix("/status").unwrap_or(&path).to_owned();
        match parts.method {
            Method::GET if state.objects.contains_key(&path) => answer(StatusCode::OK, &state.objects[&path]),
            Method::GET if path.rsplit('/').next().is_some_and(is_collection) => {
                let items: Vec<&Value> = state
                    .objects
                    .iter()
                    .filter(|(at, object)| is_in(&path, at) && selected(&query, object))
                    .map(|(_, object)| object)
                    .collect();
                let list = json!({"kind": "List", "apiVersion": "v1",
                    "metadata": {"resourceVersion": state.revision.to_string()}, "items": items});
                answer(StatusCode::OK, &list)
            }
            Method::POST => {
                let mut sent = sent;
                if let Some(head) = sent["metadata"]["generateName"].as_str().map(str::to_owned)
                    && sent["metadata"]["name"].is_null()
                {
                    sent["metadata"]["name"] = json!(format!("{head}{}", state.revision + 1));
                }
                let name = sent["metadata"]["name"].as_str().unwrap_or_default();
                let at = format!("{path}/{name}");
                if state.objects.contains_key(&at) {
                    return refused(409, "AlreadyExists");
                }
                answer(StatusCode::CREATED, &state.put(&at, sent))
            }
            Method::PUT if state.objects.contains_key(&bare) => {
                answer(StatusCode::OK, &state.put(&bare, sent))
            }
            Method::PATCH => {
                let Some(mut object) = state.objects.get(&bare).cloned() else {
                    return refused(404, "NotFound");
                };
                let guard = &sent["metadata"]["resourceVersion"];
                if !guard.is_null() && *guard != object["metadata"]["resourceVersion"] {
                    return refused(409, "Conflict");
                }
                merge(&mut object, &sent);
                let stored = state.put(&bare, object);
                if bare.contains("/pods/") {
                    state.told.push(stored["status"].clone());
                }
                answer(StatusCode::OK, &stored)
            }
            Method::DELETE if path.rsplit('/').next().is_some_and(is_collection) => {
                let all = state.objects.iter().filter(|(at, o)| is_in(&path, at) && selected(&query, o));
                let gone: Vec<String> = all.map(|(at, _)| at.clone()).collect();
                for at in gone {
                    state.take(&at);
                }
                let done = json!({"kind": "Status", "apiVersion": "v1", "status": "Success", "metadata": {}});
                answer(StatusCode::OK, &done)
            }
            Method::DELETE => match state.take(&path) {
                Some(object) => answer(StatusCode::OK, &object),
                None => refused(404, "NotFound"),
            },
            _ => refused(404, "NotFound"),
        }
    }

    fn watch(&self, path: String, query: String) -> Response<Body> {
        let (changed, now) = {
            let state = self.0.lock().unwrap();
            (state.changed.subscribe(), state.revision)
        };
        let since = query.split('&').find_map(|p| p.strip_prefix("resourceVersion=")?.parse().ok());
        let from = (self.clone(), changed, since.unwrap_or(now));
        let changes = futures::stream::unfold(from, |(api, mut changed, last)| async move {
            loop {
                let next = api.0.lock().unwrap().after(last).cloned();
                if let Some(change) = next {
                    let last = change.revision;
                    return Some((change, (api, changed, last)));
                }
                changed.changed().await.ok()?;
            }
        });
        let lines = changes.filter_map(move |Change { path: at, event, .. }| {
            let is_wanted = is_in(&path, &at) && selected(&query, &event["object"]);
            futures::future::ready(is_wanted.then(|| Ok(Frame::data(Bytes::from(format!("{event}\n"))))))
        });
        let body = StreamBody::new(lines).boxed_unsync();
        Response::builder().header("content-type", "application/json").body(body).unwrap()
    }

    pub fn create(&self, path: &str, object: Value) {
        self.0.lock().unwrap().put(path, object);
    }

    pub fn update(&self, path: &str, patch: &Value) {
        let mut state = self.0.lock().unwrap();
        let mut object = state.objects[path].clone();
        merge(&mut object, patch);
        state.put(path, object);
    }

    pub fn remove(&self, path: &str) {
        self.0.lock().unwrap().take(path);
    }

    pub fn get(&self, path: &str) -> Option<Value> {
        self.0.lock().unwrap().objects.get(path).cloned()
    }

    /// The objects of a collection, by their paths.
    pub fn list(&self, collection: &str) -> Vec<(String, Value)> {
        let state = self.0.lock().unwrap();
        let all = state.objects.iter().filter(|(at, _)| is_in(collection, at));
        all.map(|(at, object)| (at.clone(), object.clone())).collect()
    }

    /// All statuses of pods that were told, in order.
    pub fn told(&self) -> Vec<Value> {
        self.0.lock().unwrap().told.clone()
    }

    /// Reasons of events, in order of their writing.
    pub fn events(&self) -> Vec<(String, String)> {
        let state = self.0.lock().unwrap();
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let events = state.objects.iter().filter(|(path, _)| path.contains("/events/"));
        events.map(|(_, e)| (text(&e["reason"]), text(&e["message"]))).collect()
    }

    /// Waits until `check` finds something in the object (`null` when there is none).
    pub async fn until<T>(&self, what: &str, path: &str, check: impl Fn(&Value) -> Option<T>) -> T {
        let mut changed = self.0.lock().unwrap().changed.subscribe();
        let waiting = async {
            loop {
                let found = self.get(path).unwrap_or(Value::Null);
                if let Some(value) = check(&found) {
                    return value;
                }
                let _ = tokio::time::timeout(Duration::from_secs(1), changed.changed()).await;
            }
        };
        if let Ok(value) = tokio::time::timeout(super::SOON, waiting).await {
            return value;
        }
        let last = self.get(path).unwrap_or(Value::Null);
        panic!("not in time: {what}; {last:#}; events {:#?}", self.events())
    }
}

fn is_collection(name: &str) -> bool {
    matches!(
        name,
        "pods"
            | "nodes"
            | "services"
            | "configmaps"
            | "secrets"
            | "leases"
            | "events"
            | "csidrivers"
            | "resourceslices"
            | "clustertrustbundles"
            | "podcertificaterequests"
    )
}
