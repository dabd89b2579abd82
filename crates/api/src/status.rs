//! `metav1.Status` as an error: what the API says when it refuses. Codes, reasons and wording are upstream's
//! (`k8s.io/apimachinery/pkg/api/errors`).

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ListMeta, Status, StatusCause, StatusDetails};

use crate::field::FieldErrors;
use crate::kind::Gvk;

/// Why a request was refused, for machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    BadRequest,
    Unauthorized,
    Forbidden,
    NotFound,
    AlreadyExists,
    Conflict,
    Gone,
    Expired,
    Invalid,
    MethodNotAllowed,
    NotAcceptable,
    UnsupportedMediaType,
    RequestEntityTooLarge,
    TooManyRequests,
    InternalError,
    ServiceUnavailable,
    Timeout,
}

impl Reason {
    pub const fn code(self) -> u16 {
        match self {
            Reason::BadRequest => 400,
            Reason::Unauthorized => 401,
            Reason::Forbidden => 403,
            Reason::NotFound => 404,
            Reason::MethodNotAllowed => 405,
            Reason::NotAcceptable => 406,
            Reason::AlreadyExists | Reason::Conflict => 409,
            Reason::Gone | Reason::Expired => 410,
            Reason::RequestEntityTooLarge => 413,
            Reason::UnsupportedMediaType => 415,
            Reason::Invalid => 422,
            Reason::TooManyRequests => 429,
            Reason::InternalError => 500,
            Reason::ServiceUnavailable => 503,
            Reason::Timeout => 504,
        }
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Reason::BadRequest => "BadRequest",
            Reason::Unauthorized => "Unauthorized",
            Reason::Forbidden => "Forbidden",
            Reason::NotFound => "NotFound",
            Reason::AlreadyExists => "AlreadyExists",
            Reason::Conflict => "Conflict",
            Reason::Gone => "Gone",
            Reason::Expired => "Expired",
            Reason::Invalid => "Invalid",
            Reason::MethodNotAllowed => "MethodNotAllowed",
            Reason::NotAcceptable => "NotAcceptable",
            Reason::UnsupportedMediaType => "UnsupportedMediaType",
            Reason::RequestEntityTooLarge => "RequestEntityTooLarge",
            Reason::TooManyRequests => "TooManyRequests",
            Reason::InternalError => "InternalError",
            Reason::ServiceUnavailable => "ServiceUnavailable",
            Reason::Timeout => "Timeout",
        }
    }
}

/// A refusal, ready to be sent as a `Status`. Boxed, since results that carry it are everywhere.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", .0.message.as_deref().unwrap_or("unknown"))]
pub struct StatusError(pub Box<Status>);

impl StatusError {
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self::with_details(reason, message, None)
    }

    pub fn with_details(reason: Reason, message: impl Into<String>, details: Option<StatusDetails>) -> Self {
        StatusError(Box::new(Status {
            metadata: ListMeta::default(),
            status: Some("Failure".to_owned()),
            message: Some(message.into()),
            reason: Some(reason.as_str().to_owned()),
            details,
            code: Some(i32::from(reason.code())),
        }))
    }

    pub fn code(&self) -> u16 {
        self.0.code.and_then(|c| u16::try_from(c).ok()).unwrap_or(500)
    }

    pub fn is(&self, reason: Reason) -> bool {
        self.0.reason.as_deref() == Some(reason.as_str())
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(Reason::BadRequest, message)
    }

    pub fn internal(message: impl std::fmt::Display) -> Self {
        let text = message.to_string();
        Self::with_details(
            Reason::InternalError,
            format!("Internal error occurred: {text}"),
            Some(StatusDetails {
                causes: Some(vec![StatusCause { message: Some(text), ..StatusCause::default() }]),
                ..StatusDetails::default()
            }),
        )
    }

    /// `resource` is the plural, `group` may be empty: `deployments.apps "x" not found`.
    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        Self::with_details(
            Reason::NotFound,
            format!("{} \"{name}\" not found", qualified(group, resource)),
            Some(named(group, resource, name)),
        )
    }

    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        Self::with_details(
            Reason::AlreadyExists,
            format!("{} \"{name}\" already exists", qualified(group, resource)),
            Some(named(group, resource, name)),
        )
    }

    pub fn conflict(group: &str, resource: &str, name: &str, why: impl std::fmt::Display) -> Self {
        Self::with_details(
            Reason::Conflict,
            format!("Operation cannot be fulfilled on {} \"{name}\": {why}", qualified(group, resource)),
            Some(named(group, resource, name)),
        )
    }

    pub fn forbidden(group: &str, resource: &str, name: &str, why: impl std::fmt::Display) -> Self {
        let message = match (resource.is_empty(), name.is_empty()) {
            (true, _) => format!("forbidden: {why}"),
            (false, true) => format!("{} is forbidden: {why}", qualified(group, resource)),
            (false, false) => format!("{} \"{name}\" is forbidden: {why}", qualified(group, resource)),
        };
        Self::with_details(Reason::Forbidden, message, Some(named(group, resource, name)))
    }

    /// What validation found.
    pub fn invalid(kind: Gvk<'_>, name: &str, errors: &FieldErrors) -> Self {
        let all = errors.aggregate();
        let mut details = named(kind.group, kind.kind, name);
        details.causes = Some(errors.iter().map(super::field::FieldError::cause).collect());
        Self::with_details(
            Reason::Invalid,
            format!("{} \"{name}\" is invalid: {all}", qualified(kind.group, kind.kind)),
            Some(details),
        )
    }

    /// The body to be sent: with `kind` and `apiVersion`, as JSON.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(&*self.0).unwrap_or_default()
    }
}

fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}

fn named(group: &str, resource: &str, name: &str) -> StatusDetails {
    let some = |s: &str| (!s.is_empty()).then(|| s.to_owned());
    StatusDetails { name: some(name), group: some(group), kind: some(resource), ..StatusDetails::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_found_reads_as_upstreams() {
        let e = StatusError::not_found("apps", "deployments", "web");
        assert_eq!(e.code(), 404);
        let json: serde_json::Value = serde_json::from_slice(&e.to_json()).expect("json");
        assert_eq!(json["kind"], "Status");
        assert_eq!(json["message"], "deployments.apps \"web\" not found");
        assert_eq!(json["details"]["kind"], "deployments");
    }
}
