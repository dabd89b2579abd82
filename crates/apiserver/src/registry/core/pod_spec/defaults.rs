//! What upstream fills into a pod's spec, wherever it stands (`pkg/apis/core/v1/defaults.go`).

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, EmptyDirVolumeSource, EnvVar, EphemeralContainer, HTTPGetAction, Lifecycle,
    ObjectFieldSelector, PersistentVolumeClaimSpec, PodSpec, PodTemplateSpec, Probe, Volume,
};

use super::pod_level::default_resources;

fn or<T>(field: &mut Option<T>, value: impl Into<T>) {
    if field.is_none() {
        *field = Some(value.into());
    }
}

/// For strings, unset and empty are the same.
fn or_text(field: &mut Option<String>, value: &str) {
    if field.as_deref().is_none_or(str::is_empty) {
        *field = Some(value.to_owned());
    }
}

/// For numbers that are not pointers upstream, unset and 0 are the same.
fn or_number(field: &mut Option<i32>, value: i32) {
    if field.unwrap_or(0) == 0 {
        *field = Some(value);
    }
}

pub fn template(template: &mut PodTemplateSpec) {
    template.metadata.get_or_insert_default();
    spec(template.spec.get_or_insert_default());
}

pub fn spec(spec: &mut PodSpec) {
    or_text(&mut spec.dns_policy, "ClusterFirst");
    or_text(&mut spec.restart_policy, "Always");
    or(&mut spec.security_context, k8s_openapi::api::core::v1::PodSecurityContext::default());
    or(&mut spec.termination_grace_period_seconds, 30);
    or_text(&mut spec.scheduler_name, "default-scheduler");
    // The older name of the account is kept in step, so that either may be read.
    if spec.service_account_name.as_deref().is_none_or(str::is_empty) {
        spec.service_account_name = spec.service_account.clone().filter(|s| !s.is_empty());
    }
    spec.service_account.clone_from(&spec.service_account_name);
    for c in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        container(c);
    }
    for c in spec.ephemeral_containers.iter_mut().flatten() {
        ephemeral(c);
    }
    for v in spec.volumes.iter_mut().flatten() {
        volume(v);
    }
}

/// What is filled in for a pod, and not for a template of one.
pub fn pod_only(spec: &mut PodSpec) {
    for c in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        if let Some(resources) = &mut c.resources
            && let Some(limits) = &resources.limits
        {
            let requests = resources.requests.get_or_insert_default();
            for (name, limit) in limits {
                requests.entry(name.clone()).or_insert_with(|| limit.clone());
            }
        }
    }
    default_resources(spec);
    or(&mut spec.enable_service_links, true);
    if spec.host_network == Some(true) {
        for c in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
            for port in c.ports.iter_mut().flatten() {
                // With the host's network, a container's ports are the host's.
                or_number(&mut port.host_port, port.container_port);
            }
        }
    }
}

fn container(c: &mut Container) {
    pull_policy(&mut c.image_pull_policy, c.image.as_deref().unwrap_or_default());
    or_text(&mut c.termination_message_path, "/dev/termination-log");
    or_text(&mut c.termination_message_policy, "File");
    ports(c.ports.iter_mut().flatten());
    env(c.env.iter_mut().flatten());
    c.lifecycle.iter_mut().for_each(lifecycle);
    c.liveness_probe.iter_mut().chain(&mut c.readiness_probe).chain(&mut c.startup_probe).for_each(probe);
}

fn ephemeral(c: &mut EphemeralContainer) {
    pull_policy(&mut c.image_pull_policy, c.image.as_deref().unwrap_or_default());
    or_text(&mut c.termination_message_path, "/dev/termination-log");
    or_text(&mut c.termination_message_policy, "File");
    ports(c.ports.iter_mut().flatten());
    env(c.env.iter_mut().flatten());
    c.lifecycle.iter_mut().for_each(lifecycle);
    c.liveness_probe.iter_mut().chain(&mut c.readiness_probe).chain(&mut c.startup_probe).for_each(probe);
}

/// `latest`, said or not, is pulled each time; a digest or another tag only when it is missing.
fn pull_policy(policy: &mut Option<String>, image: &str) {
    or_text(policy, if is_latest(image) { "Always" } else { "IfNotPresent" });
}

/// What is no name of an image at all has no tag either.
fn is_latest(image: &str) -> bool {
    let (named, is_pinned) = match image.split_once('@') {
        Some((named, digest)) if is_digest(digest) => (named, true),
        Some(_) => return false,
        None => (image, false),
    };
    let (path, last) = named.rsplit_once('/').unwrap_or(("", named));
    let (last, tag) = last.split_once(':').map_or((last, None), |(last, tag)| (last, Some(tag)));
    let is_part = |part: &str| {
        !part.is_empty() && !part.bytes().any(|c| c.is_ascii_uppercase() || c.is_ascii_whitespace())
    };
    // The first part may be a host, which may be written in capitals.
    is_part(last) && path.split('/').skip(1).all(is_part) && tag.map_or(!is_pinned, |tag| tag == "latest")
}

/// `sha256:` and so many digits.
fn is_digest(digest: &str) -> bool {
    digest
        .split_once(':')
        .is_some_and(|(_, hex)| hex.len() >= 32 && hex.bytes().all(|c| c.is_ascii_hexdigit()))
}

