//! The checks of the baseline level: what lets a pod out of its own.

use super::checks::{Names, Violation, containers, plural, quoted, setters, violation};
use super::view::View;

const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";
const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";

pub fn app_armor(pod: &View<'_>, _: u32) -> Option<Violation> {
    let bad = |kind: &str| !matches!(kind, "RuntimeDefault" | "Localhost");
    let of_pod = pod.security().and_then(|s| s.app_armor_profile.as_ref()).map(|p| p.type_.as_str());
    let of_pod = of_pod.filter(|kind| bad(kind));
    let mut values: Names<'_> = of_pod.into_iter().collect();
    let mut names = Vec::new();
    for container in &pod.containers {
        let kind = container.security.and_then(|s| s.app_armor_profile.as_ref()).map(|p| p.type_.as_str());
        if let Some(kind) = kind.filter(|kind| bad(kind)) {
            names.push(container.name);
            values.insert(kind);
        }
    }
    let fine = |v: &str| v.is_empty() || v == "runtime/default" || v.starts_with("localhost/");
    let annotations: Vec<String> = pod
        .annotations
        .into_iter()
        .flatten()
        .filter(|(key, value)| key.starts_with(APP_ARMOR) && !fine(value))
        .map(|(key, value)| format!("{key}={value:?}"))
        .collect();
    let mut who: Vec<String> =
        Some(setters(of_pod.is_some(), &names)).filter(|w| !w.is_empty()).into_iter().collect();
    if !annotations.is_empty() {
        who.push(plural("annotation", "annotations", annotations.len()).to_owned());
    }
    if who.is_empty() {
        return None;
    }
    let values: Vec<&str> = values.into_iter().chain(annotations.iter().map(String::as_str)).collect();
    let reason = plural("forbidden AppArmor profile", "forbidden AppArmor profiles", values.len());
    let detail = format!(
        "{} must not set AppArmor profile type to {}",
        who.join(" and "),
        quoted(values.iter().copied())
    );
    violation(reason, detail)
}

/// What a runtime gives a container that asks for nothing.
const CAPABILITIES: &[&str] = &[
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

pub fn capabilities(pod: &View<'_>, _: u32) -> Option<Violation> {
    let (names, added) = adds(pod, CAPABILITIES);
    if names.is_empty() {
        return None;
    }
    let detail = format!(
        "{} must not include {} in securityContext.capabilities.add",
        containers(&names),
        quoted(added)
    );
    violation("non-default capabilities", detail)
}

/// The containers that add other capabilities than the allowed ones, and which.
pub fn adds<'a>(pod: &View<'a>, allowed: &[&str]) -> (Vec<&'a str>, Names<'a>) {
    let (mut names, mut added) = (Vec::new(), Names::new());
    for container in &pod.containers {
        let add = container.security.and_then(|s| s.capabilities.as_ref()).and_then(|c| c.add.as_ref());
        let bad: Vec<&str> =
            add.into_iter().flatten().map(String::as_str).filter(|c| !allowed.contains(c)).collect();
        if !bad.is_empty() {
            names.push(container.name);
            added.extend(bad);
        }
    }
    (names, added)
}

pub fn host_namespaces(pod: &View<'_>, _: u32) -> Option<Violation> {
    let asked = [
        (pod.spec.host_network, "hostNetwork=true"),
        (pod.spec.host_pid, "hostPID=true"),
        (pod.spec.host_ipc, "hostIPC=true"),
    ];
    let set: Vec<&str> =
        asked.into_iter().filter(|(set, _)| *set == Some(true)).map(|(_, name)| name).collect();
    if set.is_empty() { None } else { violation("host namespaces", set.join(", ")) }
}

pub fn host_path(pod: &View<'_>, _: u32) -> Option<Violation> {
    let volumes = pod.spec.volumes.iter().flatten();
    let names: Vec<&str> = volumes.filter(|v| v.host_path.is_some()).map(|v| v.name.as_str()).collect();
    if names.is_empty() {
        return None;
    }
    let detail = format!("{} {}", plural("volume", "volumes", names.len()), quoted(names.iter().copied()));
    violation("hostPath volumes", detail)
}

