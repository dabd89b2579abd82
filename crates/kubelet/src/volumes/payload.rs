//! Volumes that show objects of the API as files: configMap, secret and downwardAPI.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, Volume};

use super::atomic::{self, File, Payload};
use super::ownership::{self, Policy};
use super::plain::{make_directory, mount_memory};
use super::{Context, Mounted, Plugin, VolumeError, namespace};
use crate::blocking::blocking;
use crate::fieldpath;
use crate::names;

/// Permission bits of files, when nothing else is said.
pub(super) const MODE: i32 = 0o644;

/// The keys of an object that are shown: all, or some under names of their own.
fn select(
    data: BTreeMap<String, Vec<u8>>,
    items: Option<&[KeyToPath]>,
    mode: i32,
    optional: bool,
    lacks: &str,
) -> Result<Payload, VolumeError> {
    let file = |data, mode: i32| File::new(data, mode.unsigned_abs());
    let Some(items) = items.filter(|i| !i.is_empty()) else {
        return Ok(data.into_iter().map(|(key, data)| (key, file(data, mode))).collect());
    };
    let mut shown = Payload::new();
    for item in items {
        match data.get(&item.key) {
            Some(data) => {
                shown.insert(item.path.clone(), file(data.clone(), item.mode.unwrap_or(mode)));
            }
            None if optional => {}
            None => {
                return Err(VolumeError::Missing(format!("{lacks}: {}", item.key)));
            }
        }
    }
    Ok(shown)
}

pub(super) async fn config_map(
    context: &Context<'_>,
    name: &str,
    items: Option<&[KeyToPath]>,
    mode: i32,
    optional: bool,
) -> Result<Payload, VolumeError> {
    let namespace = namespace(context);
    let uid = names::uid(context.pod);
    match context.objects.config_maps.get(&uid, context.signal, &namespace, name).await? {
        Some(map) => {
            let text = map.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone().into_bytes()));
            let binary = map.binary_data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone()));
            let lacks = "configmap references non-existent config key";
            select(text.chain(binary).collect(), items, mode, optional, lacks)
        }
        None if optional => Ok(Payload::new()),
        None => Err(VolumeError::Missing(format!("configmap {name:?} not found"))),
    }
}

pub(super) async fn secret(
    context: &Context<'_>,
    name: &str,
    items: Option<&[KeyToPath]>,
    mode: i32,
    optional: bool,
) -> Result<Payload, VolumeError> {
    let namespace = namespace(context);
    let uid = names::uid(context.pod);
    match context.objects.secrets.get(&uid, context.signal, &namespace, name).await? {
        Some(secret) => {
            let data = secret.data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone()));
            select(data.collect(), items, mode, optional, "references non-existent secret key")
        }
        None if optional => Ok(Payload::new()),
        None => Err(VolumeError::Missing(format!("secret {name:?} not found"))),
    }
}

pub(super) fn downward(
    context: &Context<'_>,
    items: &[DownwardAPIVolumeFile],
    mode: i32,
) -> Result<Payload, VolumeError> {
    let mut shown = Payload::new();
    for item in items {
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => fieldpath::field(context.pod, context.addresses, &field.field_path),
            (None, Some(resource)) => fieldpath::resource(context.pod, "", resource, context.node),
            (None, None) => continue,
        };
        let data = text.map_err(VolumeError::Missing)?.into_bytes();
        shown.insert(item.path.clone(), File::new(data, item.mode.unwrap_or(mode).unsigned_abs()));
    }
    Ok(shown)
}

pub(super) async fn show(
    context: &Context<'_>,
    path: &Path,
    payload: Payload,
    in_memory: bool,
) -> Result<Mounted, VolumeError> {
    let (place, group) = (path.to_owned(), context.fs_group());
    let shown = blocking(move || -> io::Result<()> {
        if in_memory {
            mount_memory(&place, None)?;
        } else {
            make_directory(&place)?;
        }
        if atomic::write(&place, &payload, group)? {
            // The files have their group already; only the volume's own directory may be missing it.
            ownership::give(&place, group, true, Policy::OnRootMismatch)?;
        }
        Ok(())
    });
    shown.await.map_err(VolumeError::file(format!("writing {}", path.display())))?;
    Ok(Mounted { read_only: true, ..Mounted::at(path.to_owned()) })
}

pub struct ConfigMap;

#[async_trait]
impl Plugin for ConfigMap {
    fn name(&self) -> &'static str {
        "kubernetes.io/configmap"
    }

    fn is_for(&self, volume: &Volume) -> bool {
        volume.config_map.is_some()
    }

    fn changes(&self) -> bool {
        true
    }

    async fn set_up(
        &self,
        context: &Context<'_>,
        volume: &Volume,
        path: &Path,
    ) -> Result<Mounted, VolumeError> {
        let source = volume.config_map.clone().unwrap_or_default();
        let (mode, optional) = (source.default_mode.unwrap_or(MODE), source.optional == Some(true));
        let payload = config_map(context, &source.name, source.items.as_deref(), mode, optional).await?;
        show(context, path, payload, false).await
    }
}

pub struct Secret;

#[async_trait]
impl Plugin for Secret {
    fn name(&self) -> &'static str {
        "kubernetes.io/secret"
    }

    fn is_for(&self, volume: &Volume) -> bool {
        volume.secret.is_some()
    }

    fn changes(&self) -> bool {
        true
    }

    async fn set_up(
        &self,
        context: &Context<'_>,
        volume: &Volume,
        path: &Path,
    ) -> Result<Mounted, VolumeError> {
        let source = volume.secret.clone().unwrap_or_default();
        let name = source.secret_name.unwrap_or_default();
        let (mode, optional) = (source.default_mode.unwrap_or(MODE), source.optional == Some(true));
        let payload = secret(context, &name, source.items.as_deref(), mode, optional).await?;
        show(context, path, payload, true).await
    }
}

pub struct DownwardApi;

#[async_trait]
impl Plugin for DownwardApi {
    fn name(&self) -> &'static str {
        "kubernetes.io/downward-api"
    }

    fn is_for(&self, volume: &Volume) -> bool {
        volume.downward_api.is_some()
    }

    fn changes(&self) -> bool {
        true
    }

    async fn set_up(
        &self,
        context: &Context<'_>,
        volume: &Volume,
        path: &Path,
    ) -> Result<Mounted, VolumeError> {
        let source = volume.downward_api.clone().unwrap_or_default();
        let items = source.items.unwrap_or_default();
        let payload = downward(context, &items, source.default_mode.unwrap_or(MODE))?;
        show(context, path, payload, true).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_choose_and_rename() {
        let data = BTreeMap::from([("a".to_owned(), b"1".to_vec()), ("b".to_owned(), b"2".to_vec())]);
        let all = select(data.clone(), None, 0o400, false, "lacks").unwrap();
        assert_eq!(all.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(all["a"].mode, 0o400);
        let items = [KeyToPath { key: "a".into(), path: "x/y".into(), mode: Some(0o600) }];
        let some = select(data.clone(), Some(&items), 0o400, false, "lacks").unwrap();
        assert_eq!((some.len(), some["x/y"].mode), (1, 0o600));
        let missing = [KeyToPath { key: "z".into(), path: "z".into(), mode: None }];
        assert!(select(data.clone(), Some(&missing), 0o400, false, "lacks").is_err());
        assert!(select(data, Some(&missing), 0o400, true, "lacks").unwrap().is_empty());
    }
}
