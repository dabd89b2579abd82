//! Which objects a list or a watch is about: the selectors of a request.

use bytes::Bytes;
use krate_api::{FieldSelector, Kind, LabelSelector, StatusError};
use krate_store::cache::{Head, List, Selector};

use super::call::Call;
use super::joined::Items;
use crate::storage::Storage;

/// What is selected.
pub struct Selection {
    /// What the cache can tell.
    pub selector: Selector,
    /// What can be told of an object only when it is in the version that is asked for: a version of a custom kind has
    /// selectable fields of its own.
    later: Option<FieldSelector>,
}

impl Selection {
    /// Whether the cache's selector tells all.
    pub fn is_settled(&self) -> bool {
        self.later.is_none()
    }

    /// Whether an object, as it is sent, is selected by what the cache cannot tell.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn selects(&self, storage: &Storage, json: &Bytes) -> Result<bool, StatusError> {
        let Some(later) = &self.later else { return Ok(true) };
        let object = storage.registry.decode(json).map_err(StatusError::internal)?;
        let (fields, meta) = (storage.registry.selectable(&*object), object.meta());
        Ok(later.matches_with(|name| match name {
            "metadata.name" => meta.name.as_deref(),
            "metadata.namespace" => meta.namespace.as_deref(),
            _ => fields.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str()),
        }))
    }

    /// What of a list is selected, and whether there is more than `limit` (0 for none).
    ///
    /// # Errors
    /// An object is not converted.
    pub async fn page(
        &self,
        storage: &Storage,
        list: List,
        limit: usize,
    ) -> Result<(Items, bool), StatusError> {
        if self.is_settled() && !storage.converts() {
            return Ok((Items { objects: list.items, made: None }, list.more));
        }
        let sent = storage.all_sent(list.items.iter().map(|object| object.sent()).collect()).await?;
        if self.is_settled() {
            return Ok((Items { objects: list.items, made: Some(sent) }, list.more));
        }
        let (mut objects, mut made) = (Vec::new(), Vec::new());
        for (object, json) in list.items.into_iter().zip(sent) {
            if !self.selects(storage, &json)? {
                continue;
            }
            if limit != 0 && made.len() == limit {
                return Ok((Items { objects, made: Some(made) }, true));
            }
            objects.push(object);
            made.push(json);
        }
        Ok((Items { objects, made: Some(made) }, list.more))
    }
}

/// The selectors of a request.
pub fn selection(call: &Call) -> Result<Selection, StatusError> {
    let mut selector = Selector::everything();
    let mut later = None;
    if let Some(text) = call.query.get("fieldSelector") {
        let mut fields =
            FieldSelector::parse(text).map_err(|error| StatusError::bad_request(error.to_string()))?;
        if (call.kind().group, call.kind().plural) == ("events.k8s.io", "events") {
            fields = fields
                .try_rename(event_field)
                .map_err(|field| StatusError::bad_request(unknown_field(call.kind(), &field)))?;
        }
        let known = call.storage.registry.selectable_names();
        for field in fields.fields() {
            if !known.contains(&field) {
                return Err(StatusError::bad_request(unknown_field(call.kind(), field)));
            }
        }
        // One value of one field finds its watchers without asking each.
        let own = |field: &str| !field.starts_with("metadata.");
        let exact = fields.terms().iter().find(|t| t.equal && own(&t.field));
        if fields.fields().into_iter().any(own) && call.kind().custom && call.storage.converts() {
            later = Some(fields);
        } else {
            selector.field = exact.map(|t| (t.field.clone(), t.value.clone()));
            selector = selector.and(move |head: &Head| fields.matches_with(|field| head.field(field)));
        }
    }
    if let Some(text) = call.query.get("labelSelector") {
        let labels =
            LabelSelector::parse(text).map_err(|error| StatusError::bad_request(error.to_string()))?;
        if !labels.is_everything() {
            selector = selector.and(move |head: &Head| labels.matches_with(|key| head.label(key)));
        }
    }
    Ok(Selection { selector, later })
}

/// A field of `events.k8s.io` as the stored event names it; none, when that version does not know it.
fn event_field(field: &str) -> Option<String> {
    match field {
        "reason" | "type" | "metadata.name" | "metadata.namespace" => Some(field.to_owned()),
        "reportingController" => Some("reportingComponent".to_owned()),
        _ => field.strip_prefix("regarding.").map(|field| format!("involvedObject.{field}")),
    }
}

/// What is said of a field that a kind cannot be selected by: upstream's kinds do not all say the same.
fn unknown_field(kind: &Kind, field: &str) -> String {
    match (kind.group, kind.plural) {
        ("batch", "jobs") => format!("field label {field:?} not supported for Job"),
        (
            "",
            "pods" | "nodes" | "replicationcontrollers" | "events" | "namespaces" | "secrets" | "services",
        )
        | ("events.k8s.io", "events")
        | ("certificates.k8s.io", "certificatesigningrequests") => {
            format!("field label not supported: {field}")
        }
        _ if kind.custom => format!("field label not supported: {field}"),
        _ => {
            format!("{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")
        }
    }
}
