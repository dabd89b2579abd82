//! Evaluation: an expression becomes a value, step by step, each charged.

use std::collections::BTreeMap;
use std::sync::Arc;

use ::cel::IdedExpr;
use ::cel::common::ast::{CallExpr, EntryExpr, Expr, LiteralValue, SelectExpr};

use super::library::regex::Patterns;
use super::value::{Key, Map, Value};
use super::{Budget, Error, Result, Variables, check, cost, declared, library, operators};

pub struct Evaluation<'a> {
    variables: &'a dyn Variables,
    patterns: &'a Patterns,
    budget: &'a mut Budget,
    /// What macros bind, the innermost last. A variable that accumulates may hold an error for a while.
    scopes: Vec<(&'a str, Result<Value>)>,
}

impl<'a> Evaluation<'a> {
    pub fn new(variables: &'a dyn Variables, patterns: &'a Patterns, budget: &'a mut Budget) -> Self {
        Evaluation { variables, patterns, budget, scopes: Vec::new() }
    }

    pub fn spend(&mut self, cost: u64) -> Result<()> {
        self.budget.spend(cost)
    }

    pub fn value(&mut self, expression: &'a IdedExpr) -> Result<Value> {
        match &expression.expr {
            Expr::Literal(literal) => Ok(self::literal(literal)),
            Expr::Ident(name) => {
                self.spend(1)?;
                self.variable(name)
            }
            Expr::Select(select) => self.select(select),
            Expr::Call(call) => self.call(call),
            Expr::List(list) => {
                self.spend(cost::LIST)?;
                let mut items = Vec::with_capacity(list.elements.len());
                for (i, element) in list.elements.iter().enumerate() {
                    let value = self.value(element)?;
                    if list.optional_indices.contains(&i) {
                        match value {
                            Value::Optional(Some(inner)) => items.push((*inner).clone()),
                            Value::Optional(None) => {}
                            _ => return Err(Error::no_such_overload()),
                        }
                    } else {
                        items.push(value);
                    }
                }
                Ok(Value::list(items))
            }
            Expr::Map(map) => {
                self.spend(cost::MAP)?;
                let mut entries = BTreeMap::new();
                for entry in &map.entries {
                    let EntryExpr::MapEntry(entry) = &entry.expr else { continue };
                    let key = self.value(&entry.key)?;
                    let key = Key::of(&key).ok_or_else(|| Error::new("unsupported key type"))?;
                    let value = self.value(&entry.value)?;
                    if let Some(value) = given(value, entry.optional)?
                        && entries.insert(key.clone(), value).is_some()
                    {
                        return Err(Error::new(format!("Failed with repeated key [{key}]")));
                    }
                }
                Ok(Value::Map(Arc::new(Map { type_name: None, entries })))
            }
            Expr::Struct(object) => {
                self.spend(cost::STRUCT)?;
                let mut entries = BTreeMap::new();
                for entry in &object.entries {
                    let EntryExpr::StructField(field) = &entry.expr else { continue };
                    let value = self.value(&field.value)?;
                    if let Some(value) = given(value, field.optional)? {
                        entries.insert(Key::text(&unescaped(&field.field)), value);
                    }
                }
                let type_name = Some(object.type_name.trim_start_matches('.').into());
                Ok(Value::Map(Arc::new(Map { type_name, entries })))
            }
            Expr::Comprehension(fold) => self.fold(fold),
            Expr::Unspecified => Err(Error::new("an expression without a kind")),
        }
    }

    fn bound(&self, name: &str) -> Option<&Result<Value>> {
        self.scopes.iter().rev().find(|(n, _)| *n == name).map(|(_, value)| value)
    }

    fn variable(&self, name: &str) -> Result<Value> {
        if let Some(bound) = self.bound(name) {
            return bound.clone();
        }
        let name = name.trim_start_matches('.');
        if let Some(value) = self.variables.get(name) {
            return Ok(value);
        }
        if let Some(name) = declared::type_called(name) {
            return Ok(Value::Type(name.into()));
        }
        Err(Error::new(format!("no such attribute(s): {name}")))
    }

