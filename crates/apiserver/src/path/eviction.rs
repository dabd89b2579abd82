//! `POST pods/x/eviction`: a deletion that minds disruption budgets, and takes from them what it disrupts (KEP-85). The pod
//! is told by a condition why it goes (KEP-3329).

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::api::policy::v1::{Eviction, PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    Condition, DeleteOptions, StatusCause, StatusDetails, Time,
};
use krate_api::{FieldErrors, FieldPath, Gvk, LabelSelector, Reason, StatusError};
use krate_store::Revision;
use krate_store::cache::{Freshness, ListQuery, Scope};
use serde_json::json;

use super::call::{Call, no_such_resource, unclassified};
use super::delete::{check, delete_object};
use super::ownership::owned_by_server;
use super::subresource::{created, place, read_as, success};
use super::write::{newest, now};
use crate::admission::{Attributes, Body, Operation};
use crate::http::{self as wire, Reply};
use crate::registry::erased::Unstored;
use crate::storage::{Current, Outcome, Storage, refused};

const EVICTION: Gvk<'static> = Gvk { group: "policy", version: "v1", kind: "Eviction" };
const BODY: Body = Body { kind: EVICTION, decode: Unstored::<Eviction>::decode };
/// How often it is tried again when others write first.
const ATTEMPTS: usize = 20;
/// How many pods may be on their way out before the disruption controller has seen them go.
const DISRUPTED_MAX: usize = 2000;
/// Seconds after which who was turned away may try again.
const RETRY_AFTER: i32 = 10;

/// # Errors
/// There is no such pod, or its budget does not let it go (429).
pub async fn evict(mut call: Call, body: Bytes) -> Result<Reply, StatusError> {
    call.read_options("CreateOptions")?;
    let mut eviction: Eviction = read_as(&mut call, body, EVICTION)?;
    place(&call, &mut eviction.metadata)?;
    let name = call.info.name.clone();
    let eviction = admit(&mut call, eviction).await?;
    let options = eviction.delete_options.unwrap_or_default();
    check_options(&call, &name, &options)?;
    call.dry_run |= options.dry_run.as_ref().is_some_and(|said| !said.is_empty());
    let Some(current) = evict_unguarded(&mut call, &name, &options).await? else {
        return Ok(created(&call, &success()));
    };
    let Some(pod) = current.object.is::<Pod>() else { return Err(no_such_resource()) };
    let storage = call.server.kinds.of("policy", "poddisruptionbudgets");
    let budgets = match &storage {
        Some(storage) => budgets_of(storage, &call.info.namespace, pod).await?,
        None => Vec::new(),
    };
    if budgets.len() > 1 {
        return Ok(several(&call));
    }
    let (mut pinned, mut of) = (options.clone(), None);
    if let (Some(storage), Some(budget)) = (storage, budgets.into_iter().next()) {
        if budget.object.is::<PodDisruptionBudget>().is_some_and(|budget| lets_unready_go(pod, budget)) {
            // It may be ready by now, and then its budget would count.
            pin(&mut pinned, current.revision);
            of.clone_from(&budget.object.meta().name);
        } else {
            take(&call, &storage, &name, budget).await?;
        }
    }
    match dispose(&mut call, &name, pinned).await {
        Err(error) if error.is(Reason::Conflict) && !is_pinned(&options) => match of {
            Some(budget) => Err(not_yet(&budget)),
            None => Err(error),
        },
        other => other.map(|()| created(&call, &success())),
    }
}

/// Asks whether it may be, and how.
async fn admit(call: &mut Call, eviction: Eviction) -> Result<Eviction, StatusError> {
    let mut eviction = Unstored(eviction);
    let attributes = Attributes::of_body(call, Operation::Create, &eviction, BODY);
    call.server.admission.mutate(&attributes, &mut eviction, None).await?;
    if eviction.0.metadata.name.as_deref().unwrap_or_default() != call.info.name {
        return Err(StatusError::bad_request("name in URL does not match name in Eviction object"));
    }
    call.server.admission.validate(&attributes, Some(&eviction), None).await?;
    call.warnings.extend(attributes.take_warnings());
    Ok(eviction.0)
}

