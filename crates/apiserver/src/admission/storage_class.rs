//! DefaultStorageClass: a claim that names no class gets the cluster's.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use krate_api::{StatusError, kinds};

use super::{Admit, Attributes, lookup};
use crate::kinds::Kinds;
use crate::registry::erased::Object;

const DEFAULT: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
const CLASS: &str = "volume.beta.kubernetes.io/storage-class";

pub struct DefaultStorageClass {
    kinds: Arc<Kinds>,
}

impl DefaultStorageClass {
    pub fn new(kinds: Arc<Kinds>) -> Self {
        DefaultStorageClass { kinds }
    }
}

/// Whether one of these annotations says `true`.
pub fn says(meta: &ObjectMeta, annotations: &[&str]) -> bool {
    let said =
        |name: &&str| meta.annotations.as_ref().is_some_and(|a| a.get(*name).is_some_and(|v| v == "true"));
    annotations.iter().any(said)
}

/// Of several defaults the newest counts, and of those of one age the first by name.
pub fn newest<T>(candidates: Vec<T>, meta: impl Fn(&T) -> &ObjectMeta) -> Option<T> {
    candidates.into_iter().min_by_key(|candidate| {
        let meta = meta(candidate);
        let created = meta.creation_timestamp.as_ref().map(|t| t.0);
        (std::cmp::Reverse(created), meta.name.clone())
    })
}

#[async_trait]
impl Admit for DefaultStorageClass {
    async fn mutate(
        &self,
        attributes: &Attributes,
        object: &mut dyn Object,
        _old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        if !attributes.is(&kinds::PERSISTENT_VOLUME_CLAIM) {
            return Ok(());
        }
        let Some(claim) = object.is_mut::<PersistentVolumeClaim>() else { return Ok(()) };
        let annotated = claim.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(CLASS));
        let spec = claim.spec.get_or_insert_default();
        if annotated || spec.storage_class_name.is_some() {
            return Ok(());
        }
        let mut classes =
            lookup::all::<StorageClass>(&self.kinds, "storage.k8s.io", "storageclasses", "").await?;
        classes.retain(|class| says(&class.metadata, &DEFAULT));
        if let Some(class) = newest(classes, |class| &class.metadata) {
            spec.storage_class_name = class.metadata.name;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_newest_default_counts() {
        let class = |name: &str, second: u32, default: &str| -> StorageClass {
            serde_json::from_value(json!({"provisioner": "p", "metadata": {"name": name,
                "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z"),
                "annotations": {DEFAULT[0]: default}}}))
            .expect("a class")
        };
        let mut all =
            vec![class("old", 1, "true"), class("b", 2, "true"), class("a", 2, "true"), class("x", 9, "no")];
        all.retain(|c| says(&c.metadata, &DEFAULT));
        assert_eq!(newest(all, |c| &c.metadata).and_then(|c| c.metadata.name).as_deref(), Some("a"));
    }
}
