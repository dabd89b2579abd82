//! What operators and functions cost beside their arguments, and what they make.

use super::{Entries, NOTHING, ONE, OPAQUE, Range, Seen, Shape, UNKNOWN};
use crate::cel::cost;
use crate::cel::types::Type;

/// The share of a text's length that reading it costs, and that of a regular expression.
const TEXT: f64 = 0.1;
const REGEX: f64 = 0.25;
/// The longest regular expression of a named format.
const FORMAT_REGEX: f64 = 128.0;

/// The type that two values have in common.
pub fn common(a: &Type, b: &Type) -> Type {
    match (a, b) {
        (a, b) if a == b => a.clone(),
        (Type::Null, other) | (other, Type::Null) => other.clone(),
        (Type::List(a), Type::List(b)) => Type::list(common(a, b)),
        _ => Type::Dyn,
    }
}

/// What an operator costs beside its operands, and what it makes; `None` for what is no operator.
pub fn operator(name: &str, args: &[Seen<'_>]) -> Option<(Seen<'static>, Range)> {
    let smaller = |a: &Seen<'_>, b: &Seen<'_>| {
        let max = a.size().max.min(b.size().max);
        Range { min: u64::from(max > 0), max }.scaled(TEXT)
    };
    let read = |kind: &Type| matches!(kind, Type::String | Type::Bytes | Type::Dyn);
    Some(match (name, args) {
        ("_==_" | "_!=_", [a, b]) => {
            let cost = if [a, b].iter().all(|one| matches!(one.kind, Type::Opaque(_))) {
                ONE
            } else {
                smaller(a, b)
            };
            (Seen::made(Type::Bool, None), cost)
        }
        ("_<_" | "_<=_" | "_>_" | "_>=_", [a, b]) => {
            let cost = match (&a.kind, &b.kind) {
                (Type::Dyn, _) | (_, Type::Dyn) => smaller(a, b).or(ONE),
                (a_kind, b_kind) if read(a_kind) && read(b_kind) => smaller(a, b),
                _ => ONE,
            };
            (Seen::made(Type::Bool, None), cost)
        }
        ("_+_", [a, b]) => {
            let size = a.size().plus(b.size());
            match common(&a.kind, &b.kind) {
                kind @ (Type::String | Type::Bytes) => (Seen::made(kind, Some(size)), size.scaled(TEXT)),
                kind @ Type::List(_) => {
                    let entries = a
                        .entries
                        .zip(b.entries)
                        .map(|(a, b)| Entries { key: a.key.or(b.key), value: a.value.or(b.value) });
                    (Seen { entries, ..Seen::made(kind, Some(size)) }, ONE)
                }
                Type::Dyn if !a.kind.is_scalar() && !b.kind.is_scalar() => {
                    (Seen::made(Type::Dyn, Some(size)), size.scaled(TEXT).or(ONE))
                }
                kind => (Seen::made(kind, None), ONE),
            }
        }
        ("_-_" | "_*_" | "_/_" | "_%_", [a, b]) => (Seen::made(common(&a.kind, &b.kind), None), ONE),
        ("-_", [a]) => (Seen::made(a.kind.clone(), None), ONE),
        ("!_" | "@not_strictly_false", [_]) => (Seen::made(Type::Bool, None), ONE),
        ("@in", [_, of]) => {
            let cost = match &of.kind {
                Type::Map(..) => ONE,
                Type::List(_) => of.size(),
                _ => of.size().or(ONE),
            };
            (Seen::made(Type::Bool, None), cost)
        }
        _ => return None,
    })
}

/// What a function costs beside its arguments, and what it makes. `on`: what it is called on.
pub fn function(name: &str, on: Option<&Seen<'_>>, args: &[Seen<'_>]) -> (Seen<'static>, Range) {
    let first = args.first().map_or(UNKNOWN, Seen::size);
    let of = on.map_or(UNKNOWN, Seen::size);
    let element = || match on.map(|on| (&on.kind, on.place.decl().map(|decl| &decl.shape))) {
        Some((Type::List(kind), shape)) => {
            let size = match shape {
                Some(Shape::List(decl)) => Range { min: 0, max: decl.most },
                _ => UNKNOWN,
            };
            Some(((**kind).clone(), size))
        }
        _ => None,
    };
    let (cost, size) = match (name, on.is_some()) {
        ("check", _) => (Range::exactly(cost::AUTHORIZE), None),
        ("isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" | "includes", true) => {
            match element() {
                Some((Type::String | Type::Bytes, size)) => (of.times(ONE.plus(size.scaled(TEXT))), None),
                Some(_) => (of, None),
                None if name == "includes" => (of, None),
                None => (of.scaled(TEXT), None),
            }
        }
        ("distinct" | "sort" | "flatten" | "reverse" | "slice", true) => (ONE.plus(of), Some(of)),
        ("lists.range", _) => (ONE, None),
        ("sets.contains" | "sets.intersects" | "sets.equivalent", _) => {
            let second = args.get(1).map_or(UNKNOWN, Seen::size);
            let twice = if name == "sets.equivalent" { 2.0 } else { 1.0 };
            (first.times(second).scaled(twice).plus(ONE), None)
        }
        ("url" | "jsonpatch.escapeKey", false) => (first.scaled(TEXT), Some(first)),
        ("lowerAscii" | "upperAscii" | "substring" | "trim", true) => (of.scaled(TEXT), Some(of)),
        ("replace", true) => (of.scaled(2.0 * TEXT), Some(replaced(of, args))),
        ("split", true) => (of.scaled(2.0 * TEXT), Some(Range { min: 0, max: of.max })),
        ("join", true) => {
            let mut size = element().map_or(NOTHING, |(_, size)| of.times(size));
            if !args.is_empty() {
                let between = Range { min: of.min.saturating_sub(1), max: of.max.saturating_sub(1) };
                size = size.plus(first.times(between));
            }
            (size.scaled(TEXT), Some(size))
        }
        ("find" | "findAll", true) => {
            let text = of.plus(ONE).scaled(TEXT);
            (text.times(first.scaled(REGEX)), Some(Range { min: 0, max: of.max }))
        }
        ("matches", true) => (of.plus(ONE).scaled(TEXT).times(first.scaled(REGEX)), None),
        ("contains", true) => (of.scaled(TEXT).times(first.scaled(TEXT)), None),
        ("startsWith" | "endsWith", true) => (first.scaled(TEXT), None),
        ("format", true) => (of.scaled(TEXT), None),
        ("ip.isCanonical", _) => (first.scaled(2.0 * TEXT), None),
        ("cidr" | "isIP" | "isCIDR" | "ip" | "quantity" | "isQuantity" | "semver" | "isSemver", false) => {
            (first.scaled(TEXT), None)
        }
        ("containsIP" | "containsCIDR", true) => {
            let address = Range { min: 4, max: 16 };
            let mut cost = address.plus(address).scaled(TEXT);
            if name == "containsCIDR" {
                cost = cost.plus(address.scaled(TEXT)).plus(ONE);
            }
            let parses = args.first().is_some_and(|arg| matches!(arg.kind, Type::String | Type::Dyn));
            (if parses { cost.plus(first.scaled(TEXT)) } else { cost }, None)
        }
        ("validate", true) => (first.scaled(TEXT).scaled(FORMAT_REGEX * REGEX), None),
        ("bytes", false) => {
            (first.scaled(TEXT), Some(Range { min: first.min, max: first.max.saturating_mul(4) }))
        }
        ("string", false) if args.first().is_some_and(|arg| arg.kind == Type::Bytes) => {
            (first.scaled(TEXT), Some(Range { min: first.min / 4, max: first.max }))
        }
        ("strings.quote", _) => {
            let most = first.max.saturating_mul(2).saturating_add(2);
            (first.scaled(TEXT), Some(Range { min: first.min + 2, max: most }))
        }
        ("fieldSelector" | "labelSelector", true) => (first.scaled(TEXT), None),
        _ => (ONE, None),
    };
    (Seen::made(made(name, on, args), size), cost)
}

