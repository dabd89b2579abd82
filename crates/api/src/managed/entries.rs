//! The entries of `metadata.managedFields`: read, merged, written back in upstream's order.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry, Time};
use serde_json::{Value, json};

use super::set::FieldSet;

/// How a manager came by its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    Apply,
    Update,
}

impl Operation {
    const fn as_str(self) -> &'static str {
        match self {
            Operation::Apply => "Apply",
            Operation::Update => "Update",
        }
    }
}

/// What tells one manager from another. An applier is the same in every version.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub manager: String,
    pub operation: Operation,
    pub subresource: String,
    /// Empty for an applier.
    pub api_version: String,
}

/// The fields of one manager.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub set: FieldSet,
    /// The version whose field names the set uses.
    pub api_version: String,
    /// When the manager last changed anything, in whole seconds.
    pub time: Option<Timestamp>,
    /// The set as it was read, for as long as nothing of it changes.
    read: Option<FieldsV1>,
}

impl Entry {
    pub(super) fn new(set: FieldSet, api_version: &str, time: Option<Timestamp>) -> Self {
        Entry { set, api_version: api_version.to_owned(), time, read: None }
    }

    /// Adds what a manager comes to own.
    pub(super) fn gain(&mut self, changed: &FieldSet, at: Timestamp) {
        self.set.extend(changed);
        self.read = None;
        self.time = Some(at);
    }

    /// Takes away what others come to own, and what is gone.
    pub(super) fn lose(&mut self, fields: &FieldSet) {
        if self.set.subtract(fields) {
            self.read = None;
        }
    }
}

/// All managers of an object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ManagedFields(pub BTreeMap<Key, Entry>);

/// How many managers that do not apply are told apart before the oldest are merged.
const UPDATE_MANAGERS_MAX: usize = 10;
/// The manager to which the oldest go.
const ANCIENT: &str = "ancient-changes";

impl Key {
    pub(super) fn new(manager: &str, operation: Operation, subresource: &str, api_version: &str) -> Self {
        Key {
            manager: if manager.is_empty() { super::UNKNOWN_MANAGER } else { manager }.to_owned(),
            operation,
            subresource: subresource.to_owned(),
            api_version: if operation == Operation::Apply { String::new() } else { api_version.to_owned() },
        }
    }

    /// As messages show it.
    pub(super) fn shown(&self, api_version: &str) -> String {
        let mut out = Value::from(self.manager.as_str()).to_string();
        if !self.subresource.is_empty() {
            let _ = write!(out, " with subresource {}", Value::from(self.subresource.as_str()));
        }
        if self.operation == Operation::Update {
            let _ = write!(out, " using {api_version}");
        }
        out
    }
}

impl ManagedFields {
    /// Reads an object's entries. None if one of them is not such as may be.
    pub fn read(object: &Value) -> Option<Self> {
        Self::of_entries(entries(object)?)
    }

    /// The same of entries that are read already.
    pub fn of_entries(entries: Vec<ManagedFieldsEntry>) -> Option<Self> {
        let mut out = BTreeMap::new();
        for entry in entries {
            let operation = match entry.operation.as_deref() {
                Some("Apply") => Operation::Apply,
                Some("Update") => Operation::Update,
                _ => return None,
            };
            let api_version = entry.api_version.unwrap_or_default();
            if api_version.is_empty() || entry.fields_type.as_deref() != Some("FieldsV1") {
                return None;
            }
            let text = Option::unwrap_or_default;
            let key = Key::new(&text(entry.manager), operation, &text(entry.subresource), &api_version);
            let read = entry.fields_v1;
            let set = read.as_ref().map(|fields| FieldSet::from_json(&fields.0)).unwrap_or_default();
            out.insert(key, Entry { set, api_version, time: entry.time.map(|time| time.0), read });
        }
        Some(ManagedFields(out))
    }

    /// The entries that a write goes on from: those that it brings, or those that are there. A caller may change
    /// them through the object itself, and reset them with one empty entry.
    pub(super) fn of_write(
        live: impl FnOnce() -> Option<Vec<ManagedFieldsEntry>>,
        given: Vec<ManagedFieldsEntry>,
        subresource: &str,
    ) -> Self {
        let there = || live().and_then(ManagedFields::of_entries).unwrap_or_default();
        if !subresource.is_empty() {
            return there();
        }
        if !given.is_empty() && given.iter().all(|entry| *entry == ManagedFieldsEntry::default()) {
            return ManagedFields::default();
        }
        ManagedFields::of_entries(given).filter(|m| !m.0.is_empty()).unwrap_or_else(there)
    }

    /// The entries as they are written: appliers first, then by time.
    pub fn into_entries(self) -> Vec<ManagedFieldsEntry> {
        let mut all: Vec<(Key, Entry)> = self.0.into_iter().collect();
        all.sort_by(|(a, x), (b, y)| {
            (a.operation, x.time, &a.manager, &x.api_version, &a.subresource).cmp(&(
                b.operation,
                y.time,
                &b.manager,
                &y.api_version,
                &b.subresource,
            ))
        });
        let written = |(key, entry): (Key, Entry)| ManagedFieldsEntry {
            api_version: Some(entry.api_version),
            fields_type: Some("FieldsV1".to_owned()),
            fields_v1: Some(entry.read.unwrap_or_else(|| FieldsV1(entry.set.to_json()))),
            manager: Some(key.manager),
            operation: Some(key.operation.as_str().to_owned()),
            subresource: Some(key.subresource).filter(|name| !name.is_empty()),
            time: entry.time.map(Time),
        };
        all.into_iter().map(written).collect()
    }

    /// Writes the entries into an object.
    pub fn write(self, object: &mut Value) {
        super::take(object);
        if self.0.is_empty() {
            return;
        }
        let written = serde_json::to_value(self.into_entries()).unwrap_or_default();
        if let Some(fields) = object.as_object_mut() {
            let meta = fields.entry("metadata").or_insert_with(|| json!({}));
            if let Some(meta) = meta.as_object_mut() {
                meta.insert("managedFields".to_owned(), written);
            }
        }
    }

    /// Drops managers that have nothing left.
    pub(super) fn drop_empty(&mut self) {
        self.0.retain(|_, entry| !entry.set.is_empty());
    }

    /// Merges the oldest updaters where there are too many, one entry a version.
    pub(super) fn cap(&mut self) {
        let mut updaters: Vec<Key> =
            self.0.keys().filter(|k| k.operation == Operation::Update).cloned().collect();
        if updaters.len() <= UPDATE_MANAGERS_MAX {
            return;
        }
        updaters.sort_by_key(|k| self.0.get(k).and_then(|e| e.time));
        let mut left = updaters.len();
        for key in updaters {
            if left <= UPDATE_MANAGERS_MAX {
                break;
            }
            let bucket = Key::new(ANCIENT, Operation::Update, "", &key.api_version);
            if key == bucket {
                continue;
            }
            let Some(old) = self.0.remove(&key) else { continue };
            match self.0.get_mut(&bucket) {
                Some(entry) => {
                    entry.set.extend(&old.set);
                    entry.read = None;
                    entry.time = entry.time.max(old.time);
                    left -= 1;
                }
                None => {
                    self.0.insert(bucket, old);
                }
            }
        }
    }
}

/// The entries of an object; None if they are none.
pub(super) fn entries(object: &Value) -> Option<Vec<ManagedFieldsEntry>> {
    match object.pointer("/metadata/managedFields") {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(entries) => serde_json::from_value(entries.clone()).ok(),
    }
}
