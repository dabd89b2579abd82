//! Secret: what only some may read.

mod pair;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use krate_api::{FieldErrors, FieldPath, Kind, kinds};
use serde_json::Value;

use super::config_map::MAX_SIZE;
use crate::registry::column::{age, name, text};
use crate::registry::rules::{IMMUTABLE, config_key, each};
use crate::registry::{Column, Selectable, Strategy};

const REDACTED: &str = "<secret contents redacted>";
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
                docker_config(self, ".dockercfg", &at_data, errors);
            }
            "kubernetes.io/dockerconfigjson" => {
                needs(".dockerconfigjson");
                docker_config(self, ".dockerconfigjson", &at_data, errors);
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

    fn warnings(&self, _: Option<&Self>) -> Vec<String> {
        if self.type_.as_deref() != Some("kubernetes.io/tls") {
            return Vec::new();
        }
        let data = |key: &str| {
            let value = self.data.as_ref().and_then(|data| data.get(key));
            value.map(|value| value.0.as_slice()).unwrap_or_default()
        };
        pair::fault(data("tls.crt"), data("tls.key")).into_iter().collect()
    }

    fn selectable(&self) -> Selectable {
        vec![("type", self.type_.clone().unwrap_or_default())]
    }
}

/// Credentials for registries are a JSON object.
fn docker_config(secret: &Secret, key: &str, at: &FieldPath, errors: &mut FieldErrors) {
    let Some(value) = secret.data.as_ref().and_then(|d| d.get(key)) else { return };
    let kind = match krate_api::json::parse(&value.0) {
        Ok(Value::Object(_) | Value::Null) => return,
        Err(wrong) => {
            errors.invalid(&at.key(key), REDACTED, wrong);
            return;
        }
        Ok(Value::Array(_)) => "array",
        Ok(Value::String(_)) => "string",
        Ok(Value::Bool(_)) => "bool",
        Ok(Value::Number(_)) => "number",
    };
    let wrong = format!("json: cannot unmarshal {kind} into Go value of type map[string]interface {{}}");
    errors.invalid(&at.key(key), REDACTED, wrong);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn secret(kind: &str, data: &Value) -> Secret {
        let object = json!({"metadata": {"name": "s"}, "type": kind, "stringData": data});
        let mut secret: Secret = serde_json::from_value(object).expect("a secret");
        secret.default();
        secret
    }

    #[test]
    fn credentials_are_an_object() {
        for (text, wrong) in [
            ("{}", None),
            ("null", None),
            ("[]", Some("json: cannot unmarshal array into Go value of type map[string]interface {}")),
            ("x", Some("invalid character 'x' looking for beginning of value")),
        ] {
            let secret = secret("kubernetes.io/dockerconfigjson", &json!({".dockerconfigjson": text}));
            let mut errors = FieldErrors::new();
            secret.validate(&FieldPath::new(""), &mut errors);
            assert_eq!(errors.iter().map(|e| e.detail.as_str()).next(), wrong);
        }
    }

    #[test]
    fn what_is_no_pair_is_told() {
        let none = secret("kubernetes.io/tls", &json!({"tls.crt": "a", "tls.key": "b"}));
        assert_eq!(none.warnings(None), ["tls: failed to find any PEM data in certificate input"]);
        assert_eq!(secret("Opaque", &json!({"tls.crt": "a"})).warnings(None), [""; 0]);
    }
}
