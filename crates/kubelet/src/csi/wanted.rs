//! What a pod wants of a CSI driver, from a PersistentVolume or from its own description.

use std::collections::HashMap;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{
    CSIVolumeSource, PersistentVolume, PersistentVolumeClaim, Pod, Secret, SecretReference,
};
use k8s_openapi::api::storage::v1::CSIDriver;
use krate_client::message;
use kube::{Api, ResourceExt as _};

use super::paths;
use super::state::{Csi, Given};
use crate::names;
use crate::objects::granted;
use crate::volumes::VolumeError;

/// One volume of one pod.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// Its name in the pod.
    pub volume: &'a str,
    /// The PersistentVolume's name, or again that in the pod.
    pub name: String,
    pub driver: String,
    pub handle: String,
    pub fs_type: String,
    pub attributes: HashMap<String, String>,
    pub read_only: bool,
    pub options: Vec<String>,
    pub access_modes: Vec<String>,
    pub stage_secret: Option<SecretReference>,
    pub publish_secret: Option<SecretReference>,
    pub expand_secret: Option<SecretReference>,
    /// What led to it; none of a volume that is the pod's alone.
    pub from: Option<(&'a PersistentVolume, &'a PersistentVolumeClaim)>,
}

impl<'a> Wanted<'a> {
    /// What a pod has by it, given at `path` with this many bytes.
    pub fn given(&self, path: PathBuf, size: i64) -> Given {
        Given {
            driver: self.driver.clone(),
            handle: self.handle.clone(),
            volume: self.volume.to_owned(),
            claim: self.from.and_then(|(_, claim)| claim.metadata.name.clone()),
            path,
            size,
        }
    }

    /// The volume of a PersistentVolume; none, when that is not of a CSI driver.
    pub fn persistent(
        volume: &'a str,
        pv: &'a PersistentVolume,
        claim: &'a PersistentVolumeClaim,
        read_only: bool,
    ) -> Option<Self> {
        let spec = pv.spec.as_ref()?;
        let source = spec.csi.clone()?;
        Some(Wanted {
            volume,
            name: pv.name_any(),
            driver: source.driver,
            handle: source.volume_handle,
            fs_type: source.fs_type.unwrap_or_default(),
            attributes: source.volume_attributes.unwrap_or_default().into_iter().collect(),
            read_only,
            options: spec.mount_options.clone().unwrap_or_default(),
            access_modes: spec.access_modes.clone().unwrap_or_default(),
            stage_secret: source.node_stage_secret_ref,
            publish_secret: source.node_publish_secret_ref,
            expand_secret: source.node_expand_secret_ref,
            from: Some((pv, claim)),
        })
    }

    /// A volume that lives as long as its pod (KEP-596).
    pub fn ephemeral(volume: &'a str, source: &CSIVolumeSource, pod: &Pod) -> Self {
        let secret = source.node_publish_secret_ref.as_ref();
        Wanted {
            volume,
            name: volume.to_owned(),
            driver: source.driver.clone(),
            handle: paths::ephemeral_handle(&names::uid(pod), volume),
            fs_type: source.fs_type.clone().unwrap_or_default(),
            attributes: source.volume_attributes.clone().unwrap_or_default().into_iter().collect(),
            read_only: source.read_only == Some(true),
            options: Vec::new(),
            access_modes: Vec::new(),
            stage_secret: None,
            publish_secret: secret.map(|secret| SecretReference {
                name: Some(secret.name.clone()),
                namespace: Some(names::namespace(pod)),
            }),
            expand_secret: None,
            from: None,
        }
    }

    pub fn is_persistent(&self) -> bool {
        self.from.is_some()
    }

