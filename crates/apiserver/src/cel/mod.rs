//! CEL, the Common Expression Language, as Kubernetes speaks it: rules of custom resources, admission policies, match
//! conditions, mappings of claims.
//!
//! The `cel` crate reads expressions; they are evaluated here, so that every step is charged to a budget and an
//! expression that would run too long is stopped, whatever it is made of. Costs follow upstream's runtime costs
//! (KEP-2876). Expressions do no I/O and see nothing but the variables that they are given.

mod check;
mod cost;
mod declared;
mod depth;
pub mod estimate;
mod eval;
mod fold;
mod formatting;
mod library;
mod list;
mod literals;
pub(crate) mod metrics;
mod operators;
mod position;
pub mod types;
mod unify;
mod value;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use ::cel::IdedExpr;
use ::cel::parser::Parser;

use library::regex::Patterns;

pub use declared::{Declared, is_reserved};
pub use library::authz::{Authz, Check, Question};
pub use library::signatures;
pub use list::List;
pub use types::Type;
pub use value::{Key, Map, Opaque, Value};

/// What one evaluation may cost, as upstream.
pub const PER_CALL: u64 = 1_000_000;
/// What all expressions of one policy, or of one custom resource, may cost together.
pub const PER_POLICY: u64 = 10_000_000;
/// What all match conditions of one webhook or policy may cost together.
pub const PER_MATCH_CONDITIONS: u64 = 2_500_000;

/// The longest expression that is read, in bytes; far above what any cost limit lets through.
const LONGEST: usize = 256 * 1024;

/// Up to these depths an expression is read, and evaluated, on any thread's stack.
const SHALLOW_TO_READ: usize = 10;
const SHALLOW_TO_EVALUATE: usize = 60;
/// What each level of a deeper one may take of the stack, in bytes; without optimization it is most.
const ROOM: usize = 128 * 1024;

/// Why an expression has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It may not cost more. Nothing makes up for it: `true || …` does not.
    #[error("operation cancelled: actual cost limit exceeded")]
    OutOfBudget,
    #[error("{0}")]
    Failed(String),
}

impl Error {
    pub fn new(why: impl Into<String>) -> Self {
        Error::Failed(why.into())
    }

    pub fn no_such_key(key: impl fmt::Display) -> Self {
        Error::Failed(format!("no such key: {key}"))
    }

    pub fn no_such_overload() -> Self {
        Error::Failed("no such overload".to_owned())
    }
}

pub type Result<T> = std::result::Result<T, Error>;

/// Why a text is no expression, in the words and with the pointer that upstream shows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CompileError(String);

/// What an expression sees.
pub trait Variables {
    /// The value of a variable; `None` if there is no such variable.
    fn get(&self, name: &str) -> Option<Value>;

    /// A field of a variable whose fields are evaluated when they are asked for, charged to `budget`; `None` if the
    /// variable has no such field, or its fields are not of this sort.
    fn lazy(&self, _name: &str, _field: &str, _budget: &mut Budget) -> Option<Result<Value>> {
        None
    }
}

/// Plain variables.
impl Variables for [(&str, Value)] {
    fn get(&self, name: &str) -> Option<Value> {
        self.iter().find(|(n, _)| *n == name).map(|(_, value)| value.clone())
    }
}

/// What may still be spent.
#[derive(Clone, Copy, Debug)]
pub struct Budget(u64);

impl Budget {
    pub fn new(cost: u64) -> Self {
        Budget(cost)
    }

    pub fn left(&self) -> u64 {
        self.0
    }

    /// # Errors
    /// It is more than what is left; then nothing is left.
    pub fn spend(&mut self, cost: u64) -> Result<()> {
        let left = self.0.checked_sub(cost);
        self.0 = left.unwrap_or(0);
        left.map(drop).ok_or(Error::OutOfBudget)
    }
}

/// Runs what goes down an expression as deep as this one with room enough on the stack: those that people write find it
/// on every thread, the few that are deeper get a stack of their own.
fn with_room<T>(depth: usize, shallow: usize, work: impl FnOnce() -> T) -> T {
    if depth <= shallow { work() } else { stacker::grow(ROOM * depth, work) }
}

