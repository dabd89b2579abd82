//! What is wrong with a pattern that values are put into, told before they are: cel-go's validator of `format`, where both
//! the pattern and the list of values are written out.

use std::collections::HashMap;

use ::cel::IdedExpr;
use ::cel::common::ast::{EntryExpr, Expr};

use super::types::Type;

/// The first fault: the number of the value that it is wrong with, or none where it is the call itself.
pub fn fault(
    pattern: &str,
    values: &[IdedExpr],
    types: &HashMap<u64, Type>,
) -> Option<(Option<u64>, String)> {
    let mut chars = pattern.chars().peekable();
    let mut asked = 0;
    while let Some(c) = chars.next() {
        if c != '%' || chars.next_if_eq(&'%').is_some() {
            continue;
        }
        if chars.peek().is_none() {
            return Some((None, "unexpected end of string".to_owned()));
        }
        let Some(value) = values.get(asked) else {
            return Some((None, format!("index {asked} out of range")));
        };
        asked += 1;
        let clause = match clause(&mut chars) {
            Ok(clause) => clause,
            Err(why) => return Some((None, format!("could not parse formatting clause: {why}"))),
        };
        if let Some((id, why)) = unfit(clause, value, types) {
            return Some((Some(id), format!("error during formatting: {why}")));
        }
    }
    (values.len() > asked).then(|| {
        let given = values.len();
        (None, format!("too many arguments supplied to string.format (expected {asked}, got {given})"))
    })
}

/// The letter of a clause, behind its precision.
fn clause(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<char, String> {
    if chars.next_if_eq(&'.').is_some() {
        let said = |why: String| format!("error while parsing precision: {why}");
        let mut digits = String::new();
        while let Some(digit) = chars.next_if(char::is_ascii_digit) {
            digits.push(digit);
        }
        if chars.peek().is_none() {
            return Err(said("could not find end of precision specifier".to_owned()));
        }
        if digits.parse::<i64>().is_err() {
            let why = if digits.is_empty() { "invalid syntax" } else { "value out of range" };
            return Err(said(format!(
                "error while converting precision to integer: strconv.Atoi: parsing {digits:?}: {why}"
            )));
        }
    }
    match chars.next() {
        Some(known @ ('s' | 'd' | 'f' | 'e' | 'b' | 'x' | 'X' | 'o')) => Ok(known),
        other => Err(format!("unrecognized formatting clause \"{}\"", other.unwrap_or_default())),
    }
}

/// What does not fit a clause, and what is said of it.
fn unfit(clause: char, value: &IdedExpr, types: &HashMap<u64, Type>) -> Option<(u64, String)> {
    if clause == 's' {
        let (id, kind) = no_text(value, types)?;
        let takes = "string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, \
                     durations, and timestamps";
        return Some((id, format!("{takes}, was given {}", name(&kind))));
    }
    let kind = types.get(&value.id).filter(|kind| !kind.is_dyn())?;
    let (fits, takes) = match clause {
        'd' => (matches!(kind, Type::Int | Type::Uint), "decimal clause can only be used on integers"),
        // "NaN" and "Infinity" are written as texts.
        'f' => {
            (matches!(kind, Type::Double | Type::String), "fixed-point clause can only be used on doubles")
        }
        'e' => (matches!(kind, Type::Double | Type::String), "scientific clause can only be used on doubles"),
        'b' => (
            matches!(kind, Type::Int | Type::Uint | Type::Bool),
            "only integers and bools can be formatted as binary",
        ),
        'x' | 'X' => (
            matches!(kind, Type::Int | Type::Uint | Type::String | Type::Bytes),
            "only integers, byte buffers, and strings can be formatted as hex",
        ),
        _ => (matches!(kind, Type::Int | Type::Uint), "octal clause can only be used on integers"),
    };
    (!fits).then(|| (value.id, format!("{takes}, was given {}", name(kind))))
}

/// The part of a value that cannot be shown as a text.
fn no_text(value: &IdedExpr, types: &HashMap<u64, Type>) -> Option<(u64, Type)> {
    let kind = types.get(&value.id)?;
    let shown = kind.is_dyn()
        || matches!(
            kind,
            Type::List(_)
                | Type::Map(..)
                | Type::Int
                | Type::Uint
                | Type::Double
                | Type::Bool
                | Type::String
                | Type::Timestamp
                | Type::Bytes
                | Type::Duration
                | Type::Type(_)
                | Type::Null
        );
    if !shown {
        return Some((value.id, kind.clone()));
    }
    match &value.expr {
        Expr::List(list) => list.elements.iter().find_map(|element| no_text(element, types)),
        Expr::Map(map) => map.entries.iter().find_map(|entry| match &entry.expr {
            EntryExpr::MapEntry(entry) => no_text(&entry.key, types).or_else(|| no_text(&entry.value, types)),
            EntryExpr::StructField(_) => None,
        }),
        _ => None,
    }
}

/// The name of a type without those of its parts.
fn name(kind: &Type) -> String {
    let name = kind.name();
    name.split('(').next().unwrap_or_default().to_owned()
}
