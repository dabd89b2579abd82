//! What an expression may cost at the most, told before it is evaluated, by how large what it looks at may be (KEP-2876;
//! the rules and figures are those of cel-go's `checker.Cost` with Kubernetes' own estimates of its libraries). On the
//! way types are inferred as far as declarations tell them.

use std::collections::BTreeMap;

use ::cel::IdedExpr;
use ::cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, LiteralValue, SelectExpr};

use super::eval::unescaped;
use super::{check, cost};

/// The share of a text's length that reading it costs, and that of a regular expression.
const TEXT: f64 = 0.1;
const REGEX: f64 = 0.25;
/// The longest regular expression of a named format.
const FORMAT_REGEX: f64 = 128.0;

/// The type of a value, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Type {
    /// Any; nothing is known.
    Dyn,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Duration,
    Timestamp,
    List(Box<Type>),
    /// The type of its values; keys are texts.
    Map(Box<Type>),
    Object,
    Optional(Box<Type>),
    /// What only its own functions look into: a quantity, an address.
    Opaque,
}

impl Type {
    /// Whether all its values are of one size.
    fn is_scalar(&self) -> bool {
        match self {
            Type::Bool | Type::Int | Type::Uint | Type::Double | Type::Duration | Type::Timestamp => true,
            Type::Optional(inner) => inner.is_scalar(),
            _ => false,
        }
    }
}

/// What a variable, or a part of it, is declared to be.
#[derive(Clone, Debug)]
pub struct Decl {
    pub shape: Shape,
    /// The most bytes of a text, items of a list, entries of a map; 0 of anything else.
    pub most: u64,
    /// The fewest bytes that it takes as JSON.
    pub least: u64,
}

#[derive(Clone, Debug)]
pub enum Shape {
    Simple(Type),
    List(Box<Decl>),
    Map(Box<Decl>),
    Object(BTreeMap<String, Decl>),
}

impl Decl {
    pub fn kind(&self) -> Type {
        match &self.shape {
            Shape::Simple(kind) => kind.clone(),
            Shape::List(inner) => Type::List(Box::new(inner.kind())),
            Shape::Map(inner) => Type::Map(Box::new(inner.kind())),
            Shape::Object(_) => Type::Object,
        }
    }
}

/// The keys of a map, whose size upstream does not count.
static KEY: Decl = Decl { shape: Shape::Simple(Type::String), most: 0, least: 2 };

/// From the least to the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    min: u64,
    max: u64,
}

const UNKNOWN: Range = Range { min: 0, max: u64::MAX };
const NOTHING: Range = Range { min: 0, max: 0 };
const ONE: Range = Range { min: 1, max: 1 };

impl Range {
    const fn exactly(n: u64) -> Self {
        Range { min: n, max: n }
    }

    fn plus(self, other: Range) -> Range {
        Range { min: self.min.saturating_add(other.min), max: self.max.saturating_add(other.max) }
    }

    fn times(self, other: Range) -> Range {
        Range { min: self.min.saturating_mul(other.min), max: self.max.saturating_mul(other.max) }
    }

    fn scaled(self, by: f64) -> Range {
        // Conversions of floats saturate.
        let of = |n: u64| (n as f64 * by).ceil() as u64;
        Range { min: of(self.min), max: of(self.max) }
    }

    fn or(self, other: Range) -> Range {
        Range { min: self.min.min(other.min), max: self.max.max(other.max) }
    }
}

/// The sizes of what is in a list or a map.
#[derive(Clone, Copy, Debug)]
struct Entries {
    key: Range,
    value: Range,
}

/// Where in the declarations a value is from.
#[derive(Clone, Copy, Debug)]
enum Place<'d> {
    /// It is made by the expression itself.
    Made,
    /// Where declarations say nothing.
    Undeclared,
    At(&'d Decl),
}

impl<'d> Place<'d> {
    fn decl(self) -> Option<&'d Decl> {
        match self {
            Place::At(decl) => Some(decl),
            _ => None,
        }
    }

    fn size(self) -> Option<Range> {
        self.decl().map(|decl| Range { min: 0, max: decl.most })
    }
}

