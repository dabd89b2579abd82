//! Types as OpenAPI has them.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use krate_api::docs::Docs;
use krate_api::schema::{Field, ListKind, Node, Object, TypeRef};
use serde_json::Value;

/// What tells the two versions of OpenAPI apart, as far as types go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    V2,
    V3,
}

impl Form {
    pub(super) const fn place(self) -> &'static str {
        match self {
            Form::V2 => "#/definitions/",
            Form::V3 => "#/components/schemas/",
        }
    }

    /// `{"$ref": …}`, without the braces.
    pub(super) fn reference(self, name: &str) -> String {
        format!("\"$ref\":\"{}{name}\"", self.place())
    }
}

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const EXTENSIONS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1";

/// The definition that a type has, if it has one; empty for types that stand where they are used.
pub(super) fn definition_name(t: TypeRef<'_>) -> String {
    match t.node() {
        Node::Object(object) => object.name.to_string(),
        Node::Time => format!("{META}.Time"),
        Node::MicroTime => format!("{META}.MicroTime"),
        Node::FieldsV1 => format!("{META}.FieldsV1"),
        Node::Quantity => "io.k8s.apimachinery.pkg.api.resource.Quantity".to_owned(),
        Node::IntOrString => "io.k8s.apimachinery.pkg.util.intstr.IntOrString".to_owned(),
        Node::Raw => "io.k8s.apimachinery.pkg.runtime.RawExtension".to_owned(),
        Node::Json => format!("{EXTENSIONS}.JSON"),
        Node::PropsOrArray => format!("{EXTENSIONS}.JSONSchemaPropsOrArray"),
        Node::PropsOrBool => format!("{EXTENSIONS}.JSONSchemaPropsOrBool"),
        Node::PropsOrStrings => format!("{EXTENSIONS}.JSONSchemaPropsOrStringArray"),
        _ => String::new(),
    }
}

/// Adds a type's definition and those that it refers to.
pub(super) fn collect<'s>(
    t: TypeRef<'s>,
    found: &mut BTreeSet<String>,
    out: &mut Vec<(String, TypeRef<'s>)>,
) {
    let name = definition_name(t);
    if !name.is_empty() {
        if !found.insert(name.clone()) {
            return;
        }
        out.push((name, t));
    }
    match t.node() {
        Node::Object(object) => {
            for field in &object.fields {
                let inner = t.of_field(field);
                // The definition is that of the type, whatever the field says of it.
                let inner =
                    field.says_granular.then(|| t.schema().named(inner.name())).flatten().unwrap_or(inner);
                collect(inner, found, out);
            }
        }
        Node::Map { value: inner, .. } | Node::List { item: inner, .. } => {
            collect(t.schema().get(*inner), found, out);
        }
        _ => {}
    }
}

/// What a field is documented to be.
pub(super) fn described<'d>(object: &str, field: &str, docs: &'d Docs) -> Option<&'d str> {
    // Those that every object has are in no type of the vocabulary.
    docs.of(&format!("{object}.{field}")).or(match field {
        "apiVersion" => Some("APIVersion defines of which group, and in which version of it, the object is."),
        "kind" => Some("Kind is the name, in CamelCase, of what the object represents."),
        _ => None,
    })
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// A definition: all that is between its braces.
pub(super) fn definition(t: TypeRef<'_>, form: Form, docs: &Docs) -> String {
    let shape = bare_definition(t, form, docs);
    let described = docs.of(&definition_name(t)).map(|text| format!("\"description\":{}", quoted(text)));
    described.into_iter().chain((!shape.is_empty()).then_some(shape)).collect::<Vec<_>>().join(",")
}

fn bare_definition(t: TypeRef<'_>, form: Form, docs: &Docs) -> String {
    match (t.node(), form) {
        (Node::Object(object), _) => object_definition(t, object, form, docs),
        (Node::Time | Node::MicroTime, _) => "\"format\":\"date-time\",\"type\":\"string\"".to_owned(),
        (Node::Quantity, Form::V2) => "\"type\":\"string\"".to_owned(),
        (Node::Quantity, Form::V3) => "\"oneOf\":[{\"type\":\"string\"},{\"type\":\"number\"}]".to_owned(),
        (Node::IntOrString, Form::V2) => "\"format\":\"int-or-string\",\"type\":\"string\"".to_owned(),
        (Node::IntOrString, Form::V3) => {
            "\"format\":\"int-or-string\",\"oneOf\":[{\"type\":\"integer\"},{\"type\":\"string\"}]".to_owned()
        }
        (Node::Raw | Node::FieldsV1, _) => "\"type\":\"object\"".to_owned(),
        _ => String::new(),
    }
}

