//! What a definition must be (upstream's `pkg/apis/apiextensions/validation`). What is looked at part by part of a
//! schema is in the modules below.

mod part;
mod path;
mod said;
mod structural;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceColumnDefinition, CustomResourceDefinition, CustomResourceDefinitionNames,
    CustomResourceDefinitionVersion, CustomResourceSubresourceScale, CustomResourceSubresources,
};
use krate_api::names::{is_dns1035_label, is_dns1123_subdomain};
use krate_api::{FieldErrors, FieldPath};
use serde_json::Value;

use super::approval::{self, Approval};
use crate::formats;
use crate::registry::rules::{IMMUTABLE, one_of, required_one_of};

const COLUMN_TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
const COLUMN_FORMATS: [&str; 8] =
    ["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];
const SELECTABLE_MOST: usize = 8;
const WARNING_MOST: usize = 256;
const REVIEW_VERSIONS: [&str; 2] = ["v1", "v1beta1"];

fn established(definition: &CustomResourceDefinition) -> bool {
    let conditions = definition.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Established" && c.status == "True")
}

fn schema_of(version: &CustomResourceDefinitionVersion) -> Option<Value> {
    let schema = version.schema.as_ref()?.open_api_v3_schema.as_ref()?;
    serde_json::to_value(schema).ok()
}

/// Whether all versions have the same of something, which upstream then looks at once, by the name that it had before
/// there were versions.
fn shared<T: PartialEq>(
    versions: &[CustomResourceDefinitionVersion],
    of: impl Fn(&CustomResourceDefinitionVersion) -> &T,
) -> bool {
    versions.split_first().is_some_and(|(first, rest)| rest.iter().all(|version| of(version) == of(first)))
}

/// Checks a definition. `old`: what it was; `at`: the definition itself.
pub fn check(
    definition: &CustomResourceDefinition,
    old: Option<&CustomResourceDefinition>,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    let (status_at, at) = (at.child("status"), at.child("spec"));
    spec(definition, old, &at, errors);
    if let Some(old) = old {
        immutable(definition, old, &at, errors);
    }
    status(definition, &status_at, errors);
    let stored = definition.status.as_ref().and_then(|s| s.stored_versions.as_deref()).unwrap_or_default();
    stored_versions(stored, &definition.spec.versions, &status_at.child("storedVersions"), errors);
    approved(definition, old, errors);
    let kept = old.is_some_and(|old| old.spec.preserve_unknown_fields == Some(true));
    if definition.spec.preserve_unknown_fields == Some(true) && !kept {
        errors.invalid(
            &at.child("preserveUnknownFields"),
            true,
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead",
        );
    }
}

/// Checks what a status says.
pub fn status(definition: &CustomResourceDefinition, at: &FieldPath, errors: &mut FieldErrors) {
    if let Some(accepted) = definition.status.as_ref().and_then(|s| s.accepted_names.as_ref()) {
        names(accepted, &at.child("acceptedNames"), errors);
    }
}

fn spec(
    definition: &CustomResourceDefinition,
    old: Option<&CustomResourceDefinition>,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    let spec = &definition.spec;
    let wrong = is_dns1123_subdomain(&spec.group);
    if spec.group.is_empty() {
        errors.required(&at.child("group"), "");
    } else if !wrong.is_empty() {
        errors.invalid(&at.child("group"), &spec.group, wrong.join(","));
    } else if !spec.group.contains('.') {
        errors.invalid(&at.child("group"), &spec.group, "should be a domain with at least one dot");
    }
    required_one_of(Some(&spec.scope), &["Cluster", "Namespaced"], &at.child("scope"), errors);
    let schemas: Vec<Option<Value>> = spec.versions.iter().map(schema_of).collect();
    for (i, _) in schemas.iter().enumerate().filter(|(_, schema)| schema.is_none()) {
        let at = at.child("versions").index(i).child("schema").child("openAPIV3Schema");
        errors.required(&at, "");
    }
    let keeps_all = spec.preserve_unknown_fields == Some(true);
    if keeps_all && schemas.iter().flatten().any(|schema| part::any(schema, &|s| s.get("default").is_some()))
    {
        let detail = "must be false in order to use defaults in the schema";
        errors.invalid(&at.child("preserveUnknownFields"), true, detail);
    }
    let ratchet = part::Ratchet::of(old);
    versions(definition, old, &schemas, &ratchet, &at.child("versions"), errors);
    for (field, value) in [
        ("plural", spec.names.plural.as_str()),
        ("singular", spec.names.singular.as_deref().unwrap_or_default()),
        ("kind", spec.names.kind.as_str()),
        ("listKind", spec.names.list_kind.as_deref().unwrap_or_default()),
    ] {
        if value.is_empty() {
            errors.required(&at.child("names").child(field), "");
        }
    }
    names(&spec.names, &at.child("names"), errors);
    let Some(first) = spec.versions.first() else { return conversion(definition, old, at, errors) };
    if shared(&spec.versions, |v| &v.schema)
        && let Some(schema) = schemas.first().and_then(Option::as_ref)
    {
        let has_status = spec.versions.iter().any(has_status);
        let same = unchanged(old, &first.name, schema);
        part::check(schema, has_status, same, &ratchet, &at.child("validation"), errors);
    }
    if shared(&spec.versions, |v| &v.subresources) {
        subresources(first.subresources.as_ref(), &at.child("subresources"), errors);
    }
    if shared(&spec.versions, |v| &v.additional_printer_columns) {
        columns(first, &at.child("additionalPrinterColumns"), errors);
    }
    if shared(&spec.versions, |v| &v.selectable_fields) {
        let schema = schemas.first().and_then(Option::as_ref);
        selectable_fields(first, schema, old, &at.child("selectableFields"), errors);
    }
    if keeps_all && spec.conversion.as_ref().is_some_and(|c| c.strategy != "None") {
        let strategy = spec.conversion.as_ref().map(|c| c.strategy.as_str());
        let detail = "must be None if spec.preserveUnknownFields is true";
        errors.invalid(&at.child("conversion").child("strategy"), strategy, detail);
    }
    conversion(definition, old, at, errors);
}

/// Whether a version's schema is what it was.
fn unchanged(old: Option<&CustomResourceDefinition>, version: &str, schema: &Value) -> bool {
    let was = old.and_then(|old| old.spec.versions.iter().find(|v| v.name == version));
    was.and_then(schema_of).as_ref() == Some(schema)
}

fn has_status(version: &CustomResourceDefinitionVersion) -> bool {
    version.subresources.as_ref().is_some_and(|s| s.status.is_some())
}

fn versions(
    definition: &CustomResourceDefinition,
    old: Option<&CustomResourceDefinition>,
    schemas: &[Option<Value>],
    ratchet: &part::Ratchet,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    let all = &definition.spec.versions;
    let one_schema = shared(all, |v| &v.schema);
    for (i, (version, schema)) in all.iter().zip(schemas).enumerate() {
        let at = at.index(i);
        let wrong = is_dns1035_label(&version.name);
        if !wrong.is_empty() {
            errors.invalid(&at.child("name"), &version.name, wrong.join(","));
        }
        for why in deprecation(version) {
            errors.invalid(&at.child("deprecationWarning"), &version.deprecation_warning, why);
        }
        if let Some(schema) = schema.as_ref().filter(|_| !one_schema) {
            let same = unchanged(old, &version.name, schema);
            part::check(schema, has_status(version), same, ratchet, &at.child("schema"), errors);
        }
        if !shared(all, |v| &v.subresources) {
            subresources(version.subresources.as_ref(), &at.child("subresources"), errors);
        }
        if !shared(all, |v| &v.additional_printer_columns) {
            columns(version, &at.child("additionalPrinterColumns"), errors);
        }
        if !shared(all, |v| &v.selectable_fields) {
            let schema = schema.as_ref();
            selectable_fields(version, schema, old, &at.child("selectableFields"), errors);
        }
    }
    let repeated = all.iter().enumerate().any(|(i, v)| all[..i].iter().any(|other| other.name == v.name));
    if repeated {
        errors.invalid(at, all, "must contain unique version names");
    }
    if all.iter().filter(|v| v.storage).count() != 1 {
        errors.invalid(at, all, "must have exactly one version marked as storage version");
    }
}

fn deprecation(version: &CustomResourceDefinitionVersion) -> Vec<String> {
    let Some(warning) = &version.deprecation_warning else { return Vec::new() };
    if version.deprecated != Some(true) {
        return vec!["can only be set for deprecated versions".to_owned()];
    }
    let mut wrong = Vec::new();
    if warning.len() > WARNING_MOST {
        wrong.push(format!("must be <= {WARNING_MOST} characters long"));
    }
    if warning.is_empty() {
        wrong.push("must not be an empty string".to_owned());
    }
    if let Some((i, _)) = warning.char_indices().find(|(_, c)| c.is_control()) {
        let printable = "must only contain printable UTF-8 characters";
        wrong.push(format!("{printable}; non-printable character found at index {i}"));
    }
    wrong
}

/// Checks the names of a definition, wanted or accepted.
fn names(names: &CustomResourceDefinitionNames, at: &FieldPath, errors: &mut FieldErrors) {
    let label = |value: &str, at: &FieldPath, errors: &mut FieldErrors| {
        let wrong = is_dns1035_label(value);
        if !value.is_empty() && !wrong.is_empty() {
            errors.invalid(at, value, wrong.join(","));
        }
    };
    let mixed = |value: &str, at: &FieldPath, errors: &mut FieldErrors| {
        let wrong = is_dns1035_label(&value.to_lowercase());
        if !value.is_empty() && !wrong.is_empty() {
            let detail = format!("may have mixed case, but should otherwise match: {}", wrong.join(","));
            errors.invalid(at, value, detail);
        }
    };
    let (singular, list) =
        (names.singular.as_deref().unwrap_or_default(), names.list_kind.as_deref().unwrap_or_default());
    label(&names.plural, &at.child("plural"), errors);
    label(singular, &at.child("singular"), errors);
    mixed(&names.kind, &at.child("kind"), errors);
    mixed(list, &at.child("listKind"), errors);
    let listed = |field: &str, values: &Option<Vec<String>>, errors: &mut FieldErrors| {
        for (i, value) in values.iter().flatten().enumerate() {
            let wrong = is_dns1035_label(value);
            if !wrong.is_empty() {
                errors.invalid(&at.child(field).index(i), value, wrong.join(","));
            }
        }
    };
    listed("shortNames", &names.short_names, errors);
    if !names.kind.is_empty() && names.kind == list {
        errors.invalid(&at.child("listKind"), list, "kind and listKind may not be the same");
    }
    listed("categories", &names.categories, errors);
}

/// A path of plain names, as far as upstream looks at it.
fn dotted(path: &str, at: &FieldPath, errors: &mut FieldErrors) -> bool {
    let begins = path.starts_with('.');
    if !begins {
        errors.invalid(at, path, "must be a simple json path starting with .");
    }
    begins
}

fn columns(version: &CustomResourceDefinitionVersion, at: &FieldPath, errors: &mut FieldErrors) {
    for (i, column) in version.additional_printer_columns.iter().flatten().enumerate() {
        check_column(column, &at.index(i), errors);
    }
}

fn check_column(column: &CustomResourceColumnDefinition, at: &FieldPath, errors: &mut FieldErrors) {
    if column.name.is_empty() {
        errors.required(&at.child("name"), "");
    }
    let one_of_types = || format!("must be one of {}", COLUMN_TYPES.join(","));
    if column.type_.is_empty() {
        errors.required(&at.child("type"), one_of_types());
    } else if !COLUMN_TYPES.contains(&column.type_.as_str()) {
        errors.invalid(&at.child("type"), &column.type_, one_of_types());
    }
    if let Some(format) = column.format.as_deref().filter(|f| !f.is_empty() && !COLUMN_FORMATS.contains(f)) {
        let detail = format!("must be one of {}", COLUMN_FORMATS.join(","));
        errors.invalid(&at.child("format"), format, detail);
    }
    if column.json_path.is_empty() {
        errors.required(&at.child("JSONPath"), "");
    } else {
        dotted(&column.json_path, &at.child("JSONPath"), errors);
    }
}

fn selectable_fields(
    version: &CustomResourceDefinitionVersion,
    schema: Option<&Value>,
    old: Option<&CustomResourceDefinition>,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    let Some(fields) = version.selectable_fields.as_ref().filter(|fields| !fields.is_empty()) else { return };
    let Some(schema) = schema else {
        let detail = "may only be set when `version.schema.openAPIV3Schema` is not included";
        return errors.invalid(at, "", detail);
    };
    let mut known: Vec<String> = Vec::new();
    for (i, field) in fields.iter().enumerate() {
        let (at, path) = (at.index(i).child("jsonPath"), field.json_path.as_str());
        if path.is_empty() {
            errors.required(&at, "");
            continue;
        }
        let (named, found) = match path::within(path, schema, false) {
            Ok(found) => found,
            Err(why) => {
                errors.invalid(&at, path, format!("is an invalid path: {why}"));
                continue;
            }
        };
        if named.split(['.', '[']).next() == Some("metadata") {
            errors.invalid(&at, path, "must not point to fields in metadata");
        }
        if !matches!(found.get("type").and_then(Value::as_str), Some("string" | "boolean" | "integer")) {
            let detail = "must point to a field of type string, boolean or integer. Enum string fields and strings \
                          with formats are allowed.";
            errors.invalid(&at, path, detail);
        }
        if known.contains(&named) {
            errors.duplicate(&at, path);
        } else {
            known.push(named);
        }
    }
    let was = old.and_then(|old| old.spec.versions.iter().find(|v| v.name == version.name));
    let kept = was.is_some_and(|was| was.selectable_fields == version.selectable_fields);
    if known.len() > SELECTABLE_MOST && !kept {
        errors.too_many(at, known.len(), SELECTABLE_MOST);
    }
}

fn subresources(said: Option<&CustomResourceSubresources>, at: &FieldPath, errors: &mut FieldErrors) {
    if let Some(scale) = said.and_then(|s| s.scale.as_ref()) {
        check_scale(scale, at, errors);
    }
}

fn check_scale(scale: &CustomResourceSubresourceScale, at: &FieldPath, errors: &mut FieldErrors) {
    for (field, path, below) in [
        ("scale.specReplicasPath", &scale.spec_replicas_path, ".spec."),
        ("scale.statusReplicasPath", &scale.status_replicas_path, ".status."),
    ] {
        let at = at.child(field);
        if path.is_empty() {
            errors.required(&at, "");
        } else if dotted(path, &at, errors) && !path.starts_with(below) {
            errors.invalid(&at, path, format!("should be a json path under {}", below.trim_end_matches('.')));
        }
    }
    let at = at.child("scale.labelSelectorPath");
    if let Some(path) = scale.label_selector_path.as_ref().filter(|path| !path.is_empty())
        && dotted(path, &at, errors)
        && !path.starts_with(".spec.")
        && !path.starts_with(".status.")
    {
        errors.invalid(&at, path, "should be a json path under either .spec or .status");
    }
}

fn conversion(
    definition: &CustomResourceDefinition,
    old: Option<&CustomResourceDefinition>,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    let Some(said) = &definition.spec.conversion else { return };
    let at = at.child("conversion");
    match said.strategy.as_str() {
        "" => errors.required(&at.child("strategy"), ""),
        strategy => one_of(strategy, &["None", "Webhook"], &at.child("strategy"), errors),
    }
    let config = said.webhook.as_ref().and_then(|w| w.client_config.as_ref());
    let versions = said.webhook.as_ref().map(|w| w.conversion_review_versions.as_slice()).unwrap_or_default();
    let (config_at, versions_at) = (at.child("webhookClientConfig"), at.child("conversionReviewVersions"));
    if said.strategy != "Webhook" {
        let detail = "should not be set when strategy is not set to Webhook";
        if config.is_some() {
            errors.forbidden(&config_at, detail);
        }
        if !versions.is_empty() {
            errors.forbidden(&versions_at, detail);
        }
        return;
    }
    match config {
        None => errors.required(&config_at, "required when strategy is set to Webhook"),
        Some(config) => {
            use crate::registry::admissionregistration::webhook::{ca_bundle, service, url};
            match (&config.url, &config.service) {
                (Some(_), Some(_)) | (None, None) => {
                    errors.required(&config_at, "exactly one of url or service is required");
                }
                (Some(said), None) => url(said, &config_at.child("url"), errors),
                (None, Some(said)) => {
                    let (path, port) = (said.path.as_deref(), said.port.unwrap_or(443));
                    service(&said.name, &said.namespace, path, port, &config_at.child("service"), errors);
                }
            }
            // A bundle that is none harms nobody before the kind is served, and what was let in stays.
            let bundle = config.ca_bundle.as_ref().map(|b| b.0.as_slice()).filter(|b| !b.is_empty());
            let was =
                old.and_then(|old| old.spec.conversion.as_ref()?.webhook.as_ref()?.client_config.as_ref());
            let was =
                was.and_then(|c| c.ca_bundle.as_ref()).map(|b| b.0.as_slice()).filter(|b| !b.is_empty());
            let faulty = |bundle: &[u8]| {
                let mut found = FieldErrors::new();
                ca_bundle(bundle, &config_at.child("caBundle"), &mut found);
                found
            };
            if let Some(bundle) = bundle
                && old.is_some_and(established)
                && was.is_none_or(|was| faulty(was).is_empty())
            {
                errors.extend(faulty(bundle));
            }
        }
    }
    let was = old.and_then(|old| old.spec.conversion.as_ref()?.webhook.as_ref());
    let was = was.map(|w| w.conversion_review_versions.as_slice()).unwrap_or_default();
    let known = |versions: &[String]| versions.iter().any(|v| REVIEW_VERSIONS.contains(&v.as_str()));
    review_versions(versions, was.is_empty() || known(was), &versions_at, errors);
}

fn review_versions(versions: &[String], strict: bool, at: &FieldPath, errors: &mut FieldErrors) {
    if versions.is_empty() {
        return errors.required(at, "");
    }
    for (i, version) in versions.iter().enumerate() {
        if versions[..i].contains(version) {
            errors.invalid(&at.index(i), version, "duplicate version");
            continue;
        }
        for why in is_dns1035_label(version) {
            errors.invalid(&at.index(i), version, why);
        }
    }
    if strict && !versions.iter().any(|v| REVIEW_VERSIONS.contains(&v.as_str())) {
        errors.invalid(at, versions, format!("must include at least one of {}", REVIEW_VERSIONS.join(", ")));
    }
}

fn immutable(
    definition: &CustomResourceDefinition,
    old: &CustomResourceDefinition,
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    let (new, was) = (&definition.spec, &old.spec);
    let names = at.child("names");
    let fields = [
        (at.child("scope"), &new.scope, &was.scope, established(old)),
        (names.child("kind"), &new.names.kind, &was.names.kind, established(old)),
        (at.child("group"), &new.group, &was.group, true),
        (names.child("plural"), &new.names.plural, &was.names.plural, true),
    ];
    for (at, new, was, fixed) in fields {
        if fixed && new != was {
            errors.invalid(&at, new, IMMUTABLE);
        }
    }
}

fn stored_versions(
    stored: &[String],
    versions: &[CustomResourceDefinitionVersion],
    at: &FieldPath,
    errors: &mut FieldErrors,
) {
    if stored.is_empty() {
        return errors.invalid(at, stored, "must have at least one stored version");
    }
    for version in versions.iter().filter(|v| v.storage && !stored.contains(&v.name)) {
        errors.invalid(at, stored, format!("must have the storage version {}", version.name));
    }
    for (i, name) in stored.iter().enumerate().filter(|(_, s)| !versions.iter().any(|v| v.name == **s)) {
        let detail = format!(
            "missing from spec.versions; {name} was previously a storage version, and must remain in spec.versions \
             until a storage migration ensures no data remains persisted in {name} and removes {name} from \
             status.storedVersions"
        );
        errors.invalid(&at.index(i), name, detail);
    }
}

/// Groups of the community are for APIs that it has approved.
fn approved(
    definition: &CustomResourceDefinition,
    old: Option<&CustomResourceDefinition>,
    errors: &mut FieldErrors,
) {
    if !approval::is_protected(&definition.spec.group) {
        return;
    }
    let (now, reason) = approval::of(definition);
    if old.is_some_and(|old| approval::of(old).0 == now) {
        return;
    }
    let at = FieldPath::new("metadata").child("annotations").key(approval::ANNOTATION);
    match now {
        Approval::Missing => errors.required(&at, reason),
        Approval::Invalid => errors.invalid(&at, approval::annotation(definition), reason),
        Approval::Approved | Approval::Bypassed => {}
    }
}

/// What a definition is warned of: formats that nobody knows, and sets whose items cannot be told apart.
pub fn warnings(definition: &CustomResourceDefinition) -> Vec<String> {
    let (mut formats, mut sets) = (Vec::new(), std::collections::BTreeSet::new());
    for schema in definition.spec.versions.iter().filter_map(schema_of) {
        part::each(&schema, &mut |schema| {
            if let Some(format) = schema.get("format").and_then(Value::as_str)
                && !format.is_empty()
                && !formats::is_known(schema.get("type").and_then(Value::as_str).unwrap_or_default(), format)
            {
                formats.push(format!("unrecognized format {format:?}"));
            }
            let item = schema.pointer("/items/type").and_then(Value::as_str);
            if let Some(kind @ ("object" | "array")) = item
                && schema.get("x-kubernetes-list-type").and_then(Value::as_str) == Some("set")
            {
                sets.insert(format!(
                    "x-kubernetes-list-type: set for items of type {kind:?} is not supported by server-side apply or \
                     CEL validation rules"
                ));
            }
        });
    }
    formats.into_iter().chain(sets).collect()
}

#[cfg(test)]
mod tests;
