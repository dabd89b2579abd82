//! The structure of types, for built-in and custom kinds alike: fields, list types and keys, patch strategies,
//! protobuf numbers. Patches, field ownership, strict decoding, the protobuf codec and OpenAPI all read it.
//!
//! The built-in types come from a table of facts that is embedded and read when it is first asked for. A schema is an
//! arena: types refer to one another by place, so that it may be recursive and is cheap to hold.

use std::borrow::Cow;
use std::sync::LazyLock;

use crate::kind::Gvk;

pub(crate) mod canonical;
mod lenient;
mod strict;
mod table;

pub use canonical::canonicalize;
pub use lenient::{NEVER, complete};
pub use strict::{Checked, check, unknown_fields};

/// A text of the embedded table, or one that a custom resource brought.
pub type Text = Cow<'static, str>;

/// The place of a node in its schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u32);

/// What a value may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// Anything at all; what it holds is merged and owned by what is found there.
    Any,
    String,
    Bool,
    Int32,
    Int64,
    Double,
    /// Base64 in JSON.
    Bytes,
    Time,
    MicroTime,
    Quantity,
    IntOrString,
    /// An object of any kind, which is one whole to patches and owners.
    Raw,
    /// A set of owned fields.
    FieldsV1,
    /// Any JSON value, which is one whole: a part of a CRD's schema.
    Json,
    /// A schema, or a list of schemas (`items` of a CRD's schema).
    PropsOrArray,
    /// A schema, or a bool (`additionalProperties`).
    PropsOrBool,
    /// A schema, or a list of names (`dependencies`).
    PropsOrStrings,
    Object(Box<Object>),
    Map {
        value: NodeId,
        atomic: bool,
        /// Protobuf wraps each value in a message of its own.
        wrapped: bool,
    },
    List {
        item: NodeId,
        kind: ListKind,
        /// Protobuf wraps the list in a message.
        wrapped: bool,
    },
}

/// What identifies the items of a list to server-side apply (KEP-555).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListKind {
    /// The list is one whole.
    Atomic,
    /// Each item is its own key.
    Set,
    /// These fields of an item are its key.
    Map(Box<[ListKey]>),
}

/// A field that is a part of a list item's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListKey {
    pub name: Text,
    /// What stands for it in the key of an item that does not have it.
    pub default: Option<serde_json::Value>,
}

/// A type with named fields.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Object {
    /// The definition's name in OpenAPI, as `io.k8s.api.core.v1.Pod`.
    pub name: Text,
    /// In the order of their names.
    pub fields: Vec<Field>,
    /// It is one whole to server-side apply.
    pub atomic: bool,
    /// Fields that are not named are kept: what they may be.
    pub additional: Option<NodeId>,
    /// The kinds whose objects it describes.
    pub gvks: Vec<Gvk<'static>>,
    /// `x-kubernetes-unions`, as JSON.
    pub unions: &'static str,
}

/// One field of a type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: Text,
    pub node: NodeId,
    pub required: bool,
    /// Its zero value is a value: upstream holds it behind a pointer.
    pub pointer: bool,
    /// It is printed even if it is empty.
    pub always: bool,
    /// An empty object or time is left out; without this only a pointer's is.
    pub omit_zero: bool,
    /// Whether the published schema says that the list is atomic, rather than say nothing.
    pub says_atomic: bool,
    /// Whether the field says that an object which is one whole elsewhere is not one here.
    pub says_granular: bool,
    pub patch: PatchStrategy,
    /// The field of an item that strategic merge patches match items by.
    pub merge_key: Option<Text>,
    /// Protobuf's field number; several where protobuf embeds what JSON shows inline. Zeros fill the rest.
    pub proto: [u8; 3],
    /// The values that the published schema names, joined by `|`.
    pub values: &'static str,
}

/// How a strategic merge patch treats a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct PatchStrategy {
    pub merge: bool,
    pub replace: bool,
    pub retain_keys: bool,
}

/// An arena of types.
#[derive(Clone, Debug, Default)]
pub struct Schema {
    nodes: Vec<Node>,
    /// Kinds and their types, sorted.
    kinds: Vec<(Gvk<'static>, NodeId)>,
}

static BUILT_IN: LazyLock<Schema> = LazyLock::new(table::read);

/// The types of the built-in kinds.
pub fn built_in() -> &'static Schema {
    &BUILT_IN
}

