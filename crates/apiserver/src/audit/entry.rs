//! What is noted of one request while it is worked on.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use krate_api::StatusError;
use memchr::memmem;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::Audit;
use super::event::{Answered, AuthenticationMetadata, Event, ObjectRef, Record, Who};
use super::policy::{Level, Stage, Verdict};
use crate::auth::User;
use crate::http::{Body, Reply};
use crate::request::RequestInfo;
use crate::yaml;

const MAX_AGENT: usize = 1024;

tokio::task_local! {
    static ENTRY: Arc<Entry>;
}

/// A request that may be audited.
pub struct Entry {
    audit: Arc<Audit>,
    notes: Mutex<Notes>,
}

struct Notes {
    event: Event,
    /// Known once it is known who asks.
    verdict: Option<Verdict>,
    /// Whether it is answered for as long as it lasts, so that it is told of at its beginning too.
    is_long: bool,
    /// Whether it is not known who asks: such a request is told of once.
    is_unidentified: bool,
    /// The last document that was made to be sent.
    response: Option<Bytes>,
}

/// The other end of a connection, as its requests carry it. Who calls from this process has none.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// Has a request answered, which is told its id, and tells of both where that is wanted. The answer has the id too.
pub async fn around<F: Future<Output = Reply>>(
    audit: Option<&Arc<Audit>>,
    request: Request<Body>,
    answer: impl FnOnce(Request<Body>, HeaderValue) -> F,
) -> Reply {
    let id = super::id(request.headers());
    let mut reply = match audit {
        None => answer(request, id.clone()).await,
        Some(audit) => {
            let entry = Entry::new(audit, &request, &id);
            // Boxed, so that requests take no more room where nothing is audited.
            let answering = Box::pin(ENTRY.scope(Arc::clone(&entry), answer(request, id.clone())));
            let reply = answering.await;
            Box::pin(entry.answered(reply)).await
        }
    };
    // Whoever answers in the server's place may have told one.
    reply.headers_mut().entry(super::ID).or_insert(id);
    reply
}

fn agent(headers: &HeaderMap) -> String {
    let agent = headers.get(http::header::USER_AGENT).map(|v| String::from_utf8_lossy(v.as_bytes()));
    let mut agent = agent.unwrap_or_default().into_owned();
    if agent.len() > MAX_AGENT {
        let end = (0..=MAX_AGENT).rev().find(|end| agent.is_char_boundary(*end)).unwrap_or(0);
        agent.truncate(end);
        agent.push_str("...TRUNCATED");
    }
    agent
}

/// The addresses that a request came by, the client's first, as far as the proxies on its way are to be believed.
fn sources(headers: &HeaderMap, peer: Option<SocketAddr>) -> Vec<String> {
    let parse = |text: &str| text.trim().parse::<IpAddr>().ok();
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let mut found: Vec<IpAddr> = text("x-forwarded-for").split(',').filter_map(parse).collect();
    if let Some(real) = parse(text("x-real-ip")).filter(|ip| !found.contains(ip)) {
        found.push(real);
    }
    let peer = peer.map_or(IpAddr::from([127, 0, 0, 1]), |peer| peer.ip().to_canonical());
    if found.last() != Some(&peer) {
        found.push(peer);
    }
    found.iter().map(ToString::to_string).collect()
}

/// The entry of the request that is being worked on, if it is audited.
fn current() -> Option<Arc<Entry>> {
    ENTRY.try_with(Arc::clone).ok()
}

/// It is known who asks, and for what.
///
/// # Errors
/// The policy wants it told before it is answered, and that is not possible.
pub async fn identified(user: &User, info: &RequestInfo) -> Result<(), StatusError> {
    let Some(entry) = current() else { return Ok(()) };
    // Boxed, as in `around`.
    if !entry.judge(Some(user), info) || Box::pin(entry.tell(Stage::RequestReceived)).await {
        return Ok(());
    }
    entry.audit.metrics.rejected.inc();
    Err(StatusError::internal("failed to store audit event"))
}