pub fn host_ports(pod: &View<'_>, _: u32) -> Option<Violation> {
    let used = |c: &super::view::Container<'_>| -> Vec<i32> {
        c.ports.iter().filter_map(|p| p.host_port).filter(|p| *p != 0).collect()
    };
    let names = pod.named(|c| !used(c).is_empty());
    if names.is_empty() {
        return None;
    }
    // Upstream sorts them as texts.
    let ports: std::collections::BTreeSet<String> =
        pod.containers.iter().flat_map(used).map(|p| p.to_string()).collect();
    let ports: Vec<String> = ports.into_iter().collect();
    let detail = format!(
        "{} {} {} {}",
        containers(&names),
        plural("uses", "use", names.len()),
        plural("hostPort", "hostPorts", ports.len()),
        ports.join(", ")
    );
    violation("hostPort", detail)
}

pub fn host_probes(pod: &View<'_>, _: u32) -> Option<Violation> {
    let mut names = pod.named(|c| !c.hosts().is_empty());
    if names.is_empty() {
        return None;
    }
    names.sort_unstable();
    let hosts: Names<'_> = pod.containers.iter().flat_map(super::view::Container::hosts).collect();
    let detail = format!(
        "{} {} {} {}",
        containers(&names),
        plural("uses", "use", names.len()),
        plural("probe or lifecycle host", "probe or lifecycle hosts", hosts.len()),
        quoted(hosts)
    );
    violation("probe or lifecycle host", detail)
}

pub fn privileged(pod: &View<'_>, _: u32) -> Option<Violation> {
    let names = pod.named(|c| c.security.is_some_and(|s| s.privileged == Some(true)));
    if names.is_empty() {
        return None;
    }
    violation("privileged", format!("{} must not set securityContext.privileged=true", containers(&names)))
}

/// A pod with users of its own may unmask `/proc` from 1.35 on.
pub fn proc_mount(pod: &View<'_>, version: u32) -> Option<Violation> {
    if version >= 35 && pod.has_own_users() {
        return None;
    }
    any_proc_mount(pod)
}

pub fn any_proc_mount(pod: &View<'_>) -> Option<Violation> {
    let mount = |c: &super::view::Container<'_>| {
        c.security.and_then(|s| s.proc_mount.clone()).filter(|mount| mount != "Default")
    };
    let names = pod.named(|c| mount(c).is_some());
    if names.is_empty() {
        return None;
    }
    let mounts: std::collections::BTreeSet<String> = pod.containers.iter().filter_map(mount).collect();
    let mounts = quoted(mounts.iter().map(String::as_str));
    violation(
        "procMount",
        format!("{} must not set securityContext.procMount to {mounts}", containers(&names)),
    )
}

pub fn selinux(pod: &View<'_>, version: u32) -> Option<Violation> {
    let allowed = |kind: &str| {
        matches!(kind, "" | "container_t" | "container_init_t" | "container_kvm_t")
            || (version >= 31 && kind == "container_engine_t")
    };
    let (mut types, mut user, mut role) = (std::collections::BTreeSet::new(), false, false);
    let mut bad = |options: &k8s_openapi::api::core::v1::SELinuxOptions| {
        let set = |field: &Option<String>| field.as_deref().is_some_and(|v| !v.is_empty());
        let kind = options.type_.as_deref().unwrap_or_default();
        if !allowed(kind) {
            types.insert(kind.to_owned());
        }
        user |= set(&options.user);
        role |= set(&options.role);
        !allowed(kind) || set(&options.user) || set(&options.role)
    };
    let of_pod = pod.security().and_then(|s| s.se_linux_options.as_ref()).is_some_and(&mut bad);
    let mut names = Vec::new();
    for container in &pod.containers {
        if container.security.and_then(|s| s.se_linux_options.as_ref()).is_some_and(&mut bad) {
            names.push(container.name);
        }
    }
    let who = setters(of_pod, &names);
    if who.is_empty() {
        return None;
    }
    let mut data = Vec::new();
    if !types.is_empty() {
        data.push(format!(
            "{} {}",
            plural("type", "types", types.len()),
            quoted(types.iter().map(String::as_str))
        ));
    }
    if user {
        data.push("user may not be set".to_owned());
    }
    if role {
        data.push("role may not be set".to_owned());
    }
    violation(
        "seLinuxOptions",
        format!("{who} set forbidden securityContext.seLinuxOptions: {}", data.join("; ")),
    )
}

