//! ServiceAccount: who a pod is.

use k8s_openapi::api::core::v1::{ObjectReference, ServiceAccount};
use krate_api::{FieldErrors, FieldPath, Kind, kinds};

use crate::registry::column::{age, name};
use crate::registry::{Column, Context, Strategy};

const ONLY_ITS_SECRETS: &str = "kubernetes.io/enforce-mountable-secrets";

impl Strategy for ServiceAccount {
    const KIND: &'static Kind = &kinds::SERVICE_ACCOUNT;
    const COLUMNS: &'static [Column<Self>] = &[name(), age()];

    fn prepare_for_create(&mut self, _: &Context) {
        only_names(self);
    }

    fn prepare_for_update(&mut self, _: &Self, _: &Context) {
        only_names(self);
    }

    fn validate(&self, _: &FieldPath, _: &mut FieldErrors) {}

    fn warnings(&self, old: Option<&Self>) -> Vec<String> {
        if !is_bound_to_its_secrets(self) || old.is_some_and(is_bound_to_its_secrets) {
            return Vec::new();
        }
        vec![format!(
            "metadata.annotations[{ONLY_ITS_SECRETS}]: deprecated in v1.32+; prefer separate namespaces to isolate \
             access to mounted secrets"
        )]
    }
}

fn is_bound_to_its_secrets(account: &ServiceAccount) -> bool {
    account.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(ONLY_ITS_SECRETS))
}

/// Secrets are of its own namespace, and so a name is all that there is to say of one.
fn only_names(account: &mut ServiceAccount) {
    for secret in account.secrets.iter_mut().flatten() {
        *secret = ObjectReference { name: secret.name.take(), ..ObjectReference::default() };
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_secret_is_told_by_its_name() {
        let mut account: ServiceAccount = serde_json::from_value(json!({
            "metadata": {}, "secrets": [{"name": "a", "namespace": "other", "kind": "Secret"}]}))
        .expect("an account");
        account.prepare_for_create(&Context::default());
        assert_eq!(json!(account.secrets), json!([{"name": "a"}]));
    }

    #[test]
    fn who_begins_to_bind_an_account_to_its_secrets_is_told_that_it_is_old() {
        let mut account = <ServiceAccount as Default>::default();
        assert_eq!(account.warnings(None), [""; 0]);
        account.metadata.annotations = Some([(ONLY_ITS_SECRETS.to_owned(), "true".to_owned())].into());
        assert_eq!(account.warnings(None).len(), 1);
        assert_eq!(account.warnings(Some(&account)), [""; 0]);
    }
}
