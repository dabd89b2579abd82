//! Deletion: at once, after a grace, or once the last finalizer is gone.

use bytes::Bytes;
use http::StatusCode;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{DeleteOptions, ObjectMeta, Preconditions, Time};
use krate_api::{FieldErrors, FieldPath, Gvk, Kind, StatusError};
use krate_store::cache::{Freshness, ListQuery};
use serde_json::json;

use super::call::Call;
use super::options::{ListOptions, number};
use super::read;
use super::select::selection;
use super::write::{newest, now};
use crate::admission::Attributes;
use crate::apiextensions::mark_terminating;
use crate::head;
use crate::http::{self as wire, Reply};
use crate::registry::erased::Object;
use crate::request::Query;
use crate::storage::{Current, Outcome, Written, refused, with_revision};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";
const ATTEMPTS: usize = 10;
/// Where upstream keeps the kinds of options, as its errors name it.
const META_SCHEME: &str = "k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme/register.go:27";

/// Kinds whose deletion answers with the object as it last was; others answer with a `Status`.
fn answers_with_object(kind: &Kind) -> bool {
    matches!(
        (kind.group, kind.plural),
        (
            "",
            "pods"
                | "podtemplates"
                | "persistentvolumeclaims"
                | "persistentvolumes"
                | "resourcequotas"
                | "services"
                | "serviceaccounts"
        ) | ("storage.k8s.io", "storageclasses" | "csidrivers" | "csinodes" | "volumeattachments")
            | ("networking.k8s.io", "servicecidrs")
            | (
                "resource.k8s.io",
                "deviceclasses" | "resourceclaims" | "resourceclaimtemplates" | "resourceslices"
            )
    )
}

/// Whether nothing keeps an object that is being deleted.
pub fn is_finished(object: &dyn Object) -> bool {
    let meta = object.meta();
    let graceful = meta.deletion_grace_period_seconds.unwrap_or(0) > 0;
    !graceful && !is_held(object)
}

fn is_held(object: &dyn Object) -> bool {
    let held = |list: Option<&Vec<String>>| list.is_some_and(|f| !f.is_empty());
    held(object.meta().finalizers.as_ref())
        || object
            .is::<Namespace>()
            .is_some_and(|ns| held(ns.spec.as_ref().and_then(|spec| spec.finalizers.as_ref())))
}

/// What follows an object's removal from the store.
pub async fn release(call: &Call, object: &dyn Object) {
    if let Some(hooks) = call.server.lifecycles.of(call.kind()) {
        hooks.after_delete(object.as_any()).await;
    }
}

/// What a deletion is asked to be: by its body, or by its query if it has none.
fn options(call: &mut Call, body: Bytes) -> Result<DeleteOptions, StatusError> {
    let options =
        if body.is_empty() { asked(&call.query)? } else { sent(&wire::to_json(&call.headers, body)?)? };
    if (call.kind().group, call.kind().plural) == ("batch", "jobs")
        && options.propagation_policy.is_none()
        && options.orphan_dependents.is_none()
    {
        call.warnings.push(
            "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove \
             them or set propagationPolicy=Orphan to suppress this warning"
                .to_owned(),
        );
    }
    validate(&options)?;
    call.dry_run |= options.dry_run.as_ref().is_some_and(|said| !said.is_empty());
    Ok(options)
}

fn asked(query: &Query) -> Result<DeleteOptions, StatusError> {
    let dry_run: Vec<String> = query.all("dryRun").map(str::to_owned).collect();
    let orphans = query.get("orphanDependents").map(|_| query.flag("orphanDependents"));
    let said = |name: &str| query.get(name).filter(|said| !said.is_empty()).map(str::to_owned);
    let pinned = Preconditions { uid: said("uid"), resource_version: said("resourceVersion") };
    Ok(DeleteOptions {
        preconditions: Some(pinned).filter(|pinned| *pinned != Preconditions::default()),
        dry_run: Some(dry_run).filter(|said| !said.is_empty()),
        grace_period_seconds: number(query, "gracePeriodSeconds")?,
        orphan_dependents: orphans,
        propagation_policy: query.get("propagationPolicy").map(str::to_owned),
        ..DeleteOptions::default()
    })
}