/// The type of a built-in kind.
pub fn of(gvk: Gvk<'_>) -> Option<TypeRef<'static>> {
    BUILT_IN.kind(gvk)
}

impl Schema {
    /// An empty arena, for a custom resource's types.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a node and tells its place.
    pub fn push(&mut self, node: Node) -> NodeId {
        self.nodes.push(node);
        NodeId(self.nodes.len() as u32 - 1)
    }

    /// Puts another node in a place: how a recursive type is closed.
    pub fn set(&mut self, at: NodeId, node: Node) {
        if let Some(slot) = self.nodes.get_mut(at.0 as usize) {
            *slot = node;
        }
    }

    pub fn get(&self, at: NodeId) -> TypeRef<'_> {
        TypeRef { schema: self, at }
    }

    /// The type of a kind's objects.
    pub fn kind(&self, gvk: Gvk<'_>) -> Option<TypeRef<'_>> {
        let place = self
            .kinds
            .binary_search_by(|(k, _)| (k.group, k.version, k.kind).cmp(&(gvk.group, gvk.version, gvk.kind)));
        place.ok().and_then(|i| self.kinds.get(i)).map(|(_, at)| self.get(*at))
    }

    /// Every type with named fields, in the order of the table.
    pub fn objects(&self) -> impl Iterator<Item = TypeRef<'_>> {
        (0..self.nodes.len() as u32).map(|i| self.get(NodeId(i))).filter(|t| t.object().is_some())
    }

    /// A type by its name in OpenAPI.
    pub fn named(&self, name: &str) -> Option<TypeRef<'_>> {
        self.objects().find(|t| t.object().is_some_and(|o| o.name == name))
    }

    /// Copies a type of another schema, with all that it refers to: how custom resources come by `ObjectMeta`.
    pub fn import(&mut self, from: TypeRef<'_>) -> NodeId {
        let mut known = std::collections::HashMap::new();
        self.import_known(from, &mut known)
    }

    fn import_known(
        &mut self,
        from: TypeRef<'_>,
        known: &mut std::collections::HashMap<NodeId, NodeId>,
    ) -> NodeId {
        if let Some(at) = known.get(&from.at) {
            return *at;
        }
        let at = self.push(Node::Any);
        known.insert(from.at, at);
        let mut node = from.node().clone();
        match &mut node {
            Node::Map { value: inner, .. } | Node::List { item: inner, .. } => {
                *inner = self.import_known(from.schema.get(*inner), known);
            }
            Node::Object(object) => {
                for field in &mut object.fields {
                    field.node = self.import_known(from.schema.get(field.node), known);
                }
                if let Some(inner) = &mut object.additional {
                    *inner = self.import_known(from.schema.get(*inner), known);
                }
            }
            _ => {}
        }
        self.set(at, node);
        at
    }
}

/// A type in its schema.
#[derive(Clone, Copy)]
pub struct TypeRef<'s> {
    schema: &'s Schema,
    at: NodeId,
}

impl std::fmt::Debug for TypeRef<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("TypeRef").field(&self.at).field(&self.name()).finish()
    }
}

const ANY: Node = Node::Any;

