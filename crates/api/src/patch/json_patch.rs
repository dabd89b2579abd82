//! JSON patches, with what upstream's library does beyond RFC 6902: negative indices count from the end, and a test
//! for null succeeds where there is nothing.

use serde_json::Value;

use super::{PatchError, go_kind};
use crate::json;

/// How many operations a patch may have.
pub const MAX_OPERATIONS: usize = 10_000;
/// How many bytes of JSON the operations of a patch may copy in all: each could double what is there.
const MAX_COPIED: usize = 3 * 1024 * 1024;

/// A patch that was read; nothing is known yet of the object that it is for.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPatch(Vec<Operation>);

#[derive(Clone, Debug, PartialEq)]
struct Operation {
    op: String,
    path: String,
    from: String,
    value: Option<Value>,
}

type Result<T> = std::result::Result<T, PatchError>;

impl JsonPatch {
    /// Reads a patch. What is no list of operations is refused; an operation that does not exist is found when the
    /// patch is applied.
    pub fn decode(patch: &[u8]) -> Result<Self> {
        let items = match json::parse(patch).map_err(PatchError::Decode)? {
            Value::Array(items) => items,
            Value::Null => Vec::new(),
            other => {
                let found = go_kind(&other);
                return Err(PatchError::Decode(format!(
                    "json: cannot unmarshal {found} into Go value of type []handlers.jsonPatchOp"
                )));
            }
        };
        if items.len() > MAX_OPERATIONS {
            return Err(PatchError::TooManyOperations(items.len()));
        }
        items.into_iter().map(operation).collect::<Result<Vec<_>>>().map(JsonPatch)
    }

    /// Applies the patch. Where it fails the document is left half changed: callers give a copy.
    pub fn apply(&self, document: &mut Value) -> Result<()> {
        let mut copied = 0;
        self.0.iter().try_for_each(|operation| operation.apply(document, &mut copied))
    }

    /// Whether an operation leads to this field, to what is in it, or to what it is in.
    pub fn concerns(&self, field: &[&str]) -> bool {
        let leads = |path: &str| steps(path).zip(field).all(|(step, name)| step == *name);
        let reads = |operation: &Operation| matches!(operation.op.as_str(), "move" | "copy");
        self.0.iter().any(|operation| leads(&operation.path) || (reads(operation) && leads(&operation.from)))
    }
}

fn operation(item: Value) -> Result<Operation> {
    let Value::Object(mut fields) = item else {
        let found = go_kind(&item);
        return Err(PatchError::Decode(format!(
            "json: cannot unmarshal {found} into Go value of type handlers.jsonPatchOp"
        )));
    };
    let mut text = |field: &str| match fields.remove(field) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(s)) => Ok(s),
        Some(other) => Err(PatchError::Decode(format!(
            "json: cannot unmarshal {} into Go struct field jsonPatchOp.{field} of type string",
            go_kind(&other)
        ))),
    };
    let (op, path, from) = (text("op")?, text("path")?, text("from")?);
    Ok(Operation { op, path, from, value: fields.remove("value") })
}

impl Operation {
    /// `copied`: how many bytes of JSON the operations before it have copied.
    fn apply(&self, document: &mut Value, copied: &mut usize) -> Result<()> {
        let value = || {
            self.value
                .clone()
                .ok_or_else(|| does_not_apply(&self.op, &self.path, "the operation has no value"))
        };
        match self.op.as_str() {
            "add" => add(document, &self.path, value()?),
            "remove" => remove(document, &self.path).map(drop),
            "replace" => {
                let value = value()?;
                *find(document, &self.path, "replace")? = value;
                Ok(())
            }
            "move" => {
                let value = remove(document, &self.from)?;
                add(document, &self.path, value)
            }
            "copy" => {
                let value = find(document, &self.from, "copy")?;
                *copied += value.to_string().len();
                if *copied > MAX_COPIED {
                    return Err(PatchError::DoesNotApply(format!(
                        "Unable to complete the copy, the accumulated size increase of copy is {copied}, \
                         exceeding the limit {MAX_COPIED}"
                    )));
                }
                let value = value.clone();
                add(document, &self.path, value)
            }
            "test" => {
                let wanted = self.value.as_ref().unwrap_or(&Value::Null);
                let found = find(document, &self.path, "test").ok();
                match found {
                    Some(found) if found == wanted => Ok(()),
                    None if wanted.is_null() => Ok(()),
                    _ => Err(does_not_apply("test", &self.path, "the value is another")),
                }
            }
            other => Err(does_not_apply(other, &self.path, "there is no such operation")),
        }
    }
}

fn does_not_apply(op: &str, path: &str, why: &str) -> PatchError {
    PatchError::DoesNotApply(format!("{op} operation does not apply to {path:?}: {why}"))
}

