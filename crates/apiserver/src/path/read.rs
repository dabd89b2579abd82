//! Get, list and watch: bytes from the cache.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::StatusCode;
use http_body_util::BodyExt as _;
use krate_api::{Kind, Reason, StatusError, protobuf, schema};
use krate_store::Revision;
use krate_store::cache::{
    CacheError, CacheEvent, Freshness, Kind as Change, ListQuery, Scope, Start, WatchQuery,
};
use serde_json::{Value, json};

use super::call::Call;
use super::joined::{Items, Joined};
use super::options::{Continue, ListOptions, Match, revision};
use super::select::{Selection, selection};
use super::shape;
use super::sockets::Socket;
use crate::audit;
use crate::http::{self as wire, Form, Reply, Shape, Wanted};
use crate::request::RequestInfo;
use crate::storage::{refused, type_meta};

/// `GET` of an object.
pub async fn get(call: Call) -> Result<Reply, StatusError> {
    let freshness = match revision(&call.query, false)? {
        None => Freshness::Latest,
        Some(Revision::ZERO) => Freshness::Any,
        Some(at) => Freshness::NotOlderThan(at),
    };
    let cached = call.storage.read(&call.info.namespace, &call.info.name, freshness).await?;
    call.object(StatusCode::OK, &call.storage.sent(&cached.sent()).await?)
}

/// Which objects a request is about, its selectors aside.
pub fn scope(info: &RequestInfo) -> Scope {
    if info.namespace.is_empty() || info.resource == "namespaces" {
        Scope::all()
    } else {
        Scope::namespace(&info.namespace)
    }
}

/// `GET` of a collection.
pub async fn list(call: Call) -> Result<Reply, StatusError> {
    let options = ListOptions::read(&call.query, false)?;
    let selection = selection(&call)?;
    let next = Continue::read(&call.query)?;
    let asked = revision(&call.query, true)?;
    let freshness = match (&next, asked) {
        (Some(next), _) => Freshness::Exact(Revision(next.revision)),
        (None, Some(at)) if options.resource_version_match == Some(Match::Exact) => Freshness::Exact(at),
        (None, None) => Freshness::Latest,
        (None, Some(Revision::ZERO)) => Freshness::Any,
        (None, Some(at)) => Freshness::NotOlderThan(at),
    };
    let mut query = ListQuery::new(scope(&call.info), freshness);
    // Who takes whatever is at hand gets all of it.
    let limit = if asked == Some(Revision::ZERO) && next.is_none() { 0 } else { options.limit };
    // Which objects are on the page can be told once they have been converted.
    query.limit = if selection.is_settled() { limit } else { 0 };
    query.selector = selection.selector.clone();
    query.after = next.as_ref().map(|next| next.after.clone().into());
    let list = match (call.storage.cache.list(&query).await, next) {
        (Ok(list), _) => list,
        (Err(CacheError::TooOld { .. }), Some(next)) => {
            let now = call.server.backend.revision().await.map_err(StatusError::internal)?;
            return Err(next.expired(now));
        }
        (Err(error), _) => return Err(refused(error)),
    };
    let (revision, remaining) = (list.revision, list.remaining);
    let (items, more) = selection.page(&call.storage, list, limit).await?;
    let last = more.then(|| items.objects.last()).flatten();
    let next =
        last.map(|last| Continue::new(revision, String::from_utf8_lossy(&last.key).into_owned()).token());
    list_reply(&call, items, revision, next, remaining)
}

/// A list, in the shape that is wanted.
pub fn list_reply(
    call: &Call,
    items: Items,
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
    let mut reply = match call.wanted.shape {
        Shape::Object if call.wanted == Wanted::JSON && !audit::is_told() => {
            wire::made(StatusCode::OK, join(call, items, &meta).boxed_unsync())
        }
        Shape::Object => wire::json(StatusCode::OK, call.wanted, join(call, items, &meta).whole()),
        other => {
            let body = shape::many(&call.storage, other, &items.sent(), meta, &call.query)?;
            wire::json(StatusCode::OK, call.wanted, body)
        }
    };
    wire::warn(&mut reply, &call.warnings);
    Ok(reply)
}

