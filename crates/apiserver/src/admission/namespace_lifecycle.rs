//! NamespaceLifecycle: nothing is made in a namespace that is not there or is going, and some namespaces never go.

use std::borrow::Cow;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::StatusCause;
use krate_api::{StatusError, kinds};
use krate_store::cache::Freshness;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{Admit, Attributes, Operation};
use crate::kinds::Kinds;
use crate::registry::erased::Object;

const IMMORTAL: &[&str] = &["default", "kube-system", "kube-public"];

pub struct NamespaceLifecycle {
    kinds: Arc<Kinds>,
}

impl NamespaceLifecycle {
    pub fn new(kinds: Arc<Kinds>) -> Self {
        NamespaceLifecycle { kinds }
    }

    /// Whether a namespace is going; `None` if it is not there.
    async fn is_going(&self, name: &str) -> Result<Option<bool>, StatusError> {
        let Some(storage) = self.kinds.of("", "namespaces") else { return Ok(None) };
        for freshness in [Freshness::Any, Freshness::Latest] {
            let found = storage.cache.get("", name, freshness).await.map_err(crate::storage::refused)?;
            if let Some(cached) = found {
                let End { metadata, status } =
                    serde_json::from_slice(&cached.value).map_err(StatusError::internal)?;
                let phase = status.and_then(|status| status.phase);
                return Ok(Some(
                    metadata.deletion_timestamp.is_some() || phase.as_deref() == Some("Terminating"),
                ));
            }
        }
        Ok(None)
    }
}

/// What of a namespace says whether it is going. It is read for every write, and so not made whole.
#[derive(Deserialize)]
struct End<'a> {
    metadata: EndMetadata,
    #[serde(borrow)]
    status: Option<EndStatus<'a>>,
}

#[derive(Deserialize)]
struct EndMetadata {
    #[serde(rename = "deletionTimestamp")]
    deletion_timestamp: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct EndStatus<'a> {
    #[serde(borrow)]
    phase: Option<Cow<'a, str>>,
}

#[async_trait]
impl Admit for NamespaceLifecycle {
    async fn mutate(
        &self,
        attributes: &Attributes,
        _object: &mut dyn Object,
        _old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        let reviews = attributes.kind.gvk() == kinds::LOCAL_SUBJECT_ACCESS_REVIEW.gvk();
        if !attributes.kind.is_namespaced() || reviews || attributes.operation == Operation::Delete {
            return Ok(());
        }
        let Some(going) = self.is_going(&attributes.namespace).await? else {
            return Err(StatusError::not_found("", "namespaces", &attributes.namespace));
        };
        if attributes.operation == Operation::Create && going {
            let mut refused = attributes.forbidden(format!(
                "unable to create new content in namespace {} because it is being terminated",
                attributes.namespace
            ));
            if let Some(details) = &mut refused.0.details {
                details.causes = Some(vec![StatusCause {
                    reason: Some("NamespaceTerminating".to_owned()),
                    message: Some(format!("namespace {} is being terminated", attributes.namespace)),
                    field: Some("metadata.namespace".to_owned()),
                }]);
            }
            return Err(refused);
        }
        Ok(())
    }

    async fn validate(
        &self,
        attributes: &Attributes,
        _object: Option<&dyn Object>,
        _old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        let deletes = attributes.operation == Operation::Delete && attributes.is(&kinds::NAMESPACE);
        if deletes && IMMORTAL.contains(&attributes.name.as_str()) {
            return Err(attributes.forbidden("this namespace may not be deleted"));
        }
        Ok(())
    }
}
