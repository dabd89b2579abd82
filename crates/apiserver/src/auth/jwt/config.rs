//! The file that says whose tokens are taken (`AuthenticationConfiguration`), and where nobody is served.

use krate_api::{FieldErrors, FieldPath};
use regex::Regex;
use serde::Deserialize;

use super::{ALGORITHMS, Mapping, Rule, Settings};
use crate::admission::policy::seen::user;
use crate::auth::Anonymous;
use crate::cel::{Declared, Program, Type};

const VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha1"];
const MOST: usize = 64;

/// What a file says.
#[derive(Clone, Debug)]
pub struct Configuration {
    pub jwt: Vec<Settings>,
    pub anonymous: Option<Anonymous>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(default)]
    jwt: Vec<Entry>,
    anonymous: Option<Nobody>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    issuer: Issuer,
    claim_validation_rules: Vec<ClaimRule>,
    claim_mappings: Mappings,
    user_validation_rules: Vec<UserRule>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Issuer {
    url: String,
    #[serde(rename = "discoveryURL")]
    discovery_url: String,
    #[serde(rename = "certificateAuthority")]
    ca: String,
    audiences: Vec<String>,
    #[serde(rename = "audienceMatchPolicy")]
    policy: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct ClaimRule {
    claim: String,
    required_value: String,
    expression: String,
    message: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct UserRule {
    expression: String,
    message: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Mappings {
    username: Said,
    groups: Said,
    uid: Said,
    extra: Vec<Extra>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Said {
    claim: String,
    prefix: Option<String>,
    expression: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct Extra {
    key: String,
    value_expression: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nobody {
    enabled: bool,
    #[serde(default)]
    conditions: Vec<Place>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    path: String,
}

/// Reads a file's text. `own` are the issuers of this cluster's own tokens, which nobody else is.
///
/// # Errors
/// It is no such configuration, with all its faults.
pub fn parse(text: &str, own: &[String]) -> Result<Configuration, String> {
    let value = crate::http::json_of_yaml(text.as_bytes())?;
    let (version, kind) = (value["apiVersion"].as_str(), value["kind"].as_str());
    let known = version.and_then(|v| v.strip_prefix("apiserver.config.k8s.io/"));
    if kind != Some("AuthenticationConfiguration") || known.is_none_or(|v| !VERSIONS.contains(&v)) {
        return Err(format!(
            "no kind {:?} is registered for version {:?}",
            kind.unwrap_or_default(),
            version.unwrap_or_default()
        ));
    }
    let file: File =
        serde_json::from_value(value).map_err(|error| format!("strict decoding error: {error}"))?;
    let (at, mut errors) = (FieldPath::new("jwt"), FieldErrors::new());
    if file.jwt.len() > MOST {
        errors.too_many(&at, file.jwt.len(), MOST);
        return Err(errors.aggregate());
    }
    let (mut urls, mut jwt) = (Vec::new(), Vec::new());
    for (i, entry) in file.jwt.iter().enumerate() {
        let at = at.index(i);
        if urls.contains(&&entry.issuer.url) {
            errors.duplicate(&at.child("issuer").child("url"), &entry.issuer.url);
        }
        urls.push(&entry.issuer.url);
        jwt.extend(authenticator(entry, own, &at, &mut errors));
    }
    let anonymous = file.anonymous.map(|nobody| {
        let paths: Vec<String> = nobody.conditions.into_iter().map(|place| place.path).collect();
        if !nobody.enabled && !paths.is_empty() {
            let at = FieldPath::new("anonymous").child("conditions");
            errors.invalid(&at, &paths, "enabled should be set to true when conditions are defined");
        }
        Anonymous { enabled: nobody.enabled, paths }
    });
    if errors.is_empty() { Ok(Configuration { jwt, anonymous }) } else { Err(errors.aggregate()) }
}

fn authenticator(
    entry: &Entry,
    own: &[String],
    at: &FieldPath,
    errors: &mut FieldErrors,
) -> Option<Settings> {
    let before = errors.len();
    issuer(&entry.issuer, own, &at.child("issuer"), errors);
    let (mut claim_rules, mut required) = (Vec::new(), std::collections::BTreeMap::new());
    for (i, rule) in entry.claim_validation_rules.iter().enumerate() {
        let at = at.child("claimValidationRules").index(i);
        match (rule.claim.as_str(), rule.expression.as_str()) {
            ("", "") => errors.required(&at, "claim or expression is required"),
            ("", source) if claim_rules.iter().any(|there: &Rule| there.expression.source() == source) => {
                errors.duplicate(&at.child("expression"), source);
            }
            ("", _) if !rule.required_value.is_empty() => errors.invalid(
                &at.child("requiredValue"),
                &rule.required_value,
                "may not be specified when expression is set",
            ),
            ("", source) => {
                let compiled = self::rule(source, &claims(), &at.child("expression"), errors);
                claim_rules
                    .extend(compiled.map(|expression| Rule { expression, message: rule.message.clone() }));
            }
            (claim, "") if !rule.message.is_empty() => {
                let _ = claim;
                errors.invalid(&at.child("message"), &rule.message, "may not be specified when claim is set");
            }
            (claim, "") => {
                if required.insert(claim.to_owned(), rule.required_value.clone()).is_some() {
                    errors.duplicate(&at.child("claim"), claim);
                }
            }
            (claim, _) => errors.invalid(&at, claim, "claim and expression can't both be set"),
        }
    }
    let mappings = at.child("claimMappings");
    let said = &entry.claim_mappings;
    let username = mapping(&said.username, true, true, &mappings.child("username"), errors);
    let groups = mapping(&said.groups, false, true, &mappings.child("groups"), errors);
    let uid = mapping(&said.uid, false, false, &mappings.child("uid"), errors);
    let extra = extra(&said.extra, &mappings.child("extra"), errors);
    verified(
        username.as_ref(),
        &extra,
        &claim_rules,
        &mappings.child("username").child("expression"),
        errors,
    );
    let mut user_rules: Vec<Rule> = Vec::new();
    for (i, rule) in entry.user_validation_rules.iter().enumerate() {
        let at = at.child("userValidationRules").index(i).child("expression");
        if rule.expression.is_empty() {
            errors.required(&at, "");
        } else if user_rules.iter().any(|there| there.expression.source() == rule.expression) {
            errors.duplicate(&at, &rule.expression);
        } else {
            let compiled =
                self::rule(&rule.expression, &Declared::default().with("user", user()), &at, errors);
            user_rules.extend(compiled.map(|expression| Rule { expression, message: rule.message.clone() }));
        }
    }
    let username = username.filter(|_| errors.len() == before)?;
    Some(Settings {
        url: entry.issuer.url.clone(),
        discovery_url: entry.issuer.discovery_url.clone(),
        ca: entry.issuer.ca.clone(),
        audiences: entry.issuer.audiences.clone(),
        algorithms: ALGORITHMS.iter().map(|(_, algorithm)| *algorithm).collect(),
        username,
        groups,
        uid,
        extra,
        required,
        claim_rules,
        user_rules,
    })
}

/// Whether a URL may be an issuer's.
///
/// # Errors
/// Why not.
pub fn check_url(url: &str) -> Result<(), &'static str> {
    let Some((scheme, rest)) = url.split_once("://") else { return Err("URL scheme must be https") };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if scheme != "https" {
        Err("URL scheme must be https")
    } else if authority.contains('@') {
        Err("URL must not contain a username or password")
    } else if rest.contains('?') {
        Err("URL must not contain a query")
    } else if rest.contains('#') {
        Err("URL must not contain a fragment")
    } else {
        Ok(())
    }
}

fn issuer(issuer: &Issuer, own: &[String], at: &FieldPath, errors: &mut FieldErrors) {
    if issuer.url.is_empty() {
        errors.required(&at.child("url"), "");
    } else {
        if own.contains(&issuer.url) {
            let why = format!("URL must not overlap with disallowed issuers: [{}]", own.join(" "));
            errors.invalid(&at.child("url"), &issuer.url, why);
        }
        if let Err(why) = check_url(&issuer.url) {
            errors.invalid(&at.child("url"), &issuer.url, why);
        }
    }
    if !issuer.discovery_url.is_empty() {
        let at = at.child("discoveryURL");
        if issuer.discovery_url.trim_end_matches('/') == issuer.url.trim_end_matches('/') {
            errors.invalid(&at, &issuer.discovery_url, "discoveryURL must be different from URL");
        }
        if let Err(why) = check_url(&issuer.discovery_url) {
            errors.invalid(&at, &issuer.discovery_url, why);
        }
    }
    let audiences = at.child("audiences");
    if issuer.audiences.is_empty() {
        errors.required(&audiences, format!("at least one {} is required", "jwt.issuer.audiences"));
    }
    for (i, audience) in issuer.audiences.iter().enumerate() {
        if audience.is_empty() {
            errors.required(&audiences.index(i), "");
        } else if issuer.audiences[..i].contains(audience) {
            errors.duplicate(&audiences.index(i), audience);
        }
    }
    let policy = at.child("audienceMatchPolicy");
    if issuer.audiences.len() > 1 && issuer.policy != "MatchAny" {
        errors.invalid(
            &policy,
            &issuer.policy,
            "audienceMatchPolicy must be MatchAny for multiple audiences",
        );
    } else if !matches!(issuer.policy.as_str(), "" | "MatchAny") {
        let why = "audienceMatchPolicy must be empty or MatchAny for single audience";
        errors.invalid(&policy, &issuer.policy, why);
    }
    if !issuer.ca.is_empty() && !issuer.ca.contains("-----BEGIN CERTIFICATE-----") {
        let why = "data does not contain any valid RSA or ECDSA certificates";
        errors.invalid(&at.child("certificateAuthority"), "<omitted>", why);
    }
}

/// What expressions see of a token.
fn claims() -> Declared {
    Declared::default().with("claims", Type::map(Type::Any))
}

fn compile(source: &str, declared: &Declared, at: &FieldPath, errors: &mut FieldErrors) -> Option<Program> {
    match Program::compile(source, declared) {
        Ok(program) => Some(program),
        Err(why) => {
            errors.invalid(at, source, format!("compilation failed: {why}"));
            None
        }
    }
}

/// A rule, which either holds or does not.
fn rule(source: &str, declared: &Declared, at: &FieldPath, errors: &mut FieldErrors) -> Option<Program> {
    let program = compile(source, declared, at, errors)?;
    if *program.kind() != Type::Bool {
        errors.invalid(at, source, "must evaluate to bool");
        return None;
    }
    Some(program)
}

fn mapping(
    said: &Said,
    required: bool,
    prefixed: bool,
    at: &FieldPath,
    errors: &mut FieldErrors,
) -> Option<Mapping> {
    match (said.claim.as_str(), said.expression.as_str()) {
        ("", "") => {
            if required {
                errors.required(at, "claim or expression is required");
            }
            None
        }
        ("", source) => {
            if let Some(prefix) = &said.prefix {
                errors.invalid(&at.child("prefix"), prefix, "may not be specified when expression is set");
            }
            compile(source, &claims(), &at.child("expression"), errors).map(Mapping::Expression)
        }
        (claim, "") => {
            if prefixed && said.prefix.is_none() {
                errors.required(
                    &at.child("prefix"),
                    "prefix is required when claim is set. It can be set to an empty string to disable prefixing",
                );
            }
            let prefix = said.prefix.clone().unwrap_or_default();
            Some(Mapping::Claim { name: claim.to_owned(), prefix })
        }
        _ => {
            errors.invalid(at, "", "claim and expression can't both be set");
            None
        }
    }
}

fn extra(said: &[Extra], at: &FieldPath, errors: &mut FieldErrors) -> Vec<(String, Program)> {
    let mut out: Vec<(String, Program)> = Vec::new();
    for (i, Extra { key, value_expression }) in said.iter().enumerate() {
        let (at, value) = (at.index(i).child("key"), at.index(i).child("valueExpression"));
        let domain = key.split_once('/').map(|(domain, _)| domain);
        if key.is_empty() {
            errors.required(&at, "");
        } else if domain.is_none_or(str::is_empty) {
            errors.invalid(&at, key, "must be a domain-prefixed path (such as \"acme.io/foo\")");
        }
        if *key != key.to_lowercase() {
            errors.invalid(&at, key, "must be lowercase");
        }
        let reserved = |of: &str| domain.is_some_and(|d| d == of || d.ends_with(&format!(".{of}")));
        if reserved("kubernetes.io") || reserved("k8s.io") {
            let why = "k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use";
            errors.invalid(&at, key, why);
        }
        if said[..i].iter().any(|before| before.key == *key) {
            errors.duplicate(&at, key);
        } else if value_expression.is_empty() {
            errors.required(&value, "");
        } else {
            let compiled = compile(value_expression, &claims(), &value, errors);
            out.extend(compiled.map(|program| (key.clone(), program)));
        }
    }
    out
}

/// Who is known by his address has to have proved that it is his.
fn verified(
    username: Option<&Mapping>,
    extra: &[(String, Program)],
    rules: &[Rule],
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    let Some(Mapping::Expression(username)) = username else { return };
    let names = |program: &Program, claim: &str| {
        let field = Regex::new(&format!(r"\bclaims\s*\.\s*\??\s*{claim}\b")).expect("a pattern");
        field.is_match(program.source())
    };
    let mut all = extra.iter().map(|(_, program)| program).chain(rules.iter().map(|rule| &rule.expression));
    let checked = |program: &Program| names(program, "email_verified");
    if names(username, "email") && !checked(username) && !all.any(checked) {
        errors.invalid(
            at,
            username.source(),
            "claims.email_verified must be used in claimMappings.username.expression or \
             claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is used in \
             claimMappings.username.expression",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: apiserver.config.k8s.io/v1beta1\nkind: AuthenticationConfiguration\n";

    #[test]
    fn faults_are_told_by_their_fields() {
        let entry = |issuer: &str, more: &str| {
            format!("{HEAD}jwt:\n- issuer: {{{issuer}}}\n  claimMappings:\n    {more}\n")
        };
        let (sound, name) = ("url: 'https://i', audiences: [a]", "username: {claim: sub, prefix: ''}");
        for (text, told) in [
            (entry("audiences: [a]", name), "jwt[0].issuer.url: Required value"),
            (entry("url: 'http://i', audiences: [a]", name), "URL scheme must be https"),
            (entry("url: 'https://u:p@i', audiences: [a]", name), "must not contain a username or password"),
            (entry("url: 'https://i?x', audiences: [a]", name), "must not contain a query"),
            (
                entry("url: 'https://own', audiences: [a]", name),
                "must not overlap with disallowed issuers: [https://own]",
            ),
            (entry("url: 'https://i'", name), "jwt[0].issuer.audiences: Required value"),
            (entry("url: 'https://i', audiences: [a, b]", name), "must be MatchAny for multiple audiences"),
            (
                entry(sound, "groups: {claim: g, prefix: ''}"),
                "username: Required value: claim or expression is required",
            ),
            (
                entry(sound, "username: {claim: sub}"),
                "prefix: Required value: prefix is required when claim is set",
            ),
            (
                entry(sound, "username: {expression: 'claims.'}"),
                "Invalid value: \"claims.\": compilation failed",
            ),
            (entry(sound, "username: {expression: 'claims.email'}"), "claims.email_verified must be used in"),
            (
                entry(sound, &format!("{name}\n    extra: [{{key: X.io/a, valueExpression: claims.a}}]")),
                "must be lowercase",
            ),
            (
                entry(sound, &format!("{name}\n    extra: [{{key: a.k8s.io/a, valueExpression: claims.a}}]")),
                "reserved for Kubernetes",
            ),
            (
                format!("{HEAD}anonymous: {{enabled: false, conditions: [{{path: /x}}]}}\n"),
                "enabled should be set to true",
            ),
            (format!("{HEAD}odd: 1\n"), "strict decoding error: unknown field `odd`"),
        ] {
            let error = parse(&text, &["https://own".to_owned()]).expect_err(&text);
            assert!(error.contains(told), "{text}: {error}");
        }
        let good = entry(sound, "username: {expression: \"claims.email_verified ? claims.email : 'x'\"}");
        let good = format!("{good}anonymous: {{enabled: true, conditions: [{{path: /healthz}}]}}\n");
        let read = parse(&good, &[]).expect("sound");
        assert_eq!(read.anonymous, Some(Anonymous { enabled: true, paths: vec!["/healthz".to_owned()] }));
        assert_eq!(read.jwt.len(), 1);
    }
}
