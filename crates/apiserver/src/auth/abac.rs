//! Attribute-based access control: a file of policies, one JSON object a line, in force as long as the server runs
//! (<https://kubernetes.io/docs/reference/access-authn-authz/abac/>).

use k8s_openapi::api::rbac::v1::PolicyRule;
use serde::Deserialize;
use serde_json::Value;

use super::AUTHENTICATED;
use crate::rbac::{Ask, Target};

const VERSION: &str = "abac.authorization.kubernetes.io/v1beta1";

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Policy {
    user: String,
    group: String,
    readonly: bool,
    api_group: String,
    resource: String,
    namespace: String,
    non_resource_path: String,
}

/// The policies of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Abac(Vec<Policy>);

impl Abac {
    /// Reads a file's text; empty lines and those that begin with `#` say nothing.
    ///
    /// # Errors
    /// A line is no policy.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut policies = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let read =
                policy(line).map_err(|why| format!("error reading policy line {}: {why}", number + 1))?;
            policies.push(read);
        }
        Ok(Abac(policies))
    }

    pub fn allows(&self, ask: &Ask<'_>) -> bool {
        self.0.iter().any(|policy| policy.is_for(ask.user, ask.groups) && policy.permits(ask))
    }

    /// All rules of someone in a namespace.
    pub fn rules_of(&self, user: &str, groups: &[String], namespace: &str) -> Vec<PolicyRule> {
        let mut rules = Vec::new();
        for policy in self.0.iter().filter(|policy| policy.is_for(user, groups)) {
            let verbs: &[&str] = if policy.readonly { &["get", "list", "watch"] } else { &["*"] };
            let verbs: Vec<String> = verbs.iter().map(|&verb| verb.to_owned()).collect();
            if !policy.resource.is_empty() && (policy.namespace == "*" || policy.namespace == namespace) {
                rules.push(PolicyRule {
                    verbs: verbs.clone(),
                    api_groups: Some(vec![policy.api_group.clone()]),
                    resources: Some(vec![policy.resource.clone()]),
                    ..PolicyRule::default()
                });
            }
            if !policy.non_resource_path.is_empty() {
                let paths = Some(vec![policy.non_resource_path.clone()]);
                rules.push(PolicyRule { verbs, non_resource_urls: paths, ..PolicyRule::default() });
            }
        }
        rules
    }
}

fn policy(line: &str) -> Result<Policy, String> {
    let mut value: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    match (text(&value["apiVersion"]).as_str(), text(&value["kind"]).as_str()) {
        (VERSION, "Policy") => {
            serde_json::from_value(value["spec"].take()).map_err(|error| error.to_string())
        }
        // Before it had versions, a policy that left something out meant all of it.
        ("", "") => {
            let mut old: Policy = serde_json::from_value(value).map_err(|error| error.to_string())?;
            let all = || "*".to_owned();
            if old.user.is_empty() && old.group.is_empty() {
                AUTHENTICATED.clone_into(&mut old.group);
            }
            // What names neither resources nor a namespace was about paths, too.
            if old.resource.is_empty() && old.namespace.is_empty() {
                old.non_resource_path = all();
            }
            for field in [&mut old.resource, &mut old.namespace, &mut old.api_group] {
                if field.is_empty() {
                    *field = all();
                }
            }
            Ok(old)
        }
        (version, kind) => Err(format!("no kind {kind:?} is registered for version {version:?}")),
    }
}

impl Policy {
    fn is_for(&self, user: &str, groups: &[String]) -> bool {
        let user_matches = self.user.is_empty() || self.user == "*" || self.user == user;
        let group_matches = self.group.is_empty() || self.group == "*" || groups.contains(&self.group);
        !(self.user.is_empty() && self.group.is_empty()) && user_matches && group_matches
    }

    fn permits(&self, ask: &Ask<'_>) -> bool {
        if self.readonly && !matches!(ask.verb, "get" | "list" | "watch") {
            return false;
        }
        let is = |wanted: &str, given: &str| wanted == "*" || wanted == given;
        match ask.target {
            Target::Resource { group, resource, namespace, .. } => {
                is(&self.namespace, namespace) && is(&self.resource, resource) && is(&self.api_group, group)
            }
            Target::Path(path) => {
                is(&self.non_resource_path, path)
                    || self.non_resource_path.strip_suffix('*').is_some_and(|start| path.starts_with(start))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_permit_what_they_name() {
        let file = Abac::parse(
            r#"
# comments say nothing
{"apiVersion":"abac.authorization.kubernetes.io/v1beta1","kind":"Policy","spec":{"user":"amy","namespace":"a","resource":"pods","apiGroup":"","readonly":true}}
{"apiVersion":"abac.authorization.kubernetes.io/v1beta1","kind":"Policy","spec":{"group":"ops","namespace":"*","resource":"*","apiGroup":"*","nonResourcePath":"/logs/*"}}
{"apiVersion":"abac.authorization.kubernetes.io/v1beta1","kind":"Policy","spec":{"user":"tom","group":"dev","namespace":"*","resource":"*","apiGroup":"*"}}
{"apiVersion":"abac.authorization.kubernetes.io/v1beta1","kind":"Policy","spec":{"namespace":"*","resource":"*","apiGroup":"*"}}
{"user":"old"}
"#,
        )
        .expect("sound");
        let resource = |resource, namespace| Target::Resource {
            group: "",
            resource,
            subresource: "",
            namespace,
            name: "",
        };
        for (user, group, verb, target, allowed) in [
            ("amy", "", "get", resource("pods", "a"), true),
            ("amy", "", "create", resource("pods", "a"), false),
            ("amy", "", "get", resource("pods", "b"), false),
            ("amy", "", "get", resource("secrets", "a"), false),
            ("amy", "", "get", Target::Path("/logs/x"), false),
            ("bob", "ops", "delete", resource("secrets", "b"), true),
            ("bob", "ops", "get", Target::Path("/logs/x"), true),
            ("bob", "ops", "get", Target::Path("/metrics"), false),
            ("tom", "dev", "get", resource("pods", "a"), true),
            ("tom", "ops2", "get", resource("pods", "a"), false),
            ("eve", "", "get", resource("pods", "a"), false),
            ("old", "", "delete", resource("pods", "a"), true),
            ("old", "", "get", Target::Path("/metrics"), true),
        ] {
            let groups = [group.to_owned()];
            let ask = Ask { user, groups: &groups, verb, target, ..Ask::default() };
            assert_eq!(file.allows(&ask), allowed, "{ask:?}");
        }
        assert_eq!(file.rules_of("amy", &[], "a").len(), 1);
        assert_eq!(file.rules_of("amy", &[], "b").len(), 0);
        assert_eq!(file.rules_of("bob", &["ops".to_owned()], "b").len(), 2);
    }

    #[test]
    fn what_is_no_policy_is_told_by_its_line() {
        for line in ["x", r#"{"apiVersion":"abac.authorization.kubernetes.io/v2","kind":"Policy"}"#] {
            let error = Abac::parse(&format!("\n{line}")).expect_err(line);
            assert!(error.starts_with("error reading policy line 2: "), "{error}");
        }
    }
}