/// What is known of the value of a part.
#[derive(Clone, Debug)]
struct Seen<'d> {
    kind: Type,
    place: Place<'d>,
    size: Option<Range>,
    entries: Option<Entries>,
}

impl Seen<'_> {
    fn made(kind: Type, size: Option<Range>) -> Self {
        let size = size.or_else(|| kind.is_scalar().then_some(ONE));
        Seen { kind, place: Place::Made, size, entries: None }
    }

    fn size(&self) -> Range {
        self.size.unwrap_or(UNKNOWN)
    }
}

/// What was found out of an expression.
pub struct Estimate {
    /// The most that it may cost.
    pub cost: u64,
    pub kind: Type,
    /// What it names that is not there, each with the number of the part.
    pub faults: Vec<(u64, String)>,
}

/// Estimates an expression over these variables, all of which are declared alike: `self` and what it was.
pub fn estimate(root: &IdedExpr, variables: &[(&str, bool)], decl: &Decl) -> Estimate {
    let of = |optional: bool| {
        if optional { Type::Optional(Box::new(decl.kind())) } else { decl.kind() }
    };
    let bound = variables.iter().map(|(name, optional)| {
        let seen = Seen { kind: of(*optional), place: Place::At(decl), size: None, entries: None };
        ((*name).to_owned(), seen)
    });
    let mut estimator = Estimator { root: decl, bound: bound.collect(), faults: Vec::new() };
    let (seen, cost) = estimator.visit(root);
    Estimate { cost: cost.max, kind: seen.kind, faults: estimator.faults }
}

struct Estimator<'d> {
    root: &'d Decl,
    bound: Vec<(String, Seen<'d>)>,
    faults: Vec<(u64, String)>,
}

type Visited<'d> = (Seen<'d>, Range);

