//! One version of a custom kind, as the generic path sees it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionVersion,
};
use krate_api::docs::Docs;
use krate_api::schema::TypeRef;
use krate_api::{FieldErrors, FieldPath, Kind, names};
use serde_json::{Value, json};

use super::jsonpath::{self, Path, shown};
use super::object::Custom;
use super::rules::Rules;
use super::structural::Types;
use super::{embedded, lists, prune, row, values};
use crate::registry::column;
use crate::registry::encode::part_to_value;
use crate::registry::erased::{DecodeError, Object, Registry, ScalePaths};
use crate::registry::{Context, Selectable};

struct Column {
    definition: Value,
    kind: String,
    path: Path,
}

/// A version of a definition.
pub struct Version {
    kind: &'static Kind,
    api_version: String,
    /// The version in which objects are stored, where that is another.
    stored_as: Option<String>,
    /// Whether a webhook converts: what is of another version is left as it is, and not taken for this one's.
    by_webhook: bool,
    open_api: Value,
    /// The schemas of all versions, by `group/version`.
    schemas: Arc<BTreeMap<String, Value>>,
    types: Types,
    rules: Rules,
    columns: Vec<Column>,
    selectable: Vec<(&'static str, Path)>,
    scale: Option<ScalePaths>,
    has_status: bool,
    /// Whether there are whole objects in it.
    embeds: bool,
}

impl Version {
    pub fn new(
        definition: &CustomResourceDefinition,
        version: &CustomResourceDefinitionVersion,
        schemas: &Arc<BTreeMap<String, Value>>,
    ) -> Self {
        let kind = row::of(definition, version);
        let by_webhook = definition.spec.conversion.as_ref().is_some_and(|c| c.strategy == "Webhook");
        let stored = definition.spec.versions.iter().find(|v| v.storage && v.name != version.name);
        let stored = stored.filter(|_| !by_webhook);
        let open_api = schemas.get(&kind.api_version()).cloned().unwrap_or_default();
        let subresources = version.subresources.clone().unwrap_or_default();
        Version {
            kind,
            api_version: kind.api_version(),
            stored_as: stored.map(|v| format!("{}/{}", definition.spec.group, v.name)),
            by_webhook,
            schemas: Arc::clone(schemas),
            types: Types::new(&open_api),
            rules: Rules::new(&open_api),
            open_api,
            columns: columns(version),
            selectable: version
                .selectable_fields
                .iter()
                .flatten()
                .filter_map(|f| {
                    Some((row::text(f.json_path.trim_start_matches('.')), Path::parse(&f.json_path)?))
                })
                .collect(),
            scale: subresources.scale.map(|s| ScalePaths {
                spec: s.spec_replicas_path,
                status: s.status_replicas_path,
                selector: s.label_selector_path.filter(|p| !p.is_empty()),
            }),
            has_status: subresources.status.is_some(),
            embeds: schemas.values().any(embedded::has_any),
        }
    }

    /// The schema of a version.
    fn schema_of(&self, api_version: &str) -> &Value {
        if api_version == self.api_version {
            return &self.open_api;
        }
        self.schemas.get(api_version).unwrap_or(&Value::Null)
    }

    /// Checks an object, and against what it was: what was wrong already, and is the same, is let through.
    fn check(&self, object: &dyn Object, old: Option<&dyn Object>, errors: &mut FieldErrors) {
        let (value, old) = (custom(object).value(), old.map(|old| custom(old).value()));
        values::check(&value, old.as_ref(), &self.open_api, errors);
        if let Some(scale) = &self.scale {
            check_replicas(&value, &scale.spec, errors);
        }
        self.check_scale_status(&value, errors);
        if self.embeds {
            embedded::check(&value, &self.open_api, &FieldPath::new(""), errors);
        }
        self.check_whole(&value, old.as_ref(), errors);
    }

    /// The same of an object whose status alone is written: of the rest nothing is asked but what rules see.
    fn check_status(&self, object: &dyn Object, old: &dyn Object, errors: &mut FieldErrors) {
        let (value, old) = (custom(object).value(), custom(old).value());
        if let Some(status) = value.get("status")
            && let Some(schema) = self.open_api.pointer("/properties/status")
        {
            values::check_at(status, old.get("status"), schema, &FieldPath::new("status"), errors);
        }
        self.check_scale_status(&value, errors);
        self.check_whole(&value, Some(&old), errors);
    }

