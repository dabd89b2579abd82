//! What a client is told of a pod, or of a template of one, which is allowed and still not wise (`pkg/api/pod/warnings.go`).

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, EnvVar, NodeSelectorTerm, Pod, PodAffinityTerm, PodSpec, PodTemplateSpec,
    Volume, WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use krate_api::FieldPath;
use krate_api::names::is_dns1123_label;
use krate_api::quantity::canonical;

use super::annotations::elders;
use super::overlaps::overlaps;
use super::resources::Amounts;
use super::visit;
use crate::registry::core::addresses::ip_warning;
use crate::registry::node_labels::deprecated;
use crate::registry::quantities::is_whole;
use crate::registry::rules::label_value;

type Placed<'a> = (FieldPath, Cow<'a, Container>);

pub fn of_pod(pod: &Pod) -> Vec<String> {
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    all(spec, Some(&pod.metadata), false, &FieldPath::new(""))
}

/// `at` is the template's place.
pub fn of_template(template: &PodTemplateSpec, at: &FieldPath) -> Vec<String> {
    let empty = PodSpec::default();
    all(template.spec.as_ref().unwrap_or(&empty), template.metadata.as_ref(), true, at)
}

/// What a name is no good for that is no label of DNS; `used` says what for.
pub fn of_name(meta: &ObjectMeta, used: &str) -> Option<String> {
    let wrong = is_dns1123_label(meta.name.as_deref().unwrap_or_default());
    let tail = "which can result in surprising behavior; a DNS label is recommended";
    (!wrong.is_empty())
        .then(|| format!("metadata.name: this is used in {used}, {tail}: [{}]", wrong.join(" ")))
}

fn all(spec: &PodSpec, meta: Option<&ObjectMeta>, is_template: bool, at: &FieldPath) -> Vec<String> {
    let annotations = meta.and_then(|meta| meta.annotations.as_ref());
    let at_notes = at.child("metadata").child("annotations");
    let at = at.child("spec");
    let containers = visit::containers(spec, &at);
    let mut warnings = Vec::new();
    node_labels(spec, &at, &mut warnings);
    if let Some(annotations) = annotations {
        for (key, why) in NOTES {
            if annotations.contains_key(key) {
                warnings.push(format!("{}: {why}", at_notes.key(key)));
            }
        }
    }
    for (i, v) in spec.volumes.iter().flatten().enumerate() {
        volume(v, &at.child("volumes").index(i), &mut warnings);
    }
    warnings.extend(overlaps(spec));
    twice(spec, &at, &mut warnings);
    for name in ["memory", "ephemeral-storage"] {
        fraction(spec.overhead.as_ref(), name, &at.child("overhead"), &mut warnings);
    }
    if let Some(annotations) = annotations {
        warnings.extend(elders(annotations, spec, &containers, is_template, &at_notes));
    }
    for (at, c) in &containers {
        fractions(c, at, &mut warnings);
        hidden(c.env.as_deref().unwrap_or_default(), &at.child("env"), &mut warnings);
    }
    ports(&containers, &mut warnings);
    if spec.termination_grace_period_seconds.is_some_and(|seconds| seconds < 0) {
        let at = at.child("terminationGracePeriodSeconds");
        warnings.push(format!("{at}: must be >= 0; negative values are invalid and will be treated as 1"));
    }
    affinity(spec, &at.child("affinity"), &mut warnings);
    addresses(spec, &at, &mut warnings);
    warnings
}

