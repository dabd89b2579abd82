//! Who a container runs as, and what it may do.

use k8s_openapi::api::core::v1::{
    AppArmorProfile, PodSecurityContext, PodSpec, SeccompProfile, SecurityContext,
};
use krate_api::field::Fault;
use krate_api::{FieldError, FieldErrors, FieldPath};
use serde::Serialize;

use super::volumes::local_path;
use super::{os, visit};
use crate::registry::rules::{in_range, one_of};

/// An id of a user or a group.
pub fn id(value: Option<i64>, at: &FieldPath, errors: &mut FieldErrors) {
    if let Some(value) = value {
        in_range(value, 0, i64::from(i32::MAX), at, errors);
    }
}

pub fn pod_context(spec: &PodSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(context) = &spec.security_context else { return };
    let at = &at.child("securityContext");
    id(context.fs_group, &at.child("fsGroup"), errors);
    id(context.run_as_user, &at.child("runAsUser"), errors);
    id(context.run_as_group, &at.child("runAsGroup"), errors);
    for (i, group) in context.supplemental_groups.iter().flatten().enumerate() {
        id(Some(*group), &at.child("supplementalGroups").index(i), errors);
    }
    sysctls(spec, context, &at.child("sysctls"), errors);
    if let Some(policy) = &context.fs_group_change_policy {
        one_of(policy, &["Always", "OnRootMismatch"], &at.child("fsGroupChangePolicy"), errors);
    }
    if let Some(policy) = &context.supplemental_groups_policy {
        one_of(policy, &["Merge", "Strict"], &at.child("supplementalGroupsPolicy"), errors);
    }
    seccomp(context.seccomp_profile.as_ref(), &at.child("seccompProfile"), errors);
    app_armor(context.app_armor_profile.as_ref(), &at.child("appArmorProfile"), errors);
    os::windows_options(context.windows_options.as_ref(), &at.child("windowsOptions"), errors);
    if spec.share_process_namespace == Some(true) && spec.host_pid == Some(true) {
        errors.invalid(
            &at.child("shareProcessNamespace"),
            true,
            "ShareProcessNamespace and HostPID cannot both be enabled",
        );
    }
}

/// Users of its own go with neither other namespaces of the host nor devices. `at` is the spec's place.
pub fn own_users(spec: &PodSpec, at: &FieldPath, errors: &mut FieldErrors) {
    const WHY: &str = "when `hostUsers` is false";
    if spec.host_users != Some(false) {
        return;
    }
    // Upstream spells two of these so.
    for (name, set) in
        [("hostNetwork", spec.host_network), ("HostPID", spec.host_pid), ("HostIPC", spec.host_ipc)]
    {
        if set == Some(true) {
            errors.forbidden(&at.child(name), WHY);
        }
    }
    for (at, c) in visit::containers(spec, at) {
        if c.volume_devices.as_ref().is_some_and(|devices| !devices.is_empty()) {
            errors.forbidden(&at.child("volumeDevices"), WHY);
        }
    }
}

fn sysctls(spec: &PodSpec, context: &PodSecurityContext, at: &FieldPath, errors: &mut FieldErrors) {
    let mut names = std::collections::BTreeSet::new();
    for (i, sysctl) in context.sysctls.iter().flatten().enumerate() {
        let at = at.index(i).child("name");
        if sysctl.name.is_empty() {
            errors.required(&at, "");
        } else if !is_sysctl(&sysctl.name) {
            errors.invalid(
                &at,
                &sysctl.name,
                r"must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$",
            );
        } else if !names.insert(&sysctl.name) {
            errors.duplicate(&at, &sysctl.name);
        }
        let name = normal(&sysctl.name);
        if spec.host_network == Some(true) && name.starts_with("net.") {
            errors.invalid(&at, &sysctl.name, "may not be specified when 'hostNetwork' is true");
        }
        if spec.host_ipc == Some(true) && (IPC.contains(&name.as_str()) || name.starts_with("fs.mqueue.")) {
            errors.invalid(&at, &sysctl.name, "may not be specified when 'hostIPC' is true");
        }
    }
}

/// What of the kernel's settings is a namespace's of IPC, besides message queues.
const IPC: [&str; 10] = [
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
    "kernel.shm",
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.msg",
];

