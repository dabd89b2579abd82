//! Values as YAML.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::to_json;

/// A key may be so long, in bytes, without saying that it is one: the grammar has 1,024 characters.
const LONGEST_KEY: usize = 1000;

/// Writes a value as YAML, its fields in their order. What a reader of YAML 1.1 would take for something else than text
/// stands in double quotes.
pub fn to_text(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(fields) if !fields.is_empty() => write_fields(fields, 0, false, &mut out),
        Value::Array(items) if !items.is_empty() => write_items(items, 0, false, &mut out),
        scalar => write_scalar(scalar, 0, &mut out),
    }
    out
}

fn indent(depth: usize, out: &mut String) {
    out.extend(std::iter::repeat_n("  ", depth));
}

/// `begun`: the first one stands in a line that has begun.
fn write_fields(fields: &Map<String, Value>, depth: usize, begun: bool, out: &mut String) {
    for (i, (name, value)) in fields.iter().enumerate() {
        if i > 0 || !begun {
            indent(depth, out);
        }
        write_key(name, depth, out);
        match value {
            Value::Object(inner) if !inner.is_empty() => {
                out.push('\n');
                write_fields(inner, depth + 1, false, out);
            }
            Value::Array(inner) if !inner.is_empty() => {
                out.push('\n');
                write_items(inner, depth, false, out);
            }
            scalar => {
                out.push(' ');
                write_scalar(scalar, depth + 1, out);
            }
        }
    }
}

fn write_items(items: &[Value], depth: usize, begun: bool, out: &mut String) {
    for (i, item) in items.iter().enumerate() {
        if i > 0 || !begun {
            indent(depth, out);
        }
        out.push_str("- ");
        match item {
            Value::Object(inner) if !inner.is_empty() => write_fields(inner, depth + 1, true, out),
            Value::Array(inner) if !inner.is_empty() => write_items(inner, depth + 1, true, out),
            scalar => write_scalar(scalar, depth + 1, out),
        }
    }
}

/// A key, up to its colon. It stands on one line.
fn write_key(name: &str, depth: usize, out: &mut String) {
    let key = if name.contains('\n') { quoted(name) } else { word(name) };
    let key = key.trim_end_matches('\n');
    // The reader looks only so far for the colon of what does not say that it is a key.
    if key.len() > LONGEST_KEY {
        out.push_str("? ");
        out.push_str(key);
        out.push('\n');
        indent(depth, out);
    } else {
        out.push_str(key);
    }
    out.push(':');
}

/// The value and the end of its line; the lines of a long text are as deep as `depth`.
fn write_scalar(value: &Value, depth: usize, out: &mut String) {
    let text = match value {
        Value::String(text) => word(text),
        other => format!("{other}\n"),
    };
    let mut lines = text.lines();
    out.push_str(lines.next().unwrap_or_default());
    out.push('\n');
    for line in lines {
        if !line.is_empty() {
            indent(depth.saturating_sub(1), out);
            out.push_str(line);
        }
        out.push('\n');
    }
}

/// A text as a scalar, and the end of its line.
fn word(text: &str) -> String {
    if is_taken_for_another(text) {
        format!("{}\n", quoted(text))
    } else {
        serde_yaml_ng::to_string(text).unwrap_or_default()
    }
}

/// A text in double quotes, on one line.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            ' '..='~' | '\u{a0}'..='\u{2027}' | '\u{202a}'..='\u{fefe}' | '\u{ff00}'..='\u{fffd}' => {
                out.push(c);
            }
            // What is no character of YAML, or ends a line.
            '\0'..='\u{ffff}' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            _ => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Whether YAML 1.1 reads a bare text as a boolean, a number, a time or nothing.
fn is_taken_for_another(text: &str) -> bool {
    let may = text.starts_with(|c: char| c.is_ascii_digit() || "+-.~=<yYnNtTfFoO".contains(c));
    if text.is_empty() {
        return true;
    }
    if !may || text.contains('\n') {
        return false;
    }
    let is_digit = |c: char| c.is_ascii_digit();
    let is_date = text.len() >= 8
        && text.split('-').take(3).all(|part| part.starts_with(is_digit))
        && text.split('-').count() >= 3
        && text.find('-') == Some(4);
    let is_sexagesimal = text.contains(':') && text.chars().all(|c| is_digit(c) || "+-:._".contains(c));
    is_date
        || is_sexagesimal
        || matches!(text, "=" | "<<")
        || to_json(text.as_bytes()).is_ok_and(|value| !value.is_string()) && !text.contains([':', '#'])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_written_is_read_as_the_same_in_yaml_1_1() {
        let value = json!({
            "a": ["y", "on", "1", "0644", "1e3", "true", "null", "~", "", "2020-01-01T00:00:00Z", "12:30", "=",
                  "plain", "with: colon", "# no comment", "- item", "y: z", "<none>", "a\nb\n", "a\n\n  b"],
            "y": {"n": "v", "long": "one\ntwo\n", "list": [[1, 2], {"x": {"y": []}}, {}, null, true, 1.5]},
            "e": {}, "text": "configmaps \"y\" not found",
        });
        let text = to_text(&value);
        assert_eq!(to_json(text.as_bytes()).as_ref(), Ok(&value), "{text}");
        for line in [
            "- \"y\"",
            "- \"0644\"",
            "\"y\":",
            "  \"n\": v",
            "- plain",
            "- \"2020-01-01T00:00:00Z\"",
            "e: {}",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}: {text}");
        }
    }

    #[test]
    fn keys_are_read_as_they_are_written() {
        let long = "k".repeat(3000);
        for key in
            ["a\nb", "a\n\n", "\n", "a: b\r\nc", "\u{7f}\u{85}\u{2028}\u{feff}\n\"\\", "y", long.as_str()]
        {
            let value = json!({key: {key: [{key: 1}, {}]}, "list": [{key: "y"}]});
            let text = to_text(&value);
            assert_eq!(to_json(text.as_bytes()).as_ref(), Ok(&value), "{text}");
        }
    }
}
