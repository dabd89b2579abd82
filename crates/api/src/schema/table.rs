//! Reading the embedded table of facts, which `cargo xtask codegen` makes.

use std::collections::HashMap;

use super::{Field, ListKey, ListKind, Node, NodeId, Object, PatchStrategy, Schema, Text};
use crate::kind::Gvk;

const TABLE: &str = include_str!("table.txt");

/// Reads the whole table. The table is the crate's own, so a word that is not known is passed over; tests see to it
/// that there is none.
pub(super) fn read() -> Schema {
    let mut reader = Reader { schema: Schema::new(), shared: HashMap::new() };
    let definitions = TABLE.lines().filter(|line| line.starts_with("D ") || line.starts_with("S ")).count();
    // Definitions come first, so that a reference to the n-th is node n.
    reader.schema.nodes = vec![Node::Any; definitions];
    let mut at = 0;
    let mut lines = TABLE.lines().peekable();
    while let Some(line) = lines.next() {
        let mut words = line.split(' ').skip(1);
        let name = words.next().unwrap_or_default();
        let node = if line.starts_with("S ") {
            special(name, words.next().unwrap_or_default())
        } else {
            let mut object =
                Object { name: Text::Borrowed(name), atomic: words.next() == Some("a"), ..Object::default() };
            while let Some(line) = lines.next_if(|l| !l.starts_with("D ") && !l.starts_with("S ")) {
                if let Some(kinds) = line.strip_prefix("K ") {
                    object.gvks = kinds.split(' ').filter_map(gvk).collect();
                } else if let Some(unions) = line.strip_prefix("U ") {
                    object.unions = unions;
                } else {
                    object.fields.extend(reader.field(line));
                }
            }
            object.fields.sort_by(|a, b| a.name.cmp(&b.name));
            object.fields.shrink_to_fit();
            let kinds = object.gvks.iter().map(|k| (*k, NodeId(at)));
            reader.schema.kinds.extend(kinds);
            Node::Object(Box::new(object))
        };
        reader.schema.set(NodeId(at), node);
        at += 1;
    }
    let mut schema = reader.schema;
    add_partial_metadata(&mut schema);
    split_granular(&mut schema);
    schema.kinds.sort_unstable();
    schema.nodes.shrink_to_fit();
    schema
}

/// A field may say that its type, which is one whole elsewhere, is not one here: it gets a type of its own.
fn split_granular(schema: &mut Schema) {
    for at in 0..schema.nodes.len() {
        let Some(Node::Object(object)) = schema.nodes.get(at) else { continue };
        let whole = |f: &Field| f.says_granular && schema.get(f.node).object().is_some_and(|o| o.atomic);
        let found: Vec<usize> = (0..object.fields.len()).filter(|i| whole(&object.fields[*i])).collect();
        for i in found {
            let Some(Node::Object(object)) = schema.nodes.get(at) else { continue };
            let mut copy = schema.get(object.fields[i].node).node().clone();
            if let Node::Object(object) = &mut copy {
                object.atomic = false;
            }
            let place = schema.push(copy);
            if let Some(Node::Object(object)) = schema.nodes.get_mut(at) {
                object.fields[i].node = place;
            }
        }
    }
}

/// `PartialObjectMetadata` and its list, which are not published: an object's metadata alone. They have no name.
fn add_partial_metadata(schema: &mut Schema) {
    let of = |schema: &Schema, kind, field| {
        let t = schema.kinds.iter().find(|(k, _)| k.kind == kind && k.group.is_empty())?;
        schema.get(t.1).field(field).map(|f| f.node)
    };
    let (Some(text), Some(meta), Some(list_meta)) =
        (of(schema, "Pod", "kind"), of(schema, "Pod", "metadata"), of(schema, "PodList", "metadata"))
    else {
        return;
    };
    let field = |name, node, number| Field {
        name: Text::Borrowed(name),
        node,
        required: false,
        pointer: false,
        always: false,
        omit_zero: false,
        says_atomic: false,
        says_granular: false,
        patch: PatchStrategy::default(),
        merge_key: None,
        proto: [number, 0, 0],
        values: "",
    };
    let mut add = |kind, mut fields: Vec<Field>| {
        fields.extend([field("apiVersion", text, 0), field("kind", text, 0)]);
        fields.sort_by(|a, b| a.name.cmp(&b.name));
        let gvk = Gvk { group: "meta.k8s.io", version: "v1", kind };
        let object = Object { fields, gvks: vec![gvk], ..Object::default() };
        let at = schema.push(Node::Object(Box::new(object)));
        schema.kinds.push((gvk, at));
        at
    };
    let one = add("PartialObjectMetadata", vec![field("metadata", meta, 1)]);
    let list = add("PartialObjectMetadataList", vec![field("metadata", list_meta, 1)]);
    let items = schema.push(Node::List { item: one, kind: ListKind::Atomic, wrapped: false });
    if let Some(Node::Object(object)) = schema.nodes.get_mut(list.0 as usize) {
        object.fields.push(Field { always: true, ..field("items", items, 2) });
        object.fields.sort_by(|a, b| a.name.cmp(&b.name));
    }
}

