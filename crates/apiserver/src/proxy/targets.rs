//! Where the `proxy` of a pod, a Service or a node leads to. It does not lead to this machine itself nor to what is on its
//! link: whoever may write a status would come to what listens there for its own alone.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints, Pod, Service};
use krate_api::{Reason, StatusError};

use super::{Over, Target, node_address, pod, rest};
use crate::path::{Call, no_such_resource};

/// A name as a request has it: `name`, `name:port` or `scheme:name:port`.
#[derive(Debug, PartialEq, Eq)]
struct Asked<'a> {
    tls: bool,
    name: &'a str,
    port: Option<&'a str>,
}

fn split(name: &str) -> Option<Asked<'_>> {
    let parts: Vec<&str> = name.split(':').collect();
    let (scheme, name, port) = match parts.as_slice() {
        [name] => ("", *name, ""),
        [name, port] => ("", *name, *port),
        [scheme, name, port] => (*scheme, *name, *port),
        _ => return None,
    };
    let is_known = !name.is_empty() && matches!(scheme, "" | "http" | "https");
    is_known.then(|| Asked { tls: scheme == "https", name, port: Some(port).filter(|port| !port.is_empty()) })
}

fn asked<'a>(call: &'a Call, what: &str) -> Result<Asked<'a>, StatusError> {
    split(&call.info.name)
        .ok_or_else(|| StatusError::bad_request(format!("invalid {what} request {:?}", call.info.name)))
}

/// Whether an address is one of a single host elsewhere.
fn leads_elsewhere(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    let is_link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(is_link_local || ip.is_unspecified() || ip.is_loopback() || ip.is_multicast())
}

fn not_allowed() -> StatusError {
    StatusError::bad_request("address not allowed")
}

fn unavailable(why: String) -> StatusError {
    StatusError::new(Reason::ServiceUnavailable, why)
}

/// # Errors
/// There is no such pod, or it is nowhere where a proxy may lead.
pub(super) async fn of_pod(call: &Call) -> Result<Target, StatusError> {
    let asked = asked(call, "pod")?;
    let pod = pod(call, asked.name).await?;
    let ips = pod.status.and_then(|status| status.pod_ips).unwrap_or_default();
    let host = ips.into_iter().next().map(|ip| ip.ip).unwrap_or_default();
    if !host.parse::<IpAddr>().is_ok_and(leads_elsewhere) {
        return Err(not_allowed());
    }
    let ports = pod.spec.into_iter().flat_map(|s| s.containers).flat_map(|c| c.ports.unwrap_or_default());
    let first = ports.map(|port| port.container_port).next();
    let port = if let Some(port) = asked.port {
        port.parse::<u16>().map_err(|_| StatusError::bad_request(format!("{port:?} is no port")))?
    } else {
        let usual = if asked.tls { 443 } else { 80 };
        first.and_then(|port| u16::try_from(port).ok()).unwrap_or(usual)
    };
    Ok(Target { host, port, over: Over::of(asked.tls), path: rest(call) })
}

/// # Errors
/// There is no such node, or it may not be asked at this port.
pub(super) async fn of_node(call: &Call) -> Result<Target, StatusError> {
    let asked = asked(call, "node")?;
    let (host, own) = node_address(call, asked.name).await?;
    let port = match asked.port.map(str::parse::<u16>) {
        None => own,
        Some(Ok(port)) => port,
        Some(Err(_)) => {
            return Err(StatusError::bad_request(format!("invalid node request {:?}", call.info.name)));
        }
    };
    // The kubelet's own port, whatever scheme was said. It proves that it is a kubelet, wherever it is.
    if port == own {
        return Ok(Target { host, port, over: Over::Kubelet, path: rest(call) });
    }
    let found = tokio::net::lookup_host((host.clone(), port)).await;
    let mut found = found.map_err(|error| StatusError::bad_request(error.to_string()))?;
    if !found.all(|address| leads_elsewhere(address.ip())) {
        return Err(not_allowed());
    }
    Ok(Target { host, port, over: Over::of(asked.tls), path: rest(call) })
}

