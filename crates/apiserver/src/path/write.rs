//! Create and update: decode, default, mutate, prepare, validate, admit, and one compare-and-set.

use std::collections::HashSet;

use bytes::Bytes;
use http::StatusCode;
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use krate_api::names::{NameRule, generate_name, mask_trailing_dash};
use krate_api::{FieldErrors, FieldPath, Reason, StatusError, meta};
use krate_store::Revision;
use krate_store::cache::Freshness;
use uuid::Uuid;

use super::call::{Call, unclassified};
use super::delete::{is_finished, release};
use super::options::unread;
use super::ownership::{self, Ownership};
use super::scale;
use crate::admission::{Attributes, Operation};
use crate::http::Reply;
use crate::registry::erased::{Object, Unstored};
use crate::registry::lifecycle::{self, no_matter};
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
    let has_version = version_of(object.meta()).is_ok_and(|version| version.is_some());
    let registry = std::sync::Arc::clone(&call.storage.registry);
    wipe(object.meta_mut());
    registry.default(&mut *object);
    if call.info.verb != "patch" {
        drop_repeated_owners(call, &mut *object, false);
    }
    // Whoever creates owns what he sent and its defaults, and not what admission adds.
    if ownership == Ownership::Changes {
        ownership::track(call, &mut *object, None).await?;
    }
    let attributes = Attributes::of(call, Operation::Create, &*object);
    if call.storage.is_closing() {
        let why = "create not allowed while custom resource definition is terminating";
        return Err(attributes.forbidden(why));
    }
    // Who changes a new object is asked once, before it has a name made.
    call.server.admission.mutate(&attributes, &mut *object, None).await?;
    call.warnings.extend(attributes.take_warnings());
    drop_repeated_owners(call, &mut *object, true);
    // What admission put in has defaults of its own.
    registry.default(&mut *object);
    let prefix = object.meta().generate_name.clone().filter(|p| !p.is_empty());
    let named = object.meta().name.as_deref().is_some_and(|n| !n.is_empty());
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
        begin(trial.meta_mut());
        registry.prepare_for_create(&mut *trial, &call.context());
        check_new(call, &*trial)?;
        call.warnings.extend(registry.warnings(&*trial, None));
        if let Some(creating) = call.info.as_create() {
            // He may change what is there, but nothing was.
            call.server.authorizer.check(&call.user, &creating).await?;
        }
        // Who judges an object sees what it is given.
        let taken = match call.server.lifecycles.of(call.kind()) {
            Some(hooks) => hooks.before_create(trial.as_any_mut(), &call.context()).await?,
            None => no_matter(),
        };
        let attributes = Attributes::of(call, Operation::Create, &*trial);
        let judged = call.server.admission.validate(&attributes, Some(&*trial), None).await;
        if let Err(refused) = judged {
            taken(false).await;
            return Err(refused);
        }
        call.warnings.extend(attributes.take_warnings());
        let name = trial.meta().name.clone().unwrap_or_default();
        if call.dry_run {
            taken(false).await;
            if is_there(call, &*trial).await? {
                return Err(exists(call, &name, prefix.is_some()));
            }
            let bytes = call.storage.to_value(&mut *trial).await?;
            return Ok(Written { revision: Revision::ZERO, bytes });
        }
        if has_version {
            taken(false).await;
            return Err(unclassified("resourceVersion should not be set on objects to be created"));
        }
        let outcome = call.storage.create(&mut *trial).await;
        taken(matches!(outcome, Ok(Outcome::Done(_)))).await;
        match outcome? {
            Outcome::Done(written) => return Ok(written),
            Outcome::Conflict(_) if untried.is_some() => {}
            Outcome::Conflict(_) => return Err(exists(call, &name, prefix.is_some())),
        }
    }
    unreachable!("the last attempt returns")
}

/// Whether there is an object of this name.
async fn is_there(call: &Call, object: &dyn Object) -> Result<bool, StatusError> {
    let meta = object.meta();
    let name = meta.name.as_deref().unwrap_or_default();
    match call.storage.read(meta.namespace.as_deref().unwrap_or_default(), name, Freshness::Latest).await {
        Ok(_) => Ok(true),
        Err(error) if error.is(Reason::NotFound) => Ok(false),
        Err(error) => Err(error),
    }
}

/// What is answered where the name is taken. Who had one generated may try his luck again.
fn exists(call: &Call, name: &str, generated: bool) -> StatusError {
    let mut error = StatusError::already_exists(call.kind().group, call.kind().plural, name);
    if generated {
        if let Some(message) = &mut error.0.message {
            message.push_str(", the server was not able to generate a unique name for the object");
        }
        if let Some(details) = &mut error.0.details {
            details.retry_after_seconds = Some(1);
        }
    }
    error
}

