//! Pod: containers that run together on one node.

mod columns;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, PodCondition, PodIP, PodSpec, PodStatus};
use krate_api::{FieldErrors, FieldPath, Kind, kinds};
use serde::Deserialize;

use super::pod_spec;
use crate::registry::column::{age, name, text, wide};
use crate::registry::prepare::{first_generation, keep_metadata, next_generation};
use crate::registry::{Column, Context, Selectable, Strategy};

impl Strategy for Pod {
    const KIND: &'static Kind = &kinds::POD;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text("Ready", "The aggregate readiness state of this pod for accepting traffic.", |p| {
            columns::summary(p).ready.into()
        }),
        text("Status", "The aggregate status of the containers in this pod.", |p| {
            columns::summary(p).status.into()
        }),
        text(
            "Restarts",
            "The number of times the containers in this pod have been restarted and when the last container in this pod has restarted.",
            |p| columns::summary(p).restarts.into(),
        ),
        age(),
        wide("IP", "io.k8s.api.core.v1.PodStatus.podIP", columns::ip),
        wide("Node", "io.k8s.api.core.v1.PodSpec.nodeName", columns::node),
        wide("Nominated Node", "io.k8s.api.core.v1.PodStatus.nominatedNodeName", columns::nominated_node),
        wide("Readiness Gates", "io.k8s.api.core.v1.PodSpec.readinessGates", columns::readiness_gates),
    ];
    const GRACEFUL: bool = true;

    crate::registry::prepare::pod_spec_at!(spec?);

    fn default(&mut self) {
        let spec = self.spec.get_or_insert_default();
        pod_spec::default_spec(spec);
        pod_spec::default_pod(spec);
        if spec.termination_grace_period_seconds.is_some_and(|seconds| seconds < 0) {
            spec.termination_grace_period_seconds = Some(1);
        }
        if let Some(annotations) = &mut self.metadata.annotations {
            annotations.retain(|key, _| !BEFORE_INIT_CONTAINERS.contains(&key.as_str()));
        }
        same_addresses(self.status.get_or_insert_default());
    }

    fn prepare_for_create(&mut self, _: &Context) {
        let spec = self.spec.get_or_insert_default();
        let mut status = PodStatus {
            phase: Some("Pending".to_owned()),
            qos_class: Some(pod_spec::qos_class(spec).to_owned()),
            ..PodStatus::default()
        };
        if spec.scheduling_gates.as_ref().is_some_and(|g| !g.is_empty()) {
            status.conditions = Some(vec![PodCondition {
                type_: "PodScheduled".to_owned(),
                status: "False".to_owned(),
                reason: Some("SchedulingGated".to_owned()),
                message: Some("Scheduling is blocked due to non-empty scheduling gates".to_owned()),
                ..PodCondition::default()
            }]);
        }
        self.status = Some(status);
        pod_spec::merge_label_keys(spec, self.metadata.labels.as_ref());
        pod_spec::fill_app_armor(spec, self.metadata.annotations.as_ref());
        first_generation(&mut self.metadata);
    }

    fn prepare_for_update(&mut self, old: &Self, context: &Context) {
        self.status.clone_from(&old.status);
        let spec = self.spec.get_or_insert_default();
        let empty = PodSpec::default();
        let was = old.spec.as_ref().unwrap_or(&empty);
        match context.subresource.as_str() {
            "ephemeralcontainers" => {
                let ephemeral = spec.ephemeral_containers.take();
                *spec = PodSpec { ephemeral_containers: ephemeral, ..was.clone() };
                keep_metadata(&mut self.metadata, &old.metadata);
            }
            "resize" => {
                pod_spec::keep_all_else(spec, was);
                keep_metadata(&mut self.metadata, &old.metadata);
            }
            _ => {}
        }
        let changed = crate::registry::prepare::differ(&*spec, was);
        next_generation(&mut self.metadata, &old.metadata, changed);
        self.metadata.deletion_grace_period_seconds = old.metadata.deletion_grace_period_seconds;
    }

    fn prepare_for_status_update(&mut self, old: &Self, context: &Context) {
        self.spec.clone_from(&old.spec);
        self.metadata.generation = old.metadata.generation;
        self.metadata.deletion_timestamp.clone_from(&old.metadata.deletion_timestamp);
        self.metadata.owner_references.clone_from(&old.metadata.owner_references);
        let status = self.status.get_or_insert_default();
        let empty = PodStatus::default();
        let was = old.status.as_ref().unwrap_or(&empty);
        // The class follows from the spec, whoever writes the status.
        if status.qos_class.as_deref().is_none_or(str::is_empty) {
            status.qos_class.clone_from(&was.qos_class);
        }
        pod_spec::keep_observed_generations(status, was);
        pod_spec::drop_disabled_status(status, was, &context.features);
    }

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        if let Some(spec) = &self.spec {
            pod_spec::pod(&self.metadata, spec, at, errors);
        }
    }

    fn validate_new(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let Some(spec) = &self.spec else { return };
        let at = at.child("spec");
        if spec.ephemeral_containers.as_ref().is_some_and(|e| !e.is_empty()) {
            errors.forbidden(&at.child("ephemeralContainers"), "cannot be set on create");
        }
        let gated = spec.scheduling_gates.as_ref().is_some_and(|g| !g.is_empty());
        if gated && spec.node_name.as_deref().is_some_and(|n| !n.is_empty()) {
            let why = "cannot be set until all schedulingGates have been cleared";
            errors.forbidden(&at.child("nodeName"), why);
        }
        if let Some(annotations) = &self.metadata.annotations {
            pod_spec::annotations_match_fields(annotations, spec, &at, errors);
        }
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        annotations_update(self, old, at, errors);
        let empty = PodSpec::default();
        let (new, was) = (self.spec.as_ref().unwrap_or(&empty), old.spec.as_ref().unwrap_or(&empty));
        pod_spec::update(new, was, &at.child("spec"), errors);
    }

    fn validate_through(&self, subresource: &str, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        match subresource {
            "resize" => pod_spec::resize(self, old, at, errors),
            "ephemeralcontainers" => {
                annotations_update(self, old, at, errors);
                if pod_spec::is_mirror(&old.metadata) {
                    errors.forbidden(at, "static pods do not support ephemeral containers");
                    return;
                }
                let empty = PodSpec::default();
                let (new, was) = (self.spec.as_ref().unwrap_or(&empty), old.spec.as_ref().unwrap_or(&empty));
                pod_spec::ephemeral_update(new, was, &at.child("spec"), errors);
            }
            _ => self.validate_update(old, at, errors),
        }
    }

    fn validate_status_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        annotations_update(self, old, at, errors);
        pod_spec::status(self, old, &at.child("status"), errors);
    }

    /// Upstream warns of new pods, and of what a node says: who else updates one is rarely a person.
    fn warnings(&self, old: Option<&Self>) -> Vec<String> {
        if let Some(old) = old {
            // Only through its own endpoint does the status change.
            let said = self.status.as_ref().filter(|_| self.status != old.status);
            return said.map(|s| pod_spec::status_warnings(s, &FieldPath::new("status"))).unwrap_or_default();
        }
        let name = pod_spec::of_name(&self.metadata, "the Pod's hostname");
        name.into_iter().chain(pod_spec::of_pod(self)).collect()
    }

    fn selectable(&self) -> Selectable {
        let text = |o: Option<&String>| o.cloned().unwrap_or_default();
        let spec = self.spec.as_ref();
        let status = self.status.as_ref();
        let ip = status
            .and_then(|s| s.pod_ip.as_ref().or_else(|| s.pod_ips.iter().flatten().map(|i| &i.ip).next()));
        vec![
            ("spec.nodeName", text(spec.and_then(|s| s.node_name.as_ref()))),
            ("spec.restartPolicy", text(spec.and_then(|s| s.restart_policy.as_ref()))),
            ("spec.schedulerName", text(spec.and_then(|s| s.scheduler_name.as_ref()))),
            ("spec.serviceAccountName", text(spec.and_then(|s| s.service_account_name.as_ref()))),
            ("spec.hostNetwork", spec.and_then(|s| s.host_network).unwrap_or(false).to_string()),
            ("status.phase", text(status.and_then(|s| s.phase.as_ref()))),
            ("status.podIP", text(ip)),
            // It may be asked for, and upstream finds no pod by it.
            ("status.podIPs", String::new()),
            ("status.nominatedNodeName", text(status.and_then(|s| s.nominated_node_name.as_ref()))),
        ]
    }

    fn slim(json: &[u8]) -> Option<Result<Self, serde_json::Error>> {
        Some(serde_json::from_slice::<Slim>(json).map(Pod::from))
    }

    /// A pod that no node has taken, or that has come to its end, needs no grace.
    fn grace_period(&self, asked: Option<i64>) -> Option<i64> {
        let spec = self.spec.as_ref();
        let period = asked.or_else(|| spec.and_then(|s| s.termination_grace_period_seconds)).unwrap_or(0);
        let unbound = spec.and_then(|s| s.node_name.as_deref()).is_none_or(str::is_empty);
        let phase = self.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
        Some(if unbound || matches!(phase, "Succeeded" | "Failed") {
            0
        } else if period < 0 {
            1
        } else {
            period
        })
    }
}

