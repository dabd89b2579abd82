//! Security contexts, as the runtime is told them.

use std::path::Path;

use k8s_cri::v1::security_profile::ProfileType;
use k8s_cri::v1::{
    Capability, Image, Int64Value, LinuxContainerSecurityContext, LinuxSandboxSecurityContext, NamespaceMode,
    NamespaceOption, SecurityProfile, SupplementalGroupsPolicy, UserNamespace,
};
use k8s_openapi::api::core::v1::{
    AppArmorProfile, Container, Pod, PodSecurityContext, PodSpec, SeccompProfile, SecurityContext,
};

/// What containers must not see of `/proc` and `/sys` (`procMount: Default`).
const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// What they must not write.
const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

fn mode(host: bool) -> i32 {
    (if host { NamespaceMode::Node } else { NamespaceMode::Pod }) as i32
}

fn namespaces(spec: &PodSpec, users: Option<&UserNamespace>) -> NamespaceOption {
    let pid = if spec.host_pid == Some(true) {
        NamespaceMode::Node
    } else if spec.share_process_namespace == Some(true) {
        NamespaceMode::Pod
    } else {
        NamespaceMode::Container
    };
    NamespaceOption {
        network: mode(spec.host_network == Some(true)),
        ipc: mode(spec.host_ipc == Some(true)),
        pid: pid as i32,
        userns_options: users.cloned(),
        ..Default::default()
    }
}

/// Profiles of the node's lie in `seccomp` below the kubelet's own directory, and the runtime is told the whole path.
fn seccomp(
    profile: Option<&SeccompProfile>,
    privileged: bool,
    root: &Path,
    is_default: bool,
) -> SecurityProfile {
    let (kind, localhost_ref) = match profile {
        _ if privileged => (ProfileType::Unconfined, String::new()),
        None if is_default => (ProfileType::RuntimeDefault, String::new()),
        Some(p) if p.type_ == "RuntimeDefault" => (ProfileType::RuntimeDefault, String::new()),
        Some(p) if p.type_ == "Localhost" => {
            let path = root.join("seccomp").join(p.localhost_profile.as_deref().unwrap_or_default());
            (ProfileType::Localhost, path.display().to_string())
        }
        _ => (ProfileType::Unconfined, String::new()),
    };
    SecurityProfile { profile_type: kind as i32, localhost_ref }
}

fn apparmor(profile: &AppArmorProfile) -> SecurityProfile {
    let kind = match profile.type_.as_str() {
        "Localhost" => ProfileType::Localhost,
        "Unconfined" => ProfileType::Unconfined,
        _ => ProfileType::RuntimeDefault,
    };
    SecurityProfile {
        profile_type: kind as i32,
        localhost_ref: profile.localhost_profile.clone().unwrap_or_default(),
    }
}

fn int(value: Option<i64>) -> Option<Int64Value> {
    value.map(|value| Int64Value { value })
}

fn groups(pod: &PodSecurityContext) -> Vec<i64> {
    pod.fs_group.into_iter().chain(pod.supplemental_groups.iter().flatten().copied()).collect()
}

fn groups_policy(pod: &PodSecurityContext) -> i32 {
    (match pod.supplemental_groups_policy.as_deref() {
        Some("Strict") => SupplementalGroupsPolicy::Strict,
        _ => SupplementalGroupsPolicy::Merge,
    }) as i32
}

/// `users`: the namespace of the pod's users.
pub fn sandbox(pod: &Pod, users: &UserNamespace) -> LinuxSandboxSecurityContext {
    let default = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default);
    let of_pod = spec.security_context.clone().unwrap_or_default();
    let privileged = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .any(|c| c.security_context.as_ref().is_some_and(|s| s.privileged == Some(true)));
    LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(spec, Some(users))),
        run_as_user: int(of_pod.run_as_user),
        run_as_group: int(of_pod.run_as_group),
        supplemental_groups: groups(&of_pod),
        supplemental_groups_policy: groups_policy(&of_pod),
        privileged,
        seccomp: Some(SecurityProfile {
            profile_type: ProfileType::RuntimeDefault as i32,
            localhost_ref: String::new(),
        }),
        ..Default::default()
    }
}

