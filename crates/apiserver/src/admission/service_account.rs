//! ServiceAccount: every pod runs as an account, and has its token, the cluster's authority and its namespace mounted.

mod secrets;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{
    ConfigMapProjection, Container, DownwardAPIProjection, DownwardAPIVolumeFile, KeyToPath,
    ObjectFieldSelector, Pod, ProjectedVolumeSource, ServiceAccount, ServiceAccountTokenProjection, Volume,
    VolumeMount, VolumeProjection,
};
use krate_api::names::generate_name;
use krate_api::{StatusError, kinds};
use krate_store::cache::{Freshness, Scope, Start, WatchQuery};

use super::{Admit, Attributes, Operation};
use crate::kinds::Kinds;
use crate::path::unclassified;
use crate::registry::core::pod_spec;
use crate::registry::erased::Object;
use crate::storage::Storage;

const MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
/// Seconds: an hour and a little, by which the kubelet tells tokens that it may replace.
const TOKEN_LIFE: i64 = 3607;
/// Pods that mirror a kubelet's own files have no account.
/// The account that every namespace gets, by a controller.
const DEFAULT: &str = "default";
/// How long the account of a new namespace is waited for; upstream asks ten times in about as long.
const PATIENCE: Duration = Duration::from_millis(1350);

pub struct ServiceAccounts {
    kinds: Arc<Kinds>,
}

impl ServiceAccounts {
    pub fn new(kinds: Arc<Kinds>) -> Self {
        ServiceAccounts { kinds }
    }

    async fn account(&self, attributes: &Attributes, name: &str) -> Result<ServiceAccount, StatusError> {
        let missing = |error: StatusError| {
            // Upstream looks it up where it is known by its kind.
            let error = match error.code() {
                404 => format!("serviceaccount {name:?} not found"),
                _ => error.to_string(),
            };
            attributes.forbidden(format!(
                "error looking up service account {}/{name}: {error}",
                attributes.namespace
            ))
        };
        let storage = self
            .kinds
            .of("", "serviceaccounts")
            .ok_or_else(|| StatusError::internal("no serviceaccounts"))?;
        let mut found = storage.current(&attributes.namespace, name).await;
        if name == DEFAULT && found.as_ref().is_err_and(|error| error.code() == 404) {
            appears(&storage, &attributes.namespace).await;
            found = storage.current(&attributes.namespace, name).await;
        }
        let object = found.map_err(missing)?.object;
        object.is::<ServiceAccount>().cloned().ok_or_else(|| StatusError::internal("no ServiceAccount"))
    }
}

/// Waits for the account that a controller is about to give a new namespace.
async fn appears(storage: &Storage, namespace: &str) {
    let query = WatchQuery::new(Scope::name(namespace, DEFAULT), Start::State(Freshness::Any));
    let Ok(mut watcher) = storage.cache.watch(query).await else { return };
    drop(tokio::time::timeout(PATIENCE, watcher.next()).await);
}

fn is_mirror(pod: &Pod) -> bool {
    pod_spec::is_mirror(&pod.metadata)
}

#[async_trait]
impl Admit for ServiceAccounts {
    async fn mutate(
        &self,
        attributes: &Attributes,
        object: &mut dyn Object,
        _old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        if !attributes.is(&kinds::POD) || attributes.operation != Operation::Create {
            return Ok(());
        }
        let Some(pod) = object.is_mut::<Pod>() else { return Ok(()) };
        let is_mirror = is_mirror(pod);
        let spec = pod.spec.get_or_insert_default();
        if is_mirror {
            return secrets::mirror(spec).map_err(|why| attributes.forbidden(why));
        }
        let name =
            spec.service_account_name.clone().filter(|n| !n.is_empty()).unwrap_or_else(|| DEFAULT.into());
        spec.service_account_name = Some(name.clone());
        spec.service_account = Some(name.clone());
        let account = self.account(attributes, &name).await?;
        let mounts =
            spec.automount_service_account_token.or(account.automount_service_account_token).unwrap_or(true);
        if mounts {
            mount(spec);
        }
        if spec.image_pull_secrets.as_ref().is_none_or(Vec::is_empty) {
            spec.image_pull_secrets.clone_from(&account.image_pull_secrets);
        }
        if secrets::enforces(&account) {
            secrets::allowed(&account, spec).map_err(|why| attributes.forbidden(why))?;
        }
        Ok(())
    }

