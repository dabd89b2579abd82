//! The documents' texts, written straight away: a tree of values would take many times their size.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use krate_api::docs::Docs;
use krate_api::schema::{self, TypeRef};
use krate_api::{Gvk, Kind};
use serde_json::Value;

use super::Served;
use super::custom;
use super::operations::{self, Operation, Path, parameter_type};
use super::types::{self, Form};

const PRODUCES: &[&str] = &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
const WATCH: &[&str] = &["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"];
const PATCHES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];
const PATCHES_OF_CUSTOM: &[&str] =
    &["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"];
const SECURITY: &str = "\"BearerToken\":{\"description\":\"Bearer Token authentication\",\"in\":\"header\",\
                        \"name\":\"authorization\",\"type\":\"apiKey\"}";
const INFO: &str = "\"info\":{\"title\":\"Kubernetes\",\"version\":\"v1.36.2\"}";

/// `/openapi/v2`.
pub(super) fn v2(served: &Served) -> String {
    let mut out = String::from("{\"swagger\":\"2.0\",");
    let _ = write!(out, "{INFO},\"paths\":{{");
    let paths: Vec<Path> = served.rows.iter().flat_map(|row| operations::paths(row)).collect();
    write_paths(&paths, Form::V2, &mut out);
    out.push_str("},\"definitions\":{");
    let hidden = hidden(&served.off);
    let all = schema::built_in().objects().filter(|t| !t.name().is_empty() && !hidden.contains(t.name()));
    write_types(all, served, Form::V2, &mut out);
    let _ = write!(out, "}},\"securityDefinitions\":{{{SECURITY}}},\"security\":[{{\"BearerToken\":[]}}]}}");
    out
}

/// The definitions that belong to kinds which are not served: they are there only where others refer to them.
fn hidden(off: &[&Kind]) -> BTreeSet<String> {
    let mut hidden = BTreeSet::new();
    for kind in off {
        let list = format!("{}List", kind.kind);
        for gvk in [kind.gvk(), Gvk { kind: &list, ..kind.gvk() }] {
            let Some(t) = schema::of(gvk) else { continue };
            let Some((package, _)) = t.name().rsplit_once('.') else { continue };
            let (mut found, mut all) = (BTreeSet::new(), Vec::new());
            types::collect(t, &mut found, &mut all);
            hidden.extend(
                found.into_iter().filter(|name| name.rsplit_once('.').is_some_and(|(of, _)| of == package)),
            );
        }
    }
    hidden
}

/// `/openapi/v3`.
pub(super) fn v3_index(entries: &[(String, String)]) -> String {
    let entries: Vec<String> = entries
        .iter()
        .map(|(url, place)| {
            format!("{}:{{\"serverRelativeURL\":{}}}", Value::from(place.as_str()), Value::from(url.as_str()))
        })
        .collect();
    format!("{{\"paths\":{{{}}}}}", entries.join(","))
}

/// The document of one group version, of which these are the rows.
pub(super) fn v3(served: &Served) -> String {
    let mut out = format!("{{\"openapi\":\"3.0.0\",{INFO},\"paths\":{{");
    let paths: Vec<Path> = served.rows.iter().flat_map(|row| operations::paths(row)).collect();
    write_paths(&paths, Form::V3, &mut out);
    out.push_str("},\"components\":{\"schemas\":{");
    // The types of the version, and what they and the operations refer to.
    let mut named: BTreeSet<String> = paths
        .iter()
        .flat_map(|p| &p.operations)
        .flat_map(|o| o.body.iter().chain([&o.answer]))
        .cloned()
        .collect();
    if !served.custom.is_empty() {
        named.extend(custom::refers_to());
    }
    let watch = Gvk { group: "", version: "v1", kind: "WatchEvent" };
    let used = schema::built_in().objects().filter(|t| named.contains(t.name())).chain(schema::of(watch));
    write_types(used, served, Form::V3, &mut out);
    let _ = write!(out, "}},\"securitySchemes\":{{{SECURITY}}}}}}}");
    out
}

fn write_types<'s>(types: impl Iterator<Item = TypeRef<'s>>, served: &Served, form: Form, out: &mut String) {
    let (mut found, mut all) = (BTreeSet::new(), Vec::new());
    for t in types {
        types::collect(t, &mut found, &mut all);
    }
    all.sort_by(|(a, _), (b, _)| a.cmp(b));
    let docs = Docs::shared();
    for (i, (name, t)) in all.into_iter().enumerate() {
        let comma = if i > 0 { "," } else { "" };
        let _ = write!(out, "{comma}{}:{{{}}}", Value::from(name), types::definition(t, form, &docs));
    }
    for (name, definition) in served.custom.iter().flat_map(|c| custom::definitions(c, form, &docs)) {
        let _ = write!(out, ",{}:{definition}", Value::from(name));
    }
}

