//! When a rule allows, and when rules cover one another.

use std::collections::BTreeMap;

use k8s_openapi::api::rbac::v1::PolicyRule;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    Resource {
        group: &'a str,
        resource: &'a str,
        /// Empty for the resource itself.
        subresource: &'a str,
        namespace: &'a str,
        name: &'a str,
    },
    /// A path that is no resource's.
    Path(&'a str),
}

impl Default for Target<'_> {
    fn default() -> Self {
        Target::Path("")
    }
}

/// A question: may this user, who is in these groups, do this?
#[derive(Clone, Copy, Debug, Default)]
pub struct Ask<'a> {
    pub user: &'a str,
    pub groups: &'a [String],
    pub verb: &'a str,
    pub target: Target<'a>,
    /// What authorizers that stand elsewhere are told besides: the version of the resource, and what else is known of the
    /// user.
    pub version: &'a str,
    /// The field selector of a list or a watch, and its label selector.
    pub fields: &'a str,
    pub labels: &'a str,
    pub uid: &'a str,
    pub extra: Option<&'a BTreeMap<String, Vec<String>>>,
}

impl<'a> Ask<'a> {
    pub fn namespace(&self) -> &'a str {
        match self.target {
            Target::Resource { namespace, .. } => namespace,
            Target::Path(_) => "",
        }
    }
}

fn any(list: Option<&Vec<String>>, test: impl Fn(&str) -> bool) -> bool {
    list.is_some_and(|l| l.iter().any(|item| test(item)))
}

/// Whether `rule` allows what is asked, whoever asks.
pub fn matches(rule: &PolicyRule, ask: &Ask<'_>) -> bool {
    if !rule.verbs.iter().any(|v| v == "*" || v == ask.verb) {
        return false;
    }
    match ask.target {
        Target::Path(path) => any(rule.non_resource_urls.as_ref(), |url| path_matches(url, path)),
        Target::Resource { group, resource, subresource, name, .. } => {
            any(rule.api_groups.as_ref(), |g| g == "*" || g == group)
                && any(rule.resources.as_ref(), |r| resource_matches(r, resource, subresource))
                && rule
                    .resource_names
                    .as_ref()
                    .is_none_or(|names| names.is_empty() || names.iter().any(|n| n == name))
        }
    }
}

fn path_matches(url: &str, path: &str) -> bool {
    url == "*" || url == path || url.strip_suffix('*').is_some_and(|prefix| path.starts_with(prefix))
}

/// `pods`, `pods/log`, `*`, `*/scale`. Who asks in a review may name both parts of `pods/log` as the resource.
fn resource_matches(rule: &str, resource: &str, subresource: &str) -> bool {
    if rule == "*" {
        return true;
    }
    if subresource.is_empty() {
        return rule == resource;
    }
    rule.split_once('/').is_some_and(|(r, s)| s == subresource && (r == "*" || r == resource))
}

/// Whether someone who has `owned` has all that `wanted` gives. Each rule of `wanted` is taken apart into its single
/// permissions, as upstream does to keep users from giving what they do not have. Returns those that are not covered.
pub fn covers(owned: &[PolicyRule], wanted: &[PolicyRule]) -> Vec<PolicyRule> {
    wanted
        .iter()
        .flat_map(apart)
        .filter(|single| !owned.iter().any(|rule| covers_one(rule, single)))
        .collect()
}

fn apart(rule: &PolicyRule) -> Vec<PolicyRule> {
    let mut out = Vec::new();
    let one = |s: &String| Some(vec![s.clone()]);
    for verb in &rule.verbs {
        for group in rule.api_groups.iter().flatten() {
            for resource in rule.resources.iter().flatten() {
                let base = PolicyRule {
                    verbs: vec![verb.clone()],
                    api_groups: one(group),
                    resources: one(resource),
                    ..PolicyRule::default()
                };
                match rule.resource_names.as_ref().filter(|names| !names.is_empty()) {
                    None => out.push(base),
                    Some(names) => out.extend(
                        names.iter().map(|name| PolicyRule { resource_names: one(name), ..base.clone() }),
                    ),
                }
            }
        }
        for url in rule.non_resource_urls.iter().flatten() {
            out.push(PolicyRule {
                verbs: vec![verb.clone()],
                non_resource_urls: one(url),
                ..PolicyRule::default()
            });
        }
    }
    out
}

fn covers_one(owned: &PolicyRule, single: &PolicyRule) -> bool {
    let first = |list: Option<&Vec<String>>| list.and_then(|l| l.first()).cloned().unwrap_or_default();
    let verb = first(Some(&single.verbs));
    if !owned.verbs.iter().any(|v| v == "*" || *v == verb) {
        return false;
    }
    if let Some(url) = single.non_resource_urls.as_ref().and_then(|u| u.first()) {
        return any(owned.non_resource_urls.as_ref(), |o| path_matches(o, url));
    }
    let group = first(single.api_groups.as_ref());
    let wanted = first(single.resources.as_ref());
    let (resource, subresource) = wanted.split_once('/').unwrap_or((&wanted, ""));
    any(owned.api_groups.as_ref(), |g| g == "*" || g == group)
        && any(owned.resources.as_ref(), |r| r == wanted || resource_matches(r, resource, subresource))
        && match (owned.resource_names.as_ref().filter(|n| !n.is_empty()), single.resource_names.as_ref()) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(names), Some(wanted)) => wanted.iter().all(|n| names.contains(n)),
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(verbs: &[&str], groups: &[&str], resources: &[&str], names: &[&str]) -> PolicyRule {
        let list = |l: &[&str]| l.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        PolicyRule {
            verbs: list(verbs),
            api_groups: Some(list(groups)),
            resources: Some(list(resources)),
            resource_names: (!names.is_empty()).then(|| list(names)),
            non_resource_urls: None,
        }
    }

    #[test]
    fn a_star_of_resources_covers_subresources_and_a_name_does_not_cover_all_names() {
        let all = rule(&["*"], &["*"], &["*"], &[]);
        let logs = rule(&["get"], &[""], &["pods/log"], &[]);
        let one = rule(&["get"], &[""], &["pods"], &["x"]);
        let pods = rule(&["get", "list"], &[""], &["pods"], &[]);
        assert!(covers(std::slice::from_ref(&all), &[logs.clone(), pods.clone()]).is_empty());
        assert!(covers(std::slice::from_ref(&pods), std::slice::from_ref(&one)).is_empty());
        assert_eq!(covers(&[one], std::slice::from_ref(&pods)).len(), 2);
        assert_eq!(covers(&[pods], &[logs]).len(), 1);
    }

    #[test]
    fn a_subresource_may_stand_in_the_resource() {
        for (named, resource, subresource, expected) in [
            ("pods/log", "pods", "log", true),
            ("pods/log", "pods/log", "", true),
            ("pods", "pods/log", "", false),
            ("*/log", "pods/log", "", false),
            ("*/log", "pods", "log", true),
            ("pods/log", "pods", "", false),
        ] {
            let found = resource_matches(named, resource, subresource);
            assert_eq!(found, expected, "{named} {resource} {subresource}");
        }
    }
}
