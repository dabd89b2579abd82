//! The messages of gnostic's `openapi.v2`, as far as JSON documents fill them: names, numbers and shapes of fields.

use serde_json::{Map, Value};

type Fields = Map<String, Value>;
type Chosen = (&'static [u64], &'static Message);

/// What a field of a message holds, and how JSON has it.
#[derive(Debug)]
pub(super) enum Shape {
    Text,
    Bool,
    Int,
    Double,
    /// Anything, as YAML text.
    Any,
    /// A repeated field.
    List(&'static Shape),
    /// A message with nothing but a list, or with one where JSON has a bare value.
    Wrapped(&'static Shape),
    Message(&'static Message),
    Members(&'static Members),
    /// One of several messages, and the numbers of the fields that lead to it.
    Choice(fn(&Fields) -> Chosen),
    SchemaOrBool(&'static Message),
}

#[derive(Debug)]
pub(super) struct Field {
    pub name: &'static str,
    pub number: u64,
    pub shape: Shape,
}

#[derive(Debug)]
pub(super) struct Message {
    pub fields: &'static [Field],
    /// Where `x-…` fields go; zero if they go nowhere.
    pub extensions: u64,
}

/// A message that is an object of any keys in JSON: a list of names with their values.
#[derive(Debug)]
pub(super) struct Members {
    pub number: u64,
    pub extensions: u64,
    pub shape: &'static Shape,
}

const fn field(name: &'static str, number: u64, shape: Shape) -> Field {
    Field { name, number, shape }
}

const fn all(shape: &'static Shape) -> Members {
    Members { number: 1, extensions: 0, shape }
}

use Shape::{Any, Bool, Choice, Double, Int, List, SchemaOrBool, Text, Wrapped};

static PARAMETERS: Members = all(&Choice(parameter));
static ANSWERS: Members = all(&Shape::Message(&RESPONSE));
static SCHEMES: Members = all(&Choice(security));
static HEADERS: Members = all(&Shape::Message(&HEADER));
static EXAMPLES: Members = all(&Any);

pub(super) static DOCUMENT: Message = Message {
    fields: &[
        field("swagger", 1, Text),
        field("info", 2, Shape::Message(&INFO)),
        field("host", 3, Text),
        field("basePath", 4, Text),
        field("schemes", 5, List(&Text)),
        field("consumes", 6, List(&Text)),
        field("produces", 7, List(&Text)),
        field("paths", 8, Shape::Members(&PATHS)),
        field("definitions", 9, Shape::Members(&DEFINITIONS)),
        field("parameters", 10, Shape::Members(&PARAMETERS)),
        field("responses", 11, Shape::Members(&ANSWERS)),
        field("security", 12, List(&Shape::Members(&REQUIREMENT))),
        field("securityDefinitions", 13, Shape::Members(&SCHEMES)),
        field("tags", 14, List(&Shape::Message(&TAG))),
        field("externalDocs", 15, Shape::Message(&EXTERNAL_DOCS)),
    ],
    extensions: 16,
};

static INFO: Message = Message {
    fields: &[
        field("title", 1, Text),
        field("version", 2, Text),
        field("description", 3, Text),
        field("termsOfService", 4, Text),
        field("contact", 5, Shape::Message(&CONTACT)),
        field("license", 6, Shape::Message(&LICENSE)),
    ],
    extensions: 7,
};

static CONTACT: Message = Message {
    fields: &[field("name", 1, Text), field("url", 2, Text), field("email", 3, Text)],
    extensions: 4,
};

static LICENSE: Message = Message { fields: &[field("name", 1, Text), field("url", 2, Text)], extensions: 3 };

static EXTERNAL_DOCS: Message =
    Message { fields: &[field("description", 1, Text), field("url", 2, Text)], extensions: 3 };

static TAG: Message = Message {
    fields: &[
        field("name", 1, Text),
        field("description", 2, Text),
        field("externalDocs", 3, Shape::Message(&EXTERNAL_DOCS)),
    ],
    extensions: 4,
};

static REQUIREMENT: Members = all(&Wrapped(&Text));

pub(super) static PATHS: Members = Members { number: 2, extensions: 1, shape: &Shape::Message(&PATH) };

static PATH: Message = Message {
    fields: &[
        field("$ref", 1, Text),
        field("get", 2, Shape::Message(&OPERATION)),
        field("put", 3, Shape::Message(&OPERATION)),
        field("post", 4, Shape::Message(&OPERATION)),
        field("delete", 5, Shape::Message(&OPERATION)),
        field("options", 6, Shape::Message(&OPERATION)),
        field("head", 7, Shape::Message(&OPERATION)),
        field("patch", 8, Shape::Message(&OPERATION)),
        field("parameters", 9, List(&Choice(parameter_or_reference))),
    ],
    extensions: 10,
};

static OPERATION: Message = Message {
    fields: &[
        field("tags", 1, List(&Text)),
        field("summary", 2, Text),
        field("description", 3, Text),
        field("externalDocs", 4, Shape::Message(&EXTERNAL_DOCS)),
        field("operationId", 5, Text),
        field("produces", 6, List(&Text)),
        field("consumes", 7, List(&Text)),
        field("parameters", 8, List(&Choice(parameter_or_reference))),
        field("responses", 9, Shape::Members(&RESPONSES)),
        field("schemes", 10, List(&Text)),
        field("deprecated", 11, Bool),
        field("security", 12, List(&Shape::Members(&REQUIREMENT))),
    ],
    extensions: 13,
};

static RESPONSES: Members = Members { number: 1, extensions: 2, shape: &Choice(response_or_reference) };

static RESPONSE: Message = Message {
    fields: &[
        field("description", 1, Text),
        field("schema", 2, Choice(schema_or_file)),
        field("headers", 3, Shape::Members(&HEADERS)),
        field("examples", 4, Shape::Members(&EXAMPLES)),
    ],
    extensions: 5,
};

static REFERENCE: Message =
    Message { fields: &[field("$ref", 1, Text), field("description", 2, Text)], extensions: 0 };

static BODY: Message = Message {
    fields: &[
        field("description", 1, Text),
        field("name", 2, Text),
        field("in", 3, Text),
        field("required", 4, Bool),
        field("schema", 5, Shape::Message(&SCHEMA)),
    ],
    extensions: 6,
};

/// The fields of a value that is no object, from `type` on; `$n` is the number of that one.
macro_rules! value {
    ($n:literal; $($before:expr),*; $($behind:expr),*) => {
        &[
            $($before,)*
            field("type", $n, Text),
            field("format", $n + 1, Text),
            field("items", $n + 2, Shape::Message(&ITEMS)),
            field("collectionFormat", $n + 3, Text),
            field("default", $n + 4, Any),
            field("maximum", $n + 5, Double),
            field("exclusiveMaximum", $n + 6, Bool),
            field("minimum", $n + 7, Double),
            field("exclusiveMinimum", $n + 8, Bool),
            field("maxLength", $n + 9, Int),
            field("minLength", $n + 10, Int),
            field("pattern", $n + 11, Text),
            field("maxItems", $n + 12, Int),
            field("minItems", $n + 13, Int),
            field("uniqueItems", $n + 14, Bool),
            field("enum", $n + 15, List(&Any)),
            field("multipleOf", $n + 16, Double),
            $($behind,)*
        ]
    };
}

static ITEMS: Message = Message { fields: value!(1; ;), extensions: 18 };
static HEADER: Message = Message { fields: value!(1; ; field("description", 18, Text)), extensions: 19 };
/// Of parameters in headers and in paths.
static PARAMETER: Message = Message {
    fields: value!(5;
        field("required", 1, Bool), field("in", 2, Text), field("description", 3, Text), field("name", 4, Text);),
    extensions: 22,
};
/// Of parameters in queries and forms, which may be empty.
static OF_QUERY: Message = Message {
    fields: value!(6;
        field("required", 1, Bool), field("in", 2, Text), field("description", 3, Text), field("name", 4, Text),
        field("allowEmptyValue", 5, Bool);),
    extensions: 23,
};

pub(super) static DEFINITIONS: Members = all(&Shape::Message(&SCHEMA));

static SCHEMA: Message = Message {
    fields: &[
        field("$ref", 1, Text),
        field("format", 2, Text),
        field("title", 3, Text),
        field("description", 4, Text),
        field("default", 5, Any),
        field("multipleOf", 6, Double),
        field("maximum", 7, Double),
        field("exclusiveMaximum", 8, Bool),
        field("minimum", 9, Double),
        field("exclusiveMinimum", 10, Bool),
        field("maxLength", 11, Int),
        field("minLength", 12, Int),
        field("pattern", 13, Text),
        field("maxItems", 14, Int),
        field("minItems", 15, Int),
        field("uniqueItems", 16, Bool),
        field("maxProperties", 17, Int),
        field("minProperties", 18, Int),
        field("required", 19, List(&Text)),
        field("enum", 20, List(&Any)),
        field("additionalProperties", 21, SchemaOrBool(&SCHEMA)),
        field("type", 22, Wrapped(&Text)),
        field("items", 23, Wrapped(&Shape::Message(&SCHEMA))),
        field("allOf", 24, List(&Shape::Message(&SCHEMA))),
        field("properties", 25, Shape::Members(&DEFINITIONS)),
        field("discriminator", 26, Text),
        field("readOnly", 27, Bool),
        field("xml", 28, Shape::Message(&XML)),
        field("externalDocs", 29, Shape::Message(&EXTERNAL_DOCS)),
        field("example", 30, Any),
    ],
    extensions: 31,
};

static FILE: Message = Message {
    fields: &[
        field("format", 1, Text),
        field("title", 2, Text),
        field("description", 3, Text),
        field("default", 4, Any),
        field("required", 5, List(&Text)),
        field("type", 6, Text),
        field("readOnly", 7, Bool),
        field("externalDocs", 8, Shape::Message(&EXTERNAL_DOCS)),
        field("example", 9, Any),
    ],
    extensions: 10,
};

static XML: Message = Message {
    fields: &[
        field("name", 1, Text),
        field("namespace", 2, Text),
        field("prefix", 3, Text),
        field("attribute", 4, Bool),
        field("wrapped", 5, Bool),
    ],
    extensions: 6,
};

static BASIC: Message =
    Message { fields: &[field("type", 1, Text), field("description", 2, Text)], extensions: 3 };

static API_KEY: Message = Message {
    fields: &[
        field("type", 1, Text),
        field("name", 2, Text),
        field("in", 3, Text),
        field("description", 4, Text),
    ],
    extensions: 5,
};

static SCOPES: Members = all(&Text);

static IMPLICIT: Message = Message {
    fields: &[
        field("type", 1, Text),
        field("flow", 2, Text),
        field("scopes", 3, Shape::Members(&SCOPES)),
        field("authorizationUrl", 4, Text),
        field("description", 5, Text),
    ],
    extensions: 6,
};

/// OAuth 2 by a password, or of an application.
static DIRECT: Message = Message {
    fields: &[
        field("type", 1, Text),
        field("flow", 2, Text),
        field("scopes", 3, Shape::Members(&SCOPES)),
        field("tokenUrl", 4, Text),
        field("description", 5, Text),
    ],
    extensions: 6,
};

static ACCESS_CODE: Message = Message {
    fields: &[
        field("type", 1, Text),
        field("flow", 2, Text),
        field("scopes", 3, Shape::Members(&SCOPES)),
        field("authorizationUrl", 4, Text),
        field("tokenUrl", 5, Text),
        field("description", 6, Text),
    ],
    extensions: 7,
};

fn says<'a>(fields: &'a Fields, name: &str) -> &'a str {
    fields.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn parameter(fields: &Fields) -> Chosen {
    match says(fields, "in") {
        "body" => (&[1], &BODY),
        "header" => (&[2, 1], &PARAMETER),
        "formData" => (&[2, 2], &OF_QUERY),
        "path" => (&[2, 4], &PARAMETER),
        _ => (&[2, 3], &OF_QUERY),
    }
}

fn parameter_or_reference(fields: &Fields) -> Chosen {
    if fields.contains_key("$ref") {
        return (&[2], &REFERENCE);
    }
    match parameter(fields) {
        ([1], message) => (&[1, 1], message),
        ([2, 1], message) => (&[1, 2, 1], message),
        ([2, 2], message) => (&[1, 2, 2], message),
        ([2, 4], message) => (&[1, 2, 4], message),
        (_, message) => (&[1, 2, 3], message),
    }
}

fn response_or_reference(fields: &Fields) -> Chosen {
    if fields.contains_key("$ref") { (&[2], &REFERENCE) } else { (&[1], &RESPONSE) }
}

fn schema_or_file(fields: &Fields) -> Chosen {
    if says(fields, "type") == "file" { (&[2], &FILE) } else { (&[1], &SCHEMA) }
}

fn security(fields: &Fields) -> Chosen {
    match (says(fields, "type"), says(fields, "flow")) {
        ("basic", _) => (&[1], &BASIC),
        ("oauth2", "implicit") => (&[3], &IMPLICIT),
        ("oauth2", "password") => (&[4], &DIRECT),
        ("oauth2", "application") => (&[5], &DIRECT),
        ("oauth2", _) => (&[6], &ACCESS_CODE),
        _ => (&[2], &API_KEY),
    }
}
