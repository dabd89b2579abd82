//! What a container finds in its environment, and where that comes from.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, EnvVar, EnvVarSource, FileKeySelector, ObjectFieldSelector, PodSpec, ResourceFieldSelector,
};
use krate_api::names::{is_dns1123_subdomain, is_relaxed_env_var_name, mask_trailing_dash};
use krate_api::quantity::canonical;
use krate_api::{FieldErrors, FieldPath};

use super::visit;
use super::volumes::no_back_steps;
use crate::registry::quantities::is_zero;
use crate::registry::rules::{config_key, dns_label, dns_subdomain, each, label_name};

pub fn environment(c: &Container, at: &FieldPath, errors: &mut FieldErrors) {
    for (i, variable) in c.env.iter().flatten().enumerate() {
        env(variable, &at.child("env").index(i), errors);
    }
    env_from(c, &at.child("envFrom"), errors);
}

fn env(variable: &EnvVar, at: &FieldPath, errors: &mut FieldErrors) {
    if variable.name.is_empty() {
        errors.required(&at.child("name"), "");
    } else {
        each(is_relaxed_env_var_name(&variable.name), &variable.name, &at.child("name"), errors);
    }
    let Some(source) = &variable.value_from else { return };
    let at = at.child("valueFrom");
    let value = variable.value.as_deref().unwrap_or_default();
    let given = env_source(source, &at, errors);
    if given == 0 {
        errors.invalid(
            &at,
            "",
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        );
    } else if !value.is_empty() {
        errors.invalid(&at, "", "may not be specified when `value` is not empty");
    } else if given > 1 {
        errors.invalid(&at, "", "may not have more than one field specified at a time");
    }
}

fn env_source(source: &EnvVarSource, at: &FieldPath, errors: &mut FieldErrors) -> usize {
    const FIELDS: &[&str] = &[
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
        "spec.nodeName",
        "spec.serviceAccountName",
        "status.hostIP",
        "status.hostIPs",
        "status.podIP",
        "status.podIPs",
    ];
    let mut given = 0;
    if let Some(f) = &source.field_ref {
        given += 1;
        field_ref(f, FIELDS, &at.child("fieldRef"), errors);
    }
    if let Some(r) = &source.resource_field_ref {
        given += 1;
        resource_field(r, false, &at.child("resourceFieldRef"), errors);
    }
    if let Some(r) = &source.config_map_key_ref {
        given += 1;
        key_ref(&r.name, &r.key, &at.child("configMapKeyRef"), errors);
    }
    if let Some(r) = &source.secret_key_ref {
        given += 1;
        key_ref(&r.name, &r.key, &at.child("secretKeyRef"), errors);
    }
    if let Some(r) = &source.file_key_ref {
        given += 1;
        file_key(r, &at.child("fileKeyRef"), errors);
    }
    given
}

fn key_ref(name: &str, key: &str, at: &FieldPath, errors: &mut FieldErrors) {
    dns_subdomain(name, &at.child("name"), errors);
    if key.is_empty() {
        errors.required(&at.child("key"), "");
    } else {
        each(config_key(key), key, &at.child("key"), errors);
    }
}

fn file_key(r: &FileKeySelector, at: &FieldPath, errors: &mut FieldErrors) {
    if r.key.is_empty() {
        errors.required(&at.child("key"), "");
    } else {
        each(is_relaxed_env_var_name(&r.key), &r.key, &at.child("key"), errors);
    }
    if r.volume_name.is_empty() {
        errors.required(&at.child("volumeName"), "");
    } else {
        dns_label(&r.volume_name, &at.child("volumeName"), errors);
    }
    if r.path.is_empty() {
        errors.required(&at.child("path"), "");
    } else {
        no_back_steps(&r.path, &at.child("path"), errors);
    }
}

/// The path of a field in its parts, where it picks one entry of a map: `metadata.labels['a']`.
fn subscript(path: &str) -> Option<(&str, &str)> {
    path.strip_suffix("']")?.split_once("['").filter(|(map, _)| !map.is_empty())
}

/// Why there is no such field of a pod at all.
fn unknown_field(version: &str, path: &str) -> Option<String> {
    const KNOWN: &[&str] = &[
        "metadata.annotations",
        "metadata.labels",
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
        "spec.host",
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.serviceAccountName",
        "spec.schedulerName",
        "status.phase",
        "status.hostIP",
        "status.hostIPs",
        "status.podIP",
        "status.podIPs",
    ];
    if version != "v1" {
        return Some(format!("unsupported pod version: {version}"));
    }
    match subscript(path) {
        Some(("metadata.annotations" | "metadata.labels", _)) => None,
        Some(_) => Some(format!("field label does not support subscript: {path}")),
        None if KNOWN.contains(&path) => None,
        None => Some(format!("field label not supported: {path}")),
    }
}

