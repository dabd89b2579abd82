//! The entries of `metadata.managedFields`: read, merged, written back in upstream's order.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Map, Value, json};

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub set: FieldSet,
    /// The version whose field names the set uses.
    pub api_version: String,
    /// When the manager last changed anything, as it is written.
    pub time: Option<String>,
}

/// All managers of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
        let mut out = BTreeMap::new();
        for entry in entries(object) {
            let text = |field: &str| entry[field].as_str().unwrap_or_default();
            let operation = match text("operation") {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                _ => return None,
            };
            let api_version = text("apiVersion").to_owned();
            if api_version.is_empty() || text("fieldsType") != "FieldsV1" {
                return None;
            }
            let key = Key::new(text("manager"), operation, text("subresource"), &api_version);
            let time = entry["time"].as_str().map(str::to_owned);
            out.insert(key, Entry { set: FieldSet::from_json(&entry["fieldsV1"]), api_version, time });
        }
        Some(ManagedFields(out))
    }

    /// The entries that a write goes on from: those that it brings, or those that are there. A caller may change
    /// them through the object itself, and reset them with one empty entry.
    pub(super) fn of_write(live: Option<&Value>, new: &Value, subresource: &str) -> Self {
        let there = || live.and_then(ManagedFields::read).unwrap_or_default();
        if !subresource.is_empty() {
            return there();
        }
        let given = entries(new);
        if !given.is_empty() && given.iter().all(|e| e.as_object().is_some_and(Map::is_empty)) {
            return ManagedFields::default();
        }
        ManagedFields::read(new).filter(|m| !m.0.is_empty()).unwrap_or_else(there)
    }

    /// Writes the entries into an object: appliers first, then by time.
    pub fn write(&self, object: &mut Value) {
        super::strip(object);
        if self.0.is_empty() {
            return;
        }
        let mut all: Vec<(&Key, &Entry)> = self.0.iter().collect();
        all.sort_by(|(a, x), (b, y)| {
            (a.operation, x.time.as_deref().unwrap_or_default(), &a.manager, &x.api_version, &a.subresource)
                .cmp(&(
                    b.operation,
                    y.time.as_deref().unwrap_or_default(),
                    &b.manager,
                    &y.api_version,
                    &b.subresource,
                ))
        });
        let written: Vec<Value> = all.into_iter().map(|(key, entry)| write_entry(key, entry)).collect();
        if let Some(fields) = object.as_object_mut() {
            let meta = fields.entry("metadata").or_insert_with(|| json!({}));
            if let Some(meta) = meta.as_object_mut() {
                meta.insert("managedFields".to_owned(), Value::Array(written));
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
        updaters.sort_by_key(|k| self.0.get(k).and_then(|e| e.time.clone()));
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
                    entry.time = entry.time.take().max(old.time);
                    left -= 1;
                }
                None => {
                    self.0.insert(bucket, old);
                }
            }
        }
    }
}

fn entries(object: &Value) -> &[Value] {
    object["metadata"]["managedFields"].as_array().map_or(&[], Vec::as_slice)
}

fn write_entry(key: &Key, entry: &Entry) -> Value {
    let mut out = json!({
        "manager": key.manager,
        "operation": key.operation.as_str(),
        "apiVersion": entry.api_version,
        "fieldsType": "FieldsV1",
        "fieldsV1": entry.set.to_json(),
    });
    if let (Some(time), Some(fields)) = (&entry.time, out.as_object_mut()) {
        fields.insert("time".to_owned(), Value::from(time.as_str()));
    }
    if let (false, Some(fields)) = (key.subresource.is_empty(), out.as_object_mut()) {
        fields.insert("subresource".to_owned(), Value::from(key.subresource.as_str()));
    }
    out
}
