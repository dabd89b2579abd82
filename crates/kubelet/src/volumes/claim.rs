//! Volumes that a pod has through a claim: the claim leads to a PersistentVolume, and that says what is to be mounted.

use std::fs;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{
    LocalVolumeSource, NFSVolumeSource, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, Pod,
    Volume,
};
use kube::{Api, ResourceExt as _};
use nix::mount::{MsFlags, mount};

use super::{
    Content, Context, Mounted, Plugin, VolumeError, affinity, counted, device, directory, is_mounted, loops,
    make_private_directory, namespace, nfs, plain,
};
use crate::blocking::blocking;
use crate::csi::Wanted;
use crate::names;
use crate::objects::granted;

pub struct Claim;

#[async_trait]
impl Plugin for Claim {
    fn name(&self) -> &'static str {
        "kubernetes.io/persistent-volume-claim"
    }

    fn is_for(&self, volume: &Volume) -> bool {
        volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some()
    }

    fn leads_elsewhere(&self) -> bool {
        true
    }

    async fn set_up(&self, context: &Context<'_>, volume: &Volume, _: &Path) -> Result<Mounted, VolumeError> {
        let (pv, claim, wants_read_only) = persistent_volume(context, volume).await?;
        let spec = pv.spec.clone().unwrap_or_default();
        let is_block = spec.volume_mode.as_deref() == Some("Block");
        check_use(context.pod, &volume.name, is_block)?;
        affinity::check(&spec, &context.node_labels().await).map_err(|why| {
            let (reason, what) = if is_block {
                ("FailedMapVolume", "MapVolume.NodeAffinity check failed")
            } else {
                ("FailedMount", "MountVolume.NodeAffinity check failed")
            };
            VolumeError::Step { reason, what, volume: pv.name_any(), why }
        })?;
        if let Some(wanted) = Wanted::persistent(&volume.name, &pv, &claim, wants_read_only) {
            return context.csi.set_up(context, &wanted).await;
        }
        let setting_up = source(context, &pv, &spec, is_block, wants_read_only);
        let mut mounted = counted(context, volume, plugin_of(&spec), setting_up).await?;
        mounted.read_only |= wants_read_only;
        Ok(mounted)
    }
}

const LOCAL: &str = "kubernetes.io/local-volume";

/// The plugin that brings what a PersistentVolume names, as far as one is known.
fn plugin_of(spec: &PersistentVolumeSpec) -> &'static str {
    if spec.host_path.is_some() {
        plain::HostPath.name()
    } else if spec.local.is_some() {
        LOCAL
    } else if spec.nfs.is_some() {
        nfs::Nfs.name()
    } else {
        "N/A"
    }
}

/// Mounts what a PersistentVolume names.
async fn source(
    context: &Context<'_>,
    pv: &PersistentVolume,
    spec: &PersistentVolumeSpec,
    is_block: bool,
    read_only: bool,
) -> Result<Mounted, VolumeError> {
    let options = spec.mount_options.as_deref().unwrap_or_default();
    let at = |plugin: &str| directory(context.pod_dir, plugin, &pv.name_any());
    if let Some(host) = spec.host_path.clone() {
        blocking(move || plain::host_path(&host)).await
    } else if let Some(local) = spec.local.clone() {
        if is_block {
            let (name, place) = (pv.name_any(), device(context.pod_dir, LOCAL, &pv.name_any()));
            return blocking(move || block(&local, &name, &place)).await;
        }
        let place = at(LOCAL);
        let mounted = blocking(move || bind_local(&local, &place, read_only)).await?;
        if let (Content::Files(place), false) = (&mounted.content, read_only) {
            let failed = VolumeError::file(format!("giving {} to the pod's group", place.display()));
            context.give(place).await.map_err(failed)?;
        }
        Ok(mounted)
    } else if let Some(export) = &spec.nfs {
        let export = NFSVolumeSource {
            read_only: Some(read_only || export.read_only == Some(true)),
            path: export.path.clone(),
            server: export.server.clone(),
        };
        nfs::mount(&export, options, &at(nfs::Nfs.name())).await
    } else {
        Err(VolumeError::Unknown(pv.name_any()))
    }
}