/// It is not known who asks.
pub fn unidentified(info: &RequestInfo) {
    let Some(entry) = current() else { return };
    entry.judge(None, info);
    entry.notes.lock().is_unidentified = true;
}

/// Who asks acts as somebody else, by this right; empty where it is the one that needs no other.
pub fn impersonates(user: &User, constraint: &'static str) {
    note(|notes| {
        notes.event.impersonated_user = Some(Who::from(user));
        let constrained = !constraint.is_empty();
        notes.event.authentication_metadata =
            constrained.then_some(AuthenticationMetadata { impersonation_constraint: constraint });
    });
}

/// Notes something under a name of its own. The first value stays.
pub fn annotate(key: &str, value: &str) {
    note(|notes| {
        if let Some(there) = notes.event.annotations.get(key) {
            if there != value {
                let id = &notes.event.id;
                tracing::warn!(
                    "Failed to set annotations[\"{key}\"] to \"{value}\" for audit:\"{id}\", it has already been set to \"{there}\""
                );
            }
            return;
        }
        notes.event.annotations.insert(key.to_owned(), value.to_owned());
    });
}

/// Whether it was allowed, and why or why not.
pub fn decided(found: &Result<String, String>) {
    let (decision, reason) = match found {
        Ok(reason) => ("allow", reason),
        Err(reason) => ("forbid", reason),
    };
    annotate("authorization.k8s.io/decision", decision);
    annotate("authorization.k8s.io/reason", reason);
}

/// It could not be told whether it is allowed.
pub fn undecided() {
    annotate("authorization.k8s.io/reason", "internal error");
}

/// The object, the patch or the options that were sent, as JSON.
pub fn requested(json: &[u8]) {
    note(|notes| {
        let Some(verdict) = notes.verdict else { return };
        notes.event.complete(json);
        if verdict.level >= Level::Request {
            notes.event.request_object = raw(json, verdict.omit_managed_fields);
        }
    });
}

/// The patch that was sent, in JSON or, of an apply, in YAML.
pub fn patched(patch: &[u8]) {
    note(|notes| {
        if notes.event.level >= Level::Request {
            let json = || serde_json::value::to_raw_value(&yaml::to_json(patch).ok()?).ok();
            notes.event.request_object = raw(patch, false).or_else(json);
        }
    });
}

/// The document that is about to be sent, as JSON.
pub fn responded(json: &Bytes) {
    note(|notes| notes.response = Some(json.clone()));
}

/// Whether this request is audited, so that its answer has to be at hand as a whole.
pub fn is_told() -> bool {
    ENTRY.try_with(|_| ()).is_ok()
}

fn note(noted: impl FnOnce(&mut Notes)) {
    // Most requests are not audited, and those pay for nothing but this.
    let _ = ENTRY.try_with(|entry| {
        let mut notes = entry.notes.lock();
        if notes.verdict.is_none_or(|verdict| verdict.level > Level::None) {
            noted(&mut notes);
        }
    });
}

/// The server failed in the middle of the request.
pub fn panicked() {
    note(|notes| notes.event.stage = Stage::Panic);
}

