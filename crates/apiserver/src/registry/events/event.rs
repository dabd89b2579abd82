//! Event of `events.k8s.io`: the core group's Event in other words. Both are one object in the store, which is the
//! core group's; [`to_core`] and [`from_core`] go between them.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::events::v1::{Event, EventSeries};
use krate_api::{FieldErrors, FieldPath, Kind, kinds};
use serde::Serialize;

use crate::registry::core::event as old;
use crate::registry::rules::immutable;
use crate::registry::{Column, Selectable, Strategy, encode};

/// The event in the words of the core group.
pub fn to_core(event: &Event) -> core::Event {
    let e = event.clone();
    core::Event {
        action: e.action,
        count: e.deprecated_count,
        event_time: e.event_time,
        first_timestamp: e.deprecated_first_timestamp,
        involved_object: e.regarding.unwrap_or_default(),
        last_timestamp: e.deprecated_last_timestamp,
        message: e.note,
        metadata: e.metadata,
        reason: e.reason,
        related: e.related,
        reporting_component: e.reporting_controller,
        reporting_instance: e.reporting_instance,
        series: e.series.map(|s| core::EventSeries {
            count: Some(s.count),
            last_observed_time: Some(s.last_observed_time),
        }),
        source: e.deprecated_source,
        type_: e.type_,
    }
}

/// The core group's event in these words.
pub fn from_core(event: &core::Event) -> Event {
    let e = event.clone();
    Event {
        action: e.action,
        deprecated_count: e.count,
        deprecated_first_timestamp: e.first_timestamp,
        deprecated_last_timestamp: e.last_timestamp,
        deprecated_source: e.source,
        event_time: e.event_time,
        metadata: e.metadata,
        note: e.message,
        reason: e.reason,
        regarding: Some(e.involved_object),
        related: e.related,
        reporting_controller: e.reporting_component,
        reporting_instance: e.reporting_instance,
        series: e.series.and_then(|s| {
            Some(EventSeries { count: s.count.unwrap_or(0), last_observed_time: s.last_observed_time? })
        }),
        type_: e.type_,
    }
}

/// A column of the core group's events, for these.
macro_rules! columns {
    ($($i:literal),*) => {
        &[$(Column {
            cell: |e| (<core::Event as Strategy>::COLUMNS[$i].cell)(&to_core(e)),
            name: <core::Event as Strategy>::COLUMNS[$i].name,
            kind: <core::Event as Strategy>::COLUMNS[$i].kind,
            format: <core::Event as Strategy>::COLUMNS[$i].format,
            priority: <core::Event as Strategy>::COLUMNS[$i].priority,
            description: <core::Event as Strategy>::COLUMNS[$i].description,
        }),*]
    };
}

impl Strategy for Event {
    const KIND: &'static Kind = &kinds::EVENTS_EVENT;
    const COLUMNS: &'static [Column<Self>] = columns!(0, 1, 2, 3, 4, 5, 6, 7, 8, 9);
    const ALLOW_CREATE_ON_UPDATE: bool = true;
    const STORED_AS: Option<&'static Kind> = Some(&kinds::EVENT);

    fn to_stored(&self) -> Vec<u8> {
        encode::to_vec(&to_core(self))
    }

    fn of_stored(json: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(json).map(|event| from_core(&event))
    }

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let event = to_core(self);
        old::in_its_namespace(&event, at, errors);
        if event.event_time.is_some() {
            old::new_style(&event, "reportingController", at, errors);
        }
    }

    fn validate_new(&self, at: &FieldPath, errors: &mut FieldErrors) {
        check_series(self, at, errors);
        if self.event_time.is_none() {
            errors.required(&at.child("eventTime"), "");
        }
        let kind = self.type_.as_deref().unwrap_or_default();
        if kind != "Normal" && kind != "Warning" {
            errors.invalid(&at.child("type"), "", format!("has invalid value: {kind}"));
        }
        // What the older words say is for older clients to read, and not for new ones to write.
        for (name, set) in [
            ("firstTimestamp", self.deprecated_first_timestamp.is_some()),
            ("lastTimestamp", self.deprecated_last_timestamp.is_some()),
            ("count", self.deprecated_count.unwrap_or(0) != 0),
            ("source", SourceInMemory::of(&to_core(self)) != SourceInMemory { component: "", host: "" }),
        ] {
            if set {
                errors.invalid(&at.child(name), "", "needs to be unset");
            }
        }
    }

    /// What has happened stays as it was told; only how often it did goes on.
    fn validate_update(&self, was: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        if self.series != was.series {
            check_series(self, at, errors);
        }
        let (new, was) = (to_core(self), to_core(was));
        let (object, from) = (ObjectInMemory::of, SourceInMemory::of);
        let (related, was_related) = (new.related.as_ref().map(object), was.related.as_ref().map(object));
        immutable(
            &object(&new.involved_object),
            &object(&was.involved_object),
            &at.child("involvedObject"),
            errors,
        );
        immutable(&from(&new), &from(&was), &at.child("source"), errors);
        immutable(&new.first_timestamp, &was.first_timestamp, &at.child("firstTimestamp"), errors);
        immutable(&new.last_timestamp, &was.last_timestamp, &at.child("lastTimestamp"), errors);
        immutable(&new.count.unwrap_or(0), &was.count.unwrap_or(0), &at.child("count"), errors);
        immutable(&new.event_time, &was.event_time, &at.child("eventTime"), errors);
        immutable(&related, &was_related, &at.child("related"), errors);
        for (name, new, was) in [
            ("reason", &new.reason, &was.reason),
            ("message", &new.message, &was.message),
            ("type", &new.type_, &was.type_),
            ("action", &new.action, &was.action),
            ("reportingController", &new.reporting_component, &was.reporting_component),
            ("reportingInstance", &new.reporting_instance, &was.reporting_instance),
        ] {
            immutable(&text(new.as_ref()), &text(was.as_ref()), &at.child(name), errors);
        }
    }

    fn selectable(&self) -> Selectable {
        old::selectable(&to_core(self))
    }
}

