//! What an expression may cost at the most, told before it is evaluated, by how large what it looks at may be (KEP-2876;
//! the rules and figures are those of cel-go's `checker.Cost` with Kubernetes' own estimates of its libraries). On the
//! way types are inferred as far as declarations tell them.

mod functions;

use std::collections::BTreeMap;

use ::cel::IdedExpr;
use ::cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, LiteralValue, SelectExpr};

use super::eval::unescaped;
use super::library::signatures;
use super::types::Type;
use super::{check, cost};
use functions::{common, function, operator};

/// The type of what only its own functions look into: a quantity, an address. What it costs does not depend on which.
const OPAQUE: Type = Type::Opaque("");

/// The type of what has fields, which are looked up in its declaration.
fn with_fields() -> Type {
    Type::anything("")
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
            Shape::List(inner) => Type::list(inner.kind()),
            Shape::Map(inner) => Type::map(inner.kind()),
            Shape::Object(_) => with_fields(),
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

/// The most that an expression may cost over these variables, all of which are declared alike: `self` and what it was.
pub fn estimate(root: &IdedExpr, variables: &[(&str, bool)], decl: &Decl) -> u64 {
    let of = |optional: bool| {
        if optional { Type::optional(decl.kind()) } else { decl.kind() }
    };
    let bound = variables.iter().map(|(name, optional)| {
        let seen = Seen { kind: of(*optional), place: Place::At(decl), size: None, entries: None };
        ((*name).to_owned(), seen)
    });
    let mut estimator = Estimator { root: decl, bound: bound.collect() };
    estimator.visit(root).1.max
}

struct Estimator<'d> {
    root: &'d Decl,
    bound: Vec<(String, Seen<'d>)>,
}

type Visited<'d> = (Seen<'d>, Range);

impl<'d> Estimator<'d> {
    fn visit(&mut self, e: &IdedExpr) -> Visited<'d> {
        match &e.expr {
            Expr::Literal(literal) => (self::literal(literal), NOTHING),
            Expr::Ident(name) => (self.ident(name), ONE),
            Expr::Select(select) => self.select(select),
            Expr::Call(call) => self.call(call),
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
                let mut seen = Seen::made(Type::list(kind.unwrap_or(Type::Dyn)), Some(size));
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
                let mut seen = Seen::made(Type::map(kind.unwrap_or(Type::Dyn)), Some(size));
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
                (Seen::made(with_fields(), None), sum)
            }
            Expr::Comprehension(fold) => self.fold(fold),
            Expr::Unspecified => (Seen::made(Type::Dyn, None), NOTHING),
        }
    }

    fn ident(&self, name: &str) -> Seen<'d> {
        let Some((_, seen)) = self.bound.iter().rev().find(|(bound, _)| bound == name) else {
            return Seen::made(OPAQUE, None);
        };
        let by_type = || seen.kind.is_scalar().then_some(ONE);
        Seen { size: seen.place.size().or_else(by_type).or(seen.size), ..seen.clone() }
    }

    fn select(&mut self, select: &SelectExpr) -> Visited<'d> {
        let (of, cost) = self.visit(&select.operand);
        let (place, kind) = Self::field(&of, &select.field);
        if select.test {
            return (Seen::made(Type::Bool, None), cost);
        }
        let inner = match &of.kind {
            Type::Optional(inner) => inner,
            kind => kind,
        };
        let through = matches!(inner, Type::Map(..) | Type::Object(_));
        let size = place.size().or_else(|| kind.is_scalar().then_some(ONE));
        let kind = if matches!(of.kind, Type::Optional(_)) { Type::optional(kind) } else { kind };
        (Seen { kind, place, size, entries: None }, if through { cost.plus(ONE) } else { cost })
    }

    /// What a field of a value is declared to be.
    fn field(of: &Seen<'d>, name: &str) -> (Place<'d>, Type) {
        let kind = match &of.kind {
            Type::Optional(inner) => (**inner).clone(),
            kind => kind.clone(),
        };
        match (of.place.decl().map(|decl| &decl.shape), kind) {
            (Some(Shape::Object(fields)), Type::Object(_)) => {
                let decl = fields.get(&unescaped(name));
                decl.map_or((Place::Undeclared, Type::Dyn), |decl| (Place::At(decl), decl.kind()))
            }
            (_, Type::Map(_, inner)) => (Place::Undeclared, (*inner).clone()),
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
            (Type::Map(_, inner), Some(Shape::Map(decl))) => (
                seen(Type::String, within(Some(&KEY)), keys),
                seen((**inner).clone(), within(Some(decl)), values),
            ),
            (Type::Map(_, inner), _) => {
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

    fn call(&mut self, call: &CallExpr) -> Visited<'d> {
        if let Some(target) = &call.target
            && let Some(visited) = self.binds(target, call)
        {
            return visited;
        }
        let name = call.func_name.as_str();
        let namespace = call.target.as_deref().and_then(check::namespace);
        let full =
            namespace.map(|space| format!("{space}.{name}")).filter(|name| signatures::is_function(name));
        let args: Vec<Visited<'d>> = call.args.iter().map(|arg| self.visit(arg)).collect();
        let (seen, costs): (Vec<Seen<'d>>, Vec<Range>) = args.into_iter().unzip();
        let all = costs.iter().fold(NOTHING, |sum, cost| sum.plus(*cost));
        if let Some(full) = full {
            let (seen, cost) = function(&full, None, &seen);
            return (seen, cost.plus(all));
        }
        if let Some(target) = &call.target {
            let (target, target_cost) = self.visit(target);
            let (seen, cost) = function(name, Some(&target), &seen);
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
                let kind = if optional { Type::optional(value.kind) } else { value.kind };
                (Seen { kind, place, size, entries: None }, all.plus(ONE))
            }
            ("_?._", [of, _]) => {
                let field = match call.args.get(1).map(|arg| &arg.expr) {
                    Some(Expr::Literal(LiteralValue::String(name))) => name.inner().to_owned(),
                    _ => String::new(),
                };
                let (_, kind) = Self::field(of, &field);
                (Seen::made(Type::optional(kind), None), all.plus(ONE))
            }
            _ => {
                let (seen, cost) = operator(name, &seen).unwrap_or_else(|| function(name, None, &seen));
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
                Seen::made(Type::optional(last.kind), last.size),
                of_cost.plus(of_cost).plus(sum).plus(around),
            ),
            "optFlatMap" => (last, of_cost.plus(of_cost).plus(sum).plus(around)),
            "sortBy" => (of.clone(), of_cost.plus(of.size().times(sum.plus(around)))),
            "transformList" => {
                let cost = of_cost.plus(of.size().times(sum.plus(around)));
                (Seen::made(Type::list(last.kind), Some(of.size())), cost)
            }
            "transformMap" | "transformMapEntry" => {
                let cost = of_cost.plus(of.size().times(sum.plus(around)));
                (Seen::made(Type::map(last.kind), Some(of.size())), cost)
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