/// A document as it is told: whole, or without what says who manages which field.
fn raw(json: &[u8], omit_managed_fields: bool) -> Option<Box<RawValue>> {
    const MANAGED: &[u8] = b"\"managedFields\"";
    let text = std::str::from_utf8(json).ok()?;
    if !omit_managed_fields || memmem::find(json, MANAGED).is_none() {
        return RawValue::from_string(text.to_owned()).ok();
    }
    fn forget(object: Option<&mut Value>) {
        if let Some(Value::Object(meta)) = object.and_then(|object| object.get_mut("metadata")) {
            meta.remove("managedFields");
        }
    }
    let mut value: Value = serde_json::from_slice(json).ok()?;
    for item in value.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
        forget(Some(item));
    }
    for row in value.get_mut("rows").and_then(Value::as_array_mut).into_iter().flatten() {
        forget(row.get_mut("object"));
    }
    forget(Some(&mut value));
    serde_json::value::to_raw_value(&value).ok()
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Meta {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct HasMeta {
    metadata: Meta,
}

impl Event {
    /// Says of the object what its path does not.
    fn complete(&mut self, json: &[u8]) {
        let Ok(HasMeta { metadata }) = serde_json::from_slice(json) else { return };
        let object = self.object_ref.get_or_insert_default();
        for (field, value) in [
            (&mut object.namespace, metadata.namespace),
            (&mut object.name, metadata.name),
            (&mut object.uid, metadata.uid),
            (&mut object.resource_version, metadata.resource_version),
        ] {
            if field.is_empty() {
                *field = value.unwrap_or_default();
            }
        }
    }
}

impl Entry {
    /// Of a request that has come in.
    fn new(audit: &Arc<Audit>, request: &Request<Body>, id: &HeaderValue) -> Arc<Self> {
        let id = String::from_utf8_lossy(id.as_bytes()).into_owned();
        let mut event = Event::new(id, Timestamp::now());
        let uri = request.uri().path_and_query();
        uri.map_or("/", http::uri::PathAndQuery::as_str).clone_into(&mut event.uri);
        event.user_agent = agent(request.headers());
        let peer = request.extensions().get::<Peer>().map(|peer| peer.0);
        event.source_ips = sources(request.headers(), peer);
        let notes = Notes { event, verdict: None, is_long: false, is_unidentified: false, response: None };
        Arc::new(Entry { audit: Arc::clone(audit), notes: Mutex::new(notes) })
    }

    /// Asks the policy; whether anything is to be told at all.
    fn judge(&self, user: Option<&User>, info: &RequestInfo) -> bool {
        let nobody = User::default();
        let verdict = self.audit.policy.judge(user.unwrap_or(&nobody), info);
        self.audit.metrics.levels.with_label_values(&[verdict.level.name()]).inc();
        let mut notes = self.notes.lock();
        notes.verdict = Some(verdict);
        if verdict.level == Level::None {
            return false;
        }
        notes.is_long = info.is_long_running();
        let event = &mut notes.event;
        event.level = verdict.level;
        event.verb = info.verb;
        event.user = user.map(Who::from).unwrap_or_default();
        event.object_ref = info.is_resource.then(|| ObjectRef {
            resource: info.resource.clone(),
            namespace: info.namespace.clone(),
            name: info.name.clone(),
            api_group: info.group.clone(),
            api_version: info.version.clone(),
            subresource: info.subresource.clone(),
            ..ObjectRef::default()
        });
        true
    }

    /// Tells of a stage, unless the policy leaves it out; whether that was possible.
    async fn tell(&self, stage: Stage) -> bool {
        let event = {
            let mut notes = self.notes.lock();
            let Some(verdict) = notes.verdict else { return true };
            if verdict.level == Level::None || verdict.omitted[stage as usize] {
                return true;
            }
            let event = &mut notes.event;
            event.stage = stage;
            event.at = match stage {
                Stage::RequestReceived => event.received.clone(),
                _ => MicroTime(Timestamp::now()),
            };
            event.clone()
        };
        self.audit.metrics.events.inc();
        let record = Arc::new(Record::new(event));
        let mut told = true;
        for sink in &self.audit.sinks {
            told &= sink.process(&record).await;
        }
        told
    }

    /// Tells of the answer: now, and of what is sent for as long as it lasts at its end too.
    pub async fn answered(self: Arc<Self>, reply: Reply) -> Reply {
        let (is_panic, is_long, is_unidentified) = {
            let mut notes = self.notes.lock();
            if notes.verdict.is_none_or(|verdict| verdict.level == Level::None) {
                return reply;
            }
            notes.answer(&reply);
            (notes.event.stage == Stage::Panic, notes.is_long, notes.is_unidentified)
        };
        if is_panic {
            self.tell(Stage::Panic).await;
            return reply;
        }
        if is_long || is_unidentified {
            self.tell(Stage::ResponseStarted).await;
            if is_unidentified {
                return reply;
            }
            if !reply.body().is_end_stream() && reply.status() != StatusCode::SWITCHING_PROTOCOLS {
                let end = UntilTheBodyIsGone(self);
                return reply.map(|body| {
                    let watched = body.map_frame(move |frame| {
                        let _ = &end;
                        frame
                    });
                    watched.boxed_unsync()
                });
            }
        }
        self.tell(Stage::ResponseComplete).await;
        reply
    }
}

impl Notes {
    fn answer(&mut self, reply: &Reply) {
        let is_panic = self.event.stage == Stage::Panic;
        let whole = reply.body().size_hint().exact().is_some();
        let response = self.response.take().filter(|_| whole);
        let mut answered = response.as_deref().and_then(status).unwrap_or_default();
        answered.code = Some(reply.status().as_u16());
        if is_panic {
            "APIServer panic'd: this request caused the server to panic".clone_into(&mut answered.message);
        }
        self.event.response_status = Some(answered);
        if let (Some(verdict), Some(json)) = (self.verdict, response)
            && verdict.level >= Level::RequestResponse
            && !is_panic
        {
            self.event.response_object = raw(&json, verdict.omit_managed_fields);
        }
    }
}

/// What a document says as a `Status`, if it is one.
fn status(json: &[u8]) -> Option<Answered> {
    // Whatever has many bytes is something else, and not worth reading.
    let head = &json[..json.len().min(16 * 1024)];
    memmem::find(head, b"\"kind\":\"Status\"")?;
    let value: Value = serde_json::from_slice(json).ok()?;
    if value.get("kind")?.as_str()? != "Status" {
        return None;
    }
    serde_json::from_value(value).ok()
}

/// Tells of the end of an answer that lasted.
struct UntilTheBodyIsGone(Arc<Entry>);

impl Drop for UntilTheBodyIsGone {
    fn drop(&mut self) {
        let entry = Arc::clone(&self.0);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { entry.tell(Stage::ResponseComplete).await });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_of_a_request_is_told_from_its_first_address() {
        let mut headers = HeaderMap::new();
        let peer = Some("10.0.0.9:4711".parse().expect("an address"));
        assert_eq!(sources(&headers, peer), ["10.0.0.9"]);
        headers.insert("x-forwarded-for", "192.0.2.1, nobody, 10.0.0.8".parse().expect("a value"));
        headers.insert("x-real-ip", "192.0.2.1".parse().expect("a value"));
        assert_eq!(sources(&headers, peer), ["192.0.2.1", "10.0.0.8", "10.0.0.9"]);
        assert_eq!(sources(&HeaderMap::new(), None), ["127.0.0.1"]);
    }

    #[test]
    fn managed_fields_are_left_out_wherever_objects_stand() {
        let told = |json: &str| raw(json.as_bytes(), true).expect("JSON").get().to_owned();
        let object = "{\"metadata\":{\"managedFields\":[{}],\"name\":\"a\"}}";
        assert_eq!(told(object), "{\"metadata\":{\"name\":\"a\"}}");
        assert_eq!(
            told(&format!("{{\"items\":[{object}]}}")),
            "{\"items\":[{\"metadata\":{\"name\":\"a\"}}]}"
        );
        assert_eq!(
            told(&format!("{{\"rows\":[{{\"object\":{object}}}]}}")),
            "{\"rows\":[{\"object\":{\"metadata\":{\"name\":\"a\"}}}]}"
        );
        assert_eq!(raw(object.as_bytes(), false).expect("JSON").get(), object);
    }

    #[test]
    fn a_status_is_told_by_its_parts() {
        let json = b"{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{},\"status\":\"Failure\",\"message\":\"no\",\"reason\":\"NotFound\",\"code\":404}";
        let told = status(json).expect("a status");
        assert_eq!(
            serde_json::to_string(&told).expect("JSON"),
            "{\"metadata\":{},\"status\":\"Failure\",\"message\":\"no\",\"reason\":\"NotFound\",\"code\":404}"
        );
        assert_eq!(status(b"{\"kind\":\"Pod\"}"), None);
    }

    #[test]
    fn long_names_of_clients_are_cut() {
        let mut headers = HeaderMap::new();
        headers.insert(http::header::USER_AGENT, "x".repeat(2000).parse().expect("a value"));
        assert_eq!(agent(&headers), format!("{}...TRUNCATED", "x".repeat(1024)));
    }
}