/// The steps of a pointer. The empty pointer has none: it is the document.
fn steps(path: &str) -> impl Iterator<Item = String> {
    path.split('/').skip(1).map(|step| step.replace("~1", "/").replace("~0", "~"))
}

/// The place that a step names in a list of so many; `-` is the one after the last.
fn index(step: &str, len: usize) -> Option<usize> {
    if step == "-" {
        return Some(len);
    }
    match step.strip_prefix('-') {
        Some(back) => back.parse::<usize>().ok().filter(|b| *b >= 1).and_then(|b| len.checked_sub(b)),
        None if step.len() > 1 && step.starts_with('0') => None,
        None => step.parse().ok().filter(|i| *i <= len),
    }
}

fn find<'a>(document: &'a mut Value, path: &str, op: &str) -> Result<&'a mut Value> {
    let mut at = document;
    for step in steps(path) {
        let next = match at {
            Value::Object(fields) => fields.get_mut(&step),
            Value::Array(items) => index(&step, items.len()).and_then(|i| items.get_mut(i)),
            _ => None,
        };
        at = next.ok_or_else(|| does_not_apply(op, path, "there is no such path"))?;
    }
    Ok(at)
}

/// A pointer without its last step, and that step.
fn parent(path: &str) -> Option<(&str, String)> {
    let (parent, _) = path.rsplit_once('/')?;
    steps(&path[parent.len()..]).last().map(|last| (parent, last))
}

fn add(document: &mut Value, path: &str, value: Value) -> Result<()> {
    let Some((parent, last)) = parent(path) else {
        if path.is_empty() {
            *document = value;
            return Ok(());
        }
        return Err(does_not_apply("add", path, "it is no pointer"));
    };
    match find(document, parent, "add")? {
        Value::Object(fields) => {
            fields.insert(last, value);
            Ok(())
        }
        Value::Array(items) => {
            // A negative index here counts the places of the longer list.
            let place = match last.strip_prefix('-') {
                Some(back) if !back.is_empty() => index(&last, items.len() + 1),
                _ => index(&last, items.len()),
            };
            let place = place.filter(|i| *i <= items.len());
            let place = place.ok_or_else(|| does_not_apply("add", path, "the index is out of bounds"))?;
            items.insert(place, value);
            Ok(())
        }
        _ => Err(does_not_apply("add", path, "there is nothing to add to")),
    }
}

