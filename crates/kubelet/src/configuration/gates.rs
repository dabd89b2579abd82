//! Feature gates, as far as something here depends on them.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Whether the certificate that is served may be asked of the API server.
pub const SERVING: &str = "RotateKubeletServerCertificate";
/// Whether volumes may show ClusterTrustBundles (KEP-3257).
pub const TRUST_PROJECTION: &str = "ClusterTrustBundleProjection";
const TRUST_BUNDLE: &str = "ClusterTrustBundle";
/// Whether volumes may show certificates of pods (KEP-4317).
pub const POD_CERTIFICATE: &str = "PodCertificateRequest";

/// Those that are heeded, with upstream's defaults in v1.36.
const DEFAULTS: [(&str, bool); 8] = [
    ("CPUManagerPolicyAlphaOptions", false),
    ("CPUManagerPolicyBetaOptions", true),
    (TRUST_BUNDLE, false),
    (TRUST_PROJECTION, false),
    (POD_CERTIFICATE, false),
    (SERVING, true),
    ("TopologyManagerPolicyAlphaOptions", false),
    ("TopologyManagerPolicyBetaOptions", true),
];

/// Those that are nothing without another.
const DEPENDENCIES: [(&str, &str); 1] = [(TRUST_PROJECTION, TRUST_BUNDLE)];

/// What is set of them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(transparent)]
pub struct Gates(BTreeMap<String, bool>);

impl Gates {
    /// Whether a feature is there. `AllAlpha` and `AllBeta` set those that are not named themselves.
    pub fn enabled(&self, name: &str) -> bool {
        let group = if name.contains("Alpha") { "AllAlpha" } else { "AllBeta" };
        let default = || DEFAULTS.iter().any(|(known, on)| *known == name && *on);
        self.0.get(name).or_else(|| self.0.get(group)).copied().unwrap_or_else(default)
    }

    /// Whether each feature that is on has what it depends on.
    ///
    /// # Errors
    /// One has not, in upstream's words.
    pub fn check(&self) -> Result<(), String> {
        let lacks = |(name, other): &(&str, &str)| self.enabled(name) && !self.enabled(other);
        match DEPENDENCIES.iter().find(|pair| lacks(pair)) {
            Some((name, other)) => {
                Err(format!("{name} is enabled, but depends on features that are disabled: [{other}]"))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_is_as_it_is_set_and_else_as_upstreams() {
        let gates = |set: serde_json::Value| serde_json::from_value::<Gates>(set).unwrap();
        let (alpha, beta) = ("CPUManagerPolicyAlphaOptions", "CPUManagerPolicyBetaOptions");
        for (set, expected) in [
            (serde_json::json!({}), (false, true)),
            (serde_json::json!({alpha: true, beta: false}), (true, false)),
            (serde_json::json!({"AllAlpha": true, "AllBeta": false}), (true, false)),
            (serde_json::json!({"AllAlpha": true, alpha: false}), (false, true)),
        ] {
            let gates = gates(set.clone());
            assert_eq!((gates.enabled(alpha), gates.enabled(beta)), expected, "{set}");
        }
    }

    #[test]
    fn a_gate_needs_what_it_depends_on() {
        for (set, said) in [
            (serde_json::json!({}), None),
            (serde_json::json!({TRUST_PROJECTION: true, TRUST_BUNDLE: true}), None),
            (serde_json::json!({"AllBeta": true}), None),
            (
                serde_json::json!({TRUST_PROJECTION: true}),
                Some(
                    "ClusterTrustBundleProjection is enabled, but depends on features that are disabled: \
                     [ClusterTrustBundle]",
                ),
            ),
        ] {
            let gates: Gates = serde_json::from_value(set.clone()).unwrap();
            assert_eq!(gates.check().err().as_deref(), said, "{set}");
        }
    }
}
