//! FlowSchemas: which requests are whose flow.

use std::sync::Arc;

use http::HeaderValue;
use k8s_openapi::api::flowcontrol::v1::{
    FlowSchema, NonResourcePolicyRule, PolicyRulesWithSubjects, ResourcePolicyRule, Subject,
};

use super::level::Level;
use crate::auth::User;
use crate::request::RequestInfo;

/// What tells the flows of a schema apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Nothing,
    User,
    Namespace,
}

impl By {
    /// As a schema says it.
    pub fn of(schema: &FlowSchema) -> Self {
        match schema.spec.as_ref().and_then(|s| s.distinguisher_method.as_ref()).map(|m| m.type_.as_str()) {
            Some("ByUser") => By::User,
            Some("ByNamespace") => By::Namespace,
            _ => By::Nothing,
        }
    }

    pub fn distinguisher<'a>(self, user: &'a User, info: &'a RequestInfo) -> &'a str {
        match self {
            By::Nothing => "",
            By::User => &user.name,
            By::Namespace => &info.namespace,
        }
    }
}

/// A FlowSchema that is in force.
#[derive(Debug)]
pub struct Flow {
    pub name: String,
    pub by: By,
    rules: Vec<PolicyRulesWithSubjects>,
    pub level: Arc<Level>,
    /// Where the level counts its requests.
    pub place: usize,
    /// As answers tell them.
    pub uid: HeaderValue,
    pub level_uid: HeaderValue,
}

impl Flow {
    pub fn new(schema: &FlowSchema, level: Arc<Level>, level_uid: HeaderValue) -> Self {
        let name = schema.metadata.name.clone().unwrap_or_default();
        Flow {
            place: level.place_of(&name),
            by: By::of(schema),
            rules: schema.spec.as_ref().and_then(|s| s.rules.clone()).unwrap_or_default(),
            uid: header(schema.metadata.uid.as_deref()),
            name,
            level,
            level_uid,
        }
    }

    /// Whether a request is of this flow.
    pub fn takes(&self, user: &User, info: &RequestInfo) -> bool {
        self.rules.iter().any(|rule| {
            rule.subjects.iter().any(|subject| is_of(subject, user))
                && if info.is_resource {
                    rule.resource_rules.iter().flatten().any(|rule| is_resource(rule, info))
                } else {
                    rule.non_resource_rules.iter().flatten().any(|rule| is_path(rule, info))
                }
        })
    }
}

pub fn header(uid: Option<&str>) -> HeaderValue {
    uid.and_then(|uid| HeaderValue::from_str(uid).ok()).unwrap_or_else(|| HeaderValue::from_static(""))
}

fn is_of(subject: &Subject, user: &User) -> bool {
    match (subject.kind.as_str(), &subject.user, &subject.group, &subject.service_account) {
        ("User", Some(wanted), ..) => wanted.name == "*" || wanted.name == user.name,
        ("Group", _, Some(wanted), _) => wanted.name == "*" || user.groups.contains(&wanted.name),
        ("ServiceAccount", .., Some(wanted)) => {
            let account = user.name.strip_prefix("system:serviceaccount:");
            account.and_then(|account| account.split_once(':')).is_some_and(|(namespace, name)| {
                namespace == wanted.namespace && (wanted.name == "*" || wanted.name == name)
            })
        }
        _ => false,
    }
}

fn is_in(list: &[String], value: &str) -> bool {
    list.iter().any(|item| item == "*" || item == value)
}

fn is_resource(rule: &ResourcePolicyRule, info: &RequestInfo) -> bool {
    let names = |listed: &String| match info.subresource.as_str() {
        "" => *listed == info.resource,
        sub => listed.split_once('/') == Some((&info.resource, sub)),
    };
    is_in(&rule.verbs, info.verb)
        && rule.resources.iter().any(|listed| listed == "*" || names(listed))
        && is_in(&rule.api_groups, &info.group)
        && if info.namespace.is_empty() {
            rule.cluster_scope == Some(true)
        } else {
            is_in(rule.namespaces.as_deref().unwrap_or_default(), &info.namespace)
        }
}

