//! HorizontalPodAutoscaler of `autoscaling/v1`: the older words, which know of the processor alone. It is stored as
//! version 2; what version 1 cannot say is in annotations, as upstream's conversion has it.

use std::collections::BTreeMap;

use k8s_openapi::api::autoscaling::{v1, v2};
use krate_api::{FieldErrors, FieldPath, Kind, kinds};
use serde_json::{Map, Value, json};

use crate::registry::column::{age, name, text};
use crate::registry::{Column, Context, Selectable, Strategy, encode};

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

/// Fields of version 1, each with the place in version 2.
type Names = &'static [(&'static str, &'static str)];

/// Sources of metrics: their type, their field, and where version 2 has what version 1 names so. `@` is `target` in what
/// is wanted and `current` in what is measured.
const SOURCES: [(&str, &str, Names); 5] = [
    (
        "Resource",
        "resource",
        &[
            ("name", "/name"),
            ("@AverageUtilization", "/@/averageUtilization"),
            ("@AverageValue", "/@/averageValue"),
        ],
    ),
    (
        "ContainerResource",
        "containerResource",
        &[
            ("name", "/name"),
            ("container", "/container"),
            ("@AverageUtilization", "/@/averageUtilization"),
            ("@AverageValue", "/@/averageValue"),
        ],
    ),
    (
        "Pods",
        "pods",
        &[
            ("metricName", "/metric/name"),
            ("selector", "/metric/selector"),
            ("@AverageValue", "/@/averageValue"),
        ],
    ),
    (
        "Object",
        "object",
        &[
            ("target", "/describedObject"),
            ("metricName", "/metric/name"),
            ("selector", "/metric/selector"),
            ("@Value", "/@/value"),
            ("averageValue", "/@/averageValue"),
        ],
    ),
    (
        "External",
        "external",
        &[
            ("metricName", "/metric/name"),
            ("metricSelector", "/metric/selector"),
            ("@Value", "/@/value"),
            ("@AverageValue", "/@/averageValue"),
        ],
    ),
];

fn source(metric: &Value) -> Option<(&'static str, Names)> {
    let found = SOURCES.iter().find(|(kind, _, _)| metric["type"] == *kind)?;
    Some((found.1, found.2))
}

/// A metric of version 2 in the words of version 1.
fn older(metric: &Value, at: &str) -> Value {
    let mut out = json!({"type": metric["type"]});
    let Some((field, names)) = source(metric) else { return out };
    let mut told = Map::new();
    for (old, new) in names {
        if let Some(value) = metric[field].pointer(&new.replace('@', at)) {
            told.insert(old.replace('@', at), value.clone());
        }
    }
    out[field] = told.into();
    out
}

/// A metric of version 1 in the words of version 2.
fn newer(metric: &Value, at: &str) -> Value {
    let mut out = json!({"type": metric["type"]});
    let Some((field, names)) = source(metric) else { return out };
    for (old, new) in names {
        let Some(value) = metric[field].get(old.replace('@', at)) else { continue };
        let mut place = &mut out[field];
        for part in new.replace('@', at).trim_start_matches('/').split('/') {
            place = &mut place[part];
        }
        *place = value.clone();
    }
    if at == "target" {
        let target = &mut out[field]["target"];
        let kind = if target.get("averageUtilization").is_some() {
            "Utilization"
        } else if target.get("averageValue").is_some() {
            "AverageValue"
        } else {
            "Value"
        };
        target["type"] = kind.into();
    }
    out
}

/// Whether a metric is the one that version 1 has a field for.
fn is_processor(metric: &Value) -> bool {
    metric["type"] == "Resource" && metric["resource"]["name"] == "cpu"
}

/// Upstream writes the behavior with its fields' names in Go.
fn renamed(value: &Value, first: fn(char) -> char) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| {
                let mut rest = name.chars();
                let name: String = rest.next().map(first).into_iter().chain(rest).collect();
                (name, renamed(value, first))
            })
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(items) => items.iter().map(|item| renamed(item, first)).collect(),
        other => other.clone(),
    }
}

fn list(value: Value) -> Vec<Value> {
    if let Value::Array(items) = value { items } else { Vec::new() }
}

