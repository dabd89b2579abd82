//! Ingress: which Service answers which web address.

use std::collections::BTreeSet;

use k8s_openapi::api::networking::v1::{Ingress, IngressBackend, IngressLoadBalancerIngress, IngressSpec};
use krate_api::names::{is_dns1123_subdomain, is_wildcard_dns1123_subdomain};
use krate_api::{FieldErrors, FieldPath, Kind, kinds};
use serde_json::Value;

use super::reference;
use crate::registry::column::{age, name, text};
use crate::registry::core::addresses::{ip_warning, legacy_ip, sloppy_ip};
use crate::registry::prepare::spec_and_status;
use crate::registry::rules::{dns_subdomain, each, one_of, port, port_name};
use crate::registry::{Column, Strategy};

const CLASS: &str = "kubernetes.io/ingress.class";

impl Strategy for Ingress {
    const KIND: &'static Kind = &kinds::INGRESS;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text(
            "Class",
            "The name of the IngressClass resource that should be used for additional configuration",
            |i| {
                let class = i.spec.as_ref().and_then(|s| s.ingress_class_name.as_deref());
                class.unwrap_or("<none>").into()
            },
        ),
        text("Hosts", "Hosts that incoming requests are matched against before the ingress rule", hosts),
        text("Address", "Address is a list containing ingress points for the load-balancer", address),
        text("Ports", "Ports of TLS configurations that open", |i| {
            let tls = i.spec.as_ref().and_then(|s| s.tls.as_ref()).is_some_and(|t| !t.is_empty());
            if tls { "80, 443".into() } else { "80".into() }
        }),
        age(),
    ];

    fn default(&mut self) {
        self.spec.get_or_insert_default();
        self.status.get_or_insert_default();
    }

    spec_and_status!(generation);

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec");
        let Some(spec) = &self.spec else { return };
        if spec.default_backend.is_none() && spec.rules.as_ref().is_none_or(Vec::is_empty) {
            errors.invalid(&at, Value::Null, "either `defaultBackend` or `rules` must be specified");
        }
        if let Some(b) = &spec.default_backend {
            backend(b, &at.child("defaultBackend"), errors);
        }
        rules(spec, &at.child("rules"), errors);
        for (i, tls) in spec.tls.iter().flatten().enumerate() {
            let at = at.child("tls").index(i);
            for (j, h) in tls.hosts.iter().flatten().enumerate() {
                host(h, &at.child("hosts").index(j), errors);
            }
            if let Some(secret) = tls.secret_name.as_deref().filter(|s| !s.is_empty()) {
                dns_subdomain(secret, &at.child("secretName"), errors);
            }
        }
        if let Some(class) = &spec.ingress_class_name {
            dns_subdomain(class, &at.child("ingressClassName"), errors);
        }
    }

    fn validate_new(&self, _: &FieldPath, errors: &mut FieldErrors) {
        let class = self.spec.as_ref().and_then(|s| s.ingress_class_name.as_ref());
        if let (Some(old_way), Some(class)) = (annotated(self), class)
            && old_way != class
        {
            errors.invalid(
                &FieldPath::new("annotations").child(CLASS),
                old_way,
                "must match `ingressClassName` when both are specified",
            );
        }
    }

    fn validate_status_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        let before: Vec<String> = points(old).filter_map(|point| point.ip.clone()).collect();
        let at = at.child("status").child("loadBalancer").child("ingress");
        for (i, point) in points(self).enumerate() {
            let at = at.index(i);
            if let Some(ip) = point.ip.as_deref().filter(|ip| !ip.is_empty()) {
                legacy_ip(ip, &before, &at.child("ip"), errors);
            }
            if let Some(host) = point.hostname.as_deref().filter(|host| !host.is_empty()) {
                let at = at.child("hostname");
                each(is_dns1123_subdomain(host), host, &at, errors);
                not_an_address(host, &at, errors);
            }
        }
    }

    fn warnings(&self, old: Option<&Self>) -> Vec<String> {
        let Some(old) = old else {
            let class = self.spec.as_ref().and_then(|s| s.ingress_class_name.as_ref());
            let old_way = annotated(self).is_some() && class.is_none();
            let warning =
                || format!("annotation {CLASS:?} is deprecated, please use 'spec.ingressClassName' instead");
            return old_way.then(warning).into_iter().collect();
        };
        // Only through its own endpoint does the status change.
        if old.status == self.status {
            return Vec::new();
        }
        let at = FieldPath::new("status").child("loadBalancer").child("ingress");
        points(self)
            .enumerate()
            .filter_map(|(i, point)| ip_warning(point.ip.as_deref().unwrap_or_default(), &at.index(i)))
            .collect()
    }
}

