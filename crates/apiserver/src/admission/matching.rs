//! Which requests a webhook or a policy is asked about: by rules, and by labels of the namespace and of the object.

use k8s_openapi::api::admissionregistration::v1::{
    MatchResources, NamedRuleWithOperations, RuleWithOperations,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as Selector;
use krate_api::{LabelSelector, StatusError};

use super::{Attributes, Operation, lookup};
use crate::kinds::Kinds;
use crate::registry::erased::Object;

/// The objects that say who is asked: nobody is asked about those, so that they can always be changed.
const EXEMPT: [&str; 6] = [
    "mutatingadmissionpolicies",
    "mutatingadmissionpolicybindings",
    "mutatingwebhookconfigurations",
    "validatingadmissionpolicies",
    "validatingadmissionpolicybindings",
    "validatingwebhookconfigurations",
];

pub fn is_exempt(attributes: &Attributes) -> bool {
    attributes.kind.group == "admissionregistration.k8s.io" && EXEMPT.contains(&attributes.kind.plural)
}

/// A rule of either sort.
#[derive(Clone, Copy)]
pub struct Rule<'a> {
    groups: &'a [String],
    versions: &'a [String],
    resources: &'a [String],
    operations: &'a [String],
    names: &'a [String],
    scope: &'a str,
}

impl<'a> From<&'a RuleWithOperations> for Rule<'a> {
    fn from(rule: &'a RuleWithOperations) -> Self {
        Rule {
            groups: rule.api_groups.as_deref().unwrap_or_default(),
            versions: rule.api_versions.as_deref().unwrap_or_default(),
            resources: rule.resources.as_deref().unwrap_or_default(),
            operations: rule.operations.as_deref().unwrap_or_default(),
            names: &[],
            scope: rule.scope.as_deref().unwrap_or("*"),
        }
    }
}

impl<'a> From<&'a NamedRuleWithOperations> for Rule<'a> {
    fn from(rule: &'a NamedRuleWithOperations) -> Self {
        Rule {
            groups: rule.api_groups.as_deref().unwrap_or_default(),
            versions: rule.api_versions.as_deref().unwrap_or_default(),
            resources: rule.resources.as_deref().unwrap_or_default(),
            operations: rule.operations.as_deref().unwrap_or_default(),
            names: rule.resource_names.as_deref().unwrap_or_default(),
            scope: rule.scope.as_deref().unwrap_or("*"),
        }
    }
}

/// As requests for admission name it.
pub fn operation_name(operation: Operation) -> &'static str {
    match operation {
        Operation::Create => "CREATE",
        Operation::Update => "UPDATE",
        Operation::Delete => "DELETE",
        Operation::Connect => "CONNECT",
    }
}

impl Rule<'_> {
    pub fn matches(&self, attributes: &Attributes) -> bool {
        let has = |list: &[String], item: &str| list.iter().any(|i| i == "*" || i == item);
        let namespaced = !attributes.namespace.is_empty() && attributes.kind.is_namespaced();
        let in_scope = match self.scope {
            "Namespaced" => namespaced,
            "Cluster" => !namespaced,
            _ => true,
        };
        let resource = |wanted: &String| {
            let (plural, sub) = wanted.split_once('/').unwrap_or((wanted, ""));
            (plural == "*" || plural == attributes.kind.plural)
                && (sub == attributes.subresource || (sub == "*" && wanted.contains('/')))
        };
        in_scope
            && has(self.operations, operation_name(attributes.operation))
            && has(self.groups, attributes.kind.group)
            && has(self.versions, attributes.kind.version)
            && self.resources.iter().any(resource)
            && (self.names.is_empty() || self.names.contains(&attributes.name))
    }
}

fn parse(selector: Option<&Selector>) -> Result<LabelSelector, StatusError> {
    // None at all selects everything.
    let everything = Selector::default();
    LabelSelector::from_meta(Some(selector.unwrap_or(&everything))).map_err(StatusError::internal)
}

