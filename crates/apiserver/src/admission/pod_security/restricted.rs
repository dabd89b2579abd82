//! The checks of the restricted level: what a hardened pod must say of itself.

use k8s_openapi::api::core::v1::Volume;

use super::baseline::{adds, any_proc_mount, bad_seccomp};
use super::checks::{Names, Violation, containers, plural, quoted, setters, violation};
use super::view::View;

pub fn allow_privilege_escalation(pod: &View<'_>, version: u32) -> Option<Violation> {
    if version >= 25 && pod.is_windows() {
        return None;
    }
    let names = pod.named(|c| c.security.and_then(|s| s.allow_privilege_escalation) != Some(false));
    if names.is_empty() {
        return None;
    }
    let detail = format!("{} must set securityContext.allowPrivilegeEscalation=false", containers(&names));
    violation("allowPrivilegeEscalation != false", detail)
}

pub fn capabilities(pod: &View<'_>, version: u32) -> Option<Violation> {
    if version >= 25 && pod.is_windows() {
        return None;
    }
    let keeps = pod.named(|c| {
        let dropped = c.security.and_then(|s| s.capabilities.as_ref()).and_then(|c| c.drop.as_ref());
        !dropped.is_some_and(|list| list.iter().any(|name| name == "ALL"))
    });
    let (adding, added) = adds(pod, &["NET_BIND_SERVICE"]);
    let mut details = Vec::new();
    if !keeps.is_empty() {
        details.push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", containers(&keeps)));
    }
    if !adding.is_empty() {
        details.push(format!(
            "{} must not include {} in securityContext.capabilities.add",
            containers(&adding),
            quoted(added)
        ));
    }
    if details.is_empty() { None } else { violation("unrestricted capabilities", details.join("; ")) }
}

pub fn proc_mount(pod: &View<'_>, _: u32) -> Option<Violation> {
    any_proc_mount(pod)
}

/// The kind of a volume that is not of the restricted level; `None` for one that is.
fn forbidden_volume(v: &Volume) -> Option<&'static str> {
    let allowed = v.config_map.is_some()
        || v.csi.is_some()
        || v.downward_api.is_some()
        || v.empty_dir.is_some()
        || v.ephemeral.is_some()
        || v.image.is_some()
        || v.persistent_volume_claim.is_some()
        || v.projected.is_some()
        || v.secret.is_some();
    if allowed {
        return None;
    }
    let kinds = [
        (v.host_path.is_some(), "hostPath"),
        (v.gce_persistent_disk.is_some(), "gcePersistentDisk"),
        (v.aws_elastic_block_store.is_some(), "awsElasticBlockStore"),
        (v.git_repo.is_some(), "gitRepo"),
        (v.nfs.is_some(), "nfs"),
        (v.iscsi.is_some(), "iscsi"),
        (v.glusterfs.is_some(), "glusterfs"),
        (v.rbd.is_some(), "rbd"),
        (v.flex_volume.is_some(), "flexVolume"),
        (v.cinder.is_some(), "cinder"),
        (v.cephfs.is_some(), "cephfs"),
        (v.flocker.is_some(), "flocker"),
        (v.fc.is_some(), "fc"),
        (v.azure_file.is_some(), "azureFile"),
        (v.vsphere_volume.is_some(), "vsphereVolume"),
        (v.quobyte.is_some(), "quobyte"),
        (v.azure_disk.is_some(), "azureDisk"),
        (v.photon_persistent_disk.is_some(), "photonPersistentDisk"),
        (v.portworx_volume.is_some(), "portworxVolume"),
        (v.scale_io.is_some(), "scaleIO"),
        (v.storageos.is_some(), "storageos"),
    ];
    Some(kinds.into_iter().find(|(is, _)| *is).map_or("unknown", |(_, name)| name))
}

pub fn volumes(pod: &View<'_>, _: u32) -> Option<Violation> {
    let bad: Vec<(&str, &str)> = pod
        .spec
        .volumes
        .iter()
        .flatten()
        .filter_map(|v| Some((v.name.as_str(), forbidden_volume(v)?)))
        .collect();
    if bad.is_empty() {
        return None;
    }
    let kinds: Names<'_> = bad.iter().map(|(_, kind)| *kind).collect();
    let detail = format!(
        "{} {} {} {} {}",
        plural("volume", "volumes", bad.len()),
        quoted(bad.iter().map(|(name, _)| *name)),
        plural("uses", "use", bad.len()),
        plural("restricted volume type", "restricted volume types", kinds.len()),
        quoted(kinds)
    );
    violation("restricted volume types", detail)
}

pub fn run_as_non_root(pod: &View<'_>, version: u32) -> Option<Violation> {
    if version >= 35 && pod.has_own_users() {
        return None;
    }
    let of_pod = pod.security().and_then(|s| s.run_as_non_root);
    let of = |c: &super::view::Container<'_>| c.security.and_then(|s| s.run_as_non_root);
    let who = setters(of_pod == Some(false), &pod.named(|c| of(c) == Some(false)));
    if !who.is_empty() {
        let detail = format!("{who} must not set securityContext.runAsNonRoot=false");
        return violation("runAsNonRoot != true", detail);
    }
    let silent = pod.named(|c| of(c).is_none() && of_pod != Some(true));
    if silent.is_empty() {
        return None;
    }
    let detail = format!("pod or {} must set securityContext.runAsNonRoot=true", containers(&silent));
    violation("runAsNonRoot != true", detail)
}

pub fn run_as_user(pod: &View<'_>, version: u32) -> Option<Violation> {
    if version >= 35 && pod.has_own_users() {
        return None;
    }
    let of_pod = pod.security().and_then(|s| s.run_as_user) == Some(0);
    let who = setters(of_pod, &pod.named(|c| c.security.and_then(|s| s.run_as_user) == Some(0)));
    if who.is_empty() { None } else { violation("runAsUser=0", format!("{who} must not set runAsUser=0")) }
}

pub fn seccomp(pod: &View<'_>, version: u32) -> Option<Violation> {
    if version >= 25 && pod.is_windows() {
        return None;
    }
    let (bad_pod, names, values) = bad_seccomp(pod);
    let who = setters(bad_pod, &names);
    if !who.is_empty() {
        let values = quoted(values);
        let detail = format!("{who} must not set securityContext.seccompProfile.type to {values}");
        return violation("seccompProfile", detail);
    }
    let of_pod = pod.security().is_some_and(|s| s.seccomp_profile.is_some());
    let silent = pod.named(|c| !of_pod && c.security.is_none_or(|s| s.seccomp_profile.is_none()));
    if silent.is_empty() {
        return None;
    }
    let detail = format!(
        "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
        containers(&silent)
    );
    violation("seccompProfile", detail)
}