/// A pod behind a Service, by chance.
///
/// # Errors
/// No pod is known to be behind it.
pub(super) async fn of_service(call: &Call) -> Result<Target, StatusError> {
    let asked = asked(call, "service")?;
    let wanted = port_name(call, &asked).await?;
    let storage = call.server.kinds.of("", "endpoints").ok_or_else(no_such_resource)?;
    let object = storage.current(&call.info.namespace, asked.name).await?.object;
    let subsets = object.is::<Endpoints>().and_then(|e| e.subsets.clone()).unwrap_or_default();
    let none = |of: &str| unavailable(format!("no endpoints available for service {of:?}"));
    if subsets.is_empty() {
        return Err(none(asked.name));
    }
    for subset in from_anywhere(&subsets) {
        let addresses = subset.addresses.as_deref().unwrap_or_default();
        let ports = subset.ports.iter().flatten();
        for port in ports.filter(|port| port.name.as_deref().unwrap_or_default() == wanted) {
            for address in from_anywhere(addresses) {
                if !is_pods(call, address).await {
                    continue;
                }
                let port = u16::try_from(port.port).map_err(super::unreachable)?;
                let (host, over) = (address.ip.clone(), Over::of(asked.tls));
                return Ok(Target { host, port, over, path: rest(call) });
            }
        }
    }
    Err(none(&call.info.name))
}

/// All of a list, beginning anywhere.
fn from_anywhere<T>(list: &[T]) -> impl Iterator<Item = &T> {
    let first = if list.is_empty() { 0 } else { rand::random_range(0..list.len()) };
    let (before, from) = list.split_at(first);
    from.iter().chain(before)
}

/// The name of the port that is asked for, which may be asked for by its number.
async fn port_name(call: &Call, asked: &Asked<'_>) -> Result<String, StatusError> {
    let said = asked.port.unwrap_or_default();
    let Ok(number) = said.parse::<i64>() else { return Ok(said.to_owned()) };
    let object = call.storage.current(&call.info.namespace, asked.name).await?.object;
    let spec = object.is::<Service>().and_then(|service| service.spec.clone()).unwrap_or_default();
    let found = spec.ports.into_iter().flatten().find(|port| i64::from(port.port) == number);
    found
        .map(|port| port.name.unwrap_or_default())
        .ok_or_else(|| unavailable(format!("no service port {number} found for service {:?}", asked.name)))
}

/// Whether an address is a pod's: whoever may write Endpoints may name any other.
async fn is_pods(call: &Call, address: &EndpointAddress) -> bool {
    let Some(target) = &address.target_ref else { return false };
    let namespace = target.namespace.as_deref().unwrap_or_default();
    let (Some(name), Some(pods)) = (&target.name, call.server.kinds.of("", "pods")) else { return false };
    if namespace != call.info.namespace {
        return false;
    }
    let Ok(current) = pods.current(namespace, name).await else { return false };
    let status = current.object.is::<Pod>().and_then(|pod| pod.status.as_ref());
    status.is_some_and(|status| status.pod_ips.iter().flatten().any(|ip| ip.ip == address.ip))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxied_name_may_have_a_scheme_and_a_port() {
        let asked = |tls, name, port| Some(Asked { tls, name, port });
        assert_eq!(split("a"), asked(false, "a", None));
        assert_eq!(split("a:http"), asked(false, "a", Some("http")));
        assert_eq!(split("https:a:443"), asked(true, "a", Some("443")));
        assert_eq!(split("http:a:"), asked(false, "a", None));
        for odd in ["", ":80", "ftp:a:80", "a:b:c:d"] {
            assert_eq!(split(odd), None, "{odd}");
        }
    }

    #[test]
    fn a_proxy_does_not_lead_to_this_machine_or_its_link() {
        let leads = |ip: &str| leads_elsewhere(ip.parse().expect("an address"));
        for ip in ["10.0.0.1", "192.0.2.1", "fd00::1", "2001:db8::1"] {
            assert!(leads(ip), "{ip}");
        }
        let refused = [
            "127.0.0.1",
            "127.8.0.1",
            "::1",
            "::ffff:127.0.0.1",
            "0.0.0.0",
            "::",
            "169.254.169.254",
            "fe80::1",
            "224.0.0.1",
            "ff02::1",
            "255.255.255.255",
        ];
        for ip in refused {
            assert!(!leads(ip), "{ip}");
        }
    }

    #[test]
    fn a_list_is_gone_through_from_anywhere() {
        let mut seen: Vec<i32> = from_anywhere(&[1, 2, 3]).copied().collect();
        seen.sort_unstable();
        assert_eq!(seen, [1, 2, 3]);
        assert_eq!(from_anywhere::<i32>(&[]).count(), 0);
    }
}
