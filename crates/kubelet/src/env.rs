//! The environment of a container: expansion of `$(VAR)`, values from elsewhere, and variables of Services.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret, Service};
use kube::ResourceExt as _;

use crate::fieldpath::{self, Addresses, Allocatable};
use crate::{env_file, names};

/// ConfigMaps and Secrets that a pod refers to, read before its environment is made.
#[derive(Clone, Debug, Default)]
pub struct Referents {
    pub config_maps: HashMap<String, Arc<ConfigMap>>,
    pub secrets: HashMap<String, Arc<Secret>>,
}

/// What the environment is made from.
#[derive(Debug)]
pub struct Inputs<'a> {
    pub pod: &'a Pod,
    pub container: &'a Container,
    pub addresses: &'a Addresses,
    pub node: Allocatable,
    pub referents: &'a Referents,
    /// Where the pod's volumes are.
    pub pod_dir: &'a Path,
    /// Services of the pod's namespace, and the `kubernetes` Service of the default one.
    pub services: &'a [Arc<Service>],
}

/// Replaces `$(NAME)` by what `value` knows; a name that it does not know stays as it is, and `$$` is a dollar.
pub fn expand(text: &str, value: &dyn Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(next) = after.strip_prefix('$') {
            out.push('$');
            rest = next;
        } else if let Some((name, next)) = after.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            if let Some(found) = value(name) {
                out.push_str(&found);
            } else {
                out.push_str("$(");
                out.push_str(name);
                out.push(')');
            }
            rest = next;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

/// The environment, in order.
///
/// # Errors
/// Upstream's message for something that a variable refers to and that is not there.
pub fn make(inputs: &Inputs<'_>) -> Result<Vec<(String, String)>, String> {
    let mut services = service_variables(inputs);
    let mut order: Vec<String> = Vec::new();
    let mut values: HashMap<String, String> = HashMap::new();
    let mut put = |name: String, value: String, values: &mut HashMap<String, String>| {
        if values.insert(name.clone(), value).is_none() {
            order.push(name);
        }
    };
    for (name, value) in from_sources(inputs)? {
        put(name, value, &mut values);
    }
    for variable in inputs.container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (_, Some(source)) => match from_elsewhere(inputs, source)? {
                Some(value) => value,
                None => continue,
            },
            (text, None) => {
                let known = |name: &str| values.get(name).or_else(|| services.get(name)).cloned();
                expand(text.as_deref().unwrap_or_default(), &known)
            }
        };
        put(variable.name.clone(), value, &mut values);
    }
    services.retain(|name, _| !values.contains_key(name));
    let own = order.into_iter().map(|name| {
        let value = values.remove(&name).unwrap_or_default();
        (name, value)
    });
    Ok(own.collect::<Vec<_>>().into_iter().chain(services).collect())
}