fn annotated(ingress: &Ingress) -> Option<&String> {
    ingress.metadata.annotations.as_ref()?.get(CLASS)
}

fn points(ingress: &Ingress) -> impl Iterator<Item = &IngressLoadBalancerIngress> {
    let balancer = ingress.status.iter().flat_map(|s| s.load_balancer.iter());
    balancer.flat_map(|l| l.ingress.iter().flatten())
}

fn not_an_address(host: &str, at: &FieldPath, errors: &mut FieldErrors) {
    if sloppy_ip(host).is_some() {
        errors.invalid(at, host, "must be a DNS name, not an IP address");
    }
}

fn host(host: &str, at: &FieldPath, errors: &mut FieldErrors) {
    if host.contains('*') {
        each(is_wildcard_dns1123_subdomain(host), host, at, errors);
    } else {
        each(is_dns1123_subdomain(host), host, at, errors);
    }
}

fn rules(spec: &IngressSpec, at: &FieldPath, errors: &mut FieldErrors) {
    for (i, rule) in spec.rules.iter().flatten().enumerate() {
        let at = at.index(i);
        if let Some(name) = rule.host.as_deref().filter(|h| !h.is_empty()) {
            not_an_address(name, &at.child("host"), errors);
            host(name, &at.child("host"), errors);
        }
        let Some(http) = &rule.http else { continue };
        let at = at.child("http").child("paths");
        if http.paths.is_empty() {
            errors.required(&at, "");
        }
        for (j, path) in http.paths.iter().enumerate() {
            let at = at.index(j);
            let text = path.path.as_deref().unwrap_or_default();
            match path.path_type.as_str() {
                "" => {
                    errors.required(&at.child("pathType"), "pathType must be specified");
                    continue;
                }
                "Exact" | "Prefix" => exact(text, &at.child("path"), errors),
                "ImplementationSpecific" => {
                    if !text.is_empty() && !text.starts_with('/') {
                        errors.invalid(&at.child("path"), text, "must be an absolute path");
                    }
                }
                other => one_of(
                    other,
                    &["Exact", "ImplementationSpecific", "Prefix"],
                    &at.child("pathType"),
                    errors,
                ),
            }
            backend(&path.backend, &at.child("backend"), errors);
        }
    }
}

fn exact(path: &str, at: &FieldPath, errors: &mut FieldErrors) {
    if !path.starts_with('/') {
        errors.invalid(at, path, "must be an absolute path");
    }
    for bad in ["//", "/./", "/../", "%2f", "%2F"] {
        if path.contains(bad) {
            errors.invalid(at, path, format!("must not contain '{bad}'"));
        }
    }
    for bad in ["/..", "/."] {
        if path.ends_with(bad) {
            errors.invalid(at, path, format!("cannot end with '{bad}'"));
        }
    }
}

fn backend(b: &IngressBackend, at: &FieldPath, errors: &mut FieldErrors) {
    match (&b.resource, &b.service) {
        (Some(_), Some(_)) => {
            errors.invalid(at, "", "cannot set both resource and service backends");
        }
        (Some(resource), None) => reference(resource, &at.child("resource"), errors),
        (None, None) => errors.invalid(at, "", "resource or service backend is required"),
        (None, Some(service)) => {
            let at_backend = at;
            let at = at.child("service");
            if service.name.is_empty() {
                errors.required(&at.child("name"), "");
            } else {
                each(
                    krate_api::names::is_dns1123_label(&service.name),
                    &service.name,
                    &at.child("name"),
                    errors,
                );
            }
            let name = service.port.as_ref().and_then(|p| p.name.as_deref()).unwrap_or_default();
            let number = service.port.as_ref().and_then(|p| p.number).unwrap_or(0);
            let at = at.child("port");
            if name.is_empty() == (number == 0) {
                if name.is_empty() {
                    errors.required(at_backend, "port name or number is required");
                } else {
                    errors.invalid(at_backend, "", "cannot set both port name & port number");
                }
            } else if name.is_empty() {
                port(number, &at.child("number"), errors);
            } else {
                each(port_name(name), name, &at.child("name"), errors);
            }
        }
    }
}

fn hosts(ingress: &Ingress) -> Value {
    const SHOWN: usize = 3;
    let rules = ingress.spec.as_ref().and_then(|s| s.rules.as_deref()).unwrap_or_default();
    let mut hosts: Vec<&str> = Vec::new();
    let mut more = false;
    for rule in rules {
        // Whatever comes after the last that is shown is told, with a host or without.
        more |= hosts.len() == SHOWN;
        if let Some(host) = rule.host.as_deref().filter(|host| !host.is_empty() && !more) {
            hosts.push(host);
        }
    }
    if hosts.is_empty() {
        return "*".into();
    }
    let text = hosts.join(",");
    if more { format!("{text} + {} more...", rules.len() - SHOWN).into() } else { text.into() }
}

