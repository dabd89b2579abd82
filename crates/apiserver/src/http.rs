//! Bodies and replies, and in which form a client wants them.

use std::collections::HashSet;
use std::convert::Infallible;

use bytes::{Bytes, BytesMut};
use futures::Stream;
use http::header::{
    ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, USER_AGENT, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, Response, StatusCode};
use http_body::{Body as _, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::StatusDetails;
use krate_api::{Reason, StatusError, protobuf};
use serde_json::Value;

use crate::request::Query;
use crate::{audit, yaml};

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// The body of a request or a reply.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;
pub type Reply = Response<Body>;

/// The largest body of a request in bytes, as upstream.
const MAX_BODY: usize = 3 * 1024 * 1024;

const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const PLAIN: &str = "text/plain; charset=utf-8";

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

pub fn stream(chunks: impl Stream<Item = Bytes> + Send + 'static) -> Body {
    use futures::StreamExt as _;
    StreamBody::new(chunks.map(|chunk| Ok(Frame::data(chunk)))).boxed_unsync()
}

/// Reads a whole body.
///
/// # Errors
/// It is too large, or breaks off.
pub async fn read(mut body: Body) -> Result<Bytes, StatusError> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| StatusError::bad_request(error.to_string()))?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.len() + data.len() > MAX_BODY {
            return Err(StatusError::new(
                Reason::RequestEntityTooLarge,
                format!("Request entity too large: limit is {MAX_BODY}"),
            ));
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

/// What the client wants an object turned into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Object,
    Table,
    /// `PartialObjectMetadata`, and of lists `PartialObjectMetadataList`.
    Metadata,
}

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Json,
    Yaml,
    Protobuf,
}

/// What the client accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub shape: Shape,
    pub form: Form,
    pub pretty: bool,
}

impl Wanted {
    /// An object in JSON, as who says nothing gets it.
    pub const JSON: Wanted = Wanted { shape: Shape::Object, form: Form::Json, pretty: false };
    /// The same, laid out.
    pub const LAID_OUT: Wanted = Wanted { pretty: true, ..Wanted::JSON };

    /// Reads `Accept` by the form in it that is liked best of those that are served. People are shown what they can read.
    ///
    /// # Errors
    /// None of them is: 406.
    pub fn of(headers: &HeaderMap, query: &Query) -> Result<Self, StatusError> {
        let accept = accepted(headers);
        if !accept.is_empty() && !accept.split(',').any(is_known) {
            return Err(not_acceptable());
        }
        Self::liked(accept, is_pretty(headers, query), |_| true).ok_or_else(only_accepted)
    }

    /// The same for a custom resource, whose objects have no encoding in protobuf.
    ///
    /// # Errors
    /// As those of [`Wanted::of`].
    pub fn of_custom(headers: &HeaderMap, query: &Query) -> Result<Self, StatusError> {
        let has_encoding = |wanted: &Self| wanted.form != Form::Protobuf;
        Self::liked(accepted(headers), is_pretty(headers, query), has_encoding).ok_or_else(only_accepted)
    }

    /// The same for what has one shape only.
    ///
    /// # Errors
    /// It is taken in none of its forms: 406.
    pub fn of_whole(headers: &HeaderMap, query: &Query) -> Result<Self, StatusError> {
        let is_whole = |wanted: &Self| wanted.shape == Shape::Object;
        Self::liked(accepted(headers), is_pretty(headers, query), is_whole).ok_or_else(only_accepted)
    }

    /// How a refusal is told. Who takes it in no form is told in one that people can read, as upstream does.
    pub fn of_refusal(headers: &HeaderMap, query: &Query) -> Self {
        Self::of_whole(headers, query).unwrap_or(Wanted::LAID_OUT)
    }

    /// The form that is liked best of those that are served and allowed.
    fn liked(accept: &str, pretty: bool, allows: impl Fn(&Self) -> bool) -> Option<Self> {
        if accept.is_empty() {
            return Some(Wanted { pretty, ..Wanted::JSON });
        }
        liked_first(accept).into_iter().filter_map(|form| Self::of_form(form, pretty)).find(allows)
    }

