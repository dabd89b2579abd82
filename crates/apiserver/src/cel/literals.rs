//! What is wrong with literals although their types fit: cel-go's validators of durations, times, patterns and what is put
//! into them, and of lists and maps whose parts are of several types.

use std::collections::HashMap;

use ::cel::IdedExpr;
use ::cel::common::ast::{CallExpr, EntryExpr, Expr, LiteralValue};

use super::types::Type;
use super::value::Value;
use super::{formatting, library};

/// The faults, each with the number of the part; `types` are those of the parts.
pub fn check(root: &IdedExpr, types: &HashMap<u64, Type>) -> Vec<(u64, String)> {
    let mut literals = Literals { types, in_format: false, faults: Vec::new() };
    literals.visit(root);
    literals.faults
}

struct Literals<'t> {
    types: &'t HashMap<u64, Type>,
    /// Within what is formatted, where lists are of all sorts of things.
    in_format: bool,
    faults: Vec<(u64, String)>,
}

impl Literals<'_> {
    fn visit(&mut self, e: &IdedExpr) {
        match &e.expr {
            Expr::Select(select) => self.visit(&select.operand),
            Expr::Call(call) => {
                self.call(call);
                self.format(e.id, call);
                let outside = self.in_format;
                self.in_format |= call.func_name == "format";
                call.target.iter().for_each(|target| self.visit(target));
                call.args.iter().for_each(|arg| self.visit(arg));
                self.in_format = outside;
            }
            Expr::List(list) => {
                let parts = list.elements.iter().enumerate();
                self.alike(parts.map(|(i, e)| (e.id, list.optional_indices.contains(&i))), true);
                list.elements.iter().for_each(|e| self.visit(e));
            }
            Expr::Map(map) => {
                let entries = || {
                    map.entries.iter().filter_map(|entry| match &entry.expr {
                        EntryExpr::MapEntry(entry) => Some(entry),
                        EntryExpr::StructField(_) => None,
                    })
                };
                self.alike(entries().map(|entry| (entry.key.id, false)), false);
                self.alike(entries().map(|entry| (entry.value.id, entry.optional)), false);
                for entry in entries() {
                    self.visit(&entry.key);
                    self.visit(&entry.value);
                }
            }
            Expr::Struct(object) => {
                for entry in &object.entries {
                    if let EntryExpr::StructField(field) = &entry.expr {
                        self.visit(&field.value);
                    }
                }
            }
            Expr::Comprehension(fold) => {
                for e in [&fold.iter_range, &fold.accu_init, &fold.loop_cond, &fold.loop_step, &fold.result] {
                    self.visit(e);
                }
            }
            Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => {}
        }
    }

    /// Whether parts, some of them optional, are of the type of the first; `once` tells of the first only that is not.
    fn alike(&mut self, parts: impl Iterator<Item = (u64, bool)>, once: bool) {
        if self.in_format {
            return;
        }
        let types = self.types;
        let typed = parts.filter_map(|(id, optional)| match (optional, types.get(&id)?) {
            (true, Type::Optional(of)) => Some((id, of.as_ref())),
            (_, kind) => Some((id, kind)),
        });
        let mut first = None;
        for (id, kind) in typed {
            let first = *first.get_or_insert(kind);
            if kind != first {
                self.faults.push((id, format!("expected type '{first}' but found '{kind}'")));
                if once {
                    return;
                }
            }
        }
    }

    /// Whether values fit the pattern that they are put into, where all is written out.
    fn format(&mut self, id: u64, call: &CallExpr) {
        let (Some(target), [values]) = (&call.target, call.args.as_slice()) else { return };
        if call.func_name != "format" {
            return;
        }
        if let (Expr::Literal(LiteralValue::String(pattern)), Expr::List(list)) = (&target.expr, &values.expr)
            && let Some((at, why)) = formatting::fault(pattern.inner(), &list.elements, self.types)
        {
            self.faults.push((at.unwrap_or(id), why));
        }
    }

    fn call(&mut self, call: &CallExpr) {
        let name = call.func_name.as_str();
        let Some(arg) = call.args.first() else { return };
        let Expr::Literal(literal) = &arg.expr else { return };
        let given = match literal {
            LiteralValue::String(text) => Value::string(text.inner()),
            _ => return,
        };
        let made = match name {
            "duration" | "timestamp" => library::call(name, &[given]),
            "matches" => library::call(name, &[Value::string(""), given]),
            _ => return,
        };
        if made.is_err() {
            self.faults.push((arg.id, format!("invalid {name} argument")));
        }
    }
}
