//! One request to one resource on its way: what was asked, by whom, and how the answer is wanted.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use krate_api::schema::{self, Checked};
use krate_api::{FieldErrors, FieldPath, Gvk, Kind, Reason, StatusError, meta};
use serde::Deserialize;

use crate::auth::User;
use crate::http::{self as wire, Reply, Shape, Wanted};
use crate::registry::Context;
use crate::registry::erased::Object;
use crate::request::{Query, RequestInfo};
use crate::server::Server;
use crate::storage::{Storage, Written};

/// What is said of fields that a kind does not have, or that come twice (KEP-2885).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

/// Where upstream keeps the kinds that are built in, as its errors name it.
const SCHEME: &str = "pkg/api/legacyscheme/scheme.go:30";

impl FieldValidation {
    fn of(query: &Query) -> Self {
        match query.get("fieldValidation") {
            Some("Ignore") => FieldValidation::Ignore,
            Some("Strict") => FieldValidation::Strict,
            _ => FieldValidation::Warn,
        }
    }

    /// What is to be warned of; the error, where the client wants strictness.
    fn judge(self, checked: &Checked) -> Result<Vec<String>, String> {
        match self {
            FieldValidation::Ignore => Ok(Vec::new()),
            FieldValidation::Strict => checked.strict_error().map_or(Ok(Vec::new()), Err),
            FieldValidation::Warn => Ok(checked.strict.iter().flat_map(|told| warned(told)).collect()),
        }
    }
}

pub struct Call {
    pub server: Arc<Server>,
    pub storage: Arc<Storage>,
    pub info: RequestInfo,
    pub query: Query,
    /// The query as it came, for what is passed on.
    pub raw_query: String,
    pub method: Method,
    pub headers: HeaderMap,
    pub user: Arc<User>,
    pub wanted: Wanted,
    pub dry_run: bool,
    pub warnings: Vec<String>,
    /// The bare connection, for a request that asks to leave HTTP.
    pub upgrade: Option<hyper::upgrade::OnUpgrade>,
}

#[derive(Deserialize)]
struct TypeMeta {
    #[serde(default)]
    kind: String,
    #[serde(default, rename = "apiVersion")]
    api_version: String,
}

