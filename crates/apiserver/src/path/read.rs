//! Get, list and watch: bytes from the cache.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{BufMut as _, Bytes, BytesMut};
use http::StatusCode;
use krate_api::{FieldErrors, FieldPath, FieldSelector, Gvk, LabelSelector, StatusError, protobuf, schema};
use krate_store::Revision;
use krate_store::cache::{
    CacheError, CacheEvent, Freshness, Head, ListQuery, Scope, Selector, Start, WatchQuery,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::call::Call;
use super::shape;
use crate::http::{self as wire, Form, Reply, Shape};
use crate::request::RequestInfo;
use crate::storage::refused;

/// A watch that names no end ends by chance between these (upstream's `--min-request-timeout`).
const WATCH_AT_LEAST: u64 = 1800;

/// `GET` of an object.
pub async fn get(call: Call) -> Result<Reply, StatusError> {
    let freshness = match revision(&call, "resourceVersion")? {
        None => Freshness::Latest,
        Some(Revision::ZERO) => Freshness::Any,
        Some(at) => Freshness::NotOlderThan(at),
    };
    let cached = call.storage.read(&call.info.namespace, &call.info.name, freshness).await?;
    call.object(StatusCode::OK, &call.storage.sent(&cached.bytes))
}

fn revision(call: &Call, name: &str) -> Result<Option<Revision>, StatusError> {
    let Some(text) = call.query.get(name) else { return Ok(None) };
    text.parse().map(|n| Some(Revision(n))).map_err(|_| {
        let fault =
            format!("{name}: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax");
        if call.info.verb == "watch" {
            // Upstream opens the store's watch with it, and tells that failure as its own.
            let mut error = StatusError::internal("");
            (error.0.message, error.0.reason, error.0.details) = (Some(fault), None, None);
            return error;
        }
        StatusError::bad_request(format!("invalid resource version: {fault}"))
    })
}

/// A number of the query; nothing for what is not there.
fn number(call: &Call, name: &str) -> Result<Option<i64>, StatusError> {
    let Some(text) = call.query.get(name).filter(|text| !text.is_empty()) else { return Ok(None) };
    text.parse()
        .map(Some)
        .map_err(|_| StatusError::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax")))
}

/// What the options of a list may be beside one another (KEP-2340, KEP-3157). Tells whether the revision is to be exact.
fn check_list(call: &Call) -> Result<bool, StatusError> {
    let mut errors = FieldErrors::new();
    let asked = call.query.get("resourceVersion").unwrap_or_default();
    let at = FieldPath::new("resourceVersionMatch");
    let wanted = call.query.get("resourceVersionMatch").filter(|wanted| !wanted.is_empty());
    if let Some(wanted) = wanted {
        if asked.is_empty() {
            errors.forbidden(&at, "resourceVersionMatch is forbidden unless resourceVersion is provided");
        }
        if call.query.get("continue").is_some_and(|token| !token.is_empty()) {
            errors.forbidden(&at, "resourceVersionMatch is forbidden when continue is provided");
        }
        if !matches!(wanted, "Exact" | "NotOlderThan") {
            errors.not_supported(&at, wanted, &["Exact", "NotOlderThan", ""]);
        }
        if wanted == "Exact" && asked == "0" {
            errors.forbidden(&at, "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
        }
    }
    if call.query.get("sendInitialEvents").is_some() {
        errors.forbidden(&FieldPath::new("sendInitialEvents"), "sendInitialEvents is forbidden for list");
    }
    if errors.is_empty() {
        return Ok(wanted == Some("Exact"));
    }
    let kind = Gvk { group: "meta.k8s.io", version: "v1", kind: "ListOptions" };
    Err(StatusError::invalid(kind, "", &errors))
}

/// Which objects a request is about, its selectors aside.
pub fn scope(info: &RequestInfo) -> Scope {
    if info.namespace.is_empty() || info.resource == "namespaces" {
        Scope::all()
    } else {
        Scope::namespace(&info.namespace)
    }
}

/// The selectors of a request.
pub fn selector(call: &Call) -> Result<Selector, StatusError> {
    let mut selector = Selector::everything();
    if let Some(text) = call.query.get("fieldSelector") {
        let fields =
            FieldSelector::parse(text).map_err(|error| StatusError::bad_request(error.to_string()))?;
        let known = call.storage.registry.selectable_names();
        for field in fields.fields() {
            if !known.contains(&field) {
                return Err(StatusError::bad_request(if known.len() > 2 {
                    format!("field label not supported: {field}")
                } else {
                    format!(
                        "\"{field}\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
                    )
                }));
            }
        }
        // One value of one field finds its watchers without asking each.
        let exact = fields.terms().iter().find(|t| t.equal && !t.field.starts_with("metadata."));
        selector.field = exact.map(|t| (t.field.clone(), t.value.clone()));
        selector = selector.and(move |head: &Head| fields.matches_with(|field| head.field(field)));
    }
    if let Some(text) = call.query.get("labelSelector") {
        let labels =
            LabelSelector::parse(text).map_err(|error| StatusError::bad_request(error.to_string()))?;
        if !labels.is_everything() {
            selector = selector.and(move |head: &Head| labels.matches_with(|key| head.label(key)));
        }
    }
    Ok(selector)
}

/// Where the next page begins, opaque to clients.
#[derive(Serialize, Deserialize)]
struct Continue {
    rv: u64,
    after: String,
}

fn read_token(token: &str) -> Result<Continue, String> {
    let json = URL_SAFE_NO_PAD.decode(token.trim_end_matches('=')).map_err(|error| match error {
        base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => {
            format!("illegal base64 data at input byte {at}")
        }
        _ => format!("illegal base64 data at input byte {}", token.len()),
    })?;
    if let Some(fault) = krate_api::json::syntax_error(&json) {
        return Err(fault);
    }
    serde_json::from_slice(&json).map_err(|error| error.to_string())
}

/// `GET` of a collection.
pub async fn list(call: Call) -> Result<Reply, StatusError> {
    number(&call, "timeoutSeconds")?;
    let limit = number(&call, "limit")?;
    let exact = check_list(&call)?;
    let asked = revision(&call, "resourceVersion")?;
    let token = call.query.get("continue").filter(|token| !token.is_empty());
    if token.is_some() && asked.is_some_and(|at| at != Revision::ZERO) {
        return Err(StatusError::bad_request(
            "specifying resource version is not allowed when using continue",
        ));
    }
    let mut query = ListQuery::new(
        scope(&call.info),
        match asked {
            Some(at) if exact => Freshness::Exact(at),
            None => Freshness::Latest,
            Some(Revision::ZERO) => Freshness::Any,
            Some(at) => Freshness::NotOlderThan(at),
        },
    );
    // Whoever takes any state gets all of it: that costs the server no more.
    let whole = token.is_none() && asked == Some(Revision::ZERO) && !exact;
    query.limit = if whole { 0 } else { limit.and_then(|n| usize::try_from(n).ok()).unwrap_or(0) };
    query.selector = selector(&call)?;
    if let Some(token) = token {
        let next = read_token(token).map_err(|fault| {
            StatusError::bad_request(format!("invalid continue token: continue key is not valid: {fault}"))
        })?;
        query.after = Some(next.after.into());
        query.freshness = Freshness::Exact(Revision(next.rv));
    }
    let list = call.storage.cache.list(&query).await.map_err(|error| match error {
        CacheError::TooOld { .. } if call.query.get("continue").is_some() => StatusError::new(
            krate_api::Reason::Expired,
            "The provided continue parameter is too old to display a consistent list result. You can start a new list \
             without the continue parameter.",
        ),
        other => refused(other),
    })?;
    let next = list.more.then(|| list.items.last()).flatten().map(|last| {
        let next = Continue { rv: list.revision.0, after: String::from_utf8_lossy(&last.key).into_owned() };
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&next).unwrap_or_default())
    });
    let items: Vec<Bytes> = list.items.iter().map(|object| call.storage.sent(&object.bytes)).collect();
    list_reply(&call, &items, list.revision, next, list.remaining)
}

/// A list, in the shape that is wanted.
pub fn list_reply(
    call: &Call,
    items: &[Bytes],
    revision: Revision,
    next: Option<String>,
    remaining: Option<usize>,
) -> Result<Reply, StatusError> {
    let mut meta = json!({"resourceVersion": revision.to_string()});
    if let Some(next) = next {
        meta["continue"] = next.into();
        if let Some(remaining) = remaining {
            meta["remainingItemCount"] = remaining.into();
        }
    }
    let body = match call.wanted.shape {
        Shape::Object => join(call, items, &meta),
        other => shape::many(&call.storage, other, items, meta, &call.query)?,
    };
    let mut reply = wire::json(StatusCode::OK, call.wanted, body);
    wire::warn(&mut reply, &call.warnings);
    Ok(reply)
}

fn join(call: &Call, items: &[Bytes], meta: &Value) -> Bytes {
    let kind = call.kind();
    let size: usize = items.iter().map(|item| item.len() + 1).sum();
    let mut out = BytesMut::with_capacity(size + 256);
    out.put_slice(
        format!(
            "{{\"kind\":\"{}List\",\"apiVersion\":\"{}\",\"metadata\":{meta},\"items\":[",
            kind.kind,
            kind.api_version()
        )
        .as_bytes(),
    );
    // The list says what its items are; only those of custom kinds repeat it.
    let said = format!("{{\"apiVersion\":\"{}\",\"kind\":\"{}\",", kind.api_version(), kind.kind);
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            out.put_u8(b',');
        }
        match item.strip_prefix(said.as_bytes()).filter(|_| !kind.custom) {
            Some(rest) => {
                out.put_u8(b'{');
                out.put_slice(rest);
            }
            None => out.put_slice(item),
        }
    }
    out.put_slice(b"]}");
    out.freeze()
}

