//! Which secrets a pod may name: a mirror pod none at all, and another those of its account, if that is to be enforced.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{EnvFromSource, EnvVar, PodSpec, ServiceAccount};

use krate_api::boolean;

use crate::node_authorizer::{self, Referent};

const ENFORCED: &str = "kubernetes.io/enforce-mountable-secrets";

/// # Errors
/// A mirror pod refers to what it may not.
pub fn mirror(spec: &PodSpec) -> Result<(), &'static str> {
    if spec.service_account_name.as_ref().is_some_and(|name| !name.is_empty()) {
        return Err("a mirror pod may not reference service accounts");
    }
    if node_authorizer::references(spec).iter().any(|(what, _)| *what == Referent::Secret) {
        return Err("a mirror pod may not reference secrets");
    }
    let projected = spec.volumes.iter().flatten().filter_map(|volume| volume.projected.as_ref());
    let mut sources = projected.flat_map(|projected| projected.sources.iter().flatten());
    if sources.any(|source| source.service_account_token.is_some()) {
        return Err("a mirror pod may not use ServiceAccountToken volume projections");
    }
    Ok(())
}

/// Whether pods of an account may name no secrets but its own.
pub fn enforces(account: &ServiceAccount) -> bool {
    let said = account.metadata.annotations.as_ref().and_then(|all| all.get(ENFORCED));
    said.is_some_and(|said| boolean::parse(said) == Ok(true))
}

/// An account with the secrets that its pods may name.
struct Own<'a> {
    account: &'a str,
    secrets: BTreeSet<&'a str>,
}

impl<'a> Own<'a> {
    fn of(account: &'a ServiceAccount) -> Self {
        let secrets = account.secrets.iter().flatten().filter_map(|secret| secret.name.as_deref());
        Own { account: account.metadata.name.as_deref().unwrap_or_default(), secrets: secrets.collect() }
    }

    fn refusal(&self, who: &str, secret: &str) -> String {
        format!(
            "{who} secret.secretName=\"{secret}\" is not allowed because service account {} does not reference that \
             secret",
            self.account
        )
    }

    /// Whether a container's environment is made of these secrets; `noun` is what it is called.
    fn check(
        &self,
        noun: &str,
        name: &str,
        env: Option<&Vec<EnvVar>>,
        env_from: Option<&Vec<EnvFromSource>>,
    ) -> Result<(), String> {
        for var in env.into_iter().flatten() {
            let reference = var.value_from.as_ref().and_then(|from| from.secret_key_ref.as_ref());
            if let Some(secret) = reference.filter(|secret| !self.secrets.contains(secret.name.as_str())) {
                let who = format!("{noun} {name} with envVar {} referencing", var.name);
                return Err(self.refusal(&who, &secret.name));
            }
        }
        let references = env_from.into_iter().flatten().filter_map(|from| from.secret_ref.as_ref());
        for secret in references {
            if !self.secrets.contains(secret.name.as_str()) {
                return Err(self.refusal(&format!("{noun} {name} with envFrom referencing"), &secret.name));
            }
        }
        Ok(())
    }
}

/// # Errors
/// A new pod names a secret that is not its account's.
pub fn allowed(account: &ServiceAccount, spec: &PodSpec) -> Result<(), String> {
    let own = Own::of(account);
    for source in spec.volumes.iter().flatten().filter_map(|volume| volume.secret.as_ref()) {
        let secret = source.secret_name.as_deref().unwrap_or_default();
        if !own.secrets.contains(secret) {
            return Err(own.refusal("volume with", secret));
        }
    }
    for c in spec.init_containers.iter().flatten() {
        own.check("init container", &c.name, c.env.as_ref(), c.env_from.as_ref())?;
    }
    for c in &spec.containers {
        own.check("container", &c.name, c.env.as_ref(), c.env_from.as_ref())?;
    }
    let pulls: BTreeSet<&str> =
        account.image_pull_secrets.iter().flatten().map(|secret| secret.name.as_str()).collect();
    let asked = spec.image_pull_secrets.iter().flatten().enumerate();
    match asked.into_iter().find(|(_, secret)| !pulls.contains(secret.name.as_str())) {
        None => Ok(()),
        Some((i, secret)) => Err(format!(
            "imagePullSecrets[{i}].name=\"{}\" is not allowed because service account {} does not reference that \
             imagePullSecret",
            secret.name, own.account
        )),
    }
}

