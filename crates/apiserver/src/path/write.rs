//! Create and update: decode, default, mutate, prepare, validate, admit, and one compare-and-set.

use bytes::Bytes;
use http::StatusCode;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use krate_api::names::{NameRule, generate_name};
use krate_api::{FieldErrors, FieldPath, Reason, StatusError, meta};
use krate_store::Revision;
use uuid::Uuid;

use super::call::{Call, unclassified};
use super::delete::{is_finished, release};
use super::ownership::{self, Ownership};
use crate::admission::{Attributes, Operation};
use crate::http::Reply;
use crate::registry::erased::Object;
use crate::registry::lifecycle::no_matter;
use crate::storage::{Current, Outcome, Written, with_revision};

/// How often a write that nobody conditioned is tried again when others were first.
const ATTEMPTS: usize = 10;
/// How often a generated name is made anew when it is taken.
const NAMES: usize = 8;

/// `POST` of a collection.
pub async fn create(mut call: Call, body: Bytes) -> Result<Reply, StatusError> {
    call.read_options("CreateOptions")?;
    let mut object = call.decode(body)?;
    call.place(&mut *object)?;
    let written = create_object(&mut call, object, Ownership::Changes).await?;
    call.written(StatusCode::CREATED, &written).await
}

/// Creates an object that is decoded and in its place.
pub async fn create_object(
    call: &mut Call,
    mut object: Box<dyn Object>,
    ownership: Ownership,
) -> Result<Written, StatusError> {
    if object.meta().resource_version.as_deref().is_some_and(|v| !v.is_empty()) {
        return Err(unclassified("resourceVersion should not be set on objects to be created"));
    }
    let registry = std::sync::Arc::clone(&call.storage.registry);
    let prefix = object.meta().generate_name.clone().filter(|p| !p.is_empty());
    let named = object.meta().name.as_deref().is_some_and(|n| !n.is_empty());
    begin(object.meta_mut());
    registry.default(&mut *object);
    // Whoever creates owns what he sent and its defaults, and not what admission adds.
    if ownership == Ownership::Changes {
        ownership::track(call, &mut *object, None).await?;
    }
    let attempts = if named || prefix.is_none() { 1 } else { NAMES };
    let mut untried = Some(object);
    for attempt in 1.. {
        let Some(mut trial) = untried.take() else { break };
        if attempt < attempts {
            untried = Some(trial.boxed_clone());
        }
        if let (false, Some(prefix)) = (named, &prefix) {
            trial.meta_mut().name = Some(generate_name(prefix, rand::random));
        }
        let attributes = Attributes::of(call, Operation::Create, &*trial);
        if call.storage.is_closing() {
            let why = "create not allowed while custom resource definition is terminating";
            return Err(attributes.forbidden(why));
        }
        call.server.admission.mutate(&attributes, &mut *trial, None).await?;
        call.warnings.extend(attributes.take_warnings());
        // What admission put in has defaults of its own.
        registry.default(&mut *trial);
        registry.prepare_for_create(&mut *trial, &call.context());
        check_new(call, &*trial)?;
        call.warnings.extend(registry.warnings(&*trial, None));
        let attributes = Attributes::of(call, Operation::Create, &*trial);
        call.server.admission.validate(&attributes, Some(&*trial), None).await?;
        call.warnings.extend(attributes.take_warnings());
        let name = trial.meta().name.clone().unwrap_or_default();
        let taken = match call.server.lifecycles.of(call.kind()) {
            Some(hooks) => hooks.before_create(trial.as_any_mut(), &call.context()).await?,
            None => no_matter(),
        };
        if call.dry_run {
            taken(false).await;
            let bytes = call.storage.to_value(&mut *trial).await?;
            return Ok(Written { revision: Revision::ZERO, bytes });
        }
        let outcome = call.storage.create(&mut *trial).await;
        taken(matches!(outcome, Ok(Outcome::Done(_)))).await;
        match outcome? {
            Outcome::Done(written) => return Ok(written),
            Outcome::Conflict(_) if untried.is_some() => {}
            Outcome::Conflict(_) => {
                return Err(StatusError::already_exists(call.kind().group, call.kind().plural, &name));
            }
        }
    }
    unreachable!("the last attempt returns")
}

/// What the server alone says of a new object.
fn begin(meta: &mut ObjectMeta) {
    meta.uid = Some(Uuid::new_v4().to_string());
    meta.creation_timestamp = Some(now());
    meta.deletion_timestamp = None;
    meta.deletion_grace_period_seconds = None;
    meta.self_link = None;
    meta.resource_version = None;
    meta.generation = None;
}