/// A field of the pod that a container or a file may be told.
pub fn field_ref(f: &ObjectFieldSelector, allowed: &[&str], at: &FieldPath, errors: &mut FieldErrors) {
    let (version, path) = (f.api_version.as_deref().unwrap_or_default(), f.field_path.as_str());
    let place = at.child("fieldPath");
    if version.is_empty() {
        errors.required(&at.child("apiVersion"), "");
    } else if path.is_empty() {
        errors.required(&place, "");
    } else if let Some(why) = unknown_field(version, path) {
        errors.invalid(&place, path, format!("error converting fieldPath: {why}"));
    } else if let Some((map, key)) = subscript(path) {
        let is_annotation = map == "metadata.annotations";
        label_name(&if is_annotation { key.to_lowercase() } else { key.to_owned() }, at, errors);
    } else {
        let path = if path == "spec.host" { "spec.nodeName" } else { path };
        if !allowed.contains(&path) {
            errors.not_supported(&place, path, allowed);
        }
    }
}

/// A resource that a container or a file may be told the amount of. A file must say whose.
pub fn resource_field(r: &ResourceFieldSelector, in_volume: bool, at: &FieldPath, errors: &mut FieldErrors) {
    const NAMES: &[&str] = &[
        "limits.cpu",
        "limits.ephemeral-storage",
        "limits.memory",
        "requests.cpu",
        "requests.ephemeral-storage",
        "requests.memory",
    ];
    let resource = r.resource.as_str();
    if in_volume && r.container_name.as_deref().is_none_or(str::is_empty) {
        errors.required(&at.child("containerName"), "");
    } else if resource.is_empty() {
        errors.required(&at.child("resource"), "");
    } else if !NAMES.contains(&resource) && !is_of_pages(resource) {
        errors.not_supported(&at.child("resource"), resource, NAMES);
    }
    divisor(r, &at.child("divisor"), errors);
}

fn is_of_pages(resource: &str) -> bool {
    resource.starts_with("limits.hugepages-") || resource.starts_with("requests.hugepages-")
}

fn divisor(r: &ResourceFieldSelector, at: &FieldPath, errors: &mut FieldErrors) {
    const BYTES: &[&str] =
        &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];
    let Some(given) = r.divisor.as_ref().filter(|given| !is_zero(given)) else { return };
    let resource = r.resource.as_str();
    let (kind, supported) = match resource {
        "limits.cpu" | "requests.cpu" => ("cpu", &["1m", "1"] as &[&str]),
        "limits.memory" | "requests.memory" => ("memory", BYTES),
        "limits.ephemeral-storage" | "requests.ephemeral-storage" => ("local ephemeral storage", BYTES),
        _ if is_of_pages(resource) => ("hugepages", BYTES),
        _ => return,
    };
    let given = canonical(&given.0).unwrap_or_default();
    if !supported.contains(&given.as_str()) {
        let list = if kind == "cpu" { "1m and 1".to_owned() } else { supported.join(", ") };
        let why = format!("only divisor's values {list} are supported with the {kind} resource");
        errors.invalid(at, resource, why);
    }
}

fn env_from(c: &Container, at: &FieldPath, errors: &mut FieldErrors) {
    for (i, source) in c.env_from.iter().flatten().enumerate() {
        let place = at.index(i);
        if let Some(prefix) = source.prefix.as_deref().filter(|p| !p.is_empty()) {
            each(is_relaxed_env_var_name(prefix), prefix, &place.child("prefix"), errors);
        }
        let names = [
            ("configMapRef", source.config_map_ref.as_ref().map(|r| &r.name)),
            ("secretRef", source.secret_ref.as_ref().map(|r| &r.name)),
        ];
        for (field, name) in names {
            let Some(name) = name else { continue };
            let place = place.child(field).child("name");
            if name.is_empty() {
                errors.required(&place, "");
            } else {
                each(is_dns1123_subdomain(&mask_trailing_dash(name)), name, &place, errors);
            }
        }
        // Upstream names the list here, without the place in it.
        match names.iter().filter(|(_, name)| name.is_some()).count() {
            0 => errors.invalid(at, "", "must specify one of: `configMapRef` or `secretRef`"),
            1 => {}
            _ => errors.invalid(at, "", "may not have more than one field specified at a time"),
        }
    }
}

