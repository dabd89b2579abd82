//! LimitRanger: a namespace's defaults for what containers ask for, and its bounds on it.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{
    Container, LimitRange, LimitRangeItem, PersistentVolumeClaim, Pod, PodSpec,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Raw;
use krate_api::quota::{amounts, parsed};
use krate_api::{Quantity, StatusError, kinds};

use super::{Admit, Attributes, Operation, lookup};
use crate::kinds::Kinds;
use crate::registry::erased::Object;

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

type Amounts = BTreeMap<String, Raw>;

pub struct LimitRanger {
    kinds: Arc<Kinds>,
}

impl LimitRanger {
    pub fn new(kinds: Arc<Kinds>) -> Self {
        LimitRanger { kinds }
    }

    /// The bounds that apply. What containers ask for does not change, but by a resize; and what goes is let go.
    async fn of(&self, attributes: &Attributes, object: &dyn Object) -> Result<Vec<LimitRange>, StatusError> {
        let is_pod = attributes.kind.gvk() == kinds::POD.gvk();
        let is_claim = attributes.kind.gvk() == kinds::PERSISTENT_VOLUME_CLAIM.gvk();
        let applies = match (attributes.subresource.as_str(), attributes.operation) {
            ("resize", Operation::Update) => is_pod,
            ("", Operation::Create) => is_pod || is_claim,
            ("", Operation::Update) => is_claim,
            _ => false,
        };
        let goes = attributes.operation == Operation::Update && object.meta().deletion_timestamp.is_some();
        if !applies || goes {
            return Ok(Vec::new());
        }
        lookup::all(&self.kinds, "", "limitranges", &attributes.namespace).await
    }
}

fn items(range: &LimitRange) -> impl Iterator<Item = &LimitRangeItem> {
    range.spec.iter().flat_map(|s| &s.limits)
}

#[async_trait]
impl Admit for LimitRanger {
    async fn mutate(
        &self,
        attributes: &Attributes,
        object: &mut dyn Object,
        _old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        let ranges = self.of(attributes, object).await?;
        if let Some(pod) = object.is_mut::<Pod>() {
            for range in &ranges {
                fill(pod, range);
            }
        }
        Ok(())
    }

    async fn validate(
        &self,
        attributes: &Attributes,
        object: Option<&dyn Object>,
        _old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        let Some(object) = object else { return Ok(()) };
        for range in self.of(attributes, object).await? {
            let mut faults = Vec::new();
            if let Some(spec) = object.is::<Pod>().and_then(|pod| pod.spec.as_ref()) {
                items(&range).for_each(|item| check_pod(spec, item, &mut faults));
            }
            if let Some(claim) = object.is::<PersistentVolumeClaim>() {
                items(&range).for_each(|item| check_claim(claim, item, &mut faults));
            }
            let mut seen = std::collections::HashSet::new();
            faults.retain(|fault| seen.insert(fault.clone()));
            match faults.as_slice() {
                [] => {}
                [one] => return Err(attributes.forbidden(one)),
                many => return Err(attributes.forbidden(format!("[{}]", many.join(", ")))),
            }
        }
        Ok(())
    }
}

/// Gives containers the namespace's defaults, and says so in an annotation.
fn fill(pod: &mut Pod, range: &LimitRange) {
    let (mut requests, mut limits) = (Amounts::new(), Amounts::new());
    for item in items(range).filter(|item| item.type_ == "Container") {
        requests.extend(item.default_request.clone().unwrap_or_default());
        limits.extend(item.default.clone().unwrap_or_default());
    }
    let spec = pod.spec.get_or_insert_default();
    let mut said = Vec::new();
    for container in &mut spec.containers {
        fill_container(container, "container", &requests, &limits, &mut said);
    }
    for container in spec.init_containers.iter_mut().flatten() {
        fill_container(container, "init container", &requests, &limits, &mut said);
    }
    if !said.is_empty() {
        let text = format!("LimitRanger plugin set: {}", said.join("; "));
        pod.metadata.annotations.get_or_insert_default().insert(ANNOTATION.to_owned(), text);
    }
}