impl<'d> Estimator<'d> {
    fn visit(&mut self, e: &IdedExpr) -> Visited<'d> {
        match &e.expr {
            Expr::Literal(literal) => (self::literal(literal), NOTHING),
            Expr::Ident(name) => (self.ident(name), ONE),
            Expr::Select(select) => self.select(e.id, select),
            Expr::Call(call) => self.call(e.id, call),
            Expr::List(list) => {
                let (mut sum, mut items) = (Range::exactly(cost::LIST), NOTHING);
                let mut kind = None;
                for (i, element) in list.elements.iter().enumerate() {
                    let (seen, cost) = self.visit(element);
                    sum = sum.plus(cost);
                    items = if i == 0 { seen.size() } else { items.or(seen.size()) };
                    kind = Some(kind.map_or(seen.kind.clone(), |k: Type| common(&k, &seen.kind)));
                }
                let size = Range::exactly(list.elements.len() as u64);
                let mut seen = Seen::made(Type::List(Box::new(kind.unwrap_or(Type::Dyn))), Some(size));
                seen.entries = Some(Entries { key: ONE, value: items });
                (seen, sum)
            }
            Expr::Map(map) => {
                let (mut sum, mut keys, mut values) = (Range::exactly(cost::MAP), NOTHING, NOTHING);
                let mut kind = None;
                for (i, entry) in map.entries.iter().enumerate() {
                    let EntryExpr::MapEntry(entry) = &entry.expr else { continue };
                    let (key, key_cost) = self.visit(&entry.key);
                    let (value, value_cost) = self.visit(&entry.value);
                    sum = sum.plus(key_cost).plus(value_cost);
                    keys = if i == 0 { key.size() } else { keys.or(key.size()) };
                    values = if i == 0 { value.size() } else { values.or(value.size()) };
                    kind = Some(kind.map_or(value.kind.clone(), |k: Type| common(&k, &value.kind)));
                }
                let size = Range::exactly(map.entries.len() as u64);
                let mut seen = Seen::made(Type::Map(Box::new(kind.unwrap_or(Type::Dyn))), Some(size));
                seen.entries = Some(Entries { key: keys, value: values });
                (seen, sum)
            }
            Expr::Struct(object) => {
                let mut sum = Range::exactly(cost::STRUCT);
                for entry in &object.entries {
                    if let EntryExpr::StructField(field) = &entry.expr {
                        sum = sum.plus(self.visit(&field.value).1);
                    }
                }
                (Seen::made(Type::Object, None), sum)
            }
            Expr::Comprehension(fold) => self.fold(fold),
            Expr::Unspecified => (Seen::made(Type::Dyn, None), NOTHING),
        }
    }

    fn ident(&self, name: &str) -> Seen<'d> {
        let Some((_, seen)) = self.bound.iter().rev().find(|(bound, _)| bound == name) else {
            return Seen::made(Type::Opaque, None);
        };
        let by_type = || seen.kind.is_scalar().then_some(ONE);
        Seen { size: seen.place.size().or_else(by_type).or(seen.size), ..seen.clone() }
    }

    fn select(&mut self, id: u64, select: &SelectExpr) -> Visited<'d> {
        let (of, cost) = self.visit(&select.operand);
        let (place, kind) = self.field(id, &of, &select.field);
        if select.test {
            return (Seen::made(Type::Bool, None), cost);
        }
        let inner = match &of.kind {
            Type::Optional(inner) => inner,
            kind => kind,
        };
        let through = matches!(inner, Type::Map(_) | Type::Object);
        let size = place.size().or_else(|| kind.is_scalar().then_some(ONE));
        let kind = if matches!(of.kind, Type::Optional(_)) { Type::Optional(Box::new(kind)) } else { kind };
        (Seen { kind, place, size, entries: None }, if through { cost.plus(ONE) } else { cost })
    }

    /// What a field of a value is declared to be.
    fn field(&mut self, id: u64, of: &Seen<'d>, name: &str) -> (Place<'d>, Type) {
        let kind = match &of.kind {
            Type::Optional(inner) => (**inner).clone(),
            kind => kind.clone(),
        };
        match (of.place.decl().map(|decl| &decl.shape), kind) {
            (Some(Shape::Object(fields)), Type::Object) => match fields.get(&unescaped(name)) {
                Some(decl) => (Place::At(decl), decl.kind()),
                None => {
                    self.faults.push((id, format!("undefined field '{name}'")));
                    (Place::Undeclared, Type::Dyn)
                }
            },
            (_, Type::Map(inner)) => (Place::Undeclared, *inner),
            _ => (Place::Undeclared, Type::Dyn),
        }
    }

    /// What runs over a list or a map sees of its keys and its values.
    fn each(&self, range: &Seen<'d>) -> (Seen<'d>, Seen<'d>) {
        let (keys, values) = (range.entries.map(|e| e.key), range.entries.map(|e| e.value));
        let seen = |kind: Type, place, size| Seen { kind, place, size, entries: None };
        // Upstream takes what an expression makes for the variable itself here.
        let within = |found: Option<&'d Decl>| match range.place {
            Place::Made => Place::At(self.root),
            _ => found.map_or(Place::Undeclared, Place::At),
        };
        let shape = range.place.decl().map(|decl| &decl.shape);
        match (&range.kind, shape) {
            (Type::List(inner), Some(Shape::List(decl))) => (
                seen(Type::Int, Place::Undeclared, keys),
                seen((**inner).clone(), within(Some(decl)), values),
            ),
            (Type::List(inner), _) => {
                (seen(Type::Int, Place::Undeclared, keys), seen((**inner).clone(), within(None), values))
            }
            (Type::Map(inner), Some(Shape::Map(decl))) => (
                seen(Type::String, within(Some(&KEY)), keys),
                seen((**inner).clone(), within(Some(decl)), values),
            ),
            (Type::Map(inner), _) => {
                (seen(Type::Dyn, within(None), keys), seen((**inner).clone(), within(None), values))
            }
            _ => (seen(Type::Dyn, Place::Undeclared, keys), seen(Type::Dyn, Place::Undeclared, values)),
        }
    }

    fn with(&mut self, names: Vec<(&str, Seen<'d>)>, e: &IdedExpr) -> Visited<'d> {
        let before = self.bound.len();
        self.bound.extend(names.into_iter().map(|(name, seen)| (name.to_owned(), seen)));
        let visited = self.visit(e);
        self.bound.truncate(before);
        visited
    }

    fn fold(&mut self, fold: &ComprehensionExpr) -> Visited<'d> {
        let (range, range_cost) = self.visit(&fold.iter_range);
        let (init, init_cost) = self.visit(&fold.accu_init);
        let (key, value) = self.each(&range);
        let mut names = vec![(fold.accu_var.as_str(), init.clone())];
        match &fold.iter_var2 {
            Some(second) => names.extend([(fold.iter_var.as_str(), key), (second.as_str(), value)]),
            None if matches!(range.kind, Type::List(_)) => names.push((fold.iter_var.as_str(), value)),
            None => names.push((fold.iter_var.as_str(), key)),
        }
        let (_, goes_on) = self.with(names.clone(), &fold.loop_cond);
        let (step, step_cost) = self.with(names, &fold.loop_step);
        let is_list = matches!(fold.accu_init.expr, Expr::List(_) | Expr::Map(_));
        let sum = if is_list { Seen { kind: step.kind.clone(), ..init.clone() } } else { init.clone() };
        let (result, result_cost) = self.with(vec![(fold.accu_var.as_str(), sum)], &fold.result);
        let loops = range.size().times(goes_on.plus(step_cost));
        let cost = range_cost.plus(init_cost).plus(result_cost).plus(loops);
        let seen = match &fold.accu_init.expr {
            Expr::Literal(_) => Seen::made(result.kind, init.size),
            _ if is_list => Seen { entries: step.entries, ..Seen::made(result.kind, Some(range.size())) },
            _ => Seen::made(result.kind, None),
        };
        (seen, cost)
    }

    fn call(&mut self, id: u64, call: &CallExpr) -> Visited<'d> {
        if let Some(target) = &call.target
            && let Some(visited) = self.binds(target, call)
        {
            return visited;
        }
        let name = call.func_name.as_str();
        let namespace = call.target.as_deref().and_then(check::namespace);
        let full = namespace.map(|space| format!("{space}.{name}")).filter(|name| check::is_function(name));
        let args: Vec<Visited<'d>> = call.args.iter().map(|arg| self.visit(arg)).collect();
        let (seen, costs): (Vec<Seen<'d>>, Vec<Range>) = args.into_iter().unzip();
        let all = costs.iter().fold(NOTHING, |sum, cost| sum.plus(*cost));
        if let Some(function) = full {
            let (seen, cost) = self::function(&function, None, &seen);
            return (seen, cost.plus(all));
        }
        if let Some(target) = &call.target {
            let (target, target_cost) = self.visit(target);
            let (seen, cost) = self::function(name, Some(&target), &seen);
            return (seen, cost.plus(all).plus(target_cost));
        }
        match (name, seen.as_slice()) {
            ("_&&_" | "_||_", [_, _]) => {
                let cost = Range { min: costs[0].min, max: costs[0].plus(costs[1]).max };
                (Seen::made(Type::Bool, None), cost)
            }
            ("_?_:_", [_, yes, no]) => {
                let entries = yes
                    .entries
                    .zip(no.entries)
                    .map(|(a, b)| Entries { key: a.key.or(b.key), value: a.value.or(b.value) });
                let kind = common(&yes.kind, &no.kind);
                let seen = Seen { entries, ..Seen::made(kind, Some(yes.size().or(no.size()))) };
                (seen, costs[0].plus(costs[1].or(costs[2])))
            }
            ("dyn", [one]) => (Seen { kind: Type::Dyn, ..one.clone() }, all.plus(ONE)),
            ("_[_]" | "_[?_]", [of, _]) => {
                let (_, value) = self.each(of);
                let place = if matches!(of.place, Place::Made) { Place::Undeclared } else { value.place };
                let by_type = || value.kind.is_scalar().then_some(ONE);
                let size = value.size.or_else(|| place.size()).or_else(by_type);
                let optional = name == "_[?_]" || matches!(of.kind, Type::Optional(_));
                let kind = if optional { Type::Optional(Box::new(value.kind)) } else { value.kind };
                (Seen { kind, place, size, entries: None }, all.plus(ONE))
            }
            ("_?._", [of, _]) => {
                let field = match call.args.get(1).map(|arg| &arg.expr) {
                    Some(Expr::Literal(LiteralValue::String(name))) => name.inner().to_owned(),
                    _ => String::new(),
                };
                let (_, kind) = self.field(id, of, &field);
                (Seen::made(Type::Optional(Box::new(kind)), None), all.plus(ONE))
            }
            _ => {
                let (seen, cost) = operator(name, &seen).unwrap_or_else(|| self::function(name, None, &seen));
                (seen, cost.plus(all))
            }
        }
    }

    /// A macro that the parser leaves as a call: its last arguments are evaluated with names bound.
    fn binds(&mut self, target: &IdedExpr, call: &CallExpr) -> Option<Visited<'d>> {
        let ident = |i: usize| match call.args.get(i).map(|a| &a.expr) {
            Some(Expr::Ident(name)) => Some(name.as_str()),
            _ => None,
        };
        let two = match (call.func_name.as_str(), call.args.len()) {
            ("optMap" | "optFlatMap" | "sortBy" | "existsOne", 2) => false,
            ("all" | "exists" | "existsOne" | "exists_one", 3)
            | ("transformList" | "transformMap" | "transformMapEntry", 3 | 4) => true,
            _ => return None,
        };
        let (first, second) = (ident(0)?, if two { ident(1) } else { None });
        let (of, of_cost) = self.visit(target);
        let is_optional = call.func_name.starts_with("opt");
        let (key, value) = self.each(&of);
        let names = match second {
            _ if is_optional => {
                let kind = match &of.kind {
                    Type::Optional(inner) => (**inner).clone(),
                    _ => Type::Dyn,
                };
                vec![(first, Seen { kind, ..of.clone() })]
            }
            Some(second) => vec![(first, key), (second, value)],
            None if matches!(of.kind, Type::List(_)) => vec![(first, value)],
            None => vec![(first, key)],
        };
        let mut sum = NOTHING;
        let mut last = Seen::made(Type::Dyn, None);
        for body in call.args.iter().skip(if two { 2 } else { 1 }) {
            let (seen, cost) = self.with(names.clone(), body);
            (last, sum) = (seen, sum.plus(cost));
        }
        // What the macro makes around the body: a condition and a step.
        let around = Range::exactly(3);
        Some(match call.func_name.as_str() {
            "optMap" => (
                Seen::made(Type::Optional(Box::new(last.kind)), last.size),
                of_cost.plus(of_cost).plus(sum).plus(around),
            ),
            "optFlatMap" => (last, of_cost.plus(of_cost).plus(sum).plus(around)),
            "sortBy" => (of.clone(), of_cost.plus(of.size().times(sum.plus(around)))),
            "transformList" => {
                let cost = of_cost.plus(of.size().times(sum.plus(around)));
                (Seen::made(Type::List(Box::new(last.kind)), Some(of.size())), cost)
            }
            "transformMap" | "transformMapEntry" => {
                let cost = of_cost.plus(of.size().times(sum.plus(around)));
                (Seen::made(Type::Map(Box::new(last.kind)), Some(of.size())), cost)
            }
            _ => (Seen::made(Type::Bool, None), of_cost.plus(of.size().times(sum.plus(around))).plus(ONE)),
        })
    }
}

