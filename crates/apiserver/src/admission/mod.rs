//! Admission: what a cluster adds to objects and refuses, whatever their kind's own rules say. The plugins stand in a
//! table, in upstream's order; a new one is a file and a line.

mod certificates;
mod claim_resize;
mod ingress_class;
mod limit_ranger;
mod lookup;
mod namespace_lifecycle;
mod pod_defaults;
mod pod_security;
mod priority;
mod resource_quota;
mod runtime_class;
mod service_account;
mod storage_class;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use krate_api::{Kind, StatusError};
use parking_lot::Mutex;

use crate::auth::{Authorizer, User};
use crate::kinds::Kinds;
use crate::path::Call;
use crate::registry::erased::Object;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
}

/// What plugins say besides yes and no.
#[derive(Debug, Default)]
struct Said {
    warnings: Vec<String>,
    annotations: BTreeMap<String, String>,
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
    /// The whole of who asks.
    pub who: User,
    pub dry_run: bool,
    said: Arc<Mutex<Said>>,
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
            who: call.user.clone(),
            dry_run: call.dry_run,
            said: Arc::default(),
        }
    }

    /// Warns the client, whatever becomes of the request.
    pub fn warn(&self, warning: String) {
        self.said.lock().warnings.push(warning);
    }

    /// Notes something for the audit log.
    pub fn annotate(&self, key: &str, value: String) {
        self.said.lock().annotations.insert(key.to_owned(), value);
    }

    /// The warnings since they were last taken.
    pub fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut self.said.lock().warnings)
    }

    /// What was noted for the audit log.
    pub fn annotations(&self) -> BTreeMap<String, String> {
        self.said.lock().annotations.clone()
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

const CREATE: &[Operation] = &[Operation::Create];
const UPDATE: &[Operation] = &[Operation::Update];
const WRITE: &[Operation] = &[Operation::Create, Operation::Update];
const ALL: &[Operation] = &[Operation::Create, Operation::Update, Operation::Delete];

/// A plugin by its upstream name, with the operations that it is asked about.
struct Plugin {
    name: &'static str,
    operations: &'static [Operation],
    admit: Box<dyn Admit>,
}

fn plugin(name: &'static str, operations: &'static [Operation], admit: impl Admit + 'static) -> Plugin {
    Plugin { name, operations, admit: Box::new(admit) }
}

/// The plugins, in the order in which they are asked.
pub struct Chain(Vec<Plugin>);

impl Chain {
    /// Upstream's default plugins. Must be called within a tokio runtime.
    ///
    /// StorageObjectInUseProtection is not among them: its finalizers are given by the kinds' own strategies.
    pub fn new(kinds: &Arc<Kinds>, authorizer: &Authorizer) -> Self {
        let kinds = || Arc::clone(kinds);
        let authorizer = || authorizer.clone();
        Chain(vec![
            plugin("NamespaceLifecycle", ALL, namespace_lifecycle::NamespaceLifecycle::new(kinds())),
            plugin("LimitRanger", WRITE, limit_ranger::LimitRanger::new(kinds())),
            plugin("ServiceAccount", WRITE, service_account::ServiceAccounts::new(kinds())),
            plugin("TaintNodesByCondition", CREATE, pod_defaults::TaintNodesByCondition),
            plugin("PodSecurity", WRITE, pod_security::PodSecurity::new(kinds())),
            plugin("Priority", ALL, priority::Priority::new(kinds())),
            plugin("DefaultTolerationSeconds", WRITE, pod_defaults::DefaultTolerationSeconds),
            plugin("DefaultStorageClass", CREATE, storage_class::DefaultStorageClass::new(kinds())),
            plugin(
                "PersistentVolumeClaimResize",
                UPDATE,
                claim_resize::PersistentVolumeClaimResize::new(kinds()),
            ),
            plugin("RuntimeClass", CREATE, runtime_class::RuntimeClasses::new(kinds())),
            plugin("CertificateApproval", UPDATE, certificates::CertificateApproval(authorizer())),
            plugin("CertificateSigning", UPDATE, certificates::CertificateSigning(authorizer())),
            plugin("CertificateSubjectRestriction", CREATE, certificates::CertificateSubjectRestriction),
            plugin("DefaultIngressClass", CREATE, ingress_class::DefaultIngressClass::new(kinds())),
            plugin("ResourceQuota", WRITE, resource_quota::ResourceQuotas::new(kinds())),
        ])
    }

    fn asked(&self, operation: Operation) -> impl Iterator<Item = &Plugin> {
        self.0.iter().filter(move |plugin| plugin.operations.contains(&operation))
    }

    /// # Errors
    /// A plugin refuses.
    pub async fn mutate(
        &self,
        attributes: &Attributes,
        object: &mut dyn Object,
        old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        for plugin in self.asked(attributes.operation) {
            let answer = plugin.admit.mutate(attributes, object, old).await;
            answer.inspect_err(|error| refused(plugin, error))?;
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
        for plugin in self.asked(attributes.operation) {
            let answer = plugin.admit.validate(attributes, object, old).await;
            answer.inspect_err(|error| refused(plugin, error))?;
        }
        Ok(())
    }
}

fn refused(plugin: &Plugin, error: &StatusError) {
    tracing::debug!(plugin = plugin.name, %error, "admission refused");
}
