//! What the rules of a schema may look at, as CEL has it declared: the types of a schema, and how large what they
//! describe can get in a request (upstream's `SchemaDeclType`).

use std::collections::BTreeMap;

use serde_json::Value;

use super::prune::{EMBEDDED, says};
use crate::cel::Type;
use crate::cel::estimate::{Decl, Shape};

/// The largest request that is read, in bytes.
pub const LARGEST_REQUEST: u64 = 3 * 1024 * 1024;
/// The longest text of a time or a duration, and the shortest, with their quotes.
const LONGEST_TIME: u64 = 32;
const SHORTEST_TIME: u64 = 21;
const SHORTEST_DURATION: u64 = 3;
const DATE: u64 = 12;

fn simple(kind: Type, most: u64, least: u64) -> Decl {
    Decl { shape: Shape::Simple(kind), most, least }
}

fn count(schema: &Value, name: &str) -> Option<u64> {
    schema.get(name).and_then(Value::as_i64).map(|n| u64::try_from(n).unwrap_or(0))
}

fn is_embedded(schema: &Value) -> bool {
    says(schema, EMBEDDED)
}

/// What a schema declares; `None` where rules cannot look. `whole`: it describes an object with type and metadata.
pub fn declared(schema: &Value, whole: bool) -> Option<Decl> {
    if says(schema, "x-kubernetes-int-or-string") {
        return Some(simple(Type::Dyn, text_length(schema, LARGEST_REQUEST - 2), 1));
    }
    let kind = schema.get("type").and_then(Value::as_str).unwrap_or_default();
    let format = schema.get("format").and_then(Value::as_str).unwrap_or_default();
    Some(match (kind, format) {
        ("object", _) => return object(schema, whole),
        ("array", _) => {
            let items = schema.get("items")?;
            let inner = declared(items, is_embedded(items))?;
            let most = count(schema, "maxItems").unwrap_or((LARGEST_REQUEST - 2) / (inner.least + 1));
            Decl { shape: Shape::List(Box::new(inner)), most, least: 2 }
        }
        ("string", "byte") => {
            simple(Type::Bytes, count(schema, "maxLength").unwrap_or(LARGEST_REQUEST - 2), 2)
        }
        ("string", "duration") => simple(Type::Duration, LONGEST_TIME, SHORTEST_DURATION),
        ("string", "date") => simple(Type::Timestamp, DATE, DATE),
        ("string", "date-time") => simple(Type::Timestamp, LONGEST_TIME, SHORTEST_TIME),
        ("string", _) => {
            let words = schema.get("enum").and_then(Value::as_array).filter(|words| !words.is_empty());
            let longest = words.map(|words| words.iter().filter_map(Value::as_str).map(str::len).max());
            let unlimited = longest.map_or(LARGEST_REQUEST - 2, |longest| longest.unwrap_or(0) as u64);
            simple(Type::String, text_length(schema, unlimited), 2)
        }
        ("boolean", _) => simple(Type::Bool, 0, 4),
        ("number", _) => simple(Type::Double, 0, 1),
        ("integer", _) => simple(Type::Int, 0, 1),
        _ => return None,
    })
}

/// The most bytes of a text: each of its letters may take four.
fn text_length(schema: &Value, unlimited: u64) -> u64 {
    count(schema, "maxLength").map_or(unlimited, |letters| letters.saturating_mul(4))
}

fn object(schema: &Value, whole: bool) -> Option<Decl> {
    if let Some(additional) = schema.get("additionalProperties").filter(|a| a.is_object()) {
        let inner = declared(additional, is_embedded(additional))?;
        // A key, its quotes, a colon and a comma come to each value.
        let most = count(schema, "maxProperties").unwrap_or((LARGEST_REQUEST - 2) / (inner.least + 6));
        return Some(Decl { shape: Shape::Map(Box::new(inner)), most, least: 2 });
    }
    let required = schema.get("required").and_then(Value::as_array);
    let is_required = |name: &str| required.is_some_and(|all| all.iter().any(|r| r.as_str() == Some(name)));
    let mut least = 2;
    let mut fields = BTreeMap::new();
    for (name, inner) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let Some(decl) = declared(inner, is_embedded(inner)) else { continue };
        if is_required(name) && inner.get("default").is_none() {
            least += name.len() as u64 + decl.least + 4;
        }
        fields.insert(name.clone(), decl);
    }
    if whole {
        whole_object(&mut fields, schema);
    }
    Some(Decl { shape: Shape::Object(fields), most: 0, least })
}

