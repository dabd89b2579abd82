//! Nobody gives what he does not have: who writes a role has all that it permits, or the verb `escalate` on it; who binds
//! one has all that it permits, or the verb `bind` on it. Upstream checks this where roles are stored; it is no plugin
//! that can be turned off.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef};
use krate_api::StatusError;

use super::{Admit, Attributes};
use crate::auth::{Authorizer, MASTERS};
use crate::rbac::{Ask, Target, covers};
use crate::registry::erased::Object;

const GROUP: &str = "rbac.authorization.k8s.io";

pub struct Escalation(pub Authorizer);

/// What an object would give.
enum Gives {
    Rules(Vec<PolicyRule>),
    /// Whatever roles with some labels will permit.
    Anything,
    Role(RoleRef),
}

fn gives(object: &dyn Object) -> Option<Gives> {
    if let Some(role) = object.is::<Role>() {
        return Some(Gives::Rules(role.rules.clone().unwrap_or_default()));
    }
    if let Some(role) = object.is::<ClusterRole>() {
        let aggregates = role.aggregation_rule.is_some();
        return Some(if aggregates {
            Gives::Anything
        } else {
            Gives::Rules(role.rules.clone().unwrap_or_default())
        });
    }
    let binding = object.is::<RoleBinding>().map(|b| &b.role_ref);
    binding.or_else(|| object.is::<ClusterRoleBinding>().map(|b| &b.role_ref)).cloned().map(Gives::Role)
}

/// Whether a write changes nothing but what garbage collection needs to change.
pub fn is_collection(object: &dyn Object, old: &dyn Object) -> bool {
    let bare = |object: &dyn Object| {
        let mut object = object.boxed_clone();
        let meta = object.meta_mut();
        meta.owner_references = None;
        meta.finalizers = None;
        meta.managed_fields = None;
        meta.resource_version = None;
        object.to_json()
    };
    bare(object) == bare(old)
}

impl Escalation {
    fn may(&self, attributes: &Attributes, verb: &str, resource: &str, name: &str) -> bool {
        let target = Target::Resource {
            group: GROUP,
            resource,
            subresource: "",
            namespace: &attributes.namespace,
            name,
        };
        self.0
            .allows(&Ask {
                user: &attributes.user.name,
                groups: &attributes.user.groups,
                verb,
                target,
                uid: &attributes.user.uid,
                extra: Some(&attributes.user.extra),
                ..Ask::default()
            })
            .is_some()
    }

    /// The permissions among these that who asks does not have.
    fn missing(&self, attributes: &Attributes, wanted: &[PolicyRule]) -> Vec<PolicyRule> {
        let owned = self.0.rules_of(&attributes.user.name, &attributes.user.groups, &attributes.namespace);
        covers(&owned, wanted)
    }

    fn check(&self, attributes: &Attributes, object: &dyn Object) -> Result<(), String> {
        let wanted = match gives(object) {
            None => return Ok(()),
            Some(Gives::Rules(_) | Gives::Anything)
                if self.may(attributes, "escalate", attributes.kind.plural, &attributes.name) =>
            {
                return Ok(());
            }
            Some(Gives::Rules(rules)) => rules,
            Some(Gives::Anything) => {
                let all = || Some(vec!["*".to_owned()]);
                let resources = PolicyRule {
                    verbs: vec!["*".to_owned()],
                    api_groups: all(),
                    resources: all(),
                    ..PolicyRule::default()
                };
                let paths = PolicyRule {
                    verbs: vec!["*".to_owned()],
                    non_resource_urls: all(),
                    ..PolicyRule::default()
                };
                let missing = self.missing(attributes, &[resources, paths]);
                if missing.is_empty() {
                    return Ok(());
                }
                let why = refusal(attributes, missing);
                return Err(format!("must have cluster-admin privileges to use the aggregationRule: {why}"));
            }
            Some(Gives::Role(role)) => {
                let resource = if role.kind == "Role" { "roles" } else { "clusterroles" };
                if self.may(attributes, "bind", resource, &role.name) {
                    return Ok(());
                }
                let rules = self.0.rbac.rules_of_role(&role, &attributes.namespace);
                rules.ok_or_else(|| format!("{resource}.{GROUP} {:?} not found", role.name))?
            }
        };
        let missing = self.missing(attributes, &wanted);
        if missing.is_empty() { Ok(()) } else { Err(refusal(attributes, missing)) }
    }
}

#[async_trait]
impl Admit for Escalation {
    async fn validate(
        &self,
        attributes: &Attributes,
        object: Option<&dyn Object>,
        old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        let Some(object) = object.filter(|_| attributes.kind.group == GROUP) else { return Ok(()) };
        let is_master = attributes.user.groups.iter().any(|group| group == MASTERS);
        if is_master || old.is_some_and(|old| is_collection(object, old)) {
            return Ok(());
        }
        self.check(attributes, object).map_err(|why| attributes.forbidden(why))
    }
}

fn refusal(attributes: &Attributes, missing: Vec<PolicyRule>) -> String {
    let shown: BTreeSet<String> = compact(missing).iter().map(shown).collect();
    let shown: Vec<String> = shown.into_iter().collect();
    format!(
        "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        attributes.user.name,
        quoted(&attributes.user.groups),
        shown.join("\n")
    )
}