/// What a container runs as: its own context, over its pod's, over its image's user.
/// `users` is the namespace of the pod's users. `root` is the kubelet's own directory; with `seccomp_default`, who says nothing of it has the runtime's own filter.
pub fn container(
    pod: &Pod,
    container: &Container,
    image: &Image,
    root: &Path,
    seccomp_default: bool,
    users: Option<&UserNamespace>,
) -> LinuxContainerSecurityContext {
    let default = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default);
    let of_pod = spec.security_context.clone().unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let privileged = own.privileged == Some(true);
    let asked = own.run_as_user.or(of_pod.run_as_user);
    let user = asked.or_else(|| image.uid.as_ref().map(|uid| uid.value));
    let unmasked = own.proc_mount.as_deref() == Some("Unmasked") || privileged;
    let paths =
        |all: &[&str]| if unmasked { Vec::new() } else { all.iter().map(|&p| p.to_owned()).collect() };
    let apparmor_profile = own.app_armor_profile.as_ref().or(of_pod.app_armor_profile.as_ref());
    LinuxContainerSecurityContext {
        capabilities: own.capabilities.as_ref().map(|c| Capability {
            add_capabilities: c.add.clone().unwrap_or_default(),
            drop_capabilities: c.drop.clone().unwrap_or_default(),
            ..Default::default()
        }),
        privileged,
        namespace_options: Some(namespaces(spec, users)),
        run_as_user: int(user),
        run_as_username: if user.is_none() { image.username.clone() } else { String::new() },
        run_as_group: int(own.run_as_group.or(of_pod.run_as_group)),
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        supplemental_groups: groups(&of_pod),
        supplemental_groups_policy: groups_policy(&of_pod),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: paths(&MASKED),
        readonly_paths: paths(&READONLY),
        seccomp: Some(seccomp(
            own.seccomp_profile.as_ref().or(of_pod.seccomp_profile.as_ref()),
            privileged,
            root,
            seccomp_default,
        )),
        apparmor: apparmor_profile.map(apparmor),
        ..Default::default()
    }
}

/// Whether a container that must not run as root would.
///
/// # Errors
/// Upstream's message.
pub fn verify_not_root(pod: &Pod, container: &Container, image: &Image) -> Result<(), String> {
    let of_pod = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let own: SecurityContext = container.security_context.clone().unwrap_or_default();
    let must = own.run_as_non_root.or(of_pod.and_then(|p| p.run_as_non_root)) == Some(true);
    if !must {
        return Ok(());
    }
    let who = format!("(pod: {:?}, container: {})", crate::names::full(pod), container.name);
    match own.run_as_user.or(of_pod.and_then(|p| p.run_as_user)) {
        Some(0) => Err(format!("container's runAsUser breaks non-root policy {who}")),
        Some(_) => Ok(()),
        None => match (&image.uid, image.username.as_str()) {
            (Some(uid), _) if uid.value != 0 => Ok(()),
            (Some(_), _) => Err(format!("container has runAsNonRoot and image will run as root {who}")),
            (None, "") => Err(format!("container has runAsNonRoot and image will run as root {who}")),
            (None, name) => Err(format!(
                "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root {who}"
            )),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(pod_context: Value, context: Value) -> (Pod, Container) {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"securityContext": pod_context, "containers": [{"name": "c", "securityContext": context}]}}))
        .unwrap();
        let container = pod.spec.as_ref().unwrap().containers[0].clone();
        (pod, container)
    }

    fn image(uid: Option<i64>, username: &str) -> Image {
        Image { uid: int(uid), username: username.into(), ..Default::default() }
    }

    #[test]
    fn root_is_refused_where_it_must_not_be() {
        let must = json!({"runAsNonRoot": true});
        for (context, uid, name, said) in [
            (json!({}), Some(0), "", "image will run as root"),
            (json!({}), None, "", "image will run as root"),
            (json!({}), Some(7), "", ""),
            (json!({}), None, "web", "non-numeric user (web)"),
            (json!({"runAsUser": 0}), Some(7), "", "breaks non-root policy"),
            (json!({"runAsUser": 5}), Some(0), "", ""),
            (json!({"runAsNonRoot": false}), Some(0), "", ""),
        ] {
            let (pod, container) = pod(must.clone(), context);
            match verify_not_root(&pod, &container, &image(uid, name)) {
                Ok(()) => assert_eq!(said, ""),
                Err(error) => assert!(!said.is_empty() && error.contains(said), "{error}"),
            }
        }
    }

    #[test]
    fn a_containers_own_context_wins() {
        let (pod, container) = pod(
            json!({"runAsUser": 1, "fsGroup": 9, "supplementalGroups": [8], "seccompProfile": {"type": "RuntimeDefault"}}),
            json!({"runAsUser": 2, "allowPrivilegeEscalation": false, "capabilities": {"add": ["NET_ADMIN"]}}),
        );
        let told = super::container(&pod, &container, &image(Some(0), ""), Path::new("/k"), false, None);
        assert_eq!(told.run_as_user.unwrap().value, 2);
        assert_eq!(told.supplemental_groups, [9, 8]);
        assert!(told.no_new_privs && !told.privileged && !told.masked_paths.is_empty());
        assert_eq!(told.seccomp.unwrap().profile_type, ProfileType::RuntimeDefault as i32);
        assert_eq!(told.capabilities.unwrap().add_capabilities, ["NET_ADMIN"]);
        let (pod, container) = self::pod(
            json!({}),
            json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "p/audit.json"}}),
        );
        let told = super::container(&pod, &container, &image(None, ""), Path::new("/k"), false, None)
            .seccomp
            .unwrap();
        assert_eq!(told.localhost_ref, "/k/seccomp/p/audit.json");
        let (pod, container) = self::pod(json!({}), json!({}));
        for (is_default, kind) in [(false, ProfileType::Unconfined), (true, ProfileType::RuntimeDefault)] {
            let told =
                super::container(&pod, &container, &image(None, ""), Path::new("/k"), is_default, None);
            assert_eq!(told.seccomp.unwrap().profile_type(), kind);
        }
    }
}
