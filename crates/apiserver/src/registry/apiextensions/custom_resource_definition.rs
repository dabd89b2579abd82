//! CustomResourceDefinition: a kind of one's own.

use std::collections::BTreeSet;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceConversion, CustomResourceDefinition, CustomResourceDefinitionStatus,
};
use krate_api::names::is_dns1035_label;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use crate::apiextensions;
use crate::registry::column::{created_at, name};
use crate::registry::prepare::{differ, first_generation, next_generation};
use crate::registry::rules::{IMMUTABLE, dns_subdomain, each, one_of};
use crate::registry::{Column, Context, Strategy};

impl Strategy for CustomResourceDefinition {
    const KIND: &'static Kind = &kinds::CUSTOM_RESOURCE_DEFINITION;
    const COLUMNS: &'static [Column<Self>] = &[name(), created_at()];
    const CLEANUP_FINALIZER: Option<&'static str> = Some(apiextensions::CLEANUP);

    fn default(&mut self) {
        let names = &mut self.spec.names;
        let empty = |o: &Option<String>| o.as_deref().is_none_or(str::is_empty);
        if empty(&names.singular) {
            names.singular = Some(names.kind.to_lowercase());
        }
        if empty(&names.list_kind) && !names.kind.is_empty() {
            names.list_kind = Some(format!("{}List", names.kind));
        }
        let conversion = self.spec.conversion.get_or_insert_with(CustomResourceConversion::default);
        if conversion.strategy.is_empty() {
            "None".clone_into(&mut conversion.strategy);
        }
        if let Some(service) = conversion
            .webhook
            .as_mut()
            .and_then(|w| w.client_config.as_mut())
            .and_then(|c| c.service.as_mut())
        {
            service.port.get_or_insert(443);
        }
        self.status.get_or_insert_default();
    }

    fn prepare_for_create(&mut self, _: &Context) {
        first_generation(&mut self.metadata);
        // Objects are stored in that version from now on.
        let stored = self.spec.versions.iter().filter(|v| v.storage).map(|v| v.name.clone()).collect();
        self.status = Some(CustomResourceDefinitionStatus {
            stored_versions: Some(stored),
            ..CustomResourceDefinitionStatus::default()
        });
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context) {
        self.status.clone_from(&old.status);
        next_generation(&mut self.metadata, &old.metadata, differ(&self.spec, &old.spec));
        for version in self.spec.versions.iter().filter(|v| v.storage) {
            let stored = self.status.get_or_insert_default().stored_versions.get_or_insert_default();
            if !stored.contains(&version.name) {
                stored.push(version.name.clone());
            }
        }
    }