fn check_options(call: &Call, name: &str, options: &DeleteOptions) -> Result<(), StatusError> {
    if options.ignore_store_read_error_with_cluster_breaking_potential == Some(true) {
        let mut errors = FieldErrors::new();
        let at = FieldPath::new("deleteOptions").child("ignoreStoreReadErrorWithClusterBreakingPotential");
        errors.invalid(&at, true, "can not be set for pod eviction, try after removing the option");
        return Err(StatusError::invalid(EVICTION, name, &errors));
    }
    let asked: Vec<&str> = call.query.all("dryRun").filter(|value| !value.is_empty()).collect();
    let said: Vec<&str> = options.dry_run.iter().flatten().map(String::as_str).collect();
    if asked.is_empty() || said.is_empty() || asked == said {
        return Ok(());
    }
    Err(unclassified(format!(
        "Non-matching dry-run options in request and content: [{}] and [{}]",
        asked.join(" "),
        said.join(" ")
    )))
}

/// Evicts a pod that no budget guards: one that has ended or is going disrupts nobody, nor does one that has not begun,
/// as long as it is what was looked at. The pod as it is, if it is another.
async fn evict_unguarded(
    call: &mut Call,
    name: &str,
    options: &DeleteOptions,
) -> Result<Option<Current>, StatusError> {
    for attempt in 1.. {
        let current = newest(call, name).await?;
        let Some(pod) = current.object.is::<Pod>() else { return Err(no_such_resource()) };
        let standing = standing(pod);
        if standing == Standing::Guarded {
            return Ok(Some(current));
        }
        let mut pinned = options.clone();
        if standing == Standing::Pending && !is_pinned(options) {
            pin(&mut pinned, current.revision);
        }
        match dispose(call, name, pinned).await {
            Err(error) if error.is(Reason::Conflict) && !is_pinned(options) && attempt < ATTEMPTS => {}
            other => return other.map(|()| None),
        }
    }
    unreachable!("the last attempt returns")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It has ended, or is going already.
    Gone,
    Pending,
    Guarded,
}

fn standing(pod: &Pod) -> Standing {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    if pod.metadata.deletion_timestamp.is_some() || matches!(phase, "Succeeded" | "Failed") {
        return Standing::Gone;
    }
    if phase == "Pending" { Standing::Pending } else { Standing::Guarded }
}

fn is_pinned(options: &DeleteOptions) -> bool {
    options.preconditions.as_ref().is_some_and(|asked| asked.resource_version.is_some())
}

fn pin(options: &mut DeleteOptions, revision: Revision) {
    options.preconditions.get_or_insert_default().resource_version = Some(revision.to_string());
}

async fn budgets_of(storage: &Storage, namespace: &str, pod: &Pod) -> Result<Vec<Current>, StatusError> {
    let query = ListQuery::new(Scope::namespace(namespace), Freshness::Latest);
    let list = storage.cache.list(&query).await.map_err(refused)?;
    let mut found = Vec::new();
    for cached in &list.items {
        let current = storage.decode(&cached.value, cached.revision)?;
        if current.object.is::<PodDisruptionBudget>().is_some_and(|budget| guards(budget, pod)) {
            found.push(current);
        }
    }
    Ok(found)
}

fn guards(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    LabelSelector::from_meta(selector)
        .is_ok_and(|selector| selector.matches_opt(pod.metadata.labels.as_ref()))
}

/// Whether a pod goes without being counted, because it is not ready (KEP-3017).
fn lets_unready_go(pod: &Pod, budget: &PodDisruptionBudget) -> bool {
    let mut conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    if conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True") {
        return false;
    }
    let policy = budget.spec.as_ref().and_then(|spec| spec.unhealthy_pod_eviction_policy.as_deref());
    let status = budget.status.as_ref();
    let healthy = status.and_then(|status| status.current_healthy).unwrap_or(0);
    let desired = status.and_then(|status| status.desired_healthy).unwrap_or(0);
    policy == Some("AlwaysAllow") || (healthy >= desired && desired > 0)
}

