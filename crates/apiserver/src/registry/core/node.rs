//! Node: a machine that runs pods.

use k8s_openapi::api::core::v1::{Node, NodeSpec, NodeStatus, NodeSystemInfo, Taint};
use krate_api::field::Fault;
use krate_api::{FieldError, FieldErrors, FieldPath, Kind, kinds};
use serde::Deserialize;
use serde_json::{Value, json};

use super::addresses::{cidr_warnings, is_ipv4_range, legacy_cidr};
use super::pod_spec::amount;
use crate::registry::column::{age, name, or_none, text, wide};
use crate::registry::rules::{label_name, label_value, one_of};
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
            kernel(&info(n)).into()
        }),
        wide("Container-Runtime", "io.k8s.api.core.v1.NodeSystemInfo.containerRuntimeVersion", |n| {
            known(info(n).container_runtime_version)
        }),
    ];

    fn default(&mut self) {
        one_range_in_both_fields(self.spec.get_or_insert_default());
        let status: &mut NodeStatus = self.status.get_or_insert_default();
        if status.allocatable.is_none() {
            status.allocatable.clone_from(&status.capacity);
        }
    }

    /// Where a kubelet finds its settings was once told by its node (KEP-281): only what is there already stays.
    fn prepare_for_create(&mut self, _: &Context) {
        self.spec.get_or_insert_default().config_source = None;
        self.status.get_or_insert_default().config = None;
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context) {
        self.status.clone_from(&old.status);
        if old.spec.as_ref().is_none_or(|spec| spec.config_source.is_none()) {
            self.spec.get_or_insert_default().config_source = None;
        }
    }

    fn prepare_for_status_update(&mut self, old: &Self, _: &Context) {
        self.spec.clone_from(&old.spec);
        if old.status.as_ref().is_none_or(|status| status.config.is_none()) {
            self.status.get_or_insert_default().config = None;
        }
    }

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        self.taints(at, errors);
        self.amounts(errors);
        let swap = self.status.iter().flat_map(|s| &s.node_info).flat_map(|info| &info.swap);
        if let Some(capacity) = swap.filter_map(|swap| swap.capacity).find(|capacity| *capacity <= 0) {
            let at = at.child("metadata").child("nodeSwapStatus").child("capacity");
            errors.invalid(&at, capacity, "must be greater than zero");
        }
        self.declared(at, errors);
        let ranges = self.spec.as_ref().and_then(|s| s.pod_cidrs.as_deref()).unwrap_or_default();
        let at = at.child("spec").child("podCIDRs");
        for (i, range) in ranges.iter().enumerate() {
            legacy_cidr(range, &[], &at.index(i), errors);
        }
        let of_four = ranges.iter().filter(|range| is_ipv4_range(range) == Some(true)).count();
        if ranges.len() > 1 && (ranges.len() > 2 || of_four != 1) {
            errors.invalid(&at, ranges, "may specify no more than one CIDR for each IP family");
        }
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        self.amounts(errors);
        self.declared(at, errors);
        let mut seen = std::collections::BTreeSet::new();
        let addresses = self.status.iter().flat_map(|s| s.addresses.iter().flatten());
        for (i, address) in addresses.enumerate() {
            if !seen.insert((&address.type_, &address.address)) {
                let shown =
                    format!("{{\"Type\":{},\"Address\":{}}}", json!(address.type_), json!(address.address));
                twice(&at.child("status").child("addresses").index(i), shown, "", errors);
            }
        }
        given_once(self, old, &at.child("spec"), errors);
        self.taints(at, errors);
        let external =
            |node: &Self| node.spec.as_ref().and_then(|s| s.external_id.clone()).unwrap_or_default();
        if external(self) != external(old) {
            errors.forbidden(&at.child("spec").child("externalID"), "may not be updated");
        }
    }

    fn validate_status_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        self.validate_update(old, at, errors);
    }

    fn warnings(&self, old: Option<&Self>) -> Vec<String> {
        let is_of_status = old.is_some_and(|old| self.spec == old.spec && self.status != old.status);
        let Some(spec) = self.spec.as_ref().filter(|_| !is_of_status) else { return Vec::new() };
        let mut warnings = Vec::new();
        if spec.config_source.is_some() {
            warnings.push("spec.configSource: the feature is removed".to_owned());
        }
        if spec.external_id.as_deref().is_some_and(|id| !id.is_empty()) {
            warnings
                .push("spec.externalID: this field is deprecated, and is unused by Kubernetes".to_owned());
        }
        let at = FieldPath::new("spec").child("podCIDRs");
        for (i, range) in spec.pod_cidrs.iter().flatten().enumerate() {
            warnings.extend(cidr_warnings(range, &at.index(i)));
        }
        warnings
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

/// Both fields tell the range of a node's pods; an old client writes the one that has room for one.
fn one_range_in_both_fields(spec: &mut NodeSpec) {
    let first = spec.pod_cidrs.as_ref().and_then(|ranges| ranges.first().cloned());
    let first = first.filter(|range| !range.is_empty());
    match (spec.pod_cidr.clone().filter(|range| !range.is_empty()), first) {
        (Some(single), first) if first.as_ref() != Some(&single) => spec.pod_cidrs = Some(vec![single]),
        (None, Some(first)) => spec.pod_cidr = Some(first),
        _ => {}
    }
}

/// What is given for the node's life.
fn given_once(new: &Node, old: &Node, at: &FieldPath, errors: &mut FieldErrors) {
    let none = NodeSpec::default();
    let (new, was) = (new.spec.as_ref().unwrap_or(&none), old.spec.as_ref().unwrap_or(&none));
    let (ranges, had) =
        (new.pod_cidrs.as_deref().unwrap_or_default(), was.pod_cidrs.as_deref().unwrap_or_default());
    let changed = ranges.iter().zip(had).filter(|(range, old)| range != old).count();
    let changed = if ranges.len() == had.len() { changed } else { usize::from(!had.is_empty()) };
    for _ in 0..changed {
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

trait Rules {
    fn amounts(&self, errors: &mut FieldErrors);
    fn declared(&self, at: &FieldPath, errors: &mut FieldErrors);
    fn taints(&self, at: &FieldPath, errors: &mut FieldErrors);
}

impl Rules for Node {
    fn amounts(&self, errors: &mut FieldErrors) {
        let Some(status) = &self.status else { return };
        for (field, amounts) in [("capacity", &status.capacity), ("allocatable", &status.allocatable)] {
            for (name, value) in amounts.iter().flatten() {
                amount(name, value, &FieldPath::new("status").child(field).child(name), errors);
            }
        }
    }

    /// The features that its kubelet says it has, in order (KEP-5328).
    fn declared(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("status").child("declaredFeatures");
        let features = self.status.as_ref().and_then(|s| s.declared_features.as_deref()).unwrap_or_default();
        for (i, feature) in features.iter().enumerate() {
            if let Some(wrong) = no_feature(feature) {
                errors.invalid(&at.index(i), feature, format!("invalid feature name {feature:?}: {wrong}"));
            }
            match features.get(i + 1) {
                Some(next) if next == feature => errors.duplicate(&at.index(i + 1), next),
                Some(next) if next < feature => {
                    errors.invalid(&at.index(i + 1), next, "list must be sorted alphabetically");
                }
                _ => {}
            }
        }
    }

    /// Upstream tells them at a place where they are not.
    fn taints(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let taints = self.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
        let at = at.child("metadata").child("taints");
        let mut seen = std::collections::BTreeSet::new();
        for (i, t) in taints.iter().enumerate() {
            let at = at.index(i);
            taint(t, &at, errors);
            if !seen.insert((&t.key, &t.effect)) {
                let shown = format!(
                    "{{\"Key\":{},\"Value\":{},\"Effect\":{},\"TimeAdded\":{}}}",
                    json!(t.key),
                    json!(t.value.as_deref().unwrap_or_default()),
                    json!(t.effect),
                    json!(t.time_added)
                );
                twice(&at, shown, "taints must be unique by key and effect pair", errors);
            }
        }
    }
}

fn twice(at: &FieldPath, shown: String, detail: &str, errors: &mut FieldErrors) {
    errors.push(FieldError {
        fault: Fault::Duplicate,
        field: at.clone(),
        value: Some(shown),
        detail: detail.to_owned(),
    });
}

/// What is wrong with the name of a feature: `Feature` or `Feature/part`.
fn no_feature(name: &str) -> Option<&'static str> {
    const TOO_LONG: &str = "must be no more than 253 characters";
    const ODD: &str = "must start with an UpperCamelCase segment, with subsequent segments separated by '/' \
                       (e.g., MyFeature or MyFeature/mySubFeature), and contain only alphanumeric characters \
                       and slashes";
    let is_part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic()) && part.bytes().all(|c| c.is_ascii_alphanumeric())
    };
    if name.len() > 253 {
        return Some(TOO_LONG);
    }
    let is_one = name.starts_with(|c: char| c.is_ascii_uppercase()) && name.split('/').all(is_part);
    (!is_one).then_some(ODD)
}