    fn prepare_for_status_update(&mut self, old: &Self, _: &Context) {
        self.spec.clone_from(&old.spec);
    }

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let spec = &self.spec;
        let wanted = format!("{}.{}", spec.names.plural, spec.group);
        let name = self.metadata.name.as_deref().unwrap_or_default();
        if name != wanted {
            errors.invalid(
                &at.child("metadata").child("name"),
                name,
                "must be spec.names.plural+\".\"+spec.group",
            );
        }
        let at = at.child("spec");
        if spec.group.is_empty() {
            errors.required(&at.child("group"), "");
        } else {
            dns_subdomain(&spec.group, &at.child("group"), errors);
            if !spec.group.contains('.') {
                errors.invalid(&at.child("group"), &spec.group, "should be a domain with at least one dot");
            }
        }
        match spec.scope.as_str() {
            "" => errors.required(&at.child("scope"), ""),
            scope => one_of(scope, &["Cluster", "Namespaced"], &at.child("scope"), errors),
        }
        self.versions(&at.child("versions"), errors);
        apiextensions::check_schemas(self, &at, errors);
        self.names(&at.child("names"), errors);
        if let Some(conversion) = &spec.conversion {
            let at = at.child("conversion");
            one_of(&conversion.strategy, &["None", "Webhook"], &at.child("strategy"), errors);
            match (conversion.strategy.as_str(), &conversion.webhook) {
                ("Webhook", None) => {
                    errors.required(
                        &at.child("webhookClientConfig"),
                        "required when strategy is set to Webhook",
                    );
                }
                ("None", Some(_)) => {
                    errors.forbidden(
                        &at.child("webhook"),
                        "should not be set when strategy is not set to Webhook",
                    );
                }
                _ => {}
            }
        }
        if spec.preserve_unknown_fields == Some(true) {
            errors.invalid(
                &at.child("preserveUnknownFields"),
                true,
                "must be false in order to use defaults in the schema",
            );
        }
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        let at = at.child("spec");
        let established = old.status.iter().flat_map(|s| s.conditions.iter().flatten());
        let established = established.into_iter().any(|c| c.type_ == "Established" && c.status == "True");
        if established {
            if self.spec.scope != old.spec.scope {
                errors.invalid(&at.child("scope"), &self.spec.scope, IMMUTABLE);
            }
            if self.spec.names.kind != old.spec.names.kind {
                errors.invalid(&at.child("names").child("kind"), &self.spec.names.kind, IMMUTABLE);
            }
        }
        if self.spec.group != old.spec.group {
            errors.invalid(&at.child("group"), &self.spec.group, IMMUTABLE);
        }
        if self.spec.names.plural != old.spec.names.plural {
            errors.invalid(&at.child("names").child("plural"), &self.spec.names.plural, IMMUTABLE);
        }
        for stored in old.status.iter().flat_map(|s| s.stored_versions.iter().flatten()) {
            if !self.spec.versions.iter().any(|v| v.name == *stored) {
                errors.invalid(
                    &FieldPath::new("status").child("storedVersions").index(0),
                    stored,
                    "missing from spec.versions; must not be removed from spec.versions while stored",
                );
            }
        }
    }
}

trait Parts {
    fn versions(&self, at: &FieldPath, errors: &mut FieldErrors);
    fn names(&self, at: &FieldPath, errors: &mut FieldErrors);
}

impl Parts for CustomResourceDefinition {
    fn versions(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let mut names = BTreeSet::new();
        for (i, version) in self.spec.versions.iter().enumerate() {
            let at = at.index(i);
            each(is_dns1035_label(&version.name), &version.name, &at.child("name"), errors);
            if !names.insert(&version.name) {
                errors.duplicate(&at.child("name"), &version.name);
            }
            let schema = version.schema.as_ref().and_then(|s| s.open_api_v3_schema.as_ref());
            if schema.is_none() {
                errors.required(&at.child("schema").child("openAPIV3Schema"), "schemas are required");
            }
        }
        if self.spec.versions.iter().filter(|v| v.storage).count() != 1 {
            errors.invalid(
                at,
                &self.spec.versions,
                "must have exactly one version marked as storage version",
            );
        }
    }

    fn names(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let names = &self.spec.names;
        let singular = names.singular.as_deref().unwrap_or_default();
        for (field, value) in [("plural", names.plural.as_str()), ("singular", singular)] {
            if value.is_empty() {
                if field == "plural" {
                    errors.required(&at.child(field), "");
                }
            } else {
                each(is_dns1035_label(value), value, &at.child(field), errors);
            }
        }
        let list = names.list_kind.as_deref().unwrap_or_default();
        for (field, value) in [("kind", names.kind.as_str()), ("listKind", list)] {
            if value.is_empty() {
                errors.required(&at.child(field), "");
            } else {
                each(is_dns1035_label(&value.to_lowercase()), value, &at.child(field), errors);
            }
        }
        if !names.kind.is_empty() && names.kind == list {
            errors.invalid(&at.child("listKind"), list, "kind and listKind may not be the same");
        }
        for (field, list) in [("shortNames", &names.short_names), ("categories", &names.categories)] {
            for (i, value) in list.iter().flatten().enumerate() {
                each(is_dns1035_label(value), value, &at.child(field).index(i), errors);
            }
        }
    }
}
