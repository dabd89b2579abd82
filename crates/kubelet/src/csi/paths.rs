//! Where volumes of CSI drivers lie, as upstream's kubelet has it, and what is written down beside them: it is by that
//! alone that a kubelet that was started anew knows them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::volumes::{is_mounted, make_private_directory};

/// The plugin's name, by itself and in paths.
pub const PLUGIN: &str = "kubernetes.io/csi";
pub const ESCAPED: &str = "kubernetes.io~csi";
const DATA: &str = "vol_data.json";

/// What is written down of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VolumeData {
    #[serde(rename = "attachmentID", skip_serializing_if = "String::is_empty")]
    pub attachment_id: String,
    pub driver_name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub node_name: String,
    /// The PersistentVolume's name, or the volume's in its pod.
    #[serde(rename = "specVolID", skip_serializing_if = "String::is_empty")]
    pub spec_vol_id: String,
    pub volume_handle: String,
    /// `Persistent`, `Ephemeral`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub volume_lifecycle_mode: String,
}

impl VolumeData {
    /// Writes it beside what is mounted at `mounted`.
    pub fn save(&self, mounted: &Path) -> io::Result<()> {
        let directory = mounted.parent().unwrap_or(mounted);
        fs::write(directory.join(DATA), serde_json::to_vec(self)?)
    }

    /// Reads it; none where there is none.
    pub fn load(mounted: &Path) -> io::Result<Option<Self>> {
        let directory = mounted.parent().unwrap_or(mounted);
        match fs::read(directory.join(DATA)) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The name of the object that says whether a volume is attached to a node.
pub fn attachment(handle: &str, driver: &str, node: &str) -> String {
    format!("csi-{}", hashed(&format!("{handle}{driver}{node}")))
}

/// The handle of a volume that is its pod's alone.
pub fn ephemeral_handle(pod_uid: &str, volume: &str) -> String {
    format!("csi-{}", hashed(&format!("{pod_uid}{volume}")))
}

fn hashed(text: &str) -> String {
    hex::encode(Sha256::digest(text.as_bytes()))
}

/// How node statuses name a volume.
pub fn unique(driver: &str, handle: &str) -> String {
    format!("{PLUGIN}/{driver}^{handle}")
}

/// The kubelet's directory.
#[derive(Clone, Debug)]
pub struct Root(pub PathBuf);

impl Root {
    fn plugin(&self) -> PathBuf {
        self.0.join("plugins").join(PLUGIN)
    }

    /// Where a volume is made ready for the node.
    pub fn staged(&self, driver: &str, handle: &str) -> PathBuf {
        self.plugin().join(driver).join(hashed(handle)).join("globalmount")
    }

    /// What is ready for the node, as it was written down.
    pub fn all_staged(&self) -> Vec<(PathBuf, VolumeData)> {
        let drivers = entries(&self.plugin()).into_iter().filter(|path| !path.ends_with("volumeDevices"));
        let volumes = drivers.flat_map(|driver| entries(&driver)).map(|volume| volume.join("globalmount"));
        volumes
            .filter_map(|mounted| Some((VolumeData::load(&mounted).ok()??, mounted)))
            .map(|(d, m)| (m, d))
            .collect()
    }

    /// Where a pod has its volumes.
    pub fn of_pod(&self, uid: &str) -> PathBuf {
        self.0.join("pods").join(uid).join("volumes").join(ESCAPED)
    }

    /// Where a pod has one of them.
    pub fn published(&self, uid: &str, volume: &str) -> PathBuf {
        self.of_pod(uid).join(volume).join("mount")
    }

    /// What a pod has, as it was written down.
    pub fn all_published(&self, uid: &str) -> Vec<(PathBuf, VolumeData)> {
        let all = entries(&self.of_pod(uid)).into_iter().map(|volume| volume.join("mount"));
        all.filter_map(|mounted| Some((VolumeData::load(&mounted).ok()??, mounted)))
            .map(|(d, m)| (m, d))
            .collect()
    }

    fn devices(&self) -> PathBuf {
        self.plugin().join("volumeDevices")
    }

    pub fn device_staged(&self, volume: &str) -> PathBuf {
        self.devices().join("staging").join(volume)
    }

    /// Where a device is shown to a pod.
    pub fn device_published(&self, volume: &str, uid: &str) -> PathBuf {
        self.devices().join("publish").join(volume).join(uid)
    }

    /// What is written down of a device is beside this.
    pub fn device_data(&self, volume: &str) -> PathBuf {
        self.devices().join(volume).join("data").join("of")
    }

    /// Devices that are ready for the node, by volume.
    pub fn all_devices(&self) -> Vec<(String, VolumeData)> {
        let names = entries(&self.devices())
            .into_iter()
            .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()));
        let volumes = names.filter(|name| name != "staging" && name != "publish");
        volumes
            .filter_map(|name| Some((VolumeData::load(&self.device_data(&name)).ok()??, name)))
            .map(|(d, n)| (n, d))
            .collect()
    }

