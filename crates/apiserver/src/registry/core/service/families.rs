//! Of which families of addresses a Service is. One is served: that of the range that this server was told.

use k8s_openapi::api::core::v1::ServiceSpec;
use krate_api::{FieldErrors, FieldPath};

use super::ranges::family;
use super::{is_headless, needs_address};
use crate::registry::core::addresses::sloppy_ip;

const SINGLE: &str = "SingleStack";
const DUAL: &str = "RequireDualStack";
const PREFERRED: &str = "PreferDualStack";

/// Fills in what follows from the addresses, from what the Service was and from what the cluster has; notes what
/// cannot be had.
pub fn fill(
    spec: &mut ServiceSpec,
    was: Option<&ServiceSpec>,
    ours: &str,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    if !needs_address(spec) || was.is_some_and(|was| still_prefers_both(spec, was)) {
        return;
    }
    // Without pods to have addresses, any family may be meant.
    let orphan = is_headless(spec) && spec.selector.as_ref().is_none_or(std::collections::BTreeMap::is_empty);
    let policy = spec
        .ip_family_policy
        .get_or_insert_with(|| {
            let before = was.and_then(|was| was.ip_family_policy.clone());
            before.unwrap_or_else(|| if orphan { DUAL } else { SINGLE }.to_owned())
        })
        .clone();
    let at_policy = at.child("ipFamilyPolicy");
    if let Some(was) = was {
        give_up_the_second(spec, was, &policy, &at_policy, errors);
    }
    if policy == SINGLE {
        for (both, what) in [
            (len(spec.cluster_ips.as_ref()) == 2, "cluster IPs"),
            (len(spec.ip_families.as_ref()) == 2, "IP families"),
        ] {
            if both {
                let detail = format!(
                    "must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified"
                );
                errors.invalid(&at_policy, &policy, detail);
            }
        }
    }
    follow_the_addresses(spec, ours, at, errors);
    if !errors.is_empty() {
        return;
    }
    let families = spec.ip_families.get_or_insert_default();
    if orphan {
        if families.is_empty() {
            families.push(ours.to_owned());
        }
        if policy != SINGLE && families.len() == 1 {
            families.push(if families[0] == "IPv4" { "IPv6" } else { "IPv4" }.to_owned());
        }
        return;
    }
    if policy == DUAL {
        errors.invalid(&at_policy, &policy, "this cluster is not configured for dual-stack services");
    }
    for (i, family) in families.iter().enumerate() {
        if family != ours {
            errors.invalid(&at.child("ipFamilies").index(i), family, "not configured on this cluster");
        }
    }
    if families.is_empty() {
        families.push(ours.to_owned());
    }
}

fn len(list: Option<&Vec<String>>) -> usize {
    items(list).len()
}

fn items(list: Option<&Vec<String>>) -> &[String] {
    list.map_or(&[], Vec::as_slice)
}

fn same(new: Option<&Vec<String>>, old: Option<&Vec<String>>) -> bool {
    items(new) == items(old)
}

/// A Service that would like both families gets or loses none of them just because the cluster has changed.
fn still_prefers_both(spec: &ServiceSpec, was: &ServiceSpec) -> bool {
    spec.type_ == was.type_
        && spec.ip_family_policy.as_deref() == Some(PREFERRED)
        && was.ip_family_policy.as_deref().is_none_or(|policy| policy == PREFERRED)
        && same(spec.cluster_ips.as_ref(), was.cluster_ips.as_ref())
        && same(spec.ip_families.as_ref(), was.ip_families.as_ref())
}

/// A Service of both families keeps the first where it says that one is enough, and only then.
fn give_up_the_second(
    spec: &mut ServiceSpec,
    was: &ServiceSpec,
    policy: &str,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    for (new, old, what) in [
        (&mut spec.cluster_ips, &was.cluster_ips, "cluster IP"),
        (&mut spec.ip_families, &was.ip_families, "IP family"),
    ] {
        if policy == SINGLE {
            if same(new.as_ref(), old.as_ref())
                && let Some(list) = new
            {
                list.truncate(1);
            }
        } else if (1..len(old.as_ref())).contains(&len(new.as_ref())) {
            errors.invalid(at, policy, format!("must be 'SingleStack' to release the secondary {what}"));
        }
    }
}

/// The families that are not named are those of the addresses that are.
fn follow_the_addresses(spec: &mut ServiceSpec, ours: &str, at: &FieldPath, errors: &mut FieldErrors) {
    let ips = spec.cluster_ips.clone().unwrap_or_default();
    let families = spec.ip_families.get_or_insert_default();
    for (i, value) in ips.iter().enumerate() {
        let Some(ip) = sloppy_ip(value) else { break };
        if i < families.len() {
            continue;
        }
        let family = family(ip);
        if family == ours {
            families.push(family.to_owned());
        } else {
            let detail = format!("{family} is not configured on this cluster");
            errors.invalid(&at.child("clusterIPs").index(i), &ips, detail);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn filled(spec: Value, was: Option<Value>) -> (ServiceSpec, Vec<String>) {
        let read = |spec: Value| serde_json::from_value::<ServiceSpec>(spec).expect("a spec");
        let (mut spec, was) = (read(spec), was.map(read));
        let mut errors = FieldErrors::new();
        fill(&mut spec, was.as_ref(), "IPv4", &FieldPath::new("spec"), &mut errors);
        (spec, errors.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn families_follow_from_addresses_and_selectors() {
        for (spec, policy, families) in [
            (json!({"type": "ClusterIP"}), SINGLE, json!(["IPv4"])),
            (json!({"type": "ClusterIP", "clusterIPs": ["10.0.0.1"]}), SINGLE, json!(["IPv4"])),
            (json!({"type": "ClusterIP", "ipFamilyPolicy": PREFERRED}), PREFERRED, json!(["IPv4"])),
            (
                json!({"type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"]}),
                DUAL,
                json!(["IPv4", "IPv6"]),
            ),
            (
                json!({"type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"], "selector": {"a": "b"}}),
                SINGLE,
                json!(["IPv4"]),
            ),
        ] {
            let (filled, errors) = filled(spec, None);
            assert_eq!(errors, [""; 0]);
            assert_eq!(filled.ip_family_policy.as_deref(), Some(policy));
            assert_eq!(json!(filled.ip_families), families);
        }
    }

    #[test]
    fn what_the_cluster_has_not_is_refused() {
        for (spec, was, wrong) in [
            (
                json!({"type": "ClusterIP", "clusterIPs": ["fd00::1"]}),
                None,
                "spec.clusterIPs[0]: Invalid value: [\"fd00::1\"]: IPv6 is not configured on this cluster",
            ),
            (
                json!({"type": "ClusterIP", "ipFamilies": ["IPv4", "IPv6"]}),
                None,
                "spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or \
                 'PreferDualStack' when multiple IP families are specified",
            ),
            (
                json!({"type": "ClusterIP", "ipFamilies": ["IPv6"]}),
                None,
                "spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster",
            ),
            (
                json!({"type": "ClusterIP", "clusterIPs": ["10.0.0.1"], "ipFamilyPolicy": PREFERRED}),
                Some(json!({"type": "ClusterIP", "clusterIPs": ["10.0.0.1", "fd00::1"]})),
                "spec.ipFamilyPolicy: Invalid value: \"PreferDualStack\": must be 'SingleStack' to release the \
                 secondary cluster IP",
            ),
        ] {
            assert_eq!(filled(spec, was).1, [wrong]);
        }
    }
}
