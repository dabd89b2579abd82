//! What a deployment says of itself: counts, and the conditions that `kubectl rollout status` and `kubectl wait` read.

use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::rollout::{Set, desired, max_unavailable, total, total_available};
use crate::meta::{name, now, seconds_between};

pub const AVAILABLE: &str = "Available";
pub const PROGRESSING: &str = "Progressing";
pub const FAILURE: &str = "ReplicaFailure";

pub const TIMED_OUT: &str = "ProgressDeadlineExceeded";
pub const COMPLETE: &str = "NewReplicaSetAvailable";
pub const PAUSED: &str = "DeploymentPaused";
pub const RESUMED: &str = "DeploymentResumed";

pub fn condition<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|c| c.type_ == kind)
}

pub fn new_condition(
    kind: &str,
    status: &str,
    reason: &str,
    message: impl Into<String>,
) -> DeploymentCondition {
    DeploymentCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.into()),
        last_update_time: Some(now()),
        last_transition_time: Some(now()),
    }
}

/// Puts a condition in the place of the one of its type, unless that says the same already.
pub fn set_condition(status: &mut DeploymentStatus, mut condition: DeploymentCondition) {
    let conditions = status.conditions.get_or_insert_default();
    if let Some(old) = conditions.iter().find(|c| c.type_ == condition.type_) {
        if old.status == condition.status && old.reason == condition.reason {
            return;
        }
        if old.status == condition.status {
            condition.last_transition_time.clone_from(&old.last_transition_time);
        }
    }
    conditions.retain(|c| c.type_ != condition.type_);
    conditions.push(condition);
}

pub fn remove_condition(status: &mut DeploymentStatus, kind: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|c| c.type_ != kind);
    }
}

/// Seconds without progress after which a rollout counts as stuck; none if it never does.
pub fn deadline(d: &Deployment) -> Option<i64> {
    d.spec.as_ref()?.progress_deadline_seconds.filter(|s| *s != i32::MAX).map(i64::from)
}

fn some(n: i32) -> Option<i32> {
    (n != 0).then_some(n)
}

fn sum(sets: &[Set], of: impl Fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> i32) -> i32 {
    sets.iter().filter_map(|rs| rs.status.as_ref()).map(of).sum()
}

/// Counts, and whether enough pods are available.
pub fn calculate(d: &Deployment, all: &[Set], new: Option<&Set>) -> DeploymentStatus {
    let old = d.status.clone().unwrap_or_default();
    let available = total_available(all);
    let updated = new.and_then(|rs| rs.status.as_ref()).map_or(0, |s| s.replicas);
    let mut status = DeploymentStatus {
        observed_generation: d.metadata.generation,
        replicas: some(sum(all, |s| s.replicas)),
        updated_replicas: some(updated),
        ready_replicas: some(sum(all, |s| s.ready_replicas.unwrap_or(0))),
        available_replicas: some(available),
        unavailable_replicas: some((total(all) - available).max(0)),
        terminating_replicas: Some(sum(all, |s| s.terminating_replicas.unwrap_or(0))),
        collision_count: old.collision_count,
        conditions: old.conditions,
    };
    let enough = available >= desired(d) - max_unavailable(d);
    set_condition(
        &mut status,
        if enough {
            let message = "Deployment has minimum availability.";
            new_condition(AVAILABLE, "True", "MinimumReplicasAvailable", message)
        } else {
            let message = "Deployment does not have minimum availability.";
            new_condition(AVAILABLE, "False", "MinimumReplicasUnavailable", message)
        },
    );
    status
}

pub fn is_complete(d: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = desired(d);
    status.updated_replicas.unwrap_or(0) == wanted
        && status.replicas.unwrap_or(0) == wanted
        && status.available_replicas.unwrap_or(0) == wanted
        && status.observed_generation >= d.metadata.generation
}

fn is_progressing(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let n = |v: Option<i32>| v.unwrap_or(0);
    let outdated = |s: &DeploymentStatus| n(s.replicas) - n(s.updated_replicas);
    n(new.updated_replicas) > n(old.updated_replicas)
        || outdated(new) < outdated(old)
        || n(new.ready_replicas) > n(old.ready_replicas)
        || n(new.available_replicas) > n(old.available_replicas)
}

fn is_timed_out(status: &DeploymentStatus, deadline: i64, now: &Time) -> bool {
    let Some(progress) = condition(status, PROGRESSING) else { return false };
    match progress.reason.as_deref() {
        Some(COMPLETE) => false,
        Some(TIMED_OUT) => true,
        _ => progress.last_update_time.as_ref().is_some_and(|since| seconds_between(since, now) > deadline),
    }
}