fn is_path(rule: &NonResourcePolicyRule, info: &RequestInfo) -> bool {
    is_in(&rule.verbs, info.verb)
        && rule.non_resource_urls.iter().any(|listed| {
            let under = listed.strip_suffix('*').unwrap_or(listed);
            let under = under.strip_suffix('/').unwrap_or(under);
            listed == "*"
                || *listed == info.path
                || info.path.strip_prefix(under).is_some_and(|rest| rest.starts_with('/'))
        })
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::json;
    use tokio::sync::Notify;

    use super::*;
    use crate::request::Query;

    fn flow(rule: serde_json::Value) -> Flow {
        let schema = json!({"metadata": {"name": "f", "uid": "u"}, "spec": {
            "priorityLevelConfiguration": {"name": "l"}, "rules": [rule]}});
        let schema = serde_json::from_value(schema).expect("a schema");
        Flow::new(&schema, Arc::new(Level::new(false, Arc::new(Notify::new()))), header(Some("l")))
    }

    #[test]
    fn requests_are_matched_by_who_asks_for_what() {
        let jane = json!([{"kind": "User", "user": {"name": "jane"}}]);
        let nodes = json!([{"kind": "Group", "group": {"name": "system:nodes"}}]);
        let accounts =
            json!([{"kind": "ServiceAccount", "serviceAccount": {"namespace": "kube-system", "name": "*"}}]);
        let all = json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"]});
        let pods = json!({"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "pods/log"],
            "namespaces": ["a"]});
        let cluster = json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true});
        let cases = [
            (&jane, "resourceRules", &pods, "jane", "/api/v1/namespaces/a/pods", true),
            (&jane, "resourceRules", &pods, "jane", "/api/v1/namespaces/a/pods/p/log", true),
            (&jane, "resourceRules", &pods, "jane", "/api/v1/namespaces/a/pods/p/status", false),
            (&jane, "resourceRules", &pods, "jane", "/api/v1/namespaces/b/pods", false),
            (&jane, "resourceRules", &pods, "jane", "/apis/x/v1/namespaces/a/pods", false),
            (&jane, "resourceRules", &pods, "jane", "/api/v1/namespaces/a/pods?watch=1", false),
            (&jane, "resourceRules", &all, "joe", "/api/v1/namespaces/a/pods", false),
            (&jane, "resourceRules", &all, "jane", "/api/v1/pods", false),
            (&jane, "resourceRules", &cluster, "jane", "/api/v1/pods", true),
            (&jane, "resourceRules", &cluster, "jane", "/api/v1/namespaces/a/pods", false),
            (&nodes, "resourceRules", &all, "node", "/api/v1/namespaces/a/pods", true),
            (
                &accounts,
                "resourceRules",
                &all,
                "system:serviceaccount:kube-system:dns",
                "/api/v1/namespaces/a/pods",
                true,
            ),
            (
                &accounts,
                "resourceRules",
                &all,
                "system:serviceaccount:kube-systemx:dns",
                "/api/v1/namespaces/a/pods",
                false,
            ),
            (
                &jane,
                "nonResourceRules",
                &json!({"verbs": ["get"], "nonResourceURLs": ["/healthz"]}),
                "jane",
                "/healthz",
                true,
            ),
            (
                &jane,
                "nonResourceRules",
                &json!({"verbs": ["get"], "nonResourceURLs": ["/healthz"]}),
                "jane",
                "/healthz/ping",
                true,
            ),
            (
                &jane,
                "nonResourceRules",
                &json!({"verbs": ["get"], "nonResourceURLs": ["/healthz"]}),
                "jane",
                "/healthzz",
                false,
            ),
            (
                &jane,
                "nonResourceRules",
                &json!({"verbs": ["*"], "nonResourceURLs": ["/openapi/*"]}),
                "jane",
                "/openapi/v2",
                true,
            ),
            (
                &jane,
                "nonResourceRules",
                &json!({"verbs": ["*"], "nonResourceURLs": ["*"]}),
                "jane",
                "/",
                true,
            ),
        ];
        for (subjects, kind, rule, user, path, expected) in cases {
            let flow = flow(json!({"subjects": subjects, kind: [rule]}));
            let groups: &[&str] = if user == "node" { &["system:nodes"] } else { &[] };
            let (path, query) = path.split_once('?').unwrap_or((path, ""));
            let info = RequestInfo::parse(&Method::GET, path, &Query::parse(Some(query)));
            assert_eq!(
                flow.takes(&User::authenticated(user, groups), &info),
                expected,
                "{rule} {user} {path}"
            );
        }
    }
}
