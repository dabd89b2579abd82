//! What a pod says of the system that it is for: Linux or Windows, each of which knows some of the fields only.

use k8s_openapi::api::core::v1::{
    PodSecurityContext, PodSpec, SecurityContext, WindowsSecurityContextOptions,
};
use krate_api::names::is_dns1123_subdomain;
use krate_api::{FieldErrors, FieldPath};

use super::visit;
use crate::registry::rules::{each, one_of};

/// `at` is the spec's place, as in all below but the options.
pub fn system(spec: &PodSpec, at: &FieldPath, errors: &mut FieldErrors) {
    match spec.os.as_ref().map(|os| os.name.as_str()) {
        None => {}
        Some("") => errors.required(&at.child("os").child("name"), ""),
        Some("linux") => linux(spec, at, errors),
        Some("windows") => windows(spec, at, errors),
        Some(other) => one_of(other, &["linux", "windows"], &at.child("os"), errors),
    }
}

fn linux(spec: &PodSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let mut refuse = |at: &FieldPath, options: Option<&WindowsSecurityContextOptions>| {
        if options.is_some() {
            let at = at.child("securityContext").child("windowsOptions");
            errors.forbidden(&at, "windows options cannot be set for a linux pod");
        }
    };
    refuse(at, spec.security_context.as_ref().and_then(|context| context.windows_options.as_ref()));
    for (at, c) in visit::containers(spec, at) {
        refuse(&at, c.security_context.as_ref().and_then(|context| context.windows_options.as_ref()));
    }
}

fn windows(spec: &PodSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let host = [
        ("hostUsers", spec.host_users.is_some()),
        ("hostPID", spec.host_pid == Some(true)),
        ("hostIPC", spec.host_ipc == Some(true)),
        ("shareProcessNamespace", spec.share_process_namespace.is_some()),
    ];
    refuse_set(&host, at, errors);
    if let Some(context) = &spec.security_context {
        refuse_set(&of_linux(context), &at.child("securityContext"), errors);
    }
    for (at, c) in visit::containers(spec, at) {
        if let Some(context) = &c.security_context {
            refuse_set(&of_linux_containers(context), &at.child("securityContext"), errors);
        }
    }
}

fn refuse_set(fields: &[(&str, bool)], at: &FieldPath, errors: &mut FieldErrors) {
    for (field, _) in fields.iter().filter(|(_, is_set)| *is_set) {
        errors.forbidden(&at.child(field), "cannot be set for a windows pod");
    }
}

