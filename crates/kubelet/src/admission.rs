//! Whether this node takes a pod that it has not run yet. The scheduler has asked most of it already; but not every pod
//! comes from the scheduler, and the node knows better what it can do.

use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodSpec, Taint};
use krate_api::placement::tolerated;

use crate::eviction::is_critical;
use crate::names;
use crate::placement;
use crate::resources::{self, Qos};
use crate::shared::Shared;
use crate::shutdown;
use crate::status::is_over;

/// Why a pod is not taken: reason and message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: &'static str,
    pub message: String,
    /// What there is too little of, if that is all.
    pub short: Vec<Short>,
}

/// So much of a resource is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Short {
    pub resource: &'static str,
    pub amount: i64,
}

fn refuse(reason: &'static str, message: impl Into<String>) -> Result<(), Refusal> {
    Err(Refusal { reason, message: message.into(), short: Vec::new() })
}

/// Whether the node takes a pod.
///
/// # Errors
/// Upstream's reason and message.
pub fn admit(shared: &Shared, pod: &Pod) -> Result<(), Refusal> {
    let default = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default);
    pressure(pod, spec, &shared.evictions.pressure())?;
    sysctls(spec, &shared.config.allowed_unsafe_sysctls)?;
    system(spec)?;
    let strict = spec.security_context.as_ref().and_then(|s| s.supplemental_groups_policy.as_deref());
    if strict == Some("Strict") && !shared.features.borrow().supplemental_groups_policy {
        return refuse(
            "SupplementalGroupsPolicyNotSupported",
            "SupplementalGroupsPolicy=Strict is not supported in this node",
        );
    }
    // Nobody makes room for a pod that is refused all the same.
    if shared.node_shutdown.is_under_way() {
        return refuse(shutdown::REFUSED, shutdown::REFUSAL);
    }
    let others = beside(shared, pod);
    let used = others.iter().fold(Amounts::default(), |sum, other| sum.and(Amounts::of(other)));
    let whole = Amounts {
        pods: i64::from(shared.config.max_pods),
        cpu: shared.node.cpu_milli,
        memory: shared.node.memory,
        storage: shared.node.ephemeral_storage,
    };
    fits(Amounts::of(pod), used, whole)?;
    // Before the API has told of the node nobody can know what it is like.
    if let Some(node) = shared.own_node.list().first()
        && let Err(misplaced) = placement::check(pod, spec, node, &others)
    {
        return refuse(misplaced.plugin, misplaced.message());
    }
    confined(spec, has_apparmor)
}

/// Whether the kernel confines processes by profiles of AppArmor.
fn has_apparmor() -> bool {
    let enabled = "/sys/module/apparmor/parameters/enabled";
    Path::new("/sys/kernel/security/apparmor").exists()
        && std::fs::read_to_string(enabled).is_ok_and(|said| said.starts_with('Y'))
}

/// A pod that is to be confined by AppArmor is not run where there is none.
fn confined(spec: &PodSpec, can_be: impl FnOnce() -> bool) -> Result<(), Refusal> {
    let of_pod = spec.security_context.as_ref().and_then(|context| context.app_armor_profile.as_ref());
    let inits = spec.init_containers.iter().flatten();
    let added = spec.ephemeral_containers.iter().flatten().map(|container| &container.security_context);
    let contexts = inits.chain(&spec.containers).map(|container| &container.security_context).chain(added);
    let mut asked = contexts.filter_map(|context| context.as_ref()?.app_armor_profile.as_ref()).chain(of_pod);
    if asked.all(|profile| profile.type_ == "Unconfined") || can_be() {
        return Ok(());
    }
    refuse("AppArmor", "Cannot enforce AppArmor: AppArmor is not enabled on the host")
}

/// The system that a pod is for is this one (KEP-2802).
fn system(spec: &PodSpec) -> Result<(), Refusal> {
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        return refuse("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS");
    }
    Ok(())
}

/// The pods that take room on the node beside this one.
pub fn beside(shared: &Shared, pod: &Pod) -> Vec<Arc<Pod>> {
    shared.all_pods().into_iter().filter(|other| is_beside(pod, other)).collect()
}

/// Whether another pod takes room on the node beside this one.
fn is_beside(pod: &Pod, other: &Pod) -> bool {
    let phase = other.status.as_ref().and_then(|s| s.phase.as_deref());
    // Of two that nobody has started yet, the one that came first is to have the room.
    let is_earlier = |other: &Pod| {
        let key = |pod: &Pod| (pod.metadata.creation_timestamp.as_ref().map(|t| t.0), names::uid(pod));
        key(other) < key(pod)
    };
    let has_begun = other.status.as_ref().is_some_and(|s| s.start_time.is_some());
    names::uid(other) != names::uid(pod) && !phase.is_some_and(is_over) && (has_begun || is_earlier(other))
}

