//! `PATCH`: the change is made to what is there now, and made again if somebody else was first.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use krate_api::managed;
use krate_api::patch::{JsonPatch, decode_object, merge, strategic};
use krate_api::{FieldErrors, FieldPath, Gvk, Reason, StatusError, schema};
use krate_store::Revision;
use serde_json::{Map, Value};

use super::call::Call;
use super::ownership::{self, Ownership};
use super::write::change;
use crate::audit;
use crate::http::{Reply, media_type, unsupported_media_type};

enum Patch {
    Json(JsonPatch),
    Merge(Value),
    Strategic(Value),
}

impl Patch {
    fn read(headers: &HeaderMap, body: &[u8]) -> Result<Self, StatusError> {
        let object = || decode_object(body).map_err(|error| error.status());
        match media_type(headers) {
            "application/json-patch+json" => {
                JsonPatch::decode(body).map(Patch::Json).map_err(|error| error.status())
            }
            "application/merge-patch+json" => object().map(Patch::Merge),
            "application/strategic-merge-patch+json" => object().map(Patch::Strategic),
            _ => Err(unsupported_media_type()),
        }
    }

    /// Whether it has to do with who owns which fields.
    fn concerns_managed_fields(&self) -> bool {
        match self {
            Patch::Json(patch) => patch.concerns(&["metadata", MANAGED_FIELDS]),
            Patch::Merge(patch) | Patch::Strategic(patch) => match patch.get("metadata") {
                None => false,
                Some(Value::Object(fields)) => fields.keys().any(|name| name.ends_with(MANAGED_FIELDS)),
                Some(_) => true,
            },
        }
    }
}

const MANAGED_FIELDS: &str = "managedFields";

fn meta_of(object: &mut Value) -> Option<&mut Map<String, Value>> {
    object.get_mut("metadata").and_then(Value::as_object_mut)
}

/// Patches a value that is not an object of the store, such as a Scale.
pub fn apply_body(
    value: &mut Value,
    headers: &HeaderMap,
    body: &[u8],
    kind: Gvk<'_>,
) -> Result<(), StatusError> {
    let patch = Patch::read(headers, body)?;
    *value = apply_to(value.take(), &patch, kind)?;
    let checked = schema::of(kind).and_then(|t| schema::check(value.to_string().as_bytes(), t).ok());
    match checked.and_then(|checked| checked.type_error) {
        Some(why) => Err(unfit(&patch, value, why)),
        None => Ok(()),
    }
}

/// # Errors
/// The patch is none, does not fit, or what it makes is refused.
pub async fn patch(mut call: Call, body: Bytes) -> Result<Reply, StatusError> {
    call.read_options("PatchOptions")?;
    let is_apply = media_type(&call.headers) == "application/apply-patch+yaml";
    audit::patched(&body);
    ownership::check_options(&call, is_apply)?;
    if is_apply {
        return ownership::apply(call, body).await;
    }
    let patch = Patch::read(&call.headers, &body)?;
    let concerns_managed_fields = patch.concerns_managed_fields();
    let current = call.storage.current(&call.info.namespace, &call.info.name).await?;
    let written = change(&mut call, current, true, Ownership::Changes, |call, current| {
        let mut json = value_of(&current.json, current.revision).map_err(Some)?;
        // What the object keeps anyway need not be written and read once more.
        let managed = if concerns_managed_fields { None } else { managed::take(&mut json) };
        let asked = json.pointer("/metadata/resourceVersion").cloned();
        let mut patched = apply_to(json, &patch, call.kind().gvk()).map_err(Some)?;
        let names = patched.pointer("/metadata/resourceVersion");
        if names.is_some_and(|v| v.as_str().is_some_and(|v| !v.is_empty())) && names != asked.as_ref() {
            return Err(None);
        }
        let bytes = serde_json::to_vec(&patched).map_err(|e| Some(StatusError::internal(e)))?;
        let mut object = call.decode_typed(&bytes).map_err(|why| {
            if let (Some(managed), Some(meta)) = (managed, meta_of(&mut patched)) {
                meta.insert(MANAGED_FIELDS.to_owned(), managed);
            }
            Some(unfit(&patch, &patched, why))
        })?;
        call.place(&mut *object).map_err(Some)?;
        Ok(object)
    })
    .await?;
    call.written(StatusCode::OK, &written).await
}

/// What is answered to a patch that makes of an object what the kind does not have. Upstream shows the whole object, and
/// of a strategic patch the patch, as Go prints it.
fn unfit(patch: &Patch, patched: &Value, why: String) -> StatusError {
    let shown = match patch {
        Patch::Strategic(patch) => go_text(patch),
        Patch::Json(_) | Patch::Merge(_) => patched.to_string(),
    };
    let mut errors = FieldErrors::new();
    errors.invalid(&FieldPath::new("patch"), shown, why);
    StatusError::invalid(Gvk { group: "", version: "", kind: "" }, "", &errors)
}

/// A value as Go's `%+v` prints it.
fn go_text(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            format!("[{}]", items.iter().map(go_text).collect::<Vec<_>>().join(" "))
        }
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            let fields: Vec<_> =
                fields.into_iter().map(|(name, value)| format!("{name}:{}", go_text(value))).collect();
            format!("map[{}]", fields.join(" "))
        }
        simple => simple.to_string(),
    }
}

/// What is there as a client sees it.
pub fn value_of(json: &Bytes, revision: Revision) -> Result<Value, StatusError> {
    let mut value: Value = serde_json::from_slice(json).map_err(StatusError::internal)?;
    if let Some(meta) = meta_of(&mut value) {
        meta.insert("resourceVersion".to_owned(), revision.to_string().into());
    }
    Ok(value)
}

fn apply_to(mut json: Value, patch: &Patch, kind: Gvk<'_>) -> Result<Value, StatusError> {
    match patch {
        Patch::Json(patch) => patch.apply(&mut json).map_err(|error| error.status())?,
        Patch::Merge(patch) => merge(&mut json, patch.clone()),
        Patch::Strategic(patch) => {
            let schema = schema::of(kind).ok_or_else(|| {
                StatusError::new(
                    Reason::UnsupportedMediaType,
                    "the body of the request was in an unknown format - accepted media types include: \
                     application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
                )
            })?;
            strategic(&mut json, patch.clone(), schema).map_err(|error| error.status())?;
        }
    }
    Ok(json)
}
