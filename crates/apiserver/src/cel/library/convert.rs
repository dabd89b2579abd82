//! From one type to another, and how values read as text.

use std::fmt::Write as _;

use jiff::{SignedDuration, Timestamp};
use krate_api::boolean;

use crate::cel::value::{Opaque, Value};
use crate::cel::{Error, Result};

pub fn call(name: &str, args: &[Value]) -> Option<Result<Value>> {
    let [value] = args else { return None };
    Some(match name {
        "dyn" => Ok(value.clone()),
        "type" => Ok(Value::Type(value.type_name().into())),
        "string" => text(value).map(Value::string).ok_or_else(Error::no_such_overload),
        "int" => int(value).map(Value::Int),
        "uint" => uint(value).map(Value::Uint),
        "double" => double(value).map(Value::Double),
        "bool" => match value {
            Value::Bool(b) => Ok(Value::Bool(*b)),
            Value::String(s) => boolean::parse(s)
                .map(Value::Bool)
                .map_err(|_| Error::new("type conversion error from 'string' to 'bool'")),
            _ => Err(Error::no_such_overload()),
        },
        "bytes" => match value {
            Value::Bytes(_) => Ok(value.clone()),
            Value::String(s) => Ok(Value::Bytes(s.as_bytes().into())),
            _ => Err(Error::no_such_overload()),
        },
        "timestamp" => match value {
            Value::Timestamp(_) => Ok(value.clone()),
            Value::Int(n) => {
                Timestamp::from_second(*n).map(Value::Timestamp).map_err(|_| Error::new("timestamp overflow"))
            }
            Value::String(s) => s
                .parse()
                .map(Value::Timestamp)
                .map_err(|_| Error::new(format!("parsing time \"{s}\" as a timestamp failed"))),
            _ => Err(Error::no_such_overload()),
        },
        "duration" => match value {
            Value::Duration(_) => Ok(value.clone()),
            Value::Int(n) => Ok(Value::Duration(SignedDuration::from_nanos(*n))),
            Value::String(s) => krate_api::duration::parse(s)
                .map(Value::Duration)
                .ok_or_else(|| Error::new(format!("time: invalid duration \"{s}\""))),
            _ => Err(Error::no_such_overload()),
        },
        "size" => size(value).map(|n| Value::Int(n as i64)).ok_or_else(Error::no_such_overload),
        _ => return None,
    })
}

fn size(value: &Value) -> Option<usize> {
    Some(match value {
        Value::String(s) => s.chars().count(),
        Value::Bytes(b) => b.len(),
        Value::List(list) => list.len(),
        Value::Map(map) => map.entries.len(),
        _ => return None,
    })
}

fn range(to: &str) -> Error {
    Error::new(format!("range error converting to {to}"))
}

fn int(value: &Value) -> Result<i64> {
    match value {
        Value::Int(n) => Ok(*n),
        Value::Uint(n) => i64::try_from(*n).map_err(|_| range("int")),
        Value::Double(d) if d.is_finite() && d.abs() < 9.223_372_036_854_775e18 => Ok(*d as i64),
        Value::Double(_) => Err(range("int")),
        Value::String(s) => {
            s.parse().map_err(|_| Error::new(format!("strconv.ParseInt: parsing \"{s}\": invalid syntax")))
        }
        Value::Timestamp(t) => Ok(t.as_second()),
        Value::Duration(d) => i64::try_from(d.as_nanos()).map_err(|_| range("int")),
        _ => Err(Error::no_such_overload()),
    }
}

fn uint(value: &Value) -> Result<u64> {
    match value {
        Value::Uint(n) => Ok(*n),
        Value::Int(n) => u64::try_from(*n).map_err(|_| range("uint")),
        Value::Double(d) if *d >= 0.0 && *d < 1.844_674_407_370_955e19 => Ok(*d as u64),
        Value::Double(_) => Err(range("uint")),
        Value::String(s) => {
            s.parse().map_err(|_| Error::new(format!("strconv.ParseUint: parsing \"{s}\": invalid syntax")))
        }
        _ => Err(Error::no_such_overload()),
    }
}

fn double(value: &Value) -> Result<f64> {
    match value {
        Value::Double(d) => Ok(*d),
        Value::Int(n) => Ok(*n as f64),
        Value::Uint(n) => Ok(*n as f64),
        Value::String(s) => {
            s.parse().map_err(|_| Error::new(format!("strconv.ParseFloat: parsing \"{s}\": invalid syntax")))
        }
        _ => Err(Error::no_such_overload()),
    }
}

/// A value as `string(x)` has it.
pub fn text(value: &Value) -> Option<String> {
    Some(match value {
        Value::Bool(b) => b.to_string(),
        Value::Int(n) => n.to_string(),
        Value::Uint(n) => n.to_string(),
        Value::Double(d) => float(*d),
        Value::String(s) => s.to_string(),
        Value::Bytes(b) => String::from_utf8(b.to_vec()).ok()?,
        Value::Timestamp(t) => t.to_string(),
        Value::Duration(d) => seconds(*d),
        Value::Opaque(opaque) => match &**opaque {
            Opaque::Ip(ip) => ip.to_string(),
            Opaque::Cidr(cidr) => cidr.to_string(),
            _ => return None,
        },
        _ => return None,
    })
}

/// Shortest, with an exponent where that is large or small.
pub fn float(d: f64) -> String {
    if d.is_infinite() {
        return if d > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let size = d.abs();
    if size != 0.0 && !(1e-4..1e21).contains(&size) {
        let text = format!("{d:e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
        return format!("{mantissa}e{sign}{digits:0>2}");
    }
    format!("{d}")
}

/// `90.5s`.
fn seconds(d: SignedDuration) -> String {
    let mut out = String::new();
    if d.is_negative() {
        out.push('-');
    }
    let nanos = d.as_nanos().unsigned_abs();
    let _ = write!(out, "{}", nanos / 1_000_000_000);
    let rest = nanos % 1_000_000_000;
    if rest > 0 {
        let digits = format!("{rest:09}");
        let _ = write!(out, ".{}", digits.trim_end_matches('0'));
    }
    out.push('s');
    out
}
