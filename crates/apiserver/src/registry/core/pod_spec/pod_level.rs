//! Resources of a pod as a whole (KEP-2837): what its containers ask for together, and how that fits what it asks for
//! itself.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Raw;
use krate_api::quantity::Quantity;
use krate_api::{FieldErrors, FieldPath};

use super::resources::{Amounts, is_hugepages, pod_requirements};
use super::visit::is_sidecar;

/// Requests or limits.
pub type Side = fn(&ResourceRequirements) -> Option<&Amounts>;
type Sums = BTreeMap<String, Quantity>;

pub const REQUESTS: Side = |r| r.requests.as_ref();
pub const LIMITS: Side = |r| r.limits.as_ref();

fn amount(raw: &Raw) -> Quantity {
    Quantity::parse(&raw.0).unwrap_or_default()
}

fn of_container(c: &Container, side: Side) -> Sums {
    let given = c.resources.as_ref().and_then(side);
    given.into_iter().flatten().map(|(name, raw)| (name.clone(), amount(raw))).collect()
}

fn add(sums: &mut Sums, more: &Sums) {
    for (name, amount) in more {
        let sum = match sums.get(name) {
            Some(sum) => sum.add(amount),
            None => amount.clone(),
        };
        sums.insert(name.clone(), sum);
    }
}

fn raise(sums: &mut Sums, least: &Sums) {
    for (name, amount) in least {
        if sums.get(name).is_none_or(|sum| sum < amount) {
            sums.insert(name.clone(), amount.clone());
        }
    }
}

/// The most that all containers need at one time: init containers run one by one, beside the sidecars before them
/// (KEP-753).
fn together(spec: &PodSpec, side: Side) -> Sums {
    let mut sums = Sums::new();
    for c in &spec.containers {
        add(&mut sums, &of_container(c, side));
    }
    let (mut sidecars, mut beginning) = (Sums::new(), Sums::new());
    for c in spec.init_containers.iter().flatten() {
        let mut needs = of_container(c, side);
        if is_sidecar(c) {
            add(&mut sums, &needs);
            add(&mut sidecars, &needs);
            raise(&mut beginning, &sidecars);
        } else {
            add(&mut needs, &sidecars);
            raise(&mut beginning, &needs);
        }
    }
    raise(&mut sums, &beginning);
    sums
}

/// What a pod may ask for itself.
pub fn is_for_pods(name: &str) -> bool {
    name == "cpu" || name == "memory" || is_hugepages(name)
}

fn is_given(amounts: Option<&Amounts>) -> bool {
    amounts.is_some_and(|amounts| !amounts.is_empty())
}

/// Fills what a pod leaves out of its own resources: from its containers, and requests from limits.
pub fn default_resources(spec: &mut PodSpec) {
    let Some(own) = &spec.resources else { return };
    let (has_limits, has_requests) = (is_given(own.limits.as_ref()), is_given(own.requests.as_ref()));
    if !has_limits && !has_requests {
        return;
    }
    let mut own = own.clone();
    for (name, sum) in together(spec, LIMITS).iter().filter(|(name, _)| is_hugepages(name)) {
        if own.requests.as_ref().is_none_or(|requests| !requests.contains_key(name)) {
            own.limits.get_or_insert_default().entry(name.clone()).or_insert_with(|| Raw::from(sum));
        }
    }
    if is_given(own.limits.as_ref()) {
        let mut requests = own.requests.take().unwrap_or_default();
        let asked = together(spec, REQUESTS);
        for (name, sum) in asked.iter().filter(|(name, _)| is_for_pods(name) && !is_hugepages(name)) {
            requests.entry(name.clone()).or_insert_with(|| Raw::from(sum));
        }
        for (name, limit) in own.limits.iter().flatten().filter(|(name, _)| is_for_pods(name)) {
            requests.entry(name.clone()).or_insert_with(|| limit.clone());
        }
        own.requests = Some(requests).filter(|requests| !requests.is_empty());
    }
    spec.resources = Some(own);
}

pub fn check(spec: &PodSpec, claims: &BTreeSet<&str>, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(own) = &spec.resources else { return };
    let at = at.child("resources");
    if spec.os.as_ref().is_some_and(|os| os.name == "windows") {
        errors.forbidden(&at, "may not be set for a windows pod");
        return;
    }
    if own.claims.is_some() {
        errors.forbidden(&at.child("claims"), "claims may not be set for Resources at pod-level");
    }
    pod_requirements(own, claims, &at, errors);
    fits(spec, own, &at, errors);
}