    fn check_whole(&self, value: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
        lists::check(value, old, &self.open_api, errors);
        if self.rules.is_empty() {
            return;
        }
        if values::blocks_rules(errors) {
            return errors.invalid(&FieldPath::new("<nil>"), Value::Null, values::UNCHECKED);
        }
        self.rules.check(value, old, &self.open_api, errors);
    }

    fn check_scale_status(&self, value: &Value, errors: &mut FieldErrors) {
        let Some(scale) = &self.scale else { return };
        check_replicas(value, &scale.status, errors);
        let Some(path) = &scale.selector else { return };
        if let Some(found) = jsonpath::plain(value, path).filter(|found| !found.is_string()) {
            errors.invalid(&FieldPath::new(path), "", accessor_error(path, found, "string"));
        }
    }
}

/// Checks a number of replicas, if it is there.
fn check_replicas(value: &Value, path: &str, errors: &mut FieldErrors) {
    let Some(found) = jsonpath::plain(value, path) else { return };
    let at = FieldPath::new(path);
    match found.as_i64() {
        Some(n) if n < 0 => errors.invalid(&at, n, "should be a non-negative integer"),
        Some(n) if n > i64::from(i32::MAX) => {
            errors.invalid(&at, n, format!("should be less than or equal to {}", i32::MAX));
        }
        Some(_) => {}
        None => errors.invalid(&at, 0, accessor_error(path, found, "int64")),
    }
}

/// What Go says of a value that is not of the type that it is read as.
fn accessor_error(path: &str, found: &Value, wanted: &str) -> String {
    let is = match found {
        Value::String(_) => "string",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_i64() => "int64",
        Value::Number(_) => "float64",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
        Value::Null => "<nil>",
    };
    let said = if found.is_null() { is.to_owned() } else { shown(found) };
    format!("{path} accessor error: {said} is of the type {is}, expected {wanted}")
}

/// What is said of a finalizer that somebody else's could be taken for.
fn odd_finalizer(finalizer: &str) -> Vec<String> {
    let at = "metadata.finalizers";
    let mut told: Vec<String> = names::is_qualified_name(finalizer)
        .into_iter()
        .map(|why| format!("{at}: {finalizer:?}: {why}"))
        .collect();
    if !finalizer.contains('/') && !matches!(finalizer, "orphan" | "foregroundDeletion" | "kubernetes") {
        let path = if finalizer.contains('.') { " including a path (/)" } else { "" };
        told.push(format!(
            "{at}: {finalizer:?}: prefer a domain-qualified finalizer name{path} to avoid accidental conflicts with other \
             finalizer writers"
        ));
    }
    told
}

/// The schemas of a definition's versions, by `group/version`.
pub fn schemas(definition: &CustomResourceDefinition) -> Arc<BTreeMap<String, Value>> {
    let group = definition.spec.group.as_str();
    let of = |version: &CustomResourceDefinitionVersion| {
        let schema = version.schema.as_ref().and_then(|s| s.open_api_v3_schema.as_ref());
        let schema = schema.map_or_else(|| json!({}), |schema| part_to_value(schema, group));
        (format!("{group}/{}", version.name), schema)
    };
    Arc::new(definition.spec.versions.iter().map(of).collect())
}

/// The version that an object says to be in.
fn version_of(json: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Said {
        api_version: Option<String>,
    }
    serde_json::from_slice::<Said>(json).ok()?.api_version.filter(|version| !version.is_empty())
}

fn columns(version: &CustomResourceDefinitionVersion) -> Vec<Column> {
    let mut out: Vec<Column> = version
        .additional_printer_columns
        .iter()
        .flatten()
        .filter_map(|c| {
            let told = c.description.clone().filter(|d| !d.is_empty());
            Some(Column {
                definition: json!({
                    "name": c.name,
                    "type": c.type_,
                    "format": c.format.clone().unwrap_or_default(),
                    "description": told.unwrap_or_else(|| {
                        format!("Custom resource definition column (in JSONPath format): {}", c.json_path)
                    }),
                    "priority": c.priority.unwrap_or(0),
                }),
                kind: c.type_.clone(),
                path: Path::parse(&c.json_path)?,
            })
        })
        .collect();
    if version.additional_printer_columns.as_ref().is_none_or(Vec::is_empty) {
        let age = column::age::<ConfigMap>();
        if let Some(path) = Path::parse(".metadata.creationTimestamp") {
            out.push(Column {
                definition: json!({
                    "name": age.name, "type": "date", "format": "", "priority": 0,
                    "description": "Custom resource definition column (in JSONPath format): .metadata.creationTimestamp",
                }),
                kind: "date".to_owned(),
                path,
            });
        }
    }
    out
}

fn cell(kind: &str, value: &Value) -> Value {
    match kind {
        "string" => shown(value).into(),
        "integer" => value.as_i64().or_else(|| value.as_f64().map(|n| n as i64)).into(),
        "number" if value.is_number() => value.clone(),
        "boolean" if value.is_boolean() => value.clone(),
        "date" => match value.as_str().map(str::parse::<jiff::Timestamp>) {
            Some(Ok(then)) => column::since_at(then, jiff::Timestamp::now()).into(),
            Some(Err(_)) => "<invalid>".into(),
            None => Value::Null,
        },
        _ => Value::Null,
    }
}

fn custom(object: &dyn Object) -> &Custom {
    object.is().expect("a registry is given objects of its own kind")
}

fn custom_mut(object: &mut dyn Object) -> &mut Custom {
    object.is_mut().expect("a registry is given objects of its own kind")
}

impl Registry for Version {
    fn kind(&self) -> &'static Kind {
        self.kind
    }

