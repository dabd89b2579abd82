//! What an autoscaler goes by: each metric with what is measured and what is wanted.

use k8s_openapi::api::autoscaling::v2::{
    HorizontalPodAutoscaler, MetricSpec, MetricTarget, MetricValueStatus,
};
use krate_api::names::is_path_segment_name;
use krate_api::{FieldErrors, FieldPath};
use serde_json::Value;

use crate::registry::core::pod_spec::container_resource_name;
use crate::registry::rules::{dns_label, each, one_of, path_segment};

const TYPES: &[&str] = &["ContainerResource", "External", "Object", "Pods", "Resource"];
const TARGETS: &[&str] = &["AverageValue", "Utilization", "Value"];

pub fn validate(metrics: &[MetricSpec], at: &FieldPath, errors: &mut FieldErrors) {
    for (i, metric) in metrics.iter().enumerate() {
        let at = at.index(i);
        let given = [
            ("object", "Object", metric.object.is_some()),
            ("external", "External", metric.external.is_some()),
            ("pods", "Pods", metric.pods.is_some()),
            ("resource", "Resource", metric.resource.is_some()),
            ("containerResource", "ContainerResource", metric.container_resource.is_some()),
        ];
        if metric.type_.is_empty() {
            errors.required(&at.child("type"), "must specify a metric source type");
        }
        one_of(&metric.type_, TYPES, &at.child("type"), errors);
        // Only the first that is given is looked at.
        if let Some((field, ..)) = given.iter().find(|(_, _, set)| *set) {
            source(metric, field, &at.child(field), errors);
        }
        let own = given.iter().find(|(_, kind, _)| *kind == metric.type_);
        match own {
            Some((field, _, false)) => {
                errors.required(&at.child(field), "must populate information for the given metric source");
            }
            Some(_) => {}
            // Upstream says so a second time.
            None => one_of(&metric.type_, TYPES, &at.child("type"), errors),
        }
        if given.iter().filter(|(_, _, set)| *set).count() != 1 {
            for (field, ..) in given.iter().filter(|(_, kind, set)| *set && *kind != metric.type_) {
                errors.forbidden(&at.child(field), "must populate the given metric source only");
            }
        }
    }
}

fn source(metric: &MetricSpec, field: &str, at: &FieldPath, errors: &mut FieldErrors) {
    let at_target = at.child("target");
    match field {
        "object" => {
            let Some(m) = &metric.object else { return };
            let object = &m.described_object;
            let at_object = at.child("describedObject");
            named(&object.kind, &object.name, &at_object, errors);
            let version = object.api_version.as_deref().unwrap_or_default();
            api_version(version, true, &at_object.child("apiVersion"), errors);
            identifier(&m.metric.name, &at.child("metric"), errors);
            target(&m.target, &at_target, errors);
            if m.target.value.is_none() && m.target.average_value.is_none() {
                errors.required(
                    &at_target.child("averageValue"),
                    "must set either a target value or averageValue",
                );
            }
        }
        "external" => {
            let Some(m) = &metric.external else { return };
            identifier(&m.metric.name, &at.child("metric"), errors);
            target(&m.target, &at_target, errors);
            match (&m.target.value, &m.target.average_value) {
                (None, None) => errors.required(
                    &at_target.child("averageValue"),
                    "must set either a target value for metric or a per-pod target",
                ),
                (Some(_), Some(_)) => errors.forbidden(
                    &at_target.child("value"),
                    "may not set both a target value for metric and a per-pod target",
                ),
                _ => {}
            }
        }
        "pods" => {
            let Some(m) = &metric.pods else { return };
            identifier(&m.metric.name, &at.child("metric"), errors);
            target(&m.target, &at_target, errors);
            if m.target.average_value.is_none() {
                errors.required(
                    &at_target.child("averageValue"),
                    "must specify a positive target averageValue",
                );
            }
        }
        "resource" => {
            let Some(m) = &metric.resource else { return };
            if m.name.is_empty() {
                errors.required(&at.child("name"), "must specify a resource name");
            }
            resource_target(&m.target, &at_target, errors);
        }
        _ => {
            let Some(m) = &metric.container_resource else { return };
            if m.name.is_empty() {
                errors.required(&at.child("name"), "must specify a resource name");
            } else {
                container_resource_name(&m.name, &at.child("name"), errors);
            }
            if m.container.is_empty() {
                errors.required(&at.child("container"), "must specify a container");
            } else {
                dns_label(&m.container, &at.child("container"), errors);
            }
            resource_target(&m.target, &at_target, errors);
        }
    }
}

