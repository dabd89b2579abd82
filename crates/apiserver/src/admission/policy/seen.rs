//! What expressions of policies and match conditions may name, and of what types it is.

use std::collections::BTreeMap;

use k8s_openapi::api::admissionregistration::v1::Variable;

use super::{Compiled, compile};
use crate::cel::signatures::{AUTHORIZER, RESOURCE_CHECK};
use crate::cel::types::{Fields, Object};
use crate::cel::{Declared, Type};

/// What a policy's variables are fields of.
const VARIABLES: &str = "kubernetes.variables";

/// What is declared for an expression, as far as it depends on the policy and on what the expression is for.
#[derive(Clone, Copy, Default)]
pub struct Seen<'a> {
    /// The object's type, where it is known; of the object before as well.
    pub object: Option<&'a Type>,
    /// Whether there are parameters, and their type, where it is known.
    pub params: Option<Option<&'a Type>>,
    pub authorizer: bool,
}

impl Seen<'_> {
    /// What an expression sees that knows its object only when it is evaluated, and may ask who may do what.
    pub fn dynamic(has_params: bool) -> Self {
        Seen { params: has_params.then_some(None), authorizer: true, ..Seen::default() }
    }

    pub fn declared(&self) -> Declared {
        let known = |kind: Option<&Type>| kind.cloned().unwrap_or(Type::Dyn);
        let mut declared = Declared::default()
            .with("object", known(self.object))
            .with("oldObject", known(self.object))
            .with("request", request())
            .with("namespaceObject", namespace());
        if let Some(params) = self.params {
            declared.declare("params", known(params));
        }
        if self.authorizer {
            declared.declare("authorizer", Type::object(AUTHORIZER, []));
            declared.declare("authorizer.requestResource", Type::object(RESOURCE_CHECK, []));
        }
        declared
    }
}

/// A policy's variables, each of which sees those before it.
pub struct Composed {
    pub compiled: Vec<(String, Compiled)>,
    /// What they are fields of.
    kind: Type,
}

impl Composed {
    pub fn new(variables: &[Variable], mut declared: Declared) -> Self {
        let mut fields = BTreeMap::new();
        let mut compiled = Vec::new();
        let kind = |fields: BTreeMap<String, Type>| {
            let fields = Fields::These(fields);
            Type::Object(Object { name: VARIABLES.to_owned(), fields }.into())
        };
        for variable in variables {
            declared.declare("variables", kind(named_in(&variable.expression, &fields)));
            let program = compile(&variable.expression, &declared);
            let made = program.as_ref().map_or(Type::Dyn, |program| program.kind().clone());
            fields.insert(variable.name.clone(), made);
            compiled.push((variable.name.clone(), program));
        }
        Composed { compiled, kind: kind(fields) }
    }

    /// With the variables, if there are any.
    pub fn seen_by(&self, declared: Declared) -> Declared {
        if self.compiled.is_empty() { declared } else { declared.with("variables", self.kind.clone()) }
    }
}

/// The variables that an expression may name: with all of them for each, what it takes to check a policy would grow with
/// the square of their number.
fn named_in(expression: &str, all: &BTreeMap<String, Type>) -> BTreeMap<String, Type> {
    let is_apart = |c: char| !c.is_alphanumeric() && c != '_';
    let ends = expression.match_indices("variables").map(|(at, word)| &expression[at + word.len()..]);
    let is_whole = |rest: &str| rest.is_empty() || rest.starts_with(is_apart);
    // Who names what they are fields of has all of them.
    if ends.filter(|rest| is_whole(rest)).any(|rest| !rest.trim_start().starts_with('.')) {
        return all.clone();
    }
    let words = expression.split(is_apart).filter(|word| !word.is_empty());
    let names = words.flat_map(|word| [word.to_owned(), format!("__{word}__")]);
    names.filter_map(|name| all.get(&name).cloned().map(|kind| (name, kind))).collect()
}