/// The fields that every object has for rules.
fn whole_object(fields: &mut BTreeMap<String, Decl>, schema: &Value) {
    let is = |path: &str, kind: &str| schema.pointer(path).and_then(Value::as_str) == Some(kind);
    let complete = is("/properties/kind/type", "string")
        && is("/properties/apiVersion/type", "string")
        && is("/properties/metadata/type", "object")
        && is("/properties/metadata/properties/name/type", "string")
        && is("/properties/metadata/properties/generateName/type", "string");
    if complete {
        return;
    }
    let text = || simple(Type::String, LARGEST_REQUEST - 2, 2);
    let metadata = BTreeMap::from([("name".to_owned(), text()), ("generateName".to_owned(), text())]);
    let metadata = Decl { shape: Shape::Object(metadata), most: 0, least: 2 };
    for (name, decl) in [("kind", text()), ("apiVersion", text()), ("metadata", metadata)] {
        fields.insert(name.to_owned(), decl);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cel::{Declared, Program};

    fn cost(schema: &Value, rule: &str) -> u64 {
        let decl = declared(schema, false).expect("a declaration");
        let kind = Type::of(&decl, "selfType");
        let declared = Declared::default().with("self", kind.clone()).with("oldSelf", kind);
        let program = Program::compile(rule, &declared).expect("an expression");
        program.estimate(&[("self", false), ("oldSelf", false)], &decl)
    }

    fn of(kind: &str) -> Value {
        match kind {
            "int-or-string" => json!({"x-kubernetes-int-or-string": true}),
            "duration" | "date" | "date-time" | "byte" => json!({"type": "string", "format": kind}),
            kind => json!({"type": kind}),
        }
    }

    fn list(kind: &str, most: Option<u64>) -> Value {
        limited(json!({"type": "array", "items": of(kind)}), "maxItems", most)
    }

    fn map(kind: &str, most: Option<u64>) -> Value {
        limited(json!({"type": "object", "additionalProperties": of(kind)}), "maxProperties", most)
    }

    fn limited(mut schema: Value, name: &str, most: Option<u64>) -> Value {
        if let Some(most) = most {
            schema[name] = most.into();
        }
        schema
    }

    fn text(most: Option<u64>) -> Value {
        limited(of("string"), "maxLength", most)
    }

    /// The figures are upstream's, from its own tests of its estimate.
    #[test]
    fn costs_are_estimated_as_upstream_does() {
        type Of = fn(&str, Option<u64>) -> Value;
        let (lists, maps): (Of, Of) = (list, map);
        let texts: Of = |_, most| text(most);
        let bytes: Of = |_, most| limited(of("byte"), "maxLength", most);
        let cases: &[(Of, &str, &str, u64, u64, u64)] = &[
            (lists, "number", "self.all(x, true)", 4_718_591, 10, 32),
            (lists, "string", "self.all(x, true)", 3_145_727, 20, 62),
            (lists, "boolean", "self.all(x, true)", 1_887_437, 5, 17),
            (maps, "number", "self.all(x, true)", 1_348_169, 10, 32),
            (maps, "string", "self.all(x, true)", 1_179_647, 3, 11),
            (texts, "", "self.contains('test')", 314_574, 10, 5),
            (texts, "", "self.startsWith('test')", 2, 15, 2),
            (texts, "", "size(self + \"hello\") > size(\"hello\")", 314_578, 4, 7),
            (lists, "number", "self[1] == 0.0", 2, 5000, 2),
            (lists, "string", "self[1] == self[1]", 314_577, 8, 314_577),
            (texts, "", "self.matches(\"x\")", 314_574, 50, 22),
            (texts, "", "\"\".matches(\"(((((((((())))))))))[0-9]\")", 7, 10, 7),
            (texts, "", "self.matches(\"\")", 1, 100, 1),
            (maps, "string", "self.all(x, x.contains(self[x]))", 2_752_507, 10, 72),
            (maps, "number", "self[\"x\"] == 0.0", 2, 0, 2),
            (texts, "", "self == \"x\"", 2, 0, 1),
            (bytes, "", "self == b\"x\"", 2, 0, 1),
            (lists, "number", "self.all(x, x == 0.0)", 6_291_454, 3 * 1024 * 2048, 25_165_826),
            (lists, "int-or-string", "self.all(x, true)", 4_718_591, 10, 32),
            (lists, "int-or-string", "self[0] == 5", 3, 10, 3),
            (lists, "boolean", "self[0] == false", 2, 25, 2),
            (lists, "duration", "self.all(x, true)", 2_359_295, 5, 17),
            (lists, "duration", "self[0].getHours() == 2", 4, 525, 4),
            (lists, "date", "self.all(x, true)", 725_936, 15, 47),
            (lists, "date-time", "self.all(x, true)", 428_963, 25, 77),
            (lists, "date-time", "self[2].getMinutes() == 45", 4, 99, 4),
            (maps, "int-or-string", "self.all(x, true)", 1_348_169, 15, 47),
            (maps, "duration", "self.all(x, true)", 1_048_577, 5, 17),
            (maps, "date", "self.all(x, true)", 524_288, 10, 32),
        ];
        for (make, kind, rule, unlimited, most, with_limit) in cases {
            assert_eq!(cost(&make(kind, None), rule), *unlimited, "{kind}: {rule}");
            assert_eq!(cost(&make(kind, Some(*most)), rule), *with_limit, "{kind} of {most}: {rule}");
        }
        let nested = |most| list("number", most);
        assert_eq!(cost(&nested(Some(10)), "self.all(x, self.all(y, true))"), 352);
        assert_eq!(cost(&nested(Some(10)), "self.all(x, self.all(y, self.all(z, true)))"), 3552);
        assert!(cost(&nested(None), "self.all(x, self.all(y, true))") > 10_000_000);
        let of_maps =
            json!({"type": "array", "items": {"type": "object", "additionalProperties": {"type": "number"}}});
        assert_eq!(cost(&of_maps, "self.all(x, x.y == 25.2)"), 6_291_452);
        assert_eq!(cost(&of_maps, "self[0].x > 2.0"), 4);
    }

    #[test]
    fn a_field_that_is_not_declared_is_told() {
        let schema = json!({"type": "object", "properties": {"a-b": {"type": "integer"}, "free": {}}});
        let decl = declared(&schema, true).expect("a declaration");
        let declared = Declared::default().with("self", Type::of(&decl, "selfType"));
        let read = |rule: &str| Program::compile(rule, &declared).map(|program| program.kind().clone());
        for rule in ["self.a__dash__b > 1", "self.metadata.name == 'x' && has(self.kind)"] {
            assert_eq!(read(rule), Ok(crate::cel::Type::Bool), "{rule}");
        }
        for rule in ["self.b > 1", "self.free == 1", "has(self.metadata.labels)"] {
            let told = read(rule).expect_err(rule).to_string();
            assert!(told.contains("undefined field '"), "{told}");
        }
    }
}
