//! What a token claims, as a user.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use super::{Mapping, Rule, Settings};
use crate::auth::User;
use crate::cel::{self, Budget, Program, Value};

/// The user that claims are mapped to.
///
/// # Errors
/// A claim is missing or is not what it should be, or a rule does not hold.
pub fn user(settings: &Settings, claims: &Json) -> Result<User, String> {
    let seen = Value::from_json(claims);
    let name = match &settings.username {
        Mapping::Claim { name, prefix } => {
            let value = text(claims, name).map_err(|why| format!("parse username claims {name:?}: {why}"))?;
            // Who has not proved that an address is his is not known by it.
            match &claims["email_verified"] {
                Json::Null | Json::Bool(true) => {}
                _ if name != "email" => {}
                Json::Bool(false) => return Err("email not verified".to_owned()),
                _ => return Err("parse 'email_verified' claim: it is no boolean".to_owned()),
            }
            format!("{prefix}{value}")
        }
        Mapping::Expression(program) => string(program, &seen)
            .map_err(|why| format!("error evaluating username claim expression: {why}"))?,
    };
    let groups = match &settings.groups {
        None => Vec::new(),
        Some(Mapping::Claim { name, prefix }) => {
            let told = match &claims[name.as_str()] {
                Json::Null => Vec::new(),
                Json::String(one) => vec![one.clone()],
                other => serde_json::from_value::<Vec<String>>(other.clone())
                    .map_err(|error| format!("parse groups claim {name:?}: {error}"))?,
            };
            told.into_iter().map(|group| format!("{prefix}{group}")).collect()
        }
        Some(Mapping::Expression(program)) => strings(program, &seen)
            .map_err(|why| format!("error evaluating group claim expression: {why}"))?,
    };
    let uid = match &settings.uid {
        None => String::new(),
        Some(Mapping::Claim { name, .. }) => {
            text(claims, name).map_err(|why| format!("parse uid claim {name:?}: {why}"))?
        }
        Some(Mapping::Expression(program)) => {
            string(program, &seen).map_err(|why| format!("error evaluating uid claim expression: {why}"))?
        }
    };
    let mut extra = BTreeMap::new();
    for (key, program) in &settings.extra {
        let values = strings(program, &seen)
            .map_err(|why| format!("error evaluating extra claim expression: {}: {why}", program.source()))?;
        if !values.is_empty() {
            extra.insert(key.clone(), values);
        }
    }
    for (claim, wanted) in &settings.required {
        if claims[claim.as_str()].is_null() {
            return Err(format!("required claim {claim} not present in ID token"));
        }
        let got = text(claims, claim).map_err(|why| format!("parse claim {claim}: {why}"))?;
        if got != *wanted {
            return Err(format!("required claim {claim} value does not match. Got = {got}, want = {wanted}"));
        }
    }
    check(&settings.claim_rules, "claims", &seen)
        .map_err(|why| format!("error evaluating claim validation expression: {why}"))?;
    let told = json!({"username": name, "uid": uid, "groups": groups, "extra": extra});
    check(&settings.user_rules, "user", &Value::from_json(&told))
        .map_err(|why| format!("error evaluating user info validation rule: {why}"))?;
    Ok(User { name, uid, groups, extra }.told_by_others())
}

fn text(claims: &Json, name: &str) -> Result<String, String> {
    match &claims[name] {
        Json::String(value) => Ok(value.clone()),
        Json::Null => Err("claim not present".to_owned()),
        _ => Err("it is no string".to_owned()),
    }
}

fn evaluate(program: &Program, name: &str, value: &Value) -> Result<Value, String> {
    let variables = [(name, value.clone())];
    program.evaluate(&variables[..], &mut Budget::new(cel::PER_CALL)).map_err(|error| error.to_string())
}

fn string(program: &Program, claims: &Value) -> Result<String, String> {
    let value = evaluate(program, "claims", claims)?;
    value.as_str().map(str::to_owned).ok_or_else(|| "claim expression must return a string".to_owned())
}

/// Strings, or one: what is empty is not there.
fn strings(program: &Program, claims: &Value) -> Result<Vec<String>, String> {
    let value = evaluate(program, "claims", claims)?.to_json();
    let odd = || "expression must return a string or a list of strings".to_owned();
    let found = match value {
        Some(Json::Null) => Vec::new(),
        Some(Json::String(one)) => vec![one],
        Some(list @ Json::Array(_)) => serde_json::from_value(list).map_err(|_| odd())?,
        _ => return Err(odd()),
    };
    Ok(found.into_iter().filter(|text: &String| !text.is_empty()).collect())
}

