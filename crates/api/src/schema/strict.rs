//! What upstream's decoder says of a body: fields that the type does not have and fields that come twice, in the order
//! of the text, and the first value that is not of its field's type.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt::{self, Write as _};

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::{Node, TypeRef};
use crate::json::Name;
use crate::quantity::Quantity;

/// How many faults upstream tells of at most.
const STRICT_MAX: usize = 100;

/// What a check of a body found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// `unknown field "spec.foo"`, `duplicate field "metadata.name"`: an error or a warning, as the request asks.
    pub strict: Vec<String>,
    /// Why the body cannot be decoded at all, in the words of Go's decoder.
    pub type_error: Option<String>,
    /// What the body says that it is; empty where it does not.
    pub api_version: String,
    pub kind: String,
}

impl Checked {
    /// The text of the error under strict field validation.
    pub fn strict_error(&self) -> Option<String> {
        (!self.strict.is_empty()).then(|| format!("strict decoding error: {}", self.strict.join(", ")))
    }
}

/// Checks a JSON body against a type, in one pass and without building it.
///
/// # Errors
/// The text is not JSON; see [`crate::json::syntax_error`] for what upstream would say.
pub fn check(body: &[u8], t: TypeRef<'_>) -> Result<Checked, serde_json::Error> {
    let mut walk = Walk { found: Checked::default(), path: String::new(), fields: String::new() };
    let mut json = serde_json::Deserializer::from_slice(body);
    Checker { walk: &mut walk, t: Some(t), owner: "" }.deserialize(&mut json)?;
    json.end()?;
    Ok(walk.found)
}

/// The paths of the fields that a type does not have, `spec.containers[0].foo`, in the order of their names.
pub fn unknown_fields(value: &Value, t: TypeRef<'_>) -> Vec<String> {
    let mut found = Vec::new();
    unknown_below(value, t, &mut String::new(), &mut found);
    found
}

fn unknown_below(value: &Value, t: TypeRef<'_>, path: &mut String, found: &mut Vec<String>) {
    let before = path.len();
    match value {
        Value::Object(fields) if matches!(t.node(), Node::Object(_) | Node::Map { .. }) => {
            for (name, value) in fields {
                push_key(path, name);
                match t.member(name) {
                    Some(t) => unknown_below(value, t, path, found),
                    None => found.push(path.clone()),
                }
                path.truncate(before);
            }
        }
        Value::Array(items) => {
            let Node::List { item, .. } = t.node() else { return };
            for (i, value) in items.iter().enumerate() {
                push_index(path, i);
                unknown_below(value, t.schema().get(*item), path, found);
                path.truncate(before);
            }
        }
        _ => {}
    }
}

fn push_key(path: &mut String, name: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(name);
}

fn push_index(path: &mut String, i: usize) {
    let _ = write!(path, "[{i}]");
}

struct Walk {
    found: Checked,
    /// The path with indices and map keys, as strict faults show it.
    path: String,
    /// The path of named fields alone, as type faults show it.
    fields: String,
}

impl Walk {
    fn strict(&mut self, what: &str) {
        if self.found.strict.len() < STRICT_MAX {
            self.found.strict.push(format!("{what} field \"{}\"", self.path));
        }
    }
}

struct Checker<'w, 's> {
    walk: &'w mut Walk,
    /// None below a field that is not known: there only the text must be right.
    t: Option<TypeRef<'s>>,
    /// The Go type that has the field.
    owner: &'s str,
}

/// The name of a type as Go's errors show it.
fn go_type(t: TypeRef<'_>) -> String {
    match t.node() {
        Node::String => "string".to_owned(),
        Node::Bool => "bool".to_owned(),
        Node::Int32 => "int32".to_owned(),
        Node::Int64 => "int64".to_owned(),
        Node::Double => "float64".to_owned(),
        Node::Bytes => "[]uint8".to_owned(),
        Node::List { item, .. } => format!("[]{}", go_type(t.schema().get(*item))),
        Node::Map { value, .. } => format!("map[string]{}", go_type(t.schema().get(*value))),
        Node::Object(object) => {
            let mut parts = object.name.rsplit('.');
            let name = parts.next().unwrap_or_default();
            format!("{}.{name}", parts.next().unwrap_or_default())
        }
        Node::Quantity => "resource.Quantity".to_owned(),
        _ => "interface {}".to_owned(),
    }
}

