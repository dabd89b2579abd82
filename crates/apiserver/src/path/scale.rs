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
use super::write::{Guise, Made, change, newest};
use super::{patch, shape};
use crate::admission::{Attributes, Body, Operation};
use crate::apiextensions::{plain, set_plain};
use crate::http::{self as wire, Reply, Shape, media_type};
use crate::registry::Column;
use crate::registry::column::{age, definition, integer, selector_text, text};
use crate::registry::erased::{Object, Registry, ScalePaths, Unstored};
use crate::storage::{Current, Written, with_revision};
use crate::yaml;

const SCALE: Gvk<'static> = Gvk { group: "autoscaling", version: "v1", kind: "Scale" };
const API_VERSION: &str = "autoscaling/v1";
const BODY: Body = Body { kind: SCALE, decode: Unstored::<Scale>::decode };
/// What a custom resource's Scale has, to who changes a part of it, where the resource says nothing of replicas.
const UNSAID: i64 = -2_147_483_648;

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
    let mut status = json!({"replicas": running.unwrap_or_else(|| 0.into())});
    if !selector.is_empty() {
        status["selector"] = selector.into();
    }
    json!({
        "kind": SCALE.kind, "apiVersion": API_VERSION, "metadata": metadata, "spec": spec, "status": status,
    })
}

/// Where a custom resource is to say how many replicas there are to be, and does not.
fn unsaid<'r>(object: &Value, registry: &'r dyn Registry) -> Option<&'r str> {
    let path = registry.scale_paths()?.spec.as_str();
    plain(object, path).is_none_or(Value::is_null).then_some(path)
}

/// Where an object says how many replicas there are to be.
fn replicas_path(registry: &dyn Registry) -> &str {
    registry.scale_paths().map_or(".spec.replicas", |paths| &paths.spec)
}

fn read(current: &Current) -> Result<Value, StatusError> {
    let bytes = with_revision(&current.json, current.revision);
    serde_json::from_slice(&bytes).map_err(StatusError::internal)
}

/// The Scale that a patch changes.
fn patched_at(current: &Current, registry: &dyn Registry) -> Result<Value, StatusError> {
    let object = read(current)?;
    let mut scale = scale_of(&object, registry);
    if unsaid(&object, registry).is_some() {
        scale["spec"]["replicas"] = UNSAID.into();
    }
    Ok(scale)
}

/// # Errors
/// There is no such object.
pub async fn get(call: Call) -> Result<Reply, StatusError> {
    let object = read(&newest(&call, &call.info.name).await?)?;
    let registry = &*call.storage.registry;
    if let Some(path) = unsaid(&object, registry) {
        return Err(StatusError::internal(format!("the spec replicas field {path:?} does not exist")));
    }
    told(&call, &scale_of(&object, registry))
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
        let mut scale = patched_at(current, &*call.storage.registry).map_err(Some)?;
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
            let scale = seen(&*made, &*call.storage.registry).map_err(Some)?;
            Ok(Made { object: made, guise: Guise::Scale(Box::new(scale)) })
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

fn check_replicas(name: &str, replicas: i64, paths: Option<&ScalePaths>) -> Result<(), StatusError> {
    if let Some(paths) = paths {
        let why = format!("the spec replicas field {:?} cannot be empty", paths.spec);
        // Whether there can be so many is for the resource's own validation to say.
        return if replicas == UNSAID { Err(StatusError::bad_request(why)) } else { Ok(()) };
    }
    if replicas >= 0 {
        return Ok(());
    }
    let mut errors = FieldErrors::new();
    let at = FieldPath::new("spec").child("replicas");
    errors.invalid(&at, replicas, "must be greater than or equal to 0");
    Err(StatusError::invalid(SCALE, name, &errors))
}

fn with_replicas(call: &Call, current: &Current, scale: &Value) -> Result<Made, Option<StatusError>> {
    check_scale(call, current, scale)?;
    let scale = Box::new(typed(call, scale.clone()).map_err(Some)?);
    let registry = &*call.storage.registry;
    let object = replicated(&current.json, registry, replicas_of(&scale)).map_err(Some)?;
    Ok(Made { object, guise: Guise::Scale(scale) })
}

/// An object, of which there are to be so many.
fn replicated(json: &[u8], registry: &dyn Registry, replicas: i64) -> Result<Box<dyn Object>, StatusError> {
    let mut object: Value = serde_json::from_slice(json).map_err(StatusError::internal)?;
    set_plain(&mut object, replicas_path(registry), replicas.into());
    let bytes = serde_json::to_vec(&object).map_err(StatusError::internal)?;
    registry.decode(&bytes).map_err(StatusError::internal)
}

fn replicas_of(scale: &Unstored<Scale>) -> i64 {
    scale.0.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0).into()
}

