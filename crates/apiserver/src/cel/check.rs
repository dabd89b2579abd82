//! What can be told of an expression before it is evaluated: that its names exist, and of some, their types.

use std::borrow::Cow;

use ::cel::IdedExpr;
use ::cel::common::ast::{EntryExpr, Expr, LiteralValue};

use super::library;

/// The variables that an expression may name.
#[derive(Clone, Debug, Default)]
pub struct Declared<'a> {
    pub variables: Cow<'a, [&'a str]>,
    /// The fields of `variables`, where there is such a variable.
    pub composed: Cow<'a, [String]>,
    /// Whether expressions may make objects by their types' names (`Object{…}`, `JSONPatch{…}`).
    pub makes_objects: bool,
}

impl<'a> Declared<'a> {
    pub fn new(variables: &'a [&'a str]) -> Self {
        Declared { variables: Cow::Borrowed(variables), ..Declared::default() }
    }
}

/// Words that are no names of variables.
const RESERVED: &[&str] = &[
    "as",
    "break",
    "const",
    "continue",
    "else",
    "false",
    "for",
    "function",
    "if",
    "import",
    "in",
    "let",
    "loop",
    "namespace",
    "null",
    "package",
    "return",
    "true",
    "var",
    "void",
    "while",
];

pub fn is_reserved(word: &str) -> bool {
    RESERVED.contains(&word)
}

/// The full name of a type that an expression may name.
pub fn type_called(name: &str) -> Option<&'static str> {
    Some(match name {
        "bool" => "bool",
        "bytes" => "bytes",
        "double" => "double",
        "int" => "int",
        "list" => "list",
        "map" => "map",
        "null_type" => "null_type",
        "optional_type" => "optional_type",
        "string" => "string",
        "type" => "type",
        "uint" => "uint",
        "google.protobuf.Duration" => "google.protobuf.Duration",
        "google.protobuf.Timestamp" => "google.protobuf.Timestamp",
        "kubernetes.Quantity" => "kubernetes.Quantity",
        "kubernetes.Semver" => "kubernetes.Semver",
        "kubernetes.URL" => "kubernetes.URL",
        "net.IP" => "net.IP",
        "net.CIDR" => "net.CIDR",
        _ => return None,
    })
}

/// The first part of a function's name that has two: `sets` of `sets.contains(…)`.
pub fn namespace(target: &IdedExpr) -> Option<&str> {
    match &target.expr {
        Expr::Ident(name) => Some(name.trim_start_matches('.')),
        _ => None,
    }
}

pub fn is_function(name: &str) -> bool {
    library::FUNCTIONS.contains(&name)
}

/// What is wrong with an expression, each with the number of the part that it is wrong with.
pub fn check(root: &IdedExpr, declared: &Declared<'_>) -> Vec<(u64, String)> {
    let mut checker = Checker { declared, bound: Vec::new(), faults: Vec::new() };
    checker.visit(root);
    checker.faults
}

struct Checker<'a, 'd, 'e> {
    declared: &'d Declared<'e>,
    bound: Vec<&'a str>,
    faults: Vec<(u64, String)>,
}

impl<'a> Checker<'a, '_, '_> {
    fn undeclared(&mut self, id: u64, name: &str) {
        self.faults.push((id, format!("undeclared reference to '{name}' (in container '')")));
    }

    fn knows(&self, name: &str) -> bool {
        let plain = name.trim_start_matches('.');
        self.bound.contains(&name) || self.declared.variables.contains(&plain) || type_called(plain).is_some()
    }

    fn with(&mut self, names: &[&'a str], expressions: &[&'a IdedExpr]) {
        let before = self.bound.len();
        self.bound.extend(names);
        for expression in expressions {
            self.visit(expression);
        }
        self.bound.truncate(before);
    }

