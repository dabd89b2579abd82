//! The file that says which authorizers are asked, and when (`AuthorizationConfiguration`, KEP-3221).

use std::path::{Path, PathBuf};
use std::time::Duration;

use krate_api::{FieldErrors, FieldPath};
use serde::Deserialize;

use super::abac::Abac;
use super::authorize::Mode;
use super::authorizer_webhook::{self, condition};
use crate::cel::Program;

const VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha1"];
const TYPES: [&str; 6] = ["ABAC", "AlwaysAllow", "AlwaysDeny", "Node", "RBAC", "Webhook"];
const MOST_CONDITIONS: usize = 64;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(default)]
    authorizers: Vec<Entry>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    r#type: String,
    name: String,
    webhook: Option<Webhook>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Webhook {
    #[serde(rename = "authorizedTTL")]
    authorized: Option<String>,
    #[serde(rename = "cacheAuthorizedRequests")]
    keep_authorized: Option<bool>,
    #[serde(rename = "unauthorizedTTL")]
    unauthorized: Option<String>,
    #[serde(rename = "cacheUnauthorizedRequests")]
    keep_unauthorized: Option<bool>,
    timeout: Option<String>,
    #[serde(rename = "subjectAccessReviewVersion")]
    version: String,
    #[serde(rename = "matchConditionSubjectAccessReviewVersion")]
    condition_version: String,
    #[serde(rename = "failurePolicy")]
    failure_policy: String,
    #[serde(rename = "connectionInfo")]
    connection: Connection,
    #[serde(rename = "matchConditions")]
    conditions: Vec<Condition>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct Connection {
    r#type: String,
    kube_config_file: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Condition {
    expression: String,
}

/// Checks that a configuration which takes another's place asks all who were asked besides webhooks: those alone may go
/// while the server runs.
///
/// # Errors
/// One is missing.
pub fn keeps(before: &[Mode], now: &[Mode]) -> Result<(), String> {
    let missing: Vec<&str> = before
        .iter()
        .map(Mode::name)
        .filter(|name| *name != "Webhook" && !now.iter().any(|mode| mode.name() == *name))
        .collect();
    if missing.is_empty() { Ok(()) } else { Err(format!("missing required types: [{}]", missing.join(" "))) }
}

/// Reads a file's text. `abac` is the file of policies of the mode ABAC, where there is one.
///
/// # Errors
/// It is no such configuration, with all its faults.
pub fn parse(text: &str, abac: Option<&Path>) -> Result<Vec<Mode>, String> {
    let value = crate::http::json_of_yaml(text.as_bytes())?;
    let (version, kind) = (value["apiVersion"].as_str(), value["kind"].as_str());
    let known = version.and_then(|v| v.strip_prefix("apiserver.config.k8s.io/"));
    if kind != Some("AuthorizationConfiguration") || known.is_none_or(|v| !VERSIONS.contains(&v)) {
        return Err(format!(
            "no kind {:?} is registered for version {:?}",
            kind.unwrap_or_default(),
            version.unwrap_or_default()
        ));
    }
    let file: File =
        serde_json::from_value(value).map_err(|error| format!("strict decoding error: {error}"))?;
    let (at, mut errors) = (FieldPath::new("authorizers"), FieldErrors::new());
    if file.authorizers.is_empty() {
        errors.required(&at, "at least one authorization mode must be defined");
    }
    let (mut types, mut names, mut modes) = (Vec::new(), Vec::new(), Vec::new());
    for (i, entry) in file.authorizers.iter().enumerate() {
        let at = at.index(i);
        if entry.r#type.is_empty() {
            errors.required(&at.child("type"), "");
            continue;
        }
        if !TYPES.contains(&entry.r#type.as_str()) {
            errors.not_supported(&at.child("type"), &entry.r#type, &TYPES);
            continue;
        }
        if types.contains(&&entry.r#type) && entry.r#type != "Webhook" {
            errors.duplicate(&at.child("type"), &entry.r#type);
            continue;
        }
        types.push(&entry.r#type);
        if entry.name.is_empty() {
            errors.required(&at.child("name"), "");
        } else if names.contains(&&entry.name) {
            errors.duplicate(&at.child("name"), &entry.name);
        }
        names.push(&entry.name);
        match (entry.r#type.as_str(), &entry.webhook) {
            ("Webhook", None) => errors.required(&at.child("webhook"), "required when type=Webhook"),
            ("Webhook", Some(said)) => modes.extend(webhook(&entry.name, said, &at, &mut errors)),
            (_, Some(_)) => {
                errors.invalid(&at.child("webhook"), "non-null", "may only be specified when type=Webhook");
            }
            (kind, None) => modes.push(plain(kind, abac)?),
        }
    }
    if errors.is_empty() { Ok(modes) } else { Err(errors.aggregate()) }
}

/// A mode that needs no more than its name, but for ABAC, which needs its policies.
///
/// # Errors
/// There are none, or they cannot be read; or there is no such mode.
pub fn plain(name: &str, abac: Option<&Path>) -> Result<Mode, String> {
    Ok(match name {
        "AlwaysAllow" => Mode::AlwaysAllow,
        "AlwaysDeny" => Mode::AlwaysDeny,
        "Node" => Mode::Node,
        "RBAC" => Mode::Rbac,
        "ABAC" => {
            let file = abac.ok_or("authorization-mode ABAC's authorization policy file not passed")?;
            let told = |why: String| format!("{}: {why}", file.display());
            let text = std::fs::read_to_string(file).map_err(|error| told(error.to_string()))?;
            Mode::Abac(Abac::parse(&text).map_err(told)?)
        }
        name => return Err(format!("authorization-mode {name:?} is not a valid mode")),
    })
}

fn webhook(name: &str, said: &Webhook, at: &FieldPath, errors: &mut FieldErrors) -> Option<Mode> {
    let before = errors.len();
    let mut duration = |field: &str, text: Option<&str>, most: Option<Duration>| -> Duration {
        let at = at.child(field);
        let Some(text) = text else {
            errors.required(&at, "");
            return Duration::ZERO;
        };
        match crate::options::duration(text) {
            Ok(read) if !read.is_zero() && most.is_none_or(|most| read <= most) => return read,
            Ok(read) if read.is_zero() => errors.required(&at, ""),
            _ if most.is_some() => errors.invalid(&at, text, "must be > 0s and <= 30s"),
            _ => errors.invalid(&at, text, "must be > 0s"),
        }
        Duration::ZERO
    };
    let timeout = duration("timeout", said.timeout.as_deref(), Some(Duration::from_secs(30)));
    let authorized = duration("authorizedTTL", Some(said.authorized.as_deref().unwrap_or("5m")), None);
    let unauthorized = duration("unauthorizedTTL", Some(said.unauthorized.as_deref().unwrap_or("30s")), None);
    let mut one_of = |field: FieldPath, value: &str, known: &[&str]| match value {
        "" => errors.required(&field, ""),
        value if !known.contains(&value) => errors.not_supported(&field, value, known),
        _ => {}
    };
    one_of(at.child("subjectAccessReviewVersion"), &said.version, &["v1", "v1beta1"]);
    if !said.conditions.is_empty() || !said.condition_version.is_empty() {
        one_of(at.child("matchConditionSubjectAccessReviewVersion"), &said.condition_version, &["v1"]);
    }
    one_of(at.child("failurePolicy"), &said.failure_policy, &["NoOpinion", "Deny"]);
    // A server that is no pod of the cluster that it serves has no account there.
    one_of(at.child("connectionInfo").child("type"), &said.connection.r#type, &["KubeConfigFile"]);
    let kubeconfig = said.connection.kube_config_file.clone().unwrap_or_default();
    let file = at.child("connectionInfo").child("kubeConfigFile");
    if kubeconfig.as_os_str().is_empty() {
        errors.required(&file, "");
    } else if !kubeconfig.is_absolute() {
        errors.invalid(&file, &kubeconfig, "must be an absolute path");
    } else if !kubeconfig.is_file() {
        errors.invalid(&file, &kubeconfig, "must be a regular file");
    }
    let conditions = conditions(&said.conditions, &at.child("matchConditions"), errors);
    let kept = |keep: Option<bool>, life| if keep == Some(false) { Duration::ZERO } else { life };
    (errors.len() == before).then(|| {
        Mode::Webhook(authorizer_webhook::Settings {
            name: name.to_owned(),
            kubeconfig,
            timeout,
            authorized: kept(said.keep_authorized, authorized),
            unauthorized: kept(said.keep_unauthorized, unauthorized),
            version: said.version.clone(),
            fails_closed: said.failure_policy == "Deny",
            conditions,
        })
    })
}

fn conditions(said: &[Condition], at: &FieldPath, errors: &mut FieldErrors) -> Vec<Program> {
    if said.len() > MOST_CONDITIONS {
        errors.too_many(at, said.len(), MOST_CONDITIONS);
        return Vec::new();
    }
    let (mut seen, mut programs) = (Vec::new(), Vec::new());
    for (i, Condition { expression }) in said.iter().enumerate() {
        let at = at.index(i).child("expression");
        if expression.trim().is_empty() {
            errors.required(&at, "");
        } else if seen.contains(&expression) {
            errors.duplicate(&at, expression);
        } else {
            match condition(expression) {
                Ok(program) => programs.push(program),
                Err(why) => errors.invalid(&at, expression, why),
            }
        }
        seen.push(expression);
    }
    programs
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\n";

    #[test]
    fn a_configuration_is_read_in_its_order() {
        let kubeconfig = tempfile::NamedTempFile::new().expect("a file");
        let text = format!(
            "{HEAD}authorizers:\n- {{type: Node, name: node}}\n- type: Webhook\n  name: w\n  webhook:\n    timeout: 3s\n    \
             subjectAccessReviewVersion: v1\n    matchConditionSubjectAccessReviewVersion: v1\n    failurePolicy: Deny\n    \
             connectionInfo: {{type: KubeConfigFile, kubeConfigFile: {}}}\n    matchConditions:\n    - expression: \
             \"!('system:nodes' in request.groups)\"\n- {{type: RBAC, name: rbac}}\n",
            kubeconfig.path().display()
        );
        let modes = parse(&text, None).expect("sound");
        let [Mode::Node, Mode::Webhook(webhook), Mode::Rbac] = modes.as_slice() else { panic!("{modes:?}") };
        assert_eq!((webhook.timeout, webhook.authorized), (Duration::from_secs(3), Duration::from_mins(5)));
        assert!(webhook.fails_closed && webhook.conditions.len() == 1);
    }

    #[test]
    fn faults_are_told_by_their_fields() {
        for (authorizers, told) in [
            ("[]", "authorizers: Required value: at least one authorization mode must be defined"),
            ("[{name: x}]", "authorizers[0].type: Required value"),
            ("[{type: Odd, name: x}]", "authorizers[0].type: Unsupported value: \"Odd\""),
            (
                "[{type: RBAC, name: x}, {type: RBAC, name: z}]",
                "authorizers[1].type: Duplicate value: \"RBAC\"",
            ),
            ("[{type: RBAC}]", "authorizers[0].name: Required value"),
            (
                "[{type: Webhook, name: x}]",
                "authorizers[0].webhook: Required value: required when type=Webhook",
            ),
            ("[{type: RBAC, name: x, webhook: {}}]", "may only be specified when type=Webhook"),
            ("[{type: Webhook, name: x, webhook: {timeout: 1m}}]", "must be > 0s and <= 30s"),
            (
                "[{type: Webhook, name: x, webhook: {matchConditions: [{expression: 'request.'}]}}]",
                "authorizers[0].matchConditions[0].expression: Invalid value: \"request.\": compilation failed",
            ),
            ("[{type: RBAC, name: x, odd: 1}]", "strict decoding error: unknown field `odd`"),
        ] {
            let error = parse(&format!("{HEAD}authorizers: {authorizers}\n"), None).expect_err(authorizers);
            assert!(error.contains(told), "{authorizers}: {error}");
        }
        assert!(parse("kind: Odd\napiVersion: v1\n", None).expect_err("odd").starts_with("no kind \"Odd\""));
    }
}
