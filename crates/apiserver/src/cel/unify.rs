//! Unification: which types fit into which, while some are still to be found out. What cel-go's checker calls
//! assignability, with its exceptions for `null` and for what is dynamic.

use super::library::signatures::Signature;
use super::types::Type;

/// What has been found out of the types that were open.
#[derive(Default)]
pub struct Unifier {
    known: Vec<Option<Type>>,
    /// What was changed last, to take it back.
    trail: Vec<(usize, Option<Type>)>,
}

impl Unifier {
    /// A type that is still to be found out.
    pub fn open(&mut self) -> Type {
        self.known.push(None);
        Type::Variable(self.known.len() - 1)
    }

    /// Whether a value of type `from` may stand where one of type `to` is asked for. If it may not, nothing is found out.
    pub fn fits(&mut self, from: &Type, to: &Type) -> bool {
        let mark = self.trail.len();
        let fits = self.assignable(from, to);
        self.settle(mark, fits);
        fits
    }

    /// Whether values may be what a function takes; what it makes of them then.
    pub fn call(&mut self, signature: &Signature, args: &[Type]) -> Option<Type> {
        if signature.takes.len() != args.len() {
            return None;
        }
        let base = self.known.len();
        self.known.resize(base + signature.parameters, None);
        let mark = self.trail.len();
        let fits = signature.takes.iter().zip(args).all(|(takes, arg)| {
            let takes = instance(takes, base);
            self.assignable(arg, &takes)
        });
        self.settle(mark, fits);
        fits.then(|| self.resolved(&instance(&signature.makes, base), false))
    }

    fn settle(&mut self, mark: usize, keep: bool) {
        for (variable, before) in self.trail.drain(mark..).rev() {
            if !keep {
                self.known[variable] = before;
            }
        }
    }

    fn set(&mut self, variable: usize, kind: Type) {
        let before = self.known[variable].replace(kind);
        self.trail.push((variable, before));
    }

    /// A type with all in it that has been found out by now. What is still open is `dyn` if this is `last` looked at.
    pub fn resolved(&self, kind: &Type, last: bool) -> Type {
        let inner = |kind: &Type| self.resolved(kind, last).into();
        match kind {
            Type::Variable(n) => match &self.known[*n] {
                Some(known) => self.resolved(known, last),
                None if last => Type::Dyn,
                None => kind.clone(),
            },
            Type::List(of) => Type::List(inner(of)),
            Type::Map(key, of) => Type::Map(inner(key), inner(of)),
            Type::Optional(of) => Type::Optional(inner(of)),
            Type::Type(Some(of)) => Type::Type(Some(inner(of))),
            other => other.clone(),
        }
    }

    fn assignable(&mut self, from: &Type, to: &Type) -> bool {
        if let Type::Variable(variable) = to {
            match self.substitutes(from, *variable) {
                (true, _) => return true,
                (false, true) => return false,
                (false, false) => {}
            }
        }
        if let Type::Variable(variable) = from {
            return self.substitutes(to, *variable).0;
        }
        if from.is_dyn_or_error() || to.is_dyn_or_error() {
            return true;
        }
        match (from, to) {
            (Type::Null, other) | (other, Type::Null) => other.is_nullable(),
            (Type::Type(_), Type::Type(_)) => true,
            (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => self.assignable(a, b),
            (Type::Map(a_key, a), Type::Map(b_key, b)) => {
                self.assignable(a_key, b_key) && self.assignable(a, b)
            }
            (from, to) => from == to,
        }
    }

    /// Whether a type may be what a variable stands for, and whether it stood for one already.
    fn substitutes(&mut self, kind: &Type, variable: usize) -> (bool, bool) {
        if *kind == Type::Variable(variable) {
            return (true, true);
        }
        let Some(known) = self.known[variable].clone() else {
            let may = !self.occurs(variable, kind);
            if may {
                self.set(variable, kind.clone());
            }
            return (may, false);
        };
        if *kind == known {
            return (true, true);
        }
        if !self.assignable(kind, &known) {
            return (false, true);
        }
        let general = most_general(kind, &known);
        if !self.occurs(variable, general) {
            self.set(variable, general.clone());
        }
        (true, true)
    }

    fn occurs(&self, variable: usize, within: &Type) -> bool {
        match within {
            Type::Variable(n) if *n == variable => true,
            Type::Variable(n) => self.known[*n].as_ref().is_some_and(|known| self.occurs(variable, known)),
            Type::List(of) | Type::Optional(of) | Type::Type(Some(of)) => self.occurs(variable, of),
            Type::Map(key, of) => self.occurs(variable, key) || self.occurs(variable, of),
            _ => false,
        }
    }
}

/// A type of a signature, whose parameters are the variables from `base` on.
fn instance(kind: &Type, base: usize) -> Type {
    let inner = |kind: &Type| instance(kind, base).into();
    match kind {
        Type::Parameter(place) => Type::Variable(base + usize::from(*place)),
        Type::List(of) => Type::List(inner(of)),
        Type::Map(key, of) => Type::Map(inner(key), inner(of)),
        Type::Optional(of) => Type::Optional(inner(of)),
        Type::Type(Some(of)) => Type::Type(Some(inner(of))),
        other => other.clone(),
    }
}

/// The one of two types that says less.
pub fn most_general<'t>(a: &'t Type, b: &'t Type) -> &'t Type {
    if says_less(a, b) { a } else { b }
}

fn says_less(a: &Type, b: &Type) -> bool {
    let open = |kind: &Type| kind.is_dyn() || matches!(kind, Type::Variable(_));
    if open(a) {
        return true;
    }
    if open(b) {
        return false;
    }
    match (a, b) {
        (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => says_less(a, b),
        (Type::Map(a_key, a), Type::Map(b_key, b)) => says_less(a_key, b_key) && says_less(a, b),
        (Type::Type(_), Type::Type(_)) => true,
        (a, b) => a == b,
    }
}