/// A setting's name with dots, up to where it stands for several.
fn normal(name: &str) -> String {
    let dotted = match name.find(['.', '/']) {
        Some(i) if name.as_bytes()[i] == b'/' => name
            .chars()
            .map(|c| match c {
                '/' => '.',
                '.' => '/',
                c => c,
            })
            .collect(),
        _ => name.to_owned(),
    };
    dotted.split('*').next().unwrap_or_default().to_owned()
}

fn is_sysctl(name: &str) -> bool {
    let word = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.len() <= 253
        && name.split(['.', '/']).all(|part| {
            let b = part.as_bytes();
            matches!((b.first(), b.last()), (Some(&f), Some(&l)) if word(f) && word(l))
                && b.iter().all(|&c| word(c) || c == b'-' || c == b'_')
        })
}

/// A profile as upstream shows it whole: its Go fields in their order.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct GoProfile<'a> {
    r#type: &'a str,
    localhost_profile: Option<&'a str>,
}

const PROFILES: &[&str] = &["Localhost", "RuntimeDefault", "Unconfined"];

fn seccomp(profile: Option<&SeccompProfile>, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(profile) = profile else { return };
    let (kind, file) = (profile.type_.as_str(), profile.localhost_profile.as_deref());
    if kind.is_empty() {
        errors.required(&at.child("type"), "type is required when seccompProfile is set");
    } else {
        one_of(kind, PROFILES, &at.child("type"), errors);
    }
    let at = at.child("localhostProfile");
    match (kind, file) {
        ("Localhost", Some(file)) => local_path(file, &at, errors),
        ("Localhost", None) => errors.required(&at, "must be set when seccomp type is Localhost"),
        (_, Some(_)) => {
            let shown = GoProfile { r#type: kind, localhost_profile: file };
            errors.invalid(&at, shown, "can only be set when seccomp type is Localhost");
        }
        (_, None) => {}
    }
}

pub fn app_armor(profile: Option<&AppArmorProfile>, at: &FieldPath, errors: &mut FieldErrors) {
    const LONGEST: usize = 4095;
    const UNSET: &str = "must be set when AppArmor type is Localhost";
    let Some(profile) = profile else { return };
    let file = profile.localhost_profile.as_deref();
    let at_file = at.child("localhostProfile");
    match (profile.type_.as_str(), file) {
        ("", _) => errors.required(&at.child("type"), "type is required when appArmorProfile is set"),
        ("Localhost", None) => errors.required(&at_file, UNSET),
        ("Localhost", Some(file)) => {
            if file.trim() != file {
                errors.invalid(&at_file, file, "must not be padded with whitespace");
            } else if file.is_empty() {
                errors.required(&at_file, UNSET);
            }
            if file.len() > LONGEST {
                errors.too_long(&at_file, LONGEST);
            }
        }
        ("RuntimeDefault" | "Unconfined", Some(file)) => {
            errors.invalid(&at_file, file, "can only be set when AppArmor type is Localhost");
        }
        (kind, _) => one_of(kind, PROFILES, &at.child("type"), errors),
    }
}

pub fn container_context(
    c: &SecurityContext,
    user_namespace: bool,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    id(c.run_as_user, &at.child("runAsUser"), errors);
    id(c.run_as_group, &at.child("runAsGroup"), errors);
    if let Some(mount) = &c.proc_mount {
        one_of(mount, &["Default", "Unmasked"], &at.child("procMount"), errors);
        if mount == "Unmasked" && !user_namespace {
            errors.invalid(&at.child("procMount"), mount, "`hostUsers` must be false to use `Unmasked`");
        }
    }
    seccomp(c.seccomp_profile.as_ref(), &at.child("seccompProfile"), errors);
    app_armor(c.app_armor_profile.as_ref(), &at.child("appArmorProfile"), errors);
    if c.allow_privilege_escalation == Some(false) {
        let mut contradiction = |detail: &str| {
            errors.push(FieldError {
                fault: Fault::Invalid,
                field: at.clone(),
                value: Some(whole(c)),
                detail: detail.to_owned(),
            });
        };
        if c.privileged == Some(true) {
            contradiction("cannot set `allowPrivilegeEscalation` to false and `privileged` to true");
        }
        let adds = c.capabilities.iter().flat_map(|c| c.add.iter().flatten());
        for _ in adds.filter(|add| *add == "CAP_SYS_ADMIN") {
            contradiction(
                "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN",
            );
        }
    }
    os::windows_options(c.windows_options.as_ref(), &at.child("windowsOptions"), errors);
}

/// The context as upstream shows it whole: its Go fields in their order.
fn whole(c: &SecurityContext) -> String {
    fn part<T: Serialize>(part: &T) -> String {
        serde_json::to_string(part).unwrap_or_default()
    }
    let capabilities = c.capabilities.as_ref().map_or_else(
        || "null".to_owned(),
        |c| format!("{{\"Add\":{},\"Drop\":{}}}", part(&c.add), part(&c.drop)),
    );
    let fields = [
        ("Capabilities", capabilities),
        ("Privileged", part(&c.privileged)),
        ("SELinuxOptions", part(&c.se_linux_options)),
        ("WindowsOptions", part(&c.windows_options)),
        ("RunAsUser", part(&c.run_as_user)),
        ("RunAsGroup", part(&c.run_as_group)),
        ("RunAsNonRoot", part(&c.run_as_non_root)),
        ("ReadOnlyRootFilesystem", part(&c.read_only_root_filesystem)),
        ("AllowPrivilegeEscalation", part(&c.allow_privilege_escalation)),
        ("ProcMount", part(&c.proc_mount)),
        ("SeccompProfile", part(&c.seccomp_profile)),
        ("AppArmorProfile", part(&c.app_armor_profile)),
    ];
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    format!("{{{}}}", fields.join(","))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(mut rest: Value) -> PodSpec {
        rest["containers"] = json!([{"name": "c", "volumeDevices": [{"name": "d", "devicePath": "/d"}]}]);
        serde_json::from_value(rest).expect("a spec")
    }

    #[test]
    fn users_of_its_own_need_other_namespaces_of_its_own() {
        let said = |rest: Value| {
            let mut errors = FieldErrors::new();
            own_users(&spec(rest), &FieldPath::new("spec"), &mut errors);
            errors.aggregate()
        };
        assert_eq!(said(json!({"hostPID": true})), "[]");
        assert_eq!(
            said(json!({"hostUsers": false, "hostNetwork": true, "hostPID": true})),
            "[spec.hostNetwork: Forbidden: when `hostUsers` is false, spec.HostPID: Forbidden: when `hostUsers` is \
             false, spec.containers[0].volumeDevices: Forbidden: when `hostUsers` is false]"
        );
    }

    #[test]
    fn a_profile_has_a_file_where_it_is_of_the_node() {
        let said = |context: Value| {
            let mut errors = FieldErrors::new();
            pod_context(&spec(json!({"securityContext": context})), &FieldPath::new("spec"), &mut errors);
            errors.aggregate()
        };
        let seccomp = |profile: Value| said(json!({"seccompProfile": profile}));
        let app_armor = |profile: Value| said(json!({"appArmorProfile": profile}));
        assert_eq!(seccomp(json!({"type": "Localhost", "localhostProfile": "a/b"})), "[]");
        assert_eq!(
            seccomp(json!({"type": "Unconfined", "localhostProfile": "a"})),
            "spec.securityContext.seccompProfile.localhostProfile: Invalid value: \
             {\"Type\":\"Unconfined\",\"LocalhostProfile\":\"a\"}: can only be set when seccomp type is Localhost"
        );
        assert_eq!(app_armor(json!({"type": "RuntimeDefault"})), "[]");
        assert_eq!(
            app_armor(json!({"type": "Localhost", "localhostProfile": " "})),
            "spec.securityContext.appArmorProfile.localhostProfile: Invalid value: \" \": must not be padded with \
             whitespace"
        );
        assert_eq!(
            app_armor(json!({"type": "X"})),
            "spec.securityContext.appArmorProfile.type: Unsupported value: \"X\": supported values: \"Localhost\", \
             \"RuntimeDefault\", \"Unconfined\""
        );
    }

    #[test]
    fn settings_of_a_namespace_need_one_of_the_pods_own() {
        for (name, is_of_ipc) in
            [("kernel.shmmax", true), ("fs/mqueue/a", true), ("kernel.shmx", false), ("kernel.msg*", true)]
        {
            let name = normal(name);
            assert_eq!(IPC.contains(&name.as_str()) || name.starts_with("fs.mqueue."), is_of_ipc, "{name}");
        }
    }
}