/// How long a text may be in which all occurrences of one are replaced by another.
fn replaced(of: Range, args: &[Seen<'_>]) -> Range {
    let [from, to, ..] = args else { return UNKNOWN };
    let (from, to) = (from.size(), to.size());
    let times = |length: u64, by: u64| (length as f64 / by as f64).ceil() as u64;
    let (most, kept) = match (from.min, to.max <= from.min) {
        (0, _) => (of.max.saturating_add(1), of.max),
        (_, true) => (0, of.max),
        (shortest, _) => (times(of.max, shortest), 0),
    };
    let (fewest, left) = match (from.max, from.max <= to.min) {
        (0, _) => (of.min.saturating_add(1), of.min),
        (_, true) => (0, of.min),
        (longest, _) => (times(of.min, longest), 0),
    };
    Range { min: fewest, max: most }.times(to).plus(Range { min: left, max: kept })
}

/// The type that a function makes.
fn made(name: &str, on: Option<&Seen<'_>>, args: &[Seen<'_>]) -> Type {
    let texts = || Type::list(Type::String);
    let inner = |kind: &Type| match kind {
        Type::List(inner) | Type::Optional(inner) => (**inner).clone(),
        _ => Type::Dyn,
    };
    match (name, on) {
        (
            "string"
            | "charAt"
            | "lowerAscii"
            | "upperAscii"
            | "substring"
            | "trim"
            | "replace"
            | "join"
            | "format"
            | "find"
            | "strings.quote"
            | "jsonpatch.escapeKey"
            | "getScheme"
            | "getHost"
            | "getHostname"
            | "getPort"
            | "getEscapedPath"
            | "reason"
            | "error",
            _,
        ) => Type::String,
        ("split" | "findAll", _) => texts(),
        ("getQuery", _) => Type::map(texts()),
        (
            "size" | "int" | "indexOf" | "lastIndexOf" | "compareTo" | "sign" | "asInteger" | "major"
            | "minor" | "patch" | "family" | "prefixLength",
            _,
        ) => Type::Int,
        ("uint", _) => Type::Uint,
        ("double" | "asApproximateFloat", _) => Type::Double,
        ("bytes", _) => Type::Bytes,
        ("duration", _) => Type::Duration,
        ("timestamp", _) => Type::Timestamp,
        (name, _) if name.starts_with("is") || name.starts_with("contains") => Type::Bool,
        (
            "bool" | "matches" | "startsWith" | "endsWith" | "hasValue" | "includes" | "sets.contains"
            | "sets.intersects" | "sets.equivalent" | "ip.isCanonical" | "allowed" | "errored",
            _,
        ) => Type::Bool,
        (name, Some(on)) if name.starts_with("get") => {
            if matches!(on.kind, Type::Duration | Type::Timestamp) { Type::Int } else { Type::Dyn }
        }
        ("min" | "max" | "sum" | "value", Some(on)) => inner(&on.kind),
        ("orValue", Some(on)) => match (inner(&on.kind), args.first()) {
            (Type::Dyn, Some(other)) => other.kind.clone(),
            (kind, _) => kind,
        },
        ("sort" | "reverse" | "distinct" | "slice" | "or", Some(on)) => on.kind.clone(),
        ("flatten", Some(_)) => Type::list(Type::Dyn),
        ("lists.range", _) => Type::list(Type::Int),
        ("optional.of" | "optional.ofNonZeroValue", _) => {
            Type::optional(args.first().map_or(Type::Dyn, |arg| arg.kind.clone()))
        }
        ("optional.none", _) => Type::optional(Type::Dyn),
        ("validate", _) => Type::optional(texts()),
        ("quantity" | "semver" | "ip" | "cidr" | "url" | "masked" | "add" | "sub", _) => OPAQUE,
        _ => Type::Dyn,
    }
}