/// While something is short, only those are taken that the node must not do without, or that do not make it worse.
fn pressure(pod: &Pod, spec: &PodSpec, conditions: &[&str]) -> Result<(), Refusal> {
    if conditions.is_empty() || is_critical(pod) {
        return Ok(());
    }
    if conditions == ["MemoryPressure"] {
        let pressure = Taint {
            key: "node.kubernetes.io/memory-pressure".to_owned(),
            effect: "NoSchedule".to_owned(),
            ..Taint::default()
        };
        let tolerations = spec.tolerations.as_deref().unwrap_or_default();
        if resources::qos(pod) != Qos::BestEffort || tolerated(&pressure, tolerations) {
            return Ok(());
        }
    }
    refuse("Evicted", format!("The node had condition: [{}]. ", conditions.join(" ")))
}

/// The kernel's parameters that belong to a namespace, and to nobody else (upstream's table).
const SAFE: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// Whether a parameter belongs to the namespace for communication between processes.
fn is_of_ipc(name: &str) -> bool {
    matches!(name, "kernel.sem")
        || name.starts_with("kernel.shm")
        || name.starts_with("kernel.msg")
        || name.starts_with("fs.mqueue.")
}

fn sysctls(spec: &PodSpec, allowed: &[String]) -> Result<(), Refusal> {
    let wanted = spec.security_context.as_ref().and_then(|s| s.sysctls.as_deref()).unwrap_or_default();
    for sysctl in wanted {
        // Either of the two ways of writing them is a name.
        let name = sysctl.name.replace('/', ".");
        let is_allowed = SAFE.contains(&name.as_str())
            || allowed.iter().any(|pattern| match pattern.replace('/', ".").strip_suffix('*') {
                Some(prefix) => name.starts_with(prefix),
                None => name == pattern.replace('/', "."),
            });
        if !is_allowed {
            return refuse("SysctlForbidden", format!("forbidden sysctl: {:?} not allowlisted", sysctl.name));
        }
        if spec.host_network == Some(true) && name.starts_with("net.") {
            return refuse(
                "SysctlForbidden",
                format!("forbidden sysctl: {:?} not allowed with host net enabled", sysctl.name),
            );
        }
        if spec.host_ipc == Some(true) && is_of_ipc(&name) {
            return refuse(
                "SysctlForbidden",
                format!("forbidden sysctl: {:?} not allowed with host ipc enabled", sysctl.name),
            );
        }
    }
    Ok(())
}

/// Thousandths of processors, and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    pods: i64,
    cpu: i64,
    memory: i64,
    storage: i64,
}

impl Amounts {
    pub fn of(pod: &Pod) -> Self {
        let all = resources::pod(pod);
        let storage = resources::ephemeral_storage_request(pod);
        Amounts { pods: 1, cpu: all.cpu_request, memory: all.memory_request, storage }
    }

    /// Of one resource.
    pub fn get(self, resource: &str) -> i64 {
        match resource {
            "pods" => self.pods,
            "cpu" => self.cpu,
            "memory" => self.memory,
            "ephemeral-storage" => self.storage,
            _ => 0,
        }
    }

    fn and(self, more: Amounts) -> Self {
        Amounts {
            pods: self.pods + more.pods,
            cpu: self.cpu + more.cpu,
            memory: self.memory + more.memory,
            storage: self.storage + more.storage,
        }
    }
}

