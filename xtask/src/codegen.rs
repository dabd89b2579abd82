//! `cargo xtask codegen`: makes the table of structural facts that `krate-api` embeds, from the published OpenAPI and
//! protobuf facts of Kubernetes. Facts only: the table has no descriptions.
//!
//! The table is lines of words; [`krate_api::schema`] reads it. A definition is `D NAME [a]` (`a`: its map type is
//! atomic), `S NAME SHAPE` for one that is no object, then `K GROUP/VERSION/KIND…` and `U JSON` (its unions), then a
//! line `FIELD TYPE ATTRIBUTE…` for each field.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

const GO_FIELDS: &str = include_str!("../data/go-fields.txt");
/// The definitions of kinds that are served only where somebody says so: a server with defaults publishes none of
/// them. They have the form of the published ones, and stand behind those.
const OPTIONAL: &str = include_str!("../data/definitions.json");

/// Definitions that are no objects in JSON, by the last part of their names, and what they are.
const SPECIAL: &[(&str, &str)] = &[
    ("CustomResourceSubresourceStatus", "object"),
    ("JSON", "json"),
    ("JSONSchemaPropsOrArray", "propsOrArray"),
    ("JSONSchemaPropsOrBool", "propsOrBool"),
    ("JSONSchemaPropsOrStringArray", "propsOrStrings"),
    ("Quantity", "quantity"),
    ("FieldsV1", "fieldsV1"),
    ("MicroTime", "microTime"),
    ("Patch", "object"),
    ("Time", "time"),
    ("RawExtension", "raw"),
    ("IntOrString", "intOrString"),
];

/// Reads the facts in `facts` and writes the table to `out`.
pub fn write_schema(facts: &Path, out: &Path) -> Result<()> {
    let read = |name: &str| -> Result<Value> {
        let path = facts.join(name);
        let text = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))
    };
    let openapi = read("openapi-v2.json")?;
    let proto = read("proto-fields.json")?;
    let published = openapi["definitions"].as_object().context("openapi-v2.json has no definitions")?;
    let optional: Definitions = serde_json::from_str(OPTIONAL).context("reading definitions.json")?;
    if let Some(name) = optional.keys().find(|name| published.contains_key(*name)) {
        bail!("{name} is published, and in definitions.json too");
    }
    let definitions: Vec<(&str, &Value)> =
        published.iter().chain(&optional).map(|(name, definition)| (name.as_str(), definition)).collect();
    let table = Table::new(&definitions, &proto).render()?;
    std::fs::write(out, &table).with_context(|| format!("writing {}", out.display()))?;
    println!("{}: {} definitions, {} bytes", out.display(), definitions.len(), table.len());
    Ok(())
}

type Definitions = serde_json::Map<String, Value>;

struct Table<'a> {
    definitions: &'a [(&'a str, &'a Value)],
    proto: &'a Value,
    /// The place of each definition: how fields refer to it.
    places: HashMap<&'a str, usize>,
    /// How Go holds and prints a field of a type.
    go_fields: HashMap<(&'static str, &'static str), &'static str>,
}