fn check(rules: &[Rule], name: &str, value: &Value) -> Result<(), String> {
    for rule in rules {
        let holds = evaluate(&rule.expression, name, value)?;
        let holds =
            holds.as_bool().ok_or_else(|| "validation expression must return a boolean".to_owned())?;
        if !holds {
            let source = rule.expression.source();
            return Err(format!("validation expression '{source}' failed: {}", rule.message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::config::parse;
    use super::*;

    #[test]
    fn claims_make_users_as_the_configuration_says() {
        let issuer = "issuer: {url: 'https://i', audiences: [a]}";
        let claims = json!({
            "sub": "42", "email": "amy@x", "email_verified": true, "groups": ["dev", ""], "role": "ops", "num": 1,
        });
        for (mappings, expected) in [
            ("username: {claim: sub, prefix: 'x:'}", Ok("x:42  [] {}")),
            (
                "username: {claim: sub, prefix: ''}\n  groups: {claim: role, prefix: 'g:'}",
                Ok("42  [g:ops] {}"),
            ),
            (
                "username: {claim: sub, prefix: ''}\n  groups: {claim: groups, prefix: ''}",
                Ok("42  [dev,] {}"),
            ),
            (
                "username: {expression: \"'u-' + claims.sub\"}\n  groups: {expression: claims.groups}\n  uid: {expression: claims.role}",
                Ok("u-42 ops [dev] {}"),
            ),
            (
                "username: {claim: sub, prefix: ''}\n  extra: [{key: x.io/role, valueExpression: claims.role}, {key: x.io/no, valueExpression: \"''\"}]",
                Ok("42  [] {\"x.io/role\": [\"ops\"]}"),
            ),
            ("username: {claim: none, prefix: ''}", Err("parse username claims \"none\": claim not present")),
            ("username: {expression: claims.num}", Err("must return a string")),
            (
                "username: {claim: sub, prefix: ''}\n  groups: {claim: num, prefix: ''}",
                Err("parse groups claim \"num\""),
            ),
        ] {
            let text = format!(
                "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n- {issuer}\n  claimMappings:\n    {}\n",
                mappings.replace("\n  ", "\n    ")
            );
            let settings = &parse(&text, &[]).expect("sound").jwt[0];
            let found = user(settings, &claims).map(|user| {
                let groups = &user.groups[..user.groups.len() - 1];
                format!("{} {} [{}] {:?}", user.name, user.uid, groups.join(","), user.extra)
            });
            match expected {
                Ok(expected) => assert_eq!(found.as_deref(), Ok(expected), "{mappings}"),
                Err(told) => assert!(found.as_ref().expect_err(told).contains(told), "{mappings}: {found:?}"),
            }
        }
    }

    #[test]
    fn rules_decide_who_is_let_in() {
        for (rules, told) in [
            ("claimValidationRules: [{claim: hd, requiredValue: x}]", None),
            (
                "claimValidationRules: [{claim: hd, requiredValue: z}]",
                Some("required claim hd value does not match. Got = x, want = z"),
            ),
            (
                "claimValidationRules: [{claim: nope, requiredValue: z}]",
                Some("required claim nope not present"),
            ),
            (
                "claimValidationRules: [{expression: 'claims.age > 10', message: too young}]",
                Some("validation expression 'claims.age > 10' failed: too young"),
            ),
            ("userValidationRules: [{expression: \"user.username.startsWith('4')\"}]", None),
            (
                "userValidationRules: [{expression: \"!user.username.startsWith('4')\", message: taken}]",
                Some("failed: taken"),
            ),
        ] {
            let text = format!(
                "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n- issuer: {{url: 'https://i', \
                 audiences: [a]}}\n  claimMappings: {{username: {{claim: sub, prefix: ''}}}}\n  {rules}\n"
            );
            let settings = &parse(&text, &[]).expect("sound").jwt[0];
            let found = user(settings, &json!({"sub": "42", "hd": "x", "age": 5}));
            match told {
                None => assert!(found.is_ok(), "{rules}: {found:?}"),
                Some(told) => assert!(found.as_ref().expect_err(told).contains(told), "{rules}: {found:?}"),
            }
        }
    }
}
