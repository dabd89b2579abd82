//! What a container may say (`ValidatePodSpec` and below, in `pkg/apis/core/validation`).

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    Container, EnvVar, EnvVarSource, PodSpec, ResourceRequirements, VolumeMount,
};
use krate_api::{FieldErrors, FieldPath};

use super::probes::probes;
use super::resources::requirements;
use super::security::container_context;
use super::volumes::local_path;
use crate::registry::rules::{config_key, dns_label, each, label_name, one_of, port, port_name};

/// What the checks of one container need to know of its pod.
pub struct Pod<'a> {
    pub spec: &'a PodSpec,
    /// The volumes by name; those of claims in block mode are not known here.
    pub volumes: BTreeSet<&'a str>,
    pub claims: BTreeSet<&'a str>,
}

pub fn containers(pod: &Pod<'_>, at: &FieldPath, errors: &mut FieldErrors) {
    let mut names = BTreeSet::new();
    let at_init = at.child("initContainers");
    let init = pod.spec.init_containers.as_deref().unwrap_or_default();
    let list = at.child("containers");
    if pod.spec.containers.is_empty() {
        errors.required(&list, "");
        return;
    }
    for (i, c) in pod.spec.containers.iter().enumerate() {
        let at = list.index(i);
        container(c, pod, &at, errors);
        unique(&mut names, &c.name, &at, errors);
        probes(c, pod.spec.termination_grace_period_seconds, &at, errors);
        if let Some(policy) = &c.restart_policy {
            one_of(policy, &["Always", "Never", "OnFailure"], &at.child("restartPolicy"), errors);
        }
    }
    for (i, c) in init.iter().enumerate() {
        let at = at_init.index(i);
        container(c, pod, &at, errors);
        unique(&mut names, &c.name, &at, errors);
        let sidecar = c.restart_policy.as_deref() == Some("Always");
        if let Some(policy) = &c.restart_policy {
            one_of(policy, &["Always", "Never", "OnFailure"], &at.child("restartPolicy"), errors);
        }
        if sidecar {
            probes(c, pod.spec.termination_grace_period_seconds, &at, errors);
        } else {
            for (name, set) in [
                ("lifecycle", c.lifecycle.is_some()),
                ("livenessProbe", c.liveness_probe.is_some()),
                ("readinessProbe", c.readiness_probe.is_some()),
                ("startupProbe", c.startup_probe.is_some()),
            ] {
                if set {
                    errors.forbidden(
                        &at.child(name),
                        "may not be set for init containers without restartPolicy=Always",
                    );
                }
            }
        }
    }
    host_port_conflicts(pod.spec, &list, errors);
}

/// Containers that are added to a running pod for debugging: few of the rules of others hold, and some of their own.
pub fn ephemeral(pod: &Pod<'_>, at: &FieldPath, errors: &mut FieldErrors) {
    let mut names: BTreeSet<String> = pod
        .spec
        .containers
        .iter()
        .chain(pod.spec.init_containers.iter().flatten())
        .map(|c| c.name.clone())
        .collect();
    for (i, e) in pod.spec.ephemeral_containers.iter().flatten().enumerate() {
        let at = at.child("ephemeralContainers").index(i);
        let c = as_container(e);
        container(&c, pod, &at, errors);
        unique(&mut names, &c.name, &at, errors);
        if let Some(target) = e.target_container_name.as_deref().filter(|t| !t.is_empty())
            && !pod
                .spec
                .containers
                .iter()
                .chain(pod.spec.init_containers.iter().flatten())
                .any(|c| c.name == target)
        {
            errors.not_found(&at.child("targetContainerName"), target);
        }
        for (name, set) in [
            ("ports", c.ports.as_ref().is_some_and(|p| !p.is_empty())),
            ("livenessProbe", c.liveness_probe.is_some()),
            ("readinessProbe", c.readiness_probe.is_some()),
            ("startupProbe", c.startup_probe.is_some()),
            ("lifecycle", c.lifecycle.is_some()),
            ("resources", c.resources.as_ref().is_some_and(|r| *r != ResourceRequirements::default())),
            ("resizePolicy", c.resize_policy.as_ref().is_some_and(|p| !p.is_empty())),
            ("restartPolicy", c.restart_policy.is_some()),
        ] {
            if set {
                errors.forbidden(&at.child(name), "cannot be set for an Ephemeral Container");
            }
        }
        for (j, mount) in c.volume_mounts.iter().flatten().enumerate() {
            for (name, path) in [("subPath", &mount.sub_path), ("subPathExpr", &mount.sub_path_expr)] {
                if path.as_deref().is_some_and(|p| !p.is_empty()) {
                    errors.forbidden(
                        &at.child("volumeMounts").index(j).child(name),
                        "cannot be set for an Ephemeral Container",
                    );
                }
            }
        }
    }
}

