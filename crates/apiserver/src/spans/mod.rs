//! Traces (KEP-647): what a request spends its time on, told to a collector as OpenTelemetry has it, over OTLP.
//!
//! A request that is traced has its span at hand wherever it is worked on, as a value of its task; [`within`] makes
//! others below it. Of requests that are not, and of a server that traces nothing, no span is made and nothing is noted.
//! The few messages that are sent are written here, over the gRPC client that is there anyway: a tracing library would
//! bring a thread, a registry and a context of its own for them.

mod config;
mod export;
mod otlp;

use std::borrow::Cow;
use std::future::Future;
use std::sync::Arc;
use std::time::SystemTime;

use futures::FutureExt as _;
use futures::future::Either;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use tokio::sync::mpsc;

pub use config::Tracing;

use crate::auth::{MASTERS, User};
use crate::request::RequestInfo;

const MONITORING: &str = "system:monitoring";
const PARENT: &str = "traceparent";

tokio::task_local! {
    static CURRENT: Current;
}

/// The span that is being worked in.
#[derive(Clone)]
struct Current {
    tracer: Arc<Tracer>,
    trace: [u8; 16],
    span: [u8; 8],
}

/// Something that is known of a span.
pub type Attribute = (&'static str, Value);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Text(String),
    Number(i64),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::Text(text.to_owned())
    }
}

/// What a request was told of the trace that it is a part of (W3C Trace Context).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Parent {
    trace: [u8; 16],
    span: [u8; 8],
    sampled: bool,
}

impl Parent {
    fn of(headers: &HeaderMap) -> Option<Self> {
        let text = headers.get(PARENT)?.to_str().ok()?;
        let mut parts = text.split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        // Later versions may say more behind it, this one does not; there is no version ff.
        if version.len() != 2 || version == "ff" || (version == "00" && parts.next().is_some()) {
            return None;
        }
        let mut out = Parent { trace: [0; 16], span: [0; 8], sampled: false };
        hex::decode_to_slice(trace, &mut out.trace).ok()?;
        hex::decode_to_slice(span, &mut out.span).ok()?;
        let mut bits = [0];
        hex::decode_to_slice(flags, &mut bits).ok()?;
        out.sampled = bits[0] & 1 == 1;
        (out.trace != [0; 16] && out.span != [0; 8]).then_some(out)
    }
}

/// A span that has ended.
#[derive(Debug)]
struct Ended {
    trace: [u8; 16],
    span: [u8; 8],
    parent: Option<[u8; 8]>,
    /// The trace that who asked is in, where this one does not go on with it.
    link: Option<([u8; 16], [u8; 8])>,
    name: Cow<'static, str>,
    is_server: bool,
    start: SystemTime,
    end: SystemTime,
    attributes: Vec<Attribute>,
    failed: bool,
}

/// Decides what is traced, and brings spans to the collector.
pub struct Tracer {
    /// Of a million requests that come with no trace so many are traced.
    per_million: u64,
    ended: mpsc::Sender<Ended>,
}

impl Tracer {
    /// A trace is taken by its number alone, so that all who see it decide alike.
    fn takes(&self, trace: [u8; 16]) -> bool {
        let number = (u128::from_be_bytes(trace) as u64) >> 1;
        u128::from(number) * 1_000_000 < u128::from(self.per_million) << 63
    }

    fn tell(&self, span: Ended) {
        // What the collector is too slow for is lost: a request does not wait for it.
        let _ = self.ended.try_send(span);
    }
}

/// The first span of a request in this server.
pub struct Root {
    current: Current,
    parent: Option<[u8; 8]>,
    link: Option<([u8; 16], [u8; 8])>,
    name: String,
    start: SystemTime,
    /// None once it has ended.
    attributes: Option<Vec<Attribute>>,
}

impl Root {
    /// The span of a request, if it is to be traced. The word of who asks, that he traces it, counts if he is one of the
    /// operators; of others it is noted.
    pub fn of(tracer: Option<&Arc<Tracer>>, user: &User, info: &RequestInfo, parts: &Parts) -> Option<Self> {
        let tracer = tracer?;
        let (method, headers) = (&parts.method, &parts.headers);
        let target = parts.uri.path_and_query().map_or(info.path.as_str(), PathAndQuery::as_str);
        let said = Parent::of(headers);
        let is_believed = user.groups.iter().any(|group| group == MASTERS || group == MONITORING);
        let parent = said.filter(|_| is_believed);
        let trace = parent.map_or_else(rand::random, |parent| parent.trace);
        if !parent.map_or_else(|| tracer.takes(trace), |parent| parent.sampled) {
            return None;
        }
        let agent = headers.get(http::header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
        Some(Root {
            current: Current { tracer: Arc::clone(tracer), trace, span: rand::random() },
            parent: parent.map(|parent| parent.span),
            link: said.filter(|_| parent.is_none()).map(|parent| (parent.trace, parent.span)),
            name: name(method, info),
            start: SystemTime::now(),
            attributes: Some(vec![
                ("http.request.method", method.as_str().into()),
                ("url.scheme", "https".into()),
                ("url.path", info.path.as_str().into()),
                ("http.target", target.into()),
                ("user_agent.original", agent.into()),
            ]),
        })
    }

    /// Runs the request in its span.
    pub async fn scope<F: Future>(&self, request: F) -> F::Output {
        CURRENT.scope(self.current.clone(), request).await
    }

    /// Ends the span by the answer's code.
    pub fn end(mut self, code: StatusCode) {
        self.tell(Some(code));
    }

    fn tell(&mut self, code: Option<StatusCode>) {
        let Some(mut attributes) = self.attributes.take() else { return };
        if let Some(code) = code {
            attributes.push(("http.response.status_code", Value::Number(code.as_u16().into())));
        }
        self.current.tracer.tell(Ended {
            trace: self.current.trace,
            span: self.current.span,
            parent: self.parent,
            link: self.link,
            name: std::mem::take(&mut self.name).into(),
            is_server: true,
            start: self.start,
            end: SystemTime::now(),
            attributes,
            failed: code.is_none_or(|code| code.is_server_error()),
        });
    }
}

impl Drop for Root {
    /// A request that is given up has no answer.
    fn drop(&mut self) {
        self.tell(None);
    }
}

/// `GET /api/v1/namespaces/{:namespace}/pods/{:name}`: names stand for themselves nowhere, so that spans compare.
fn name(method: &Method, info: &RequestInfo) -> String {
    if !info.is_resource {
        return method.to_string();
    }
    let mut out = format!("{method} /{}", if info.group.is_empty() { "api" } else { "apis" });
    let mut put = |part: &str| {
        if !part.is_empty() {
            out.push('/');
            out.push_str(part);
        }
    };
    put(&info.group);
    put(&info.version);
    if !info.namespace.is_empty() {
        put("namespaces/{:namespace}");
    }
    put(&info.resource);
    if !info.name.is_empty() {
        put("{:name}");
    }
    put(&info.subresource);
    out
}

/// What the work for a verb is called.
pub fn of_verb(verb: &str) -> &'static str {
    match verb {
        "create" => "Create",
        "update" => "Update",
        "patch" => "Patch",
        "delete" | "deletecollection" => "Delete",
        "list" => "List",
        "watch" => "Watch",
        _ => "Get",
    }
}

