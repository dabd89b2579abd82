//! The two kinds that keep a number of pods, seen as one.

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{
    PodTemplateSpec, ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use krate_client::InformerObject;
use kube::Resource;
use kube::core::{Expression, NamespaceResourceScope, Selector};
use serde::Serialize;

use crate::Error;
use crate::meta::{Labels, now, selector};

/// What a set's status says of its pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub replicas: i32,
    pub fully_labeled: i32,
    pub ready: i32,
    pub available: i32,
    pub terminating: i32,
}

/// A kind that keeps a number of pods.
pub trait Replicated:
    InformerObject
    + Serialize
    + Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + k8s_openapi::Metadata<Ty = ObjectMeta>
{
    /// The source of its events.
    const COMPONENT: &'static str;
    /// The name of its queue in metrics.
    const QUEUE: &'static str;
    type Status: Clone + PartialEq + Send + 'static;

    fn status(&self) -> Option<&Self::Status>;
    fn replicas(&self) -> i32;
    fn min_ready_seconds(&self) -> i32;
    fn template(&self) -> PodTemplateSpec;
    /// The labels that its pods bear.
    fn template_labels(&self) -> Option<&Labels>;
    /// # Errors
    /// The API server would not have taken it.
    fn selector(&self) -> Result<Selector, Error>;
    fn only_status_changed(old: &Self, new: &Self) -> bool;
    /// The object with its new status; None if that is what it says already. `failure` is what kept it from making or
    /// deleting pods, `active` how many it has.
    fn with_status(&self, counts: &Counts, failure: Option<&str>, active: usize) -> Option<Self>;
}

/// A zero that upstream leaves out.
fn some(n: i32) -> Option<i32> {
    (n != 0).then_some(n)
}

fn failure_reason(wanted: i32, active: usize) -> &'static str {
    if active < usize::try_from(wanted).unwrap_or(0) { "FailedCreate" } else { "FailedDelete" }
}

const FAILURE: &str = "ReplicaFailure";

impl Replicated for ReplicaSet {
    const COMPONENT: &'static str = "replicaset-controller";
    const QUEUE: &'static str = "replicaset";
    type Status = ReplicaSetStatus;

    fn status(&self) -> Option<&ReplicaSetStatus> {
        self.status.as_ref()
    }

    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0)
    }

    fn template(&self) -> PodTemplateSpec {
        self.spec.as_ref().and_then(|s| s.template.clone()).unwrap_or_default()
    }

    fn template_labels(&self) -> Option<&Labels> {
        self.spec.as_ref()?.template.as_ref()?.metadata.as_ref()?.labels.as_ref()
    }

    fn selector(&self) -> Result<Selector, Error> {
        selector(&self.spec.as_ref().ok_or_else(|| Error::Invalid("no spec".into()))?.selector)
    }

    fn only_status_changed(old: &Self, new: &Self) -> bool {
        let (a, b) = (&old.metadata, &new.metadata);
        a.generation == b.generation
            && a.deletion_timestamp == b.deletion_timestamp
            && a.labels == b.labels
            && new.status.as_ref().and_then(|s| s.observed_generation) == b.generation
    }

    fn with_status(&self, counts: &Counts, failure: Option<&str>, active: usize) -> Option<Self> {
        let old = self.status.clone().unwrap_or_default();
        let mut conditions = old.conditions.clone().unwrap_or_default();
        let known = conditions.iter().any(|c| c.type_ == FAILURE);
        match failure {
            None => conditions.retain(|c| c.type_ != FAILURE),
            Some(_) if known => {}
            Some(message) => conditions.push(ReplicaSetCondition {
                type_: FAILURE.to_owned(),
                status: "True".to_owned(),
                reason: Some(failure_reason(self.replicas(), active).to_owned()),
                message: Some(message.to_owned()),
                last_transition_time: Some(now()),
            }),
        }
        let status = ReplicaSetStatus {
            replicas: counts.replicas,
            fully_labeled_replicas: some(counts.fully_labeled),
            ready_replicas: some(counts.ready),
            available_replicas: some(counts.available),
            terminating_replicas: Some(counts.terminating),
            observed_generation: self.metadata.generation,
            conditions: (!conditions.is_empty()).then_some(conditions),
        };
        (status != old).then(|| ReplicaSet { status: Some(status), ..self.clone() })
    }
}

impl Replicated for ReplicationController {
    const COMPONENT: &'static str = "replication-controller";
    const QUEUE: &'static str = "replicationmanager";
    type Status = ReplicationControllerStatus;

    fn status(&self) -> Option<&ReplicationControllerStatus> {
        self.status.as_ref()
    }

    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0)
    }

    fn template(&self) -> PodTemplateSpec {
        self.spec.as_ref().and_then(|s| s.template.clone()).unwrap_or_default()
    }

    fn template_labels(&self) -> Option<&Labels> {
        self.spec.as_ref()?.template.as_ref()?.metadata.as_ref()?.labels.as_ref()
    }

    fn selector(&self) -> Result<Selector, Error> {
        let equal = self.spec.as_ref().and_then(|s| s.selector.clone()).unwrap_or_default();
        if equal.is_empty() {
            return Err(Error::Invalid("a selector that selects everything".into()));
        }
        Ok(equal.into_iter().map(|(k, v)| Expression::Equal(k, v)).collect())
    }

    fn only_status_changed(old: &Self, new: &Self) -> bool {
        let (a, b) = (&old.metadata, &new.metadata);
        a.generation == b.generation
            && a.deletion_timestamp == b.deletion_timestamp
            && a.labels == b.labels
            && new.status.as_ref().and_then(|s| s.observed_generation) == b.generation
    }

    fn with_status(&self, counts: &Counts, failure: Option<&str>, active: usize) -> Option<Self> {
        let old = self.status.clone().unwrap_or_default();
        let mut conditions = old.conditions.clone().unwrap_or_default();
        let known = conditions.iter().any(|c| c.type_ == FAILURE);
        match failure {
            None => conditions.retain(|c| c.type_ != FAILURE),
            Some(_) if known => {}
            Some(message) => conditions.push(ReplicationControllerCondition {
                type_: FAILURE.to_owned(),
                status: "True".to_owned(),
                reason: Some(failure_reason(self.replicas(), active).to_owned()),
                message: Some(message.to_owned()),
                last_transition_time: Some(now()),
            }),
        }
        let status = ReplicationControllerStatus {
            replicas: counts.replicas,
            fully_labeled_replicas: some(counts.fully_labeled),
            ready_replicas: some(counts.ready),
            available_replicas: some(counts.available),
            observed_generation: self.metadata.generation,
            conditions: (!conditions.is_empty()).then_some(conditions),
        };
        (status != old).then(|| ReplicationController { status: Some(status), ..self.clone() })
    }
}