/// What the containers ask for is within what the pod does.
fn fits(spec: &PodSpec, own: &ResourceRequirements, at: &FieldPath, errors: &mut FieldErrors) {
    let within = |side: Side, name: &str| side(own).and_then(|amounts| amounts.get(name)).map(amount);
    for (name, sum) in together(spec, REQUESTS) {
        let Some(most) = within(REQUESTS, &name).filter(|most| sum > *most) else { continue };
        let why = format!("must be greater than or equal to aggregate container requests of {sum}");
        errors.invalid(&at.child("requests").key(&name), most.to_string(), why);
    }
    for (name, sum) in together(spec, LIMITS).into_iter().filter(|(name, _)| is_hugepages(name)) {
        let Some(most) = within(LIMITS, &name).filter(|most| sum > *most) else { continue };
        let why = format!("must be greater than or equal to aggregate container limits of {sum}");
        errors.invalid(&at.child("limits").key(&name), most.to_string(), why);
    }
    for (i, c) in spec.containers.iter().enumerate() {
        for (name, limit) in of_container(c, LIMITS) {
            let Some(most) = within(LIMITS, &name).filter(|most| limit > *most) else { continue };
            let at = at.child("containers").index(i).key(&name).child("limits");
            let why = format!("must be less than or equal to pod limits of {most}");
            errors.invalid(&at, limit.to_string(), why);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(own: &Value, containers: &Value, init: &Value) -> PodSpec {
        let value = json!({"resources": own, "containers": containers, "initContainers": init});
        serde_json::from_value(value).expect("a spec")
    }

    fn asking(name: &str, requests: &Value) -> Value {
        json!({"name": name, "resources": {"requests": requests}})
    }

    #[test]
    fn a_pod_asks_for_what_its_containers_do_together() {
        let containers = json!([asking("a", &json!({"cpu": "1"})), asking("b", &json!({"cpu": "500m"}))]);
        let mut sidecar = asking("s", &json!({"cpu": "1"}));
        sidecar["restartPolicy"] = json!("Always");
        let init = json!([sidecar, asking("i", &json!({"cpu": "2", "memory": "1Gi"}))]);
        let mut pod = spec(&json!({"limits": {"cpu": "4", "memory": "2Gi"}}), &containers, &init);
        default_resources(&mut pod);
        let own = serde_json::to_value(&pod.resources).expect("JSON");
        assert_eq!(own["requests"], json!({"cpu": "3", "memory": "1Gi"}));

        let mut alone = spec(&json!({"limits": {"cpu": "4"}}), &json!([{"name": "a"}]), &json!([]));
        default_resources(&mut alone);
        let own = serde_json::to_value(&alone.resources).expect("JSON");
        assert_eq!(own["requests"], json!({"cpu": "4"}));

        let mut asked = spec(&json!({"requests": {"cpu": "4"}}), &containers, &init);
        let before = asked.clone();
        default_resources(&mut asked);
        assert_eq!(asked, before, "without limits nothing is to be made up");
    }

    #[test]
    fn a_pod_asks_for_no_less_than_its_containers() {
        let said = |own: Value, resources: Value| {
            let mut errors = FieldErrors::new();
            let pod = spec(&own, &json!([{"name": "c", "resources": resources}]), &json!([]));
            check(&pod, &BTreeSet::new(), &FieldPath::new("spec"), &mut errors);
            errors.aggregate()
        };
        let big = json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "1Gi"}});
        assert_eq!(said(big.clone(), json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2"}})), "[]");
        for (own, resources, told) in [
            (
                big.clone(),
                json!({"requests": {"cpu": "1500m"}}),
                "spec.resources.requests[cpu]: Invalid value: \"1\": must be greater than or equal to aggregate \
                 container requests of 1500m",
            ),
            (
                big,
                json!({"limits": {"cpu": "3"}}),
                "spec.resources.containers[0][cpu].limits: Invalid value: \"3\": must be less than or equal to pod \
                 limits of 2",
            ),
            (
                json!({"requests": {"example.com/a": "1"}, "limits": {"example.com/a": "1"}}),
                json!({}),
                "[spec.resources.limits[example.com/a]: Unsupported value: \"example.com/a\": supported values: \
                 \"cpu\", \"hugepages-\", \"memory\", spec.resources.requests[example.com/a]: Unsupported value: \
                 \"example.com/a\": supported values: \"cpu\", \"hugepages-\", \"memory\"]",
            ),
            (
                json!({"claims": [{"name": "c"}]}),
                json!({}),
                "[spec.resources.claims: Forbidden: claims may not be set for Resources at pod-level, \
                 spec.resources.claims[0]: Not found: \"c\": must be one of the names in pod.spec.resourceClaims \
                 which is empty]",
            ),
        ] {
            assert_eq!(said(own, resources), told);
        }
    }
}
