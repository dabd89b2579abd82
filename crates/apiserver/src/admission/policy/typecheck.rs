//! Checks a ValidatingAdmissionPolicy's expressions against the types of what it is about, and tells in its status where
//! they do not fit (KEP-3488; upstream's `validatingadmissionpolicy-status-controller`). It changes nothing of what the
//! policy does.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use http::Method;
use k8s_openapi::api::admissionregistration::v1::{
    ExpressionWarning, NamedRuleWithOperations, ParamKind, ValidatingAdmissionPolicy,
    ValidatingAdmissionPolicySpec,
};
use krate_api::{Reason, StatusError, kinds};
use serde_json::json;
use tokio::sync::mpsc;

use super::seen::{Composed, Seen};
use crate::apiextensions::declared::declared;
use crate::cel::{Declared, Program, Type};
use crate::openapi::{self, Schemas};
use crate::routes::described;
use crate::server::{AsItself, Server, path};

/// How many kinds a policy is checked against at the most.
const MOST_KINDS: usize = 10;
const MANAGER: &str = "validatingadmissionpolicy-status";
const APPLY: &str = "application/apply-patch+yaml";

/// Group, version and kind, in the order in which they are told.
type Named = (String, String, String);

/// Checks what policies there are and what comes, until the server stops.
///
/// # Errors
/// The policies cannot be read.
pub async fn start(server: &Arc<Server>, commits: AsItself) -> Result<(), StatusError> {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let row = &kinds::VALIDATING_ADMISSION_POLICY;
    let told = move |_: &_, policy: Option<&ValidatingAdmissionPolicy>| {
        if let Some(policy) = policy.filter(|policy| is_unchecked(policy)) {
            // Nobody listens any more only when the server stops.
            let _ = sender.send(policy.clone());
        }
    };
    server.follow(row.group, row.plural, told).await?;
    let server = Arc::clone(server);
    tokio::spawn(async move {
        loop {
            let policy = tokio::select! {
                policy = receiver.recv() => policy,
                () = server.shutdown.cancelled() => return,
            };
            let Some(policy) = policy else { return };
            let name = policy.metadata.name.clone().unwrap_or_default();
            if let Err(error) = tell(&server, &commits, &name, policy).await
                && !error.is(Reason::NotFound)
            {
                tracing::warn!(policy = name, %error, "the types of a policy could not be told");
            }
        }
    });
    Ok(())
}

fn is_unchecked(policy: &ValidatingAdmissionPolicy) -> bool {
    let seen = policy.status.as_ref().and_then(|status| status.observed_generation);
    policy.metadata.generation.unwrap_or_default() > seen.unwrap_or_default()
}

async fn tell(
    server: &Arc<Server>,
    commits: &AsItself,
    name: &str,
    policy: ValidatingAdmissionPolicy,
) -> Result<(), StatusError> {
    let generation = policy.metadata.generation;
    let spec = policy.spec.unwrap_or_default();
    // Types of a pod have some thousands of parts.
    let of = Arc::clone(server);
    let warnings =
        tokio::task::spawn_blocking(move || check(&of, &spec)).await.map_err(StatusError::internal)?;
    let mut checked = json!({});
    if !warnings.is_empty() {
        checked["expressionWarnings"] = serde_json::to_value(warnings).map_err(StatusError::internal)?;
    }
    let row = &kinds::VALIDATING_ADMISSION_POLICY;
    let body = json!({
        "apiVersion": row.api_version(), "kind": row.kind, "metadata": {"name": name},
        "status": {"observedGeneration": generation, "typeChecking": checked},
    });
    let place = format!("{}/status?fieldManager={MANAGER}&force=true", path(row, "", name));
    commits.send(Method::PATCH, place, APPLY, Some(&body)).await.map(drop)
}

