//! What objects use of a namespace's quota: which amounts a ResourceQuota names are whose, which objects are in its
//! scope, and how much each uses. The API server charges by it when objects are made; the quota controller counts by it
//! what is there.

mod pod;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, Pod, ResourceQuotaSpec, ScopedResourceSelectorRequirement, Service,
};
use k8s_openapi::api::resource::v1::{DeviceRequest, ResourceClaim};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Raw;
use k8s_openapi::jiff::Timestamp;

use crate::quantity::{Format, Quantity};
use crate::selector::{Operator, Requirement};

pub use pod::{amounts, is_best_effort, is_charged, is_terminating, pod_limits, pod_requests};

/// Amounts by their names in a quota: `requests.cpu`, `pods`, `count/deployments.apps`.
pub type Usage = BTreeMap<String, Quantity>;

const BY_STORAGE_CLASS: &str = ".storageclass.storage.k8s.io/";
const BY_DEVICE_CLASS: &str = ".deviceclass.resource.k8s.io/devices";
/// What the claim of all matching devices is taken to hold at most.
const MAX_DEVICES: i64 = 32;

/// An object as its quota sees it.
#[derive(Clone, Copy, Debug)]
pub enum Counted<'a> {
    Pod(&'a Pod),
    Claim(&'a PersistentVolumeClaim),
    Service(&'a Service),
    Devices(&'a ResourceClaim),
    /// Of any other kind: only its being there counts.
    Other,
}

/// A resource whose objects are counted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Resource {
    pub group: String,
    pub plural: String,
}

/// Resources that had a name in quotas before `count/…`.
const NAMED: [&str; 6] = [
    "configmaps",
    "persistentvolumeclaims",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
];

impl Resource {
    pub fn new(group: &str, plural: &str) -> Self {
        Resource { group: group.to_owned(), plural: plural.to_owned() }
    }

    /// `count/deployments.apps`.
    pub fn count_name(&self) -> String {
        match self.group.as_str() {
            "" => format!("count/{}", self.plural),
            group => format!("count/{}.{group}", self.plural),
        }
    }

    /// The resource whose objects an amount of a quota counts.
    pub fn of_name(name: &str) -> Option<Resource> {
        if let Some(counted) = name.strip_prefix("count/") {
            let (plural, group) = counted.split_once('.').unwrap_or((counted, ""));
            return Some(Resource::new(group, plural));
        }
        if name.ends_with(BY_DEVICE_CLASS) {
            return Some(Resource::new("resource.k8s.io", "resourceclaims"));
        }
        if name == "requests.storage" || name.contains(BY_STORAGE_CLASS) {
            return Some(Resource::new("", "persistentvolumeclaims"));
        }
        if matches!(name, "services.nodeports" | "services.loadbalancers") {
            return Some(Resource::new("", "services"));
        }
        if NAMED.contains(&name) {
            return Some(Resource::new("", name));
        }
        pod::tracks(name).then(|| Resource::new("", "pods"))
    }

    /// Whether an amount of a quota counts this resource's objects.
    pub fn tracks(&self, name: &str) -> bool {
        Resource::of_name(name).is_some_and(|of| of == *self)
    }
}

fn one() -> Quantity {
    Quantity::new(1, Format::DecimalSi)
}

fn number(n: usize) -> Quantity {
    Quantity::new(n as i64, Format::DecimalSi)
}

/// A quantity of an object. What does not parse counts as nothing: such an object is refused before it comes here.
pub fn parsed(raw: &Raw) -> Quantity {
    Quantity::try_from(raw).unwrap_or_default()
}

/// How much an object uses, by all names that count it. `now` decides whether a pod that is being deleted still does.
pub fn usage(resource: &Resource, object: Counted<'_>, now: Timestamp) -> Usage {
    let mut usage = Usage::from([(resource.count_name(), one())]);
    match object {
        Counted::Pod(pod) => usage.extend(pod::usage(pod, now)),
        Counted::Claim(claim) => claim_usage(claim, &mut usage),
        Counted::Service(service) => service_usage(service, &mut usage),
        Counted::Devices(claim) => device_usage(claim, &mut usage),
        Counted::Other if resource.group.is_empty() && NAMED.contains(&resource.plural.as_str()) => {
            usage.insert(resource.plural.clone(), one());
        }
        Counted::Other => {}
    }
    usage
}

fn claim_usage(claim: &PersistentVolumeClaim, usage: &mut Usage) {
    usage.insert("persistentvolumeclaims".to_owned(), one());
    let annotation =
        claim.metadata.annotations.as_ref().and_then(|a| a.get("volume.beta.kubernetes.io/storage-class"));
    let spec = claim.spec.as_ref();
    let class = annotation.or_else(|| spec?.storage_class_name.as_ref()).filter(|c| !c.is_empty());
    if let Some(class) = class {
        usage.insert(format!("{class}{BY_STORAGE_CLASS}persistentvolumeclaims"), one());
    }
    let Some(asked) = spec.and_then(|s| s.resources.as_ref()?.requests.as_ref()?.get("storage")) else {
        return;
    };
    let given = claim.status.as_ref().and_then(|s| s.allocated_resources.as_ref()?.get("storage"));
    let most = given.map(parsed).into_iter().chain([parsed(asked)]).max().unwrap_or_default();
    // Bytes are whole.
    let whole = if most == Quantity::new(most.value(), Format::BinarySi) {
        most
    } else {
        Quantity::new(most.value(), most.format())
    };
    if let Some(class) = class {
        usage.insert(format!("{class}{BY_STORAGE_CLASS}requests.storage"), whole.clone());
    }
    usage.insert("requests.storage".to_owned(), whole);
}

fn service_usage(service: &Service, usage: &mut Usage) {
    let spec = service.spec.as_ref();
    let ports = spec.and_then(|s| s.ports.as_deref()).unwrap_or_default();
    let kind = spec.and_then(|s| s.type_.as_deref()).unwrap_or_default();
    let allocates = spec.and_then(|s| s.allocate_load_balancer_node_ports) != Some(false);
    let node_ports = match kind {
        "NodePort" => ports.len(),
        "LoadBalancer" if allocates => ports.len(),
        "LoadBalancer" => ports.iter().filter(|p| p.node_port.is_some_and(|n| n != 0)).count(),
        _ => 0,
    };
    usage.insert("services".to_owned(), one());
    usage.insert("services.nodeports".to_owned(), number(node_ports));
    usage.insert("services.loadbalancers".to_owned(), number(usize::from(kind == "LoadBalancer")));
}

fn device_usage(claim: &ResourceClaim, usage: &mut Usage) {
    let devices = claim.spec.devices.as_ref();
    for request in devices.and_then(|d| d.requests.as_deref()).unwrap_or_default() {
        for (class, count) in device_counts(request) {
            let name = format!("{class}{BY_DEVICE_CLASS}");
            let count = Quantity::new(count, Format::DecimalSi);
            let sum = usage.get(&name).map_or_else(|| count.clone(), |was| was.add(&count));
            usage.insert(name, sum);
        }
    }
}

/// How many devices of each class a request may hold: of several that would do, the most of each.
fn device_counts(request: &DeviceRequest) -> BTreeMap<&str, i64> {
    let amount = |mode: Option<&str>, count: Option<i64>| match mode {
        Some("All") => MAX_DEVICES,
        _ => count.unwrap_or(1),
    };
    let mut counts = BTreeMap::new();
    if let Some(exactly) = &request.exactly {
        let count = amount(exactly.allocation_mode.as_deref(), exactly.count);
        counts.insert(exactly.device_class_name.as_str(), count);
    }
    for sub in request.first_available.iter().flatten() {
        let count = amount(sub.allocation_mode.as_deref(), sub.count);
        let most = counts.entry(sub.device_class_name.as_str()).or_insert(0);
        *most = count.max(*most);
    }
    counts
}

/// The requirements of a quota's scopes, of both ways to write them.
fn scopes(spec: &ResourceQuotaSpec) -> impl Iterator<Item = ScopedResourceSelectorRequirement> + '_ {
    let plain = spec.scopes.iter().flatten().map(|name| ScopedResourceSelectorRequirement {
        scope_name: name.clone(),
        operator: "Exists".to_owned(),
        values: None,
    });
    let chosen = spec.scope_selector.iter().flat_map(|s| s.match_expressions.iter().flatten().cloned());
    plain.chain(chosen)
}

/// Whether an object is in all of a quota's scopes.
pub fn in_scope(spec: &ResourceQuotaSpec, object: Counted<'_>) -> bool {
    scopes(spec).all(|scope| match object {
        Counted::Pod(pod) => pod::in_scope(pod, &scope),
        Counted::Claim(claim) => claim_in_scope(claim, &scope),
        _ => false,
    })
}

/// Whether a scope's operator and values select one of `names`.
fn selects(scope: &ScopedResourceSelectorRequirement, names: &[&str]) -> bool {
    let (operator, values) = match scope.operator.as_str() {
        "In" => (Operator::In, scope.values.clone().unwrap_or_default()),
        "NotIn" => (Operator::NotIn, scope.values.clone().unwrap_or_default()),
        "Exists" => (Operator::Exists, Vec::new()),
        "DoesNotExist" => (Operator::DoesNotExist, Vec::new()),
        _ => return false,
    };
    let Ok(requirement) = Requirement::new(&scope.scope_name, operator, values) else { return false };
    match names {
        [] => requirement.matches(None),
        names => names.iter().any(|name| requirement.matches(Some(name))),
    }
}

fn claim_in_scope(claim: &PersistentVolumeClaim, scope: &ScopedResourceSelectorRequirement) -> bool {
    if scope.scope_name != "VolumeAttributesClass" {
        return false;
    }
    let status = claim.status.as_ref();
    let names = [
        claim.spec.as_ref().and_then(|s| s.volume_attributes_class_name.as_deref()),
        status.and_then(|s| s.current_volume_attributes_class_name.as_deref()),
        status.and_then(|s| s.modify_volume_status.as_ref()?.target_volume_attributes_class_name.as_deref()),
    ];
    let names: Vec<&str> = names.into_iter().flatten().filter(|n| !n.is_empty()).collect();
    selects(scope, &names)
}

/// What an object must say of itself since a quota counts it, and does not: `requests.cpu for: c`. None for all but
/// pods, of which every container must name the processor time and memory that are counted.
pub fn missing<'a>(object: Counted<'_>, required: impl Iterator<Item = &'a str>) -> Option<String> {
    match object {
        Counted::Pod(pod) => pod::missing(pod, required),
        _ => None,
    }
}

/// `a` and `b` together.
pub fn add(a: &mut Usage, b: &Usage) {
    for (name, amount) in b {
        let sum = a.get(name).map_or_else(|| amount.clone(), |was| was.add(amount));
        a.insert(name.clone(), sum);
    }
}

#[cfg(test)]
mod tests;