/// Whether the namespace of the request has the labels; a namespace is in itself, and what is in no namespace is in all.
async fn namespace_matches(
    kinds: &Kinds,
    attributes: &Attributes,
    selector: Option<&Selector>,
    object: Option<&dyn Object>,
) -> Result<bool, StatusError> {
    let selector = parse(selector)?;
    if selector.is_everything() {
        return Ok(true);
    }
    if attributes.kind.gvk() == krate_api::kinds::NAMESPACE.gvk() {
        let labels = object.and_then(|o| o.meta().labels.clone()).unwrap_or_default();
        return Ok(selector.matches(&labels));
    }
    if attributes.namespace.is_empty() || !attributes.kind.is_namespaced() {
        return Ok(true);
    }
    let labels = lookup::labels(kinds, "namespaces", &attributes.namespace).await?;
    let missing = || StatusError::not_found("", "namespaces", &attributes.namespace);
    Ok(selector.matches(&labels.ok_or_else(missing)?))
}

/// Whether both selectors select: the object's as it is to be, or as it was.
pub async fn selected(
    kinds: &Kinds,
    attributes: &Attributes,
    (namespaces, objects): (Option<&Selector>, Option<&Selector>),
    object: Option<&dyn Object>,
    old: Option<&dyn Object>,
) -> Result<bool, StatusError> {
    if !namespace_matches(kinds, attributes, namespaces, object.or(old)).await? {
        return Ok(false);
    }
    let selector = parse(objects)?;
    let matches = |o: Option<&dyn Object>| o.is_some_and(|o| selector.matches_opt(o.meta().labels.as_ref()));
    Ok(selector.is_everything() || matches(object) || matches(old))
}

/// Whether a policy's, or a binding's, constraints hold for the request. Without rules they hold for every resource,
/// but for those that are excluded.
pub async fn constrained(
    kinds: &Kinds,
    attributes: &Attributes,
    constraints: Option<&MatchResources>,
    object: Option<&dyn Object>,
    old: Option<&dyn Object>,
) -> Result<bool, StatusError> {
    let Some(constraints) = constraints else { return Ok(true) };
    let any = |rules: Option<&Vec<NamedRuleWithOperations>>| {
        rules.is_some_and(|rules| rules.iter().any(|rule| Rule::from(rule).matches(attributes)))
    };
    let rules = constraints.resource_rules.as_ref().filter(|rules| !rules.is_empty());
    if any(constraints.exclude_resource_rules.as_ref()) || (rules.is_some() && !any(rules)) {
        return Ok(false);
    }
    let selectors = (constraints.namespace_selector.as_ref(), constraints.object_selector.as_ref());
    selected(kinds, attributes, selectors, object, old).await
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rules_name_resources_and_what_comes_after_them() {
        let cases = [
            ("pods", "", true),
            ("pods", "status", false),
            ("pods/status", "status", true),
            ("pods/*", "status", true),
            ("pods/*", "", true),
            ("*", "", true),
            ("*", "status", false),
            ("*/*", "status", true),
            ("*/scale", "status", false),
            ("services", "", false),
        ];
        for (resource, subresource, expected) in cases {
            let rule: RuleWithOperations =
                serde_json::from_value(json!({"apiGroups": [""], "apiVersions": ["*"],
                "operations": ["UPDATE"], "resources": [resource], "scope": "Namespaced"}))
                .expect("a rule");
            let attributes =
                Attributes::for_test(Operation::Update, &krate_api::kinds::POD, subresource, "ns", "p");
            assert_eq!(Rule::from(&rule).matches(&attributes), expected, "{resource} {subresource}");
            let create =
                Attributes::for_test(Operation::Create, &krate_api::kinds::POD, subresource, "ns", "p");
            assert!(!Rule::from(&rule).matches(&create));
        }
    }
}