fn check(server: &Server, spec: &ValidatingAdmissionPolicySpec) -> Vec<ExpressionWarning> {
    let types = Types { server, served: described(server), known: RefCell::default() };
    let params = spec.param_kind.as_ref().map(|kind| types.params(kind));
    let checks: Vec<(Named, Declared)> = types
        .of_rules(spec)
        .into_iter()
        .filter_map(|named| {
            let object = types.of(&named)?;
            let seen =
                Seen { object: Some(&object), params: params.as_ref().map(Option::as_ref), authorizer: true };
            let variables = spec.variables.as_deref().unwrap_or_default();
            let seen = seen.declared();
            Some((named, Composed::new(variables, seen.clone()).seen_by(seen)))
        })
        .collect();
    let mut warnings = Vec::new();
    for (i, validation) in spec.validations.iter().flatten().enumerate() {
        let message = validation.message_expression.as_deref().filter(|message| !message.is_empty());
        let both = [("expression", Some(validation.expression.as_str())), ("messageExpression", message)];
        for (field, source) in both {
            let faults: Vec<String> =
                checks.iter().filter_map(|(named, declared)| fault(named, declared, source?)).collect();
            if !faults.is_empty() {
                let field_ref = format!("spec.validations[{i}].{field}");
                warnings.push(ExpressionWarning { field_ref, warning: faults.join("\n") });
            }
        }
    }
    warnings
}

/// What is wrong with an expression if it is about objects of this kind.
fn fault((group, version, kind): &Named, declared: &Declared, source: &str) -> Option<String> {
    let why = Program::compile(source, declared).err()?;
    Some(format!("{group}/{version}, Kind={kind}: {why}\n"))
}

/// A group and a version.
type GroupVersion = (String, String);

/// The types of what is served.
struct Types<'a> {
    server: &'a Server,
    served: openapi::Served,
    /// What the documents say that were read, by group and version.
    known: RefCell<HashMap<GroupVersion, Option<Rc<Schemas>>>>,
}

impl Types<'_> {
    /// The kinds that a policy's rules name without a wildcard.
    fn of_rules(&self, spec: &ValidatingAdmissionPolicySpec) -> BTreeSet<Named> {
        let rules = spec.match_constraints.iter().flat_map(|m| m.resource_rules.iter().flatten());
        let mut all = BTreeSet::new();
        for rule in rules {
            let kinds = self.of_rule(rule);
            let many = kinds.len() >= MOST_KINDS;
            all.extend(kinds.into_iter().take(MOST_KINDS));
            if many {
                break;
            }
        }
        all
    }

    fn of_rule(&self, rule: &NamedRuleWithOperations) -> Vec<Named> {
        let sorted = |names: &Option<Vec<String>>| {
            let mut names = names.clone().unwrap_or_default();
            names.sort();
            names
        };
        let (groups, versions) = (sorted(&rule.api_groups), sorted(&rule.api_versions));
        if [&groups, &versions].iter().any(|names| names.iter().any(|name| name.contains('*'))) {
            return Vec::new();
        }
        let mut resources = sorted(&rule.resources);
        resources.retain(|name| !name.contains(['*', '/']));
        let mut kinds = Vec::new();
        for group in &groups {
            for version in &versions {
                for plural in &resources {
                    let is_it = |row: &&&krate_api::Kind| {
                        row.group == group && row.version == version && row.plural == plural
                    };
                    let row = self.served.rows.iter().find(is_it);
                    kinds.extend(row.map(|row| (group.clone(), version.clone(), row.kind.to_owned())));
                }
            }
        }
        kinds
    }

    fn params(&self, kind: &ParamKind) -> Option<Type> {
        let version = kind.api_version.as_deref().unwrap_or_default();
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        self.of(&(group.to_owned(), version.to_owned(), kind.kind.clone().unwrap_or_default()))
    }

    /// The type of a kind's objects, if it is served and described.
    fn of(&self, (group, version, kind): &Named) -> Option<Type> {
        let read = || {
            let document = self.server.openapi.v3(&self.served, group, version)?;
            Schemas::read(&document).map(Rc::new)
        };
        let mut known = self.known.borrow_mut();
        let schemas = known.entry((group.clone(), version.clone())).or_insert_with(read).clone()?;
        let schema = schemas.of(krate_api::Gvk { group, version, kind })?;
        Some(Type::of(&declared(&schema, true)?, kind))
    }
}
