//! Role-based access control: who may do what, from Roles and their bindings.
//!
//! The policy is held compiled, by subject, and changed object by object as roles and bindings change; a question looks
//! only at the bindings of those who ask.

mod ensure;
mod policy;
mod rules;

use std::collections::{HashMap, HashSet};

use k8s_openapi::api::rbac::v1::{
    ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject,
};
use parking_lot::RwLock;

use crate::auth::aggregate;

pub use ensure::ensure;
pub use policy::{Bootstrap, CONTROLLERS, DNS, bootstrap, own};
pub use rules::{Ask, Target, covers, matches};

/// A namespace (empty for the cluster) and a name.
type Key = (String, String);

#[derive(Clone, PartialEq, Eq, Hash)]
enum Who {
    User(String),
    Group(String),
}

struct Binding {
    key: Key,
    role: RoleRef,
    who: Vec<Who>,
    /// The subjects as they are told in the reason of a decision.
    subjects: Vec<Subject>,
}

#[derive(Default)]
struct Policy {
    /// ClusterRoles have an empty namespace.
    roles: HashMap<Key, Vec<PolicyRule>>,
    bindings: HashMap<Key, Binding>,
    by_subject: HashMap<Who, HashSet<Key>>,
}

/// The authorizer. It is told of roles and bindings by whoever watches them.
#[derive(Default)]
pub struct Rbac {
    policy: RwLock<Policy>,
}

impl Rbac {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn set_cluster_role(&self, role: &ClusterRole) {
        let key = (String::new(), role.metadata.name.clone().unwrap_or_default());
        self.policy.write().roles.insert(key, role.rules.clone().unwrap_or_default());
    }

    pub fn set_role(&self, role: &Role) {
        let meta = &role.metadata;
        let key = (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default());
        self.policy.write().roles.insert(key, role.rules.clone().unwrap_or_default());
    }

    /// Forgets a Role, or a ClusterRole where `namespace` is empty.
    pub fn forget_role(&self, namespace: &str, name: &str) {
        self.policy.write().roles.remove(&(namespace.to_owned(), name.to_owned()));
    }

    pub fn set_cluster_role_binding(&self, binding: &ClusterRoleBinding) {
        let key = (String::new(), binding.metadata.name.clone().unwrap_or_default());
        self.policy.write().bind(key, binding.role_ref.clone(), binding.subjects.clone().unwrap_or_default());
    }

    pub fn set_role_binding(&self, binding: &RoleBinding) {
        let meta = &binding.metadata;
        let key = (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default());
        self.policy.write().bind(key, binding.role_ref.clone(), binding.subjects.clone().unwrap_or_default());
    }

    /// Forgets a RoleBinding, or a ClusterRoleBinding where `namespace` is empty.
    pub fn forget_binding(&self, namespace: &str, name: &str) {
        self.policy.write().unbind(&(namespace.to_owned(), name.to_owned()));
    }

    /// By what it is allowed.
    ///
    /// # Errors
    /// It is not: what kept from knowing all rules, which may be nothing.
    pub fn decide(&self, ask: &Ask<'_>) -> Result<String, String> {
        let policy = self.policy.read();
        let mut missing = Vec::new();
        for binding in policy.bindings_of(ask.user, ask.groups, ask.namespace()) {
            match policy.rules_of(binding) {
                Some(rules) if rules.iter().any(|rule| matches(rule, ask)) => return Ok(binding.reason(ask)),
                Some(_) => {}
                None => missing.push(binding.missing()),
            }
        }
        if missing.is_empty() {
            return Err(String::new());
        }
        missing.sort_unstable();
        Err(format!("RBAC: {}", aggregate(missing)))
    }

    /// All rules that someone has in a namespace (those of the whole cluster alone where it is empty).
    pub fn rules_of(&self, user: &str, groups: &[String], namespace: &str) -> Vec<PolicyRule> {
        let policy = self.policy.read();
        policy
            .bindings_of(user, groups, namespace)
            .filter_map(|binding| policy.rules_of(binding))
            .flatten()
            .cloned()
            .collect()
    }

    /// Of the bindings of someone in a namespace those whose roles are not there, as errors.
    pub fn missing_roles(&self, user: &str, groups: &[String], namespace: &str) -> Vec<String> {
        let policy = self.policy.read();
        let bindings = policy.bindings_of(user, groups, namespace);
        let mut missing: Vec<String> =
            bindings.filter(|binding| policy.rules_of(binding).is_none()).map(Binding::missing).collect();
        missing.sort_unstable();
        missing
    }

