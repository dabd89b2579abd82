//! The downward API: what a pod may read of itself.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use k8s_openapi::api::core::v1::{Pod, ResourceFieldSelector};
use krate_api::Quantity;
use kube::ResourceExt as _;

use crate::names;

/// Addresses of a pod and its host, as they are known when it is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    pub pod: Vec<String>,
    pub host: Vec<String>,
}

/// What the node gives to containers that set no limit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allocatable {
    pub cpu_milli: i64,
    pub memory: i64,
    pub ephemeral_storage: i64,
}

/// The value of a field, or upstream's complaint.
///
/// # Errors
/// The path names no field that may be asked for.
pub fn field(pod: &Pod, addresses: &Addresses, path: &str) -> Result<String, String> {
    if let Some((map, key)) = subscript(path) {
        return match map {
            "metadata.labels" => Ok(pod.labels().get(key).cloned().unwrap_or_default()),
            "metadata.annotations" => Ok(pod.annotations().get(key).cloned().unwrap_or_default()),
            _ => Err(format!("fieldPath {path:?} does not support subscript")),
        };
    }
    let spec = pod.spec.as_ref();
    let first = |all: &[String]| all.first().cloned().unwrap_or_default();
    Ok(match path {
        "metadata.name" => pod.name_any(),
        "metadata.namespace" => names::namespace(pod),
        "metadata.uid" => names::uid(pod),
        "metadata.labels" => map(pod.labels()),
        "metadata.annotations" => map(pod.annotations()),
        "spec.nodeName" => spec.and_then(|s| s.node_name.clone()).unwrap_or_default(),
        "spec.serviceAccountName" => spec.and_then(|s| s.service_account_name.clone()).unwrap_or_default(),
        "status.hostIP" => first(&addresses.host),
        "status.hostIPs" => addresses.host.join(","),
        "status.podIP" => first(&addresses.pod),
        "status.podIPs" => addresses.pod.join(","),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

/// `metadata.labels['key']` as its two parts.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    Some((map, rest.strip_suffix("']")?))
}

/// A map as a file has it: a line a key, in order, the value quoted.
fn map(entries: &BTreeMap<String, String>) -> String {
    let mut text = String::new();
    for (key, value) in entries {
        let _ = writeln!(text, "{key}={}", quoted(value));
    }
    text.truncate(text.trim_end_matches('\n').len());
    text
}

fn quoted(value: &str) -> String {
    let mut out = String::with_capacity(value.len() + 2);
    out.push('"');
    for c in value.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => {
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// The amount of a resource of a container, over the divisor, rounded up.
///
/// # Errors
/// The container or the resource does not exist.
pub fn resource(
    pod: &Pod,
    own: &str,
    selector: &ResourceFieldSelector,
    node: Allocatable,
) -> Result<String, String> {
    let name = selector.container_name.as_deref().unwrap_or(own);
    let spec = pod.spec.as_ref().ok_or("the pod has no spec")?;
    let container = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .find(|c| c.name == name)
        .ok_or_else(|| format!("container {name} not found"))?;
    let (side, resource) = selector
        .resource
        .split_once('.')
        .ok_or_else(|| format!("unsupported container resource : {}", selector.resource))?;
    let resources = container.resources.as_ref();
    let asked = match side {
        "limits" => resources.and_then(|r| r.limits.as_ref()),
        "requests" => resources.and_then(|r| r.requests.as_ref()),
        _ => return Err(format!("unsupported container resource : {}", selector.resource)),
    };
    let milli = asked
        .and_then(|m| m.get(resource))
        .and_then(|q| Quantity::parse(&q.0).ok())
        .map(|q| if resource == "cpu" { i128::from(q.milli_value()) } else { i128::from(q.value()) * 1000 });
    let whole = match (resource, side) {
        ("cpu", "limits") => i128::from(node.cpu_milli),
        ("memory", "limits") => i128::from(node.memory) * 1000,
        ("ephemeral-storage", "limits") => i128::from(node.ephemeral_storage) * 1000,
        _ => 0,
    };
    let divisor = selector
        .divisor
        .as_ref()
        .and_then(|q| Quantity::parse(&q.0).ok())
        .map(|q| i128::from(q.milli_value()))
        .filter(|d| *d > 0)
        .unwrap_or(1000);
    let amount = milli.unwrap_or(whole);
    Ok(((amount + divisor - 1) / divisor).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"b": "say \"x\"", "a": "1"}},
            "spec": {"nodeName": "node", "containers": [
                {"name": "c", "resources": {"limits": {"cpu": "1500m"}, "requests": {"memory": "64Mi"}}}]}}))
        .unwrap()
    }

    #[test]
    fn fields_are_read() {
        let addresses =
            Addresses { pod: vec!["10.0.0.1".into(), "fd00::1".into()], host: vec!["192.168.0.1".into()] };
        for (path, value) in [
            ("metadata.name", "p"),
            ("metadata.labels['a']", "1"),
            ("metadata.labels['missing']", ""),
            ("metadata.labels", "a=\"1\"\nb=\"say \\\"x\\\"\""),
            ("spec.nodeName", "node"),
            ("status.podIP", "10.0.0.1"),
            ("status.podIPs", "10.0.0.1,fd00::1"),
            ("status.hostIP", "192.168.0.1"),
        ] {
            assert_eq!(field(&pod(), &addresses, path).as_deref(), Ok(value), "{path}");
        }
        assert_eq!(field(&pod(), &addresses, "spec.x"), Err("unsupported fieldPath: spec.x".into()));
    }

    #[test]
    fn resources_are_divided_and_rounded_up() {
        let node = Allocatable { cpu_milli: 4000, memory: 1 << 30, ephemeral_storage: 0 };
        for (what, divisor, value) in [
            ("limits.cpu", "1", "2"),
            ("limits.cpu", "1m", "1500"),
            ("requests.memory", "1Mi", "64"),
            ("limits.memory", "1Mi", "1024"),
            ("requests.cpu", "1", "0"),
        ] {
            let selector: ResourceFieldSelector =
                serde_json::from_value(serde_json::json!({"resource": what, "divisor": divisor})).unwrap();
            assert_eq!(resource(&pod(), "c", &selector, node).as_deref(), Ok(value), "{what}");
        }
    }
}