impl Call {
    pub fn kind(&self) -> &'static Kind {
        self.storage.kind()
    }

    pub fn context(&self) -> Context {
        Context {
            namespace: self.info.namespace.clone(),
            user: Arc::clone(&self.user),
            dry_run: self.dry_run,
            subresource: self.info.subresource.clone(),
            features: Arc::clone(&self.server.features),
        }
    }

    /// Who is said to manage the fields that are written.
    pub fn manager(&self) -> String {
        manager(&self.query, &self.headers, &self.user)
    }

    /// Reads the options of a write from the query.
    ///
    /// # Errors
    /// An option has a value that it cannot have.
    pub fn read_options(&mut self, kind: &'static str) -> Result<(), StatusError> {
        self.dry_run |= write_options(&self.query, kind)?;
        Ok(())
    }

    fn field_validation(&self) -> FieldValidation {
        FieldValidation::of(&self.query)
    }

    /// Says what is wrong with a body that can be read all the same: as a warning, if the client wants no more.
    ///
    /// # Errors
    /// The client wants strictness.
    pub fn complain(&mut self, error: String) -> Result<(), String> {
        match self.field_validation() {
            FieldValidation::Strict => return Err(error),
            FieldValidation::Warn => self.warnings.extend(warned(&error)),
            FieldValidation::Ignore => {}
        }
        Ok(())
    }

    /// Reads an object of this call's kind from the body of a request.
    ///
    /// # Errors
    /// It is another kind's, or no object.
    pub fn decode(&mut self, body: Bytes) -> Result<Box<dyn Object>, StatusError> {
        let wire::Sent { json, repeated } = wire::sent(&self.headers, body.clone()).map_err(|error| {
            if error.code() == 400 { self.unrecognized(&error.to_string(), &body) } else { error }
        })?;
        let mut checked = self.check(&json);
        if checked.is_none()
            && let Some(error) = krate_api::json::syntax_error(&json)
        {
            let why = format!("couldn't get version/kind; json parse error: {error}");
            return Err(self.unrecognized(&why, &body));
        }
        match &checked {
            Some(checked) => self.check_type(&checked.api_version, &checked.kind)?,
            None => {
                if let Ok(said) = serde_json::from_slice::<TypeMeta>(&json) {
                    self.check_type(&said.api_version, &said.kind)?;
                }
            }
        }
        if let Some(checked) = &mut checked {
            let twice =
                repeated.map(|told| told.trim_start_matches("error converting YAML to JSON: ").to_owned());
            checked.strict.splice(0..0, twice);
        }
        self.typed(&json, checked).map_err(|why| self.unhandled(&why))
    }

    fn unrecognized(&self, why: &str, body: &[u8]) -> StatusError {
        StatusError::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): {why} ({})",
            self.kind().kind,
            summary(body)
        ))
    }

    fn unhandled(&self, why: &str) -> StatusError {
        unhandled(self.kind().gvk(), why)
    }

    fn check_type(&self, api_version: &str, said: &str) -> Result<(), StatusError> {
        let kind = self.kind();
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let other_kind = !said.is_empty() && said != kind.kind;
        let other_version = !api_version.is_empty() && (group, version) != (kind.group, kind.version);
        if !other_kind && !other_version {
            return Ok(());
        }
        Err(StatusError::bad_request(if other_version && !other_kind {
            let wanted = kind.api_version();
            format!(
                "the API version in the data ({api_version}) does not match the expected API version ({wanted})"
            )
        } else {
            format!(
                "{said} in version \"{version}\" cannot be handled as a {}: no kind \"{said}\" is registered for version \
                 \"{api_version}\" in scheme \"{SCHEME}\"",
                kind.kind,
            )
        }))
    }

    /// The same of JSON whose kind is known to be right, such as a patched object.
    pub fn decode_checked(&mut self, json: &[u8]) -> Result<Box<dyn Object>, StatusError> {
        self.decode_typed(json).map_err(|why| self.unhandled(&why))
    }

    /// The same; the error is what is wrong with it, in upstream's words.
    pub fn decode_typed(&mut self, json: &[u8]) -> Result<Box<dyn Object>, String> {
        let checked = self.check(json);
        self.typed(json, checked)
    }

    /// What a walk along the kind's schema finds. None for a kind without one, and for what is no JSON.
    fn check(&self, json: &[u8]) -> Option<Checked> {
        schema::check(json, self.storage.registry.schema()?).ok()
    }

    fn typed(&mut self, json: &[u8], checked: Option<Checked>) -> Result<Box<dyn Object>, String> {
        if let Some(mut checked) = checked {
            // What a custom resource's schema does not allow is told by its validation.
            if let Some(error) = checked.type_error.take().filter(|_| !self.kind().custom) {
                return Err(error);
            }
            let told = self.field_validation().judge(&checked)?;
            self.warnings.extend(told);
        }
        self.storage.registry.decode(json).map_err(|error| error.to_string())
    }

    /// Checks that an object from a body is meant for this request's place, and puts it into its namespace.
    ///
    /// # Errors
    /// It names another namespace, or another name than the path, or none where the path does.
    pub fn place(&self, object: &mut dyn Object) -> Result<(), StatusError> {
        let meta = object.meta();
        let (namespace, name) = (meta.namespace.as_deref(), meta.name.as_deref());
        self.check_place(namespace.unwrap_or_default(), name.unwrap_or_default())?;
        if !self.kind().is_namespaced() {
            object.meta_mut().namespace = None;
        } else if namespace.is_none_or(str::is_empty) {
            object.meta_mut().namespace = Some(self.info.namespace.clone());
        }
        Ok(())
    }

    /// Whether what a body names, if it does, is what the path names.
    ///
    /// # Errors
    /// As those of [`Call::place`].
    pub fn check_place(&self, namespace: &str, name: &str) -> Result<(), StatusError> {
        let info = &self.info;
        if self.kind().is_namespaced() && !namespace.is_empty() && namespace != info.namespace {
            return Err(StatusError::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        if info.name.is_empty() || info.verb == "create" || name == info.name {
            return Ok(());
        }
        Err(StatusError::bad_request(if name.is_empty() {
            format!(
                "the name of the object ({} based on URL) was undeterminable: name must be provided",
                info.name
            )
        } else {
            format!("the name of the object ({name}) does not match the name on the URL ({})", info.name)
        }))
    }

    pub fn invalid(&self, name: &str, errors: &FieldErrors) -> StatusError {
        let mut gvk = self.kind().gvk();
        if gvk.group == "events.k8s.io" {
            // Both kinds of Event are validated as the core one.
            gvk.group = "";
        }
        StatusError::invalid(gvk, name, errors)
    }

    pub fn conflict(&self, name: &str, why: impl std::fmt::Display) -> StatusError {
        StatusError::conflict(self.kind().group, self.kind().plural, name, why)
    }

    /// The precondition that the caller has seen the newest state.
    pub fn stale(&self, name: &str) -> StatusError {
        self.conflict(
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// What is meant is not what is there, as upstream's storage says it.
    pub fn unmet(&self, name: &str, field: &str, asked: &str, there: &str) -> StatusError {
        let key = self.kind().key(&self.info.namespace, name);
        self.conflict(
            name,
            format!(
                "StorageError: invalid object, Code: 4, Key: {key}, ResourceVersion: 0, AdditionalErrorMsg: \
                 Precondition failed: {field} in precondition: {asked}, {field} in object meta: {there}"
            ),
        )
    }

    /// Answers with an object as it was written.
    pub async fn written(&self, code: StatusCode, written: &Written) -> Result<Reply, StatusError> {
        self.object(code, &self.storage.sent(&written.bytes).await?)
    }

    /// Answers with an object, in the shape that is wanted.
    pub fn object(&self, code: StatusCode, json: &Bytes) -> Result<Reply, StatusError> {
        let json = match self.wanted.shape {
            Shape::Object => json.clone(),
            shape => super::shape::one(&self.storage, shape, json, &self.query)?,
        };
        let mut reply = wire::json(code, self.wanted, json);
        wire::warn(&mut reply, &self.warnings);
        Ok(reply)
    }
}

/// Reads the options of a write from its query. Whether nothing is to be written.
///
/// # Errors
/// An option has a value that it cannot have.
pub fn write_options(query: &Query, kind: &'static str) -> Result<bool, StatusError> {
    let mut errors = FieldErrors::new();
    if let Some(manager) = query.get("fieldManager") {
        meta::validate_manager(manager, &FieldPath::new("fieldManager"), &mut errors);
    }
    let asked: Vec<&str> = query.all("dryRun").collect();
    if asked.iter().any(|value| *value != "All") {
        errors.not_supported(&FieldPath::new("dryRun"), &asked, &["All"]);
    }
    if let Some(value) = query.get("fieldValidation")
        && !matches!(value, "Ignore" | "Warn" | "Strict")
    {
        let supported = ["", "Ignore", "Strict", "Warn"];
        errors.not_supported(&FieldPath::new("fieldValidation"), value, &supported);
    }
    if errors.is_empty() {
        return Ok(!asked.is_empty());
    }
    Err(StatusError::invalid(Gvk { group: "meta.k8s.io", version: "v1", kind }, "", &errors))
}

/// What is odd in a body that says an object which is not stored, and is to be warned of.
///
/// # Errors
/// It is not of its type, or odd where the client wants strictness.
pub fn odd(kind: Gvk<'_>, query: &Query, json: &[u8]) -> Result<Vec<String>, StatusError> {
    let Some(t) = schema::of(kind) else { return Ok(Vec::new()) };
    // What is no JSON is told by whoever reads it.
    let Ok(checked) = schema::check(json, t) else { return Ok(Vec::new()) };
    if let Some(error) = &checked.type_error {
        return Err(unhandled(kind, error));
    }
    FieldValidation::of(query).judge(&checked).map_err(|error| unhandled(kind, &error))
}

fn unhandled(kind: Gvk<'_>, why: &str) -> StatusError {
    let Gvk { version, kind, .. } = kind;
    StatusError::bad_request(format!("{kind} in version \"{version}\" cannot be handled as a {kind}: {why}"))
}

/// The warnings that an error is told as: what a YAML document says twice is one each.
fn warned(error: &str) -> Vec<String> {
    let plain = error.strip_prefix("error converting YAML to JSON: ").unwrap_or(error);
    match plain.strip_prefix("yaml: unmarshal errors:\n") {
        Some(each) => each.split('\n').map(|line| line.trim().to_owned()).collect(),
        None => vec![error.to_owned()],
    }
}

/// Who is said to manage the fields that a request writes.
pub fn manager(query: &Query, headers: &HeaderMap, user: &User) -> String {
    if let Some(manager) = query.get("fieldManager") {
        return manager.to_owned();
    }
    let agent = headers.get(http::header::USER_AGENT).map(http::HeaderValue::as_bytes).unwrap_or_default();
    let name = manager_of(&String::from_utf8_lossy(agent));
    match user.name.as_str() {
        _ if !name.is_empty() => name,
        // Components of this process bring no name but their user's.
        user if user.starts_with("system:node:") => "kubelet".to_owned(),
        user if user.starts_with("system:kube-") => user["system:".len()..].to_owned(),
        _ => "unknown".to_owned(),
    }
}

/// What a user agent is called, as far as that is a field manager's name.
fn manager_of(agent: &str) -> String {
    let mut name = String::new();
    for c in agent.split('/').next().unwrap_or_default().chars().filter(|c| meta::is_print(*c)) {
        if name.len() + c.len_utf8() > meta::MANAGER_MAX {
            break;
        }
        name.push(c);
    }
    name
}

/// An error that has no reason of its own, as upstream answers with what its layers below hand up: 500.
pub fn unclassified(message: impl Into<String>) -> StatusError {
    let mut error = StatusError::new(Reason::InternalError, message);
    error.0.reason = None;
    error
}

/// What of a body is shown to who sent it, if it cannot be read.
fn summary(body: &[u8]) -> String {
    const SHOWN: usize = 30;
    let short = &body[..body.len().min(SHOWN)];
    let text = match body.first() {
        None => return "<empty>".to_owned(),
        Some(b'{') => String::from_utf8_lossy(short).into_owned(),
        Some(_) => hex::encode(short),
    };
    if body.len() > SHOWN { text + " ..." } else { text }
}

/// What upstream answers where a method is not served.
pub fn method_not_allowed() -> StatusError {
    StatusError::with_details(
        Reason::MethodNotAllowed,
        "the server does not allow this method on the requested resource",
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::StatusDetails::default()),
    )
}

/// What upstream answers where nothing is served.
pub fn no_such_resource() -> StatusError {
    StatusError::with_details(
        Reason::NotFound,
        "the server could not find the requested resource",
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::StatusDetails::default()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_cannot_be_are_refused_together() {
        let read = |query: &str| write_options(&Query::parse(Some(query)), "CreateOptions");
        assert!(!read("fieldManager=m&fieldValidation=Warn").expect("options"));
        assert!(read("dryRun=All").expect("options"));
        let told = read("fieldManager=a%01&dryRun=All&dryRun=odd").expect_err("odd").to_string();
        assert_eq!(
            told,
            "CreateOptions.meta.k8s.io \"\" is invalid: [fieldManager: Invalid value: \"a\\u0001\": invalid character \
             U+0001 (at position 1), dryRun: Unsupported value: [\"All\",\"odd\"]: supported values: \"All\"]"
        );
    }

    #[test]
    fn what_is_not_stored_is_looked_at_as_closely() {
        let kind = Gvk { group: "authorization.k8s.io", version: "v1", kind: "SelfSubjectAccessReview" };
        let odd = |query: &str, body: &str| odd(kind, &Query::parse(Some(query)), body.as_bytes());
        let body = r#"{"spec":{"odd":1}}"#;
        assert_eq!(odd("", body).expect("it is warned"), ["unknown field \"spec.odd\""]);
        assert!(odd("fieldValidation=Ignore", body).expect("it is read").is_empty());
        assert_eq!(
            odd("fieldValidation=Strict", body).expect_err("odd").to_string(),
            "SelfSubjectAccessReview in version \"v1\" cannot be handled as a SelfSubjectAccessReview: strict decoding \
             error: unknown field \"spec.odd\""
        );
        assert_eq!(odd("", r#"{"spec":1}"#).expect_err("no review").code(), 400);
    }

    #[test]
    fn a_user_agent_becomes_a_field_managers_name() {
        assert_eq!(manager_of("kubectl/v1.36.2 (linux/amd64)"), "kubectl");
        assert_eq!(manager_of("a\u{1}b\u{200b}c"), "abc");
        assert_eq!(manager_of(&"\u{e9}".repeat(100)).len(), 128);
    }
}