    /// The rules of the role that a binding refers to. `None` if there is no such role.
    pub fn rules_of_role(&self, role: &RoleRef, namespace: &str) -> Option<Vec<PolicyRule>> {
        self.policy.read().role(role, namespace).cloned()
    }
}

impl Policy {
    fn bind(&mut self, key: Key, role: RoleRef, subjects: Vec<Subject>) {
        self.unbind(&key);
        let who: Vec<Who> = subjects.iter().filter_map(|s| who(s, &key.0)).collect();
        for subject in &who {
            self.by_subject.entry(subject.clone()).or_default().insert(key.clone());
        }
        self.bindings.insert(key.clone(), Binding { key, role, who, subjects });
    }

    fn unbind(&mut self, key: &Key) {
        let Some(binding) = self.bindings.remove(key) else { return };
        for subject in &binding.who {
            if let Some(keys) = self.by_subject.get_mut(subject) {
                keys.remove(key);
                if keys.is_empty() {
                    self.by_subject.remove(subject);
                }
            }
        }
    }

    /// The bindings of the cluster, and of the namespace, that name the user or one of the groups.
    fn bindings_of<'a>(
        &'a self,
        user: &str,
        groups: &[String],
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a Binding> + use<'a> {
        let subjects: Vec<Who> = std::iter::once(Who::User(user.to_owned()))
            .chain(groups.iter().cloned().map(Who::Group))
            .collect();
        let mut seen = HashSet::new();
        subjects
            .into_iter()
            .filter_map(|subject| self.by_subject.get(&subject))
            .flatten()
            .filter(move |key| key.0.is_empty() || (!namespace.is_empty() && key.0 == namespace))
            .filter(move |key| seen.insert(*key))
            .filter_map(|key| self.bindings.get(key))
    }

    fn rules_of(&self, binding: &Binding) -> Option<&Vec<PolicyRule>> {
        self.role(&binding.role, &binding.key.0)
    }

    fn role(&self, role: &RoleRef, namespace: &str) -> Option<&Vec<PolicyRule>> {
        let namespace = if role.kind == "ClusterRole" { "" } else { namespace };
        self.roles.get(&(namespace.to_owned(), role.name.clone()))
    }
}

fn who(subject: &Subject, binding_namespace: &str) -> Option<Who> {
    match subject.kind.as_str() {
        "User" => Some(Who::User(subject.name.clone())),
        "Group" => Some(Who::Group(subject.name.clone())),
        "ServiceAccount" => {
            let namespace = subject.namespace.as_deref().unwrap_or(binding_namespace);
            Some(Who::User(format!("system:serviceaccount:{namespace}:{}", subject.name)))
        }
        _ => None,
    }
}

impl Binding {
    /// That its role is not there.
    fn missing(&self) -> String {
        let RoleRef { kind, name, .. } = &self.role;
        format!("{}.rbac.authorization.k8s.io {name:?} not found", kind.to_lowercase())
    }

    fn reason(&self, ask: &Ask<'_>) -> String {
        let (namespace, name) = &self.key;
        let binding = if namespace.is_empty() {
            format!("ClusterRoleBinding \"{name}\"")
        } else {
            format!("RoleBinding \"{name}/{namespace}\"")
        };
        let subject = self
            .subjects
            .iter()
            .find(|s| match who(s, namespace) {
                Some(Who::User(user)) => user == ask.user,
                Some(Who::Group(group)) => ask.groups.contains(&group),
                None => false,
            })
            .map(|s| match s.namespace.as_deref().filter(|_| s.kind == "ServiceAccount") {
                Some(namespace) => format!("{} \"{}/{namespace}\"", s.kind, s.name),
                None => format!("{} \"{}\"", s.kind, s.name),
            })
            .unwrap_or_default();
        format!("RBAC: allowed by {binding} of {} \"{}\" to {subject}", self.role.kind, self.role.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::Features;

    fn rbac() -> Rbac {
        let rbac = Rbac::new();
        let policy = bootstrap(&Features::default());
        policy.cluster_roles.iter().for_each(|r| rbac.set_cluster_role(r));
        policy.cluster_role_bindings.iter().for_each(|b| rbac.set_cluster_role_binding(b));
        policy.roles.iter().for_each(|r| rbac.set_role(r));
        policy.role_bindings.iter().for_each(|b| rbac.set_role_binding(b));
        rbac
    }

    fn resource<'a>(
        group: &'a str,
        resource: &'a str,
        subresource: &'a str,
        namespace: &'a str,
    ) -> Target<'a> {
        Target::Resource { group, resource, subresource, namespace, name: "x" }
    }