/// Times are told to the second.
pub fn now() -> Time {
    let now = Timestamp::now();
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

fn check_new(call: &Call, object: &dyn Object) -> Result<(), StatusError> {
    let registry = &call.storage.registry;
    let meta = object.meta();
    let at = FieldPath::new("metadata");
    let mut errors = FieldErrors::new();
    meta::validate_new(meta, call.kind().scope, NameRule::Any, &at, &mut errors);
    if let Some(prefix) = meta.generate_name.as_deref().filter(|p| !p.is_empty()) {
        let masked = prefix.strip_suffix('-').map_or_else(|| prefix.to_owned(), |p| format!("{p}a"));
        for wrong in registry.validate_name(&masked) {
            errors.invalid(&at.child("generateName"), prefix, wrong);
        }
    }
    if let Some(name) = meta.name.as_deref().filter(|n| !n.is_empty()) {
        for wrong in registry.validate_name(name) {
            errors.invalid(&at.child("name"), name, wrong);
        }
    }
    registry.validate(object, &mut errors);
    registry.validate_new(object, &mut errors);
    if errors.is_empty() {
        Ok(())
    } else {
        Err(call.invalid(meta.name.as_deref().unwrap_or_default(), &errors))
    }
}

/// `PUT` of an object or of one of its subresources that are the object again (`status`, …).
pub async fn update(mut call: Call, body: Bytes) -> Result<Reply, StatusError> {
    call.read_options("UpdateOptions")?;
    let mut object = call.decode(body)?;
    call.place(&mut *object)?;
    let name = call.info.name.clone();
    let current = match call.storage.current(&call.info.namespace, &name).await {
        Ok(current) => current,
        Err(error) if error.is(Reason::NotFound) && call.storage.registry.allows_create_on_update() => {
            object.meta_mut().resource_version = None;
            let written = create_object(&mut call, object, Ownership::Changes).await?;
            return call.written(StatusCode::CREATED, &written).await;
        }
        Err(error) => return Err(error),
    };
    let asked = object.meta().resource_version.clone().filter(|v| !v.is_empty());
    let unconditional = asked.is_none();
    if unconditional && !call.storage.registry.allows_unconditional_update() {
        let mut errors = FieldErrors::new();
        let at = FieldPath::new("metadata").child("resourceVersion");
        errors.invalid(&at, 0, "must be specified for an update");
        return Err(call.invalid(&name, &errors));
    }
    let mut object = Some(object);
    let written = change(&mut call, current, unconditional, Ownership::Changes, |_, current| {
        match &asked {
            // The one state that it is meant for does not come again.
            Some(asked) if *asked == current.revision.to_string() => object.take().ok_or(None),
            Some(_) => Err(None),
            None => object.as_ref().map(|object| object.boxed_clone()).ok_or(None),
        }
    })
    .await?;
    call.written(StatusCode::OK, &written).await
}

/// Changes an object: `make` gives the new one from what is there, or `Err(None)` if the caller has not seen that.
/// With `again`, it is asked anew when somebody else was first.
pub async fn change(
    call: &mut Call,
    mut current: Current,
    again: bool,
    ownership: Ownership,
    mut make: impl FnMut(&mut Call, &Current) -> Result<Box<dyn Object>, Option<StatusError>>,
) -> Result<Written, StatusError> {
    let name = call.info.name.clone();
    let attempts = if again { ATTEMPTS } else { 1 };
    // The cache may be behind: a caller who has seen more than it is answered from the store.
    let mut from_cache = true;
    let mut attempt = 0;
    loop {
        let mut object = match make(call, &current) {
            Ok(object) => object,
            Err(Some(error)) => return Err(error),
            Err(None) if from_cache => {
                from_cache = false;
                current = newest(call, &name).await?;
                continue;
            }
            Err(None) => return Err(call.stale(&name)),
        };
        finish_update(call, &mut object, &current, ownership).await?;
        let old = &*current.object;
        let ends = old.meta().deletion_timestamp.is_some() && is_finished(&*object);
        let mut value = call.storage.to_value(&mut *object).await?;
        if value == current.value && !ends && !call.storage.is_stale(&*object).await? {
            // Nothing changes, so nothing is written, and the resourceVersion stays.
            return Ok(Written {
                revision: current.revision,
                bytes: with_revision(&value, current.revision),
            });
        }
        if call.dry_run {
            return Ok(Written {
                revision: current.revision,
                bytes: with_revision(&value, current.revision),
            });
        }
        let taken = match call.server.lifecycles.of(call.kind()) {
            Some(hooks) if call.info.subresource.is_empty() => {
                let taken = hooks.before_update(object.as_any_mut(), old.as_any(), &call.context()).await?;
                value = call.storage.to_value(&mut *object).await?;
                taken
            }
            _ => no_matter(),
        };
        let outcome = if ends {
            call.storage.delete(&*object, value, current.revision).await
        } else {
            call.storage.replace(&*object, value, current.revision).await
        };
        taken(matches!(outcome, Ok(Outcome::Done(_)))).await;
        match outcome? {
            Outcome::Done(written) => {
                call.storage.registry.updated(&*object, old);
                if ends {
                    release(call, &*object).await;
                }
                return Ok(written);
            }
            Outcome::Conflict(there) => {
                attempt += 1;
                if attempt >= attempts && !from_cache {
                    return Err(call.stale(&name));
                }
                from_cache = false;
                current = call.storage.current_of(&name, there).await?;
            }
        }
    }
}

/// What the store has now, whatever the cache has.
pub async fn newest(call: &Call, name: &str) -> Result<Current, StatusError> {
    use krate_store::cache::Freshness;
    let cached = call.storage.read(&call.info.namespace, name, Freshness::Latest).await?;
    call.storage.load(&cached.value, cached.revision).await
}

/// Through which door an object is changed: each lets another part of it through.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Door {
    Object,
    Status,
    /// The server itself makes the change, on somebody's word: a pod's node, a namespace's finalizers.
    Server,
}