/// Takes a disruption from a budget.
async fn take(
    call: &Call,
    storage: &Arc<Storage>,
    pod: &str,
    mut current: Current,
) -> Result<(), StatusError> {
    let budget = current.object.meta().name.clone().unwrap_or_default();
    for _ in 0..ATTEMPTS {
        let mut object = current.object.boxed_clone();
        let Some(changed) = object.is_mut::<PodDisruptionBudget>() else { return Err(no_such_resource()) };
        allows(changed)?;
        if call.dry_run {
            return Ok(());
        }
        disrupt(changed.status.get_or_insert_default(), pod, now());
        owned_by_server(storage.kind(), &*current.object, &mut *object, "status", &[&["spec"]])?;
        let value = storage.to_value(&mut *object).await?;
        match storage.replace(&*object, value, current.revision).await? {
            Outcome::Done(_) => return Ok(()),
            Outcome::Conflict(there) => current = storage.current_of(&budget, there).await?,
        }
    }
    let why = "the object has been modified; please apply your changes to the latest version and try again";
    Err(StatusError::conflict("policy", "poddisruptionbudgets", &budget, why))
}

/// Whether a budget lets a pod go.
fn allows(budget: &PodDisruptionBudget) -> Result<(), StatusError> {
    let name = budget.metadata.name.as_deref().unwrap_or_default();
    let status = budget.status.clone().unwrap_or_default();
    if status.observed_generation.unwrap_or(0) < budget.metadata.generation.unwrap_or(0) {
        return Err(not_yet(name));
    }
    let allowed = status.disruptions_allowed.unwrap_or(0);
    let forbidden = |why: &str| Err(StatusError::forbidden("policy", "poddisruptionbudget", name, why));
    if allowed < 0 {
        return forbidden("pdb disruptions allowed is negative");
    }
    if status.disrupted_pods.as_ref().is_some_and(|pods| pods.len() > DISRUPTED_MAX) {
        return forbidden("DisruptedPods map too big - too many evictions not confirmed by PDB controller");
    }
    if allowed == 0 { Err(turned_away(why_not(name, &status), None)) } else { Ok(()) }
}

fn why_not(name: &str, status: &PodDisruptionBudgetStatus) -> String {
    let said = status.conditions.iter().flatten().find(|condition| condition.type_ == ALLOWED);
    let said = said.filter(|condition| condition.status == "False" && !condition.message.is_empty());
    let (healthy, desired) = (status.current_healthy.unwrap_or(0), status.desired_healthy.unwrap_or(0));
    match said {
        // Where the budget could not be worked out, the numbers are of another day.
        Some(condition) if condition.reason == "SyncFailed" => format!(
            "The disruption budget {name} does not allow evicting pods currently because it failed sync: {}",
            condition.message
        ),
        _ if healthy <= desired => {
            format!("The disruption budget {name} needs {desired} healthy pods and has {healthy} currently")
        }
        Some(condition) => format!(
            "The disruption budget {name} does not allow evicting pods currently ({}): {}",
            condition.reason, condition.message
        ),
        None => format!("The disruption budget {name} does not allow evicting pods currently"),
    }
}

fn not_yet(budget: &str) -> StatusError {
    let why = format!("The disruption budget {budget} is still being processed by the server.");
    turned_away(why, Some(RETRY_AFTER))
}

fn turned_away(why: String, retry_after_seconds: Option<i32>) -> StatusError {
    let cause = StatusCause {
        reason: Some("DisruptionBudget".to_owned()),
        message: Some(why),
        ..StatusCause::default()
    };
    StatusError::with_details(
        Reason::TooManyRequests,
        "Cannot evict pod as it would violate the pod's disruption budget.",
        Some(StatusDetails { causes: Some(vec![cause]), retry_after_seconds, ..StatusDetails::default() }),
    )
}

/// The condition that says whether a budget allows disruptions.
const ALLOWED: &str = "DisruptionAllowed";

