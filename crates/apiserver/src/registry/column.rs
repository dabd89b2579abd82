//! The words in which a kind says its columns, and the formats that several kinds share.

use jiff::Timestamp;
use k8s_openapi::Metadata;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, Time};
use krate_api::docs::Docs;
use serde_json::{Value, json};
use std::collections::BTreeMap;

use super::Column;

/// A column that is always shown.
pub const fn text<T>(name: &'static str, description: &'static str, cell: fn(&T) -> Value) -> Column<T> {
    Column { name, kind: "string", format: "", priority: 0, description, cell }
}

/// A column that `-o wide` adds.
pub const fn wide<T>(name: &'static str, description: &'static str, cell: fn(&T) -> Value) -> Column<T> {
    Column { name, kind: "string", format: "", priority: 1, description, cell }
}

pub const fn integer<T>(name: &'static str, description: &'static str, cell: fn(&T) -> Value) -> Column<T> {
    Column { name, kind: "integer", format: "", priority: 0, description, cell }
}

pub const fn boolean<T>(name: &'static str, description: &'static str, cell: fn(&T) -> Value) -> Column<T> {
    Column { name, kind: "boolean", format: "", priority: 0, description, cell }
}

/// A column as tables define it.
pub fn definition<T>(column: &Column<T>, docs: &Docs) -> Value {
    json!({
        "name": column.name,
        "type": column.kind,
        "format": column.format,
        "description": docs.of(column.description).unwrap_or(column.description),
        "priority": column.priority,
    })
}

/// The object's name.
pub const fn name<T: Metadata<Ty = ObjectMeta>>() -> Column<T> {
    Column {
        name: "Name",
        kind: "string",
        format: "name",
        priority: 0,
        description: "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta.name",
        cell: |o| o.metadata().name.as_deref().unwrap_or_default().into(),
    }
}

/// How long ago the object was created.
pub const fn age<T: Metadata<Ty = ObjectMeta>>() -> Column<T> {
    Column {
        name: "Age",
        kind: "string",
        format: "",
        priority: 0,
        description: "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta.creationTimestamp",
        cell: |o| since(o.metadata().creation_timestamp.as_ref()).into(),
    }
}

/// When the object was created: what kinds show that have nothing else to tell.
pub const fn created_at<T: Metadata<Ty = ObjectMeta>>() -> Column<T> {
    Column {
        name: "Created At",
        kind: "date",
        format: "",
        priority: 0,
        description: "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta.creationTimestamp",
        cell: |o| o.metadata().creation_timestamp.as_ref().map_or(Value::Null, |t| t.0.to_string().into()),
    }
}

/// The age of a time as kubectl shows it; `<unknown>` for none.
pub fn since(time: Option<&Time>) -> String {
    time.map_or_else(|| "<unknown>".to_owned(), |t| since_at(t.0, Timestamp::now()))
}

pub fn since_at(then: Timestamp, now: Timestamp) -> String {
    human_duration(now.as_second() - then.as_second())
}

/// A duration in seconds in at most two units, coarser as it grows (`k8s.io/apimachinery/pkg/util/duration`).
pub fn human_duration(seconds: i64) -> String {
    let two = |big: i64, unit: char, small: i64, smaller: char| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{smaller}") }
    };
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        ..=-2 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        _ if minutes < 10 => two(minutes, 'm', seconds % 60, 's'),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => two(hours, 'h', minutes % 60, 'm'),
        _ if hours < 48 => format!("{hours}h"),
        _ if days < 8 => two(days, 'd', hours % 24, 'h'),
        _ if days < 730 => format!("{days}d"),
        _ if days < 8 * 365 => two(days / 365, 'y', days % 365, 'd'),
        _ => format!("{}y", days / 365),
    }
}

/// What is there, or `<none>`.
pub fn or_none(text: Option<&str>) -> Value {
    text.filter(|t| !t.is_empty()).unwrap_or("<none>").into()
}

/// `a=b,c=d`, or `<none>`.
pub fn labels(labels: Option<&BTreeMap<String, String>>) -> Value {
    let text: Vec<String> = labels.into_iter().flatten().map(|(k, v)| format!("{k}={v}")).collect();
    or_none(Some(&text.join(",")))
}

/// A selector in the syntax of `labelSelector`: `app=a,tier in (x,y),!old`. `<none>` for one that has no rules.
pub fn selector(selector: Option<&LabelSelector>) -> Value {
    let Some(selector) = selector else { return "<unset>".into() };
    or_none(Some(&selector_text(selector)))
}

pub fn selector_text(selector: &LabelSelector) -> String {
    let mut rules: Vec<(String, String)> =
        selector.match_labels.iter().flatten().map(|(k, v)| (k.clone(), format!("{k}={v}"))).collect();
    for rule in selector.match_expressions.iter().flatten() {
        let mut values = rule.values.clone().unwrap_or_default();
        values.sort();
        let key = &rule.key;
        rules.push((
            key.clone(),
            match rule.operator.as_str() {
                "In" => format!("{key} in ({})", values.join(",")),
                "NotIn" => format!("{key} notin ({})", values.join(",")),
                "Exists" => key.clone(),
                _ => format!("!{key}"),
            },
        ));
    }
    rules.sort_by(|a, b| a.0.cmp(&b.0));
    rules.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(",")
}

/// The names of a template's containers.
pub fn container_names(template: Option<&PodTemplateSpec>) -> Value {
    joined(template, |c| c.name.clone())
}

/// The images of a template's containers.
pub fn container_images(template: Option<&PodTemplateSpec>) -> Value {
    joined(template, |c| c.image.clone().unwrap_or_default())
}

fn joined(
    template: Option<&PodTemplateSpec>,
    what: fn(&k8s_openapi::api::core::v1::Container) -> String,
) -> Value {
    let containers = template.and_then(|t| t.spec.as_ref()).map(|s| s.containers.as_slice());
    containers.unwrap_or_default().iter().map(what).collect::<Vec<_>>().join(",").into()
}

#[cfg(test)]
mod tests {
    use super::human_duration;

    #[test]
    fn durations_grow_coarser() {
        for (seconds, text) in [
            (-2, "<invalid>"),
            (-1, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (601, "10m"),
            (3 * 3600 + 60, "3h1m"),
            (9 * 3600 + 60, "9h"),
            (2 * 86400 + 3600, "2d1h"),
            (8 * 86400 + 3600, "8d"),
            (800 * 86400, "2y70d"),
            (9 * 365 * 86400, "9y"),
        ] {
            assert_eq!(human_duration(seconds), text);
        }
    }
}
