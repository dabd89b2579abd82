//! Amounts of resources: their names, and that a request is not more than its limit.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use krate_api::field::Fault;
use krate_api::{FieldError, FieldErrors, FieldPath};

use super::pod_level::is_for_pods;
use crate::registry::quantities::{is_negative, is_whole, is_zero, milli, more};
use crate::registry::rules::{NOT_NEGATIVE, dns_label, each, qualified_name};

pub type Amounts = BTreeMap<String, Quantity>;

/// What any object may name, resources by quota among it.
const STANDARD: &[&str] = &[
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "storage",
    "requests.storage",
    "services.nodeports",
    "services.loadbalancers",
];

const HUGEPAGES: &str = "hugepages-";

pub fn is_hugepages(name: &str) -> bool {
    name.starts_with(HUGEPAGES)
}

/// A resource outside Kubernetes' own names: `example.com/gpu`.
pub fn is_extended(name: &str) -> bool {
    !is_native(name)
        && !name.starts_with("requests.")
        && qualified_name(&format!("requests.{name}")).is_empty()
}

pub fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// A name that any object may use for a resource.
pub fn resource_name(name: &str, at: &FieldPath, errors: &mut FieldErrors) {
    let wrong = qualified_name(name);
    if !wrong.is_empty() {
        each(wrong, name, at, errors);
    } else if !name.contains('/') && !is_standard(name) {
        errors.invalid(at, name, "must be a standard resource type or fully qualified");
    }
}

/// The name of a resource that a container may ask for.
pub fn container_resource_name(name: &str, at: &FieldPath, errors: &mut FieldErrors) {
    resource_name(name, at, errors);
    if !name.contains('/') {
        if !["cpu", "memory", "ephemeral-storage"].contains(&name) && !is_hugepages(name) {
            errors.invalid(at, name, "must be a standard resource for containers");
        }
    } else if !is_native(name) && !is_extended(name) {
        errors.invalid(at, name, "doesn't follow extended resource name standard");
    }
}

/// The name of a resource that a pod may ask for as a whole (KEP-2837).
fn pod_resource_name(name: &str, at: &FieldPath, errors: &mut FieldErrors) {
    let before = errors.len();
    resource_name(name, at, errors);
    if errors.len() == before && !is_for_pods(name) {
        errors.not_supported(at, name, &["cpu", "hugepages-", "memory"]);
    }
}

/// An amount: not negative, and whole where halves make no sense.
pub fn amount(name: &str, value: &Quantity, at: &FieldPath, errors: &mut FieldErrors) {
    if is_negative(value) {
        errors.invalid(at, &value.0, NOT_NEGATIVE);
    }
    let whole_only = is_extended(name)
        || [
            "pods",
            "services",
            "replicationcontrollers",
            "resourcequotas",
            "secrets",
            "configmaps",
            "persistentvolumeclaims",
        ]
        .contains(&name);
    if whole_only && !is_whole(value) {
        errors.invalid(at, &value.0, "must be an integer");
    }
}

/// Huge pages come by the page.
fn whole_pages(name: &str, value: &Quantity, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(size) = name.strip_prefix(HUGEPAGES) else { return };
    let page = Quantity(size.to_owned());
    let sound = krate_api::quantity::Quantity::parse(size).is_ok() && is_whole(&page) && milli(&page) > 0;
    if !sound || milli(value) / 1000 % (milli(&page) / 1000) != 0 {
        let why = format!("{} is not positive integer multiple of {name}", value.0);
        errors.invalid(at, &value.0, why);
    }
}

type NameRule = fn(&str, &FieldPath, &mut FieldErrors);

/// What a container asks for. `claims` are the pod's, by name.
pub fn requirements(
    r: &ResourceRequirements,
    claims: &BTreeSet<&str>,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    requirements_by(container_resource_name, r, claims, at, errors);
}

/// What a pod asks for as a whole.
pub fn pod_requirements(
    r: &ResourceRequirements,
    claims: &BTreeSet<&str>,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    requirements_by(pod_resource_name, r, claims, at, errors);
}