impl Checker<'_, '_> {
    fn wrong(&mut self, found: &str) {
        let Some(t) = self.t else { return };
        if self.walk.found.type_error.is_some() {
            return;
        }
        let wanted = match t.node() {
            // These decode themselves, and know nothing of where they stand.
            Node::Time | Node::MicroTime => {
                self.walk.found.type_error =
                    Some(format!("json: cannot unmarshal {found} into Go value of type string"));
                return;
            }
            Node::IntOrString => {
                self.walk.found.type_error =
                    Some(format!("json: cannot unmarshal {found} into Go value of type int32"));
                return;
            }
            _ => go_type(t),
        };
        self.walk.found.type_error = Some(if self.walk.fields.is_empty() {
            format!("json: cannot unmarshal {found} into Go value of type {wanted}")
        } else {
            let (owner, fields) = (self.owner, &self.walk.fields);
            format!("json: cannot unmarshal {found} into Go struct field {owner}.{fields} of type {wanted}")
        });
    }

    fn fails(&mut self, why: String) {
        self.walk.found.type_error.get_or_insert(why);
    }
}

impl<'de> DeserializeSeed<'de> for Checker<'_, '_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Checker<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(mut self, _: bool) -> Result<(), E> {
        if !self.takes(|n| matches!(n, Node::Bool | Node::PropsOrBool | Node::Json)) {
            self.wrong("bool");
        }
        Ok(())
    }

    fn visit_i64<E>(mut self, n: i64) -> Result<(), E> {
        self.number(n);
        Ok(())
    }

    fn visit_u64<E>(mut self, n: u64) -> Result<(), E> {
        match i64::try_from(n) {
            Ok(small) => self.number(small),
            Err(_) if self.takes(|n| matches!(n, Node::Double | Node::Quantity | Node::Json)) => {}
            Err(_) => self.wrong(&format!("number {n}")),
        }
        Ok(())
    }

    fn visit_f64<E>(mut self, n: f64) -> Result<(), E> {
        if !self.takes(|n| matches!(n, Node::Double | Node::Quantity | Node::Json)) {
            let whole = self.takes(|n| matches!(n, Node::Int32 | Node::Int64 | Node::IntOrString));
            self.wrong(&if whole { format!("number {n}") } else { "number".to_owned() });
        }
        Ok(())
    }

    fn visit_str<E>(mut self, s: &str) -> Result<(), E> {
        match self.walk.path.as_str() {
            "apiVersion" => s.clone_into(&mut self.walk.found.api_version),
            "kind" => s.clone_into(&mut self.walk.found.kind),
            _ => {}
        }
        match self.t.map(TypeRef::node) {
            None | Some(Node::Any | Node::String | Node::IntOrString | Node::Json) => {}
            Some(Node::Quantity) => {
                if let Err(e) = Quantity::parse(s.trim()) {
                    self.fails(e.to_string());
                }
            }
            Some(node @ (Node::Time | Node::MicroTime)) => {
                if s.parse::<jiff::Timestamp>().is_err() {
                    let layout = match node {
                        Node::Time => "2006-01-02T15:04:05Z07:00",
                        _ => "2006-01-02T15:04:05.000000Z07:00",
                    };
                    let text = Value::from(s);
                    self.fails(format!(
                        "parsing time {text} as \"{layout}\": cannot parse {text} as \"2006\""
                    ));
                }
            }
            Some(Node::Bytes) => {
                if let Some(i) =
                    s.bytes().position(|c| !(c.is_ascii_alphanumeric() || b"+/=\r\n".contains(&c)))
                {
                    self.fails(format!("illegal base64 data at input byte {i}"));
                }
            }
            Some(_) => self.wrong("string"),
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<(), A::Error> {
        let item = match self.t.map(TypeRef::node) {
            Some(Node::List { item, .. }) => self.t.map(|t| t.schema().get(*item)),
            None | Some(Node::Any | Node::Json | Node::PropsOrArray | Node::PropsOrStrings) => None,
            Some(_) => {
                self.wrong("array");
                None
            }
        };
        let before = self.walk.path.len();
        for i in 0.. {
            push_index(&mut self.walk.path, i);
            let next = seq.next_element_seed(Checker { walk: self.walk, t: item, owner: self.owner })?;
            self.walk.path.truncate(before);
            if next.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        let object = self.t.and_then(TypeRef::object);
        let known = match self.t.map(TypeRef::node) {
            Some(Node::Object(_) | Node::Map { .. }) => self.t,
            None
            | Some(
                Node::Any
                | Node::Raw
                | Node::FieldsV1
                | Node::Json
                | Node::PropsOrArray
                | Node::PropsOrBool
                | Node::PropsOrStrings,
            ) => None,
            Some(_) => {
                self.wrong("object");
                None
            }
        };
        let owner = object.map_or(self.owner, |o| o.name.rsplit('.').next().unwrap_or_default());
        let mut seen = Seen::default();
        let (path, fields) = (self.walk.path.len(), self.walk.fields.len());
        while let Some(Name(name)) = map.next_key()? {
            push_key(&mut self.walk.path, &name);
            let member = known.and_then(|t| t.member(&name));
            if object.is_some() {
                push_key(&mut self.walk.fields, &name);
            }
            if known.is_some() {
                if member.is_none() {
                    self.walk.strict("unknown");
                } else if !seen.insert(name) {
                    self.walk.strict("duplicate");
                }
            }
            map.next_value_seed(Checker { walk: self.walk, t: member, owner })?;
            self.walk.path.truncate(path);
            self.walk.fields.truncate(fields);
        }
        Ok(())
    }
}

/// The names of an object's fields so far. Most objects have few, which are found faster than hashed.
#[derive(Default)]
struct Seen<'de> {
    few: Vec<Cow<'de, str>>,
    many: HashSet<Cow<'de, str>>,
}

impl<'de> Seen<'de> {
    const FEW: usize = 12;

    /// Whether the name is new.
    fn insert(&mut self, name: Cow<'de, str>) -> bool {
        if self.few.len() < Self::FEW {
            let new = !self.few.contains(&name);
            self.few.push(name);
            return new;
        }
        !self.few.contains(&name) && self.many.insert(name)
    }
}

impl Checker<'_, '_> {
    fn takes(&self, test: fn(&Node) -> bool) -> bool {
        self.t.is_none_or(|t| test(t.node()) || matches!(t.node(), Node::Any))
    }

    fn number(&mut self, n: i64) {
        let fits = match self.t.map(TypeRef::node) {
            None | Some(Node::Any | Node::Int64 | Node::Double | Node::Quantity | Node::Json) => true,
            Some(Node::Int32 | Node::IntOrString) if i32::try_from(n).is_ok() => true,
            Some(Node::Int32 | Node::IntOrString) => {
                self.wrong(&format!("number {n}"));
                return;
            }
            Some(_) => false,
        };
        if !fits {
            self.wrong("number");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Gvk;
    use proptest::prelude::*;
    use serde_json::json;

    fn pod() -> TypeRef<'static> {
        super::super::of(Gvk { group: "", version: "v1", kind: "Pod" }).expect("Pod")
    }

    #[test]
    fn unknown_and_duplicate_fields_are_told_in_upstreams_words() {
        let body = br#"{"metadata": {"name": "a", "name": "b", "labels": {"x": "1", "x": "2", "y": ""}},
            "odd": {"inner": 1, "inner": 2}, "spec": {"containers": [{}, {"ports": [{"odd": 1}]}]}}"#;
        let checked = check(body, pod()).expect("JSON");
        assert_eq!(
            checked.strict_error().as_deref(),
            Some(
                "strict decoding error: duplicate field \"metadata.name\", duplicate field \"metadata.labels.x\", \
                 unknown field \"odd\", unknown field \"spec.containers[1].ports[0].odd\""
            )
        );
        assert_eq!(checked.type_error, None);
        assert_eq!(
            unknown_fields(&json!({"spec": {"b": 1, "containers": [{"a": 1}]}, "a": 1}), pod()),
            ["a", "spec.b", "spec.containers[0].a"]
        );
    }

    #[test]
    fn values_of_another_type_are_told_in_gos_words() {
        let cases = [
            (
                r#"{"spec": {"hostNetwork": "x"}}"#,
                "json: cannot unmarshal string into Go struct field PodSpec.spec.hostNetwork of type bool",
            ),
            (
                r#"{"metadata": {"name": true}}"#,
                "json: cannot unmarshal bool into Go struct field ObjectMeta.metadata.name of type string",
            ),
            (
                r#"{"spec": {"containers": [{"command": "x"}]}}"#,
                "json: cannot unmarshal string into Go struct field Container.spec.containers.command of type []string",
            ),
            (
                r#"{"spec": {"containers": {}}}"#,
                "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container",
            ),
            (
                r#"{"spec": {"priority": 1.5}}"#,
                "json: cannot unmarshal number 1.5 into Go struct field PodSpec.spec.priority of type int32",
            ),
            (
                r#"{"spec": {"containers": [{"resources": {"limits": {"cpu": "x"}}}]}}"#,
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            ),
            ("[]", "json: cannot unmarshal array into Go value of type v1.Pod"),
            (
                r#"{"metadata": {"creationTimestamp": 5}}"#,
                "json: cannot unmarshal number into Go value of type string",
            ),
        ];
        for (body, error) in cases {
            let checked = check(body.as_bytes(), pod()).expect("JSON");
            assert_eq!(checked.type_error.as_deref(), Some(error), "{body}");
        }
        let right = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"creationTimestamp": null},
            "spec": {"containers": [{"resources": {"limits": {"cpu": 1.5, "memory": "1Gi"}},
            "livenessProbe": {"tcpSocket": {"port": "http"}}, "readinessProbe": {"tcpSocket": {"port": 8080}}}]}}"#;
        let said = Checked { api_version: "v1".into(), kind: "Pod".into(), ..Checked::default() };
        assert_eq!(check(right.as_bytes(), pod()).expect("JSON"), said);
    }

    #[test]
    fn published_examples_have_nothing_unknown() {
        let folder = std::path::Path::new("/work/shared/kubernetes-v1.36/testdata");
        let Ok(files) = std::fs::read_dir(folder) else {
            eprintln!("skipped: {} is not there", folder.display());
            return;
        };
        let mut checked = 0;
        for file in files.flatten().filter(|f| f.path().extension().is_some_and(|e| e == "json")) {
            let body = std::fs::read(file.path()).expect("a file");
            let value: Value = serde_json::from_slice(&body).expect("JSON");
            let text = |field: &str| value[field].as_str().unwrap_or_default().to_owned();
            let (api_version, kind) = (text("apiVersion"), text("kind"));
            let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
            let Some(t) = super::super::of(Gvk { group, version, kind: &kind }) else { continue };
            let right =
                Checked { api_version: api_version.clone(), kind: kind.clone(), ..Checked::default() };
            assert_eq!(check(&body, t).expect("JSON"), right, "{:?}", file.path());
            assert_eq!(unknown_fields(&value, t), Vec::<String>::new(), "{:?}", file.path());
            checked += 1;
        }
        assert!(checked > 60, "only {checked} kinds were found");
    }

    proptest! {
        #[test]
        fn any_body_is_checked_or_refused(body in "[{}\\[\\]\":,a1 ]{0,30}") {
            let parsed: Result<Value, _> = serde_json::from_str(&body);
            prop_assert_eq!(check(body.as_bytes(), pod()).is_ok(), parsed.is_ok());
        }
    }
}