/// A list of objects as they are. Only those of custom kinds say again of which kind they are.
fn join(call: &Call, items: Items, meta: &Value) -> Joined {
    let (kind, api_version) = (call.kind().kind, call.kind().api_version());
    let type_meta = (!call.kind().custom).then(|| type_meta(call.kind()));
    let head =
        format!("{{\"kind\":\"{kind}List\",\"apiVersion\":\"{api_version}\",\"metadata\":{meta},\"items\":[");
    Joined::new(head.into(), items, type_meta)
}

/// A watch of a collection, or of one object of it.
pub async fn watch(mut call: Call) -> Result<Reply, StatusError> {
    if call.wanted.form == Form::Yaml {
        return Err(no_stream());
    }
    // All events of a stream have one form: a kind without an encoding in protobuf is watched in JSON.
    if call.wanted.form == Form::Protobuf && schema::of(call.kind().gvk()).is_none() {
        call.wanted.form = Form::Json;
    }
    let options = ListOptions::read(&call.query, true)?;
    shape::check(call.wanted.shape, &call.query)?;
    let selection = selection(&call)?;
    let asked = revision(&call.query, false)?;
    let initial = options.send_initial_events == Some(true);
    let bookmarks = call.query.flag("allowWatchBookmarks");
    let start = match asked {
        None => Start::State(Freshness::Latest),
        Some(Revision::ZERO) => Start::State(Freshness::Any),
        Some(at) if initial => Start::State(Freshness::NotOlderThan(at)),
        Some(at) => Start::After(at),
    };
    let mut query = WatchQuery::new(scope(&call.info), start);
    if initial && asked.is_none() {
        query.start = Start::State(Freshness::Latest);
    } else if options.send_initial_events == Some(false) && asked.is_none() {
        query.start = Start::Now;
    }
    if !call.info.name.is_empty() && call.kind().is_namespaced() && !call.info.namespace.is_empty() {
        query.scope = Scope::name(&call.info.namespace, &call.info.name);
    } else if !call.info.name.is_empty() && !call.kind().is_namespaced() {
        query.scope = Scope::name("", &call.info.name);
    }
    query.selector = selection.selector.clone();
    query.bookmarks = bookmarks;
    query.initial_events_end = initial && bookmarks;
    let socket = Socket::asked(&mut call)?;
    let is_text = call.wanted.form != Form::Protobuf;
    let since = Instant::now();
    let watcher = match call.storage.cache.watch(query).await {
        Ok(watcher) => watcher,
        // A watch that began is told so by an event, as upstream does.
        Err(error @ CacheError::TooOld { .. }) => {
            let event = error_event(&call, &refused(error));
            return Ok(match socket {
                Some(socket) => socket.tell(futures::stream::iter([event]), is_text),
                None => wire::reply(StatusCode::OK, stream_type(&call), event),
            });
        }
        Err(error) => return Err(refused(error)),
    };
    let fairness = call.server.fairness.as_ref();
    let counted = fairness.and_then(|fairness| fairness.watching(&call.info, &call.query));
    let lasts = lasts(options.timeout_seconds, call.server.limits.min_request_timeout);
    let end = tokio::time::Instant::now() + lasts;
    let shutdown = call.server.draining.clone();
    let stream_type = stream_type(&call);
    let told = call.server.instruments.watched(call.kind());
    let call = Arc::new((call, selection));
    let events = futures::stream::unfold((Some(watcher), true, call), move |(watcher, first, call)| {
        let _until_the_stream_is_gone = &counted;
        let (shutdown, told) = (shutdown.clone(), told.clone());
        async move {
            let mut watcher = watcher?;
            loop {
                let event = tokio::select! {
                    event = watcher.next() => event?,
                    () = tokio::time::sleep_until(end) => return None,
                    () = shutdown.cancelled() => return None,
                };
                match framed(&call.0, &call.1, &event, first).await {
                    Ok(Some(framed)) => {
                        told.event(framed.len());
                        if matches!(event, CacheEvent::Bookmark { initial_events_end: true, .. }) {
                            let call = &call.0;
                            call.server.instruments.watch_listed(call.kind(), &call.info, since.elapsed());
                        }
                        return Some((framed, (Some(watcher), false, call)));
                    }
                    Ok(None) => {}
                    // Who misses an event cannot go on as if there had been none.
                    Err(error) => return Some((error_event(&call.0, &error), (None, false, call))),
                }
            }
        }
    });
    if let Some(socket) = socket {
        return Ok(socket.tell(events, is_text));
    }
    let mut reply = http::Response::new(wire::stream(events));
    reply.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(stream_type));
    Ok(reply)
}