/// # Errors
/// A container that looks into a pod names a secret that is not its account's.
pub fn allowed_to_look(account: &ServiceAccount, spec: &PodSpec) -> Result<(), String> {
    let own = Own::of(account);
    let mut all = spec.ephemeral_containers.iter().flatten();
    all.try_for_each(|c| own.check("ephemeral container", &c.name, c.env.as_ref(), c.env_from.as_ref()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(json: Value) -> PodSpec {
        serde_json::from_value(json).expect("a spec")
    }

    #[test]
    fn a_mirror_pod_refers_to_nothing_secret() {
        let with_volume = |volume: Value| spec(json!({"containers": [], "volumes": [volume]}));
        let token = json!({"serviceAccountToken": {"path": "t"}});
        for (spec, told) in [
            (spec(json!({"containers": []})), None),
            (spec(json!({"containers": [], "serviceAccountName": "a"})), Some("service accounts")),
            (with_volume(json!({"name": "v", "secret": {"secretName": "s"}})), Some("secrets")),
            (
                with_volume(json!({"name": "v", "projected": {"sources": [token]}})),
                Some("ServiceAccountToken volume projections"),
            ),
        ] {
            match told {
                None => assert_eq!(mirror(&spec), Ok(())),
                Some(told) => assert!(mirror(&spec).expect_err(told).ends_with(told)),
            }
        }
    }

    #[test]
    fn an_account_may_keep_its_pods_to_its_own_secrets() {
        let account = |said: &str| -> ServiceAccount {
            serde_json::from_value(json!({"metadata": {"name": "a", "annotations": {ENFORCED: said}},
                "secrets": [{"name": "own"}], "imagePullSecrets": [{"name": "pull"}]}))
            .expect("an account")
        };
        assert!(enforces(&account("True")));
        assert!(!enforces(&account("yes")));
        let account = account("true");
        let env = |secret: &str| {
            let reference = json!({"secretKeyRef": {"name": secret, "key": "k"}});
            json!([{"name": "E", "valueFrom": reference}])
        };
        let from = |secret: &str| json!([{"secretRef": {"name": secret}}]);
        let end = "is not allowed because service account a does not reference that secret";
        let own = json!({"containers": [{"name": "c", "env": env("own"), "envFrom": from("own")}],
            "imagePullSecrets": [{"name": "pull"}],
            "volumes": [{"name": "v", "secret": {"secretName": "own"}}]});
        assert_eq!(allowed(&account, &spec(own)), Ok(()));
        for (json, who) in [
            (
                json!({"containers": [], "volumes": [{"name": "v", "secret": {"secretName": "x"}}]}),
                "volume with",
            ),
            (
                json!({"containers": [{"name": "c", "env": env("x")}]}),
                "container c with envVar E referencing",
            ),
            (
                json!({"containers": [], "initContainers": [{"name": "i", "envFrom": from("x")}]}),
                "init container i with envFrom referencing",
            ),
        ] {
            let told = format!("{who} secret.secretName=\"x\" {end}");
            assert_eq!(allowed(&account, &spec(json)), Err(told));
        }
        let pulls = json!({"containers": [], "imagePullSecrets": [{"name": "pull"}, {"name": "own"}]});
        let told = "imagePullSecrets[1].name=\"own\" is not allowed because service account a does not reference \
                    that imagePullSecret";
        assert_eq!(allowed(&account, &spec(pulls)), Err(told.to_owned()));
        let looks = spec(json!({"containers": [], "ephemeralContainers": [{"name": "e", "env": env("x")}]}));
        let told = format!("ephemeral container e with envVar E referencing secret.secretName=\"x\" {end}");
        assert_eq!(allowed_to_look(&account, &looks), Err(told));
    }
}
