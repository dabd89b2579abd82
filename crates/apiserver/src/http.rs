//! Bodies and replies, and in which form a client wants them.

use std::collections::HashSet;
use std::convert::Infallible;

use bytes::{Bytes, BytesMut};
use futures::Stream;
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, USER_AGENT};
use http::{HeaderMap, Response, StatusCode};
use http_body::{Body as _, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::StatusDetails;
use krate_api::{Reason, StatusError, protobuf};
use serde_json::Value;

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

    /// Reads `Accept` by the form in it that is liked best of those that are served. People are shown what they can read.
    ///
    /// # Errors
    /// None of them is: 406.
    pub fn of(headers: &HeaderMap, pretty: bool) -> Result<Self, StatusError> {
        let pretty = pretty || is_for_people(headers);
        let accept = headers.get(ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
        if accept.trim().is_empty() {
            return Ok(Wanted { pretty, ..Wanted::JSON });
        }
        if !accept.split(',').any(is_known) {
            return Err(not_acceptable(&REPRESENTATIONS));
        }
        let mut forms = liked_first(accept).into_iter();
        forms.find_map(|form| Self::of_form(form, pretty)).ok_or_else(|| not_acceptable(&REPRESENTATIONS))
    }

    /// What has no columns is told in no table.
    ///
    /// # Errors
    /// A table is wanted: 406.
    pub fn without_table(self) -> Result<Self, StatusError> {
        if self.shape == Shape::Table {
            return Err(StatusError::new(
                Reason::NotAcceptable,
                "only the following media types are accepted: application/json, application/yaml, \
                 application/vnd.kubernetes.protobuf",
            ));
        }
        Ok(self)
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
    matches!(media, "*/*" | "application/*") || REPRESENTATIONS.contains(&media)
}

/// What is answered to who takes none of what there is.
fn not_acceptable(representations: &[&str]) -> StatusError {
    StatusError::with_details(
        Reason::NotAcceptable,
        format!("406: Not Acceptable\n\nAvailable representations: {}", representations.join(", ")),
        Some(StatusDetails::default()),
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

/// Whether a body is said to be YAML.
fn is_yaml(headers: &HeaderMap) -> bool {
    matches!(media_type(headers), YAML | "application/x-yaml" | "text/yaml")
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
    match media_type(headers) {
        "" | JSON => Ok(Sent { json: body, repeated: None }),
        _ if is_yaml(headers) => {
            let document = yaml::read(&body).map_err(StatusError::bad_request)?;
            written(&document.value, document.repeated)
        }
        PROTOBUF => {
            let value =
                protobuf::decode(&body).map_err(|error| StatusError::bad_request(error.to_string()))?;
            written(&value, None)
        }
        _ => Err(StatusError::new(
            Reason::UnsupportedMediaType,
            "the body of the request was in an unknown format - accepted media types include: application/json, \
             application/yaml, application/vnd.kubernetes.protobuf",
        )),
    }
}

pub fn reply(code: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(full(body));
    *reply.status_mut() = code;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
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
            Err(_) => reply(code, JSON, json),
        },
        Form::Json if wanted.pretty => {
            reply(code, JSON, serde_json::to_vec_pretty(&value()).unwrap_or_default())
        }
        Form::Json => reply(code, JSON, json),
    }
}

/// A refusal as it is sent.
pub fn refusal(error: &StatusError, wanted: Wanted) -> Reply {
    let code = StatusCode::from_u16(error.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut out = json(code, wanted, error.to_json().into());
    if let Some(seconds) = error.0.details.as_ref().and_then(|d| d.retry_after_seconds) {
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
        Wanted::of(&headers, false)
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
    fn forms_are_taken_in_the_order_in_which_they_are_liked() {
        let form = |text| accept(text).expect("served").form;
        assert_eq!(form("application/json;q=0.5, application/yaml;q=0.9"), Form::Yaml);
        assert_eq!(form("*/*, application/yaml"), Form::Yaml);
        assert_eq!(form("application/json, application/yaml"), Form::Json);
        assert_eq!(accept("application/json;as=Table,application/yaml").expect("served").form, Form::Yaml);
        assert!(accept("application/json;pretty=1").expect("served").pretty);
    }

    #[test]
    fn people_are_shown_what_they_can_read() {
        let wanted = |agent: &'static str| {
            let headers = HeaderMap::from_iter([(USER_AGENT, HeaderValue::from_static(agent))]);
            Wanted::of(&headers, false).expect("served").pretty
        };
        assert!(wanted("curl/8.0") && wanted("Mozilla/5.0 (X11)"));
        assert!(!wanted("kubectl/v1.36.2"));
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
