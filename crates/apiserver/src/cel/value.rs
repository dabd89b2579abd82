//! Values of expressions, and how they come from JSON and go back to it.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use krate_api::Quantity;
use serde_json::Value as Json;

use super::library::authz::Check;
use super::library::format::Format;
use super::library::net::{Cidr, Ip};
use super::library::semver::Version;
use super::library::url::Url;
use super::list::List;

/// A value of one of Kubernetes' own types.
#[derive(Clone, Debug)]
pub enum Opaque {
    Quantity(Quantity),
    Semver(Version),
    Ip(Ip),
    Cidr(Cidr),
    Url(Url),
    Format(&'static Format),
    Check(Check),
}

#[derive(Clone, Debug)]
pub enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
    List(Arc<List>),
    Map(Arc<Map>),
    Duration(SignedDuration),
    Timestamp(Timestamp),
    Type(Arc<str>),
    Optional(Option<Arc<Value>>),
    Opaque(Arc<Opaque>),
}

/// A map, or an object of a named type.
#[derive(Clone, Debug, Default)]
pub struct Map {
    /// `Object.spec`, for what an expression makes by a type's name.
    pub type_name: Option<Arc<str>>,
    pub entries: BTreeMap<Key, Value>,
}

/// A key of a map. Numbers of both types are one key where they are equal.
#[derive(Clone, Debug)]
pub enum Key {
    Bool(bool),
    Int(i64),
    Uint(u64),
    String(Arc<str>),
}

impl Key {
    fn rank(&self) -> (u8, i128) {
        match self {
            Key::Bool(b) => (0, i128::from(*b)),
            Key::Int(n) => (1, i128::from(*n)),
            Key::Uint(n) => (1, i128::from(*n)),
            Key::String(_) => (2, 0),
        }
    }

    pub fn text(text: &str) -> Self {
        Key::String(text.into())
    }

    /// The key that a value is, if it can be one.
    pub fn of(value: &Value) -> Option<Key> {
        Some(match value {
            Value::Bool(b) => Key::Bool(*b),
            Value::Int(n) => Key::Int(*n),
            Value::Uint(n) => Key::Uint(*n),
            Value::String(s) => Key::String(Arc::clone(s)),
            // A whole number is a key whatever its type.
            Value::Double(d) if d.fract() == 0.0 && d.abs() < 9.0e18 => Key::Int(*d as i64),
            _ => return None,
        })
    }

    pub fn value(&self) -> Value {
        match self {
            Key::Bool(b) => Value::Bool(*b),
            Key::Int(n) => Value::Int(*n),
            Key::Uint(n) => Value::Uint(*n),
            Key::String(s) => Value::String(Arc::clone(s)),
        }
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Key::String(a), Key::String(b)) => a.cmp(b),
            (a, b) => a.rank().cmp(&b.rank()),
        }
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Key {}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Bool(b) => write!(f, "{b}"),
            Key::Int(n) => write!(f, "{n}"),
            Key::Uint(n) => write!(f, "{n}"),
            Key::String(s) => f.write_str(s),
        }
    }
}

impl Map {
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.get(&Key::text(key))
    }
}

impl Value {
    pub fn string(text: impl Into<Arc<str>>) -> Self {
        Value::String(text.into())
    }

    pub fn list(items: Vec<Value>) -> Self {
        Value::List(Arc::new(items.into()))
    }

    pub fn map(entries: impl IntoIterator<Item = (String, Value)>) -> Self {
        let entries = entries.into_iter().map(|(k, v)| (Key::String(k.into()), v)).collect();
        Value::Map(Arc::new(Map { type_name: None, entries }))
    }

    pub fn opaque(value: Opaque) -> Self {
        Value::Opaque(Arc::new(value))
    }

    pub fn some(value: Value) -> Self {
        Value::Optional(Some(Arc::new(value)))
    }