    fn decode(&self, json: &[u8]) -> Result<Box<dyn Object>, DecodeError> {
        let mut object = Custom::read(json, &self.api_version, self.kind.kind)?;
        if self.by_webhook
            && let Some(other) = version_of(json).filter(|other| *other != self.api_version)
        {
            object.api_version = other;
        }
        let schema = self.schema_of(&object.api_version);
        prune::prune(&mut object.fields, schema, true);
        prune::prune_nulls(&mut object.fields, schema);
        if self.embeds {
            embedded::coerce(&mut object.fields, schema);
        }
        Ok(Box::new(object))
    }

    fn default(&self, object: &mut dyn Object) {
        let object = custom_mut(object);
        let schema = self.schema_of(&object.api_version);
        prune::default(&mut object.fields, schema);
    }

    fn prepare_for_create(&self, object: &mut dyn Object, _: &Context) {
        let object = custom_mut(object);
        if self.has_status {
            object.fields.remove("status");
        }
        object.metadata.generation = Some(1);
    }

    fn prepare_for_update(&self, object: &mut dyn Object, old: &dyn Object, _: &Context) {
        let (object, old) = (custom_mut(object), custom(old));
        if self.has_status {
            match old.get("status") {
                Some(status) => object.fields.insert("status".to_owned(), status.clone()),
                None => object.fields.remove("status"),
            };
        }
        object.metadata.generation = old.metadata.generation;
        if object.fields != old.fields {
            object.metadata.generation = Some(old.metadata.generation.unwrap_or(0) + 1);
        }
    }

    fn prepare_for_status_update(&self, object: &mut dyn Object, old: &dyn Object, _: &Context) {
        let (object, old) = (custom_mut(object), custom(old));
        let status = object.fields.remove("status");
        let managed = object.metadata.managed_fields.take();
        object.fields.clone_from(&old.fields);
        object.metadata.clone_from(&old.metadata);
        object.metadata.managed_fields = managed;
        match status {
            Some(status) => object.fields.insert("status".to_owned(), status),
            None => object.fields.remove("status"),
        };
    }

    fn validate_name(&self, name: &str) -> Vec<String> {
        names::is_dns1123_subdomain(name)
    }

    fn validate(&self, object: &dyn Object, errors: &mut FieldErrors) {
        // What is there already is asked together with what it was.
        if object.meta().resource_version.is_none() {
            self.check(object, None, errors);
        }
    }

    fn validate_update(&self, object: &dyn Object, old: &dyn Object, _: &str, errors: &mut FieldErrors) {
        self.check(object, Some(old), errors);
    }

    fn validate_status_update(&self, object: &dyn Object, old: &dyn Object, errors: &mut FieldErrors) {
        self.check_status(object, old, errors);
    }

    fn warnings(&self, object: &dyn Object, old: Option<&dyn Object>) -> Vec<String> {
        let before = old.and_then(|old| old.meta().finalizers.as_deref()).unwrap_or_default();
        let now = object.meta().finalizers.as_deref().unwrap_or_default();
        let mut added: Vec<&String> = now.iter().filter(|finalizer| !before.contains(finalizer)).collect();
        added.sort_unstable();
        added.dedup();
        added.into_iter().flat_map(|finalizer| odd_finalizer(finalizer)).collect()
    }

