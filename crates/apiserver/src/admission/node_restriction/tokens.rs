//! Tokens of accounts: a kubelet asks for those of the pods that it runs, and for those that they have a use for (KEP-4935).

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use k8s_openapi::api::storage::v1::CSIDriver;
use krate_api::StatusError;
use krate_api::field::aggregate;

use super::{NodeRestriction, node_name};
use crate::admission::{Attributes, lookup};
use crate::registry::erased::{Object, Unstored};
use crate::request::RequestInfo;

/// The drivers of the volumes that once had none.
const MIGRATED: [&str; 7] = [
    "ebs.csi.aws.com",
    "pd.csi.storage.gke.io",
    "cinder.csi.openstack.org",
    "disk.csi.azure.com",
    "file.csi.azure.com",
    "csi.vsphere.vmware.com",
    "pxd.portworx.com",
];

/// Whether its volume is one of those, of each.
fn migrated(is: [bool; MIGRATED.len()]) -> Option<String> {
    MIGRATED.iter().zip(is).find(|(_, is)| *is).map(|(driver, _)| (*driver).to_owned())
}

/// Where it is said which driver a volume has.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Driver(String),
    Claim(String),
}

fn said(pod: &str, volume: &Volume) -> Option<Said> {
    if volume.ephemeral.as_ref().is_some_and(|ephemeral| ephemeral.volume_claim_template.is_some()) {
        return Some(Said::Claim(format!("{pod}-{}", volume.name)));
    }
    if let Some(claim) = &volume.persistent_volume_claim {
        return Some(Said::Claim(claim.claim_name.clone()));
    }
    if let Some(csi) = &volume.csi {
        return Some(Said::Driver(csi.driver.clone()));
    }
    let driver = migrated([
        volume.aws_elastic_block_store.is_some(),
        volume.gce_persistent_disk.is_some(),
        volume.cinder.is_some(),
        volume.azure_disk.is_some(),
        volume.azure_file.is_some(),
        volume.vsphere_volume.is_some(),
        volume.portworx_volume.is_some(),
    ]);
    driver.map(Said::Driver)
}

fn driver_of(volume: &PersistentVolume) -> Option<String> {
    let spec = volume.spec.as_ref()?;
    if let Some(csi) = &spec.csi {
        return Some(csi.driver.clone());
    }
    migrated([
        spec.aws_elastic_block_store.is_some(),
        spec.gce_persistent_disk.is_some(),
        spec.cinder.is_some(),
        spec.azure_disk.is_some(),
        spec.azure_file.is_some(),
        spec.vsphere_volume.is_some(),
        spec.portworx_volume.is_some(),
    ])
}

/// Whether a pod mounts a token for an audience.
fn mounts(volume: &Volume, audience: &str) -> bool {
    let projected = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
    let mut tokens = projected.filter_map(|source| source.service_account_token.as_ref());
    tokens.any(|token| token.audience.as_deref().unwrap_or_default() == audience)
}

/// The audience that is asked for; empty for that of the server itself.
fn audience_of(request: &TokenRequest) -> Result<&str, String> {
    let audiences = request.spec.as_ref().and_then(|spec| spec.audiences.as_deref()).unwrap_or_default();
    match audiences {
        [] => Ok(""),
        [one] => Ok(one),
        _ => Err("node may only request 0 or 1 audiences".to_owned()),
    }
}

/// The pod that a token is to be bound to.
fn bound_to(request: &TokenRequest) -> Result<(&str, &str), &'static str> {
    let bound = request.spec.as_ref().and_then(|spec| spec.bound_object_ref.as_ref());
    let text = |field: fn(&BoundObjectReference) -> Option<&String>| {
        bound.and_then(field).map(String::as_str).unwrap_or_default()
    };
    let (version, kind) = (text(|r| r.api_version.as_ref()), text(|r| r.kind.as_ref()));
    let (name, uid) = (text(|r| r.name.as_ref()), text(|r| r.uid.as_ref()));
    if version != "v1" || kind != "Pod" || name.is_empty() {
        return Err("node requested token not bound to a pod");
    }
    if uid.is_empty() {
        return Err("node requested token with a pod binding without a uid");
    }
    Ok((name, uid))
}

