//! DefaultTolerationSeconds, AlwaysPullImages and TaintNodesByCondition: pods bear a node that is away for five minutes, and a node is new
//! until it says that it is ready.

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use krate_api::{StatusError, kinds};

use super::{Admit, Attributes, Operation, Tolerated};
use crate::registry::erased::Object;

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

pub struct DefaultTolerationSeconds(pub Tolerated);

#[async_trait]
impl Admit for DefaultTolerationSeconds {
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
        let tolerations = pod.spec.get_or_insert_default().tolerations.get_or_insert_default();
        for (key, seconds) in [(NOT_READY, self.0.not_ready), (UNREACHABLE, self.0.unreachable)] {
            let tolerated = tolerations.iter().any(|t| {
                let matches_key = t.key.as_deref().is_none_or(|k| k.is_empty() || k == key);
                let matches_effect = t.effect.as_deref().is_none_or(|e| e.is_empty() || e == "NoExecute");
                matches_key && matches_effect
            });
            if !tolerated {
                tolerations.push(Toleration {
                    key: Some(key.to_owned()),
                    operator: Some("Exists".to_owned()),
                    effect: Some("NoExecute".to_owned()),
                    toleration_seconds: Some(seconds),
                    value: None,
                });
            }
        }
        Ok(())
    }
}

/// Pods pull their images each time, so that nobody runs what he may not pull because it is there already.
pub struct AlwaysPullImages;

#[async_trait]
impl Admit for AlwaysPullImages {
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
        for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
            container.image_pull_policy = Some("Always".to_owned());
        }
        for container in spec.ephemeral_containers.iter_mut().flatten() {
            container.image_pull_policy = Some("Always".to_owned());
        }
        Ok(())
    }
}

pub struct TaintNodesByCondition;

#[async_trait]
impl Admit for TaintNodesByCondition {
    async fn mutate(
        &self,
        attributes: &Attributes,
        object: &mut dyn Object,
        _old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        if !attributes.is(&kinds::NODE) || attributes.operation != Operation::Create {
            return Ok(());
        }
        let Some(node) = object.is_mut::<Node>() else { return Ok(()) };
        let taints = node.spec.get_or_insert_default().taints.get_or_insert_default();
        if !taints.iter().any(|t| t.key == NOT_READY && t.effect == "NoSchedule") {
            taints.push(Taint {
                key: NOT_READY.to_owned(),
                effect: "NoSchedule".to_owned(),
                ..Taint::default()
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::erased::{Registry, Typed};

    #[tokio::test]
    async fn pods_bear_a_node_that_is_away_for_as_long_as_is_said() {
        let plugin = DefaultTolerationSeconds(Tolerated { not_ready: 7, unreachable: 9 });
        let attributes = Attributes::for_test(Operation::Create, &kinds::POD, "", "ns", "x");
        let pods = <Typed<Pod> as Default>::default();
        let mut pod = pods.decode(br#"{"metadata":{"name":"x"},"spec":{"containers":[]}}"#).expect("a pod");
        plugin.mutate(&attributes, &mut *pod, None).await.expect("changed");
        let pod = <dyn Object>::is::<Pod>(&*pod).expect("a pod");
        let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
        let seconds: Vec<_> = tolerations.iter().map(|t| (t.key.as_deref(), t.toleration_seconds)).collect();
        assert_eq!(seconds, [(Some(NOT_READY), Some(7)), (Some(UNREACHABLE), Some(9))]);
    }
}
