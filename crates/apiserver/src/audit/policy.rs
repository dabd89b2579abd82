//! What is audited, and how much of it: the `Policy` of `audit.k8s.io/v1`.

use std::path::Path;

use krate_api::names::is_dns1123_subdomain;
use krate_api::{FieldErrors, FieldPath};
use serde::{Deserialize, Serialize};

use crate::auth::User;
use crate::config_file;
use crate::request::RequestInfo;

const API_VERSION: &str = "audit.k8s.io/v1";
const LEVELS: [&str; 4] = ["None", "Metadata", "Request", "RequestResponse"];
const STAGES: [&str; 4] = ["RequestReceived", "ResponseStarted", "ResponseComplete", "Panic"];

/// How much of a request is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Level {
    #[default]
    None,
    Metadata,
    Request,
    RequestResponse,
}

/// When it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Stage {
    RequestReceived,
    ResponseStarted,
    ResponseComplete,
    Panic,
}

impl Level {
    pub fn name(self) -> &'static str {
        LEVELS[self as usize]
    }

    fn of(name: &str) -> Self {
        match name {
            "Metadata" => Level::Metadata,
            "Request" => Level::Request,
            "RequestResponse" => Level::RequestResponse,
            _ => Level::None,
        }
    }
}

impl Stage {
    pub fn name(self) -> &'static str {
        STAGES[self as usize]
    }
}

/// The first rule that a request matches says how it is told; one that matches none is not.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Policy {
    #[serde(rename = "metadata")]
    _metadata: serde_json::Value,
    rules: Vec<Rule>,
    omit_stages: Vec<String>,
    omit_managed_fields: bool,
}

/// What is not said matches everything.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Rule {
    level: String,
    users: Vec<String>,
    user_groups: Vec<String>,
    verbs: Vec<String>,
    resources: Vec<Resources>,
    namespaces: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    paths: Vec<String>,
    omit_stages: Vec<String>,
    omit_managed_fields: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Resources {
    group: String,
    resources: Vec<String>,
    resource_names: Vec<String>,
}

/// How one request is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub level: Level,
    /// By stage.
    pub omitted: [bool; 4],
    pub omit_managed_fields: bool,
}

impl Policy {
    /// Reads a policy. A field that nobody knows is warned of, and passed over.
    ///
    /// # Errors
    /// What is wrong with it, in upstream's words.
    pub fn load(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let text =
            std::fs::read(path).map_err(|error| format!("failed to read file path \"{shown}\": {error}"))?;
        Self::read(&text).map_err(|error| format!("{error}: from file {shown}"))
    }

    fn read(text: &[u8]) -> Result<Self, String> {
        let read = config_file::read_lenient(text, &[API_VERSION], "Policy");
        let (policy, unknown): (Policy, _) = read.map_err(|error| format!("failed decoding: {error}"))?;
        if !unknown.is_empty() {
            let error = config_file::strict(&unknown);
            tracing::warn!("Audit policy contains errors, falling back to lenient decoding: {error}");
        }
        let errors = policy.validate();
        if !errors.is_empty() {
            return Err(errors.aggregate());
        }
        if policy.rules.is_empty() {
            return Err("loaded illegal policy with 0 rules".to_owned());
        }
        Ok(policy)
    }

    fn validate(&self) -> FieldErrors {
        let mut errors = FieldErrors::new();
        validate_stages(&self.omit_stages, &FieldPath::new("omitStages"), &mut errors);
        for (i, rule) in self.rules.iter().enumerate() {
            rule.validate(&FieldPath::new("rules").index(i), &mut errors);
        }
        errors
    }

    /// How a request is told.
    pub fn judge(&self, user: &User, info: &RequestInfo) -> Verdict {
        let rule = self.rules.iter().find(|rule| rule.matches(user, info));
        let own = rule.map(|rule| rule.omit_stages.as_slice()).unwrap_or_default();
        let omitted = STAGES.map(|stage| self.omit_stages.iter().chain(own).any(|omitted| omitted == stage));
        Verdict {
            level: rule.map_or(Level::None, |rule| Level::of(&rule.level)),
            omitted,
            omit_managed_fields: rule
                .and_then(|rule| rule.omit_managed_fields)
                .unwrap_or(self.omit_managed_fields),
        }
    }
}