/// An object of version 2 in the words of version 1.
///
/// # Errors
/// It is no object of version 2.
fn from_v2(stored: &Value) -> Result<v1::HorizontalPodAutoscaler, serde_json::Error> {
    let (spec, status) = (&stored["spec"], &stored["status"]);
    let mut out = json!({
        "metadata": stored["metadata"],
        "spec": {"maxReplicas": spec["maxReplicas"], "minReplicas": spec["minReplicas"],
            "scaleTargetRef": spec["scaleTargetRef"]},
        "status": {"currentReplicas": status["currentReplicas"].as_i64().unwrap_or(0),
            "desiredReplicas": status["desiredReplicas"].as_i64().unwrap_or(0),
            "lastScaleTime": status["lastScaleTime"], "observedGeneration": status["observedGeneration"]},
    });
    let mut notes: Vec<(&str, Value)> = Vec::new();
    let mut others = Vec::new();
    for metric in spec["metrics"].as_array().into_iter().flatten() {
        match metric.pointer("/resource/target/averageUtilization") {
            Some(percent) if is_processor(metric) => {
                out["spec"]["targetCPUUtilizationPercentage"] = percent.clone();
            }
            _ => others.push(older(metric, "target")),
        }
    }
    notes.push((METRICS, others.into()));
    let measured = list(status["currentMetrics"].clone());
    if let Some(percent) = measured
        .iter()
        .filter(|metric| is_processor(metric))
        .find_map(|metric| metric.pointer("/resource/current/averageUtilization"))
    {
        out["status"]["currentCPUUtilizationPercentage"] = percent.clone();
    }
    notes.push((CURRENT_METRICS, measured.iter().map(|metric| older(metric, "current")).collect()));
    notes.push((CONDITIONS, list(status["conditions"].clone()).into()));
    if spec["behavior"].is_object() {
        notes.push((BEHAVIOR, renamed(&spec["behavior"], |c| c.to_ascii_uppercase())));
    }
    for (name, note) in notes {
        if note.as_array().is_none_or(|items| !items.is_empty()) {
            out["metadata"]["annotations"][name] = note.to_string().into();
        }
    }
    serde_json::from_value(out)
}

/// The object in version 2.
fn to_v2(hpa: &v1::HorizontalPodAutoscaler) -> v2::HorizontalPodAutoscaler {
    let mut metadata = hpa.metadata.clone();
    let mut note = |name: &str| -> Value {
        let text = metadata.annotations.as_mut().and_then(|all| all.remove(name));
        text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
    };
    let mut metrics: Vec<Value> = list(note(METRICS)).iter().map(|metric| newer(metric, "target")).collect();
    if let Some(percent) = hpa.spec.target_cpu_utilization_percentage {
        metrics.push(json!({"type": "Resource", "resource": {"name": "cpu",
            "target": {"type": "Utilization", "averageUtilization": percent}}}));
    }
    let measured: Vec<Value> =
        list(note(CURRENT_METRICS)).iter().map(|metric| newer(metric, "current")).collect();
    let conditions = list(note(CONDITIONS));
    let behavior = renamed(&note(BEHAVIOR), |c| c.to_ascii_lowercase());
    if metadata.annotations.as_ref().is_some_and(BTreeMap::is_empty) {
        metadata.annotations = None;
    }
    let status = hpa.status.clone().unwrap_or_default();
    // What an annotation says that is no metric is as good as not said.
    let read = |value: Value| serde_json::from_value(value).ok();
    v2::HorizontalPodAutoscaler {
        metadata,
        spec: v2::HorizontalPodAutoscalerSpec {
            behavior: serde_json::from_value(behavior).ok(),
            max_replicas: hpa.spec.max_replicas,
            metrics: (!metrics.is_empty()).then(|| metrics.into_iter().filter_map(read).collect()),
            min_replicas: hpa.spec.min_replicas,
            scale_target_ref: v2::CrossVersionObjectReference {
                api_version: hpa.spec.scale_target_ref.api_version.clone(),
                kind: hpa.spec.scale_target_ref.kind.clone(),
                name: hpa.spec.scale_target_ref.name.clone(),
            },
        },
        status: Some(v2::HorizontalPodAutoscalerStatus {
            conditions: serde_json::from_value(conditions.into()).ok(),
            current_metrics: (!measured.is_empty()).then(|| {
                measured.into_iter().filter_map(|value| serde_json::from_value(value).ok()).collect()
            }),
            current_replicas: Some(status.current_replicas),
            desired_replicas: status.desired_replicas,
            last_scale_time: status.last_scale_time,
            observed_generation: status.observed_generation,
        }),
    }
}

/// What version 2 makes of an object, in the words of version 1.
fn through(hpa: &mut v1::HorizontalPodAutoscaler, change: impl FnOnce(&mut v2::HorizontalPodAutoscaler)) {
    let mut newer = to_v2(hpa);
    change(&mut newer);
    if let Ok(older) = serde_json::to_value(&newer).and_then(|value| from_v2(&value)) {
        *hpa = older;
    }
}

