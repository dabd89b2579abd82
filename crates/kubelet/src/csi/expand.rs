//! Volumes that grow: what a PersistentVolume says of its size is brought to the file system, and then to the claim's
//! status (KEP-284, KEP-1790).

use std::path::Path;

use k8s_openapi::api::core::v1::{
    PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimCondition, PersistentVolumeClaimStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use krate_client::{EventType, message, reference};
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use tonic::{Code, Status};

use super::api::{Capability, CapacityRange, NodeExpandVolumeRequest};
use super::client::{Use, capability, is_final};
use super::files::Work;
use super::state::Csi;
use crate::cri::rpc_error;
use crate::volumes::{Context, VolumeError};
use crate::worker::difference;

const STORAGE: &str = "storage";
const PENDING: &str = "NodeResizePending";
const IN_PROGRESS: &str = "NodeResizeInProgress";
const INFEASIBLE: &str = "NodeResizeInfeasible";
/// A claim of many nodes says by it that none of them has anything to do.
const NOT_REQUIRED: &str = "volume.kubernetes.io/node-expansion-not-required";
/// Conditions that tell of growing.
const CONDITIONS: [&str; 5] =
    ["FileSystemResizePending", "Resizing", "ControllerResizeError", "NodeResizeError", "ModifyVolumeError"];

fn bytes(quantity: Option<&Quantity>) -> i64 {
    quantity.and_then(|q| krate_api::Quantity::parse(&q.0).ok()).map_or(0, |q| q.value())
}

/// What is to be done about a volume's size.
#[derive(Clone, Debug, PartialEq)]
enum Plan {
    /// It is as large as it should be here.
    Done,
    /// Somebody else comes first.
    NotYet,
    /// The driver makes it as large as that, and the claim is told, unless it says so already.
    Expand { size: Quantity, tells: bool, is_followed: bool },
}

/// Decides by what PersistentVolume and claim say, and by how large the volume was when it was given to the pod.
fn plan(pv: &PersistentVolume, claim: &PersistentVolumeClaim, known: Option<i64>) -> Plan {
    let capacity = pv.spec.as_ref().and_then(|s| s.capacity.as_ref()).and_then(|c| c.get(STORAGE));
    let status = claim.status.clone().unwrap_or_default();
    let told = bytes(status.capacity.as_ref().and_then(|c| c.get(STORAGE)));
    let Some(size) = capacity.filter(|c| bytes(Some(c)) > known.unwrap_or(told).min(told)) else {
        return Plan::Done;
    };
    let state = status.allocated_resource_statuses.as_ref().and_then(|all| all.get(STORAGE));
    if state.is_none() && status.allocated_resources.is_none() {
        // Who resizes it is too old to say how far it is.
        return Plan::Expand { size: size.clone(), tells: told < bytes(Some(size)), is_followed: false };
    }
    let size = status.allocated_resources.as_ref().and_then(|all| all.get(STORAGE)).unwrap_or(size).clone();
    let is_told = told >= bytes(Some(&size)) && state.is_none();
    let is_shared = claim
        .spec
        .as_ref()
        .and_then(|s| s.access_modes.as_ref())
        .is_some_and(|modes| modes.iter().any(|mode| mode == "ReadWriteMany"));
    let is_required = !claim.annotations().contains_key(NOT_REQUIRED);
    if is_told && is_shared && is_required {
        return Plan::Expand { size, tells: false, is_followed: true };
    }
    match state.map(String::as_str) {
        Some(PENDING | IN_PROGRESS) => Plan::Expand { size, tells: !is_told, is_followed: true },
        _ if is_told => Plan::Done,
        _ => Plan::NotYet,
    }
}

/// The status of a claim whose volume has grown.
fn grown(status: &PersistentVolumeClaimStatus, size: &Quantity) -> PersistentVolumeClaimStatus {
    let mut status = status.clone();
    status.capacity.get_or_insert_default().insert(STORAGE.to_owned(), size.clone());
    if let Some(all) = &mut status.allocated_resource_statuses {
        all.remove(STORAGE);
    }
    status.allocated_resource_statuses = status.allocated_resource_statuses.filter(|all| !all.is_empty());
    let conditions = status.conditions.take().unwrap_or_default();
    let kept: Vec<_> = conditions.into_iter().filter(|c| !CONDITIONS.contains(&c.type_.as_str())).collect();
    status.conditions = Some(kept).filter(|kept| !kept.is_empty());
    status
}

/// The status of a claim whose volume cannot grow; one that never can is not tried again.
fn failed(status: &PersistentVolumeClaimStatus, why: &str, never: bool) -> PersistentVolumeClaimStatus {
    let mut status = status.clone();
    if never {
        let all = status.allocated_resource_statuses.get_or_insert_default();
        all.insert(STORAGE.to_owned(), INFEASIBLE.to_owned());
    }
    let conditions = status.conditions.get_or_insert_default();
    if !conditions.iter().any(|c| c.type_ == "NodeResizeError" && c.status == "True") {
        conditions.retain(|c| c.type_ != "NodeResizeError");
        conditions.push(PersistentVolumeClaimCondition {
            type_: "NodeResizeError".to_owned(),
            status: "True".to_owned(),
            last_transition_time: Some(Time(jiff::Timestamp::now())),
            message: Some(format!("failed to expand pvc with {why}")),
            ..Default::default()
        });
    }
    status
}

impl Csi {
    /// Makes a volume as large as its PersistentVolume, if it is not. `known`: how large it was when it was given to the
    /// pod; none while it is being given. Returns how large it is, in bytes.
    pub(super) async fn expand(
        &self,
        context: &Context<'_>,
        work: &Work<'_>,
        path: &Path,
        staged: Option<&Path>,
        known: Option<i64>,
    ) -> Result<i64, VolumeError> {
        let wanted = work.wanted;
        let Some((pv, claim)) = wanted.from else { return Ok(0) };
        let told = bytes(
            claim
                .status
                .as_ref()
                .and_then(|s| s.capacity.as_ref())
                .and_then(|capacity| capacity.get(STORAGE)),
        );
        let (size, tells, is_followed) = match plan(pv, claim, known) {
            Plan::Done => return Ok(told),
            Plan::NotYet => return Ok(known.unwrap_or(told)),
            Plan::Expand { size, tells, is_followed } => (size, tells, is_followed),
        };
        let (on_pod, on_claim) = (reference(context.pod), reference(claim));
        let tell = |kind, reason: &str, message: &str| {
            self.events.event(&on_pod, kind, reason, message);
            self.events.event(&on_claim, kind, reason, message);
        };
        if wanted.read_only {
            let message = format!(
                "MountVolume.NodeExpandVolume failed for volume {:?} requested read-only file system",
                wanted.name
            );
            tell(EventType::Warning, "FileSystemResizeFailed", &message);
            return Ok(bytes(Some(&size)));
        }
        let refused = |why: String| {
            let (reason, what) = if known.is_some() {
                ("VolumeResizeFailed", "NodeExpandVolume.NodeExpandVolume failed")
            } else {
                ("FailedMount", "MountVolume.Setup failed while expanding volume")
            };
            VolumeError::Step { reason, what, volume: wanted.name.clone(), why }
        };
        if !work.able.has(Capability::ExpandVolume) {
            // What need not be done is done.
            return if !is_followed || !tells {
                Ok(bytes(Some(&size)))
            } else {
                Err(refused(format!("NodeExpand is not supported by the CSI driver {}", wanted.driver)))
            };
        }
        let mut claim = claim.clone();
        if is_followed && tells {
            let mut status = claim.status.clone().unwrap_or_default();
            let all = status.allocated_resource_statuses.get_or_insert_default();
            all.insert(STORAGE.to_owned(), IN_PROGRESS.to_owned());
            claim = self.patch(&claim, &status, true).await.map_err(&refused)?;
        }
        let secrets = self.secret(wanted.expand_secret.as_ref(), "NodeExpandSecretRef").await;
        let secrets = secrets.map_err(|why| {
            refused(format!("expander.NodeExpand failed to get NodeExpandSecretRef: {why}"))
        })?;
        let is_block = pv.spec.as_ref().is_some_and(|spec| spec.volume_mode.as_deref() == Some("Block"));
        let used = if is_block {
            Use::Block
        } else {
            Use::Files { fs_type: wanted.fs_type.clone(), options: wanted.options.clone(), group: None }
        };
        let request = NodeExpandVolumeRequest {
            volume_id: wanted.handle.clone(),
            volume_path: path.display().to_string(),
            capacity_range: Some(CapacityRange { required_bytes: bytes(Some(&size)), limit_bytes: 0 }),
            staging_target_path: staged.map(|path| path.display().to_string()).unwrap_or_default(),
            volume_capability: Some(capability(used, work.able.mode(wanted.access_mode()))),
            secrets,
        };
        if let Err(status) = work.driver.expand(request).await {
            return self
                .not_expanded(&claim, &status, is_followed, known.unwrap_or(told))
                .await
                .map_err(refused);
        }
        let node = context.pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default();
        let message = format!("MountVolume.NodeExpandVolume succeeded for volume {:?} {node}", wanted.name);
        tell(EventType::Normal, "FileSystemResizeSuccessful", &message);
        if tells {
            let status = grown(&claim.status.clone().unwrap_or_default(), &size);
            self.patch(&claim, &status, true).await.map_err(|why| {
                refused(format!("mountVolume.NodeExpandVolume update pvc status failed: {why}"))
            })?;
        }
        Ok(bytes(Some(&size)))
    }

    /// The driver has not made it larger. One that cannot while the volume is used is not asked again, and keeps nobody
    /// from using it.
    async fn not_expanded(
        &self,
        claim: &PersistentVolumeClaim,
        status: &Status,
        is_followed: bool,
        size: i64,
    ) -> Result<i64, String> {
        let never = matches!(status.code(), Code::InvalidArgument | Code::OutOfRange | Code::NotFound);
        let why = format!(
            "Expander.NodeExpand failed to expand the volume {}{}",
            if never { "" } else { ": " },
            rpc_error(status)
        );
        if is_followed && is_final(status) {
            let told = failed(&claim.status.clone().unwrap_or_default(), &why, never);
            if let Err(error) = self.patch(claim, &told, false).await {
                tracing::debug!(
                    claim = claim.name_any(),
                    error,
                    "a claim is not told that its volume did not grow"
                );
            }
        }
        if status.code() == Code::FailedPrecondition { Ok(size) } else { Err(why) }
    }

    async fn patch(
        &self,
        claim: &PersistentVolumeClaim,
        status: &PersistentVolumeClaimStatus,
        guarded: bool,
    ) -> Result<PersistentVolumeClaim, String> {
        let (old, new) = (json!({"status": claim.status}), json!({"status": status}));
        let Some(mut patch) = difference(&old, &new) else { return Ok(claim.clone()) };
        if guarded {
            patch["metadata"] = json!({"resourceVersion": claim.metadata.resource_version});
        }
        let namespace = claim.namespace().unwrap_or_default();
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &namespace);
        let name = claim.name_any();
        let patched = api.patch_status(&name, &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.map_err(|e| format!("patchPVCStatus failed to patch PVC {name:?}: {}", message(&e)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn a_volume_grows_when_it_is_the_nodes_turn() {
        let pv: PersistentVolume = serde_json::from_value(
            json!({"metadata": {"name": "pv"}, "spec": {"capacity": {"storage": "2Gi"}}}),
        )
        .unwrap();
        let claim = |status: Value, modes: Value| -> PersistentVolumeClaim {
            serde_json::from_value(
                json!({"metadata": {"name": "c"}, "spec": {"accessModes": modes}, "status": status}),
            )
            .unwrap()
        };
        let size = || Quantity("2Gi".to_owned());
        let (once, many) = (json!(["ReadWriteOnce"]), json!(["ReadWriteMany"]));
        let with = |told: &str, state: Option<&str>| {
            let mut status = json!({"capacity": {"storage": told}, "allocatedResources": {"storage": "2Gi"}});
            if let Some(state) = state {
                status["allocatedResourceStatuses"] = json!({"storage": state});
            }
            status
        };
        let gib = 1 << 30;
        for (status, modes, known, expected) in [
            (json!({"capacity": {"storage": "2Gi"}}), &once, None, Plan::Done),
            (
                json!({"capacity": {"storage": "1Gi"}}),
                &once,
                None,
                Plan::Expand { size: size(), tells: true, is_followed: false },
            ),
            (
                with("1Gi", Some(PENDING)),
                &once,
                None,
                Plan::Expand { size: size(), tells: true, is_followed: true },
            ),
            (
                with("1Gi", Some(IN_PROGRESS)),
                &once,
                Some(gib),
                Plan::Expand { size: size(), tells: true, is_followed: true },
            ),
            (with("1Gi", Some(INFEASIBLE)), &once, None, Plan::NotYet),
            (with("1Gi", Some("ControllerResizeInProgress")), &once, None, Plan::NotYet),
            (with("2Gi", None), &once, Some(gib), Plan::Done),
            (
                with("2Gi", None),
                &many,
                Some(gib),
                Plan::Expand { size: size(), tells: false, is_followed: true },
            ),
            (with("2Gi", None), &many, Some(2 * gib), Plan::Done),
        ] {
            assert_eq!(
                plan(&pv, &claim(status.clone(), modes.clone()), known),
                expected,
                "{status} {modes} {known:?}"
            );
        }
    }

    #[test]
    fn the_claim_is_told_what_became_of_it() {
        let status: PersistentVolumeClaimStatus = serde_json::from_value(json!({
            "capacity": {"storage": "1Gi"}, "allocatedResourceStatuses": {"storage": PENDING},
            "conditions": [{"type": "FileSystemResizePending", "status": "True"}, {"type": "Other", "status": "True"}]}))
        .unwrap();
        let done = json!(grown(&status, &Quantity("2Gi".to_owned())));
        assert_eq!(done["capacity"]["storage"], "2Gi");
        assert!(done.get("allocatedResourceStatuses").is_none());
        assert_eq!(done["conditions"], json!([{"type": "Other", "status": "True"}]));
        let once = failed(&status, "x", false);
        assert_eq!(once.allocated_resource_statuses, status.allocated_resource_statuses);
        let never = failed(&once, "x", true);
        assert_eq!(never.allocated_resource_statuses.unwrap()[STORAGE], INFEASIBLE);
        let conditions = never.conditions.unwrap();
        assert_eq!(conditions.len(), 3);
        assert_eq!(conditions[2].message.as_deref(), Some("failed to expand pvc with x"));
    }
}
