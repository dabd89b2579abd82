//! `format`: values put into a text.

use super::convert;
use crate::cel::value::Value;
use crate::cel::{Error, Result};

pub fn format(pattern: &str, values: &[Value]) -> Result<String> {
    let mut out = String::new();
    let mut values = values.iter();
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        if chars.peek() == Some(&'%') {
            chars.next();
            out.push('%');
            continue;
        }
        let mut precision = None;
        if chars.peek() == Some(&'.') {
            chars.next();
            let mut digits = String::new();
            while let Some(digit) = chars.next_if(char::is_ascii_digit) {
                digits.push(digit);
            }
            precision =
                Some(digits.parse::<usize>().map_err(|_| Error::new("could not parse formatting clause"))?);
        }
        let clause = chars.next().ok_or_else(|| Error::new("unexpected end of string"))?;
        let value = values
            .next()
            .ok_or_else(|| Error::new("could not parse formatting clause: too few arguments"))?;
        out.push_str(&one(clause, precision.map(|p| p.min(100)), value)?);
    }
    Ok(out)
}

fn one(clause: char, precision: Option<usize>, value: &Value) -> Result<String> {
    let wrong = || {
        Error::new(format!(
            "error during formatting: %{clause} clause is not possible for a value of type {}",
            value.type_name()
        ))
    };
    Ok(match (clause, value) {
        ('s', value) => shown(value),
        ('d', Value::Int(n)) => n.to_string(),
        ('d', Value::Uint(n)) => n.to_string(),
        ('f', Value::Double(d)) => format!("{d:.*}", precision.unwrap_or(6)),
        ('f', Value::Int(n)) => format!("{:.*}", precision.unwrap_or(6), *n as f64),
        ('e', Value::Double(d)) => {
            let text = format!("{d:.*e}", precision.unwrap_or(6));
            let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
            format!("{mantissa}e{sign}{digits:0>2}")
        }
        ('b', Value::Int(n)) if *n < 0 => format!("-{:b}", n.unsigned_abs()),
        ('b', Value::Int(n)) => format!("{n:b}"),
        ('b', Value::Uint(n)) => format!("{n:b}"),
        ('b', Value::Bool(b)) => i32::from(*b).to_string(),
        ('x', Value::Int(n)) => signed(*n, |n| format!("{n:x}")),
        ('x', Value::Uint(n)) => format!("{n:x}"),
        ('x', Value::String(s)) => hex::encode(s.as_bytes()),
        ('x', Value::Bytes(b)) => hex::encode(b),
        ('X', Value::Int(n)) => signed(*n, |n| format!("{n:X}")),
        ('X', Value::Uint(n)) => format!("{n:X}"),
        ('X', Value::String(s)) => hex::encode_upper(s.as_bytes()),
        ('X', Value::Bytes(b)) => hex::encode_upper(b),
        ('o', Value::Int(n)) => signed(*n, |n| format!("{n:o}")),
        ('o', Value::Uint(n)) => format!("{n:o}"),
        ('d' | 'f' | 'e' | 'b' | 'x' | 'X' | 'o', _) => return Err(wrong()),
        (other, _) => {
            return Err(Error::new(format!(
                "could not parse formatting clause: unrecognized formatting clause \"{other}\""
            )));
        }
    })
}

fn signed(n: i64, show: impl Fn(u64) -> String) -> String {
    let text = show(n.unsigned_abs());
    if n < 0 { format!("-{text}") } else { text }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Type(name) => name.to_string(),
        Value::List(list) => {
            let each: Vec<String> = list.iter().map(shown).collect();
            format!("[{}]", each.join(", "))
        }
        Value::Map(map) => {
            let mut each: Vec<String> =
                map.entries.iter().map(|(k, v)| format!("{}: {}", shown(&k.value()), shown(v))).collect();
            each.sort();
            format!("{{{}}}", each.join(", "))
        }
        other => convert::text(other).unwrap_or_else(|| other.type_name().to_owned()),
    }
}
