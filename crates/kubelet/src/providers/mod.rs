//! Accounts for registries that plugins know: programs that are told an image and answer with names and passwords
//! (KEP-2133), for as long as they say.

mod config;
mod exec;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_cri::v1::AuthConfig;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use krate_client::Client;
use kube::api::PostParams;
use kube::{Api, ResourceExt as _};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use crate::keyring::{self, Keyring};
use crate::names;
pub use config::ProviderError;
use config::{CacheType, Provider, TokenAttributes};
use exec::{Asked, KeyType};

/// For whom a plugin is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Identity {
    token: String,
    annotations: std::collections::BTreeMap<String, String>,
    /// What an answer is remembered by, beside the image; empty when plugins are not told who asks.
    key: String,
}

/// A plugin with what it has answered.
#[derive(Debug)]
struct Plugin {
    provider: Provider,
    program: PathBuf,
    known: Mutex<HashMap<String, (Keyring, Timestamp)>>,
    /// One question at a time: the next may find its answer in what is known.
    asking: tokio::sync::Mutex<()>,
}

/// All plugins, in the order in which they are configured.
#[derive(Clone, Debug, Default)]
pub struct Providers(Arc<Vec<Plugin>>);

impl Providers {
    /// Reads the configuration, a file or a directory of files, and finds the plugins in `programs`.
    ///
    /// # Errors
    /// What is wrong with the configuration, or which plugin is not there.
    pub fn load(config: &Path, programs: &Path) -> Result<Self, ProviderError> {
        let plugins = config::read(config)?.into_iter().map(|provider| {
            let program = programs.join(&provider.name);
            if !program.is_file() {
                return Err(ProviderError::NoProgram { name: provider.name, program });
            }
            Ok(Plugin { provider, program, known: Mutex::default(), asking: tokio::sync::Mutex::default() })
        });
        Ok(Providers(Arc::new(plugins.collect::<Result<_, _>>()?)))
    }

    /// The accounts to try for an image of a pod. A plugin that fails has none.
    pub async fn lookup(&self, client: &Client, pod: &Pod, image: &str) -> Vec<AuthConfig> {
        let mut found = Vec::new();
        for plugin in self.0.iter().filter(|plugin| plugin.is_for(image)) {
            match plugin.accounts(client, pod, image).await {
                Ok(keyring) => found.extend(keyring.lookup(image)),
                Err(error) => {
                    let name = &plugin.provider.name;
                    tracing::warn!(
                        plugin = name,
                        image,
                        error,
                        "a credential provider plugin has no account"
                    );
                }
            }
        }
        found
    }
}

impl Plugin {
    fn is_for(&self, image: &str) -> bool {
        let repository = keyring::repository(image);
        self.provider.match_images.iter().any(|pattern| keyring::matches(&keyring::key(pattern), &repository))
    }

    async fn accounts(&self, client: &Client, pod: &Pod, image: &str) -> Result<Keyring, String> {
        let identity = match &self.provider.token_attributes {
            Some(attributes) => match identity(client, pod, attributes).await? {
                Some(identity) => identity,
                None => return Ok(Keyring::default()),
            },
            None => Identity::default(),
        };
        let _asking = self.asking.lock().await;
        if let Some(known) = self.known(image, &identity) {
            return Ok(known);
        }
        let asked = Asked {
            image,
            service_account_token: &identity.token,
            service_account_annotations: &identity.annotations,
        };
        let answer = exec::ask(&self.program, &self.provider, &asked).await?;
        let mut keyring = Keyring::default();
        for (location, account) in answer.auth {
            keyring.insert(&location, account.username, account.password);
        }
        let lasts = answer.cache_duration.unwrap_or(self.provider.default_cache_duration);
        if !lasts.is_zero() {
            let until = Timestamp::now().checked_add(lasts).unwrap_or(Timestamp::MAX);
            let key = cache_key(answer.cache_key_type, image, &identity);
            self.known.lock().insert(key, (keyring.clone(), until));
        }
        Ok(keyring)
    }

    /// What it answered before, for this very image, for its registry, or for all.
    fn known(&self, image: &str, identity: &Identity) -> Option<Keyring> {
        let now = Timestamp::now();
        let mut known = self.known.lock();
        known.retain(|_, (_, until)| *until > now);
        [KeyType::Image, KeyType::Registry, KeyType::Global]
            .into_iter()
            .find_map(|kind| known.get(&cache_key(kind, image, identity)))
            .map(|(keyring, _)| keyring.clone())
    }
}

fn cache_key(kind: KeyType, image: &str, identity: &Identity) -> String {
    let repository = keyring::repository(image);
    let of = match kind {
        KeyType::Image => image,
        KeyType::Registry => repository.split('/').next().unwrap_or_default(),
        KeyType::Global => "<global>",
    };
    format!("{of}\n{}", identity.key)
}

