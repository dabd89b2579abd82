//! Which requests a webhook or a policy is asked about: by rules, and by labels of the namespace and of the object.

use k8s_openapi::api::admissionregistration::v1::{
    MatchResources, NamedRuleWithOperations, RuleWithOperations,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as Selector;
use krate_api::{Kind, LabelSelector, StatusError};

use super::versions::meant;
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
        self.means(attributes, attributes.kind)
    }

    /// The same of a request as if it were about objects of another kind.
    pub fn means(&self, attributes: &Attributes, kind: &Kind) -> bool {
        let has = |list: &[String], item: &str| list.iter().any(|i| i == "*" || i == item);
        let namespaced = !attributes.namespace.is_empty() && attributes.kind.is_namespaced();
        let in_scope = match self.scope {
            "Namespaced" => namespaced,
            "Cluster" => !namespaced,
            _ => true,
        };
        let resource = |wanted: &String| {
            let (plural, sub) = wanted.split_once('/').unwrap_or((wanted, ""));
            (plural == "*" || plural == kind.plural)
                && (sub == attributes.subresource || (sub == "*" && wanted.contains('/')))
        };
        in_scope
            && has(self.operations, operation_name(attributes.operation))
            && has(self.groups, kind.group)
            && has(self.versions, kind.version)
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

/// The kind as which a policy's, or a binding's, constraints mean the request; `None` if they do not hold for it.
/// Without rules they hold for every resource, but for those that are excluded.
pub async fn constrained(
    kinds: &Kinds,
    attributes: &Attributes,
    constraints: Option<&MatchResources>,
    object: Option<&dyn Object>,
    old: Option<&dyn Object>,
) -> Result<Option<&'static Kind>, StatusError> {
    let Some(constraints) = constraints else { return Ok(Some(attributes.kind)) };
    let equivalent = constraints.match_policy.as_deref() == Some("Equivalent");
    let by = |rules: Option<&Vec<NamedRuleWithOperations>>| {
        let rules = rules.map(Vec::as_slice).unwrap_or_default();
        meant(kinds, attributes, rules.iter().map(Rule::from), equivalent)
    };
    if by(constraints.exclude_resource_rules.as_ref()).is_some() {
        return Ok(None);
    }
    let rules = constraints.resource_rules.as_ref().filter(|rules| !rules.is_empty());
    let kind = if rules.is_some() { by(rules) } else { Some(attributes.kind) };
    let Some(kind) = kind else { return Ok(None) };
    let selectors = (constraints.namespace_selector.as_ref(), constraints.object_selector.as_ref());
    Ok(selected(kinds, attributes, selectors, object, old).await?.then_some(kind))
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

    #[test]
    fn a_rule_may_mean_another_version_of_the_same_objects() {
        let rule: RuleWithOperations =
            serde_json::from_value(json!({"apiGroups": ["autoscaling"], "apiVersions": ["v1"],
            "operations": ["CREATE"], "resources": ["horizontalpodautoscalers"]}))
            .expect("a rule");
        let (old, new) =
            (&krate_api::kinds::HORIZONTAL_POD_AUTOSCALER_V1, &krate_api::kinds::HORIZONTAL_POD_AUTOSCALER);
        let attributes = Attributes::for_test(Operation::Create, new, "", "ns", "h");
        assert!(!Rule::from(&rule).matches(&attributes));
        assert!(Rule::from(&rule).means(&attributes, old));
        let scale = Attributes::for_test(Operation::Create, new, "scale", "ns", "h");
        assert!(!Rule::from(&rule).means(&scale, old));
    }
}