/// Where init containers and what became of them stood before there were fields for them.
const BEFORE_INIT_CONTAINERS: [&str; 4] = [
    "pod.alpha.kubernetes.io/init-containers",
    "pod.alpha.kubernetes.io/init-container-statuses",
    "pod.beta.kubernetes.io/init-containers",
    "pod.beta.kubernetes.io/init-container-statuses",
];

/// The one address of old is the first of all; who knows that alone may say it.
fn same_addresses(status: &mut PodStatus) {
    let first = status.pod_ips.iter().flatten().next().map(|each| each.ip.clone());
    match status.pod_ip.clone().filter(|ip| !ip.is_empty()) {
        Some(ip) if first.as_ref() != Some(&ip) => status.pod_ips = Some(vec![PodIP { ip }]),
        Some(_) => {}
        None if first.is_some() => status.pod_ip = first,
        None => {}
    }
}

fn annotations_update(new: &Pod, old: &Pod, at: &FieldPath, errors: &mut FieldErrors) {
    let (none, empty) = (BTreeMap::new(), PodSpec::default());
    let (is, was) = (new.metadata.annotations.as_ref(), old.metadata.annotations.as_ref());
    let spec = new.spec.as_ref().unwrap_or(&empty);
    let at = at.child("metadata").child("annotations");
    pod_spec::annotations_update(is.unwrap_or(&none), was.unwrap_or(&none), spec, &at, errors);
}

