//! The whole schema of a kind, out of the document of its version: with what it refers to in its place.

use krate_api::Gvk;
use serde_json::{Map, Value, json};

use super::Document;
use super::operations::type_name;

const SCHEMAS: &str = "#/components/schemas/";
const INT_OR_STRING: &str = "x-kubernetes-int-or-string";

/// What a document describes.
pub(crate) struct Schemas(Map<String, Value>);

impl Schemas {
    /// Reads a document; `None` where it describes nothing.
    pub fn read(document: &Document) -> Option<Self> {
        let mut document: Value = serde_json::from_slice(&document.plain()).ok()?;
        match document.pointer_mut("/components/schemas")?.take() {
            Value::Object(schemas) => Some(Schemas(schemas)),
            _ => None,
        }
    }

    /// The schema of a kind; `None` if the document does not describe it. What refers to itself is an object that says
    /// nothing of its fields where it begins anew.
    pub fn of(&self, kind: Gvk<'_>) -> Option<Value> {
        let mut resolver = Resolver { schemas: &self.0, within: Vec::new() };
        resolver.named(&type_name(kind))
    }
}

struct Resolver<'s> {
    schemas: &'s Map<String, Value>,
    within: Vec<String>,
}

impl Resolver<'_> {
    fn named(&mut self, name: &str) -> Option<Value> {
        if self.within.iter().any(|outer| outer == name) {
            return Some(json!({"type": "object"}));
        }
        let schema = self.schemas.get(name)?;
        self.within.push(name.to_owned());
        let resolved = self.resolved(schema);
        self.within.pop();
        resolved
    }

    fn resolved(&mut self, schema: &Value) -> Option<Value> {
        if let Some(name) = reference(schema) {
            return self.named(name);
        }
        let mut schema = schema.clone();
        if schema.get("format").and_then(Value::as_str) == Some("int-or-string") {
            schema[INT_OR_STRING] = true.into();
        }
        for (_, property) in schema.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten()
        {
            *property = self.resolved(property)?;
        }
        for inner in ["items", "additionalProperties"] {
            if let Some(inner) = schema.get_mut(inner).filter(|inner| inner.is_object()) {
                *inner = self.resolved(inner)?;
            }
        }
        Some(schema)
    }
}

/// What a schema refers to: at once, or wrapped so that it may say more.
fn reference(schema: &Value) -> Option<&str> {
    let own = schema.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix(SCHEMAS));
    let wrapped = || schema.get("allOf")?.as_array()?.iter().find_map(reference);
    own.or_else(wrapped)
}