fn sent(json: &[u8]) -> Result<DeleteOptions, StatusError> {
    let options: DeleteOptions =
        serde_json::from_slice(json).map_err(|error| StatusError::bad_request(error.to_string()))?;
    match options.kind.as_deref() {
        None | Some("" | "DeleteOptions") => Ok(options),
        Some(kind) => {
            let version = options.api_version.as_deref().unwrap_or_default();
            Err(StatusError::bad_request(format!(
                "no kind {kind:?} is registered for version {version:?} in scheme {META_SCHEME:?}"
            )))
        }
    }
}

fn validate(options: &DeleteOptions) -> Result<(), StatusError> {
    let mut errors = FieldErrors::new();
    let policy = options.propagation_policy.as_deref();
    if policy.is_some() && options.orphan_dependents.is_some() {
        let why = "orphanDependents and deletionPropagation cannot be both set";
        errors.invalid(&FieldPath::new("propagationPolicy"), policy, why);
    }
    if let Some(policy) = policy
        && !matches!(policy, "Foreground" | "Background" | "Orphan")
    {
        let supported = ["Foreground", "Background", "Orphan", "nil"];
        errors.not_supported(&FieldPath::new("propagationPolicy"), policy, &supported);
    }
    if options.dry_run.iter().flatten().any(|said| said != "All") {
        errors.not_supported(&FieldPath::new("dryRun"), &options.dry_run, &["All"]);
    }
    if errors.is_empty() {
        return Ok(());
    }
    let kind = Gvk { group: "meta.k8s.io", version: "v1", kind: "DeleteOptions" };
    Err(StatusError::invalid(kind, "", &errors))
}

/// `DELETE` of an object.
pub async fn delete(mut call: Call, body: Bytes) -> Result<Reply, StatusError> {
    let options = options(&mut call, body)?;
    let name = call.info.name.clone();
    let (written, gone) = delete_object(&mut call, &name, &options).await?;
    let code = code_of(gone, &options);
    if !gone || answers_with_object(call.kind()) {
        return call.written(code, &written).await;
    }
    let uid = head::read(&written.bytes).map_err(StatusError::internal)?.uid;
    let mut details = json!({"name": name, "kind": call.kind().plural, "uid": uid});
    if !call.kind().group.is_empty() {
        details["group"] = call.kind().group.into();
    }
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
    });
    let mut reply = wire::json(code, call.wanted, status.to_string().into());
    wire::warn(&mut reply, &call.warnings);
    Ok(reply)
}

/// Who wants the dependents gone too is told where they are only on their way.
fn code_of(gone: bool, options: &DeleteOptions) -> StatusCode {
    if !gone && options.orphan_dependents == Some(false) { StatusCode::ACCEPTED } else { StatusCode::OK }
}

/// `DELETE` of a collection: each of its objects in turn. Answers with the list of what was there.
pub async fn delete_collection(mut call: Call, body: Bytes) -> Result<Reply, StatusError> {
    ListOptions::read(&call.query, false)?;
    let options = options(&mut call, body)?;
    let selection = selection(&call)?;
    let scope = read::scope(&call.info);
    let query =
        ListQuery { selector: selection.selector.clone(), ..ListQuery::new(scope, Freshness::Latest) };
    let list = call.storage.cache.list(&query).await.map_err(refused)?;
    let revision = list.revision;
    let (items, _) = selection.page(&call.storage, list, 0).await?;
    for object in &items.objects {
        object.head.namespace.as_ref().clone_into(&mut call.info.namespace);
        object.head.name.as_ref().clone_into(&mut call.info.name);
        match delete_object(&mut call, &object.head.name, &options).await {
            Ok(_) => {}
            Err(error) if error.code() == 404 => {}
            Err(error) => return Err(error),
        }
    }
    read::list_reply(&call, items, revision, None, None)
}

