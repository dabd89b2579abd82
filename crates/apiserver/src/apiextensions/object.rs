//! An object of a custom kind: its metadata as every kind's, and all else as it came.

use std::any::Any;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Map, Value};

use crate::registry::erased::{DecodeError, Object};

#[derive(Clone, Debug, PartialEq)]
pub struct Custom {
    pub api_version: String,
    pub kind: &'static str,
    pub metadata: ObjectMeta,
    /// Everything but the fields above.
    pub fields: Map<String, Value>,
}

impl Custom {
    /// Reads an object. What it says of its own version is the caller's to check.
    ///
    /// # Errors
    /// It is no JSON object, or its metadata is none.
    pub fn read(json: &[u8], api_version: &str, kind: &'static str) -> Result<Self, DecodeError> {
        let mut fields: Map<String, Value> = serde_json::from_slice(json)?;
        let metadata = match fields.remove("metadata") {
            None | Some(Value::Null) => ObjectMeta::default(),
            Some(metadata) => serde_json::from_value(metadata)?,
        };
        fields.remove("apiVersion");
        fields.remove("kind");
        Ok(Custom { api_version: api_version.to_owned(), kind, metadata, fields })
    }

    /// What a field of the top level holds.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.fields.get(name)
    }

    /// The whole object as a value, as rules and columns see it.
    pub fn value(&self) -> Value {
        let mut all = self.fields.clone();
        all.insert("apiVersion".into(), self.api_version.as_str().into());
        all.insert("kind".into(), self.kind.into());
        all.insert("metadata".into(), serde_json::to_value(&self.metadata).unwrap_or_default());
        Value::Object(all)
    }
}

impl Object for Custom {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }

    /// The metadata comes before what a definition may name as it likes: the resourceVersion is put into the first.
    fn to_json(&self) -> Vec<u8> {
        let text = |value: &str| Value::from(value).to_string();
        let metadata = serde_json::to_string(&self.metadata).unwrap_or_else(|_| "{}".to_owned());
        let mut out = format!(
            "{{\"apiVersion\":{},\"kind\":{},\"metadata\":{metadata}",
            text(&self.api_version),
            text(self.kind)
        );
        for (name, value) in &self.fields {
            out.push(',');
            out.push_str(&text(name));
            out.push(':');
            out.push_str(&value.to_string());
        }
        out.push('}');
        out.into_bytes()
    }

    fn boxed_clone(&self) -> Box<dyn Object> {
        Box::new(self.clone())
    }

    fn assign(&mut self, other: &dyn Object) {
        if let Some(other) = other.is::<Custom>() {
            self.clone_from(other);
        }
    }

    fn as_any(&self) -> &(dyn Any + Send + Sync) {
        self
    }

    fn as_any_mut(&mut self) -> &mut (dyn Any + Send + Sync) {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_written_with_its_metadata_first() {
        let json = br#"{"a":{"metadata":{}},"metadata":{"name":"w"},"kind":"Other","spec":{"x":[1]}}"#;
        let object = Custom::read(json, "example.com/v1", "Widget").expect("an object");
        let written = String::from_utf8(object.to_json()).expect("text");
        assert_eq!(
            written,
            r#"{"apiVersion":"example.com/v1","kind":"Widget","metadata":{"name":"w"},"a":{"metadata":{}},"spec":{"x":[1]}}"#
        );
        assert!(Custom::read(br#"{"metadata":{"labels":1}}"#, "v1", "Widget").is_err());
    }
}
