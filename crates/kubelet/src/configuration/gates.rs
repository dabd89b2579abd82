//! The features on which something of the kubelet depends.

pub use krate_api::features::Features;

/// Whether the certificate that is served may be asked of the API server.
pub const SERVING: &str = "RotateKubeletServerCertificate";
/// Whether volumes may show ClusterTrustBundles (KEP-3257).
pub const TRUST_PROJECTION: &str = "ClusterTrustBundleProjection";
/// Whether volumes may show certificates of pods (KEP-4317).
pub const POD_CERTIFICATE: &str = "PodCertificateRequest";

/// All of them: what else is set changes nothing here.
pub const HEEDED: [&str; 6] = [
    "CPUManagerPolicyAlphaOptions",
    "CPUManagerPolicyBetaOptions",
    // The projection needs it.
    "ClusterTrustBundle",
    TRUST_PROJECTION,
    POD_CERTIFICATE,
    SERVING,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_heeded_can_be_set() {
        for name in HEEDED {
            assert!(krate_api::features::all().iter().any(|feature| feature.name == name), "{name}");
        }
    }
}