/// Each address once, in alphabetical order.
fn address(ingress: &Ingress) -> Value {
    let some = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let addresses: BTreeSet<String> =
        points(ingress).filter_map(|point| some(&point.ip).or_else(|| some(&point.hostname))).collect();
    addresses.into_iter().collect::<Vec<_>>().join(",").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ingress(metadata: Value, spec: Value, status: Value) -> Ingress {
        serde_json::from_value(json!({"metadata": metadata, "spec": spec, "status": status}))
            .expect("an Ingress")
    }

    fn to(backend: Value) -> Value {
        json!({"rules": [{"http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}}]})
    }

    fn said(ingress: &Ingress) -> String {
        let mut errors = FieldErrors::new();
        ingress.validate(&FieldPath::new(""), &mut errors);
        ingress.validate_new(&FieldPath::new(""), &mut errors);
        errors.aggregate()
    }

    fn said_of(backend: Value) -> String {
        said(&ingress(json!({}), to(backend), json!({})))
    }

    #[test]
    fn a_backend_is_whole() {
        let at = "spec.rules[0].http.paths[0].backend";
        assert_eq!(said_of(json!({"service": {"name": "s", "port": {"number": 80}}})), "[]");
        assert_eq!(
            said_of(json!({"service": {"name": "s"}})),
            format!("{at}: Required value: port name or number is required")
        );
        assert_eq!(
            said_of(json!({"service": {"name": "s", "port": {"name": "a", "number": 1}}})),
            format!("{at}: Invalid value: \"\": cannot set both port name & port number")
        );
        assert_eq!(
            said_of(json!({})),
            format!("{at}: Invalid value: \"\": resource or service backend is required")
        );
        assert_eq!(
            said_of(json!({"resource": {"kind": "a/b", "name": "n"}})),
            format!("{at}.resource.kind: Invalid value: \"a/b\": may not contain '/'")
        );
    }

    #[test]
    fn the_class_is_said_in_one_way() {
        let service = json!({"service": {"name": "s", "port": {"number": 80}}});
        let of = |class: Option<&str>| {
            let mut spec = to(service.clone());
            spec["ingressClassName"] = json!(class);
            ingress(json!({"name": "i", "annotations": {CLASS: "nginx"}}), spec, json!({}))
        };
        assert_eq!(said(&of(Some("nginx"))), "[]");
        assert_eq!(
            said(&of(Some("other"))),
            "annotations.kubernetes.io/ingress.class: Invalid value: \"nginx\": must match `ingressClassName` when both \
             are specified"
        );
        assert_eq!(
            of(None).warnings(None),
            [
                "annotation \"kubernetes.io/ingress.class\" is deprecated, please use 'spec.ingressClassName' instead"
            ]
        );
        assert_eq!(of(Some("nginx")).warnings(None), [""; 0]);
    }

    #[test]
    fn points_of_entry_are_addresses_or_names() {
        let points =
            |points: Value| ingress(json!({}), json!({}), json!({"loadBalancer": {"ingress": points}}));
        let (old, mut errors) = (points(json!([{"ip": "010.0.0.1"}])), FieldErrors::new());
        let new = points(
            json!([{"ip": "010.0.0.1"}, {"ip": "10.0.0"}, {"hostname": "1.2.3.4"}, {"hostname": "b"}]),
        );
        new.validate_status_update(&old, &FieldPath::new(""), &mut errors);
        let at: Vec<&str> = errors.iter().map(|e| e.field.as_str()).collect();
        assert_eq!(at, ["status.loadBalancer.ingress[1].ip", "status.loadBalancer.ingress[2].hostname"]);
        assert_eq!(points(json!([{"ip": "FD00::1"}])).warnings(Some(&old)).len(), 1);
        assert_eq!(address(&new), "010.0.0.1,1.2.3.4,10.0.0,b");
    }

    #[test]
    fn some_hosts_are_shown() {
        let with = |hosts: &[&str]| {
            let rules: Vec<Value> = hosts.iter().map(|host| json!({"host": host})).collect();
            hosts_of(json!({"rules": rules}))
        };
        assert_eq!(with(&[]), "*");
        assert_eq!(with(&["a", "", "b", "c"]), "a,b,c");
        assert_eq!(with(&["a", "b", "c", ""]), "a,b,c + 1 more...");
    }

    fn hosts_of(spec: Value) -> Value {
        hosts(&ingress(json!({}), spec, json!({})))
    }
}
