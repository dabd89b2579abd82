//! Macros: what runs over lists and maps, and what binds a name.

use std::collections::BTreeMap;
use std::sync::Arc;

use ::cel::IdedExpr;
use ::cel::common::ast::{ComprehensionExpr, Expr};

use super::eval::Evaluation;
use super::value::{Key, Map, Value};
use super::{Error, Result, operators};

/// What a list or a map is run over by: of a list its values, of a map its keys; with two names, also the index or the
/// value.
fn items(range: &Value) -> Result<Vec<(Value, Value)>> {
    match range {
        Value::List(list) => {
            Ok(list.iter().enumerate().map(|(i, v)| (Value::Int(i as i64), v.clone())).collect())
        }
        Value::Map(map) => Ok(map.entries.iter().map(|(k, v)| (k.value(), v.clone())).collect()),
        _ => Err(Error::no_such_overload()),
    }
}

fn ident(expression: &IdedExpr) -> Option<&str> {
    match &expression.expr {
        Expr::Ident(name) => Some(name),
        _ => None,
    }
}

impl<'a> Evaluation<'a> {
    /// A macro that the parser has taken apart: `all`, `exists`, `exists_one`, `map`, `filter`.
    pub fn fold(&mut self, fold: &'a ComprehensionExpr) -> Result<Value> {
        let range = self.value(&fold.iter_range)?;
        let is_map = matches!(range, Value::Map(_));
        let mut sum = self.value(&fold.accu_init);
        for (key, value) in items(&range)? {
            self.spend(1)?;
            let (first, second) = match (&fold.iter_var2, is_map) {
                (Some(second), _) => (key, Some((second.as_str(), value))),
                (None, true) => (key, None),
                (None, false) => (value, None),
            };
            self.bind(&fold.accu_var, sum);
            let goes_on = self.with(&[], &fold.loop_cond);
            sum = self.unbind();
            match goes_on {
                Ok(Value::Bool(true)) => {}
                Ok(_) => break,
                Err(error) => return Err(error),
            }
            self.bind(&fold.iter_var, Ok(first));
            let two = second.is_some();
            if let Some((name, value)) = second {
                self.bind(name, Ok(value));
            }
            sum = self.step(&fold.accu_var, sum, &fold.loop_step);
            self.unbind()?;
            if two {
                self.unbind()?;
            }
            if sum == Err(Error::OutOfBudget) {
                return sum;
            }
        }
        self.bind(&fold.accu_var, sum);
        let result = self.with(&[], &fold.result);
        drop(self.unbind());
        result
    }

    /// One step of a fold. What only appends to a list does so in place.
    fn step(&mut self, name: &'a str, sum: Result<Value>, step: &'a IdedExpr) -> Result<Value> {
        if ident(step) == Some(name) {
            return sum;
        }
        if let Expr::Call(call) = &step.expr {
            match (call.func_name.as_str(), call.args.as_slice()) {
                ("_?_:_", [test, yes, no]) => {
                    return match self.value(test)? {
                        Value::Bool(true) => self.step(name, sum, yes),
                        Value::Bool(false) => self.step(name, sum, no),
                        _ => Err(Error::no_such_overload()),
                    };
                }
                (
                    "_+_",
                    [IdedExpr { expr: Expr::Ident(left), .. }, IdedExpr { expr: Expr::List(more), .. }],
                ) if left == name && more.optional_indices.is_empty() => {
                    let Value::List(mut list) = sum? else { return Err(Error::no_such_overload()) };
                    for element in &more.elements {
                        self.spend(1)?;
                        let value = self.value(element)?;
                        Arc::make_mut(&mut list).push(value);
                    }
                    return Ok(Value::List(list));
                }
                _ => {}
            }
        }
        self.bind(name, sum);
        let next = self.value(step);
        drop(self.unbind());
        next
    }

    /// A call whose arguments are not values but expressions over a name that it binds; `None` if it is no such call.
    pub fn macro_call(
        &mut self,
        target: &'a IdedExpr,
        function: &str,
        args: &'a [IdedExpr],
    ) -> Option<Result<Value>> {
        match (function, args) {
            ("optMap", [name, body]) => Some(self.optional(target, ident(name)?, body, true)),
            ("optFlatMap", [name, body]) => Some(self.optional(target, ident(name)?, body, false)),
            ("sortBy", [name, key]) => Some(self.sort_by(target, ident(name)?, key)),
            ("all" | "exists" | "existsOne" | "exists_one", [a, b, test]) => {
                Some(self.quantified(target, function, ident(a)?, ident(b)?, test))
            }
            ("existsOne", [a, test]) => Some(self.exists_one(target, ident(a)?, test)),
            ("transformList" | "transformMap" | "transformMapEntry", [a, b, body]) => {
                Some(self.transform(target, function, [ident(a)?, ident(b)?], None, body))
            }
            ("transformList" | "transformMap" | "transformMapEntry", [a, b, filter, body]) => {
                Some(self.transform(target, function, [ident(a)?, ident(b)?], Some(filter), body))
            }
            _ => None,
        }
    }