fn words(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn proto_name(definition: &str) -> String {
    definition.replacen("io.k8s", "k8s.io", 1).replace('-', "_")
}

/// A field's name as the protobuf definitions have it, which are not quite the JSON names.
fn proto_field_names(json: &str) -> Vec<String> {
    let capital = |s: &str| s[..1].to_uppercase() + &s[1..];
    let mut camel = String::new();
    for (i, part) in json.trim_start_matches('$').split('-').enumerate() {
        camel.push_str(&if i == 0 { part.to_owned() } else { capital(part) });
    }
    let mut all = vec![json.to_owned(), capital(json), camel];
    if let Some(rest) = json.strip_prefix("api") {
        all.push(format!("aPI{rest}"));
    }
    if json == "uid" {
        all.push("uID".to_owned());
    }
    all
}

impl<'a> Table<'a> {
    fn new(definitions: &'a [(&'a str, &'a Value)], proto: &'a Value) -> Self {
        let places = definitions.iter().enumerate().map(|(i, (name, _))| (*name, i)).collect();
        let go_fields = GO_FIELDS
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_once(' '))
            .flat_map(|(name, fields)| {
                fields.split(' ').filter_map(move |f| f.split_once(':').map(|(f, how)| ((name, f), how)))
            })
            .collect();
        Table { definitions, proto, places, go_fields }
    }

    fn render(&self) -> Result<String> {
        let mut out = String::new();
        for (name, definition) in self.definitions {
            self.definition(name, definition, &mut out).with_context(|| (*name).to_owned())?;
        }
        Ok(out)
    }

    fn definition(&self, name: &str, definition: &Value, out: &mut String) -> Result<()> {
        let last = name.rsplit('.').next().unwrap_or_default();
        if definition.get("properties").is_none() {
            let special = SPECIAL.iter().find(|(n, _)| *n == last);
            let (_, shape) = special.context("it has no properties and is not known")?;
            writeln!(out, "S {name} {shape}")?;
            return Ok(());
        }
        let atomic = if definition["x-kubernetes-map-type"] == "atomic" { " a" } else { "" };
        writeln!(out, "D {name}{atomic}")?;
        let gvks = definition["x-kubernetes-group-version-kind"].as_array().into_iter().flatten();
        let gvks: Vec<String> = gvks
            .map(|k| {
                let part = |field: &str| k[field].as_str().unwrap_or_default();
                format!("{}/{}/{}", part("group"), part("version"), part("kind"))
            })
            .collect();
        if !gvks.is_empty() {
            writeln!(out, "K {}", gvks.join(" "))?;
        }
        if let Some(unions) = definition.get("x-kubernetes-unions") {
            writeln!(out, "U {unions}")?;
        }
        let required: BTreeSet<&str> = words(&definition["required"]).into_iter().collect();
        let properties = definition["properties"].as_object().context("its properties are no object")?;
        for (field, property) in properties {
            let mut line = format!("{field} {}", self.type_of(property).with_context(|| field.clone())?);
            if required.contains(field.as_str()) {
                line.push_str(" !");
            }
            for flag in self.go_fields.get(&(name, field.as_str())).into_iter().flat_map(|how| how.chars()) {
                write!(line, " {flag}")?;
            }
            attributes(property, &mut line)?;
            if let Some(path) = self.proto_path(&proto_name(name), field, &mut line) {
                let path: Vec<String> = path.iter().map(u64::to_string).collect();
                write!(line, " #{}", path.join("."))?;
            }
            // Last, for its values may have spaces.
            let item =
                property.get("items").or_else(|| property.get("additionalProperties")).unwrap_or(property);
            let values = words(&item["enum"]);
            if !values.is_empty() {
                write!(line, " e:{}", values.join("|"))?;
            }
            writeln!(out, "{line}")?;
        }
        Ok(())
    }

    fn type_of(&self, property: &Value) -> Result<String> {
        if let Some(reference) = property["$ref"].as_str() {
            let name = reference.rsplit('/').next().unwrap_or_default();
            let place = self.places.get(name).with_context(|| format!("no definition {name}"))?;
            return Ok(format!("r{place}"));
        }
        Ok(match (property["type"].as_str(), property["format"].as_str()) {
            (Some("string"), Some("byte")) => "y".to_owned(),
            (Some("string"), None) => "s".to_owned(),
            (Some("boolean"), _) => "b".to_owned(),
            (Some("integer"), Some("int32")) => "i".to_owned(),
            (Some("integer"), _) => "l".to_owned(),
            (Some("number"), _) => "d".to_owned(),
            (Some("array"), _) => format!("[{}", self.type_of(&property["items"])?),
            (Some("object"), _) => format!("{{{}", self.type_of(&property["additionalProperties"])?),
            other => bail!("type {other:?} is not known"),
        })
    }

    /// The numbers that lead to a field: more than one where JSON shows inline what protobuf embeds. Adds `w` to the
    /// line where protobuf wraps a list in a message.
    fn proto_path(&self, message: &str, field: &str, line: &mut String) -> Option<Vec<u64>> {
        let fields = self.proto.get(message)?.as_object()?;
        let found = proto_field_names(field).into_iter().find_map(|name| fields.get(&name));
        if let Some(found) = found {
            let kind = found["type"].as_str().unwrap_or_default();
            if kind == "Verbs" {
                line.push_str(" w");
            }
            return Some(vec![found["number"].as_u64()?]);
        }
        let embedded: BTreeMap<u64, &str> = fields
            .values()
            .filter(|f| f["repeated"] != true)
            .filter_map(|f| Some((f["number"].as_u64()?, f["type"].as_str()?)))
            .filter(|(_, kind)| {
                kind.chars().next().is_some_and(char::is_uppercase) || kind.starts_with("k8s.io.")
            })
            .collect();
        let names: BTreeSet<&str> = [
            "localObjectReference",
            "ephemeralContainerCommon",
            "persistentVolumeSource",
            "handler",
            "volumeSource",
            "ingressRuleValue",
            "deviceConfiguration",
            "ruleWithOperations",
            "rule",
        ]
        .into_iter()
        .collect();
        let inline: BTreeSet<u64> = fields
            .iter()
            .filter(|(name, _)| names.contains(name.as_str()))
            .filter_map(|(_, f)| f["number"].as_u64())
            .collect();
        embedded.iter().filter(|(number, _)| inline.contains(number)).find_map(|(number, kind)| {
            let package = message.rsplit_once('.').map_or("", |(package, _)| package);
            let inner = if kind.contains('.') { (*kind).to_owned() } else { format!("{package}.{kind}") };
            let mut path = vec![*number];
            path.extend(self.proto_path(&inner, field, line)?);
            Some(path)
        })
    }
}

/// What a field is beside its type: list type and keys, patch strategy.
fn attributes(property: &Value, line: &mut String) -> Result<()> {
    match property["x-kubernetes-list-type"].as_str() {
        Some("map") => write!(line, " =m:{}", words(&property["x-kubernetes-list-map-keys"]).join(","))?,
        Some("set") => line.push_str(" =s"),
        Some("atomic") => line.push_str(" =a"),
        Some(other) => bail!("list type {other} is not known"),
        None => {}
    }
    match property["x-kubernetes-map-type"].as_str() {
        Some("atomic") => line.push_str(" a"),
        Some("granular") => line.push_str(" g"),
        Some(other) => bail!("map type {other} is not known"),
        None => {}
    }
    if let Some(strategies) = property["x-kubernetes-patch-strategy"].as_str() {
        for strategy in strategies.split(',') {
            line.push_str(match strategy {
                "merge" => " ~m",
                "replace" => " ~r",
                "retainKeys" => " ~k",
                other => bail!("patch strategy {other} is not known"),
            });
        }
    }
    if let Some(key) = property["x-kubernetes-patch-merge-key"].as_str() {
        write!(line, " @{key}")?;
    }
    Ok(())
}