const NOTES: [(&str, &str); 3] = [
    (
        "scheduler.alpha.kubernetes.io/critical-pod",
        "non-functional in v1.16+; use the \"priorityClassName\" field instead",
    ),
    ("security.alpha.kubernetes.io/sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
    (
        "security.alpha.kubernetes.io/unsafe-sysctls",
        "non-functional in v1.11+; use the \"sysctls\" field instead",
    ),
];

fn node_labels(spec: &PodSpec, at: &FieldPath, warnings: &mut Vec<String>) {
    for key in spec.node_selector.iter().flatten().map(|(key, _)| key) {
        if let Some(why) = deprecated(key) {
            warnings.push(format!("{}: {why}", at.child("nodeSelector").key(key)));
        }
    }
    if let Some(nodes) = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref()) {
        let at = at.child("affinity").child("nodeAffinity");
        if let Some(required) = &nodes.required_during_scheduling_ignored_during_execution {
            let at = at.child("requiredDuringSchedulingIgnoredDuringExecution").child("nodeSelectorTerms");
            for (i, term) in required.node_selector_terms.iter().enumerate() {
                node_term(term, false, &at.index(i), warnings);
            }
        }
        let at = at.child("preferredDuringSchedulingIgnoredDuringExecution");
        let preferred = nodes.preferred_during_scheduling_ignored_during_execution.iter().flatten();
        for (i, term) in preferred.enumerate() {
            node_term(&term.preference, true, &at.index(i).child("preference"), warnings);
        }
    }
    for (i, c) in spec.topology_spread_constraints.iter().flatten().enumerate() {
        let at = at.child("topologySpreadConstraints").index(i);
        if let Some(why) = deprecated(&c.topology_key) {
            warnings.push(format!("{}: {} is {why}", at.child("topologyKey"), c.topology_key));
        }
        no_selector(c.label_selector.is_none(), &at, warnings);
    }
}

fn no_selector(is_missing: bool, at: &FieldPath, warnings: &mut Vec<String>) {
    if is_missing {
        let at = at.child("labelSelector");
        warnings.push(format!("{at}: a null labelSelector results in matching no pod"));
    }
}

fn node_term(term: &NodeSelectorTerm, with_values: bool, at: &FieldPath, warnings: &mut Vec<String>) {
    for (i, rule) in term.match_expressions.iter().flatten().enumerate() {
        let at = at.child("matchExpressions").index(i);
        if let Some(why) = deprecated(&rule.key) {
            warnings.push(format!("{}: {} is {why}", at.child("key"), rule.key));
        }
        for (j, value) in rule.values.iter().flatten().enumerate().filter(|_| with_values) {
            for why in label_value(value) {
                warnings.push(format!("{}: {value} is invalid, {why}", at.child("values").index(j)));
            }
        }
    }
}

fn volume(v: &Volume, at: &FieldPath, warnings: &mut Vec<String>) {
    let old = [
        ("photonPersistentDisk", v.photon_persistent_disk.is_some(), "v1.11, non-functional in v1.16+"),
        ("gitRepo", v.git_repo.is_some(), "v1.11, and disabled by default in v1.33+"),
        ("scaleIO", v.scale_io.is_some(), "v1.16, non-functional in v1.22+"),
        ("flocker", v.flocker.is_some(), "v1.22, non-functional in v1.25+"),
        ("storageOS", v.storageos.is_some(), "v1.22, non-functional in v1.25+"),
        ("quobyte", v.quobyte.is_some(), "v1.22, non-functional in v1.25+"),
        ("glusterfs", v.glusterfs.is_some(), "v1.25, non-functional in v1.26+"),
        ("cephfs", v.cephfs.is_some(), "v1.28, non-functional in v1.31+"),
        ("rbd", v.rbd.is_some(), "v1.28, non-functional in v1.31+"),
    ];
    for (field, _, since) in old.into_iter().filter(|(_, is_set, _)| *is_set) {
        warnings.push(format!("{}: deprecated in {since}", at.child(field)));
    }
    if let Some(template) = v.ephemeral.as_ref().and_then(|e| e.volume_claim_template.as_ref()) {
        let at = at.child("ephemeral").child("volumeClaimTemplate").child("spec").child("resources");
        let resources = template.spec.resources.as_ref();
        let (requests, limits) =
            (resources.and_then(|r| r.requests.as_ref()), resources.and_then(|r| r.limits.as_ref()));
        fraction(requests, "storage", &at.child("requests"), warnings);
        fraction(limits, "storage", &at.child("limits"), warnings);
    }
}

