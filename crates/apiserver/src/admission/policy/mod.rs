//! ValidatingAdmissionPolicy and MutatingAdmissionPolicy: what a write must satisfy and how it is changed, in CEL
//! (KEP-3488, KEP-3962). Shared by both: compiled expressions, what they see, and the parameters of bindings.

mod change;
pub mod mutating;
pub mod seen;
pub mod typecheck;
pub mod validating;

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::api::admissionregistration::v1::{MatchCondition, ParamKind, ParamRef};
use krate_api::{Kind, LabelSelector, StatusError};
use krate_store::cache::{Freshness, ListQuery, Scope as Reach};

use super::metrics::{Conditions, Metrics};
use super::versions::told;
use super::{Attributes, Operation, review};
use crate::auth::{Authorizer, MASTERS};
use crate::cel::{
    self, Authz, Budget, Check, Declared, Error, PER_MATCH_CONDITIONS, Program, Question, Value, Variables,
};
use crate::kinds::Kinds;
use crate::rbac::{Ask, Target};
use crate::registry::erased::Object;
use crate::storage::{Storage, refused};

/// An expression, or why it is none.
pub type Compiled = Result<Program, String>;

pub fn compile(source: &str, declared: &Declared) -> Compiled {
    Program::compile(source, declared).map_err(|error| format!("compilation failed: {error}"))
}

/// Match conditions, over what is declared for them.
pub fn compile_conditions(conditions: Option<&[MatchCondition]>, declared: &Declared) -> Vec<Compiled> {
    conditions.unwrap_or_default().iter().map(|c| compile(&c.expression, declared)).collect()
}

/// The authorizer as the user who makes the request.
struct Asking {
    authorizer: Authorizer,
    user: String,
    groups: Vec<String>,
}

impl Authz for Asking {
    fn check(&self, question: &Question, verb: &str) -> (bool, String) {
        let account;
        let groups;
        let (user, groups): (&str, &[String]) = match &question.account {
            None => (&self.user, &self.groups),
            Some((namespace, name)) => {
                account = format!("system:serviceaccount:{namespace}:{name}");
                groups = [
                    "system:serviceaccounts".to_owned(),
                    format!("system:serviceaccounts:{namespace}"),
                    crate::auth::AUTHENTICATED.to_owned(),
                ];
                (&account, &groups)
            }
        };
        let target = match &question.path {
            Some(path) => Target::Path(path),
            None => Target::Resource {
                group: &question.group,
                resource: &question.resource,
                subresource: &question.subresource,
                namespace: &question.namespace,
                name: &question.name,
            },
        };
        let decision = self.authorizer.allows(&Ask { user, groups, verb, target, ..Ask::default() });
        let master = groups.iter().any(|group| group == MASTERS);
        (decision.is_some() || master, decision.unwrap_or_default())
    }
}

/// What all expressions see of a request.
#[derive(Clone)]
pub struct Input {
    object: Value,
    old: Value,
    request: Value,
    namespace: Value,
    authorizer: Value,
    own_resource: Value,
}

impl Input {
    /// Of a request as it is told about objects of a kind: its own, or another of the same objects.
    pub async fn new(
        kinds: &Kinds,
        authorizer: &Authorizer,
        attributes: &Attributes,
        told_as: &Kind,
        (object, old): (Option<&dyn Object>, Option<&dyn Object>),
    ) -> Result<Input, StatusError> {
        let kind = attributes.kind;
        let is_namespace = kind.gvk() == krate_api::kinds::NAMESPACE.gvk();
        let mut namespace = Value::Null;
        if kind.is_namespaced()
            && !is_namespace
            && let Some(storage) = kinds.of("", "namespaces")
        {
            let read = storage.read("", &attributes.namespace, Freshness::Any).await?;
            let json = serde_json::from_slice(&read.sent()).map_err(StatusError::internal)?;
            namespace = Value::from_json(&json);
        }
        let asking: Arc<dyn Authz> = Arc::new(Asking {
            authorizer: authorizer.clone(),
            user: attributes.user.name.clone(),
            groups: attributes.user.groups.clone(),
        });
        let own = Question {
            group: kind.group.to_owned(),
            resource: kind.plural.to_owned(),
            subresource: attributes.subresource.clone(),
            namespace: attributes.namespace.clone(),
            name: attributes.name.clone(),
            ..Question::default()
        };
        let subject = match &attributes.options {
            Some(options) => Value::from_json(options),
            None => Value::from_json(&told(kinds, attributes, told_as, object).await?),
        };
        Ok(Input {
            object: subject,
            old: Value::from_json(&told(kinds, attributes, told_as, old).await?),
            request: Value::from_json(&review::request(attributes, told_as)),
            namespace,
            authorizer: Check::authorizer(Arc::clone(&asking)),
            own_resource: Check::resource(asking, own),
        })
    }

