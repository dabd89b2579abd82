//! RuntimeClass: what a pod's class costs on top, and where it runs (KEP-688).

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Pod, PodSpec, Toleration};
use k8s_openapi::api::node::v1::{Overhead, RuntimeClass, Scheduling};
use krate_api::quota::parsed;
use krate_api::{StatusError, kinds};

use super::{Admit, Attributes, lookup};
use crate::kinds::Kinds;
use crate::registry::erased::Object;

pub struct RuntimeClasses {
    kinds: Arc<Kinds>,
}

impl RuntimeClasses {
    pub fn new(kinds: Arc<Kinds>) -> Self {
        RuntimeClasses { kinds }
    }

    async fn class(
        &self,
        attributes: &Attributes,
        spec: &PodSpec,
    ) -> Result<Option<RuntimeClass>, StatusError> {
        let Some(name) = &spec.runtime_class_name else { return Ok(None) };
        let found =
            lookup::find::<RuntimeClass>(&self.kinds, "node.k8s.io", "runtimeclasses", "", name).await?;
        if found.is_none() {
            let why = format!("pod rejected: RuntimeClass \"{name}\" not found");
            return Err(attributes.forbidden(why));
        }
        Ok(found)
    }
}

#[async_trait]
impl Admit for RuntimeClasses {
    async fn mutate(
        &self,
        attributes: &Attributes,
        object: &mut dyn Object,
        _old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        if !attributes.is(&kinds::POD) {
            return Ok(());
        }
        let Some(pod) = object.is_mut::<Pod>() else { return Ok(()) };
        let spec = pod.spec.get_or_insert_default();
        let Some(class) = self.class(attributes, spec).await? else { return Ok(()) };
        let set = class.overhead.as_ref().map_or(Ok(()), |overhead| set_overhead(spec, overhead));
        let set = set.and_then(|()| class.scheduling.as_ref().map_or(Ok(()), |s| set_scheduling(spec, s)));
        set.map_err(|why| attributes.forbidden(why))
    }

    async fn validate(
        &self,
        attributes: &Attributes,
        object: Option<&dyn Object>,
        _old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        if !attributes.is(&kinds::POD) {
            return Ok(());
        }
        let Some(spec) = object.and_then(|o| o.is::<Pod>()).and_then(|p| p.spec.as_ref()) else {
            return Ok(());
        };
        let class = self.class(attributes, spec).await?;
        let given = class.as_ref().and_then(|class| class.overhead.as_ref());
        judge(given, spec.overhead.as_ref()).map_err(|why| attributes.forbidden(why))
    }
}

type Amounts = std::collections::BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>;

const OTHER_OVERHEAD: &str = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";

/// Whether both say the same; nothing is as good as none.
fn same(a: Option<&Amounts>, b: Option<&Amounts>) -> bool {
    let none = Amounts::new();
    let (a, b) = (a.unwrap_or(&none), b.unwrap_or(&none));
    a.len() == b.len()
        && a.iter().all(|(name, amount)| b.get(name).is_some_and(|b| parsed(b) == parsed(amount)))
}

fn set_overhead(spec: &mut PodSpec, overhead: &Overhead) -> Result<(), String> {
    let asked = spec.overhead.as_ref().filter(|asked| !asked.is_empty());
    if asked.is_some() && !same(overhead.pod_fixed.as_ref(), asked) {
        return Err(OTHER_OVERHEAD.to_owned());
    }
    spec.overhead.clone_from(&overhead.pod_fixed);
    Ok(())
}

/// Whether a pod's overhead is what its class gives.
fn judge(given: Option<&Overhead>, asked: Option<&Amounts>) -> Result<(), &'static str> {
    match given {
        Some(given) if !same(given.pod_fixed.as_ref(), asked) => Err(OTHER_OVERHEAD),
        None if asked.is_some() => {
            Err("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead")
        }
        _ => Ok(()),
    }
}

fn set_scheduling(spec: &mut PodSpec, scheduling: &Scheduling) -> Result<(), String> {
    if let Some(selector) = scheduling.node_selector.as_ref().filter(|s| !s.is_empty()) {
        let there = spec.node_selector.get_or_insert_default();
        for (key, value) in selector {
            if let Some(asked) = there.get(key).filter(|asked| *asked != value) {
                return Err(format!(
                    "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {value}; \
                     pod.spec.nodeSelector[{key}] = {asked}"
                ));
            }
            there.insert(key.clone(), value.clone());
        }
    }
    let both = spec.tolerations.iter().flatten().chain(scheduling.tolerations.iter().flatten());
    let all: Vec<Toleration> = both.cloned().collect();
    spec.tolerations = (!all.is_empty()).then(|| merged(&all));
    Ok(())
}

/// Tolerations without those that another covers; of the same ones the first stays.
fn merged(all: &[Toleration]) -> Vec<Toleration> {
    let mut kept: Vec<Toleration> = Vec::new();
    for (i, toleration) in all.iter().enumerate() {
        let covers_more = |other: &Toleration| !is_same(other, toleration) && covers(other, toleration);
        let before = kept.iter().any(|other| covers(other, toleration));
        if !before && !all[i + 1..].iter().any(covers_more) {
            kept.push(toleration.clone());
        }
    }
    kept
}

