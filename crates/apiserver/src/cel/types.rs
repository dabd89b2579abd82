//! Types, as expressions are checked against before they are evaluated: CEL's own, Kubernetes' own, and those that a
//! schema declares.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::declared::is_reserved;
use super::estimate::{Decl, Shape};

/// The type of an expression, or of a part of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Type {
    /// Whatever it is, it is only known when it is evaluated.
    Dyn,
    Any,
    /// What has been told already to be wrong; nothing more is told of it.
    Error,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Duration,
    Timestamp,
    List(Arc<Type>),
    Map(Arc<Type>, Arc<Type>),
    /// The type of a type.
    Type(Option<Arc<Type>>),
    Optional(Arc<Type>),
    /// What only its own functions look into, and what is no object.
    Opaque(&'static str),
    Object(Arc<Object>),
    /// A parameter of a function's signature, by its place in the alphabet.
    Parameter(u8),
    /// What is still to be found out, by its number in the check.
    Variable(usize),
}

/// A type with fields. Two of one name are one.
#[derive(Clone, Debug)]
pub struct Object {
    pub name: String,
    pub fields: Fields,
}

#[derive(Clone, Debug)]
pub enum Fields {
    /// By their names as expressions have to write them.
    These(BTreeMap<String, Type>),
    /// Every field there could be, of whatever type.
    All,
}

impl PartialEq for Object {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Object {
    /// The type of a field; `None` if there is no such field.
    pub fn field(&self, name: &str) -> Option<Type> {
        match &self.fields {
            Fields::All => Some(Type::Dyn),
            Fields::These(fields) => {
                let keyword = || is_reserved(name).then(|| fields.get(&format!("__{name}__"))).flatten();
                fields.get(name).or_else(keyword).cloned()
            }
        }
    }
}

impl Type {
    pub fn list(of: Type) -> Type {
        Type::List(Arc::new(of))
    }

    /// A map by texts.
    pub fn map(of: Type) -> Type {
        Type::Map(Arc::new(Type::String), Arc::new(of))
    }

    pub fn optional(of: Type) -> Type {
        Type::Optional(Arc::new(of))
    }

