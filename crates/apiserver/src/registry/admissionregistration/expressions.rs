//! Whether the expressions of policies and webhooks are expressions.

use k8s_openapi::api::admissionregistration::v1::{MatchCondition, Variable};
use krate_api::{FieldErrors, FieldPath};

use crate::admission::policy::{compile, declared};
use crate::cel::Declared;

/// One expression, which must have one of the `wanted` types as far as its form tells its type. One that is not there
/// is reported elsewhere.
pub fn expression(
    source: &str,
    declared: &Declared<'_>,
    wanted: &[&str],
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    if source.trim().is_empty() {
        return;
    }
    match compile(source, declared) {
        Err(why) => errors.invalid(at, source, why),
        Ok(program) => {
            let odd = program.static_type().filter(|t| !wanted.is_empty() && !wanted.contains(t));
            if odd.is_some() {
                errors.invalid(at, source, format!("must evaluate to {}", wanted.join(" or ")));
            }
        }
    }
}

pub fn conditions(
    list: Option<&[MatchCondition]>,
    has_params: bool,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    let declared = declared(has_params, &[], false);
    for (i, condition) in list.unwrap_or_default().iter().enumerate() {
        let at = at.index(i).child("expression");
        expression(&condition.expression, &declared, &["bool"], &at, errors);
    }
}

/// Variables, each of which sees those before it.
pub fn variables(list: &[Variable], has_params: bool, at: &FieldPath, errors: &mut FieldErrors) {
    for (i, variable) in list.iter().enumerate() {
        let declared = declared(has_params, &list[..i], true);
        expression(&variable.expression, &declared, &[], &at.index(i).child("expression"), errors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_is_told_by_what_is_wrong_with_it() {
        let told = |source: &str| {
            let mut errors = FieldErrors::new();
            let declared = declared(false, &[], false);
            expression(source, &declared, &["bool"], &FieldPath::new("x"), &mut errors);
            errors.iter().map(|e| e.detail.clone()).collect::<Vec<_>>()
        };
        assert!(told("object.a == 1").is_empty());
        assert!(told("object.a").is_empty(), "its type is known only with the object");
        assert_eq!(told("'text'"), ["must evaluate to bool"]);
        assert!(told("params.a == 1")[0].contains("undeclared reference to 'params'"));
        assert!(told("object.a +")[0].starts_with("compilation failed: ERROR: <input>:1:11: Syntax error"));
    }
}