struct Reader {
    schema: Schema,
    /// Nodes without a definition, by the words that describe them: one node for all fields that are alike.
    shared: HashMap<(&'static str, &'static str), NodeId>,
}

fn gvk(text: &'static str) -> Option<Gvk<'static>> {
    let mut parts = text.split('/');
    Some(Gvk { group: parts.next()?, version: parts.next()?, kind: parts.next()? })
}

fn special(name: &'static str, shape: &str) -> Node {
    match shape {
        "object" => Node::Object(Box::new(Object { name: Text::Borrowed(name), ..Object::default() })),
        "json" => Node::Json,
        "propsOrArray" => Node::PropsOrArray,
        "propsOrBool" => Node::PropsOrBool,
        "propsOrStrings" => Node::PropsOrStrings,
        "quantity" => Node::Quantity,
        "fieldsV1" => Node::FieldsV1,
        "microTime" => Node::MicroTime,
        "time" => Node::Time,
        "raw" => Node::Raw,
        "intOrString" => Node::IntOrString,
        _ => Node::Any,
    }
}

/// The field of a key. A port's protocol is the one that upstream gives a default.
fn list_key(name: &'static str) -> ListKey {
    ListKey { name: Text::Borrowed(name), default: (name == "protocol").then(|| "TCP".into()) }
}

impl Reader {
    fn field(&mut self, line: &'static str) -> Option<Field> {
        let (line, values) = line.split_once(" e:").unwrap_or((line, ""));
        let mut words = line.split(' ');
        let name = words.next()?;
        let kind = words.next()?;
        let mut field = Field {
            name: Text::Borrowed(name),
            node: NodeId(0),
            required: false,
            pointer: false,
            always: false,
            omit_zero: false,
            says_atomic: false,
            says_granular: false,
            patch: PatchStrategy::default(),
            merge_key: None,
            proto: [0; 3],
            values,
        };
        let (mut list, mut atomic, mut wrapped) = ("", false, false);
        for word in words {
            match word.split_at(1) {
                ("!", _) => field.required = true,
                ("p", _) => field.pointer = true,
                ("n", _) => field.always = true,
                ("z", _) => field.omit_zero = true,
                ("a", _) => atomic = true,
                ("g", _) => field.says_granular = true,
                ("w", _) => wrapped = true,
                ("=", rest) => list = rest,
                ("~", "m") => field.patch.merge = true,
                ("~", "r") => field.patch.replace = true,
                ("~", "k") => field.patch.retain_keys = true,
                ("@", key) => field.merge_key = Some(Text::Borrowed(key)),
                ("#", path) => {
                    for (slot, number) in field.proto.iter_mut().zip(path.split('.')) {
                        *slot = number.parse().unwrap_or(0);
                    }
                }
                _ => {}
            }
        }
        field.says_atomic = list == "a";
        let attributes = match (list, atomic, wrapped) {
            ("" | "a", false, false) => "",
            ("" | "a", true, _) => "atomic",
            ("" | "a", _, true) => "wrapped",
            (list, ..) => list,
        };
        field.node = self.node(kind, attributes);
        Some(field)
    }

    fn node(&mut self, kind: &'static str, attributes: &'static str) -> NodeId {
        if let Some(place) = kind.strip_prefix('r').and_then(|p| p.parse().ok()) {
            return NodeId(place);
        }
        if let Some(known) = self.shared.get(&(kind, attributes)) {
            return *known;
        }
        let node = match kind.split_at(1) {
            ("[", item) => {
                let list = match attributes.split_once(':') {
                    Some(("m", keys)) => ListKind::Map(keys.split(',').map(list_key).collect()),
                    _ if attributes == "s" => ListKind::Set,
                    _ => ListKind::Atomic,
                };
                Node::List { item: self.node(item, ""), kind: list, wrapped: attributes == "wrapped" }
            }
            ("{", value) => Node::Map {
                wrapped: value.starts_with('['),
                value: self.node(value, ""),
                atomic: attributes == "atomic",
            },
            ("s", _) => Node::String,
            ("b", _) => Node::Bool,
            ("i", _) => Node::Int32,
            ("l", _) => Node::Int64,
            ("d", _) => Node::Double,
            ("y", _) => Node::Bytes,
            _ => Node::Any,
        };
        let at = self.schema.push(node);
        self.shared.insert((kind, attributes), at);
        at
    }
}
