//! The operators: arithmetic that does not overflow, comparison across the types of numbers, indexing.

use std::cmp::Ordering;

use jiff::SignedDuration;

use super::value::{Key, Opaque, Value};
use super::{Error, Result};

fn overflow() -> Error {
    Error::new("integer overflow")
}

/// The order of two numbers, whatever their types; `None` with a NaN.
pub fn compare_numbers(a: &Value, b: &Value) -> Option<Ordering> {
    let whole = |v: &Value| match v {
        Value::Int(n) => Some(i128::from(*n)),
        Value::Uint(n) => Some(i128::from(*n)),
        _ => None,
    };
    let double = |v: &Value| match v {
        Value::Int(n) => Some(*n as f64),
        Value::Uint(n) => Some(*n as f64),
        Value::Double(d) => Some(*d),
        _ => None,
    };
    match (whole(a), whole(b)) {
        (Some(a), Some(b)) => Some(a.cmp(&b)),
        _ => double(a)?.partial_cmp(&double(b)?),
    }
}

/// The order of two values of one type.
///
/// # Errors
/// They have none.
pub fn compare(a: &Value, b: &Value) -> Result<Option<Ordering>> {
    use Value::{Bool, Bytes, Double, Duration, Int, String, Timestamp, Uint};
    Ok(match (a, b) {
        (Int(_) | Uint(_) | Double(_), Int(_) | Uint(_) | Double(_)) => compare_numbers(a, b),
        (String(a), String(b)) => Some(a.cmp(b)),
        (Bytes(a), Bytes(b)) => Some(a.cmp(b)),
        (Bool(a), Bool(b)) => Some(a.cmp(b)),
        (Duration(a), Duration(b)) => Some(a.cmp(b)),
        (Timestamp(a), Timestamp(b)) => Some(a.cmp(b)),
        (Value::Opaque(a), Value::Opaque(b)) => match (&**a, &**b) {
            (Opaque::Quantity(a), Opaque::Quantity(b)) => Some(a.cmp(b)),
            (Opaque::Semver(a), Opaque::Semver(b)) => Some(a.cmp(b)),
            _ => return Err(Error::no_such_overload()),
        },
        _ => return Err(Error::no_such_overload()),
    })
}

/// An operator of one or two values; `None` if the name is no operator's.
pub fn apply(name: &str, args: &[Value]) -> Option<Result<Value>> {
    Some(match (name, args) {
        ("_==_", [a, b]) => Ok(Value::Bool(a == b)),
        ("_!=_", [a, b]) => Ok(Value::Bool(a != b)),
        ("_<_", [a, b]) => ordered(a, b, Ordering::is_lt),
        ("_<=_", [a, b]) => ordered(a, b, Ordering::is_le),
        ("_>_", [a, b]) => ordered(a, b, Ordering::is_gt),
        ("_>=_", [a, b]) => ordered(a, b, Ordering::is_ge),
        ("_+_", [a, b]) => add(a, b),
        ("_-_", [a, b]) => subtract(a, b),
        ("_*_", [a, b]) => multiply(a, b),
        ("_/_", [a, b]) => divide(a, b),
        ("_%_", [a, b]) => modulo(a, b),
        ("-_", [a]) => negate(a),
        ("!_", [Value::Bool(b)]) => Ok(Value::Bool(!b)),
        ("!_", _) => Err(Error::no_such_overload()),
        ("@in", [a, b]) => is_in(a, b),
        ("_[_]", [a, b]) => index(a, b),
        ("_[?_]", [a, b]) => Ok(match a {
            Value::Optional(None) => Value::NONE,
            Value::Optional(Some(inner)) => index(inner, b).map_or(Value::NONE, Value::some),
            a => index(a, b).map_or(Value::NONE, Value::some),
        }),
        _ => return None,
    })
}

fn ordered(a: &Value, b: &Value, test: fn(Ordering) -> bool) -> Result<Value> {
    Ok(Value::Bool(compare(a, b)?.is_some_and(test)))
}

fn add(a: &Value, b: &Value) -> Result<Value> {
    use Value::{Bytes, Double, Duration, Int, List, String, Timestamp, Uint};
    Ok(match (a, b) {
        (Int(a), Int(b)) => Int(a.checked_add(*b).ok_or_else(overflow)?),
        (Uint(a), Uint(b)) => Uint(a.checked_add(*b).ok_or_else(overflow)?),
        (Double(a), Double(b)) => Double(a + b),
        (String(a), String(b)) => Value::string(format!("{a}{b}")),
        (Bytes(a), Bytes(b)) => Bytes([&a[..], &b[..]].concat().into()),
        (List(a), List(b)) => List(a.plus(b).into()),
        (Duration(a), Duration(b)) => Duration(a.checked_add(*b).ok_or_else(overflow)?),
        (Timestamp(t), Duration(d)) | (Duration(d), Timestamp(t)) => {
            Timestamp(t.checked_add(*d).map_err(|_| Error::new("timestamp overflow"))?)
        }
        _ => return Err(Error::no_such_overload()),
    })
}