fn disrupt(status: &mut PodDisruptionBudgetStatus, pod: &str, at: Time) {
    let left = status.disruptions_allowed.unwrap_or(0) - 1;
    status.disruptions_allowed = Some(left);
    status.disrupted_pods.get_or_insert_default().insert(pod.to_owned(), at.clone());
    if left > 0 {
        return;
    }
    let observed_generation = status.observed_generation;
    let conditions = status.conditions.get_or_insert_default();
    let there = conditions.iter().position(|condition| condition.type_ == ALLOWED);
    let before = there.map(|at| conditions.remove(at));
    let since = before.filter(|before| before.status == "False").map(|before| before.last_transition_time);
    let condition = Condition {
        last_transition_time: since.unwrap_or(at),
        message: String::new(),
        observed_generation,
        reason: "InsufficientPods".to_owned(),
        status: "False".to_owned(),
        type_: ALLOWED.to_owned(),
    };
    conditions.insert(there.unwrap_or(conditions.len()), condition);
}

/// What is answered for a pod that several budgets guard: upstream sends it as if it had been evicted.
fn several(call: &Call) -> Reply {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
        "code": 500,
    });
    let mut reply = wire::json(StatusCode::CREATED, call.wanted, status.to_string().into());
    wire::warn(&mut reply, &call.warnings);
    reply
}

/// Tells a pod why it goes, and deletes it.
async fn dispose(call: &mut Call, name: &str, mut options: DeleteOptions) -> Result<(), StatusError> {
    if !call.dry_run {
        announce(call, name, &mut options).await?;
    }
    delete_object(call, name, &options).await.map(drop)
}

async fn announce(call: &Call, name: &str, options: &mut DeleteOptions) -> Result<(), StatusError> {
    let mut current = newest(call, name).await?;
    for _ in 0..ATTEMPTS {
        check(call, name, options.preconditions.as_ref(), &current)?;
        let mut object = current.object.boxed_clone();
        let Some(pod) = object.is_mut::<Pod>() else { return Err(no_such_resource()) };
        say_why(pod, now());
        let value = call.storage.to_value(&mut *object).await?;
        if value == current.value {
            return Ok(());
        }
        match call.storage.replace(&*object, value, current.revision).await? {
            Outcome::Done(written) => {
                if is_pinned(options) {
                    pin(options, written.revision);
                }
                return Ok(());
            }
            Outcome::Conflict(there) => current = call.storage.current_of(name, there).await?,
        }
    }
    Err(call.stale(name))
}