fn fill_container(
    container: &mut Container,
    noun: &str,
    requests: &Amounts,
    limits: &Amounts,
    said: &mut Vec<String>,
) {
    let resources = container.resources.get_or_insert_default();
    for (what, defaults, list) in
        [("request", requests, &mut resources.requests), ("limit", limits, &mut resources.limits)]
    {
        let missing: Vec<&String> =
            defaults.keys().filter(|name| !list.as_ref().is_some_and(|l| l.contains_key(*name))).collect();
        if missing.is_empty() {
            continue;
        }
        let names: Vec<&str> = missing.iter().map(|name| name.as_str()).collect();
        said.push(format!("{} {what} for {noun} {}", names.join(", "), container.name));
        let list = list.get_or_insert_default();
        list.extend(missing.into_iter().map(|name| (name.clone(), defaults[name].clone())));
    }
}

/// What is asked for, and where it ends.
struct Asked {
    requests: BTreeMap<String, Quantity>,
    limits: BTreeMap<String, Quantity>,
}

impl Asked {
    fn of(container: &Container) -> Self {
        let resources = container.resources.as_ref();
        Asked {
            requests: amounts(resources.and_then(|r| r.requests.as_ref())),
            limits: amounts(resources.and_then(|r| r.limits.as_ref())),
        }
    }

    /// What the containers of a pod ask for together, without the pod's overhead; for processor time and memory it is
    /// what the pod says as a whole, if it does.
    fn of_pod(spec: &PodSpec) -> Self {
        let bare = PodSpec {
            containers: spec.containers.clone(),
            init_containers: spec.init_containers.clone(),
            ..PodSpec::default()
        };
        let pod = Pod { spec: Some(bare), ..Pod::default() };
        let mut asked = Asked {
            requests: krate_api::quota::pod_requests(&pod),
            limits: krate_api::quota::pod_limits(&pod),
        };
        let whole = |list: Option<&Amounts>| {
            let mut list = amounts(list);
            list.retain(|name, _| matches!(name.as_str(), "cpu" | "memory"));
            list
        };
        let resources = spec.resources.as_ref();
        asked.requests.extend(whole(resources.and_then(|r| r.requests.as_ref())));
        asked.limits.extend(whole(resources.and_then(|r| r.limits.as_ref())));
        asked
    }
}

fn check_pod(spec: &PodSpec, item: &LimitRangeItem, faults: &mut Vec<String>) {
    match item.type_.as_str() {
        "Container" => {
            for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
                check(&Asked::of(container), item, faults);
            }
        }
        "Pod" => check(&Asked::of_pod(spec), item, faults),
        _ => {}
    }
}

fn check(asked: &Asked, item: &LimitRangeItem, faults: &mut Vec<String>) {
    let kind = &item.type_;
    for (name, raw) in item.min.iter().flatten() {
        let bound = parsed(raw);
        let start = format!("minimum {name} usage per {kind} is {bound}");
        match (asked.requests.get(name), asked.limits.get(name)) {
            (None, _) => faults.push(format!("{start}.  No request is specified")),
            (Some(request), _) if *request < bound => {
                faults.push(format!("{start}, but request is {request}"));
            }
            (_, Some(limit)) if *limit < bound => faults.push(format!("{start}, but limit is {limit}")),
            _ => {}
        }
    }
    for (name, raw) in item.max.iter().flatten() {
        let bound = parsed(raw);
        let start = format!("maximum {name} usage per {kind} is {bound}");
        match (asked.requests.get(name), asked.limits.get(name)) {
            (_, None) => faults.push(format!("{start}.  No limit is specified")),
            (_, Some(limit)) if *limit > bound => faults.push(format!("{start}, but limit is {limit}")),
            (Some(request), _) if *request > bound => {
                faults.push(format!("{start}, but request is {request}"));
            }
            _ => {}
        }
    }
    for (name, raw) in item.max_limit_request_ratio.iter().flatten() {
        let bound = parsed(raw);
        let start = format!("{name} max limit to request ratio per {kind} is {bound}, but");
        let positive = |q: Option<&Quantity>| q.filter(|q| !q.is_zero()).map(Quantity::approximate);
        match (positive(asked.requests.get(name)), positive(asked.limits.get(name))) {
            (None, _) => faults.push(format!("{start} no request is specified or request is 0")),
            (_, None) => faults.push(format!("{start} no limit is specified or limit is 0")),
            (Some(request), Some(limit)) if limit / request > bound.approximate() * (1.0 + 1e-9) => {
                faults.push(format!("{start} provided ratio is {:.6}", limit / request));
            }
            _ => {}
        }
    }
}