fn taint(t: &Taint, at: &FieldPath, errors: &mut FieldErrors) {
    label_name(&t.key, &at.child("key"), errors);
    let value = t.value.as_deref().unwrap_or_default();
    let wrong = label_value(value);
    if !wrong.is_empty() {
        errors.invalid(&at.child("value"), value, wrong.join(";"));
    }
    if t.effect.is_empty() {
        errors.required(&at.child("effect"), "");
    } else {
        one_of(&t.effect, &["NoSchedule", "PreferNoSchedule", "NoExecute"], &at.child("effect"), errors);
    }
}

fn info(node: &Node) -> NodeSystemInfo {
    node.status.as_ref().and_then(|s| s.node_info.clone()).unwrap_or_default()
}

/// The kernel, and for what processor it is.
fn kernel(info: &NodeSystemInfo) -> String {
    let version = Some(info.kernel_version.as_str()).filter(|v| !v.is_empty()).unwrap_or("<unknown>");
    match info.architecture.as_str() {
        "" => version.to_owned(),
        architecture => format!("{version} ({architecture})"),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn node(spec: &Value, status: &Value) -> Node {
        let object = json!({"metadata": {"name": "n"}, "spec": spec, "status": status});
        let mut node: Node = serde_json::from_value(object).expect("a node");
        node.default();
        node
    }

    fn wrong(node: &Node, old: Option<&Node>) -> Vec<String> {
        let mut errors = FieldErrors::new();
        match old {
            None => node.validate(&FieldPath::new(""), &mut errors),
            Some(old) => node.validate_update(old, &FieldPath::new(""), &mut errors),
        }
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn both_fields_tell_the_range_of_the_pods() {
        for (spec, ranges) in [
            (json!({"podCIDR": "10.0.0.0/24"}), json!(["10.0.0.0/24"])),
            (json!({"podCIDRs": ["10.0.0.0/24", "fd00::/64"]}), json!(["10.0.0.0/24", "fd00::/64"])),
            (
                json!({"podCIDR": "10.0.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd00::/64"]}),
                json!(["10.0.0.0/24"]),
            ),
        ] {
            let spec = node(&spec, &json!({})).spec.expect("a spec");
            assert_eq!((json!(spec.pod_cidr), json!(spec.pod_cidrs)), (json!("10.0.0.0/24"), ranges));
        }
    }

    #[test]
    fn what_is_wrong_is_told_as_upstream_tells_it() {
        let taint = json!({"key": "a", "effect": "NoSchedule"});
        for (spec, status, text) in [
            (
                json!({"taints": [taint, taint]}),
                json!({}),
                "metadata.taints[1]: Duplicate value: {\"Key\":\"a\",\"Value\":\"\",\"Effect\":\"NoSchedule\",\
                 \"TimeAdded\":null}: taints must be unique by key and effect pair",
            ),
            (
                json!({"taints": [{"key": "a", "effect": "Odd"}]}),
                json!({}),
                "metadata.taints[0].effect: Unsupported value: \"Odd\": supported values: \"NoSchedule\", \
                 \"PreferNoSchedule\", \"NoExecute\"",
            ),
            (
                json!({}),
                json!({"capacity": {"cpu": "-1"}, "allocatable": {}}),
                "status.capacity.cpu: Invalid value: \"-1\": must be greater than or equal to 0",
            ),
            (
                json!({"podCIDRs": ["10.0.0.0/24", "10.0.1.0/24"]}),
                json!({}),
                "spec.podCIDRs: Invalid value: [\"10.0.0.0/24\",\"10.0.1.0/24\"]: may specify no more than one CIDR \
                 for each IP family",
            ),
            (
                json!({}),
                json!({"declaredFeatures": ["B", "A"]}),
                "status.declaredFeatures[1]: Invalid value: \"A\": list must be sorted alphabetically",
            ),
        ] {
            assert_eq!(wrong(&node(&spec, &status), None), [text]);
        }
        assert!(no_feature("MyFeature/mySubFeature").is_none());
        assert!(["", "a", "A/", "A/1", "A-b"].into_iter().all(|name| no_feature(name).is_some()));
    }

    #[test]
    fn what_is_given_once_stays() {
        let old = node(&json!({"podCIDRs": ["10.0.0.0/24"], "externalID": "a"}), &json!({}));
        let new = node(&json!({"podCIDRs": ["10.1.0.0/24"], "externalID": "b"}), &json!({}));
        assert_eq!(
            wrong(&new, Some(&old)),
            [
                "spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid",
                "spec.externalID: Forbidden: may not be updated",
            ]
        );
        assert_eq!(
            new.warnings(None),
            ["spec.externalID: this field is deprecated, and is unused by Kubernetes"]
        );
    }

    #[test]
    fn settings_are_not_told_by_nodes_any_more() {
        let source = json!({"configMap": {"name": "a", "namespace": "b", "kubeletConfigKey": "c"}});
        let mut node = node(&json!({"configSource": source}), &json!({"config": {"active": source}}));
        node.prepare_for_create(&Context::default());
        assert_eq!(node.spec.expect("a spec").config_source, None);
        assert_eq!(node.status.expect("a status").config, None);
    }

    #[test]
    fn the_kernel_is_shown_with_its_processor() {
        let mut info = NodeSystemInfo { architecture: "arm64".to_owned(), ..NodeSystemInfo::default() };
        assert_eq!(kernel(&info), "<unknown> (arm64)");
        info.kernel_version = "6.1".to_owned();
        assert_eq!(kernel(&info), "6.1 (arm64)");
    }
}