/// Before 1.19 a profile was asked for by annotations.
pub fn seccomp_annotations(pod: &View<'_>, _: u32) -> Option<Violation> {
    let fine = |v: &str| v == "runtime/default" || v == "docker/default" || v.starts_with("localhost/");
    let keys = pod.containers.iter().map(|c| format!("{SECCOMP_CONTAINER}{}", c.name));
    let forbidden: std::collections::BTreeSet<String> = std::iter::once(SECCOMP_POD.to_owned())
        .chain(keys)
        .filter_map(|key| {
            let value = pod.annotations?.get(&key)?;
            (!fine(value)).then(|| format!("{key}={value:?}"))
        })
        .collect();
    if forbidden.is_empty() {
        return None;
    }
    let list: Vec<String> = forbidden.into_iter().collect();
    let noun = plural("annotation", "annotations", list.len());
    violation("seccompProfile", format!("forbidden {noun} {}", list.join(", ")))
}

pub fn seccomp_fields(pod: &View<'_>, _: u32) -> Option<Violation> {
    let (of_pod, names, values) = bad_seccomp(pod);
    let who = setters(of_pod, &names);
    if who.is_empty() {
        return None;
    }
    let values = quoted(values);
    violation("seccompProfile", format!("{who} must not set securityContext.seccompProfile.type to {values}"))
}

/// Whether the pod, and which containers, ask for another profile than a confining one, and for which.
pub fn bad_seccomp<'a>(pod: &View<'a>) -> (bool, Vec<&'a str>, Names<'a>) {
    let bad = |kind: &&str| !matches!(*kind, "RuntimeDefault" | "Localhost");
    let of_pod =
        pod.security().and_then(|s| s.seccomp_profile.as_ref()).map(|p| p.type_.as_str()).filter(bad);
    let mut values: Names<'a> = of_pod.into_iter().collect();
    let mut names = Vec::new();
    for container in &pod.containers {
        let kind = container.security.and_then(|s| s.seccomp_profile.as_ref()).map(|p| p.type_.as_str());
        if let Some(kind) = kind.filter(bad) {
            names.push(container.name);
            values.insert(kind);
        }
    }
    (of_pod.is_some(), names, values)
}

/// Those that touch nothing but the pod's own namespaces, with the version in which each came to be counted so.
const SYSCTLS: &[(&str, u32)] = &[
    ("kernel.shm_rmid_forced", 0),
    ("net.ipv4.ip_local_port_range", 0),
    ("net.ipv4.tcp_syncookies", 0),
    ("net.ipv4.ping_group_range", 0),
    ("net.ipv4.ip_unprivileged_port_start", 0),
    ("net.ipv4.ip_local_reserved_ports", 27),
    ("net.ipv4.tcp_keepalive_time", 29),
    ("net.ipv4.tcp_fin_timeout", 29),
    ("net.ipv4.tcp_keepalive_intvl", 29),
    ("net.ipv4.tcp_keepalive_probes", 29),
    ("net.ipv4.tcp_rmem", 32),
    ("net.ipv4.tcp_wmem", 32),
];

pub fn sysctls(pod: &View<'_>, version: u32) -> Option<Violation> {
    let asked = pod.security().and_then(|s| s.sysctls.as_ref()).into_iter().flatten();
    let allowed = |name: &str| SYSCTLS.iter().any(|(known, since)| *known == name && *since <= version);
    let forbidden: Vec<&str> = asked.map(|s| s.name.as_str()).filter(|name| !allowed(name)).collect();
    if forbidden.is_empty() { None } else { violation("forbidden sysctls", forbidden.join(", ")) }
}

pub fn host_process(pod: &View<'_>, _: u32) -> Option<Violation> {
    let of_pod =
        pod.security().and_then(|s| s.windows_options.as_ref()).is_some_and(|w| w.host_process == Some(true));
    let names = pod.named(|c| {
        c.security.and_then(|s| s.windows_options.as_ref()).is_some_and(|w| w.host_process == Some(true))
    });
    let who = setters(of_pod, &names);
    if who.is_empty() {
        return None;
    }
    violation("hostProcess", format!("{who} must not set securityContext.windowsOptions.hostProcess=true"))
}