    /// The same request with the object as it is by now.
    pub fn with_object(&self, object: &serde_json::Value) -> Input {
        Input { object: Value::from_json(object), ..self.clone() }
    }
}

/// What one evaluation sees: the request, the parameters, and the policy's variables, each evaluated when it is first
/// named.
pub struct Scope<'a> {
    input: &'a Input,
    params: &'a Value,
    variables: &'a [(String, Compiled)],
    known: RefCell<HashMap<String, crate::cel::Result<Value>>>,
}

impl<'a> Scope<'a> {
    pub fn new(input: &'a Input, params: &'a Value, variables: &'a [(String, Compiled)]) -> Self {
        Scope { input, params, variables, known: RefCell::default() }
    }

    /// The value of an expression; the error is told as policies tell it.
    ///
    /// # Errors
    /// It has none.
    pub fn evaluate(&self, program: &Compiled, budget: &mut Budget) -> Result<Value, String> {
        let program = program.as_ref().map_err(Clone::clone)?;
        let since = Instant::now();
        let value = program.evaluate(self, budget);
        cel::metrics::EVALUATED.observe(since.elapsed());
        value.map_err(|error| match error {
            Error::OutOfBudget if budget.left() == 0 => {
                "validation failed due to running out of cost budget, no further validation rules will be run"
                    .to_owned()
            }
            error => format!("expression '{}' resulted in error: {error}", program.source()),
        })
    }

    /// Whether all match conditions hold. One that does not decides, whatever the others are.
    ///
    /// # Errors
    /// None decides against it, and some have no value.
    pub fn conditions(&self, conditions: &[Compiled]) -> Result<bool, String> {
        let mut budget = Budget::new(PER_MATCH_CONDITIONS);
        let mut errors = Vec::new();
        for condition in conditions {
            match self.evaluate(condition, &mut budget) {
                Ok(Value::Bool(true)) => {}
                Ok(_) => return Ok(false),
                Err(error) => errors.push(error),
            }
        }
        match errors.as_slice() {
            [] => Ok(true),
            [one] => Err(one.clone()),
            many => Err(format!("[{}]", many.join(", "))),
        }
    }
}

/// What is counted of the conditions by which policies are asked about a write.
#[derive(Clone, Copy)]
pub struct Counts<'a> {
    pub metrics: &'a Metrics,
    pub operation: Operation,
}

impl Counts<'_> {
    /// Whether all match conditions of a policy hold.
    ///
    /// # Errors
    /// See [`Scope::conditions`].
    pub fn conditions(self, scope: &Scope<'_>, policy: &str, all: &[Compiled]) -> Result<bool, String> {
        if all.is_empty() {
            return Ok(true);
        }
        let began = Instant::now();
        let holds = scope.conditions(all);
        let conditions = Conditions { of: policy, kind: "policy", sort: "validate" };
        self.metrics.matched(&conditions, self.operation, holds.as_ref(), began.elapsed());
        holds
    }
}