fn literal(literal: &LiteralValue) -> Seen<'static> {
    let (kind, size) = match literal {
        LiteralValue::String(text) => (Type::String, text.inner().chars().count()),
        LiteralValue::Bytes(bytes) => (Type::Bytes, bytes.inner().len()),
        LiteralValue::Boolean(_) => (Type::Bool, 1),
        LiteralValue::Double(_) => (Type::Double, 1),
        LiteralValue::Int(_) => (Type::Int, 1),
        LiteralValue::UInt(_) => (Type::Uint, 1),
        LiteralValue::Null => (Type::Null, 1),
    };
    Seen::made(kind, Some(Range::exactly(size as u64)))
}

/// The type that two values have in common.
fn common(a: &Type, b: &Type) -> Type {
    match (a, b) {
        (a, b) if a == b => a.clone(),
        (Type::Null, other) | (other, Type::Null) => other.clone(),
        (Type::List(a), Type::List(b)) => Type::List(Box::new(common(a, b))),
        _ => Type::Dyn,
    }
}

/// What an operator costs beside its operands, and what it makes; `None` for what is no operator.
fn operator(name: &str, args: &[Seen<'_>]) -> Option<(Seen<'static>, Range)> {
    let smaller = |a: &Seen<'_>, b: &Seen<'_>| {
        let max = a.size().max.min(b.size().max);
        Range { min: u64::from(max > 0), max }.scaled(TEXT)
    };
    let read = |kind: &Type| matches!(kind, Type::String | Type::Bytes | Type::Dyn);
    Some(match (name, args) {
        ("_==_" | "_!=_", [a, b]) => {
            let cost = if a.kind == Type::Opaque && b.kind == Type::Opaque { ONE } else { smaller(a, b) };
            (Seen::made(Type::Bool, None), cost)
        }
        ("_<_" | "_<=_" | "_>_" | "_>=_", [a, b]) => {
            let cost = match (&a.kind, &b.kind) {
                (Type::Dyn, _) | (_, Type::Dyn) => smaller(a, b).or(ONE),
                (a_kind, b_kind) if read(a_kind) && read(b_kind) => smaller(a, b),
                _ => ONE,
            };
            (Seen::made(Type::Bool, None), cost)
        }
        ("_+_", [a, b]) => {
            let size = a.size().plus(b.size());
            match common(&a.kind, &b.kind) {
                kind @ (Type::String | Type::Bytes) => (Seen::made(kind, Some(size)), size.scaled(TEXT)),
                kind @ Type::List(_) => {
                    let entries = a
                        .entries
                        .zip(b.entries)
                        .map(|(a, b)| Entries { key: a.key.or(b.key), value: a.value.or(b.value) });
                    (Seen { entries, ..Seen::made(kind, Some(size)) }, ONE)
                }
                Type::Dyn if !a.kind.is_scalar() && !b.kind.is_scalar() => {
                    (Seen::made(Type::Dyn, Some(size)), size.scaled(TEXT).or(ONE))
                }
                kind => (Seen::made(kind, None), ONE),
            }
        }
        ("_-_" | "_*_" | "_/_" | "_%_", [a, b]) => (Seen::made(common(&a.kind, &b.kind), None), ONE),
        ("-_", [a]) => (Seen::made(a.kind.clone(), None), ONE),
        ("!_" | "@not_strictly_false", [_]) => (Seen::made(Type::Bool, None), ONE),
        ("@in", [_, of]) => {
            let cost = match &of.kind {
                Type::Map(_) => ONE,
                Type::List(_) => of.size(),
                _ => of.size().or(ONE),
            };
            (Seen::made(Type::Bool, None), cost)
        }
        _ => return None,
    })
}

/// What a function costs beside its arguments, and what it makes. `on`: what it is called on.
fn function(name: &str, on: Option<&Seen<'_>>, args: &[Seen<'_>]) -> (Seen<'static>, Range) {
    let first = args.first().map_or(UNKNOWN, Seen::size);
    let of = on.map_or(UNKNOWN, Seen::size);
    let element = || match on.map(|on| (&on.kind, on.place.decl().map(|decl| &decl.shape))) {
        Some((Type::List(kind), shape)) => {
            let size = match shape {
                Some(Shape::List(decl)) => Range { min: 0, max: decl.most },
                _ => UNKNOWN,
            };
            Some(((**kind).clone(), size))
        }
        _ => None,
    };
    let (cost, size) = match (name, on.is_some()) {
        ("check", _) => (Range::exactly(cost::AUTHORIZE), None),
        ("isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" | "includes", true) => {
            match element() {
                Some((Type::String | Type::Bytes, size)) => (of.times(ONE.plus(size.scaled(TEXT))), None),
                Some(_) => (of, None),
                None if name == "includes" => (of, None),
                None => (of.scaled(TEXT), None),
            }
        }
        ("distinct" | "sort" | "flatten" | "reverse" | "slice", true) => (ONE.plus(of), Some(of)),
        ("lists.range", _) => (ONE, None),
        ("sets.contains" | "sets.intersects" | "sets.equivalent", _) => {
            let second = args.get(1).map_or(UNKNOWN, Seen::size);
            let twice = if name == "sets.equivalent" { 2.0 } else { 1.0 };
            (first.times(second).scaled(twice).plus(ONE), None)
        }
        ("url" | "jsonpatch.escapeKey", false) => (first.scaled(TEXT), Some(first)),
        ("lowerAscii" | "upperAscii" | "substring" | "trim", true) => (of.scaled(TEXT), Some(of)),
        ("replace", true) => (of.scaled(2.0 * TEXT), Some(replaced(of, args))),
        ("split", true) => (of.scaled(2.0 * TEXT), Some(Range { min: 0, max: of.max })),
        ("join", true) => {
            let mut size = element().map_or(NOTHING, |(_, size)| of.times(size));
            if !args.is_empty() {
                let between = Range { min: of.min.saturating_sub(1), max: of.max.saturating_sub(1) };
                size = size.plus(first.times(between));
            }
            (size.scaled(TEXT), Some(size))
        }
        ("find" | "findAll", true) => {
            let text = of.plus(ONE).scaled(TEXT);
            (text.times(first.scaled(REGEX)), Some(Range { min: 0, max: of.max }))
        }
        ("matches", true) => (of.plus(ONE).scaled(TEXT).times(first.scaled(REGEX)), None),
        ("contains", true) => (of.scaled(TEXT).times(first.scaled(TEXT)), None),
        ("startsWith" | "endsWith", true) => (first.scaled(TEXT), None),
        ("format", true) => (of.scaled(TEXT), None),
        ("ip.isCanonical", _) => (first.scaled(2.0 * TEXT), None),
        ("cidr" | "isIP" | "isCIDR" | "ip" | "quantity" | "isQuantity" | "semver" | "isSemver", false) => {
            (first.scaled(TEXT), None)
        }
        ("containsIP" | "containsCIDR", true) => {
            let address = Range { min: 4, max: 16 };
            let mut cost = address.plus(address).scaled(TEXT);
            if name == "containsCIDR" {
                cost = cost.plus(address.scaled(TEXT)).plus(ONE);
            }
            let parses = args.first().is_some_and(|arg| matches!(arg.kind, Type::String | Type::Dyn));
            (if parses { cost.plus(first.scaled(TEXT)) } else { cost }, None)
        }
        ("validate", true) => (first.scaled(TEXT).scaled(FORMAT_REGEX * REGEX), None),
        ("bytes", false) => {
            (first.scaled(TEXT), Some(Range { min: first.min, max: first.max.saturating_mul(4) }))
        }
        ("string", false) if args.first().is_some_and(|arg| arg.kind == Type::Bytes) => {
            (first.scaled(TEXT), Some(Range { min: first.min / 4, max: first.max }))
        }
        ("strings.quote", _) => {
            let most = first.max.saturating_mul(2).saturating_add(2);
            (first.scaled(TEXT), Some(Range { min: first.min + 2, max: most }))
        }
        ("fieldSelector" | "labelSelector", true) => (first.scaled(TEXT), None),
        _ => (ONE, None),
    };
    (Seen::made(made(name, on, args), size), cost)
}

