//! What can be told of an expression before it is evaluated: that its names exist, and that its types fit. The rules and
//! the words are those of cel-go's checker, which unifies types as it goes.

use std::collections::HashMap;

use ::cel::IdedExpr;
use ::cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, LiteralValue, SelectExpr, StructExpr,
};

use super::declared::{Declared, named_type};
use super::library::signatures::{self, is_function};
use super::types::{Object, Type};
use super::unify::{Unifier, most_general};

/// What was found of an expression.
pub struct Checked {
    pub kind: Type,
    /// What is wrong, each with the number of the part that it is wrong with.
    pub faults: Vec<(u64, String)>,
    /// The types of all parts, by their numbers.
    pub types: HashMap<u64, Type>,
}

pub fn check(root: &IdedExpr, declared: &Declared) -> Checked {
    let mut checker = Checker {
        declared,
        bound: Vec::new(),
        unifier: Unifier::default(),
        types: HashMap::new(),
        faults: Vec::new(),
    };
    let kind = checker.visit(root);
    let Checker { unifier, types, faults, .. } = checker;
    let types = types.into_iter().map(|(id, kind)| (id, unifier.resolved(&kind, true))).collect();
    Checked { kind: unifier.resolved(&kind, true), faults, types }
}

struct Checker<'a, 'd> {
    declared: &'d Declared,
    /// What macros bind, the innermost last.
    bound: Vec<(&'a str, Type)>,
    unifier: Unifier,
    types: HashMap<u64, Type>,
    faults: Vec<(u64, String)>,
}

impl<'a> Checker<'a, '_> {
    fn fault(&mut self, id: u64, message: String) -> Type {
        self.faults.push((id, message));
        Type::Error
    }

    fn undeclared(&mut self, id: u64, name: &str) -> Type {
        self.fault(id, format!("undeclared reference to '{name}' (in container '')"))
    }

    fn mismatch(&mut self, id: u64, wanted: &Type, found: &Type) -> Type {
        self.fault(id, format!("expected type '{wanted}' but found '{found}'"))
    }

    /// A type with what is known of it by now.
    fn resolved(&self, kind: &Type) -> Type {
        self.unifier.resolved(kind, false)
    }

    fn is_bound(&self, name: &str) -> bool {
        self.bound.iter().any(|(bound, _)| *bound == name)
    }

    /// The type of what a name without a binding is: a variable, or a type.
    fn global(&self, name: &str) -> Option<Type> {
        let made = || self.declared.made(name).map(|made| Type::Type(Some(made.into())));
        self.declared.of(name).cloned().or_else(|| named_type(name)).or_else(made)
    }

