//! Amounts of resources: their names, and that a request is not more than its limit.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use krate_api::{FieldErrors, FieldPath};

use crate::registry::quantities::{is_negative, is_whole, is_zero, milli, more};
use crate::registry::rules::{NOT_NEGATIVE, each, qualified_name};

pub type Amounts = BTreeMap<String, Quantity>;

const NATIVE: &[&str] = &["cpu", "ephemeral-storage", "memory", "storage"];
/// What any object may name besides: resources by quota.
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

pub fn is_hugepages(name: &str) -> bool {
    name.starts_with("hugepages-")
}

/// A resource outside Kubernetes' own names: `example.com/gpu`.
pub fn is_extended(name: &str) -> bool {
    !is_native(name)
        && !name.starts_with("requests.")
        && qualified_name(&format!("requests.{name}")).is_empty()
}

pub fn is_native(name: &str) -> bool {
    !name.contains('/') || name.split('/').next().is_some_and(|p| p.contains("kubernetes.io"))
}

/// A name that any object may use for a resource.
pub fn resource_name(name: &str, at: &FieldPath, errors: &mut FieldErrors) {
    each(qualified_name(name), name, at, errors);
    if !name.contains('/') && !STANDARD.contains(&name) && !is_hugepages(name) {
        errors.invalid(at, name, "must be a standard resource type or fully qualified");
    }
}

fn container_resource_name(name: &str, at: &FieldPath, errors: &mut FieldErrors) {
    resource_name(name, at, errors);
    if !name.contains('/') {
        if !["cpu", "memory", "ephemeral-storage"].contains(&name) && !is_hugepages(name) {
            errors.invalid(at, name, "must be a standard resource for containers");
        }
    } else if !is_native(name) && !is_extended(name) {
        errors.invalid(at, name, "doesn't follow extended resource name standard");
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

pub fn requirements(
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
        container_resource_name(name, &at, errors);
        amount(name, value, &at, errors);
    }
    for (name, value) in requests {
        let at = at_requests.key(name);
        container_resource_name(name, &at, errors);
        amount(name, value, &at, errors);
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
    let mut seen = BTreeSet::new();
    for (i, claim) in r.claims.iter().flatten().enumerate() {
        let at = at.child("claims").index(i);
        if claim.name.is_empty() {
            errors.required(&at.child("name"), "");
        } else if !claims.contains(claim.name.as_str()) {
            errors.not_found(&at.child("name"), &claim.name);
        }
        if !seen.insert((&claim.name, &claim.request)) {
            errors.duplicate(&at, &claim.name);
        }
    }
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

pub fn is_standard(name: &str) -> bool {
    STANDARD.contains(&name) || NATIVE.contains(&name)
}