/// How long a text may be in which all occurrences of one are replaced by another.
fn replaced(of: Range, args: &[Seen<'_>]) -> Range {
    let [from, to, ..] = args else { return UNKNOWN };
    let (from, to) = (from.size(), to.size());
    let times = |length: u64, by: u64| (length as f64 / by as f64).ceil() as u64;
    let (most, kept) = match (from.min, to.max <= from.min) {
        (0, _) => (of.max.saturating_add(1), of.max),
        (_, true) => (0, of.max),
        (shortest, _) => (times(of.max, shortest), 0),
    };
    let (fewest, left) = match (from.max, from.max <= to.min) {
        (0, _) => (of.min.saturating_add(1), of.min),
        (_, true) => (0, of.min),
        (longest, _) => (times(of.min, longest), 0),
    };
    Range { min: fewest, max: most }.times(to).plus(Range { min: left, max: kept })
}

/// The type that a function makes.
fn made(name: &str, on: Option<&Seen<'_>>, args: &[Seen<'_>]) -> Type {
    let texts = || Type::List(Box::new(Type::String));
    let inner = |kind: &Type| match kind {
        Type::List(inner) | Type::Optional(inner) => (**inner).clone(),
        _ => Type::Dyn,
    };
    match (name, on) {
        (
            "string"
            | "charAt"
            | "lowerAscii"
            | "upperAscii"
            | "substring"
            | "trim"
            | "replace"
            | "join"
            | "format"
            | "find"
            | "strings.quote"
            | "jsonpatch.escapeKey"
            | "getScheme"
            | "getHost"
            | "getHostname"
            | "getPort"
            | "getEscapedPath"
            | "reason"
            | "error",
            _,
        ) => Type::String,
        ("split" | "findAll", _) => texts(),
        ("getQuery", _) => Type::Map(Box::new(texts())),
        (
            "size" | "int" | "indexOf" | "lastIndexOf" | "compareTo" | "sign" | "asInteger" | "major"
            | "minor" | "patch" | "family" | "prefixLength",
            _,
        ) => Type::Int,
        ("uint", _) => Type::Uint,
        ("double" | "asApproximateFloat", _) => Type::Double,
        ("bytes", _) => Type::Bytes,
        ("duration", _) => Type::Duration,
        ("timestamp", _) => Type::Timestamp,
        (name, _) if name.starts_with("is") || name.starts_with("contains") => Type::Bool,
        (
            "bool" | "matches" | "startsWith" | "endsWith" | "hasValue" | "includes" | "sets.contains"
            | "sets.intersects" | "sets.equivalent" | "ip.isCanonical" | "allowed" | "errored",
            _,
        ) => Type::Bool,
        (name, Some(on)) if name.starts_with("get") => {
            if matches!(on.kind, Type::Duration | Type::Timestamp) { Type::Int } else { Type::Dyn }
        }
        ("min" | "max" | "sum" | "value", Some(on)) => inner(&on.kind),
        ("orValue", Some(on)) => match (inner(&on.kind), args.first()) {
            (Type::Dyn, Some(other)) => other.kind.clone(),
            (kind, _) => kind,
        },
        ("sort" | "reverse" | "distinct" | "slice" | "or", Some(on)) => on.kind.clone(),
        ("flatten", Some(_)) => Type::List(Box::new(Type::Dyn)),
        ("lists.range", _) => Type::List(Box::new(Type::Int)),
        ("optional.of" | "optional.ofNonZeroValue", _) => {
            Type::Optional(Box::new(args.first().map_or(Type::Dyn, |arg| arg.kind.clone())))
        }
        ("optional.none", _) => Type::Optional(Box::new(Type::Dyn)),
        ("validate", _) => Type::Optional(Box::new(texts())),
        ("quantity" | "semver" | "ip" | "cidr" | "url" | "masked" | "add" | "sub", _) => Type::Opaque,
        _ => Type::Dyn,
    }
}
