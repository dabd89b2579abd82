//! What is watched of every object of the cluster: of its metadata just what the graph keeps. The rest, managed fields
//! above all, is passed over unread: the collector hears of every write that there is.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::Resource;
use kube::core::{ApiResource, DynamicResourceScope};
use serde::Deserialize;

/// An object, of which the API is asked for the metadata alone (`PartialObjectMetadata`).
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Read")]
pub struct Metadata(pub ObjectMeta);

#[derive(Deserialize)]
struct Read {
    #[serde(default)]
    metadata: Kept,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Kept {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    deletion_timestamp: Option<Time>,
    finalizers: Option<Vec<String>>,
    owner_references: Option<Vec<OwnerReference>>,
}

impl From<Read> for Metadata {
    fn from(Read { metadata }: Read) -> Self {
        Metadata(ObjectMeta {
            name: metadata.name,
            namespace: metadata.namespace,
            uid: metadata.uid,
            resource_version: metadata.resource_version,
            deletion_timestamp: metadata.deletion_timestamp,
            finalizers: metadata.finalizers,
            owner_references: metadata.owner_references,
            ..ObjectMeta::default()
        })
    }
}

impl Resource for Metadata {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(of: &ApiResource) -> Cow<'_, str> {
        Cow::Borrowed(&of.kind)
    }

    fn group(of: &ApiResource) -> Cow<'_, str> {
        Cow::Borrowed(&of.group)
    }

    fn version(of: &ApiResource) -> Cow<'_, str> {
        Cow::Borrowed(&of.version)
    }

    fn api_version(of: &ApiResource) -> Cow<'_, str> {
        Cow::Borrowed(&of.api_version)
    }

    fn plural(of: &ApiResource) -> Cow<'_, str> {
        Cow::Borrowed(&of.plural)
    }

    fn meta(&self) -> &ObjectMeta {
        &self.0
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.0
    }

    fn metadata_api() -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_graph_keeps_is_read_and_no_more() {
        let json = br#"{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{"name":"a","uid":"u",
            "resourceVersion":"7","labels":{"a":"b"},"managedFields":[{"manager":"m"}],"finalizers":["f"],
            "deletionTimestamp":"2026-01-02T03:04:05Z","ownerReferences":
            [{"apiVersion":"v1","kind":"Node","name":"n","uid":"o","blockOwnerDeletion":true}]}}"#;
        let Metadata(meta) = serde_json::from_slice(json).expect("metadata");
        assert_eq!((meta.name.as_deref(), meta.uid.as_deref()), (Some("a"), Some("u")));
        assert_eq!(meta.resource_version.as_deref(), Some("7"));
        assert!(meta.deletion_timestamp.is_some() && meta.managed_fields.is_none() && meta.labels.is_none());
        assert_eq!(meta.finalizers, Some(vec!["f".to_owned()]));
        assert!(meta.owner_references.is_some_and(|owners| owners[0].block_owner_deletion == Some(true)));
    }
}