/// What is known of a request to a resource, where it may be traced.
pub fn describe(info: &RequestInfo, may_be: bool) -> Vec<Attribute> {
    if !may_be {
        return Vec::new();
    }
    let all = [
        ("api-group", info.group.as_str()),
        ("api-version", &info.version),
        ("resource", &info.resource),
        ("subresource", &info.subresource),
        ("namespace", &info.namespace),
        ("name", &info.name),
        ("verb", info.verb),
    ];
    let said = all.into_iter().filter(|(_, value)| !value.is_empty());
    said.map(|(name, value)| (name, value.into())).collect()
}

/// Runs a part of a request in a span of its own, below the one that is being worked in. Of the span is known what
/// `attributes` gives, which is asked only where it is traced.
pub fn within<F: Future>(
    name: &'static str,
    attributes: impl FnOnce() -> Vec<Attribute>,
    part: F,
) -> impl Future<Output = F::Output> {
    let Ok(above) = CURRENT.try_with(Clone::clone) else { return Either::Left(part) };
    let current = Current { span: rand::random(), ..above.clone() };
    let open = Open { above, span: current.span, name, start: SystemTime::now(), attributes: attributes() };
    // Boxed, so that requests take no more room where nothing is traced.
    let traced = Box::pin(CURRENT.scope(current, part));
    Either::Right(traced.map(move |output| {
        drop(open);
        output
    }))
}

/// Ends its span when it goes: also where the request is given up.
struct Open {
    above: Current,
    span: [u8; 8],
    name: &'static str,
    start: SystemTime,
    attributes: Vec<Attribute>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.above.tracer.tell(Ended {
            trace: self.above.trace,
            span: self.span,
            parent: Some(self.above.span),
            link: None,
            name: self.name.into(),
            is_server: false,
            start: self.start,
            end: SystemTime::now(),
            attributes: std::mem::take(&mut self.attributes),
            failed: false,
        });
    }
}

/// What others are told of the trace, where there is one: a name and a value of their request's head.
pub fn propagated() -> Option<(&'static str, HeaderValue)> {
    let current = CURRENT.try_with(Clone::clone).ok()?;
    let text = format!("00-{}-{}-01", hex::encode(current.trace), hex::encode(current.span));
    Some((PARENT, HeaderValue::from_str(&text).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Query;

    #[test]
    fn a_parent_is_read_as_w3c_has_it() {
        let of = |text: &str| {
            Parent::of(&HeaderMap::from_iter([(
                http::HeaderName::from_static(PARENT),
                HeaderValue::from_str(text).expect("a value"),
            )]))
        };
        let good = of("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").expect("a parent");
        assert!(good.sampled && good.trace[0] == 0x0a && good.span[7] == 0x31);
        assert!(!of("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00").expect("a parent").sampled);
        assert!(
            of("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more").is_some(),
            "a later version"
        );
        for wrong in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01",
        ] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn spans_are_named_by_what_is_asked() {
        let of =
            |method: Method, path: &str| name(&method, &RequestInfo::parse(&method, path, &Query::default()));
        assert_eq!(
            of(Method::GET, "/apis/apps/v1/namespaces/a/deployments/b/status"),
            "GET /apis/apps/v1/namespaces/{:namespace}/deployments/{:name}/status"
        );
        assert_eq!(of(Method::POST, "/api/v1/nodes"), "POST /api/v1/nodes");
        assert_eq!(of(Method::GET, "/healthz"), "GET");
    }

    #[test]
    fn so_many_of_a_million_are_traced() {
        let (ended, _queue) = mpsc::channel(1);
        let tracer = |per_million| Tracer { per_million, ended: ended.clone() };
        assert!(tracer(1_000_000).takes([0xff; 16]) && !tracer(0).takes([0; 16]));
        let half = tracer(500_000);
        let taken = (0..1000).filter(|_| half.takes(rand::random())).count();
        assert!((350..650).contains(&taken), "{taken}");
    }
}