fn object_definition(t: TypeRef<'_>, object: &Object, form: Form, docs: &Docs) -> String {
    let mut parts: Vec<String> = Vec::new();
    if !object.fields.is_empty() {
        let fields: Vec<String> = object
            .fields
            .iter()
            .map(|f| {
                let described = described(&object.name, &f.name, docs);
                format!("{}:{{{}}}", quoted(&f.name), property(f, t.of_field(f), form, described))
            })
            .collect();
        parts.push(format!("\"properties\":{{{}}}", fields.join(",")));
    }
    let required: Vec<String> =
        object.fields.iter().filter(|f| f.required).map(|f| quoted(&f.name)).collect();
    if !required.is_empty() {
        parts.push(format!("\"required\":[{}]", required.join(",")));
    }
    parts.push("\"type\":\"object\"".to_owned());
    if !object.gvks.is_empty() {
        let gvks: Vec<String> = object.gvks.iter().map(|k| gvk(*k)).collect();
        parts.push(format!("\"x-kubernetes-group-version-kind\":[{}]", gvks.join(",")));
    }
    if object.atomic {
        parts.push("\"x-kubernetes-map-type\":\"atomic\"".to_owned());
    }
    if !object.unions.is_empty() {
        parts.push(format!("\"x-kubernetes-unions\":{}", object.unions));
    }
    parts.join(",")
}

pub(super) fn gvk(kind: krate_api::Gvk<'_>) -> String {
    format!(
        "{{\"group\":{},\"kind\":{},\"version\":{}}}",
        quoted(kind.group),
        quoted(kind.kind),
        quoted(kind.version)
    )
}

fn property(field: &Field, t: TypeRef<'_>, form: Form, described: Option<&str>) -> String {
    let mut out = shape(t, form, field.values);
    let mut extensions = String::new();
    if let Some(text) = described {
        let comma = if out.is_empty() { "" } else { "," };
        let _ = write!(extensions, "{comma}\"description\":{}", quoted(text));
    }
    if let Some(key) = &field.merge_key {
        let _ = write!(extensions, ",\"x-kubernetes-patch-merge-key\":{}", quoted(key));
    }
    let strategy = [
        (field.patch.merge, "merge"),
        (field.patch.replace, "replace"),
        (field.patch.retain_keys, "retainKeys"),
    ];
    let strategy: Vec<&str> = strategy.iter().filter(|(is, _)| *is).map(|(_, name)| *name).collect();
    if !strategy.is_empty() {
        let _ = write!(extensions, ",\"x-kubernetes-patch-strategy\":\"{}\"", strategy.join(","));
    }
    match t.node() {
        Node::List { kind: ListKind::Set, .. } => extensions.push_str(",\"x-kubernetes-list-type\":\"set\""),
        Node::List { kind: ListKind::Map(keys), .. } => {
            let keys: Vec<String> = keys.iter().map(|k| quoted(&k.name)).collect();
            let _ = write!(
                extensions,
                ",\"x-kubernetes-list-map-keys\":[{}],\"x-kubernetes-list-type\":\"map\"",
                keys.join(",")
            );
        }
        Node::List { .. } | Node::Bytes if field.says_atomic => {
            extensions.push_str(",\"x-kubernetes-list-type\":\"atomic\"");
        }
        Node::Map { atomic: true, .. } => extensions.push_str(",\"x-kubernetes-map-type\":\"atomic\""),
        _ if field.says_granular => extensions.push_str(",\"x-kubernetes-map-type\":\"granular\""),
        _ => {}
    }
    // In version 3 nothing may stand beside a reference.
    if form == Form::V3 && !extensions.is_empty() && out.starts_with("\"$ref\"") {
        out = format!("\"allOf\":[{{{out}}}]");
    }
    out.push_str(&extensions);
    out
}

/// What a value of a type looks like: a reference, or the shape itself.
fn shape(t: TypeRef<'_>, form: Form, values: &str) -> String {
    let name = definition_name(t);
    if !name.is_empty() {
        return form.reference(&name);
    }
    let simple = |shape: &str| -> String {
        if values.is_empty() {
            return shape.to_owned();
        }
        let values: Vec<String> = values.split('|').map(quoted).collect();
        format!("\"enum\":[{}],{shape}", values.join(","))
    };
    match t.node() {
        Node::String => simple("\"type\":\"string\""),
        Node::Bool => simple("\"type\":\"boolean\""),
        Node::Int32 => simple("\"format\":\"int32\",\"type\":\"integer\""),
        Node::Int64 => simple("\"format\":\"int64\",\"type\":\"integer\""),
        Node::Double => simple("\"format\":\"double\",\"type\":\"number\""),
        Node::Bytes => "\"format\":\"byte\",\"type\":\"string\"".to_owned(),
        Node::List { item, .. } => {
            let item = shape(t.schema().get(*item), form, values);
            format!("\"items\":{{{item}}},\"type\":\"array\"")
        }
        Node::Map { value, .. } => {
            let value = shape(t.schema().get(*value), form, values);
            format!("\"additionalProperties\":{{{value}}},\"type\":\"object\"")
        }
        _ => String::new(),
    }
}
