//! A webhook: where it is, and what it is asked. Validating and mutating ones differ in a field.

use std::collections::BTreeSet;

use k8s_openapi::api::admissionregistration::v1::{MatchCondition, RuleWithOperations, WebhookClientConfig};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use krate_api::{FieldErrors, FieldPath};

use super::matching::{Rule, conditions, rule};
use crate::registry::rules::{dns_subdomain, label_selector, one_of, port};

/// Fills in what both kinds of webhooks share.
macro_rules! default_webhook {
    ($hook:expr) => {{
        let hook = $hook;
        hook.failure_policy.get_or_insert_with(|| "Fail".to_owned());
        hook.match_policy.get_or_insert_with(|| "Equivalent".to_owned());
        hook.namespace_selector.get_or_insert_default();
        hook.object_selector.get_or_insert_default();
        hook.timeout_seconds.get_or_insert(10);
        for rule in hook.rules.iter_mut().flatten() {
            rule.scope.get_or_insert_with(|| "*".to_owned());
        }
        if let Some(service) = &mut hook.client_config.service {
            service.port.get_or_insert(443);
        }
    }};
}

/// What both kinds of webhooks say.
macro_rules! said {
    ($hook:expr) => {
        $crate::registry::admissionregistration::webhook::Said {
            name: &$hook.name,
            versions: &$hook.admission_review_versions,
            client: &$hook.client_config,
            failure_policy: $hook.failure_policy.as_deref(),
            match_policy: $hook.match_policy.as_deref(),
            side_effects: &$hook.side_effects,
            timeout: $hook.timeout_seconds,
            rules: $hook.rules.as_deref().unwrap_or_default(),
            selectors: [
                ("namespaceSelector", $hook.namespace_selector.as_ref()),
                ("objectSelector", $hook.object_selector.as_ref()),
            ],
            conditions: $hook.match_conditions.as_deref(),
        }
    };
}

pub(super) use default_webhook;
pub(super) use said;

pub struct Said<'a> {
    pub name: &'a str,
    pub versions: &'a [String],
    pub client: &'a WebhookClientConfig,
    pub failure_policy: Option<&'a str>,
    pub match_policy: Option<&'a str>,
    pub side_effects: &'a str,
    pub timeout: Option<i32>,
    pub rules: &'a [RuleWithOperations],
    pub selectors: [(&'static str, Option<&'a LabelSelector>); 2],
    pub conditions: Option<&'a [MatchCondition]>,
}

pub fn validate<'a>(hooks: impl Iterator<Item = Said<'a>>, at: &FieldPath, errors: &mut FieldErrors) {
    let mut names = BTreeSet::new();
    for (i, hook) in hooks.enumerate() {
        let at = at.index(i);
        one(&hook, &at, errors);
        if !names.insert(hook.name) {
            errors.duplicate(&at.child("name"), hook.name);
        }
    }
}

fn one(hook: &Said<'_>, at: &FieldPath, errors: &mut FieldErrors) {
    if hook.name.is_empty() {
        errors.required(&at.child("name"), "");
    } else {
        dns_subdomain(hook.name, &at.child("name"), errors);
        if hook.name.split('.').count() < 3 {
            errors.invalid(
                &at.child("name"),
                hook.name,
                "should be a domain with at least three segments separated by dots",
            );
        }
    }
    for (i, r) in hook.rules.iter().enumerate() {
        let none = Vec::new();
        let said = Rule {
            groups: r.api_groups.as_ref().unwrap_or(&none),
            versions: r.api_versions.as_ref().unwrap_or(&none),
            resources: r.resources.as_ref().unwrap_or(&none),
            operations: r.operations.as_ref().unwrap_or(&none),
            scope: r.scope.as_deref(),
        };
        rule(&said, &at.child("rules").index(i), errors);
    }
    if let Some(policy) = hook.failure_policy {
        one_of(policy, &["Fail", "Ignore"], &at.child("failurePolicy"), errors);
    }
    if let Some(policy) = hook.match_policy {
        one_of(policy, &["Equivalent", "Exact"], &at.child("matchPolicy"), errors);
    }
    let at_effects = at.child("sideEffects");
    if hook.side_effects.is_empty() {
        errors.required(&at_effects, "must specify one of None, NoneOnDryRun");
    } else {
        one_of(hook.side_effects, &["None", "NoneOnDryRun"], &at_effects, errors);
    }
    if let Some(seconds) = hook.timeout
        && !(1..=30).contains(&seconds)
    {
        errors.invalid(
            &at.child("timeoutSeconds"),
            seconds,
            "the timeout value must be between 1 and 30 seconds",
        );
    }
    for (name, selector) in hook.selectors {
        if let Some(selector) = selector {
            label_selector(selector, &at.child(name), errors);
        }
    }
    let at_versions = at.child("admissionReviewVersions");
    if hook.versions.is_empty() {
        errors.required(&at_versions, "must specify one of v1, v1beta1");
    } else if !hook.versions.iter().any(|v| v == "v1" || v == "v1beta1") {
        errors.invalid(&at_versions, hook.versions, "must include at least one of v1, v1beta1");
    }
    client(hook.client, &at.child("clientConfig"), errors);
    conditions(hook.conditions, &at.child("matchConditions"), errors);
    super::expressions::conditions(hook.conditions, false, &at.child("matchConditions"), errors);
}

fn client(config: &WebhookClientConfig, at: &FieldPath, errors: &mut FieldErrors) {
    match (&config.url, &config.service) {
        (None, None) | (Some(_), Some(_)) => errors.required(at, "exactly one of url or service is required"),
        (Some(url), None) => {
            let at = at.child("url");
            let form = "desired format: https://host[/path]";
            match url.split_once("://") {
                Some(("https", rest)) => {
                    let (host, _) = rest.split_once('/').unwrap_or((rest, ""));
                    if host.is_empty() {
                        errors.invalid(&at, host, format!("host must be specified; {form}"));
                    }
                    if host.contains('@') {
                        errors.invalid(
                            &at,
                            host,
                            format!("user information is not permitted in the URL; {form}"),
                        );
                    }
                    if url.contains('#') {
                        errors.invalid(&at, url, format!("fragments are not permitted in the URL; {form}"));
                    }
                    if url.contains('?') {
                        errors.invalid(
                            &at,
                            url,
                            format!("query parameters are not permitted in the URL; {form}"),
                        );
                    }
                }
                Some((scheme, _)) => {
                    errors.invalid(&at, scheme, format!("'https' is the only allowed URL scheme; {form}"));
                }
                None => errors.invalid(&at, "", format!("'https' is the only allowed URL scheme; {form}")),
            }
        }
        (None, Some(service)) => {
            let at = at.child("service");
            if service.name.is_empty() {
                errors.required(&at.child("name"), "service name is required");
            }
            if service.namespace.is_empty() {
                errors.required(&at.child("namespace"), "service namespace is required");
            }
            port(service.port.unwrap_or(443), &at.child("port"), errors);
            if let Some(path) = service.path.as_deref()
                && !path.is_empty()
                && !path.starts_with('/')
            {
                errors.invalid(&at.child("path"), path, "must start with a '/'");
            }
        }
    }
}