/// Who a pod is to a plugin that wants to know (KEP-4412); `None` when the plugin has no say for it.
async fn identity(
    client: &Client,
    pod: &Pod,
    attributes: &TokenAttributes,
) -> Result<Option<Identity>, String> {
    let account = pod.spec.as_ref().and_then(|s| s.service_account_name.clone()).unwrap_or_default();
    if account.is_empty() || crate::static_pods::is_static(pod) {
        // A pod of no account has nothing to show.
        return Ok((!attributes.require_service_account).then(Identity::default));
    }
    let api: Api<ServiceAccount> = Api::namespaced(client.clone(), &names::namespace(pod));
    let (required, optional) = (
        &attributes.required_service_account_annotation_keys,
        &attributes.optional_service_account_annotation_keys,
    );
    let mut identity = Identity::default();
    let mut uid = String::new();
    if !(required.is_empty() && optional.is_empty()) || attributes.cache_type == CacheType::ServiceAccount {
        let found = api.get(&account).await.map_err(|e| format!("reading service account {account}: {e}"))?;
        uid = found.uid().unwrap_or_default();
        let all = found.annotations();
        if required.iter().any(|key| !all.contains_key(key)) {
            return Ok(None);
        }
        let told = required.iter().chain(optional).filter_map(|key| all.get_key_value(key));
        identity.annotations = told.map(|(key, value)| (key.clone(), value.clone())).collect();
    }
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: Some(vec![attributes.service_account_token_audience.clone()]),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: Some(pod.name_any()),
                uid: Some(names::uid(pod)),
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let asked = crate::objects::granted(|| {
        let (api, account, request) = (&api, &account, &request);
        async move { api.create_token_request(account, &PostParams::default(), request).await }
    });
    let answer = asked.await.map_err(|e| format!("asking for a token of {account}: {e}"))?;
    identity.token = answer.status.and_then(|s| s.token).unwrap_or_default();
    identity.key = match attributes.cache_type {
        CacheType::Token => hex::encode(Sha256::digest(identity.token.as_bytes())),
        CacheType::ServiceAccount => {
            format!("{}/{account}/{uid}/{:?}", names::namespace(pod), identity.annotations)
        }
    };
    Ok(Some(identity))
}

/// How long a plugin may take.
const PATIENCE: Duration = Duration::from_mins(1);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A plugin that notes that it was asked, and answers as it is told.
    fn plugin(directory: &Path, name: &str, answer: &str) {
        let file = directory.join(name);
        let script =
            format!("#!/bin/sh\ncat >> $0.asked; echo \"$1 $WHO\" >> $0.asked\ncat <<'END'\n{answer}\nEND\n");
        std::fs::write(&file, script).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn client() -> Client {
        let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        Client::try_from(config).unwrap()
    }

    fn answer(kind: &str, lasts: &str, location: &str) -> String {
        format!(
            r#"{{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1",
            "cacheKeyType":"{kind}","cacheDuration":"{lasts}","auth":{{"{location}":{{"username":"u","password":"p"}}}}}}"#
        )
    }

    #[tokio::test]
    async fn plugins_are_asked_by_image_and_their_answers_kept() {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("config.yaml");
        std::fs::write(
            &config,
            "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n\
             - {name: kept, matchImages: ['*.kept.example'], defaultCacheDuration: 1h, apiVersion: credentialprovider.kubelet.k8s.io/v1,\n\
                args: [--get], env: [{name: WHO, value: me}]}\n\
             - {name: fresh, matchImages: [fresh.example/team], defaultCacheDuration: 0s, apiVersion: credentialprovider.kubelet.k8s.io/v1}\n\
             - {name: broken, matchImages: [broken.example], defaultCacheDuration: 0s, apiVersion: credentialprovider.kubelet.k8s.io/v1}\n",
        )
        .unwrap();
        plugin(directory.path(), "kept", &answer("Registry", "6h", "*.kept.example"));
        plugin(directory.path(), "fresh", &answer("Image", "0s", "fresh.example"));
        plugin(directory.path(), "broken", "no answer");
        let providers = Providers::load(&config, directory.path()).unwrap();
        let (client, pod) = (client(), Pod::default());
        let asked = |name: &str| {
            let said = std::fs::read_to_string(directory.path().join(format!("{name}.asked")));
            said.unwrap_or_default().matches("CredentialProviderRequest").count()
        };
        for (image, accounts, kept, fresh) in [
            ("a.kept.example/x:1", 1, 1, 0),
            ("a.kept.example/other:2", 1, 1, 0),
            ("b.kept.example/x:1", 1, 2, 0),
            ("fresh.example/team/x", 1, 2, 1),
            ("fresh.example/team/x", 1, 2, 2),
            ("fresh.example/other/x", 0, 2, 2),
            ("broken.example/x", 0, 2, 2),
        ] {
            let found = providers.lookup(&client, &pod, image).await;
            assert_eq!((found.len(), asked("kept"), asked("fresh")), (accounts, kept, fresh), "{image}");
        }
        assert_eq!(asked("broken"), 1);
        let said = std::fs::read_to_string(directory.path().join("kept.asked")).unwrap();
        assert!(said.contains("\"image\":\"a.kept.example/x:1\"") && said.contains("--get me"), "{said}");
    }

    #[test]
    fn a_plugin_that_is_not_there_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("config.yaml");
        let text = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n\
            - {name: none, matchImages: [a.example], defaultCacheDuration: 0s, apiVersion: credentialprovider.kubelet.k8s.io/v1}\n";
        std::fs::write(&config, text).unwrap();
        let error = Providers::load(&config, directory.path()).unwrap_err().to_string();
        assert!(error.contains("plugin binary executable") && error.contains("did not exist"), "{error}");
    }
}
