//! Small questions that many controllers ask of objects: who controls them, what they select, how a pod is.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference, Time};
use k8s_openapi::jiff::Timestamp;
use krate_client::ObjectKey;
use kube::Resource;
use kube::core::Selector;

use crate::Error;

pub type Labels = BTreeMap<String, String>;

pub fn now() -> Time {
    Time(Timestamp::now())
}

/// How long it is until then; none once it has passed.
pub fn time_until(then: Timestamp) -> Option<Duration> {
    Duration::try_from(then.duration_since(Timestamp::now())).ok().filter(|left| !left.is_zero())
}

/// Seconds from `earlier` to `later`; negative if they are the other way round.
pub fn seconds_between(earlier: &Time, later: &Time) -> i64 {
    later.0.as_second() - earlier.0.as_second()
}

/// The owner that manages an object, if it has one.
pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|o| o.controller == Some(true))
}

pub fn uid<K: Resource>(object: &K) -> &str {
    object.meta().uid.as_deref().unwrap_or_default()
}

pub fn name<K: Resource>(object: &K) -> &str {
    object.meta().name.as_deref().unwrap_or_default()
}

pub fn namespace<K: Resource>(object: &K) -> &str {
    object.meta().namespace.as_deref().unwrap_or_default()
}

pub fn is_deleting<K: Resource>(object: &K) -> bool {
    object.meta().deletion_timestamp.is_some()
}

/// The reference that makes `owner` the controller of what bears it.
pub fn controller_reference<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: name(owner).to_owned(),
        uid: uid(owner).to_owned(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The key of an object's controller, if that is of kind `K`.
pub fn controller_key<K: Resource<DynamicType = ()>>(meta: &ObjectMeta) -> Option<ObjectKey> {
    let owner = controller_of(meta).filter(|o| o.kind == K::kind(&()))?;
    Some(ObjectKey::new(meta.namespace.clone().unwrap_or_default(), owner.name.clone()))
}

/// # Errors
/// The selector is not one that the API accepts.
pub fn selector(selector: &LabelSelector) -> Result<Selector, Error> {
    Selector::try_from(selector.clone()).map_err(|e| Error::Invalid(e.to_string()))
}

/// The labels of an object, or none.
pub fn labels(meta: &ObjectMeta) -> &Labels {
    static NONE: Labels = Labels::new();
    meta.labels.as_ref().unwrap_or(&NONE)
}

pub fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.iter().flatten().find(|c| c.type_ == kind)
}

pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

/// Has run to its end.
pub fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Neither at its end nor on its way there.
pub fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && !is_deleting(pod)
}

pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

/// Ready for at least so long. If not, but ready, the second number is how many seconds are left.
pub fn availability(pod: &Pod, min_ready_seconds: i32, now: &Time) -> (bool, Option<i64>) {
    let Some(ready) = condition(pod, "Ready").filter(|c| c.status == "True") else { return (false, None) };
    if min_ready_seconds == 0 {
        return (true, None);
    }
    let Some(since) = &ready.last_transition_time else { return (false, None) };
    let left = i64::from(min_ready_seconds) - seconds_between(since, now);
    if left <= 0 { (true, None) } else { (false, Some(left)) }
}

pub fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).filter(|n| !n.is_empty())
}

/// The alphabet of generated names: no vowels, nothing that looks like something else.
const SAFE: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// Text that stays the same for the same bytes and is safe in names and labels: FNV-1a of 32 bits, its decimal digits
/// put through upstream's safe alphabet.
pub fn safe_hash(parts: &[&[u8]]) -> String {
    let mut hash: u32 = 0x811c_9dc5;
    for byte in parts.iter().flat_map(|p| p.iter()) {
        hash = (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    }
    hash.to_string().bytes().map(|digit| char::from(SAFE[usize::from(digit) % SAFE.len()])).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_is_available_when_it_was_ready_long_enough() {
        let pod: Pod = serde_json::from_value(json!({"status": {"conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}))
        .expect("a pod");
        let at = |s: &str| Time(s.parse().expect("a time"));
        assert_eq!(availability(&pod, 0, &at("2026-01-01T00:00:00Z")), (true, None));
        assert_eq!(availability(&pod, 10, &at("2026-01-01T00:00:04Z")), (false, Some(6)));
        assert_eq!(availability(&pod, 10, &at("2026-01-01T00:00:10Z")), (true, None));
        assert_eq!(availability(&Pod::default(), 0, &at("2026-01-01T00:00:10Z")), (false, None));
    }

    #[test]
    fn hashes_are_stable_and_safe() {
        let hash = safe_hash(&[b"template", b"0"]);
        assert_eq!(hash, safe_hash(&[b"template0"]));
        assert_ne!(hash, safe_hash(&[b"template1"]));
        assert!(hash.bytes().all(|b| SAFE.contains(&b)));
    }
}