/// What a list has twice that is looked for by name.
fn twice(spec: &PodSpec, at: &FieldPath, warnings: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    for (i, alias) in spec.host_aliases.iter().flatten().enumerate() {
        if !seen.insert(alias.ip.as_str()) {
            let at = at.child("hostAliases").index(i).child("ip");
            warnings.push(format!("{at}: duplicate ip \"{}\"", alias.ip));
        }
    }
    let secrets = spec.image_pull_secrets.as_deref().unwrap_or_default();
    let at = |i| at.child("imagePullSecrets").index(i).child("name");
    let mut seen = BTreeSet::new();
    for (i, secret) in secrets.iter().enumerate() {
        if !seen.insert(secret.name.as_str()) {
            warnings.push(format!("{}: duplicate name \"{}\"", at(i), secret.name));
        }
    }
    for (i, _) in secrets.iter().enumerate().filter(|(_, secret)| secret.name.is_empty()) {
        warnings.push(format!("{}: invalid empty name \"\"", at(i)));
    }
}

/// A part of a byte is none.
fn fraction(amounts: Option<&Amounts>, name: &str, at: &FieldPath, warnings: &mut Vec<String>) {
    if let Some(amount) = amounts.and_then(|amounts| amounts.get(name)).filter(|amount| !is_whole(amount)) {
        let shown = canonical(&amount.0).unwrap_or_default();
        let at = at.key(name);
        warnings.push(format!("{at}: fractional byte value \"{shown}\" is invalid, must be an integer"));
    }
}

fn fractions(c: &Container, at: &FieldPath, warnings: &mut Vec<String>) {
    let Some(resources) = &c.resources else { return };
    let at = at.child("resources");
    for name in ["memory", "ephemeral-storage"] {
        fraction(resources.limits.as_ref(), name, &at.child("limits"), warnings);
        fraction(resources.requests.as_ref(), name, &at.child("requests"), warnings);
    }
}

/// A variable may be made of what it was before, and else hides that.
fn hidden(env: &[EnvVar], at: &FieldPath, warnings: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    for (i, variable) in env.iter().enumerate() {
        if seen.insert(variable.name.as_str()) {
            continue;
        }
        let value = variable.value.as_deref().unwrap_or_default();
        let before = format!("$({})", variable.name);
        if variable.value_from.is_some() || value == before || !value.contains(&before) {
            warnings.push(format!(
                "{}: hides previous definition of \"{}\", which may be dropped when using apply",
                at.index(i),
                variable.name
            ));
        }
    }
}

fn host(port: &ContainerPort) -> (&str, i32) {
    (port.host_ip.as_deref().unwrap_or_default(), port.host_port.unwrap_or(0))
}

fn ports(containers: &[Placed<'_>], warnings: &mut Vec<String>) {
    let all = || {
        containers.iter().flat_map(|(at, c)| {
            let ports = c.ports.iter().flatten().enumerate();
            ports.map(move |(i, port)| (at.child("ports").index(i), port))
        })
    };
    let mut taken: BTreeMap<(i32, &str), Vec<(FieldPath, &ContainerPort)>> = BTreeMap::new();
    for (at, port) in all() {
        let (ip, number) = host(port);
        let protocol = port.protocol.as_deref().unwrap_or_default();
        if !ip.is_empty() && number == 0 {
            warnings.push(format!(
                "{at}: hostIP set without hostPort: {{Name:{} HostPort:0 ContainerPort:{} Protocol:{protocol} \
                 HostIP:{ip}}}",
                port.name.as_deref().unwrap_or_default(),
                port.container_port
            ));
        }
        let others = taken.entry((port.container_port, protocol)).or_default();
        for (other_at, other) in &*others {
            if let Some(how) = clash(port, other) {
                warnings.push(format!("{at}: {how} port definition with {other_at}"));
            }
        }
        others.push((at, port));
    }
    let mut named: BTreeMap<&str, FieldPath> = BTreeMap::new();
    for (at, port) in all() {
        let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) else { continue };
        match named.get(name) {
            Some(first) => warnings.push(format!(
                "{at}: duplicate port name \"{name}\" with {first}, services and probes that select ports by name \
                 will use {first}"
            )),
            None => {
                named.insert(name, at);
            }
        }
    }
}