/// An owner that is named twice is one owner. `mutated`: admission has been asked.
fn drop_repeated_owners(call: &mut Call, object: &mut dyn Object, mutated: bool) {
    let Some(owners) = object.meta_mut().owner_references.as_mut().filter(|owners| owners.len() > 1) else {
        return;
    };
    let repeated = take_repeated(owners);
    if !repeated.is_empty() {
        let when = if mutated { " after mutating admission happens" } else { "" };
        call.warnings.push(format!(
            ".metadata.ownerReferences contains duplicate entries{when}; API server dedups owner references in 1.20+, and \
             may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {}",
            repeated.join(", ")
        ));
    }
}

/// Leaves the first of those that are the same. The UIDs of the others.
fn take_repeated(owners: &mut Vec<OwnerReference>) -> Vec<String> {
    let is_new: Vec<bool> = {
        let mut seen = HashSet::with_capacity(owners.len());
        let parts = owners
            .iter()
            .map(|o| (&*o.uid, &*o.name, &*o.kind, &*o.api_version, o.controller, o.block_owner_deletion));
        parts.map(|owner| seen.insert(owner)).collect()
    };
    let mut all = is_new.into_iter();
    let repeated = owners.extract_if(.., |_| all.next() == Some(false));
    repeated.map(|owner| owner.uid).collect()
}

/// What the server alone says of a new object.
fn begin(meta: &mut ObjectMeta) {
    wipe(meta);
    meta.uid = Some(Uuid::new_v4().to_string());
    meta.creation_timestamp = Some(now());
}

/// Nobody else does.
fn wipe(meta: &mut ObjectMeta) {
    meta.uid = None;
    meta.creation_timestamp = None;
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
    if let Some(prefix) = meta.generate_name.as_deref().filter(|p| !p.is_empty()) {
        for wrong in registry.validate_name(&mask_trailing_dash(prefix)) {
            errors.invalid(&at.child("generateName"), prefix, wrong);
        }
    }
    if let Some(name) = meta.name.as_deref().filter(|n| !n.is_empty()) {
        for wrong in registry.validate_name(name) {
            errors.invalid(&at.child("name"), name, wrong);
        }
    }
    meta::validate_new(meta, call.kind().scope, NameRule::Any, &at, &mut errors);
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
    let asked = version_of(object.meta())?;
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
            Some(asked) if *asked == current.revision => object.take().ok_or(None),
            Some(_) => Err(None),
            None => object.as_ref().map(|object| object.boxed_clone()).ok_or(None),
        }
    })
    .await?;
    call.written(StatusCode::OK, &written).await
}

/// Which state of an object is meant; none where it may be any.
fn version_of(meta: &ObjectMeta) -> Result<Option<Revision>, StatusError> {
    match meta.resource_version.as_deref() {
        None | Some("" | "0") => Ok(None),
        Some(text) => text.parse().map(|number| Some(Revision(number))).map_err(|error| {
            unclassified(format!("strconv.ParseUint: parsing {text:?}: {}", unread(&error)))
        }),
    }
}

/// As what those who are asked about a change see it.
pub enum Guise {
    /// As one of the object.
    Object,
    /// As one of the object's Scale, as it is to be.
    Scale(Box<Unstored<Scale>>),
    /// Nobody is asked: what has it made was admitted already.
    Admitted,
}

/// What a change makes of an object.
pub struct Made {
    pub object: Box<dyn Object>,
    pub guise: Guise,
}

impl From<Box<dyn Object>> for Made {
    fn from(object: Box<dyn Object>) -> Self {
        Made { object, guise: Guise::Object }
    }
}

