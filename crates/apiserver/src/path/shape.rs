//! Objects in other shapes than their own: rows of a `Table` (what `kubectl get` prints), or their metadata alone.

use bytes::{BufMut as _, Bytes, BytesMut};
use krate_api::{FieldErrors, FieldPath, StatusError};
use krate_store::Revision;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::http::Shape;
use crate::request::Query;
use crate::storage::Storage;

/// The annotation of the bookmark behind which a watch goes on from what was there (KEP-3157).
pub const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// Whether a table's rows can have what is asked for in them.
///
/// # Errors
/// They cannot.
pub fn check(shape: Shape, query: &Query) -> Result<(), StatusError> {
    let Some(said) = query.get("includeObject").filter(|_| shape == Shape::Table) else { return Ok(()) };
    if matches!(said, "None" | "Metadata" | "Object") {
        return Ok(());
    }
    let mut errors = FieldErrors::new();
    let why = "must be 'Metadata', 'Object', 'None', or empty";
    errors.invalid(&FieldPath::new("includeObject"), said, why);
    Err(StatusError::bad_request(format!("Unable to convert to Table as requested: {}", errors.aggregate())))
}

fn parse(json: &[u8]) -> Result<Value, StatusError> {
    serde_json::from_slice(json).map_err(StatusError::internal)
}

fn bytes(value: &Value) -> Bytes {
    value.to_string().into()
}

/// An object in a shape.
pub fn one(storage: &Storage, shape: Shape, object: &Bytes, query: &Query) -> Result<Bytes, StatusError> {
    Ok(match shape {
        Shape::Object => object.clone(),
        Shape::Metadata => metadata_alone(object)?,
        Shape::Table => {
            let version = parse(object)?.pointer("/metadata/resourceVersion").cloned().unwrap_or_default();
            bytes(&table(
                storage,
                std::slice::from_ref(object),
                json!({"resourceVersion": version}),
                true,
                query,
            )?)
        }
    })
}

/// The table of one object that has columns of its own, such as a Scale.
///
/// # Errors
/// The table cannot be as it is asked for.
pub fn table_of(
    columns: Value,
    cells: Vec<Value>,
    object: &Bytes,
    query: &Query,
) -> Result<Bytes, StatusError> {
    check(Shape::Table, query)?;
    let row = row(cells, object, false, query)?;
    let version = parse(object)?.pointer("/metadata/resourceVersion").cloned().unwrap_or_default();
    Ok(bytes(&json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": version},
        "columnDefinitions": columns, "rows": [row],
    })))
}

/// A row of a table. `ends`: its object says that what was there has been told, whatever else a row has.
fn row(cells: Vec<Value>, object: &[u8], ends: bool, query: &Query) -> Result<Value, StatusError> {
    let mut row = Map::new();
    row.insert("cells".into(), cells.into());
    match query.get("includeObject") {
        Some("None") if !ends => {}
        Some("Object") => {
            row.insert("object".into(), parse(object)?);
        }
        _ => {
            row.insert("object".into(), metadata_of(object)?);
        }
    }
    Ok(Value::Object(row))
}

/// A list in a shape. `meta` is its metadata.
pub fn many(
    storage: &Storage,
    shape: Shape,
    objects: &[Bytes],
    meta: Value,
    query: &Query,
) -> Result<Bytes, StatusError> {
    Ok(match shape {
        Shape::Table => bytes(&table(storage, objects, meta, true, query)?),
        Shape::Metadata | Shape::Object => {
            let mut out = BytesMut::new();
            out.put_slice(
                b"{\"kind\":\"PartialObjectMetadataList\",\"apiVersion\":\"meta.k8s.io/v1\",\"metadata\":",
            );
            out.put_slice(meta.to_string().as_bytes());
            // Upstream begins with no list at all.
            out.put_slice(if objects.is_empty() { b",\"items\":null}" } else { b",\"items\":[" });
            for (i, object) in objects.iter().enumerate() {
                out.put_slice(if i > 0 { b"," } else { b"" });
                out.put_slice(&metadata_alone(object)?);
            }
            out.put_slice(if objects.is_empty() { b"" } else { b"]}" });
            out.freeze()
        }
    })
}

/// The object of a watch event in a shape. Only the first event of a watch has a table's columns.
pub fn event(
    storage: &Storage,
    shape: Shape,
    object: &Bytes,
    revision: Revision,
    first: bool,
    query: &Query,
) -> Result<Bytes, StatusError> {
    match shape {
        Shape::Table => {
            let meta = json!({"resourceVersion": revision.to_string()});
            Ok(bytes(&table(storage, std::slice::from_ref(object), meta, first, query)?))
        }
        other => one(storage, other, object, query),
    }
}

/// An object's metadata alone, as it stands in its text: whoever watches metadata hears of every write.
fn metadata_alone(object: &[u8]) -> Result<Bytes, StatusError> {
    #[derive(Deserialize)]
    struct Has<'a> {
        #[serde(borrow)]
        metadata: Option<&'a RawValue>,
    }
    let Has { metadata } = serde_json::from_slice(object).map_err(StatusError::internal)?;
    let metadata = metadata.map_or("{}", RawValue::get);
    let mut out = BytesMut::with_capacity(metadata.len() + 80);
    out.put_slice(b"{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"meta.k8s.io/v1\",\"metadata\":");
    out.put_slice(metadata.as_bytes());
    out.put_u8(b'}');
    Ok(out.freeze())
}

fn metadata_of(object: &[u8]) -> Result<Value, StatusError> {
    parse(&metadata_alone(object)?)
}

fn table(
    storage: &Storage,
    objects: &[Bytes],
    meta: Value,
    columns: bool,
    query: &Query,
) -> Result<Value, StatusError> {
    check(Shape::Table, query)?;
    let registry = &storage.registry;
    let mut rows = Vec::with_capacity(objects.len());
    for json in objects {
        let object = registry.decode(json).map_err(StatusError::internal)?;
        let annotations = object.meta().annotations.as_ref();
        let ends = annotations.is_some_and(|all| all.contains_key(INITIAL_EVENTS_END));
        rows.push(row(registry.cells(&*object), json, ends, query)?);
    }
    let mut out = json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": meta});
    // Clients take what comes later to have the columns that came first.
    out["columnDefinitions"] = if columns { registry.columns() } else { Value::Null };
    out["rows"] = rows.into();
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_one_of_three_things_in_them() {
        let check = |said: &str| check(Shape::Table, &Query::parse(Some(&format!("includeObject={said}"))));
        for said in ["", "None", "Metadata", "Object"] {
            assert!(check(said).is_ok(), "{said}");
        }
        let refused = check("bad").expect_err("none of them");
        let told = "Unable to convert to Table as requested: includeObject: Invalid value: \"bad\": must be 'Metadata', \
                    'Object', 'None', or empty";
        assert_eq!((refused.code(), refused.to_string().as_str()), (400, told));
    }
}