    fn selectable(&self, object: &dyn Object) -> Selectable {
        if self.selectable.is_empty() {
            return Selectable::new();
        }
        let value = custom(object).value();
        let first = |path: &Path| path.find(&value).first().map(|v| shown(v)).unwrap_or_default();
        self.selectable.iter().map(|(name, path)| (*name, first(path))).collect()
    }

    fn selectable_names(&self) -> Vec<&'static str> {
        let namespace = self.kind.is_namespaced().then_some("metadata.namespace");
        self.selectable.iter().map(|(name, _)| *name).chain(["metadata.name"]).chain(namespace).collect()
    }

    fn columns(&self) -> Value {
        let name = column::name::<ConfigMap>();
        std::iter::once(column::definition(&name, &Docs::shared()))
            .chain(self.columns.iter().map(|c| c.definition.clone()))
            .collect()
    }

    fn cells(&self, object: &dyn Object) -> Vec<Value> {
        let value = custom(object).value();
        let found = |c: &Column| c.path.find(&value).first().map_or(Value::Null, |v| cell(&c.kind, v));
        let name = object.meta().name.clone().unwrap_or_default();
        std::iter::once(name.into()).chain(self.columns.iter().map(found)).collect()
    }

    fn grace_period(&self, _: &dyn Object, _: Option<i64>) -> Option<i64> {
        None
    }

    fn allows_create_on_update(&self) -> bool {
        false
    }

    fn allows_unconditional_update(&self) -> bool {
        false
    }

    fn schema(&self) -> Option<TypeRef<'_>> {
        Some(self.types.root())
    }

    fn open_api(&self) -> Option<&Value> {
        Some(&self.open_api)
    }

    fn scale_paths(&self) -> Option<&ScalePaths> {
        self.scale.as_ref()
    }

    fn to_stored(&self, object: &dyn Object) -> Vec<u8> {
        match &self.stored_as {
            None => object.to_json(),
            Some(version) => Custom { api_version: version.clone(), ..custom(object).clone() }.to_json(),
        }
    }

    fn as_sent(&self, json: &Bytes) -> Option<Bytes> {
        self.stored_as.as_ref()?;
        let mut object = self.decode(json).ok()?;
        self.default(&mut *object);
        Some(object.to_json().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version() -> Version {
        let definition: CustomResourceDefinition = serde_json::from_value(json!({
            "metadata": {"name": "sizes.example.com"},
            "spec": {
                "group": "example.com", "scope": "Cluster", "names": {"plural": "sizes", "kind": "Size"},
                "versions": [{"name": "v1", "served": true, "storage": true,
                    "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.n",
                        "statusReplicasPath": ".status.n", "labelSelectorPath": ".status.selector"}},
                    "schema": {"openAPIV3Schema": {"type": "object", "required": ["must"], "properties": {
                        "spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                        "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
                            "properties": {"phase": {"type": "string"}}},
                    }}}}],
            },
        }))
        .expect("a definition");
        Version::new(&definition, &definition.spec.versions[0], &schemas(&definition))
    }

    fn object(version: &Version, said: &Value) -> Box<dyn Object> {
        version.decode(said.to_string().as_bytes()).expect("an object")
    }

    #[test]
    fn a_written_status_is_held_against_what_is_said_of_status() {
        let version = version();
        let old = object(&version, &json!({"spec": {"n": -1}}));
        let status = json!({"n": 3_000_000_000_i64, "phase": 1, "selector": 5});
        let new = object(&version, &json!({"spec": {"n": -1}, "status": status}));
        let mut errors = FieldErrors::new();
        version.validate_status_update(&*new, &*old, &mut errors);
        let told: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                r#"status.phase: Invalid value: "integer": phase in body must be of type string: "integer""#,
                ".status.n: Invalid value: 3000000000: should be less than or equal to 2147483647",
                r#".status.selector: Invalid value: "": .status.selector accessor error: 5 is of the type int64, expected string"#,
            ]
        );
        let mut errors = FieldErrors::new();
        version.validate(&*new, &mut errors);
        assert!(
            errors.iter().any(|error| error.field.as_str() == "must"),
            "the whole is not as it should be"
        );
    }

    #[test]
    fn a_namespace_is_selected_by_where_there_is_one() {
        assert_eq!(version().selectable_names(), ["metadata.name"]);
    }
}
