//! Telling the API: a merge patch of what has changed in the status, and nothing when nothing has.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use krate_client::{is_conflict, is_not_found};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::{AGAIN, Stage, Worker};
use crate::names;
use crate::static_pods::is_static;

/// How long the API may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// How long a container that makes way for another may be gone before the API hears of it.
const CHANGEOVER: Duration = Duration::from_secs(1);

/// A resource version as a number that grows (KEP-5504); 0 when it is none.
pub fn version(pod: &Pod) -> u64 {
    pod.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

/// What turns `old` into `new` by a JSON merge patch (RFC 7386); `None` when they are the same.
pub fn difference(old: &Value, new: &Value) -> Option<Value> {
    let (Value::Object(before), Value::Object(after)) = (old, new) else {
        return (old != new).then(|| new.clone());
    };
    let mut changes = Map::new();
    for (key, value) in after {
        match before.get(key) {
            Some(known) => {
                if let Some(change) = difference(known, value) {
                    changes.insert(key.clone(), change);
                }
            }
            None => {
                changes.insert(key.clone(), value.clone());
            }
        }
    }
    for key in before.keys().filter(|key| !after.contains_key(*key)) {
        changes.insert(key.clone(), Value::Null);
    }
    (!changes.is_empty()).then_some(Value::Object(changes))
}

pub fn json_of(status: Option<&PodStatus>) -> Value {
    status.and_then(|s| serde_json::to_value(s).ok()).unwrap_or_else(|| json!({}))
}

impl Worker {
    /// Whether the API knows the status that there is now.
    pub(super) fn is_told(&self) -> bool {
        let status = json_of(Some(&self.status()));
        self.told.as_ref().is_some_and(|(told, _)| *told == status)
            || difference(&json_of(self.pod.status.as_ref()), &status).is_none()
    }

    /// Makes the API know the status.
    pub(super) async fn publish(&mut self) {
        if self.removed {
            return;
        }
        if let Some(left) = self.changeover() {
            return self.wake_after(left);
        }
        if is_static(&self.pod) {
            return self.publish_mirror().await;
        }
        let api: Api<Pod> = Api::namespaced(self.shared.client.clone(), &names::namespace(&self.pod));
        let name = self.pod.metadata.name.clone().unwrap_or_default();
        // A conflict is met with what is newest; a second one can wait.
        for _ in 0..2 {
            let wanted = json_of(Some(&self.status()));
            // A server may write a status down in a way of its own: saying the same again would change nothing.
            if self.told.as_ref().is_some_and(|(told, at)| *told == wanted && *at == version(&self.pod)) {
                self.untold = None;
                return;
            }
            let Some(status) = difference(&json_of(self.pod.status.as_ref()), &wanted) else {
                self.untold = None;
                return;
            };
            self.untold.get_or_insert_with(Instant::now);
            let metadata = json!({"uid": self.uid, "resourceVersion": self.pod.metadata.resource_version});
            let patch = Patch::Merge(json!({"metadata": metadata, "status": status}));
            let parameters = PatchParams::default();
            let outcome = tokio::time::timeout(PATIENCE, api.patch_status(&name, &parameters, &patch)).await;
            match outcome {
                Ok(Ok(mut pod)) => {
                    pod.metadata.managed_fields = None;
                    self.told = Some((wanted, version(&pod)));
                    self.pod = Arc::new(pod);
                    self.note_synced();
                    self.note_told();
                    return;
                }
                Ok(Err(error)) if is_not_found(&error) => {
                    self.removed = true;
                    self.handle.signal.wake();
                    return;
                }
                Ok(Err(error)) if is_conflict(&error) => match api.get_opt(&name).await {
                    Ok(Some(pod)) if pod.metadata.uid.as_deref() == Some(&self.uid) => {
                        let is_leaving = pod.metadata.deletion_timestamp.is_some();
                        if is_leaving && self.pod.metadata.deletion_timestamp.is_none() {
                            self.handle.signal.wake();
                        }
                        self.pod = Arc::new(pod);
                    }
                    Ok(_) => {
                        self.removed = true;
                        self.handle.signal.wake();
                        return;
                    }
                    Err(error) => return self.not_told(&error),
                },
                Ok(Err(error)) => return self.not_told(&error),
                Err(late) => return self.not_told(&late),
            }
        }
        self.wake_after(Duration::from_millis(50));
    }

    /// How long what is seen may still be left untold, since a container has ended to make way for another that is about
    /// to run. Upstream kills and starts in one go and looks only afterwards: a pod whose image changes stays ready, and
    /// so do the endpoints of its Services. What takes longer, a pull above all, is told.
    fn changeover(&self) -> Option<Duration> {
        if self.stage != Stage::Active || self.failed.is_some() {
            return None;
        }
        let now = Timestamp::now();
        let ended = self.seen.containers.iter().filter(|c| c.is_exited() && self.replaced.contains(c.id()));
        let ended = ended.filter(|c| {
            let current = self.seen.current(c.name());
            current.is_some_and(|now| now.id() == c.id() || !now.is_exited() && !now.is_running())
        });
        let making_way = ended.filter(|c| self.killing.contains(c.id()) || self.starting.is_some());
        making_way
            .filter_map(|c| {
                let gone = Duration::try_from(now.duration_since(c.finished())).unwrap_or_default();
                CHANGEOVER.checked_sub(gone).filter(|left| !left.is_zero())
            })
            .max()
    }

    pub(super) fn not_told(&mut self, error: &dyn std::fmt::Display) {
        tracing::debug!(pod = %names::full(&self.pod), %error, "a status could not be told");
        self.wake_after(AGAIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed_is_told() {
        let old = json!({"phase": "Pending", "a": {"b": 1, "c": 2}, "gone": 1, "list": [1, 2]});
        let new = json!({"phase": "Running", "a": {"b": 1, "c": 3}, "list": [1, 2]});
        assert_eq!(difference(&old, &new), Some(json!({"phase": "Running", "a": {"c": 3}, "gone": null})));
        assert_eq!(difference(&new, &new), None);
        assert_eq!(difference(&json!([1]), &json!([2])), Some(json!([2])));
    }
}
