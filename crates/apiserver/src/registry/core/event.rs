//! Event: something that happened to an object.

use k8s_openapi::api::core::v1::Event;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};
use serde_json::Value;

use crate::registry::column::{since, since_at, text, wide};
use crate::registry::rules::label_name;
use crate::registry::{Column, Selectable, Strategy};

impl Strategy for Event {
    const KIND: &'static Kind = &kinds::EVENT;
    const COLUMNS: &'static [Column<Self>] = &[
        text("Last Seen", "io.k8s.api.core.v1.Event.lastTimestamp", last_seen),
        text("Type", "io.k8s.api.core.v1.Event.type", |e| e.type_.as_deref().unwrap_or_default().into()),
        text("Reason", "io.k8s.api.core.v1.Event.reason", |e| e.reason.as_deref().unwrap_or_default().into()),
        text("Object", "io.k8s.api.core.v1.Event.involvedObject", object),
        wide("Subobject", "io.k8s.api.core.v1.ObjectReference.fieldPath", |e| {
            e.involved_object.field_path.as_deref().unwrap_or_default().into()
        }),
        wide("Source", "io.k8s.api.core.v1.Event.source", source),
        text("Message", "io.k8s.api.core.v1.Event.message", |e| {
            e.message.as_deref().unwrap_or_default().trim().into()
        }),
        wide("First Seen", "io.k8s.api.core.v1.Event.firstTimestamp", |e| first_seen(e).into()),
        wide("Count", "io.k8s.api.core.v1.Event.count", count),
        Column {
            name: "Name",
            kind: "string",
            format: "name",
            priority: 1,
            description: "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta.name",
            cell: |e| e.metadata.name.as_deref().unwrap_or_default().into(),
        },
    ];
    const ALLOW_CREATE_ON_UPDATE: bool = true;

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        in_its_namespace(self, at, errors);
        if self.event_time.is_some() {
            new_style(self, "reportingComponent", at, errors);
        }
    }

    fn selectable(&self) -> Selectable {
        selectable(self)
    }
}

/// An event lives where its object does; of an object without namespace, in `default`. Of a new one it is only asked
/// that the objects of no namespace tell theirs in `default` or `kube-system`.
pub fn in_its_namespace(event: &Event, at: &FieldPath, errors: &mut FieldErrors) {
    let own = event.metadata.namespace.as_deref().unwrap_or_default();
    let objects = event.involved_object.namespace.as_deref().unwrap_or_default();
    let right = match (event.event_time.is_some(), objects) {
        (true, "") => matches!(own, "default" | "kube-system"),
        (true, _) => true,
        (false, "") => matches!(own, "" | "default"),
        (false, _) => own == objects,
    };
    if !right {
        errors.invalid(
            &at.child("involvedObject").child("namespace"),
            objects,
            "does not match event.namespace",
        );
    }
}

/// What an event with an event time must say (`events.k8s.io`).
pub fn new_style(event: &Event, controller: &str, at: &FieldPath, errors: &mut FieldErrors) {
    let reporter = event.reporting_component.as_deref().unwrap_or_default();
    if reporter.is_empty() {
        errors.required(&at.child(controller), "");
    }
    label_name(reporter, &at.child(controller), errors);
    for (name, value, must, most) in [
        ("reportingInstance", event.reporting_instance.as_deref(), true, 128),
        ("action", event.action.as_deref(), true, 128),
        ("reason", event.reason.as_deref(), true, 128),
        ("message", event.message.as_deref(), false, 1024),
    ] {
        let value = value.unwrap_or_default();
        if must && value.is_empty() {
            errors.required(&at.child(name), "");
        }
        if value.len() > most {
            errors.invalid(&at.child(name), "", format!("can have at most {most} characters"));
        }
    }
}

pub fn selectable(event: &Event) -> Selectable {
    let text = |o: &Option<String>| o.clone().unwrap_or_default();
    let object = &event.involved_object;
    let source = event.source.as_ref().and_then(|s| s.component.clone()).filter(|c| !c.is_empty());
    vec![
        ("involvedObject.kind", text(&object.kind)),
        ("involvedObject.namespace", text(&object.namespace)),
        ("involvedObject.name", text(&object.name)),
        ("involvedObject.uid", text(&object.uid)),
        ("involvedObject.apiVersion", text(&object.api_version)),
        ("involvedObject.resourceVersion", text(&object.resource_version)),
        ("involvedObject.fieldPath", text(&object.field_path)),
        ("reason", text(&event.reason)),
        ("reportingComponent", text(&event.reporting_component)),
        ("source", source.unwrap_or_else(|| text(&event.reporting_component))),
        ("type", text(&event.type_)),
    ]
}

pub fn first_seen(event: &Event) -> String {
    match (&event.first_timestamp, &event.event_time) {
        (Some(first), _) => since(Some(first)),
        (None, Some(time)) => since_at(time.0, jiff::Timestamp::now()),
        (None, None) => since(None),
    }
}

pub fn last_seen(event: &Event) -> Value {
    let series = event.series.as_ref().and_then(|s| s.last_observed_time.as_ref());
    match (series, &event.last_timestamp) {
        (Some(time), _) => since_at(time.0, jiff::Timestamp::now()).into(),
        (None, Some(time)) => since(Some(time)).into(),
        (None, None) => first_seen(event).into(),
    }
}

pub fn count(event: &Event) -> Value {
    let count = event.series.as_ref().map_or(event.count, |s| s.count).unwrap_or(0);
    if count == 0 && event.series.is_none() { 1.into() } else { count.into() }
}

pub fn object(event: &Event) -> Value {
    let kind = event.involved_object.kind.as_deref().unwrap_or_default().to_lowercase();
    match event.involved_object.name.as_deref().filter(|n| !n.is_empty()) {
        Some(name) => format!("{kind}/{name}").into(),
        None => kind.into(),
    }
}

pub fn source(event: &Event) -> Value {
    let source = event.source.clone().unwrap_or_default();
    let first = |one: Option<String>, other: &Option<String>| {
        one.filter(|text| !text.is_empty()).or_else(|| other.clone()).unwrap_or_default()
    };
    let component = first(source.component, &event.reporting_component);
    match first(source.host, &event.reporting_instance).as_str() {
        "" => component.into(),
        host => format!("{component}, {host}").into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(fields: Value) -> Event {
        let mut object = json!({"metadata": {"name": "e", "namespace": "n"}, "involvedObject": {}});
        for (field, value) in fields.as_object().into_iter().flatten() {
            object[field] = value.clone();
        }
        serde_json::from_value(object).expect("an event")
    }

    #[test]
    fn a_new_event_may_be_where_its_object_is_not() {
        let new = json!("2026-01-01T00:00:00.000001Z");
        for (namespace, time, right) in [
            ("n", Value::Null, true),
            ("other", Value::Null, false),
            ("other", new.clone(), true),
            ("", new, false),
        ] {
            let event = event(json!({"involvedObject": {"namespace": namespace}, "eventTime": time}));
            let mut errors = FieldErrors::new();
            in_its_namespace(&event, &FieldPath::new(""), &mut errors);
            assert_eq!(errors.is_empty(), right, "{namespace} {:?}", event.event_time);
        }
    }

    #[test]
    fn who_reports_is_shown_where_no_source_is() {
        let reported = json!({"source": {"component": "", "host": ""}, "reportingComponent": "a/b",
                              "reportingInstance": "i"});
        assert_eq!(source(&event(reported)), "a/b, i");
        assert_eq!(source(&event(json!({"source": {"component": "c"}}))), "c");
    }
}
