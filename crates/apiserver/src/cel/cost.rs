//! What steps cost, as upstream's runtime costs have it: a step is one, reading a text a tenth of its length.

use super::value::Value;

pub const LIST: u64 = 10;
pub const MAP: u64 = 30;
pub const STRUCT: u64 = 40;
/// Two checks of an authorizer fit into one evaluation.
pub const AUTHORIZE: u64 = 350_000;

/// A tenth, rounded up.
pub fn tenth(length: usize) -> u64 {
    (length as u64).div_ceil(10)
}

/// How large a value is: the length of a text, the number of a list's or a map's entries, else one.
pub fn size(value: &Value) -> usize {
    match value {
        Value::String(s) => s.chars().count(),
        Value::Bytes(b) => b.len(),
        Value::List(list) => list.len(),
        Value::Map(map) => map.entries.len(),
        Value::Optional(Some(inner)) => size(inner),
        _ => 1,
    }
}

/// What looking at all of a value costs.
pub fn traversal(value: &Value) -> u64 {
    match value {
        Value::String(_) | Value::Bytes(_) => tenth(size(value)),
        Value::List(list) => list.iter().map(traversal).sum(),
        Value::Map(map) => map.entries.values().map(|v| 1 + traversal(v)).sum(),
        _ => 1,
    }
}

/// What a regular expression costs on a text: the product of both lengths, scaled down.
pub fn regex(text: usize, pattern: usize) -> u64 {
    tenth(text + 1).saturating_mul((pattern as u64).div_ceil(4))
}

/// What a call costs before it is made.
pub fn call(function: &str, args: &[Value]) -> u64 {
    let sized = |i: usize| args.get(i).map_or(0, size);
    match function {
        "check" => AUTHORIZE,
        "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" | "includes" | "distinct" | "sort"
        | "flatten" | "reverse" => args.first().map_or(1, traversal),
        "slice" => 1 + sized(0) as u64,
        "lists.range" => match args.first() {
            Some(Value::Int(n)) => 1 + (*n).max(0) as u64,
            _ => 1,
        },
        "sets.contains" | "sets.intersects" | "sets.equivalent" => {
            1 + (sized(0) as u64).saturating_mul(sized(1) as u64)
        }
        "url"
        | "isURL"
        | "lowerAscii"
        | "upperAscii"
        | "substring"
        | "trim"
        | "jsonpatch.escapeKey"
        | "cidr"
        | "isIP"
        | "isCIDR"
        | "ip"
        | "quantity"
        | "isQuantity"
        | "semver"
        | "isSemver"
        | "charAt"
        | "timestamp"
        | "duration"
        | "string"
        | "bytes"
        | "int"
        | "uint"
        | "double"
        | "strings.quote" => 1 + tenth(sized(0)),
        "ip.isCanonical" | "replace" | "split" => 1 + 2 * tenth(sized(0)),
        "join" => 1 + 2 * args.first().map_or(0, traversal),
        "format" => 1 + args.iter().map(traversal).sum::<u64>(),
        "find" | "findAll" | "matches" => regex(sized(0), sized(1)),
        "validate" => regex(sized(1), 100),
        "startsWith" | "endsWith" => 1 + tenth(sized(1)),
        "contains" => (1 + tenth(sized(0))).saturating_mul(1 + tenth(sized(1))),
        "containsIP" | "containsCIDR" => 4,
        "@in" => match args.get(1) {
            Some(list @ Value::List(_)) => 1 + traversal(list),
            _ => 1,
        },
        "_==_" | "_!=_" => args.iter().map(traversal).min().unwrap_or(1).max(1),
        "_<_" | "_<=_" | "_>_" | "_>=_" => args.iter().map(traversal).min().unwrap_or(1).max(1),
        "_+_" => match args {
            [Value::String(_) | Value::Bytes(_), _] => 1 + tenth(sized(0) + sized(1)),
            [Value::List(_), Value::List(_)] => 1 + (sized(0) + sized(1)) as u64,
            _ => 1,
        },
        _ => 1,
    }
}
