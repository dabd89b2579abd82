//! Who a container runs as, and what it may do.

use k8s_openapi::api::core::v1::{
    AppArmorProfile, PodSecurityContext, PodSpec, SeccompProfile, SecurityContext,
    WindowsSecurityContextOptions,
};
use krate_api::field::Fault;
use krate_api::{FieldError, FieldErrors, FieldPath};
use serde::Serialize;

use super::volumes::local_path;
use crate::registry::rules::{in_range, one_of};

/// An id of a user or a group.
fn id(value: Option<i64>, at: &FieldPath, errors: &mut FieldErrors) {
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
    if let Some(policy) = &context.se_linux_change_policy {
        one_of(policy, &["MountOption", "Recursive"], &at.child("seLinuxChangePolicy"), errors);
    }
    seccomp(context.seccomp_profile.as_ref(), &at.child("seccompProfile"), errors);
    app_armor(context.app_armor_profile.as_ref(), &at.child("appArmorProfile"), errors);
    windows(context.windows_options.as_ref(), &at.child("windowsOptions"), errors);
    if spec.share_process_namespace == Some(true) && spec.host_pid == Some(true) {
        errors.invalid(
            &at.child("shareProcessNamespace"),
            true,
            "ShareProcessNamespace and HostPID cannot both be enabled",
        );
    }
    if spec.host_users == Some(false) {
        for (name, set) in
            [("hostNetwork", spec.host_network), ("hostPID", spec.host_pid), ("hostIPC", spec.host_ipc)]
        {
            if set == Some(true) {
                errors.forbidden(&at.child(name), "when `pod.Spec.HostUsers` is false");
            }
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
        let name = sysctl.name.replace('/', ".");
        if spec.host_network == Some(true) && name.starts_with("net.") {
            errors.invalid(&at, &sysctl.name, "may not be specified when 'hostNetwork' is true");
        }
        let ipc =
            ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."].iter().any(|p| name.starts_with(p));
        if spec.host_ipc == Some(true) && ipc {
            errors.invalid(&at, &sysctl.name, "may not be specified when 'hostIPC' is true");
        }
    }
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

fn seccomp(profile: Option<&SeccompProfile>, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(profile) = profile else { return };
    let file = profile.localhost_profile.as_deref().filter(|f| !f.is_empty());
    match profile.type_.as_str() {
        "" => errors.required(&at.child("type"), "type is required when seccompProfile is set"),
        "Localhost" => match file {
            Some(file) => local_path(file, &at.child("localhostProfile"), errors),
            None => {
                errors.required(&at.child("localhostProfile"), "must be set when seccomp type is Localhost");
            }
        },
        other => {
            one_of(other, &["Localhost", "RuntimeDefault", "Unconfined"], &at.child("type"), errors);
            if let Some(file) = file {
                errors.invalid(
                    &at.child("localhostProfile"),
                    file,
                    "can only be set when seccomp type is Localhost",
                );
            }
        }
    }
}

fn app_armor(profile: Option<&AppArmorProfile>, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(profile) = profile else { return };
    let file = profile.localhost_profile.as_deref();
    match profile.type_.as_str() {
        "" => errors.required(&at.child("type"), "type is required when appArmorProfile is set"),
        "Localhost" => {
            let at = at.child("localhostProfile");
            match file.map(str::trim) {
                None => errors.required(&at, "must be set when AppArmor type is Localhost"),
                Some("") => errors.required(&at, "must be set when AppArmor type is Localhost"),
                Some(trimmed) if trimmed.len() != file.unwrap_or_default().len() => {
                    errors.invalid(&at, file, "must not be padded with whitespace");
                }
                Some(_) => {}
            }
        }
        other => {
            one_of(other, &["Localhost", "RuntimeDefault", "Unconfined"], &at.child("type"), errors);
            if file.is_some() {
                errors.invalid(
                    &at.child("localhostProfile"),
                    file,
                    "can only be set when AppArmor type is Localhost",
                );
            }
        }
    }
}

fn windows(options: Option<&WindowsSecurityContextOptions>, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(options) = options else { return };
    if options.gmsa_credential_spec_name.as_deref() == Some("") {
        errors.invalid(
            &at.child("gmsaCredentialSpecName"),
            "",
            "gmsaCredentialSpecName cannot be an empty string",
        );
    }
    if options.run_as_user_name.as_deref() == Some("") {
        errors.invalid(&at.child("runAsUserName"), "", "runAsUserName cannot be an empty string");
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
        if adds.into_iter().any(|add| add == "CAP_SYS_ADMIN") {
            contradiction(
                "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN",
            );
        }
    }
    windows(c.windows_options.as_ref(), &at.child("windowsOptions"), errors);
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