    pub const NONE: Value = Value::Optional(None);

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(s) => Some(s),
            _ => None,
        }
    }

    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Bool(b) => Some(*b),
            _ => None,
        }
    }

    /// The name of its type, as `type(x)` has it.
    pub fn type_name(&self) -> &str {
        match self {
            Value::Null => "null_type",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Uint(_) => "uint",
            Value::Double(_) => "double",
            Value::String(_) => "string",
            Value::Bytes(_) => "bytes",
            Value::List(_) => "list",
            Value::Map(map) => map.type_name.as_deref().unwrap_or("map"),
            Value::Duration(_) => "google.protobuf.Duration",
            Value::Timestamp(_) => "google.protobuf.Timestamp",
            Value::Type(_) => "type",
            Value::Optional(_) => "optional_type",
            Value::Opaque(opaque) => match &**opaque {
                Opaque::Quantity(_) => "kubernetes.Quantity",
                Opaque::Semver(_) => "kubernetes.Semver",
                Opaque::Ip(_) => "net.IP",
                Opaque::Cidr(_) => "net.CIDR",
                Opaque::Url(_) => "kubernetes.URL",
                Opaque::Format(_) => "kubernetes.NamedFormat",
                Opaque::Check(check) => check.type_name(),
            },
        }
    }

    /// Whether it is what its type is when nothing is set.
    pub fn is_zero(&self) -> bool {
        match self {
            Value::Null | Value::Optional(None) => true,
            Value::Bool(b) => !b,
            Value::Int(n) => *n == 0,
            Value::Uint(n) => *n == 0,
            Value::Double(d) => *d == 0.0,
            Value::String(s) => s.is_empty(),
            Value::Bytes(b) => b.is_empty(),
            Value::List(list) => list.is_empty(),
            Value::Map(map) => map.entries.is_empty(),
            Value::Duration(d) => d.is_zero(),
            _ => false,
        }
    }

    /// From JSON, without a schema: whole numbers are ints.
    pub fn from_json(json: &Json) -> Value {
        match json {
            Json::Null => Value::Null,
            Json::Bool(b) => Value::Bool(*b),
            Json::Number(n) => match (n.as_i64(), n.as_u64()) {
                (Some(n), _) => Value::Int(n),
                (_, Some(n)) => Value::Uint(n),
                _ => Value::Double(n.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(s) => Value::string(s.as_str()),
            Json::Array(items) => Value::list(items.iter().map(Value::from_json).collect()),
            Json::Object(fields) => Value::map(fields.iter().map(|(k, v)| (k.clone(), Value::from_json(v)))),
        }
    }

    /// To JSON; `None` for what has no JSON, such as a type.
    pub fn to_json(&self) -> Option<Json> {
        use base64::Engine as _;
        Some(match self {
            Value::Null => Json::Null,
            Value::Bool(b) => Json::Bool(*b),
            Value::Int(n) => (*n).into(),
            Value::Uint(n) => (*n).into(),
            Value::Double(d) => serde_json::Number::from_f64(*d).map_or(Json::Null, Json::Number),
            Value::String(s) => s.to_string().into(),
            Value::Bytes(b) => base64::engine::general_purpose::STANDARD.encode(b).into(),
            Value::List(list) => list.iter().map(Value::to_json).collect::<Option<Vec<_>>>()?.into(),
            Value::Map(map) => Json::Object(
                map.entries
                    .iter()
                    .map(|(k, v)| Some((k.to_string(), v.to_json()?)))
                    .collect::<Option<serde_json::Map<_, _>>>()?,
            ),
            Value::Duration(_) | Value::Timestamp(_) => super::library::convert::text(self)?.into(),
            Value::Optional(inner) => inner.as_ref()?.to_json()?,
            Value::Opaque(opaque) => match &**opaque {
                Opaque::Quantity(q) => q.to_string().into(),
                _ => return None,
            },
            Value::Type(_) => return None,
        })
    }
}

/// Equality as CEL has it: of numbers by their amounts, of others within their types.
impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        use Value::{
            Bool, Bytes, Double, Duration, Int, List, Map, Null, Opaque, Optional, String, Timestamp, Type,
            Uint,
        };
        match (self, other) {
            (Null, Null) => true,
            (Bool(a), Bool(b)) => a == b,
            (Int(_) | Uint(_) | Double(_), Int(_) | Uint(_) | Double(_)) => {
                super::operators::compare_numbers(self, other) == Some(Ordering::Equal)
            }
            (String(a), String(b)) => a == b,
            (Type(a), Type(b)) => a == b,
            (Bytes(a), Bytes(b)) => a == b,
            (List(a), List(b)) => a == b,
            (Map(a), Map(b)) => {
                a.entries.len() == b.entries.len()
                    && a.entries.iter().all(|(k, v)| b.entries.get(k).is_some_and(|other| other == v))
            }
            (Duration(a), Duration(b)) => a == b,
            (Timestamp(a), Timestamp(b)) => a == b,
            (Optional(a), Optional(b)) => a == b,
            (Opaque(a), Opaque(b)) => a.equals(b),
            _ => false,
        }
    }
}

impl Opaque {
    fn equals(&self, other: &Opaque) -> bool {
        match (self, other) {
            (Opaque::Quantity(a), Opaque::Quantity(b)) => a == b,
            (Opaque::Semver(a), Opaque::Semver(b)) => a == b,
            (Opaque::Ip(a), Opaque::Ip(b)) => a == b,
            (Opaque::Cidr(a), Opaque::Cidr(b)) => a == b,
            (Opaque::Url(a), Opaque::Url(b)) => a == b,
            (Opaque::Format(a), Opaque::Format(b)) => a.name == b.name,
            _ => false,
        }
    }
}
