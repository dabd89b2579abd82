//! What expressions may name: variables with their types, and types themselves.

use super::library::signatures::{CIDR, IP};
use super::types::Type;

/// The variables that an expression may name.
#[derive(Clone, Debug, Default)]
pub struct Declared {
    variables: Vec<(String, Type)>,
    /// Whether expressions may make objects by their types' names (`Object{…}`, `JSONPatch{…}`).
    makes_objects: bool,
}

impl Declared {
    /// Variables of which only the names are known.
    pub fn new(variables: &[&str]) -> Self {
        variables.iter().fold(Declared::default(), |declared, name| declared.with(name, Type::Dyn))
    }

    /// One more; its name may have dots.
    #[must_use]
    pub fn with(mut self, name: &str, kind: Type) -> Self {
        self.declare(name, kind);
        self
    }

    /// As [`with`](Declared::with); what had the name before is forgotten.
    pub fn declare(&mut self, name: &str, kind: Type) {
        self.variables.retain(|(known, _)| known != name);
        self.variables.push((name.to_owned(), kind));
    }

    #[must_use]
    pub fn making_objects(mut self) -> Self {
        self.makes_objects = true;
        self
    }

    pub fn makes_objects(&self) -> bool {
        self.makes_objects
    }

    pub(super) fn of(&self, name: &str) -> Option<&Type> {
        self.variables.iter().find(|(known, _)| known == name).map(|(_, kind)| kind)
    }

    /// The type that is made by a name.
    pub(super) fn made(&self, name: &str) -> Option<Type> {
        if !self.makes_objects {
            return None;
        }
        match name {
            "JSONPatch" => Some(Type::object(
                name,
                [("op", Type::String), ("path", Type::String), ("from", Type::String), ("value", Type::Dyn)],
            )),
            _ if name == "Object" || name.starts_with("Object.") => Some(Type::anything(name)),
            _ => None,
        }
    }
}

/// Words that are no names of variables.
const RESERVED: &[&str] = &[
    "as",
    "break",
    "const",
    "continue",
    "else",
    "false",
    "for",
    "function",
    "if",
    "import",
    "in",
    "let",
    "loop",
    "namespace",
    "null",
    "package",
    "return",
    "true",
    "var",
    "void",
    "while",
];

pub fn is_reserved(word: &str) -> bool {
    RESERVED.contains(&word)
}

/// The full name of a type that an expression may name.
pub fn type_called(name: &str) -> Option<&'static str> {
    Some(match name {
        "bool" => "bool",
        "bytes" => "bytes",
        "double" => "double",
        "int" => "int",
        "list" => "list",
        "map" => "map",
        "null_type" => "null_type",
        "optional_type" => "optional_type",
        "string" => "string",
        "type" => "type",
        "uint" => "uint",
        "google.protobuf.Duration" => "google.protobuf.Duration",
        "google.protobuf.Timestamp" => "google.protobuf.Timestamp",
        "kubernetes.Quantity" => "kubernetes.Quantity",
        "kubernetes.Semver" => "kubernetes.Semver",
        "kubernetes.URL" => "kubernetes.URL",
        "net.IP" => "net.IP",
        "net.CIDR" => "net.CIDR",
        _ => return None,
    })
}

/// The type of the type that an expression names.
pub fn named_type(name: &str) -> Option<Type> {
    let list = || Type::list(Type::Dyn);
    let of = match type_called(name)? {
        "bool" => Type::Bool,
        "bytes" => Type::Bytes,
        "double" => Type::Double,
        "int" => Type::Int,
        "list" => list(),
        "map" => Type::Map(Type::Dyn.into(), Type::Dyn.into()),
        "null_type" => Type::Null,
        "optional_type" => Type::optional(Type::Dyn),
        "string" => Type::String,
        "type" => Type::Type(None),
        "uint" => Type::Uint,
        "google.protobuf.Duration" => Type::Duration,
        "google.protobuf.Timestamp" => Type::Timestamp,
        opaque @ (IP | CIDR) => Type::Opaque(opaque),
        object => Type::object(object, []),
    };
    Some(Type::Type(Some(of.into())))
}
