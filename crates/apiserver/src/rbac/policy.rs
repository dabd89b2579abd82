//! The bootstrap policy: the roles and bindings that every cluster starts with, read from a table.

use std::collections::BTreeMap;

use k8s_openapi::api::rbac::v1::{
    AggregationRule, ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

use crate::features::Features;

const TABLE: &str = include_str!("policy.txt");
const GROUP: &str = "rbac.authorization.k8s.io";

/// The bootstrap objects, in the order in which they are to be made.
#[derive(Debug, Default)]
pub struct Bootstrap {
    pub cluster_roles: Vec<ClusterRole>,
    pub cluster_role_bindings: Vec<ClusterRoleBinding>,
    pub roles: Vec<Role>,
    pub role_bindings: Vec<RoleBinding>,
}

/// The bootstrap policy of a server with these features, with the rules of aggregated roles filled in.
pub fn bootstrap(features: &Features) -> Bootstrap {
    let mut out = Bootstrap::default();
    let mut rules: Vec<PolicyRule> = Vec::new();
    // A role's rules follow its head, so the table is read from its end.
    for line in TABLE.lines().rev() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = match line.rsplit_once(" if ") {
            Some((_, feature)) if !features.enabled(feature) => continue,
            Some((line, _)) => line,
            None => line,
        };
        if let Some(rule) = line.strip_prefix("  ") {
            rules.insert(0, read_rule(rule));
            continue;
        }
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["clusterrole", name, labels @ ..] => out.cluster_roles.push(ClusterRole {
                metadata: metadata(name, None, labels),
                rules: Some(std::mem::take(&mut rules)),
                aggregation_rule: None,
            }),
            ["aggregated", name, "by", by, labels @ ..] => out.cluster_roles.push(ClusterRole {
                metadata: metadata(name, None, labels),
                rules: None,
                aggregation_rule: Some(AggregationRule {
                    cluster_role_selectors: Some(vec![LabelSelector {
                        match_labels: Some(BTreeMap::from([(format!("{GROUP}/{by}"), "true".to_owned())])),
                        match_expressions: None,
                    }]),
                }),
            }),
            ["role", namespace, name] => out.roles.push(Role {
                metadata: metadata(name, Some(namespace), &[]),
                rules: Some(std::mem::take(&mut rules)),
            }),
            ["clusterbinding", name, "to", role, "for", subjects @ ..] => {
                out.cluster_role_bindings.push(ClusterRoleBinding {
                    metadata: metadata(name, None, &[]),
                    role_ref: role_ref("ClusterRole", role),
                    subjects: read_subjects(subjects),
                });
            }
            ["rolebinding", namespace, name, "to", kind, role, "for", subjects @ ..] => {
                out.role_bindings.push(RoleBinding {
                    metadata: metadata(name, Some(namespace), &[]),
                    role_ref: role_ref(kind, role),
                    subjects: read_subjects(subjects),
                });
            }
            _ => unreachable!("the table of bootstrap roles has an odd line: {line}"),
        }
    }
    out.cluster_roles.reverse();
    out.cluster_role_bindings.reverse();
    out.roles.reverse();
    out.role_bindings.reverse();
    aggregate(&mut out.cluster_roles);
    out
}

/// The group as which all controllers of one process act, and the user of cluster DNS.
pub const CONTROLLERS: &str = "krate:controllers";
pub const DNS: &str = "krate:dns";

/// The roles of Krate's own components that upstream has no role for: its controllers act as one, with the rights of
/// each, and cluster DNS keeps its Service itself.
pub fn own(bootstrap: &Bootstrap) -> Bootstrap {
    let mut all: Vec<PolicyRule> = Vec::new();
    for role in &bootstrap.cluster_roles {
        let name = role.metadata.name.as_deref().unwrap_or_default();
        if name.starts_with("system:controller:") || name == "system:kube-controller-manager" {
            for rule in role.rules.iter().flatten() {
                if !all.contains(rule) {
                    all.push(rule.clone());
                }
            }
        }
    }
    let dns = [
        "get,list,watch on core : services namespaces nodes pods endpoints",
        "create,update,patch on core : services",
        "create,delete,get,list,patch,update,watch on discovery.k8s.io : endpointslices",
        "create,patch,update on core events.k8s.io : events",
    ];
    let role = |name: &str, rules| ClusterRole {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        rules: Some(rules),
        aggregation_rule: None,
    };
    let binding = |name: &str, kind: &str| ClusterRoleBinding {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        role_ref: role_ref("ClusterRole", name),
        subjects: read_subjects(&[&format!("{kind}={name}")]),
    };
    Bootstrap {
        cluster_roles: vec![
            role(CONTROLLERS, all),
            role(DNS, dns.iter().map(|rule| read_rule(rule)).collect()),
        ],
        cluster_role_bindings: vec![binding(CONTROLLERS, "Group"), binding(DNS, "User")],
        ..Bootstrap::default()
    }
}

/// Fills the rules of aggregated roles: the union of those of the roles that their selectors match. Repeated, since an
/// aggregated role may be part of another.
fn aggregate(roles: &mut [ClusterRole]) {
    let wanted: Vec<(usize, String)> = roles
        .iter()
        .enumerate()
        .filter_map(|(i, role)| {
            let selector = role.aggregation_rule.as_ref()?.cluster_role_selectors.as_ref()?.first()?;
            Some((i, selector.match_labels.as_ref()?.keys().next()?.clone()))
        })
        .collect();
    for _ in 0..wanted.len() {
        for (i, label) in &wanted {
            let mut rules: Vec<PolicyRule> = Vec::new();
            for role in roles.iter().filter(|r| has_label(r, label)) {
                for rule in role.rules.iter().flatten() {
                    if !rules.contains(rule) {
                        rules.push(rule.clone());
                    }
                }
            }
            roles[*i].rules = Some(rules);
        }
    }
}