/// What pods are selected by.
#[derive(Deserialize)]
struct Slim {
    spec: Option<SlimSpec>,
    status: Option<SlimStatus>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SlimSpec {
    node_name: Option<String>,
    restart_policy: Option<String>,
    scheduler_name: Option<String>,
    service_account_name: Option<String>,
    host_network: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SlimStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<PodIP>>,
    nominated_node_name: Option<String>,
}

impl From<Slim> for Pod {
    fn from(Slim { spec, status }: Slim) -> Self {
        let spec = spec.map(|spec| PodSpec {
            node_name: spec.node_name,
            restart_policy: spec.restart_policy,
            scheduler_name: spec.scheduler_name,
            service_account_name: spec.service_account_name,
            host_network: spec.host_network,
            ..PodSpec::default()
        });
        let status = status.map(|status| PodStatus {
            phase: status.phase,
            pod_ip: status.pod_ip,
            pod_ips: status.pod_ips,
            nominated_node_name: status.nominated_node_name,
            ..PodStatus::default()
        });
        Pod { spec, status, ..<Pod as Default>::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_selected_by_the_same_whether_they_are_read_whole_or_not() {
        let full = serde_json::json!({
            "metadata": {"name": "a"},
            "spec": {"nodeName": "n", "restartPolicy": "Never", "schedulerName": "s", "serviceAccountName": "sa",
                "hostNetwork": true, "containers": [{"name": "c"}]},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}], "nominatedNodeName": "m"},
        });
        for value in
            [full, serde_json::json!({"metadata": {}}), serde_json::json!({"spec": {"containers": []}})]
        {
            let slim = Pod::slim(value.to_string().as_bytes()).expect("a slim pod").expect("JSON");
            assert_eq!(slim.selectable(), pod(value).selectable());
        }
        let named: Vec<_> =
            <Pod as Default>::default().selectable().into_iter().map(|(name, _)| name).collect();
        assert_eq!(named.len(), 9, "a new field has to be read by the slim pod too: {named:?}");
    }

    fn pod(json: serde_json::Value) -> Pod {
        serde_json::from_value(json).expect("pod")
    }

