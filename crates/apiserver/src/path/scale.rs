//! `scale` of what has replicas: how many there are to be, and nothing else of the object.

use bytes::Bytes;
use http::StatusCode;
use k8s_openapi::api::autoscaling::v1::Scale;
use krate_api::docs::Docs;
use krate_api::managed::ManagedError;
use krate_api::{FieldErrors, FieldPath, Gvk, Reason, StatusError};
use serde_json::{Value, json};

use super::call::{Call, odd};
use super::ownership::{Ownership, check_options, merged};
use super::subresource::read_as;
use super::versions::Converted;
use super::write::{change, newest};
use super::{patch, shape};
use crate::apiextensions::{plain, set_plain};
use crate::http::{self as wire, Reply, Shape, media_type};
use crate::registry::Column;
use crate::registry::column::{age, definition, integer, selector_text, text};
use crate::registry::erased::{Object, Registry};
use crate::storage::{Current, Written, with_revision};
use crate::yaml;

const SCALE: Gvk<'static> = Gvk { group: "autoscaling", version: "v1", kind: "Scale" };
const API_VERSION: &str = "autoscaling/v1";

const COLUMNS: [Column<Scale>; 4] = [
    text("Name", "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta.name", |scale| {
        scale.metadata.name.as_deref().unwrap_or_default().into()
    }),
    integer("Desired", "io.k8s.api.autoscaling.v1.ScaleSpec.replicas", |scale| {
        scale.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0).into()
    }),
    integer("Available", "io.k8s.api.autoscaling.v1.ScaleStatus.replicas", |scale| {
        scale.status.as_ref().map_or(0, |status| status.replicas).into()
    }),
    age(),
];

/// A Scale of an object that has replicas.
fn scale_of(object: &Value, registry: &dyn Registry) -> Value {
    let kind = registry.kind();
    let selector = object.pointer("/spec/selector").cloned().unwrap_or_default();
    let paths = registry.scale_paths();
    let selector = if let Some(paths) = paths {
        let selector = paths.selector.as_deref().and_then(|path| plain(object, path));
        selector.and_then(Value::as_str).unwrap_or_default().to_owned()
    } else if kind.plural == "replicationcontrollers" {
        let pairs = selector.as_object().into_iter().flatten();
        pairs.map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect::<Vec<_>>().join(",")
    } else {
        serde_json::from_value(selector).map(|selector| selector_text(&selector)).unwrap_or_default()
    };
    let meta = &object["metadata"];
    let mut metadata = json!({
        "name": meta["name"], "namespace": meta["namespace"], "uid": meta["uid"],
        "resourceVersion": meta["resourceVersion"], "creationTimestamp": meta["creationTimestamp"],
    });
    if let Some(fields) = metadata.as_object_mut() {
        fields.retain(|_, v| !v.is_null());
    }
    let replicas = |at: &str| plain(object, at).cloned().filter(|v| !v.is_null());
    let mut spec = json!({});
    if let Some(n) = replicas(replicas_path(registry)).filter(|n| *n != 0) {
        spec["replicas"] = n;
    }
    let running = replicas(paths.map_or(".status.replicas", |p| &p.status));
    json!({
        "kind": SCALE.kind, "apiVersion": API_VERSION, "metadata": metadata, "spec": spec,
        "status": {"replicas": running.unwrap_or_else(|| 0.into()), "selector": selector},
    })
}

/// Where an object says how many replicas there are to be.
fn replicas_path(registry: &dyn Registry) -> &str {
    registry.scale_paths().map_or(".spec.replicas", |paths| &paths.spec)
}

fn scale_at(call: &Call, current: &Current) -> Result<Value, StatusError> {
    let bytes = with_revision(&current.json, current.revision);
    let object = serde_json::from_slice(&bytes).map_err(StatusError::internal)?;
    Ok(scale_of(&object, &*call.storage.registry))
}

/// # Errors
/// There is no such object.
pub async fn get(call: Call) -> Result<Reply, StatusError> {
    let current = newest(&call, &call.info.name).await?;
    told(&call, &scale_at(&call, &current)?)
}

/// # Errors
/// What is sent is no Scale of this object, or of another state of it.
pub async fn update(mut call: Call, body: Bytes) -> Result<Reply, StatusError> {
    call.read_options("UpdateOptions")?;
    let scale: Value = read_as(&mut call, body, SCALE)?;
    let current = call.storage.current(&call.info.namespace, &call.info.name).await?;
    let again = said(&scale, "resourceVersion").is_empty();
    let written = change(&mut call, current, again, Ownership::Changes, |call, current| {
        with_replicas(call, current, &scale)
    });
    let written = written.await?;
    changed(&call, &written).await
}

