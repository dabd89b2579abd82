//! The document of version 2 in protobuf: `openapi.v2.Document` of gnostic's models, made of the document's JSON.
//!
//! kubectl reads no other form where it checks objects before it sends them. What the messages are made of is a table;
//! fields that they do not have are left out, since readers would refuse a document for them.

use std::collections::BTreeMap;

use krate_api::protobuf::wire::{put_bytes, put_double, put_message, put_varint};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::messages::{DEFINITIONS, DOCUMENT, Field, Members, Message, PATHS, Shape};
use crate::yaml;

/// What clients ask for.
pub(super) const MEDIA: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// What older clients ask for; they are answered with the other.
pub(super) const OLD_MEDIA: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// The bytes of a document. The large parts of it are read piece by piece: as one tree it would take many times its
/// size.
///
/// # Errors
/// The text is no JSON object.
pub(super) fn document(json: &[u8]) -> serde_json::Result<Vec<u8>> {
    let parts: BTreeMap<String, &RawValue> = serde_json::from_slice(json)?;
    let mut out = Vec::with_capacity(json.len() / 2);
    for (name, part) in parts {
        let large = match name.as_str() {
            "paths" => Some((8, &PATHS)),
            "definitions" => Some((9, &DEFINITIONS)),
            _ => None,
        };
        if let Some((number, members)) = large {
            let all: BTreeMap<String, &RawValue> = serde_json::from_str(part.get())?;
            let mut container = Vec::new();
            for (name, one) in all {
                put_member(members, &name, &serde_json::from_str(one.get())?, &mut container);
            }
            put_bytes(&mut out, number, &container);
        } else {
            put_field(&DOCUMENT, &name, &serde_json::from_str(part.get())?, &mut out);
        }
    }
    Ok(out)
}

fn put_fields(message: &Message, fields: &Map<String, Value>, out: &mut Vec<u8>) {
    for (name, value) in fields {
        put_field(message, name, value, out);
    }
}

fn put_field(message: &Message, name: &str, value: &Value, out: &mut Vec<u8>) {
    if let Some(Field { number, shape, .. }) = message.fields.iter().find(|field| field.name == name) {
        put(shape, *number, value, out);
    } else if name.starts_with("x-") && message.extensions != 0 {
        put_named(message.extensions, name, &Shape::Any, value, out);
    }
}

/// An entry of what JSON has as an object of any keys.
fn put_member(members: &Members, name: &str, value: &Value, out: &mut Vec<u8>) {
    if members.extensions != 0 && name.starts_with("x-") {
        put_named(members.extensions, name, &Shape::Any, value, out);
    } else {
        put_named(members.number, name, members.shape, value, out);
    }
}

fn put_named(number: u64, name: &str, shape: &Shape, value: &Value, out: &mut Vec<u8>) {
    put_message(out, number, |out| {
        put_bytes(out, 1, name.as_bytes());
        put(shape, 2, value, out);
    });
}

/// Puts a value as a field. As proto3 has it, what is zero is not there.
fn put(shape: &Shape, number: u64, value: &Value, out: &mut Vec<u8>) {
    match (shape, value) {
        (Shape::Text, Value::String(text)) if !text.is_empty() => put_bytes(out, number, text.as_bytes()),
        (Shape::Bool, Value::Bool(true)) => put_varint(out, number, 1),
        (Shape::Int, Value::Number(n)) => {
            // What is written 1.0 is a whole number too.
            let n = n.as_i64().or_else(|| n.as_f64().map(|n| n as i64)).unwrap_or_default();
            if n != 0 {
                put_varint(out, number, n as u64);
            }
        }
        (Shape::Double, Value::Number(n)) => {
            let n = n.as_f64().unwrap_or_default();
            if n != 0.0 {
                put_double(out, number, n);
            }
        }
        (Shape::Any, value) => {
            put_message(out, number, |out| put_bytes(out, 2, yaml::to_text(value).as_bytes()));
        }
        (Shape::List(shape), Value::Array(items)) => {
            for item in items {
                put_item(shape, number, item, out);
            }
        }
        (Shape::Wrapped(shape), Value::Array(items)) => put_message(out, number, |out| {
            for item in items {
                put_item(shape, 1, item, out);
            }
        }),
        (Shape::Wrapped(shape), one) => put_message(out, number, |out| put_item(shape, 1, one, out)),
        (Shape::Message(message), Value::Object(fields)) => {
            put_message(out, number, |out| put_fields(message, fields, out));
        }
        (Shape::Members(members), Value::Object(all)) => put_message(out, number, |out| {
            for (name, value) in all {
                put_member(members, name, value, out);
            }
        }),
        (Shape::Choice(choose), Value::Object(fields)) => {
            let (way, message) = choose(fields);
            put_message(out, number, |out| put_chosen(way, message, fields, out));
        }
        (Shape::SchemaOrBool(_), Value::Bool(is)) => {
            put_message(out, number, |out| put_varint(out, 2, u64::from(*is)));
        }
        (Shape::SchemaOrBool(message), Value::Object(fields)) => put_message(out, number, |out| {
            put_message(out, 1, |out| put_fields(message, fields, out));
        }),
        _ => {}
    }
}

/// An item of a list is there though it is empty.
fn put_item(shape: &Shape, number: u64, value: &Value, out: &mut Vec<u8>) {
    match (shape, value) {
        (Shape::Text, Value::String(text)) => put_bytes(out, number, text.as_bytes()),
        _ => put(shape, number, value, out),
    }
}

/// A message that one of several is, within those that say which.
fn put_chosen(way: &[u64], message: &Message, fields: &Map<String, Value>, out: &mut Vec<u8>) {
    match way.split_first() {
        Some((number, rest)) => put_message(out, *number, |out| put_chosen(rest, message, fields, out)),
        None => put_fields(message, fields, out),
    }
}

#[cfg(test)]
mod back;
#[cfg(test)]
mod tests;