fn as_container(e: &k8s_openapi::api::core::v1::EphemeralContainer) -> Container {
    let e = e.clone();
    Container {
        args: e.args,
        command: e.command,
        env: e.env,
        env_from: e.env_from,
        image: e.image,
        image_pull_policy: e.image_pull_policy,
        lifecycle: e.lifecycle,
        liveness_probe: e.liveness_probe,
        name: e.name,
        ports: e.ports,
        readiness_probe: e.readiness_probe,
        resize_policy: e.resize_policy,
        resources: e.resources,
        restart_policy: e.restart_policy,
        restart_policy_rules: e.restart_policy_rules,
        security_context: e.security_context,
        startup_probe: e.startup_probe,
        stdin: e.stdin,
        stdin_once: e.stdin_once,
        termination_message_path: e.termination_message_path,
        termination_message_policy: e.termination_message_policy,
        tty: e.tty,
        volume_devices: e.volume_devices,
        volume_mounts: e.volume_mounts,
        working_dir: e.working_dir,
    }
}

fn unique(names: &mut BTreeSet<String>, name: &str, at: &FieldPath, errors: &mut FieldErrors) {
    if !name.is_empty() && !names.insert(name.to_owned()) {
        errors.duplicate(&at.child("name"), name);
    }
}

fn container(c: &Container, pod: &Pod<'_>, at: &FieldPath, errors: &mut FieldErrors) {
    if c.name.is_empty() {
        errors.required(&at.child("name"), "");
    } else {
        dns_label(&c.name, &at.child("name"), errors);
    }
    let image = c.image.as_deref().unwrap_or_default();
    if image.is_empty() {
        errors.required(&at.child("image"), "");
    } else if image.trim() != image {
        errors.invalid(&at.child("image"), image, "must not have leading or trailing whitespace");
    }
    if let Some(policy) = &c.termination_message_policy {
        one_of(policy, &["FallbackToLogsOnError", "File"], &at.child("terminationMessagePolicy"), errors);
    }
    ports(c, pod, &at.child("ports"), errors);
    for (i, variable) in c.env.iter().flatten().enumerate() {
        env(variable, &at.child("env").index(i), errors);
    }
    env_from(c, &at.child("envFrom"), errors);
    mounts(c, pod, &at.child("volumeMounts"), errors);
    devices(c, pod, &at.child("volumeDevices"), errors);
    if let Some(policy) = &c.image_pull_policy {
        one_of(policy, &["Always", "IfNotPresent", "Never"], &at.child("imagePullPolicy"), errors);
    }
    if let Some(r) = &c.resources {
        requirements(r, &pod.claims, &at.child("resources"), errors);
    }
    for (i, rule) in c.resize_policy.iter().flatten().enumerate() {
        let at = at.child("resizePolicy").index(i);
        one_of(&rule.resource_name, &["cpu", "memory"], &at.child("resourceName"), errors);
        one_of(
            &rule.restart_policy,
            &["NotRequired", "RestartContainer"],
            &at.child("restartPolicy"),
            errors,
        );
    }
    if let Some(context) = &c.security_context {
        container_context(context, pod.spec.host_users == Some(false), &at.child("securityContext"), errors);
    }
}