/// A Scale as it was sent, in its place.
fn typed(call: &Call, mut scale: Value) -> Result<Unstored<Scale>, StatusError> {
    if let Some(fields) = scale.as_object_mut() {
        fields.insert("kind".to_owned(), SCALE.kind.into());
        fields.insert("apiVersion".to_owned(), API_VERSION.into());
    }
    let scale = serde_json::from_value(scale);
    let mut scale: Scale = scale.map_err(|error| StatusError::bad_request(error.to_string()))?;
    if call.kind().is_namespaced() {
        scale.metadata.namespace = Some(call.info.namespace.clone());
    }
    // None are told as nothing.
    let spec = scale.spec.get_or_insert_default();
    spec.replicas = spec.replicas.filter(|replicas| *replicas != 0);
    scale.status.get_or_insert_default();
    Ok(Unstored(scale))
}

/// The Scale of an object, as those see it who are asked about it.
fn seen(object: &dyn Object, registry: &dyn Registry) -> Result<Unstored<Scale>, StatusError> {
    let object = serde_json::from_slice(&object.to_json()).map_err(StatusError::internal)?;
    serde_json::from_value(scale_of(&object, registry)).map(Unstored).map_err(StatusError::internal)
}

/// Asks those who may change a Scale, and makes of its object what they make of it.
///
/// # Errors
/// Somebody refuses, or it is no Scale of this object any more.
pub async fn mutate(
    call: &mut Call,
    object: &mut dyn Object,
    old: &dyn Object,
    scale: &mut Unstored<Scale>,
) -> Result<(), StatusError> {
    let before = replicas_of(scale);
    let old = seen(old, &*call.storage.registry)?;
    let attributes = Attributes::of_body(call, Operation::Update, &*scale, BODY);
    call.server.admission.mutate(&attributes, &mut *scale, Some(&old)).await?;
    call.warnings.extend(attributes.take_warnings());
    let (replicas, registry) = (replicas_of(scale), &*call.storage.registry);
    check_replicas(&call.info.name, replicas, registry.scale_paths())?;
    if replicas != before {
        let made = replicated(&object.to_json(), registry, replicas)?;
        object.assign(&*made);
    }
    Ok(())
}

/// Asks those who only say yes or no to a Scale.
///
/// # Errors
/// Somebody says no.
pub async fn validate(call: &mut Call, object: &dyn Object, old: &dyn Object) -> Result<(), StatusError> {
    let registry = &*call.storage.registry;
    let (new, old) = (seen(object, registry)?, seen(old, registry)?);
    let attributes = Attributes::of_body(call, Operation::Update, &new, BODY);
    call.server.admission.validate(&attributes, Some(&new), Some(&old)).await?;
    call.warnings.extend(attributes.take_warnings());
    Ok(())
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
    use k8s_openapi::api::apps::v1::Deployment;

    use super::*;
    use crate::registry::erased::Typed;

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
        let check = |n: i64| check_replicas("d", n, None);
        assert!(check(0).is_ok());
        assert_eq!(
            check(-1).expect_err("fewer").to_string(),
            "Scale.autoscaling \"d\" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0"
        );
    }

    #[test]
    fn of_a_custom_resource_some_number_is_to_be_said() {
        let paths =
            ScalePaths { spec: ".spec.size".to_owned(), status: ".status.n".to_owned(), selector: None };
        assert!(check_replicas("w", -1, Some(&paths)).is_ok(), "its own validation says so");
        let refused = check_replicas("w", UNSAID, Some(&paths)).expect_err("nothing");
        let told = "the spec replicas field \".spec.size\" cannot be empty";
        assert_eq!((refused.code(), refused.to_string().as_str()), (400, told));
    }

    #[test]
    fn who_is_asked_about_a_scale_sees_one() {
        let registry = <Typed<Deployment> as Default>::default();
        let deployment: Deployment = serde_json::from_value(json!({
            "metadata": {"name": "d", "namespace": "ns", "labels": {"a": "b"}, "resourceVersion": "7"},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"a": "b"}}, "template": {}},
        }))
        .expect("a Deployment");
        let told = seen(&deployment, &registry).expect("a Scale");
        let told: Value = serde_json::from_slice(&told.to_json()).expect("JSON");
        assert_eq!(
            told,
            json!({"apiVersion": "autoscaling/v1", "kind": "Scale",
                "metadata": {"name": "d", "namespace": "ns", "resourceVersion": "7"},
                "spec": {"replicas": 2}, "status": {"replicas": 0, "selector": "a=b"}})
        );
        let more = replicated(&deployment.to_json(), &registry, 5).expect("a Deployment");
        let more = more.is::<Deployment>().and_then(|more| more.spec.as_ref()?.replicas);
        assert_eq!(more, Some(5));
    }
}