fn requirements_by(
    check_name: NameRule,
    r: &ResourceRequirements,
    claims: &BTreeSet<&str>,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    let none = Amounts::new();
    let (limits, requests) = (r.limits.as_ref().unwrap_or(&none), r.requests.as_ref().unwrap_or(&none));
    let (at_limits, at_requests) = (at.child("limits"), at.child("requests"));
    for (name, value) in limits {
        let at = at_limits.key(name);
        check_name(name, &at, errors);
        amount(name, value, &at, errors);
        whole_pages(name, value, &at, errors);
    }
    for (name, value) in requests {
        let at = at_requests.key(name);
        check_name(name, &at, errors);
        amount(name, value, &at, errors);
        whole_pages(name, value, &at, errors);
        match limits.get(name) {
            // What cannot be given to two at once must be asked for exactly.
            Some(limit)
                if *limit != *value
                    && (more(limit, value) || more(value, limit))
                    && !may_overcommit(name) =>
            {
                errors.invalid(
                    &at_requests,
                    &value.0,
                    format!("must be equal to {name} limit of {}", limit.0),
                );
            }
            Some(limit) if more(value, limit) => {
                errors.invalid(
                    &at_requests,
                    &value.0,
                    format!("must be less than or equal to {name} limit of {}", limit.0),
                );
            }
            None if !may_overcommit(name) => {
                errors.required(&at_limits, "Limit must be set for non overcommitable resources");
            }
            _ => {}
        }
    }
    let has = |name: &str| limits.contains_key(name) || requests.contains_key(name);
    let huge = limits.keys().chain(requests.keys()).any(|n| is_hugepages(n));
    if huge && !has("cpu") && !has("memory") {
        errors.forbidden(at, "HugePages require cpu or memory");
    }
    claim_names(r, claims, &at.child("claims"), errors);
}

/// A claim is named whole, or request by request, and each but once.
fn claim_names(r: &ResourceRequirements, known: &BTreeSet<&str>, at: &FieldPath, errors: &mut FieldErrors) {
    let mut seen = BTreeSet::new();
    for (i, claim) in r.claims.iter().flatten().enumerate() {
        let at = at.index(i);
        let name = claim.name.as_str();
        if name.is_empty() {
            errors.required(&at, "");
            continue;
        }
        let request = claim.request.as_deref().unwrap_or_default();
        if seen.contains(&(name, "")) {
            errors.duplicate(&at, name);
        } else {
            if !request.is_empty() {
                dns_label(request, &at.child("request"), errors);
            }
            if seen.contains(&(name, request)) {
                errors.duplicate(&at, format!("{name}/{request}"));
            } else if request.is_empty() {
                for _ in seen.iter().filter(|(other, _)| *other == name) {
                    errors.duplicate(&at, name);
                }
            }
            seen.insert((name, request));
        }
        if !known.contains(name) {
            unknown_claim(name, known, &at, errors);
        }
    }
}

fn unknown_claim(name: &str, known: &BTreeSet<&str>, at: &FieldPath, errors: &mut FieldErrors) {
    let list: Vec<&str> = known.iter().copied().filter(|name| !name.is_empty()).collect();
    let rest = if list.is_empty() { " which is empty".to_owned() } else { format!(": {}", list.join(", ")) };
    errors.push(FieldError {
        fault: Fault::NotFound,
        field: at.clone(),
        value: Some(serde_json::Value::from(name).to_string()),
        detail: format!("must be one of the names in pod.spec.resourceClaims{rest}"),
    });
}

fn may_overcommit(name: &str) -> bool {
    is_native(name) && !is_hugepages(name)
}

