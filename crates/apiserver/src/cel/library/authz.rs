//! The authorizer: an expression may ask what users may do.

use std::fmt;
use std::sync::Arc;

use crate::cel::value::{Opaque, Value};
use crate::cel::{Error, Result};

/// Who answers. Implemented by whoever lends an authorizer to expressions.
pub trait Authz: Send + Sync {
    /// Whether it is allowed, with the reason.
    fn check(&self, question: &Question, verb: &str) -> (bool, String);
}

/// What is asked so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Question {
    /// A path that is no resource's; else a resource is meant.
    pub path: Option<String>,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    /// Another account than the user who makes the request: its namespace and its name.
    pub account: Option<(String, String)>,
}

#[derive(Clone)]
pub enum Check {
    Authorizer(Arc<dyn Authz>, Question),
    Path(Arc<dyn Authz>, Question),
    Group(Arc<dyn Authz>, Question),
    Resource(Arc<dyn Authz>, Question),
    Decision { allowed: bool, reason: String },
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.type_name())
    }
}

impl Check {
    /// The value of the variable `authorizer`.
    pub fn authorizer(authz: Arc<dyn Authz>) -> Value {
        Value::opaque(Opaque::Check(Check::Authorizer(authz, Question::default())))
    }

    /// The value of `authorizer.requestResource`.
    pub fn resource(authz: Arc<dyn Authz>, question: Question) -> Value {
        Value::opaque(Opaque::Check(Check::Resource(authz, question)))
    }

    pub fn type_name(&self) -> &'static str {
        match self {
            Check::Authorizer(..) => "kubernetes.authorization.Authorizer",
            Check::Path(..) => "kubernetes.authorization.PathCheck",
            Check::Group(..) => "kubernetes.authorization.GroupCheck",
            Check::Resource(..) => "kubernetes.authorization.ResourceCheck",
            Check::Decision { .. } => "kubernetes.authorization.Decision",
        }
    }
}

pub fn call(name: &str, args: &[Value]) -> Option<Result<Value>> {
    let Value::Opaque(opaque) = args.first()? else { return None };
    let Opaque::Check(check) = &**opaque else { return None };
    let text = |i: usize| args.get(i).and_then(Value::as_str).map(str::to_owned);
    let next = |check: Check| Some(Ok(Value::opaque(Opaque::Check(check))));
    match (check, name, args.len()) {
        (Check::Authorizer(authz, asked), "path", 2) => {
            let path = text(1)?;
            if path.is_empty() {
                return Some(Err(Error::new("path must not be empty")));
            }
            next(Check::Path(Arc::clone(authz), Question { path: Some(path), ..asked.clone() }))
        }
        (Check::Authorizer(authz, asked), "group", 2) => {
            next(Check::Group(Arc::clone(authz), Question { group: text(1)?, ..asked.clone() }))
        }
        (Check::Authorizer(authz, asked), "serviceAccount", 3) => {
            let account = Some((text(1)?, text(2)?));
            next(Check::Authorizer(Arc::clone(authz), Question { account, ..asked.clone() }))
        }
        (Check::Group(authz, asked), "resource", 2) => {
            next(Check::Resource(Arc::clone(authz), Question { resource: text(1)?, ..asked.clone() }))
        }
        (Check::Resource(authz, asked), "subresource", 2) => {
            next(Check::Resource(Arc::clone(authz), Question { subresource: text(1)?, ..asked.clone() }))
        }
        (Check::Resource(authz, asked), "namespace", 2) => {
            next(Check::Resource(Arc::clone(authz), Question { namespace: text(1)?, ..asked.clone() }))
        }
        (Check::Resource(authz, asked), "name", 2) => {
            next(Check::Resource(Arc::clone(authz), Question { name: text(1)?, ..asked.clone() }))
        }
        // A selector only narrows what is asked for; who may all may the part.
        (Check::Resource(..), "fieldSelector" | "labelSelector", 2) => {
            text(1)?;
            next(check.clone())
        }
        (Check::Resource(authz, asked) | Check::Path(authz, asked), "check", 2) => {
            let (allowed, reason) = authz.check(asked, &text(1)?);
            next(Check::Decision { allowed, reason })
        }
        (Check::Decision { allowed, .. }, "allowed", 1) => Some(Ok(Value::Bool(*allowed))),
        (Check::Decision { reason, .. }, "reason", 1) => Some(Ok(Value::string(reason.as_str()))),
        (Check::Decision { .. }, "errored", 1) => Some(Ok(Value::Bool(false))),
        (Check::Decision { .. }, "error", 1) => Some(Ok(Value::string(""))),
        _ => None,
    }
}