impl<'s> TypeRef<'s> {
    pub fn schema(self) -> &'s Schema {
        self.schema
    }

    pub fn id(self) -> NodeId {
        self.at
    }

    pub fn node(self) -> &'s Node {
        self.schema.nodes.get(self.at.0 as usize).unwrap_or(const { &ANY })
    }

    pub fn object(self) -> Option<&'s Object> {
        match self.node() {
            Node::Object(object) => Some(object),
            _ => None,
        }
    }

    /// The definition's name, empty where the type has none.
    pub fn name(self) -> &'s str {
        self.object().map_or("", |o| &o.name)
    }

    /// The field of a name, and nothing for what the type does not name.
    pub fn field(self, name: &str) -> Option<&'s Field> {
        let fields = &self.object()?.fields;
        fields.binary_search_by(|f| f.name.as_ref().cmp(name)).ok().and_then(|i| fields.get(i))
    }

    /// The type of a member: a named field, a map's value, what else an object may hold.
    pub fn member(self, name: &str) -> Option<TypeRef<'s>> {
        match self.node() {
            Node::Object(object) => {
                self.field(name).map(|f| f.node).or(object.additional).map(|n| self.schema.get(n))
            }
            Node::Map { value, .. } => Some(self.schema.get(*value)),
            Node::Any => Some(self),
            _ => None,
        }
    }

    /// The type of a list's items.
    pub fn item(self) -> Option<TypeRef<'s>> {
        match self.node() {
            Node::List { item, .. } => Some(self.schema.get(*item)),
            Node::Any => Some(self),
            _ => None,
        }
    }

    pub fn of_field(self, field: &Field) -> TypeRef<'s> {
        self.schema.get(field.node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;

    fn kind(group: &str, version: &str, kind: &str) -> TypeRef<'static> {
        of(Gvk { group, version, kind }).expect("a built-in kind")
    }

    #[test]
    fn every_served_kind_and_its_list_have_a_type() {
        for row in kinds::every() {
            let t = of(row.gvk()).unwrap_or_else(|| panic!("no type for {}", row.kind));
            assert!(t.field("metadata").is_some(), "{}", row.kind);
            if row.verbs.contains(crate::Verbs::LIST) {
                let list = format!("{}List", row.kind);
                let list = kind(row.group, row.version, &list);
                let items = list.member("items").and_then(TypeRef::item).expect("items");
                assert_eq!(items.name(), t.name());
            }
            for sub in row.subresources {
                let known = of(sub.kind).is_some();
                assert!(known || sub.kind.kind.ends_with("Options"), "{}/{}", row.kind, sub.name);
            }
        }
    }

    #[test]
    fn facts_are_where_they_belong() {
        let pod = kind("", "v1", "Pod");
        let spec = pod.member("spec").expect("spec");
        let containers = spec.field("containers").expect("containers");
        assert!(containers.required && containers.patch.merge);
        assert_eq!(containers.merge_key.as_deref(), Some("name"));
        assert_eq!(containers.proto, [2, 0, 0]);
        let ports = spec.of_field(containers).item().and_then(|c| c.member("ports")).expect("ports");
        assert!(
            matches!(ports.node(), Node::List { kind: ListKind::Map(keys), .. } if keys.len() == 2 && keys[0].name == "containerPort")
        );
        assert!(spec.field("automountServiceAccountToken").expect("a field").pointer);
        assert!(!spec.field("hostNetwork").expect("a field").pointer);
        assert!(matches!(
            spec.member("nodeSelector").expect("a field").node(),
            Node::Map { atomic: true, .. }
        ));
        let volume = spec.member("volumes").and_then(TypeRef::item).expect("volumes");
        assert_eq!(volume.field("emptyDir").expect("a field").proto, [2, 2, 0]);
        let volume = kind("", "v1", "PersistentVolume").member("spec").expect("spec");
        assert!(volume.member("claimRef").and_then(TypeRef::object).is_some_and(|o| !o.atomic));
        let strategy = kind("apps", "v1", "Deployment").member("spec").expect("spec");
        assert!(strategy.field("strategy").expect("a field").patch.retain_keys);
        let crd = kind("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
        let props =
            crd.schema().named("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps");
        assert!(crd.schema().named("io.k8s.apimachinery.pkg.apis.meta.v1.Patch").is_some());
        assert_eq!(props.and_then(|p| p.field("$ref")).map(|f| f.proto), Some([3, 0, 0]));
    }

    #[test]
    fn only_what_protobuf_leaves_out_has_no_number() {
        for t in built_in().objects() {
            let object = t.object().expect("an object");
            if object.name.ends_with("version.Info") {
                continue;
            }
            for field in object.fields.iter().filter(|f| f.proto[0] == 0) {
                let in_envelope =
                    matches!(field.name.as_ref(), "apiVersion" | "kind") && !object.gvks.is_empty();
                assert!(in_envelope, "{}.{} has no number", object.name, field.name);
            }
        }
    }

    #[test]
    fn an_imported_type_is_the_same_type() {
        let mut schema = Schema::new();
        let meta = kind("", "v1", "Pod").member("metadata").expect("metadata");
        let at = schema.import(meta);
        let copy = schema.get(at);
        assert_eq!(copy.name(), meta.name());
        let owners = copy.member("ownerReferences").and_then(TypeRef::item).expect("owners");
        assert!(owners.field("controller").is_some_and(|f| f.pointer));
    }
}
