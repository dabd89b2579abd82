//! Event of `events.k8s.io`: the core group's Event in other words. Both are one object in the store, which is the
//! core group's; [`to_core`] and [`from_core`] go between them.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::events::v1::{Event, EventSeries};
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use crate::registry::core::event as old;
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
        if self.event_time.is_none() {
            errors.required(&at.child("eventTime"), "");
        } else {
            old::new_style(&event, "reportingController", at, errors);
        }
        let kind = self.type_.as_deref().unwrap_or_default();
        if kind != "Normal" && kind != "Warning" {
            errors.invalid(&at.child("type"), kind, format!("has invalid value: {kind}"));
        }
        // What the older words say is for older clients to read, and not for new ones to write.
        if self.metadata.resource_version.is_none() {
            for (name, set) in [
                ("firstTimestamp", self.deprecated_first_timestamp.is_some()),
                ("lastTimestamp", self.deprecated_last_timestamp.is_some()),
                ("count", self.deprecated_count.unwrap_or(0) != 0),
                (
                    "source",
                    self.deprecated_source.as_ref().is_some_and(|s| *s != core::EventSource::default()),
                ),
            ] {
                if set {
                    errors.invalid(&at.child(name), "", "needs to be unset");
                }
            }
        }
    }

    fn selectable(&self) -> Selectable {
        old::selectable(&to_core(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