/// The volume that a claim is bound to, the claim, and whether the pod wants it for reading only.
async fn persistent_volume(
    context: &Context<'_>,
    volume: &Volume,
) -> Result<(PersistentVolume, PersistentVolumeClaim, bool), VolumeError> {
    let (name, read_only, is_ephemeral) = match &volume.persistent_volume_claim {
        Some(source) => (source.claim_name.clone(), source.read_only == Some(true), false),
        None => (format!("{}-{}", context.pod.name_any(), volume.name), false, true),
    };
    let namespace = namespace(context);
    let failed = |why: String| VolumeError::Claim(format!("error processing PVC {namespace}/{name}: {why}"));
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), &namespace);
    let claim = granted(|| claims.get(&name)).await;
    let claim = claim.map_err(|e| failed(format!("failed to fetch PVC from API server: {}", said(&e))))?;
    let pv_name = bound_to(context.pod, &claim, is_ephemeral).map_err(failed)?;
    let volumes: Api<PersistentVolume> = Api::all(context.client.clone());
    let found = granted(|| volumes.get(&pv_name)).await;
    let pv =
        found.map_err(|e| failed(format!("failed to fetch PV {pv_name} from API server: {}", said(&e))))?;
    belongs_to(&pv, &claim).map_err(failed)?;
    Ok((pv, claim, read_only))
}

/// What the API server said.
fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// The name of the volume that a claim is bound to.
fn bound_to(pod: &Pod, claim: &PersistentVolumeClaim, is_ephemeral: bool) -> Result<String, String> {
    if is_ephemeral {
        let owners = claim.metadata.owner_references.iter().flatten();
        let is_for_pod = owners.into_iter().any(|o| o.controller == Some(true) && o.uid == names::uid(pod));
        if !is_for_pod {
            let namespace = claim.namespace().unwrap_or_default();
            return Err(format!(
                "PVC {namespace}/{} was not created for pod {namespace}/{} (pod is not owner)",
                claim.name_any(),
                pod.name_any()
            ));
        }
    }
    if claim.metadata.deletion_timestamp.is_some() {
        return Err("PVC is being deleted".to_owned());
    }
    if claim.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Bound") {
        return Err("PVC is not bound".to_owned());
    }
    let name = claim.spec.as_ref().and_then(|s| s.volume_name.clone()).unwrap_or_default();
    if name.is_empty() { Err("PVC has empty pvc.Spec.VolumeName".to_owned()) } else { Ok(name) }
}

/// Whether the volume says so too.
fn belongs_to(pv: &PersistentVolume, claim: &PersistentVolumeClaim) -> Result<(), String> {
    let name = pv.name_any();
    let Some(reference) = pv.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) else {
        return Err(format!(
            "found PV object {name} but it has a nil pv.Spec.ClaimRef indicating it is not yet bound to the claim"
        ));
    };
    let (found, wanted) = (reference.uid.clone().unwrap_or_default(), claim.uid().unwrap_or_default());
    if found == wanted {
        return Ok(());
    }
    Err(format!(
        "found PV object {name} but its pv.Spec.ClaimRef.UID {found} does not point to claim.UID {wanted}"
    ))
}

/// Devices are used as devices, and directories as directories.
fn check_use(pod: &Pod, volume: &str, is_block: bool) -> Result<(), VolumeError> {
    let spec = pod.spec.as_ref();
    let inits = spec.and_then(|s| s.init_containers.as_ref()).into_iter().flatten();
    let mut containers = inits.chain(spec.into_iter().flat_map(|s| &s.containers));
    let wrong = containers.any(|c| {
        if is_block {
            c.volume_mounts.iter().flatten().any(|m| m.name == volume)
        } else {
            c.volume_devices.iter().flatten().any(|d| d.name == volume)
        }
    });
    if !wrong {
        return Ok(());
    }
    let (mode, list) = if is_block { ("Block", "volumeMounts") } else { ("Filesystem", "volumeDevices") };
    Err(VolumeError::Claim(format!("volume {volume} has volumeMode {mode}, but is specified in {list}")))
}

fn local_path(source: &LocalVolumeSource) -> Result<PathBuf, VolumeError> {
    let path = PathBuf::from(&source.path);
    if path.components().any(|c| c == std::path::Component::ParentDir) {
        return Err(VolumeError::Missing(format!("invalid path: {} must not contain '..'", source.path)));
    }
    if !path.exists() {
        return Err(VolumeError::Missing(format!("path {:?} does not exist", source.path)));
    }
    Ok(path)
}

/// A device of the host, held for the pod at the pod's own place for it.
fn block(source: &LocalVolumeSource, volume: &str, place: &Path) -> Result<Mounted, VolumeError> {
    use std::os::unix::fs::FileTypeExt as _;
    let path = local_path(source)?;
    let kind = fs::metadata(&path).map_err(VolumeError::file(format!("looking at {}", path.display())))?;
    if !kind.file_type().is_block_device() {
        return Err(VolumeError::Missing(format!("{} is not a block device", path.display())));
    }
    bind(&path, place).and_then(|()| loops::hold(place)).map_err(|error| VolumeError::Step {
        reason: "FailedMapVolume",
        what: "MapVolume.MapBlockVolume failed",
        volume: volume.to_owned(),
        why: format!("{}: {error}", place.display()),
    })?;
    Ok(Mounted { content: Content::Device(path), read_only: false, refresh_at: None })
}