/// How two of the same number and protocol get into each other's way.
fn clash(port: &ContainerPort, other: &ContainerPort) -> Option<&'static str> {
    let ((ip, number), (other_ip, other_number)) = (host(port), host(other));
    if (ip, number) == (other_ip, other_number) {
        Some("duplicate")
    } else if number == 0 || other_number == 0 {
        Some("overlapping")
    } else {
        let one_is_any = ip.is_empty() != other_ip.is_empty();
        (number == other_number && one_is_any).then_some("dangerously ambiguous")
    }
}

fn affinity(spec: &PodSpec, at: &FieldPath, warnings: &mut Vec<String>) {
    let Some(affinity) = &spec.affinity else { return };
    if let Some(near) = &affinity.pod_affinity {
        terms(
            near.required_during_scheduling_ignored_during_execution.as_deref(),
            near.preferred_during_scheduling_ignored_during_execution.as_deref(),
            &at.child("podAffinity"),
            warnings,
        );
    }
    if let Some(far) = &affinity.pod_anti_affinity {
        terms(
            far.required_during_scheduling_ignored_during_execution.as_deref(),
            far.preferred_during_scheduling_ignored_during_execution.as_deref(),
            &at.child("podAntiAffinity"),
            warnings,
        );
    }
}

fn terms(
    required: Option<&[PodAffinityTerm]>,
    preferred: Option<&[WeightedPodAffinityTerm]>,
    at: &FieldPath,
    warnings: &mut Vec<String>,
) {
    for (i, term) in required.unwrap_or_default().iter().enumerate() {
        let at = at.child("requiredDuringSchedulingIgnoredDuringExecution").index(i);
        no_selector(term.label_selector.is_none(), &at, warnings);
    }
    for (i, term) in preferred.unwrap_or_default().iter().enumerate() {
        let at = at.child("preferredDuringSchedulingIgnoredDuringExecution").index(i);
        no_selector(term.pod_affinity_term.label_selector.is_none(), &at.child("podAffinityTerm"), warnings);
    }
}