/// Key, operator, value and effect.
fn parts(t: &Toleration) -> [&str; 4] {
    [&t.key, &t.operator, &t.value, &t.effect].map(|part| part.as_deref().unwrap_or_default())
}

fn is_same(a: &Toleration, b: &Toleration) -> bool {
    parts(a) == parts(b) && a.toleration_seconds == b.toleration_seconds
}

/// Whether all that one toleration bears, the other bears too.
fn covers(wide: &Toleration, narrow: &Toleration) -> bool {
    if is_same(wide, narrow) {
        return true;
    }
    let [key, operator, value, effect] = parts(wide);
    let [narrow_key, narrow_operator, narrow_value, narrow_effect] = parts(narrow);
    let any_key = key.is_empty() && operator == "Exists";
    if (narrow_key != key && !any_key) || (narrow_effect != effect && !effect.is_empty()) {
        return false;
    }
    if effect == "NoExecute"
        && let Some(seconds) = wide.toleration_seconds
        && narrow.toleration_seconds.is_none_or(|narrow| narrow > seconds)
    {
        return false;
    }
    match operator {
        // As upstream, an operator that is not said is none that this covers.
        "" | "Equal" => narrow_operator == "Equal" && narrow_value == value,
        operator => operator == "Exists",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_class_says_where_its_pods_run() {
        let scheduling: Scheduling = serde_json::from_value(json!({"nodeSelector": {"a": "1"},
            "tolerations": [{"key": "t", "operator": "Exists"}]}))
        .expect("scheduling");
        let mut spec: PodSpec =
            serde_json::from_value(json!({"containers": [], "nodeSelector": {"b": "2"}})).expect("a spec");
        set_scheduling(&mut spec, &scheduling).expect("no conflict");
        set_scheduling(&mut spec, &scheduling).expect("no conflict");
        assert_eq!(spec.node_selector.clone().map(|s| s.len()), Some(2));
        assert_eq!(spec.tolerations.clone().map(|t| t.len()), Some(1), "a toleration is added once");
        spec.node_selector.get_or_insert_default().insert("a".into(), "0".into());
        let refused = set_scheduling(&mut spec, &scheduling).expect_err("a conflict");
        assert_eq!(
            refused,
            "conflict: runtimeClass.scheduling.nodeSelector[a] = 1; pod.spec.nodeSelector[a] = 0"
        );
    }

    #[test]
    fn a_toleration_that_another_covers_is_left_out() {
        let keys = |all: Value| -> Vec<String> {
            let all: Vec<Toleration> = serde_json::from_value(all).expect("tolerations");
            let shown = |t: &Toleration| {
                let [key, _, _, effect] = parts(t);
                format!("{key}/{effect}")
            };
            merged(&all).iter().map(shown).collect()
        };
        let exists = |key: &str, effect: &str| json!({"key": key, "operator": "Exists", "effect": effect});
        assert_eq!(keys(json!([exists("a", "NoSchedule"), exists("a", "")])), ["a/"]);
        assert_eq!(keys(json!([exists("a", ""), exists("a", "NoSchedule")])), ["a/"]);
        assert_eq!(keys(json!([exists("a", "NoSchedule"), {"operator": "Exists"}])), ["/"]);
        assert_eq!(keys(json!([exists("a", "NoSchedule"), exists("b", "NoSchedule")])).len(), 2);
        let mut for_a_while = exists("a", "NoExecute");
        for_a_while["tolerationSeconds"] = 5.into();
        assert_eq!(keys(json!([exists("a", "NoExecute"), for_a_while])), ["a/NoExecute"]);
        let equal = json!({"key": "a", "operator": "Equal", "value": "x", "effect": "NoSchedule"});
        assert_eq!(keys(json!([equal, equal])), ["a/NoSchedule"]);
    }

    #[test]
    fn a_pods_overhead_is_its_classs() {
        let amounts = |all: Value| -> Amounts { serde_json::from_value(all).expect("amounts") };
        let overhead = |fixed: Value| Overhead { pod_fixed: Some(amounts(fixed)) };
        let some = amounts(json!({"cpu": "1"}));
        assert_eq!(judge(None, None), Ok(()));
        assert!(judge(None, Some(&some)).expect_err("refused").contains("without corresponding"));
        assert!(judge(None, Some(&Amounts::new())).is_err(), "even if it is nothing");
        assert_eq!(judge(Some(&overhead(json!({"cpu": "1000m"}))), Some(&some)), Ok(()));
        assert_eq!(judge(Some(&overhead(json!({}))), Some(&some)), Err(OTHER_OVERHEAD));
        assert_eq!(judge(Some(&overhead(json!({}))), None), Ok(()));
        let mut spec = PodSpec { overhead: Some(some), ..PodSpec::default() };
        assert_eq!(set_overhead(&mut spec, &overhead(json!({}))), Err(OTHER_OVERHEAD.to_owned()));
    }
}