/// A file of variables is in a volume that the pod's containers share (KEP-3721).
pub fn files(spec: &PodSpec, at: &FieldPath, errors: &mut FieldErrors) {
    let named = |(path, c): &(FieldPath, std::borrow::Cow<'_, Container>)| -> Vec<(FieldPath, String)> {
        let variables = c.env.iter().flatten().enumerate();
        let files = variables.filter_map(|(i, v)| Some((i, v.value_from.as_ref()?.file_key_ref.as_ref()?)));
        let place = |i| path.child("env").index(i).child("valueFrom").child("fileKeyRef").child("volumeName");
        files.map(|(i, file)| (place(i), file.volume_name.clone())).collect()
    };
    let named: Vec<_> = visit::containers(spec, at).iter().flat_map(named).collect();
    if named.is_empty() {
        return;
    }
    let volumes: BTreeMap<&str, bool> =
        spec.volumes.iter().flatten().map(|v| (v.name.as_str(), v.empty_dir.is_some())).collect();
    for (place, name) in named {
        match volumes.get(name.as_str()) {
            None => errors.not_found(&place, name),
            Some(false) => errors.invalid(&place, name, "referenced volume must be of type emptyDir"),
            Some(true) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn said(container: &Value) -> String {
        let container = serde_json::from_value(container.clone()).expect("a container");
        let mut errors = FieldErrors::new();
        environment(&container, &FieldPath::new("c"), &mut errors);
        errors.aggregate()
    }

    #[test]
    fn a_variable_has_one_source_that_there_is() {
        let from = |source: Value| said(&json!({"name": "c", "env": [{"name": "A", "valueFrom": source}]}));
        let field = |path: &str| from(json!({"fieldRef": {"apiVersion": "v1", "fieldPath": path}}));
        let at = "c.env[0].valueFrom";
        assert_eq!(field("metadata.labels['a/b']"), "[]");
        assert_eq!(field("spec.host"), "[]");
        assert_eq!(
            field("spec['a']"),
            format!(
                "{at}.fieldRef.fieldPath: Invalid value: \"spec['a']\": error converting fieldPath: field label \
                 does not support subscript: spec['a']"
            )
        );
        assert!(
            field("metadata.labels['a b']").starts_with(&format!("{at}.fieldRef: Invalid value: \"a b\""))
        );
        assert!(field("metadata.labels").starts_with(&format!("{at}.fieldRef.fieldPath: Unsupported value")));
        assert!(from(json!({"configMapKeyRef": {"name": "", "key": "k"}})).starts_with(&format!(
            "{at}.configMapKeyRef.name: Invalid value: \"\": a lowercase RFC 1123 subdomain"
        )));
        let both = json!({"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"},
            "resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}});
        assert_eq!(
            from(both),
            format!("{at}: Invalid value: \"\": may not have more than one field specified at a time")
        );
        assert_eq!(
            from(json!({"resourceFieldRef": {"resource": "limits.cpu", "divisor": "2"}})),
            format!(
                "{at}.resourceFieldRef.divisor: Invalid value: \"limits.cpu\": only divisor's values 1m and 1 are \
                 supported with the cpu resource"
            )
        );
    }

    #[test]
    fn a_whole_environment_comes_from_one_object() {
        assert_eq!(said(&json!({"name": "c", "envFrom": [{"secretRef": {"name": "s"}}]})), "[]");
        assert_eq!(
            said(&json!({"name": "c", "envFrom": [{"prefix": "P"}]})),
            "c.envFrom: Invalid value: \"\": must specify one of: `configMapRef` or `secretRef`"
        );
        assert!(
            said(&json!({"name": "c", "envFrom": [{"secretRef": {"name": "A_"}}]}))
                .starts_with("c.envFrom[0].secretRef.name: Invalid value: \"A_\"")
        );
    }

    #[test]
    fn a_file_of_variables_is_in_a_volume_of_the_pods_own() {
        let said = |volumes: Value| {
            let file = json!({"fileKeyRef": {"volumeName": "v", "path": "f", "key": "K"}});
            let spec = json!({"volumes": volumes,
                "containers": [{"name": "c", "env": [{"name": "A", "valueFrom": file}]}]});
            let mut errors = FieldErrors::new();
            let spec = serde_json::from_value(spec).expect("a spec");
            files(&spec, &FieldPath::new("spec"), &mut errors);
            errors.aggregate()
        };
        let at = "spec.containers[0].env[0].valueFrom.fileKeyRef.volumeName";
        assert_eq!(said(json!([{"name": "v", "emptyDir": {}}])), "[]");
        assert_eq!(said(json!([])), format!("{at}: Not found: \"v\""));
        assert_eq!(
            said(json!([{"name": "v", "configMap": {"name": "m"}}])),
            format!("{at}: Invalid value: \"v\": referenced volume must be of type emptyDir")
        );
    }
}
