//! Changes to an object as clients send them: JSON patches (RFC 6902), merge patches (RFC 7386) and strategic merge
//! patches. Server-side apply is in [`crate::managed`].

use serde_json::{Map, Value};

use crate::json;
use crate::status::{Reason, StatusError};

mod json_patch;
mod strategic;

pub use json_patch::{JsonPatch, MAX_OPERATIONS};
pub use strategic::strategic;

/// Why a patch was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// It is no patch. The text is what Go's decoder says.
    #[error("error decoding patch: {0}")]
    Decode(String),
    #[error("The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {0}")]
    TooManyOperations(usize),
    /// It does not fit the object.
    #[error("{0}")]
    DoesNotApply(String),
    /// What it says to the merge is not such as may be said.
    #[error("{0}")]
    Malformed(String),
    /// A fault that upstream answers as one of its own.
    #[error("{0}")]
    Internal(String),
}

impl PatchError {
    /// As it is sent. Upstream does not say why a JSON patch failed, only that it did.
    pub fn status(&self) -> StatusError {
        match self {
            PatchError::Decode(_) | PatchError::Malformed(_) => StatusError::bad_request(self.to_string()),
            PatchError::Internal(text) => {
                // Upstream sends such an error as it is, without a reason.
                let mut status = StatusError::new(Reason::InternalError, text.clone());
                status.0.reason = None;
                status
            }
            PatchError::TooManyOperations(_) => {
                StatusError::new(Reason::RequestEntityTooLarge, self.to_string())
            }
            PatchError::DoesNotApply(_) => StatusError::with_details(
                Reason::Invalid,
                "the server rejected our request due to an error in our request",
                Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::StatusDetails::default()),
            ),
        }
    }
}

/// Reads a merge patch or a strategic merge patch: a JSON object.
pub fn decode_object(patch: &[u8]) -> Result<Value, PatchError> {
    let value = json::parse(patch).map_err(PatchError::Decode)?;
    if value.is_object() {
        return Ok(value);
    }
    let found = go_kind(&value);
    Err(PatchError::Decode(format!(
        "json: cannot unmarshal {found} into Go value of type map[string]interface {{}}"
    )))
}

/// How Go's decoder names what it found.
fn go_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Applies a merge patch: objects are merged, null removes, all else replaces.
pub fn merge(document: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *document = patch;
        return;
    };
    if !document.is_object() {
        *document = Value::Object(Map::new());
    }
    let Value::Object(fields) = document else { return };
    for (key, value) in patch {
        if value.is_null() {
            fields.remove(&key);
        } else {
            merge(fields.entry(key).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn merge_patches_are_those_of_the_rfc() {
        // The test cases of RFC 7386, appendix A.
        let cases = [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"a": "b"}), json!(["c"]), json!(["c"])),
            (json!({"a": "foo"}), json!(null), json!(null)),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!([1, 2]), json!({"a": "b", "c": null}), json!({"a": "b"})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        ];
        for (mut document, patch, wanted) in cases {
            merge(&mut document, patch.clone());
            assert_eq!(document, wanted, "{patch}");
        }
    }

    #[test]
    fn what_is_no_patch_is_refused_in_upstreams_words() {
        let text = |p: &[u8]| decode_object(p).map_err(|e| e.to_string());
        assert_eq!(
            text(b"not json"),
            Err("error decoding patch: invalid character 'o' in literal null (expecting 'u')".to_owned())
        );
        assert_eq!(
            text(b"[]"),
            Err("error decoding patch: json: cannot unmarshal array into Go value of type map[string]interface {}"
                .to_owned())
        );
        assert_eq!(PatchError::DoesNotApply(String::new()).status().code(), 422);
        assert_eq!(PatchError::TooManyOperations(10_001).status().code(), 413);
    }

    pub(crate) fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (0..4).prop_map(Value::from),
            "[ab]{0,1}".prop_map(Value::from)
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-d]", inner, 0..4)
                    .prop_map(|m| Value::Object(m.into_iter().collect()))
            ]
        })
    }

    proptest! {
        #[test]
        fn merging_twice_changes_nothing_more(document in any_value(), patch in any_value()) {
            let mut once = document;
            merge(&mut once, patch.clone());
            let mut twice = once.clone();
            merge(&mut twice, patch);
            prop_assert_eq!(once, twice);
        }
    }
}
