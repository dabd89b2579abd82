//! Regular expressions, of RE2's syntax.

use regex::{Regex, RegexBuilder};

use crate::cel::value::Value;
use crate::cel::{Error, Result};

/// The largest automaton in bytes that a pattern may make.
const LARGEST: usize = 1 << 20;

pub fn call(name: &str, args: &[Value]) -> Option<Result<Value>> {
    let (text, pattern) = (args.first()?.as_str()?, args.get(1)?.as_str()?);
    let limit = match args.get(2) {
        None => None,
        Some(Value::Int(n)) => usize::try_from(*n).ok(),
        Some(_) => return None,
    };
    Some(match name {
        "matches" => compiled(pattern).map(|r| Value::Bool(r.is_match(text))),
        "find" => compiled(pattern).map(|r| Value::string(r.find(text).map_or("", |m| m.as_str()))),
        "findAll" => compiled(pattern).map(|r| {
            let found = r.find_iter(text).map(|m| Value::string(m.as_str()));
            Value::list(found.take(limit.unwrap_or(usize::MAX)).collect())
        }),
        _ => return None,
    })
}

fn compiled(pattern: &str) -> Result<Regex> {
    let built = RegexBuilder::new(pattern).size_limit(LARGEST).build();
    built.map_err(|error| Error::new(format!("error parsing regexp: {error}")))
}
