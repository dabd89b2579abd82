//! Who owns which fields of an object: `metadata.managedFields` and server-side apply (KEP-555).
//!
//! [`on_write`] tracks what a create, update or patch changed. [`apply`] merges what a manager wants into what is
//! there, takes away what the manager no longer wants and nobody else does, and tells conflicts. Both work on JSON
//! values and a schema, built-in or custom alike. Values are expected in canonical form
//! ([`crate::schema::canonicalize`]), which is what ownership is told of.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{StatusCause, StatusDetails};
use serde_json::Value;

use crate::schema::TypeRef;
use crate::status::{Reason, StatusError};

mod entries;
mod set;
mod sorted;
mod typed;
mod update;
mod versions;
mod view;

pub use entries::{Entry, ManagedFields, Operation};
pub use set::FieldSet;
pub use typed::{Comparison, TypedError, compare, field_set, merge, remove};
pub use update::{Request, apply, on_update, on_write};
pub use versions::{Missing, Versions};

/// The manager of a write whose caller gave no name.
pub const UNKNOWN_MANAGER: &str = "unknown";
/// The manager to which an object's fields go that was never tracked before it is first applied.
pub const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// One field that another manager owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The other manager, as messages show it: `"m1"`, `"upd" using v1`.
    pub manager: String,
    /// The path, as `.spec.containers[name="a"].image`.
    pub path: String,
}

/// Why a write was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManagedError {
    #[error("{}", conflict_message(.0))]
    Conflicts(Vec<Conflict>),
    /// The applied object says something of its own ownership.
    #[error("metadata.managedFields must be nil")]
    ManagedFieldsGiven,
    /// The applied object is of another version than the request.
    #[error(
        "Incorrect version specified in apply patch. Specified patch version: {given}, expected: {expected}"
    )]
    Version { given: String, expected: String },
    /// A value is not of its type: upstream answers this as a fault of its own.
    #[error("{what} ({object}): {fault}")]
    Typed { what: &'static str, object: String, fault: String },
    /// Objects in other versions have to be asked for; then the same is to be tried again.
    #[error("objects in other versions are not known yet")]
    Unconverted,
    /// An object in another version cannot be had.
    #[error("failed to convert object: {0}")]
    Conversion(String),
}

impl ManagedError {
    /// As it is sent.
    pub fn status(&self) -> StatusError {
        let message = self.to_string();
        match self {
            ManagedError::Conflicts(conflicts) => {
                let cause = |c: &Conflict| StatusCause {
                    reason: Some("FieldManagerConflict".to_owned()),
                    message: Some(format!("conflict with {}", c.manager)),
                    field: Some(c.path.clone()),
                };
                let causes = Some(conflicts.iter().map(cause).collect());
                let details = StatusDetails { causes, ..StatusDetails::default() };
                StatusError::with_details(Reason::Conflict, message, Some(details))
            }
            ManagedError::ManagedFieldsGiven | ManagedError::Version { .. } => {
                StatusError::bad_request(message)
            }
            ManagedError::Typed { .. } | ManagedError::Unconverted | ManagedError::Conversion(_) => {
                let mut status = StatusError::new(Reason::InternalError, message);
                status.0.reason = None;
                status
            }
        }
    }
}

fn conflict_message(conflicts: &[Conflict]) -> String {
    if let [one] = conflicts {
        return format!("Apply failed with 1 conflict: conflict with {}: {}", one.manager, one.path);
    }
    let mut managers: Vec<&str> = conflicts.iter().map(|c| c.manager.as_str()).collect();
    managers.sort_unstable();
    managers.dedup();
    let of = |manager: &str| -> String {
        let paths: Vec<String> =
            conflicts.iter().filter(|c| c.manager == manager).map(|c| format!("- {}", c.path)).collect();
        format!("conflicts with {manager}:\n{}", paths.join("\n"))
    };
    let all: Vec<String> = managers.into_iter().map(of).collect();
    format!("Apply failed with {} conflicts: {}", conflicts.len(), all.join("\n"))
}

/// Takes `metadata.managedFields` out of an object, for what should not see it.
pub fn take(object: &mut Value) -> Option<Value> {
    object.get_mut("metadata").and_then(Value::as_object_mut)?.remove("managedFields")
}

/// The time of an entry as it is written.
fn whole_seconds(now: Timestamp) -> Timestamp {
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

/// Whether a type is known to have managed fields at all.
pub fn is_tracked(t: TypeRef<'_>) -> bool {
    t.member("metadata").is_some_and(|m| m.field("managedFields").is_some())
}

#[cfg(test)]
mod tests;
