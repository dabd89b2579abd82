//! Admission: what a cluster adds to objects and refuses, whatever their kind's own rules say. The plugins stand in a
//! table, in upstream's order; a new one is a file and a line.

mod namespace_lifecycle;
mod pod_defaults;
mod priority;
mod service_account;

use std::sync::Arc;

use async_trait::async_trait;
use krate_api::{Kind, StatusError};

use crate::kinds::Kinds;
use crate::path::Call;
use crate::registry::erased::Object;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
}

/// What a plugin is told of the request.
#[derive(Clone, Debug)]
pub struct Attributes {
    pub operation: Operation,
    pub kind: &'static Kind,
    /// Empty for the object itself.
    pub subresource: String,
    /// Empty for a kind of cluster scope.
    pub namespace: String,
    pub name: String,
    pub user: String,
    pub groups: Vec<String>,
}

impl Attributes {
    pub fn of(call: &Call, operation: Operation, object: &dyn Object) -> Self {
        Attributes {
            operation,
            kind: call.kind(),
            subresource: call.info.subresource.clone(),
            namespace: call.info.namespace.clone(),
            name: object.meta().name.clone().unwrap_or_default(),
            user: call.user.name.clone(),
            groups: call.user.groups.clone(),
        }
    }

    /// Whether it is about an object of this kind itself.
    pub fn is(&self, kind: &Kind) -> bool {
        self.kind.gvk() == kind.gvk() && self.subresource.is_empty()
    }

    pub fn forbidden(&self, why: impl std::fmt::Display) -> StatusError {
        StatusError::forbidden(self.kind.group, self.kind.plural, &self.name, why)
    }
}

/// A plugin implements what it means: changes to an object, or a judgement of it.
#[async_trait]
pub trait Admit: Send + Sync {
    async fn mutate(
        &self,
        _attributes: &Attributes,
        _object: &mut dyn Object,
        _old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        Ok(())
    }

    /// `object` is absent for a deletion, `old` for a creation.
    async fn validate(
        &self,
        _attributes: &Attributes,
        _object: Option<&dyn Object>,
        _old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        Ok(())
    }
}

/// The plugins, in the order in which they are asked.
pub struct Chain(Vec<Box<dyn Admit>>);

impl Chain {
    /// Upstream's default plugins, as far as they are here.
    pub fn new(kinds: &Arc<Kinds>) -> Self {
        let kinds = || Arc::clone(kinds);
        Chain(vec![
            Box::new(namespace_lifecycle::NamespaceLifecycle::new(kinds())),
            Box::new(service_account::ServiceAccounts::new(kinds())),
            Box::new(pod_defaults::TaintNodesByCondition),
            Box::new(priority::Priority::new(kinds())),
            Box::new(pod_defaults::DefaultTolerationSeconds),
        ])
    }

    /// # Errors
    /// A plugin refuses.
    pub async fn mutate(
        &self,
        attributes: &Attributes,
        object: &mut dyn Object,
        old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        for plugin in &self.0 {
            plugin.mutate(attributes, object, old).await?;
        }
        Ok(())
    }

    /// # Errors
    /// A plugin refuses.
    pub async fn validate(
        &self,
        attributes: &Attributes,
        object: Option<&dyn Object>,
        old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        for plugin in &self.0 {
            plugin.validate(attributes, object, old).await?;
        }
        Ok(())
    }
}