fn check_series(event: &Event, at: &FieldPath, errors: &mut FieldErrors) {
    if event.series.as_ref().is_some_and(|series| series.count < 2) {
        errors.invalid(&at.child("series.count"), "", "should be at least 2");
    }
}

fn text(text: Option<&String>) -> &str {
    text.map_or("", String::as_str)
}

/// Who told of an event, with the names that the fields have in upstream's memory.
#[derive(PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct SourceInMemory<'a> {
    component: &'a str,
    host: &'a str,
}

impl<'a> SourceInMemory<'a> {
    fn of(event: &'a core::Event) -> Self {
        let source = event.source.as_ref();
        SourceInMemory {
            component: source.map_or("", |source| text(source.component.as_ref())),
            host: source.map_or("", |source| text(source.host.as_ref())),
        }
    }
}

/// What an event is about, the same way.
#[derive(PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct ObjectInMemory<'a> {
    kind: &'a str,
    namespace: &'a str,
    name: &'a str,
    #[serde(rename = "UID")]
    uid: &'a str,
    #[serde(rename = "APIVersion")]
    api_version: &'a str,
    resource_version: &'a str,
    field_path: &'a str,
}

impl<'a> ObjectInMemory<'a> {
    fn of(object: &'a core::ObjectReference) -> Self {
        ObjectInMemory {
            kind: text(object.kind.as_ref()),
            namespace: text(object.namespace.as_ref()),
            name: text(object.name.as_ref()),
            uid: text(object.uid.as_ref()),
            api_version: text(object.api_version.as_ref()),
            resource_version: text(object.resource_version.as_ref()),
            field_path: text(object.field_path.as_ref()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn event(more: &Value) -> Event {
        let mut event = json!({
            "metadata": {"name": "e", "namespace": "n"}, "eventTime": "2026-01-01T00:00:00.000001Z", "type": "Normal",
            "reason": "R", "action": "A", "reportingController": "c.test/d", "reportingInstance": "i",
            "regarding": {"kind": "Pod", "name": "p", "namespace": "n"},
        });
        if let (Some(event), Some(more)) = (event.as_object_mut(), more.as_object()) {
            event.extend(more.clone());
        }
        serde_json::from_value(event).expect("event")
    }

    fn said(new: &Value, old: Option<&Value>) -> Vec<String> {
        let (new, mut errors) = (event(new), FieldErrors::new());
        new.validate(&FieldPath::new(""), &mut errors);
        match old {
            None => new.validate_new(&FieldPath::new(""), &mut errors),
            Some(old) => new.validate_update(&event(old), &FieldPath::new(""), &mut errors),
        }
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_has_happened_stays_as_it_was_told() {
        let seen = |count: i32| json!({"series": {"count": count, "lastObservedTime": "2026-01-01T00:02:00.000001Z"}});
        assert_eq!(said(&seen(3), Some(&seen(2))), [""; 0]);
        assert_eq!(said(&seen(1), Some(&seen(1))), [""; 0], "it was so before");
        assert_eq!(said(&seen(1), None), ["series.count: Invalid value: \"\": should be at least 2"]);
        assert_eq!(
            said(&json!({"reason": "S", "note": "m"}), Some(&json!({}))),
            [
                "reason: Invalid value: \"S\": field is immutable",
                "message: Invalid value: \"m\": field is immutable",
            ]
        );
    }

    #[test]
    fn an_event_may_be_told_in_another_namespace() {
        let of = |regarding: Value| json!({"regarding": regarding});
        assert_eq!(said(&of(json!({"kind": "Pod", "name": "p", "namespace": "other"})), None), [""; 0]);
        assert_eq!(
            said(&of(json!({"kind": "Node", "name": "p"})), None),
            ["involvedObject.namespace: Invalid value: \"\": does not match event.namespace"]
        );
    }

    #[test]
    fn nothing_is_lost_between_the_two() {
        let event: core::Event = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "e", "namespace": "n"},
            "involvedObject": {"kind": "Pod", "name": "p", "namespace": "n"},
            "message": "m", "reason": "R", "type": "Normal", "count": 2, "source": {"component": "c", "host": "h"},
            "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:01:00Z",
            "eventTime": "2026-01-01T00:00:00.000001Z", "action": "A", "reportingComponent": "c/d",
            "reportingInstance": "i",
            "series": {"count": 3, "lastObservedTime": "2026-01-01T00:02:00.000001Z"},
        }))
        .expect("event");
        assert_eq!(to_core(&from_core(&event)), event);
    }
}