fn has_label(role: &ClusterRole, label: &str) -> bool {
    role.metadata.labels.as_ref().is_some_and(|l| l.contains_key(label))
}

fn metadata(name: &str, namespace: Option<&str>, aggregation: &[&str]) -> ObjectMeta {
    let mut labels = BTreeMap::from([("kubernetes.io/bootstrapping".to_owned(), "rbac-defaults".to_owned())]);
    labels.extend(aggregation.iter().map(|label| (format!("{GROUP}/{label}"), "true".to_owned())));
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: namespace.map(str::to_owned),
        labels: Some(labels),
        annotations: Some(BTreeMap::from([(
            "rbac.authorization.kubernetes.io/autoupdate".to_owned(),
            "true".to_owned(),
        )])),
        ..ObjectMeta::default()
    }
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').filter(|w| !w.is_empty()).map(str::to_owned).collect()
}

fn read_rule(line: &str) -> PolicyRule {
    let (verbs, rest) = line.split_once(' ').unwrap_or((line, ""));
    let verbs = verbs.split(',').map(str::to_owned).collect();
    if let Some(urls) = rest.strip_prefix("at ") {
        return PolicyRule { verbs, non_resource_urls: Some(words(urls)), ..PolicyRule::default() };
    }
    let (groups, resources) = rest.strip_prefix("on ").unwrap_or(rest).split_once(" : ").unwrap_or_default();
    let (resources, names) = resources.split_once(" named ").unwrap_or((resources, ""));
    PolicyRule {
        verbs,
        api_groups: Some(
            words(groups).into_iter().map(|g| if g == "core" { String::new() } else { g }).collect(),
        ),
        resources: Some(words(resources)),
        resource_names: (!names.is_empty()).then(|| words(names)),
        non_resource_urls: None,
    }
}

fn role_ref(kind: &str, name: &str) -> RoleRef {
    RoleRef { api_group: Some(GROUP.to_owned()), kind: kind.to_owned(), name: name.to_owned() }
}

fn read_subjects(subjects: &[&str]) -> Option<Vec<Subject>> {
    let read = |text: &&str| {
        let (kind, name) = text.split_once('=')?;
        Some(match name.split_once('/').filter(|_| kind == "ServiceAccount") {
            Some((namespace, name)) => Subject {
                api_group: None,
                kind: kind.to_owned(),
                name: name.to_owned(),
                namespace: Some(namespace.to_owned()),
            },
            None => Subject {
                api_group: Some(GROUP.to_owned()),
                kind: kind.to_owned(),
                name: name.to_owned(),
                namespace: None,
            },
        })
    };
    let subjects: Vec<Subject> = subjects.iter().filter_map(read).collect();
    (!subjects.is_empty()).then_some(subjects)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read_whole() {
        let policy = bootstrap(&Features::default());
        let role = |name: &str| {
            policy.cluster_roles.iter().find(|r| r.metadata.name.as_deref() == Some(name)).expect("there")
        };
        assert_eq!(role("cluster-admin").rules.as_ref().map(Vec::len), Some(2));
        let view = role("view").rules.as_ref().expect("rules").len();
        let admin = role("admin").rules.as_ref().expect("rules").len();
        assert!(view > 5 && admin > view, "admin has the rules of edit, which has those of view");
        assert!(policy.roles.len() >= 6 && policy.role_bindings.len() >= 6);
        let node = role("system:kube-scheduler").rules.as_ref().expect("rules");
        assert!(node.iter().any(|r| r.resource_names.as_deref() == Some(&["kube-scheduler".to_owned()])));
    }

    #[test]
    fn what_a_feature_brings_comes_and_goes_with_it() {
        let named = |gates: &str| {
            let policy = bootstrap(&Features::parse([gates]).expect("sound"));
            let roles = policy.cluster_roles.iter().filter_map(|role| role.metadata.name.clone());
            let bindings = policy.cluster_role_bindings.iter().filter_map(|b| b.metadata.name.clone());
            let node =
                policy.cluster_roles.iter().find(|r| r.metadata.name.as_deref() == Some("system:node"));
            let rules = node.and_then(|node| node.rules.as_ref()).map_or(0, Vec::len);
            (roles.collect::<Vec<_>>(), bindings.collect::<Vec<_>>(), rules)
        };
        let (roles, bindings, rules) = named("");
        let (with_bundles, bound, more) = named("ClusterTrustBundle=true");
        let new = |all: &[String], before: &[String]| -> Vec<String> {
            all.iter().filter(|name| !before.contains(name)).cloned().collect()
        };
        let bundles = [
            "system:cluster-trust-bundle-discovery",
            "system:controller:kube-apiserver-serving-clustertrustbundle-publisher",
        ];
        assert_eq!(new(&with_bundles, &roles), bundles);
        assert_eq!(new(&bound, &bindings), bundles);
        assert_eq!(more, rules + 1);
        let (with_requests, _, more) = named("PodCertificateRequest=true");
        assert_eq!(new(&with_requests, &roles), ["system:controller:podcertificaterequestcleaner"]);
        assert_eq!(more, rules + 1);
        assert!(
            !TABLE.lines().any(|line| line.contains("if ClusterTrustBundle ")),
            "a feature ends its line"
        );
    }
}
