//! Volumes that show objects of the API as files: configMap, secret, downwardAPI, and all of them projected into one.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, KeyToPath, ServiceAccount, ServiceAccountTokenProjection, Volume,
};
use kube::api::PostParams;
use kube::{Api, ResourceExt as _};

use super::atomic::{self, File, Payload};
use super::plain::mount_memory;
use super::{Context, Mounted, Plugin, VolumeError, namespace};
use crate::fieldpath;
use crate::names;
use crate::objects::granted;

/// Permission bits of files, when nothing else is said.
const MODE: i32 = 0o644;
/// Seconds that a token is asked for, when nothing else is said.
const TOKEN_SECONDS: i64 = 3600;

/// The keys of an object that are shown: all, or some under names of their own.
fn select(
    data: BTreeMap<String, Vec<u8>>,
    items: Option<&[KeyToPath]>,
    mode: i32,
    optional: bool,
    what: &str,
) -> Result<Payload, VolumeError> {
    let file = |data, mode: i32| File { data, mode: mode.unsigned_abs() };
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
                return Err(VolumeError::Missing(format!(
                    "{what} references non-existent config key: {}",
                    item.key
                )));
            }
        }
    }
    Ok(shown)
}

async fn config_map(
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
            select(text.chain(binary).collect(), items, mode, optional, "configmap")
        }
        None if optional => Ok(Payload::new()),
        None => Err(VolumeError::Missing(format!("configmap {name:?} not found"))),
    }
}

async fn secret(
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
            select(data.collect(), items, mode, optional, "secret")
        }
        None if optional => Ok(Payload::new()),
        None => Err(VolumeError::Missing(format!("secret {name:?} not found"))),
    }
}

fn downward(
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
        shown.insert(item.path.clone(), File { data, mode: item.mode.unwrap_or(mode).unsigned_abs() });
    }
    Ok(shown)
}

/// A token that is asked for anew at four fifths of its life. The one that is there is kept until then.
async fn token(
    context: &Context<'_>,
    source: &ServiceAccountTokenProjection,
    mode: i32,
    directory: &Path,
) -> Result<(File, Timestamp), VolumeError> {
    let kept = kept_token(directory, &source.path);
    if let Some((data, refresh)) = kept {
        return Ok((File { data, mode: token_mode(context, mode) }, refresh));
    }
    let spec = context.pod.spec.as_ref();
    let account = spec.and_then(|s| s.service_account_name.clone()).filter(|n| !n.is_empty());
    let account = account.unwrap_or_else(|| "default".to_owned());
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: Some(source.audience.clone().filter(|a| !a.is_empty()).into_iter().collect()),
            expiration_seconds: Some(source.expiration_seconds.unwrap_or(TOKEN_SECONDS)),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: Some(context.pod.name_any()),
                uid: Some(names::uid(context.pod)),
            }),
        }),
        ..Default::default()
    };
    let api: Api<ServiceAccount> = Api::namespaced(context.client.clone(), &namespace(context));
    let asked = Timestamp::now();
    let parameters = PostParams::default();
    let answer = granted(|| api.create_token_request(&account, &parameters, &request)).await?;
    let status =
        answer.status.ok_or_else(|| VolumeError::Missing("the token request was not answered".to_owned()))?;
    let life = status
        .expiration_timestamp
        .map_or(SignedDuration::from_secs(TOKEN_SECONDS), |ends| ends.0.duration_since(asked));
    let data = status.token.unwrap_or_default().into_bytes();
    Ok((File { data, mode: token_mode(context, mode) }, asked + life * 4 / 5))
}

/// Tokens are for their pod's user alone: the group's bit is set where the pod has a group.
fn token_mode(context: &Context<'_>, mode: i32) -> u32 {
    if context.fs_group().is_some() { 0o600 } else { mode.unsigned_abs() }
}

/// The token that is there, and when it must be asked for anew, if that is still to come. It says itself how long it
/// lives, so nothing needs to be remembered.
fn kept_token(directory: &Path, path: &str) -> Option<(Vec<u8>, Timestamp)> {
    let data = fs::read(directory.join(path)).ok()?;
    let claims = std::str::from_utf8(&data).ok()?.split('.').nth(1)?;
    let claims: serde_json::Value = serde_json::from_slice(&base64url(claims)?).ok()?;
    let (from, to) = (claims["iat"].as_i64()?, claims["exp"].as_i64()?);
    let refresh = Timestamp::from_second(from + (to - from) * 4 / 5).ok()?;
    (refresh > Timestamp::now()).then_some((data, refresh))
}