/// A watch of a collection, or of one object of it.
pub async fn watch(mut call: Call) -> Result<Reply, StatusError> {
    // All events of a stream have one form: a kind without an encoding in protobuf is watched in JSON.
    if call.wanted.form == Form::Protobuf && schema::of(call.kind().gvk()).is_none() {
        call.wanted.form = Form::Json;
    }
    let asked = revision(&call, "resourceVersion")?;
    let initial = call.query.flag("sendInitialEvents");
    let bookmarks = call.query.flag("allowWatchBookmarks");
    if call.query.get("sendInitialEvents").is_some()
        && call.query.get("resourceVersionMatch") != Some("NotOlderThan")
    {
        let mut errors = FieldErrors::new();
        errors.forbidden(
            &FieldPath::new("resourceVersionMatch"),
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        );
        let kind = Gvk { group: "meta.k8s.io", version: "v1", kind: "ListOptions" };
        return Err(StatusError::invalid(kind, "", &errors));
    }
    let start = match asked {
        None => Start::State(Freshness::Latest),
        Some(Revision::ZERO) => Start::State(Freshness::Any),
        Some(at) if initial => Start::State(Freshness::NotOlderThan(at)),
        Some(at) => Start::After(at),
    };
    let mut query = WatchQuery::new(scope(&call.info), start);
    if initial && asked.is_none() {
        query.start = Start::State(Freshness::Latest);
    } else if call.query.get("sendInitialEvents").is_some() && !initial && asked.is_none() {
        query.start = Start::Now;
    }
    if !call.info.name.is_empty() && call.kind().is_namespaced() && !call.info.namespace.is_empty() {
        query.scope = Scope::name(&call.info.namespace, &call.info.name);
    } else if !call.info.name.is_empty() && !call.kind().is_namespaced() {
        query.scope = Scope::name("", &call.info.name);
    }
    query.selector = selector(&call)?;
    query.bookmarks = bookmarks;
    query.initial_events_end = initial && bookmarks;
    let watcher = match call.storage.cache.watch(query).await {
        Ok(watcher) => watcher,
        // A watch that began is told so by an event, as upstream does.
        Err(error @ CacheError::TooOld { .. }) => {
            let event = error_event(&call, &refused(error));
            return Ok(wire::reply(StatusCode::OK, stream_type(&call), event));
        }
        Err(error) => return Err(refused(error)),
    };
    let seconds = match call.query.get("timeoutSeconds").and_then(|t| t.parse::<u64>().ok()) {
        Some(seconds) => seconds,
        None => WATCH_AT_LEAST + u64::from(rand::random::<u16>()) % WATCH_AT_LEAST,
    };
    let end = tokio::time::Instant::now() + Duration::from_secs(seconds);
    let shutdown = call.server.shutdown.clone();
    let stream_type = stream_type(&call);
    let call = Arc::new(call);
    let events = futures::stream::unfold((watcher, true, call), move |(mut watcher, first, call)| {
        let shutdown = shutdown.clone();
        async move {
            let event = tokio::select! {
                event = watcher.next() => event?,
                () = tokio::time::sleep_until(end) => return None,
                () = shutdown.cancelled() => return None,
            };
            let framed = framed(&call, &event, first);
            Some((framed, (watcher, false, call)))
        }
    });
    let mut reply = http::Response::new(wire::stream(events));
    reply.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(stream_type));
    Ok(reply)
}

