//! Objects in other shapes than their own: rows of a `Table` (what `kubectl get` prints), or their metadata alone.

use bytes::{BufMut as _, Bytes, BytesMut};
use krate_api::StatusError;
use krate_store::Revision;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::http::Shape;
use crate::request::Query;
use crate::storage::Storage;

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
    let registry = &storage.registry;
    let mut rows = Vec::with_capacity(objects.len());
    for json in objects {
        let object = registry.decode(json).map_err(StatusError::internal)?;
        let mut row = Map::new();
        row.insert("cells".into(), registry.cells(&*object).into());
        match query.get("includeObject") {
            Some("None") => {}
            Some("Object") => {
                row.insert("object".into(), parse(json)?);
            }
            _ => {
                row.insert("object".into(), metadata_of(json)?);
            }
        }
        rows.push(Value::Object(row));
    }
    let mut out = json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": meta});
    // Clients take what comes later to have the columns that came first.
    out["columnDefinitions"] = if columns { registry.columns() } else { Value::Null };
    out["rows"] = rows.into();
    Ok(out)
}