/// Rules about one resource and no names are made one, with all of their verbs.
fn compact(rules: Vec<PolicyRule>) -> Vec<PolicyRule> {
    let mut simple: BTreeMap<(Vec<String>, Vec<String>), PolicyRule> = BTreeMap::new();
    let mut out = Vec::new();
    for rule in rules {
        match (&rule.api_groups, &rule.resources) {
            (Some(groups), Some(resources)) if rule.resource_names.is_none() => {
                let key = (groups.clone(), resources.clone());
                match simple.get_mut(&key) {
                    Some(there) => there.verbs.extend(rule.verbs),
                    None => drop(simple.insert(key, rule)),
                }
            }
            _ => out.push(rule),
        }
    }
    out.extend(simple.into_values());
    out
}

fn quoted(texts: &[String]) -> String {
    let texts: Vec<String> = texts.iter().map(|text| format!("{text:?}")).collect();
    format!("[{}]", texts.join(" "))
}

fn shown(rule: &PolicyRule) -> String {
    let parts = [
        ("APIGroups", rule.api_groups.as_deref()),
        ("Resources", rule.resources.as_deref()),
        ("NonResourceURLs", rule.non_resource_urls.as_deref()),
        ("ResourceNames", rule.resource_names.as_deref()),
        ("Verbs", Some(rule.verbs.as_slice())),
    ];
    let parts =
        parts.into_iter().filter_map(|(name, list)| Some((name, list.filter(|list| !list.is_empty())?)));
    let parts: Vec<String> = parts.map(|(name, list)| format!("{name}:{}", quoted(list))).collect();
    format!("{{{}}}", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use krate_api::kinds;
    use serde_json::{Value, json};

    use std::sync::Arc;

    use super::*;
    use crate::admission::Operation;
    use crate::auth::User;

    fn authorizer(rules: Value) -> Authorizer {
        let authorizer = Authorizer::default();
        let role = json!({"metadata": {"name": "has"}, "rules": rules});
        authorizer.rbac.set_cluster_role(&serde_json::from_value(role).expect("a role"));
        let role = json!({"metadata": {"name": "secrets"},
            "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "list"]}]});
        authorizer.rbac.set_cluster_role(&serde_json::from_value(role).expect("a role"));
        let binding = json!({"metadata": {"name": "b"},
            "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": "has"},
            "subjects": [{"apiGroup": GROUP, "kind": "User", "name": "jane"}]});
        authorizer.rbac.set_cluster_role_binding(&serde_json::from_value(binding).expect("a binding"));
        authorizer
    }

    fn check(rules: Value, kind: &'static krate_api::Kind, object: &dyn Object) -> Result<(), String> {
        let mut attributes = Attributes::for_test(Operation::Create, kind, "", "", "x");
        attributes.user =
            Arc::new(User { name: "jane".to_owned(), groups: vec!["devs".to_owned()], ..User::default() });
        Escalation(authorizer(rules)).check(&attributes, object)
    }

    #[test]
    fn a_role_gives_no_more_than_its_writer_has() {
        let role: ClusterRole = serde_json::from_value(json!({"rules": [
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "delete", "list"]},
            {"nonResourceURLs": ["/metrics"], "verbs": ["get"]}]}))
        .expect("a role");
        let some = json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]);
        assert_eq!(
            check(some, &kinds::CLUSTER_ROLE, &role),
            Err("user \"jane\" (groups=[\"devs\"]) is attempting to grant RBAC permissions not currently held:\n\
                 {APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"delete\" \"list\"]}\n\
                 {NonResourceURLs:[\"/metrics\"], Verbs:[\"get\"]}"
                .to_owned())
        );
        let all = json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]},
            {"nonResourceURLs": ["*"], "verbs": ["*"]}]);
        assert_eq!(check(all, &kinds::CLUSTER_ROLE, &role), Ok(()));
        let escalate = json!([{"apiGroups": [GROUP], "resources": ["clusterroles"], "verbs": ["escalate"]}]);
        assert_eq!(check(escalate, &kinds::CLUSTER_ROLE, &role), Ok(()));
    }

    #[test]
    fn a_binding_gives_no_more_than_its_writer_has() {
        let binding: ClusterRoleBinding = serde_json::from_value(json!({
            "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": "secrets"}}))
        .expect("a binding");
        let some = json!([{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]);
        let refused = check(some, &kinds::CLUSTER_ROLE_BINDING, &binding).expect_err("too much");
        assert!(
            refused.ends_with("{APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"list\"]}"),
            "{refused}"
        );
        let bind = json!([{"apiGroups": [GROUP], "resources": ["clusterroles"], "verbs": ["bind"],
            "resourceNames": ["secrets"]}]);
        assert_eq!(check(bind, &kinds::CLUSTER_ROLE_BINDING, &binding), Ok(()));
    }

    #[test]
    fn what_garbage_collection_changes_is_let_through() {
        let role = |finalizers: Value, verbs: Value| -> Role {
            let rules = json!([{"apiGroups": [""], "resources": ["pods"], "verbs": verbs}]);
            let meta = json!({"name": "x", "finalizers": finalizers});
            serde_json::from_value(json!({"metadata": meta, "rules": rules})).expect("a role")
        };
        let old = role(json!(["a"]), json!(["get"]));
        assert!(is_collection(&role(json!([]), json!(["get"])), &old));
        assert!(!is_collection(&role(json!(["a"]), json!(["list"])), &old));
    }
}
