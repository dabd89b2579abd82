//! Node: a machine that runs pods.

use k8s_openapi::api::core::v1::{Node, NodeSpec, NodeStatus, NodeSystemInfo, Taint};
use krate_api::{FieldErrors, FieldPath, Kind, kinds};
use serde::Deserialize;
use serde_json::Value;

use super::pod_spec::amount;
use crate::registry::column::{age, name, or_none, text, wide};
use crate::registry::rules::{cidr, each, label_name, label_value, one_of};
use crate::registry::{Column, Context, Selectable, Strategy};

impl Strategy for Node {
    const KIND: &'static Kind = &kinds::NODE;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text("Status", "The status of the node", status),
        text("Roles", "The roles of the node", roles),
        age(),
        text("Version", "io.k8s.api.core.v1.NodeSystemInfo.kubeletVersion", |n| {
            info(n).kubelet_version.into()
        }),
        wide("Internal-IP", "io.k8s.api.core.v1.NodeStatus.addresses", |n| address(n, "InternalIP")),
        wide("External-IP", "io.k8s.api.core.v1.NodeStatus.addresses", |n| address(n, "ExternalIP")),
        wide("OS-Image", "io.k8s.api.core.v1.NodeSystemInfo.osImage", |n| known(info(n).os_image)),
        wide("Kernel-Version", "io.k8s.api.core.v1.NodeSystemInfo.kernelVersion", |n| {
            known(info(n).kernel_version)
        }),
        wide("Container-Runtime", "io.k8s.api.core.v1.NodeSystemInfo.containerRuntimeVersion", |n| {
            known(info(n).container_runtime_version)
        }),
    ];

    fn default(&mut self) {
        self.spec.get_or_insert_default();
        let status: &mut NodeStatus = self.status.get_or_insert_default();
        if status.allocatable.is_none() {
            status.allocatable.clone_from(&status.capacity);
        }
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context) {
        self.status.clone_from(&old.status);
    }

    fn prepare_for_status_update(&mut self, old: &Self, _: &Context) {
        self.spec.clone_from(&old.spec);
    }

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let Some(spec) = &self.spec else { return };
        let at = at.child("spec");
        let mut seen = std::collections::BTreeSet::new();
        for (i, t) in spec.taints.iter().flatten().enumerate() {
            let at = at.child("taints").index(i);
            taint(t, &at, errors);
            if !seen.insert((&t.key, &t.effect)) {
                errors.duplicate(&at, t);
            }
        }
        let cidrs = spec.pod_cidrs.as_deref().unwrap_or_default();
        for (i, value) in cidrs.iter().enumerate() {
            cidr(value, &at.child("podCIDRs").index(i), errors);
        }
        if cidrs.len() > 2 {
            errors.invalid(
                &at.child("podCIDRs"),
                cidrs,
                "may specify no more than one CIDR for each IP family",
            );
        }
        self.amounts(errors);
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec");
        let spec = |n: &Self| n.spec.clone().unwrap_or_default();
        let (new, was) = (spec(self), spec(old));
        // Given once, for the node's life.
        if was.pod_cidrs.as_ref().is_some_and(|c| !c.is_empty()) && new.pod_cidrs != was.pod_cidrs {
            errors.forbidden(
                &at.child("podCIDRs"),
                "node updates may not change podCIDR except from \"\" to valid",
            );
        }
        if was.provider_id.as_deref().is_some_and(|p| !p.is_empty()) && new.provider_id != was.provider_id {
            errors.forbidden(
                &at.child("providerID"),
                "node updates may not change providerID except from \"\" to valid",
            );
        }
    }

    fn validate_status_update(&self, _: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        self.amounts(errors);
        let mut seen = std::collections::BTreeSet::new();
        let addresses = self.status.iter().flat_map(|s| s.addresses.iter().flatten());
        for (i, address) in addresses.enumerate() {
            if !seen.insert((&address.type_, &address.address)) {
                errors.duplicate(&at.child("status").child("addresses").index(i), address);
            }
        }
    }

    fn selectable(&self) -> Selectable {
        let unschedulable = self.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false);
        vec![("spec.unschedulable", unschedulable.to_string())]
    }

    fn slim(json: &[u8]) -> Option<Result<Self, serde_json::Error>> {
        #[derive(Deserialize)]
        struct Slim {
            spec: Option<Spec>,
        }
        #[derive(Deserialize)]
        struct Spec {
            unschedulable: Option<bool>,
        }
        let slim = serde_json::from_slice::<Slim>(json).map(|Slim { spec }| {
            let spec = spec.map(|spec| NodeSpec { unschedulable: spec.unschedulable, ..NodeSpec::default() });
            Node { spec, ..<Node as Default>::default() }
        });
        Some(slim)
    }
}

trait Amounts {
    fn amounts(&self, errors: &mut FieldErrors);
}

impl Amounts for Node {
    fn amounts(&self, errors: &mut FieldErrors) {
        let Some(status) = &self.status else { return };
        for (field, amounts) in [("capacity", &status.capacity), ("allocatable", &status.allocatable)] {
            for (name, value) in amounts.iter().flatten() {
                amount(name, value, &FieldPath::new("status").child(field).key(name), errors);
            }
        }
    }
}

fn taint(t: &Taint, at: &FieldPath, errors: &mut FieldErrors) {
    label_name(&t.key, &at.child("key"), errors);
    let value = t.value.as_deref().unwrap_or_default();
    each(label_value(value), value, &at.child("value"), errors);
    if t.effect.is_empty() {
        errors.required(&at.child("effect"), "");
    } else {
        one_of(&t.effect, &["NoExecute", "NoSchedule", "PreferNoSchedule"], &at.child("effect"), errors);
    }
}

fn info(node: &Node) -> NodeSystemInfo {
    node.status.as_ref().and_then(|s| s.node_info.clone()).unwrap_or_default()
}

fn known(text: String) -> Value {
    if text.is_empty() { "<unknown>".into() } else { text.into() }
}

fn status(node: &Node) -> Value {
    let ready = node.status.iter().flat_map(|s| s.conditions.iter().flatten()).find(|c| c.type_ == "Ready");
    let mut text = match ready.map(|c| c.status.as_str()) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true) {
        text.push_str(",SchedulingDisabled");
    }
    text.into()
}

fn roles(node: &Node) -> Value {
    let mut roles: Vec<&str> = node
        .metadata
        .labels
        .iter()
        .flatten()
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role).filter(|r| !r.is_empty()),
            None if key == "kubernetes.io/role" => Some(value.as_str()).filter(|v| !v.is_empty()),
            None => None,
        })
        .collect();
    roles.sort_unstable();
    roles.dedup();
    or_none(Some(&roles.join(",")))
}

fn address(node: &Node, kind: &str) -> Value {
    let addresses = node.status.iter().flat_map(|s| s.addresses.iter().flatten());
    or_none(addresses.filter(|a| a.type_ == kind).map(|a| a.address.as_str()).next())
}