fn base64url(text: &str) -> Option<Vec<u8>> {
    let (mut out, mut bits, mut held) = (Vec::new(), 0u32, 0);
    for byte in text.bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'-' => 62,
            b'_' => 63,
            b'=' => continue,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
        }
    }
    Some(out)
}

fn show(
    context: &Context<'_>,
    path: &Path,
    payload: &Payload,
    in_memory: bool,
) -> Result<Mounted, VolumeError> {
    let failed = || VolumeError::file(format!("writing {}", path.display()));
    if in_memory {
        mount_memory(path, None).map_err(failed())?;
    } else {
        fs::create_dir_all(path).map_err(failed())?;
    }
    atomic::write(path, payload, context.fs_group()).map_err(failed())?;
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
        show(context, path, &payload, false)
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
        show(context, path, &payload, true)
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
        show(context, path, &payload, true)
    }
}

pub struct Projected;

#[async_trait]
impl Plugin for Projected {
    fn name(&self) -> &'static str {
        "kubernetes.io/projected"
    }

    fn is_for(&self, volume: &Volume) -> bool {
        volume.projected.is_some()
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
        let projected = volume.projected.clone().unwrap_or_default();
        let mode = projected.default_mode.unwrap_or(MODE);
        let (mut payload, mut refresh_at) = (Payload::new(), None);
        for source in projected.sources.unwrap_or_default() {
            if let Some(map) = source.config_map {
                let optional = map.optional == Some(true);
                payload
                    .append(&mut config_map(context, &map.name, map.items.as_deref(), mode, optional).await?);
            } else if let Some(one) = source.secret {
                let optional = one.optional == Some(true);
                payload.append(&mut secret(context, &one.name, one.items.as_deref(), mode, optional).await?);
            } else if let Some(api) = source.downward_api {
                payload.append(&mut downward(context, &api.items.unwrap_or_default(), mode)?);
            } else if let Some(wanted) = source.service_account_token {
                let (file, refresh) = token(context, &wanted, mode, path).await?;
                payload.insert(wanted.path, file);
                refresh_at = Some(refresh_at.map_or(refresh, |known: Timestamp| known.min(refresh)));
            } else {
                return Err(VolumeError::Missing("a projected source that is not known here".to_owned()));
            }
        }
        let mounted = show(context, path, &payload, true)?;
        Ok(Mounted { refresh_at, ..mounted })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_choose_and_rename() {
        let data = BTreeMap::from([("a".to_owned(), b"1".to_vec()), ("b".to_owned(), b"2".to_vec())]);
        let all = select(data.clone(), None, 0o400, false, "configmap").unwrap();
        assert_eq!(all.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(all["a"].mode, 0o400);
        let items = [KeyToPath { key: "a".into(), path: "x/y".into(), mode: Some(0o600) }];
        let some = select(data.clone(), Some(&items), 0o400, false, "configmap").unwrap();
        assert_eq!((some.len(), some["x/y"].mode), (1, 0o600));
        let missing = [KeyToPath { key: "z".into(), path: "z".into(), mode: None }];
        assert!(select(data.clone(), Some(&missing), 0o400, false, "configmap").is_err());
        assert!(select(data, Some(&missing), 0o400, true, "configmap").unwrap().is_empty());
    }

    #[test]
    fn a_token_says_how_long_it_lives() {
        let directory = tempfile::tempdir().unwrap();
        let now = Timestamp::now().as_second();
        // {"iat":…,"exp":…} in base64url, without a library for the other direction.
        let encode = |text: &str| {
            const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
            let mut out = String::new();
            for chunk in text.as_bytes().chunks(3) {
                let bits =
                    chunk.iter().fold(0u32, |b, c| (b << 8) | u32::from(*c)) << (8 * (3 - chunk.len()));
                for i in 0..=chunk.len() {
                    out.push(ALPHABET[(bits >> (18 - 6 * i)) as usize & 63] as char);
                }
            }
            out
        };
        for (age, kept) in [(0, true), (3000, false)] {
            let from = now - age;
            let claims = encode(&format!("{{\"iat\":{from},\"exp\":{}}}", from + 3600));
            fs::write(directory.path().join("token"), format!("h.{claims}.s")).unwrap();
            let found = kept_token(directory.path(), "token");
            assert_eq!(found.map(|(_, at)| at.as_second()), kept.then_some(from + 2880));
        }
    }
}
