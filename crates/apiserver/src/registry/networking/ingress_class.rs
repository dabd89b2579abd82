//! IngressClass: who serves an Ingress.

use k8s_openapi::api::networking::v1::IngressClass;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use super::domain_path::domain_prefixed_path;
use super::path_segment;
use crate::registry::column::{age, name, text};
use crate::registry::prepare::counted;
use crate::registry::rules::{IMMUTABLE, dns_label, dns_subdomain, one_of};
use crate::registry::{Column, Strategy};

/// The annotation of the class that an Ingress without one has.
const IS_DEFAULT: &str = "ingressclass.kubernetes.io/is-default-class";

impl Strategy for IngressClass {
    const KIND: &'static Kind = &kinds::INGRESS_CLASS;
    const COLUMNS: &'static [Column<Self>] = &[
        Column {
            cell: |c| {
                let name = c.metadata.name.as_deref().unwrap_or_default();
                if is_default(c) { format!("{name} (default)").into() } else { name.into() }
            },
            ..name()
        },
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
        domain_prefixed_path(controller, &at.child("controller"), errors);
        let Some(parameters) = &spec.parameters else { return };
        let at = at.child("parameters");
        if let Some(group) = &parameters.api_group {
            dns_subdomain(group, &at.child("apiGroup"), errors);
        }
        path_segment(&parameters.kind, &at.child("kind"), errors);
        path_segment(&parameters.name, &at.child("name"), errors);
        let scope = parameters.scope.as_deref().unwrap_or_default();
        one_of(scope, &["Cluster", "Namespace"], &at.child("scope"), errors);
        let at = at.child("namespace");
        match (scope, &parameters.namespace) {
            ("Namespace", None) => errors.required(&at, "`parameters.scope` is set to 'Namespace'"),
            ("Namespace", Some(namespace)) => dns_label(namespace, &at, errors),
            ("Cluster", Some(_)) => errors.forbidden(&at, "`parameters.scope` is set to 'Cluster'"),
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

fn is_default(class: &IngressClass) -> bool {
    let annotations = class.metadata.annotations.as_ref();
    annotations.and_then(|a| a.get(IS_DEFAULT)).is_some_and(|value| value == "true")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn class(spec: Value) -> IngressClass {
        let metadata = json!({"name": "c", "annotations": {IS_DEFAULT: "true"}});
        let mut class: IngressClass =
            serde_json::from_value(json!({"metadata": metadata, "spec": spec})).expect("a class");
        Strategy::default(&mut class);
        class
    }

    #[test]
    fn parameters_are_where_they_are_said_to_be() {
        for (parameters, wanted) in [
            (json!({"kind": "K", "name": "n"}), "[]"),
            (json!({"kind": "K", "name": "n", "scope": "Namespace", "namespace": "x"}), "[]"),
            (
                json!({"kind": "K", "name": "n", "namespace": "x"}),
                "spec.parameters.namespace: Forbidden: `parameters.scope` is set to 'Cluster'",
            ),
            (
                json!({"kind": "a/b", "name": "n"}),
                "spec.parameters.kind: Invalid value: \"a/b\": may not contain '/'",
            ),
        ] {
            let mut errors = FieldErrors::new();
            class(json!({"controller": "a.test/b", "parameters": parameters}))
                .validate(&FieldPath::new(""), &mut errors);
            assert_eq!(errors.aggregate(), wanted);
        }
    }

    #[test]
    fn the_default_is_shown_by_its_name() {
        let class = class(json!({"controller": "a.test/b"}));
        assert_eq!((IngressClass::COLUMNS[0].cell)(&class), "c (default)");
    }
}
