//! Which capabilities a container has.

use k8s_cri::v1::Capability;
use serde_json::{Value, json};

/// What a container has when nothing is said (containerd's default set).
const DEFAULT: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// Every capability, each at the place of its number.
const ALL: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The OCI form of what was asked, as far as `held` (this process's own permitted set) reaches: nobody can give
/// what they do not have.
pub fn capabilities(asked: Option<&Capability>, privileged: bool, held: u64) -> Value {
    let none = Capability::default();
    let asked = asked.unwrap_or(&none);
    let names = |list: &[String]| -> Vec<String> { list.iter().map(|name| full_name(name)).collect() };
    let (add, drop) = (names(&asked.add_capabilities), names(&asked.drop_capabilities));
    let all = "CAP_ALL".to_owned();
    let mut set: Vec<&str> = if privileged {
        ALL.to_vec()
    } else {
        let wanted = |name: &&str| {
            if add.iter().any(|a| a == name) {
                return true;
            }
            if drop.iter().any(|d| d == name) {
                return false;
            }
            add.contains(&all) || (DEFAULT.contains(name) && !drop.contains(&all))
        };
        ALL.iter().copied().filter(wanted).collect()
    };
    set.retain(|name| is_held(name, held));
    let ambient: Vec<String> = names(&asked.add_ambient_capabilities)
        .into_iter()
        .filter(|name| set.contains(&name.as_str()))
        .collect();
    json!({
        "bounding": set,
        "effective": set,
        "permitted": set,
        "inheritable": ambient,
        "ambient": ambient,
    })
}

fn full_name(name: &str) -> String {
    let upper = name.to_ascii_uppercase();
    if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") }
}

fn is_held(name: &str, held: u64) -> bool {
    ALL.iter().position(|known| *known == name).is_some_and(|number| held & (1 << number) != 0)
}

/// The capabilities that this process may pass on.
pub fn held() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name));
        value.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
    };
    mask("CapPrm:") & mask("CapBnd:")
}

/// The capabilities that the kernel knows.
pub fn known() -> u64 {
    let text = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap_or_default();
    let last: u32 = text.trim().parse().unwrap_or(ALL.len() as u32 - 1);
    u64::MAX >> (63 - last.min(63))
}

/// Whether a process with these capabilities may lower its own out-of-memory score.
pub fn may_raise_limits(held: u64) -> bool {
    is_held("CAP_SYS_RESOURCE", held)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounding(add: &[&str], drop: &[&str], privileged: bool, held: u64) -> Vec<String> {
        let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        let asked =
            Capability { add_capabilities: owned(add), drop_capabilities: owned(drop), ..Default::default() };
        serde_json::from_value(capabilities(Some(&asked), privileged, held)["bounding"].clone()).unwrap()
    }

    #[test]
    fn adding_and_dropping() {
        let everything = u64::MAX;
        assert_eq!(bounding(&[], &[], false, everything).len(), DEFAULT.len());
        assert_eq!(bounding(&["NET_ADMIN"], &["ALL"], false, everything), ["CAP_NET_ADMIN"]);
        assert_eq!(bounding(&["ALL"], &["CAP_SYS_ADMIN"], false, everything).len(), ALL.len() - 1);
        assert!(!bounding(&[], &["kill"], false, everything).contains(&"CAP_KILL".to_owned()));
        assert_eq!(bounding(&[], &["ALL"], true, everything).len(), ALL.len());
        assert_eq!(bounding(&[], &[], true, 0b1), ["CAP_CHOWN"]);
    }
}