/// The kind and the name of another object.
pub fn named(kind: &str, name: &str, at: &FieldPath, errors: &mut FieldErrors) {
    path_segment(kind, &at.child("kind"), errors);
    path_segment(name, &at.child("name"), errors);
}

/// The version of another object; `core` where its group may be the one without a name.
pub fn api_version(version: &str, core: bool, at: &FieldPath, errors: &mut FieldErrors) {
    match version.matches('/').count() {
        0 if core => {}
        0 => errors.invalid(at, version, "apiVersion must specify API group"),
        1 if !core && version.starts_with('/') => {
            errors.invalid(at, version, "apiVersion must specify API group");
        }
        1 => {}
        _ => errors.invalid(at, version, format!("unexpected GroupVersion string: {version}")),
    }
}

fn identifier(name: &str, at: &FieldPath, errors: &mut FieldErrors) {
    let at = at.child("name");
    if name.is_empty() {
        errors.required(&at, "must specify a metric name");
    } else {
        each(is_path_segment_name(name, false), name, &at, errors);
    }
}

fn target(t: &MetricTarget, at: &FieldPath, errors: &mut FieldErrors) {
    if t.type_.is_empty() {
        errors.required(&at.child("type"), "must specify a metric target type");
    }
    if !TARGETS.contains(&t.type_.as_str()) {
        errors.invalid(&at.child("type"), &t.type_, "must be either Utilization, Value, or AverageValue");
    }
    for (name, value) in [("value", &t.value), ("averageValue", &t.average_value)] {
        if let Some(value) = value
            && (crate::registry::quantities::is_negative(value)
                || crate::registry::quantities::is_zero(value))
        {
            errors.invalid(&at.child(name), &value.0, "must be positive");
        }
    }
    if t.average_utilization.is_some_and(|u| u < 1) {
        errors.invalid(&at.child("averageUtilization"), t.average_utilization, "must be greater than 0");
    }
}

fn resource_target(t: &MetricTarget, at: &FieldPath, errors: &mut FieldErrors) {
    target(t, at, errors);
    match (t.average_utilization, &t.average_value) {
        (None, None) => {
            errors.required(
                &at.child("averageUtilization"),
                "must set either a target raw value or a target utilization",
            );
        }
        (Some(_), Some(_)) => {
            errors.forbidden(
                &at.child("averageValue"),
                "may not set both a target raw value and a target utilization",
            );
        }
        _ => {}
    }
}

/// `cpu: 40%/80%, 3/1k`: measured over wanted, the first few.
pub fn shown(hpa: &HorizontalPodAutoscaler) -> Value {
    const SHOWN: usize = 2;
    let specs = hpa.spec.metrics.as_deref().unwrap_or_default();
    if specs.is_empty() {
        return "<none>".into();
    }
    let measured = hpa.status.as_ref().and_then(|s| s.current_metrics.as_deref()).unwrap_or_default();
    let list: Vec<String> = specs
        .iter()
        .enumerate()
        .map(|(i, spec)| {
            let now = measured.get(i);
            let (prefix, target, current) = if let Some(m) = &spec.resource {
                (
                    format!("{}: ", m.name),
                    &m.target,
                    now.and_then(|n| n.resource.as_ref()).map(|r| &r.current),
                )
            } else if let Some(m) = &spec.container_resource {
                let current = now.and_then(|n| n.container_resource.as_ref()).map(|r| &r.current);
                (format!("{}: ", m.name), &m.target, current)
            } else if let Some(m) = &spec.pods {
                (String::new(), &m.target, now.and_then(|n| n.pods.as_ref()).map(|r| &r.current))
            } else if let Some(m) = &spec.object {
                return of_all(&m.target, now.and_then(|n| n.object.as_ref()).map(|r| &r.current));
            } else if let Some(m) = &spec.external {
                return of_all(&m.target, now.and_then(|n| n.external.as_ref()).map(|r| &r.current));
            } else {
                return "<unknown type>".to_owned();
            };
            format!("{prefix}{}", pair(target, current))
        })
        .collect();
    let more = list.len().saturating_sub(SHOWN);
    let text = list[..list.len().min(SHOWN)].join(", ");
    if more == 0 { text.into() } else { format!("{text} + {more} more...").into() }
}