fn validate_stages(stages: &[String], at: &FieldPath, errors: &mut FieldErrors) {
    for (i, stage) in stages.iter().enumerate() {
        if !STAGES.contains(&stage.as_str()) {
            errors.invalid(&at.index(i), stage, format!("allowed stages are {}", STAGES.join(",")));
        }
    }
}

impl Rule {
    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        match self.level.as_str() {
            "" => errors.required(&at.child("level"), ""),
            level if LEVELS.contains(&level) => {}
            level => errors.not_supported(&at.child("level"), level, &LEVELS),
        }
        let paths = at.child("nonResourceURLs");
        for (i, path) in self.paths.iter().enumerate().filter(|(_, path)| *path != "*") {
            if !path.starts_with('/') {
                errors.invalid(
                    &paths.index(i),
                    path,
                    "non-resource URL rules must begin with a '/' character",
                );
            }
            if path.find('*').is_some_and(|star| star + 1 < path.len()) {
                errors.invalid(
                    &paths.index(i),
                    path,
                    "non-resource URL wildcards '*' must be the final character of the rule",
                );
            }
        }
        for resources in &self.resources {
            let at = at.child("resources");
            if !matches!(resources.group.as_str(), "" | "*") {
                let wrong = is_dns1123_subdomain(&resources.group);
                if !wrong.is_empty() {
                    errors.invalid(&at.child("group"), &resources.group, wrong.join(","));
                }
            }
            if !resources.resource_names.is_empty() && resources.resources.is_empty() {
                errors.invalid(
                    &at.child("resourceNames"),
                    &resources.resource_names,
                    "using resourceNames requires at least one resource",
                );
            }
        }
        validate_stages(&self.omit_stages, &at.child("omitStages"), errors);
        if !self.paths.is_empty() && (!self.resources.is_empty() || !self.namespaces.is_empty()) {
            errors.invalid(
                &paths,
                &self.paths,
                "rules cannot apply to both regular resources and non-resource URLs",
            );
        }
    }

    fn matches(&self, user: &User, info: &RequestInfo) -> bool {
        let among = |list: &[String], value: &str| list.iter().any(|one| one == value);
        if !self.users.is_empty() && !among(&self.users, &user.name) {
            return false;
        }
        if !self.user_groups.is_empty() && !user.groups.iter().any(|group| among(&self.user_groups, group)) {
            return false;
        }
        if !self.verbs.is_empty() && !among(&self.verbs, info.verb) {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            return info.is_resource
                && (self.namespaces.is_empty() || among(&self.namespaces, &info.namespace))
                && (self.resources.is_empty() || self.resources.iter().any(|r| r.matches(info)));
        }
        self.paths.is_empty() || (!info.is_resource && self.paths.iter().any(|path| covers(path, &info.path)))
    }
}

fn covers(pattern: &str, path: &str) -> bool {
    pattern == "*"
        || pattern == path
        || (pattern.ends_with('*') && path.starts_with(pattern.trim_end_matches('*')))
}

