//! A custom resource's types in the one schema model, from the OpenAPI v3 schema of its definition: server-side apply,
//! field ownership and strict decoding read them there.

use krate_api::schema::{
    Field, ListKey, ListKind, Node, NodeId, Object, PatchStrategy, Schema, Text, TypeRef, built_in,
};
use serde_json::Value;

use super::prune::{EMBEDDED, PRESERVE, says};

/// The types of one version.
pub struct Types {
    schema: Schema,
    root: NodeId,
}

impl Types {
    /// From the schema of a version; nothing said of anything leaves everything free.
    pub fn new(open_api: &Value) -> Self {
        let mut schema = Schema::new();
        let metadata = match built_in().named("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta") {
            Some(there) => schema.import(there),
            None => schema.push(Node::Any),
        };
        let mut builder = Builder { schema, metadata };
        let mut object = builder.object(open_api);
        builder.add_type_meta(&mut object);
        let root = builder.schema.push(Node::Object(Box::new(object)));
        Types { schema: builder.schema, root }
    }

    pub fn root(&self) -> TypeRef<'_> {
        self.schema.get(self.root)
    }
}

struct Builder {
    schema: Schema,
    metadata: NodeId,
}

impl Builder {
    fn node(&mut self, open_api: &Value) -> NodeId {
        let kind = open_api.get("type").and_then(Value::as_str).unwrap_or_default();
        let format = open_api.get("format").and_then(Value::as_str).unwrap_or_default();
        let node = match kind {
            _ if says(open_api, "x-kubernetes-int-or-string") => Node::IntOrString,
            "string" => Node::String,
            "boolean" => Node::Bool,
            "integer" if format == "int32" => Node::Int32,
            "integer" => Node::Int64,
            "number" => Node::Double,
            "array" => self.list(open_api),
            "object" => match super::prune::additional(open_api) {
                Some(inner) if open_api.get("properties").is_none() => {
                    let value = self.node(inner);
                    let atomic = open_api.get("x-kubernetes-map-type") == Some(&Value::from("atomic"));
                    Node::Map { value, atomic, wrapped: false }
                }
                _ => {
                    let mut object = self.object(open_api);
                    if says(open_api, EMBEDDED) {
                        self.add_type_meta(&mut object);
                    }
                    Node::Object(Box::new(object))
                }
            },
            _ => Node::Any,
        };
        self.schema.push(node)
    }

    fn object(&mut self, open_api: &Value) -> Object {
        let properties = open_api.get("properties").and_then(Value::as_object).into_iter().flatten();
        let required = open_api.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
        let mut fields: Vec<Field> = properties
            .map(|(name, inner)| {
                let node = self.node(inner);
                let is_required = required.iter().any(|r| r.as_str() == Some(name));
                field(name.clone().into(), node, is_required)
            })
            .collect();
        fields.sort_by(|a, b| a.name.cmp(&b.name));
        let additional = if let Some(inner) = super::prune::additional(open_api) {
            Some(self.node(inner))
        } else {
            says(open_api, PRESERVE).then(|| self.schema.push(Node::Any))
        };
        Object {
            fields,
            additional,
            atomic: open_api.get("x-kubernetes-map-type") == Some(&Value::from("atomic")),
            ..Object::default()
        }
    }

    fn list(&mut self, open_api: &Value) -> Node {
        let none = Value::Null;
        let items = open_api.get("items").unwrap_or(&none);
        let item = self.node(items);
        let kind = match open_api.get("x-kubernetes-list-type").and_then(Value::as_str) {
            Some("set") => ListKind::Set,
            Some("map") => {
                let keys = open_api.get("x-kubernetes-list-map-keys").and_then(Value::as_array);
                let key = |name: &str| ListKey {
                    name: Text::Owned(name.to_owned()),
                    default: items.pointer(&format!("/properties/{name}/default")).cloned(),
                };
                ListKind::Map(keys.into_iter().flatten().filter_map(Value::as_str).map(key).collect())
            }
            _ => ListKind::Atomic,
        };
        Node::List { item, kind, wrapped: false }
    }

    /// The fields of every object.
    fn add_type_meta(&mut self, object: &mut Object) {
        let text = self.schema.push(Node::String);
        for (name, node) in [("apiVersion", text), ("kind", text), ("metadata", self.metadata)] {
            object.fields.retain(|f| f.name != name);
            object.fields.push(field(Text::Borrowed(name), node, false));
        }
        object.fields.sort_by(|a, b| a.name.cmp(&b.name));
    }
}

fn field(name: Text, node: NodeId, required: bool) -> Field {
    Field {
        name,
        node,
        required,
        // What a client sends is kept as it is: zero is a value.
        pointer: true,
        always: false,
        omit_zero: false,
        says_atomic: false,
        says_granular: false,
        patch: PatchStrategy::default(),
        merge_key: None,
        proto: [0; 3],
        values: "",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_maps_and_free_fields_have_their_types() {
        let types = Types::new(
            &json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
                "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["n", "p"],
                    "items": {"type": "object", "properties": {"n": {"type": "integer"}, "p": {"default": "TCP", "type": "string"}}}},
                "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
                "free": {"type": "object", PRESERVE: true},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            }}}}),
        );
        let spec = types.root().member("spec").expect("spec");
        let Node::List { kind: ListKind::Map(keys), .. } = spec.member("ports").expect("ports").node() else {
            panic!("ports are a map list")
        };
        assert_eq!(keys[1].default, Some(json!("TCP")));
        assert!(matches!(spec.member("tags").expect("tags").node(), Node::List { kind: ListKind::Set, .. }));
        assert!(matches!(spec.member("free").and_then(|f| f.member("x")).expect("x").node(), Node::Any));
        assert!(matches!(spec.member("labels").expect("labels").node(), Node::Map { .. }));
        assert!(types.root().member("metadata").and_then(|m| m.member("labels")).is_some());
        assert!(spec.member("other").is_none());
    }
}
