//! What a container sees of its pod's volumes: mounts and devices, as the runtime is told them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use k8s_cri::v1::{Device, ImageSpec, Mount, MountPropagation};
use k8s_openapi::api::core::v1::{Container, VolumeMount};

use crate::env;
use crate::volumes::subpath::{self, SubPathError};
use crate::volumes::{Content, Mounted, MountedVolumes};

/// What mounts are made from.
pub struct Inputs<'a> {
    pub container: &'a Container,
    pub volumes: &'a MountedVolumes,
    /// The ids of the images that are mounted, by the names of their volumes.
    pub images: &'a HashMap<String, String>,
    pub pod_dir: &'a Path,
    /// Whether the runtime can make all that is mounted below a mount read-only too.
    pub recursive_read_only: bool,
}

impl Inputs<'_> {
    fn volume(&self, name: &str) -> Result<&Mounted, String> {
        self.volumes.by_name.get(name).ok_or_else(|| {
            format!("cannot find volume {name:?} to mount into container {:?}", self.container.name)
        })
    }
}

/// A part of a volume that must be bound to a place of its own before it is mounted from there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    volume: PathBuf,
    part: String,
    place: PathBuf,
    /// Whose it is, as errors say.
    of: String,
}

impl Part {
    /// Binds it, making the part where it is not there. May block.
    ///
    /// # Errors
    /// Upstream's message.
    pub fn bind(&self) -> Result<(), String> {
        subpath::bind(&self.volume, &self.part, &self.place).map_err(|error| refused(&self.of, &error))
    }
}

/// The mounts, with what must be bound before them. `value` knows the container's environment.
///
/// # Errors
/// Upstream's message.
pub fn mounts(
    inputs: &Inputs<'_>,
    value: &dyn Fn(&str) -> Option<String>,
) -> Result<(Vec<Mount>, Vec<Part>), String> {
    let (mut mounts, mut parts) = (Vec::new(), Vec::new());
    for (number, mount) in inputs.container.volume_mounts.iter().flatten().enumerate() {
        let (mount, part) = one(inputs, number, mount, value)?;
        mounts.push(mount);
        parts.extend(part);
    }
    Ok((mounts, parts))
}

fn one(
    inputs: &Inputs<'_>,
    number: usize,
    mount: &VolumeMount,
    value: &dyn Fn(&str) -> Option<String>,
) -> Result<(Mount, Option<Part>), String> {
    let volume = inputs.volume(&mount.name)?;
    let part = part(mount, value)?;
    let (mut host_path, mut image, mut bound) = (String::new(), None, None);
    match &volume.content {
        Content::Image { reference, .. } => {
            if !part.is_empty() {
                return Err(format!(
                    "subPath of image volume {:?} is not supported by the runtime",
                    mount.name
                ));
            }
            let id = inputs.images.get(&mount.name).unwrap_or(reference).clone();
            let user_specified_image = reference.clone();
            image = Some(ImageSpec { image: id, user_specified_image, ..Default::default() });
        }
        Content::Files(path) if part.is_empty() => host_path = path.display().to_string(),
        Content::Files(path) => {
            let place = inputs
                .pod_dir
                .join("volume-subpaths")
                .join(&mount.name)
                .join(&inputs.container.name)
                .join(number.to_string());
            subpath::check(&part).map_err(|error| error.to_string())?;
            host_path = place.display().to_string();
            let of = format!("volumeMount {:?} of container {:?}", mount.name, inputs.container.name);
            bound = Some(Part { volume: path.clone(), part, place, of });
        }
        Content::Device(_) => {
            return Err(format!(
                "volume {} has volumeMode Block, but is specified in volumeMounts",
                mount.name
            ));
        }
    }
    let mount = Mount {
        container_path: mount.mount_path.clone(),
        host_path,
        image,
        readonly: mount.read_only == Some(true) || volume.read_only,
        propagation: match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => MountPropagation::PropagationHostToContainer,
            Some("Bidirectional") => MountPropagation::PropagationBidirectional,
            _ => MountPropagation::PropagationPrivate,
        } as i32,
        recursive_read_only: is_recursive(mount, inputs.recursive_read_only)?,
        ..Default::default()
    };
    Ok((mount, bound))
}

fn part(mount: &VolumeMount, value: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let Some(expression) = mount.sub_path_expr.as_deref().filter(|e| !e.is_empty()) else {
        return Ok(mount.sub_path.clone().unwrap_or_default());
    };
    let missing = std::cell::RefCell::new(std::collections::BTreeSet::new());
    let expanded = env::expand(expression, &|name| {
        let found = value(name).filter(|v| !v.is_empty());
        if found.is_none() {
            missing.borrow_mut().insert(name.to_owned());
        }
        Some(found.unwrap_or_default())
    });
    let missing: Vec<String> = missing.into_inner().into_iter().collect();
    if missing.is_empty() { Ok(expanded) } else { Err(format!("missing value for {}", missing.join(", "))) }
}

fn refused(of: &str, error: &SubPathError) -> String {
    let did = match error {
        SubPathError::Absolute(_) | SubPathError::Backsteps(_) => return error.to_string(),
        SubPathError::Make(_) => "failed to create subPath directory",
        SubPathError::Prepare(_) => "failed to prepare subPath",
    };
    tracing::debug!(%error, "a part of a volume cannot be prepared");
    format!("{did} for {of}")
}