    /// Evaluates with names bound, and unbinds them.
    pub fn with(&mut self, bound: &[(&'a str, Value)], expression: &'a IdedExpr) -> Result<Value> {
        let before = self.scopes.len();
        self.scopes.extend(bound.iter().map(|(name, value)| (*name, Ok(value.clone()))));
        let value = self.value(expression);
        self.scopes.truncate(before);
        value
    }

    pub fn bind(&mut self, name: &'a str, value: Result<Value>) {
        self.scopes.push((name, value));
    }

    pub fn unbind(&mut self) -> Result<Value> {
        self.scopes.pop().map_or_else(|| Err(Error::new("nothing is bound")), |(_, value)| value)
    }

    fn select(&mut self, select: &'a SelectExpr) -> Result<Value> {
        if let Expr::Ident(name) = &select.operand.expr
            && self.bound(name).is_none()
        {
            self.spend(1)?;
            if let Some(value) = self.variables.lazy(name, &select.field, self.budget) {
                return if select.test { Ok(Value::Bool(true)) } else { value };
            }
        }
        if !select.test
            && let Some(name) = qualified(select)
            && let Some(type_name) = declared::type_called(&name)
        {
            return Ok(Value::Type(type_name.into()));
        }
        let operand = self.value(&select.operand)?;
        if select.test {
            return has(&operand, &select.field).map(Value::Bool);
        }
        self.spend(1)?;
        field(&operand, &select.field)
    }

    fn call(&mut self, call: &'a CallExpr) -> Result<Value> {
        let args = &call.args;
        match (call.func_name.as_str(), args.as_slice()) {
            ("_&&_", [a, b]) => return self.logical(a, b, false),
            ("_||_", [a, b]) => return self.logical(a, b, true),
            ("_?:_" | "_?_:_", [test, yes, no]) => {
                return match self.value(test)? {
                    Value::Bool(true) => self.value(yes),
                    Value::Bool(false) => self.value(no),
                    _ => Err(Error::no_such_overload()),
                };
            }
            ("@not_strictly_false" | "__not_strictly_false__", [a]) => {
                return match self.value(a) {
                    Err(Error::OutOfBudget) => Err(Error::OutOfBudget),
                    Ok(Value::Bool(b)) => Ok(Value::Bool(b)),
                    _ => Ok(Value::Bool(true)),
                };
            }
            ("_?._", [operand, field]) => {
                let operand = self.value(operand)?;
                let Value::String(name) = self.value(field)? else {
                    return Err(Error::no_such_overload());
                };
                self.spend(1)?;
                let inner = match &operand {
                    Value::Optional(None) => return Ok(Value::NONE),
                    Value::Optional(Some(inner)) => (**inner).clone(),
                    other => other.clone(),
                };
                return Ok(if has(&inner, &name)? {
                    Value::some(self::field(&inner, &name)?)
                } else {
                    Value::NONE
                });
            }
            _ => {}
        }
        if let Some(target) = &call.target {
            if let Some(space) = check::namespace(target)
                && self.bound(space).is_none()
                && library::signatures::is_function(&format!("{space}.{}", call.func_name))
            {
                let values = self.values(args)?;
                return self.apply(&format!("{space}.{}", call.func_name), values);
            }
            if let Some(value) = self.macro_call(target, &call.func_name, args) {
                return value;
            }
            let mut values = vec![self.value(target)?];
            values.extend(self.values(args)?);
            return self.apply(&call.func_name, values);
        }
        let values = self.values(args)?;
        self.apply(&call.func_name, values)
    }

    fn values(&mut self, expressions: &'a [IdedExpr]) -> Result<Vec<Value>> {
        expressions.iter().map(|e| self.value(e)).collect()
    }

    fn apply(&mut self, name: &str, args: Vec<Value>) -> Result<Value> {
        self.spend(cost::call(name, &args))?;
        let made = operators::apply(name, &args).or_else(|| self.patterns.call(name, &args));
        made.unwrap_or_else(|| library::call(name, &args))
    }

    /// `&&` and `||`: either side decides, even if the other has no value.
    fn logical(&mut self, a: &'a IdedExpr, b: &'a IdedExpr, decides: bool) -> Result<Value> {
        let first = self.value(a);
        match &first {
            Ok(Value::Bool(value)) if *value == decides => return first,
            Err(Error::OutOfBudget) => return first,
            _ => {}
        }
        let second = self.value(b);
        match (&first, &second) {
            (_, Ok(Value::Bool(value))) if *value == decides => second,
            (_, Err(Error::OutOfBudget)) => second,
            (Ok(Value::Bool(_)), Ok(Value::Bool(_))) => Ok(Value::Bool(!decides)),
            (Err(_), _) => first,
            (_, Err(_)) => second,
            _ => Err(Error::no_such_overload()),
        }
    }
}

/// A value that is put into a map or an object: an optional one only if there is one.
fn given(value: Value, optional: bool) -> Result<Option<Value>> {
    match value {
        value if !optional => Ok(Some(value)),
        Value::Optional(inner) => Ok(inner.map(|inner| (*inner).clone())),
        _ => Err(Error::no_such_overload()),
    }
}

fn literal(literal: &LiteralValue) -> Value {
    match literal {
        LiteralValue::Boolean(b) => Value::Bool(*b.inner()),
        LiteralValue::Bytes(b) => Value::Bytes(b.inner().into()),
        LiteralValue::Double(d) => Value::Double(*d.inner()),
        LiteralValue::Int(n) => Value::Int(*n.inner()),
        LiteralValue::Null => Value::Null,
        LiteralValue::String(s) => Value::string(s.inner()),
        LiteralValue::UInt(n) => Value::Uint(*n.inner()),
    }
}

/// `google.protobuf.Timestamp`, of a chain of selections.
fn qualified(select: &SelectExpr) -> Option<String> {
    let mut parts = vec![select.field.as_str()];
    let mut at = &select.operand.expr;
    loop {
        match at {
            Expr::Ident(name) => {
                parts.push(name);
                parts.reverse();
                return Some(parts.join("."));
            }
            Expr::Select(inner) if !inner.test => {
                parts.push(&inner.field);
                at = &inner.operand.expr;
            }
            _ => return None,
        }
    }
}

/// The name of a property behind how a CEL identifier has to write it: `__dot__`, `__dash__`, `__namespace__`.
pub fn unescaped(name: &str) -> String {
    if !name.contains("__") {
        return name.to_owned();
    }
    let plain = name
        .replace("__underscores__", "\u{0}")
        .replace("__dot__", ".")
        .replace("__dash__", "-")
        .replace("__slash__", "/")
        .replace('\u{0}', "__");
    match plain.strip_prefix("__").and_then(|p| p.strip_suffix("__")) {
        Some(reserved) if declared::is_reserved(reserved) => reserved.to_owned(),
        _ => plain,
    }
}

fn find<'v>(map: &'v Map, name: &str) -> Option<&'v Value> {
    map.get(name).or_else(|| if name.contains("__") { map.get(&unescaped(name)) } else { None })
}

fn has(value: &Value, name: &str) -> Result<bool> {
    match value {
        Value::Map(map) => Ok(find(map, name).is_some()),
        Value::Optional(None) => Ok(false),
        Value::Optional(Some(inner)) => has(inner, name),
        _ => Err(Error::new(format!("no such key: {name}"))),
    }
}

fn field(value: &Value, name: &str) -> Result<Value> {
    match value {
        Value::Map(map) => find(map, name).cloned().ok_or_else(|| Error::no_such_key(name)),
        Value::Optional(None) => Ok(Value::NONE),
        Value::Optional(Some(inner)) => {
            Ok(if has(inner, name)? { Value::some(field(inner, name)?) } else { Value::NONE })
        }
        _ => Err(Error::no_such_key(name)),
    }
}