impl Resources {
    fn matches(&self, info: &RequestInfo) -> bool {
        if self.group != info.group && self.group != "*" {
            return false;
        }
        if self.resources.is_empty() {
            return true;
        }
        if !self.resource_names.is_empty() && !self.resource_names.contains(&info.name) {
            return false;
        }
        let (resource, subresource) = (info.resource.as_str(), info.subresource.as_str());
        self.resources.iter().any(|wanted| match wanted.split_once('/') {
            None => wanted == "*" || (subresource.is_empty() && wanted == resource),
            Some(("*", part)) if !subresource.is_empty() && part == subresource => true,
            Some((whole, "*")) => whole == resource,
            Some((whole, part)) => whole == resource && part == subresource,
        })
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::request::Query;

    fn policy(rules: &str) -> Result<Policy, String> {
        Policy::read(format!("{{apiVersion: audit.k8s.io/v1, kind: Policy, {rules}}}").as_bytes())
    }

    #[test]
    fn the_first_rule_that_matches_says_how() {
        let policy = policy(
            "omitStages: [RequestReceived], omitManagedFields: true, rules: [\
             {level: None, users: ['system:kube-proxy'], verbs: [watch], resources: [{group: '', resources: [endpoints]}]},\
             {level: None, nonResourceURLs: ['/healthz*']},\
             {level: Request, resources: [{group: '', resources: [pods/log, '*/exec'], resourceNames: [web]}]},\
             {level: RequestResponse, namespaces: [kube-system], omitStages: [Panic], omitManagedFields: false},\
             {level: Metadata, userGroups: ['system:authenticated'], resources: [{group: apps}, {group: '', resources: ['services/*']}]}]",
        )
        .expect("it is good");
        let judge = |user: &str, method: Method, path: &str| {
            let query = Query::parse(path.split_once('?').map(|(_, query)| query));
            let path = path.split('?').next().unwrap_or_default();
            policy.judge(&User::authenticated(user, &[]), &RequestInfo::parse(&method, path, &query))
        };
        let get = |user: &str, path: &str| judge(user, Method::GET, path).level;
        assert_eq!(get("system:kube-proxy", "/api/v1/endpoints?watch=1"), Level::None);
        assert_eq!(get("jane", "/healthz/ping"), Level::None);
        assert_eq!(get("jane", "/api/v1/namespaces/a/pods/web/log"), Level::Request);
        assert_eq!(get("jane", "/api/v1/namespaces/a/pods/web/exec"), Level::Request);
        assert_eq!(get("jane", "/api/v1/namespaces/a/pods/db/log"), Level::None);
        assert_eq!(get("jane", "/apis/apps/v1/deployments"), Level::Metadata);
        assert_eq!(get("jane", "/api/v1/namespaces/a/services/x/proxy"), Level::Metadata);
        assert_eq!(get("jane", "/api/v1/namespaces/a/services/x"), Level::Metadata, "a part of `services/*`");
        let system = judge("jane", Method::PUT, "/api/v1/namespaces/kube-system/secrets/s");
        assert_eq!(
            system,
            Verdict {
                level: Level::RequestResponse,
                omitted: [true, false, false, true],
                omit_managed_fields: false
            }
        );
        assert!(judge("jane", Method::GET, "/version").omit_managed_fields, "as the policy says for all");
    }

    #[test]
    fn wrong_policies_are_refused_in_upstreams_words() {
        for (rules, expected) in [
            ("rules: []", "loaded illegal policy with 0 rules"),
            ("rules: [{}]", "rules[0].level: Required value"),
            (
                "rules: [{level: All}]",
                "rules[0].level: Unsupported value: \"All\": supported values: \"None\", \"Metadata\", \"Request\", \"RequestResponse\"",
            ),
            (
                "omitStages: [Never], rules: [{level: None}]",
                "omitStages[0]: Invalid value: \"Never\": allowed stages are RequestReceived,ResponseStarted,ResponseComplete,Panic",
            ),
            (
                "rules: [{level: None, nonResourceURLs: [healthz]}]",
                "rules[0].nonResourceURLs[0]: Invalid value: \"healthz\": non-resource URL rules must begin with a '/' character",
            ),
            (
                "rules: [{level: None, nonResourceURLs: ['/a*b']}]",
                "rules[0].nonResourceURLs[0]: Invalid value: \"/a*b\": non-resource URL wildcards '*' must be the final character of the rule",
            ),
            (
                "rules: [{level: None, nonResourceURLs: ['*'], namespaces: [a]}]",
                "rules[0].nonResourceURLs: Invalid value: [\"*\"]: rules cannot apply to both regular resources and non-resource URLs",
            ),
            (
                "rules: [{level: None, resources: [{group: '', resourceNames: [a]}]}]",
                "rules[0].resources.resourceNames: Invalid value: [\"a\"]: using resourceNames requires at least one resource",
            ),
        ] {
            assert_eq!(policy(rules).expect_err("refused"), expected, "{rules}");
        }
        let group = policy("rules: [{level: None, resources: [{group: 'a/v1'}]}]").expect_err("refused");
        assert!(group.starts_with("rules[0].resources.group: Invalid value: \"a/v1\": "), "{group}");
        policy("rules: [{level: None, more: 1}]").expect("what nobody knows is passed over");
    }
}
