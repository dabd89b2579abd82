//! Messages into JSON values.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::wire::{Wire, fields, take_varint};
use super::{DEPTH_MAX, MAGIC, ProtobufError, Result};
use crate::schema::{self, Field, Node, TypeRef};

/// The type of a CRD's schemas, which some of its own fields refer to beside its fields.
pub(super) static SCHEMA_PROPS: LazyLock<Option<TypeRef<'static>>> = LazyLock::new(|| {
    schema::built_in().named("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps")
});

/// Reads a message of a type.
pub(super) fn message(bytes: &[u8], t: TypeRef<'_>, depth: usize) -> Result<Value> {
    let mut out = Map::new();
    embedded(bytes, t, &[], depth, &mut out)?;
    Ok(Value::Object(out))
}

/// Reads the fields of a message into `out`; `before` leads to a message that JSON shows inline.
fn embedded(
    bytes: &[u8],
    t: TypeRef<'_>,
    before: &[u8],
    depth: usize,
    out: &mut Map<String, Value>,
) -> Result<()> {
    if depth > DEPTH_MAX {
        return Err(ProtobufError::TooDeep);
    }
    let Some(object) = t.object() else { return Ok(()) };
    for field in fields(bytes) {
        let (number, wire) = field?;
        let Ok(short) = u8::try_from(number) else { continue };
        let leads = |f: &&Field| f.proto.starts_with(before) && f.proto.get(before.len()) == Some(&short);
        let Some(found) = object.fields.iter().find(leads) else { continue };
        if found.proto.get(before.len() + 1).is_some_and(|n| *n != 0) {
            let mut path = before.to_vec();
            path.push(short);
            embedded(wire.bytes(number)?, t, &path, depth + 1, out)?;
            continue;
        }
        value_into(wire, number, t.of_field(found), depth, out, &found.name)?;
    }
    Ok(())
}

/// Reads one occurrence of a field: lists and maps grow by it.
fn value_into(
    wire: Wire<'_>,
    number: u64,
    t: TypeRef<'_>,
    depth: usize,
    out: &mut Map<String, Value>,
    name: &str,
) -> Result<()> {
    match t.node() {
        Node::List { item, wrapped, .. } => {
            let item = t.schema().get(*item);
            let slot = out.entry(name).or_insert_with(|| Value::Array(Vec::new()));
            let Value::Array(items) = slot else { return Ok(()) };
            if *wrapped {
                list(wire.bytes(number)?, item, depth, items)
            } else {
                one_or_packed(wire, number, item, depth, items)
            }
        }
        Node::Map { value, wrapped, .. } => {
            let inner = t.schema().get(*value);
            let slot = out.entry(name).or_insert_with(|| Value::Object(Map::new()));
            let Value::Object(entries) = slot else { return Ok(()) };
            let (mut key, mut value) = (String::new(), None);
            for field in fields(wire.bytes(number)?) {
                match field? {
                    (1, wire) => key = text(wire.bytes(1)?),
                    (2, wire) if *wrapped => {
                        let mut items = Vec::new();
                        if let Some(item) = inner.item() {
                            list(wire.bytes(2)?, item, depth + 1, &mut items)?;
                        }
                        // As upstream reads it: a list without items is none.
                        value = Some(if items.is_empty() { Value::Null } else { Value::Array(items) });
                    }
                    (2, wire) => value = Some(single(wire, 2, inner, depth + 1)?),
                    _ => {}
                }
            }
            let value = match value {
                Some(value) => value,
                None if *wrapped => Value::Null,
                None => empty(inner, depth + 1)?,
            };
            entries.insert(key, value);
            Ok(())
        }
        _ => {
            out.insert(name.to_owned(), single(wire, number, t, depth)?);
            Ok(())
        }
    }
}

/// What a map has at a key of which the message says no more.
fn empty(t: TypeRef<'_>, depth: usize) -> Result<Value> {
    let nothing = match t.node() {
        Node::Bool | Node::Int32 | Node::Int64 => Wire::Varint(0),
        Node::Double => Wire::Fixed64(0),
        _ => Wire::Bytes(&[]),
    };
    single(nothing, 2, t, depth)
}

/// The items of a list that a message wraps.
fn list(bytes: &[u8], item: TypeRef<'_>, depth: usize, items: &mut Vec<Value>) -> Result<()> {
    for field in fields(bytes) {
        if let (1, wire) = field? {
            one_or_packed(wire, 1, item, depth, items)?;
        }
    }
    Ok(())
}