impl Variables for Scope<'_> {
    fn get(&self, name: &str) -> Option<Value> {
        Some(match name {
            "object" => self.input.object.clone(),
            "oldObject" => self.input.old.clone(),
            "request" => self.input.request.clone(),
            "namespaceObject" => self.input.namespace.clone(),
            "authorizer" => self.input.authorizer.clone(),
            "params" => self.params.clone(),
            _ => return None,
        })
    }

    fn lazy(&self, name: &str, field: &str, budget: &mut Budget) -> Option<crate::cel::Result<Value>> {
        if name == "authorizer" && field == "requestResource" {
            return Some(Ok(self.input.own_resource.clone()));
        }
        if name != "variables" {
            return None;
        }
        if let Some(known) = self.known.borrow().get(field) {
            return Some(known.clone());
        }
        let (_, compiled) = self.variables.iter().find(|(n, _)| n == field)?;
        let value = match compiled {
            Ok(program) => program.evaluate(self, budget).map_err(|error| match error {
                Error::OutOfBudget => error,
                Error::Failed(why) => {
                    Error::new(format!("composited variable \"{field}\" fails to evaluate: {why}"))
                }
            }),
            Err(why) => Err(Error::new(format!("composited variable \"{field}\" fails to compile: {why}"))),
        };
        self.known.borrow_mut().insert(field.to_owned(), value.clone());
        Some(value)
    }
}

/// Where a policy's parameters are; `None` if it takes none.
///
/// # Errors
/// No such kind is served; the text is told to the client.
pub fn param_source(kinds: &Kinds, kind: Option<&ParamKind>) -> Result<Option<Arc<Storage>>, String> {
    let Some(kind) = kind else { return Ok(None) };
    let (version, name) =
        (kind.api_version.as_deref().unwrap_or_default(), kind.kind.as_deref().unwrap_or_default());
    let row = kinds.rows().iter().copied().find(|row| row.kind == name && row.api_version() == version);
    let storage = row.and_then(|row| kinds.at(row.group, row.version, row.plural));
    // Upstream names the core group too, by nothing.
    let slash = if version.contains('/') { "" } else { "/" };
    let missing =
        || format!("failed to find resource referenced by paramKind: '{slash}{version}, Kind={name}'");
    storage.map(Some).ok_or_else(missing)
}

/// The parameters that a binding gives: null once where the policy takes none, or the binding gives none.
///
/// # Errors
/// It gives some that cannot be found, or not in this way; the text is told to the client.
pub async fn params(
    source: Option<&Storage>,
    reference: Option<&ParamRef>,
    attributes: &Attributes,
) -> Result<Vec<Value>, String> {
    let (Some(storage), Some(reference)) = (source, reference) else { return Ok(vec![Value::Null]) };
    let own = reference.namespace.as_deref().filter(|n| !n.is_empty());
    let namespace = match (storage.kind().is_namespaced(), own) {
        (false, Some(_)) => {
            return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".to_owned());
        }
        (false, None) => "",
        (true, Some(namespace)) => namespace,
        (true, None) if attributes.namespace.is_empty() => {
            return Err(
                "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources"
                    .to_owned(),
            );
        }
        (true, None) => &attributes.namespace,
    };
    let value = |bytes: &bytes::Bytes| serde_json::from_slice(bytes).ok().map(|json| Value::from_json(&json));
    let said = |error: StatusError| error.to_string();
    let found: Vec<Value> = if let Some(name) = reference.name.as_deref().filter(|n| !n.is_empty()) {
        let mut found = None;
        for freshness in [Freshness::Any, Freshness::Latest] {
            let cached = storage.cache.get(namespace, name, freshness).await.map_err(|e| said(refused(e)))?;
            found = cached.and_then(|cached| value(&cached.sent()));
            if found.is_some() {
                break;
            }
        }
        found.into_iter().collect()
    } else {
        let selector = LabelSelector::from_meta(reference.selector.as_ref()).map_err(|e| e.to_string())?;
        let reach = if namespace.is_empty() { Reach::all() } else { Reach::namespace(namespace) };
        let list = storage.cache.list(&ListQuery::new(reach, Freshness::Any)).await;
        let list = list.map_err(|e| said(refused(e)))?;
        let selected = list.items.iter().filter(|o| selector.matches_with(|key| o.head.label(key)));
        selected.filter_map(|o| value(&o.sent())).collect()
    };
    if found.is_empty() && reference.parameter_not_found_action.as_deref() == Some("Deny") {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".to_owned());
    }
    Ok(found)
}
