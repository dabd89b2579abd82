//! How names are resolved in a pod: its host name, its `/etc/hosts`, its `resolv.conf`.

use std::fmt::Write as _;
use std::net::IpAddr;

use k8s_cri::v1::DnsConfig;
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use kube::ResourceExt as _;

use crate::names;

/// Characters of the longest host name that the kernel takes.
const LONGEST: usize = 63;

pub fn is_host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|s| s.host_network == Some(true))
}

/// A pod's host name and, if it has a subdomain, its full name.
pub fn hostname(pod: &Pod, cluster_domain: &str) -> (String, Option<String>) {
    let spec = pod.spec.as_ref();
    // It stands for itself, whatever else the pod is called (KEP-4762).
    if let Some(name) = spec.and_then(|s| s.hostname_override.clone()) {
        return (shortened(name), None);
    }
    let asked = spec.and_then(|s| s.hostname.clone()).filter(|h| !h.is_empty());
    let mut short = shortened(asked.unwrap_or_else(|| pod.name_any()));
    let full = spec
        .and_then(|s| s.subdomain.as_ref())
        .filter(|s| !s.is_empty())
        .map(|subdomain| format!("{short}.{subdomain}.{}.svc.{cluster_domain}", names::namespace(pod)));
    if spec.is_some_and(|s| s.set_hostname_as_fqdn == Some(true))
        && let Some(full) = &full
    {
        short.clone_from(full);
    }
    (short, full)
}

fn shortened(mut name: String) -> String {
    if name.len() > LONGEST {
        name.truncate(LONGEST);
        name.truncate(name.trim_end_matches(['-', '.']).len());
    }
    name
}

/// The text of `/etc/hosts`; `host` is the node's own, for pods on its network.
pub fn hosts(pod: &Pod, ips: &[String], cluster_domain: &str, host: Option<&str>) -> String {
    let mut text = String::new();
    if let Some(own) = host {
        text.push_str("# Kubernetes-managed hosts file (host network).\n");
        text.push_str(own);
    } else {
        text.push_str(
            "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
        );
        let (short, full) = hostname(pod, cluster_domain);
        for ip in ips {
            let _ = match &full {
                Some(full) if *full != short => writeln!(text, "{ip}\t{full}\t{short}"),
                _ => writeln!(text, "{ip}\t{short}"),
            };
        }
    }
    let aliases = pod.spec.as_ref().and_then(|s| s.host_aliases.as_deref()).unwrap_or_default();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let _ =
                writeln!(text, "{}\t{}", alias.ip, alias.hostnames.as_deref().unwrap_or_default().join("\t"));
        }
    }
    text
}

/// What a `resolv.conf` says.
pub fn parse(text: &str) -> DnsConfig {
    let mut found = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => found.servers.extend(words.next().map(str::to_owned)),
            Some("search") => found.searches = words.map(|w| w.trim_end_matches('.').to_owned()).collect(),
            Some("options") => found.options = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    found.searches.retain(|s| !s.is_empty());
    found
}

/// A pod's resolver, by its policy.
pub fn dns(pod: &Pod, host: &DnsConfig, cluster_dns: &[IpAddr], domain: &str) -> DnsConfig {
    let default = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let asks_cluster = match policy {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => spec.host_network != Some(true),
        _ => false,
    } && !cluster_dns.is_empty();
    let mut made = if policy == "None" {
        DnsConfig::default()
    } else if asks_cluster {
        let own =
            [format!("{}.svc.{domain}", names::namespace(pod)), format!("svc.{domain}"), domain.to_owned()];
        DnsConfig {
            servers: cluster_dns.iter().map(ToString::to_string).collect(),
            searches: unique(own.into_iter().chain(host.searches.iter().cloned())),
            options: vec!["ndots:5".to_owned()],
        }
    } else {
        let mut own = host.clone();
        if own.servers.is_empty() {
            own.servers.push("127.0.0.1".to_owned());
        }
        own
    };
    if let Some(extra) = &spec.dns_config {
        made.servers = unique(made.servers.into_iter().chain(extra.nameservers.iter().flatten().cloned()));
        made.searches = unique(made.searches.into_iter().chain(extra.searches.iter().flatten().cloned()));
        for option in extra.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            made.options.retain(|o| o.split(':').next() != Some(name.as_str()));
            made.options.push(match &option.value {
                Some(value) => format!("{name}:{value}"),
                None => name,
            });
        }
    }
    made
}

fn unique(all: impl Iterator<Item = String>) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for one in all {
        if !found.contains(&one) {
            found.push(one);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "web-0", "namespace": "n"}, "spec": spec}))
            .unwrap()
    }

    #[test]
    fn host_names_follow_the_spec() {
        let domain = "cluster.local";
        assert_eq!(hostname(&pod(json!({"containers": []})), domain), ("web-0".into(), None));
        let named = json!({"containers": [], "hostname": "a", "subdomain": "s"});
        let full = "a.s.n.svc.cluster.local".to_owned();
        assert_eq!(hostname(&pod(named), domain), ("a".into(), Some(full)));
        let other =
            json!({"containers": [], "hostname": "a", "subdomain": "s", "hostnameOverride": "b.example.com"});
        assert_eq!(hostname(&pod(other.clone()), domain), ("b.example.com".into(), None));
        let text = hosts(&pod(other), &["10.0.0.7".to_owned()], domain, None);
        assert!(text.ends_with("\n10.0.0.7\tb.example.com\n"), "{text}");
        let mut long = pod(json!({"containers": []}));
        long.metadata.name = Some(format!("{}-{}", "x".repeat(62), "y"));
        assert_eq!(hostname(&long, domain).0, "x".repeat(62));
    }

    #[test]
    fn hosts_know_the_pod_and_its_aliases() {
        let pod = pod(json!({"containers": [], "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}));
        let text = hosts(&pod, &["10.0.0.5".into()], "cluster.local", None);
        assert!(text.contains("\n10.0.0.5\tweb-0\n"), "{text}");
        assert!(text.ends_with("\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"), "{text}");
    }

    #[test]
    fn policies_choose_the_resolver() {
        let host = parse("nameserver 9.9.9.9\nsearch corp.example\noptions timeout:1\n");
        let cluster = ["10.96.0.10".parse().unwrap()];
        let of = |spec: Value| dns(&pod(spec), &host, &cluster, "cluster.local");
        let first = of(json!({"containers": []}));
        assert_eq!(first.servers, ["10.96.0.10"]);
        assert_eq!(
            first.searches,
            ["n.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example"]
        );
        assert_eq!(first.options, ["ndots:5"]);
        assert_eq!(of(json!({"containers": [], "hostNetwork": true})).servers, ["9.9.9.9"]);
        assert_eq!(of(json!({"containers": [], "dnsPolicy": "Default"})), host);
        let none = of(json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {
            "nameservers": ["1.1.1.1"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}));
        assert_eq!(
            (none.servers, none.options),
            (vec!["1.1.1.1".into()], vec!["ndots:2".into(), "edns0".into()])
        );
    }
}