fn fits(wanted: Amounts, used: Amounts, whole: Amounts) -> Result<(), Refusal> {
    let mut refusal: Option<Refusal> = None;
    for (reason, resource) in [
        ("OutOfpods", "pods"),
        ("OutOfcpu", "cpu"),
        ("OutOfmemory", "memory"),
        ("OutOfephemeral-storage", "ephemeral-storage"),
    ] {
        let (wanted, used, whole) = (wanted.get(resource), used.get(resource), whole.get(resource));
        if wanted > 0 && wanted > whole - used {
            // The first of them is the reason that is told.
            let refusal = refusal.get_or_insert_with(|| Refusal {
                reason,
                message: format!(
                    "Node didn't have enough resource: {resource}, requested: {wanted}, used: {used}, capacity: {whole}"
                ),
                short: Vec::new(),
            });
            refusal.short.push(Short { resource, amount: wanted - (whole - used) });
        }
    }
    refusal.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(of: Value) -> PodSpec {
        let mut of = of;
        of["containers"] = json!([]);
        serde_json::from_value(of).unwrap()
    }

    #[test]
    fn a_pod_for_another_system_is_refused() {
        let reason = |of: Value| system(&spec(of)).map_err(|r| r.reason);
        assert_eq!(reason(json!({})), Ok(()));
        assert_eq!(reason(json!({"os": {"name": "linux"}})), Ok(()));
        assert_eq!(reason(json!({"os": {"name": "windows"}})), Err("PodOSNotSupported"));
    }

    #[test]
    fn only_a_kernel_that_confines_takes_who_is_to_be_confined() {
        let of = |kind: &str| json!({"appArmorProfile": {"type": kind}});
        let mut in_container = spec(json!({}));
        let container = json!({"name": "c", "securityContext": of("Localhost")});
        in_container.containers = vec![serde_json::from_value(container).unwrap()];
        for (spec, needs) in [
            (spec(json!({})), false),
            (spec(json!({"securityContext": of("Unconfined")})), false),
            (spec(json!({"securityContext": of("RuntimeDefault")})), true),
            (in_container, true),
        ] {
            assert_eq!(
                confined(&spec, || false).map_err(|refusal| refusal.reason).is_err(),
                needs,
                "{spec:?}"
            );
            assert_eq!(confined(&spec, || true), Ok(()));
        }
    }

    #[test]
    fn only_safe_sysctls_are_taken() {
        let set = |name: &str| json!([{"name": name, "value": "1"}]);
        let message = |of: Value| sysctls(&spec(of), &["net.core.*".to_owned()]).map_err(|r| r.message);
        for name in ["kernel.shm_rmid_forced", "net/ipv4/tcp_syncookies", "net.core.somaxconn"] {
            assert_eq!(message(json!({"securityContext": {"sysctls": set(name)}})), Ok(()), "{name}");
        }
        for (of, said) in [
            (
                json!({"securityContext": {"sysctls": set("kernel.msgmax")}}),
                "forbidden sysctl: \"kernel.msgmax\" not allowlisted",
            ),
            (
                json!({"hostNetwork": true, "securityContext": {"sysctls": set("net.ipv4.tcp_syncookies")}}),
                "forbidden sysctl: \"net.ipv4.tcp_syncookies\" not allowed with host net enabled",
            ),
            (
                json!({"hostIPC": true, "securityContext": {"sysctls": set("kernel.shm_rmid_forced")}}),
                "forbidden sysctl: \"kernel.shm_rmid_forced\" not allowed with host ipc enabled",
            ),
        ] {
            assert_eq!(message(of), Err(said.to_owned()));
        }
    }

    #[test]
    fn a_node_that_runs_short_takes_fewer_pods() {
        let asks = json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]});
        let tolerates = json!({"containers": [], "tolerations": [
            {"key": "node.kubernetes.io/memory-pressure", "operator": "Exists"}]});
        let critical = json!({"containers": [], "priority": 2_000_001_000});
        let plain = json!({"containers": []});
        for (of, conditions, taken) in [
            (&plain, &[][..], true),
            (&plain, &["MemoryPressure"], false),
            (&asks, &["MemoryPressure"], true),
            (&tolerates, &["MemoryPressure"], true),
            (&tolerates, &["DiskPressure"], false),
            (&asks, &["DiskPressure", "MemoryPressure"], false),
            (&critical, &["DiskPressure"], true),
        ] {
            let pod: Pod = serde_json::from_value(json!({"spec": of})).unwrap();
            let found = pressure(&pod, pod.spec.as_ref().unwrap(), conditions);
            assert_eq!(found.is_ok(), taken, "{of} {conditions:?}");
            if let Err(refusal) = found {
                assert_eq!(refusal.message, format!("The node had condition: [{}]. ", conditions.join(" ")));
            }
        }
    }

    #[test]
    fn there_must_be_room() {
        let amounts = |pods, cpu| Amounts { pods, cpu, ..Amounts::default() };
        let whole = amounts(2, 4000);
        assert_eq!(fits(amounts(1, 3500), amounts(1, 500), whole), Ok(()));
        let refusal = fits(amounts(1, 3501), amounts(1, 500), whole).unwrap_err();
        assert_eq!((refusal.reason, refusal.short[0].amount), ("OutOfcpu", 1));
        assert_eq!(
            refusal.message,
            "Node didn't have enough resource: cpu, requested: 3501, used: 500, capacity: 4000"
        );
        assert_eq!(fits(amounts(1, 0), amounts(2, 0), whole).unwrap_err().reason, "OutOfpods");
        assert_eq!(
            fits(amounts(1, 0), amounts(1, 9000), whole),
            Ok(()),
            "who asks for nothing needs no room"
        );
    }
}
