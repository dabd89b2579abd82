//! Bodies and replies, and in which form a client wants them.

use std::convert::Infallible;

use bytes::{Bytes, BytesMut};
use futures::Stream;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{HeaderMap, Response, StatusCode};
use http_body::Frame;
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

    /// Reads `Accept` by the first form in it that is served.
    ///
    /// # Errors
    /// None of them is: 406.
    pub fn of(headers: &HeaderMap, pretty: bool) -> Result<Self, StatusError> {
        let accept = headers.get(ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
        if accept.trim().is_empty() {
            return Ok(Wanted { pretty, ..Wanted::JSON });
        }
        if !accept.split(',').any(is_known) {
            return Err(not_acceptable(&REPRESENTATIONS));
        }
        accept.split(',').find_map(|form| Self::of_form(form, pretty)).ok_or_else(|| {
            StatusError::with_details(
                Reason::NotAcceptable,
                "406: Not Acceptable\n\nAvailable representations: application/json, application/yaml, \
                 application/vnd.kubernetes.protobuf",
                Some(StatusDetails::default()),
            )
        })
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
        let mut shape = Shape::Object;
        for (key, value) in parts.filter_map(|p| p.split_once('=')) {
            shape = match (key, value) {
                ("as", "Table") => Shape::Table,
                ("as", "PartialObjectMetadata" | "PartialObjectMetadataList") => Shape::Metadata,
                ("as", _) => return None,
                ("g", group) if group != "meta.k8s.io" => return None,
                ("v", version) if !matches!(version, "v1" | "v1beta1") => return None,
                _ => shape,
            };
        }
        // Protobuf is the form of whole objects; who asks for others names another form too.
        if form == Form::Protobuf && shape != Shape::Object {
            return None;
        }
        Some(Wanted { shape, form, pretty })
    }
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
pub fn is_yaml(headers: &HeaderMap) -> bool {
    matches!(media_type(headers), YAML | "application/x-yaml" | "text/yaml")
}

/// Reads YAML, of which JSON is a part. The error is as upstream words it.
pub fn json_of_yaml(body: &[u8]) -> Result<Value, String> {
    yaml::to_json(body)
}

/// The body of a request as JSON.
///
/// # Errors
/// Its form is not known (415), or it is not what it says to be (400).
pub fn to_json(headers: &HeaderMap, body: Bytes) -> Result<Bytes, StatusError> {
    let json = converted(headers, body)?;
    audit::requested(&json);
    Ok(json)
}

fn converted(headers: &HeaderMap, body: Bytes) -> Result<Bytes, StatusError> {
    match media_type(headers) {
        "" | JSON => Ok(body),
        _ if is_yaml(headers) => {
            let value = json_of_yaml(&body).map_err(StatusError::bad_request)?;
            Ok(serde_json::to_vec(&value).map_err(StatusError::internal)?.into())
        }
        PROTOBUF => {
            let value =
                protobuf::decode(&body).map_err(|error| StatusError::bad_request(error.to_string()))?;
            Ok(serde_json::to_vec(&value).map_err(StatusError::internal)?.into())
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

/// Adds warnings as `Warning: 299` headers (KEP-1693).
pub fn warn(reply: &mut Reply, warnings: &[String]) {
    for warning in warnings {
        let text: String = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
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
}