    async fn validate(
        &self,
        attributes: &Attributes,
        object: Option<&dyn Object>,
        _old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        let creates = attributes.operation == Operation::Create && attributes.is(&kinds::POD);
        let looks = attributes.operation == Operation::Update
            && attributes.subresource == "ephemeralcontainers"
            && attributes.kind.gvk() == kinds::POD.gvk();
        let pod = object.filter(|_| creates || looks).and_then(|object| object.is::<Pod>());
        let Some((pod, spec)) = pod.and_then(|pod| Some((pod, pod.spec.as_ref()?))) else {
            return Ok(());
        };
        if creates && is_mirror(pod) {
            return secrets::mirror(spec).map_err(|why| attributes.forbidden(why));
        }
        let Some(name) = spec.service_account_name.as_deref().filter(|name| !name.is_empty()) else {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            let why = format!("no service account specified for pod {}/{name}", attributes.namespace);
            return Err(attributes.forbidden(why));
        };
        let account = self.account(attributes, name).await?;
        if !secrets::enforces(&account) {
            return Ok(());
        }
        if looks {
            // Upstream does not say of this that it is a refusal.
            return secrets::allowed_to_look(&account, spec).map_err(unclassified);
        }
        secrets::allowed(&account, spec).map_err(|why| attributes.forbidden(why))
    }
}

fn mount(spec: &mut k8s_openapi::api::core::v1::PodSpec) {
    let volumes = spec.volumes.get_or_insert_default();
    let there = volumes.iter().find(|v| v.name.starts_with(VOLUME_PREFIX)).map(|v| v.name.clone());
    let name = there.clone().unwrap_or_else(|| generate_name(VOLUME_PREFIX, rand::random));
    let mut used = false;
    let containers = spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten());
    for container in containers {
        used |= mount_in(container, &name);
    }
    if used && there.is_none() {
        volumes.push(volume(name));
    }
    if volumes.is_empty() {
        spec.volumes = None;
    }
}

fn mount_in(container: &mut Container, volume: &str) -> bool {
    let mounts = container.volume_mounts.get_or_insert_default();
    // A container that brings its own keeps it.
    let free = !mounts.iter().any(|m| m.mount_path == MOUNT);
    if free {
        mounts.push(VolumeMount {
            name: volume.to_owned(),
            mount_path: MOUNT.to_owned(),
            read_only: Some(true),
            ..VolumeMount::default()
        });
    }
    free
}

fn volume(name: String) -> Volume {
    let token = VolumeProjection {
        service_account_token: Some(ServiceAccountTokenProjection {
            path: "token".to_owned(),
            expiration_seconds: Some(TOKEN_LIFE),
            ..ServiceAccountTokenProjection::default()
        }),
        ..VolumeProjection::default()
    };
    let authority = VolumeProjection {
        config_map: Some(ConfigMapProjection {
            name: "kube-root-ca.crt".to_owned(),
            items: Some(vec![KeyToPath {
                key: "ca.crt".to_owned(),
                path: "ca.crt".to_owned(),
                ..KeyToPath::default()
            }]),
            ..ConfigMapProjection::default()
        }),
        ..VolumeProjection::default()
    };
    let namespace = VolumeProjection {
        downward_api: Some(DownwardAPIProjection {
            items: Some(vec![DownwardAPIVolumeFile {
                path: "namespace".to_owned(),
                field_ref: Some(ObjectFieldSelector {
                    api_version: Some("v1".to_owned()),
                    field_path: "metadata.namespace".to_owned(),
                }),
                ..DownwardAPIVolumeFile::default()
            }]),
        }),
        ..VolumeProjection::default()
    };
    Volume {
        name,
        projected: Some(ProjectedVolumeSource {
            default_mode: Some(0o644),
            sources: Some(vec![token, authority, namespace]),
        }),
        ..Volume::default()
    }
}
