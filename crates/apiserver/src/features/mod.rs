//! The features on which something here depends; which of the kinds are served, by `--runtime-config`.

mod resources;

pub use krate_api::features::Features;
pub use resources::Resources;

/// Declares the names of features, and lists them.
macro_rules! heeded {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        $($(#[$doc])* pub const $name: &str = $text;)*

        /// Those of which something depends here.
        pub const HEEDED: &[&str] = &[$($name),*];
    };
}

heeded! {
    /// A Lease for each API server (KEP-1965).
    API_SERVER_IDENTITY = "APIServerIdentity";
    /// ClusterTrustBundle objects (KEP-3257).
    CLUSTER_TRUST_BUNDLE = "ClusterTrustBundle";
    /// ClusterTrustBundles as sources of projected volumes (KEP-3257).
    CLUSTER_TRUST_BUNDLE_PROJECTION = "ClusterTrustBundleProjection";
    /// The signal that ends a container (KEP-4960).
    CONTAINER_STOP_SIGNALS = "ContainerStopSignals";
    /// Claims for what else a node gives by requests (KEP-5517).
    DRA_NODE_ALLOCATABLE_RESOURCES = "DRANodeAllocatableResources";
    /// Pods that are scheduled as a group (KEP-4671).
    GENERIC_WORKLOAD = "GenericWorkload";
    /// The digest of an image that is mounted as a volume (KEP-5365).
    IMAGE_VOLUME_WITH_DIGEST = "ImageVolumeWithDigest";
    /// PodCertificateRequest objects, and certificates as sources of projected volumes (KEP-4317).
    POD_CERTIFICATE_REQUEST = "PodCertificateRequest";
    /// Where API servers reach each other, told in their leases (KEP-4020).
    UNKNOWN_VERSION_INTEROPERABILITY_PROXY = "UnknownVersionInteroperabilityProxy";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_heeded_can_be_set() {
        for &name in HEEDED {
            assert!(krate_api::features::all().iter().any(|feature| feature.name == name), "{name}");
        }
    }
}