fn of_linux(c: &PodSecurityContext) -> [(&'static str, bool); 11] {
    [
        ("appArmorProfile", c.app_armor_profile.is_some()),
        ("seLinuxOptions", c.se_linux_options.is_some()),
        ("seccompProfile", c.seccomp_profile.is_some()),
        ("fsGroup", c.fs_group.is_some()),
        ("fsGroupChangePolicy", c.fs_group_change_policy.is_some()),
        ("sysctls", c.sysctls.as_ref().is_some_and(|sysctls| !sysctls.is_empty())),
        ("runAsUser", c.run_as_user.is_some()),
        ("runAsGroup", c.run_as_group.is_some()),
        ("supplementalGroups", c.supplemental_groups.is_some()),
        ("supplementalGroupsPolicy", c.supplemental_groups_policy.is_some()),
        ("seLinuxChangePolicy", c.se_linux_change_policy.is_some()),
    ]
}

fn of_linux_containers(c: &SecurityContext) -> [(&'static str, bool); 10] {
    [
        ("appArmorProfile", c.app_armor_profile.is_some()),
        ("seLinuxOptions", c.se_linux_options.is_some()),
        ("seccompProfile", c.seccomp_profile.is_some()),
        ("capabilities", c.capabilities.is_some()),
        ("readOnlyRootFilesystem", c.read_only_root_filesystem.is_some()),
        ("privileged", c.privileged.is_some()),
        ("allowPrivilegeEscalation", c.allow_privilege_escalation.is_some()),
        ("procMount", c.proc_mount.is_some()),
        ("runAsUser", c.run_as_user.is_some()),
        ("runAsGroup", c.run_as_group.is_some()),
    ]
}

/// Containers that are processes of the host (KEP-1981): all or none, and in its network.
pub fn host_processes(spec: &PodSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let of = |options: Option<&WindowsSecurityContextOptions>| options.and_then(|o| o.host_process);
    let own = of(spec.security_context.as_ref().and_then(|context| context.windows_options.as_ref()));
    let containers = visit::containers(spec, at);
    let mut count = 0;
    for (at, c) in &containers {
        let said = of(c.security_context.as_ref().and_then(|context| context.windows_options.as_ref()));
        if let (Some(own), Some(said)) = (own, said)
            && own != said
        {
            errors.invalid(
                &at.child("securityContext").child("windowsOptions").child("hostProcess"),
                said,
                format!("pod hostProcess value must be identical if both are specified, was {own}"),
            );
        }
        count += usize::from(said.or(own) == Some(true));
    }
    if count == 0 {
        return;
    }
    if count != containers.len() {
        let why =
            "If pod contains any hostProcess containers then all containers must be HostProcess containers";
        errors.invalid(at, "", why);
    }
    if spec.host_network != Some(true) {
        let why = "hostNetwork must be true if pod contains any hostProcess containers";
        errors.invalid(&at.child("hostNetwork"), false, why);
    }
}

pub fn windows_options(
    options: Option<&WindowsSecurityContextOptions>,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    let Some(options) = options else { return };
    if let Some(name) = &options.gmsa_credential_spec_name {
        each(is_dns1123_subdomain(name), name, &at.child("gmsaCredentialSpecName"), errors);
    }
    if let Some(spec) = &options.gmsa_credential_spec {
        let at = at.child("gmsaCredentialSpec");
        if spec.is_empty() {
            errors.invalid(&at, spec, "gmsaCredentialSpec cannot be an empty string");
        } else if spec.len() > 64 * 1024 {
            errors.invalid(&at, spec, "gmsaCredentialSpec size must be under 64 KiB");
        }
    }
    if let Some(name) = &options.run_as_user_name {
        for why in user_name(name) {
            errors.invalid(&at.child("runAsUserName"), name, why);
        }
    }
}

/// What is wrong with the name of an account of Windows, with its domain or without.
fn user_name(name: &str) -> Vec<&'static str> {
    if name.is_empty() {
        return vec!["runAsUserName cannot be an empty string"];
    }
    if name.bytes().any(|c| c.is_ascii_control()) {
        return vec!["runAsUserName cannot contain control characters"];
    }
    let (domain, user) = match name.split('\\').collect::<Vec<_>>()[..] {
        [user] => (None, user),
        [domain, user] => (Some(domain), user),
        _ => return vec!["runAsUserName cannot contain more than one backslash"],
    };
    let mut wrong = Vec::new();
    if domain.is_some_and(|domain| domain.len() >= 256) {
        wrong.push("runAsUserName's Domain length must be under 256 characters");
    }
    if domain.is_some_and(|domain| !is_net_bios(domain) && !is_dns(domain)) {
        wrong.push("runAsUserName's Domain doesn't match the NetBios nor the DNS format");
    }
    if user.is_empty() {
        wrong.push("runAsUserName's User cannot be empty");
    } else if user.len() > 104 {
        wrong.push("runAsUserName's User length must not be longer than 104 characters");
    }
    if !user.is_empty() && user.chars().all(|c| c == '.' || c == ' ') {
        wrong.push("runAsUserName's User cannot contain only periods or spaces");
    }
    if user.contains(['"', '/', '\\', ':', ';', '|', '=', ',', '+', '*', '?', '<', '>', '@', '[', ']']) {
        wrong.push("runAsUserName's User cannot contain the following characters: \"/\\:;|=,+*?<>@[]");
    }
    wrong
}

fn is_net_bios(domain: &str) -> bool {
    (1..=15).contains(&domain.chars().count())
        && !domain.starts_with('.')
        && !domain.contains(['\\', '/', ':', '*', '?', '"', '<', '>', '|'])
}

fn is_dns(domain: &str) -> bool {
    domain.split('.').all(|label| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn said(spec: Value) -> String {
        let spec = serde_json::from_value(spec).expect("a spec");
        let mut errors = FieldErrors::new();
        let at = FieldPath::new("spec");
        system(&spec, &at, &mut errors);
        host_processes(&spec, &at, &mut errors);
        errors.aggregate()
    }

    #[test]
    fn a_system_knows_its_own_fields() {
        let of = |os: &str, context: Value| {
            said(json!({"os": {"name": os}, "securityContext": context,
                "containers": [{"name": "c", "securityContext": context}]}))
        };
        let at = "spec.securityContext";
        let of_container = "spec.containers[0].securityContext";
        for (os, context, told) in [
            ("linux", json!({"runAsUser": 1}), "[]".to_owned()),
            ("windows", json!({"windowsOptions": {}}), "[]".to_owned()),
            (
                "linux",
                json!({"windowsOptions": {}}),
                format!(
                    "[{at}.windowsOptions: Forbidden: windows options cannot be set for a linux pod, \
                     {of_container}.windowsOptions: Forbidden: windows options cannot be set for a linux pod]"
                ),
            ),
            (
                "windows",
                json!({"runAsUser": 1}),
                format!(
                    "[{at}.runAsUser: Forbidden: cannot be set for a windows pod, {of_container}.runAsUser: \
                     Forbidden: cannot be set for a windows pod]"
                ),
            ),
            ("", json!({}), "spec.os.name: Required value".to_owned()),
            (
                "plan9",
                json!({}),
                "spec.os: Unsupported value: \"plan9\": supported values: \"linux\", \"windows\"".to_owned(),
            ),
        ] {
            assert_eq!(of(os, context), told);
        }
    }

    #[test]
    fn processes_of_the_host_are_all_or_none() {
        let host = json!({"windowsOptions": {"hostProcess": true}});
        let containers = json!([{"name": "a", "securityContext": host}, {"name": "b"}]);
        assert_eq!(
            said(json!({"hostNetwork": true, "securityContext": host, "containers": containers})),
            "[]"
        );
        assert_eq!(
            said(json!({"containers": containers})),
            "[spec: Invalid value: \"\": If pod contains any hostProcess containers then all containers must be \
             HostProcess containers, spec.hostNetwork: Invalid value: false: hostNetwork must be true if pod contains \
             any hostProcess containers]"
        );
    }

    #[test]
    fn accounts_of_windows_have_names() {
        for (name, wrong) in [
            ("Administrator", None),
            ("DOMAIN\\user", None),
            ("", Some("cannot be an empty string")),
            ("a\\b\\c", Some("more than one backslash")),
            ("-\\..", Some("only periods or spaces")),
            ("a:b", Some("cannot contain the following characters")),
            ("a|b\\user", Some("neither NetBios nor")),
        ] {
            let found = user_name(name);
            match wrong {
                None => assert!(found.is_empty(), "{found:?}"),
                Some("neither NetBios nor") => assert!(found[0].contains("NetBios nor the DNS"), "{found:?}"),
                Some(wrong) => assert!(found[0].contains(wrong), "{name}: {found:?}"),
            }
        }
    }
}
