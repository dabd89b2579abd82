//! RuntimeClass: what a pod's class costs on top, and where it runs (KEP-688).

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Pod, PodSpec};
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
        let asked = spec.overhead.as_ref().filter(|o| !o.is_empty());
        let class = self.class(attributes, spec).await?;
        let given = class.as_ref().and_then(|c| c.overhead.as_ref()?.pod_fixed.as_ref());
        match (given, asked) {
            (Some(given), asked) if !same(given, asked) => Err(attributes
                .forbidden("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead")),
            (None, Some(_)) => Err(attributes.forbidden(
                "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
            )),
            _ => Ok(()),
        }
    }
}

type Amounts = std::collections::BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>;

fn same(a: &Amounts, b: Option<&Amounts>) -> bool {
    let none = Amounts::new();
    let b = b.unwrap_or(&none);
    a.len() == b.len()
        && a.iter().all(|(name, amount)| b.get(name).is_some_and(|b| parsed(b) == parsed(amount)))
}

fn set_overhead(spec: &mut PodSpec, overhead: &Overhead) -> Result<(), String> {
    let Some(fixed) = overhead.pod_fixed.as_ref().filter(|f| !f.is_empty()) else { return Ok(()) };
    match spec.overhead.as_ref().filter(|o| !o.is_empty()) {
        Some(asked) if !same(fixed, Some(asked)) => {
            Err("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead".to_owned())
        }
        Some(_) => Ok(()),
        None => {
            spec.overhead = Some(fixed.clone());
            Ok(())
        }
    }
}

fn set_scheduling(spec: &mut PodSpec, scheduling: &Scheduling) -> Result<(), String> {
    if let Some(selector) = scheduling.node_selector.as_ref().filter(|s| !s.is_empty()) {
        let there = spec.node_selector.get_or_insert_default();
        for (key, value) in selector {
            if let Some(asked) = there.get(key).filter(|asked| *asked != value) {
                return Err(format!(
                    "pod rejected: conflict: runtimeClass.scheduling.nodeSelector[{key}] = {value}; \
                     pod.spec.nodeSelector[{key}] = {asked}"
                ));
            }
            there.insert(key.clone(), value.clone());
        }
    }
    for toleration in scheduling.tolerations.iter().flatten() {
        let there = spec.tolerations.get_or_insert_default();
        if !there.contains(toleration) {
            there.push(toleration.clone());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

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
        assert!(refused.ends_with("pod.spec.nodeSelector[a] = 0"), "{refused}");
    }
}