/// Changes an object: `make` gives the new one from what is there, or `Err(None)` if the caller has not seen that.
/// With `again`, it is asked anew when somebody else was first.
pub async fn change<M: Into<Made>>(
    call: &mut Call,
    mut current: Current,
    again: bool,
    ownership: Ownership,
    mut make: impl FnMut(&mut Call, &Current) -> Result<M, Option<StatusError>>,
) -> Result<Written, StatusError> {
    let name = call.info.name.clone();
    let attempts = if again { ATTEMPTS } else { 1 };
    // The cache may be behind: a caller who has seen more than it is answered from the store.
    let mut from_cache = true;
    let mut attempt = 0;
    loop {
        let made = match make(call, &current).map(|made| -> Made { made.into() }) {
            Ok(Made { mut object, guise }) => finish_update(call, &mut object, &current, ownership, guise)
                .await
                .map(|taken| (object, taken))
                .map_err(Some),
            Err(why) => Err(why),
        };
        let (mut object, taken) = match made {
            Ok(made) => made,
            Err(why) => match newer(call, &name, &current, &mut from_cache).await? {
                // What is refused of a state that is behind may be right of the newest.
                Some(there) => {
                    current = there;
                    continue;
                }
                None => return Err(why.unwrap_or_else(|| call.stale(&name))),
            },
        };
        let old = &*current.object;
        let ends = old.meta().deletion_timestamp.is_some() && is_finished(&*object);
        let value = call.storage.to_value(&mut *object).await?;
        let changes_nothing = value == current.value && !ends && !call.storage.is_stale(&*object).await?;
        if changes_nothing || call.dry_run {
            taken(false).await;
            if let Some(there) = newer(call, &name, &current, &mut from_cache).await? {
                current = there;
                continue;
            }
            // Nothing is written, and the resourceVersion stays.
            return Ok(Written {
                revision: current.revision,
                bytes: with_revision(&value, current.revision),
            });
        }
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

/// What the store has now, if that is another state than the one that came from the cache.
async fn newer(
    call: &Call,
    name: &str,
    current: &Current,
    from_cache: &mut bool,
) -> Result<Option<Current>, StatusError> {
    if !std::mem::take(from_cache) {
        return Ok(None);
    }
    let there = newest(call, name).await?;
    Ok((there.revision != current.revision).then_some(there))
}

/// What the store has now, whatever the cache has.
pub async fn newest(call: &Call, name: &str) -> Result<Current, StatusError> {
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

/// Defaults, admission, preparation and validation of an object that replaces another. What is returned is to be told
/// whether it came to be written.
async fn finish_update(
    call: &mut Call,
    object: &mut Box<dyn Object>,
    current: &Current,
    ownership: Ownership,
    mut guise: Guise,
) -> Result<lifecycle::Outcome, StatusError> {
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
            return Err(call.unmet(&name, "UID", uid, was.uid.as_deref().unwrap_or_default()));
        }
        if meta.uid.as_deref().is_none_or(str::is_empty) {
            meta.uid.clone_from(&was.uid);
        }
        meta.creation_timestamp.clone_from(&was.creation_timestamp);
        // Nobody begins a deletion by saying so: of an object that stays, validation refuses it.
        if was.deletion_timestamp.is_some() || door == Door::Status {
            meta.deletion_timestamp.clone_from(&was.deletion_timestamp);
        }
        if meta.deletion_grace_period_seconds.is_none() || door == Door::Status {
            meta.deletion_grace_period_seconds = was.deletion_grace_period_seconds;
        }
        meta.self_link = None;
        meta.generation = was.generation;
        meta.resource_version = Some(current.revision.to_string());
        if meta.managed_fields.is_none() {
            meta.managed_fields.clone_from(&was.managed_fields);
        }
    }
    registry.default(&mut **object);
    if call.info.verb == "update" {
        drop_repeated_owners(call, &mut **object, false);
    }
    if ownership == Ownership::Changes {
        ownership::track(call, &mut **object, Some(current)).await?;
        object.meta_mut().resource_version = Some(current.revision.to_string());
    }
    match &mut guise {
        Guise::Object => {
            let attributes = Attributes::of(call, Operation::Update, &**object);
            call.server.admission.mutate(&attributes, &mut **object, Some(old)).await?;
            call.warnings.extend(attributes.take_warnings());
        }
        Guise::Scale(scale) => scale::mutate(call, &mut **object, old, scale).await?,
        Guise::Admitted => {}
    }
    drop_repeated_owners(call, &mut **object, true);
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
    if !matches!(guise, Guise::Admitted) {
        call.warnings.extend(registry.warnings(&**object, Some(old)));
    }
    let taken = match call.server.lifecycles.of(call.kind()) {
        Some(hooks) if call.info.subresource.is_empty() => {
            hooks.before_update(object.as_any_mut(), old.as_any(), &call.context()).await?
        }
        _ => no_matter(),
    };
    if let Err(refused) = judge(call, &**object, old, &guise).await {
        taken(false).await;
        return Err(refused);
    }
    Ok(taken)
}

/// Asks those who only say yes or no to a change.
async fn judge(
    call: &mut Call,
    object: &dyn Object,
    old: &dyn Object,
    guise: &Guise,
) -> Result<(), StatusError> {
    match guise {
        Guise::Object => {
            let attributes = Attributes::of(call, Operation::Update, object);
            call.server.admission.validate(&attributes, Some(object), Some(old)).await?;
            call.warnings.extend(attributes.take_warnings());
            Ok(())
        }
        Guise::Scale(_) => scale::validate(call, object, old).await,
        Guise::Admitted => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_resource_version_says_which_state_is_meant() {
        let version = |text: Option<&str>| {
            version_of(&ObjectMeta { resource_version: text.map(str::to_owned), ..ObjectMeta::default() })
        };
        for any in [None, Some(""), Some("0")] {
            assert_eq!(version(any).expect("any"), None);
        }
        assert_eq!(version(Some("7")).expect("a number"), Some(Revision(7)));
        let refused = version(Some("abc")).expect_err("no number");
        let told = "strconv.ParseUint: parsing \"abc\": invalid syntax";
        assert_eq!((refused.code(), refused.to_string().as_str()), (500, told));
    }

    #[test]
    fn an_owner_that_is_named_twice_is_one() {
        let owner = |uid: &str, controller: bool| -> OwnerReference {
            let owner =
                json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid, "controller": controller});
            serde_json::from_value(owner).expect("an owner")
        };
        let mut owners = vec![owner("1", false), owner("2", false), owner("1", true), owner("1", false)];
        assert_eq!(take_repeated(&mut owners), ["1"]);
        assert_eq!(owners, [owner("1", false), owner("2", false), owner("1", true)]);
        assert_eq!(take_repeated(&mut owners), Vec::<String>::new());
    }
}
