//! The head of a stored object, read out of its JSON without making the whole object: what lists and watches are
//! filtered by, and garbage collection looks at.

use std::borrow::Cow;
use std::collections::BTreeMap;

use krate_store::cache::{Head, Owner};
use serde::Deserialize;

#[derive(Deserialize)]
struct Bare<'a> {
    #[serde(borrow)]
    metadata: Metadata<'a>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Metadata<'a> {
    #[serde(borrow)]
    namespace: Option<Cow<'a, str>>,
    #[serde(borrow)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow)]
    uid: Option<Cow<'a, str>>,
    labels: Option<BTreeMap<Box<str>, Box<str>>>,
    owner_references: Option<Vec<Reference>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Reference {
    uid: Box<str>,
    controller: Option<bool>,
    block_owner_deletion: Option<bool>,
}

/// The head of an object whose kind has no fields to select by but those of the metadata.
///
/// # Errors
/// The text is no JSON, or its metadata is none.
pub fn read(json: &[u8]) -> Result<Head, serde_json::Error> {
    let Bare { metadata } = serde_json::from_slice(json)?;
    let text = |text: Option<Cow<'_, str>>| text.unwrap_or_default().into();
    Ok(Head {
        namespace: text(metadata.namespace),
        name: text(metadata.name),
        uid: text(metadata.uid),
        labels: metadata.labels.unwrap_or_default().into_iter().collect(),
        owners: metadata.owner_references.into_iter().flatten().map(Owner::from).collect(),
        fields: Box::default(),
    })
}

impl From<Reference> for Owner {
    fn from(reference: Reference) -> Self {
        Owner {
            uid: reference.uid,
            controller: reference.controller == Some(true),
            block_owner_deletion: reference.block_owner_deletion == Some(true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_without_its_object() {
        let json = br#"{"kind":"X","metadata":{"annotations":{"a":"\u00e9"},"labels":{"b":"2","a":"1"},"name":"n\"",
            "managedFields":[{}],"ownerReferences":[{"uid":"u1","name":"o","controller":true},{"uid":"u2"}],"uid":"u"},
            "data":{"metadata":"x"}}"#;
        let head = read(json).expect("an object");
        assert_eq!((&*head.namespace, &*head.name, &*head.uid), ("", "n\"", "u"));
        assert_eq!((head.label("a"), head.label("b")), (Some("1"), Some("2")));
        let owner =
            |uid: &str, controller| Owner { uid: uid.into(), controller, block_owner_deletion: false };
        assert_eq!(*head.owners, [owner("u1", true), owner("u2", false)]);
        assert!(read(b"{}").is_err());
    }
}
