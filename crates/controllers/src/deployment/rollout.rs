//! The arithmetic of a rollout: how many pods each ReplicaSet should have next. Functions over objects; upstream's
//! rules throughout.

use std::cmp::Reverse;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::revision::{DESIRED, MAX, number};

pub type Set = Arc<ReplicaSet>;

pub fn desired(d: &Deployment) -> i32 {
    d.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

pub fn replicas(rs: &ReplicaSet) -> i32 {
    rs.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

pub fn available(rs: &ReplicaSet) -> i32 {
    rs.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0)
}

pub fn total(sets: &[Set]) -> i32 {
    sets.iter().map(|rs| replicas(rs)).sum()
}

pub fn total_available(sets: &[Set]) -> i32 {
    sets.iter().map(|rs| available(rs)).sum()
}

pub fn is_rolling(d: &Deployment) -> bool {
    let kind = d.spec.as_ref().and_then(|s| s.strategy.as_ref()).and_then(|s| s.type_.as_deref());
    kind.unwrap_or("RollingUpdate") == "RollingUpdate"
}

fn share(value: Option<&IntOrString>, of: i32, up: bool) -> i32 {
    match value {
        Some(IntOrString::Int(n)) => *n,
        Some(IntOrString::String(s)) => {
            let percent: i64 = s.trim_end_matches('%').parse().unwrap_or(0);
            let hundredths = percent * i64::from(of);
            (if up { (hundredths + 99).div_euclid(100) } else { hundredths / 100 }) as i32
        }
        None => {
            let quarter = i64::from(of) * 25;
            (if up { (quarter + 99) / 100 } else { quarter / 100 }) as i32
        }
    }
}

/// How many pods there may be beyond those desired, and how many fewer may be available: `maxSurge`, rounded up, and
/// `maxUnavailable`, rounded down. Not both nothing, or no rollout could begin.
fn fenceposts(d: &Deployment) -> (i32, i32) {
    let rolling = d.spec.as_ref().and_then(|s| s.strategy.as_ref()).and_then(|s| s.rolling_update.as_ref());
    let surge = share(rolling.and_then(|r| r.max_surge.as_ref()), desired(d), true);
    let unavailable = share(rolling.and_then(|r| r.max_unavailable.as_ref()), desired(d), false);
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

pub fn max_surge(d: &Deployment) -> i32 {
    if is_rolling(d) { fenceposts(d).0 } else { 0 }
}

pub fn max_unavailable(d: &Deployment) -> i32 {
    if is_rolling(d) && desired(d) > 0 { fenceposts(d).1.min(desired(d)) } else { 0 }
}

/// How many replicas the new set should have, given how many there are in all.
pub fn new_set_size(d: &Deployment, current: i32, of_new: i32) -> i32 {
    if !is_rolling(d) {
        return desired(d);
    }
    let room = desired(d) + max_surge(d) - current;
    if room <= 0 { of_new } else { of_new + room.min(desired(d) - of_new) }
}

/// How the old sets may shrink now without fewer pods being available than asked: pods that are not available first,
/// then of the rest, oldest set first. The new size of each set that shrinks.
pub fn shrink_old(d: &Deployment, new: &ReplicaSet, old: &[Set]) -> Vec<(Set, i32)> {
    let mut active: Vec<Set> = old.iter().filter(|rs| replicas(rs) > 0).cloned().collect();
    active.sort_by_key(|rs| created(rs));
    let min_available = desired(d) - max_unavailable(d);
    let all = total(&active) + replicas(new);
    let mut allowance = all - min_available - (replicas(new) - available(new));
    if active.is_empty() || allowance <= 0 {
        return Vec::new();
    }
    let mut sizes: Vec<i32> = active.iter().map(|rs| replicas(rs)).collect();
    for (size, rs) in sizes.iter_mut().zip(&active) {
        let unhealthy = (*size - available(rs)).clamp(0, allowance);
        *size -= unhealthy;
        allowance -= unhealthy;
    }
    let mut spare = total_available(&active) + available(new) - min_available;
    for size in &mut sizes {
        let cut = (*size).min(spare).max(0);
        *size -= cut;
        spare -= cut;
    }
    active.into_iter().zip(sizes).filter(|(rs, size)| replicas(rs) != *size).collect()
}

fn created(rs: &ReplicaSet) -> (Option<k8s_openapi::jiff::Timestamp>, Option<String>) {
    (rs.metadata.creation_timestamp.as_ref().map(|t| t.0), rs.metadata.name.clone())
}

/// Whether the user has changed the number of replicas since a set was last sized.
pub fn is_scaling(d: &Deployment, sets: &[Set]) -> bool {
    sets.iter().filter(|rs| replicas(rs) > 0).any(|rs| number(rs, DESIRED).is_some_and(|n| n != desired(d)))
}

/// The new size of every set when the deployment is scaled: of the one that is active or latest; or, amid a rollout,
/// of all in proportion to their sizes.
pub fn scale(d: &Deployment, new: Option<&Set>, old: &[Set]) -> Vec<(Set, i32)> {
    let mut active: Vec<Set> = old.iter().chain(new).filter(|rs| replicas(rs) > 0).cloned().collect();
    let single = match active.as_slice() {
        [] => new.or_else(|| old.iter().max_by_key(|rs| created(rs))).cloned(),
        [only] => Some(Arc::clone(only)),
        _ => None,
    };
    if let Some(rs) = single {
        return vec![(rs, desired(d))];
    }
    if new.is_some_and(|rs| is_saturated(d, rs)) {
        return old.iter().filter(|rs| replicas(rs) > 0).map(|rs| (Arc::clone(rs), 0)).collect();
    }
    if !is_rolling(d) {
        return Vec::new();
    }
    let allowed = if desired(d) > 0 { desired(d) + max_surge(d) } else { 0 };
    let to_add = allowed - total(&active);
    // The largest first; of equals the newer when growing, the older when shrinking.
    if to_add > 0 {
        active.sort_by_key(|rs| Reverse((replicas(rs), created(rs))));
    } else {
        active.sort_by_key(|rs| (Reverse(replicas(rs)), created(rs)));
    }
    let mut added = 0;
    let mut sizes: Vec<i32> = Vec::new();
    for rs in &active {
        let proportion = if to_add == 0 || to_add == added { 0 } else { proportion(d, rs, to_add, added) };
        sizes.push(replicas(rs) + proportion);
        added += proportion;
    }
    if let Some(first) = sizes.first_mut() {
        *first = (*first + to_add - added).max(0);
    }
    active.into_iter().zip(sizes).collect()
}

fn is_saturated(d: &Deployment, rs: &ReplicaSet) -> bool {
    let wanted = desired(d);
    replicas(rs) == wanted && number(rs, DESIRED) == Some(wanted) && available(rs) == wanted
}

/// The set's part of what is to be added (or removed, below zero).
fn proportion(d: &Deployment, rs: &ReplicaSet, to_add: i32, added: i32) -> i32 {
    let has = replicas(rs);
    let fraction = if desired(d) == 0 {
        -has
    } else {
        let status = d.status.as_ref().and_then(|s| s.replicas).unwrap_or(0);
        let before = number(rs, MAX).filter(|n| *n > 0).unwrap_or(status).max(1);
        let grown = f64::from(has) * f64::from(desired(d) + max_surge(d)) / f64::from(before);
        grown.round() as i32 - has
    };
    let left = to_add - added;
    if to_add > 0 { fraction.min(left) } else { fraction.max(left) }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn deployment(replicas: i32, surge: Value, unavailable: Value) -> Deployment {
        serde_json::from_value(json!({"spec": {
            "replicas": replicas, "selector": {}, "template": {},
            "strategy": {"type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}}))
        .expect("a deployment")
    }

    fn set(name: &str, replicas: i32, available: i32, annotations: Value) -> Set {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "annotations": annotations},
                "spec": {"replicas": replicas, "selector": {}},
                "status": {"replicas": replicas, "availableReplicas": available}}))
            .expect("a set"),
        )
    }

    fn sizes(result: &[(Set, i32)]) -> Vec<(String, i32)> {
        result.iter().map(|(rs, n)| (rs.metadata.name.clone().unwrap_or_default(), *n)).collect()
    }

    #[test]
    fn surge_rounds_up_and_unavailability_down() {
        let cases = [
            (10, json!("25%"), json!("25%"), 3, 2),
            (3, json!("25%"), json!("25%"), 1, 0),
            (1, json!(0), json!("25%"), 0, 1),
            (4, json!(2), json!(10), 2, 4),
            (0, json!(1), json!(1), 1, 0),
        ];
        for (n, surge, unavailable, wanted_surge, wanted_unavailable) in cases {
            let d = deployment(n, surge, unavailable);
            assert_eq!((max_surge(&d), max_unavailable(&d)), (wanted_surge, wanted_unavailable), "{n}");
        }
    }

    #[test]
    fn the_new_set_grows_into_the_surge() {
        let d = deployment(10, json!(3), json!(2));
        assert_eq!(new_set_size(&d, 10, 0), 3);
        assert_eq!(new_set_size(&d, 13, 3), 3);
        assert_eq!(new_set_size(&d, 11, 5), 7);
        assert_eq!(new_set_size(&d, 9, 9), 10, "never beyond what is desired");
    }

    #[test]
    fn old_sets_shrink_as_the_new_becomes_available() {
        let d = deployment(10, json!(3), json!(2));
        let none = json!({});
        // (new replicas, new available, old replicas, old available, old size next)
        let cases = [
            (3, 0, 10, 10, Some(8)),
            (5, 0, 8, 8, None),
            (5, 5, 8, 8, Some(3)),
            (3, 0, 10, 7, Some(8)),
            (10, 10, 3, 3, Some(0)),
        ];
        for (new, new_available, old, old_available, wanted) in cases {
            let new = set("new", new, new_available, none.clone());
            let result = shrink_old(&d, &new, &[set("old", old, old_available, none.clone())]);
            assert_eq!(result.first().map(|(_, n)| *n), wanted, "{:?}", sizes(&result));
        }
    }

    #[test]
    fn scaling_amid_a_rollout_is_proportional() {
        let sized = |n: &str, max: &str| json!({DESIRED: n, MAX: max});
        let d = deployment(20, json!(3), json!(2));
        let (old, new) = (set("old", 8, 8, sized("10", "13")), set("new", 5, 0, sized("10", "13")));
        assert!(is_scaling(&d, &[Arc::clone(&old), Arc::clone(&new)]));
        let result = scale(&d, Some(&new), &[old]);
        assert_eq!(sizes(&result), [("old".into(), 14), ("new".into(), 9)]);
        assert_eq!(result.iter().map(|(_, n)| n).sum::<i32>(), 23);
    }

    #[test]
    fn scaling_a_settled_deployment_sizes_its_one_set() {
        let d = deployment(5, json!(1), json!(0));
        let new = set("new", 3, 3, json!({}));
        assert_eq!(sizes(&scale(&d, Some(&new), &[set("old", 0, 0, json!({}))])), [("new".into(), 5)]);
        assert_eq!(sizes(&scale(&deployment(0, json!(1), json!(0)), Some(&new), &[])), [("new".into(), 0)]);
    }
}