fn check_claim(claim: &PersistentVolumeClaim, item: &LimitRangeItem, faults: &mut Vec<String>) {
    if item.type_ != "PersistentVolumeClaim" {
        return;
    }
    let requests = claim.spec.as_ref().and_then(|s| s.resources.as_ref()?.requests.as_ref());
    let asked = |name: &str| requests.and_then(|r| r.get(name)).map(parsed);
    for (word, bounds) in [("minimum", &item.min), ("maximum", &item.max)] {
        for (name, raw) in bounds.iter().flatten() {
            let bound = parsed(raw);
            let start = format!("{word} {name} usage per PersistentVolumeClaim is {bound}");
            match asked(name) {
                None => faults.push(format!("{start}.  No request is specified")),
                Some(request)
                    if (word == "minimum" && request < bound) || (word == "maximum" && request > bound) =>
                {
                    faults.push(format!("{start}, but request is {request}"));
                }
                Some(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn range(limits: Value) -> LimitRange {
        serde_json::from_value(json!({"metadata": {}, "spec": {"limits": limits}})).expect("a LimitRange")
    }

    fn pod(resources: Value) -> Pod {
        let spec = json!({"containers": [{"name": "c", "resources": resources}]});
        serde_json::from_value(json!({"metadata": {}, "spec": spec})).expect("a pod")
    }

    fn faults(resources: Value, limits: Value) -> Vec<String> {
        let (pod, range, mut faults) = (pod(resources), range(limits), Vec::new());
        items(&range).for_each(|item| check_pod(pod.spec.as_ref().expect("a spec"), item, &mut faults));
        faults
    }

    #[test]
    fn containers_get_what_they_do_not_ask_for_and_an_annotation_says_so() {
        let mut pod = pod(json!({"requests": {"cpu": "1"}}));
        let limits = json!([{"type": "Container", "default": {"cpu": "2", "memory": "64Mi"},
            "defaultRequest": {"cpu": "100m", "memory": "32Mi"}}]);
        fill(&mut pod, &range(limits));
        let resources = pod.spec.expect("a spec").containers[0].resources.clone();
        let got = serde_json::to_value(resources).expect("JSON");
        let expected =
            json!({"requests": {"cpu": "1", "memory": "32Mi"}, "limits": {"cpu": "2", "memory": "64Mi"}});
        assert_eq!(got, expected);
        assert_eq!(
            pod.metadata.annotations.expect("annotations")[ANNOTATION],
            "LimitRanger plugin set: memory request for container c; cpu, memory limit for container c"
        );
    }

    #[test]
    fn bounds_are_kept_to() {
        let none: Vec<String> = Vec::new();
        let ratio = json!([{"type": "Container", "maxLimitRequestRatio": {"cpu": "2"}}]);
        assert_eq!(faults(json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2"}}), ratio.clone()), none);
        assert_eq!(
            faults(json!({"requests": {"cpu": "1"}, "limits": {"cpu": "3"}}), ratio),
            ["cpu max limit to request ratio per Container is 2, but provided ratio is 3.000000"]
        );
        let bounds = json!([{"type": "Pod", "min": {"memory": "1Mi"}, "max": {"cpu": "500m"}}]);
        assert_eq!(
            faults(json!({"requests": {"cpu": "1"}}), bounds),
            [
                "minimum memory usage per Pod is 1Mi.  No request is specified",
                "maximum cpu usage per Pod is 500m.  No limit is specified"
            ]
        );
    }

    #[test]
    fn a_pod_may_say_what_it_asks_for_as_a_whole() {
        let spec: PodSpec = serde_json::from_value(json!({
            "overhead": {"cpu": "9"},
            "resources": {"requests": {"cpu": "2", "hugepages-2Mi": "4Mi"}, "limits": {"cpu": "3"}},
            "containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]}))
        .expect("a spec");
        let range = range(json!([{"type": "Pod", "max": {"cpu": "2500m", "hugepages-2Mi": "1Mi"}}]));
        let mut faults = Vec::new();
        items(&range).for_each(|item| check_pod(&spec, item, &mut faults));
        assert_eq!(
            faults,
            [
                "maximum cpu usage per Pod is 2500m, but limit is 3",
                "maximum hugepages-2Mi usage per Pod is 1Mi.  No limit is specified"
            ]
        );
    }
}