impl Door {
    fn of(subresource: &str) -> Self {
        match subresource {
            "status" => Door::Status,
            "binding" | "finalize" => Door::Server,
            _ => Door::Object,
        }
    }
}

/// Defaults, admission, preparation and validation of an object that replaces another.
async fn finish_update(
    call: &mut Call,
    object: &mut Box<dyn Object>,
    current: &Current,
    ownership: Ownership,
) -> Result<(), StatusError> {
    let registry = std::sync::Arc::clone(&call.storage.registry);
    let old = &*current.object;
    let door = Door::of(&call.info.subresource);
    let name = call.info.name.clone();
    {
        let (meta, was) = (object.meta_mut(), old.meta());
        // A whole object's uid says which object is meant; in a patch it is a change, which validation refuses.
        if let Some(uid) = meta.uid.as_deref().filter(|uid| !uid.is_empty() && call.info.verb == "update")
            && was.uid.as_deref() != Some(uid)
        {
            return Err(call.conflict(
                &name,
                format!(
                    "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                    was.uid.as_deref().unwrap_or_default()
                ),
            ));
        }
        if meta.uid.as_deref().is_none_or(str::is_empty) {
            meta.uid.clone_from(&was.uid);
        }
        meta.creation_timestamp.clone_from(&was.creation_timestamp);
        meta.deletion_timestamp.clone_from(&was.deletion_timestamp);
        meta.deletion_grace_period_seconds = was.deletion_grace_period_seconds;
        meta.self_link = None;
        meta.generation = was.generation;
        meta.resource_version = Some(current.revision.to_string());
        if meta.managed_fields.is_none() {
            meta.managed_fields.clone_from(&was.managed_fields);
        }
    }
    registry.default(&mut **object);
    if ownership == Ownership::Changes {
        ownership::track(call, &mut **object, Some(current)).await?;
        object.meta_mut().resource_version = Some(current.revision.to_string());
    }
    let attributes = Attributes::of(call, Operation::Update, &**object);
    call.server.admission.mutate(&attributes, &mut **object, Some(old)).await?;
    call.warnings.extend(attributes.take_warnings());
    registry.default(&mut **object);
    match door {
        Door::Object => registry.prepare_for_update(&mut **object, old, &call.context()),
        Door::Status => registry.prepare_for_status_update(&mut **object, old, &call.context()),
        Door::Server => {}
    }
    object.meta_mut().resource_version = Some(current.revision.to_string());
    let mut errors = FieldErrors::new();
    // Upstream asks twice, before a kind's own validation and in it, and both answers are among the causes.
    for _ in 0..2 {
        meta::validate_update(object.meta(), old.meta(), &FieldPath::new("metadata"), &mut errors);
        if errors.is_empty() && errors.forgiven().next().is_none() {
            break;
        }
    }
    match door {
        Door::Object => {
            registry.validate(&**object, &mut errors);
            registry.validate_update(&**object, old, &call.info.subresource, &mut errors);
        }
        Door::Status => registry.validate_status_update(&**object, old, &mut errors),
        Door::Server => {}
    }
    call.warnings.extend(errors.forgiven().map(ToString::to_string));
    if !errors.is_empty() {
        return Err(call.invalid(&name, &errors));
    }
    call.warnings.extend(registry.warnings(&**object, Some(old)));
    let attributes = Attributes::of(call, Operation::Update, &**object);
    call.server.admission.validate(&attributes, Some(&**object), Some(old)).await?;
    call.warnings.extend(attributes.take_warnings());
    Ok(())
}
