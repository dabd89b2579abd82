//! Ingress: which Service answers which web address.

use k8s_openapi::api::networking::v1::{Ingress, IngressBackend, IngressSpec};
use krate_api::names::{is_dns1123_subdomain, is_wildcard_dns1123_subdomain};
use krate_api::{FieldErrors, FieldPath, Kind, kinds};
use serde_json::Value;

use crate::registry::column::{age, name, or_none, text};
use crate::registry::prepare::spec_and_status;
use crate::registry::rules::{dns_subdomain, each, one_of, port, port_name, required};
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
                let annotation =
                    i.metadata.annotations.as_ref().and_then(|a| a.get(CLASS)).map(String::as_str);
                or_none(i.spec.as_ref().and_then(|s| s.ingress_class_name.as_deref()).or(annotation))
            },
        ),
        text("Hosts", "Hosts that incoming requests are matched against before the ingress rule", hosts),
        text("Address", "Address is a list containing ingress points for the load-balancer", |i| {
            let points =
                i.status.iter().flat_map(|s| s.load_balancer.iter()).flat_map(|l| l.ingress.iter().flatten());
            let list: Vec<String> =
                points.filter_map(|p| p.ip.clone().or_else(|| p.hostname.clone())).collect();
            list.join(",").into()
        }),
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
            if self.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(CLASS))
                && self.metadata.resource_version.is_none()
            {
                errors.invalid(
                    &FieldPath::new("annotations").child(CLASS),
                    self.metadata.annotations.as_ref().and_then(|a| a.get(CLASS)),
                    "can not be set when the class field is also set",
                );
            }
        }
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
            if name.parse::<std::net::IpAddr>().is_ok() {
                errors.invalid(&at.child("host"), name, "must be a DNS name, not an IP address");
            } else {
                host(name, &at.child("host"), errors);
            }
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
                "" => errors.required(&at.child("pathType"), "pathType must be specified"),
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
        (Some(resource), None) => {
            let at = at.child("resource");
            required(Some(&resource.kind), &at.child("kind"), errors);
            required(Some(&resource.name), &at.child("name"), errors);
        }
        (None, None) => errors.required(at, "resource or service backend is required"),
        (None, Some(service)) => {
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
                    errors.required(&at, "port name or number is required");
                } else {
                    errors.invalid(&at, "", "cannot set both port name & port number");
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
    let rules = ingress.spec.iter().flat_map(|s| s.rules.iter().flatten());
    let mut hosts: Vec<&str> = rules.filter_map(|r| r.host.as_deref()).filter(|h| !h.is_empty()).collect();
    let more = hosts.len().saturating_sub(3);
    hosts.truncate(3);
    match (hosts.is_empty(), more) {
        (true, _) => "*".into(),
        (false, 0) => hosts.join(",").into(),
        (false, more) => format!("{} + {more} more...", hosts.join(",")).into(),
    }
}
