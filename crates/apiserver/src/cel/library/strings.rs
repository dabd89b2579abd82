//! Texts: CEL's own functions and those of its strings extension.

use crate::cel::value::Value;
use crate::cel::{Error, Result};

fn index_error(at: i64) -> Error {
    Error::new(format!("index out of range: {at}"))
}

pub fn call(name: &str, args: &[Value]) -> Option<Result<Value>> {
    let first = args.first()?;
    if name == "join" {
        return Some(join(args));
    }
    let Value::String(text) = first else { return None };
    let of = |i: usize| args.get(i).and_then(Value::as_str);
    let number = |i: usize| match args.get(i) {
        Some(Value::Int(n)) => Some(*n),
        _ => None,
    };
    Some(Ok(match (name, args.len()) {
        ("startsWith", 2) => Value::Bool(text.starts_with(of(1)?)),
        ("endsWith", 2) => Value::Bool(text.ends_with(of(1)?)),
        ("contains", 2) => Value::Bool(text.contains(of(1)?)),
        ("lowerAscii", 1) => Value::string(text.to_ascii_lowercase()),
        ("upperAscii", 1) => Value::string(text.to_ascii_uppercase()),
        ("trim", 1) => Value::string(text.trim()),
        ("charAt", 2) => {
            let at = number(1)?;
            let chars: Vec<char> = text.chars().collect();
            match usize::try_from(at) {
                Ok(i) if i == chars.len() => Value::string(""),
                Ok(i) if i < chars.len() => Value::string(chars[i].to_string()),
                _ => return Some(Err(index_error(at))),
            }
        }
        ("indexOf", 2 | 3) => {
            return Some(find(text, of(1)?, if args.len() == 3 { number(2)? } else { 0 }, false));
        }
        ("lastIndexOf", 2) => return Some(find(text, of(1)?, -1, true)),
        ("lastIndexOf", 3) => return Some(find(text, of(1)?, number(2)?, true)),
        ("substring", 2) => return Some(substring(text, number(1)?, None)),
        ("substring", 3) => return Some(substring(text, number(1)?, Some(number(2)?))),
        ("replace", 3) => Value::string(text.replace(of(1)?, of(2)?)),
        ("replace", 4) => match usize::try_from(number(3)?) {
            Ok(n) => Value::string(text.replacen(of(1)?, of(2)?, n)),
            Err(_) => Value::string(text.replace(of(1)?, of(2)?)),
        },
        ("split", 2) => split(text, of(1)?, -1),
        ("split", 3) => split(text, of(1)?, number(2)?),
        ("strings.quote", 1) => Value::string(quote(text)),
        ("jsonpatch.escapeKey", 1) => Value::string(text.replace('~', "~0").replace('/', "~1")),
        ("format", 2) => match &args[1] {
            Value::List(values) => return Some(super::printf::format(text, values).map(Value::string)),
            _ => return None,
        },
        _ => return None,
    }))
}

fn join(args: &[Value]) -> Result<Value> {
    let (Some(Value::List(list)), separator) = (args.first(), args.get(1)) else {
        return Err(Error::no_such_overload());
    };
    let separator = match separator {
        None => "",
        Some(Value::String(s)) => s,
        Some(_) => return Err(Error::no_such_overload()),
    };
    let texts: Option<Vec<&str>> = list.iter().map(Value::as_str).collect();
    texts.map(|t| Value::string(t.join(separator))).ok_or_else(Error::no_such_overload)
}

/// Where a part is, counted in characters; -1 if nowhere.
fn find(text: &str, part: &str, from: i64, last: bool) -> Result<Value> {
    let (chars, part): (Vec<char>, Vec<char>) = (text.chars().collect(), part.chars().collect());
    if part.is_empty() {
        let at = if last && from < 0 { chars.len() as i64 } else { from };
        return if at < 0 || at > chars.len() as i64 { Err(index_error(at)) } else { Ok(Value::Int(at)) };
    }
    let fits = |i: usize| chars[i..].starts_with(&part);
    let ends = (chars.len() + 1).saturating_sub(part.len());
    let found = if last {
        let end = if from < 0 { ends } else { ends.min(from as usize + 1) };
        (0..end).rev().find(|i| fits(*i))
    } else {
        let start = usize::try_from(from).map_err(|_| index_error(from))?;
        if start > chars.len() {
            return Err(index_error(from));
        }
        (start..ends).find(|i| fits(*i))
    };
    Ok(Value::Int(found.map_or(-1, |i| i as i64)))
}

fn substring(text: &str, from: i64, to: Option<i64>) -> Result<Value> {
    let chars: Vec<char> = text.chars().collect();
    let to = to.unwrap_or(chars.len() as i64);
    if from < 0 || from > chars.len() as i64 {
        return Err(index_error(from));
    }
    if to < 0 || to > chars.len() as i64 {
        return Err(index_error(to));
    }
    if from > to {
        return Err(Error::new(format!("invalid substring range. start: {from}, end: {to}")));
    }
    Ok(Value::string(chars[from as usize..to as usize].iter().collect::<String>()))
}

/// At most `limit` parts; all of them if that is negative.
fn split(text: &str, separator: &str, limit: i64) -> Value {
    let parts = |parts: &mut dyn Iterator<Item = &str>| Value::list(parts.map(Value::string).collect());
    match usize::try_from(limit) {
        Ok(0) => Value::list(Vec::new()),
        Ok(1) => Value::list(vec![Value::string(text)]),
        limit if separator.is_empty() => {
            let chars: Vec<String> = text.chars().map(String::from).collect();
            let n = limit.unwrap_or(chars.len()).min(chars.len());
            let mut out: Vec<Value> =
                chars.iter().take(n.saturating_sub(1)).map(|c| Value::string(c.as_str())).collect();
            if n > 0 {
                out.push(Value::string(chars[n - 1..].concat()));
            }
            Value::list(out)
        }
        Ok(limit) => parts(&mut text.splitn(limit, separator)),
        Err(_) => parts(&mut text.split(separator)),
    }
}

fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
