//! Amounts of resources.

use std::cmp::Ordering;

use krate_api::Quantity;
use krate_api::quantity::Format;

use crate::cel::value::{Opaque, Value};
use crate::cel::{Error, Result};

fn quantity(value: &Value) -> Option<&Quantity> {
    match value {
        Value::Opaque(opaque) => match &**opaque {
            Opaque::Quantity(q) => Some(q),
            _ => None,
        },
        _ => None,
    }
}

/// The whole number that an amount is, if it is one that an int holds.
fn whole(q: &Quantity) -> Option<i64> {
    let value = q.value();
    (Quantity::new(value, Format::DecimalSi) == *q).then_some(value)
}

pub fn call(name: &str, args: &[Value]) -> Option<Result<Value>> {
    match (name, args) {
        ("quantity", [Value::String(text)]) => {
            return Some(
                Quantity::parse(text)
                    .map(|q| Value::opaque(Opaque::Quantity(q)))
                    .map_err(|error| Error::new(error.to_string())),
            );
        }
        ("isQuantity", [Value::String(text)]) => return Some(Ok(Value::Bool(Quantity::parse(text).is_ok()))),
        _ => {}
    }
    let q = quantity(args.first()?)?;
    let order = |i: usize| args.get(i).and_then(quantity).map(|other| q.cmp(other));
    let amount = |i: usize| match args.get(i)? {
        Value::Int(n) => Some(Quantity::new(*n, Format::DecimalSi)),
        other => quantity(other).cloned(),
    };
    Some(Ok(match (name, args.len()) {
        ("sign", 1) => Value::Int(i64::from(q.signum())),
        ("isInteger", 1) => Value::Bool(whole(q).is_some()),
        ("asInteger", 1) => match whole(q) {
            Some(n) => Value::Int(n),
            None => return Some(Err(Error::new("cannot convert value to integer"))),
        },
        ("asApproximateFloat", 1) => Value::Double(q.approximate()),
        ("add", 2) => Value::opaque(Opaque::Quantity(q.add(&amount(1)?))),
        ("sub", 2) => Value::opaque(Opaque::Quantity(q.sub(&amount(1)?))),
        ("isGreaterThan", 2) => Value::Bool(order(1)? == Ordering::Greater),
        ("isLessThan", 2) => Value::Bool(order(1)? == Ordering::Less),
        ("compareTo", 2) => Value::Int(order(1)? as i64),
        _ => return None,
    }))
}
