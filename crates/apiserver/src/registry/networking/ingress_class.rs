//! IngressClass: who serves an Ingress.

use k8s_openapi::api::networking::v1::IngressClass;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use crate::registry::column::{age, name, text};
use crate::registry::prepare::counted;
use crate::registry::rules::{IMMUTABLE, dns_subdomain, one_of, required};
use crate::registry::{Column, Strategy};

impl Strategy for IngressClass {
    const KIND: &'static Kind = &kinds::INGRESS_CLASS;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text("Controller", "Controller that is responsible for handling this class", |c| {
            c.spec.as_ref().and_then(|s| s.controller.as_deref()).unwrap_or_default().into()
        }),
        text("Parameters", "A reference to a resource with additional parameters", |c| {
            match c.spec.as_ref().and_then(|s| s.parameters.as_ref()) {
                Some(p) => {
                    let group = p.api_group.as_deref().map_or(String::new(), |g| format!(".{g}"));
                    format!("{}{group}/{}", p.kind, p.name).into()
                }
                None => "<none>".into(),
            }
        }),
        age(),
    ];

    fn default(&mut self) {
        if let Some(parameters) = &mut self.spec.get_or_insert_default().parameters {
            parameters.scope.get_or_insert_with(|| "Cluster".to_owned());
        }
    }

    counted!(spec);

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec");
        let Some(spec) = &self.spec else { return };
        let controller = spec.controller.as_deref().unwrap_or_default();
        if controller.len() > 250 {
            errors.too_long(&at.child("controller"), 250);
        }
        match controller.split_once('/') {
            Some((domain, path)) if !domain.is_empty() && !path.is_empty() => {
                dns_subdomain(domain, &at.child("controller"), errors);
            }
            _ if controller.is_empty() => errors.required(&at.child("controller"), ""),
            _ => errors.invalid(
                &at.child("controller"),
                controller,
                "must be a domain-prefixed path (such as \"acme.io/foo\")",
            ),
        }
        let Some(parameters) = &spec.parameters else { return };
        let at = at.child("parameters");
        required(Some(&parameters.kind), &at.child("kind"), errors);
        required(Some(&parameters.name), &at.child("name"), errors);
        let scope = parameters.scope.as_deref().unwrap_or_default();
        if scope.is_empty() {
            errors.required(&at.child("scope"), "");
        } else {
            one_of(scope, &["Cluster", "Namespace"], &at.child("scope"), errors);
        }
        let namespace = parameters.namespace.as_deref().unwrap_or_default();
        match (scope, namespace.is_empty()) {
            ("Namespace", true) => {
                errors.required(&at.child("namespace"), "`parameters.scope` is set to 'Namespace'");
            }
            ("Cluster", false) => {
                errors.forbidden(&at.child("namespace"), "`parameters.scope` is set to 'Cluster'");
            }
            _ => {}
        }
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        let controller = |c: &Self| c.spec.as_ref().and_then(|s| s.controller.clone());
        if controller(self) != controller(old) {
            errors.invalid(&at.child("spec").child("controller"), controller(self), IMMUTABLE);
        }
    }
}