fn from_sources(inputs: &Inputs<'_>) -> Result<Vec<(String, String)>, String> {
    let mut all = Vec::new();
    for source in inputs.container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let mut add = |name: &str, value: String| {
            if !name.is_empty() && !name.contains('=') {
                all.push((format!("{prefix}{name}"), value));
            }
        };
        if let Some(reference) = &source.config_map_ref {
            match inputs.referents.config_maps.get(&reference.name) {
                Some(map) => {
                    for (name, value) in map.data.iter().flatten() {
                        add(name, value.clone());
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(format!("configmap {:?} not found", reference.name)),
            }
        }
        if let Some(reference) = &source.secret_ref {
            match inputs.referents.secrets.get(&reference.name) {
                Some(secret) => {
                    for (name, value) in secret.data.iter().flatten() {
                        add(name, String::from_utf8_lossy(&value.0).into_owned());
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(format!("secret {:?} not found", reference.name)),
            }
        }
    }
    Ok(all)
}

/// A value from elsewhere; `None` when it is not there and need not be.
fn from_elsewhere(
    inputs: &Inputs<'_>,
    source: &k8s_openapi::api::core::v1::EnvVarSource,
) -> Result<Option<String>, String> {
    let namespace = names::namespace(inputs.pod);
    if let Some(reference) = &source.field_ref {
        return fieldpath::field(inputs.pod, inputs.addresses, &reference.field_path).map(Some);
    }
    if let Some(reference) = &source.resource_field_ref {
        return fieldpath::resource(inputs.pod, &inputs.container.name, reference, inputs.node).map(Some);
    }
    if let Some(reference) = &source.config_map_key_ref {
        let optional = reference.optional == Some(true);
        let Some(map) = inputs.referents.config_maps.get(&reference.name) else {
            return if optional {
                Ok(None)
            } else {
                Err(format!("configmap {:?} not found", reference.name))
            };
        };
        let found = map.data.as_ref().and_then(|d| d.get(&reference.key));
        return match found {
            Some(value) => Ok(Some(value.clone())),
            None if optional => Ok(None),
            None => Err(format!(
                "couldn't find key {} in ConfigMap {namespace}/{}",
                reference.key, reference.name
            )),
        };
    }
    if let Some(reference) = &source.secret_key_ref {
        let optional = reference.optional == Some(true);
        let Some(secret) = inputs.referents.secrets.get(&reference.name) else {
            return if optional { Ok(None) } else { Err(format!("secret {:?} not found", reference.name)) };
        };
        let found = secret.data.as_ref().and_then(|d| d.get(&reference.key));
        return match found {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
            None if optional => Ok(None),
            None => {
                Err(format!("couldn't find key {} in Secret {namespace}/{}", reference.key, reference.name))
            }
        };
    }
    if let Some(reference) = &source.file_key_ref {
        return env_file::value(inputs.pod_dir, reference);
    }
    Err("the source of the variable is not known here".to_owned())
}

/// `NAME_SERVICE_HOST` and its kin (Docker's link variables among them).
fn service_variables(inputs: &Inputs<'_>) -> BTreeMap<String, String> {
    let links = inputs.pod.spec.as_ref().and_then(|s| s.enable_service_links).unwrap_or(true);
    let namespace = names::namespace(inputs.pod);
    let mut all = BTreeMap::new();
    let is_master = |s: &Service| s.namespace().as_deref() == Some("default") && s.name_any() == "kubernetes";
    // The namespace's own wins over the one that everybody has.
    let mut chosen: BTreeMap<String, &Service> = BTreeMap::new();
    for service in inputs.services {
        let own = service.namespace().as_deref() == Some(&namespace);
        if is_master(service) {
            chosen.entry(service.name_any()).or_insert(service);
        } else if own && links {
            chosen.insert(service.name_any(), service);
        }
    }
    for (name, service) in chosen {
        let Some(spec) = &service.spec else { continue };
        let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else {
            continue;
        };
        let Some(ports) = spec.ports.as_ref().filter(|p| !p.is_empty()) else { continue };
        let prefix = variable_name(&name);
        all.insert(format!("{prefix}_SERVICE_HOST"), ip.to_owned());
        all.insert(format!("{prefix}_SERVICE_PORT"), ports[0].port.to_string());
        let bracketed = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        for (i, port) in ports.iter().enumerate() {
            if let Some(name) = port.name.as_ref().filter(|n| !n.is_empty()) {
                all.insert(format!("{prefix}_SERVICE_PORT_{}", variable_name(name)), port.port.to_string());
            }
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let url = format!("{}://{bracketed}:{}", protocol.to_lowercase(), port.port);
            if i == 0 {
                all.insert(format!("{prefix}_PORT"), url.clone());
            }
            let port_prefix = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_uppercase());
            all.insert(port_prefix.clone(), url);
            all.insert(format!("{port_prefix}_PROTO"), protocol.to_lowercase());
            all.insert(format!("{port_prefix}_PORT"), port.port.to_string());
            all.insert(format!("{port_prefix}_ADDR"), ip.to_owned());
        }
    }
    all
}

fn variable_name(name: &str) -> String {
    name.replace('-', "_").to_uppercase()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn references_are_expanded_as_upstream_does() {
        let known = |name: &str| (name == "A").then(|| "x".to_owned());
        for (text, expected) in [
            ("$(A)", "x"),
            ("a$(A)b$(A)", "axbx"),
            ("$(B)", "$(B)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$x"),
            ("$(A", "$(A"),
            ("$A", "$A"),
            ("cost: 5$", "cost: 5$"),
            ("$()", "$()"),
        ] {
            assert_eq!(expand(text, &known), expected, "{text}");
        }
    }

    fn made(container: Value, links: bool) -> Result<Vec<(String, String)>, String> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n"},
            "spec": {"enableServiceLinks": links, "containers": []}}))
        .unwrap();
        let container: Container = serde_json::from_value(container).unwrap();
        let map: ConfigMap = serde_json::from_value(json!({"data": {"k": "v", "l": "w"}})).unwrap();
        let secret: Secret = serde_json::from_value(json!({"data": {"s": "aGk="}})).unwrap();
        let referents = Referents {
            config_maps: HashMap::from([("map".to_owned(), Arc::new(map))]),
            secrets: HashMap::from([("secret".to_owned(), Arc::new(secret))]),
        };
        let service = |namespace: &str, name: &str| -> Arc<Service> {
            Arc::new(
                serde_json::from_value(json!({"metadata": {"name": name, "namespace": namespace},
                "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "https", "port": 443}]}}))
                .unwrap(),
            )
        };
        make(&Inputs {
            pod: &pod,
            container: &container,
            addresses: &Addresses::default(),
            node: Allocatable::default(),
            referents: &referents,
            pod_dir: Path::new("/nowhere"),
            services: &[service("default", "kubernetes"), service("n", "my-db"), service("other", "no")],
        })
    }

    fn get<'a>(all: &'a [(String, String)], name: &str) -> Option<&'a str> {
        all.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    #[test]
    fn variables_come_from_everywhere() {
        let all = made(
            json!({"name": "c", "envFrom": [{"prefix": "P_", "configMapRef": {"name": "map"}}], "env": [
                {"name": "A", "value": "1"},
                {"name": "B", "value": "$(A)-$(P_k)-$(KUBERNETES_SERVICE_HOST)"},
                {"name": "C", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "D", "valueFrom": {"secretKeyRef": {"name": "secret", "key": "s"}}},
                {"name": "E", "valueFrom": {"configMapKeyRef": {"name": "no", "key": "s", "optional": true}}}]}),
            true,
        )
        .unwrap();
        assert_eq!(get(&all, "B"), Some("1-v-10.96.0.1"));
        assert_eq!(get(&all, "C"), Some("p"));
        assert_eq!(get(&all, "D"), Some("hi"));
        assert_eq!(get(&all, "E"), None);
        assert_eq!(get(&all, "P_l"), Some("w"));
        assert_eq!(get(&all, "MY_DB_PORT_443_TCP"), Some("tcp://10.96.0.1:443"));
        assert_eq!(get(&all, "MY_DB_SERVICE_PORT_HTTPS"), Some("443"));
        assert_eq!(get(&all, "NO_SERVICE_HOST"), None);
    }

    #[test]
    fn without_links_only_the_api_server_is_told() {
        let all = made(json!({"name": "c"}), false).unwrap();
        assert!(get(&all, "KUBERNETES_SERVICE_HOST").is_some() && get(&all, "MY_DB_SERVICE_HOST").is_none());
    }

    #[test]
    fn what_is_missing_is_named() {
        for (env, message) in [
            (json!({"configMapKeyRef": {"name": "no", "key": "k"}}), "configmap \"no\" not found"),
            (
                json!({"configMapKeyRef": {"name": "map", "key": "z"}}),
                "couldn't find key z in ConfigMap n/map",
            ),
            (
                json!({"secretKeyRef": {"name": "secret", "key": "z"}}),
                "couldn't find key z in Secret n/secret",
            ),
        ] {
            let container = json!({"name": "c", "env": [{"name": "A", "valueFrom": env}]});
            assert_eq!(made(container, true), Err(message.to_owned()));
        }
    }
}
