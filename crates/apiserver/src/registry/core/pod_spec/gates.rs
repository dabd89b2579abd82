//! What of a pod goes that a feature would have brought which is off: it is as if nobody had asked for it. What a pod has
//! already, it keeps.

use k8s_openapi::api::core::v1::{PodSpec, VolumeProjection};

use crate::features::{CLUSTER_TRUST_BUNDLE_PROJECTION, Features, POD_CERTIFICATE_REQUEST};

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
}

fn sources(spec: &PodSpec) -> impl Iterator<Item = &VolumeProjection> {
    let projected = spec.volumes.iter().flatten().filter_map(|volume| volume.projected.as_ref());
    projected.flat_map(|projected| projected.sources.iter().flatten())
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
}
