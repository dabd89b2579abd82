//! PodSecurity: a namespace's labels say how much its pods may do to their node (KEP-2579, the Pod Security Standards).

mod baseline;
mod checks;
mod policy;
mod restricted;
mod view;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{
    Namespace, Pod, PodSpec, PodTemplate, PodTemplateSpec, ReplicationController,
};
use krate_api::{StatusError, kinds};

use self::checks::{details, reasons, violations};
use self::policy::{Level, LevelVersion, Policy};
use self::view::View;
use super::metrics::Metrics;
use super::{Admit, Attributes, Operation, lookup};
use crate::kinds::Kinds;
use crate::registry::erased::Object;

const ENFORCED: &str = "pod-security.kubernetes.io/enforce-policy";
const AUDITED: &str = "pod-security.kubernetes.io/audit-violations";
const UNREADABLE: &str = "pod-security.kubernetes.io/error";
/// How many pods of a namespace are looked at when its level changes.
const MOST_PODS: usize = 3000;

/// What changes nothing of a pod that is looked at here.
const IGNORED: &[&str] = &["attach", "binding", "eviction", "exec", "log", "portforward", "proxy", "status"];

pub struct PodSecurity {
    kinds: Arc<Kinds>,
    metrics: Arc<Metrics>,
}

/// The version whose policies are known here; of later ones nothing is.
const NEWEST: u32 = 36;

/// How the request stands in metrics: its operation, what it is about, and the part of it.
fn asked(attributes: &Attributes) -> [&str; 3] {
    let operation = if attributes.operation == Operation::Create { "create" } else { "update" };
    let resource = if attributes.is(&kinds::POD) { "pod" } else { "controller" };
    [operation, resource, &attributes.subresource]
}

type Annotations<'a> = Option<&'a BTreeMap<String, String>>;

/// The pods that a controller is to make.
fn template(object: &dyn Object) -> Option<&PodTemplateSpec> {
    if let Some(o) = object.is::<Deployment>() {
        return o.spec.as_ref().map(|s| &s.template);
    }
    if let Some(o) = object.is::<ReplicaSet>() {
        return o.spec.as_ref()?.template.as_ref();
    }
    if let Some(o) = object.is::<StatefulSet>() {
        return o.spec.as_ref().map(|s| &s.template);
    }
    if let Some(o) = object.is::<DaemonSet>() {
        return o.spec.as_ref().map(|s| &s.template);
    }
    if let Some(o) = object.is::<Job>() {
        return o.spec.as_ref().map(|s| &s.template);
    }
    if let Some(o) = object.is::<CronJob>() {
        return o.spec.job_template.spec.as_ref().map(|s| &s.template);
    }
    if let Some(o) = object.is::<PodTemplate>() {
        return o.template.as_ref();
    }
    object.is::<ReplicationController>().and_then(|o| o.spec.as_ref()?.template.as_ref())
}

fn images(spec: &PodSpec) -> Vec<(&str, Option<&str>)> {
    View::new(None, spec).containers.iter().map(|c| (c.name, c.image)).collect()
}

impl PodSecurity {
    pub fn new(kinds: Arc<Kinds>, metrics: Arc<Metrics>) -> Self {
        PodSecurity { kinds, metrics }
    }

    fn evaluated(&self, attributes: &Attributes, allows: bool, policy: LevelVersion, mode: &str) {
        let version = match policy.version {
            _ if policy.level == Level::Privileged => "latest".to_owned(),
            None => "latest".to_owned(),
            Some(minor) if minor <= NEWEST => format!("v1.{minor}"),
            Some(_) => "future".to_owned(),
        };
        let [operation, resource, subresource] = asked(attributes);
        let decision = if allows { "allow" } else { "deny" };
        let labels =
            [decision, policy.level.name(), version.as_str(), mode, operation, resource, subresource];
        self.metrics.pod_security.evaluations.with_label_values(&labels).inc();
    }

    fn failed(&self, attributes: &Attributes, fatal: &str) {
        let [operation, resource, subresource] = asked(attributes);
        let labels = [fatal, operation, resource, subresource];
        self.metrics.pod_security.errors.with_label_values(&labels).inc();
    }

    async fn policy(&self, attributes: &Attributes) -> Result<(Policy, Option<String>), StatusError> {
        let labels = lookup::labels(&self.kinds, "namespaces", &attributes.namespace).await?;
        let labels = labels.ok_or_else(|| {
            StatusError::internal(format!("failed to lookup namespace \"{}\"", attributes.namespace))
        })?;
        let (policy, errors) = Policy::of(Some(&labels));
        let wrong = errors.iter().next().map(|error| format!("Failed to parse policy: {error}"));
        Ok((policy, wrong))
    }

