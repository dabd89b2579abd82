//! Regular expressions, of RE2's syntax.

use regex::Regex;

use crate::cel::value::Value;
use crate::cel::{Error, Result};
use crate::formats::pattern;

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
        "find" => legal(pattern).map(|r| Value::string(r.find(text).map_or("", |m| m.as_str()))),
        "findAll" => legal(pattern).map(|r| {
            let found = r.find_iter(text).map(|m| Value::string(m.as_str()));
            Value::list(found.take(limit.unwrap_or(usize::MAX)).collect())
        }),
        _ => return None,
    })
}

fn compiled(pattern: &str) -> Result<Regex> {
    pattern::compile(pattern, LARGEST).map_err(Error::new)
}

/// The same for functions that Kubernetes has added.
fn legal(pattern: &str) -> Result<Regex> {
    pattern::compile(pattern, LARGEST).map_err(|why| Error::new(format!("Illegal regex: {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_gos() {
        let ask = |name: &str, pattern: &str| call(name, &[Value::string("a1"), Value::string(pattern)]);
        assert_eq!(ask("matches", "^[a[]1$"), Some(Ok(Value::Bool(true))));
        let why = "error parsing regexp: invalid or unsupported Perl syntax: `(?!`";
        assert_eq!(ask("matches", "(?!a)"), Some(Err(Error::new(why))));
        assert_eq!(ask("find", "(?!a)"), Some(Err(Error::new(format!("Illegal regex: {why}")))));
    }
}
