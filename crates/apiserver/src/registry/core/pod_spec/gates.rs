//! What of a pod goes that a feature would have brought which is off: it is as if nobody had asked for it. What a pod has
//! already, it keeps.

use k8s_openapi::api::core::v1::{ContainerStatus, Lifecycle, PodSpec, PodStatus, VolumeProjection};
use krate_api::{FieldErrors, FieldPath};

use crate::features::{
    CLUSTER_TRUST_BUNDLE_PROJECTION, CONTAINER_STOP_SIGNALS, DRA_NODE_ALLOCATABLE_RESOURCES, Features,
    GENERIC_WORKLOAD, IMAGE_VOLUME_WITH_DIGEST, POD_CERTIFICATE_REQUEST,
};
use crate::registry::rules::one_of;

/// A feature, whether a source of a projected volume is of it, and how that is taken away.
type Gate = (&'static str, fn(&VolumeProjection) -> bool, fn(&mut VolumeProjection));

const GATES: [Gate; 2] = [
    (
        CLUSTER_TRUST_BUNDLE_PROJECTION,
        |source| source.cluster_trust_bundle.is_some(),
        |source| source.cluster_trust_bundle = None,
    ),
    (
        POD_CERTIFICATE_REQUEST,
        |source| source.pod_certificate.is_some(),
        |source| source.pod_certificate = None,
    ),
];

/// Takes away what no feature brings and `old` does not have.
pub fn drop_disabled(spec: Option<&mut PodSpec>, old: Option<&PodSpec>, features: &Features) {
    let Some(spec) = spec else { return };
    for (feature, is_of, drop) in GATES {
        if !sources(spec).any(is_of) || features.enabled(feature) {
            continue;
        }
        if old.is_some_and(|old| sources(old).any(is_of)) {
            continue;
        }
        let projected = spec.volumes.iter_mut().flatten().filter_map(|volume| volume.projected.as_mut());
        projected.flat_map(|projected| projected.sources.iter_mut().flatten()).for_each(drop);
    }
    let is_grouped = |spec: &PodSpec| spec.scheduling_group.is_some();
    if is_grouped(spec) && !old.is_some_and(is_grouped) && !features.enabled(GENERIC_WORKLOAD) {
        spec.scheduling_group = None;
    }
    if has_signal(spec) && !old.is_some_and(has_signal) && !features.enabled(CONTAINER_STOP_SIGNALS) {
        lifecycles_mut(spec).for_each(without_signal);
    }
}

/// The same as [`drop_disabled`] for what a node says of a pod.
pub fn drop_disabled_status(status: &mut PodStatus, old: &PodStatus, features: &Features) {
    let has_claims = |s: &PodStatus| {
        s.node_allocatable_resource_claim_statuses.as_ref().is_some_and(|claims| !claims.is_empty())
    };
    if has_claims(status) && !has_claims(old) && !features.enabled(DRA_NODE_ALLOCATABLE_RESOURCES) {
        status.node_allocatable_resource_claim_statuses = None;
    }
    if !has_digests(old) && !features.enabled(IMAGE_VOLUME_WITH_DIGEST) {
        let lists = [
            &mut status.container_statuses,
            &mut status.init_container_statuses,
            &mut status.ephemeral_container_statuses,
        ];
        let all = lists.into_iter().flat_map(|list| list.iter_mut().flatten());
        all.flat_map(|c| c.volume_mounts.iter_mut().flatten()).for_each(|mount| mount.volume_status = None);
    }
}

/// Refuses a value that only a feature brings which is off (`SELinuxMount`). Where `old` has the field, with whatever
/// value, it may have any. `at` is where the spec stands.
pub fn refuse_disabled(
    spec: Option<&PodSpec>,
    old: Option<&PodSpec>,
    at: fn() -> FieldPath,
    errors: &mut FieldErrors,
) {
    fn policy(spec: Option<&PodSpec>) -> Option<&str> {
        spec?.security_context.as_ref()?.se_linux_change_policy.as_deref()
    }
    let Some(asked) = policy(spec) else { return };
    let all: &[&str] = if policy(old).is_some() { &["MountOption", "Recursive"] } else { &["Recursive"] };
    one_of(asked, all, &at().child("securityContext").child("seLinuxChangePolicy"), errors);
}

fn has_digests(status: &PodStatus) -> bool {
    let has = |list: &Option<Vec<ContainerStatus>>| {
        let mut mounts = list.iter().flatten().flat_map(|c| c.volume_mounts.iter().flatten());
        mounts.any(|mount| mount.volume_status.is_some())
    };
    [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses]
        .into_iter()
        .any(has)
}

fn sources(spec: &PodSpec) -> impl Iterator<Item = &VolumeProjection> {
    let projected = spec.volumes.iter().flatten().filter_map(|volume| volume.projected.as_ref());
    projected.flat_map(|projected| projected.sources.iter().flatten())
}

fn has_signal(spec: &PodSpec) -> bool {
    let own = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let added = spec.ephemeral_containers.iter().flatten();
    let mut all = own.map(|c| &c.lifecycle).chain(added.map(|c| &c.lifecycle));
    all.any(|lifecycle| lifecycle.as_ref().is_some_and(|l| l.stop_signal.is_some()))
}

fn lifecycles_mut(spec: &mut PodSpec) -> impl Iterator<Item = &mut Option<Lifecycle>> {
    let own = spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten());
    let added = spec.ephemeral_containers.iter_mut().flatten();
    own.map(|c| &mut c.lifecycle).chain(added.map(|c| &mut c.lifecycle))
}

