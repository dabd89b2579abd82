//! JSON values into messages. What is not there is not written, and means the same to every decoder.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::Value;

use super::read::SCHEMA_PROPS;
use super::wire::{put_bytes, put_double, put_message, put_varint};
use crate::schema::{Field, Node, TypeRef};

/// Writes an object's fields, in the order of their numbers.
pub(super) fn message(value: &Value, t: TypeRef<'_>, out: &mut Vec<u8>) {
    let (Some(object), Some(values)) = (t.object(), value.as_object()) else { return };
    let mut present: Vec<(&Field, &Value)> = object
        .fields
        .iter()
        .filter(|f| f.proto[0] != 0)
        .filter_map(|f| Some((f, values.get(f.name.as_ref()).filter(|v| !v.is_null())?)))
        .collect();
    present.sort_unstable_by_key(|(f, _)| f.proto);
    level(&present, 0, t, out);
}

/// Writes fields whose paths are one up to `depth`: those that go on there share a message.
fn level(fields: &[(&Field, &Value)], depth: usize, t: TypeRef<'_>, out: &mut Vec<u8>) {
    let at = |f: &Field, depth: usize| f.proto.get(depth).copied().unwrap_or(0);
    let mut rest = fields;
    while let Some((field, value)) = rest.first() {
        let number = at(field, depth);
        let same = rest.iter().take_while(|(f, _)| at(f, depth) == number).count();
        let (group, after) = rest.split_at(same);
        if at(field, depth + 1) == 0 {
            put(value, u64::from(number), t.of_field(field), out);
        } else {
            put_message(out, u64::from(number), |out| level(group, depth + 1, t, out));
        }
        rest = after;
    }
}

fn put(value: &Value, number: u64, t: TypeRef<'_>, out: &mut Vec<u8>) {
    match (t.node(), value) {
        (Node::String, Value::String(s)) => put_bytes(out, number, s.as_bytes()),
        (Node::Bool, Value::Bool(b)) => put_varint(out, number, u64::from(*b)),
        (Node::Int32 | Node::Int64, Value::Number(n)) => {
            // Negative numbers are written as the 64 bits that they are.
            let n = n.as_i64().or_else(|| n.as_f64().map(|f| f as i64)).unwrap_or(0);
            put_varint(out, number, n as u64);
        }
        (Node::Double, Value::Number(n)) => put_double(out, number, n.as_f64().unwrap_or(0.0)),
        (Node::Bytes, Value::String(s)) => put_bytes(out, number, &STANDARD.decode(s).unwrap_or_default()),
        (Node::Time | Node::MicroTime, Value::String(s)) => {
            if let Ok(at) = s.parse::<Timestamp>() {
                let nanos = if matches!(t.node(), Node::MicroTime) { at.subsec_nanosecond() } else { 0 };
                put_message(out, number, |out| {
                    put_varint(out, 1, at.as_second() as u64);
                    put_varint(out, 2, i64::from(nanos) as u64);
                });
            }
        }
        (Node::Quantity, Value::String(s)) => put_message(out, number, |out| put_bytes(out, 1, s.as_bytes())),
        (Node::Quantity, Value::Number(n)) => {
            put_message(out, number, |out| put_bytes(out, 1, n.to_string().as_bytes()));
        }
        (Node::IntOrString, value) => put_message(out, number, |out| {
            let text = value.as_str();
            put_varint(out, 1, u64::from(text.is_some()));
            put_varint(out, 2, value.as_i64().unwrap_or(0) as u64);
            put_bytes(out, 3, text.unwrap_or_default().as_bytes());
        }),
        (Node::Raw | Node::FieldsV1 | Node::Json, value) => {
            put_message(out, number, |out| put_bytes(out, 1, value.to_string().as_bytes()));
        }
        (Node::PropsOrArray | Node::PropsOrBool | Node::PropsOrStrings, value) => {
            put_message(out, number, |out| props(value, t.node(), out));
        }
        (Node::Object(_), value) => put_message(out, number, |out| message(value, t, out)),
        (Node::List { item, wrapped, .. }, Value::Array(items)) => {
            let item = t.schema().get(*item);
            let all = |number: u64, out: &mut Vec<u8>| {
                for value in items {
                    put_item(value, number, item, out);
                }
            };
            if *wrapped {
                put_message(out, number, |out| all(1, out));
            } else {
                all(number, out);
            }
        }
        (Node::Map { value: inner, wrapped, .. }, Value::Object(entries)) => {
            let inner = t.schema().get(*inner);
            for (key, value) in entries {
                put_message(out, number, |out| {
                    put_bytes(out, 1, key.as_bytes());
                    if *wrapped {
                        put_message(out, 2, |out| put(value, 1, inner, out));
                    } else {
                        put_item(value, 2, inner, out);
                    }
                });
            }
        }
        _ => {}
    }
}

/// An item of a list or a value of a map: one that is null stands for the empty value of its type.
fn put_item(value: &Value, number: u64, t: TypeRef<'_>, out: &mut Vec<u8>) {
    match (value, t.node()) {
        (Value::Null, Node::Bool | Node::Int32 | Node::Int64) => put_varint(out, number, 0),
        (Value::Null, Node::Double) => put_double(out, number, 0.0),
        (Value::Null, _) => put_bytes(out, number, &[]),
        _ => put(value, number, t, out),
    }
}

fn props(value: &Value, node: &Node, out: &mut Vec<u8>) {
    let schema_field = if matches!(node, Node::PropsOrBool) { 2 } else { 1 };
    let Some(t) = *SCHEMA_PROPS else { return };
    match value {
        Value::Bool(b) => put_varint(out, 1, u64::from(*b)),
        Value::Array(items) => {
            for item in items {
                match item {
                    Value::String(s) => put_bytes(out, 2, s.as_bytes()),
                    schema => put_message(out, 2, |out| message(schema, t, out)),
                }
            }
        }
        Value::Object(_) => {
            if matches!(node, Node::PropsOrBool) {
                put_varint(out, 1, 1);
            }
            put_message(out, schema_field, |out| message(value, t, out));
        }
        _ => {}
    }
}