    fn visit(&mut self, expression: &'a IdedExpr) {
        match &expression.expr {
            Expr::Ident(name) => {
                if !self.knows(name) {
                    self.undeclared(expression.id, name);
                }
            }
            Expr::Select(select) => {
                if let Expr::Ident(name) = &select.operand.expr
                    && name == "variables"
                    && self.declared.variables.contains(&"variables")
                    && !self.bound.contains(&"variables")
                    && !self.declared.composed.contains(&select.field)
                {
                    self.faults.push((expression.id, format!("undefined field '{}'", select.field)));
                    return;
                }
                if full_name(expression).is_some_and(|name| type_called(&name).is_some()) {
                    return;
                }
                self.visit(&select.operand);
            }
            Expr::Call(call) => self.call(expression, call),
            Expr::List(list) => list.elements.iter().for_each(|e| self.visit(e)),
            Expr::Map(map) => {
                for entry in &map.entries {
                    if let EntryExpr::MapEntry(entry) = &entry.expr {
                        self.visit(&entry.key);
                        self.visit(&entry.value);
                    }
                }
            }
            Expr::Struct(object) => {
                let name = object.type_name.trim_start_matches('.');
                let made = name == "JSONPatch" || name == "Object" || name.starts_with("Object.");
                if !(self.declared.makes_objects && made) {
                    self.undeclared(expression.id, name);
                }
                for entry in &object.entries {
                    if let EntryExpr::StructField(field) = &entry.expr {
                        self.visit(&field.value);
                    }
                }
            }
            Expr::Comprehension(fold) => {
                self.visit(&fold.iter_range);
                self.visit(&fold.accu_init);
                let mut names: Vec<&'a str> = vec![&fold.accu_var, &fold.iter_var];
                names.extend(fold.iter_var2.as_deref());
                self.with(&names, &[&fold.loop_cond, &fold.loop_step]);
                self.with(&[&fold.accu_var], &[&fold.result]);
            }
            Expr::Literal(_) | Expr::Unspecified => {}
        }
    }

    fn call(&mut self, expression: &'a IdedExpr, call: &'a ::cel::common::ast::CallExpr) {
        let name = call.func_name.as_str();
        let Some(target) = &call.target else {
            if !library::is_operator(name) && !is_function(name) {
                self.undeclared(expression.id, name);
            }
            call.args.iter().for_each(|arg| self.visit(arg));
            return;
        };
        let qualified = namespace(target).map(|space| format!("{space}.{name}"));
        if qualified.as_deref().is_some_and(is_function)
            && !namespace(target).is_some_and(|s| self.bound.contains(&s))
        {
            call.args.iter().for_each(|arg| self.visit(arg));
            return;
        }
        self.visit(target);
        let ident = |i: usize| match call.args.get(i).map(|a| &a.expr) {
            Some(Expr::Ident(name)) => Some(name.as_str()),
            _ => None,
        };
        let binds = match (name, call.args.len()) {
            ("optMap" | "optFlatMap" | "sortBy" | "existsOne", 2) => 1,
            ("all" | "exists" | "existsOne" | "exists_one", 3) => 2,
            ("transformList" | "transformMap" | "transformMapEntry", 3 | 4) => 2,
            _ => 0,
        };
        let names: Vec<&'a str> = (0..binds).filter_map(ident).collect();
        if binds > 0 && names.len() == binds {
            let rest: Vec<&'a IdedExpr> = call.args.iter().skip(binds).collect();
            self.with(&names, &rest);
            return;
        }
        if !library::METHODS.contains(&name) {
            self.undeclared(expression.id, name);
        }
        call.args.iter().for_each(|arg| self.visit(arg));
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

/// The type of an expression, where its form alone tells.
pub fn static_type(expression: &IdedExpr) -> Option<&'static str> {
    match &expression.expr {
        Expr::Literal(literal) => Some(match literal {
            LiteralValue::Boolean(_) => "bool",
            LiteralValue::Bytes(_) => "bytes",
            LiteralValue::Double(_) => "double",
            LiteralValue::Int(_) => "int",
            LiteralValue::Null => "null",
            LiteralValue::String(_) => "string",
            LiteralValue::UInt(_) => "uint",
        }),
        Expr::Select(select) if select.test => Some("bool"),
        Expr::List(_) => Some("list"),
        Expr::Map(_) => Some("map"),
        Expr::Struct(_) => Some("object"),
        Expr::Comprehension(fold) => static_type(&fold.accu_init),
        Expr::Call(call) => match (call.func_name.as_str(), call.args.as_slice()) {
            ("_==_" | "_!=_" | "_<_" | "_<=_" | "_>_" | "_>=_" | "_&&_" | "_||_" | "!_" | "@in", _) => {
                Some("bool")
            }
            ("startsWith" | "endsWith" | "contains" | "matches" | "isSorted" | "hasValue", _) => Some("bool"),
            ("size" | "int", _) => Some("int"),
            ("string" | "lowerAscii" | "upperAscii" | "trim" | "join" | "format", _) => Some("string"),
            ("_?:_" | "_?_:_", [_, yes, no]) => static_type(yes).filter(|t| static_type(no) == Some(t)),
            ("_+_" | "_-_" | "_*_" | "_/_", [a, b]) => static_type(a).or_else(|| static_type(b)),
            _ => None,
        },
        Expr::Ident(_) | Expr::Select(_) | Expr::Unspecified => None,
    }
}

/// Where a place in a text is, counted from one.
pub fn line_and_column(source: &str, at: usize) -> (isize, isize) {
    let before: String = source.chars().take(at).collect();
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    (line as isize, column as isize)
}