/// A lifecycle of which nothing is left goes as well.
fn without_signal(lifecycle: &mut Option<Lifecycle>) {
    let signalled = lifecycle.as_mut().is_some_and(|l| l.stop_signal.take().is_some());
    if signalled && lifecycle.as_ref() == Some(&Lifecycle::default()) {
        *lifecycle = None;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(sources: &Value) -> PodSpec {
        serde_json::from_value(json!({
            "containers": [], "volumes": [{"name": "v", "projected": {"sources": sources}}]}))
        .expect("a spec")
    }

    #[test]
    fn what_no_feature_brings_goes_unless_it_is_there() {
        let bundle = json!({"clusterTrustBundle": {"name": "b", "path": "p"}});
        let certificate = json!({"podCertificate": {"signerName": "a.test/b", "keyType": "ED25519"}});
        let both = json!([bundle, certificate]);
        let left = |gates: &str, old: Option<&Value>| {
            let mut new = spec(&both);
            let features = Features::parse([gates]).expect("sound");
            drop_disabled(Some(&mut new), old.map(spec).as_ref(), &features);
            let value = serde_json::to_value(new).expect("JSON");
            value["volumes"][0]["projected"]["sources"].clone()
        };
        assert_eq!(left("", None), json!([{}, {}]));
        assert_eq!(
            left("ClusterTrustBundle=true,ClusterTrustBundleProjection=true", None),
            json!([bundle, {}])
        );
        assert_eq!(left("PodCertificateRequest=true", None), json!([{}, certificate]));
        assert_eq!(left("", Some(&json!([certificate]))), json!([{}, certificate]));
        assert_eq!(left("", Some(&both)), both);
    }

    #[test]
    fn signals_and_groups_are_for_those_who_ask_for_the_features() {
        let asked: PodSpec = serde_json::from_value(json!({
        "schedulingGroup": {"podGroupName": "g"},
        "containers": [
            {"name": "a", "lifecycle": {"stopSignal": "SIGUSR1"}},
            {"name": "b", "lifecycle": {"stopSignal": "SIGUSR1", "preStop": {"sleep": {"seconds": 1}}}},
        ]}))
        .expect("a spec");
        let left = |gates: &str, old: Option<&PodSpec>| {
            let mut new = asked.clone();
            drop_disabled(Some(&mut new), old, &Features::parse([gates]).expect("sound"));
            new
        };
        let dropped = left("", None);
        assert_eq!(dropped.scheduling_group, None);
        assert_eq!(dropped.containers[0].lifecycle, None);
        let kept = dropped.containers[1].lifecycle.as_ref().expect("a lifecycle");
        assert!(kept.stop_signal.is_none() && kept.pre_stop.is_some());
        assert_eq!(left("", Some(&asked)), asked);
        assert_eq!(left("ContainerStopSignals=true,GenericWorkload=true", None), asked);
    }

    #[test]
    fn volumes_are_labelled_by_mounting_only_where_a_policy_was_there() {
        let of = |policy: Option<&str>| -> PodSpec {
            let context = json!({"seLinuxChangePolicy": policy});
            serde_json::from_value(json!({"containers": [], "securityContext": context})).expect("a spec")
        };
        let said = |new: Option<&str>, old: Option<&PodSpec>| {
            let mut errors = FieldErrors::new();
            refuse_disabled(Some(&of(new)), old, || FieldPath::new("spec"), &mut errors);
            errors.aggregate()
        };
        let told = "spec.securityContext.seLinuxChangePolicy: Unsupported value: \"MountOption\": supported values: \
                    \"Recursive\"";
        assert_eq!(said(Some("Recursive"), None), "[]");
        assert_eq!(said(Some("MountOption"), None), told);
        assert_eq!(said(Some("MountOption"), Some(&of(None))), told);
        assert_eq!(said(Some("MountOption"), Some(&of(Some("Recursive")))), "[]");
        assert_eq!(said(None, None), "[]");
    }

    #[test]
    fn a_node_tells_of_digests_only_where_that_is_on() {
        let told: PodStatus = serde_json::from_value(json!({"containerStatuses": [{
            "name": "c", "ready": true, "restartCount": 0, "image": "", "imageID": "",
            "volumeMounts": [{"name": "v", "mountPath": "/v", "volumeStatus": {"image": {"imageRef": "r"}}}]}]}))
        .expect("a status");
        let left = |gates: &str, old: &PodStatus| {
            let mut new = told.clone();
            drop_disabled_status(&mut new, old, &Features::parse([gates]).expect("sound"));
            has_digests(&new)
        };
        assert!(!left("", &PodStatus::default()));
        assert!(left("", &told));
        assert!(left("ImageVolumeWithDigest=true", &PodStatus::default()));
    }
}