/// Deletes one object, or begins to. Tells what it was last, and whether it is gone.
pub async fn delete_object(
    call: &mut Call,
    name: &str,
    options: &DeleteOptions,
) -> Result<(Written, bool), StatusError> {
    let mut current = call.storage.current(&call.info.namespace, name).await?;
    let mut seen_newest = false;
    for _ in 0..ATTEMPTS {
        if let Err(error) = check(call, name, options.preconditions.as_ref(), &current) {
            if seen_newest {
                return Err(error);
            }
            seen_newest = true;
            current = newest(call, name).await?;
            continue;
        }
        let grace = call.storage.registry.grace_period(&*current.object, asked_grace(options));
        let pends = pends(&*current.object, options, grace);
        // An eviction is admitted as what it is, before it is charged to a budget.
        if call.info.subresource.is_empty() && !pends {
            admit(call, &current, told(&*current.object, options, grace)).await?;
        }
        let mut object = current.object.boxed_clone();
        let began = object.meta().deletion_timestamp.is_some();
        if !pends {
            begin(call, &mut *object, options, began);
        }
        let gone = is_finished(&*object);
        let at_once = gone && !began && call.storage.registry.grace_period(&*object, None).is_none();
        let value = if at_once {
            // What goes at once was never on its way: nobody is shown marks of that.
            current.value.clone()
        } else {
            call.storage.to_value(&mut *object).await?
        };
        if call.dry_run || (!gone && value == current.value) {
            if !seen_newest {
                seen_newest = true;
                let there = newest(call, name).await?;
                if there.revision != current.revision {
                    current = there;
                    continue;
                }
            }
            let bytes = with_revision(&value, current.revision);
            return Ok((Written { revision: current.revision, bytes }, gone));
        }
        let object = if at_once { &*current.object } else { &*object };
        let outcome = if gone {
            call.storage.delete(object, value, current.revision).await?
        } else {
            call.storage.replace(object, value, current.revision).await?
        };
        match outcome {
            Outcome::Done(written) => {
                if gone {
                    release(call, object).await;
                    // What is told is the state before, at its own revision.
                    return Ok((written, true));
                }
                return Ok((written, false));
            }
            Outcome::Conflict(there) => {
                current = call.storage.current_of(name, there).await?;
            }
        }
    }
    Err(call.stale(name))
}

/// Asks whether an object may be deleted.
///
/// # Errors
/// It may not.
async fn admit(call: &mut Call, current: &Current, options: DeleteOptions) -> Result<(), StatusError> {
    let mut attributes = Attributes::of_deletion(call, &*current.object, options);
    call.server.admission.consult(&mut attributes, Some(&*current.object)).await?;
    call.server.admission.validate(&attributes, None, Some(&*current.object)).await?;
    call.warnings.extend(attributes.take_warnings());
    Ok(())
}

/// Whether an object is the one that is meant.
///
/// # Errors
/// It is another, or was another when it was looked at: 409.
pub fn check(
    call: &Call,
    name: &str,
    wanted: Option<&Preconditions>,
    current: &Current,
) -> Result<(), StatusError> {
    let Some(wanted) = wanted else { return Ok(()) };
    // Upstream names the kind here, and not the resource.
    let conflict = |why: String| Err(StatusError::conflict(call.kind().group, call.kind().kind, name, why));
    let uid = current.object.meta().uid.clone().unwrap_or_default();
    if let Some(asked) = wanted.uid.as_ref().filter(|asked| **asked != uid) {
        return conflict(format!(
            "the UID in the precondition ({asked}) does not match the UID in record ({uid}). The object might have been \
             deleted and then recreated"
        ));
    }
    let revision = current.revision.to_string();
    if let Some(asked) = wanted.resource_version.as_ref().filter(|asked| **asked != revision) {
        return conflict(format!(
            "the ResourceVersion in the precondition ({asked}) does not match the ResourceVersion in record \
             ({revision}). The object might have been modified"
        ));
    }
    Ok(())
}

/// Less than no grace is a second.
fn asked_grace(options: &DeleteOptions) -> Option<i64> {
    options.grace_period_seconds.map(|seconds| if seconds < 0 { 1 } else { seconds })
}