/// How long a watch lasts: as long as is asked, which may be more than a clock can tell, or by chance once or twice the
/// least that the server is told.
fn lasts(asked: Option<u64>, least: Duration) -> Duration {
    const LONGEST: u64 = 365 * 24 * 3600;
    match asked.filter(|seconds| *seconds > 0) {
        Some(seconds) => Duration::from_secs(seconds.min(LONGEST)),
        None => least.mul_f64(1.0 + rand::random::<f64>()),
    }
}

/// What is answered to who would watch in a form that has no stream.
fn no_stream() -> StatusError {
    StatusError::new(
        Reason::NotAcceptable,
        "only the following media types are accepted: application/json;stream=watch, \
         application/vnd.kubernetes.protobuf;stream=watch",
    )
}

/// The media type of a watch.
fn stream_type(call: &Call) -> &'static str {
    match call.wanted.form {
        Form::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        Form::Json | Form::Yaml => "application/json",
    }
}

/// An event as it is sent; `None` if it does not concern who watches.
async fn framed(
    call: &Call,
    selection: &Selection,
    event: &CacheEvent,
    first: bool,
) -> Result<Option<Bytes>, StatusError> {
    let shape = call.wanted.shape;
    if let CacheEvent::Bookmark { revision, initial_events_end } = event {
        let bookmark = bookmark(call.kind(), *revision, *initial_events_end).to_string().into();
        let bookmark = shape::event(&call.storage, shape, &bookmark, *revision, first, &call.query)?;
        return Ok(Some(frame(call, "BOOKMARK", &bookmark)));
    }
    if shape == Shape::Object && call.wanted.form != Form::Protobuf && !call.storage.converts() {
        // One line serves all watchers.
        return Ok(event.line());
    }
    let Some((kind, object)) = seen(call, selection, event).await? else { return Ok(None) };
    let object = shape::event(&call.storage, shape, &object, event.revision(), first, &call.query)?;
    Ok(Some(frame(call, kind.name(), &object)))
}

/// What an event is for who watches, and the object in the version that is watched.
async fn seen(
    call: &Call,
    selection: &Selection,
    event: &CacheEvent,
) -> Result<Option<(Change, Bytes)>, StatusError> {
    let storage = &call.storage;
    let Some(kind) = event.kind() else { return Ok(None) };
    let object = storage.sent(&event.object().unwrap_or_default()).await?;
    if selection.is_settled() {
        return Ok(Some((kind, object)));
    }
    let CacheEvent::Change(_, change) = event else {
        return Ok(selection.selects(storage, &object)?.then_some((kind, object)));
    };
    let was = match &change.prev {
        Some(prev) if kind != Change::Added => {
            selection.selects(storage, &storage.sent(&prev.sent()).await?)?
        }
        _ => false,
    };
    let is = kind != Change::Deleted && selection.selects(storage, &object)?;
    Ok(match (was, is) {
        (false, true) => Some((Change::Added, object)),
        (true, true) => Some((Change::Modified, object)),
        (true, false) => Some((Change::Deleted, storage.sent(&change.object(Change::Deleted)).await?)),
        (false, false) => None,
    })
}

/// An object that says nothing but how far a watch has come.
fn bookmark(kind: &Kind, revision: Revision, initial_events_end: bool) -> Value {
    let mut meta = json!({"resourceVersion": revision.to_string()});
    if initial_events_end {
        meta["annotations"] = json!({ (shape::INITIAL_EVENTS_END): "true" });
    }
    json!({"kind": kind.kind, "apiVersion": kind.api_version(), "metadata": meta})
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_ends_at_a_time_that_a_clock_can_tell() {
        let least = Duration::from_mins(1);
        assert_eq!(lasts(Some(5), least), Duration::from_secs(5));
        assert!(Instant::now().checked_add(lasts(Some(u64::MAX), least)).is_some());
        assert!((least..=2 * least).contains(&lasts(None, least)));
        assert_eq!(lasts(Some(0), Duration::ZERO), Duration::ZERO);
    }

    #[test]
    fn a_form_without_a_stream_is_not_acceptable() {
        assert_eq!(no_stream().code(), 406);
    }
}
