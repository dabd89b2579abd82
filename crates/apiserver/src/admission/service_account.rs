//! ServiceAccount: every pod runs as an account, and has its token, the cluster's authority and its namespace mounted.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{
    ConfigMapProjection, Container, DownwardAPIProjection, DownwardAPIVolumeFile, KeyToPath,
    ObjectFieldSelector, Pod, ProjectedVolumeSource, ServiceAccount, ServiceAccountTokenProjection, Volume,
    VolumeMount, VolumeProjection,
};
use krate_api::names::generate_name;
use krate_api::{StatusError, kinds};

use super::{Admit, Attributes, Operation};
use crate::kinds::Kinds;
use crate::registry::erased::Object;

const MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
/// Seconds: an hour and a little, by which the kubelet tells tokens that it may replace.
const TOKEN_LIFE: i64 = 3607;
/// Pods that mirror a kubelet's own files have no account.
const MIRROR: &str = "kubernetes.io/config.mirror";

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
        let object = storage.current(&attributes.namespace, name).await.map_err(missing)?.object;
        object.is::<ServiceAccount>().cloned().ok_or_else(|| StatusError::internal("no ServiceAccount"))
    }
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
        if pod.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(MIRROR)) {
            return Ok(());
        }
        let spec = pod.spec.get_or_insert_default();
        let name =
            spec.service_account_name.clone().filter(|n| !n.is_empty()).unwrap_or_else(|| "default".into());
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
        Ok(())
    }
}

fn mount(spec: &mut k8s_openapi::api::core::v1::PodSpec) {
    let volumes = spec.volumes.get_or_insert_default();
    let there = volumes
        .iter()
        .find(|v| v.name.starts_with(VOLUME_PREFIX) && v.projected.is_some())
        .map(|v| v.name.clone());
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
