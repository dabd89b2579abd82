//! Feature gates, as far as something here depends on them.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Whether the certificate that is served may be asked of the API server.
pub const SERVING: &str = "RotateKubeletServerCertificate";

/// Those that are heeded, with upstream's defaults in v1.36.
const DEFAULTS: [(&str, bool); 5] = [
    ("CPUManagerPolicyAlphaOptions", false),
    ("CPUManagerPolicyBetaOptions", true),
    (SERVING, true),
    ("TopologyManagerPolicyAlphaOptions", false),
    ("TopologyManagerPolicyBetaOptions", true),
];

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
}