/// Whether an object goes with a grace that this deletion does not make shorter: then nothing is asked and nothing changes.
/// `grace`: that which it would have; none for what goes at once.
fn pends(object: &dyn Object, options: &DeleteOptions, grace: Option<i64>) -> bool {
    let meta = object.meta();
    let (Some(_), Some(_)) = (grace, &meta.deletion_timestamp) else { return false };
    let runs = meta.deletion_grace_period_seconds.unwrap_or(0);
    runs != 0 && asked_grace(options).is_none_or(|asked| asked >= runs)
}

/// How those who are asked about a deletion see what it is asked to be: with the grace that is given.
fn told(object: &dyn Object, options: &DeleteOptions, grace: Option<i64>) -> DeleteOptions {
    let begins = object.meta().deletion_timestamp.is_none();
    DeleteOptions {
        grace_period_seconds: grace.filter(|_| begins).or_else(|| asked_grace(options)),
        // This is of a feature that is off.
        ignore_store_read_error_with_cluster_breaking_potential: None,
        dry_run: options.dry_run.clone().filter(|said| !said.is_empty()),
        ..options.clone()
    }
}

/// Marks an object as being deleted, with the grace and the finalizers that were asked for.
fn begin(call: &Call, object: &mut dyn Object, options: &DeleteOptions, began: bool) {
    if let Some(finalizer) = call.storage.registry.cleanup_finalizer() {
        let meta = object.meta_mut();
        if !began {
            meta.deletion_timestamp = Some(now());
            let list = meta.finalizers.get_or_insert_default();
            if !list.iter().any(|f| f == finalizer) {
                list.push(finalizer.to_owned());
            }
            if let Some(definition) = object.is_mut::<CustomResourceDefinition>() {
                mark_terminating(definition);
            }
        }
        return;
    }
    let asked = asked_grace(options);
    let grace = call.storage.registry.grace_period(object, asked).unwrap_or(0);
    let meta = object.meta_mut();
    finalizers(meta, options, orphans_by_default(call.kind()));
    if began {
        // A grace that runs can only be made shorter.
        let before = meta.deletion_grace_period_seconds.unwrap_or(0);
        if asked.is_some() && grace < before {
            shorten(meta, before, grace);
        }
    } else {
        meta.deletion_timestamp = Some(after(grace));
        meta.deletion_grace_period_seconds = Some(grace);
        if meta.generation.is_some_and(|g| g > 0) {
            meta.generation = meta.generation.map(|g| g + 1);
        }
    }
    if let Some(namespace) = object.is_mut::<Namespace>() {
        namespace.metadata.deletion_grace_period_seconds = None;
        namespace.status.get_or_insert_default().phase = Some("Terminating".to_owned());
    }
}

fn shorten(meta: &mut ObjectMeta, before: i64, grace: i64) {
    if let Some(time) = &mut meta.deletion_timestamp {
        time.0 = time.0.saturating_sub(jiff::SignedDuration::from_secs(before - grace)).unwrap_or(time.0);
    }
    meta.deletion_grace_period_seconds = Some(grace);
}

fn after(seconds: i64) -> Time {
    let now = now();
    Time(now.0.saturating_add(jiff::SignedDuration::from_secs(seconds)).unwrap_or(now.0))
}

/// Kinds whose dependents stay when nobody says what is to become of them, as it was before garbage collection.
fn orphans_by_default(kind: &Kind) -> bool {
    matches!((kind.group, kind.plural), ("batch", "jobs") | ("", "replicationcontrollers"))
}