fn say_why(pod: &mut Pod, at: Time) {
    const TYPE: &str = "DisruptionTarget";
    let conditions = pod.status.get_or_insert_default().conditions.get_or_insert_default();
    let mut condition = PodCondition {
        type_: TYPE.to_owned(),
        status: "True".to_owned(),
        reason: Some("EvictionByEvictionAPI".to_owned()),
        message: Some("Eviction API: evicting".to_owned()),
        last_transition_time: Some(at),
        ..PodCondition::default()
    };
    match conditions.iter_mut().find(|condition| condition.type_ == TYPE) {
        Some(there) => {
            if there.status == condition.status {
                condition.last_transition_time = there.last_transition_time.take();
            }
            *there = condition;
        }
        None => conditions.push(condition),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn budget(status: &Value) -> PodDisruptionBudget {
        let object = json!({"metadata": {"name": "b", "generation": 2}, "status": status});
        serde_json::from_value(object).expect("a budget")
    }

    fn pod(status: &Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "status": status})).expect("a pod")
    }

    #[test]
    fn a_budget_says_why_it_lets_no_pod_go() {
        let not_allowed = |reason: &str| {
            json!([{"type": "DisruptionAllowed", "status": "False", "reason": reason,
            "message": "no", "lastTransitionTime": "2026-01-01T00:00:00Z"}])
        };
        let cases = [
            (
                json!({"observedGeneration": 1}),
                429,
                "The disruption budget b is still being processed by the server.",
            ),
            (
                json!({"observedGeneration": 2, "currentHealthy": 1, "desiredHealthy": 1}),
                429,
                "The disruption budget b needs 1 healthy pods and has 1 currently",
            ),
            (
                json!({"observedGeneration": 2, "conditions": not_allowed("SyncFailed")}),
                429,
                "The disruption budget b does not allow evicting pods currently because it failed sync: no",
            ),
            (
                json!({"observedGeneration": 2, "currentHealthy": 2, "conditions": not_allowed("InsufficientPods")}),
                429,
                "The disruption budget b does not allow evicting pods currently (InsufficientPods): no",
            ),
            (
                json!({"observedGeneration": 2, "currentHealthy": 2}),
                429,
                "The disruption budget b does not allow evicting pods currently",
            ),
            (json!({"observedGeneration": 2, "disruptionsAllowed": -1}), 403, ""),
        ];
        for (status, code, why) in cases {
            let refused = allows(&budget(&status)).expect_err("refused");
            let causes =
                refused.0.details.as_ref().and_then(|details| details.causes.clone()).unwrap_or_default();
            let said = causes.first().and_then(|cause| cause.message.clone()).unwrap_or_default();
            assert_eq!((refused.code(), said.as_str()), (code, why), "{status}");
        }
        assert!(allows(&budget(&json!({"observedGeneration": 2, "disruptionsAllowed": 1}))).is_ok());
    }

    #[test]
    fn a_disruption_is_taken_from_its_budget() {
        let mut status =
            budget(&json!({"disruptionsAllowed": 2, "observedGeneration": 3})).status.expect("a status");
        disrupt(&mut status, "a", now());
        assert_eq!((status.disruptions_allowed, status.conditions.as_ref()), (Some(1), None));
        disrupt(&mut status, "b", now());
        let pods = status.disrupted_pods.unwrap_or_default();
        assert_eq!(pods.keys().collect::<Vec<_>>(), ["a", "b"]);
        let conditions = status.conditions.unwrap_or_default();
        let said: Vec<_> =
            conditions.iter().map(|c| (c.type_.as_str(), c.status.as_str(), c.reason.as_str())).collect();
        assert_eq!(said, [("DisruptionAllowed", "False", "InsufficientPods")]);
        assert_eq!(conditions[0].observed_generation, Some(3));
    }

    #[test]
    fn unready_pods_go_where_their_budget_is_kept_or_does_not_mind() {
        let unready = pod(&json!({"conditions": [{"type": "Ready", "status": "False"}]}));
        let ready = pod(&json!({"conditions": [{"type": "Ready", "status": "True"}]}));
        let kept = budget(&json!({"currentHealthy": 2, "desiredHealthy": 2}));
        let mut broken = budget(&json!({"currentHealthy": 1, "desiredHealthy": 2}));
        assert!(lets_unready_go(&unready, &kept) && !lets_unready_go(&ready, &kept));
        assert!(!lets_unready_go(&unready, &broken));
        broken.spec.get_or_insert_default().unhealthy_pod_eviction_policy = Some("AlwaysAllow".to_owned());
        assert!(lets_unready_go(&unready, &broken));
    }

    #[test]
    fn only_running_pods_are_guarded() {
        let of = |status: Value| standing(&pod(&status));
        assert_eq!(of(json!({"phase": "Running"})), Standing::Guarded);
        assert_eq!(of(json!({"phase": "Pending"})), Standing::Pending);
        assert_eq!(of(json!({"phase": "Failed"})), Standing::Gone);
    }

    #[test]
    fn a_pod_is_told_once_why_it_goes() {
        let mut pod = pod(&json!({"phase": "Running"}));
        say_why(&mut pod, now());
        let first = pod.clone();
        say_why(&mut pod, Time(jiff::Timestamp::UNIX_EPOCH));
        assert_eq!(pod, first);
        let conditions = pod.status.and_then(|status| status.conditions).unwrap_or_default();
        let said: Vec<_> = conditions.iter().map(|c| (c.type_.as_str(), c.reason.as_deref())).collect();
        assert_eq!(said, [("DisruptionTarget", Some("EvictionByEvictionAPI"))]);
    }
}
