//! Whether the expressions of policies and webhooks are expressions.

use k8s_openapi::api::admissionregistration::v1::Variable;
use krate_api::names::is_c_identifier;
use krate_api::{FieldErrors, FieldPath};

use crate::admission::policy::compile;
use crate::admission::policy::seen::{Composed, Seen};
use crate::cel::{Declared, Type, is_reserved};

/// One expression, which must be of one of the `wanted` types, if any are. One that is not there is reported elsewhere.
pub fn expression(
    source: &str,
    declared: &Declared,
    wanted: &[Type],
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    if source.trim().is_empty() {
        return;
    }
    match compile(source, declared) {
        Err(why) => errors.invalid(at, source, why),
        Ok(program) if wanted.is_empty() || wanted.contains(program.kind()) => {}
        Ok(program) => errors.invalid(at, source, must_be(wanted, program.kind())),
    }
}

/// What is told of an expression of another type than is wanted.
fn must_be(wanted: &[Type], found: &Type) -> String {
    let found = found.name();
    match wanted {
        [one] => format!("must evaluate to {} but got {found}", one.name()),
        many => {
            let many: Vec<String> = many.iter().map(Type::name).collect();
            format!("must evaluate to one of [{}] but got {found}", many.join(" "))
        }
    }
}

/// Variables, each of which sees those before it.
pub fn variables(list: &[Variable], has_params: bool, at: &FieldPath, errors: &mut FieldErrors) -> Composed {
    let composed = Composed::new(list, Seen::dynamic(has_params).declared());
    for (i, (variable, (_, compiled))) in list.iter().zip(&composed.compiled).enumerate() {
        let at = at.index(i);
        let (name, at_name) = (&variable.name, at.child("name"));
        if name.trim().is_empty() {
            errors.required(&at_name, "name is not specified");
        } else if !is_c_identifier(name).is_empty() || is_reserved(name) {
            errors.invalid(&at_name, name, "must be a valid CEL identifier");
        }
        let at = at.child("expression");
        if variable.expression.trim().is_empty() {
            errors.required(&at, "expression is not specified");
        } else if let Err(why) = compiled {
            errors.invalid(&at, &variable.expression, why);
        }
    }
    composed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_is_told_by_what_is_wrong_with_it() {
        let told = |source: &str, wanted: &[Type]| {
            let mut errors = FieldErrors::new();
            let declared = Seen::dynamic(false).declared();
            expression(source, &declared, wanted, &FieldPath::new("x"), &mut errors);
            errors.iter().map(|e| e.detail.clone()).collect::<Vec<_>>()
        };
        let truth = |source: &str| told(source, &[Type::Bool]);
        assert!(truth("object.a == 1").is_empty());
        assert_eq!(truth("object.a"), ["must evaluate to bool but got dyn"]);
        assert_eq!(truth("'text'"), ["must evaluate to bool but got string"]);
        assert_eq!(
            told("[request.dryRun]", &[Type::String, Type::Null]),
            ["must evaluate to one of [string null_type] but got list(bool)"]
        );
        assert_eq!(truth("authorizer.group('').resource('pods').check('get').allowed()"), [""; 0]);
        for (source, why) in [
            ("params.a == 1", "undeclared reference to 'params'"),
            ("variables.a == 1", "undeclared reference to 'variables'"),
            ("request.nothing == 1", "undefined field 'nothing'"),
            ("object.a +", "Syntax error"),
            ("Object{}.a == 1", "undeclared reference to 'Object'"),
        ] {
            let told = truth(source);
            assert!(told[0].starts_with("compilation failed: ERROR: <input>:1:"), "{told:?}");
            assert!(told[0].contains(why), "{told:?}");
        }
    }

    #[test]
    fn a_variable_has_the_type_of_its_expression() {
        let variable = |name: &str, expression: &str| Variable {
            name: name.to_owned(),
            expression: expression.to_owned(),
        };
        let list = [variable("a", "'text'"), variable("b", "variables.a + 1"), variable("c", "object.x")];
        let mut errors = FieldErrors::new();
        let composed = variables(&list, false, &FieldPath::new("variables"), &mut errors);
        let told: Vec<_> = errors.iter().map(|e| (e.field.to_string(), e.detail.clone())).collect();
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(told[0].0, "variables[1].expression");
        assert!(told[0].1.contains("found no matching overload for '_+_' applied to '(string, int)'"));
        let declared = composed.seen_by(Seen::dynamic(false).declared());
        let kind = |source: &str| compile(source, &declared).map(|program| program.kind().clone());
        assert_eq!(kind("variables.a"), Ok(Type::String));
        assert_eq!(kind("variables.b"), Ok(Type::Dyn), "what does not compile is told once");
        assert!(kind("variables.d").expect_err("none").contains("undefined field 'd'"));
    }

    #[test]
    fn a_variable_is_called_by_a_name() {
        let list = [("", "1"), ("while", "1"), ("a-b", " ")]
            .map(|(name, expression)| Variable { name: name.to_owned(), expression: expression.to_owned() });
        let mut errors = FieldErrors::new();
        variables(&list, false, &FieldPath::new("x"), &mut errors);
        let told: Vec<_> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "x[0].name: Required value: name is not specified",
                "x[1].name: Invalid value: \"while\": must be a valid CEL identifier",
                "x[2].name: Invalid value: \"a-b\": must be a valid CEL identifier",
                "x[2].expression: Required value: expression is not specified",
            ]
        );
    }
}
