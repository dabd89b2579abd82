//! Regular expressions, of RE2's syntax.

use std::collections::HashMap;
use std::sync::OnceLock;

use ::cel::IdedExpr;
use ::cel::common::ast::{EntryExpr, Expr, LiteralValue};
use regex::Regex;

use crate::cel::value::Value;
use crate::cel::{Error, Result};
use crate::formats::pattern;

/// The largest automaton in bytes that a pattern may make.
const LARGEST: usize = 1 << 20;
/// So many patterns of an expression are kept; few have more than one.
const KEPT: usize = 32;

/// A pattern that has been read, or why it cannot be.
type Read = std::result::Result<Regex, String>;

/// The patterns that an expression writes out. Each is read once, when it is first asked for.
#[derive(Debug, Default)]
pub struct Patterns(HashMap<String, OnceLock<Read>>);

impl Patterns {
    pub fn of(root: &IdedExpr) -> Self {
        let mut patterns = Patterns::default();
        patterns.visit(root);
        patterns
    }

    fn entry(&mut self, entry: &EntryExpr) {
        match entry {
            EntryExpr::MapEntry(entry) => {
                self.visit(&entry.key);
                self.visit(&entry.value);
            }
            EntryExpr::StructField(field) => self.visit(&field.value),
        }
    }

    fn visit(&mut self, e: &IdedExpr) {
        match &e.expr {
            Expr::Map(map) => map.entries.iter().for_each(|entry| self.entry(&entry.expr)),
            Expr::Struct(object) => object.entries.iter().for_each(|entry| self.entry(&entry.expr)),
            Expr::Select(select) => self.visit(&select.operand),
            Expr::List(list) => list.elements.iter().for_each(|e| self.visit(e)),
            Expr::Call(call) => {
                if is_ours(&call.func_name)
                    && let Some(pattern) = call.args.get(usize::from(call.target.is_none()))
                    && let Expr::Literal(LiteralValue::String(pattern)) = &pattern.expr
                    && self.0.len() < KEPT
                {
                    self.0.entry(pattern.inner().to_owned()).or_default();
                }
                call.target.iter().for_each(|target| self.visit(target));
                call.args.iter().for_each(|arg| self.visit(arg));
            }
            Expr::Comprehension(fold) => {
                for e in [&fold.iter_range, &fold.accu_init, &fold.loop_cond, &fold.loop_step, &fold.result] {
                    self.visit(e);
                }
            }
            Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => {}
        }
    }

    /// Calls a function of this library.
    pub fn call(&self, name: &str, args: &[Value]) -> Option<Result<Value>> {
        if !is_ours(name) {
            return None;
        }
        let (text, pattern) = (args.first()?.as_str()?, args.get(1)?.as_str()?);
        let limit = match args.get(2) {
            None => None,
            Some(Value::Int(n)) => usize::try_from(*n).ok(),
            Some(_) => return None,
        };
        let own;
        let read = if let Some(known) = self.0.get(pattern) {
            known.get_or_init(|| read(pattern))
        } else {
            own = read(pattern);
            &own
        };
        Some(match (name, read) {
            ("matches", Ok(read)) => Ok(Value::Bool(read.is_match(text))),
            ("matches", Err(why)) => Err(Error::new(why.as_str())),
            // Of the functions that Kubernetes has added.
            (_, Err(why)) => Err(Error::new(format!("Illegal regex: {why}"))),
            ("find", Ok(read)) => Ok(Value::string(read.find(text).map_or("", |m| m.as_str()))),
            (_, Ok(read)) => {
                let found = read.find_iter(text).map(|m| Value::string(m.as_str()));
                Ok(Value::list(found.take(limit.unwrap_or(usize::MAX)).collect()))
            }
        })
    }
}

fn is_ours(name: &str) -> bool {
    matches!(name, "matches" | "find" | "findAll")
}

fn read(pattern: &str) -> Read {
    pattern::compile(pattern, LARGEST)
}

pub fn call(name: &str, args: &[Value]) -> Option<Result<Value>> {
    Patterns::default().call(name, args)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cel::{Budget, Declared, PER_CALL, Program};

    #[test]
    fn patterns_are_gos() {
        let ask = |name: &str, pattern: &str| call(name, &[Value::string("a1"), Value::string(pattern)]);
        assert_eq!(ask("matches", "^[a[]1$"), Some(Ok(Value::Bool(true))));
        let why = "error parsing regexp: invalid or unsupported Perl syntax: `(?!`";
        assert_eq!(ask("matches", "(?!a)"), Some(Err(Error::new(why))));
        assert_eq!(ask("find", "(?!a)"), Some(Err(Error::new(format!("Illegal regex: {why}")))));
    }

    #[test]
    fn what_is_written_out_is_read_once() {
        let source =
            "self.all(s, s.matches('^a')) && {'k': 'b'.find('(')}.size() == 1 && 'a'.matches(self[0])";
        let program = Program::compile(source, &Declared::new(&["self"])).expect("an expression");
        let known = Patterns::of(program.expression());
        let mut written: Vec<&str> = known.0.keys().map(String::as_str).collect();
        written.sort_unstable();
        assert_eq!(written, ["(", "^a"]);
        let is_read = |known: &Patterns, pattern: &str| known.0[pattern].get().is_some();
        assert!(!is_read(&known, "^a"));
        let ask = |pattern: &str| known.call("matches", &[Value::string("ab"), Value::string(pattern)]);
        for _ in 0..2 {
            assert_eq!(ask("^a"), Some(Ok(Value::Bool(true))));
            assert_eq!(ask("b"), Some(Ok(Value::Bool(true))));
            assert!(is_read(&known, "^a") && !known.0.contains_key("b"));
        }
        let variables = [("self", Value::list(vec![Value::string("a")]))];
        let _ = program.evaluate(&variables[..], &mut Budget::new(PER_CALL));
        assert!(is_read(&program.patterns, "^a"));
    }
}