fn ports(c: &Container, pod: &Pod<'_>, at: &FieldPath, errors: &mut FieldErrors) {
    let host_network = pod.spec.host_network == Some(true);
    let mut names = BTreeSet::new();
    for (i, p) in c.ports.iter().flatten().enumerate() {
        let at = at.index(i);
        if let Some(name) = p.name.as_deref().filter(|n| !n.is_empty()) {
            let wrong = port_name(name);
            if wrong.is_empty() {
                if !names.insert(name) {
                    errors.duplicate(&at.child("name"), name);
                }
            } else {
                each(wrong, name, &at.child("name"), errors);
            }
        }
        if p.container_port == 0 {
            errors.required(&at.child("containerPort"), "");
        } else {
            port(p.container_port, &at.child("containerPort"), errors);
        }
        let host = p.host_port.unwrap_or(0);
        if host != 0 {
            port(host, &at.child("hostPort"), errors);
            if host_network && host != p.container_port {
                errors.invalid(
                    &at.child("hostPort"),
                    host,
                    "must match `containerPort` when `hostNetwork` is true",
                );
            }
        }
        match p.protocol.as_deref().unwrap_or_default() {
            "" => errors.required(&at.child("protocol"), ""),
            protocol => one_of(protocol, &["SCTP", "TCP", "UDP"], &at.child("protocol"), errors),
        }
    }
}

/// One port of the host is taken by one container at most.
fn host_port_conflicts(spec: &PodSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let mut taken = BTreeSet::new();
    for (i, c) in spec.containers.iter().enumerate() {
        for (j, p) in c.ports.iter().flatten().enumerate() {
            let host = p.host_port.unwrap_or(0);
            let protocol = p.protocol.as_deref().unwrap_or("TCP");
            let ip = p.host_ip.as_deref().unwrap_or_default();
            if host != 0 && !taken.insert((host, protocol, ip)) {
                let shown = format!("{protocol}/{ip}/{host}");
                errors.duplicate(&at.index(i).child("ports").index(j).child("hostPort"), shown);
            }
        }
    }
}

fn env(variable: &EnvVar, at: &FieldPath, errors: &mut FieldErrors) {
    if variable.name.is_empty() {
        errors.required(&at.child("name"), "");
    } else {
        each(env_name(&variable.name), &variable.name, &at.child("name"), errors);
    }
    let Some(source) = &variable.value_from else { return };
    let at = at.child("valueFrom");
    let value = variable.value.as_deref().unwrap_or_default();
    let before = errors.len();
    let given = env_source(source, &at, errors);
    if given == 0 {
        errors.invalid(
            &at,
            "",
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, \
                        `secretKeyRef` or `fileKeyRef`",
        );
    } else if !value.is_empty() {
        errors.invalid(&at, "", "may not be specified when `value` is not empty");
    } else if given > 1 && errors.len() == before {
        errors.invalid(&at, "", "may not have more than one field specified at a time");
    }
}

fn env_source(source: &EnvVarSource, at: &FieldPath, errors: &mut FieldErrors) -> usize {
    let mut given = 0;
    if let Some(f) = &source.field_ref {
        given += 1;
        let path = at.child("fieldRef");
        field_ref(
            f.field_path.as_str(),
            &[
                "metadata.name",
                "metadata.namespace",
                "metadata.uid",
                "spec.nodeName",
                "spec.serviceAccountName",
                "status.hostIP",
                "status.hostIPs",
                "status.podIP",
                "status.podIPs",
            ],
            &path.child("fieldPath"),
            errors,
        );
    }
    if let Some(r) = &source.resource_field_ref {
        given += 1;
        resource_field(&r.resource, &at.child("resourceFieldRef").child("resource"), errors);
    }
    if let Some(r) = &source.config_map_key_ref {
        given += 1;
        key_ref(&r.name, &r.key, &at.child("configMapKeyRef"), errors);
    }
    if let Some(r) = &source.secret_key_ref {
        given += 1;
        key_ref(&r.name, &r.key, &at.child("secretKeyRef"), errors);
    }
    if let Some(r) = &source.file_key_ref {
        given += 1;
        let at = at.child("fileKeyRef");
        if r.key.is_empty() {
            errors.required(&at.child("key"), "");
        }
        if r.volume_name.is_empty() {
            errors.required(&at.child("volumeName"), "");
        }
        if r.path.is_empty() {
            errors.required(&at.child("path"), "");
        } else {
            local_path(&r.path, &at.child("path"), errors);
        }
    }
    given
}

