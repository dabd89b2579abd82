//! Priority: the name of a PriorityClass becomes a number, and the cluster's default class is for those that name none.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use krate_api::{StatusError, kinds};
use krate_store::cache::{Freshness, ListQuery, Scope};

use super::{Admit, Attributes, Operation};
use crate::kinds::Kinds;
use crate::registry::erased::Object;

pub struct Priority {
    kinds: Arc<Kinds>,
}

impl Priority {
    pub fn new(kinds: Arc<Kinds>) -> Self {
        Priority { kinds }
    }

    async fn classes(&self) -> Result<Vec<PriorityClass>, StatusError> {
        let Some(storage) = self.kinds.of("scheduling.k8s.io", "priorityclasses") else {
            return Ok(Vec::new());
        };
        let list = storage.cache.list(&ListQuery::new(Scope::all(), Freshness::Any)).await;
        let list = list.map_err(crate::storage::refused)?;
        let decoded = list.items.iter().filter_map(|cached| {
            storage.decode(&cached.value, cached.revision).ok()?.object.is::<PriorityClass>().cloned()
        });
        Ok(decoded.collect())
    }
}

/// The class of pods that name none. Of several the least counts, as upstream.
fn default_of(classes: &[PriorityClass]) -> Option<&PriorityClass> {
    classes.iter().filter(|class| class.global_default == Some(true)).min_by_key(|class| class.value)
}

/// The name of the default beside which a class cannot be one too.
fn other_default<'c>(
    classes: &'c [PriorityClass],
    class: &PriorityClass,
    operation: Operation,
) -> Option<&'c str> {
    let there = default_of(classes).filter(|_| class.global_default == Some(true))?;
    let is_it = operation == Operation::Update && there.metadata.name == class.metadata.name;
    (!is_it).then(|| there.metadata.name.as_deref().unwrap_or_default())
}

#[async_trait]
impl Admit for Priority {
    async fn mutate(
        &self,
        attributes: &Attributes,
        object: &mut dyn Object,
        old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        if !attributes.is(&kinds::POD) {
            return Ok(());
        }
        let Some(pod) = object.is_mut::<Pod>() else { return Ok(()) };
        let spec = pod.spec.get_or_insert_default();
        if attributes.operation == Operation::Update {
            if let Some(was) = old.and_then(|o| o.is::<Pod>()).and_then(|p| p.spec.as_ref()) {
                spec.priority = spec.priority.or(was.priority);
                spec.preemption_policy =
                    spec.preemption_policy.take().or_else(|| was.preemption_policy.clone());
            }
            return Ok(());
        }
        let classes = self.classes().await?;
        let name = spec.priority_class_name.clone().filter(|n| !n.is_empty());
        let class = match &name {
            Some(name) => {
                let found = classes.iter().find(|c| c.metadata.name.as_ref() == Some(name));
                Some(found.ok_or_else(|| {
                    attributes.forbidden(format!("no PriorityClass with name {name} was found"))
                })?)
            }
            None => default_of(&classes),
        };
        let value = class.and_then(|c| c.value).unwrap_or(0);
        if spec.priority.is_some_and(|asked| asked != value) {
            return Err(attributes.forbidden(format!(
                "the integer value of priority ({}) must not be provided in pod spec; priority admission controller \
                 computed {value} from the given PriorityClass name",
                spec.priority.unwrap_or_default()
            )));
        }
        spec.priority = Some(value);
        if name.is_none() {
            spec.priority_class_name = class.and_then(|c| c.metadata.name.clone());
        }
        let policy = class.and_then(|c| c.preemption_policy.clone());
        let policy = policy.unwrap_or_else(|| "PreemptLowerPriority".to_owned());
        if spec.preemption_policy.as_ref().is_some_and(|asked| *asked != policy) {
            return Err(attributes.forbidden(format!(
                "the string value of PreemptionPolicy ({}) must not be provided in pod spec; priority admission \
                 controller computed {policy} from the given PriorityClass name",
                spec.preemption_policy.clone().unwrap_or_default()
            )));
        }
        spec.preemption_policy = Some(policy);
        Ok(())
    }

    async fn validate(
        &self,
        attributes: &Attributes,
        object: Option<&dyn Object>,
        _old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        if !attributes.is(&kinds::PRIORITY_CLASS) {
            return Ok(());
        }
        let Some(class) = object.and_then(|o| o.is::<PriorityClass>()) else { return Ok(()) };
        if class.global_default != Some(true) {
            return Ok(());
        }
        match other_default(&self.classes().await?, class, attributes.operation) {
            None => Ok(()),
            Some(there) => Err(attributes.forbidden(format!(
                "PriorityClass {there} is already marked as default. Only one default can exist"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn there_is_one_default() {
        let class = |name: &str, default: bool| -> PriorityClass {
            serde_json::from_value(json!({"metadata": {"name": name}, "value": 1, "globalDefault": default}))
                .expect("a class")
        };
        let there = [class("a", true), class("b", false)];
        for (class, operation, told) in [
            (class("b", true), Operation::Create, Some("a")),
            (class("b", true), Operation::Update, Some("a")),
            (class("b", false), Operation::Create, None),
            (class("a", true), Operation::Update, None),
            (class("a", true), Operation::Create, Some("a")),
        ] {
            assert_eq!(other_default(&there, &class, operation), told, "{class:?} {operation:?}");
        }
        assert_eq!(other_default(&there[1..], &class("c", true), Operation::Create), None);
    }
}