/// Shows a device at another place.
fn bind(device: &Path, place: &Path) -> std::io::Result<()> {
    if is_mounted(place)? {
        return Ok(());
    }
    make_private_directory(place.parent().unwrap_or(place))?;
    fs::File::create(place)?;
    Ok(mount(Some(device), place, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
}

/// A directory of the host, or the file system on one of its devices, bound to the pod's own place for it.
fn bind_local(source: &LocalVolumeSource, place: &Path, read_only: bool) -> Result<Mounted, VolumeError> {
    let path = local_path(source)?;
    if !path.is_dir() {
        return Err(VolumeError::Missing(format!(
            "only directory or block device are supported: {}",
            path.display()
        )));
    }
    let failed = || VolumeError::file(format!("mounting {} at {}", path.display(), place.display()));
    fs::create_dir_all(place).map_err(failed())?;
    if !is_mounted(place).map_err(failed())? {
        let refused = |error: nix::Error| failed()(error.into());
        mount(Some(&path), place, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(refused)?;
        if read_only {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(None::<&str>, place, None::<&str>, flags, None::<&str>).map_err(refused)?;
        }
    }
    Ok(Mounted { read_only, ..Mounted::at(place.to_owned()) })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [{"name": "c", "volumeMounts": [{"name": "files", "mountPath": "/f"}],
                "volumeDevices": [{"name": "disk", "devicePath": "/dev/x"}]}]}}))
        .unwrap()
    }

    fn claim(metadata: Value, volume: &str, phase: &str) -> PersistentVolumeClaim {
        let mut claim: PersistentVolumeClaim =
            serde_json::from_value(json!({"spec": {"volumeName": volume}, "status": {"phase": phase}}))
                .unwrap();
        claim.metadata = serde_json::from_value(metadata).unwrap();
        claim
    }

    #[test]
    fn a_claim_must_lead_to_its_volume() {
        let owned = |uid: &str| {
            json!({"name": "p-v", "namespace": "n", "ownerReferences": [
            {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid, "controller": true}]})
        };
        let plain = json!({"name": "c", "namespace": "n"});
        let going = json!({"name": "c", "deletionTimestamp": "2026-01-01T00:00:00Z"});
        for (claim, ephemeral, expected) in [
            (claim(plain.clone(), "pv", "Bound"), false, Ok("pv")),
            (claim(plain.clone(), "", "Pending"), false, Err("PVC is not bound")),
            (claim(plain, "", "Bound"), false, Err("PVC has empty pvc.Spec.VolumeName")),
            (claim(going, "pv", "Bound"), false, Err("PVC is being deleted")),
            (claim(owned("u"), "pv", "Bound"), true, Ok("pv")),
            (
                claim(owned("other"), "pv", "Bound"),
                true,
                Err("PVC n/p-v was not created for pod n/p (pod is not owner)"),
            ),
        ] {
            let found = bound_to(&pod(), &claim, ephemeral);
            assert_eq!(found.as_deref().map_err(String::as_str), expected);
        }
    }

    #[test]
    fn a_volume_must_belong_to_the_claim() {
        let claim = claim(json!({"name": "c", "uid": "1"}), "pv", "Bound");
        let of =
            |spec: Value| serde_json::from_value(json!({"metadata": {"name": "pv"}, "spec": spec})).unwrap();
        assert_eq!(belongs_to(&of(json!({"claimRef": {"uid": "1"}})), &claim), Ok(()));
        assert!(belongs_to(&of(json!({})), &claim).unwrap_err().contains("nil pv.Spec.ClaimRef"));
        let other = belongs_to(&of(json!({"claimRef": {"uid": "2"}})), &claim).unwrap_err();
        assert_eq!(other, "found PV object pv but its pv.Spec.ClaimRef.UID 2 does not point to claim.UID 1");
    }

    #[test]
    fn devices_are_not_directories() {
        for (volume, is_block, said) in [
            ("files", false, None),
            ("disk", true, None),
            ("files", true, Some("volume files has volumeMode Block, but is specified in volumeMounts")),
            ("disk", false, Some("volume disk has volumeMode Filesystem, but is specified in volumeDevices")),
        ] {
            let found = check_use(&pod(), volume, is_block).err().map(|e| e.to_string());
            assert_eq!(found.as_deref(), said);
        }
    }
}