    pub fn lifecycle(&self) -> &'static str {
        if self.is_persistent() { "Persistent" } else { "Ephemeral" }
    }

    pub fn unique(&self) -> String {
        paths::unique(&self.driver, &self.handle)
    }

    /// The mode by which the driver is asked: the first of the volume's.
    pub fn access_mode(&self) -> &str {
        self.access_modes.first().map_or("ReadWriteOnce", String::as_str)
    }

    /// What a step of upstream's that failed is told as.
    pub fn failed(&self, what: &'static str, why: impl Into<String>) -> VolumeError {
        VolumeError::Step { reason: "FailedMount", what, volume: self.name.clone(), why: why.into() }
    }

    /// Whether the driver has volumes that live as this one does.
    pub fn check_lifecycle(&self, driver: Option<&CSIDriver>) -> Result<(), String> {
        let (wanted, name) = (self.lifecycle(), &self.driver);
        let Some(driver) = driver else {
            return if self.is_persistent() {
                Ok(())
            } else {
                Err(format!("volume mode {wanted:?} not supported by driver {name} (no CSIDriver object)"))
            };
        };
        let modes = driver.spec.volume_lifecycle_modes.clone().unwrap_or_default();
        if modes.iter().any(|mode| mode == wanted) {
            return Ok(());
        }
        let modes: Vec<String> = modes.iter().map(|mode| format!("{mode:?}")).collect();
        Err(format!(
            "volume mode {wanted:?} not supported by driver {name} (only supports [{}])",
            modes.join(" ")
        ))
    }

    /// Whether it is the kubelet that gives the volume's files to the pod's group.
    pub fn is_given_to_group(&self, policy: &str) -> bool {
        if self.read_only || policy == "None" {
            return false;
        }
        if policy == "File" {
            return true;
        }
        let is_once = |mode: &String| mode == "ReadWriteOnce" || mode == "ReadWriteOncePod";
        !self.fs_type.is_empty() && (!self.is_persistent() || self.access_modes.iter().any(is_once))
    }

    /// What a driver that asks for it is told of the pod.
    pub fn pod_info(&self, pod: &Pod) -> [(String, String); 5] {
        let account = pod.spec.as_ref().and_then(|s| s.service_account_name.clone()).unwrap_or_default();
        [
            ("pod.name", pod.name_any()),
            ("pod.namespace", names::namespace(pod)),
            ("pod.uid", names::uid(pod)),
            ("serviceAccount.name", account),
            ("ephemeral", (!self.is_persistent()).to_string()),
        ]
        .map(|(key, value)| (format!("csi.storage.k8s.io/{key}"), value))
    }
}

impl Csi {
    /// What a secret holds for a driver; nothing where none is named.
    ///
    /// # Errors
    /// It cannot be had, in upstream's words.
    pub(super) async fn secret(
        &self,
        reference: Option<&SecretReference>,
        what: &str,
    ) -> Result<HashMap<String, String>, String> {
        let Some(reference) = reference else { return Ok(HashMap::new()) };
        let name = reference.name.clone().unwrap_or_default();
        let namespace = reference.namespace.clone().unwrap_or_default();
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &namespace);
        let found = granted(|| api.get(&name)).await.map_err(|error| {
            format!(
                "fetching {what} {namespace}/{name} failed: kubernetes.io/csi: failed to find the secret {name} in the \
                 namespace {namespace} with error: {}",
                message(&error)
            )
        })?;
        let data = found.data.unwrap_or_default().into_iter();
        Ok(data.map(|(key, value)| (key, String::from_utf8_lossy(&value.0).into_owned())).collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn driver(modes: Value) -> CSIDriver {
        serde_json::from_value(json!({"metadata": {"name": "d"}, "spec": {"volumeLifecycleModes": modes}}))
            .unwrap()
    }

    fn ephemeral() -> Wanted<'static> {
        let pod =
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}})).unwrap();
        let source = CSIVolumeSource { driver: "d".to_owned(), ..Default::default() };
        Wanted::ephemeral("v", &source, &pod)
    }

    #[test]
    fn a_drivers_volumes_live_as_it_says() {
        let wanted = ephemeral();
        for (driver, said) in [
            (None, Some("volume mode \"Ephemeral\" not supported by driver d (no CSIDriver object)")),
            (Some(driver(json!(["Persistent", "Ephemeral"]))), None),
            (
                Some(driver(json!(["Persistent"]))),
                Some("volume mode \"Ephemeral\" not supported by driver d (only supports [\"Persistent\"])"),
            ),
        ] {
            assert_eq!(wanted.check_lifecycle(driver.as_ref()).err().as_deref(), said);
        }
    }

    #[test]
    fn files_are_given_to_the_group_as_the_driver_says() {
        let (pv, claim) = (PersistentVolume::default(), PersistentVolumeClaim::default());
        let plain = ephemeral();
        let of = |fs_type: &str, modes: &[&str], read_only: bool| Wanted {
            fs_type: fs_type.to_owned(),
            access_modes: modes.iter().map(|m| (*m).to_owned()).collect(),
            read_only,
            from: Some((&pv, &claim)),
            ..plain.clone()
        };
        let with_type = "ReadWriteOnceWithFSType";
        for (wanted, policy, expected) in [
            (of("ext4", &["ReadWriteOnce"], false), with_type, true),
            (of("ext4", &["ReadWriteOncePod"], false), with_type, true),
            (of("", &["ReadWriteOnce"], false), with_type, false),
            (of("ext4", &["ReadWriteMany"], false), with_type, false),
            (of("ext4", &["ReadWriteOnce"], true), with_type, false),
            (of("", &["ReadWriteMany"], false), "File", true),
            (of("ext4", &["ReadWriteOnce"], false), "None", false),
            (plain.clone(), with_type, false),
            (Wanted { fs_type: "ext4".to_owned(), ..plain.clone() }, with_type, true),
        ] {
            assert_eq!(wanted.is_given_to_group(policy), expected, "{policy} {wanted:?}");
        }
    }
}