/// Numbers may come packed, though upstream does not pack them.
fn one_or_packed(
    wire: Wire<'_>,
    number: u64,
    item: TypeRef<'_>,
    depth: usize,
    items: &mut Vec<Value>,
) -> Result<()> {
    match (item.node(), wire) {
        (Node::Int32 | Node::Int64 | Node::Bool, Wire::Bytes(mut packed)) => {
            while !packed.is_empty() {
                let n = take_varint(&mut packed)?;
                items.push(single(Wire::Varint(n), number, item, depth)?);
            }
        }
        _ => items.push(single(wire, number, item, depth)?),
    }
    Ok(())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn single(wire: Wire<'_>, number: u64, t: TypeRef<'_>, depth: usize) -> Result<Value> {
    if depth > DEPTH_MAX {
        return Err(ProtobufError::TooDeep);
    }
    Ok(match t.node() {
        Node::String => Value::from(text(wire.bytes(number)?)),
        Node::Bool => Value::from(wire.varint(number)? != 0),
        Node::Int32 => Value::from(wire.varint(number)? as i32),
        Node::Int64 => Value::from(wire.varint(number)? as i64),
        Node::Double => match wire {
            Wire::Fixed64(bits) => Value::from(f64::from_bits(bits)),
            _ => return Err(ProtobufError::WireType { field: number, wire: 2 }),
        },
        Node::Bytes => Value::from(STANDARD.encode(wire.bytes(number)?)),
        Node::Time | Node::MicroTime => time(wire.bytes(number)?, matches!(t.node(), Node::MicroTime))?,
        Node::Quantity => {
            let found = last(wire.bytes(number)?, 1)?;
            let amount = found.map(|w| w.bytes(1)).transpose()?.map(text).unwrap_or_default();
            Value::from(if amount.is_empty() { "0".to_owned() } else { amount })
        }
        Node::IntOrString => int_or_string(wire.bytes(number)?)?,
        Node::Raw | Node::FieldsV1 | Node::Json => json(wire.bytes(number)?)?,
        Node::PropsOrArray | Node::PropsOrBool | Node::PropsOrStrings => {
            props(wire.bytes(number)?, t.node(), depth)?
        }
        Node::Object(_) => message(wire.bytes(number)?, t, depth + 1)?,
        Node::Any | Node::Map { .. } | Node::List { .. } => Value::Null,
    })
}

/// The last occurrence of a field, which is the one that counts.
fn last(bytes: &[u8], number: u64) -> Result<Option<Wire<'_>>> {
    let mut found = None;
    for field in fields(bytes) {
        let (n, wire) = field?;
        if n == number {
            found = Some(wire);
        }
    }
    Ok(found)
}

fn time(bytes: &[u8], micros: bool) -> Result<Value> {
    let number = |n: u64| -> Result<i64> { last(bytes, n)?.map_or(Ok(0), |w| w.varint(n).map(|v| v as i64)) };
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let nanos = if micros { number(2)? as i32 } else { 0 };
    let Ok(at) = Timestamp::new(number(1)?, nanos.clamp(0, 999_999_999)) else { return Ok(Value::Null) };
    let format = if micros { "%Y-%m-%dT%H:%M:%S.%6fZ" } else { "%Y-%m-%dT%H:%M:%SZ" };
    Ok(Value::from(at.strftime(format).to_string()))
}

fn int_or_string(bytes: &[u8]) -> Result<Value> {
    let is_text = last(bytes, 1)?.map_or(Ok(0), |w| w.varint(1))? == 1;
    if is_text {
        let found = last(bytes, 3)?.map_or(Ok(&[][..]), |w| w.bytes(3))?;
        return Ok(Value::from(text(found)));
    }
    let n = last(bytes, 2)?.map_or(Ok(0), |w| w.varint(2))?;
    Ok(Value::from(n as i32))
}

/// JSON that protobuf carries as bytes; or an encoded object, where one is embedded.
fn json(bytes: &[u8]) -> Result<Value> {
    let raw = last(bytes, 1)?.map_or(Ok(&[][..]), |w| w.bytes(1))?;
    if raw.is_empty() {
        return Ok(Value::Null);
    }
    if raw.starts_with(&MAGIC) {
        return super::Envelope::read(raw)?.decode();
    }
    serde_json::from_slice(raw).map_err(|e| ProtobufError::Json(e.to_string()))
}

fn props(bytes: &[u8], node: &Node, depth: usize) -> Result<Value> {
    let schema_field = if matches!(node, Node::PropsOrBool) { 2 } else { 1 };
    if let (Some(wire), Some(t)) = (last(bytes, schema_field)?, *SCHEMA_PROPS) {
        let mut value = message(wire.bytes(schema_field)?, t, depth + 1)?;
        schema::canonicalize(&mut value, t);
        return Ok(value);
    }
    if matches!(node, Node::PropsOrBool) {
        return Ok(Value::from(last(bytes, 1)?.map_or(Ok(0), |w| w.varint(1))? != 0));
    }
    let mut items = Vec::new();
    for field in fields(bytes) {
        let (number, wire) = field?;
        if number == 2 {
            match (node, *SCHEMA_PROPS) {
                (Node::PropsOrArray, Some(t)) => {
                    let mut value = message(wire.bytes(2)?, t, depth + 1)?;
                    schema::canonicalize(&mut value, t);
                    items.push(value);
                }
                _ => items.push(Value::from(text(wire.bytes(2)?))),
            }
        }
    }
    Ok(Value::Array(items))
}
