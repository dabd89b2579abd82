//! A webhook: where it is, and what it is asked. Validating and mutating ones differ in a field.

use std::collections::BTreeSet;

use k8s_openapi::api::admissionregistration::v1::{MatchCondition, RuleWithOperations, WebhookClientConfig};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use krate_api::names::{is_dns1035_label, is_dns1123_subdomain};
use krate_api::{FieldErrors, FieldPath};

use super::matching::{Rule, conditions, rule};
use crate::registry::rules::{each, label_selector, one_of};

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
        review_versions(hook.versions, &at.child("admissionReviewVersions"), errors);
        if !hook.name.is_empty() && !names.insert(hook.name) {
            errors.duplicate(&at.child("name"), hook.name);
        }
    }
}

fn one(hook: &Said<'_>, at: &FieldPath, errors: &mut FieldErrors) {
    name(hook.name, &at.child("name"), errors);
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
    client(hook.client, &at.child("clientConfig"), errors);
    conditions(hook.conditions, false, &at.child("matchConditions"), errors);
}

fn name(name: &str, at: &FieldPath, errors: &mut FieldErrors) {
    let wrong = is_dns1123_subdomain(name);
    if name.is_empty() {
        errors.required(at, "");
    } else if !wrong.is_empty() {
        errors.invalid(at, name, wrong.join(","));
    } else if name.split('.').count() < 3 {
        errors.invalid(at, name, "should be a domain with at least three segments separated by dots");
    }
}

/// Which versions of a review a webhook reads: one that is sent must be among them.
fn review_versions(versions: &[String], at: &FieldPath, errors: &mut FieldErrors) {
    if versions.is_empty() {
        errors.required(at, "must specify one of v1, v1beta1");
        return;
    }
    let mut known = BTreeSet::new();
    for (i, version) in versions.iter().enumerate() {
        if known.insert(version.as_str()) {
            each(is_dns1035_label(version), version, &at.index(i), errors);
        } else {
            errors.invalid(&at.index(i), version, "duplicate version");
        }
    }
    if !known.contains("v1") && !known.contains("v1beta1") {
        errors.invalid(at, versions, "must include at least one of v1, v1beta1");
    }
}

fn client(config: &WebhookClientConfig, at: &FieldPath, errors: &mut FieldErrors) {
    match (&config.url, &config.service) {
        (None, None) | (Some(_), Some(_)) => errors.required(at, "exactly one of url or service is required"),
        (Some(said), None) => url(said, &at.child("url"), errors),
        (None, Some(said)) => {
            let (path, port) = (said.path.as_deref(), said.port.unwrap_or(443));
            service(&said.name, &said.namespace, path, port, &at.child("service"), errors);
        }
    }
}

/// Checks the URL of a webhook.
pub fn url(url: &str, at: &FieldPath, errors: &mut FieldErrors) {
    let form = "; desired format: https://host[/path]";
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    if scheme != "https" {
        errors.invalid(at, scheme, format!("'https' is the only allowed URL scheme{form}"));
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    if host.is_empty() || scheme.is_empty() {
        errors.invalid(at, "", format!("host must be specified{form}"));
    }
    if let Some((user, _)) = authority.rsplit_once('@') {
        errors.invalid(at, user, "user information is not permitted in the URL");
    }
    let (before, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    if !fragment.is_empty() {
        errors.invalid(at, fragment, "fragments are not permitted in the URL");
    }
    if let Some((_, query)) = before.split_once('?').filter(|(_, query)| !query.is_empty()) {
        errors.invalid(at, query, "query parameters are not permitted in the URL");
    }
}

/// Checks the Service that a webhook stands behind.
pub fn service(
    name: &str,
    namespace: &str,
    path: Option<&str>,
    number: i32,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    for (field, value) in [("name", name), ("namespace", namespace)] {
        if value.is_empty() {
            errors.required(&at.child(field), "");
        }
    }
    if !(1..=65535).contains(&number) {
        let detail = "port is not valid: must be between 1 and 65535, inclusive";
        errors.invalid(&at.child("port"), number, detail);
    }
    let at = at.child("path");
    let Some(path) = path.filter(|path| !matches!(*path, "" | "/")) else { return };
    if path == "//" {
        return errors.invalid(&at, path, "segment[0] may not be empty");
    }
    if !path.starts_with('/') {
        errors.invalid(&at, path, "must start with a '/'");
    }
    let inside = path.get(1..).unwrap_or_default();
    for (i, step) in inside.strip_suffix('/').unwrap_or(inside).split('/').enumerate() {
        if step.is_empty() {
            errors.invalid(&at, path, format!("segment[{i}] may not be empty"));
            continue;
        }
        for why in is_dns1123_subdomain(step) {
            errors.invalid(&at, path, format!("segment[{i}]: {why}"));
        }
    }
}

/// Checks the authorities of a webhook, PEM.
pub fn ca_bundle(bundle: &[u8], at: &FieldPath, errors: &mut FieldErrors) {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;
    let found = CertificateDer::pem_slice_iter(bundle).next();
    if !matches!(found, Some(Ok(_))) {
        use base64::Engine as _;
        let shown = base64::engine::general_purpose::STANDARD.encode(bundle);
        let detail = "unable to load root certificates: unable to parse bytes as PEM block";
        errors.invalid(at, shown, detail);
    }
}

#[cfg(test)]
mod tests {
    use super::super::told;
    use super::*;

    #[test]
    fn a_version_of_reviews_is_named_once() {
        let judge = |versions: &[&str]| {
            let versions: Vec<String> = versions.iter().map(|v| (*v).to_owned()).collect();
            told(|at, errors| review_versions(&versions, at, errors))
        };
        assert_eq!(judge(&["v2", "v1"]), [""; 0]);
        assert_eq!(judge(&["v1", "v1"]), ["x[1]: Invalid value: \"v1\": duplicate version"]);
        let told = judge(&["1"]);
        assert!(told[0].starts_with("x[0]: Invalid value: \"1\": a DNS-1035 label must"), "{told:?}");
        assert_eq!(told[1], "x: Invalid value: [\"1\"]: must include at least one of v1, v1beta1");
    }

    #[test]
    fn a_name_is_wrong_in_one_way_at_a_time() {
        assert_eq!(told(|at, errors| name("a.example.com", at, errors)), [""; 0]);
        assert_eq!(
            told(|at, errors| name("a.b", at, errors)),
            ["x: Invalid value: \"a.b\": should be a domain with at least three segments separated by dots"]
        );
        assert_eq!(told(|at, errors| name("A", at, errors)).len(), 1);
    }
}