    #[test]
    fn the_bootstrap_policy_lets_components_do_their_work_and_no_more() {
        let rbac = rbac();
        let authenticated = ["system:authenticated".to_owned()];
        let cases = [
            ("system:kube-scheduler", "create", resource("", "pods", "binding", "ns"), true),
            ("system:kube-scheduler", "create", resource("", "pods", "", "ns"), false),
            ("system:kube-proxy", "watch", resource("discovery.k8s.io", "endpointslices", "", ""), true),
            ("jane", "get", Target::Path("/api/v1"), true),
            ("jane", "get", Target::Path("/metrics"), false),
            ("jane", "list", resource("", "pods", "", "ns"), false),
        ];
        for (user, verb, target, allowed) in cases {
            let ask = Ask { user, groups: &authenticated, verb, target, ..Ask::default() };
            assert_eq!(rbac.decide(&ask).is_ok(), allowed, "{user} {verb} {target:?}");
        }
        let ask = Ask {
            user: "system:kube-scheduler",
            groups: &[],
            verb: "create",
            target: resource("", "pods", "binding", "ns"),
            ..Ask::default()
        };
        assert_eq!(
            rbac.decide(&ask).as_deref(),
            Ok("RBAC: allowed by ClusterRoleBinding \"system:kube-scheduler\" of ClusterRole \
                 \"system:kube-scheduler\" to User \"system:kube-scheduler\"")
        );
    }

    #[test]
    fn a_role_binding_reaches_no_further_than_its_namespace() {
        let rbac = rbac();
        rbac.set_role_binding(&RoleBinding {
            metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                namespace: Some("a".into()),
                name: Some("b".into()),
                ..Default::default()
            },
            role_ref: RoleRef { kind: "ClusterRole".into(), name: "view".into(), ..RoleRef::default() },
            subjects: Some(vec![Subject { kind: "User".into(), name: "amy".into(), ..Subject::default() }]),
        });
        let ask = |namespace| Ask {
            user: "amy",
            groups: &[],
            verb: "list",
            target: resource("", "pods", "", namespace),
            ..Ask::default()
        };
        assert!(rbac.decide(&ask("a")).is_ok());
        assert!(rbac.decide(&ask("b")).is_err());
        assert!(rbac.decide(&ask("")).is_err());
        rbac.forget_binding("a", "b");
        assert!(rbac.decide(&ask("a")).is_err());
    }

    #[test]
    fn a_role_that_is_not_there_is_named() {
        let rbac = Rbac::new();
        let bind = |namespace: &str, kind: &str, name: &str| {
            rbac.set_role_binding(&RoleBinding {
                metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                    namespace: Some(namespace.into()),
                    name: Some(name.into()),
                    ..Default::default()
                },
                role_ref: RoleRef { kind: kind.into(), name: name.into(), ..RoleRef::default() },
                subjects: Some(vec![Subject {
                    kind: "User".into(),
                    name: "amy".into(),
                    ..Subject::default()
                }]),
            });
        };
        let told = |user| {
            let target = resource("", "pods", "", "a");
            rbac.decide(&Ask { user, groups: &[], verb: "list", target, ..Ask::default() })
        };
        bind("a", "ClusterRole", "gone");
        let gone = "clusterrole.rbac.authorization.k8s.io \"gone\" not found";
        assert_eq!(told("amy"), Err(format!("RBAC: {gone}")));
        assert_eq!(told("joe"), Err(String::new()));
        bind("a", "Role", "other");
        bind("b", "Role", "elsewhere");
        let other = "role.rbac.authorization.k8s.io \"other\" not found";
        assert_eq!(told("amy"), Err(format!("RBAC: [{gone}, {other}]")));
        assert_eq!(rbac.missing_roles("amy", &[], "a"), [gone, other]);
    }
}