/// The type of the request (upstream's `BuildRequestType`).
fn request() -> Type {
    let versioned = |name: &str, last: &'static str| {
        Type::object(name, [("group", Type::String), ("version", Type::String), (last, Type::String)])
    };
    let kind = || versioned("kubernetes.GroupVersionKind", "kind");
    let resource = || versioned("kubernetes.GroupVersionResource", "resource");
    Type::object(
        "kubernetes.AdmissionRequest",
        [
            ("kind", kind()),
            ("resource", resource()),
            ("subResource", Type::String),
            ("requestKind", kind()),
            ("requestResource", resource()),
            ("requestSubResource", Type::String),
            ("name", Type::String),
            ("namespace", Type::String),
            ("operation", Type::String),
            ("userInfo", user()),
            ("dryRun", Type::Bool),
            ("options", Type::Dyn),
        ],
    )
}

/// The type of who makes a request.
pub fn user() -> Type {
    Type::object(
        "kubernetes.UserInfo",
        [
            ("username", Type::String),
            ("uid", Type::String),
            ("groups", Type::list(Type::String)),
            ("extra", Type::map(Type::list(Type::String))),
        ],
    )
}

/// The type of the request's namespace (upstream's `BuildNamespaceType`).
fn namespace() -> Type {
    let texts = || Type::list(Type::String);
    let metadata = Type::object(
        "kubernetes.NamespaceMetadata",
        [
            ("name", Type::String),
            ("generateName", Type::String),
            ("namespace", Type::String),
            ("labels", Type::map(Type::String)),
            ("annotations", Type::map(Type::String)),
            ("UID", Type::String),
            ("creationTimestamp", Type::Timestamp),
            ("deletionGracePeriodSeconds", Type::Int),
            ("deletionTimestamp", Type::Timestamp),
            ("generation", Type::Int),
            ("resourceVersion", Type::String),
            ("finalizers", texts()),
        ],
    );
    let condition = Type::object(
        "kubernetes.NamespaceCondition",
        [
            ("status", Type::String),
            ("type", Type::String),
            ("lastTransitionTime", Type::Timestamp),
            ("message", Type::String),
            ("reason", Type::String),
        ],
    );
    let status = [("conditions", Type::list(condition)), ("phase", Type::String)];
    Type::object(
        "kubernetes.Namespace",
        [
            ("metadata", metadata),
            ("spec", Type::object("kubernetes.NamespaceSpec", [("finalizers", texts())])),
            ("status", Type::object("kubernetes.NamespaceStatus", status)),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variable(name: &str, expression: &str) -> Variable {
        Variable { name: name.to_owned(), expression: expression.to_owned() }
    }

    #[test]
    fn an_expression_is_checked_with_the_variables_that_it_names() {
        let all = BTreeMap::from(["a", "b", "__in__"].map(|name| (name.to_owned(), Type::Int)));
        for (expression, names) in [
            ("object.a + 1", "a"),
            ("variables.b", "b"),
            ("variables .in + variables.a", "__in__ a"),
            ("[variables].size() > 0", "__in__ a b"),
            ("variables", "__in__ a b"),
            ("my_variables.c", ""),
        ] {
            let named = named_in(expression, &all);
            let named: Vec<&str> = named.keys().map(String::as_str).collect();
            assert_eq!(named.join(" "), names, "{expression}");
        }
    }

    #[test]
    fn a_variable_sees_those_before_it_and_no_others() {
        let variables =
            [variable("one", "1"), variable("two", "variables.one + 1"), variable("bad", "variables.later")];
        let composed = Composed::new(&variables, Seen::dynamic(false).declared());
        let fine: Vec<bool> = composed.compiled.iter().map(|(_, program)| program.is_ok()).collect();
        assert_eq!(fine, [true, true, false]);
        let declared = composed.seen_by(Seen::dynamic(false).declared());
        assert!(compile("variables.two == 2", &declared).is_ok());
        assert!(compile("variables.two == ''", &declared).is_err());
    }
}