/// The garbage collector acts on these finalizers; which of them are there is what the deletion asked for.
fn finalizers(meta: &mut ObjectMeta, options: &DeleteOptions, by_default: bool) {
    let orphan = match (options.propagation_policy.as_deref(), options.orphan_dependents) {
        (Some(policy), _) => policy == "Orphan",
        (None, Some(orphan)) => orphan,
        // Nothing asked: what is there stays.
        (None, None) => {
            let said = meta.finalizers.iter().flatten().any(|f| f == FOREGROUND || f == ORPHAN);
            if said || !by_default {
                return;
            }
            true
        }
    };
    let foreground = options.propagation_policy.as_deref() == Some("Foreground");
    let mut list = meta.finalizers.take().unwrap_or_default();
    list.retain(|f| f != FOREGROUND && f != ORPHAN);
    if orphan {
        list.push(ORPHAN.to_owned());
    }
    if foreground {
        list.push(FOREGROUND.to_owned());
    }
    meta.finalizers = (!list.is_empty()).then_some(list);
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;

    use super::*;

    fn of_query(query: &str) -> Result<DeleteOptions, StatusError> {
        asked(&Query::parse(Some(query))).and_then(|options| validate(&options).map(|()| options))
    }

    #[test]
    fn a_query_says_how_to_delete() {
        let options = of_query("gracePeriodSeconds=5&orphanDependents=false&dryRun=All").expect("options");
        assert_eq!((options.grace_period_seconds, options.orphan_dependents), (Some(5), Some(false)));
        assert_eq!(options.dry_run.as_deref(), Some(&["All".to_owned()][..]));
        let cases = [
            ("gracePeriodSeconds=x", 400, "strconv.ParseInt: parsing \"x\": invalid syntax"),
            (
                "dryRun=odd",
                422,
                "DeleteOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: [\"odd\"]: supported values: \"All\"",
            ),
            (
                "propagationPolicy=Orphan&orphanDependents=true",
                422,
                "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Invalid value: \"Orphan\": \
                 orphanDependents and deletionPropagation cannot be both set",
            ),
        ];
        for (query, code, told) in cases {
            let refused = of_query(query).expect_err(query);
            assert_eq!((refused.code(), refused.to_string().as_str()), (code, told));
        }
    }

    #[test]
    fn a_query_says_what_is_meant() {
        assert_eq!(of_query("uid=&resourceVersion=").expect("options").preconditions, None);
        let pinned = of_query("uid=u&resourceVersion=7").expect("options").preconditions;
        let expected = Preconditions { uid: Some("u".to_owned()), resource_version: Some("7".to_owned()) };
        assert_eq!(pinned, Some(expected));
    }

    fn going(grace: Option<i64>) -> Pod {
        let meta = ObjectMeta {
            deletion_timestamp: grace.map(after),
            deletion_grace_period_seconds: grace,
            ..ObjectMeta::default()
        };
        Pod { metadata: meta, ..Pod::default() }
    }

    fn within(seconds: Option<i64>) -> DeleteOptions {
        DeleteOptions { grace_period_seconds: seconds, ..DeleteOptions::default() }
    }

    #[test]
    fn a_grace_that_runs_is_only_made_shorter() {
        let pends = |runs: Option<i64>, asked: Option<i64>| pends(&going(runs), &within(asked), Some(30));
        assert!(pends(Some(30), None) && pends(Some(30), Some(30)) && pends(Some(30), Some(40)));
        assert!(!pends(Some(30), Some(5)) && !pends(Some(0), None) && !pends(None, None));
        assert!(!super::pends(&going(Some(30)), &within(None), None), "it has no grace");
    }

    #[test]
    fn a_deletion_is_told_with_the_grace_that_it_gives() {
        let told = |runs: Option<i64>, asked: Option<i64>, grace: Option<i64>| {
            told(&going(runs), &within(asked), grace).grace_period_seconds
        };
        assert_eq!(told(None, None, Some(30)), Some(30));
        assert_eq!(told(None, Some(-7), None), Some(1), "less than none");
        assert_eq!(told(None, None, None), None);
        assert_eq!(told(Some(30), Some(5), Some(0)), Some(5), "a shorter one");
    }

    #[test]
    fn nothing_is_deleted_by_an_object_of_another_kind() {
        assert!(sent(br#"{"kind":"DeleteOptions","apiVersion":"apps/v1"}"#).is_ok());
        assert!(sent(b"{}").is_ok());
        assert_eq!(sent(br#"{"kind":"Pod","apiVersion":"v1"}"#).expect_err("no options").code(), 400);
    }

    #[test]
    fn who_wants_the_dependents_gone_is_told_that_they_are_going() {
        let options = |orphan| DeleteOptions { orphan_dependents: orphan, ..DeleteOptions::default() };
        assert_eq!(code_of(false, &options(Some(false))), StatusCode::ACCEPTED);
        assert_eq!(code_of(true, &options(Some(false))), StatusCode::OK);
        assert_eq!(code_of(false, &options(None)), StatusCode::OK);
    }
}