/// Whether what is mounted below is to be read-only too (KEP-3857).
fn is_recursive(mount: &VolumeMount, supported: bool) -> Result<bool, String> {
    let name = &mount.name;
    let wish = match mount.recursive_read_only.as_deref() {
        None | Some("Disabled") => return Ok(false),
        Some(wish) => wish,
    };
    let asked = format!("volume {name:?} requested recursive read-only mode, but it is");
    if mount.read_only != Some(true) {
        return Err(format!("{asked} not read-only"));
    }
    if let Some(propagation) = mount.mount_propagation.as_deref().filter(|p| *p != "None") {
        return Err(format!("{asked} not compatible with propagation {propagation:?}"));
    }
    match wish {
        "IfPossible" => Ok(supported),
        "Enabled" if supported => Ok(true),
        "Enabled" => Err(format!("{asked} not supported by the runtime")),
        other => Err(format!("unknown recursive read-only mode {other:?}")),
    }
}

/// The block devices.
///
/// # Errors
/// Upstream's message.
pub fn devices(inputs: &Inputs<'_>) -> Result<Vec<Device>, String> {
    let mut all = Vec::new();
    for wanted in inputs.container.volume_devices.iter().flatten() {
        let volume = inputs.volume(&wanted.name)?;
        let Content::Device(path) = &volume.content else {
            return Err(format!(
                "volume {} has volumeMode Filesystem, but is specified in volumeDevices",
                wanted.name
            ));
        };
        all.push(Device {
            container_path: wanted.device_path.clone(),
            host_path: path.display().to_string(),
            permissions: if volume.read_only { "r" } else { "mrw" }.to_owned(),
        });
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn volumes() -> MountedVolumes {
        let mounted = |content, read_only| Mounted { content, read_only, refresh_at: None };
        let mut all = MountedVolumes::default();
        all.by_name.insert("files".into(), mounted(Content::Files("/v/files".into()), false));
        all.by_name.insert("settings".into(), mounted(Content::Files("/v/settings".into()), true));
        all.by_name.insert("disk".into(), mounted(Content::Device(PathBuf::from("/dev/x")), true));
        let image = Content::Image { reference: "web:1".into(), pull_policy: None };
        all.by_name.insert("image".into(), mounted(image, true));
        all
    }

    fn made(mount: Value, supported: bool) -> Result<Mount, String> {
        let container: Container =
            serde_json::from_value(json!({"name": "c", "volumeMounts": [mount]})).unwrap();
        let inputs = Inputs {
            container: &container,
            volumes: &volumes(),
            images: &HashMap::from([("image".to_owned(), "sha256:1".to_owned())]),
            pod_dir: Path::new("/pod"),
            recursive_read_only: supported,
        };
        let value = |name: &str| (name == "SET").then(|| "/etc".to_owned());
        mounts(&inputs, &value).map(|(mut all, _)| all.remove(0))
    }

    #[test]
    fn mounts_are_as_asked() {
        let plain = made(json!({"name": "files", "mountPath": "/f"}), true).unwrap();
        assert_eq!((plain.host_path.as_str(), plain.readonly), ("/v/files", false));
        assert!(made(json!({"name": "settings", "mountPath": "/s"}), true).unwrap().readonly);
        let image = made(json!({"name": "image", "mountPath": "/i"}), true).unwrap();
        assert_eq!((image.host_path.as_str(), image.image.unwrap().image.as_str()), ("", "sha256:1"));
    }

    #[test]
    fn what_cannot_be_mounted_says_why() {
        for (mount, supported, said) in [
            (json!({"name": "none"}), true, "cannot find volume \"none\" to mount into container \"c\""),
            (json!({"name": "files", "subPathExpr": "$(A)/$(B)"}), true, "missing value for A, B"),
            (
                json!({"name": "files", "subPathExpr": "$(SET)"}),
                true,
                "error SubPath `/etc` must not be an absolute path",
            ),
            (
                json!({"name": "files", "subPath": "../x"}),
                true,
                "unable to provision SubPath `../x`: must not contain '..'",
            ),
            (
                json!({"name": "disk"}),
                true,
                "volume disk has volumeMode Block, but is specified in volumeMounts",
            ),
            (
                json!({"name": "files", "recursiveReadOnly": "Enabled"}),
                true,
                "volume \"files\" requested recursive read-only mode, but it is not read-only",
            ),
            (
                json!({"name": "files", "readOnly": true, "recursiveReadOnly": "Enabled"}),
                false,
                "volume \"files\" requested recursive read-only mode, but it is not supported by the runtime",
            ),
        ] {
            let mut mount = mount;
            mount["mountPath"] = json!("/m");
            assert_eq!(made(mount, supported).unwrap_err(), said);
        }
    }

    #[test]
    fn recursion_is_asked_for_where_it_can_be() {
        for (wish, supported, expected) in [
            ("IfPossible", true, true),
            ("IfPossible", false, false),
            ("Enabled", true, true),
            ("Disabled", true, false),
        ] {
            let mount =
                json!({"name": "files", "mountPath": "/m", "readOnly": true, "recursiveReadOnly": wish});
            assert_eq!(made(mount, supported).unwrap().recursive_read_only, expected, "{wish} {supported}");
        }
    }
}