fn write_paths(paths: &[Path], form: Form, out: &mut String) {
    let mut paths: Vec<&Path> = paths.iter().collect();
    paths.sort_by(|a, b| a.path.cmp(&b.path));
    for (i, path) in paths.into_iter().enumerate() {
        let comma = if i > 0 { "," } else { "" };
        let _ = write!(out, "{comma}{}:{{", Value::from(path.path.as_str()));
        for operation in &path.operations {
            write_operation(operation, form, out);
            out.push(',');
        }
        out.push_str("\"parameters\":[");
        let mut parameters = Vec::new();
        if let Some(kind) = path.names {
            let described = format!("\"description\":\"name of the {kind}\",");
            parameters.push(parameter("name", "path", &described, form));
        }
        if path.namespaced {
            let described = "\"description\":\"object name and auth scope, such as for teams and projects\",";
            parameters.push(parameter("namespace", "path", described, form));
        }
        if path.with_path {
            parameters.push(parameter("path", "path", "\"description\":\"path to the resource\",", form));
        }
        out.push_str(&parameters.join(","));
        out.push_str("]}");
    }
}

fn parameter(name: &str, place: &str, described: &str, form: Form) -> String {
    let required = if place == "path" { "\"required\":true," } else { "" };
    let kind = parameter_type(name);
    match form {
        Form::V2 => format!(
            "{{{described}\"in\":\"{place}\",\"name\":\"{name}\",{required}\"type\":\"{kind}\",\"uniqueItems\":true}}"
        ),
        Form::V3 => format!(
            "{{{described}\"in\":\"{place}\",\"name\":\"{name}\",{required}\"schema\":{{\"type\":\"{kind}\",\
             \"uniqueItems\":true}}}}"
        ),
    }
}

fn strings(list: &[&str]) -> String {
    let list: Vec<String> = list.iter().map(|s| format!("\"{s}\"")).collect();
    format!("[{}]", list.join(","))
}

/// The type of a body or an answer: all that is between its braces.
fn schema_of(name: &str, form: Form) -> String {
    if name.is_empty() { "\"type\":\"string\"".to_owned() } else { form.reference(name) }
}

fn code_text(code: u16) -> &'static str {
    match code {
        201 => "Created",
        202 => "Accepted",
        _ => "OK",
    }
}

fn write_operation(o: &Operation, form: Form, out: &mut String) {
    let is_custom = custom::is_custom(o.kind);
    let takes: &[&str] = match (o.method, o.action) {
        ("patch", "patch") if is_custom => PATCHES_OF_CUSTOM,
        ("patch", "patch") => PATCHES,
        _ => &["*/*"],
    };
    let mut gives: Vec<&str> = if o.action == "connect" { vec!["*/*"] } else { PRODUCES.to_vec() };
    if o.answer.is_empty() && o.action == "get" {
        gives.insert(0, "text/plain");
    }
    if o.watches {
        gives.extend(WATCH);
    }
    let mut parameters: Vec<String> = o.query.iter().map(|name| parameter(name, "query", "", form)).collect();
    let _ = write!(out, "\"{}\":{{", o.method);
    // Only what deletes may come without a body.
    let required = if o.method == "delete" { "" } else { "\"required\":true," };
    match (form, &o.body) {
        (Form::V2, Some(body)) => {
            let body = schema_of(body, form);
            parameters
                .insert(0, format!("{{\"in\":\"body\",\"name\":\"body\",{required}\"schema\":{{{body}}}}}"));
        }
        (Form::V3, Some(body)) => {
            let body = schema_of(body, form);
            let content: Vec<String> =
                takes.iter().map(|media| format!("\"{media}\":{{\"schema\":{{{body}}}}}")).collect();
            let _ = write!(out, "\"requestBody\":{{{required}\"content\":{{{}}}}},", content.join(","));
        }
        _ => {}
    }
    if form == Form::V2 {
        let _ = write!(
            out,
            "\"consumes\":{},\"produces\":{},\"schemes\":[\"https\"],",
            strings(takes),
            strings(&gives)
        );
    }
    let answer = schema_of(&o.answer, form);
    let answer = match form {
        Form::V2 => format!("\"schema\":{{{answer}}}"),
        Form::V3 => {
            let content: Vec<String> =
                gives.iter().map(|media| format!("\"{media}\":{{\"schema\":{{{answer}}}}}")).collect();
            format!("\"content\":{{{}}}", content.join(","))
        }
    };
    let mut responses: Vec<String> = o
        .codes
        .iter()
        .map(|code| format!("\"{code}\":{{\"description\":\"{}\",{answer}}}", code_text(*code)))
        .collect();
    responses.push("\"401\":{\"description\":\"Unauthorized\"}".to_owned());
    let _ = write!(
        out,
        "\"operationId\":\"{}\",\"parameters\":[{}],\"responses\":{{{}}},\"tags\":[\"{}\"],\
         \"x-kubernetes-action\":\"{}\",\"x-kubernetes-group-version-kind\":{}}}",
        o.id,
        parameters.join(","),
        responses.join(","),
        o.tag,
        o.action,
        types::gvk(o.kind)
    );
}