    fn optional(
        &mut self,
        target: &'a IdedExpr,
        name: &'a str,
        body: &'a IdedExpr,
        wraps: bool,
    ) -> Result<Value> {
        match self.value(target)? {
            Value::Optional(None) => Ok(Value::NONE),
            Value::Optional(Some(inner)) => {
                let value = self.with(&[(name, (*inner).clone())], body)?;
                Ok(if wraps { Value::some(value) } else { value })
            }
            _ => Err(Error::no_such_overload()),
        }
    }

    fn sort_by(&mut self, target: &'a IdedExpr, name: &'a str, key: &'a IdedExpr) -> Result<Value> {
        let Value::List(list) = self.value(target)? else { return Err(Error::no_such_overload()) };
        let mut keyed = Vec::with_capacity(list.len());
        for item in list.iter() {
            self.spend(1)?;
            keyed.push((self.with(&[(name, item.clone())], key)?, item.clone()));
        }
        let mut fault = None;
        keyed.sort_by(|(a, _), (b, _)| match operators::compare(a, b) {
            Ok(order) => order.unwrap_or(std::cmp::Ordering::Equal),
            Err(error) => {
                fault = Some(error);
                std::cmp::Ordering::Equal
            }
        });
        fault.map_or_else(|| Ok(Value::list(keyed.into_iter().map(|(_, item)| item).collect())), Err)
    }

    fn exists_one(&mut self, target: &'a IdedExpr, name: &'a str, test: &'a IdedExpr) -> Result<Value> {
        let range = self.value(target)?;
        let is_map = matches!(range, Value::Map(_));
        let mut found = 0;
        for (key, value) in items(&range)? {
            self.spend(1)?;
            let bound = if is_map { key } else { value };
            found += i32::from(self.with(&[(name, bound)], test)? == Value::Bool(true));
        }
        Ok(Value::Bool(found == 1))
    }

    fn quantified(
        &mut self,
        target: &'a IdedExpr,
        function: &str,
        first: &'a str,
        second: &'a str,
        test: &'a IdedExpr,
    ) -> Result<Value> {
        let range = self.value(target)?;
        let (mut fault, mut found) = (None, 0);
        for (key, value) in items(&range)? {
            self.spend(1)?;
            match (function, self.with(&[(first, key), (second, value)], test)) {
                (_, Err(Error::OutOfBudget)) => return Err(Error::OutOfBudget),
                ("all", Ok(Value::Bool(false))) => return Ok(Value::Bool(false)),
                ("exists", Ok(Value::Bool(true))) => return Ok(Value::Bool(true)),
                (_, Ok(Value::Bool(b))) => found += i32::from(b),
                (_, Ok(_)) => fault = Some(Error::no_such_overload()),
                (_, Err(error)) => fault = Some(error),
            }
        }
        match fault {
            Some(error) => Err(error),
            None => Ok(Value::Bool(match function {
                "all" => true,
                "exists" => false,
                _ => found == 1,
            })),
        }
    }

    fn transform(
        &mut self,
        target: &'a IdedExpr,
        function: &str,
        [first, second]: [&'a str; 2],
        filter: Option<&'a IdedExpr>,
        body: &'a IdedExpr,
    ) -> Result<Value> {
        let range = self.value(target)?;
        let (mut list, mut entries) = (Vec::new(), BTreeMap::new());
        for (key, value) in items(&range)? {
            self.spend(1)?;
            let bound = [(first, key.clone()), (second, value)];
            if let Some(filter) = filter {
                match self.with(&bound, filter)? {
                    Value::Bool(true) => {}
                    Value::Bool(false) => continue,
                    _ => return Err(Error::no_such_overload()),
                }
            }
            let value = self.with(&bound, body)?;
            match (function, value) {
                ("transformList", value) => list.push(value),
                ("transformMap", value) => {
                    let key = Key::of(&key).ok_or_else(Error::no_such_overload)?;
                    entries.insert(key, value);
                }
                (_, Value::Map(map)) => {
                    for (key, value) in &map.entries {
                        if entries.insert(key.clone(), value.clone()).is_some() {
                            return Err(Error::new(format!("insert failed: key {key} already exists")));
                        }
                    }
                }
                _ => return Err(Error::no_such_overload()),
            }
        }
        Ok(if function == "transformList" {
            Value::list(list)
        } else {
            Value::Map(Arc::new(Map { type_name: None, entries }))
        })
    }
}