impl Strategy for v1::HorizontalPodAutoscaler {
    const KIND: &'static Kind = &kinds::HORIZONTAL_POD_AUTOSCALER_V1;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text("Reference", "io.k8s.api.autoscaling.v2.HorizontalPodAutoscalerSpec.scaleTargetRef", |h| {
            format!("{}/{}", h.spec.scale_target_ref.kind, h.spec.scale_target_ref.name).into()
        }),
        text("Targets", "io.k8s.api.autoscaling.v2.HorizontalPodAutoscalerSpec.metrics", |h| {
            super::metrics::shown(&to_v2(h))
        }),
        text("MinPods", "io.k8s.api.autoscaling.v2.HorizontalPodAutoscalerSpec.minReplicas", |h| {
            h.spec.min_replicas.map_or("<unset>".to_owned(), |n| n.to_string()).into()
        }),
        text("MaxPods", "io.k8s.api.autoscaling.v2.HorizontalPodAutoscalerSpec.maxReplicas", |h| {
            h.spec.max_replicas.into()
        }),
        text("Replicas", "io.k8s.api.autoscaling.v2.HorizontalPodAutoscalerStatus.currentReplicas", |h| {
            h.status.as_ref().map_or(0, |s| s.current_replicas).into()
        }),
        age(),
    ];
    const STORED_AS: Option<&'static Kind> = Some(&kinds::HORIZONTAL_POD_AUTOSCALER);

    fn default(&mut self) {
        through(self, Strategy::default);
    }

    fn prepare_for_create(&mut self, context: &Context) {
        through(self, |hpa| hpa.prepare_for_create(context));
    }

    fn prepare_for_update(&mut self, old: &Self, context: &Context) {
        through(self, |hpa| hpa.prepare_for_update(&to_v2(old), context));
    }

    fn prepare_for_status_update(&mut self, old: &Self, context: &Context) {
        through(self, |hpa| hpa.prepare_for_status_update(&to_v2(old), context));
    }

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        to_v2(self).validate(at, errors);
    }

    fn validate_new(&self, at: &FieldPath, errors: &mut FieldErrors) {
        to_v2(self).validate_new(at, errors);
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        to_v2(self).validate_update(&to_v2(old), at, errors);
    }

    fn validate_status_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        to_v2(self).validate_status_update(&to_v2(old), at, errors);
    }

    fn to_stored(&self) -> Vec<u8> {
        encode::to_vec(&to_v2(self))
    }

    fn of_stored(json: &[u8]) -> Result<Self, serde_json::Error> {
        from_v2(&serde_json::from_slice(json)?)
    }

    fn selectable(&self) -> Selectable {
        to_v2(self).selectable()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored() -> Value {
        json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
            "spec": {
                "maxReplicas": 3, "minReplicas": 1, "scaleTargetRef": {"kind": "Deployment", "name": "d"},
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": 5,
                    "policies": [{"type": "Pods", "value": 1, "periodSeconds": 15}]}},
                "metrics": [
                    {"type": "Pods", "pods": {"metric": {"name": "q"},
                        "target": {"type": "AverageValue", "averageValue": "1k"}}},
                    {"type": "Object", "object": {"metric": {"name": "r"}, "target": {"type": "Value", "value": "5"},
                        "describedObject": {"kind": "Service", "name": "s"}}},
                    {"type": "Resource", "resource": {"name": "cpu",
                        "target": {"type": "Utilization", "averageUtilization": 50}}},
                ],
            },
            "status": {"desiredReplicas": 2, "currentReplicas": 1,
                "currentMetrics": [{"type": "Resource", "resource": {"name": "cpu",
                    "current": {"averageUtilization": 40, "averageValue": "4m"}}}],
                "conditions": [{"type": "AbleToScale", "status": "True"}]},
        })
    }

    #[test]
    fn version_1_says_what_it_can_and_notes_the_rest() {
        let old = from_v2(&stored()).expect("an object");
        assert_eq!(old.spec.target_cpu_utilization_percentage, Some(50));
        assert_eq!(old.status.as_ref().and_then(|s| s.current_cpu_utilization_percentage), Some(40));
        let notes = old.metadata.annotations.clone().expect("annotations");
        assert_eq!(notes.len(), 4, "{notes:?}");
        assert!(
            notes[METRICS].contains("\"metricName\":\"q\"")
                && notes[METRICS].contains("\"targetAverageValue\":\"1k\"")
        );
        assert!(notes[BEHAVIOR].starts_with("{\"ScaleDown\""), "{}", notes[BEHAVIOR]);
    }

    #[test]
    fn nothing_is_lost_between_the_two() {
        let new: v2::HorizontalPodAutoscaler = serde_json::from_value(stored()).expect("version 2");
        assert_eq!(to_v2(&from_v2(&stored()).expect("version 1")), new);
    }

    #[test]
    fn notes_that_make_no_sense_are_passed_over() {
        let mut old = from_v2(&stored()).expect("an object");
        let notes = old.metadata.annotations.get_or_insert_default();
        notes.insert(METRICS.to_owned(), "{{".to_owned());
        notes.insert(BEHAVIOR.to_owned(), "7".to_owned());
        let new = to_v2(&old);
        assert_eq!(new.spec.metrics.map(|all| all.len()), Some(1));
        assert_eq!(new.spec.behavior, None);
    }

    #[test]
    fn a_new_object_is_checked_as_one_of_version_2() {
        let old = from_v2(&stored()).expect("an object");
        let mut errors = FieldErrors::new();
        old.validate_new(&FieldPath::new(""), &mut errors);
        assert!(errors.aggregate().contains("apiVersion must specify API group"));
    }
}