/// The media type of a watch. YAML has no stream.
fn stream_type(call: &Call) -> &'static str {
    match call.wanted.form {
        Form::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        Form::Json | Form::Yaml => "application/json",
    }
}

fn framed(call: &Call, event: &CacheEvent, first: bool) -> Bytes {
    let CacheEvent::Bookmark { revision, initial_events_end } = event else {
        let shape = call.wanted.shape;
        if shape == Shape::Object && call.wanted.form != Form::Protobuf && !call.storage.converts() {
            // One line serves all watchers.
            return event.line().unwrap_or_default();
        }
        let name = event.kind().map_or("MODIFIED", krate_store::cache::Kind::name);
        let object = call.storage.sent(&event.object().unwrap_or_default());
        let shaped = shape::event(&call.storage, shape, &object, event.revision(), first, &call.query);
        return match shaped {
            Ok(object) => frame(call, name, &object),
            Err(error) => error_event(call, &error),
        };
    };
    frame(call, "BOOKMARK", bookmark(call, *revision, *initial_events_end).to_string().as_bytes())
}

fn bookmark(call: &Call, revision: Revision, initial_events_end: bool) -> Value {
    let (kind, version) = match call.wanted.shape {
        Shape::Object => (call.kind().kind, call.kind().api_version()),
        Shape::Metadata => ("PartialObjectMetadata", "meta.k8s.io/v1".to_owned()),
        Shape::Table => {
            return json!({
                "kind": "Table", "apiVersion": "meta.k8s.io/v1",
                "metadata": {"resourceVersion": revision.to_string()}, "columnDefinitions": null, "rows": [],
            });
        }
    };
    let mut meta = json!({"resourceVersion": revision.to_string()});
    if initial_events_end {
        meta["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    json!({"kind": kind, "apiVersion": version, "metadata": meta})
}

/// One event as it is sent, its object given as JSON.
fn frame(call: &Call, kind: &str, object: &[u8]) -> Bytes {
    if call.wanted.form == Form::Protobuf
        && let Ok(value) = serde_json::from_slice(object)
        && let Ok(encoded) = protobuf::encode(&value)
    {
        return protobuf::watch_frame(kind, &encoded).into();
    }
    let mut out = BytesMut::with_capacity(object.len() + 32);
    out.put_slice(b"{\"type\":\"");
    out.put_slice(kind.as_bytes());
    out.put_slice(b"\",\"object\":");
    out.put_slice(object);
    out.put_slice(b"}\n");
    out.freeze()
}

fn error_event(call: &Call, error: &StatusError) -> Bytes {
    frame(call, "ERROR", &error.to_json())
}