/// An expression that has been read and checked.
#[derive(Clone, Debug)]
pub struct Program {
    source: Arc<str>,
    root: Arc<IdedExpr>,
    patterns: Arc<Patterns>,
    kind: Type,
    /// How deep it is nested.
    depth: usize,
}

impl Program {
    /// Reads an expression that may name these variables.
    ///
    /// # Errors
    /// It cannot be read, names a variable, a field or a function that does not exist, or its types do not fit.
    pub fn compile(source: &str, declared: &Declared) -> std::result::Result<Self, CompileError> {
        let since = Instant::now();
        let compiled = Self::read(source, declared);
        metrics::COMPILED.observe(since.elapsed());
        compiled
    }

    /// What the expression may cost at the most over variables that are all declared to be the same, some of them
    /// perhaps missing.
    pub fn estimate(&self, variables: &[(&str, bool)], decl: &estimate::Decl) -> u64 {
        with_room(self.depth, SHALLOW_TO_READ, || estimate::estimate(&self.root, variables, decl))
    }

    fn read(source: &str, declared: &Declared) -> std::result::Result<Self, CompileError> {
        if source.len() > LONGEST {
            return Err(CompileError(format!(
                "expression code point size exceeds limit: size: {}, limit {LONGEST}",
                source.len()
            )));
        }
        let depth = depth::of(source).ok_or_else(|| {
            let why = format!("expression recursion limit exceeded: {}", depth::DEEPEST);
            CompileError(position::shown(source, (-1, 0), &why))
        })?;
        with_room(depth, SHALLOW_TO_READ, || Self::read_bounded(source, declared, depth))
    }

    fn read_bounded(
        source: &str,
        declared: &Declared,
        depth: usize,
    ) -> std::result::Result<Self, CompileError> {
        let parser = Parser::new().enable_optional_syntax(true).enable_ident_escape_syntax(true);
        let (root, info) = parser.parse_with_source_info(source).map_err(|errors| {
            let all: Vec<String> =
                errors.errors.iter().map(|e| position::shown(source, e.pos, &e.msg)).collect();
            CompileError(all.join("\n"))
        })?;
        let checked = check::check(&root, declared);
        let mut faults = checked.faults;
        if faults.is_empty() {
            faults = literals::check(&root, &checked.types);
        }
        if !faults.is_empty() {
            let start = |id: u64| info.offset_for(id).map_or(0, |(start, _)| start as usize);
            return Err(CompileError(position::all(source, &faults, start)));
        }
        let patterns = Arc::new(Patterns::of(&root));
        Ok(Program { source: source.into(), root: Arc::new(root), patterns, kind: checked.kind, depth })
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    pub fn expression(&self) -> &IdedExpr {
        &self.root
    }

    /// The type that the expression has, as far as the types of variables tell it.
    pub fn kind(&self) -> &Type {
        &self.kind
    }

    /// Whether the expression names this variable.
    pub fn names(&self, variable: &str) -> bool {
        check::names(&self.root, variable)
    }

    /// The value of the expression, charged to `budget`.
    ///
    /// # Errors
    /// It has none, or the budget, or what one evaluation may cost, is used up.
    pub fn evaluate(&self, variables: &(impl Variables + ?Sized), budget: &mut Budget) -> Result<Value> {
        let mut own = Budget::new(PER_CALL.min(budget.left()));
        let before = own.left();
        let result = with_room(self.depth, SHALLOW_TO_EVALUATE, || {
            eval::Evaluation::new(&Erased(variables), &self.patterns, &mut own).value(&self.root)
        });
        budget.spend(before - own.left())?;
        result
    }
}

/// Any variables as a trait object.
struct Erased<'a, V: ?Sized>(&'a V);

impl<V: Variables + ?Sized> Variables for Erased<'_, V> {
    fn get(&self, name: &str) -> Option<Value> {
        self.0.get(name)
    }

    fn lazy(&self, name: &str, field: &str, budget: &mut Budget) -> Option<Result<Value>> {
        self.0.lazy(name, field, budget)
    }
}

#[cfg(test)]
mod check_tests;
#[cfg(test)]
mod tests;