fn key_ref(name: &str, key: &str, at: &FieldPath, errors: &mut FieldErrors) {
    if name.is_empty() {
        errors.required(&at.child("name"), "");
    }
    if key.is_empty() {
        errors.required(&at.child("key"), "");
    } else {
        each(config_key(key), key, &at.child("key"), errors);
    }
}

/// A field of the pod that a container or a file may be told.
pub fn field_ref(path: &str, allowed: &[&str], at: &FieldPath, errors: &mut FieldErrors) {
    if path.is_empty() {
        errors.required(at, "");
        return;
    }
    if let Some((map, key)) = path.strip_suffix(']').and_then(|p| p.split_once("['")) {
        let key = key.strip_suffix('\'').unwrap_or(key);
        match map {
            "metadata.annotations" => label_name(&key.to_lowercase(), at, errors),
            "metadata.labels" => label_name(key, at, errors),
            _ => errors.invalid(at, path, "does not support subscript"),
        }
        return;
    }
    const KNOWN: &[&str] = &[
        "metadata.annotations",
        "metadata.labels",
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.serviceAccountName",
        "spec.schedulerName",
        "status.phase",
        "status.hostIP",
        "status.hostIPs",
        "status.podIP",
        "status.podIPs",
    ];
    if !KNOWN.contains(&path) {
        errors.invalid(at, path, format!("error converting fieldPath: field label not supported: {path}"));
    } else if !allowed.contains(&path) {
        errors.not_supported(at, path, allowed);
    }
}

/// A resource that a container or a file may be told the amount of.
pub fn resource_field(resource: &str, at: &FieldPath, errors: &mut FieldErrors) {
    const NAMES: &[&str] = &[
        "limits.cpu",
        "limits.ephemeral-storage",
        "limits.memory",
        "requests.cpu",
        "requests.ephemeral-storage",
        "requests.memory",
    ];
    if resource.is_empty() {
        errors.required(at, "");
    } else if !resource.starts_with("limits.hugepages-") && !resource.starts_with("requests.hugepages-") {
        one_of(resource, NAMES, at, errors);
    }
}

fn env_from(c: &Container, at: &FieldPath, errors: &mut FieldErrors) {
    for (i, source) in c.env_from.iter().flatten().enumerate() {
        let at = at.index(i);
        if let Some(prefix) = source.prefix.as_deref().filter(|p| !p.is_empty()) {
            each(env_name(prefix), prefix, &at.child("prefix"), errors);
        }
        let mut given = 0;
        if let Some(r) = &source.config_map_ref {
            given += 1;
            if r.name.is_empty() {
                errors.required(&at.child("configMapRef").child("name"), "");
            }
        }
        if let Some(r) = &source.secret_ref {
            given += 1;
            if r.name.is_empty() {
                errors.required(&at.child("secretRef").child("name"), "");
            }
        }
        if given == 0 {
            errors.invalid(&at, "", "must specify one of: `configMapRef` or `secretRef`");
        } else if given > 1 {
            errors.invalid(&at, "", "may not have more than one field specified at a time");
        }
    }
}

/// Any printable ASCII but `=`.
fn env_name(name: &str) -> Vec<String> {
    if name.bytes().all(|c| (b' '..=b'~').contains(&c) && c != b'=') {
        return Vec::new();
    }
    vec![
        "a valid environment variable name must consist only of printable ASCII characters other than '='"
            .to_owned(),
    ]
}

