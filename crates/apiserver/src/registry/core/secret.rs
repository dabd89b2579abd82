//! Secret: what only some may read.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use super::config_map::MAX_SIZE;
use crate::registry::column::{age, name, text};
use crate::registry::rules::{IMMUTABLE, config_key, each};
use crate::registry::{Column, Selectable, Strategy};

const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";

impl Strategy for Secret {
    const KIND: &'static Kind = &kinds::SECRET;
    const COLUMNS: &'static [Column<Self>] = &[
        name(),
        text("Type", "io.k8s.api.core.v1.Secret.type", |s| s.type_.as_deref().unwrap_or_default().into()),
        text("Data", "io.k8s.api.core.v1.Secret.data", |s| {
            s.data.as_ref().map_or(0, std::collections::BTreeMap::len).into()
        }),
        age(),
    ];

    fn default(&mut self) {
        if self.type_.as_deref().is_none_or(str::is_empty) {
            self.type_ = Some("Opaque".to_owned());
        }
        // Text is a way to write bytes; it is not kept.
        for (key, value) in self.string_data.take().into_iter().flatten() {
            self.data.get_or_insert_default().insert(key, ByteString(value.into_bytes()));
        }
    }

    fn validate(&self, at: &FieldPath, errors: &mut FieldErrors) {
        let at_data = at.child("data");
        let mut size = 0;
        for (key, value) in self.data.iter().flatten() {
            each(config_key(key), key, &at_data.key(key), errors);
            size += value.0.len();
        }
        if size > MAX_SIZE {
            errors.too_long(&at_data, MAX_SIZE);
        }
        let has = |key: &str| self.data.as_ref().is_some_and(|d| d.contains_key(key));
        let mut needs = |key: &str| {
            if !has(key) {
                errors.required(&at_data.key(key), "");
            }
        };
        match self.type_.as_deref().unwrap_or_default() {
            "kubernetes.io/service-account-token" => {
                let account = self.metadata.annotations.as_ref().and_then(|a| a.get(ACCOUNT_NAME));
                if account.is_none_or(String::is_empty) {
                    errors.required(&at.child("metadata").child("annotations").key(ACCOUNT_NAME), "");
                }
            }
            "kubernetes.io/dockercfg" => {
                needs(".dockercfg");
                self.docker_config(".dockercfg", &at_data, errors);
            }
            "kubernetes.io/dockerconfigjson" => {
                needs(".dockerconfigjson");
                self.docker_config(".dockerconfigjson", &at_data, errors);
            }
            "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
                errors.required(&at_data.key("username"), "");
                errors.required(&at_data.key("password"), "");
            }
            "kubernetes.io/ssh-auth" => {
                let empty =
                    self.data.as_ref().and_then(|d| d.get("ssh-privatekey")).is_none_or(|v| v.0.is_empty());
                if empty {
                    errors.required(&at_data.key("ssh-privatekey"), "");
                }
            }
            "kubernetes.io/tls" => {
                needs("tls.crt");
                needs("tls.key");
            }
            _ => {}
        }
    }

    fn validate_update(&self, old: &Self, at: &FieldPath, errors: &mut FieldErrors) {
        if self.type_ != old.type_ {
            errors.invalid(&at.child("type"), &self.type_, IMMUTABLE);
        }
        if old.immutable == Some(true) {
            if self.immutable != Some(true) {
                errors.forbidden(&at.child("immutable"), "field is immutable when `immutable` is set");
            }
            if self.data.clone().unwrap_or_default() != old.data.clone().unwrap_or_default() {
                errors.forbidden(&at.child("data"), "field is immutable when `immutable` is set");
            }
        }
    }

    fn selectable(&self) -> Selectable {
        vec![("type", self.type_.clone().unwrap_or_default())]
    }
}

trait DockerConfig {
    fn docker_config(&self, key: &str, at: &FieldPath, errors: &mut FieldErrors);
}

impl DockerConfig for Secret {
    /// Registry credentials are JSON.
    fn docker_config(&self, key: &str, at: &FieldPath, errors: &mut FieldErrors) {
        let Some(value) = self.data.as_ref().and_then(|d| d.get(key)) else { return };
        if let Err(e) = serde_json::from_slice::<serde_json::Value>(&value.0) {
            errors.invalid(&at.key(key), "<secret contents redacted>", e.to_string());
        }
    }
}
