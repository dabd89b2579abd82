//! What an autoscaler goes by: each metric with what is measured and what is wanted.

use k8s_openapi::api::autoscaling::v2::{
    HorizontalPodAutoscaler, MetricSpec, MetricTarget, MetricValueStatus,
};
use krate_api::{FieldErrors, FieldPath};
use serde_json::Value;

use crate::registry::rules::{label_selector, one_of, required};

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
        } else {
            one_of(&metric.type_, TYPES, &at.child("type"), errors);
        }
        let own = given.iter().find(|(_, kind, _)| *kind == metric.type_);
        if let Some((field, _, false)) = own {
            errors.required(&at.child(field), "must populate information for the given metric source");
        }
        for (field, _, set) in given.iter().filter(|(_, kind, _)| *kind != metric.type_) {
            if *set && own.is_some() {
                errors.forbidden(&at.child(field), "must populate the given metric source only");
            }
        }
        if let Some(m) = &metric.resource {
            let at = at.child("resource");
            required(Some(&m.name), &at.child("name"), errors);
            resource_target(&m.target, &at.child("target"), errors);
        }
        if let Some(m) = &metric.container_resource {
            let at = at.child("containerResource");
            required(Some(&m.name), &at.child("name"), errors);
            required(Some(&m.container), &at.child("container"), errors);
            resource_target(&m.target, &at.child("target"), errors);
        }
        if let Some(m) = &metric.pods {
            let at = at.child("pods");
            identifier(&m.metric.name, m.metric.selector.as_ref(), &at.child("metric"), errors);
            target(&m.target, &at.child("target"), errors);
            if m.target.average_value.is_none() {
                errors.required(
                    &at.child("target").child("averageValue"),
                    "must specify a positive target averageValue",
                );
            }
        }
        if let Some(m) = &metric.object {
            let at = at.child("object");
            required(Some(&m.described_object.kind), &at.child("describedObject").child("kind"), errors);
            required(Some(&m.described_object.name), &at.child("describedObject").child("name"), errors);
            identifier(&m.metric.name, m.metric.selector.as_ref(), &at.child("metric"), errors);
            target(&m.target, &at.child("target"), errors);
        }
        if let Some(m) = &metric.external {
            let at = at.child("external");
            identifier(&m.metric.name, m.metric.selector.as_ref(), &at.child("metric"), errors);
            target(&m.target, &at.child("target"), errors);
        }
    }
}

fn identifier(
    name: &str,
    selector: Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector>,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    required(Some(name), &at.child("name"), errors);
    if let Some(selector) = selector {
        label_selector(selector, &at.child("selector"), errors);
    }
}

fn target(t: &MetricTarget, at: &FieldPath, errors: &mut FieldErrors) {
    if t.type_.is_empty() {
        errors.required(&at.child("type"), "must specify a metric target type");
    } else {
        one_of(&t.type_, TARGETS, &at.child("type"), errors);
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
                (String::new(), &m.target, now.and_then(|n| n.object.as_ref()).map(|r| &r.current))
            } else if let Some(m) = &spec.external {
                (String::new(), &m.target, now.and_then(|n| n.external.as_ref()).map(|r| &r.current))
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