/// # Errors
/// The patch is none, or makes no Scale of this object.
pub async fn patch(mut call: Call, body: Bytes) -> Result<Reply, StatusError> {
    call.read_options("PatchOptions")?;
    let is_apply = media_type(&call.headers) == "application/apply-patch+yaml";
    check_options(&call, is_apply)?;
    if is_apply {
        return apply(call, body).await;
    }
    let current = call.storage.current(&call.info.namespace, &call.info.name).await?;
    let written = change(&mut call, current, true, Ownership::Changes, |call, current| {
        let mut scale = scale_at(call, current).map_err(Some)?;
        patch::apply_body(&mut scale, &call.headers, &body, SCALE).map_err(Some)?;
        with_replicas(call, current, &scale)
    });
    let written = written.await?;
    changed(&call, &written).await
}

/// Server-side apply: whoever applies a number of replicas owns it, and nothing else of the object.
async fn apply(mut call: Call, body: Bytes) -> Result<Reply, StatusError> {
    let yaml::Document { value: scale, repeated } = yaml::read(&body)
        .map_err(|error| StatusError::bad_request(format!("error decoding YAML: {error}")))?;
    check_applied(&scale)?;
    let warnings = odd(SCALE, &call.query, scale.to_string().as_bytes())?;
    call.warnings.extend(warnings);
    if let Some(error) = repeated {
        call.complain(error)
            .map_err(|error| StatusError::bad_request(format!("error strict decoding YAML: {error}")))?;
    }
    let force = call.query.flag("force");
    let wanted = of_object(&call, &scale);
    let mut converted = Converted::of(&call);
    loop {
        let current = call.storage.current(&call.info.namespace, &call.info.name).await?;
        let written = change(&mut call, current, true, Ownership::Settled, |call, current| {
            check_scale(call, current, &scale)?;
            let made = merged(call, Some(current), &wanted, force, converted.as_ref());
            let mut made = made.map_err(|error| Some(of_scale(error, &call.kind().api_version())))?;
            // What kubectl applied last of the object itself is another matter.
            made.meta_mut().annotations.clone_from(&current.object.meta().annotations);
            Ok(made)
        })
        .await;
        // What others know it as has to be asked for; meanwhile it may have changed.
        match (&mut converted, written) {
            (Some(converted), Err(_)) if converted.wants() => converted.ask().await,
            (_, written) => return changed(&call, &written?).await,
        }
    }
}

fn check_applied(scale: &Value) -> Result<(), StatusError> {
    let text = |field: &str| scale[field].as_str().unwrap_or_default();
    let (group, version) = text("apiVersion").split_once('/').unwrap_or(("", text("apiVersion")));
    if version.is_empty() || group != SCALE.group || text("kind") != SCALE.kind {
        let said = format!("{group}/{version}, Kind={}", text("kind"));
        return Err(StatusError::bad_request(format!("invalid object type: {said}")));
    }
    if version != SCALE.version {
        let (given, expected) = (text("apiVersion").to_owned(), API_VERSION.to_owned());
        return Err(ManagedError::Version { given, expected }.status());
    }
    if !scale["metadata"]["managedFields"].is_null() {
        return Err(ManagedError::ManagedFieldsGiven.status());
    }
    Ok(())
}

/// What is wanted of the object by who wants a Scale of it.
fn of_object(call: &Call, scale: &Value) -> Value {
    let (kind, info) = (call.kind(), &call.info);
    let mut wanted =
        json!({"apiVersion": kind.api_version(), "kind": kind.kind, "metadata": {"name": info.name}});
    if kind.is_namespaced() {
        wanted["metadata"]["namespace"] = info.namespace.as_str().into();
    }
    if let Some(replicas) = scale.pointer("/spec/replicas").filter(|replicas| !replicas.is_null()) {
        set_plain(&mut wanted, replicas_path(&*call.storage.registry), replicas.clone());
    }
    wanted
}

/// A conflict as who knows the object by its Scale hears of it.
fn of_scale(mut error: StatusError, api_version: &str) -> StatusError {
    if !error.is(Reason::Conflict) {
        return error;
    }
    let (own, scale) = (format!(" using {api_version}"), format!(" using {API_VERSION}"));
    let told = |text: &mut Option<String>| {
        if let Some(text) = text {
            *text = text.replace(&own, &scale);
        }
    };
    told(&mut error.0.message);
    let causes = error.0.details.iter_mut().flat_map(|details| details.causes.iter_mut().flatten());
    causes.for_each(|cause| told(&mut cause.message));
    error
}

fn said<'a>(scale: &'a Value, field: &str) -> &'a str {
    scale["metadata"][field].as_str().unwrap_or_default()
}

/// Whether a Scale is one of what is there. `Err(None)` if it is of another state of it.
fn check_scale(call: &Call, current: &Current, scale: &Value) -> Result<(), Option<StatusError>> {
    // Who changes a part of it need not name it once more.
    let is_named = call.info.verb != "patch" || !said(scale, "name").is_empty();
    let name = if is_named { said(scale, "name") } else { &call.info.name };
    call.check_place(said(scale, "namespace"), name).map_err(Some)?;
    check_replicas(&call.info.name, scale).map_err(Some)?;
    let (kind, uid) = (call.kind(), current.object.meta().uid.as_deref().unwrap_or_default());
    let asked = said(scale, "uid");
    if !asked.is_empty() && asked != uid {
        if call.info.verb == "update" {
            return Err(Some(call.unmet(&call.info.name, "UID", asked, uid)));
        }
        let why = format!("Precondition failed: UID in precondition: {asked}, UID in object meta: {uid}");
        let resource = format!("{}/scale", kind.plural);
        return Err(Some(StatusError::conflict(kind.group, &resource, &call.info.name, why)));
    }
    let version = said(scale, "resourceVersion");
    if version.is_empty() || version == current.revision.to_string() { Ok(()) } else { Err(None) }
}