    /// Removes what is left of a device that nobody has any more.
    pub fn forget_device(&self, volume: &str) -> io::Result<()> {
        absent(fs::remove_dir(self.devices().join("publish").join(volume)))?;
        absent(fs::remove_dir(self.device_staged(volume)))?;
        absent(fs::remove_dir_all(self.devices().join(volume)))
    }

    /// The links by which a pod has devices.
    pub fn links(&self, uid: &str) -> PathBuf {
        self.0.join("pods").join(uid).join("volumeDevices").join(ESCAPED)
    }

    /// The volumes whose devices a pod has.
    pub fn linked(&self, uid: &str) -> Vec<String> {
        let all = entries(&self.links(uid)).into_iter();
        all.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect()
    }
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

pub fn absent(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Makes the directory in which something will be mounted at `mounted`, and the place itself where that is to be there.
pub fn prepare(mounted: &Path, itself: bool) -> io::Result<()> {
    let directory = if itself { mounted } else { mounted.parent().unwrap_or(mounted) };
    make_private_directory(directory)
}

/// Removes a place that nothing is mounted at, and what was written down beside it. What is mounted stays as it is.
pub fn forget(mounted: &Path) -> io::Result<()> {
    if is_mounted(mounted)? {
        return Ok(());
    }
    absent(fs::remove_dir(mounted))?;
    let directory = mounted.parent().unwrap_or(mounted);
    absent(fs::remove_file(directory.join(DATA)))?;
    absent(fs::remove_dir(directory))
}

/// Which pods have which volumes, of all that is on disk: unique names with pods' UIDs. Volumes that are ready for the
/// node and that no pod has are told with none.
pub fn all_in_use(root: &Root) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let devices = root.all_devices();
    for uid in crate::volumes::pods(&root.0) {
        for (_, data) in root.all_published(&uid) {
            if data.volume_lifecycle_mode != "Ephemeral" {
                found.entry(unique(&data.driver_name, &data.volume_handle)).or_default().push(uid.clone());
            }
        }
        for (name, data) in &devices {
            if root.device_published(name, &uid).exists() {
                found.entry(unique(&data.driver_name, &data.volume_handle)).or_default().push(uid.clone());
            }
        }
    }
    let staged = root.all_staged().into_iter().map(|(_, data)| data);
    for data in staged.chain(devices.into_iter().map(|(_, data)| data)) {
        found.entry(unique(&data.driver_name, &data.volume_handle)).or_default();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_upstreams() {
        // sha256 of "volndriverNode"
        assert_eq!(
            attachment("vol", "n", "driverNode"),
            format!("csi-{}", hex::encode(Sha256::digest(b"volndriverNode")))
        );
        assert_eq!(unique("d", "h"), "kubernetes.io/csi/d^h");
        let root = Root(PathBuf::from("/k"));
        assert_eq!(root.published("u", "pv"), Path::new("/k/pods/u/volumes/kubernetes.io~csi/pv/mount"));
        assert!(root.staged("d", "h").ends_with("globalmount"));
        assert!(root.staged("d", "h").starts_with("/k/plugins/kubernetes.io/csi/d"));
        assert_eq!(
            root.device_published("pv", "u"),
            Path::new("/k/plugins/kubernetes.io/csi/volumeDevices/publish/pv/u")
        );
    }

    #[test]
    fn what_is_written_down_is_found_again() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root(directory.path().to_owned());
        let data = VolumeData {
            driver_name: "d".to_owned(),
            volume_handle: "h".to_owned(),
            spec_vol_id: "pv".to_owned(),
            volume_lifecycle_mode: "Persistent".to_owned(),
            ..VolumeData::default()
        };
        let (staged, mounted) = (root.staged("d", "h"), root.published("uid", "pv"));
        prepare(&staged, true).unwrap();
        prepare(&mounted, false).unwrap();
        assert!(staged.is_dir() && !mounted.exists() && mounted.parent().unwrap().is_dir());
        data.save(&staged).unwrap();
        assert_eq!(all_in_use(&root), BTreeMap::from([(unique("d", "h"), vec![])]));
        data.save(&mounted).unwrap();
        assert_eq!(root.all_published("uid"), [(mounted.clone(), data.clone())]);
        assert_eq!(root.all_staged(), [(staged.clone(), data)]);
        assert_eq!(all_in_use(&root)[&unique("d", "h")], ["uid"]);
        let text = fs::read_to_string(mounted.parent().unwrap().join(DATA)).unwrap();
        assert!(text.contains("\"specVolID\":\"pv\"") && text.contains("\"volumeHandle\":\"h\""), "{text}");
        forget(&mounted).unwrap();
        forget(&staged).unwrap();
        forget(&staged).unwrap();
        assert!(all_in_use(&root).is_empty() && !mounted.parent().unwrap().exists());
    }
}