    /// What has no columns is told in no table.
    ///
    /// # Errors
    /// A table is wanted: 406.
    pub fn without_table(self) -> Result<Self, StatusError> {
        if self.shape == Shape::Table { Err(only_accepted()) } else { Ok(self) }
    }

    fn of_form(form: &str, pretty: bool) -> Option<Self> {
        let mut parts = form.split(';').map(str::trim);
        let form = match parts.next()? {
            JSON | "*/*" | "application/*" => Form::Json,
            YAML => Form::Yaml,
            PROTOBUF => Form::Protobuf,
            _ => return None,
        };
        let (mut pretty, mut is_plain) = (pretty, true);
        let (mut kind, mut group, mut version) = ("", "", "");
        for (key, value) in parts.filter_map(|part| part.split_once('=')) {
            let value = value.trim();
            match key.trim() {
                "as" => (kind, is_plain) = (value, false),
                "g" => (group, is_plain) = (value, false),
                "v" => (version, is_plain) = (value, false),
                "pretty" => pretty |= value == "1",
                "stream" if !matches!(value, "" | "watch") => return None,
                "sv" if !matches!(value, "" | "v1") => return None,
                _ => {}
            }
        }
        let shape = match (kind, group, version) {
            _ if is_plain => Shape::Object,
            ("Table", "meta.k8s.io", "v1" | "v1beta1") => Shape::Table,
            ("PartialObjectMetadata" | "PartialObjectMetadataList", "meta.k8s.io", "v1" | "v1beta1") => {
                Shape::Metadata
            }
            _ => return None,
        };
        // Protobuf is the form of whole objects; who asks for others names another form too.
        if form == Form::Protobuf && shape != Shape::Object {
            return None;
        }
        Some(Wanted { shape, form, pretty })
    }
}