/// Addresses that could be written in another way.
fn addresses(spec: &PodSpec, at: &FieldPath, warnings: &mut Vec<String>) {
    let servers = spec.dns_config.iter().flat_map(|config| config.nameservers.iter().flatten());
    for (i, server) in servers.enumerate() {
        warnings.extend(ip_warning(server, &at.child("dnsConfig").child("nameservers").index(i)));
    }
    for (i, alias) in spec.host_aliases.iter().flatten().enumerate() {
        warnings.extend(ip_warning(&alias.ip, &at.child("hostAliases").index(i).child("ip")));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn said(spec: Value) -> Vec<String> {
        let pod = json!({"metadata": {"name": "p"}, "spec": spec});
        of_pod(&serde_json::from_value(pod).expect("a pod"))
    }

    #[test]
    fn a_pod_is_warned_of_what_is_not_wise() {
        let with = |rest: Value| {
            let mut c = json!({"name": "c", "image": "i"});
            c.as_object_mut().expect("a map").extend(rest.as_object().cloned().unwrap_or_default());
            json!({"containers": [c]})
        };
        let also = |rest: Value| {
            let mut spec = with(json!({}));
            spec.as_object_mut().expect("a map").extend(rest.as_object().cloned().unwrap_or_default());
            spec
        };
        let env = |second: &str| {
            with(json!({"env": [{"name": "A", "value": "1"}, {"name": "A", "value": second}]}))
        };
        for spec in [
            env("$(A)2"),
            with(json!({"resources": {"limits": {"memory": "1Gi"}}})),
            with(
                json!({"ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 80, "protocol": "UDP"}]}),
            ),
            also(json!({"hostAliases": [{"ip": "2001:db8::1"}]})),
        ] {
            assert_eq!(said(spec), [""; 0]);
        }
        let hides = "spec.containers[0].env[1]: hides previous definition of \"A\", which may be dropped when using \
                     apply";
        for (spec, told) in [
            (env("2"), hides),
            (env("$(A)"), hides),
            (
                with(json!({"resources": {"requests": {"memory": "100m"}}})),
                "spec.containers[0].resources.requests[memory]: fractional byte value \"100m\" is invalid, must be an \
                 integer",
            ),
            (
                with(json!({"ports": [{"containerPort": 80, "protocol": "TCP"},
                    {"containerPort": 80, "protocol": "TCP"}]})),
                "spec.containers[0].ports[1]: duplicate port definition with spec.containers[0].ports[0]",
            ),
            (
                with(json!({"ports": [{"containerPort": 80, "protocol": "TCP", "name": "a"},
                    {"containerPort": 81, "protocol": "TCP", "name": "a"}]})),
                "spec.containers[0].ports[1]: duplicate port name \"a\" with spec.containers[0].ports[0], services and \
                 probes that select ports by name will use spec.containers[0].ports[0]",
            ),
            (
                with(json!({"ports": [{"containerPort": 80, "protocol": "TCP", "hostIP": "10.0.0.1"}]})),
                "spec.containers[0].ports[0]: hostIP set without hostPort: {Name: HostPort:0 ContainerPort:80 \
                 Protocol:TCP HostIP:10.0.0.1}",
            ),
            (
                also(json!({"nodeSelector": {"beta.kubernetes.io/os": "linux"}})),
                "spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
            ),
            (
                also(json!({"terminationGracePeriodSeconds": -1})),
                "spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1",
            ),
            (
                also(json!({"imagePullSecrets": [{"name": ""}]})),
                "spec.imagePullSecrets[0].name: invalid empty name \"\"",
            ),
            (
                also(
                    json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
                    {"topologyKey": "zone"}]}}}),
                ),
                "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].labelSelector: a null \
                 labelSelector results in matching no pod",
            ),
            (
                also(json!({"volumes": [{"name": "v", "gitRepo": {"repository": "r"}}]})),
                "spec.volumes[0].gitRepo: deprecated in v1.11, and disabled by default in v1.33+",
            ),
            (
                also(json!({"hostAliases": [{"ip": "2001:DB8:0::1"}]})),
                "spec.hostAliases[0].ip: IPv6 address \"2001:DB8:0::1\" should be in RFC 5952 canonical format \
                 (\"2001:db8::1\")",
            ),
        ] {
            assert_eq!(said(spec), [told]);
        }
    }

    #[test]
    fn a_template_says_where_it_is() {
        let template = json!({
            "metadata": {"annotations": {"container.apparmor.security.beta.kubernetes.io/c": "unconfined"}},
            "spec": {"containers": [{"name": "c"}]}});
        let template = serde_json::from_value(template).expect("a template");
        assert_eq!(
            of_template(&template, &FieldPath::new("spec").child("template")),
            [
                "spec.template.metadata.annotations[container.apparmor.security.beta.kubernetes.io/c]: deprecated since \
              v1.30; use the \"appArmorProfile\" field instead"
            ]
        );
    }

    #[test]
    fn a_name_is_good_for_a_host() {
        let named = |name: &str| ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
        assert_eq!(of_name(&named("a-b"), "x"), None);
        assert_eq!(
            of_name(&named("a.b"), "the Pod's hostname").as_deref(),
            Some(
                "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS \
                 label is recommended: [must not contain dots]"
            )
        );
    }
}