    pub fn object(name: &str, fields: impl IntoIterator<Item = (&'static str, Type)>) -> Type {
        let fields = fields.into_iter().map(|(name, kind)| (name.to_owned(), kind)).collect();
        Type::Object(Arc::new(Object { name: name.to_owned(), fields: Fields::These(fields) }))
    }

    /// An object of which nothing but the name is known.
    pub fn anything(name: &str) -> Type {
        Type::Object(Arc::new(Object { name: name.to_owned(), fields: Fields::All }))
    }

    /// What a schema declares. An object of it has the name `name`, and what is in it names that say where it is.
    pub fn of(decl: &Decl, name: &str) -> Type {
        match &decl.shape {
            Shape::Simple(kind) => kind.clone(),
            Shape::List(inner) => Type::list(Type::of(inner, &format!("{name}.@idx"))),
            Shape::Map(inner) => Type::map(Type::of(inner, &format!("{name}.@elem"))),
            Shape::Object(fields) => {
                let fields = fields.iter().filter_map(|(field, decl)| {
                    let field = escaped(field)?;
                    let kind = Type::of(decl, &format!("{name}.{field}"));
                    Some((field, kind))
                });
                let fields = Fields::These(fields.collect());
                Type::Object(Arc::new(Object { name: name.to_owned(), fields }))
            }
        }
    }

    pub fn is_dyn(&self) -> bool {
        matches!(self, Type::Dyn | Type::Any)
    }

    /// Whether all its values are of one size.
    pub fn is_scalar(&self) -> bool {
        match self {
            Type::Bool | Type::Int | Type::Uint | Type::Double | Type::Duration | Type::Timestamp => true,
            Type::Optional(inner) => inner.is_scalar(),
            _ => false,
        }
    }

    pub fn is_dyn_or_error(&self) -> bool {
        self.is_dyn() || *self == Type::Error
    }

    /// Whether `null` is taken for a value of it.
    pub fn is_nullable(&self) -> bool {
        matches!(
            self,
            Type::Null
                | Type::Any
                | Type::Duration
                | Type::Timestamp
                | Type::Optional(_)
                | Type::Opaque(_)
                | Type::Object(_)
        )
    }

    /// As what must be the type of an expression is told: by names of values' types.
    pub fn name(&self) -> String {
        match self {
            Type::Any => "google.protobuf.Any".to_owned(),
            Type::Error => "error".to_owned(),
            Type::Null => "null_type".to_owned(),
            Type::Duration => "google.protobuf.Duration".to_owned(),
            Type::Timestamp => "google.protobuf.Timestamp".to_owned(),
            Type::List(of) => format!("list({})", of.name()),
            Type::Map(key, of) => format!("map({}, {})", key.name(), of.name()),
            Type::Type(Some(of)) => format!("type({})", of.name()),
            Type::Optional(of) => format!("optional_type({})", of.name()),
            other => other.to_string(),
        }
    }
}

/// As faults of an expression tell it.
impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Dyn => f.write_str("dyn"),
            Type::Any => f.write_str("any"),
            Type::Error => f.write_str("!error!"),
            Type::Null => f.write_str("null"),
            Type::Bool => f.write_str("bool"),
            Type::Int => f.write_str("int"),
            Type::Uint => f.write_str("uint"),
            Type::Double => f.write_str("double"),
            Type::String => f.write_str("string"),
            Type::Bytes => f.write_str("bytes"),
            Type::Duration => f.write_str("duration"),
            Type::Timestamp => f.write_str("timestamp"),
            Type::List(of) => write!(f, "list({of})"),
            Type::Map(key, of) => write!(f, "map({key}, {of})"),
            Type::Type(None) => f.write_str("type"),
            Type::Type(Some(of)) => write!(f, "type({of})"),
            Type::Optional(of) => write!(f, "optional_type({of})"),
            Type::Opaque(name) => f.write_str(name),
            Type::Object(object) => f.write_str(&object.name),
            Type::Parameter(n) => write!(f, "{}", char::from(b'A' + n)),
            Type::Variable(n) => write!(f, "_var{n}"),
        }
    }
}

/// How a CEL identifier has to write the name of a property; `None` if it cannot.
pub fn escaped(name: &str) -> Option<String> {
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    if is_reserved(name) {
        return Some(format!("__{name}__"));
    }
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(first) = rest.chars().next() {
        let (written, taken) = match first {
            '_' if rest.starts_with("__") => ("__underscores__", 2),
            '.' => ("__dot__", 1),
            '-' => ("__dash__", 1),
            '/' => ("__slash__", 1),
            c if c.is_ascii_alphanumeric() || c == '_' => (&rest[..1], 1),
            _ => return None,
        };
        out.push_str(written);
        rest = &rest[taken..];
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_as_identifiers() {
        for (name, written) in [
            ("plain", Some("plain")),
            ("_a_b", Some("_a_b")),
            ("a-b.c/d__e", Some("a__dash__b__dot__c__slash__d__underscores__e")),
            ("namespace", Some("__namespace__")),
            ("int", Some("int")),
            ("1a", None),
            ("", None),
            ("a$b", None),
        ] {
            assert_eq!(escaped(name).as_deref(), written, "{name}");
            if let Some(written) = written {
                assert_eq!(super::super::eval::unescaped(written), name);
            }
        }
    }

    #[test]
    fn a_field_is_found_by_how_it_is_written() {
        let field = || Decl { shape: Shape::Simple(Type::Int), most: 0, least: 1 };
        let fields = ["a-b", "namespace"].map(|name| (name.to_owned(), field()));
        let decl = Decl { shape: Shape::Object(fields.into()), most: 0, least: 2 };
        let Type::Object(object) = Type::of(&decl, "Thing") else { panic!("no object") };
        for (name, found) in [
            ("a__dash__b", Some(Type::Int)),
            ("a-b", None),
            ("namespace", Some(Type::Int)),
            ("__namespace__", Some(Type::Int)),
            ("other", None),
        ] {
            assert_eq!(object.field(name), found, "{name}");
        }
    }
}