/// What is measured of all pods together says so where it is shared among them.
fn of_all(target: &MetricTarget, current: Option<&MetricValueStatus>) -> String {
    let average = if target.average_value.is_some() { " (avg)" } else { "" };
    format!("{}{average}", pair(target, current))
}

fn pair(target: &MetricTarget, current: Option<&MetricValueStatus>) -> String {
    const UNKNOWN: &str = "<unknown>";
    if let Some(wanted) = target.average_utilization {
        let now = current.and_then(|c| c.average_utilization).map_or(UNKNOWN.to_owned(), |n| format!("{n}%"));
        return format!("{now}/{wanted}%");
    }
    let (wanted, now) = match (&target.average_value, &target.value) {
        (Some(wanted), _) => (&wanted.0, current.and_then(|c| c.average_value.as_ref())),
        (None, Some(wanted)) => (&wanted.0, current.and_then(|c| c.value.as_ref())),
        (None, None) => return format!("{UNKNOWN}/<auto>"),
    };
    let now = now.map_or(UNKNOWN, |n| n.0.as_str());
    format!("{now}/{wanted}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn said(metric: Value) -> Vec<String> {
        let metric: MetricSpec = serde_json::from_value(metric).expect("a metric");
        let mut errors = FieldErrors::new();
        validate(&[metric], &FieldPath::new("m"), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_metric_has_the_target_that_is_wanted_of_its_kind() {
        let none = json!({"type": "Value"});
        let resource = json!({"type": "ContainerResource", "containerResource":
            {"name": "pods", "container": "C_", "target": {"type": "Odd", "averageUtilization": 1}}});
        let said_of = said(resource);
        for at in ["name", "container", "target.type"] {
            let at = format!("m[0].containerResource.{at}: Invalid value");
            assert!(said_of.iter().any(|wrong| wrong.starts_with(&at)), "{said_of:?}");
        }
        assert!(said_of.contains(
            &"m[0].containerResource.target.type: Invalid value: \"Odd\": must be either Utilization, Value, or \
              AverageValue"
                .to_owned()
        ));
        let of_quota = json!({"type": "ContainerResource", "containerResource": {"name": "requests.example.com/a",
            "container": "c", "target": {"type": "AverageValue", "averageValue": "1"}}});
        assert_eq!(
            said(of_quota),
            [
                "m[0].containerResource.name: Invalid value: \"requests.example.com/a\": doesn't follow extended \
                 resource name standard",
            ]
        );
        let object = json!({"type": "Object", "object": {"metric": {"name": "a/b"}, "target": none,
            "describedObject": {"kind": "Service", "name": "s"}}});
        assert_eq!(
            said(object),
            [
                "m[0].object.metric.name: Invalid value: \"a/b\": may not contain '/'",
                "m[0].object.target.averageValue: Required value: must set either a target value or averageValue",
            ]
        );
        let external = json!({"type": "External", "external": {"metric": {"name": "q"},
            "target": {"type": "Value", "value": "1", "averageValue": "1"}}});
        assert_eq!(
            said(external),
            [
                "m[0].external.target.value: Forbidden: may not set both a target value for metric and a per-pod target"
            ]
        );
    }

    #[test]
    fn averages_over_all_pods_are_shown_as_such() {
        let hpa: HorizontalPodAutoscaler = serde_json::from_value(json!({
            "metadata": {"name": "h"},
            "spec": {"maxReplicas": 1, "scaleTargetRef": {"kind": "Deployment", "name": "d"}, "metrics": [
                {"type": "External", "external": {"metric": {"name": "q"},
                    "target": {"type": "AverageValue", "averageValue": "5"}}},
                {"type": "Pods", "pods": {"metric": {"name": "q"},
                    "target": {"type": "AverageValue", "averageValue": "6"}}},
            ]},
        }))
        .expect("an autoscaler");
        assert_eq!(shown(&hpa), "<unknown>/5 (avg), <unknown>/6");
    }
}