fn mounts(c: &Container, pod: &Pod<'_>, at: &FieldPath, errors: &mut FieldErrors) {
    let mut paths = BTreeSet::new();
    let devices: BTreeMap<&str, &str> =
        c.volume_devices.iter().flatten().map(|d| (d.name.as_str(), d.device_path.as_str())).collect();
    for (i, m) in c.volume_mounts.iter().flatten().enumerate() {
        let at_mount = at.index(i);
        if m.name.is_empty() {
            errors.required(&at_mount.child("name"), "");
        }
        if m.mount_path.is_empty() {
            errors.required(&at_mount.child("mountPath"), "");
        }
        if !pod.volumes.contains(m.name.as_str()) {
            errors.not_found(&at_mount.child("name"), &m.name);
        }
        if !paths.insert(m.mount_path.as_str()) {
            errors.invalid(&at_mount.child("mountPath"), &m.mount_path, "must be unique");
        }
        if devices.contains_key(m.name.as_str()) {
            errors.invalid(&at_mount.child("name"), &m.name, "must not already exist in volumeDevices");
        }
        if devices.values().any(|path| *path == m.mount_path) {
            errors.invalid(
                &at_mount.child("mountPath"),
                &m.mount_path,
                "must not already exist as a path in volumeDevices",
            );
        }
        let (path, expression) =
            (m.sub_path.as_deref().unwrap_or_default(), m.sub_path_expr.as_deref().unwrap_or_default());
        // Upstream names the list here, without the place in it.
        if !path.is_empty() {
            local_path(path, &at.child("subPath"), errors);
        }
        if !expression.is_empty() {
            if !path.is_empty() {
                errors.invalid(
                    &at_mount.child("subPathExpr"),
                    expression,
                    "subPathExpr and subPath are mutually exclusive",
                );
            }
            local_path(expression, &at.child("subPathExpr"), errors);
        }
        propagation(m, c, &at_mount, errors);
    }
}

fn propagation(m: &VolumeMount, c: &Container, at: &FieldPath, errors: &mut FieldErrors) {
    if let Some(mode) = &m.mount_propagation {
        let privileged = c.security_context.as_ref().and_then(|s| s.privileged) == Some(true);
        one_of(mode, &["Bidirectional", "HostToContainer", "None"], &at.child("mountPropagation"), errors);
        if mode == "Bidirectional" && !privileged {
            errors.forbidden(
                &at.child("mountPropagation"),
                "Bidirectional mount propagation is available only to privileged containers",
            );
        }
    }
    if let Some(mode) = &m.recursive_read_only {
        let at = at.child("recursiveReadOnly");
        one_of(mode, &["Disabled", "Enabled", "IfPossible"], &at, errors);
        if mode != "Disabled" {
            if m.read_only != Some(true) {
                errors.forbidden(&at, "may only be specified when readOnly is true");
            }
            if m.mount_propagation.as_deref().is_some_and(|p| p != "None") {
                errors.forbidden(&at, "may only be specified when mountPropagation is None or not specified");
            }
        }
    }
}

fn devices(c: &Container, pod: &Pod<'_>, at: &FieldPath, errors: &mut FieldErrors) {
    let (mut names, mut paths) = (BTreeSet::new(), BTreeSet::new());
    for (i, d) in c.volume_devices.iter().flatten().enumerate() {
        let at = at.index(i);
        if d.name.is_empty() {
            errors.required(&at.child("name"), "");
        }
        if d.device_path.is_empty() {
            errors.required(&at.child("devicePath"), "");
        }
        if !names.insert(&d.name) {
            errors.invalid(&at.child("name"), &d.name, "must be unique");
        }
        if !pod.volumes.contains(d.name.as_str()) {
            errors.not_found(&at.child("name"), &d.name);
        }
        if !d.device_path.is_empty() && !paths.insert(&d.device_path) {
            errors.invalid(&at.child("devicePath"), &d.device_path, "must be unique");
        }
    }
}
