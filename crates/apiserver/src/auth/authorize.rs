//! Whether he may: the Node authorizer, then RBAC, in the words of upstream's refusals.

use std::sync::Arc;

use k8s_openapi::api::rbac::v1::PolicyRule;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::StatusDetails;
use krate_api::{Reason, StatusError};

use super::{MASTERS, User};
use crate::node_authorizer::NodeAuthorizer;
use crate::rbac::{Ask, Rbac, Target};
use crate::request::RequestInfo;
use crate::reviews::Judge;

/// All authorizers, in the order in which they are asked.
#[derive(Clone, Default)]
pub struct Authorizer {
    pub nodes: Arc<NodeAuthorizer>,
    pub rbac: Arc<Rbac>,
}

impl Authorizer {
    /// Whether a request is allowed.
    ///
    /// # Errors
    /// It is not: 403, in upstream's words.
    pub fn check(&self, user: &User, info: &RequestInfo) -> Result<(), StatusError> {
        if user.is_master() || self.allows(&ask(user, info)).is_some() {
            Ok(())
        } else {
            Err(forbidden(user, info))
        }
    }
}

impl Judge for Authorizer {
    fn allows(&self, ask: &Ask<'_>) -> Option<String> {
        if ask.groups.iter().any(|group| group == MASTERS) || self.nodes.allows(ask) {
            return Some(String::new());
        }
        self.rbac.allows(ask)
    }

    fn rules_of(&self, user: &str, groups: &[String], namespace: &str) -> Vec<PolicyRule> {
        let mut rules = self.rbac.rules_of(user, groups, namespace);
        if groups.iter().any(|group| group == MASTERS) {
            let all = || Some(vec!["*".to_owned()]);
            let verbs = vec!["*".to_owned()];
            rules.push(PolicyRule {
                verbs: verbs.clone(),
                api_groups: all(),
                resources: all(),
                ..PolicyRule::default()
            });
            rules.push(PolicyRule { verbs, non_resource_urls: all(), ..PolicyRule::default() });
        }
        rules
    }
}

/// A request as a question to an authorizer.
fn ask<'a>(user: &'a User, info: &'a RequestInfo) -> Ask<'a> {
    let target = if info.is_resource {
        Target::Resource {
            group: &info.group,
            resource: &info.resource,
            subresource: &info.subresource,
            namespace: &info.namespace,
            name: &info.name,
        }
    } else {
        Target::Path(&info.path)
    };
    Ask { user: &user.name, groups: &user.groups, verb: info.verb, target }
}

/// The refusal of a request.
pub fn forbidden(user: &User, info: &RequestInfo) -> StatusError {
    if !info.is_resource {
        return StatusError::with_details(
            Reason::Forbidden,
            format!("forbidden: User \"{}\" cannot {} path \"{}\"", user.name, info.verb, info.path),
            Some(StatusDetails::default()),
        );
    }
    let resource = if info.subresource.is_empty() {
        info.resource.clone()
    } else {
        format!("{}/{}", info.resource, info.subresource)
    };
    let place = if info.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace \"{}\"", info.namespace)
    };
    let why = format!(
        "User \"{}\" cannot {} resource \"{resource}\" in API group \"{}\" {place}",
        user.name, info.verb, info.group
    );
    StatusError::forbidden(&info.group, &info.resource, &info.name, why)
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::request::Query;

    #[test]
    fn refusals_read_as_upstreams() {
        let jane = User::authenticated("jane", &[]);
        let cases = [
            (
                "/api/v1/namespaces/a/pods",
                "pods is forbidden: User \"jane\" cannot list resource \"pods\" in API group \"\" in the namespace \"a\"",
            ),
            ("/metrics", "forbidden: User \"jane\" cannot get path \"/metrics\""),
        ];
        for (path, expected) in cases {
            let info = RequestInfo::parse(&Method::GET, path, &Query::default());
            let refused = Authorizer::default().check(&jane, &info).expect_err("refused");
            assert_eq!(refused.to_string(), expected);
        }
        let admin = User::authenticated("admin", &[MASTERS]);
        let info = RequestInfo::parse(&Method::GET, "/metrics", &Query::default());
        assert!(Authorizer::default().check(&admin, &info).is_ok());
    }
}
