//! Named formats: what names, labels and other texts of the API look like.

use krate_api::names;

use crate::cel::Result;
use crate::cel::value::{Opaque, Value};
use crate::formats;

/// A format says what is wrong with a text.
pub struct Format {
    pub name: &'static str,
    check: fn(&str) -> Vec<String>,
}

impl std::fmt::Debug for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// A prefix may end with what a whole may not end with.
fn prefix(text: &str, check: fn(&str) -> Vec<String>) -> Vec<String> {
    match text.strip_suffix('-') {
        Some(rest) => check(&format!("{rest}a")),
        None => check(text),
    }
}

/// What a schema may ask of a text too, by the same rules.
fn of_schemas(text: &str, format: &str, why: &str) -> Vec<String> {
    if formats::is_of(text, format) { Vec::new() } else { vec![why.to_owned()] }
}

const FORMATS: &[Format] = &[
    Format { name: "dns1123Label", check: names::is_dns1123_label },
    Format { name: "dns1123Subdomain", check: names::is_dns1123_subdomain },
    Format { name: "dns1035Label", check: names::is_dns1035_label },
    Format { name: "qualifiedName", check: names::is_qualified_name },
    Format { name: "dns1123LabelPrefix", check: |t| prefix(t, names::is_dns1123_label) },
    Format { name: "dns1123SubdomainPrefix", check: |t| prefix(t, names::is_dns1123_subdomain) },
    Format { name: "dns1035LabelPrefix", check: |t| prefix(t, names::is_dns1035_label) },
    Format { name: "labelValue", check: names::is_label_value },
    // Upstream tells of this one alone why.
    Format { name: "uri", check: |t| formats::uri::parse(t).err().into_iter().collect() },
    Format { name: "uuid", check: |t| of_schemas(t, "uuid", "does not match the UUID format") },
    Format { name: "byte", check: |t| of_schemas(t, "byte", "invalid base64") },
    Format { name: "date", check: |t| of_schemas(t, "date", "invalid date") },
    Format { name: "datetime", check: |t| of_schemas(t, "datetime", "invalid datetime") },
];

pub fn call(name: &str, args: &[Value]) -> Option<Result<Value>> {
    let named = |name: &str| FORMATS.iter().find(|format| format.name == name);
    if let Some(rest) = name.strip_prefix("format.") {
        return Some(Ok(match (rest, args) {
            ("named", [Value::String(name)]) => {
                named(name).map_or(Value::NONE, |format| Value::some(Value::opaque(Opaque::Format(format))))
            }
            (rest, []) => Value::opaque(Opaque::Format(named(rest)?)),
            _ => return None,
        }));
    }
    let ("validate", [Value::Opaque(opaque), Value::String(text)]) = (name, args) else { return None };
    let Opaque::Format(format) = &**opaque else { return None };
    let faults = (format.check)(text);
    Some(Ok(if faults.is_empty() {
        Value::NONE
    } else {
        Value::some(Value::list(faults.into_iter().map(Value::string).collect()))
    }))
}
