//! PersistentVolumeClaimResize: a claim grows only where its class lets it.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::api::storage::v1::StorageClass;
use krate_api::quota::parsed;
use krate_api::{Quantity, StatusError, kinds};

use super::{Admit, Attributes, lookup};
use crate::kinds::Kinds;
use crate::registry::erased::Object;

pub struct PersistentVolumeClaimResize {
    kinds: Arc<Kinds>,
}

impl PersistentVolumeClaimResize {
    pub fn new(kinds: Arc<Kinds>) -> Self {
        PersistentVolumeClaimResize { kinds }
    }

    /// Whether the class of both lets volumes grow.
    async fn may_grow(
        &self,
        new: &PersistentVolumeClaim,
        old: &PersistentVolumeClaim,
    ) -> Result<bool, StatusError> {
        let Some(class) = class(new).filter(|c| !c.is_empty() && Some(*c) == class(old)) else {
            return Ok(false);
        };
        let found =
            lookup::find::<StorageClass>(&self.kinds, "storage.k8s.io", "storageclasses", "", class).await?;
        Ok(found.is_some_and(|class| class.allow_volume_expansion == Some(true)))
    }
}

fn size(claim: &PersistentVolumeClaim) -> Quantity {
    let requests = claim.spec.as_ref().and_then(|s| s.resources.as_ref()?.requests.as_ref());
    requests.and_then(|r| r.get("storage")).map(parsed).unwrap_or_default()
}

fn class(claim: &PersistentVolumeClaim) -> Option<&str> {
    let annotations = claim.metadata.annotations.as_ref();
    let annotated = annotations.and_then(|a| a.get("volume.beta.kubernetes.io/storage-class"));
    annotated.or_else(|| claim.spec.as_ref()?.storage_class_name.as_ref()).map(String::as_str)
}

#[async_trait]
impl Admit for PersistentVolumeClaimResize {
    async fn validate(
        &self,
        attributes: &Attributes,
        object: Option<&dyn Object>,
        old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        if !attributes.is(&kinds::PERSISTENT_VOLUME_CLAIM) {
            return Ok(());
        }
        let typed = |o: Option<&dyn Object>| o.and_then(|o| o.is::<PersistentVolumeClaim>().cloned());
        let (Some(new), Some(old)) = (typed(object), typed(old)) else { return Ok(()) };
        if size(&new) <= size(&old) {
            return Ok(());
        }
        if old.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Bound") {
            return Err(attributes.forbidden("Only bound persistent volume claims can be expanded"));
        }
        if self.may_grow(&new, &old).await? {
            return Ok(());
        }
        Err(attributes.forbidden(
            "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must \
             support resize",
        ))
    }
}