fn check_replicas(name: &str, scale: &Value) -> Result<(), StatusError> {
    let replicas = scale.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(0);
    if replicas >= 0 {
        return Ok(());
    }
    let mut errors = FieldErrors::new();
    let at = FieldPath::new("spec").child("replicas");
    errors.invalid(&at, replicas, "must be greater than or equal to 0");
    Err(StatusError::invalid(SCALE, name, &errors))
}

fn with_replicas(
    call: &Call,
    current: &Current,
    scale: &Value,
) -> Result<Box<dyn Object>, Option<StatusError>> {
    check_scale(call, current, scale)?;
    let internal = |error: serde_json::Error| Some(StatusError::internal(error));
    let mut object: Value = serde_json::from_slice(&current.json).map_err(internal)?;
    let registry = &call.storage.registry;
    let replicas = scale.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(0);
    set_plain(&mut object, replicas_path(&**registry), replicas.into());
    let bytes = serde_json::to_vec(&object).map_err(internal)?;
    registry.decode(&bytes).map_err(|error| Some(StatusError::internal(error)))
}

async fn changed(call: &Call, written: &Written) -> Result<Reply, StatusError> {
    let sent = call.storage.sent(&written.bytes).await?;
    let object = serde_json::from_slice(&sent).map_err(StatusError::internal)?;
    told(call, &scale_of(&object, &*call.storage.registry))
}

/// A Scale in the shape that is wanted.
fn told(call: &Call, scale: &Value) -> Result<Reply, StatusError> {
    let json: Bytes = scale.to_string().into();
    let json = match call.wanted.shape {
        Shape::Table => {
            let (columns, cells) = table(scale)?;
            shape::table_of(columns, cells, &json, &call.query)?
        }
        other => shape::one(&call.storage, other, &json, &call.query)?,
    };
    let mut reply = wire::json(StatusCode::OK, call.wanted, json);
    wire::warn(&mut reply, &call.warnings);
    Ok(reply)
}

fn table(scale: &Value) -> Result<(Value, Vec<Value>), StatusError> {
    let scale: Scale = serde_json::from_value(scale.clone()).map_err(StatusError::internal)?;
    let docs = Docs::shared();
    let columns = COLUMNS.iter().map(|column| definition(column, &docs)).collect();
    Ok((columns, COLUMNS.iter().map(|column| (column.cell)(&scale)).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_is_shown_with_its_replicas() {
        let scale = json!({"metadata": {"name": "d"}, "spec": {"replicas": 3}, "status": {"replicas": 2}});
        let (columns, cells) = table(&scale).expect("a table");
        assert_eq!(cells, [json!("d"), json!(3), json!(2), json!("<unknown>")]);
        let names: Vec<_> = columns.as_array().into_iter().flatten().map(|column| &column["name"]).collect();
        assert_eq!(names, ["Name", "Desired", "Available", "Age"]);
        assert!(columns[1]["description"].as_str().is_some_and(|told| told.contains("desired number")));
    }

    #[test]
    fn only_a_scale_is_applied_to_a_scale() {
        let check = |scale: Value| check_applied(&scale).map_err(|error| error.to_string());
        assert_eq!(check(json!({"apiVersion": "autoscaling/v1", "kind": "Scale"})), Ok(()));
        let cases = [
            (
                json!({"apiVersion": "apps/v1", "kind": "Deployment"}),
                "invalid object type: apps/v1, Kind=Deployment",
            ),
            (
                json!({"apiVersion": "autoscaling/v2", "kind": "Scale"}),
                "Incorrect version specified in apply patch. Specified patch version: autoscaling/v2, expected: \
                 autoscaling/v1",
            ),
            (
                json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"managedFields": []}}),
                "metadata.managedFields must be nil",
            ),
        ];
        for (scale, told) in cases {
            assert_eq!(check(scale), Err(told.to_owned()));
        }
    }

    #[test]
    fn a_conflict_is_told_in_the_version_of_the_scale() {
        let error = StatusError::new(Reason::Conflict, "conflict with \"m\" using apps/v1: .spec.replicas");
        let told = of_scale(error, "apps/v1").to_string();
        assert_eq!(told, "conflict with \"m\" using autoscaling/v1: .spec.replicas");
    }

    #[test]
    fn there_are_no_fewer_than_no_replicas() {
        let check = |n: i64| check_replicas("d", &json!({"spec": {"replicas": n}}));
        assert!(check(0).is_ok());
        assert_eq!(
            check(-1).expect_err("fewer").to_string(),
            "Scale.autoscaling \"d\" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0"
        );
    }
}