fn subtract(a: &Value, b: &Value) -> Result<Value> {
    use Value::{Double, Duration, Int, Timestamp, Uint};
    Ok(match (a, b) {
        (Int(a), Int(b)) => Int(a.checked_sub(*b).ok_or_else(overflow)?),
        (Uint(a), Uint(b)) => Uint(a.checked_sub(*b).ok_or_else(overflow)?),
        (Double(a), Double(b)) => Double(a - b),
        (Duration(a), Duration(b)) => Duration(a.checked_sub(*b).ok_or_else(overflow)?),
        (Timestamp(a), Timestamp(b)) => Duration(a.duration_since(*b)),
        (Timestamp(t), Duration(d)) => {
            Timestamp(t.checked_sub(*d).map_err(|_| Error::new("timestamp overflow"))?)
        }
        _ => return Err(Error::no_such_overload()),
    })
}

fn multiply(a: &Value, b: &Value) -> Result<Value> {
    use Value::{Double, Int, Uint};
    Ok(match (a, b) {
        (Int(a), Int(b)) => Int(a.checked_mul(*b).ok_or_else(overflow)?),
        (Uint(a), Uint(b)) => Uint(a.checked_mul(*b).ok_or_else(overflow)?),
        (Double(a), Double(b)) => Double(a * b),
        _ => return Err(Error::no_such_overload()),
    })
}

fn divide(a: &Value, b: &Value) -> Result<Value> {
    use Value::{Double, Int, Uint};
    let zero = || Error::new("division by zero");
    Ok(match (a, b) {
        (Int(_), Int(0)) | (Uint(_), Uint(0)) => return Err(zero()),
        (Int(a), Int(b)) => Int(a.checked_div(*b).ok_or_else(overflow)?),
        (Uint(a), Uint(b)) => Uint(a / b),
        (Double(a), Double(b)) => Double(a / b),
        _ => return Err(Error::no_such_overload()),
    })
}

fn modulo(a: &Value, b: &Value) -> Result<Value> {
    use Value::{Int, Uint};
    Ok(match (a, b) {
        (Int(_), Int(0)) | (Uint(_), Uint(0)) => return Err(Error::new("modulus by zero")),
        (Int(a), Int(b)) => Int(a.checked_rem(*b).ok_or_else(overflow)?),
        (Uint(a), Uint(b)) => Uint(a % b),
        _ => return Err(Error::no_such_overload()),
    })
}

fn negate(a: &Value) -> Result<Value> {
    Ok(match a {
        Value::Int(n) => Value::Int(n.checked_neg().ok_or_else(overflow)?),
        Value::Double(d) => Value::Double(-d),
        Value::Duration(d) => Value::Duration(SignedDuration::ZERO.checked_sub(*d).ok_or_else(overflow)?),
        _ => return Err(Error::no_such_overload()),
    })
}

fn is_in(item: &Value, container: &Value) -> Result<Value> {
    Ok(Value::Bool(match container {
        Value::List(list) => list.contains(item),
        Value::Map(map) => Key::of(item).is_some_and(|key| map.entries.contains_key(&key)),
        _ => return Err(Error::no_such_overload()),
    }))
}

fn index(container: &Value, at: &Value) -> Result<Value> {
    match container {
        Value::Map(map) => {
            let key = Key::of(at).ok_or_else(|| Error::new("unsupported key type"))?;
            map.entries.get(&key).cloned().ok_or_else(|| Error::no_such_key(key))
        }
        Value::List(list) => {
            let position = match at {
                Value::Int(n) => *n,
                Value::Uint(n) => i64::try_from(*n).unwrap_or(i64::MAX),
                Value::Double(d) if d.fract() == 0.0 => *d as i64,
                _ => return Err(Error::new("unsupported index type in list")),
            };
            let found = usize::try_from(position).ok().and_then(|i| list.get(i));
            found.cloned().ok_or_else(|| Error::new(format!("index out of bounds: {position}")))
        }
        Value::Optional(Some(inner)) => Ok(index(inner, at).map_or(Value::NONE, Value::some)),
        Value::Optional(None) => Ok(Value::NONE),
        _ => Err(Error::no_such_overload()),
    }
}
