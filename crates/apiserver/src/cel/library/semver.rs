//! Semantic versions (semver.org, 2.0.0).

use std::cmp::Ordering;

use crate::cel::value::{Opaque, Value};
use crate::cel::{Error, Result};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    numbers: [u64; 3],
    pre: Vec<Identifier>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Identifier {
    /// Numbers come before texts.
    Number(u64),
    Text(String),
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        self.numbers.cmp(&other.numbers).then_with(|| match (self.pre.is_empty(), other.pre.is_empty()) {
            // What is released comes after what leads to it.
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            _ => self.pre.cmp(&other.pre),
        })
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

fn number(text: &str) -> Option<u64> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    (plain && (text == "0" || !text.starts_with('0'))).then(|| text.parse().ok()).flatten()
}

fn identifiers(text: &str) -> bool {
    text.split('.').all(|i| !i.is_empty() && i.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'))
}

impl Version {
    pub fn parse(text: &str) -> Option<Version> {
        let (text, build) = text.split_once('+').map_or((text, None), |(v, b)| (v, Some(b)));
        if build.is_some_and(|build| !identifiers(build)) {
            return None;
        }
        let (core, pre) = text.split_once('-').map_or((text, None), |(v, p)| (v, Some(p)));
        let mut parts = core.split('.').map(number);
        let numbers = [parts.next()??, parts.next()??, parts.next()??];
        if parts.next().is_some() || pre.is_some_and(|pre| !identifiers(pre)) {
            return None;
        }
        let pre = pre.into_iter().flat_map(|pre| pre.split('.')).map(|part| {
            let digits = part.bytes().all(|b| b.is_ascii_digit());
            if digits {
                number(part).map(Identifier::Number)
            } else {
                Some(Identifier::Text(part.to_owned()))
            }
        });
        Some(Version { numbers, pre: pre.collect::<Option<_>>()? })
    }

    /// The same of a version with a `v` before it, leading zeros, or less than three numbers.
    pub fn parse_tolerant(text: &str) -> Option<Version> {
        let text = text.trim().trim_start_matches('v');
        let end = text.find(['-', '+']).unwrap_or(text.len());
        let (core, rest) = text.split_at(end);
        let mut parts: Vec<String> = core
            .split('.')
            .map(|part| {
                let bare = part.trim_start_matches('0');
                if bare.is_empty() && !part.is_empty() { "0".to_owned() } else { bare.to_owned() }
            })
            .collect();
        if parts.len() < 3 && !rest.is_empty() {
            return None;
        }
        while parts.len() < 3 {
            parts.push("0".to_owned());
        }
        Version::parse(&format!("{}{rest}", parts.join(".")))
    }
}

fn version(value: &Value) -> Option<&Version> {
    match value {
        Value::Opaque(opaque) => match &**opaque {
            Opaque::Semver(v) => Some(v),
            _ => None,
        },
        _ => None,
    }
}

pub fn call(name: &str, args: &[Value]) -> Option<Result<Value>> {
    if let ("semver" | "isSemver", Some(text)) = (name, args.first()?.as_str()) {
        let tolerant = match &args[1..] {
            [] => false,
            [Value::Bool(tolerant)] => *tolerant,
            _ => return None,
        };
        let parsed = if tolerant { Version::parse_tolerant(text) } else { Version::parse(text) };
        return Some(match (name, parsed) {
            ("isSemver", parsed) => Ok(Value::Bool(parsed.is_some())),
            (_, Some(version)) => Ok(Value::opaque(Opaque::Semver(version))),
            _ => Err(Error::new(format!("No Major.Minor.Patch elements found in {text:?}"))),
        });
    }
    let v = version(args.first()?)?;
    let order = || args.get(1).and_then(version).map(|other| v.cmp(other));
    Some(Ok(match (name, args.len()) {
        ("major", 1) => Value::Int(v.numbers[0] as i64),
        ("minor", 1) => Value::Int(v.numbers[1] as i64),
        ("patch", 1) => Value::Int(v.numbers[2] as i64),
        ("isGreaterThan", 2) => Value::Bool(order()? == Ordering::Greater),
        ("isLessThan", 2) => Value::Bool(order()? == Ordering::Less),
        ("compareTo", 2) => Value::Int(order()? as i64),
        _ => return None,
    }))
}