/// The status amid a rollout: as [`calculate`] says, and whether it makes progress.
pub fn of_rollout(d: &Deployment, all: &[Set], new: Option<&Set>, now: &Time) -> DeploymentStatus {
    let old = d.status.clone().unwrap_or_default();
    let mut status = calculate(d, all, new);
    let current = condition(&old, PROGRESSING);
    let settled = status.replicas == status.updated_replicas
        && current.is_some_and(|c| c.reason.as_deref() == Some(COMPLETE));
    let subject = match new {
        Some(rs) => format!("ReplicaSet \"{}\"", name(&**rs)),
        None => format!("Deployment \"{}\"", name(d)),
    };
    match deadline(d) {
        None => remove_condition(&mut status, PROGRESSING),
        Some(_) if settled => {}
        Some(_) if is_complete(d, &status) => {
            let message = format!("{subject} has successfully progressed.");
            set_condition(&mut status, new_condition(PROGRESSING, "True", COMPLETE, message));
        }
        Some(_) if is_progressing(&old, &status) => {
            let message = format!("{subject} is progressing.");
            let mut condition = new_condition(PROGRESSING, "True", "ReplicaSetUpdated", message);
            if let Some(current) = current.filter(|c| c.status == "True") {
                condition.last_transition_time.clone_from(&current.last_transition_time);
            }
            // Even with the same reason: it is the time of its update that tells the progress.
            remove_condition(&mut status, PROGRESSING);
            set_condition(&mut status, condition);
        }
        Some(deadline) if is_timed_out(&status, deadline, now) => {
            let message = format!("{subject} has timed out progressing.");
            set_condition(&mut status, new_condition(PROGRESSING, "False", TIMED_OUT, message));
        }
        Some(_) => {}
    }
    match new.map(|rs| &**rs).into_iter().chain(all.iter().map(|rs| &**rs)).find_map(failure) {
        Some(condition) => set_condition(&mut status, condition),
        None => remove_condition(&mut status, FAILURE),
    }
    status
}

/// What keeps a set from making its pods.
fn failure(rs: &ReplicaSet) -> Option<DeploymentCondition> {
    let conditions = rs.status.as_ref()?.conditions.as_deref()?;
    let c = conditions.iter().find(|c| c.type_ == FAILURE)?;
    Some(DeploymentCondition {
        type_: FAILURE.to_owned(),
        status: c.status.clone(),
        reason: c.reason.clone(),
        message: c.message.clone(),
        last_transition_time: c.last_transition_time.clone(),
        last_update_time: c.last_transition_time.clone(),
    })
}

/// In how many seconds it must be looked at again, lest the deadline pass unseen.
pub fn seconds_to_deadline(d: &Deployment, status: &DeploymentStatus, now: &Time) -> Option<i64> {
    let progress = condition(status, PROGRESSING)?;
    let deadline = deadline(d)?;
    if is_complete(d, status) || progress.reason.as_deref() == Some(TIMED_OUT) {
        return None;
    }
    let since = progress.last_update_time.as_ref()?;
    Some((deadline - seconds_between(since, now)).max(0) + 1)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;

    fn deployment(status: Value) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "generation": 2},
            "spec": {"replicas": 3, "progressDeadlineSeconds": 600, "selector": {}, "template": {}},
            "status": status}))
        .expect("a deployment")
    }

    fn set(replicas: i32, available: i32) -> Set {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": "web-1"},
                "spec": {"replicas": replicas, "selector": {}},
                "status": {"replicas": replicas, "readyReplicas": available, "availableReplicas": available}}))
            .expect("a set"),
        )
    }

    fn progress(reason: &str, at: &str) -> Value {
        json!({"conditions": [{"type": PROGRESSING, "status": "True", "reason": reason, "lastUpdateTime": at,
            "lastTransitionTime": at}]})
    }

    #[test]
    fn the_progress_of_a_rollout_is_told() {
        let at = |s: &str| Time(s.parse().expect("a time"));
        let created = progress("NewReplicaSetCreated", "2026-01-01T00:00:00Z");
        // (replicas, available, minutes later, reason)
        let cases = [
            (3, 3, 1, COMPLETE),
            (3, 1, 1, "ReplicaSetUpdated"),
            (0, 0, 1, "NewReplicaSetCreated"),
            (0, 0, 11, TIMED_OUT),
        ];
        for (replicas, available, minutes, reason) in cases {
            let d = deployment(created.clone());
            let rs = set(replicas, available);
            let now = at(&format!("2026-01-01T00:{minutes:02}:00Z"));
            let status = of_rollout(&d, &[Arc::clone(&rs)], Some(&rs), &now);
            let said = condition(&status, PROGRESSING).and_then(|c| c.reason.clone());
            assert_eq!(said.as_deref(), Some(reason), "{replicas} {available} {minutes}");
        }
    }

    #[test]
    fn a_rollout_in_progress_is_looked_at_again_before_its_deadline() {
        let d = deployment(progress("ReplicaSetUpdated", "2026-01-01T00:00:00Z"));
        let status = d.status.clone().unwrap_or_default();
        let now = Time("2026-01-01T00:03:00Z".parse().expect("a time"));
        assert_eq!(seconds_to_deadline(&d, &status, &now), Some(421));
    }

    #[test]
    fn availability_follows_the_counts() {
        let d = deployment(json!({}));
        let of = |available| {
            let status = calculate(&d, &[set(3, available)], None);
            condition(&status, AVAILABLE).map(|c| c.status.clone())
        };
        assert_eq!((of(3).as_deref(), of(2).as_deref()), (Some("True"), Some("False")));
    }
}