impl NodeRestriction {
    /// Whether a kubelet may ask for a token: only for a pod of its own, and for who the pod is to show it to.
    pub(super) async fn token(
        &self,
        attributes: &Attributes,
        node: &str,
        object: &dyn Object,
    ) -> Result<(), StatusError> {
        let Some(request) = object.is::<Unstored<TokenRequest>>() else { return Ok(()) };
        let (name, uid) = bound_to(&request.0).map_err(|why| attributes.forbidden(why))?;
        let pod = lookup::find::<Pod>(&self.kinds, "", "pods", &attributes.namespace, name).await?;
        let Some(pod) = pod else { return Err(StatusError::not_found("", "pod", name)) };
        let there = pod.metadata.uid.as_deref().unwrap_or_default();
        if there != uid {
            return Err(attributes.forbidden(format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
            )));
        }
        if node_name(&pod) != node {
            let why = "node requested token bound to a pod scheduled on a different node";
            return Err(attributes.forbidden(why));
        }
        self.audience(attributes, &request.0, &pod).await.map_err(|why| attributes.forbidden(why))
    }

    /// Whether a pod has a use for a token, or its node may ask for such tokens all the same.
    async fn audience(
        &self,
        attributes: &Attributes,
        request: &TokenRequest,
        pod: &Pod,
    ) -> Result<(), String> {
        let audience = audience_of(request)?;
        let used = self.uses(pod, audience).await;
        if used.map_err(|why| format!("error validating audience {audience:?}: {why}"))? {
            return Ok(());
        }
        let info = RequestInfo {
            verb: "request-serviceaccounts-token-audience",
            is_resource: true,
            version: "v1".to_owned(),
            resource: audience.to_owned(),
            namespace: attributes.namespace.clone(),
            name: attributes.name.clone(),
            ..RequestInfo::default()
        };
        let decision = self.authorizer.decision(&attributes.user, &info).await;
        let user = &attributes.user.name;
        let why = match decision.failure() {
            Some(why) => format!(
                "audience {audience:?} not found in pod spec volume, error authorizing {user} to request tokens for this \
                 audience: {why}"
            ),
            None => format!(
                "audience {audience:?} not found in pod spec volume, {user} is not authorized to request tokens for this \
                 audience"
            ),
        };
        decision.allowed().map(drop).map_err(|_| why)
    }

    /// Whether a pod, or a driver of its volumes, shows tokens to an audience. What cannot be looked up is told if nothing
    /// else does.
    async fn uses(&self, pod: &Pod, audience: &str) -> Result<bool, String> {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let mut errors = Vec::new();
        for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
            if mounts(volume, audience) {
                return Ok(true);
            }
            let driver = match said(name, volume) {
                None => continue,
                Some(Said::Driver(driver)) => Ok(Some(driver)),
                Some(Said::Claim(claim)) => self.driver_of_claim(namespace, &claim).await,
            };
            let wanted = match driver {
                Ok(None) => continue,
                Ok(Some(driver)) => self.driver_shows(&driver, audience).await,
                Err(why) => Err(why),
            };
            match wanted {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(why) => errors.push(why),
            }
        }
        if errors.is_empty() { Ok(false) } else { Err(aggregate(errors)) }
    }

    async fn driver_of_claim(&self, namespace: &str, name: &str) -> Result<Option<String>, String> {
        let kind = "persistentvolumeclaims";
        let claim = lookup::find::<PersistentVolumeClaim>(&self.kinds, "", kind, namespace, name).await;
        let claim = claim.map_err(|error| error.to_string())?;
        let claim = claim.ok_or_else(|| format!("persistentvolumeclaim {name:?} not found"))?;
        let name = claim.spec.and_then(|spec| spec.volume_name).unwrap_or_default();
        let volume = lookup::find::<PersistentVolume>(&self.kinds, "", "persistentvolumes", "", &name).await;
        let volume = volume.map_err(|error| error.to_string())?;
        Ok(driver_of(&volume.ok_or_else(|| format!("persistentvolume {name:?} not found"))?))
    }

    async fn driver_shows(&self, name: &str, audience: &str) -> Result<bool, String> {
        let found = lookup::find::<CSIDriver>(&self.kinds, "storage.k8s.io", "csidrivers", "", name).await;
        let driver = found.map_err(|error| error.to_string())?;
        let driver = driver.ok_or_else(|| format!("csidriver.storage.k8s.io {name:?} not found"))?;
        Ok(driver.spec.token_requests.iter().flatten().any(|request| request.audience == audience))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn request(spec: &Value) -> TokenRequest {
        serde_json::from_value(json!({"spec": spec})).expect("a request")
    }

    fn volume(source: &Value) -> Volume {
        let mut volume = json!({"name": "v"});
        for (name, value) in source.as_object().into_iter().flatten() {
            volume[name] = value.clone();
        }
        serde_json::from_value(volume).expect("a volume")
    }

    #[test]
    fn a_kubelet_asks_for_tokens_of_pods_alone() {
        let bound = |reference: Value| request(&json!({"boundObjectRef": reference}));
        let pod = bound(json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"}));
        assert_eq!(bound_to(&pod), Ok(("p", "u")));
        for (reference, why) in [
            (Value::Null, "node requested token not bound to a pod"),
            (
                json!({"apiVersion": "v1", "kind": "Secret", "name": "s", "uid": "u"}),
                "node requested token not bound to a pod",
            ),
            (
                json!({"apiVersion": "v1", "kind": "Pod", "name": "p"}),
                "node requested token with a pod binding without a uid",
            ),
        ] {
            assert_eq!(bound_to(&bound(reference)), Err(why));
        }
    }

    #[test]
    fn a_kubelet_asks_for_one_audience() {
        assert_eq!(audience_of(&request(&json!({}))), Ok(""));
        assert_eq!(audience_of(&request(&json!({"audiences": ["vault"]}))), Ok("vault"));
        assert!(audience_of(&request(&json!({"audiences": ["vault", "api"]}))).is_err());
    }

    #[test]
    fn a_pod_shows_tokens_to_those_that_its_volumes_name() {
        let token = json!({"path": "t", "audience": "vault"});
        let projected = volume(&json!({"projected": {"sources": [{"serviceAccountToken": token}]}}));
        assert!(mounts(&projected, "vault") && !mounts(&projected, ""));
        let own = json!({"projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}});
        assert!(mounts(&volume(&own), ""));
    }

    #[test]
    fn a_volume_says_which_driver_it_has() {
        let cases = [
            (json!({"csi": {"driver": "d"}}), Some(Said::Driver("d".to_owned()))),
            (json!({"persistentVolumeClaim": {"claimName": "c"}}), Some(Said::Claim("c".to_owned()))),
            (
                json!({"ephemeral": {"volumeClaimTemplate": {"spec": {}}}}),
                Some(Said::Claim("p-v".to_owned())),
            ),
            (
                json!({"azureFile": {"secretName": "s", "shareName": "x"}}),
                Some(Said::Driver("file.csi.azure.com".to_owned())),
            ),
            (json!({"emptyDir": {}}), None),
        ];
        for (source, expected) in cases {
            assert_eq!(said("p", &volume(&source)), expected, "{source}");
        }
    }
}
