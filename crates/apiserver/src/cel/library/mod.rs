//! The functions that expressions may call: CEL's own, those of its extensions for strings, sets and lists, and
//! Kubernetes' own for quantities, versions, addresses, URLs, formats and authorization.

pub mod authz;
pub mod convert;
pub mod format;
mod lists;
pub mod net;
mod printf;
mod quantity;
pub mod regex;
pub mod semver;
mod sets;
pub mod signatures;
mod strings;
mod time;
pub mod url;

use super::value::Value;
use super::{Error, Result};

/// The functions of one library: `None` of a name that it does not have, or not for these types.
type Library = fn(&str, &[Value]) -> Option<Result<Value>>;

/// Calls a function; of a method the value that it is called on is the first argument.
///
/// # Errors
/// There is none of this name for these types, or it has no value for these.
pub fn call(name: &str, args: &[Value]) -> Result<Value> {
    const LIBRARIES: &[Library] = &[
        convert::call,
        strings::call,
        lists::call,
        sets::call,
        regex::call,
        time::call,
        quantity::call,
        semver::call,
        net::call,
        url::call,
        format::call,
        optional,
        authz::call,
    ];
    LIBRARIES.iter().find_map(|library| library(name, args)).unwrap_or_else(|| Err(Error::no_such_overload()))
}

fn optional(name: &str, args: &[Value]) -> Option<Result<Value>> {
    Some(Ok(match (name, args) {
        ("optional.none", []) => Value::NONE,
        ("optional.of", [value]) => Value::some(value.clone()),
        ("optional.ofNonZeroValue", [value]) if value.is_zero() => Value::NONE,
        ("optional.ofNonZeroValue", [value]) => Value::some(value.clone()),
        ("hasValue", [Value::Optional(inner)]) => Value::Bool(inner.is_some()),
        ("value", [Value::Optional(Some(inner))]) => (**inner).clone(),
        ("value", [Value::Optional(None)]) => return Some(Err(Error::new("optional.none() dereference"))),
        ("or", [Value::Optional(None), other @ Value::Optional(_)]) => other.clone(),
        ("or", [some @ Value::Optional(_), Value::Optional(_)]) => some.clone(),
        ("orValue", [Value::Optional(Some(inner)), _]) => (**inner).clone(),
        ("orValue", [Value::Optional(None), other]) => other.clone(),
        _ => return None,
    }))
}