fn ports<'a>(ports: impl Iterator<Item = &'a mut ContainerPort>) {
    for port in ports {
        or_text(&mut port.protocol, "TCP");
    }
}

fn env<'a>(env: impl Iterator<Item = &'a mut EnvVar>) {
    for source in env.filter_map(|e| e.value_from.as_mut()) {
        source.field_ref.iter_mut().for_each(field_ref);
        if let Some(file) = &mut source.file_key_ref {
            or(&mut file.optional, false);
        }
    }
}

fn field_ref(reference: &mut ObjectFieldSelector) {
    or_text(&mut reference.api_version, "v1");
}

fn lifecycle(lifecycle: &mut Lifecycle) {
    for handler in lifecycle.post_start.iter_mut().chain(&mut lifecycle.pre_stop) {
        handler.http_get.iter_mut().for_each(http_get);
    }
}

fn http_get(action: &mut HTTPGetAction) {
    or_text(&mut action.path, "/");
    or_text(&mut action.scheme, "HTTP");
}

fn probe(probe: &mut Probe) {
    or_number(&mut probe.timeout_seconds, 1);
    or_number(&mut probe.period_seconds, 10);
    or_number(&mut probe.success_threshold, 1);
    or_number(&mut probe.failure_threshold, 3);
    probe.http_get.iter_mut().for_each(http_get);
    if let Some(grpc) = &mut probe.grpc {
        or(&mut grpc.service, "");
    }
}

const FILE_MODE: i32 = 0o644;

fn volume(v: &mut Volume) {
    if !has_source(v) {
        v.empty_dir = Some(EmptyDirVolumeSource::default());
    }
    if let Some(s) = &mut v.secret {
        or(&mut s.default_mode, FILE_MODE);
    }
    if let Some(s) = &mut v.config_map {
        or(&mut s.default_mode, FILE_MODE);
    }
    if let Some(s) = &mut v.downward_api {
        or(&mut s.default_mode, FILE_MODE);
        s.items.iter_mut().flatten().filter_map(|i| i.field_ref.as_mut()).for_each(field_ref);
    }
    if let Some(s) = &mut v.host_path {
        or(&mut s.type_, "");
    }
    if let Some(s) = &mut v.projected {
        or(&mut s.default_mode, FILE_MODE);
        for source in s.sources.iter_mut().flatten() {
            if let Some(token) = &mut source.service_account_token {
                or(&mut token.expiration_seconds, 3600);
            }
            if let Some(d) = &mut source.downward_api {
                d.items.iter_mut().flatten().filter_map(|i| i.field_ref.as_mut()).for_each(field_ref);
            }
        }
    }
    if let Some(s) = &mut v.iscsi {
        or_text(&mut s.iscsi_interface, "default");
    }
    if let Some(s) = &mut v.rbd {
        or_text(&mut s.pool, "rbd");
        or_text(&mut s.user, "admin");
        or_text(&mut s.keyring, "/etc/ceph/keyring");
    }
    if let Some(s) = &mut v.azure_disk {
        or(&mut s.caching_mode, "ReadWrite");
        or(&mut s.kind, "Shared");
        or(&mut s.fs_type, "ext4");
        or(&mut s.read_only, false);
    }
    if let Some(s) = &mut v.scale_io {
        or_text(&mut s.storage_mode, "ThinProvisioned");
        or_text(&mut s.fs_type, "xfs");
    }
    if let Some(s) = &mut v.image {
        pull_policy(&mut s.pull_policy, s.reference.as_deref().unwrap_or_default());
    }
    if let Some(spec) =
        v.ephemeral.as_mut().and_then(|e| e.volume_claim_template.as_mut()).map(|t| &mut t.spec)
    {
        claim(spec);
    }
}

/// What a claim for storage says when it does not say more.
pub fn claim(spec: &mut PersistentVolumeClaimSpec) {
    or(&mut spec.volume_mode, "Filesystem");
}

pub(super) fn has_source(v: &Volume) -> bool {
    let mut bare = v.clone();
    bare.name.clear();
    bare != Volume::default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn an_image_without_tag_or_digest_is_the_latest() {
        let digest = "a".repeat(64);
        for (image, latest) in [
            ("busybox", true),
            ("host:5000/busybox", true),
            ("Host/busybox", true),
            ("busybox:latest", true),
            ("busybox:1", false),
            ("host:5000/busybox:1", false),
            ("busybox@sha256:aa", false),
            ("busybox:latest@sha256:aa", false),
            (&*format!("busybox@sha256:{digest}"), false),
            (&*format!("busybox:latest@sha256:{digest}"), true),
            ("", false),
            (" ", false),
            ("Busybox", false),
        ] {
            assert_eq!(is_latest(image), latest, "{image}");
        }
    }

    #[test]
    fn only_a_pod_takes_the_ports_of_its_host() {
        let spec: Value = json!({"hostNetwork": true, "containers": [
            {"name": "c", "image": "i", "ports": [{"containerPort": 80}]}]});
        let mut spec: PodSpec = serde_json::from_value(spec).expect("a spec");
        let host = |spec: &PodSpec| spec.containers[0].ports.as_ref().and_then(|ports| ports[0].host_port);
        super::spec(&mut spec);
        assert_eq!(host(&spec), None);
        pod_only(&mut spec);
        assert_eq!(host(&spec), Some(80));
    }
}