    #[test]
    fn only_a_running_pod_has_grace() {
        let bound = pod(serde_json::json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30,
            "containers": []}}));
        assert_eq!(bound.grace_period(None), Some(30));
        assert_eq!(bound.grace_period(Some(5)), Some(5));
        let mut done = bound.clone();
        done.status = Some(PodStatus { phase: Some("Failed".to_owned()), ..PodStatus::default() });
        assert_eq!(done.grace_period(None), Some(0));
        let waiting =
            pod(serde_json::json!({"spec": {"terminationGracePeriodSeconds": 30, "containers": []}}));
        assert_eq!(waiting.grace_period(Some(10)), Some(0));
    }

    #[test]
    fn the_class_follows_from_requests_and_limits() {
        for (resources, class) in [
            (serde_json::json!({}), "BestEffort"),
            (serde_json::json!({"requests": {"cpu": "1"}}), "Burstable"),
            (serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}}), "Guaranteed"),
            (
                serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}),
                "Burstable",
            ),
        ] {
            let mut p =
                pod(serde_json::json!({"spec": {"containers": [{"name": "c", "resources": resources}]}}));
            p.default();
            p.prepare_for_create(&Context::default());
            assert_eq!(p.status.and_then(|s| s.qos_class).as_deref(), Some(class));
        }
    }

    #[test]
    fn an_image_may_change_and_a_command_may_not() {
        let old = pod(serde_json::json!({"spec": {"containers": [{"name": "c", "image": "a:1"}]}}));
        let mut new = old.clone();
        new.spec.as_mut().expect("spec").containers[0].image = Some("a:2".to_owned());
        let mut errors = FieldErrors::new();
        new.validate_update(&old, &FieldPath::default(), &mut errors);
        assert!(errors.is_empty(), "{errors:?}");
        new.spec.as_mut().expect("spec").containers[0].command = Some(vec!["x".to_owned()]);
        new.validate_update(&old, &FieldPath::default(), &mut errors);
        assert_eq!(errors.len(), 1);
    }

    #[test]
    fn a_part_of_a_pod_is_written_and_nothing_else() {
        let old = pod(serde_json::json!({"metadata": {"name": "p", "generation": 1, "labels": {"a": "1"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]}}));
        let mut new = pod(serde_json::json!({"metadata": {"name": "p", "labels": {"a": "2"}},
            "spec": {"containers": [{"name": "c", "image": "other"}],
                     "ephemeralContainers": [{"name": "e", "image": "i"}]}}));
        let through = Context { subresource: "ephemeralcontainers".to_owned(), ..Context::default() };
        new.prepare_for_update(&old, &through);
        assert_eq!(new.metadata.labels, old.metadata.labels);
        assert_eq!(new.metadata.generation, Some(2));
        let spec = new.spec.as_ref().expect("a spec");
        assert_eq!(spec.containers[0].image.as_deref(), Some("i"));
        let mut errors = FieldErrors::new();
        new.validate_through("ephemeralcontainers", &old, &FieldPath::default(), &mut errors);
        assert!(errors.is_empty(), "{errors:?}");
        new.validate_update(&old, &FieldPath::default(), &mut errors);
        assert_eq!(errors.len(), 1, "it is the only way to them");
    }

    #[test]
    fn a_new_pod_has_what_its_labels_make_of_its_selectors() {
        let mut new = pod(serde_json::json!({"metadata": {"name": "p", "labels": {"hash": "1"}}, "spec": {
            "containers": [{"name": "c", "image": "i"}], "topologySpreadConstraints": [{"maxSkew": 1,
            "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {},
            "matchLabelKeys": ["hash"]}]}}));
        new.prepare_for_create(&Context::default());
        let spec = serde_json::to_value(&new.spec).expect("JSON");
        let rules = spec.pointer("/topologySpreadConstraints/0/labelSelector/matchExpressions");
        let rule = serde_json::json!([{"key": "hash", "operator": "In", "values": ["1"]}]);
        assert_eq!(rules, Some(&rule));
    }

    #[test]
    fn only_new_pods_are_warned_of() {
        let named = pod(serde_json::json!({"metadata": {"name": "a.b"},
            "spec": {"containers": [{"name": "c", "image": "i"}], "imagePullSecrets": [{"name": ""}]}}));
        let warnings = named.warnings(None);
        assert!(warnings.len() == 2 && warnings[0].starts_with("metadata.name: "), "{warnings:?}");
        assert!(named.warnings(Some(&named)).is_empty());
        let mut told = named.clone();
        told.status = Some(PodStatus {
            pod_ips: Some(vec![PodIP { ip: "FD00::1".to_owned() }]),
            ..PodStatus::default()
        });
        assert_eq!(told.warnings(Some(&named)).len(), 1);
    }

    #[test]
    fn what_old_clients_say_is_what_new_ones_do() {
        let mut said = pod(serde_json::json!({
            "metadata": {"annotations": {"pod.beta.kubernetes.io/init-containers": "[]", "a": "b"}},
            "spec": {"containers": [], "terminationGracePeriodSeconds": -5}, "status": {"podIP": "10.0.0.1"}}));
        said.default();
        assert_eq!(said.spec.as_ref().and_then(|s| s.termination_grace_period_seconds), Some(1));
        assert_eq!(said.metadata.annotations.as_ref().map(BTreeMap::len), Some(1));
        let all = |pod: &Pod| -> Vec<String> {
            pod.status.iter().flat_map(|s| s.pod_ips.iter().flatten()).map(|each| each.ip.clone()).collect()
        };
        assert_eq!(all(&said), ["10.0.0.1"]);
        let mut new = pod(serde_json::json!({"status": {"podIPs": [{"ip": "10.0.0.2"}, {"ip": "fd00::2"}]}}));
        new.default();
        assert_eq!(new.status.as_ref().and_then(|s| s.pod_ip.as_deref()), Some("10.0.0.2"));
        assert_eq!(all(&new).len(), 2);
    }
}