    async fn judge(
        &self,
        attributes: &Attributes,
        annotations: Annotations<'_>,
        spec: &PodSpec,
        enforces: bool,
    ) -> Result<(), StatusError> {
        let read = self.policy(attributes).await.inspect_err(|_| self.failed(attributes, "true"));
        let (policy, wrong) = read?;
        if wrong.is_none() && policy.is_privileged() {
            if enforces {
                self.evaluated(attributes, true, policy.enforce, "enforce");
            }
            return Ok(());
        }
        if let Some(wrong) = wrong {
            attributes.annotate(UNREADABLE, wrong);
            self.failed(attributes, "false");
        }
        let view = View::new(annotations, spec);
        let would = |policy: LevelVersion| {
            let found = violations(policy, &view);
            (!found.is_empty()).then(|| format!("violate PodSecurity \"{policy}\": {}", details(&found)))
        };
        let refused = enforces
            .then(|| {
                attributes.annotate(ENFORCED, policy.enforce.to_string());
                violations(policy.enforce, &view)
            })
            .filter(|found| !found.is_empty());
        if enforces {
            self.evaluated(attributes, refused.is_none(), policy.enforce, "enforce");
        }
        if let Some(text) = would(policy.audit) {
            self.evaluated(attributes, false, policy.audit, "audit");
            attributes.annotate(AUDITED, format!("would {text}"));
        }
        if let Some(found) = refused {
            let why = format!("violates PodSecurity \"{}\": {}", policy.enforce, details(&found));
            return Err(attributes.forbidden(why));
        }
        if let Some(text) = would(policy.warn) {
            self.evaluated(attributes, false, policy.warn, "warn");
            attributes.warn(format!("would {text}"));
        }
        Ok(())
    }

    async fn namespace(
        &self,
        attributes: &Attributes,
        new: &Namespace,
        old: Option<&Namespace>,
    ) -> Result<(), StatusError> {
        let (policy, errors) = Policy::of(new.metadata.labels.as_ref());
        let invalid = || StatusError::invalid(kinds::NAMESPACE.gvk(), &attributes.name, &errors);
        let Some(old) = old else {
            return if errors.is_empty() { Ok(()) } else { Err(invalid()) };
        };
        let (was, old_errors) = Policy::of(old.metadata.labels.as_ref());
        let texts = |errors: &krate_api::FieldErrors| -> Vec<String> {
            errors.iter().map(ToString::to_string).collect()
        };
        if !errors.is_empty() && texts(&errors) != texts(&old_errors) {
            return Err(invalid());
        }
        let relaxed =
            policy.enforce.version == was.enforce.version && policy.enforce.level <= was.enforce.level;
        if policy.enforce != was.enforce && policy.enforce.level != Level::Privileged && !relaxed {
            self.look_at_pods(attributes, policy.enforce).await?;
        }
        Ok(())
    }

    /// Warns of pods that are there and would not be let in any more.
    async fn look_at_pods(&self, attributes: &Attributes, enforce: LevelVersion) -> Result<(), StatusError> {
        let pods = lookup::all::<Pod>(&self.kinds, "", "pods", &attributes.name).await?;
        let total = pods.len();
        // Pods of one controller are alike: one of each comes first.
        let mut controllers = HashSet::new();
        let (first, rest): (Vec<&Pod>, Vec<&Pod>) = pods.iter().partition(|pod| {
            let owners = pod.metadata.owner_references.iter().flatten();
            let mut controller = owners.filter(|o| o.controller == Some(true)).map(|o| o.uid.clone());
            controller.next().is_none_or(|uid| controllers.insert(uid))
        });
        let mut found: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for pod in first.into_iter().chain(rest).take(MOST_PODS) {
            let Some(spec) = &pod.spec else { continue };
            let violations = violations(enforce, &View::new(pod.metadata.annotations.as_ref(), spec));
            if !violations.is_empty() {
                let name = pod.metadata.name.as_deref().unwrap_or_default();
                found.entry(reasons(&violations)).or_default().push(name);
            }
        }
        if total > MOST_PODS {
            attributes.warn(format!(
                "new PodSecurity enforce level only checked against the first {MOST_PODS} of {total} existing pods"
            ));
        }
        if found.is_empty() {
            return Ok(());
        }
        attributes.warn(format!(
            "existing pods in namespace \"{}\" violate the new PodSecurity enforce level \"{enforce}\"",
            attributes.name
        ));
        let mut lines: Vec<String> = found
            .into_iter()
            .map(|(reasons, mut names)| {
                names.sort_unstable();
                match names.len() - 1 {
                    0 => format!("{}: {reasons}", names[0]),
                    1 => format!("{} (and 1 other pod): {reasons}", names[0]),
                    others => format!("{} (and {others} other pods): {reasons}", names[0]),
                }
            })
            .collect();
        lines.sort();
        for line in lines {
            attributes.warn(line);
        }
        Ok(())
    }
}

#[async_trait]
impl Admit for PodSecurity {
    async fn validate(
        &self,
        attributes: &Attributes,
        object: Option<&dyn Object>,
        old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        let Some(object) = object else { return Ok(()) };
        if attributes.is(&kinds::NAMESPACE)
            && let Some(new) = object.is::<Namespace>()
        {
            return self.namespace(attributes, new, old.and_then(|o| o.is())).await;
        }
        if let Some(pod) = object.is::<Pod>() {
            let Some(spec) =
                pod.spec.as_ref().filter(|_| !IGNORED.contains(&attributes.subresource.as_str()))
            else {
                return Ok(());
            };
            // Of what can change in a pod, only its images and new ephemeral containers matter.
            let was = old.and_then(|o| o.is::<Pod>()).and_then(|p| p.spec.as_ref());
            if attributes.operation == Operation::Update && was.is_some_and(|was| images(was) == images(spec))
            {
                return Ok(());
            }
            return self.judge(attributes, pod.metadata.annotations.as_ref(), spec, true).await;
        }
        if !attributes.subresource.is_empty() {
            return Ok(());
        }
        let Some(template) = template(object) else { return Ok(()) };
        let Some(spec) = &template.spec else { return Ok(()) };
        let annotations = template.metadata.as_ref().and_then(|m| m.annotations.as_ref());
        self.judge(attributes, annotations, spec, false).await
    }
}