    fn with(&mut self, names: Vec<(&'a str, Type)>, e: &'a IdedExpr) -> Type {
        let before = self.bound.len();
        self.bound.extend(names);
        let kind = self.visit(e);
        self.bound.truncate(before);
        kind
    }

    fn visit(&mut self, e: &'a IdedExpr) -> Type {
        let kind = match &e.expr {
            Expr::Literal(literal) => self::literal(literal),
            Expr::Ident(name) => self.ident(e.id, name),
            Expr::Select(select) => self.select(e, select),
            Expr::Call(call) => self.call(e.id, call),
            Expr::List(list) => {
                let mut of: Option<Type> = None;
                for (i, element) in list.elements.iter().enumerate() {
                    let kind = self.visit(element);
                    let kind = self.given(element.id, kind, list.optional_indices.contains(&i));
                    of = Some(self.joined(of, kind));
                }
                Type::list(of.unwrap_or_else(|| self.unifier.open()))
            }
            Expr::Map(map) => {
                let (mut keys, mut values): (Option<Type>, Option<Type>) = (None, None);
                for entry in &map.entries {
                    let EntryExpr::MapEntry(entry) = &entry.expr else { continue };
                    let key = self.visit(&entry.key);
                    keys = Some(self.joined(keys, key));
                    let value = self.visit(&entry.value);
                    let value = self.given(entry.value.id, value, entry.optional);
                    values = Some(self.joined(values, value));
                }
                let keys = keys.unwrap_or_else(|| self.unifier.open());
                let values = values.unwrap_or_else(|| self.unifier.open());
                Type::Map(keys.into(), values.into())
            }
            Expr::Struct(object) => self.object(e.id, object),
            Expr::Comprehension(fold) => self.fold(fold),
            Expr::Unspecified => Type::Error,
        };
        self.types.insert(e.id, kind.clone());
        kind
    }

    /// The type of what is put into a list, a map or an object, perhaps only if it is there.
    fn given(&mut self, id: u64, kind: Type, optional: bool) -> Type {
        match self.resolved(&kind) {
            Type::Optional(of) if optional => (*of).clone(),
            other if optional && !other.is_dyn() => {
                self.mismatch(id, &Type::optional(other.clone()), &other);
                kind
            }
            _ => kind,
        }
    }

    /// The type that what was before and what comes now have in common.
    fn joined(&mut self, before: Option<Type>, now: Type) -> Type {
        match before {
            None => now,
            Some(before) if self.unifier.fits(&before, &now) => most_general(&before, &now).clone(),
            Some(_) => Type::Dyn,
        }
    }

    fn ident(&mut self, id: u64, name: &'a str) -> Type {
        if let Some((_, kind)) = self.bound.iter().rev().find(|(bound, _)| *bound == name) {
            return kind.clone();
        }
        self.global(name.trim_start_matches('.')).unwrap_or_else(|| self.undeclared(id, name))
    }

    fn select(&mut self, e: &'a IdedExpr, select: &'a SelectExpr) -> Type {
        if !select.test
            && let Some(name) = full_name(e)
            && !name.split('.').next().is_some_and(|root| self.is_bound(root))
            && let Some(kind) = self.global(name.trim_start_matches('.'))
        {
            return kind;
        }
        let kind = self.field(e.id, &select.operand, &select.field, false);
        if select.test { Type::Bool } else { kind }
    }

    fn field(&mut self, id: u64, operand: &'a IdedExpr, name: &str, optional: bool) -> Type {
        let of = self.visit(operand);
        let of = self.resolved(&of);
        let (of, is_optional) = match of {
            Type::Optional(inner) => ((*inner).clone(), true),
            of => (of, false),
        };
        let kind = match of {
            Type::Map(_, of) => (*of).clone(),
            Type::Object(object) => self.declared_field(id, &object, name),
            Type::Variable(_) => {
                self.unifier.fits(&Type::Dyn, &of);
                Type::Dyn
            }
            of => {
                if !of.is_dyn_or_error() {
                    self.fault(id, format!("type '{of}' does not support field selection"));
                }
                Type::Dyn
            }
        };
        let kind = self.resolved(&kind);
        if is_optional || optional { Type::optional(kind) } else { kind }
    }

    fn declared_field(&mut self, id: u64, object: &Object, name: &str) -> Type {
        object.field(name).unwrap_or_else(|| self.fault(id, format!("undefined field '{name}'")))
    }

    fn object(&mut self, id: u64, made: &'a StructExpr) -> Type {
        let name = made.type_name.trim_start_matches('.');
        let kind = self.declared.made(name).unwrap_or_else(|| self.undeclared(id, name));
        for entry in &made.entries {
            let EntryExpr::StructField(field) = &entry.expr else { continue };
            let value = self.visit(&field.value);
            let Type::Object(object) = &kind else { continue };
            let wanted = self.declared_field(entry.id, object, &field.field);
            let value = self.given(field.value.id, value, field.optional);
            if !self.unifier.fits(&wanted, &value) {
                let (name, value) = (&field.field, self.resolved(&value));
                let message =
                    format!("expected type of field '{name}' is '{wanted}' but provided type is '{value}'");
                self.fault(entry.id, message);
            }
        }
        kind
    }

    fn fold(&mut self, fold: &'a ComprehensionExpr) -> Type {
        let range = self.visit(&fold.iter_range);
        let sum = self.visit(&fold.accu_init);
        let (key, value) = self.each(fold.iter_range.id, &range, fold.iter_var2.is_some());
        let mut names = vec![(fold.accu_var.as_str(), sum.clone()), (fold.iter_var.as_str(), key)];
        names.extend(fold.iter_var2.as_deref().map(|second| (second, value)));
        let goes_on = self.with(names.clone(), &fold.loop_cond);
        self.assert(fold.loop_cond.id, &Type::Bool, &goes_on);
        let step = self.with(names, &fold.loop_step);
        self.assert(fold.loop_step.id, &sum, &step);
        let result = self.with(vec![(fold.accu_var.as_str(), sum)], &fold.result);
        self.resolved(&result)
    }

    fn assert(&mut self, id: u64, wanted: &Type, found: &Type) {
        if !self.unifier.fits(wanted, found) {
            self.mismatch(id, wanted, found);
        }
    }

    /// What runs over a range by one variable, or by two.
    fn each(&mut self, id: u64, range: &Type, two: bool) -> (Type, Type) {
        match self.resolved(range) {
            Type::List(of) if two => (Type::Int, (*of).clone()),
            Type::List(of) => ((*of).clone(), Type::Dyn),
            Type::Map(key, of) => ((*key).clone(), (*of).clone()),
            open @ (Type::Dyn | Type::Any | Type::Error | Type::Variable(_)) => {
                self.unifier.fits(&Type::Dyn, &open);
                (Type::Dyn, Type::Dyn)
            }
            other => {
                let message = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.fault(id, message);
                (Type::Error, Type::Error)
            }
        }
    }

    fn call(&mut self, id: u64, call: &'a CallExpr) -> Type {
        let name = match call.func_name.as_str() {
            "__not_strictly_false__" => "@not_strictly_false",
            name => name,
        };
        if name == "_?._"
            && let [operand, field] = call.args.as_slice()
        {
            let Expr::Literal(LiteralValue::String(field)) = &field.expr else {
                return self.fault(field.id, "unsupported optional field selection".to_owned());
            };
            return self.field(id, operand, field.inner(), true);
        }
        if let Some(target) = &call.target
            && let Some(kind) = self.binds(id, target, call)
        {
            return kind;
        }
        let args: Vec<Type> = call.args.iter().map(|arg| self.visit(arg)).collect();
        if matches!(name, "_&&_" | "_||_") {
            return self.logical(call, &args);
        }
        let Some(target) = &call.target else {
            return self.apply(id, name, false, args);
        };
        if let Some(space) = namespace(target)
            && !self.is_bound(space)
        {
            let full = format!("{space}.{name}");
            if is_function(&full) && (full != "jsonpatch.escapeKey" || self.declared.makes_objects()) {
                return self.apply(id, &full, false, args);
            }
        }
        let mut all = vec![self.visit(target)];
        all.extend(args);
        self.apply(id, name, true, all)
    }

    fn logical(&mut self, call: &'a CallExpr, args: &[Type]) -> Type {
        let mut kind = Type::Bool;
        for (arg, found) in call.args.iter().zip(args) {
            if !self.unifier.fits(found, &Type::Bool) {
                kind = self.mismatch(arg.id, &Type::Bool, found);
            }
        }
        kind
    }

    /// What a function makes of these.
    fn apply(&mut self, id: u64, name: &str, is_method: bool, args: Vec<Type>) -> Type {
        let ways = signatures::of(name);
        if ways.is_empty() {
            return self.undeclared(id, name);
        }
        let mut made: Option<Type> = None;
        for way in ways.iter().filter(|way| way.is_method == is_method) {
            let Some(kind) = self.unifier.call(way, &args) else { continue };
            made = Some(match made {
                None => kind,
                Some(made) if made.is_dyn() || made == kind => made,
                Some(_) => Type::Dyn,
            });
        }
        if let Some(made) = made {
            return made;
        }
        let args: Vec<String> = args.iter().map(|arg| self.unifier.resolved(arg, true).to_string()).collect();
        let (target, args) = args.split_at(usize::from(is_method));
        let target = target.first().map(|target| format!("{target}.")).unwrap_or_default();
        let message =
            format!("found no matching overload for '{name}' applied to '{target}({})'", args.join(", "));
        self.fault(id, message)
    }

    /// A macro that the parser leaves as a call: its last arguments are evaluated with names bound. Checked as what
    /// cel-go makes of it.
    fn binds(&mut self, id: u64, target: &'a IdedExpr, call: &'a CallExpr) -> Option<Type> {
        let name = call.func_name.as_str();
        let two = match (name, call.args.len()) {
            ("optMap" | "optFlatMap" | "sortBy" | "existsOne", 2) => false,
            ("all" | "exists" | "existsOne" | "exists_one", 3)
            | ("transformList" | "transformMap" | "transformMapEntry", 3 | 4) => true,
            _ => return None,
        };
        let ident = |i: usize| match call.args.get(i).map(|arg| &arg.expr) {
            Some(Expr::Ident(name)) => Some(name.as_str()),
            _ => None,
        };
        let (first, second) = (ident(0)?, if two { Some(ident(1)?) } else { None });
        let (body, conditions) = call.args[if two { 2 } else { 1 }..].split_last()?;
        let of = self.visit(target);
        if name.starts_with("opt") {
            self.apply(id, "hasValue", true, vec![of.clone()]);
            let inner = self.apply(id, "value", true, vec![of]);
            let kind = self.with(vec![(first, inner)], body);
            let some = if name == "optMap" { Type::optional(kind) } else { kind };
            let none = Type::optional(self.unifier.open());
            return Some(self.apply(id, "_?_:_", false, vec![Type::Bool, some, none]));
        }
        let (key, value) = self.each(target.id, &of, two);
        let mut names = vec![(first, key.clone())];
        names.extend(second.map(|second| (second, value)));
        let conditions: Vec<Type> = conditions.iter().map(|e| self.with(names.clone(), e)).collect();
        let kind = self.with(names, body);
        let made = match name {
            "all" | "exists" => {
                if !self.unifier.fits(&kind, &Type::Bool) {
                    self.mismatch(body.id, &Type::Bool, &kind);
                }
                return Some(Type::Bool);
            }
            "existsOne" | "exists_one" => {
                self.apply(id, "_?_:_", false, vec![kind, Type::Int, Type::Int]);
                return Some(Type::Bool);
            }
            "sortBy" => {
                let keys = Type::list(kind);
                return Some(self.apply(id, "@sortByAssociatedKeys", true, vec![of, keys]));
            }
            "transformList" => Type::list(kind),
            _ => {
                let (keys, values) = (self.unifier.open(), self.unifier.open());
                let mut args = vec![Type::Map(keys.into(), values.into())];
                if name == "transformMap" {
                    args.push(key);
                }
                args.push(kind);
                self.apply(id, "cel.@mapInsert", false, args)
            }
        };
        for condition in conditions {
            self.apply(id, "_?_:_", false, vec![condition, made.clone(), made.clone()]);
        }
        Some(self.resolved(&made))
    }
}

fn literal(literal: &LiteralValue) -> Type {
    match literal {
        LiteralValue::Boolean(_) => Type::Bool,
        LiteralValue::Bytes(_) => Type::Bytes,
        LiteralValue::Double(_) => Type::Double,
        LiteralValue::Int(_) => Type::Int,
        LiteralValue::Null => Type::Null,
        LiteralValue::String(_) => Type::String,
        LiteralValue::UInt(_) => Type::Uint,
    }
}

fn full_name(expression: &IdedExpr) -> Option<String> {
    match &expression.expr {
        Expr::Ident(name) => Some(name.clone()),
        Expr::Select(select) if !select.test => {
            Some(format!("{}.{}", full_name(&select.operand)?, select.field))
        }
        _ => None,
    }
}

/// The first part of a function's name that has two: `sets` of `sets.contains(…)`.
pub fn namespace(target: &IdedExpr) -> Option<&str> {
    match &target.expr {
        Expr::Ident(name) => Some(name.trim_start_matches('.')),
        _ => None,
    }
}

/// Whether an expression names a variable, wherever in it.
pub fn names(expression: &IdedExpr, variable: &str) -> bool {
    match &expression.expr {
        Expr::Ident(name) => name == variable,
        Expr::Select(select) => names(&select.operand, variable),
        Expr::Call(call) => {
            call.target.as_ref().is_some_and(|t| names(t, variable))
                || call.args.iter().any(|a| names(a, variable))
        }
        Expr::List(list) => list.elements.iter().any(|e| names(e, variable)),
        Expr::Map(map) => map.entries.iter().any(|entry| match &entry.expr {
            EntryExpr::MapEntry(e) => names(&e.key, variable) || names(&e.value, variable),
            EntryExpr::StructField(f) => names(&f.value, variable),
        }),
        Expr::Struct(object) => object.entries.iter().any(|entry| match &entry.expr {
            EntryExpr::MapEntry(e) => names(&e.key, variable) || names(&e.value, variable),
            EntryExpr::StructField(f) => names(&f.value, variable),
        }),
        Expr::Comprehension(fold) => {
            [&fold.iter_range, &fold.accu_init, &fold.loop_cond, &fold.loop_step, &fold.result]
                .iter()
                .any(|e| names(e, variable))
        }
        Expr::Literal(_) | Expr::Unspecified => false,
    }
}