fn remove(document: &mut Value, path: &str) -> Result<Value> {
    let missing = || does_not_apply("remove", path, "there is no such path");
    let (parent, last) = parent(path).ok_or_else(missing)?;
    match find(document, parent, "remove")? {
        Value::Object(fields) => fields.remove(&last).ok_or_else(missing),
        Value::Array(items) => {
            let place = index(&last, items.len()).filter(|i| *i < items.len()).ok_or_else(missing)?;
            Ok(items.remove(place))
        }
        _ => Err(missing()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn patched(mut document: Value, patch: Value) -> std::result::Result<Value, PatchError> {
        JsonPatch::decode(patch.to_string().as_bytes())?.apply(&mut document)?;
        Ok(document)
    }

    #[test]
    fn a_patch_concerns_what_its_operations_lead_to_and_through() {
        let cases = [
            (json!([]), false),
            (json!([{"op": "add", "path": "/a/c", "value": 1}, {"op": "remove", "path": "/b"}]), false),
            (json!([{"op": "add", "path": "/ab/b", "value": 1}]), false),
            (json!([{"op": "remove", "path": "/a/b"}]), true),
            (json!([{"op": "test", "path": "/a/b/0/x", "value": 1}]), true),
            (json!([{"op": "replace", "path": "/a", "value": {}}]), true),
            (json!([{"op": "add", "path": "", "value": {}}]), true),
            (json!([{"op": "copy", "from": "/a", "path": "/c"}]), true),
            (json!([{"op": "move", "from": "/a/b/0", "path": "/c"}]), true),
            (json!([{"op": "add", "from": "/a/b", "path": "/c", "value": 1}]), false),
        ];
        for (patch, concerned) in cases {
            let read = JsonPatch::decode(patch.to_string().as_bytes()).expect("a patch");
            assert_eq!(read.concerns(&["a", "b"]), concerned, "{patch}");
        }
    }

    #[test]
    fn copies_of_copies_end_before_they_take_all_memory() {
        let double = |i: usize| json!({"op": "copy", "from": "/a", "path": format!("/a/{i}")});
        let patch = |n: usize| (0..n).map(double).collect::<Value>();
        let document = json!({"a": {"text": "x".repeat(1024)}});
        let grown = patched(document.clone(), patch(10)).expect("a megabyte");
        assert!(grown.to_string().len() > 1 << 20);
        let error = patched(document, patch(40)).expect_err("a thousand gigabytes");
        assert!(error.to_string().ends_with("exceeding the limit 3145728"), "{error}");
    }

    #[test]
    fn operations_are_those_of_the_rfc() {
        let cases = [
            (json!({"a": 1}), json!([{"op": "add", "path": "/b", "value": 2}]), json!({"a": 1, "b": 2})),
            (
                json!({"a": [1, 3]}),
                json!([{"op": "add", "path": "/a/1", "value": 2}]),
                json!({"a": [1, 2, 3]}),
            ),
            (json!({"a": [1]}), json!([{"op": "add", "path": "/a/-", "value": 2}]), json!({"a": [1, 2]})),
            (json!({"a": [1]}), json!([{"op": "add", "path": "/a/-1", "value": 2}]), json!({"a": [1, 2]})),
            (json!({"a": 1}), json!([{"op": "add", "path": "/a", "value": null}]), json!({"a": null})),
            (json!({"a": 1}), json!([{"op": "add", "path": "", "value": [1]}]), json!([1])),
            (json!({"a": 1, "b": 2}), json!([{"op": "remove", "path": "/a"}]), json!({"b": 2})),
            (json!({"a": [1, 2]}), json!([{"op": "remove", "path": "/a/-1"}]), json!({"a": [1]})),
            (json!({"a": 1}), json!([{"op": "replace", "path": "/a", "value": 2}]), json!({"a": 2})),
            (json!({"a": 1}), json!([{"op": "move", "from": "/a", "path": "/b"}]), json!({"b": 1})),
            (json!({"a": 1}), json!([{"op": "copy", "from": "/a", "path": "/b"}]), json!({"a": 1, "b": 1})),
            (json!({"a": 1}), json!([{"op": "test", "path": "/a", "value": 1}]), json!({"a": 1})),
            (json!({}), json!([{"op": "test", "path": "/a", "value": null}]), json!({})),
            (
                json!({"a/b": 1, "c~d": 2}),
                json!([{"op": "remove", "path": "/a~1b"}, {"op": "remove", "path": "/c~0d"}]),
                json!({}),
            ),
            (json!({"~1": 1}), json!([{"op": "remove", "path": "/~01"}]), json!({})),
        ];
        for (document, patch, wanted) in cases {
            assert_eq!(patched(document, patch.clone()), Ok(wanted), "{patch}");
        }
    }

    #[test]
    fn what_does_not_apply_is_refused() {
        let document = json!({"a": [1], "s": "x"});
        for patch in [
            json!([{"op": "test", "path": "/a", "value": 5}]),
            json!([{"op": "remove", "path": "/none"}]),
            json!([{"op": "remove", "path": "/a/1"}]),
            json!([{"op": "remove", "path": ""}]),
            json!([{"op": "replace", "path": "/none", "value": 1}]),
            json!([{"op": "add", "path": "/none/x", "value": 1}]),
            json!([{"op": "add", "path": "/a/3", "value": 1}]),
            json!([{"op": "add", "path": "/a/01", "value": 1}]),
            json!([{"op": "add", "path": "/s/x", "value": 1}]),
            json!([{"op": "add", "path": "/b"}]),
            json!([{"op": "move", "from": "/none", "path": "/b"}]),
            json!([{"op": "nope", "path": "/x"}]),
        ] {
            let error = patched(document.clone(), patch.clone());
            assert!(matches!(error, Err(PatchError::DoesNotApply(_))), "{patch}: {error:?}");
        }
    }

    #[test]
    fn what_is_no_list_of_operations_is_refused_in_upstreams_words() {
        let text = |p: &str| JsonPatch::decode(p.as_bytes()).map_err(|e| e.to_string());
        assert_eq!(
            text("{\"not\": \"a list\"}"),
            Err("error decoding patch: json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp"
                .to_owned())
        );
        let many = format!("[{}{{}}]", "{},".repeat(MAX_OPERATIONS));
        assert_eq!(
            JsonPatch::decode(many.as_bytes()),
            Err(PatchError::TooManyOperations(MAX_OPERATIONS + 1))
        );
    }

    proptest! {
        #[test]
        fn any_operation_applies_or_is_refused(
            document in super::super::tests::any_value(),
            op in "add|remove|replace|move|copy|test",
            path in "(/([a-d]|-?[0-3]|-)){0,3}",
            from in "(/([a-d]|-?[0-3]|-)){0,3}",
        ) {
            let _ = patched(document, json!([{"op": op, "path": path, "from": from, "value": 1}]));
        }
    }
}