fn accepted(headers: &HeaderMap) -> &str {
    headers.get(ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default().trim()
}

/// Whether JSON is to be laid out: as the query says, or else by who asks.
pub fn is_pretty(headers: &HeaderMap, query: &Query) -> bool {
    match query.get("pretty") {
        Some(said) => matches!(said, "1" | "t" | "T" | "true" | "TRUE" | "True"),
        None => is_for_people(headers),
    }
}

/// Whether who asks is known to show to people what he is told.
fn is_for_people(headers: &HeaderMap) -> bool {
    let agent = headers.get(USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    ["curl", "Wget", "Mozilla/5.0"].iter().any(|known| agent.starts_with(known))
}

/// The forms that a client takes, those first that it likes best, and of those the ones that it names in full.
fn liked_first(accept: &str) -> Vec<&str> {
    let rank = |form: &str| {
        let mut parts = form.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let liking = parts.filter_map(|part| part.split_once('=')).find(|(key, _)| key.trim() == "q");
        let liking: f32 = liking.map_or(1.0, |(_, value)| value.trim().parse().unwrap_or(0.0));
        (liking, media.starts_with('*'), media.ends_with('*'))
    };
    let mut forms: Vec<_> = accept.split(',').map(|form| (rank(form), form)).collect();
    forms.sort_by(|((a, any, all), _), ((b, other_any, other_all), _)| {
        b.total_cmp(a).then((any, all).cmp(&(other_any, other_all)))
    });
    forms.into_iter().map(|(_, form)| form).collect()
}

/// What an object can be sent as.
const REPRESENTATIONS: [&str; 3] = [JSON, YAML, PROTOBUF];

fn is_known(form: &str) -> bool {
    let media = form.split(';').next().unwrap_or_default().trim();
    media == "*/*" || REPRESENTATIONS.contains(&media)
}

/// What is answered to who names none of the forms that there are, before it is seen what he asks for.
fn not_acceptable() -> StatusError {
    StatusError::with_details(
        Reason::NotAcceptable,
        format!("406: Not Acceptable\n\nAvailable representations: {}", REPRESENTATIONS.join(", ")),
        Some(StatusDetails::default()),
    )
}

/// What is answered to who takes nothing of what it is in a form that it has.
fn only_accepted() -> StatusError {
    let accepted = REPRESENTATIONS.join(", ");
    StatusError::new(
        Reason::NotAcceptable,
        format!("only the following media types are accepted: {accepted}"),
    )
}

/// What is answered to a patch of a kind that there is not.
pub fn unsupported_media_type() -> StatusError {
    StatusError::with_details(
        Reason::UnsupportedMediaType,
        "415: Unsupported Media Type",
        Some(StatusDetails::default()),
    )
}

/// The media type that a body says to have, without its parameters.
pub fn media_type(headers: &HeaderMap) -> &str {
    let header = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    header.split(';').next().unwrap_or_default().trim()
}

/// Reads YAML, of which JSON is a part. The error is as upstream words it.
pub fn json_of_yaml(body: &[u8]) -> Result<Value, String> {
    yaml::to_json(body)
}

/// The body of a request as JSON.
pub struct Sent {
    pub json: Bytes,
    /// The error of keys that a YAML document says twice, which is not seen in what became of it.
    pub repeated: Option<String>,
}

/// The body of a request as JSON.
///
/// # Errors
/// Its form is not known (415), or it is not what it says to be (400).
pub fn to_json(headers: &HeaderMap, body: Bytes) -> Result<Bytes, StatusError> {
    sent(headers, body).map(|sent| sent.json)
}

/// The same, with what is odd in it.
///
/// # Errors
/// As those of [`to_json`].
pub fn sent(headers: &HeaderMap, body: Bytes) -> Result<Sent, StatusError> {
    let sent = converted(headers, body)?;
    audit::requested(&sent.json);
    Ok(sent)
}

fn converted(headers: &HeaderMap, body: Bytes) -> Result<Sent, StatusError> {
    let written = |value: &Value, repeated| -> Result<Sent, StatusError> {
        let json = serde_json::to_vec(value).map_err(StatusError::internal)?.into();
        Ok(Sent { json, repeated })
    };
    let is = |known: &str| media_type(headers).eq_ignore_ascii_case(known);
    if is("") || is(JSON) {
        return Ok(Sent { json: body, repeated: None });
    }
    if is(YAML) {
        let document = yaml::read(&body).map_err(StatusError::bad_request)?;
        return written(&document.value, document.repeated);
    }
    if is(PROTOBUF) {
        let value = protobuf::decode(&body).map_err(|error| StatusError::bad_request(error.to_string()))?;
        return written(&value, None);
    }
    Err(StatusError::new(
        Reason::UnsupportedMediaType,
        "the body of the request was in an unknown format - accepted media types include: application/json, \
         application/yaml, application/vnd.kubernetes.protobuf",
    ))
}

pub fn reply(code: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(full(body));
    *reply.status_mut() = code;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}

/// Plain text, which a browser must not take for something else: what Go's servers say for themselves.
pub fn plain(code: StatusCode, text: impl Into<Bytes>) -> Reply {
    let mut reply = reply(code, PLAIN, text);
    no_sniffing(&mut reply);
    reply
}

/// Forbids browsers to guess what an answer is.
pub fn no_sniffing(reply: &mut Reply) {
    reply.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
}

/// An answer to `HEAD`: what is said of a body, without it.
pub fn without_body(mut reply: Reply) -> Reply {
    let length = reply.body().size_hint().exact();
    *reply.body_mut() = full(Bytes::new());
    if let Some(length) = length {
        reply.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    reply
}

/// JSON that is made while it is sent.
pub fn made(code: StatusCode, body: Body) -> Reply {
    let mut reply = Response::new(body);
    *reply.status_mut() = code;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
    reply
}

/// JSON as the client wants to see it. What has no encoding in protobuf, such as a custom resource, is sent as JSON.
pub fn json(code: StatusCode, wanted: Wanted, json: Bytes) -> Reply {
    audit::responded(&json);
    let value = || serde_json::from_slice::<Value>(&json).unwrap_or_default();
    match wanted.form {
        Form::Yaml => reply(code, YAML, yaml::to_text(&value())),
        Form::Protobuf => match protobuf::encode(&value()) {
            Ok(encoded) => reply(code, PROTOBUF, encoded),
            Err(_) => reply(code, JSON, line(json)),
        },
        Form::Json if wanted.pretty => {
            reply(code, JSON, serde_json::to_vec_pretty(&value()).unwrap_or_default())
        }
        Form::Json => reply(code, JSON, line(json)),
    }
}

/// JSON ends its line, as Go's encoder has it, unless it is laid out.
fn line(json: Bytes) -> Bytes {
    if json.ends_with(b"\n") {
        return json;
    }
    let mut line = json.try_into_mut().unwrap_or_else(|shared| {
        let mut own = BytesMut::with_capacity(shared.len() + 1);
        own.extend_from_slice(&shared);
        own
    });
    line.extend_from_slice(b"\n");
    line.freeze()
}

/// A refusal as it is sent.
pub fn refusal(error: &StatusError, wanted: Wanted) -> Reply {
    let code = StatusCode::from_u16(error.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut out = json(code, wanted, error.to_json().into());
    let after = error.0.details.as_ref().and_then(|details| details.retry_after_seconds);
    if let Some(seconds) = after.filter(|seconds| *seconds > 0) {
        out.headers_mut().insert(http::header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    out
}

/// How many characters all warnings may have before each is cut, and to how many.
const WARNINGS_MAX: usize = 4 * 1024;
const WARNING_CUT: usize = 256;

/// Adds warnings as `Warning: 299` headers, each once (KEP-1693).
pub fn warn(reply: &mut Reply, warnings: &[String]) {
    let mut said = HashSet::new();
    let warnings: Vec<&str> =
        warnings.iter().map(String::as_str).filter(|warning| said.insert(*warning)).collect();
    let cut = warnings.iter().map(|warning| warning.chars().count()).sum::<usize>() > WARNINGS_MAX;
    let mut left = WARNINGS_MAX;
    for warning in warnings.into_iter().filter(|warning| !warning.is_empty()) {
        if left == 0 {
            return;
        }
        let text: String = warning.chars().take(if cut { WARNING_CUT } else { usize::MAX }).collect();
        if text.chars().any(char::is_control) {
            continue;
        }
        let header = format!("299 - \"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
        // It may say what a client has sent, in whichever script.
        if let Ok(value) = HeaderValue::from_bytes(header.as_bytes()) {
            left = left.saturating_sub(text.chars().count());
            reply.headers_mut().append(HeaderName::from_static("warning"), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(text: &'static str) -> Result<Wanted, StatusError> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(text));
        Wanted::of(&headers, &Query::default())
    }

    #[test]
    fn the_first_form_that_is_served_is_taken() {
        let table = accept("application/json;as=Table;v=v1;g=meta.k8s.io,application/json");
        assert_eq!(table.expect("served").shape, Shape::Table);
        let odd = accept("application/json;as=Odd;v=v1;g=meta.k8s.io,application/json");
        assert_eq!(odd.expect("served").shape, Shape::Object);
        assert_eq!(accept("application/yaml").expect("served").form, Form::Yaml);
        let binary = accept("application/vnd.kubernetes.protobuf,application/json");
        assert_eq!(binary.expect("served").form, Form::Protobuf);
        assert_eq!(accept("text/html").expect_err("not served").code(), 406);
    }

    #[test]
    fn who_takes_nothing_that_there_is_is_told_what_there_is() {
        let told = |text| accept(text).expect_err("not served").to_string();
        let all = "application/json, application/yaml, application/vnd.kubernetes.protobuf";
        let unseen = format!("406: Not Acceptable\n\nAvailable representations: {all}");
        assert_eq!((told("text/html"), told("application/*")), (unseen.clone(), unseen));
        let seen = format!("only the following media types are accepted: {all}");
        assert_eq!(told("application/json;as=Odd;v=v1;g=meta.k8s.io"), seen);
    }

    #[test]
    fn a_custom_resource_has_no_form_in_protobuf() {
        let custom = |text| {
            let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(text))]);
            Wanted::of_custom(&headers, &Query::default()).map(|wanted| wanted.form)
        };
        let both = custom("application/vnd.kubernetes.protobuf,application/yaml");
        assert_eq!(both.expect("served"), Form::Yaml);
        assert_eq!(custom("application/*").expect("served"), Form::Json);
        assert_eq!(custom("application/vnd.kubernetes.protobuf").expect_err("not served").code(), 406);
    }

    #[test]
    fn a_refusal_is_told_whole_and_so_that_someone_can_read_it() {
        let told = |text| {
            let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(text))]);
            Wanted::of_refusal(&headers, &Query::default())
        };
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
        assert_eq!((told(table), told("text/html")), (Wanted::LAID_OUT, Wanted::LAID_OUT));
        let either = told("application/json;as=Table;v=v1;g=meta.k8s.io,application/yaml");
        assert_eq!(either, Wanted { form: Form::Yaml, ..Wanted::JSON });
    }

    #[test]
    fn forms_are_taken_in_the_order_in_which_they_are_liked() {
        let form = |text| accept(text).expect("served").form;
        assert_eq!(form("application/json;q=0.5, application/yaml;q=0.9"), Form::Yaml);
        assert_eq!(form("*/*, application/yaml"), Form::Yaml);
        assert_eq!(form("application/json, application/yaml"), Form::Json);
        assert_eq!(accept("application/json;as=Table,application/yaml").expect("served").form, Form::Yaml);
        assert!(accept("application/json;pretty=1").expect("served").pretty);
    }

    #[test]
    fn people_are_shown_what_they_can_read_unless_they_say_otherwise() {
        for (agent, query, pretty) in [
            ("curl/8.0", "", true),
            ("Mozilla/5.0 (X11)", "pretty=", true),
            ("curl/8.0", "pretty=false", false),
            ("Wget/1.21", "pretty=yes", false),
            ("kubectl/v1.36.2", "", false),
            ("kubectl/v1.36.2", "pretty=true", true),
        ] {
            let headers = HeaderMap::from_iter([(USER_AGENT, HeaderValue::from_static(agent))]);
            let wanted = Wanted::of(&headers, &Query::parse(Some(query))).expect("served");
            assert_eq!(wanted.pretty, pretty, "{agent} {query}");
        }
    }

    #[tokio::test]
    async fn json_ends_its_line_unless_it_is_laid_out() {
        let shared = Bytes::from_static(b"{\"a\":1}");
        for (wanted, text) in [(Wanted::JSON, "{\"a\":1}\n"), (Wanted::LAID_OUT, "{\n  \"a\": 1\n}")] {
            let said = json(StatusCode::OK, wanted, shared.clone()).into_body();
            let told = said.collect().await.expect("a body").to_bytes();
            assert_eq!(told, text);
        }
        assert_eq!(line(Bytes::from(vec![b'1'])), "1\n");
        assert_eq!(line(Bytes::from_static(b"1\n")), "1\n");
    }

    #[test]
    fn a_body_is_what_it_is_said_to_be() {
        for (said, body, taken) in [
            ("", "{}", true),
            ("Application/JSON; charset=utf-8", "{}", true),
            ("application/yaml", "a: 1", true),
            ("application/x-yaml", "a: 1", false),
            ("text/yaml", "a: 1", false),
        ] {
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(said))]);
            let sent = to_json(&headers, Bytes::from_static(body.as_bytes()));
            assert_eq!(sent.err().map(|error| error.code()), (!taken).then_some(415), "{said}");
        }
    }

    #[test]
    fn an_answer_to_head_has_no_body() {
        let said = without_body(reply(StatusCode::OK, JSON, "{}"));
        assert_eq!(said.headers()[CONTENT_LENGTH], "2");
        assert_eq!(said.body().size_hint().exact(), Some(0));
    }

    fn warned(warnings: &[String]) -> Vec<String> {
        let mut said = reply(StatusCode::OK, JSON, "{}");
        warn(&mut said, warnings);
        let all = said.headers().get_all("warning").iter();
        all.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect()
    }

    #[test]
    fn a_client_is_warned_of_each_thing_once_and_in_bounds() {
        let texts = ["a \"b\"", "\u{e9}", "a \"b\"", "a\nb", ""].map(str::to_owned);
        assert_eq!(warned(&texts), [r#"299 - "a \"b\"""#, "299 - \"\u{e9}\""]);
        let many: Vec<String> = (0..100).map(|i| format!("{i:03}{}", "x".repeat(500))).collect();
        let cut = warned(&many);
        assert_eq!((cut.len(), cut[0].len()), (16, 256 + "299 - \"\"".len()));
    }
}