/// The class that decides who is evicted first (`pkg/apis/core/v1/helper/qos`): by cpu and memory of all containers.
pub fn qos_class(spec: &PodSpec) -> &'static str {
    let all: Vec<&Container> = spec.containers.iter().chain(spec.init_containers.iter().flatten()).collect();
    let own = spec.resources.iter();
    let each: Vec<(Option<&Amounts>, Option<&Amounts>)> = if spec.resources.is_some() {
        own.map(|r| (r.requests.as_ref(), r.limits.as_ref())).collect()
    } else {
        all.iter()
            .map(|c| c.resources.as_ref())
            .map(|r| (r.and_then(|r| r.requests.as_ref()), r.and_then(|r| r.limits.as_ref())))
            .collect()
    };
    let counted = |amounts: Option<&Amounts>| -> Amounts {
        amounts
            .into_iter()
            .flatten()
            .filter(|(n, q)| (*n == "cpu" || *n == "memory") && !is_zero(q) && !is_negative(q))
            .map(|(n, q)| (n.clone(), q.clone()))
            .collect()
    };
    let mut requests: BTreeMap<String, i128> = BTreeMap::new();
    let mut limits: BTreeMap<String, i128> = BTreeMap::new();
    let mut guaranteed = true;
    for (r, l) in each {
        let (r, l) = (counted(r), counted(l));
        guaranteed &= l.len() == 2;
        for (sums, amounts) in [(&mut requests, r), (&mut limits, l)] {
            for (name, quantity) in amounts {
                *sums.entry(name).or_default() += milli(&quantity);
            }
        }
    }
    if requests.is_empty() && limits.is_empty() {
        "BestEffort"
    } else if guaranteed && requests == limits {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

/// What a node's or a pod's overhead may name.
pub fn overhead(amounts: &Amounts, at: &FieldPath, errors: &mut FieldErrors) {
    for (name, value) in amounts {
        let at = at.key(name);
        container_resource_name(name, &at, errors);
        amount(name, value, &at, errors);
    }
}

/// A name that needs no domain.
pub fn is_standard(name: &str) -> bool {
    let is_of_pages = is_hugepages(name.strip_prefix("requests.").unwrap_or(name));
    STANDARD.contains(&name) || is_of_pages
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn said(resources: Value, known: &[&str]) -> String {
        let resources = serde_json::from_value(resources).expect("resources");
        let mut errors = FieldErrors::new();
        let known = known.iter().copied().collect();
        requirements(&resources, &known, &FieldPath::new("r"), &mut errors);
        errors.aggregate()
    }

    #[test]
    fn huge_pages_come_whole_and_not_alone() {
        let pages = |amount: &str| {
            json!({"limits": {"hugepages-2Mi": amount, "memory": "1Gi"},
                "requests": {"hugepages-2Mi": amount, "memory": "1Gi"}})
        };
        assert_eq!(said(pages("4Mi"), &[]), "[]");
        assert!(said(pages("3Mi"), &[]).contains(
            "r.limits[hugepages-2Mi]: Invalid value: \"3Mi\": 3Mi is not positive integer multiple of"
        ));
        assert!(
            said(json!({"limits": {"hugepages-2Mi": "2Mi"}}), &[])
                .contains("HugePages require cpu or memory")
        );
    }

    #[test]
    fn a_claim_is_named_once_and_is_the_pods() {
        for (claims, told) in [
            (json!([{"name": "a"}]), "[]"),
            (json!([{"name": "a", "request": "x"}, {"name": "a", "request": "y"}]), "[]"),
            (json!([{"name": "a"}, {"name": "a", "request": "y"}]), "r.claims[1]: Duplicate value: \"a\""),
            (json!([{"name": "a", "request": "y"}, {"name": "a"}]), "r.claims[1]: Duplicate value: \"a\""),
            (
                json!([{"name": "a", "request": "y"}, {"name": "a", "request": "y"}]),
                "r.claims[1]: Duplicate value: \"a/y\"",
            ),
            (json!([{"name": ""}]), "r.claims[0]: Required value"),
            (
                json!([{"name": "c"}]),
                "r.claims[0]: Not found: \"c\": must be one of the names in pod.spec.resourceClaims: a, b",
            ),
        ] {
            assert_eq!(said(json!({"claims": claims}), &["a", "b"]), told);
        }
    }

    #[test]
    fn only_some_domains_are_kubernetes_own() {
        for (name, is) in [
            ("cpu", true),
            ("a.kubernetes.io/b", true),
            ("kubernetes.io.example.com/b", false),
            ("example.com/b", false),
        ] {
            assert_eq!((is_native(name), is_extended(name)), (is, !is), "{name}");
        }
    }

    #[test]
    fn what_a_quota_calls_huge_pages_is_a_name_that_no_container_has() {
        let mut errors = FieldErrors::new();
        container_resource_name("requests.hugepages-2Mi", &FieldPath::new("n"), &mut errors);
        let told = "n: Invalid value: \"requests.hugepages-2Mi\": must be a standard resource for containers";
        assert_eq!(errors.aggregate(), told);
    }

    #[test]
    fn a_name_that_is_none_at_all_is_told_of_once() {
        let mut errors = FieldErrors::new();
        resource_name("a b", &FieldPath::new("n"), &mut errors);
        assert_eq!(errors.len(), 1);
    }
}
